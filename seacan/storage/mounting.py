"""Opens a root file system for a worker, as a mount that is attached nowhere and vanishes with its descriptor.

Not how containers get their root: that is the runtime's, inside the container's mount namespace.
"""

from __future__ import annotations

import os

from seacan.errors import System
from seacan.linux.overlay import mount_overlay
from seacan.runtime.bundle import DirectoryRoot, Rootfs


def open_rootfs(rootfs: Rootfs) -> int:
    """A descriptor of the root folder. Raises :class:`System`."""
    if isinstance(rootfs, DirectoryRoot):
        return os.open(rootfs.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return mount_overlay(rootfs.lower, rootfs.upper, rootfs.work, rootfs.options)
    except OSError as error:
        raise System(f"mounting overlay of {len(rootfs.lower)} layers: {error.strerror}") from error
