"""The words between the runtime and a process it is making: a SOCK_SEQPACKET pair, one letter and a payload a packet.

Closed without a word means: from the child, that execve happened (or that it died); from the parent, that it died, and
then the child ends too.
"""

from __future__ import annotations

import os
import socket
from typing import Final

# parent → child
MAPPED: Final = b"M"  # the user namespace's mappings are written
HOOKED: Final = b"H"  # the hooks of the runtime's namespaces have run
START: Final = b"S"  # execute the program

# child → parent
NETWORK: Final = b"N"  # the new network namespace and an rtnetlink socket in it ride along
CONSOLE: Final = b"T"  # the terminal's master rides along
HOOKS: Final = b"H"  # mounts are made: run the hooks of the runtime's namespaces
CREATED: Final = b"C"  # ready, waiting for START
CHILD: Final = b"P"  # the process that will be init (its pid; its pidfd rides along)
LISTENER: Final = b"L"  # the seccomp listener rides along
FAILED: Final = b"E"  # a failure.Report


class Channel:
    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._returned: list[tuple[bytes, bytes, list[int]]] = []

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(ours), cls(theirs)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, kind: bytes, payload: bytes = b"", fds: tuple[int, ...] = ()) -> None:
        """Raises BrokenPipeError when the other side is gone."""
        if fds:
            socket.send_fds(self._socket, [kind + payload], list(fds), socket.MSG_NOSIGNAL)
        else:
            self._socket.send(kind + payload, socket.MSG_NOSIGNAL)

    def receive(self) -> tuple[bytes, bytes, list[int]]:
        """(kind, payload, descriptors); kind is empty at the end."""
        if self._returned:
            return self._returned.pop(0)
        try:
            data, fds, _, _ = socket.recv_fds(self._socket, 65536, 8, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            return b"", b"", []
        return data[:1], data[1:], fds

    def put_back(self, words: list[tuple[bytes, bytes, list[int]]]) -> None:
        """Let :meth:`receive` give these again, before all others."""
        self._returned[:0] = words

    def expect(self, kind: bytes) -> None:
        """In the child: wait for a word, and end if the parent is gone."""
        if self.receive()[0] != kind:
            os._exit(1)

    def close(self) -> None:
        self._socket.close()
