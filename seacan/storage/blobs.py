"""Content-addressed blobs: manifests, configurations and layers as they travelled, each under its own digest.

``<root>/sha256/<hex>`` holds the blobs, ``<root>/ingest/`` what is being written. A blob appears by rename, only after
its bytes were hashed and compared, so a reader never sees half of one, and a crash leaves nothing but files in
``ingest``. Which blobs are wanted is not decided here: see :meth:`seacan.images.store.Images.collect`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import time
from collections.abc import Container, Iterator
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Self

from seacan.errors import InvalidParameter, System
from seacan.storage import digest as digests
from seacan.storage.digest import Digest

DOCUMENT_LIMIT = 16 << 20
"""Bytes that a manifest, index or configuration may have; what is larger is hostile (registries stop at 4 MiB)."""


_PARTIAL = ".partial"
_PARTIAL_LIFETIME = 3 * 86400
"""Seconds that a broken-off download is kept for."""


class BlobMissing(System):
    """A blob that something refers to is not in the store."""


class BlobDamaged(System):
    """A blob's bytes are not those its name says."""


class DigestMismatch(InvalidParameter):
    """Content is not what its digest says."""


class BlobWriter:
    """A blob in the making. Write, then :meth:`commit`; leaving the ``with`` block without a commit discards it."""

    def __init__(self, blobs: Blobs, path: Path, what: str) -> None:
        self._blobs = blobs
        self._path = path
        self._what = what
        self._hash = hashlib.sha256()
        self._committed = False
        self.size = 0
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def fileno(self) -> int:
        """The file being written; readers may follow it with ``pread``."""
        return self._file

    def write(self, content: bytes | bytearray | memoryview) -> None:
        """Append; safe to call in a thread (both the hash and the write release the interpreter's lock)."""
        view = memoryview(content)
        self._hash.update(view)
        while view:
            try:
                written = os.write(self._file, view)
            except OSError as error:
                raise System(f"writing {self._what} to {self._path.parent}: {error.strerror}") from error
            self.size += written
            view = view[written:]

    @property
    def digest(self) -> Digest:
        """The digest of what has been written so far."""
        return Digest("sha256:" + self._hash.hexdigest())

    def commit(self, expected: Digest | None = None, size: int | None = None) -> Digest:
        """Verify and publish; returns the digest. The file stays open until the ``with`` block ends."""
        actual = self.digest
        if size is not None and self.size != size:
            raise DigestMismatch(f"{self._what}: {self.size} bytes where {size} were announced")
        if expected is not None and actual != expected:
            raise DigestMismatch(f"{self._what}: content has digest {actual}, not {expected}")
        os.rename(self._path, self._blobs.path(actual))
        self._committed = True
        return actual

    def adopt(self, digest: Digest, size: int) -> None:
        """Publish what a worker of ours has written to :attr:`fileno` and hashed on the way."""
        actual = os.fstat(self._file).st_size
        if actual != size:
            raise DigestMismatch(f"{self._what}: {actual} bytes where {size} were written")
        self.size = size
        os.rename(self._path, self._blobs.path(digest))
        self._committed = True

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            if not self._committed:
                self._path.unlink(missing_ok=True)


class Blobs:
    """The blob store in the folder ``root``, which it creates."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._sha256 = root / "sha256"
        self._ingest = root / "ingest"
        for folder in (self._sha256, self._ingest):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def path(self, digest: Digest) -> Path:
        """Where the blob is or would be."""
        return self._sha256 / digests.hexadecimal(digests.parse(digest))

    def contains(self, digest: Digest) -> bool:
        return self.path(digest).is_file()

    def size(self, digest: Digest) -> int:
        """Bytes; raises :class:`BlobMissing`."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            raise BlobMissing(f"blob {digest} is missing from {self._sha256}") from None

    def open(self, digest: Digest) -> FileIO:
        """The blob's bytes, unverified: whoever minds hashes what it reads. Raises :class:`BlobMissing`."""
        try:
            return self.path(digest).open("rb", buffering=0)
        except FileNotFoundError:
            raise BlobMissing(f"blob {digest} is missing from {self._sha256}") from None

    def read(self, digest: Digest, limit: int = DOCUMENT_LIMIT) -> bytes:
        """A small blob, verified. Raises :class:`BlobMissing`, :class:`BlobDamaged`, refuses one above ``limit``."""
        with self.open(digest) as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise InvalidParameter(f"blob {digest} is larger than {limit} bytes")
        if digests.of(content) != digest:
            raise self._damaged(digest, digests.of(content))
        return content

    def verify(self, digest: Digest) -> None:
        """Read a blob of any size and compare. Raises :class:`BlobMissing`, :class:`BlobDamaged`."""
        with self.open(digest) as file:
            actual = Digest("sha256:" + hashlib.file_digest(file, "sha256").hexdigest())
        if actual != digest:
            raise self._damaged(digest, actual)

    def _damaged(self, digest: Digest, actual: Digest) -> BlobDamaged:
        return BlobDamaged(f"blob {digest} is damaged: {self.path(digest)} has digest {actual}")

    def put(self, content: bytes) -> Digest:
        """Store a small blob; one that is here and damaged is replaced."""
        digest = digests.of(content)
        try:
            intact = self.path(digest).read_bytes() == content
        except FileNotFoundError:
            intact = False
        if not intact:
            with self.writer(f"blob {digest}") as writer:
                writer.write(content)
                writer.commit(digest)
        return digest

    def writer(self, what: str) -> BlobWriter:
        """Begin a blob; ``what`` names it in errors."""
        return BlobWriter(self, self._ingest / secrets.token_hex(8), what)

    def partial(self, digest: Digest) -> Path:
        """Where a download of the blob grows until it is complete; it outlives the process, to be resumed."""
        return self._ingest / f"{self.path(digest).name}{_PARTIAL}"

    def publish(self, digest: Digest) -> None:
        """Make a finished and verified download a blob.

        It keeps its other name until :meth:`settle`: should the daemon die before an image refers to the blob, the
        next pull finds a download that needs no more than to be finished.
        """
        try:
            os.link(self.partial(digest), self.path(digest))
        except FileExistsError:
            os.rename(self.partial(digest), self.path(digest))

    def settle(self, digest: Digest) -> None:
        """The blob is in use: it need not be known as a download any longer."""
        self.partial(digest).unlink(missing_ok=True)

    def withdraw(self, digest: Digest) -> None:
        """Make a blob a finished but unpublished download again."""
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.path(digest), self.partial(digest))
            self.path(digest).unlink(missing_ok=True)  # rename(2) leaves two names of one file as they are

    def remove(self, digest: Digest) -> None:
        """Forget the blob, also as a download."""
        self.path(digest).unlink(missing_ok=True)
        self.partial(digest).unlink(missing_ok=True)

    def __iter__(self) -> Iterator[Digest]:
        with os.scandir(self._sha256) as entries:
            for entry in entries:
                name = f"sha256:{entry.name}"
                if digests.is_digest(name):
                    yield Digest(name)

    def recover(self) -> None:
        """Forget what a previous process was writing, but for downloads of the last days, which may be resumed.

        Only when no other process of ours writes here.
        """
        for entry in self._ingest.iterdir():
            if not entry.name.endswith(_PARTIAL):
                entry.unlink(missing_ok=True)
        self.expire()

    def expire(self, *, everything: bool = False, keep: Container[str] = ()) -> int:
        """Delete broken-off downloads that nobody has gone on with for days (or all), but those of ``keep``.

        Gives the bytes freed.
        """
        oldest = time.time() - _PARTIAL_LIFETIME
        freed = 0
        with os.scandir(self._ingest) as entries:
            for entry in entries:
                digest = f"sha256:{entry.name.removesuffix(_PARTIAL)}"
                if not entry.name.endswith(_PARTIAL) or digest in keep:
                    continue
                try:
                    found = entry.stat(follow_symlinks=False)
                    if everything or found.st_mtime < oldest:
                        os.unlink(entry)
                        freed += found.st_size if found.st_nlink == 1 else 0
                except FileNotFoundError:
                    continue
        return freed
