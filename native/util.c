/* Small things that every part of the program uses: descriptors, allocation, whole reads and writes, clocks, numbers.
 * Nothing here knows about sandboxes. The allocation functions end the process; nothing else here does. */
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

void close_fd(int *fd) {
    int saved = errno; /* it runs while a block is left, often with an error on its way out */
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
    errno = saved;
}

void close_from(int first) {
    enum { MANY = 65536 };
    if (syscall(SYS_close_range, first, INT_MAX, 0) == 0) /* not ~0U, which gVisor takes for -1 */
        return;
    for (int fd = first; fd < MANY; fd++) /* kernels before 5.9 */
        close(fd);
}

void begin_child(void) {
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
}

static _Noreturn void no_memory(void) {
    static const char text[] = "openmodal-agent: out of memory\n";
    if (write(STDERR_FILENO, text, sizeof text - 1) < 0)
        _exit(125);
    _exit(125);
}

void *must_alloc(size_t size) {
    return must_grow(NULL, size);
}

void *must_grow(void *old, size_t size) {
    void *memory = realloc(old, size ? size : 1);
    if (!memory)
        no_memory();
    return memory;
}

char *must_copy(const char *text) {
    size_t size = strlen(text) + 1;
    return memcpy(must_alloc(size), text, size);
}

char *must_format(const char *format, ...) {
    va_list values;
    char *text = NULL;
    va_start(values, format);
    int size = vasprintf(&text, format, values);
    va_end(values);
    if (size < 0)
        no_memory();
    return text;
}

const char *path_from(const char *folder, const char *path) {
    bool in_root = !folder || !*folder || strcmp(folder, "/") == 0;
    return *path == '/' ? path : must_format("%s/%s", in_root ? "" : folder, path);
}

bool write_all(int fd, const void *bytes, size_t count) {
    for (const char *at = bytes; count;) {
        ssize_t n = write(fd, at, count);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return false;
        at += n;
        count -= (size_t)n;
    }
    return true;
}

int copy_all(int from, int to) {
    static char bytes[256 << 10];
    for (;;) {
        ssize_t n = read(from, bytes, sizeof bytes);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? errno : 0;
        if (!write_all(to, bytes, (size_t)n))
            return errno;
    }
}

bool read_all(int fd, void *bytes, size_t count) {
    for (char *at = bytes; count;) {
        ssize_t n = read(fd, at, count);
        if (n < 0 && errno == EINTR)
            continue;
        if (n == 0)
            errno = 0;
        if (n <= 0)
            return false;
        at += n;
        count -= (size_t)n;
    }
    return true;
}

bool open_saying(int pair[2]) {
    return pipe2(pair, O_CLOEXEC | O_NONBLOCK) == 0;
}

void read_saying(int fd, char *text, size_t room) {
    ssize_t size = read(fd, text, room - 1);
    text[size > 0 ? size : 0] = '\0';
    for (char *end = text + strlen(text); end > text && end[-1] == '\n';)
        *--end = '\0';
    for (char *at = text; (at = strchr(at, '\n'));)
        *at = ' ';
    if (*text == '\0')
        snprintf(text, room, "it does not say why");
}

/* Grows as bytes come: the size that a file claims proves nothing (files of /proc claim 0). */
static char *read_whole(int fd, size_t limit, size_t *length) {
    size_t room = 4096, size = 0;
    char *text = must_alloc(room);
    for (;;) {
        ssize_t n = read(fd, text + size, room - size - 1);
        if (n < 0 && errno == EINTR)
            continue;
        if (n == 0) {
            text[size] = 0;
            if (length)
                *length = size;
            return text;
        }
        size += n > 0 ? (size_t)n : 0;
        if (n < 0 || size > limit)
            break;
        if (room - size < 2)
            text = must_grow(text, room *= 4);
    }
    errno = size > limit ? EFBIG : errno;
    int why = errno;
    free(text);
    errno = why;
    return NULL;
}

char *read_file(const char *path, size_t limit, size_t *length) {
    /* O_NONBLOCK: a FIFO in the place of a file must not hold us. */
    AUTO_FD int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
    return fd < 0 ? NULL : read_whole(fd, limit, length);
}

unsigned socket_address(const char *path, struct sockaddr_un *address) {
    size_t size = strlen(path);
    *address = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (size >= sizeof address->sun_path) {
        errno = ENAMETOOLONG;
        return 0;
    }
    memcpy(address->sun_path, path, size);
    if (*path != '@')
        return sizeof *address;
    *address->sun_path = 0;
    return (unsigned)(offsetof(struct sockaddr_un, sun_path) + size); /* unix(7): the length belongs to the name */
}

uint64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

uint64_t random_number(void) {
    uint64_t number;
    if (getrandom(&number, sizeof number, GRND_NONBLOCK) != sizeof number)
        number = now_ms() << 20 ^ (uint64_t)getpid();
    return number;
}

uint64_t unix_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

bool parse_u64(const char *text, uint64_t *value) {
    uint64_t sum = 0;
    if (!*text)
        return false;
    for (; *text; text++) {
        unsigned digit = (unsigned)(*text - '0');
        if (digit > 9 || __builtin_mul_overflow(sum, 10, &sum) || __builtin_add_overflow(sum, digit, &sum))
            return false;
    }
    *value = sum;
    return true;
}

/* Not every file system (gVisor's, older overlays) makes files without a name. */
int open_nameless(const char *folder) {
    int fd = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd >= 0)
        return fd;
    char *name = must_format("%s/.openmodal-XXXXXX", folder);
    fd = mkostemp(name, O_CLOEXEC);
    int why = errno;
    if (fd >= 0)
        unlink(name);
    free(name);
    errno = why;
    return fd;
}

int open_namespace(pid_t process, const char *kind) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/ns/%s", (int)process, kind);
    return open(path, O_RDONLY | O_CLOEXEC);
}
