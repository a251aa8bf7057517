/* The gate: a sandbox with an allow list has no interface but lo, and its connections come to a helper of the supervisor, which makes
 * those that are allowed in its stead.
 *
 *   sandbox: connect(any address) ──lo, DNAT──> 127.0.0.53:53 :gate (SDK's _gate package): judges, resolves, connects ──> internet
 *
 * The two sockets are made in the sandbox's network namespace; the gate itself lives in the router's, or with a plain user in the
 * machine's. It is in the sandbox's groups, and becomes nobody of its ids before it reads anything from inside. While there is no gate,
 * nothing leaves the sandbox. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "helper.h"
#include "plan.h"

enum { SOCKETS = 2 };

struct gate {
    int userns;    /* the sandbox's user namespace */
    uint32_t base; /* first of the sandbox's ids, as the gate sees them */
    int sockets[SOCKETS];
    unsigned ends; /* how often it has ended */
};

/* Make the sandbox's side in its network namespace `network`, start the gate, and wait until it serves. False: see fail.h; a gate that
 * runs is in `helper`. */
bool gate_start(const struct plan *plan, int network, struct gate *gate, struct helper *helper);

/* Read the policy again, and end all connections that there are. Connections that come meanwhile
 * wait. False: see fail.h; nothing leaves the sandbox then. */
bool gate_restart(const struct plan *plan, struct gate *gate, struct helper *helper);

/* It has ended with this status (waitpid(2)) although nobody wanted that: start another, but not for ever, because who makes it end may be
 * trying something. What connects meanwhile waits in the sockets; after the last time they are closed. Either is told in the log. */
void gate_again(const struct plan *plan, struct gate *gate, struct helper *helper, int status);
