/* Connections: in the place of a command's program (START_CONNECT), and in the place of a link (DIAL). */
#include "relay.h"
#include "frame.h"
#include "pair.h"
#include "util.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { AGAIN_MS = 5, LINK_FD = 3 };

static int connect_to(const struct sockaddr *address, socklen_t size) {
    int fd = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    if (fd < 0 || connect(fd, address, size) < 0) {
        int why = errno;
        close_fd(&fd);
        errno = why;
        return -1;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

static int connect_once(uint16_t port) {
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    int fd = connect_to((struct sockaddr *)&four, sizeof four), why = errno;
    if (fd < 0 && why == ECONNREFUSED)
        fd = connect_to((struct sockaddr *)&six, sizeof six);
    errno = why; /* a sandbox may be without IPv6, and that is no news */
    return fd;
}

int relay_connect(uint16_t port, uint64_t wait_ms) {
    static const struct timespec pause = {.tv_nsec = AGAIN_MS * 1000000L};
    uint64_t until = now_ms() + wait_ms;
    int fd = connect_once(port);
    while (fd < 0 && errno == ECONNREFUSED && now_ms() < until) {
        nanosleep(&pause, NULL);
        fd = connect_once(port);
    }
    return fd;
}

/* One process per direction, so that neither holds up the other. */
void relay_run(int fd) {
    pid_t sender = fork();
    if (sender == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(STDOUT_FILENO);
        close(STDERR_FILENO);
        if (copy_all(STDIN_FILENO, fd) == 0)
            shutdown(fd, SHUT_WR);
        _exit(0);
    }
    close(STDIN_FILENO);
    int why = sender < 0 ? errno : copy_all(fd, STDOUT_FILENO);
    if (why) {
        /* Before stdout ends: who sees that end finds the reason here. */
        const char *text = strerror(why);
        _exit(write_all(STDERR_FILENO, text, strlen(text)) ? 1 : 2);
    }
    close(STDOUT_FILENO);
    waitpid(sender, NULL, 0);
    _exit(0);
}

static bool answer(int link, const struct buffer *out) {
    return write_all(link, buffer_at(out), buffer_size(out));
}

/* Of the agent's descriptors: others' links and pipes would not end with who has them. */
static void keep_only(int link) {
    if (link != LINK_FD)
        dup2(link, LINK_FD);
    close_from(LINK_FD + 1);
}

_Noreturn void relay_serve(int link, uint16_t port, uint64_t wait_ms) {
    struct buffer out = {0};
    struct pair pair;
    struct pollfd polled[2];
    keep_only(link);
    int fd = relay_connect(port, wait_ms);
    if (fd < 0) {
        int why = errno;
        put_error(&out, ERROR_ERRNO + (uint32_t)why, strerror(why));
        _exit(answer(LINK_FD, &out) ? 0 : 1);
    }
    put_plain(&out, FRAME_OK);
    if (!answer(LINK_FD, &out))
        _exit(1);
    for (pair_begin(&pair, fd, LINK_FD); !pair_is_over(&pair); pair_move(&pair, polled)) {
        pair_want(&pair, polled);
        poll(polled, 2, -1);
    }
    struct pollfd closed = {.fd = LINK_FD};
    if (!pair.broken) /* without events: for the link's hang-up. If ours were first, it would look broken */
        poll(&closed, 1, -1);
    pair_finish(&pair);
    _exit(2); /* the link is used up: the agent closes it */
}
