/* See spill.h. Writing may wait for the disk, as any write of the sandbox does: for 256 KiB at a time, and only for a command that has
 * written more than 8 MiB that nobody has read. */
#include "spill.h"
#include "util.h"

#include <errno.h>
#include <unistd.h>

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

void spill_add(struct spill *spill, uint64_t offset, const struct iovec *pieces, int count) {
    if (spill->most && !spill->broken && spill->fd < 0 && (spill->fd = open_nameless("/")) < 0)
        spill->broken = errno;
    if (spill->start == spill->end && !spill->broken)
        spill->base = spill->start = spill->end = offset;
    for (int i = 0; i < count && !spill->broken; i++) {
        uint64_t held = spill->end - spill->base, room = spill->most > held ? spill->most - held : 0;
        size_t size = pieces[i].iov_len < room ? pieces[i].iov_len : (size_t)room;
        if (spill->fd < 0 || !write_at(spill->fd, pieces[i].iov_base, size, held))
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

/* When all is read the disk gets its room back, and it may begin anew. */
void spill_drop(struct spill *spill, uint64_t offset) {
    if (spill->start == spill->end || offset <= spill->start)
        return;
    spill->start = offset < spill->end ? offset : spill->end;
    if (spill->start == spill->end && spill->fd >= 0)
        spill->broken = ftruncate(spill->fd, 0) < 0 ? errno : 0;
}

void spill_free(struct spill *spill) {
    close_fd(&spill->fd);
    spill->fd = -1;
    spill->most = 0;
    spill->start = spill->end;
}
