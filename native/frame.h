/* The language between client and agent, section 1 of docs/protocol.md: taking frames apart and putting them together.
 * Pure: no I/O, no state, nothing but the bytes given. Whatever arrives is data from a stranger. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { KEEP_UNSAID = 64 << 20, ID_SIZE = 16, FRAME_HEADER = 5, MAX_DATA = 1 << 20, MAX_FRAME = (2 << 20) + (64 << 10) };

enum frame_type {
    FRAME_HELLO = 0x01, FRAME_AUTH = 0x02,
    FRAME_START = 0x10, FRAME_IO = 0x11, FRAME_KILL = 0x12, FRAME_RESIZE = 0x13, FRAME_RELEASE = 0x14, FRAME_PING = 0x15,
    FRAME_SHUTDOWN = 0x16, FRAME_SETUP = 0x17, FRAME_DEADLINE = 0x18, FRAME_COMMANDS = 0x19,
    FRAME_DIAL = 0x1a, FRAME_LOOK = 0x1b, FRAME_REST = 0x1c,
    FRAME_STARTED = 0x20, FRAME_DATA = 0x21, FRAME_PROGRESS = 0x22, FRAME_OK = 0x23, FRAME_COMMAND = 0x24, FRAME_ERROR = 0x2f,
    FRAME_FILE = 0x30, FRAME_ENTRY = 0x40, FRAME_CHUNK = 0x41, FRAME_END = 0x42, FRAME_HOLE = 0x43,
    FRAME_EVENT = 0x44,
};

enum error_code {
    ERROR_PROTOCOL = 1, ERROR_UNKNOWN = 2, ERROR_INVALID = 3, ERROR_LIMIT = 4, ERROR_UNSUPPORTED = 5, ERROR_DENIED = 6,
    ERROR_LATER = 7,
    ERROR_ERRNO = 0x100,
};

enum start_flag {
    START_PTY = 1, START_STDIN = 2, START_STDOUT_NULL = 4, START_STDERR_NULL = 8, START_STDERR_TO_STDOUT = 16,
    START_ATTACHED = 32, START_KEEP = 64, START_LIMIT = 128, START_CONNECT = 256, START_ALL_FLAGS = 511,
};

enum want { WANT_STDOUT = 1, WANT_STDERR = 2, WANT_EXIT = 4, WANT_STDIN = 8, WANT_PEEK = 16 };
enum progress { AT_STDOUT_END = 1, AT_STDERR_END = 2, HAS_EXIT = 4, STDIN_CLOSED = 8, NO_OUTPUT = 16 };

enum file_operation {
    FILE_STAT = 1, FILE_LIST, FILE_MKDIR, FILE_REMOVE, FILE_READ, FILE_WRITE, FILE_PULL, FILE_PUSH, FILE_RENAME,
    FILE_CHMOD, FILE_CHOWN, FILE_HOLES, FILE_WATCH
};

enum file_event { EVENT_CREATED = 1, EVENT_MODIFIED, EVENT_DELETED, EVENT_MOVED, EVENT_OVERFLOW };

enum file_flag { FILE_AS_USER = 0x100 };

/* One frame inside somebody's buffer. */
struct frame {
    uint8_t type;
    uint8_t *payload;
    size_t size;  /* of the payload */
    size_t whole; /* of the frame with its header: what to consume */
};

enum frame_found { FRAME_MORE, FRAME_WHOLE, FRAME_BAD };
enum frame_found frame_peek(uint8_t *bytes, size_t count, struct frame *frame);

/* Takes fields from a payload, first to last. After a field that does not fit everything taken is 0 and `bad` stays set,
 * so that a decoder asks once, at its end, with cursor_done(). */
struct cursor {
    uint8_t *at, *end;
    bool bad;
};
struct cursor cursor_of(const struct frame *frame);
uint64_t take_uint(struct cursor *cursor, size_t width);
uint8_t *take_bytes(struct cursor *cursor, size_t count);
bool cursor_done(const struct cursor *cursor);

/* A `str` made a C string IN PLACE: it is moved onto its own length, which leaves room for the NUL. A NUL inside is bad. */
char *take_text(struct cursor *cursor);
/* A `list` of such, NULL-terminated; the array is malloc()ed, also when it is bad. */
char **take_list(struct cursor *cursor);

/* Each decoder is true when the payload is exactly that and nothing else. Those with char pointers change the payload. */
struct start_request {
    uint8_t id[ID_SIZE];
    uint32_t flags;
    uint64_t timeout_ms, keep; /* `keep`: bytes of unread output that may go to the disk, per stream */
    uint64_t tail;             /* START_LIMIT: only the first `keep` and the newest `tail` bytes of each stream are given */
    const char *user, *workdir;
    uint16_t rows, columns;
    char **argv, **env;
    uint8_t *memory; /* what the strings live in */
};
bool decode_start(const struct frame *frame, struct start_request *start); /* copies; always start_free() it */
void start_free(struct start_request *start);

struct setup_request {
    const char *token, *user, *workdir;
    uint64_t timeout_ms, idle_ms, lease_ms;
    uint32_t main_flags;
    char **argv, **env;
    uint8_t *memory; /* what the strings live in */
};
bool decode_setup(const struct frame *frame, struct setup_request *setup); /* copies; setup_free() it unless it is kept */
void setup_free(struct setup_request *setup);

struct io_request {
    uint8_t id[ID_SIZE];
    uint8_t want;
    uint64_t offset[2], stdin_offset;
    bool stdin_ends;
    uint32_t max, wait_ms;
    const uint8_t *data;
    size_t size;
};
bool decode_io(const struct frame *frame, struct io_request *io);

struct file_request {
    uint8_t operation;
    uint32_t flags, mode;
    uint64_t offset;
    const char *path, *second, *user; /* `user` "": the sandbox's default one */
};
bool decode_file(const struct frame *frame, struct file_request *file);

struct entry {
    uint8_t kind;
    uint32_t mode, uid, gid;
    uint64_t size, mtime_ns;
    const char *path, *target;
};
bool decode_entry(const struct frame *frame, struct entry *entry);

/* Bytes that wait: appended at the end, consumed at the start. Zeroed memory is an empty one. */
struct buffer {
    uint8_t *bytes;
    size_t start, end, room;
};
static inline size_t buffer_size(const struct buffer *buffer) { return buffer->end - buffer->start; }
static inline uint8_t *buffer_at(const struct buffer *buffer) { return buffer->bytes + buffer->start; }
uint8_t *buffer_room(struct buffer *buffer, size_t count); /* where `count` more bytes may be put; then add to `end` */
void buffer_add(struct buffer *buffer, const void *bytes, size_t count);
void buffer_consume(struct buffer *buffer, size_t count);  /* an empty one gives its memory back */
void buffer_free(struct buffer *buffer);

/* Putting a frame together: begin, put its fields, end (which fills in the length). */
size_t frame_begin(struct buffer *out, uint8_t type);
void put_uint(struct buffer *out, uint64_t value, size_t width);
void put_text(struct buffer *out, const char *text);
void frame_end(struct buffer *out, size_t mark);
void put_plain(struct buffer *out, uint8_t type); /* a whole frame without payload */
void put_error(struct buffer *out, uint32_t code, const char *sentence);
void put_entry(struct buffer *out, const struct entry *entry);
void put_event(struct buffer *out, uint8_t what, bool is_folder, const char *path, const char *target);
/* The header of a frame whose payload the caller sends himself. */
void write_header(uint8_t header[FRAME_HEADER], uint8_t type, size_t payload);
