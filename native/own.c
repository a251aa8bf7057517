/* A container's sandbox ends with a process of this machine: its agent sees none. This child, outside of
 * the sandbox, waits for the one and for the other. It is there as long as both. */
#include "kernel.h"

#include "fail.h"
#include "forward.h"
#include "frame.h"
#include "util.h"
#include "verbs.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { FOLDER_FD = 0, OWNER_FD = 3 };

/* The sandbox's folder is the one around the socket's. The file there names its owner of now. */
static bool is_owner(const char *who) {
    char told[64] = "";
    AUTO_FD int file = openat(FOLDER_FD, "../owner", O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    return file >= 0 && read(file, told, sizeof told - 1) > 0 && strcmp(told, who) == 0;
}

/* The file's other name tells why, to those who see that the sandbox has ended. A paused agent
 * reads it when somebody lets it go on. */
static bool say_end(int link, const char *who) {
    struct buffer out = {0};
    if (!is_owner(who) || renameat(FOLDER_FD, "../owner", FOLDER_FD, "../owner-ended") != 0)
        return false;
    frame_end(&out, frame_begin(&out, FRAME_SHUTDOWN));
    bool said = send(link, buffer_at(&out), buffer_size(&out), MSG_NOSIGNAL) == (ssize_t)buffer_size(&out);
    buffer_free(&out);
    return said;
}

/* What the agent says is read and forgotten; at its end the link ends. */
static bool has_ended(int link) {
    char bytes[256];
    ssize_t n = recv(link, bytes, sizeof bytes, MSG_DONTWAIT);
    return n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR);
}

static void keep(int link, const char *who) {
    struct pollfd polled[2] = {{.fd = link, .events = POLLIN}, {.fd = OWNER_FD, .events = POLLIN}};
    for (;;) {
        if (poll(polled, 2, -1) < 0 && errno != EINTR)
            return;
        if (polled[0].revents && has_ended(link))
            return;
        if (polled[1].revents && !say_end(link, who))
            return;
        if (polled[1].revents)
            polled[1].fd = -1;
    }
}

/* The folder of the agent's socket is descriptor 0, its owner's pidfd 3. */
int verb_own(int argc, char **argv) {
    struct forward door = {.folder = FOLDER_FD};
    uint64_t agent = 0;
    bool begins = argc == 4 && strcmp(argv[3], "begins") == 0;
    if ((argc != 3 && !begins) || !parse_u64(argv[1], &agent)) {
        fprintf(stderr, "openmodal-agent own: say the agent's process, what the file `owner` says, and perhaps `begins`\n");
        return 2;
    }
    close_from(OWNER_FD + 1);
    door.agent = (pid_t)agent;
    int link = begins ? -1 : connect_link(&door);
    if (link < 0 && !begins)
        return 1;
    pid_t child = fork();
    if (child == 0) {
        setsid();
        if (begins)
            link = await_link(&door);
        if (link >= 0)
            keep(link, argv[2]);
    }
    return child < 0;
}
