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

static uint64_t read_memory(void) {
    char text[256] = "";
    AUTO_FD int fd = openat(agent.proc, "meminfo", O_RDONLY | O_CLOEXEC);
    const char *word = fd >= 0 && read(fd, text, sizeof text - 1) > 0 ? strstr(text, "MemTotal:") : NULL;
    return word ? strtoull(word + 9, NULL, 10) : UINT64_MAX;
}

void oom_open(void) {
    agent.oom = open_counter();
    agent.memory_kib = read_memory();
}
