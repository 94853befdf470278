"""Named contexts of a build (``--build-context name=…``): looked up when the Dockerfile comes to speak of them.

A value is ``docker-image://…``, ``oci-layout://STORE@DIGEST`` (of a content store that the client has), ``local:…`` (a
folder of the client's), ``input:…`` (a result of another build), or the URL of a git repository or a file.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

import msgspec

from seacan.build.buildkit.session import ClientSession
from seacan.build.dockerfile.convert import NamedContext
from seacan.build.graph import GitSource, HttpSource, ImageSource, LocalSource, Scratch, Vertex
from seacan.build.ignore import read_ignore_file
from seacan.build.sources import parse_git
from seacan.engine.builds import Builds, Request
from seacan.errors import InvalidParameter, SeacanError, Unsupported
from seacan.images import manifest as manifests
from seacan.images import reference as references
from seacan.images.load import load
from seacan.images.manifest import Descriptor, Index, Platform
from seacan.images.save import tar_member
from seacan.images.store import Image
from seacan.registry.copy import Origin
from seacan.registry.layout import verified
from seacan.storage import digest as digests
from seacan.storage.digest import Digest
from seacan.storage.pack import BLOCK, header


async def _silently(_message: dict[str, object]) -> None:
    """What a load reports; the build tells of it in its own way."""


class Contexts:
    """The named contexts of one build for one platform. :meth:`close` when its output has been given out."""

    def __init__(
        self,
        builds: Builds,
        session: ClientSession,
        request: Request,
        values: Mapping[str, str],
        inputs: Callable[[str], Awaitable[NamedContext | None]],
    ) -> None:
        self._builds = builds
        self._session = session
        self._request = request
        self._values = values
        self._inputs = inputs
        self._known: dict[str, NamedContext] = {}
        self._brought: list[Image] = []

    async def find(self, name: str, platform: Platform) -> NamedContext | None:
        """What ``name`` stands for, if the client has said. ``name::platform`` is for one platform alone."""
        names = (name, name.removesuffix(":latest"), name.removeprefix("docker.io/library/").removesuffix(":latest"))
        for each in dict.fromkeys(names):
            for key in (f"{each}::{platform}", each):
                if key in self._values:
                    label = f"{key}@{platform}"
                    if label not in self._known:
                        self._known[label] = await self._load(key, self._values[key], platform)
                    return self._known[label]
        return None

    def close(self) -> None:
        """Let go of images that were brought for this build alone."""
        images = self._builds.engine.images
        for image in self._brought:
            if not images.references(image.id):
                with contextlib.suppress(SeacanError):
                    images.remove(image.id)

    async def _load(self, name: str, value: str, platform: Platform) -> NamedContext:
        kind, colon, rest = value.partition(":")
        if not colon:
            raise InvalidParameter(f"invalid context specifier {value} for {name}")
        rest = rest.removeprefix("//")
        match kind:
            case "docker-image":
                return await self._image(name, rest, platform)
            case "oci-layout":
                return await self._layout(name, rest, platform)
            case "local":
                return await self._local(name, rest)
            case "input":
                found = await self._inputs(rest)
                if found is None:
                    raise InvalidParameter(f"invalid input {rest} for {name}")
                return found
        shown = f"[context {name}] {value}"
        git = parse_git(value)
        if git is not None:
            source = GitSource(git.remote, git.reference, git.folder, bool(git.keep_git_dir), git.checksum)
            return NamedContext(Vertex(source, name=shown))
        if kind in ("http", "https"):
            return NamedContext(Vertex(HttpSource(value, "context"), name=shown))
        raise Unsupported(f"unsupported context source {kind} for {name}")

    async def _image(self, name: str, reference: str, platform: Platform) -> NamedContext:
        if reference == "scratch":
            return NamedContext(Vertex(Scratch()))
        image = await self._builds.find_image(self._request, reference, platform)
        source = ImageSource(image.pinned or reference, image.chain_id, image.digest)
        return NamedContext(Vertex(source, name=f"[context {name}] {reference}", platform=platform), image.config)

    async def _local(self, name: str, folder: str) -> NamedContext:
        read = await self._session.read_files(folder, (".dockerignore",), lambda _size, _done: None)
        content = read.get(".dockerignore")
        ignored = tuple(read_ignore_file(content)) if content is not None else ()
        source = LocalSource(folder, ignored, ("/",))
        return NamedContext(Vertex(source, name=f"[context {name}] load from client", internal=True))

    async def _layout(self, name: str, reference: str, platform: Platform) -> NamedContext:
        """An image of an OCI layout at the client, loaded for as long as the build needs it."""
        store, at, digest = reference.partition("@")
        if not at or not digests.is_digest(digest):
            raise InvalidParameter(f'oci-layout reference "{reference}" has no digest')
        store = store.rpartition(":")[0] if ":" in store.rpartition("/")[2] else store
        origin = self._session.content(f"oci:{store}")
        images = self._builds.engine.images
        before = set(images.ids())
        pieces = _archive(origin, Digest(digest), platform, f"oci-layout {name}")
        (image,) = await load(images, pieces, _silently, quiet=True)
        if image.id not in before:
            self._brought.append(image)
        shown = str(references.parse(name).with_default_tag())
        source = ImageSource(shown, image.chain_id or "", digest)
        vertex = Vertex(source, name=f"[context {name}] OCI load from client", platform=platform)
        return NamedContext(vertex, image.config)


async def _archive(origin: Origin, digest: Digest, platform: Platform, what: str) -> AsyncIterator[bytes]:
    """One platform's image as an OCI layout in a tar, without a name."""
    content, _ = await origin.manifest(digest)
    document = manifests.decode(content, f"{what}: manifest {digest}")
    for _ in range(4):
        if not isinstance(document, Index):
            break
        fitting = manifests.choose(document, platform)
        if not fitting:
            raise InvalidParameter(f"{what} has no image for {platform}")
        content, _ = await origin.manifest(fitting[0].digest)
        document = manifests.decode(content, f"{what}: manifest {fitting[0].digest}")
    if isinstance(document, Index):
        raise InvalidParameter(f"{what}: indexes are nested too deeply")
    described = Descriptor(
        media_type=document.media_type or manifests.OCI_MANIFEST, digest=digests.of(content), size=len(content)
    )
    yield tar_member(_name(described.digest), content)
    for blob in {each.digest: each for each in (document.config, *document.layers)}.values():
        yield header(_name(blob.digest), b"0", 0o644, 0, 0, blob.size, 0)
        async for piece in verified(blob, origin.blob(blob)):
            yield piece
        yield bytes(-blob.size % BLOCK)
    index = Index(schema_version=2, media_type=manifests.OCI_INDEX, manifests=[described])
    yield tar_member(b"index.json", msgspec.json.encode(index))
    yield tar_member(b"oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
    yield bytes(2 * BLOCK)


def _name(digest: Digest) -> bytes:
    return f"blobs/sha256/{digests.hexadecimal(digest)}".encode()
