/* Small things that every part of the program uses. No allocation that can fail unseen, no locale, no stdio in hot paths. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define OPENMODAL_PROTOCOL 1
#ifndef OPENMODAL_VERSION
#define OPENMODAL_VERSION "0.0.0"
#endif

/* A descriptor that closes itself at the end of its block. */
int open_namespace(pid_t process, const char *kind); /* "net", "mnt", "user": -1 with errno */
int open_nameless(const char *folder); /* a file of ours without a name, to be read and written; -1 with errno */
#define AUTO_FD __attribute__((cleanup(close_fd)))
void close_fd(int *fd);

/* Close every descriptor from `first` on. */
void close_from(int first);

/* In a child that goes on with another program: begin with the signals of a new process, and end with the parent. */
void begin_child(void);

/* Like malloc/realloc/strdup, but end the process when there is no memory: every caller would do just that. */
void *must_alloc(size_t size);
void *must_grow(void *old, size_t size);
char *must_copy(const char *text);
char *must_format(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The path as it is, or below `folder` (NULL or "": the root) if it is relative. */
const char *path_from(const char *folder, const char *path);

/* Write or read all of it; false with errno set on error or early end of file (errno 0). EINTR is handled. */
bool write_all(int fd, const void *bytes, size_t count);

/* Copies until the source's end: 0, else errno. */
int copy_all(int from, int to);
bool read_all(int fd, void *bytes, size_t count);


/* A pipe for what a program says of its failure. It never blocks: what does not fit is dropped and not waited for. */
bool open_saying(int pair[2]);

/* What has come through it by now, on one line, cut off to fit; a word for it if nothing has. */
void read_saying(int fd, char *text, size_t room);

/* A whole file of at most `limit` bytes, NUL-terminated; NULL with errno set (EFBIG when longer). Links are not followed at the end. */
char *read_file(const char *path, size_t limit, size_t *length);

/* The address of a unix socket: a path, or "@name" for one of the network namespace, which nobody can take from who listens there.
 * Its length, or 0 with errno when it is too long. */
struct sockaddr_un;
unsigned socket_address(const char *path, struct sockaddr_un *address);

uint64_t now_ms(void);       /* CLOCK_BOOTTIME: a suspended machine's time counts */
uint64_t random_number(void);
uint64_t unix_us(void);      /* CLOCK_REALTIME, for records only */

/* A whole decimal number and nothing else; false otherwise, also on overflow. */
bool parse_u64(const char *text, uint64_t *value);
