/* Messages with descriptors; see passing.h. */
#include "passing.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

union passed {
    struct cmsghdr header;
    char room[CMSG_SPACE(4 * sizeof(int))];
};

bool send_with(int link, const char *text, size_t size, const int *fds, size_t count, int flags) {
    union passed passed = {
        .header = {.cmsg_len = CMSG_LEN(count * sizeof *fds), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
    struct iovec part = {(char *)text, size};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (count > 0) {
        message.msg_control = &passed;
        message.msg_controllen = CMSG_SPACE(count * sizeof *fds);
        memcpy(CMSG_DATA(&passed.header), fds, count * sizeof *fds);
    }
    return sendmsg(link, &message, MSG_NOSIGNAL | flags) == (ssize_t)size;
}

/* A side that ends before it has read all that it was sent leaves ECONNRESET here, ahead of what it said last. */
ssize_t receive_with(int link, char *text, size_t room, int *fds, size_t count, int flags) {
    union passed passed = {.header = {0}};
    struct iovec part = {text, room - 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    ssize_t size;
    do {
        message.msg_control = count > 0 ? &passed : NULL;
        message.msg_controllen = count > 0 ? CMSG_LEN(count * sizeof *fds) : 0; /* no room for more than `count` */
        size = recvmsg(link, &message, MSG_CMSG_CLOEXEC | flags);
    } while (size < 0 && (errno == EINTR || errno == ECONNRESET));
    text[size > 0 ? size : 0] = '\0';
    if (size > 0 && message.msg_controllen >= CMSG_LEN(sizeof *fds) && passed.header.cmsg_type == SCM_RIGHTS)
        memcpy(fds, CMSG_DATA(&passed.header), passed.header.cmsg_len - CMSG_LEN(0));
    return size;
}
