"""The v1 net_prio controller: the priority of packets, by interface."""

from __future__ import annotations

from typing import TYPE_CHECKING

from seacan.cgroups import files

if TYPE_CHECKING:
    from seacan.runtime.spec import LinuxResources


def apply(directory: str, resources: LinuxResources) -> None:
    if resources.network is not None:
        files.write_each(
            directory, "net_prio.ifpriomap", [f"{item.name} {item.priority}" for item in resources.network.priorities]
        )
