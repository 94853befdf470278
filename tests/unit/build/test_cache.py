"""What a build cache knows and what lies on the disk agree after a crash."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from seacan.build.cache import BuildCache
from seacan.engine.database import Database
from seacan.engine.options import CacheLimits, CachePolicy
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


def test_rules_are_carried_out_one_after_the_other(tmp_path: Path) -> None:
    database = Database(tmp_path / "seacan.db")
    cache = BuildCache(tmp_path / "build", database, Trash(tmp_path / "trash", Launcher()))
    made = {}
    for name, kind, hours in (("old", "regular", 100), ("context", "source.local", 50), ("new", "regular", 1)):
        made[name], _, _ = cache.new_folder(None)
        cache.put(name, made[name], kind=kind, size=100)
        moment = time.time_ns() - hours * 3600 * 10**9
        database.execute("UPDATE build_layers SET used = ? WHERE id = ?", (moment, made[name]))
    hour = 3600 * 10**9

    def left(*rules: CachePolicy) -> set[str]:
        cache.collect(CacheLimits(policy=rules))
        here = {record.id for record in cache.records()}
        return {name for name, id in made.items() if id in here}

    assert left(CachePolicy(unused_for=200 * hour)) == {"old", "context", "new"}
    assert left(CachePolicy(most=300)) == {"old", "context", "new"}
    assert left(CachePolicy(kinds=("source.local",), unused_for=48 * hour)) == {"old", "new"}
    assert left(CachePolicy(most=150), CachePolicy(most=150)) == {"new"}
    assert left(CachePolicy()) == set()
