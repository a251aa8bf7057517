/* Free space and the number of sockets cost a system call a second each. Files are counted only when the one has shrunk, queues only
 * when there are so many sockets that they can hold too much. */
#include "kernel.h"
#include "guard.h"

#include "fail.h"
#include "ids.h"
#include "scan.h"
#include "sockets.h"
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
enum { DEEPEST = 2100, STEPS = 10, GUARD_MS = 1000, DEATH_MS = 1000 };

/* Beyond what the kernel charges: twice net.core.rmem_max, which is 208 KiB on most machines, for what nobody reads. */
enum { MOST_IN_A_SOCKET = 512 << 10 };

/* ---- the counters ---- */

struct scope { /* which files count: those on a device, changed since then (no sandbox can set the time of a change) */
    dev_t device;
    time_t since;
    uint64_t least; /* as how many bytes each counts at least */
};

static uint64_t count_folder(int folder, const struct scope *scope, int depth);

static uint64_t count_entry(int folder, const char *name, const struct scope *scope, int depth) {
    struct stat found;
    if (fstatat(folder, name, &found, AT_SYMLINK_NOFOLLOW) != 0 || found.st_dev != scope->device)
        return 0;
    uint64_t size = (uint64_t)found.st_blocks * 512;
    size = found.st_ctime < scope->since ? 0 : size < scope->least ? scope->least : size;
    if (!S_ISDIR(found.st_mode)) /* each of its names tells its part */
        return size / (found.st_nlink > 0 ? found.st_nlink : 1);
    int inner = openat(folder, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return inner < 0 ? size : size + count_folder(inner, scope, depth + 1);
}

static uint64_t count_folder(int folder, const struct scope *scope, int depth) {
    DIR *listing = fdopendir(folder);
    uint64_t sum = depth > DEEPEST ? UINT64_MAX / 2 : 0;
    if (!listing) {
        close(folder);
        return sum;
    }
    for (struct dirent *entry; sum < UINT64_MAX / 2 && (entry = readdir(listing));)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            sum += count_entry(dirfd(listing), entry->d_name, scope, depth);
    closedir(listing);
    return sum;
}

uint64_t guard_count(const char *path) {
    struct stat root;
    int folder = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (folder < 0 || fstat(folder, &root) != 0)
        return 0;
    return count_folder(folder, &(const struct scope){.device = root.st_dev}, 0);
}

struct nameless { /* files that are open and have no name any more */
    dev_t volumes; /* where such files count that are not in the sandbox's root; 0: nowhere */
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
        (system.f_type != OVERLAY && file.st_dev != found->volumes))
        return;
    for (size_t i = 0; i < found->count; i++)
        if (found->seen[i] == file.st_ino)
            return;
    if (found->count < sizeof found->seen / sizeof *found->seen)
        found->seen[found->count++] = file.st_ino;
    found->sum += (uint64_t)file.st_blocks * 512;
}

/* Whoever removes a file that it goes on writing to keeps it from a walk; the processes of a group show what they have open. */
static uint64_t count_nameless(const char *group, dev_t volumes) {
    struct nameless found = {.volumes = volumes};
    char *file = must_format("%s/cgroup.procs", group), path[32];
    char *pids = read_file(file, 1 << 20, NULL);
    for (char *rest = pids, *pid; pids && (pid = strsep(&rest, "\n")) && *pid;) {
        snprintf(path, sizeof path, "/proc/%.10s/fd", pid);
        DIR *listing = opendir(path);
        for (struct dirent *entry; listing && (entry = readdir(listing));)
            count_open(&found, dirfd(listing), entry->d_name);
        if (listing)
            closedir(listing);
    }
    free(pids);
    free(file);
    return found.sum;
}

/* Of what was there before the sandbox began, it has written nothing. */
static uint64_t count_volumes(const struct guard *guard, dev_t device) {
    const struct scope scope = {device, guard->began, guard->least};
    uint64_t sum = 0;
    for (size_t i = 0; i < guard->plan->bind.count; i++) {
        const struct extra_mount *extra = &guard->plan->bind.item[i];
        if (extra->sub && extra->writable)
            sum += count_entry(AT_FDCWD, extra->source, &scope, 0);
    }
    return sum;
}

static bool count_files(const struct guard *guard, uint64_t *sum) {
    struct rlimit files;
    struct stat root;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    int folder = openat(guard->folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0 || fstat(folder, &root) != 0)
        return false;
    const struct scope all = {root.st_dev, 0, guard->least};
    const struct strings *counted = &guard->plan->counted;
    *sum = count_folder(folder, &all, 0) + (guard->nearly_full ? count_volumes(guard, root.st_dev) : 0);
    if (guard->group)
        *sum += count_nameless(guard->group, guard->nearly_full ? root.st_dev : 0);
    for (size_t i = 0; i < counted->count; i++)
        *sum += count_entry(AT_FDCWD, counted->item[i], &all, 0);
    return true;
}

static bool count_queues(const struct guard *guard, uint64_t *sum) {
    if (setns(guard->network, CLONE_NEWNET) != 0)
        return false;
    *sum = sockets_hold();
    return true;
}

static _Noreturn void be_counter(const struct guard *guard, bool (*count)(const struct guard *, uint64_t *), int answer) {
    uint64_t sum = 0;
    setpriority(PRIO_PROCESS, 0, 19);
    if (guard->userns >= 0 && !userns_enter(guard->userns))
        _exit(1);
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* now: the kernel forgets it when a process gains rights */
    _exit(count(guard, &sum) && write_all(answer, &sum, sizeof sum) ? 0 : 1);
}

static void start_counting(const struct guard *guard, struct counter *counter, bool (*count)(const struct guard *, uint64_t *)) {
    int pair[2];
    if (pipe2(pair, O_CLOEXEC) != 0)
        return;
    counter->pid = fork();
    if (counter->pid == 0)
        be_counter(guard, count, pair[1]);
    close(pair[1]);
    counter->told = pair[0];
    if (counter->pid < 0)
        close_fd(&counter->told);
}

/* False: it has not told yet, or could not count. */
static bool hear_counter(struct counter *counter, uint64_t *sum) {
    struct pollfd told = {counter->told, POLLIN, 0};
    if (poll(&told, 1, 0) != 1)
        return false;
    bool heard = read(counter->told, sum, sizeof *sum) == sizeof *sum;
    close_fd(&counter->told);
    counter->told = -1;
    return heard;
}

static void stop_counting(struct counter *counter) {
    if (counter->pid > 0)
        kill(counter->pid, SIGKILL);
    close_fd(&counter->told);
    counter->told = -1;
}

/* ---- the disk ---- */

static void note(const struct guard *guard, uint64_t size, dev_t device) {
    char text[48];
    int length = snprintf(text, sizeof text, "%llu %llu", (unsigned long long)size, (unsigned long long)device);
    AUTO_FD int file = openat(guard->dir, COUNTED, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (file >= 0 && !write_all(file, text, (size_t)length))
        unlinkat(guard->dir, COUNTED, 0); /* the disk is full; nobody is told then */
}

static uint64_t noted(int folder, const char *name, dev_t device) {
    char text[48] = {0};
    unsigned long long size, where;
    char *path = must_format("%s/" COUNTED, name);
    AUTO_FD int file = openat(folder, path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    free(path);
    return file >= 0 && read(file, text, sizeof text - 1) > 0 && scan(text, "%llu %llu", &size, &where) == 2 && where == device
               ? size
               : 0;
}

/* Sandboxes lie side by side, also those of other state folders, which may be on other disks. */
static bool is_largest(const struct guard *guard, uint64_t size, dev_t device) {
    int parent = openat(guard->dir, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *listing = parent >= 0 ? fdopendir(parent) : NULL;
    bool largest = true;
    for (struct dirent *entry; listing && largest && (entry = readdir(listing));)
        largest = noted(dirfd(listing), entry->d_name, device) <= size;
    if (listing)
        closedir(listing);
    return largest;
}

/* A twentieth of a large disk is much: nobody is ended for it. */
static bool is_nearly_full(uint64_t bytes, uint64_t all) {
    return bytes < 2 * GIB || (bytes < 10 * GIB && bytes < all / 20);
}

/* Bytes of a disk for each file that it can have; 0: it has as many as fit. */
static uint64_t share_of_file(const struct statvfs *disk) {
    return disk->f_files > 0 ? (uint64_t)disk->f_blocks * disk->f_frsize / disk->f_files : 0;
}

static uint64_t step_of(const struct guard *guard) {
    return guard->most / STEPS < GIB ? guard->most / STEPS : GIB;
}

/* The disk's numbers come from the folder around: with a quota, statvfs of the upper folder shows the quota. */
static bool look_around(int folder, struct statvfs *disk) {
    AUTO_FD int around = openat(folder, "..", O_PATH | O_DIRECTORY | O_CLOEXEC);
    return around >= 0 && fstatvfs(around, disk) == 0;
}

static bool fills_disk(struct guard *guard) {
    struct statvfs disk;
    struct stat folder;
    if (guard->folder < 0 || !look_around(guard->folder, &disk) || fstat(guard->folder, &folder) != 0)
        return false;
    uint64_t free_bytes = (uint64_t)disk.f_bavail * disk.f_frsize, step = step_of(guard), size;
    uint64_t share = share_of_file(&disk), for_files = share * disk.f_favail;
    bool is_short_of_files = share > 0 && for_files < free_bytes; /* what is left of files counts as bytes then */
    if (is_short_of_files)
        free_bytes = for_files;
    bool nearly_full = is_nearly_full(free_bytes, (uint64_t)disk.f_blocks * disk.f_frsize);
    if (guard->files.told >= 0) {
        if (!hear_counter(&guard->files, &size))
            return false;
        note(guard, size, folder.st_dev);
        guard->size = size;
        return size > guard->most || (nearly_full && size > step && is_largest(guard, size, folder.st_dev));
    }
    if (free_bytes > guard->before)
        guard->before = free_bytes;
    if (guard->before - free_bytes > (nearly_full ? step / 16 : step)) {
        guard->before = free_bytes;
        guard->nearly_full = nearly_full;
        guard->least = nearly_full && is_short_of_files ? share : 0;
        start_counting(guard, &guard->files, count_files);
    }
    return false;
}

/* ---- the sockets ---- */

static bool fills_sockets(struct guard *guard) {
    if (guard->sockets < 0)
        return false;
    if (guard->queues.told >= 0)
        return hear_counter(&guard->queues, &guard->size) && guard->size > guard->most_in_sockets;
    if (sockets_count(guard->sockets) > guard->most_in_sockets / MOST_IN_A_SOCKET)
        start_counting(guard, &guard->queues, count_queues);
    return false;
}

/* ---- the guard ---- */

int guard_wait(const struct guard *guard) {
    bool counts = guard->files.told >= 0 || guard->queues.told >= 0;
    return guard->folder < 0 && guard->sockets < 0 ? -1 : counts ? GUARD_MS / 10 : GUARD_MS;
}

const char *guard_finds(struct guard *guard, uint64_t now) {
    if (guard_wait(guard) < 0 || now < guard->next)
        return NULL;
    const char *reason = fills_disk(guard) ? "disk" : fills_sockets(guard) ? "sockets" : NULL;
    guard->next = now + (uint64_t)guard_wait(guard);
    return reason;
}

/* Its namespaces go a moment before it can be waited for. */
static bool is_ending(pid_t process) {
    AUTO_FD int death = (int)syscall(NR_PIDFD_OPEN, process, 0);
    return death >= 0 && poll(&(struct pollfd){death, POLLIN, 0}, 1, DEATH_MS) == 1;
}

bool guard_begin(struct guard *guard, const struct plan *plan, int dir, int userns, pid_t init, int network) {
    *guard = (struct guard){.folder = -1, .sockets = -1, .dir = dir, .userns = plan->ids != IDS_RANGE ? userns : -1, .network = network,
                            .most = plan->guard, .most_in_sockets = plan->sockets, .files = {.told = -1}, .queues = {.told = -1},
                            .plan = plan, .began = (time_t)(unix_us() / 1000000), .group = plan->cgroup.count > 0 ? plan->cgroup.item[0] : NULL};
    struct statvfs disk;
    /* A short main command may have ended the sandbox by now. */
    if (plan->sockets > 0 && network >= 0 && (guard->sockets = sockets_open(init)) < 0 && !is_ending(init))
        return fail("internal", "cannot look at the sandbox's sockets, though it runs");
    if (plan->guard == 0)
        return true;
    guard->folder = open(plan->upper, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (guard->folder < 0 || !look_around(guard->folder, &disk))
        return fail(NULL, "cannot look at the disk of %s: %m", plan->upper);
    /* What is in the counted folders already is the sandbox's from the start: they are counted at the first look. */
    guard->before = plan->counted.count > 0 ? UINT64_MAX : (uint64_t)disk.f_bavail * disk.f_frsize;
    return true;
}

void guard_reaped(struct guard *guard, pid_t pid) {
    struct counter *const counters[] = {&guard->files, &guard->queues};
    for (size_t i = 0; i < sizeof counters / sizeof *counters; i++)
        if (counters[i]->pid == pid)
            counters[i]->pid = 0;
}

void guard_follow(struct guard *guard, const struct plan *plan) {
    if (guard->folder < 0)
        return;
    close_fd(&guard->folder);
    guard->folder = open(plan->upper, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

void guard_end(struct guard *guard) {
    stop_counting(&guard->files);
    stop_counting(&guard->queues);
    close_fd(&guard->folder);
    close_fd(&guard->sockets); /* it keeps the network namespace */
    guard->folder = guard->sockets = -1;
}
