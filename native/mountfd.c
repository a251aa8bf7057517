/* The kernel's verbs for mounts that nobody sees before they are attached; see mountfd.h. */
#include "kernel.h"
#include "mountfd.h"

#include "util.h"

#include <errno.h>
#include <fcntl.h>

int open_in(int root, const char *path, uint64_t flags, uint64_t resolve) {
    struct how how = {.flags = flags | O_CLOEXEC, .resolve = IN_ROOT | NO_MAGICLINKS | resolve};
    return (int)syscall(NR_OPENAT2, root, path, &how, sizeof how);
}

bool set_attributes(int mount, uint64_t set, int userns) {
    struct attributes attributes = {.set = set};
    if (userns >= 0) {
        attributes.set |= ATTR_IDMAP;
        attributes.userns_fd = (uint64_t)userns;
    }
    return syscall(NR_MOUNT_SETATTR, mount, "", EMPTY_PATH, &attributes, sizeof attributes) == 0;
}

bool attach(int mount, int target) {
    return syscall(NR_MOVE_MOUNT, mount, "", target, "", MOVE_FROM_EMPTY | MOVE_TO_EMPTY) == 0;
}

int clone_tree(int folder, const char *path, uint64_t set, int userns, unsigned how) {
    int tree = (int)syscall(NR_OPEN_TREE, folder, path, TREE_CLONE | TREE_CLOEXEC | how);
    if (tree >= 0 && !set_attributes(tree, set, userns)) {
        int error = errno;
        close(tree);
        errno = error;
        return -1;
    }
    return tree;
}

int clone_whole(int mount) {
    return (int)syscall(NR_OPEN_TREE, mount, "", TREE_CLONE | TREE_CLOEXEC | TREE_RECURSIVE | EMPTY_PATH);
}

int new_filesystem(const char *type, const char *source, const char *const *options, unsigned set) {
    AUTO_FD int context = (int)syscall(NR_FSOPEN, type, CLOEXEC_FS);
    if (context < 0 || syscall(NR_FSCONFIG, context, SET_STRING, "source", source, 0) != 0) /* /proc/mounts shows it, too */
        return -1;
    for (; *options; options += 2)
        if (syscall(NR_FSCONFIG, context, options[1] ? SET_STRING : SET_FLAG, options[0], options[1], 0) != 0)
            return -1;
    if (syscall(NR_FSCONFIG, context, CREATE_FS, NULL, NULL, 0) != 0)
        return -1;
    return (int)syscall(NR_FSMOUNT, context, CLOEXEC_FS, set);
}
