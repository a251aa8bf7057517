/* The few sentences of rtnetlink that sandboxes need. Addresses are in network byte order. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { LOOPBACK = 1 }; /* lo is the first interface of every network namespace */

/* Several messages that are sent at once; each is acknowledged. */
struct batch {
    char bytes[16384]; /* of these a veth takes 200, and a wall (wall.c) with all the rules that it may have 13,000 */
    size_t used, last; /* `last`: where the message that is being made starts */
    unsigned count;
};

enum { NETLINK_ROUTES = 0, NETLINK_SOCKETS = 4, NETLINK_FILTER = 12 };

/* A socket to speak in this process's network namespace, wherever the process goes afterwards. -1: see fail.h. */
int open_netlink(int protocol);

/* Send all and read the answers; false with errno set to the first error. The kernel answers while it is being asked. */
bool talk(int netlink, const struct batch *batch);

/* What messages are made of. `size` bytes after the header are returned, zeroed; an attribute without a value can be filled with others
 * and is then ended. */
struct nl_attribute {
    uint16_t length, type;
};
void *begin_message(struct batch *batch, uint16_t type, uint16_t flags, size_t size);
struct nl_attribute *attribute(struct batch *batch, uint16_t type, const void *value, size_t size);
void text_attribute(struct batch *batch, uint16_t type, const char *value);
struct nl_attribute *begin_nested(struct batch *batch, uint16_t type); /* marked as such, as netfilter wants it */
void end_nested(struct batch *batch, struct nl_attribute *nested);

enum { NESTED = 0x8000 };
struct nf_header { /* nfgenmsg: what netfilter's messages begin with */
    uint8_t family, version;
    uint16_t resource;
};

/* What stands between these two is one transaction of nf_tables. The kernel answers for the messages between them, not for these. */
void begin_transaction(struct batch *batch);
void end_transaction(struct batch *batch);

/* Send a question, and call `each` with the attributes of every message that answers it, which follow a header of `header` bytes.
 * False with errno set. */
bool ask_each(int netlink, const struct batch *question, size_t header, void (*each)(void *, const void *, size_t), void *context);

/* Among attributes, or in one that holds others: the first of that type; NULL: there is none. Its value follows it. */
const struct nl_attribute *find_attribute(const void *attributes, size_t size, uint16_t type);
const struct nl_attribute *find_nested(const struct nl_attribute *in, uint16_t type);

struct end { /* one end of a veth pair */
    const char *name;
    int index; /* 0: the kernel chooses */
    uint32_t mtu;
};

/* A pair of which `here` is up at once; `there` cannot be, it does not know the other yet. `network`: the namespace of `there`. */
void make_veth(struct batch *batch, struct end here, struct end there, int network);
void delete_link(struct batch *batch, int index);
void bring_up(struct batch *batch, int index);
void set_group(struct batch *batch, int index, uint32_t group); /* of an interface; the router's rules know what it means */
void add_address(struct batch *batch, int index, uint32_t address, uint8_t prefix);

/* `gateway` 0: what is behind the interface is reached directly. `prefix` 0: the default route. */
void add_route(struct batch *batch, int index, uint32_t destination, uint8_t prefix, uint32_t gateway);

/* Every address of that prefix is this namespace's own. lo must be up. */
void add_local(struct batch *batch, uint32_t destination, uint8_t prefix);

/* How many packets have come in over an interface; false with errno set. */
bool received_by(int netlink, int index, uint64_t *packets);

uint32_t mtu_of(const char *name); /* 1500 when there is no such interface */
int index_of(const char *name);    /* 0 when there is no such interface */

/* `name` is below /proc/sys/net, which shows the namespace of whoever looks. What the kernel does not have is not set. */
bool set_sysctl(const char *name, const char *value);
