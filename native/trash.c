/* One descriptor per level would run out of them on a deep tree: instead, folders deeper than a few levels are first moved up
 * next to the root of the tree. So the depth of what we hold is bounded, whatever the sandbox has built.
 *
 * Others may be removing the same tree: what is gone is as good as removed, and each moves up under names of its own.
 *
 * The verb `remove` does the same for the SDK, which must not follow a sandbox's tree by itself. A plain user's tree may have files of
 * ids that only newuidmap gives: then it is removed by root of a user namespace with the same map as the sandbox's. */
#include "kernel.h"
#include "trash.h"

#include "fail.h"
#include "ids.h"
#include "quota.h"
#include "util.h"
#include "verbs.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

enum { DEEPEST = 32, ATTEMPTS = 100 };

struct removal {
    int root;
    dev_t device;
    unsigned moved; /* names the folders that were moved up */
    void (*tick)(void *);
    void *context;
};

static bool empty_folder(struct removal *removal, int folder, int depth);

/* Overlay's work/work has mode 0, and a user's own folders may be without rights too: whoever is not root gives them back
 * first. */
static int open_folder(int parent, const char *name) {
    int flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
    int fd = openat(parent, name, flags);
    if (fd < 0 && errno == EACCES && fchmodat(parent, name, 0700, 0) == 0)
        fd = openat(parent, name, flags);
    if (fd >= 0 && geteuid() != 0)
        fchmod(fd, 0700);
    return fd;
}

/* Whoever is not root needs the right to write to a folder for giving it another parent. */
static bool move_up(struct removal *removal, int parent, const char *name) {
    char moved[48];
    snprintf(moved, sizeof moved, ".openmodal-%d-%u", (int)getpid(), removal->moved++);
    return renameat(parent, name, removal->root, moved) == 0 ||
           (errno == EACCES && fchmodat(parent, name, 0700, 0) == 0 && renameat(parent, name, removal->root, moved) == 0);
}

static bool remove_folder(struct removal *removal, int parent, const char *name, int depth) {
    if (unlinkat(parent, name, AT_REMOVEDIR) == 0 || errno == ENOENT)
        return true;
    if (depth >= DEEPEST)
        return move_up(removal, parent, name) || errno == ENOENT; /* the root is read again until it is empty */
    AUTO_FD int folder = open_folder(parent, name);
    struct stat found;
    if (folder < 0 || fstat(folder, &found) != 0)
        return errno == ENOENT;
    if (found.st_dev != removal->device) {
        errno = EXDEV; /* somebody has mounted something there */
        return false;
    }
    return empty_folder(removal, folder, depth + 1) && (unlinkat(parent, name, AT_REMOVEDIR) == 0 || errno == ENOENT);
}

static bool remove_entry(struct removal *removal, int folder, const struct dirent *entry, int depth) {
    if (removal->tick)
        removal->tick(removal->context);
    if (entry->d_type != DT_DIR && unlinkat(folder, entry->d_name, 0) == 0)
        return true;
    return remove_folder(removal, folder, entry->d_name, depth);
}

/* Again, while there is anything: entries may be skipped by a folder that shrinks while it is read. */
static bool empty_folder(struct removal *removal, int folder, int depth) {
    DIR *listing = fdopendir(fcntl(folder, F_DUPFD_CLOEXEC, 3));
    bool removed = listing, any = true;
    while (removed && any) {
        any = false;
        rewinddir(listing);
        for (struct dirent *entry; removed && (entry = readdir(listing));)
            if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) {
                any = true;
                removed = remove_entry(removal, folder, entry, depth);
            }
    }
    int why = errno;
    if (listing)
        closedir(listing);
    errno = why;
    return removed;
}

static bool remove_tree(int parent, const char *name, bool keep, void (*tick)(void *), void *context) {
    if (!keep && (unlinkat(parent, name, AT_REMOVEDIR) == 0 || errno == ENOENT))
        return true;
    AUTO_FD int root = open_folder(parent, name);
    struct stat found;
    if (root < 0 || fstat(root, &found) != 0)
        return errno == ENOENT;
    struct removal removal = {.root = root, .device = found.st_dev, .tick = tick, .context = context};
    return empty_folder(&removal, root, 0) && (keep || unlinkat(parent, name, AT_REMOVEDIR) == 0 || errno == ENOENT);
}

bool trash_remove(const char *path, bool keep, void (*tick)(void *), void *context) {
    return remove_tree(AT_FDCWD, path, keep, tick, context);
}

/* ---- the verb ---- */

/* What is just dying may still be writing. */
static bool remove_patiently(const char *name) {
    for (int attempt = 1;; attempt++) {
        if (remove_tree(STDIN_FILENO, name, false, NULL, NULL))
            return true;
        if (errno != ENOTEMPTY || attempt == ATTEMPTS)
            return false;
        nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
    }
}

static bool remove_as_root(int mapper, const char *name) {
    char byte;
    if (unshare(CLONE_NEWUSER) != 0)
        return fail(NULL, "cannot make a user namespace: %m");
    if (write(mapper, "u", 1) != 1 || read(mapper, &byte, 1) != 1)
        return false; /* it tells why */
    if (setresgid(0, 0, 0) != 0 || setresuid(0, 0, 0) != 0)
        return fail(NULL, "cannot become root of the user namespace: %m");
    return remove_patiently(name) || fail(NULL, "cannot remove %s: %m", name);
}

static int report(bool done) {
    if (!done && failure())
        dprintf(STDERR_FILENO, "error %s\n", failure());
    return !done;
}

static bool remove_in_namespace(const struct plan *map, const char *name) {
    int pair[2], status = 1;
    char byte;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
        return fail(NULL, "cannot make a socket: %m");
    pid_t child = fork();
    if (child == 0) {
        close(pair[0]);
        _exit(report(remove_as_root(pair[1], name)));
    }
    close(pair[1]);
    bool mapped = child > 0 && read(pair[0], &byte, 1) == 1 && userns_map(map, child) && write(pair[0], "m", 1) == 1;
    close(pair[0]); /* a child that is not mapped ends by this */
    while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR)
        ;
    return mapped && status == 0;
}

static bool take_map(struct strings *list, const char *key, char *word) {
    size_t length = strlen(key);
    if (strncmp(word, key, length) != 0)
        return false;
    list->item = must_grow(list->item, (list->count + 1) * sizeof *list->item);
    list->item[list->count++] = word + length;
    return true;
}

/* Of the folder that a killed supervisor wrote to, and of a layer that was one. */
static void lift_limits(const char *name) {
    char *upper = must_format("%s/upper", name), *root = must_format("%s/root", name);
    if (fchdir(STDIN_FILENO) == 0) {
        quota_clear(upper);
        quota_clear(root);
    }
    free(upper);
    free(root);
}

int verb_remove(int argc, char **argv) {
    struct plan map = {.ids = IDS_SUB};
    for (int i = 2; i < argc; i++)
        if (!take_map(&map.uid_map, "uid_map=", argv[i]) && !take_map(&map.gid_map, "gid_map=", argv[i]))
            argc = 0;
    if (argc < 2 || strchr(argv[1], '/') || argv[1][0] == '\0' || strcmp(argv[1], ".") == 0 || strcmp(argv[1], "..") == 0) {
        fprintf(stderr, "openmodal-agent remove: say NAME [uid_map=MAP …] [gid_map=MAP …], with its folder as standard input\n");
        return 2;
    }
    lift_limits(argv[1]);
    if (remove_patiently(argv[1]))
        return 0;
    if ((errno == EACCES || errno == EPERM) && map.uid_map.count > 0)
        return report(remove_in_namespace(&map, argv[1]));
    fail(NULL, "cannot remove %s: %m", argv[1]);
    return report(false);
}
