/* The sandbox's file system: made by the process that will live in it (init), from outside its user namespace where that is
 * possible. */
#pragma once

#include "plan.h"

#include <stdbool.h>
#include <stdint.h>

/* In a fresh mount namespace: build the root, mount and mask everything, and pivot into it. Nothing of the machine's tree stays
 * reachable. `userns` (ids=range): the mounts are owned by the host, and ids are shifted by it, `base` being its first; -1: we
 * are inside ours. `disk`: from mounts_open_disk(), or -1. `maps`: from folders_maps(). `meminfo`: see show_memory(). `before_sys` enters the network namespace that
 * /sys is to show. */
bool mounts_make(const struct plan *plan, int userns, uint32_t base, int disk, const int *maps, int *meminfo,
                 bool (*before_sys)(void *), void *context);

/* In a fresh mount namespace: only the overlay of the plan, which is mounted there; its root. `bare`: without the folders that
 * others are mounted on in a sandbox. -1: see fail.h. */
int mounts_make_overlay(const struct plan *plan, int userns, uint32_t base, bool bare);

/* A detached mount of the plan's `disk`, ids shifted by `userns`. The supervisor opens it: init may open no block device. -1: see fail.h. */
int mounts_open_disk(const struct plan *plan, int userns);

/* /proc/meminfo with the sandbox's limit in place of the machine's memory. `shown`: the file, to be written anew (meminfo.h). */
bool show_memory(const struct plan *plan, int proc, int *shown);

/* A new file in the workbench. */
bool write_file(const char *name, const char *text);
