/* See spill.h. Writing may wait for the disk, as any write of the sandbox does: for 256 KiB at a time, and only for a command that has
 * written more than 8 MiB that nobody has taken. */
#include "spill.h"
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

enum { HOLE = 1 << 20 }; /* smaller ones are not made */

static bool write_at(int fd, const uint8_t *bytes, size_t size, uint64_t position) {
    while (size) {
        ssize_t n = pwrite(fd, bytes, size, (off_t)position);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        bytes += n;
        size -= (size_t)n;
        position += (uint64_t)n;
    }
    return true;
}

static uint64_t room(const struct spill *spill) {
    uint64_t used = spill->start < spill->end ? spill->end - spill->used : 0;
    return spill->most > used ? spill->most - used : 0;
}

bool spill_has_room(const struct spill *spill, size_t size) {
    return !spill->broken && room(spill) >= size;
}

void spill_add(struct spill *spill, uint64_t offset, const struct iovec *pieces, int count) {
    if (spill->most && !spill->broken && spill->fd < 0 && (spill->fd = open_nameless("/")) < 0)
        spill->broken = errno;
    if (spill->start == spill->end && !spill->broken)
        spill->base = spill->used = spill->start = spill->end = offset;
    for (int i = 0; i < count && !spill->broken; i++) {
        uint64_t left = room(spill);
        size_t size = pieces[i].iov_len < left ? pieces[i].iov_len : (size_t)left;
        if (spill->fd < 0 || !write_at(spill->fd, pieces[i].iov_base, size, spill->end - spill->base))
            spill->broken = ENOSPC;
        else
            spill->end += size;
        if (size < pieces[i].iov_len)
            spill->broken = ENOSPC;
    }
}

bool spill_read(const struct spill *spill, uint64_t offset, uint8_t *to, size_t size) {
    while (size) {
        ssize_t n = pread(spill->fd, to, size, (off_t)(offset - spill->base));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        to += n;
        size -= (size_t)n;
        offset += (uint64_t)n;
    }
    return true;
}

/* The disk gets its room back: when all is read, and before that where its file system can make a hole. */
void spill_drop(struct spill *spill, uint64_t offset) {
    if (spill->start == spill->end || offset <= spill->start)
        return;
    spill->start = offset < spill->end ? offset : spill->end;
    if (spill->fd < 0)
        return;
    if (spill->start == spill->end)
        spill->broken = ftruncate(spill->fd, 0) < 0 ? errno : 0;
    else if (spill->start - spill->used >= HOLE && fallocate(spill->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(spill->used - spill->base),
                                                             (off_t)(spill->start - spill->used)) == 0)
        spill->used = spill->start;
}

void spill_free(struct spill *spill) {
    close_fd(&spill->fd);
    spill->fd = -1;
    spill->most = 0;
    spill->start = spill->end;
}
