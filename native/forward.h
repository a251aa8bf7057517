/* Ports of this machine that lead into a sandbox. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum { MOST_PORTS = 64 };

struct forward {
    int folder;         /* where the agent's socket is */
    pid_t agent;        /* the process that must listen there; 0: nobody else can */
    int owner;          /* a pidfd of whom it does not outlive; -1: nobody */
    bool watches;       /* ends when the agent is gone */
    struct {
        int listener;
        uint16_t port; /* in the sandbox */
    } port[MOST_PORTS];
    size_t ports;
};

/* Accepts, and carries bytes, until it is killed or has nobody to serve. */
void forward_run(struct forward *forward);

/* A link to the agent, or -1. */
int connect_link(const struct forward *forward);

/* The same to one that does not listen yet, or -1 once it has ended. */
int await_link(const struct forward *forward);

/* A word to the supervisor; see control.h. */
struct box;
struct request;
void serve_forward(struct box *box, struct request *request);
