"""Build contexts that arrive as an archive: unpacked by a worker process that has nothing but its own folder.

The archive is hostile. The worker is chrooted into an empty folder before it reads the first byte, so names and links
lead nowhere else; owners are root's, as dockerd makes them; device files are left out. Digests of files are computed as
they are written, so that nothing is read again to find a step in the cache.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import stat
from collections.abc import AsyncIterator, Sequence

import msgspec

from seacan.build.ignore import Matcher, read_ignore_file
from seacan.errors import InvalidParameter
from seacan.storage import tar, tree, worker
from seacan.storage.compression import expand
from seacan.storage.unpack import Limits
from seacan.storage.worker import Launcher

_PIPE_SIZE = 1 << 20


class ContextRequest(msgspec.Struct, frozen=True):
    """Unpack the archive on the first descriptor into ``folder``, and write the digests to ``index``.

    Something that is no archive becomes the file ``single``, if that is not empty.
    """

    folder: str
    index: str
    single: str = ""
    limits: Limits = Limits()


class ContextResult(msgspec.Struct, frozen=True):
    files: int
    size: int
    single: bool = False


def unpack_main(argument: str, fds: Sequence[int]) -> int:
    """The worker."""
    return worker.answer(_unpack, ContextRequest, argument, fds)


async def receive(
    launcher: Launcher, body: AsyncIterator[bytes], folder: str, index: str, *, single: str = ""
) -> ContextResult:
    """Unpack an archive that arrives piece by piece.

    :raises InvalidParameter: it is not an archive, or a hostile one.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with contextlib.suppress(OSError):
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
    loop = asyncio.get_running_loop()
    try:
        working = asyncio.create_task(
            worker.run(
                launcher,
                "seacan.build.context:unpack_main",
                ContextRequest(folder, index, single),
                (reader,),
                ContextResult,
            )
        )
        await asyncio.sleep(0)
        transport, protocol = await loop.connect_write_pipe(
            lambda: asyncio.streams.FlowControlMixin(loop), os.fdopen(writer, "wb", buffering=0)
        )
    except BaseException:
        os.close(reader)
        raise
    stream = asyncio.StreamWriter(transport, protocol, None, loop)
    try:
        try:
            async for piece in body:
                stream.write(piece)
                await stream.drain()
        except (BrokenPipeError, ConnectionResetError):
            async for _ in body:  # the worker has given up; its reason is what the client should read
                pass
        finally:
            transport.close()
        return await working
    except BaseException:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        raise
    finally:
        os.close(reader)


def _unpack(request: ContextRequest, fds: Sequence[int]) -> ContextResult:
    index_file = os.open(request.index, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    os.chdir(request.folder)
    os.chroot(".")
    worker.forbid_imports()
    os.umask(0)
    archive = fds[0]
    os.set_blocking(archive, True)
    head: list[bytes] = []
    seen = 0

    def read() -> bytes:
        nonlocal seen
        piece = os.read(archive, 1 << 20)
        if seen < 1 << 16 and request.single:
            head.append(piece)
            seen += len(piece)
        return piece

    _, chunks = expand(read)
    reader = tar.TarReader(lambda: bytes(next(chunks, b"")))
    unpacking = _Unpacking(request.limits)
    try:
        first = reader.next()
        if first is None and not reader.finished:
            raise tar.TarError("the archive is empty")
    except tar.TarError:
        if not request.single:
            raise
        content = b"".join(head)
        while piece := os.read(archive, 1 << 20):
            content += piece
            if len(content) > 16 << 20:
                raise InvalidParameter("dockerfile is larger than 16 MiB") from None
        with open(f"/{request.single}", "wb") as file:
            file.write(content)
        return ContextResult(1, len(content), single=True)
    while first is not None:
        unpacking.add(first, reader)
        first = reader.next()
    unpacking.finish()
    with open(index_file, "wb") as file:
        file.write(msgspec.msgpack.encode(unpacking.digests))
    return ContextResult(unpacking.files, unpacking.size)


class _Unpacking:
    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.files = 0
        self.size = 0
        self.digests: dict[int, tuple[int, int, bytes]] = {}
        self.folders: dict[bytes, int] = {}
        self.made: set[bytes] = {b""}
        self.free = os.statvfs("/")

    def add(self, entry: tar.TarEntry, reader: tar.TarReader) -> None:
        name = os.path.normpath(b"/" + entry.name).lstrip(b"/")  # what leads out ends at the root, as dockerd has it
        if not name:
            return
        path = b"/" + name
        self.files += 1
        self.size += entry.stored
        self._check(entry)
        parent = name.rpartition(b"/")[0]
        if parent not in self.made:
            os.makedirs(b"/" + parent, 0o755, exist_ok=True)
            self.made.add(parent)
        if entry.kind == tar.DIRECTORY:
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o755)
            self.made.add(name)
            os.chmod(path, stat.S_IMODE(entry.mode))
            self.folders[path] = entry.mtime_ns
        elif entry.kind == tar.REGULAR:
            self._file(path, entry, reader)
        elif entry.kind == tar.SYMLINK:
            self._clear(path)
            os.symlink(entry.linkname, path)
            os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=False)
        elif entry.kind == tar.HARD_LINK:
            target = b"/" + b"/".join(part for part in entry.linkname.split(b"/") if part not in (b"", b".", b".."))
            self._clear(path)
            os.link(target, path, follow_symlinks=False)
        elif entry.kind == tar.FIFO:
            self._clear(path)
            os.mkfifo(path, stat.S_IMODE(entry.mode))

    def _check(self, entry: tar.TarEntry) -> None:
        room = self.free.f_bavail * self.free.f_frsize
        if self.size > room:
            raise InvalidParameter(f"build context is larger than the space left on the disk ({room} bytes)")
        if self.files > max(self.free.f_favail, 1 << 20):
            raise InvalidParameter(f"build context has too many files (at {entry.text!r})")

    def _clear(self, path: bytes) -> None:
        try:
            os.unlink(path)
        except FileNotFoundError:
            return
        except IsADirectoryError:
            tree.remove(os.fsdecode(path))

    def _file(self, path: bytes, entry: tar.TarEntry, reader: tar.TarReader) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(path, flags, 0o600)
        except FileExistsError:
            self._clear(path)
            descriptor = os.open(path, flags, 0o600)
        try:
            digest = hashlib.sha256()
            if entry.sparse is None:
                for piece in reader.data():
                    digest.update(piece)
                    while piece:
                        piece = piece[os.write(descriptor, piece) :]
            else:
                content = b"".join(reader.data())
                at = 0
                for offset, length in entry.sparse:
                    os.pwrite(descriptor, content[at : at + length], offset)
                    at += length
                os.ftruncate(descriptor, entry.size)
            os.fchmod(descriptor, stat.S_IMODE(entry.mode))
            for key, value in (entry.xattrs or {}).items():
                if key.startswith(("user.", "security.capability")):
                    with contextlib.suppress(OSError):
                        os.setxattr(descriptor, key, value)
            os.utime(descriptor, ns=(entry.mtime_ns, entry.mtime_ns))
            if entry.sparse is None:
                info = os.fstat(descriptor)
                self.digests[info.st_ino] = (info.st_mtime_ns, info.st_size, digest.digest())
        finally:
            os.close(descriptor)

    def finish(self) -> None:
        for path, time in sorted(self.folders.items(), reverse=True):
            with contextlib.suppress(FileNotFoundError):
                os.utime(path, ns=(time, time), follow_symlinks=False)


def ignore_patterns(folder: str, dockerfile: str) -> list[str]:
    """The patterns of a context: of ``<Dockerfile>.dockerignore`` if there is one, else of ``.dockerignore``."""
    for name in (f"{dockerfile}.dockerignore", ".dockerignore"):
        content = read_file(folder, name, 1 << 20)
        if content is not None:
            return read_ignore_file(content)
    return []


def read_file(folder: str, name: str, limit: int) -> bytes | None:
    """A file of a context, whose links are hostile; None where there is no such regular file.

    :raises InvalidParameter: it is larger than ``limit`` bytes.
    """
    from seacan.linux.paths import open_in_root

    root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        descriptor = open_in_root(root, name, os.O_RDONLY | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError, OSError):
        return None
    finally:
        os.close(root)
    with open(descriptor, "rb") as file:
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode):
            return None
        if info.st_size > limit:
            raise InvalidParameter(f"{name} is {info.st_size} bytes; the limit is {limit}")
        return file.read()


def remove_ignored(folder: str, patterns: Sequence[str], names: Sequence[str]) -> None:
    """Take files that are themselves ignored (Dockerfile, .dockerignore) out of a context that arrived whole.

    Its folders may be links to folders of the host: they are followed inside the context, as when the file was read.
    """
    from seacan.linux.paths import open_in_root

    matcher = Matcher(patterns)
    for name in names:
        if not matcher.patterns or not matcher.matches(name):
            continue
        root = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            parent = open_in_root(root, os.path.dirname(name), os.O_PATH | os.O_DIRECTORY)
        except OSError:
            continue  # there is no such file
        finally:
            os.close(root)
        base = os.path.basename(name)
        try:
            if stat.S_ISREG(os.stat(base, dir_fd=parent, follow_symlinks=False).st_mode):
                os.unlink(base, dir_fd=parent)
        except FileNotFoundError:
            pass
        finally:
            os.close(parent)
