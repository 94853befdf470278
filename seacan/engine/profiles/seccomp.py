"""The default seccomp profile, and profiles in Docker's own JSON.

The default is an allow-list of the same strength as moby's (github.com/moby/profiles, seccomp): the same system calls
under the same conditions on capabilities, architecture and kernel. It is kept here by subject, so that it can be read
and argued about; what is not named is refused with EPERM.
"""

from __future__ import annotations

import functools
import platform
import re
from collections.abc import Collection
from typing import Any

import msgspec

from seacan.errors import InvalidParameter
from seacan.runtime.spec import LinuxSeccomp, LinuxSeccompArg, LinuxSyscall

ALLOWED = {
    "files": """
        _llseek access cachestat chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3
        faccessat faccessat2 fadvise64 fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchown32
        fchownat fcntl fcntl64 fdatasync flock fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64
        futimesat getcwd getdents getdents64 ioctl lchown lchown32 link linkat listmount lseek lstat lstat64 mkdir
        mkdirat mknod mknodat name_to_handle_at newfstatat open openat openat2 pipe pipe2 pread64 preadv preadv2
        pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv rename renameat renameat2 rmdir sendfile
        sendfile64 splice stat stat64 statfs statfs64 statmount statx symlink symlinkat sync sync_file_range syncfs
        tee truncate truncate64 unlink unlinkat utime utimensat utimensat_time64 utimes vmsplice write writev
    """,
    "xattrs": """
        fgetxattr flistxattr fremovexattr fsetxattr getxattr getxattrat lgetxattr listxattr listxattrat llistxattr
        lremovexattr lsetxattr removexattr removexattrat setxattr setxattrat
    """,
    "processes": """
        execve execveat exit exit_group fork get_thread_area getpid getppid getrandom gettid landlock_add_rule
        landlock_create_ruleset landlock_restrict_self pidfd_open pidfd_send_signal prctl restart_syscall
        riscv_hwprobe rseq seccomp set_thread_area set_tid_address sysinfo uname uretprobe vfork wait4 waitid
        waitpid
    """,
    "identity": """
        capget capset getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getpgid getpgrp
        getresgid getresgid32 getresuid getresuid32 getsid getuid getuid32 setfsgid setfsgid32 setfsuid setfsuid32
        setgid setgid32 setgroups setgroups32 setpgid setregid setregid32 setresgid setresgid32 setresuid
        setresuid32 setreuid setreuid32 setsid setuid setuid32 umask
    """,
    "scheduling": """
        getcpu getpriority getrlimit getrusage ioprio_get ioprio_set prlimit64 sched_get_priority_max
        sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler
        sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam
        sched_setscheduler sched_yield setpriority setrlimit ugetrlimit
    """,
    "memory": """
        brk madvise map_shadow_stack memfd_create memfd_secret mincore mlock mlock2 mlockall mmap mmap2 mprotect
        mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect remap_file_pages
    """,
    "signals": """
        alarm kill pause rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
        rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaltstack signalfd signalfd4 sigprocmask
        sigreturn tgkill tkill
    """,
    "timers": """
        adjtimex clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64
        clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer time timer_create
        timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create
        timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times
    """,
    "events": """
        _newselect epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait
        epoll_wait_old eventfd eventfd2 fanotify_mark inotify_add_watch inotify_init inotify_init1 inotify_rm_watch
        io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit poll ppoll
        ppoll_time64 pselect6 pselect6_time64 select
    """,
    "sockets": """
        accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg recvmmsg_time64
        recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair
    """,
    "ipc": """
        futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake get_robust_list ipc membarrier
        mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64
        mq_unlink msgctl msgget msgrcv msgsnd process_mrelease semctl semget semop semtimedop semtimedop_time64
        set_robust_list shmat shmctl shmdt shmget
    """,
}
"""Allowed to everybody. What one machine architecture lacks is skipped there."""

_NAMESPACES = 0x7E020000  # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}: none of these bits may be asked of clone(2)
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)  # Linux, Linux32, UNAME26, both, and "which am I?"

WITH_CAPABILITY = {
    "CAP_BPF": "bpf",
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_PERFMON": "perf_event_open",
    "CAP_SYSLOG": "syslog",
    "CAP_SYS_ADMIN": """
        bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr lsm_list_modules
        lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname
        sethostname setns syslog umount umount2 unshare
    """,
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module finit_module init_module",
    "CAP_SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
    "CAP_SYS_RAWIO": "ioperm iopl",
    "CAP_SYS_TIME": "clock_settime clock_settime64 settimeofday stime",
    "CAP_SYS_TTY_CONFIG": "vhangup",
}
"""Allowed besides to a container whose bounding set has the capability."""

ON_ARCHITECTURE = {
    "amd64": "arch_prctl modify_ldt",
    "x86": "modify_ldt",
    "arm": "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2",
    "arm64": "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2",
    "ppc64le": "swapcontext sync_file_range2",
    "riscv64": "riscv_flush_icache",
    "s390": "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr",
    "s390x": "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr",
}

_SINCE_4_8 = ("process_vm_readv", "process_vm_writev", "ptrace")
"""Before Linux 4.8 ptrace could change a system call after seccomp had looked at it."""

_SUB_ARCHITECTURES = {
    "SCMP_ARCH_X86_64": ("SCMP_ARCH_X86", "SCMP_ARCH_X32"),
    "SCMP_ARCH_AARCH64": ("SCMP_ARCH_ARM",),
    "SCMP_ARCH_MIPS64": ("SCMP_ARCH_MIPS", "SCMP_ARCH_MIPS64N32"),
    "SCMP_ARCH_MIPSEL64": ("SCMP_ARCH_MIPSEL", "SCMP_ARCH_MIPSEL64N32"),
    "SCMP_ARCH_S390X": ("SCMP_ARCH_S390",),
    "SCMP_ARCH_RISCV64": (),
    "SCMP_ARCH_LOONGARCH64": (),
}
_MACHINES = {
    "x86_64": ("amd64", "SCMP_ARCH_X86_64"),
    "aarch64": ("arm64", "SCMP_ARCH_AARCH64"),
    "armv7l": ("arm", "SCMP_ARCH_ARM"),
    "armv8l": ("arm", "SCMP_ARCH_ARM"),
    "i686": ("x86", "SCMP_ARCH_X86"),
    "i386": ("x86", "SCMP_ARCH_X86"),
    "mips64": ("mips64", "SCMP_ARCH_MIPS64"),
    "ppc64le": ("ppc64le", "SCMP_ARCH_PPC64LE"),
    "riscv64": ("riscv64", "SCMP_ARCH_RISCV64"),
    "loongarch64": ("loongarch64", "SCMP_ARCH_LOONGARCH64"),
    "s390x": ("s390x", "SCMP_ARCH_S390X"),
}
ENOSYS = 38


def _machine() -> tuple[str, str]:
    """This machine in Docker's words for a profile's conditions, and in libseccomp's."""
    return _MACHINES.get(platform.machine(), (platform.machine(), ""))


def _kernel() -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", platform.release())
    return (int(match[1]), int(match[2])) if match else (0, 0)


def default(capabilities: Collection[str]) -> LinuxSeccomp:
    """The profile of a container with this bounding set. The same object for the same set: not to be changed."""
    return _default(frozenset(capabilities) & frozenset(WITH_CAPABILITY))


@functools.lru_cache(maxsize=256)
def _default(capabilities: frozenset[str]) -> LinuxSeccomp:
    machine, architecture = _machine()
    names = {name for group in ALLOWED.values() for name in group.split()}
    names.update(ON_ARCHITECTURE.get(machine, "").split())
    for capability in capabilities:
        names.update(WITH_CAPABILITY[capability].split())
    if _kernel() >= (4, 8):
        names.update(_SINCE_4_8)
    rules = [LinuxSyscall(names=sorted(names), action="SCMP_ACT_ALLOW")]
    # No AF_VSOCK (40), which reaches past the network namespace to the hypervisor, and no AF_ALG (38), the kernel's
    # cryptography, which no container needs and which has had its share of privilege escalations.
    for operator, family in (("SCMP_CMP_LT", 38), ("SCMP_CMP_EQ", 39), ("SCMP_CMP_GT", 40)):
        rules.append(_allow("socket", 0, family, operator))
    rules.extend(_allow("personality", 0, value, "SCMP_CMP_EQ") for value in _PERSONALITIES)
    if "CAP_SYS_ADMIN" not in capabilities:
        flags = 1 if machine in ("s390", "s390x") else 0
        rules.append(_allow("clone", flags, _NAMESPACES, "SCMP_CMP_MASKED_EQ"))
        # Its flags lie behind a pointer, where no filter can look; C libraries fall back to clone on ENOSYS.
        rules.append(LinuxSyscall(names=["clone3"], action="SCMP_ACT_ERRNO", errno_ret=ENOSYS))
    architectures = [architecture, *_SUB_ARCHITECTURES[architecture]] if architecture in _SUB_ARCHITECTURES else []
    return LinuxSeccomp(
        default_action="SCMP_ACT_ERRNO", default_errno_ret=1, architectures=architectures, syscalls=rules
    )


def _allow(name: str, argument: int, value: int, operator: str) -> LinuxSyscall:
    return LinuxSyscall(
        names=[name], action="SCMP_ACT_ALLOW", args=[LinuxSeccompArg(index=argument, value=value, op=operator)]
    )


class _Condition(msgspec.Struct, rename="camel"):
    caps: list[str] | None = None
    arches: list[str] | None = None
    min_kernel: str | None = None

    def excludes(self, capabilities: Collection[str], machine: str) -> bool:
        return (
            machine in (self.arches or ())
            or any(capability in capabilities for capability in self.caps or ())
            or (self.min_kernel is not None and _kernel() >= _version(self.min_kernel))
        )

    def includes(self, capabilities: Collection[str], machine: str) -> bool:
        return (
            (not self.arches or machine in self.arches)
            and all(capability in capabilities for capability in self.caps or ())
            and (self.min_kernel is None or _kernel() >= _version(self.min_kernel))
        )


class _Rule(msgspec.Struct, rename="camel"):
    name: str = ""
    names: list[str] | None = None
    action: str = ""
    errno_ret: int | None = None
    args: list[LinuxSeccompArg] | None = None
    includes: _Condition | None = None
    excludes: _Condition | None = None


class _Architecture(msgspec.Struct, rename="camel"):
    architecture: str = ""
    sub_architectures: list[str] | None = None


class _Profile(msgspec.Struct, rename="camel"):
    default_action: str = ""
    default_errno_ret: int | None = None
    architectures: list[str] | None = None
    arch_map: list[_Architecture] | None = None
    flags: list[str] | None = None
    listener_path: str = ""
    listener_metadata: str = ""
    syscalls: list[_Rule] | None = None


def parse(text: str | bytes, capabilities: Collection[str]) -> LinuxSeccomp | None:
    """Read a profile in Docker's JSON (``--security-opt seccomp=profile.json``), conditions resolved for this machine.

    Returns None for an empty profile, which means no filter. Raises InvalidParameter in dockerd's words.
    """
    try:
        profile = msgspec.json.decode(text, type=_Profile)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidParameter(f"Decoding seccomp profile failed: {error}") from error
    if not profile.default_action and not profile.syscalls:
        return None
    architectures = list(profile.architectures or [])
    if architectures and profile.arch_map:
        raise InvalidParameter(
            "both 'architectures' and 'archMap' are specified in the seccomp profile, "
            "use either 'architectures' or 'archMap'"
        )
    machine, native = _machine()
    for entry in profile.arch_map or []:
        if entry.architecture == native:
            architectures = [native, *(entry.sub_architectures or [])]
            break
    rules = []
    for rule in profile.syscalls or []:
        if rule.name and rule.names:
            raise InvalidParameter(
                "both 'name' and 'names' are specified in the seccomp profile, use either 'name' or 'names'"
            )
        if rule.excludes is not None and rule.excludes.excludes(capabilities, machine):
            continue
        if rule.includes is not None and not rule.includes.includes(capabilities, machine):
            continue
        names = [rule.name] if rule.name else list(rule.names or [])
        rules.append(LinuxSyscall(names=names, action=rule.action, errno_ret=rule.errno_ret, args=rule.args or []))
    optional: dict[str, Any] = {}
    if profile.default_errno_ret is not None:
        optional["default_errno_ret"] = profile.default_errno_ret
    return LinuxSeccomp(
        default_action=profile.default_action,
        architectures=architectures,
        flags=profile.flags or [],
        listener_path=profile.listener_path,
        listener_metadata=profile.listener_metadata,
        syscalls=rules,
        **optional,
    )


def _version(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)\.(\d+)", text)
    if match is None:
        raise InvalidParameter(f"invalid kernel version: {text!r}, expected format: <kernel>.<major>, such as 4.8")
    return int(match[1]), int(match[2])
