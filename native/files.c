/* The file worker: one process per request, on a blocking link that is its own while it lives. It may hang, be killed or run
 * out of memory; the agent then closes that one link. */
#include "files.h"
#include "place.h"
#include "state.h"
#include "users.h"
#include "util.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { LINK_FD = 3 };

/* ---- the link ---- */

static void peer_write(struct peer *peer, const void *bytes, size_t size) {
    if (!write_all(peer->fd, bytes, size))
        _exit(1);
}

void peer_flush(struct peer *peer) {
    peer_write(peer, buffer_at(&peer->out), buffer_size(&peer->out));
    buffer_consume(&peer->out, buffer_size(&peer->out));
}

void peer_send(struct peer *peer, uint8_t type, uint8_t *bytes, size_t size) {
    uint8_t *frame = bytes - FRAME_HEADER;
    write_header(frame, type, size);
    if (size > MAX_DATA / 16) {
        if (buffer_size(&peer->out))
            peer_flush(peer);
        peer_write(peer, frame, FRAME_HEADER + size);
        return;
    }
    buffer_add(&peer->out, frame, FRAME_HEADER + size); /* many small files make few big writes */
    if (buffer_size(&peer->out) > MAX_DATA / 4)
        peer_flush(peer);
}

/* Exactly so many bytes: what lies behind END belongs to the agent. False at the end of the link. */
static bool peer_read(struct peer *peer, size_t size) {
    size_t early = size < peer->early_size ? size : peer->early_size;
    uint8_t *at = buffer_room(&peer->in, size);
    memcpy(at, peer->early, early);
    peer->early += early;
    peer->early_size -= early;
    peer->in.end += size;
    return early == size || read_all(peer->fd, at + early, size - early);
}

/* A link that ends, or something that is no frame, is handed out as type 0, so that what is temporary can be removed. */
void peer_receive(struct peer *peer, struct frame *frame) {
    static uint8_t broken[4] = {0};
    peer->in.start = peer->in.end = 0; /* keeps its memory, unlike buffer_consume() */
    *frame = (struct frame){.payload = broken};
    if (!peer_read(peer, 4))
        return;
    enum frame_found found = frame_peek(buffer_at(&peer->in), 4, frame);
    size_t length = 0;
    if (found == FRAME_MORE)
        memcpy(&length, buffer_at(&peer->in), 4); /* little-endian, as every machine this is built for */
    if (length && peer_read(peer, length))
        frame_peek(buffer_at(&peer->in), 4 + length, frame);
}

static void peer_refuse(struct peer *peer, const char *user, const char *why) {
    char sentence[512];
    snprintf(sentence, sizeof sentence, "user '%.200s' %s", user, why);
    put_error(&peer->out, ERROR_INVALID, sentence);
    peer_flush(peer);
    peer->failed = true;
}

void peer_fail(struct peer *peer, int error) {
    char sentence[512];
    if (peer->failed)
        return;
    snprintf(sentence, sizeof sentence, "%.400s: %s", peer->path, strerror(error));
    put_error(&peer->out, ERROR_ERRNO + (uint32_t)error, sentence);
    peer_flush(peer);
    peer->failed = true;
}

/* ---- facts ---- */

static uint8_t kind_of(mode_t mode) {
    return S_ISREG(mode) ? 'f' : S_ISDIR(mode) ? 'd' : S_ISLNK(mode) ? 'l' : 'o';
}

int entry_read(int directory, const char *name, const char *path, bool follow, struct entry *entry, char target[4097]) {
    struct stat info;
    int flags = *name ? (follow ? 0 : AT_SYMLINK_NOFOLLOW) : AT_EMPTY_PATH;
    if (fstatat(directory, name, &info, flags) < 0)
        return errno;
    ssize_t size = S_ISLNK(info.st_mode) ? readlinkat(directory, name, target, 4096) : 0;
    if (size < 0)
        return errno;
    target[size] = 0;
    uint64_t mtime = info.st_mtim.tv_sec < 0 ? 0 : (uint64_t)info.st_mtim.tv_sec * 1000000000 + (uint64_t)info.st_mtim.tv_nsec;
    *entry = (struct entry){.kind = kind_of(info.st_mode), .mode = info.st_mode & 07777, .uid = info.st_uid, .gid = info.st_gid,
                            .size = (uint64_t)info.st_size, .mtime_ns = mtime, .path = path, .target = target};
    return 0;
}

static void do_stat(struct peer *peer, const struct file_request *request) {
    struct entry entry;
    char target[4097];
    int error = entry_read(AT_FDCWD, request->path, request->path, request->flags & 1, &entry, target);
    if (error)
        peer_fail(peer, error);
    else
        put_entry(&peer->out, &entry);
}

static void do_list(struct peer *peer, const struct file_request *request) {
    struct entry entry;
    char target[4097];
    int fd = open(request->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *listing = fd < 0 ? NULL : fdopendir(fd);
    if (!listing) {
        peer_fail(peer, errno);
        close_fd(&fd);
        return;
    }
    const struct dirent *child;
    while ((child = readdir(listing))) {
        if (strcmp(child->d_name, ".") == 0 || strcmp(child->d_name, "..") == 0)
            continue;
        if (entry_read(fd, child->d_name, child->d_name, false, &entry, target) == 0) /* or it is gone already */
            put_entry(&peer->out, &entry);
        if (buffer_size(&peer->out) > MAX_DATA / 4)
            peer_flush(peer);
    }
    closedir(listing);
    put_plain(&peer->out, FRAME_END);
}

/* ---- whose files ---- */

/* As for commands: without a user asked for nothing is changed at all. Afterwards the kernel decides what may be done. */
static bool become(const char *spec, const char **why) {
    struct user user;
    if (!*spec)
        spec = agent.config->user ? agent.config->user : "";
    bool is_root = geteuid() == 0 && getegid() == 0 && (strcmp(spec, "root") == 0 || strcmp(spec, "0") == 0);
    if (!*spec || is_root)
        return true;
    if (!user_look_up(spec, &user, why))
        return false;
    *why = "cannot be changed to: the sandbox has no such id, or no right to change it";
    if (geteuid() != user.uid &&
        (setgroups(user.group_count, user.groups) < 0 || setresgid(user.gid, user.gid, user.gid) < 0 ||
         setresuid(user.uid, user.uid, user.uid) < 0))
        return false;
    prctl(PR_SET_DUMPABLE, 0); /* the change may have made us the user's to look into, and the link is not for his eyes */
    return true;
}

/* The owner's name or number; a group only if one is named. */
static int do_chown(struct peer *peer, const struct file_request *request) {
    struct user user;
    const char *why;
    if (!user_look_up(request->second, &user, &why)) {
        peer_refuse(peer, request->second, why);
        return 0;
    }
    gid_t gid = strchr(request->second, ':') ? user.gid : (gid_t)-1;
    return chown(request->path, user.uid, gid) < 0 ? errno : 0;
}

/* ---- changes ---- */

static int do_mkdir(const struct file_request *request) {
    struct stat info;
    int error = request->flags & 1 ? make_parents(request->path) : 0;
    if (!error)
        error = make_folder(request->path, request->mode ? request->mode & 07777 : 0755);
    if (error == EEXIST && request->flags & 1 && stat(request->path, &info) == 0 && S_ISDIR(info.st_mode))
        return 0;
    return error;
}

static int remove_below(int directory, const char *name);

static int remove_children(int directory, const char *name) {
    int error = 0, fd = openat(directory, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *listing = fd < 0 ? NULL : fdopendir(fd);
    if (!listing) {
        error = errno;
        close_fd(&fd);
        return error;
    }
    const struct dirent *child;
    while (!error && (child = readdir(listing)))
        if (strcmp(child->d_name, ".") != 0 && strcmp(child->d_name, "..") != 0)
            error = remove_below(fd, child->d_name);
    closedir(listing);
    return error;
}

static int remove_below(int directory, const char *name) {
    if (unlinkat(directory, name, 0) == 0 || errno == ENOENT)
        return 0;
    if (errno != EISDIR && errno != EPERM)
        return errno;
    if (unlinkat(directory, name, AT_REMOVEDIR) == 0 || errno == ENOENT)
        return 0;
    if (errno != ENOTEMPTY && errno != EEXIST)
        return errno;
    int error = remove_children(directory, name);
    if (error)
        return error;
    return unlinkat(directory, name, AT_REMOVEDIR) < 0 && errno != ENOENT ? errno : 0;
}

static bool is_root(const char *path) {
    struct stat root, info;
    return stat("/", &root) == 0 && lstat(path, &info) == 0 && root.st_dev == info.st_dev && root.st_ino == info.st_ino;
}

static int do_remove(const struct file_request *request) {
    struct stat info;
    if (lstat(request->path, &info) < 0)
        return errno;
    if (is_root(request->path))
        return EBUSY; /* a slip would empty the whole sandbox before it failed */
    if (request->flags & 1)
        return remove_below(AT_FDCWD, request->path);
    return (S_ISDIR(info.st_mode) ? rmdir(request->path) : unlink(request->path)) < 0 ? errno : 0;
}

/* ---- serving ---- */

bool files_receives(const struct frame *request) {
    return request->size && (request->payload[0] == FILE_WRITE || request->payload[0] == FILE_PUSH);
}

static void change(struct peer *peer, int error) {
    if (error)
        peer_fail(peer, error);
}

static bool serve(struct peer *peer, const struct file_request *request) {
    switch (request->operation) {
    case FILE_STAT: do_stat(peer, request); return false;
    case FILE_LIST: do_list(peer, request); return false;
    case FILE_READ: transfer_read(peer, request); return false;
    case FILE_PULL: transfer_pull(peer, request); return false;
    case FILE_WATCH: watch_run(peer, request); return false;
    case FILE_MKDIR: change(peer, do_mkdir(request)); break;
    case FILE_REMOVE: change(peer, do_remove(request)); break;
    case FILE_RENAME: change(peer, rename(request->path, request->second) < 0 ? errno : 0); break;
    case FILE_CHMOD: change(peer, chmod(request->path, request->mode & 07777) < 0 ? errno : 0); break;
    case FILE_CHOWN: change(peer, do_chown(peer, request)); break;
    case FILE_WRITE: transfer_write(peer, request); break;
    case FILE_PUSH: transfer_push(peer, request); break;
    case FILE_HOLES: break; /* this agent takes them in PUSH */
    default: put_error(&peer->out, ERROR_UNSUPPORTED, "no such file operation"); return false;
    }
    return !peer->failed;
}

static bool find_paths(struct file_request *request) {
    if (!*request->path || (request->operation == FILE_RENAME && !*request->second))
        return false;
    request->path = path_from(agent.config->workdir, request->path);
    if (request->operation == FILE_RENAME)
        request->second = path_from(agent.config->workdir, request->second);
    return true;
}

/* Only the link stays: a worker must not keep other clients' links or commands' pipes open. */
static void keep_only(int link) {
    if (link != LINK_FD)
        dup2(link, LINK_FD);
    close_from(LINK_FD + 1);
    fcntl(LINK_FD, F_SETFL, 0);
}

static void skip_to_end(struct peer *peer) {
    struct frame frame;
    do
        peer_receive(peer, &frame);
    while (frame.type == FRAME_CHUNK || frame.type == FRAME_ENTRY || frame.type == FRAME_HOLE);
    if (frame.type != FRAME_END)
        _exit(1);
}

_Noreturn void files_serve(int link, const struct frame *frame, uint8_t *early, size_t early_size) {
    struct file_request request;
    struct peer peer = {.fd = LINK_FD, .early = early, .early_size = early_size};
    bool receives = files_receives(frame);
    keep_only(link);
    if (!decode_file(frame, &request)) {
        put_error(&peer.out, ERROR_PROTOCOL, "this is no FILE frame of protocol 1");
        peer_flush(&peer);
        _exit(1);
    }
    bool found = find_paths(&request);
    peer.path = request.path;
    if (!found) {
        put_error(&peer.out, ERROR_INVALID, "a path of the sandbox is not empty");
        peer_flush(&peer);
        if (receives)
            skip_to_end(&peer);
        _exit(0);
    }
    const char *why;
    if (!become(request.user, &why)) {
        peer_refuse(&peer, *request.user ? request.user : agent.config->user, why);
        if (receives)
            skip_to_end(&peer);
        _exit(0);
    }
    if (serve(&peer, &request))
        put_plain(&peer.out, FRAME_OK);
    peer_flush(&peer);
    _exit(0);
}
