"""An engine's image store, and a registry beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from seacan.engine.database import Database
from seacan.engine.options import EngineOptions
from seacan.images.store import Images, open_images
from seacan.registry.distribution import Distribution
from seacan.runtime.launcher import Launcher
from tests.unit.registry.fake import FakeRegistry


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
def images(tmp_path: Path, database: Database, launcher: Launcher) -> Images:
    return open_images(tmp_path, database, launcher)


@pytest.fixture
def options(tmp_path: Path) -> EngineOptions:
    return EngineOptions(data_root=str(tmp_path), exec_root=str(tmp_path / "run"))


@pytest.fixture
async def distribution(images: Images, options: EngineOptions) -> AsyncIterator[Distribution]:
    distribution = Distribution(images, options)
    distribution.downloads.back_off = 0.01
    distribution.pusher.back_off = 0.01
    yield distribution
    await distribution.close()


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    registry = FakeRegistry()
    await registry.start()
    yield registry
    await registry.close()


class Messages(list[dict[str, Any]]):
    """Docker's messages, collected."""

    async def report(self, message: dict[str, Any]) -> None:
        self.append(message)

    def statuses(self, id: str | None = None) -> list[str]:
        """The texts, without bars and repetition; of one line with ``id``."""
        texts: list[str] = []
        for message in self:
            text = message.get("status")
            if text and (id is None or message.get("id") == id) and (not texts or texts[-1] != text):
                texts.append(text)
        return texts


@pytest.fixture
def messages() -> Messages:
    return Messages()
