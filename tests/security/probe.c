/* The attacker's tool: one static program that tries things from inside a sandbox and says what the kernel answered.
 *
 *   probe call NR [NUMBER|s:TEXT|b:SIZE|n:NUMBER]…   one raw system call: "OK value" or "ERR errno"
 *   probe open PATH…                        open each for writing, write nothing: prints those that open
 *   probe sockets                           every family, type and some protocols: prints what can be made
 *   probe families                          the first socket of each family; each try may load a module
 *   probe calls                             every system call with zeros in a child: "number errno", "number signal" or "number 0"
 *   probe foreign i386|socketcall|x32       another architecture's way in: prints what it answered
 *   probe trace PID | own                   attach to a process; to a child of its own
 *   probe abstract NAME                     connect to an abstract unix socket
 *   probe memfd PATH ARG…                   run a program from memory
 *   probe splice PATH                       splice a file into a pipe and write over the pipe
 *   probe threads|inotify|pipes|memfds|files|events|signals COUNT   how many of them can be had
 *   probe datagrams|queues COUNT            sockets of UDP, of TCP, each with 60,000 bytes at least that nobody reads
 *   probe hoard ping|netlink|waiting|segments COUNT   sockets, and in their queues as much as the kernel takes
 *   probe forge ADDRESS                     send a packet whose source is ADDRESS
 *   probe connect ADDRESS:PORT COUNT        hold that many connections; say how many came to be
 *   probe visit ADDRESS:PORT COUNT          make that many connections and close each; say how many came to be
 *   probe fault                             die of a segmentation fault, with the core limit as high as it may be
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static long argument(const char *word) {
    if (strncmp(word, "s:", 2) == 0)
        return (long)(word + 2);
    if (strncmp(word, "b:", 2) == 0)
        return (long)calloc(1, strtoul(word + 2, NULL, 0));
    if (strncmp(word, "n:", 2) == 0) { /* a buffer that begins with a number */
        long *buffer = calloc(1, 512);
        *buffer = strtol(word + 2, NULL, 0);
        return (long)buffer;
    }
    return (long)strtoll(word, NULL, 0);
}

static int call(char **words) {
    long a[7] = {0};
    for (int i = 0; i < 7 && words[i] != NULL; i++)
        a[i] = argument(words[i]);
    long result = syscall(a[0], a[1], a[2], a[3], a[4], a[5], a[6]);
    printf(result < 0 ? "ERR %ld\n" : "OK %ld\n", result < 0 ? (long)errno : result);
    return result < 0;
}

static int open_all(char **paths) {
    for (; *paths != NULL; paths++) {
        int fd = open(*paths, O_WRONLY | O_NONBLOCK | O_NOCTTY);
        if (fd >= 0)
            puts(*paths);
        close(fd);
    }
    return 0;
}

static int sockets(bool first) {
    static const int types[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_RAW, SOCK_RDM, SOCK_SEQPACKET};
    for (int family = 0; family < 48; family++) {
        bool next = false;
        for (size_t t = 0; t < sizeof types / sizeof *types && !next; t++)
            for (int protocol = 0; protocol < 24 && !next; protocol++) {
                int fd = socket(family, types[t], protocol);
                next = first && (fd >= 0 || errno == EAFNOSUPPORT);
                if (fd >= 0)
                    printf("%d %d %d\n", family, types[t], protocol);
                close(fd);
            }
    }
    return 0;
}

/* Zeros do no harm: no pointer, no descriptor but 0, no flag. What waits for ever is ended by the alarm. */
static int calls(void) {
    for (int number = 0; number < 480; number++) {
        pid_t child = fork();
        if (child == 0) {
            struct rlimit none = {0, 0};
            setrlimit(RLIMIT_CORE, &none);
            ualarm(400000, 0);
            long result = syscall(number, 0, 0, 0, 0, 0, 0);
            _exit(result < 0 ? errno : 0);
        }
        int status = 0;
        waitpid(child, &status, 0);
        if (WIFSIGNALED(status))
            printf("%d signal\n", number);
        else
            printf("%d %d\n", number, WEXITSTATUS(status));
        fflush(stdout);
    }
    return 0;
}

static int foreign(const char *way) {
    long result = -1;
    (void)way;
#ifdef __x86_64__
    if (strcmp(way, "i386") == 0) /* getpid is 20 there */
        __asm__ volatile("int $0x80" : "=a"(result) : "a"(20L) : "memory", "r8", "r9", "r10", "r11");
    else if (strcmp(way, "socketcall") == 0) { /* socket(AF_ALG, SOCK_SEQPACKET, 0), which no filter could look into */
        uint32_t *words = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
        words[0] = 38, words[1] = SOCK_SEQPACKET, words[2] = 0;
        __asm__ volatile("int $0x80" : "=a"(result) : "a"(102L), "b"(1L), "c"(words) : "memory", "r8", "r9", "r10", "r11");
    } else
        result = syscall(0x40000000 + 39) < 0 ? -errno : 0;
#endif
    printf("%ld\n", result);
    return 0;
}

static int trace(const char *whom) {
    pid_t pid = (pid_t)atoi(whom);
    if (strcmp(whom, "own") == 0 && (pid = fork()) == 0)
        for (;;)
            pause();
    long result = ptrace(PTRACE_ATTACH, pid, NULL, NULL);
    printf(result < 0 ? "ERR %d\n" : "OK %d\n", result < 0 ? errno : 0);
    if (result == 0 && strcmp(whom, "own") == 0)
        kill(pid, SIGKILL);
    return result < 0;
}

static int abstract(const char *name) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path + 1, name, strlen(name));
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name));
    return connect(fd, (struct sockaddr *)&address, size) != 0;
}

/* As Dirty Pipe and Copy Fail began: a page of a file that is not ours, in a pipe that is. */
static int splice_over(const char *path) {
    int ends[2], file = open(path, O_RDONLY);
    loff_t at = 1;
    if (file < 0 || pipe(ends) != 0 || splice(file, &at, ends[1], NULL, 1, 0) != 1)
        return 1;
    return write(ends[1], "XXXX", 4) != 4;
}

static int from_memory(char **words) {
    extern char **environ;
    static char bytes[1 << 16];
    int memory = memfd_create("program", 0), file = open(words[0], O_RDONLY);
    for (ssize_t size; (size = read(file, bytes, sizeof bytes)) > 0;)
        if (write(memory, bytes, (size_t)size) != size)
            return 1;
    return fexecve(memory, words, environ);
}

static void *idle(void *unused) {
    pause();
    return unused;
}

/* Two sockets of this machine: what goes into the first waits in the second. */
static bool loop(int type, int ends[2]) {
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof here;
    int to = socket(AF_INET, type, 0);
    ends[0] = socket(AF_INET, type, 0);
    if (bind(to, (struct sockaddr *)&here, size) != 0 || getsockname(to, (struct sockaddr *)&here, &size) != 0 ||
        (type == SOCK_STREAM && listen(to, 1) != 0) || connect(ends[0], (struct sockaddr *)&here, size) != 0)
        return false;
    ends[1] = type == SOCK_STREAM ? accept(to, NULL, NULL) : to;
    if (type == SOCK_STREAM)
        close(to);
    return ends[1] >= 0;
}

/* What was sent waits as long as nobody takes it, unless there was no memory for it. */
static bool fill(int type) {
    static char bytes[60000];
    int ends[2], waiting = 0;
    if (!loop(type, ends) || send(ends[0], bytes, sizeof bytes, MSG_DONTWAIT) != sizeof bytes)
        return false;
    for (int attempt = 0; attempt < 200 && waiting < (int)sizeof bytes; attempt++)
        if (ioctl(ends[1], FIONREAD, &waiting) == 0 && waiting < (int)sizeof bytes)
            poll(NULL, 0, 1);
    return waiting >= (int)sizeof bytes;
}

/* A socket whose queue may hold as much as one may, with up to eight messages of that size that the kernel answers. */
static void ask_in_vain(int family, int type, int protocol, const struct sockaddr *to, socklen_t size, const void *question, size_t length) {
    int most = 1 << 30, fd = socket(family, type, protocol);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &most, sizeof most);
    for (int i = 0; i < 8; i++)
        sendto(fd, question, length, MSG_DONTWAIT, to, size);
}

/* A connection that nobody has accepted; what it holds is charged to nobody yet. */
static void connect_in_vain(void) {
    static char bytes[1 << 16];
    static struct sockaddr_in here;
    static int left;
    socklen_t size = sizeof here;
    int most = 1 << 30;
    if (left-- == 0) {
        int server = socket(AF_INET, SOCK_STREAM, 0);
        here = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        setsockopt(server, SOL_SOCKET, SO_RCVBUF, &most, sizeof most);
        bind(server, (struct sockaddr *)&here, size);
        getsockname(server, (struct sockaddr *)&here, &size);
        listen(server, left = 100);
    }
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    connect(fd, (struct sockaddr *)&here, size);
    for (int i = 0; i < 8 && send(fd, bytes, sizeof bytes, MSG_DONTWAIT) > 0; i++)
        ;
}

/* The kernel takes the first segment of each queue, whatever its limit says. */
static void send_in_vain(void) {
    static char bytes[1 << 20];
    int ends[2];
    if (!loop(SOCK_STREAM, ends))
        return;
    for (int i = 0; i < 2; i++)
        send(ends[i], bytes, sizeof bytes, MSG_DONTWAIT);
}

static int hoard(const char *kind, int count) {
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct rlimit files = {65536, 65536};
    setrlimit(RLIMIT_NOFILE, &files);
    static struct {
        uint32_t size; /* nlmsghdr: of a kind that needs rights, and is answered with the whole question */
        uint16_t type, flags;
        uint32_t sequence, port;
        char body[40000];
    } refused = {.size = sizeof refused, .type = 16, .flags = 5};
    static const char echo[60000] = {8};
    for (int i = 0; i < count; i++)
        if (kind[0] == 'p')
            ask_in_vain(AF_INET, SOCK_DGRAM, IPPROTO_ICMP, (struct sockaddr *)&here, sizeof here, echo, sizeof echo);
        else if (kind[0] == 'n')
            ask_in_vain(AF_NETLINK, SOCK_RAW, 0, NULL, 0, &refused, sizeof refused);
        else if (kind[0] == 'w')
            connect_in_vain();
        else
            send_in_vain();
    printf("%d\n", count);
    fflush(stdout);
    pause();
    return 0;
}

static bool one(const char *kind) {
    static char byte;
    int ends[2], fd;
    pthread_t thread;
    switch (kind[0]) {
    case 't':
        return pthread_create(&thread, NULL, idle, NULL) == 0;
    case 'i':
        return inotify_init() >= 0;
    case 'p':
        return pipe(ends) == 0 && fcntl(ends[1], F_SETPIPE_SZ, 1 << 16) >= 0;
    case 'm':
        fd = memfd_create("m", 0);
        return fd >= 0 && write(fd, &byte, 1) == 1;
    case 'd':
        return fill(SOCK_DGRAM);
    case 'q':
        return fill(SOCK_STREAM);
    case 'f':
        return open("/dev/null", O_RDONLY) >= 0;
    case 's':
        return sigqueue(getpid(), SIGRTMIN, (union sigval){0}) == 0;
    default:
        return eventfd(0, 0) >= 0;
    }
}

/* Says how many it has got, and keeps them until its input ends. */
static int many(const char *kind, int count) {
    int got = 0;
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, NULL);
    while (got < count && one(kind))
        got++;
    printf("%d\n", got);
    fflush(stdout);
    for (char byte; read(0, &byte, 1) > 0;)
        ;
    _exit(0);
}

static int forge(const char *source) {
    int on = 1, fd = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in from = {.sin_family = AF_INET}, to = {.sin_family = AF_INET, .sin_port = htons(9)};
    inet_pton(AF_INET, source, &from.sin_addr);
    inet_pton(AF_INET, "198.51.100.77", &to.sin_addr);
    setsockopt(fd, IPPROTO_IP, IP_FREEBIND, &on, sizeof on); /* bind to an address that nobody here has: needs no right */
    bool bound = bind(fd, (struct sockaddr *)&from, sizeof from) == 0;
    return !(bound && sendto(fd, "forged", 6, 0, (struct sockaddr *)&to, sizeof to) == 6);
}

/* One after the other, as programs do; those that fail do not count. */
static int hold(const char *where, int count, bool keep) {
    char address[64];
    struct sockaddr_in to = {.sin_family = AF_INET};
    struct timeval patience = {.tv_sec = 2};
    snprintf(address, sizeof address, "%s", where);
    char *port = strchr(address, ':');
    *port++ = '\0';
    to.sin_port = htons((uint16_t)atoi(port));
    inet_pton(AF_INET, address, &to.sin_addr);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    int made = 0;
    for (int i = 0; i < count; i++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience); /* holds for connect, too */
        bool connected = connect(fd, (struct sockaddr *)&to, sizeof to) == 0;
        made += connected;
        if (!connected || !keep)
            close(fd);
    }
    printf("%d\n", made);
    fflush(stdout);
    if (keep)
        pause();
    return 0;
}

static int fault(void) {
    struct rlimit core;
    getrlimit(RLIMIT_CORE, &core);
    core.rlim_cur = core.rlim_max;
    setrlimit(RLIMIT_CORE, &core);
    raise(SIGSEGV);
    return 0;
}

int main(int argc, char **argv) {
    const char *verb = argc > 1 ? argv[1] : "";
    if (strcmp(verb, "call") == 0)
        return call(argv + 2);
    if (strcmp(verb, "open") == 0)
        return open_all(argv + 2);
    if (strcmp(verb, "sockets") == 0)
        return sockets(false);
    if (strcmp(verb, "families") == 0)
        return sockets(true);
    if (strcmp(verb, "calls") == 0)
        return calls();
    if (strcmp(verb, "fault") == 0)
        return fault();
    if (strcmp(verb, "memfd") == 0)
        return from_memory(argv + 2);
    if (strcmp(verb, "connect") == 0)
        return hold(argv[2], atoi(argv[3]), true);
    if (strcmp(verb, "visit") == 0)
        return hold(argv[2], atoi(argv[3]), false);
    if (strcmp(verb, "hoard") == 0)
        return hoard(argv[2], atoi(argv[3]));
    if (argc != 3)
        return 2;
    return strcmp(verb, "foreign") == 0    ? foreign(argv[2])
           : strcmp(verb, "trace") == 0    ? trace(argv[2])
           : strcmp(verb, "abstract") == 0 ? abstract(argv[2])
           : strcmp(verb, "splice") == 0   ? splice_over(argv[2])
           : strcmp(verb, "forge") == 0    ? forge(argv[2])
                                           : many(verb, atoi(argv[2]));
}
