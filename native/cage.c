/* The order in cage_lock() matters: each step needs something that a later one gives up. See cage.h. */
#include "kernel.h"
#include "cage.h"

#include "fail.h"
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <stddef.h>
#include <signal.h>
#include <sys/fsuid.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>

/* ---- capabilities ---- */

/* chown, dac_override, fowner, fsetid, kill, setgid, setuid, net_bind_service, sys_chroot, setfcap: Docker's without mknod,
 * net_raw, setpcap and audit_write. */
#define KEPT_CAPS 0x800404fbULL

/* dac_override, setgid, setuid: to read what it begins with, and to become somebody else, who has none. */
#define GATE_CAPS 0xc2ULL

struct cap_header {
    uint32_t version;
    int pid;
};
struct cap_words {
    uint32_t effective, permitted, inheritable;
};
enum { CAP_VERSION_3 = 0x20080522, KEYCTL_JOIN_SESSION = 1, SECCOMP_FILTER = 1 };

static bool get_caps(struct cap_words words[2]) {
    struct cap_header header = {CAP_VERSION_3, 0};
    return syscall(SYS_capget, &header, words) == 0;
}

static bool set_caps(const struct cap_words words[2]) {
    struct cap_header header = {CAP_VERSION_3, 0};
    return syscall(SYS_capset, &header, words) == 0;
}

/* Leaving fsuid 0 takes the file capabilities from the effective set. Without them the overlay would come up read-only. */
bool cage_own_as(uint32_t base) {
    setfsgid(base);
    setfsuid(base);
    return cage_raise();
}

bool cage_raise(void) {
    struct cap_words words[2];
    if (!get_caps(words))
        return fail(NULL, "capget: %m");
    words[0].effective = words[0].permitted;
    words[1].effective = words[1].permitted;
    return set_caps(words) || fail(NULL, "capset: %m");
}

static bool drop_caps(uint64_t kept) {
    for (int cap = 0; prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++)
        if (!(kept >> cap & 1) && prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) != 0)
            return fail(NULL, "cannot drop capability %d: %m", cap);
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) != 0)
        return fail(NULL, "cannot clear the ambient capabilities: %m");
    const struct cap_words words[2] = {{(uint32_t)kept, (uint32_t)kept, 0}, {0, 0, 0}};
    return set_caps(words) || fail(NULL, "cannot reduce the capabilities: %m");
}

/* ---- limits ---- */

static bool set_limit(int number, uint64_t soft, uint64_t hard) {
    struct rlimit now, wanted;
    if (prlimit(0, number, NULL, &now) != 0)
        return fail(NULL, "getrlimit %d: %m", number);
    wanted.rlim_max =
        hard < now.rlim_max ? (rlim_t)hard : now.rlim_max; /* raising takes a capability that even root may lack */
    wanted.rlim_cur = soft < wanted.rlim_max ? (rlim_t)soft : wanted.rlim_max;
    return prlimit(0, number, &wanted, NULL) == 0 || fail(NULL, "setrlimit %d: %m", number);
}

bool cage_limit(const struct plan *plan) {
    for (size_t i = 0; i < plan->rlimit.count; i++)
        if (!set_limit(plan->rlimit.item[i].number, plan->rlimit.item[i].soft, plan->rlimit.item[i].hard))
            return false;
    if (CPU_COUNT(&plan->cpus) > 0 && sched_setaffinity(0, sizeof plan->cpus, &plan->cpus) != 0)
        return fail(NULL, "cannot run on the CPUs of the plan: %m");
    /* A core pattern that starts with "|" runs its program on the host, as root, whatever the limit is, unless it is 1. */
    return set_limit(RLIMIT_CORE, 1, 1);
}

/* ---- filter ---- */

struct filter_step {
    uint16_t code;
    uint8_t jt, jf;
    uint32_t k;
};

/* Made by seccomp.py for the CPU that is compiled for: `static const struct filter_step seccomp_filter[]`. */
#include "seccomp_filter.h"

static bool install_filter(bool may_lack) {
    const struct {
        unsigned short length;
        const struct filter_step *filter;
    } program = {sizeof seccomp_filter / sizeof *seccomp_filter, seccomp_filter};
    return prctl(PR_SET_SECCOMP, 2 /* SECCOMP_MODE_FILTER */, &program, 0, 0) == 0 || may_lack ||
           fail("seccomp", "the filter of system calls (seccomp) cannot be installed: %m; use a kernel with CONFIG_SECCOMP_FILTER, or "
                      "create the sandbox without it: allow_degraded=[\"seccomp\"]");
}

/* ---- lock ---- */

static bool become_root(const struct plan *plan, int userns) {
    if (userns >= 0 && !(plan->weaken & WEAKEN_IDS) && setns(userns, CLONE_NEWUSER) != 0)
        return fail(NULL, "cannot enter the user namespace: %m");
    if (plan->ids != IDS_SINGLE &&
        setgroups(0, NULL) != 0) /* with one id only the kernel forbids it, and shows groups as nobody's */
        return fail(NULL, "cannot leave the groups: %m");
    return (setresgid(0, 0, 0) == 0 && setresuid(0, 0, 0) == 0) || fail(NULL, "cannot become root of the user namespace: %m");
}

bool cage_contain(void) {
    if (!set_limit(RLIMIT_CORE, 1, 1) || !set_limit(RLIMIT_NOFILE, 4096, 65536) || !drop_caps(KEPT_CAPS))
        return false;
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 ? install_filter(false) : fail(NULL, "cannot set no_new_privs: %m");
}

/* Its own filter it installs itself, when it has loaded what it serves with; until then the sandbox's holds. */
int cage_gate(const struct plan *plan) {
    bool may_lack = plan->may_lack & MAY_LACK_SECCOMP;
    AUTO_FD int file = memfd_create("filter", MFD_CLOEXEC);
    if ((geteuid() == 0 && !drop_caps(GATE_CAPS)) || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || !install_filter(may_lack) || file < 0 ||
        (!may_lack && !write_all(file, gate_filter, sizeof gate_filter)))
        return -1;
    return fcntl(file, F_DUPFD_CLOEXEC, 0);
}

bool cage_lock(const struct plan *plan, int userns) {
    if (!become_root(plan, userns))
        return false;
    if (syscall(SYS_keyctl, KEYCTL_JOIN_SESSION, NULL) < 0 && errno != ENOSYS)
        return fail(NULL, "cannot leave the caller's keyring: %m");
    if (!plan->runtime && !(plan->weaken & WEAKEN_CAPS) && !drop_caps(KEPT_CAPS))
        return false;
    if (!(plan->weaken & WEAKEN_NNP) && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        return fail(NULL, "cannot set no_new_privs: %m");
    /* Changing ids has cleared both. Dumpable only until the agent has opened its own /proc/self/oom_score_adj, before it
     * starts anything: then it sets 0, and nobody inside may trace or read it. */
    if (prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) != 0 || prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) != 0)
        return fail(NULL, "prctl: %m");
    umask(022);
    return plan->runtime || (plan->weaken & WEAKEN_SECCOMP) ? true : install_filter(plan->may_lack & MAY_LACK_SECCOMP);
}
