"""Capabilities (capabilities(7)): names, and the sets of the calling thread. No policy."""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable
from typing import Final

from seacan.linux.syscalls import (
    PR_CAP_AMBIENT,
    PR_CAP_AMBIENT_CLEAR_ALL,
    PR_CAP_AMBIENT_RAISE,
    PR_CAPBSET_DROP,
    _system_call,
    c_char_p,
    fail,
    prctl,
)

NAMES: Final = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
    "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN",
    "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
)  # fmt: skip
"""By number."""

NUMBERS: Final = {name: number for number, name in enumerate(NAMES)}
CAP_SETPCAP: Final = NUMBERS["CAP_SETPCAP"]
CAP_SYS_ADMIN: Final = NUMBERS["CAP_SYS_ADMIN"]

_VERSION_3 = 0x20080522
_capset = _system_call("capset", c_char_p, c_char_p)


def mask(names: Iterable[str]) -> int:
    """The bit mask of names; names that nobody knows are left out, see :func:`unknown`."""
    bits = 0
    for name in names:
        number = NUMBERS.get(name)
        if number is not None:
            bits |= 1 << number
    return bits


def unknown(names: Iterable[str]) -> list[str]:
    return [name for name in names if name not in NUMBERS]


def names(bits: int) -> list[str]:
    return [name for number, name in enumerate(NAMES) if bits >> number & 1]


@functools.cache
def last() -> int:
    """The highest capability this kernel has."""
    with open("/proc/sys/kernel/cap_last_cap") as file:
        return int(file.read())


def current(kind: str = "CapEff", pid: int | str = "self") -> int:
    """A set of a process, as in /proc/pid/status: CapInh, CapPrm, CapEff, CapBnd or CapAmb."""
    return sets(pid)[kind]


def sets(pid: int | str = "self") -> dict[str, int]:
    """All sets of a process, by the names that :func:`current` takes."""
    with open(f"/proc/{pid}/status", "rb", buffering=0) as file:
        _, _, found = file.read().partition(b"\nCapInh:")
    values = (b"CapInh:" + found).decode().split(maxsplit=10)[:10]
    return {name.rstrip(":"): int(value, 16) for name, value in zip(values[::2], values[1::2], strict=True)}


def packed(effective: int, permitted: int, inheritable: int) -> tuple[bytes, bytes]:
    """The arguments of capset(2), made ahead of the moment they are needed."""
    low = 0xFFFFFFFF
    return struct.pack("=Ii", _VERSION_3, 0), struct.pack(
        "=6I",
        effective & low, permitted & low, inheritable & low,
        effective >> 32, permitted >> 32, inheritable >> 32,
    )  # fmt: skip


def capset(effective: int, permitted: int, inheritable: int) -> None:
    header, data = packed(effective, permitted, inheritable)
    capset_packed(header, data)


def capset_packed(header: bytes, data: bytes) -> None:
    if _capset(header, data) < 0:
        raise fail("capset")


def drop_bounding(keep: int, highest: int) -> None:
    """Drop every capability but ``keep`` from the bounding set; needs CAP_SETPCAP."""
    for number in range(highest + 1):
        if not keep >> number & 1:
            prctl(PR_CAPBSET_DROP, number)


def clear_ambient() -> None:
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)


def raise_ambient(bits: int) -> None:
    for number in range(len(NAMES)):
        if bits >> number & 1:
            prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number)
