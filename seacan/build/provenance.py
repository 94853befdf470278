"""Provenance: what a build was made of and how, as an in-toto statement with a SLSA predicate.

The predicate has the form BuildKit gives it, so that what reads BuildKit's reads ours. ``mode=max`` adds build
arguments, the names of secrets, the graph and the Dockerfile.
Forms: https://slsa.dev/spec/v1.0/provenance, https://in-toto.io/Statement/v1, and
https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import quote, quote_plus, urlsplit, urlunsplit

import msgspec

from seacan.build import graph
from seacan.build.dockerfile.instructions import csv_fields
from seacan.build.graph import Vertex, walk
from seacan.build.sources import parse_git
from seacan.errors import InvalidParameter
from seacan.images import reference as references
from seacan.images.manifest import Descriptor, Platform, host_platform
from seacan.storage import digest as digests
from seacan.storage.digest import Digest

SLSA_1 = "https://slsa.dev/provenance/v1"
SLSA_02 = "https://slsa.dev/provenance/v0.2"
_STATEMENT = "https://in-toto.io/Statement/v1"
_BUILD_TYPE_1 = "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md"
_BUILD_TYPE_02 = "https://mobyproject.org/buildkit@v1"
_OF_THIS_HOST = frozenset(("cgroup-parent", "image-resolve-mode", "platform", "cache-imports"))

Document = dict[str, object]
"""What becomes a JSON object."""


@dataclass(frozen=True)
class Wanted:
    """What a client asks of the provenance. ``inline_only``: where the output can hold it anyway."""

    mode: str = "max"
    version: str = "v1"
    inline_only: bool = False
    builder: str = ""
    reproducible: bool = False

    @classmethod
    def read(cls, text: str) -> Wanted:
        """``mode=min,inline-only=true``. :raises InvalidParameter: in BuildKit's words."""
        values = attributes(text)
        mode = {"full": "max"}.get(values.get("mode", "max"), values.get("mode", "max"))
        if mode not in ("min", "max"):
            raise InvalidParameter(f'invalid mode "{mode}"')
        version = values.get("version") or "v1"
        if version not in ("v1", "v0.2"):
            raise InvalidParameter(f"invalid provenance SLSA version: {version}")
        return cls(
            mode,
            version,
            _truth(values.get("inline-only", "")),
            values.get("builder-id", ""),
            _truth(values.get("reproducible", "")),
        )

    @property
    def predicate_type(self) -> str:
        return SLSA_1 if self.version == "v1" else SLSA_02


def attributes(text: str) -> dict[str, str]:
    """``a=b,c`` as attestations are asked for."""
    return {key: value for key, _, value in (each.partition("=") for each in csv_fields(text))} if text else {}


def _truth(text: str) -> bool:
    return text in ("1", "t", "T", "true", "TRUE", "True")


@dataclass(frozen=True)
class Facts:
    """What is known of a build when it is over. ``parameters`` are the front end's; times are nanoseconds since 1970.

    ``sources`` says what a git or HTTP source came to: a commit, or ``sha256:…``.
    """

    wanted: Wanted
    target: Vertex
    frontend: str
    parameters: Mapping[str, str]
    filename: str
    dockerfile: bytes
    dockerfile_version: str
    invocation: str
    started: int
    finished: int
    sources: Mapping[Vertex, str] = field(default_factory=dict)
    layers: Mapping[Vertex, Sequence[Descriptor]] = field(default_factory=dict)
    """The layers of steps, lowest first, as far as they have archives."""


class Subject(msgspec.Struct):
    name: str
    digest: dict[str, str]


class Statement(msgspec.Struct, rename={"type": "_type", "predicate_type": "predicateType"}):
    """An in-toto statement: that ``predicate`` holds of the subjects."""

    predicate_type: str
    subject: list[Subject]
    predicate: msgspec.Raw
    type: str = _STATEMENT


def statement(predicate_type: str, predicate: bytes, names: Iterable[str], platform: Platform, digest: Digest) -> bytes:
    """A statement of an image, by the names that it gets."""
    subjects = [Subject(package_url(name, platform), digest_set(digest)) for name in names]
    return msgspec.json.encode(Statement(predicate_type, subjects, msgspec.Raw(predicate)))


def digest_set(digest: str) -> dict[str, str]:
    algorithm, _, value = digest.partition(":")
    return {algorithm: value}


def package_url(reference: str, platform: Platform | None = None) -> str:
    """The package URL of an image (https://github.com/package-url/purl-spec, type docker)."""
    parsed = references.parse(reference)
    qualifiers: dict[str, str] = {}
    if parsed.digest:
        qualifiers["digest"] = parsed.digest
    else:
        parsed = parsed.with_default_tag()
    if platform is not None:
        qualifiers["platform"] = str(platform.normalised())
    name = quote(parsed.familiar_name, safe="/:")
    version = f"@{quote(parsed.tag, safe=':')}" if parsed.tag else ""
    suffix = "&".join(f"{key}={quote_plus(value, safe=':')}" for key, value in sorted(qualifiers.items()))
    return f"pkg:docker/{name}{version}" + (f"?{suffix}" if suffix else "")


def redacted(url: str) -> str:
    """The URL without a user's name and password."""
    if "://" not in url:
        return url
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    if not at:
        return url
    hidden = "xxxxx:xxxxx" if ":" in user else "xxxxx"
    return urlunsplit(parts._replace(netloc=f"{hidden}@{host}"))


def predicate(facts: Facts) -> bytes:
    """The predicate, as JSON."""
    wanted = facts.wanted
    parameters, vcs = _parameters(facts.parameters)
    request: Document = {"frontend": facts.frontend}
    source: Document = {}
    context = parameters.pop(parameters.get("contextkey", "context"), "")
    if context:
        source |= _config_source(context, facts)
    if parameters.pop("filename", ""):
        source["path"] = facts.filename
    secrets, agents, networked = _asked_for(facts.target)
    whole = True
    if wanted.mode == "min":
        kept = {key: value for key, value in parameters.items() if not key.startswith(("build-arg:", "label:"))}
        whole = kept == parameters
        parameters = kept
    else:
        request |= {name: found for name, found in (("secrets", secrets), ("ssh", agents)) if found}
    if parameters:
        request["args"] = parameters
    local = [each.operation.name for each in walk([facts.target]) if isinstance(each.operation, graph.LocalSource)]
    if local:
        request["locals"] = [{"name": name} for name in dict.fromkeys(local)]
    buildkit: Document = {"vcs": vcs} if vcs else {}
    config: Document | None = None
    if wanted.mode == "max":
        config = _graph(facts, buildkit)
    form = _slsa_1 if wanted.version == "v1" else _slsa_02
    stated = _Stated(source, request, config, buildkit, materials(facts), whole, not local, not local and not networked)
    return msgspec.json.encode(form(facts, stated))


@dataclass(frozen=True)
class _Stated:
    """What both forms of a provenance say, each in its own place."""

    source: Document
    request: Document
    config: Document | None
    buildkit: Document
    materials: list[Document]
    whole: bool
    """The request is all there."""
    complete: bool
    """So are the materials."""
    hermetic: bool


def _slsa_1(facts: Facts, stated: _Stated) -> Document:
    internal: Document = {"builderPlatform": str(host_platform().normalised())}
    if stated.config is not None:
        internal["buildConfig"] = stated.config
    if facts.dockerfile_version:
        internal["dockerfileVersion"] = facts.dockerfile_version
    return {
        "buildDefinition": {
            "buildType": _BUILD_TYPE_1,
            "externalParameters": {"configSource": stated.source, "request": stated.request},
            "internalParameters": internal,
            "resolvedDependencies": stated.materials,
        },
        "runDetails": {
            "builder": {"id": facts.wanted.builder},
            "metadata": {
                "invocationId": facts.invocation,
                "startedOn": _time(facts.started),
                "finishedOn": _time(facts.finished),
                "buildkit_metadata": stated.buildkit,
                "buildkit_hermetic": stated.hermetic,
                "buildkit_completeness": {"request": stated.whole, "resolvedDependencies": stated.complete},
                "buildkit_reproducible": facts.wanted.reproducible,
            },
        },
    }


def _slsa_02(facts: Facts, stated: _Stated) -> Document:
    source = {{"path": "entryPoint"}.get(key, key): value for key, value in stated.source.items()}
    environment: Document = {"platform": str(host_platform().normalised())}
    if facts.dockerfile_version:
        environment["dockerfileVersion"] = facts.dockerfile_version
    document: Document = {
        "builder": {"id": facts.wanted.builder},
        "buildType": _BUILD_TYPE_02,
        "materials": stated.materials,
        "invocation": {"configSource": source, "parameters": stated.request, "environment": environment},
        "metadata": {
            "buildInvocationID": facts.invocation,
            "buildStartedOn": _time(facts.started),
            "buildFinishedOn": _time(facts.finished),
            "completeness": {"parameters": stated.whole, "environment": True, "materials": stated.complete},
            "reproducible": facts.wanted.reproducible,
            f"{_BUILD_TYPE_02}#hermetic": stated.hermetic,
            f"{_BUILD_TYPE_02}#metadata": stated.buildkit,
        },
    }
    if stated.config is not None:
        document["buildConfig"] = stated.config
    return document


def materials(facts: Facts) -> list[Document]:
    """Everything from elsewhere that went into the result, each once."""
    found: dict[str, Document] = {}
    for vertex in walk([facts.target]):
        operation = vertex.operation
        resolved = facts.sources.get(vertex, "")
        if isinstance(operation, graph.ImageSource):
            named = not digests.is_digest(operation.reference)
            uri = package_url(operation.reference, vertex.platform) if named else operation.reference
            digest = digest_set(operation.digest) if digests.is_digest(operation.digest) else {}
        elif isinstance(operation, graph.GitSource):
            uri = redacted(operation.remote) + (f"#{operation.reference}" if operation.reference else "")
            digest = {"sha256" if len(resolved) == 64 else "sha1": resolved} if resolved else {}
        elif isinstance(operation, graph.HttpSource):
            uri = redacted(operation.url)
            digest = digest_set(resolved or operation.checksum) if resolved or operation.checksum else {}
        else:
            continue
        found.setdefault(uri, {"uri": uri, **({"digest": digest} if digest else {})})
    return list(found.values())


def _config_source(context: str, facts: Facts) -> Document:
    source: Document = {"uri": redacted(context)}
    git = parse_git(context, bare_github=True)
    for vertex, resolved in facts.sources.items():
        operation = vertex.operation
        if git is not None and isinstance(operation, graph.GitSource) and operation.remote == git.remote:
            source["digest"] = {"sha256" if len(resolved) == 64 else "sha1": resolved}
    return source


def _parameters(given: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The front end's parameters that say something of the result, and those of the version control."""
    kept: dict[str, str] = {}
    vcs: dict[str, str] = {}
    for key, value in given.items():
        if key in _OF_THIS_HOST or key.startswith(("attest:", "build-arg:BUILDKIT_ATTEST_")):
            continue
        if key.startswith("vcs:"):
            if value:
                vcs[key.removeprefix("vcs:")] = redacted(value)
        else:
            kept[key] = redacted(value) if key == "context" or key.startswith("context:") else value
    return kept, vcs


def _asked_for(target: Vertex) -> tuple[list[Document], list[Document], bool]:
    """Secrets and agents that steps use, and whether a step has a network."""
    secrets: dict[str, Document] = {}
    agents: dict[str, Document] = {}
    networked = False
    for vertex in walk([target]):
        if not isinstance(vertex.operation, graph.Exec):
            continue
        networked = networked or vertex.operation.network != "none"
        for mount in vertex.operation.mounts:
            found = {"secret": secrets, "ssh": agents}.get(mount.kind)
            if found is not None:
                found.setdefault(mount.id, {"id": mount.id, **({} if mount.required else {"optional": True})})
    return list(secrets.values()), list(agents.values()), networked


def _time(nanoseconds: int) -> str:
    return datetime.fromtimestamp(nanoseconds / 10**9, UTC).isoformat().replace("+00:00", "Z")


# --- the graph, as BuildKit's LLB in JSON -------------------------------------------------------------------------


def _graph(facts: Facts, buildkit: Document) -> Document:
    """The steps, and in ``buildkit`` where in the Dockerfile they come from and which layers they gave."""
    steps: list[Document] = []
    mapping: dict[str, str] = {}
    places: dict[Vertex, str] = {}
    identities: dict[Vertex, str] = {}
    locations: dict[str, Document] = {}
    layers: dict[str, list[list[Descriptor]]] = {}
    for vertex in walk([facts.target]):
        if isinstance(vertex.operation, graph.Scratch):
            continue
        id = f"step{len(steps)}"
        inputs = [each for each in vertex.inputs if each in places]
        operation = _operation(vertex, {each: number for number, each in enumerate(inputs)})
        if inputs:
            operation["inputs"] = [{"digest": identities[each], "index": 0} for each in inputs]
        if vertex.platform is not None:
            platform = vertex.platform.normalised()
            operation["platform"] = {"Architecture": platform.architecture, "OS": platform.os} | (
                {"Variant": platform.variant} if platform.variant else {}
            )
        operation["constraints"] = {}
        digest = "sha256:" + hashlib.sha256(msgspec.json.encode(operation)).hexdigest()
        step: Document = {"id": id, "op": operation}
        if inputs:
            step["inputs"] = [f"{places[each]}:0" for each in inputs]
        steps.append(step)
        mapping[digest] = id
        places[vertex], identities[vertex] = id, digest
        if vertex.source is not None:
            where = {"start": {"line": vertex.source.start}, "end": {"line": vertex.source.end}}
            locations[id] = {"locations": [{"ranges": [where]}]}
        if facts.layers.get(vertex):
            layers[f"{id}:0"] = [list(facts.layers[vertex])]
    if facts.target in places:
        steps.append({"id": f"step{len(steps)}", "op": {"Op": None}, "inputs": [f"{places[facts.target]}:0"]})
    info = {
        "filename": facts.filename,
        "language": "Dockerfile",
        "data": base64.b64encode(facts.dockerfile).decode(),
    }
    buildkit["source"] = {"locations": locations, "infos": [info]}
    if layers:
        buildkit["layers"] = layers
    return {"llbDefinition": steps, "digestMapping": mapping}


def _operation(vertex: Vertex, inputs: Mapping[Vertex, int]) -> Document:
    def index(number: int) -> int:
        return inputs.get(vertex.inputs[number], -1) if 0 <= number < len(vertex.inputs) else -1

    operation = vertex.operation
    match operation:
        case graph.ImageSource():
            pinned = f"@{operation.digest}" if operation.digest else ""
            body: Document = {"source": {"identifier": f"docker-image://{operation.reference}{pinned}"}}
        case graph.LocalSource():
            attrs: dict[str, str] = {}
            if operation.exclude:
                attrs["local.excludepatterns"] = msgspec.json.encode(operation.exclude).decode()
            if operation.paths and operation.paths != ("/",):
                attrs["local.followpaths"] = msgspec.json.encode(operation.paths).decode()
            body = {"source": {"identifier": f"local://{operation.name}", "attrs": attrs}}
        case graph.HttpSource():
            attrs = {"http.filename": operation.filename}
            if operation.checksum:
                attrs["http.checksum"] = operation.checksum
            body = {"source": {"identifier": redacted(operation.url), "attrs": attrs}}
        case graph.GitSource():
            attrs = {"git.fullurl": redacted(operation.remote)}
            reference = f"#{operation.reference}" if operation.reference else ""
            body = {"source": {"identifier": f"git://{redacted(operation.remote)}{reference}", "attrs": attrs}}
        case graph.InlineSource():
            made = [
                {
                    "input": -1 if number == 0 else number - 1,
                    "secondaryInput": -1,
                    "output": number,
                    "Action": {"mkfile": {"path": f"/{name}", "mode": mode, "data": base64.b64encode(data).decode()}},
                }
                for number, (name, data, mode) in enumerate(operation.files)
            ]
            body = {"file": {"actions": made}}
        case graph.Exec():
            meta: Document = {
                "args": operation.arguments,
                "env": operation.environment,
                "cwd": operation.directory,
                **({"user": operation.user} if operation.user else {}),
            }
            mounts: list[Document] = [{"input": index(0), "dest": "/", "output": 0}]
            for mount in operation.mounts:
                described: Document = {"input": index(mount.source), "dest": mount.target, "output": -1}
                if mount.selector != "/":
                    described["selector"] = mount.selector
                if mount.kind != "bind":
                    described["mountType"] = {"secret": 1, "ssh": 2, "cache": 3, "tmpfs": 4}[mount.kind]
                if mount.read_only:
                    described["readonly"] = True
                if mount.kind == "cache":
                    described["cacheOpt"] = {"ID": mount.id}
                if mount.kind in ("secret", "ssh"):
                    described[f"{mount.kind.upper()}Opt"] = {"ID": mount.id, "optional": not mount.required}
                mounts.append(described)
            network = {"host": 1, "none": 2}.get(operation.network, 0)
            body = {"exec": {"meta": meta, "mounts": mounts, **({"network": network} if network else {})}}
        case graph.Files():
            actions: list[Document] = []
            for number, action in enumerate(operation.actions):
                first = index(0) if number == 0 else len(vertex.inputs) + number - 1
                about: Document = {"input": first, "secondaryInput": -1, "output": number}
                if isinstance(action, graph.CopyFiles):
                    about["secondaryInput"] = index(action.source)
                    about["Action"] = {
                        "copy": {
                            "src": action.path,
                            "dest": action.destination,
                            "mode": int(action.mode, 8) if action.mode.isdigit() else -1,
                            "followSymlink": action.follow,
                            "dirCopyContents": action.contents,
                            "attemptUnpackDockerCompatibility": action.unpack,
                            "createDestPath": True,
                            "allowWildcard": action.wildcards,
                            "allowEmptyWildcard": True,
                            "timestamp": -1 if vertex.epoch is None else vertex.epoch * 10**9,
                        }
                    }
                else:
                    about["Action"] = {"mkdir": {"path": action.path, "mode": action.mode, "makeParents": True}}
                actions.append(about)
            body = {"file": {"actions": actions}}
        case graph.Merge():
            body = {"merge": {"inputs": [{"input": index(number)} for number in range(len(vertex.inputs))]}}
        case graph.Scratch():
            body = {}
    return {"Op": body}
