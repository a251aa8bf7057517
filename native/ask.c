/* The verb `ask`: ask the first name server of /etc/resolv.conf for the address of a name, as `openmodal doctor` does in a sandbox without
 * files. Whether there is such a name is not the question, only whether somebody answers. Knows nothing of agents. */
#include "scan.h"
#include "util.h"
#include "verbs.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

enum { ANSWERED, UNANSWERED, MISUSED, ATTEMPTS = 4, LONGEST = 200, HEADER = 12, FAILED = 2 };

/* The first line `nameserver ADDRESS`. */
static bool find_server(struct sockaddr_in *server) {
    char *text = read_file("/etc/resolv.conf", 64 << 10, NULL), *word = text ? strstr(text, "nameserver ") : NULL, address[16] = "";
    bool found = word && scan(word, "nameserver %15s", address) == 1 && inet_pton(AF_INET, address, &server->sin_addr) == 1;
    free(text);
    return found;
}

/* RFC 1035, section 4.1: a header with one question, wanting recursion, then the labels of the name, type A, class IN. */
static size_t make_question(unsigned char *question, const char *name) {
    static const unsigned char begin[HEADER] = {0x4f, 0x4d, 1, 0, 0, 1}, end[] = {0, 0, 1, 0, 1};
    unsigned char *at = memcpy(question, begin, HEADER);
    for (at += HEADER; *name; name += *name == '.') {
        size_t length = strcspn(name, ".");
        *at++ = (unsigned char)length;
        memcpy(at, name, length);
        at += length;
        name += length;
    }
    memcpy(at, end, sizeof end);
    return (size_t)(at - question) + sizeof end;
}

int verb_ask(int argc, char **argv) {
    struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons(53)};
    const struct timeval patience = {.tv_sec = 3};
    unsigned char question[HEADER + LONGEST + 8], answer[512];
    if (argc != 2 || strlen(argv[1]) > LONGEST || !find_server(&server)) {
        fprintf(stderr, "openmodal-agent ask: say a name, where /etc/resolv.conf says whom to ask\n");
        return MISUSED;
    }
    size_t size = make_question(question, argv[1]);
    AUTO_FD int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (const struct sockaddr *)&server, sizeof server) != 0 ||
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) != 0)
        return UNANSWERED;
    for (int attempt = 0; attempt < ATTEMPTS; attempt++)
        if (send(fd, question, size, 0) == (ssize_t)size && recv(fd, answer, sizeof answer, 0) >= HEADER &&
            memcmp(answer, question, 2) == 0)
            return (answer[3] & 15) == FAILED ? UNANSWERED : ANSWERED;
    return UNANSWERED;
}
