/* A ring of bytes with running offsets. The whole room is mapped at once and never moves: the kernel gives pages when they
 * are touched, an empty ring starts over at its first page, and a big one gives its pages back when it runs empty. */
#include "ring.h"

#include <stdbool.h>
#include <sys/mman.h>

enum { KEPT_WHEN_EMPTY = 2 << 20 };

static bool ring_map(struct ring *ring) {
    void *bytes = mmap(NULL, ring->room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (bytes == MAP_FAILED)
        return false;
    /* Monitors and workers are forks of this process: without the rings a fork is cheap and holds no other command's output. */
    madvise(bytes, ring->room, MADV_DONTFORK);
    ring->bytes = bytes;
    return true;
}

static int pieces_at(const struct ring *ring, size_t position, size_t size, struct iovec pieces[2]) {
    size_t first = ring->room - position < size ? ring->room - position : size;
    pieces[0] = (struct iovec){ring->bytes + position, first};
    pieces[1] = (struct iovec){ring->bytes, size - first};
    return (size > 0) + (size > first);
}

int ring_space(struct ring *ring, size_t max, struct iovec pieces[2]) {
    size_t size = ring_size(ring), left = ring->room - size;
    if (!ring->bytes && !ring_map(ring))
        return 0;
    return pieces_at(ring, (ring->head + size) % ring->room, left < max ? left : max, pieces);
}

void ring_added(struct ring *ring, size_t count) {
    size_t top = ring->head + ring_size(ring) + count;
    ring->end += count;
    ring->reached = top > ring->room ? ring->room : top > ring->reached ? top : ring->reached;
}

int ring_bytes(const struct ring *ring, uint64_t offset, size_t max, struct iovec pieces[2]) {
    size_t skip = (size_t)(offset - ring->start), size = (size_t)(ring->end - offset);
    return pieces_at(ring, (ring->head + skip) % ring->room, size < max ? size : max, pieces);
}

void ring_drop(struct ring *ring, uint64_t offset) {
    if (offset <= ring->start)
        return;
    ring->head = (ring->head + (size_t)(offset - ring->start)) % ring->room;
    ring->start = offset;
    if (ring->start < ring->end)
        return;
    ring->head = 0;
    if (ring->reached > KEPT_WHEN_EMPTY) {
        madvise(ring->bytes, ring->room, MADV_DONTNEED);
        ring->reached = 0;
    }
}

void ring_free(struct ring *ring) {
    if (ring->bytes)
        munmap(ring->bytes, ring->room);
    ring->bytes = NULL;
    ring->start = ring->end;
    ring->head = ring->reached = 0;
}
