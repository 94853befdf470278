"""Images on the move between this engine and registries: the one object of this package that the engine owns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlencode, urlsplit

import msgspec

from seacan.errors import SeacanError, System, Unauthorized
from seacan.images import manifest as manifests
from seacan.images.manifest import Index, Platform
from seacan.images.progress import Report
from seacan.images.reference import DEFAULT_DOMAIN, Reference
from seacan.images.store import Image, Images
from seacan.registry.client import Registries, RegistryError, Repository, Unreachable
from seacan.registry.credentials import NONE, Credentials
from seacan.registry.downloads import Downloads
from seacan.registry.endpoints import Settings
from seacan.registry.pull import Puller
from seacan.registry.push import Pusher
from seacan.registry.trust import Policy
from seacan.storage.digest import Digest

_HUB_SEARCH = "index.docker.io"


class Options(Protocol):
    """What of the engine's options matters here; they may change while it runs."""

    registry_mirrors: list[str]
    insecure_registries: list[str]
    certs_dir: str
    max_concurrent_downloads: int
    max_concurrent_uploads: int
    max_download_attempts: int


class SearchResult(msgspec.Struct, frozen=True, kw_only=True):
    description: str = ""
    is_official: bool = False
    is_automated: bool = False
    name: str = ""
    star_count: int = 0


class Inspection(msgspec.Struct, frozen=True, rename="pascal"):
    """What a registry says about an image, without pulling it."""

    descriptor: manifests.Descriptor
    platforms: list[Platform]


class Distribution:
    """Pull, push, search, log in."""

    def __init__(self, images: Images, options: Options, *, policy: Policy | None = None) -> None:
        self._registries = Registries(
            lambda: Settings(options.registry_mirrors, options.insecure_registries, Path(options.certs_dir))
        )
        self.downloads = Downloads(
            images, lambda: options.max_concurrent_downloads, lambda: options.max_download_attempts
        )
        self.puller = Puller(images, self._registries, self.downloads, policy=policy)
        self.pusher = Pusher(images, self._registries, lambda: options.max_concurrent_uploads)

    async def close(self) -> None:
        await self._registries.close()

    async def pull(
        self,
        reference: Reference,
        report: Report,
        *,
        credentials: Credentials = NONE,
        platform: Platform | None = None,
        all_tags: bool = False,
        named: bool = True,
    ) -> list[Image]:
        """See :meth:`seacan.registry.pull.Puller.pull`."""
        return await self.puller.pull(
            reference, report, credentials=credentials, platform=platform, all_tags=all_tags, named=named
        )

    async def push(
        self,
        reference: Reference,
        report: Report,
        *,
        credentials: Credentials = NONE,
        all_tags: bool = False,
        platform: Platform | None = None,
    ) -> list[Digest]:
        """See :meth:`seacan.registry.push.Pusher.push`."""
        return await self.pusher.push(reference, report, credentials=credentials, all_tags=all_tags, platform=platform)

    async def repository(self, reference: Reference, credentials: Credentials, *, push: bool = False) -> Repository:
        """The first way to a repository that answers. Raises :class:`Unreachable` if none does."""
        failure: Unreachable | None = None
        for repository in self._registries.repositories(reference, credentials, push=push):
            try:
                await repository.ping()
            except Unreachable as error:
                failure = failure or error
                continue
            return repository
        assert failure is not None
        raise failure

    async def login(self, credentials: Credentials) -> str:
        """See whether the registry takes the credentials; Docker's word for that it does.

        Raises :class:`Unauthorized` if not.
        """
        server = credentials.server_address or f"https://{_HUB_SEARCH}/v1/"
        host = urlsplit(server if "://" in server else f"https://{server}").netloc
        domain = DEFAULT_DOMAIN if host in (_HUB_SEARCH, DEFAULT_DOMAIN, "registry-1.docker.io") else host
        failure: SeacanError | None = None
        for repository in self._registries.repositories(Reference(domain, ""), credentials, push=True):
            try:
                await repository.log_in()
                return "Login Succeeded"
            except RegistryError as error:
                if error.answer in (401, 403):
                    raise Unauthorized(f"Get {repository.endpoint.url}/v2/: {error.message}") from error
                raise
            except Unreachable as error:
                failure = error
        assert failure is not None
        raise failure

    async def search(
        self, term: str, *, limit: int = 0, credentials: Credentials = NONE, filters: dict[str, list[str]] | None = None
    ) -> list[SearchResult]:
        """Ask a registry's search (Docker Hub's, or that of the host ``term`` begins with)."""
        host, rest = _HUB_SEARCH, term
        first, slash, remainder = term.partition("/")
        if slash and ("." in first or ":" in first or first == "localhost"):
            host, rest = first, remainder
        domain = DEFAULT_DOMAIN if host == _HUB_SEARCH else host
        query = urlencode({"q": rest, "n": limit or 25})
        failure: SeacanError | None = None
        for repository in self._registries.repositories(Reference(domain, ""), credentials, push=True):
            base = repository.endpoint.url if host != _HUB_SEARCH else f"https://{_HUB_SEARCH}"
            try:
                document = await repository.fetch_json(f"{base}/v1/search?{query}")
            except (Unreachable, RegistryError) as error:
                failure = failure or error
                continue
            try:
                results = msgspec.convert(document.get("results") or [], list[SearchResult], strict=False)
            except msgspec.ValidationError as error:
                raise System(f"search on {host}: the answer is malformed: {error}") from error
            return [result for result in results if _wanted(result, filters or {})]
        assert failure is not None
        raise failure

    async def inspect(self, reference: Reference, *, credentials: Credentials = NONE) -> Inspection:
        """``docker manifest``'s and Swarm's question: digest and platforms of an image in its registry."""
        failure: SeacanError | None = None
        for repository in self._registries.repositories(reference, credentials):
            try:
                return await self._inspect(repository, reference.with_default_tag())
            except (RegistryError, Unreachable) as error:
                failure = failure or error
        assert failure is not None
        raise failure

    async def _inspect(self, repository: Repository, reference: Reference) -> Inspection:
        content, media_type, digest = await repository.fetch_manifest(reference.digest or reference.tag)
        document = manifests.decode(content, f"manifest {digest}")
        descriptor = manifests.Descriptor(
            media_type=document.media_type or media_type, digest=digest, size=len(content)
        )
        if isinstance(document, Index):
            return Inspection(descriptor, [item.platform for item in document.manifests if item.platform is not None])
        platforms: list[Platform] = []
        if document.config.media_type in (manifests.OCI_CONFIG, manifests.DOCKER_CONFIG):
            config = msgspec.json.decode(await repository.blob(document.config.digest, 1 << 20), type=Platform)
            platforms = [Platform(config.os, config.architecture, config.variant)]
        return Inspection(descriptor, platforms)


def _wanted(result: SearchResult, filters: dict[str, Sequence[str]] | dict[str, list[str]]) -> bool:
    def flag(name: str, value: bool) -> bool:
        wanted: Any = filters.get(name)
        return not wanted or value == (wanted[-1] in ("1", "true"))

    stars = [int(value) for value in filters.get("stars", ()) if value.isdigit()]
    return (
        flag("is-official", result.is_official)
        and flag("is-automated", result.is_automated)
        and result.star_count >= max(stars, default=0)
    )
