/* File operations. They run in a worker, a fork of the agent that owns the link while it lasts: a file system that hangs, or a
 * FIFO in the place of a file, harms nobody else. files.c: the worker and the simple operations; transfer.c: whole files and
 * trees; place.c: files that appear whole or not at all. */
#pragma once

#include "frame.h"

#include <stdbool.h>
#include <sys/types.h>

/* In the worker: does it and ends the process; 0 when the link may be used on. `early` are bytes of the link behind the
 * request that the agent had read already. */
_Noreturn void files_serve(int link, const struct frame *request, uint8_t *early, size_t early_size);

/* Does the client send frames up to an END after this request? */
bool files_receives(const struct frame *request);

/* The worker's link. It blocks, and when it breaks the process ends (what was temporary is removed first). */
struct peer {
    int fd;
    uint8_t *early;
    size_t early_size;
    struct buffer in, out;
    bool failed;     /* an ERROR was sent: everything up to END is only read */
    bool holes;      /* the client takes HOLE frames */
    const char *path;
};
void peer_flush(struct peer *peer);
void peer_send(struct peer *peer, uint8_t type, uint8_t *bytes, size_t size); /* `bytes` need FRAME_HEADER bytes of room in front */
void peer_receive(struct peer *peer, struct frame *frame);                    /* it is valid until the next call */
void peer_fail(struct peer *peer, int error);                                 /* ERROR, at once and once */

/* The facts about a file, as the protocol tells them. `target` holds a link's. 0 or an errno. */
int entry_read(int directory, const char *name, const char *path, bool follow, struct entry *entry, char target[4097]);

void transfer_read(struct peer *peer, const struct file_request *request);
void transfer_write(struct peer *peer, const struct file_request *request);
void transfer_pull(struct peer *peer, const struct file_request *request);
/* watch.c: until the link ends, or what is watched. */
void watch_run(struct peer *peer, const struct file_request *request);
void transfer_push(struct peer *peer, const struct file_request *request);
