"""The messages of BuildKit's services, with their field numbers. Names are BuildKit's, in Python's spelling.

From the interface definitions of moby/buildkit: api/services/control, frontend/gateway, session, solver/pb.
"""

# ruff: noqa: RUF009 - the defaults are descriptions of fields

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from seacan.build.buildkit.wire import Message, many, mapping, nested, scalar

# --- common -----------------------------------------------------------------------------------------------------


@dataclass
class Empty(Message):
    pass


@dataclass
class Timestamp(Message):
    seconds: int = scalar(1, "int")
    nanos: int = scalar(2, "int")

    @classmethod
    def at(cls, nanoseconds: int) -> Timestamp:
        return cls(*divmod(nanoseconds, 10**9))

    @classmethod
    def now(cls) -> Timestamp:
        return cls.at(time.time_ns())


@dataclass
class Anything(Message):
    type_url: str = scalar(1, "string")
    value: bytes = scalar(2, "bytes")


@dataclass
class RPCStatus(Message):
    code: int = scalar(1, "int")
    message: str = scalar(2, "string")
    details: list[Anything] = many(3, "message", lambda: Anything)


@dataclass
class BytesMessage(Message):
    data: bytes = scalar(1, "bytes")


# --- solver/pb --------------------------------------------------------------------------------------------------


@dataclass
class Platform(Message):
    architecture: str = scalar(1, "string")
    os: str = scalar(2, "string")
    variant: str = scalar(3, "string")
    os_version: str = scalar(4, "string")


@dataclass
class Position(Message):
    line: int = scalar(1, "int")
    character: int = scalar(2, "int")


@dataclass
class Range(Message):
    start: Any = nested(1, lambda: Position)
    end: Any = nested(2, lambda: Position)


@dataclass
class Location(Message):
    source_index: int = scalar(1, "int")
    ranges: list[Range] = many(2, "message", lambda: Range)


@dataclass
class SourceInfo(Message):
    filename: str = scalar(1, "string")
    data: bytes = scalar(2, "bytes")
    language: str = scalar(4, "string")


@dataclass
class SourceOp(Message):
    identifier: str = scalar(1, "string")
    attrs: dict[str, str] = mapping(2, "string")


@dataclass
class Input(Message):
    digest: str = scalar(1, "string")
    index: int = scalar(2, "int")


@dataclass
class Op(Message):
    inputs: list[Input] = many(1, "message", lambda: Input)
    exec: bytes = scalar(2, "bytes")
    source: Any = nested(3, lambda: SourceOp)
    file: bytes = scalar(4, "bytes")
    build: bytes = scalar(5, "bytes")
    merge: bytes = scalar(6, "bytes")
    diff: bytes = scalar(7, "bytes")
    platform: Any = nested(10, lambda: Platform)

    @property
    def operation(self) -> str:
        """Which of them it is; ``nothing`` for the last of a definition, which only names the result."""
        if self.source is not None:
            return "source"
        return next((name for name in ("exec", "file", "build", "merge", "diff") if getattr(self, name)), "nothing")


@dataclass
class OpMetadata(Message):
    ignore_cache: bool = scalar(1, "bool")
    description: dict[str, str] = mapping(2, "string")
    caps: dict[str, bool] = mapping(5, "bool")


@dataclass
class Definition(Message):
    definitions: list[bytes] = many(1, "bytes")
    metadata: dict[str, OpMetadata] = mapping(2, "message", lambda: OpMetadata)


# --- control ----------------------------------------------------------------------------------------------------


@dataclass
class Exporter(Message):
    type: str = scalar(1, "string")
    attrs: dict[str, str] = mapping(2, "string")


@dataclass
class CacheOptionsEntry(Message):
    type: str = scalar(1, "string")
    attrs: dict[str, str] = mapping(2, "string")


@dataclass
class CacheOptions(Message):
    exports: list[CacheOptionsEntry] = many(4, "message", lambda: CacheOptionsEntry)
    imports: list[CacheOptionsEntry] = many(5, "message", lambda: CacheOptionsEntry)


@dataclass
class SolveRequest(Message):
    ref: str = scalar(1, "string")
    definition: Any = nested(2, lambda: Definition)
    exporter_deprecated: str = scalar(3, "string")
    exporter_attrs_deprecated: dict[str, str] = mapping(4, "string")
    session: str = scalar(5, "string")
    frontend: str = scalar(6, "string")
    frontend_attrs: dict[str, str] = mapping(7, "string")
    cache: Any = nested(8, lambda: CacheOptions)
    entitlements: list[str] = many(9, "string")
    frontend_inputs: dict[str, Definition] = mapping(10, "message", lambda: Definition)
    internal: bool = scalar(11, "bool")
    exporters: list[Exporter] = many(13, "message", lambda: Exporter)
    enable_session_exporter: bool = scalar(14, "bool")


@dataclass
class SolveResponse(Message):
    exporter_response: dict[str, str] = mapping(1, "string")


@dataclass
class StatusRequest(Message):
    ref: str = scalar(1, "string")


@dataclass
class Vertex(Message):
    digest: str = scalar(1, "string")
    inputs: list[str] = many(2, "string")
    name: str = scalar(3, "string")
    cached: bool = scalar(4, "bool")
    started: Any = nested(5, lambda: Timestamp)
    completed: Any = nested(6, lambda: Timestamp)
    error: str = scalar(7, "string")


@dataclass
class VertexStatus(Message):
    id: str = scalar(1, "string")
    vertex: str = scalar(2, "string")
    name: str = scalar(3, "string")
    current: int = scalar(4, "int")
    total: int = scalar(5, "int")
    timestamp: Any = nested(6, lambda: Timestamp)
    started: Any = nested(7, lambda: Timestamp)
    completed: Any = nested(8, lambda: Timestamp)


@dataclass
class VertexLog(Message):
    vertex: str = scalar(1, "string")
    timestamp: Any = nested(2, lambda: Timestamp)
    stream: int = scalar(3, "int")
    message: bytes = scalar(4, "bytes")


@dataclass
class VertexWarning(Message):
    vertex: str = scalar(1, "string")
    level: int = scalar(2, "int")
    short: bytes = scalar(3, "bytes")
    detail: list[bytes] = many(4, "bytes")
    url: str = scalar(5, "string")
    info: Any = nested(6, lambda: SourceInfo)
    ranges: list[Range] = many(7, "message", lambda: Range)


@dataclass
class StatusResponse(Message):
    vertexes: list[Vertex] = many(1, "message", lambda: Vertex)
    statuses: list[VertexStatus] = many(2, "message", lambda: VertexStatus)
    logs: list[VertexLog] = many(3, "message", lambda: VertexLog)
    warnings: list[VertexWarning] = many(4, "message", lambda: VertexWarning)


@dataclass
class UsageRecord(Message):
    id: str = scalar(1, "string")
    mutable: bool = scalar(2, "bool")
    in_use: bool = scalar(3, "bool")
    size: int = scalar(4, "int")
    created_at: Any = nested(6, lambda: Timestamp)
    last_used_at: Any = nested(7, lambda: Timestamp)
    usage_count: int = scalar(8, "int")
    description: str = scalar(9, "string")
    record_type: str = scalar(10, "string")
    shared: bool = scalar(11, "bool")
    parents: list[str] = many(12, "string")


@dataclass
class DiskUsageRequest(Message):
    filter: list[str] = many(1, "string")


@dataclass
class DiskUsageResponse(Message):
    record: list[UsageRecord] = many(1, "message", lambda: UsageRecord)


@dataclass
class PruneRequest(Message):
    filter: list[str] = many(1, "string")
    all: bool = scalar(2, "bool")
    keep_duration: int = scalar(3, "int")
    reserved_space: int = scalar(4, "int")
    max_used_space: int = scalar(5, "int")
    min_free_space: int = scalar(6, "int")


@dataclass
class BuildkitVersion(Message):
    package: str = scalar(1, "string")
    version: str = scalar(2, "string")
    revision: str = scalar(3, "string")
    dockerfile_version: str = scalar(4, "string")


@dataclass
class GCPolicy(Message):
    all: bool = scalar(1, "bool")
    keep_duration: int = scalar(2, "int")
    reserved_space: int = scalar(3, "int")
    filters: list[str] = many(4, "string")
    max_used_space: int = scalar(5, "int")


@dataclass
class WorkerRecord(Message):
    id: str = scalar(1, "string")
    labels: dict[str, str] = mapping(2, "string")
    platforms: list[Platform] = many(3, "message", lambda: Platform)
    gc_policy: list[GCPolicy] = many(4, "message", lambda: GCPolicy)
    buildkit_version: Any = nested(5, lambda: BuildkitVersion)


@dataclass
class ListWorkersResponse(Message):
    record: list[WorkerRecord] = many(1, "message", lambda: WorkerRecord)


@dataclass
class InfoResponse(Message):
    buildkit_version: Any = nested(1, lambda: BuildkitVersion)


@dataclass
class BuildHistoryRequest(Message):
    active_only: bool = scalar(1, "bool")
    ref: str = scalar(2, "string")
    early_exit: bool = scalar(3, "bool")
    filter: list[str] = many(4, "string")
    limit: int = scalar(5, "int")


@dataclass
class BuildHistoryRecord(Message):
    ref: str = scalar(1, "string")
    frontend: str = scalar(2, "string")
    frontend_attrs: dict[str, str] = mapping(3, "string")
    exporters: list[Exporter] = many(4, "message", lambda: Exporter)
    error: Any = nested(5, lambda: RPCStatus)
    created_at: Any = nested(6, lambda: Timestamp)
    completed_at: Any = nested(7, lambda: Timestamp)
    exporter_response: dict[str, str] = mapping(9, "string")
    generation: int = scalar(12, "int")
    pinned: bool = scalar(14, "bool")
    cached_steps: int = scalar(15, "int")
    total_steps: int = scalar(16, "int")
    completed_steps: int = scalar(17, "int")
    warnings: int = scalar(19, "int")


@dataclass
class BuildHistoryEvent(Message):
    type: int = scalar(1, "int")
    record: Any = nested(2, lambda: BuildHistoryRecord)


@dataclass
class UpdateBuildHistoryRequest(Message):
    ref: str = scalar(1, "string")
    pinned: bool = scalar(2, "bool")
    delete: bool = scalar(3, "bool")
    finalize: bool = scalar(4, "bool")


# --- gateway ----------------------------------------------------------------------------------------------------


@dataclass
class APICap(Message):
    id: str = scalar(1, "string")
    enabled: bool = scalar(2, "bool")


@dataclass
class PongResponse(Message):
    frontend_caps: list[APICap] = many(1, "message", lambda: APICap)
    llb_caps: list[APICap] = many(2, "message", lambda: APICap)
    workers: list[WorkerRecord] = many(3, "message", lambda: WorkerRecord)


@dataclass
class Ref(Message):
    id: str = scalar(1, "string")
    definition: Any = nested(2, lambda: Definition)


@dataclass
class RefMap(Message):
    refs: dict[str, Ref] = mapping(1, "message", lambda: Ref)


@dataclass
class Result(Message):
    ref_deprecated: str = scalar(1, "string")
    ref: Any = nested(3, lambda: Ref)
    refs: Any = nested(4, lambda: RefMap)
    metadata: dict[str, bytes] = mapping(10, "bytes")


@dataclass
class GatewaySolveRequest(Message):
    definition: Any = nested(1, lambda: Definition)
    frontend: str = scalar(2, "string")
    frontend_opt: dict[str, str] = mapping(3, "string")
    final: bool = scalar(10, "bool")
    cache_imports: list[CacheOptionsEntry] = many(12, "message", lambda: CacheOptionsEntry)
    frontend_inputs: dict[str, Definition] = mapping(13, "message", lambda: Definition)
    evaluate: bool = scalar(14, "bool")


@dataclass
class GatewaySolveResponse(Message):
    ref: str = scalar(1, "string")
    result: Any = nested(3, lambda: Result)


@dataclass
class ReturnRequest(Message):
    result: Any = nested(1, lambda: Result)
    error: bytes = scalar(2, "bytes")


@dataclass
class FileRange(Message):
    offset: int = scalar(1, "int")
    length: int = scalar(2, "int")


@dataclass
class ReadFileRequest(Message):
    ref: str = scalar(1, "string")
    path: str = scalar(2, "string")
    range: Any = nested(3, lambda: FileRange)


@dataclass
class ReadFileResponse(Message):
    data: bytes = scalar(1, "bytes")


@dataclass
class StatFileRequest(Message):
    ref: str = scalar(1, "string")
    path: str = scalar(2, "string")


@dataclass
class StatFileResponse(Message):
    stat: Any = nested(1, lambda: Stat)


@dataclass
class InputsResponse(Message):
    definitions: dict[str, Definition] = mapping(1, "message", lambda: Definition)


@dataclass
class ResolveImageConfigRequest(Message):
    ref: str = scalar(1, "string")
    platform: Any = nested(2, lambda: Platform)


@dataclass
class ResolveImageConfigResponse(Message):
    digest: str = scalar(1, "string")
    config: bytes = scalar(2, "bytes")
    ref: str = scalar(3, "string")


# --- session ----------------------------------------------------------------------------------------------------


@dataclass
class Stat(Message):
    """Of fsutil: ``mode`` is Go's os.FileMode, times are nanoseconds."""

    path: str = scalar(1, "string")
    mode: int = scalar(2, "int")
    uid: int = scalar(3, "int")
    gid: int = scalar(4, "int")
    size: int = scalar(5, "int")
    mtime: int = scalar(6, "int")
    linkname: str = scalar(7, "string")
    devmajor: int = scalar(8, "int")
    devminor: int = scalar(9, "int")
    xattrs: dict[str, bytes] = mapping(10, "bytes")


STAT, REQ, DATA, FIN, ERR = range(5)


@dataclass
class Packet(Message):
    """Of fsutil."""

    type: int = scalar(1, "int")
    stat: Any = nested(2, lambda: Stat)
    id: int = scalar(3, "int")
    data: bytes = scalar(4, "bytes")


@dataclass
class GetSecretRequest(Message):
    id: str = scalar(1, "string")


@dataclass
class GetSecretResponse(Message):
    data: bytes = scalar(1, "bytes")


@dataclass
class CheckAgentRequest(Message):
    id: str = scalar(1, "string")


@dataclass
class CredentialsRequest(Message):
    host: str = scalar(1, "string")


@dataclass
class CredentialsResponse(Message):
    username: str = scalar(1, "string")
    secret: str = scalar(2, "string")
