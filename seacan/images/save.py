"""``docker save``: images as an archive that every Docker since 1.10 and every OCI tool reads.

What dockerd has written since version 25: an OCI layout (``oci-layout``, ``index.json``, ``blobs/``) that is a
docker-archive too (``manifest.json``, ``repositories``). Blobs are copied as they are kept, so layers stay
compressed if they came so, and a pulled image's manifest keeps its digest.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import msgspec

from seacan.errors import NotFound, System
from seacan.images import manifest as manifests
from seacan.images import reference as references
from seacan.images.commit import ensure_archives
from seacan.images.manifest import Descriptor, Index, Manifest, Platform
from seacan.images.reference import Reference
from seacan.images.store import Image, Images, LayerBlob
from seacan.storage import digest as digests
from seacan.storage.digest import Digest
from seacan.storage.pack import BLOCK, header
from seacan.storage.threads import in_thread

_READ = 1 << 20


class _Selected(msgspec.Struct):
    """An image and the names it is asked for under; ``others`` are the images of its index to put beside it."""

    image: Image
    references: list[Reference]
    others: list[Image]
    whole: bool
    """Whether an index the image came in goes along, rather than its own manifest alone."""


def select(images: Images, names: Sequence[str], platforms: Sequence[Platform] = ()) -> list[_Selected]:
    """The images that ``names`` mean, each once; a repository's name alone means all its tags.

    Of an index that is all that is here of it, or what is here for ``platforms``; for one platform it is that image's
    manifest alone. Raises :class:`NotFound`.
    """
    selected: dict[Digest, _Selected] = {}

    def add(name: str, reference: Reference | None) -> None:
        wanted = {image.id: image for image in _wanted(images, name, platforms)}
        first, *others = wanted.values()
        found = selected.setdefault(first.id, _Selected(first, [], others, len(platforms) != 1))
        if reference is not None and reference not in found.references:
            found.references.append(reference)

    for name in names:
        if references.is_identifier(name) or digests.is_digest(name):
            add(name, None)
            continue
        reference = references.parse(name)
        if reference.name_only:
            tagged = images.tags_of(reference)
            for _, tag in tagged:
                add(tag.familiar, tag)
            if tagged:
                continue
        elif images.lookup(reference) is not None:
            add(name, reference if reference.tag and not reference.digest else None)
            continue
        try:
            add(images.resolve(name), None)
        except NotFound:
            raise NotFound(f"No such image: {name}") from None
    return list(selected.values())


def _wanted(images: Images, name: str, platforms: Sequence[Platform]) -> list[Image]:
    try:
        return [images.get(name, platform=platform) for platform in platforms] or [
            images.get(id) for id in images.family(name)
        ]
    except NotFound as error:
        if platforms and images.resolve(name):
            raise NotFound(f"no suitable export target found: {error.message}") from None
        raise


async def save(images: Images, selected: Sequence[_Selected]) -> AsyncIterator[bytes]:
    """The archive, piece by piece, of images chosen with :func:`select`."""
    archive = _Archive(images)
    for chosen in selected:
        for image in (chosen.image, *chosen.others):
            await ensure_archives(images, image.id)
    with images.lease() as lease:
        plan = [archive.plan(item) for item in selected]
        for digest in archive.blobs:
            lease.add(digest)
        # Before the first byte: a failure after it can only cut the connection, and the client never learns why.
        for digest, content in archive.blobs.items():
            if content is None:
                await in_thread(images.blobs.verify, digest)
        async for piece in archive_blobs(images, archive.blobs):
            yield piece
        index = Index(
            schema_version=2,
            media_type=manifests.OCI_INDEX,
            manifests=[descriptor for item in plan for descriptor in item.descriptors],
        )
        yield tar_member(b"index.json", msgspec.json.encode(index))
        yield tar_member(b"manifest.json", msgspec.json.encode([item.listing for item in plan]))
        yield tar_member(b"oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        repositories: dict[str, dict[str, str]] = {}
        for item in plan:
            for reference in item.references:
                repositories.setdefault(reference.familiar_name, {})[reference.tag] = item.top
        if repositories:
            yield tar_member(b"repositories", msgspec.json.encode(repositories))
        yield bytes(2 * BLOCK)
        for item in plan:
            images.log_event("save", item.id, item.id)


async def archive_blobs(images: Images, blobs: Mapping[Digest, bytes | None]) -> AsyncIterator[bytes]:
    """``blobs/`` of an OCI layout as tar; what has no content given is copied from the store, where it is held."""
    yield header(b"blobs/", b"5", 0o755, 0, 0, 0, 0)
    yield header(b"blobs/sha256/", b"5", 0o755, 0, 0, 0, 0)
    for digest, content in sorted(blobs.items()):
        name = f"blobs/sha256/{digests.hexadecimal(digest)}".encode()
        if content is not None:
            yield tar_member(name, content)
            continue
        with images.blobs.open(digest) as file:
            size = images.blobs.size(digest)
            yield header(name, b"0", 0o644, 0, 0, size, 0)
            left = size
            while left:
                chunk = await in_thread(file.read, min(left, _READ))
                if not chunk:
                    raise System(f"blob {digest} is truncated")
                left -= len(chunk)
                yield chunk
            yield bytes(-size % BLOCK)


class _Planned(msgspec.Struct):
    id: Digest
    descriptors: list[Descriptor]
    listing: dict[str, Any]
    references: list[Reference]
    top: str


class _Archive:
    def __init__(self, images: Images) -> None:
        self._images = images
        self.blobs: dict[Digest, bytes | None] = {}
        """What goes into ``blobs/``; None: copied from the store."""

    def plan(self, item: _Selected) -> _Planned:
        """Add what an image needs, and say how the archive's own documents are to name it."""
        image = item.image
        own, layers = self._add_image(image)
        beside = [self._add_image(other)[0].digest for other in item.others]
        sources = {reference: self._images.source(reference) for reference in item.references} if item.whole else {}
        indexes = {source: self._add_index(source, {own.digest, *beside}) for source in sources.values() if source}
        item.references.sort(key=str)
        listing = {
            "Config": f"blobs/sha256/{digests.hexadecimal(image.id)}",
            "RepoTags": [reference.familiar for reference in item.references] or None,
            "Layers": [f"blobs/sha256/{digests.hexadecimal(layer.digest)}" for layer in layers],
            "LayerSources": {
                diff_id: Descriptor(media_type=oci_type(layer.media_type), size=layer.size, digest=layer.digest)
                for diff_id, layer in zip(image.config.rootfs.diff_ids, layers, strict=True)
            },
        }
        if image.parent and any(other == image.parent for other in self._images.ids()):
            listing["Parent"] = image.parent
        descriptors = [
            msgspec.structs.replace(
                indexes.get(sources.get(reference) or own.digest) or own,
                annotations={
                    "io.containerd.image.name": str(reference),
                    "org.opencontainers.image.ref.name": reference.tag,
                },
            )
            for reference in item.references
        ] or [own]
        top = digests.hexadecimal(layers[-1].digest) if layers else digests.hexadecimal(image.id)
        return _Planned(image.id, descriptors, listing, item.references, top)

    def _add_image(self, image: Image) -> tuple[Descriptor, list[LayerBlob]]:
        config = self._images.blobs.read(image.id)
        layers: list[LayerBlob] = []
        for position, blob in enumerate(self._images.layer_blobs(image.id)):
            if blob is None:
                raise System(f"layer {position} of image {image.id} has no archive")
            if self._images.blobs.size(blob.digest) != blob.size:
                raise System(f"layer {position} of image {image.id} is damaged: blob {blob.digest} is truncated")
            layers.append(blob)
        manifest, digest = self._manifest(image, config, layers)
        self.blobs[digest] = manifest
        self.blobs[image.id] = config
        for layer in layers:
            self.blobs[layer.digest] = None
        media_type = manifests.decode(manifest, f"manifest {digest}").media_type or manifests.OCI_MANIFEST
        return Descriptor(media_type=media_type, digest=digest, size=len(manifest)), layers

    def _add_index(self, source: Digest, chosen: set[Digest]) -> Descriptor | None:
        """Add an index, those in it, and the attestations of the chosen manifests; None where it is no index."""
        if not self._images.indexes.members(source):
            return None
        for entry in self._images.indexes.entries(source):
            digest = entry.descriptor.digest
            if entry.kind == "index":
                self.blobs[digest] = self._images.blobs.read(digest)
            elif entry.attests in chosen and entry.available:
                self.blobs[digest] = self._images.blobs.read(digest)
                for blob in entry.content:
                    self.blobs.setdefault(blob.digest, None)
        content = self.blobs[source] = self._images.blobs.read(source)
        media_type = manifests.decode(content, f"index {source}").media_type or manifests.OCI_INDEX
        return Descriptor(media_type=media_type, digest=source, size=len(content))

    def _manifest(self, image: Image, config: bytes, layers: Sequence[LayerBlob]) -> tuple[bytes, Digest]:
        """The manifest the image came with, if it still describes what is kept; or else a new one."""
        if image.manifest is not None and self._images.blobs.contains(image.manifest):
            content = self._images.blobs.read(image.manifest)
            document = manifests.decode(content, f"manifest {image.manifest}")
            if isinstance(document, Manifest) and [layer.digest for layer in document.layers] == [
                layer.digest for layer in layers
            ]:
                return content, image.manifest
        content = new_manifest(image, len(config), layers)
        return content, digests.of(content)


def new_manifest(image: Image, config_size: int, layers: Sequence[LayerBlob]) -> bytes:
    """An OCI manifest for an image that has none."""
    manifest = Manifest(
        schema_version=2,
        media_type=manifests.OCI_MANIFEST,
        config=Descriptor(media_type=manifests.OCI_CONFIG, digest=image.id, size=config_size),
        layers=[
            Descriptor(media_type=oci_type(layer.media_type), digest=layer.digest, size=layer.size) for layer in layers
        ],
    )
    return msgspec.json.encode(manifest)


def oci_type(media_type: str) -> str:
    """OCI's media type for a layer of Docker's."""
    compression = manifests.layer_compression(media_type)
    return manifests.layer_type(compression, oci=True) if compression else media_type or manifests.OCI_LAYER


def tar_member(name: bytes, content: bytes) -> bytes:
    """A small file as a tar has it."""
    return header(name, b"0", 0o644, 0, 0, len(content), 0) + content + bytes(-len(content) % BLOCK)
