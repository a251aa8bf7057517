/* One descriptor per level would run out of them on a deep tree: instead, folders deeper than a few levels are first moved up
 * next to the root of the tree. So the depth of what we hold is bounded, whatever the sandbox has built. */
#include "kernel.h"
#include "trash.h"

#include "util.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

enum { DEEPEST = 32 };

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

static bool remove_folder(struct removal *removal, int parent, const char *name, int depth) {
    if (unlinkat(parent, name, AT_REMOVEDIR) == 0 || errno == ENOENT)
        return true;
    char moved[32];
    snprintf(moved, sizeof moved, ".openmodal-%u", removal->moved);
    if (depth >= DEEPEST && renameat(parent, name, removal->root, moved) == 0) {
        removal->moved++;
        return true; /* the root is read again until it is empty */
    }
    AUTO_FD int folder = open_folder(parent, name);
    struct stat found;
    if (folder < 0 || fstat(folder, &found) != 0 || found.st_dev != removal->device ||
        !empty_folder(removal, folder, depth + 1))
        return false;
    return unlinkat(parent, name, AT_REMOVEDIR) == 0;
}

static bool remove_entry(struct removal *removal, int folder, const struct dirent *entry, int depth) {
    if (removal->tick != NULL)
        removal->tick(removal->context);
    if (entry->d_type != DT_DIR && unlinkat(folder, entry->d_name, 0) == 0)
        return true;
    return remove_folder(removal, folder, entry->d_name, depth);
}

/* Again, while there is anything: entries may be skipped by a folder that shrinks while it is read. */
static bool empty_folder(struct removal *removal, int folder, int depth) {
    DIR *listing = fdopendir(fcntl(folder, F_DUPFD_CLOEXEC, 3));
    bool removed = listing != NULL, any = true;
    while (removed && any) {
        any = false;
        rewinddir(listing);
        for (struct dirent *entry; removed && (entry = readdir(listing)) != NULL;)
            if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) {
                any = true;
                removed = remove_entry(removal, folder, entry, depth);
            }
    }
    if (listing != NULL)
        closedir(listing);
    return removed;
}

bool trash_remove(const char *path, bool keep, void (*tick)(void *), void *context) {
    if (!keep && (rmdir(path) == 0 || errno == ENOENT))
        return true;
    AUTO_FD int root = open_folder(AT_FDCWD, path);
    struct stat found;
    if (root < 0 || fstat(root, &found) != 0)
        return errno == ENOENT;
    struct removal removal = {.root = root, .device = found.st_dev, .tick = tick, .context = context};
    return empty_folder(&removal, root, 0) && (keep || rmdir(path) == 0);
}
