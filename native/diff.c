/* A walk through all folders that the upper layer has, beside those of the same path below. A
 * folder on one side is a stack of layers' folders, the topmost first, as overlayfs merges them:
 * one ends at a file, at a whiteout, and below a folder that is opaque. */
#include "diff.h"

#include "fail.h"
#include "frame.h"
#include "guard.h"
#include "ids.h"
#include "layers.h"
#include "util.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

enum { DEEPEST = 1000, PIECE = 64 << 10, MOST_WRITTEN = 256 << 20, MOST_HELD = 256 << 20 };

struct stack {
    int *folder;
    size_t count;
    bool opaque; /* nothing below it shows through */
};

struct names {
    char **item;
    size_t count, room, size; /* `size`: about what they take of memory */
};

struct diff {
    int output;
    const char *opaque; /* the attribute that says so */
    uint32_t shift;     /* of owners on a disk of the sandbox's own; 0: none */
    struct buffer out;
    size_t written;
    size_t held; /* by the names of all folders that we are in */
};

enum seen { NOTHING, HIDDEN, THERE };

/* ---- folders ---- */

static void stack_free(struct stack *stack) {
    for (size_t i = 0; i < stack->count; i++)
        close(stack->folder[i]);
    free(stack->folder);
    *stack = (struct stack){0};
}

static bool stack_add(struct stack *stack, int folder) {
    if (folder < 0)
        return fail(NULL, "cannot open a folder of the sandbox: %m");
    stack->folder = must_grow(stack->folder, (stack->count + 1) * sizeof *stack->folder);
    stack->folder[stack->count++] = folder;
    return true;
}

static bool is_whiteout(const struct stat *info) {
    return S_ISCHR(info->st_mode) && info->st_rdev == makedev(0, 0);
}

static bool is_opaque(const struct diff *diff, int folder) {
    char value = 0;
    return fgetxattr(folder, diff->opaque, &value, 1) == 1 && value == 'y';
}

/* What a name is, and where it is a folder, its stack. False: see fail.h. */
static bool look(const struct diff *diff, const struct stack *in, const char *name, enum seen *seen, struct stat *info,
                 struct stack *inner) {
    struct stat found;
    *seen = NOTHING;
    for (size_t i = 0; i < in->count && !inner->opaque; i++) {
        if (fstatat(in->folder[i], name, &found, AT_SYMLINK_NOFOLLOW) != 0)
            continue;
        bool first = *seen == NOTHING;
        if (first)
            *info = found;
        if (first)
            *seen = is_whiteout(&found) ? HIDDEN : THERE;
        if (!S_ISDIR(found.st_mode))
            return true;
        if (!stack_add(inner, openat(in->folder[i], name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)))
            return errno == ENOENT || errno == ENOTDIR; /* it was replaced meanwhile */
        inner->opaque = is_opaque(diff, inner->folder[inner->count - 1]);
    }
    return true;
}

/* ---- names ---- */

static int by_name(const void *one, const void *other) {
    return strcmp(*(char *const *)one, *(char *const *)other);
}

static void names_free(struct names *names) {
    for (size_t i = 0; i < names->count; i++)
        free(names->item[i]);
    free(names->item);
    *names = (struct names){0};
}

static void names_read(struct names *names, int folder) {
    int again = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *listing = again < 0 ? NULL : fdopendir(again);
    for (struct dirent *entry; listing && names->size <= MOST_HELD && (entry = readdir(listing));) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        if (names->count == names->room) {
            names->room = names->room != 0 ? names->room * 2 : 64;
            names->item = must_grow(names->item, names->room * sizeof *names->item);
        }
        names->item[names->count++] = must_copy(entry->d_name);
        names->size += sizeof *names->item + strlen(entry->d_name);
    }
    if (listing)
        closedir(listing);
}

/* Of all layers, sorted, each once. */
static struct names names_of(const struct stack *stack) {
    struct names names = {0};
    size_t kept = 0;
    for (size_t i = 0; i < stack->count; i++)
        names_read(&names, stack->folder[i]);
    if (names.count > 0)
        qsort(names.item, names.count, sizeof *names.item, by_name);
    for (size_t i = 0; i < names.count; i++)
        if (kept > 0 && strcmp(names.item[kept - 1], names.item[i]) == 0)
            free(names.item[i]);
        else
            names.item[kept++] = names.item[i];
    names.count = kept;
    return names;
}

/* ---- changes ---- */

static bool flush(struct diff *diff) {
    diff->written += buffer_size(&diff->out);
    if (diff->written > MOST_WRITTEN)
        return fail("plan", "more files differ than can be told; look at parts of them with commands");
    bool written = write_all(diff->output, buffer_at(&diff->out), buffer_size(&diff->out));
    buffer_consume(&diff->out, buffer_size(&diff->out));
    return written || fail(NULL, "cannot tell what differs: %m");
}

static bool put(struct diff *diff, char kind, const struct stat *info, const char *path) {
    char head[32];
    mode_t mode = info->st_mode;
    char type = S_ISREG(mode) ? 'f' : S_ISDIR(mode) ? 'd' : S_ISLNK(mode) ? 'l' : 'o';
    unsigned long long size = kind != 'D' && S_ISREG(mode) ? (unsigned long long)info->st_size : 0;
    buffer_add(&diff->out, head, (size_t)snprintf(head, sizeof head, "%c%c %llu ", kind, type, size));
    buffer_add(&diff->out, path, strlen(path) + 1);
    return buffer_size(&diff->out) < PIECE || flush(diff);
}

static int open_file(const struct stack *in, const char *name) {
    struct stat info;
    int fd = -1;
    for (size_t i = 0; i < in->count && fd < 0; i++)
        fd = openat(in->folder[i], name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd >= 0 && (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode))) {
        close(fd);
        fd = -1;
    }
    return fd;
}

static bool same_content(const struct stack *uppers, const struct stack *lowers, const char *name) {
    static char pieces[2][PIECE];
    AUTO_FD int now = open_file(uppers, name), before = open_file(lowers, name);
    ssize_t size = now < 0 || before < 0 ? -1 : 1;
    while (size > 0) {
        size = read(now, pieces[0], PIECE);
        if (read(before, pieces[1], PIECE) != size || (size > 0 && memcmp(pieces[0], pieces[1], (size_t)size) != 0))
            return false;
    }
    return size == 0;
}

static bool same_target(const struct stack *uppers, const struct stack *lowers, const char *name) {
    char now[4096], before[4096];
    ssize_t size = readlinkat(uppers->folder[0], name, now, sizeof now), other = -1;
    for (size_t i = 0; i < lowers->count && other < 0; i++)
        other = readlinkat(lowers->folder[i], name, before, sizeof before);
    return size >= 0 && size == other && memcmp(now, before, (size_t)size) == 0;
}

static bool same_id(const struct diff *diff, uint32_t now, uint32_t before) {
    return now == before || now - diff->shift == before;
}

static bool differs(const struct diff *diff, const struct stack *uppers, const struct stack *lowers, const char *name, const struct stat *now,
                    const struct stat *before) {
    if (now->st_mode != before->st_mode || !same_id(diff, now->st_uid, before->st_uid) || !same_id(diff, now->st_gid, before->st_gid))
        return true;
    if (S_ISREG(now->st_mode))
        return now->st_size != before->st_size || !same_content(uppers, lowers, name);
    if (S_ISLNK(now->st_mode))
        return !same_target(uppers, lowers, name);
    return !S_ISDIR(now->st_mode) && now->st_rdev != before->st_rdev;
}

/* ---- the walk ---- */

/* What the box itself mounts there. */
static bool is_ours(const char *path) {
    static const char *const ours[] = {"/dev", "/proc", "/sys", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"};
    for (size_t i = 0; i < sizeof ours / sizeof *ours; i++)
        if (strcmp(path, ours[i]) == 0)
            return true;
    return false;
}

static bool walk(struct diff *diff, const char *path, const struct stack *uppers, const struct stack *lowers, int depth);

static bool compare(struct diff *diff, const char *path, const char *name, const struct stack *uppers, const struct stack *lowers,
                    int depth) {
    struct stack now_inner = {0}, before_inner = {0};
    struct stat now = {0}, before = {0};
    enum seen seen, was;
    bool good = look(diff, uppers, name, &seen, &now, &now_inner) && look(diff, lowers, name, &was, &before, &before_inner);
    if (good && seen == HIDDEN && was == THERE)
        good = put(diff, 'D', &before, path);
    else if (good && seen == THERE && was != THERE)
        good = put(diff, 'A', &now, path);
    else if (good && seen == THERE && differs(diff, uppers, lowers, name, &now, &before))
        good = put(diff, 'C', &now, path);
    if (good && seen == THERE && now_inner.count > 0)
        good = walk(diff, path, &now_inner, &before_inner, depth + 1);
    stack_free(&now_inner);
    stack_free(&before_inner);
    return good;
}

/* What an opaque folder hides, and is not in it again. */
static bool tell_hidden(struct diff *diff, const char *path, const char *name, const struct stack *uppers, const struct stack *lowers) {
    struct stack now_inner = {0}, before_inner = {0};
    struct stat now, before;
    enum seen seen, was;
    bool good = look(diff, uppers, name, &seen, &now, &now_inner) && look(diff, lowers, name, &was, &before, &before_inner);
    if (good && seen == NOTHING && was == THERE)
        good = put(diff, 'D', &before, path);
    stack_free(&now_inner);
    stack_free(&before_inner);
    return good;
}

static bool walk(struct diff *diff, const char *path, const struct stack *uppers, const struct stack *lowers, int depth) {
    bool good = depth < DEEPEST || fail("plan", "the sandbox has folders in each other more than %d deep, which cannot be compared", DEEPEST);
    struct names names = names_of(uppers), hidden = uppers->opaque ? names_of(lowers) : (struct names){0};
    size_t held = names.size + hidden.size;
    diff->held += held;
    /* It is our memory, and the sandbox's limit does not hold for that. */
    good = good && (diff->held <= MOST_HELD || fail("plan", "the sandbox has folders with too many files, which cannot be compared"));
    for (size_t i = 0; good && i < names.count; i++) {
        char *child = must_format("%s/%s", path, names.item[i]);
        good = is_ours(child) || compare(diff, child, names.item[i], uppers, lowers, depth);
        free(child);
    }
    for (size_t i = 0; good && i < hidden.count; i++) {
        char *child = must_format("%s/%s", path, hidden.item[i]);
        good = is_ours(child) || tell_hidden(diff, child, hidden.item[i], uppers, lowers);
        free(child);
    }
    diff->held -= held;
    names_free(&names);
    names_free(&hidden);
    return good;
}

/* ---- the request ---- */

static bool prepare(const struct box *box) {
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    return layers_become_owner(box);
}

/* A disk of the sandbox's own is mounted nowhere that we see. */
static char *upper_of(const struct box *box) {
    return box->disk < 0 ? must_copy(box->plan->upper)
                         : must_format("/proc/self/fd/%d%s", box->disk, strrchr(box->plan->upper, '/'));
}

static bool tell_changes(const struct box *box, int output) {
    const struct plan *plan = box->plan;
    struct diff diff = {.output = output,
                        .shift = box->disk < 0 ? 0 : slot_base(box->slot),
                        .opaque = plan->ids == IDS_RANGE ? "trusted.overlay.opaque" : "user.overlay.opaque"};
    struct stack uppers = {0}, lowers = {0};
    size_t own = plan->lower.count - box->base.count; /* layers that were the upper one before */
    char *upper = upper_of(box);
    bool good = stack_add(&uppers, open(upper, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    for (size_t i = 0; good && i < plan->lower.count; i++)
        good = stack_add(i < own ? &uppers : &lowers, open(plan->lower.item[i], O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    free(upper);
    return good && walk(&diff, "", &uppers, &lowers, 0) && flush(&diff);
}

void serve_diff(struct box *box, struct request *request) {
    if (control_fork(box, request, NULL) != 0)
        return;
    if (prepare(box) && (request->fd[0] >= 0 || fail("plan", "diff needs a file to write to")) && tell_changes(box, request->fd[0]))
        control_ok(request, "done");
    else
        control_failed(request);
    _exit(0);
}

void serve_written(struct box *box, struct request *request) {
    if (control_fork(box, request, NULL) != 0)
        return;
    if (prepare(box))
        control_ok(request, "%llu", (unsigned long long)guard_count(upper_of(box)));
    else
        control_failed(request);
    _exit(0);
}
