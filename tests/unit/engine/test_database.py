"""The state database: transactions, schema versions, and what it says when it cannot be used."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from seacan.engine.database import Database
from seacan.errors import System

STEPS = ("CREATE TABLE things (name TEXT PRIMARY KEY)", "ALTER TABLE things ADD COLUMN size INTEGER DEFAULT 0;")


@pytest.fixture
def database(tmp_path: Path) -> Database:
    database = Database(tmp_path / "state.db")
    database.migrate("things", STEPS)
    return database


def names(database: Database) -> list[str]:
    return [name for (name,) in database.execute("SELECT name FROM things ORDER BY name")]


def test_a_schema_is_brought_up_to_date_step_by_step(tmp_path: Path) -> None:
    database = Database(tmp_path / "state.db")
    database.migrate("things", STEPS[:1])
    database.execute("INSERT INTO things VALUES ('a')")
    database.close()
    database = Database(tmp_path / "state.db")
    database.migrate("things", STEPS)
    database.migrate("things", STEPS)
    assert database.execute("SELECT name, size FROM things").fetchall() == [("a", 0)]


def test_a_failing_step_leaves_the_old_schema(tmp_path: Path) -> None:
    database = Database(tmp_path / "state.db")
    database.migrate("things", STEPS[:1])
    with pytest.raises(System, match="up to date"):
        database.migrate("things", (STEPS[0], "ALTER TABLE things ADD COLUMN size; SELECT nonsense FROM nowhere"))
    database.migrate("things", STEPS)


def test_a_newer_schema_is_refused(tmp_path: Path, database: Database) -> None:
    with pytest.raises(System, match="newer Seacan"):
        database.migrate("things", STEPS[:1])


def test_a_transaction_is_all_or_nothing(database: Database) -> None:
    with pytest.raises(KeyError), database.transaction():
        database.execute("INSERT INTO things (name) VALUES ('a')")
        raise KeyError
    assert names(database) == []
    with database.transaction():
        database.execute("INSERT INTO things (name) VALUES ('a')")
    assert names(database) == ["a"]


def test_an_inner_transaction_belongs_to_the_outer(database: Database) -> None:
    with pytest.raises(KeyError), database.transaction():
        with database.transaction():
            database.execute("INSERT INTO things (name) VALUES ('a')")
        raise KeyError
    assert names(database) == []


def test_a_commit_is_seen_by_another_connection_at_once(tmp_path: Path, database: Database) -> None:
    database.execute("INSERT INTO things (name) VALUES ('a')")
    with sqlite3.connect(tmp_path / "state.db") as other:
        assert other.execute("SELECT count(*) FROM things").fetchone() == (1,)


@pytest.mark.parametrize("content", [b"this is no database" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state.db"
    path.write_bytes(content)
    with pytest.raises(System, match=r"cannot use the state database .*state\.db.*(Restore|move it away)"):
        Database(path)


def test_damage_inside_is_found_when_it_is_opened(tmp_path: Path, database: Database) -> None:
    with database.transaction():
        for n in range(5000):
            database.execute("INSERT INTO things (name) VALUES (?)", (f"thing {n}",))
    database.close()
    path = tmp_path / "state.db"
    content = bytearray(path.read_bytes())
    content[8192:40960] = b"\x55" * (40960 - 8192)
    path.write_bytes(content)
    with pytest.raises(System, match="cannot use the state database"):
        Database(path)
