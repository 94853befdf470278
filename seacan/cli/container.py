"""``seacan container``: the verbs of containers that are one request each, and their tables.

``run``, ``create``, ``start``, ``attach`` and ``exec`` are in :mod:`seacan.cli.run`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from seacan.cli.client import APIError, Client
from seacan.cli.command import Exit, Group, UsageError, command, each, filters, flag, given, switch, warn
from seacan.cli.output import (
    ago,
    binary_size,
    ellipsis,
    human_size,
    local_time,
    short_id,
    tabulate,
    write_inspect,
    write_rows,
)
from seacan.engine.frames import Demultiplexer
from seacan.errors import InvalidParameter

Fetched = Mapping[str, Any]

# --- ps ------------------------------------------------------------------------------------------------------------

_PS_HEADERS: Final = {
    "ID": "CONTAINER ID",
    "Names": "NAMES",
    "Image": "IMAGE",
    "Command": "COMMAND",
    "CreatedAt": "CREATED AT",
    "RunningFor": "CREATED",
    "Ports": "PORTS",
    "State": "STATE",
    "Status": "STATUS",
    "Size": "SIZE",
    "Labels": "LABELS",
    "Mounts": "MOUNTS",
    "LocalVolumes": "LOCAL VOLUMES",
    "Networks": "NETWORKS",
    "Platform": "PLATFORM",
}
_PS_TABLE: Final = r"table {{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}"


def ps_row(item: Fetched, *, truncate: bool) -> dict[str, Any]:
    """A container of ``GET /containers/json`` as docker's ``ps`` shows it."""
    names = [name.removeprefix("/") for name in item.get("Names") or []]
    if truncate:
        names = [name for name in names if "/" not in name][:1] or names
    labels = item.get("Labels") or {}
    mounts = [mount.get("Name") or mount.get("Source", "") for mount in item.get("Mounts") or []]
    line = item.get("Command", "")
    size = human_size(item.get("SizeRw") or 0)
    if item.get("SizeRootFs"):
        size = f"{size} (virtual {human_size(item['SizeRootFs'])})"
    return {
        "ID": item["Id"][:12] if truncate else item["Id"],
        "Names": ",".join(names),
        "Image": _image_name(item, truncate),
        "Command": json.dumps(ellipsis(line, 20) if truncate else line, ensure_ascii=False),
        "CreatedAt": local_time(item["Created"]),
        "RunningFor": ago(item["Created"]),
        "Ports": ports_text(item.get("Ports") or []),
        "State": item.get("State", ""),
        "Status": item.get("Status", ""),
        "Size": size,
        "Labels": ",".join(sorted(f"{key}={value}" for key, value in labels.items())),
        "Label": lambda name: labels.get(name, ""),
        "Mounts": ",".join(ellipsis(mount, 15) if truncate else mount for mount in mounts),
        "LocalVolumes": str(sum(mount.get("Driver") == "local" for mount in item.get("Mounts") or [])),
        "Networks": ",".join((item.get("NetworkSettings") or {}).get("Networks") or {}),
        "Platform": None,
    }


def _image_name(item: Fetched, truncate: bool) -> str:
    image: str = item.get("Image") or "<no image>"
    if not truncate:
        return image
    if short_id(item.get("ImageID", "")) == short_id(image):
        return short_id(image)
    name, at, _ = image.partition("@")
    return name if at else image


def ports_text(ports: Sequence[Fetched]) -> str:
    """``0.0.0.0:80->80/tcp, 9000-9002/tcp``: neighbours joined, published ones first where they map to themselves."""

    def joined(ip: str, port: str) -> str:
        return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"

    def order(port: Fetched) -> tuple[int, str, int, str]:
        return port["PrivatePort"], port.get("IP", ""), port.get("PublicPort", 0), port["Type"]

    groups: dict[tuple[str, str], list[int]] = {}
    shown: list[str] = []
    mapped: list[str] = []

    def text(key: tuple[str, str], first: int, last: int) -> str:
        span = str(first) if first == last else f"{first}-{last}"
        return f"{joined(key[0], span)}->{span}/{key[1]}" if key[0] else f"{span}/{key[1]}"

    for port in sorted(ports, key=order):
        ip, private, kind = port.get("IP", ""), port["PrivatePort"], port["Type"]
        if ip and port.get("PublicPort") != private:
            mapped.append(f"{joined(ip, str(port.get('PublicPort')))}->{private}/{kind}")
            continue
        group = groups.get((ip, kind))
        if group is None:
            groups[ip, kind] = [private, private]
        elif private == group[1] + 1:
            group[1] = private
        else:
            shown.append(text((ip, kind), *group))
            groups[ip, kind] = [private, private]
    shown += [text(key, first, last) for key, (first, last) in groups.items()]
    return ", ".join(shown + mapped)


def _ps(
    client: Client,
    arguments: list[str],
    *,
    all: bool,
    filter: list[str],
    format: str,
    last: int,
    latest: bool,
    no_trunc: bool,
    quiet: bool,
    size: bool,
) -> None:
    """List containers"""
    if latest and last == -1:
        last = 1
    wants_size = size or ".Size" in format
    items = client.get(
        "/containers/json", all=all, filters=filters(filter), limit=last if last > 0 else None, size=wants_size
    )
    table = _PS_TABLE + (r"\t{{.Size}}" if size else "")
    rows = [ps_row(item, truncate=not no_trunc) for item in items]
    write_rows(rows, format, table, _PS_HEADERS, quiet="{{.ID}}", is_quiet=quiet)


_PS_FLAGS = (
    switch("all", "Show all containers (default shows just running)", short="a"),
    flag("filter", "Filter output based on conditions provided", short="f", many=True),
    flag("format", "Format output using a custom template", default=""),
    flag("last", "Show n last created containers (includes all states)", short="n", kind="int", default=-1),
    switch("latest", "Show the latest created container (includes all states)", short="l"),
    switch("no-trunc", "Don't truncate output"),
    switch("quiet", "Only display container IDs", short="q"),
    switch("size", "Display total file sizes", short="s"),
)
for _declare in reversed(_PS_FLAGS):
    _declare(_ps)
ps = command("ps", exactly=0)(_ps)
ls = command("ls", exactly=0)(_ps)


# --- verbs over several containers ---------------------------------------------------------------------------------


def _verb(name: str, path: str, help: str) -> Any:
    def act(client: Client, arguments: list[str]) -> None:
        def one(container: str) -> str:
            client.post(f"/containers/{container}/{path}")
            return container

        each(arguments, one)

    act.__doc__ = help
    return command(name, "CONTAINER [CONTAINER...]", least=1, complete="running")(act)


pause = _verb("pause", "pause", "Pause all processes within one or more containers")
unpause = _verb("unpause", "unpause", "Unpause all processes within one or more containers")


def _stopping(name: str, path: str, help: str) -> Any:
    @flag("signal", "Signal to send to the container", short="s", default="")
    @flag("timeout", "Seconds to wait before killing the container", short="t", kind="int")
    @flag("time", "Seconds to wait before killing the container", kind="int", hidden=True)
    def act(client: Client, arguments: list[str], *, signal: str, timeout: int | None, time: int | None) -> None:
        if timeout is not None and time is not None:
            raise InvalidParameter("conflicting options: cannot specify both --timeout and --time")

        def one(container: str) -> str:
            client.post(f"/containers/{container}/{path}", t=timeout if time is None else time, signal=signal)
            return container

        each(arguments, one)

    act.__doc__ = help
    return command(name, "CONTAINER [CONTAINER...]", least=1, complete="running")(act)


stop = _stopping("stop", "stop", "Stop one or more running containers")
restart = _stopping("restart", "restart", "Restart one or more containers")


@command("kill", "CONTAINER [CONTAINER...]", least=1, complete="running")
@flag("signal", "Signal to send to the container", short="s", default="")
def kill(client: Client, arguments: list[str], *, signal: str) -> None:
    """Kill one or more running containers"""

    def one(container: str) -> str:
        client.post(f"/containers/{container}/kill", signal=signal or "KILL")
        return container

    each(arguments, one)


@command("rm", "CONTAINER [CONTAINER...]", least=1, complete="container")
@switch("force", "Force the removal of a running container (uses SIGKILL)", short="f")
@switch("link", "Remove the specified link", short="l")
@switch("volumes", "Remove anonymous volumes associated with the container", short="v")
def rm(client: Client, arguments: list[str], *, force: bool, link: bool, volumes: bool) -> None:
    """Remove one or more containers"""

    def one(container: str) -> str:
        try:
            client.delete(f"/containers/{container.strip('/')}", force=force, link=link, v=volumes)
        except APIError as error:
            if not (force and error.status == 404):
                raise
            warn(f"Error response from daemon: {error.message}")
            return ""
        return container

    each(arguments, one)


@command("wait", "CONTAINER [CONTAINER...]", least=1, complete="running")
def wait(client: Client, arguments: list[str]) -> None:
    """Block until one or more containers stop, then print their exit codes"""
    each(arguments, lambda container: str(client.post(f"/containers/{container}/wait")["StatusCode"]))


@command("rename", "CONTAINER NEW_NAME", exactly=2, complete="container")
def rename(client: Client, arguments: list[str]) -> None:
    """Rename a container"""
    client.post(f"/containers/{arguments[0]}/rename", name=arguments[1])


# --- looking -------------------------------------------------------------------------------------------------------


@command("logs", "CONTAINER", exactly=1, complete="container")
@switch("details", "Show extra details provided to logs")
@switch("follow", "Follow log output", short="f")
@flag("since", 'Show logs since timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m")', default="")
@flag("tail", "Number of lines to show from the end of the logs", short="n", default="all")
@switch("timestamps", "Show timestamps", short="t")
@flag("until", "Show logs before a timestamp or relative (e.g. 42m)", default="")
def logs(
    client: Client,
    arguments: list[str],
    *,
    details: bool,
    follow: bool,
    since: str,
    tail: str,
    timestamps: bool,
    until: str,
) -> None:
    """Fetch the logs of a container"""
    terminal = client.get(f"/containers/{arguments[0]}/json")["Config"]["Tty"]
    query = {
        "stdout": True,
        "stderr": True,
        "details": details,
        "follow": follow,
        "since": timestamp(since),
        "tail": tail,
        "timestamps": timestamps,
        "until": timestamp(until),
    }
    out, err = sys.stdout.buffer, sys.stderr.buffer
    demultiplexer = Demultiplexer()
    with client.request("GET", f"/containers/{arguments[0]}/logs", query) as response:
        for chunk in response.chunks():
            for stream, payload in [(1, chunk)] if terminal else demultiplexer.feed(chunk):
                (err if stream == 2 else out).write(payload)
            out.flush()
            err.flush()


def timestamp(text: str) -> str:
    """A time as the API takes it: seconds since 1970 as they are, a duration as that long ago, RFC 3339."""
    import re
    import time

    if not text or re.fullmatch(r"\d+(\.\d+)?", text):
        return text
    from seacan.cli.flags import parse_duration

    try:
        return f"{time.time() - parse_duration(text) / 1e9:.9f}"
    except InvalidParameter:
        pass
    from datetime import datetime

    try:
        return f"{datetime.fromisoformat(text).timestamp():.9f}"
    except ValueError:
        raise InvalidParameter(
            f'invalid value for "since": failed to parse value as time or duration: {text!r}'
        ) from None


@command("inspect", "CONTAINER [CONTAINER...]", least=1, complete="container")
@flag("format", "Format output using a custom template", short="f", default="")
@switch("size", "Display total file sizes", short="s")
def inspect(client: Client, arguments: list[str], *, format: str, size: bool) -> None:
    """Display detailed information on one or more containers"""
    inspect_all(arguments, lambda name: client.get(f"/containers/{name}/json", size=size), format)


def inspect_all(names: Sequence[str], fetch: Callable[[str], Any], form: str) -> None:
    """Print what is found, then say what is not."""
    found, missing = [], []
    for name in names:
        try:
            found.append(fetch(name))
        except APIError as error:
            missing.append(error.message)
    write_inspect(found, form) if found or not form else None
    for message in missing:
        warn(f"Error response from daemon: {message}")
    if missing:
        raise Exit(1)


@command("top", "CONTAINER [ps OPTIONS]", least=1, interspersed=False, complete="running")
def top(client: Client, arguments: list[str]) -> None:
    """Display the running processes of a container"""
    answer = client.get(f"/containers/{arguments[0]}/top", ps_args=" ".join(arguments[1:]))
    sys.stdout.write(tabulate([answer["Titles"], *(answer["Processes"] or [])], least=20))


@command("port", "CONTAINER [PRIVATE_PORT[/PROTO]]", least=1, complete="running")
def port(client: Client, arguments: list[str]) -> None:
    """List port mappings or a specific mapping for the container

    While it runs, ports can be published and withdrawn:

    seacan port add CONTAINER [[IP:]HOST_PORT:]PORT[/PROTO]...

    seacan port rm CONTAINER PORT[/PROTO]...
    """
    if len(arguments) > 2:
        verbs = {"add": _add_ports, "rm": _remove_ports}
        if arguments[0] not in verbs:
            raise UsageError("'seacan port' requires at most 2 arguments, or the verb add or rm first")
        verbs[arguments[0]](client, arguments[1], arguments[2:])
        return
    published = client.get(f"/containers/{arguments[0]}/json")["NetworkSettings"]["Ports"] or {}

    def address(binding: Fetched) -> str:
        ip = binding.get("HostIp", "")
        return f"[{ip}]:{binding['HostPort']}" if ":" in ip else f"{ip}:{binding['HostPort']}"

    if len(arguments) == 2:
        wanted = arguments[1] if "/" in arguments[1] else f"{arguments[1]}/tcp"
        if not published.get(wanted):
            raise InvalidParameter(f"no public port '{wanted}' published for {arguments[0]}")
        for binding in published[wanted]:
            print(address(binding))
        return
    for private in sorted(published, key=lambda name: (int(name.partition("/")[0]), name)):
        for binding in published[private] or []:
            print(f"{private} -> {address(binding)}")


def _add_ports(client: Client, container: str, specs: Sequence[str]) -> None:
    from seacan.cli.create import publish

    _, bindings = publish(specs)
    for item in client.post(f"/seacan/containers/{container}/ports", {"PortBindings": bindings})["Ports"]:
        host = f"[{item['HostIp']}]" if ":" in item["HostIp"] else item["HostIp"]
        print(f"{item['Port']} -> {host}:{item['HostPort']}")


def _remove_ports(client: Client, container: str, specs: Sequence[str]) -> None:
    each(specs, lambda spec: client.delete(f"/seacan/containers/{container}/ports", port=spec))


@command("diff", "CONTAINER", exactly=1, complete="container")
@flag("format", "Format output using a custom template", default="")
def diff(client: Client, arguments: list[str], *, format: str) -> None:
    """Inspect changes to files or directories on a container's filesystem"""
    rows = [{"Type": "CAD"[change["Kind"]], "Path": change["Path"]}
            for change in client.get(f"/containers/{arguments[0]}/changes") or []]  # fmt: skip
    write_rows(
        rows, format or "{{.Type}} {{.Path}}", "table {{.Type}}\t{{.Path}}", {"Type": "CHANGE TYPE", "Path": "PATH"}
    )


# --- stats ---------------------------------------------------------------------------------------------------------

_STATS_HEADERS: Final = {
    "Container": "CONTAINER",
    "Name": "NAME",
    "ID": "CONTAINER ID",
    "CPUPerc": "CPU %",
    "MemUsage": "MEM USAGE / LIMIT",
    "MemPerc": "MEM %",
    "NetIO": "NET I/O",
    "BlockIO": "BLOCK I/O",
    "PIDs": "PIDS",
}
_STATS_TABLE: Final = (
    r"table {{.ID}}\t{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}\t{{.BlockIO}}\t{{.PIDs}}"
)


def stats_row(container: str, sample: Fetched | None, *, truncate: bool) -> dict[str, Any]:
    """One sample of ``GET /containers/{id}/stats`` as ``docker stats`` shows it; None: no sample could be had."""
    if sample is None or not sample.get("memory_stats", {}).get("usage"):
        empty = dict.fromkeys(("CPUPerc", "MemPerc", "NetIO", "BlockIO", "PIDs"), "--")
        name = ((sample or {}).get("name") or "").removeprefix("/") or "--"
        identifier = (sample or {}).get("id") or container
        short = identifier[:12] if truncate else identifier
        return {"Container": container, "Name": name, "ID": short, "MemUsage": "-- / --", **empty}
    now, before = sample["cpu_stats"], sample.get("precpu_stats") or {}
    used = now["cpu_usage"]["total_usage"] - before.get("cpu_usage", {}).get("total_usage", 0)
    passed = now.get("system_cpu_usage", 0) - before.get("system_cpu_usage", 0)
    processors = now.get("online_cpus") or len(now["cpu_usage"].get("percpu_usage") or []) or 1
    percent = used / passed * processors * 100 if passed > 0 and used > 0 else 0.0
    memory = sample["memory_stats"]
    # What the kernel can take back at once is not the container's use.
    details = memory.get("stats") or {}
    cache = details.get("total_inactive_file", details.get("inactive_file", 0))
    usage = memory["usage"] - cache if cache < memory["usage"] else memory["usage"]
    limit = memory.get("limit", 0)
    networks = (sample.get("networks") or {}).values()
    blocks = (sample.get("blkio_stats") or {}).get("io_service_bytes_recursive") or []
    read, written = (
        sum(entry["value"] for entry in blocks if entry["op"].lower() == operation) for operation in ("read", "write")
    )
    received, sent = (sum(network[name] for network in networks) for name in ("rx_bytes", "tx_bytes"))
    identifier = sample.get("id") or container
    return {
        "Container": container,
        "Name": (sample.get("name") or "").removeprefix("/"),
        "ID": identifier[:12] if truncate else identifier,
        "CPUPerc": f"{percent:.2f}%",
        "MemUsage": f"{binary_size(usage)} / {binary_size(limit)}",
        "MemPerc": f"{usage / limit * 100 if limit else 0:.2f}%",
        "NetIO": f"{human_size(received)} / {human_size(sent)}",
        "BlockIO": f"{human_size(read)} / {human_size(written)}",
        "PIDs": str((sample.get("pids_stats") or {}).get("current", 0)),
    }


@command("stats", "[CONTAINER...]", complete="running")
@switch("all", "Show all containers (default shows just running)", short="a")
@flag("format", "Format output using a custom template", default="")
@switch("no-stream", "Disable streaming stats and only pull the first result")
@switch("no-trunc", "Do not truncate output")
def stats(client: Client, arguments: list[str], *, all: bool, format: str, no_stream: bool, no_trunc: bool) -> None:
    """Display a live stream of container(s) resource usage statistics"""
    from concurrent.futures import ThreadPoolExecutor

    def sample(name: str) -> Fetched | None:
        try:
            found: Fetched = client.get(f"/containers/{name}/stats", stream="0")
            return found
        except APIError as error:
            if error.status != 404 or name in arguments:
                raise
            return None

    live = not no_stream and sys.stdout.isatty()
    with ThreadPoolExecutor(max_workers=16) as threads:
        while True:
            names = arguments or [item["Id"] for item in client.get("/containers/json", all=all)]
            samples = list(threads.map(sample, names))
            rows = [stats_row(name, one, truncate=not no_trunc) for name, one in zip(names, samples, strict=True)]
            if live:
                sys.stdout.write("\x1b[2J\x1b[H")
            write_rows(rows, format, _STATS_TABLE, _STATS_HEADERS)
            sys.stdout.flush()
            if no_stream:
                return


# --- changing ------------------------------------------------------------------------------------------------------


@command("update", "CONTAINER [CONTAINER...]", least=1, complete="container")
@flag("blkio-weight", "Block IO (relative weight), between 10 and 1000, or 0 to disable", kind="int", default=0)
@flag("cpu-period", "Limit CPU CFS (Completely Fair Scheduler) period", kind="int", default=0)
@flag("cpu-quota", "Limit CPU CFS (Completely Fair Scheduler) quota", kind="int", default=0)
@flag("cpu-rt-period", "Limit the CPU real-time period in microseconds", kind="int", default=0)
@flag("cpu-rt-runtime", "Limit the CPU real-time runtime in microseconds", kind="int", default=0)
@flag("cpu-shares", "CPU shares (relative weight)", short="c", kind="int", default=0)
@flag("cpus", "Number of CPUs", default="")
@flag("cpuset-cpus", "CPUs in which to allow execution (0-3, 0,1)", default="")
@flag("cpuset-mems", "MEMs in which to allow execution (0-3, 0,1)", default="")
@flag("memory", "Memory limit", short="m", kind="bytes", default=0)
@flag("memory-reservation", "Memory soft limit", kind="bytes", default=0)
@flag("memory-swap", "Swap limit equal to memory plus swap: -1 to enable unlimited swap", default="")
@flag("pids-limit", "Tune container pids limit (set -1 for unlimited)", kind="int", default=0)
@flag("restart", "Restart policy to apply when a container exits", default="")
def update(client: Client, arguments: list[str], **options: Any) -> None:
    """Update configuration of one or more containers"""
    from seacan.cli import create

    if not given():
        raise UsageError("you must provide one or more flags when using this command")
    body: dict[str, Any] = {
        "BlkioWeight": options["blkio_weight"],
        "CpuPeriod": options["cpu_period"],
        "CpuQuota": options["cpu_quota"],
        "CpuRealtimePeriod": options["cpu_rt_period"],
        "CpuRealtimeRuntime": options["cpu_rt_runtime"],
        "CpuShares": options["cpu_shares"],
        "CpusetCpus": options["cpuset_cpus"],
        "CpusetMems": options["cpuset_mems"],
        "Memory": options["memory"],
        "MemoryReservation": options["memory_reservation"],
        "NanoCpus": create.nano_cpus(options["cpus"]) if options["cpus"] else 0,
        "MemorySwap": create.memory_swap(options["memory_swap"]) if options["memory_swap"] else 0,
        "RestartPolicy": create.restart_policy(options["restart"]),
    }
    if options["pids_limit"]:
        body["PidsLimit"] = options["pids_limit"]

    def one(container: str) -> str:
        answer = client.post(f"/containers/{container}/update", body)
        for warning in (answer or {}).get("Warnings") or []:
            warn(warning)
        return container

    each(arguments, one)


@command("commit", "CONTAINER [REPOSITORY[:TAG]]", least=1, most=2, complete="container")
@flag("author", 'Author (e.g., "John Hannibal Smith <hannibal@a-team.com>")', short="a", default="")
@flag("change", "Apply Dockerfile instruction to the created image", short="c", many=True)
@flag("message", "Commit message", short="m", default="")
@switch("pause", "Pause container during commit", short="p", default=True)
def commit(client: Client, arguments: list[str], *, author: str, change: list[str], message: str, pause: bool) -> None:
    """Create a new image from a container's changes"""
    from seacan.cli.image import split_reference

    repository, tag = split_reference(arguments[1]) if len(arguments) == 2 else ("", "")
    answer = client.post(
        "/commit",
        {},
        container=arguments[0],
        repo=repository,
        tag=tag,
        author=author,
        comment=message,
        changes=change,
        pause="1" if pause else "0",
    )
    print(answer["Id"])


@command("export", "CONTAINER", exactly=1, complete="container")
@flag("output", "Write to a file, instead of STDOUT", short="o", default="")
def export(client: Client, arguments: list[str], *, output: str) -> None:
    """Export a container's filesystem as a tar archive"""
    with client.request("GET", f"/containers/{arguments[0]}/export") as response:
        save_stream(response.chunks(), output, "cowardly refusing to save to a terminal. Use the -o flag or redirect")


def save_stream(chunks: Any, output: str, refusal: str) -> None:
    """Write a download to a file (complete or not at all) or to standard output (never to a terminal)."""
    if not output or output == "-":
        if sys.stdout.isatty():
            raise InvalidParameter(refusal)
        for chunk in chunks:
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
        return
    temporary = f"{output}.{os.getpid()}.part"
    try:
        with open(temporary, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
        os.replace(temporary, output)
    except OSError as error:
        raise InvalidParameter(f"failed to write {output}: {error.strerror or error}") from None
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


@command("prune", exactly=0)
@flag("filter", 'Provide filter values (e.g. "until=<timestamp>")', many=True)
@switch("force", "Do not prompt for confirmation", short="f")
def prune(client: Client, arguments: list[str], *, filter: list[str], force: bool) -> None:
    """Remove all stopped containers"""
    confirm("WARNING! This will remove all stopped containers.", force)
    report_prune(client.post("/containers/prune", filters=filters(filter)), "ContainersDeleted", "Deleted Containers:")


def confirm(warning: str, force: bool) -> None:
    """Ask before something is deleted; without a yes, nothing happens (exit 0, as docker)."""
    if force:
        return
    print(f"{warning}\nAre you sure you want to continue? [y/N] ", end="", flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Exit(0)


def report_prune(answer: Fetched, key: str, title: str) -> None:
    deleted = answer.get(key) or []
    if deleted:
        print(title, *deleted, sep="\n", end="\n\n")
    print(f"Total reclaimed space: {human_size(answer.get('SpaceReclaimed') or 0)}")


# --- the noun ------------------------------------------------------------------------------------------------------

_HERE, _RUN, _COPY = "seacan.cli.container", "seacan.cli.run", "seacan.cli.copy"
VERBS: Final[Mapping[str, tuple[str, str]]] = {
    "attach": (f"{_RUN}:attach", "Attach local standard input, output, and error streams to a running container"),
    "commit": (f"{_HERE}:commit", "Create a new image from a container's changes"),
    "cp": (f"{_COPY}:cp", "Copy files/folders between a container and the local filesystem"),
    "create": (f"{_RUN}:create", "Create a new container"),
    "diff": (f"{_HERE}:diff", "Inspect changes to files or directories on a container's filesystem"),
    "exec": (f"{_RUN}:exec_", "Execute a command in a running container"),
    "export": (f"{_HERE}:export", "Export a container's filesystem as a tar archive"),
    "inspect": (f"{_HERE}:inspect", "Display detailed information on one or more containers"),
    "kill": (f"{_HERE}:kill", "Kill one or more running containers"),
    "logs": (f"{_HERE}:logs", "Fetch the logs of a container"),
    "ls": (f"{_HERE}:ls", "List containers"),
    "pause": (f"{_HERE}:pause", "Pause all processes within one or more containers"),
    "port": (f"{_HERE}:port", "List port mappings or a specific mapping for the container"),
    "prune": (f"{_HERE}:prune", "Remove all stopped containers"),
    "rename": (f"{_HERE}:rename", "Rename a container"),
    "restart": (f"{_HERE}:restart", "Restart one or more containers"),
    "rm": (f"{_HERE}:rm", "Remove one or more containers"),
    "run": (f"{_RUN}:run", "Create and run a new container from an image"),
    "start": (f"{_RUN}:start", "Start one or more stopped containers"),
    "stats": (f"{_HERE}:stats", "Display a live stream of container(s) resource usage statistics"),
    "stop": (f"{_HERE}:stop", "Stop one or more running containers"),
    "top": (f"{_HERE}:top", "Display the running processes of a container"),
    "unpause": (f"{_HERE}:unpause", "Unpause all processes within one or more containers"),
    "update": (f"{_HERE}:update", "Update configuration of one or more containers"),
    "wait": (f"{_HERE}:wait", "Block until one or more containers stop, then print their exit codes"),
}
group = Group("container", "Manage containers", VERBS)
