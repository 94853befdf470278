"""What a build cache knows and what lies on the disk agree after a crash."""

from __future__ import annotations

import shutil
from pathlib import Path

from seacan.build.cache import BuildCache
from seacan.engine.database import Database
from seacan.runtime.launcher import Launcher
from seacan.storage.trash import Trash


def test_after_a_crash_a_folder_without_a_row_and_a_row_without_a_folder_are_gone(tmp_path: Path) -> None:
    database = Database(tmp_path / "seacan.db")
    cache = BuildCache(tmp_path / "build", database, Trash(tmp_path / "trash", Launcher()))
    kept, moved, half_made = (cache.new_folder(None)[0] for _ in range(3))
    cache.put("kept", kept)
    cache.put("moved", moved)
    shutil.rmtree(cache.path(moved))
    cache.recover()
    assert [record.id for record in cache.records()] == [kept]
    assert not Path(cache.path(half_made)).exists()
    assert cache.find("kept") is not None
    assert cache.find("moved") is None
