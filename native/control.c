/* Who asks a supervisor for something, and what they can ask for. */
#include "control.h"

#include "diff.h"
#include "fail.h"
#include "forward.h"
#include "layers.h"
#include "live.h"
#include "owner.h"
#include "passing.h"
#include "util.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MAX_REQUEST = 16 << 10 };

static const struct {
    const char *word;
    void (*serve)(struct box *box, struct request *request);
} words[] = {
    {"copy", serve_copy},       {"deadline", serve_deadline}, {"diff", serve_diff},
    {"environment", serve_environment}, {"forward", serve_forward}, {"layers", serve_layers}, {"merge", serve_merge},
    {"mount", serve_mount},     {"network", serve_network},   {"owner", serve_owner},
    {"pause", serve_pause},     {"reset", serve_reset},       {"resume", serve_resume},
    {"switch", serve_switch},   {"unmount", serve_unmount},   {"written", serve_written},
};

/* What can be asked for while the files of a sandbox that has ended become an image. */
static bool is_late(const char *word) {
    return strcmp(word, "copy") == 0 || strcmp(word, "layers") == 0 || strcmp(word, "merge") == 0 || strcmp(word, "switch") == 0;
}

/* ---- answers ---- */

/* Who asks reads to the end. Children that have nothing to do with it may have a copy of the connection,
 * and for long: closing ours would not end it. */
void control_say(int client, const char *text) {
    if (send(client, text, strlen(text), MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
        return; /* the client has gone away */
    shutdown(client, SHUT_WR);
}

void control_ok(struct request *request, const char *format, ...) {
    va_list arguments;
    char *text = NULL;
    va_start(arguments, format);
    if (vasprintf(&text, format, arguments) < 0)
        abort();
    va_end(arguments);
    char *line = must_format("ok %s\n", text);
    control_say(request->client, line);
    free(line);
    free(text);
}

void control_failed(struct request *request) {
    char *line = must_format("error %s\n", failure());
    control_say(request->client, line);
    free(line);
}

/* ---- work ---- */

pid_t control_fork(struct box *box, struct request *request, void (*ended)(struct box *box, int status)) {
    pid_t pid = box->works == MAX_WORK ? -1 : fork();
    if (pid == 0) {
        begin_child();
        box->clients = 0; /* our parent answers the others */
    }
    if (pid > 0)
        box->work[box->works++] = (struct work){pid, ended, false};
    if (pid < 0) {
        fail("internal", "the supervisor has too much to do; try again");
        control_failed(request);
    }
    return pid;
}

void control_end_work(struct box *box, bool all) {
    size_t kept = 0;
    for (size_t i = 0; i < box->works; i++)
        if (all || !box->work[i].lasts)
            kill(box->work[i].pid, SIGKILL);
    for (size_t i = 0; i < box->works; i++)
        if (!all && box->work[i].lasts)
            box->work[kept++] = box->work[i];
        else
            while (waitpid(box->work[i].pid, NULL, 0) < 0 && errno == EINTR)
                ;
    box->works = kept;
}

bool control_reaped(struct box *box, pid_t pid, int status) {
    for (size_t i = 0; i < box->works; i++)
        if (box->work[i].pid == pid) {
            struct work work = box->work[i];
            box->work[i] = box->work[--box->works];
            if (work.ended)
                work.ended(box, status);
            return true;
        }
    return false;
}

/* ---- clients ---- */

void control_accept(struct box *box) {
    struct ucred peer;
    socklen_t size = sizeof peer;
    AUTO_FD int fd = accept4(box->control_listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0 || box->clients == MAX_CLIENTS || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0 ||
        (peer.uid != 0 && peer.uid != geteuid()))
        return;
    box->client[box->clients++].fd = fd;
    fd = -1;
}

static void forget(struct box *box, size_t i) {
    close(box->client[i].fd);
    box->client[i] = box->client[--box->clients];
    box->client[box->clients].asked = false;
}

static void serve(struct box *box, struct request *request, const char *word) {
    fail_forget();
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strcmp(words[i].word, word) == 0) {
            if (!box->keeping || is_late(word)) /* else the connection ends, as it soon would */
                words[i].serve(box, request);
            return;
        }
    fail("unsupported", "the sandbox was made by another version of openmodal, whose supervisor does not know %s; create it anew", word);
    control_failed(request);
}

/* `w` and `t` wait for the end, without an end of the line; all else is a line, and its client is answered at once or by a child. */
void control_hear(struct box *box, size_t i) {
    char text[MAX_REQUEST];
    struct client *client = &box->client[i];
    struct request request = {.client = client->fd, .fd = {-1, -1, -1, -1}};
    ssize_t size = receive_with(client->fd, text, sizeof text, request.fd, 4, MSG_DONTWAIT);
    if (size < 0 && errno == EAGAIN)
        return;
    if (size == 1 && *text == 't')
        end_with(box, "terminated", 137);
    client->asked |= size == 1 && (*text == 't' || *text == 'w');
    if (size > 1 && text[size - 1] == '\n') {
        text[size - 1] = '\0';
        request.arguments = text + strcspn(text, " ");
        if (*request.arguments != '\0')
            *request.arguments++ = '\0';
        serve(box, &request, text);
    }
    for (int n = 0; n < 4; n++)
        close_fd(&request.fd[n]);
    if (size != 1 || !client->asked)
        forget(box, i);
}

void control_answer_all(struct box *box) {
    for (size_t i = 0; i < box->clients; i++) {
        if (box->client[i].asked && send(box->client[i].fd, box->record, strlen(box->record), MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
            continue;                           /* it has gone away; the record is in its file */
        shutdown(box->client[i].fd, SHUT_RDWR); /* the detacher has a copy, and closing ours would not end it */
        close(box->client[i].fd);
    }
    box->clients = 0;
}
