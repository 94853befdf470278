"""The v2 cpuset controller: an empty set means the parent's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from seacan.cgroups import files

if TYPE_CHECKING:
    from seacan.runtime.spec import LinuxResources


def apply(directory: str, resources: LinuxResources) -> None:
    cpu = resources.cpu
    if cpu is None:
        return
    if cpu.cpus:
        files.write(directory, "cpuset.cpus", cpu.cpus)
    if cpu.mems:
        files.write(directory, "cpuset.mems", cpu.mems)
