"""Packets of one message and some descriptors, over an ``AF_UNIX`` ``SOCK_SEQPACKET`` socket.

The lowest layer under :mod:`seacan.runtime.protocol`, shared by daemon, launcher and shim; it never waits.
"""

from __future__ import annotations

import _socket as socket  # socket.socket is a Python class over it: memory that every shim would have to itself
import array
import contextlib
import os
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

MAX_FDS = 253
"""SCM_MAX_FD: what the kernel lets ride along with one packet."""

BUFFER_SIZE = 1 << 20
"""Socket buffer, and so the longest packet, of either end."""

_SO_SNDBUFFORCE = 32
T = TypeVar("T")
_encode = msgspec.json.Encoder().encode
_FD_SIZE = array.array("i").itemsize


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return prepare(ours), prepare(theirs)


def adopt(fd: int) -> socket.socket:
    """The channel on a descriptor that was inherited or received."""
    return prepare(socket.socket(fileno=fd))


def listen(directory: str, name: str) -> socket.socket:
    """Listen on ``directory/name``, replacing what lies there. A path of any length will do."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=fd)
        listener.bind(f"/proc/self/fd/{fd}/{name}")  # sun_path holds 108 bytes only
        listener.listen(16)
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(fd)
    return listener


def connect(directory: str, name: str) -> socket.socket:
    """Connect to ``directory/name``. Raises FileNotFoundError or ConnectionRefusedError where nobody listens."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        channel.connect(f"/proc/self/fd/{fd}/{name}")
        return prepare(channel)
    except BaseException:
        channel.close()
        raise
    finally:
        os.close(fd)


def prepare(channel: socket.socket) -> socket.socket:
    """Make a connected socket ready for the functions below."""
    channel.setblocking(False)
    try:
        channel.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, BUFFER_SIZE)
    except PermissionError:
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_SIZE)
    return channel


def send(channel: socket.socket, message: msgspec.Struct, fds: Sequence[int] = ()) -> None:
    """Send one packet. Raises BlockingIOError when the other end is behind, BrokenPipeError when it is gone."""
    if fds:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        channel.sendmsg([_encode(message)], rights, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
    else:
        channel.send(_encode(message), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)


def _insist(receive: Callable[[], T]) -> T:
    """When the other side goes without reading everything, that is an error once; what it had sent is behind it."""
    try:
        return receive()
    except ConnectionResetError:
        return receive()


def receive(channel: socket.socket) -> tuple[bytes, list[int]] | None:
    """Take one packet: its bytes and the descriptors, which are now the caller's to close. None at the end.

    Raises BlockingIOError when there is none yet.
    """
    try:
        size = _insist(
            lambda: channel.recv_into(bytearray(1), 1, socket.MSG_PEEK | socket.MSG_TRUNC | socket.MSG_DONTWAIT)
        )
        if not size:
            return None
        data, control, _, _ = _insist(
            lambda: channel.recvmsg(
                size, socket.CMSG_SPACE(MAX_FDS * _FD_SIZE), socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
            )
        )
    except (ConnectionResetError, BrokenPipeError):
        return None
    fds = array.array("i")
    for level, kind, rights in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(rights[: len(rights) - len(rights) % _FD_SIZE])
    return data, list(fds)


def close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
