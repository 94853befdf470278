"""What the launcher runs in its tests. Imports little, as what it runs in earnest does."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence


def answer(argument: str, fds: Sequence[int]) -> int:
    os.write(fds[0], argument.upper().encode())
    return 7


def describe(argument: str, fds: Sequence[int]) -> None:
    open_fds = [number for number in range(1024) if os.path.lexists(f"/proc/self/fd/{number}")]
    ignored = signal.getsignal(signal.SIGTERM)
    os.write(fds[0], repr((open_fds, fds[0], os.getsid(0) == os.getpid(), ignored == signal.SIG_DFL)).encode())


def sleep(argument: str, fds: Sequence[int]) -> None:
    signal.pause()


def fail(argument: str, fds: Sequence[int]) -> None:
    raise ValueError(argument)


def modules(argument: str, fds: Sequence[int]) -> None:
    os.write(fds[0], " ".join(sys.modules).encode())
