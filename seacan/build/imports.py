"""Caches that a build was told to use: what they claim, and how a claimed layer gets here.

A cache is hostile. Whoever names one lets it decide what that build's steps come to, and no more: blobs are compared
with their digests and layers with their diff IDs, and a build keeps what it got this way under keys that say so
(:attr:`seacan.build.solver.Result.own`), where no build finds it that was not told the same.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from seacan.build.cacheconfig import Archive, Claim, Claims
from seacan.errors import InvalidParameter
from seacan.images.manifest import Descriptor
from seacan.images.store import Images, Lease
from seacan.registry.layout import verified
from seacan.storage.layers import Staged
from seacan.storage.threads import in_thread

log = logging.getLogger(__name__)

_BATCH = 1 << 20

Report = Callable[[int, int], None]
"""Hears of a transfer: bytes so far, and bytes in all."""


class BlobSource(Protocol):
    """Where the blobs of a cache are."""

    def blob(self, descriptor: Descriptor) -> AsyncIterator[bytes]:
        """Unverified."""


@dataclass(frozen=True)
class Cache:
    """One cache that a client has named; ``name`` is for messages."""

    name: str
    claims: Claims
    source: BlobSource


class Imports:
    """The caches of one build, in the order in which they were named. :meth:`close` it when the build is over."""

    def __init__(self, images: Images, caches: Sequence[Cache]) -> None:
        self._images = images
        self._caches = caches
        self._lease = Lease(images._leases)
        self._arrivals: dict[str, asyncio.Task[None]] = {}

    def find(self, key: str) -> Claim | None:
        """What is claimed of a step; a cache that has its layer comes before one that only knows of it."""
        found: Claim | None = None
        for cache in self._caches:
            claim = cache.claims.steps.get(key)
            if claim is not None and claim.archive is not None:
                return claim
            found = found or claim
        return found

    def step(self, definition: str) -> str | None:
        """The key that the step defined so is claimed to have."""
        for cache in self._caches:
            key = cache.claims.definitions.get(definition)
            if key is not None:
                return key
        return None

    async def fetch(self, archive: Archive, report: Report) -> Staged:
        """A claimed layer, verified and unpacked.

        :raises SeacanError: no cache has it, or it is not what was claimed.
        """
        descriptor = archive.descriptor
        await self.keep(descriptor, report)
        with self._images.blobs.open(descriptor.digest) as file:
            staged = await self._images.layers.unpack(file.fileno(), f"cached layer {descriptor.digest}")
        if staged.diff_id != archive.diff_id:
            self._images.layers.abandon(staged)
            raise InvalidParameter(
                f"cached layer {descriptor.digest} unpacks to {staged.diff_id}, not to the claimed {archive.diff_id}"
            )
        return staged

    async def keep(self, descriptor: Descriptor, report: Report = lambda _size, _total: None) -> None:
        """Have a claimed layer's archive in the blob store until the build is over, verified.

        :raises SeacanError: no cache has it, or it is not what was claimed.
        """
        arrival = self._arrivals.get(descriptor.digest)
        if arrival is None:
            arrival = asyncio.create_task(self._store(descriptor, report), name=f"cached layer {descriptor.digest}")
            self._arrivals[descriptor.digest] = arrival
        await asyncio.shield(arrival)

    async def _store(self, descriptor: Descriptor, report: Report) -> None:
        blobs = self._images.blobs
        self._lease.add(descriptor.digest)
        if blobs.contains(descriptor.digest):
            return
        with blobs.writer(f"cached layer {descriptor.digest}") as writer:
            parts: list[bytes] = []
            gathered = 0
            async for piece in self.blob(descriptor):
                parts.append(piece)
                gathered += len(piece)
                if gathered >= _BATCH:
                    await in_thread(writer.write, b"".join(parts))
                    parts, gathered = [], 0
                    report(writer.size, descriptor.size)
            await in_thread(writer.write, b"".join(parts))
            writer.commit(descriptor.digest, descriptor.size)
            report(writer.size, descriptor.size)

    async def blob(self, descriptor: Descriptor) -> AsyncIterator[bytes]:
        """The bytes of a claimed layer, from the cache that claims it; verified as they pass."""
        for cache in self._caches:
            if any(
                claim.archive is not None and claim.archive.descriptor.digest == descriptor.digest
                for claim in cache.claims.steps.values()
            ):
                async for piece in verified(descriptor, cache.source.blob(descriptor)):
                    yield piece
                return
        raise InvalidParameter(f"no imported cache has layer {descriptor.digest}")

    async def close(self) -> None:
        """Forget the blobs that no image has come to need."""
        for arrival in self._arrivals.values():
            arrival.cancel()
        await asyncio.gather(*self._arrivals.values(), return_exceptions=True)
        held = self._lease.names()
        self._lease.release()
        self._images.collect(held)
