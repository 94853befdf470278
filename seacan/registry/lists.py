"""Indexes ("manifest lists") made by hand: one name for images of several platforms that are in registries already.

What is here is not kept anywhere: :mod:`seacan.cli.manifest` has the drafts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import msgspec

from seacan.errors import InvalidParameter
from seacan.images import manifest as manifests
from seacan.images import reference as references
from seacan.images.manifest import Descriptor, Index, Manifest, Platform
from seacan.images.reference import Reference
from seacan.registry.client import Registries
from seacan.registry.copy import Copy, RegistryPlace, open_place
from seacan.registry.credentials import Credentials
from seacan.registry.layout import verified
from seacan.storage import digest as digests
from seacan.storage.digest import Digest

Wallet = Callable[[str], Credentials]
"""The credentials for a registry's domain."""
_CONFIG_LIMIT = 1 << 20


class Entry(msgspec.Struct, frozen=True):
    """One image of an index: where it was found, and what the index will say of it."""

    reference: str
    descriptor: Descriptor


class Document(msgspec.Struct, frozen=True):
    """A manifest or index as a registry has it."""

    content: bytes
    media_type: str
    digest: Digest

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(media_type=self.media_type, digest=self.digest, size=len(self.content))


async def fetch(reference: Reference, registries: Registries, wallet: Wallet) -> tuple[Document, RegistryPlace]:
    """The document that ``reference`` names, and the repository it is in."""
    async with contextlib.AsyncExitStack() as undo:
        place, name = await open_place(str(reference), registries, wallet, undo, write=False)
    assert isinstance(place, RegistryPlace)
    content, media_type = await place.manifest(name)
    told = manifests.decode(content, str(reference)).media_type
    return Document(content, told or media_type, digests.of(content)), place


async def platform_of(document: Document, place: RegistryPlace) -> Platform:
    """What an image's configuration says that it is for. Raises :class:`InvalidParameter` for an index."""
    decoded = manifests.decode(document.content, f"manifest {document.digest}")
    if isinstance(decoded, Index):
        raise InvalidParameter(f"{document.digest} is a manifest list")
    if decoded.config.media_type not in (manifests.OCI_CONFIG, manifests.DOCKER_CONFIG):
        return Platform()
    if decoded.config.size > _CONFIG_LIMIT:
        raise InvalidParameter(f"configuration {decoded.config.digest} is larger than {_CONFIG_LIMIT} bytes")
    content = b"".join([chunk async for chunk in verified(decoded.config, place.blob(decoded.config))])
    try:
        return msgspec.json.decode(content, type=Platform)
    except msgspec.DecodeError as error:
        raise InvalidParameter(f"configuration {decoded.config.digest} is malformed: {error}") from error


async def entry(text: str, registries: Registries, wallet: Wallet) -> Entry:
    """The image ``text`` as an index will name it."""
    reference = references.parse(text).with_default_tag()
    document, place = await fetch(reference, registries, wallet)
    platform = await platform_of(document, place)
    return Entry(str(reference), msgspec.structs.replace(document.descriptor, platform=platform))


def assemble(entries: Sequence[Entry]) -> Document:
    """The index of these images: Docker's where all of them are Docker's, OCI's otherwise.

    Raises :class:`InvalidParameter` where an image's operating system or architecture is not known.
    """
    for item in entries:
        platform = item.descriptor.platform
        if platform is None or not platform.os or not platform.architecture:
            raise InvalidParameter(
                f"manifest {item.reference} must have an OS and Architecture to be pushed to a registry"
            )
    of_docker = all(item.descriptor.media_type == manifests.DOCKER_MANIFEST for item in entries)
    media_type = manifests.DOCKER_LIST if of_docker else manifests.OCI_INDEX
    index = Index(schema_version=2, media_type=media_type, manifests=[item.descriptor for item in entries])
    content = msgspec.json.format(msgspec.json.encode(index), indent=3)
    return Document(content, media_type, digests.of(content))


async def publish(
    target: Reference,
    entries: Sequence[Entry],
    registries: Registries,
    wallet: Wallet,
    tell: Callable[[str], None] = lambda _text: None,
) -> Digest:
    """Put an index and everything it refers to under ``target``'s name; gives its digest.

    Blobs in the same registry are mounted, and others copied.
    """
    document = assemble(entries)
    async with contextlib.AsyncExitStack() as undo:
        place, tag = await open_place(str(target), registries, wallet, undo, write=True)
        for item in entries:
            found = msgspec.structs.replace(references.parse(item.reference), tag="", digest=item.descriptor.digest)
            origin, _ = await open_place(str(found), registries, wallet, undo, write=False)
            assert isinstance(origin, RegistryPlace) and isinstance(place, RegistryPlace)
            place.beside(origin)
            content, media_type = await origin.manifest(item.descriptor.digest)
            await Copy(origin, place, tell).tree(content, media_type, item.descriptor.digest, 0)
        await place.put_manifest(tag, document.media_type, document.content)
    return document.digest


def kind(document: Document) -> str:
    """The name that ``docker manifest inspect --verbose`` gives to a document of this kind; "" for an index."""
    if not isinstance(manifests.decode(document.content, f"manifest {document.digest}"), Manifest):
        return ""
    return "SchemaV2Manifest" if document.media_type == manifests.DOCKER_MANIFEST else "OCIManifest"
