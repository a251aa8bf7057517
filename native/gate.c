/* Making a sandbox's side of the gate, and starting it; see gate.h. */
#include "kernel.h"
#include "gate.h"

#include "cage.h"
#include "fail.h"
#include "ids.h"
#include "groups.h"
#include "netlink.h"
#include "passing.h"
#include "util.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define GATE_ADDRESS 0x7f000035U /* 127.0.0.53: an address of lo where nobody expects a service but a resolver */
enum { GATE_PORT = 53, BACKLOG = 512, READY_MS = 50000 };
enum { TCP, UDP };
_Static_assert(UDP + 1 == SOCKETS, "a socket of each kind");

/* What a child has said, if it said something, is the cause. */
static bool not_made(ssize_t size, const char *said, const char *otherwise) {
    if (size > 0)
        fail_as(said);
    return fail("network", "%s", otherwise);
}

/* ---- the sandbox's side ---- */

/* Every address is the sandbox's own: so connecting has a route, although there is no way out. */
static bool route_all_to_lo(void) {
    AUTO_FD int inside = open_netlink(NETLINK_ROUTES);
    struct batch batch = {.used = 0};
    bring_up(&batch, LOOPBACK); /* init may not have come to it */
    add_local(&batch, 0, 0);
    return inside >= 0 && (talk(inside, &batch) || fail("network", "cannot set the sandbox's routes: %m"));
}

static _Noreturn void load(const struct plan *plan, int rules, int said) {
    char *lock = must_format("XTABLES_LOCKFILE=%s/xtables.lock", plan->dir); /* the rules of this namespace are nobody else's */
    char *environment[] = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin", lock, NULL};
    begin_child();
    dup2(rules, 0);
    dup2(said, 2);
    execve(plan->firewall.item[0], plan->firewall.item, environment);
    _exit(127);
}

static bool load_rules(const struct plan *plan) {
    AUTO_FD int rules = memfd_create("rules", MFD_CLOEXEC);
    int status = -1, said[2] = {-1, -1};
    char text[300];
    if (rules < 0 || !open_saying(said) || !write_all(rules, plan->rules, strlen(plan->rules)) || lseek(rules, 0, SEEK_SET) != 0)
        return fail(NULL, "cannot keep the firewall's rules: %m");
    pid_t child = fork();
    if (child == 0)
        load(plan, rules, said[1]);
    while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR)
        ;
    read_saying(said[0], text, sizeof text);
    close_fd(&said[0]);
    close_fd(&said[1]);
    return status == 0 || fail("network",
                               "%s cannot load the rules of a sandbox with an allow list (%s); the kernel needs NAT in network namespaces "
                               "(try `modprobe iptable_nat` or `modprobe nft_chain_nat` as root)",
                               plan->firewall.item[0], text);
}

static int listen_on(int type) {
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(GATE_PORT), .sin_addr = {.s_addr = htonl(GATE_ADDRESS)}};
    int fd = socket(AF_INET, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof address) == 0 &&
        (type == SOCK_DGRAM || listen(fd, BACKLOG) == 0))
        return fd;
    fail("network", "cannot make the sockets of the gate: %m");
    close_fd(&fd);
    return -1;
}

/* As root of the namespace's owner. */
static bool enter(int network, int userns) {
    if (userns >= 0 && !userns_enter(userns))
        return fail("network", "cannot enter the sandbox's user namespace: %m");
    return setns(network, CLONE_NEWNET) == 0 || fail("network", "cannot enter the sandbox's network namespace: %m");
}

static _Noreturn void make_inside(const struct plan *plan, int network, int userns, int link) {
    int sockets[SOCKETS] = {-1, -1};
    begin_child();
    bool made = enter(network, userns) && route_all_to_lo() && load_rules(plan) &&
                (sockets[TCP] = listen_on(SOCK_STREAM)) >= 0 && (sockets[UDP] = listen_on(SOCK_DGRAM)) >= 0;
    const char *text = made ? "made" : failure() ? failure() : "internal of unknown reason";
    _exit(!send_with(link, text, strlen(text), sockets, made ? SOCKETS : 0, 0));
}

/* In a child: a process that has entered a user namespace cannot come back. */
static bool open_sockets(const struct plan *plan, int network, int userns, int sockets[SOCKETS]) {
    int link[2];
    char text[1100];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, link) != 0)
        return fail(NULL, "socketpair: %m");
    pid_t child = fork();
    if (child == 0)
        make_inside(plan, network, userns, link[1]);
    close(link[1]);
    ssize_t size = child < 0 ? -1 : receive_with(link[0], text, sizeof text, sockets, SOCKETS, 0);
    close(link[0]);
    while (child > 0 && waitpid(child, NULL, 0) < 0 && errno == EINTR)
        ;
    if (size > 0 && sockets[UDP] >= 0)
        return true;
    return not_made(size, text, "the sandbox's side of its gate could not be made");
}

/* ---- the gate ---- */

/* What it may use. It counts as the sandbox's, but is the last that the kernel kills there when memory is short. */
static void limit_gate(void) {
    static const struct {
        int what;
        rlim_t most;
    } limits[] = {{RLIMIT_NOFILE, 1024}, {RLIMIT_AS, 1 << 30}, {RLIMIT_CORE, 0}, {RLIMIT_FSIZE, 4 << 20}};
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++)
        setrlimit(limits[i].what, &(struct rlimit){limits[i].most, limits[i].most});
    AUTO_FD int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (write(fd, "-500", 4) != 4 && write(fd, "0", 1) != 1)
        return; /* a plain user's cannot be spared */
}

static _Noreturn void give_up(int lifeline, const char *what, const char *which) {
    fail("network", "the gate of the sandbox cannot %s %s: %m", what, which);
    send_with(lifeline, failure(), strlen(failure()), NULL, 0, 0);
    _exit(1);
}

/* The id that it becomes when it has loaded what it serves with: nobody's of the sandbox. "": its user's own, who has no other. */
static void choose_id(const struct plan *plan, const struct gate *gate, char id[16]) {
    enum { NOBODY = 65534 };
    *id = '\0';
    if (plan->ids != IDS_SINGLE)
        snprintf(id, 16, "%u", gate->base + NOBODY);
}

/* A plain user's is in the sandbox's user namespace, for other ids than the user's own are only there. */
static void enter_own_places(const struct plan *plan, const struct gate *gate, int lifeline) {
    AUTO_FD int router = plan->router ? open(plan->router, O_RDONLY | O_CLOEXEC) : -1;
    if (plan->router && (router < 0 || setns(router, CLONE_NEWNET) != 0))
        give_up(lifeline, "enter the network namespace", plan->router);
    if (plan->ids == IDS_SUB && !userns_enter(gate->userns))
        give_up(lifeline, "enter", "the sandbox's user namespace");
}

/* The sockets are 3 and 4, its end of the lifeline is 5, its filter of system calls is 6, and there is nothing else. */
static _Noreturn void be_gate(const struct plan *plan, const struct gate *gate, int lifeline, const char *died) {
    enum { FIRST = 3, COUNT = SOCKETS + 2 };
    char id[16], **argv = must_alloc((plan->net_exec.count + 3) * sizeof *argv);
    begin_child();
    choose_id(plan, gate, id);
    enter_own_places(plan, gate, lifeline);
    limit_gate();
    int filter = cage_gate(plan), given[COUNT] = {gate->sockets[TCP], gate->sockets[UDP], lifeline, filter};
    if (filter < 0)
        give_up(lifeline, "be locked in:", failure());
    for (int i = 0; i < COUNT; i++) /* first out of the way of each other */
        given[i] = fcntl(given[i], F_DUPFD_CLOEXEC, FIRST + COUNT);
    for (int i = 0; i < COUNT; i++)
        dup2(given[i], FIRST + i);
    syscall(NR_CLOSE_RANGE, FIRST + COUNT, ~0U, 0);
    memcpy(argv, plan->net_exec.item, plan->net_exec.count * sizeof *argv);
    memcpy(argv + plan->net_exec.count, (char *[]){id, (char *)died, NULL}, 3 * sizeof *argv);
    execve(argv[0], argv, (char *[]){"PATH=/usr/bin:/bin", NULL});
    give_up(FIRST + SOCKETS, "execute", argv[0]);
}

static bool start(const struct plan *plan, struct gate *gate, struct helper *helper, const char *died) {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0)
        return fail(NULL, "socketpair: %m");
    helper->lifeline = pair[0];
    helper->pid = groups_fork(plan);
    if (helper->pid == 0)
        be_gate(plan, gate, pair[1], died);
    close(pair[1]);
    return helper->pid > 0 || fail(NULL, "cannot fork: %m");
}

static bool await_gate(int lifeline) {
    char text[1100] = "";
    struct pollfd from = {.fd = lifeline, .events = POLLIN};
    int polled;
    do
        polled = poll(&from, 1, READY_MS);
    while (polled < 0 && errno == EINTR);
    ssize_t size = polled > 0 ? receive_with(lifeline, text, sizeof text, NULL, 0, 0) : -1;
    if (size > 0 && strcmp(text, "ready") == 0)
        return true;
    return not_made(size, text,
                    polled == 0 ? "the sandbox's gate did not start in time; is the machine overloaded?"
                                : "the sandbox's gate died before it served");
}

bool gate_start(const struct plan *plan, int network, struct gate *gate, struct helper *helper) {
    return open_sockets(plan, network, plan->ids != IDS_RANGE ? gate->userns : -1, gate->sockets) &&
           start(plan, gate, helper, "") && await_gate(helper->lifeline);
}

bool gate_restart(const struct plan *plan, struct gate *gate, struct helper *helper) {
    if (gate->sockets[TCP] < 0)
        return fail("network", "the gate of the sandbox has ended for the last time; create the sandbox anew");
    helper_end(helper);
    return start(plan, gate, helper, "") && await_gate(helper->lifeline);
}

/* A line of the gate's log, by who outlives it. */
static void tell(const struct plan *plan, const char *died) {
    uint64_t now = unix_us();
    char *log = must_format("%s.egress", plan->record ? plan->record : "");
    AUTO_FD int fd = plan->record ? open(log, O_WRONLY | O_APPEND | O_NOFOLLOW | O_CLOEXEC) : -1;
    if (fd >= 0)
        dprintf(fd,
                "{\"time\": %llu.%03u, \"kind\": \"gate\", \"asked\": \"\", \"address\": \"\", \"allowed\": false, "
                "\"reason\": \"the gate ended (%s) for the last time, and nothing leaves the sandbox any more\"}\n",
                (unsigned long long)(now / 1000000), (unsigned)(now / 1000 % 1000), died);
    free(log);
}

void gate_again(const struct plan *plan, struct gate *gate, struct helper *helper, int status) {
    enum { MOST_STARTS = 5 };
    char died[32];
    snprintf(died, sizeof died, WIFSIGNALED(status) ? "signal %d" : "exit status %d",
             WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    close_fd(&helper->lifeline);
    helper->lifeline = -1;
    if (++gate->ends < MOST_STARTS && start(plan, gate, helper, died))
        return;
    for (int i = 0; i < SOCKETS; i++) /* nobody shall wait for an answer */
        close_fd(&gate->sockets[i]);
    tell(plan, died);
}
