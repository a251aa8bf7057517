/* The box: makes a sandbox and supervises it. One story, read from top to bottom:
 *
 *   launcher      what the SDK starts: reads the plan, forks the supervisor, exits when that has reported
 *   supervisor    one per sandbox, in a session of its own, for the sandbox's whole life: slot, sockets, cgroups,
 *                 interface, deadline, the end
 *   init          process 1 of the sandbox: a fork, never an exec, so no file of ours is in its /proc. Makes its
 *                 mounts, locks itself in, and becomes the agent
 *
 * Supervisor and init work at the same time and talk over one socket pair: init gets its network namespace, waits for "go" (the
 * interface is there), then says "ready" or why not; later it says how it ended. Each notices the other's death by the end of
 * file; init also dies by the parent-death signal. Whoever fails leaves nothing behind: take_down() is the only way out, from
 * any state. Nothing here may wait for the kernel's readers (RCU), which takes 10 ms and more, unless it is told why.
 */
#include "kernel.h"

#include "agent.h"
#include "box.h"
#include "cage.h"
#include "fail.h"
#include "folders.h"
#include "gate.h"
#include "groups.h"
#include "guard.h"
#include "helper.h"
#include "ids.h"
#include "live.h"
#include "mounts.h"
#include "net.h"
#include "netlink.h"
#include "owner.h"
#include "passing.h"
#include "plan.h"
#include "quota.h"
#include "runtime.h"
#include "scan.h"
#include "trash.h"
#include "upper.h"
#include "util.h"
#include "verbs.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>

enum { MAX_PLAN = 16 << 20, READY_MS = 30000 };

/* The host's root makes the network namespace beside init and in time for its /sys; a user's init is born with its own. */
static bool owns_network(const struct plan *plan) {
    return plan->ids == IDS_RANGE && plan->net != NET_HOST;
}

/* ---- what init does ---- */

static _Noreturn void init_failed(int link) {
    char text[1100];
    int size = snprintf(text, sizeof text, "!%s", failure() ? failure() : "internal of unknown reason");
    send(link, text, (size_t)size, MSG_NOSIGNAL);
    _exit(1);
}

static bool hear(int link, const char *word) {
    char heard[16];
    return receive_with(link, heard, sizeof heard, NULL, 0, 0) > 0 && strcmp(heard, word) == 0;
}

/* What serves a machine is often protected from the kernel's hunt for memory; what runs in a sandbox never is. */
static void be_killable(void) {
    AUTO_FD int fd = open("/proc/self/oom_score_adj", O_RDWR | O_CLOEXEC);
    char first = 0;
    if (fd >= 0 && read(fd, &first, 1) == 1 && first == '-' && pwrite(fd, "0", 1, 0) != 1)
        return;
}

/* Among hundreds of commands that all want the CPU, who has to answer and to kill comes first. Takes rights that are soon given up;
 * without them it is one among many. Returns what commands shall have. */
static int come_first(void) {
    int nice = getpriority(PRIO_PROCESS, 0);
    setpriority(PRIO_PROCESS, 0, -20);
    return nice;
}

/* Keep the descriptors of `kept` (-1: none) and close all others, whoever opened them; they get the numbers from 4 on, in
 * order. */
static bool keep_only(int *kept[], size_t count) {
    for (size_t i = 0; i < count; i++) /* first out of the way of each other */
        if (*kept[i] >= 0 && (*kept[i] = fcntl(*kept[i], F_DUPFD_CLOEXEC, 4 + (int)count)) < 0)
            return fail(NULL, "cannot keep a descriptor: %m");
    for (size_t i = 0; i < count; i++)
        if (*kept[i] >= 0)
            *kept[i] = dup3(*kept[i], 4 + (int)i, O_CLOEXEC);
    close(3);
    for (size_t i = 0; i < count; i++)
        if (*kept[i] < 0)
            close(4 + (int)i);
    int null = open("/dev/null", O_RDWR | O_CLOEXEC | O_NOCTTY); /* the sandbox's own */
    bool good = null >= 0 && dup2(null, 0) == 0 && dup2(null, 1) == 1 && dup2(null, 2) == 2 &&
                syscall(NR_CLOSE_RANGE, 4 + count, ~0U, 0) == 0;
    close_fd(&null);
    return good || fail(NULL, "cannot close descriptors: %m");
}

/* The supervisor makes the network namespace while we make mounts; a descriptor of it comes over the link. */
static bool enter_network(void *context) {
    const struct box *box = context;
    if (!owns_network(box->plan))
        return true;
    char byte[2];
    AUTO_FD int network = -1;
    receive_with(box->init_link, byte, sizeof byte, &network, 1, 0);
    return (network >= 0 && setns(network, CLONE_NEWNET) == 0) ||
           fail("network", "cannot enter the sandbox's network namespace: %m");
}

/* Why a user namespace cannot be made, or has no rights in it; kernels differ in which of the two happens. */
#define WITHHELD                                                                                                          \
    "AppArmor, SELinux or the container around keeps rights from user namespaces: give the native program a profile with " \
    "userns, on Ubuntu run `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0` as root, or start the container with " \
    "--security-opt seccomp=unconfined"

/* Outside of the user namespace, with the host root's rights, except where ids are a user's own. */
static bool init_build(struct box *box) {
    const struct plan *plan = box->plan;
    uint32_t base = box->slot != 0 ? slot_base(box->slot) : 0;
    if (plan->ids != IDS_RANGE && (!hear(box->init_link, "mapped") || setresgid(0, 0, 0) != 0 || setresuid(0, 0, 0) != 0))
        return fail("internal", "cannot become root of the user namespace: %m");
    if (!groups_join(plan)) /* first: whatever is made is charged to the sandbox */
        return false;
    be_killable();
    if (plan->hostname && sethostname(plan->hostname, strlen(plan->hostname)) != 0)
        return fail(plan->ids != IDS_RANGE ? "userns" : NULL, "cannot set the host name: %m; " WITHHELD);
    if (plan->ids == IDS_RANGE && !cage_own_as(base))
        return false;
    if (plan->ids != IDS_RANGE && plan->net != NET_HOST) {
        AUTO_FD int inside = open_netlink(NETLINK_ROUTES);
        if (!net_prepare(inside, 0, plan->ids == IDS_SINGLE ? 0 : IDS_SIZE - 1, false))
            return false;
    }
    return mounts_make(plan, box->userns, base, box->disk, box->maps, &box->meminfo, enter_network, box) && cage_limit(plan);
}

static bool init_enter(struct box *box) {
    const struct plan *plan = box->plan;
    if (!hear(box->init_link, "go"))
        return fail("internal", "the supervisor is gone");
    if (plan->unreachable.count > 0 && !net_refuse(&plan->unreachable, plan->resolv))
        return false;
    if (unshare(CLONE_NEWCGROUP) != 0) /* now: its root is where we are */
        return fail(NULL, "cannot make a cgroup namespace: %m");
    int *for_agent[] = {&box->init_link, &box->agent_listener, &box->oom, &box->output[0], &box->output[1], &box->userns, &box->meminfo};
    int *for_runtime[] = {&box->init_link, &box->program, &box->log, &box->output[0], &box->output[1], &box->userns, &box->meminfo};
    return keep_only(plan->runtime ? for_runtime : for_agent, sizeof for_agent / sizeof *for_agent) &&
           cage_lock(plan, box->userns);
}

static _Noreturn void be_init(struct box *box) {
    const struct plan *plan = box->plan;
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    setsid();
    close(box->link);
    int nice = come_first();
    if (!init_build(box) || !init_enter(box))
        init_failed(box->init_link);
    close_fd(&box->userns);
    if (plan->runtime) {
        runtime_become(plan, box->output);
        init_failed(box->init_link);
    }
    if (send(box->init_link, "ready", 5, MSG_NOSIGNAL) != 5)
        _exit(1);
    char *nothing[] = {NULL};
    struct agent_config config = {
        .listen_fd = box->agent_listener,
        .port_fd = -1,
        .control_fd = box->init_link,
        .idle_ms = plan->idle_ms,
        .rests = plan->rests,
        .lease_ms = plan->lease_ms,
        .user = plan->user,
        .workdir = plan->workdir,
        .env = plan->env.item ? plan->env.item : nothing,
        .argv = plan->arg.item,
        .main_flags = (uint32_t)plan->main_flags,
        .main_stdout = box->output[0],
        .main_stderr = box->output[1],
        .oom_fd = box->oom,
        .meminfo_fd = box->meminfo,
        .memory = plan->memory,
        .nice = nice,
        .oom_word = plan->oom.value,
    };
    _exit(agent_run(&config));
}

/* ---- what the supervisor makes ---- */

static bool take_folder(struct box *box) {
    const char *dir = box->plan->dir;
    box->folder = open(dir, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (box->folder < 0 || fchdir(box->folder) != 0)
        return fail(NULL, "cannot open the sandbox's folder %s: %m", dir);
    box->lock = open("lock", O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (box->lock < 0)
        return fail(NULL, "cannot make a file in %s: %m", dir);
    /* Whoever looks whether a sandbox lives holds the lock for a moment. */
    int locked = flock(box->lock, LOCK_EX | LOCK_NB);
    for (int attempt = 0; locked != 0 && attempt < 200; attempt++) {
        poll(NULL, 0, 1);
        locked = flock(box->lock, LOCK_EX | LOCK_NB);
    }
    if (locked != 0) {
        close_fd(&box->lock); /* not ours to remove */
        box->lock = -1;
        return fail("plan", "another sandbox has the folder %s", dir);
    }
    return true;
}

/* In the current folder: the length of an address is limited to 108 bytes, that of a path to a folder is not. */
int listen_at(const char *name) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, name);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd >= 0 && (bind(fd, (struct sockaddr *)&address, sizeof address) != 0 || listen(fd, 128) != 0)) {
        close(fd);
        fd = -1;
    }
    if (fd < 0)
        fail(NULL, "cannot make the socket %s: %m", name);
    return fd;
}

static bool open_output(struct box *box) {
    static const char *const names[] = {"stdout", "stderr"};
    if (!box->plan->record || box->plan->arg.count == 0)
        return true;
    for (int i = 0; i < 2; i++) {
        char *path = must_format("%s.%s", box->plan->record, names[i]);
        box->output[i] = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
        free(path);
        if (box->output[i] < 0)
            return fail(NULL, "cannot make %s.%s: %m", box->plan->record, names[i]);
    }
    return true;
}

/* Init reads it too, and could not open it from inside. */
static bool open_oom(struct box *box) {
    if (!box->plan->oom.path)
        return true;
    box->oom = open(box->plan->oom.path, O_RDONLY | O_CLOEXEC);
    box->oom_kills = groups_oom_kills(box->plan);
    return box->oom >= 0 || fail(NULL, "cannot open %s: %m", box->plan->oom.path);
}

static bool open_for_runtime(struct box *box) {
    if (!box->plan->runtime)
        return true;
    box->program = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    box->log = memfd_create("runtime-log", MFD_CLOEXEC);
    return (box->program >= 0 && box->log >= 0) || fail(NULL, "cannot open what the runtime needs: %m");
}

static bool start_init(struct box *box) {
    const struct plan *plan = box->plan;
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0)
        return fail(NULL, "socketpair: %m");
    box->link = pair[0];
    box->init_link = pair[1];
    struct clone_request request = {
        .flags = CLONE_PIDFD | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWTIME |
                 (plan->ids != IDS_RANGE && plan->net != NET_HOST ? CLONE_NEWNET : 0) |
                 (plan->ids != IDS_RANGE ? CLONE_NEWUSER : 0),
        .pidfd = (uint64_t)(uintptr_t)&box->init_pidfd,
        .exit_signal = SIGCHLD,
    };
    AUTO_FD int birthplace = -1;
    if (!groups_birthplace(plan, &birthplace))
        return false;
    if (birthplace >= 0) {
        request.flags |= BORN_IN_CGROUP;
        request.cgroup = (uint64_t)birthplace;
    }
    pid_t init = (pid_t)syscall(NR_CLONE3, &request, sizeof request);
    if (init < 0 && errno == EINVAL) { /* no time namespaces here; they keep clocks apart that nobody inside may set anyway */
        request.flags &= ~(uint64_t)CLONE_NEWTIME;
        init = (pid_t)syscall(NR_CLONE3, &request, sizeof request);
    }
    if (init == 0)
        be_init(box);
    if (init < 0 && errno == ENOENT && birthplace >= 0) /* with nsdelegate no process is born in a group outside of the cgroup namespace */
        return fail(NULL, "the sandbox's control group lies outside of this container's own; start the container with --cgroupns=host, too");
    if (init < 0)
        return fail("userns", "cannot make the sandbox's namespaces: %m; %s",
                    errno == EPERM || errno == EACCES ? WITHHELD : "`openmodal doctor` tells which setting forbids it");
    box->init = init;
    close(box->init_link);
    box->init_link = -1;
    return true;
}

/* For the end: what the sandbox leaves can be removed with its ids only. */
static bool open_userns(struct box *box) {
    box->userns = open_namespace(box->init, "user");
    return box->userns >= 0 || fail(NULL, "cannot open the sandbox's user namespace: %m");
}

static bool make_network(struct box *box) {
    uint32_t base = slot_base(box->slot);
    if (box->network >= 0 ? setns(box->network, CLONE_NEWNET) != 0 : unshare(CLONE_NEWNET) != 0)
        return fail(NULL, "cannot make a network namespace: %m");
    if (box->network < 0)
        box->network = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    box->inside = open_netlink(NETLINK_ROUTES);
    return net_prepare(box->inside, base, base + IDS_SIZE - 1, box->plan->net != NET_NONE) &&
           (send_with(box->link, "n", 1, &box->network, 1, 0) || fail("internal", "init is gone"));
}

static bool connect_network(struct box *box) {
    box->netlink = net_enter_router(box->plan->router);
    if (box->netlink < 0)
        return false;
    if (slot_is_marked(box->slot_lock, box->slot)) /* the supervisor of who had it was killed */
        net_forget(box->netlink, box->machine, box->slot);
    slot_mark(box->slot_lock, box->slot, true);
    return net_attach(box->netlink, box->inside, box->slot, box->network, box_group(box)) &&
           (!box->plan->network || member_join(&box->member, box->plan, net_address(box->slot)));
}

uint32_t box_group(const struct box *box) {
    return (uint32_t)box->plan->group | (box->plan->network && box->cut ? INSIDE : 0);
}

/* A user's init is born with it. Nobody may open it when init has locked itself in. */
static bool open_network(struct box *box) {
    if (box->network >= 0 || box->plan->net == NET_HOST)
        return true;
    box->network = open_namespace(box->init, "net");
    return box->network >= 0 || fail(NULL, "cannot open the sandbox's network namespace: %m");
}

static bool start_gate(struct box *box) {
    box->gate.userns = box->userns;
    box->gate.base = box->slot != 0 ? slot_base(box->slot) : 0;
    return gate_start(box->plan, box->network, &box->gate, &box->helper);
}

/* While init makes its mounts, we make what it will be in. */
static bool equip_init(struct box *box) {
    const struct plan *plan = box->plan;
    if (plan->ids != IDS_RANGE &&
        (!userns_map(plan, box->init) || !open_userns(box) || send(box->link, "mapped", 6, MSG_NOSIGNAL) != 6))
        return fail("internal", "init is gone");
    /* While we are in the machine's network, at first. */
    if (plan->net == NET_ROUTER && box->machine < 0 && (box->machine = open_netlink(NETLINK_FILTER)) < 0)
        return false;
    if (owns_network(plan) && !make_network(box))
        return false;
    if (plan->net == NET_ROUTER && (!box->cut || plan->network) && !connect_network(box))
        return false;
    if (!open_network(box))
        return false;
    if (plan->net == NET_GATE && !start_gate(box))
        return false;
    close_fd(&box->inside);
    box->inside = -1;
    if (plan->net == NET_EXEC && !box->cut && !helper_start(plan, box->init, box->userns, &box->helper))
        return false;
    return send(box->link, "go", 2, MSG_NOSIGNAL) == 2 || fail("internal", "init is gone");
}

static bool await_ready(struct box *box) {
    char text[1200];
    struct pollfd from = {.fd = box->link, .events = POLLIN};
    int polled;
    do
        polled = poll(&from, 1, READY_MS);
    while (polled < 0 && errno == EINTR);
    if (polled > 0 && receive_with(box->link, text, sizeof text, NULL, 0, 0) > 0) {
        if (strcmp(text, "ready") == 0)
            return true;
        if (text[0] == '!')
            fail_as(text + 1);
    }
    return polled == 0 ? fail("internal", "init did not become ready in %d s", READY_MS / 1000)
                       : fail("internal", box->plan->runtime
                                              ? "runsc ended before the sandbox was ready; `openmodal doctor` tells its version"
                                              : "init died before it was ready");
}

/* ---- the long wait ---- */

void end_with(struct box *box, const char *reason, int returncode) {
    if (!box->reason) {
        box->reason = reason;
        box->returncode = returncode;
    }
}

/* What init says when it ends: "REASON RETURNCODE STDOUT STDERR". It is ours and not the sandbox's code, but it lives with that: believe no
 * more than fits. */
void hear_init(struct box *box) {
    static const char *const reasons[] = {"exited", "timeout", "idle", "lease", "terminated"};
    char text[96], word[16];
    int code = 0;
    do
        if (receive_with(box->link, text, sizeof text, NULL, 0, MSG_DONTWAIT) <= 0)
            return;
    while (rest_heard(box, text));
    bool fits = box->told = scan(text, "%15s %d %llu %llu", word, &code, &box->written[0], &box->written[1]) == 4;
    for (size_t i = 0; fits && i < sizeof reasons / sizeof *reasons; i++)
        if (strcmp(word, reasons[i]) == 0)
            end_with(box, reasons[i], code & 0xff);
    end_with(box, "lost", 137); /* whoever says something else is not our agent any more */
}

/* Init is dead: by its own will, then it has said why, or by somebody's outside. */
static void init_gone(struct box *box) {
    hear_init(box);
    end_with(box, "lost", 137);
}

/* The kernel's count tells whether a kill was for memory. Commands that fall while the main one goes on are the agent's to
 * report. */
static void judge(struct box *box) {
    bool killed = strcmp(box->reason, "lost") == 0 || (strcmp(box->reason, "exited") == 0 && box->returncode == 137);
    if (killed && groups_oom_kills(box->plan) > box->oom_kills)
        box->reason = "oom";
}

/* A runtime's sandbox gets its connections from us. Where its agent does not keep up, they wait. */
static void pass_connection(const struct box *box) {
    struct pollfd room = {box->link, POLLOUT, 0};
    if (poll(&room, 1, 5) != 1)
        return;
    AUTO_FD int fd = accept4(box->agent_listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0)
        send_with(box->link, "c", 1, &fd, 1, MSG_DONTWAIT);
}

/* Not by us. */
static void helper_ended(struct box *box, int status) {
    box->helper.pid = 0;
    if (box->plan->net == NET_GATE && !box->reason)
        gate_again(box->plan, &box->gate, &box->helper, status);
}

void hear_signals(struct box *box) {
    struct signalfd_siginfo info;
    while (read(box->signals, &info, sizeof info) == sizeof info)
        if (info.ssi_signo == SIGTERM)
            end_with(box, "terminated", 137);
    int status = 0;
    for (pid_t pid;
         (pid = waitpid(-1, &status, WNOHANG)) > 0;) { /* SIGCHLD: the user namespace's first process, the helper, init */
        if (pid == box->helper.pid)
            helper_ended(box, status);
        if (pid == box->init)
            box->init = 0;
        if (pid == box->keeper)
            box->keeper = 0;
        guard_reaped(&box->guard, pid);
        control_reaped(box, pid, status);
    }
}

static void watch(struct box *box) {
    enum { INIT, LINK, CONTROL, AGENT, SIGNALS, TIMER, OWNER, FIXED };
    while (!box->reason) {
        struct pollfd from[FIXED + MAX_CLIENTS] = {
            [INIT] = {box->init_pidfd, POLLIN, 0},
            [LINK] = {box->link, POLLIN, 0},
            [CONTROL] = {box->control_listener, POLLIN, 0},
            [AGENT] = {box->agent_listener, POLLIN, 0},
            [SIGNALS] = {box->signals, POLLIN, 0},
            [TIMER] = {box->timer, POLLIN, 0},
            [OWNER] = {box->owner, POLLIN, 0},
        };
        size_t clients = box->clients;
        for (size_t i = 0; i < clients; i++)
            from[FIXED + i] = (struct pollfd){box->client[i].fd, POLLIN, 0};
        if (poll(from, FIXED + clients, guard_wait(&box->guard)) < 0)
            continue;
        const char *found = guard_finds(&box->guard, now_ms());
        if (found)
            end_with(box, found, 137);
        if (from[INIT].revents)
            init_gone(box);
        else if (from[LINK].revents & POLLIN)
            hear_init(box);
        else if (from[LINK].revents) { /* closed, but not dead yet: it is dying */
            struct pollfd death = {box->init_pidfd, POLLIN, 0};
            poll(&death, 1, 1000);
            init_gone(box);
        }
        if (from[SIGNALS].revents)
            hear_signals(box);
        if (from[TIMER].revents)
            end_with(box, "timeout", 124);
        if (from[OWNER].revents)
            end_with(box, "owner", 137);
        for (size_t i = clients; i-- > 0;)
            if (from[FIXED + i].revents)
                control_hear(box, i);
        if (from[CONTROL].revents)
            control_accept(box);
        if (from[AGENT].revents)
            pass_connection(box);
    }
}

/* ---- the supervisor ---- */

static bool take_signals(struct box *box) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_SETMASK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGCHLD, SIG_DFL); /* whoever started us may have ignored it, and then nobody could be waited for */
    box->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return box->signals >= 0 || fail(NULL, "signalfd: %m");
}

static bool set_timer(struct box *box) {
    uint64_t ms = box->plan->timeout_ms;
    struct itimerspec when = {.it_value = {.tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000) * 1000000}};
    box->timer = timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC); /* a suspended machine's time counts */
    return (box->timer >= 0 && timerfd_settime(box->timer, 0, &when, NULL) == 0) || fail(NULL, "timerfd: %m");
}

/* What init has said last, or what is in its log, is why it failed. */
static void explain(struct box *box) {
    char text[1200];
    if (box->link >= 0 && receive_with(box->link, text, sizeof text, NULL, 0, MSG_DONTWAIT) > 1 && text[0] == '!')
        fail_as(text + 1);
    else if (box->log >= 0)
        runtime_explain(box->log);
}

/* All that begins with process 1, and ends with it. */
bool box_run(struct box *box) {
    struct plan *plan = box->plan;
    if (plan->ids == IDS_RANGE && (box->userns = userns_make(box->slot, plan->runtime ? &box->network : NULL)) < 0)
        return false;
    if (!open_output(box) || !groups_make(plan) || !open_oom(box))
        return false;
    if (plan->disk && (box->disk = mounts_open_disk(plan, box->userns)) < 0)
        return false;
    if (plan->guard > 0 && !plan->disk)
        quota_set(plan->upper, plan->work, plan->guard);
    if (!(box->maps = folders_maps(plan, slot_base(box->slot))))
        return false;
    bool started = start_init(box);
    folders_close_maps(plan, box->maps);
    box->maps = NULL;
    if (!started || !equip_init(box) || !await_ready(box) ||
        !guard_begin(&box->guard, plan, box->folder, box->userns, box->init, box->network)) {
        explain(box);
        return false;
    }
    if (!plan->runtime) { /* init has it; when it is gone, connecting must fail */
        close_fd(&box->agent_listener);
        box->agent_listener = -1;
    }
    return true;
}

static bool make(struct box *box) {
    const struct plan *plan = box->plan;
    box->started = unix_us();
    if (plan->rests && plan->kill.count == 0 && !plan->thaw)
        return fail("unsupported", "an idle sandbox cannot be paused here, because it has no control groups: run as root, or as a user with "
                                   "delegated groups, or leave on_idle= out");
    if (!take_signals(box) || !set_timer(box) || !owner_watch(box, plan->owner) || !take_folder(box))
        return false;
    if (plan->reuse && (box->upper = upper_hold(plan)) < 0)
        return false;
    umask(0177);
    if ((box->agent_listener = listen_at("agent.sock")) < 0 || (box->control_listener = listen_at("control.sock")) < 0 ||
        chdir("/") != 0)
        return false;
    umask(077);
    if (!open_for_runtime(box))
        return false;
    if (plan->slots && plan->ids == IDS_RANGE && (box->slot_lock = slot_take(plan->slots, &box->slot)) < 0)
        return false;
    return folders_hold(plan) && box_run(box);
}

/* All descriptors of whoever started us are closed, but for the report, the launcher's pipe, and what the plan says to hold. */
static void leave_caller(struct box *box) {
    enum { KEPT = 3 };
    setsid();
    /* A group of version 1 takes no process of a real-time policy (EINVAL), unless it was given time for such. By number: musl
     * has no such function. */
    int policy = (int)syscall(SYS_sched_getscheduler, 0);
    if (policy == SCHED_FIFO || policy == SCHED_RR)
        syscall(SYS_sched_setscheduler, 0, SCHED_OTHER, &(struct sched_param){0});
    box->report = dup(1);
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int fd = 0; fd < 3 && null >= 0; fd++)
        dup2(null, fd);
    int keep[KEPT] = {box->status, box->report, box->plan->hold ? 3 : box->status};
    for (int first = 3, next; first >= 0; first = next + 1) {
        next = -2;
        for (int i = 0; i < KEPT; i++) /* the lowest that is kept, from `first` on */
            if (keep[i] >= first && (next < 0 || keep[i] < next))
                next = keep[i];
        if (next < 0)
            syscall(NR_CLOSE_RANGE, first, ~0U, 0);
        else if (next > first)
            syscall(NR_CLOSE_RANGE, first, next - 1, 0);
    }
    for (int i = 0; i < KEPT; i++)
        fcntl(keep[i], F_SETFD, FD_CLOEXEC);
}

/* False: nobody listens any more. */
static bool report(struct box *box, bool made) {
    char line[1200];
    int size =
        made ? snprintf(line, sizeof line, "ready %d\n", (int)getpid()) : snprintf(line, sizeof line, "error %s\n", failure());
    bool told = write_all(box->report, line, (size_t)size) && write_all(box->status, made ? "0" : "1", 1);
    close(box->report);
    close(box->status);
    return told;
}

static _Noreturn void supervise(struct plan *plan, int status) {
    struct box box = {.plan = plan,
                      .base = plan->lower,
                      .status = status,
                      .folder = -1,
                      .lock = -1,
                      .upper = -1,
                      .slot_lock = -1,
                      .userns = -1,
                      .meminfo = -1,
                      .disk = -1,
                      .agent_listener = -1,
                      .control_listener = -1,
                      .netlink = -1,
                      .machine = -1,
                      .program = -1,
                      .log = -1,
                      .network = -1,
                      .inside = -1,
                      .cut = plan->cut,
                      .member = {.file = -1},
                      .helper = {.lifeline = -1, .said = -1},
                      .gate = {.sockets = {-1, -1}},
                      .output = {-1, -1},
                      .shaping = {.client = -1, .lock = -1},
                      .guard = {.folder = -1, .sockets = -1, .files = {.told = -1}, .queues = {.told = -1}},
                      .layer_lock = -1,
                      .oom = -1,
                      .link = -1,
                      .init_link = -1,
                      .owner = -1,
                      .init_pidfd = -1};
    leave_caller(&box);
    if (!make(&box)) {
        back_out(&box);
        report(&box, false);
        groups_weigh(plan);
        _exit(1);
    }
    if (!report(&box, true))
        end_with(&box, "terminated", 137); /* whoever wanted the sandbox is gone, and nobody knows of it */
    groups_weigh(plan);                    /* when nobody waits for us any more, here and at the end */
    watch(&box);
    judge(&box);
    finish(&box);
    groups_weigh(plan);
    _exit(0);
}

/* ---- the launcher ---- */

static char *read_plan(size_t *size) {
    size_t room = 1 << 14;
    char *bytes = must_alloc(room);
    for (*size = 0;;) {
        ssize_t count = read(0, bytes + *size, room - *size);
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0)
            return bytes;
        *size += (size_t)count;
        if (*size == room && room < MAX_PLAN)
            bytes = must_grow(bytes, room *= 4);
    }
}

static int refuse(void) {
    dprintf(1, "error %s\n", failure());
    return 1;
}

int verb_box(int argc, char **argv) {
    struct plan plan;
    size_t size;
    int status[2];
    char done = '1';
    (void)argv;
    char *bytes = read_plan(&size);
    if (argc != 1) {
        fail("plan", "box takes no arguments; the plan comes over standard input");
        return refuse();
    }
    if (!plan_parse(&plan, bytes, size))
        return refuse();
    if (pipe2(status, O_CLOEXEC) != 0 || fflush(NULL) != 0) {
        fail(NULL, "pipe: %m");
        return refuse();
    }
    pid_t supervisor = fork();
    if (supervisor == 0)
        supervise(&plan, status[1]);
    if (supervisor < 0) {
        fail(NULL, "cannot fork: %m");
        return refuse();
    }
    close(status[1]);
    return read_all(status[0], &done, 1) && done == '0' ? 0 : 1;
}
