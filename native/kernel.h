/* Kernel interfaces that C libraries and their headers do not have everywhere: musl brings none of linux/, Debian 12's are
 * of 6.1. Names are those of the kernel where they cannot clash, values are its stable ABI. Include first. */
#pragma once

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Numbers from 424 on are the same on every CPU. */
enum {
    NR_PIDFD_SEND_SIGNAL = 424,
    NR_PIDFD_OPEN = 434,
    NR_OPEN_TREE = 428,
    NR_MOVE_MOUNT = 429,
    NR_FSOPEN = 430,
    NR_FSCONFIG = 431,
    NR_FSMOUNT = 432,
    NR_CLONE3 = 435,
    NR_CLOSE_RANGE = 436,
    NR_OPENAT2 = 437,
    NR_MOUNT_SETATTR = 442,
    NR_QUOTACTL_FD = 443,
};

/* openat2 */
struct how {
    uint64_t flags, mode, resolve;
};
enum { NO_MAGICLINKS = 0x02, NO_SYMLINKS = 0x04, IN_ROOT = 0x10 };

/* open_tree, mount_setattr, move_mount, fsconfig, fsmount */
struct attributes {
    uint64_t set, clear, propagation, userns_fd;
};
enum {
    TREE_CLONE = 1,
    TREE_CLOEXEC = 02000000,
    TREE_RECURSIVE = 0x8000,
    EMPTY_PATH = 0x1000,
    MOVE_FROM_EMPTY = 0x04,
    MOVE_TO_EMPTY = 0x40,
    SET_FLAG = 0,
    SET_STRING = 1,
    CREATE_FS = 6,
    CLOEXEC_FS = 1,
    ATTR_RDONLY = 0x01,
    ATTR_NOSUID = 0x02,
    ATTR_NODEV = 0x04,
    ATTR_NOEXEC = 0x08,
    ATTR_IDMAP = 0x00100000,
};

/* renameat2 */
enum { NOREPLACE = 1 };

/* clone3 */
struct clone_request {
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup;
};
#ifndef CLONE_PIDFD
#define CLONE_PIDFD 0x1000
#endif
#define BORN_IN_CGROUP 0x200000000ULL /* CLONE_INTO_CGROUP */
#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x80
#endif
#ifndef CLONE_NEWCGROUP
#define CLONE_NEWCGROUP 0x02000000
#endif
