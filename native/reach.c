/* The verb `reach`: whether one pod reaches another by TCP, at first and for some time on. It is how a cluster that enforces network
 * policies is told from one that does not (engines/kubernetes/admin/probe.py), and has to run in any image. Knows nothing of agents. */
#include "util.h"
#include "verbs.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

enum { ALWAYS, NO_LONGER, MISUSED, NEVER };

static const int enough = 3; /* failures in a row that are no accident */

/* One that neither connects nor accepts for longer than a second. */
static int patient_socket(void) {
    const struct timeval second = {.tv_sec = 1};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0)
        (void)(setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &second, sizeof second) |
               setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &second, sizeof second));
    return fd;
}

static bool reaches(const struct sockaddr_in *address) {
    AUTO_FD int fd = patient_socket();
    return fd >= 0 && connect(fd, (const struct sockaddr *)address, sizeof *address) == 0;
}

static int keep_reaching(const struct sockaddr_in *address, uint64_t end) {
    bool reached = false;
    int failed = 0;
    for (; failed < enough && (now_ms() < end || failed); usleep(200 * 1000)) {
        bool now = reaches(address);
        failed = reached && !now ? failed + 1 : 0;
        reached |= now;
    }
    return !reached ? NEVER : failed ? NO_LONGER : ALWAYS;
}

/* Process 1 of a pod is not ended by signals that it does not handle, so the time is kept here. */
static int let_reach(const struct sockaddr_in *address, uint64_t end) {
    AUTO_FD int fd = patient_socket();
    const int again = 1;
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &again, sizeof again) != 0 ||
        bind(fd, (const struct sockaddr *)address, sizeof *address) != 0 || listen(fd, 16) != 0) {
        perror("openmodal-agent reach");
        return NEVER;
    }
    while (now_ms() < end) {
        AUTO_FD int caller = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
        (void)caller;
    }
    return ALWAYS;
}

int verb_reach(int argc, char **argv) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_ANY)};
    uint64_t port = 0, seconds = 0;
    if (argc < 3 || argc > 4 || (argc == 4 && inet_pton(AF_INET, argv[1], &address.sin_addr) != 1) ||
        !parse_u64(argv[argc - 2], &port) || port > UINT16_MAX || !parse_u64(argv[argc - 1], &seconds) || seconds > 3600) {
        fprintf(stderr, "openmodal-agent reach: say [ADDRESS] PORT SECONDS\n");
        return MISUSED;
    }
    address.sin_port = htons((uint16_t)port);
    uint64_t end = now_ms() + seconds * 1000;
    return argc == 4 ? keep_reaching(&address, end) : let_reach(&address, end);
}
