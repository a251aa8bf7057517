/* A disk of limited size for one sandbox: a file with a file system in it, behind a loop device. A kernel without quotas knows no
 * other hard limit of bytes and inodes. */
#pragma once

#include <stddef.h>

/* Put the file at `path` behind a loop device, whose path is written to `device`. The device lives as long as the descriptor that is returned or
 * a mount of it, whichever is longer. -1: see fail.h. */
int disk_attach(const char *path, char *device, size_t size);
