"""``info``, ``version``, ``events``, ``system …``, ``login``, and the generic ``inspect``."""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Mapping
from typing import Any, Final

from seacan.cli.client import APIError, Client
from seacan.cli.command import Exit, Group, command, filters, flag, switch, warn
from seacan.cli.container import confirm, ps_row, timestamp
from seacan.cli.image import image_rows, print_pruned
from seacan.cli.output import binary_size, human_size, tabulate, unescape, write_inspect, write_rows
from seacan.cli.template import Template, go_json
from seacan.cli.volume import volume_row
from seacan.errors import InvalidParameter, SeacanError

Fetched = Mapping[str, Any]


def _template(form: str, value: Any) -> None:
    print(go_json(value) if form == "json" else Template(unescape(form), strict=True).execute(value))


# --- version -------------------------------------------------------------------------------------------------------


@command("version", exactly=0)
@flag("format", "Format output using a custom template", short="f", default="")
def version(client: Client, arguments: list[str], *, format: str) -> None:
    """Show the version information"""
    import platform

    import seacan

    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    ours = {
        "Version": seacan.__version__,
        "ApiVersion": "1.51",
        "DefaultAPIVersion": "1.51",
        "GitCommit": "",
        "GoVersion": f"python{platform.python_version()}",
        "Os": "linux",
        "Arch": machine,
        "BuildTime": "",
        "Context": "default",
    }
    failure: SeacanError | None = None
    theirs = None
    try:
        theirs = client.get("/version")
    except SeacanError as error:
        failure = error
    if format:
        # docker's templates see Go's names of these fields, its JSON has others.
        for side in (ours, theirs or {}):
            side |= {name.replace("Api", "API"): text for name, text in side.items() if "Api" in name}
        _template(format, {"Client": ours, "Server": theirs})
    else:
        rows = [["Client:"], [" Version:", ours["Version"]], [" API version:", ours["ApiVersion"]]]
        rows += [[" Python version:", platform.python_version()], [" OS/Arch:", f"linux/{machine}"]]
        if theirs is not None:
            rows += [[], [f"Server: {(theirs.get('Platform') or {}).get('Name', '')}".rstrip()]]
            for component in theirs.get("Components") or []:
                rows += [[f" {component['Name']}:"], ["  Version:", component["Version"]]]
                details = component.get("Details") or {}
                minimum = f"{details.get('ApiVersion')} (minimum version {details.get('MinAPIVersion')})"
                if "ApiVersion" in details:
                    rows += [["  API version:", minimum]]
                    rows += [["  OS/Arch:", f"{details.get('Os')}/{details.get('Arch')}"]]
                    rows += [["  Experimental:", details.get("Experimental", "false")]]
                else:
                    rows += [[f"  {key}:", value] for key, value in sorted(details.items())]
        width = max(len(row[0]) for row in rows if len(row) == 2) + 2
        print("\n".join(row[0].ljust(width) + row[1] if len(row) == 2 else "".join(row) for row in rows))
    if failure is not None:
        raise failure


# --- info ----------------------------------------------------------------------------------------------------------


@command("info", exactly=0)
@flag("format", "Format output using a custom template", short="f", default="")
def info(client: Client, arguments: list[str], *, format: str) -> None:
    """Display system-wide information"""
    found = client.get("/info")
    if format:
        _template(format, {**found, "ClientInfo": {"Context": "default", "Plugins": []}})
        return
    print("\n".join(info_lines(found)) + "\n")
    for warning in found.get("Warnings") or []:
        warn(warning)


def info_lines(found: Fetched) -> list[str]:
    """``GET /info`` as docker prints it."""

    def yes(value: object) -> str:
        return str(bool(value)).lower()

    lines = ["Client:", " Context:    default", " Debug Mode: false", "", "Server:"]
    lines += [f" Containers: {found['Containers']}"]
    lines += [f"  {state}: {found[f'Containers{state}']}" for state in ("Running", "Paused", "Stopped")]
    lines += [f" Images: {found['Images']}"]

    def add(title: str, key: str) -> None:
        if found.get(key):
            lines.append(f" {title}: {found[key]}")

    add("Server Version", "ServerVersion")
    add("Storage Driver", "Driver")
    lines.extend(f"  {name}: {value}" for name, value in found.get("DriverStatus") or [])
    add("Logging Driver", "LoggingDriver")
    add("Cgroup Driver", "CgroupDriver")
    add("Cgroup Version", "CgroupVersion")
    plugins = found.get("Plugins") or {}
    lines.append(" Plugins:")
    lines += [f"  {kind}: {' '.join(plugins.get(kind) or [])}" for kind in ("Volume", "Network", "Log")]
    if folders := found.get("CDISpecDirs"):
        lines += [" CDI spec directories:", *(f"  {folder}" for folder in folders)]
    if devices := found.get("DiscoveredDevices"):
        lines += [" Discovered Devices:", *(f"  {device['Source']}: {device['ID']}" for device in devices)]
    lines.append(f" Swarm: {(found.get('Swarm') or {}).get('LocalNodeState', 'inactive')}")
    if runtimes := found.get("Runtimes"):
        lines += [f" Runtimes: {' '.join(runtimes)}", f" Default Runtime: {found.get('DefaultRuntime', '')}"]
    lines.append(f" Init Binary: {found.get('InitBinary', '')}")
    for name in ("containerd", "runc", "init"):
        lines.append(f" {name} version: {(found.get(f'{name.capitalize()}Commit') or {}).get('ID', '')}")
    if options := found.get("SecurityOptions"):
        lines.append(" Security Options:")
        for option in options:
            fields = dict(field.partition("=")[::2] for field in option.split(","))
            lines.append(f"  {fields.get('name', option)}")
            if "profile" in fields:
                lines.append(f"   Profile: {fields['profile']}")
    add("Kernel Version", "KernelVersion")
    add("Operating System", "OperatingSystem")
    add("OSType", "OSType")
    add("Architecture", "Architecture")
    lines += [f" CPUs: {found['NCPU']}", f" Total Memory: {binary_size(found['MemTotal'])}"]
    add("Name", "Name")
    add("ID", "ID")
    lines += [f" Docker Root Dir: {found['DockerRootDir']}", f" Debug Mode: {yes(found.get('Debug'))}"]
    if found.get("Debug"):
        lines += [f"  File Descriptors: {found.get('NFd')}", f"  Goroutines: {found.get('NGoroutines')}"]
        lines += [f"  System Time: {found.get('SystemTime')}", f"  EventsListeners: {found.get('NEventsListener')}"]
    add("HTTP Proxy", "HttpProxy")
    add("HTTPS Proxy", "HttpsProxy")
    add("No Proxy", "NoProxy")
    if labels := found.get("Labels"):
        lines += [" Labels:", *(f"  {label}" for label in labels)]
    lines.append(f" Experimental: {yes(found.get('ExperimentalBuild'))}")
    registry = found.get("RegistryConfig") or {}
    insecure = [name for name, index in (registry.get("IndexConfigs") or {}).items() if not index.get("Secure")]
    insecure += registry.get("InsecureRegistryCIDRs") or []
    if insecure:
        lines += [" Insecure Registries:", *(f"  {name}" for name in insecure)]
    if mirrors := registry.get("Mirrors"):
        lines += [" Registry Mirrors:", *(f"  {mirror}" for mirror in mirrors)]
    lines.append(f" Live Restore Enabled: {yes(found.get('LiveRestoreEnabled'))}")
    if pools := found.get("DefaultAddressPools"):
        lines += [" Default Address Pools:", *(f"   Base: {pool['Base']}, Size: {pool['Size']}" for pool in pools)]
    return lines


# --- events --------------------------------------------------------------------------------------------------------


@command("events", exactly=0)
@flag("filter", "Filter output based on conditions provided", short="f", many=True)
@flag("format", "Format output using a custom template", default="")
@flag("since", "Show all events created since timestamp", default="")
@flag("until", "Stream events until this timestamp", default="")
def events(client: Client, arguments: list[str], *, filter: list[str], format: str, since: str, until: str) -> None:
    """Get real time events from the server"""
    template = Template("{{json .}}" if format == "json" else unescape(format)) if format else None
    query = {"filters": filters(filter), "since": timestamp(since), "until": timestamp(until)}
    with client.request("GET", "/events", query) as response:
        for event in response.json_lines():
            print(template.execute(event) if template else event_line(event), flush=True)


def event_line(event: Fetched) -> str:
    """One event as ``docker events`` prints it."""
    import time

    seconds, nanoseconds = divmod(event.get("timeNano") or event["time"] * 10**9, 10**9)
    zone = time.strftime("%z", time.localtime(seconds))
    zone = "Z" if zone == "+0000" else f"{zone[:3]}:{zone[3:]}"
    stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.localtime(seconds))}.{nanoseconds:09d}{zone}"
    actor = event["Actor"]
    attributes = ", ".join(f"{key}={value}" for key, value in sorted((actor.get("Attributes") or {}).items()))
    return f"{stamp} {event['Type']} {event['Action']} {actor['ID']}" + (f" ({attributes})" if attributes else "")


# --- df, prune -----------------------------------------------------------------------------------------------------


@command("df", exactly=0)
@flag("format", "Format output using a custom template", default="")
@switch("verbose", "Show detailed information on space usage", short="v")
def df(client: Client, arguments: list[str], *, format: str, verbose: bool) -> None:
    """Show docker disk usage"""
    usage = client.get("/system/df")
    if verbose:
        _df_verbose(usage)
        return
    headers = {"Type": "TYPE", "TotalCount": "TOTAL", "Active": "ACTIVE", "Size": "SIZE", "Reclaimable": "RECLAIMABLE"}
    table = r"table {{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}"
    write_rows(df_rows(usage), format, table, headers)


def df_rows(usage: Fetched) -> list[dict[str, Any]]:
    """``GET /system/df`` as docker's four rows."""
    images, containers = usage.get("Images") or [], usage.get("Containers") or []
    volumes, cache = usage.get("Volumes") or [], usage.get("BuildCache") or []

    def row(kind: str, total: int, active: int, size: int, reclaimable: int, *, percent: bool = True) -> dict[str, Any]:
        share = f" ({reclaimable * 100 // size}%)" if size > 0 and percent else ""
        return {
            "Type": kind,
            "TotalCount": str(total),
            "Active": str(active),
            "Size": human_size(size),
            "Reclaimable": f"{human_size(reclaimable)}{share}",
        }

    layers = usage.get("LayersSize") or 0
    used = sum(
        image["Size"] - max(image.get("SharedSize", 0), 0)
        for image in images
        if image.get("Containers", 0) > 0 and image["Size"] != -1 and image.get("SharedSize", -1) != -1
    )
    active = [item for item in containers if item["State"] in ("running", "paused", "restarting")]
    stopped = sum(item.get("SizeRw") or 0 for item in containers if item not in active)
    data = [item.get("UsageData") or {"Size": 0, "RefCount": 0} for item in volumes]
    return [
        row("Images", len(images), sum(image.get("Containers", 0) > 0 for image in images), layers, layers - used),
        row("Containers", len(containers), len(active), sum(item.get("SizeRw") or 0 for item in containers), stopped),
        row(
            "Local Volumes",
            len(volumes),
            sum(item["RefCount"] > 0 for item in data),
            sum(max(item["Size"], 0) for item in data),
            sum(max(item["Size"], 0) for item in data if item["RefCount"] == 0),
        ),
        row(
            "Build Cache",
            len(cache),
            sum(bool(item.get("InUse")) for item in cache),
            sum(item["Size"] for item in cache if not item.get("Shared")),
            sum(item["Size"] for item in cache if not item.get("InUse") and not item.get("Shared")),
            percent=False,
        ),
    ]


def _df_verbose(usage: Fetched) -> None:
    rows: list[list[str]] = [
        ["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE", "SHARED SIZE", "UNIQUE SIZE", "CONTAINERS"]
    ]
    for item in usage.get("Images") or []:
        for row in image_rows(item, truncate=True, digests=False):
            names = ("Repository", "Tag", "ID", "CreatedSince", "Size", "SharedSize", "UniqueSize", "Containers")
            rows.append([row[name] for name in names])
    print("Images space usage:\n")
    sys.stdout.write(tabulate(rows))
    rows = [["CONTAINER ID", "IMAGE", "COMMAND", "LOCAL VOLUMES", "SIZE", "CREATED", "STATUS", "NAMES"]]
    for item in usage.get("Containers") or []:
        row = ps_row(item, truncate=True)
        row["Size"] = human_size(item.get("SizeRw") or 0)
        names = ("ID", "Image", "Command", "LocalVolumes", "Size", "RunningFor", "Status", "Names")
        rows.append([row[name] for name in names])
    print("\nContainers space usage:\n")
    sys.stdout.write(tabulate(rows))
    rows = [["VOLUME NAME", "LINKS", "SIZE"]]
    for item in usage.get("Volumes") or []:
        row = volume_row(item)
        rows.append([row["Name"], row["Links"], row["Size"]])
    print("\nLocal Volumes space usage:\n")
    sys.stdout.write(tabulate(rows))
    cache = usage.get("BuildCache") or []
    total = sum(item["Size"] for item in cache if not item.get("Shared"))
    print(f"\nBuild cache usage: {human_size(total)}\n")
    rows = [["CACHE ID", "CACHE TYPE", "SIZE", "USAGE", "SHARED"]]
    for item in cache:
        shared = str(bool(item.get("Shared"))).lower()
        rows.append([item["ID"][:12], item["Type"], human_size(item["Size"]), str(item.get("UsageCount", 0)), shared])
    sys.stdout.write(tabulate(rows))


@command("prune", exactly=0)
@switch("all", "Remove all unused images not just dangling ones", short="a")
@flag("filter", 'Provide filter values (e.g. "label=<key>=<value>")', many=True)
@switch("force", "Do not prompt for confirmation", short="f")
@switch("volumes", "Prune anonymous volumes")
def prune(client: Client, arguments: list[str], *, all: bool, filter: list[str], force: bool, volumes: bool) -> None:
    """Remove unused data"""
    kinds = ["all stopped containers", "all networks not used by at least one container"]
    kinds += ["all anonymous volumes not used by at least one container"] if volumes else []
    kinds += ["all images without at least one container associated to them" if all else "all dangling images"]
    kinds += ["all build cache" if all else "unused build cache"]
    confirm("WARNING! This will remove:\n" + "\n".join(f"  - {kind}" for kind in kinds) + "\n", force)
    asked = filters(filter) or {}
    reclaimed = 0
    answers = [
        ("Deleted Containers:", client.post("/containers/prune", filters=asked or None).get("ContainersDeleted"))
    ]
    reclaimed = 0
    networks = client.post("/networks/prune", filters=asked or None)
    answers.append(("Deleted Networks:", networks.get("NetworksDeleted")))
    if volumes:
        answer = client.post("/volumes/prune", filters=asked or None)
        answers.append(("Deleted Volumes:", answer.get("VolumesDeleted")))
        reclaimed += answer.get("SpaceReclaimed") or 0
    for title, deleted in answers:
        if deleted:
            print(title, *deleted, sep="\n", end="\n\n")
    answer = client.post("/images/prune", filters={**asked, "dangling": [str(not all).lower()]})
    try:
        cache = client.post("/build/prune", all=all)
        reclaimed += cache.get("SpaceReclaimed") or 0
    except APIError as error:
        if error.status != 404:
            raise
    print_pruned({**answer, "SpaceReclaimed": (answer.get("SpaceReclaimed") or 0) + reclaimed})


# --- inspect -------------------------------------------------------------------------------------------------------

_KINDS: Final = ("container", "image", "network", "volume")


@command("inspect", "NAME|ID [NAME|ID...]", least=1, complete="container")
@flag("format", "Format output using a custom template", short="f", default="")
@switch("size", "Display total file sizes if the type is container", short="s")
@flag("type", "Only inspect objects of the given type", default="", choices=_KINDS)
def inspect(client: Client, arguments: list[str], *, format: str, size: bool, type: str) -> None:
    """Return low-level information on Docker objects"""
    if type and type not in _KINDS:
        raise InvalidParameter(f'unknown type: "{type}"; must be one of {", ".join(_KINDS)}')
    paths = {"container": "/containers/{}/json", "image": "/images/{}/json"}
    found, missing = [], []
    for name in arguments:
        for kind in [type] if type else _KINDS:
            path = paths.get(kind, f"/{kind}s/{{}}").format(name)
            try:
                found.append(client.get(path, size=size and kind == "container"))
                break
            except APIError as error:
                if error.status != 404 and not (error.status == 400 and not type):
                    raise
        else:
            missing.append(f"Error: No such {type or 'object'}: {name}")
    if found or not format:
        write_inspect(found, format)
    for message in missing:
        warn(message)
    if missing:
        raise Exit(1)


# --- login ---------------------------------------------------------------------------------------------------------

_INDEX: Final = "https://index.docker.io/v1/"


def _config_path() -> str:
    folder = os.environ.get("DOCKER_CONFIG") or os.path.join(os.environ.get("HOME", "/root"), ".docker")
    return os.path.join(folder, "config.json")


def _edit_config(change: Any) -> None:
    path = _config_path()
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
    except FileNotFoundError:
        config = {}
    change(config)
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    temporary = f"{path}.{os.getpid()}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        json.dump(config, file, indent="\t")
    os.replace(temporary, path)


@command("login", "[SERVER]", most=1)
@flag("password", "Password or Personal Access Token (PAT)", short="p", default="")
@switch("password-stdin", "Take the Password or Personal Access Token (PAT) from stdin")
@flag("username", "Username", short="u", default="")
def login(client: Client, arguments: list[str], *, password: str, password_stdin: bool, username: str) -> None:
    """Authenticate to a registry"""
    server = arguments[0] if arguments else _INDEX
    if password_stdin:
        if password:
            raise InvalidParameter("conflicting options: cannot specify both --password and --password-stdin")
        if not username:
            raise InvalidParameter("the --password-stdin option requires --username to be set")
        password = sys.stdin.read().rstrip("\r\n")
    elif not (username and password):
        if not sys.stdin.isatty():
            raise InvalidParameter("cannot perform an interactive login from a non-TTY device")
        import getpass

        username = username or input("Username: ")
        password = password or getpass.getpass("Password: ")
    answer = client.post("/auth", {"username": username, "password": password, "serveraddress": server}) or {}
    if token := answer.get("IdentityToken"):
        entry = {"auth": base64.b64encode(f"{username}:".encode()).decode(), "identitytoken": token}
    else:
        entry = {"auth": base64.b64encode(f"{username}:{password}".encode()).decode()}
    _edit_config(lambda config: config.setdefault("auths", {}).update({server: entry}))
    warn(f"WARNING! Your credentials are stored unencrypted in '{_config_path()}'.")
    print(answer.get("Status") or "Login Succeeded")


@command("logout", "[SERVER]", most=1)
def logout(client: Client, arguments: list[str]) -> None:
    """Log out from a registry"""
    server = arguments[0] if arguments else _INDEX
    _edit_config(lambda config: config.setdefault("auths", {}).pop(server, None))
    print(f"Removing login credentials for {server}")


_HERE = "seacan.cli.system"
VERBS: Final[Mapping[str, tuple[str, str]]] = {
    "df": (f"{_HERE}:df", "Show docker disk usage"),
    "events": (f"{_HERE}:events", "Get real time events from the server"),
    "info": (f"{_HERE}:info", "Display system-wide information"),
    "prune": (f"{_HERE}:prune", "Remove unused data"),
}
group = Group("system", "Manage Seacan", VERBS)
