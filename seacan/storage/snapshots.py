"""Writable layers of containers, behind one interface: overlay where the kernel can, vfs (plain copies) where not.

A snapshot is prepared on an image's layers and handed out as a :data:`~seacan.runtime.bundle.Rootfs`: a recipe that the
container's shim mounts in its own mount namespace, so that nothing is ever mounted on the host.
Every implementation passes ``tests/unit/storage/test_snapshots.py``.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager
from enum import IntEnum
from pathlib import Path
from typing import Protocol

import msgspec

from seacan.runtime.bundle import Rootfs
from seacan.storage.digest import ChainID


class ChangeKind(IntEnum):
    """Docker's numbers."""

    MODIFIED = 0
    ADDED = 1
    DELETED = 2


class Change(msgspec.Struct, frozen=True, order=True):
    """``path`` is absolute within the container; undecodable bytes are surrogates."""

    path: str
    kind: ChangeKind


class Usage(msgspec.Struct, frozen=True):
    """``size`` in bytes, as dockerd counts: apparent size of everything but folders, each inode once."""

    size: int
    inodes: int


class Snapshots(Protocol):
    """Snapshots by key; a container's key is its ID."""

    driver: str
    """Docker's name of the storage driver: ``overlay2`` or ``vfs``."""

    def prepare(self, key: str, parent: ChainID | None) -> Rootfs:
        """Make a writable layer on top of ``parent`` (None: on nothing).

        Raises :class:`~seacan.errors.Conflict` if ``key`` exists, :class:`~seacan.errors.NotFound` for a missing layer.
        """

    def rootfs(self, key: str, *, read_only: bool = False) -> Rootfs:
        """How to mount the snapshot. Raises :class:`~seacan.errors.NotFound`."""

    def view(self, parent: ChainID | None) -> Rootfs:
        """How to mount an image's layers alone, read-only; costs nothing to make on overlay.

        Only where ``parent`` is kept by an image or snapshot for as long as it is used.
        """

    def parent(self, key: str) -> ChainID | None:
        """What the snapshot stands on."""

    def exists(self, key: str) -> bool: ...

    def keys(self) -> list[str]: ...

    def remove(self, key: str) -> None:
        """Remove; constant time, whatever is in it. Removing what does not exist is no error."""

    def usage(self, key: str) -> Usage:
        """What the container itself has written. Walks the files: call it in a thread."""

    def changes(self, key: str) -> list[Change]:
        """What differs from the parent, sorted by path. Walks the files: call it in a thread."""

    def upper(self, key: str) -> Path:
        """The folder that holds the changes (overlay) or the whole tree (vfs)."""

    def difference(self, key: str) -> AbstractContextManager[Path]:
        """A folder with the changes alone, in overlay's form, for as long as the block lasts. Call it in a thread."""

    def graph_driver(self, key: str | None, parent: ChainID | None) -> dict[str, str]:
        """Docker's ``GraphDriver.Data`` of a container (``key``) or an image (``parent``)."""

    def recover(self, wanted: Collection[str] | None = None) -> None:
        """Throw away what is half made and, given ``wanted``, every snapshot with another key."""
