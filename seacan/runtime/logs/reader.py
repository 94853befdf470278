"""Reads a log back: forwards or from the end, across rotated and compressed files, and on as it grows.

Entries are decoded and framed by the block, not one at a time: a million of them take about a second.
"""

from __future__ import annotations

import asyncio
import os
import struct
import tempfile
import time
import urllib.parse
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import NamedTuple, Protocol

import msgspec

from seacan.errors import Unsupported
from seacan.linux.inotify import IN_CREATE, IN_MODIFY, IN_Q_OVERFLOW, Inotify
from seacan.runtime.bundle import LogConfig
from seacan.runtime.logs import ReadOptions, local
from seacan.runtime.logs.json_file import Record

_BLOCK = 128 << 10
"""Bytes decoded at a time: about a millisecond."""

_MAX_LINE = 8 << 20
"""A line of a json-file that is longer is damage."""

_EMPTY = "0001-01-01T00:00:00.000000000Z"


class Entry(NamedTuple):
    """One entry. ``stream`` is 1 (stdout), 2 (stderr) or 0 (neither); ``key`` orders entries of one format by time."""

    stream: int
    key: str | int
    line: bytes
    attrs: dict[str, str] | None


class Format(Protocol):
    """How entries lie in a file."""

    times: bool
    """Whether anybody looks at :attr:`Entry.key`."""

    def decode(self, data: bytes, last: bool) -> tuple[list[Entry], int]:
        """Entries at the start of ``data``, and how many bytes they take; ``last``: nothing comes behind ``data``."""
        ...

    def tail(self, fd: int, size: int, count: int) -> tuple[int, int]:
        """Where the last ``count`` entries begin in a file of ``size`` bytes, and how many there are from there."""
        ...

    def key(self, nanoseconds: int) -> str | int:
        """What :attr:`Entry.key` is at that time."""
        ...

    def stamp(self, key: str | int) -> bytes:
        """RFC 3339 in UTC with nine digits."""
        ...


def _stamp(nanoseconds: int) -> str:
    seconds, fraction = divmod(nanoseconds, 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{fraction:09d}Z"


class JSONFileFormat:
    _STREAMS = {"stdout": 1, "stderr": 2}
    times = True

    def __init__(self) -> None:
        self._many = msgspec.json.Decoder(Record).decode_lines
        self._one = msgspec.json.Decoder(Record).decode

    def decode(self, data: bytes, last: bool) -> tuple[list[Entry], int]:
        end = len(data) if last else data.rfind(b"\n") + 1
        if not end:
            # Nothing but the beginning of a line; drop one without an end.
            return [], (len(data) if len(data) > _MAX_LINE else 0)
        block = data[:end]
        try:
            records = self._many(block)
        except (msgspec.DecodeError, UnicodeDecodeError):
            records = list(self._readable(block))
        streams = self._STREAMS.get
        return [
            Entry(streams(record.stream, 0), self._padded(record.time), record.log.encode(), record.attrs)
            for record in records
        ], end

    def _readable(self, block: bytes) -> Iterator[Record]:
        """Leaves out damaged lines (a crash of the machine may have left some)."""
        for line in block.split(b"\n"):
            try:
                if line:
                    yield self._one(line)
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue

    @staticmethod
    def _padded(text: str) -> str:
        if len(text) == 30 and text[-1] == "Z":
            return text
        if text[-1:] == "Z":  # Go leaves out zeros at the end
            whole, _, fraction = text[:-1].partition(".")
            return f"{whole}.{fraction:0<9}Z"
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            return _EMPTY
        return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}000Z"

    def tail(self, fd: int, size: int, count: int) -> tuple[int, int]:
        found, at, first = 0, size, True
        while at > 0:
            start = max(0, at - _BLOCK)
            block = os.pread(fd, at - start, start)
            end = len(block)
            if first:
                first = False
                if block.endswith(b"\n"):
                    end -= 1
            inside = block.count(b"\n", 0, end)
            if found + inside < count:
                found += inside
                at = start
                continue
            while True:
                end = block.rfind(b"\n", 0, end)
                found += 1
                if found == count:
                    return start + end + 1, count
        return 0, found + (size > 0)

    def key(self, nanoseconds: int) -> str:
        return _stamp(nanoseconds)

    def stamp(self, key: str | int) -> bytes:
        return str(key).encode()


class LocalFormat:
    _STREAMS = {b"stdout": 1, b"stderr": 2}
    _USUAL = {b"\x0a\x06stdout\x10": 1, b"\x0a\x06stderr\x10": 2}

    def __init__(self) -> None:
        self.times = True
        self._times: dict[bytes, int] = {}
        self._second = -1
        self._text = b""

    def decode(self, data: bytes, last: bool) -> tuple[list[Entry], int]:
        entries: list[Entry] = []
        at, end = 0, len(data)
        usual, times = self._USUAL, self.times
        while end - at > 8:
            size = int.from_bytes(data[at : at + 4], "big")
            if size > local.MAX_ENTRY:
                return entries, end  # damaged: nothing tells where the next one begins
            after = at + size + 8
            if after > end:
                break
            # Source, a time of nine bytes, and a line up to the end is what nearly every entry is.
            stream = usual.get(data[at + 4 : at + 13])
            if stream and size > 19 and data[at + 22] == 0x1A and data[at + 21] < 0x80:
                length, line = data[at + 23], at + 24
                if length > 0x7F:
                    length, line = (length & 0x7F) | (data[at + 24] & 0x7F) << 7, at + 25
                    if data[at + 24] > 0x7F:
                        length, line = length | data[at + 25] << 14, at + 26
                if line + length == after - 4:
                    key = self._time(data, at + 13) if times else 0
                    entries.append(Entry(stream, key, data[line : after - 4] + b"\n", None))
                    at = after
                    continue
            try:
                source, when, text, complete, attrs = local.decode(data[at + 4 : at + 4 + size])
            except (ValueError, IndexError):
                pass
            else:
                entries.append(Entry(self._STREAMS.get(source, 0), when, text + b"\n" if complete else text, attrs))
            at = after
        return entries, at

    def _time(self, data: bytes, at: int) -> int:
        """The varint of nine bytes at ``at``; neighbours differ in the first byte only."""
        rest = data[at + 1 : at + 9]
        known = self._times.get(rest)
        if known is None:
            known = sum((byte & 0x7F) << 7 * number for number, byte in enumerate(rest, 1))
            self._times = {rest: known}
        return known | data[at] & 0x7F

    def tail(self, fd: int, size: int, count: int) -> tuple[int, int]:
        found, at = 0, size
        start, block = size, b""
        while at >= 8 and found < count:
            if at - 4 < start:
                start = max(0, at - _BLOCK)
                block = os.pread(fd, at - start, start)
            length = int.from_bytes(block[at - 4 - start : at - start], "big")
            if at - length - 8 < 0:
                break
            at -= length + 8
            found += 1
        return at, found

    def key(self, nanoseconds: int) -> int:
        return nanoseconds

    def stamp(self, key: str | int) -> bytes:
        second, fraction = divmod(int(key), 1_000_000_000)
        if second != self._second:
            self._second, self._text = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)).encode()
        return b"%b.%09dZ" % (self._text, fraction)


def _format(config: LogConfig) -> Format:
    if config.driver == "none":
        raise Unsupported("configured logging driver does not support reading")
    return LocalFormat() if config.driver == "local" else JSONFileFormat()


class _Window:
    """since and until, over entries as they come."""

    def __init__(self, options: ReadOptions, format: Format) -> None:
        self._since = format.key(options.since) if options.since else None
        self._until = format.key(options.until) if options.until else None
        self.over = False

    def __call__(self, entries: list[Entry]) -> list[Entry]:
        if self._since is not None:
            for number, entry in enumerate(entries):
                if entry.key >= self._since:  # type: ignore[operator]
                    # Only the first is looked for: as in dockerd, later ones may have been stamped earlier.
                    self._since = None
                    entries = entries[number:]
                    break
            else:
                return []
        if self._until is not None:
            for number, entry in enumerate(entries):
                if entry.key > self._until:  # type: ignore[operator]
                    self.over = True
                    return entries[:number]
        return entries


def _details(attrs: dict[str, str] | None) -> bytes:
    pairs = (
        f"{urllib.parse.quote_plus(key, safe='~')}={urllib.parse.quote_plus(value, safe='~')}"
        for key, value in sorted((attrs or {}).items())
    )
    return ",".join(pairs).encode() + b" "


class Framer:
    """Entries to what goes over the wire."""

    def __init__(self, options: ReadOptions, format: Format) -> None:
        self._wanted = {1} if not options.stderr else {2} if not options.stdout else {1, 2}
        if not options.stdout and not options.stderr:
            self._wanted = set()
        self._options = options
        self._format = format
        self._headers: dict[tuple[int, int], bytes] = {}

    def __call__(self, entries: list[Entry]) -> bytes:
        options, wanted, headers = self._options, self._wanted, self._headers
        out: list[bytes] = []
        for stream, key, line, attrs in entries:
            if stream not in wanted:
                continue
            if options.details:
                line = _details(attrs) + line
            if options.timestamps:
                line = b"%b %b" % (self._format.stamp(key), line)
            if options.multiplexed:
                kind = (stream, len(line))
                header = headers.get(kind)
                if header is None:
                    header = struct.pack(">BxxxL", stream, len(line))
                    if len(headers) < 4096:
                        headers[kind] = header
                out.append(header)
            out.append(line)
        return b"".join(out)


class _Files:
    """The open files of a log, oldest first. The last one is the one being written."""

    def __init__(self, path: str, count: int) -> None:
        self._path = path
        self._count = count
        self._stack = ExitStack()
        self.fds: list[int] = []

    def open(self) -> None:
        """Open them all as they are at one moment: none missing, none twice, while a writer may be rotating them."""
        for _ in range(100):
            names = [
                name
                for number in range(self._count - 1, 0, -1)
                for name in (f"{self._path}.{number}", f"{self._path}.{number}.gz")
            ]
            opened: list[tuple[str, int]] = []
            for name in [*names, self._path]:
                try:
                    opened.append((name, os.open(name, os.O_RDONLY | os.O_CLOEXEC)))
                except FileNotFoundError:
                    continue
            if all(_same(fd, name) for name, fd in opened):
                break
            for _, fd in opened:
                os.close(fd)
        else:
            raise BlockingIOError(f"the files of log {self._path} do not keep still")
        present = {name for name, _ in opened}
        for name, fd in opened:
            self._stack.callback(os.close, fd)
            if name.endswith(".gz"):
                if name[:-3] in present:
                    continue  # still being compressed: the original is whole
                fd = self._unpacked(fd)
            self.fds.append(fd)
        if self._path not in present:
            self.fds.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
            self._stack.callback(os.close, self.fds[-1])

    def _unpacked(self, fd: int) -> int:
        file = tempfile.TemporaryFile(dir=os.path.dirname(self._path))  # noqa: SIM115
        self._stack.callback(file.close)
        unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
        try:
            while block := os.read(fd, _BLOCK):
                file.write(unpacker.decompress(block))
        except zlib.error:
            pass  # damaged: what came before it counts
        file.flush()
        return file.fileno()

    def close(self) -> None:
        self._stack.close()


def _same(fd: int, name: str) -> bool:
    try:
        there = os.stat(name)
    except FileNotFoundError:
        return False
    here = os.fstat(fd)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


class _Follower:
    """Waits for a log to grow, and goes from file to file as it is rotated.

    Every rotation creates ``path`` anew, so counting that says where the file after the one being read is now.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._name = os.fsencode(os.path.basename(path))
        self._inotify = Inotify()
        try:
            self._inotify.add(os.path.dirname(path), IN_CREATE | IN_MODIFY)
        except BaseException:
            self._inotify.close()
            raise
        self._rotations = 0
        self._changed = asyncio.Event()
        self._lost = False
        asyncio.get_running_loop().add_reader(self._inotify.fileno(), self._changed.set)

    def poll(self) -> int:
        """How many times the log has been rotated since :meth:`reset`."""
        for event in self._inotify.read():
            if event.mask & IN_Q_OVERFLOW:
                self._lost = True
            elif event.mask & IN_CREATE and event.name == self._name:
                self._rotations += 1
        return self._rotations

    def reset(self) -> None:
        self.poll()
        self._rotations = 0
        self._lost = False

    def next(self) -> int | None:
        """The file after the one that has been read to its end; None when that is still the one being written."""
        while behind := self.poll():
            if self._lost:
                behind, self._lost = 1, False
                self._rotations = 1
            name = self._path if behind == 1 else f"{self._path}.{behind - 1}"
            try:
                fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                if self.poll() == behind:
                    self._rotations -= 1  # compressed or removed before it could be read
                continue
            if self.poll() == behind:
                self._rotations -= 1
                return fd
            os.close(fd)
        return None

    async def wait(self, ended: asyncio.Future[object] | None, deadline: float | None) -> None:
        """Until something has changed, ``ended`` is done, or the deadline (of the event loop's clock) is there."""
        waiting: list[asyncio.Future[object]] = [asyncio.ensure_future(self._changed.wait())]
        if ended is not None:
            waiting.append(ended)
        loop = asyncio.get_running_loop()
        try:
            await asyncio.wait(
                waiting,
                timeout=None if deadline is None else max(0, deadline - loop.time()),
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            waiting[0].cancel()
        self._changed.clear()

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._inotify.fileno())
        self._inotify.close()


async def entries(
    config: LogConfig, options: ReadOptions, ended: asyncio.Future[object] | None = None, *, times: bool = True
) -> AsyncIterator[list[Entry]]:
    """The log's entries, some at a time, filtered by everything but stream. Raises Unsupported.

    None come first, when its files are open: from then on they may be removed.

    ``times``: whether their keys matter.
    """
    format = _format(config)
    if isinstance(format, LocalFormat):
        format.times = times or bool(options.since or options.until)
    window = _Window(options, format)
    with ExitStack() as stack:
        follower = _Follower(config.path) if options.follow else None
        if follower is not None:
            stack.callback(follower.close)
        files = _Files(config.path, max(config.max_file, 1))
        stack.callback(files.close)
        while True:
            if follower is not None:
                follower.reset()
            await asyncio.to_thread(files.open)
            if follower is None or not follower.poll():
                break
            files.close()  # rotated meanwhile
            files = _Files(config.path, max(config.max_file, 1))
            stack.callback(files.close)
        yield []

        starts = _starts(files.fds, format, options.tail)
        for fd, start in zip(files.fds[:-1], starts[:-1], strict=True):
            if start is None:
                continue
            async for some in _decoded(fd, start, os.fstat(fd).st_size, format):
                if kept := window(some):
                    yield kept
                if window.over:
                    return
        first = starts[-1]
        position = _Position(os.fstat(files.fds[-1]).st_size if first is None else first)
        if follower is None:
            size = os.fstat(files.fds[-1]).st_size
            async for some in _decoded(files.fds[-1], position.at, size, format):
                if kept := window(some):
                    yield kept
                if window.over:
                    return
            return
        current = _Descriptor(os.dup(files.fds[-1]))
        stack.callback(current.close)
        files.close()
        deadline = None
        if options.until:
            deadline = asyncio.get_running_loop().time() + options.until / 1e9 - time.time()
        while True:
            finished = ended is not None and ended.done()
            late = deadline is not None and asyncio.get_running_loop().time() >= deadline
            rotated = follower.poll() > 0
            async for some in _decoded(current.fd, position.at, None, format, position.moved):
                if kept := window(some):
                    yield kept
                if window.over:
                    return
            if rotated and (following := follower.next()) is not None:
                current.close()
                current.fd, position = following, _Position(0)
            elif finished or late:
                return
            elif not rotated:
                await follower.wait(ended, deadline)


class _Descriptor:
    """The file that is being followed."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        os.close(self.fd)


class _Position:
    """How far a file that grows has been read."""

    def __init__(self, at: int) -> None:
        self.at = at

    def moved(self, at: int) -> None:
        self.at = at


def _starts(fds: list[int], format: Format, tail: int) -> list[int | None]:
    """Where to begin in each file; None: not at all."""
    if tail < 0:
        return [0] * len(fds)
    starts: list[int | None] = [None] * len(fds)
    for number in range(len(fds) - 1, -1, -1):
        if tail <= 0:
            break
        starts[number], found = format.tail(fds[number], os.fstat(fds[number]).st_size, tail)
        tail -= found
    return starts


async def _decoded(
    fd: int, at: int, size: int | None, format: Format, moved: Callable[[int], None] = lambda at: None
) -> AsyncIterator[list[Entry]]:
    """Entries from ``at`` to ``size``, or to the end that the file has when it is reached."""
    rest = b""
    while True:
        want = _BLOCK if size is None else min(_BLOCK, size - at - len(rest))
        data = os.pread(fd, want, at + len(rest)) if want > 0 else b""
        last = not data
        rest += data
        if not rest:
            return
        some, used = format.decode(rest, last and size is not None)
        rest = rest[used:]
        at += used
        moved(at)
        if some:
            yield some
        if last:
            return
        await asyncio.sleep(0)


async def read(
    config: LogConfig, options: ReadOptions, ended: asyncio.Future[object] | None = None
) -> AsyncIterator[bytes]:
    """See :func:`seacan.runtime.logs.read`."""
    frame = Framer(options, _format(config))
    opened = False
    async for some in entries(config, options, ended, times=options.timestamps):
        chunk = frame(some)
        if chunk or not opened:
            yield chunk
        opened = True
