"""Path resolution inside a tree that its owner may be rearranging at this moment (CVE-2021-30465 and its family).

Everything is relative to a descriptor of the tree's root, which ``..`` and symbolic links cannot leave: absolute links
start from that root again. The result is a descriptor, to be used itself, never turned back into a path.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys
from typing import Final

from seacan.linux.syscalls import (
    AT_EMPTY_PATH,
    OPEN_TREE_CLONE,
    RESOLVE_BENEATH,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    fail,
    libc,
    open_tree,
    openat2,
)

_MAX_LINKS: Final = 40


def open_in_root(root: int, path: str, flags: int = os.O_PATH, mode: int = 0) -> int:
    """openat2(2) with RESOLVE_IN_ROOT; magic links of procfs are refused (ELOOP)."""
    return openat2(root, path or ".", flags, mode=mode, resolve=RESOLVE_IN_ROOT)


def part_of(top: int, subpath: str, flags: int = 0) -> int:
    """A detached copy of the mount below the folder ``top``, of which only what ``subpath`` names is seen.

    Links are followed as long as they do not lead out (EXDEV). ``flags`` may be AT_RECURSIVE. Before Linux 6.15 the
    mount must be attached in the caller's namespace (EINVAL). Errors are in dockerd's words.
    """
    try:
        found = openat2(top, subpath, os.O_PATH | os.O_CLOEXEC, resolve=RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS)
    except OSError as error:
        cause = f"cannot access path {subpath}: {(error.strerror or '').lower()}"
        if error.errno == errno.EXDEV:
            cause = f"path concatenation escapes the base directory, subpath: {subpath}"
        raise OSError(error.errno, cause, subpath) from error
    try:
        return open_tree(found, "", OPEN_TREE_CLONE | AT_EMPTY_PATH | flags)
    finally:
        os.close(found)


def make_in_root(root: int, path: str, *, directory: bool = True, mode: int = 0o755, file_mode: int = 0o755) -> int:
    """An O_PATH descriptor of ``path``, which is made with its parents where missing.

    Dangling links are followed as if their target existed, so an image's ``/etc/resolv.conf -> ../run/x`` gets a file
    in ``/run``. What exists is returned whatever its kind.
    """
    try:
        return open_in_root(root, path)
    except FileNotFoundError:
        pass
    with _Walk(root) as walk:
        return walk.make(path, directory, mode, file_mode)


class _Walk:
    """One component at a time, each opened relative to its parent's descriptor without following a link."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._stack: list[int] = []

    def __enter__(self) -> _Walk:
        return self

    def __exit__(self, *exception: object) -> None:
        for fd in self._stack:
            os.close(fd)

    @property
    def _here(self) -> int:
        return self._stack[-1] if self._stack else self._root

    def make(self, path: str, directory: bool, mode: int, file_mode: int) -> int:
        remaining = [part for part in path.split("/") if part not in ("", ".")]
        remaining.reverse()
        links = 0
        while remaining:
            name = remaining.pop()
            if name == "..":
                if self._stack:
                    os.close(self._stack.pop())
                continue
            last = not any(part != "." for part in remaining)
            fd = self._step(name, directory or not last, mode, file_mode)
            kind = os.fstat(fd).st_mode
            if stat.S_ISLNK(kind):
                links += 1
                target = os.readlink("", dir_fd=fd)
                os.close(fd)
                if links > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                if target.startswith("/"):
                    while self._stack:
                        os.close(self._stack.pop())
                remaining.extend(reversed([part for part in target.split("/") if part not in ("", ".")]))
                continue
            self._stack.append(fd)
            if remaining and not stat.S_ISDIR(kind):
                raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        return os.dup(self._here)

    def _step(self, name: str, directory: bool, mode: int, file_mode: int) -> int:
        flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return os.open(name, flags, dir_fd=self._here)
        except FileNotFoundError:
            pass
        try:
            if directory:
                os.mkdir(name, mode, dir_fd=self._here)
            else:
                create = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                os.close(os.open(name, create, file_mode, dir_fd=self._here))
        except FileExistsError:
            pass  # somebody else was faster; whatever it is gets looked at
        return os.open(name, flags, dir_fd=self._here)


_FSTYPES = {"proc": 0x9FA0, "sysfs": 0x62656572, "devpts": 0x1CD1, "tmpfs": 0x01021994, "cgroup2": 0x63677270}


def is_on(fd: int, fstype: str) -> bool:
    """Whether the object of ``fd`` lies on a file system of that type (fstatfs(2))."""
    return filesystem_magic(fd) == _FSTYPES[fstype]


def filesystem_magic(fd: int) -> int:
    """``f_type`` of fstatfs(2)."""
    buffer = ctypes.create_string_buffer(256)
    if libc.fstatfs(ctypes.c_int(fd), buffer) < 0:
        raise fail(fd)
    return int.from_bytes(buffer.raw[: ctypes.sizeof(ctypes.c_long)], sys.byteorder)
