/* openmodal-agent: one static program, started under a verb. Which part runs where: docs/protocol.md. */
#include "util.h"
#include "verbs.h"

#include <stdio.h>
#include <string.h>

static const struct {
    const char *name;
    int (*run)(int, char **);
} verbs[] = {{"box", verb_box},     {"init", verb_init},     {"dial", verb_dial},
             {"reach", verb_reach}, {"router", verb_router}, {"wall", verb_wall},
             {"ask", verb_ask},     {"remove", verb_remove}, {"forward", verb_forward},
             {"hangup", verb_hangup}, {"own", verb_own},     {"pause", verb_pause},
             {"changes", verb_changes}, {"bound", verb_bound}};

/* The start of a static program with glibc asserts that /proc/self/exe is a path. In gVisor, where ours comes as a descriptor, it is not.
 * Nothing here looks for libraries beside the program, so this stands for glibc's own function; musl has none. */
const char *_dl_get_origin(void);

const char *_dl_get_origin(void) {
    return (const char *)-1; /* unknown */
}

int main(int argc, char **argv) {
    if (argc >= 2 && strcmp(argv[1], "--version") == 0) {
        printf("openmodal-agent %s protocol %d\n", OPENMODAL_VERSION, OPENMODAL_PROTOCOL);
        return 0;
    }
    for (size_t i = 0; argc >= 2 && i < sizeof verbs / sizeof *verbs; i++)
        if (strcmp(argv[1], verbs[i].name) == 0)
            return verbs[i].run(argc - 1, argv + 1);
    fprintf(stderr,
            "openmodal-agent: say one of box, init, dial, reach, router, wall, ask, remove, forward, hangup, own, pause, changes, bound, --version; this program is started by openmodal\n");
    return 2;
}
