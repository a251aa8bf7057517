/* A file that appears whole or not at all. The folder is opened once and everything happens relative to it, so that nobody can
 * exchange it in between. */
#include "place.h"
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MOST_LINKS = 40, TRIES = 8 };

static void name_temporary(char text[40]) {
    snprintf(text, 40, ".openmodal-%016llx", (unsigned long long)random_number());
}

static int look_at_replaced(struct placing *placing) {
    struct stat info;
    if (fstatat(placing->directory, placing->name, &info, AT_SYMLINK_NOFOLLOW) < 0)
        return errno == ENOENT ? 0 : errno;
    if (S_ISDIR(info.st_mode))
        return EISDIR;
    if (!S_ISREG(info.st_mode) && !S_ISLNK(info.st_mode))
        return EINVAL; /* a device or FIFO: neither written to nor replaced by a file */
    placing->replaces = S_ISREG(info.st_mode);
    placing->mode = info.st_mode & 07777;
    placing->uid = info.st_uid;
    placing->gid = info.st_gid;
    return 0;
}

static int open_temporary(struct placing *placing) {
    for (int i = 0; i < TRIES && placing->fd < 0; i++) {
        name_temporary(placing->temporary);
        placing->fd = openat(placing->directory, placing->temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (placing->fd < 0 && errno != EEXIST)
            return errno;
    }
    return placing->fd < 0 ? EEXIST : 0;
}

/* A file that appears under its name is its writer's. So who is not root writes into another's file, and into his own in a folder
 * where he may make none: then it is not exchanged at once. */
static int open_copy(struct placing *placing) {
    static const char *const folders[] = {"/tmp", "/var/tmp"};
    for (size_t i = 0; i < sizeof folders / sizeof *folders && placing->fd < 0; i++)
        placing->fd = open_nameless(folders[i]);
    return placing->fd < 0 ? errno : 0;
}

/* Renaming over a file asks only the folder; writing is to ask the file. */
static int open_for(struct placing *placing) {
    bool foreign = placing->replaces && geteuid() && placing->uid != geteuid();
    if (placing->replaces && faccessat(placing->directory, placing->name, W_OK, 0) < 0)
        return errno;
    int error = foreign ? EACCES : open_temporary(placing);
    if (error != EACCES || !placing->replaces)
        return error;
    *placing->temporary = 0;
    return open_copy(placing);
}

int place_begin(struct placing *placing, int directory, char *name) {
    *placing = (struct placing){.directory = directory, .fd = -1, .name = name};
    int error = look_at_replaced(placing);
    if (!error)
        error = open_for(placing);
    if (error)
        place_abort(placing);
    return error;
}

static void place_close(struct placing *placing) {
    close_fd(&placing->fd);
    close_fd(&placing->directory);
    free(placing->name);
    *placing = (struct placing){.directory = -1, .fd = -1};
}

void place_abort(struct placing *placing) {
    if (placing->fd >= 0 && *placing->temporary)
        unlinkat(placing->directory, placing->temporary, 0);
    place_close(placing);
}

/* A container engine binds files like /etc/hosts; such a mount cannot be renamed over, only written into. */
static int write_into(struct placing *placing, int from, uint32_t mode) {
    AUTO_FD int to = openat(placing->directory, placing->name, O_WRONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    off_t at = 0;
    ssize_t n = -1;
    if (from >= 0 && to >= 0 && (!mode || fchmod(to, mode & 07777) == 0) && ftruncate(to, 0) == 0)
        while ((n = sendfile(to, from, &at, 1 << 20)) > 0)
            continue;
    return n < 0 ? errno : 0;
}

static int write_into_bound(struct placing *placing) {
    AUTO_FD int from = openat(placing->directory, placing->temporary, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    return write_into(placing, from, 0);
}

static int rename_over(struct placing *placing) {
    if (renameat(placing->directory, placing->temporary, placing->directory, placing->name) == 0)
        return 0;
    int error = errno == EBUSY && placing->replaces ? write_into_bound(placing) : errno;
    unlinkat(placing->directory, placing->temporary, 0);
    return error;
}

int place_end(struct placing *placing, uint32_t mode, uint64_t mtime_ns) {
    struct timespec times[2] = {{.tv_nsec = UTIME_NOW}, {(time_t)(mtime_ns / 1000000000), (long)(mtime_ns % 1000000000)}};
    mode_t kept = placing->replaces ? placing->mode : 0644;
    if (!*placing->temporary) {
        int error = write_into(placing, placing->fd, mode);
        place_close(placing);
        return error;
    }
    /* The owner first: changing it clears the set-id bits. */
    if (placing->replaces && !mode && fchown(placing->fd, placing->uid, placing->gid) < 0)
        kept &= 0777;
    int error = fchmod(placing->fd, mode ? mode & 07777 : kept) < 0 ? errno : 0;
    if (mtime_ns)
        futimens(placing->fd, times);
    if (error) {
        place_abort(placing);
        return error;
    }
    error = rename_over(placing);
    place_close(placing);
    return error;
}

/* ---- folders ---- */

static char *joined(const char *path, const char *target) {
    const char *slash = strrchr(path, '/');
    if (*target == '/')
        return must_copy(target);
    return must_format("%.*s/%s", (int)(slash - path), path, target);
}

/* Follows the links that the path's last component is, by hand: the last of them may lead to where nothing is yet. */
int open_target_folder(const char *path, char **name) {
    char target[PATH_MAX];
    char *at = must_copy(path);
    ssize_t size;
    for (int i = 0; (size = readlink(at, target, sizeof target - 1)) >= 0; i++) {
        target[size] = 0;
        char *next = joined(at, target);
        free(at);
        at = next;
        if (i < MOST_LINKS)
            continue;
        free(at);
        errno = ELOOP;
        return -1;
    }
    char *slash = strrchr(at, '/');
    bool nameless = !slash[1] || strcmp(slash, "/.") == 0 || strcmp(slash, "/..") == 0;
    *name = must_copy(slash + 1);
    *slash = 0;
    int fd = nameless ? -1 : open(*at ? at : "/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    errno = nameless ? EISDIR : errno;
    if (fd < 0)
        free(*name);
    int why = errno;
    free(at);
    errno = why;
    return fd;
}

int make_folder(const char *path, mode_t mode) {
    if (mkdir(path, mode) < 0)
        return errno;
    return chmod(path, mode) < 0 ? errno : 0; /* the umask had taken something away */
}

int make_parents(const char *path) {
    struct stat info;
    char *copy = must_copy(path);
    int error = 0;
    for (char *at = strchr(copy + 1, '/'); at && !error; at = strchr(at + 1, '/')) {
        *at = 0;
        if (mkdir(copy, 0755) < 0 && errno != EEXIST && stat(copy, &info) < 0)
            error = errno; /* read-only folders that are there are fine */
        *at = '/';
    }
    free(copy);
    return error;
}
