/* What others ask of a running sandbox's supervisor, over `control.sock` (docs/protocol.md, section 3).
 *
 * A request is one message, `WORD ARGUMENTS\n`, of at most 16 KiB and with at most four descriptors. A
 * row of the table in control.c names the function that serves the word. That function answers once,
 * by one of the functions below, or leaves the answer to a child of its own. */
#pragma once

#include "box.h"

struct request {
    int client;      /* answered through it */
    char *arguments; /* without the end of the line */
    int fd[4];       /* -1: it brought none. Set to -1 what is to stay open */
};

/* Send an answer, the only one, and end the connection. */
void control_say(int client, const char *text);

/* Answer `ok TEXT\n`. */
void control_ok(struct request *request, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Answer `error KIND SENTENCE\n`: why it failed, see fail.h. */
void control_failed(struct request *request);

/* Leave the request to a child, which is to answer and to _exit: returns 0 in that child and its id in
 * the supervisor, whose loop goes on. -1: there are too many, or fork failed; that is answered.
 * `ended` (or NULL) is called in the supervisor when the child has ended. */
pid_t control_fork(struct box *box, struct request *request, void (*ended)(struct box *box, int status));
