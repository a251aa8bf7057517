/* Parse the plan defensively: unknown keys, missing keys, repeated keys and odd values are errors that name the key. */
#include "kernel.h"
#include "plan.h"

#include "fail.h"
#include "util.h"

#include <stdlib.h>
#include <string.h>

/* ---- kinds of values ---- */

#define APPEND(list, value)                                                                                                    \
    do {                                                                                                                       \
        (list).item = must_grow((list).item, ((list).count + 1) * sizeof *(list).item);                                        \
        (list).item[(list).count++] = (value);                                                                                 \
    } while (0)

static bool wrong(const char *key, const char *expected) {
    return fail("plan", "%s: expected %s; this plan was not made by this version of openmodal", key, expected);
}

static bool take_text(void *field, const char *key, char *value) {
    char **text = field;
    if (*text)
        return wrong(key, "it once");
    *text = value;
    return true;
}

static bool take_path(void *field, const char *key, char *value) {
    return value[0] == '/' ? take_text(field, key, value) : wrong(key, "an absolute path");
}

static bool take_string(void *field, const char *key, char *value) {
    struct strings *list = field;
    (void)key;
    list->item = must_grow(list->item, (list->count + 2) * sizeof *list->item);
    list->item[list->count++] = value;
    list->item[list->count] = NULL;
    return true;
}

static bool take_paths(void *field, const char *key, char *value) {
    return value[0] == '/' ? take_string(field, key, value) : wrong(key, "an absolute path");
}

static bool take_variable(void *field, const char *key, char *value) {
    return strchr(value, '=') > value ? take_string(field, key, value) : wrong(key, "NAME=value");
}

static bool take_number(void *field, const char *key, char *value) {
    return parse_u64(value, field) || wrong(key, "a decimal number");
}

static bool take_flag(void *field, const char *key, char *value) {
    *(bool *)field = value[0] == '1';
    return strcmp(value, "0") == 0 || strcmp(value, "1") == 0 || wrong(key, "0 or 1");
}

/* ---- values of more parts ---- */

/* Cut `value` at `separator` into exactly `count` parts that are not empty. */
static bool cut(char *value, char separator, char **part, size_t count) {
    for (size_t i = 0; i < count; i++) {
        part[i] = value;
        char *end = i + 1 < count ? strchr(value, separator) : value + strlen(value);
        if (!end || end == value)
            return false;
        value = *end != '\0' ? end + 1 : end;
        *end = '\0';
    }
    return true;
}

static bool take_setting(void *field, const char *key, char *value) {
    struct setting *setting = field;
    char *part[2];
    if (setting->path || value[0] != '/' || !cut(value, ' ', part, 2))
        return wrong(key, "an absolute path, a blank and a word");
    *setting = (struct setting){part[0], part[1]};
    return true;
}

static bool take_set(void *field, const char *key, char *value) {
    struct plan *plan = field;
    struct setting setting = {0};
    if (!take_setting(&setting, key, value))
        return false;
    APPEND(plan->set, setting);
    return true;
}

static bool take_show_cgroup(void *field, const char *key, char *value) {
    struct plan *plan = field;
    struct setting shown = {0};
    if (!take_setting(&shown, key, value))
        return false;
    APPEND(plan->show_cgroup, shown);
    return true;
}

static bool take_bind(void *field, const char *key, char *value) {
    struct plan *plan = field;
    char *part[3];
    if (!cut(value, '\t', part, 3) || part[0][0] != '/' || part[1][0] != '/' || part[1][1] == '\0' ||
        (strcmp(part[2], "ro") != 0 && strcmp(part[2], "rw") != 0))
        return wrong(key, "SOURCE, TARGET, ro or rw, with tabs between them");
    struct extra_mount mount = {.source = part[0], .target = part[1], .writable = part[2][1] == 'w'};
    APPEND(plan->bind, mount);
    return true;
}

/* "-": no owner in particular. */
static bool take_owner(struct extra_mount *mount, char *value) {
    char *part[2];
    uint64_t uid = 0, gid = 0;
    if (strcmp(value, "-") == 0)
        return true;
    bool good = cut(value, ':', part, 2) && parse_u64(part[0], &uid) && parse_u64(part[1], &gid) && uid < UINT32_MAX && gid < UINT32_MAX;
    mount->owned = good;
    mount->uid = (uint32_t)uid;
    mount->gid = (uint32_t)gid;
    return good;
}

static bool take_volume(void *field, const char *key, char *value) {
    struct plan *plan = field;
    char *part[5];
    struct extra_mount mount = {0};
    if (!cut(value, '\t', part, 5) || part[0][0] != '/' || part[1][0] == '/' || part[2][0] != '/' || part[2][1] == '\0' ||
        (strcmp(part[3], "ro") != 0 && strcmp(part[3], "rw") != 0) || !take_owner(&mount, part[4]))
        return wrong(key, "SOURCE, SUB, TARGET, ro or rw, and UID:GID or -, with tabs between them");
    mount.source = part[0];
    mount.sub = part[1];
    mount.target = part[2];
    mount.writable = part[3][1] == 'w';
    APPEND(plan->bind, mount);
    return true;
}

static bool take_rlimit(void *field, const char *key, char *value) {
    struct plan *plan = field;
    char *part[3];
    uint64_t number = 0, soft = 0, hard = 0;
    if (!cut(value, ' ', part, 3) || !parse_u64(part[0], &number) || number > 31 || !parse_u64(part[1], &soft) ||
        !parse_u64(part[2], &hard) || soft > hard)
        return wrong(key, "NUMBER SOFT HARD");
    struct resource_limit limit = {(int)number, soft, hard};
    APPEND(plan->rlimit, limit);
    return true;
}

static bool take_map(void *field, const char *key, char *value) {
    char *copy = must_copy(value), *part[3];
    uint64_t number = 0;
    bool good = cut(copy, ' ', part, 3);
    for (int i = 0; good && i < 3; i++)
        good = parse_u64(part[i], &number) && number <= UINT32_MAX;
    free(copy);
    return good ? take_string(field, key, value) : wrong(key, "INSIDE OUTSIDE COUNT");
}

static bool take_cpus(void *field, const char *key, char *value) {
    for (char *rest = value, *one; (one = strsep(&rest, ","));) {
        uint64_t cpu = 0;
        if (!parse_u64(one, &cpu) || cpu >= CPU_SETSIZE)
            return wrong(key, "numbers of CPUs with commas between them");
        CPU_SET(cpu, (cpu_set_t *)field);
    }
    return true;
}

/* ---- words ---- */

static bool take_word(int *field, const char *key, const char *value, const char *const words[]) {
    for (int i = 0; words[i]; i++)
        if (strcmp(value, words[i]) == 0) {
            *field = i + 1;
            return true;
        }
    return wrong(key, "one of the words of docs/protocol.md");
}

static bool take_ids(void *field, const char *key, char *value) {
    int word = 0;
    if (*(enum plan_ids *)field != IDS_NONE)
        return wrong(key, "it once");
    bool good = take_word(&word, key, value, (const char *const[]){"range", "single", "sub", NULL});
    *(enum plan_ids *)field = (enum plan_ids)word;
    return good;
}

static bool take_net(void *field, const char *key, char *value) {
    int word = 0;
    if (*(enum plan_net *)field != NET_UNSET)
        return wrong(key, "it once");
    bool good = take_word(&word, key, value, (const char *const[]){"none", "router", "host", "exec", "gate", NULL});
    *(enum plan_net *)field = (enum plan_net)word;
    return good;
}

static bool take_may_lack(void *field, const char *key, char *value) {
    int word = 0;
    bool good = take_word(&word, key, value, (const char *const[]){"seccomp", "network", NULL});
    if (good)
        *(unsigned *)field |= 1U << (word - 1);
    return good;
}

#ifdef OPENMODAL_TEST
static bool take_weaken(void *field, const char *key, char *value) {
    int word = 0;
    bool good = take_word(&word, key, value, (const char *const[]){"seccomp", "caps", "nnp", "masks", "ids", NULL});
    if (good)
        *(unsigned *)field |= 1U << (word - 1);
    return good;
}
#endif

/* ---- keys ---- */

static const struct key {
    const char *name;
    bool (*take)(void *field, const char *key, char *value);
    size_t field;
} keys[] = {
#define KEY(name, take) {#name, take, offsetof(struct plan, name)}
    KEY(id, take_text),           KEY(hostname, take_text),     KEY(dir, take_path),        KEY(record, take_path),
    KEY(lower, take_paths),       KEY(upper, take_path),        KEY(work, take_path),       KEY(keep, take_flag),
    KEY(ids, take_ids),           KEY(uid_map, take_map),       KEY(gid_map, take_map),     KEY(slots, take_path),
    KEY(net, take_net),           KEY(router, take_path),       KEY(net_exec, take_string), KEY(resolv, take_text),
    KEY(hosts, take_text),        KEY(timeout_ms, take_number), KEY(idle_ms, take_number),  KEY(lease_ms, take_number),  KEY(cgroup, take_paths),
    {"set", take_set, 0},         {"show_cgroup", take_show_cgroup, 0}, KEY(kill, take_paths),        KEY(thaw, take_path),       KEY(oom, take_setting),
    {"rlimit", take_rlimit, 0},   KEY(cpus, take_cpus),         KEY(memory, take_number),   KEY(cpuinfo, take_text),   {"bind", take_bind, 0},         {"volume", take_volume, 0},   KEY(lock, take_paths),
    KEY(env, take_variable),      KEY(user, take_text),         KEY(workdir, take_text),    KEY(arg, take_string),
    KEY(main_flags, take_number), KEY(owner, take_number),    KEY(unreachable, take_string), KEY(hold, take_flag),
    KEY(disk, take_path),         KEY(firewall, take_string),    KEY(rules, take_text),
    KEY(runtime, take_path),      KEY(runtime_arg, take_string),
    KEY(runtime_config, take_text),
    KEY(may_lack, take_may_lack),  KEY(device, take_string),     KEY(weight, take_setting),
    KEY(guard, take_number),      KEY(counted, take_paths),     KEY(reuse, take_flag),
    KEY(sockets, take_number),    KEY(at_end, take_string),     KEY(rests, take_flag),
    KEY(network, take_path),      KEY(group, take_number),      KEY(names, take_text),      KEY(cut, take_flag),
#ifdef OPENMODAL_TEST
    KEY(weaken, take_weaken),
#endif
#undef KEY
};

static bool take_entry(struct plan *plan, char *entry) {
    char *equals = strchr(entry, '=');
    if (!equals)
        return fail("plan", "an entry has no '=': %.40s", entry);
    *equals = '\0';
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (strcmp(keys[i].name, entry) == 0)
            return keys[i].take((char *)plan + keys[i].field, entry, equals + 1);
    return fail("plan", "unknown key %.40s; the program and the SDK differ in version", entry);
}

/* ---- the whole plan ---- */

/* Overlay takes both names in an option string, relative to their common folder. */
static bool is_upper_pair(const char *upper, const char *work) {
    size_t parent = (size_t)(strrchr(upper, '/') - upper);
    const char *safe = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    return (size_t)(strrchr(work, '/') - work) == parent && strncmp(upper, work, parent) == 0 && parent > 0 &&
           upper[parent + 1] != '\0' && strspn(upper + parent + 1, safe) == strlen(upper + parent + 1) &&
           work[parent + 1] != '\0' && strspn(work + parent + 1, safe) == strlen(work + parent + 1);
}

static bool is_whole(const struct plan *plan) {
    if (!plan->id || !plan->dir || plan->lower.count == 0 || !plan->upper || !plan->work)
        return fail("plan", "id, dir, lower, upper and work are all needed");
    if (plan->ids == IDS_NONE || plan->net == NET_UNSET)
        return fail("plan", "ids and net are both needed");
    if (!is_upper_pair(plan->upper, plan->work))
        return wrong("upper, work", "plain names in one folder");
    if (plan->lower.count > 400)
        return wrong("lower", "at most 400 layers");
    if ((plan->ids == IDS_RANGE || plan->net == NET_ROUTER) && !plan->slots)
        return wrong("slots", "a path");
    if (plan->ids == IDS_SUB && (plan->uid_map.count == 0 || plan->gid_map.count == 0))
        return wrong("uid_map, gid_map", "at least one line each with ids=sub");
    if (plan->net == NET_ROUTER && (!plan->router || plan->ids != IDS_RANGE))
        return wrong("router", "a path, and ids=range");
    if (plan->network && (plan->net != NET_ROUTER || plan->group == 0 || plan->group > UINT16_MAX || plan->runtime))
        return wrong("network", "net=router, a group of 16 bits, and no runtime");
    if ((plan->net == NET_EXEC || plan->net == NET_GATE) && plan->net_exec.count == 0)
        return wrong("net_exec", "a command");
    if (plan->net == NET_GATE && (plan->firewall.count == 0 || !plan->rules))
        return wrong("firewall, rules", "a command, and what it reads");
    if (plan->runtime &&
        (plan->ids != IDS_RANGE || plan->net == NET_HOST || plan->runtime_arg.count == 0 || !plan->runtime_config))
        return wrong("runtime", "ids=range, a network of its own, runtime_arg and runtime_config");
    return true;
}

bool plan_parse(struct plan *plan, char *bytes, size_t size) {
    *plan = (struct plan){0};
    if (size == 0 || bytes[size - 1] != '\0')
        return fail("plan", "it is empty or does not end with a NUL byte");
    for (char *entry = bytes, *next; entry < bytes + size; entry = next) {
        next = entry + strlen(entry) + 1; /* taking an entry may cut it into pieces */
        if (!take_entry(plan, entry))
            return false;
    }
    return is_whole(plan);
}
