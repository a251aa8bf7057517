/* The gate: a sandbox with an allow list has no interface but lo, and its connections come to a helper of the supervisor, which makes
 * those that are allowed in its stead.
 *
 *   sandbox: connect(any address) ──lo, DNAT──> 127.0.0.53:53 :gate (SDK's _gate package): judges, resolves, connects ──> internet
 *
 * The two sockets are made in the sandbox's network namespace; the gate itself lives in the router's, or with a plain user in the
 * machine's. When it dies, so do the sockets, and nothing leaves the sandbox any more. */
#pragma once

#include <stdbool.h>

#include "helper.h"
#include "plan.h"

/* Make the sandbox's side in its network namespace `network`, start the gate, and wait until it is ready. `userns`: what owns that
 * namespace, or -1 when we own it ourselves. False: see fail.h; a gate that runs is in `gate`, to be ended like any helper. */
bool gate_start(const struct plan *plan, int network, int userns, struct helper *gate);
