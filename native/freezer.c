/* Version 2 kills what is frozen; so its freezer is taken where a plan has both. Both are asked again and
 * again until all have stopped. */
#include "kernel.h"
#include "freezer.h"

#include "fail.h"
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { FREEZE_MS = 2000, MAX_MEMBERS = 1 << 20 };

/* A file of the group that has the freezer, NULL if the plan has none: as `v2` in a group of version 2,
 * else as `v1`. */
static char *freezer_file(const struct plan *plan, const char *v2, const char *v1) {
    const char *file = plan->kill.count > 0 ? plan->kill.item[0] : plan->thaw;
    if (!file)
        return NULL;
    return must_format("%.*s/%s", (int)(strrchr(file, '/') - file), file, plan->kill.count > 0 ? v2 : v1);
}

char *groups_members(const struct plan *plan) {
    char *file = freezer_file(plan, "cgroup.procs", "cgroup.procs");
    char *members = file ? read_file(file, MAX_MEMBERS, NULL) : NULL;
    free(file);
    return members;
}

static bool command(const struct plan *plan, const char *v2, const char *v1) {
    char *path = freezer_file(plan, "cgroup.freeze", "freezer.state");
    const char *word = plan->kill.count > 0 ? v2 : v1;
    AUTO_FD int fd = path ? open(path, O_WRONLY | O_CLOEXEC) : -1;
    bool given = fd >= 0 && write(fd, word, strlen(word)) > 0;
    if (!path)
        fail("unsupported", "nothing can stop the sandbox's processes, because it has no control groups: run as root, or as a user with "
                            "delegated groups, and create it anew");
    else if (!given)
        fail(NULL, "cannot write %s to %s: %m", word, path);
    free(path);
    return given;
}

/* By the letter behind the name, which is the thread's own choice: "PID (name) D …". */
static bool waits_for_device(const char *thread, char **name) {
    char *path = must_format("/proc/%.10s/stat", thread);
    char *text = read_file(path, 4096, NULL), *end = text ? strrchr(text, ')') : NULL;
    bool waits = end && strncmp(end, ") D", 3) == 0;
    if (waits) {
        *end = '\0';
        *name = must_copy(strchr(text, '(') + 1);
    }
    free(text);
    free(path);
    return waits;
}

/* What is frozen by version 1 looks as if it waited for a device, too; after a thaw it does not. */
static bool blame(const struct plan *plan) {
    char *file = freezer_file(plan, "cgroup.threads", "tasks"), *name = NULL, *thread = NULL;
    groups_thaw(plan);
    nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
    char *threads = file ? read_file(file, MAX_MEMBERS, NULL) : NULL;
    for (char *rest = threads; rest && !name && (thread = strsep(&rest, "\n")) && *thread;)
        waits_for_device(thread, &name);
    if (name)
        fail("busy", "process %s (%s) of the sandbox does not stop, because it waits for a disk or a device; try again when it goes on",
             thread, name);
    else
        fail("busy", "the sandbox's processes did not stop within %d s; try again", FREEZE_MS / 1000);
    free(name);
    free(threads);
    free(file);
    return false;
}

/* Version 2 has an event for it, but sends at most one in 10 ms (CGROUP_FILE_NOTIFY_MIN_INTV): a pause soon
 * after a thaw would wait so long. */
static bool await_frozen(const struct plan *plan) {
    char *path = freezer_file(plan, "cgroup.events", "freezer.state");
    const char *word = plan->kill.count > 0 ? "frozen 1" : "FROZEN";
    bool frozen = false;
    for (uint64_t until = now_ms() + FREEZE_MS; path && !frozen && now_ms() < until;) {
        char *state = read_file(path, 256, NULL);
        frozen = state && strstr(state, word);
        free(state);
        if (!frozen)
            nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
    }
    free(path);
    return frozen;
}

bool groups_freeze(const struct plan *plan) {
    return command(plan, "1", "FROZEN") && (await_frozen(plan) || blame(plan));
}

bool groups_thaw(const struct plan *plan) {
    return command(plan, "0", "THAWED");
}
