/* Mounts by descriptor: made detached, given their attributes, attached last. -1 or false with errno. */
#pragma once

#include "kernel.h"

#include <stdbool.h>
#include <stdint.h>

enum { PLAIN = ATTR_NOSUID | ATTR_NODEV, INERT = ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC };

/* Also shift owners by a user namespace; -1: do not. */
bool set_attributes(int mount, uint64_t set, int userns);

/* Open a path as it is inside `root`, without the links of /proc. */
int open_in(int root, const char *path, uint64_t flags, uint64_t resolve);

/* Attach a detached mount; afterwards its descriptor stands for the attached one. */
bool attach(int mount, int target);

/* A detached mount of what is at `path`, without what is mounted below it. */
int clone_tree(int folder, const char *path, uint64_t set, int userns, unsigned how);

/* A detached copy of a mount, with all that is mounted on it. */
int clone_whole(int mount);

/* A detached mount of a new file system, or of that on the device `source`. `options`: name, value, name, value, …, NULL. */
int new_filesystem(const char *type, const char *source, const char *const *options, unsigned set);
