/* The end of a box, from any state. What could not be made is backed out; what has run leaves a record
 * first. take_down() is the only way out, and nothing of the sandbox is left after it. */
#include "box.h"

#include "fail.h"
#include "groups.h"
#include "ids.h"
#include "keeping.h"
#include "kernel.h"
#include "layers.h"
#include "live.h"
#include "net.h"
#include "passing.h"
#include "trash.h"
#include "upper.h"
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MAX_STATUS = 1 << 20, ANSWER_MS = 1000, LAST_WORDS_MS = 300 };

/* ---- what runs goes away ---- */

static void signal_init(const struct box *box) {
    syscall(NR_PIDFD_SEND_SIGNAL, box->init_pidfd, SIGKILL, NULL, 0);
}

static void reap(pid_t *pid) {
    while (*pid > 0 && waitpid(*pid, NULL, 0) < 0 && errno == EINTR)
        ;
    *pid = 0;
}

static void detach(const struct box *box) {
    if (net_detach(box->netlink, box->machine, box->slot))
        slot_mark(box->slot_lock, box->slot, false);
}

/* The interface's name is gone long before the call returns; so another process makes the call, and we look at the name. That process
 * holds the slot, too: nobody gets it before it is as good as new. */
static void start_detaching(struct box *box) {
    if (box->netlink < 0)
        return;
    box->detacher = fork();
    if (box->detacher > 0)
        return;
    detach(box);
    if (box->detacher == 0)
        _exit(0);
}

void await_detached(const struct box *box) {
    for (int waited = 0; box->netlink >= 0 && net_is_attached(box->slot) && waited < 5000; waited++)
        nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
}

/* Everything that runs: when init is reaped, its whole process namespace is dead, and its mounts, with their namespace, are
 * gone. The interface after that: dying sockets tell it to whom they are connected, and to the tables of connections. */
static void stop_processes(struct box *box) {
    guard_end(&box->guard);
    groups_kill(box->plan);
    if (box->init > 0) {
        signal_init(box);
        reap(&box->init);
    }
    helper_end(&box->helper);
}

void stop_all(struct box *box) {
    stop_processes(box);
    close_fd(&box->disk);
    box->disk = -1;
}

static void take_down(struct box *box) {
    stop_all(box);
    member_leave(&box->member, box->plan);
    start_detaching(box);
    close_fd(&box->network); /* not before: with its namespace goes the interface, and with that the count of what it has sent */
    box->network = -1;
    if (!groups_remove(box->plan))
        fail("internal", "a cgroup could not be removed: %m");
}

static void answer_in_time(void *context);

/* Files of ids that are not ours can be removed by the user namespace's root only; `userns` is then that of init. */
static void in_userns(struct box *box, void (*work)(struct box *)) {
    if (box->plan->ids == IDS_RANGE || box->userns < 0) {
        work(box);
        return;
    }
    pid_t child = fork();
    if (child == 0) {
        box->clients = 0; /* our parent answers */
        if (userns_enter(box->userns))
            work(box);
        _exit(0);
    }
    while (child > 0 && waitpid(child, NULL, WNOHANG) == 0) {
        answer_in_time(box);
        nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
    }
}

/* ---- when it could not be made: back out ---- */

static void empty_upper(struct box *box) {
    trash_remove(box->plan->work, true, NULL, NULL);
    if (!box->plan->keep)
        trash_remove(box->plan->upper, true, NULL, NULL);
}

void back_out(struct box *box) {
    static const char *const outputs[] = {"stdout", "stderr"};
    take_down(box);
    in_userns(box, empty_upper);
    for (int i = 0; i < 2; i++)
        if (box->output[i] >= 0) {
            char *path = must_format("%s.%s", box->plan->record, outputs[i]);
            unlink(path);
            free(path);
        }
    if (box->plan->net == NET_GATE && box->plan->record) {
        char *log = must_format("%s.egress", box->plan->record);
        unlink(log);
        free(log);
    }
    if (box->agent_listener >= 0)
        unlinkat(box->folder, "agent.sock", 0);
    if (box->control_listener >= 0)
        unlinkat(box->folder, "control.sock", 0);
    if (box->lock >= 0)
        unlinkat(box->folder, "lock", 0);
    await_detached(box);
    reap(&box->detacher);
}

/* ---- when it has ended: record and remove ---- */

/* How much it had of that for which the guard has ended it. */
static const char *size_of(const struct box *box, char text[32]) {
    bool told = strcmp(box->reason, "disk") == 0 || strcmp(box->reason, "sockets") == 0;
    snprintf(text, 32, told ? "size=%llu\n" : "", (unsigned long long)box->guard.size);
    return text;
}

static void make_record(struct box *box) {
    char size[32];
    box->ended = unix_us();
    snprintf(box->record, sizeof box->record, "reason=%s\nreturncode=%d\nwritten=%llu %llu\nstarted=%llu.%06u\nended=%llu.%06u\n%s%s",
             box->reason, box->returncode, box->written[0], box->written[1], (unsigned long long)(box->started / 1000000), (unsigned)(box->started % 1000000),
             (unsigned long long)(box->ended / 1000000), (unsigned)(box->ended % 1000000), size_of(box, size), box->kept);
}

/* The record as it is kept: with what the sandbox was, for those who ask later. */
static char *kept_record(const struct box *box) {
    char *path = must_format("%s/status.json", box->plan->dir);
    char *status = read_file(path, MAX_STATUS, NULL);
    char *record = status ? must_format("%sstatus=%s\n", box->record, status) : must_copy(box->record);
    free(status);
    free(path);
    return record;
}

static bool write_record(const struct box *box) {
    if (!box->plan->record)
        return true;
    char *part = must_format("%s.part", box->plan->record), *record = kept_record(box);
    AUTO_FD int fd = open(part, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
    bool written = fd >= 0 && write_all(fd, record, strlen(record)) && rename(part, box->plan->record) == 0;
    if (!written)
        unlink(part);
    free(record);
    free(part);
    return written;
}

/* A full disk: what the sandbox has filled it with makes room for telling how it ended, before its folder goes. */
static void make_room(struct box *box) {
    if (!box->plan->keep)
        trash_remove(box->plan->upper, true, answer_in_time, box);
}

/* A huge tree takes longer than anybody wants to wait: it has another name already, so for all others it is gone. */
static void answer_in_time(void *context) {
    struct box *box = context;
    if (box->clients > 0 && now_ms() > box->answer_by)
        control_answer_all(box);
}

static bool lies_in(const char *path, const char *folder) {
    size_t length = strlen(folder);
    return strncmp(path, folder, length) == 0 && path[length] == '/';
}

static void discard(struct box *box, const char *path) {
    char *trash = must_format("%s.trash", path);
    bool renamed = rename(path, trash) == 0;
    trash_remove(renamed ? trash : path, false, answer_in_time, box);
    free(trash);
}

static void discard_beside(struct box *box, const char *name) {
    char *path = layers_beside(box->plan, name);
    trash_remove(path, false, answer_in_time, box);
    free(path);
}

static void discard_all(struct box *box) {
    const struct plan *plan = box->plan;
    bool keeps_folder = plan->keep && lies_in(plan->upper, plan->dir);
    /* First what others look for: emptying a huge upper folder takes longer than anybody waits. */
    if (plan->reuse) {
        discard(box, plan->dir);
        discard_beside(box, "old");
        discard_beside(box, "next");
        discard_beside(box, "mounts");
        upper_give_back(plan, answer_in_time, box);
        return;
    }
    if (!lies_in(plan->work, plan->dir) || keeps_folder)
        discard(box, plan->work);
    if (!plan->keep && !lies_in(plan->upper, plan->dir))
        discard(box, plan->upper);
    if (!keeps_folder) {
        discard(box, plan->dir);
        return;
    }
    unlinkat(box->folder, "agent.sock", 0);
    unlinkat(box->folder, "control.sock", 0);
    unlinkat(box->folder, "paused", 0);
    unlinkat(box->folder, "lock", 0);
}

/* What nobody has read of the main command's output is in init's memory. Init kills all others before it writes that down. */
static void await_last_words(struct box *box) {
    struct pollfd death = {box->init_pidfd, POLLIN, 0};
    if (box->told || box->plan->arg.count == 0 || !box->plan->record)
        return;
    shutdown(box->link, SHUT_WR);
    poll(&death, 1, LAST_WORDS_MS);
    hear_init(box);
}

void finish(struct box *box) {
    layers_finish(box);
    control_end_work(box, true);
    shutdown(box->shaping.client, SHUT_RDWR); /* or it would wait, with its lock, as long as files are kept */
    layers_drop(box);                         /* no child of it is left, but what keeps the files asks for another */
    stop_end(box);
    close_fd(&box->agent_listener);
    box->agent_listener = -1;
    await_last_words(box);
    if (keeping_wanted(box)) {
        stop_processes(box);
        keeping_run(box);
    }
    box->answer_by = now_ms() + ANSWER_MS;
    take_down(box);
    make_record(box);
    bool recorded = write_record(box);
    close(box->control_listener);
    await_detached(box);
    if (!recorded) {
        in_userns(box, make_room);
        write_record(box);
    }
    in_userns(box, discard_all);
    control_answer_all(box);
    reap(&box->detacher);
}
