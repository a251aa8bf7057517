/* Stop everything in a sandbox for a while, by the freezer of its control groups. */
#pragma once

#include "plan.h"

#include <stdbool.h>

/* Stop every process of the sandbox's groups and wait until all have stopped, for two seconds at most.
 * A group that is frozen already is no failure. False: see fail.h, which names the process that does not
 * stop; all go on then. */
bool groups_freeze(const struct plan *plan);

/* Let them go on. */
bool groups_thaw(const struct plan *plan);

/* The processes of the sandbox's groups, one a line, as we see them; NULL with errno. */
char *groups_members(const struct plan *plan);
