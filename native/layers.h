/* What others ask of a running sandbox's files: to copy them, to freeze them as a layer, to begin again on
 * other layers, to mount more of them. One request at a time, by a child of the supervisor. */
#pragma once

#include "control.h"

#include <stddef.h>

enum { MOST_LISTED = 400 };

struct task {
    bool lists;                                  /* the request brings layers */
    bool stops;                                  /* nothing else runs in the sandbox meanwhile */
    bool (*work)(struct box *box, char *said);   /* in the child; the answer's text */
    void (*done)(struct box *box);               /* in the supervisor, after a success; or NULL */
    bool (*killed)(struct box *box);             /* instead of `work`, if the child was killed: it was done; or NULL */
};

/* Leave a request, whose argument is a path, to a child. `number` and `overlay`: for the task. */
void layers_begin(struct box *box, struct request *request, const struct task *task, unsigned number, dev_t overlay);

/* The rows of control.c. */
void serve_copy(struct box *box, struct request *request);
void serve_environment(struct box *box, struct request *request);
void serve_layers(struct box *box, struct request *request);
void serve_merge(struct box *box, struct request *request);

/* The upper folder becomes a layer, and an empty one lies on it: shift.c. */
void serve_switch(struct box *box, struct request *request);

/* Other layers appear in a folder of the sandbox, with an upper folder of their own, and disappear:
 * graft.c. */
void serve_mount(struct box *box, struct request *request);
void serve_unmount(struct box *box, struct request *request);

/* The sandbox begins anew, without them. */
void grafts_forget(struct box *box);

/* Answered by the supervisor itself, when the sandbox has begun again. */
void serve_reset(struct box *box, struct request *request);

/* In a child: the sandbox's mount namespace, and into it. -1 or false: see fail.h. */
int sandbox_open(const struct box *box);
bool sandbox_enter(int mounts);

/* In a child: what it makes is the sandbox's root's, and it still dies with the supervisor. */
bool own_as(uint32_t base);

/* Take what a request without a child of its own begins with: its list of layers and its lock, into
 * box->shaping. False: see fail.h. */
bool layers_take(struct box *box, struct request *request);

/* Forget what was taken. */
void layers_drop(struct box *box);

/* In a child: become whom the sandbox's files belong to. */
bool layers_become_owner(const struct box *box);

/* A name in the folder of `upper` and `work`. */
char *layers_beside(const struct plan *plan, const char *name);

/* Put a folder of the sandbox aside, which is removed when the client has its answer. */
bool layers_put_aside(struct box *box, const char *folder);

/* Have a child remove what was put aside, if there is anything. */
void layers_empty_trash(struct box *box);

/* Put `upper` and `work` aside and make new ones. */
bool layers_begin_anew(struct box *box);

/* The overlay that is the root of process 1. */
dev_t layers_root(const struct box *box);

/* The box ends: a copy may first come to its end, if the reason is that time is over. */
void layers_finish(struct box *box);
