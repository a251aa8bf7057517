/* The last thing that happens to the files of a sandbox: a program of the SDK's makes an image of them. It
 * knows how an image is named and made durable, and asks us for the files as it asks a sandbox that
 * runs. Nothing runs in this one any more and its root is not mounted, so nobody changes them. */
#include "kernel.h"
#include "keeping.h"

#include "control.h"
#include "util.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MOST_MS = 300000, STEP_MS = 1000, KEY = 64 };

bool keeping_wanted(const struct box *box) {
    return box->plan->at_end.count > 0 && strcmp(box->reason, "disk") != 0 && strcmp(box->reason, "error") != 0;
}

static _Noreturn void become(char **argv, int said) {
    begin_child();
    dup2(said, 1);
    dup2(said, 2);
    close_from(3);
    execv(argv[0], argv);
    dprintf(1, "error %s cannot be started: %m\n", argv[0]);
    _exit(127);
}

/* Everybody is heard meanwhile; control.c answers what can still be asked for. */
static void serve_clients(struct box *box, int said) {
    enum { SAID, CONTROL, SIGNALS, FIXED };
    uint64_t end = now_ms() + MOST_MS;
    for (bool over = false; !over && now_ms() < end;) {
        struct pollfd from[FIXED + MAX_CLIENTS] = {
            [SAID] = {said, 0, 0}, [CONTROL] = {box->control_listener, POLLIN, 0}, [SIGNALS] = {box->signals, POLLIN, 0}};
        size_t clients = box->clients;
        for (size_t i = 0; i < clients; i++)
            from[FIXED + i] = (struct pollfd){box->client[i].fd, POLLIN, 0};
        if (poll(from, FIXED + clients, STEP_MS) < 0)
            continue;
        over = from[SAID].revents != 0; /* its writers have closed it */
        if (from[SIGNALS].revents)
            hear_signals(box);
        over |= box->keeper == 0; /* a process that it has left behind may have a copy of the pipe */
        for (size_t i = clients; i-- > 0;)
            if (from[FIXED + i].revents)
                control_hear(box, i);
        if (from[CONTROL].revents)
            control_accept(box);
    }
}

/* Its last line is `ok KEY` or `error SENTENCE`, or that of an interpreter that could not begin. */
static void note(struct box *box, int said) {
    char text[(64 << 10) + 1], *line = text; /* as much as a pipe holds: warnings may come first */
    ssize_t size = read(said, text, sizeof text - 1);
    text[size > 0 ? size : 0] = '\0';
    text[strcspn(text, "\r")] = '\0';
    for (char *end = text + strlen(text); end > text && end[-1] == '\n';)
        *--end = '\0';
    if (strrchr(text, '\n'))
        line = strrchr(text, '\n') + 1;
    if (strncmp(line, "ok ", 3) == 0 && strlen(line + 3) == KEY)
        snprintf(box->kept, sizeof box->kept, "snapshot=%s\n", line + 3);
    else
        snprintf(box->kept, sizeof box->kept, "unkept=%.*s\n", (int)sizeof box->kept - 16,
                 *line == '\0' ? "it took too long, or was killed" : strncmp(line, "error ", 6) == 0 ? line + 6 : line);
}

void keeping_run(struct box *box) {
    int said[2];
    if (!open_saying(said)) {
        strcpy(box->kept, "unkept=there are too many open files\n");
        return;
    }
    box->keeping = true;
    box->keeper = fork();
    if (box->keeper == 0)
        become(box->plan->at_end.item, said[1]);
    close(said[1]);
    if (box->keeper > 0)
        serve_clients(box, said[0]);
    if (box->keeper > 0) {
        kill(box->keeper, SIGKILL);
        waitpid(box->keeper, NULL, 0);
    }
    control_end_work(box, true);
    note(box, said[0]);
    close(said[0]);
    box->keeping = false;
}
