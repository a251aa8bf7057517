/* Layers that are mounted in a folder of a running sandbox, under an upper folder of their own: writable,
 * and as they were when they are mounted again. */
#include "kernel.h"
#include "layers.h"

#include "cage.h"
#include "fail.h"
#include "folders.h"
#include "ids.h"
#include "mountfd.h"
#include "mounts.h"
#include "quota.h"
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>

static char *folder_of(const struct box *box, unsigned number) {
    char *name = must_format("mounts/%u", number), *folder = layers_beside(box->plan, name);
    free(name);
    return folder;
}

static struct graft *graft_at(struct box *box, const char *path) {
    for (size_t i = 0; i < MAX_GRAFTS; i++)
        if (!path ? box->graft[i].number == 0 : box->graft[i].number != 0 && strcmp(box->graft[i].path, path) == 0)
            return &box->graft[i];
    return NULL;
}

/* ---- in the child ---- */

static bool make_folders(const struct box *box, struct plan *plan) {
    char *all = layers_beside(box->plan, "mounts"), *folder = folder_of(box, box->shaping.number);
    plan->upper = must_format("%s/upper", folder);
    plan->work = must_format("%s/work", folder);
    bool made = mkdir(all, 0700) == 0 || errno == EEXIST;
    quota_join(all, box->plan->upper);
    return (made && mkdir(folder, 0700) == 0 && mkdir(plan->upper, 0755) == 0 && mkdir(plan->work, 0755) == 0) ||
           fail(NULL, "cannot make %s: %m", folder);
}

static bool note_overlay(const struct box *box, int tree) {
    struct stat found;
    if (fstat(tree, &found) != 0)
        return fail(NULL, "cannot look at the mount: %m");
    *box->shaping.overlay = found.st_dev;
    return true;
}

static bool attach_inside(const struct box *box, int tree, int sandbox) {
    if (!sandbox_enter(sandbox))
        return false;
    AUTO_FD int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    AUTO_FD int target = target_in(root, box->shaping.target, true, 0);
    return (target >= 0 && attach(tree, target)) || fail("image", "cannot mount on %s in the sandbox: %m", box->shaping.target);
}

static bool graft(struct box *box, char *said) {
    struct plan plan = *box->plan;
    uint32_t base = slot_base(box->slot);
    (void)said;
    plan.lower = box->shaping.list;
    AUTO_FD int sandbox = sandbox_open(box);
    if (sandbox < 0 || !make_folders(box, &plan))
        return false;
    if (unshare(CLONE_NEWNS) != 0)
        return fail(NULL, "cannot make a mount namespace: %m");
    AUTO_FD int overlay = own_as(base) ? mounts_make_overlay(&plan, box->userns, base, true) : -1;
    AUTO_FD int tree = overlay >= 0 ? clone_whole(overlay) : -1;
    if (tree < 0)
        return fail(NULL, "cannot copy the mount: %m");
    return note_overlay(box, tree) && attach_inside(box, tree, sandbox);
}

/* Root of the sandbox may have put a link to another mount in its place, one of ours perhaps that hides
 * something. The number of an overlay is its own as long as it is mounted. */
static bool is_overlay(int folder, dev_t overlay) {
    struct stat found;
    return fstat(folder, &found) == 0 && found.st_dev == overlay;
}

static bool cut_off(struct box *box, char *said) {
    (void)said;
    AUTO_FD int sandbox = sandbox_open(box);
    if (sandbox < 0 || !sandbox_enter(sandbox))
        return false;
    AUTO_FD int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    AUTO_FD int folder = target_in(root, box->shaping.target, true, 0);
    if (folder < 0 || !is_overlay(folder, *box->shaping.overlay))
        return fail("plan", "%s in the sandbox is not what was mounted there: somebody inside has moved it", box->shaping.target);
    return (fchdir(folder) == 0 && umount2(".", MNT_DETACH) == 0) ||
           fail(NULL, "cannot unmount %s in the sandbox: %m", box->shaping.target);
}

/* ---- the supervisor ---- */

/* Of what is mounted below a path, the record would stay. */
static const struct graft *graft_below(const struct box *box, const char *path) {
    size_t length = strlen(path);
    for (size_t i = 0; i < MAX_GRAFTS; i++)
        if (box->graft[i].number != 0 && strncmp(box->graft[i].path, path, length) == 0 && box->graft[i].path[length] == '/')
            return &box->graft[i];
    return NULL;
}

/* What is written there counts as the sandbox's. */
static void count(struct box *box) {
    struct strings *counted = &box->plan->counted;
    char *all = layers_beside(box->plan, "mounts");
    for (size_t i = 0; i < counted->count; i++)
        if (strcmp(counted->item[i], all) == 0) {
            free(all);
            return;
        }
    counted->item = must_grow(counted->item, (counted->count + 2) * sizeof *counted->item);
    counted->item[counted->count++] = all;
    counted->item[counted->count] = NULL;
}

/* After a child was killed: whether what it was to mount, or to take away, is there. */
static _Noreturn void look(const struct box *box) {
    AUTO_FD int sandbox = sandbox_open(box);
    if (*box->shaping.overlay == 0 || sandbox < 0 || !sandbox_enter(sandbox))
        _exit(*box->shaping.overlay != 0);
    AUTO_FD int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    AUTO_FD int folder = target_in(root, box->shaping.target, true, 0);
    _exit(folder >= 0 && is_overlay(folder, *box->shaping.overlay));
}

static bool is_mounted(struct box *box) {
    int status = 0;
    pid_t child = fork();
    if (child == 0)
        look(box);
    while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR)
        ;
    return status != 0 || (child < 0 && *box->shaping.overlay != 0);
}

static bool is_unmounted(struct box *box) {
    return !is_mounted(box);
}

static void grafted(struct box *box) {
    struct graft *graft = graft_at(box, NULL); /* nobody else takes one meanwhile */
    if (!graft)
        return;
    *graft = (struct graft){must_copy(box->shaping.target), box->shaping.number, *box->shaping.overlay, box->shaping.lock};
    box->shaping.lock = -1;
    count(box);
}

static void forget(struct graft *graft) {
    free(graft->path);
    close_fd(&graft->lock);
    *graft = (struct graft){.number = 0};
}

static void parted(struct box *box) {
    struct graft *graft = graft_at(box, box->shaping.target);
    if (!graft)
        return;
    char *folder = folder_of(box, graft->number);
    forget(graft); /* first: who removes the folder would hold the lock, too */
    layers_put_aside(box, folder);
    free(folder);
}

void grafts_forget(struct box *box) {
    char *all = layers_beside(box->plan, "mounts");
    for (size_t i = 0; i < MAX_GRAFTS; i++)
        if (box->graft[i].number != 0)
            forget(&box->graft[i]);
    if (access(all, F_OK) == 0)
        layers_put_aside(box, all);
    free(all);
}

void serve_mount(struct box *box, struct request *request) {
    static const struct task grafting = {.lists = true, .work = graft, .done = grafted, .killed = is_mounted};
    static unsigned number;
    const struct plan *plan = box->plan;
    if (plan->ids != IDS_RANGE || plan->disk || plan->runtime || plan->keep)
        fail("unsupported", "nothing can be mounted in this sandbox while it runs: it has a disk or a kernel of its own, or belongs to a user "
                            "without root");
    else if (graft_at(box, request->arguments))
        fail("plan", "something is mounted on %s in the sandbox already; unmount it first", request->arguments);
    else if (!graft_at(box, NULL))
        fail("limit", "the sandbox has %d mounts, and gets no more", MAX_GRAFTS);
    else {
        layers_begin(box, request, &grafting, ++number, 0);
        return;
    }
    control_failed(request);
}

void serve_unmount(struct box *box, struct request *request) {
    static const struct task cutting = {.work = cut_off, .done = parted, .killed = is_unmounted};
    const struct graft *graft = graft_at(box, request->arguments), *below = graft_below(box, request->arguments);
    if (graft && !below) {
        layers_begin(box, request, &cutting, 0, graft->overlay);
        return;
    }
    if (!graft)
        fail("plan", "nothing was mounted on %s in the sandbox", request->arguments);
    else
        fail("plan", "%s is mounted in %s; unmount it first", below->path, request->arguments);
    control_failed(request);
}
