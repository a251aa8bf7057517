/* Requests: what each means, when it can be answered, and its answer. A request that has to wait is looked at again from its
 * frame, which stays at the front of its link's input; so it has no state besides `begun`, `timed` and what it awaits. */
#include "request.h"
#include "files.h"
#include "list.h"
#include "output.h"
#include "relay.h"
#include "rest.h"
#include "tree.h"
#include "util.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { KILL_MS = 10000 };

static enum outcome answer_ok(struct link *link) {
    put_plain(&link->out, FRAME_OK);
    return DONE;
}

static enum outcome answer_error(struct link *link, uint32_t code, const char *sentence) {
    put_error(&link->out, code, sentence);
    return DONE;
}

static enum outcome refuse(struct link *link, uint32_t code, const char *sentence) {
    answer_error(link, code, sentence);
    return LEAVE;
}

enum outcome request_malformed(struct link *link) {
    return refuse(link, ERROR_PROTOCOL, "this is no frame of protocol 1");
}

static enum outcome unknown(struct link *link) {
    return answer_error(link, ERROR_UNKNOWN, "no such command: it was released, or never started");
}

static enum outcome wait_for(struct link *link, struct command *command) {
    link->awaited = command;
    link->seen = command ? command->version : 0;
    return WAIT;
}

/* ---- START ---- */

static enum outcome answer_started(struct link *link, struct command *command) {
    if (command->state == COMMAND_STARTING)
        return wait_for(link, command);
    if (command->state == COMMAND_FAILED) {
        answer_error(link, command->error_code, command->error);
        command_forget(command);
        return DONE;
    }
    size_t mark = frame_begin(&link->out, FRAME_STARTED);
    put_uint(&link->out, (uint32_t)command->leader, 4);
    put_uint(&link->out, !link->fresh, 1);
    frame_end(&link->out, mark);
    return DONE;
}

static struct command *start(struct link *link, const struct start_request *request) {
    uint32_t code;
    const char *sentence;
    struct command *command = command_start(request, &code, &sentence);
    if (command)
        link->fresh = true;
    else
        answer_error(link, code, sentence);
    return command;
}

static enum outcome do_start(struct link *link, const struct frame *frame) {
    struct start_request request;
    struct command *command = frame->size >= ID_SIZE ? command_find(frame->payload) : NULL;
    if (link->begun)
        return command ? answer_started(link, command) : unknown(link);
    if (!decode_start(frame, &request)) {
        start_free(&request);
        return request_malformed(link);
    }
    if (!command)
        command = start(link, &request);
    if (command && request.flags & START_ATTACHED)
        command_attach(command, link, 3, false);
    start_free(&request);
    return command ? answer_started(link, command) : DONE;
}

/* ---- IO ---- */

struct progress_now {
    size_t available[2], taken[2];
    uint8_t *spilled[2]; /* what is taken, if it comes from the disk */
    bool skipped[2];     /* something is not kept: the offset of DATA tells, also that of empty DATA at the end */
    bool at_end[2], exited, stdin_moved;
};

/* Both streams get their share when both have more than fits. */
static void share(struct progress_now *now, size_t max) {
    size_t out = now->available[0], err = now->available[1];
    size_t kept = err < max / 2 ? err : max / 2;
    now->taken[0] = out < max - kept ? out : max - kept;
    now->taken[1] = err < max - now->taken[0] ? err : max - now->taken[0];
}

static void look_at_streams(struct command *command, struct io_request *io, struct progress_now *now) {
    for (int i = 0; i < 2; i++) {
        struct stream *stream = &command->out[i];
        if (!(io->want & 1 << i))
            continue;
        uint64_t next = stream_next(stream, io->offset[i]);
        now->skipped[i] |= next > io->offset[i];
        io->offset[i] = next;
        now->available[i] = stream_available(stream, io->offset[i]);
    }
    share(now, io->max < MAX_DATA ? io->max : MAX_DATA);
    for (int i = 0; i < 2; i++)
        now->at_end[i] = io->want & 1 << i && stream_at_end(&command->out[i], io->offset[i] + now->taken[i]);
    bool out_done = !(io->want & WANT_STDOUT) || now->at_end[0], err_done = !(io->want & WANT_STDERR) || now->at_end[1];
    now->exited = io->want & WANT_EXIT && command->state == COMMAND_EXITED && out_done && err_done;
}

static void free_spilled(struct progress_now *now) {
    for (int i = 0; i < 2; i++) {
        free(now->spilled[i]);
        now->spilled[i] = NULL;
    }
}

/* False when the disk did not give something back: it is lost then, as what was never kept, and the offsets tell. */
static bool fetch_spilled(struct command *command, const struct io_request *io, struct progress_now *now) {
    for (int i = 0; i < 2; i++) {
        struct stream *stream = &command->out[i];
        if (!now->taken[i] || now->spilled[i] || !stream_is_spilled(stream, io->offset[i]))
            continue;
        now->spilled[i] = must_alloc(now->taken[i]);
        if (spill_read(&stream->spill, io->offset[i], now->spilled[i], now->taken[i]))
            continue;
        spill_free(&stream->spill);
        free_spilled(now);
        return false;
    }
    return true;
}

static bool is_answerable(const struct io_request *io, const struct progress_now *now) {
    if (now->taken[0] || now->taken[1] || now->exited || now->stdin_moved)
        return true;
    return !(io->want & WANT_EXIT) && (now->at_end[0] || now->at_end[1]);
}

/* Of a command that has exited. */
static bool wrote_nothing(const struct command *command) {
    return stream_at_end(&command->out[0], 0) && stream_at_end(&command->out[1], 0);
}

static void put_progress(struct buffer *out, const struct command *command, const struct progress_now *now) {
    size_t mark = frame_begin(out, FRAME_PROGRESS);
    put_uint(out, (now->at_end[0] ? AT_STDOUT_END : 0) | (now->at_end[1] ? AT_STDERR_END : 0) | (now->exited ? HAS_EXIT : 0) |
                      (command->input_closed ? STDIN_CLOSED : 0) | (now->exited && wrote_nothing(command) ? NO_OUTPUT : 0), 1);
    put_uint(out, command->input_accepted, 8);
    if (now->exited)
        put_record(out, &command->record);
    frame_end(out, mark);
}

static void put_data_header(struct buffer *heads, uint8_t stream, uint64_t offset, size_t size) {
    uint8_t header[FRAME_HEADER];
    write_header(header, FRAME_DATA, 9 + size);
    buffer_add(heads, header, sizeof header);
    put_uint(heads, stream, 1);
    put_uint(heads, offset, 8);
}

/* Does this answer tell its reader that nothing more will come? */
static bool is_told(const struct command *command, const struct io_request *io, const struct progress_now *now) {
    bool out = now->at_end[0] || !(io->want & WANT_STDOUT), err = now->at_end[1] || !(io->want & WANT_STDERR);
    return now->exited || (command->state == COMMAND_EXITED && !(io->want & WANT_EXIT) && out && err);
}

static void answer_io(struct link *link, struct command *command, const struct io_request *io, const struct progress_now *now) {
    struct buffer heads = {0};
    struct iovec part[7];
    int count = 0;
    size_t size = 0;
    buffer_room(&heads, 256); /* all of it at once: the parts point into it */
    for (int i = 0; i < 2; i++) {
        if (!now->taken[i] && !(now->skipped[i] && now->at_end[i]))
            continue;
        size_t mark = heads.end;
        put_data_header(&heads, (uint8_t)(i + 1), io->offset[i], now->taken[i]);
        part[count++] = (struct iovec){heads.bytes + mark, heads.end - mark};
        if (now->spilled[i])
            part[count++] = (struct iovec){now->spilled[i], now->taken[i]};
        else
            count += ring_bytes(stream_ring(&command->out[i], io->offset[i]), io->offset[i], now->taken[i], part + count);
        size += now->taken[i];
    }
    size_t mark = heads.end;
    put_progress(&heads, command, now);
    part[count++] = (struct iovec){heads.bytes + mark, heads.end - mark};
    link_send(link, part, count, size);
    buffer_free(&heads);
    if (is_told(command, io, now))
        command_told(command, link);
}

static enum outcome behind_the_end(struct link *link, const struct command *command, const struct io_request *io) {
    char text[160];
    int which = io->want & WANT_STDOUT && io->offset[0] > stream_written(&command->out[0]) ? 0 : 1;
    snprintf(text, sizeof text, "%s has %llu bytes so far, and the offset %llu lies behind them; begin at a byte that is there",
             which == 0 ? "stdout" : "stderr", (unsigned long long)stream_written(&command->out[which]),
             (unsigned long long)io->offset[which]);
    return answer_error(link, ERROR_INVALID, text);
}

static bool begin_io(struct link *link, struct command *command, const struct io_request *io) {
    uint8_t streams = io->want & (WANT_STDOUT | WANT_STDERR);
    for (int i = 0; i < 2; i++)
        if (streams & 1 << i && io->offset[i] > stream_written(&command->out[i]))
            return false;
    if (streams)
        command_attach(command, link, streams, !(io->want & WANT_PEEK));
    for (int i = 0; i < 2; i++)
        if (streams & 1 << i)
            (io->want & WANT_PEEK ? stream_peeked : stream_received)(command, i, io->offset[i]);
    link->timed = true;
    link->deadline = io->wait_ms == UINT32_MAX ? NEVER : agent.now + io->wait_ms;
    return true;
}

static bool stdin_moved(const struct command *command, const struct io_request *io) {
    if (command->input_closed || (io->size && command->input_accepted > io->stdin_offset))
        return true;
    return io->stdin_ends && command->input_ends;
}

static enum outcome do_io(struct link *link, const struct frame *frame) {
    struct io_request io;
    struct progress_now now = {0};
    if (!decode_io(frame, &io))
        return request_malformed(link);
    struct command *command = command_find(io.id);
    if (!command)
        return unknown(link);
    if (command->state == COMMAND_STARTING)
        return wait_for(link, command);
    if (!link->timed && !begin_io(link, command, &io))
        return behind_the_end(link, command, &io);
    if (io.want & WANT_STDIN) {
        if (!command_feed(command, io.stdin_offset, io.data, io.size, io.stdin_ends))
            return answer_error(link, ERROR_INVALID, "the stdin offset lies behind what was accepted");
        now.stdin_moved = stdin_moved(command, &io);
    }
    do
        look_at_streams(command, &io, &now);
    while (!fetch_spilled(command, &io, &now));
    if (!is_answerable(&io, &now) && agent.now < link->deadline)
        return wait_for(link, command);
    answer_io(link, command, &io, &now);
    free_spilled(&now);
    return DONE;
}

/* ---- KILL, RESIZE, RELEASE, COMMANDS, SHUTDOWN, AUTH ---- */

static enum outcome kill_tree(struct link *link, struct command *command, int number) {
    if (!command->monitor)
        return answer_ok(link);
    if (number != SIGKILL) {
        tree_signal(command, number);
        return answer_ok(link);
    }
    if (!link->timed)
        link->deadline = agent.now + KILL_MS;
    link->timed = true;
    if (agent.now >= link->deadline)
        return answer_error(link, ERROR_LIMIT, "some processes of the command did not die within 10 seconds");
    command->condemned = true;
    return wait_for(link, command);
}

static enum outcome do_kill(struct link *link, const struct frame *frame) {
    struct cursor cursor = cursor_of(frame);
    const uint8_t *id = take_bytes(&cursor, ID_SIZE);
    int number = (int)take_uint(&cursor, 1);
    bool tree = take_uint(&cursor, 1);
    if (!cursor_done(&cursor))
        return request_malformed(link);
    struct command *command = command_find(id);
    if (!command) /* a tree whose command was released while it died is dead all the same */
        return link->begun ? answer_ok(link) : unknown(link);
    if (number > 64)
        return answer_error(link, ERROR_INVALID, "signals are numbers from 0 to 64");
    if (tree && number)
        return kill_tree(link, command, number); /* also one whose start hangs */
    if (command->state == COMMAND_STARTING)
        return wait_for(link, command);
    int why = command_signal(command, number);
    if (why == ESRCH)
        return answer_error(link, ERROR_UNKNOWN, "the command has finished");
    return why ? answer_error(link, ERROR_ERRNO + (uint32_t)why, strerror(why)) : answer_ok(link);
}

static enum outcome do_resize(struct link *link, const struct frame *frame) {
    struct cursor cursor = cursor_of(frame);
    const uint8_t *id = take_bytes(&cursor, ID_SIZE);
    uint16_t rows = (uint16_t)take_uint(&cursor, 2), columns = (uint16_t)take_uint(&cursor, 2);
    if (!cursor_done(&cursor))
        return request_malformed(link);
    struct command *command = command_find(id);
    if (!command)
        return unknown(link);
    int why = command_resize(command, rows, columns);
    return why ? answer_error(link, ERROR_INVALID, "the command has no terminal") : answer_ok(link);
}

static enum outcome do_release(struct link *link, const struct frame *frame) {
    if (frame->size != ID_SIZE)
        return request_malformed(link);
    struct command *command = command_find(frame->payload);
    if (command)
        command_release(command);
    return DONE;
}

static enum outcome do_commands(struct link *link) {
    put_commands(&link->out);
    return answer_ok(link);
}

static enum outcome do_shutdown(struct link *link) {
    answer_ok(link);
    link_flush(link);
    agent_end("terminated", 137, 0);
    return DONE;
}

/* The lifetime that this agent keeps. One whose supervisor keeps it has none. */
static enum outcome do_deadline(struct link *link, const struct frame *frame) {
    struct cursor cursor = cursor_of(frame);
    uint64_t ms = take_uint(&cursor, 8);
    if (!cursor_done(&cursor) || ms == 0 || ms > UINT64_MAX / 4)
        return request_malformed(link);
    if (!agent.timeout_ms)
        return answer_error(link, ERROR_UNSUPPORTED, "this agent keeps no lifetime");
    agent.timeout_ms = agent.now - agent.born + ms;
    return answer_ok(link);
}

/* The time it takes must not tell how much of the token was right. An empty one is none. */
static bool same_token(const char *given) {
    const char *token = agent.config->token ? agent.config->token : "";
    size_t size = strlen(token), other = strlen(given);
    unsigned difference = size != other || size == 0;
    for (size_t i = 0; i < other; i++)
        difference |= (unsigned char)(given[i] ^ token[size ? i % size : 0]);
    return !difference;
}

/* An agent without a token serves whoever reaches its socket; over the network it serves nobody. */
static bool lets_in(const struct link *link, const char *given) {
    return same_token(given) || (!agent.config->token && !link->remote);
}

/* Said again (its answer was lost) it changes nothing. It holds secrets, and networks are not private. */
static enum outcome do_setup(struct link *link, const struct frame *frame) {
    struct setup_request setup;
    if (link->remote)
        return refuse(link, ERROR_DENIED, "an agent is not set up over the network");
    bool good = decode_setup(frame, &setup);
    if (good && agent.config->setup_ms) {
        agent_set_up(&setup);
        link->trusted = true;
        return answer_ok(link);
    }
    bool again = good && same_token(setup.token);
    setup_free(&setup);
    if (!good)
        return refuse(link, ERROR_PROTOCOL, "this is no SETUP of protocol 1");
    if (!again)
        return refuse(link, ERROR_DENIED, "this agent is set up already");
    link->trusted = true;
    return answer_ok(link);
}

static enum outcome do_auth(struct link *link, const struct frame *frame) {
    struct cursor cursor = cursor_of(frame);
    const char *token = frame->type == FRAME_AUTH ? take_text(&cursor) : "";
    if (frame->type != FRAME_AUTH)
        return refuse(link, ERROR_DENIED, "this agent wants a token first");
    if (!cursor_done(&cursor))
        return request_malformed(link);
    if (agent.config->setup_ms)
        return refuse(link, ERROR_LATER, "this agent is not set up yet");
    if (!lets_in(link, token))
        return refuse(link, ERROR_DENIED, "wrong token");
    link->trusted = true;
    return answer_ok(link);
}

/* ---- FILE ---- */

/* Up to and with END belongs to the worker. It reads the link frame by frame, never further. */
static size_t workers_share(uint8_t *bytes, size_t size) {
    struct frame frame;
    for (size_t at = 0; frame_peek(bytes + at, size - at, &frame) == FRAME_WHOLE;) {
        at += frame.whole;
        if (frame.type == FRAME_END)
            return at;
    }
    return size;
}

static enum outcome do_file(struct link *link, const struct frame *frame) {
    uint8_t *rest = frame->payload + frame->size;
    size_t size = buffer_size(&link->in) - frame->whole;
    link_flush(link);
    if (buffer_size(&link->out)) /* the worker writes to the link itself */
        return wait_for(link, NULL);
    size_t early = files_receives(frame) ? workers_share(rest, size) : 0;
    pid_t pid = fork();
    if (pid == 0)
        files_serve(link->watch.fd, frame, rest, early);
    if (pid < 0 && files_receives(frame))
        return refuse(link, ERROR_LIMIT, "no file worker can be started: the sandbox's limit of processes or memory");
    if (pid < 0)
        return answer_error(link, ERROR_LIMIT, "no file worker can be started: the sandbox's limit of processes or memory");
    link->worker = pid;
    watch_set(&link->watch, 0);
    /* What the worker was given lies between this frame and the rest: move the rest up to the frame. */
    memmove(rest, rest + early, size - early);
    link->in.end -= early;
    return DONE;
}

/* ---- DIAL ---- */

/* Nothing may be sent behind it before its answer: that would have to be handed over to the worker. */
static enum outcome do_dial(struct link *link, const struct frame *frame) {
    struct cursor cursor = cursor_of(frame);
    uint16_t port = (uint16_t)take_uint(&cursor, 2);
    uint32_t wait_ms = (uint32_t)take_uint(&cursor, 4);
    if (!cursor_done(&cursor) || port == 0 || buffer_size(&link->in) > frame->whole)
        return request_malformed(link);
    link_flush(link);
    if (buffer_size(&link->out)) /* the worker writes to the link itself */
        return wait_for(link, NULL);
    pid_t pid = links_dialed() < MAX_DIALED ? fork() : -1;
    if (pid == 0)
        relay_serve(link->watch.fd, port, wait_ms);
    if (pid < 0)
        return answer_error(link, ERROR_LIMIT, "no connection can be made: 256 are open, or the sandbox's limit of processes or memory is reached");
    link->worker = pid;
    link->dialed = true;
    watch_set(&link->watch, 0);
    return DONE;
}

static enum outcome do_look(struct link *link) {
    link->looks = true;
    return answer_ok(link);
}

/* ---- REST ---- */

/* 0: the sandbox runs again; answer when it is idle. 1: is it still idle? */
static enum outcome do_rest(struct link *link, const struct frame *frame) {
    struct cursor cursor = cursor_of(frame);
    bool sure = take_uint(&cursor, 1) != 0;
    if (!cursor_done(&cursor))
        return request_malformed(link);
    link->looks = true;
    if (!link->begun)
        rest_hear(sure ? 's' : 'w');
    if (sure ? rest_is_agreed() : rest_is_wished())
        return answer_ok(link);
    return !sure || rest_is_asked() ? wait_for(link, NULL) : answer_error(link, ERROR_LATER, "it is used");
}

/* ---- all of them ---- */

enum outcome request_handle(struct link *link, const struct frame *frame) {
    if (frame->type == FRAME_SETUP)
        return do_setup(link, frame);
    if (!link->trusted || frame->type == FRAME_AUTH)
        return do_auth(link, frame);
    switch (frame->type) {
    case FRAME_START: return do_start(link, frame);
    case FRAME_IO: return do_io(link, frame);
    case FRAME_KILL: return do_kill(link, frame);
    case FRAME_RESIZE: return do_resize(link, frame);
    case FRAME_RELEASE: return do_release(link, frame);
    case FRAME_FILE: return do_file(link, frame);
    case FRAME_COMMANDS: return frame->size ? request_malformed(link) : do_commands(link);
    case FRAME_DIAL: return do_dial(link, frame);
    case FRAME_LOOK: return frame->size ? request_malformed(link) : do_look(link);
    case FRAME_REST: return do_rest(link, frame);
    case FRAME_PING: return frame->size ? request_malformed(link) : answer_ok(link);
    case FRAME_DEADLINE: return do_deadline(link, frame);
    case FRAME_SHUTDOWN: return frame->size ? request_malformed(link) : do_shutdown(link);
    default: return request_malformed(link);
    }
}
