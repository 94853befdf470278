"""Snapshots on overlay: an upper and a work folder for each, layers below.

``<root>/<key>/diff`` and ``<root>/<key>/work``. Nothing is mounted here; the recipe is.
"""

from __future__ import annotations

import contextlib
import os
import stat
from contextlib import AbstractContextManager
from pathlib import Path

from seacan.errors import Conflict, System
from seacan.runtime.bundle import OverlayRoot, Rootfs
from seacan.storage import walk
from seacan.storage.database import Database
from seacan.storage.digest import ChainID
from seacan.storage.kept import KeptSnapshots
from seacan.storage.layers import Layers
from seacan.storage.snapshots import Change, Usage
from seacan.storage.trash import Trash


class OverlaySnapshots(KeptSnapshots):
    driver = "overlay2"

    def __init__(
        self, root: Path, database: Database, layers: Layers, trash: Trash, *, user_namespace: bool = False
    ) -> None:
        super().__init__(root, database, layers, trash)
        self._options = ("userxattr",) if user_namespace else ("index=off",)

    def prepare(self, key: str, parent: ChainID | None) -> Rootfs:
        lower = self._below(parent)
        folder = self.root / key
        try:
            folder.mkdir(mode=0o710)
        except FileExistsError:
            if self.exists(key):
                raise Conflict(f"snapshot {key} already exists") from None
            self._trash.discard(folder)
            folder.mkdir(mode=0o710)
        try:
            upper, work = folder / "diff", folder / "work"
            os.mkdir(upper, 0o755)
            os.mkdir(work, 0o700)
            _copy_root(Path(lower[0]) if lower else None, upper)
            self._record(key, parent)
        except BaseException:
            self._trash.discard(folder)
            raise
        return self._recipe(folder, lower)

    def rootfs(self, key: str, *, read_only: bool = False) -> Rootfs:
        lower = self._below(self.parent(key))
        if read_only:
            return OverlayRoot((str(self.root / key / "diff"), *lower), options=self._options)
        return self._recipe(self.root / key, lower)

    def view(self, parent: ChainID | None) -> Rootfs:
        # Overlay wants two layers where there is no upper one, and a bare folder would show its whiteouts.
        return OverlayRoot((*self._lower(parent), self._empty("below")), options=self._options)

    def usage(self, key: str) -> Usage:
        return walk.usage(self.upper(key))

    def changes(self, key: str) -> list[Change]:
        return walk.overlay_changes(self.upper(key), list(self._below(self.parent(key))))

    def upper(self, key: str) -> Path:
        return self.root / key / "diff"

    def difference(self, key: str) -> AbstractContextManager[Path]:
        return contextlib.nullcontext(self.upper(key))

    def graph_driver(self, key: str | None, parent: ChainID | None) -> dict[str, str]:
        if key is None:
            top, *rest = self._lower(parent) or ("",)
            data = {"MergedDir": top, "UpperDir": top, "WorkDir": top} if top else {}
        else:
            folder = self.root / key
            rest = list(self._below(parent if parent else self.parent(key)))
            data = {
                "MergedDir": str(folder / "merged"),
                "UpperDir": str(folder / "diff"),
                "WorkDir": str(folder / "work"),
            }
        if rest:
            data["LowerDir"] = ":".join(rest)
        return data

    def _below(self, parent: ChainID | None) -> tuple[str, ...]:
        """What is under a container's own layer: its mount points, then the image."""
        return (str(self._layers.init(parent)), *self._lower(parent))

    def _lower(self, parent: ChainID | None) -> tuple[str, ...]:
        return tuple(str(layer.path) for layer in self._layers.stack(parent)) or (self._empty("image"),)

    def _empty(self, name: str) -> str:
        """An empty folder; overlay refuses the same one twice."""
        folder = self.root.parent / "empty" / name
        folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        return str(folder)

    def _recipe(self, folder: Path, lower: tuple[str, ...]) -> OverlayRoot:
        return OverlayRoot(lower, str(folder / "diff"), str(folder / "work"), self._options)


def _copy_root(source: Path | None, target: Path) -> None:
    """The root of a mounted overlay has its upper folder's attributes, so these must be the image's."""
    try:
        if source is None:
            target.chmod(0o755)
            return
        info = source.stat()
        if info.st_uid or info.st_gid:
            os.chown(target, info.st_uid, info.st_gid)
        os.chmod(target, stat.S_IMODE(info.st_mode))
        for name in os.listxattr(source):
            if not name.startswith(("trusted.overlay.", "user.overlay.")):
                os.setxattr(target, name, os.getxattr(source, name))
        os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))
    except OSError as error:
        raise System(f"preparing {target}: {error}") from error
