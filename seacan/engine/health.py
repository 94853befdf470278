"""Health checks: a probe every so often, and what it means."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from typing import TYPE_CHECKING

from seacan.engine.config import ContainerConfig, ExecConfig, HealthConfig
from seacan.engine.container import Container, Health, HealthResult, now
from seacan.engine.streams import Client
from seacan.errors import SeacanError

if TYPE_CHECKING:
    from seacan.engine.engine import Engine

log = logging.getLogger(__name__)

INTERVAL = 30.0
TIMEOUT = 30.0
START_INTERVAL = 5.0
RETRIES = 3
KEPT_RESULTS = 5
OUTPUT_LIMIT = 4096
"""Seconds and bytes, as dockerd's defaults."""


def configured(config: ContainerConfig) -> HealthConfig | None:
    """The health check, unless there is none or it is switched off."""
    check = config.healthcheck
    if check is None or not check.test or check.test[0] not in ("CMD", "CMD-SHELL"):
        return None
    return check


def initial(config: ContainerConfig) -> Health | None:
    return Health() if configured(config) else None


def begin(engine: Engine, container: Container) -> None:
    """Probe a running container from now on."""
    check = configured(container.config)
    if check is None or container.health_probe is not None:
        return
    if container.state.health is None:
        container.state.health = Health()
    container.health_probe = container.spawn(_monitor(engine, container, check), "health")


def end(container: Container) -> None:
    """Probe no more. A container that nobody looks after is unhealthy, in dockerd's eyes."""
    probe, container.health_probe = container.health_probe, None
    if probe is not None:
        probe.cancel()
        if container.state.health is not None:
            container.state.health.status = "unhealthy"


async def _monitor(engine: Engine, container: Container, check: HealthConfig) -> None:
    while True:
        await asyncio.sleep(_pause(container, check))
        start = now()
        try:
            code, output = await _probe(engine, container, check)
        except (SeacanError, OSError) as error:
            code, output = -1, str(error)
        _judge(engine, container, check, HealthResult(start=start, end=now(), exit_code=code, output=output))


def _pause(container: Container, check: HealthConfig) -> float:
    health = container.state.health
    young = now() - container.state.started_at < check.start_period
    if young and health is not None and health.status == "starting":
        return check.start_interval / 1e9 or START_INTERVAL
    return check.interval / 1e9 or INTERVAL


def _judge(engine: Engine, container: Container, check: HealthConfig, result: HealthResult) -> None:
    health = container.state.health
    if health is None or not container.state.running:
        return
    before = health.status
    health.log = [*health.log[1 - KEPT_RESULTS :], result]
    if result.exit_code == 0:
        health.failing_streak = 0
        health.status = "healthy"
    elif health.status != "starting" or result.start - container.state.started_at >= check.start_period:
        health.failing_streak += 1
        if health.failing_streak >= (check.retries or RETRIES):
            health.status = "unhealthy"
    if health.status != before:
        engine.containers.emit(container, f"health_status: {health.status}")


async def _probe(engine: Engine, container: Container, check: HealthConfig) -> tuple[int, str]:
    """Run the check once: its exit code (-1: none in time) and output."""
    test = check.test or []
    command = test[1:]
    if test[0] == "CMD-SHELL":
        command = [*(container.config.shell or ["/bin/sh", "-c"]), *command]
    exec = engine.execs.create(
        container.id,
        ExecConfig(
            cmd=command,
            attach_stdout=True,
            attach_stderr=True,
            user=container.config.user,
            working_dir=container.config.working_dir,
        ),
        health_check=True,
    )
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    output = bytearray()
    reading: asyncio.Task[None] | None = None
    try:

        async def connect(_: bool) -> Client:
            return Client(fd=theirs.detach(), multiplexed=False)

        reading = asyncio.ensure_future(_collect(ours, output))
        await engine.execs.start(exec.id, connect, multiplexed=False)
        timeout = check.timeout / 1e9 or TIMEOUT
        try:
            code = await asyncio.wait_for(asyncio.shield(exec.ended), timeout)
        except TimeoutError:
            await _kill(container, exec.id)
            text = _text(output)
            return -1, f"Health check exceeded timeout ({_seconds(timeout)})" + (f": {text}" if text else "")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(reading), 1.0)
        return code, _text(output)
    except asyncio.CancelledError:
        await asyncio.shield(_kill(container, exec.id))
        raise
    finally:
        if reading is not None:
            reading.cancel()
        ours.close()
        theirs.close()
        engine.execs.forget(exec)


async def _kill(container: Container, exec_id: str) -> None:
    if container.task is not None:
        with contextlib.suppress(SeacanError, OSError):
            await container.task.signal(9, exec_id=exec_id)


async def _collect(sock: socket.socket, output: bytearray) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        while data := await loop.sock_recv(sock, 65536):
            room = OUTPUT_LIMIT + 1 - len(output)
            output += data[: max(0, room)]


def _text(output: bytearray) -> str:
    text = bytes(output[:OUTPUT_LIMIT]).decode(errors="replace")
    return text + ("..." if len(output) > OUTPUT_LIMIT else "")


def _seconds(seconds: float) -> str:
    """As Go prints a duration of whole units."""
    if seconds < 1:
        return f"{seconds * 1000:g}ms"
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}m{rest:g}s" if minutes else f"{rest:g}s"
