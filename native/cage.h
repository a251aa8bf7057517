/* What init gives up before it serves anybody: host ids, capabilities, the right to gain any, and most system calls. */
#pragma once

#include "plan.h"

#include <stdbool.h>
#include <stdint.h>

/* Make files and mounts as the host's root, but own them as `base` (fsuid and fsgid): an overlay writes as who mounted it. */
bool cage_own_as(uint32_t base);

/* Make all capabilities effective that this process may have: with its ids, some of them went. */
bool cage_raise(void);

/* Lower this process's limits as the plan says; a limit that may not be raised is clamped. */
bool cage_limit(const struct plan *plan);

/* Become root of the user namespace (`userns`, or -1 if we are inside), then lock everything, the system-call filter last. A runtime
 * needs the namespace's capabilities and the kernel's calls to make a sandbox, and locks itself in afterwards. */
bool cage_lock(const struct plan *plan, int userns);

/* The same for process 1 of somebody else's container, which is root there already: limits, capabilities, no_new_privs, the filter. */
bool cage_contain(void);

/* The gate's process, before it begins: the capabilities to become somebody else and no others, no_new_privs, the filter. Returns a file
 * with its own, narrower filter, empty where the plan may lack one; -1: see fail.h. */
int cage_gate(const struct plan *plan);
