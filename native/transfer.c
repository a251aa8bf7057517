/* Whole files and trees over the link. A tree that is sent never follows a link below its root; one that is received is made below one
 * open folder, component by component, through no link. What is read may change meanwhile: sizes that were told are kept. */
#include "files.h"
#include "place.h"
#include "util.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Each level takes some 5 KiB of the stack, of which there are 8 MiB. The SDK takes 256 levels. */
enum { DEEPEST = 512 };

static uint8_t chunk_room[FRAME_HEADER + MAX_DATA];
static uint8_t *const chunk = chunk_room + FRAME_HEADER;

static ssize_t read_chunk(int fd, uint64_t most) {
    ssize_t n;
    do
        n = read(fd, chunk, most < MAX_DATA ? (size_t)most : MAX_DATA);
    while (n < 0 && errno == EINTR);
    return n;
}

/* O_NONBLOCK: opening a FIFO would wait for its other end. */
static int open_regular(int directory, const char *name, int flags) {
    struct stat info;
    int fd = openat(directory, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY | flags);
    if (fd < 0 || (fstat(fd, &info) == 0 && S_ISREG(info.st_mode)))
        return fd;
    close(fd);
    errno = S_ISDIR(info.st_mode) ? EISDIR : EINVAL;
    return -1;
}

/* ---- READ ---- */

void transfer_read(struct peer *peer, const struct file_request *request) {
    struct entry entry;
    char target[4097];
    AUTO_FD int fd = open_regular(AT_FDCWD, request->path, 0);
    if (fd < 0 || (request->offset && lseek(fd, (off_t)request->offset, SEEK_SET) < 0)) {
        peer_fail(peer, errno);
        return;
    }
    int error = entry_read(fd, "", request->path, true, &entry, target);
    if (error) {
        peer_fail(peer, error);
        return;
    }
    put_entry(&peer->out, &entry);
    uint64_t left = request->mode ? request->mode : UINT64_MAX;
    ssize_t n = 0;
    for (; left && (n = read_chunk(fd, left)) > 0; left -= (uint64_t)n)
        peer_send(peer, FRAME_CHUNK, chunk, (size_t)n);
    if (n < 0)
        peer_fail(peer, errno);
    else
        put_plain(&peer->out, FRAME_END);
}

/* ---- PULL ---- */

/* As many bytes as were told: zeros for what a shrinking file lacks. */
static void send_bytes(struct peer *peer, int fd, uint64_t left) {
    while (left) {
        ssize_t n = read_chunk(fd, left);
        if (n <= 0) {
            n = left < MAX_DATA ? (ssize_t)left : MAX_DATA;
            memset(chunk, 0, (size_t)n);
        }
        peer_send(peer, FRAME_CHUNK, chunk, (size_t)n);
        left -= (uint64_t)n;
    }
}

/* Fewer blocks than bytes: only then it is worth asking where they are. */
static bool is_sparse(int fd) {
    struct stat info;
    return fstat(fd, &info) == 0 && info.st_blocks < info.st_size / 512;
}

/* Where `whence` (SEEK_DATA, SEEK_HOLE) finds something from `at` on, `size` if nowhere; also what a file system without them says. */
static uint64_t seek_next(int fd, uint64_t at, uint64_t size, int whence) {
    off_t found = lseek(fd, (off_t)at, whence);
    if (found < 0)
        return errno == ENXIO || whence == SEEK_HOLE ? size : at;
    return (uint64_t)found < size ? (uint64_t)found : size;
}

static void send_hole(struct peer *peer, uint64_t size) {
    size_t mark = frame_begin(&peer->out, FRAME_HOLE);
    put_uint(&peer->out, size, 8);
    frame_end(&peer->out, mark);
    if (buffer_size(&peer->out) > MAX_DATA / 4)
        peer_flush(peer);
}

static void send_extents(struct peer *peer, int fd, uint64_t size) {
    for (uint64_t at = 0; at < size;) {
        uint64_t data = seek_next(fd, at, size, SEEK_DATA);
        if (data > at)
            send_hole(peer, data - at);
        at = data < size ? seek_next(fd, data, size, SEEK_HOLE) : size;
        if (at == data && at < size)
            at = size; /* it changes at this moment: the rest goes as it is */
        lseek(fd, (off_t)data, SEEK_SET);
        send_bytes(peer, fd, at - data);
    }
}

/* Files of /proc say that they are empty: the first chunk tells more. */
static void send_sizeless(struct peer *peer, int fd, struct entry *entry) {
    ssize_t n = read_chunk(fd, MAX_DATA);
    entry->size = n > 0 ? (uint64_t)n : 0;
    put_entry(&peer->out, entry);
    if (n > 0)
        peer_send(peer, FRAME_CHUNK, chunk, (size_t)n);
}

static void pull_file(struct peer *peer, int directory, const char *name, const char *path, int follow) {
    struct entry entry;
    char target[4097];
    AUTO_FD int fd = open_regular(directory, name, follow);
    int error = fd < 0 ? errno : entry_read(fd, "", path, true, &entry, target);
    if (error && error != ENOENT) /* gone since it was listed: then it is not part of the tree */
        peer_fail(peer, error);
    if (error)
        return;
    if (!entry.size) {
        send_sizeless(peer, fd, &entry);
        return;
    }
    put_entry(&peer->out, &entry);
    if (peer->holes && is_sparse(fd))
        send_extents(peer, fd, entry.size);
    else
        send_bytes(peer, fd, entry.size);
}

static void pull_any(struct peer *peer, int directory, const char *name, const char *path, int depth, int follow);

static void pull_children(struct peer *peer, int directory, const char *name, const char *path, int depth, int follow) {
    int fd = openat(directory, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | follow);
    DIR *listing = fd < 0 ? NULL : fdopendir(fd);
    if (!listing) {
        peer_fail(peer, errno);
        close_fd(&fd);
        return;
    }
    const struct dirent *child;
    while (!peer->failed && (child = readdir(listing))) {
        if (strcmp(child->d_name, ".") == 0 || strcmp(child->d_name, "..") == 0)
            continue;
        char *below = *path ? must_format("%s/%s", path, child->d_name) : must_copy(child->d_name);
        pull_any(peer, fd, child->d_name, below, depth + 1, O_NOFOLLOW);
        free(below);
    }
    closedir(listing);
}

/* `follow`: 0, or O_NOFOLLOW for all but a root that was asked for as what it leads to. */
static void pull_any(struct peer *peer, int directory, const char *name, const char *path, int depth, int follow) {
    struct entry entry;
    char target[4097];
    int error = entry_read(directory, name, path, !follow, &entry, target);
    if (depth > DEEPEST || strlen(path) > MAX_DATA / 2)
        error = ENAMETOOLONG;
    if (error && (error != ENOENT || !depth))
        peer_fail(peer, error);
    if (error)
        return;
    if (entry.kind == 'f') {
        pull_file(peer, directory, name, path, follow);
        return;
    }
    put_entry(&peer->out, &entry);
    if (entry.kind == 'd')
        pull_children(peer, directory, name, path, depth, follow);
    else if (buffer_size(&peer->out) > MAX_DATA)
        peer_flush(peer);
}

void transfer_pull(struct peer *peer, const struct file_request *request) {
    peer->holes = request->flags & 2;
    pull_any(peer, AT_FDCWD, request->path, "", 0, request->flags & 1 ? 0 : O_NOFOLLOW);
    if (!peer->failed)
        put_plain(&peer->out, FRAME_END);
}

/* ---- WRITE ---- */

static int begin_target(struct placing *placing, const struct file_request *request) {
    char *name;
    int error = request->flags & 1 ? make_parents(request->path) : 0;
    if (error)
        return error;
    int directory = open_target_folder(request->path, &name);
    return directory < 0 ? errno : place_begin(placing, directory, name);
}

void transfer_write(struct peer *peer, const struct file_request *request) {
    struct placing placing = {.directory = -1, .fd = -1};
    struct frame frame;
    int error = begin_target(&placing, request);
    if (error)
        peer_fail(peer, error);
    for (peer_receive(peer, &frame); frame.type == FRAME_CHUNK; peer_receive(peer, &frame))
        if (!peer->failed && !write_all(placing.fd, frame.payload, frame.size)) {
            error = errno;
            place_abort(&placing); /* before the client hears of it */
            peer_fail(peer, error);
        }
    if (frame.type != FRAME_END || peer->failed)
        place_abort(&placing);
    else if ((error = place_end(&placing, request->mode, 0)))
        peer_fail(peer, error);
    if (frame.type != FRAME_END)
        _exit(1);
}

/* ---- PUSH ---- */

struct pushing {
    const struct file_request *request;
    int root;               /* -1: not made yet, or the root is a file */
    int parent;             /* the folder of the last entry: most entries have the same */
    char *parent_path;
    struct placing placing;
    uint64_t left;          /* bytes that the current file still gets */
    uint32_t mode;
    uint64_t mtime_ns;
    bool rooted;
};

static bool is_component(const char *name, size_t size) {
    return size && !(size == 1 && name[0] == '.') && !(size == 2 && name[0] == '.' && name[1] == '.');
}

static bool is_sound(const char *path) {
    for (;; path++) {
        size_t part = strcspn(path, "/");
        if (!is_component(path, part))
            return false;
        path += part;
        if (!*path)
            return true;
    }
}

/* Down from the root, through no link. */
static int open_below(int root, const char *path, size_t size) {
    int at = fcntl(root, F_DUPFD_CLOEXEC, 3);
    for (size_t done = 0; at >= 0 && done < size;) {
        size_t part = strcspn(path + done, "/");
        char *name = must_format("%.*s", (int)part, path + done);
        int next = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        free(name);
        close_fd(&at);
        at = next;
        done += part + 1;
    }
    return at;
}

/* Opens the entry's parent, or keeps it; `name` becomes the last component. 0 or an errno. */
static int go_to_parent(struct pushing *pushing, const char *path, const char **name) {
    const char *slash = strrchr(path, '/');
    size_t size = slash ? (size_t)(slash - path) : 0;
    *name = slash ? slash + 1 : path;
    if (!is_sound(path))
        return EINVAL;
    if (pushing->parent >= 0 && strlen(pushing->parent_path) == size && strncmp(pushing->parent_path, path, size) == 0)
        return 0;
    close_fd(&pushing->parent);
    free(pushing->parent_path);
    pushing->parent_path = must_format("%.*s", (int)size, path);
    pushing->parent = open_below(pushing->root, path, size);
    return pushing->parent < 0 ? errno : 0;
}

static int push_folder(int directory, const char *name, uint32_t mode) {
    struct stat info;
    /* Who is not root could put nothing into a folder that he may not write to. */
    mode_t made = (mode & 07777) | (geteuid() ? 0700 : 0);
    if (mkdirat(directory, name, 0700) < 0) {
        if (errno != EEXIST)
            return errno;
        if (fstatat(directory, name, &info, AT_SYMLINK_NOFOLLOW) < 0)
            return errno;
        return S_ISDIR(info.st_mode) ? 0 : ENOTDIR; /* merged into: it keeps its mode */
    }
    return fchmodat(directory, name, made, 0) < 0 ? errno : 0;
}

static int push_link(int directory, const char *name, const char *target) {
    if (symlinkat(target, directory, name) == 0)
        return 0;
    if (errno != EEXIST || unlinkat(directory, name, 0) < 0)
        return errno;
    return symlinkat(target, directory, name) < 0 ? errno : 0;
}

static int finish_file(struct pushing *pushing) {
    return pushing->placing.fd < 0 ? 0 : place_end(&pushing->placing, pushing->mode, pushing->mtime_ns);
}

static void remember_file(struct pushing *pushing, const struct entry *entry) {
    pushing->left = entry->size;
    pushing->mode = entry->mode & 07777 ? entry->mode & 07777 : 0644;
    pushing->mtime_ns = entry->mtime_ns;
}

static int push_root(struct pushing *pushing, const struct entry *entry) {
    const struct file_request *request = pushing->request;
    int error = request->flags & 1 ? make_parents(request->path) : 0;
    if (*entry->path)
        return EINVAL;
    pushing->rooted = true;
    remember_file(pushing, entry);
    if (error)
        return error;
    if (entry->kind == 'f')
        return begin_target(&pushing->placing, request);
    if (entry->kind == 'l')
        return push_link(AT_FDCWD, request->path, entry->target);
    if (entry->kind != 'd')
        return EINVAL;
    error = make_folder(request->path, (entry->mode & 07777) | (geteuid() ? 0700 : 0));
    if (error && error != EEXIST)
        return error;
    pushing->root = open(request->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return pushing->root < 0 ? errno : 0;
}

static int push_entry(struct pushing *pushing, const struct entry *entry) {
    const char *name;
    int error = pushing->left ? EINVAL : finish_file(pushing);
    if (error)
        return error;
    if (!pushing->rooted)
        return push_root(pushing, entry);
    if (pushing->root < 0)
        return EINVAL; /* a file has nothing below it */
    error = go_to_parent(pushing, entry->path, &name);
    if (error)
        return error;
    if (entry->kind == 'd')
        return push_folder(pushing->parent, name, entry->mode);
    if (entry->kind == 'l')
        return push_link(pushing->parent, name, entry->target);
    if (entry->kind != 'f')
        return EINVAL;
    remember_file(pushing, entry);
    return place_begin(&pushing->placing, fcntl(pushing->parent, F_DUPFD_CLOEXEC, 3), must_copy(name));
}

static int push_chunk(struct pushing *pushing, const struct frame *frame) {
    if (pushing->placing.fd < 0 || frame->size > pushing->left)
        return EINVAL;
    pushing->left -= frame->size;
    return write_all(pushing->placing.fd, frame->payload, frame->size) ? 0 : errno;
}

/* What is skipped reads as zeros, and the file is as long as if it had been written. */
static int push_hole(struct pushing *pushing, const struct frame *frame) {
    struct cursor cursor = cursor_of(frame);
    uint64_t size = take_uint(&cursor, 8);
    if (!cursor_done(&cursor) || pushing->placing.fd < 0 || size > pushing->left || size > INT64_MAX)
        return EINVAL;
    pushing->left -= size;
    off_t end = lseek(pushing->placing.fd, (off_t)size, SEEK_CUR);
    return end < 0 || ftruncate(pushing->placing.fd, end) < 0 ? errno : 0;
}

static int push_frame(struct pushing *pushing, const struct frame *frame) {
    struct entry entry;
    if (frame->type == FRAME_CHUNK)
        return push_chunk(pushing, frame);
    if (frame->type == FRAME_HOLE)
        return push_hole(pushing, frame);
    return decode_entry(frame, &entry) ? push_entry(pushing, &entry) : EINVAL;
}

static bool belongs_to_tree(const struct frame *frame) {
    return frame->type == FRAME_CHUNK || frame->type == FRAME_ENTRY || frame->type == FRAME_HOLE;
}

void transfer_push(struct peer *peer, const struct file_request *request) {
    struct pushing pushing = {.request = request, .root = -1, .parent = -1, .placing = {.directory = -1, .fd = -1}};
    struct frame frame;
    for (peer_receive(peer, &frame); belongs_to_tree(&frame); peer_receive(peer, &frame)) {
        int error = peer->failed ? 0 : push_frame(&pushing, &frame);
        if (!error)
            continue;
        place_abort(&pushing.placing); /* before the client hears of it */
        peer_fail(peer, error);
    }
    bool whole = frame.type == FRAME_END && !peer->failed;
    int error = !whole ? 0 : pushing.left || !pushing.rooted ? EINVAL : finish_file(&pushing);
    if (error)
        peer_fail(peer, error);
    place_abort(&pushing.placing);
    if (frame.type != FRAME_END)
        _exit(1);
}
