/* Links: connected clients and their requests. */
#pragma once

#include "state.h"

void links_take(int fd); /* a connection, not blocking */
void links_accept(struct watch *listening, uint32_t events);
void links_accept_remote(struct watch *listening, uint32_t events); /* from the network, where anybody may come from */
/* Looks again at every request that waits and may be answered now, and sends what is to be sent. */
void links_progress(void);
uint64_t links_deadline(void);
bool links_busy(void);             /* an answer is waited for, or a worker is at work, not to look only */
void links_part(uint64_t patience_ms); /* end them all, and wait until the other sides have taken what was sent */
bool links_drained(void);          /* everything that was answered is sent */
const void *link_of_worker(pid_t pid);
void link_worker_gone(pid_t pid, int status);
void links_forget(const void *command); /* it is about to be freed */
