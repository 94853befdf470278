"""``docker load``: images from an archive, docker-archive or OCI layout, as it arrives.

The archive is read once and never held: each file in it goes straight to the blob store under its digest, and what
looks like a layer is unpacked by a confined worker while it is still arriving. Only when the archive is complete do its
documents say what the files were; then digests are compared and images made. Names inside the archive are labels here,
never paths: nothing is looked up in a file system by a name the archive chose.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import posixpath
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec
from msgspec import field

from seacan.errors import InvalidParameter, SeacanError, System
from seacan.images import config as image_config
from seacan.images import manifest as manifests
from seacan.images import progress
from seacan.images import reference as references
from seacan.images.config import ImageConfig
from seacan.images.feed import Feed
from seacan.images.indexes import attestations, kind_of
from seacan.images.manifest import Descriptor, Index, Manifest, Platform
from seacan.images.progress import Report, short_id
from seacan.images.store import Image, Images, LayerBlob, Lease
from seacan.storage import digest as digests
from seacan.storage import tar, unpack
from seacan.storage.blobs import DOCUMENT_LIMIT, BlobWriter
from seacan.storage.compression import Compression, detect, expand
from seacan.storage.digest import ChainID, DiffID, Digest
from seacan.storage.layers import Staged
from seacan.storage.tar import TarEntry, TarReader
from seacan.storage.threads import in_thread, in_thread_until

_BATCH = 1 << 20
_MEMBER_LIMIT = 100_000
_NESTING = 4
_DOCUMENT_COUNT = 1024
_BLOB_FOLDER = "blobs/sha256/"


class _ArchiveImage(msgspec.Struct, frozen=True):
    """One item of ``manifest.json``."""

    config: str = field(name="Config")
    repo_tags: list[str] | None = field(default=None, name="RepoTags")
    layers: list[str] | None = field(default=None, name="Layers")
    parent: str = field(default="", name="Parent")


class _Member(msgspec.Struct):
    """A file of the archive, by now a blob."""

    digest: Digest
    size: int
    staged: asyncio.Task[Staged] | None = None


class _Found(msgspec.Struct, frozen=True):
    """A manifest of a layout with its configuration, and the indexes it is in, outermost first."""

    digest: Digest
    manifest: Manifest
    config: bytes
    described: ImageConfig
    indexes: tuple[Digest, ...]
    parent: Index | None


class Loader:
    """One load. Use :func:`load`."""

    def __init__(self, images: Images, platforms: Sequence[Platform], report: Report) -> None:
        self._images = images
        self._platforms = platforms
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._members: dict[str, _Member] = {}
        self._links: dict[str, str] = {}
        self._staging: dict[str, asyncio.Task[Staged]] = {}
        self._output: list[str] = []
        self._read = 0

    async def run(self, body: AsyncIterator[bytes], lease: Lease) -> list[Image]:
        feed = Feed()
        try:
            async with asyncio.TaskGroup() as group:
                filling = group.create_task(feed.fill(body))
                await in_thread_until(feed.stop, lambda: self._spool(feed, lease))
                await filling
            return [self._images.get(image.id) for image in await self._make_images(lease)]
        except* SeacanError as errors:
            raise _first(errors) from None
        finally:
            for task in self._staging.values():
                task.cancel()
            for done in await asyncio.gather(*self._staging.values(), return_exceptions=True):
                if isinstance(done, Staged) and done.path.exists():
                    self._images.layers.abandon(done)

    # --- reading the archive (in a thread) --------------------------------------------------------------------------

    def _spool(self, feed: Feed, lease: Lease) -> None:
        try:
            _, chunks = expand(feed.read)
            reader = TarReader(lambda: next(chunks, b""))
            for count, entry in enumerate(reader):
                if count >= _MEMBER_LIMIT:
                    raise InvalidParameter(f"archive has more than {_MEMBER_LIMIT} members")
                self._spool_member(reader, entry, lease)
            reader.drain()
            while feed.read():
                pass
        except BaseException:
            feed.abandon()
            raise

    def _spool_member(self, reader: TarReader, entry: TarEntry, lease: Lease) -> None:
        name = _member_name(entry)
        if entry.kind == tar.DIRECTORY or name == "":
            return
        if entry.kind in (tar.SYMLINK, tar.HARD_LINK):
            target = os.fsdecode(entry.linkname)
            if entry.kind == tar.SYMLINK:
                target = posixpath.join(posixpath.dirname(name), target)
            target = posixpath.normpath(target)
            if target.startswith(("/", "../")) or target == "..":
                raise InvalidParameter(f"invalid archive entry {entry.text!r}: link leads out of the archive")
            self._links[name] = target
            return
        if entry.kind != tar.REGULAR or entry.sparse is not None:
            raise InvalidParameter(f"invalid archive entry {entry.text!r}: neither file, folder nor link")
        with self._images.blobs.writer(f"archive entry {entry.text!r}") as writer:
            follower = None
            try:
                for piece in reader.data():
                    if writer.size == 0 and _looks_like_layer(bytes(piece[:512])):
                        follower = self._follow(writer, name, entry.text)
                    writer.write(piece)
                    if follower is not None:
                        follower.announce(writer.size)
                expected = None
                if name.startswith(_BLOB_FOLDER) and digests.is_digest("sha256:" + name[len(_BLOB_FOLDER) :]):
                    expected = Digest("sha256:" + name[len(_BLOB_FOLDER) :])
                lease.add(writer.digest)
                digest = writer.commit(expected, entry.stored)
                if follower is not None:
                    follower.announce(writer.size, final=True)
            finally:
                if follower is not None:
                    follower.close()
        known = self._members.get(name)
        if known is not None and known.digest != digest:
            raise InvalidParameter(f"invalid archive entry {entry.text!r}: present twice, with different content")
        self._members[name] = _Member(digest, writer.size)

    def _follow(self, writer: BlobWriter, name: str, text: str) -> _Follower | None:
        return asyncio.run_coroutine_threadsafe(self._start_unpack(writer.fileno, name, text), self._loop).result()

    async def _start_unpack(self, file: int, name: str, text: str) -> _Follower | None:
        """Begin to unpack what is being written, unless it is known already."""
        if name.startswith(_BLOB_FOLDER):
            digest = "sha256:" + name[len(_BLOB_FOLDER) :]
            if digests.is_digest(digest) and (
                self._images.layers.contains_diff(DiffID(digest)) or self._images.blobs.contains(Digest(digest))
            ):
                return None
        if name in self._staging:
            return None
        reader, writer = os.pipe2(os.O_CLOEXEC)
        archive = os.dup(file)

        async def unpack_layer() -> Staged:
            try:
                return await self._images.layers.unpack(archive, f"layer {text}", progress=reader)
            finally:
                os.close(archive)
                os.close(reader)

        self._staging[name] = asyncio.create_task(unpack_layer(), name=f"unpack {text}")
        return _Follower(writer)

    # --- making sense of it -----------------------------------------------------------------------------------------

    async def _make_images(self, lease: Lease) -> list[Image]:
        if "manifest.json" in self._members and not self._has_indexes():
            return await self._load_docker(lease)
        if "index.json" in self._members:
            return await self._load_layout(lease)
        raise InvalidParameter(
            "open manifest.json: no such file or directory: neither a docker-archive nor an OCI layout"
        )

    async def _load_docker(self, lease: Lease) -> list[Image]:
        listing = self._listing()
        original = self._manifests_by_config()
        loaded: list[Image] = []
        parents: list[tuple[Image, str]] = []
        for item in listing:
            config = self._document(item.config)
            document = image_config.decode(config, f"configuration {item.config!r}")
            _check_os(document.os)
            if self._platforms and not any(
                manifests.platform_of(document).satisfies(wanted) for wanted in self._platforms
            ):
                continue
            names = item.layers or []
            if len(names) != len(document.rootfs.diff_ids):
                raise InvalidParameter(
                    f"invalid manifest, layers length mismatch: expected {len(names)}, "
                    f"got {len(document.rootfs.diff_ids)}"
                )
            members = [self._member(name) for name in names]
            blobs = [LayerBlob(member.digest, member.size, self._media_type(member)) for member in members]
            found = original.get(digests.of(config))
            manifest = None
            if found is not None and [layer.digest for layer in found[1].layers] == [blob.digest for blob in blobs]:
                manifest = found[0]
                lease.add(manifest)
            await self._ensure_layers(document.rootfs.diff_ids, [self._resolve(name) for name in names], blobs, lease)
            image = self._images.register(config, blobs, manifest=manifest)
            tagged = False
            for text in item.repo_tags or ():
                reference = references.parse(text)
                if not reference.tag:
                    raise InvalidParameter(f"invalid tag {text[:300]!r}")
                await self._set_tag(image, reference)
                await self._report(progress.stream(f"Loaded image: {reference.familiar}\n"))
                tagged = True
            if not tagged:
                self._output.append(f"Loaded image ID: {image.id}\n")
            loaded.append(image)
            parents.append((image, item.parent))
            self._images.log_event("load", image.id, image.id)
        if not loaded:
            self._nothing_fits()
        for image, parent in parents:
            self._link_parent(image, parent)
        for line in self._output:
            await self._report(progress.stream(line))
        return loaded

    def _listing(self) -> list[_ArchiveImage]:
        try:
            return msgspec.json.decode(self._document("manifest.json"), type=list[_ArchiveImage])
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise InvalidParameter(f"manifest.json is malformed: {error}") from error

    def _link_parent(self, image: Image, parent: str) -> None:
        """Believe the archive about a parent only if it is here and its layers are the image's lowest."""
        if not parent or parent == image.id or parent not in self._images.ids():
            return
        below = self._images.config(Digest(parent)).rootfs.diff_ids
        if below == image.config.rootfs.diff_ids[: len(below)]:
            self._images.set_parent(image.id, Digest(parent))

    async def _load_layout(self, lease: Lease) -> list[Image]:
        index = manifests.decode(self._document("index.json"), "index.json")
        if isinstance(index, Manifest):
            raise InvalidParameter("index.json is not an image index")
        loaded: list[Image] = []
        for descriptor in index.manifests:
            found = self._find_manifests(descriptor)
            images = [await self._load_manifest(item, lease) for item in found]
            if not images:
                continue
            with self._images.database.transaction():
                for image, item in zip(images, found, strict=True):
                    if item.indexes:
                        attachments = [*item.indexes, *self._attestations(item, lease)]
                        self._images.indexes.record(descriptor.digest, image.id, item.digest, attachments)
            here = manifests.host_platform()
            first = next((image for image in images if image.platform.satisfies(here)), images[0])
            annotations = descriptor.annotations or {}
            text = annotations.get("io.containerd.image.name") or annotations.get(
                "org.opencontainers.image.ref.name", ""
            )
            reference = _annotated_reference(text)
            if reference is not None:
                await self._set_tag(first, reference, source=descriptor.digest)
                await self._report(progress.stream(f"Loaded image: {reference.familiar}\n"))
            else:
                self._output.append(f"Loaded image ID: {first.id}\n")
            loaded += [first, *(image for image in images if image is not first)]
            self._images.log_event("load", first.id, first.id)
        if not loaded:
            self._nothing_fits()
        if "manifest.json" in self._members:
            parents = {digests.of(self._document(item.config)): item.parent for item in self._listing()}
            for image in loaded:
                self._link_parent(image, parents.get(image.id, ""))
        for line in self._output:
            await self._report(progress.stream(line))
        return loaded

    async def _load_manifest(self, found: _Found, lease: Lease) -> Image:
        manifest, document = found.manifest, found.described
        _check_os(document.os)
        names = [_BLOB_FOLDER + digests.hexadecimal(layer.digest) for layer in manifest.layers]
        for layer, name in zip(manifest.layers, names, strict=True):
            self._check_size(layer, self._member(name))
        if len(names) != len(document.rootfs.diff_ids):
            raise InvalidParameter(
                f"invalid manifest, layers length mismatch: expected {len(names)}, got {len(document.rootfs.diff_ids)}"
            )
        blobs = [LayerBlob(layer.digest, layer.size, layer.media_type) for layer in manifest.layers]
        lease.add(found.digest, *found.indexes)
        await self._ensure_layers(document.rootfs.diff_ids, names, blobs, lease)
        return self._images.register(found.config, blobs, manifest=found.digest)

    def _has_indexes(self) -> bool:
        """Whether the archive is a layout too, with an index in it: what ``manifest.json`` cannot describe."""
        if "index.json" not in self._members:
            return False
        index = manifests.decode(self._document("index.json"), "index.json")
        return isinstance(index, Index) and any(
            descriptor.media_type in manifests.INDEX_TYPES and self._holds(descriptor) for descriptor in index.manifests
        )

    def _holds(self, descriptor: Descriptor) -> bool:
        return _BLOB_FOLDER + digests.hexadecimal(descriptor.digest) in self._members

    def _nothing_fits(self) -> None:
        if self._platforms:
            wanted = ", ".join(map(str, self._platforms))
            raise InvalidParameter(f"requested platform ({wanted}) not found: image might be filtered out")
        raise InvalidParameter("archive holds no image for this platform")

    def _find_manifests(self, descriptor: Descriptor) -> list[_Found]:
        """The manifests behind a descriptor of ``index.json`` that are wanted: of an index, all that are here."""
        found = self._manifests_below(descriptor, (), None, set())
        if not self._platforms:
            return found
        chosen: dict[Digest, _Found] = {}
        for wanted in self._platforms:
            exact = wanted.normalised().variant
            fitting = [item for item in found if manifests.platform_of(item.described).satisfies(wanted)]
            fitting.sort(key=lambda item: manifests.platform_of(item.described).normalised().variant != exact)
            for item in fitting[:1]:
                chosen[item.digest] = item
        return list(chosen.values())

    def _manifests_below(
        self, descriptor: Descriptor, indexes: tuple[Digest, ...], parent: Index | None, seen: set[Digest]
    ) -> list[_Found]:
        """``seen`` are the digests that have been looked at: each counts once, however often it is named."""
        if len(indexes) > _NESTING:
            raise InvalidParameter(f"index {descriptor.digest}: indexes are nested too deeply")
        if descriptor.digest in seen or (parent is not None and not self._holds(descriptor)):
            return []  # a layout may hold some platforms only
        seen.add(descriptor.digest)
        self._read += 1
        if self._read > _DOCUMENT_COUNT:
            raise InvalidParameter(f"index.json refers to more than {_DOCUMENT_COUNT} manifests")
        document = manifests.decode(self._blob(descriptor, "manifest"), f"manifest {descriptor.digest}")
        if isinstance(document, Index):
            inner = [item for item in document.manifests if kind_of(item) in ("image", "index")]
            below = (*indexes, descriptor.digest)
            return [found for item in inner for found in self._manifests_below(item, below, document, seen)]
        if parent is not None and not all(self._holds(blob) for blob in (document.config, *document.layers)):
            return []
        config = self._blob(document.config, "image configuration")
        described = image_config.decode(config, f"configuration {document.config.digest}")
        if parent is not None and described.os not in ("", "linux"):
            return []
        return [_Found(descriptor.digest, document, config, described, indexes, parent)]

    def _attestations(self, found: _Found, lease: Lease) -> set[Digest]:
        """The blobs of an image's attestations that are in the archive."""
        kept: set[Digest] = set()
        for descriptor in attestations(found.parent, found.digest) if found.parent else ():
            if not self._holds(descriptor):
                continue
            document = manifests.decode(self._blob(descriptor, "attestation"), f"manifest {descriptor.digest}")
            if isinstance(document, Manifest):
                blobs = [blob for blob in (document.config, *document.layers) if self._holds(blob)]
                kept |= {descriptor.digest, *(blob.digest for blob in blobs)}
        lease.add(*kept)
        return kept

    def _manifests_by_config(self) -> dict[str, tuple[Digest, Manifest]]:
        """The OCI manifests of an archive that is both docker-archive and layout, by their configuration."""
        if "index.json" not in self._members:
            return {}
        found: dict[str, tuple[Digest, Manifest]] = {}
        index = manifests.decode(self._document("index.json"), "index.json")
        if isinstance(index, Index):
            for descriptor in index.manifests:
                member = self._members.get(_BLOB_FOLDER + digests.hexadecimal(descriptor.digest))
                if member is None or member.size > DOCUMENT_LIMIT:
                    continue
                try:
                    manifest = manifests.decode(self._images.blobs.read(descriptor.digest), "manifest")
                except InvalidParameter:
                    continue
                if isinstance(manifest, Manifest):
                    found[manifest.config.digest] = (descriptor.digest, manifest)
        return found

    async def _ensure_layers(
        self, diff_ids: Sequence[DiffID], names: Sequence[str], blobs: Sequence[LayerBlob], lease: Lease
    ) -> None:
        """Commit what was unpacked while arriving, lowest first; unpack what was not."""
        parent: ChainID | None = None
        for position, (diff_id, name, blob) in enumerate(zip(diff_ids, names, blobs, strict=True)):
            chain_id = digests.chain_id(parent, diff_id)
            lease.add(chain_id)
            if not self._images.layers.contains(chain_id):
                label = short_id(diff_id)
                await self._report(progress.bar(label, "Loading layer", min(blob.size, 32768), blob.size))
                task = self._staging.pop(name, None)
                staged = await (task if task is not None else self._unpack_blob(blob.digest, name))
                if staged.diff_id != diff_id:
                    self._images.layers.abandon(staged)
                    raise InvalidParameter(
                        f'invalid diffID for layer {position}: expected "{diff_id}", got "{staged.diff_id}"'
                    )
                self._images.layers.commit(staged, parent, diff_id)
                await self._report(progress.bar(label, "Loading layer", blob.size, blob.size))
            parent = chain_id

    async def _unpack_blob(self, digest: Digest, name: str) -> Staged:
        with self._images.blobs.open(digest) as file:
            return await self._images.layers.unpack(file.fileno(), f"layer {name}")

    async def _set_tag(self, image: Image, reference: references.Reference, *, source: Digest | None = None) -> None:
        if source is not None and self._images.keeps_platform(image.id, reference, source):
            return
        previous = self._images.add_tag(image.id, reference, source=source)
        if previous is not None:
            await self._report(
                progress.stream(
                    f"The image {reference.familiar} already exists, renaming the old one with ID {previous} "
                    "to empty string\n"
                )
            )

    # --- files of the archive by name -------------------------------------------------------------------------------

    def _resolve(self, name: str) -> str:
        """Follow the archive's own links."""
        name = posixpath.normpath(name)
        for _ in range(16):
            if name not in self._links or name in self._members:
                return name
            name = self._links[name]
        raise InvalidParameter(f"archive entry {name!r}: too many links")

    def _member(self, name: str) -> _Member:
        if name.startswith("/") or ".." in name.split("/"):
            raise InvalidParameter(f"invalid path in archive manifest: {name[:300]!r} leads out of the archive")
        member = self._members.get(self._resolve(name))
        if member is None:
            raise InvalidParameter(f"open {name[:300]}: no such file or directory in the archive")
        return member

    def _document(self, name: str) -> bytes:
        member = self._member(name)
        if member.size > DOCUMENT_LIMIT:
            raise InvalidParameter(f"archive entry {name[:300]!r}: {member.size} bytes are too many for a document")
        return self._images.blobs.read(member.digest)

    def _blob(self, descriptor: Descriptor, what: str) -> bytes:
        member = self._member(_BLOB_FOLDER + digests.hexadecimal(descriptor.digest))
        self._check_size(descriptor, member)
        if member.size > DOCUMENT_LIMIT:
            raise InvalidParameter(f"{what} {descriptor.digest}: {member.size} bytes are too many for a document")
        return self._images.blobs.read(descriptor.digest)

    @staticmethod
    def _check_size(descriptor: Descriptor, member: _Member) -> None:
        if descriptor.size != member.size:
            raise InvalidParameter(
                f"blob {descriptor.digest}: {member.size} bytes where {descriptor.size} were announced"
            )

    def _media_type(self, member: _Member) -> str:
        with self._images.blobs.open(member.digest) as file:
            kind = detect(file.read(16))
        return manifests.stored_layer_type(kind.value)


class _Follower:
    """The writing end of an unpacking worker's progress pipe."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def announce(self, size: int, *, final: bool = False) -> None:
        with contextlib.suppress(BrokenPipeError):  # the worker has failed; its own report says why
            unpack.announce(self._descriptor, size, final=final)

    def close(self) -> None:
        os.close(self._descriptor)


async def load(
    images: Images,
    body: AsyncIterator[bytes],
    report: Report,
    *,
    platforms: Sequence[Platform] = (),
    quiet: bool = False,
) -> list[Image]:
    """Load all images of an archive, compressed or not, or those for ``platforms``; the list is in its order.

    ``report`` gets Docker's messages (without the bars if ``quiet``). Raises :class:`InvalidParameter` when the archive
    is at fault, naming the entry; then no image was made of the part that is.
    """

    async def audible(message: dict[str, object]) -> None:
        if not quiet or "stream" in message:
            await report(message)

    with images.lease() as lease:
        try:
            return await Loader(images, platforms, audible).run(body, lease)
        finally:
            held = lease.names()
            lease.release()
            images.collect(held)


async def load_file(images: Images, path: Path) -> list[Image]:
    """Load an archive from a file, without reports."""

    async def body() -> AsyncIterator[bytes]:
        with path.open("rb") as file:
            while chunk := await in_thread(file.read, _BATCH):
                yield chunk

    async def silent(_: dict[str, object]) -> None:
        return None

    return await load(images, body(), silent)


def _member_name(entry: TarEntry) -> str:
    name = posixpath.normpath(os.fsdecode(entry.name)).lstrip("/")
    if name == ".." or name.startswith("../"):
        raise InvalidParameter(f"invalid archive entry {entry.text!r}: path leads out of the archive")
    return "" if name == "." else name


def _looks_like_layer(head: bytes) -> bool:
    """Whether a file that begins so is an archive, plain or compressed; only its unpacking decides."""
    if detect(head) is not Compression.NONE:
        return True
    return len(head) == 512 and (head[257:262] == b"ustar" or head == bytes(512))


def _annotated_reference(text: str) -> references.Reference | None:
    """The name an OCI layout gives an image; ``ref.name`` may be a tag alone, which names nothing here."""
    if not text or ("/" not in text and ":" not in text):
        return None
    try:
        reference = references.parse(text)
    except InvalidParameter:
        return None
    return reference if reference.tag else None


def _check_os(os_name: str) -> None:
    if os_name and os_name != "linux":
        raise InvalidParameter(f'cannot load {os_name} image on linux: "{os_name}" is not supported')


def _first(group: BaseExceptionGroup[SeacanError]) -> SeacanError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, SeacanError) else System(str(error))
