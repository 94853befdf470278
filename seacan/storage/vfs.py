"""Snapshots as plain copies, for hosts and file systems where overlay cannot be mounted.

Every snapshot is a whole tree, copied from the image's layers (sharing blocks where the file system can). Slow and
large, and correct everywhere. Layers are walked by descriptor, links never followed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from seacan.errors import Conflict, NotFound, System
from seacan.runtime.bundle import DirectoryRoot, Rootfs
from seacan.storage import walk
from seacan.storage.database import Database
from seacan.storage.digest import ChainID
from seacan.storage.layers import Layers
from seacan.storage.overlay import SNAPSHOT_SCHEMA
from seacan.storage.snapshots import Change, ChangeKind, Usage
from seacan.storage.trash import Trash

_FICLONE = 0x40049409
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_VIEW = "view-"


class VfsSnapshots:
    driver = "vfs"

    def __init__(self, root: Path, database: Database, layers: Layers, trash: Trash) -> None:
        self.root = root
        self._database = database
        self._layers = layers
        self._trash = trash
        root.mkdir(parents=True, exist_ok=True, mode=0o710)
        database.migrate("snapshots", SNAPSHOT_SCHEMA)

    def prepare(self, key: str, parent: ChainID | None) -> Rootfs:
        folder = self.root / key
        if folder.exists():
            if self.exists(key):
                raise Conflict(f"snapshot {key} already exists")
            self._trash.discard(folder)
        self._copy(folder, self._below(parent))
        try:
            self._database.execute("INSERT INTO snapshots VALUES (?, ?)", (key, parent))
        except BaseException:
            self._trash.discard(folder)
            raise
        return DirectoryRoot(str(folder))

    def rootfs(self, key: str, *, read_only: bool = False) -> Rootfs:
        self.parent(key)
        return DirectoryRoot(str(self.root / key))

    def view(self, parent: ChainID | None) -> Rootfs:
        """A copy, kept for the next view of the same image until the engine starts again."""
        name = _VIEW + (parent or "empty").removeprefix("sha256:")
        folder = self.root / name
        if not folder.exists():
            self._copy(folder, [layer.path for layer in self._layers.stack(parent)])
        return DirectoryRoot(str(folder))

    def parent(self, key: str) -> ChainID | None:
        row = self._database.execute("SELECT parent FROM snapshots WHERE key = ?", (key,)).fetchone()
        if row is None:
            raise NotFound(f"snapshot {key} does not exist")
        return ChainID(row[0]) if row[0] is not None else None

    def exists(self, key: str) -> bool:
        return self._database.execute("SELECT 1 FROM snapshots WHERE key = ?", (key,)).fetchone() is not None

    def keys(self) -> list[str]:
        return [row[0] for row in self._database.execute("SELECT key FROM snapshots")]

    def remove(self, key: str) -> None:
        self._database.execute("DELETE FROM snapshots WHERE key = ?", (key,))
        self._trash.discard(self.root / key)

    def usage(self, key: str) -> Usage:
        return walk.usage(self.upper(key))

    def changes(self, key: str) -> list[Change]:
        lowers = [str(path) for path in self._below(self.parent(key))]
        with contextlib.ExitStack() as open_folders:
            descriptors = []
            for path in (str(self.upper(key)), *lowers):
                descriptors.append(os.open(path, _FOLDER))
                open_folders.callback(os.close, descriptors[-1])
            changes: list[Change] = []
            _compare(descriptors[0], descriptors[1:], "/", changes)
        return sorted(changes)

    def upper(self, key: str) -> Path:
        return self.root / key

    @contextlib.contextmanager
    def difference(self, key: str) -> Iterator[Path]:
        """A copy of what is not the image's, and whiteouts for what was."""
        folder = self.root / f".difference-{secrets.token_hex(8)}"
        folder.mkdir(mode=0o755)
        try:
            with contextlib.ExitStack() as opened:
                source, target = os.open(self.upper(key), _FOLDER), os.open(folder, _FOLDER)
                opened.callback(os.close, source)
                opened.callback(os.close, target)
                links = _Links(target)
                _copy_attributes(source, target)
                for change in self.changes(key):
                    _copy_change(change, source, target, links)
            yield folder
        finally:
            self._trash.discard(folder)

    def graph_driver(self, key: str | None, parent: ChainID | None) -> dict[str, str]:
        return {}

    def recover(self, wanted: Collection[str] | None = None) -> None:
        known = set(self.keys())
        if wanted is not None:
            for key in known - set(wanted):
                self.remove(key)
            known &= set(wanted)
        with os.scandir(self.root) as entries:
            present = [entry.name for entry in entries]
        for name in present:
            if name not in known:
                self._trash.discard(self.root / name)

    def _below(self, parent: ChainID | None) -> list[Path]:
        return [self._layers.init(parent), *(layer.path for layer in self._layers.stack(parent))]

    def _copy(self, folder: Path, paths: Sequence[Path]) -> None:
        building = folder.with_name(f".new-{folder.name}")
        if building.exists():
            self._trash.discard(building)
        building.mkdir(mode=0o755)
        try:
            with contextlib.ExitStack() as open_folders:
                target = os.open(building, _FOLDER)
                open_folders.callback(os.close, target)
                sources: list[int] = []
                for path in paths:
                    sources.append(os.open(path, _FOLDER))
                    open_folders.callback(os.close, sources[-1])
                _merge(target, sources, _Links(target), "")
                if sources:
                    _copy_attributes(sources[0], target)
            os.rename(building, folder)
        except OSError as error:
            self._trash.discard(building)
            raise System(f"copying the image to {folder}: {error}") from error


class _Links:
    """Where files with several names have been copied to, so that the other names can be linked to them."""

    def __init__(self, root: int) -> None:
        self.root = root
        self.paths: dict[tuple[int, int], str] = {}


def _merge(target: int, sources: list[int], links: _Links, path: str) -> None:
    """Fill ``target`` with what an overlay of ``sources`` (topmost first) would show."""
    done: set[str] = set()
    for index, source in enumerate(sources):
        with os.scandir(source) as entries:
            names = sorted(entry.name for entry in entries)
        for name in names:
            if name in done:
                continue
            done.add(name)
            info = os.stat(name, dir_fd=source, follow_symlinks=False)
            if walk.is_whiteout(info):
                continue
            if stat.S_ISDIR(info.st_mode):
                os.mkdir(name, 0o700, dir_fd=target)
                inner = os.open(name, _FOLDER, dir_fd=target)
                below = walk.merged(sources[index:], name)
                try:
                    _merge(inner, below, links, f"{path}{name}/")
                    _copy_attributes(below[0], inner)
                finally:
                    os.close(inner)
                    walk.close(below)
            else:
                _copy_file(name, info, source, target, links, path + name)
        if walk.is_opaque(source):
            break


def _copy_change(change: Change, source: int, target: int, links: _Links) -> None:
    *parents, name = change.path.strip("/").split("/")
    with contextlib.ExitStack() as opened:
        for parent in parents:
            source = os.open(parent, _FOLDER, dir_fd=source)
            opened.callback(os.close, source)
            with contextlib.suppress(FileExistsError):
                os.mkdir(parent, 0o700, dir_fd=target)
            target = os.open(parent, _FOLDER, dir_fd=target)
            opened.callback(os.close, target)
            _copy_attributes(source, target)
        if change.kind is ChangeKind.DELETED:
            os.mknod(name, stat.S_IFCHR, 0, dir_fd=target)
            return
        info = os.stat(name, dir_fd=source, follow_symlinks=False)
        if not stat.S_ISDIR(info.st_mode):
            _copy_file(name, info, source, target, links, change.path.strip("/"))
            return
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=target)
        original = os.open(name, _FOLDER, dir_fd=source)
        opened.callback(os.close, original)
        copy = os.open(name, _FOLDER, dir_fd=target)
        opened.callback(os.close, copy)
        _copy_attributes(original, copy)


def _copy_file(name: str, info: os.stat_result, source: int, target: int, links: _Links, path: str) -> None:
    if info.st_nlink > 1:
        first = links.paths.setdefault((info.st_dev, info.st_ino), path)
        if first != path:
            os.link(first, name, src_dir_fd=links.root, dst_dir_fd=target, follow_symlinks=False)
            return
    if stat.S_ISREG(info.st_mode):
        with contextlib.ExitStack() as files:
            reader = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
            files.callback(os.close, reader)
            writer = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=target)
            files.callback(os.close, writer)
            _copy_content(reader, writer, info.st_size)
            _copy_attributes(reader, writer)
        return
    if stat.S_ISLNK(info.st_mode):
        os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
    else:
        os.mknod(name, info.st_mode, info.st_rdev, dir_fd=target)
        os.chmod(name, stat.S_IMODE(info.st_mode), dir_fd=target)
    os.chown(name, info.st_uid, info.st_gid, dir_fd=target, follow_symlinks=False)
    os.utime(name, ns=(info.st_atime_ns, info.st_mtime_ns), dir_fd=target, follow_symlinks=False)


def _copy_content(reader: int, writer: int, size: int) -> None:
    try:
        fcntl.ioctl(writer, _FICLONE, reader)
        return
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL):
            raise
    offset = 0
    while offset < size:
        # Holes stay holes.
        try:
            start = os.lseek(reader, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break
        end = os.lseek(reader, start, os.SEEK_HOLE)
        offset = start
        while offset < end:
            copied = os.copy_file_range(reader, writer, end - offset, offset, offset)
            if not copied:
                break
            offset += copied
        offset = end
    os.ftruncate(writer, size)


def _copy_attributes(source: int, target: int) -> None:
    info = os.fstat(source)
    os.fchown(target, info.st_uid, info.st_gid)
    for name in os.listxattr(source):
        if not name.startswith(("trusted.overlay.", "user.overlay.")):
            os.setxattr(target, name, os.getxattr(source, name))
    os.fchmod(target, stat.S_IMODE(info.st_mode))
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))


def _compare(folder: int, below: list[int], path: str, changes: list[Change]) -> None:
    """What ``folder`` changes compared to the merged folders ``below``."""
    present = set(os.listdir(folder))
    original = walk.merged_entries(below)
    changes.extend(Change(path + name, ChangeKind.DELETED) for name in original.keys() - present)
    for name in sorted(present):
        info = os.stat(name, dir_fd=folder, follow_symlinks=False)
        before = original.get(name)
        here = path + name
        if before is None:
            changes.append(Change(here, ChangeKind.ADDED))
        elif not walk.same(info, before[1]) and not (
            stat.S_ISDIR(info.st_mode) and stat.S_ISDIR(before[1].st_mode) and walk.same_folder(info, before[1])
        ):
            changes.append(Change(here, ChangeKind.MODIFIED))
        if stat.S_ISDIR(info.st_mode):
            inner = os.open(name, _FOLDER, dir_fd=folder)
            lower: list[int] = []
            try:
                if before is not None and stat.S_ISDIR(before[1].st_mode):
                    lower = walk.merged(below[before[0] :], name)
                _compare(inner, lower, here + "/", changes)
            finally:
                os.close(inner)
                walk.close(lower)
