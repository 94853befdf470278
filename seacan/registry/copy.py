"""``seacan image copy``: images between registries, OCI layouts and archives, without a daemon and without unpacking.

A place is ``NAME[:TAG|@DIGEST]`` (a registry), ``oci:FOLDER[:TAG]`` (an OCI layout), or ``archive:FILE[:TAG]`` (the
same in a tar, which is also what ``docker save`` writes). Everything below the named manifest goes along byte for byte:
all platforms of an index, its attestations, artifacts of any type. Every byte is verified on the way; what the
destination has is not sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tarfile
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Protocol

from seacan.errors import InvalidParameter, NotFound
from seacan.images import manifest as manifests
from seacan.images import reference as references
from seacan.images.manifest import Descriptor, Index
from seacan.registry.client import Registries, RegistryError, Repository, Unreachable
from seacan.registry.credentials import Credentials
from seacan.registry.endpoints import Settings
from seacan.registry.group import Group
from seacan.registry.layout import Layout, verified
from seacan.storage import digest as digests
from seacan.storage.blobs import Blobs, DigestMismatch
from seacan.storage.digest import Digest
from seacan.storage.threads import in_thread

_AT_ONCE = 4
_READ = 1 << 20

Tell = Callable[[str], None]
"""Hears of each step, in words."""


class Origin(Protocol):
    """Where images come from."""

    async def manifest(self, reference: str) -> tuple[bytes, str]:
        """Bytes and media type of a manifest by tag or digest; "" is the only one there, or ``latest``."""

    def blob(self, descriptor: Descriptor) -> AsyncIterator[bytes]: ...


class Place(Origin, Protocol):
    """Where images are: one repository, or one layout."""

    async def has_blob(self, digest: Digest) -> bool: ...

    async def put_blob(self, descriptor: Descriptor, body: Callable[[], AsyncIterator[bytes]]) -> None: ...

    async def put_manifest(self, reference: str, media_type: str, content: bytes) -> None: ...

    async def finish(self) -> None: ...


async def copy(
    source: str,
    destination: str,
    *,
    credentials: Callable[[str], Credentials],
    insecure: list[str] | None = None,
    tell: Tell = lambda _text: None,
) -> Digest:
    """Copy an image; gives its digest. ``credentials`` are asked for by a registry's domain.

    Raises what the places raise, with their names; a copy that failed can be repeated and goes on where it was.
    """
    settings = Settings(insecure=insecure or [])
    registries = Registries(lambda: settings)
    async with contextlib.AsyncExitStack() as undo:
        undo.push_async_callback(registries.close)
        origin, name = await open_place(source, registries, credentials, undo, write=False)
        target, wanted = await open_place(destination, registries, credentials, undo, write=True)
        content, media_type = await origin.manifest(name)
        digest = digests.of(content)
        if digests.is_digest(wanted) and wanted != digest:
            raise InvalidParameter(f"{source} has digest {digest} and not that of {destination}")
        if isinstance(origin, RegistryPlace) and isinstance(target, RegistryPlace):
            target.beside(origin)
        await Copy(origin, target, tell).tree(content, media_type, wanted or name or digest, 0)
        await target.finish()
        return digest


class Copy:
    """One copy between two places. ``tell`` hears of each manifest and blob."""

    def __init__(self, origin: Origin, target: Place, tell: Tell) -> None:
        self._origin = origin
        self._target = target
        self._tell = tell
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._done: set[Digest] = set()

    async def tree(self, content: bytes, media_type: str, reference: str, depth: int) -> None:
        """A manifest and all below it, the lowest first: a registry refuses what refers to nothing."""
        if depth > 4:
            raise InvalidParameter("indexes are nested too deeply")
        document = manifests.decode(content, f"manifest {digests.of(content)}")
        if isinstance(document, Index):
            for child in document.manifests:
                inner, inner_type = await self._origin.manifest(child.digest)
                if digests.of(inner) != child.digest:
                    raise DigestMismatch(f"manifest verification failed for digest {child.digest}")
                await self.tree(inner, child.media_type or inner_type, child.digest, depth + 1)
        else:
            async with Group() as group:
                for blob in {blob.digest: blob for blob in (document.config, *document.layers)}.values():
                    group.create_task(self._blob(blob))
        await self._target.put_manifest(reference, document.media_type or media_type, content)
        self._tell(f"manifest {digests.of(content)}")

    async def _blob(self, descriptor: Descriptor) -> None:
        async with self._slots:
            if descriptor.digest in self._done:
                return
            self._done.add(descriptor.digest)
            if await self._target.has_blob(descriptor.digest):
                self._tell(f"blob {descriptor.digest} is there already")
                return
            await self._target.put_blob(descriptor, lambda: verified(descriptor, self._origin.blob(descriptor)))
            self._tell(f"blob {descriptor.digest} ({descriptor.size} bytes)")


async def open_place(
    name: str,
    registries: Registries,
    credentials: Callable[[str], Credentials],
    undo: contextlib.AsyncExitStack,
    *,
    write: bool,
) -> tuple[Place, str]:
    """The place that a user names, and the tag or digest there."""
    kind, _, rest = name.partition(":")
    if kind in ("oci", "archive"):
        path, tag = _split_path(rest)
        if kind == "oci":
            return Layout(path, write=write), tag
        scratch = Path(
            undo.enter_context(tempfile.TemporaryDirectory(prefix="seacan-copy-", dir=path.resolve().parent))
        )
        if not write:
            await in_thread(_extract, path, scratch)
        return _Archive(path, scratch, write=write), tag
    reference = references.parse(name.removeprefix("docker://"))
    repositories = registries.repositories(reference, credentials(reference.domain), push=write)
    failure: Unreachable | None = None
    for repository in repositories:
        try:
            await repository.ping()
        except Unreachable as error:
            failure = failure or error
            continue
        return RegistryPlace(repository), reference.digest or reference.with_default_tag().tag
    assert failure is not None
    raise failure


def _split_path(text: str) -> tuple[Path, str]:
    """``FOLDER[:TAG]``; raises :class:`InvalidParameter` for none."""
    path, colon, tag = text.rpartition(":")
    if not colon or "/" in tag:
        path, tag = text, ""
    if not path:
        raise InvalidParameter("oci: and archive: need a path")
    return Path(path), tag


class RegistryPlace:
    """A repository in a registry."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._neighbour = ""

    def beside(self, other: RegistryPlace) -> None:
        """Take blobs over from ``other`` without sending them, where it is a repository of the same registry."""
        if other._repository.endpoint == self._repository.endpoint:
            self._neighbour = other._repository.path

    async def manifest(self, reference: str) -> tuple[bytes, str]:
        content, media_type, _ = await self._repository.fetch_manifest(reference)
        return content, media_type

    async def blob(self, descriptor: Descriptor) -> AsyncIterator[bytes]:
        async with await self._repository.open_blob(descriptor.digest) as answer:
            async for chunk in answer.chunks():
                yield chunk

    async def has_blob(self, digest: Digest) -> bool:
        return await self._repository.has_blob(digest)

    async def put_blob(self, descriptor: Descriptor, body: Callable[[], AsyncIterator[bytes]]) -> None:
        if self._neighbour:
            location = await self._repository.mount(descriptor.digest, self._neighbour)
            if location is None:
                return
        else:
            location = await self._repository.start_upload()
        try:
            await self._repository.upload(location, descriptor.digest, descriptor.size, body)
        except RegistryError as error:
            if error.answer not in (404, 405, 411, 413, 416):
                raise
            location = await self._repository.start_upload()
            await self._repository.upload_chunks(location, descriptor.digest, body())

    async def put_manifest(self, reference: str, media_type: str, content: bytes) -> None:
        await self._repository.put_manifest(reference, media_type, content)

    async def finish(self) -> None:
        return None


class Stored:
    """The engine's own blobs, as where images come from: by digest, without names."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    async def manifest(self, reference: str) -> tuple[bytes, str]:
        return self._blobs.read(Digest(reference)), manifests.OCI_MANIFEST

    async def blob(self, descriptor: Descriptor) -> AsyncIterator[bytes]:
        with self._blobs.open(descriptor.digest) as file:
            while chunk := await in_thread(file.read, _READ):
                yield chunk


class _Archive(Layout):
    """An OCI layout in a tar file, unpacked beside it for as long as it is used."""

    def __init__(self, path: Path, scratch: Path, *, write: bool) -> None:
        super().__init__(scratch, write=write)
        self._path = path

    async def finish(self) -> None:
        await super().finish()
        building = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            await in_thread(_pack, self._folder, building)
            building.rename(self._path)
        finally:
            building.unlink(missing_ok=True)


def _extract(path: Path, folder: Path) -> None:
    """Only what a layout consists of, by names that are known to be harmless."""
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                blob = name.removeprefix("blobs/sha256/")
                if not member.isfile() or not (
                    name in ("index.json", "oci-layout") or (digests.is_digest(f"sha256:{blob}") and blob != name)
                ):
                    continue
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                content = archive.extractfile(member)
                assert content is not None
                with target.open("wb") as file:
                    while chunk := content.read(_READ):
                        file.write(chunk)
    except (tarfile.TarError, EOFError) as error:
        raise InvalidParameter(f"archive {path}: {error}") from error
    except FileNotFoundError:
        raise NotFound(f"archive {path} does not exist") from None


def _pack(folder: Path, path: Path) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name in (
            "oci-layout",
            "index.json",
            *sorted(f"blobs/sha256/{blob}" for blob in os.listdir(folder / "blobs/sha256")),
        ):
            info = tarfile.TarInfo(name)
            with (folder / name).open("rb") as file:
                info.size, info.mode = os.fstat(file.fileno()).st_size, 0o644
                archive.addfile(info, file)
