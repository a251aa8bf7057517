/* See member.h. The file has lines of equal size, the first of which is the SDK's. Every member holds a shared lock (flock) on the
 * file, and on its line one of the kernel's that ends with its process, however that ends: whoever comes next takes the line.
 * Readers see the file while it is written, so no line ever changes its place. */
#include "kernel.h"
#include "member.h"

#include "fail.h"
#include "util.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

enum { LINE = 256, MOST_MEMBERS = 1024 }; /* a C library may read no longer lines than 512 */

static bool lock_line(int file, short type, unsigned line) {
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = (off_t)line * LINE, .l_len = LINE};
    return fcntl(file, F_OFD_SETLK, &lock) == 0;
}

static bool write_line(int file, unsigned line, const char *text) {
    char padded[LINE + 1];
    snprintf(padded, sizeof padded, "%-*.*s\n", LINE - 1, LINE - 1, text);
    return pwrite(file, padded, LINE, (off_t)line * LINE) == LINE;
}

/* The first line that nobody has, locked. Lines of members that were killed are blanked on the way. 0: there is none. */
static unsigned take_line(int file) {
    unsigned taken = 0, end = (unsigned)(lseek(file, 0, SEEK_END) / LINE);
    for (unsigned line = 1; line <= MOST_MEMBERS && (line < end || !taken); line++) {
        if (!lock_line(file, F_WRLCK, line))
            continue;
        if (taken && write_line(file, line, ""))
            lock_line(file, F_UNLCK, line);
        else if (!taken)
            taken = line;
    }
    return taken;
}

bool member_join(struct member *member, const struct plan *plan, uint32_t address) {
    char text[LINE], shown[INET_ADDRSTRLEN];
    if (member->file >= 0)
        return true;
    member->file = open(plan->network, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (member->file < 0 || flock(member->file, LOCK_SH) != 0)
        return fail("network", "cannot open the file of a network %s: %m", plan->network);
    if ((member->line = take_line(member->file)) == 0)
        return fail("limit", "the network has %d sandboxes, which is as many as it can have; end some of them first", MOST_MEMBERS);
    inet_ntop(AF_INET, &address, shown, sizeof shown);
    snprintf(text, sizeof text, "%s\t%s%s%s", shown, plan->names ? plan->names : "", plan->names ? " " : "", plan->hostname ? plan->hostname : "");
    return write_line(member->file, member->line, text) || fail(NULL, "cannot write the names of a sandbox into its network: %m");
}

void member_leave(struct member *member, const struct plan *plan) {
    if (member->file >= 0 && member->line > 0) {
        write_line(member->file, member->line, "");
        lock_line(member->file, F_UNLCK, member->line);
    }
    if (member->file >= 0 && flock(member->file, LOCK_EX | LOCK_NB) == 0)
        unlink(plan->network);
    close_fd(&member->file);
}
