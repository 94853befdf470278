"""Containers' logs: written by the shim (:mod:`.writer`), read by the daemon (:func:`read`).

The drivers are dockerd's ``json-file`` and ``local``, in its formats to the byte, and ``none``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from seacan.runtime.bundle import LogConfig

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator


class ReadOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Which entries, and how they are written; as of ``docker logs``."""

    stdout: bool = True
    stderr: bool = True
    since: int = 0
    """Nanoseconds since 1970; what comes before the first entry that is not older is left out. 0: everything."""
    until: int = 0
    """Nanoseconds since 1970; reading ends at the first entry that is newer. 0: never."""
    tail: int = -1
    """How many entries from the end to begin with; -1: all."""
    follow: bool = False
    timestamps: bool = False
    details: bool = False
    multiplexed: bool = True
    """Whether each entry has Docker's 8-byte header (a container without a terminal)."""


def read(config: LogConfig, options: ReadOptions, ended: asyncio.Future[object] | None = None) -> AsyncIterator[bytes]:
    """The container's log as ``GET /containers/{id}/logs`` sends it, in chunks of many entries.

    The first chunk is empty, and says that the files are open: what is removed from then on is read all the same. With
    ``follow`` it goes on until ``ended`` is done and everything written has been read.

    Raises:
        Unsupported: the driver keeps nothing.
    """
    from seacan.runtime.logs import reader

    return reader.read(config, options, ended)
