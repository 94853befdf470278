"""What every snapshot driver keeps alike: a row and a folder for each snapshot."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from seacan.errors import NotFound
from seacan.storage.database import Database
from seacan.storage.digest import ChainID
from seacan.storage.layers import Layers
from seacan.storage.trash import Trash

_SCHEMA = (
    """
    CREATE TABLE snapshots (
        key TEXT PRIMARY KEY,
        parent TEXT REFERENCES layers (chain_id)
    ) WITHOUT ROWID;
    CREATE INDEX snapshots_by_parent ON snapshots (parent);
    """,
)


class KeptSnapshots:
    """``<root>/<key>`` and a row that names the layer it stands on; see :class:`seacan.storage.snapshots.Snapshots`."""

    def __init__(self, root: Path, database: Database, layers: Layers, trash: Trash) -> None:
        self.root = root
        self._database = database
        self._layers = layers
        self._trash = trash
        root.mkdir(parents=True, exist_ok=True, mode=0o710)
        database.migrate("snapshots", _SCHEMA)

    def parent(self, key: str) -> ChainID | None:
        row = self._database.execute("SELECT parent FROM snapshots WHERE key = ?", (key,)).fetchone()
        if row is None:
            raise NotFound(f"snapshot {key} does not exist")
        return ChainID(row[0]) if row[0] is not None else None

    def exists(self, key: str) -> bool:
        return self._database.execute("SELECT 1 FROM snapshots WHERE key = ?", (key,)).fetchone() is not None

    def keys(self) -> list[str]:
        return [row[0] for row in self._database.execute("SELECT key FROM snapshots")]

    def remove(self, key: str) -> None:
        self._database.execute("DELETE FROM snapshots WHERE key = ?", (key,))
        self._trash.discard(self.root / key)

    def recover(self, wanted: Collection[str] | None = None) -> None:
        known = set(self.keys())
        if wanted is not None:
            for key in known - set(wanted):
                self.remove(key)
            known &= set(wanted)
        with os.scandir(self.root) as entries:
            present = [entry.name for entry in entries]
        for name in present:
            if name not in known:
                self._trash.discard(self.root / name)

    def _record(self, key: str, parent: ChainID | None) -> None:
        self._database.execute("INSERT INTO snapshots VALUES (?, ?)", (key, parent))
