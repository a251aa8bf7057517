/* The folder in which upper and work lie side by side. One sandbox after the other uses it
 * (docs/protocol.md, key `reuse`). */
#pragma once

#include "plan.h"

#include <stdbool.h>

/* So many wait for a sandbox. */
enum { MOST_UNUSED = 64 };

/* Hold the folder for a sandbox's life: a shared lock tells that it is not abandoned. Returns the
 * descriptor; -1: see fail.h. */
int upper_hold(const struct plan *plan);

/* Make the folder as it was and give it a free name, or remove it: if that fails, or as many wait
 * already. `tick` as in trash.h. */
void upper_give_back(const struct plan *plan, void (*tick)(void *), void *context);
