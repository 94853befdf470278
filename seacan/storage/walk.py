"""Walks hostile trees by descriptor: no name is ever resolved through a link."""

from __future__ import annotations

import contextlib
import os
import stat

from seacan.errors import System
from seacan.storage import tree
from seacan.storage.snapshots import Change, ChangeKind, Usage

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def usage(root: str | os.PathLike[str]) -> Usage:
    """What a tree takes, as dockerd counts it: apparent sizes, folders not at all, every inode once.

    A container that moves folders about meanwhile is counted as far as the walk came: a figure is no reason to fail.
    """
    size = files = folders = 0
    seen: set[int] = set()

    def file(found: os.stat_result, name: str, folder: int) -> None:
        nonlocal size, files
        if found.st_nlink > 1:
            if found.st_ino in seen:
                return
            seen.add(found.st_ino)
        size += found.st_size
        files += 1

    def leave(name: str, folder: int) -> None:
        nonlocal folders
        folders += 1

    with contextlib.suppress(System, FileNotFoundError):
        tree.walk(os.fspath(root), file, leave)
    return Usage(size, files + folders + 1)


def is_whiteout(info: os.stat_result) -> bool:
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0


def is_opaque(descriptor: int) -> bool:
    """Whether a layer's folder hides what the lower layers have in it."""
    for name in ("trusted.overlay.opaque", "user.overlay.opaque"):
        with contextlib.suppress(OSError):
            if os.getxattr(descriptor, name) == b"y":
                return True
    return False


def overlay_changes(upper: str | os.PathLike[str], lowers: list[str]) -> list[Change]:
    """What ``upper`` changes in the stack ``lowers`` (topmost first), as ``docker diff`` tells it."""
    changes: list[Change] = []
    with contextlib.ExitStack() as open_folders:
        root = os.open(upper, _FOLDER)
        open_folders.callback(os.close, root)
        below = []
        for lower in lowers:
            descriptor = os.open(lower, _FOLDER)
            open_folders.callback(os.close, descriptor)
            below.append(descriptor)
        _compare_overlay(root, below, "/", changes)
    return sorted(changes)


def _compare_overlay(folder: int, below: list[int], path: str, changes: list[Change]) -> None:
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries)
    for name in names:
        try:
            info = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            continue
        here = path + name
        lower, lower_info = _find(below, name)
        if is_whiteout(info):
            if lower_info is not None:
                changes.append(Change(here, ChangeKind.DELETED))
            continue
        if not stat.S_ISDIR(info.st_mode):
            if lower_info is None:
                changes.append(Change(here, ChangeKind.ADDED))
            elif not same(info, lower_info):
                changes.append(Change(here, ChangeKind.MODIFIED))
            continue
        inner = os.open(name, _FOLDER, dir_fd=folder)
        inner_below: list[int] = []
        try:
            opaque = is_opaque(inner)
            if lower_info is None:
                changes.append(Change(here, ChangeKind.ADDED))
            else:
                changes.append(Change(here, ChangeKind.MODIFIED))
            if lower_info is not None and stat.S_ISDIR(lower_info.st_mode):
                inner_below = merged(below[lower:], name)
                if opaque:
                    _report_hidden(inner, inner_below, here + "/", changes)
                    close(inner_below)
                    inner_below = []
            _compare_overlay(inner, inner_below, here + "/", changes)
        finally:
            os.close(inner)
            close(inner_below)


def _report_hidden(folder: int, below: list[int], path: str, changes: list[Change]) -> None:
    """An opaque folder deletes whatever the lower layers show in it and it does not itself have."""
    hidden = merged_entries(below).keys() - set(os.listdir(folder))
    changes.extend(Change(path + name, ChangeKind.DELETED) for name in sorted(hidden))


def _find(below: list[int], name: str) -> tuple[int, os.stat_result | None]:
    """The index of the first layer that has ``name``, and what it is there (None: nowhere, or deleted)."""
    for index, descriptor in enumerate(below):
        try:
            info = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            continue
        return index, None if is_whiteout(info) else info
    return len(below), None


def merged(below: list[int], name: str) -> list[int]:
    """The folders called ``name`` that overlay would merge, topmost first."""
    found: list[int] = []
    for descriptor in below:
        try:
            inner = os.open(name, _FOLDER, dir_fd=descriptor)
        except FileNotFoundError:
            continue
        except OSError:
            break
        found.append(inner)
        if is_opaque(inner):
            break
    return found


def close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def merged_entries(below: list[int]) -> dict[str, tuple[int, os.stat_result]]:
    """What an overlay of these folders (topmost first) shows: name to the layer's index and its attributes there."""
    found: dict[str, tuple[int, os.stat_result]] = {}
    gone: set[str] = set()
    for index, descriptor in enumerate(below):
        for name in os.listdir(descriptor):
            if name in found or name in gone:
                continue
            info = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            if is_whiteout(info):
                gone.add(name)
            else:
                found[name] = (index, info)
        if is_opaque(descriptor):
            break
    return found


def same(one: os.stat_result, other: os.stat_result) -> bool:
    """dockerd's test of a file that was copied up and not changed."""
    return (
        one.st_mode == other.st_mode
        and one.st_uid == other.st_uid
        and one.st_gid == other.st_gid
        and one.st_rdev == other.st_rdev
        and one.st_size == other.st_size
        and one.st_mtime_ns == other.st_mtime_ns
    )


def same_folder(one: os.stat_result, other: os.stat_result) -> bool:
    """Folders are alike whatever their size and time."""
    return one.st_mode == other.st_mode and one.st_uid == other.st_uid and one.st_gid == other.st_gid
