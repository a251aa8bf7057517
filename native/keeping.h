/* The files of a sandbox that has ended, kept as an image if its maker wants that. */
#pragma once

#include "box.h"

#include <stdbool.h>

/* Whether that is to be done: what has filled the disk, or cannot go on, is not kept. */
bool keeping_wanted(const struct box *box);

/* Run the plan's `at_end` while nothing runs in the sandbox any more, and note what it says in
 * box->kept. It asks for what it needs over the control socket. */
void keeping_run(struct box *box);
