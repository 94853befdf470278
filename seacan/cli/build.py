"""``seacan build``: sends a context to ``POST /build`` and shows what comes of it.

The daemon does the building. What this does is what docker's client does: find the context and its Dockerfile, leave
out what ``.dockerignore`` names, and draw the progress.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import stat
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Any, Final

from seacan.cli import flags as go
from seacan.cli.client import Client
from seacan.cli.command import command, flag, switch
from seacan.cli.create import memory_swap, ulimit
from seacan.cli.image import registry_configurations, show_progress
from seacan.errors import InvalidParameter

_REMOTE: Final = ("http://", "https://", "git://", "git@", "github.com/", "ssh://")


@command("build", "PATH | URL | -", exactly=1)
@flag("add-host", "Add a custom host-to-IP mapping (host:ip)", many=True)
@flag("build-arg", "Set build-time variables", many=True)
@flag("cache-from", "Images to consider as cache sources", many=True)
@flag("cgroup-parent", "Set the parent cgroup for the RUN instructions during build", default="")
@flag("cpu-period", "Limit the CPU CFS (Completely Fair Scheduler) period", kind="int", default=0)
@flag("cpu-quota", "Limit the CPU CFS (Completely Fair Scheduler) quota", kind="int", default=0)
@flag("cpu-shares", "CPU shares (relative weight)", short="c", kind="int", default=0)
@flag("cpuset-cpus", "CPUs in which to allow execution (0-3, 0,1)", default="")
@flag("cpuset-mems", "MEMs in which to allow execution (0-3, 0,1)", default="")
@flag("file", 'Name of the Dockerfile (default "PATH/Dockerfile")', short="f", default="")
@switch("force-rm", "Always remove intermediate containers")
@flag("iidfile", "Write the image ID to the file", default="")
@flag("label", "Set metadata for an image", many=True)
@flag("memory", "Memory limit", short="m", kind="bytes", default=0)
@flag("memory-swap", "Swap limit equal to memory plus swap: -1 to enable unlimited swap", kind=memory_swap, default=0)
@flag("network", "Set the networking mode for the RUN instructions during build", default="default")
@switch("no-cache", "Do not use cache when building the image")
@flag("platform", "Set platform if server is multi-platform capable", default="")
@switch("pull", "Always attempt to pull a newer version of the image")
@switch("quiet", "Suppress the build output and print image ID on success", short="q")
@switch("rm", "Remove intermediate containers after a successful build", default=True)
@flag("shm-size", "Size of /dev/shm", kind="bytes", default=0)
@switch("squash", "Squash newly built layers into a single new layer")
@flag("tag", 'Name and optionally a tag in the "name:tag" format', short="t", many=True)
@flag("target", "Set the target build stage to build", default="")
@flag("ulimit", "Ulimit options", kind=ulimit, many=True)
def build(client: Client, arguments: list[str], **options: Any) -> None:
    """Build an image from a Dockerfile"""
    query = build_query(options)
    headers = {"X-Registry-Config": registry_configurations()}
    if arguments[0].startswith(_REMOTE):
        query |= {"remote": arguments[0], "dockerfile": options["file"]}
        _send(client, query, headers, None, options)
        return
    with _context(arguments[0], options["file"]) as (context, dockerfile):
        _send(client, {**query, "dockerfile": dockerfile}, headers, context, options)


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
        "platform": options["platform"],
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
    client: Client, query: dict[str, Any], headers: dict[str, str], context: IO[bytes] | None, options: dict[str, Any]
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
    with client.request("POST", "/build", query, body=context, headers=headers) as response:
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
    from seacan.build.ignore import Matcher

    outside = b""
    name = "Dockerfile"
    if dockerfile == "-":
        outside = sys.stdin.buffer.read()
    elif dockerfile:
        path = dockerfile if os.path.exists(dockerfile) else os.path.join(folder, dockerfile)
        name = os.path.relpath(os.path.realpath(path), os.path.realpath(folder))
        if name == ".." or name.startswith("../"):
            outside = _read(path)
    elif not os.path.lexists(os.path.join(folder, name)):
        path = os.path.join(folder, name)
        raise InvalidParameter(f"unable to prepare context: unable to evaluate symlinks in Dockerfile path: lstat {path}: no such file or directory")  # fmt: skip # noqa: E501
    if outside or dockerfile == "-":
        name = f".dockerfile.{os.urandom(10).hex()}"
    patterns = [*_ignored(folder, name), "!.dockerignore", f"!{name}"]
    matcher = Matcher(patterns)
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in _walk(folder, "", matcher):
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


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise InvalidParameter(f"unable to prepare context: {path}: {(error.strerror or str(error)).lower()}") from None


def _ignored(folder: str, dockerfile: str) -> list[str]:
    from seacan.build.ignore import read_ignore_file

    for name in (f"{dockerfile}.dockerignore", ".dockerignore"):
        path = os.path.join(folder, name)
        if os.path.exists(path):
            return read_ignore_file(_read(path))
    return []


def _walk(folder: str, below: str, matcher: Any) -> Iterator[str]:
    """Paths of the context that are not ignored, parents first, in order."""
    entries: Sequence[os.DirEntry[str]] = sorted(os.scandir(os.path.join(folder, below)), key=lambda entry: entry.name)
    for entry in entries:
        path = f"{below}/{entry.name}" if below else entry.name
        ignored = matcher.matches(path)
        if not ignored:
            yield path
        if entry.is_dir(follow_symlinks=False) and (not ignored or matcher.may_return_below(path)):
            yield from _walk(folder, path, matcher)
