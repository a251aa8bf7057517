/* Helpers of a supervisor: processes that serve one sandbox from outside. This one is pasta or slirp4netns, which gives a plain user's
 * sandbox its only interface, and carries its packets with sockets of the user's; the other kind is the gate (gate.h). */
#pragma once

#include <stdbool.h>
#include <sys/types.h>

#include "plan.h"

struct helper {
    pid_t pid;    /* 0: none runs */
    int lifeline; /* it ends when this is closed: a supervisor may be killed */
    int said;     /* what it says is not read any more, but who writes to a closed pipe is killed; with `keeps` only */
    bool keeps;   /* it has another process to end first, so it is not to be killed */
};

/* Start the plan's helpers, one after the other, until one has given the process `init` a route; `userns` owns init's network namespace.
 * What runs is in `helper`, also after a failure. False: see fail.h; a network that the plan may lack is no failure. */
bool helper_start(const struct plan *plan, pid_t init, int userns, struct helper *helper);

/* End it and wait for that. */
void helper_end(struct helper *helper);
