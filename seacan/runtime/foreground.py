"""A process in the foreground of a command: signals and window sizes passed on, a terminal carried through."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import termios
import tty
from collections.abc import Callable
from types import FrameType

from seacan.linux.syscalls import pidfd_send_signal
from seacan.runtime.container import reap

_FORWARDED = tuple(
    number
    for number in signal.valid_signals()
    if number
    not in (
        signal.SIGKILL,
        signal.SIGSTOP,
        signal.SIGCHLD,
        signal.SIGWINCH,
        signal.SIGPIPE,
        signal.SIGURG,
        *(signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTTIN, signal.SIGTTOU),
    )
    and number < 32
)


def follow(pidfd: int, console: int | None, start: Callable[[], None] | None = None) -> int:
    """Stay until the child has ended; returns its exit code (128 + signal). Restores terminal and signals."""

    def forward(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            pidfd_send_signal(pidfd, number)

    def resize(number: int, frame: FrameType | None) -> None:
        if console is not None:
            with contextlib.suppress(OSError):
                fcntl.ioctl(console, termios.TIOCSWINSZ, fcntl.ioctl(0, termios.TIOCGWINSZ, b"\0" * 8))

    with contextlib.ExitStack() as restore:
        for number in _FORWARDED:
            restore.callback(signal.signal, number, signal.signal(number, forward))
        if console is not None:
            restore.callback(signal.signal, signal.SIGWINCH, signal.signal(signal.SIGWINCH, resize))
            restore.callback(os.close, console)
            if os.isatty(0):
                before = termios.tcgetattr(0)
                restore.callback(termios.tcsetattr, 0, termios.TCSADRAIN, before)
                tty.setraw(0, termios.TCSADRAIN)  # what was typed ahead stays
            resize(0, None)
        if start is not None:
            start()
        return _carry(pidfd, console)


def _carry(pidfd: int, console: int | None) -> int:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if console is not None:
        poll.register(console, select.POLLIN)
        poll.register(0, select.POLLIN)
    ended = False
    open_ = console is not None
    while open_ or not ended:
        for fd, events in poll.poll():
            if fd == pidfd:
                ended = True
                poll.unregister(pidfd)
            elif fd == console:
                data = _read(console)
                if data:
                    _write(1, data)
                else:
                    poll.unregister(console)
                    open_ = False
            elif console is not None:
                data = os.read(0, 4096) if events & select.POLLIN else b""
                if data:
                    with contextlib.suppress(OSError):
                        _write(console, data)
                else:
                    poll.unregister(0)
        if ended and open_ and console is not None and not select.select([console], [], [], 0)[0]:
            open_ = False  # something in the background holds the terminal
    result = reap(pidfd, block=True)
    assert result is not None
    return result.exit_code


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 32768)
    except OSError as error:
        if error.errno == errno.EIO:  # the last of the terminal's other side is closed
            return b""
        raise


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
