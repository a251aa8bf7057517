/* What others ask of a running sandbox's files: to copy them, to freeze them as a layer, to begin again on
 * other layers, to mount more of them. One request at a time, by a child of the supervisor. */
#pragma once

#include "control.h"

#include <stddef.h>

/* The rows of control.c. */
void serve_copy(struct box *box, struct request *request);
void serve_merge(struct box *box, struct request *request);

/* Answered by the supervisor itself, when the sandbox has begun again. */
void serve_reset(struct box *box, struct request *request);

/* Take what a request without a child of its own begins with: its list of layers and its lock, into
 * box->shaping. False: see fail.h. */
bool layers_take(struct box *box, struct request *request);

/* Forget what was taken. */
void layers_drop(struct box *box);

/* In a child: become whom the sandbox's files belong to. */
bool layers_become_owner(const struct box *box);

/* In the supervisor: put `upper` and `work` aside, make new ones, and have a child remove the old. */
bool layers_begin_anew(struct box *box);

/* The box ends: a copy may first come to its end, if the reason is that time is over. */
void layers_finish(struct box *box);
