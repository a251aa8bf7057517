/* Trying one helper after the other, and keeping what they say; see helper.h. */
#include "kernel.h"
#include "helper.h"

#include "fail.h"
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

/* AppArmor lets Debian 12's pasta look at no process but itself: it gets open descriptors. Newer ones close what they did not open, and
 * look for the process instead. These numbers are above all that a helper opens, so a closed one is never another file. */
#define NETNS "/proc/self/fd/100"
#define USERNS "/proc/self/fd/101"
enum { NETNS_FD = 100, USERNS_FD, WAIT_MS = 20000, STEP_MS = 2, MOST_SAID = 240 };

struct attempt {
    char **argv;
    int netns, userns;
    int said; /* where its standard error goes */
};

static char *filled_in(char *word, char *pid) {
    return strcmp(word, "@PID@") == 0 ? pid : strcmp(word, "@NETNS@") == 0 ? NETNS : strcmp(word, "@USERNS@") == 0 ? USERNS : word;
}

static _Noreturn void become(const struct attempt *attempt) {
    begin_child();
    dup2(attempt->netns, NETNS_FD);
    dup2(attempt->userns, USERNS_FD);
    dup2(attempt->said, 2);
    execvp(attempt->argv[0], attempt->argv);
    dprintf(2, "it cannot be executed: %s", strerror(errno));
    _exit(127);
}

/* A helper joins user namespaces and gets other rights by AppArmor; the kernel forgets then that it is to die with its parent. So the
 * parent is this process, which sees by the end of file that the supervisor is gone. It keeps none of the sandbox's files open. */
static _Noreturn void keep(const struct attempt *attempt, int lifeline) {
    enum { LIFELINE = 3, CHILD };
    begin_child();
    prctl(PR_SET_PDEATHSIG, 0);
    pid_t child = fork();
    if (child == 0)
        become(attempt);
    int pidfd = (int)syscall(NR_PIDFD_OPEN, child, 0), kept = fcntl(lifeline, F_DUPFD, CHILD + 1);
    dup2(fcntl(pidfd, F_DUPFD, CHILD + 1), CHILD);
    dup2(kept, LIFELINE);
    close_from(CHILD + 1);
    struct pollfd from[] = {{LIFELINE, POLLIN, 0}, {CHILD, POLLIN, 0}};
    while (poll(from, 2, -1) < 0 && errno == EINTR)
        ;
    _exit(child < 0 || kill(child, SIGKILL) != 0 || waitpid(child, NULL, 0) != child);
}

/* pasta and slirp4netns set the default route last; that to their own network comes with the address. */
static bool has_route(pid_t init) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/net/route", (int)init);
    char *routes = read_file(path, 1 << 16, NULL);
    bool found = false;
    for (char *line = routes; line && !found; line = strchr(line + 1, '\n')) {
        char *to = strchr(line, '\t');
        found = to && strncmp(to, "\t00000000\t", 10) == 0;
    }
    free(routes);
    return found;
}

/* False: it has ended, or takes too long. */
static bool await_route(pid_t init, pid_t *pid, uint64_t end) {
    for (; now_ms() < end; poll(NULL, 0, STEP_MS)) {
        if (has_route(init))
            return true;
        if (waitpid(*pid, NULL, WNOHANG) == *pid) {
            *pid = 0;
            return false;
        }
    }
    return false;
}

/* Append "NAME: what it said" to `told`. */
static void tell(char **told, const char *program, int said) {
    char text[MOST_SAID];
    const char *name = strrchr(program, '/');
    read_saying(said, text, sizeof text);
    char *longer = must_format("%s%s%s: %s", *told, **told != '\0' ? "; " : "", name ? name + 1 : program, text);
    free(*told);
    *told = longer;
}

static bool try(struct attempt attempt, pid_t init, struct helper *helper, uint64_t end, char **told) {
    int said[2], lifeline[2];
    if (!open_saying(said) || pipe2(lifeline, O_CLOEXEC) != 0)
        return false;
    attempt.said = said[1];
    *helper = (struct helper){.lifeline = lifeline[1], .said = -1, .keeps = true};
    helper->pid = fork();
    if (helper->pid == 0) {
        close(lifeline[1]);
        keep(&attempt, lifeline[0]);
    }
    close(lifeline[0]);
    close(said[1]);
    if (helper->pid > 0 && await_route(init, &helper->pid, end)) {
        helper->said = said[0];
        return true;
    }
    helper_end(helper);
    tell(told, attempt.argv[0], said[0]);
    close(said[0]);
    return false;
}

bool helper_start(const struct plan *plan, pid_t init, int userns, struct helper *helper) {
    AUTO_FD int netns = open_namespace(init, "net");
    char number[16], *told = must_copy(""), **argv = must_alloc((plan->net_exec.count + 1) * sizeof *argv);
    uint64_t end = now_ms() + WAIT_MS;
    bool started = false;
    snprintf(number, sizeof number, "%d", (int)init);
    for (size_t i = 0, words = 0; i <= plan->net_exec.count && !started && now_ms() < end; i++) {
        char *word = plan->net_exec.item[i];
        argv[words++] = word && *word != '\0' ? filled_in(word, number) : NULL;
        if (argv[words - 1])
            continue;
        started = words > 1 && try((struct attempt){argv, netns, userns, -1}, init, helper, end, &told);
        words = 0;
    }
    free(argv);
    if (!started && !(plan->may_lack & MAY_LACK_NETWORK))
        fail("network",
             "no helper program gave the sandbox a network (%s); install slirp4netns or a newer passt, or do without: "
             "block_network=True, or allow_degraded=[\"network\"]",
             told);
    free(told);
    return started || plan->may_lack & MAY_LACK_NETWORK;
}

void helper_end(struct helper *helper) {
    close_fd(&helper->lifeline);
    helper->lifeline = -1;
    if (helper->pid > 0 && !helper->keeps)
        kill(helper->pid, SIGKILL);
    while (helper->pid > 0 && waitpid(helper->pid, NULL, 0) < 0 && errno == EINTR)
        ;
    helper->pid = 0;
    if (helper->keeps)
        close_fd(&helper->said);
}
