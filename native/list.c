/* See list.h. */
#include "list.h"

#include <string.h>

enum { ABOUT_ARGV = 1024, LENGTH = 4 };

/* Of long arguments the beginning: what 4,096 commands may keep of theirs must be little. */
void command_describe(struct command *command, const struct start_request *start) {
    struct buffer *about = &command->about;
    const char *user = *start->user ? start->user : agent.config->user ? agent.config->user : "";
    size_t count = 0, left = ABOUT_ARGV, size = 0;
    while (start->argv[count] && size < ABOUT_ARGV)
        size += LENGTH + strlen(start->argv[count++]);
    put_text(about, user);
    put_uint(about, start->argv[count] || size > ABOUT_ARGV, 1);
    put_uint(about, count, LENGTH);
    for (size_t i = 0; i < count; i++) {
        size_t length = strlen(start->argv[i]);
        length = LENGTH + length < left ? length : left > LENGTH ? left - LENGTH : 0;
        put_uint(about, length, LENGTH);
        buffer_add(about, start->argv[i], length);
        left -= LENGTH + length < left ? LENGTH + length : left;
    }
}

void put_record(struct buffer *out, const struct record *record) {
    uint8_t flags[4] = {record->killed, record->code, record->timed_out, record->oom};
    buffer_add(out, flags, sizeof flags);
    put_uint(out, record->started_us, 8);
    put_uint(out, record->ended_us, 8);
    put_uint(out, record->cpu_us, 8);
    put_uint(out, record->rss_kib, 8);
}

static void put_command(struct buffer *out, const struct command *command) {
    bool ended = command->state == COMMAND_EXITED;
    size_t mark = frame_begin(out, FRAME_COMMAND);
    buffer_add(out, command->id, ID_SIZE);
    put_uint(out, (uint32_t)command->leader, 4);
    put_uint(out, command->record.started_us, 8);
    buffer_add(out, buffer_at(&command->about), buffer_size(&command->about));
    put_uint(out, ended, 1);
    if (ended)
        put_record(out, &command->record);
    frame_end(out, mark);
}

/* Connections are no commands, though they are made by START, too. */
static bool is_listed(const struct command *command) {
    bool begun = command->state == COMMAND_RUNNING || command->state == COMMAND_EXITED;
    return begun && command->known && !(command->flags & START_CONNECT);
}

void put_commands(struct buffer *out) {
    for (const struct command *command = commands; command; command = command->next)
        if (is_listed(command))
            put_command(out, command);
}
