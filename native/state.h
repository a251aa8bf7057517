/* What the parts of the agent share: its one state, and descriptors that are watched. The agent is single-threaded. */
#pragma once

#include "agent.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define container_of(pointer, type, member) ((type *)(void *)((char *)(pointer) - offsetof(type, member)))
#define NEVER UINT64_MAX

/* A descriptor in the event loop. `ready` may end any watch, also its own: the loop drops events of ended ones. */
struct watch {
    int fd; /* -1: none */
    uint32_t events;
    void (*ready)(struct watch *watch, uint32_t events);
};
void watch_set(struct watch *watch, uint32_t events); /* 0: leave the loop (EPOLLHUP would come all the time otherwise) */
void watch_end(struct watch *watch);                  /* leave the loop and close */

struct agent {
    const struct agent_config *config;
    uint64_t born;                     /* when the lifetime began */
    uint64_t birth;                    /* a number of this agent: one that is started in its place has another */
    uint64_t timeout_ms;               /* how long it is; 0: somebody else keeps it */
    pid_t self;
    int epoll, proc, null, pts, oom, oom_adj;
    int oom_adj_self, oom_adj_command; /* our own oom_score_adj, and that of commands */
    uint64_t nofile;                   /* the soft limit that commands get; ours is raised */
    uint64_t now;                      /* now_ms() of this turn of the loop */
    uint64_t memory_kib;               /* what /proc/meminfo calls all */
    uint64_t starts;                   /* commands started so far */
    uint64_t active;                   /* when somebody last asked something, and might */
    uint64_t asked;                    /* when somebody last asked something, which renews a lease */
    uint64_t deaf_until;               /* no connection is taken before: there were no descriptors for one */
    bool hunting;                      /* a monitor was killed: its orphans are ours now, and are to die */
    const char *reason;                /* why the agent ends; NULL: it does not */
    int returncode;
    uint64_t end_by;                   /* it ends at the latest then */
};
extern struct agent agent;

struct setup_request;
void agent_set_up(const struct setup_request *setup); /* keeps what it points to; the lifetime begins now */
void agent_end(const char *reason, int returncode, uint64_t grace_ms); /* the first reason counts */
void oom_open(void);
uint64_t oom_kills(void);                                              /* the kernel's counter, 0 when there is none */
