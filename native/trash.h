/* Removing trees of files that a sandbox has made: any depth, any mode, any size. */
#pragma once

#include <stdbool.h>

/* Remove what is in the folder, and the folder itself unless `keep`. `tick` (or NULL) is called now and then: big trees take
 * long. Links are not followed, other file systems are not entered. True when it is gone, also if it was not there. */
bool trash_remove(const char *path, bool keep, void (*tick)(void *), void *context);
