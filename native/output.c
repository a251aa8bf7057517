/* The streams of a command: from its pipe or terminal into the ring, from the client into its stdin. Never blocks, never loses
 * a byte below the stream's limit while somebody reads, never keeps more than the rings. */
#include "output.h"
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

enum {
    READ_AT_ONCE = 256 << 10,
    PIPE_SIZE = 64 << 10,        /* what the kernel gives */
    BUSY_PIPE_SIZE = 256 << 10,  /* pages of pipes are limited per user: only for streams that need it */
    BUSY_READS = 8,
    TERMINAL_REST = 128 << 10,   /* more than a terminal's buffers hold */
    DETACH_AFTER_MS = 30000,
};

/* ---- output ---- */

static void stream_end(struct stream *stream) {
    stream->ended = true;
    stream->rest = 0;
    command_changed(stream->command);
}

static size_t lesser(uint64_t left, size_t most) {
    return left < most ? (size_t)left : most;
}

static bool beyond_limit(const struct stream *stream) {
    return stream->ring.end >= stream->limit;
}

/* The ring's bytes before `end` go to the disk. */
static void set_aside(struct stream *stream, uint64_t end) {
    struct ring *ring = &stream->ring;
    struct iovec pieces[2];
    spill_add(&stream->spill, ring->start, pieces, ring_bytes(ring, ring->start, (size_t)(end - ring->start), pieces));
    ring_drop(ring, end);
}

static bool is_taken(const struct stream *stream) {
    const struct command *command = stream->command;
    for (size_t i = 0; i < command->reader_count; i++)
        if (command->readers[i].taken & 1 << (stream - command->out))
            return true;
    return false;
}

/* A reader that peeks may ask again, from any offset. So what it was given stays as long as the disk has room, and the command does not wait
 * for it. If another reader takes, none of these bytes is dropped: then the command waits. */
static void set_peeked_aside(struct stream *stream) {
    struct ring *ring = &stream->ring;
    uint64_t end = ring->start + READ_AT_ONCE;
    if (end <= stream->peeked && (spill_has_room(&stream->spill, READ_AT_ONCE) || !is_taken(stream)))
        set_aside(stream, end);
}

/* The next read goes into a ring; 0 when it must wait. Without a reader, and beyond the limit, the oldest bytes make room. */
static int room_for_read(struct stream *stream, struct iovec pieces[2]) {
    struct ring *ring = &stream->ring;
    if (stream->attached && ring_size(ring) >= OUTPUT_KEPT && !beyond_limit(stream))
        set_peeked_aside(stream);
    size_t size = ring_size(ring), most = READ_AT_ONCE;
    if (stream->rest >= 0)
        most = lesser((uint64_t)stream->rest, most);
    if (beyond_limit(stream))
        return ring_space(&stream->tail, most, pieces);
    most = lesser(stream->limit - ring->end, most);
    if (stream->attached && size >= OUTPUT_KEPT)
        return 0;
    return ring_space(ring, stream->attached ? lesser(OUTPUT_KEPT - size, most) : most, pieces);
}

static void grow_busy_pipe(struct stream *stream, size_t count) {
    stream->busy = count >= PIPE_SIZE ? stream->busy + 1 : 0;
    if (stream->busy == BUSY_READS && !stream->pty)
        fcntl(stream->watch.fd, F_SETPIPE_SZ, BUSY_PIPE_SIZE);
}

static void head_added(struct stream *stream, size_t count) {
    struct ring *ring = &stream->ring;
    ring_added(ring, count);
    if (!stream->attached && ring_size(ring) > OUTPUT_KEPT)
        set_aside(stream, ring->end - OUTPUT_KEPT);
}

static void tail_added(struct stream *stream, size_t count) {
    struct ring *tail = &stream->tail;
    ring_added(tail, count);
    if (ring_size(tail) > stream->tail_most)
        ring_drop(tail, tail->end - stream->tail_most);
}

static void stream_added(struct stream *stream, size_t count) {
    if (beyond_limit(stream))
        tail_added(stream, count);
    else
        head_added(stream, count);
    if (stream->rest >= 0)
        stream->rest -= (int64_t)count;
    grow_busy_pipe(stream, count);
    command_changed(stream->command);
}

/* A stream that is over but still open somewhere: a background child must neither block nor get SIGPIPE. */
static void stream_drain(struct stream *stream) {
    static uint8_t void_bytes[64 << 10];
    ssize_t n = read(stream->watch.fd, void_bytes, sizeof void_bytes);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
        watch_end(&stream->watch);
}

static void stream_read(struct stream *stream) {
    struct iovec pieces[2];
    if (stream->ended) {
        stream_drain(stream);
        return;
    }
    int count = room_for_read(stream, pieces);
    if (count == 0) {
        watch_set(&stream->watch, 0); /* until read_on() */
        return;
    }
    ssize_t n = readv(stream->watch.fd, pieces, count);
    if (n > 0)
        stream_added(stream, (size_t)n);
    bool over = n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR); /* a terminal whose last user is gone says EIO */
    bool dry = n < 0 && stream->pty && stream->rest >= 0;              /* an exited command's terminal: rest is only a bound */
    if (over || dry || stream->rest == 0)
        stream_end(stream);
    if (over)
        watch_end(&stream->watch);
}

static void stream_ready(struct watch *watch, uint32_t events) {
    (void)events;
    stream_read(container_of(watch, struct stream, watch));
}

static void set_limit(struct stream *stream, const struct start_request *start) {
    stream->limit = start->flags & START_LIMIT ? start->keep : NEVER;
    stream->tail_most = lesser(start->tail, OUTPUT_KEPT);
    stream->tail.start = stream->tail.end = stream->limit;
    stream->tail.room = stream->tail_most + OUTPUT_SLACK;
}

void stream_open(struct command *command, struct stream *stream, int fd, const struct start_request *start) {
    stream->command = command;
    stream->spill = (struct spill){.fd = -1, .most = start->keep};
    set_limit(stream, start);
    stream->watch = (struct watch){.fd = fd, .ready = stream_ready};
    stream->ring.room = OUTPUT_KEPT + OUTPUT_SLACK;
    stream->rest = -1;
    stream->detach_at = NEVER;
    stream->pty = command->flags & START_PTY;
    stream->ended = fd < 0;
    if (fd >= 0)
        watch_set(&stream->watch, EPOLLIN);
}

void stream_finish(struct stream *stream) {
    int rest = 0;
    if (stream->ended || stream->rest >= 0)
        return;
    if (stream->pty)
        rest = TERMINAL_REST; /* FIONREAD does not see what still is between the terminal's two ends */
    else if (ioctl(stream->watch.fd, FIONREAD, &rest) < 0)
        rest = 0;
    stream->rest = rest;
    /* At once, so that the answer about the exit can carry it; what does not fit now comes when there is room. */
    while (!stream->ended && stream->rest > 0 && stream->watch.events)
        stream_read(stream);
    if (!stream->ended && stream->rest == 0)
        stream_end(stream);
}

static void stream_free(struct stream *stream) {
    ring_free(&stream->ring);
    ring_free(&stream->tail);
    spill_free(&stream->spill);
}

void stream_abandon(struct stream *stream) {
    stream->ended = true;
    stream_free(stream);
    if (stream->watch.fd >= 0)
        watch_set(&stream->watch, EPOLLIN);
}

void stream_close(struct stream *stream) {
    watch_end(&stream->watch);
    stream_free(stream);
}

bool stream_is_spilled(const struct stream *stream, uint64_t offset) {
    return offset >= stream->spill.start && offset < stream->spill.end;
}

uint64_t stream_next(const struct stream *stream, uint64_t offset) {
    const struct spill *spill = &stream->spill;
    if (spill->start < spill->end && offset < spill->start)
        return spill->start;
    if (stream_is_spilled(stream, offset))
        return offset;
    const struct ring *ring = stream_ring(stream, offset);
    return offset >= ring->start ? offset : ring->start;
}

/* The tail is given when it is complete: until then bytes that were sent might be followed by ones that are no longer there. */
const struct ring *stream_ring(const struct stream *stream, uint64_t offset) {
    return stream->ended && offset >= stream->limit ? &stream->tail : &stream->ring;
}

size_t stream_available(const struct stream *stream, uint64_t offset) {
    return (size_t)((stream_is_spilled(stream, offset) ? stream->spill.end : stream_ring(stream, offset)->end) - offset);
}

uint64_t stream_written(const struct stream *stream) {
    return beyond_limit(stream) ? stream->tail.end : stream->ring.end;
}

bool stream_at_end(const struct stream *stream, uint64_t offset) {
    return stream->ended && offset >= stream_written(stream);
}

static void read_on(struct stream *stream) {
    if (stream->watch.fd >= 0 && !stream->watch.events)
        watch_set(&stream->watch, EPOLLIN);
}

void stream_received(struct command *command, int which, uint64_t offset) {
    struct stream *stream = &command->out[which];
    spill_drop(&stream->spill, offset);
    ring_drop(&stream->ring, offset < stream->ring.end ? offset : stream->ring.end);
    ring_drop(&stream->tail, offset < stream->tail.end ? offset : stream->tail.end);
    read_on(stream);
}

void stream_peeked(struct command *command, int which, uint64_t offset) {
    struct stream *stream = &command->out[which];
    if (offset <= stream->peeked)
        return;
    stream->peeked = offset;
    read_on(stream);
}

/* ---- readers ---- */

static struct reader *reader_find(const struct command *command, const void *link) {
    for (size_t i = 0; i < command->reader_count; i++)
        if (command->readers[i].link == link)
            return &command->readers[i];
    return NULL;
}

static struct reader *reader_add(struct command *command, const void *link) {
    command->readers = must_grow(command->readers, (command->reader_count + 1) * sizeof *command->readers);
    struct reader *reader = &command->readers[command->reader_count++];
    *reader = (struct reader){.link = link};
    return reader;
}

void command_attach(struct command *command, const void *link, uint8_t streams, bool takes) {
    struct reader *reader = reader_find(command, link);
    if (!reader)
        reader = reader_add(command, link);
    reader->streams |= streams & 3;
    reader->taken |= takes ? streams & 3 : 0;
    for (int i = 0; i < 2; i++)
        if (streams & 1 << i) {
            command->out[i].attached = true;
            command->out[i].detach_at = NEVER;
        }
}

void command_told(struct command *command, const void *link) {
    struct reader *reader = reader_find(command, link);
    if (reader)
        reader->told = true;
}

bool command_readers_know(const struct command *command) {
    for (size_t i = 0; i < command->reader_count; i++)
        if (!command->readers[i].told)
            return false;
    return true;
}

static void detach_soon(struct command *command) {
    uint8_t left = 0;
    for (size_t i = 0; i < command->reader_count; i++)
        left |= command->readers[i].streams;
    for (int i = 0; i < 2; i++)
        if (command->out[i].attached && !(left & 1 << i))
            command->out[i].detach_at = agent.now + DETACH_AFTER_MS;
}

void commands_link_gone(const void *link) {
    for (struct command *command = commands; command; command = command->next) {
        struct reader *reader = reader_find(command, link);
        if (!reader)
            continue;
        *reader = command->readers[--command->reader_count];
        detach_soon(command);
    }
}

void stream_tick(struct stream *stream) {
    if (agent.now < stream->detach_at)
        return;
    stream->detach_at = NEVER;
    stream->attached = false;
    /* Whoever had the connection is gone, and its other side is not to wait for ever. */
    if (stream->command->flags & START_CONNECT)
        stream->command->condemned = true;
    read_on(stream);
}

/* ---- stdin ---- */

/* A terminal has no end of file: its line discipline makes one of the VEOF character at the start of a line. In the middle
 * of a line the first one only sends the line off. */
static void type_end(struct command *command) {
    struct termios terminal;
    char keys[2] = {4, 4};
    if (tcgetattr(command->input.fd, &terminal) == 0 && terminal.c_cc[VEOF])
        keys[0] = keys[1] = (char)terminal.c_cc[VEOF];
    size_t count = command->input_accepted == 0 || command->input_last == '\n' ? 1 : 2;
    if (write(command->input.fd, keys, count) < 0)
        return;
}

void input_close(struct command *command) {
    watch_end(&command->input);
    ring_free(&command->input_ring);
    command->input_closed = true;
    command_changed(command);
}

/* From the ring into the pipe. SIGPIPE is blocked in this process. */
static void input_push(struct command *command) {
    struct ring *ring = &command->input_ring;
    struct iovec pieces[2];
    while (ring_size(ring)) {
        int count = ring_bytes(ring, ring->start, ring_size(ring), pieces);
        ssize_t n = writev(command->input.fd, pieces, count);
        if (n < 0 && errno == EAGAIN)
            break;
        if (n < 0 && errno != EINTR) {
            input_close(command);
            return;
        }
        ring_drop(ring, ring->start + (n > 0 ? (uint64_t)n : 0));
        command_changed(command);
    }
    if (ring_size(ring) == 0 && command->input_ends) {
        if (command->flags & START_PTY)
            type_end(command);
        input_close(command);
        return;
    }
    watch_set(&command->input, ring_size(ring) ? EPOLLOUT : EPOLLERR);
}

static void input_ready(struct watch *watch, uint32_t events) {
    struct command *command = container_of(watch, struct command, input);
    if (events & (EPOLLERR | EPOLLHUP)) /* nobody can read it any more */
        input_close(command);
    else
        input_push(command);
}

void input_open(struct command *command, int fd) {
    command->input.fd = fd;
    command->input.ready = input_ready;
    command->input_ring.room = STDIN_KEPT;
    command->input_closed = fd < 0;
    if (fd >= 0)
        watch_set(&command->input, EPOLLERR);
}

bool command_feed(struct command *command, uint64_t offset, const uint8_t *data, size_t size, bool ends) {
    struct iovec pieces[2];
    if (offset > command->input_accepted)
        return false;
    uint64_t skip = command->input_accepted - offset;
    if (command->input_closed || command->input_ends || skip > size)
        return true;
    data += skip;
    size -= (size_t)skip;
    int count = size ? ring_space(&command->input_ring, size, pieces) : 0;
    for (int i = 0; i < count; i++) {
        __builtin_memcpy(pieces[i].iov_base, data, pieces[i].iov_len);
        data += pieces[i].iov_len;
        size -= pieces[i].iov_len;
        command->input_accepted += pieces[i].iov_len;
        ring_added(&command->input_ring, pieces[i].iov_len);
        command->input_last = data[-1];
    }
    command->input_ends = ends && size == 0;
    if (count || command->input_ends)
        input_push(command);
    return true;
}
