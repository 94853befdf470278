"""Pulls, loads and removals at the same time, some of them given up: the store stays whole and nothing is left over."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from seacan.errors import Conflict, NotFound, SeacanError
from seacan.images import reference as references
from seacan.images.load import load
from seacan.images.store import Images
from seacan.registry.distribution import Distribution
from tests.unit.images.archives import docker_archive, layer
from tests.unit.registry.conftest import Messages
from tests.unit.registry.fake import FakeRegistry, cut_in_the_middle
from tests.unit.registry.test_pull import pull
from tests.unit.storage.archives import Entry

LAYERS = [layer(Entry(f"file{number}", os.urandom(30_000))) for number in range(5)]
MIXES = [LAYERS[:1], LAYERS[:2], LAYERS[:3], [LAYERS[1], LAYERS[0]], [LAYERS[3], LAYERS[4]], LAYERS]


@pytest.mark.parametrize("seed", [1, 2])
async def test_the_store_stays_whole(
    distribution: Distribution, registry: FakeRegistry, images: Images, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    for number, mix in enumerate(MIXES):
        registry.add(f"r{number}", "1", mix)
    for digest in list(registry.blobs):
        registry.blob_behaviours[digest] = [cut_in_the_middle] * chance.randrange(2)

    async def load_one() -> None:
        content = docker_archive(MIXES[chance.randrange(len(MIXES))], [f"loaded:{chance.randrange(3)}"])

        async def body() -> AsyncIterator[bytes]:
            for start in range(0, len(content), 50_000):
                yield content[start : start + 50_000]
                await asyncio.sleep(0)

        await load(images, body(), Messages().report)

    async def remove_one() -> None:
        ids = images.ids()
        if ids:
            try:
                images.remove(ids[chance.randrange(len(ids))], force=True)
            except (Conflict, NotFound):
                return

    async def act() -> None:
        for _ in range(4):
            kind = chance.randrange(4)
            task = asyncio.create_task(
                [
                    lambda: pull(distribution, registry, f"r{chance.randrange(len(MIXES))}:1"),
                    load_one,
                    remove_one,
                    lambda: pull(distribution, registry, f"r{chance.randrange(len(MIXES))}:1"),
                ][kind]()  # type: ignore[arg-type]
            )
            if chance.random() < 0.25:
                await asyncio.sleep(chance.random() / 5)
                task.cancel()
            (outcome,) = await asyncio.gather(task, return_exceptions=True)
            if isinstance(outcome, Exception) and not isinstance(outcome, SeacanError):
                raise outcome

    await asyncio.gather(*(act() for _ in range(4)))
    for id in images.ids():
        image = images.get(id)
        stack = images.layers.stack(image.chain_id)
        assert len(stack) == len(image.config.rootfs.diff_ids)
        assert all(layer.path.is_dir() and os.listdir(layer.path) for layer in stack)
        assert all(blob is None or images.blobs.contains(blob.digest) for blob in images.layer_blobs(id))
    assert os.listdir(tmp_path / "layers/staging") == []
    assert not images._leases
    for id in images.ids():
        images.remove(id, force=True)
    assert images.layers.all() == [] and os.listdir(tmp_path / "blobs/sha256") == []
    assert await pull(distribution, registry, "r5:1")
    assert images.get(str(references.parse(f"{registry.host}/r5:1"))).tags
