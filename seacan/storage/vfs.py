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
from collections.abc import Iterator, Sequence
from pathlib import Path

from seacan.errors import Conflict, System
from seacan.linux.descent import FOLDER, Descent
from seacan.runtime.bundle import DirectoryRoot, Rootfs
from seacan.storage import walk
from seacan.storage.digest import ChainID
from seacan.storage.kept import KeptSnapshots
from seacan.storage.snapshots import Change, ChangeKind, Usage

_FICLONE = 0x40049409
_VIEW = "view-"
_PATH_LIMIT = 4096
"""linux/limits.h. The names of a file that lie deeper become files of their own."""


class VfsSnapshots(KeptSnapshots):
    driver = "vfs"

    def prepare(self, key: str, parent: ChainID | None) -> Rootfs:
        folder = self.root / key
        if folder.exists():
            if self.exists(key):
                raise Conflict(f"snapshot {key} already exists")
            self._trash.discard(folder)
        self._copy(folder, self._below(parent))
        try:
            self._record(key, parent)
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

    def usage(self, key: str) -> Usage:
        return walk.usage(self.upper(key))

    def changes(self, key: str) -> list[Change]:
        lowers = [str(path) for path in self._below(self.parent(key))]
        with contextlib.ExitStack() as open_folders:
            descriptors = []
            for path in (str(self.upper(key)), *lowers):
                descriptors.append(os.open(path, FOLDER))
                open_folders.callback(os.close, descriptors[-1])
            return sorted(_compare(descriptors))

    def upper(self, key: str) -> Path:
        return self.root / key

    @contextlib.contextmanager
    def difference(self, key: str) -> Iterator[Path]:
        """A copy of what is not the image's, and whiteouts for what was."""
        folder = self.root / f".difference-{secrets.token_hex(8)}"
        folder.mkdir(mode=0o755)
        try:
            with contextlib.ExitStack() as opened:
                source, target = os.open(self.upper(key), FOLDER), os.open(folder, FOLDER)
                opened.callback(os.close, source)
                opened.callback(os.close, target)
                _copy_attributes(source, target)
                links = _Links(target)
                for change in self.changes(key):
                    _copy_change(change, source, target, links)
            yield folder
        finally:
            self._trash.discard(folder)

    def graph_driver(self, key: str | None, parent: ChainID | None) -> dict[str, str]:
        return {}

    def _below(self, parent: ChainID | None) -> list[Path]:
        return [self._layers.init(parent), *(layer.path for layer in self._layers.stack(parent))]

    def _copy(self, folder: Path, paths: Sequence[Path]) -> None:
        building = folder.with_name(f".new-{folder.name}")
        if building.exists():
            self._trash.discard(building)
        building.mkdir(mode=0o755)
        try:
            with contextlib.ExitStack() as open_folders:
                target = os.open(building, FOLDER)
                open_folders.callback(os.close, target)
                sources: list[int] = []
                for path in paths:
                    sources.append(os.open(path, FOLDER))
                    open_folders.callback(os.close, sources[-1])
                _merge(target, sources)
            os.rename(building, folder)
        except OSError as error:
            self._trash.discard(building)
            raise System(f"copying the image to {folder}: {error}") from error


class _Links:
    """Where files with several names have been copied to, so that the other names can be linked to them."""

    def __init__(self, root: int) -> None:
        self.root = root
        self.paths: dict[tuple[int, int], str] = {}


def _merge(target: int, sources: list[int]) -> None:
    """Fill ``target`` with what an overlay of ``sources`` (topmost first) would show."""
    links = _Links(target)
    with Descent([target, *sources]) as descent:
        walks = [_Walk("", list(range(1, len(sources) + 1)))]
        _merge_folder(descent, walks[-1], links)
        while True:
            here = walks[-1]
            if here.folders:
                name, below = here.folders.pop()
                os.mkdir(name, 0o700, dir_fd=descent.here[0])
                descent.down()
                descent.step(0, name)
                walks.append(_Walk(f"{here.path}{name}/", walk.step_merged(descent, below, name)))
                _merge_folder(descent, walks[-1], links)
                continue
            # The files in it have been made: its time of change stays.
            if here.below:
                _copy_attributes(descent.here[here.below[0]], descent.here[0])
            walks.pop()
            if not walks:
                return
            descent.up()


class _Walk:
    """Where a walk is: a path that ends in a slash, the trees that have it, and folders still to be entered."""

    def __init__(self, path: str, below: list[int]) -> None:
        self.path = path
        self.below = below
        self.folders: list[tuple[str, list[int]]] = []


def _merge_folder(descent: Descent, at: _Walk, links: _Links) -> None:
    """Copy what is no folder; note the folders, with the trees that may have a part in them."""
    done: set[str] = set()
    for index, tree in enumerate(at.below):
        source = descent.here[tree]
        for name in sorted(os.listdir(source)):
            if name in done:
                continue
            done.add(name)
            info = os.stat(name, dir_fd=source, follow_symlinks=False)
            if walk.is_whiteout(info):
                continue
            if stat.S_ISDIR(info.st_mode):
                at.folders.append((name, at.below[index:]))
            else:
                _copy_file(name, info, source, descent.here[0], links, at.path + name)
        if walk.is_opaque(source):
            break


def _copy_change(change: Change, source: int, target: int, links: _Links) -> None:
    *parents, name = change.path.strip("/").split("/")
    with Descent([source, target]) as descent:
        for parent in parents:
            _step_both(descent, parent)
        source, target = descent.here
        if change.kind is ChangeKind.DELETED:
            os.mknod(name, stat.S_IFCHR, 0, dir_fd=target)
        else:
            info = os.stat(name, dir_fd=source, follow_symlinks=False)
            if stat.S_ISDIR(info.st_mode):
                _step_both(descent, name)
                _copy_attributes(*descent.here)
                descent.up()
            else:
                _copy_file(name, info, source, target, links, change.path.strip("/"))
        for _ in parents:  # which have been written to
            _copy_attributes(*descent.here)
            descent.up()
        _copy_attributes(*descent.here)


def _step_both(descent: Descent, name: str) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=descent.here[1])
    descent.down()
    descent.step(0, name)
    descent.step(1, name)


def _copy_file(name: str, info: os.stat_result, source: int, target: int, links: _Links, path: str) -> None:
    if info.st_nlink > 1 and len(os.fsencode(path)) < _PATH_LIMIT:
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


def _compare(folders: list[int]) -> list[Change]:
    """What the first folder changes compared to the others merged (topmost first)."""
    changes: list[Change] = []
    with Descent(folders) as descent:
        walks = [_Walk("/", list(range(1, len(folders))))]
        _compare_folder(descent, walks[-1], changes)
        while True:
            here = walks[-1]
            if here.folders:
                name, below = here.folders.pop()
                descent.down()
                descent.step(0, name)
                walks.append(_Walk(f"{here.path}{name}/", walk.step_merged(descent, below, name)))
                _compare_folder(descent, walks[-1], changes)
                continue
            walks.pop()
            if not walks:
                return changes
            descent.up()


def _compare_folder(descent: Descent, at: _Walk, changes: list[Change]) -> None:
    folder = descent.here[0]
    present = set(os.listdir(folder))
    original = walk.merged_entries([descent.here[tree] for tree in at.below])
    changes.extend(Change(at.path + name, ChangeKind.DELETED) for name in original.keys() - present)
    for name in present:
        info = os.stat(name, dir_fd=folder, follow_symlinks=False)
        before = original.get(name)
        here = at.path + name
        if before is None:
            changes.append(Change(here, ChangeKind.ADDED))
        elif not walk.same(info, before[1]) and not (
            stat.S_ISDIR(info.st_mode) and stat.S_ISDIR(before[1].st_mode) and walk.same_folder(info, before[1])
        ):
            changes.append(Change(here, ChangeKind.MODIFIED))
        if stat.S_ISDIR(info.st_mode):
            shared = before is not None and stat.S_ISDIR(before[1].st_mode)
            at.folders.append((name, at.below[before[0] :] if before is not None and shared else []))
