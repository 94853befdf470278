"""``linux.resources.unified``: files of the v2 hierarchy by name, for what the OCI configuration has no word for."""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING

from seacan.cgroups import files
from seacan.errors import InvalidParameter, System

if TYPE_CHECKING:
    from seacan.runtime.spec import LinuxResources

_NAME = re.compile(r"[a-z0-9_]+(\.[A-Za-z0-9_]+)+\Z")


def apply(directory: str, resources: LinuxResources) -> None:
    """Write each file. A name that is not a controller's (a path, cgroup.procs) is refused."""
    for name, value in resources.unified.items():
        if "/" in name:
            raise InvalidParameter(f'unified resource "{name}" must be a file name (no slashes)')
        if not _NAME.match(name):
            raise InvalidParameter(f'unified resource "{name}" must be in the form CONTROLLER.PARAMETER')
        if name in ("cgroup.procs", "cgroup.threads", "cgroup.kill", "cgroup.freeze", "cgroup.subtree_control"):
            raise InvalidParameter(f'unified resource "{name}" is not a limit')
        for line in value.split("\n"):
            if not line:
                continue
            try:
                files.write(directory, name, line)
            except files.Refused as refused:
                controller = name.partition(".")[0]
                if (
                    refused.errno in (errno.ENOENT, errno.EACCES)
                    and controller not in (files.read_if_present(directory, "cgroup.controllers") or "").split()
                ):
                    raise System(
                        f'unified resource "{name}" can\'t be set: controller "{controller}" not available'
                    ) from refused
                raise
