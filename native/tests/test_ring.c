/* Promises of ring.c: first in, first out, at any offset kept, around the edge, and never more than its room. */
#include "check.h"
#include "ring.h"

#include <stdbool.h>

static uint8_t byte_at(uint64_t offset) {
    return (uint8_t)(offset * 31 + (offset >> 8));
}

static size_t fill(struct ring *ring, size_t most) {
    struct iovec pieces[2];
    int count = ring_space(ring, most, pieces);
    uint64_t offset = ring->end;
    for (int i = 0; i < count; i++)
        for (size_t at = 0; at < pieces[i].iov_len; at++)
            ((uint8_t *)pieces[i].iov_base)[at] = byte_at(offset++);
    ring_added(ring, (size_t)(offset - ring->end));
    return (size_t)(offset - ring->end);
}

static bool holds(const struct ring *ring, uint64_t offset, size_t most) {
    struct iovec pieces[2];
    int count = ring_bytes(ring, offset, most, pieces);
    for (int i = 0; i < count; i++)
        for (size_t at = 0; at < pieces[i].iov_len; at++)
            if (((uint8_t *)pieces[i].iov_base)[at] != byte_at(offset++))
                return false;
    return true;
}

static void bytes_come_back_at_every_offset(void) {
    struct ring ring = {.room = 1000};
    srand(1);
    for (int round = 0; round < 20000; round++) {
        fill(&ring, (size_t)rand() % 700);
        CHECK(ring_size(&ring) <= 1000);
        uint64_t offset = ring.start + (uint64_t)rand() % (ring_size(&ring) + 1);
        CHECK(holds(&ring, offset, (size_t)rand() % 1200));
        if (rand() % 2)
            ring_drop(&ring, offset);
    }
    ring_free(&ring);
}

static void a_full_one_takes_nothing(void) {
    struct ring ring = {.room = 64};
    struct iovec pieces[2];
    fill(&ring, 100);
    CHECK(ring_size(&ring) == 64 && ring_space(&ring, 1, pieces) == 0);
    ring_drop(&ring, 10);
    CHECK(ring.start == 10 && ring_space(&ring, 100, pieces) == 1 && pieces[0].iov_len == 10);
    ring_drop(&ring, 5); /* older than what is kept */
    CHECK(ring.start == 10);
    ring_free(&ring);
}

static void an_empty_one_starts_over(void) {
    struct ring ring = {.room = 8 << 20};
    for (int round = 0; round < 100; round++) {
        fill(&ring, 4096);
        ring_drop(&ring, ring.end);
    }
    CHECK(ring.head == 0 && ring.reached == 4096 && ring.end == 409600);
    fill(&ring, 5 << 20);
    ring_drop(&ring, ring.end);
    CHECK(ring.reached == 0);
    ring_free(&ring);
    CHECK(!ring.bytes && ring_size(&ring) == 0);
}

static void without_memory_it_is_full(void) {
    struct ring ring = {.room = (size_t)1 << 60};
    struct iovec pieces[2];
    CHECK(ring_space(&ring, 1, pieces) == 0);
}

int main(void) {
    bytes_come_back_at_every_offset();
    a_full_one_takes_nothing();
    an_empty_one_starts_over();
    without_memory_it_is_full();
    return finish("ring");
}
