/* The kernel's count of kills for memory, and how much memory there is: what tells a command that died of the limit. */
#include "state.h"
#include "util.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int open_counter(void) {
    if (agent.config->oom_fd >= 0)
        return agent.config->oom_fd;
    int fd = open("/sys/fs/cgroup/memory.events", O_RDONLY | O_CLOEXEC);
    return fd >= 0 ? fd : open("/sys/fs/cgroup/memory/memory.oom_control", O_RDONLY | O_CLOEXEC);
}

uint64_t oom_kills(void) {
    char text[1024];
    const char *word = agent.config->oom_word ? agent.config->oom_word : "oom_kill";
    ssize_t size = agent.oom < 0 ? -1 : pread(agent.oom, text, sizeof text - 1, 0);
    if (size <= 0)
        return 0;
    text[size] = 0;
    size_t length = strlen(word);
    for (const char *line = text; line; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, word, length) == 0 && line[length] == ' ')
            return strtoull(line + length, NULL, 10);
    }
    return 0;
}

/* A number in a file, behind a word or at its beginning; the largest where there is none ("max"). */
static uint64_t read_number_in(int folder, const char *path, const char *word) {
    char text[256] = "";
    AUTO_FD int fd = openat(folder, path, O_RDONLY | O_CLOEXEC);
    const char *at = fd >= 0 && read(fd, text, sizeof text - 1) > 0 ? strstr(text, word) : NULL;
    at += at ? strlen(word) + strspn(at + strlen(word), " ") : 0;
    return at && *at >= '0' && *at <= '9' ? strtoull(at, NULL, 10) : UINT64_MAX;
}

/* In a pod, and in a container of another machine, /proc/meminfo is the machine's; there the control group knows the limit. */
static uint64_t read_memory(void) {
    uint64_t told = read_number_in(agent.proc, "meminfo", "MemTotal:");
    uint64_t second = read_number_in(AT_FDCWD, "/sys/fs/cgroup/memory.max", "");
    uint64_t first = read_number_in(AT_FDCWD, "/sys/fs/cgroup/memory/memory.limit_in_bytes", "");
    uint64_t limit = (second < first ? second : first) / 1024;
    return limit < told ? limit : told;
}

void oom_open(void) {
    agent.oom = open_counter();
    agent.memory_kib = read_memory();
}
