/* One message over a unix socket that keeps their borders, with descriptors: unix(7), SCM_RIGHTS. At most four of them. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/* `flags` as of sendmsg(2) and recvmsg(2). */
bool send_with(int link, const char *text, size_t size, const int *fds, size_t count, int flags);

/* Ends the text with a NUL and returns its size: 0 at the end, -1 with errno. What does not come of `fds` stays as it was. */
ssize_t receive_with(int link, char *text, size_t room, int *fds, size_t count, int flags);
