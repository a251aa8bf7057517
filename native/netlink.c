/* Netlink by hand: a message is a few structures and attributes in a row. Own definitions: musl has no linux/rtnetlink.h. */
#include "kernel.h"
#include "netlink.h"

#include "fail.h"
#include "util.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

/* ---- rtnetlink's words ---- */

struct nl_header {
    uint32_t length;
    uint16_t type, flags;
    uint32_t sequence, port;
};
struct nl_link { /* ifinfomsg */
    uint8_t family, pad;
    uint16_t type;
    int32_t index;
    uint32_t flags, change;
};
struct nl_address { /* ifaddrmsg */
    uint8_t family, prefix, flags, scope;
    uint32_t index;
};
struct nl_route { /* rtmsg */
    uint8_t family, dst_len, src_len, tos, table, protocol, scope, type;
    uint32_t flags;
};
struct nl_statistics { /* if_stats_msg */
    uint8_t family, pad[3];
    uint32_t index, mask;
};
struct nl_socket_address {
    uint16_t family, pad;
    uint32_t port, groups;
};
/* clang-format off */
enum {
    REQUEST = 1, ACK = 4, REPLACE = 0x100, EXCLUSIVE = 0x200, CREATE = 0x400,
    ERROR_MESSAGE = 2, DONE = 3, NEW_LINK = 16, DELETE_LINK = 17, NEW_ADDRESS = 20, NEW_ROUTE = 24, GET_STATISTICS = 94,
    NF_TABLES = 10, TRANSACTION_BEGIN = 16, TRANSACTION_END = 17,
    LINK_NAME = 3, LINK_MTU = 4, LINK_INFO = 18, LINK_GROUP = 27, LINK_NET_NS_FD = 28, INFO_KIND = 1, INFO_DATA = 2, VETH_PEER = 1, OF_LINK = 1,
    ADDRESS_ADDRESS = 1, ADDRESS_LOCAL = 2, ROUTE_DST = 1, ROUTE_OIF = 4, ROUTE_GATEWAY = 5,
    TABLE_MAIN = 254, TABLE_LOCAL = 255, PROTOCOL_BOOT = 3, SCOPE_GLOBAL = 0, SCOPE_LINK = 253, SCOPE_HOST = 254, UNICAST = 1, LOCAL = 2,
};
/* clang-format on */

static void *reserve(struct batch *batch, size_t size) {
    void *at = batch->bytes + batch->used;
    memset(at, 0, (size + 3) & ~(size_t)3);
    batch->used += (size + 3) & ~(size_t)3;
    ((struct nl_header *)(void *)(batch->bytes + batch->last))->length = (uint32_t)(batch->used - batch->last);
    return at;
}

void *begin_message(struct batch *batch, uint16_t type, uint16_t flags, size_t size) {
    batch->last = batch->used;
    struct nl_header *header = reserve(batch, sizeof *header);
    header->type = type;
    header->flags = REQUEST | ACK | flags;
    header->sequence = ++batch->count;
    return reserve(batch, size);
}

struct nl_attribute *attribute(struct batch *batch, uint16_t type, const void *value, size_t size) {
    struct nl_attribute *made = reserve(batch, sizeof *made);
    made->type = type;
    made->length = (uint16_t)(sizeof *made + size);
    if (size > 0)
        memcpy(reserve(batch, size), value, size);
    return made;
}

void end_nested(struct batch *batch, struct nl_attribute *nested) {
    nested->length = (uint16_t)(batch->bytes + batch->used - (char *)nested);
}

struct nl_attribute *begin_nested(struct batch *batch, uint16_t type) {
    return attribute(batch, type | NESTED, NULL, 0);
}

void text_attribute(struct batch *batch, uint16_t type, const char *value) {
    attribute(batch, type, value, strlen(value) + 1);
}

static void number(struct batch *batch, uint16_t type, uint32_t value) {
    attribute(batch, type, &value, sizeof value);
}

int open_netlink(int protocol) {
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol);
    if (fd < 0)
        fail(NULL, "cannot open a netlink socket: %m");
    return fd;
}

static bool say(int netlink, const struct batch *batch) {
    struct nl_socket_address kernel = {.family = AF_NETLINK};
    return sendto(netlink, batch->bytes, batch->used, 0, (struct sockaddr *)&kernel, sizeof kernel) == (ssize_t)batch->used;
}

bool talk(int netlink, const struct batch *batch) {
    int error = 0;
    if (!say(netlink, batch))
        return false;
    for (unsigned answered = 0; answered < batch->count;) {
        char answer[4096] __attribute__((aligned(4)));
        ssize_t size = recv(netlink, answer, sizeof answer, 0);
        if (size < 0 && errno == EINTR)
            continue;
        if (size < (ssize_t)(sizeof(struct nl_header) + sizeof(int)))
            return false;
        for (size_t at = 0; at + sizeof(struct nl_header) + sizeof(int) <= (size_t)size;) {
            const struct nl_header *header = (const void *)(answer + at);
            int code = 0;
            memcpy(&code, header + 1, sizeof code);
            if (header->type == ERROR_MESSAGE && code != 0 && error == 0)
                error = -code;
            answered++;
            at += (header->length + 3) & ~3U;
        }
    }
    errno = error;
    return error == 0;
}

static void frame(struct batch *batch, uint16_t type) {
    struct nf_header *header = begin_message(batch, type, 0, sizeof *header);
    header->resource = htons(NF_TABLES);
    ((struct nl_header *)(void *)(batch->bytes + batch->last))->flags = REQUEST;
    batch->count--;
}

void begin_transaction(struct batch *batch) {
    frame(batch, TRANSACTION_BEGIN);
}

void end_transaction(struct batch *batch) {
    frame(batch, TRANSACTION_END);
}

/* ---- answers ---- */

const struct nl_attribute *find_attribute(const void *attributes, size_t size, uint16_t type) {
    for (size_t at = 0; at + sizeof(struct nl_attribute) <= size;) {
        const struct nl_attribute *found = (const void *)((const char *)attributes + at);
        if (found->length < sizeof *found || found->length > size - at)
            return NULL;
        if ((found->type & ~NESTED) == type)
            return found;
        at += (found->length + 3U) & ~3U;
    }
    return NULL;
}

const struct nl_attribute *find_nested(const struct nl_attribute *in, uint16_t type) {
    return find_attribute(in + 1, in->length - sizeof *in, type);
}

/* One datagram of answers. 1: more are to come; 0: that was the last; -1: an error, in errno. */
static int take_answers(const char *answer, size_t size, size_t skip, void (*each)(void *, const void *, size_t), void *context) {
    for (size_t at = 0; at + sizeof(struct nl_header) <= size;) {
        const struct nl_header *header = (const void *)(answer + at);
        if (header->length < sizeof *header || header->length > size - at)
            break;
        size_t length = header->length - sizeof *header;
        if (header->type == DONE || header->type == ERROR_MESSAGE) {
            int code = 0;
            memcpy(&code, header + 1, length < sizeof code ? length : sizeof code);
            errno = -code;
            return code == 0 ? 0 : -1;
        }
        if (length >= skip)
            each(context, (const char *)(header + 1) + skip, length - skip);
        at += (header->length + 3) & ~3U;
    }
    return 1;
}

bool ask_each(int netlink, const struct batch *question, size_t header, void (*each)(void *, const void *, size_t), void *context) {
    char answer[32768] __attribute__((aligned(4)));
    int more = say(netlink, question) ? 1 : -1;
    while (more > 0) {
        ssize_t size = recv(netlink, answer, sizeof answer, 0);
        if (size > 0)
            more = take_answers(answer, (size_t)size, header, each, context);
        else if (size == 0 || errno != EINTR)
            more = -1;
    }
    return more == 0;
}

/* ---- sentences ---- */

void make_veth(struct batch *batch, struct end here, struct end there, int network) {
    struct nl_link *link = begin_message(batch, NEW_LINK, CREATE | EXCLUSIVE, sizeof *link);
    *link = (struct nl_link){.index = here.index, .flags = IFF_UP, .change = IFF_UP};
    text_attribute(batch, LINK_NAME, here.name);
    number(batch, LINK_MTU, here.mtu);
    struct nl_attribute *info = attribute(batch, LINK_INFO, NULL, 0);
    text_attribute(batch, INFO_KIND, "veth");
    struct nl_attribute *data = attribute(batch, INFO_DATA, NULL, 0);
    struct nl_attribute *peer = attribute(batch, VETH_PEER, NULL, 0);
    struct nl_link *other = reserve(batch, sizeof *other);
    other->index = there.index;
    text_attribute(batch, LINK_NAME, there.name);
    number(batch, LINK_MTU, there.mtu);
    number(batch, LINK_NET_NS_FD, (uint32_t)network);
    end_nested(batch, peer);
    end_nested(batch, data);
    end_nested(batch, info);
}

void bring_up(struct batch *batch, int index) {
    struct nl_link *link = begin_message(batch, NEW_LINK, 0, sizeof *link);
    *link = (struct nl_link){.index = index, .flags = IFF_UP, .change = IFF_UP};
}

void set_group(struct batch *batch, int index, uint32_t group) {
    struct nl_link *link = begin_message(batch, NEW_LINK, 0, sizeof *link);
    *link = (struct nl_link){.index = index};
    number(batch, LINK_GROUP, group);
}

void add_address(struct batch *batch, int index, uint32_t address, uint8_t prefix) {
    struct nl_address *new = begin_message(batch, NEW_ADDRESS, CREATE | REPLACE, sizeof *new);
    *new = (struct nl_address){.family = AF_INET, .prefix = prefix, .index = (uint32_t)index};
    number(batch, ADDRESS_LOCAL, address);
    number(batch, ADDRESS_ADDRESS, address);
}

void add_route(struct batch *batch, int index, uint32_t destination, uint8_t prefix, uint32_t gateway) {
    struct nl_route *route = begin_message(batch, NEW_ROUTE, CREATE | REPLACE, sizeof *route);
    *route = (struct nl_route){.family = AF_INET,
                               .dst_len = prefix,
                               .table = TABLE_MAIN,
                               .protocol = PROTOCOL_BOOT,
                               .scope = gateway != 0 ? SCOPE_GLOBAL : SCOPE_LINK,
                               .type = UNICAST};
    if (prefix > 0)
        number(batch, ROUTE_DST, destination);
    if (gateway != 0)
        number(batch, ROUTE_GATEWAY, gateway);
    number(batch, ROUTE_OIF, (uint32_t)index);
}

void add_local(struct batch *batch, uint32_t destination, uint8_t prefix) {
    struct nl_route *route = begin_message(batch, NEW_ROUTE, CREATE | REPLACE, sizeof *route);
    *route = (struct nl_route){.family = AF_INET,
                               .dst_len = prefix,
                               .table = TABLE_LOCAL,
                               .protocol = PROTOCOL_BOOT,
                               .scope = SCOPE_HOST,
                               .type = LOCAL};
    if (prefix > 0)
        number(batch, ROUTE_DST, destination);
    number(batch, ROUTE_OIF, LOOPBACK);
}

static bool ask(const char *name, unsigned long what, struct ifreq *request) {
    AUTO_FD int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    memset(request, 0, sizeof *request);
    snprintf(request->ifr_name, IF_NAMESIZE, "%s", name);
    return fd >= 0 && ioctl(fd, what, request) == 0;
}

uint32_t mtu_of(const char *name) {
    struct ifreq request;
    return ask(name, SIOCGIFMTU, &request) ? (uint32_t)request.ifr_mtu : 1500;
}

int index_of(const char *name) {
    struct ifreq request;
    return ask(name, SIOCGIFINDEX, &request) ? request.ifr_ifindex : 0;
}

bool set_sysctl(const char *name, const char *value) {
    char path[128];
    snprintf(path, sizeof path, "/proc/sys/net/%s", name);
    AUTO_FD int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT) /* a kernel without IPv6 */
        return true;
    return fd >= 0 && write(fd, value, strlen(value)) > 0;
}

void delete_link(struct batch *batch, int index) {
    struct nl_link *link = begin_message(batch, DELETE_LINK, 0, sizeof *link);
    link->index = index;
}

/* rtnl_link_stats64 begins with the number. */
static void note_received(void *context, const void *attributes, size_t size) {
    const struct nl_attribute *found = find_attribute(attributes, size, OF_LINK);
    if (found && found->length >= sizeof *found + sizeof(uint64_t))
        memcpy(context, found + 1, sizeof(uint64_t));
}

bool received_by(int netlink, int index, uint64_t *packets) {
    struct batch batch = {.used = 0};
    struct nl_statistics *asked = begin_message(&batch, GET_STATISTICS, 0, sizeof *asked);
    *asked = (struct nl_statistics){.index = (uint32_t)index, .mask = 1 << (OF_LINK - 1)};
    return ask_each(netlink, &batch, sizeof *asked, note_received, packets);
}
