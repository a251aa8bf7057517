/* The sandbox's cgroups: the plan names folders and values, whatever the version; here they are made, joined, killed and
 * removed. */
#pragma once

#include "plan.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

bool groups_make(struct plan *plan); /* all folders, then all values */

/* Joining is split, because moving a process into a cgroup makes the kernel wait for all its readers, 10 ms and more, with two
 * exceptions: a process may be born in one (version 2), and a thread may move itself alone (version 1). */
/* The group of version 2 to clone into, which gets its list of devices; -1: the plan has none. */
bool groups_birthplace(const struct plan *plan, int *folder);
/* Fork, into all of the sandbox's groups. */
pid_t groups_fork(const struct plan *plan);

bool groups_join(const struct plan *plan); /* of version 1, called by who joins, while it has no other thread */

void groups_kill(const struct plan *plan);   /* every process at once; thaws first, for frozen ones keep SIGKILL waiting */
bool groups_remove(const struct plan *plan); /* when they are empty; false: something is still in one */

/* How often the kernel has killed for memory, by the file and word of the plan; 0 without one. */
uint64_t groups_oom_kills(const struct plan *plan);

/* Give the parent the weight of all sandboxes that there are. Whoever makes or removes one calls it afterwards; so what a killed
 * one leaves is right again with the next. */
void groups_weigh(const struct plan *plan);
