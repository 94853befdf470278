"""What one more container costs in memory."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.bundles import Bundles
from tests.shims import Shims


@pytest.fixture
async def shims(bundles: Bundles) -> AsyncIterator[Shims]:
    shims = Shims(bundles)
    yield shims
    await shims.close()


def private(pid: int) -> int:
    """KiB that the process shares with no other."""
    rollup = Path(f"/proc/{pid}/smaps_rollup")
    if not rollup.exists():
        pytest.skip("no /proc/<pid>/smaps_rollup (CONFIG_PROC_PAGE_MONITOR)")
    return sum(int(size) for size in re.findall(r"^Private_(?:Clean|Dirty): +(\d+)", rollup.read_text(), re.MULTILINE))


async def test_an_idle_shim_shares_nearly_all_of_its_memory(shims: Shims) -> None:
    await shims.run(["true"])  # the launcher settles with its first fork
    running = await shims.start(["sleep", "1000"])
    # The aim is 1.2 MiB, which the benchmark shows; here is room for other builds of Python.
    assert private(await running.shim_pid()) < 1536


async def test_a_log_storm_does_not_grow_it(shims: Shims) -> None:
    running = await shims.create(["sh", "-c", "seq 1 300000; sleep 1000"])
    client = await running.attach()
    await running.task.start()
    await client.read_until(b"\n300000\n")
    assert private(await running.shim_pid()) < 4096
    client.close()
