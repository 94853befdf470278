"""Netlink, raw: messages as bytes, many of them in one system call.

This is the hot path's netlink: what a container's start needs is encoded here and sent in one ``sendmsg``. It knows
attributes, acknowledgements and dumps; what the messages mean is said in :mod:`seacan.linux.rtnetlink` and
:mod:`seacan.linux.nftables`. Sources: netlink(7), Documentation/userspace-api/netlink.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12

NLM_F_REQUEST = 0x01
NLM_F_MULTI = 0x02
NLM_F_ACK = 0x04
NLM_F_ECHO = 0x08
NLM_F_DUMP = 0x300
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800
NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200
NLM_F_DUMP_INTR = 0x10

NLMSG_NOOP = 1
NLMSG_ERROR = 2
NLMSG_DONE = 3

SOL_NETLINK = 270
NETLINK_EXT_ACK = 11
NETLINK_GET_STRICT_CHK = 12
NLMSGERR_ATTR_MSG = 1

NLA_F_NESTED = 0x8000
_NLA_TYPE = 0x3FFF

_TIMEOUT = 10.0
"""Seconds. An acknowledgement is in the queue before sendmsg returns: a wait means that one was lost."""

_HEADER = struct.Struct("=IHHII")
_ATTR = struct.Struct("=HH")
_PAD = (b"", b"\0\0\0", b"\0\0", b"\0")


def attr(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    size = len(payload)
    return _ATTR.pack(4 + size, kind) + payload + _PAD[size & 3]


def nested(kind: int, *parts: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attr(kind | NLA_F_NESTED, b"".join(parts))


def u8(kind: int, value: int) -> bytes:
    return attr(kind, struct.pack("=B", value))


def u16(kind: int, value: int) -> bytes:
    return attr(kind, struct.pack("=H", value))


def u32(kind: int, value: int) -> bytes:
    return attr(kind, struct.pack("=I", value))


def be32(kind: int, value: int) -> bytes:
    """A number in network byte order, as netfilter wants them."""
    return attr(kind, struct.pack(">I", value & 0xFFFFFFFF))


def text(kind: int, value: str) -> bytes:
    """A string with its terminating zero."""
    return attr(kind, value.encode() + b"\0")


def attributes(data: bytes | memoryview, offset: int = 0) -> dict[int, bytes]:
    """The attributes in ``data`` from ``offset`` on, by type (the last of each wins)."""
    return dict(attribute_list(data, offset))


def attribute_list(data: bytes | memoryview, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """The attributes in ``data`` from ``offset`` on, in order."""
    end = len(data)
    while offset + 4 <= end:
        size, kind = _ATTR.unpack_from(data, offset)
        if size < 4 or offset + size > end:
            return
        yield kind & _NLA_TYPE, bytes(data[offset + 4 : offset + size])
        offset += (size + 3) & ~3


@dataclass(frozen=True, slots=True)
class Message:
    """One request: netlink type and flags (without REQUEST), its body, and ``what`` it does, for the error's text."""

    kind: int
    flags: int
    body: bytes
    what: str = "netlink request"


@dataclass(frozen=True, slots=True)
class Reply:
    """One message from the kernel."""

    kind: int
    flags: int
    seq: int
    body: bytes


class NetlinkError(OSError):
    """The kernel refused a request. ``index`` says which message of the batch; -1 if that is not known."""

    def __init__(self, errno: int, message: str, index: int = -1) -> None:
        super().__init__(errno, message)
        self.index = index


class NetlinkSocket:
    """A netlink socket in the network namespace it was opened in, which may not be the caller's.

    Synchronous: the kernel carries requests out inside ``sendmsg``. Not for use from two threads at once.
    """

    def __init__(self, protocol: int, fd: int | None = None) -> None:
        """``fd`` takes over a socket that someone else opened, possibly inside another namespace."""
        if fd is None:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        else:
            self._socket = socket.socket(fileno=fd)
        self._seq = 0
        with contextlib.suppress(OSError):  # both only better the errors; kernels before 4.20 lack the second
            self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
            self._socket.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._socket.settimeout(_TIMEOUT)

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def port(self) -> int:
        """The address the kernel has given the socket; 0 before its first request."""
        return int(self._socket.getsockname()[0])

    def close(self) -> None:
        self._socket.close()

    def detach(self) -> int:
        """Give the descriptor back to its owner, still open."""
        return self._socket.detach()

    def __enter__(self) -> NetlinkSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def request(self, messages: Sequence[Message], *, ignore: Iterable[int] = ()) -> None:
        """Carry out ``messages`` in order, all in one send; each is acknowledged on its own.

        Every message is carried out even when an earlier one failed; the first failure is raised afterwards.
        Failures with an errno in ``ignore`` are none.

        Raises:
            NetlinkError: the first failure, with the operation and the kernel's own words.
        """
        base = self._send(messages, NLM_F_ACK)
        tolerated = frozenset(ignore)
        waiting = len(messages)
        failure: NetlinkError | None = None
        while waiting:
            for reply in self._receive():
                index = (reply.seq - base) & 0xFFFFFFFF
                if reply.kind != NLMSG_ERROR or index >= len(messages):
                    continue
                waiting -= 1
                error = _error(reply)
                if error and error[0] not in tolerated and failure is None:
                    failure = NetlinkError(error[0], f"{messages[index].what}: {error[1]}", index)
        if failure is not None:
            raise failure

    def get(self, message: Message) -> Reply:
        """The single answer to ``message``."""
        base = self._send([message], 0)
        while True:
            for reply in self._receive():
                if reply.seq != base:
                    continue
                if reply.kind == NLMSG_ERROR:
                    error = _error(reply)
                    if error:
                        raise NetlinkError(error[0], f"{message.what}: {error[1]}", 0)
                    continue
                return reply

    def dump(self, message: Message) -> list[Reply]:
        """Every object the kernel lists in answer to ``message``; asked again if the list changed meanwhile."""
        for _ in range(20):
            base = self._send([message], NLM_F_DUMP)
            replies: list[Reply] = []
            interrupted = done = False
            while not done:
                for reply in self._receive():
                    if reply.seq != base:
                        continue
                    interrupted |= bool(reply.flags & NLM_F_DUMP_INTR)
                    if reply.kind == NLMSG_DONE:
                        code = struct.unpack_from("=i", reply.body)[0] if len(reply.body) >= 4 else 0
                        if code < 0:
                            raise NetlinkError(-code, f"{message.what}: {os.strerror(-code)}", 0)
                        done = True
                    elif reply.kind == NLMSG_ERROR:
                        error = _error(reply)
                        if error:
                            raise NetlinkError(error[0], f"{message.what}: {error[1]}", 0)
                        done = True
                    else:
                        replies.append(reply)
            if not interrupted:
                return replies
        return replies

    def transact(self, messages: Sequence[Message]) -> None:
        """Send a netfilter batch: ``messages`` begin with BATCH_BEGIN and end with BATCH_END, and apply all or none.

        Only the last message before BATCH_END asks for an acknowledgement; failures are reported by the kernel for
        any of them.

        Raises:
            NetlinkError: nothing was applied.
        """
        data = bytearray()
        base = self._seq + 1
        last = len(messages) - 2
        for index, message in enumerate(messages):
            self._seq = (self._seq + 1) & 0xFFFFFFFF
            flags = message.flags | NLM_F_REQUEST | (NLM_F_ACK if index == last else 0)
            data += _HEADER.pack(16 + len(message.body), message.kind, flags, self._seq, 0)
            data += message.body
        if len(data) > 180_000:
            # A batch is one datagram: it must fit the send buffer (SO_SNDBUFFORCE needs CAP_NET_ADMIN, which we have).
            self._socket.setsockopt(socket.SOL_SOCKET, 32, max(len(data) * 2, 1 << 20))
        self._socket.send(data)
        failure: NetlinkError | None = None
        while True:
            for reply in self._receive():
                index = (reply.seq - base) & 0xFFFFFFFF
                if reply.kind != NLMSG_ERROR or index >= len(messages):
                    continue
                error = _error(reply)
                if error and failure is None:
                    failure = NetlinkError(error[0], f"{messages[index].what}: {error[1]}", index)
                if index == last or error:
                    if failure is not None:
                        self._drain()
                        raise failure
                    return

    def _drain(self) -> None:
        """Throw away what else the kernel says of a batch that failed."""
        self._socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self._socket.recv(1 << 17)
        self._socket.settimeout(_TIMEOUT)

    def _send(self, messages: Sequence[Message], flags: int) -> int:
        data = bytearray()
        base = (self._seq + 1) & 0xFFFFFFFF
        for message in messages:
            self._seq = (self._seq + 1) & 0xFFFFFFFF
            data += _HEADER.pack(
                16 + len(message.body), message.kind, message.flags | flags | NLM_F_REQUEST, self._seq, 0
            )
            data += message.body
        self._socket.send(data)
        return base

    def _receive(self) -> Iterator[Reply]:
        data = memoryview(self._socket.recv(1 << 17))
        offset = 0
        while offset + 16 <= len(data):
            size, kind, flags, seq, _ = _HEADER.unpack_from(data, offset)
            if size < 16:
                return
            yield Reply(kind, flags, seq, bytes(data[offset + 16 : offset + size]))
            offset += (size + 3) & ~3


def _error(reply: Reply) -> tuple[int, str] | None:
    """errno and text of an NLMSG_ERROR, or None for an acknowledgement."""
    code = -int(struct.unpack_from("=i", reply.body)[0])
    if not code:
        return None
    message = os.strerror(code)
    if reply.flags & NLM_F_ACK_TLVS:
        offset = 4 + 16
        if not reply.flags & NLM_F_CAPPED:
            offset = 4 + ((struct.unpack_from("=I", reply.body, 4)[0] + 3) & ~3)
        said = attributes(reply.body, offset).get(NLMSGERR_ATTR_MSG)
        if said:
            message = f"{message} ({said.rstrip(bytes(1)).decode(errors='replace')})"
    return code, message
