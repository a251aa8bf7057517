/* Copying between two sockets; see pair.h. A slow side holds up one direction, with one buffer. */
#include "pair.h"
#include "util.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static bool is_empty(const struct flow *flow) {
    return flow->start == flow->end;
}

void pair_begin(struct pair *pair, int socket, int link) {
    *pair = (struct pair){.end = {[PAIR_SOCKET] = socket, [PAIR_LINK] = link}};
    for (int i = 0; i < 2; i++)
        pair->flow[i].bytes = must_alloc(FLOW_ROOM);
}

/* An end of which nothing is wanted is left out: poll() tells of its hang-up again and again. */
void pair_want(const struct pair *pair, struct pollfd want[2]) {
    for (int i = 0; i < 2; i++) {
        const struct flow *from = &pair->flow[i], *to = &pair->flow[1 - i];
        bool reads = is_empty(from) && !from->ended, writes = !is_empty(to) && !to->over;
        short events = (short)((reads ? POLLIN : 0) | (writes ? POLLOUT : 0));
        want[i] = (struct pollfd){events ? pair->end[i] : -1, events, 0};
    }
}

static bool is_passing(void) {
    return errno == EAGAIN || errno == EINTR;
}

/* Who closes the link has seen the end of both directions, unless it was ended before its time. When we have ended
 * ours, the end of the other one is a hang-up, too (unix(7)): both are shut down then. */
static void flow_read(struct pair *pair, int i, short revents) {
    struct flow *flow = &pair->flow[i];
    ssize_t n = recv(pair->end[i], flow->bytes, FLOW_ROOM, MSG_DONTWAIT);
    if (n < 0 && is_passing())
        return;
    flow->start = 0;
    flow->end = n > 0 ? (size_t)n : 0;
    flow->ended = n <= 0;
    if (n < 0 || (n == 0 && i == PAIR_LINK && revents & POLLHUP && !pair->flow[1 - i].over))
        pair->broken = pair->flow[1 - i].ended = pair->flow[1 - i].over = true;
}

static void flow_write(struct pair *pair, int i) {
    struct flow *flow = &pair->flow[i];
    ssize_t n = send(pair->end[1 - i], flow->bytes + flow->start, flow->end - flow->start, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n >= 0)
        flow->start += (size_t)n;
    else if (!is_passing())
        pair->broken = flow->over = flow->ended = true;
}

void pair_move(struct pair *pair, const struct pollfd got[2]) {
    for (int i = 0; i < 2; i++) {
        struct flow *flow = &pair->flow[i];
        if (is_empty(flow) && !flow->ended && got[i].revents)
            flow_read(pair, i, got[i].revents);
        if (!is_empty(flow) && !flow->over)
            flow_write(pair, i);
        if (is_empty(flow) && flow->ended && !flow->over) {
            flow->over = true;
            if (!pair->broken)
                shutdown(pair->end[1 - i], SHUT_WR);
        }
    }
}

bool pair_is_over(const struct pair *pair) {
    return pair->flow[0].over && pair->flow[1].over;
}

void pair_finish(struct pair *pair) {
    static const struct linger now = {.l_onoff = 1};
    for (int i = 0; i < 2; i++) {
        if (pair->broken)
            setsockopt(pair->end[i], SOL_SOCKET, SO_LINGER, &now, sizeof now);
        close(pair->end[i]);
        free(pair->flow[i].bytes);
    }
}
