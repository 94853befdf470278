"""The v2 freezer: cgroup.freeze, since Linux 5.2. A frozen process can still be killed."""

from __future__ import annotations

import os
import select
import time

from seacan.cgroups import files
from seacan.errors import System

PATIENCE = 10.0
"""Seconds until a cgroup that does not come to rest is thawed again and reported (a process in uninterruptible
sleep)."""


def freeze(directory: str) -> None:
    """Stop every process, and return when all have stopped."""
    files.write(directory, "cgroup.freeze", "1")
    deadline = time.monotonic() + PATIENCE
    fd = os.open(f"{directory}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
    try:
        poll = select.poll()
        poll.register(fd, select.POLLPRI)
        while "frozen 1" not in os.pread(fd, 4096, 0).decode():
            left = deadline - time.monotonic()
            if left <= 0:
                files.write(directory, "cgroup.freeze", "0")
                raise System(f"unable to freeze cgroup {directory}: still not frozen after {PATIENCE:.0f} seconds")
            poll.poll(min(left, 0.5) * 1000)
    finally:
        os.close(fd)


def thaw(directory: str) -> None:
    files.write(directory, "cgroup.freeze", "0")


def state(directory: str) -> str:
    """``THAWED`` or ``FROZEN``, by what was asked for (as with v1's self-freezing)."""
    return "FROZEN" if (files.read_if_present(directory, "cgroup.freeze") or "0").strip() == "1" else "THAWED"
