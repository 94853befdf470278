"""Cgroups to test with: real ones of this machine, and folders that look like a cgroup."""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from seacan import cgroups
from seacan.errors import SeacanError, Unsupported


@pytest.fixture(scope="session")
def hierarchies() -> cgroups.Hierarchies:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    try:
        return cgroups.discover()
    except Unsupported as error:
        pytest.skip(str(error))


@pytest.fixture
def cgroup(hierarchies: cgroups.Hierarchies) -> Iterator[cgroups.Cgroup]:
    """A cgroup of this machine, made, and removed with all that is in it."""
    parent = f"/seacan-test-{os.getpid()}-{secrets.token_hex(3)}"
    made = cgroups.open(f"{parent}/one")
    try:
        made.create()
    except SeacanError as error:
        pytest.skip(f"this machine lets us make no cgroups: {error}")
    yield made
    if made.frozen:
        made.thaw()
    made.kill()
    made.remove()
    cgroups.open(parent).remove()


@pytest.fixture
def sleeper() -> Iterator[Callable[[], int]]:
    """Start processes that do nothing; they are killed and reaped afterwards."""
    pids: list[int] = []

    def start() -> int:
        pid = os.fork()
        if pid == 0:
            time.sleep(300)
            os._exit(0)
        pids.append(pid)
        return pid

    yield start
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            continue


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., str]:
    """A folder with files as a cgroup has them: ``folder(**{"cpu.max": "max 100000"})``."""

    def make(**files: str) -> str:
        for name, content in files.items():
            (tmp_path / name).write_text(content)
        return str(tmp_path)

    return make
