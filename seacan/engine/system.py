"""The engine as a whole: `docker version`, `docker info`, `docker system df`, `docker login`."""

from __future__ import annotations

import asyncio
import os
import platform
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from seacan.engine import devices
from seacan.engine.host import host
from seacan.engine.listing import listing
from seacan.engine.profiles import apparmor
from seacan.engine.times import rfc3339
from seacan.engine.verify import BUILTIN_RUNTIMES
from seacan.engine.version import API_VERSION, MIN_API_VERSION, SERVER_VERSION, VERSION, dotted
from seacan.images import listing as images
from seacan.network import doctor as network_doctor
from seacan.registry.endpoints import environment_proxy, masked

if TYPE_CHECKING:
    from seacan.build.cache import Record
    from seacan.engine.engine import Engine

_encoder = msgspec.json.Encoder()
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}
_INDEX = "https://index.docker.io/v1/"


def encode(value: Any) -> bytes:
    return _encoder.encode(value) + b"\n"


def seconds_until(moment: int) -> float:
    return max(0.0, (moment - time.time_ns()) / 1e9)


def architecture() -> str:
    """This machine's, in Go's words."""
    machine = platform.machine()
    return _ARCHITECTURES.get(machine, machine)


def builder_version(engine: Engine) -> str:
    """What `docker build` reads from _ping: "2" for BuildKit's API, unless the feature "buildkit" is turned off."""
    return "2" if engine.options.features.get("buildkit", True) else "1"


def version(engine: Engine) -> dict[str, Any]:
    """Docker's SystemVersion."""
    kernel = os.uname().release
    python = platform.python_version()
    experimental = str(engine.options.experimental).lower()
    details = {
        "ApiVersion": dotted(API_VERSION),
        "Arch": architecture(),
        "BuildTime": "",
        "Experimental": experimental,
        "GitCommit": "",
        "GoVersion": f"python{python}",
        "KernelVersion": kernel,
        "MinAPIVersion": dotted(MIN_API_VERSION),
        "Os": "linux",
    }
    components = [
        {"Name": "Engine", "Version": SERVER_VERSION, "Details": details},
        {"Name": "Seacan", "Version": VERSION, "Details": {"GitCommit": "", "Python": python}},
    ]
    return {
        "Platform": {"Name": f"Seacan {VERSION}"},
        "Components": components,
        "Version": SERVER_VERSION,
        "ApiVersion": dotted(API_VERSION),
        "MinAPIVersion": dotted(MIN_API_VERSION),
        "GitCommit": "",
        "GoVersion": f"python{python}",
        "Os": "linux",
        "Arch": architecture(),
        "KernelVersion": kernel,
        **({"Experimental": True} if engine.options.experimental else {}),
        "BuildTime": "",
    }


async def info(engine: Engine) -> dict[str, Any]:
    """Docker's SystemInfo."""
    machine, options = host(), engine.options
    states = [container.state.status for container in engine.containers]
    running = sum(state in ("running", "restarting") for state in states)
    paused = states.count("paused")
    runtimes: dict[str, Any] = {name: {"path": "seacan-runtime"} for name in BUILTIN_RUNTIMES}
    for name, runtime in options.runtimes.items():
        runtimes[name] = {"path": runtime.path}
        if runtime.arguments:
            runtimes[name]["runtimeArgs"] = list(runtime.arguments)
    security = ["name=seccomp,profile=builtin"] if machine.seccomp else []
    if options.seccomp_profile not in ("", "builtin"):
        security = [f"name=seccomp,profile={options.seccomp_profile}"]
    security += ["name=apparmor"] if apparmor.obtainable() else []
    security += ["name=selinux"] if machine.selinux and options.selinux_enabled else []
    security += ["name=userns"] if options.userns_remap else []
    security += ["name=cgroupns"] if machine.cgroup_version == 2 else []
    security += ["name=no-new-privileges"] if options.no_new_privileges else []
    mirrors = list(options.registry_mirrors)
    discovered, complaints = devices.discovered(options)
    return {
        "ID": engine.id,
        "Containers": len(states),
        "ContainersRunning": running,
        "ContainersPaused": paused,
        "ContainersStopped": len(states) - running - paused,
        "Images": len(engine.images.ids()),
        "Driver": engine.snapshots.driver,
        "DriverStatus": _driver_status(engine),
        "Plugins": {
            "Volume": ["local"],
            "Network": ["bridge", "host", "ipvlan", "macvlan", "null", "routed"],
            "Authorization": None,
            "Log": ["json-file", "local", "none"],
        },
        "MemoryLimit": machine.memory_limit,
        "SwapLimit": machine.swap_limit,
        "CpuCfsPeriod": machine.cpu_cfs,
        "CpuCfsQuota": machine.cpu_cfs,
        "CPUShares": machine.cpu_shares,
        "CPUSet": machine.cpuset,
        "PidsLimit": machine.pids_limit,
        "IPv4Forwarding": machine.ipv4_forwarding,
        "Debug": options.debug,
        "NFd": len(os.listdir("/proc/self/fd")),
        "OomKillDisable": machine.oom_kill_disable,
        "NGoroutines": len(asyncio.all_tasks()),
        "SystemTime": rfc3339(time.time_ns()),
        "LoggingDriver": options.log_driver,
        "CgroupDriver": "cgroupfs",
        "CgroupVersion": str(machine.cgroup_version),
        "NEventsListener": engine.events.watchers,
        "KernelVersion": os.uname().release,
        "OperatingSystem": _operating_system("PRETTY_NAME"),
        "OSVersion": _operating_system("VERSION_ID"),
        "OSType": "linux",
        "Architecture": platform.machine(),
        "IndexServerAddress": _INDEX,
        "RegistryConfig": {
            "IndexConfigs": {
                "docker.io": {"Mirrors": mirrors, "Name": "docker.io", "Official": True, "Secure": True},
                **{
                    name: {"Mirrors": [], "Name": name, "Official": False, "Secure": False}
                    for name in options.insecure_registries
                    if "/" not in name
                },
            },
            "InsecureRegistryCIDRs": ["::1/128", "127.0.0.0/8", *(n for n in options.insecure_registries if "/" in n)],
            "Mirrors": mirrors or None,
        },
        "NCPU": machine.processors,
        "MemTotal": machine.memory,
        "GenericResources": None,
        "DockerRootDir": options.data_root,
        "HttpProxy": masked(environment_proxy("http_proxy")),
        "HttpsProxy": masked(environment_proxy("https_proxy")),
        "NoProxy": environment_proxy("no_proxy"),
        "Name": os.uname().nodename,
        "Labels": options.labels,
        "ExperimentalBuild": options.experimental,
        "ServerVersion": SERVER_VERSION,
        "Runtimes": runtimes,
        "DefaultRuntime": options.default_runtime,
        "Swarm": {
            "NodeID": "",
            "NodeAddr": "",
            "LocalNodeState": "inactive",
            "ControlAvailable": False,
            "Error": "",
            "RemoteManagers": None,
        },
        "LiveRestoreEnabled": options.live_restore,
        "Isolation": "",
        "InitBinary": engine.init_binary or "",
        "ContainerdCommit": {"ID": ""},
        "RuncCommit": {"ID": ""},
        "InitCommit": {"ID": ""},
        "SecurityOptions": security,
        "FirewallBackend": {"Driver": "nftables"},
        "CDISpecDirs": devices.cdi_folders(options),
        "DiscoveredDevices": [{"Source": "cdi", "ID": name} for name in discovered],
        **_pools(engine),
        "Warnings": [*_warnings(engine), *complaints] or None,
    }


def _pools(engine: Engine) -> dict[str, Any]:
    pools = engine.options.default_address_pools
    return {"DefaultAddressPools": [{"Base": pool.base, "Size": pool.size} for pool in pools]} if pools else {}


def _warnings(engine: Engine) -> list[str]:
    machine = host()
    warnings = list(machine.warnings)
    if engine.options.bridge != "none" and not machine.ipv4_forwarding:
        warnings.append("WARNING: IPv4 forwarding is disabled")
    if machine.apparmor and not apparmor.obtainable():
        warnings.append("WARNING: AppArmor is enabled, but containers go without: apparmor_parser is not installed")
    warnings += network_doctor.warnings()
    for listener in engine.options.hosts:
        if listener.startswith("tcp://") and not engine.options.tls:
            warnings.append(
                f"[DEPRECATION NOTICE]: API is accessible on {listener} without encryption.\n"
                "         Access to the remote API is equivalent to root access on the host. Refer\n"
                "         to the 'Docker daemon attack surface' section in the documentation for\n"
                "         more information: https://docs.docker.com/go/attack-surface/"
            )
    return warnings


def _driver_status(engine: Engine) -> list[list[str]]:
    if engine.snapshots.driver != "overlay2":
        return []
    return [
        ["Backing Filesystem", _filesystem(engine.options.data_root)],
        ["Supports d_type", "true"],
        ["Using metacopy", "false"],
        ["Native Overlay Diff", "true"],
        ["userxattr", "false"],
    ]


def _filesystem(path: str) -> str:
    """The type of the filesystem that holds ``path``, in dockerd's words."""
    best, found = "", "unknown"
    real = os.path.realpath(path)
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        point = fields[4]
        if (real == point or real.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
            best, found = point, fields[fields.index("-") + 1]
    return {"ext2": "extfs", "ext3": "extfs", "ext4": "extfs"}.get(found, found)


def _operating_system(name: str) -> str:
    try:
        return platform.freedesktop_os_release().get(name, "")
    except OSError:
        return ""


async def disk_usage(engine: Engine, kinds: set[str] | None, *, legacy: bool) -> dict[str, Any]:
    """Docker's answer to GET /system/df; ``kinds`` limits it to container, image, volume or build-cache."""
    wanted = kinds or {"container", "image", "volume", "build-cache"}
    answer: dict[str, Any] = {}
    if "image" in wanted:
        summaries = images.summaries(engine.images, all=True, shared_size=True, count_containers=True)
        answer |= {"LayersSize": images.layers_size(engine.images), "Images": summaries}
    if "container" in wanted:
        answer["Containers"] = await listing(engine, all=True, size=True)
    if "volume" in wanted:
        answer["Volumes"] = [volume.inspect(usage) for volume, usage in await engine.volumes.usage()]
    if "build-cache" in wanted:
        await engine.prepare_builds()
        answer["BuildCache"] = [_cached(record) for record in engine.builds.cache.records()]
    answer = {"LayersSize": 0, "Images": None, "Containers": None, "Volumes": None, "BuildCache": None, **answer}
    if legacy:
        answer["BuilderSize"] = 0
        answer["Images"] = [
            msgspec.to_builtins(summary) | {"VirtualSize": summary.size} for summary in answer["Images"] or ()
        ]
    return answer


def _cached(record: Record) -> dict[str, Any]:
    """Docker's BuildCache."""
    result: dict[str, Any] = {"ID": record.id}
    if record.parent:
        result["Parents"] = [record.parent]
    return result | {
        "Type": record.kind,
        "Description": record.description,
        "InUse": record.in_use,
        "Shared": record.shared,
        "Size": record.size,
        "CreatedAt": rfc3339(record.created),
        "LastUsedAt": rfc3339(record.used) if record.used else None,
        "UsageCount": record.uses,
    }


def load_id(path: Path) -> str:
    """The engine's own identity, made once and kept beside its state."""
    try:
        text = path.read_text().strip()
        if text:
            return text
    except FileNotFoundError:
        pass
    text = str(uuid.uuid4())
    temporary = path.with_suffix(".new")
    temporary.write_text(text)
    temporary.replace(path)
    return text
