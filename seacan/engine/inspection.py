"""`docker inspect` of a container, in full."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from seacan.engine import config as docker
from seacan.engine import oci
from seacan.engine.container import Container, State
from seacan.engine.listing import mount, network_settings_of, sizes
from seacan.engine.times import rfc3339
from seacan.errors import NotFound

if TYPE_CHECKING:
    from seacan.engine.engine import Engine


async def inspect(engine: Engine, container: Container, *, size: bool = False) -> dict[str, Any]:
    """Docker's ContainerInspectResponse."""
    record = container.record
    folder = engine.containers.folder(container)
    settings = network_settings_of(engine, container)
    security = oci.security_of(record, engine.options)
    host_config = docker.encode(container.host_config)
    if record.links:
        targets = ((alias, engine.containers.find(id)) for alias, id in record.links.items())
        host_config["Links"] = [
            f"/{target.name}:/{container.name}/{alias}" for alias, target in targets if target is not None
        ]
    config = docker.encode(record.config)
    asked = record.networks.get(record.host_config.network_mode)
    if not record.config.mac_address and asked is not None and asked.mac_address:
        config["MacAddress"] = asked.mac_address  # where clients before API 1.44 look for it
    plain: dict[str, Any] = {
        "Id": container.id,
        "Created": rfc3339(record.created),
        "Path": record.path,
        "Args": record.args,
        "State": _state(container.state),
        "Image": record.image,
        "ResolvConfPath": str(folder / "resolv.conf"),
        "HostnamePath": str(folder / "hostname"),
        "HostsPath": str(folder / "hosts"),
        "LogPath": record.log_path,
        "Name": f"/{container.name}",
        "RestartCount": container.state.restart_count,
        "Driver": engine.snapshots.driver,
        "Platform": record.os,
        "MountLabel": security.mount_label,
        "ProcessLabel": security.process_label,
        "AppArmorProfile": oci.apparmor_profile(record, engine.options),
        "ExecIDs": sorted(id for id, exec in container.execs.items() if exec.exit_code is None) or None,
        "HostConfig": host_config,
        "GraphDriver": {"Data": _graph_driver(engine, container), "Name": engine.snapshots.driver},
        "Mounts": [mount(point) for point in record.mounts],
        "Config": config,
        "NetworkSettings": network_settings(settings),
    }
    if size:
        plain |= await sizes(engine, container)
    return plain


def network_settings(settings: Any) -> dict[str, Any]:
    plain = docker.encode(settings)
    plain["Networks"] = {name: docker.encode(endpoint) for name, endpoint in settings.networks.items()}
    return plain


def _graph_driver(engine: Engine, container: Container) -> dict[str, str] | None:
    try:
        return engine.snapshots.graph_driver(container.id, None)
    except NotFound:
        return None


def _state(state: State) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "Status": state.status,
        "Running": state.running,
        "Paused": state.paused,
        "Restarting": state.restarting,
        "OOMKilled": state.oom_killed,
        "Dead": state.dead,
        "Pid": state.pid,
        "ExitCode": state.exit_code,
        "Error": state.error,
        "StartedAt": rfc3339(state.started_at),
        "FinishedAt": rfc3339(state.finished_at),
    }
    if state.health is not None:
        plain["Health"] = {
            "Status": state.health.status,
            "FailingStreak": state.health.failing_streak,
            "Log": [
                {
                    "Start": rfc3339(result.start),
                    "End": rfc3339(result.end),
                    "ExitCode": result.exit_code,
                    "Output": result.output,
                }
                for result in state.health.log
            ],
        }
    return plain
