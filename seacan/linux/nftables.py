"""nftables over raw netlink: tables, chains, rules, sets and elements, in one transaction.

Only what the network package says with it is here, under the names that nft(8) uses. A :class:`Batch` collects
messages; :func:`commit` applies all of them or none. Rules are written as expressions (linux/netfilter/nf_tables.h),
with data passed in 32-bit registers: a key that concatenates fields takes as many as it needs.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from seacan.linux.netlink import (
    NETLINK_NETFILTER,
    NLM_F_APPEND,
    NLM_F_CREATE,
    SOL_NETLINK,
    Message,
    NetlinkError,
    NetlinkSocket,
    attr,
    attribute_list,
    attributes,
    be32,
    nested,
    text,
)

NFPROTO_INET = 1
NFPROTO_IPV4 = 2
NFPROTO_NETDEV = 5
NFPROTO_BRIDGE = 7
NFPROTO_IPV6 = 10

_NFTABLES = 10 << 8
_CTNETLINK = 1 << 8
_BATCH_BEGIN, _BATCH_END = 16, 17
(NEWTABLE, GETTABLE, DELTABLE, NEWCHAIN, GETCHAIN, DELCHAIN, NEWRULE, GETRULE, DELRULE) = range(9)
(NEWSET, GETSET, DELSET, NEWSETELEM, GETSETELEM, DELSETELEM) = range(9, 15)

NF_DROP, NF_ACCEPT, NFT_RETURN, NFT_JUMP, NFT_GOTO = 0, 1, -5, -3, -4

HOOKS = {"prerouting": 0, "input": 1, "forward": 2, "output": 3, "postrouting": 4}

_SO_ATTACH_FILTER = 26
_NETLINK_ADD_MEMBERSHIP = 1
_NFNLGRP_NFTABLES = 7
_NLMSG_PID = 12
_LOAD_WORD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06

SET_INTERVAL, SET_MAP, SET_CONCAT = 0x4, 0x8, 0x80
_INTERVAL_END = 1

VERDICT = 0xFFFFFF00
"""Type number of verdicts as the data of a map."""


@dataclass(frozen=True, slots=True)
class Type:
    """A data type of nft: its number (only nft's own listing needs it), its size in bytes."""

    number: int
    size: int


IPV4 = Type(7, 4)
IPV6 = Type(8, 16)
ETHER = Type(9, 6)
L4PROTO = Type(12, 1)
PORT = Type(13, 2)
IFINDEX = Type(20, 4)
GROUP = Type(35, 4)
IFNAME = Type(41, 16)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) & 3)


def key(*fields: bytes) -> bytes:
    """The fields of a concatenation, each padded to a register."""
    return fields[0] if len(fields) == 1 else b"".join(_padded(field) for field in fields)


def ifname(name: str) -> bytes:
    return name.encode().ljust(16, b"\0")


def group(number: int) -> bytes:
    """A host-order number: an interface group or index."""
    return struct.pack("=I", number)


def port(number: int) -> bytes:
    return struct.pack(">H", number)


# --- expressions ---------------------------------------------------------------------------------------------------

_REG32 = 8


def _register(word: int) -> int:
    """The netlink number of the 32-bit register ``word`` (0–15)."""
    return _REG32 + word


def _expression(name: str, *parts: bytes) -> bytes:
    return nested(1, text(1, name), nested(2, *parts))


META_PROTOCOL, META_IIF, META_OIF, META_IIFNAME, META_OIFNAME = 1, 4, 5, 6, 7
META_NFPROTO, META_L4PROTO, META_IIFGROUP, META_OIFGROUP, META_IIFTYPE = 15, 16, 21, 22, 8
CT_STATE, CT_STATUS = 0, 2
CT_ESTABLISHED, CT_RELATED, CT_NEW, CT_INVALID, CT_UNTRACKED = 2, 4, 8, 1, 64
IPS_DST_NAT = 0x20
EQ, NEQ, LT, LTE, GT, GTE = range(6)


def meta(what: int, word: int = 0) -> bytes:
    return _expression("meta", be32(2, what), be32(1, _register(word)))


def ct(what: int, word: int = 0) -> bytes:
    return _expression("ct", be32(2, what), be32(1, _register(word)))


def payload(base: int, offset: int, size: int, word: int = 0) -> bytes:
    """Load ``size`` bytes of the packet; ``base`` is 0 link layer, 1 network, 2 transport."""
    return _expression("payload", be32(1, _register(word)), be32(2, base), be32(3, offset), be32(4, size))


def payload_set(base: int, offset: int, size: int, word: int, checksum_offset: int) -> bytes:
    """Overwrite ``size`` bytes of the packet, and mend the Internet checksum at ``checksum_offset`` of that header."""
    return _expression(
        "payload",
        be32(5, _register(word)),
        be32(2, base),
        be32(3, offset),
        be32(4, size),
        be32(6, 1),
        be32(7, checksum_offset),
    )


def compare(value: bytes, operator: int = EQ, word: int = 0) -> bytes:
    return _expression("cmp", be32(1, _register(word)), be32(2, operator), nested(3, attr(1, value)))


def mask(bits: bytes, word: int = 0) -> bytes:
    """Keep only ``bits``."""
    return _expression(
        "bitwise",
        be32(1, _register(word)),
        be32(2, _register(word)),
        be32(3, len(bits)),
        nested(4, attr(1, bits)),
        nested(5, attr(1, bytes(len(bits)))),
    )


def lookup(name: str, word: int = 0, *, into: int | None = None, invert: bool = False) -> bytes:
    """Continue only if the key in ``word`` is in the set; ``into`` receives a map's value."""
    parts = [text(1, name), be32(2, _register(word))]
    if into is not None:
        parts.append(be32(3, _register(into)))
    if invert:
        parts.append(be32(5, 1))
    return _expression("lookup", *parts)


def verdict_map(name: str, word: int = 0) -> bytes:
    """Do what the map says for the key in ``word``; go on if it says nothing."""
    return _expression("lookup", text(1, name), be32(2, _register(word)), be32(3, 0))


def verdict(code: int, chain: str = "") -> bytes:
    return _expression("immediate", be32(1, 0), nested(2, _verdict(code, chain)))


def _verdict(code: int, chain: str = "") -> bytes:
    return nested(2, be32(1, code), *([text(2, chain)] if chain else []))


def immediate(value: bytes, word: int = 0) -> bytes:
    return _expression("immediate", be32(1, _register(word)), nested(2, attr(1, value)))


def fib_daddr_type(word: int = 0) -> bytes:
    """The type of route the destination has (RTN_LOCAL is 2)."""
    return _expression("fib", be32(1, _register(word)), be32(2, 3), be32(3, 2))


RTN_LOCAL = 2


def dnat(family: int, address_word: int, port_word: int | None) -> bytes:
    return _nat(1, family, address_word, port_word)


def snat(family: int, address_word: int) -> bytes:
    return _nat(0, family, address_word, None)


def _nat(kind: int, family: int, address_word: int, port_word: int | None) -> bytes:
    flags = 1  # NF_NAT_RANGE_MAP_IPS
    parts = [be32(1, kind), be32(2, family), be32(3, _register(address_word))]
    if port_word is not None:
        parts.append(be32(5, _register(port_word)))
        flags |= 2  # NF_NAT_RANGE_PROTO_SPECIFIED
    return _expression("nat", *parts, be32(7, flags))


def masquerade() -> bytes:
    return _expression("masq")


def counter() -> bytes:
    return _expression("counter")


def reject(kind: int = 2, code: int = 1) -> bytes:
    """Refuse with an ICMP error (kind 2: ICMPX, code 1: port unreachable)."""
    return _expression("reject", be32(1, kind), attr(2, bytes([code])))


# --- objects -------------------------------------------------------------------------------------------------------


class Batch:
    """Changes to one table, applied together by :func:`commit`."""

    def __init__(self, family: int, table: str) -> None:
        self.family = family
        self.table = table
        self.messages: list[Message] = []

    def __bool__(self) -> bool:
        return bool(self.messages)

    def _add(self, kind: int, flags: int, what: str, *parts: bytes) -> None:
        header = struct.pack(">BBH", self.family, 0, 0)
        self.messages.append(Message(_NFTABLES | kind, flags, header + b"".join(parts), what))

    def add_table(self) -> None:
        """Make the table unless it exists."""
        self._add(NEWTABLE, NLM_F_CREATE, f"nftables: add table {self.table}", text(1, self.table), be32(2, 0))

    def delete_table(self) -> None:
        """Delete the table with everything in it (it must exist)."""
        self._add(DELTABLE, 0, f"nftables: delete table {self.table}", text(1, self.table))

    def add_chain(self, name: str, kind: str = "", hook: str = "", priority: int = 0) -> None:
        """Make a chain unless it exists; with ``kind`` (filter, nat, route) a base chain that accepts by default."""
        parts = [text(1, self.table), text(3, name)]
        if kind:
            parts += [nested(4, be32(1, HOOKS[hook]), be32(2, priority)), be32(5, NF_ACCEPT), text(7, kind)]
        self._add(NEWCHAIN, NLM_F_CREATE, f"nftables: add chain {self.table} {name}", *parts)

    def flush_chain(self, name: str) -> None:
        self._add(DELRULE, 0, f"nftables: flush chain {self.table} {name}", text(1, self.table), text(2, name))

    def add_rule(self, chain: str, *expressions: bytes) -> None:
        parts = (text(1, self.table), text(2, chain), nested(4, *expressions))
        self._add(NEWRULE, NLM_F_CREATE | NLM_F_APPEND, f"nftables: add rule to {self.table} {chain}", *parts)

    def add_set(
        self, name: str, fields: Sequence[Type], data: Sequence[Type] | int | None = None, *, interval: bool = False
    ) -> None:
        """Make a set, or a map to ``data`` (:data:`VERDICT` for verdicts), unless it exists."""
        flags = 0
        parts = [text(1, self.table), text(2, name)]
        key_type = 0
        for one in fields:
            key_type = key_type << 6 | one.number
        size = fields[0].size if len(fields) == 1 else sum((one.size + 3) & ~3 for one in fields)
        description = b""
        if interval:
            flags |= SET_INTERVAL
            if len(fields) > 1:
                flags |= SET_CONCAT
                description = nested(2, *(nested(1, be32(1, one.size)) for one in fields))
        if data is not None:
            flags |= SET_MAP
        parts += [be32(3, flags), be32(4, key_type), be32(5, size)]
        if isinstance(data, int):
            parts += [be32(6, data), be32(7, 0)]
        elif data is not None:
            data_type = 0
            for one in data:
                data_type = data_type << 6 | one.number
            data_size = data[0].size if len(data) == 1 else sum((one.size + 3) & ~3 for one in data)
            parts += [be32(6, data_type), be32(7, data_size)]
        if description:
            parts.append(nested(9, description))
        parts.append(be32(10, 1 + len(self.messages)))
        self._add(NEWSET, NLM_F_CREATE, f"nftables: add set {self.table} {name}", *parts)

    def flush_set(self, name: str) -> None:
        self._add(DELSETELEM, 0, f"nftables: flush set {self.table} {name}", text(1, self.table), text(2, name))

    def add_elements(self, name: str, elements: Iterable[Element]) -> None:
        """Add elements; those that are there already with the same value stay."""
        self._elements(NEWSETELEM, NLM_F_CREATE, "add elements to", name, elements)

    def delete_elements(self, name: str, elements: Iterable[Element]) -> None:
        """Remove elements; every one must be there, or the transaction fails with ENOENT."""
        self._elements(DELSETELEM, 0, "delete elements from", name, elements)

    def _elements(self, kind: int, flags: int, verb: str, name: str, elements: Iterable[Element]) -> None:
        encoded = [one for element in elements for one in element.encode(kind == NEWSETELEM)]
        what = f"nftables: {verb} {self.table} {name}"
        # An attribute is at most 64 KiB long.
        for start in range(0, len(encoded), 256):
            self._add(kind, flags, what, text(1, self.table), text(2, name), nested(3, *encoded[start : start + 256]))


@dataclass(frozen=True, slots=True)
class Element:
    """An element of a set or map. ``end`` closes an interval: exclusive, of the same size as ``key``; for a
    concatenation inclusive. ``value`` is a map's data, ``code`` and ``chain`` a verdict."""

    key: bytes
    value: bytes | None = None
    code: int | None = None
    chain: str = ""
    end: bytes | None = None
    concatenation: bool = False

    def encode(self, with_data: bool = True) -> list[bytes]:
        parts = [nested(1, attr(1, self.key))]
        if self.concatenation and self.end is not None:
            parts.append(nested(10, attr(1, self.end)))
        if with_data:
            if self.value is not None:
                parts.append(nested(2, attr(1, self.value)))
            elif self.code is not None:
                parts.append(nested(2, _verdict(self.code, self.chain)))
        result = [nested(1, *parts)]
        if self.end is not None and not self.concatenation:
            result.append(nested(1, nested(1, attr(1, self.end)), be32(3, _INTERVAL_END)))
        return result


def commit(sock: NetlinkSocket, batches: Iterable[Batch]) -> None:
    """Apply every batch in a single transaction.

    Raises:
        NetlinkError: nothing was applied.
    """
    messages = [message for batch in batches for message in batch.messages]
    if not messages:
        return
    marker = struct.pack(">BBH", 0, 0, 10)
    begin = Message(_BATCH_BEGIN, 0, marker, "nftables: begin")
    end = Message(_BATCH_END, 0, marker, "nftables: commit")
    sock.transact([begin, *messages, end])


def open_socket(fd: int | None = None) -> NetlinkSocket:
    return NetlinkSocket(NETLINK_NETFILTER, fd)


def open_monitor(ours: NetlinkSocket) -> socket.socket:
    """A non-blocking socket that becomes readable when anybody's rules change, unless it was by way of ``ours``."""
    monitor = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
    try:
        monitor.setblocking(False)
        # One transaction is one sender's. Classic BPF (filter.rst of the kernel) loads words in network byte order.
        sender = int.from_bytes(struct.pack("=I", ours.port), "big")
        drop, keep = (_RETURN, 0, 0, 0), (_RETURN, 0, 0, 1 << 16)
        code = [(_LOAD_WORD, 0, 0, _NLMSG_PID), (_JUMP_EQUAL, 0, 1, sender), drop, keep]
        program = b"".join(struct.pack("=HBBI", *one) for one in code)
        held = ctypes.create_string_buffer(program, len(program))
        monitor.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(code), ctypes.addressof(held)))
        monitor.bind((0, 0))
        monitor.setsockopt(SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _NFNLGRP_NFTABLES)
    except BaseException:
        monitor.close()
        raise
    return monitor


@dataclass(frozen=True, slots=True)
class ChainInfo:
    """A base chain as it stands: its hook (-1 for a chain without one), priority and whether it drops by default."""

    family: int
    table: str
    name: str
    kind: str
    hook: int
    priority: int
    drops: bool


def chains(sock: NetlinkSocket) -> list[ChainInfo]:
    """Every chain of the namespace, whoever made it."""
    result = []
    request = Message(_NFTABLES | GETCHAIN, 0, struct.pack(">BBH", 0, 0, 0), "nftables: list chains")
    for reply in sock.dump(request):
        found = attributes(reply.body, 4)
        hook = attributes(found.get(4, b""))
        result.append(
            ChainInfo(
                reply.body[0],
                _string(found.get(1, b"")),
                _string(found.get(3, b"")),
                _string(found.get(7, b"")),
                struct.unpack(">I", hook[1])[0] if 1 in hook else -1,
                struct.unpack(">i", hook[2])[0] if 2 in hook else 0,
                5 in found and struct.unpack(">I", found[5])[0] == NF_DROP,
            )
        )
    return result


def elements(sock: NetlinkSocket, family: int, table: str, name: str) -> list[bytes]:
    """The keys of a set or map; empty if it does not exist."""
    body = struct.pack(">BBH", family, 0, 0) + text(1, table) + text(2, name)
    result = []
    try:
        replies = sock.dump(Message(_NFTABLES | GETSETELEM, 0, body, f"nftables: list {table} {name}"))
    except NetlinkError as error:
        if error.errno == errno.ENOENT:
            return []
        raise
    for reply in replies:
        found = attributes(reply.body, 4)
        for _, item in attribute_list(found.get(3, b"")):
            one = attributes(item)
            value = attributes(one.get(1, b"")).get(1)
            if value is not None:
                result.append(value)
    return result


def forget_connections(sock: NetlinkSocket, reply_source: bytes) -> None:
    """Remove conntrack entries whose answers come from the address ``reply_source`` (4 or 16 bytes).

    Kernels before 5.8 lack the filter and are asked nothing.
    """
    family = 2 if len(reply_source) == 4 else 10
    source = attr(1 if family == 2 else 3, reply_source)
    # CTA_TUPLE_REPLY { CTA_TUPLE_IP { CTA_IP_V4_SRC } }, CTA_FILTER { CTA_FILTER_REPLY_FLAGS: IP_SRC }
    body = struct.pack(">BBH", family, 0, 0) + nested(2, nested(1, source))
    body += nested(25, struct.pack("=HHI", 8, 1, 0), struct.pack("=HHI", 8, 2, 1))
    sock.request(
        [Message(_CTNETLINK | 2, 0, body, "forget connections")], ignore=(errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL)
    )


def _string(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode(errors="replace")
