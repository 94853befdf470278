"""A tar reader for hostile archives, made for many small files.

Reads v7, ustar, GNU and PAX archives (long names, base-256 numbers, all sparse formats, extended attributes, times in
nanoseconds) with the strictness of Go's ``archive/tar``, which is what dockerd and containerd accept. Names stay bytes.
Reading only; nothing here touches the file system. About four times faster than :mod:`tarfile` on small entries.

Format: https://www.gnu.org/software/tar/manual/html_node/Standard.html and POSIX.1-2017 pax.
"""

from __future__ import annotations

from collections.abc import Iterator

from seacan.errors import InvalidParameter
from seacan.storage.compression import ReadChunk

BLOCK = 512

REGULAR = 0x30
HARD_LINK = 0x31
SYMLINK = 0x32
CHARACTER = 0x33
BLOCK_DEVICE = 0x34
DIRECTORY = 0x35
FIFO = 0x36
_CONTIGUOUS = 0x37
_PAX = 0x78
_PAX_SOLARIS = 0x58
_PAX_GLOBAL = 0x67
_GNU_NAME = 0x4C
_GNU_LINK = 0x4B
_GNU_SPARSE = 0x53
_HEADER_ONLY = frozenset((HARD_LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO))

_EXTENSION_LIMIT = 1 << 20
"""Bytes of one extended header; Go's limit."""
_SPARSE_LIMIT = 1 << 20
_ZERO = bytes(BLOCK)
_XATTR = b"SCHILY.xattr."


class TarError(InvalidParameter):
    """The archive is malformed."""


class TarEntry:
    """One member. Numbers are bytes and nanoseconds; ``sparse`` lists (offset, length) of the data that is stored."""

    __slots__ = ("atime_ns", "devmajor", "devminor", "gid", "kind", "linkname", "mode", "mtime_ns", "name", "size",
                 "sparse", "stored", "uid", "xattrs")  # fmt: skip

    name: bytes
    linkname: bytes
    kind: int
    """The type flag, such as :data:`REGULAR`."""
    mode: int
    uid: int
    gid: int
    size: int
    """Of the file as it will be; ``stored`` is what the archive holds of it."""
    stored: int
    mtime_ns: int
    atime_ns: int | None
    devmajor: int
    devminor: int
    xattrs: dict[str, bytes] | None
    sparse: list[tuple[int, int]] | None

    def __init__(self) -> None:
        self.atime_ns = self.xattrs = self.sparse = None

    @property
    def text(self) -> str:
        """The name for messages."""
        return self.name.decode("utf-8", "backslashreplace")


class TarReader:
    """Iterates over the members of the archive that ``read`` gives; their data is read before the next one."""

    def __init__(self, read: ReadChunk) -> None:
        self._read = read
        self._buffer = b""
        self._at = 0
        self._pending = 0
        self._padding = 0
        self.finished = False

    # --- the stream -------------------------------------------------------------------------------------------------

    def _take(self, size: int) -> bytes:
        """Exactly ``size`` bytes, or fewer at the end of the stream."""
        at = self._at
        end = at + size
        if end <= len(self._buffer):
            self._at = end
            return self._buffer[at:end]
        parts = [self._buffer[at:]]
        missing = size - len(parts[0])
        self._buffer, self._at = b"", 0
        while missing > 0:
            chunk = self._read()
            if not chunk:
                break
            if len(chunk) > missing:
                self._buffer, self._at = chunk, missing
                chunk = chunk[:missing]
            parts.append(chunk)
            missing -= len(chunk)
        return b"".join(parts)

    def _skip(self, size: int, what: str) -> None:
        while size > 0:
            here = len(self._buffer) - self._at
            if here == 0:
                self._buffer, self._at = self._read(), 0
                here = len(self._buffer)
                if here == 0:
                    raise TarError(f"{what}: archive is cut short: unexpected EOF")
            step = min(here, size)
            self._at += step
            size -= step

    def data(self) -> Iterator[memoryview]:
        """The current member's stored bytes, in order, in pieces of whatever size."""
        while self._pending:
            here = len(self._buffer) - self._at
            if here == 0:
                self._buffer, self._at = self._read(), 0
                here = len(self._buffer)
                if here == 0:
                    raise TarError("archive is cut short: unexpected EOF")
            step = min(here, self._pending)
            piece = memoryview(self._buffer)[self._at : self._at + step]
            self._at += step
            self._pending -= step
            yield piece

    def read_all(self, limit: int) -> bytes:
        """The current member's data, which must not exceed ``limit`` bytes."""
        if self._pending > limit:
            raise TarError(f"member is larger than {limit} bytes")
        size = self._pending
        self._pending = 0
        content = self._take(size)
        if len(content) < size:
            raise TarError("archive is cut short: unexpected EOF")
        return content

    def drain(self) -> None:
        """Read on to the end of the stream: what follows the last member is part of the layer's digest."""
        self._buffer, self._at = b"", 0
        while self._read():
            pass

    # --- the members ------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[TarEntry]:
        while (entry := self.next()) is not None:
            yield entry

    def next(self) -> TarEntry | None:
        """The next member, or None after the last one."""
        long_name: bytes | None = None
        long_link: bytes | None = None
        pax: dict[bytes, bytes] | None = None
        if self._pending:
            pending, self._pending = self._pending, 0
            self._skip(pending, "member data")
        if self._padding:
            # May be missing at the end, as Go's reader has it: docker's client ends a context so with ``-f -``.
            padding, self._padding = self._padding, 0
            self._take(padding)
        while True:
            header = self._take(BLOCK)
            if len(header) < BLOCK:
                if header:
                    raise TarError("archive is cut short: unexpected EOF")
                if pax or long_name is not None or long_link is not None:
                    raise TarError("archive ends after an extended header")
                self.finished = True
                return None
            if header == _ZERO:
                second = self._take(BLOCK)
                if second and second != _ZERO:
                    raise TarError("invalid tar header: one zero block amid the archive")
                self.finished = True
                return None
            kind = header[156]
            size = _checked_header(header)
            if kind in (_PAX, _PAX_SOLARIS, _PAX_GLOBAL, _GNU_NAME, _GNU_LINK):
                if size > _EXTENSION_LIMIT:
                    raise TarError(f"extended header of {size} bytes is too long")
                content = self._take(size + (-size % BLOCK))
                if len(content) < size:
                    raise TarError("archive is cut short: unexpected EOF")
                content = content[:size]
                if kind in (_PAX, _PAX_SOLARIS):
                    pax = _parse_pax(content)
                elif kind == _GNU_NAME:
                    long_name = content.partition(b"\0")[0]
                elif kind == _GNU_LINK:
                    long_link = content.partition(b"\0")[0]
                # Global headers are ignored, as dockerd does.
                continue
            return self._finish(header, kind, size, pax, long_name, long_link)

    def _finish(
        self,
        header: bytes,
        kind: int,
        size: int,
        pax: dict[bytes, bytes] | None,
        long_name: bytes | None,
        long_link: bytes | None,
    ) -> TarEntry:
        entry = TarEntry()
        name = header[:100]
        if b"\0" in name:
            name = name[: name.index(b"\0")]
        entry.linkname = header[157:257].partition(b"\0")[0] if header[157] else b""
        magic = header[257:265]
        if magic == b"ustar\x0000":
            if header[345]:
                name = header[345:500].partition(b"\0")[0] + b"/" + name
            entry.devmajor = _number(header, 329, 337) if kind in (CHARACTER, BLOCK_DEVICE) else 0
            entry.devminor = _number(header, 337, 345) if kind in (CHARACTER, BLOCK_DEVICE) else 0
        elif kind in (CHARACTER, BLOCK_DEVICE):
            entry.devmajor, entry.devminor = _number(header, 329, 337), _number(header, 337, 345)
        else:
            entry.devmajor = entry.devminor = 0
        entry.name = name if long_name is None else long_name
        if long_link is not None:
            entry.linkname = long_link
        entry.mode = _number(header, 100, 108) & 0o7777
        entry.uid = _number(header, 108, 116)
        entry.gid = _number(header, 116, 124)
        entry.mtime_ns = _number(header, 136, 148, signed=True) * 1_000_000_000
        real_size: int | None = None
        if pax:
            size, real_size = self._apply_pax(entry, pax, size)
        if kind == 0:
            kind = DIRECTORY if entry.name.endswith(b"/") else REGULAR
        elif kind == _CONTIGUOUS:
            kind = REGULAR
        if kind in _HEADER_ONLY:
            size = 0
        entry.size = entry.stored = size
        self._padding = -size % BLOCK
        self._pending = size
        if kind == _GNU_SPARSE:
            kind = REGULAR
            entry.size = self._read_old_sparse(entry, header)
        elif pax and b"GNU.sparse.major" in pax and pax.get(b"GNU.sparse.major") == b"1":
            self._read_sparse_map(entry)
        if real_size is not None and entry.sparse is not None:
            entry.size = real_size
        if entry.sparse is not None:
            _check_sparse(entry)
        entry.kind = kind
        return entry

    @staticmethod
    def _apply_pax(entry: TarEntry, pax: dict[bytes, bytes], size: int) -> tuple[int, int | None]:
        real_size: int | None = None
        for key, value in pax.items():
            if key == b"path":
                entry.name = _pax_name(value)
            elif key == b"linkpath":
                entry.linkname = _pax_name(value)
            elif key == b"size":
                size = _pax_integer(key, value)
            elif key == b"uid":
                entry.uid = _pax_integer(key, value)
            elif key == b"gid":
                entry.gid = _pax_integer(key, value)
            elif key == b"mtime":
                entry.mtime_ns = _pax_time(key, value)
            elif key == b"atime":
                entry.atime_ns = _pax_time(key, value)
            elif key.startswith(_XATTR):
                name = key[len(_XATTR) :].decode("utf-8", "surrogateescape")
                if entry.xattrs is None:
                    entry.xattrs = {}
                entry.xattrs[name] = value
            elif key in (b"GNU.sparse.realsize", b"GNU.sparse.size"):
                real_size = _pax_integer(key, value)
            elif key == b"GNU.sparse.map":
                numbers = [_pax_integer(key, number) for number in value.split(b",")] if value else []
                if len(numbers) % 2:
                    raise TarError("sparse map has an odd count of numbers")
                entry.sparse = list(zip(numbers[::2], numbers[1::2], strict=True))
        if b"GNU.sparse.name" in pax:
            entry.name = _pax_name(pax[b"GNU.sparse.name"])
        return size, real_size

    def _read_old_sparse(self, entry: TarEntry, header: bytes) -> int:
        regions: list[tuple[int, int]] = []
        block, at, count, extended = header, 386, 4, header[482]
        real_size = _number(header, 483, 495)
        while True:
            for index in range(count):
                start = at + 24 * index
                if block[start] == 0:
                    break
                regions.append((_number(block, start, start + 12), _number(block, start + 12, start + 24)))
            if len(regions) > _SPARSE_LIMIT:
                raise TarError(f"{entry.text}: sparse map is too long")
            if not extended:
                break
            block = self._take(BLOCK)
            if len(block) < BLOCK:
                raise TarError("archive is cut short: unexpected EOF")
            at, count, extended = 0, 21, block[504]
        entry.sparse = regions
        return real_size

    def _read_sparse_map(self, entry: TarEntry) -> None:
        """PAX sparse format 1.0: decimal numbers, one a line, in blocks before the data."""
        text = b""
        lines = 0
        needed = 1
        while lines < needed:
            if self._pending < BLOCK:
                raise TarError(f"{entry.text}: sparse map is cut short")
            block = self._take(BLOCK)
            if len(block) < BLOCK:
                raise TarError("archive is cut short: unexpected EOF")
            self._pending -= BLOCK
            entry.stored -= BLOCK
            text += block
            lines += block.count(b"\n")
            if needed == 1 and lines:
                count = _pax_integer(b"GNU.sparse", text.partition(b"\n")[0])
                if count > _SPARSE_LIMIT // 8:
                    raise TarError(f"{entry.text}: sparse map is too long")
                needed = 1 + 2 * count
        numbers = [_pax_integer(b"GNU.sparse", number) for number in text.split(b"\n")[1:needed]]
        entry.sparse = list(zip(numbers[::2], numbers[1::2], strict=True))


def _check_sparse(entry: TarEntry) -> None:
    end = 0
    stored = 0
    for offset, length in entry.sparse or ():
        if offset < end:
            raise TarError(f"{entry.text}: sparse map is not in order")
        end = offset + length
        stored += length
    if end > entry.size or stored != entry.stored:
        raise TarError(f"{entry.text}: sparse map does not fit the file")


def _checked_header(header: bytes) -> int:
    """Verify the checksum; give the size field."""
    field = header[148:156]
    total = sum(header) - sum(field) + 256
    try:
        wanted = _number(header, 148, 156)
    except TarError:
        raise TarError("invalid tar header") from None
    if total != wanted:
        # Some old writers summed signed bytes.
        signed = total - 256 * sum(byte > 127 for byte in header[:148] + header[156:])
        if signed != wanted:
            raise TarError("invalid tar header: checksum does not match")
    return _number(header, 124, 136)


def _number(header: bytes, start: int, end: int, *, signed: bool = False) -> int:
    """An octal or base-256 field."""
    first = header[start]
    if first & 0x80:
        value = int.from_bytes(header[start:end], "big") & ((1 << (8 * (end - start) - 1)) - 1)
        if first & 0x40:
            value -= 1 << (8 * (end - start) - 1)
            if not signed:
                raise TarError("invalid tar header: negative number")
        if value >= 1 << 63:
            raise TarError("invalid tar header: number out of range")
        return value
    text = header[start:end].strip(b" \0")
    if not text:
        return 0
    if b"\0" in text:
        text = text[: text.index(b"\0")]
    if not text.isdigit():
        raise TarError("invalid tar header: malformed number")
    try:
        return int(text, 8)
    except ValueError:
        raise TarError("invalid tar header: malformed number") from None


def _parse_pax(content: bytes) -> dict[bytes, bytes]:
    records: dict[bytes, bytes] = {}
    sparse: list[bytes] = []
    at = 0
    end = len(content)
    while at < end:
        space = content.find(b" ", at, at + 12)
        digits = content[at:space] if space > 0 else b""
        if not digits.isdigit():
            raise TarError("invalid tar header: malformed extended header")
        stop = at + int(digits)
        if stop > end or stop <= space + 1 or content[stop - 1] != 0x0A:
            raise TarError("invalid tar header: malformed extended header")
        key, equals, value = content[space + 1 : stop - 1].partition(b"=")
        if not equals or not key or b"\0" in key:
            raise TarError("invalid tar header: malformed extended header")
        at = stop
        if key == b"GNU.sparse.offset" or key == b"GNU.sparse.numbytes":
            if (key == b"GNU.sparse.offset") != (len(sparse) % 2 == 0) or b"," in value:
                raise TarError("invalid tar header: malformed sparse map")
            sparse.append(value)
        elif value:
            records[key] = value
        else:
            records.pop(key, None)
    if sparse:
        records[b"GNU.sparse.map"] = b",".join(sparse)
    return records


def _pax_name(value: bytes) -> bytes:
    if b"\0" in value:
        raise TarError("invalid tar header: NUL in a name")
    return value


def _pax_integer(key: bytes, value: bytes) -> int:
    if not value.isdigit() or len(value) > 19:
        raise TarError(f"invalid tar header: {key.decode('ascii', 'replace')} is not a number")
    number = int(value)
    if number >= 1 << 63:
        raise TarError(f"invalid tar header: {key.decode('ascii', 'replace')} is out of range")
    return number


def _pax_time(key: bytes, value: bytes) -> int:
    """Decimal seconds to nanoseconds; further digits are cut off."""
    seconds, _, fraction = value.partition(b".")
    negative = seconds.startswith(b"-")
    digits = seconds[1:] if negative else seconds
    if not digits.isdigit() or len(digits) > 12 or (fraction and not fraction.isdigit()):
        raise TarError(f"invalid tar header: {key.decode('ascii', 'replace')} is not a time")
    whole = int(digits) * 1_000_000_000 + int(fraction[:9].ljust(9, b"0") or b"0")
    return -whole if negative else whole
