/* Promises of frame.c: what is put together comes apart the same; anything cut short, too long or left over is refused. */
#include "check.h"
#include "frame.h"
#include "util.h"

#include <string.h>

static void put_start(struct buffer *out) {
    static const char id[ID_SIZE] = "0123456789abcde";
    size_t mark = frame_begin(out, FRAME_START);
    buffer_add(out, id, ID_SIZE);
    put_uint(out, START_PTY | START_ATTACHED, 4);
    put_uint(out, 1500, 8);
    put_text(out, "alice:staff");
    put_text(out, "");
    put_uint(out, 24, 2);
    put_uint(out, 80, 2);
    put_uint(out, 2, 4);
    put_text(out, "echo");
    put_text(out, "");
    put_uint(out, 1, 4);
    put_text(out, "A=b");
    frame_end(out, mark);
}

static void put_io(struct buffer *out, size_t size) {
    static uint8_t data[MAX_DATA + 1];
    size_t mark = frame_begin(out, FRAME_IO);
    for (int i = 0; i < ID_SIZE; i++)
        put_uint(out, (uint64_t)i, 1);
    put_uint(out, WANT_STDOUT | WANT_STDIN, 1);
    put_uint(out, 1ull << 40, 8);
    put_uint(out, 2, 8);
    put_uint(out, 3, 8);
    put_uint(out, 1, 1);
    put_uint(out, 4096, 4);
    put_uint(out, UINT32_MAX, 4);
    put_uint(out, size, 4);
    buffer_add(out, data, size);
    frame_end(out, mark);
}

static struct frame whole(const struct buffer *out) {
    struct frame frame = {0};
    CHECK(frame_peek(buffer_at(out), buffer_size(out), &frame) == FRAME_WHOLE);
    CHECK(frame.whole == buffer_size(out));
    return frame;
}

static void start_comes_apart(void) {
    struct buffer out = {0};
    struct start_request start;
    put_start(&out);
    struct frame frame = whole(&out);
    CHECK(frame.type == FRAME_START && decode_start(&frame, &start));
    CHECK(start.flags == 33 && start.timeout_ms == 1500 && start.rows == 24 && start.columns == 80);
    CHECK(strcmp(start.user, "alice:staff") == 0 && *start.workdir == 0);
    CHECK(strcmp(start.argv[0], "echo") == 0 && *start.argv[1] == 0 && !start.argv[2]);
    CHECK(strcmp(start.env[0], "A=b") == 0 && !start.env[1]);
    start_free(&start);
    buffer_free(&out);
}

static void io_comes_apart(void) {
    struct buffer out = {0};
    struct io_request io;
    put_io(&out, 5);
    struct frame frame = whole(&out);
    CHECK(decode_io(&frame, &io));
    CHECK(io.want == 9 && io.offset[0] == 1ull << 40 && io.offset[1] == 2 && io.stdin_offset == 3 && io.stdin_ends);
    CHECK(io.max == 4096 && io.wait_ms == UINT32_MAX && io.size == 5);
    buffer_free(&out);
}

static void more_than_the_largest_data_is_refused(void) {
    struct buffer out = {0};
    struct io_request io;
    put_io(&out, MAX_DATA);
    struct frame frame = whole(&out);
    CHECK(decode_io(&frame, &io));
    buffer_free(&out);
    put_io(&out, MAX_DATA + 1);
    frame = whole(&out);
    CHECK(!decode_io(&frame, &io));
    buffer_free(&out);
}

static void entry_comes_apart(void) {
    struct buffer out = {0};
    struct entry entry = {'l', 0777, 1, 2, 3, 4, "a\nb\xff", "../c"}, again;
    put_entry(&out, &entry);
    struct frame frame = whole(&out);
    CHECK(decode_entry(&frame, &again));
    CHECK(again.kind == 'l' && again.mode == 0777 && again.uid == 1 && again.gid == 2 && again.size == 3 && again.mtime_ns == 4);
    CHECK(strcmp(again.path, "a\nb\xff") == 0 && strcmp(again.target, "../c") == 0);
    buffer_free(&out);
}

/* A copy of exactly that size, so that the sanitizer sees a read behind it. */
static struct frame cut(const struct frame *frame, size_t size) {
    struct frame part = {.type = frame->type, .payload = must_alloc(size), .size = size};
    memcpy(part.payload, frame->payload, size);
    return part;
}

static bool decodes(const struct frame *frame) {
    struct start_request start;
    struct io_request io;
    struct entry entry;
    if (frame->type == FRAME_IO)
        return decode_io(frame, &io);
    if (frame->type == FRAME_ENTRY)
        return decode_entry(frame, &entry);
    if (frame->type == FRAME_SETUP) {
        struct setup_request setup;
        bool is_setup = decode_setup(frame, &setup);
        setup_free(&setup);
        return is_setup;
    }
    bool good = decode_start(frame, &start);
    start_free(&start);
    return good;
}

static void cut_anywhere_it_is_refused(void (*put)(struct buffer *)) {
    struct buffer out = {0};
    struct frame frame, none;
    put(&out);
    frame = whole(&out);
    for (size_t size = 0; size < frame.size; size++) {
        struct frame part = cut(&frame, size);
        CHECK(!decodes(&part));
        free(part.payload);
    }
    for (size_t size = 0; size < buffer_size(&out); size++)
        CHECK(frame_peek(buffer_at(&out), size, &none) == FRAME_MORE);
    buffer_add(&out, "x", 1);
    frame = (struct frame){.type = frame.type, .payload = buffer_at(&out) + FRAME_HEADER, .size = frame.size + 1};
    CHECK(!decodes(&frame));
    buffer_free(&out);
}

static void put_small_io(struct buffer *out) {
    put_io(out, 3);
}

static void put_setup(struct buffer *out) {
    size_t mark = frame_begin(out, FRAME_SETUP);
    put_text(out, "token");
    put_uint(out, 1000, 8);
    put_uint(out, 0, 8);
    put_text(out, "user");
    put_text(out, "/work");
    put_uint(out, 2, 4);
    put_uint(out, 1, 4);
    put_text(out, "true");
    put_uint(out, 1, 4);
    put_text(out, "A=b");
    frame_end(out, mark);
}

static void setup_comes_apart(void) {
    struct buffer out = {0};
    struct setup_request setup;
    put_setup(&out);
    struct frame frame = whole(&out);
    CHECK(decode_setup(&frame, &setup));
    CHECK(strcmp(setup.token, "token") == 0 && setup.timeout_ms == 1000 && setup.idle_ms == 0 && setup.main_flags == 2);
    CHECK(strcmp(setup.user, "user") == 0 && strcmp(setup.workdir, "/work") == 0);
    CHECK(strcmp(setup.argv[0], "true") == 0 && !setup.argv[1] && strcmp(setup.env[0], "A=b") == 0 && !setup.env[1]);
    setup_free(&setup);
    buffer_free(&out);
}

static void put_some_entry(struct buffer *out) {
    put_entry(out, &(struct entry){'f', 0644, 0, 0, 7, 8, "path", ""});
}

static void lengths_are_bounded(void) {
    struct frame frame;
    uint8_t empty[] = {0, 0, 0, 0, 0}, huge[] = {1, 0, 0x21, 0, 0}, most[] = {0, 0, 0x21, 0, 0};
    CHECK(frame_peek(empty, 5, &frame) == FRAME_BAD);
    CHECK(frame_peek(huge, 5, &frame) == FRAME_BAD);  /* 2 MiB + 64 KiB + 1 */
    CHECK(frame_peek(most, 5, &frame) == FRAME_MORE); /* 2 MiB + 64 KiB */
}

static void lying_counts_are_refused(void) {
    uint8_t list[] = {0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0, 'a'}, nul[] = {3, 0, 0, 0, 'a', 0, 'b'};
    struct cursor cursor = {.at = list, .end = list + sizeof list};
    free(take_list(&cursor));
    CHECK(cursor.bad);
    cursor = (struct cursor){.at = nul, .end = nul + sizeof nul};
    CHECK(*take_text(&cursor) == 0 && cursor.bad);
}

static void buffers_keep_what_is_in_them(void) {
    struct buffer buffer = {0};
    for (int round = 0; round < 1000; round++) {
        for (int i = 0; i < 37; i++)
            put_uint(&buffer, (uint64_t)(round * 37 + i), 4);
        if (round % 3 == 0)
            buffer_consume(&buffer, 8);
    }
    CHECK(buffer_size(&buffer) == 1000 * 37 * 4 - 334 * 8);
    CHECK(buffer_at(&buffer)[0] == (334 * 2 & 0xff));
    buffer_consume(&buffer, buffer_size(&buffer));
    CHECK(buffer_size(&buffer) == 0);
    buffer_free(&buffer);
}

int main(void) {
    start_comes_apart();
    io_comes_apart();
    more_than_the_largest_data_is_refused();
    entry_comes_apart();
    setup_comes_apart();
    cut_anywhere_it_is_refused(put_setup);
    cut_anywhere_it_is_refused(put_start);
    cut_anywhere_it_is_refused(put_small_io);
    cut_anywhere_it_is_refused(put_some_entry);
    lengths_are_bounded();
    lying_counts_are_refused();
    buffers_keep_what_is_in_them();
    return finish("frame");
}
