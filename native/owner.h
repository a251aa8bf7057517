/* The process that owns a sandbox, which ends with it. */
#pragma once

#include "control.h"

/* Watch another process instead of the one so far; 0: none. */
bool owner_watch(struct box *box, uint64_t pid);

/* The request `owner PID`. */
void serve_owner(struct box *box, struct request *request);
