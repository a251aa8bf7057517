/* The tree is a sandbox's work, so it may be of any shape; but nobody changes it while we copy, and nobody
 * else reaches the copy. Many small files dominate: few system calls for each. */
#include "kernel.h"
#include "copier.h"

#include "fail.h"
#include "trash.h"
#include "util.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#define CLONE_FILE _IOW(0x94, 9, int) /* FICLONE of linux/fs.h */

/* Deeper than any path that can be given to the kernel at once: only who hides something goes deeper. */
enum { DEEPEST = 2100, MAX_VALUE = 1 << 16, BLOCK = 1 << 17 };

struct first { /* of the names of a file that has more of them */
    ino_t inode;
    char *path; /* below the copy's root */
    struct first *next;
};

enum { SHELVES = 1024, MOST_REMEMBERED = 256 << 20 };

struct copier {
    int root;      /* of the copy */
    uint32_t base; /* what the layer's owner 0 looks like */
    char path[PATH_MAX]; /* of the folder that is copied, below the root */
    struct first *first[SHELVES];
    size_t remembered; /* bytes of them */
    bool shares; /* the file system may let files share their blocks */
    uint64_t bytes;
};

struct pair { /* a folder and its copy */
    int from, to;
    size_t depth;
};

static bool failed(const struct copier *copier, const char *what, const char *name) {
    return fail(NULL, "cannot %s %s/%s of the sandbox: %m", what, copier->path, name);
}

/* ---- attributes ---- */

/* An access list names users and groups by ids: a version, and entries of 8 bytes. See posix_acl_xattr.h of linux/. */
static void shift_ids(char *list, size_t size, uint32_t base) {
    enum { VERSION = 4, USER = 2, GROUP = 8 };
    struct {
        uint16_t tag, rights;
        uint32_t id;
    } entry;
    for (size_t at = VERSION; at + sizeof entry <= size; at += sizeof entry) {
        memcpy(&entry, list + at, sizeof entry);
        if (entry.tag == USER || entry.tag == GROUP)
            entry.id -= base;
        memcpy(list + at, &entry, sizeof entry);
    }
}

/* Capabilities of version 3 (linux/capability.h) name the root of the user namespace that gave them in their last four bytes. */
static void shift_root(char *capabilities, size_t size, uint32_t base) {
    enum { VERSION_3_SIZE = 24, ROOT = 20 };
    uint32_t root;
    if (size != VERSION_3_SIZE)
        return;
    memcpy(&root, capabilities + ROOT, sizeof root);
    if (root < base) /* of nobody in the sandbox */
        return;
    root -= base;
    memcpy(capabilities + ROOT, &root, sizeof root);
}

static bool copy_attributes(int from, int to, uint32_t base) {
    static char names[MAX_VALUE], value[MAX_VALUE];
    ssize_t size = flistxattr(from, names, sizeof names);
    for (char *name = names; size > 0 && name < names + size; name += strlen(name) + 1) {
        ssize_t length = fgetxattr(from, name, value, sizeof value);
        if (length > 0 && base != 0 && strncmp(name, "system.posix_acl_", 17) == 0)
            shift_ids(value, (size_t)length, base);
        if (length > 0 && base != 0 && strcmp(name, "security.capability") == 0)
            shift_root(value, (size_t)length, base);
        if (length < 0 || fsetxattr(to, name, value, (size_t)length, 0) != 0)
            return false;
    }
    return size >= 0 || errno == ENOTSUP;
}

/* Owners first: a change of them takes set-user-id bits and capabilities away. */
static bool furnish(const struct copier *copier, int from, int to, const struct stat *found) {
    const struct timespec times[] = {found->st_atim, found->st_mtim};
    return fchown(to, found->st_uid - copier->base, found->st_gid - copier->base) == 0 && fchmod(to, found->st_mode & 07777) == 0 && copy_attributes(from, to, copier->base) &&
           futimens(to, times) == 0;
}

bool copy_looks(int from, int to) {
    struct stat found;
    return fstat(from, &found) == 0 && fchown(to, found.st_uid, found.st_gid) == 0 && fchmod(to, found.st_mode & 07777) == 0 &&
           copy_attributes(from, to, 0);
}

/* ---- files ---- */

static bool copy_bytes(int from, int to, off_t begin, off_t end) {
    static char block[BLOCK];
    while (begin < end) {
        size_t most = end - begin < BLOCK ? (size_t)(end - begin) : BLOCK;
        ssize_t size = most < BLOCK ? -1 : copy_file_range(from, &(off_t){begin}, to, &(off_t){begin}, (size_t)(end - begin), 0);
        if (size < 0) {
            if (most == BLOCK && errno != EXDEV && errno != EINVAL && errno != ENOSYS && errno != EOPNOTSUPP)
                return false;
            size = pread(from, block, most, begin);
            if (size < 0 || (size = pwrite(to, block, (size_t)size, begin)) < 0)
                return false;
        }
        if (size == 0)
            return true;
        begin += size;
    }
    return true;
}

static bool copy_data(int from, int to, off_t size) {
    off_t data = 0;
    while (data < size && (data = lseek(from, data, SEEK_DATA)) >= 0) {
        off_t hole = lseek(from, data, SEEK_HOLE);
        if (hole < 0 || !copy_bytes(from, to, data, hole < size ? hole : size))
            return false;
        data = hole;
    }
    return (data >= 0 || errno == ENXIO) && ftruncate(to, size) == 0;
}

static bool copy_contents(struct copier *copier, int from, int to, const struct stat *found) {
    if (found->st_size == 0)
        return true;
    if (copier->shares && found->st_size >= BLOCK) {
        if (ioctl(to, CLONE_FILE, from) == 0)
            return true;
        copier->shares = false;
    }
    return found->st_blocks * 512 >= found->st_size ? copy_bytes(from, to, 0, found->st_size)
                                                    : copy_data(from, to, found->st_size);
}

static bool copy_file(struct copier *copier, struct pair in, const char *name, const struct stat *found) {
    AUTO_FD int from = openat(in.from, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    AUTO_FD int to = from < 0 ? -1 : openat(in.to, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    copier->bytes += (uint64_t)found->st_blocks * 512;
    return to >= 0 && copy_contents(copier, from, to, found) && furnish(copier, from, to, found);
}

/* A link, a device, a pipe or a socket. No file system gives them attributes of users. */
static bool copy_other(const struct copier *copier, struct pair in, const char *name, const struct stat *found) {
    char target[PATH_MAX + 1] = "";
    const struct timespec times[] = {found->st_atim, found->st_mtim};
    bool link = S_ISLNK(found->st_mode);
    bool made = link ? readlinkat(in.from, name, target, sizeof target - 1) > 0 && symlinkat(target, in.to, name) == 0
                     : mknodat(in.to, name, found->st_mode, found->st_rdev) == 0;
    return made && fchownat(in.to, name, found->st_uid - copier->base, found->st_gid - copier->base, AT_SYMLINK_NOFOLLOW) == 0 &&
           (link || fchmodat(in.to, name, found->st_mode & 07777, 0) == 0) &&
           utimensat(in.to, name, times, AT_SYMLINK_NOFOLLOW) == 0;
}

/* ---- names ---- */

static struct first **shelf_of(struct copier *copier, ino_t inode) {
    struct first **at = &copier->first[inode % SHELVES];
    while (*at && (*at)->inode != inode)
        at = &(*at)->next;
    return at;
}

/* It is our memory, and the sandbox's limit does not hold for that. */
static bool remember(struct copier *copier, struct first **first, ino_t inode, const char *name) {
    char *path = must_format("%s%s", copier->path, name);
    *first = must_alloc(sizeof **first);
    **first = (struct first){inode, path, NULL};
    copier->remembered += sizeof **first + strlen(path);
    return copier->remembered <= MOST_REMEMBERED || fail("limit", "the sandbox has too many files with several names; remove some");
}

static bool copy_name(struct copier *copier, struct pair in, const char *name, const struct stat *found) {
    struct first **first = found->st_nlink > 1 ? shelf_of(copier, found->st_ino) : NULL;
    if (first && *first && linkat(copier->root, (*first)->path, in.to, name, 0) == 0)
        return true;
    /* Copied for each of its names, one large file would fill any disk. */
    if (first && *first && errno == ENAMETOOLONG)
        return fail("limit", "the sandbox has a file with several names, and one has a path that is too long; remove it");
    if (!(S_ISREG(found->st_mode) ? copy_file(copier, in, name, found) : copy_other(copier, in, name, found)))
        return failed(copier, "copy", name);
    return !first || *first || remember(copier, first, found->st_ino, name);
}

static void forget_names(struct copier *copier) {
    for (size_t i = 0; i < SHELVES; i++)
        for (struct first *first = copier->first[i], *next; first; first = next) {
            next = first->next;
            free(first->path);
            free(first);
            copier->first[i] = next;
        }
    copier->remembered = 0;
}

/* ---- folders ---- */

static bool is_opaque(int folder) {
    char value;
    return (fgetxattr(folder, "trusted.overlay.opaque", &value, 1) == 1 || fgetxattr(folder, "user.overlay.opaque", &value, 1) == 1) &&
           value == 'y';
}

static bool copy_opaque(int from, int to) {
    return !is_opaque(from) || fsetxattr(to, "trusted.overlay.opaque", "y", 1, 0) == 0 ||
           fsetxattr(to, "user.overlay.opaque", "y", 1, 0) == 0;
}

static bool copy_entries(struct copier *copier, struct pair in);

/* Below `in`, of which the copier knows the path. */
static bool descend(struct copier *copier, struct pair in, const char *name) {
    size_t length = strlen(copier->path);
    if (in.depth > DEEPEST)
        return fail("limit", "the sandbox has folders that lie in each other more than %d deep; remove them", DEEPEST);
    snprintf(copier->path + length, sizeof copier->path - length, "%s/", name);
    bool copied = copy_entries(copier, in);
    copier->path[length] = '\0';
    return copied;
}

static bool copy_folder(struct copier *copier, struct pair in, const char *name) {
    struct stat found;
    bool made = mkdirat(in.to, name, 0700) == 0;
    AUTO_FD int from = openat(in.from, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    AUTO_FD int to = openat(in.to, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (from >= 0 && to < 0 && !made && (errno == ENOTDIR || errno == ELOOP))
        return true; /* what is newer is none */
    if ((from < 0 || to < 0) && errno == EMFILE)
        return fail("limit", "the sandbox has folders that lie in each other more than %zu deep, for which there are too few descriptors here; remove them", in.depth);
    if (from < 0 || to < 0 || fstat(made ? from : to, &found) != 0)
        return failed(copier, "copy the folder", name);
    if (!made && is_opaque(to))
        return true;
    if (!descend(copier, (struct pair){from, to, in.depth + 1}, name))
        return false;
    const struct timespec times[] = {found.st_atim, found.st_mtim};
    return (made ? furnish(copier, from, to, &found) : copy_opaque(from, to) && futimens(to, times) == 0) ||
           failed(copier, "copy the folder", name);
}

static bool copy_entry(struct copier *copier, struct pair in, const char *name) {
    struct stat found, newer;
    if (fstatat(in.from, name, &found, AT_SYMLINK_NOFOLLOW) != 0)
        return failed(copier, "look at", name);
    if (S_ISDIR(found.st_mode))
        return copy_folder(copier, in, name);
    return fstatat(in.to, name, &newer, AT_SYMLINK_NOFOLLOW) == 0 || copy_name(copier, in, name, &found);
}

static bool copy_entries(struct copier *copier, struct pair in) {
    DIR *listing = fdopendir(fcntl(in.from, F_DUPFD_CLOEXEC, 3));
    bool copied = true;
    if (!listing)
        return failed(copier, "read", "");
    for (struct dirent *entry; copied && (errno = 0, entry = readdir(listing));)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            copied = copy_entry(copier, in, entry->d_name);
    if (copied && errno != 0)
        copied = failed(copier, "read", "");
    closedir(listing);
    return copied;
}

/* ---- layers ---- */

static bool copy_layer(struct copier *copier, const char *layer, bool newest) {
    struct stat found;
    AUTO_FD int from = open(layer, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (from < 0 || fstat(from, &found) != 0)
        return fail(NULL, "cannot open the layer %s: %m", layer);
    bool copied = copy_entries(copier, (struct pair){from, copier->root, 0}) &&
                  (!newest || furnish(copier, from, copier->root, &found) || failed(copier, "copy", ""));
    forget_names(copier);
    return copied;
}

/* Each level of folders takes three. Where that is not allowed, the depth that is told is less. */
static void have_descriptors(void) {
    enum { WANTED = 3 * DEEPEST + 64 };
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= WANTED)
        return;
    struct rlimit raised = {WANTED, limit.rlim_max > WANTED ? limit.rlim_max : WANTED};
    if (setrlimit(RLIMIT_NOFILE, &raised) != 0)
        setrlimit(RLIMIT_NOFILE, &(struct rlimit){limit.rlim_max, limit.rlim_max});
}

bool copy_layers(const struct strings *layers, uint32_t base, const char *target, uint64_t *bytes) {
    have_descriptors();
    AUTO_FD int root = mkdir(target, 0755) == 0 ? open(target, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC) : -1;
    if (root < 0)
        return fail(NULL, "cannot make %s: %m", target);
    struct copier *copier = must_alloc(sizeof *copier);
    *copier = (struct copier){.root = root, .base = base, .shares = true};
    bool copied = true;
    for (size_t i = 0; copied && i < layers->count; i++)
        copied = copy_layer(copier, layers->item[i], i == 0);
    *bytes = copier->bytes;
    free(copier);
    if (!copied)
        trash_remove(target, false, NULL, NULL);
    return copied;
}
