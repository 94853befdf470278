"""User namespaces made for their mappings alone: what an ID-mapped mount, or a look through one, needs."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Sequence
from typing import NamedTuple

from seacan.linux import syscalls as k


class Range(NamedTuple):
    """One line of uid_map or gid_map: ``size`` IDs from ``inside`` on are those from ``outside`` on."""

    inside: int
    outside: int
    size: int


def namespace_with(uids: Sequence[Range], gids: Sequence[Range]) -> int:
    """A descriptor of a user namespace with these mappings, that no process lives in. For single-threaded processes."""
    ready, go = os.pipe()
    pid, pidfd = k.clone3(k.CLONE_NEWUSER)
    if pid == 0:
        os.close(go)
        with contextlib.suppress(OSError):
            os.read(ready, 1)  # until our parent has what it wants, or has ended
        os._exit(0)
    try:
        os.close(ready)
        for name, ranges in (("uid_map", uids), ("gid_map", gids)):
            write_map(pid, name, ranges)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(go)
        with contextlib.suppress(ProcessLookupError):
            k.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        os.close(pidfd)


def write_map(pid: int, name: str, ranges: Sequence[Range]) -> None:
    """Write ``uid_map`` or ``gid_map`` of a process that has just been made with CLONE_NEWUSER."""
    fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, "".join(f"{one.inside} {one.outside} {one.size}\n" for one in ranges).encode())
    finally:
        os.close(fd)


def outside(ranges: Sequence[Range], number: int) -> int | None:
    """The host's number for the ID ``number`` of a namespace with these mappings, None if it has none."""
    for one in ranges:
        if one.inside <= number < one.inside + one.size:
            return one.outside + number - one.inside
    return None
