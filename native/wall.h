/* The wall: which addresses the processes of a container, or of a plain user's sandbox, may send to. Loaded by init into its own
 * network namespace, before anything untrusted runs; without CAP_NET_ADMIN, which init then gives up for good, nobody inside can
 * change it. Around a container that has a network stack of its own (gVisor), the verb `wall` loads it from outside. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { MOST_DENIED = 48, MOST_RESOLVERS = 4 };

struct prefix { /* in network byte order, from the first address to the last */
    uint32_t first, last;
};

struct wall {
    struct prefix denied[MOST_DENIED];
    uint32_t resolver[MOST_RESOLVERS]; /* reached at port 53, also where they are in a denied prefix */
    size_t denials, resolvers;
};

/* Take "10.0.0.0/8" or "192.0.2.1" in. False: it is neither, or one too many. */
bool wall_deny(struct wall *wall, const char *text);

/* Take in the name servers of a resolv.conf. A container's is its daemon's: who makes the wall need not know them. */
void wall_resolve(struct wall *wall, char *resolv_conf);

/* Load the rules into this network namespace, for its own packets or, `around`, for all that leaves by any of its interfaces. Everything
 * over IPv6 is refused but what is on loopback. False: see fail.h. */
bool wall_raise(const struct wall *wall, bool around);
