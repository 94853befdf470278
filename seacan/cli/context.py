"""The files of a build context: which of a folder are sent, in order, however deep they lie."""

from __future__ import annotations

import fnmatch
import os
import stat
from collections.abc import Iterable, Iterator, Sequence

from seacan.build.ignore import Matcher, read_ignore_file
from seacan.errors import InvalidParameter

_LINKS = 255
"""Symbolic links that are followed in one path."""

Parts = tuple[str, ...]


def read(path: str) -> bytes:
    """A file that the build cannot do without. :raises InvalidParameter:"""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise InvalidParameter(f"unable to prepare context: {path}: {(error.strerror or str(error)).lower()}") from None


def ignored(folder: str, dockerfile: str) -> list[str]:
    """The patterns of a context's ignore file, that of the Dockerfile itself before the common one."""
    for name in (f"{dockerfile}.dockerignore", ".dockerignore"):
        path = os.path.join(folder, name)
        if os.path.exists(path):
            return read_ignore_file(read(path))
    return []


def walk(folder: str, patterns: Iterable[str] = (), follow: Sequence[str] = ()) -> Iterator[str]:
    """Paths of a folder, parents first, siblings by name: those that ``patterns`` do not exclude.

    With ``follow`` only what is there and below (names may have wildcards, and links lead on), and the folders above.
    """
    matcher = Matcher(patterns)
    wanted = resolve(folder, follow)
    stack: list[Iterator[tuple[str, bool]]] = [_entries(folder, "")]
    while stack:
        path, is_folder = next(stack[-1], ("", False))
        if not path:
            stack.pop()
            continue
        if wanted and not _leads_to(tuple(path.split("/")), wanted):
            continue
        left_out = matcher.matches(path)
        if not left_out:
            yield path
        if is_folder and (not left_out or matcher.may_return_below(path)):
            stack.append(_entries(folder, path))


def _entries(folder: str, below: str) -> Iterator[tuple[str, bool]]:
    with os.scandir(os.path.join(folder, below)) as entries:
        found = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    return iter([(f"{below}/{name}" if below else name, is_folder) for name, is_folder in found])


def _leads_to(path: Parts, wanted: set[Parts]) -> bool:
    """Is it one of the wanted, or above or below one?"""
    return any(path[: len(each)] == each[: len(path)] for each in wanted)


def resolve(folder: str, follow: Sequence[str]) -> set[Parts]:
    """The paths that names lead to: wildcards expanded, and for each link on the way also where it points."""
    found: set[Parts] = set()
    pending = [(_parts(name), 0) for name in follow]
    while pending:
        parts, links = pending.pop()
        at: Parts = ()
        for number, part in enumerate(parts):
            rest = parts[number + 1 :]
            if any(each in part for each in "*?["):
                names = _names(os.path.join(folder, *at))
                pending += [((*at, name, *rest), links) for name in names if fnmatch.fnmatchcase(name, part)]
                break
            at = (*at, part)
            full = os.path.join(folder, *at)
            if not os.path.islink(full):
                continue
            found.add(at)
            target = os.readlink(full)
            above = () if target.startswith("/") else at[:-1]
            if links < _LINKS:
                pending.append((_parts("/".join((*above, target, *rest))), links + 1))
            break
        else:
            found.add(at)
    return found


def _parts(path: str) -> Parts:
    """The components of a path that cannot leave its root."""
    normal = os.path.normpath("/" + path).strip("/")
    return tuple(normal.split("/")) if normal else ()


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder) if stat.S_ISDIR(os.lstat(folder).st_mode) else []
    except OSError:
        return []
