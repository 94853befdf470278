"""A registry that holds copies: what it lacks it fetches from another, once, and keeps.

A tag is asked for at the origin each time, so that it moves when the origin's does; while the origin cannot be reached,
the copy answers. What is named by digest never changes and is asked for once. Several clients that want the same blob
wait for one download.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from seacan.errors import NotFound, SeacanError
from seacan.images.reference import Reference
from seacan.registry.client import Registries, Repository
from seacan.registry.client import RegistryError as Refused
from seacan.registry.credentials import Credentials
from seacan.registry.server.store import Manifest, RegistryError, Store, blob_unknown, manifest_unknown
from seacan.storage.digest import Digest

log = logging.getLogger(__name__)
T = TypeVar("T")


class Mirror:
    """Copies of the registry ``domain`` (``docker.io``, ``registry.example:5000``) in ``store``."""

    def __init__(self, store: Store, registries: Registries, domain: str, credentials: Credentials) -> None:
        self.store = store
        self.domain = domain
        self._registries = registries
        self._credentials = credentials
        self._downloads: dict[tuple[str, Digest], asyncio.Task[None]] = {}

    async def manifest(self, name: str, reference: str) -> Manifest:
        """The origin's manifest, kept. Raises MANIFEST_UNKNOWN, or 502 where the origin fails and there is no copy."""
        copy: Manifest | None = None
        try:
            copy = self.store.manifest(name, reference)
            if ":" in reference:
                return copy
        except RegistryError as error:
            if error.status != 404:
                raise
        try:
            content, media_type, _ = await self._ask(name, lambda origin: origin.fetch_manifest(reference))
        except NotFound:
            raise manifest_unknown(reference) from None
        except RegistryError as error:
            if copy is None:
                raise
            log.warning("%s/%s:%s: answering with the copy: %s", self.domain, name, reference, error.message)
            return copy
        digest, _ = self.store.put_manifest(name, reference, content, media_type, actor=self.domain, check=False)
        return self.store.manifest(name, digest)

    async def blob(self, name: str, digest: Digest) -> int:
        """Size of the blob, which is here when this returns."""
        try:
            return self.store.blob(name, digest)
        except RegistryError:
            pass
        key = (name, digest)
        download = self._downloads.get(key)
        if download is None:
            download = self._downloads[key] = asyncio.create_task(self._download(name, digest))
            download.add_done_callback(lambda _: self._downloads.pop(key, None))
        # A client that leaves must not end the download for the others.
        await asyncio.shield(download)
        return self.store.blob(name, digest)

    async def close(self) -> None:
        downloads = list(self._downloads.values())
        for download in downloads:
            download.cancel()
        await asyncio.gather(*downloads, return_exceptions=True)
        await self._registries.close()

    async def _download(self, name: str, digest: Digest) -> None:
        try:
            await self._ask(name, lambda origin: self._copy(origin, name, digest))
        except NotFound:
            raise blob_unknown(digest) from None

    async def _copy(self, origin: Repository, name: str, digest: Digest) -> None:
        upload = self.store.begin_upload(name)
        upload.busy = True
        try:
            async with await origin.open_blob(digest) as answer:
                async for chunk in answer.chunks():
                    await asyncio.to_thread(upload.write, chunk)
            self.store.finish_upload(name, upload, digest)
        except BaseException:
            self.store.cancel_upload(upload)
            raise

    async def _ask(self, name: str, what: Callable[[Repository], Awaitable[T]]) -> T:
        """``what`` of the first way to the origin that answers; NotFound if one says there is no such thing."""
        path = name if "/" in name or self.domain != "docker.io" else f"library/{name}"
        failure: SeacanError | None = None
        for origin in self._registries.repositories(Reference(self.domain, path), self._credentials):
            try:
                return await what(origin)
            except Refused as error:
                if error.answer in (401, 403, 404):
                    # Docker Hub answers 401 for what does not exist, and a mirror must not tell which it was.
                    raise NotFound(error.message) from error
                failure = error
            except RegistryError:
                raise
            except SeacanError as error:
                failure = error
        reason = failure.message if failure is not None else "no endpoint"
        raise RegistryError(502, "UNKNOWN", f"{self.domain} cannot be reached", reason) from failure
