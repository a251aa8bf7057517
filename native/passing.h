/* One descriptor and one byte over a unix socket (unix(7), SCM_RIGHTS). */
#pragma once

#include <stdbool.h>
#include <sys/types.h>

bool pass(int link, int fd, int flags);

/* What recv() returns. `fd` is the descriptor that came along, or -1: a message need not bring one. */
ssize_t take_passed(int link, int flags, int *fd);
