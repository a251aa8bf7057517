/* /proc/meminfo of a sandbox: its limit as the machine's memory, and what is left of it. Programs size themselves by it. */
#pragma once

#include "agent.h"

enum { MEMINFO_SIZE = 1024 };

/* Bytes: the limit, what is used of it, and what of that are files, which can be dropped in part. The text has always the same length. */
struct memory {
    uint64_t total, used, files, droppable, shared;
};
void meminfo_print(const struct memory *memory, char text[MEMINFO_SIZE]);

/* Write it anew, from the files of the sandbox's control group, if that is due. When it is due again (now_ms()). */
uint64_t meminfo_refresh(const struct agent_config *config, uint64_t now);
