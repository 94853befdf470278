"""Attached to a container or an exec: bytes both ways over a hijacked connection, raw mode, window size, signals.

One thread, one poll loop. The terminal's settings are restored whatever happens.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Final

from seacan.engine.frames import Demultiplexer
from seacan.errors import InvalidParameter, SeacanError

DEFAULT_DETACH_KEYS: Final = "ctrl-p,ctrl-q"
_NOT_PROXIED: Final = frozenset(
    {signal.SIGCHLD, signal.SIGPIPE, signal.SIGURG, signal.SIGWINCH, signal.SIGKILL, signal.SIGSTOP}
    | {signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}
    | {signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS, signal.SIGCONT}
)


class Detached(Exception):
    """The user typed the detach keys."""


def parse_detach_keys(text: str) -> bytes:
    """``ctrl-p,ctrl-q`` → the bytes a terminal sends for it."""
    keys = bytearray()
    for name in text.split(",") if text else []:
        if len(name) == 1 and name.isascii():
            keys.append(ord(name))
            continue
        letter = name.removeprefix("ctrl-")
        if name == letter or len(letter) != 1 or not "@" <= letter.upper() <= "_":
            raise InvalidParameter(f"invalid detach keys ({text}) provided: Unknown character: '{name}'")
        keys.append(ord(letter.upper()) - ord("@"))
    return bytes(keys)


class _Escape:
    """Watches typed bytes for the detach keys; gives back what is to be sent."""

    def __init__(self, keys: bytes) -> None:
        self.keys = keys
        self.seen = 0

    def feed(self, data: bytes) -> bytes:
        if not self.keys:
            return data
        out = bytearray()
        for byte in data:
            if byte == self.keys[self.seen]:
                self.seen += 1
                if self.seen == len(self.keys):
                    raise Detached
                continue
            out += self.keys[: self.seen]
            self.seen = 1 if byte == self.keys[0] else 0
            if not self.seen:
                out.append(byte)
        return bytes(out)


def is_terminal(descriptor: int) -> bool:
    return os.isatty(descriptor)


def window_size() -> tuple[int, int] | None:
    """Rows and columns of the terminal, or None where there is none."""
    for descriptor in (1, 0, 2):
        with contextlib.suppress(OSError):
            size = os.get_terminal_size(descriptor)
            if size.lines and size.columns:
                return size.lines, size.columns
    return None


@contextlib.contextmanager
def raw_mode() -> Iterator[None]:
    """The terminal on standard input passes every key on as it is."""
    if not is_terminal(0):
        yield
        return
    import termios
    import tty

    saved = termios.tcgetattr(0)
    tty.setraw(0, termios.TCSANOW)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, saved)


@contextlib.contextmanager
def signals(numbers: frozenset[int] | set[int]) -> Iterator[int]:
    """A descriptor on which the numbers of arriving signals can be read, one byte each."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    previous = {}
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        for number in numbers:
            with contextlib.suppress(OSError, ValueError):
                previous[number] = signal.signal(number, lambda *_: None)
        yield reader
    finally:
        for number, action in previous.items():
            signal.signal(number, action if action is not None else signal.SIG_DFL)
        signal.set_wakeup_fd(wakeup)
        os.close(reader)
        os.close(writer)


def proxied() -> frozenset[int]:
    """The signals that ``--sig-proxy`` passes on to the container."""
    return frozenset(range(1, signal.SIGRTMIN)) - _NOT_PROXIED - {32, 33}


def converse(
    connection: socket.socket,
    pending: bytes = b"",
    *,
    stdin: bool,
    terminal: bool,
    detach_keys: str = DEFAULT_DETACH_KEYS,
    resize: Callable[[int, int], None] | None = None,
    send_signal: Callable[[int], None] | None = None,
) -> None:
    """Copy standard input to the connection and its output to standard output and error until the other end closes.

    With ``terminal`` the bytes are taken as they are, else they come in Docker's frames. ``resize`` is called at once
    and whenever the window changes; ``send_signal`` with every signal that arrives. Raises :class:`Detached`.
    """
    escape = _Escape(parse_detach_keys(detach_keys) if terminal and stdin else b"")
    raw = stdin and terminal
    write = _raw_writer() if terminal else _frame_writer()
    caught: set[int] = set(proxied()) if send_signal is not None and not raw else set()
    if resize is not None:
        caught.add(signal.SIGWINCH)

    def apply_size() -> None:
        size = window_size()
        if resize is not None and size is not None:
            with contextlib.suppress(SeacanError):  # it may be gone by now
                resize(*size)

    with raw_mode() if raw else contextlib.nullcontext(), signals(caught) as arrived:
        poller = select.poll()
        poller.register(connection, select.POLLIN)
        poller.register(arrived, select.POLLIN)
        if stdin:
            poller.register(0, select.POLLIN)
        apply_size()
        if pending:
            write(pending)
        while True:
            for descriptor, _ in poller.poll():
                if descriptor == arrived:
                    for number in os.read(arrived, 256):
                        if number == signal.SIGWINCH:
                            apply_size()
                        elif send_signal is not None:
                            with contextlib.suppress(SeacanError):
                                send_signal(number)
                elif descriptor == connection.fileno():
                    data = _receive(connection)
                    if not data:
                        return
                    write(data)
                else:
                    typed = os.read(0, 1 << 16)
                    if typed:
                        try:
                            connection.sendall(escape.feed(typed))
                        except (BrokenPipeError, ConnectionResetError):
                            poller.unregister(0)
                    else:
                        poller.unregister(0)
                        with contextlib.suppress(OSError):
                            connection.shutdown(socket.SHUT_WR)


def _receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1 << 16)
    except ConnectionResetError:
        return b""


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _raw_writer() -> Callable[[bytes], None]:
    sys.stdout.flush()
    return lambda data: _write_all(1, data)


def _frame_writer() -> Callable[[bytes], None]:
    demultiplexer = Demultiplexer()
    sys.stdout.flush()

    def write(data: bytes) -> None:
        for stream, payload in demultiplexer.feed(data):
            _write_all(2 if stream == 2 else 1, payload)

    return write
