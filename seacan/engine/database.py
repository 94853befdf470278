"""The engine's state: one SQLite file, written ahead (WAL), with a versioned schema for each part of the engine.

A commit is one ``write()`` into the log (``synchronous=NORMAL``): it survives kill -9 of the daemon, and a power cut
loses at most the last moments, never the file's integrity. Calls are short and made from the event loop's thread.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from seacan.errors import System
from seacan.linux.syscalls import FALLOC_FL_KEEP_SIZE, fallocate

log = logging.getLogger(__name__)


class Database:
    """One open state file.

    Raises:
        System: the file cannot be opened, is no database, or is damaged; the message says what to do.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(mode=0o710, parents=True, exist_ok=True)
            _keep_to_root(path)
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")
            self._connection.execute("PRAGMA foreign_keys=ON")
            damage = self._connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if damage != "ok":
                raise sqlite3.DatabaseError(damage)
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS schema (part TEXT PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID"
            )
            _reserve(path)
        except (OSError, sqlite3.Error) as error:
            raise System(
                f"cannot use the state database {path}: {error}. Restore a backup, or move it away to begin anew "
                "(containers, images and volumes that only it knows are then lost to the engine)"
            ) from error
        self._depth = 0

    def migrate(self, part: str, steps: Sequence[str]) -> None:
        """Bring a part up to date: ``steps[n]`` (SQL, several statements allowed) leads from version n to n+1.

        Raises:
            System: the file was written by a newer Seacan.
        """
        row = self._connection.execute("SELECT version FROM schema WHERE part = ?", (part,)).fetchone()
        version = row[0] if row else 0
        if version > len(steps):
            raise System(
                f"the state database {self.path} was written by a newer Seacan ({part}: schema {version}, "
                f"known here: {len(steps)})"
            )
        if version == len(steps):
            return
        script = "\n".join(step.rstrip().rstrip(";") + ";" for step in steps[version:])
        quoted = part.replace("'", "''")
        try:
            self._connection.executescript(
                f"BEGIN IMMEDIATE;\n{script}\nINSERT OR REPLACE INTO schema VALUES ('{quoted}', {len(steps)});\nCOMMIT;"  # noqa: S608
            )
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            raise System(f"cannot bring the state database {self.path} up to date ({part}): {error}") from error

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Database]:
        """Everything inside is committed together, or not at all. Nests: only the outermost commits.

        Nothing may be awaited inside: another task's statements would land in the same transaction.
        """
        if self._depth:
            self._depth += 1
            try:
                yield self
            finally:
                self._depth -= 1
            return
        self.execute("BEGIN IMMEDIATE")
        self._depth = 1
        try:
            yield self
        except BaseException:
            self._depth = 0
            self._connection.execute("ROLLBACK")
            raise
        self._depth = 0
        try:
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            raise self._failure(error) from error

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Run one statement (its own transaction outside of :meth:`transaction`).

        Raises:
            System: SQLite refused; disk full, for example.
        """
        try:
            return self._connection.execute(sql, parameters)
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as error:
            raise self._failure(error) from error

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._connection.execute("PRAGMA optimize")
        self._connection.close()

    def _failure(self, error: sqlite3.Error) -> System:
        return System(f"state database {self.path}: {error}")


_RESERVE = 4 << 20
"""Bytes. The log is checkpointed, and begins anew, after 4 MiB (a thousand pages)."""


def _reserve(path: Path) -> None:
    """Have blocks for the log, and for the file to grow into, before the disk is full.

    On a full disk containers still end, and are removed to make room: that has to be recorded. The files' sizes
    stay as SQLite left them. Where the file system cannot do it (or is full already), it is as it was.
    """
    for suffix, least in (("-wal", 2 * _RESERVE), ("", _RESERVE)):
        with contextlib.suppress(OSError):
            descriptor = os.open(f"{path}{suffix}", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                size = os.fstat(descriptor).st_size
                fallocate(descriptor, FALLOC_FL_KEEP_SIZE, size, max(_RESERVE, least - size))
            finally:
                os.close(descriptor)


def _keep_to_root(path: Path) -> None:
    """It holds the environment of containers, which is to say secrets; SQLite gives its log the same mode."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.chmod(f"{path}{suffix}", 0o600)
