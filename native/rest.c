/* Nobody may be left waiting for an agent that is stopped. So a pause takes two steps:
 *
 *   idle    the agent wishes it. The supervisor makes the file `paused`, and asks
 *   sure?   the agent looks whether anything has come meanwhile, and only if not, says
 *   rest    and everything is stopped
 *
 * Whoever sends something looks for that file afterwards, and asks for `resume` if it is there. If it is not, what was
 * sent is before the agent when it looks. In a container the supervisor is a child of the engine's
 * (pauser.c), which asks by the request REST. */
#include "kernel.h"
#include "rest.h"

#include "agent.h"
#include "state.h"

#include <string.h>
#include <sys/socket.h>

static enum { AWAKE, WISHED, ASKED, RESTING } now;

static void say(const char *word) {
    send(agent.config->control_fd, word, strlen(word), MSG_NOSIGNAL);
}

bool rest_wish(void) {
    if (now != AWAKE)
        return false;
    now = WISHED;
    say("idle");
    return true;
}

bool rest_is_wished(void) {
    return now == WISHED;
}

bool rest_is_agreed(void) {
    return now == RESTING;
}

bool rest_counts(void) {
    return now == AWAKE;
}

void rest_hear(char word) {
    if (word == 's' && now == WISHED)
        now = ASKED;
    else if (word == 's')
        say("busy"); /* it was let go on before the supervisor had heard its wish, and the file is there again */
    if (word == 'w') {
        now = AWAKE;
        agent.active = agent.asked = agent.now;
    }
}

bool rest_is_asked(void) {
    return now == ASKED;
}

void rest_answer(bool quiet, bool idle) {
    if (now != ASKED || (idle && !quiet))
        return; /* what came may be no request: look again */
    now = idle ? RESTING : AWAKE;
    say(idle ? "rest" : "busy");
}
