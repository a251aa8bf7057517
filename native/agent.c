/* Process 1 of a sandbox: the event loop, time, signals, the main command, the end. Single-threaded; must never block, never
 * trust what runs beside it, and never need a process to be forked in order to end others.
 *
 * It may have been forked from a program that did other things before: it sets up its own signals, and closes nothing that it
 * has not opened. All signals are blocked for good; SIGCHLD (and, with no supervisor, SIGTERM and SIGINT) arrive in the loop. */
#include "agent.h"
#include "command.h"
#include "link.h"
#include "meminfo.h"
#include "output.h"
#include "passing.h"
#include "report.h"
#include "rest.h"
#include "spawn.h"
#include "state.h"
#include "tree.h"
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    BATCH = 64,
    LONGEST_SLEEP_MS = 30000, /* epoll's clock stands still while a machine is suspended, ours does not */
    DRAIN_MS = 2000,
    LOG_MS = 500,
    CONTAINER_LOG_MS = 10000,
    PART_MS = 500,
    COMMAND_OOM_ADJ = 500,
    MANY_DESCRIPTORS = 65536,
    KERNEL_SIGSET = 8,
};

struct agent agent;
static struct epoll_event batch[BATCH];
static int batched;
static struct watch listening, port, signals, control;

/* ---- watches ---- */

void watch_set(struct watch *watch, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = watch};
    if (watch->events == events)
        return;
    int operation = !events ? EPOLL_CTL_DEL : watch->events ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    epoll_ctl(agent.epoll, operation, watch->fd, &event);
    watch->events = events;
}

/* The explicit removal matters: a fork of ours may still hold the open file, and epoll would go on telling about it. */
void watch_end(struct watch *watch) {
    if (watch->fd < 0)
        return;
    watch_set(watch, 0);
    close(watch->fd);
    watch->fd = -1;
    for (int i = 0; i < batched; i++)
        if (batch[i].data.ptr == watch)
            batch[i].data.ptr = NULL;
}

/* ---- setting up ---- */

static void take_signals(void) {
    sigset_t all, wanted;
    const uint64_t plain[4] = {0}; /* the kernel's sigaction: SIG_DFL, no flags. By number, for C libraries keep 32 to 34 to themselves */
    for (int number = 1; number <= 64; number++)
        syscall(SYS_rt_sigaction, number, plain, NULL, KERNEL_SIGSET); /* commands inherit what is ignored */
    memset(&all, 0xff, sizeof all); /* sigfillset() leaves out the C library's own, which a command could then kill a monitor with */
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, NULL, KERNEL_SIGSET);
    sigemptyset(&wanted);
    sigaddset(&wanted, SIGCHLD);
    if (agent.config->control_fd < 0) {
        sigaddset(&wanted, SIGTERM);
        sigaddset(&wanted, SIGINT);
    }
    signals.fd = signalfd(-1, &wanted, SFD_CLOEXEC | SFD_NONBLOCK);
}

/* A monitor puts its command's descriptors at 0 to 2 and its report at 3: what they are made from must lie above. */
static bool fill_low_descriptors(void) {
    int fd;
    do
        fd = open("/dev/null", O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    while (fd >= 0 && fd <= 3);
    agent.null = fd;
    return fd >= 0;
}

static void open_oom_adj(void) {
    char text[16] = "";
    agent.oom_adj = open("/proc/self/oom_score_adj", O_RDWR | O_CLOEXEC);
    if (agent.oom_adj >= 0 && read(agent.oom_adj, text, sizeof text - 1) > 0)
        agent.oom_adj_self = atoi(text);
    agent.oom_adj_command = agent.oom_adj_self > COMMAND_OOM_ADJ ? agent.oom_adj_self : COMMAND_OOM_ADJ;
}

static void raise_descriptor_limit(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur == limit.rlim_max)
        return;
    agent.nofile = limit.rlim_cur;
    if (limit.rlim_cur < MANY_DESCRIPTORS)
        limit.rlim_cur = limit.rlim_max < MANY_DESCRIPTORS ? limit.rlim_max : MANY_DESCRIPTORS;
    setrlimit(RLIMIT_NOFILE, &limit);
}

static bool set_up(const struct agent_config *config) {
    agent = (struct agent){.config = config, .self = getpid(), .end_by = NEVER, .now = now_ms(), .timeout_ms = config->timeout_ms};
    agent.active = agent.asked = agent.now;
    open_oom_adj(); /* before we are not dumpable: then it belongs to nobody */
    prctl(PR_SET_DUMPABLE, 0);
    prctl(PR_SET_CHILD_SUBREAPER, 1); /* as process 1 we are that anyway */
    umask(022);
    if (chdir("/") < 0 || !fill_low_descriptors())
        return false;
    agent.epoll = epoll_create1(EPOLL_CLOEXEC);
    agent.proc = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    agent.pts = open("/dev/pts", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    oom_open();
    raise_descriptor_limit();
    take_signals();
    return agent.epoll >= 0 && agent.proc >= 0 && signals.fd >= 0;
}

/* ---- signals and children ---- */

static void reap(void) {
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG | WUNTRACED | __WALL)) > 0;) {
        struct command *command = command_of_monitor(pid);
        if (WIFSTOPPED(status) && (command || link_of_worker(pid)))
            kill(pid, SIGCONT); /* a command stopped it, and with it the news of its own end */
        if (WIFSTOPPED(status))
            continue;
        if (command)
            command_monitor_gone(command, status);
        else
            link_worker_gone(pid, status);
    }
}

/* Process 1 has parents only outside of its namespace, and their signals come from "pid 0"; what runs in the sandbox cannot end it. */
static void signals_ready(struct watch *watch, uint32_t events) {
    struct signalfd_siginfo info;
    (void)events;
    while (read(watch->fd, &info, sizeof info) == sizeof info)
        if (info.ssi_signo != SIGCHLD && (agent.self != 1 || info.ssi_pid == 0))
            agent_end("terminated", 137, 0);
    reap();
}

static void control_ready(struct watch *watch, uint32_t events) {
    char byte[2];
    int fd = -1;
    ssize_t n = receive_with(watch->fd, byte, sizeof byte, &fd, 1, MSG_DONTWAIT);
    if (fd >= 0) {
        fcntl(fd, F_SETFL, O_NONBLOCK);
        links_take(fd);
    }
    if (n > 0)
        rest_hear(byte[0]);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR) || (n < 0 && events & EPOLLHUP))
        agent_end("terminated", 137, 0); /* the supervisor is gone, so nobody reads why */
}

/* ---- the main command ---- */

static const uint8_t main_id[ID_SIZE];

static void start_main(void) {
    static char *no_env[1];
    struct start_request start = {.keep = KEEP_UNSAID, .flags = agent.config->main_flags, .user = "", .workdir = "", .argv = agent.config->argv, .env = no_env};
    uint32_t code;
    const char *sentence;
    if (!command_start(&start, &code, &sentence)) {
        dprintf(agent.config->main_stderr, "openmodal: %s\n", sentence);
        agent_end("exited", 126, 0);
    }
}

/* In small pieces, each after a poll: a pipe that nobody reads must not hold us for longer. A container's log has a reader, a slow one. */
bool write_patiently(int fd, const char *bytes, size_t size) {
    while (size) {
        struct pollfd writable = {.fd = fd, .events = POLLOUT};
        if (poll(&writable, 1, agent.config->tells_end ? CONTAINER_LOG_MS : LOG_MS) != 1)
            return false;
        ssize_t n = write(fd, bytes, size < PIPE_BUF ? size : PIPE_BUF);
        if (n < 0)
            return false;
        bytes += n;
        size -= (size_t)n;
    }
    return true;
}

static void write_kept(const struct stream *stream, int fd) {
    struct iovec pieces[2];
    int count = fd < 0 ? 0 : ring_bytes(&stream->ring, stream->ring.start, ring_size(&stream->ring), pieces);
    for (int i = 0; i < count; i++)
        if (!write_patiently(fd, pieces[i].iov_base, pieces[i].iov_len))
            return;
}

/* Once, for whoever asks after the end: what is kept of the main command's output in memory, the newest. */
static void leave_output(const struct command *main) {
    static bool left;
    if (left || !main || agent.config->report)
        return;
    left = true;
    if (agent.config->tells_end) {
        report_stream(&main->out[0].ring, '1', agent.config->main_stdout, SIZE_MAX);
        report_stream(&main->out[1].ring, '2', agent.config->main_stderr, SIZE_MAX);
        return;
    }
    write_kept(&main->out[0], agent.config->main_stdout);
    write_kept(&main->out[1], agent.config->main_stderr);
}

static void main_failed(struct command *command) {
    dprintf(agent.config->main_stderr, "openmodal: %s\n", command->error);
    agent_end("exited", 126, 0);
}

static void main_exited(struct command *command) {
    const struct record *record = &command->record;
    leave_output(command);
    bool oom = !agent.config->report && agent.config->control_fd < 0 && record->oom && record->killed; /* a supervisor asks the kernel itself */
    agent_end(oom ? "oom" : "exited", record->killed ? 128 + record->code : record->code, DRAIN_MS);
}

/* Who reads the main command gets the rest of its output before everything is gone. */
static void watch_main(void) {
    struct command *command = agent.config->argv ? command_find(main_id) : NULL;
    if (!command)
        return;
    if (command->state == COMMAND_FAILED && !agent.reason)
        main_failed(command);
    if (command->state == COMMAND_EXITED && !agent.reason)
        main_exited(command);
    if (command->state == COMMAND_EXITED && command_readers_know(command) && links_drained())
        agent.end_by = agent.now;
}

/* ---- time ---- */

void agent_end(const char *reason, int returncode, uint64_t grace_ms) {
    if (!agent.reason) {
        agent.reason = reason;
        agent.returncode = returncode;
    }
    if (agent.now + grace_ms < agent.end_by)
        agent.end_by = agent.now + grace_ms;
}

/* The main command does not count: it is mostly one that waits (a server, sleep), and would keep every sandbox for its whole lifetime.
 * Who reads its output, or writes to it, does: that is a request. */
static bool is_idle(void) {
    for (struct command *command = commands; command; command = command->next)
        if ((command->state == COMMAND_RUNNING || command->state == COMMAND_STARTING) && memcmp(command->id, main_id, ID_SIZE) != 0)
            return false;
    return !links_busy();
}

/* True: requests REST that wait for it are to be answered. */
static bool be_idle(void) {
    if (agent.config->rests)
        return rest_wish();
    agent_end("idle", 124, 0);
    return false;
}

/* A lease is renewed by requests alone: what runs in the sandbox may run for ever when its owner is dead. When it is due. */
static uint64_t lease_due(void) {
    uint64_t lease_ms = agent.config->lease_ms;
    if (!lease_ms)
        return NEVER;
    if (links_busy())
        agent.asked = agent.now;
    if (agent.now - agent.asked >= lease_ms)
        agent_end("lease", 124, 0);
    return agent.asked + lease_ms;
}

static void sooner(uint64_t *first, uint64_t at) {
    if (at < *first)
        *first = at;
}

/* What is due now is done; when the next is due. */
static uint64_t do_what_is_due(uint64_t *sweep_at) {
    uint64_t next = links_deadline(), idle_ms = agent.config->idle_ms, timeout_ms = agent.timeout_ms, born = agent.born;
    uint64_t setup_ms = agent.config->setup_ms;
    for (struct command *command = commands; command; command = command->next) {
        if (agent.now >= command->deadline)
            command_expired(command);
        sooner(&next, command->deadline);
        for (int i = 0; i < 2; i++) {
            stream_tick(&command->out[i]);
            sooner(&next, command->out[i].detach_at);
        }
        if (command->condemned && command->monitor && *sweep_at == NEVER)
            *sweep_at = agent.now;
    }
    if (agent.hunting || agent.now >= *sweep_at)
        *sweep_at = agent.now >= *sweep_at || *sweep_at == NEVER ? trees_sweep() : *sweep_at;
    sooner(&next, *sweep_at);
    if (agent.deaf_until > agent.now)
        sooner(&next, agent.deaf_until);
    if (timeout_ms && agent.now - born >= timeout_ms)
        agent_end("timeout", 124, 0);
    if (setup_ms && agent.now - born >= setup_ms)
        agent_end("abandoned", 124, 0);
    if (setup_ms)
        sooner(&next, born + setup_ms);
    if (!is_idle()) {
        agent.active = agent.now;
        sooner(&next, meminfo_refresh(agent.config, agent.now));
    }
    if (idle_ms && agent.now - agent.active >= idle_ms && be_idle())
        next = agent.now;
    if (timeout_ms)
        sooner(&next, born + timeout_ms);
    if (idle_ms && rest_counts())
        sooner(&next, agent.active + idle_ms);
    if (rest_is_asked())
        next = agent.now;
    sooner(&next, lease_due());
    sooner(&next, agent.end_by);
    return next;
}

static int sleep_until(uint64_t next) {
    if (next <= agent.now)
        return 0;
    uint64_t ms = next - agent.now;
    return next == NEVER ? -1 : ms < LONGEST_SLEEP_MS ? (int)ms : LONGEST_SLEEP_MS;
}

/* Also again, if that was left for want of descriptors. */
static void listen_to(struct watch *watch) {
    if (watch->fd >= 0 && agent.now >= agent.deaf_until)
        watch_set(watch, EPOLLIN);
}

/* A sandbox that was paused, or whose machine was suspended, begins its idle time anew: somebody
 * let it go on. */
static void note_pause(uint64_t begun, int timeout) {
    enum { LATE_MS = 1000 };
    if (timeout >= 0 && agent.now - begun > (uint64_t)timeout + LATE_MS)
        agent.active = agent.asked = agent.now;
}

/* Whether anything happened. */
static bool turn(int timeout) {
    uint64_t begun = agent.now;
    batched = epoll_wait(agent.epoll, batch, BATCH, timeout);
    bool news = batched != 0;
    agent.now = now_ms();
    note_pause(begun, timeout);
    for (int i = 0; i < batched; i++) {
        struct watch *watch = batch[i].data.ptr;
        if (watch)
            watch->ready(watch, batch[i].events);
    }
    batched = 0;
    return news;
}

/* ---- the end ---- */

/* As process 1 our exit kills all; else (a test, a container with another process 1) we do it ourselves. And where we part from links
 * slowly, or write what the main command has left, before that: nothing shall run on meanwhile. */
static void kill_everything(void) {
    uint64_t give_up = now_ms() + DRAIN_MS;
    for (struct command *command = commands; command; command = command->next)
        command->condemned = true;
    if (agent.self == 1 && agent.config->argv)
        kill(-1, SIGKILL);
    while ((agent.self != 1 || agent.config->report) && trees_sweep() != NEVER && agent.now < give_up) {
        usleep(1000);
        agent.now = now_ms();
        reap();
    }
}

/* Nobody but us can write there: in a sandbox our descriptors are closed to everybody. */
static void tell_end(const char *text) {
    char line[96];
    int size = snprintf(line, sizeof line, "\nopenmodal: %s\n", text);
    write_patiently(agent.config->main_stderr, line, (size_t)size);
}

/* What started us starts again what exits, and that would be a new sandbox in the place of the old one: so we stay until we are told to go. */
static void linger(void) {
    struct signalfd_siginfo info;
    kill(-1, SIGKILL);
    watch_end(&listening);
    watch_end(&port);
    fcntl(signals.fd, F_SETFL, 0);
    do
        reap();
    while (read(signals.fd, &info, sizeof info) == sizeof info && (info.ssi_signo == SIGCHLD || info.ssi_pid != 0));
}

static int finish(void) {
    char text[96];
    kill_everything();
    const struct command *main = agent.config->argv ? command_find(main_id) : NULL;
    leave_output(main);
    unsigned long long out = main ? stream_written(&main->out[0]) : 0, err = main ? stream_written(&main->out[1]) : 0;
    int size = snprintf(text, sizeof text, "%s %d %llu %llu", agent.reason, agent.returncode, out, err);
    if (agent.config->report) {
        report_end(main);
        links_part(PART_MS);
        if (agent.config->linger && agent.self == 1)
            linger();
    }
    if (agent.config->control_fd >= 0)
        send(agent.config->control_fd, text, (size_t)size, MSG_NOSIGNAL);
    if (agent.config->tells_end)
        tell_end(text);
    return strcmp(agent.reason, "terminated") == 0 ? 0 : agent.returncode;
}

/* As runc does: an image may name a folder that it does not have. What cannot be made is told by the first command. */
static void make_workdir(const char *workdir) {
    char *path = must_copy(workdir);
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(path, 0755);
        *slash = '/';
    }
    mkdir(path, 0755);
    free(path);
}

void agent_set_up(const struct setup_request *setup) {
    static struct agent_config config;
    config = *agent.config;
    config.setup_ms = 0;
    config.token = setup->token;
    config.timeout_ms = setup->timeout_ms;
    config.idle_ms = setup->idle_ms;
    config.lease_ms = setup->lease_ms;
    config.user = setup->user;
    if (*setup->workdir)
        config.workdir = setup->workdir;
    config.main_flags = setup->main_flags;
    config.argv = setup->argv[0] ? setup->argv : NULL;
    config.env = env_over(agent.config->env, setup->env, 0);
    agent.config = &config;
    agent.born = agent.active = agent.asked = agent.now;
    agent.timeout_ms = config.timeout_ms;
    if (config.workdir && config.workdir[0] == '/')
        make_workdir(config.workdir);
    if (config.argv)
        start_main();
}

int agent_run(const struct agent_config *config) {
    uint64_t sweep_at = NEVER;
    if (!set_up(config)) {
        dprintf(STDERR_FILENO, "openmodal-agent: the agent needs /proc, /dev/null and a few descriptors: %s\n", strerror(errno));
        return 1;
    }
    if (config->workdir && config->workdir[0] == '/')
        make_workdir(config->workdir);
    agent.born = agent.now;
    agent.birth = random_number();
    listening = (struct watch){.fd = config->listen_fd, .ready = links_accept};
    port = (struct watch){.fd = config->port_fd, .ready = links_accept_remote};
    control = (struct watch){.fd = config->control_fd, .ready = control_ready};
    signals.ready = signals_ready;
    if (config->listen_fd >= 0)
        fcntl(config->listen_fd, F_SETFL, O_NONBLOCK);
    watch_set(&signals, EPOLLIN);
    if (control.fd >= 0)
        watch_set(&control, EPOLLIN);
    if (config->argv)
        start_main();
    for (uint64_t next = agent.now;;) {
        listen_to(&listening);
        listen_to(&port);
        bool asked = rest_is_asked(), news = turn(sleep_until(next));
        links_progress();
        watch_main();
        next = do_what_is_due(&sweep_at);
        if (asked)
            rest_answer(!news, is_idle() && links_drained() && agent.now - agent.active >= config->idle_ms);
        if (agent.now >= agent.end_by)
            return finish();
    }
}
