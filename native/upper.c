/* File systems take longest for making and removing folders, so those that a sandbox begins with are
 * used again. What the sandbox has put into them goes. No sandbox reaches its work folder; but the
 * upper folder is its "/", and root in it may have given that an owner, a mode, attributes, access
 * lists and flags, which the next sandbox must not begin with. */
#include "kernel.h"
#include "upper.h"

#include "fail.h"
#include "folders.h"
#include "quota.h"
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
#include <sys/stat.h>
#include <sys/xattr.h>

#define GET_FLAGS _IOR('f', 1, long) /* FS_IOC_GETFLAGS of linux/fs.h */

enum { MODE = 0755, MOST_ATTRIBUTES = 1 << 16 };

static char *folder_of(const struct plan *plan) {
    return must_format("%.*s", (int)(strrchr(plan->upper, '/') - plan->upper), plan->upper);
}

int upper_hold(const struct plan *plan) {
    char *folder = folder_of(plan);
    int fd = folder_hold(folder);
    free(folder);
    return fd;
}

static bool drop_attributes(int folder) {
    static char names[MOST_ATTRIBUTES];
    ssize_t size = flistxattr(folder, names, sizeof names);
    for (char *name = names; size > 0 && name < names + size; name += strlen(name) + 1)
        if (fremovexattr(folder, name) != 0)
            return false;
    return size >= 0 || errno == ENOTSUP;
}

/* A folder whose flags differ is made again: root of the sandbox has set some, or the folder was large
 * and has an index. */
static bool has_flags_of(int folder, int untouched) {
    int flags = 0, wanted = 0;
    return ioctl(folder, GET_FLAGS, &flags) == ioctl(untouched, GET_FLAGS, &wanted) && flags == wanted;
}

static bool reset(const char *upper, const char *work) {
    AUTO_FD int folder = open(upper, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    AUTO_FD int untouched = open(work, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return folder >= 0 && untouched >= 0 && drop_attributes(folder) && has_flags_of(folder, untouched) &&
           fchown(folder, 0, 0) == 0 && fchmod(folder, MODE) == 0;
}

static bool make_again(const char *upper) {
    return rmdir(upper) == 0 && mkdir(upper, MODE) == 0 && chmod(upper, MODE) == 0;
}

/* A checkpoint, reset or mount that failed in the middle may have left another folder, or moved one of these away. */
static bool has_just_both(const char *folder) {
    DIR *listing = opendir(folder);
    unsigned both = 0, all = 0;
    for (struct dirent *entry; listing && (entry = readdir(listing));)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) {
            both += strcmp(entry->d_name, "upper") == 0 || strcmp(entry->d_name, "work") == 0;
            all++;
        }
    if (listing)
        closedir(listing);
    return both == 2 && all == 2;
}

static bool is_as_new(const struct plan *plan, const char *folder, void (*tick)(void *), void *context) {
    return has_just_both(folder) && trash_remove(plan->work, true, tick, context) && trash_remove(plan->upper, true, tick, context) &&
           (reset(plan->upper, plan->work) || make_again(plan->upper));
}

/* By the lowest name that is free. False: there are enough, or the file system has no such rename. */
static bool offer(const char *folder) {
    bool offered = false;
    errno = EEXIST;
    for (int i = 0; i < MOST_UNUSED && !offered && errno == EEXIST; i++) {
        char *name = must_format("%.*s/.%d", (int)(strrchr(folder, '/') - folder), folder, i);
        offered = syscall(SYS_renameat2, AT_FDCWD, folder, AT_FDCWD, name, NOREPLACE) == 0;
        free(name);
    }
    return offered;
}

void upper_give_back(const struct plan *plan, void (*tick)(void *), void *context) {
    char *folder = folder_of(plan);
    if (plan->disk)
        unlink(plan->disk);
    quota_clear(plan->upper);
    if (!is_as_new(plan, folder, tick, context) || !offer(folder))
        trash_remove(folder, false, tick, context);
    free(folder);
}
