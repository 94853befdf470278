"""``docker pull``: an image by name from its registry, with Docker's progress messages to the letter.

The image becomes visible in one step at the end, when its manifest, configuration and every layer have been verified
and unpacked. Manifests and layers are kept as they came, so a push sends the very same bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from functools import partial

from seacan.errors import InvalidParameter, NotFound, SeacanError, System
from seacan.images import config as image_config
from seacan.images import manifest as manifests
from seacan.images import progress
from seacan.images.indexes import attestations
from seacan.images.manifest import Descriptor, Index, Manifest, Platform
from seacan.images.progress import Report, short_id
from seacan.images.reference import Reference
from seacan.images.store import Image, Images, LayerBlob, Lease
from seacan.registry.client import Registries, RegistryError, Repository, Unreachable
from seacan.registry.credentials import NONE, Credentials
from seacan.registry.downloads import Download, Downloads, Progress
from seacan.registry.group import Group
from seacan.registry.trust import Policy
from seacan.storage import digest as digests
from seacan.storage.blobs import DOCUMENT_LIMIT, BlobDamaged, BlobMissing
from seacan.storage.digest import ChainID, DiffID, Digest
from seacan.storage.layers import Staged

log = logging.getLogger(__name__)

_LAYER_TYPES = ("application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs.", "application/octet-stream")
_NESTING = 4


class Puller:
    """What every pull of the engine shares."""

    def __init__(
        self, images: Images, registries: Registries, downloads: Downloads, *, policy: Policy | None = None
    ) -> None:
        self.images = images
        self.registries = registries
        self.downloads = downloads
        self.policy = policy

    async def check(self, reference: Reference, digest: Digest, repository: Repository) -> None:
        """Ask the signature policy, if there is one, whether the manifest ``digest`` may be used here.

        Raises :class:`seacan.errors.Forbidden`.
        """
        if self.policy is not None:
            await self.policy.check(reference, digest, repository)

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
        """Pull ``reference`` (with ``all_tags`` its whole repository); Docker's messages go to ``report``.

        Without ``named`` the image is known by its digest alone, and the tag stays what it is.

        Raises :class:`NotFound` and others in dockerd's words; then no new image is visible, and what was downloaded
        completely so far is found again by the next attempt.
        """
        failure: SeacanError | None = None
        for repository in self.registries.repositories(reference, credentials):
            attempt = _Pull(self, repository, report, platform, named=named)
            try:
                return await attempt.run(reference, all_tags=all_tags)
            except SeacanError as error:
                if repository.endpoint.mirror:
                    # A mirror is a convenience: whatever goes wrong with it, the registry itself has the last word.
                    log.warning("Attempting next endpoint for pull after error: %s", error.message)
                    failure = failure or error
                    continue
                if not isinstance(error, (RegistryError, Unreachable)):
                    raise
                # An endpoint's word is final only if it is the registry's own and nothing has been said yet.
                if attempt.begun:
                    raise _translated(error, reference) from error
                if not isinstance(failure, RegistryError) or isinstance(error, RegistryError):
                    failure = error
        assert failure is not None
        raise _translated(failure, reference) from failure


class _Pull:
    """One repository at one endpoint."""

    def __init__(
        self, puller: Puller, repository: Repository, report: Report, platform: Platform | None, *, named: bool
    ) -> None:
        self._images = puller.images
        self._downloads = puller.downloads
        self._check = puller.check
        self._repository = repository
        self._report = report
        self._platform = platform
        self._named = named
        self.begun = False
        self._layers: set[str] = set()
        """Blobs that are worth keeping, unfinished or not, for the next attempt."""

    async def run(self, reference: Reference, *, all_tags: bool) -> list[Image]:
        if not all_tags:
            reference = reference.with_default_tag()
            image, new = await self._pull(reference)
            await self._say_status(new, reference.familiar)
            return [image]
        tags = await self._repository.tags()
        pulled = [await self._pull(reference.tagged(tag)) for tag in tags]
        await self._say_status(any(new for _, new in pulled), reference.familiar_name)
        return [image for image, _ in pulled]

    async def _say_status(self, new: bool, name: str) -> None:
        word = "Downloaded newer image for" if new else "Image is up to date for"
        await self._report(progress.status(f"Status: {word} {name}"))

    async def _pull(self, reference: Reference) -> tuple[Image, bool]:
        """One tag or digest; gives the image, and whether the name meant another one before."""
        wanted = reference.digest or reference.tag
        content, _, digest = await self._downloads.retry(lambda: self._repository.fetch_manifest(wanted))
        await self._check(reference, digest, self._repository)
        await self._report(progress.status(f"Pulling from {reference.path}", wanted))
        self.begun = True
        before = self._images.lookup(reference)
        with self._images.lease() as lease:
            try:
                image, new = await self._pull_manifest(reference, content, digest, lease)
            finally:
                held = lease.names()
                lease.release()
                self._images.collect(held, resumable=self._layers)
                self._images.expire_downloads()
        await self._report(progress.status(f"Digest: {digest}"))
        name = reference.familiar
        self._images.emit(
            "image", "pull", name, {**(image.config.defaults.labels or {}), "name": reference.familiar_name}
        )
        return image, new if self._images.lookup(reference) == before else True

    async def _pull_manifest(
        self, reference: Reference, content: bytes, digest: Digest, lease: Lease
    ) -> tuple[Image, bool]:
        """The image, and whether it was not here before."""
        indexes: list[bytes] = []
        attached: list[Descriptor] = []
        document = manifests.decode(content, f"manifest {digest}")
        manifest_digest = digest
        for _ in range(_NESTING):
            if isinstance(document, Manifest):
                break
            indexes.append(content)
            chosen = self._choose(document, reference)
            attached = attestations(document, chosen.digest)
            content, _, manifest_digest = await self._downloads.retry(
                partial(self._repository.fetch_manifest, chosen.digest)
            )
            document = manifests.decode(content, f"manifest {manifest_digest}")
        if isinstance(document, Index):
            raise InvalidParameter(f"manifest {digest}: indexes are nested too deeply")
        if document.config.media_type not in (
            manifests.OCI_CONFIG,
            manifests.DOCKER_CONFIG,
            "",
            "application/octet-stream",
        ):
            raise InvalidParameter(
                f"unsupported media type {document.config.media_type}: {reference.familiar} is an artifact and no image"
            )
        lease.add(
            manifest_digest,
            *map(digests.of, indexes),
            document.config.digest,
            *(layer.digest for layer in document.layers),
        )
        config = await self._config(document.config)
        described = image_config.decode(config, f"configuration {document.config.digest}")
        self._check_platform(described, reference)
        if len(described.rootfs.diff_ids) != len(document.layers):
            raise InvalidParameter(
                f"manifest {manifest_digest} has {len(document.layers)} layers and its configuration "
                f"{len(described.rootfs.diff_ids)}"
            )
        for layer in document.layers:
            if not layer.media_type.startswith(_LAYER_TYPES) and layer.media_type:
                raise InvalidParameter(f"unsupported layer media type {layer.media_type[:100]!r}")
        known = self._images.known(document.config.digest)
        async with Group() as group:
            attachments = group.create_task(self._attestations(attached, lease))
            if not self._complete(document, described):
                await self._pull_layers(document.layers, described.rootfs.diff_ids, lease)
        for document_bytes in (*indexes, content):
            self._images.blobs.put(document_bytes)
        blobs = [LayerBlob(layer.digest, layer.size, layer.media_type) for layer in document.layers]
        with self._images.database.transaction():
            image = self._images.register(config, blobs, manifest=manifest_digest)
            if indexes:
                kept = [*map(digests.of, indexes), *attachments.result()]
                self._images.indexes.record(digest, image.id, manifest_digest, kept)
            tagged = self._named and reference.tag and not reference.digest
            for name in [reference.digested(digest), *([reference] if tagged else ())]:
                if self._images.keeps_platform(image.id, name, digest):
                    continue
                if name.digest:
                    self._images.add_digest(image.id, name)
                else:
                    self._images.add_tag(image.id, name, source=digest)
        return self._images.get(image.id), not known

    async def _attestations(self, descriptors: Sequence[Descriptor], lease: Lease) -> set[Digest]:
        """Fetch what attests the image; gives the blobs it is. An image runs without them, so a failure is logged."""
        found: set[Digest] = set()
        for descriptor in descriptors:
            try:
                found |= await self._attestation(descriptor, lease)
            except SeacanError as error:
                log.warning("attestation %s is left out: %s", descriptor.digest, error.message)
        return found

    async def _attestation(self, descriptor: Descriptor, lease: Lease) -> set[Digest]:
        lease.add(descriptor.digest)
        try:
            content = self._images.blobs.read(descriptor.digest)
        except (BlobMissing, BlobDamaged):
            content, _, _ = await self._downloads.retry(partial(self._repository.fetch_manifest, descriptor.digest))
            self._images.blobs.put(content)
        document = manifests.decode(content, f"manifest {descriptor.digest}")
        if not isinstance(document, Manifest):
            raise InvalidParameter("it is an index")
        wanted = [document.config, *document.layers]
        if sum(blob.size for blob in wanted) > DOCUMENT_LIMIT:
            raise InvalidParameter(f"it is larger than {DOCUMENT_LIMIT} bytes")
        for blob in wanted:
            lease.add(blob.digest)
            if not self._images.blobs.contains(blob.digest):
                self._images.blobs.put(
                    await self._downloads.retry(partial(self._repository.blob, blob.digest, DOCUMENT_LIMIT))
                )
        return {descriptor.digest, *(blob.digest for blob in wanted)}

    def _complete(self, manifest: Manifest, config: image_config.ImageConfig) -> bool:
        """Whether the image is here already, with every layer and archive."""
        known = [blob.digest if blob else None for blob in self._images.layer_blobs(manifest.config.digest)]
        return (
            self._images.known(manifest.config.digest)
            and known == [layer.digest for layer in manifest.layers]
            and all(self._images.blobs.contains(layer.digest) for layer in manifest.layers)
            and all(self._images.layers.contains(chain_id) for chain_id in digests.chain_ids(config.rootfs.diff_ids))
        )

    def _choose(self, index: Index, reference: Reference) -> Descriptor:
        wanted = self._platform or manifests.host_platform()
        fitting = manifests.choose(index, wanted)
        if not fitting:
            raise NotFound(f"no matching manifest for {wanted} in the manifest list entries")
        return fitting[0]

    async def _config(self, descriptor: Descriptor) -> bytes:
        if descriptor.size > DOCUMENT_LIMIT:
            raise InvalidParameter(f"configuration {descriptor.digest} is larger than {DOCUMENT_LIMIT} bytes")
        with contextlib.suppress(BlobMissing, BlobDamaged):
            return self._images.blobs.read(descriptor.digest)
        content = await self._downloads.retry(partial(self._repository.blob, descriptor.digest, DOCUMENT_LIMIT))
        if len(content) != descriptor.size:
            raise InvalidParameter(
                f"configuration {descriptor.digest}: {len(content)} bytes where {descriptor.size} were announced"
            )
        return content

    def _check_platform(self, config: image_config.ImageConfig, reference: Reference) -> None:
        if config.os and config.os != "linux":
            raise InvalidParameter(f'image operating system "{config.os}" cannot be used on this platform')
        offered = manifests.platform_of(config)
        if self._platform is not None and not offered.satisfies(self._platform):
            raise NotFound(
                f"image with reference {reference.familiar} was found but its platform ({offered}) does not match "
                f"the specified platform ({self._platform})"
            )

    # --- layers -----------------------------------------------------------------------------------------------------

    async def _pull_layers(self, layers: Sequence[Descriptor], diff_ids: Sequence[DiffID], lease: Lease) -> None:
        """Fetch and unpack what is missing, all at once; commit from the lowest up."""
        chain = digests.chain_ids(diff_ids)
        lease.add(*chain)
        self._layers.update(layer.digest for layer in layers)
        async with contextlib.AsyncExitStack() as open_downloads:
            downloads: list[Download | None] = []
            for layer, chain_id in zip(layers, chain, strict=True):
                if self._images.layers.contains(chain_id) and self._images.blobs.contains(layer.digest):
                    await self._report(progress.step(short_id(layer.digest), "Already exists"))
                    downloads.append(None)
                    continue
                await self._report(progress.step(short_id(layer.digest), "Pulling fs layer"))
                downloads.append(
                    await open_downloads.enter_async_context(self._downloads.fetch([self._repository], layer))
                )
            async with Group() as group:
                for layer, download in zip(layers, downloads, strict=True):
                    if download is not None:
                        group.create_task(self._follow(short_id(layer.digest), download))
                parent: ChainID | None = None
                for layer, download, diff_id, chain_id in zip(layers, downloads, diff_ids, chain, strict=True):
                    if download is not None:
                        await self._commit(layer, download, diff_id, parent)
                    parent = chain_id

    async def _follow(self, id: str, download: Download) -> None:
        async for state in download.follow():
            await self._report(_message(id, state))

    async def _commit(self, layer: Descriptor, download: Download, diff_id: DiffID, parent: ChainID | None) -> None:
        id = short_id(layer.digest)
        assert download.task is not None
        staged = await asyncio.shield(download.task)
        await self._report(progress.bar(id, "Extracting", layer.size, layer.size))
        if not self._images.layers.contains(digests.chain_id(parent, diff_id)):
            if staged is None or not staged.path.exists():
                # Another pull has taken the unpacked folder for an image with other layers below.
                staged = await self._unpack_again(layer.digest)
            if staged.diff_id != diff_id:
                raise InvalidParameter(
                    f"layer {layer.digest} unpacks to {staged.diff_id}, where the configuration says {diff_id}"
                )
            self._images.layers.commit(staged, parent, diff_id)
        await self._report(progress.step(id, "Pull complete"))

    async def _unpack_again(self, digest: Digest) -> Staged:
        with self._images.blobs.open(digest) as file:
            return await self._images.layers.unpack(file.fileno(), f"layer {digest}")


def _message(id: str, state: Progress) -> dict[str, object]:
    if state.state == "Downloading":
        return progress.bar(id, state.state, state.current, state.total)
    return progress.step(id, state.state)


def _translated(error: SeacanError, reference: Reference) -> SeacanError:
    """A refusal in dockerd's words."""
    if isinstance(error, RegistryError):
        if error.code == "DENIED":
            return NotFound(
                f"pull access denied for {reference.familiar_name}, repository does not exist or may require "
                f"'docker login': {error.message}"
            )
        if error.code == "MANIFEST_UNKNOWN":
            return NotFound(f"manifest for {reference.with_default_tag().familiar} not found: {error.message}")
        if error.code == "NAME_UNKNOWN":
            return NotFound(f"repository {reference.familiar_name} not found: {error.message}")
        return System(error.message)
    return error
