/* See owner.h. The supervisor's loop polls `box->owner`, which is readable once the process has ended. */
#include "kernel.h"

#include "fail.h"
#include "owner.h"
#include "util.h"

bool owner_watch(struct box *box, uint64_t pid) {
    int owner = pid == 0 ? -1 : (int)syscall(NR_PIDFD_OPEN, (pid_t)pid, 0);
    if (pid != 0 && owner < 0)
        return fail("internal", "its owner, process %llu, is gone", (unsigned long long)pid);
    close_fd(&box->owner);
    box->owner = owner;
    return true;
}

void serve_owner(struct box *box, struct request *request) {
    uint64_t pid = 0;
    bool good = parse_u64(request->arguments, &pid) && pid <= INT32_MAX;
    if (good ? owner_watch(box, pid) : fail("internal", "owner needs a process id"))
        control_ok(request, "owner");
    else
        control_failed(request);
}
