/* The tables of connections, over nf_conntrack_netlink, and the router's count of them; see conntrack.h. */
#include "kernel.h"
#include "conntrack.h"

#include "fail.h"
#include "netlink.h"
#include "util.h"

#include <netinet/in.h>
#include <string.h>

/* clang-format off */
enum {
    CONNTRACK = 1 << 8, GET = CONNTRACK | 1, DELETE = CONNTRACK | 2, DUMP = 0x300,
    ORIGINAL = 1, REPLY = 2, FILTER = 25, TUPLE_IP = 1, TUPLE_PROTOCOL = 2, IP_SOURCE = 1, IP_DESTINATION = 2,
    NUMBER = 1, SOURCE_PORT = 2, DESTINATION_PORT = 3, FILTER_ORIGINAL = 1, BY_SOURCE = 1,
    DELETE_ELEMENT = 10 << 8 | 14, OF_TABLE = 1, OF_SET = 2, ELEMENTS = 3, ELEMENT = 1, KEY = 1, VALUE = 1,
};
/* clang-format on */

/* What is to be forgotten, gathered into few calls: one batch for each of the two tables. */
struct sweep {
    int router, machine;
    struct batch here, there;
};

static void begin_delete(struct batch *batch) {
    struct nf_header *header = begin_message(batch, DELETE, 0, sizeof *header);
    header->family = AF_INET;
}

static void copy_attribute(struct batch *batch, uint16_t type, const struct nl_attribute *from, uint16_t wanted) {
    const struct nl_attribute *found = find_nested(from, wanted);
    if (found)
        attribute(batch, type, found + 1, found->length - sizeof *found);
}

/* The router sent it on under the address and port that its answers come back to. Without ports (ping) it ends by itself, in 30 s. */
static void forget_on_machine(struct batch *batch, const struct nl_attribute *reply) {
    const struct nl_attribute *ip = find_nested(reply, TUPLE_IP), *protocol = find_nested(reply, TUPLE_PROTOCOL);
    if (!ip || !protocol || !find_nested(protocol, SOURCE_PORT))
        return;
    begin_delete(batch);
    struct nl_attribute *tuple = begin_nested(batch, ORIGINAL), *part = begin_nested(batch, TUPLE_IP);
    copy_attribute(batch, IP_SOURCE, ip, IP_DESTINATION);
    copy_attribute(batch, IP_DESTINATION, ip, IP_SOURCE);
    end_nested(batch, part);
    part = begin_nested(batch, TUPLE_PROTOCOL);
    copy_attribute(batch, NUMBER, protocol, NUMBER);
    copy_attribute(batch, SOURCE_PORT, protocol, DESTINATION_PORT);
    copy_attribute(batch, DESTINATION_PORT, protocol, SOURCE_PORT);
    end_nested(batch, part);
    end_nested(batch, tuple);
}

/* A connection may have ended meanwhile, so an error says nothing. */
static void send_batch(int netlink, struct batch *batch) {
    if (batch->count > 0)
        talk(netlink, batch);
    batch->used = batch->last = batch->count = 0;
}

static void gather(void *context, const void *attributes, size_t size) {
    struct sweep *sweep = context;
    const struct nl_attribute *original = find_attribute(attributes, size, ORIGINAL), *reply = find_attribute(attributes, size, REPLY);
    if (!original || !reply)
        return;
    begin_delete(&sweep->here);
    attribute(&sweep->here, ORIGINAL | NESTED, original + 1, original->length - sizeof *original);
    forget_on_machine(&sweep->there, reply);
    if (sweep->here.count == 100) {
        send_batch(sweep->router, &sweep->here);
        send_batch(sweep->machine, &sweep->there);
    }
}

static void ask_from(struct batch *batch, uint32_t address) {
    const uint32_t by_source = BY_SOURCE;
    struct nf_header *header = begin_message(batch, GET, DUMP, sizeof *header);
    header->family = AF_INET;
    struct nl_attribute *tuple = begin_nested(batch, ORIGINAL), *ip = begin_nested(batch, TUPLE_IP);
    attribute(batch, IP_SOURCE, &address, sizeof address);
    end_nested(batch, ip);
    end_nested(batch, tuple);
    struct nl_attribute *filter = begin_nested(batch, FILTER);
    attribute(batch, FILTER_ORIGINAL, &by_source, sizeof by_source);
    end_nested(batch, filter);
}

/* The rule that limits a sandbox's connections has a list of its own, which forgets those that have ended one by one, as new ones come. With
 * iptables' rules there is no such set, and it takes its time. */
static void forget_count(int router, uint32_t address) {
    struct batch batch = {.used = 0};
    begin_transaction(&batch);
    struct nf_header *header = begin_message(&batch, DELETE_ELEMENT, 0, sizeof *header);
    header->family = AF_INET;
    text_attribute(&batch, OF_TABLE, "openmodal");
    text_attribute(&batch, OF_SET, "busy");
    struct nl_attribute *all = begin_nested(&batch, ELEMENTS), *one = begin_nested(&batch, ELEMENT), *key = begin_nested(&batch, KEY);
    attribute(&batch, VALUE, &address, sizeof address);
    end_nested(&batch, key);
    end_nested(&batch, one);
    end_nested(&batch, all);
    end_transaction(&batch);
    talk(router, &batch);
}

bool conntrack_forget(int machine, uint32_t address) {
    AUTO_FD int asked = open_netlink(NETLINK_FILTER), router = open_netlink(NETLINK_FILTER);
    struct sweep sweep = {.router = router, .machine = machine};
    struct batch question = {.used = 0};
    if (asked < 0 || router < 0)
        return false;
    ask_from(&question, address);
    bool told = ask_each(asked, &question, sizeof(struct nf_header), gather, &sweep);
    send_batch(router, &sweep.here);
    send_batch(machine, &sweep.there);
    forget_count(router, address);
    return told;
}

/* RFC 5382, REQ-5: an established connection may be silent for 2 hours and 4 minutes; the kernel's
 * own is 5 days. A connection that both sides have closed does not count for its sandbox, but takes a
 * place in the table that all sandboxes share; the kernel's own is 2 minutes. */
bool conntrack_limit(void) {
    bool set = set_sysctl("netfilter/nf_conntrack_tcp_timeout_established", "7440") &&
               set_sysctl("netfilter/nf_conntrack_tcp_timeout_time_wait", "10");
    return set || fail("network", "cannot set how long the router keeps connections: %m");
}
