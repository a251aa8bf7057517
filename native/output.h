/* The two ends of a command's streams that the agent holds. */
#pragma once

#include "command.h"

/* fd -1: there is no such stream, it is at its end. */
void stream_open(struct command *command, struct stream *stream, int fd, const struct start_request *start);
void stream_finish(struct stream *stream);                 /* the command has exited: what is in the pipe now still counts */
void stream_abandon(struct stream *stream);                 /* nobody will ask: only drained from now on */
void stream_close(struct stream *stream);

void input_open(struct command *command, int fd);
void input_close(struct command *command);

/* Takes what fits of `size` bytes at this stdin offset, then perhaps the end. False when the offset leaves a gap. */
bool command_feed(struct command *command, uint64_t offset, const uint8_t *data, size_t size, bool ends);

uint64_t stream_next(const struct stream *stream, uint64_t offset);       /* the first that is kept, from there on */
size_t stream_available(const struct stream *stream, uint64_t offset);    /* how many from such an offset on are in one place */
const struct ring *stream_ring(const struct stream *stream, uint64_t offset); /* where they are, if not on the disk */
uint64_t stream_written(const struct stream *stream);                      /* how many bytes have been read from the command */
bool stream_is_spilled(const struct stream *stream, uint64_t offset);
bool stream_at_end(const struct stream *stream, uint64_t offset);
void stream_received(struct command *command, int which, uint64_t offset); /* everything before `offset` may be forgotten */
void stream_peeked(struct command *command, int which, uint64_t offset);   /* it was given, and may be asked for once more */
void command_attach(struct command *command, const void *link, uint8_t streams, bool takes);
void command_told(struct command *command, const void *link);
bool command_readers_know(const struct command *command); /* all of them were told */
void commands_link_gone(const void *link);
void stream_tick(struct stream *stream); /* 30 s without a link: no reader */
