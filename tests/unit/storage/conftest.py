"""Stores in a scratch folder, with the real launcher."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from seacan.engine.database import Database
from seacan.runtime.launcher import Launcher
from seacan.storage.layers import Layers, Staged
from seacan.storage.trash import Trash
from seacan.storage.unpack import Limits

if os.geteuid() != 0:
    collect_ignore_glob = ["test_*"]


@pytest.fixture
async def launcher() -> AsyncIterator[Launcher]:
    launcher = Launcher()
    await launcher.start()
    yield launcher
    await launcher.close()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "seacan.db")
    yield database
    database.close()


@pytest.fixture
async def trash(tmp_path: Path, launcher: Launcher) -> AsyncIterator[Trash]:
    trash = Trash(tmp_path / "trash", launcher)
    yield trash
    await trash.close()


@pytest.fixture
def layers(tmp_path: Path, database: Database, launcher: Launcher, trash: Trash) -> Layers:
    limits = Limits(expanded_bytes=64 << 20, entries=50_000)
    return Layers(tmp_path / "layers", database, launcher, trash, limits=limits)


Unpack = Callable[[bytes], Awaitable[Staged]]


@pytest.fixture
def unpack(layers: Layers) -> Unpack:
    """Unpack an archive's bytes."""

    async def unpack(content: bytes) -> Staged:
        with tempfile.TemporaryFile() as file:
            file.write(content)
            file.flush()
            return await layers.unpack(file.fileno(), "layer under test")

    return unpack
