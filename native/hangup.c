/* The connections of a network namespace, over sock_diag(7): ended at once, on both sides. A
 * kernel that cannot do that (CONFIG_INET_DIAG_DESTROY) leaves them to their own time-outs. */
#include "kernel.h"
#include "net.h"

#include "netlink.h"
#include "util.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <string.h>

enum {
    BY_FAMILY = 20,
    DESTROY = 21,
    DUMP = 0x300,
    TCP_STATES = 0x31e, /* all that have another side, and are not over: no LISTEN, no TIME_WAIT */
    AT_ONCE = 100,
};

/* inet_diag_sockid, inet_diag_req_v2 and the begin of inet_diag_msg (linux/inet_diag.h). */
struct socket_id {
    uint16_t ports[2];
    uint32_t source[4], target[4], interface, cookie[2];
};

struct socket_question {
    uint8_t family, protocol, extensions, unused;
    uint32_t states;
    struct socket_id id;
};

struct socket_answer {
    uint8_t family, state, timer, retransmits;
    struct socket_id id;
};

struct ending {
    int netlink;
    struct batch batch;
};

static void send_endings(struct ending *ending) {
    if (ending->batch.count > 0)
        talk(ending->netlink, &ending->batch); /* a socket may be gone, so an error says nothing */
    ending->batch.used = ending->batch.last = ending->batch.count = 0;
}

static bool is_loopback(const struct socket_answer *found) {
    const uint32_t *target = found->id.target;
    bool mapped = found->family == AF_INET6 && target[0] == 0 && target[1] == 0 && target[2] == htonl(0xffff);
    if (found->family == AF_INET6 && !mapped)
        return true; /* the only IPv6 that there is */
    return ntohl(target[mapped ? 3 : 0]) >> 24 == 127;
}

static void end_one(void *context, const void *answer, size_t size) {
    struct ending *ending = context;
    struct socket_answer found;
    if (size < sizeof found)
        return;
    memcpy(&found, answer, sizeof found);
    if (is_loopback(&found))
        return;
    struct socket_question *question = begin_message(&ending->batch, DESTROY, 0, sizeof *question);
    *question = (struct socket_question){.family = found.family, .protocol = IPPROTO_TCP, .states = TCP_STATES, .id = found.id};
    if (ending->batch.count == AT_ONCE)
        send_endings(ending);
}

void net_reset_connections(void) {
    AUTO_FD int asked = open_netlink(NETLINK_SOCKETS), told = open_netlink(NETLINK_SOCKETS);
    const uint8_t families[] = {AF_INET, AF_INET6};
    struct ending ending = {.netlink = told};
    for (size_t i = 0; asked >= 0 && told >= 0 && i < sizeof families; i++) {
        struct batch batch = {.used = 0};
        struct socket_question *question = begin_message(&batch, BY_FAMILY, DUMP, sizeof *question);
        *question = (struct socket_question){.family = families[i], .protocol = IPPROTO_TCP, .states = TCP_STATES};
        ask_each(asked, &batch, 0, end_one, &ending);
        send_endings(&ending);
    }
}
