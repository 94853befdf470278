"""Looking into a root filesystem without mounting it: its layers, merged the way the kernel's overlay would show them.

For the little that the engine must know before a container exists: its accounts, and what lies where a volume is to be
mounted. The content is hostile: every step is resolved by the kernel inside one layer (openat2(2) with RESOLVE_IN_ROOT,
links refused), and a symbolic link is followed here, within the merged tree.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass

from seacan.errors import System
from seacan.linux.syscalls import RESOLVE_IN_ROOT, RESOLVE_NO_SYMLINKS, openat2
from seacan.runtime.bundle import DirectoryRoot, Rootfs

_MAX_LINKS = 40


@dataclass(frozen=True)
class Entry:
    """What the merged tree has at a path. ``layers`` are those that hold it, topmost first (one, but for a folder)."""

    path: str
    """Without a leading slash, and without symbolic links."""
    stat: os.stat_result
    layers: tuple[str, ...]

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.stat.st_mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.stat.st_mode)


class View:
    """A merged, read-only view of a root filesystem. Holds descriptors: close it, or use it as a context manager."""

    def __init__(self, rootfs: Rootfs) -> None:
        if isinstance(rootfs, DirectoryRoot):
            self._layers = [rootfs.path]
        else:
            self._layers = [layer for layer in (rootfs.upper, *rootfs.lower) if layer is not None]
        self._roots: dict[str, int] = {}

    def __enter__(self) -> View:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        for descriptor in self._roots.values():
            os.close(descriptor)
        self._roots.clear()

    def find(self, path: str) -> Entry | None:
        """What is at ``path``, following symbolic links, the last one too; None if there is nothing.

        Raises System when a layer cannot be read.
        """
        pending = [part for part in reversed(path.split("/")) if part not in ("", ".")]
        # What has been walked so far: each folder with the layers that hold it.
        walked: list[tuple[str, tuple[str, ...]]] = []
        links = 0
        here = self._top()
        while pending:
            part = pending.pop()
            if part == "..":
                if walked:
                    walked.pop()
                here = self._again(walked)
                continue
            if not here.is_directory:
                return None
            candidate = f"{walked[-1][0]}/{part}" if walked else part
            found = self._look(candidate, walked[-1][1] if walked else tuple(self._layers))
            if found is None:
                return None
            if stat.S_ISLNK(found.stat.st_mode):
                links += 1
                if links > _MAX_LINKS:
                    return None
                target = self._readlink(found)
                if target.startswith("/"):
                    walked = []
                    here = self._top()
                pending.extend(piece for piece in reversed(target.split("/")) if piece not in ("", "."))
                continue
            here = found
            if found.is_directory:
                walked.append((candidate, found.layers))
            elif pending:
                return None
        return here

    def read(self, path: str, limit: int) -> str | None:
        """The text of a regular file; None if there is none. Raises System if it is longer than ``limit`` bytes."""
        entry = self.find(path)
        if entry is None or not entry.is_file:
            return None
        if entry.stat.st_size > limit:
            raise System(f"/{entry.path} is too large to be read: {entry.stat.st_size} bytes")
        descriptor = self._open(entry.layers[0], entry.path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            text = b""
            while len(text) <= limit and (block := os.read(descriptor, 1 << 20)):
                text += block
        finally:
            os.close(descriptor)
        return text.decode(errors="surrogateescape")

    def names(self, entry: Entry) -> set[str]:
        """The names in a folder, whiteouts taken into account."""
        found: set[str] = set()
        hidden: set[str] = set()
        for layer in entry.layers:
            descriptor = self._open(layer, entry.path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                with os.scandir(descriptor) as listing:
                    here = [(item.name, item.stat(follow_symlinks=False)) for item in listing]
            finally:
                os.close(descriptor)
            for name, information in here:
                if name in found or name in hidden:
                    continue
                (hidden if _is_whiteout(information) else found).add(name)
        return found

    def _top(self) -> Entry:
        layers = tuple(self._layers)
        return Entry("", os.fstat(self._root(layers[0])), layers)

    def _again(self, walked: list[tuple[str, tuple[str, ...]]]) -> Entry:
        if not walked:
            return self._top()
        path, layers = walked[-1]
        found = self._look(path, layers)
        return found if found is not None else self._top()

    def _look(self, path: str, layers: tuple[str, ...]) -> Entry | None:
        """Merge one name over the layers that hold its parent."""
        folders: list[str] = []
        first: os.stat_result | None = None
        for layer in layers:
            try:
                descriptor = self._open(layer, path, os.O_PATH | os.O_NOFOLLOW)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    continue
                raise System(f"cannot look up /{path} in layer {layer}: {os.strerror(error.errno or 0)}") from error
            try:
                information = os.fstat(descriptor)
                if _is_whiteout(information):
                    break
                if not stat.S_ISDIR(information.st_mode):
                    if folders:
                        break
                    return Entry(path, information, (layer,))
                first = first or information
                folders.append(layer)
                if _is_opaque(descriptor):
                    break
            finally:
                os.close(descriptor)
        return Entry(path, first, tuple(folders)) if first is not None else None

    def _readlink(self, entry: Entry) -> str:
        descriptor = self._open(entry.layers[0], entry.path, os.O_PATH | os.O_NOFOLLOW)
        try:
            return os.readlink("", dir_fd=descriptor)
        finally:
            os.close(descriptor)

    def _root(self, layer: str) -> int:
        descriptor = self._roots.get(layer)
        if descriptor is None:
            try:
                descriptor = os.open(layer, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError as error:
                raise System(f"cannot open layer {layer}: {os.strerror(error.errno or 0)}") from error
            self._roots[layer] = descriptor
        return descriptor

    def _open(self, layer: str, path: str, flags: int) -> int:
        resolve = RESOLVE_IN_ROOT
        if not flags & os.O_NOFOLLOW:
            resolve |= RESOLVE_NO_SYMLINKS
        return openat2(self._root(layer), path or ".", flags | os.O_CLOEXEC, resolve=resolve)


def _is_whiteout(information: os.stat_result) -> bool:
    return stat.S_ISCHR(information.st_mode) and information.st_rdev == 0


def _is_opaque(descriptor: int) -> bool:
    for name in ("trusted.overlay.opaque", "user.overlay.opaque"):
        try:
            # An O_PATH descriptor has no fgetxattr; its name in /proc does.
            if os.getxattr(f"/proc/self/fd/{descriptor}", name) == b"y":
                return True
        except OSError:
            continue
    return False
