/* Links: bytes from clients and to clients, one request at a time. A client that is slow, silent or hostile costs a bounded
 * amount of memory and nobody else's time: nothing here blocks, no request is begun while too much waits to be sent, and not
 * more is read than the request in hand and a little. */
#include "link.h"
#include "output.h"
#include "request.h"
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    MAX_LINKS = 1024,
    READ_AHEAD = 64 << 10,      /* beyond the frame in hand */
    OUT_HIGH = 64 << 10,        /* nothing more is answered while so much waits to be sent */
    COPY_BELOW = 16 << 10,      /* small answers are gathered and sent together */
    SEND_BUFFER = 1 << 20,
    STRANGER_FRAME = 4 << 10,   /* before AUTH */
    STRANGER_MS = 10000,
    MAX_REMOTE_STRANGERS = 64,  /* from the network: of all that is shared they have little, and not for long */
    REMOTE_STRANGER_MS = 3000,
    DEAF_MS = 100,
    FAREWELL_MS = 5000,         /* for the last ERROR to be taken */
};

static struct link *links;
static size_t link_count;

/* ---- the list ---- */

static void link_free(struct link *link) {
    commands_link_gone(link);
    watch_end(&link->watch);
    buffer_free(&link->in);
    buffer_free(&link->out);
    *link->back = link->next;
    if (link->next)
        link->next->back = link->back;
    link_count--;
    free(link);
}

static void link_ready(struct watch *watch, uint32_t events);

/* Small answers are not held back, and a client whose machine is gone is found out. The kernel sizes the buffers. */
static void tune_remote(int fd) {
    static const int options[][3] = {{IPPROTO_TCP, TCP_NODELAY, 1}, {SOL_SOCKET, SO_KEEPALIVE, 1}, {IPPROTO_TCP, TCP_KEEPIDLE, 30},
                                     {IPPROTO_TCP, TCP_KEEPINTVL, 10}, {IPPROTO_TCP, TCP_KEEPCNT, 3},
                                     {IPPROTO_TCP, TCP_USER_TIMEOUT, 60000}};
    for (size_t i = 0; i < sizeof options / sizeof *options; i++)
        setsockopt(fd, options[i][0], options[i][1], &options[i][2], sizeof options[i][2]);
}

static void link_new(int fd, bool remote) {
    struct link *link = must_alloc(sizeof *link);
    int size = SEND_BUFFER;
    *link = (struct link){.watch = {.fd = fd, .ready = link_ready}, .next = links, .back = &links, .deadline = NEVER, .remote = remote};
    if (links)
        links->back = &link->next;
    links = link;
    link_count++;
    if (remote)
        tune_remote(fd);
    else
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    link->trusted = !remote && !agent.config->token && !agent.config->setup_ms;
    if (!link->trusted)
        link->deadline = agent.now + (remote ? REMOTE_STRANGER_MS : STRANGER_MS);
    size_t mark = frame_begin(&link->out, FRAME_HELLO);
    put_uint(&link->out, OPENMODAL_PROTOCOL, 4);
    put_text(&link->out, OPENMODAL_VERSION);
    put_uint(&link->out, agent.birth, 8);
    frame_end(&link->out, mark);
    watch_set(&link->watch, EPOLLIN | EPOLLRDHUP);
}

static void take(int fd, bool remote) {
    if (link_count >= MAX_LINKS)
        close(fd);
    else
        link_new(fd, remote);
}

void links_take(int fd) {
    take(fd, false);
}

static int accept_one(struct watch *listening) {
    int fd = accept4(listening->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS)) {
        watch_set(listening, 0); /* or it would be ready all the time; agent.c listens again soon */
        agent.deaf_until = agent.now + DEAF_MS;
    }
    return fd;
}

void links_accept(struct watch *listening, uint32_t events) {
    (void)events;
    int fd = accept_one(listening);
    if (fd >= 0)
        take(fd, false);
}

/* The oldest makes room: a client says the token in the same moment, and who only holds a place does not keep it from others. */
static void displace_stranger(void) {
    struct link *oldest = NULL;
    int count = 0;
    for (struct link *link = links; link; link = link->next)
        if (link->remote && !link->trusted && !link->gone) {
            oldest = link;
            count++;
        }
    if (count >= MAX_REMOTE_STRANGERS)
        oldest->gone = true;
}

void links_accept_remote(struct watch *listening, uint32_t events) {
    (void)events;
    int fd = accept_one(listening);
    if (fd < 0)
        return;
    displace_stranger();
    take(fd, true);
}

void links_forget(const void *command) {
    for (struct link *link = links; link; link = link->next)
        if (link->awaited == command)
            link->awaited = NULL; /* NULL: looked at in every turn */
}

/* ---- sending ---- */

void link_flush(struct link *link) {
    while (buffer_size(&link->out)) {
        ssize_t n = send(link->watch.fd, buffer_at(&link->out), buffer_size(&link->out), MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            link->gone |= errno != EAGAIN;
            return;
        }
        buffer_consume(&link->out, (size_t)n);
    }
}

static void skip_sent(struct iovec **part, int *count, size_t sent) {
    while (*count && sent >= (*part)->iov_len) {
        sent -= (*part)->iov_len;
        (*part)++;
        (*count)--;
    }
    if (*count) {
        (*part)->iov_base = (char *)(*part)->iov_base + sent;
        (*part)->iov_len -= sent;
    }
}

void link_send(struct link *link, struct iovec *part, int count, size_t size) {
    if (size >= COPY_BELOW)
        link_flush(link);
    while (size >= COPY_BELOW && count && !buffer_size(&link->out)) {
        ssize_t n = writev(link->watch.fd, part, count);
        if (n <= 0)
            break;
        skip_sent(&part, &count, (size_t)n);
    }
    for (int i = 0; i < count; i++)
        buffer_add(&link->out, part[i].iov_base, part[i].iov_len);
}

/* ---- the link while a worker has it ---- */

const void *link_of_worker(pid_t pid) {
    for (struct link *link = links; link; link = link->next)
        if (link->worker == pid)
            return link;
    return NULL;
}

void link_worker_gone(pid_t pid, int status) {
    for (struct link *link = links; link; link = link->next)
        if (link->worker == pid) {
            link->worker = 0;
            link->dialed = false;
            link->gone |= status != 0;
            fcntl(link->watch.fd, F_SETFL, O_NONBLOCK); /* the worker's link blocked, and it is the same open file */
            if (!link->looks)
                agent.active = agent.asked = agent.now;
        }
}

size_t links_dialed(void) {
    size_t count = 0;
    for (struct link *link = links; link; link = link->next)
        count += link->dialed;
    return count;
}

/* ---- turning ---- */

static void link_leave(struct link *link) {
    link->leaving = true;
    link->deadline = agent.now + FAREWELL_MS;
    buffer_consume(&link->in, buffer_size(&link->in));
}

/* Whether what lies at the front of `in`, perhaps a part of a request, is a use of the sandbox: a
 * stranger's is none, nor is anything on a link that only looks. */
static bool is_use(const struct link *link) {
    bool asks_to_look = buffer_size(&link->in) >= FRAME_HEADER && buffer_at(&link->in)[FRAME_HEADER - 1] == FRAME_LOOK;
    return link->trusted && !link->looks && !asks_to_look;
}

static bool link_step(struct link *link) {
    struct frame frame;
    size_t size = buffer_size(&link->in);
    enum frame_found found = frame_peek(buffer_at(&link->in), size, &frame);
    if (!link->trusted && found == FRAME_MORE && size > STRANGER_FRAME && (link->remote || !agent.config->setup_ms))
        found = FRAME_BAD;
    if (found == FRAME_MORE)
        return false;
    if (is_use(link))
        agent.active = agent.asked = agent.now;
    enum outcome outcome = found == FRAME_BAD ? request_malformed(link) : request_handle(link, &frame);
    link->begun = outcome == WAIT;
    if (outcome == WAIT)
        return false;
    link->awaited = NULL;
    link->fresh = link->timed = false;
    link->deadline = link->trusted ? NEVER : link->deadline;
    if (outcome == LEAVE)
        link_leave(link);
    else
        buffer_consume(&link->in, frame.whole);
    return outcome == DONE;
}

/* A request that waits is only worth a look when what it waits for has changed. */
static bool has_news(const struct link *link) {
    if (link->worker || link->leaving || link->gone || buffer_size(&link->out) >= OUT_HIGH)
        return false;
    return !link->begun || !link->awaited || link->awaited->version != link->seen || agent.now >= link->deadline;
}

static void link_listen(struct link *link) {
    struct frame frame;
    uint32_t events = EPOLLRDHUP;
    size_t size = buffer_size(&link->in);
    if (size < READ_AHEAD || frame_peek(buffer_at(&link->in), size, &frame) == FRAME_MORE)
        events |= EPOLLIN;
    if (buffer_size(&link->out))
        events |= EPOLLOUT;
    watch_set(&link->watch, link->worker ? 0 : events);
}

/* Answers what can be answered and sends it; again, when sending made room for more answers. */
static void link_turn(struct link *link) {
    bool was_full;
    do {
        while (has_news(link) && link_step(link))
            continue;
        was_full = buffer_size(&link->out) >= OUT_HIGH;
        if (!link->worker && !link->gone)
            link_flush(link);
    } while (was_full && buffer_size(&link->out) < OUT_HIGH && !link->gone && !link->worker);
}

static bool is_over(const struct link *link) {
    bool late = agent.now >= link->deadline;
    return link->gone || (link->leaving && (late || !buffer_size(&link->out))) || (!link->trusted && late);
}

void links_progress(void) {
    for (struct link *link = links, *next; link; link = next) {
        next = link->next;
        link_turn(link);
        if (!is_over(link))
            link_listen(link);
        else if (!link->worker)
            link_free(link);
    }
}

static void link_read(struct link *link) {
    size_t room = READ_AHEAD, size = buffer_size(&link->in);
    if (size >= 4) { /* the rest of a big frame in one go */
        const uint8_t *at = buffer_at(&link->in);
        size_t whole = 4 + ((size_t)at[0] | (size_t)at[1] << 8 | (size_t)at[2] << 16 | (size_t)at[3] << 24);
        if (link->trusted && whole > size + room && whole <= 4 + MAX_FRAME)
            room = whole - size;
    }
    ssize_t n = recv(link->watch.fd, buffer_room(&link->in, room), room, 0);
    if (n > 0) {
        link->in.end += (size_t)n;
        if (is_use(link))
            agent.active = agent.now; /* a part of a request, too: whoever sends the rest to a paused agent waits for ever */
    } else if (n == 0 || (errno != EAGAIN && errno != EINTR))
        link->gone = true;
    if (link->leaving)
        buffer_consume(&link->in, buffer_size(&link->in));
}

static void link_ready(struct watch *watch, uint32_t events) {
    struct link *link = container_of(watch, struct link, watch);
    if (events & EPOLLIN)
        link_read(link);
    else if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
        link->gone = true; /* nobody is there for what is being waited for */
}

uint64_t links_deadline(void) {
    uint64_t first = NEVER;
    for (struct link *link = links; link; link = link->next)
        if (link->deadline < first && !link->worker)
            first = link->deadline;
    return first;
}

bool links_busy(void) {
    for (struct link *link = links; link; link = link->next)
        if (!link->looks && (link->begun || link->worker))
            return true;
    return false;
}

/* The other side may be `dial`, which our exit kills with all that it has not passed on yet. At the end of what we sent it ends by itself. */
void links_part(uint64_t patience_ms) {
    for (struct link *link = links; link; link = link->next) {
        if (!link->worker)
            link_flush(link);
        shutdown(link->watch.fd, SHUT_WR);
    }
    uint64_t until = now_ms() + patience_ms;
    for (struct link *link = links; link; link = link->next) {
        struct pollfd gone = {.fd = link->watch.fd};
        uint64_t now = now_ms();
        if (now < until && link->trusted)
            poll(&gone, 1, (int)(until - now)); /* without events: only for its hang-up */
    }
}

bool links_drained(void) {
    for (struct link *link = links; link; link = link->next)
        if (buffer_size(&link->out))
            return false;
    return true;
}
