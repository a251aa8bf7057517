/* Commands: what runs in the sandbox, what they wrote, how they ended. See docs/protocol.md, "Commands". */
#pragma once

#include "frame.h"
#include "ring.h"
#include "spill.h"
#include "state.h"

enum { MAX_COMMANDS = 4096, OUTPUT_KEPT = 8 << 20, OUTPUT_SLACK = 256 << 10, STDIN_KEPT = 1 << 20 };

enum command_state { COMMAND_STARTING, COMMAND_RUNNING, COMMAND_EXITED, COMMAND_FAILED };

struct stream {
    struct command *command;
    struct watch watch;
    struct ring ring;
    struct spill spill; /* what came before, if nobody took it */
    uint64_t peeked;    /* somebody has been given what lies before this offset, and has not taken it */
    uint64_t limit;     /* what the command writes behind so many bytes goes into `tail`, and is given at the end; NEVER: nothing does */
    struct ring tail;   /* the newest of that */
    size_t tail_most;
    bool attached, pty;
    bool ended;         /* nothing will be added; what still comes is thrown away */
    int64_t rest;       /* the command has exited and so many bytes are still to be read; -1: it has not */
    unsigned busy;      /* reads in a row that found a full pipe */
    uint64_t detach_at; /* no link that read it is open: then it has no reader any more */
};

struct record {
    uint8_t killed, code, timed_out, oom;
    uint64_t started_us, ended_us, cpu_us, rss_kib;
};

struct reader {
    const void *link;
    uint8_t streams; /* bit 0 stdout, bit 1 stderr */
    uint8_t taken;   /* those of them that it takes: their bytes are gone when it has them */
    bool told;       /* ... that the command has exited and nothing more comes */
};

struct command {
    struct command *next, *previous, *same_hash;
    uint8_t id[ID_SIZE];
    enum command_state state;
    bool known;      /* in the table; else it was released and only waits for its monitor */
    bool released;   /* to be forgotten as soon as it has finished */
    bool condemned;  /* its whole tree is to die (tree.c) */
    bool timed_out;
    uint32_t flags;
    pid_t monitor;   /* 0: gone, and with it the last descendant */
    pid_t leader;
    uint64_t deadline, oom_before;
    uint64_t started_as; /* the number of its start */
    bool first_alone;    /* no other ran when it started */
    uint64_t version; /* counts news: a request that waits is looked at again when it changed */
    struct record record;
    struct buffer about; /* for a list of the commands: its user and arguments, as they are sent */
    uint32_t error_code; /* COMMAND_FAILED */
    char *error;
    struct watch report, input;
    struct ring input_ring;
    uint64_t input_accepted;
    bool input_ends, input_closed;
    uint8_t input_last; /* the last byte: on a terminal it decides how its end is typed */
    struct stream out[2];
    struct reader *readers;
    size_t reader_count;
};

/* The newest first; released ones that wait for their monitor are among them. */
extern struct command *commands;

struct command *command_find(const uint8_t id[ID_SIZE]);
struct command *command_of_monitor(pid_t pid);

/* Starts one; it is COMMAND_STARTING until its monitor reports. NULL with code and sentence when that was not even possible. */
struct command *command_start(const struct start_request *start, uint32_t *code, const char **sentence);
void command_monitor_gone(struct command *command, int status);
void command_release(struct command *command);
void command_forget(struct command *command); /* now; the tree that may be left lives on */
void command_changed(struct command *command);
void command_expired(struct command *command); /* its deadline is over */

/* Signals the leader only, after a check that it is still ours; ESRCH when it is gone. 0 or errno. */
int command_signal(struct command *command, int signal);
int command_resize(struct command *command, uint16_t rows, uint16_t columns);
