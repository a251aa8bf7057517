/* Ports of this machine that lead into a sandbox: accepts connections on 127.0.0.1, asks the agent for
 * one to the port inside (DIAL), and copies between the two. It runs outside of the sandbox, as the verb
 * `forward` or as a child of the supervisor, and is one process for any number of connections. Anybody
 * on this machine may connect, and the sandbox answers: neither can make it wait for the other. No more
 * than MOST_VISITORS are in at a time; the others wait at the door. */
#include "kernel.h"

#include "control.h"
#include "fail.h"
#include "forward.h"
#include "frame.h"
#include "pair.h"
#include "util.h"
#include "verbs.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

enum {
    MOST_VISITORS = 256,
    AGAIN_MS = 5,       /* until the agent's queue may have room again */
    GONE_MS = 2000,     /* so long may a sandbox be without an agent: while it is reset */
    FOLDER_FD = 0,
    FIRST_LISTENER = 3
};

struct visitor {
    struct pair pair; /* its link is -1 while the agent takes none */
    uint16_t port;
    bool greeted;     /* the agent has said hello */
    bool in;          /* ... and that it is connected */
    bool gone;
};

struct house {
    const struct forward *forward;
    struct visitor *visitor[MOST_VISITORS];
    size_t visitors;
    struct pollfd polled[2 + MOST_PORTS + 2 * MOST_VISITORS];
    int watched;        /* a link that asks for nothing: it ends with the agent */
    uint64_t lonely_at; /* when it ended; 0: it has not */
};

/* ---- the agent ---- */

/* The sandbox may be able to write to the folder: no link in it is followed, and the agent must listen. */
int connect_link(const struct forward *forward) {
    struct sockaddr_un address;
    struct stat info;
    struct ucred peer = {0};
    socklen_t size = sizeof peer;
    char path[64];
    AUTO_FD int file = openat(forward->folder, "agent.sock", O_PATH | O_NOFOLLOW | O_CLOEXEC);
    errno = file < 0 ? errno : ENOTSOCK;
    if (file < 0 || fstat(file, &info) != 0 || !S_ISSOCK(info.st_mode))
        return -1;
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    unsigned length = socket_address(path, &address);
    AUTO_FD int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, length) != 0)
        return -1;
    if (forward->agent && (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0 || peer.pid != forward->agent)) {
        errno = EACCES;
        return -1;
    }
    int kept = fd;
    fd = -1;
    return kept;
}

int await_link(const struct forward *forward) {
    struct pollfd polled = {.fd = (int)syscall(NR_PIDFD_OPEN, forward->agent, 0), .events = POLLIN};
    int link = -1;
    while (polled.fd >= 0 && link < 0 && poll(&polled, 1, AGAIN_MS) == 0)
        link = connect_link(forward);
    close_fd(&polled.fd);
    return link;
}

static void put_dial(struct buffer *out, uint16_t port) {
    size_t mark = frame_begin(out, FRAME_DIAL);
    put_uint(out, port, 2);
    put_uint(out, 0, 4);
    frame_end(out, mark);
}

/* A paused sandbox goes on when it is used. In this order: see rest.c. Where it can write to the
 * folder of its socket, the mark and the supervisor's socket are in the one around that. */
static void wake(const struct forward *forward) {
    struct sockaddr_un address;
    char path[64];
    const char *up = forward->agent != 0 ? "../" : "";
    snprintf(path, sizeof path, "%spaused", up);
    if (faccessat(forward->folder, path, F_OK, AT_SYMLINK_NOFOLLOW) != 0)
        return;
    snprintf(path, sizeof path, "/proc/self/fd/%d/%scontrol.sock", forward->folder, up);
    unsigned length = socket_address(path, &address);
    AUTO_FD int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&address, length) == 0)
        send(fd, "resume\n", 7, MSG_NOSIGNAL);
}

static void dial(const struct forward *forward, struct visitor *visitor) {
    struct buffer out = {0};
    int link = connect_link(forward);
    if (link < 0) {
        visitor->gone = errno != EAGAIN;
        return;
    }
    visitor->pair.end[PAIR_LINK] = link;
    put_dial(&out, visitor->port);
    visitor->gone = send(link, buffer_at(&out), buffer_size(&out), MSG_NOSIGNAL) != (ssize_t)buffer_size(&out);
    buffer_free(&out);
    wake(forward);
}

/* What the agent says first: HELLO, and OK. What comes behind that is the connection's. */
static void take_greeting(struct visitor *visitor) {
    struct flow *back = &visitor->pair.flow[PAIR_LINK];
    struct frame frame;
    enum frame_found found = FRAME_MORE;
    ssize_t n = recv(visitor->pair.end[PAIR_LINK], back->bytes + back->end, FLOW_ROOM - back->end, MSG_DONTWAIT);
    if (n > 0)
        back->end += (size_t)n;
    else if (n == 0 || errno != EAGAIN)
        visitor->gone = true;
    while (!visitor->in && !visitor->gone &&
           (found = frame_peek((uint8_t *)back->bytes + back->start, back->end - back->start, &frame)) == FRAME_WHOLE) {
        visitor->gone = frame.type != (visitor->greeted ? FRAME_OK : FRAME_HELLO);
        visitor->in = visitor->greeted;
        visitor->greeted = true;
        back->start += frame.whole;
    }
    visitor->gone |= found == FRAME_BAD || (!visitor->in && back->end == FLOW_ROOM);
}

/* ---- visitors ---- */

static void take_visitor(struct house *house, int listener, uint16_t port) {
    int one = 1, client = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (client < 0)
        return;
    setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct visitor *visitor = must_alloc(sizeof *visitor);
    *visitor = (struct visitor){.port = port};
    pair_begin(&visitor->pair, client, -1);
    dial(house->forward, visitor);
    house->visitor[house->visitors++] = visitor;
}

/* One that never got in is turned away as the port itself would do it. */
static void see_off(struct house *house, size_t i) {
    struct visitor *visitor = house->visitor[i];
    visitor->pair.broken |= !visitor->in;
    pair_finish(&visitor->pair);
    free(visitor);
    house->visitor[i] = house->visitor[--house->visitors];
}

static void want(const struct visitor *visitor, struct pollfd polled[2]) {
    if (visitor->in) {
        pair_want(&visitor->pair, polled);
        return;
    }
    polled[0] = (struct pollfd){.fd = -1};
    polled[1] = (struct pollfd){.fd = visitor->pair.end[PAIR_LINK], .events = POLLIN};
}

static void serve(const struct house *house, struct visitor *visitor, const struct pollfd polled[2]) {
    if (visitor->pair.end[PAIR_LINK] < 0)
        dial(house->forward, visitor);
    else if (!visitor->in && polled[1].revents)
        take_greeting(visitor);
    if (visitor->in)
        pair_move(&visitor->pair, polled);
}

/* ---- the loop ---- */

static bool is_waiting(const struct house *house) {
    for (size_t i = 0; i < house->visitors; i++)
        if (house->visitor[i]->pair.end[PAIR_LINK] < 0)
            return true;
    return false;
}

/* What ended has no folder any more. */
static bool is_removed(int folder) {
    struct stat info;
    return fstat(folder, &info) != 0 || info.st_nlink == 0;
}

/* False: the sandbox is gone. One that is reset has another agent soon. */
static bool watch_agent(struct house *house, bool news) {
    char bytes[256];
    if (!house->forward->watches)
        return true;
    if (house->watched >= 0 && news && recv(house->watched, bytes, sizeof bytes, MSG_DONTWAIT) <= 0) {
        close(house->watched);
        house->watched = -1;
    }
    if (house->watched >= 0)
        return true;
    house->watched = connect_link(house->forward);
    if (house->watched >= 0)
        house->lonely_at = 0;
    else if (!house->lonely_at)
        house->lonely_at = now_ms();
    return house->watched >= 0 || (now_ms() - house->lonely_at < GONE_MS && !is_removed(house->forward->folder));
}

enum { OWNER, AGENT, DOORS };

static void look(struct house *house) {
    const struct forward *forward = house->forward;
    bool full = house->visitors == MOST_VISITORS;
    struct pollfd *polled = house->polled;
    polled[OWNER] = (struct pollfd){forward->owner, POLLIN, 0};
    polled[AGENT] = (struct pollfd){house->watched, POLLIN, 0};
    for (size_t i = 0; i < forward->ports; i++)
        polled[DOORS + i] = (struct pollfd){full ? -1 : forward->port[i].listener, POLLIN, 0};
    for (size_t i = 0; i < house->visitors; i++)
        want(house->visitor[i], polled + DOORS + forward->ports + 2 * i);
    poll(polled, DOORS + forward->ports + 2 * house->visitors, is_waiting(house) || house->lonely_at ? AGAIN_MS : -1);
}

/* From the last on: who goes is replaced by the last, which was looked after already. */
static void serve_all(struct house *house) {
    const struct pollfd *first = house->polled + DOORS + house->forward->ports;
    for (size_t i = house->visitors; i-- > 0;) {
        struct visitor *visitor = house->visitor[i];
        serve(house, visitor, first + 2 * i);
        if (visitor->gone || (visitor->in && pair_is_over(&visitor->pair)))
            see_off(house, i);
    }
}

void forward_run(struct forward *forward) {
    struct house *house = must_alloc(sizeof *house);
    *house = (struct house){.forward = forward, .watched = -1};
    while (watch_agent(house, house->watched >= 0 && house->polled[AGENT].revents)) {
        look(house);
        if (house->polled[OWNER].revents)
            return;
        serve_all(house);
        for (size_t i = 0; i < forward->ports && house->visitors < MOST_VISITORS; i++)
            if (house->polled[DOORS + i].revents)
                take_visitor(house, forward->port[i].listener, forward->port[i].port);
    }
}

/* ---- how it begins ---- */

static bool add_port(struct forward *forward, const char *text) {
    uint64_t port = 0;
    if (forward->ports == MOST_PORTS || !parse_u64(text, &port) || port < 1 || port > UINT16_MAX)
        return false;
    forward->port[forward->ports].port = (uint16_t)port;
    forward->port[forward->ports].listener = FIRST_LISTENER + (int)forward->ports;
    forward->ports++;
    return true;
}

/* The folder is descriptor 0; the ports' listeners are 3 and those behind it, in their order. */
int verb_forward(int argc, char **argv) {
    struct forward forward = {.folder = FOLDER_FD, .owner = -1, .watches = true};
    uint64_t owner = 0, agent = 0;
    bool good = argc > 3 && parse_u64(argv[1], &owner) && parse_u64(argv[2], &agent);
    for (int i = 3; good && i < argc; i++)
        good = add_port(&forward, argv[i]);
    if (!good) {
        fprintf(stderr, "openmodal-agent forward: say an owner, the agent's process, and ports of the sandbox\n");
        return 2;
    }
    close_from(FIRST_LISTENER + (int)forward.ports);
    if (owner == 0 && fork() != 0)
        return 0; /* who started us need not wait for more than this */
    setsid();
    forward.agent = (pid_t)agent;
    if (owner && ((forward.owner = (int)syscall(NR_PIDFD_OPEN, (pid_t)owner, 0)) < 0 || getppid() != (pid_t)owner))
        return 0; /* it is gone already */
    forward_run(&forward);
    return 0;
}

/* Nothing of the supervisor's is held: its locks are to end with it. */
static void leave_supervisor(int folder, const struct request *request, size_t ports) {
    int kept[5] = {fcntl(folder, F_DUPFD, FIRST_LISTENER + 5)};
    for (size_t i = 0; i < ports; i++)
        kept[1 + i] = fcntl(request->fd[i], F_DUPFD, FIRST_LISTENER + 5);
    dup2(kept[0], FOLDER_FD);
    for (size_t i = 0; i < ports; i++)
        dup2(kept[1 + i], FIRST_LISTENER + (int)i);
    close_from(FIRST_LISTENER + (int)ports);
}

/* `forward PORT…`, with a listener for each. They end with the child, and that with the sandbox. */
void serve_forward(struct box *box, struct request *request) {
    struct forward forward = {.folder = FOLDER_FD, .owner = -1};
    bool good = true;
    for (char *rest = NULL, *port = strtok_r(request->arguments, " ", &rest); good && port; port = strtok_r(NULL, " ", &rest))
        good = forward.ports < 4 && request->fd[forward.ports] >= 0 && add_port(&forward, port);
    if (!good || !forward.ports) {
        fail("plan", "forward needs one to four ports, and a listener for each");
        control_failed(request);
        return;
    }
    pid_t child = control_fork(box, request, NULL);
    if (child > 0)
        box->work[box->works - 1].lasts = true;
    if (child != 0)
        return;
    control_ok(request, "%s", "");
    leave_supervisor(box->folder, request, forward.ports);
    forward_run(&forward);
    _exit(0);
}
