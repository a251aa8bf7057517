/* A pair: a TCP socket and a link, each of which gets what comes from the other. Either direction ends
 * by itself.
 *
 * A unix socket cannot be reset. So the process in the sandbox closes the link last: a link that hangs
 * up before both directions have ended was broken, and the other socket is reset. */
#pragma once

#include <poll.h>
#include <stdbool.h>
#include <stddef.h>

enum { FLOW_ROOM = 64 << 10, PAIR_SOCKET = 0, PAIR_LINK = 1 };

/* One direction. What lies between `start` and `end` of `bytes` was read and is to be written. */
struct flow {
    char *bytes;
    size_t start, end;
    bool ended; /* its source has nothing more */
    bool over;  /* ... and its target was told, or takes nothing more */
};

struct pair {
    int end[2];           /* not blocking; the pair closes them */
    struct flow flow[2];  /* from the socket to the link, and back */
    bool broken;          /* a side is gone before its time: the other is to see that, and no end */
};

void pair_begin(struct pair *pair, int socket, int link);
void pair_want(const struct pair *pair, struct pollfd want[2]); /* what it waits for */
void pair_move(struct pair *pair, const struct pollfd got[2]);
bool pair_is_over(const struct pair *pair);
void pair_finish(struct pair *pair);
