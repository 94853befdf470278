"""Images made on this machine: from a container's changes (commit, build) and from a bare archive (import)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Sequence

import msgspec

from seacan.errors import InvalidParameter, System
from seacan.images import config as image_config
from seacan.images import manifest as manifests
from seacan.images.changes import apply_changes
from seacan.images.config import History, ImageConfig, ImageDefaults, RootFS
from seacan.images.feed import Feed
from seacan.images.manifest import Platform
from seacan.images.reference import Reference
from seacan.images.store import Image, Images, LayerBlob, Lease
from seacan.runtime.bundle import DirectoryRoot
from seacan.storage import digest as digests
from seacan.storage import unpack, walk, worker
from seacan.storage.blobs import BlobWriter
from seacan.storage.compression import GZIP, Encoding
from seacan.storage.digest import ChainID, DiffID, Digest
from seacan.storage.layers import Staged
from seacan.storage.pack import ConvertRequest, PackRequest, PackResult
from seacan.storage.threads import in_thread_until


class NewLayer(msgspec.Struct, frozen=True):
    """A layer made here: committed under ``chain_id``, its archive kept as ``blob``."""

    chain_id: ChainID
    diff_id: DiffID
    blob: LayerBlob
    size: int


async def pack_layer(
    images: Images, upper: os.PathLike[str] | str, lease: Lease, encoding: Encoding = GZIP
) -> tuple[LayerBlob, DiffID]:
    """Archive an upper folder (overlay's marks and all) into the blob store."""
    with images.blobs.writer(f"layer of {os.fspath(upper)}") as writer:
        request = PackRequest("layer", DirectoryRoot(os.fspath(upper)), encoding)
        result = await worker.run(images.launcher, "seacan.storage.pack:main", request, (writer.fileno,), PackResult)
        return _adopt(writer, result, lease, encoding), DiffID(result.diff_id)


async def convert_layer(images: Images, blob: LayerBlob, lease: Lease, encoding: Encoding = GZIP) -> LayerBlob:
    """A layer's archive compressed otherwise: what it unpacks to is the same to the byte.

    :raises InvalidParameter: the archive is broken.
    """
    with images.blobs.open(blob.digest) as file, images.blobs.writer(f"archive of {blob.digest}") as writer:
        descriptors = (file.fileno(), writer.fileno)
        result = await worker.run(
            images.launcher, "seacan.storage.pack:convert_main", ConvertRequest(encoding), descriptors, PackResult
        )
        return _adopt(writer, result, lease, encoding)


def _adopt(writer: BlobWriter, result: PackResult, lease: Lease, encoding: Encoding) -> LayerBlob:
    digest = Digest(result.digest)
    lease.add(digest)
    writer.adopt(digest, result.size)
    return LayerBlob(digest, result.size, manifests.stored_layer_type(encoding.kind.value))


async def commit_layer(
    images: Images, key: str, parent: ChainID | None, lease: Lease, *, take: bool = False
) -> NewLayer:
    """Make a layer of what the snapshot ``key`` has changed.

    With ``take`` its folder is moved rather than copied, and the snapshot is removed: for a build's own snapshots. The
    new layer is kept until ``lease`` ends, or for good once an image uses it.
    """
    with images.snapshots.difference(key) as changes:
        blob, diff_id = await pack_layer(images, changes, lease)
        chain_id = digests.chain_id(parent, diff_id)
        lease.add(chain_id)
        if not images.layers.contains(chain_id):
            if take:
                size = (await asyncio.to_thread(walk.usage, changes)).size
                staged = images.layers.adopt(changes, diff_id, size)
            else:
                with images.blobs.open(blob.digest) as file:
                    staged = await images.layers.unpack(file.fileno(), f"changes of {key}")
            images.layers.commit(staged, parent, diff_id)
    if take:
        images.snapshots.remove(key)
    return NewLayer(chain_id, diff_id, blob, images.layers.get(chain_id).size)


async def ensure_archives(images: Images, id: Digest) -> None:
    """Make the archives of layers that a build handed over unpacked: who saves or pushes an image needs them.

    Raises :class:`System` when a layer's files are no longer what its digest says.
    """
    blobs = images.layer_blobs(id)
    if all(blob is not None for blob in blobs):
        return
    with images.lease() as lease:
        made: list[LayerBlob] = []
        for chain_id, known in zip(digests.chain_ids(images.config(id).rootfs.diff_ids), blobs, strict=True):
            blob = known or images.layer_blob(chain_id)
            if blob is None:
                layer = images.layers.get(chain_id)
                blob, diff_id = await pack_layer(images, layer.path, lease)
                if diff_id != layer.diff_id:
                    raise System(f"layer {chain_id} has changed on disk: its digest is {diff_id} now")
            made.append(blob)
        images.register(images.blobs.read(id), made)


async def commit(
    images: Images,
    key: str,
    defaults: ImageDefaults,
    *,
    parent: Image | None,
    container: str = "",
    container_config: ImageDefaults | None = None,
    author: str = "",
    comment: str = "",
    changes: Sequence[str] = (),
    reference: Reference | None = None,
    docker_version: str = "",
) -> Image:
    """``docker commit``: an image of the snapshot ``key`` on top of ``parent``, whose containers get ``defaults``."""
    with images.lease() as lease:
        layer = await commit_layer(images, key, parent.chain_id if parent else None, lease)
        config = apply_changes(defaults, changes)
        created = image_config.format_time(time.time_ns())
        platform = parent.platform if parent else manifests.host_platform()
        command = " ".join((container_config or defaults).cmd or ())
        document = ImageConfig(
            architecture=platform.architecture,
            os=platform.os,
            variant=platform.variant,
            author=author,
            comment=comment,
            created=created,
            docker_version=docker_version,
            container=container,
            container_config=container_config,
            config=config,
            history=[
                *(parent.config.history if parent else ()),
                History(created=created, created_by=command, author=author, comment=comment),
            ],
            rootfs=RootFS(diff_ids=[*(parent.config.rootfs.diff_ids if parent else ()), layer.diff_id]),
        )
        blobs = [*(images.layer_blobs(parent.id) if parent else ()), layer.blob]
        image = images.register(image_config.encode(document), blobs, parent=parent.id if parent else "")
        images.log_event("create", image.id, image.id)
        if reference is not None:
            images.add_tag(image.id, reference)
            images.log_event("tag", image.id, reference.with_default_tag().familiar)
        return images.get(image.id)


async def import_archive(
    images: Images,
    body: AsyncIterator[bytes],
    *,
    reference: Reference | None = None,
    message: str = "",
    changes: Sequence[str] = (),
    platform: Platform | None = None,
    docker_version: str = "",
) -> Image:
    """``docker import``: a root file system's archive, compressed or not, as an image of one layer."""
    platform = platform or manifests.host_platform()
    if platform.os != "linux":
        raise InvalidParameter("operating system is not supported")
    config = apply_changes(ImageDefaults(), changes)
    with images.lease() as lease:
        blob, staged = await _receive_layer(images, body, lease)
        chain_id = ChainID(staged.diff_id)
        lease.add(chain_id)
        images.layers.commit(staged, None)
        created = image_config.format_time(time.time_ns())
        document = ImageConfig(
            architecture=platform.architecture,
            os=platform.os,
            variant=platform.variant,
            comment=message,
            created=created,
            docker_version=docker_version,
            config=config,
            history=[History(created=created, comment=message)],
            rootfs=RootFS(diff_ids=[staged.diff_id]),
        )
        image = images.register(image_config.encode(document), [blob])
        if reference is not None:
            images.add_tag(image.id, reference)
            images.log_event("tag", image.id, reference.with_default_tag().familiar)
        images.log_event("import", image.id, image.id)
        return images.get(image.id)


async def _receive_layer(images: Images, body: AsyncIterator[bytes], lease: Lease) -> tuple[LayerBlob, Staged]:
    """Store an arriving archive, and unpack it meanwhile."""
    feed = Feed()
    reader, progress = os.pipe2(os.O_CLOEXEC)
    with contextlib.ExitStack() as opened:
        opened.callback(os.close, reader)
        writer = opened.enter_context(images.blobs.writer("imported archive"))
        unpacking = asyncio.create_task(images.layers.unpack(writer.fileno, "imported archive", progress=reader))

        def receive() -> None:
            try:
                while chunk := feed.read():
                    writer.write(chunk)
                    with contextlib.suppress(BrokenPipeError):
                        unpack.announce(progress, writer.size)
                with contextlib.suppress(BrokenPipeError):
                    unpack.announce(progress, writer.size, final=True)
            finally:
                os.close(progress)

        try:
            for outcome in await asyncio.gather(
                in_thread_until(feed.stop, receive), feed.fill(body), return_exceptions=True
            ):
                if isinstance(outcome, BaseException):
                    raise outcome
            staged = await unpacking
        except BaseException:
            unpacking.cancel()
            for done in await asyncio.gather(unpacking, return_exceptions=True):
                if isinstance(done, Staged):
                    images.layers.abandon(done)
            raise
        lease.add(writer.digest)
        digest = writer.commit()
        return LayerBlob(digest, writer.size, manifests.stored_layer_type(staged.compression)), staged
