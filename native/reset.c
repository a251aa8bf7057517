/* A reset is no cleaning but a new beginning: process 1, all its namespaces, its upper folder, its
 * interface and its groups are new, so nothing can be forgotten. What stays is what makes it the same
 * sandbox for everybody else: its folder with the lock, its slot of ids, its deadline, its owner, and the
 * sockets' names.
 *
 * The supervisor does it all by itself, as it did at first, and hears nobody meanwhile. */
#include "kernel.h"
#include "layers.h"
#include "live.h"

#include "fail.h"
#include "groups.h"
#include "ids.h"
#include "net.h"
#include "util.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>

/* Whoever connects from now on waits for the new agent. */
static bool listen_anew(struct box *box) {
    mode_t mask = umask(0177);
    close_fd(&box->agent_listener);
    box->agent_listener = -1;
    unlinkat(box->folder, "agent.next", 0);
    bool listens = fchdir(box->folder) == 0 && (box->agent_listener = listen_at("agent.next")) >= 0 &&
                   rename("agent.next", "agent.sock") == 0;
    if (chdir("/") != 0)
        listens = false;
    umask(mask);
    return listens || fail(NULL, "cannot listen for the new agent: %m");
}

/* The old namespace is held, so that nobody but the child removes the interface, and not a later one of the
 * same number; by its sockets it has told everybody that they are gone. The child waits for the kernel. */
static void drop_network(struct box *box, int held) {
    if (box->netlink < 0)
        return;
    if (net_is_silent(box->netlink, box->slot)) /* else what is known of its connections is forgotten with the next */
        slot_mark(box->slot_lock, box->slot, false);
    if (fork() == 0) {
        begin_child();
        net_remove(box->netlink, box->slot);
        _exit(0);
    }
    await_detached(box);
    close_fd(&box->netlink);
    box->netlink = -1;
    close_fd(&held);
}

static void close_all(struct box *box) {
    int *fds[] = {&box->link, &box->init_link, &box->init_pidfd, &box->userns, &box->oom, &box->network, &box->inside,
                  &box->output[0], &box->output[1], &box->gate.sockets[0], &box->gate.sockets[1]};
    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++) {
        close_fd(fds[i]);
        *fds[i] = -1;
    }
    box->gate.ends = 0;
    box->told = false;
    stop_forget(box);
    box->written[0] = box->written[1] = 0;
}

static bool begin_again(struct box *box) {
    int held = box->netlink >= 0 ? open_namespace(box->init, "net") : -1;
    control_end_work(box, false); /* who looks at its files holds its disk, which must not be mounted twice */
    stop_all(box);
    drop_network(box, held);
    close_all(box);
    if (!groups_remove(box->plan))
        return fail("internal", "a cgroup could not be removed: %m");
    layers_set(box, &box->shaping.list); /* first: who removes the old files would hold the former lock, too */
    return layers_begin_anew(box) && box_run(box);
}

void serve_reset(struct box *box, struct request *request) {
    if (box->plan->keep)
        fail("unsupported", "a step of an image's build cannot be reset");
    else if (layers_take(box, request) && listen_anew(box) && !begin_again(box))
        end_with(box, "error", 137);
    if (failure())
        control_failed(request);
    else
        control_ok(request, "%s", "");
    if (box->shaping.child == 0)
        layers_drop(box);
    layers_empty_trash(box);
}
