"""``docker push``: an image to its registry, with Docker's progress messages to the letter.

What was pulled is sent byte for byte, under the same digests: an index with all that it refers to, if that is here or
in the registry already. What the registry has is not sent again: known by HEAD, or mounted from another repository of
the same registry. Layers made here and kept uncompressed are compressed once, and replaced by that.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec

from seacan.errors import NotFound, SeacanError, System
from seacan.images import manifest as manifests
from seacan.images import progress
from seacan.images.commit import convert_layer, ensure_archives
from seacan.images.indexes import Entry
from seacan.images.manifest import Descriptor, Manifest, Platform
from seacan.images.progress import Report, short_id
from seacan.images.reference import Reference
from seacan.images.save import oci_type
from seacan.images.store import Image, Images, LayerBlob, Lease
from seacan.registry.client import Registries, RegistryError, Repository, Unreachable
from seacan.registry.credentials import NONE, Credentials
from seacan.registry.group import Group
from seacan.storage import digest as digests
from seacan.storage.digest import DiffID, Digest
from seacan.storage.threads import in_thread

_READ = 1 << 20
_REPORT_EVERY = 0.1
"""Seconds between two messages about one layer."""
_BACK_OFF = 5.0
_PLAIN = (manifests.DOCKER_LAYER, manifests.OCI_LAYER)


class Pusher:
    """What every push of the engine shares: the connections, and the number of uploads at once."""

    def __init__(self, images: Images, registries: Registries, slots: Callable[[], int]) -> None:
        self.images = images
        self.registries = registries
        self.slots = slots
        self.attempts = 5
        self.back_off = _BACK_OFF

    async def push(
        self,
        reference: Reference,
        report: Report,
        *,
        credentials: Credentials = NONE,
        all_tags: bool = False,
        platform: Platform | None = None,
    ) -> list[Digest]:
        """Push one tag, or with ``all_tags`` all that the repository has here; the digests of the manifests.

        Raises in dockerd's words; the first message is out before the registry is asked.
        """
        await report(progress.status(f"The push refers to repository [{reference.name}]"))
        tagged = self.select(reference, all_tags=all_tags, platform=platform)
        failure: SeacanError | None = None
        for repository in self.registries.repositories(reference, credentials, push=True):
            try:
                await repository.ping()
                attempt = _Push(self, repository, report)
                return [await attempt.run(id, tag, index=platform is None) for id, tag in tagged]
            except Unreachable as error:
                failure = failure or error
        assert failure is not None
        raise failure

    def select(
        self, reference: Reference, *, all_tags: bool, platform: Platform | None
    ) -> list[tuple[Digest, Reference]]:
        """What a push would send: images, and the tags they go under. Raises :class:`NotFound`."""
        tagged = self.images.tags_of(reference)
        if not tagged:
            raise NotFound(f"An image does not exist locally with the tag: {reference.familiar_name}")
        if not all_tags:
            wanted = reference.with_default_tag()
            tagged = [(id, tag) for id, tag in tagged if tag.tag == wanted.tag]
            if not tagged:
                raise NotFound(f"tag does not exist: {wanted.familiar}")
        if platform is not None:
            return [(self.images.get(tag.familiar, platform=platform).id, tag) for _, tag in tagged]
        return tagged


class _Push:
    def __init__(self, pusher: Pusher, repository: Repository, report: Report) -> None:
        self._pusher = pusher
        self._images = pusher.images
        self._repository = repository
        self._report = report

    async def run(self, id: Digest, reference: Reference, *, index: bool) -> Digest:
        """Push one tag: with ``index`` the index it means, if all of that is here or there, and else one image."""
        source = self._images.source(reference) if index else None
        if source is None or not self._images.indexes.members(source):
            return await self._push_image(id, reference)
        content = self._images.blobs.read(source)
        entries = self._images.indexes.entries(source)
        missing = [entry for entry in entries if not entry.available]
        for entry in missing:
            if not await self._repository.has_manifest(entry.descriptor.digest):
                break
        else:
            return await self._push_index(id, reference, content, [entry for entry in entries if entry.available])
        digest = await self._push_image(id, reference)
        selected = self._images.get(id)
        await self._report(
            {
                "progressDetail": {},
                "aux": {
                    "manifestPushedInsteadOfIndex": True,
                    "originalIndex": _described(content, source),
                    "selectedManifest": _described(self._images.blobs.read(digest), digest)
                    | {"platform": msgspec.to_builtins(selected.platform)},
                },
            }
        )
        return digest

    async def _push_index(self, id: Digest, reference: Reference, content: bytes, entries: Sequence[Entry]) -> Digest:
        """Push an index and all that it refers to, every byte as it came."""
        source = digests.of(content)
        with self._images.lease() as lease:
            lease.add(source, *(blob.digest for entry in entries for blob in (entry.descriptor, *entry.content)))
            blobs = {
                blob.digest: LayerBlob(blob.digest, blob.size, blob.media_type)
                for entry in entries
                if entry.kind != "index"
                for blob in entry.content
            }
            for blob in blobs.values():
                await self._report(progress.step(short_id(blob.digest), "Preparing"))
            slots = asyncio.Semaphore(max(1, self._pusher.slots()))
            async with Group() as group:
                for blob in blobs.values():
                    group.create_task(self._send_retried(short_id(blob.digest), blob, slots))
            for entry in entries:
                inner = self._images.blobs.read(entry.descriptor.digest)
                kind = str(_described(inner, entry.descriptor.digest)["mediaType"])
                await self._repository.put_manifest(entry.descriptor.digest, kind, inner)
            await self._repository.put_manifest(reference.tag, str(_described(content, source)["mediaType"]), content)
            self._images.add_digest(id, reference.digested(source))
        await self._tell(self._images.get(id), reference, source, len(content))
        return source

    async def _tell(self, image: Image, reference: Reference, digest: Digest, size: int) -> None:
        await self._report(progress.status(f"{reference.tag}: digest: {digest} size: {size}"))
        await self._report({"progressDetail": {}, "aux": {"Tag": reference.tag, "Digest": digest, "Size": size}})
        attributes = {**(image.config.defaults.labels or {}), "name": reference.familiar_name}
        self._images.emit("image", "push", reference.familiar, attributes)

    async def _push_image(self, id: Digest, reference: Reference) -> Digest:
        """Push one image under one tag."""
        await ensure_archives(self._images, id)
        with self._images.lease() as lease:
            image = self._images.get(id)
            blobs = self._images.layer_blobs(id)
            diff_ids = image.config.rootfs.diff_ids
            lease.add(id, *(blob.digest for blob in blobs if blob))
            for diff_id in reversed(diff_ids):
                await self._report(progress.step(short_id(diff_id), "Preparing"))
            slots = asyncio.Semaphore(max(1, self._pusher.slots()))
            for diff_id in list(reversed(diff_ids))[self._pusher.slots() :]:
                await self._report(progress.step(short_id(diff_id), "Waiting"))
            as_it_came = image.manifest is not None and self._images.was_published(image.manifest)
            async with Group() as group:
                tasks = [
                    group.create_task(self._push_layer(diff_id, blob, slots, lease, as_it_came))
                    for diff_id, blob in reversed(list(zip(diff_ids, blobs, strict=True)))
                ]
            layers = [task.result() for task in reversed(tasks)]
            config = self._images.blobs.read(id)
            await self._push_config(id, config)
            content, media_type, digest = self._manifest(image, config, layers)
            await self._repository.put_manifest(reference.tag, media_type, content)
            self._images.blobs.put(content)
            self._images.register(config, layers, manifest=digest)
            self._images.add_digest(id, reference.digested(digest))
            held = lease.names()
        self._images.collect(held)
        await self._tell(image, reference, digest, len(content))
        return digest

    def _manifest(self, image: Image, config: bytes, layers: Sequence[LayerBlob]) -> tuple[bytes, str, Digest]:
        """The manifest the image came with, if these are its layers; or else a new one, of Docker's kind."""
        if image.manifest is not None and self._images.blobs.contains(image.manifest):
            content = self._images.blobs.read(image.manifest)
            document = manifests.decode(content, f"manifest {image.manifest}")
            if isinstance(document, Manifest) and [layer.digest for layer in document.layers] == [
                layer.digest for layer in layers
            ]:
                return content, document.media_type or manifests.OCI_MANIFEST, image.manifest
        oci = any(not layer.media_type.startswith("application/vnd.docker.") for layer in layers)
        manifest = Manifest(
            schema_version=2,
            media_type=manifests.OCI_MANIFEST if oci else manifests.DOCKER_MANIFEST,
            config=Descriptor(
                media_type=manifests.OCI_CONFIG if oci else manifests.DOCKER_CONFIG, digest=image.id, size=len(config)
            ),
            layers=[
                Descriptor(
                    media_type=oci_type(layer.media_type) if oci else layer.media_type,
                    digest=layer.digest,
                    size=layer.size,
                )
                for layer in layers
            ],
        )
        content = msgspec.json.encode(manifest)
        return content, manifest.media_type, digests.of(content)

    async def _push_config(self, id: Digest, config: bytes) -> None:
        if not await self._repository.has_blob(id):
            location = await self._repository.start_upload()
            await self._upload(location, id, len(config), lambda: _pieces(config))

    # --- layers -----------------------------------------------------------------------------------------------------

    async def _push_layer(
        self, diff_id: DiffID, blob: LayerBlob | None, slots: asyncio.Semaphore, lease: Lease, as_it_came: bool
    ) -> LayerBlob:
        label = short_id(diff_id)
        if blob is None:
            raise System(f"layer {diff_id} has no archive to push")
        if blob.media_type in _PLAIN and not as_it_came:
            async with slots:
                blob = await convert_layer(self._images, blob, lease)
        await self._send_retried(label, blob, slots)
        return blob

    async def _send_retried(self, label: str, blob: LayerBlob, slots: asyncio.Semaphore) -> None:
        async with slots:
            for attempt in range(1, self._pusher.attempts + 1):
                try:
                    await self._send_layer(label, blob)
                    return
                except (Unreachable, RegistryError) as error:
                    if attempt == self._pusher.attempts or (isinstance(error, RegistryError) and not error.temporary):
                        raise
                    wait = self._pusher.back_off * attempt
                    if isinstance(error, RegistryError) and error.retry_after is not None:
                        wait = error.retry_after
                    whole = max(1, round(wait))
                    words = f"Retrying in {whole} second{'s' if whole != 1 else ''}"
                    await self._report(progress.step(label, words))
                    await asyncio.sleep(wait)

    async def _send_layer(self, label: str, blob: LayerBlob) -> None:
        repository = self._repository
        if await repository.has_blob(blob.digest):
            await self._report(progress.step(label, "Layer already exists"))
            return
        location: str | None = None
        for source in self._sources(blob.digest):
            with contextlib.suppress(RegistryError):
                location = await repository.mount(blob.digest, source.path)
                if location is None:
                    await self._report(progress.step(label, f"Mounted from {source.path}"))
                    return
                break
        if location is None:
            location = await repository.start_upload()
        await self._upload(location, blob.digest, blob.size, lambda: self._body(label, blob))
        await self._report(progress.step(label, "Pushed"))

    async def _upload(self, location: str, digest: Digest, size: int, body: Callable[[], AsyncIterator[bytes]]) -> None:
        try:
            await self._repository.upload(location, digest, size, body)
        except RegistryError as error:
            if error.answer not in (404, 405, 411, 413, 416):
                raise
            # The server does not take a blob in one piece.
            location = await self._repository.start_upload()
            await self._repository.upload_chunks(location, digest, _large(body()))

    def _sources(self, digest: Digest) -> list[Reference]:
        """Repositories of the same registry that are known to have the blob: images pulled from or pushed to them."""
        rows = self._images.database.execute(
            "SELECT DISTINCT image_digests.name FROM image_digests "
            "JOIN image_layers ON image_layers.image = image_digests.image WHERE image_layers.blob = ? LIMIT 16",
            (digest,),
        ).fetchall()
        own = self._repository.reference
        found = []
        for (name,) in rows:
            domain, _, path = name.partition("/")
            if domain == own.domain and path != own.path:
                found.append(Reference(domain, path))
        return found[:3]

    async def _body(self, label: str, blob: LayerBlob) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        sent, told = 0, 0.0
        await self._report(progress.bar(label, "Pushing", 0, blob.size))
        with self._images.blobs.open(blob.digest) as file:
            while sent < blob.size:
                chunk = await in_thread(file.read, _READ)
                if not chunk:
                    raise System(f"blob {blob.digest} is truncated")
                sent += len(chunk)
                yield chunk
                if loop.time() - told > _REPORT_EVERY or sent == blob.size:
                    told = loop.time()
                    await self._report(progress.bar(label, "Pushing", sent, blob.size))


def _described(content: bytes, digest: Digest) -> dict[str, object]:
    """A manifest's or index's descriptor as JSON."""
    document = manifests.decode(content, f"manifest {digest}")
    usual = manifests.OCI_MANIFEST if isinstance(document, Manifest) else manifests.OCI_INDEX
    return {"mediaType": document.media_type or usual, "digest": digest, "size": len(content)}


async def _large(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in pieces of about 8 MiB."""
    parts: list[bytes] = []
    async for piece in body:
        parts.append(piece)
        if sum(map(len, parts)) >= 8 * _READ:
            yield b"".join(parts)
            parts = []
    if parts:
        yield b"".join(parts)


async def _pieces(content: bytes) -> AsyncIterator[bytes]:
    yield content
