/* Taking frames apart and putting them together. Must stay free of I/O and of state: it is fuzzed as it is. */
#include "frame.h"
#include "util.h"

#include <stdlib.h>
#include <string.h>

static uint64_t get_uint(const uint8_t *bytes, size_t width) {
    uint64_t value = 0;
    while (width--)
        value = value << 8 | bytes[width];
    return value;
}

static void set_uint(uint8_t *bytes, uint64_t value, size_t width) {
    for (size_t i = 0; i < width; i++, value >>= 8)
        bytes[i] = (uint8_t)value;
}

/* ---- taking apart ---- */

enum frame_found frame_peek(uint8_t *bytes, size_t count, struct frame *frame) {
    if (count < 4)
        return FRAME_MORE;
    size_t length = get_uint(bytes, 4);
    if (length == 0 || length > MAX_FRAME)
        return FRAME_BAD;
    if (count < 4 + length)
        return FRAME_MORE;
    *frame = (struct frame){.type = bytes[4], .payload = bytes + FRAME_HEADER, .size = length - 1, .whole = 4 + length};
    return FRAME_WHOLE;
}

struct cursor cursor_of(const struct frame *frame) {
    return (struct cursor){.at = frame->payload, .end = frame->payload + frame->size};
}

uint8_t *take_bytes(struct cursor *cursor, size_t count) {
    if (cursor->bad || (size_t)(cursor->end - cursor->at) < count) {
        cursor->bad = true;
        return NULL;
    }
    uint8_t *bytes = cursor->at;
    cursor->at += count;
    return bytes;
}

uint64_t take_uint(struct cursor *cursor, size_t width) {
    const uint8_t *bytes = take_bytes(cursor, width);
    return bytes ? get_uint(bytes, width) : 0;
}

bool cursor_done(const struct cursor *cursor) {
    return !cursor->bad && cursor->at == cursor->end;
}

char *take_text(struct cursor *cursor) {
    static char none[1];
    size_t size = take_uint(cursor, 4);
    uint8_t *text = take_bytes(cursor, size);
    if (!text || memchr(text, 0, size)) {
        cursor->bad = true;
        return none;
    }
    memmove(text - 4, text, size);
    text[(ptrdiff_t)size - 4] = 0;
    return (char *)text - 4;
}

char **take_list(struct cursor *cursor) {
    size_t count = take_uint(cursor, 4);
    if (count > (size_t)(cursor->end - cursor->at) / 4) { /* each needs its length: a big count cannot make a big array */
        cursor->bad = true;
        count = 0;
    }
    char **list = must_alloc((count + 1) * sizeof *list);
    for (size_t i = 0; i < count; i++)
        list[i] = take_text(cursor);
    list[count] = NULL;
    return list;
}

static void take_id(struct cursor *cursor, uint8_t id[ID_SIZE]) {
    const uint8_t *bytes = take_bytes(cursor, ID_SIZE);
    if (bytes)
        memcpy(id, bytes, ID_SIZE);
    else
        memset(id, 0, ID_SIZE);
}

bool decode_start(const struct frame *frame, struct start_request *start) {
    start->memory = must_alloc(frame->size);
    memcpy(start->memory, frame->payload, frame->size);
    struct cursor cursor = {.at = start->memory, .end = start->memory + frame->size};
    take_id(&cursor, start->id);
    start->flags = (uint32_t)take_uint(&cursor, 4);
    start->timeout_ms = take_uint(&cursor, 8);
    start->user = take_text(&cursor);
    start->workdir = take_text(&cursor);
    start->rows = (uint16_t)take_uint(&cursor, 2);
    start->columns = (uint16_t)take_uint(&cursor, 2);
    start->argv = take_list(&cursor);
    start->env = take_list(&cursor);
    start->keep = start->flags & START_KEEP ? take_uint(&cursor, 8) : KEEP_UNSAID;
    start->tail = start->flags & START_LIMIT ? take_uint(&cursor, 8) : 0;
    return cursor_done(&cursor);
}

void start_free(struct start_request *start) {
    free(start->argv);
    free(start->env);
    free(start->memory);
}

bool decode_setup(const struct frame *frame, struct setup_request *setup) {
    setup->memory = must_alloc(frame->size);
    memcpy(setup->memory, frame->payload, frame->size);
    struct cursor cursor = {.at = setup->memory, .end = setup->memory + frame->size};
    setup->token = take_text(&cursor);
    setup->timeout_ms = take_uint(&cursor, 8);
    setup->idle_ms = take_uint(&cursor, 8);
    setup->user = take_text(&cursor);
    setup->workdir = take_text(&cursor);
    setup->main_flags = (uint32_t)take_uint(&cursor, 4);
    setup->argv = take_list(&cursor);
    setup->env = take_list(&cursor);
    setup->lease_ms = cursor.at < cursor.end ? take_uint(&cursor, 8) : 0; /* clients before it do not say it */
    return cursor_done(&cursor);
}

void setup_free(struct setup_request *setup) {
    free(setup->argv);
    free(setup->env);
    free(setup->memory);
}

bool decode_io(const struct frame *frame, struct io_request *io) {
    struct cursor cursor = cursor_of(frame);
    take_id(&cursor, io->id);
    io->want = (uint8_t)take_uint(&cursor, 1);
    io->offset[0] = take_uint(&cursor, 8);
    io->offset[1] = take_uint(&cursor, 8);
    io->stdin_offset = take_uint(&cursor, 8);
    io->stdin_ends = take_uint(&cursor, 1) != 0;
    io->max = (uint32_t)take_uint(&cursor, 4);
    io->wait_ms = (uint32_t)take_uint(&cursor, 4);
    io->size = take_uint(&cursor, 4);
    io->data = take_bytes(&cursor, io->size);
    return cursor_done(&cursor) && io->size <= MAX_DATA;
}

bool decode_file(const struct frame *frame, struct file_request *file) {
    struct cursor cursor = cursor_of(frame);
    file->operation = (uint8_t)take_uint(&cursor, 1);
    file->flags = (uint32_t)take_uint(&cursor, 4);
    file->mode = (uint32_t)take_uint(&cursor, 4);
    file->offset = take_uint(&cursor, 8);
    file->path = take_text(&cursor);
    file->second = take_text(&cursor);
    file->user = file->flags & FILE_AS_USER ? take_text(&cursor) : file->second + strlen(file->second);
    return cursor_done(&cursor);
}

bool decode_entry(const struct frame *frame, struct entry *entry) {
    struct cursor cursor = cursor_of(frame);
    entry->kind = (uint8_t)take_uint(&cursor, 1);
    entry->mode = (uint32_t)take_uint(&cursor, 4);
    entry->uid = (uint32_t)take_uint(&cursor, 4);
    entry->gid = (uint32_t)take_uint(&cursor, 4);
    entry->size = take_uint(&cursor, 8);
    entry->mtime_ns = take_uint(&cursor, 8);
    entry->path = take_text(&cursor);
    entry->target = take_text(&cursor);
    return cursor_done(&cursor);
}

/* ---- buffers ---- */

uint8_t *buffer_room(struct buffer *buffer, size_t count) {
    if (buffer->room - buffer->end >= count && buffer->bytes)
        return buffer->bytes + buffer->end;
    size_t size = buffer_size(buffer);
    if (size && buffer->start)
        memmove(buffer->bytes, buffer->bytes + buffer->start, size);
    buffer->start = 0;
    buffer->end = size;
    if (buffer->room - size < count || !buffer->bytes) {
        size_t doubled = buffer->room * 2;
        buffer->room = size + count > doubled ? size + count : doubled;
        buffer->bytes = must_grow(buffer->bytes, buffer->room);
    }
    return buffer->bytes + buffer->end;
}

void buffer_add(struct buffer *buffer, const void *bytes, size_t count) {
    memcpy(buffer_room(buffer, count), bytes, count);
    buffer->end += count;
}

void buffer_consume(struct buffer *buffer, size_t count) {
    enum { KEPT = 128 << 10 }; /* what a link reads into stays, or every request would map and unmap it; untouched it costs nothing */
    buffer->start += count;
    if (buffer->start < buffer->end)
        return;
    buffer->start = buffer->end = 0;
    if (buffer->room > KEPT)
        buffer_free(buffer);
}

void buffer_free(struct buffer *buffer) {
    free(buffer->bytes);
    *buffer = (struct buffer){0};
}

/* ---- putting together ---- */

size_t frame_begin(struct buffer *out, uint8_t type) {
    size_t mark = buffer_size(out); /* counted from the start: the bytes may move while they grow */
    uint8_t header[FRAME_HEADER] = {0, 0, 0, 0, type};
    buffer_add(out, header, sizeof header);
    return mark;
}

void put_uint(struct buffer *out, uint64_t value, size_t width) {
    uint8_t bytes[8];
    set_uint(bytes, value, width);
    buffer_add(out, bytes, width);
}

void put_text(struct buffer *out, const char *text) {
    size_t size = strlen(text);
    put_uint(out, size, 4);
    buffer_add(out, text, size);
}

void frame_end(struct buffer *out, size_t mark) {
    set_uint(buffer_at(out) + mark, buffer_size(out) - mark - 4, 4);
}

void put_plain(struct buffer *out, uint8_t type) {
    frame_end(out, frame_begin(out, type));
}

void put_error(struct buffer *out, uint32_t code, const char *sentence) {
    size_t mark = frame_begin(out, FRAME_ERROR);
    put_uint(out, code, 4);
    put_text(out, sentence);
    frame_end(out, mark);
}

void put_entry(struct buffer *out, const struct entry *entry) {
    size_t mark = frame_begin(out, FRAME_ENTRY);
    put_uint(out, entry->kind, 1);
    put_uint(out, entry->mode, 4);
    put_uint(out, entry->uid, 4);
    put_uint(out, entry->gid, 4);
    put_uint(out, entry->size, 8);
    put_uint(out, entry->mtime_ns, 8);
    put_text(out, entry->path);
    put_text(out, entry->target);
    frame_end(out, mark);
}

void put_event(struct buffer *out, uint8_t what, bool is_folder, const char *path, const char *target) {
    size_t mark = frame_begin(out, FRAME_EVENT);
    put_uint(out, what, 1);
    put_uint(out, is_folder, 1);
    put_text(out, path);
    put_text(out, target);
    frame_end(out, mark);
}

void write_header(uint8_t header[FRAME_HEADER], uint8_t type, size_t payload) {
    set_uint(header, payload + 1, 4);
    header[4] = type;
}
