"""The registry's blobs: as in :mod:`seacan.storage.blobs`, with sha512 beside sha256, as the specification has it."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

from seacan.storage.blobs import Blobs, DigestMismatch
from seacan.storage.digest import Digest

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}", re.ASCII)


def is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


def digest_of(content: bytes, algorithm: str = "sha256") -> Digest:
    return Digest(f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}")


def digest_of_file(path: Path, algorithm: str) -> Digest:
    with path.open("rb") as file:
        return Digest(f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}")


class RegistryBlobs(Blobs):
    """A blob store with a folder for each algorithm."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._sha512 = root / "sha512"
        self._sha512.mkdir(exist_ok=True, mode=0o700)

    def path(self, digest: Digest) -> Path:
        algorithm, _, digits = digest.partition(":")
        return self._sha512 / digits if algorithm == "sha512" and is_digest(digest) else super().path(digest)

    def __iter__(self) -> Iterator[Digest]:
        yield from super().__iter__()
        with os.scandir(self._sha512) as entries:
            for entry in entries:
                yield Digest(f"sha512:{entry.name}")

    def store(self, content: bytes, digest: Digest) -> None:
        """Keep a small document under ``digest``, of either algorithm; raises :class:`DigestMismatch`."""
        if digest_of(content, digest.partition(":")[0]) != digest:
            raise DigestMismatch(f"content is not {digest}")
        if not self.contains(digest):
            temporary = self.root / "ingest" / secrets.token_hex(8)
            temporary.write_bytes(content)
            os.replace(temporary, self.path(digest))
