/* The guard of the store's disk, for a sandbox whose files lie on it without a limit of the kernel's: it ends before it fills that disk. */
#pragma once

#include "plan.h"

#include <stdint.h>
#include <sys/types.h>

struct guard {
    int folder;      /* the upper folder; -1: there is nothing to guard */
    int dir;         /* the sandbox's own, where what was counted is noted for the others' guards */
    int userns;      /* whose root may look into all folders, or -1 */
    const struct strings *counted; /* other folders that the sandbox writes to, and nobody else who is guarded */
    const char *group; /* a control group with all its processes, or NULL */
    uint64_t most;   /* bytes that the sandbox may have on the disk */
    uint64_t before; /* bytes that were free when files were counted last */
    uint64_t next;   /* when to look again, in ms */
    pid_t counter; /* 0: there is none, or somebody has waited for it */
    int count; /* where the counter tells, -1: there is none */
};

enum { GUARD_MS = 1000 };

/* Look at the file system's free space, if a second is over. True: the sandbox has more than it may, or the disk is nearly full and it has
 * more than any other. */
bool guard_finds(struct guard *guard, uint64_t now);

/* Begin; it changes nothing if the plan has no limit. `dir`, `userns`: kept as long as the guard. */
bool guard_begin(struct guard *guard, const struct plan *plan, int dir, int userns);

void guard_end(struct guard *guard);
