/* A child does the work, and its answer passes through memory that both share: it reaches the client when
 * the supervisor has drawn its consequences, and when a child was killed, the supervisor says so. */
#include "kernel.h"
#include "layers.h"

#include "copier.h"
#include "fail.h"
#include "freezer.h"
#include "ids.h"
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
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

enum { OUTCOME = 4096, LAST_COPY_MS = 10000, MAX_LIST = 1 << 20, MOST_LISTED = 400, SAID = 64 };

/* ---------------------------------------------------------------------------------- one at a time */

void stop_release(struct box *box) {
    if (box->stops > 0 && --box->stops == 0)
        groups_thaw(box->plan);
}

static void child_ended(struct box *box, int status) {
    struct shaping *shaping = &box->shaping;
    (void)status;
    if (shaping->child > 0)
        fail_forget();
    if (shaping->outcome[0] == '\0')
        fail("internal", "the process that was to do it was killed; the sandbox is as it was");
    if (shaping->done != NULL && shaping->outcome[0] == 'o')
        shaping->done(box);
    if (shaping->stops)
        stop_release(box);
    char *line = failure() != NULL ? must_format("error %s\n", failure()) : must_copy(shaping->outcome);
    send(shaping->client, line, strlen(line), MSG_NOSIGNAL | MSG_DONTWAIT);
    free(line);
    if (shaping->list.item != NULL)
        free(shaping->list.item[0]);
    free(shaping->list.item);
    free(shaping->target);
    close_fd(&shaping->client);
    close_fd(&shaping->lock);
    *shaping = (struct shaping){.outcome = shaping->outcome, .client = -1, .lock = -1};
}

static _Noreturn void be_child(struct box *box, bool (*work)(struct box *box, char *said)) {
    char said[SAID] = "";
    umask(0);
    if (work(box, said))
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

static bool may_begin(struct box *box) {
    struct shaping *shaping = &box->shaping;
    if (shaping->child != 0)
        return fail("busy", "another snapshot, reset or mount of the sandbox is under way; try again");
    if (shaping->outcome == NULL)
        shaping->outcome = mmap(NULL, OUTCOME, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shaping->outcome == MAP_FAILED) {
        shaping->outcome = NULL;
        return fail(NULL, "cannot begin: %m");
    }
    shaping->outcome[0] = '\0';
    return true;
}

/* `request` has a target and, if it needs layers, a list and a lock. `done` (or NULL) is called in the
 * supervisor after a success of `work`, which may say something in its answer. */
static void begin(struct box *box, struct request *request, bool lists, bool stops, bool (*work)(struct box *, char *said),
                  void (*done)(struct box *)) {
    struct shaping *shaping = &box->shaping;
    if (!may_begin(box)) {
        control_failed(request);
        return;
    }
    shaping->client = fcntl(request->client, F_DUPFD_CLOEXEC, 3);
    shaping->target = must_copy(request->arguments);
    shaping->stops = stops;
    shaping->done = done;
    box->stops += stops;
    shaping->lock = request->fd[1];
    request->fd[1] = -1;
    bool fits = shaping->target[0] == '/' || fail("plan", "expected an absolute path behind the word");
    if (!fits || (lists && !read_list(request->fd[0], &shaping->list))) {
        child_ended(box, 0);
        return;
    }
    shaping->child = control_fork(box, request, child_ended);
    if (shaping->child == 0)
        be_child(box, work);
    if (shaping->child < 0) { /* that is answered */
        close_fd(&shaping->client);
        child_ended(box, 0);
    }
}

void layers_finish(struct box *box) {
    struct shaping *shaping = &box->shaping;
    bool waits = shaping->child != 0 && (strcmp(box->reason, "timeout") == 0 || strcmp(box->reason, "idle") == 0);
    int status = 0;
    pid_t pid = 0;
    for (int waited = 0; waits && (pid = waitpid(shaping->child, &status, WNOHANG)) == 0 && waited < LAST_COPY_MS; waited++)
        poll(NULL, 0, 1);
    if (pid > 0)
        control_reaped(box, pid, status);
}

/* ------------------------------------------------------------------------------------------ copying */

/* Whose files a plain user's sandbox has can be read by the root of its user namespace only. */
static bool become_owner(const struct box *box) {
    bool became = box->plan->ids == IDS_RANGE || userns_enter(box->userns);
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* the kernel forgets it when ids change */
    return became || fail(NULL, "cannot become root of the sandbox's user namespace: %m");
}

static bool copy(struct box *box, char *said) {
    struct strings upper = {.item = (char *[]){box->plan->upper, NULL}, .count = 1};
    uint64_t bytes = 0;
    if (!groups_freeze(box->plan))
        return false;
    uint64_t begun = unix_us();
    if (!become_owner(box) || !copy_layers(&upper, 0, box->shaping.target, &bytes))
        return false;
    snprintf(said, SAID, "%llu %llu", (unsigned long long)(unix_us() - begun), (unsigned long long)bytes);
    return true;
}

void serve_copy(struct box *box, struct request *request) {
    begin(box, request, false, true, copy, NULL);
}

static bool merge(struct box *box, char *said) {
    uint64_t bytes = 0;
    if (!become_owner(box) || !copy_layers(&box->shaping.list, 0, box->shaping.target, &bytes))
        return false;
    snprintf(said, SAID, "%llu", (unsigned long long)bytes);
    return true;
}

void serve_merge(struct box *box, struct request *request) {
    begin(box, request, true, false, merge, NULL);
}
