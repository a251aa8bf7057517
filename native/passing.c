/* Descriptors on their way from one process to another; see passing.h. */
#include "passing.h"

#include <string.h>
#include <sys/socket.h>

union room {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(sizeof(int))];
};

bool pass(int link, int fd, int flags) {
    union room room = {.header = {.cmsg_len = CMSG_LEN(sizeof fd), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
    struct iovec byte = {(char[]){'n'}, 1};
    struct msghdr message = {.msg_iov = &byte, .msg_iovlen = 1, .msg_control = &room, .msg_controllen = sizeof room};
    memcpy(CMSG_DATA(&room.header), &fd, sizeof fd);
    return sendmsg(link, &message, MSG_NOSIGNAL | flags) == 1;
}

ssize_t take_passed(int link, int flags, int *fd) {
    union room room;
    struct iovec byte = {(char[1]){0}, 1};
    struct msghdr message = {.msg_iov = &byte, .msg_iovlen = 1, .msg_control = &room, .msg_controllen = sizeof room};
    ssize_t size = recvmsg(link, &message, MSG_CMSG_CLOEXEC | flags);
    *fd = -1;
    if (size == 1 && message.msg_controllen >= CMSG_LEN(sizeof *fd) && room.header.cmsg_type == SCM_RIGHTS)
        memcpy(fd, CMSG_DATA(&room.header), sizeof *fd);
    return size;
}
