"""Chooses the snapshot driver."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

from seacan.errors import Unsupported
from seacan.linux.overlay import mount_overlay
from seacan.storage.database import Database
from seacan.storage.layers import Layers
from seacan.storage.overlay import OverlaySnapshots
from seacan.storage.snapshots import Snapshots
from seacan.storage.trash import Trash
from seacan.storage.vfs import VfsSnapshots

log = logging.getLogger(__name__)

DRIVERS = ("overlay2", "vfs")


def open_snapshots(
    driver: str,
    root: Path,
    database: Database,
    layers: Layers,
    trash: Trash,
    *,
    user_namespace: bool = False,
) -> Snapshots:
    """The snapshots in ``root``. An empty ``driver`` means overlay2, or vfs where overlay cannot be mounted."""
    if driver in ("overlay", "overlayfs"):
        driver = "overlay2"
    if driver and driver not in DRIVERS:
        raise Unsupported(f"error initializing graphdriver: driver not supported: {driver}")
    root.mkdir(parents=True, exist_ok=True, mode=0o710)
    if not driver:
        why = overlay_obstacle(root)
        if why:
            log.warning("overlay cannot be used in %s (%s): falling back to vfs, which copies every image", root, why)
        driver = "vfs" if why else "overlay2"
    if driver == "overlay2":
        return OverlaySnapshots(root, database, layers, trash, user_namespace=user_namespace)
    return VfsSnapshots(root, database, layers, trash)


def overlay_obstacle(folder: Path) -> str:
    """Why an overlay with its upper folder below ``folder`` cannot be mounted; empty if it can."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".probe-") as scratch:
        lower, upper, work = (os.path.join(scratch, name) for name in ("lower", "upper", "work"))
        for path in (lower, upper, work):
            os.mkdir(path)
        try:
            os.close(mount_overlay((lower,), upper, work))
        except OSError as error:
            return error.strerror or str(error)
    return ""
