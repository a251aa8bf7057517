/* A sandbox in a network that it shares with others: a line in the file that all of them see as /etc/hosts. */
#pragma once

#include "plan.h"

#include <stdbool.h>
#include <stdint.h>

struct member {
    int file; /* -1: it is in none */
    unsigned line;
};

/* Put `names` and the host name of the plan, with that address, into the file `network` of the plan; once, however often it is called.
 * False: see fail.h. */
bool member_join(struct member *member, const struct plan *plan, uint32_t address);

/* Take them out again; who is the last removes the file. */
void member_leave(struct member *member, const struct plan *plan);
