/* What the agent tells of its end where nobody is left to ask it: lines on stdout, which a container's log keeps. */
#pragma once

#include "command.h"

/* What is kept of a stream, its newest `most` bytes, in the report's lines; `name` is '1' or '2'. */
bool report_stream(const struct ring *ring, char name, int fd, size_t most);

/* `main` is the main command, or NULL. Section 4 of docs/protocol.md says what the lines are. */
void report_end(const struct command *main);
