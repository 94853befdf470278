"""Builds that a client defines itself, in BuildKit's LLB: the part of it that clients of Docker's API send.

buildx does so for ``-f URL`` and for ``bake URL``: it has a repository or a file fetched, looks into it, and builds in
folders of it. So there are sources and copies here; whoever wants steps run has the Dockerfile front end.
Reference: moby/buildkit, solver/pb/ops.proto.
"""

# ruff: noqa: RUF009 - the defaults are descriptions of fields

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from seacan.build.buildkit import messages as pb
from seacan.build.buildkit.wire import Message, WireError, many, nested, scalar
from seacan.build.graph import (
    CopyFiles,
    Files,
    GitSource,
    HttpSource,
    InlineSource,
    LocalSource,
    MakeDirectory,
    Merge,
    Operation,
    Scratch,
    Vertex,
)
from seacan.build.sources import http_filename, parse_git
from seacan.errors import InvalidParameter, Unsupported
from seacan.storage import digest as digests

_VERTICES = 1000
_HEIGHT = 1000
"""Layers that a result may have, beyond those of images: merges of merges double them with every operation."""
M = TypeVar("M", bound=Message)
_TRUE = ("true", "1")


@dataclass
class _User(Message):
    id: int = scalar(2, "int")
    named: Any = nested(1, lambda: _NamedUser)


@dataclass
class _NamedUser(Message):
    name: str = scalar(1, "string")


@dataclass
class _Owner(Message):
    user: Any = nested(1, lambda: _User)
    group: Any = nested(2, lambda: _User)


@dataclass
class _Copy(Message):
    source: str = scalar(1, "string")
    destination: str = scalar(2, "string")
    owner: Any = nested(3, lambda: _Owner)
    mode: int = scalar(4, "int")
    follow: bool = scalar(5, "bool")
    contents: bool = scalar(6, "bool")
    unpack: bool = scalar(7, "bool")
    wildcards: bool = scalar(9, "bool")
    include: list[str] = many(12, "string")
    exclude: list[str] = many(13, "string")
    mode_text: str = scalar(15, "string")


@dataclass
class _MakeFile(Message):
    path: str = scalar(1, "string")
    mode: int = scalar(2, "int")
    data: bytes = scalar(3, "bytes")
    owner: Any = nested(4, lambda: _Owner)


@dataclass
class _MakeDirectory(Message):
    path: str = scalar(1, "string")
    mode: int = scalar(2, "int")
    owner: Any = nested(4, lambda: _Owner)


@dataclass
class _Action(Message):
    input: int = scalar(1, "int")
    secondary: int = scalar(2, "int")
    output: int = scalar(3, "int")
    copy: Any = nested(4, lambda: _Copy)
    make_file: Any = nested(5, lambda: _MakeFile)
    make_directory: Any = nested(6, lambda: _MakeDirectory)


@dataclass
class _Files(Message):
    actions: list[_Action] = many(2, "message", lambda: _Action)


Image = Callable[[str, pb.Platform | None], Awaitable[Vertex]]
"""Finds the image that a reference means."""
Result = Callable[[str], Vertex | None]
"""What an identifier of a source means that we have given out ourselves, if it is one."""


async def graph(definition: pb.Definition, image: Image, result: Result = lambda _identifier: None) -> Vertex:
    """The graph that a client has defined; gives the vertex that it wants.

    :raises InvalidParameter: it is malformed. :raises Unsupported: it asks for more than is described above.
    """
    if len(definition.definitions) > _VERTICES:
        raise InvalidParameter(f"LLB definition of {len(definition.definitions)} operations; the limit is {_VERTICES}")
    made: dict[str, Vertex] = {}
    heights: dict[str, int] = {}
    wanted: Vertex | None = None
    for encoded in definition.definitions:  # each after its inputs
        op = _decode(pb.Op, encoded)
        digest = digests.of(bytes(encoded))
        if op.operation == "nothing":
            wanted = made.get(op.inputs[0].digest) if op.inputs else None
            continue
        inputs = []
        for each in op.inputs:
            if each.index or each.digest not in made:
                raise InvalidParameter(f"LLB operation {digest}: invalid input {each.digest[:100]}")
            inputs.append(made[each.digest])
        below = [heights[each.digest] for each in op.inputs]
        heights[digest] = sum(below) if op.operation == "merge" else max(below, default=0) + 1
        if heights[digest] > _HEIGHT:
            raise InvalidParameter(f"LLB operation {digest}: a result of more than {_HEIGHT} layers")
        described = definition.metadata.get(digest) or pb.OpMetadata()
        made[digest] = await _vertex(op, inputs, described, image, result)
    if wanted is None:
        raise InvalidParameter("LLB definition has no result")
    return wanted


def layered(vertex: Vertex) -> Vertex:
    """The same as layers, where it is a source of files."""
    return copied(vertex) if isinstance(vertex.operation, LocalSource | HttpSource | GitSource) else vertex


def copied(vertex: Vertex) -> Vertex:
    """All its files, as one layer."""
    copy = CopyFiles(1, "/", "/", wildcards=False)
    return Vertex(Files((copy,)), (Vertex(Scratch()), vertex), name=f"{vertex.name} (copy)", internal=True)


async def _vertex(op: pb.Op, inputs: list[Vertex], described: pb.OpMetadata, image: Image, result: Result) -> Vertex:
    name = described.description.get("llb.customname", "")
    ignore = described.ignore_cache
    match op.operation:
        case "source":
            return result(op.source.identifier) or await _source(op, name, image)
        case "file":
            return _files(_decode(_Files, op.file), inputs, name, ignore)
        case "merge":
            merged = layered(inputs[0]) if inputs else Vertex(Scratch())
            for each in inputs[1:]:
                merged = Vertex(Merge(), (merged, layered(each)), name=name or "merge")
            return merged
    raise Unsupported(
        f"LLB operations of type {op.operation} are not supported: steps are run from a Dockerfile, by the front end"
    )


async def _source(op: pb.Op, name: str, image: Image) -> Vertex:
    identifier, attrs = op.source.identifier, op.source.attrs
    scheme, _, rest = identifier.partition("://")
    operation: Operation
    match scheme:
        case "docker-image":
            found: Vertex = await image(rest, op.platform)
            return found
        case "git":
            operation = _git(rest, attrs)
        case "http" | "https":
            filename = attrs.get("http.filename", "") or http_filename(identifier)
            if "/" in filename or filename in (".", ".."):
                raise InvalidParameter(f"invalid file name {filename!r} for {identifier}")
            operation = HttpSource(identifier, filename, attrs.get("http.checksum", ""))
        case "local":
            if attrs.get("local.includepattern"):
                raise Unsupported("LLB sources of type local with include patterns are not supported")
            exclude = _strings(attrs, "local.excludepatterns")
            operation = LocalSource(rest, exclude, _strings(attrs, "local.followpaths") or ("/",))
        case _:
            raise Unsupported(f"LLB sources of type {scheme[:100]} are not supported")
    return Vertex(operation, name=name or identifier)


def _git(rest: str, attrs: Mapping[str, str]) -> GitSource:
    _, _, fragment = rest.partition("#")
    reference, _, folder = fragment.partition(":")
    url = attrs.get("git.fullurl") or f"https://{rest.partition('#')[0]}"
    git = parse_git(url)
    remote = git.remote if git is not None else url
    if not remote.startswith(("https://", "http://", "git://", "ssh://", "git@")):
        raise InvalidParameter(f"invalid git remote {remote[:200]!r}")
    return GitSource(
        remote,
        reference,
        folder.strip("/"),
        attrs.get("git.keepgitdir") in _TRUE,
        attrs.get("git.checksum", ""),
        attrs.get("git.skipsubmodules") not in _TRUE,
    )


def _files(files: _Files, inputs: list[Vertex], name: str, ignore: bool) -> Vertex:
    """File actions, where each works on what the one before has made: other shapes nobody sends."""
    base: Vertex = Vertex(Scratch())
    sources: list[Vertex] = []
    actions: list[CopyFiles | MakeDirectory] = []

    def source(vertex: Vertex) -> int:
        sources.append(vertex)
        return len(sources)

    for number, action in enumerate(files.actions):
        if number == 0:
            if action.input >= 0:
                base = layered(_at(inputs, action.input))
        elif action.input != len(inputs) + number - 1:
            raise Unsupported("LLB file operations that branch are not supported")
        if action.output not in (-1, 0) or (action.output == 0 and number != len(files.actions) - 1):
            raise Unsupported("LLB file operations with several results are not supported")
        if action.copy is not None:
            copy: _Copy = action.copy
            actions.append(
                CopyFiles(
                    source(_at(inputs, action.secondary)),
                    copy.source or "/",
                    copy.destination or "/",
                    _owner(copy.owner),
                    copy.mode_text or ("" if copy.mode < 0 else f"{copy.mode & 0o7777:o}"),
                    copy.follow,
                    copy.contents,
                    copy.unpack,
                    copy.wildcards,
                    tuple(copy.include),
                    tuple(copy.exclude),
                )
            )
        elif action.make_file is not None:
            file: _MakeFile = action.make_file
            inline = InlineSource((("file", bytes(file.data), file.mode & 0o7777),))
            written = source(Vertex(inline, name=f"mkfile {file.path}", internal=True))
            actions.append(CopyFiles(written, "/file", file.path, _owner(file.owner), wildcards=False))
        elif action.make_directory is not None:
            made: _MakeDirectory = action.make_directory
            actions.append(MakeDirectory(made.path, made.mode & 0o7777, _owner(made.owner)))
        else:
            raise Unsupported("LLB file actions other than copy, mkfile and mkdir are not supported")
    if not actions:
        raise InvalidParameter("LLB file operation without actions")
    return Vertex(Files(tuple(actions)), (base, *sources), name=name or _shown(actions[0]), ignore_cache=ignore)


def _shown(action: CopyFiles | MakeDirectory) -> str:
    if isinstance(action, MakeDirectory):
        return f"mkdir {action.path}"
    return f"copy {action.path} {action.destination}"


def _at(inputs: list[Vertex], number: int) -> Vertex:
    if not 0 <= number < len(inputs):
        raise InvalidParameter(f"LLB file operation: there is no input {number}")
    return inputs[number]


def _owner(owner: _Owner | None) -> str:
    if owner is None:
        return ""

    def text(user: _User | None) -> str:
        if user is None:
            return ""
        return str(user.named.name) if user.named is not None else str(user.id)

    group = text(owner.group)
    return text(owner.user) + (f":{group}" if group else "")


def _strings(attrs: Mapping[str, str], name: str) -> tuple[str, ...]:
    if not attrs.get(name):
        return ()
    try:
        return tuple(msgspec.json.decode(attrs[name], type=list[str]))
    except msgspec.DecodeError:
        raise InvalidParameter(f"LLB source: {name} is no list of strings") from None


def _decode(model: type[M], data: bytes) -> M:
    try:
        return model.decode(data)
    except WireError as error:
        raise InvalidParameter(f"LLB definition is malformed: {error}") from None
