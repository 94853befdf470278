"""Volumes in a scratch folder, with the real launcher."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import pytest

from seacan.engine.database import Database
from seacan.runtime.launcher import Launcher
from seacan.volumes import local
from seacan.volumes.volumes import Volumes

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
def events() -> list[tuple[str, str]]:
    """(action, volume) of every event, in order."""
    return []


@pytest.fixture
async def volumes(
    tmp_path: Path, database: Database, launcher: Launcher, events: list[tuple[str, str]]
) -> AsyncIterator[Volumes]:
    def emit(type_: str, action: str, id_: str, attributes: Mapping[str, str]) -> None:
        assert type_ == "volume"
        events.append((action, id_))

    volumes = Volumes(tmp_path / "volumes", database, launcher, emit=emit)
    yield volumes
    await volumes.close()
    for path in local.mounts_below(str(volumes.root)):
        local.unmount(path)
