"""Filling a new volume with what the image has where it is mounted; done by a worker, as both trees are hostile.

The image's root is mounted detached (in no namespace, gone with the process), the source is resolved inside it by the
kernel, and everything is copied by descriptor: owner, mode, times, extended attributes, hard links, holes, devices.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Sequence

import msgspec

from seacan.errors import System
from seacan.linux.paths import open_in_root
from seacan.linux.syscalls import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2
from seacan.runtime.bundle import Rootfs
from seacan.runtime.rootfs import mount_root
from seacan.storage import worker

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SEGMENT = 1 << 24


class Request(msgspec.Struct, frozen=True):
    """Copy ``path`` of ``rootfs`` into the folder that rides along."""

    rootfs: Rootfs
    path: str


class Result(msgspec.Struct, frozen=True):
    files: int


def main(argument: str, fds: Sequence[int]) -> int:
    """The worker's entry."""
    return worker.answer(_populate, Request, argument, fds)


def _populate(request: Request, fds: Sequence[int]) -> Result:
    (target,) = fds
    os.umask(0)
    root = mount_root(request.rootfs)
    try:
        source = open_in_root(root, request.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return Result(0)
    finally:
        os.close(root)
    try:
        return Result(Copy(source, target).run())
    except OSError as error:
        raise System(f"failed to copy files: {request.path}: {(error.strerror or str(error)).lower()}") from error
    finally:
        os.close(source)


class Copy:
    """One copying: remembers hard links. Walks with a stack of its own, not Python's.

    The target may be in use by a container already, so nothing in it is ever followed or named by a path.
    """

    def __init__(self, source: int, target: int) -> None:
        self._target = target
        self._stack = [_Level(os.dup(source), os.dup(target), os.listdir(source), "")]
        self._links: dict[tuple[int, int], str] = {}

    def run(self) -> int:
        """Copy everything in the folder ``source`` into ``target``, and its attributes. Returns how many files."""
        count = 0
        try:
            while self._stack:
                level = self._stack[-1]
                if not level.names:
                    attributes(level.source, level.target)  # last, so that its times stay
                    self._stack.pop().close()
                    continue
                self._entry(level, level.names.pop())
                count += 1
        finally:
            for level in self._stack:
                level.close()
        return count

    def _entry(self, level: _Level, name: str) -> None:
        source, target = level.source, level.target
        found = os.stat(name, dir_fd=source, follow_symlinks=False)
        kind = stat.S_IFMT(found.st_mode)
        if kind == stat.S_IFDIR:
            self._descend(level, name)
            return
        if found.st_nlink > 1 and self._link(found, level, name):
            return
        if kind == stat.S_IFREG:
            _file(source, target, name, found.st_size)
            return
        if kind == stat.S_IFLNK:
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
        elif kind != stat.S_IFSOCK:
            os.mknod(name, found.st_mode, found.st_rdev, dir_fd=target)
        else:
            return
        os.chown(name, found.st_uid, found.st_gid, dir_fd=target, follow_symlinks=False)
        times = (found.st_atime_ns, found.st_mtime_ns)
        os.utime(name, ns=times, dir_fd=target, follow_symlinks=False)

    def _descend(self, level: _Level, name: str) -> None:
        with contextlib.ExitStack() as undo:
            inner = os.open(name, _DIRECTORY, dir_fd=level.source)
            undo.callback(os.close, inner)
            os.mkdir(name, 0o700, dir_fd=level.target)
            made = os.open(name, _DIRECTORY, dir_fd=level.target)
            undo.callback(os.close, made)
            self._stack.append(_Level(inner, made, os.listdir(inner), f"{level.path}{name}/"))
            undo.pop_all()

    def _link(self, found: os.stat_result, level: _Level, name: str) -> bool:
        key = (found.st_dev, found.st_ino)
        first = self._links.setdefault(key, f"{level.path}{name}")
        if first == f"{level.path}{name}":
            return False
        resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
        linked = openat2(self._target, first, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, resolve=resolve)
        try:
            os.link(f"/proc/self/fd/{linked}", name, dst_dir_fd=level.target, follow_symlinks=True)
        finally:
            os.close(linked)
        return True


class _Level:
    """One folder being copied: what is left of it, and its path from the top (with a slash at the end)."""

    def __init__(self, source: int, target: int, names: list[str], path: str) -> None:
        self.source = source
        self.target = target
        self.names = names
        self.path = path

    def close(self) -> None:
        os.close(self.source)
        os.close(self.target)


def _file(source: int, target: int, name: str, size: int) -> None:
    reading = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=source)
    try:
        made = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        writing = os.open(name, made, 0o600, dir_fd=target)
        try:
            _content(reading, writing, size)
            attributes(reading, writing)
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def _content(source: int, target: int, size: int) -> None:
    """Bytes, and holes as holes."""
    os.ftruncate(target, size)
    position = 0
    while position < size:
        try:
            start = os.lseek(source, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        end = os.lseek(source, start, os.SEEK_HOLE)
        os.lseek(target, start, os.SEEK_SET)
        while start < end:
            sent = os.sendfile(target, source, start, min(end - start, _SEGMENT))
            if not sent:
                return
            start += sent
        position = end


def attributes(source: int, target: int) -> None:
    """Owner, mode, extended attributes and times of an open file or folder."""
    found = os.fstat(source)
    os.fchown(target, found.st_uid, found.st_gid)
    os.fchmod(target, stat.S_IMODE(found.st_mode))
    for name in os.listxattr(source):
        if name.startswith(("trusted.overlay.", "user.overlay.")):
            continue
        with contextlib.suppress(OSError):  # a file system of the volume that has no such attributes
            os.setxattr(target, name, os.getxattr(source, name))
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
