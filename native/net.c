/* The sandbox's interface, and the verb that makes the router; see net.h. */
#include "kernel.h"
#include "net.h"

#include "conntrack.h"
#include "fail.h"
#include "ids.h"
#include "netlink.h"
#include "scan.h"
#include "util.h"
#include "verbs.h"
#include "wall.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>

/* Numbers of interfaces are ours to choose: so one batch can name what it makes. The low ones may be taken: where the machine has loaded ipip,
 * sit, gre or their like, each network namespace begins with an interface of theirs. */
enum { SANDBOX_ETH0 = 100, INDEX_BASE = 0x10000 };
#define GATEWAY 0x0afb0001U /* 10.251.0.1 */

uint32_t net_address(uint32_t slot) {
    return htonl(0x0afb0000U + slot);
}

static void name_of(uint32_t slot, char name[IF_NAMESIZE]) {
    snprintf(name, IF_NAMESIZE, "om%u", slot);
}

/* ---- one sandbox ---- */

int net_enter_router(const char *path) {
    AUTO_FD int router = open(path, O_RDONLY | O_CLOEXEC);
    if (router < 0 || setns(router, CLONE_NEWNET) != 0) {
        fail("network", "cannot enter the router's network namespace %s: %m; `openmodal doctor` tells how to set it up", path);
        return -1;
    }
    return open_netlink(NETLINK_ROUTES);
}

void net_remove(int router, uint32_t slot) {
    struct batch batch = {.used = 0};
    delete_link(&batch, INDEX_BASE + (int)slot);
    talk(router, &batch);
}

static bool make_interface(int router, uint32_t slot, const char *name, int network, uint32_t group) {
    uint32_t mtu = mtu_of("up0");
    int index = INDEX_BASE + (int)slot;
    for (int attempt = 0; attempt < 2; attempt++) {
        struct batch batch = {.used = 0};
        make_veth(&batch, (struct end){name, index, mtu}, (struct end){"eth0", SANDBOX_ETH0, mtu}, network);
        set_group(&batch, index, group);
        add_route(&batch, index, net_address(slot), 32, 0);
        if (talk(router, &batch))
            return true;
        if (errno != EEXIST) /* else a killed supervisor's: the kernel removes it with its sandbox's namespace, a bit later */
            return false;
        net_remove(router, slot);
    }
    return false;
}

bool net_attach(int router, int inside, uint32_t slot, int network, uint32_t group) {
    char name[IF_NAMESIZE];
    name_of(slot, name);
    if (!make_interface(router, slot, name, network, group))
        return fail("network", "cannot make the sandbox's network interface %s: %m", name);
    struct batch batch = {.used = 0};
    bring_up(&batch, SANDBOX_ETH0);
    add_address(&batch, SANDBOX_ETH0, net_address(slot), 32);
    add_route(&batch, SANDBOX_ETH0, htonl(GATEWAY), 32, 0);
    add_route(&batch, SANDBOX_ETH0, 0, 0, htonl(GATEWAY));
    return talk(inside, &batch) || fail("network", "cannot configure the sandbox's network: %m");
}

bool net_regroup(int router, uint32_t slot, uint32_t group) {
    struct batch batch = {.used = 0};
    set_group(&batch, INDEX_BASE + (int)slot, group);
    return talk(router, &batch) || fail("network", "cannot change the group of the sandbox's interface: %m");
}

bool net_forget(int router, int machine, uint32_t slot) {
    if (net_is_attached(slot)) /* what its sockets still send would be put into the table again */
        net_remove(router, slot);
    return conntrack_forget(machine, net_address(slot));
}

bool net_is_silent(int router, uint32_t slot) {
    uint64_t packets = 0;
    return received_by(router, INDEX_BASE + (int)slot, &packets) && packets == 0;
}

/* Looking through a table of connections takes milliseconds: not for a sandbox that never sent a packet. */
bool net_detach(int router, int machine, uint32_t slot) {
    bool silent = net_is_silent(router, slot);
    net_remove(router, slot);
    return silent || conntrack_forget(machine, net_address(slot));
}

bool net_is_attached(uint32_t slot) {
    char name[IF_NAMESIZE];
    name_of(slot, name);
    return index_of(name) != 0;
}

bool net_prepare(int inside, uint32_t first_gid, uint32_t last_gid, bool strict) {
    char pingers[32];
    snprintf(pingers, sizeof pingers, "%u %u", first_gid, last_gid);
    bool set = set_sysctl("ipv4/ping_group_range", pingers) && set_sysctl("ipv4/ip_unprivileged_port_start", "0") &&
               set_sysctl("ipv6/conf/all/disable_ipv6", "1") && set_sysctl("ipv6/conf/default/disable_ipv6", "1") &&
               set_sysctl("ipv6/conf/lo/disable_ipv6", "0"); /* ::1, which /etc/hosts names */
    if (!set && strict)
        return fail("network", "cannot set the sandbox's network settings: %m");
    struct batch batch = {.used = 0};
    bring_up(&batch, LOOPBACK);
    return talk(inside, &batch) || fail("network", "cannot bring up the sandbox's lo: %m");
}

/* ---- the verb router ---- */

#define UPLINK "openmodal0"

/* The interface of the machine's default route, from /proc/net/route: name, destination 0, …, mask 0. */
static uint32_t default_mtu(void) {
    AUTO_FD int fd = open("/proc/net/route", O_RDONLY | O_CLOEXEC);
    char table[8192], name[IF_NAMESIZE];
    ssize_t size = fd < 0 ? -1 : read(fd, table, sizeof table - 1);
    table[size > 0 ? size : 0] = '\0';
    for (char *line = table; line; line = strchr(line, '\n')) {
        line += strspn(line, "\n");
        unsigned destination = 1;
        if (scan(line, "%15s %x", name, &destination) == 2 && destination == 0)
            return mtu_of(name);
    }
    return 1500;
}

/* A prefix or an address without one, in network byte order. */
static bool parse_address(const char *word, uint32_t *address, uint8_t *prefix) {
    char copy[32];
    uint64_t bits = 32;
    snprintf(copy, sizeof copy, "%s", word);
    char *slash = strchr(copy, '/');
    if (slash) {
        *slash = '\0';
        if (!parse_u64(slash + 1, &bits) || bits > 32)
            return false;
    }
    *prefix = (uint8_t)bits;
    return inet_pton(AF_INET, copy, address) == 1;
}

static bool remove_uplink(void) {
    AUTO_FD int netlink = open_netlink(NETLINK_ROUTES);
    struct batch batch = {.used = 0};
    int index = index_of(UPLINK);
    delete_link(&batch, index);
    /* ENODEV: the kernel was quicker, which removes it with the router's namespace. */
    return index == 0 || (netlink >= 0 && (talk(netlink, &batch) || errno == ENODEV)) ||
           fail("network", "cannot remove " UPLINK ": %m");
}

/* A namespace is kept by a mount of its file; an ordinary empty file is what it is mounted on. */
static bool keep_namespace(const char *source, const char *path) {
    int fd = open(path, O_RDONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return fail(NULL, "cannot make %s: %m", path);
    close(fd);
    if (mount(source, path, NULL, MS_BIND, NULL) == 0)
        return true;
    fail(NULL, "cannot keep the network namespace at %s: %m", path);
    unlink(path);
    return false;
}

static bool forget_namespace(const char *path) {
    while (umount2(path, MNT_DETACH) == 0)
        ;
    if (errno != EINVAL && errno != ENOENT)
        return fail(NULL, "cannot unmount %s: %m", path);
    return unlink(path) == 0 || errno == ENOENT || fail(NULL, "cannot remove %s: %m", path);
}

static bool set_router_sysctls(void) {
    static const char *const settings[][2] = {
        {"ipv4/ip_forward", "1"},
        {"ipv4/conf/all/rp_filter", "1"},
        {"ipv4/conf/default/rp_filter", "1"},
        {"ipv4/conf/all/send_redirects", "0"},
        {"ipv4/conf/default/send_redirects", "0"},
        {"ipv4/conf/all/accept_redirects", "0"},
        {"ipv4/conf/default/accept_redirects", "0"},
        {"ipv4/conf/all/accept_source_route", "0"},
        {"ipv4/conf/default/accept_source_route", "0"},
        {"ipv6/conf/all/disable_ipv6", "1"},
        {"ipv6/conf/default/disable_ipv6", "1"},
    };
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++)
        if (!set_sysctl(settings[i][0], settings[i][1]))
            return fail("network", "cannot set net/%s in the router: %m", settings[i][0]);
    return true;
}

bool net_refuse(const struct strings *prefixes, const char *resolv) {
    struct wall wall = {.denials = 0};
    for (size_t i = 0; i < prefixes->count; i++)
        if (!wall_deny(&wall, prefixes->item[i]))
            return fail("plan", "unreachable must be like 10.0.0.0/8, %d of them at most, not %.40s", MOST_DENIED, prefixes->item[i]);
    char *servers = must_copy(resolv ? resolv : "");
    wall_resolve(&wall, servers);
    free(servers);
    return wall_raise(&wall, false);
}

struct uplink {
    uint32_t host, inside, gateway, mtu;
};

static bool parse_uplink(char **argv, struct uplink *uplink) {
    uint8_t bits;
    return (parse_address(argv[0], &uplink->host, &bits) && parse_address(argv[1], &uplink->inside, &bits) &&
            parse_address(argv[2], &uplink->gateway, &bits)) ||
           fail("plan", "an address is not like 10.251.0.1");
}

/* In the router's namespace; `outside` is a netlink socket on the machine, whose end of the pair has its name at once. */
static bool make_inside(const struct uplink *uplink, int router, int outside) {
    struct batch pair = {.used = 0}, inner = {.used = 0};
    make_veth(&pair, (struct end){UPLINK, 0, uplink->mtu}, (struct end){"up0", 0, uplink->mtu}, router);
    if (!set_router_sysctls())
        return false;
    if (!talk(outside, &pair))
        return fail("network", "cannot make " UPLINK ": %m");
    AUTO_FD int netlink = open_netlink(NETLINK_ROUTES);
    int up0 = index_of("up0");
    bring_up(&inner, LOOPBACK);
    bring_up(&inner, up0);
    add_address(&inner, LOOPBACK, uplink->gateway, 32);
    add_address(&inner, up0, uplink->inside, 30);
    add_route(&inner, up0, 0, 0, uplink->host);
    return talk(netlink, &inner) || fail("network", "cannot configure the router: %m");
}

/* No route to the sandboxes: the router hides their addresses behind its own, and the machine may have such addresses elsewhere. */
static bool make_outside(const struct uplink *uplink, int outside) {
    struct batch batch = {.used = 0};
    int index = index_of(UPLINK);
    add_address(&batch, index, uplink->host, 30);
    return (talk(outside, &batch) && set_sysctl("ipv4/conf/" UPLINK "/rp_filter", "1") &&
            set_sysctl("ipv6/conf/" UPLINK "/disable_ipv6", "1")) ||
           fail("network", "cannot configure " UPLINK ": %m");
}

/* From the router's network namespace back to the machine's. */
static bool join(const struct uplink *uplink, int router, int machine, int outside) {
    if (!make_inside(uplink, router, outside))
        return false;
    return (setns(machine, CLONE_NEWNET) == 0 || fail(NULL, "cannot return to the machine's network: %m")) && make_outside(uplink, outside);
}

static int router_make(char **argv) {
    struct uplink uplink = {.mtu = default_mtu()};
    AUTO_FD int machine = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    AUTO_FD int outside = open_netlink(NETLINK_ROUTES);
    if (!parse_uplink(argv + 1, &uplink) || outside < 0 || !forget_namespace(argv[0]) || !remove_uplink())
        return 1;
    if (unshare(CLONE_NEWNET) != 0)
        return !fail(NULL, "cannot make a network namespace: %m");
    AUTO_FD int router = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    char source[40];
    snprintf(source, sizeof source, "/proc/self/fd/%d", router);
    return !(join(&uplink, router, machine, outside) && keep_namespace(source, argv[0]));
}

/* Its link with the machine is gone, or somebody has changed it: a new one for the namespace that there is. */
static int router_join(char **argv) {
    struct uplink uplink = {.mtu = default_mtu()};
    AUTO_FD int machine = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    AUTO_FD int router = open(argv[0], O_RDONLY | O_CLOEXEC);
    AUTO_FD int outside = open_netlink(NETLINK_ROUTES);
    if (!parse_uplink(argv + 1, &uplink) || outside < 0 || !remove_uplink())
        return 1;
    if (setns(router, CLONE_NEWNET) != 0)
        return !fail(NULL, "cannot enter the network namespace %s: %m", argv[0]);
    return !join(&uplink, router, machine, outside);
}

static int router_commit(char **argv) {
    return !(forget_namespace(argv[1]) && keep_namespace(argv[0], argv[1]) && forget_namespace(argv[0]));
}

/* Its sysctls are there as soon as its rules are loaded. */
static int router_limit(char **argv) {
    AUTO_FD int router = net_enter_router(argv[0]);
    return !(router >= 0 && conntrack_limit());
}

struct tables {
    int machine, router;
};

static bool clean_slot(void *context, uint32_t slot) {
    const struct tables *tables = context;
    return net_forget(tables->router, tables->machine, slot);
}

/* What killed supervisors left in the tables; prints the number of slots. */
static int router_sweep(char **argv) {
    AUTO_FD int machine = open_netlink(NETLINK_FILTER);
    AUTO_FD int router = machine < 0 ? -1 : net_enter_router(argv[0]);
    struct tables tables = {.machine = machine, .router = router};
    int cleaned = router < 0 ? -1 : slots_clean(argv[1], clean_slot, &tables);
    return cleaned < 0 || dprintf(1, "%d\n", cleaned) < 0;
}

static int router_remove(char **argv) {
    return !(forget_namespace(argv[0]) && remove_uplink());
}

int verb_router(int argc, char **argv) {
    static const struct {
        const char *name;
        int words;
        int (*run)(char **);
    } steps[] = {{"make", 4, router_make},     {"join", 4, router_join},   {"limit", 1, router_limit},
                 {"commit", 2, router_commit}, {"sweep", 2, router_sweep}, {"remove", 1, router_remove}};
    for (size_t i = 0; argc >= 2 && i < sizeof steps / sizeof *steps; i++) {
        if (strcmp(argv[1], steps[i].name) != 0 || argc - 2 != steps[i].words)
            continue;
        int status = steps[i].run(argv + 2);
        if (status != 0)
            dprintf(2, "error %s\n", failure());
        return status;
    }
    dprintf(2, "error plan say router make|join PATH HOST_ADDRESS ROUTER_ADDRESS GATEWAY, router limit PATH, router commit NEW "
               "PATH, router sweep PATH SLOTS, or router remove PATH\n");
    return 2;
}
