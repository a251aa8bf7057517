/* What a stream's ring cannot hold and nobody has taken: bytes in a file without a name on the sandbox's own disk, with offsets. It keeps
 * the oldest, up to a bound, so a command that writes for ever does not write to the disk for ever. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct spill {
    int fd;              /* -1: no file yet */
    uint64_t most;       /* how many bytes it may hold */
    uint64_t base;       /* the offset of the file's first byte */
    uint64_t used;       /* the offset of the first byte that takes room of the disk */
    uint64_t start, end; /* offsets kept: start <= x < end */
    int broken;          /* an errno: something could not be kept, so what comes later would not follow */
};

bool spill_has_room(const struct spill *spill, size_t size);
/* Adds bytes whose first is at `offset`, as many as it may. */
void spill_add(struct spill *spill, uint64_t offset, const struct iovec *pieces, int count);
/* Reads exactly that; false when the disk does not give it back. */
bool spill_read(const struct spill *spill, uint64_t offset, uint8_t *to, size_t size);
/* Forgets what lies before `offset`. */
void spill_drop(struct spill *spill, uint64_t offset);
void spill_free(struct spill *spill);
