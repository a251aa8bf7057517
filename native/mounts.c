/* Mounts, in the order of mounts_make() at the end.
 *
 * Rules: the image is hostile. Nothing in it is ever reached through a path that is looked up twice: a mount point is opened
 * once (openat2 without symbolic links, inside the root), and mounted on by that descriptor. A mount is made detached, gets its
 * flags, and is attached last. */
#include "kernel.h"
#include "mounts.h"

#include "disk.h"
#include "fail.h"
#include "folders.h"
#include "meminfo.h"
#include "mountfd.h"
#include "runtime.h"
#include "trash.h"
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysinfo.h>
#include <sys/sysmacros.h>

enum { MOST_LAYERS = 499 }; /* overlayfs takes one more */

#define ANOTHER_STORE "set OPENMODAL_HOME to a folder on ext4, xfs or btrfs"

struct maker {
    const struct plan *plan;
    int userns; /* what owners are shifted by, or -1 */
    uint32_t base;
    int disk; /* the mount of the sandbox's own disk, or -1 */
    int root;     /* the overlay's root */
    int *meminfo; /* the file behind /proc/meminfo, for who keeps it true */
    bool bare;    /* nothing of ours is mounted on its folders */
};

/* ---- mount points ---- */

/* A folder of the image to mount on, made if there is none. What is there and is no folder is the image's fault, or its malice. */
static int folder_in(int root, const char *name, mode_t mode) {
    int fd = open_in(root, name, O_PATH | O_DIRECTORY, NO_SYMLINKS);
    if (fd < 0 && errno == ENOENT && mkdirat(root, name, mode) == 0)
        fd = open_in(root, name, O_PATH | O_DIRECTORY, NO_SYMLINKS);
    if (fd >= 0)
        return fd;
    if (errno == ELOOP || errno == ENOTDIR)
        fail("image", "/%s in the image is not a folder but a link or a file; make it a folder", name);
    else
        fail(NULL, "cannot use /%s of the image: %m", name);
    return -1;
}

/* A file of the image to mount on, made if there is none; a link is removed (in the upper folder), for it would lead elsewhere. */
static int file_in(int folder, const char *name) {
    struct stat found;
    if (fstatat(folder, name, &found, AT_SYMLINK_NOFOLLOW) == 0 && S_ISLNK(found.st_mode))
        unlinkat(folder, name, 0);
    int fd = openat(folder, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT && mknodat(folder, name, S_IFREG | 0644, 0) == 0)
        fd = openat(folder, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        fail(NULL, "cannot make /etc/%s in the image: %m", name);
    else if (fstat(fd, &found) == 0 && S_ISREG(found.st_mode))
        return fd;
    else
        fail("image", "/etc/%s in the image is not a file", name);
    close_fd(&fd);
    return -1;
}

/* ---- the root ---- */

/* Our workbench: a small file system where all that is needed has a short name, and which holds the files that are shown in the
 * sandbox. It lies over the machine's /proc, where no plan points to, and goes away with the old root. Relative paths start in
 * it. */
static bool make_workbench(void) {
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0)
        return fail(NULL, "cannot make the mounts private: %m");
    AUTO_FD int bench = new_filesystem("tmpfs", "tmpfs", (const char *const[]){"mode", "755", "size", "16m", NULL}, PLAIN);
    AUTO_FD int over = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (bench < 0 || !attach(bench, over) || fchdir(bench) != 0)
        return fail(NULL, "cannot mount a tmpfs to work on: %m; Linux 5.19 or newer is needed");
    return (mkdir("root", 0755) == 0 && mkdir("empty", 0555) == 0 && mknod("blank", S_IFREG | 0444, 0) == 0) ||
           fail(NULL, "tmpfs: %m");
}

static bool show_tree(const struct maker *maker, const char *path, const char *name, uint64_t set) {
    AUTO_FD int tree = clone_tree(AT_FDCWD, path, set, maker->userns, 0);
    if (tree < 0 && errno == EINVAL && maker->userns >= 0)
        return fail("store", "the store's file system has no idmapped mounts; " ANOTHER_STORE);
    if (tree < 0 && errno == ENOSYS)
        return fail("kernel", "this kernel is too old to mount layers for a sandbox; use Linux 5.12 or newer, as root 5.19");
    if (tree < 0 && errno == EACCES) /* who looks is the sandbox's root, with rights that no other machine knows of */
        return fail("store", "the store's file system keeps a sandbox's root out of its folders, as NFS does; " ANOTHER_STORE);
    if (tree < 0)
        return fail(errno == ENOENT ? "image" : NULL, "cannot mount %s: %m", path);
    if (mkdir(name, 0755) != 0)
        return fail(NULL, "tmpfs: %m");
    AUTO_FD int target = open(name, O_PATH | O_DIRECTORY | O_CLOEXEC);
    return attach(tree, target) || fail(NULL, "cannot attach %s: %m", path);
}

int mounts_open_disk(const struct plan *plan, int userns) {
    char device[32];
    AUTO_FD int loop = disk_attach(plan->disk, device, sizeof device);
    if (loop < 0)
        return -1;
    int disk = new_filesystem("ext4", device, (const char *const[]){NULL}, PLAIN); /* holds the device from now on */
    if (disk >= 0 && set_attributes(disk, 0, userns))
        return disk;
    fail(NULL, "cannot mount the sandbox's disk: %m; disk= needs a kernel with ext4");
    close_fd(&disk);
    return -1;
}

static bool make_anew(const char *name) {
    char *path = must_format("u/%s", name);
    bool made = trash_remove(path, false, NULL, NULL) && mkdir(path, 0755) == 0;
    free(path);
    return made;
}

/* Upper and work are new on a disk of the sandbox's own. After a reset, those of before are there. */
static bool show_disk(int disk, const char *upper, const char *work) {
    if (mkdir("u", 0755) != 0)
        return fail(NULL, "tmpfs: %m");
    AUTO_FD int target = open("u", O_PATH | O_DIRECTORY | O_CLOEXEC);
    return (attach(disk, target) && make_anew(upper) && make_anew(work)) || fail(NULL, "cannot use the sandbox's disk: %m");
}

/* Folders and files that are mounted on, in memory, below all layers: where an image lacks some,
 * they are not made in the upper folder for each sandbox. */
static bool show_skeleton(const struct plan *plan) {
    static const char *const folders[] = {"s", "s/dev", "s/etc", "s/proc", "s/sys"};
    const char *const files[][2] = {
        {"s/etc/hostname", plan->hostname}, {"s/etc/hosts", plan->hosts}, {"s/etc/resolv.conf", plan->resolv}};
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++)
        if (mkdir(folders[i], 0755) != 0)
            return fail(NULL, "tmpfs: %m");
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        if (files[i][1] && mknod(files[i][0], S_IFREG | 0644, 0) != 0)
            return fail(NULL, "tmpfs: %m");
    return true;
}

static bool refused_overlay(void) {
    switch (errno) {
    case EINVAL: /* of all that it may mean, the file system is what a machine brings along; the kernel's log knows */
        return fail("store", "overlayfs refuses the store's file system; " ANOTHER_STORE);
    case EACCES:
        return fail("store", "overlayfs may not write to the store's file system, as on NFS; " ANOTHER_STORE);
    case ENODEV:
        return fail("overlay", "this kernel has no overlayfs; as root: modprobe overlay");
    case EPERM:
        return fail("overlay", "cannot mount the overlay: %m; a user may do that from Linux 5.12 on");
    default:
        return fail(NULL, "cannot mount the overlay: %m; `dmesg` tells more");
    }
}

/* Layers and the folder of upper and work get short names, so that any number of them fits into the one page of options. An
 * upper that does not outlive the sandbox is `volatile`: else each sandbox's end would wait until the whole disk is
 * synchronised. */
static bool make_root(struct maker *maker) {
    const struct plan *plan = maker->plan;
    char options[4096];
    int used = snprintf(options, sizeof options,
                        "index=off,xino=off,metacopy=off,redirect_dir=nofollow%s%s,lowerdir=", plan->keep ? "" : ",volatile",
                        maker->userns < 0 ? ",userxattr" : "");
    for (size_t i = 0; i < plan->lower.count; i++) {
        char name[24];
        snprintf(name, sizeof name, "%zu", i);
        if (!show_tree(maker, plan->lower.item[i], name, PLAIN | ATTR_RDONLY))
            return false;
        used += snprintf(options + used, sizeof options - (size_t)used, i > 0 ? ":%s" : "%s", name);
    }
    /* What is kept becomes a layer, and has its own. */
    if (!plan->keep && !maker->bare && plan->lower.count < MOST_LAYERS) {
        if (!show_skeleton(plan))
            return false;
        used += snprintf(options + used, sizeof options - (size_t)used, ":s");
    }
    const char *upper = strrchr(plan->upper, '/') + 1, *work = strrchr(plan->work, '/') + 1;
    char *parent = must_format("%.*s", (int)(upper - plan->upper), plan->upper);
    bool shown = maker->disk >= 0 ? show_disk(maker->disk, upper, work) : show_tree(maker, parent, "u", PLAIN);
    free(parent);
    if (!shown)
        return false;
    snprintf(options + used, sizeof options - (size_t)used, ",upperdir=u/%s,workdir=u/%s", upper, work);
    struct statvfs made;
    if (mount("overlay", "root", "overlay", MS_NOSUID | MS_NODEV, options) != 0)
        return refused_overlay();
    maker->root = open("root", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (maker->root < 0 || fstatvfs(maker->root, &made) != 0)
        return fail(NULL, "cannot open the overlay: %m");
    /* The kernel does not fail, it makes it read-only, when the upper file system cannot hold what overlay needs. */
    return made.f_flag & ST_RDONLY
               ? fail("store", "the store's file system cannot hold an overlay's upper folder; " ANOTHER_STORE)
               : true;
}

/* ---- /dev, /proc, /sys ---- */

static bool mount_new(int target, const char *type, const char *const *options, unsigned set) {
    AUTO_FD int mount = target < 0 ? -1 : new_filesystem(type, type, options, set);
    if (mount >= 0 && attach(mount, target))
        return true;
    return fail(NULL, "cannot mount a new %s: %m%s", type,
                errno == EPERM ? "; inside another container, give that one an unmasked /proc and /sys" : "");
}

static const struct device {
    const char *name;
    unsigned major, minor;
} devices[] = {{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}};

/* The host's root makes nodes; a user may not, and shows the machine's. */
static bool make_devices(const struct maker *maker, int dev) {
    for (size_t i = 0; i < sizeof devices / sizeof *devices; i++) {
        const struct device *device = &devices[i];
        mode_t type = maker->userns >= 0 ? S_IFCHR : S_IFREG;
        if (mknodat(dev, device->name, type | 0666, type == S_IFCHR ? makedev(device->major, device->minor) : 0) != 0)
            return fail(NULL, "cannot make /dev/%s: %m", device->name);
        if (type == S_IFCHR)
            continue;
        char path[32];
        snprintf(path, sizeof path, "/dev/%s", device->name);
        AUTO_FD int tree = clone_tree(AT_FDCWD, path, ATTR_NOSUID | ATTR_NOEXEC, -1, 0);
        AUTO_FD int target = openat(dev, device->name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
        if (tree < 0 || !attach(tree, target))
            return fail(NULL, "cannot show /dev/%s: %m", device->name);
    }
    return true;
}

static bool make_dev(const struct maker *maker) {
    static const char *const links[][2] = {{"pts/ptmx", "ptmx"},
                                           {"/proc/self/fd", "fd"},
                                           {"/proc/self/fd/0", "stdin"},
                                           {"/proc/self/fd/1", "stdout"},
                                           {"/proc/self/fd/2", "stderr"}};
    AUTO_FD int target = folder_in(maker->root, "dev", 0755);
    AUTO_FD int dev =
        new_filesystem("tmpfs", "tmpfs", (const char *const[]){"mode", "755", "size", "64k", NULL}, ATTR_NOSUID | ATTR_NOEXEC);
    if (target < 0 || dev < 0 || !attach(dev, target))
        return fail(NULL, "cannot mount /dev: %m");
    for (size_t i = 0; i < sizeof links / sizeof *links; i++)
        if (symlinkat(links[i][0], dev, links[i][1]) != 0)
            return fail(NULL, "cannot make /dev/%s: %m", links[i][1]);
    if (!make_devices(maker, dev))
        return false;
    char tty_group[16];
    snprintf(tty_group, sizeof tty_group, "%u", maker->base + 5);
    bool has_group = maker->plan->ids != IDS_SINGLE; /* where only one id exists, group 5 does not */
    AUTO_FD int pts = folder_in(dev, "pts", 0755), shm = folder_in(dev, "shm", 0755), mqueue = folder_in(dev, "mqueue", 0755);
    return mount_new(pts, "devpts",
                     (const char *const[]){"newinstance", NULL, "ptmxmode", "0666", "mode", "0620", "max", "64",
                                           has_group ? "gid" : NULL, tty_group, NULL},
                     ATTR_NOSUID | ATTR_NOEXEC) &&
           mount_new(shm, "tmpfs", (const char *const[]){"mode", "1777", "size", "64m", NULL}, INERT) &&
           mount_new(mqueue, "mqueue", (const char *const[]){NULL}, INERT);
}

/* ---- what is hidden, shown, fixed ---- */

/* Show what lies on the workbench as `name` at `target`. */
static bool cover(int target, const char *name, uint64_t set) {
    AUTO_FD int tree = clone_tree(AT_FDCWD, name, set, -1, 0);
    return tree >= 0 && attach(tree, target);
}

static bool hide(int folder, const char *path) {
    AUTO_FD int target = openat(folder, path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    struct stat found;
    if (target < 0)
        return errno == ENOENT || fail(NULL, "cannot hide %s: %m", path);
    bool hidden = fstat(target, &found) == 0 && cover(target, S_ISDIR(found.st_mode) ? "empty" : "blank", INERT | ATTR_RDONLY);
    return hidden || fail(NULL, "cannot hide %s: %m", path);
}

static bool hide_all(int folder, const char *const *paths) {
    for (; *paths; paths++)
        if (!hide(folder, *paths))
            return false;
    return true;
}

/* Docker's list and what else tells about the machine or drives it. */
/* clang-format off */
static const char *const hidden_in_proc[] = {
    "acpi", "asound", "bus", "config.gz", "fs", "interrupts", "irq", "kallsyms", "kcore", "keys", "kmsg", "kpagecgroup", "kpagecount",
    "kpageflags", "latency_stats", "mtrr", "sched_debug", "scsi", "sysrq-trigger", "timer_list", "timer_stats", NULL};
static const char *const hidden_in_sys[] = {
    "devices/virtual/powercap", "firmware", "fs/bpf", "fs/selinux", "kernel/debug", "kernel/security", "kernel/tracing",
    "kernel/vmcoreinfo", NULL};
/* clang-format on */

/* What tells of the machine's other work, and beyond the sandbox's own CPUs all of a CPU: psutil and hwloc count cores here. */
static bool hide_cpus(int sys, int shown) {
    char path[64];
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        snprintf(path, sizeof path, "devices/system/cpu/cpu%d", cpu);
        if (faccessat(sys, path, F_OK, 0) != 0)
            return true;
        if (shown == 0 || cpu < shown)
            strcat(path, "/thermal_throttle");
        if (!hide(sys, path))
            return false;
    }
    return true;
}

bool write_file(const char *name, const char *text) {
    AUTO_FD int fd = open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    return (fd >= 0 && write_all(fd, text, strlen(text))) || fail(NULL, "cannot write %s to a tmpfs: %m", name);
}

bool show_memory(const struct plan *plan, int proc, int *shown) {
    struct sysinfo machine;
    struct memory memory = {.total = plan->memory};
    char text[MEMINFO_SIZE];
    if (plan->memory == 0 || sysinfo(&machine) != 0 || plan->memory > (uint64_t)machine.totalram * machine.mem_unit)
        return true;
    meminfo_print(&memory, text);
    AUTO_FD int target = openat(proc, "meminfo", O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (!write_file("meminfo", text) || !cover(target, "meminfo", INERT | ATTR_RDONLY))
        return fail(NULL, "cannot show /proc/meminfo: %m");
    *shown = open("meminfo", O_WRONLY | O_CLOEXEC);
    return *shown >= 0 || fail(NULL, "cannot open what is shown as /proc/meminfo: %m");
}

/* As many processors as there are CPUs to run on: Node and others count them here. */
static bool show_cpuinfo(const struct plan *plan, int proc) {
    AUTO_FD int target = !plan->cpuinfo ? -1 : openat(proc, "cpuinfo", O_PATH | O_NOFOLLOW | O_CLOEXEC);
    return !plan->cpuinfo || (write_file("cpuinfo", plan->cpuinfo) && cover(target, "cpuinfo", INERT | ATTR_RDONLY)) ||
           fail(NULL, "cannot show /proc/cpuinfo: %m");
}

static bool show_group(int folder, const struct setting *group) {
    AUTO_FD int tree = clone_tree(AT_FDCWD, group->path, INERT | ATTR_RDONLY, -1, 0);
    AUTO_FD int target = openat(folder, group->value, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return (tree >= 0 && target >= 0 && attach(tree, target)) || fail(NULL, "cannot show the cgroup %s: %m", group->path);
}

/* The sandbox's own groups and nothing above them, where programs look for their limits. Of several hierarchies each has a folder in
 * a tmpfs, as on any machine. */
static bool show_groups(const struct maker *maker, int sys) {
    const struct plan *plan = maker->plan;
    if (plan->show_cgroup.count == 0)
        return hide(sys, "fs/cgroup");
    bool alone = strcmp(plan->show_cgroup.item[0].value, ".") == 0;
    if (!alone && mkdir("groups", 0755) != 0)
        return fail(NULL, "tmpfs: %m");
    for (size_t i = 0; !alone && i < plan->show_cgroup.count; i++) {
        char *name = must_format("groups/%s", plan->show_cgroup.item[i].value);
        bool made = mkdir(name, 0755) == 0;
        free(name);
        if (!made)
            return fail(NULL, "tmpfs: %m");
    }
    AUTO_FD int target = openat(sys, "fs/cgroup", O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (target < 0 || (!alone && !cover(target, "groups", INERT | ATTR_RDONLY)))
        return fail(NULL, "cannot show the cgroups: %m");
    AUTO_FD int folder = openat(sys, "fs/cgroup", O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    for (size_t i = 0; i < plan->show_cgroup.count; i++)
        if (!show_group(folder, &plan->show_cgroup.item[i]))
            return false;
    return true;
}

static bool show_cpus(const struct maker *maker, int sys) {
    static const char *const lists[] = {"online", "possible", "present"};
    int count = CPU_COUNT(&maker->plan->cpus);
    char text[32], path[64];
    snprintf(text, sizeof text, count > 1 ? "0-%d\n" : "0\n", count - 1);
    if (!hide_cpus(sys, count) || (count > 0 && !write_file("cpus", text)))
        return false;
    for (size_t i = 0; count > 0 && i < sizeof lists / sizeof *lists; i++) {
        snprintf(path, sizeof path, "devices/system/cpu/%s", lists[i]);
        AUTO_FD int target = openat(sys, path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
        if (target >= 0 && !cover(target, "cpus", INERT | ATTR_RDONLY))
            return fail(NULL, "cannot show the number of CPUs: %m");
    }
    return true;
}

/* procfs must come from inside the process namespace that it shows. Of Docker's read-only paths /proc/sys is left: the others
 * are hidden. */
static bool make_proc(const struct maker *maker) {
    AUTO_FD int target = folder_in(maker->root, "proc", 0555);
    if (target < 0 || !mount_new(target, "proc", (const char *const[]){NULL}, INERT))
        return false;
    AUTO_FD int proc = open_in(maker->root, "proc", O_PATH | O_DIRECTORY, NO_SYMLINKS);
    if (maker->plan->weaken & WEAKEN_MASKS)
        return true;
    AUTO_FD int settings = clone_tree(proc, "sys", INERT | ATTR_RDONLY, -1, 0);
    AUTO_FD int over = openat(proc, "sys", O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (settings < 0 || !attach(settings, over))
        return fail(NULL, "cannot make /proc/sys read-only: %m");
    return hide_all(proc, hidden_in_proc) && show_memory(maker->plan, proc, maker->meminfo) && show_cpuinfo(maker->plan, proc);
}

/* sysfs shows the network namespace of whoever mounts it. A user with the machine's network has no right to, and shows the
 * machine's. */
static bool make_sys(const struct maker *maker) {
    AUTO_FD int target = folder_in(maker->root, "sys", 0555);
    if (target < 0)
        return false;
    if (maker->userns < 0 && maker->plan->net == NET_HOST) {
        AUTO_FD int tree = (int)syscall(NR_OPEN_TREE, AT_FDCWD, "/sys", TREE_CLONE | TREE_CLOEXEC | TREE_RECURSIVE);
        struct attributes attributes = {.set = INERT | ATTR_RDONLY};
        if (tree < 0 || syscall(NR_MOUNT_SETATTR, tree, "", EMPTY_PATH | TREE_RECURSIVE, &attributes, sizeof attributes) != 0 ||
            !attach(tree, target))
            return fail(NULL, "cannot show /sys: %m");
    } else if (!mount_new(target, "sysfs", (const char *const[]){NULL}, INERT | ATTR_RDONLY)) {
        return false;
    }
    AUTO_FD int sys = open_in(maker->root, "sys", O_PATH | O_DIRECTORY, NO_SYMLINKS);
    if (maker->plan->weaken & WEAKEN_MASKS)
        return true;
    return show_groups(maker, sys) && hide_all(sys, hidden_in_sys) && show_cpus(maker, sys);
}

static bool make_etc(const struct maker *maker) {
    const struct plan *plan = maker->plan;
    const char *const files[][2] = {{"resolv.conf", plan->resolv}, {"hosts", plan->hosts}, {"hostname", plan->hostname}};
    AUTO_FD int etc = folder_in(maker->root, "etc", 0755);
    if (etc < 0)
        return false;
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        if (!files[i][1])
            continue;
        AUTO_FD int target = file_in(etc, files[i][0]);
        if (target < 0 || !write_file(files[i][0], files[i][1]))
            return false;
        bool shared = plan->network && strcmp(files[i][0], "hosts") == 0; /* with the other sandboxes of a network */
        if (!(shared ? cover(target, plan->network, INERT | ATTR_RDONLY) : cover(target, files[i][0], INERT)))
            return fail(NULL, "cannot show /etc/%s: %m", files[i][0]);
    }
    return true;
}

static bool make_tmp(const struct maker *maker) {
    if (mkdirat(maker->root, "tmp", 01777) != 0 && errno != EEXIST)
        return fail(NULL, "cannot make /tmp: %m");
    AUTO_FD int tmp = maker->plan->runtime ? open_in(maker->root, "tmp", O_PATH | O_DIRECTORY, NO_SYMLINKS) : -1;
    return tmp < 0 || mknodat(tmp, RUNTIME_IN_TMP, S_IFREG | 0600, 0) == 0 || errno == EEXIST ||
           fail(NULL, "cannot make a file in /tmp: %m");
}

/* ---- the way ---- */

/* pivot_root() leaves the old root mounted on top of the new one; "." is the new root, but unmounting "." takes away what is
 * uppermost there, with all that hangs on it. One unmount and not more: each waits for the kernel's readers. That nothing is
 * left is checked, for everything depends on it. */
static bool enter(const struct maker *maker) {
    struct stat root, above;
    if (fchdir(maker->root) != 0 || syscall(SYS_pivot_root, ".", ".") != 0)
        return fail(NULL, "cannot change to the new root: %m");
    if (umount2(".", MNT_DETACH) != 0)
        return fail(NULL, "cannot unmount the old root: %m");
    if (fstat(maker->root, &root) != 0 || chdir("/") != 0 || stat("/..", &above) != 0 || root.st_dev != above.st_dev ||
        root.st_ino != above.st_ino)
        return fail("internal", "the old root is still mounted");
    close(maker->root);
    return true;
}

/* A runtime's root is the workbench itself, with the sandbox's root in the folder `root`. */
static bool choose_workbench(struct maker *maker) {
    close(maker->root);
    maker->root = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
    return maker->root >= 0 || fail(NULL, "cannot open the workbench: %m");
}

bool mounts_make(const struct plan *plan, int userns, uint32_t base, int disk, const int *maps, int *meminfo,
                 bool (*before_sys)(void *), void *context) {
    struct maker maker = {plan, userns, base, disk, -1, meminfo, false};
    umask(0);
    if (!make_workbench() || !make_root(&maker) || !make_etc(&maker) || !make_tmp(&maker))
        return false;
    bool furnished = plan->runtime ? before_sys(context) && runtime_furnish(plan)
                                           : make_dev(&maker) && make_proc(&maker) && before_sys(context) && make_sys(&maker);
    if (!furnished)
        return false;
    return folders_mount(plan, maker.root, userns, maps) && (!plan->runtime || choose_workbench(&maker)) && enter(&maker);
}

int mounts_make_overlay(const struct plan *plan, int userns, uint32_t base, bool bare) {
    struct maker maker = {plan, userns, base, -1, -1, NULL, bare};
    return make_workbench() && make_root(&maker) ? maker.root : -1;
}
