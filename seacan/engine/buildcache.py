"""Caches of builds on their way in and out: found where the client names them, and written there.

``type=registry`` is a manifest in a registry (or the inline cache of an image there or here), ``type=local`` a folder
of the client's, ``type=inline`` a part of the image that is built.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

from seacan.build import cacheconfig
from seacan.build.cache import Layer
from seacan.build.cacheconfig import Archive, Claims, Entry, Record
from seacan.build.imports import Cache
from seacan.build.solver import Solved
from seacan.engine import buildarchives
from seacan.errors import InvalidParameter, NotFound, SeacanError, Unsupported
from seacan.images import config as image_config
from seacan.images import manifest as manifests
from seacan.images import reference as references
from seacan.images.commit import convert_layer
from seacan.images.manifest import Descriptor, Index, Manifest
from seacan.images.store import LayerBlob, Lease
from seacan.registry.copy import Place, RegistryPlace, Stored
from seacan.registry.credentials import Credentials
from seacan.registry.layout import verified
from seacan.storage import digest as digests
from seacan.storage.blobs import DOCUMENT_LIMIT
from seacan.storage.compression import GZIP
from seacan.storage.digest import DiffID, Digest

if TYPE_CHECKING:
    from seacan.engine.builds import Outcome
    from seacan.engine.engine import Engine


class ContentStores(Protocol):
    """The client's content stores, by the names it has for them."""

    def content(self, id: str) -> StoreAtClient: ...


class StoreAtClient(Place, Protocol):
    async def read(self, digest: Digest, size: int) -> bytes: ...


Ask = Callable[[str], Awaitable[Credentials]]


async def open_cache(engine: Engine, entry: Entry, ask: Ask, stores: ContentStores | None) -> Cache:
    """A cache that a client has named, its claims read and its layers left where they are.

    :raises SeacanError: there is none, it is malformed, or the signature policy refuses it.
    """
    entry.check()
    if entry.type == "local":
        if stores is None:
            raise Unsupported("a local cache needs a client with a content store")
        store = stores.content(f"local:{entry.attrs.get('src', '')}")
        digest = entry.attrs.get("digest", "")
        if not digest:
            raise InvalidParameter("local cache importer requires explicit digest")
        content, _ = await store.manifest(digest)
        name = f"local:{entry.attrs.get('src', '')}"
        return Cache(name, await _claims(content, lambda each: store.read(each.digest, each.size), name), store)
    if entry.type != "registry":
        raise Unsupported(f"unknown cache importer: {entry.type}")
    name = entry.attrs.get("ref", "")
    if not name:
        raise InvalidParameter("registry cache importer requires ref")
    reference = references.parse(name).with_default_tag()
    inline = inline_here(engine, name)
    if inline is not None:
        return inline
    repository = await engine.distribution.repository(reference, await ask(reference.domain))
    content, _, digest = await repository.fetch_manifest(reference.digest or reference.tag)
    # Its layers end up in images that run here: whoever says what may be pulled says it of a cache too.
    await engine.distribution.puller.check(reference, digest, repository)

    async def document(digest: Digest) -> bytes:
        return (await repository.fetch_manifest(digest))[0]

    claims = await _claims(content, lambda each: repository.blob(each.digest, DOCUMENT_LIMIT), str(reference), document)
    return Cache(str(reference), claims, RegistryPlace(repository))


async def _claims(
    content: bytes,
    blob: Callable[[Descriptor], Awaitable[bytes]],
    name: str,
    document: Callable[[Digest], Awaitable[bytes]] | None = None,
) -> Claims:
    """What a cache manifest, in any of its three forms, claims."""
    parsed = manifests.decode(content, f"cache manifest of {name}")
    if isinstance(parsed, Index):
        configs = [each for each in parsed.manifests if each.media_type == cacheconfig.MEDIA_TYPE]
        if configs:
            blobs = {str(each.digest): each for each in parsed.manifests}
            return cacheconfig.decode(await blob(configs[0]), blobs, f"cache of {name}")
        chosen = manifests.choose(parsed, manifests.host_platform())
        if not chosen or document is None:
            raise InvalidParameter(f"{name} has no cache for {manifests.host_platform()}")
        inner = manifests.decode(await document(chosen[0].digest), f"manifest {chosen[0].digest}")
        if not isinstance(inner, Manifest):
            raise InvalidParameter(f"{name}: indexes are nested too deeply")
        parsed = inner
    config = await blob(parsed.config)
    if parsed.config.media_type == cacheconfig.MEDIA_TYPE:
        return cacheconfig.decode(config, {each.digest: each for each in parsed.layers}, f"cache of {name}")
    diff_ids = image_config.decode(config, f"configuration of {name}").rootfs.diff_ids
    if len(diff_ids) != len(parsed.layers):
        raise InvalidParameter(f"{name} has {len(parsed.layers)} layers and its configuration {len(diff_ids)}")
    archives = [Archive(layer, diff_id) for layer, diff_id in zip(parsed.layers, diff_ids, strict=True)]
    return cacheconfig.decode_inline(_inline(config, name), archives, f"inline cache of {name}")


def _inline(config: bytes, name: str) -> bytes:
    document = msgspec.json.decode(config)
    encoded = document.get(cacheconfig.INLINE) if isinstance(document, dict) else None
    if not isinstance(encoded, str):
        raise NotFound(f"{name} has no build cache: it was made without inline cache")
    try:
        return base64.b64decode(encoded, validate=True)
    except ValueError:
        raise InvalidParameter(f"inline cache of {name} is malformed") from None


def inline_here(engine: Engine, name: str) -> Cache | None:
    """The inline cache of an image that this engine has."""
    images = engine.images
    try:
        image = images.get(name)
        records = _inline(images.blobs.read(image.id), name)
    except SeacanError:
        return None
    blobs = images.layer_blobs(image.id)
    if any(blob is None or not images.blobs.contains(blob.digest) for blob in blobs):
        return None  # archives made on demand would cost what the steps may cost
    archives = [
        Archive(Descriptor(media_type=blob.media_type, digest=blob.digest, size=blob.size), diff_id)
        for blob, diff_id in zip(blobs, image.config.rootfs.diff_ids, strict=True)
        if blob is not None
    ]
    return Cache(
        name, cacheconfig.decode_inline(records, archives, f"inline cache of {name}"), Stored(engine.images.blobs)
    )


# --- the way out ------------------------------------------------------------------------------------------------------


class Exporter:
    """The cache of one finished build, in the form that ``entry`` asks for.

    Layers are archived when a place does not have them.
    """

    def __init__(self, engine: Engine, outcome: Outcome, entry: Entry | None = None) -> None:
        self._engine = engine
        self._encoding = entry.encoding if entry is not None else GZIP
        self._oci = entry.oci if entry is not None else True
        self._solved = outcome.solved
        self._result = {id(layer) for layer in outcome.layers}
        self._imports = outcome.imports
        self._lease = Lease(engine.images._leases)
        self._archives: dict[int, Archive | None] = {}
        self._layers: dict[Digest, Layer] = {}

    async def records(self, *, everything: bool) -> list[Record]:
        """The steps, with the layers of the result, or with all that are known (``mode=max``)."""
        found: list[Record] = []
        for step in self._solved:
            archive = below = None
            if everything or id(step.layer) in self._result:
                archive = await self._archive(step)
                below = self._archives.get(id(step.below)) if step.below is not None else None
            found.append(Record(step.key, step.inputs, step.definition, archive, below, step.layer.created))
        return found

    async def inline(self, diff_ids: Sequence[str]) -> str:
        """What the image's configuration says of the cache."""
        records = [
            Record(
                step.key,
                step.inputs,
                step.definition,
                Archive(Descriptor(digest=Digest(""), size=0), DiffID(step.layer.diff_id))
                if id(step.layer) in self._result
                else None,
                created=step.layer.created,
            )
            for step in self._solved
        ]
        return base64.b64encode(cacheconfig.encode_inline(records, diff_ids)).decode()

    async def write(self, place: Place, reference: str, entry: Entry, tell: Callable[[str], None]) -> Descriptor:
        """Write the cache to a place; gives its manifest's descriptor."""
        records = await self.records(everything=entry.attrs.get("mode", "min") == "max")
        config, layers = cacheconfig.encode(records)
        described = Descriptor(media_type=cacheconfig.MEDIA_TYPE, digest=digests.of(config), size=len(config))
        for layer in layers:
            if not await place.has_blob(layer.digest):
                await self._keep(layer)
                await place.put_blob(layer, lambda layer=layer: self._body(layer))  # type: ignore[misc]
            tell(f"writing layer {layer.digest}")

        async def body() -> AsyncIterator[bytes]:
            yield config

        if not await place.has_blob(described.digest):
            await place.put_blob(described, body)
        tell(f"writing config {described.digest}")
        if entry.flag("image-manifest", self._oci):
            media_type = manifests.OCI_MANIFEST
            content = msgspec.json.encode(
                Manifest(schema_version=2, media_type=media_type, config=described, layers=layers)
            )
        else:
            media_type = manifests.OCI_INDEX if self._oci else manifests.DOCKER_LIST
            content = msgspec.json.encode(
                Index(schema_version=2, media_type=media_type, manifests=[*layers, described])
            )
        digest = digests.of(content)
        await place.put_manifest(reference or digest, media_type, content)
        tell(f"writing cache manifest {digest}")
        return Descriptor(media_type=media_type, digest=digest, size=len(content))

    def close(self) -> None:
        held = self._lease.names()
        self._lease.release()
        self._engine.images.collect(held)

    # --- layers -------------------------------------------------------------------------------------------------

    async def _archive(self, step: Solved) -> Archive | None:
        layer = step.layer
        known = self._archives.get(id(layer))
        if known is not None:
            return known
        if not layer.here:
            archive = await self._archive_there(step.claim.archive) if step.claim and step.claim.archive else None
        else:
            archive = await self._archive_here(layer)
        self._archives[id(layer)] = archive
        return archive

    async def _archive_here(self, layer: Layer) -> Archive:
        solver = self._engine.builds.solver
        await solver.diff(layer)
        blob = buildarchives.known(self._engine, layer, self._encoding)
        if blob is None:
            blob = await self._make(layer)
        self._layers[blob.digest] = layer
        media_type = manifests.layer_type(manifests.layer_compression(blob.media_type), oci=self._oci)
        return Archive(Descriptor(media_type=media_type, digest=blob.digest, size=blob.size), DiffID(layer.diff_id))

    async def _archive_there(self, claimed: Archive) -> Archive:
        """Of a layer that an imported cache has: fetched only where it is to have another form."""
        described = claimed.descriptor
        compression = manifests.layer_compression(described.media_type)
        if self._encoding.force and compression != self._encoding.kind.value and self._imports is not None:
            await self._imports.keep(described)
            blob = LayerBlob(described.digest, described.size, described.media_type)
            blob = await convert_layer(self._engine.images, blob, self._lease, self._encoding)
            described = Descriptor(media_type=blob.media_type, digest=blob.digest, size=blob.size)
            compression = self._encoding.kind.value
        if compression:
            media_type = manifests.layer_type(compression, oci=self._oci)
            described = msgspec.structs.replace(described, media_type=media_type)
        return Archive(described, claimed.diff_id)

    async def _make(self, layer: Layer) -> LayerBlob:
        return await buildarchives.archive(self._engine, layer, self._lease, self._encoding)

    async def _keep(self, descriptor: Descriptor) -> None:
        """Have the archive in the blob store, if its layer is here."""
        blobs = self._engine.images.blobs
        self._lease.add(descriptor.digest)
        layer = self._layers.get(descriptor.digest)
        if blobs.contains(descriptor.digest) or layer is None:
            return
        made = await self._make(layer)
        if made.digest != descriptor.digest and not blobs.contains(descriptor.digest):
            # It came from elsewhere, made by another compressor.
            self._engine.builds.cache.set_archive(layer, made)
            raise InvalidParameter(f"cached layer {descriptor.digest} cannot be made again; build once more")

    async def _body(self, descriptor: Descriptor) -> AsyncIterator[bytes]:
        if self._engine.images.blobs.contains(descriptor.digest):
            async for piece in verified(descriptor, Stored(self._engine.images.blobs).blob(descriptor)):
                yield piece
            return
        if self._imports is None:
            raise NotFound(f"cached layer {descriptor.digest} is gone")
        async for piece in self._imports.blob(descriptor):
            yield piece
