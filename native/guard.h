/* The guard ends a sandbox that takes much of what all share and the kernel does not limit: the store's disk, and memory of sockets. */
#pragma once

#include "plan.h"

#include <stdint.h>
#include <sys/types.h>
#include <time.h>

/* A process of its own, with the lowest priority, that adds up. */
struct counter {
    pid_t pid; /* 0: there is none, or somebody has waited for it */
    int told;  /* where it tells the sum, -1: there is none */
};

struct guard {
    int dir;    /* the sandbox's own, where what was counted is noted for the others' guards */
    int userns; /* whose root may look into all folders and processes, or -1 */
    uint64_t next; /* when to look again, in ms */
    uint64_t size; /* what it has of that for which it ends, in bytes */

    int folder;                    /* the upper folder; -1: its disk is not guarded */
    const struct plan *plan;
    time_t began;
    bool nearly_full;              /* then what the sandbox has written to volumes counts, too: they are others', too */
    uint64_t least;                /* bytes as which each file counts at least: its share of a disk that has no more files */
    const char *group;             /* a control group with all its processes, or NULL */
    uint64_t most;                 /* bytes that the sandbox may have on the disk */
    uint64_t before;               /* bytes that were free when files were counted last */
    struct counter files;

    int sockets;              /* the number of its sockets; -1: they are not guarded */
    int network;              /* the namespace that they are in, not ours to close */
    uint64_t most_in_sockets; /* bytes that their queues may hold */
    struct counter queues;
};

/* Begin; it changes nothing if the plan has no limit. `dir`, `userns`, `network`: kept as long as the guard. */
bool guard_begin(struct guard *guard, const struct plan *plan, int dir, int userns, pid_t init, int network);

/* In how many ms to look again; -1: never. */
int guard_wait(const struct guard *guard);

/* Look, if a second is over. The reason for an end: "disk", it has more than it may, or the disk is nearly full and it has more than any
 * other; "sockets"; or NULL. */
const char *guard_finds(struct guard *guard, uint64_t now);

/* Somebody has waited for a process that may be a counter. */
void guard_reaped(struct guard *guard, pid_t pid);

/* The sandbox writes to another upper folder of the same name from now on. */
void guard_follow(struct guard *guard, const struct plan *plan);

void guard_end(struct guard *guard);

/* What the files in a folder take on its disk, in bytes. */
uint64_t guard_count(const char *path);
