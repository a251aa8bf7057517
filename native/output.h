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
