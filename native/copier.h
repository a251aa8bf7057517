/* Copies a sandbox's files into a layer. */
#pragma once

#include "plan.h"

#include <stdbool.h>
#include <stdint.h>

/* Copy layers, the newest first, into the new folder `target`, with all that overlayfs and a sandbox can
 * see of them: owners, modes, times, hard links, holes, attributes, whiteouts. What is newer hides what is
 * older, as in an overlay. Owners are shifted down by `base`. Nobody may change the layers meanwhile.
 * `bytes`: what they take. Takes a umask of 0. False: see fail.h, and `target` is not there. */
bool copy_layers(const struct strings *layers, uint32_t base, const char *target, uint64_t *bytes);

/* Give a folder the owner, mode and attributes of another one. */
bool copy_looks(int from, int to);
