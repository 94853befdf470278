"""Writes archives of hostile trees, in a process confined to the tree: the other direction of :mod:`unpack`.

Two kinds: a *layer* (a container's upper folder, overlay's marks turned into ``.wh.`` files) and a *tree* (a whole root
file system as its container would see it, for export). As dockerd does, entries are in lexical order, times are cut to
the second, sockets are left out, names of owners too; so the same tree gives the same bytes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import queue
import stat
import threading
from collections.abc import Sequence
from typing import Literal

import msgspec

from seacan.errors import System
from seacan.runtime.bundle import Rootfs
from seacan.storage import compression, walk, worker
from seacan.storage.compression import Encoding
from seacan.storage.mounting import open_rootfs, open_running
from seacan.storage.unpack import OPAQUE_MARKER, WHITEOUT_PREFIX

BLOCK = 512
_RECORD = 10240
_CHUNK = 1 << 20
_COPY = 1 << 18
_OCTAL_OWNER = 0o7777777
_OCTAL_SIZE = 0o77777777777


class PackRequest(msgspec.Struct, frozen=True):
    """``rootfs`` is what to archive: for a layer, the upper folder as a directory root. ``encoding`` is for layers."""

    kind: Literal["layer", "tree"]
    rootfs: Rootfs
    encoding: Encoding | None = None
    pid: int = 0
    """The init of the running container whose root it is; 0: there is none."""


class ConvertRequest(msgspec.Struct, frozen=True):
    """An archive in another form."""

    encoding: Encoding


class PackResult(msgspec.Struct, frozen=True):
    """``diff_id`` is of the uncompressed archive, ``digest`` and ``size`` of what was written."""

    diff_id: str
    digest: str
    size: int


def main(argument: str, fds: Sequence[int]) -> int:
    """The worker: descriptors are the output (file or pipe) and the report."""
    return worker.answer(_pack, PackRequest, argument, fds)


def convert_main(argument: str, fds: Sequence[int]) -> int:
    """The worker that compresses an archive anew: descriptors are the archive, the output and the report."""
    return worker.answer(_convert, ConvertRequest, argument, fds)


def _convert(request: ConvertRequest, fds: Sequence[int]) -> PackResult:
    sink = _Sink(fds[1], hashed=True, encoding=request.encoding)
    sink.start()
    try:
        for chunk in compression.expand(lambda: os.read(fds[0], _COPY))[1]:
            sink.write(chunk)
    finally:
        sink.finish()
    return sink.result()


def _pack(request: PackRequest, fds: Sequence[int]) -> PackResult:
    root = _open(request)
    os.fchdir(root)
    os.chroot(".")
    os.chdir("/")
    worker.forbid_imports()
    os.close(root)
    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # a mount's own descriptor only names it
    sink = _Sink(fds[0], hashed=request.kind == "layer", encoding=request.encoding)
    sink.start()
    try:
        _Archive(sink, layer=request.kind == "layer").write(root)
    finally:
        sink.finish()
    return sink.result()


def _open(request: PackRequest) -> int:
    running = open_running(request.pid, request.rootfs) if request.pid else None
    return open_rootfs(request.rootfs) if running is None else running


class _Sink(threading.Thread):
    """Hashes, compresses and writes what the walk produces, beside it."""

    def __init__(self, descriptor: int, *, hashed: bool, encoding: Encoding | None) -> None:
        super().__init__(daemon=True)
        self._descriptor = descriptor
        self._hashed = hashed
        self._compressor = encoding.compressor() if encoding is not None else None
        self._queue: queue.Queue[bytes | None] = queue.Queue(8)
        self._parts: list[bytes] = []
        self._gathered = 0
        self.total = 0
        self.expanded = hashlib.sha256()
        self.written = hashlib.sha256()
        self.size = 0
        self.error: OSError | None = None

    def write(self, content: bytes) -> None:
        self._parts.append(content)
        self._gathered += len(content)
        self.total += len(content)
        if self._gathered >= _CHUNK:
            self._pass_on()

    def _pass_on(self) -> None:
        if self.error is not None:
            raise self.error
        if self._parts:
            self._queue.put(b"".join(self._parts))
            self._parts, self._gathered = [], 0

    def finish(self) -> None:
        if self.error is None:
            self._pass_on()
        self._queue.put(None)
        self.join()

    def result(self) -> PackResult:
        """What has been written. :raises OSError: it could not be."""
        if self.error is not None:
            raise self.error
        return PackResult("sha256:" + self.expanded.hexdigest(), "sha256:" + self.written.hexdigest(), self.size)

    def run(self) -> None:
        while (chunk := self._queue.get()) is not None:
            if self.error is not None:
                continue
            try:
                if self._hashed:
                    self.expanded.update(chunk)
                self._emit(self._compressor.compress(chunk) if self._compressor else chunk)
            except OSError as error:
                self.error = OSError(error.errno, f"writing the archive: {error.strerror}")
        if self._compressor and self.error is None:
            try:
                self._emit(self._compressor.flush())
            except OSError as error:
                self.error = OSError(error.errno, f"writing the archive: {error.strerror}")

    def _emit(self, content: bytes) -> None:
        if self._compressor:
            self.written.update(content)
        elif self._hashed:
            self.written = self.expanded
        view = memoryview(content)
        while view:
            done = os.write(self._descriptor, view)
            self.size += done
            view = view[done:]


class _Archive:
    def __init__(self, sink: _Sink, *, layer: bool) -> None:
        self._sink = sink
        self._layer = layer
        self._links: dict[tuple[int, int], bytes] = {}

    def write(self, root: int) -> None:
        if self._layer:
            # A layer says what the root folder is like: it may be what the container changed.
            self._entry(b"./", os.fstat(root), b"5", b"", 0, _xattrs(root))
            if walk.is_opaque(root):
                self._marker(OPAQUE_MARKER, os.fstat(root))
        self._folder(root, b"")
        self._sink.write(bytes(2 * BLOCK))
        self._sink.write(bytes(-self._sink.total % _RECORD))

    def _folder(self, folder: int, prefix: bytes) -> None:
        names = sorted(os.fsencode(name) for name in os.listdir(folder))
        for name in names:
            path = prefix + name
            try:
                info = os.stat(name, dir_fd=folder, follow_symlinks=False)
                self._member(folder, name, path, info)
            except FileNotFoundError:
                continue  # a running container removes files while they are listed
            except OSError as error:
                raise System(f"archiving {path.decode('utf-8', 'backslashreplace')!r}: {error.strerror}") from error

    def _member(self, folder: int, name: bytes, path: bytes, info: os.stat_result) -> None:
        mode = info.st_mode
        if stat.S_ISDIR(mode):
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            try:
                self._entry(path + b"/", info, b"5", b"", 0, _xattrs(inner))
                if self._layer and walk.is_opaque(inner):
                    self._marker(path + b"/" + OPAQUE_MARKER, info)
                self._folder(inner, path + b"/")
            finally:
                os.close(inner)
            return
        if self._layer and walk.is_whiteout(info):
            self._marker(path[: len(path) - len(name)] + WHITEOUT_PREFIX + name, info)
            return
        if stat.S_ISSOCK(mode):
            return
        if info.st_nlink > 1:
            first = self._links.setdefault((info.st_dev, info.st_ino), path)
            if first is not path:
                self._entry(path, info, b"1", first, 0, _link_xattrs(folder, name, mode))
                return
        if stat.S_ISREG(mode):
            self._file(folder, name, path)
        elif stat.S_ISLNK(mode):
            self._entry(path, info, b"2", os.readlink(name, dir_fd=folder), 0, None)
        else:
            kind = {stat.S_IFCHR: b"3", stat.S_IFBLK: b"4", stat.S_IFIFO: b"6"}[stat.S_IFMT(mode)]
            self._entry(path, info, kind, b"", 0, None)

    def _file(self, folder: int, name: bytes, path: bytes) -> None:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        try:
            info = os.fstat(descriptor)
            size = info.st_size
            self._entry(path, info, b"0", b"", size, _xattrs(descriptor))
            left = size
            while left:
                chunk = os.read(descriptor, min(left, _COPY))
                if not chunk:
                    # Cut while being read: the header has promised the size.
                    chunk = bytes(min(left, _COPY))
                self._sink.write(chunk)
                left -= len(chunk)
            self._sink.write(bytes(-size % BLOCK))
        finally:
            os.close(descriptor)

    def _marker(self, path: bytes, info: os.stat_result) -> None:
        self._sink.write(header(path, b"0", 0, 0, 0, 0, int(info.st_mtime)))

    def _entry(
        self,
        path: bytes,
        info: os.stat_result,
        kind: bytes,
        link: bytes,
        size: int,
        xattrs: dict[bytes, bytes] | None,
    ) -> None:
        device = info.st_rdev if kind in (b"3", b"4") else 0
        self._sink.write(
            header(
                path,
                kind,
                stat.S_IMODE(info.st_mode),
                info.st_uid,
                info.st_gid,
                size,
                int(info.st_mtime_ns // 1_000_000_000),
                link,
                (os.major(device), os.minor(device)),
                xattrs,
            )
        )


def header(
    path: bytes,
    kind: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    mtime: int,
    link: bytes = b"",
    device: tuple[int, int] = (0, 0),
    xattrs: dict[bytes, bytes] | None = None,
) -> bytes:
    """A member's header: ustar, with a PAX extension before it for what ustar cannot say."""
    records: list[tuple[bytes, bytes]] = []
    if len(path) > 100 or not path.isascii():
        records.append((b"path", path))
    if len(link) > 100 or not link.isascii():
        records.append((b"linkpath", link))
    if size > _OCTAL_SIZE:
        records.append((b"size", b"%d" % size))
    if uid > _OCTAL_OWNER:
        records.append((b"uid", b"%d" % uid))
    if gid > _OCTAL_OWNER:
        records.append((b"gid", b"%d" % gid))
    if not 0 <= mtime <= _OCTAL_SIZE:
        records.append((b"mtime", b"%d" % mtime))
    for name, value in sorted((xattrs or {}).items()):
        records.append((b"SCHILY.xattr." + name, value))
    extension = b""
    if records:
        body = b"".join(_record(key, value) for key, value in records)
        parent, _, base = path.rstrip(b"/").rpartition(b"/")
        name = ((parent + b"/" if parent else b"") + b"PaxHeaders.0/" + base)[:100]
        extension = _block(name, b"x", 0, 0, 0, len(body), 0, b"", (0, 0)) + body + bytes(-len(body) % BLOCK)
    return extension + _block(
        path[:100],
        kind,
        mode,
        uid if uid <= _OCTAL_OWNER else 0,
        gid if gid <= _OCTAL_OWNER else 0,
        size if size <= _OCTAL_SIZE else 0,
        mtime if 0 <= mtime <= _OCTAL_SIZE else 0,
        link[:100],
        device,
    )


def _block(
    name: bytes,
    kind: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    mtime: int,
    link: bytes,
    device: tuple[int, int],
) -> bytes:
    major, minor = device
    text = b"%s%07o\0%07o\0%07o\0%011o\0%011o\0        %s%sustar\x0000%s%07o\0%07o\0" % (
        name.ljust(100, b"\0"),
        mode,
        uid,
        gid,
        size,
        mtime,
        kind,
        link.ljust(100, b"\0"),
        bytes(64),
        major & 0o7777777,
        minor & 0o7777777,
    )
    block = text.ljust(BLOCK, b"\0")
    return b"%s%06o\0 %s" % (block[:148], sum(block), block[156:])


def _record(key: bytes, value: bytes) -> bytes:
    """``length key=value``, where the length counts its own digits."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if len(str(length)) + rest != length:
        length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _xattrs(descriptor: int) -> dict[bytes, bytes] | None:
    try:
        names = os.listxattr(descriptor)
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.EBADF):
            return None
        raise
    found: dict[bytes, bytes] = {}
    for name in names:
        if name.startswith(("trusted.overlay.", "user.overlay.", "security.selinux")):
            continue
        with contextlib.suppress(OSError):
            found[os.fsencode(name)] = os.getxattr(descriptor, name)
    return found or None


def _link_xattrs(folder: int, name: bytes, mode: int) -> dict[bytes, bytes] | None:
    if not stat.S_ISREG(mode):
        return None
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    try:
        return _xattrs(descriptor)
    finally:
        os.close(descriptor)
