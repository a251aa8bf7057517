/* The C floor: the least that the kernel takes for a sandbox's steps. No limits, no user namespace, no network, no protocol: a
 * box here is four namespaces, an overlay, and a loop that forks and executes on a byte. Independent of native/ on purpose.
 *
 *   floor ROOT ROUNDS     ROOT: a folder with a static /bin/true. Prints {"step": [milliseconds or MB/s, …], …} as JSON. Needs
 * root. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <ftw.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { SIZE = 100000000, PIECE = 1 << 20, MAX_ROUNDS = 10000, EXECS = 5 };
enum step { CREATE, CREATE_EXEC, EXEC, TERMINATE, STDOUT, WRITE, READ, STEPS };
static const char *const names[STEPS] = {"create", "create_exec", "exec", "terminate", "stdout", "write", "read"};

struct figures {
    double value[MAX_ROUNDS * EXECS];
    size_t count;
};
static struct figures figures[STEPS];
static char scratch[4096], piece[PIECE];

static void must(int good, const char *what) {
    if (good)
        return;
    perror(what);
    _exit(1);
}

static double now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1000 + (double)now.tv_nsec / 1e6;
}

static void note(enum step step, double value) {
    if (figures[step].count < sizeof figures[step].value / sizeof *figures[step].value)
        figures[step].value[figures[step].count++] = value;
}

/* ---- inside ---- */

static void enter(const char *root) {
    char options[16384];
    snprintf(options, sizeof options, "lowerdir=%s,upperdir=%s/upper,workdir=%s/work,volatile", root, scratch, scratch);
    must(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0, "private");
    must(chdir(scratch) == 0 && mount("overlay", "root", "overlay", 0, options) == 0, "overlay");
    must(chdir("root") == 0 && syscall(SYS_pivot_root, ".", ".") == 0, "pivot_root");
    must(umount2(".", MNT_DETACH) == 0 && chdir("/") == 0, "umount");
}

static void send_bytes(int link) {
    for (size_t left = SIZE; left > 0;) {
        ssize_t count = write(link, piece, left < PIECE ? left : PIECE);
        must(count > 0, "write");
        left -= (size_t)count;
    }
}

/* What stands for the agent: a byte comes, something is done, a byte goes. */
static _Noreturn void serve(const char *root, int link) {
    char byte = 'r';
    enter(root);
    must(write(link, &byte, 1) == 1, "ready");
    while (read(link, &byte, 1) == 1) {
        pid_t child = fork();
        if (child == 0 && byte == 'x')
            execl("/bin/true", "true", (char *)NULL);
        if (child == 0 && byte == 'o')
            send_bytes(link);
        if (child == 0)
            _exit(byte == 'x');
        int status = 0;
        must(waitpid(child, &status, 0) == child && status == 0, "the command");
        must(write(link, &byte, 1) == 1, "done");
    }
    _exit(0);
}

/* ---- outside ---- */

static void make_scratch(const char *root) {
    snprintf(scratch, sizeof scratch, "%s.floor-XXXXXX", root);
    must(mkdtemp(scratch) != NULL && chdir(scratch) == 0, "mkdtemp");
    must(mkdir("upper", 0755) == 0 && mkdir("work", 0755) == 0 && mkdir("root", 0755) == 0 && chdir("/") == 0, "mkdir");
}

static int remove_one(const char *path, const struct stat *found, int kind, struct FTW *walk) {
    (void)found, (void)kind, (void)walk;
    return remove(path);
}

static pid_t start(const char *root, int *link) {
    uint64_t request[11] = {CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET, [4] = SIGCHLD};
    int pair[2];
    must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0, "socketpair");
    pid_t box = (pid_t)syscall(SYS_clone3, request, sizeof request);
    must(box >= 0, "clone3");
    if (box == 0)
        serve(root, pair[1]);
    close(pair[1]);
    *link = pair[0];
    return box;
}

static void await(int link, char wanted) {
    char byte = 0;
    must(read(link, &byte, 1) == 1 && byte == wanted, "answer");
}

static void exec_true(int link) {
    must(write(link, "x", 1) == 1, "ask");
    await(link, 'x');
}

static double rate(double started) {
    return SIZE / 1e6 / ((now_ms() - started) / 1000);
}

static void measure_stdout(int link) {
    double started = now_ms();
    must(write(link, "o", 1) == 1, "ask");
    for (ssize_t left = SIZE; left > 0;) {
        ssize_t count = read(link, piece, left < PIECE ? (size_t)left : PIECE);
        must(count > 0, "read");
        left -= count;
    }
    note(STDOUT, rate(started));
    await(link, 'o');
}

static void measure_file(void) {
    char path[4200];
    snprintf(path, sizeof path, "%s/file", scratch);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    double started = now_ms();
    must(fd >= 0, "file");
    send_bytes(fd);
    note(WRITE, rate(started));
    must(lseek(fd, 0, SEEK_SET) == 0, "lseek");
    started = now_ms();
    while (read(fd, piece, PIECE) > 0)
        ;
    note(READ, rate(started));
    close(fd);
}

static void one_round(const char *root) {
    int link;
    make_scratch(root);
    double started = now_ms();
    pid_t box = start(root, &link);
    await(link, 'r');
    note(CREATE, now_ms() - started);
    exec_true(link);
    note(CREATE_EXEC, now_ms() - started);
    for (int i = 0; i < EXECS; i++) {
        started = now_ms();
        exec_true(link);
        note(EXEC, now_ms() - started);
    }
    measure_stdout(link);
    started = now_ms();
    must(kill(box, SIGKILL) == 0 && waitpid(box, NULL, 0) == box, "kill");
    note(TERMINATE, now_ms() - started);
    measure_file();
    close(link);
    nftw(scratch, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

int main(int argc, char **argv) {
    int rounds = argc == 3 ? atoi(argv[2]) : 0;
    if (rounds < 1 || rounds > MAX_ROUNDS) {
        fprintf(stderr, "usage: floor ROOT ROUNDS\n");
        return 2;
    }
    char *root = realpath(argv[1], NULL);
    must(root != NULL, argv[1]);
    memset(piece, 'x', sizeof piece);
    for (int i = 0; i < rounds; i++)
        one_round(root);
    for (int step = 0; step < STEPS; step++) {
        printf("%s\"%s\": [", step > 0 ? ", " : "{", names[step]);
        for (size_t i = 0; i < figures[step].count; i++)
            printf("%s%.4f", i > 0 ? ", " : "", figures[step].value[i]);
        printf("]");
    }
    printf("}\n");
    free(root);
    return 0;
}
