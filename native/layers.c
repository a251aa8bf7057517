/* A child does the work, and its answer passes through memory that both share: it reaches the client when
 * the supervisor has drawn its consequences, and when a child was killed, the supervisor says so. */
#include "kernel.h"
#include "layers.h"

#include "copier.h"
#include "fail.h"
#include "freezer.h"
#include "ids.h"
#include "quota.h"
#include "trash.h"
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

enum { OUTCOME = 4096, LAST_COPY_MS = 10000, LEAST_URGENT = 19, MAX_LIST = 1 << 20, SAID = 64 };

/* ---- one at a time ---- */

void stop_release(struct box *box) {
    if (box->stops > 0 && --box->stops == 0 && !box->keeping) /* nothing runs then */
        groups_thaw(box->plan);
}

void layers_drop(struct box *box) {
    struct shaping *shaping = &box->shaping;
    if (shaping->list.item)
        free(shaping->list.item[0]);
    free(shaping->list.item);
    free(shaping->target);
    close_fd(&shaping->client);
    close_fd(&shaping->lock);
    *shaping = (struct shaping){.outcome = shaping->outcome, .overlay = shaping->overlay, .client = -1, .lock = -1};
}

static void child_ended(struct box *box, int status) {
    struct shaping *shaping = &box->shaping;
    (void)status;
    if (shaping->child > 0)
        fail_forget();
    if (shaping->child > 0 && shaping->outcome[0] == '\0') {
        if (shaping->task->killed && shaping->task->killed(box))
            strcpy(shaping->outcome, "ok \n");
        else
            fail("internal", "the process that was to do it was killed; the sandbox is as it was");
    }
    if (shaping->task->done && shaping->outcome[0] == 'o')
        shaping->task->done(box);
    if (shaping->task->stops)
        stop_release(box);
    char *line = failure() ? must_format("error %s\n", failure()) : must_copy(shaping->outcome);
    int client = shaping->client;
    shaping->client = -1;
    layers_drop(box); /* first: the locks of layers that were not taken are free when the client has its answer */
    control_say(client, line);
    close_fd(&client);
    free(line);
    layers_empty_trash(box);
}

static _Noreturn void be_child(struct box *box) {
    char said[SAID] = "";
    umask(0);
    if (box->shaping.task->work(box, said))
        snprintf(box->shaping.outcome, OUTCOME, "ok %s\n", said);
    else
        snprintf(box->shaping.outcome, OUTCOME, "error %s\n", failure());
    _exit(0);
}

/* Paths, each ended by a NUL. The list is at least one byte, the first path's. */
static bool read_list(int file, struct strings *list) {
    struct stat found;
    if (file < 0 || fstat(file, &found) != 0 || !S_ISREG(found.st_mode) || found.st_size > MAX_LIST)
        return fail("plan", "the request needs a file with a list of layers");
    size_t size = (size_t)found.st_size;
    char *text = must_alloc(size + 1);
    *list = (struct strings){.item = must_alloc((MOST_LISTED + 1) * sizeof *list->item)};
    list->item[0] = text;
    text[size] = '\0';
    if (pread(file, text, size, 0) != (ssize_t)size)
        return fail(NULL, "cannot read the list of layers: %m");
    for (char *at = text; at < text + size; at += strlen(at) + 1) {
        if (*at != '/' || list->count == MOST_LISTED)
            return fail("plan", "layers: expected at most %d absolute paths", MOST_LISTED);
        list->item[list->count++] = at;
    }
    return true;
}

bool layers_take(struct box *box, struct request *request) {
    if (box->shaping.child != 0)
        return fail("busy", "another snapshot, reset or mount of the sandbox is under way; try again");
    box->shaping.lock = request->fd[1];
    request->fd[1] = -1;
    return read_list(request->fd[0], &box->shaping.list);
}

static bool may_begin(struct box *box) {
    struct shaping *shaping = &box->shaping;
    if (shaping->child != 0)
        return fail("busy", "another snapshot, reset or mount of the sandbox is under way; try again");
    if (!shaping->outcome)
        shaping->outcome = mmap(NULL, 2 * OUTCOME, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shaping->outcome == MAP_FAILED) {
        shaping->outcome = NULL;
        return fail(NULL, "cannot begin: %m");
    }
    shaping->overlay = (dev_t *)(shaping->outcome + OUTCOME); /* the page behind it */
    *shaping->overlay = 0;
    shaping->outcome[0] = '\0';
    return true;
}

void layers_begin(struct box *box, struct request *request, const struct task *task, unsigned number, dev_t overlay) {
    struct shaping *shaping = &box->shaping;
    if (!may_begin(box)) {
        control_failed(request);
        return;
    }
    shaping->task = task;
    shaping->number = number;
    *shaping->overlay = overlay;
    shaping->client = fcntl(request->client, F_DUPFD_CLOEXEC, 3);
    shaping->target = must_copy(request->arguments);
    shaping->root = layers_root(box);
    box->stops += task->stops;
    bool fits = shaping->target[0] == '/' || fail("plan", "expected an absolute path behind the word");
    if (!fits || (task->lists && !layers_take(box, request))) {
        child_ended(box, 0);
        return;
    }
    shaping->child = control_fork(box, request, child_ended);
    if (shaping->child == 0)
        be_child(box);
    if (shaping->child < 0) { /* that is answered */
        close_fd(&shaping->client);
        child_ended(box, 0);
    }
}

void layers_finish(struct box *box) {
    struct shaping *shaping = &box->shaping;
    bool waits = shaping->child > 0 && (strcmp(box->reason, "timeout") == 0 || strcmp(box->reason, "idle") == 0);
    int status = 0;
    pid_t pid = 0;
    for (int waited = 0; waits && (pid = waitpid(shaping->child, &status, WNOHANG)) == 0 && waited < LAST_COPY_MS; waited++)
        poll(NULL, 0, 1);
    if (pid > 0)
        control_reaped(box, pid, status);
}

/* ---- what lies where ---- */

void layers_set(struct box *box, const struct strings *own) {
    struct strings before = box->plan->lower, *lower = &box->plan->lower;
    size_t count = own->count + box->base.count;
    *lower = (struct strings){.item = must_alloc((count + 1) * sizeof *lower->item), .count = count};
    for (size_t i = 0; i < count; i++)
        lower->item[i] = i < own->count ? must_copy(own->item[i]) : box->base.item[i - own->count];
    lower->item[count] = NULL;
    for (size_t i = 0; i < before.count - box->base.count; i++)
        free(before.item[i]);
    if (before.item != box->base.item)
        free(before.item);
    box->generation++;
    close_fd(&box->layer_lock);
    box->layer_lock = box->shaping.lock;
    box->shaping.lock = -1;
}

char *layers_beside(const struct plan *plan, const char *name) {
    return must_format("%.*s/%s", (int)(strrchr(plan->upper, '/') - plan->upper), plan->upper, name);
}

dev_t layers_root(const struct box *box) {
    char path[64];
    struct stat root;
    snprintf(path, sizeof path, "/proc/%d/root", (int)box->init);
    return stat(path, &root) == 0 ? root.st_dev : 0;
}

/* Nobody waits for it, so whoever computes goes first. */
void layers_empty_trash(struct box *box) {
    if (!box->has_trash)
        return;
    box->has_trash = false;
    if (fork() != 0)
        return; /* what a child that could not be made leaves is removed at the end */
    begin_child();
    setpriority(PRIO_PROCESS, 0, LEAST_URGENT);
    bool owns = layers_become_owner(box);
    close_from(3); /* locks of layers and clients' connections are not to last as long as a huge tree does */
    char *trash = layers_beside(box->plan, "old");
    if (owns)
        trash_remove(trash, true, NULL, NULL);
    _exit(0);
}

bool layers_put_aside(struct box *box, const char *folder) {
    static unsigned number;
    char *trash = layers_beside(box->plan, "old");
    char *aside = must_format("%s/%u", trash, ++number);
    bool put = (mkdir(trash, 0700) == 0 || errno == EEXIST) && rename(folder, aside) == 0;
    box->has_trash |= put;
    if (!put)
        fail(NULL, "cannot put %s aside: %m", folder);
    free(aside);
    free(trash);
    return put;
}

static bool make_anew(struct box *box, const char *folder) {
    return layers_put_aside(box, folder) &&
           ((mkdir(folder, 0755) == 0 && chmod(folder, 0755) == 0) || fail(NULL, "cannot make %s: %m", folder));
}

bool layers_begin_anew(struct box *box) {
    grafts_forget(box);
    quota_clear(box->plan->upper);
    return make_anew(box, box->plan->upper) && make_anew(box, box->plan->work);
}

/* ---- copying ---- */

/* Whose files a plain user's sandbox has can be read by the root of its user namespace only. */
bool layers_become_owner(const struct box *box) {
    bool became = box->plan->ids == IDS_RANGE || userns_enter(box->userns);
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* the kernel forgets it when ids change */
    return became || fail(NULL, "cannot become root of the sandbox's user namespace: %m");
}

/* On a disk of the sandbox's own, owners look as they are inside, shifted. */
static bool copy(struct box *box, char *said) {
    char *path = box->disk < 0 ? box->plan->upper
                               : must_format("/proc/self/fd/%d%s", box->disk, strrchr(box->plan->upper, '/'));
    struct strings upper = {.item = &path, .count = 1};
    uint32_t base = box->disk < 0 ? 0 : slot_base(box->slot);
    uint64_t bytes = 0;
    if (!box->keeping && !groups_freeze(box->plan))
        return false;
    uint64_t begun = unix_us();
    if (!layers_become_owner(box) || !copy_layers(&upper, base, box->shaping.target, &bytes))
        return false;
    snprintf(said, SAID, "%llu %llu", (unsigned long long)(unix_us() - begun), (unsigned long long)bytes);
    return true;
}

void serve_copy(struct box *box, struct request *request) {
    static const struct task copying = {.stops = true, .work = copy};
    layers_begin(box, request, &copying, 0, 0);
}

/* Into the file that the request brings: no file on disk has what commands are given. */
void serve_environment(struct box *box, struct request *request) {
    const struct strings *env = &box->plan->env;
    bool written = request->fd[0] >= 0 || fail("plan", "the request needs a file to write to");
    for (size_t i = 0; written && i < env->count; i++)
        written = write_all(request->fd[0], env->item[i], strlen(env->item[i]) + 1) || fail(NULL, "cannot tell the environment: %m");
    if (written)
        control_ok(request, "%s", "");
    else
        control_failed(request);
}

/* Whoever switched may have been killed before it could tell anybody: what the sandbox stands on is known here. */
void serve_layers(struct box *box, struct request *request) {
    char *text = must_format("%u", box->generation);
    for (size_t i = 0; i < box->plan->lower.count - box->base.count; i++) {
        char *longer = must_format("%s\t%s", text, box->plan->lower.item[i]);
        free(text);
        text = longer;
    }
    control_ok(request, "%s", text);
    free(text);
}

static bool merge(struct box *box, char *said) {
    uint64_t bytes = 0;
    if (!layers_become_owner(box) || !copy_layers(&box->shaping.list, 0, box->shaping.target, &bytes))
        return false;
    snprintf(said, SAID, "%llu", (unsigned long long)bytes);
    return true;
}

void serve_merge(struct box *box, struct request *request) {
    static const struct task merging = {.lists = true, .work = merge};
    layers_begin(box, request, &merging, 0, 0);
}
