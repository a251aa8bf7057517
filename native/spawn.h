/* The monitor: the process between the agent and one command. It is the command's parent and the adoptive parent of every
 * descendant that loses its own, which is how a whole tree is known and killed. It ends with its last descendant. */
#pragma once

#include "command.h"

enum report_kind { REPORT_STARTED = 1, REPORT_EXITED = 2, REPORT_FAILED = 3 };

/* What a monitor tells; small enough that a pipe takes it whole. */
struct report {
    uint32_t kind;
    int32_t pid;
    int32_t status;     /* of wait4() */
    uint32_t code;      /* REPORT_FAILED: the ERROR's code */
    uint64_t at_us, cpu_us, rss_kib;
    char sentence[240]; /* REPORT_FAILED */
};

/* Forks one. `ends` become the command's descriptors 0, 1, 2; they stay open here. Returns its pid, -1 with errno. */
pid_t spawn_monitor(const struct start_request *start, const int ends[3], int report);

/* A new array: `over` laid over `base`, and room for so many more. The strings are shared. */
char **env_over(char **base, char **over, size_t room);
