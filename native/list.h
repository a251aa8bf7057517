/* What is told of commands: how one ended, and a list of all. */
#pragma once

#include "command.h"

/* Keep what a list says of a command that starts: its user and its arguments. */
void command_describe(struct command *command, const struct start_request *start);

void put_record(struct buffer *out, const struct record *record);

/* A COMMAND for each that runs, or has ended and was not released. */
void put_commands(struct buffer *out);
