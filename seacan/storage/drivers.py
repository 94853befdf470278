"""Chooses the snapshot driver."""

from __future__ import annotations

import ctypes
import logging
import os
import tempfile
from pathlib import Path

from seacan.errors import Unsupported
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
    """Why an overlay with its upper folder below ``folder`` cannot be mounted; empty if it can.

    Tried with ``fsopen`` in a detached mount that is never attached anywhere, so nothing can be left behind.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    fsopen, fsconfig, fsmount = 430, 431, 432
    set_string, create = 1, 6
    with tempfile.TemporaryDirectory(dir=folder, prefix=".probe-") as scratch:
        for name in ("lower", "upper", "work"):
            os.mkdir(os.path.join(scratch, name))
        context = libc.syscall(fsopen, b"overlay", 1)
        if context < 0:
            return f"fsopen overlay: {os.strerror(ctypes.get_errno())}"
        try:
            for key, name in (("lowerdir", "lower"), ("upperdir", "upper"), ("workdir", "work")):
                value = os.fsencode(os.path.join(scratch, name))
                if libc.syscall(fsconfig, context, set_string, key.encode(), value, 0) < 0:
                    return f"{key}: {os.strerror(ctypes.get_errno())}"
            if libc.syscall(fsconfig, context, create, None, None, 0) < 0:
                return f"mount: {os.strerror(ctypes.get_errno())}"
            mount = libc.syscall(fsmount, context, 1, 0)
            if mount < 0:
                return f"mount: {os.strerror(ctypes.get_errno())}"
            os.close(mount)
        finally:
            os.close(context)
    return ""
