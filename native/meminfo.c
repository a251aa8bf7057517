/* See meminfo.h. The file lies in a tmpfs, and readers see it while it is written: so no number ever changes its place. */
#include "meminfo.h"
#include "util.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PERIOD_MS = 1000, COARSE = 256 };

void meminfo_print(const struct memory *memory, char text[MEMINFO_SIZE]) {
    uint64_t left = memory->used < memory->total ? memory->total - memory->used : 0;
    uint64_t available = left + memory->droppable < memory->total ? left + memory->droppable : memory->total;
    const struct {
        const char *name;
        uint64_t bytes;
    } lines[] = {
        {"MemTotal", memory->total},
        {"MemFree", left},
        {"MemAvailable", available},
        {"Buffers", 0},
        {"Cached", memory->files},
        {"SwapCached", 0},
        {"Active", memory->used > memory->droppable ? memory->used - memory->droppable : 0},
        {"Inactive", memory->droppable},
        {"SwapTotal", 0},
        {"SwapFree", 0},
        {"Dirty", 0},
        {"Writeback", 0},
        {"AnonPages", memory->used > memory->files ? memory->used - memory->files : 0},
        {"Mapped", 0},
        {"Shmem", memory->shared},
        {"Slab", 0},
        {"SReclaimable", 0},
        {"SUnreclaim", 0},
    };
    int used = 0;
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++)
        used += snprintf(text + used, MEMINFO_SIZE - (size_t)used, "%s:%*llu kB\n", lines[i].name,
                         23 - (int)strlen(lines[i].name), (unsigned long long)(lines[i].bytes / 1024));
}

static bool read_number(const char *path, uint64_t *number) {
    char *text = read_file(path, 64, NULL);
    if (!text)
        return false;
    *number = strtoull(text, NULL, 10);
    free(text);
    return true;
}

static uint64_t word(const char *text, const char *name) {
    size_t length = strlen(name);
    for (const char *line = text; line; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, name, length) == 0 && line[length] == ' ')
            return strtoull(line + length, NULL, 10);
    }
    return 0;
}

/* Counting takes the kernel long, so only what has changed is counted. */
static void read_details(struct memory *memory, bool version_2) {
    char *text = read_file(version_2 ? "/sys/fs/cgroup/memory.stat" : "/sys/fs/cgroup/memory/memory.stat", 1 << 16, NULL);
    memory->files = word(text, version_2 ? "file" : "total_cache");
    memory->droppable = word(text, version_2 ? "inactive_file" : "total_inactive_file");
    memory->shared = word(text, version_2 ? "shmem" : "total_shmem");
    free(text);
}

uint64_t meminfo_refresh(const struct agent_config *config, uint64_t now) {
    static uint64_t due;
    static struct memory told;
    struct memory memory = {.total = config->memory};
    if (config->meminfo_fd < 0 || now < due)
        return config->meminfo_fd < 0 ? UINT64_MAX : due;
    due = now + PERIOD_MS;
    bool version_2 = read_number("/sys/fs/cgroup/memory.current", &memory.used);
    if (!version_2 && !read_number("/sys/fs/cgroup/memory/memory.usage_in_bytes", &memory.used))
        return due;
    uint64_t change = memory.used > told.used ? memory.used - told.used : told.used - memory.used;
    if (change < memory.total / COARSE)
        return due;
    char text[MEMINFO_SIZE];
    read_details(&memory, version_2);
    meminfo_print(&memory, text);
    if (pwrite(config->meminfo_fd, text, strlen(text), 0) > 0)
        told = memory;
    return due;
}
