"""DNS messages as far as a forwarding resolver needs them (RFC 1035, 6891): read a question, write an answer.

Everything read here is hostile. A message that is not understood raises :class:`Malformed`; nothing else is raised, and
no input makes the work more than linear in its size.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Sequence
from dataclasses import dataclass

A, NS, CNAME, SOA, PTR, AAAA, OPT, ANY = 1, 2, 5, 6, 12, 28, 41, 255
IN = 1
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = range(6)

_HEADER = struct.Struct(">HHHHHH")
_QR, _OPCODE, _AA, _TC, _RD, _RA, _CD = 0x8000, 0x7800, 0x0400, 0x0200, 0x0100, 0x0080, 0x0010
UDP_SIZE = 1232
"""What we say we take by UDP, and the most we send to whom did not say (RFC 9715 and DNS flag day 2020)."""


class Malformed(Exception):
    """Not a DNS message that can be answered."""


@dataclass(frozen=True, slots=True)
class Query:
    """A question. ``name`` is lower-case without the final dot; ``question`` is its wire form, as it was sent."""

    id: int
    flags: int
    name: str
    kind: int
    klass: int
    question: bytes
    udp_size: int
    edns: bool
    dnssec: bool


def parse_query(data: bytes) -> Query:
    """Read a standard query with one question.

    Raises:
        Malformed: it is an answer, something other than a query, or broken.
    """
    if len(data) < 12:
        raise Malformed
    id, flags, questions, answers, authorities, additionals = _HEADER.unpack_from(data)
    if flags & _QR or flags & _OPCODE or questions != 1:
        raise Malformed
    offset = 12
    labels = []
    end = len(data)
    while True:
        if offset >= end:
            raise Malformed
        size = data[offset]
        offset += 1
        if size == 0:
            break
        if size > 63 or offset + size > end or offset + size - 12 > 255:
            raise Malformed  # a compressed name in a question points nowhere
        labels.append(data[offset : offset + size])
        offset += size
    if offset + 4 > end:
        raise Malformed
    kind, klass = struct.unpack_from(">HH", data, offset)
    question = data[12 : offset + 4]
    udp_size, edns, dnssec = 512, False, False
    if additionals and not answers and not authorities:
        udp_size, edns, dnssec = _edns(data, offset + 4, additionals)
    name = b".".join(labels).decode("latin-1").lower()
    return Query(id, flags, name, kind, klass, question, udp_size, edns, dnssec)


def _edns(data: bytes, offset: int, count: int) -> tuple[int, bool, bool]:
    for _ in range(min(count, 8)):
        if offset + 11 > len(data) or data[offset] != 0:
            break
        kind, size, _, flags, length = struct.unpack_from(">HHHHH", data, offset + 1)
        if kind == OPT:
            return max(512, size), True, bool(flags & 0x8000)
        offset += 11 + length
    return 512, False, False


def answer(
    query: Query,
    records: Sequence[tuple[int, bytes]] = (),
    *,
    code: int = NOERROR,
    ttl: int = 600,
    limit: int = 65535,
    authoritative: bool = False,
) -> bytes:
    """An answer with ``records`` (type, data) for the question's own name; truncated (TC) to ``limit`` bytes."""
    parts = []
    size = 12 + len(query.question) + (11 if query.edns else 0)
    truncated = 0
    for kind, data in records:
        size += 12 + len(data)
        if size > limit:
            truncated = _TC
            break
        parts.append(struct.pack(">HHHIH", 0xC00C, kind, IN, ttl, len(data)) + data)
    flags = _QR | _RA | (query.flags & (_RD | _CD)) | truncated | code | (_AA if authoritative else 0)
    head = _HEADER.pack(query.id, flags, 1, len(parts), 0, 1 if query.edns else 0)
    tail = struct.pack(">BHHIH", 0, OPT, UDP_SIZE, 0x8000 if query.dnssec else 0, 0) if query.edns else b""
    return head + query.question + b"".join(parts) + tail


def refusal(data: bytes, code: int) -> bytes | None:
    """An answer to what could not be read as a query; None to something that must not be answered at all."""
    if len(data) < 12:
        return None
    id, flags, *_ = _HEADER.unpack_from(data)
    if flags & _QR:
        return None
    if flags & _OPCODE:
        code = NOTIMP
    return _HEADER.pack(id, _QR | (flags & (_OPCODE | _RD)) | code, 0, 0, 0, 0)


def encode_name(name: str) -> bytes:
    """A name in wire form.

    Raises:
        Malformed: a label is empty or too long.
    """
    result = bytearray()
    for label in name.rstrip(".").split("."):
        raw = label.encode("utf-8", "surrogateescape")
        if not 0 < len(raw) < 64:
            raise Malformed
        result.append(len(raw))
        result += raw
    result.append(0)
    if len(result) > 255:
        raise Malformed
    return bytes(result)


def reverse_address(name: str) -> str | None:
    """The address that a name below in-addr.arpa or ip6.arpa asks about; None if it is none."""
    if name.endswith(".in-addr.arpa"):
        parts = name[: -len(".in-addr.arpa")].split(".")
        if len(parts) == 4 and all(part.isascii() and part.isdecimal() and len(part) < 4 for part in parts):
            try:
                return str(ipaddress.IPv4Address(".".join(reversed(parts))))
            except ValueError:
                return None
    if name.endswith(".ip6.arpa"):
        nibbles = name[: -len(".ip6.arpa")].split(".")
        if len(nibbles) == 32 and all(len(nibble) == 1 and nibble in "0123456789abcdef" for nibble in nibbles):
            return str(ipaddress.IPv6Address(int("".join(reversed(nibbles)), 16)))
    return None


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer from a server, ready to be kept: ``ttl_offsets`` say where its records' lifetimes stand."""

    data: bytes
    code: int
    truncated: bool
    ttl: int
    ttl_offsets: tuple[int, ...]

    def aged(self, id: int, seconds: int) -> bytes:
        """The message for a question with another id, ``seconds`` later."""
        data = bytearray(self.data)
        struct.pack_into(">H", data, 0, id)
        if seconds:
            for offset in self.ttl_offsets:
                (ttl,) = struct.unpack_from(">I", data, offset)
                struct.pack_into(">I", data, offset, max(0, ttl - seconds))
        return bytes(data)


def parse_reply(data: bytes, query: Query, id: int) -> Reply:
    """Read a server's answer to ``query`` that was sent with ``id``.

    Raises:
        Malformed: it answers something else, or is broken.
    """
    if len(data) < 12:
        raise Malformed
    got, flags, questions, answers, authorities, additionals = _HEADER.unpack_from(data)
    if got != id or not flags & _QR or questions > 1:
        raise Malformed
    offset = 12
    if questions:
        end = 12 + len(query.question)
        if data[12:end].lower() != query.question.lower():
            raise Malformed
        offset = end
    elif not flags & 0xF:
        raise Malformed
    lifetimes: list[int] = []
    offsets = []
    negative = None
    truncated = bool(flags & _TC)
    try:
        for index in range(answers + authorities + additionals):
            offset = _skip_name(data, offset)
            kind, _, ttl, length = struct.unpack_from(">HHIH", data, offset)
            if offset + 10 + length > len(data):
                raise Malformed
            if kind != OPT:
                offsets.append(offset + 4)
                if index < answers:
                    lifetimes.append(ttl)
                elif kind == SOA and length >= 20:
                    negative = min(ttl, struct.unpack_from(">I", data, offset + 10 + length - 4)[0])
            offset += 10 + length
    except struct.error as error:
        if not truncated:
            raise Malformed from error
    lifetime = min(lifetimes) if lifetimes else (negative or 0)
    return Reply(data, flags & 0xF, truncated, lifetime if lifetime < 1 << 31 else 0, tuple(offsets))


def _skip_name(data: bytes, offset: int) -> int:
    while True:
        if offset >= len(data):
            raise Malformed
        size = data[offset]
        if size == 0:
            return offset + 1
        if size & 0xC0 == 0xC0:
            return offset + 2
        if size & 0xC0:
            raise Malformed
        offset += 1 + size


def question(name: str, kind: int, id: int, *, edns: bool = False) -> bytes:
    """A query as a client sends it."""
    head = _HEADER.pack(id, _RD, 1, 0, 0, 1 if edns else 0)
    tail = struct.pack(">BHHIH", 0, OPT, UDP_SIZE, 0, 0) if edns else b""
    return head + encode_name(name) + struct.pack(">HH", kind, IN) + tail
