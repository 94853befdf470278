"""Measuring and deleting trees whose makers are hostile: however deep, with one descriptor and no recursion.

A container can nest folders deeper than any path, any stack and any number of descriptors goes. So one descriptor moves
through the tree, down by name (never through a link) and up by "..", where it must find the folder it came from.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from seacan.errors import System

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def size(path: str) -> int:
    """Bytes in the files below a folder, each file once, folders not counted; 0 if it is not there."""
    total = 0
    seen: set[tuple[int, int]] = set()

    def file(found: os.stat_result, name: str, folder: int) -> None:
        nonlocal total
        if found.st_nlink > 1:
            if (found.st_dev, found.st_ino) in seen:
                return
            seen.add((found.st_dev, found.st_ino))
        total += found.st_size

    walk(path, file, lambda name, folder: None)
    return total


def remove(path: str) -> None:
    """Delete a folder and all that is in it; fine if it is not there. Raises OSError, or System if it is being
    changed."""

    def file(found: os.stat_result, name: str, folder: int) -> None:
        try:
            os.unlink(name, dir_fd=folder)
        except FileNotFoundError:
            pass

    walk(path, file, lambda name, folder: os.rmdir(name, dir_fd=folder))
    try:
        os.rmdir(path)
    except FileNotFoundError:
        pass


def walk(path: str, file: Callable[[os.stat_result, str, int], None], leave: Callable[[str, int], None]) -> None:
    """Call ``file`` for everything that is no folder, and ``leave`` for each folder inside after its content.

    Both get the name and a descriptor of the folder it is in. Raises System if the tree is being changed."""
    try:
        here = os.open(path, _FOLDER)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        stack = [_scan(here, file)]
        names: list[str] = []
        while True:
            _, folders = stack[-1]
            if folders:
                name = folders.pop()
                try:
                    inner = os.open(name, _FOLDER, dir_fd=here)
                except OSError as error:
                    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                        continue  # replaced meanwhile
                    raise
                os.close(here)
                here = inner
                stack.append(_scan(here, file))
                names.append(name)
                continue
            stack.pop()
            if not stack:
                return
            above = os.open("..", _FOLDER, dir_fd=here)
            os.close(here)
            here = above
            if _identity(here) != stack[-1][0]:
                raise System(f"{path} is being changed while it is walked")
            leave(names.pop(), here)
    finally:
        os.close(here)


def _scan(folder: int, file: Callable[[os.stat_result, str, int], None]) -> tuple[tuple[int, int], list[str]]:
    folders = []
    for name in os.listdir(folder):
        try:
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            continue
        if stat.S_ISDIR(found.st_mode):
            folders.append(name)
        else:
            file(found, name, folder)
    return _identity(folder), folders


def _identity(folder: int) -> tuple[int, int]:
    found = os.fstat(folder)
    return found.st_dev, found.st_ino
