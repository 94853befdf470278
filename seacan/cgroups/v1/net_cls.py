"""The v1 net_cls controller: the class that tc and iptables know a container's packets by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from seacan.cgroups import files

if TYPE_CHECKING:
    from seacan.runtime.spec import LinuxResources


def apply(directory: str, resources: LinuxResources) -> None:
    if resources.network is not None and resources.network.class_id:
        files.write(directory, "net_cls.classid", str(resources.network.class_id))
