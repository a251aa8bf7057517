/* A project is a number. Ours is made of the upper folder's inode, so nobody has to keep a list: no other folder has it as long as the
 * folder is there. Files that outlive it keep the number (a layer may have links to them): what is charged already does not count. */
#include "kernel.h"
#include "quota.h"

#include "util.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#define GET_ATTRIBUTES _IOR('X', 31, struct file_attributes) /* FS_IOC_FSGETXATTR of linux/fs.h */
#define SET_ATTRIBUTES _IOW('X', 32, struct file_attributes)
#define OURS 0x40000000u /* administrators and container engines count from 1 */

enum {
    FOR_PROJECTS = 2,
    GET_STATE = ('X' << 8) + 8, /* Q_XGETQSTATV of linux/dqblk_xfs.h; ext4 answers it, too */
    IS_ENFORCED = 1 << 5,
    GET_LIMIT = 0x800007,
    SET_LIMIT = 0x800008,
    LIMITS = 1 | 4, /* of bytes, and of files */
    INHERIT = 0x200,
    BYTES_PER_FILE = 8192,
    MOST_FILES = 1000000,
};

struct file_attributes {
    uint32_t flags, extent_size, extents, project, cow_extent_size;
    uint8_t unused[8];
};

struct limit { /* struct if_dqblk of linux/quota.h; blocks are of 1 KiB */
    uint64_t most_blocks, soft_blocks, bytes, most_files, soft_files, files, block_time, file_time;
    uint32_t valid;
};

struct state { /* the head of struct fs_quota_statv */
    int8_t version;
    uint8_t unused;
    uint16_t flags;
    uint64_t rest[31];
};

static bool ask(int folder, unsigned command, uint32_t project, void *data) {
    return syscall(NR_QUOTACTL_FD, folder, command << 8 | FOR_PROJECTS, project, data) == 0;
}

static bool is_enforced(int folder) {
    struct state state = {.version = 1};
    return ask(folder, GET_STATE, 0, &state) && state.flags & IS_ENFORCED;
}

static uint32_t project_of(int folder) {
    struct stat found;
    return fstat(folder, &found) == 0 ? OURS | ((uint32_t)(found.st_ino ^ found.st_ino >> 30) & (OURS - 1)) : 0;
}

static bool is_in(int folder, uint32_t project, struct file_attributes *attributes) {
    return project && ioctl(folder, GET_ATTRIBUTES, attributes) == 0 && attributes->project == project && attributes->flags & INHERIT;
}

static bool join(const char *path, uint32_t project) {
    struct file_attributes attributes = {0};
    AUTO_FD int folder = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (folder < 0 || is_in(folder, project, &attributes))
        return folder >= 0;
    attributes.flags |= INHERIT;
    attributes.project = project;
    return project && ioctl(folder, SET_ATTRIBUTES, &attributes) == 0;
}

static void allow(int folder, uint32_t project, uint64_t most) {
    struct limit limit = {0};
    uint64_t files = most / BYTES_PER_FILE < MOST_FILES ? most / BYTES_PER_FILE : MOST_FILES;
    if (most > 0)
        ask(folder, GET_LIMIT, project, &limit);
    limit.most_blocks = most > 0 ? (limit.bytes + most) / 1024 : 0;
    limit.most_files = most > 0 ? limit.files + files : 0;
    limit.soft_blocks = limit.soft_files = 0;
    limit.valid = LIMITS;
    ask(folder, SET_LIMIT, project, &limit);
}

void quota_set(const char *upper, const char *work, uint64_t most) {
    AUTO_FD int folder = open(upper, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (folder < 0 || !is_enforced(folder))
        return;
    uint32_t project = project_of(folder);
    if (join(upper, project) && join(work, project))
        allow(folder, project, most);
}

void quota_join(const char *path, const char *upper) {
    struct file_attributes attributes = {0};
    AUTO_FD int folder = open(upper, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    uint32_t project = project_of(folder);
    if (is_in(folder, project, &attributes))
        join(path, project);
}

void quota_clear(const char *upper) {
    struct file_attributes attributes = {0};
    AUTO_FD int folder = open(upper, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    uint32_t project = project_of(folder);
    if (is_in(folder, project, &attributes))
        allow(folder, project, 0);
}
