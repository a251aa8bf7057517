/* Promises of plan.c: what the protocol allows is understood, and everything else is refused with a sentence that names it. */
#include "check.h"
#include "fail.h"
#include "plan.h"

#include <string.h>

#define BASE "id=a\0dir=/d\0lower=/l1\0lower=/l2\0upper=/d/u\0work=/d/w\0ids=range\0slots=/s\0net=none\0"
#define GATE "id=a\0dir=/d\0lower=/l\0upper=/d/u\0work=/d/w\0ids=single\0net=gate\0"

static struct plan plan;

/* A plan is parsed once per process and never freed. */
const char *__asan_default_options(void);
const char *__asan_default_options(void) {
    return "detect_leaks=0";
}

/* Parsing cuts the bytes into pieces, so each test takes its own copy; a failure is replaced by an empty one. */
static bool parse(const char *bytes, size_t size) {
    static char copy[4096];
    fail_as("");
    memcpy(copy, bytes, size);
    return plan_parse(&plan, copy, size);
}
#define PARSE(text) parse(text, sizeof(text) - 1)
#define REFUSED(text, word)                                                                                                    \
    (!PARSE(text) && failure() && strncmp(failure(), "plan ", 5) == 0 && strstr(failure(), word))

static void understands(void) {
    CHECK(PARSE(BASE));
    CHECK(plan.lower.count == 2 && strcmp(plan.lower.item[1], "/l2") == 0 && !plan.lower.item[2]);
    CHECK(plan.ids == IDS_RANGE && plan.net == NET_NONE && !plan.keep && plan.timeout_ms == 0);
    CHECK(PARSE(BASE "env=A=b=c\0arg=\0arg=x y\0set=/c/f 1 2\0oom=/c/o oom_kill\0rlimit=7 1 18446744073709551615\0"));
    CHECK(strcmp(plan.env.item[0], "A=b=c") == 0 && plan.arg.count == 2 && plan.arg.item[0][0] == '\0');
    CHECK(strcmp(plan.set.item[0].path, "/c/f") == 0 && strcmp(plan.set.item[0].value, "1 2") == 0);
    CHECK(strcmp(plan.oom.value, "oom_kill") == 0 && plan.rlimit.item[0].number == 7 && plan.rlimit.item[0].hard == UINT64_MAX);
    CHECK(PARSE(BASE "bind=/a b\t/c\trw\0cpus=0,3\0keep=1\0"));
    CHECK(strcmp(plan.bind.item[0].source, "/a b") == 0 && plan.bind.item[0].writable && plan.keep);
    CHECK(CPU_ISSET(3, &plan.cpus) && !CPU_ISSET(1, &plan.cpus) && CPU_COUNT(&plan.cpus) == 2);
    CHECK(PARSE(BASE "runtime=/r\0runtime_arg=r\0runtime_arg=run\0runtime_config={}\0"));
    CHECK(plan.runtime_arg.count == 2 && !plan.runtime_arg.item[2] && strcmp(plan.runtime_config, "{}") == 0);
    CHECK(PARSE("id=a\0dir=/d\0lower=/l\0upper=/d/u\0work=/d/w\0ids=sub\0uid_map=0 1000 1\0gid_map=0 1000 1\0net=none\0"));
    CHECK(PARSE(GATE "net_exec=/g\0net_exec=x\0firewall=/f\0firewall=-w\0rules=*nat\nCOMMIT\n\0"));
    CHECK(plan.net == NET_GATE && plan.firewall.count == 2 && strcmp(plan.rules, "*nat\nCOMMIT\n") == 0);
}

static void refuses(void) {
    CHECK(REFUSED("", "empty"));
    CHECK(!parse("id=a", 4));
    CHECK(REFUSED("id\0", "="));
    CHECK(REFUSED("id=a\0", "dir"));
    CHECK(REFUSED(BASE "colour=red\0", "colour"));
    CHECK(REFUSED(BASE "id=b\0", "id"));
    CHECK(REFUSED(BASE "net=host\0", "net"));
    CHECK(REFUSED(BASE "record=relative\0", "record"));
    CHECK(REFUSED(BASE "timeout_ms=1s\0", "timeout_ms"));
    CHECK(REFUSED(BASE "timeout_ms=99999999999999999999\0", "timeout_ms"));
    CHECK(REFUSED(BASE "env==x\0", "env"));
    CHECK(PARSE(BASE "volume=/a\tb/c\t/d\tro\t-\0volume=/a\t.\t/e\trw\t7:8\0lock=/a\0"));
    CHECK(strcmp(plan.bind.item[0].sub, "b/c") == 0 && !plan.bind.item[0].writable && !plan.bind.item[0].owned);
    CHECK(plan.bind.item[1].owned && plan.bind.item[1].uid == 7 && plan.bind.item[1].gid == 8 && plan.lock.count == 1);
    CHECK(REFUSED(BASE "volume=/a\t/b\t/c\trw\t-\0", "volume"));
    CHECK(REFUSED(BASE "volume=/a\tb\t/\trw\t-\0", "volume"));
    CHECK(REFUSED(BASE "volume=/a\tb\t/c\trw\troot\0", "volume"));
    CHECK(REFUSED(BASE "volume=/a\tb\t/c\trw\0", "volume"));
    CHECK(REFUSED(BASE "bind=/a /b rw\0", "bind"));
    CHECK(REFUSED(BASE "bind=/a\t/\trw\0", "bind"));
    CHECK(REFUSED(BASE "rlimit=7 2 1\0", "rlimit"));
    CHECK(REFUSED(BASE "rlimit=99 1 1\0", "rlimit"));
    CHECK(REFUSED(BASE "cpus=0,\0", "cpus"));
    CHECK(REFUSED(BASE "runtime=r\0runtime_arg=r\0runtime_config={}\0", "runtime"));
    CHECK(REFUSED(BASE "runtime=/r\0runtime_arg=r\0", "runtime"));
    CHECK(REFUSED(BASE "runtime=/r\0runtime_config={}\0", "runtime"));
    CHECK(REFUSED(BASE "cpus=99999\0", "cpus"));
    CHECK(REFUSED(BASE "set=/x\0", "set"));
    CHECK(REFUSED(BASE "keep=yes\0", "keep"));
    CHECK(REFUSED(BASE "weaken=seccomp\0", "weaken"));
    CHECK(REFUSED(BASE "may_lack=caps\0", "may_lack"));
    CHECK(REFUSED("id=a\0dir=/d\0lower=/l\0upper=/d/u,x\0work=/d/w\0ids=single\0net=none\0", "upper"));
    CHECK(REFUSED("id=a\0dir=/d\0lower=/l\0upper=/d/u\0work=/e/w\0ids=single\0net=none\0", "upper"));
    CHECK(REFUSED("id=a\0dir=/d\0lower=/l\0upper=/d/u\0work=/d/w\0ids=single\0net=router\0router=/r\0slots=/s\0", "router"));
    CHECK(REFUSED(GATE "firewall=/f\0rules=r\0", "net_exec"));
    CHECK(REFUSED(GATE "net_exec=/g\0firewall=/f\0", "rules"));
    CHECK(REFUSED(GATE "net_exec=/g\0rules=r\0", "firewall"));
    CHECK(REFUSED("id=a\0dir=/d\0lower=/l\0upper=/d/u\0work=/d/w\0ids=sub\0net=none\0", "uid_map"));
}

int main(void) {
    understands();
    refuses();
    return finish("plan");
}
