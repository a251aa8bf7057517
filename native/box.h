/* The box as its rooms know it: box.c makes and watches it, control.c hears its clients, finish.c
 * ends it. */
#pragma once

#include "gate.h"
#include "guard.h"
#include "helper.h"
#include "member.h"
#include "plan.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum { MAX_CLIENTS = 64, MAX_WORK = 16 };

struct box;

struct client {
    int fd;
    bool asked; /* has said what it wants, and waits for the record */
};

/* A child of the supervisor that does what a client asked for, and answers that client. */
struct work {
    pid_t pid;
    void (*ended)(struct box *box, int status); /* in the supervisor, with the status of waitpid(2); or NULL */
    bool lasts;                                  /* a reset does not concern it */
};

/* What is done to the sandbox's files, see layers.h. */
struct shaping {
    pid_t child; /* 0: nothing */
    int client;  /* gets the answer */
    int lock;    /* of the newest layer that is to come */
    char *outcome, *target;
    dev_t *overlay;      /* shared with the child, which writes there what it is about to mount */
    struct strings list; /* of layers */
    unsigned number;     /* of a new graft */
    dev_t root;          /* of the sandbox, as it was before */
    const struct task *task;
};

/* Other layers that are mounted in the sandbox. */
struct graft {
    char *path;      /* inside */
    unsigned number; /* names its folder, 0: there is none */
    dev_t overlay;   /* which it is: root of the sandbox can put something else in its place */
    int lock;        /* of its newest layer */
};

enum { MAX_GRAFTS = 64 };

struct box {
    struct plan *plan; /* only its layers and what is counted change */
    struct strings base; /* the layers that it was made with; plan->lower has its own on top of them */
    int layer_lock;      /* of the newest of its own */
    unsigned generation; /* how often its own layers were set */
    bool has_trash;      /* folders were put aside, and nobody removes them yet */
    int report, status; /* to the SDK, to the launcher */
    int folder, lock;
    int upper; /* the folder of upper and work, if others use it after us */
    int slot_lock;
    uint32_t slot; /* 0: has none */
    int userns;
    int meminfo; /* the file behind /proc/meminfo */
    int disk; /* the mount of the sandbox's own disk */
    int *maps; /* what folders of this machine are shifted by, until init has them */
    int agent_listener, control_listener;
    int program, log;    /* for a runtime: this program, to run as the agent, and where the runtime tells what went wrong */
    int network;         /* the sandbox's network namespace */
    int inside;          /* while it is made: a netlink socket in it */
    int netlink;         /* in the router's namespace, and so are we */
    int machine;         /* a socket to the machine's netfilter */
    int output[2];       /* where the main command's output is kept */
    int oom;
    uint64_t oom_kills;
    int link, init_link; /* the socket pair */
    pid_t init;
    int init_pidfd;
    struct helper helper; /* net_exec's */
    struct gate gate;
    pid_t detacher;       /* removes the interface */
    struct guard guard;
    int signals, timer, owner;
    uint64_t started, ended;
    const char *reason;
    int returncode;
    bool told; /* init has said how it ended */
    unsigned long long written[2]; /* by the main command to its streams */
    struct client client[MAX_CLIENTS];
    size_t clients;
    struct work work[MAX_WORK];
    size_t works;
    struct shaping shaping;
    struct graft graft[MAX_GRAFTS];
    unsigned stops; /* how many want nothing to run: a pause, a copy */
    bool paused;    /* ... and a pause is one of them */
    bool resting;   /* its agent was asked whether it may be paused */
    bool cut;       /* it is to have no network but that which it shares, whatever the plan says; also after a reset */
    struct member member;
    bool keeping; /* nothing runs in it any more, and its files become an image */
    pid_t keeper; /* ... by this process */
    char kept[320]; /* a line of the record about that */
    char record[1024];
    uint64_t answer_by;
};

/* box.c */

/* The first reason wins; the supervisor's loop then ends. */
void end_with(struct box *box, const char *reason, int returncode);

/* What init says. */
void hear_init(struct box *box);

/* Children have ended, or somebody asks us to. */
void hear_signals(struct box *box);

/* Start process 1 and all that ends with it, and wait until it is ready. */
bool box_run(struct box *box);

/* The group of its interface; see net.h. */
uint32_t box_group(const struct box *box);

/* A listening socket in the current folder; -1: see fail.h. */
int listen_at(const char *name);

/* control.c */

void control_accept(struct box *box);

/* Client `i` has something to say, or has gone away. */
void control_hear(struct box *box, size_t i);

/* A child has ended; false if it was no work of a client's. */
bool control_reaped(struct box *box, pid_t pid, int status);

/* End the children that work for clients, or those that a reset concerns; their clients see the connection
 * close. */
void control_end_work(struct box *box, bool all);

/* Send every client that waits for it the record, and forget all clients. */
void control_answer_all(struct box *box);

/* layers.c */

/* One less wants nothing to run; the last one lets it go on. */
void stop_release(struct box *box);

/* Layers of its own, the newest first, on top of those that the sandbox was made with: for whatever is
 * mounted from now on. The items of `own` are copied. */
void layers_set(struct box *box, const struct strings *own);

/* finish.c */

/* End everything that runs in the sandbox, and what serves it. */
void stop_all(struct box *box);

/* Wait until the interface's name is free. */
void await_detached(const struct box *box);

/* The sandbox could not be made: nothing of it is left. */
void back_out(struct box *box);

/* The sandbox has ended: take it down, write its record, remove its files, answer its clients. */
void finish(struct box *box);
