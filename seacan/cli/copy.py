"""``seacan cp``: files between a container and here, as tar through the archive endpoints.

Semantics are docker's: whether the destination exists, is a folder, or ends in "/" decides what the copy is called; a
source that ends in "/." means the folder's contents.
"""

from __future__ import annotations

import base64
import io
import json
import os
import posixpath
import sys
import tarfile
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

from seacan.cli.client import APIError, Client, Response
from seacan.cli.command import command, switch, warn
from seacan.errors import InvalidParameter

if TYPE_CHECKING:
    from typing_extensions import Buffer

_CHUNK = 1 << 18


def split(argument: str) -> tuple[str, str]:
    """``container:path`` → (container, path); a local path has no container."""
    if argument == "-" or argument.startswith(("/", ".")):
        return "", argument
    name, colon, path = argument.partition(":")
    return (name, path) if colon else ("", argument)


@command("cp", "CONTAINER:SRC_PATH DEST_PATH|- | SRC_PATH|- CONTAINER:DEST_PATH", exactly=2)
@switch("archive", "Archive mode (copy all uid/gid information)", short="a")
@switch("follow-link", "Always follow symbol link in SRC_PATH", short="L")
@switch("quiet", "Suppress progress output during copy", short="q")
def cp(client: Client, arguments: list[str], *, archive: bool, follow_link: bool, quiet: bool) -> None:
    """Copy files/folders between a container and the local filesystem"""
    (source, source_path), (target, target_path) = split(arguments[0]), split(arguments[1])
    if source and target:
        raise InvalidParameter("copying between containers is not supported")
    if not source and not target:
        raise InvalidParameter("must specify at least one container source")
    if source:
        _from_container(client, source, source_path, target_path, follow_link)
        told = target_path
    else:
        _to_container(client, target, source_path, target_path, archive, follow_link)
        told = f"{target}:{target_path}"
    if not quiet and "-" not in arguments and sys.stderr.isatty():
        warn(f"Successfully copied to {told}")


def _stat(response: Response) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(base64.b64decode(response.headers["x-docker-container-path-stat"]))
    return found


_GO_DIR, _GO_SYMLINK = 1 << 31, 1 << 27
"""os.ModeDir and os.ModeSymlink in Go's FileMode, which the header carries."""


# --- out of a container --------------------------------------------------------------------------------------------


def _from_container(client: Client, container: str, path: str, target: str, follow: bool) -> None:
    if follow:
        with client.request("HEAD", f"/containers/{container}/archive", {"path": path}) as response:
            stat = _stat(response)
            if stat["mode"] & _GO_SYMLINK and stat.get("linkTarget"):
                path = posixpath.join(posixpath.dirname(path), stat["linkTarget"])
    with client.request("GET", f"/containers/{container}/archive", {"path": path}) as response:
        if target == "-":
            for chunk in response.chunks():
                sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
            return
        _extract(response, _stat(response), path, target)


def _extract(response: Response, stat: dict[str, Any], path: str, target: str) -> None:
    is_folder = bool(stat["mode"] & _GO_DIR)
    contents_only = path.endswith("/.")
    parent = os.path.dirname(target.rstrip("/")) or "."
    if os.path.isdir(target):
        if contents_only:
            folder, name = target, "."
        else:
            folder, name = target, stat["name"]
    elif os.path.lexists(target):
        if is_folder:
            raise InvalidParameter(f"cannot copy directory onto existing file: {target}")
        folder, name = parent, os.path.basename(target)
    else:
        if not os.path.isdir(parent):
            raise InvalidParameter(f'invalid output path: directory "{parent}" does not exist')
        if target.endswith("/") and not is_folder:
            raise InvalidParameter(f"{target}: no such directory")
        folder, name = parent, os.path.basename(target.rstrip("/"))
    stream = io.BufferedReader(_Chunks(response.chunks()), _CHUNK)
    with tarfile.open(fileobj=stream, mode="r|") as tar:
        tar.extractall(folder, members=_renamed(tar, name), filter=_safe)  # noqa: S202 – the filter confines it


def _renamed(tar: tarfile.TarFile, name: str) -> Iterator[tarfile.TarInfo]:
    """The members with their first path element replaced."""
    for member in tar:
        _, _, rest = member.name.strip("/").partition("/")
        renamed = posixpath.normpath(posixpath.join(name, rest))
        if member.islnk():
            _, _, linked = member.linkname.strip("/").partition("/")
            member.linkname = posixpath.normpath(posixpath.join(name, linked))
        member.name = renamed
        yield member


def _safe(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    """What a container says is hostile: nothing is written outside ``folder``, and devices are left out."""
    if member.ischr() or member.isblk() or member.isfifo():
        return None
    checked = tarfile.tar_filter(member, folder)
    return checked.replace(mode=member.mode & 0o777, uid=os.getuid(), gid=os.getgid(), uname="", gname="", deep=False)


class _Chunks(io.RawIOBase):
    """Chunks as a file that tarfile can read."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        target = memoryview(buffer).cast("B")
        count = min(len(target), len(self._rest))
        target[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


# --- into a container ----------------------------------------------------------------------------------------------


def _to_container(client: Client, container: str, source: str, target: str, archive: bool, follow: bool) -> None:
    stat = _container_stat(client, container, target)
    if stat is not None and stat["mode"] & _GO_SYMLINK and stat.get("linkTarget"):
        link = stat["linkTarget"]
        target = link if link.startswith("/") else posixpath.join(posixpath.dirname(target), link)
        stat = _container_stat(client, container, target)
    is_folder = stat is not None and bool(stat["mode"] & _GO_DIR)
    query = {"copyUIDGID": archive, "noOverwriteDirNonDir": True}
    if source == "-":
        if not is_folder:
            raise InvalidParameter(f'destination "{container}:{target}" must be a directory')
        _put(client, container, {**query, "path": target}, sys.stdin.buffer)
        return
    contents_only = source.endswith("/.")
    if follow and not contents_only:
        source = os.path.realpath(source)
    if not os.path.lexists(source):
        raise InvalidParameter(f"lstat {source}: no such file or directory")
    from_folder = os.path.isdir(source) and (contents_only or not os.path.islink(source))
    if is_folder:
        folder, name = target, "." if contents_only else os.path.basename(os.path.abspath(source))
    elif stat is not None:
        if from_folder:
            raise InvalidParameter(f'cannot overwrite non-directory "{container}:{target}" with directory "{source}"')
        folder, name = posixpath.dirname(target) or "/", posixpath.basename(target)
    else:
        if target.endswith("/") and not from_folder:
            raise InvalidParameter(f'destination directory "{container}:{target}" does not exist')
        clean = target.rstrip("/")
        folder, name = posixpath.dirname(clean) or "/", posixpath.basename(clean)
    import tempfile

    with tempfile.TemporaryFile(dir="/var/tmp") as spool:
        with tarfile.open(fileobj=spool, mode="w", format=tarfile.PAX_FORMAT) as tar:
            tar.add(source.rstrip("/") or "/", arcname=name)
        spool.seek(0)
        _put(client, container, {**query, "path": folder}, spool)


def _container_stat(client: Client, container: str, path: str) -> dict[str, Any] | None:
    try:
        with client.request("HEAD", f"/containers/{container}/archive", {"path": path}) as response:
            return _stat(response)
    except APIError as error:
        if error.status != 404:
            raise
        client.get(f"/containers/{container}/json")  # says so if it is the container that is missing
        return None


def _put(client: Client, container: str, query: dict[str, Any], body: IO[bytes]) -> None:
    headers = {"Content-Type": "application/x-tar"}
    path = f"/containers/{container}/archive"
    with client.request("PUT", path, query, body=body, headers=headers) as response:
        response.read()
