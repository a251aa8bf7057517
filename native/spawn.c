/* The monitor and the way to the command's exec. Nothing here runs in the agent except the fork() itself, so this part may
 * block. It must not hold a descriptor of another command, and must not be traced by the command (it is a copy of the agent,
 * hence not dumpable). All signals are blocked in it: only SIGKILL and SIGSTOP reach it, and the agent copes with both. */
#include "relay.h"
#include "spawn.h"
#include "users.h"
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { REPORT_FD = 3 };
enum step { STEP_NONE, STEP_TERMINAL, STEP_WORKDIR, STEP_USER, STEP_EXEC };

struct job {
    const struct start_request *start;
    const char *name, *workdir, *path;
    char **env;
    bool change_user;
    struct user user;
    enum step failed; /* written by the child: it shares our memory until it execs */
    int error;
};

/* ---- in the child, between clone and exec: few system calls, no allocation ---- */

static bool enter_workdir(const char *workdir) {
    char real[PATH_MAX];
    if (strcmp(workdir, "/") == 0)
        return true; /* the agent's own, inherited */
    if (chdir(workdir) < 0)
        return false;
    /* A directory outside of the root, reached through somebody's descriptor, reads "(unreachable)"; getcwd() refuses that. */
    if (!getcwd(real, sizeof real))
        return false;
    errno = EACCES;
    return strcmp(real, "/proc") != 0 && strncmp(real, "/proc/", 6) != 0;
}

/* By number: the wrappers of some C libraries signal the other threads, and the threads they would find are the monitor's. */
static bool become(const struct user *user) {
    bool same = user->uid == geteuid() && user->gid == getegid();
    if (syscall(SYS_setgroups, user->group_count, user->groups) < 0 && !(errno == EPERM && same))
        return false;
    return syscall(SYS_setresgid, user->gid, user->gid, user->gid) == 0 &&
           syscall(SYS_setresuid, user->uid, user->uid, user->uid) == 0;
}

static void give_limits_back(void) {
    struct rlimit limit;
    if (agent.nofile == 0 || getrlimit(RLIMIT_NOFILE, &limit) < 0)
        return;
    limit.rlim_cur = agent.nofile;
    setrlimit(RLIMIT_NOFILE, &limit);
}

/* As execvpe(), but with the command's own PATH and environment, and never the shell for what is no program. */
static void exec_searching(const struct job *job) {
    char file[PATH_MAX];
    size_t size = strlen(job->name);
    int worst = ENOENT;
    for (const char *at = job->path; *at && size; at += *at == ':') {
        size_t part = strcspn(at, ":");
        if (part && part + size + 2 <= sizeof file) {
            memcpy(file, at, part);
            file[part] = '/';
            memcpy(file + part + 1, job->name, size + 1);
            execve(file, job->start->argv, job->env);
            if (errno != ENOENT && errno != ENOTDIR)
                worst = errno;
            if (worst != ENOENT && worst != EACCES)
                break;
        }
        at += part;
    }
    errno = worst;
}

static int child(void *argument) {
    struct job *job = argument;
    sigset_t none;
    sigemptyset(&none);
    setsid();
    job->failed = STEP_TERMINAL;
    if (job->start->flags & START_PTY && ioctl(STDIN_FILENO, TIOCSCTTY, 0) < 0)
        goto failed;
    job->failed = STEP_WORKDIR;
    if (!enter_workdir(job->workdir))
        goto failed;
    job->failed = STEP_USER;
    if (job->change_user && !become(&job->user))
        goto failed;
    give_limits_back();
    close_from(3); /* the report too: it is close-on-exec, but nothing is to depend on that */
    sigprocmask(SIG_SETMASK, &none, NULL);
    job->failed = STEP_EXEC;
    if (strchr(job->name, '/'))
        execve(job->name, job->start->argv, job->env);
    else
        exec_searching(job);
failed:
    job->error = errno;
    _exit(127);
}

/* ---- in the monitor ---- */

static void tell(const struct report *report, size_t count) {
    if (write(REPORT_FD, report, count * sizeof *report) < 0)
        _exit(1);
}

static _Noreturn void refuse(uint32_t code, const char *what, const char *about, const char *why) {
    struct report report = {.kind = REPORT_FAILED, .code = code};
    snprintf(report.sentence, sizeof report.sentence, "%s %.100s %s", what, about, why);
    tell(&report, 1);
    _exit(0);
}

static bool has_name(const char *entry, const char *name, size_t size) {
    return strncmp(entry, name, size) == 0 && entry[size] == '=';
}

static char *env_find(char **env, const char *name) {
    for (size_t size = strlen(name); *env; env++)
        if (has_name(*env, name, size))
            return *env + size + 1;
    return NULL;
}

/* A later entry takes the place of an earlier one with its name. */
static void env_lay(char **env, char *entry) {
    size_t size = strcspn(entry, "=");
    for (; *env; env++)
        if (has_name(*env, entry, size))
            break;
    bool added = !*env;
    *env = entry;
    if (added)
        env[1] = NULL;
}

static void env_default(char **env, const char *name, const char *value) {
    if (!env_find(env, name))
        env_lay(env, must_format("%s=%s", name, value));
}

static size_t list_size(char **list) {
    size_t size = 0;
    while (list && list[size])
        size++;
    return size;
}

char **env_over(char **base, char **over, size_t room) {
    size_t based = list_size(base);
    char **env = must_alloc((based + list_size(over) + room + 1) * sizeof *env);
    if (based)
        memcpy(env, base, based * sizeof *env);
    env[based] = NULL;
    for (; *over; over++)
        if (strchr(*over, '='))
            env_lay(env, *over);
    return env;
}

static char **environment(const struct job *job) {
    char **env = env_over(agent.config->env, job->start->env, 7);
    env_default(env, "PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    env_default(env, "HOME", *job->user.home ? job->user.home : "/");
    if (*job->user.name)
        env_default(env, "USER", job->user.name);
    env_default(env, "LANG", "C.UTF-8");
    if (job->start->flags & START_PTY)
        env_default(env, "TERM", "xterm-256color");
    return env;
}

/* Root is known without a look into /etc/passwd; and without a user asked for nothing is changed at all. */
static void choose_user(struct job *job) {
    const char *spec = job->start->user, *why;
    if (!*spec)
        spec = agent.config->user ? agent.config->user : "";
    job->change_user = *spec && (strcmp(spec, "root") != 0 || geteuid() != 0 || getegid() != 0);
    if (job->change_user && strcmp(spec, "0") == 0 && geteuid() == 0 && getegid() == 0)
        job->change_user = false;
    if (!job->change_user && geteuid() == 0) {
        strcpy(job->user.name, "root");
        strcpy(job->user.home, access("/root", F_OK) == 0 ? "/root" : "/");
        return;
    }
    char own[16];
    snprintf(own, sizeof own, "%u", (unsigned)geteuid());
    if (!user_look_up(*spec ? spec : own, &job->user, &why))
        refuse(ERROR_INVALID, "user", spec, why);
}

static void choose_workdir(struct job *job) {
    const char *workdir = job->start->workdir;
    if (!*workdir)
        workdir = agent.config->workdir && *agent.config->workdir ? agent.config->workdir : "/";
    workdir = path_from(agent.config->workdir, workdir);
    if (strncmp(workdir, "/proc", 5) == 0 && (!workdir[5] || workdir[5] == '/'))
        refuse(ERROR_INVALID, "workdir", workdir, "is below /proc");
    job->workdir = workdir;
}

/* Ours and the child's first three, then the report; everything else that the agent holds goes. The sources are all above
 * REPORT_FD (agent.c fills the numbers below), so no dup2() overwrites a later source. */
static void arrange_descriptors(const int ends[3], int report) {
    for (int i = 0; i < 3; i++)
        dup2(ends[i], i);
    dup3(report, REPORT_FD, O_CLOEXEC);
    close_from(REPORT_FD + 1);
}

/* What is to be opened by its name (/dev/stdout) must be its user's: pipes are their maker's, mode 0600, and who is not root could
 * write to his own output only through the descriptor. Where that fails (gVisor's pipes), the rest works all the same. */
static void own_streams(const struct user *user) {
    struct stat info;
    for (int fd = 0; fd < 3; fd++) {
        bool ours = fstat(fd, &info) == 0 && (S_ISFIFO(info.st_mode) || isatty(fd));
        if (ours && fchown(fd, user->uid, S_ISFIFO(info.st_mode) ? user->gid : (gid_t)-1) != 0)
            return;
    }
}

static pid_t start_child(struct job *job) {
    static _Alignas(16) char stack[64 << 10];
    /* As vfork(): we sleep until it has its own memory, and read from ours what went wrong before that. */
    return clone(child, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, job);
}

/* The command is a connection. It keeps our memory, so it stays not dumpable; signals stay blocked. */
static pid_t start_relay(const struct job *job) {
    uint64_t port = 0, wait_ms = 0;
    const char *wait = job->start->argv[1];
    if (!parse_u64(job->name, &port) || port < 1 || port > 65535 || (wait && !parse_u64(wait, &wait_ms)))
        refuse(ERROR_INVALID, "port", job->name, "is no port, or its time to wait is none");
    int fd = relay_connect((uint16_t)port, wait_ms);
    if (fd < 0)
        refuse(ERROR_ERRNO + (uint32_t)errno, "port", job->name, strerror(errno));
    pid_t pid = fork();
    if (pid == 0) {
        setsid();
        dup2(fd, REPORT_FD);
        close_from(REPORT_FD + 1);
        relay_run(REPORT_FD);
    }
    close(fd);
    return pid;
}

static const char *exec_trouble(const struct job *job) {
    if (job->error == ENOENT && strchr(job->name, '/') && access(job->name, F_OK) == 0)
        return "the program that is to run it was not found";
    return job->error == ENOENT || job->error == ENOTDIR ? "not found" : strerror(job->error);
}

static void end_unstarted(struct job *job, struct report *exited) {
    if (job->failed == STEP_WORKDIR) /* the caller's mistake, unless what serves the files fails: gVisor's, when it dies */
        refuse(job->error == EIO ? ERROR_ERRNO + EIO : ERROR_INVALID, "workdir", job->workdir,
               must_format("cannot be entered: %s; make that folder before, or name another", strerror(job->error)));
    if (job->failed == STEP_USER)
        refuse(ERROR_INVALID, "user", job->start->user,
               must_format("cannot be changed to: the sandbox has no ids %u:%u, or no right to change to them", job->user.uid, job->user.gid));
    if (job->failed == STEP_TERMINAL)
        refuse(ERROR_UNSUPPORTED, "a terminal", "", strerror(job->error));
    /* Who writes a whole line means a shell. */
    bool line = job->error == ENOENT && !job->start->argv[1] && strpbrk(job->name, " \t\n");
    dprintf(STDERR_FILENO, "openmodal: %.3000s: %s%s\n", job->name, exec_trouble(job),
            line ? "; a line for a shell is run by one, as in \"sh\", \"-c\", \"the line\"" : "");
    exited->status = (job->error == ENOENT || job->error == ENOTDIR ? 127 : 126) << 8;
}

static struct report wait_for(pid_t leader, bool *last) {
    struct report exited = {.kind = REPORT_EXITED, .pid = leader};
    struct rusage used = {0};
    pid_t pid;
    while ((pid = wait4(-1, &exited.status, __WALL, &used)) != leader)
        if (pid < 0 && errno == ECHILD) {
            *last = true;
            break;
        }
    exited.at_us = unix_us();
    exited.cpu_us = (uint64_t)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1000000 +
                    (uint64_t)(used.ru_utime.tv_usec + used.ru_stime.tv_usec);
    exited.rss_kib = (uint64_t)used.ru_maxrss;
    return exited;
}

static _Noreturn void monitor(struct job *job) {
    struct report reports[2] = {{.kind = REPORT_STARTED, .at_us = unix_us()}};
    bool last = false;
    pid_t leader = job->start->flags & START_CONNECT ? start_relay(job) : start_child(job);
    if (leader < 0)
        refuse(ERROR_LIMIT, "no process can be started:", strerror(errno), "(the sandbox's limit of processes or memory)");
    if (job->error) {
        reports[1] = wait_for(leader, &last);
        end_unstarted(job, &reports[1]);
        tell(reports, 2);
        _exit(0);
    }
    reports[0].pid = leader;
    syscall(SYS_close_range, 0, 2, 0); /* or the command's pipes would not end with the command */
    tell(reports, 1);
    reports[0] = wait_for(leader, &last);
    tell(reports, 1);
    while (!last && (wait4(-1, NULL, __WALL, NULL) >= 0 || errno == EINTR))
        continue;
    _exit(0);
}

/* Commands are better victims than the agent when memory runs out. The value is inherited through fork(), and a process
 * that is not dumpable cannot set it for itself, so the agent takes it for a moment. */
static void write_oom_adj(int value) {
    char text[16];
    int size = snprintf(text, sizeof text, "%d", value);
    if (agent.oom_adj >= 0 && pwrite(agent.oom_adj, text, (size_t)size, 0) < 0) {
        close(agent.oom_adj);
        agent.oom_adj = -1;
    }
}

pid_t spawn_monitor(const struct start_request *start, const int ends[3], int report) {
    write_oom_adj(agent.oom_adj_command);
    pid_t pid = fork();
    if (pid != 0) {
        int why = errno;
        write_oom_adj(agent.oom_adj_self);
        errno = why;
        return pid;
    }
    struct job job = {.start = start, .name = start->argv[0]};
    setpriority(PRIO_PROCESS, 0, agent.config->nice);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    arrange_descriptors(ends, report);
    choose_workdir(&job);
    choose_user(&job);
    if (job.change_user)
        own_streams(&job.user);
    job.env = environment(&job);
    job.path = env_find(job.env, "PATH");
    monitor(&job);
}
