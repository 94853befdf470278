"""OCI layouts in folders, and bytes that are what their descriptor says. Knows no registry.

Format: https://github.com/opencontainers/image-spec/blob/main/image-layout.md
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec

from seacan.errors import InvalidParameter, NotFound, System
from seacan.images import manifest as manifests
from seacan.images.manifest import Descriptor, Index
from seacan.storage import digest as digests
from seacan.storage.blobs import DOCUMENT_LIMIT, DigestMismatch
from seacan.storage.digest import Digest
from seacan.storage.threads import in_thread

_READ = 1 << 20
_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'


async def verified(descriptor: Descriptor, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes; raises before the last piece is passed on if they are not what the descriptor says."""
    checksum = hashlib.sha256()
    size = 0
    held = b""
    async for chunk in body:
        size += len(chunk)
        if size > descriptor.size:
            raise DigestMismatch(f"blob {descriptor.digest}: more than the announced {descriptor.size} bytes")
        checksum.update(chunk)
        if held:
            yield held
        held = chunk
    if size != descriptor.size or "sha256:" + checksum.hexdigest() != descriptor.digest:
        raise DigestMismatch(f"blob verification failed for digest {descriptor.digest}")
    if held:
        yield held


class Layout:
    """An OCI layout: a :class:`seacan.registry.copy.Place`. With ``write`` its folder is made if need be.

    :raises NotFound: it is to be read, and is none.
    """

    def __init__(self, folder: Path, *, write: bool) -> None:
        self._folder = folder
        self._blobs = folder / "blobs/sha256"
        self._index = Index(schema_version=2, media_type=manifests.OCI_INDEX)
        if write:
            self._blobs.mkdir(parents=True, exist_ok=True)
            (folder / "oci-layout").write_bytes(_LAYOUT)
        if not write or (folder / "index.json").exists():
            try:
                document = manifests.decode((folder / "index.json").read_bytes(), f"{folder}/index.json")
            except FileNotFoundError:
                raise NotFound(f"{folder} is no OCI layout: it has no index.json") from None
            if not isinstance(document, Index):
                raise InvalidParameter(f"{folder}/index.json is not an image index")
            self._index = document

    def path(self, digest: Digest) -> Path:
        """Where a blob is, if it is there."""
        return self._blobs / digests.hexadecimal(digest)

    async def manifest(self, reference: str) -> tuple[bytes, str]:
        if digests.is_digest(reference):
            return self._read(Digest(reference)), ""
        named = [item for item in self._index.manifests if not reference or _tag(item) == reference]
        if len({item.digest for item in named}) != 1:
            problem = "has no" if not named else "has more than one"
            raise NotFound(f"{self._folder} {problem} image{f' tagged {reference}' if reference else ''}")
        return self._read(named[0].digest), named[0].media_type

    def _read(self, digest: Digest) -> bytes:
        path = self.path(digest)
        try:
            with path.open("rb") as file:
                content = file.read(DOCUMENT_LIMIT + 1)
        except FileNotFoundError:
            raise NotFound(f"{self._folder} has no blob {digest}") from None
        if digests.of(content) != digest:
            raise DigestMismatch(f"{path} is not what its name says")
        return content

    async def blob(self, descriptor: Descriptor) -> AsyncIterator[bytes]:
        try:
            file = self.path(descriptor.digest).open("rb")
        except FileNotFoundError:
            raise NotFound(f"{self._folder} has no blob {descriptor.digest}") from None
        with file:
            while chunk := await in_thread(file.read, _READ):
                yield chunk

    async def has_blob(self, digest: Digest) -> bool:
        return self.path(digest).exists()

    async def put_blob(self, descriptor: Descriptor, body: Callable[[], AsyncIterator[bytes]]) -> None:
        path = self.path(descriptor.digest)
        building = path.with_name(f".{path.name}.{secrets.token_hex(4)}")  # several may write it at once
        try:
            with building.open("wb") as file:
                async for chunk in body():
                    await in_thread(file.write, chunk)
            building.rename(path)
        finally:
            building.unlink(missing_ok=True)

    async def put_manifest(self, reference: str, media_type: str, content: bytes) -> None:
        digest = digests.of(content)
        path = self.path(digest)
        building = path.with_name(f".{path.name}.{os.getpid()}")
        building.write_bytes(content)
        building.rename(path)
        if digests.is_digest(reference):
            if reference != digest:
                raise System(f"manifest {digest} cannot be stored as {reference}")
            return
        others = [item for item in self._index.manifests if _tag(item) != reference]
        named = Descriptor(
            media_type=media_type,
            digest=digest,
            size=len(content),
            annotations={"org.opencontainers.image.ref.name": reference},
        )
        self._index = msgspec.structs.replace(self._index, manifests=[*others, named])

    async def finish(self) -> None:
        building = self._folder / f".index.json.{os.getpid()}"
        building.write_bytes(msgspec.json.encode(self._index))
        building.rename(self._folder / "index.json")


def _tag(descriptor: Descriptor) -> str:
    name = (descriptor.annotations or {}).get("org.opencontainers.image.ref.name", "")
    return name.rpartition(":")[2] if "/" in name else name
