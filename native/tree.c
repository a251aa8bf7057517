/* Killing whole process trees, from the agent itself: when a fork bomb has used up the sandbox's processes, nobody can be
 * forked to do it. One round is one look at /proc. First everything in the tree is stopped, round after round, until a look
 * finds nothing that runs: then nobody forks any more, and all are killed at once. It is over when the monitor, which adopts
 * every orphan of its tree, has no child left and ends.
 *
 * A tree is what descends from a condemned monitor, or (`hunting`) from a child of the agent that is neither monitor nor
 * worker: orphans whose monitor was killed.
 *
 * A pid may be reused between the look and the signal. A pidfd is opened first, then the start time is compared with the one
 * of the look; if the signal then arrives, the process was there all the time and is the one that was looked at. */
#include "tree.h"
#include "link.h"
#include "scan.h"
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { STOP_ROUNDS = 64, PAUSE_MS = 2, LONG_PAUSE_MS = 50, HASTY_KILLS = 100 };

struct process {
    pid_t pid, parent;
    char state;
    uint64_t started;
};

struct look {
    struct process *all; /* sorted by pid */
    size_t count, room;
};

/* ---- looking ---- */

/* "PID (name) STATE PPID ... STARTTIME": the name is the process's own choice, so what counts starts at the last ')'. */
static bool read_process(pid_t pid, struct process *process) {
    char path[32], text[1024];
    snprintf(path, sizeof path, "%d/stat", (int)pid);
    AUTO_FD int fd = openat(agent.proc, path, O_RDONLY | O_CLOEXEC);
    ssize_t size = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (size <= 0)
        return false;
    text[size] = 0;
    const char *at = strrchr(text, ')');
    long parent;
    unsigned long long started;
    *process = (struct process){.pid = pid};
    if (!at || scan(at, ") %c %ld %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %llu", &process->state, &parent, &started) != 3)
        return false;
    process->parent = (pid_t)parent;
    process->started = started;
    return true;
}

static void look_add(struct look *look, const char *name) {
    uint64_t pid;
    struct process process;
    if (!parse_u64(name, &pid) || pid > INT32_MAX || !read_process((pid_t)pid, &process))
        return;
    if (look->count == look->room)
        look->all = must_grow(look->all, (look->room = look->room * 2 + 64) * sizeof *look->all);
    look->all[look->count++] = process;
}

static int by_pid(const void *a, const void *b) {
    const struct process *left = a, *right = b;
    return (left->pid > right->pid) - (left->pid < right->pid);
}

struct directory_entry {
    uint64_t inode, offset;
    uint16_t size;
    uint8_t type;
    char name[];
};

static void look_around(struct look *look) {
    static _Alignas(8) char bytes[32 << 10];
    ssize_t size;
    look->count = 0;
    lseek(agent.proc, 0, SEEK_SET);
    while ((size = syscall(SYS_getdents64, agent.proc, bytes, sizeof bytes)) > 0)
        for (ssize_t at = 0; at < size;) {
            const struct directory_entry *entry = (const void *)(bytes + at);
            at += entry->size;
            look_add(look, entry->name);
        }
    if (look->count)
        qsort(look->all, look->count, sizeof *look->all, by_pid);
}

static const struct process *look_up(const struct look *look, pid_t pid) {
    struct process key = {.pid = pid};
    return look->count ? bsearch(&key, look->all, look->count, sizeof key, by_pid) : NULL;
}

/* Up through the parents to a child of the agent. The look is no snapshot: a chain may be broken, then the next round, which
 * sees the orphan adopted, decides. */
static bool doomed(const struct look *look, const struct process *process, const struct command *only) {
    const struct process *at = process;
    for (size_t steps = 0; at && steps <= look->count; steps++) {
        const struct command *command = command_of_monitor(at->pid);
        if (command)
            return at != process && (only ? command == only : command->condemned);
        if (at->parent == agent.self)
            return !only && agent.hunting && !link_of_worker(at->pid);
        at = look_up(look, at->parent);
    }
    return false;
}

/* ---- signalling ---- */

static int send_signal(int pidfd, pid_t pid, int signal) {
    int result = pidfd < 0 ? kill(pid, signal) : (int)syscall(SYS_pidfd_send_signal, pidfd, signal, NULL, 0);
    return result < 0 ? errno : 0;
}

static int open_process(pid_t pid) {
    return (int)syscall(SYS_pidfd_open, pid, 0);
}

static void signal_process(const struct process *process, int signal) {
    struct process again;
    AUTO_FD int pidfd = open_process(process->pid);
    if (pidfd < 0 && errno == ESRCH)
        return;
    if (read_process(process->pid, &again) && again.started == process->started) /* its parent may have died of this very round */
        send_signal(pidfd, process->pid, signal);
}

pid_t parent_of(pid_t pid) {
    struct process process;
    return read_process(pid, &process) ? process.parent : 0;
}

int signal_child(pid_t pid, pid_t parent, int signal) {
    AUTO_FD int pidfd = open_process(pid);
    if (pidfd < 0 && errno == ESRCH)
        return ESRCH;
    return parent_of(pid) == parent ? send_signal(pidfd, pid, signal) : ESRCH;
}

static size_t signal_doomed(const struct look *look, const struct command *only, int signal, bool running_only) {
    size_t count = 0;
    for (size_t i = 0; i < look->count; i++) {
        const struct process *process = &look->all[i];
        if ((running_only && !strchr("RS", process->state)) || !doomed(look, process, only))
            continue;
        signal_process(process, signal);
        count++;
    }
    return count;
}

/* ---- rounds ---- */

static struct look look;

void tree_signal(const struct command *command, int signal) {
    look_around(&look);
    signal_doomed(&look, command, signal, false);
}

static bool wake_condemned(void) {
    bool any = false;
    for (struct command *command = commands; command; command = command->next)
        if (command->condemned && command->monitor) {
            kill(command->monitor, SIGCONT); /* it may have been stopped, and it is to reap */
            any = true;
        }
    return any;
}

uint64_t trees_sweep(void) {
    static unsigned stops, kills;
    if (!wake_condemned() && !agent.hunting) {
        stops = kills = 0;
        return NEVER;
    }
    look_around(&look);
    if (stops < STOP_ROUNDS && signal_doomed(&look, NULL, SIGSTOP, true)) {
        stops++;
        return agent.now;
    }
    stops = 0;
    if (signal_doomed(&look, NULL, SIGKILL, false) == 0)
        agent.hunting = false;
    /* What is in the middle of a system call dies when that returns. */
    return agent.now + (kills++ < HASTY_KILLS ? PAUSE_MS : LONG_PAUSE_MS);
}
