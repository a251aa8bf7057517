/* What changes in a folder, as inotify(7) tells it, for the file operation WATCH.
 *
 * It runs in a file worker, with the rights of the user who asked. Nothing here is kept without
 * a bound: while the client does not read, the worker stands still in its write, the kernel's
 * queue fills, and what is lost then is told as an overflow. It ends with its link. */
#include "files.h"
#include "util.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    MOST_FOLDERS = 65536,
    MOST_NUMBERS = 1 << 22, /* the kernel counts watches up; a slot for each is kept */
    PAIR_MS = 20,           /* the two halves of a move come together */
    CHANGES = IN_CREATE | IN_DELETE | IN_MODIFY | IN_ATTRIB | IN_MOVED_FROM | IN_MOVED_TO,
    ITS_END = IN_DELETE_SELF | IN_MOVE_SELF,
};

struct names {
    char **item;
    size_t count, room;
};

struct watcher {
    struct peer *peer;
    const char *root;
    int inotify;
    bool recursive, over;
    /* By the kernel's number: its path below the root, "" for that itself; NULL: not watched. */
    char **folder;
    size_t room, folders;
    char *left; /* what was moved away, while it is not known where to; NULL: nothing */
    bool left_folder;
    uint32_t cookie;
};

static void tell(struct watcher *watcher, enum file_event what, bool is_folder, const char *path, const char *target) {
    put_event(&watcher->peer->out, what, is_folder, path, target);
}

/* ---- names and numbers ---- */

static char *below(const char *folder, const char *name) {
    return *folder && *name ? must_format("%s/%s", folder, name) : must_copy(*folder ? folder : name);
}

static void push(struct names *names, char *name) {
    if (names->count == names->room) {
        names->room = names->room ? names->room * 2 : 64;
        names->item = must_grow(names->item, names->room * sizeof *names->item);
    }
    names->item[names->count++] = name;
}

static bool lies_in(const char *path, const char *folder) {
    size_t length = strlen(folder);
    return strncmp(path, folder, length) == 0 && (path[length] == '/' || path[length] == '\0');
}

static void forget(struct watcher *watcher, size_t number) {
    if (number >= watcher->room || !watcher->folder[number])
        return;
    free(watcher->folder[number]);
    watcher->folder[number] = NULL;
    watcher->folders--;
}

static bool keep(struct watcher *watcher, size_t number, const char *path) {
    if (number >= MOST_NUMBERS || watcher->folders >= MOST_FOLDERS) {
        inotify_rm_watch(watcher->inotify, (int)number);
        errno = ENOSPC;
        return false;
    }
    if (number >= watcher->room) {
        size_t room = number * 2 + 64;
        watcher->folder = must_grow(watcher->folder, room * sizeof *watcher->folder);
        memset(watcher->folder + watcher->room, 0, (room - watcher->room) * sizeof *watcher->folder);
        watcher->room = room;
    }
    forget(watcher, number);
    watcher->folder[number] = must_copy(path);
    watcher->folders++;
    return true;
}

/* ---- folders ---- */

static bool watch_one(struct watcher *watcher, const char *path) {
    char *whole = must_format("%s%s%s", watcher->root, *path ? "/" : "", path);
    uint32_t mask = CHANGES | (*path ? IN_ONLYDIR | IN_DONT_FOLLOW : ITS_END);
    /* gVisor does not ask whether it may be read. */
    int number = access(whole, R_OK) == 0 ? inotify_add_watch(watcher->inotify, whole, mask) : -1;
    free(whole);
    return number >= 0 && keep(watcher, (size_t)number, path);
}

/* The folders in a folder are pushed. `news`: what is in it is told, for it came while nobody
 * watched. */
static void look_into(struct watcher *watcher, const char *path, bool news, struct names *folders) {
    char *whole = must_format("%s%s%s", watcher->root, *path ? "/" : "", path);
    DIR *listing = opendir(whole);
    struct stat info;
    for (struct dirent *entry; listing && (entry = readdir(listing));) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0 ||
            fstatat(dirfd(listing), entry->d_name, &info, AT_SYMLINK_NOFOLLOW) < 0)
            continue;
        char *child = below(path, entry->d_name);
        bool is_folder = S_ISDIR(info.st_mode);
        if (news)
            tell(watcher, EVENT_CREATED, is_folder, child, "");
        if (is_folder)
            push(folders, child);
        else
            free(child);
    }
    if (listing)
        closedir(listing);
    free(whole);
}

/* A folder and all below it. Those that are gone already, or closed to the user, are left out.
 * False: there are too many. */
static bool watch_tree(struct watcher *watcher, const char *path, bool news) {
    struct names folders = {0};
    bool all = true;
    push(&folders, must_copy(path));
    while (folders.count) {
        char *folder = folders.item[--folders.count];
        bool watched = watch_one(watcher, folder);
        all &= watched || errno == ENOENT || errno == ENOTDIR || errno == EACCES;
        if (watched)
            look_into(watcher, folder, news, &folders);
        free(folder);
        if (buffer_size(&watcher->peer->out) > MAX_DATA / 4)
            peer_flush(watcher->peer);
    }
    free(folders.item);
    return all;
}

static void watch_new(struct watcher *watcher, const char *path) {
    if (watcher->recursive && !watch_tree(watcher, path, true))
        tell(watcher, EVENT_OVERFLOW, false, path, "");
}

static void unwatch_tree(struct watcher *watcher, const char *path) {
    for (size_t number = 0; number < watcher->room; number++)
        if (watcher->folder[number] && lies_in(watcher->folder[number], path)) {
            inotify_rm_watch(watcher->inotify, (int)number);
            forget(watcher, number);
        }
}

static void rename_tree(struct watcher *watcher, const char *from, const char *to) {
    for (size_t number = 0; number < watcher->room; number++)
        if (watcher->folder[number] && lies_in(watcher->folder[number], from)) {
            char *path = must_format("%s%s", to, watcher->folder[number] + strlen(from));
            free(watcher->folder[number]);
            watcher->folder[number] = path;
        }
}

/* ---- events ---- */

/* What was moved away has not come to another place that is watched. */
static void give_up_left(struct watcher *watcher) {
    if (!watcher->left)
        return;
    tell(watcher, EVENT_DELETED, watcher->left_folder, watcher->left, "");
    if (watcher->left_folder)
        unwatch_tree(watcher, watcher->left);
    free(watcher->left);
    watcher->left = NULL;
}

static void arrived(struct watcher *watcher, const struct inotify_event *event, const char *path) {
    bool is_folder = event->mask & IN_ISDIR;
    if (!watcher->left || watcher->cookie != event->cookie) {
        give_up_left(watcher);
        tell(watcher, EVENT_CREATED, is_folder, path, "");
        if (is_folder)
            watch_new(watcher, path);
        return;
    }
    tell(watcher, EVENT_MOVED, is_folder, watcher->left, path);
    if (is_folder)
        rename_tree(watcher, watcher->left, path);
    free(watcher->left);
    watcher->left = NULL;
}

static void hear(struct watcher *watcher, const struct inotify_event *event, const char *path) {
    bool is_folder = event->mask & IN_ISDIR;
    if (event->mask & IN_MOVED_TO) {
        arrived(watcher, event, path);
        return;
    }
    give_up_left(watcher);
    if (event->mask & IN_MOVED_FROM) {
        watcher->left = must_copy(path);
        watcher->left_folder = is_folder;
        watcher->cookie = event->cookie;
    } else if (event->mask & IN_CREATE) {
        tell(watcher, EVENT_CREATED, is_folder, path, "");
        if (is_folder)
            watch_new(watcher, path);
    } else if (event->mask & IN_DELETE)
        tell(watcher, EVENT_DELETED, is_folder, path, "");
    else
        tell(watcher, EVENT_MODIFIED, is_folder, path, "");
}

/* Of the root itself. Its last name is gone while it is still open: that comes as a change of
 * its attributes. Other changes are told as such, even if it is gone when they are read. */
static void hear_root(struct watcher *watcher, const struct inotify_event *event) {
    struct stat info;
    watcher->over = event->mask & (ITS_END | IN_IGNORED) ||
                    (event->mask & IN_ATTRIB && lstat(watcher->root, &info) < 0 && errno == ENOENT);
    give_up_left(watcher);
    tell(watcher, watcher->over ? EVENT_DELETED : EVENT_MODIFIED, event->mask & IN_ISDIR, "", "");
}

static void sort(struct watcher *watcher, const struct inotify_event *event) {
    size_t number = (size_t)event->wd;
    if (event->mask & IN_Q_OVERFLOW)
        tell(watcher, EVENT_OVERFLOW, false, "", "");
    if (event->wd < 0 || number >= watcher->room || !watcher->folder[number])
        return;
    bool is_root = !*watcher->folder[number];
    if (event->len) {
        char *path = below(watcher->folder[number], event->name);
        hear(watcher, event, path);
        free(path);
    } else if (is_root)
        hear_root(watcher, event);
    else if (event->mask & IN_IGNORED)
        forget(watcher, number);
}

static bool is_repeated(const struct inotify_event *event, const struct inotify_event *before) {
    return before && event->mask & IN_MODIFY && event->wd == before->wd && event->mask == before->mask &&
           event->len == before->len && memcmp(event->name, before->name, event->len) == 0;
}

static void read_events(struct watcher *watcher) {
    static char bytes[64 << 10] __attribute__((aligned(__alignof__(struct inotify_event))));
    ssize_t size = read(watcher->inotify, bytes, sizeof bytes);
    const struct inotify_event *event, *before = NULL;
    for (char *at = bytes; at < bytes + size && !watcher->over; at += sizeof *event + event->len) {
        event = (const void *)at;
        if (!is_repeated(event, before))
            sort(watcher, event);
        before = event;
        if (buffer_size(&watcher->peer->out) > MAX_DATA / 4)
            peer_flush(watcher->peer);
    }
}

static void serve(struct watcher *watcher) {
    struct pollfd from[] = {{watcher->inotify, POLLIN, 0}, {watcher->peer->fd, POLLIN | POLLRDHUP, 0}};
    while (!watcher->over) {
        int ready = poll(from, 2, watcher->left ? PAIR_MS : -1);
        if (from[1].revents)
            _exit(0);
        if (ready == 0)
            give_up_left(watcher);
        else if (from[0].revents)
            read_events(watcher);
        peer_flush(watcher->peer);
    }
}

void watch_run(struct peer *peer, const struct file_request *request) {
    struct watcher watcher = {.peer = peer, .root = request->path, .recursive = request->flags & 1};
    watcher.inotify = inotify_init1(IN_CLOEXEC);
    if (watcher.inotify >= 0 && !watch_one(&watcher, "") && errno != ENOSPC) {
        peer_fail(peer, errno);
        return;
    }
    if (!watcher.folders || (watcher.recursive && !watch_tree(&watcher, "", false))) {
        put_error(&peer->out, ERROR_LIMIT,
                  "there is more to watch than the kernel (fs.inotify), or 65,536 folders, allow; watch less");
        return;
    }
    put_plain(&peer->out, FRAME_OK);
    peer_flush(peer);
    serve(&watcher);
    put_plain(&peer->out, FRAME_END);
}
