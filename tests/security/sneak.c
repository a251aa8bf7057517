/* Every way that a program without rights has to say where a packet shall go: sneak INTERFACE ADDRESS PORT GATEWAY
 *
 * Each way that gets as far as sending sends its own name, over TCP or UDP; the server of the test notes what arrives. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static const char *interface;
static struct in_addr address, gateway;
static in_port_t port;

static struct sockaddr_in target(void) {
    return (struct sockaddr_in){.sin_family = AF_INET, .sin_addr = address, .sin_port = port};
}

static struct sockaddr_in6 mapped(void) { /* ::ffff:10.0.0.1 */
    struct sockaddr_in6 to = {.sin6_family = AF_INET6, .sin6_port = port};
    to.sin6_addr.s6_addr[10] = to.sin6_addr.s6_addr[11] = 0xff;
    memcpy(to.sin6_addr.s6_addr + 12, &address, 4);
    return to;
}

enum { PLAIN, BIND, UNICAST, DONT_ROUTE, SOURCE_ROUTE, MULTICAST };

/* What is set before. False: the kernel refuses it. */
static bool prepare(int fd, int how) {
    int on = 1, index = (int)if_nametoindex(interface), wire = (int)htonl((uint32_t)index);
    struct ip_mreqn by = {.imr_ifindex = index};
    unsigned char route[8] = {131, 7, 4}; /* loose: by way of the gateway */
    memcpy(route + 3, &gateway, 4);
    switch (how) {
    case BIND:
        return setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, interface, (socklen_t)strlen(interface)) == 0;
    case UNICAST:
        return setsockopt(fd, IPPROTO_IP, 50 /* IP_UNICAST_IF */, &wire, sizeof wire) == 0;
    case DONT_ROUTE:
        return setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, interface, (socklen_t)strlen(interface)) == 0 &&
               setsockopt(fd, SOL_SOCKET, SO_DONTROUTE, &on, sizeof on) == 0;
    case SOURCE_ROUTE:
        return setsockopt(fd, IPPROTO_IP, IP_OPTIONS, route, sizeof route) == 0;
    case MULTICAST:
        return setsockopt(fd, IPPROTO_IP, IP_MULTICAST_IF, &by, sizeof by) == 0;
    default:
        return true;
    }
}

static void tcp(const char *name, int how, bool six) {
    struct sockaddr_in to = target();
    struct sockaddr_in6 to6 = mapped();
    int fd = socket(six ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct pollfd ready = {.fd = fd, .events = POLLOUT};
    if (fd < 0 || !prepare(fd, how))
        return;
    if (six)
        connect(fd, (struct sockaddr *)&to6, sizeof to6);
    else
        connect(fd, (struct sockaddr *)&to, sizeof to);
    poll(&ready, 1, 10000); /* the first connection of a slow machine takes seconds; what is refused is so at once */
    send(fd, name, strlen(name), MSG_NOSIGNAL);
    shutdown(fd, SHUT_WR);
    close(fd);
}

static void udp(const char *name, int how, bool six) {
    struct sockaddr_in to = target();
    struct sockaddr_in6 to6 = mapped();
    int fd = socket(six ? AF_INET6 : AF_INET, SOCK_DGRAM, 0);
    if (fd < 0 || !prepare(fd, how))
        return;
    if (six)
        sendto(fd, name, strlen(name), 0, (struct sockaddr *)&to6, sizeof to6);
    else
        sendto(fd, name, strlen(name), 0, (struct sockaddr *)&to, sizeof to);
    close(fd);
}

/* The interface in a control message: for one packet, without any right. */
static void packet_info(const char *name) {
    struct sockaddr_in to = target();
    char room[CMSG_SPACE(sizeof(struct in_pktinfo))] = {0};
    struct iovec text = {(void *)(uintptr_t)name, strlen(name)};
    struct msghdr message = {.msg_name = &to, .msg_namelen = sizeof to, .msg_iov = &text, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    struct in_pktinfo info = {.ipi_ifindex = (int)if_nametoindex(interface)};
    *head = (struct cmsghdr){.cmsg_level = IPPROTO_IP, .cmsg_type = IP_PKTINFO, .cmsg_len = CMSG_LEN(sizeof info)};
    memcpy(CMSG_DATA(head), &info, sizeof info);
    sendmsg(socket(AF_INET, SOCK_DGRAM, 0), &message, 0);
}

int main(int argc, char **argv) {
    if (argc != 5 || inet_pton(AF_INET, argv[2], &address) != 1 || inet_pton(AF_INET, argv[4], &gateway) != 1)
        return 2;
    interface = argv[1];
    port = htons((in_port_t)atoi(argv[3]));
    tcp("tcp", PLAIN, false);
    tcp("tcp-bound", BIND, false);
    tcp("tcp-unicast-if", UNICAST, false);
    tcp("tcp-dont-route", DONT_ROUTE, false);
    tcp("tcp-source-route", SOURCE_ROUTE, false);
    tcp("tcp-mapped", PLAIN, true);
    tcp("tcp-mapped-bound", BIND, true);
    for (int again = 0; again < 3; again++) { /* a first datagram may be lost while its neighbour is looked for */
        udp("udp", PLAIN, false);
        udp("udp-bound", BIND, false);
        udp("udp-unicast-if", UNICAST, false);
        udp("udp-dont-route", DONT_ROUTE, false);
        udp("udp-source-route", SOURCE_ROUTE, false);
        udp("udp-multicast-if", MULTICAST, false);
        udp("udp-mapped", PLAIN, true);
        udp("udp-mapped-bound", BIND, true);
        packet_info("udp-packet-info");
        usleep(100000);
    }
    return 0;
}
