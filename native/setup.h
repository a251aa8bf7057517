/* What init is told over a descriptor before anything runs: what must not stand in the container's configuration, where others can
 * read it, and what it locks itself in with. See docs/protocol.md, section 4. */
#pragma once

#include "wall.h"

#include <stdbool.h>

struct setup {
    char **env; /* NULL-terminated */
    struct wall wall;
    bool caged; /* give up capabilities and system calls as in a box */
};

/* Read it to its end and close the descriptor. False: see fail.h. */
bool setup_read(struct setup *setup, int fd);

/* Carry it out, for good. */
bool setup_lock(const struct setup *setup);
