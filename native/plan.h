/* The plan: what the SDK tells the box to make (docs/protocol.md, section 2). Parsed once, never changed. */
#pragma once

#include <sched.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Strings in the order they came; `item` is NULL-terminated, so it serves as argv or environment. */
struct strings {
    char **item;
    size_t count;
};

struct setting { /* `set`, `oom`, `weight`: a file, and what to write into it, to look for in it, or the most that it may say */
    char *path, *value;
};

struct extra_mount { /* `bind`, `volume` */
    char *source, *target;
    char *sub; /* of a volume: what is shown of it; NULL: it is none */
    bool writable;
    bool owned; /* the source's owner is the sandbox's root, and nobody else's files are anybody's */
    uint32_t uid, gid;
};

struct resource_limit { /* `rlimit` */
    int number;
    uint64_t soft, hard;
};

#define LIST_OF(type)                                                                                                          \
    struct {                                                                                                                   \
        type *item;                                                                                                            \
        size_t count;                                                                                                          \
    }

enum plan_ids { IDS_NONE, IDS_RANGE, IDS_SINGLE, IDS_SUB };
enum plan_net { NET_UNSET, NET_NONE, NET_ROUTER, NET_HOST, NET_EXEC, NET_GATE };
enum { WEAKEN_SECCOMP = 1, WEAKEN_CAPS = 2, WEAKEN_NNP = 4, WEAKEN_MASKS = 8, WEAKEN_IDS = 16 };
enum { MAY_LACK_SECCOMP = 1, MAY_LACK_NETWORK = 2 };

struct plan {
    char *id, *hostname, *dir, *record, *upper, *work, *slots, *router, *rules, *resolv, *hosts, *thaw, *user, *workdir, *disk;
    char *runtime, *runtime_config, *cpuinfo, *network, *names;
    struct strings lower, uid_map, gid_map, lock, net_exec, firewall, unreachable, cgroup, kill, device, env, arg, runtime_arg, counted, at_end;
    LIST_OF(struct setting) set, show_cgroup;
    LIST_OF(struct extra_mount) bind;
    LIST_OF(struct resource_limit) rlimit;
    struct setting oom, weight;
    enum plan_ids ids;
    enum plan_net net;
    uint64_t timeout_ms, idle_ms, lease_ms, memory, main_flags, owner, guard, sockets, group;
    cpu_set_t cpus; /* empty: all */
    bool keep, hold, reuse, rests, cut;
    unsigned may_lack; /* controls that are applied if they can be; all others must be */
    unsigned weaken;
};

/* Take the plan apart; `bytes` is kept and cut into pieces, it must live as long as the plan. False: see fail.h. */
bool plan_parse(struct plan *plan, char *bytes, size_t size);
