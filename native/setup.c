/* The setup is `key=value` strings, each ended by one NUL byte, and an empty one at the end: so one that is cut off is known. */
#include "kernel.h"
#include "setup.h"

#include "cage.h"
#include "fail.h"
#include "net.h"
#include "util.h"
#include "verbs.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>

enum {
    LONGEST_SETUP = 1 << 20,
    PATIENCE_MS = 60000, /* who starts a container by hand tells it nothing */
};

static bool wrong(const char *what) {
    return fail("plan", "%s; this setup was not made by this version of openmodal", what);
}

/* A byte at a time at its end is no loss: it comes in one or two pieces. NULL: it was cut off. */
static char *read_to_empty(int fd, size_t *size) {
    char *bytes = must_alloc(LONGEST_SETUP);
    struct pollfd readable = {.fd = fd, .events = POLLIN};
    for (*size = 0; *size < LONGEST_SETUP && poll(&readable, 1, PATIENCE_MS) == 1;) {
        ssize_t n = read(fd, bytes + *size, LONGEST_SETUP - *size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return NULL;
        *size += (size_t)n;
        if (bytes[*size - 1] == '\0' && (*size == 1 || bytes[*size - 2] == '\0'))
            return bytes;
    }
    return NULL;
}

static void add_variable(struct setup *setup, size_t *count, char *variable) {
    setup->env = must_grow(setup->env, (*count + 2) * sizeof *setup->env);
    setup->env[(*count)++] = variable;
    setup->env[*count] = NULL;
}

static bool take(struct setup *setup, size_t *variables, char *entry) {
    char *value = strchr(entry, '=');
    if (!value)
        return wrong("an entry of it has no value");
    *value++ = '\0';
    if (strcmp(entry, "env") == 0) {
        add_variable(setup, variables, value);
        return true;
    }
    if (strcmp(entry, "deny") == 0)
        return wall_deny(&setup->wall, value) || wrong("deny: expected an IPv4 prefix, and 48 of them at most");
    if (strcmp(entry, "resolv") == 0) {
        wall_resolve(&setup->wall, value);
        return true;
    }
    if (strcmp(entry, "cage") == 0) {
        setup->caged = strcmp(value, "1") == 0;
        return true;
    }
    return wrong("it has an unknown key");
}

bool setup_read(struct setup *setup, int fd) {
    size_t size, variables = 0;
    char *bytes = read_to_empty(fd, &size);
    close(fd);
    if (!bytes)
        return fail("internal", "the setup was cut off: whoever started this container is gone");
    setup->env = must_alloc(sizeof *setup->env);
    setup->env[0] = NULL;
    for (char *entry = bytes, *next; *entry; entry = next) {
        next = entry + strlen(entry) + 1;
        if (!take(setup, &variables, entry))
            return false;
    }
    return true;
}

static bool raise_wall(struct wall wall, const char *resolv_conf, bool around) {
    char *servers = read_file(resolv_conf, LONGEST_SETUP, NULL);
    if (servers)
        wall_resolve(&wall, servers);
    free(servers);
    return wall_raise(&wall, around);
}

bool setup_lock(const struct setup *setup) {
    return (setup->wall.denials == 0 || raise_wall(setup->wall, "/etc/resolv.conf", false)) && (!setup->caged || cage_contain());
}

static bool enter(const char *network) {
    AUTO_FD int fd = open(network, O_RDONLY | O_CLOEXEC);
    return (fd >= 0 && setns(fd, CLONE_NEWNET) == 0) || fail(NULL, "cannot enter the sandbox's network %s: %m", network);
}

int verb_wall(int argc, char **argv) {
    struct setup setup = {0};
    if (argc != 3)
        fail("plan", "say wall NETWORK RESOLV_CONF");
    else if (setup_read(&setup, STDIN_FILENO) && enter(argv[1]) && raise_wall(setup.wall, argv[2], true))
        return 0;
    dprintf(STDERR_FILENO, "error %s\n", failure());
    return 1;
}

int verb_hangup(int argc, char **argv) {
    if (argc != 2)
        fail("plan", "say hangup NETWORK");
    else if (enter(argv[1])) {
        net_reset_connections();
        return 0;
    }
    dprintf(STDERR_FILENO, "error %s\n", failure());
    return 1;
}

/* What hangs there is shown no more: a file with the same content, in `folder`, hangs over it. It has no name there, so nobody can
 * exchange or remove it, and none lies about. */
static bool exchange(const char *path, const char *folder) {
    char copy[PATH_MAX];
    snprintf(copy, sizeof copy, "%s/.beside", folder);
    AUTO_FD int from = open(path, O_RDONLY | O_CLOEXEC);
    if (from < 0)
        return errno == ENOENT || fail(NULL, "cannot read the container's %s: %m", path);
    AUTO_FD int to = open(copy, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
    int problem = to < 0 ? errno : copy_all(from, to);
    bool done = problem == 0 && fchmod(to, 0644) == 0 && mount(copy, path, NULL, MS_BIND, NULL) == 0;
    if (!done) {
        errno = problem ? problem : errno;
        fail(NULL, "cannot keep the container's %s in %s: %m", path, folder);
    }
    if (to >= 0)
        unlink(copy);
    return done;
}

int verb_bound(int argc, char **argv) {
    uint64_t process;
    if (argc != 3 || !parse_u64(argv[1], &process)) {
        fail("plan", "say bound PROCESS FOLDER");
    } else {
        AUTO_FD int mounts = open_namespace((pid_t)process, "mnt");
        if (mounts < 0 || setns(mounts, CLONE_NEWNS) != 0)
            fail(NULL, "cannot enter the container's mounts: %m");
        else if (exchange("/etc/hosts", argv[2]) && exchange("/etc/hostname", argv[2]) && exchange("/etc/resolv.conf", argv[2]))
            return 0;
    }
    dprintf(STDERR_FILENO, "error %s\n", failure());
    return 1;
}
