"""Blobs on their way from registries: each once, however many pulls want it, a bounded number at a time.

A download goes to a file named after the digest, so that it resumes where it broke off, after a daemon restart too.
While it arrives it is unpacked by a confined worker. It becomes a blob, and the unpacked folder a layer, only
when every byte has been hashed and compared.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar

import msgspec

from seacan.errors import SeacanError, System
from seacan.images.manifest import Descriptor
from seacan.images.store import Images
from seacan.registry.client import Answer, RegistryError, Repository, Unreachable
from seacan.storage import unpack
from seacan.storage.blobs import DigestMismatch
from seacan.storage.digest import Digest
from seacan.storage.layers import Staged
from seacan.storage.threads import in_thread

log = logging.getLogger(__name__)

Result = TypeVar("Result")

_BATCH = 1 << 20
_BACK_OFF = 5.0
"""Seconds before the second attempt; each further one waits that much longer."""


class Progress(msgspec.Struct, frozen=True):
    """Where a download is. ``state`` is Docker's word for it."""

    state: str
    current: int = 0
    total: int = 0


class Download:
    """One blob being fetched; shared by all who want it."""

    def __init__(self, descriptor: Descriptor) -> None:
        self.descriptor = descriptor
        self.users = 0
        self.task: asyncio.Task[Staged | None] | None = None
        self._states = [Progress("Waiting")]
        self._changed = asyncio.Event()

    def tell(self, progress: Progress) -> None:
        """A new state; the numbers of the same state replace each other."""
        if self._states[-1].state == progress.state:
            self._states[-1] = progress
        else:
            self._states.append(progress)
        event, self._changed = self._changed, asyncio.Event()
        event.set()

    async def follow(self) -> AsyncIterator[Progress]:
        """Every state from the beginning, and as many of its numbers as one has time for; ends with the download."""
        assert self.task is not None
        at = 0
        last: Progress | None = None
        while True:
            changed = self._changed
            while True:
                if self._states[at] is not last:
                    last = self._states[at]
                    yield last
                elif at + 1 < len(self._states):
                    at += 1
                else:
                    break
            if self.task.done():
                return
            waiting = asyncio.ensure_future(changed.wait())
            await asyncio.wait((waiting, self.task), return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()


class Downloads:
    """All downloads of the engine. ``slots`` says how many may run at once, ``attempts`` how often one is tried."""

    def __init__(self, images: Images, slots: Callable[[], int], attempts: Callable[[], int]) -> None:
        self._images = images
        self._slots = slots
        self._attempts = attempts
        self._running = 0
        self._waiting: list[asyncio.Future[None]] = []
        self._downloads: dict[Digest, Download] = {}
        self.back_off = _BACK_OFF

    @contextlib.asynccontextmanager
    async def fetch(self, repositories: Sequence[Repository], descriptor: Descriptor) -> AsyncIterator[Download]:
        """Take part in the download of a layer, beginning it if nobody has. It ends when the last one leaves.

        ``download.task`` gives the unpacked layer to whoever awaits it first through :meth:`take`.
        """
        download = self._downloads.get(descriptor.digest)
        if download is None or (download.task is not None and download.task.done()):
            download = self._downloads[descriptor.digest] = Download(descriptor)
            download.task = asyncio.create_task(self._run(repositories, download), name=f"download {descriptor.digest}")
        download.users += 1
        try:
            yield download
        finally:
            download.users -= 1
            if not download.users:
                if self._downloads.get(descriptor.digest) is download:
                    del self._downloads[descriptor.digest]
                assert download.task is not None
                if not download.task.done():
                    download.task.cancel()
                (left,) = await asyncio.gather(download.task, return_exceptions=True)
                if isinstance(left, Staged) and left.path.exists():
                    self._images.layers.abandon(left)

    async def retry(self, fetch: Callable[[], Awaitable[Result]]) -> Result:
        """Fetch something small, again where that may help; who cannot be reached at all is given up at once."""
        attempts = max(1, self._attempts())
        for attempt in range(1, attempts + 1):
            try:
                return await fetch()
            except (Unreachable, RegistryError) as error:
                if attempt == attempts or not error.temporary:
                    raise
                wait = self.back_off * attempt
                if isinstance(error, RegistryError) and error.retry_after is not None:
                    wait = error.retry_after
                await asyncio.sleep(wait)
        raise AssertionError("unreachable")

    @contextlib.asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        while self._running >= max(1, self._slots()):
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            finally:
                if turn in self._waiting:
                    self._waiting.remove(turn)
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            if self._waiting:
                turn = self._waiting.pop(0)
                if not turn.done():
                    turn.set_result(None)

    async def _run(self, repositories: Sequence[Repository], download: Download) -> Staged | None:
        descriptor = download.descriptor
        what = f"layer {descriptor.digest}"
        if self._images.blobs.contains(descriptor.digest):
            download.tell(Progress("Download complete"))
            with self._images.blobs.open(descriptor.digest) as file:
                return await self._images.layers.unpack(file.fileno(), what)
        async with self._slot():
            partial = _Partial(self._images, descriptor)
            with contextlib.closing(partial):
                reader, progress = os.pipe2(os.O_CLOEXEC)
                os.set_blocking(progress, False)
                unpacking = asyncio.create_task(self._unpack(partial.fileno, what, reader))
                try:
                    try:
                        await partial.resume()
                        await self._attempt(repositories, download, partial, progress)
                        download.tell(Progress("Verifying Checksum"))
                        partial.verify()
                        await _finish(progress, partial.size)
                        partial.publish()
                    finally:
                        os.close(progress)
                except BaseException:
                    unpacking.cancel()
                    (left,) = await asyncio.gather(unpacking, return_exceptions=True)
                    if isinstance(left, Staged):
                        self._images.layers.abandon(left)
                    raise
        download.tell(Progress("Download complete"))
        return await unpacking

    async def _unpack(self, archive: int, what: str, progress: int) -> Staged:
        archive = os.dup(archive)
        try:
            return await self._images.layers.unpack(archive, what, progress=progress)
        finally:
            os.close(archive)
            os.close(progress)

    async def _attempt(
        self, repositories: Sequence[Repository], download: Download, partial: _Partial, progress: int
    ) -> None:
        """Fetch what is missing, again and again while that may help."""
        attempts = max(1, self._attempts())
        for attempt in range(1, attempts + 1):
            try:
                await self._fetch(repositories, download, partial, progress)
                return
            except (Unreachable, RegistryError) as error:
                if attempt == attempts or (isinstance(error, RegistryError) and not error.temporary):
                    raise
                wait = self.back_off * attempt
                if isinstance(error, RegistryError) and error.retry_after is not None:
                    wait = error.retry_after
                log.info("download of %s: %s; trying again in %.0f s", download.descriptor.digest, error.message, wait)
                await _count_down(download, wait)

    async def _fetch(
        self, repositories: Sequence[Repository], download: Download, partial: _Partial, progress: int
    ) -> None:
        descriptor = download.descriptor
        if partial.size == descriptor.size:
            return
        answer = await _open(repositories, descriptor, partial.size)
        async with answer:
            skip = partial.size if answer.status == 200 else 0
            parts: list[bytes] = []
            gathered = 0
            async for chunk in answer.chunks():
                if skip:
                    # The server sends from the beginning: what is here already has been hashed.
                    dropped = min(skip, len(chunk))
                    skip -= dropped
                    chunk = chunk[dropped:]
                parts.append(chunk)
                gathered += len(chunk)
                if partial.size + gathered > descriptor.size:
                    partial.forget()
                    raise DigestMismatch(f"layer {descriptor.digest}: more than the announced {descriptor.size} bytes")
                if gathered >= _BATCH:
                    await in_thread(partial.write, b"".join(parts))
                    parts, gathered = [], 0
                    _announce(progress, partial.size)
                    download.tell(Progress("Downloading", partial.size, descriptor.size))
            if gathered:
                await in_thread(partial.write, b"".join(parts))
                _announce(progress, partial.size)
                download.tell(Progress("Downloading", partial.size, descriptor.size))
        if partial.size < descriptor.size:
            raise Unreachable(
                f"layer {descriptor.digest}: unexpected EOF after {partial.size} of {descriptor.size} bytes"
            )


class _Partial:
    """The file a blob grows in, and the hash of what is there."""

    def __init__(self, images: Images, descriptor: Descriptor) -> None:
        self._images = images
        self._descriptor = descriptor
        self._path = images.blobs.partial(descriptor.digest)
        self._hash = hashlib.sha256()
        self.size = 0
        self.fileno = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    async def resume(self) -> None:
        """Hash what an earlier attempt has left."""
        length = os.fstat(self.fileno).st_size
        if length > self._descriptor.size:
            os.ftruncate(self.fileno, 0)
            length = 0

        def read() -> None:
            while self.size < length:
                chunk = os.pread(self.fileno, _BATCH, self.size)
                if not chunk:
                    break
                self._hash.update(chunk)
                self.size += len(chunk)

        if length:
            await in_thread(read)

    def write(self, content: bytes) -> None:
        view = memoryview(content)
        self._hash.update(view)
        while view:
            try:
                written = os.pwrite(self.fileno, view, self.size)
            except OSError as error:
                raise System(
                    f"writing layer {self._descriptor.digest} to {self._path.parent}: {error.strerror}"
                ) from error
            self.size += written
            view = view[written:]

    def verify(self) -> None:
        if "sha256:" + self._hash.hexdigest() != self._descriptor.digest:
            self.forget()
            raise DigestMismatch(f"filesystem layer verification failed for digest {self._descriptor.digest}")

    def publish(self) -> None:
        self._images.blobs.publish(self._descriptor.digest)

    def forget(self) -> None:
        """What is here is wrong: do not resume it."""
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        os.close(self.fileno)


async def _open(repositories: Sequence[Repository], descriptor: Descriptor, start: int) -> Answer:
    """The blob, from the first endpoint that has it, or from a foreign layer's own addresses."""
    failure: SeacanError | None = None
    for repository in repositories:
        try:
            return await repository.open_blob(descriptor.digest, start)
        except RegistryError as error:
            if error.answer == 416 and start:
                return await repository.open_blob(descriptor.digest)
            failure = error
        except Unreachable as error:
            failure = error
    for url in descriptor.urls or ():
        try:
            return await repositories[-1].open_url(url)
        except (RegistryError, Unreachable) as error:
            failure = error
    assert failure is not None
    raise failure


def _announce(progress: int, size: int) -> None:
    # Numbers are totals, so one that finds the pipe full can be left out; a worker that failed reports itself.
    with contextlib.suppress(BlockingIOError, BrokenPipeError):
        unpack.announce(progress, size)


async def _finish(progress: int, size: int) -> None:
    while True:
        try:
            unpack.announce(progress, size, final=True)
            return
        except BlockingIOError:
            await asyncio.sleep(0.05)
        except OSError as error:
            if error.errno != errno.EPIPE:
                raise
            return


async def _count_down(download: Download, seconds: float) -> None:
    left = seconds
    while left > 0:
        whole = max(1, round(left))
        download.tell(Progress(f"Retrying in {whole} second{'s' if whole != 1 else ''}"))
        step = min(1.0, left)
        await asyncio.sleep(step)
        left -= step
