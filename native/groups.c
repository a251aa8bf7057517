/* cgroup folders; see groups.h. */
#include "kernel.h"
#include "groups.h"

#include "devices.h"
#include "fail.h"
#include "util.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

enum { GROUP_TRIES = 20000 }; /* of half a millisecond each */

static bool put(const char *path, const char *value) {
    AUTO_FD int fd = open(path, O_WRONLY | O_CLOEXEC);
    return fd >= 0 && write(fd, value, strlen(value)) >= 0;
}

/* A sandbox of another state folder may have the id, if its maker chose it. Its groups are not ours, to kill
 * what is in them or to remove them. */
static bool not_made(struct plan *plan, size_t made) {
    fail(errno == EEXIST ? "taken" : NULL, "cannot make the cgroup %s: %m", plan->cgroup.item[made]);
    plan->cgroup.count = made;
    plan->kill.count = 0;
    plan->thaw = NULL;
    return false;
}

bool groups_make(struct plan *plan) {
    for (size_t i = 0; i < plan->cgroup.count; i++)
        /* Whatever our umask is: every user of the sandbox may read there how much is left. */
        if (mkdir(plan->cgroup.item[i], 0755) != 0 || chmod(plan->cgroup.item[i], 0755) != 0)
            return not_made(plan, i);
    for (size_t i = 0; i < plan->set.count; i++)
        if (!put(plan->set.item[i].path, plan->set.item[i].value))
            return fail("limit", "cannot write %s to %s: %m", plan->set.item[i].value, plan->set.item[i].path);
    return true;
}

static bool is_version_1(const char *folder) {
    char *tasks = must_format("%s/tasks", folder);
    bool exists = access(tasks, F_OK) == 0;
    free(tasks);
    return exists;
}

/* The folder of the hierarchy of version 2, or -1 if there is none. */
static bool open_birthplace(const struct plan *plan, int *folder) {
    *folder = -1;
    for (size_t i = 0; i < plan->cgroup.count; i++) {
        if (is_version_1(plan->cgroup.item[i]))
            continue;
        if (*folder >= 0)
            return fail("plan", "cgroup: there is one hierarchy of version 2, and %s is a second", plan->cgroup.item[i]);
        *folder = open(plan->cgroup.item[i], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (*folder < 0)
            return fail(NULL, "cannot open the cgroup %s: %m", plan->cgroup.item[i]);
    }
    return true;
}

bool groups_birthplace(const struct plan *plan, int *folder) {
    return open_birthplace(plan, folder) && (*folder < 0 || devices_limit(*folder, &plan->device));
}

pid_t groups_fork(const struct plan *plan) {
    AUTO_FD int birthplace = -1;
    if (!open_birthplace(plan, &birthplace))
        return -1;
    struct clone_request request = {.exit_signal = SIGCHLD};
    if (birthplace >= 0) {
        request.flags = BORN_IN_CGROUP;
        request.cgroup = (uint64_t)birthplace;
    }
    pid_t child = (pid_t)syscall(NR_CLONE3, &request, sizeof request);
    if (child == 0 && !groups_join(plan))
        _exit(1);
    return child;
}

bool groups_join(const struct plan *plan) {
    for (size_t i = 0; i < plan->cgroup.count; i++) {
        if (!is_version_1(plan->cgroup.item[i]))
            continue;
        char *tasks = must_format("%s/tasks", plan->cgroup.item[i]);
        bool joined = put(tasks, "0"); /* "0" is the writer; its number would not be exempt */
        free(tasks);
        if (!joined)
            return fail(NULL, "cannot join the cgroup %s: %m", plan->cgroup.item[i]);
    }
    return true;
}

void groups_kill(const struct plan *plan) {
    if (plan->thaw)
        put(plan->thaw, "THAWED");
    for (size_t i = 0; i < plan->kill.count; i++)
        put(plan->kill.item[i], "1");
}

/* A folder stays busy for a moment after its last process was reaped, and for seconds if that wrote to a slow
 * disk. In reverse: one may lie in another. */
bool groups_remove(const struct plan *plan) {
    bool removed = true;
    for (size_t i = plan->cgroup.count; i-- > 0;)
        for (int attempt = 0; rmdir(plan->cgroup.item[i]) != 0 && errno != ENOENT; attempt++) {
            if (errno != EBUSY || attempt == GROUP_TRIES) {
                removed = false;
                break;
            }
            nanosleep(&(struct timespec){.tv_nsec = 500000}, NULL);
        }
    return removed;
}

uint64_t groups_oom_kills(const struct plan *plan) {
    char *text = plan->oom.path ? read_file(plan->oom.path, 4096, NULL) : NULL;
    uint64_t kills = 0;
    size_t length = text ? strlen(plan->oom.value) : 0;
    for (char *line = text; line; line = strchr(line, '\n')) {
        line += strspn(line, "\n");
        if (strncmp(line, plan->oom.value, length) == 0 && line[length] == ' ')
            kills = strtoull(line + length, NULL, 10);
    }
    free(text);
    return kills;
}

/* The sum of what a file says in each folder of `parent`. */
static uint64_t sum_of(const char *parent, const char *name) {
    uint64_t sum = 0;
    DIR *folder = opendir(parent);
    for (struct dirent *entry; folder && (entry = readdir(folder));) {
        if (entry->d_type != DT_DIR || entry->d_name[0] == '.')
            continue;
        char *path = must_format("%s/%s/%s", parent, entry->d_name, name);
        char *text = read_file(path, 64, NULL);
        sum += text ? strtoull(text, NULL, 10) : 0;
        free(text);
        free(path);
    }
    if (folder)
        closedir(folder);
    return sum;
}

/* The number of folders in a folder of the kernel's. */
static nlink_t folders_in(const char *parent) {
    struct stat info;
    return stat(parent, &info) == 0 ? info.st_nlink : 0;
}

/* Without a lock, which one that is stopped would keep from all: who was overtaken while it counted counts again. */
void groups_weigh(const struct plan *plan) {
    if (!plan->weight.path)
        return;
    char *parent = must_copy(plan->weight.path), *name = strrchr(parent, '/');
    *name++ = '\0';
    uint64_t most = strtoull(plan->weight.value, NULL, 10);
    nlink_t counted;
    int attempt = 0;
    do {
        counted = folders_in(parent);
        uint64_t sum = sum_of(parent, name);
        char *text = must_format("%llu", (unsigned long long)(sum < most ? sum : most));
        if (sum > 0)
            put(plan->weight.path, text);
        free(text);
    } while (folders_in(parent) != counted && ++attempt < 8);
    free(parent);
}
