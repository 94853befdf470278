"""The flags of ``run`` and ``create``, and the API request they make.

The rules are docker's: what a flag means is in its reference (https://docs.docker.com/reference/cli/docker/container/run/).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from seacan.cli import flags as go
from seacan.cli.command import flag, switch
from seacan.errors import InvalidParameter

Body = dict[str, Any]


def _weight(text: str) -> tuple[str, int]:
    path, _, number = text.rpartition(":")
    if not path.startswith("/dev/"):
        raise InvalidParameter(f"bad format: {text}" if not path else f"bad format for device path: {text}")
    if not number.isdecimal() or (int(number) and not 10 <= int(number) <= 1000):
        raise InvalidParameter(f"invalid weight for device: {text}")
    return path, int(number)


def _rate(text: str) -> tuple[str, int]:
    path, _, number = text.rpartition(":")
    if not path.startswith("/dev/"):
        raise InvalidParameter(f"bad format: {text}" if not path else f"bad format for device path: {text}")
    try:
        return path, go.parse_bytes(number)
    except InvalidParameter:
        raise InvalidParameter(
            f"invalid rate for device: {text}. The correct format is <device-path>:<number>[<unit>]. "
            "Number must be a positive integer. Unit is optional and can be kb, mb, or gb"
        ) from None


def _iops(text: str) -> tuple[str, int]:
    path, _, number = text.rpartition(":")
    if not path.startswith("/dev/"):
        raise InvalidParameter(f"bad format: {text}" if not path else f"bad format for device path: {text}")
    if not number.isdecimal():
        raise InvalidParameter(
            f"invalid rate for device: {text}. The correct format is <device-path>:<number>. "
            "Number must be a positive integer"
        )
    return path, int(number)


def nano_cpus(text: str) -> int:
    from fractions import Fraction

    try:
        nano = Fraction(text) * 10**9
    except (ValueError, ZeroDivisionError):
        raise InvalidParameter(f"failed to parse {text} as a rational number") from None
    if nano.denominator != 1:
        raise InvalidParameter("value is too precise")
    return int(nano)


def memory_swap(text: str) -> int:
    return -1 if text == "-1" else go.parse_bytes(text)


def ulimit(text: str) -> Body:
    name, soft, hard = go.parse_ulimit(text)
    return {"Name": name, "Soft": soft, "Hard": hard}


_FLAGS: Final[Sequence[Callable[[Callable[..., Any]], Callable[..., Any]]]] = (
    flag("add-host", "Add a custom host-to-IP mapping (host:ip)", many=True),
    flag("annotation", "Add an annotation to the container (passed through to the OCI runtime)", many=True),
    flag("attach", "Attach to STDIN, STDOUT or STDERR", short="a", many=True, choices=("stdin", "stdout", "stderr")),
    flag("blkio-weight", "Block IO (relative weight), between 10 and 1000, or 0 to disable", kind="int", default=0),
    flag("blkio-weight-device", "Block IO weight (relative device weight)", kind=_weight, many=True),
    flag("cap-add", "Add Linux capabilities", many=True),
    flag("cap-drop", "Drop Linux capabilities", many=True),
    flag("cgroup-parent", "Optional parent cgroup for the container", default=""),
    flag("cgroupns", "Cgroup namespace to use (host|private)", default="", choices=("host", "private")),
    flag("cidfile", "Write the container ID to the file", default=""),
    flag("cpu-period", "Limit CPU CFS (Completely Fair Scheduler) period", kind="int", default=0),
    flag("cpu-quota", "Limit CPU CFS (Completely Fair Scheduler) quota", kind="int", default=0),
    flag("cpu-rt-period", "Limit CPU real-time period in microseconds", kind="int", default=0),
    flag("cpu-rt-runtime", "Limit CPU real-time runtime in microseconds", kind="int", default=0),
    flag("cpu-shares", "CPU shares (relative weight)", short="c", kind="int", default=0),
    flag("cpus", "Number of CPUs", kind=nano_cpus, default=0, metavar="decimal"),
    flag("cpuset-cpus", "CPUs in which to allow execution (0-3, 0,1)", default=""),
    flag("cpuset-mems", "MEMs in which to allow execution (0-3, 0,1)", default=""),
    flag("device", "Add a host device to the container", many=True),
    flag("device-cgroup-rule", "Add a rule to the cgroup allowed devices list", many=True),
    flag("device-read-bps", "Limit read rate (bytes per second) from a device", kind=_rate, many=True),
    flag("device-read-iops", "Limit read rate (IO per second) from a device", kind=_iops, many=True),
    flag("device-write-bps", "Limit write rate (bytes per second) to a device", kind=_rate, many=True),
    flag("device-write-iops", "Limit write rate (IO per second) to a device", kind=_iops, many=True),
    flag("dns", "Set custom DNS servers", many=True),
    flag("dns-option", "Set DNS options", many=True),
    flag("dns-opt", "Set DNS options", many=True, hidden=True),
    flag("dns-search", "Set custom DNS search domains", many=True),
    flag("domainname", "Container NIS domain name", default=""),
    flag("entrypoint", "Overwrite the default ENTRYPOINT of the image"),
    flag("env", "Set environment variables", short="e", many=True),
    flag("env-file", "Read in a file of environment variables", many=True),
    flag("expose", "Expose a port or a range of ports", many=True),
    flag("gpus", "GPU devices to add to the container ('all' to pass all GPUs)", many=True),
    flag("group-add", "Add additional groups to join", many=True),
    flag("health-cmd", "Command to run to check health"),
    flag("health-interval", "Time between running the check (ms|s|m|h)", kind="duration", default=0),
    flag("health-retries", "Consecutive failures needed to report unhealthy", kind="int", default=0),
    flag(
        "health-start-interval",
        "Time between running the check during the start period (ms|s|m|h)",
        kind="duration",
        default=0,
    ),
    flag(
        "health-start-period",
        "Start period for the container to initialize before starting health-retries countdown (ms|s|m|h)",
        kind="duration",
        default=0,
    ),
    flag("health-timeout", "Maximum time to allow one check to run (ms|s|m|h)", kind="duration", default=0),
    flag("hostname", "Container host name", short="h", default=""),
    switch("init", "Run an init inside the container that forwards signals and reaps processes"),
    switch("interactive", "Keep STDIN open even if not attached", short="i"),
    flag("ip", "IPv4 address (e.g., 172.30.100.104)", default=""),
    flag("ip6", "IPv6 address (e.g., 2001:db8::33)", default=""),
    flag("ipc", "IPC mode to use", default=""),
    flag("isolation", "Container isolation technology", default=""),
    flag("kernel-memory", "Kernel memory limit", kind="bytes", default=0),
    flag("label", "Set meta data on a container", short="l", many=True),
    flag("label-file", "Read in a line delimited file of labels", many=True),
    flag("link", "Add link to another container", many=True),
    flag("link-local-ip", "Container IPv4/IPv6 link-local addresses", many=True),
    flag("log-driver", "Logging driver for the container", default=""),
    flag("log-opt", "Log driver options", many=True),
    flag("mac-address", "Container MAC address (e.g., 92:d0:c6:0a:29:33)", default=""),
    flag("memory", "Memory limit", short="m", kind="bytes", default=0),
    flag("memory-reservation", "Memory soft limit", kind="bytes", default=0),
    flag(
        "memory-swap",
        "Swap limit equal to memory plus swap: '-1' to enable unlimited swap",
        kind=memory_swap,
        default=0,
        metavar="bytes",
    ),
    flag("memory-swappiness", "Tune container memory swappiness (0 to 100)", kind="int", default=-1),
    flag("mount", "Attach a filesystem mount to the container", many=True),
    flag("name", "Assign a name to the container", default=""),
    flag("network", "Connect a container to a network", many=True),
    flag("net", "Connect a container to a network", many=True, hidden=True),
    flag("network-alias", "Add network-scoped alias for the container", many=True),
    flag("net-alias", "Add network-scoped alias for the container", many=True, hidden=True),
    switch("no-healthcheck", "Disable any container-specified HEALTHCHECK"),
    switch("oom-kill-disable", "Disable OOM Killer"),
    flag("oom-score-adj", "Tune host's OOM preferences (-1000 to 1000)", kind="int", default=0),
    flag("pid", "PID namespace to use", default=""),
    flag("pids-limit", "Tune container pids limit (set -1 for unlimited)", kind="int"),
    flag("platform", "Set platform if server is multi-platform capable", default=""),
    switch("privileged", "Give extended privileges to this container"),
    flag("publish", "Publish a container's port(s) to the host", short="p", many=True),
    switch("publish-all", "Publish all exposed ports to random ports", short="P"),
    flag("pull", "Pull image before running", default="missing", choices=("always", "missing", "never")),
    switch("quiet", "Suppress the pull output", short="q"),
    switch("read-only", "Mount the container's root filesystem as read only"),
    flag("restart", "Restart policy to apply when a container exits", default="no"),
    switch("rm", "Automatically remove the container and its associated anonymous volumes when it exits"),
    flag("runtime", "Runtime to use for this container", default=""),
    flag("security-opt", "Security Options", many=True),
    flag("shm-size", "Size of /dev/shm", kind="bytes", default=0),
    flag("stop-signal", "Signal to stop the container", default=""),
    flag("stop-timeout", "Timeout (in seconds) to stop a container", kind="int"),
    flag("storage-opt", "Storage driver options for the container", many=True),
    flag("sysctl", "Sysctl options", many=True),
    flag("tmpfs", "Mount a tmpfs directory", many=True),
    switch("tty", "Allocate a pseudo-TTY", short="t"),
    flag("ulimit", "Ulimit options", kind=ulimit, many=True),
    flag("user", "Username or UID (format: <name|uid>[:<group|gid>])", short="u", default=""),
    flag("userns", "User namespace to use", default=""),
    flag("uts", "UTS namespace to use", default=""),
    flag("volume", "Bind mount a volume", short="v", many=True),
    flag("volume-driver", "Optional volume driver for the container", default=""),
    flag("volumes-from", "Mount volumes from the specified container(s)", many=True),
    flag("workdir", "Working directory inside the container", short="w", default=""),
)


def container_flags(function: Callable[..., Any]) -> Callable[..., Any]:
    """Declare the flags that ``run`` and ``create`` share."""
    for declare in reversed(_FLAGS):
        declare(function)
    return function


# --- parts ---------------------------------------------------------------------------------------------------------


def environment(items: Iterable[str], files: Iterable[str], host: Mapping[str, str] = os.environ) -> list[str]:
    """``NAME=value`` items; a bare NAME takes the host's value, and nothing where the host has none."""
    found = []
    for path in files:
        found += [item for line in _lines(path) if (item := _variable(line, host, path)) is not None]
    for text in items:
        if not text.partition("=")[0]:
            raise InvalidParameter(f"invalid environment variable: {text}")
        item = _variable(text, host, "")
        if item is not None:
            found.append(item)
    return found


def _variable(line: str, host: Mapping[str, str], path: str) -> str | None:
    name, equals, _ = line.partition("=")
    if path and (not name or any(character.isspace() for character in name)):
        cause = "contains whitespaces" if name else "no variable name on line"
        raise InvalidParameter(f"invalid env file ({path}): variable '{name}' {cause}")
    if equals:
        return line
    return f"{name}={host[name]}" if name in host else None


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            return [line for raw in file if (line := raw.lstrip().rstrip("\r\n")) and not line.startswith("#")]
    except OSError as error:
        raise InvalidParameter(f"open {path}: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError:
        raise InvalidParameter(f"invalid file ({path}): invalid utf8 bytes") from None


_PORT = re.compile(
    r"^(?:(?:(?P<ip>\[[0-9a-fA-F:.%a-z]+\]|[0-9.]*|[0-9a-fA-F:]*):)?(?P<host>[\d-]*):)?"
    r"(?P<container>\d+(?:-\d+)?)(?:/(?P<protocol>[a-zA-Z]+))?$"
)


def _span(text: str, spec: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    try:
        span = int(first), int(last if dash else first)
    except ValueError:
        raise InvalidParameter(f"invalid port specification: {spec}") from None
    if span[1] < span[0] or span[1] > 65535:
        raise InvalidParameter(f"invalid range specified for port: {text}")
    return span


def publish(specs: Iterable[str]) -> tuple[Body, dict[str, list[Body]]]:
    """``-p`` specifications as (ExposedPorts, PortBindings)."""
    exposed: Body = {}
    bindings: dict[str, list[Body]] = {}
    for spec in specs:
        match = _PORT.match(spec)
        if match is None:
            raise InvalidParameter(f"invalid publish opts format (should be name=value but got '{spec}')"
                                   if "=" in spec else f"invalid containerPort: {spec.rpartition(':')[2]}")  # fmt: skip
        protocol = (match["protocol"] or "tcp").lower()
        if protocol not in ("tcp", "udp", "sctp"):
            raise InvalidParameter(f"invalid proto: {protocol}")
        first, last = _span(match["container"], spec)
        host = match["host"] or ""
        low, high = _span(host, spec) if host else (0, 0)
        if host and high - low != last - first and first != last:
            raise InvalidParameter(
                f"invalid ranges specified for container and host Ports: {match['container']} and {host}"
            )
        ip = _checked_ip((match["ip"] or "").strip("[]"))
        for offset in range(last - first + 1):
            port = f"{first + offset}/{protocol}"
            exposed[port] = {}
            if not host:
                host_port = ""
            elif first == last:
                host_port = host
            else:
                host_port = str(low + offset)
            bindings.setdefault(port, []).append({"HostIp": ip, "HostPort": host_port})
    return exposed, bindings


def _checked_ip(text: str) -> str:
    from ipaddress import ip_address

    try:
        return str(ip_address(text)) if text else ""
    except ValueError:
        raise InvalidParameter(f"invalid IP address: {text}") from None


def expose(specs: Iterable[str]) -> Body:
    exposed: Body = {}
    for spec in specs:
        if ":" in spec:
            raise InvalidParameter(f"invalid port format for --expose: {spec}")
        ports, _, protocol = spec.partition("/")
        first, last = _span(ports, spec)
        for port in range(first, last + 1):
            exposed[f"{port}/{(protocol or 'tcp').lower()}"] = {}
    return exposed


def volumes(specs: Iterable[str]) -> tuple[list[str], Body]:
    """``-v`` specifications as (Binds, anonymous Volumes); a relative host path becomes absolute."""
    binds: list[str] = []
    anonymous: Body = {}
    for spec in specs:
        if spec.count(":") > 2:
            raise InvalidParameter(f"invalid spec: {spec}: too many colons")
        source, colon, rest = spec.partition(":")
        if not colon:
            anonymous[spec] = {}
            continue
        if not source or not rest:
            raise InvalidParameter(f"invalid spec: {spec}: empty section between colons")
        if source.startswith((".", "~")):
            source = os.path.abspath(os.path.expanduser(source))  # noqa: PTH111
        binds.append(f"{source}:{rest}")
    return binds, anonymous


def csv(text: str) -> list[str]:
    """The fields of one CSV line."""
    import csv as module

    return next(module.reader([text]))


def mount(spec: str) -> Body:
    """One ``--mount`` specification as the API's Mount."""
    result: Body = {"Type": "volume"}
    options: dict[str, Body] = {"BindOptions": {}, "VolumeOptions": {}, "TmpfsOptions": {}, "ImageOptions": {}}
    for part in csv(spec):
        key, equals, value = part.partition("=")
        key = key.strip().lower()
        bare_allowed = key in (
            "readonly",
            "ro",
            "volume-nocopy",
            "bind-nonrecursive",
            "bind-create-src",
        )
        if not equals and not bare_allowed:
            raise InvalidParameter(f"invalid field '{part}' must be a key=value pair")
        truth = _truth(key, value) if bare_allowed else False
        match key:
            case "type":
                result["Type"] = value.lower()
            case "source" | "src":
                result["Source"] = os.path.abspath(value) if value.startswith(".") else value
            case "target" | "dst" | "destination":
                result["Target"] = value
            case "readonly" | "ro":
                result["ReadOnly"] = truth
            case "consistency":
                result["Consistency"] = value.lower()
            case "bind-propagation":
                options["BindOptions"]["Propagation"] = value.lower()
            case "bind-nonrecursive":
                options["BindOptions"]["NonRecursive"] = truth
            case "bind-create-src":
                options["BindOptions"]["CreateMountpoint"] = truth
            case "bind-recursive":
                match value:
                    case "enabled":
                        pass
                    case "disabled":
                        options["BindOptions"]["NonRecursive"] = True
                    case "writable":
                        options["BindOptions"]["ReadOnlyNonRecursive"] = True
                    case "readonly":
                        options["BindOptions"]["ReadOnlyForceRecursive"] = True
                    case _:
                        raise InvalidParameter(
                            f"invalid value for {key}: {value} "
                            '(must be "enabled", "disabled", "writable", or "readonly")'
                        )
            case "volume-subpath":
                options["VolumeOptions"]["Subpath"] = value
            case "volume-nocopy":
                options["VolumeOptions"]["NoCopy"] = truth
            case "volume-label":
                name, _, text = value.partition("=")
                options["VolumeOptions"].setdefault("Labels", {})[name] = text
            case "volume-driver":
                options["VolumeOptions"].setdefault("DriverConfig", {})["Name"] = value
            case "volume-opt":
                name, _, text = value.partition("=")
                options["VolumeOptions"].setdefault("DriverConfig", {}).setdefault("Options", {})[name] = text
            case "image-subpath":
                options["ImageOptions"]["Subpath"] = value
            case "tmpfs-size":
                options["TmpfsOptions"]["SizeBytes"] = go.parse_bytes(value)
            case "tmpfs-mode":
                try:
                    options["TmpfsOptions"]["Mode"] = int(value, 8)
                except ValueError:
                    raise InvalidParameter(f"invalid value for {key}: {value}") from None
            case _:
                raise InvalidParameter(f"unexpected key '{key}' in '{part}'")
    if not result["Type"]:
        raise InvalidParameter("type is required")
    if not result.get("Target"):
        raise InvalidParameter("target is required")
    for name, kind in (("BindOptions", "bind"), ("VolumeOptions", "volume"), ("TmpfsOptions", "tmpfs"),
                       ("ImageOptions", "image")):  # fmt: skip
        if options[name] and result["Type"] != kind:
            raise InvalidParameter(f"cannot mix '{kind}-*' options with mount type '{result['Type']}'")
        if options[name]:
            result[name] = options[name]
    return result


def _truth(key: str, value: str) -> bool:
    try:
        return go.parse_bool(value) if value else True
    except InvalidParameter:
        raise InvalidParameter(f"invalid value for {key}: {value}") from None


def restart_policy(text: str) -> Body:
    if not text:
        return {"Name": "", "MaximumRetryCount": 0}
    name, _, count = text.partition(":")
    if count and not re.fullmatch(r"-?\d+", count):
        raise InvalidParameter("invalid restart policy format: maximum retry count must be an integer")
    return {"Name": name, "MaximumRetryCount": int(count or 0)}


def device(text: str) -> Body:
    """``source[:destination][:permissions]``"""
    parts = text.split(":")
    source, destination, permissions = parts[0], "", "rwm"
    if len(parts) > 3:
        raise InvalidParameter(f"invalid device specification: {text}")
    if len(parts) == 3:
        permissions = parts[2]
    if len(parts) > 1:
        if len(parts) == 2 and re.fullmatch(r"[rwm]+", parts[1]):
            permissions = parts[1]
        else:
            destination = parts[1]
    return {"PathOnHost": source, "PathInContainer": destination or source, "CgroupPermissions": permissions}


def devices(items: Sequence[str]) -> tuple[list[str], list[str]]:
    """What ``--device`` was given: devices of the host, and full names of CDI devices (``vendor.com/class=name``)."""
    if not any("=" in item for item in items):
        return list(items), []
    from seacan.engine.cdi import qualified

    return [item for item in items if not qualified(item)], [item for item in items if qualified(item)]


def security_options(items: Sequence[str]) -> tuple[list[str], Body]:
    """``--security-opt`` items with profiles read in, and what ``systempaths=unconfined`` adds to HostConfig."""
    found, extra = [], Body()
    for item in items:
        name, separator, value = item.partition("=")
        if not separator:
            name, separator, value = item.partition(":")
        if not separator and name != "no-new-privileges":
            raise InvalidParameter(f"Invalid --security-opt: {item!r}".replace("'", '"'))
        if name == "systempaths" and value == "unconfined":
            extra |= {"MaskedPaths": [], "ReadonlyPaths": []}
            continue
        if name == "seccomp" and value not in ("unconfined", "builtin"):
            try:
                with open(value, encoding="utf-8") as file:
                    item = f"seccomp={json.dumps(json.load(file), separators=(',', ':'))}"
            except OSError as error:
                raise InvalidParameter(
                    f"opening seccomp profile ({value}) failed: {(error.strerror or str(error)).lower()}"
                ) from None
            except ValueError as error:
                raise InvalidParameter(f"compacting json for seccomp profile ({value}) failed: {error}") from None
        found.append(item)
    return found, extra


def device_requests(cards: Sequence[str], names: Sequence[str]) -> list[Body]:
    """``--gpus`` and CDI devices as DeviceRequests."""
    requests = [gpus(item) for item in cards]
    if names:
        requests.append({"Driver": "cdi", "Count": 0, "DeviceIDs": names, "Capabilities": None, "Options": None})
    return requests


def gpus(text: str) -> Body:
    request: Body = {"Driver": "", "Count": 0, "DeviceIDs": None, "Capabilities": [["gpu"]], "Options": {}}
    for part in csv(text):
        key, equals, value = part.partition("=")
        if not equals:
            key, value = "count", part
        match key:
            case "count":
                try:
                    request["Count"] = -1 if value == "all" else int(value)
                except ValueError:
                    raise InvalidParameter(
                        f'invalid count ({value}): value must be either "all" or an integer'
                    ) from None
            case "device":
                request["DeviceIDs"] = value.split(",")
            case "driver":
                request["Driver"] = value
            case "capabilities":
                request["Capabilities"] = [[*value.split(","), "gpu"]]
            case "options":
                request["Options"] = go.pairs(value.split(","))
            case _:
                raise InvalidParameter(f"unexpected key '{key}' in '{part}'")
    return request


def networks(specs: Sequence[str], options: Mapping[str, Any]) -> tuple[str, dict[str, Body]]:
    """``--network`` with its endpoint flags as (NetworkMode, EndpointsConfig)."""
    endpoints: dict[str, Body] = {}
    for spec in specs or ["default"]:
        name, endpoint = _network(spec)
        if name in endpoints:
            raise InvalidParameter(f'network "{name}" is specified multiple times')
        endpoints[name] = endpoint
    mode = next(iter(endpoints))
    first = endpoints[mode]
    aliases = [*options["network_alias"], *options["net_alias"]]
    if aliases:
        if first.get("Aliases"):
            raise InvalidParameter("conflicting options: cannot specify both --network-alias and per-network alias")
        first["Aliases"] = aliases
    if options["link"] and mode not in ("default", "bridge", "host", "none") and not mode.startswith("container:"):
        first["Links"] = list(options["link"])
    for name, key in (("ip", "IPv4Address"), ("ip6", "IPv6Address")):
        if options[name]:
            if first.get("IPAMConfig", {}).get(key):
                raise InvalidParameter(
                    f"conflicting options: cannot specify both --{name} and per-network IPv4 address"
                )
            first.setdefault("IPAMConfig", {})[key] = options[name]
    if options["link_local_ip"]:
        first.setdefault("IPAMConfig", {})["LinkLocalIPs"] = list(options["link_local_ip"])
    if options["mac_address"]:
        first["MacAddress"] = options["mac_address"]
    if len(endpoints) == 1 and not first:
        endpoints = {}
    return mode, endpoints


def _network(spec: str) -> tuple[str, Body]:
    if "=" not in spec or spec.startswith("container:"):
        return spec, {}
    name, endpoint = "", Body()
    for part in csv(spec):
        key, _, value = part.partition("=")
        match key.strip().lower():
            case "name":
                name = value
            case "alias":
                endpoint.setdefault("Aliases", []).append(value)
            case "ip":
                endpoint.setdefault("IPAMConfig", {})["IPv4Address"] = value
            case "ip6":
                endpoint.setdefault("IPAMConfig", {})["IPv6Address"] = value
            case "link-local-ip":
                endpoint.setdefault("IPAMConfig", {}).setdefault("LinkLocalIPs", []).append(value)
            case "mac-address":
                endpoint["MacAddress"] = value
            case "gw-priority":
                endpoint["GwPriority"] = go.parse_integer(value)
            case "driver-opt":
                option, _, text = value.partition("=")
                endpoint.setdefault("DriverOpts", {})[option] = text
            case _:
                raise InvalidParameter(f"invalid field {key}")
    if not name:
        raise InvalidParameter("network name/id is not specified")
    return name, endpoint


def healthcheck(options: Mapping[str, Any]) -> Body | None:
    given = options["health_cmd"] is not None or any(
        options[f"health_{name}"] for name in ("interval", "timeout", "start_period", "start_interval", "retries")
    )
    if options["no_healthcheck"]:
        if given:
            raise InvalidParameter("--no-healthcheck conflicts with --health-* options")
        return {"Test": ["NONE"]}
    if not given:
        return None
    for name in ("interval", "timeout", "start_period", "start_interval", "retries"):
        if options[f"health_{name}"] < 0:
            raise InvalidParameter(f"--health-{name.replace('_', '-')} cannot be negative")
    return {
        "Test": ["CMD-SHELL", options["health_cmd"]] if options["health_cmd"] else None,
        "Interval": options["health_interval"],
        "Timeout": options["health_timeout"],
        "StartPeriod": options["health_start_period"],
        "StartInterval": options["health_start_interval"],
        "Retries": options["health_retries"],
    }


def _labels(items: Sequence[str], files: Sequence[str]) -> dict[str, str]:
    lines = [line for path in files for line in _lines(path)]
    return go.pairs([go.parse_label(item) for item in [*lines, *items]])


# --- the request ---------------------------------------------------------------------------------------------------


def request(arguments: Sequence[str], options: Mapping[str, Any], given: set[str]) -> Body:
    """The body of ``POST /containers/create`` for IMAGE, command and flags."""
    image, command = arguments[0], list(arguments[1:])
    attach = {name.lower() for name in options["attach"]}
    if attach - {"stdin", "stdout", "stderr"}:
        raise InvalidParameter("valid streams are STDIN, STDOUT and STDERR")
    if not attach:
        attach = {"stdout", "stderr"} | ({"stdin"} if options["interactive"] else set())
    exposed, bindings = publish(options["publish"])
    exposed = {**exposed, **expose(options["expose"])}
    binds, anonymous = volumes(options["volume"])
    security, extra = security_options(options["security_opt"])
    paths, cdi_names = devices(options["device"])
    mode, endpoints = networks([*options["network"], *options["net"]], options)
    entrypoint = options["entrypoint"]
    swappiness = options["memory_swappiness"]
    if swappiness != -1 and not 0 <= swappiness <= 100:
        raise InvalidParameter(f"invalid value: {swappiness}. Valid memory swappiness range is 0-100")
    if options["rm"] and options["restart"] not in ("no", ""):
        raise InvalidParameter("conflicting options: cannot specify both --restart and --rm")
    config: Body = {
        "Hostname": options["hostname"],
        "Domainname": options["domainname"],
        "User": options["user"],
        "AttachStdin": "stdin" in attach,
        "AttachStdout": "stdout" in attach,
        "AttachStderr": "stderr" in attach,
        "ExposedPorts": exposed or None,
        "Tty": options["tty"],
        "OpenStdin": options["interactive"],
        "StdinOnce": options["interactive"] and "stdin" in attach,
        "Env": environment(options["env"], options["env_file"]),
        "Cmd": command or None,
        "Healthcheck": healthcheck(options),
        "Image": image,
        "Volumes": anonymous or None,
        "WorkingDir": options["workdir"],
        "Entrypoint": None if entrypoint is None else [entrypoint] if entrypoint else [""],
        "Labels": _labels(options["label"], options["label_file"]),
        "StopSignal": options["stop_signal"],
        "StopTimeout": options["stop_timeout"],
    }
    host: Body = {
        "Binds": binds or None,
        "ContainerIDFile": options["cidfile"],
        "LogConfig": {"Type": options["log_driver"], "Config": go.pairs(options["log_opt"])},
        "NetworkMode": mode,
        "PortBindings": bindings or None,
        "RestartPolicy": restart_policy(options["restart"]),
        "AutoRemove": options["rm"],
        "VolumeDriver": options["volume_driver"],
        "VolumesFrom": options["volumes_from"] or None,
        "CapAdd": options["cap_add"] or None,
        "CapDrop": options["cap_drop"] or None,
        "CgroupnsMode": options["cgroupns"],
        "Dns": options["dns"],
        "DnsOptions": [*options["dns_option"], *options["dns_opt"]],
        "DnsSearch": options["dns_search"],
        "ExtraHosts": [_extra_host(item) for item in options["add_host"]] or None,
        "GroupAdd": options["group_add"] or None,
        "IpcMode": options["ipc"],
        "Links": options["link"] or None,
        "OomScoreAdj": options["oom_score_adj"],
        "PidMode": options["pid"],
        "Privileged": options["privileged"],
        "PublishAllPorts": options["publish_all"],
        "ReadonlyRootfs": options["read_only"],
        "SecurityOpt": security or None,
        "StorageOpt": go.pairs(options["storage_opt"]) or None,
        "Tmpfs": {path: text for path, _, text in (item.partition(":") for item in options["tmpfs"])} or None,
        "UTSMode": options["uts"],
        "UsernsMode": options["userns"],
        "ShmSize": options["shm_size"],
        "Sysctls": go.pairs(options["sysctl"]) or None,
        "Runtime": options["runtime"],
        "Isolation": options["isolation"],
        "Mounts": [mount(item) for item in options["mount"]] or None,
        "Annotations": go.pairs(options["annotation"]) or None,
        "CpuShares": options["cpu_shares"],
        "Memory": options["memory"],
        "NanoCpus": options["cpus"],
        "CgroupParent": options["cgroup_parent"],
        "BlkioWeight": options["blkio_weight"],
        "BlkioWeightDevice": [{"Path": path, "Weight": weight} for path, weight in options["blkio_weight_device"]],
        "BlkioDeviceReadBps": [{"Path": path, "Rate": rate} for path, rate in options["device_read_bps"]],
        "BlkioDeviceWriteBps": [{"Path": path, "Rate": rate} for path, rate in options["device_write_bps"]],
        "BlkioDeviceReadIOps": [{"Path": path, "Rate": rate} for path, rate in options["device_read_iops"]],
        "BlkioDeviceWriteIOps": [{"Path": path, "Rate": rate} for path, rate in options["device_write_iops"]],
        "CpuPeriod": options["cpu_period"],
        "CpuQuota": options["cpu_quota"],
        "CpuRealtimePeriod": options["cpu_rt_period"],
        "CpuRealtimeRuntime": options["cpu_rt_runtime"],
        "CpusetCpus": options["cpuset_cpus"],
        "CpusetMems": options["cpuset_mems"],
        "Devices": [device(item) for item in paths],
        "DeviceCgroupRules": options["device_cgroup_rule"] or None,
        "DeviceRequests": device_requests(options["gpus"], cdi_names) or None,
        "KernelMemory": options["kernel_memory"],
        "MemoryReservation": options["memory_reservation"],
        "MemorySwap": options["memory_swap"],
        "MemorySwappiness": swappiness,
        "OomKillDisable": options["oom_kill_disable"],
        "PidsLimit": options["pids_limit"] or 0,
        "Ulimits": options["ulimit"] or None,
        **extra,
    }
    if "init" in given:
        host["Init"] = options["init"]
    return {**config, "HostConfig": host, "NetworkingConfig": {"EndpointsConfig": endpoints}}


def _extra_host(text: str) -> str:
    name, separator, address = text.partition("=") if "=" in text else text.partition(":")
    if not separator or not name or not address:
        raise InvalidParameter(f'bad format for add-host: "{text}"')
    return f"{name}:{address.strip('[]')}"
