"""BuildKit's services over ``/session`` and ``/grpc``: translates them to builds of the engine.

A client opens two connections: a session, on which it serves us (folders, secrets, output), and one on which it calls
``Control`` (solve, status, history, disk usage) and, since buildx drives the front end itself, ``LLBBridge``.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from aiohttp import web

from seacan.api import hijack
from seacan.api.buildcontexts import Contexts
from seacan.build import context as contexts
from seacan.build import emulation, remote
from seacan.build.buildkit import frontend, llb, sync
from seacan.build.buildkit import messages as pb
from seacan.build.buildkit.http2 import Connection
from seacan.build.buildkit.rpc import INVALID_ARGUMENT, NOT_FOUND, UNIMPLEMENTED, UNKNOWN, Call, Channel, Method, Status
from seacan.build.buildkit.rpc import server as grpc_server
from seacan.build.buildkit.session import ClientSession, ContextFolders
from seacan.build.cacheconfig import Entry
from seacan.build.dockerfile.convert import Converted, NamedContext, Options, targets
from seacan.build.dockerfile.lint import Checks
from seacan.build.dockerfile.parser import Range, directive
from seacan.build.graph import GitSource, ImageSource, LocalSource, Scratch, Source, Vertex
from seacan.build.ignore import read_ignore_file
from seacan.build.imports import Cache
from seacan.build.provenance import Facts
from seacan.build.solver import BuildFailed, SourceFolder
from seacan.build.sources import parse_git
from seacan.engine.buildexport import Content, Form, Product, assemble, boolean, check, sources
from seacan.engine.builds import Builds, Outcome, Request, parse_name, together
from seacan.errors import InvalidParameter, NotFound, SeacanError, Unsupported
from seacan.images import config as image_config
from seacan.images import reference as references
from seacan.images.config import ImageConfig
from seacan.images.manifest import Platform, host_platform
from seacan.images.store import Image, Lease
from seacan.registry.copy import Copy
from seacan.registry.group import Group

if TYPE_CHECKING:
    from seacan.engine.engine import Engine

log = logging.getLogger(__name__)
T = TypeVar("T")

VERSION = "v0.25.1"
"""The BuildKit whose API this is."""
DOCKERFILE_VERSION = "1.19.0"
"""The Dockerfile front end whose language this is."""

_SESSION_WAIT = 10.0
"""Seconds a solve waits for its session to connect."""
_HISTORY = 50
_FILE_LIMIT = 16 << 20
_STATUS_DELAY = 0.02
"""Seconds in which progress is gathered."""

_FRONTEND_CAPS = (
    *("solve.base", "solve.inlinereturn", "resolveimage", "resolveimage.resolvemode", "readfile", "statfile", "return"),
    *("returnmap", "importcaches", "proto.refarray", "frontend.inputs", "gateway.solve.metadata"),
    *("frontend.caps", "gateway.solve.evaluate", "gateway.evaluate", "gateway.warnings"),
)
_LLB_CAPS = (
    *("source.image", "source.image.resolvemode", "source.local", "source.local.unique", "source.local.sessionid"),
    *("source.local.includepatterns", "source.local.followpaths", "source.local.excludepatterns"),
    *("source.local.sharedkeyhint", "source.local.differ", "source.git", "source.git.keepgitdir"),
    *("source.git.fullurl", "source.git.subdir", "source.git.checksum", "source.http", "source.http.checksum"),
    *("exec.meta.base", "exec.meta.cgroup.parent", "exec.meta.network", "exec.meta.proxyenv", "exec.meta.security"),
    *("exec.meta.setsdefaultpath", "exec.meta.ulimit", "exec.meta.removemountstubs.recursive", "exec.mount.bind"),
    *("exec.mount.bind.readwrite-nooutput", "exec.mount.cache", "exec.mount.cache.sharing", "exec.mount.selector"),
    *("exec.mount.tmpfs", "exec.mount.tmpfs.size", "exec.mount.secret", "exec.mount.ssh", "exec.secretenv"),
    *("file.base", "file.rm.wildcard", "file.copy.includeexcludepatterns", "constraints", "platform"),
    *("meta.ignorecache", "meta.description", "meta.exportcache", "mergeop", "exporter.sourcedateepoch"),
    *("exporter.multiple", "exporter.image.attestations", "exporter.image.annotations"),
    *("gc.freespacefilter", "history.filter"),
)


def routes(engine: Engine) -> list[web.RouteDef]:
    service = BuildKit(engine)

    async def session(request: web.Request) -> web.StreamResponse:
        protocol = request.headers.get("Upgrade", "")
        if not protocol:
            raise InvalidParameter("no upgrade proto in request")
        if protocol.lower() != "h2c":
            raise InvalidParameter(f"protocol {protocol} not supported")
        id = request.headers.get("X-Docker-Expose-Session-Uuid", "")
        if not id:
            raise InvalidParameter("invalid session: no ID")
        connection = hijack.connection_of(request)
        reader, writer = await connection.take_streams(_switching(request))
        link = Connection(reader, writer, client=True)
        service.add_session(
            id,
            request.headers.get("X-Docker-Expose-Session-Sharedkey", ""),
            request.headers.getall("X-Docker-Expose-Session-Grpc-Method", []),
            link,
        )
        return hijack.Hijacked(connection)

    async def grpc(request: web.Request) -> web.StreamResponse:
        if not request.headers.get("Upgrade"):
            raise InvalidParameter("no upgrade proto in request")
        connection = hijack.connection_of(request)
        reader, writer = await connection.take_streams(_switching(request))
        service.spawn(Connection(reader, writer, client=False, serve=grpc_server(service.methods)).run())
        return hijack.Hijacked(connection)

    return [web.post("/session", session), web.post("/grpc", grpc)]


def _switching(request: web.Request) -> bytes:
    protocol = request.headers.get("Upgrade", "h2c")
    return f"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n".encode()


@dataclass
class _Result:
    """What a front end has made for one platform."""

    platform: Platform | None
    outcome: Outcome
    lease: Lease
    settings: frontend.Settings
    parameters: Mapping[str, str]
    """As the client sent them."""
    dockerfile: bytes


@dataclass
class _Job:
    """One build as its client knows it."""

    ref: str
    recorder: Recorder
    created: int = field(default_factory=time.time_ns)
    completed: int = 0
    request: pb.SolveRequest | None = None
    session: ClientSession | None = None
    results: dict[str, list[_Result]] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)
    returned: asyncio.Future[pb.ReturnRequest] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    started: asyncio.Event = field(default_factory=asyncio.Event)
    response: dict[str, str] = field(default_factory=dict)
    error: pb.RPCStatus | None = None
    caches: list[Cache] | None = None
    contexts: list[Contexts] = field(default_factory=list)
    pinned: bool = False


class BuildKit:
    """The services, and the sessions and builds they know."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._folders: ContextFolders | None = None
        self._sessions: dict[str, asyncio.Future[ClientSession]] = {}
        self._jobs: dict[str, _Job] = {}
        self._history: dict[str, _Job] = {}
        self._history_changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        control, bridge = "/moby.buildkit.v1.Control/", "/moby.buildkit.v1.frontend.LLBBridge/"
        self.methods: dict[str, Method] = {
            f"{control}Solve": self.solve,
            f"{control}Status": self.status,
            f"{control}ListWorkers": self.list_workers,
            f"{control}Info": self.info,
            f"{control}DiskUsage": self.disk_usage,
            f"{control}Prune": self.prune,
            f"{control}ListenBuildHistory": self.listen_history,
            f"{control}UpdateBuildHistory": self.update_history,
            f"{bridge}Ping": self.ping,
            f"{bridge}Solve": self.bridge_solve,
            f"{bridge}Return": self.bridge_return,
            f"{bridge}Evaluate": self.bridge_evaluate,
            f"{bridge}Inputs": self.bridge_inputs,
            f"{bridge}Warn": self.bridge_warn,
            f"{bridge}ReadFile": self.bridge_read_file,
            f"{bridge}StatFile": self.bridge_stat_file,
            f"{bridge}ResolveImageConfig": self.bridge_resolve_image,
            "/grpc.health.v1.Health/Check": self.health,
            "/opentelemetry.proto.collector.trace.v1.TraceService/Export": self.export_trace,
        }

    @property
    def builds(self) -> Builds:
        return self.engine.builds

    @property
    def folders(self) -> ContextFolders:
        if self._folders is None:
            self._folders = ContextFolders(self.builds.cache, self.builds.workers)
        return self._folders

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- sessions -----------------------------------------------------------------------------------------------

    def add_session(self, id: str, shared_key: str, methods: list[str], link: Connection) -> None:
        session = ClientSession(id, shared_key, methods, Channel(link), self.folders)
        future = self._sessions.get(id)
        if future is None or future.done():
            future = asyncio.get_running_loop().create_future()
            self._sessions[id] = future
        future.set_result(session)

        async def live() -> None:
            try:
                await link.run()
            finally:
                session.release()
                if self._sessions.get(id) is future:
                    del self._sessions[id]

        self.spawn(live())

    async def session(self, id: str) -> ClientSession:
        """The session called ``id``; it may be about to connect."""
        future = self._sessions.get(id)
        if future is None:
            future = asyncio.get_running_loop().create_future()
            self._sessions[id] = future
        try:
            return await asyncio.wait_for(asyncio.shield(future), _SESSION_WAIT)
        except TimeoutError:
            if not future.done():
                self._sessions.pop(id, None)
            raise Status(NOT_FOUND, f"no active session for {id}: context deadline exceeded") from None

    def job(self, ref: str) -> _Job:
        job = self._jobs.get(ref)
        if job is None:
            job = _Job(ref, Recorder(ref))
            self._jobs[ref] = job
        return job

    # --- Control ------------------------------------------------------------------------------------------------

    async def solve(self, call: Call) -> None:
        request = await call.request(pb.SolveRequest)
        if not request.ref:
            raise Status(INVALID_ARGUMENT, "no build reference")
        job = self.job(request.ref)
        if job.request is not None:
            raise Status(INVALID_ARGUMENT, f"job ID {request.ref} exists")
        job.request = request
        if not request.exporters and request.exporter_deprecated:
            request.exporters.append(pb.Exporter(request.exporter_deprecated, request.exporter_attrs_deprecated))
        if not request.internal:
            self._remember(job)
        job.started.set()
        try:
            if request.session:
                job.session = await self.session(request.session)
            for entry in _exports(request):
                entry.check()
            results = await self._results(job, request)
            job.response.update(await self._export(job, request, results))
            job.response.update(await self._export_caches(job, request, results))
            await call.reply(pb.SolveResponse(job.response))
        except asyncio.CancelledError:
            job.error = pb.RPCStatus(1, "context canceled")
            raise
        except SeacanError as error:
            status = _status(error)
            job.error = pb.RPCStatus(status.code, str(status))
            raise status from error
        finally:
            job.completed = time.time_ns()
            job.recorder.close()
            for results in job.results.values():
                for result in results:
                    result.lease.release()
                    await self.builds.release(result.outcome)
            job.results.clear()
            for named in job.contexts:
                named.close()
            if job.session is not None:
                job.session.release()
            self._history_changed.set()
            asyncio.get_running_loop().call_later(30, self._jobs.pop, request.ref, None)

    async def _results(self, job: _Job, request: pb.SolveRequest) -> list[_Result]:
        if request.definition is not None and not request.frontend:
            if not request.definition.definitions:
                return []  # scratch
            return job.results[await self._defined(job, request.definition)]
        if request.frontend:
            ref, _ = await self._frontend(job, request.frontend, request.frontend_attrs, request.frontend_inputs)
            return job.results.get(ref, [])
        returned = await job.returned
        if returned.error:
            status = pb.RPCStatus.decode(returned.error)
            raise Status(status.code or UNKNOWN, status.message, returned.error)
        if returned.result is None:
            return []
        refs = [returned.result.ref.id] if returned.result.ref is not None else []
        if returned.result.refs is not None:
            refs = [each.id for each in returned.result.refs.refs.values()]
        found: list[_Result] = []
        for ref in dict.fromkeys(each.partition("@")[0] for each in refs if each):
            found += job.results.get(ref, [])
        return found

    async def status(self, call: Call) -> None:
        request = await call.request(pb.StatusRequest)
        job = self.job(request.ref)
        async for response in job.recorder.follow():
            await call.reply(response)

    async def list_workers(self, call: Call) -> None:
        await call.request(pb.Empty)
        await call.reply(pb.ListWorkersResponse([self._worker()]))

    async def info(self, call: Call) -> None:
        await call.request(pb.Empty)
        await call.reply(pb.InfoResponse(_version()))

    async def export_trace(self, call: Call) -> None:
        await call.request(pb.Empty)
        await call.reply(pb.Empty())  # traces are the client's own affair

    async def health(self, call: Call) -> None:
        await call.request(pb.Empty)
        await call.reply(pb.Position(line=1))  # HealthCheckResponse{status: SERVING}

    def _worker(self) -> pb.WorkerRecord:
        return pb.WorkerRecord(
            self.engine.id,
            {
                "org.mobyproject.buildkit.worker.executor": "seacan",
                "org.mobyproject.buildkit.worker.hostname": os.uname().nodename,
                "org.mobyproject.buildkit.worker.network": "bridge",
                "org.mobyproject.buildkit.worker.snapshotter": self.engine.snapshots.driver,
                "org.mobyproject.buildkit.worker.moby.host-gateway-ip": "",
            },
            [_platform(each) for each in emulation.platforms()],
            [],
            _version(),
        )

    async def disk_usage(self, call: Call) -> None:
        request = await call.request(pb.DiskUsageRequest)
        await call.reply(pb.DiskUsageResponse(self._usage(request.filter)))

    def _usage(self, filters: list[str]) -> list[pb.UsageRecord]:
        ids = [each.partition("==")[2] or each.partition("~=")[2] for each in filters if each.startswith("id")]
        return [
            pb.UsageRecord(
                id=record.id,
                mutable=record.kind in ("exec.cachemount", "source.local"),
                in_use=record.in_use,
                size=record.size,
                created_at=pb.Timestamp.at(record.created),
                last_used_at=pb.Timestamp.at(record.used),
                usage_count=record.uses,
                description=record.description,
                record_type=record.kind,
                shared=record.shared,
                parents=[record.parent] if record.parent else [],
            )
            for record in self.builds.cache.records()
            if not ids or any(record.id.startswith(each) for each in ids)
        ]

    async def prune(self, call: Call) -> None:
        request = await call.request(pb.PruneRequest)
        before = {record.id: record for record in self._usage([])}
        kinds = [each.partition("==")[2] for each in request.filter if each.startswith("type==")]
        ids = [each.partition("==")[2] for each in request.filter if each.startswith("id==")]
        gone, _ = self.builds.cache.prune(
            all=request.all,
            unused_for=request.keep_duration,
            keep=request.reserved_space,
            most=request.max_used_space,
            ids=ids,
            kinds=kinds,
        )
        for id in gone:
            if id in before:
                await call.reply(before[id])

    # --- history ------------------------------------------------------------------------------------------------

    def _remember(self, job: _Job) -> None:
        self._history[job.ref] = job
        unpinned = [ref for ref, each in self._history.items() if not each.pinned and each.completed]
        for ref in unpinned[: max(0, len(self._history) - _HISTORY)]:
            del self._history[ref]
        self._history_changed.set()

    def _event(self, job: _Job) -> pb.BuildHistoryEvent:
        request = job.request or pb.SolveRequest()
        recorder = job.recorder
        record = pb.BuildHistoryRecord(
            ref=job.ref,
            frontend=request.frontend or "dockerfile.v0",
            frontend_attrs=request.frontend_attrs,
            exporters=request.exporters,
            error=job.error,
            created_at=pb.Timestamp.at(job.created),
            completed_at=pb.Timestamp.at(job.completed) if job.completed else None,
            exporter_response=job.response,
            generation=1,
            pinned=job.pinned,
            cached_steps=recorder.cached,
            total_steps=recorder.total,
            completed_steps=recorder.completed_count,
            warnings=recorder.warnings,
        )
        return pb.BuildHistoryEvent(1 if job.completed else 0, record)

    async def listen_history(self, call: Call) -> None:
        request = await call.request(pb.BuildHistoryRequest)
        told: dict[str, bool] = {}
        count = 0
        while True:
            self._history_changed.clear()
            for job in list(self._history.values()):
                if request.ref and job.ref != request.ref:
                    continue
                if request.active_only and job.completed and job.ref not in told:
                    continue
                if told.get(job.ref) == bool(job.completed):
                    continue
                told[job.ref] = bool(job.completed)
                await call.reply(self._event(job))
                count += 1
                if request.limit and count >= request.limit:
                    return
            if request.early_exit:
                return
            await self._history_changed.wait()

    async def update_history(self, call: Call) -> None:
        request = await call.request(pb.UpdateBuildHistoryRequest)
        job = self._history.get(request.ref)
        if job is None and not request.finalize:
            raise Status(NOT_FOUND, f"build history record {request.ref} not found")
        if job is not None:
            if request.delete:
                del self._history[request.ref]
            elif not request.finalize:
                job.pinned = request.pinned
        await call.reply(pb.Empty())

    # --- LLBBridge ----------------------------------------------------------------------------------------------

    async def _bridge_job(self, call: Call) -> _Job:
        ref = (call.metadata.get("buildkit-controlapi-buildid") or [""])[0]
        if not ref:
            raise Status(INVALID_ARGUMENT, "no build ID in the call")
        job = self.job(ref)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(job.started.wait(), _SESSION_WAIT)
        if job.request is None:
            raise Status(NOT_FOUND, f"no such job {ref}")
        if job.session is None and job.request.session:
            job.session = await self.session(job.request.session)
        return job

    async def ping(self, call: Call) -> None:
        await call.request(pb.Empty)
        await call.reply(
            pb.PongResponse(
                [pb.APICap(each, True) for each in _FRONTEND_CAPS],
                [pb.APICap(each, True) for each in _LLB_CAPS],
                [self._worker()],
            )
        )

    async def bridge_solve(self, call: Call) -> None:
        request = await call.request(pb.GatewaySolveRequest)
        job = await self._bridge_job(call)
        metadata: dict[str, bytes] = {}
        try:
            if request.definition is not None and not request.frontend:
                ref = await self._defined(job, request.definition) if request.definition.definitions else ""
            else:
                ref, metadata = await self._frontend(
                    job, request.frontend or "dockerfile.v0", request.frontend_opt, request.frontend_inputs
                )
        except SeacanError as error:
            raise _status(error) from error
        result = pb.Result(metadata=metadata)
        results = job.results.get(ref, [])
        if len(results) > 1:
            entries = {
                str(each.platform): pb.Ref(f"{ref}@{number}", _reference(f"{ref}@{number}"))
                for number, each in enumerate(results)
            }
            result.refs = pb.RefMap(entries)
        elif results:
            result.ref = pb.Ref(ref, _reference(ref))
        else:
            result.ref = pb.Ref("")
        await call.reply(pb.GatewaySolveResponse(ref, result))

    async def bridge_return(self, call: Call) -> None:
        request = await call.request(pb.ReturnRequest)
        job = await self._bridge_job(call)
        if not job.returned.done():
            job.returned.set_result(request)
        await call.reply(pb.Empty())

    async def bridge_evaluate(self, call: Call) -> None:
        await call.request(pb.ReadFileRequest)
        await self._bridge_job(call)
        await call.reply(pb.Empty())  # results are made before they are given out

    async def bridge_inputs(self, call: Call) -> None:
        await call.request(pb.Empty)
        job = await self._bridge_job(call)
        assert job.request is not None
        await call.reply(pb.InputsResponse(job.request.frontend_inputs))

    async def bridge_warn(self, call: Call) -> None:
        await call.request(pb.Empty)
        await call.reply(pb.Empty())

    async def bridge_read_file(self, call: Call) -> None:
        request = await call.request(pb.ReadFileRequest)
        content = await self.builds.read_file(await self._referred(call, request.ref), request.path)
        if request.range is not None:
            end = request.range.offset + request.range.length if request.range.length else None
            content = content[request.range.offset : end]
        await call.reply(pb.ReadFileResponse(content))

    async def bridge_stat_file(self, call: Call) -> None:
        request = await call.request(pb.StatFileRequest)
        found = await self.builds.stat_file(await self._referred(call, request.ref), request.path)
        described = pb.Stat(
            os.path.basename(request.path),
            sync.go_mode(found.st_mode),
            found.st_uid,
            found.st_gid,
            found.st_size,
            found.st_mtime_ns,
        )
        await call.reply(pb.StatFileResponse(described))

    async def _referred(self, call: Call, ref: str) -> Outcome:
        """The result that a reference means. :raises Status:"""
        job = await self._bridge_job(call)
        name, _, number = ref.partition("@")
        results = job.results.get(name, [])
        if (not number.isdecimal() and number) or int(number or 0) >= len(results):
            raise Status(NOT_FOUND, f"no such ref {ref[:100]}")
        return results[int(number or 0)].outcome

    async def bridge_resolve_image(self, call: Call) -> None:
        request = await call.request(pb.ResolveImageConfigRequest)
        try:
            image = self.engine.images.get(request.ref)
        except SeacanError as error:
            raise _status(error) from error
        await call.reply(pb.ResolveImageConfigResponse(image.id, self.engine.images.blobs.read(image.id), request.ref))

    # --- the Dockerfile front end -------------------------------------------------------------------------------

    async def _frontend(
        self, job: _Job, name: str, attrs: Mapping[str, str], inputs: Mapping[str, pb.Definition]
    ) -> tuple[str, dict[str, bytes]]:
        """Run a front end; gives a reference to its results, and metadata."""
        if name not in ("dockerfile.v0", "gateway.v0"):
            raise Unsupported(f"frontend {name!r} is not supported")
        if name == "gateway.v0":
            frontend.check_syntax(attrs.get("source", ""))
        if job.session is None:
            raise InvalidParameter("the build has no session")
        settings = frontend.Settings.read(attrs)
        loaded = await self._load(job, settings, inputs)
        frontend.check_syntax(directive(loaded.dockerfile.decode("utf-8", "replace"), "syntax") or "")
        request_id = attrs.get("requestid", "")
        if request_id:
            return "", await self._subrequest(job, request_id, settings, loaded, inputs)
        ref = hashlib.sha256(os.urandom(16)).hexdigest()[:25]
        metadata: dict[str, bytes] = {}
        results: list[_Result] = []
        job.results[ref] = results
        looking_up = asyncio.Lock()
        await self._caches(job, settings)
        wanted = settings.platforms or (None,)
        async with Group() as group:
            tasks = [
                group.create_task(self._build(job, settings, loaded, platform, inputs, attrs, looking_up, results))
                for platform in wanted
            ]
        results[:] = [task.result() for task in tasks]
        if len(results) == 1 and not settings.multi_platform:
            metadata["containerimage.config"] = image_config.encode(results[0].outcome.config)
        else:
            platforms = [each.platform or host_platform().normalised() for each in results]
            for each, platform in zip(results, platforms, strict=True):
                metadata[f"containerimage.config/{platform}"] = image_config.encode(each.outcome.config)
            ids = [{"ID": str(platform), "Platform": platform} for platform in platforms]
            metadata["refs.platforms"] = msgspec.json.encode({"Platforms": ids})
        return ref, metadata

    # --- what clients define themselves -------------------------------------------------------------------------

    async def _graph(self, job: _Job, definition: pb.Definition) -> Vertex:
        assert job.session is not None
        request = Request(b"", Options(), credentials=job.session.credentials)

        async def image(reference: str, platform: pb.Platform | None) -> Vertex:
            wanted = Platform(platform.os, platform.architecture, platform.variant) if platform else host_platform()
            found = await self.builds.find_image(request, reference, wanted)
            source = ImageSource(found.pinned or reference, found.chain_id, found.digest)
            return Vertex(
                source, name=f"docker-image://{found.pinned or reference}", platform=wanted if platform else None
            )

        def given_out(identifier: str) -> Vertex | None:
            known = self._given_out(identifier)
            return known.vertex if known is not None else None

        return await llb.graph(definition, image, given_out)

    async def _defined(self, job: _Job, definition: pb.Definition) -> str:
        """Build what a definition says; gives a reference to the result."""
        if job.session is None:
            raise InvalidParameter("the build has no session")
        return await self._made(job, llb.layered(await self._graph(job, definition)))

    async def _made(self, job: _Job, vertex: Vertex) -> str:
        assert job.session is not None
        converted = Converted(vertex, ImageConfig(), None, [], [], None)
        request = Request(b"", Options())
        outcome, lease = await self.builds.build(request, job.session, job.recorder, converted=converted)
        ref = hashlib.sha256(os.urandom(16)).hexdigest()[:25]
        job.results[ref] = [_Result(None, outcome, lease, frontend.Settings.read({}), {}, b"")]
        return ref

    async def _input_folder(self, job: _Job, definition: pb.Definition) -> SourceFolder:
        """The files of an input, as a context."""
        ref = await self._made(job, llb.copied(await self._graph(job, definition)))
        (layer,) = job.results[ref][0].outcome.layers
        return SourceFolder(layer.path, f"input:{layer.id}")

    # --- the Dockerfile and its context -------------------------------------------------------------------------

    async def _load(self, job: _Job, settings: frontend.Settings, inputs: Mapping[str, pb.Definition]) -> _Loaded:
        """The Dockerfile, the patterns of what is ignored, and the main context."""
        assert job.session is not None
        recorder, session = job.recorder, job.session
        if not settings.context and "context" in inputs:
            remote_context: SourceFolder | None = await self._input_folder(job, inputs["context"])
        else:
            remote_context = await self._remote_context(job, settings)
        load = Vertex(Scratch(), name=f"[internal] load build definition from {settings.filename}", internal=True)
        recorder.started(load)
        ignore = Vertex(Scratch(), name="[internal] load .dockerignore", internal=True)
        reading = asyncio.ensure_future(
            session.read_files(
                settings.context_key,
                (".dockerignore",),
                lambda size, done: recorder.status(ignore, "transferring context:", size, 0, done=done),
            )
            if remote_context is None
            else _nothing()
        )  # at the same time: each costs a round trip or two
        failing = load
        try:
            name = settings.filename
            if remote_context is not None and not settings.local_dockerfile:
                found = {
                    each: content
                    for each in (name, f"{name}.dockerignore", name.lower())
                    if (content := contexts.read_file(remote_context.path, each, _FILE_LIMIT)) is not None
                }
            else:
                found = await session.read_files(
                    settings.dockerfile_key,
                    (name, f"{name}.dockerignore", name.lower()),
                    lambda size, done: recorder.status(load, "transferring dockerfile:", size, 0, done=done),
                )
            dockerfile = found.get(name)
            if dockerfile is None and name == "Dockerfile":
                dockerfile = found.get("dockerfile")
            if dockerfile is None:
                raise InvalidParameter(f"failed to read dockerfile: open {name}: no such file or directory")
            recorder.completed(load)
            failing = ignore
            recorder.started(ignore)
            own_ignore = found.get(f"{name}.dockerignore")
            if own_ignore is not None:
                patterns = read_ignore_file(own_ignore)
            elif remote_context is not None:
                patterns = contexts.ignore_patterns(remote_context.path, name)
            else:
                content = (await reading).get(".dockerignore")
                patterns = read_ignore_file(content) if content is not None else []
            recorder.completed(ignore)
        except SeacanError as error:
            recorder.completed(failing, error=error.message)
            raise
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        return _Loaded(dockerfile, tuple(patterns), remote_context, load)

    async def _remote_context(self, job: _Job, settings: frontend.Settings) -> SourceFolder | None:
        """The main context where it is no folder of the client's."""
        url = settings.context
        if not url:
            return None
        git = parse_git(url, bare_github=True)
        cache = self.builds.cache
        vertex = Vertex(Scratch(), name=f"[internal] load remote build context {url}", internal=True)
        if git is not None:
            job.recorder.started(vertex)
            folder = await remote.fetch_git(
                cache, GitSource(git.remote, git.reference, git.folder, bool(git.keep_git_dir), git.checksum)
            )
            job.recorder.completed(vertex)
            return folder
        if not url.startswith(("http://", "https://")):
            raise InvalidParameter(f"unsupported build context {url}")
        job.recorder.started(vertex)
        assert job.session is not None
        id, path, _ = cache.new_folder(None)
        index = cache.index(id)
        try:
            async with contextlib.AsyncExitStack() as stack:
                if url.startswith("http://buildkit-session/"):
                    body = job.session.upload(url.removeprefix("http://buildkit-session/"))
                else:
                    body = (await stack.enter_async_context(remote.open_http(url))).pieces
                await contexts.receive(self.builds.workers, body, path, index, single=settings.filename)
        except BaseException:
            cache.discard(id)
            raise
        cache.settle(id)
        cache.put(f"context:{id}", id, kind="source.http", description=f"http url {url}")
        job.recorder.completed(vertex)
        return SourceFolder(path, "", index)

    async def _build(
        self,
        job: _Job,
        settings: frontend.Settings,
        loaded: _Loaded,
        platform: Platform | None,
        inputs: Mapping[str, pb.Definition],
        parameters: Mapping[str, str],
        looking_up: asyncio.Lock,
        results: list[_Result],
    ) -> _Result:
        """Build for one platform; what is made is in ``results`` too, to be released if another platform fails."""
        assert job.session is not None
        request = replace(
            self._request(job, settings, loaded, settings.options(platform, loaded.patterns), inputs),
            looking_up=_looking_up(job.recorder),
            caches=await self._caches(job, settings),
            scanner=settings.scanner,
        )
        source = frontend.SourceText(settings.filename, loaded.dockerfile)
        try:
            async with looking_up:
                converted = await self.builds.convert(request)
            self._warn(job, loaded.vertex, source, converted)
            session = _WithContext(job.session, settings.context_key, loaded.context)
            outcome, lease = await self.builds.build(request, session, job.recorder, converted=converted)
        except SeacanError as error:
            raise _located(error, source, job.recorder) from error
        made = _Result(platform, outcome, lease, settings, parameters, loaded.dockerfile)
        results.append(made)
        return made

    def _request(
        self,
        job: _Job,
        settings: frontend.Settings,
        loaded: _Loaded,
        options: Options,
        inputs: Mapping[str, pb.Definition],
    ) -> Request:
        """What the Dockerfile is translated with, its named contexts at hand."""
        assert job.session is not None and job.request is not None
        request = Request(
            loaded.dockerfile,
            options,
            pull=settings.pull,
            filename=settings.filename,
            credentials=job.session.credentials,
            entitlements=job.request.entitlements,
        )
        named = Contexts(
            self.builds, job.session, request, settings.contexts, lambda name: self._input(job, inputs.get(name))
        )
        job.contexts.append(named)
        return replace(request, contexts=named.find)

    async def _caches(self, job: _Job, settings: frontend.Settings) -> list[Cache]:
        """The caches the client names. One that cannot be had is told of, and the build goes on without it."""
        if job.caches is not None:
            return job.caches
        assert job.session is not None and job.request is not None
        options: pb.CacheOptions = job.request.cache or pb.CacheOptions()
        named = [Entry(each.type, each.attrs) for each in options.imports]
        named += [entry for entry in settings.caches if entry not in named]
        found: list[Cache] = []
        for entry in named:
            what = entry.attrs.get("ref") or entry.attrs.get("src", "")
            vertex = Vertex(Scratch(), name=f"importing cache manifest from {what}", internal=True)
            job.recorder.started(vertex)
            try:
                found.append(await self.builds.open_cache(entry, job.session.credentials, job.session))
            except SeacanError as error:
                job.recorder.completed(
                    vertex, error=f"failed to configure {entry.type} cache importer: {error.message}"
                )
                continue
            job.recorder.completed(vertex)
        job.caches = found
        return found

    async def _input(self, job: _Job, definition: pb.Definition | None) -> NamedContext | None:
        """A result of this or another build, by the definition it was given out with; or what a client defines."""
        if definition is None:
            return None
        for encoded in definition.definitions[:1] if len(definition.definitions) == 2 else ():
            source = pb.Op.decode(encoded).source
            known = self._given_out(source.identifier) if source is not None else None
            if known is not None:
                return known
        return NamedContext(await self._graph(job, definition))

    def _given_out(self, identifier: str) -> NamedContext | None:
        if not identifier.startswith(_REFERENCE):
            return None
        ref, _, number = identifier.removeprefix(_REFERENCE).partition("@")
        for job in self._jobs.values():
            results = job.results.get(ref, [])
            if (number.isdecimal() and int(number) < len(results)) or (results and not number):
                outcome = results[int(number or 0)].outcome
                return NamedContext(outcome.converted.vertex, outcome.config)
        return None

    def _warn(self, job: _Job, vertex: Vertex, source: frontend.SourceText, converted: Converted) -> None:
        for finding in converted.findings:
            job.recorder.warn(
                vertex,
                pb.VertexWarning(
                    level=1,
                    short=finding.short.encode(),
                    detail=[finding.rule.description.encode()],
                    url=finding.rule.url,
                    info=source.message(),
                    ranges=_ranges(finding.location),
                ),
            )

    async def _subrequest(
        self,
        job: _Job,
        name: str,
        settings: frontend.Settings,
        loaded: _Loaded,
        inputs: Mapping[str, pb.Definition],
    ) -> dict[str, bytes]:
        source = frontend.SourceText(settings.filename, loaded.dockerfile)
        if name in ("frontend.lint", "subrequest.lint"):
            failure: SeacanError | None = None
            checks = settings.checks or Checks.parse(directive(source.text, "check") or "")
            options = settings.options(None, loaded.patterns)
            options = replace(options, all_stages=not options.target, checks=checks)
            request = self._request(job, settings, loaded, options, inputs)
            try:
                await self.builds.convert(request)
            except SeacanError as error:
                if not str(error).startswith("lint violation found"):
                    failure = error
            return frontend.lint_result(source, checks.findings, failure)
        if name == "frontend.targets":
            return frontend.targets_result(source, targets(loaded.dockerfile))
        if name == "frontend.outline":
            return frontend.outline_result(source, settings.target)
        if name == "frontend.subrequests.describe":
            return frontend.describe_result()
        raise Status(UNIMPLEMENTED, f"unsupported request {name}")

    # --- output -------------------------------------------------------------------------------------------------

    async def _export(self, job: _Job, request: pb.SolveRequest, results: list[_Result]) -> dict[str, str]:
        response: dict[str, str] = {}
        for number, exporter in enumerate(request.exporters):
            if exporter.type in ("", "cacheonly"):
                continue
            if not results:
                continue
            response.update(await self._export_one(job, number, exporter, results))
        return response

    async def _export_caches(self, job: _Job, request: pb.SolveRequest, results: list[_Result]) -> dict[str, str]:
        response: dict[str, str] = {}
        recorder = job.recorder
        for entry in _exports(request):
            if entry.type == "inline" or not results:
                continue
            where = {"registry": "registry", "local": "client directory"}[entry.type]
            vertex = Vertex(Scratch(), name=f"exporting cache to {where}", internal=True)
            recorder.started(vertex)
            assert job.session is not None
            try:
                written = await self.builds.export_cache(
                    together([each.outcome for each in results]),
                    entry,
                    job.session.credentials,
                    job.session,
                    lambda text, vertex=vertex: recorder.status(vertex, text, 0, 0, done=True),  # type: ignore[misc]
                )
            except SeacanError as error:
                recorder.completed(vertex, error=error.message)
                if not entry.flag("ignore-error", False):
                    raise
                continue
            recorder.completed(vertex)
            if entry.type == "local" or "cache.manifest" not in response:
                # The client, which has no other word of it, gives it a name in its own folder.
                response["cache.manifest"] = msgspec.json.encode(written).decode()
        return response

    async def _export_one(
        self, job: _Job, number: int, exporter: pb.Exporter, results: list[_Result]
    ) -> dict[str, str]:
        kind, attrs = exporter.type, exporter.attrs
        title = {"moby": "image", "image": "image", "docker": "docker image format", "oci": "oci image format",
                 "local": "client directory", "tar": "client tarball"}.get(kind)  # fmt: skip
        if title is None:
            raise Unsupported(f"exporter {kind!r} could not be found")
        vertex = Vertex(Scratch(), name=f"exporting to {title}", internal=True)
        recorder = job.recorder
        recorder.started(vertex)
        try:
            if kind in ("local", "tar"):
                answer = await self._export_files(job, number, kind, results)
            else:
                answer = await self._export_image(job, number, kind, attrs, results, vertex)
        except SeacanError as error:
            recorder.completed(vertex, error=error.message)
            raise
        recorder.completed(vertex)
        return answer

    async def _export_image(
        self, job: _Job, number: int, kind: str, attrs: Mapping[str, str], results: list[_Result], vertex: Vertex
    ) -> dict[str, str]:
        form = Form.read(attrs)
        push = boolean(attrs, "push", False)
        by_digest = boolean(attrs, "push-by-digest", False)
        inline = job.request is not None and any(entry.type == "inline" for entry in _exports(job.request))
        several = len(results) > 1 or results[0].settings.multi_platform
        products = [self._product(job, each, kept=push or (several and kind == "oci")) for each in results]
        index = several or any(each.attested for each in products)
        if kind == "docker" and index:
            if several:
                raise InvalidParameter("docker exporter does not currently support exporting manifest lists")
            index, products = False, [replace(products[0], facts=None)]
        index = index or form.of_index
        check(products, form, index=index)
        answer: dict[str, str] = {}
        image: Image | None = None
        stored: list[Image] = []
        if kind in ("moby", "image"):
            stored, image = await self._store(job, results, form, vertex, inline)
            answer |= {"containerimage.config.digest": image.id, "containerimage.digest": image.id}
            if not (index or push or form.annotations or form.compressed):
                return answer | ({"image.name": ",".join(form.names)} if form.names else {})
        content = await self._step(
            job,
            vertex,
            "exporting manifests" if image is not None else "exporting layers",
            assemble(self.engine, products, form, index=index, inline=inline),
        )
        try:
            self._tell_content(job, vertex, content)
            if image is not None:
                await self.builds.keep(content, stored, form.names, image)
            if push:
                await self._push(job, vertex, content, form, by_digest=by_digest)
            if kind in ("docker", "oci"):
                await self._send(job, number, kind, attrs, content, vertex)
            answer["containerimage.digest"] = content.root.digest
            if len(content.parts) == 1:
                answer["containerimage.config.digest"] = content.parts[0].config
            described = msgspec.structs.replace(
                content.root,
                annotations=(content.root.annotations or {}) | {"org.opencontainers.image.created": content.created},
            )
            answer["containerimage.descriptor"] = base64.b64encode(msgspec.json.encode(described)).decode()
        finally:
            content.close()
        return answer | ({"image.name": ",".join(form.names)} if form.names else {})

    def _product(self, job: _Job, result: _Result, *, kept: bool) -> Product:
        """A result and what is stated of it; ``kept``: the output has a place for what nobody has asked for."""
        wanted = result.settings.provenance
        platform = result.platform or host_platform().normalised()
        if wanted is None or (wanted.inline_only and not kept):
            return Product(result.outcome, platform)
        request = job.request or pb.SolveRequest()
        facts = Facts(
            wanted,
            result.outcome.converted.vertex,
            request.frontend or "dockerfile.v0",
            result.parameters,
            result.settings.filename,
            result.dockerfile,
            DOCKERFILE_VERSION,
            job.ref,
            job.created,
            time.time_ns(),
            sources(result.outcome),
        )
        return Product(result.outcome, platform, facts)

    async def _step(self, job: _Job, vertex: Vertex, words: str, work: Awaitable[T]) -> T:
        """Do something that is told of while it goes on."""
        job.recorder.status(vertex, words, 0, 0)
        done = await work
        job.recorder.status(vertex, words, 0, 0, done=True)
        return done

    async def _store(
        self, job: _Job, results: list[_Result], form: Form, vertex: Vertex, inline: bool
    ) -> tuple[list[Image], Image]:
        """The results as images; the one for this machine, or else the first, gets the names."""
        here = host_platform()
        fitting = [at for at, each in enumerate(results) if each.platform is None or each.platform.satisfies(here)]
        chosen = fitting[0] if fitting else 0
        stored = [
            await self._step(
                job,
                vertex,
                "exporting layers",
                self.builds.store(each.outcome, each.lease, form.names if at == chosen else (), inline=inline),
            )
            for at, each in enumerate(results)
        ]
        for image in stored:
            job.recorder.status(vertex, f"writing image {image.id}", 0, 0, done=True)
        for name in form.names:
            job.recorder.status(vertex, f"naming to {references.parse(name)}", 0, 0, done=True)
        return stored, stored[chosen]

    def _tell_content(self, job: _Job, vertex: Vertex, content: Content) -> None:
        for digest, what in content.told():
            job.recorder.status(vertex, f"exporting {what} {digest}", 0, 0, done=True)

    async def _push(self, job: _Job, vertex: Vertex, content: Content, form: Form, *, by_digest: bool) -> None:
        assert job.session is not None
        if not form.names:
            raise InvalidParameter("tag is needed when pushing to registry")

        for name in form.names:
            pushing = self.builds.push(content, name, job.session.credentials, tagged=not by_digest)
            try:
                await self._step(job, vertex, "pushing layers", pushing)
            except SeacanError as error:
                failure = SeacanError(f"failed to push {parse_name(name)}: {error.message}")
                failure.status = error.status
                raise failure from error
            words = f"pushing manifest for {parse_name(name)}@{content.root.digest}"
            job.recorder.status(vertex, words, 0, 0, done=True)

    async def _send(
        self, job: _Job, number: int, kind: str, attrs: Mapping[str, str], content: Content, vertex: Vertex
    ) -> None:
        assert job.session is not None
        if boolean(attrs, "tar", True):
            pieces = content.archive(docker=kind == "docker")
            await self._step(job, vertex, "sending tarball", job.session.send_file(pieces, exporter=number))
            return
        store = job.session.content("export")
        document, media_type = await content.manifest(content.root.digest)
        copy = Copy(content, store, lambda _text: None)
        await self._step(job, vertex, "sending files", copy.tree(document, media_type, content.root.digest, 0))

    async def _export_files(self, job: _Job, number: int, kind: str, results: list[_Result]) -> dict[str, str]:
        assert job.session is not None
        if len(results) > 1:
            raise Unsupported("exporting several platforms as files is not supported")
        outcome = results[0].outcome
        if kind == "tar":
            await job.session.send_file(self.builds.files_archive(outcome), exporter=number)
        else:
            talk = await job.session.send_folder()
            async with talk:
                await self.builds.send_files(outcome, talk)
        return {}


@dataclass(frozen=True)
class _Loaded:
    dockerfile: bytes
    patterns: tuple[str, ...]
    context: SourceFolder | None
    vertex: Vertex


class _WithContext:
    """A session whose main context has arrived by another way, or has another name at the client."""

    def __init__(self, session: ClientSession, name: str, folder: SourceFolder | None) -> None:
        self._session = session
        self._name = name
        self._folder = folder

    async def local(self, source: LocalSource, report: Callable[[int, bool], None]) -> SourceFolder:
        if source.name == "context":
            if self._folder is not None:
                return self._folder
            source = LocalSource(self._name, source.exclude, source.paths)
        return await self._session.local(source, report)

    async def secret(self, id: str) -> bytes | None:
        return await self._session.secret(id)

    async def ssh(self, id: str, path: str) -> contextlib.AbstractAsyncContextManager[None] | None:
        return await self._session.ssh(id, path)


class Recorder:
    """A build's progress as BuildKit's status messages, for any number of listeners, from the beginning."""

    def __init__(self, ref: str) -> None:
        self._ref = ref
        self._events: list[pb.Vertex | pb.VertexStatus | pb.VertexLog | pb.VertexWarning] = []
        self._changed = asyncio.Event()
        self._over = asyncio.Event()
        self._closed = False
        self._digests: dict[int, tuple[Vertex, str]] = {}
        self._begun: dict[str, pb.Timestamp] = {}
        self._status_begun: dict[tuple[str, str], pb.Timestamp] = {}
        self._last: dict[tuple[str, str], float] = {}
        self.total = self.cached = self.completed_count = self.warnings = 0

    def digest(self, vertex: Vertex) -> str:
        known = self._digests.get(id(vertex))
        if known is None:
            text = f"{self._ref} {len(self._digests)} {vertex.name}"
            known = (vertex, "sha256:" + hashlib.sha256(text.encode("utf-8", "replace")).hexdigest())
            self._digests[id(vertex)] = known
        return known[1]

    def started(self, vertex: Vertex) -> None:
        digest = self.digest(vertex)
        if digest in self._begun:
            return
        self.total += 1
        self._begun[digest] = pb.Timestamp.now()
        self._put(pb.Vertex(digest, self._inputs(vertex), vertex.name, started=self._begun[digest]))

    def completed(self, vertex: Vertex, *, cached: bool = False, error: str = "") -> None:
        digest = self.digest(vertex)
        self.completed_count += 1
        self.cached += cached
        self._put(
            pb.Vertex(
                digest,
                self._inputs(vertex),
                vertex.name,
                cached,
                self._begun.get(digest),
                pb.Timestamp.now(),
                error,
            )
        )

    def _inputs(self, vertex: Vertex) -> list[str]:
        return [self.digest(each) for each in vertex.inputs if each.name]

    def log(self, vertex: Vertex, stream: int, data: bytes) -> None:
        self._put(pb.VertexLog(self.digest(vertex), pb.Timestamp.now(), stream, data))

    def status(self, vertex: Vertex, id: str, current: int, total: int, *, done: bool = False) -> None:
        digest = self.digest(vertex)
        key = (digest, id)
        moment = time.monotonic()
        if not done and moment - self._last.get(key, 0) < 0.1:
            return
        self._last[key] = moment
        begun = self._status_begun.setdefault(key, pb.Timestamp.now())
        now = pb.Timestamp.now()
        self._put(pb.VertexStatus(id, digest, id, current, total, now, begun, now if done else None))

    def warn(self, vertex: Vertex, warning: pb.VertexWarning) -> None:
        warning.vertex = self.digest(vertex)
        self.warnings += 1
        self._put(warning)

    def close(self) -> None:
        self._closed = True
        self._over.set()
        self._changed.set()

    def _put(self, event: pb.Vertex | pb.VertexStatus | pb.VertexLog | pb.VertexWarning) -> None:
        self._events.append(event)
        self._changed.set()

    async def follow(self) -> AsyncIterator[pb.StatusResponse]:
        at = 0
        while True:
            if at < len(self._events):
                response = pb.StatusResponse()
                for event in self._events[at : at + 500]:
                    at += 1
                    if isinstance(event, pb.Vertex):
                        response.vertexes.append(event)
                    elif isinstance(event, pb.VertexStatus):
                        response.statuses.append(event)
                    elif isinstance(event, pb.VertexLog):
                        response.logs.append(event)
                    else:
                        response.warnings.append(event)
                yield response
                continue
            if self._closed:
                return
            self._changed.clear()
            if at < len(self._events) or self._closed:
                continue
            await self._changed.wait()
            if not self._closed:
                # A step that is in the cache takes less than a message does: tell of many at once.
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._over.wait(), _STATUS_DELAY)


async def _nothing() -> dict[str, bytes]:
    return {}


_REFERENCE = "seacan-ref://"


def _reference(ref: str) -> pb.Definition:
    """A definition that stands for one of our results, for clients that hand it on to another build."""
    op = pb.Op(source=pb.SourceOp(_REFERENCE + ref)).encode()
    digest = "sha256:" + hashlib.sha256(op).hexdigest()
    last = pb.Op(inputs=[pb.Input(digest)]).encode()
    return pb.Definition([op, last], {digest: pb.OpMetadata()})


def _exports(request: pb.SolveRequest) -> list[Entry]:
    options: pb.CacheOptions = request.cache or pb.CacheOptions()
    return [Entry(each.type, each.attrs) for each in options.exports]


def _looking_up(recorder: Recorder) -> Callable[[str], contextlib.AbstractContextManager[None]]:
    @contextlib.contextmanager
    def looking_up(reference: str) -> Iterator[None]:
        vertex = Vertex(Scratch(), name=f"[internal] load metadata for {reference}", internal=True)
        recorder.started(vertex)
        try:
            yield
        except SeacanError as error:
            recorder.completed(vertex, error=error.message)
            raise
        recorder.completed(vertex)

    return looking_up


def _located(error: SeacanError, source: frontend.SourceText, recorder: Recorder) -> Status:
    """The error with its place in the Dockerfile, as clients show it."""
    location: Range | Source | None = getattr(error, "location", None)
    details: list[pb.Anything] = []
    if isinstance(error, BuildFailed):
        location = error.vertex.source
        details.append(_any("errdefs.Vertex", {"digest": recorder.digest(error.vertex)}))
    if location is not None:
        column = getattr(location, "column", 0)
        ranges = [
            {
                "start": {"line": line, **({"character": column - 1} if column > 1 and line == location.start else {})},
                "end": {"line": line},
            }
            for line in range(location.start, min(location.end, location.start + 200) + 1)
        ]
        info = {
            "filename": source.filename,
            "data": base64.b64encode(source.data).decode(),
            "language": "Dockerfile",
        }
        details.append(_any("errdefs.Source", {"info": info, "ranges": ranges}))
    code = NOT_FOUND if isinstance(error, NotFound) else UNKNOWN
    message = str(error)
    return Status(code, message, pb.RPCStatus(code, message, details).encode())


def _any(name: str, value: object) -> pb.Anything:
    return pb.Anything(f"github.com/moby/buildkit/{name}+json", msgspec.json.encode(value))


def _status(error: SeacanError) -> Status:
    if isinstance(error, Status):
        return error
    code = {404: NOT_FOUND, 501: UNIMPLEMENTED}.get(error.status, UNKNOWN)
    return Status(code, str(error), pb.RPCStatus(code, str(error)).encode())


def _ranges(location: Range) -> list[pb.Range]:
    return [
        pb.Range(pb.Position(line), pb.Position(line))
        for line in range(location.start, min(location.end, location.start + 200) + 1)
    ]


def _version() -> pb.BuildkitVersion:
    return pb.BuildkitVersion("github.com/moby/buildkit", VERSION, "", DOCKERFILE_VERSION)


def _platform(platform: Platform) -> pb.Platform:
    return pb.Platform(platform.architecture, platform.os, platform.variant)
