/* Killing whole process trees. */
#pragma once

#include "command.h"

/* One round against all condemned trees; when the next one is due (agent's clock, NEVER: nothing left to kill). */
uint64_t trees_sweep(void);
/* One signal, once, to every descendant of the command's monitor. */
void tree_signal(const struct command *command, int signal);
/* The parent of a process, 0 when there is no such process. */
pid_t parent_of(pid_t pid);
/* Signals a process if its parent (still) is this one. 0 or errno. */
int signal_child(pid_t pid, pid_t parent, int signal);
