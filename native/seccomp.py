"""Write the system-call filter as C: `python seccomp.py COMPILER [ARGUMENT…] > seccomp_filter.h`;
`--check` first prints names instead.

An allow list: the unconditional names of Docker's profile (moby/profiles, 2026) and chroot, less
those of DENIED. A refusal has the errno that programs go on from: what takes a privilege fails with
EPERM, as for everybody who lacks it (PRIVILEGED); what a kernel may be built without, and what
nobody knew when this was written, fails with ENOSYS, as there; so do families, protocols and
options of sockets, with their own three. Programs know only these: libaudit takes EPERM of a kernel
without auditing for a failure, and no user can be added. Numbers come from the target's own
headers, and from 424 on, where they are the same on every CPU, from RECENT: headers may be old.
Only the native way in is allowed: another architecture's calls kill the process, x32's do not
exist.
"""

import re
import subprocess
import sys

ALLOWED = """
accept accept4 access adjtimex alarm arch_prctl bind brk cachestat capget capset chdir chmod chown chroot clock_adjtime clock_getres
clock_gettime clock_nanosleep close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl
epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2
fadvise64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fork
fremovexattr fsetxattr fstat fstatfs fsync ftruncate futex futex_requeue futex_wait futex_waitv futex_wake futimesat get_robust_list
get_thread_area getcpu getcwd getdents getdents64 getegid geteuid getgid getgroups getitimer getpeername getpgid getpgrp getpid getppid
getpriority getrandom getresgid getresuid getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid getxattr getxattrat
inotify_add_watch inotify_init inotify_init1 inotify_rm_watch ioprio_get ioprio_set kill landlock_add_rule landlock_create_ruleset
landlock_restrict_self lchown lgetxattr link linkat listen listmount listxattr listxattrat llistxattr lremovexattr lseek lsetxattr lstat
madvise map_shadow_stack membarrier memfd_create mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mprotect mq_getsetattr
mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap nanosleep
newfstatat open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll prctl pread64
preadv preadv2 prlimit64 process_mrelease process_vm_readv process_vm_writev pselect6 ptrace pwrite64 pwritev pwritev2 read readahead
readlink readlinkat readv recvfrom recvmmsg recvmsg removexattr removexattrat rename renameat renameat2 restart_syscall rmdir rseq
rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo
sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval
sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop sendfile
sendmmsg sendmsg sendto set_robust_list set_thread_area set_tid_address setfsgid setfsuid setgid setgroups setitimer setpgid setpriority
setregid setresgid setresuid setreuid setrlimit setsid setuid setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd
signalfd4 socketpair splice stat statfs statmount statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create
timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime times tkill truncate umask uname
unlink unlinkat uretprobe utime utimensat utimes vfork vmsplice wait4 waitid write writev
""".split()

# In Docker's list and not in ours: each has been part of an escape or a page-cache attack, and no
# sandboxed program needs it; and asynchronous I/O of the old kind, whose contexts are counted for
# the whole machine (fs.aio-max-nr).
DENIED = (
    *("memfd_secret", "modify_ldt", "name_to_handle_at", "remap_file_pages"),
    *("io_setup", "io_destroy", "io_submit", "io_cancel", "io_getevents", "io_pgetevents"),
)

# What every kernel has and refuses to those without a privilege. Programs expect that, and say so.
PRIVILEGED = """
acct clock_settime delete_module fanotify_init finit_module fsconfig fsmount fsopen fspick init_module ioperm iopl kexec_file_load
kexec_load mount mount_setattr move_mount open_by_handle_at open_tree pivot_root quotactl reboot setdomainname sethostname setns
settimeofday swapoff swapon syslog umount2 unshare vhangup
""".split()

# The gate, when it has loaded all of its Python: what it does with its sockets, its log and its
# memory. No file is opened, no program or thread started, no memory made executable.
GATE = """
accept accept4 brk clock_gettime clock_nanosleep close connect epoll_ctl epoll_pwait epoll_pwait2 epoll_wait exit exit_group fcntl fstat
ftruncate futex getpeername getpid getrandom getsockname getsockopt gettid gettimeofday lseek madvise membarrier mremap munmap nanosleep
poll ppoll pread64 pwrite64 read readv recvfrom recvmsg restart_syscall rseq rt_sigaction rt_sigprocmask rt_sigreturn sched_yield sendmsg
sendto shutdown sigaltstack time write writev
""".split()

RECENT = """
424 pidfd_send_signal io_uring_setup io_uring_enter io_uring_register open_tree move_mount fsopen fsconfig fsmount fspick pidfd_open
435 clone3 close_range openat2 pidfd_getfd faccessat2 process_madvise epoll_pwait2 mount_setattr quotactl_fd landlock_create_ruleset
445 landlock_add_rule landlock_restrict_self memfd_secret process_mrelease futex_waitv set_mempolicy_home_node cachestat fchmodat2
453 map_shadow_stack futex_wake futex_wait futex_requeue statmount listmount lsm_get_self_attr lsm_set_self_attr lsm_list_modules mseal
463 setxattrat getxattrat listxattrat removexattrat open_tree_attr file_getattr file_setattr
"""

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
LOAD, RETURN, JUMP, JUMP_EQUAL, JUMP_ABOVE, JUMP_SET = 0x20, 0x06, 0x05, 0x15, 0x35, 0x45
ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
ENOPROTOOPT, EPROTONOSUPPORT, EAFNOSUPPORT = 0x0005005C, 0x0005005D, 0x00050061
NUMBER, ARCHITECTURE = 0, 4  # where they are in struct seccomp_data
PROT_EXEC = 4
CLONE_NEW = 0x7E020000  # all namespaces but time, whose bit is part of the exit signal here

Step = tuple[int, int, int, int]  # code, jump if true, jump if false, operand


def argument(index: int) -> Step:
    """Load an argument's low half: all that the kernel looks at, where it is an int."""
    return (LOAD, 0, 0, 16 + 8 * index)


def one_of(values: list[int], then: int, otherwise: int) -> list[Step]:
    """Compare what is loaded with each value."""
    tests = [(JUMP_EQUAL, len(values) - i, 0, value) for i, value in enumerate(values)]
    return [*tests, (RETURN, 0, 0, otherwise), (RETURN, 0, 0, then)]


def by_argument() -> dict[str, list[Step]]:
    """Return the calls that depend on what they are called with."""
    netlink = [argument(2), *one_of([0], ALLOW, EPROTONOSUPPORT)]  # NETLINK_ROUTE
    # The default, ICMP (ping), TCP, UDP, ICMPv6. Asking for SCTP, DCCP, L2TP and others would load
    # their modules, and nothing lets their packets out; programs that try MPTCP fall back to TCP.
    internet = [argument(2), *one_of([0, 1, 6, 17, 58], ALLOW, EPROTONOSUPPORT)]
    # SO_ATTACH_FILTER, SO_ATTACH_BPF, SO_ATTACH_REUSEPORT_CBPF and _EBPF: compiled, they lie in
    # memory that is the whole machine's (net.core.bpf_jit_limit). All are there to be quicker, or
    # to see less. SOL_SOCKET has the number 1.
    filters = [argument(2), *one_of([26, 50, 51, 52], ENOPROTOOPT, ALLOW)]
    return {
        "socket": [
            argument(0),
            (JUMP_EQUAL, 0, len(netlink), 16),
            *netlink,
            (JUMP_EQUAL, 1, 0, 2),
            (JUMP_EQUAL, 0, len(internet), 10),
            *internet,
            *one_of([1], ALLOW, EAFNOSUPPORT),
        ],
        "setsockopt": [argument(1), (JUMP_EQUAL, 1, 0, 1), (RETURN, 0, 0, ALLOW), *filters],
        "clone": [argument(0), (JUMP_SET, 0, 1, CLONE_NEW), (RETURN, 0, 0, EPERM), (RETURN, 0, 0, ALLOW)],
        "clone3": [(RETURN, 0, 0, ENOSYS)],  # its flags lie in memory, where a filter cannot see them
        "ioctl": [argument(1), *one_of([0x5412, 0x541C], EPERM, ALLOW)],  # TIOCSTI, TIOCLINUX: typing for others
        "personality": [argument(0), *one_of([0, 8, 0x20000, 0x20008, 0xFFFFFFFF], ALLOW, EPERM)],
    }


def by_argument_of_gate() -> dict[str, list[Step]]:
    """Return the gate's calls that depend on what they are called with."""
    no_code = [argument(2), (JUMP_SET, 0, 1, PROT_EXEC), (RETURN, 0, 0, EPERM), (RETURN, 0, 0, ALLOW)]
    return {
        "socket": [argument(0), *one_of([2], ALLOW, EPERM)],  # AF_INET
        "setsockopt": [
            argument(2),
            *one_of([1, 13], ALLOW, EPERM),
        ],  # TCP_NODELAY, SO_LINGER: no filters (SO_ATTACH_FILTER)
        "ioctl": [argument(1), *one_of([0x5421], ALLOW, EPERM)],  # FIONBIO
        "mmap": no_code,
        "mprotect": no_code,
    }


def target(compiler: list[str]) -> tuple[str, dict[str, int]]:
    """Ask the compiler which CPU it compiles for, and that CPU's numbers."""
    ask = subprocess.run(
        [*compiler, "-E", "-dM", "-x", "c", "-"],
        input="#include <sys/syscall.h>",
        text=True,
        check=True,
        capture_output=True,
    )
    macros = dict(re.findall(r"^#define (\w+) (\S+)$", ask.stdout, re.MULTILINE))
    cpu = next((cpu for cpu in AUDIT_ARCH if f"__{cpu}__" in macros), None)
    if cpu is None:
        sys.exit("seccomp.py: there is a profile for x86_64 and aarch64 only")
    numbers = {}
    for name, value in macros.items():
        while value in macros:  # asm-generic: __NR_fcntl is __NR3264_fcntl is 25
            value = macros[value]
        if name.startswith("__NR_") and value.isdigit() and int(value) < 424:
            numbers[name[5:]] = int(value)
    if cpu == "x86_64":
        numbers["uretprobe"] = 335  # late in headers; without it a traced program dies
    for line in RECENT.strip().splitlines():
        first, *names = line.split()
        numbers |= {name: int(first) + i for i, name in enumerate(names)}
    return cpu, numbers


def verdicts(numbers: dict[str, int], *, gate: bool) -> dict[str, list[Step]]:
    """Return what to do with each call. The gate asks for nothing that it may not have, so it needs no errno to go on from."""
    special = by_argument_of_gate() if gate else by_argument()
    allowed = GATE if gate else ALLOWED
    refused = EPERM if gate else ENOSYS
    found = dict.fromkeys(numbers, refused) | dict.fromkeys(PRIVILEGED, EPERM) | dict.fromkeys(allowed, ALLOW)
    return {name: special.get(name, [(RETURN, 0, 0, found[name])]) for name in numbers}


def decide(numbers: dict[str, int], *, gate: bool) -> list[tuple[int, list[Step]]]:
    """Return what to do from which number on, as (first number, steps)."""
    rules = {numbers[name]: steps for name, steps in verdicts(numbers, gate=gate).items()}
    unknown = [(RETURN, 0, 0, ENOSYS)]
    ranges: list[tuple[int, list[Step]]] = []
    for number in range(max(rules) + 2):
        steps = rules.get(number, unknown)
        if not ranges or ranges[-1][1] != steps:
            ranges.append((number, steps))
    return ranges


def tree(ranges: list[tuple[int, list[Step]]]) -> list[Step]:
    """Return a balanced tree of comparisons; a jump reaches 255 steps at most, further ones take a step of their own."""
    if len(ranges) == 1:
        return ranges[0][1]
    middle = len(ranges) // 2
    low, high = tree(ranges[:middle]), tree(ranges[middle:])
    if len(low) < 256:
        return [(JUMP_ABOVE, len(low), 0, ranges[middle][0]), *low, *high]
    return [(JUMP_ABOVE, 0, 1, ranges[middle][0]), (JUMP, 0, 0, len(low)), *low, *high]


def program(cpu: str, numbers: dict[str, int], *, gate: bool = False) -> list[Step]:
    """Return the whole filter, a sandbox's or its gate's."""
    check = [
        (LOAD, 0, 0, ARCHITECTURE),
        (JUMP_EQUAL, 1, 0, AUDIT_ARCH[cpu]),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER),
    ]
    return [
        *check,
        *tree(decide(numbers, gate=gate)),
    ]  # x32's numbers, from 0x40000000 on, are above every known one: ENOSYS


def main() -> None:
    """See the module's docstring."""
    arguments = sys.argv[1:]
    only_names = arguments[:1] == ["--check"]
    cpu, numbers = target(arguments[only_names:] or ["cc"])
    if only_names:
        print("\n".join(sorted(name for name in numbers if name in ALLOWED or name in by_argument())))
        return
    for name, gate in (("seccomp_filter", False), ("gate_filter", True)):
        steps = program(cpu, numbers, gate=gate)
        print(f"/* Made by seccomp.py for {cpu}: {len(steps)} steps. */\nstatic const struct filter_step {name}[] = {{")
        print("\n".join(f"    {{0x{code:02x}, {yes}, {no}, 0x{operand:08x}}}," for code, yes, no, operand in steps))
        print("};")


if __name__ == "__main__":
    main()
