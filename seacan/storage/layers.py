"""Unpacked layers: one folder each, in overlay's form, known by chain ID.

``<root>/<key>`` is a layer's folder (``key``: the chain ID's first 100 bits, because ``mount`` takes the names of all
layers in one page), ``<root>/staging/`` what is being unpacked. A layer appears by rename, its digest compared.
Since an overlay layer does not depend on those below it, layers are unpacked in any order and several at once; only
what the archive leaves open (folders without an entry of their own) is copied from below when the layer is committed.
"""

from __future__ import annotations

import array
import asyncio
import base64
import fcntl
import os
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path

import msgspec

from seacan.errors import Conflict, InvalidParameter, NotFound, System
from seacan.storage import digest as digests
from seacan.storage import worker
from seacan.storage.database import Database
from seacan.storage.digest import ChainID, DiffID
from seacan.storage.trash import Trash
from seacan.storage.unpack import Limits, UnpackRequest, UnpackResult
from seacan.storage.worker import Launcher

_SCHEMA = (
    """
    CREATE TABLE layers (
        chain_id TEXT PRIMARY KEY,
        diff_id TEXT NOT NULL,
        parent TEXT REFERENCES layers (chain_id),
        key TEXT NOT NULL UNIQUE,
        size INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX layers_by_parent ON layers (parent);
    CREATE INDEX layers_by_diff ON layers (diff_id);
    """,
    """
    CREATE TABLE layer_holds (
        holder TEXT NOT NULL,
        chain_id TEXT NOT NULL REFERENCES layers (chain_id),
        PRIMARY KEY (holder, chain_id)
    ) WITHOUT ROWID;
    CREATE INDEX layer_holds_by_chain ON layer_holds (chain_id);
    """,
)


# linux/fs.h
_FS_IOC_GETFLAGS = 0x80086601
_FS_IOC_SETFLAGS = 0x40086602
_FS_TOPDIR_FL = 0x00020000

_INIT_FILES = (
    b".dockerenv", b"dev/console", b"etc/hostname", b"etc/hosts", b"etc/resolv.conf",
)  # fmt: skip
_INIT_FOLDERS = (b"dev/pts", b"dev/shm", b"proc", b"sys")
_INIT_LINKS = {b"etc/mtab": b"/proc/mounts"}
_INIT_SUFFIX = "-init"


class Layer(msgspec.Struct, frozen=True):
    """``size`` is the bytes of its own files."""

    chain_id: ChainID
    diff_id: DiffID
    parent: ChainID | None
    path: Path
    size: int


class Staged(msgspec.Struct, frozen=True):
    """An unpacked layer that is not committed yet."""

    path: Path
    diff_id: DiffID
    size: int
    implied: list[str]
    compression: str = "none"
    archive_size: int = 0


class Layers:
    def __init__(
        self,
        root: Path,
        database: Database,
        launcher: Launcher,
        trash: Trash,
        *,
        limits: Limits = Limits(),
        user_namespace: bool = False,
        concurrency: int | None = None,
    ) -> None:
        self.root = root
        self._staging = root / "staging"
        self._database = database
        self._launcher = launcher
        self._trash = trash
        self._limits = limits
        self._user_namespace = user_namespace
        self._slots = asyncio.Semaphore(concurrency or max(2, os.cpu_count() or 1))
        root.mkdir(parents=True, exist_ok=True, mode=0o710)
        self._staging.mkdir(exist_ok=True, mode=0o700)
        _spread(self._staging)
        database.migrate("layers", _SCHEMA)

    # --- what there is ----------------------------------------------------------------------------------------------

    def get(self, chain_id: ChainID) -> Layer:
        """Raises :class:`NotFound`."""
        row = self._database.execute(
            "SELECT chain_id, diff_id, parent, key, size FROM layers WHERE chain_id = ?", (chain_id,)
        ).fetchone()
        if row is None:
            raise NotFound(f"layer {chain_id} does not exist")
        return Layer(row[0], row[1], row[2], self.root / row[3], row[4])

    def contains(self, chain_id: ChainID) -> bool:
        """Whether the layer is known and its folder is there."""
        row = self._database.execute("SELECT key FROM layers WHERE chain_id = ?", (chain_id,)).fetchone()
        return row is not None and (self.root / row[0]).is_dir()

    def contains_diff(self, diff_id: DiffID) -> bool:
        """Whether some layer with this content exists, on top of whatever."""
        return (
            self._database.execute("SELECT 1 FROM layers WHERE diff_id = ? LIMIT 1", (diff_id,)).fetchone() is not None
        )

    def stack(self, chain_id: ChainID | None) -> list[Layer]:
        """The layer and all below it, topmost first. Raises :class:`NotFound`."""
        if chain_id is None:
            return []
        rows = self._database.execute(
            """
            WITH RECURSIVE stack (chain_id, diff_id, parent, key, size, depth) AS (
                SELECT chain_id, diff_id, parent, key, size, 0 FROM layers WHERE chain_id = ?
                UNION ALL
                SELECT layers.chain_id, layers.diff_id, layers.parent, layers.key, layers.size, depth + 1
                FROM layers JOIN stack ON layers.chain_id = stack.parent
            )
            SELECT chain_id, diff_id, parent, key, size FROM stack ORDER BY depth
            """,
            (chain_id,),
        ).fetchall()
        if not rows:
            raise NotFound(f"layer {chain_id} does not exist")
        return [Layer(row[0], row[1], row[2], self.root / row[3], row[4]) for row in rows]

    def all(self) -> list[Layer]:
        rows = self._database.execute("SELECT chain_id, diff_id, parent, key, size FROM layers").fetchall()
        return [Layer(row[0], row[1], row[2], self.root / row[3], row[4]) for row in rows]

    # --- making one -------------------------------------------------------------------------------------------------

    def stage_folder(self) -> Path:
        """A new, empty folder to fill; :meth:`commit` or :meth:`abandon` it."""
        path = self._staging / secrets.token_hex(8)
        path.mkdir(mode=0o755)
        path.chmod(0o755)
        return path

    async def unpack(self, archive: int, what: str, *, progress: int | None = None) -> Staged:
        """Unpack the archive behind a descriptor, whatever its compression, in a confined process.

        ``progress`` is the reading end of a pipe on which :func:`seacan.storage.unpack.announce` tells how much of the
        archive is written already. Raises :class:`InvalidParameter` when the archive is at fault.
        """
        async with self._slots:
            path = self.stage_folder()
            try:
                result = await worker.run(
                    self._launcher,
                    "seacan.storage.unpack:main",
                    UnpackRequest(str(path), what, self._limits, progress is not None, self._user_namespace),
                    (archive,) if progress is None else (archive, progress),
                    UnpackResult,
                )
            except BaseException:
                self._trash.discard(path)
                raise
        return Staged(
            path, DiffID(result.diff_id), result.size, result.implied, result.compression, result.archive_size
        )

    def commit(self, staged: Staged, parent: ChainID | None, diff_id: DiffID | None = None) -> ChainID:
        """Publish a staged layer on top of ``parent``; ``diff_id`` is what it must be. The staged folder is gone after.

        Committing a layer that exists already discards the new one.
        """
        try:
            if diff_id is not None and staged.diff_id != diff_id:
                raise InvalidParameter(f"layer content has diff ID {staged.diff_id}, not {diff_id}")
            chain_id = digests.chain_id(parent, staged.diff_id)
            if self.contains(chain_id):
                return chain_id
            self.inherit(staged, [layer.path for layer in self.stack(parent)])
            key = _key(chain_id)
            row = self._database.execute("SELECT chain_id FROM layers WHERE key = ?", (key,)).fetchone()
            if row is not None and row[0] != chain_id:
                raise Conflict(f"layer {chain_id} cannot be told from {row[0]}")
            if (self.root / key).exists():
                self._trash.discard(self.root / key)
            os.rename(staged.path, self.root / key)
            self._database.execute(
                "INSERT OR REPLACE INTO layers VALUES (?, ?, ?, ?, ?)",
                (chain_id, staged.diff_id, parent, key, staged.size),
            )
            return chain_id
        finally:
            self._trash.discard(staged.path)

    def inherit(self, staged: Staged, below: Sequence[Path]) -> None:
        """Give folders that the archive has no entries for the attributes they have below, topmost layer first."""
        for name in staged.implied:
            _inherit(staged.path, os.fsencode(name), below)

    def abandon(self, staged: Staged) -> None:
        self._trash.discard(staged.path)

    def adopt(self, upper: Path, diff_id: DiffID, size: int) -> Staged:
        """Stage a snapshot's upper folder as it is, by moving it here: the snapshot is to be removed after."""
        path = self._staging / secrets.token_hex(8)
        os.rename(upper, path)
        return Staged(path, diff_id, size, [])

    def init(self, chain_id: ChainID | None) -> Path:
        """The layer dockerd puts between an image and its containers: what containers have things mounted upon.

        Being below the container's own layer, these files are no change of the container's. Made once for each image.
        """
        stack = self.stack(chain_id)
        path = self.root / ((stack[0].path.name if stack else "empty") + _INIT_SUFFIX)
        if path.is_dir():
            return path
        building = self.stage_folder()
        try:
            below = [layer.path for layer in stack]
            for name in (*_INIT_FILES, *_INIT_FOLDERS, *_INIT_LINKS):
                self._add_init(building, name)
            for folder in (b"dev", b"etc", *_INIT_FOLDERS, b""):
                _inherit(building, folder, below)
            os.rename(building, path)
        except OSError as error:
            raise System(f"making the mount points of image {chain_id}: {error}") from error
        finally:
            self._trash.discard(building)
        return path

    @staticmethod
    def _add_init(building: Path, name: bytes) -> None:
        path = os.path.join(os.fsencode(building), name)
        if name in _INIT_FOLDERS:
            os.makedirs(path, 0o755, exist_ok=True)
            return
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        if name in _INIT_LINKS:
            os.symlink(_INIT_LINKS[name], path)
            return
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o755)
        os.fchmod(descriptor, 0o755)
        os.close(descriptor)

    def hold(self, chain_id: ChainID, holder: str) -> None:
        """Keep a layer although no image uses it, until ``holder`` lets go (the build cache does)."""
        self._database.execute("INSERT OR IGNORE INTO layer_holds VALUES (?, ?)", (holder, chain_id))

    def release(self, holder: str) -> list[ChainID]:
        """Let go of everything that ``holder`` keeps; gives what that was."""
        rows = self._database.execute("SELECT chain_id FROM layer_holds WHERE holder = ?", (holder,)).fetchall()
        self._database.execute("DELETE FROM layer_holds WHERE holder = ?", (holder,))
        return [ChainID(row[0]) for row in rows]

    # --- unmaking ---------------------------------------------------------------------------------------------------

    def remove(self, chain_id: ChainID) -> None:
        """Forget a layer that nothing is on top of; its files are deleted in the background."""
        layer = self.get(chain_id)
        self._database.execute("DELETE FROM layers WHERE chain_id = ?", (chain_id,))
        self._trash.discard(layer.path.with_name(layer.path.name + _INIT_SUFFIX))
        self._trash.discard(layer.path)

    def recover(self) -> list[Layer]:
        """Throw away what is half made or unknown; give the layers whose folders are missing."""
        known = {layer.path.name: layer for layer in self.all()}
        for entry in self._staging.iterdir():
            self._trash.discard(entry)
        with os.scandir(self.root) as entries:
            present = {entry.name for entry in entries} - {"staging"}
        for name in present - known.keys() - {name + _INIT_SUFFIX for name in [*known, "empty"]}:
            self._trash.discard(self.root / name)
        return [layer for name, layer in known.items() if name not in present]


def _spread(folder: Path) -> None:
    """Have ext4 put each layer into a block group of its own, as it does with the folders of a root (chattr(1), ``T``).

    Otherwise layers that are unpacked at once get in each other's way there, and ext4, which for a minute does not give
    an inode out again, looks at those of a removed image one by one for each new file: docs/decisions/0020.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flags = array.array("l", [0])
        fcntl.ioctl(descriptor, _FS_IOC_GETFLAGS, flags)
        flags[0] |= _FS_TOPDIR_FL
        fcntl.ioctl(descriptor, _FS_IOC_SETFLAGS, flags)
    except OSError:
        pass  # another file system, with other habits
    finally:
        os.close(descriptor)


def _key(chain_id: ChainID) -> str:
    return base64.b32encode(bytes.fromhex(digests.hexadecimal(chain_id)))[:20].decode().lower()


def _inherit(layer: Path, name: bytes, below: Sequence[Path]) -> None:
    """Give the folder ``name`` of ``layer`` the attributes it has in the topmost layer below that has it.

    Layers are walked by descriptor without following links: a layer's links are hostile.
    """
    target = _open_folder(layer, name)
    if target is None:
        return
    try:
        for lower in below:
            source = _open_folder(lower, name)
            if source is None:
                continue
            try:
                info = os.fstat(source)
                os.fchown(target, info.st_uid, info.st_gid)
                for attribute in os.listxattr(source):
                    if not attribute.startswith(("trusted.overlay.", "user.overlay.")):
                        os.setxattr(target, attribute, os.getxattr(source, attribute))
                os.fchmod(target, stat.S_IMODE(info.st_mode))
                os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))
            finally:
                os.close(source)
            return
    except OSError as error:
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes | Path) else ""
        raise System(
            f"copying the attributes of folder {os.fsdecode(name)!r} into {layer}: {where}{error.strerror}"
        ) from error
    finally:
        os.close(target)


def _open_folder(root: Path, name: bytes) -> int | None:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(root, flags)
    for part in name.split(b"/") if name else ():
        try:
            inner = os.open(part, flags, dir_fd=descriptor)
        except OSError:
            return None
        finally:
            os.close(descriptor)
        descriptor = inner
    return descriptor
