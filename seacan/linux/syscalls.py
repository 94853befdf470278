"""System calls through ctypes, by the kernel's own names; no policy.

Every function raises :class:`OSError` with the errno, and with the object it was about as ``filename``. A call that
this kernel does not know raises ENOSYS. Numbers below 424 differ between architectures, those above are the same.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import Any, Final

AT_FDCWD: Final = -100
AT_EMPTY_PATH: Final = 0x1000
AT_RECURSIVE: Final = 0x8000
AT_SYMLINK_NOFOLLOW: Final = 0x100

_X86_64 = {
    "pivot_root": 155, "capget": 125, "capset": 126, "keyctl": 250, "ioprio_set": 251, "ioprio_get": 252,
    "setns": 308, "sched_setattr": 314, "sched_getattr": 315, "seccomp": 317, "execveat": 322, "prlimit64": 302,
    "set_mempolicy": 238, "gettid": 186, "rt_sigaction": 13,
}  # fmt: skip
_GENERIC = {
    "pivot_root": 41, "capget": 90, "capset": 91, "keyctl": 219, "ioprio_set": 30, "ioprio_get": 31,
    "setns": 268, "sched_setattr": 274, "sched_getattr": 275, "seccomp": 277, "execveat": 281, "prlimit64": 261,
    "set_mempolicy": 237, "gettid": 178, "rt_sigaction": 134,
}  # fmt: skip
_COMMON = {
    "pidfd_send_signal": 424, "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432,
    "fspick": 433, "pidfd_open": 434, "clone3": 435, "close_range": 436, "openat2": 437, "pidfd_getfd": 438,
    "mount_setattr": 442, "open_tree_attr": 467,
}  # fmt: skip
_TABLES = {"x86_64": _X86_64, "aarch64": _GENERIC, "riscv64": _GENERIC, "loongarch64": _GENERIC}
NUMBERS: Final = {**_TABLES.get(os.uname().machine, {}), **_COMMON}

libc = ctypes.CDLL(None, use_errno=True)

c_int, c_uint, c_long, c_ulong = ctypes.c_int, ctypes.c_uint, ctypes.c_long, ctypes.c_ulong
c_char_p, c_void_p, c_size_t = ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t


def _system_call(name: str, *argtypes: Any, library: Any = libc) -> Any:
    """A callable for one system call; unknown on this architecture means ENOSYS (number -1), as from the kernel."""
    function = library["syscall"]  # a new object each time, so that each has its own prototype
    function.restype = c_long
    function.argtypes = (c_long, *argtypes)
    number = NUMBERS.get(name, -1)

    def call(*arguments: Any) -> int:
        result: int = function(number, *arguments)
        return result

    return call


FALLOC_FL_KEEP_SIZE: Final = 0x01


def _libc(name: str, *argtypes: Any) -> Any:
    function = libc[name]
    function.restype = c_int
    function.argtypes = argtypes
    return function


def kernel() -> tuple[int, int]:
    """Major and minor version of the kernel."""
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(c for c in minor if c.isdigit()) or 0)


M_TRIM_THRESHOLD: Final = -1
M_MMAP_THRESHOLD: Final = -3


def mallopt(parameter: int, value: int) -> None:
    """Set what malloc(3) goes by: mallopt(3). Without effect where the C library has none."""
    if hasattr(libc, "mallopt"):
        libc.mallopt(c_int(parameter), c_int(value))


def fail(what: str | bytes | int | None = None) -> OSError:
    """The OSError of the call that just failed."""
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), what)


def _b(path: str | bytes) -> bytes:
    return path.encode("utf-8", "surrogateescape") if isinstance(path, str) else path


# --- processes and namespaces -----------------------------------------------------------------------------------

CLONE_NEWTIME: Final = 0x00000080
CLONE_PIDFD: Final = 0x00001000
CLONE_PARENT: Final = 0x00008000
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000
CLONE_INTO_CGROUP: Final = 0x200000000

# PyDLL: the child must leave the call with the interpreter lock, as no other thread will exist to hand it over.
_clone3 = _system_call("clone3", c_void_p, c_size_t, library=ctypes.PyDLL(None, use_errno=True))
_unshare = _libc("unshare", c_int)
_rt_sigaction = _system_call("rt_sigaction", c_int, c_char_p, c_void_p, c_size_t)
_DEFAULT_ACTION = bytes(32)
_setns = _libc("setns", c_int, c_int)


def default_signal(number: int) -> None:
    """SIG_DFL for any signal, the two that the C library keeps for itself (32 and 33) and refuses to touch included."""
    if _rt_sigaction(number, _DEFAULT_ACTION, None, 8) < 0:
        raise fail(f"signal {number}")


def clone3(flags: int, *, exit_signal: int = 17, cgroup: int = -1) -> tuple[int, int]:
    """Fork with namespaces: (pid, pidfd) in the parent, (0, -1) in the child.

    For single-threaded processes only; fork hooks of Python and of the C library do not run. ``cgroup`` is a
    descriptor of a cgroup v2 directory (CLONE_INTO_CGROUP). With CLONE_PARENT no exit signal may be given (0).
    """
    pidfd = ctypes.c_int(-1)
    flags |= CLONE_PIDFD
    if cgroup >= 0:
        flags |= CLONE_INTO_CGROUP
    if flags & CLONE_PARENT:
        exit_signal = 0
    arguments = struct.pack(
        "=11Q", flags, ctypes.addressof(pidfd), 0, 0, exit_signal, 0, 0, 0, 0, 0, cgroup if cgroup >= 0 else 0
    )
    pid = _clone3(arguments, len(arguments) if cgroup >= 0 else 64)
    if pid < 0:
        raise fail("clone3")
    return pid, pidfd.value if pid else -1


def unshare(flags: int) -> None:
    if _unshare(flags) < 0:
        raise fail("unshare")


def setns(fd: int, kind: int) -> None:
    """Join the namespace ``fd``; a pidfd joins that process's namespaces of the kinds in the mask (Linux 5.8)."""
    if _setns(fd, kind) < 0:
        raise fail("setns")


_pidfd_open = _system_call("pidfd_open", c_int, c_uint)
_pidfd_send_signal = _system_call("pidfd_send_signal", c_int, c_int, c_void_p, c_uint)
_pidfd_getfd = _system_call("pidfd_getfd", c_int, c_int, c_uint)


def pidfd_open(pid: int, flags: int = 0) -> int:
    fd: int = _pidfd_open(pid, flags)
    if fd < 0:
        raise fail(f"pid {pid}")
    return fd


def pidfd_send_signal(pidfd: int, signal: int) -> None:
    """Raises ProcessLookupError once the process has been reaped."""
    if _pidfd_send_signal(pidfd, signal, None, 0) < 0:
        raise fail("pidfd_send_signal")


def pidfd_getfd(pidfd: int, fd: int) -> int:
    new: int = _pidfd_getfd(pidfd, fd, 0)
    if new < 0:
        raise fail("pidfd_getfd")
    return new


_execveat = _system_call("execveat", c_int, c_char_p, c_void_p, c_void_p, c_int)
_close_range = _system_call("close_range", c_uint, c_uint, c_uint)
CLOSE_RANGE_CLOEXEC: Final = 4


def close_range(first: int, last: int = 0xFFFFFFFF, flags: int = 0) -> None:
    """Close, or with CLOSE_RANGE_CLOEXEC mark, every descriptor from ``first`` to ``last``."""
    if first > last:
        return
    if _close_range(first, last, flags) == 0:
        return
    error = fail("close_range")
    if error.errno not in (errno.ENOSYS, errno.EINVAL):
        raise error
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if first <= fd <= last:
            try:
                os.set_inheritable(fd, False) if flags & CLOSE_RANGE_CLOEXEC else os.close(fd)
            except OSError as closing:  # the listing's own descriptor
                if closing.errno != errno.EBADF:
                    raise


_prctl = _libc("prctl", c_int, c_ulong, c_ulong, c_ulong, c_ulong)
PR_SET_PDEATHSIG: Final = 1
PR_GET_DUMPABLE: Final = 3
PR_SET_DUMPABLE: Final = 4
PR_SET_KEEPCAPS: Final = 8
PR_SET_NAME: Final = 15
PR_CAPBSET_READ: Final = 23
PR_CAPBSET_DROP: Final = 24
PR_SET_CHILD_SUBREAPER: Final = 36
PR_SET_NO_NEW_PRIVS: Final = 38
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_RAISE: Final = 2
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4


def prctl(option: int, a: int = 0, b: int = 0, c: int = 0, d: int = 0) -> int:
    result: int = _prctl(option, a, b, c, d)
    if result < 0:
        raise fail(f"prctl({option}, {a})")
    return result


_personality = _libc("personality", c_ulong)


def personality(persona: int) -> int:
    old: int = _personality(persona)
    if old < 0:
        raise fail(f"personality({persona:#x})")
    return old


_sethostname = _libc("sethostname", c_char_p, c_size_t)
_setdomainname = _libc("setdomainname", c_char_p, c_size_t)


def sethostname(name: str) -> None:
    data = _b(name)
    if _sethostname(data, len(data)) < 0:
        raise fail(name)


def setdomainname(name: str) -> None:
    data = _b(name)
    if _setdomainname(data, len(data)) < 0:
        raise fail(name)


_ioprio_set = _system_call("ioprio_set", c_int, c_int, c_int)
IOPRIO_WHO_PROCESS: Final = 1
IOPRIO_CLASS_SHIFT: Final = 13


def ioprio_set(who: int, ioprio: int) -> None:
    """``ioprio`` is class << IOPRIO_CLASS_SHIFT | priority, for one process (0 means the caller)."""
    if _ioprio_set(IOPRIO_WHO_PROCESS, who, ioprio) < 0:
        raise fail("ioprio_set")


_sched_setattr = _system_call("sched_setattr", c_int, c_char_p, c_uint)


def sched_setattr(
    pid: int, policy: int, flags: int, nice: int, priority: int, runtime: int, deadline: int, period: int
) -> None:
    """sched_setattr(2); times in nanoseconds."""
    attr = struct.pack("=IIQiIQQQ", 48, policy, flags, nice, priority, runtime, deadline, period)
    if _sched_setattr(pid, attr, 0) < 0:
        raise fail("sched_setattr")


_keyctl = _system_call("keyctl", c_int, c_ulong, c_ulong, c_ulong, c_ulong)
_keyctl_name = _system_call("keyctl", c_int, c_char_p)
KEYCTL_JOIN_SESSION_KEYRING: Final = 1
KEYCTL_SETPERM: Final = 5
KEYCTL_DESCRIBE: Final = 6


def keyctl_join_session_keyring(name: str | None) -> int:
    """Start a session keyring of that name, or a new one without, and return its serial number.

    A name is looked for among those of all keyrings of the user namespace, one after the other.
    """
    serial: int = _keyctl_name(KEYCTL_JOIN_SESSION_KEYRING, None if name is None else _b(name))
    if serial < 0:
        raise fail(f"session keyring {name or ''}")
    return serial


def keyctl_describe(serial: int) -> str:
    """``type;uid;gid;permissions;description``."""
    buffer = ctypes.create_string_buffer(4096)
    if _keyctl(KEYCTL_DESCRIBE, serial, ctypes.addressof(buffer), 4096, 0) < 0:
        raise fail(f"key {serial}")
    return buffer.value.decode("utf-8", "replace")


def keyctl_setperm(serial: int, permissions: int) -> None:
    if _keyctl(KEYCTL_SETPERM, serial, permissions, 0, 0) < 0:
        raise fail(f"key {serial}")


_seccomp = _system_call("seccomp", c_uint, c_uint, c_void_p)
SECCOMP_SET_MODE_FILTER: Final = 1
SECCOMP_GET_ACTION_AVAIL: Final = 2
SECCOMP_FILTER_FLAG_TSYNC: Final = 1
SECCOMP_FILTER_FLAG_LOG: Final = 2
SECCOMP_FILTER_FLAG_SPEC_ALLOW: Final = 4
SECCOMP_FILTER_FLAG_NEW_LISTENER: Final = 8
SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV: Final = 32


class SeccompProgram:
    """A filter made ready (struct sock_fprog), so that nothing but the system call is left to do."""

    def __init__(self, program: bytes) -> None:
        if not program or len(program) % 8:
            raise OSError(errno.EINVAL, "not an array of struct sock_filter", "seccomp filter")
        self._code = ctypes.create_string_buffer(program, len(program))
        self._fprog = ctypes.create_string_buffer(
            struct.pack("@HP", len(program) // 8, ctypes.addressof(self._code)), 16
        )

    def load(self, flags: int = 0) -> int:
        """Load the filter into the calling thread. Returns the listener with SECCOMP_FILTER_FLAG_NEW_LISTENER."""
        result: int = _seccomp(SECCOMP_SET_MODE_FILTER, flags, ctypes.addressof(self._fprog))
        if result < 0:
            raise fail("seccomp filter")
        return result


# --- files and mounts -------------------------------------------------------------------------------------------

_openat2 = _system_call("openat2", c_int, c_char_p, c_char_p, c_size_t)
RESOLVE_NO_XDEV: Final = 1
RESOLVE_NO_MAGICLINKS: Final = 2
RESOLVE_NO_SYMLINKS: Final = 4
RESOLVE_BENEATH: Final = 8
RESOLVE_IN_ROOT: Final = 16


def openat2(directory: int, path: str | bytes, flags: int, *, mode: int = 0, resolve: int = 0) -> int:
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve)
    while True:
        fd: int = _openat2(directory, _b(path), how, 24)
        if fd >= 0:
            return fd
        # EAGAIN: a rename elsewhere made the kernel unsure that ".." stayed inside
        if ctypes.get_errno() not in (errno.EAGAIN, errno.EINTR):
            raise fail(path)


_syncfs = _libc("syncfs", c_int)


def syncfs(fd: int) -> None:
    """Write the file system that ``fd`` is on to its disk, and wait for that."""
    if _syncfs(fd) < 0:
        raise fail()


_mount = _libc("mount", c_char_p, c_char_p, c_char_p, c_ulong, c_char_p)
_umount2 = _libc("umount2", c_char_p, c_int)
_pivot_root = _system_call("pivot_root", c_char_p, c_char_p)

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_SYNCHRONOUS: Final = 16
MS_REMOUNT: Final = 32
MS_MANDLOCK: Final = 64
MS_DIRSYNC: Final = 128
MS_NOSYMFOLLOW: Final = 256
MS_NOATIME: Final = 1024
MS_NODIRATIME: Final = 2048
MS_BIND: Final = 4096
MS_MOVE: Final = 8192
MS_REC: Final = 16384
MS_SILENT: Final = 32768
MS_UNBINDABLE: Final = 1 << 17
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
MS_SHARED: Final = 1 << 20
MS_RELATIME: Final = 1 << 21
MS_I_VERSION: Final = 1 << 23
MS_STRICTATIME: Final = 1 << 24
MS_LAZYTIME: Final = 1 << 25
MNT_DETACH: Final = 2


def mount(source: str | bytes, target: str | bytes, fstype: str, flags: int, data: str | bytes = "") -> None:
    if _mount(_b(source) or None, _b(target), fstype.encode() or None, flags, _b(data) or None) < 0:
        raise fail(target)


def umount2(target: str | bytes, flags: int = 0) -> None:
    if _umount2(_b(target), flags) < 0:
        raise fail(target)


def pivot_root(new_root: str, put_old: str) -> None:
    if _pivot_root(_b(new_root), _b(put_old)) < 0:
        raise fail(new_root)


_open_tree = _system_call("open_tree", c_int, c_char_p, c_uint)
_move_mount = _system_call("move_mount", c_int, c_char_p, c_int, c_char_p, c_uint)
_fsopen = _system_call("fsopen", c_char_p, c_uint)
_fsconfig = _system_call("fsconfig", c_int, c_uint, c_char_p, c_char_p, c_int)
_fsmount = _system_call("fsmount", c_int, c_uint, c_uint)
_mount_setattr = _system_call("mount_setattr", c_int, c_char_p, c_uint, c_char_p, c_size_t)

OPEN_TREE_CLONE: Final = 1
OPEN_TREE_CLOEXEC: Final = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH: Final = 0x04
MOVE_MOUNT_T_EMPTY_PATH: Final = 0x40
MOVE_MOUNT_BENEATH: Final = 0x200
FSCONFIG_SET_FLAG: Final = 0
FSCONFIG_SET_STRING: Final = 1
FSCONFIG_SET_FD: Final = 5
FSCONFIG_CMD_CREATE: Final = 6
FSCONFIG_CMD_RECONFIGURE: Final = 7
MOUNT_ATTR_RDONLY: Final = 0x01
MOUNT_ATTR_NOSUID: Final = 0x02
MOUNT_ATTR_NODEV: Final = 0x04
MOUNT_ATTR_NOEXEC: Final = 0x08
MOUNT_ATTR__ATIME: Final = 0x70
MOUNT_ATTR_RELATIME: Final = 0x00
MOUNT_ATTR_NOATIME: Final = 0x10
MOUNT_ATTR_STRICTATIME: Final = 0x20
MOUNT_ATTR_NODIRATIME: Final = 0x80
MOUNT_ATTR_IDMAP: Final = 0x100000
MOUNT_ATTR_NOSYMFOLLOW: Final = 0x200000


def open_tree(directory: int, path: str | bytes, flags: int = 0) -> int:
    """A descriptor of a mount; with OPEN_TREE_CLONE of a detached copy of it (AT_RECURSIVE: with all below)."""
    fd: int = _open_tree(directory, _b(path), flags | OPEN_TREE_CLOEXEC)
    if fd < 0:
        raise fail(path)
    return fd


def move_mount(mount_fd: int, target_fd: int, target: str | bytes = "") -> None:
    """Attach the mount ``mount_fd`` at ``target`` relative to ``target_fd`` (or at ``target_fd`` itself)."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | (0 if target else MOVE_MOUNT_T_EMPTY_PATH)
    if _move_mount(mount_fd, b"", target_fd, _b(target), flags) < 0:
        raise fail(target)


def fsopen(fstype: str) -> int:
    fd: int = _fsopen(fstype.encode(), 1)
    if fd < 0:
        raise fail(fstype)
    return fd


def fsconfig_string(fs: int, key: str, value: str) -> None:
    if _fsconfig(fs, FSCONFIG_SET_STRING, key.encode(), _b(value), 0) < 0:
        raise _explained(fs, f"{key}={value}")


def fsconfig_flag(fs: int, key: str) -> None:
    if _fsconfig(fs, FSCONFIG_SET_FLAG, key.encode(), None, 0) < 0:
        raise _explained(fs, key)


def fsconfig_fd(fs: int, key: str, fd: int) -> None:
    if _fsconfig(fs, FSCONFIG_SET_FD, key.encode(), None, fd) < 0:
        raise _explained(fs, key)


def fsconfig_create(fs: int) -> None:
    if _fsconfig(fs, FSCONFIG_CMD_CREATE, None, None, 0) < 0:
        raise _explained(fs, "create")


def fsmount(fs: int, attributes: int = 0) -> int:
    """A detached mount of the superblock that ``fs`` made, with MOUNT_ATTR_* set."""
    fd: int = _fsmount(fs, 1, attributes)
    if fd < 0:
        raise _explained(fs, "fsmount")
    return fd


def _explained(fs: int, what: str) -> OSError:
    """The last failure, with the words the file system left in its log (fsopen(2)) instead of the bare errno."""
    number = ctypes.get_errno()
    lines = []
    try:
        while True:
            lines.append(os.read(fs, 4096).decode("utf-8", "replace").strip()[2:])
    except OSError:
        pass  # ENODATA: that was all
    text = os.strerror(number)
    return OSError(number, f"{text} ({'; '.join(lines)})" if lines else text, what)


def mount_setattr(
    fd: int, *, set: int = 0, clear: int = 0, propagation: int = 0, userns: int = 0, recursive: bool = False
) -> None:
    """Change the attributes of the mount ``fd`` (of its whole tree if ``recursive``). ``userns`` with IDMAP."""
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    attr = struct.pack("=QQQQ", set, clear, propagation, userns)
    if _mount_setattr(fd, b"", flags, attr, 32) < 0:
        raise fail("mount_setattr")


_fallocate = _libc("fallocate64", c_int, c_int, ctypes.c_int64, ctypes.c_int64)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Give a file its blocks ahead of need. :manpage:`fallocate(2)`; EOPNOTSUPP where the file system cannot."""
    if _fallocate(fd, mode, offset, length) < 0:
        raise fail(fd)
