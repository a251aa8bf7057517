/* TCP's queues are asked of the kernel, which tells there what they take of its memory. /proc/net/tcp has the bytes that were sent
 * alone, and one byte in a segment of its own takes 800. */
#include "kernel.h"
#include "sockets.h"

#include "netlink.h"
#include "scan.h"
#include "util.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

/* Own definitions: musl has no linux/inet_diag.h. */
struct diag_request { /* inet_diag_req_v2 */
    uint8_t family, protocol, extensions, pad;
    uint32_t states;
    uint8_t socket[48];
};
enum { BY_FAMILY = 20, DUMP = 0x300, DIAG_MESSAGE = 72, MEMORY = 7, RECEIVED = 0, QUEUED = 5, BACKLOG = 7, MEMORY_WORDS = 8 };
enum { MOST_TEXT = 64 << 20 };

int sockets_open(pid_t process) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/net/sockstat", (int)process);
    return open(path, O_RDONLY | O_CLOEXEC);
}

uint64_t sockets_count(int file) {
    static const char head[] = "sockets: used ";
    char text[sizeof head + 20] = {0};
    bool told = pread(file, text, sizeof text - 1, 0) > 0 && strncmp(text, head, strlen(head)) == 0;
    return told ? strtoull(text + strlen(head), NULL, 10) : 0;
}

static void add_tcp(void *sum, const void *attributes, size_t size) {
    uint32_t word[MEMORY_WORDS];
    const struct nl_attribute *memory = find_attribute(attributes, size, MEMORY);
    if (!memory || memory->length < sizeof *memory + sizeof word)
        return;
    memcpy(word, memory + 1, sizeof word);
    *(uint64_t *)sum += (uint64_t)word[RECEIVED] + word[QUEUED] + word[BACKLOG];
}

static uint64_t hold_in_tcp(int diagnosis, uint8_t family) {
    struct batch batch = {.used = 0};
    uint64_t sum = 0;
    struct diag_request *asked = begin_message(&batch, BY_FAMILY, DUMP, sizeof *asked);
    *asked = (struct diag_request){.family = family, .protocol = IPPROTO_TCP, .extensions = 1 << (MEMORY - 1), .states = ~0U};
    ask_each(diagnosis, &batch, DIAG_MESSAGE, add_tcp, &sum);
    return sum;
}

/* The sum of two numbers in each line. */
static uint64_t hold_in(const char *path, const char *form) {
    char *text = read_file(path, MOST_TEXT, NULL);
    uint64_t sum = 0;
    unsigned long long sent, waiting;
    for (char *rest = text, *line; text && (line = strsep(&rest, "\n"));)
        if (scan(line, form, &sent, &waiting) == 2)
            sum += sent + waiting;
    free(text);
    return sum;
}

uint64_t sockets_hold(void) {
    AUTO_FD int diagnosis = open_netlink(NETLINK_SOCKETS);
    uint64_t tcp = diagnosis < 0 ? 0 : hold_in_tcp(diagnosis, AF_INET) + hold_in_tcp(diagnosis, AF_INET6);
    return tcp + hold_in("/proc/self/net/icmp", "%*s %*s %*s %*s %llx:%llx") +
           hold_in("/proc/self/net/icmp6", "%*s %*s %*s %*s %llx:%llx") +
           hold_in("/proc/self/net/netlink", "%*s %*s %*s %*s %llu %llu");
}
