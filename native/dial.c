/* The verb `dial`: copies between its standard streams and the agent's socket, for transports that can only run a program in
 * the sandbox. One process per direction, so neither can hold up the other. Knows nothing of frames. */
#include "util.h"
#include "verbs.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

enum { QUEUE_SECONDS = 5 };

/* Root in the sandbox may have put a socket there that accepts nobody, to hold up whoever comes:
 * connect(2) waits for room in the queue as long as sending may take (EAGAIN then). */
static int connect_to(const char *path) {
    struct sockaddr_un address;
    struct timeval patience = {.tv_sec = QUEUE_SECONDS}, none = {0};
    unsigned size = socket_address(path, &address);
    int fd = size ? socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0) : -1;
    bool connected = fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience) == 0 &&
                     connect(fd, (struct sockaddr *)&address, size) == 0 &&
                     setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &none, sizeof none) == 0;
    return connected ? fd : -1;
}

/* In a container we run beside what we carry messages about: it must not read the token, or change a result, in our memory or at
 * our descriptors. From here on ptrace(2) and /proc/PID/fd are closed to it; who was faster is found here. */
static bool is_alone(void) {
    prctl(PR_SET_DUMPABLE, 0);
    char *status = read_file("/proc/self/status", 64 << 10, NULL), *line = status ? strstr(status, "\nTracerPid:\t") : NULL;
    bool alone = !line || line[12] == '0';
    free(status);
    return alone;
}

/* Root in the sandbox may listen in the agent's place, to speak for it. Who starts us from outside of a
 * container is no process there, so our parent is 0, and the agent is the container's first process. gVisor
 * tells who asks, and not who listens. */
static bool is_agent(int fd) {
    struct ucred peer;
    socklen_t size = sizeof peer;
    bool told = getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0;
    return getppid() != 0 || (told && (peer.pid == 1 || peer.pid == getpid()));
}

int verb_dial(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "openmodal-agent dial: say the path of the agent's socket\n");
        return 2;
    }
    if (!is_alone()) {
        fprintf(stderr, "openmodal-agent dial: a process in the sandbox is tracing this one, which could change what it carries\n");
        return 1;
    }
    AUTO_FD int fd = connect_to(argv[1]);
    if (fd >= 0 && !is_agent(fd)) {
        fprintf(stderr, "openmodal-agent dial: a process of the sandbox listens at %s, not the agent\n", argv[1]);
        return 1;
    }
    pid_t parent = getpid(), child = fd < 0 ? -1 : fork();
    if (child < 0) {
        fprintf(stderr, "openmodal-agent dial: %s: %s\n", argv[1], strerror(errno));
        return 1;
    }
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        bool ended = getppid() == parent && copy_all(STDIN_FILENO, fd) == 0;
        shutdown(fd, SHUT_WR); /* for the agent that is the end of the link; it closes, and our parent ends */
        _exit(!ended);
    }
    bool ended = copy_all(fd, STDOUT_FILENO) == 0;
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    return !ended;
}
