"""Carries out a build graph: in parallel, each step once, found in the cache by the content it depends on.

Knows nothing of Dockerfiles and little of containers: programs run in a :class:`Sandboxes`, files are copied by
:mod:`seacan.build.files` in worker processes. A key is a digest over the operation and the *content* it works on, so a
stage that was built anew and came out the same costs those that copy from it nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import logging
import os
import re
import shutil
import stat
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from seacan.build import files, remote
from seacan.build.cache import BuildCache, Layer
from seacan.build.cacheconfig import Claim
from seacan.build.emulation import check_platform
from seacan.build.graph import (
    CopyFiles,
    Exec,
    FileMount,
    Files,
    GitSource,
    HttpSource,
    ImageSource,
    InlineSource,
    LocalSource,
    MakeDirectory,
    Merge,
    Scratch,
    Vertex,
    walk,
)
from seacan.build.imports import Imports
from seacan.build.progress import Progress, SharedLog
from seacan.errors import InvalidParameter, NotFound, RuntimeFailed, SeacanError, System
from seacan.images.store import Images, LayerBlob
from seacan.linux.syscalls import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2, syncfs
from seacan.runtime.bundle import DirectoryRoot, OverlayRoot, Rootfs
from seacan.storage import digest as digests
from seacan.storage import worker
from seacan.storage.digest import ChainID, DiffID
from seacan.storage.layers import Staged
from seacan.storage.pack import PackRequest, PackResult, header
from seacan.storage.walk import usage

log = logging.getLogger(__name__)

OVERLAY_OPTIONS = ("index=off", "redirect_dir=off", "metacopy=off")
"""What keeps an upper folder readable without its overlay."""


def _kernel() -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", os.uname().release)[:2])


_STEP_OPTIONS = (*OVERLAY_OPTIONS, *(("volatile",) if _kernel() >= (5, 10) else ()))
"""Of the root of a step: the end of an overlay writes all that it changed to the disk unless it is volatile (since
Linux 5.10), which for a large layer takes longer than all else. :meth:`Solver.write_soon` does it beside the build."""
_WRITE_AFTER = 1.0
"""Seconds from the end of a step until what it has changed is written to the disk."""

VERSION = b"seacan build 1\n"
"""Part of every key: change it when the meaning of an operation changes."""

T = TypeVar("T")


class BuildFailed(SeacanError):
    """A step failed, through the fault of what was to be built."""

    status = 500

    def __init__(self, message: str, vertex: Vertex, exit_code: int = 0) -> None:
        super().__init__(message)
        self.vertex = vertex
        self.exit_code = exit_code


@dataclass(frozen=True)
class SourceFolder:
    """A folder of files that a session or a fetch has brought. ``key`` determines its content ("": it does not)."""

    path: str
    key: str = ""
    index: str = ""

    @property
    def links(self) -> str:
        """Where it is remembered which layers its files are linked into."""
        return f"{self.index}.links" if self.index else ""


@dataclass(frozen=True)
class Result:
    """What a vertex came to: layers, lowest first, or a folder of source files."""

    key: str
    layers: tuple[Layer, ...] = ()
    folder: SourceFolder | None = None
    local: str = ""

    @property
    def own(self) -> str:
        """The key of what really is in the files, under which things go into this engine's cache.

        It is ``key`` but where an imported cache has claimed something: then it says what was claimed, so that a lie
        is found by nobody who was not told it.
        """
        return self.local or self.key

    @property
    def here(self) -> bool:
        return all(layer.here for layer in self.layers)

    @property
    def lower(self) -> tuple[str, ...]:
        return tuple(layer.path for layer in reversed(self.layers))

    @property
    def rootfs(self) -> Rootfs | None:
        """How to read it; None where there is nothing."""
        if self.folder is not None:
            return DirectoryRoot(self.folder.path)
        if not self.layers:
            return None
        return OverlayRoot(self.lower, options=OVERLAY_OPTIONS)


class Session(Protocol):
    """What the client of a build brings along."""

    async def local(self, source: LocalSource, report: Callable[[int, bool], None]) -> SourceFolder:
        """The client's folder, here. ``report`` hears of bytes received and of the end."""

    async def secret(self, id: str) -> bytes | None: ...

    async def ssh(self, id: str, path: str) -> contextlib.AbstractAsyncContextManager[None] | None:
        """Serve the client's agent on a socket at ``path`` for as long as the context lasts; None without one."""


@dataclass(frozen=True)
class SandboxMount:
    """A mount of a step: ``kind`` is bind, overlay or tmpfs."""

    kind: str
    target: str
    source: str = ""
    selector: str = "/"
    lower: tuple[str, ...] = ()
    upper: str = ""
    work: str = ""
    read_only: bool = True
    size: int = 0
    private: bool = False
    """A single file made for this step alone."""


class Sandboxes(Protocol):
    """Where programs of a build run: containers with the default isolation."""

    async def run(
        self,
        operation: Exec,
        rootfs: Rootfs,
        mounts: Sequence[SandboxMount],
        environment: Sequence[str],
        output: Callable[[int, bytes], None],
    ) -> int:
        """Run to the end; gives the exit code. On cancellation nothing is left. Raises RuntimeFailed."""


class _Shared:
    """One step in the works, and the builds that wait for it."""

    def __init__(self, task: asyncio.Task[Layer], output: SharedLog) -> None:
        self.task = task
        self.output = output
        self.waiting = 0


class Solver:
    """One for an engine: what one build is doing, others need not do."""

    def __init__(self, cache: BuildCache, images: Images, sandboxes: Sandboxes, launcher: worker.Launcher) -> None:
        self.cache = cache
        self.images = images
        self.sandboxes = sandboxes
        self.launcher = launcher
        self._steps: dict[str, _Shared] = {}
        self._checksums: dict[str, asyncio.Future[str]] = {}
        self._diffs: dict[str, asyncio.Task[None]] = {}
        self._mount_locks: dict[str, asyncio.Lock] = {}
        self._mounts_in_use: set[str] = set()
        cache.on_removal = self.release
        self._copying = asyncio.Semaphore(max(2, os.cpu_count() or 1))
        self._writing: asyncio.Task[None] | None = None

    async def close(self) -> None:
        tasks = [*(shared.task for shared in self._steps.values()), *self._diffs.values()]
        tasks += [self._writing] if self._writing is not None else []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def build(self, session: Session, progress: Progress) -> AsyncIterator[Build]:
        """A build in progress; leaving the block ends what it still does."""
        build = Build(self, session, progress)
        try:
            yield build
        finally:
            await build.close()

    # --- one step, shared ---------------------------------------------------------------------------------------

    async def step(
        self,
        key: str,
        make: Callable[[SharedLog], Coroutine[Any, Any, Layer]],
        output: Callable[[int, bytes], None],
    ) -> Layer:
        """Have a step done once, whoever else asks for it meanwhile; it is stopped when nobody waits any longer."""
        shared = self._steps.get(key)
        if shared is None:
            lines = SharedLog()
            shared = _Shared(asyncio.create_task(make(lines), name=f"build step {key[:12]}"), lines)
            self._steps[key] = shared
            shared.task.add_done_callback(lambda _task: self._steps.pop(key, None))
        shared.output.listen(output)
        shared.waiting += 1
        try:
            return await asyncio.shield(shared.task)
        except asyncio.CancelledError:
            if shared.waiting == 1 and not shared.task.done():
                shared.task.cancel()
                await asyncio.gather(shared.task, return_exceptions=True)
            raise
        finally:
            shared.waiting -= 1

    def write_soon(self) -> None:
        """Have what steps have changed on the disk in a moment, so that a power cut takes no more than that."""
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write(), name="write layers of builds to the disk")

    async def _write(self) -> None:
        await asyncio.sleep(_WRITE_AFTER)

        def write() -> None:
            folder = os.open(self.cache.root / "layers", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                syncfs(folder)
            finally:
                os.close(folder)

        try:
            await asyncio.to_thread(write)
        except OSError as error:
            log.error("layers of builds could not be written to the disk: %s", error.strerror)

    # --- layers for an image ------------------------------------------------------------------------------------

    def start_diff(self, layer: Layer) -> None:
        """Begin to compute a layer's digest, so that it is known when an image wants it."""
        if layer.diff_id or layer.id in self._diffs:
            return
        task = asyncio.create_task(self._diff(layer), name=f"digest of layer {layer.id}")
        self._diffs[layer.id] = task
        task.add_done_callback(lambda done: self._diff_done(layer.id, done))

    def _diff_done(self, id: str, task: asyncio.Task[None]) -> None:
        self._diffs.pop(id, None)
        if not task.cancelled() and task.exception() is not None:
            log.debug("digest of layer %s: %s", id, task.exception())

    async def diff(self, layer: Layer) -> None:
        """Make sure that ``layer.diff_id`` is known."""
        if layer.diff_id:
            return
        self.start_diff(layer)
        await asyncio.shield(self._diffs[layer.id])
        if not layer.diff_id:
            row = self.cache.find_layer(layer.id)
            if row is None or not row.diff_id:
                raise System(f"layer {layer.id} of the build has gone")
            layer.diff_id, layer.size = row.diff_id, row.size

    async def _diff(self, layer: Layer) -> None:
        empty = _empty_diff(layer.path)
        if empty is not None:
            self.cache.set_diff_id(layer, empty, 0)
            return
        null = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
        try:
            packed, used = await asyncio.gather(
                worker.run(
                    self.launcher,
                    "seacan.storage.pack:main",
                    PackRequest("layer", DirectoryRoot(layer.path)),
                    (null,),
                    PackResult,
                ),
                asyncio.to_thread(usage, layer.path),
            )
        finally:
            os.close(null)
        self.cache.set_diff_id(layer, packed.diff_id, used.size)

    async def export(self, layers: Sequence[Layer]) -> tuple[list[DiffID], ChainID | None]:
        """Hand layers over to the image store; gives their diff IDs and the chain ID of all.

        Call it with an :meth:`Images.lease` that holds the chain IDs, or register an image at once.
        """
        await asyncio.gather(*(self.diff(layer) for layer in layers if not layer.base))
        chain: ChainID | None = None
        store = self.images.layers
        for layer in layers:
            parent, diff_id = chain, DiffID(layer.diff_id)
            chain = digests.chain_id(parent, diff_id)
            if store.contains(chain):
                continue
            path = Path(layer.path)
            if layer.base or path.is_symlink():
                staged = await self._copy_layer(layer)
                store.commit(staged, parent, diff_id)
                continue
            staged = store.adopt(path, diff_id, layer.size)
            try:
                store.commit(staged, parent, diff_id)
            finally:
                self.cache.moved(layer, store.get(chain).path if store.contains(chain) else staged.path)
            store.hold(chain, holder(layer.id))
        return [DiffID(layer.diff_id) for layer in layers], chain

    def release(self, id: str) -> None:
        """A record of the cache is gone: the image store need not keep its layer any longer."""
        for chain in self.images.layers.release(holder(id)):
            self.images.collect_layers(chain)

    async def _copy_layer(self, layer: Layer) -> Staged:
        """A layer that another image has already, for a new place: overlay's marks and all."""
        folder = self.images.layers.stage_folder()
        folder.rmdir()
        await worker.run(
            self.launcher,
            "seacan.build.files:clone_main",
            files.CloneRequest(os.path.realpath(layer.path), str(folder)),
            (),
            files.FilesResult,
        )
        return Staged(folder, DiffID(layer.diff_id), layer.size, [])

    # --- content ------------------------------------------------------------------------------------------------

    async def checksum(
        self,
        result: Result,
        action: files.CopyAction,
        ready: Callable[[Result], Awaitable[None]],
        *,
        classic: bool = False,
    ) -> str:
        """The digest of what ``action`` would copy of ``result``; ``ready`` is awaited before its files are read."""
        known = ""
        if result.key:
            known = hashlib.sha256(result.own.encode() + b"\0" + _selection(action)).hexdigest()
            found = self.cache.checksum(known)
            if found is not None:
                return found
            pending = self._checksums.get(known)
            if pending is not None:
                return await asyncio.shield(pending)
        await ready(result)
        index = result.folder.index if result.folder else ""
        request = files.ChecksumRequest(files.SourceRoot(result.rootfs, index), action, classic)
        if known in self._checksums:
            return await asyncio.shield(self._checksums[known])
        computing: asyncio.Task[str] = asyncio.create_task(self._compute(request))
        if known:
            self._checksums[known] = computing
            computing.add_done_callback(lambda _done: self._checksums.pop(known, None))
        try:
            digest = await computing
        except asyncio.CancelledError:
            computing.cancel()
            raise
        if known:
            self.cache.put_checksum(known, digest)
        return digest

    async def _compute(self, request: files.ChecksumRequest) -> str:
        async with self._copying:
            done = await worker.run(
                self.launcher, "seacan.build.files:checksum_main", request, (), files.ChecksumResult
            )
        return done.digest

    async def work(self, request: files.FilesRequest) -> None:
        """Copy files, in a worker."""
        async with self._copying:
            await worker.run(self.launcher, "seacan.build.files:main", request, (), files.FilesResult)

    @contextlib.asynccontextmanager
    async def cache_mount(self, mount: FileMount, source: Result | None) -> AsyncIterator[str]:
        """The folder of a ``--mount=type=cache``, as its ``sharing`` says."""
        identity = hashlib.sha256(f"{mount.id}\0{source.own if source else ''}\0{mount.selector}".encode()).hexdigest()[
            :20
        ]
        candidates = [identity]
        async with contextlib.AsyncExitStack() as held:
            if mount.sharing == "locked":
                await held.enter_async_context(self._mount_locks.setdefault(identity, asyncio.Lock()))
            elif mount.sharing == "private":
                candidates = [identity, *(f"{identity[:17]}-{number:02d}" for number in range(1, 100))]
            id = next((each for each in candidates if each not in self._mounts_in_use), candidates[-1])
            path = self.cache.path(id)
            exclusive = mount.sharing == "private"
            if exclusive:
                self._mounts_in_use.add(id)
                held.callback(self._mounts_in_use.discard, id)
            if self.cache.find(f"mount:{id}") is None:
                os.makedirs(path, exist_ok=True)
                os.chown(path, mount.uid, mount.gid)
                os.chmod(path, mount.mode or 0o755)
                if source is not None and source.rootfs is not None:
                    await self.work(
                        files.FilesRequest(
                            (),
                            path,
                            "",
                            (files.SourceRoot(source.rootfs),),
                            (files.CopyAction(0, mount.selector, "/", wildcards=False),),
                        )
                    )
                self.cache.put(
                    f"mount:{id}", id, kind="exec.cachemount", description=f"cached mount {mount.target} from exec"
                )
            self.cache.hold([id])
            held.callback(self.cache.release, [id])
            yield path
            self.cache.set_size(id, (await asyncio.to_thread(usage, path)).size)


@dataclass
class _Keyed:
    """A vertex whose inputs are known: its keys (see :attr:`Result.own`), and how to make it under a key."""

    key: str
    own: str
    make: Callable[[str, SharedLog], Coroutine[Any, Any, Layer]]
    definition: str = ""


@dataclass(frozen=True)
class Solved:
    """A step of a build, for who exports its cache. ``inputs`` are keys; ``below`` is what its layer lies on."""

    key: str
    definition: str
    inputs: tuple[str, ...]
    layer: Layer
    below: Layer | None
    claim: Claim | None = None


@dataclass
class Build:
    """One client's build: each vertex is solved once."""

    solver: Solver
    session: Session
    progress: Progress
    _tasks: dict[int, asyncio.Task[Result]] = field(default_factory=dict)
    _vertices: list[Vertex] = field(default_factory=list)
    _held: list[str] = field(default_factory=list)
    classic: bool = False
    imports: Imports | None = None
    only: frozenset[ChainID] | None = None
    """What this engine's cache may give: the layers that end one of these chains. None: everything."""
    solved: list[Solved] = field(default_factory=list)
    """The steps so far, each after those it stands on."""
    _arrivals: dict[int, asyncio.Task[None]] = field(default_factory=dict)
    _waiting: dict[int, Callable[[], Coroutine[Any, Any, None]]] = field(default_factory=dict)

    async def close(self) -> None:
        pending = [task for task in (*self._tasks.values(), *self._arrivals.values()) if not task.done()]
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        self.solver.cache.release(self._held)

    def results(self) -> tuple[tuple[Vertex, Result], ...]:
        """What the vertices solved so far came to."""
        finished = ((vertex, self._tasks[id(vertex)]) for vertex in self._vertices)
        return tuple(
            (vertex, task.result())
            for vertex, task in finished
            if task.done() and not task.cancelled() and task.exception() is None
        )

    async def solve(self, vertex: Vertex) -> Result:
        """The result of ``vertex``, made if need be.

        :raises BuildFailed: a step failed.
        """
        if id(vertex) not in self._tasks:
            # Begun in the order of the Dockerfile: what most has to wait for is first.
            for each in walk([vertex]):
                if id(each) not in self._tasks:
                    self._vertices.append(each)  # keeps id(each) its own
                    self._tasks[id(each)] = asyncio.create_task(self._solve(each), name=f"build {each.name[:40]}")
        return await asyncio.shield(self._tasks[id(vertex)])

    async def _solve(self, vertex: Vertex) -> Result:
        operation = vertex.operation
        inputs = await _all([self.solve(each) for each in vertex.inputs])
        match operation:
            case Scratch():
                return Result("scratch")
            case ImageSource():
                return self._image(vertex, operation)
            case Merge():
                key = _key("merge", *(each.key for each in inputs))
                own = _key("merge", *(each.own for each in inputs))
                return Result(key, (*inputs[0].layers, *inputs[1].layers), local=own)
            case LocalSource() | HttpSource() | GitSource() | InlineSource():
                return await self._source(vertex)
            case Exec() | Files():
                return await self._step(vertex, inputs)

    def _image(self, vertex: Vertex, operation: ImageSource) -> Result:
        self.progress.started(vertex)
        if not operation.chain_id:
            self.progress.completed(vertex, cached=True)
            return Result("scratch")
        try:
            stack = self.solver.images.layers.stack(ChainID(operation.chain_id))
        except NotFound as error:
            self.progress.completed(vertex, error=str(error))
            raise
        layers = tuple(
            Layer(layer.chain_id, str(layer.path), layer.diff_id, layer.size, base=True) for layer in reversed(stack)
        )
        self.progress.completed(vertex, cached=True)
        return Result(_key("image", operation.chain_id), layers)

    async def _source(self, vertex: Vertex) -> Result:
        operation = vertex.operation
        self.progress.started(vertex)
        try:
            if isinstance(operation, LocalSource):
                label = f"transferring {operation.name}:"

                def report(size: int, done: bool) -> None:
                    self.progress.status(vertex, label, size, 0, done=done)

                folder = await self.session.local(operation, report)
            elif isinstance(operation, HttpSource):
                folder = await remote.fetch_http(self.solver.cache, operation)
            elif isinstance(operation, GitSource):
                folder = await remote.fetch_git(self.solver.cache, operation)
            else:
                assert isinstance(operation, InlineSource)
                folder = remote.write_inline(self.solver.cache, operation)
        except SeacanError as error:
            self.progress.completed(vertex, error=error.message)
            raise
        self._hold(folder.key and Path(folder.path).name)
        self.progress.completed(vertex)
        return Result(folder.key, (), folder)

    def _hold(self, id: str) -> None:
        if id:
            self._held.append(id)
            self.solver.cache.hold([id])

    async def _step(self, vertex: Vertex, inputs: Sequence[Result]) -> Result:
        cache = self.solver.cache
        base = inputs[0]
        begun = False
        claim: Claim | None = None
        try:
            keyed = await self._keyed(vertex, inputs)
            own = keyed.own
            layer = None if vertex.ignore_cache else cache.find(own)
            if layer is not None and not self.may_reuse((*base.layers, layer)):
                layer = None
            if layer is None and self.imports is not None and not vertex.ignore_cache:
                claim = self.imports.find(keyed.key)
            if claim is not None:
                if claim.archive is not None:
                    own = _key("imported", keyed.key, claim.archive.diff_id, base.own)
                    layer = cache.find(own)
                layer = layer or self._claimed(vertex, keyed, claim, own, base)
            cached = layer is not None
            self.progress.started(vertex)
            begun = True
            if layer is None:
                layer = await self._make(vertex, keyed, keyed.own)
        except (SeacanError, asyncio.CancelledError) as error:
            if not begun:
                self.progress.started(vertex)
            message = "context canceled" if isinstance(error, asyncio.CancelledError) else str(error)
            self.progress.completed(vertex, error=message)
            if isinstance(error, asyncio.CancelledError | BuildFailed):
                raise
            failure = BuildFailed(message, vertex)
            failure.status = getattr(error, "status", 500)
            raise failure from error
        self._hold(layer.id)
        self.progress.completed(vertex, cached=cached)
        below = base.layers[-1] if base.layers and not base.layers[-1].base else None
        origins = tuple(dict.fromkeys(each.key for each in inputs if each.key))
        self.solved.append(Solved(keyed.key, keyed.definition, origins, layer, below, claim))
        return Result(keyed.key, (*base.layers, layer), local=own)

    def may_reuse(self, layers: Sequence[Layer]) -> bool:
        """May this engine's cache give what is made of these?"""
        if self.only is None:
            return True
        chain = digests.chain_ids([DiffID(layer.diff_id) for layer in layers if layer.diff_id])
        return len(chain) == len(layers) and bool(chain) and chain[-1] in self.only

    async def _make(self, vertex: Vertex, keyed: _Keyed, own: str) -> Layer:
        return await self.solver.step(
            own, lambda output: keyed.make(own, output), lambda stream, data: self.progress.log(vertex, stream, data)
        )

    # --- what imported caches claim -----------------------------------------------------------------------------

    async def need(self, *results: Result) -> None:
        """Have the files of results here: fetch claimed layers, or make those that no cache has.

        :raises BuildFailed: a step failed.
        """
        layers = {id(layer): layer for result in results for layer in result.layers if not layer.here}
        for number in layers:
            if number not in self._arrivals:
                self._arrivals[number] = asyncio.create_task(self._waiting[number]())
        await _all([asyncio.shield(self._arrivals[number]) for number in layers])

    def _claimed(self, vertex: Vertex, keyed: _Keyed, claim: Claim, own: str, base: Result) -> Layer:
        """A layer that a cache says there is; its files come when somebody needs them."""
        layer = Layer("", "", claim.archive.diff_id if claim.archive else "", created=claim.created)

        async def arrive() -> None:
            found = await self._fetched(vertex, claim, own, base) if claim.archive else None
            if found is None:
                self.progress.started(vertex)
                # What a cache promised under this key and did not give is made anew, for this build alone.
                found = await self._make(vertex, keyed, _key("instead", own) if claim.archive else own)
            layer.become(found)
            self._hold(layer.id)

        self._waiting[id(layer)] = arrive
        return layer

    async def _fetched(self, vertex: Vertex, claim: Claim, own: str, base: Result) -> Layer | None:
        """The layer of a claim, or None where the cache does not keep its word."""
        imports, cache = self.imports, self.solver.cache
        assert imports is not None and claim.archive is not None
        descriptor = claim.archive.descriptor

        def report(current: int, total: int) -> None:
            self.progress.status(vertex, descriptor.digest, current, total, done=current == total)

        try:
            staged = await imports.fetch(claim.archive, report)
        except SeacanError as error:
            self.progress.log(vertex, 2, f"cached layer {descriptor.digest} is not used: {error}\n".encode())
            return None
        await self.need(base)
        self.solver.images.layers.inherit(staged, [Path(path) for path in base.lower])
        id = cache.take(staged.path)
        layer = cache.put(own, id, description=_description(vertex), size=staged.size, created=claim.created)
        cache.set_diff_id(layer, staged.diff_id, staged.size)
        cache.set_archive(layer, LayerBlob(descriptor.digest, descriptor.size, descriptor.media_type))
        return layer

    def _promised(self, definition: str, inputs: Sequence[Result]) -> str | None:
        """The key a cache gives for a definition, where finding it out would take files that are not here."""
        if self.imports is None or all(each.here for each in inputs):
            return None
        return self.imports.step(definition)

    async def _keyed(self, vertex: Vertex, inputs: Sequence[Result]) -> _Keyed:
        if isinstance(vertex.operation, Exec):
            return await self._keyed_exec(vertex, vertex.operation, inputs)
        assert isinstance(vertex.operation, Files)
        return await self._keyed_files(vertex, vertex.operation, inputs)

    # --- files --------------------------------------------------------------------------------------------------

    async def _keyed_files(self, vertex: Vertex, operation: Files, inputs: Sequence[Result]) -> _Keyed:
        actions: list[files.CopyAction | files.FolderAction] = []
        for action in operation.actions:
            if isinstance(action, MakeDirectory):
                actions.append(files.FolderAction(action.path, action.mode, action.owner))
            else:
                actions.append(_copy_action(action, action.source - 1))
        copies = [action for action in actions if isinstance(action, files.CopyAction)]
        described = msgspec.json.encode([placeless(action) for action in actions]).decode()
        rest = (str(vertex.epoch), "classic" if self.classic else "")
        definition = own = ""
        key: str | None = None
        if any(inputs[action.source + 1].layers for action in copies):
            taken = [inputs[action.source + 1] for action in copies]
            known = [
                "" if each.layers else await self.solver.checksum(each, action, self.need, classic=self.classic)
                for each, action in zip(taken, copies, strict=True)
            ]
            parts = (described, *known, *rest)
            definition = _key("definition", inputs[0].key, *(each.key for each in taken), *parts)
            own = _key("definition", inputs[0].own, *(each.own for each in taken), *parts)
            key = self._promised(definition, taken)
        if key is None:
            try:
                contents = await _all(
                    [
                        self.solver.checksum(inputs[action.source + 1], action, self.need, classic=self.classic)
                        for action in copies
                    ]
                )
            except InvalidParameter as error:
                if self.classic:
                    name = vertex.command.partition(" ")[0].upper()
                    raise BuildFailed(f"{name} failed: {error}", vertex) from None
                raise BuildFailed(
                    f"failed to compute cache key: failed to calculate checksum of ref: {error}", vertex
                ) from None
            key = _key("files", inputs[0].key, described, *contents, *rest)
            own = _key("files", inputs[0].own, described, *contents, *rest)

        async def make(own: str, _output: SharedLog) -> Layer:
            await self.need(*inputs)
            sources = tuple(
                files.SourceRoot(each.rootfs, links=each.folder.links if each.folder else "") for each in inputs[1:]
            )
            base = inputs[0]
            cache = self.solver.cache
            layer_id, upper, work = cache.new_folder(base.lower[0] if base.lower else None)
            try:
                await self.solver.work(
                    files.FilesRequest(
                        base.lower,
                        upper,
                        work,
                        sources,
                        tuple(actions),
                        vertex.epoch,
                        self.classic,
                        operation.detached,
                    )
                )
            except BaseException:
                cache.discard(layer_id)
                raise
            cache.settle(layer_id)
            return self._commit(own, layer_id, vertex, base)

        return _Keyed(key, own, make, definition)

    def _commit(self, key: str, layer_id: str, vertex: Vertex, base: Result) -> Layer:
        parent = base.layers[-1].id if base.layers and not base.layers[-1].base else ""
        layer = self.solver.cache.put(key, layer_id, description=_description(vertex), parent=parent)
        self.solver.start_diff(layer)
        return layer

    # --- programs -----------------------------------------------------------------------------------------------

    async def _keyed_exec(self, vertex: Vertex, operation: Exec, inputs: Sequence[Result]) -> _Keyed:
        check_platform(vertex)
        bound = [mount for mount in operation.mounts if mount.source >= 0 and mount.kind == "bind"]
        meta = dataclasses.replace(operation, mounts=(), proxy=(), limits=type(operation.limits)(), cgroup_parent="")
        mounts = [str(dataclasses.replace(mount, source=min(mount.source, 0))) for mount in operation.mounts]
        rest = (str(vertex.epoch), str(vertex.platform))
        definition = own = ""
        key: str | None = None
        if any(inputs[mount.source].layers for mount in bound):
            taken = [inputs[mount.source] for mount in bound]
            known = [
                "" if each.layers else await self._content(each, mount.selector)
                for each, mount in zip(taken, bound, strict=True)
            ]
            parts = (repr(meta), *mounts, *known, *rest)
            definition = _key("definition", inputs[0].key, *(each.key for each in taken), *parts)
            own = _key("definition", inputs[0].own, *(each.own for each in taken), *parts)
            key = self._promised(definition, taken)
        if key is None:
            contents = [
                await self._content(inputs[mount.source], mount.selector) if mount in bound else ""
                for mount in operation.mounts
            ]
            parts = (repr(meta), *map("".join, zip(mounts, contents, strict=True)), *rest)
            key = _key("exec", inputs[0].key, *parts)
            own = _key("exec", inputs[0].own, *parts)

        async def make(own: str, output: SharedLog) -> Layer:
            await self.need(*inputs)
            return await self._run(vertex, operation, inputs, own, output)

        return _Keyed(key, own, make, definition)

    async def _content(self, result: Result, selector: str) -> str:
        action = files.CopyAction(0, selector, "/", follow=True, wildcards=False)
        return await self.solver.checksum(result, action, self.need)

    async def _run(
        self, vertex: Vertex, operation: Exec, inputs: Sequence[Result], key: str, output: SharedLog
    ) -> Layer:
        base = inputs[0]
        cache = self.solver.cache
        layer_id, upper, work = cache.new_folder(base.lower[0] if base.lower else None)
        try:
            rootfs: Rootfs = OverlayRoot(base.lower, upper, work, _STEP_OPTIONS) if base.lower else DirectoryRoot(upper)
            async with contextlib.AsyncExitStack() as held:
                mounts, environment = await self._mounts(operation, inputs, held)
                try:
                    code = await self.solver.sandboxes.run(
                        operation,
                        rootfs,
                        mounts,
                        [*operation.environment, *operation.proxy, *environment],
                        output.write,
                    )
                except RuntimeFailed as error:
                    if self.classic:
                        raise
                    raise BuildFailed(f"{_unfinished(operation)}: {error}", vertex, error.exit_code) from error
            if code:
                if self.classic:
                    command = " ".join(operation.arguments)
                    raise BuildFailed(f"The command '{command}' returned a non-zero code: {code}", vertex, code)
                raise BuildFailed(f"{_unfinished(operation)}: exit code: {code}", vertex, code)
            remove_stubs(upper, base.lower, [mount.target for mount in mounts])
            if vertex.epoch is not None:
                await worker.run(
                    self.solver.launcher,
                    "seacan.build.files:clamp_main",
                    files.ClampRequest(upper, vertex.epoch),
                    (),
                    files.FilesResult,
                )
        except BaseException:
            cache.discard(layer_id)
            raise
        cache.settle(layer_id)
        self.solver.write_soon()
        return self._commit(key, layer_id, vertex, base)

    async def _mounts(
        self, operation: Exec, inputs: Sequence[Result], held: contextlib.AsyncExitStack
    ) -> tuple[list[SandboxMount], list[str]]:
        mounts: list[SandboxMount] = []
        environment: list[str] = []
        private: str | None = None
        for number, mount in enumerate(operation.mounts):
            source = inputs[mount.source] if mount.source >= 0 else None
            match mount.kind:
                case "tmpfs":
                    mounts.append(SandboxMount("tmpfs", mount.target, read_only=mount.read_only, size=mount.size))
                case "cache":
                    path = await held.enter_async_context(self.solver.cache_mount(mount, source))
                    mounts.append(SandboxMount("bind", mount.target, path, read_only=mount.read_only))
                case "bind":
                    assert source is not None
                    mounts.append(await self._bind(mount, source, held))
                case "secret":
                    value = await self.session.secret(mount.id)
                    if value is None:
                        if mount.required:
                            raise NotFound(f"secret {mount.id}: not found")
                        continue
                    if mount.env:
                        environment.append(f"{mount.env}={value.decode('utf-8', 'surrogateescape')}")
                    if mount.file:
                        private = private or held.enter_context(secret_folder())
                        path = write_secret(private, number, mount, value)
                        mounts.append(SandboxMount("bind", mount.target, path, private=True))
                case "ssh":
                    private = private or held.enter_context(secret_folder())
                    target = mount.target or f"/run/buildkit/ssh_agent.{number}"
                    path = f"{private}/agent.{number}"
                    agent = await self.session.ssh(mount.id, path)
                    if agent is None:
                        if mount.required:
                            raise NotFound(f"no SSH key {mount.id!r} forwarded from the client")
                        continue
                    await held.enter_async_context(agent)
                    os.chown(path, mount.uid, mount.gid)
                    os.chmod(path, mount.mode)
                    mounts.append(SandboxMount("bind", target, path, private=True))
                    if not any(each.startswith("SSH_AUTH_SOCK=") for each in environment):
                        environment.append(f"SSH_AUTH_SOCK={target}")
        return mounts, environment

    async def _bind(self, mount: FileMount, source: Result, held: contextlib.AsyncExitStack) -> SandboxMount:
        cache = self.solver.cache
        whole = mount.selector == "/"
        if mount.read_only and source.folder is not None:
            return SandboxMount("bind", mount.target, source.folder.path, mount.selector)
        if mount.read_only and whole and source.layers:
            if len(source.layers) == 1:
                return SandboxMount("bind", mount.target, source.layers[0].path)
            return SandboxMount("overlay", mount.target, lower=source.lower)
        # A part of several layers, or something to be written to and then thrown away: a copy.
        layer_id, upper, _ = cache.new_folder(None)
        held.callback(cache.discard, layer_id)
        if source.rootfs is None:
            return SandboxMount("bind", mount.target, upper, read_only=mount.read_only)
        await self.solver.work(
            files.FilesRequest(
                (),
                upper,
                "",
                (files.SourceRoot(source.rootfs),),
                (files.CopyAction(0, mount.selector, "/content", wildcards=False),),
            )
        )
        return SandboxMount("bind", mount.target, f"{upper}/content", read_only=mount.read_only)


def _unfinished(operation: Exec) -> str:
    return f'process "{" ".join(operation.arguments)}" did not complete successfully'


def holder(id: str) -> str:
    """Under what name the image store keeps a layer for the cache."""
    return f"build:{id}"


@contextlib.contextmanager
def secret_folder() -> Iterator[str]:
    """A folder in memory that only root can enter, gone afterwards: secrets never touch a disk."""
    base = "/dev/shm" if os.path.isdir("/dev/shm") else None
    path = tempfile.mkdtemp(prefix="seacan-build-", dir=base)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def write_secret(folder: str, number: int, mount: FileMount, value: bytes) -> str:
    path = f"{folder}/secret.{number}"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(value)
        os.fchown(descriptor, mount.uid, mount.gid)
        os.fchmod(descriptor, mount.mode)
    return path


_STUBS = (
    *("/proc", "/sys", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue"),
    *("/etc/resolv.conf", "/etc/hosts", "/etc/hostname"),
)


def remove_stubs(upper: str, lower: Sequence[str], targets: Sequence[str]) -> None:
    """Take away the empty files and folders that were made only to be mounted on: they are nobody's change."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    root = os.open(upper, flags)
    try:
        for target in sorted({*_STUBS, *targets}, key=len, reverse=True):
            path = target.strip("/")
            while path:
                if not _remove_stub(root, path, lower):
                    break
                path = path.rpartition("/")[0]
    finally:
        os.close(root)


def _remove_stub(root: int, path: str, lower: Sequence[str]) -> bool:
    folder, _, name = path.rpartition("/")
    resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
    try:
        parent = openat2(root, folder or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, resolve=resolve)
    except OSError:
        return False
    try:
        info = os.stat(name, dir_fd=parent, follow_symlinks=False)
        is_folder = stat.S_ISDIR(info.st_mode)
        if not is_folder and (not stat.S_ISREG(info.st_mode) or info.st_size):
            return False
        for layer in lower:
            with contextlib.suppress(OSError):
                descriptor = os.open(layer, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    os.close(openat2(descriptor, path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, resolve=resolve))
                    return False
                finally:
                    os.close(descriptor)
        times = os.fstat(parent)
        if is_folder:
            os.rmdir(name, dir_fd=parent)
        else:
            os.unlink(name, dir_fd=parent)
        os.utime(parent, ns=(times.st_atime_ns, times.st_mtime_ns))
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(parent)


def _empty_diff(path: str) -> str | None:
    """The digest of a layer that changes nothing but perhaps its root; None where there is more in it."""
    with os.scandir(path) as entries:
        if next(entries, None) is not None:
            return None
    if os.listxattr(path):
        return None
    info = os.stat(path)
    content = header(b"./", b"5", info.st_mode & 0o7777, info.st_uid, info.st_gid, 0, info.st_mtime_ns // 1_000_000_000)
    content += bytes(1024)
    content += bytes(-len(content) % 10240)
    return digests.of(content)


def _key(*parts: str) -> str:
    total = hashlib.sha256(VERSION)
    for part in parts:
        data = part.encode("utf-8", "surrogateescape")
        total.update(b"%d:" % len(data) + data)
    return total.hexdigest()


def _selection(action: files.CopyAction) -> bytes:
    """What an action takes, wherever it puts it."""
    return msgspec.json.encode(
        msgspec.structs.replace(action, source=0, destination="", owner="", mode="", unpack=False)
    )


def _copy_action(action: CopyFiles, source: int) -> files.CopyAction:
    return files.CopyAction(
        source,
        action.path,
        action.destination,
        action.owner,
        action.mode,
        action.follow,
        action.contents,
        action.unpack,
        action.wildcards,
        action.include,
        action.exclude,
        action.required,
    )


def placeless(action: files.CopyAction | files.FolderAction) -> files.CopyAction | files.FolderAction:
    """The action without what depends on its place in a graph."""
    if isinstance(action, files.CopyAction):
        return msgspec.structs.replace(action, source=0)
    return action


def _description(vertex: Vertex) -> str:
    return vertex.name or vertex.command


async def _all(awaitables: Sequence[Awaitable[T]]) -> list[T]:
    """Wait for all; the first failure ends the wait for the others (which their own owner cancels)."""
    return list(await asyncio.gather(*awaitables))
