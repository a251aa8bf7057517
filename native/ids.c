/* Slots and user namespaces; see ids.h. */
#include "kernel.h"
#include "ids.h"

#include "cage.h"
#include "fail.h"
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/wait.h>

enum { SLOTS = LAST_SLOT - FIRST_SLOT + 1 };
_Static_assert(IDS_BASE + (uint64_t)LAST_SLOT * IDS_SIZE + IDS_SIZE - 1 <= INT32_MAX, "older kernels read ids as signed numbers");

static int open_slots(const char *path) {
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        fail(NULL, "cannot open the file of slots %s: %m", path);
    return fd;
}

static bool lock_slot(int fd, short type, uint32_t slot) {
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = slot, .l_len = 1};
    return fcntl(fd, F_OFD_SETLK, &lock) == 0;
}

int slot_take(const char *path, uint32_t *slot) {
    int fd = open_slots(path);
    if (fd < 0)
        return -1;
    uint32_t start = 0;
    if (getrandom(&start, sizeof start, 0) != sizeof start)
        start = (uint32_t)getpid(); /* only spreads the sandboxes out, nothing relies on it */
    for (uint32_t i = 0; i < SLOTS; i++) {
        *slot = FIRST_SLOT + (start % SLOTS + i) % SLOTS;
        if (lock_slot(fd, F_WRLCK, *slot))
            return fd;
        if (errno != EAGAIN && errno != EACCES) {
            fail(NULL, "cannot lock a slot in %s: %m", path);
            close(fd);
            return -1;
        }
    }
    fail("limit", "all %d slots are taken: end some sandboxes first", SLOTS);
    close(fd);
    return -1;
}

bool slot_is_marked(int slots, uint32_t slot) {
    char mark = 0;
    return pread(slots, &mark, 1, slot) == 1 && mark != 0;
}

/* A mark that cannot be written (no room in the file system) is missing or too many, and both do no harm but to who comes next. */
void slot_mark(int slots, uint32_t slot, bool marked) {
    const char mark = marked;
    if (pwrite(slots, &mark, 1, slot) != 1)
        return;
}

int slots_clean(const char *path, bool (*clean)(void *context, uint32_t slot), void *context) {
    AUTO_FD int fd = open_slots(path);
    int cleaned = 0;
    for (uint32_t slot = FIRST_SLOT; fd >= 0 && slot <= LAST_SLOT; slot++) {
        if (!slot_is_marked(fd, slot) || !lock_slot(fd, F_WRLCK, slot))
            continue;
        if (slot_is_marked(fd, slot) && clean(context, slot)) { /* its owner may have come to it just now */
            slot_mark(fd, slot, false);
            cleaned++;
        }
        lock_slot(fd, F_UNLCK, slot);
    }
    return fd < 0 ? -1 : cleaned;
}

/* ---- maps ---- */

static bool write_map(pid_t pid, const char *name, const char *text) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", (int)pid, name);
    AUTO_FD int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, text, strlen(text)) < 0) /* the kernel takes a map in one write only */
        return fail(NULL, "cannot write %s of the sandbox's user namespace: %m", name);
    return true;
}

static const uint32_t ROOT[] = {0, 0};

static bool map_to(pid_t pid, const uint32_t inside[2], uint32_t uid, uint32_t gid, uint32_t count) {
    char uids[40], gids[40];
    snprintf(uids, sizeof uids, "%u %u %u", inside[0], uid, count);
    snprintf(gids, sizeof gids, "%u %u %u", inside[1], gid, count);
    return write_map(pid, "uid_map", uids) && write_map(pid, "gid_map", gids);
}

/* newuidmap and newgidmap are setuid: they may map what /etc/subuid and /etc/subgid give to the caller. */
static bool map_with(const char *helper, pid_t pid, const struct strings *lines) {
    char *words = must_format("%s %d", helper, (int)pid);
    for (size_t i = 0; i < lines->count; i++) {
        char *longer = must_format("%s %s", words, lines->item[i]);
        free(words);
        words = longer;
    }
    char **argv = must_alloc((lines->count * 3 + 3) * sizeof *argv);
    size_t argc = 0;
    for (char *rest = words, *word; (word = strsep(&rest, " "));)
        argv[argc++] = word;
    argv[argc] = NULL;
    int said[2] = {-1, -1}, status = 0;
    char text[200];
    pid_t child = open_saying(said) ? fork() : -1;
    if (child == 0) {
        dup2(said[1], 2);
        execvp(helper, argv);
        _exit(127);
    }
    while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR)
        ;
    free(argv);
    free(words);
    read_saying(said[0], text, sizeof text);
    close_fd(&said[0]);
    close_fd(&said[1]);
    if (child > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return true;
    return fail("ids",
                "%s refused the map (%s): install it (Debian: uidmap) and give this user a range in /etc/sub%cid; "
                "in a container, start that with --privileged",
                helper, text, helper[3]);
}

bool userns_map(const struct plan *plan, pid_t pid) {
    if (plan->ids == IDS_SUB)
        return map_with("newuidmap", pid, &plan->uid_map) && map_with("newgidmap", pid, &plan->gid_map);
    return write_map(pid, "setgroups", "deny") && map_to(pid, ROOT, geteuid(), getegid(), 1);
}

/* ---- a range of its own ---- */

/* A namespace needs a first process to be made, and to be given its maps through. This one shares our memory, which makes it
 * cheap, so it must do nothing: it dies by our hand, or with us. */
static int wait_for_death(void *parent) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    while (getppid() == (pid_t)(intptr_t)parent) /* or it has died before we could say so */
        pause();
    return 0;
}

/* What the kernel counts per user (inotify, queued signals …) it also counts for whoever made the namespace. Made by the
 * machine's root, one sandbox could use up what root and all others have; so the sandbox's own root makes it. */
static pid_t clone_as(uint32_t maker, int flags) {
    static char stack[8192] __attribute__((aligned(16)));
    if (setresuid((uid_t)-1, maker, (uid_t)-1) != 0 || !cage_raise())
        return -1;
    pid_t first = clone(wait_for_death, stack + sizeof stack, CLONE_VM | CLONE_NEWUSER | flags | SIGCHLD, (void *)(intptr_t)getpid());
    int why = errno;
    if (setresuid((uid_t)-1, 0, (uid_t)-1) != 0) /* the effective capabilities come back with it */
        _exit(1);
    errno = why;
    return first;
}

/* `inside`: the first uid and gid in it, which are those of `base` outside, and so on. */
static int make_mapped(const uint32_t inside[2], uint32_t base, uint32_t count, int *network) {
    pid_t first = clone_as(base, network ? CLONE_NEWNET : 0);
    if (first < 0) {
        fail("userns", "cannot make a user namespace: %m; look at the sysctl user.max_user_namespaces");
        return -1;
    }
    int fd = -1;
    if (map_to(first, inside, base, base, count)) {
        fd = open_namespace(first, "user");
        if (network)
            *network = open_namespace(first, "net");
        if (fd < 0)
            fail(NULL, "cannot open the sandbox's user namespace: %m");
    }
    kill(first, SIGKILL); /* and not waited for: that would take longer than all the rest; who waits for children finds it */
    return fd;
}

bool userns_enter(int userns) {
    return setns(userns, CLONE_NEWUSER) == 0 && setresgid(0, 0, 0) == 0 && setresuid(0, 0, 0) == 0;
}

int userns_make(uint32_t slot, int *network) {
    return make_mapped(ROOT, slot_base(slot), IDS_SIZE, network);
}

int userns_of_owner(uint32_t uid, uint32_t gid, uint32_t base) {
    return make_mapped((const uint32_t[]){uid, gid}, base, 1, NULL);
}
