/* The verb `changes`, in a container, whose upper folder nobody there can see: the files that are not
 * as in the image. An image is listed where nothing has run on it yet (`changes list`); a sandbox gets
 * that list on its stdin. A file may have changed if its facts differ, or its inode changed after
 * process 1 began, which no program can hide. `changes since-start` tells what a layer has to have, and
 * stops what else runs meanwhile; `changes go-on` is for those who killed one that had, and a child does
 * the same if nobody is left to ask for it, or to take what is told. `changes facts`
 * tells no more than what may have changed, and `changes digest` the SHA-256 of the files on its stdin,
 * for those that must be compared with the image's. */
#include "digest.h"
#include "scan.h"
#include "util.h"
#include "verbs.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

enum { DEEPEST = 512, FACTS = 160, PIECE = 64 << 10, ROUNDS = 5000, ROUND_US = 2000, VALUE = 64 << 10, QUIET_MS = 20000 };

struct known {
    char *path, *facts, *target;
    bool seen;
};

struct walk {
    char *mounts; /* each with a NUL behind it, then an empty one */
    struct known *known;
    size_t count;
    int64_t since_ns; /* of the inode's change; INT64_MAX: only list */
    bool for_layer;   /* with attributes, contents, and the folders that lead there */
    pid_t *stopped;
    size_t stops;
    pid_t warden;
};

static volatile unsigned long unwatched, *progress = &unwatched; /* shared with the warden */

/* ---- what is stopped ---- */

/* The state and the parent of a process; 0 when there is none. */
static char state_of(pid_t pid, unsigned *parent) {
    char *path = must_format("/proc/%d/stat", (int)pid), state = 0;
    char *text = read_file(path, 4096, NULL), *at = text ? strrchr(text, ')') : NULL;
    if (!at || scan(at + 1, " %c %u", &state, parent) != 2)
        state = 0;
    free(text);
    free(path);
    return state;
}

/* Process 1, ourselves, and who waits for us. */
static bool is_ours(pid_t pid) {
    unsigned at = (unsigned)getpid();
    while (at > 1 && (pid_t)at != pid && state_of((pid_t)at, &at))
        continue;
    return pid == 1 || (pid_t)at == pid;
}

static bool was_stopped_by_us(const struct walk *walk, pid_t pid) {
    for (size_t i = 0; i < walk->stops; i++)
        if (walk->stopped[i] == pid)
            return true;
    return false;
}

/* One look at all processes: how many still run. */
static int stop_round(struct walk *walk) {
    DIR *listing = opendir("/proc");
    const struct dirent *entry;
    int running = 0;
    while (listing && (entry = readdir(listing))) {
        uint64_t number;
        unsigned parent;
        if (!parse_u64(entry->d_name, &number) || is_ours((pid_t)number) || (pid_t)number == walk->warden)
            continue;
        char state = state_of((pid_t)number, &parent);
        if (state == 0 || strchr("TtZXx", state) || parent == 1) /* the agent's own: it lets them go on */
            continue;
        running++;
        if (was_stopped_by_us(walk, (pid_t)number) || kill((pid_t)number, SIGSTOP) < 0)
            continue;
        walk->stopped = must_grow(walk->stopped, (walk->stops + 1) * sizeof *walk->stopped);
        walk->stopped[walk->stops++] = (pid_t)number;
    }
    if (listing)
        closedir(listing);
    return running;
}

/* The youngest first: whoever waits for them shall not see that they were stopped. */
static void go_on(struct walk *walk) {
    while (walk->stops)
        kill(walk->stopped[--walk->stops], SIGCONT);
    if (walk->warden > 0 && kill(walk->warden, SIGKILL) == 0)
        waitpid(walk->warden, NULL, 0);
}

static bool stop_all(struct walk *walk) {
    for (int round = 0; round < ROUNDS; round++) {
        if (!stop_round(walk))
            return true;
        usleep(ROUND_US);
    }
    go_on(walk);
    fprintf(stderr, "a process of the sandbox does not stop; try again\n");
    return false;
}

/* All that are stopped, whoever did it. */
static int go_on_all(void) {
    DIR *listing = opendir("/proc");
    const struct dirent *entry;
    while (listing && (entry = readdir(listing))) {
        uint64_t number;
        unsigned parent;
        if (parse_u64(entry->d_name, &number) && state_of((pid_t)number, &parent) == 'T')
            kill((pid_t)number, SIGCONT);
    }
    if (listing)
        closedir(listing);
    return 0;
}

/* ---- the warden ---- */

static _Noreturn void watch_over(pid_t stopper, int life, int quiet_ms) {
    struct pollfd ended = {life, 0, 0};
    unsigned long before;
    setsid(); /* whoever kills our group does not kill us */
    do
        before = *progress;
    while (poll(&ended, 1, quiet_ms) == 0 && *progress != before);
    kill(stopper, SIGKILL);
    _exit(go_on_all());
}

/* The other end of its pipe is ours, and closed with us. */
static bool post_warden(struct walk *walk, int quiet_ms) {
    int pair[2];
    progress = mmap(NULL, sizeof *progress, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (progress == MAP_FAILED || pipe2(pair, O_CLOEXEC) < 0 || (walk->warden = fork()) < 0)
        return false;
    if (walk->warden == 0) {
        close(pair[1]);
        watch_over(getppid(), pair[0], quiet_ms);
    }
    return close(pair[0]) == 0;
}

/* ---- what is no file of the container ---- */

static unsigned octal(const char *digits) {
    return (unsigned)((digits[0] - '0') << 6 | (digits[1] - '0') << 3 | (digits[2] - '0'));
}

/* The fifth word of each line of mountinfo (proc(5)), which writes blanks and backslashes as three octal digits. */
static bool read_mounts(struct walk *walk) {
    char *text = read_file("/proc/self/mountinfo", 16 << 20, NULL), *to;
    if (!text)
        return false;
    walk->mounts = to = must_alloc(strlen(text) + 2);
    for (char *save, *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        for (int word = 0; word < 4 && line; word++)
            line = strchr(line, ' ') ? strchr(line, ' ') + 1 : NULL;
        for (; line && *line && *line != ' '; line++) {
            bool escaped = line[0] == '\\' && line[1] && line[2] && line[3];
            *to++ = (char)(escaped ? octal(line + 1) : (unsigned char)*line);
            line += escaped ? 3 : 0;
        }
        *to++ = 0;
    }
    *to = 0;
    free(text);
    return true;
}

/* Is it the place of a mount, or below one? Paths here have no slash in front. */
static bool is_mounted(const struct walk *walk, const char *path) {
    for (const char *mount = walk->mounts; *mount; mount += strlen(mount) + 1) {
        size_t size = strlen(mount + 1);
        if (size && strncmp(mount + 1, path, size) == 0 && (path[size] == 0 || path[size] == '/'))
            return true;
    }
    return false;
}

/* ---- the list of the image ---- */

static int by_path(const void *one, const void *other) {
    return strcmp(((const struct known *)one)->path, ((const struct known *)other)->path);
}

static char *next_text(char **at, const char *end) {
    char *text = *at, *stop = text < end ? memchr(text, 0, (size_t)(end - text)) : NULL;
    *at = stop ? stop + 1 : (char *)end;
    return stop ? text : NULL;
}

static bool read_known(struct walk *walk) {
    size_t size = 0, room = 0;
    char *all = NULL;
    ssize_t n;
    do {
        room = size + (1 << 20);
        all = must_grow(all, room);
        n = read(0, all + size, room - size);
        size += n > 0 ? (size_t)n : 0;
    } while (n > 0 || (n < 0 && errno == EINTR));
    for (char *at = all; at < all + size;) {
        struct known known = {.path = next_text(&at, all + size)};
        known.facts = next_text(&at, all + size);
        known.target = next_text(&at, all + size);
        if (!known.target)
            return false;
        if (walk->count % 1024 == 0)
            walk->known = must_grow(walk->known, (walk->count + 1024) * sizeof known);
        walk->known[walk->count++] = known;
    }
    if (walk->count)
        qsort(walk->known, walk->count, sizeof *walk->known, by_path);
    return n == 0;
}

static struct known *find_known(const struct walk *walk, const char *path) {
    struct known wanted = {.path = (char *)path};
    return walk->count ? bsearch(&wanted, walk->known, walk->count, sizeof wanted, by_path) : NULL;
}

/* ---- the walk ---- */

static char kind_of(mode_t mode) {
    return S_ISREG(mode) ? 'f' : S_ISDIR(mode) ? 'd' : S_ISLNK(mode) ? 'l' : S_ISFIFO(mode) ? 'p' : S_ISCHR(mode) ? 'c' : S_ISBLK(mode) ? 'b' : 's';
}

/* Kind, mode, owner, group, size, time, and the device that it is. A folder's size and time tell of what is in it. */
static void tell_facts(char facts[FACTS], const struct stat *info) {
    bool folder = S_ISDIR(info->st_mode);
    snprintf(facts, FACTS, "%c %o %u %u %" PRId64 " %" PRId64 ".%09ld %u:%u", kind_of(info->st_mode), info->st_mode & 07777, info->st_uid,
             info->st_gid, folder ? 0 : (int64_t)info->st_size, folder ? 0 : (int64_t)info->st_mtim.tv_sec, folder ? 0 : info->st_mtim.tv_nsec,
             major(info->st_rdev), minor(info->st_rdev));
}

/* NAME=HEX for each attribute, with blanks between. */
static void put_attributes(int directory, const char *name) {
    static char names[VALUE], value[VALUE];
    char *path = must_format("/proc/self/fd/%d/%s", directory, name);
    ssize_t size = llistxattr(path, names, sizeof names);
    for (const char *at = names; size > 0 && at < names + size; at += strlen(at) + 1) {
        ssize_t length = lgetxattr(path, at, value, sizeof value);
        if (length < 0 || strstr(at, ".overlay.") || strchr(at, ' '))
            continue;
        printf("%s=", at);
        for (ssize_t i = 0; i < length; i++)
            printf("%02x", (unsigned char)value[i]);
        putchar(' ');
    }
    putchar(0);
    free(path);
}

/* As many bytes as were told: zeros for what a shrinking file lacks. False: it cannot be read. */
static bool put_content(int directory, const char *name, int64_t left) {
    static char piece[PIECE];
    AUTO_FD int fd = openat(directory, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0 && left > 0)
        return false;
    while (left > 0) {
        size_t most = left < PIECE ? (size_t)left : PIECE;
        ssize_t n = read(fd, piece, most);
        if (n < 0)
            return false;
        if (n == 0) {
            memset(piece, 0, most);
            n = (ssize_t)most;
        }
        fwrite(piece, 1, (size_t)n, stdout);
        left -= n;
        ++*progress;
    }
    return true;
}

static void put_text(const char *text) {
    fwrite(text, 1, strlen(text) + 1, stdout);
}

/* Behind path, facts and target, of a sandbox: has it changed, when, and of which file is it one of the names; its attributes; its bytes. */
static bool put_change(int directory, const char *name, const struct stat *info, bool changed) {
    bool shared = S_ISREG(info->st_mode) && info->st_nlink > 1;
    printf("%d %" PRId64 " %" PRIx64 ":%" PRIx64 "%c", changed, (int64_t)info->st_mtim.tv_sec, shared ? (uint64_t)info->st_dev : 0,
           shared ? (uint64_t)info->st_ino : 0, 0);
    put_attributes(directory, name);
    return !changed || !S_ISREG(info->st_mode) || put_content(directory, name, info->st_size);
}

static _Noreturn void give_up(struct walk *walk, const char *what, const char *path, const char *why) {
    fprintf(stderr, "the %s /%.200s cannot be read: %s\n", what, path, why);
    fflush(stdout);
    go_on(walk);
    exit(1);
}

static void look(struct walk *walk, int directory, const char *name, const char *path, int depth);

static bool look_into(struct walk *walk, int directory, const char *name, const char *path, int depth) {
    int fd = openat(directory, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *listing = fd < 0 ? NULL : fdopendir(fd);
    const struct dirent *child;
    if (!listing) {
        close_fd(&fd);
        return false;
    }
    while ((child = readdir(listing)))
        if (strcmp(child->d_name, ".") != 0 && strcmp(child->d_name, "..") != 0) {
            char *below = *path ? must_format("%s/%s", path, child->d_name) : must_copy(child->d_name);
            look(walk, fd, child->d_name, below, depth + 1);
            free(below);
        }
    closedir(listing);
    return true;
}

static void look(struct walk *walk, int directory, const char *name, const char *path, int depth) {
    struct stat info;
    char facts[FACTS], target[4097] = "";
    ++*progress;
    if (is_mounted(walk, path) || fstatat(directory, name, &info, AT_SYMLINK_NOFOLLOW) < 0)
        return;
    if (walk->for_layer && S_ISSOCK(info.st_mode))
        return;
    if (S_ISLNK(info.st_mode) && readlinkat(directory, name, target, sizeof target - 1) < 0)
        return;
    tell_facts(facts, &info);
    struct known *known = find_known(walk, path);
    bool changed = !known || strcmp(known->facts, facts) != 0 || strcmp(known->target, target) != 0 ||
                   (int64_t)info.st_ctim.tv_sec * 1000000000 + info.st_ctim.tv_nsec >= walk->since_ns;
    if (known)
        known->seen = true;
    if (changed || (walk->for_layer && S_ISDIR(info.st_mode))) { /* a folder may be the way to what has changed */
        put_text(path);
        put_text(facts);
        put_text(target);
        if (walk->for_layer && !put_change(directory, name, &info, changed))
            give_up(walk, "file", path, strerror(errno));
    }
    if (!S_ISDIR(info.st_mode))
        return;
    if (depth >= DEEPEST)
        give_up(walk, "folder", path, "it is too deep");
    if (!look_into(walk, directory, name, path, depth) && (walk->for_layer || (errno != ENOENT && errno != ENOTDIR)))
        give_up(walk, "folder", path, strerror(errno)); /* else it went while we looked */
}

static void put_deleted(const struct walk *walk) {
    for (size_t i = 0; i < walk->count; i++)
        if (!walk->known[i].seen && !is_mounted(walk, walk->known[i].path)) {
            put_text(walk->known[i].path);
            put_text("D");
        }
}

/* When process 1 began, on the clock of the files. The kernel counts it in ticks (proc(5), field 22), and files in some ms. */
static int64_t beginning_ns(void) {
    struct timespec now, up;
    char *text = read_file("/proc/1/stat", 4096, NULL), *at = text ? strrchr(text, ')') : NULL;
    for (int field = 2; at && field < 22; field++)
        at = strchr(at + 1, ' ');
    unsigned long long ticks = 0;
    if (at)
        scan(at, " %llu", &ticks);
    free(text);
    clock_gettime(CLOCK_REALTIME, &now);
    clock_gettime(CLOCK_BOOTTIME, &up);
    int64_t ago = up.tv_sec * 1000000000LL + up.tv_nsec - (int64_t)(ticks * (1000000000ULL / (unsigned long long)sysconf(_SC_CLK_TCK)));
    return now.tv_sec * 1000000000LL + now.tv_nsec - ago - 20000000;
}

/* A file below the root, by folders that are no links; its path may be longer than the kernel takes. */
static int open_below(char *path) {
    char *save, *part = strtok_r(path, "/", &save);
    int folder = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    for (char *next; part && folder >= 0; part = next) {
        next = strtok_r(NULL, "/", &save);
        int flags = next ? O_PATH | O_DIRECTORY : O_RDONLY | O_NONBLOCK;
        int inner = openat(folder, part, flags | O_NOFOLLOW | O_CLOEXEC);
        close(folder);
        folder = inner;
    }
    return folder;
}

/* A line for each path, which has a NUL behind it; "-" for what is no file. */
static int tell_digests(void) {
    char *path = NULL;
    size_t room = 0;
    while (getdelim(&path, &room, 0, stdin) > 0) {
        uint8_t digest[DIGEST_SIZE];
        struct stat info;
        AUTO_FD int fd = open_below(path);
        bool told = fd >= 0 && fstat(fd, &info) == 0 && S_ISREG(info.st_mode) && digest_file(fd, digest);
        for (int i = 0; told && i < DIGEST_SIZE; i++)
            printf("%02x", digest[i]);
        puts(told ? "" : "-");
    }
    free(path);
    return fflush(stdout) != 0 || ferror(stdin) || ferror(stdout);
}

int verb_changes(int argc, char **argv) {
    struct walk walk = {.since_ns = INT64_MAX};
    const char *what = argc >= 2 ? argv[1] : "";
    uint64_t quiet_ms = QUIET_MS;
    bool lists = strcmp(what, "list") == 0;
    walk.for_layer = strcmp(what, "since-start") == 0;
    if (strcmp(what, "go-on") == 0)
        return go_on_all();
    if (strcmp(what, "digest") == 0)
        return tell_digests();
    if ((!lists && !walk.for_layer && strcmp(what, "facts") != 0) || (argc > 2 && !parse_u64(argv[2], &quiet_ms))) {
        fprintf(stderr, "openmodal-agent changes: say list, since-start [MS], go-on, facts or digest\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    if (!read_mounts(&walk) || (!lists && !read_known(&walk))) {
        fprintf(stderr, "the list of the image, or of the mounts, cannot be read\n");
        return 1;
    }
    walk.since_ns = lists ? INT64_MAX : beginning_ns();
    if (walk.for_layer && (!post_warden(&walk, (int)quiet_ms) || !stop_all(&walk)))
        return 1;
    AUTO_FD int root = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool read = look_into(&walk, root, ".", "", 0);
    put_deleted(&walk);
    bool written = fflush(stdout) == 0 && !ferror(stdout);
    go_on(&walk);
    return read && written ? 0 : 1;
}
