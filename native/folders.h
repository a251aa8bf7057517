/* What a sandbox sees of folders that are not its own: binds of a build, volumes, and folders of this machine. */
#pragma once

#include "plan.h"

#include <stdbool.h>
#include <stdint.h>

/* Lock a folder for as long as this process lives: shared, so that many have it, and nobody removes it. A descriptor; -1: see fail.h. */
int folder_hold(const char *path);

/* Lock every `lock` of the plan so. */
bool folders_hold(const struct plan *plan);

/* For every bind of the plan what its owners are shifted by, if that is not the sandbox's own user namespace: a descriptor, or -1.
 * Only the machine's root makes some, and outside of the sandbox. NULL: see fail.h. */
int *folders_maps(const struct plan *plan, uint32_t base);

/* Close and free them; NULL is fine. */
void folders_close_maps(const struct plan *plan, int *maps);

/* Mount all of them in `root`; for a runtime, which mounts them itself, in the workbench as volumes/0, volumes/1 … */
bool folders_mount(const struct plan *plan, int root, int userns, const int *maps);

/* The mount point of a folder below `root`: missing folders are made. `resolve`: whether links are followed, inside it. -1 with
 * errno. */
int target_in(int root, const char *path, bool is_folder, uint64_t resolve);
