"""``seacan build``: has the daemon build, over BuildKit's API, and shows what comes of it.

The daemon does the building. What this does is what docker's buildx does: say what is wanted, serve the files and
secrets that are asked for, draw the progress, and take the output. (``--squash`` alone is of the classic API.)
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import io
import json
import os
import secrets
import socket
import stat
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

import msgspec

from seacan.build.buildkit import messages as pb
from seacan.build.buildkit.frontend import SourceText
from seacan.build.buildkit.http2 import Connection, ConnectionLost
from seacan.build.buildkit.rpc import Channel, Status
from seacan.build.buildkit.rpc import server as grpc_server
from seacan.build.cacheconfig import Entry
from seacan.build.dockerfile.instructions import csv_fields
from seacan.cli import buildcontent, buildprogress, context
from seacan.cli import flags as go
from seacan.cli.buildcontent import Stores
from seacan.cli.buildprogress import Progress
from seacan.cli.buildsession import Offer, agent, connect, secret
from seacan.cli.client import Client
from seacan.cli.command import Exit, command, flag, switch
from seacan.cli.create import memory_swap, ulimit
from seacan.cli.image import registry_configurations, registry_wallet, show_progress
from seacan.errors import InvalidParameter, SeacanError
from seacan.images import reference as references
from seacan.images.manifest import Descriptor

_REMOTE: Final = ("http://", "https://", "git://", "git@", "github.com/", "ssh://")
_CONTROL: Final = "/moby.buildkit.v1.Control/"
_BRIDGE: Final = "/moby.buildkit.v1.frontend.LLBBridge/"


@command("build", "PATH | URL | -", exactly=1)
@flag("add-host", "Add a custom host-to-IP mapping (host:ip)", many=True)
@flag("allow", 'Allow extra privileged entitlement ("network.host")', many=True)
@flag("annotation", "Add annotation to the image", many=True)
@flag("attest", 'Attestation parameters ("type=sbom,generator=image")', many=True)
@flag("build-arg", "Set build-time variables", many=True)
@flag("build-context", 'Additional build contexts ("name=path")', many=True)
@flag("cache-from", 'External cache sources ("user/app:cache", "type=registry,ref=…")', many=True)
@flag("cache-to", 'Cache export destinations ("user/app:cache", "type=registry,ref=…")', many=True)
@flag("call", 'Set method for evaluating build ("check", "outline", "targets")', default="build")
@flag("cgroup-parent", "Set the parent cgroup for the RUN instructions during build", default="")
@switch("check", 'Shorthand for "--call=check"')
@flag("cpu-period", "Limit the CPU CFS (Completely Fair Scheduler) period", kind="int", default=0)
@flag("cpu-quota", "Limit the CPU CFS (Completely Fair Scheduler) quota", kind="int", default=0)
@flag("cpu-shares", "CPU shares (relative weight)", short="c", kind="int", default=0)
@flag("cpuset-cpus", "CPUs in which to allow execution (0-3, 0,1)", default="")
@flag("cpuset-mems", "MEMs in which to allow execution (0-3, 0,1)", default="")
@flag("file", 'Name of the Dockerfile (default "PATH/Dockerfile")', short="f", default="")
@switch("force-rm", "Always remove intermediate containers", hidden=True)
@flag("iidfile", "Write the image ID to a file", default="")
@flag("label", "Set metadata for an image", many=True)
@switch("load", 'Shorthand for "--output=type=docker"')
@flag("memory", "Memory limit", short="m", kind="bytes", default=0)
@flag("memory-swap", "Swap limit equal to memory plus swap: -1 to enable unlimited swap", kind=memory_swap, default=0)
@flag("metadata-file", "Write build result metadata to a file", default="")
@flag("network", 'Set the networking mode for the "RUN" instructions during build', default="default")
@switch("no-cache", "Do not use cache when building the image")
@flag("no-cache-filter", "Do not cache specified stages", many=True)
@flag("output", 'Output destination ("type=local,dest=path")', short="o", many=True)
@flag("platform", "Set target platform for build", many=True)
@flag("progress", 'Set type of progress output ("auto", "plain", "tty", "quiet")', default="")
@flag("provenance", 'Shorthand for "--attest=type=provenance"', default="", bare="true")
@switch("pull", "Always attempt to pull all referenced images")
@switch("push", 'Shorthand for "--output=type=registry"')
@switch("quiet", "Suppress the build output and print image ID on success", short="q")
@switch("rm", "Remove intermediate containers after a successful build", default=True, hidden=True)
@flag("sbom", 'Shorthand for "--attest=type=sbom"', default="", bare="true")
@flag("secret", 'Secret to expose to the build ("id=mysecret[,src=/local/secret]")', many=True)
@flag("shm-size", "Shared memory size for build containers", kind="bytes", default=0)
@switch("squash", "Squash newly built layers into a single new layer")
@flag("ssh", 'SSH agent socket to expose to the build ("default|<id>[=<socket>]")', many=True)
@flag("tag", 'Image identifier ("[registry/]repository[:tag]")', short="t", many=True)
@flag("target", "Set the target build stage to build", default="")
@flag("ulimit", "Ulimit options", kind=ulimit, many=True)
def build(client: Client, arguments: list[str], **options: Any) -> None:
    """Build an image from a Dockerfile"""
    if options["squash"]:
        _build_classic(client, arguments[0], options)
        return
    with contextlib.ExitStack() as undo:
        job = plan(arguments[0], options, undo)
        progress = buildprogress.choose("quiet" if options["quiet"] else options["progress"], sys.stderr)
        try:
            response = asyncio.run(run(client, job, progress))
        except Status as error:
            sys.stderr.write(_explanation(progress, error))
            raise SeacanError(f"ERROR: failed to build: failed to solve: {error}") from error
        sys.stderr.write("" if options["quiet"] else buildprogress.told(progress.warnings))
        for finish in job.finish:
            finish(response)
    _report(job, response, options)


# --- what is wanted ------------------------------------------------------------------------------------------------


@dataclass
class Job:
    """A build as it will be asked for, and what the daemon is offered for it."""

    request: pb.SolveRequest
    offer: Offer
    shared_key: str = ""
    call: str = ""
    """The question, where no image is wanted."""
    finish: list[Callable[[Mapping[str, str]], None]] = field(default_factory=list)
    """What is to be done when the output is there; hears of the exporters' answers."""


def plan(place: str, options: Mapping[str, Any], undo: contextlib.ExitStack) -> Job:
    """The flags as a request. ``undo`` ends when the build does."""
    offer = Offer(credentials=registry_wallet())
    request = pb.SolveRequest(ref=secrets.token_hex(13), frontend="dockerfile.v0", frontend_attrs=attributes(options))
    job = Job(request, offer)
    attrs = request.frontend_attrs
    _plan_context(job, place, options["file"], undo)
    for item in options["build_context"]:
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise InvalidParameter(f"invalid context value: {item}, expected key=value")
        if value.startswith(("docker-image://", *_REMOTE)):
            attrs[f"context:{name}"] = value
        elif value.startswith("oci-layout://"):
            folder, reference = buildcontent.split(value.removeprefix("oci-layout://"))
            digest = offer.stores.read(f"oci:{name}", folder, reference)
            attrs[f"context:{name}"] = f"oci-layout://{name}@{digest}"
        elif os.path.isdir(value):
            offer.folders[name] = value
            attrs[f"context:{name}"] = f"local:{name}"
        else:
            raise InvalidParameter(f"failed to find {value} as a build context")
    offer.secrets = dict(secret(item) for item in options["secret"])
    offer.agents = dict(agent(item) for item in options["ssh"])
    request.entitlements = list(options["allow"]) + (["network.host"] if options["network"] == "host" else [])
    _plan_caches(job, options)
    job.call = {"build": "", "lint": "check"}.get(options["call"], options["call"]) if not options["check"] else "check"
    if job.call not in ("", "check", "outline", "targets"):
        raise InvalidParameter(f"invalid call {job.call!r}: want check, outline or targets")
    if not job.call:
        _plan_outputs(job, options, undo)
    return job


def attributes(options: Mapping[str, Any]) -> dict[str, str]:
    """What the front end is told."""
    attrs: dict[str, str] = {}
    for item in options["build_arg"]:
        name, equals, value = item.partition("=")
        given = value if equals else os.environ.get(name)
        if given is not None:
            attrs[f"build-arg:{name}"] = given
    labels = go.pairs([go.parse_label(item) for item in options["label"]])
    attrs |= {f"label:{name}": value for name, value in labels.items()}
    limits = {
        "memory": options["memory"],
        "memswap": options["memory_swap"],
        "cpushares": options["cpu_shares"],
        "cpuperiod": options["cpu_period"],
        "cpuquota": options["cpu_quota"],
        "cpusetcpus": options["cpuset_cpus"],
        "cpusetmems": options["cpuset_mems"],
        "shm-size": options["shm_size"],
        "cgroup-parent": options["cgroup_parent"],
        "target": options["target"],
        "platform": ",".join(options["platform"]),
        "add-hosts": ",".join(_host(item) for item in options["add_host"]),
        "ulimit": ",".join(f"{each['Name']}={each['Soft']}:{each['Hard']}" for each in options["ulimit"]),
    }
    attrs |= {name: str(value) for name, value in limits.items() if value}
    if options["network"] not in ("", "default"):
        attrs["force-network-mode"] = options["network"]
    if options["no_cache"]:
        attrs["no-cache"] = ""
    elif options["no_cache_filter"]:
        attrs["no-cache"] = ",".join(options["no_cache_filter"])
    if options["pull"]:
        attrs["image-resolve-mode"] = "pull"
    return attrs | _attestations(options)


def _attestations(options: Mapping[str, Any]) -> dict[str, str]:
    """The attestations; without a word on it, the little provenance that costs nothing where an image is pushed."""
    found = {"provenance": "mode=min,inline-only=true"}
    for kind in ("provenance", "sbom"):
        text = options[kind]
        if text in ("false", "0"):
            found.pop(kind, None)
        elif text:
            found[kind] = "" if text in ("true", "1") else text if "=" in text else f"generator={text}"
    for item in options["attest"]:
        given = {key: value for key, _, value in (each.partition("=") for each in csv_fields(item))}
        kind = given.pop("type", "")
        if kind not in ("provenance", "sbom"):
            raise InvalidParameter(f"attestation type {kind!r} is neither provenance nor sbom")
        if given.pop("disabled", "false") == "true":
            found.pop(kind, None)
        else:
            found[kind] = ",".join(f"{key}={value}" for key, value in given.items())
    return {f"attest:{kind}": text for kind, text in found.items()}


def _host(item: str) -> str:
    name, separator, address = item.partition("=" if "=" in item else ":")
    if not separator or not address:
        raise InvalidParameter(f'bad format for add-host: "{item}"')
    return f"{name}={address.strip('[]')}"


def _plan_caches(job: Job, options: Mapping[str, Any]) -> None:
    caches = pb.CacheOptions()
    for entry in map(_cache, options["cache_from"]):
        if entry.type != "local" or _found(job.offer.stores, entry.attrs):
            caches.imports.append(entry)
    for entry in map(_cache, options["cache_to"]):
        if entry.type == "local":
            _write_to(job, entry.attrs)
        caches.exports.append(entry)
    job.request.cache = caches


def _found(stores: Stores, attrs: dict[str, str]) -> bool:
    """Offer the cache in a folder, and say which manifest is meant; False where it has none yet."""
    folder = attrs.get("src", "")
    if not folder:
        raise InvalidParameter("local cache importer requires src")
    try:
        wanted = attrs.get("digest") or attrs.get("tag") or "latest"
        attrs["digest"] = stores.read(f"local:{folder}", folder, wanted)
    except SeacanError as error:
        sys.stderr.write(f"WARNING: local cache import at {folder} skipped: {error}\n")
        return False
    return True


def _write_to(job: Job, attrs: dict[str, str]) -> None:
    """Offer a folder for the cache that the build makes."""
    folder = attrs.get("dest", "")
    if not folder:
        raise InvalidParameter("local cache exporter requires dest")
    layout = job.offer.stores.write(f"local:{folder}", folder)
    tag = attrs.get("tag") or "latest"

    def finish(response: Mapping[str, str]) -> None:
        if "cache.manifest" in response:
            described = msgspec.json.decode(response["cache.manifest"], type=Descriptor)
            buildcontent.name(layout, described, [tag])

    job.finish.append(finish)


def _cache(item: str) -> pb.CacheOptionsEntry:
    if "=" not in item:
        return pb.CacheOptionsEntry("registry", {"ref": item})
    given = {key: value for key, _, value in (each.partition("=") for each in csv_fields(item))}
    kind = given.pop("type", "")
    Entry(kind, given).check()
    return pb.CacheOptionsEntry(kind, given)


def _plan_context(job: Job, place: str, dockerfile: str, undo: contextlib.ExitStack) -> None:
    attrs, folders = job.request.frontend_attrs, job.offer.folders
    if place == "-":
        if dockerfile == "-":
            raise InvalidParameter("invalid argument: can't use stdin for both build context and dockerfile")
        source = undo.enter_context(open(0, "rb", closefd=False))  # noqa: SIM115 – as what can be peeked into
        if _is_archive(source.peek(512)):
            id = secrets.token_hex(8)
            job.offer.uploads[id] = source
            attrs["context"] = f"http://buildkit-session/{id}"
            if dockerfile:
                attrs["filename"] = dockerfile
            return
        folders["context"] = undo.enter_context(tempfile.TemporaryDirectory())
        folders["dockerfile"] = _written(source.read(), undo)
        attrs["filename"] = "Dockerfile"
        return
    if place.startswith(_REMOTE):
        attrs["context"] = place
        if dockerfile:
            attrs["filename"] = dockerfile
        return
    if not os.path.isdir(place):
        raise InvalidParameter(f'unable to prepare context: path "{place}" not found')
    folders["context"] = place
    identity = f"{socket.gethostname()}\0{os.path.realpath(place)}"
    job.shared_key = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()
    if dockerfile == "-":
        folders["dockerfile"] = _written(sys.stdin.buffer.read(), undo)
        attrs["filename"] = "Dockerfile"
        return
    path = dockerfile or os.path.join(place, "Dockerfile")
    if dockerfile and not os.path.exists(path):
        path = os.path.join(place, dockerfile)
    folders["dockerfile"], attrs["filename"] = os.path.split(path)
    folders["dockerfile"] = folders["dockerfile"] or "."


def _written(dockerfile: bytes, undo: contextlib.ExitStack) -> str:
    folder = undo.enter_context(tempfile.TemporaryDirectory())
    (Path(folder) / "Dockerfile").write_bytes(dockerfile)
    return folder


def _plan_outputs(job: Job, options: Mapping[str, Any], undo: contextlib.ExitStack) -> None:
    wanted = [output(item) for item in options["output"]]
    if options["push"]:
        wanted = wanted or [{"type": "image"}]
        for each in wanted:
            if each["type"] in ("image", "registry"):
                each["push"] = "true"
    if options["load"] and not any(each["type"] in ("image", "docker") for each in wanted):
        wanted.append({"type": "image"})
    annotations = dict(annotation(item) for item in options["annotation"])
    for number, attrs in enumerate(wanted or [{"type": "image"}]):
        kind, destination = attrs.pop("type"), attrs.pop("dest", "")
        if kind == "registry":
            kind, attrs["push"] = "image", "true"
        if kind in ("image", "docker", "oci"):
            attrs.setdefault("name", ",".join(options["tag"]))
            attrs |= annotations
        if kind == "image" or (kind == "docker" and not destination):
            kind = "moby"
        elif kind in ("docker", "oci") and attrs.get("tar") in ("false", "0"):
            _plan_layout(job, destination)
        elif kind in ("local", "tar", "docker", "oci"):
            _plan_file(job, number, kind, destination, undo)
        elif kind != "cacheonly":
            raise InvalidParameter(f"unknown type of output: {kind}")
        # A folder comes as an archive, and is unpacked here.
        job.request.exporters.append(pb.Exporter("tar" if kind == "local" else kind, attrs))


def _plan_file(job: Job, number: int, kind: str, destination: str, undo: contextlib.ExitStack) -> None:
    key = str(number)
    if kind == "local":
        if not destination or destination == "-":
            raise InvalidParameter("output of type local needs dest=FOLDER")
        spool = undo.enter_context(tempfile.TemporaryFile(dir="/var/tmp"))  # noqa: SIM115
        job.offer.outputs[key] = spool
        job.finish.append(lambda _response: unpack(spool, destination))
        return
    if not destination or destination == "-":
        if sys.stdout.isatty():
            raise InvalidParameter("dest file is required for output to a terminal")
        job.offer.outputs[key] = sys.stdout.buffer
        return
    building = f"{destination}.{os.getpid()}.part"
    job.offer.outputs[key] = undo.enter_context(open(building, "wb"))  # noqa: SIM115
    undo.callback(Path(building).unlink, missing_ok=True)
    job.finish.append(lambda _response: os.replace(building, destination))


def _plan_layout(job: Job, folder: str) -> None:
    """An image as an OCI layout in a folder, rather than an archive of one."""
    if not folder or folder == "-":
        raise InvalidParameter("dest is required for an output with tar=false")
    layout = job.offer.stores.write("export", folder)

    def finish(response: Mapping[str, str]) -> None:
        if "containerimage.descriptor" in response:
            described = msgspec.json.decode(base64.b64decode(response["containerimage.descriptor"]), type=Descriptor)
            names = [name for name in response.get("image.name", "").split(",") if name]
            tags = [references.parse(name).with_default_tag().tag for name in names]
            buildcontent.name(layout, described, tags or ["latest"])

    job.finish.append(finish)


def output(item: str) -> dict[str, str]:
    """``--output``: a folder, ``-`` for a tar on standard output, or ``type=…,dest=…``."""
    if item == "-":
        return {"type": "tar", "dest": "-"}
    if "=" not in item:
        return {"type": "local", "dest": item}
    found = {key.lower(): value for key, _, value in (each.partition("=") for each in csv_fields(item))}
    if not found.get("type"):
        raise InvalidParameter(f"type is required for output: {item}")
    return found


def annotation(item: str) -> tuple[str, str]:
    """``[LEVEL[PLATFORM],…:]KEY=VALUE`` as an exporter's attribute."""
    key, equals, value = item.partition("=")
    if not equals:
        raise InvalidParameter(f"invalid annotation {item!r}, expected key=value")
    level, colon, rest = key.partition(":")
    if colon and level.partition("[")[0] in ("manifest", "manifest-descriptor", "index", "index-descriptor"):
        return f"annotation-{level}.{rest}", value
    return f"annotation.{key}", value


def unpack(spool: IO[bytes], folder: str) -> None:
    """The files of a result into ``folder``, which nothing in them leads out of."""

    def checked(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
        safe = tarfile.tar_filter(member, path)
        if member.ischr() or member.isblk():
            return None
        return safe.replace(mode=member.mode, deep=False)

    spool.seek(0)
    os.makedirs(folder, exist_ok=True)
    with tarfile.open(fileobj=spool) as archive:
        archive.extractall(folder, filter=checked)  # noqa: S202


# --- the conversation ----------------------------------------------------------------------------------------------


async def run(client: Client, job: Job, progress: Progress) -> dict[str, str]:
    """Have it built; gives the exporters' answers, or those to a question. :raises Status: the build failed."""
    session = secrets.token_hex(13)
    methods = job.offer.methods()
    headers: dict[str, str | list[str]] = {
        "X-Docker-Expose-Session-Uuid": session,
        "X-Docker-Expose-Session-Name": "seacan",
        "X-Docker-Expose-Session-Sharedkey": job.shared_key,
        "X-Docker-Expose-Session-Grpc-Method": list(methods),
    }
    reader, writer = await connect(client, "/session", headers)
    served = Connection(reader, writer, client=False, serve=grpc_server(methods))
    reader, writer = await connect(client, "/grpc", {})
    control = Connection(reader, writer, client=True)
    running = [asyncio.create_task(each.run()) for each in (served, control)]
    channel = Channel(control)
    job.request.session = session
    following = asyncio.create_task(_follow(channel, job.request.ref, progress))
    ticking = asyncio.create_task(_tick(progress))
    try:
        if job.call:
            return await _ask(channel, job)
        return (await channel.call(f"{_CONTROL}Solve", job.request, pb.SolveResponse)).exporter_response
    finally:
        await asyncio.wait([following], timeout=5)
        progress.close()
        for task in (ticking, following, *running):
            task.cancel()
        await asyncio.gather(ticking, following, *running, return_exceptions=True)


async def _follow(channel: Channel, ref: str, progress: Progress) -> None:
    talk = await channel.open(f"{_CONTROL}Status")
    async with talk:
        await talk.send(pb.StatusRequest(ref), end=True)
        with contextlib.suppress(Status, ConnectionLost):
            while (data := await talk.next()) is not None:
                progress.take(pb.StatusResponse.decode(data))


async def _tick(progress: Progress) -> None:
    while True:
        await asyncio.sleep(0.1)
        progress.tick()


async def _ask(channel: Channel, job: Job) -> dict[str, str]:
    """Put a question to the front end; gives the answer in its forms."""
    name = {"check": "frontend.lint"}.get(job.call, f"frontend.{job.call}")
    asked = pb.GatewaySolveRequest(
        frontend="dockerfile.v0", frontend_opt={**job.request.frontend_attrs, "requestid": name}
    )
    job.request.frontend, job.request.frontend_attrs = "", {}
    solving = asyncio.create_task(channel.call(f"{_CONTROL}Solve", job.request, pb.SolveResponse))
    metadata = {"buildkit-controlapi-buildid": [job.request.ref]}
    try:
        answer = await channel.call(f"{_BRIDGE}Solve", asked, pb.GatewaySolveResponse, metadata)
        await channel.call(f"{_BRIDGE}Return", pb.ReturnRequest(), pb.Empty, metadata)
        await solving
    finally:
        solving.cancel()
        await asyncio.gather(solving, return_exceptions=True)
    result = answer.result or pb.Result()
    return {key: value.decode("utf-8", "replace") for key, value in result.metadata.items()}


# --- afterwards ----------------------------------------------------------------------------------------------------


def _report(job: Job, response: Mapping[str, str], options: Mapping[str, Any]) -> None:
    if job.call:
        text = response.get("result.txt", "")
        failed = response.get("result.statuscode", "0") != "0"
        problem = json.loads(response.get("result.json") or "{}").get("buildError")
        if problem:
            sys.stdout.write(f"{text.rstrip()}\n" if text else "")
            raise SeacanError(f"ERROR: {problem['message']}")
        sys.stdout.write(
            f"{text.rstrip()}\n" if text else ("Check complete, no warnings found.\n" if job.call == "check" else "")
        )
        if failed:
            raise Exit(1)
        return
    image = response.get("containerimage.config.digest") or response.get("containerimage.digest", "")
    if options["quiet"] and image:
        print(image)
    if options["iidfile"]:
        Path(options["iidfile"]).write_text(image, encoding="ascii")
    if options["metadata_file"]:
        document: dict[str, Any] = {"buildx.build.ref": f"default/default/{job.request.ref}", **response}
        for key, value in response.items():
            if key == "containerimage.descriptor":
                document[key] = json.loads(base64.b64decode(value))
            elif value.startswith("{"):
                document[key] = json.loads(value)
        Path(options["metadata_file"]).write_text(json.dumps(document, indent=2), encoding="utf-8")


def _explanation(progress: Progress, error: Status) -> str:
    """What the failed step has said, and the place in the Dockerfile."""
    text = buildprogress.failure(progress)
    for detail in pb.RPCStatus.decode(error.details).details if error.details else ():
        if not detail.type_url.endswith("errdefs.Source+json"):
            continue
        place = json.loads(detail.value)
        ranges = place.get("ranges") or []
        if ranges:
            source = SourceText(place["info"]["filename"], base64.b64decode(place["info"]["data"]))
            text += source.excerpt(ranges[0]["start"]["line"], ranges[-1]["end"]["line"])
    return text


# --- the classic API -----------------------------------------------------------------------------------------------


def _build_classic(client: Client, place: str, options: dict[str, Any]) -> None:
    for name in ("secret", "ssh", "output", "cache_to", "build_context", "annotation", "attest", "sbom", "push"):
        if options[name]:
            raise InvalidParameter(f"--squash and --{name.replace('_', '-')} do not go together")
    query = build_query(options)
    headers = {"X-Registry-Config": registry_configurations()}
    if place.startswith(_REMOTE):
        query |= {"remote": place, "dockerfile": options["file"]}
        _send(client, query, headers, None, options)
        return
    with _context(place, options["file"]) as (archive, dockerfile):
        _send(client, {**query, "dockerfile": dockerfile}, headers, archive, options)


def build_query(options: dict[str, Any]) -> dict[str, Any]:
    """The flags as the query of ``POST /build``."""
    values = {}
    for item in options["build_arg"]:
        name, equals, value = item.partition("=")
        values[name] = value if equals else os.environ.get(name)
    return {
        "t": options["tag"],
        "q": options["quiet"],
        "nocache": options["no_cache"],
        "rm": "1" if options["rm"] else "0",
        "forcerm": options["force_rm"],
        "pull": options["pull"],
        "squash": options["squash"],
        "target": options["target"],
        "platform": ",".join(options["platform"]),
        "networkmode": options["network"],
        "buildargs": values or None,
        "labels": go.pairs([go.parse_label(item) for item in options["label"]]) or None,
        "cachefrom": json.dumps(options["cache_from"]) if options["cache_from"] else None,
        "extrahosts": options["add_host"],
        "ulimits": json.dumps(options["ulimit"]) if options["ulimit"] else None,
        "shmsize": options["shm_size"] or None,
        "memory": options["memory"] or None,
        "memswap": options["memory_swap"] or None,
        "cpushares": options["cpu_shares"] or None,
        "cpuperiod": options["cpu_period"] or None,
        "cpuquota": options["cpu_quota"] or None,
        "cpusetcpus": options["cpuset_cpus"],
        "cpusetmems": options["cpuset_mems"],
        "cgroupparent": options["cgroup_parent"],
    }


def _send(
    client: Client, query: dict[str, Any], headers: dict[str, str], archive: IO[bytes] | None, options: dict[str, Any]
) -> None:
    image = ""
    said: list[str] = []

    def watched(messages: Iterator[Any]) -> Iterator[Any]:
        nonlocal image
        for message in messages:
            if "aux" in message:
                image = message["aux"].get("ID", image)
                continue
            if options["quiet"] and "stream" in message:
                said.append(message["stream"])
            yield message

    headers = {**headers, "Content-Type": "application/x-tar"}
    with client.request("POST", "/build", query, body=archive, headers=headers) as response:
        show_progress(watched(response.json_lines()), quiet=options["quiet"])
    if options["quiet"]:
        image = image or "".join(said).strip()
        print(image)
    if options["iidfile"]:
        with open(options["iidfile"], "w", encoding="ascii") as file:
            file.write(image)


# --- the context ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _context(place: str, dockerfile: str) -> Iterator[tuple[IO[bytes], str]]:
    """The context as a tar archive, and the name of the Dockerfile in it."""
    if place == "-":
        if dockerfile == "-":
            raise InvalidParameter("invalid argument: can't use stdin for both build context and dockerfile")
        source = open(0, "rb", closefd=False)  # noqa: SIM115 – standard input, as what can be peeked into
        if _is_archive(source.peek(512)):
            yield source, dockerfile
            return
        with tempfile.TemporaryFile(dir="/var/tmp") as spool:
            with tarfile.open(fileobj=spool, mode="w", format=tarfile.PAX_FORMAT) as tar:
                _add_bytes(tar, "Dockerfile", source.read())
            spool.seek(0)
            yield spool, "Dockerfile"
        return
    if not os.path.isdir(place):
        raise InvalidParameter(f"unable to prepare context: path {place!r} not found".replace("'", '"'))
    with tempfile.TemporaryFile(dir="/var/tmp") as spool:
        name = pack(place, dockerfile, spool)
        spool.seek(0)
        yield spool, name


def _is_archive(head: bytes) -> bool:
    compressed = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
    return head.startswith(compressed) or head[257:262] == b"ustar"


def _add_bytes(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    member.mode = 0o600
    tar.addfile(member, io.BytesIO(content))


def pack(folder: str, dockerfile: str, target: IO[bytes]) -> str:
    """Write the context ``folder`` to a tar archive; gives the Dockerfile's name in it.

    A Dockerfile outside the context goes along under a name of its own.
    """
    outside = b""
    name = "Dockerfile"
    if dockerfile == "-":
        outside = sys.stdin.buffer.read()
    elif dockerfile:
        path = dockerfile if os.path.exists(dockerfile) else os.path.join(folder, dockerfile)
        name = os.path.relpath(os.path.realpath(path), os.path.realpath(folder))
        if name == ".." or name.startswith("../"):
            outside = context.read(path)
    elif not os.path.lexists(os.path.join(folder, name)):
        path = os.path.join(folder, name)
        raise InvalidParameter(f"unable to prepare context: unable to evaluate symlinks in Dockerfile path: lstat {path}: no such file or directory")  # fmt: skip # noqa: E501
    if outside or dockerfile == "-":
        name = f".dockerfile.{os.urandom(10).hex()}"
    patterns = [*context.ignored(folder, name), "!.dockerignore", f"!{name}"]
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in context.walk(folder, patterns):
            if stat.S_ISSOCK(os.lstat(os.path.join(folder, path)).st_mode):
                continue  # has no place in an archive
            member = tar.gettarinfo(os.path.join(folder, path), path)
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            if member.isreg():
                with open(os.path.join(folder, path), "rb") as file:
                    tar.addfile(member, file)
            else:
                tar.addfile(member)
        if outside or dockerfile == "-":
            _add_bytes(tar, name, outside)
    return name
