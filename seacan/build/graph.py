"""The build graph: operations and what they stand on, as plain data.

A front end makes it, the solver carries it out. Nothing here knows a Dockerfile or a container.
A vertex's result is a stack of layers; ``Exec`` and ``Files`` add one layer to the stack of their base.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from seacan.errors import InvalidParameter
from seacan.images.manifest import Platform


@dataclass(frozen=True)
class Scratch:
    """Nothing at all."""


@dataclass(frozen=True)
class ImageSource:
    """The layers of an image that the resolver has found: ``chain_id`` names them, "" for none.

    ``digest`` is what identifies the image: its manifest or index as its registry has it, or else its ID.
    """

    reference: str
    chain_id: str
    digest: str = ""


@dataclass(frozen=True)
class LocalSource:
    """A folder the client sends. ``name`` tells several apart ("context"); ``exclude`` are .dockerignore's patterns."""

    name: str
    exclude: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    """What of it is needed, "/" for all."""


@dataclass(frozen=True)
class HttpSource:
    """A file fetched from ``url`` and called ``filename``; ``checksum`` (algorithm:hex) is what it must have."""

    url: str
    filename: str
    checksum: str = ""


@dataclass(frozen=True)
class GitSource:
    """A git repository at ``reference`` (a branch, tag or commit; empty: its default branch)."""

    remote: str
    reference: str = ""
    folder: str = ""
    keep_git_dir: bool = False
    checksum: str = ""
    submodules: bool = True


@dataclass(frozen=True)
class InlineSource:
    """Files given in the graph itself (here-documents): name, content, mode."""

    files: tuple[tuple[str, bytes, int], ...]


@dataclass(frozen=True)
class FileMount:
    """A mount of ``Exec``. ``kind`` is bind, cache, tmpfs, secret or ssh.

    ``source`` indexes the vertex's inputs (-1: none); ``selector`` is a path in it. ``size`` is bytes, 0: no limit.
    """

    kind: str
    target: str
    source: int = -1
    selector: str = "/"
    read_only: bool = False
    size: int = 0
    id: str = ""
    sharing: str = "shared"
    required: bool = False
    uid: int = 0
    gid: int = 0
    mode: int = 0
    env: str = ""
    file: bool = True
    """Of a secret: shown as a file (it may be a variable alone)."""


@dataclass(frozen=True)
class Limits:
    """Resources of a build's containers; zero or empty is no limit. Bytes and microseconds."""

    memory: int = 0
    memory_swap: int = 0
    cpu_shares: int = 0
    cpu_period: int = 0
    cpu_quota: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""


@dataclass(frozen=True)
class Exec:
    """Run a program on the base (input 0) and keep what it changes."""

    arguments: tuple[str, ...]
    environment: tuple[str, ...]
    directory: str
    user: str
    mounts: tuple[FileMount, ...] = ()
    network: str = "default"
    insecure: bool = False
    hosts: tuple[tuple[str, str], ...] = ()
    hostname: str = ""
    shm_size: int = 0
    ulimits: tuple[tuple[str, int, int], ...] = ()
    # what follows is no part of the cache key
    proxy: tuple[str, ...] = ()
    limits: Limits = Limits()
    cgroup_parent: str = ""


@dataclass(frozen=True)
class CopyFiles:
    """Copy ``path`` of input ``source`` to ``destination`` of the base."""

    source: int
    path: str
    destination: str
    owner: str = ""
    """``user[:group]``, names looked up in the base; empty keeps the owner."""
    mode: str = ""
    """Octal digits, or the symbolic form of chmod; empty keeps the mode."""
    follow: bool = True
    contents: bool = True
    """Copy what is in a folder, not the folder."""
    unpack: bool = False
    wildcards: bool = True
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    required: tuple[str, ...] = ()


@dataclass(frozen=True)
class MakeDirectory:
    """Make ``path`` and what is missing above it."""

    path: str
    mode: int = 0o755
    owner: str = ""


@dataclass(frozen=True)
class Files:
    """Work on files: the actions in order, on top of the base (input 0)."""

    actions: tuple[CopyFiles | MakeDirectory, ...]
    detached: bool = False
    """The result will be merged onto something else (``COPY --link``)."""


@dataclass(frozen=True)
class Merge:
    """The layers of input 1 on top of those of input 0."""


Operation = Scratch | ImageSource | LocalSource | HttpSource | GitSource | InlineSource | Exec | Files | Merge


@dataclass(frozen=True)
class Source:
    """Where in the Dockerfile a vertex comes from; lines from 1."""

    start: int
    end: int


@dataclass(eq=False)
class Vertex:
    """An operation, what it stands on, and how to speak of it. Compared by identity."""

    operation: Operation
    inputs: tuple[Vertex, ...] = ()
    name: str = ""
    source: Source | None = None
    ignore_cache: bool = False
    platform: Platform | None = None
    epoch: int | None = None
    """Seconds since 1970 beyond which no file's time may lie (SOURCE_DATE_EPOCH)."""
    internal: bool = False
    command: str = ""
    """The instruction as it stands in the Dockerfile."""
    number: int = field(default=0, compare=False)


def walk(targets: Iterable[Vertex]) -> Iterator[Vertex]:
    """Every vertex that ``targets`` need, inputs first, each once."""
    seen: set[int] = set()
    stack: list[tuple[Vertex, bool]] = [(target, False) for target in reversed(list(targets))]
    while stack:
        vertex, expanded = stack.pop()
        if expanded:
            yield vertex
            continue
        if id(vertex) in seen:
            continue
        seen.add(id(vertex))
        stack.append((vertex, True))
        stack.extend((each, False) for each in reversed(vertex.inputs) if id(each) not in seen)


def check_entitlements(target: Vertex, granted: Collection[str]) -> None:
    """Refuse steps that want more than a sandbox unless the client has asked for it: Dockerfiles come from anywhere
    (CVE-2024-23653).

    :raises InvalidParameter: in BuildKit's words.
    """
    for vertex in walk([target]):
        operation = vertex.operation
        if not isinstance(operation, Exec):
            continue
        if operation.network == "host" and "network.host" not in granted:
            raise InvalidParameter("network.host is not allowed")
        if operation.insecure:
            raise InvalidParameter("security.insecure is not allowed")
