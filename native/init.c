/* The verb `init`: reads the command line, opens the listening socket, hands over to the agent. Must run before anything
 * untrusted does: it still has the token in its environment. */
#include "agent.h"
#include "fail.h"
#include "runtime.h"
#include "setup.h"
#include "util.h"
#include "verbs.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static int wrong(const char *what, const char *why) {
    fprintf(stderr, "openmodal-agent init: %s %s\n", what, why);
    return 2;
}

static int listen_in_namespace(const char *name) {
    struct sockaddr_un address;
    unsigned size = socket_address(name, &address);
    int fd = size ? socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0) : -1;
    return fd >= 0 && bind(fd, (struct sockaddr *)&address, size) == 0 && listen(fd, 128) == 0 ? fd : -1;
}

/* It gets its name when it listens: who waits for the name to appear is never refused. */
static int listen_at(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t size = strlen(path);
    if (*path == '@')
        return listen_in_namespace(path);
    if (size + 2 > sizeof address.sun_path) {
        errno = ENAMETOOLONG;
        return -1;
    }
    memcpy(address.sun_path, path, size);
    address.sun_path[size] = '~';
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    unlink(address.sun_path);
    mode_t mask = umask(0177); /* only who we are may connect */
    bool bound = fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof address) == 0;
    umask(mask);
    return bound && listen(fd, 128) == 0 && rename(address.sun_path, path) == 0 ? fd : -1;
}

/* Without SO_REUSEPORT, no other process can bind the port while we listen, whatever socket options it sets.
 * SO_REUSEADDR: an earlier process in this network namespace may have left connections that are not quite over. */
static int listen_by_tcp(const struct sockaddr *address, socklen_t size) {
    const int on = 1, off = 0;
    int fd = socket(address->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (address->sa_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    if (bind(fd, address, size) == 0 && listen(fd, 128) == 0)
        return fd;
    int why = errno;
    close(fd);
    errno = why;
    return -1;
}

/* At all addresses: of both families, or of IPv4 where there is no other. */
static int listen_on_port(uint64_t port) {
    const struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_ANY_INIT, .sin6_port = htons((uint16_t)port)};
    const struct sockaddr_in four = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_ANY), .sin_port = htons((uint16_t)port)};
    int fd = listen_by_tcp((const struct sockaddr *)&six, sizeof six);
    if (fd < 0 && (errno == EAFNOSUPPORT || errno == EADDRNOTAVAIL))
        fd = listen_by_tcp((const struct sockaddr *)&four, sizeof four);
    return fd;
}

/* What a container's engine added for itself: HOME of the user that it started us as, and addresses of the cluster. */
static bool is_engines(const char *entry) {
    return strncmp(entry, "HOME=", 5) == 0 || strncmp(entry, "HOSTNAME=", 9) == 0 || strncmp(entry, "KUBERNETES_", 11) == 0;
}

static char **images_environment(void) {
    size_t count = 0;
    for (char **entry = environ; *entry; entry++)
        if (!is_engines(*entry))
            environ[count++] = *entry;
    environ[count] = NULL;
    return environ;
}

/* /proc/1/environ shows the bytes where the kernel put them, so the token is erased there. */
static const char *take_token(const char *name) {
    char *value = getenv(name);
    if (!value)
        return NULL;
    char *copy = must_copy(value);
    memset(value, 'x', strlen(value));
    unsetenv(name);
    return copy;
}

struct options {
    const char *listen, *listen_fd, *control_fd, *token_env, *timeout_ms, *idle_ms, *lease_ms, *user, *workdir, *main_flags, *pids, *setup_fd,
        *setup_ms, *linger, *port, *rests;
    char **argv;
};

static const char **option_named(struct options *options, const char *name) {
    const struct {
        const char *name;
        const char **value;
    } known[] = {
        {"--listen", &options->listen}, {"--listen-fd", &options->listen_fd}, {"--control-fd", &options->control_fd},
        {"--token-env", &options->token_env},
        {"--timeout-ms", &options->timeout_ms}, {"--idle-ms", &options->idle_ms},
        {"--lease-ms", &options->lease_ms}, {"--user", &options->user},
        {"--workdir", &options->workdir}, {"--main-flags", &options->main_flags},
        {"--pids", &options->pids}, {"--setup-fd", &options->setup_fd}, {"--setup-ms", &options->setup_ms},
        {"--linger", &options->linger}, {"--port", &options->port}, {"--rests", &options->rests},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(name, known[i].name) == 0)
            return known[i].value;
    return NULL;
}

static int read_options(int argc, char **argv, struct options *options) {
    for (int i = 1; i < argc; i += 2) {
        if (strcmp(argv[i], "--") == 0) {
            options->argv = i + 1 < argc ? argv + i + 1 : NULL;
            return 0;
        }
        const char **value = option_named(options, argv[i]);
        if (!value)
            return wrong(argv[i], "is not an option; see section 4 of docs/protocol.md");
        if (i + 1 >= argc)
            return wrong(argv[i], "needs a value");
        *value = argv[i + 1];
    }
    return 0;
}

static int number(const char *name, const char *text, uint64_t most, uint64_t *value) {
    if (!text || (parse_u64(text, value) && *value <= most))
        return 0;
    return wrong(name, "needs a whole number that is not too big");
}

/* In gVisor, whose groups are its own and the sandbox's: the machine's count gVisor's threads, too. */
static bool limit_processes(const char *most) {
    AUTO_FD int fd = open("/sys/fs/cgroup/pids/pids.max", O_WRONLY | O_CLOEXEC);
    return fd >= 0 && write_all(fd, most, strlen(most));
}

/* In a runtime's sandbox: without what was put there for the runtime, we are as ready as without one. */
static bool leave_runtime(int supervisor) {
    const char *home = getenv("HOME");
    unlink("/tmp/" RUNTIME_IN_TMP);
    if (home && !*home) /* or runsc would have set root's, for commands of all users */
        unsetenv("HOME");
    return send(supervisor, "ready", 5, MSG_NOSIGNAL) == 5;
}

/* Once it listens, and before it serves anybody. */
static bool set_up(struct agent_config *config, int fd) {
    struct setup setup = {0};
    if (!setup_read(&setup, fd) || !setup_lock(&setup))
        return false;
    config->env = setup.env;
    config->tells_end = true;
    return true;
}

int verb_init(int argc, char **argv) {
    struct options options = {0};
    uint64_t fd = 0, control = 0, flags = 0, setup_fd = 0, linger = 0, port = 0, rests = 0;
    struct agent_config config = {.control_fd = -1, .port_fd = -1, .main_stdout = STDOUT_FILENO, .main_stderr = STDERR_FILENO, .oom_fd = -1, .meminfo_fd = -1,
                                  .nice = getpriority(PRIO_PROCESS, 0)};
    if (read_options(argc, argv, &options) || number("--listen-fd", options.listen_fd, INT32_MAX, &fd) ||
        number("--control-fd", options.control_fd, INT32_MAX, &control) ||
        number("--timeout-ms", options.timeout_ms, UINT64_MAX / 4, &config.timeout_ms) ||
        number("--idle-ms", options.idle_ms, UINT64_MAX / 4, &config.idle_ms) ||
        number("--lease-ms", options.lease_ms, UINT64_MAX / 4, &config.lease_ms) ||
        number("--setup-ms", options.setup_ms, UINT64_MAX / 4, &config.setup_ms) ||
        number("--linger", options.linger, 1, &linger) ||
        number("--rests", options.rests, 1, &rests) ||
        number("--port", options.port, UINT16_MAX, &port) ||
        number("--main-flags", options.main_flags, UINT32_MAX, &flags) ||
        number("--setup-fd", options.setup_fd, INT32_MAX, &setup_fd))
        return 2;
    if (!!options.listen + !!options.listen_fd + !!options.control_fd != 1)
        return wrong("say one of --listen PATH, --listen-fd N and --control-fd N", "(where clients connect)");
    if (options.token_env && !(config.token = take_token(options.token_env)))
        return wrong(options.token_env, "is not in the environment, but --token-env names it");
    if (options.port && !config.setup_ms && !(config.token && *config.token))
        return wrong("--port", "needs --setup-ms or --token-env: over the network nobody is served without a token");
    config.listen_fd = options.listen ? listen_at(options.listen) : options.listen_fd ? (int)fd : -1;
    config.control_fd = options.control_fd ? (int)control : -1;
    if (options.listen && config.listen_fd < 0)
        return wrong(options.listen, strerror(errno));
    if (options.port && (config.port_fd = listen_on_port(port)) < 0)
        return wrong("--port", strerror(errno));
    config.user = options.user;
    config.workdir = options.workdir;
    config.linger = linger != 0;
    config.rests = rests != 0;
    config.report = config.setup_ms != 0;
    if (config.report && !config.workdir) /* the image's, where the engine started us */
        config.workdir = getcwd(NULL, 0);
    config.env = config.report ? images_environment() : environ;
    config.argv = options.argv;
    config.main_flags = (uint32_t)flags;
    if (options.pids && !limit_processes(options.pids))
        return wrong("--pids", strerror(errno));
    if (options.control_fd && !leave_runtime(config.control_fd))
        return wrong(options.control_fd, strerror(errno));
    if (options.setup_fd && !set_up(&config, (int)setup_fd)) {
        fprintf(stderr, "openmodal-agent init: %s\n", failure());
        return 1;
    }
    return agent_run(&config);
}
