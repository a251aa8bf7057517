/* An OCI runtime, gVisor's runsc, that is process 1 in place of the agent. Outside of it is the box as always: user namespace, own
 * id range, cgroups, network, and a supervisor with whose death everything dies. The agent runs in the runtime's sandbox, and gets its
 * connections one by one over the link that it inherits: so the sandbox opens and makes no socket of the machine. */
#pragma once

#include "plan.h"

#include <stdbool.h>

/* What the runtime is started with; the plan's `runtime_arg`s name these numbers. */
enum { RUNTIME_LINK = 4, RUNTIME_AGENT = 5, RUNTIME_LOG = 6 };

/* runsc puts a file system in memory over a /tmp that is empty; with this in it, it does not. The agent removes it. */
#define RUNTIME_IN_TMP ".openmodal-runtime"

/* In the workbench, which becomes the runtime's root: all that it sees of the machine, beside the sandbox's root. */
bool runtime_furnish(const struct plan *plan);

/* Become the runtime. `output`: what the main command's output goes to, or -1. Returns only when that fails. */
void runtime_become(const struct plan *plan, const int output[2]);

/* Keep as the failure what the runtime has told in its log, if it has told something. */
void runtime_explain(int log);
