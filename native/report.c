/* The report at the end, for engines that find the agent's stdout again in a log. Base64, because a log keeps lines: binary or endless
 * ones change on their way, and short ones cost the log's keeper and reader many times their size each. In lines that no container
 * runtime splits. */
#include "report.h"
#include "agent.h"
#include "output.h"
#include "util.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { LINE_BYTES = 9000, MOST_BYTES = 3 << 20 /* a pod's log holds 10 MiB before it is rotated */ };

static size_t encode(const uint8_t *bytes, size_t size, char *text) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    char *at = text;
    for (size_t i = 0; i < size; i += 3) {
        uint32_t three = (uint32_t)bytes[i] << 16 | (i + 1 < size ? (uint32_t)bytes[i + 1] << 8 : 0) | (i + 2 < size ? bytes[i + 2] : 0);
        *at++ = digits[three >> 18];
        *at++ = digits[three >> 12 & 63];
        *at++ = i + 1 < size ? digits[three >> 6 & 63] : '=';
        *at++ = i + 2 < size ? digits[three & 63] : '=';
    }
    return (size_t)(at - text);
}

static size_t copy_from_ring(const struct ring *ring, uint64_t offset, size_t count, uint8_t *bytes) {
    struct iovec pieces[2];
    size_t size = 0;
    int pieces_count = ring_bytes(ring, offset, count, pieces);
    for (int i = 0; i < pieces_count; i++) {
        memcpy(bytes + size, pieces[i].iov_base, pieces[i].iov_len);
        size += pieces[i].iov_len;
    }
    return size;
}

bool report_stream(const struct ring *ring, char name, int fd, size_t most) {
    static uint8_t bytes[LINE_BYTES];
    static char line[4 + LINE_BYTES / 3 * 4];
    size_t kept = ring_size(ring);
    uint64_t at = ring->end - (kept < most ? kept : most);
    while (at < ring->end) {
        size_t left = (size_t)(ring->end - at), size = copy_from_ring(ring, at, left < LINE_BYTES ? left : LINE_BYTES, bytes);
        line[0] = name;
        line[1] = ' ';
        size_t length = 2 + encode(bytes, size, line + 2);
        line[length++] = '\n';
        if (!write_patiently(fd, line, length))
            return false;
        at += size;
    }
    return true;
}

void report_end(const struct command *main) {
    char text[160];
    unsigned long long out = main ? stream_written(&main->out[0]) : 0, err = main ? stream_written(&main->out[1]) : 0;
    if (main && !(report_stream(&main->out[0].ring, '1', STDOUT_FILENO, MOST_BYTES) &&
                  report_stream(&main->out[1].ring, '2', STDOUT_FILENO, MOST_BYTES)))
        return;
    int oom = main && main->state == COMMAND_EXITED && main->record.oom;
    int size = snprintf(text, sizeof text, "end %s %d %d %llu %llu %llu\n", agent.reason, agent.returncode, oom,
                        (unsigned long long)unix_us(), out, err);
    write_patiently(STDOUT_FILENO, text, (size_t)size);
}
