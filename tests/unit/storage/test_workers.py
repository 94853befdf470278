"""Workers that run all the time must begin at once: they import next to nothing that the launcher has not."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
