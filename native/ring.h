/* A ring of bytes with running offsets: what one stream of a command keeps until somebody has received it. */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct ring {
    uint8_t *bytes;      /* mapped at the first byte; only touched pages cost memory */
    size_t room;
    size_t head;         /* where in `bytes` the byte at offset `start` is */
    uint64_t start, end; /* offsets kept: start <= x < end */
    size_t reached;      /* how many bytes of the mapping were touched */
};

static inline size_t ring_size(const struct ring *ring) { return (size_t)(ring->end - ring->start); }

/* Where up to `max` bytes may be put, as one or two pieces; 0 when it is full or there is no memory. Then ring_added(). */
int ring_space(struct ring *ring, size_t max, struct iovec pieces[2]);
void ring_added(struct ring *ring, size_t count);
/* Up to `max` of the bytes kept from `offset` on, as no, one or two pieces. `offset` must be in start..end. */
int ring_bytes(const struct ring *ring, uint64_t offset, size_t max, struct iovec pieces[2]);
/* Forgets what lies before `offset`. */
void ring_drop(struct ring *ring, uint64_t offset);
void ring_free(struct ring *ring);
