/* The layer switch: the upper folder becomes a layer, an empty one comes on top of it, and nothing is
 * copied. Only while nothing but process 1 runs: what a process has open stays where it was.
 *
 * A child does it, with the sandbox's group frozen, so nothing starts meanwhile. All that takes time and may
 * fail happens in a mount namespace of its own: a new overlay there, and on it copies of the mounts that hang on
 * the sandbox's root. Only then is the whole of it attached on top of that root, which pivot_root()
 * changes for everybody in the sandbox, the agent too. Until then nothing has changed. If the child is
 * killed between these last calls, settle() takes away what is not the root. */
#include "kernel.h"
#include "layers.h"

#include "cage.h"
#include "copier.h"
#include "fail.h"
#include "freezer.h"
#include "guard.h"
#include "ids.h"
#include "mountfd.h"
#include "mounts.h"
#include "quota.h"
#include "scan.h"
#include "trash.h"
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

enum { MOST_MOUNTS = 256, MAX_TABLE = 1 << 20 };

/* The mounts that hang on the sandbox's root. */
struct hanging {
    char *path[MOST_MOUNTS];
    int tree[MOST_MOUNTS];
    size_t count;
};

/* ---- what hangs on the root ---- */

/* Of /proc/PID/mountinfo, in place: "\040" is a blank. */
static void unescape(char *text) {
    char *to = text;
    for (; *text != '\0'; text++)
        if (*text == '\\' && text[1] != '\0' && text[2] != '\0' && text[3] != '\0') {
            *to++ = (char)((text[1] - '0') << 6 | (text[2] - '0') << 3 | (text[3] - '0'));
            text += 3;
        } else {
            *to++ = *text;
        }
    *to = '\0';
}

/* "ID PARENT MAJOR:MINOR ROOT POINT …": parents come first. */
static bool read_table(pid_t init, struct hanging *hanging) {
    char path[64], point[4096];
    int root = 0, id = 0, parent = 0;
    snprintf(path, sizeof path, "/proc/%d/mountinfo", (int)init);
    char *table = read_file(path, MAX_TABLE, NULL);
    if (!table)
        return fail(NULL, "cannot read the sandbox's mounts: %m");
    for (char *rest = table, *line; (line = strsep(&rest, "\n"));) {
        if (scan(line, "%d %d %*s %*s %4095s", &id, &parent, point) != 3)
            continue;
        /* Root of the sandbox may move the folder of a mount so deep that the path is cut off: that of another folder. */
        if (strlen(point) == sizeof point - 1) {
            free(table);
            return fail("unsupported", "something is mounted in the sandbox at a path of more than %zu bytes", sizeof point - 2);
        }
        unescape(point);
        if (strcmp(point, "/") == 0)
            root = id;
        else if (parent == root && hanging->count < MOST_MOUNTS)
            hanging->path[hanging->count++] = must_copy(point + 1);
    }
    free(table);
    return hanging->count < MOST_MOUNTS || fail("limit", "the sandbox has more than %d mounts", MOST_MOUNTS);
}

/* Without links: root of the sandbox may have put others at these places. */
static int open_point(int root, const char *path) {
    struct how how = {.flags = O_PATH | O_CLOEXEC, .resolve = IN_ROOT | NO_MAGICLINKS | NO_SYMLINKS};
    return (int)syscall(NR_OPENAT2, root, path, &how, sizeof how);
}

static bool clone_hanging(struct hanging *hanging) {
    AUTO_FD int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    for (size_t i = 0; i < hanging->count; i++) {
        AUTO_FD int point = open_point(root, hanging->path[i]);
        hanging->tree[i] = point < 0 ? -1 : clone_whole(point);
        if (hanging->tree[i] < 0)
            return fail(NULL, "cannot copy the sandbox's mount at /%s: %m", hanging->path[i]);
    }
    return true;
}

static bool hang(const struct hanging *hanging, int root) {
    for (size_t i = 0; i < hanging->count; i++) {
        AUTO_FD int point = open_point(root, hanging->path[i]);
        if (point < 0 || !attach(hanging->tree[i], point))
            return fail(NULL, "cannot mount on /%s in the sandbox: %m", hanging->path[i]);
    }
    return true;
}

/* ---- the child ---- */

/* Process 1 only, and what serves the sandbox from outside. */
static bool is_alone(const struct box *box) {
    char *procs = groups_members(box->plan), *pid, path[64], space[64], its[64];
    bool alone = procs;
    snprintf(path, sizeof path, "/proc/%d/ns/pid", (int)box->init);
    ssize_t size = readlink(path, space, sizeof space);
    for (char *rest = procs; alone && rest && (pid = strsep(&rest, "\n")) && *pid;) {
        snprintf(path, sizeof path, "/proc/%.10s/ns/pid", pid);
        ssize_t length = readlink(path, its, sizeof its);
        bool inside = size <= 0 || (length == size && memcmp(space, its, (size_t)size) == 0) || (length < 0 && errno != ENOENT);
        alone = !inside || strtol(pid, NULL, 10) == box->init;
    }
    free(procs);
    return alone || fail("busy", "commands run in the sandbox");
}

bool sandbox_enter(int mounts) {
    return setns(mounts, CLONE_NEWNS) == 0 || fail(NULL, "cannot enter the sandbox's mounts: %m");
}

bool own_as(uint32_t base) {
    bool owns = cage_own_as(base);
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* the kernel forgets it when ids change */
    return owns;
}

/* The new root with all that hangs on it, as a detached tree; -1: see fail.h. */
static int build(const struct box *box, const struct plan *next, int sandbox) {
    struct hanging hanging = {.count = 0};
    uint32_t base = box->slot != 0 ? slot_base(box->slot) : 0;
    if (unshare(CLONE_NEWNS) != 0) {
        fail(NULL, "cannot make a mount namespace: %m");
        return -1;
    }
    AUTO_FD int own = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
    bool cloned = read_table(box->init, &hanging) && sandbox_enter(sandbox) && clone_hanging(&hanging);
    if (!cloned || own < 0 || setns(own, CLONE_NEWNS) != 0) {
        fail(NULL, "cannot come back from the sandbox's mounts: %m");
        return -1;
    }
    AUTO_FD int root = !own_as(base) ? -1 : mounts_make_overlay(next, box->userns, base, false);
    int tree = root >= 0 && hang(&hanging, root) ? clone_whole(root) : -1;
    if (tree < 0)
        fail(NULL, "cannot copy the new root: %m");
    return tree;
}

/* What is mounted on the root and is not it; "/.." leads there. */
static bool settle(void) {
    struct stat root, above;
    for (int layers = 0; layers < 4; layers++) {
        if (stat("/", &root) != 0 || stat("/..", &above) != 0)
            return fail(NULL, "cannot look at the sandbox's root: %m");
        if (root.st_dev == above.st_dev && root.st_ino == above.st_ino)
            return true;
        if (umount2("/..", MNT_DETACH) != 0)
            return fail(NULL, "cannot unmount the old root: %m");
    }
    return fail("internal", "the old root is still mounted");
}

/* Behind pivot_root() nothing is as it was. So who fails there says nothing, and the supervisor does what
 * it does if we are killed. */
static bool change_root(int tree, int sandbox) {
    if (!sandbox_enter(sandbox))
        return false;
    AUTO_FD int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (!attach(tree, root))
        return fail(NULL, "cannot mount on the sandbox's root: %m");
    if (fchdir(tree) != 0 || syscall(SYS_pivot_root, ".", ".") != 0) {
        fail(NULL, "cannot change the sandbox's root: %m");
        settle();
        return false;
    }
    if (umount2(".", MNT_DETACH) != 0 || chdir("/") != 0 || !settle())
        _exit(1);
    return true;
}

/* The folder that the upper is to become can be made by a rename. */
static bool can_become(const char *upper, const char *frozen) {
    struct stat from, to;
    char *parent = must_format("%.*s", (int)(strrchr(frozen, '/') - frozen), frozen);
    bool fits = stat(upper, &from) == 0 && stat(parent, &to) == 0 && from.st_dev == to.st_dev && access(frozen, F_OK) != 0;
    free(parent);
    return fits || fail("plan", "%s: expected a name that is free on the file system of %s", frozen, upper);
}

/* A switch that failed may have left one. */
static bool make_folder(const char *path) {
    return mkdir(path, 0755) == 0 || (errno == EEXIST && trash_remove(path, true, NULL, NULL)) ||
           fail(NULL, "cannot make %s: %m", path);
}

/* As the sandbox has made its "/": both are that. */
static bool look_alike(const char *upper, const char *next) {
    AUTO_FD int from = open(upper, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    AUTO_FD int to = open(next, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return (from >= 0 && to >= 0 && copy_looks(from, to)) || fail(NULL, "cannot make %s like %s: %m", next, upper);
}

static bool make_next(struct plan *next) {
    const char *upper = next->upper;
    char *folder = layers_beside(next, "next");
    next->upper = must_format("%s%s", folder, strrchr(next->upper, '/'));
    next->work = must_format("%s%s", folder, strrchr(next->work, '/'));
    bool made = (mkdir(folder, 0700) == 0 || errno == EEXIST || fail(NULL, "cannot make %s: %m", folder)) &&
                make_folder(next->upper) && make_folder(next->work);
    if (made && next->guard > 0)
        quota_set(next->upper, next->work, next->guard);
    return made && look_alike(upper, next->upper);
}

static struct strings stack_up(char *newest, const struct strings *own, const struct strings *base) {
    struct strings all = {.item = must_alloc((own->count + base->count + 1) * sizeof *all.item)};
    all.item[all.count++] = newest;
    for (size_t i = 0; i < own->count + base->count; i++)
        all.item[all.count++] = i < own->count ? own->item[i] : base->item[i - own->count];
    return all;
}

int sandbox_open(const struct box *box) {
    int mounts = open_namespace(box->init, "mnt");
    if (mounts < 0)
        fail(NULL, "cannot open the sandbox's mounts: %m");
    return mounts;
}

static bool shift(struct box *box, char *said) {
    struct plan next = *box->plan;
    (void)said;
    next.lower = stack_up(box->plan->upper, &box->shaping.list, &box->base);
    AUTO_FD int sandbox = sandbox_open(box);
    if (sandbox < 0 || !groups_freeze(box->plan) || !is_alone(box) || !make_next(&next))
        return false;
    AUTO_FD int tree = build(box, &next, sandbox);
    return tree >= 0 && change_root(tree, sandbox);
}

/* ---- the supervisor ---- */

/* The kernel goes by what it has opened: the folders may be given their names under the new overlay. */
static void shifted(struct box *box) {
    struct strings own = stack_up(box->shaping.target, &box->shaping.list, &(struct strings){.count = 0});
    struct plan next = *box->plan;
    char *folder = layers_beside(&next, "next");
    char *upper = must_format("%s%s", folder, strrchr(next.upper, '/')), *work = must_format("%s%s", folder, strrchr(next.work, '/'));
    if (rename(next.upper, box->shaping.target) == 0 && rename(upper, next.upper) == 0 && layers_put_aside(box, next.work) &&
        rename(work, next.work) == 0) {
        layers_set(box, &own);
        guard_follow(&box->guard, box->plan);
    } else {
        fail(NULL, "cannot rename %s to %s: %m; the sandbox ends", next.upper, box->shaping.target);
        end_with(box, "error", 137);
    }
    free(folder);
    free(upper);
    free(work);
    free(own.item);
}

/* The child was killed: what it has left on the root goes away, and it was done if the root is another. */
/* setns(2) gives us the topmost mount for a root, on which nothing is mounted; so process 1's is taken,
 * which what was left behind lies on. */
static bool settle_as_init(const struct box *box) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/root", (int)box->init);
    AUTO_FD int sandbox = sandbox_open(box);
    AUTO_FD int root = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    return sandbox >= 0 && root >= 0 && sandbox_enter(sandbox) && fchdir(root) == 0 && chroot(".") == 0 && settle();
}

static bool mended(struct box *box) {
    pid_t child = fork();
    int status = 0;
    if (child == 0)
        _exit(settle_as_init(box) ? 0 : 1);
    while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR)
        ;
    if (child > 0 && status == 0)
        return layers_root(box) != box->shaping.root;
    end_with(box, "error", 137);
    return fail("internal", "nobody knows what the sandbox's root is; the sandbox ends");
}

/* Nothing is mounted any more, so renaming is all. */
static bool become_layer(struct box *box, const char *frozen) {
    struct strings own = stack_up((char *)frozen, &box->shaping.list, &(struct strings){.count = 0});
    bool renamed = rename(box->plan->upper, frozen) == 0;
    if (renamed)
        layers_set(box, &own);
    free(own.item);
    return renamed ? make_folder(box->plan->upper) : fail(NULL, "cannot rename %s to %s: %m", box->plan->upper, frozen);
}

static void switch_late(struct box *box, struct request *request) {
    if (layers_take(box, request) && become_layer(box, request->arguments))
        control_ok(request, "%s", "");
    else
        control_failed(request);
    if (box->shaping.child == 0)
        layers_drop(box);
}

void serve_switch(struct box *box, struct request *request) {
    static const struct task switching = {.lists = true, .stops = true, .work = shift, .done = shifted, .killed = mended};
    const struct plan *plan = box->plan;
    if (plan->ids != IDS_RANGE || plan->disk || plan->runtime || plan->keep)
        fail("unsupported", "the layers of this sandbox cannot be changed while it runs: it has a disk or a kernel of its own, or belongs "
                            "to a user without root");
    else if (plan->lower.count >= MOST_LISTED)
        fail("limit", "the sandbox has %d layers, and gets no more", MOST_LISTED);
    else if (request->arguments[0] == '/' && can_become(plan->upper, request->arguments)) {
        if (box->keeping)
            switch_late(box, request);
        else
            layers_begin(box, request, &switching, 0, 0);
        return;
    } else {
        fail("plan", "expected an absolute path behind the word");
    }
    control_failed(request);
}
