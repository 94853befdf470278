"""seccomp: from an OCI ``linux.seccomp`` to the bytes of a BPF program, through libseccomp (libseccomp.so.2).

Compiling takes milliseconds and a program depends on nothing but its profile, so it is kept on disk by content:
a container's start reads bytes and loads them (seccomp(2)) without libseccomp. The listener of SCMP_ACT_NOTIFY is
the runtime's business; this module says that one is needed.

As in runc, a profile that refuses by default answers ENOSYS, not its own error, for system calls newer than any it
names: C libraries then fall back to older calls instead of failing.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import hashlib
import os
import struct
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec

from seacan.errors import InvalidParameter, Unsupported

if TYPE_CHECKING:
    from seacan.runtime.spec import LinuxSeccomp, LinuxSyscall

FILTER_FLAG_TSYNC = 1
FILTER_FLAG_LOG = 2
FILTER_FLAG_SPEC_ALLOW = 4
FILTER_FLAG_NEW_LISTENER = 8
FILTER_FLAG_WAIT_KILLABLE_RECV = 32

SPAWN = ".spawn.bpf"
"""How the names of compiled filters end for which :func:`lets_spawn` holds."""

_FORMAT = b"3"
"""Goes into the content hash; to be changed with the code generator below."""

_RET = {
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_NOTIFY": 0x7FC00000,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
_OPERATORS = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}
_64BIT, _LITTLE = 0x80000000, 0x40000000
ARCHITECTURES = {
    "SCMP_ARCH_X86": 3 | _LITTLE,
    "SCMP_ARCH_X86_64": 62 | _64BIT | _LITTLE,
    "SCMP_ARCH_X32": 62 | _LITTLE,
    "SCMP_ARCH_ARM": 40 | _LITTLE,
    "SCMP_ARCH_AARCH64": 183 | _64BIT | _LITTLE,
    "SCMP_ARCH_MIPS": 8,
    "SCMP_ARCH_MIPS64": 8 | _64BIT,
    "SCMP_ARCH_MIPS64N32": 8 | _64BIT | 0x20000000,
    "SCMP_ARCH_MIPSEL": 8 | _LITTLE,
    "SCMP_ARCH_MIPSEL64": 8 | _64BIT | _LITTLE,
    "SCMP_ARCH_MIPSEL64N32": 8 | _64BIT | _LITTLE | 0x20000000,
    "SCMP_ARCH_PPC": 20,
    "SCMP_ARCH_PPC64": 21 | _64BIT,
    "SCMP_ARCH_PPC64LE": 21 | _64BIT | _LITTLE,
    "SCMP_ARCH_S390": 22,
    "SCMP_ARCH_S390X": 22 | _64BIT,
    "SCMP_ARCH_PARISC": 15,
    "SCMP_ARCH_PARISC64": 15 | _64BIT,
    "SCMP_ARCH_RISCV64": 243 | _64BIT | _LITTLE,
    "SCMP_ARCH_LOONGARCH64": 258 | _64BIT | _LITTLE,
    "SCMP_ARCH_M68K": 4,
    "SCMP_ARCH_SH": 42 | _LITTLE,
    "SCMP_ARCH_SHEB": 42,
}
_X32_BIT = 0x40000000
_OPTIMIZE = 8
"""SCMP_FLTATR_CTL_OPTIMIZE"""
_FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": FILTER_FLAG_TSYNC,
    "SECCOMP_FILTER_FLAG_LOG": FILTER_FLAG_LOG,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": FILTER_FLAG_SPEC_ALLOW,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": FILTER_FLAG_WAIT_KILLABLE_RECV,
}
_NEWER = {
    "cachestat": 451,
    "fchmodat2": 452,
    "map_shadow_stack": 453,
    "futex_wake": 454,
    "futex_wait": 455,
    "futex_requeue": 456,
    "statmount": 457,
    "listmount": 458,
    "lsm_get_self_attr": 459,
    "lsm_set_self_attr": 460,
    "lsm_list_modules": 461,
    "mseal": 462,
    "setxattrat": 463,
    "getxattrat": 464,
    "listxattrat": 465,
    "removexattrat": 466,
    "open_tree_attr": 467,
    "file_getattr": 468,
    "file_setattr": 469,
}
"""System calls with one number on every architecture that libseccomp 2.5 does not know by name."""


@dataclass(frozen=True)
class Filter:
    """A compiled filter: ``struct sock_filter[]`` and the flags it must be loaded with (SECCOMP_FILTER_FLAG_*)."""

    program: bytes
    flags: int = 0

    @property
    def listener(self) -> bool:
        """Whether it notifies, so that loading it yields a descriptor that must be handed to the listener."""
        return bool(self.flags & FILTER_FLAG_NEW_LISTENER)


class _Comparison(ctypes.Structure):
    _fields_ = [
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("value", ctypes.c_uint64),
        ("value_two", ctypes.c_uint64),
    ]


@cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    except OSError as error:
        raise Unsupported(
            f"seccomp profiles need libseccomp, which this host lacks ({error}); "
            "install libseccomp2, or run with --security-opt seccomp=unconfined"
        ) from error
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = [ctypes.c_uint32]
    library.seccomp_release.restype = None
    library.seccomp_release.argtypes = [ctypes.c_void_p]
    library.seccomp_arch_add.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    library.seccomp_arch_native.restype = ctypes.c_uint32
    library.seccomp_attr_set.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32]
    library.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
    library.seccomp_syscall_resolve_name_arch.argtypes = [ctypes.c_uint32, ctypes.c_char_p]
    library.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.POINTER(_Comparison),
    ]
    library.seccomp_export_bpf.argtypes = [ctypes.c_void_p, ctypes.c_int]
    return library


def available() -> bool:
    """Whether libseccomp can be loaded here."""
    try:
        _library()
    except Unsupported:
        return False
    return True


def _action(name: str, errno_ret: int | None) -> int:
    value = _RET.get(name)
    if value is None:
        raise InvalidParameter(f"invalid seccomp action: {name!r}")
    if name in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"):
        value |= (errno.EPERM if errno_ret is None else errno_ret) & 0xFFFF
    elif errno_ret is not None:
        raise InvalidParameter(f"seccomp action {name} takes no errnoRet")
    return value


def compile(profile: LinuxSeccomp) -> Filter:
    """Make the BPF program of an OCI ``linux.seccomp``.

    Raises InvalidParameter for what is no valid profile and Unsupported without libseccomp (or when it is too old for
    an action). System calls that libseccomp does not know are skipped, as by every OCI runtime.
    """
    library = _library()
    default = _action(profile.default_action, profile.default_errno_ret)
    if profile.default_action == "SCMP_ACT_NOTIFY":
        raise InvalidParameter("SCMP_ACT_NOTIFY cannot be used as default action")
    native = int(library.seccomp_arch_native())
    architectures = [native]
    context = library.seccomp_init(default)
    if not context:
        raise Unsupported(f"libseccomp does not support the default action {profile.default_action}")
    # A tree instead of a chain. The kernel tries every system call when it loads a filter: 0.33 ms instead of 0.78.
    library.seccomp_attr_set(context, _OPTIMIZE, 2)  # libseccomp 2.5; older ones make a chain
    try:
        for name in profile.architectures:
            token = ARCHITECTURES.get(name)
            if token is None:
                raise InvalidParameter(f"invalid seccomp architecture: {name!r}")
            code = library.seccomp_arch_add(context, token)
            if code not in (0, -errno.EEXIST):
                raise InvalidParameter(f"cannot add architecture {name} to seccomp filter: {os.strerror(-code)}")
            if token not in architectures:
                architectures.append(token)
        flags = 0
        for name in profile.flags:
            if name not in _FLAGS:
                raise InvalidParameter(f"seccomp flags {name!r} not yet supported")
            flags |= _FLAGS[name]
        newer: list[tuple[int, int]] = []
        newest: dict[int, int] = {}
        for syscall in profile.syscalls:
            if syscall.action == "SCMP_ACT_NOTIFY":
                flags |= FILTER_FLAG_NEW_LISTENER
            _add(library, context, syscall, default, architectures, newer, newest)
        program = _export(library, context)
    finally:
        library.seccomp_release(context)
    if profile.default_action not in ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE"):
        program = _prefix(architectures, newest, newer) + program
    if len(program) // 8 > 4096:
        raise InvalidParameter(f"seccomp profile is too large: {len(program) // 8} instructions, 4096 allowed")
    return Filter(program, flags)


def _add(
    library: ctypes.CDLL,
    context: int,
    syscall: LinuxSyscall,
    default: int,
    architectures: list[int],
    newer: list[tuple[int, int]],
    newest: dict[int, int],
) -> None:
    action = _action(syscall.action, syscall.errno_ret)
    comparisons = []
    for argument in syscall.args:
        if argument.op not in _OPERATORS:
            raise InvalidParameter(f"invalid seccomp operator: {argument.op!r}")
        if not 0 <= argument.index <= 5:
            raise InvalidParameter(f"invalid seccomp argument index: {argument.index}")
        comparisons.append(_Comparison(argument.index, _OPERATORS[argument.op], argument.value, argument.value_two))
    # libseccomp takes each argument once a rule; several conditions on one then mean "any of them", as in runc.
    if len({comparison.argument for comparison in comparisons}) < len(comparisons):
        rules = [[comparison] for comparison in comparisons]
    else:
        rules = [comparisons]
    for name in syscall.names:
        if syscall.action == "SCMP_ACT_NOTIFY" and name == "write":
            raise InvalidParameter("SCMP_ACT_NOTIFY cannot be used for the write syscall")
        encoded = name.encode()
        number = library.seccomp_syscall_resolve_name(encoded)
        if number == -1 and name in _NEWER:
            if not comparisons and action != default:
                newer.append((_NEWER[name], action))
            for token in architectures:
                newest[token] = max(newest.get(token, 0), _NEWER[name])
            continue
        if number == -1:
            continue
        for token in architectures:
            newest[token] = max(
                newest.get(token, 0),
                library.seccomp_syscall_resolve_name_arch(token, encoded) & ~_X32_BIT
                if library.seccomp_syscall_resolve_name_arch(token, encoded) >= 0
                else 0,
            )
        if action == default:
            continue
        for rule in rules:
            array = (_Comparison * max(len(rule), 1))(*rule)
            code = library.seccomp_rule_add_array(context, action, number, len(rule), array)
            if code == -errno.EINVAL and action in (_RET["SCMP_ACT_LOG"], _RET["SCMP_ACT_KILL_PROCESS"]):
                raise Unsupported(f"libseccomp does not support {syscall.action} (rule for {name})")
            if code not in (0, -errno.EEXIST):
                raise InvalidParameter(f"cannot add seccomp rule for {name}: {os.strerror(-code)}")


def _export(library: ctypes.CDLL, context: int) -> bytes:
    file = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    try:
        code = library.seccomp_export_bpf(context, file)
        if code:
            raise InvalidParameter(f"cannot generate seccomp filter: {os.strerror(-code)}")
        size = os.lseek(file, 0, os.SEEK_END)
        return os.pread(file, size, 0)
    finally:
        os.close(file)


_LD_W_ABS, _JEQ, _JGT, _JGE, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x06
_NR, _ARCH = 0, 4  # offsets in struct seccomp_data


def _prefix(architectures: list[int], newest: dict[int, int], newer: list[tuple[int, int]]) -> bytes:
    """What runs before libseccomp's program: the system calls it has no name for, and ENOSYS for those yet to come."""
    enosys = _RET["SCMP_ACT_ERRNO"] | errno.ENOSYS
    blocks: list[list[tuple[int, int, int, int]]] = []
    tokens = [token for token in architectures if token != ARCHITECTURES["SCMP_ARCH_X32"] and newest.get(token)]
    for token in tokens:
        block: list[tuple[int, int, int, int]] = [(_LD_W_ABS, 0, 0, _NR)]
        for number, action in sorted(set(newer)):
            block += [(_JEQ, 0, 1, number), (_RETURN, 0, 0, action)]
        if token == ARCHITECTURES["SCMP_ARCH_X86_64"]:
            # x32 calls come with the same architecture and a bit in the number: they are the program's business.
            block += [(_JGE, 2, 0, _X32_BIT), (_JGT, 0, 1, newest[token]), (_RETURN, 0, 0, enosys)]
        else:
            block += [(_JGT, 0, 1, newest[token]), (_RETURN, 0, 0, enosys)]
        blocks.append([(_LD_W_ABS, 0, 0, _ARCH), (_JEQ, 0, len(block), _audit(token)), *block])
    return b"".join(struct.pack("=HBBI", *instruction) for block in blocks for instruction in block)


def _audit(token: int) -> int:
    return token


def supported_actions() -> list[str]:
    """What this kernel's seccomp can answer, in its own words ("allow", "errno", …); empty without seccomp filters."""
    try:
        with open("/proc/sys/kernel/seccomp/actions_avail") as file:
            return file.read().split()
    except FileNotFoundError:
        return []


_LOAD, _JUMP, _JSET, _AND = 0x20, 0x05, 0x45, 0x54
_DATA = struct.Struct("=IIQ6Q")


def verdict(program: bytes, number: int, arguments: Sequence[int] = ()) -> int:
    """What a filter answers to a system call of this architecture: SECCOMP_RET_* with its data.

    Raises Unsupported for instructions that no compiled profile has.
    """
    data = _DATA.pack(number, _library().seccomp_arch_native(), 0, *(*arguments, *[0] * 6)[:6])
    code = list(struct.iter_unpack("=HBBI", program))
    accumulator = at = 0
    while True:
        operation, yes, no, operand = code[at]
        at += 1
        if operation == _LOAD:
            (accumulator,) = struct.unpack_from("=I", data, operand)
        elif operation == _AND:
            accumulator &= operand
        elif operation == _JUMP:
            at += operand
        elif operation == _RETURN:
            return int(operand)
        elif operation in (_JEQ, _JGT, _JGE, _JSET):
            holds = {
                _JEQ: accumulator == operand,
                _JGT: accumulator > operand,
                _JGE: accumulator >= operand,
                _JSET: bool(accumulator & operand),
            }[operation]
            at += yes if holds else no
        else:
            raise Unsupported(f"BPF instruction {operation:#x}")


_TO_SPAWN: Sequence[tuple[str, Sequence[int]]] = (
    *((name, ()) for name in (
        "rt_sigprocmask", "rt_sigaction", "mmap", "munmap", "mprotect", "mremap", "madvise", "brk", "setsid", "execve",
        "capset", "sendto", "sendmsg", "write", "close", "futex", "getpid", "gettid", "set_robust_list", "wait4",
        "exit_group",
    )),
    ("clone", (0x4000 | 0x100 | 17,)),  # CLONE_VFORK, CLONE_VM, SIGCHLD
    ("clone", (0x200000 | 0x1000000 | 17,)),  # fork: CLONE_CHILD_CLEARTID, CLONE_CHILD_SETTID, SIGCHLD
)  # fmt: skip
"""System calls that a process makes between loading a filter and having spawned another under it."""


def lets_spawn(program: bytes) -> bool:
    """Whether a process under this filter can have another executed (posix_spawn, fork), report that, and end."""
    library = _library()
    allow = (_RET["SCMP_ACT_ALLOW"], _RET["SCMP_ACT_LOG"])
    try:
        for name, arguments in _TO_SPAWN:
            number = library.seccomp_syscall_resolve_name(name.encode())
            if number >= 0 and verdict(program, number, arguments) not in allow:
                return False
        clone3 = library.seccomp_syscall_resolve_name(b"clone3")
        absent = _RET["SCMP_ACT_ERRNO"] | errno.ENOSYS
        return clone3 < 0 or verdict(program, clone3) in (*allow, absent)
    except Unsupported:
        return False


def digest(profile: LinuxSeccomp) -> str:
    """Names a profile by content, for this architecture."""
    encoded: Any = msgspec.json.encode(profile)
    return hashlib.sha256(_FORMAT + os.uname().machine.encode() + encoded).hexdigest()[:32]


def compiled(profile: LinuxSeccomp, directory: str) -> str:
    """The path of the compiled profile in a cache folder, compiled if it is not there yet.

    The name is ``<hash>-<flags>.bpf``, or ``….spawn.bpf`` if it lets a process spawn another; :func:`load` reads it.
    Safe against other processes doing the same.
    """
    name = digest(profile)
    for entry in _entries(directory):
        if entry.startswith(name):
            return f"{directory}/{entry}"
    made = compile(profile)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    path = f"{directory}/{name}-{made.flags}{SPAWN if lets_spawn(made.program) else '.bpf'}"
    file, temporary = tempfile.mkstemp(prefix=".", dir=directory)
    try:
        with os.fdopen(file, "wb") as stream:
            stream.write(made.program)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path


def _entries(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def load(path: str) -> Filter:
    """Read a program that :func:`compiled` left. Raises OSError, or InvalidParameter if the file is damaged."""
    with open(path, "rb") as file:
        program = file.read()
    if not program or len(program) % 8:
        raise InvalidParameter(f"{path} is no compiled seccomp filter ({len(program)} bytes)")
    flags = path.rpartition("-")[2].partition(".")[0]
    return Filter(program, int(flags) if flags.isdigit() else 0)
