"""An image store in a scratch folder, with the real launcher, and what it tells the engine."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from seacan.engine.database import Database
from seacan.images.load import load
from seacan.images.save import save, select
from seacan.images.store import Image, Images, open_images
from seacan.runtime.launcher import Launcher
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
def events() -> list[tuple[str, str, Mapping[str, str]]]:
    return []


@pytest.fixture
def images(
    tmp_path: Path, database: Database, launcher: Launcher, events: list[tuple[str, str, Mapping[str, str]]]
) -> Images:
    images = open_images(tmp_path, database, launcher, limits=Limits(expanded_bytes=64 << 20, entries=50_000))
    images.emit = lambda _type, action, id, attributes: events.append((action, id, attributes))
    return images


Load = Callable[..., Awaitable[list[Image]]]


@pytest.fixture
def messages() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def load_bytes(images: Images, messages: list[dict[str, Any]]) -> Load:
    """Load an archive in small pieces; Docker's messages go to ``messages``."""

    async def load_bytes(content: bytes, **more: Any) -> list[Image]:
        async def body() -> AsyncIterator[bytes]:
            for start in range(0, len(content), 70_000):
                yield content[start : start + 70_000]

        async def report(message: dict[str, Any]) -> None:
            messages.append(message)

        return await load(images, body(), report, **more)

    return load_bytes


@pytest.fixture
def save_bytes(images: Images) -> Callable[..., Awaitable[bytes]]:
    async def save_bytes(*names: str) -> bytes:
        return b"".join([piece async for piece in save(images, select(images, names))])

    return save_bytes


def folders(root: Path) -> dict[str, list[str]]:
    """What is on disk, to see that nothing is left over."""
    return {
        "blobs": sorted(os.listdir(root / "blobs/sha256")),
        "ingest": sorted(os.listdir(root / "blobs/ingest")),
        "layers": sorted(set(os.listdir(root / "layers")) - {"staging"}),
        "staging": sorted(os.listdir(root / "layers/staging")),
    }


EMPTY: dict[str, list[str]] = {"blobs": [], "ingest": [], "layers": [], "staging": []}
