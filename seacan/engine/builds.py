"""What builds need of an engine: images to stand on, sandboxes to run in, and a place in the image store.

:mod:`seacan.build` knows how to build; here it is given this engine's containers, networks and images. The classic API,
the BuildKit API and a program that imports the engine all come through :class:`Builds`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import shutil
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from seacan import cgroups
from seacan.build import cacheconfig, files
from seacan.build.buildkit import sync
from seacan.build.buildkit.rpc import Conversation
from seacan.build.cache import BuildCache, Layer
from seacan.build.cacheconfig import Entry
from seacan.build.dockerfile.convert import Converted, NamedContext, Options, ResolvedImage, convert
from seacan.build.graph import Exec, Vertex, check_entitlements
from seacan.build.imports import Cache, Imports
from seacan.build.nursery import Nursery
from seacan.build.progress import Progress
from seacan.build.scan import Scan, Scanner, read_scans, scanning
from seacan.build.solver import OVERLAY_OPTIONS, Build, BuildFailed, Result, SandboxMount, Session, Solved, Solver
from seacan.engine import buildcache, oci, relabel
from seacan.engine.buildcache import Ask, ContentStores
from seacan.engine.buildexport import Content
from seacan.engine.config import ContainerConfig, EndpointSettings, HostConfig, Ulimit
from seacan.engine.container import Record
from seacan.errors import InvalidParameter, NotFound, RuntimeFailed, SeacanError, Unsupported
from seacan.images import config as image_config
from seacan.images import reference as references
from seacan.images.config import History, ImageConfig, RootFS
from seacan.images.manifest import Descriptor, Platform, host_platform
from seacan.images.reference import Reference
from seacan.images.store import Image, LayerBlob, Lease
from seacan.linux.userns import outside
from seacan.network.model import ContainerIdentity, PortRequest
from seacan.registry.copy import Copy, Place, RegistryPlace
from seacan.registry.credentials import NONE, Credentials
from seacan.runtime import spec
from seacan.runtime.bundle import LogConfig, OverlayRoot, Rootfs, ShimConfig
from seacan.runtime.bundle import Mapping as IDMappings
from seacan.runtime.task import Task
from seacan.storage import digest as digests
from seacan.storage import worker
from seacan.storage.digest import ChainID, DiffID
from seacan.storage.pack import PackRequest, PackResult
from seacan.storage.threads import in_thread
from seacan.storage.view import View

if TYPE_CHECKING:
    from seacan.engine.engine import Engine

log = logging.getLogger(__name__)


_COLLECT_AFTER = 1.0
"""Seconds after a build; builds that end meanwhile are covered too."""
_COLLECT_EVERY = 3600.0
"""Seconds between two looks without a build: records get old by themselves."""


async def no_credentials(_host: str) -> Credentials:
    return NONE


async def _no_context(_name: str, _platform: Platform) -> None:
    """No named contexts."""


async def _silently(_message: dict[str, object]) -> None:
    """Progress of a pull that nobody is shown."""


@dataclass(frozen=True)
class Request:
    """One build. ``names`` are the tags the image gets; ``pull`` asks a registry even where the image is here."""

    dockerfile: bytes
    options: Options
    names: Sequence[str] = ()
    squash: bool = False
    pull: bool = False
    filename: str = "Dockerfile"
    contexts: Callable[[str, Platform], Awaitable[NamedContext | None]] = _no_context
    credentials: Callable[[str], Awaitable[Credentials]] = no_credentials
    """What to tell a registry, by its host."""
    looking_up: Callable[[str], contextlib.AbstractContextManager[None]] = lambda _reference: contextlib.nullcontext()
    """Entered while a base image is looked up, for progress."""
    entitlements: Collection[str] = ()
    """What the client allows steps beyond a sandbox: ``network.host``."""
    caches: Sequence[Cache] = ()
    """Caches from elsewhere that this build may use."""
    only: frozenset[ChainID] | None = None
    """See :attr:`seacan.build.solver.Build.only`."""
    scanner: Scanner | None = None
    """What is to describe the result's content."""


@dataclass(frozen=True)
class Outcome:
    """What a build made. ``layers`` are those of the result, lowest first."""

    converted: Converted
    config: ImageConfig
    layers: tuple[Layer, ...]
    solved: tuple[Solved, ...] = ()
    imports: Imports | None = None
    made: tuple[tuple[Vertex, Result], ...] = ()
    """What every vertex came to."""
    scans: tuple[Scan, ...] = ()
    """What a scanner has found in the result."""


class Builds:
    """Builds of one engine; made when the engine starts."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        data_root = Path(engine.options.data_root)
        self.cache = BuildCache(data_root / "build", engine.database, engine.trash)
        self.sandboxes = EngineSandboxes(engine)
        self.workers = Nursery(engine.launcher)
        self.solver = Solver(self.cache, engine.images, self.sandboxes, self.workers)
        self._exporting = asyncio.Lock()
        self._collecting: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Roll back what a killed engine was building."""
        self.cache.recover()
        await self.sandboxes.recover()
        self._collect_in(_COLLECT_AFTER)

    async def close(self) -> None:
        if self._collecting is not None:
            self._collecting.cancel()
        await self.solver.close()
        await self.workers.close()

    async def convert(self, request: Request) -> Converted:
        """Translate the Dockerfile, looking base images up."""
        return await convert(request.dockerfile, request.options, _Resolver(self.engine, request))

    async def find_image(self, request: Request, reference: str, platform: Platform) -> ResolvedImage:
        """An image as the request would find a base image. :raises NotFound:"""
        return await _Resolver(self.engine, request).image(reference, platform)

    async def build(
        self,
        request: Request,
        session: Session,
        progress: Progress,
        *,
        converted: Converted | None = None,
        follow: Callable[[Build], None] | None = None,
        finish: Callable[[], Awaitable[None]] | None = None,
    ) -> tuple[Outcome, Lease]:
        """Carry a build out. The lease keeps its layers until it is released.

        ``follow`` is told when it begins; ``finish`` is awaited at its end, also when it
        fails, but not when it is cancelled.
        """
        converted = converted or await self.convert(request)
        check_entitlements(converted.vertex, request.entitlements)
        lease = Lease(self.engine.images._leases)
        imports = Imports(self.engine.images, request.caches) if request.caches else None
        try:
            if converted.base is not None:
                lease.add(*_chain(converted.base))
            async with self.solver.build(session, progress) as build:
                build.classic = request.options.classic
                build.imports = imports
                build.only = request.only
                if follow is not None:
                    follow(build)
                try:
                    result = await build.solve(converted.vertex)
                    await build.need(result)
                    scans = await self._scan(build, request, converted)
                except SeacanError:
                    if finish is not None:
                        await finish()
                    raise
                if finish is not None:
                    await finish()
                layers = result.layers
                self.cache.hold(layer.id for layer in layers)
            solved = tuple(build.solved)
            return Outcome(converted, converted.config, layers, solved, imports, build.results(), scans), lease
        except BaseException:
            lease.release()
            if imports is not None:
                await imports.close()
            raise

    async def _scan(self, build: Build, request: Request, converted: Converted) -> tuple[Scan, ...]:
        scanner = request.scanner
        if scanner is None:
            return ()
        try:
            image = await _Resolver(self.engine, request).image(scanner.image, host_platform())
        except SeacanError as error:
            raise InvalidParameter(
                f"the scanner for --sbom, {scanner.image}, is neither here nor can it be pulled ({error.message}): "
                "load or pull it, or name another one (--attest type=sbom,generator=IMAGE)"
            ) from error
        result = await build.solve(scanning(scanner, image, converted.vertex, request.options.platform))
        await build.need(result)
        return await in_thread(read_scans, result.layers[-1].path, scanner.image)

    async def store(
        self, outcome: Outcome, lease: Lease, names: Sequence[str], *, squash: bool = False, inline: bool = False
    ) -> Image:
        """Make an image of what a build made, and give it its names. ``inline``: its cache goes along."""
        images = self.engine.images
        wanted = [parse_name(name) for name in names]
        layers = outcome.layers
        history: list[History] | None = None
        if squash:
            layers, history = await self._squash(outcome)
        async with self._exporting:
            diff_ids, chain = await self.solver.export(layers)
            if chain is not None:
                lease.add(chain)
            blobs = [
                images.layer_blob(chain_id) or self._archive(layer)
                for layer, chain_id in zip(layers, _chain_ids(diff_ids), strict=True)
            ]
            document = await self.document(outcome, layers, diff_ids, history=history, inline=inline)
            image = images.register(document, blobs)
            images.log_event("create", image.id, image.id)
            for reference in wanted:
                images.add_tag(image.id, reference)
                images.log_event("tag", image.id, reference.with_default_tag().familiar)
            return images.get(image.id)

    def _archive(self, layer: Layer) -> LayerBlob | None:
        """The archive in which a layer came from a cache, if it is here still."""
        known = None if layer.base else self.cache.archive(layer)
        return known if known is not None and self.engine.images.blobs.contains(known.digest) else None

    async def diff_ids(self, layers: Sequence[Layer]) -> list[DiffID]:
        """The digests of layers of a result."""
        await asyncio.gather(*(self.solver.diff(layer) for layer in layers if not layer.base))
        return [DiffID(layer.diff_id) for layer in layers]

    async def document(
        self,
        outcome: Outcome,
        layers: Sequence[Layer],
        diff_ids: Sequence[DiffID],
        *,
        history: list[History] | None = None,
        inline: bool = False,
    ) -> bytes:
        """The configuration of an image of these layers, as it is stored; ``inline``: with the build's cache."""
        times = [layer.created for layer in layers]
        document = image_config.encode(finish_config(outcome.converted, diff_ids, times, history=history))
        return await self._with_inline(document, outcome, diff_ids) if inline else document

    async def keep(self, content: Content, stored: Sequence[Image], names: Sequence[str], main: Image) -> None:
        """Have the images of ``content``, which are stored, and all between them, and let names mean the whole.

        Without ``--platform`` a name then is ``main``.
        """
        images = self.engine.images
        content.keep()
        root = content.root.digest
        with images.database.transaction():
            for image, part in zip(stored, content.parts, strict=True):
                images.register(images.blobs.read(image.id), part.layers, manifest=part.manifest.digest)
                if root != part.manifest.digest:
                    images.indexes.record(root, image.id, part.manifest.digest, part.attachments)
            for name in names:
                images.add_tag(main.id, parse_name(name), source=root)

    async def push(self, content: Content, name: str, ask: Ask, *, tagged: bool) -> None:
        """Send content to its registry, under the name's tag, or by digest alone."""
        reference = parse_name(name)
        repository = await self.engine.distribution.repository(reference, await ask(reference.domain), push=True)
        root = content.root
        document, media_type = await content.manifest(root.digest)
        wanted = reference.tag if tagged else root.digest
        await Copy(content, RegistryPlace(repository), lambda _text: None).tree(document, media_type, wanted, 0)
        with contextlib.suppress(NotFound):
            self.engine.images.add_digest(self.engine.images.resolve(name), reference.digested(root.digest))

    async def _with_inline(self, config: bytes, outcome: Outcome, diff_ids: Sequence[str]) -> bytes:
        """The configuration with the build's cache in it, where BuildKit has it too."""
        records = await buildcache.Exporter(self.engine, outcome).inline(diff_ids)
        document = msgspec.json.decode(config)
        document[cacheconfig.INLINE] = records
        return msgspec.json.encode(document, order="sorted")

    async def open_cache(self, entry: Entry, ask: Ask, stores: ContentStores | None) -> Cache:
        """See :func:`seacan.engine.buildcache.open_cache`."""
        return await buildcache.open_cache(self.engine, entry, ask, stores)

    async def export_cache(
        self,
        outcome: Outcome,
        entry: Entry,
        ask: Ask,
        stores: ContentStores | None,
        tell: Callable[[str], None],
    ) -> Descriptor:
        """Write a build's cache where ``entry`` says; gives the descriptor of its manifest."""
        entry.check()
        place: Place
        if entry.type == "local":
            if stores is None:
                raise Unsupported("a local cache needs a client with a content store")
            place, tag = stores.content(f"local:{entry.attrs.get('dest', '')}"), ""
        else:
            if not entry.attrs.get("ref"):
                raise InvalidParameter("registry cache exporter requires ref")
            reference = references.parse(entry.attrs["ref"]).with_default_tag()
            credentials = await ask(reference.domain)
            place = RegistryPlace(await self.engine.distribution.repository(reference, credentials, push=True))
            tag = reference.tag
        exporter = buildcache.Exporter(self.engine, outcome, entry)
        try:
            return await exporter.write(place, tag, entry, tell)
        finally:
            exporter.close()

    async def release(self, outcome: Outcome) -> None:
        """The build is over: let go of what it brought, and let the cache prune what it has made."""
        if outcome.imports is not None:
            await outcome.imports.close()
        self.cache.release([layer.id for layer in outcome.layers])
        self._collect_in(_COLLECT_AFTER)

    def _collect_in(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        if self._collecting is not None:
            if self._collecting.when() <= loop.time() + seconds:
                return
            self._collecting.cancel()
        self._collecting = loop.call_later(seconds, self._collect)

    def _collect(self) -> None:
        self._collecting = None
        self._collect_in(_COLLECT_EVERY)
        try:
            gone, freed = self.cache.collect(self.engine.options.build_cache)
        except (SeacanError, OSError) as error:
            log.error("the cache of builds cannot be kept within its limits: %s", error)
            return
        if gone:
            log.info("the cache of builds was over its limits: %d records of %d bytes are gone", len(gone), freed)
            self.engine.events.emit("builder", "prune", "", {"reclaimed": str(freed)})

    # --- what a build made, other than as an image ----------------------------------------------------------------

    async def read_file(self, outcome: Outcome, path: str) -> bytes:
        """A file of the result. :raises NotFound:"""
        rootfs = _rootfs(outcome)

        def read() -> str | None:
            if rootfs is None:
                return None
            with View(rootfs) as view:
                return view.read(path, 16 << 20)

        content = await asyncio.to_thread(read)
        if content is None:
            raise NotFound(f"open {path}: no such file or directory")
        return content.encode("utf-8", "surrogateescape")

    async def stat_file(self, outcome: Outcome, path: str) -> os.stat_result:
        """What a file of the result is like; symbolic links are followed. :raises NotFound:"""
        rootfs = _rootfs(outcome)

        def look() -> os.stat_result | None:
            if rootfs is None:
                return None
            with View(rootfs) as view:
                entry = view.find(path)
                return entry.stat if entry is not None else None

        found = await asyncio.to_thread(look)
        if found is None:
            raise NotFound(f"stat {path}: no such file or directory")
        return found

    async def files_archive(self, outcome: Outcome) -> AsyncIterator[bytes]:
        """The file system of the result as one archive."""
        rootfs = _rootfs(outcome)
        if rootfs is None:
            yield bytes(1024)
            return
        reader, writer = os.pipe2(os.O_CLOEXEC)
        working = asyncio.create_task(
            worker.run(self.workers, "seacan.storage.pack:main", PackRequest("tree", rootfs), (writer,), PackResult)
        )
        await asyncio.sleep(0.01)
        try:
            stream = asyncio.StreamReader()
            transport, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(reader, "rb", buffering=0)
            )
            working.add_done_callback(lambda _done: os.close(writer))
            try:
                while piece := await stream.read(1 << 18):
                    yield piece
            finally:
                transport.close()
            await working
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    async def send_files(self, outcome: Outcome, talk: Conversation) -> None:
        """The file system of the result, to a client that receives it by fsutil's protocol."""
        rootfs = _rootfs(outcome)
        if rootfs is not None:
            await sync.send(self.workers, talk, rootfs)

    async def _squash(self, outcome: Outcome) -> tuple[tuple[Layer, ...], list[History]]:
        """All layers above the base's as one."""
        base = tuple(layer for layer in outcome.layers if layer.base)
        new = [layer for layer in outcome.layers if not layer.base]
        history = list(outcome.config.history)
        kept = len(outcome.converted.base.history) if outcome.converted.base else 0
        history[kept:] = [msgspec.structs.replace(each, empty_layer=True) for each in history[kept:]]
        if not new:
            return base, history
        id, upper, _ = self.cache.new_folder(None)
        await worker.run(
            self.workers,
            "seacan.build.files:squash_main",
            files.SquashRequest(tuple(layer.path for layer in new), upper),
            (),
            files.FilesResult,
        )
        self.cache.settle(id)
        layer = self.cache.put(f"squash:{id}", id, description="squashed layers")
        history.append(History(created_by="", comment="merge of the build's layers"))
        return (*base, layer), history


def together(outcomes: Sequence[Outcome]) -> Outcome:
    """What several platforms' builds have made, as one, for their cache: each step once."""
    steps = {step.key: step for outcome in outcomes for step in outcome.solved}
    layers = tuple(layer for outcome in outcomes for layer in outcome.layers)
    return replace(outcomes[0], solved=tuple(steps.values()), layers=layers)


def _rootfs(outcome: Outcome) -> Rootfs | None:
    if not outcome.layers:
        return None
    return OverlayRoot(tuple(layer.path for layer in reversed(outcome.layers)), options=OVERLAY_OPTIONS)


def finish_config(
    converted: Converted,
    diff_ids: Sequence[str],
    times: Sequence[int],
    *,
    history: list[History] | None = None,
) -> ImageConfig:
    """The configuration with layers, times, and a history that has a line for each layer.

    ``times`` says when each layer was made (0: the base's). Lines without a layer get the time of the layer before
    them, as BuildKit has it: so the same result from the cache is the same image.
    """
    lines = list(converted.config.history if history is None else history)
    described = sum(not line.empty_layer for line in lines)
    while described < len(diff_ids):
        lines.append(History(created_by="created by the build", comment="buildkit.exporter.image.v0"))
        described += 1
    for at in range(len(lines) - 1, -1, -1):
        if described <= len(diff_ids):
            break
        if not lines[at].empty_layer:
            lines[at] = msgspec.structs.replace(lines[at], empty_layer=True)
            described -= 1
    if converted.epoch is not None:
        stamp = image_config.format_time(converted.epoch * 10**9)
        lines = [line if line.created else msgspec.structs.replace(line, created=stamp) for line in lines]
    else:
        lines, stamp = _with_times(lines, times)
    return msgspec.structs.replace(
        converted.config, created=stamp, history=lines, rootfs=RootFS(diff_ids=[DiffID(each) for each in diff_ids])
    )


def _with_times(lines: Sequence[History], times: Sequence[int]) -> tuple[list[History], str]:
    remaining = iter(times)
    stamped: list[History] = []
    for line in lines:
        made = 0 if line.empty_layer else next(remaining, 0)
        stamped.append(
            msgspec.structs.replace(line, created=image_config.format_time(made)) if made and not line.created else line
        )
    current: str | None = None
    missing = False
    for line in stamped:
        if line.created:
            current = line.created
            if missing:
                break
        else:
            missing = True
    current = current or image_config.format_time(time.time_ns())
    result: list[History] = []
    for line in stamped:
        current = line.created or current
        result.append(line if line.created else msgspec.structs.replace(line, created=current))
    return result, current


def parse_name(name: str) -> Reference:
    """A tag for a new image. :raises InvalidParameter:"""
    reference = references.parse(name)
    if reference.digest:
        raise InvalidParameter("build tag cannot contain a digest")
    return reference.with_default_tag()


def _chain_ids(diff_ids: Sequence[str]) -> list[ChainID]:
    return digests.chain_ids([DiffID(each) for each in diff_ids])


def _chain(config: ImageConfig) -> list[str]:
    return [str(each) for each in _chain_ids(config.rootfs.diff_ids)]


class _Resolver:
    """Base images from the engine's store."""

    def __init__(self, engine: Engine, request: Request) -> None:
        self._engine = engine
        self._request = request

    async def image(self, reference: str, platform: Platform) -> ResolvedImage:
        shown = reference
        with contextlib.suppress(InvalidParameter):
            shown = str(references.parse(reference).with_default_tag())
        with self._request.looking_up(shown):
            return await self._image(reference, platform)

    async def _image(self, reference: str, platform: Platform) -> ResolvedImage:
        images = self._engine.images
        named = self._request.options.platform is not None or not _runs_here(platform)
        wanted = platform if named else None
        try:
            if self._request.pull and not references.is_identifier(reference):
                image = await self._pull(reference, wanted)
            else:
                image = images.get(reference, platform=wanted)
        except NotFound:
            if references.is_identifier(reference):
                raise
            image = await self._pull(reference, wanted)
        pinned = reference
        if not reference.startswith("sha256:"):
            pinned = str(references.parse(reference).with_default_tag())
        return ResolvedImage(image.config, image.chain_id or "", pinned, repository_digest(image, pinned))

    async def _pull(self, text: str, platform: Platform | None) -> Image:
        """An image of another platform does not get the name: that is the one this machine runs."""
        reference = references.parse(text).with_default_tag()
        credentials = await self._request.credentials(reference.domain)
        pulled = await self._engine.distribution.pull(
            reference,
            _silently,
            credentials=credentials,
            platform=platform,
            named=platform is None or _runs_here(platform),
        )
        return pulled[0]

    async def named_context(self, name: str, platform: Platform) -> NamedContext | None:
        return await self._request.contexts(name, platform)


def _runs_here(platform: Platform) -> bool:
    return platform.satisfies(host_platform())


def repository_digest(image: Image, name: str) -> str:
    """What identifies an image in the repository of ``name``, or its ID where it did not come from there."""
    with contextlib.suppress(InvalidParameter):
        repository = references.parse(name).familiar_name
        for known in image.digests:
            if known.startswith(f"{repository}@"):
                return known.partition("@")[2]
    return image.id


class EngineSandboxes:
    """Steps as containers of this engine: default isolation, the default network, limits as asked."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._root = Path(engine.options.exec_root) / "build"

    async def recover(self) -> None:
        """End what a killed engine left running."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for bundle in list(self._root.iterdir()):
            task = await Task.reconnect(bundle, lambda _task, _event: None)
            if task is not None:
                await task.abandon()
            else:
                from seacan.runtime.task import lost

                with contextlib.suppress(SeacanError):
                    await lost(self._engine.launcher, bundle)
            await self._engine.networks.release(bundle.name)
            shutil.rmtree(bundle, ignore_errors=True)
        for name in os.listdir("/dev/shm") if os.path.isdir("/dev/shm") else ():
            if name.startswith(f"seacan-build-{self._engine.id[:8]}"):
                shutil.rmtree(f"/dev/shm/{name}", ignore_errors=True)

    async def run(
        self,
        operation: Exec,
        rootfs: Rootfs,
        mounts: Sequence[SandboxMount],
        environment: Sequence[str],
        output: Callable[[int, bytes], None],
    ) -> int:
        engine = self._engine
        id = secrets.token_hex(32)
        bundle = self._root / id
        record = self._record(id, operation, environment)
        rootfs = oci.seen(rootfs, record, engine.options, engine.mapping)
        async with contextlib.AsyncExitStack() as undo:
            undo.callback(shutil.rmtree, bundle, ignore_errors=True)
            bundle.mkdir(mode=0o700, parents=True)
            names = {name: bundle / name for name in ("hostname", "hosts", "resolv.conf")}
            for path in names.values():
                path.touch(mode=0o644)
                _own(path, rootfs.mapping)
            sources = oci.Sources(
                rootfs=rootfs,
                hostname=str(names["hostname"]),
                hosts=str(names["hosts"]),
                resolv_conf=str(names["resolv.conf"]),
                foreign=oci.NETWORK_FILES,
            )
            built = await asyncio.to_thread(oci.build, record, engine.options, sources)
            for mount in mounts:
                if mount.private:
                    _own(Path(mount.source), rootfs.mapping)
            labelled = relabel.own(str(bundle), names, record.host_config, rootfs, built.security)
            written = [mount for mount in mounts if mount.kind == "bind" and (mount.private or not mount.read_only)]
            labelled += relabel.everybodys([mount.source for mount in written], built.security)
            await relabel.relabel(engine.launcher, labelled)
            built.spec.mounts = [
                *built.spec.mounts,
                *(_oci_mount(mount, rootfs.mapping is not None) for mount in mounts),
            ]
            direct = spec.direct(built.spec)
            linux = built.spec.linux
            unified = cgroups.open(linux.cgroups_path).unified if direct and linux is not None else None
            shim = ShimConfig(
                id=id,
                rootfs=rootfs,
                log=LogConfig(driver="none"),
                seccomp=built.seccomp,
                direct=direct,
                keyring=direct and oci.shares_keyring(built),
                unified=unified or "",
            )
            (bundle / "config.json").write_bytes(spec.encode(built.spec))
            (bundle / "shim.json").write_bytes(msgspec.json.encode(shim))
            undo.push_async_callback(engine.networks.release, id)
            task = await Task.spawn(engine.launcher, bundle, lambda _task, _event: None)
            undo.push_async_callback(_end, task)
            await self._join(record, task, names)
            ours, theirs = socket.socketpair()
            with theirs:
                reading = asyncio.create_task(_read_output(ours, output))
                undo.push_async_callback(_finish, reading)
                await task.attach(theirs.fileno(), multiplexed=True)
            try:
                await task.start()
            except RuntimeFailed as error:
                raise RuntimeFailed(_words(error), error.exit_code) from error
            exit = await asyncio.shield(task.exit)
            await reading
            await asyncio.shield(task.gone)
            return exit.exit_code

    async def _join(self, record: Record, task: Task, names: Mapping[str, Path]) -> None:
        networks = self._engine.networks
        identity = ContainerIdentity(id=record.id, name=record.name, hostname=record.config.hostname)
        endpoints = await networks.allocate(identity, record.networks, PortRequest())
        texts = networks.files(identity, endpoints, record.host_config)
        for name, text in (("hostname", texts.hostname), ("hosts", texts.hosts), ("resolv.conf", texts.resolv_conf)):
            names[name].write_text(text)
        sandbox = await task.created()
        await networks.join(endpoints, sandbox, task)

    def _record(self, id: str, operation: Exec, environment: Sequence[str]) -> Record:
        network = {"default": "bridge", "": "bridge"}.get(operation.network, operation.network)
        limits = operation.limits
        host_config = HostConfig(
            network_mode=network,
            privileged=operation.insecure,
            # As dockerd's: what needs the host's privileges or network is not remapped.
            userns_mode="host" if operation.insecure or network == "host" else "",
            extra_hosts=[f"{name}:{address}" for name, address in operation.hosts],
            shm_size=operation.shm_size or self._engine.options.default_shm_size,
            ulimits=[Ulimit(name=name, soft=soft, hard=hard) for name, soft, hard in operation.ulimits],
            memory=limits.memory,
            memory_swap=limits.memory_swap,
            cpu_shares=limits.cpu_shares,
            cpu_period=limits.cpu_period,
            cpu_quota=limits.cpu_quota,
            cpuset_cpus=limits.cpuset_cpus,
            cpuset_mems=limits.cpuset_mems,
            cgroup_parent=operation.cgroup_parent,
            ipc_mode="private",
            cgroupns_mode=self._engine.options.default_cgroupns_mode
            or ("private" if self._engine.cgroup_v2 else "host"),
        )
        config = ContainerConfig(
            hostname=operation.hostname or "buildkitsandbox",
            env=list(environment),
            cmd=list(operation.arguments),
            working_dir=operation.directory,
            user=operation.user,
        )
        return Record(
            id=id,
            name=f"build-{id[:12]}",
            created=time.time_ns(),
            image="",
            path=operation.arguments[0] if operation.arguments else "",
            args=list(operation.arguments[1:]),
            config=config,
            host_config=host_config,
            networks={network: EndpointSettings()},
        )


def _own(path: Path, mapping: IDMappings | None) -> None:
    """Give a file that a step has in memory to whoever owns it inside."""
    if mapping is not None:
        found = path.stat()
        uid, gid = outside(mapping.uids, found.st_uid), outside(mapping.gids, found.st_gid)
        if uid is not None and gid is not None:
            os.chown(path, uid, gid)


def _oci_mount(mount: SandboxMount, mapped: bool) -> spec.Mount:
    """``mapped``: the step has users of its own, and what the build has is to be theirs."""
    idmap = ["idmap"] if mapped and not mount.private else []
    mode = "ro" if mount.read_only else "rw"
    if mount.kind == "tmpfs":
        options = ["nosuid", "nodev", mode]
        return spec.Mount(mount.target, "tmpfs", "tmpfs", options + ([f"size={mount.size}"] if mount.size else []))
    if mount.kind == "overlay":
        # One at a time: fsconfig(2) takes no value of more than 255 bytes.
        lower = [f"lowerdir+={path}" for path in mount.lower]
        return spec.Mount(mount.target, "overlay", "overlay", ["ro", *lower, "index=off", *idmap])
    options = ["rbind", mode, "rprivate", "nosuid", "nodev", *idmap]
    if mount.selector != "/":
        options.append(f"subpath={mount.selector.strip('/')}")
    return spec.Mount(mount.target, "bind", mount.source, options)


async def _end(task: Task) -> None:
    if not task.gone.done():
        await task.abandon()


async def _finish(reading: asyncio.Task[None]) -> None:
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)


async def _read_output(connection: socket.socket, output: Callable[[int, bytes], None]) -> None:
    """Take Docker's 8-byte frames apart until the streams end."""
    reader, writer = await asyncio.open_connection(sock=connection)
    try:
        while True:
            try:
                head = await reader.readexactly(8)
                data = await reader.readexactly(int.from_bytes(head[4:8], "big"))
            except asyncio.IncompleteReadError:
                return
            output(head[0], data)
    finally:
        writer.close()


def _words(error: RuntimeFailed) -> str:
    return f"failed to create task for container: {error}" if error.exit_code == 128 else str(error)


__all__ = ["BuildFailed", "Builds", "EngineSandboxes", "Outcome", "Request", "finish_config", "parse_name", "together"]
