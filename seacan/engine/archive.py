"""`docker cp`: files of a container, out as a tar archive and in from one.

Done by a worker, as everything in a container is hostile: in the container's own mount namespace if it runs, else in a
private one where its layers, volumes and binds are mounted for the occasion. Once inside, its root is the worker's,
so no link leads out; links of procfs, which lead into other processes' roots, are not followed (the container may see
the host's processes, and swaps its own folders meanwhile: CVE-2018-15664); and nothing is imported any more
(CVE-2019-14271).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import posixpath
import stat
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Literal

import msgspec

from seacan.engine import remap
from seacan.engine.container import Container
from seacan.engine.times import rfc3339
from seacan.engine.users import resolve
from seacan.errors import InvalidParameter, NotFound, SeacanError, System
from seacan.images.feed import Feed
from seacan.linux import capabilities
from seacan.linux.paths import make_in_root
from seacan.linux.syscalls import (
    CLONE_NEWNS,
    CLONE_NEWUSER,
    MOUNT_ATTR_IDMAP,
    MOUNT_ATTR_NOSYMFOLLOW,
    MS_PRIVATE,
    MS_REC,
    OPEN_TREE_CLONE,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_SYMLINKS,
    mount,
    mount_setattr,
    move_mount,
    open_tree,
    openat2,
    setns,
    unshare,
)
from seacan.linux.userns import Range, namespace_with
from seacan.runtime.bundle import Mapping, Rootfs
from seacan.storage import tar, worker
from seacan.storage.compression import expand
from seacan.storage.mounting import open_rootfs
from seacan.storage.pack import BLOCK, header

if TYPE_CHECKING:
    from seacan.engine.engine import Engine

_CHUNK = 1 << 18
_ATTEMPTS = 16
_CAPABILITIES = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_MKNOD", "CAP_SETFCAP",
)  # fmt: skip
"""What the worker keeps: enough for files, and too little to go where a process of the host is."""
_AT_RECURSIVE = 0x8000
_GO_DIRECTORY, _GO_SYMLINK, _GO_DEVICE, _GO_PIPE, _GO_SOCKET = 1 << 31, 1 << 27, 1 << 26, 1 << 25, 1 << 24
_GO_SETUID, _GO_SETGID, _GO_CHARACTER, _GO_STICKY = 1 << 23, 1 << 22, 1 << 21, 1 << 20
"""Bits of Go's os.FileMode, which is what clients expect in ``mode``."""


class PathStat(msgspec.Struct, frozen=True):
    """What the X-Docker-Container-Path-Stat header says. ``mode`` is Go's os.FileMode."""

    name: str
    size: int
    mode: int
    mtime: str
    link_target: str = msgspec.field(name="linkTarget")


class Place(msgspec.Struct, frozen=True):
    """One mount to be made in a private view: ``source`` on the host at ``destination`` in the container.

    ``mapping`` has the container's users, where the source has the host's owners.
    """

    source: str
    destination: str
    mapping: Mapping | None = None


class Request(msgspec.Struct, frozen=True):
    """``pid`` is the running container's init, or 0: then ``rootfs`` and ``places`` make a view on ``scratch``."""

    action: Literal["stat", "read", "write"]
    path: str
    pid: int = 0
    rootfs: Rootfs | None = None
    places: tuple[Place, ...] = ()
    scratch: str = ""
    owner: tuple[int, int] | None = None
    keep_kinds: bool = False
    """Never replace a folder by something else, nor something else by a folder."""


class Answer(msgspec.Struct, frozen=True):
    stat: PathStat | None = None
    missing: bool = False


async def stat_path(engine: Engine, reference: str, path: str) -> PathStat:
    """What is at ``path`` in a container.

    Raises:
        NotFound: no such container or file.
    """
    container = engine.containers.get(reference)
    answer = await _ask(engine, container, reference, Request("stat", path), ())
    assert answer.stat is not None
    return answer.stat


async def read_path(engine: Engine, reference: str, path: str) -> AsyncIterator[bytes]:
    """The archive of what is at ``path``; its members begin with the path's last part."""
    container = engine.containers.get(reference)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    working = asyncio.ensure_future(
        _ask(engine, container, reference, Request("read", path), (writer,), launched=lambda: os.close(writer))
    )
    try:
        while chunk := await asyncio.to_thread(os.read, reader, _CHUNK):
            yield chunk
        await working
    finally:
        os.close(reader)
        if not working.done():
            working.cancel()
            with contextlib.suppress(asyncio.CancelledError, SeacanError):
                await working


async def write_path(
    engine: Engine,
    reference: str,
    path: str,
    body: AsyncIterator[bytes],
    *,
    keep_kinds: bool = False,
    as_user: bool = False,
) -> None:
    """Unpack an archive (plain or compressed) into the folder ``path`` of a container.

    ``as_user`` gives everything to the container's user, else owners are the archive's.

    Raises:
        NotFound: no such container or folder. InvalidParameter: not a folder, read-only, or a malformed archive.
    """
    container = engine.containers.get(reference)
    _check_writable(container, posixpath.normpath("/" + path.lstrip("/")))
    owner = None
    if as_user and container.config.user:
        account = resolve(container.config.user, engine.snapshots.rootfs(container.id))
        owner = (account.uid, account.gid)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    feed = Feed()
    filling = asyncio.ensure_future(feed.fill(body))
    pumping = asyncio.ensure_future(asyncio.to_thread(_pump, feed, writer))
    request = Request("write", path, owner=owner, keep_kinds=keep_kinds)
    try:
        await _ask(engine, container, reference, request, (reader,), launched=lambda: os.close(reader))
    finally:
        feed.abandon()
        await pumping
        filling.cancel()
        with contextlib.suppress(asyncio.CancelledError, OSError):
            await filling


def _pump(feed: Feed, writer: int) -> None:
    try:
        while chunk := feed.read():
            view = memoryview(chunk)
            while view:
                view = view[os.write(writer, view) :]
    except BrokenPipeError:
        feed.abandon()
    finally:
        os.close(writer)


def _check_writable(container: Container, path: str) -> None:
    inside = [p for p in container.record.mounts if path == p.destination or path.startswith(p.destination + "/")]
    if not inside:
        if container.host_config.readonly_rootfs:
            raise InvalidParameter("container rootfs is marked read-only")
    elif not max(inside, key=lambda point: len(point.destination)).rw:
        raise InvalidParameter("mounted volume is marked read-only")


async def _ask(
    engine: Engine,
    container: Container,
    reference: str,
    request: Request,
    fds: Sequence[int],
    *,
    launched: object = None,
) -> Answer:
    if not request.path:
        raise InvalidParameter("bad parameter: pathcannot be empty")  # dockerd's very words
    if container.is_live:
        request = msgspec.structs.replace(request, pid=container.state.pid)
    else:
        mapping = remap.of(engine.mapping, container.host_config)
        places = tuple(
            Place(
                point.source,
                point.destination,
                mapping if point.type == "bind" or engine.volumes.foreign(point.name) else None,
            )
            for point in sorted(container.record.mounts, key=lambda point: point.destination.count("/"))
            if point.type in ("bind", "volume")
        )
        rootfs = engine.snapshots.rootfs(container.id)
        request = msgspec.structs.replace(request, rootfs=rootfs, places=places, scratch=engine.options.exec_root)
    answer = await worker.run(
        engine.launcher,
        "seacan.engine.archive:main",
        request,
        fds,
        Answer,
        launched=launched if callable(launched) else lambda: None,
    )
    if answer.missing:
        raise NotFound(f"Could not find the file {request.path} in container {reference}")
    return answer


# --- in the worker ------------------------------------------------------------------------------------------------


def main(argument: str, fds: Sequence[int]) -> int:
    """The worker's entry."""
    try:
        return worker.answer(_work, Request, argument, fds)
    except BrokenPipeError:
        return 1  # whoever asked has gone


def _work(request: Request, fds: Sequence[int]) -> Answer:
    _enter(request)
    path = _absolute(request.path)
    try:
        if request.action == "write":
            _write(path, fds[0], request)
            return Answer()
        information, name, real = _look(path)
        if request.action == "read":
            _read(real, name, information, fds[0])
        return Answer(stat=_describe(information, name, real))
    except NotADirectoryError:
        raise System(f"lstat {path}: not a directory") from None
    except FileNotFoundError:
        return Answer(missing=True)


def _enter(request: Request) -> None:
    """Make the container's root this process's root, in a mount namespace of its own."""
    kept = capabilities.mask(_CAPABILITIES) & capabilities.current("CapPrm")
    proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    if request.pid:
        namespace = os.open(f"/proc/{request.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        users = os.open(f"/proc/{request.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        worker.forbid_imports()  # before the container's root is this process's
        setns(namespace, CLONE_NEWNS)  # at the namespace's root, wherever init has its own
        if os.stat(users).st_ino != os.stat("self/ns/user", dir_fd=proc).st_ino:
            # Owners are to be read and set as the container has them, with no more rights than its root's.
            setns(users, CLONE_NEWUSER)
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
            kept = capabilities.mask(_CAPABILITIES)
        os.close(users)
        unshare(CLONE_NEWNS)  # root and working folder go along to the copies
        os.close(namespace)
    else:
        assert request.rootfs is not None
        unshare(CLONE_NEWNS)
        mount("", "/", "", MS_REC | MS_PRIVATE)
        root = open_rootfs(request.rootfs)
        if hasattr(request.rootfs, "lower"):
            move_mount(root, -100, request.scratch)
            root = os.open(request.scratch, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        sources = []
        for place in request.places:
            with contextlib.suppress(OSError):
                source = open_tree(-100, place.source, OPEN_TREE_CLONE | _AT_RECURSIVE)
                sources.append((source, place.destination))
                if place.mapping is not None:
                    _see_through(source, place.mapping)
        for source, destination in sources:
            folder = stat.S_ISDIR(os.fstat(source).st_mode)
            move_mount(source, make_in_root(root, destination, directory=folder))
        os.fchdir(root)
        os.chroot(".")
        os.close(root)
    os.chdir("/")
    worker.forbid_imports()
    _disarm_procfs(proc)
    os.close(proc)
    capabilities.capset(kept, kept, 0)


def _see_through(tree: int, mapping: Mapping) -> None:
    """Show a mount of the host as the container sees it: what belongs to its root there, belongs to root here.

    Raises OSError where the file system has no such mounts; then it has the host's owners.
    """
    turned = ([Range(one.outside, one.inside, one.size) for one in ranges] for ranges in (mapping.uids, mapping.gids))
    userns = namespace_with(*turned)
    try:
        mount_setattr(tree, set=MOUNT_ATTR_IDMAP, userns=userns, recursive=True)
    finally:
        os.close(userns)


def _disarm_procfs(proc: int) -> None:
    """Have no link followed on any procfs that can be reached: /proc/<pid>/root is a way to the host for who may take
    it. The container may rename folders meanwhile, so what was reached is compared with what was meant.

    ``proc`` is the host's, which is out of the container's reach.
    """
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for _ in range(_ATTEMPTS):
            points = _mounts(proc)
            armed = [id for id, (_, follows) in points.items() if follows]
            if all(_disarm(proc, root, id, points) for id in armed):
                return
    finally:
        os.close(root)
    raise System("the container's mounts of procfs could not be closed")


def _mounts(proc: int) -> dict[bytes, tuple[bytes, bool]]:
    """The mount points below our root by mount ID, and whether each is a procfs that follows links."""
    descriptor = os.open("self/mountinfo", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    table = b""
    try:
        while chunk := os.read(descriptor, _CHUNK):
            table += chunk
    finally:
        os.close(descriptor)
    found = {}
    for line in table.splitlines():
        fields, _, filesystem = line.partition(b" - ")
        id, _, _, _, point, options = fields.split()[:6]
        for code, byte in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
            point = point.replace(code, byte)
        found[id] = point, filesystem.startswith(b"proc ") and b"nosymfollow" not in options.split(b",")
    return found


def _disarm(proc: int, root: int, id: bytes, points: dict[bytes, tuple[bytes, bool]]) -> bool:
    point = points[id][0]
    try:
        found = openat2(root, os.fsdecode(point), os.O_PATH, resolve=RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS)
    except OSError:
        return False  # moved meanwhile
    try:
        information = os.open(f"self/fdinfo/{found}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
        try:
            reached = os.read(information, 4096).partition(b"mnt_id:")[2].split()[0]
        finally:
            os.close(information)
        if reached != id:
            return points.get(reached, (b"",))[0] == point  # out of reach below another mount
        mount_setattr(found, set=MOUNT_ATTR_NOSYMFOLLOW)
        return True
    finally:
        os.close(found)


def _absolute(path: str) -> str:
    """``path`` from the root, keeping a last "/" or "/." that asks for a folder's content or a link's target."""
    clean = posixpath.normpath("/" + path).replace("//", "/")
    if posixpath.basename(path.rstrip("/")) == ".":
        return clean.rstrip("/") + "/."
    if path.endswith("/") and clean != "/":
        return clean + "/"
    return clean


def _look(path: str) -> tuple[os.stat_result, str, str]:
    """What is at ``path``, its last part, and the path to use for it."""
    return os.lstat(path), posixpath.basename(path.rstrip("/")) or "/", path


def _describe(information: os.stat_result, name: str, path: str) -> PathStat:
    mode = information.st_mode
    result = stat.S_IMODE(mode) & 0o777
    for bit, go in ((stat.S_ISUID, _GO_SETUID), (stat.S_ISGID, _GO_SETGID), (stat.S_ISVTX, _GO_STICKY)):
        result |= go if mode & bit else 0
    result |= {
        stat.S_IFDIR: _GO_DIRECTORY,
        stat.S_IFLNK: _GO_SYMLINK,
        stat.S_IFIFO: _GO_PIPE,
        stat.S_IFSOCK: _GO_SOCKET,
        stat.S_IFBLK: _GO_DEVICE,
        stat.S_IFCHR: _GO_DEVICE | _GO_CHARACTER,
    }.get(stat.S_IFMT(mode), 0)
    target = ""
    if stat.S_ISLNK(mode):
        target = os.path.realpath(path)
    return PathStat(_text(name), information.st_size, result, rfc3339(information.st_mtime_ns), _text(target))


def _text(name: str) -> str:
    """A file's name as text that JSON can carry."""
    return os.fsencode(name).decode(errors="replace")


# --- out ------------------------------------------------------------------------------------------------------------


class _Output:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._links: dict[tuple[int, int], bytes] = {}

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def member(self, folder: int, path: bytes, name: bytes, info: os.stat_result) -> None:
        """Archive what is at ``path`` in ``folder`` under ``name``, folders with all that is in them."""
        mode = info.st_mode
        if stat.S_ISDIR(mode):
            prefix = name.rstrip(b"/") + b"/"
            inner = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            try:
                self._entry(prefix, info, b"5", xattrs=_xattrs(inner))
                for child in sorted(map(os.fsencode, os.listdir(inner))):
                    with contextlib.suppress(FileNotFoundError):
                        found = os.stat(child, dir_fd=inner, follow_symlinks=False)
                        self.member(inner, child, prefix + child, found)
            finally:
                os.close(inner)
        elif stat.S_ISREG(mode):
            first = self._links.setdefault((info.st_dev, info.st_ino), name)
            if info.st_nlink > 1 and first is not name:
                self._entry(name, info, b"1", link=first)
            else:
                self._file(folder, path, name)
        elif stat.S_ISLNK(mode):
            self._entry(name, info, b"2", link=os.readlink(path, dir_fd=folder))
        elif not stat.S_ISSOCK(mode):
            kind = {stat.S_IFCHR: b"3", stat.S_IFBLK: b"4", stat.S_IFIFO: b"6"}[stat.S_IFMT(mode)]
            self._entry(name, info, kind)

    def _file(self, folder: int, path: bytes, name: bytes) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        try:
            info = os.fstat(descriptor)
            self._entry(name, info, b"0", size=info.st_size, xattrs=_xattrs(descriptor))
            left = info.st_size
            while left:
                # A file cut while it is read is filled up: its header has promised the size.
                chunk = os.read(descriptor, min(left, _CHUNK)) or bytes(min(left, _CHUNK))
                self.write(chunk)
                left -= len(chunk)
            self.write(bytes(-info.st_size % BLOCK))
        finally:
            os.close(descriptor)

    def _entry(
        self,
        name: bytes,
        info: os.stat_result,
        kind: bytes,
        *,
        size: int = 0,
        link: bytes = b"",
        xattrs: dict[bytes, bytes] | None = None,
    ) -> None:
        device = (os.major(info.st_rdev), os.minor(info.st_rdev)) if kind in (b"3", b"4") else (0, 0)
        mode = stat.S_IMODE(info.st_mode)
        seconds = info.st_mtime_ns // 1_000_000_000
        self.write(header(name, kind, mode, info.st_uid, info.st_gid, size, seconds, link, device, xattrs))


def _xattrs(descriptor: int) -> dict[bytes, bytes] | None:
    try:
        return {b"security.capability": os.getxattr(descriptor, b"security.capability")}
    except OSError:
        return None


def _read(path: str, name: str, info: os.stat_result, descriptor: int) -> None:
    output = _Output(descriptor)
    parent, _, base = os.fsencode(path).rpartition(b"/")  # of a link with a slash behind it, the folder is meant
    folder = os.open(parent or b"/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        output.member(folder, base or b".", os.fsencode(name), info)
        output.write(bytes(2 * BLOCK))
    except BrokenPipeError:
        pass  # the client has enough


# --- in -------------------------------------------------------------------------------------------------------------


def _write(path: str, descriptor: int, request: Request) -> None:
    _go_to(path)
    os.umask(0)
    _, chunks = expand(lambda: os.read(descriptor, _CHUNK))
    reader = tar.TarReader(lambda: bytes(next(chunks, b"")))
    folders: list[tuple[bytes, int]] = []
    for entry in reader:
        name = b"/".join(part for part in entry.name.split(b"/") if part not in (b"", b"."))
        if b".." in name.split(b"/"):
            raise InvalidParameter(f"invalid tar header: {entry.text!r} is outside of {path!r}")
        _make_way(name, entry, posixpath.normpath(path) if request.keep_kinds else "")
        _create(name or b".", entry, reader, request.owner)
        if entry.kind == tar.DIRECTORY:
            folders.append((name or b".", entry.mtime_ns))
    for name, moment in reversed(folders):
        with contextlib.suppress(FileNotFoundError):
            os.utime(name, ns=(moment, moment))
    reader.drain()


def _go_to(path: str) -> None:
    try:
        os.chdir(path)
    except NotADirectoryError:
        if os.path.lexists(path):
            raise InvalidParameter("extraction point is not a directory") from None
        if os.path.lexists(path.rstrip("/.")):
            raise
        raise System("not a directory") from None


def _make_way(name: bytes, entry: tar.TarEntry, kept: str) -> None:
    """See that the parent exists, and that what is in the way goes: but folders are merged.

    With ``kept``, the folder that is written to, what is in the way stays if one of the two is a folder."""
    parent = name.rpartition(b"/")[0]
    if parent:
        os.makedirs(parent, 0o777, exist_ok=True)
    try:
        existing = os.lstat(name or b".")
    except FileNotFoundError:
        return
    was_folder, is_folder = stat.S_ISDIR(existing.st_mode), entry.kind == tar.DIRECTORY
    if was_folder and is_folder:
        return
    if kept and was_folder != is_folder:
        kinds = ("directory", "non-directory") if was_folder else ("non-directory", "directory")
        raise InvalidParameter(f'cannot overwrite {kinds[0]} "{os.fsdecode(name)}" with {kinds[1]} "{kept}"')
    if was_folder:
        _remove_tree(name)
    elif name:
        os.unlink(name)


def _remove_tree(name: bytes) -> None:
    for root, folders, files in os.walk(name, topdown=False):
        for file in files:
            os.unlink(root + b"/" + file)
        for folder in folders:
            path = root + b"/" + folder
            if stat.S_ISLNK(os.lstat(path).st_mode):
                os.unlink(path)
            else:
                os.rmdir(path)
    os.rmdir(name)


def _create(name: bytes, entry: tar.TarEntry, reader: tar.TarReader, owner: tuple[int, int] | None) -> None:
    mode = stat.S_IMODE(entry.mode)
    if entry.kind == tar.DIRECTORY:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, mode)
    elif entry.kind == tar.REGULAR:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(name, flags, mode)
        try:
            _fill(descriptor, entry, reader)
        finally:
            os.close(descriptor)
    elif entry.kind == tar.HARD_LINK:
        target = b"/".join(part for part in entry.linkname.split(b"/") if part not in (b"", b"."))
        if b".." in target.split(b"/"):
            raise InvalidParameter(f"invalid hardlink {entry.linkname!r} -> {entry.text!r}")
        os.link(target, name, follow_symlinks=False)
        return
    elif entry.kind == tar.SYMLINK:
        os.symlink(entry.linkname, name)
    else:
        kind = {tar.CHARACTER: stat.S_IFCHR, tar.BLOCK_DEVICE: stat.S_IFBLK, tar.FIFO: stat.S_IFIFO}[entry.kind]
        os.mknod(name, kind | mode, os.makedev(entry.devmajor, entry.devminor))
    uid, gid = owner or (entry.uid, entry.gid)
    os.chown(name, uid, gid, follow_symlinks=False)
    if entry.kind != tar.SYMLINK:
        os.chmod(name, mode)
        for key, value in (entry.xattrs or {}).items():
            with contextlib.suppress(OSError):
                os.setxattr(name, key, value, follow_symlinks=False)
    os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=False)


def _fill(descriptor: int, entry: tar.TarEntry, reader: tar.TarReader) -> None:
    if entry.sparse is None:
        for piece in reader.data():
            while piece:
                piece = piece[os.write(descriptor, piece) :]
        return
    spans = iter(entry.sparse)
    offset, left = next(spans, (0, 0))
    for piece in reader.data():
        while piece:
            while not left:
                offset, left = next(spans)
            done = os.pwrite(descriptor, piece[:left], offset)
            offset, left, piece = offset + done, left - done, piece[done:]
    os.ftruncate(descriptor, entry.size)
