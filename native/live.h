/* What changes while a sandbox runs, and stays the same sandbox: its deadline, whether it runs
 * at all, its network. */
#pragma once

#include "control.h"

/* The rows of control.c. */
void serve_deadline(struct box *box, struct request *request);
void serve_pause(struct box *box, struct request *request);
void serve_resume(struct box *box, struct request *request);
void serve_network(struct box *box, struct request *request);

/* Nothing is to run: a pause, a copy. False: see fail.h, and all goes on. */
bool stop_hold(struct box *box);

/* The processes that were stopped are gone. */
void stop_forget(struct box *box);

/* What init says of a pause of its own accord (rest.h); false: it says something else. */
bool rest_heard(struct box *box, const char *word);

/* The sandbox ends: it goes on, whoever wanted it not to, for it has something to say. */
void stop_end(struct box *box);
