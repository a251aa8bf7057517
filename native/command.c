/* Commands: the table, starting, exits, forgetting. Knows nothing of links beyond "somebody reads this". */
#include "command.h"
#include "link.h"
#include "list.h"
#include "output.h"
#include "spawn.h"
#include "tree.h"
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

enum { BUCKETS = 1024, BIG_SHARE = 8 };

struct command *commands;
static struct command *buckets[BUCKETS];
static size_t known_count;

/* ---- the table ---- */

static struct command **bucket_of(const uint8_t id[ID_SIZE]) {
    uint32_t hash = 2166136261u;
    for (int i = 0; i < ID_SIZE; i++)
        hash = (hash ^ id[i]) * 16777619u;
    return &buckets[hash % BUCKETS];
}

struct command *command_find(const uint8_t id[ID_SIZE]) {
    struct command *command = *bucket_of(id);
    while (command && memcmp(command->id, id, ID_SIZE) != 0)
        command = command->same_hash;
    return command;
}

struct command *command_of_monitor(pid_t pid) {
    struct command *command = commands;
    while (command && command->monitor != pid)
        command = command->next;
    return command;
}

void command_changed(struct command *command) {
    command->version++;
}

static void table_add(struct command *command) {
    struct command **bucket = bucket_of(command->id);
    command->same_hash = *bucket;
    *bucket = command;
    command->next = commands;
    if (commands)
        commands->previous = command;
    commands = command;
    command->known = true;
    known_count++;
}

static void command_free(struct command *command) {
    if (command->previous)
        command->previous->next = command->next;
    else
        commands = command->next;
    if (command->next)
        command->next->previous = command->previous;
    watch_end(&command->report);
    input_close(command);
    stream_close(&command->out[0]);
    stream_close(&command->out[1]);
    free(command->readers);
    buffer_free(&command->about);
    free(command->error);
    free(command);
}

/* With descendants left it stays, unknown, to read their output into the void until its monitor is gone. */
void command_forget(struct command *command) {
    struct command **at = bucket_of(command->id);
    if (!command->known)
        return;
    while (*at != command)
        at = &(*at)->same_hash;
    *at = command->same_hash;
    command->known = false;
    known_count--;
    links_forget(command);
    stream_abandon(&command->out[0]);
    stream_abandon(&command->out[1]);
    if (!command->monitor)
        command_free(command);
}

void command_release(struct command *command) {
    command->released = true;
    if (command->state == COMMAND_EXITED)
        command_forget(command);
}

static bool make_room(void) {
    struct command *oldest = NULL;
    if (known_count < MAX_COMMANDS)
        return true;
    for (struct command *at = commands; at; at = at->next)
        if (at->known && at->state == COMMAND_EXITED && (!oldest || at->record.ended_us <= oldest->record.ended_us))
            oldest = at;
    if (oldest)
        command_forget(oldest);
    return oldest;
}

/* ---- starting ---- */

/* Their end blocks, ours does not: it is another open file. */
static int open_pipe(int *ours, bool we_read) {
    int ends[2];
    *ours = -1;
    if (pipe2(ends, O_CLOEXEC) < 0)
        return -1;
    *ours = ends[we_read ? 0 : 1];
    fcntl(*ours, F_SETFL, O_NONBLOCK);
    return ends[we_read ? 1 : 0];
}

static bool is_ptmx(int fd) {
    struct stat info;
    return fstat(fd, &info) == 0 && S_ISCHR(info.st_mode) && info.st_rdev == makedev(5, 2);
}

/* Through the directory that was opened when the sandbox was still ours, or else checked: what is named /dev/ptmx may be
 * anything by now. */
static int open_ptmx(void) {
    int flags = O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC;
    int fd = agent.pts >= 0 ? openat(agent.pts, "ptmx", flags) : -1;
    if (fd < 0)
        fd = open("/dev/ptmx", flags);
    if (fd >= 0 && !is_ptmx(fd)) {
        close(fd);
        errno = ENXIO;
        return -1;
    }
    return fd;
}

/* gVisor cannot open the other side by the first one, so by its number. */
static int open_peer(int ptmx) {
    int flags = O_RDWR | O_NOCTTY | O_CLOEXEC, fd = ioctl(ptmx, TIOCGPTPEER, flags);
    char name[16];
    unsigned number;
    if (fd >= 0 || ioctl(ptmx, TIOCGPTN, &number) < 0)
        return fd;
    snprintf(name, sizeof name, "%u", number);
    return openat(agent.pts, name, flags);
}

static int open_terminal(int *ours, const struct start_request *start) {
    int zero = 0;
    struct winsize size = {.ws_row = start->rows, .ws_col = start->columns};
    *ours = open_ptmx();
    if (*ours < 0)
        return -1;
    ioctl(*ours, TIOCSPTLCK, &zero);
    ioctl(*ours, TIOCSWINSZ, &size);
    return open_peer(*ours);
}

/* What the command gets as 0, 1, 2 (`theirs`) and what stays here (`ours`, -1: nothing); all of them are closed by the caller. */
static bool open_terminal_streams(const struct start_request *start, int ours[3], int theirs[3]) {
    theirs[0] = open_terminal(&ours[1], start);
    ours[0] = theirs[0] < 0 ? -1 : fcntl(ours[1], F_DUPFD_CLOEXEC, 4);
    theirs[1] = theirs[2] = theirs[0];
    return ours[0] >= 0;
}

static bool open_streams(const struct start_request *start, int ours[3], int theirs[3]) {
    uint32_t flags = start->flags;
    if (flags & START_PTY)
        return open_terminal_streams(start, ours, theirs);
    theirs[0] = flags & START_STDIN ? open_pipe(&ours[0], false) : agent.null;
    theirs[1] = flags & START_STDOUT_NULL ? agent.null : open_pipe(&ours[1], true);
    if (flags & START_STDERR_TO_STDOUT)
        theirs[2] = theirs[1];
    else
        theirs[2] = flags & START_STDERR_NULL ? agent.null : open_pipe(&ours[2], true);
    return theirs[0] >= 0 && theirs[1] >= 0 && theirs[2] >= 0;
}

static void close_theirs(const int theirs[3]) {
    for (int i = 0; i < 3; i++) {
        bool again = (i > 0 && theirs[i] == theirs[0]) || (i > 1 && theirs[i] == theirs[1]);
        if (theirs[i] >= 0 && theirs[i] != agent.null && !again)
            close(theirs[i]);
    }
}

static void report_ready(struct watch *watch, uint32_t events);

static bool runs(const struct command *command) {
    return command->state == COMMAND_RUNNING || command->state == COMMAND_STARTING;
}

static bool any_runs(void) {
    const struct command *command = commands;
    while (command && !runs(command))
        command = command->next;
    return command;
}

static struct command *command_make(const struct start_request *start, pid_t monitor, const int ours[3], int report) {
    struct command *command = must_alloc(sizeof *command);
    *command = (struct command){.flags = start->flags, .monitor = monitor, .deadline = NEVER, .oom_before = oom_kills(),
                                .started_as = ++agent.starts, .first_alone = !any_runs()};
    memcpy(command->id, start->id, ID_SIZE);
    if (start->timeout_ms && start->timeout_ms < NEVER - agent.now)
        command->deadline = agent.now + start->timeout_ms;
    command->report = (struct watch){.fd = report, .ready = report_ready};
    watch_set(&command->report, EPOLLIN);
    stream_open(command, &command->out[0], ours[1], start);
    stream_open(command, &command->out[1], ours[2], start);
    input_open(command, ours[0]);
    command_describe(command, start);
    table_add(command);
    return command;
}

static struct command *start_with(const struct start_request *start, const int ours[3], const int theirs[3]) {
    int report[2];
    if (pipe2(report, O_CLOEXEC | O_NONBLOCK) < 0)
        return NULL;
    pid_t monitor = spawn_monitor(start, theirs, report[1]);
    close(report[1]);
    if (monitor > 0)
        return command_make(start, monitor, ours, report[0]);
    close(report[0]);
    return NULL;
}

static const char *limit_sentence(int why) {
    if (why == EAGAIN)
        return "no process can be started: the sandbox's limit of processes (pids) is reached";
    if (why == ENOMEM)
        return "no process can be started: the sandbox's memory limit is reached";
    return "no process can be started: the agent has too many open descriptors";
}

struct command *command_start(const struct start_request *start, uint32_t *code, const char **sentence) {
    int ours[3] = {-1, -1, -1}, theirs[3] = {-1, -1, -1};
    *code = ERROR_INVALID;
    *sentence = "a command needs at least its name";
    if (!start->argv[0])
        return NULL;
    *code = ERROR_UNSUPPORTED;
    *sentence = "unknown flags";
    if (start->flags & ~(uint32_t)START_ALL_FLAGS)
        return NULL;
    *code = ERROR_LIMIT;
    *sentence = "4096 commands are running already";
    if (!make_room())
        return NULL;
    struct command *command = open_streams(start, ours, theirs) ? start_with(start, ours, theirs) : NULL;
    int why = errno;
    close_theirs(theirs);
    if (command)
        return command;
    for (int i = 0; i < 3; i++)
        close_fd(&ours[i]);
    *sentence = limit_sentence(why);
    if (start->flags & START_PTY && why != EAGAIN && why != ENOMEM && why != EMFILE && why != ENFILE) {
        *code = ERROR_UNSUPPORTED;
        *sentence = "the sandbox has no terminals (/dev/pts is missing or cannot be used)";
    }
    return NULL;
}

/* ---- what the monitor tells ---- */

/* The kernel tells that something in the sandbox was killed for memory, and not what. A command that dies of it, or says that something
 * went wrong, lost a process to it. One that exits with 0 did if it was alone, or if one of its processes (the shell that waited for it
 * inherited its peak) had an eighth of the memory; else it was another command's. */
static bool lost_to_memory(const struct command *command) {
    const struct record *record = &command->record;
    bool alone = command->first_alone && command->started_as == agent.starts;
    bool big = record->rss_kib >= agent.memory_kib / BIG_SHARE;
    return oom_kills() > command->oom_before && (record->killed || record->code || alone || big);
}

static void set_record(struct command *command, const struct report *report) {
    struct record *record = &command->record;
    record->killed = WIFSIGNALED(report->status) || command->timed_out;
    record->code = (uint8_t)(WIFSIGNALED(report->status) ? WTERMSIG(report->status) : WEXITSTATUS(report->status));
    if (command->timed_out)
        record->code = SIGKILL;
    record->timed_out = command->timed_out;
    record->ended_us = report->at_us;
    record->cpu_us = report->cpu_us;
    record->rss_kib = report->rss_kib;
    record->oom = !command->timed_out && lost_to_memory(command);
}

static void command_exited(struct command *command, const struct report *report) {
    if (command->state == COMMAND_EXITED)
        return;
    command->state = COMMAND_EXITED;
    command->deadline = NEVER;
    set_record(command, report);
    input_close(command);
    stream_finish(&command->out[0]);
    stream_finish(&command->out[1]);
    agent.active = agent.now;
    command_changed(command);
}

static void take_report(struct command *command, const struct report *report) {
    if (report->kind == REPORT_STARTED) {
        command->state = COMMAND_RUNNING;
        command->leader = report->pid;
        command->record.started_us = report->at_us;
    } else if (report->kind == REPORT_EXITED) {
        command_exited(command, report);
    } else {
        command->state = COMMAND_FAILED;
        command->error_code = report->code;
        command->error = must_copy(report->sentence);
    }
    command_changed(command);
}

static void read_reports(struct command *command) {
    struct report reports[2];
    ssize_t size = read(command->report.fd, reports, sizeof reports);
    if (size == 0 || (size < 0 && errno != EAGAIN && errno != EINTR))
        watch_end(&command->report);
    for (ssize_t i = 0; i < size / (ssize_t)sizeof *reports; i++)
        take_report(command, &reports[i]);
}

static void report_ready(struct watch *watch, uint32_t events) {
    (void)events;
    struct command *command = container_of(watch, struct command, report);
    read_reports(command);
    if (command->released && command->state == COMMAND_EXITED)
        command_forget(command);
}

/* The monitor is reaped. If it was killed, its report may be missing, and its orphans have become ours. */
void command_monitor_gone(struct command *command, int status) {
    if (command->report.fd >= 0)
        read_reports(command); /* both it may have told fit into one read */
    watch_end(&command->report);
    command->monitor = 0;
    command->condemned = false;
    if (!WIFEXITED(status))
        agent.hunting = true;
    if (command->state == COMMAND_STARTING || command->state == COMMAND_RUNNING)
        command_exited(command, &(struct report){.status = SIGKILL, .at_us = unix_us()});
    command_changed(command);
    if (!command->known)
        command_free(command);
    else if (command->released)
        command_forget(command);
}

/* ---- signals ---- */

void command_expired(struct command *command) {
    command->deadline = NEVER;
    command->timed_out = true;
    command->condemned = true;
}

int command_signal(struct command *command, int signal) {
    if (command->state != COMMAND_RUNNING)
        return ESRCH;
    return signal_child(command->leader, command->monitor, signal);
}

int command_resize(struct command *command, uint16_t rows, uint16_t columns) {
    struct winsize size = {.ws_row = rows, .ws_col = columns};
    int fd = command->out[0].watch.fd;
    if (!(command->flags & START_PTY) || fd < 0)
        return ENOTTY;
    if (ioctl(fd, TIOCSWINSZ, &size) < 0)
        return errno;
    if (agent.config->listen_fd < 0) /* gVisor's kernel tells it nobody; a signal that most ignore reaches too many rather than too few */
        tree_signal(command, SIGWINCH);
    return 0;
}
