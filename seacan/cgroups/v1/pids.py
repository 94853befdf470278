"""The v1 pids controller: how many tasks there may be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from seacan.cgroups import files
from seacan.cgroups.statistics import Pids, Statistics

if TYPE_CHECKING:
    from seacan.runtime.spec import LinuxResources


def apply(directory: str, resources: LinuxResources) -> None:
    if resources.pids is None or resources.pids.limit == 0:
        return
    limit = resources.pids.limit
    files.write(directory, "pids.max", str(limit) if limit > 0 else "max")


def stats(directory: str, into: Statistics) -> None:
    limit = files.number(directory, "pids.max", -1)
    into.pids = Pids(files.number(directory, "pids.current"), None if limit < 0 else limit)
