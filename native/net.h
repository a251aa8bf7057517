/* Networking: the sandbox's interface, and the router, a network namespace in which all sandboxes' interfaces end.
 *
 *   sandbox: eth0 10.251.x.y/32 ──veth── om<slot> :router: up0 169.254.137.2 ──veth── openmodal0 169.254.137.1 :machine
 *
 * No bridge: the router routes each /32, so sandboxes share no link, and its firewall (loaded by the SDK) sees every packet. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "plan.h"

/* Move this process into the router's network namespace, where it stays, and open a netlink socket there. -1: see fail.h. */
int net_enter_router(const char *path);

/* In a sandbox's new network namespace: its settings, and lo up. Groups from `first_gid` to `last_gid` may ping. Not `strict`:
 * settings that cannot be made are left, for nobody else is on this network. `inside`: a netlink socket of that namespace. */
bool net_prepare(int inside, uint32_t first_gid, uint32_t last_gid, bool strict);

/* The group of om<slot>, by which the router's rules know what the sandbox reaches: the number of the network that it shares with
 * others (0: none), which is the only thing that it reaches if it is also INSIDE. It goes with the interface. */
enum { INSIDE = 1 << 16 };

/* In the router: make om<slot> of that group, with its other end, eth0, in the sandbox's namespace `network`, and the addresses and
 * routes of both. */
bool net_attach(int router, int inside, uint32_t slot, int network, uint32_t group);

/* In the router: from now on om<slot> is of that group. */
bool net_regroup(int router, uint32_t slot, uint32_t group);

/* In network byte order. */
uint32_t net_address(uint32_t slot);

/* In the router: remove om<slot>, and then what the sandbox's address has in the tables of connections, here and on the machine
 * (`machine`: a socket of NETLINK_FILTER there). Everything in the sandbox must be dead: so its end is told to whom it was connected to.
 * The name is gone within a millisecond, the call takes up to 60 (the kernel waits for its readers). False: connections may be left. */
bool net_detach(int router, int machine, uint32_t slot);
bool net_is_attached(uint32_t slot);

/* In the router: only remove om<slot>. */
void net_remove(int router, uint32_t slot);

/* In the router: the sandbox has never sent a packet. */
bool net_is_silent(int router, uint32_t slot);

/* In a sandbox's network namespace: end its connections to others, so that both sides know. */
void net_reset_connections(void);

/* In the router: forget the connections of the sandbox that had the slot before, whose supervisor was killed. The kernel
 * removes a killed sandbox's network namespace a bit later: what is left of om<slot> goes first. */
bool net_forget(int router, int machine, uint32_t slot);

/* In a user's sandbox, whose network comes from a helper and has no rules of its own: put these prefixes out of reach (wall.h), but for
 * the name servers of `resolv`. Nothing inside has the right to change that. */
bool net_refuse(const struct strings *prefixes, const char *resolv);
