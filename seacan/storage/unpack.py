"""Unpacks one layer's archive into an empty folder, in a process confined to that folder.

The result is in overlay's own form, whatever is above or below: a whiteout (``.wh.name``) becomes a character device
0:0, an opaque marker (``.wh..wh..opq``) an extended attribute of its folder. So layers can be unpacked in any order,
and several at once. The archive is hostile: the worker has changed its root to the folder before it reads the first
byte, so whatever the names, links and swaps, it cannot reach anything else; what tries is refused with the
entry's name.
"""

from __future__ import annotations

import errno
import hashlib
import os
import posixpath
import queue
import stat
import threading
from collections.abc import Callable, Sequence

import msgspec

from seacan.errors import InvalidParameter, SeacanError, System
from seacan.storage import tar, worker
from seacan.storage.compression import ReadChunk, expand
from seacan.storage.tar import TarEntry, TarError, TarReader

WHITEOUT_PREFIX = b".wh."
OPAQUE_MARKER = b".wh..wh..opq"
_METADATA_PREFIX = b".wh..wh."

_READ = 1 << 20
_NAME_STEP = 3500
"""Longer paths than the kernel takes at once (PATH_MAX) are walked in steps of at most this."""


class Limits(msgspec.Struct, frozen=True):
    """What a layer may cost before it is taken for a decompression bomb."""

    expanded_bytes: int = 1 << 40
    """Of the uncompressed archive; 1 TiB."""
    ratio: int = 1200
    """Expanded to compressed size, looked at above 1 GiB. Deflate cannot exceed 1032; zstd and bzip2 have no bound."""
    entries: int = 20_000_000


class UnpackRequest(msgspec.Struct, frozen=True):
    """``root`` is the folder, which exists and is empty; ``what`` names the layer in errors.

    ``follow`` says that a second descriptor carries progress (see :func:`announce`), because the archive is still being
    written. ``user_namespace`` says that device nodes cannot be made, and that overlay marks are ``user.`` attributes.
    """

    root: str
    what: str
    limits: Limits = Limits()
    follow: bool = False
    user_namespace: bool = False


class UnpackResult(msgspec.Struct, frozen=True):
    diff_id: str
    """The digest of the uncompressed archive."""
    compression: str
    archive_size: int
    """Of the uncompressed archive, in bytes."""
    size: int
    """Of the files, as dockerd counts a layer: every inode once, folders not at all."""
    entries: int
    implied: list[str]
    """Folders the archive has no entry for, though something below them: their attributes are the lower layer's.

    The root is the empty name."""


def main(argument: str, fds: Sequence[int]) -> int:
    """The worker: descriptors are the archive (a regular file or a pipe), progress if ``follow``, and the report."""
    return worker.answer(_unpack, UnpackRequest, argument, fds)


def announce(descriptor: int, size: int, *, final: bool = False) -> None:
    """Tell a worker that follows a file being written how much of it is there. Blocks while the pipe is full."""
    os.write(descriptor, (size << 1 | final).to_bytes(8, "little"))


def _unpack(request: UnpackRequest, fds: Sequence[int]) -> UnpackResult:
    read = _following(fds[0], fds[1]) if request.follow else _reading(fds[0])
    _confine(request.root)
    count = _Counter(read)
    source = _Expander(count, request.limits)
    source.start()
    layer = _Layer(request)
    try:
        reader = TarReader(source.read)
        layer.extract(reader)
        reader.drain()
    except SeacanError as error:
        raise type(error)(f"{request.what}: {error.message}") from error
    finally:
        source.stop()
    return UnpackResult(
        "sha256:" + source.hash.hexdigest(),
        source.compression,
        source.size,
        layer.size,
        layer.entries,
        [os.fsdecode(name) for name in sorted(layer.implied)],
    )


def _confine(root: str) -> None:
    os.chroot(root)
    os.chdir("/")
    os.umask(0)
    worker.forbid_imports()


def _reading(descriptor: int) -> ReadChunk:
    """A regular file is read from its start whatever the shared offset says; a pipe as it comes."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        return lambda: os.read(descriptor, _READ)
    offset = 0

    def read() -> bytes:
        nonlocal offset
        chunk = os.pread(descriptor, _READ, offset)
        offset += len(chunk)
        return chunk

    return read


def _following(descriptor: int, progress: int) -> ReadChunk:
    offset = available = 0
    complete = False

    def read() -> bytes:
        nonlocal offset, available, complete
        while offset >= available and not complete:
            news = os.read(progress, 1 << 12)
            if not news:
                raise System("the archive was given up before its end")
            last = int.from_bytes(news[-8:], "little")
            available, complete = last >> 1, bool(last & 1)
        chunk = os.pread(descriptor, min(_READ, available - offset), offset)
        offset += len(chunk)
        return chunk

    return read


class _Counter:
    def __init__(self, read: ReadChunk) -> None:
        self._read = read
        self.size = 0

    def __call__(self) -> bytes:
        chunk = self._read()
        self.size += len(chunk)
        return chunk


class _Expander(threading.Thread):
    """Expands and hashes ahead of the extraction; both run without the interpreter's lock."""

    def __init__(self, read: _Counter, limits: Limits) -> None:
        super().__init__(daemon=True)
        self._input = read
        self._limits = limits
        self._queue: queue.Queue[bytes | BaseException] = queue.Queue(8)
        self._stopped = False
        self.hash = hashlib.sha256()
        self.size = 0
        self.compression = ""

    def run(self) -> None:
        limits = self._limits
        try:
            kind, chunks = expand(self._input)
            self.compression = kind.value
            for chunk in chunks:
                self.size += len(chunk)
                if self.size > limits.expanded_bytes or (
                    self.size > 1 << 30 and self.size > limits.ratio * self._input.size
                ):
                    raise InvalidParameter(
                        f"layer expands beyond the limit: {self.size} bytes from {self._input.size} compressed ones"
                    )
                self.hash.update(chunk)
                self._queue.put(chunk)
                if self._stopped:
                    return
            self._queue.put(b"")
        except BaseException as error:  # handed to the extracting thread, which raises it
            self._queue.put(error)

    def read(self) -> bytes:
        chunk = self._queue.get()
        if isinstance(chunk, BaseException):
            raise chunk
        if not chunk:
            self._queue.put(b"")
        return chunk

    def stop(self) -> None:
        self._stopped = True
        while not self._queue.empty():
            self._queue.get_nowait()


class _Attributes:
    __slots__ = ("atime_ns", "gid", "mode", "mtime_ns", "uid", "xattrs")

    def __init__(self, entry: TarEntry) -> None:
        self.mode = entry.mode
        self.uid = entry.uid
        self.gid = entry.gid
        self.mtime_ns, self.atime_ns = _times(entry)
        self.xattrs = entry.xattrs


class _Layer:
    """The folder being filled; it is the root of this process."""

    def __init__(self, request: UnpackRequest) -> None:
        self._limits = request.limits
        self._user_namespace = request.user_namespace
        self._opaque = "user.overlay.opaque" if request.user_namespace else "trusted.overlay.opaque"
        self._folders: dict[bytes, _Attributes] = {}
        self._whiteouts: set[bytes] = set()
        self.implied: set[bytes] = {b""}
        self.size = 0
        self.entries = 0

    def extract(self, reader: TarReader) -> None:
        for entry in reader:
            self.entries += 1
            if self.entries > self._limits.entries:
                raise InvalidParameter(f"layer has more than {self._limits.entries} entries")
            path = _clean(entry.name)
            if path is None:
                raise InvalidParameter(f"invalid tar entry {entry.text!r}: path leads out of the layer")
            try:
                if path == b"":
                    if entry.kind == tar.DIRECTORY:
                        self._folders[b""] = _Attributes(entry)
                        self.implied.discard(b"")
                    continue
                if len(path) > _NAME_STEP:
                    self._walked(path, lambda name, entry=entry: self._add(entry, name, reader))  # type: ignore[misc]
                else:
                    self._add(entry, path, reader)
            except OSError as error:
                raise _failure(entry, error) from error
            except TarError as error:
                raise TarError(f"invalid tar entry {entry.text!r}: {error.message}") from error
        self._finish_folders()

    # --- one entry --------------------------------------------------------------------------------------------------

    def _add(self, entry: TarEntry, path: bytes, reader: TarReader) -> None:
        base = path[path.rfind(b"/") + 1 :]
        if base.startswith(WHITEOUT_PREFIX):
            self._add_whiteout(entry, path, base)
            return
        kind = entry.kind
        if kind == tar.REGULAR:
            descriptor = self._retry(
                path,
                lambda: os.open(
                    path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, entry.mode & 0o777
                ),
            )
            try:
                self._fill(descriptor, entry, reader)
            finally:
                os.close(descriptor)
        elif kind == tar.DIRECTORY:
            self._add_folder(entry, path)
        elif kind == tar.SYMLINK:
            self._retry(path, lambda: os.symlink(entry.linkname, path))
            self.size += len(entry.linkname)
            if entry.uid or entry.gid:
                os.chown(path, _owner(entry, entry.uid), _owner(entry, entry.gid), follow_symlinks=False)
            if entry.xattrs:
                self._set_xattrs(path, entry.xattrs, entry)
            mtime, atime = _times(entry)
            os.utime(path, ns=(atime, mtime), follow_symlinks=False)
        elif kind == tar.HARD_LINK:
            self._add_hard_link(entry, path)
        elif kind in (tar.CHARACTER, tar.BLOCK_DEVICE, tar.FIFO):
            self._add_node(entry, path, kind)
        else:
            raise TarError(f"unhandled tar header type {kind}")

    def _fill(self, descriptor: int, entry: TarEntry, reader: TarReader) -> None:
        if entry.sparse is not None:
            self._fill_sparse(descriptor, entry, reader)
        elif entry.stored:
            for piece in reader.data():
                written = os.write(descriptor, piece)
                while written < len(piece):
                    written += os.write(descriptor, piece[written:])
        self.size += entry.size
        if entry.uid or entry.gid:
            os.fchown(descriptor, _owner(entry, entry.uid), _owner(entry, entry.gid))
        if entry.xattrs:
            self._set_xattrs(descriptor, entry.xattrs, entry)
        if entry.mode & 0o7000:
            os.fchmod(descriptor, entry.mode)
        mtime, atime = _times(entry)
        os.utime(descriptor, ns=(atime, mtime))

    @staticmethod
    def _fill_sparse(descriptor: int, entry: TarEntry, reader: TarReader) -> None:
        regions = iter(entry.sparse or ())
        offset = left = 0
        for piece in reader.data():
            rest = piece
            while rest:
                while not left:
                    offset, left = next(regions)
                done = os.pwrite(descriptor, rest[:left], offset)
                offset, left, rest = offset + done, left - done, rest[done:]
        os.ftruncate(descriptor, entry.size)

    def _add_folder(self, entry: TarEntry, path: bytes) -> None:
        try:
            self._make_folder(path)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                self._replace(path)
                self._make_folder(path)
        self._folders[path] = _Attributes(entry)
        self.implied.discard(path)

    def _make_folder(self, path: bytes) -> None:
        try:
            os.mkdir(path, 0o700)
        except (FileNotFoundError, NotADirectoryError):
            self._make_parents(path)
            os.mkdir(path, 0o700)
        if path in self._whiteouts:
            # Deleted below and made anew here: what the lower layers had in it stays hidden.
            self._whiteouts.discard(path)
            os.setxattr(path, self._opaque, b"y")

    def _add_hard_link(self, entry: TarEntry, path: bytes) -> None:
        target = _clean(entry.linkname)
        if not target:
            raise TarError(
                f"hard link target {entry.linkname.decode('utf-8', 'backslashreplace')!r} leads out of the layer"
            )
        here, target = target, b"/" + target
        try:
            before = os.lstat(target)
        except OSError as error:
            raise TarError(
                f"hard link target {target.decode('utf-8', 'backslashreplace')!r}: {os.strerror(error.errno or 0)}"
            ) from error
        if stat.S_ISDIR(before.st_mode):
            raise TarError(f"hard link target {target.decode('utf-8', 'backslashreplace')!r} is a directory")
        if path != here:
            self._retry(path, lambda: os.link(target, path, follow_symlinks=False))
        if stat.S_ISLNK(before.st_mode):
            return
        if (before.st_uid, before.st_gid) != (entry.uid, entry.gid):
            os.chown(path, _owner(entry, entry.uid), _owner(entry, entry.gid), follow_symlinks=False)
            os.chmod(path, entry.mode)
        elif stat.S_IMODE(before.st_mode) != entry.mode:
            os.chmod(path, entry.mode)
        if entry.xattrs:
            self._set_xattrs(path, entry.xattrs, entry)
        mtime, atime = _times(entry)
        if mtime != before.st_mtime_ns:
            os.utime(path, ns=(atime, mtime), follow_symlinks=False)

    def _add_node(self, entry: TarEntry, path: bytes, kind: int) -> None:
        if self._user_namespace and kind != tar.FIFO:
            return
        mode = {tar.CHARACTER: stat.S_IFCHR, tar.BLOCK_DEVICE: stat.S_IFBLK, tar.FIFO: stat.S_IFIFO}[kind]
        device = 0 if kind == tar.FIFO else os.makedev(entry.devmajor, entry.devminor)
        self._retry(path, lambda: os.mknod(path, mode | (entry.mode & 0o777), device))
        if entry.uid or entry.gid:
            os.chown(path, _owner(entry, entry.uid), _owner(entry, entry.gid), follow_symlinks=False)
        if entry.xattrs:
            self._set_xattrs(path, entry.xattrs, entry)
        if entry.mode & 0o7000:
            os.chmod(path, entry.mode)
        mtime, atime = _times(entry)
        os.utime(path, ns=(atime, mtime), follow_symlinks=False)

    def _add_whiteout(self, entry: TarEntry, path: bytes, base: bytes) -> None:
        parent = path[: -len(base)].rstrip(b"/")
        if base == OPAQUE_MARKER:
            if parent:
                try:
                    os.setxattr(parent, self._opaque, b"y")
                except (FileNotFoundError, NotADirectoryError):
                    self._make_parents(path)
                    os.setxattr(parent, self._opaque, b"y")
            else:
                os.setxattr(b".", self._opaque, b"y")
            return
        if base.startswith(_METADATA_PREFIX):
            return  # AUFS's own bookkeeping (.wh..wh.aufs, .wh..wh.plnk, …): dockerd passes over it too
        name = base[len(WHITEOUT_PREFIX) :]
        if name in (b"", b".", b".."):
            raise TarError("whiteout of no file")
        target = parent + b"/" + name if parent else name
        try:
            try:
                os.mknod(target, stat.S_IFCHR, 0)
            except (FileNotFoundError, NotADirectoryError):
                self._make_parents(target)
                os.mknod(target, stat.S_IFCHR, 0)
        except FileExistsError:
            # A whiteout speaks of lower layers only: what this layer has under the name stays, and hides them.
            if target not in self._whiteouts and stat.S_ISDIR(os.lstat(target).st_mode):
                os.setxattr(target, self._opaque, b"y")
            return
        self._whiteouts.add(target)

    def _set_xattrs(self, target: int | bytes, xattrs: dict[str, bytes], entry: TarEntry) -> None:
        for name, value in xattrs.items():
            if name.startswith(("trusted.overlay.", "user.overlay.")):
                continue  # they would steer the overlay from inside the image
            try:
                if isinstance(target, int):
                    os.setxattr(target, name, value)
                else:
                    os.setxattr(target, name, value, follow_symlinks=False)
            except OSError as error:
                if error.errno == errno.EPERM:
                    continue  # dockerd's rule: the host, or a user namespace, does not let us
                raise OSError(error.errno, f"set extended attribute {name}: {error.strerror}") from error

    # --- folders and what is in the way -----------------------------------------------------------------------------

    def _retry(self, path: bytes, make: Callable[[], int | None]) -> int:
        """``make`` the file at ``path``; make its parents or remove what is in the way if that is why it fails."""
        try:
            return make() or 0
        except FileExistsError:
            self._replace(path)
        except (FileNotFoundError, NotADirectoryError):
            self._make_parents(path)
            try:
                return make() or 0
            except FileExistsError:
                self._replace(path)
        return make() or 0

    def _replace(self, path: bytes) -> None:
        """Remove what an earlier entry of this layer (or a whiteout) left at ``path``."""
        info = os.lstat(path)
        if stat.S_ISDIR(info.st_mode):
            self._remove_tree(path)
        else:
            if (stat.S_ISREG(info.st_mode) and info.st_nlink == 1) or stat.S_ISLNK(info.st_mode):
                self.size -= info.st_size
            os.unlink(path)

    def _remove_tree(self, path: bytes) -> None:
        pending = [path]
        emptied: list[bytes] = []
        while pending:
            folder = pending.pop()
            emptied.append(folder)
            self._folders.pop(folder, None)
            self.implied.discard(folder)
            for name in os.listdir(folder):
                child = folder + b"/" + name
                info = os.lstat(child)
                if stat.S_ISDIR(info.st_mode):
                    pending.append(child)
                else:
                    if (stat.S_ISREG(info.st_mode) and info.st_nlink == 1) or stat.S_ISLNK(info.st_mode):
                        self.size -= info.st_size
                    self._whiteouts.discard(child)
                    os.unlink(child)
        for folder in reversed(emptied):
            os.rmdir(folder)

    def _make_parents(self, path: bytes) -> None:
        at = 0
        while (at := path.find(b"/", at + 1)) > 0:
            parent = path[:at]
            try:
                os.mkdir(parent, 0o755)
            except FileExistsError:
                if parent not in self._whiteouts:
                    continue
                os.unlink(parent)
                os.mkdir(parent, 0o755)
            if parent in self._whiteouts:
                self._whiteouts.discard(parent)
                os.setxattr(parent, self._opaque, b"y")
            self.implied.add(parent)

    def _walked(self, path: bytes, add: Callable[[bytes], None]) -> None:
        """Call ``add`` with a path short enough for the kernel, from a working directory nearer to it."""
        folders, implied, whiteouts = self._folders, self.implied, self._whiteouts
        self._folders, self.implied, self._whiteouts = {}, set(), set()
        try:
            rest = path
            while len(rest) > _NAME_STEP:
                cut = rest.rfind(b"/", 0, _NAME_STEP)
                if cut <= 0:
                    break
                step, rest = rest[:cut], rest[cut + 1 :]
                try:
                    os.chdir(step)
                except FileNotFoundError:
                    self._make_parents(step + b"/")
                    os.chdir(step)
            add(rest)
            self._finish_folders()
        finally:
            self._folders, self.implied, self._whiteouts = folders, implied, whiteouts
            os.chdir("/")

    def _finish_folders(self) -> None:
        """Owners, modes and times of folders come last: filling a folder changes its time, and set-group-ID spreads."""
        for path, wanted in self._folders.items():
            try:
                descriptor = os.open(path or b".", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError):
                continue  # replaced by a later entry through another name
            except OSError as error:
                if error.errno == errno.ELOOP:
                    continue
                raise
            try:
                if wanted.uid or wanted.gid:
                    os.fchown(descriptor, wanted.uid, wanted.gid)
                if wanted.xattrs:
                    self._set_folder_xattrs(descriptor, wanted.xattrs)
                os.fchmod(descriptor, wanted.mode)
                os.utime(descriptor, ns=(wanted.atime_ns, wanted.mtime_ns))
            except (OSError, OverflowError) as error:
                name = path.decode("utf-8", "backslashreplace")
                raise System(f"tar entry {name!r}: {error}") from error
            finally:
                os.close(descriptor)

    def _set_folder_xattrs(self, descriptor: int, xattrs: dict[str, bytes]) -> None:
        for name, value in xattrs.items():
            if not name.startswith(("trusted.overlay.", "user.overlay.")):
                try:
                    os.setxattr(descriptor, name, value)
                except PermissionError:
                    continue


def _clean(name: bytes) -> bytes | None:
    """``name`` relative to the layer's root (b"" is the root itself), or None if it leads out of it."""
    path = name.strip(b"/")
    if b"//" in path or b"./" in path or path.endswith(b"."):
        path = posixpath.normpath(path)
        if path == b".":
            return b""
        if path == b".." or path.startswith(b"../"):
            return None
    return path


def _times(entry: TarEntry) -> tuple[int, int]:
    """Modification and access time; before 1970 means 1970, and the access time is never the older one (dockerd)."""
    mtime = entry.mtime_ns
    if mtime < 0 or mtime >= 1 << 63:
        mtime = 0
    atime = entry.atime_ns
    return mtime, mtime if atime is None or atime < mtime or atime >= 1 << 63 else atime


def _owner(entry: TarEntry, number: int) -> int:
    if number >= 0xFFFFFFFF:
        raise TarError(f"owner {number} is out of range")
    return number


def _failure(entry: TarEntry, error: OSError) -> SeacanError:
    message = f"tar entry {entry.text!r}: {error.strerror}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        return System(message)
    return InvalidParameter(f"invalid {message}")
