/* The agent: process 1 inside every sandbox. Serves links on a listening socket, starts commands, keeps their output,
 * moves files, reaps. `box` calls agent_run() in the process that it has made a sandbox of; the verb `init` calls it in a container. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct agent_config {
    int listen_fd;            /* listening stream socket, unix or other; or -1: connections come over control_fd (passing.h) */
    int port_fd;              /* listening TCP socket, or -1. Whoever comes there needs the token, and cannot set up */
    int control_fd;           /* to the supervisor (SOCK_SEQPACKET), or -1. Its end of file means that the supervisor is gone: exit */
    const char *token;        /* what AUTH must carry, or NULL */
    uint64_t setup_ms;        /* nothing but SETUP is answered, and without it the agent ends after so long; 0: set up already */
    bool linger;              /* then stay, with nothing else running, until SIGTERM comes from outside */
    bool report;              /* at the end, tell on stdout what is kept of the main command's output, and how it ended */
    uint64_t timeout_ms;      /* the agent's own deadline, 0: none (embedded: the supervisor keeps it) */
    uint64_t idle_ms;         /* end when nothing ran and nobody asked for so long, 0: never */
    bool rests;               /* ... ask the supervisor for a pause then, and do not end */
    uint64_t lease_ms;        /* end when nobody asked for so long, whatever runs; 0: never */
    const char *user;         /* default user of commands, NULL or "": root (uid 0) */
    const char *workdir;      /* default working directory, NULL or "": "/" */
    char **env;               /* NAME=value, NULL-terminated: the base environment of commands */
    char **argv;              /* main command, NULL: none */
    uint32_t main_flags;      /* its START flags */
    int main_stdout;          /* where what is kept of its output goes at the end, or -1 */
    int main_stderr;
    bool tells_end;           /* the last line on main_stderr says how it ended, for whoever reads a container's log */
    int oom_fd;               /* a cgroup file opened outside, or -1: then the files of /sys/fs/cgroup are tried */
    int meminfo_fd;           /* what is shown as /proc/meminfo, to be kept true (meminfo.h), or -1 */
    uint64_t memory;          /* the limit that it tells, in bytes */
    int nice;                 /* of commands; our own may be lower */
    const char *oom_word;     /* the word in it behind which the kernel counts kills for memory ("oom_kill") */
};

/* Runs until the sandbox ends; the caller exits with what it returns. Before it returns it sends one message over control_fd:
 * "REASON RETURNCODE" with REASON exited (the main command did), timeout, idle, lease or terminated (SHUTDOWN). */
int agent_run(const struct agent_config *config);

/* In small pieces, each after a poll: a pipe that nobody reads must not hold us for long. */
bool write_patiently(int fd, const char *bytes, size_t size);
