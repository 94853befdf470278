"""The v1 freezer. Where the unified hierarchy is there too, its own freezer is used instead: it has no races."""

from __future__ import annotations

import time

from seacan.cgroups import files
from seacan.errors import System


def freeze(directory: str) -> None:
    """Stop every process. A v1 cgroup that forks meanwhile can stay FREEZING: write again, now and then thaw, give
    up."""
    for attempt in range(1000):
        if attempt % 50 == 49:
            files.write(directory, "freezer.state", "THAWED")
            time.sleep(0.01)
        files.write(directory, "freezer.state", "FROZEN")
        if attempt % 25 == 24:
            time.sleep(0.00001)
        if state(directory) == "FROZEN":
            return
    files.write(directory, "freezer.state", "THAWED")
    raise System(f"unable to freeze cgroup {directory}: still {state(directory)}")


def thaw(directory: str) -> None:
    files.write(directory, "freezer.state", "THAWED")


def state(directory: str) -> str:
    """``THAWED``, ``FREEZING`` or ``FROZEN``; THAWED as well where the cgroup has gone."""
    return (files.read_if_present(directory, "freezer.state") or "THAWED").strip()
