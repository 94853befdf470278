"""Walks hostile trees by descriptor: no name is ever resolved through a link."""

from __future__ import annotations

import contextlib
import os
import stat

from seacan.errors import System
from seacan.linux.descent import FOLDER, Descent
from seacan.storage import tree
from seacan.storage.snapshots import Change, ChangeKind, Usage


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
    """What ``upper`` changes in the stack ``lowers`` (topmost first), as ``docker diff`` tells it.

    Raises OSError (ESTALE) where a container moves about the folders that are being looked at.
    """
    changes: list[Change] = []
    with contextlib.ExitStack() as opened:
        roots = []
        for root in (upper, *lowers):
            roots.append(os.open(root, FOLDER))
            opened.callback(os.close, roots[-1])
        descent = opened.enter_context(Descent(roots))
        walks = [("/", _compare_folder(descent, "/", list(range(1, len(roots))), changes))]
        while walks:
            path, folders = walks[-1]
            if not folders:
                walks.pop()
                if walks:
                    descent.up()
                continue
            name, below = folders.pop()
            descent.down()
            try:
                descent.step(0, name)
            except (FileNotFoundError, NotADirectoryError):
                descent.up()  # a running container has taken it away
                continue
            below = step_merged(descent, below, name)
            inner = f"{path}{name}/"
            if is_opaque(descent.here[0]):
                _report_hidden(descent.here[0], [descent.here[layer] for layer in below], inner, changes)
                below = []
            walks.append((inner, _compare_folder(descent, inner, below, changes)))
    return sorted(changes)


def _compare_folder(
    descent: Descent, path: str, below: list[int], changes: list[Change]
) -> list[tuple[str, list[int]]]:
    """Note the changes in one folder; gives the folders in it with the trees below that may have a part in them."""
    folders: list[tuple[str, list[int]]] = []
    lowers = [descent.here[layer] for layer in below]
    for name in os.listdir(descent.here[0]):
        try:
            info = os.stat(name, dir_fd=descent.here[0], follow_symlinks=False)
        except FileNotFoundError:
            continue
        here = path + name
        index, before = _find(lowers, name)
        if is_whiteout(info):
            if before is not None:
                changes.append(Change(here, ChangeKind.DELETED))
        elif stat.S_ISDIR(info.st_mode):
            changes.append(Change(here, ChangeKind.ADDED if before is None else ChangeKind.MODIFIED))
            shared = before is not None and stat.S_ISDIR(before.st_mode)
            folders.append((name, below[index:] if shared else []))
        elif before is None:
            changes.append(Change(here, ChangeKind.ADDED))
        elif not same(info, before):
            changes.append(Change(here, ChangeKind.MODIFIED))
    return folders


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


def step_merged(descent: Descent, trees: list[int], name: str) -> list[int]:
    """Let those of the trees (topmost first) go into ``name`` whose folders overlay would merge; gives which."""
    entered: list[int] = []
    for layer in trees:
        try:
            descent.step(layer, name)
        except FileNotFoundError:
            continue
        except OSError:
            break
        entered.append(layer)
        if is_opaque(descent.here[layer]):
            break
    return entered


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
