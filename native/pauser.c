/* A container whose sandbox is idle is paused, which its agent cannot do. This child, outside of the
 * sandbox, asks the agent (REST) and then the daemon, by the steps of rest.c. Whoever pauses a sandbox, or
 * lets it go on, holds the lock of its folder meanwhile. Tunnels ask for it at `control.sock` there. */
#include "kernel.h"

#include "forward.h"
#include "frame.h"
#include "util.h"
#include "verbs.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { FOLDER_FD = 0, AGAIN_MS = 20, SURE_MS = 10000, DAEMON_S = 30, TRIES = 200, LOCKED = 1, FREE = 0, CALLERS = 64 };

struct pauser {
    struct forward door;
    const char *daemon, *id;
    int folder, link, listener;
    struct buffer in;
};

/* ---- the daemon ---- */

/* The status of its answer, or 0. */
static int tell_daemon(const struct pauser *pauser, const char *verb) {
    struct sockaddr_un address;
    struct timeval patience = {.tv_sec = DAEMON_S};
    char answer[13] = "";
    size_t size = 0;
    unsigned length = socket_address(pauser->daemon, &address);
    AUTO_FD int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, length) != 0)
        return 0;
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    char *request = must_format("POST /containers/%s/%s HTTP/1.1\r\nHost: docker\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
                                pauser->id, verb);
    bool sent = send(fd, request, strlen(request), MSG_NOSIGNAL) == (ssize_t)strlen(request);
    free(request);
    for (ssize_t n = sent; n > 0 && size < sizeof answer - 1; size += n > 0 ? (size_t)n : 0)
        n = recv(fd, answer + size, sizeof answer - 1 - size, 0);
    return size == sizeof answer - 1 ? atoi(answer + strlen("HTTP/1.1 ")) : 0;
}

/* runc gives up soon, before a process that computes had its turn to stop. */
static void pause_container(const struct pauser *pauser) {
    for (int i = 0; i < TRIES && tell_daemon(pauser, "pause") == 500; i++)
        usleep(AGAIN_MS * 1000);
}

/* ---- the folder ---- */

/* The descriptor that holds the lock, or -1 if the agent has ended. */
static int lock_folder(const struct pauser *pauser) {
    struct pollfd polled = {.fd = pauser->link, .events = POLLRDHUP};
    int fd = openat(pauser->folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    while (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) != 0)
        if (poll(&polled, 1, AGAIN_MS) != 0)
            close_fd(&fd);
    return fd;
}

/* False: somebody else has paused it. */
static bool mark(const struct pauser *pauser) {
    AUTO_FD int fd = openat(pauser->folder, "paused", O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW | O_CLOEXEC, 0600);
    return fd >= 0;
}

static int listen_for_callers(const struct pauser *pauser) {
    struct sockaddr_un address;
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d/control.sock", pauser->folder);
    unsigned length = socket_address(path, &address);
    unlinkat(pauser->folder, "control.sock", 0);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd >= 0 && (bind(fd, (struct sockaddr *)&address, length) != 0 || listen(fd, CALLERS) != 0))
        close_fd(&fd);
    return fd;
}

static void serve_caller(const struct pauser *pauser) {
    AUTO_FD int caller = accept4(pauser->listener, NULL, NULL, SOCK_CLOEXEC);
    if (caller < 0 || faccessat(pauser->folder, "paused", F_OK, AT_SYMLINK_NOFOLLOW) != 0)
        return;
    AUTO_FD int held = lock_folder(pauser);
    if (held < 0)
        return;
    tell_daemon(pauser, "unpause");
    unlinkat(pauser->folder, "paused", 0);
}

/* ---- the agent ---- */

static bool ask(const struct pauser *pauser, bool sure) {
    struct buffer out = {0};
    size_t begun = frame_begin(&out, FRAME_REST);
    put_uint(&out, sure, 1);
    frame_end(&out, begun);
    bool sent = send(pauser->link, buffer_at(&out), buffer_size(&out), MSG_NOSIGNAL) == (ssize_t)buffer_size(&out);
    buffer_free(&out);
    return sent;
}

static bool hear(struct pauser *pauser) {
    enum { ROOM = 512 };
    ssize_t n = recv(pauser->link, buffer_room(&pauser->in, ROOM), ROOM, MSG_DONTWAIT);
    pauser->in.end += n > 0 ? (size_t)n : 0;
    return n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR));
}

/* The type of its answer, 0 at its end, or -1 if it is stopped by somebody who has not the lock. Callers
 * are served where we do not hold the lock ourselves. */
static int answer(struct pauser *pauser, bool locked) {
    for (;;) {
        struct frame frame;
        enum frame_found found;
        while ((found = frame_peek(buffer_at(&pauser->in), buffer_size(&pauser->in), &frame)) == FRAME_WHOLE) {
            int type = frame.type;
            buffer_consume(&pauser->in, frame.whole);
            if (type != FRAME_HELLO)
                return type;
        }
        struct pollfd polled[2] = {{.fd = pauser->link, .events = POLLIN}, {.fd = locked ? -1 : pauser->listener, .events = POLLIN}};
        int ready = poll(polled, 2, locked ? SURE_MS : -1);
        if (ready == 0)
            return -1;
        if (found == FRAME_BAD || (ready < 0 && errno != EINTR))
            return 0;
        if (ready > 0 && polled[1].revents)
            serve_caller(pauser);
        if (ready > 0 && polled[0].revents && !hear(pauser))
            return 0;
    }
}

/* A new link, where an answer may still come on the old one. */
static bool begin_anew(struct pauser *pauser) {
    close_fd(&pauser->link);
    buffer_free(&pauser->in);
    pauser->link = connect_link(&pauser->door);
    return pauser->link >= 0;
}

/* False: the agent has ended. */
static bool rest(struct pauser *pauser) {
    AUTO_FD int held = lock_folder(pauser);
    if (held < 0)
        return false;
    if (!mark(pauser))
        return true;
    int said = ask(pauser, true) ? answer(pauser, LOCKED) : 0;
    if (said == FRAME_OK)
        pause_container(pauser);
    else
        unlinkat(pauser->folder, "paused", 0);
    return said > 0 || (said < 0 && begin_anew(pauser));
}

/* The folder of the agent's socket is descriptor 0. */
int verb_pause(int argc, char **argv) {
    uint64_t agent = 0;
    if (argc != 4 || !parse_u64(argv[1], &agent)) {
        fprintf(stderr, "openmodal-agent pause: say the agent's process, the daemon's socket and the container\n");
        return 2;
    }
    close_from(FOLDER_FD + 3);
    struct pauser pauser = {.door = {.folder = FOLDER_FD, .agent = (pid_t)agent}, .daemon = argv[2], .id = argv[3]};
    pauser.folder = openat(FOLDER_FD, "..", O_PATH | O_DIRECTORY | O_CLOEXEC);
    pauser.listener = listen_for_callers(&pauser);
    pid_t child = pauser.listener < 0 ? -1 : fork();
    if (child != 0)
        return child < 0;
    setsid();
    pauser.link = await_link(&pauser.door);
    while (pauser.link >= 0 && ask(&pauser, false) && answer(&pauser, FREE) == FRAME_OK && rest(&pauser))
        continue;
    return 0;
}
