"""Workers that run all the time must begin at once: they import next to nothing that the launcher has not."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Sequence

import msgspec
import pytest

from seacan.runtime.launcher import Launcher
from seacan.storage import worker
from tests.hosts import REPOSITORY

HEAVY = {"asyncio", "logging", "ssl", "subprocess", "pathlib", "inspect"}


@pytest.mark.parametrize("module", ["seacan.storage.sweep", "seacan.volumes.populate"])
def test_a_worker_imports_little_beyond_the_launcher(module: str) -> None:
    program = (
        "import sys, importlib, seacan.runtime.forkserver, seacan.runtime.rehearsal\n"
        "before = set(sys.modules)\n"
        f"importlib.import_module({module!r})\n"
        "print(*sorted(set(sys.modules) - before))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    imported = done.stdout.split()
    assert module in imported
    assert not HEAVY & set(imported)


class _Faults(msgspec.Struct, frozen=True):
    count: int


def reader(argument: str, fds: Sequence[int]) -> int:
    """A worker that reads 100 MiB in pieces of one, and says how many page faults that took."""

    def read(_request: _Faults, _fds: Sequence[int]) -> _Faults:
        zero = os.open("/dev/zero", os.O_RDONLY)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(100):
            os.read(zero, 1 << 20)
        return _Faults(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

    return worker.answer(read, _Faults, argument, fds)


async def test_a_worker_reads_into_memory_that_it_has(launcher: Launcher) -> None:
    done = await worker.run(launcher, "tests.unit.storage.test_workers:reader", _Faults(0), (), _Faults)
    assert done.count < 100 << 20 >> 12 >> 3
