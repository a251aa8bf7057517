/* What the agent tells of its end where nobody is left to ask it: lines on stdout, which a container's log keeps. */
#pragma once

#include "command.h"

/* `main` is the main command, or NULL. Section 4 of docs/protocol.md says what the lines are. */
void report_end(const struct command *main);
