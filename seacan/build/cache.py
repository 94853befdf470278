"""The build cache: what steps have made, found again by the content they were made of.

A result is a folder in overlay's form (``<root>/layers/<id>``), a row that names it, and keys that lead to the row.
A folder appears here first without a row; the row makes it a result, so a crash leaves nothing but a folder to throw
away. When an image takes a layer over, its folder moves to the layer store and a symbolic link stays.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from seacan.engine.options import CacheLimits
from seacan.errors import System
from seacan.images.store import LayerBlob
from seacan.storage.database import Database
from seacan.storage.trash import Trash

_SCHEMA = (
    """
    CREATE TABLE build_layers (
        id TEXT PRIMARY KEY,
        kind TEXT NOT NULL,
        description TEXT NOT NULL,
        size INTEGER NOT NULL,
        created INTEGER NOT NULL,
        used INTEGER NOT NULL,
        uses INTEGER NOT NULL,
        diff_id TEXT NOT NULL DEFAULT '',
        parent TEXT NOT NULL DEFAULT ''
    ) WITHOUT ROWID;
    CREATE TABLE build_results (
        key TEXT PRIMARY KEY,
        layer TEXT NOT NULL REFERENCES build_layers (id) ON DELETE CASCADE
    ) WITHOUT ROWID;
    CREATE INDEX build_results_by_layer ON build_results (layer);
    CREATE TABLE build_checksums (
        key TEXT PRIMARY KEY,
        digest TEXT NOT NULL,
        used INTEGER NOT NULL
    ) WITHOUT ROWID;
    """,
    """
    CREATE TABLE build_archives (
        layer TEXT PRIMARY KEY REFERENCES build_layers (id) ON DELETE CASCADE,
        digest TEXT NOT NULL,
        size INTEGER NOT NULL,
        media_type TEXT NOT NULL
    ) WITHOUT ROWID;
    """,
    """
    ALTER TABLE build_archives RENAME TO build_archives_before;
    CREATE TABLE build_archives (
        layer TEXT NOT NULL REFERENCES build_layers (id) ON DELETE CASCADE,
        encoding TEXT NOT NULL,
        digest TEXT NOT NULL,
        size INTEGER NOT NULL,
        media_type TEXT NOT NULL,
        PRIMARY KEY (layer, encoding)
    ) WITHOUT ROWID;
    INSERT INTO build_archives SELECT layer, '', digest, size, media_type FROM build_archives_before;
    DROP TABLE build_archives_before;
    """,
)

AS_IT_CAME = ""
"""Instead of an encoding's name: how another engine has made an archive."""

KINDS = ("regular", "source.local", "source.git.checkout", "source.http", "exec.cachemount")
"""What a record can be, in BuildKit's words."""


@dataclass(eq=False)
class Layer:
    """One folder of a result. ``base`` layers belong to the image store. ``diff_id`` is empty until it is known."""

    id: str
    path: str
    diff_id: str = ""
    size: int = 0
    base: bool = False
    created: int = 0
    """Nanoseconds since 1970; 0 for a base layer, whose time its image's history tells."""

    @property
    def here(self) -> bool:
        """False for a layer that an imported cache claims, until somebody needs its files."""
        return bool(self.path)

    def become(self, other: Layer) -> None:
        """This layer's files have arrived."""
        self.id, self.path, self.diff_id, self.size = other.id, other.path, other.diff_id, other.size
        self.created = other.created or self.created


@dataclass(frozen=True)
class Record:
    """One entry of the cache, as ``docker builder du`` shows it. Times are nanoseconds since 1970, sizes bytes."""

    id: str
    kind: str
    description: str
    size: int
    created: int
    used: int
    uses: int
    in_use: bool
    shared: bool
    parent: str


class BuildCache:
    """Results by key. Called from the event loop's thread; everything here is short."""

    def __init__(self, root: Path, database: Database, trash: Trash) -> None:
        self.root = root
        self._database = database
        self._trash = trash
        self._busy: Counter[str] = Counter()
        self.on_removal: Callable[[str], None] = lambda _id: None
        """Told of each record that is removed."""
        for name in ("layers", "work", "contexts"):
            (root / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        database.migrate("build", _SCHEMA)

    # --- folders ------------------------------------------------------------------------------------------------

    def path(self, id: str) -> str:
        return str(self.root / "layers" / id)

    def index(self, id: str) -> str:
        """Where the digests of a context's files are kept."""
        return str(self.root / "contexts" / f"{id}.index")

    def new_folder(self, below: str | None) -> tuple[str, str, str]:
        """An ID, a folder for what a step changes, and one for overlay's use. The root is like that of ``below``."""
        id = secrets.token_hex(10)
        upper, work = self.root / "layers" / id, self.root / "work" / id
        os.mkdir(upper, 0o755)
        os.mkdir(work, 0o700)
        try:
            _like(below, upper)
        except OSError as error:
            self.discard(id)
            raise System(f"preparing {upper}: {error}") from error
        return id, str(upper), str(work)

    def discard(self, id: str) -> None:
        """Throw away a folder that became no result."""
        self._trash.discard(self.root / "layers" / id)
        self._trash.discard(self.root / "work" / id)

    def settle(self, id: str) -> None:
        """The step is over: overlay's own folder goes."""
        self._trash.discard(self.root / "work" / id)

    # --- results ------------------------------------------------------------------------------------------------

    def find(self, key: str) -> Layer | None:
        """The result of ``key``, if it is there and its files are. Counts as a use."""
        row = self._database.execute(
            "SELECT id, diff_id, size, created FROM build_results JOIN build_layers ON id = layer WHERE key = ?", (key,)
        ).fetchone()
        if row is None:
            return None
        path = self.path(row[0])
        if not os.path.isdir(path):
            self._database.execute("DELETE FROM build_layers WHERE id = ?", (row[0],))
            self._drop(Path(path))
            self.on_removal(row[0])
            return None
        self._database.execute(
            "UPDATE build_layers SET used = ?, uses = uses + 1 WHERE id = ?", (time.time_ns(), row[0])
        )
        return Layer(row[0], path, row[1], row[2], created=row[3])

    def put(
        self,
        key: str,
        id: str,
        *,
        kind: str = "regular",
        description: str = "",
        size: int = 0,
        parent: str = "",
        created: int = 0,
    ) -> Layer:
        """Make the folder ``id`` the result of ``key``. ``created`` is when it was made, if not just now."""
        now = time.time_ns()
        with self._database.transaction():
            self._database.execute(
                "INSERT INTO build_layers VALUES (?, ?, ?, ?, ?, ?, 1, '', ?) "
                "ON CONFLICT (id) DO UPDATE SET used = excluded.used, size = excluded.size",
                (id, kind, description, size, created or now, now, parent),
            )
            self._database.execute("INSERT OR REPLACE INTO build_results VALUES (?, ?)", (key, id))
        return Layer(id, self.path(id), "", size, created=created or now)

    def take(self, folder: Path) -> str:
        """Take over a folder in overlay's form; gives its ID, under which nothing is known yet."""
        id = secrets.token_hex(10)
        os.rename(folder, self.root / "layers" / id)
        return id

    def archive(self, layer: Layer, encoding: str = AS_IT_CAME) -> LayerBlob | None:
        """The archive that was once made of a layer in an encoding, which may be gone; or in which it came here."""
        row = self._database.execute(
            "SELECT digest, size, media_type FROM build_archives WHERE layer = ? AND encoding = ?", (layer.id, encoding)
        ).fetchone()
        return None if row is None else LayerBlob(*row)

    def set_archive(self, layer: Layer, blob: LayerBlob, encoding: str = AS_IT_CAME) -> None:
        """Remember what archive a layer makes."""
        self._database.execute(
            "INSERT OR REPLACE INTO build_archives SELECT id, ?, ?, ?, ? FROM build_layers WHERE id = ?",
            (encoding, blob.digest, blob.size, blob.media_type, layer.id),
        )

    def set_diff_id(self, layer: Layer, diff_id: str, size: int) -> None:
        """Remember a layer's digest and the size of its files."""
        layer.diff_id, layer.size = diff_id, size
        self._database.execute("UPDATE build_layers SET diff_id = ?, size = ? WHERE id = ?", (diff_id, size, layer.id))

    def moved(self, layer: Layer, target: Path) -> None:
        """The layer's folder is ``target`` now: a link takes its place, for whoever holds the old path."""
        link = Path(self.path(layer.id))
        os.symlink(target, link)

    def find_layer(self, id: str) -> Layer | None:
        """The record called ``id``."""
        row = self._database.execute("SELECT diff_id, size FROM build_layers WHERE id = ?", (id,)).fetchone()
        return None if row is None else Layer(id, self.path(id), row[0], row[1])

    def checksum(self, key: str) -> str | None:
        """A digest computed earlier, of content that its key determines."""
        row = self._database.execute("SELECT digest FROM build_checksums WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        self._database.execute("UPDATE build_checksums SET used = ? WHERE key = ?", (time.time_ns(), key))
        return str(row[0])

    def put_checksum(self, key: str, digest: str) -> None:
        self._database.execute("INSERT OR REPLACE INTO build_checksums VALUES (?, ?, ?)", (key, digest, time.time_ns()))

    # --- use and removal ----------------------------------------------------------------------------------------

    def hold(self, ids: Iterable[str]) -> None:
        """Keep records from being pruned while a build uses them."""
        self._busy.update(ids)

    def release(self, ids: Iterable[str]) -> None:
        for id in ids:
            self._busy[id] -= 1
            if self._busy[id] <= 0:
                del self._busy[id]

    def records(self) -> list[Record]:
        """Everything in the cache, newest use first."""
        rows = self._database.execute(
            "SELECT id, kind, description, size, created, used, uses, parent FROM build_layers ORDER BY used DESC"
        ).fetchall()
        return [
            Record(
                row[0],
                row[1],
                row[2],
                row[3],
                row[4],
                row[5],
                row[6],
                bool(self._busy.get(row[0])),
                os.path.islink(self.path(row[0])),
                row[7],
            )
            for row in rows
        ]

    def set_size(self, id: str, size: int) -> None:
        self._database.execute("UPDATE build_layers SET size = ? WHERE id = ?", (size, id))

    def remove(self, ids: Sequence[str]) -> int:
        """Remove records that nobody uses at the moment; gives the bytes that were theirs alone."""
        freed = 0
        for record in self.records():
            if record.id not in ids or record.in_use:
                continue
            self._database.execute("DELETE FROM build_layers WHERE id = ?", (record.id,))
            if self._drop(Path(self.path(record.id))):
                freed += record.size
            self.on_removal(record.id)
            for name in (self.index(record.id), f"{self.index(record.id)}.links"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name)
        return freed

    def _drop(self, path: Path) -> bool:
        """Make a layer's folder disappear; False if it was only a link to what an image has."""
        if path.is_symlink():
            path.unlink()
            return False
        self._trash.discard(path)
        return True

    def prune(
        self,
        *,
        all: bool = False,
        unused_for: int = 0,
        keep: int = 0,
        most: int = 0,
        ids: Sequence[str] = (),
        kinds: Sequence[str] = (),
    ) -> tuple[list[str], int]:
        """Remove what is not in use, longest unused first; gives the IDs and the bytes freed.

        ``unused_for`` (nanoseconds) spares what was used since. ``keep`` and ``most`` (bytes) stop as soon as no more
        than that is left; 0 is no limit. Without ``all``, what images use is spared too.
        """
        records = self.records()
        left = sum(record.size for record in records)
        limit = max(keep, most)
        now = time.time_ns()
        gone: list[str] = []
        freed = 0
        for record in reversed(records):
            if limit and left <= limit:
                break
            if record.in_use or (record.shared and not all) or now - record.used < unused_for:
                continue
            if ids and not any(record.id.startswith(each) for each in ids):
                continue
            if kinds and record.kind not in kinds:
                continue
            freed += self.remove([record.id])
            left -= record.size
            gone.append(record.id)
        if not records or all:
            self._database.execute("DELETE FROM build_checksums WHERE used < ?", (now - unused_for,))
        return gone, freed

    def collect(self, limits: CacheLimits) -> tuple[list[str], int]:
        """Prune what is over the limits. What images use takes no room of the cache's."""
        disk = os.statvfs(self.root)
        gone: list[str] = []
        freed = 0
        for rule in limits.rules(disk.f_blocks * disk.f_frsize):
            records = self.records()
            own = sum(record.size for record in records if not record.shared)
            shared = sum(record.size for record in records if record.shared)
            keep = rule.keep(own, disk.f_bavail * disk.f_frsize + freed)
            if own <= keep and not (rule.all and not keep):
                continue
            removed, bytes_freed = self.prune(
                all=rule.all,
                unused_for=rule.unused_for,
                most=keep + shared if keep else 0,
                kinds=rule.kinds,
            )
            gone += removed
            freed += bytes_freed
        return gone, freed

    def recover(self) -> None:
        """After a start: folders without a row are what a killed build was making, and a row without a folder is of one
        that was being moved to the images' layers."""
        known = {row[0] for row in self._database.execute("SELECT id FROM build_layers")}
        for id in [id for id in known if not os.path.isdir(self.path(id))]:
            self._database.execute("DELETE FROM build_layers WHERE id = ?", (id,))
            known.discard(id)
        for name in os.listdir(self.root / "layers"):
            path = self.root / "layers" / name
            if name not in known:
                self._drop(path)
        for name in os.listdir(self.root / "work"):
            self._trash.discard(self.root / "work" / name)
        for name in os.listdir(self.root / "contexts"):
            path = self.root / "contexts" / name
            if path.is_dir():
                self._trash.discard(path)
            elif name.removesuffix(".links").removesuffix(".index") not in known:
                path.unlink()


def _like(source: str | None, target: Path) -> None:
    """The root of a mounted overlay has its upper folder's attributes, so these must be those of what is below."""
    if source is None:
        os.utime(target, ns=(0, 0))
        return
    info = os.stat(source)
    os.chown(target, info.st_uid, info.st_gid)
    os.chmod(target, stat.S_IMODE(info.st_mode))
    for name in os.listxattr(source):
        if not name.startswith(("trusted.overlay.", "user.overlay.")):
            os.setxattr(target, name, os.getxattr(source, name))
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))
