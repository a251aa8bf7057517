/* Folders from outside; see folders.h.
 *
 * Rules: what is in a volume was written by hostile hands, and they may change it at this moment. A name in it is opened once, in its
 * open parent, and never followed; what is shown is mounted by that descriptor, without devices and set-user-ID programs. */
#include "kernel.h"
#include "folders.h"

#include "fail.h"
#include "ids.h"
#include "mountfd.h"
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

enum { HOLD_ATTEMPTS = 200 };

/* ---- locks ---- */

static bool is_at(int folder, const char *path) {
    struct stat held, found;
    return fstat(folder, &held) == 0 && stat(path, &found) == 0 && held.st_dev == found.st_dev && held.st_ino == found.st_ino;
}

/* Who looks whether a folder is in use holds the lock for a moment; who removes it, until it is gone. */
int folder_hold(const char *path) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    int locked = fd < 0 ? -1 : flock(fd, LOCK_SH | LOCK_NB);
    for (int attempt = 0; fd >= 0 && locked != 0 && attempt < HOLD_ATTEMPTS; attempt++) {
        poll(NULL, 0, 1);
        locked = flock(fd, LOCK_SH | LOCK_NB);
    }
    if (locked == 0 && is_at(fd, path))
        return fd;
    fail(NULL, "cannot hold %s: %s", path, fd < 0 || locked != 0 ? strerror(errno) : "it was removed a moment ago");
    close_fd(&fd);
    return -1;
}

bool folders_hold(const struct plan *plan) {
    for (size_t i = 0; i < plan->lock.count; i++)
        if (folder_hold(plan->lock.item[i]) < 0) /* kept open until this process ends */
            return false;
    return true;
}

/* ---- maps ---- */

int *folders_maps(const struct plan *plan, uint32_t base) {
    int *maps = must_alloc((plan->bind.count + 1) * sizeof *maps);
    for (size_t i = 0; i < plan->bind.count; i++)
        maps[i] = -1;
    for (size_t i = 0; i < plan->bind.count; i++) {
        const struct extra_mount *extra = &plan->bind.item[i];
        if (!extra->owned || plan->ids != IDS_RANGE)
            continue;
        maps[i] = userns_of_owner(extra->uid, extra->gid, base);
        if (maps[i] < 0) {
            folders_close_maps(plan, maps);
            return NULL;
        }
    }
    return maps;
}

void folders_close_maps(const struct plan *plan, int *maps) {
    for (size_t i = 0; maps && i < plan->bind.count; i++)
        close_fd(&maps[i]);
    free(maps);
}

/* ---- sources ---- */

/* A folder in a folder of a volume, made if there is none: it is the owner's then, as if root of a sandbox had made it. */
static int enter(const struct extra_mount *extra, int parent, const char *name, bool shifted) {
    const int flags = O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
    int folder = openat(parent, name, flags);
    if (folder >= 0 || errno != ENOENT || !extra->writable || mkdirat(parent, name, 0755) != 0)
        return folder;
    folder = openat(parent, name, flags);
    if (folder < 0 || !shifted || fchownat(folder, "", extra->uid, extra->gid, AT_EMPTY_PATH) == 0)
        return folder;
    close_fd(&folder);
    return -1;
}

/* What is shown of a volume. No name in it is "..", and none is a link. None on the way to it is either: its path is the real one, and
 * another sandbox that may write to a folder above it could put a link in its place. */
static int open_sub(const struct extra_mount *extra, bool shifted) {
    const struct how real = {.flags = O_PATH | O_DIRECTORY | O_CLOEXEC, .resolve = NO_SYMLINKS};
    int at = (int)syscall(NR_OPENAT2, AT_FDCWD, extra->source, &real, sizeof real);
    struct stat found;
    if (at >= 0 && extra->owned && (fstat(at, &found) != 0 || found.st_uid != extra->uid || found.st_gid != extra->gid)) {
        close_fd(&at);
        return fail("volume", "the owner of %s has changed a moment ago; create the sandbox again", extra->source), -1;
    }
    char *path = must_copy(extra->sub);
    for (char *rest = path, *name; at >= 0 && (name = strsep(&rest, "/"));) {
        if (*name == '\0' || strcmp(name, ".") == 0)
            continue;
        int next = strcmp(name, "..") == 0 ? -1 : enter(extra, at, name, shifted);
        int why = errno;
        close_fd(&at);
        at = next;
        errno = why;
    }
    free(path);
    if (at < 0)
        fail("volume", "cannot mount %s of %s: %m; it must be a folder, and no link may lead to it", extra->sub, extra->source);
    return at;
}

static bool refused(const struct extra_mount *extra) {
    if (errno != EINVAL)
        return fail(NULL, "cannot mount %s: %m", extra->source);
    return fail("volume",
                "cannot mount %s: its file system has no idmapped mounts, as an overlay, NFS or FUSE may not have; copy its files with "
                "sandbox.filesystem.copy_from_local, or put it on ext4, xfs or btrfs",
                extra->source);
}

/* A detached mount of what is shown, and whether that is a folder. */
static int open_source(const struct extra_mount *extra, int userns, bool *is_folder) {
    const uint64_t set = PLAIN | (extra->writable ? 0 : ATTR_RDONLY);
    struct stat source;
    AUTO_FD int shown = extra->sub ? open_sub(extra, userns >= 0) : -1;
    if (extra->sub && shown < 0)
        return -1;
    int tree = shown >= 0 ? clone_tree(shown, "", set, userns, EMPTY_PATH) : clone_tree(AT_FDCWD, extra->source, set, userns, 0);
    if (tree < 0 && extra->sub)
        return refused(extra), -1;
    if (tree < 0 || fstat(tree, &source) != 0) {
        fail(NULL, "cannot mount %s: %m; it must exist, on a file system with idmapped mounts", extra->source);
        return -1;
    }
    *is_folder = S_ISDIR(source.st_mode);
    return tree;
}

/* ---- targets ---- */

int target_in(int root, const char *path, bool is_folder, uint64_t resolve) {
    char *prefix = must_copy(path + strspn(path, "/"));
    AUTO_FD int parent = open_in(root, "/", O_PATH | O_DIRECTORY, 0);
    int found = -1;
    for (char *end = prefix; parent >= 0 && end;) {
        char *name = end + strspn(end, "/");
        end = strchr(name, '/');
        if (end && end[strspn(end, "/")] == '\0')
            end = NULL;
        name[strcspn(name, "/")] = '\0';
        found = open_in(root, prefix, O_PATH, resolve);
        if (found < 0 && errno == ENOENT) {
            if ((end || is_folder ? mkdirat(parent, name, 0755) : mknodat(parent, name, S_IFREG | 0644, 0)) != 0)
                break;
            found = open_in(root, prefix, O_PATH, resolve);
        }
        if (found < 0 || !end)
            break;
        close_fd(&parent);
        parent = found;
        found = -1;
        *end = '/';
    }
    free(prefix);
    return found;
}

static bool mount_in(const struct extra_mount *extra, int root, int tree, bool is_folder) {
    AUTO_FD int target = target_in(root, extra->target, is_folder, extra->sub ? NO_SYMLINKS : 0);
    if (target >= 0 && attach(tree, target))
        return true;
    if (extra->sub && (errno == ELOOP || errno == ENOTDIR))
        return fail("image", "cannot mount on %s in the sandbox: a part of it is a link or a file in the image; give the folder that it leads to",
                    extra->target);
    return fail("image", "cannot mount on %s in the sandbox: %m", extra->target);
}

static bool mount_for_runtime(size_t number, int tree) {
    char name[32];
    snprintf(name, sizeof name, "volumes/%zu", number);
    if ((number == 0 && mkdir("volumes", 0755) != 0) || mkdir(name, 0755) != 0)
        return fail(NULL, "tmpfs: %m");
    AUTO_FD int target = open(name, O_PATH | O_DIRECTORY | O_CLOEXEC);
    return attach(tree, target) || fail(NULL, "cannot show a volume to the runtime: %m");
}

bool folders_mount(const struct plan *plan, int root, int userns, const int *maps) {
    for (size_t i = 0; i < plan->bind.count; i++) {
        const struct extra_mount *extra = &plan->bind.item[i];
        bool is_folder = false;
        AUTO_FD int tree = open_source(extra, maps[i] >= 0 ? maps[i] : userns, &is_folder);
        if (tree < 0 || !(plan->runtime ? mount_for_runtime(i, tree) : mount_in(extra, root, tree, is_folder)))
            return false;
    }
    return true;
}
