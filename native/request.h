/* Between link.c (bytes in and out, turns) and request.c (what a request means). */
#pragma once

#include "command.h"

#include <sys/uio.h>

struct link {
    struct watch watch;
    struct link *next, **back;
    struct buffer in, out;
    bool remote;             /* from the network: it never sets up, and is let in by the token only */
    bool trusted, leaving, gone;
    bool begun;              /* the request at the front of `in` was looked at before */
    bool fresh;              /* ... and it started its command */
    bool timed;              /* ... and `deadline` is its own */
    struct command *awaited; /* has news when its version is no longer `seen`; NULL: look in every turn */
    uint64_t seen;
    uint64_t deadline;       /* of the request, of AUTH, or of leaving */
    pid_t worker;            /* it has the link now */
    bool dialed;             /* ... as a connection */
    bool looks;              /* what is asked here is no use of the sandbox */
};

/* LEAVE: an ERROR was put, and after it the link is closed. */
enum outcome { DONE, WAIT, LEAVE };
enum outcome request_handle(struct link *link, const struct frame *frame);
enum outcome request_malformed(struct link *link);

/* Sends big things from where they are; what the socket does not take now is copied, so that the ring is free to move on. */
void link_send(struct link *link, struct iovec *part, int count, size_t size);
void link_flush(struct link *link);

enum { MAX_DIALED = 256 };
size_t links_dialed(void); /* how many links are connections now */
