/* Which files of a sandbox differ from its image: what is in its upper folder, compared with the
 * layers below. Reads what hostile code made, so no link is followed and nothing is looked up by
 * a path. */
#pragma once

#include "control.h"

/* The row of control.c. `fd[0]` gets the changes, one after the other: a letter for the kind (A
 * added, C changed, D deleted), one for the type (f d l o), the size, the path, and a NUL. */
void serve_diff(struct box *box, struct request *request);

/* The row of control.c: how many bytes its files take on the disk. */
void serve_written(struct box *box, struct request *request);
