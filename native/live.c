/* A sandbox that is paused has a file `paused` in its folder, from before it stops until after
 * it goes on. So who finds none has asked in time, and who finds one asks for `resume` first. */
#include "kernel.h"
#include "live.h"

#include "fail.h"
#include "freezer.h"
#include "ids.h"
#include "net.h"
#include "netlink.h"
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define PAUSED "paused"

/* ---- deadline ---- */

/* From now on, and by the clock that also runs while the machine is suspended. */
void serve_deadline(struct box *box, struct request *request) {
    uint64_t ms = 0;
    if (!parse_u64(request->arguments, &ms) || ms == 0) {
        fail("plan", "deadline needs a number of milliseconds");
        control_failed(request);
        return;
    }
    struct itimerspec when = {.it_value = {.tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000) * 1000000}};
    if (timerfd_settime(box->timer, 0, &when, NULL) == 0) {
        control_ok(request, "done");
        return;
    }
    fail(NULL, "timerfd: %m");
    control_failed(request);
}

/* ---- pause ---- */

bool stop_hold(struct box *box) {
    if (!groups_freeze(box->plan)) {
        box->stops = 0; /* all go on then */
        return false;
    }
    box->stops++;
    return true;
}

void stop_forget(struct box *box) {
    box->stops = 0;
    box->paused = box->resting = false;
    unlinkat(box->folder, PAUSED, 0);
}

void stop_end(struct box *box) {
    if (box->stops > 0)
        groups_thaw(box->plan);
    box->stops = 0;
    box->resting = false; /* nor does it stop again, if its agent had just said that it may */
}

static bool mark(const struct box *box) {
    AUTO_FD int fd = openat(box->folder, PAUSED, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    return fd >= 0 || fail(NULL, "cannot note that the sandbox is paused: %m");
}

/* Its idle time begins anew. */
static void go_on(struct box *box) {
    box->paused = box->resting = false;
    unlinkat(box->folder, PAUSED, 0);
    if (box->plan->rests)
        send(box->link, "w", 1, MSG_NOSIGNAL | MSG_DONTWAIT);
}

void serve_pause(struct box *box, struct request *request) {
    if (!box->paused && !(box->paused = mark(box) && stop_hold(box))) {
        go_on(box);
        control_failed(request);
        return;
    }
    control_ok(request, "done");
}

void serve_resume(struct box *box, struct request *request) {
    if (box->paused)
        stop_release(box);
    go_on(box);
    control_ok(request, "done");
}

static void rest_ask(struct box *box) {
    box->resting = box->paused || mark(box);
    if (!box->resting || send(box->link, "s", 1, MSG_NOSIGNAL | MSG_DONTWAIT) != 1)
        go_on(box);
}

/* It is paused by somebody else, perhaps, or was used meanwhile. */
static void rest_begin(struct box *box) {
    if (!box->resting || box->paused)
        return;
    box->paused = stop_hold(box);
    if (!box->paused)
        go_on(box);
    box->resting = false;
    fail_forget();
}

bool rest_heard(struct box *box, const char *word) {
    if (!box->plan->rests)
        return false;
    if (strcmp(word, "idle") == 0)
        rest_ask(box);
    else if (strcmp(word, "rest") == 0)
        rest_begin(box);
    else if (strcmp(word, "busy") == 0 && box->resting && !box->paused)
        go_on(box);
    else
        return strcmp(word, "busy") == 0;
    return true;
}

/* ---- network ---- */

static int open_network(const struct box *box) {
    int network = open_namespace(box->init, "net");
    if (network < 0)
        fail(NULL, "cannot open the sandbox's network: %m");
    return network;
}

static bool enter(int network) {
    return setns(network, CLONE_NEWNET) == 0 || fail(NULL, "cannot enter the sandbox's network: %m");
}

/* The supervisor of a sandbox that began without a network has none of what it takes: `machine`
 * is the machine's network namespace. From here on it is in the router's. */
static bool enter_router(struct box *box, int machine, const char *router) {
    if (box->machine < 0 && (machine < 0 || setns(machine, CLONE_NEWNET) != 0 ||
                             (box->machine = open_netlink(NETLINK_FILTER)) < 0))
        return fail("network", "cannot enter the machine's network: %m");
    int netlink = net_enter_router(router);
    if (netlink < 0)
        return false;
    close_fd(&box->netlink);
    box->netlink = netlink;
    return true;
}

/* Who fails goes back to where it was: what is asked there must not be asked of the sandbox's network. */
static bool attach(struct box *box, int machine, const char *router) {
    AUTO_FD int before = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    AUTO_FD int network = before >= 0 ? open_network(box) : -1;
    AUTO_FD int inside = network >= 0 && enter(network) ? open_netlink(NETLINK_ROUTES) : -1;
    if (inside < 0 || !enter_router(box, machine, router)) {
        if (network >= 0 && setns(before, CLONE_NEWNET) != 0)
            end_with(box, "error", 137); /* nobody knows any more what it reaches */
        return before >= 0 ? false : fail(NULL, "cannot open the own network: %m");
    }
    if (net_is_attached(box->slot))
        return true;
    if (slot_is_marked(box->slot_lock, box->slot))
        net_forget(box->netlink, box->machine, box->slot);
    slot_mark(box->slot_lock, box->slot, true);
    return net_attach(box->netlink, inside, box->slot, network, 0);
}

/* What is connected is told that it is not any more, then the interface goes: nobody inside
 * waits for an answer that cannot come. */
static bool hang_up(const struct box *box) {
    AUTO_FD int router = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    AUTO_FD int network = open_network(box);
    bool entered = network >= 0 && router >= 0 && enter(network);
    if (entered)
        net_reset_connections();
    return entered && setns(router, CLONE_NEWNET) == 0;
}

static bool cut(struct box *box) {
    if (box->netlink < 0 || !net_is_attached(box->slot))
        return true;
    if (!hang_up(box))
        return false;
    if (net_detach(box->netlink, box->machine, box->slot))
        slot_mark(box->slot_lock, box->slot, false);
    return true;
}

static bool change(struct box *box, int machine, const char *word, const char *router) {
    const struct plan *plan = box->plan;
    bool on = strcmp(word, "on") == 0;
    if (!on && strcmp(word, "off") != 0)
        return fail("plan", "network needs the word on or off");
    /* The gate is in the sandbox's groups. Stopped, it neither ends (version 1) nor begins, and we would wait for it. */
    if (plan->net == NET_GATE && box->stops > 0)
        return fail("busy", "the sandbox is paused, or its files are being copied; try again when it goes on");
    if (plan->net == NET_GATE)
        return gate_restart(plan, &box->gate, &box->helper);
    if (plan->runtime)
        return fail("unsupported", "the network of a sandbox with runtime='gvisor' cannot be changed while it runs");
    box->cut = !on;
    if (plan->network) /* it goes on to reach the others */
        return net_regroup(box->netlink, box->slot, box_group(box)) && (on || hang_up(box));
    if (plan->net == NET_EXEC && on)
        return box->helper.pid > 0 || helper_start(plan, box->init, box->userns, &box->helper);
    if (plan->net == NET_EXEC) {
        helper_end(&box->helper);
        return true;
    }
    if (plan->ids != IDS_RANGE)
        return !on || fail("unsupported", "a plain user's sandbox that began without a network cannot get one; create it with a network, "
                                          "and block that then");
    return on ? attach(box, machine, router) : cut(box);
}

/* `on ROUTER` with the machine's network namespace, or `off`. A gate reads its policy again. Without a word: which holds. */
void serve_network(struct box *box, struct request *request) {
    if (request->arguments[0] == '\0') {
        control_ok(request, box->cut ? "off" : "on");
        return;
    }
    char *router = request->arguments + strcspn(request->arguments, " ");
    if (*router != '\0')
        *router++ = '\0';
    if (change(box, request->fd[0], request->arguments, router))
        control_ok(request, "done");
    else
        control_failed(request);
}
