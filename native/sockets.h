/* What the sockets of a network namespace hold. The kernel charges a part of it to nobody: see docs/security.md. */
#pragma once

#include <stdint.h>
#include <sys/types.h>

/* Of the namespace that a process is in, whose sockets can then be counted at any time. -1: cannot be opened. The file keeps the
 * namespace. */
int sockets_open(pid_t process);

/* How many sockets there are, and how many of UDP, TCP and so on, all in all. */
uint64_t sockets_count(int file);

/* The bytes in their queues: of TCP, ping and netlink, in our own namespace. */
uint64_t sockets_hold(void);
