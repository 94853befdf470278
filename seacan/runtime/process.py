"""What makes a process the container's: user, capabilities, limits, labels, working directory, and execve.

Init and exec share it. :func:`plan` works everything out in the parent; the rest runs in the child, where each step
that can fail says so in runc's words before the caller is told that the process is ready.
"""

from __future__ import annotations

import errno
import fcntl
import os
import posixpath
import resource
import signal
import stat
import struct
import termios
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

import msgspec

from seacan.errors import InvalidParameter
from seacan.linux import capabilities
from seacan.linux import syscalls as k
from seacan.linux.paths import is_on, open_in_root
from seacan.runtime import spec
from seacan.runtime.failure import SetupFailed, step, words
from seacan.runtime.rootfs import write_procfs

_CAP_SYS_ADMIN: Final = 1 << capabilities.CAP_SYS_ADMIN
_PASSWD_LIMIT: Final = 1 << 20
_EXEC_FAILED: Final = 255

_POLICIES: Final = {
    "SCHED_OTHER": 0,
    "SCHED_FIFO": 1,
    "SCHED_RR": 2,
    "SCHED_BATCH": 3,
    "SCHED_ISO": 4,
    "SCHED_IDLE": 5,
    "SCHED_DEADLINE": 6,
}
_SCHED_FLAGS: Final = {
    "SCHED_FLAG_RESET_ON_FORK": 0x01,
    "SCHED_FLAG_RECLAIM": 0x02,
    "SCHED_FLAG_DL_OVERRUN": 0x04,
    "SCHED_FLAG_KEEP_POLICY": 0x08,
    "SCHED_FLAG_KEEP_PARAMS": 0x10,
    "SCHED_FLAG_UTIL_CLAMP_MIN": 0x20,
    "SCHED_FLAG_UTIL_CLAMP_MAX": 0x40,
}
_IO_CLASSES: Final = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
_NO_KEYRINGS: Final = (errno.ENOSYS, errno.EPERM, errno.EACCES)
"""What says that the kernel has no keyrings, or none for us."""
_DOMAINS: Final = {"LINUX": 0x0000, "LINUX32": 0x0008}


class ProcessPlan(msgspec.Struct, gc=False):
    """A process, worked out. Capability sets are bit masks, rlimits (resource, soft, hard)."""

    args: list[str]
    env: dict[bytes, bytes]
    cwd: str
    uid: int
    gid: int
    groups: list[int]
    umask: int
    effective: int
    permitted: int
    inheritable: int
    bounding: int
    ambient: int
    highest: int
    raised_limits: list[tuple[int, int, int]]
    lowered_limits: list[tuple[int, int, int]]
    no_new_privileges: bool
    terminal: bool
    size: tuple[int, int] | None
    oom_score_adj: int | None
    scheduler: tuple[int, int, int, int, int, int, int] | None
    io_priority: int | None
    persona: int | None
    apparmor_profile: str
    selinux_label: str
    keyring: str
    preserve_fds: int
    seccomp_flags: int


def plan(
    process: spec.Process,
    *,
    id: str,
    personality: spec.LinuxPersonality | None = None,
    preserve_fds: int = 0,
    seccomp_flags: int = 0,
    new_keyring: bool = True,
) -> ProcessPlan:
    """Work out a process. Raises InvalidParameter."""
    if not process.args:
        raise InvalidParameter("args must not be empty")
    if not process.cwd:
        raise InvalidParameter("Cwd property must not be empty")
    if not process.cwd.startswith("/"):
        raise InvalidParameter("Cwd must be an absolute path")
    sets = process.capabilities or spec.Capabilities()
    # What we lack ourselves cannot be given: runc leaves out what the kernel does not know; we also what is bounded.
    held = capabilities.sets()
    bounding = held["CapBnd"]
    permitted = capabilities.mask(sets.permitted) & held["CapPrm"]
    inheritable = capabilities.mask(sets.inheritable) & bounding
    raised, lowered = _limits(process.rlimits)
    return ProcessPlan(
        args=process.args,
        env=_environment(process.env),
        cwd=process.cwd,
        uid=process.user.uid,
        gid=process.user.gid,
        groups=process.user.additional_gids,
        umask=0o022 if process.user.umask is None else process.user.umask,
        effective=capabilities.mask(sets.effective) & permitted,
        permitted=permitted,
        inheritable=inheritable,
        bounding=capabilities.mask(sets.bounding) & bounding,
        ambient=capabilities.mask(sets.ambient) & permitted & inheritable,
        highest=capabilities.last(),
        raised_limits=raised,
        lowered_limits=lowered,
        no_new_privileges=process.no_new_privileges,
        terminal=process.terminal,
        size=(process.console_size.height, process.console_size.width) if process.console_size else None,
        oom_score_adj=process.oom_score_adj,
        scheduler=_scheduler(process.scheduler),
        io_priority=_io_priority(process.io_priority),
        persona=_persona(personality),
        apparmor_profile=process.apparmor_profile,
        selinux_label=process.selinux_label,
        keyring=f"_ses.{id}" if new_keyring else "",
        preserve_fds=preserve_fds,
        seccomp_flags=seccomp_flags,
    )


def _environment(pairs: Sequence[str]) -> dict[bytes, bytes]:
    """The last of two equal names wins, as with runc."""
    found: dict[bytes, bytes] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise InvalidParameter(f"invalid environment variable: {pair!r}")
        if "\0" in pair:
            raise InvalidParameter(f"invalid environment variable: {name!r} contains a nul byte")
        key = os.fsencode(name)
        found.pop(key, None)
        found[key] = os.fsencode(value)
    return found


def _limits(rlimits: Sequence[spec.Rlimit]) -> tuple[list[tuple[int, int, int]], list[tuple[int, int, int]]]:
    """Limits that privilege is needed for, and those that can wait until just before execve (where a small
    RLIMIT_AS or RLIMIT_NOFILE no longer hurts us)."""
    raised: list[tuple[int, int, int]] = []
    lowered: list[tuple[int, int, int]] = []
    for limit in rlimits:
        number = getattr(resource, limit.type, None)
        if not limit.type.startswith("RLIMIT_") or not isinstance(number, int):
            raise InvalidParameter(f"invalid rlimit type: {limit.type}")
        soft = resource.RLIM_INFINITY if limit.soft >= 1 << 63 else limit.soft
        hard = resource.RLIM_INFINITY if limit.hard >= 1 << 63 else limit.hard
        if hard != resource.RLIM_INFINITY and (soft == resource.RLIM_INFINITY or soft > hard):
            raise InvalidParameter(f"invalid rlimit {limit.type}: soft limit above the hard limit")
        now = resource.getrlimit(number)[1]
        above = now != resource.RLIM_INFINITY and (hard == resource.RLIM_INFINITY or hard > now)
        (raised if above else lowered).append((number, soft, hard))
    return raised, lowered


def _scheduler(scheduler: spec.Scheduler | None) -> tuple[int, int, int, int, int, int, int] | None:
    if scheduler is None:
        return None
    if scheduler.policy not in _POLICIES:
        raise InvalidParameter(f"invalid scheduler policy: {scheduler.policy}")
    flags = 0
    for flag in scheduler.flags:
        if flag not in _SCHED_FLAGS:
            raise InvalidParameter(f"invalid scheduler flag: {flag}")
        flags |= _SCHED_FLAGS[flag]
    return (
        _POLICIES[scheduler.policy],
        flags,
        scheduler.nice,
        scheduler.priority,
        scheduler.runtime,
        scheduler.deadline,
        scheduler.period,
    )


def _io_priority(priority: spec.IOPriority | None) -> int | None:
    if priority is None:
        return None
    if priority.class_ not in _IO_CLASSES:
        raise InvalidParameter(f"invalid ioPriority.Class: {priority.class_}")
    if not 0 <= priority.priority <= 7:
        raise InvalidParameter(f"invalid ioPriority.Priority: {priority.priority}")
    return _IO_CLASSES[priority.class_] << k.IOPRIO_CLASS_SHIFT | priority.priority


def _persona(personality: spec.LinuxPersonality | None) -> int | None:
    if personality is None:
        return None
    if personality.domain not in _DOMAINS:
        raise InvalidParameter(f"invalid personality domain: {personality.domain}")
    if personality.flags:
        raise InvalidParameter("unsupported personality flags: " + ", ".join(personality.flags))
    return _DOMAINS[personality.domain]


# --- in the child -----------------------------------------------------------------------------------------------


def set_oom_score_adj(value: int | None, pid: int = 0) -> None:
    """Through the host's /proc, of the caller or of ``pid``. Lowering needs CAP_SYS_RESOURCE outside of any user
    namespace."""
    if value is None:
        return
    path = f"/proc/{pid or 'self'}/oom_score_adj"
    with step(f"failed to update {path}"):
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if int(os.read(fd, 32)) != value:
                os.pwrite(fd, str(value).encode(), 0)
        finally:
            os.close(fd)


def label_keys(label: str) -> None:
    """Give keyrings that are made from now until execve the container's SELinux label. Through the host's procfs."""
    if label:
        with step("could not label the session keyring"):
            fd = os.open("/proc/self/attr/keycreate", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, label.encode())
            finally:
                os.close(fd)


def new_keyring() -> None:
    """A session keyring of the caller's own and of what it forks, for as long as there is any of them."""
    try:
        k.keyctl_join_session_keyring(None)
    except OSError as error:
        if error.errno not in _NO_KEYRINGS:
            raise


def join_keyring(name: str) -> None:
    """A session keyring of the container's own, so that it cannot search the caller's keys."""
    if not name:
        return
    try:
        serial = k.keyctl_join_session_keyring(name)
        permissions = int(k.keyctl_describe(serial).split(";")[3], 16)
        k.keyctl_setperm(serial, permissions | 0x00080000)  # KEY_USR_SEARCH: lets an exec find it by name
    except OSError as error:
        if error.errno not in _NO_KEYRINGS:
            raise SetupFailed(f"unable to join session keyring: {words(error)}") from error


def set_scheduling(plan: ProcessPlan) -> None:
    if plan.scheduler is not None:
        with step("error setting scheduler"):
            k.sched_setattr(0, *plan.scheduler)
    if plan.io_priority is not None:
        with step("failed to set IO priority"):
            k.ioprio_set(0, plan.io_priority)


def open_terminal(root: int, size: tuple[int, int] | None) -> tuple[int, int]:
    """(master, slave) of a new pseudo-terminal of the container's devpts.

    /dev belongs to the container: what is opened must prove to be a ptmx (CVE-2025-52565), and the slave comes from
    the master, not from a path.
    """
    with step("open /dev/ptmx"):
        try:
            master = open_in_root(root, "/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            master = open_in_root(root, "/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        found = os.fstat(master)
        if not stat.S_ISCHR(found.st_mode) or found.st_rdev != os.makedev(5, 2) or not is_on(master, "devpts"):
            raise OSError(errno.ENODEV, "not a pseudo-terminal multiplexer of devpts")
        os.set_blocking(master, True)
        fcntl.ioctl(master, 0x40045431, struct.pack("i", 0))  # TIOCSPTLCK
        slave = fcntl.ioctl(master, 0x5441, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)  # TIOCGPTPEER
        if size is not None:
            fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", size[0], size[1], 0, 0))
    return master, slave


def set_stdio(stdin: int, stdout: int, stderr: int, null: Callable[[], int]) -> None:
    """Put descriptors on 0, 1 and 2; what is -1 or the host's /dev/null becomes what ``null`` gives.

    The host's would let the container change mode, owner and times of the host's device.
    """
    sources = [stdin, stdout, stderr]
    own = -1
    for index, fd in enumerate(sources):
        if fd < 0 or is_null(os.fstat(fd)):
            if own < 0:
                own = null()
            sources[index] = own
    # Sources may be among the targets: get them out of the way first.
    copies = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) if fd < 3 else fd for fd in sources]
    for target, fd in enumerate(copies):
        os.dup2(fd, target, inheritable=True)


def is_null(found: os.stat_result) -> bool:
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == os.makedev(1, 3)


def open_null(root: int) -> int:
    """The /dev/null of the container whose root is ``root``, if it is one.

    The container may have put anything in its place, such as a link through /proc to a file of the host, and here it
    is opened with the host's privileges: so links of procfs are refused, and what was opened must prove to be it.
    """
    with step("open /dev/null"):
        fd = open_in_root(root, "/dev/null", os.O_RDWR | os.O_NOCTTY | os.O_NOFOLLOW | os.O_NONBLOCK)
        if not is_null(os.fstat(fd)):
            os.close(fd)
            raise OSError(errno.ENODEV, "not the null device")
        os.set_blocking(fd, True)
        return fd


def take_terminal(fd: int) -> None:
    """Make the terminal on ``fd`` the controlling one of the session that the caller leads."""
    with step("error setting controlling terminal"):
        fcntl.ioctl(fd, termios.TIOCSCTTY, 0)


def own_stdio(uid: int, stdio: Sequence[int] = (0, 1, 2)) -> None:
    """Give the standard descriptors to the container's user, as it may want to open /dev/stdout anew."""
    for fd in stdio:
        try:
            found = os.fstat(fd)
        except OSError as error:
            if error.errno == errno.EBADF:
                continue
            raise
        if found.st_uid == uid:
            continue
        if is_null(found):
            continue
        try:
            os.fchown(fd, uid, -1)
        except OSError as error:
            # An owner outside of our mappings, or a read-only or foreign file: fine, as for runc.
            if error.errno not in (errno.EINVAL, errno.EPERM, errno.EROFS):
                raise SetupFailed(f"error fixing stdio permissions: {words(error)}") from error


def set_labels(proc: int, pid: str, plan: ProcessPlan) -> None:
    """AppArmor and SELinux: take effect at execve. ``proc`` is the root of a procfs nothing is mounted over."""
    if plan.apparmor_profile:
        where = "attr/apparmor/exec"
        try:
            os.close(k.openat2(proc, f"{pid}/{where}", os.O_PATH, resolve=k.RESOLVE_BENEATH))
        except FileNotFoundError:
            where = "attr/exec"  # before Linux 5.1, when one security module had the files to itself
        with step(f"unable to apply apparmor profile: apparmor failed to apply profile: write /proc/self/{where}"):
            write_procfs(proc, f"{pid}/{where}", f"exec {plan.apparmor_profile}")
    if plan.selinux_label:
        with step("failed to set /proc/self/attr/exec"):
            write_procfs(proc, f"{pid}/attr/exec", plan.selinux_label)


def raise_limits(plan: ProcessPlan, pid: int = 0) -> None:
    for number, soft, hard in plan.raised_limits:
        try:
            resource.prlimit(pid, number, (soft, hard))
        except (OSError, ValueError) as error:
            text = words(error) if isinstance(error, OSError) else str(error)
            raise SetupFailed(
                f"error setting rlimits for ready process: error setting rlimit type {number}: {text}"
            ) from error


def _chdir(root: int, cwd: str) -> None:
    """Without following magic links: a leaked descriptor must be no way out (CVE-2024-21626)."""
    fd = open_in_root(root, cwd, os.O_PATH | os.O_DIRECTORY)
    try:
        os.fchdir(fd)
    finally:
        os.close(fd)


def become(plan: ProcessPlan, *, setgroups: bool, seccomp: bool) -> str:
    """Take on user, capabilities and working directory; returns the path of the executable.

    If a seccomp filter is to be loaded without no-new-privileges, CAP_SYS_ADMIN stays until :func:`execute`.
    """
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    chdir_failed = f'chdir to cwd ("{plan.cwd}") set in config.json failed'
    again = False
    try:
        _chdir(root, plan.cwd)
    except PermissionError:
        again = True  # perhaps the user may what root (squashed, or without CAP_DAC_OVERRIDE) may not
    except OSError as error:
        raise SetupFailed(f"{chdir_failed}: {words(error)}") from error
    own_stdio(plan.uid)
    with step("unable to apply bounding set"):
        capabilities.drop_bounding(plan.bounding, plan.highest)
    k.prctl(k.PR_SET_KEEPCAPS, 1)
    with step("unable to setup user"):
        if setgroups:
            os.setgroups(plan.groups)
        elif plan.groups:
            raise SetupFailed("cannot set any additional groups in a rootless container")
        os.setresgid(plan.gid, plan.gid, plan.gid)
        os.setresuid(plan.uid, plan.uid, plan.uid)
    if again:
        with step(chdir_failed):
            _chdir(root, plan.cwd)
    os.close(root)
    try:
        inside = os.getcwd().startswith("/")
    except FileNotFoundError:
        inside = False
    if not inside:
        raise SetupFailed(
            "current working directory is outside of container mount namespace root"
            " -- possible container breakout detected"
        )
    k.prctl(k.PR_SET_KEEPCAPS, 0)
    os.umask(plan.umask)
    if plan.persona is not None:
        with step("error setting personality"):
            k.personality(plan.persona)
    late = _CAP_SYS_ADMIN if seccomp and not plan.no_new_privileges else 0
    with step("unable to apply caps"):
        capabilities.capset(plan.effective | late, plan.permitted | late, plan.inheritable)
        capabilities.clear_ambient()
        if plan.ambient:
            capabilities.raise_ambient(plan.ambient)
    if plan.no_new_privileges:
        k.prctl(k.PR_SET_NO_NEW_PRIVS, 1)
    k.prctl(k.PR_SET_DUMPABLE, 0)  # the change of user may have reset it
    if b"HOME" not in plan.env:
        plan.env[b"HOME"] = os.fsencode(_home(plan.uid))
    return look_path(plan.args[0], os.fsdecode(plan.env.get(b"PATH", b"")))


def _home(uid: int) -> str:
    """The home folder in the container's own /etc/passwd."""
    try:
        fd = os.open("/etc/passwd", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return "/"
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            return "/"
        text = os.read(fd, min(found.st_size, _PASSWD_LIMIT)).decode("utf-8", "surrogateescape")
    finally:
        os.close(fd)
    wanted = str(uid)
    for line in text.splitlines():
        fields = line.split(":")
        if len(fields) > 5 and fields[2] == wanted:
            return fields[5] or "/"
    return "/"


def look_path(name: str, path: str) -> str:
    """Find the executable as Go's exec.LookPath does, with its words."""
    if "/" in name:
        problem = _unfit(name)
        if problem is not None:
            raise SetupFailed(f'exec: "{name}": {problem}')
        return name
    for directory in path.split(":") if name else []:
        candidate = posixpath.join(directory or ".", name)
        if _unfit(candidate) is None:
            if not candidate.startswith("/"):
                raise SetupFailed(f'exec: "{name}": cannot run executable found relative to current directory', 127)
            return candidate
    raise SetupFailed(f'exec: "{name}": executable file not found in $PATH', 127)


def _unfit(path: str) -> str | None:
    """Why ``path`` cannot be executed, or None."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return f"stat {path}: {words(error)}"
    except ValueError:
        return f"stat {path}: invalid argument"
    if stat.S_ISDIR(mode):
        return "is a directory"
    if not os.access(path, os.X_OK, effective_ids=True) or not mode & 0o111:
        return "permission denied"
    return None


def limit_descriptors(preserve: int) -> None:
    """Mark everything but stdio and what the caller passes on for closing at execve."""
    k.close_range(3 + preserve, 0xFFFFFFFF, k.CLOSE_RANGE_CLOEXEC)
    for fd in range(3, 3 + preserve):
        try:
            os.set_inheritable(fd, True)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise


class Executable:
    """execve with everything allocated beforehand, so that between filter and program there are three system calls."""

    def __init__(self, path: str, plan: ProcessPlan, seccomp: k.SeccompProgram | None) -> None:
        self._plan = plan
        self._path = path
        self._seccomp = seccomp
        self._capset = capabilities.packed(plan.effective, plan.permitted, plan.inheritable)
        self._arguments = [os.fsencode(argument) for argument in plan.args]
        if any(b"\0" in argument for argument in self._arguments):
            raise SetupFailed(f'exec: "{plan.args[0]}": invalid argument')

    def load(self) -> int:
        """Lower the last limits, load the filter, give up what was kept for that; returns the listener, or -1."""
        for number, soft, hard in self._plan.lowered_limits:
            resource.setrlimit(number, (soft, hard))
        if self._seccomp is None:
            return -1
        result = self._seccomp.load(self._plan.seccomp_flags)
        if not self._plan.no_new_privileges:
            capabilities.capset_packed(*self._capset)
        return result if self._plan.seccomp_flags & k.SECCOMP_FILTER_FLAG_NEW_LISTENER else -1

    def execute(self) -> NoReturn:
        """As runc, the program's own failure (a bad format, a missing interpreter) is told on its stderr."""
        try:
            os.execve(self._path, self._arguments, self._plan.env)  # noqa: S606
        except OSError as error:
            self._tell(error)
        os._exit(_EXEC_FAILED)

    @property
    def can_spawn(self) -> bool:
        """Whether nothing is left to do that a process can only do to itself."""
        notifies = self._seccomp is not None and self._plan.seccomp_flags & k.SECCOMP_FILTER_FLAG_NEW_LISTENER
        return not (self._plan.terminal or self._plan.lowered_limits or self._plan.preserve_fds or notifies)

    def spawn(self) -> int:
        """Have a child execute the program, in a session of its own, without a copy of this process's memory (vfork);
        gives its pid. After :meth:`load`."""
        try:
            return os.posix_spawn(self._path, self._arguments, self._plan.env, setsid=True, setsigmask=())
        except OSError as error:
            pid = os.fork()
            if not pid:
                self._tell(error)
                os._exit(_EXEC_FAILED)
            return pid

    def _tell(self, error: OSError) -> None:
        os.write(2, f"exec {self._path}: {words(error)}\n".encode("utf-8", "surrogateescape"))


_INHERITED_SIGNALS: Final = (1, 2, 3, 10, 12, 13, 14, 15, 17, 18, 20, 21, 22, 25)
"""What a caller, nohup(1) or Python itself ignores or handles: HUP to TERM, CHLD, job control, PIPE, XFSZ."""


_RESERVED_SIGNALS: Final = (32, 33)
"""The C library's own, which a caller may ignore by the bare system call (Go's runtime, for one)."""


def reset_signals() -> None:
    """Default dispositions and an empty mask: an ignored signal and the mask would survive execve."""
    for number in _INHERITED_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    for number in _RESERVED_SIGNALS:
        k.default_signal(number)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
