/* Making a sandbox's side of the gate, and starting it; see gate.h. */
#include "kernel.h"
#include "gate.h"

#include "fail.h"
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
enum { GATE_PORT = 53, BACKLOG = 512, READY_MS = 30000 };
enum { TCP, UDP, SOCKETS };

/* What a child has said, if it said something, is the cause. */
static bool not_made(ssize_t size, const char *said, const char *otherwise) {
    if (size > 0)
        fail_as(said);
    return fail("network", "%s", otherwise);
}

/* ------------------------------------------------------------------------------------- the sandbox's side */

/* Every address is the sandbox's own: so connecting has a route, although there is no way out. */
static bool route_all_to_lo(void) {
    AUTO_FD int inside = open_netlink(NETLINK_ROUTES);
    struct batch batch = {.used = 0};
    bring_up(&batch, LOOPBACK); /* init may not have come to it */
    add_local(&batch, 0, 0);
    return inside >= 0 && (talk(inside, &batch) || fail("network", "cannot set the sandbox's routes: %m"));
}

static _Noreturn void load(const struct plan *plan, int rules) {
    char *lock = must_format("XTABLES_LOCKFILE=%s/xtables.lock", plan->dir); /* the rules of this namespace are nobody else's */
    char *environment[] = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin", lock, NULL};
    begin_child();
    dup2(rules, 0);
    execve(plan->firewall.item[0], plan->firewall.item, environment);
    _exit(127);
}

static bool load_rules(const struct plan *plan) {
    AUTO_FD int rules = memfd_create("rules", MFD_CLOEXEC);
    int status = -1;
    if (rules < 0 || !write_all(rules, plan->rules, strlen(plan->rules)) || lseek(rules, 0, SEEK_SET) != 0)
        return fail(NULL, "cannot keep the firewall's rules: %m");
    pid_t child = fork();
    if (child == 0)
        load(plan, rules);
    while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR)
        ;
    return status == 0 || fail("network",
                               "%s cannot load the rules of a sandbox with an allow list; the kernel needs NAT in network namespaces "
                               "(try `modprobe iptable_nat` or `modprobe nft_chain_nat` as root)",
                               plan->firewall.item[0]);
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
    if (userns >= 0 && (setns(userns, CLONE_NEWUSER) != 0 || setresgid(0, 0, 0) != 0 || setresuid(0, 0, 0) != 0))
        return fail("network", "cannot enter the sandbox's user namespace: %m");
    return setns(network, CLONE_NEWNET) == 0 || fail("network", "cannot enter the sandbox's network namespace: %m");
}

static _Noreturn void make_inside(const struct plan *plan, int network, int userns, int link) {
    int sockets[SOCKETS] = {-1, -1};
    begin_child();
    bool made = enter(network, userns) && route_all_to_lo() && load_rules(plan) &&
                (sockets[TCP] = listen_on(SOCK_STREAM)) >= 0 && (sockets[UDP] = listen_on(SOCK_DGRAM)) >= 0;
    const char *text = made ? "made" : failure() != NULL ? failure() : "internal of unknown reason";
    _exit(!send_with(link, text, strlen(text), sockets, made ? SOCKETS : 0, 0));
}

/* In a child: a process that has entered a user namespace cannot come back, and the gate must not be there. */
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

/* ---------------------------------------------------------------------------------------------- the gate */

/* What it may use: it reads what a hostile sandbox writes, outside of that sandbox's limits. */
static void limit_gate(void) {
    static const struct {
        int what;
        rlim_t most;
    } limits[] = {{RLIMIT_NOFILE, 1024}, {RLIMIT_AS, 1 << 30}, {RLIMIT_CORE, 0}, {RLIMIT_FSIZE, 4 << 20}};
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++)
        setrlimit(limits[i].what, &(struct rlimit){limits[i].most, limits[i].most});
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

static _Noreturn void give_up(int lifeline, const char *what, const char *which) {
    fail("network", "the gate of the sandbox cannot %s %s: %m", what, which);
    send_with(lifeline, failure(), strlen(failure()), NULL, 0, 0);
    _exit(1);
}

/* The sockets are 3 and 4, its end of the lifeline is 5, and there is nothing else. */
static _Noreturn void be_gate(const struct plan *plan, const int sockets[SOCKETS], int lifeline) {
    enum { FIRST = 3, COUNT = SOCKETS + 1 };
    begin_child();
    AUTO_FD int router = plan->router != NULL ? open(plan->router, O_RDONLY | O_CLOEXEC) : -1;
    if (plan->router != NULL && (router < 0 || setns(router, CLONE_NEWNET) != 0))
        give_up(lifeline, "enter the network namespace", plan->router);
    int given[COUNT] = {sockets[TCP], sockets[UDP], lifeline};
    for (int i = 0; i < COUNT; i++) /* first out of the way of each other */
        given[i] = fcntl(given[i], F_DUPFD_CLOEXEC, FIRST + COUNT);
    for (int i = 0; i < COUNT; i++)
        dup2(given[i], FIRST + i);
    syscall(NR_CLOSE_RANGE, FIRST + COUNT, ~0U, 0);
    limit_gate();
    execve(plan->net_exec.item[0], plan->net_exec.item, (char *[]){"PATH=/usr/bin:/bin", NULL});
    give_up(FIRST + SOCKETS, "execute", plan->net_exec.item[0]);
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
    return not_made(size, text, "the sandbox's gate did not start");
}

bool gate_start(const struct plan *plan, int network, int userns, struct helper *gate) {
    int sockets[SOCKETS] = {-1, -1}, pair[2];
    if (!open_sockets(plan, network, userns, sockets))
        return false;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0)
        return fail(NULL, "socketpair: %m"); /* the sockets end with the supervisor, now */
    gate->lifeline = pair[0];
    gate->pid = fork();
    if (gate->pid == 0)
        be_gate(plan, sockets, pair[1]);
    close(pair[1]);
    close(sockets[TCP]); /* the gate's are the only ones, and end with it */
    close(sockets[UDP]);
    return gate->pid > 0 ? await_gate(gate->lifeline) : fail(NULL, "cannot fork: %m");
}
