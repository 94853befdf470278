"""``docker push``: an image to its registry, with Docker's progress messages to the letter.

What was pulled is sent byte for byte, under the same digests. What the registry has is not sent again: known by HEAD,
or mounted from another repository of the same registry. Layers kept uncompressed are compressed once, and the
compressed archive takes the place of the other.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec
from isal import isal_zlib

from seacan.errors import NotFound, SeacanError, System
from seacan.images import manifest as manifests
from seacan.images import progress
from seacan.images.commit import ensure_archives
from seacan.images.manifest import Descriptor, Manifest, Platform
from seacan.images.progress import Report, short_id
from seacan.images.reference import Reference
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
        tagged = self.images.tags_of(reference)
        if not tagged:
            raise NotFound(f"An image does not exist locally with the tag: {reference.familiar_name}")
        if not all_tags:
            wanted = reference.with_default_tag()
            tagged = [(id, tag) for id, tag in tagged if tag.tag == wanted.tag]
            if not tagged:
                raise NotFound(f"tag does not exist: {wanted.familiar}")
        for id, tag in tagged:
            image = self.images.get(id)
            if platform is not None and not image.platform.satisfies(platform):
                raise NotFound(
                    f"image with reference {tag.familiar} was found but its platform ({image.platform}) does not match "
                    f"the specified platform ({platform})"
                )
        failure: SeacanError | None = None
        for repository in self.registries.repositories(reference, credentials, push=True):
            try:
                await repository.ping()
                return [await _Push(self, repository, report).run(id, tag) for id, tag in tagged]
            except Unreachable as error:
                failure = failure or error
        assert failure is not None
        raise failure


class _Push:
    def __init__(self, pusher: Pusher, repository: Repository, report: Report) -> None:
        self._pusher = pusher
        self._images = pusher.images
        self._repository = repository
        self._report = report

    async def run(self, id: Digest, reference: Reference) -> Digest:
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
            async with Group() as group:
                tasks = [
                    group.create_task(self._push_layer(diff_id, blob, slots, lease))
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
        await self._report(progress.status(f"{reference.tag}: digest: {digest} size: {len(content)}"))
        await self._report(
            {"progressDetail": {}, "aux": {"Tag": reference.tag, "Digest": digest, "Size": len(content)}}
        )
        attributes = {**(image.config.defaults.labels or {}), "name": reference.familiar_name}
        self._images.emit("image", "push", reference.familiar, attributes)
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
                    media_type=_oci_type(layer.media_type) if oci else layer.media_type,
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
        self, diff_id: DiffID, blob: LayerBlob | None, slots: asyncio.Semaphore, lease: Lease
    ) -> LayerBlob:
        label = short_id(diff_id)
        if blob is None:
            raise System(f"layer {diff_id} has no archive to push")
        async with slots:
            if blob.media_type in _PLAIN:
                blob = await self._compress(blob, lease)
            for attempt in range(1, self._pusher.attempts + 1):
                try:
                    await self._send_layer(label, blob)
                    return blob
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
        raise AssertionError("unreachable")

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

    async def _compress(self, blob: LayerBlob, lease: Lease) -> LayerBlob:
        """The gzipped form of a layer that is kept as it is unpacked."""

        def compress() -> tuple[Digest, int]:
            with self._images.blobs.open(blob.digest) as file, self._images.blobs.writer("compressed layer") as writer:
                compressor = isal_zlib.compressobj(1, isal_zlib.DEFLATED, 31)
                while chunk := file.read(_READ):
                    writer.write(compressor.compress(chunk))
                writer.write(compressor.flush())
                lease.add(writer.digest)
                return writer.commit(), writer.size

        digest, size = await in_thread(compress)
        return LayerBlob(digest, size, manifests.DOCKER_LAYER_GZIP)


def _oci_type(media_type: str) -> str:
    return {
        manifests.DOCKER_LAYER: manifests.OCI_LAYER,
        manifests.DOCKER_LAYER_GZIP: manifests.OCI_LAYER + "+gzip",
    }.get(media_type, media_type)


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
