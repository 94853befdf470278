"""What storage and images need of the engine's state database; :class:`seacan.engine.database.Database` is one."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol


class Database(Protocol):
    def migrate(self, part: str, steps: Sequence[str]) -> None: ...

    def transaction(self) -> AbstractContextManager[object]: ...

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> sqlite3.Cursor: ...
