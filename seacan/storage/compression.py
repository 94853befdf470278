"""Compressed streams: recognised by their first bytes, never by name or media type, and expanded chunk by chunk.

Knows gzip (several members too), zstd (several frames), xz, bzip2 and no compression at all: what dockerd knows.
Memory stays bounded whatever the stream claims: windows above 128 MiB are refused, chunks are about 1 MiB.
The other direction is :class:`Encoding`: gzip, zstd, or none.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Protocol, Self

import msgspec
import zstandard
from isal import igzip_lib, isal_zlib

from seacan.errors import InvalidParameter, Unsupported
from seacan.truth import truth

CHUNK = 1 << 20
"""Bytes that an expanded chunk has at most (but for plain streams, which are passed on as they come)."""

ReadChunk = Callable[[], bytes]
"""Gives the next bytes of a stream, as many as are at hand; ``b""`` is its end."""

_ZSTD_WINDOW = 128 << 20
_ZSTD_SLICE = 8 << 10
_XZ_MEMORY = 256 << 20
_ZSTD_LEVEL = 3
_ZSTD_WRITTEN_WINDOW = 23
"""Base 2 logarithm of the largest window that is written: 8 MiB, which every decoder should allow (RFC 8878)."""
_GZIP_HEADER = 31


class Compression(Enum):
    NONE = "none"
    GZIP = "gzip"
    ZSTD = "zstd"
    XZ = "xz"
    BZIP2 = "bzip2"


class Compressor(Protocol):
    """A stream being compressed (``zlib.compressobj``'s shape)."""

    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


class Encoding(msgspec.Struct, frozen=True):
    """How an archive that is written is compressed: gzip, zstd, or not at all.

    ``level`` is gzip's (0 to 9) or zstd's (0 to 22); None is the fastest that is worth it. ``force`` asks for it of
    archives that exist already, too.
    """

    kind: Compression = Compression.GZIP
    level: int | None = None
    force: bool = False

    @classmethod
    def read(cls, attributes: Mapping[str, str]) -> Self:
        """From a build's exporter: ``compression``, ``compression-level`` and ``force-compression``.

        :raises InvalidParameter: a value is malformed. :raises Unsupported: or nothing we do.
        """
        name = attributes.get("compression", "") or "gzip"
        if name == "estargz":
            raise Unsupported("compression estargz is not supported: choose gzip, zstd or uncompressed")
        kind = {"uncompressed": Compression.NONE, "gzip": Compression.GZIP, "zstd": Compression.ZSTD}.get(name)
        if kind is None:
            raise InvalidParameter(f"unsupported compression type {name}")
        asked = attributes.get("force-compression", "false") or "true"
        force = truth(asked)
        if force is None:
            raise InvalidParameter(f"non-bool value {asked} specified for force-compression")
        text = attributes.get("compression-level")
        level: int | None = None
        if text is not None:
            most = 22 if kind is Compression.ZSTD else 9
            if not (text.isascii() and text.removeprefix("-").isdigit()):
                raise InvalidParameter(f"non-integer value {text} specified for compression-level")
            if text.startswith("-") or len(text) > 2 or int(text) > most:
                raise InvalidParameter(f"{name}: invalid compression level: {text}: it is a number from 0 to {most}")
            level = int(text) if kind is not Compression.NONE else None
        return cls(kind, level, force)

    @property
    def name(self) -> str:
        """What tells archives of the same content apart: encodings with one name make the same bytes."""
        return self.kind.value if self.level is None else f"{self.kind.value}-{self.level}"

    def compressor(self) -> Compressor | None:
        """What compresses one stream; None where nothing is to be done."""
        if self.kind is Compression.NONE:
            return None
        if self.kind is Compression.ZSTD:
            level = self.level or _ZSTD_LEVEL
            found = zstandard.ZstdCompressionParameters.from_level(level)
            parameters = zstandard.ZstdCompressionParameters.from_level(
                level, window_log=min(found.window_log, _ZSTD_WRITTEN_WINDOW), write_checksum=True
            )
            return zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        if self.level is None:
            return isal_zlib.compressobj(1, isal_zlib.DEFLATED, _GZIP_HEADER)
        return zlib.compressobj(self.level, zlib.DEFLATED, _GZIP_HEADER)


GZIP = Encoding()
"""What registries and every client know."""


def detect(head: bytes) -> Compression:
    """What a stream that begins with ``head`` (ten bytes are enough) is compressed with."""
    if head.startswith(b"\x1f\x8b\x08"):
        return Compression.GZIP
    if head.startswith(b"\x28\xb5\x2f\xfd") or (
        len(head) >= 4 and head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50
    ):
        return Compression.ZSTD
    if head.startswith(b"\xfd7zXZ\x00"):
        return Compression.XZ
    if head.startswith(b"BZh"):
        return Compression.BZIP2
    return Compression.NONE


class _Decoder(Protocol):
    """One member of a stream (``zlib.decompressobj``'s shape)."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    @property
    def needs_input(self) -> bool: ...
    def decompress(self, data: bytes, max_length: int = ...) -> bytes: ...


def expand(read: ReadChunk) -> tuple[Compression, Iterator[bytes]]:
    """The compression of the stream and an iterator over its expanded chunks.

    A broken stream raises :class:`InvalidParameter` from the iterator.
    """
    head = b""
    while len(head) < 10:
        more = read()
        if not more:
            break
        head += more
    kind = detect(head)
    if kind is Compression.NONE:
        return kind, _plain(head, read)
    if kind is Compression.ZSTD:
        return kind, _expand_zstd(head, read)
    return kind, _expand_members(kind, head, read)


def _plain(head: bytes, read: ReadChunk) -> Iterator[bytes]:
    if head:
        yield head
    while chunk := read():
        yield chunk


def _new_decoder(kind: Compression) -> _Decoder:
    if kind is Compression.GZIP:
        return igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    if kind is Compression.XZ:
        return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
    return bz2.BZ2Decompressor()


def _expand_members(kind: Compression, head: bytes, read: ReadChunk) -> Iterator[bytes]:
    decoder = _new_decoder(kind)
    data = head
    while True:
        try:
            output = decoder.decompress(data, CHUNK)
        except (isal_zlib.IsalError, lzma.LZMAError, OSError, EOFError, ValueError) as error:  # type: ignore[misc]
            raise InvalidParameter(f"{kind.value} stream is broken: {error}") from error
        data = b""
        if output:
            yield output
        if decoder.eof:
            # Another member may follow, after padding with zeros.
            data = decoder.unused_data.lstrip(b"\0")
            while not data:
                more = read()
                if not more:
                    return
                data = more.lstrip(b"\0")
            decoder = _new_decoder(kind)
        elif decoder.needs_input:
            data = read()
            if not data:
                raise InvalidParameter(f"{kind.value} stream ends too early: unexpected EOF")


def _expand_zstd(head: bytes, read: ReadChunk) -> Iterator[bytes]:
    context = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    decoder = context.decompressobj()
    parts: list[bytes] = []
    gathered = 0
    data = memoryview(head)
    while True:
        if not data:
            chunk = read()
            if not chunk:
                break
            data = memoryview(chunk)
        if decoder.eof:
            decoder = context.decompressobj()
        try:
            # A slice's output comes all at once, so slices are small: a block of four bytes can stand for 128 KiB.
            output = decoder.decompress(data[:_ZSTD_SLICE])
        except zstandard.ZstdError as error:
            raise InvalidParameter(f"zstd stream is broken: {error}") from error
        unused = len(decoder.unused_data) if decoder.eof else 0
        data = data[min(_ZSTD_SLICE, len(data)) - unused :]
        parts.append(output)
        gathered += len(output)
        if gathered >= CHUNK // 2:
            yield b"".join(parts)
            parts, gathered = [], 0
    if not decoder.eof:
        raise InvalidParameter("zstd stream ends too early: unexpected EOF")
    if gathered:
        yield b"".join(parts)
