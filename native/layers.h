/* What others ask of a running sandbox's files: to copy them, to freeze them as a layer, to begin again on
 * other layers, to mount more of them. One request at a time, by a child of the supervisor. */
#pragma once

#include "control.h"

#include <stddef.h>

/* The rows of control.c. */
void serve_copy(struct box *box, struct request *request);
void serve_merge(struct box *box, struct request *request);

/* The box ends: a copy may first come to its end, if the reason is that time is over. */
void layers_finish(struct box *box);
