/* Free space costs one system call a second; files are counted only when it has shrunk, by a process of its own with the lowest priority. */
#include "kernel.h"
#include "guard.h"

#include "fail.h"
#include "ids.h"
#include "util.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/wait.h>

#define GIB (1ULL << 30)
#define COUNTED "disk.bytes"
#define OVERLAY 0x794c7630

/* Deeper than any path that can be given to the kernel at once: only who hides something goes deeper. */
enum { DEEPEST = 2100, STEPS = 10 };

/* --------------------------------------------------------------------------------------- the counter */

static uint64_t count_folder(int folder, dev_t device, int depth);

static uint64_t count_entry(int folder, const char *name, dev_t device, int depth) {
    struct stat found;
    if (fstatat(folder, name, &found, AT_SYMLINK_NOFOLLOW) != 0 || found.st_dev != device)
        return 0;
    uint64_t size = (uint64_t)found.st_blocks * 512;
    if (!S_ISDIR(found.st_mode)) /* each of its names tells its part */
        return size / (found.st_nlink > 0 ? found.st_nlink : 1);
    int inner = openat(folder, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return inner < 0 ? size : size + count_folder(inner, device, depth + 1);
}

static uint64_t count_folder(int folder, dev_t device, int depth) {
    DIR *listing = fdopendir(folder);
    uint64_t sum = depth > DEEPEST ? UINT64_MAX / 2 : 0;
    if (listing == NULL) {
        close(folder);
        return sum;
    }
    for (struct dirent *entry; sum < UINT64_MAX / 2 && (entry = readdir(listing)) != NULL;)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            sum += count_entry(dirfd(listing), entry->d_name, device, depth);
    closedir(listing);
    return sum;
}

struct nameless { /* files that are open and have no name any more */
    ino_t seen[1024];
    size_t count;
    uint64_t sum;
};

static void count_open(struct nameless *found, int folder, const char *name) {
    struct statfs system;
    struct stat file;
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d/%.16s", folder, name);
    if (stat(path, &file) != 0 || !S_ISREG(file.st_mode) || file.st_nlink > 0 || statfs(path, &system) != 0 ||
        system.f_type != OVERLAY)
        return;
    for (size_t i = 0; i < found->count; i++)
        if (found->seen[i] == file.st_ino)
            return;
    if (found->count < sizeof found->seen / sizeof *found->seen)
        found->seen[found->count++] = file.st_ino;
    found->sum += (uint64_t)file.st_blocks * 512;
}

/* Whoever removes a file that it goes on writing to keeps it from a walk; the processes of a group show what they have open. */
static uint64_t count_nameless(const char *group) {
    struct nameless found = {.count = 0};
    char *file = must_format("%s/cgroup.procs", group), path[32];
    char *pids = read_file(file, 1 << 20, NULL);
    for (char *rest = pids, *pid; pids != NULL && (pid = strsep(&rest, "\n")) != NULL && *pid;) {
        snprintf(path, sizeof path, "/proc/%.10s/fd", pid);
        DIR *listing = opendir(path);
        for (struct dirent *entry; listing != NULL && (entry = readdir(listing)) != NULL;)
            count_open(&found, dirfd(listing), entry->d_name);
        if (listing != NULL)
            closedir(listing);
    }
    free(pids);
    free(file);
    return found.sum;
}

static _Noreturn void be_counter(const struct guard *guard, int answer) {
    struct rlimit files;
    struct stat root;
    setpriority(PRIO_PROCESS, 0, 19);
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    if (guard->userns >= 0 && !userns_enter(guard->userns))
        _exit(1);
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* now: the kernel forgets it when a process gains rights */
    int folder = openat(guard->folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0 || fstat(folder, &root) != 0)
        _exit(1);
    uint64_t sum = count_folder(folder, root.st_dev, 0) + (guard->group != NULL ? count_nameless(guard->group) : 0);
    for (size_t i = 0; i < guard->counted->count; i++)
        sum += count_entry(AT_FDCWD, guard->counted->item[i], root.st_dev, 0);
    _exit(write_all(answer, &sum, sizeof sum) ? 0 : 1);
}

static void start_counting(struct guard *guard) {
    int pair[2];
    if (pipe2(pair, O_CLOEXEC) != 0)
        return;
    guard->counter = fork();
    if (guard->counter == 0)
        be_counter(guard, pair[1]);
    close(pair[1]);
    guard->count = pair[0];
    if (guard->counter < 0) {
        close_fd(&guard->count);
        guard->count = -1;
    }
}

/* ----------------------------------------------------------------------------------------- the guard */

static void note(const struct guard *guard, uint64_t size) {
    char text[32];
    int length = snprintf(text, sizeof text, "%llu", (unsigned long long)size);
    AUTO_FD int file = openat(guard->dir, COUNTED, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (file >= 0 && !write_all(file, text, (size_t)length))
        unlinkat(guard->dir, COUNTED, 0); /* the disk is full; nobody is told then */
}

static uint64_t noted(int folder, const char *name) {
    char text[32] = {0};
    uint64_t size = 0;
    char *path = must_format("%s/" COUNTED, name);
    AUTO_FD int file = openat(folder, path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    free(path);
    return file >= 0 && read(file, text, sizeof text - 1) > 0 && parse_u64(text, &size) ? size : 0;
}

/* Sandboxes lie side by side. */
static bool is_largest(const struct guard *guard, uint64_t size) {
    int parent = openat(guard->dir, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *listing = parent >= 0 ? fdopendir(parent) : NULL;
    bool largest = true;
    for (struct dirent *entry; listing != NULL && largest && (entry = readdir(listing)) != NULL;)
        largest = noted(dirfd(listing), entry->d_name) <= size;
    if (listing != NULL)
        closedir(listing);
    return largest;
}

/* A twentieth of a large disk is much: nobody is ended for it. */
static bool is_nearly_full(const struct statvfs *disk, uint64_t free_bytes) {
    return free_bytes < 2 * GIB || (free_bytes < 10 * GIB && disk->f_bavail < disk->f_blocks / 20);
}

static uint64_t step_of(const struct guard *guard) {
    return guard->most / STEPS < GIB ? guard->most / STEPS : GIB;
}

static bool hear_counter(struct guard *guard, bool nearly_full) {
    uint64_t size = 0;
    ssize_t got = read(guard->count, &size, sizeof size);
    close_fd(&guard->count);
    guard->count = -1;
    if (got != sizeof size)
        return false;
    note(guard, size);
    return size > guard->most || (nearly_full && size > step_of(guard) && is_largest(guard, size));
}

bool guard_finds(struct guard *guard, uint64_t now) {
    struct statvfs disk;
    if (guard->folder < 0 || now < guard->next || fstatvfs(guard->folder, &disk) != 0)
        return false;
    guard->next = now + GUARD_MS;
    uint64_t free_bytes = (uint64_t)disk.f_bavail * disk.f_frsize, step = step_of(guard);
    bool nearly_full = is_nearly_full(&disk, free_bytes);
    if (guard->count >= 0) {
        struct pollfd told = {guard->count, POLLIN, 0};
        return poll(&told, 1, 0) == 1 && hear_counter(guard, nearly_full);
    }
    if (free_bytes > guard->before)
        guard->before = free_bytes;
    if (guard->before - free_bytes > (nearly_full ? step / 16 : step)) {
        guard->before = free_bytes;
        start_counting(guard);
    }
    return false;
}

bool guard_begin(struct guard *guard, const struct plan *plan, int dir, int userns) {
    *guard = (struct guard){.folder = -1, .dir = dir, .userns = plan->ids != IDS_RANGE ? userns : -1, .most = plan->guard, .count = -1,
                            .counted = &plan->counted, .group = plan->cgroup.count > 0 ? plan->cgroup.item[0] : NULL};
    struct statvfs disk;
    if (plan->guard == 0)
        return true;
    guard->folder = open(plan->upper, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (guard->folder < 0 || fstatvfs(guard->folder, &disk) != 0)
        return fail(NULL, "cannot look at the disk of %s: %m", plan->upper);
    /* What is in the counted folders already is the sandbox's from the start: they are counted at the first look. */
    guard->before = plan->counted.count > 0 ? UINT64_MAX : (uint64_t)disk.f_bavail * disk.f_frsize;
    return true;
}

void guard_end(struct guard *guard) {
    if (guard->counter > 0)
        kill(guard->counter, SIGKILL);
    close_fd(&guard->count);
    close_fd(&guard->folder);
    guard->count = guard->folder = -1;
}
