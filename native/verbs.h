/* One function per verb of the program; each gets its own arguments (argv[0] is the verb) and returns the exit status. */
#pragma once

int verb_box(int argc, char **argv);    /* box.c   outside: makes the sandbox and supervises it */
int verb_router(int argc, char **argv); /* net.c   the network namespace where the sandboxes' interfaces end */
int verb_init(int argc, char **argv);   /* init.c  inside a container: process 1 */
int verb_bound(int argc, char **argv);  /* setup.c outside: files that the daemon keeps beside a container, within it */
int verb_hangup(int argc, char **argv); /* setup.c outside: ends the connections of a container */
int verb_own(int argc, char **argv);    /* own.c outside: ends a container's sandbox with its owner */
int verb_pause(int argc, char **argv);  /* pauser.c outside: pauses a container whose sandbox is idle */
int verb_wall(int argc, char **argv);   /* setup.c outside: a firewall around a container whose network stack is its own */
int verb_dial(int argc, char **argv);   /* dial.c  standard streams <-> the agent's socket */
int verb_ask(int argc, char **argv);    /* ask.c   whether a sandbox's name server answers */
int verb_reach(int argc, char **argv);  /* reach.c whether one pod reaches another */
int verb_remove(int argc, char **argv); /* trash.c outside: a tree that a sandbox or an image made */
int verb_forward(int argc, char **argv); /* forward.c outside: ports that lead into a sandbox */
int verb_changes(int argc, char **argv); /* changes.c in a container: the files that are not as in its image */
