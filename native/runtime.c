/* runsc as process 1; see runtime.h. */
#include "kernel.h"
#include "runtime.h"

#include "fail.h"
#include "mountfd.h"
#include "mounts.h"
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static bool show_file(const char *source, const char *name, uint64_t set) {
    AUTO_FD int tree = clone_tree(AT_FDCWD, source, set, -1, 0);
    AUTO_FD int target = open(name, O_RDONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    return (tree >= 0 && target >= 0 && attach(tree, target)) || fail(NULL, "cannot show %s to the runtime: %m", source);
}

static bool show_proc(const char *name) {
    AUTO_FD int proc = new_filesystem("proc", "proc", (const char *const[]){NULL}, INERT);
    AUTO_FD int target = open(name, O_PATH | O_DIRECTORY | O_CLOEXEC);
    return (proc >= 0 && target >= 0 && attach(proc, target)) || fail(NULL, "cannot mount a new proc: %m");
}

/* runsc of 2024 takes a network namespace for the machine's when it sees a file in there, which Linux 6.11 and newer show in all
 * (https://github.com/google/gvisor/issues/10704). */
static bool hide_core_settings(void) {
    AUTO_FD int empty = clone_tree(AT_FDCWD, "empty", INERT | ATTR_RDONLY, -1, 0);
    AUTO_FD int target = open("proc/sys/net/core", O_PATH | O_DIRECTORY | O_CLOEXEC);
    return (empty >= 0 && target >= 0 && attach(empty, target)) || fail(NULL, "cannot hide /proc/sys/net/core: %m");
}

/* From there runsc takes what /proc/meminfo in the sandbox tells. */
static bool show_limit(const struct plan *plan) {
    AUTO_FD int proc = open("proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
    AUTO_FD int shown = -1; /* runsc reads it once */
    return show_memory(plan, proc, &shown);
}

/* Two of /proc: whoever is in a user namespace may mount another only where one is in full view (mount_too_revealing() in the
 * kernel), and runsc's parts do. */
bool runtime_furnish(const struct plan *plan) {
    static const char *const folders[] = {"dev", "proc", "full-proc", "state", "tmp"};
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++)
        if (mkdir(folders[i], 0755) != 0)
            return fail(NULL, "tmpfs: %m");
    return show_file(plan->runtime, "runtime", PLAIN | ATTR_RDONLY) &&
           show_file("/dev/null", "dev/null", ATTR_NOSUID | ATTR_NOEXEC) && show_proc("full-proc") && show_proc("proc") &&
           hide_core_settings() && show_limit(plan) && write_file("config.json", plan->runtime_config);
}

void runtime_become(const struct plan *plan, const int output[2]) {
    char *environment[] = {"PATH=/", NULL};
    for (int i = 0; i < 2; i++)
        if (output[i] >= 0)
            dup2(output[i], 1 + i);
    for (int fd = RUNTIME_LINK; fd <= RUNTIME_LOG; fd++)
        fcntl(fd, F_SETFD, 0);
    execve("/runtime", plan->runtime_arg.item, environment);
    fail(NULL, "cannot start %s: %m", plan->runtime);
}

/* It writes JSON objects like {"msg":"why","level":"error",…}, the cause first. */
void runtime_explain(int log) {
    static const char key[] = "\"msg\":\"";
    char text[1024], told[1100];
    ssize_t size = pread(log, text, sizeof text - 1, 0);
    text[size > 0 ? size : 0] = '\0';
    char *message = strstr(text, key);
    if (!message)
        return;
    message += strlen(key);
    char *end = strstr(message, "\",\"");
    snprintf(told, sizeof told, "kernel runsc cannot start: %.*s", (int)(end ? end - message : 300), message);
    fail_as(told);
}
