"""Work on files for COPY, ADD and WORKDIR, and the digests of what they would copy. Runs in a worker process.

Base and sources are file systems that the image, the context and the build's own commands have written: hostile. They
are detached mounts (in no namespace, on no path), every path is resolved inside them by ``openat2``, and trees are
walked by descriptor without following links. Archives are unpacked in a child that is chrooted into the destination.

What lands in a part of the destination that no layer below has is written to the upper folder directly, past overlay,
and files of a build context that need no new owner, mode or time become hard links: both folders are never written to
again, so the copy of a large context costs one link per file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import resource
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from seacan.build.ignore import Matcher, ParentMatches, clean, glob, has_wildcards
from seacan.errors import InvalidParameter, SeacanError
from seacan.linux.paths import open_in_root
from seacan.linux.syscalls import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2
from seacan.runtime.bundle import DirectoryRoot, OverlayRoot, Rootfs
from seacan.runtime.rootfs import mount_root
from seacan.storage import tar, tree, worker
from seacan.storage.compression import expand
from seacan.storage.walk import is_opaque

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_LINKS_LIMIT = 40
_BLOCK = 1 << 20
_INTERNAL_XATTRS = ("trusted.overlay.", "user.overlay.", "system.nfs4_acl")


class SourceRoot(msgspec.Struct, frozen=True):
    """A tree to copy from. ``index`` is a file that remembers digests of files by inode."""

    rootfs: Rootfs | None
    index: str = ""
    links: str = ""
    """For a plain folder that nobody changes in place: a file that remembers which layers its files are linked into."""


class CopyAction(msgspec.Struct, frozen=True, tag="copy"):
    """:class:`seacan.build.graph.CopyFiles`; ``source`` indexes the request's sources."""

    source: int
    path: str
    destination: str
    owner: str = ""
    mode: str = ""
    follow: bool = True
    contents: bool = True
    unpack: bool = False
    wildcards: bool = True
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    required: tuple[str, ...] = ()


class FolderAction(msgspec.Struct, frozen=True, tag="folder"):
    """:class:`seacan.build.graph.MakeDirectory`."""

    path: str
    mode: int = 0o755
    owner: str = ""


class FilesRequest(msgspec.Struct, frozen=True):
    """Carry out ``actions`` on ``lower`` (topmost first), writing into ``upper``.

    ``epoch`` (seconds) is the latest time a file may have. ``work`` is an empty folder for overlay's own use.
    """

    lower: tuple[str, ...]
    upper: str
    work: str
    sources: tuple[SourceRoot, ...]
    actions: tuple[CopyAction | FolderAction, ...]
    epoch: int | None = None
    classic: bool = False
    detached: bool = False
    """The result will be laid on layers that are not known here."""


class FilesResult(msgspec.Struct, frozen=True):
    files: int


class ChecksumRequest(msgspec.Struct, frozen=True):
    """What ``action`` would copy of ``source``."""

    source: SourceRoot
    action: CopyAction
    classic: bool = False


class ChecksumResult(msgspec.Struct, frozen=True):
    digest: str


class ClampRequest(msgspec.Struct, frozen=True):
    """Lower every time in the folder to ``epoch`` seconds."""

    folder: str
    epoch: int


class CloneRequest(msgspec.Struct, frozen=True):
    """Make ``target`` (which does not exist) another folder with the files of ``source``."""

    source: str
    target: str


class SquashRequest(msgspec.Struct, frozen=True):
    """Put ``layers`` (lowest first) together in ``target``, marks of deletion kept: what is below is not known here."""

    layers: tuple[str, ...]
    target: str


class Missing(InvalidParameter):
    """A path to copy does not exist."""


def main(argument: str, fds: Sequence[int]) -> int:
    """The worker that copies."""
    return worker.answer(_work, FilesRequest, argument, fds)


def checksum_main(argument: str, fds: Sequence[int]) -> int:
    """The worker that computes digests."""
    return worker.answer(_checksum, ChecksumRequest, argument, fds)


def clamp_main(argument: str, fds: Sequence[int]) -> int:
    """The worker that clamps times."""
    return worker.answer(_clamp, ClampRequest, argument, fds)


def clone_main(argument: str, fds: Sequence[int]) -> int:
    """The worker that clones a layer's folder."""
    return worker.answer(_clone, CloneRequest, argument, fds)


def squash_main(argument: str, fds: Sequence[int]) -> int:
    """The worker that squashes."""
    return worker.answer(_squash, SquashRequest, argument, fds)


def _squash(request: SquashRequest, _: Sequence[int]) -> FilesResult:
    count = 0
    with _closing(os.open(request.target, _FOLDER)) as target:
        for layer in request.layers:
            with _closing(os.open(layer, _FOLDER)) as source:
                count += _squash_folder(source, target, {})
    return FilesResult(count)


def _squash_folder(source: int, target: int, seen: dict[int, tuple[int, str]]) -> int:
    """Lay one folder of a layer over what the layers before it came to."""
    count = 0
    if is_opaque(source):
        _empty(target)
    with os.scandir(source) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_folder in found:
        count += 1
        try:
            existing = os.stat(name, dir_fd=target, follow_symlinks=False)
        except FileNotFoundError:
            existing = None
        hides = existing is not None and not stat.S_ISDIR(existing.st_mode)
        if existing is not None and not (is_folder and not hides):
            _remove(target, name)
            existing = None
        if not is_folder:
            _clone_file(source, target, name, seen)
            continue
        if existing is None:
            os.mkdir(name, 0o700, dir_fd=target)
        with (
            _closing(os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=source)) as inner,
            _closing(os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=target)) as below,
        ):
            if hides:  # what it replaces must not shine through from further down
                os.setxattr(below, "trusted.overlay.opaque", b"y")
            count += _squash_folder(inner, below, seen)
    info = os.fstat(source)
    os.fchown(target, info.st_uid, info.st_gid)
    os.fchmod(target, stat.S_IMODE(info.st_mode))
    for key in os.listxattr(source):
        os.setxattr(target, key, os.getxattr(source, key))
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))
    return count


def _empty(folder: int) -> None:
    for name in os.listdir(folder):
        _remove(folder, name)


def _remove(folder: int, name: str) -> None:
    if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        with _closing(os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)) as inner:
            _empty(inner)
        os.rmdir(name, dir_fd=folder)
    else:
        os.unlink(name, dir_fd=folder)


def _clone(request: CloneRequest, _: Sequence[int]) -> FilesResult:
    os.mkdir(request.target, 0o700)
    with _closing(os.open(request.source, _FOLDER)) as source, _closing(os.open(request.target, _FOLDER)) as target:
        return FilesResult(_clone_folder(source, target, {}))


def _clone_file(source: int, target: int, name: str, seen: dict[int, tuple[int, str]]) -> None:
    """Copy a file of a layer, overlay's marks and links among the layer's own files included."""
    info = os.stat(name, dir_fd=source, follow_symlinks=False)
    earlier = seen.get(info.st_ino)
    if earlier is not None:
        os.link(earlier[1], name, src_dir_fd=earlier[0], dst_dir_fd=target, follow_symlinks=False)
        return
    if info.st_nlink > 1:
        seen[info.st_ino] = (os.dup(target), name)
    if stat.S_ISREG(info.st_mode):
        opened = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
        made = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=target)
        with _closing(opened), _closing(made):
            copy_data(opened, made, info.st_size)
            os.fchown(made, info.st_uid, info.st_gid)
            os.fchmod(made, stat.S_IMODE(info.st_mode))
            for key in os.listxattr(opened):
                os.setxattr(made, key, os.getxattr(opened, key))
            os.utime(made, ns=(info.st_atime_ns, info.st_mtime_ns))
        return
    if stat.S_ISLNK(info.st_mode):
        os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
    else:
        os.mknod(name, info.st_mode, info.st_rdev, dir_fd=target)
        os.chmod(name, stat.S_IMODE(info.st_mode), dir_fd=target)
    os.chown(name, info.st_uid, info.st_gid, dir_fd=target, follow_symlinks=False)
    os.utime(name, ns=(info.st_atime_ns, info.st_mtime_ns), dir_fd=target, follow_symlinks=False)


def _clone_folder(source: int, target: int, seen: dict[int, tuple[int, str]]) -> int:
    count = 0
    with os.scandir(source) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_folder in found:
        count += 1
        if not is_folder:
            _clone_file(source, target, name, seen)
            continue
        os.mkdir(name, 0o700, dir_fd=target)
        with (
            _closing(os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=source)) as inner,
            _closing(os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=target)) as copy,
        ):
            count += _clone_folder(inner, copy, seen)
    info = os.fstat(source)
    os.fchown(target, info.st_uid, info.st_gid)
    os.fchmod(target, stat.S_IMODE(info.st_mode))
    for key in os.listxattr(source):
        os.setxattr(target, key, os.getxattr(source, key))
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))
    return count


def _clamp(request: ClampRequest, _: Sequence[int]) -> FilesResult:
    limit = request.epoch * 10**9
    count = 0
    for _path, folders, files, descriptor in os.fwalk(request.folder, topdown=False, follow_symlinks=False):
        for name in (*files, *folders):
            info = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            if info.st_mtime_ns > limit:
                os.utime(name, ns=(limit, limit), dir_fd=descriptor, follow_symlinks=False)
                count += 1
    if os.stat(request.folder).st_mtime_ns > limit:
        os.utime(request.folder, ns=(limit, limit))
    return FilesResult(count)


# --- selecting what is copied -----------------------------------------------------------------------------------


@dataclass
class _Selected:
    """One match of a source path: an O_PATH descriptor, and the name it has in the destination."""

    descriptor: int
    name: str
    info: os.stat_result


def _open_source(source: SourceRoot) -> int:
    if source.rootfs is None:
        raise Missing("no such file or directory: the source is empty")
    if isinstance(source.rootfs, DirectoryRoot):
        return os.open(source.rootfs.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return mount_root(source.rootfs)


def _open_no_follow(root: int, path: str) -> int:
    """The last component is not followed; those before it are, inside ``root``."""
    folder, _, name = path.rstrip("/").rpartition("/")
    parent = open_in_root(root, folder or "/", os.O_PATH | os.O_DIRECTORY)
    try:
        return os.open(name or ".", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    finally:
        os.close(parent)


def _select(root: int, action: CopyAction, classic: bool) -> Iterator[_Selected]:
    path = clean("/" + action.path)
    if not action.wildcards or not has_wildcards(path):
        yield _one(root, path, action, classic)
        return
    parts = path.split("/")
    fixed = next(number for number, part in enumerate(parts) if has_wildcards(part))
    start = "/".join(parts[:fixed]) or "/"
    try:
        folder = open_in_root(root, start, _FOLDER)
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(action.path, classic) from None
    except OSError as error:
        raise InvalidParameter(f"opening {start} of the source: {error.strerror}") from None
    found = False
    with _closing(folder):
        for name in _matches(folder, parts[fixed:]):
            found = True
            yield _one(root, f"{start.rstrip('/')}/{name}", action, classic)
    if not found and classic:
        raise Missing("no source files were specified")


def _matches(folder: int, patterns: Sequence[str]) -> Iterator[str]:
    """Paths below ``folder`` that match, component by component, in order."""
    pattern = glob(patterns[0])
    with os.scandir(folder) as entries:
        names = sorted(
            (entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries if pattern.match(entry.name)
        )
    for name, is_folder in names:
        if len(patterns) == 1:
            yield name
        elif is_folder:
            with _closing(os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)) as inner:
                for below in _matches(inner, patterns[1:]):
                    yield f"{name}/{below}"


def _one(root: int, path: str, action: CopyAction, classic: bool) -> _Selected:
    try:
        descriptor = open_in_root(root, path, os.O_PATH) if action.follow else _open_no_follow(root, path)
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(path, classic) from None
    except OSError as error:
        raise InvalidParameter(f'"{path}": {error.strerror}') from None
    return _Selected(descriptor, path.rstrip("/").rpartition("/")[2], os.fstat(descriptor))


def _missing(path: str, classic: bool) -> Missing:
    if classic:
        return Missing(
            f"file not found in build context or excluded by .dockerignore: stat {path.lstrip('/')}: "
            "file does not exist"
        )
    return Missing(f'"{clean("/" + path)}": not found')


@contextlib.contextmanager
def _closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


# --- digests ----------------------------------------------------------------------------------------------------


class _Index:
    """Digests of files by inode number, time and size, so that what did not change is not read again.

    Only for folders whose files are replaced, never changed: those that a client's context is kept in. (The change time
    would not do, because a hard link of a file changes it.)
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.known: dict[int, tuple[int, int, bytes]] = {}
        self.dirty = False
        if path:
            with contextlib.suppress(OSError, msgspec.DecodeError), open(path, "rb") as file:
                self.known = msgspec.msgpack.decode(file.read(), type=dict[int, tuple[int, int, bytes]])

    def digest(self, info: os.stat_result, open_file: Callable[[], int]) -> bytes:
        known = self.known.get(info.st_ino)
        if known is not None and known[0] == info.st_mtime_ns and known[1] == info.st_size:
            return known[2]
        with open(open_file(), "rb", buffering=0) as file:
            value = hashlib.file_digest(file, "sha256").digest()
        if self.path:
            self.known[info.st_ino] = (info.st_mtime_ns, info.st_size, value)
            self.dirty = True
        return value

    def save(self) -> None:
        if not self.dirty:
            return
        temporary = f"{self.path}.{os.getpid()}"
        with open(temporary, "wb") as file:
            file.write(msgspec.msgpack.encode(self.known))
        os.rename(temporary, self.path)


def _checksum(request: ChecksumRequest, _: Sequence[int]) -> ChecksumResult:
    action = request.action
    index = _Index(request.source.index)
    total = hashlib.sha256()
    with _closing(_open_source(request.source)) as root:
        _require(root, action, request.classic)
        for selected in _select(root, action, request.classic):
            with _closing(selected.descriptor):
                if stat.S_ISDIR(selected.info.st_mode):
                    # Only a folder that is copied as such lends its name and attributes.
                    name = b"" if action.contents else os.fsencode(selected.name)
                    total.update(b"D" + name + b"\0")
                    folder = os.open(f"/proc/self/fd/{selected.descriptor}", _FOLDER)
                    with _closing(folder):
                        _hash_folder(folder, "", _Filter.of(action), (), (), total, index)
                else:
                    total.update(os.fsencode(selected.name) + b"\0")
                    _hash_entry(selected.info, f"/proc/self/fd/{selected.descriptor}", None, total, index)
    index.save()
    return ChecksumResult(total.hexdigest())


def _hash_folder(
    folder: int,
    path: str,
    filter: _Filter,
    included: ParentMatches,
    excluded: ParentMatches,
    total: hashlib._Hash,
    index: _Index,
) -> bool:
    """Digest what is selected below; True if anything is."""
    any_selected = False
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: os.fsencode(entry.name))
    for entry in found:
        here = f"{path}/{entry.name}" if path else entry.name
        take, below, below_included, below_excluded = filter.check(here, included, excluded)
        info = entry.stat(follow_symlinks=False)
        if stat.S_ISDIR(info.st_mode):
            if not take and not below:
                continue
            inner_total = hashlib.sha256()
            inside = False
            if below:
                with _closing(os.open(entry.name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)) as inner:
                    inside = _hash_folder(inner, here, filter, below_included, below_excluded, inner_total, index)
            if take or inside:
                any_selected = True
                total.update(b"d" + os.fsencode(here) + b"\0")
                _hash_attributes(info, folder, entry.name, total)
                total.update(inner_total.digest())
        elif take:
            any_selected = True
            total.update(os.fsencode(here) + b"\0")
            _hash_entry(info, entry.name, folder, total, index)
    return any_selected


def _hash_entry(info: os.stat_result, name: str, folder: int | None, total: hashlib._Hash, index: _Index) -> None:
    _hash_attributes(info, folder, name, total)
    kind = stat.S_IFMT(info.st_mode)
    if kind == stat.S_IFREG:
        total.update(
            index.digest(
                info,
                lambda: os.open(
                    name, os.O_RDONLY | os.O_CLOEXEC | (os.O_NOFOLLOW if folder is not None else 0), dir_fd=folder
                ),
            )
        )
    elif kind == stat.S_IFLNK:
        target = os.readlink(name, dir_fd=folder) if folder is not None else _read_own_link(name)
        total.update(os.fsencode(target) + b"\0")
    else:
        total.update(str(info.st_rdev).encode())


def _read_own_link(name: str) -> str:
    """The target of the link that an O_PATH descriptor ``/proc/self/fd/N`` is."""
    return os.readlink("", dir_fd=int(name.rpartition("/")[2]))


def _hash_attributes(info: os.stat_result, folder: int | None, name: str, total: hashlib._Hash) -> None:
    total.update(b"%d:%d:%d:" % (info.st_mode, info.st_uid, info.st_gid))
    for key, value in _xattrs(folder, name, info):
        total.update(key.encode("utf-8", "surrogateescape") + b"=" + value + b"\0")


def _xattrs(folder: int | None, name: str, info: os.stat_result) -> list[tuple[str, bytes]]:
    if stat.S_ISLNK(info.st_mode):
        return []
    path = name if folder is None else f"/proc/self/fd/{folder}/{name}"
    follow = folder is None
    try:
        names = os.listxattr(path, follow_symlinks=follow)
        return [
            (key, os.getxattr(path, key, follow_symlinks=follow))
            for key in sorted(names)
            if not key.startswith(_INTERNAL_XATTRS)
        ]
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.ENODATA, errno.EPERM, errno.EACCES):
            return []
        raise


@dataclass(frozen=True)
class _Filter:
    """``--exclude`` and the patterns of ``--parents``."""

    include: Matcher | None
    exclude: Matcher | None

    @classmethod
    def of(cls, action: CopyAction) -> _Filter:
        return cls(
            Matcher(action.include) if action.include else None, Matcher(action.exclude) if action.exclude else None
        )

    def check(
        self, path: str, included: ParentMatches, excluded: ParentMatches
    ) -> tuple[bool, bool, ParentMatches, ParentMatches]:
        """Take it? Look below it? And what the patterns said, for what is below."""
        take = True
        below = True
        if self.include is not None:
            take, included = self.include.matches_below(path, included)
        if self.exclude is not None:
            out, excluded = self.exclude.matches_below(path, excluded)
            if out:
                take = False
                below = self.exclude.may_return_below(path)
        return take, below, included, excluded


# --- owners and modes -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Attributes:
    """What a copy changes of what it copies. ``owner`` and ``mode`` None keep what is there."""

    owner: tuple[int, int] | None
    mode: Callable[[int], int] | None
    octal: int | None
    latest: int | None
    """Nanoseconds."""

    def time(self, nanoseconds: int) -> int:
        return nanoseconds if self.latest is None else min(nanoseconds, self.latest)

    @property
    def keeps(self) -> bool:
        return self.owner is None and self.mode is None


def parse_owner(root: int | None, text: str, *, strict: bool) -> tuple[int, int] | None:
    """``user[:group]``, names looked up in the image's own files. A name that is not there is root's to BuildKit.

    :raises InvalidParameter: to the classic builder (``strict``) it is an error.
    """
    if not text:
        return None
    user, colon, group = text.partition(":")
    uid = gid = 0
    if user:
        if user.isdigit():
            uid = gid = _number(user)
        else:
            row = _lookup(root, "/etc/passwd", user)
            if row is not None and len(row) >= 4 and row[2].isdigit() and row[3].isdigit():
                uid, gid = _number(row[2]), _number(row[3])
            elif strict:
                raise InvalidParameter(
                    f"unable to convert uid/gid chown string to host mapping: can't find uid for user {user}: "
                    f"no such user: {user}"
                )
    if colon and group:
        if group.isdigit():
            gid = _number(group)
        else:
            row = _lookup(root, "/etc/group", group)
            if row is not None and len(row) >= 3 and row[2].isdigit():
                gid = _number(row[2])
            elif strict:
                raise InvalidParameter(
                    f"unable to convert uid/gid chown string to host mapping: can't find gid for group {group}: "
                    f"no such group: {group}"
                )
    return uid, gid


def _number(text: str) -> int:
    number = int(text[:11])
    if number >= 2**32 - 1:
        raise InvalidParameter(f"uids and gids must be in range 0-{2**31 - 1}")
    return number


def _lookup(root: int | None, path: str, name: str) -> list[str] | None:
    if root is None:
        return None
    try:
        descriptor = open_in_root(root, path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return None
        content = file.read(16 << 20)
    for line in content.decode("utf-8", "replace").split("\n"):
        fields = line.strip().split(":")
        if fields[0] == name:
            return fields
    return None


_CLAUSE = re.compile(r"([ugoa]*)((?:[-+=](?:[rwxXst]*|[ugo]))+)\Z")


def _octal(text: str) -> int | None:
    return int(text, 8) if text and not text.strip("01234567") else None


def parse_mode(text: str) -> Callable[[int], int] | None:
    """A change of mode: octal digits or chmod's symbols (umask 0)."""
    if not text:
        return None
    if (value := _octal(text)) is not None:
        return lambda _mode: value
    clauses = []
    for part in text.split(","):
        match = _CLAUSE.match(part)
        if match is None:
            raise InvalidParameter(f"invalid mode {text!r}")
        clauses.append((match[1] or "a", re.findall(r"([-+=])([ugo]|[rwxXst]*)", match[2])))

    def change(mode: int) -> int:
        is_folder = stat.S_ISDIR(mode)
        bits = stat.S_IMODE(mode)
        for who, operations in clauses:
            classes = "ugo" if "a" in who else who
            for operator, what in operations:
                value = clear = 0
                for each in classes:
                    shift = {"u": 6, "g": 3, "o": 0}[each]
                    clear |= 7 << shift
                    if what in ("u", "g", "o"):
                        value |= ((bits >> {"u": 6, "g": 3, "o": 0}[what]) & 7) << shift
                        continue
                    for letter in what:
                        if letter in "rwx":
                            value |= {"r": 4, "w": 2, "x": 1}[letter] << shift
                        elif letter == "X" and (is_folder or bits & 0o111):
                            value |= 1 << shift
                        elif letter == "s":
                            value |= {"u": stat.S_ISUID, "g": stat.S_ISGID}.get(each, 0)
                        elif letter == "t":
                            value |= stat.S_ISVTX
                if operator == "+":
                    bits |= value
                elif operator == "-":
                    bits &= ~value
                else:
                    bits = (bits & ~clear) | value
        return bits

    return change


# --- copying ----------------------------------------------------------------------------------------------------


def _require(root: int, action: CopyAction, classic: bool) -> None:
    for path in action.required:
        try:
            os.close(open_in_root(root, path, os.O_PATH))
        except OSError:
            raise _missing(path, classic) from None


def _work(request: FilesRequest, _: Sequence[int]) -> FilesResult:
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    destination = _Destination(request)
    try:
        for action in request.actions:
            if isinstance(action, FolderAction):
                owner = parse_owner(destination.root, action.owner, strict=request.classic)
                attributes = _Attributes(owner, None, None, destination.latest)
                destination.make_folders(action.path, action.mode, attributes)
                continue
            source = request.sources[action.source]
            with _closing(_open_source(source)) as root:
                _require(root, action, request.classic)
                _copy(destination, root, source, action, request.classic)
                destination.flush()
                if destination.links is not None:
                    destination.links.close()
                    destination.links = None
    finally:
        destination.close()
    if request.epoch is not None:
        _clamp(ClampRequest(request.upper, request.epoch), ())
    return FilesResult(destination.count)


class _Links:
    """Which files of a context are hard links in which layers.

    Two layers of one stack must not share an inode: in a container they would be one file with two names to whoever
    looks, such as tar. Layers are known by the inode of their root, which stays theirs wherever they are moved.
    """

    def __init__(self, path: str, stack: Sequence[str], upper: int) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        self._known: dict[int, list[int]] = {}
        self._stack = {os.stat(layer).st_ino for layer in stack}
        self._layer = os.fstat(upper).st_ino
        with contextlib.suppress(msgspec.DecodeError), open(self._descriptor, "rb", closefd=False) as file:
            self._known = msgspec.msgpack.decode(file.read(), type=dict[int, list[int]])

    def allowed(self, info: os.stat_result) -> bool:
        return info.st_nlink == 1 or not self._stack.intersection(self._known.get(info.st_ino, ()))

    def add(self, info: os.stat_result) -> None:
        known = self._known.get(info.st_ino, []) if info.st_nlink > 1 else []
        self._known[info.st_ino] = [*known, self._layer]

    def close(self) -> None:
        content = msgspec.msgpack.encode(self._known)
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, content, 0)
        os.close(self._descriptor)


@dataclass
class _Deferred:
    """Something that goes to a place in the destination which does not exist yet: ``parent`` is a path in the upper."""

    source: int
    name: str
    parent: str
    target: str


class _Destination:
    """The tree that is being changed: an overlay, or the upper folder alone where there is nothing below."""

    def __init__(self, request: FilesRequest) -> None:
        self.lower, self.upper, self.work = request.lower, request.upper, request.work
        self.latest = None if request.epoch is None else request.epoch * 10**9
        self.count = 0
        self.deferred: list[_Deferred] = []
        self.claimed: set[str] = set()
        """Names that deferred entries will have, wherever."""
        self.linked: set[int] = set()
        """Inodes that an earlier action linked here: to link them again would make hard links of two files."""
        self._descriptors: list[int] = []
        self._duplicated = (-1, -1)
        self.attributes: _Attributes | None = None
        self.filter: _Filter | None = None
        self.links: _Links | None = None
        self.classic = request.classic
        self.detached = request.detached
        self._root = -1
        self.upper_folder = os.open(self.upper, _FOLDER)

    @property
    def root(self) -> int:
        if self._root < 0:
            if self.lower:
                options = ("index=off", "redirect_dir=off", "metacopy=off")
                self._root = mount_root(OverlayRoot(self.lower, self.upper, self.work, options))
            else:
                self._root = os.dup(self.upper_folder)
        return self._root

    def close(self) -> None:
        if self._root >= 0:
            os.close(self._root)
            self._root = -1
        os.close(self.upper_folder)

    def make_folders(self, path: str, mode: int, attributes: _Attributes) -> list[str]:
        """Make ``path`` and what is missing above; gives what was made."""
        made: list[str] = []
        parts = [part for part in path.split("/") if part not in ("", ".")]
        here = "/"
        for number, part in enumerate(parts, 1):
            here = f"{here.rstrip('/')}/{part}"
            try:
                descriptor = open_in_root(self.root, here, os.O_PATH)
            except FileNotFoundError:
                parent, name = self._real_parent(here)
                with _closing(parent):
                    os.mkdir(name, mode & 0o7777, dir_fd=parent)
                    os.chmod(name, mode & 0o7777, dir_fd=parent)
                    # The classic builder gives only the last one its owner.
                    if attributes.owner is not None and (not self.classic or number == len(parts)):
                        os.chown(name, *attributes.owner, dir_fd=parent, follow_symlinks=False)
                made.append(here)
                self.count += 1
                continue
            except NotADirectoryError:
                raise InvalidParameter(f"cannot copy to non-directory: {here}") from None
            with _closing(descriptor):
                if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
                    raise InvalidParameter(f"cannot copy to non-directory: {here}")
        if self.latest is not None:
            for each in reversed(made):
                parent, name = self._real_parent(each)
                with _closing(parent):
                    os.utime(name, ns=(self.latest, self.latest), dir_fd=parent, follow_symlinks=False)
        return made

    def _real_parent(self, path: str) -> tuple[int, str]:
        """Parent and name of a path that does not exist, dangling links followed as if their target did."""
        for _ in range(40):
            folder, _, name = path.rstrip("/").rpartition("/")
            parent = open_in_root(self.root, folder or "/", _FOLDER)
            try:
                target = os.readlink(name, dir_fd=parent)
            except OSError:
                return parent, name
            os.close(parent)
            path = clean(target if target.startswith("/") else f"{folder}/{target}")
            if not path.startswith("/"):
                path = "/" + path
            missing = path.rpartition("/")[0]
            if missing:
                self.make_folders(missing, 0o755, _Attributes(None, None, None, None))
        raise InvalidParameter(f"too many levels of symbolic links: {path}")

    def defer(self, source: int, name: str, parent: str, target: str) -> None:
        if self._duplicated[0] != source or not self.deferred:
            self._duplicated = (source, os.dup(source))
            self._descriptors.append(self._duplicated[1])
        self.deferred.append(_Deferred(self._duplicated[1], name, parent, target))
        self.claimed.add(target)

    def flush(self) -> None:
        """Write what was deferred into the upper folder, with overlay out of the way."""
        if not self.deferred:
            return
        assert self.attributes is not None
        if self._root >= 0:
            os.close(self._root)
            self._root = -1
        writer = _Writer(self.attributes, self.links, self)
        for each in self.deferred:
            parent = openat2(
                self.upper_folder,
                each.parent.strip("/") or ".",
                _FOLDER,
                resolve=RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS,
            )
            with _closing(parent):
                times = os.fstat(parent)
                writer.entry(each.source, each.name, parent, each.target)
                os.utime(parent, ns=(times.st_atime_ns, times.st_mtime_ns))
        for descriptor in self._descriptors:
            os.close(descriptor)
        self.linked |= writer.linked
        self._descriptors.clear()
        self.deferred.clear()
        self.claimed.clear()
        self._duplicated = (-1, -1)


def _copy(destination: _Destination, root: int, source: SourceRoot, action: CopyAction, classic: bool) -> None:
    owner = parse_owner(destination.root, action.owner, strict=classic)
    mode = parse_mode(action.mode)
    octal = _octal(action.mode)
    attributes = _Attributes(owner, mode, octal, destination.latest)
    destination.attributes = attributes
    if source.links and attributes.keeps and not destination.detached:
        destination.links = _Links(source.links, destination.lower, destination.upper_folder)
    folder_mode = 0o755 if octal is None else octal
    for selected in _select(root, action, classic):
        with _closing(selected.descriptor):
            if action.unpack and stat.S_ISREG(selected.info.st_mode) and _is_archive(selected.descriptor):
                destination.flush()
                destination.make_folders(action.destination, 0o755, attributes)
                _unpack(destination, selected.descriptor, action.destination, attributes)
                continue
            if stat.S_ISDIR(selected.info.st_mode) or selected.name in destination.claimed:
                destination.flush()
            _copy_one(destination, selected, action, attributes, folder_mode)


def _copy_one(
    destination: _Destination, selected: _Selected, action: CopyAction, attributes: _Attributes, folder_mode: int
) -> None:
    target = action.destination
    is_folder = stat.S_ISDIR(selected.info.st_mode)
    if target.endswith("/"):
        destination.make_folders(target, folder_mode, attributes)
    target = clean(target)
    exists = destination_is_folder = False
    try:
        with _closing(open_in_root(destination.root, target, os.O_PATH)) as found:
            exists = True
            destination_is_folder = stat.S_ISDIR(os.fstat(found).st_mode)
    except FileNotFoundError:
        target = _beyond(destination, target)
    except NotADirectoryError:
        raise InvalidParameter(f"cannot copy to non-directory: {target.rpartition('/')[0]}") from None
    if (is_folder and not action.contents and exists) or (not is_folder and destination_is_folder):
        target = f"{target.rstrip('/')}/{selected.name}"
        exists = destination_is_folder = False
    if is_folder and action.contents and not exists:
        destination.make_folders(target, folder_mode, attributes)
    else:
        destination.make_folders(target.rpartition("/")[0], folder_mode, attributes)
    if is_folder:
        if action.contents or destination_is_folder:
            _merge_top(destination, selected, target, action, attributes)
        else:
            _copy_folder_whole(destination, selected, target, action, attributes)
        return
    real, name = _parent_of(destination, target)
    with _closing(real):
        _replace_file(destination, selected.descriptor, None, real, name)


def _beyond(destination: _Destination, target: str) -> str:
    """Where ``target``, which is not there, leads if it is a link."""
    for _ in range(_LINKS_LIMIT):
        try:
            with _closing(open_in_root(destination.root, target, os.O_PATH | os.O_NOFOLLOW)) as found:
                if not stat.S_ISLNK(os.fstat(found).st_mode):
                    return target
                link = os.readlink("", dir_fd=found)
            with _closing(open_in_root(destination.root, target.rpartition("/")[0] or "/", _FOLDER)) as folder:
                target = os.path.normpath(os.path.join("/", _in_root(destination, folder), link))
        except FileNotFoundError:
            return target
    raise InvalidParameter(f"too many links at {target}")


def _parent_of(destination: _Destination, target: str) -> tuple[int, str]:
    """The folder that holds ``target``, where a link at ``target`` itself is followed, and the name in it."""
    try:
        with _closing(open_in_root(destination.root, target, os.O_PATH)) as found:
            real = os.readlink(f"/proc/self/fd/{found}")
        if destination.lower:
            target = real
        else:
            target = "/" + os.path.relpath(real, os.readlink(f"/proc/self/fd/{destination.root}"))
    except FileNotFoundError:
        pass
    folder, _, name = target.rstrip("/").rpartition("/")
    return open_in_root(destination.root, folder or "/", _FOLDER), name


def _in_root(destination: _Destination, descriptor: int) -> str:
    """Where in the destination an open folder is."""
    path = os.readlink(f"/proc/self/fd/{descriptor}")
    if destination.lower:
        return path
    base = os.readlink(f"/proc/self/fd/{destination.root}")
    return "/" if path == base else path[len(base) :]


def _replace_file(destination: _Destination, source: int, source_name: str | None, parent: int, name: str) -> None:
    """Put a file, link or device at ``name``; a folder there is in the way."""
    where = _in_root(destination, parent)
    full = f"{where.rstrip('/')}/{name}"
    try:
        existing = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        existing = None
    if existing is not None:
        if stat.S_ISDIR(existing.st_mode):
            raise InvalidParameter(f"cannot replace to directory {full} with file")
        os.unlink(name, dir_fd=parent)
        assert destination.attributes is not None
        _Writer(destination.attributes, None, destination).entry(source, source_name or "", parent, name)
        return
    _touch(parent)
    destination.defer(source, source_name or "", where, name)


def _touch(folder: int) -> None:
    """Have overlay copy the folder up, its times unchanged, so that the upper folder has it."""
    info = os.fstat(folder)
    os.utime(folder, ns=(info.st_atime_ns, info.st_mtime_ns))


def _merge_top(
    destination: _Destination, selected: _Selected, target: str, action: CopyAction, attributes: _Attributes
) -> None:
    source = os.open(f"/proc/self/fd/{selected.descriptor}", _FOLDER)
    with _closing(source):
        parent = open_in_root(destination.root, target, _FOLDER)
        with _closing(parent):
            where = _in_root(destination, parent)
            _merge(destination, source, "", parent, where, _Filter.of(action), (), (), attributes)
        # An existing folder gets the source's times, as BuildKit leaves them.
        with _closing(open_in_root(destination.root, where, _FOLDER)) as again:
            destination_times(again, selected.info, attributes)


def destination_times(folder: int, info: os.stat_result, attributes: _Attributes) -> None:
    """Give a folder the times of what was copied onto it."""
    os.utime(folder, ns=(attributes.time(info.st_mtime_ns), attributes.time(info.st_mtime_ns)))


def _merge(
    destination: _Destination,
    source: int,
    path: str,
    parent: int,
    where: str,
    filter: _Filter,
    included: ParentMatches,
    excluded: ParentMatches,
    attributes: _Attributes,
) -> None:
    """Copy what is in ``source`` into the existing folder ``parent``, which is at ``where``."""
    with os.scandir(source) as entries:
        found = sorted(entries, key=lambda entry: os.fsencode(entry.name))
    if not found:
        return
    with os.scandir(parent) as present:
        existing = {entry.name for entry in present}
    touched = False
    plain = filter.include is None and filter.exclude is None
    for entry in found:
        here = f"{path}/{entry.name}" if path else entry.name
        take, below, below_included, below_excluded = filter.check(here, included, excluded)
        is_folder = entry.is_dir(follow_symlinks=False)
        if not take and not (is_folder and below):
            continue
        target = f"{where.rstrip('/')}/{entry.name}"
        if is_folder:
            inner_source = os.open(entry.name, _FOLDER | os.O_NOFOLLOW, dir_fd=source)
            with _closing(inner_source):
                info = os.fstat(inner_source)
                if entry.name not in existing and plain:
                    if not touched:
                        _touch(parent)
                        touched = True
                    destination.defer(source, entry.name, where, entry.name)
                    continue
                if entry.name not in existing:
                    if not take and not _anything(inner_source, here, filter, below_included, below_excluded):
                        continue
                    os.mkdir(entry.name, 0o755, dir_fd=parent)
                elif not stat.S_ISDIR(os.stat(entry.name, dir_fd=parent, follow_symlinks=False).st_mode):
                    raise InvalidParameter(f"cannot copy to non-directory: {target}")
                with _closing(os.open(entry.name, _FOLDER | os.O_NOFOLLOW, dir_fd=parent)) as inner:
                    if take or entry.name not in existing:
                        _set_folder(inner, info, inner_source, attributes)
                    _merge(
                        destination,
                        inner_source,
                        here,
                        inner,
                        target,
                        filter,
                        below_included,
                        below_excluded,
                        attributes,
                    )
                    if take or entry.name not in existing:
                        destination_times(inner, info, attributes)
            continue
        if entry.name not in existing:
            if not touched:
                _touch(parent)
                touched = True
            destination.defer(source, entry.name, where, entry.name)
        else:
            _replace_file(destination, source, entry.name, parent, entry.name)


def _anything(folder: int, path: str, filter: _Filter, included: ParentMatches, excluded: ParentMatches) -> bool:
    """Is anything below wanted? A folder above a pattern's match is made only then."""
    with os.scandir(folder) as entries:
        for entry in entries:
            here = f"{path}/{entry.name}"
            take, below, below_included, below_excluded = filter.check(here, included, excluded)
            if take:
                return True
            if below and entry.is_dir(follow_symlinks=False):
                with _closing(os.open(entry.name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)) as inner:
                    if _anything(inner, here, filter, below_included, below_excluded):
                        return True
    return False


def _copy_folder_whole(
    destination: _Destination, selected: _Selected, target: str, action: CopyAction, attributes: _Attributes
) -> None:
    parent, name = _parent_of(destination, target)
    with _closing(parent):
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o755, dir_fd=parent)
        with _closing(os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=parent)) as inner:
            source = os.open(f"/proc/self/fd/{selected.descriptor}", _FOLDER)
            with _closing(source):
                _set_folder(inner, selected.info, source, attributes)
                where = _in_root(destination, inner)
                _merge(destination, source, "", inner, where, _Filter.of(action), (), (), attributes)
            destination.flush()
        with _closing(open_in_root(destination.root, where, _FOLDER)) as again:
            destination_times(again, selected.info, attributes)


def _set_folder(folder: int, info: os.stat_result, source: int, attributes: _Attributes) -> None:
    owner = attributes.owner or (info.st_uid, info.st_gid)
    os.fchown(folder, *owner)
    mode = stat.S_IMODE(info.st_mode) if attributes.mode is None else attributes.mode(info.st_mode)
    os.fchmod(folder, mode)
    for key, value in _xattrs(None, f"/proc/self/fd/{source}", info):
        with contextlib.suppress(OSError):
            os.setxattr(folder, key, value)


class _Writer:
    """Makes entries that do not exist yet, whole trees of them."""

    def __init__(self, attributes: _Attributes, links: _Links | None, destination: _Destination) -> None:
        self.attributes = attributes
        self.links = links
        self.destination = destination
        self.linked: set[int] = set()
        """Inodes linked by this writer: met again, they are hard links in the source too, and stay so."""
        self.copied: dict[int, tuple[int, str]] = {}

    def entry(self, source: int, name: str, parent: int, target: str) -> None:
        """Copy ``name`` in folder ``source`` to ``target`` in ``parent``; without a name, what ``source`` itself is."""
        info = os.stat(name, dir_fd=source, follow_symlinks=False) if name else os.fstat(source)
        kind = stat.S_IFMT(info.st_mode)
        self.destination.count += 1
        if kind == stat.S_IFDIR:
            self.folder(source, name, info, parent, target)
        elif kind == stat.S_IFREG:
            self.file(source, name, info, parent, target)
        elif kind == stat.S_IFLNK:
            link = os.readlink(name, dir_fd=source) if name else os.readlink("", dir_fd=source)
            os.symlink(link, target, dir_fd=parent)
            self.finish(info, parent, target)
        else:
            os.mknod(target, stat.S_IMODE(info.st_mode) | kind, info.st_rdev, dir_fd=parent)
            self.finish(info, parent, target)

    def folder(self, source: int, name: str, info: os.stat_result, parent: int, target: str) -> None:
        os.mkdir(target, 0o700, dir_fd=parent)
        with (
            _closing(os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=source)) as from_,
            _closing(os.open(target, _FOLDER | os.O_NOFOLLOW, dir_fd=parent)) as to,
        ):
            with os.scandir(from_) as entries:
                names = sorted(entry.name for entry in entries)
            for each in names:
                self.entry(from_, each, to, each)
            _set_folder(to, info, from_, self.attributes)
            destination_times(to, info, self.attributes)

    def file(self, source: int, name: str, info: os.stat_result, parent: int, target: str) -> None:
        attributes = self.attributes
        in_time = attributes.time(info.st_mtime_ns) == info.st_mtime_ns
        links = self.links
        if (
            links is not None
            and name
            and in_time
            and info.st_ino not in self.destination.linked
            and (info.st_ino in self.linked or links.allowed(info))
        ):
            try:
                os.link(name, target, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EMLINK, errno.EPERM):
                    raise
                if error.errno != errno.EMLINK:
                    self.links = None
            else:
                if info.st_ino not in self.linked:
                    links.add(info)
                self.linked.add(info.st_ino)
                return
        if info.st_nlink > 1 and links is None:
            earlier = self.copied.get(info.st_ino)
            if earlier is not None:
                os.link(earlier[1], target, src_dir_fd=earlier[0], dst_dir_fd=parent, follow_symlinks=False)
                return
            self.copied[info.st_ino] = (os.dup(parent), target)
        opened = (
            os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
            if name
            else os.open(f"/proc/self/fd/{source}", os.O_RDONLY | os.O_CLOEXEC)
        )
        with _closing(opened):
            made = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=parent)
            with _closing(made):
                copy_data(opened, made, info.st_size)
                owner = attributes.owner or (info.st_uid, info.st_gid)
                if owner != (0, 0):
                    os.fchown(made, *owner)
                mode = info.st_mode if attributes.mode is None else attributes.mode(info.st_mode)
                os.fchmod(made, stat.S_IMODE(mode))
                for key, value in _xattrs(None, f"/proc/self/fd/{opened}", info):
                    with contextlib.suppress(OSError):
                        os.setxattr(made, key, value)
                time = attributes.time(info.st_mtime_ns)
                os.utime(made, ns=(time, time))

    def finish(self, info: os.stat_result, parent: int, target: str) -> None:
        owner = self.attributes.owner or (info.st_uid, info.st_gid)
        os.chown(target, *owner, dir_fd=parent, follow_symlinks=False)
        if not stat.S_ISLNK(info.st_mode):
            mode = info.st_mode if self.attributes.mode is None else self.attributes.mode(info.st_mode)
            os.chmod(target, stat.S_IMODE(mode), dir_fd=parent)
        time = self.attributes.time(info.st_mtime_ns)
        os.utime(target, ns=(time, time), dir_fd=parent, follow_symlinks=False)


def copy_data(source: int, target: int, size: int) -> None:
    """Copy a file's content in the kernel, holes left holes where the file says so."""
    if size == 0:
        return
    info = os.fstat(source)
    if info.st_blocks * 512 < size and _copy_sparse(source, target, size):
        return
    done = 0
    try:
        while (moved := os.copy_file_range(source, target, 1 << 30)) > 0:
            done += moved
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    if done < size:
        while os.sendfile(target, source, None, 1 << 30) > 0:
            pass


def _copy_sparse(source: int, target: int, size: int) -> bool:
    at = 0
    try:
        while at < size:
            start = os.lseek(source, at, os.SEEK_DATA)
            end = os.lseek(source, start, os.SEEK_HOLE)
            os.lseek(source, start, os.SEEK_SET)
            os.lseek(target, start, os.SEEK_SET)
            left = end - start
            while left > 0:
                moved = os.sendfile(target, source, None, left)
                if moved == 0:
                    break
                left -= moved
            at = end
    except OSError as error:
        if error.errno != errno.ENXIO:
            if at == 0:
                os.lseek(source, 0, os.SEEK_SET)
                return False
            raise
    os.ftruncate(target, size)
    return True


# --- archives ---------------------------------------------------------------------------------------------------


def _archive_reader(descriptor: int) -> tar.TarReader:
    def read() -> bytes:
        return os.read(descriptor, _BLOCK)

    _, chunks = expand(read)
    return tar.TarReader(lambda: bytes(next(chunks, b"")))


def _is_archive(path_descriptor: int) -> bool:
    """Is the file a tar archive, compressed in whatever way? As dockerd finds out: by reading the first header."""
    with _closing(os.open(f"/proc/self/fd/{path_descriptor}", os.O_RDONLY | os.O_CLOEXEC)) as descriptor:
        try:
            return _archive_reader(descriptor).next() is not None
        except (SeacanError, EOFError, ValueError):
            return False


def _unpack(destination: _Destination, path_descriptor: int, target: str, attributes: _Attributes) -> None:
    """Unpack in a child process whose root is the destination folder."""
    with (
        _closing(os.open(f"/proc/self/fd/{path_descriptor}", os.O_RDONLY | os.O_CLOEXEC)) as archive,
        _closing(open_in_root(destination.root, target, _FOLDER)) as folder,
    ):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            message = b""
            try:
                os.close(reader)
                os.fchdir(folder)
                os.chroot(".")
                os.chdir("/")
                _extract(archive, attributes)
            except (SeacanError, OSError, ValueError) as error:
                message = str(error).encode() or b"unknown error"
            finally:
                with contextlib.suppress(OSError):
                    os.write(writer, message[:4096])
                os._exit(1 if message else 0)
        os.close(writer)
        with open(reader, "rb") as pipe:
            message = pipe.read()
        _, status = os.waitpid(pid, 0)
        if status:
            raise InvalidParameter(f"unpacking: {message.decode('utf-8', 'replace') or f'worker ended ({status})'}")
    destination.count += 1


def _extract(archive: int, attributes: _Attributes) -> None:
    """Unpack into the current root, which is the destination: links cannot lead out of it."""
    reader = _archive_reader(archive)
    folders: list[tuple[bytes, int]] = []
    os.umask(0)
    while (entry := reader.next()) is not None:
        name = b"/".join(part for part in entry.name.split(b"/") if part not in (b"", b"."))
        if b".." in name.split(b"/"):
            raise InvalidParameter(f"invalid archive: {entry.text!r} leads out of the destination")
        path = b"/" + name
        uid, gid = attributes.owner or (entry.uid, entry.gid)
        time = attributes.time(entry.mtime_ns)
        mode = stat.S_IMODE(entry.mode)
        if name:
            parent = path.rpartition(b"/")[0]
            if parent:
                os.makedirs(parent, 0o755, exist_ok=True)
        try:
            existing: os.stat_result | None = os.lstat(path)
        except FileNotFoundError:
            existing = None
        if existing is not None and not (stat.S_ISDIR(existing.st_mode) and entry.kind == tar.DIRECTORY):
            if stat.S_ISDIR(existing.st_mode):
                tree.remove(os.fsdecode(path))
            else:
                os.unlink(path)
            existing = None
        if entry.kind == tar.DIRECTORY:
            if existing is None:
                os.mkdir(path, 0o700)
            os.chown(path, uid, gid)
            os.chmod(path, mode)
            folders.append((path, time))
        elif entry.kind == tar.REGULAR:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with _closing(descriptor):
                _write_member(descriptor, entry, reader)
                os.fchown(descriptor, uid, gid)
                os.fchmod(descriptor, mode)
                os.utime(descriptor, ns=(time, time))
        elif entry.kind == tar.HARD_LINK:
            link = b"/" + b"/".join(part for part in entry.linkname.split(b"/") if part not in (b"", b"."))
            if b".." in link.split(b"/"):
                raise InvalidParameter(f"invalid archive: hard link {entry.text!r} leads out of the destination")
            os.link(link, path, follow_symlinks=False)
            continue
        elif entry.kind == tar.SYMLINK:
            os.symlink(entry.linkname, path)
            os.lchown(path, uid, gid)
            os.utime(path, ns=(time, time), follow_symlinks=False)
        else:
            kind = {tar.CHARACTER: stat.S_IFCHR, tar.BLOCK_DEVICE: stat.S_IFBLK, tar.FIFO: stat.S_IFIFO}[entry.kind]
            os.mknod(path, mode | kind, os.makedev(entry.devmajor, entry.devminor))
            os.lchown(path, uid, gid)
            os.utime(path, ns=(time, time), follow_symlinks=False)
        for key, value in (entry.xattrs or {}).items():
            if not key.startswith(_INTERNAL_XATTRS):
                with contextlib.suppress(OSError):
                    os.setxattr(path, key, value, follow_symlinks=False)
    for path, time in reversed(folders):
        with contextlib.suppress(FileNotFoundError):
            os.utime(path, ns=(time, time), follow_symlinks=False)


def _write_member(descriptor: int, entry: tar.TarEntry, reader: tar.TarReader) -> None:
    if entry.sparse is None:
        for piece in reader.data():
            view = piece
            while view:
                view = view[os.write(descriptor, view) :]
        return
    pieces: Iterable[memoryview] = reader.data()
    content = b"".join(pieces)
    at = 0
    for offset, length in entry.sparse:
        os.pwrite(descriptor, content[at : at + length], offset)
        at += length
    os.ftruncate(descriptor, entry.size)
