/* Rules of nf_tables by hand, sent as one transaction: either all hold or none. See wall.h.
 *
 * Not routes: a socket that is bound to an interface, or a datagram with IP_PKTINFO, is sent on the link when the routing table
 * refuses its address (ip_route_output_key_hash_rcu). The output hook sees every packet that the kernel makes; those of another
 * kernel (gVisor's) come through a packet socket, and only the interfaces' egress hook (Linux 5.16) sees them. */
#include "kernel.h"
#include "wall.h"

#include "fail.h"
#include "netlink.h"
#include "util.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

/* ---- nf_tables' words ---- */

/* clang-format off */
enum {
    SUBSYSTEM = 10, NEW_TABLE = SUBSYSTEM << 8, NEW_CHAIN = SUBSYSTEM << 8 | 3,
    NEW_RULE = SUBSYSTEM << 8 | 6, FAMILY_INET = 1, FAMILY_NETDEV = 5, FLAG_CREATE = 0x400, FLAG_APPEND = 0x800,
    TABLE_NAME = 1, CHAIN_TABLE = 1, CHAIN_NAME = 3, CHAIN_HOOK = 4, CHAIN_POLICY = 5, CHAIN_TYPE = 7, HOOK_NUMBER = 1, HOOK_PRIORITY = 2,
    HOOK_DEVICES = 4, DEVICE_NAME = 1, LOCAL_OUT = 3, EGRESS = 1,
    RULE_TABLE = 1, RULE_CHAIN = 2, RULE_EXPRESSIONS = 4, ELEMENT = 1, EXPRESSION_NAME = 1, EXPRESSION_DATA = 2,
    DATA_VALUE = 1, DATA_VERDICT = 2, VERDICT_CODE = 1, DROP = 0, ACCEPT = 1, REGISTER = 1, VERDICT_REGISTER = 0,
    META_REGISTER = 1, META_KEY = 2, KEY_OIF = 5, KEY_NFPROTO = 15, KEY_L4PROTO = 16, PROTO_IPV6 = 10, ETHERTYPE_IPV4 = 0x800, ETHERTYPE_ARP = 0x806,
    COMPARE_REGISTER = 1, COMPARE_OPERATOR = 2, COMPARE_DATA = 3, EQUAL = 0, RANGE_LAST = 4,
    PAYLOAD_REGISTER = 1, PAYLOAD_BASE = 2, PAYLOAD_OFFSET = 3, PAYLOAD_LENGTH = 4, LINK = 0, NETWORK = 1, TRANSPORT = 2,
    IMMEDIATE_REGISTER = 1, IMMEDIATE_DATA = 2, REJECT_TYPE = 1, REJECT_CODE = 2, REJECT_ICMP = 2, PROHIBITED = 3,
};
/* clang-format on */

static const char table[] = "openmodal", chain[] = "output";

/* Where the rules stand: in the way of this kernel's own packets, or, "around", at every interface. */
struct rules {
    struct batch batch;
    bool around;
};

static void *filter_message(struct rules *rules, uint16_t type, uint16_t flags) {
    struct nf_header *header = begin_message(&rules->batch, type, flags, sizeof *header);
    header->family = rules->around ? FAMILY_NETDEV : FAMILY_INET;
    return header;
}

static void big(struct batch *batch, uint16_t type, uint32_t value) {
    value = htonl(value);
    attribute(batch, type, &value, sizeof value);
}

/* ---- expressions ---- */

struct expression {
    struct nl_attribute *element, *data;
};

static struct expression begin(struct batch *batch, const char *name) {
    struct expression made = {.element = begin_nested(batch, ELEMENT)};
    text_attribute(batch, EXPRESSION_NAME, name);
    made.data = begin_nested(batch, EXPRESSION_DATA);
    return made;
}

static void end(struct batch *batch, struct expression made) {
    end_nested(batch, made.data);
    end_nested(batch, made.element);
}

static void value(struct batch *batch, uint16_t type, const void *bytes, size_t size) {
    struct nl_attribute *data = begin_nested(batch, type);
    attribute(batch, DATA_VALUE, bytes, size);
    end_nested(batch, data);
}

static void compare(struct batch *batch, const void *bytes, size_t size) {
    struct expression made = begin(batch, "cmp");
    big(batch, COMPARE_REGISTER, REGISTER);
    big(batch, COMPARE_OPERATOR, EQUAL);
    value(batch, COMPARE_DATA, bytes, size);
    end(batch, made);
}

static void meta_is(struct batch *batch, uint32_t key, const void *bytes, size_t size) {
    struct expression made = begin(batch, "meta");
    big(batch, META_REGISTER, REGISTER);
    big(batch, META_KEY, key);
    end(batch, made);
    compare(batch, bytes, size);
}

static void load(struct batch *batch, uint32_t base, uint32_t offset, uint32_t length) {
    struct expression made = begin(batch, "payload");
    big(batch, PAYLOAD_REGISTER, REGISTER);
    big(batch, PAYLOAD_BASE, base);
    big(batch, PAYLOAD_OFFSET, offset);
    big(batch, PAYLOAD_LENGTH, length);
    end(batch, made);
}

static void load_destination(struct batch *batch) {
    load(batch, NETWORK, 16, 4);
}

static void within(struct batch *batch, const struct prefix *prefix) {
    struct expression made = begin(batch, "range");
    big(batch, COMPARE_REGISTER, REGISTER);
    big(batch, COMPARE_OPERATOR, EQUAL);
    value(batch, COMPARE_DATA, &prefix->first, sizeof prefix->first);
    value(batch, RANGE_LAST, &prefix->last, sizeof prefix->last);
    end(batch, made);
}

static void decide(struct batch *batch, uint32_t code) {
    struct expression made = begin(batch, "immediate");
    big(batch, IMMEDIATE_REGISTER, VERDICT_REGISTER);
    struct nl_attribute *data = begin_nested(batch, IMMEDIATE_DATA), *verdict = begin_nested(batch, DATA_VERDICT);
    big(batch, VERDICT_CODE, code);
    end_nested(batch, verdict);
    end_nested(batch, data);
    end(batch, made);
}

/* Not dropped in silence where there is a way to tell: a program hears at once that it may not. */
static void refuse_it(struct rules *rules) {
    const uint8_t code = PROHIBITED;
    struct batch *batch = &rules->batch;
    if (rules->around)
        return decide(batch, DROP);
    struct expression made = begin(batch, "reject");
    big(batch, REJECT_TYPE, REJECT_ICMP);
    attribute(batch, REJECT_CODE, &code, sizeof code);
    end(batch, made);
}

/* ---- rules ---- */

static struct nl_attribute *begin_rule(struct rules *rules) {
    filter_message(rules, NEW_RULE, FLAG_CREATE | FLAG_APPEND);
    text_attribute(&rules->batch, RULE_TABLE, table);
    text_attribute(&rules->batch, RULE_CHAIN, chain);
    return begin_nested(&rules->batch, RULE_EXPRESSIONS);
}

static void name_interfaces(struct batch *batch) {
    struct if_nameindex *all = if_nameindex();
    struct nl_attribute *names = begin_nested(batch, HOOK_DEVICES);
    for (struct if_nameindex *one = all; one && one->if_index; one++)
        if (one->if_index != LOOPBACK)
            text_attribute(batch, DEVICE_NAME, one->if_name);
    end_nested(batch, names);
    if_freenameindex(all);
}

static void make_chain(struct rules *rules) {
    struct batch *batch = &rules->batch;
    filter_message(rules, NEW_TABLE, FLAG_CREATE);
    text_attribute(batch, TABLE_NAME, table);
    filter_message(rules, NEW_CHAIN, FLAG_CREATE);
    text_attribute(batch, CHAIN_TABLE, table);
    text_attribute(batch, CHAIN_NAME, chain);
    struct nl_attribute *hook = begin_nested(batch, CHAIN_HOOK);
    big(batch, HOOK_NUMBER, rules->around ? EGRESS : LOCAL_OUT);
    big(batch, HOOK_PRIORITY, 0);
    if (rules->around)
        name_interfaces(batch);
    end_nested(batch, hook);
    big(batch, CHAIN_POLICY, rules->around ? DROP : ACCEPT);
    text_attribute(batch, CHAIN_TYPE, "filter");
}

static void allow_loopback(struct rules *rules) {
    const uint32_t index = LOOPBACK;
    struct nl_attribute *rule = begin_rule(rules);
    meta_is(&rules->batch, KEY_OIF, &index, sizeof index);
    decide(&rules->batch, ACCEPT);
    end_nested(&rules->batch, rule);
}

static void refuse_ipv6(struct rules *rules) {
    const uint8_t protocol = PROTO_IPV6;
    struct nl_attribute *rule = begin_rule(rules);
    meta_is(&rules->batch, KEY_NFPROTO, &protocol, sizeof protocol);
    refuse_it(rules);
    end_nested(&rules->batch, rule);
}

/* By what the frame itself says: whoever sends through a packet socket tells the kernel what it likes. */
static void allow_frames(struct rules *rules, uint16_t ethertype) {
    const uint16_t type = htons(ethertype);
    struct nl_attribute *rule = begin_rule(rules);
    load(&rules->batch, LINK, 12, sizeof type);
    compare(&rules->batch, &type, sizeof type);
    decide(&rules->batch, ACCEPT);
    end_nested(&rules->batch, rule);
}

static void allow_resolver(struct rules *rules, uint32_t address, uint8_t protocol) {
    const uint16_t port = htons(53);
    struct batch *batch = &rules->batch;
    struct nl_attribute *rule = begin_rule(rules);
    meta_is(batch, KEY_L4PROTO, &protocol, sizeof protocol);
    load_destination(batch);
    compare(batch, &address, sizeof address);
    load(batch, TRANSPORT, 2, 2);
    compare(batch, &port, sizeof port);
    decide(batch, ACCEPT);
    end_nested(batch, rule);
}

static void refuse(struct rules *rules, const struct prefix *prefix) {
    struct nl_attribute *rule = begin_rule(rules);
    load_destination(&rules->batch);
    within(&rules->batch, prefix);
    refuse_it(rules);
    end_nested(&rules->batch, rule);
}

static void make_rules(struct rules *rules, const struct wall *wall) {
    make_chain(rules);
    if (!rules->around) {
        allow_loopback(rules);
        refuse_ipv6(rules);
    }
    for (size_t i = 0; i < wall->resolvers; i++) {
        allow_resolver(rules, wall->resolver[i], IPPROTO_UDP);
        allow_resolver(rules, wall->resolver[i], IPPROTO_TCP);
    }
    for (size_t i = 0; i < wall->denials; i++)
        refuse(rules, &wall->denied[i]);
    if (rules->around) {
        allow_frames(rules, ETHERTYPE_ARP);
        allow_frames(rules, ETHERTYPE_IPV4);
    }
}

bool wall_raise(const struct wall *wall, bool around) {
    AUTO_FD int netlink = open_netlink(NETLINK_FILTER);
    struct rules rules = {.around = around};
    if (netlink < 0)
        return false;
    begin_transaction(&rules.batch);
    make_rules(&rules, wall);
    end_transaction(&rules.batch);
    return talk(netlink, &rules.batch) ||
           fail(NULL, "cannot load the rules of the network: %m; the kernel needs nf_tables and %s", around ? "its egress hook (Linux 5.16)" : "nft_reject_inet");
}

/* ---- addresses ---- */

bool wall_deny(struct wall *wall, const char *text) {
    char address[INET_ADDRSTRLEN] = "";
    const char *slash = strchr(text, '/');
    size_t length = slash ? (size_t)(slash - text) : strlen(text);
    uint64_t bits = 32;
    struct in_addr base;
    if (length >= sizeof address || wall->denials == MOST_DENIED || (slash && (!parse_u64(slash + 1, &bits) || bits > 32)))
        return false;
    memcpy(address, text, length);
    if (inet_pton(AF_INET, address, &base) != 1)
        return false;
    uint32_t mask = bits ? htonl(UINT32_MAX << (32 - bits)) : 0;
    wall->denied[wall->denials++] = (struct prefix){base.s_addr & mask, base.s_addr | ~mask};
    return true;
}

void wall_resolve(struct wall *wall, char *resolv_conf) {
    for (char *line; (line = strsep(&resolv_conf, "\n")) && wall->resolvers < MOST_RESOLVERS;) {
        char *rest = line, *word = strsep(&rest, " \t");
        struct in_addr address;
        if (rest && strcmp(word, "nameserver") == 0 && inet_pton(AF_INET, rest + strspn(rest, " \t"), &address) == 1)
            wall->resolver[wall->resolvers++] = address.s_addr;
    }
}
