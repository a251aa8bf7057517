/* Project quota: a hard limit of bytes and files that costs nothing, where the file system has it switched on (ext4 and xfs that were
 * mounted with `prjquota`, Linux 5.14). What is made in a folder of a project belongs to the project, also through an overlay, and root of a
 * sandbox can neither leave it nor lift its limit. Where it is off, nothing happens here: the guard looks on, as it does anyway. */
#pragma once

#include <stdint.h>

/* Limit what is written to two empty folders, before they are mounted, to `most` bytes, and to as many files as a disk of that size has. */
void quota_set(const char *upper, const char *work, uint64_t most);

/* An empty folder counts as `upper`'s: both have one limit. */
void quota_join(const char *folder, const char *upper);

/* Lift the limit of `upper`, which is used again, or removed. */
void quota_clear(const char *upper);
