/* Connections that a sandbox leaves in the kernel's tables: the router's knows them by the sandbox's address, the machine's by what the
 * router made of it. An established one that nobody closes stays for hours in the one and for days in the other, and counts against the
 * next sandbox with that address. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/* In the router's network namespace: forget all connections from `address` (network byte order), here and on the machine. `machine`: a
 * socket of NETLINK_FILTER there. False: the kernel does not tell or forget connections (nf_conntrack_netlink). */
bool conntrack_forget(int machine, uint32_t address);

/* In the router's network namespace, when its rules are loaded: how long a connection on which nothing moves is kept. */
bool conntrack_limit(void);
