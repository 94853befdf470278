"""What a starting engine does about what it finds: adopt, record, roll back, restart.

The database says what was meant; ``<exec-root>/containers`` and the shims say what is. Nothing outside our own folders,
cgroup parent and nftables table is touched. Every step can be interrupted and done again.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from seacan import cgroups
from seacan.engine import connections, health
from seacan.engine.container import Container, now
from seacan.errors import SeacanError
from seacan.runtime.bundle import Exit
from seacan.runtime.task import Task, lost

if TYPE_CHECKING:
    from seacan.engine.engine import Engine

log = logging.getLogger(__name__)

AT_ONCE = 64
"""How many shims are asked at the same time."""
LOST = 255
"""Exit code of a container whose end nobody saw (after a reboot), as dockerd's."""


async def recover(engine: Engine) -> None:
    """Bring state and reality together again."""
    limit = asyncio.Semaphore(AT_ONCE)
    exits: dict[str, Exit] = {}
    happened = _Happened(engine)

    async def one(container: Container) -> None:
        async with limit:
            exit = await _settle(engine, container, happened)
            if exit is not None:
                exits[container.id] = exit

    await asyncio.gather(*(one(container) for container in engine.containers))
    await _sweep_bundles(engine)
    ids = {container.id for container in engine.containers}
    _sweep_folders(engine, ids)
    engine.images.recover()
    engine.snapshots.recover(ids)
    await engine.volumes.recover(ids)
    live = {container.id: container.task for container in engine.containers if container.task is not None}
    await engine.networks.recover(live)
    for container in engine.containers:
        if container.task is not None and not container.host_config.network_mode.startswith("container:"):
            await connections.settle(engine, container)
    happened.pass_on()
    for container in engine.containers:
        await _resume(engine, container, exits.get(container.id))


class _Happened:
    """What adopted containers tell while the rest is still being recovered.

    It waits: an exit releases networks and may start the container anew, and what belongs to no running container is
    being swept away meanwhile.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._events: list[tuple[Container, Task, object]] | None = []

    def take(self, container: Container, task: Task, event: object) -> None:
        if container.task is not task:
            return
        if self._events is None:
            self._engine.lifecycle.event(container, task, event)
        else:
            self._events.append((container, task, event))

    def pass_on(self) -> None:
        """Let everything happen that has waited, and what comes from now on at once."""
        events, self._events = self._events or [], None
        for container, task, event in events:
            self.take(container, task, event)


async def _settle(engine: Engine, container: Container, happened: _Happened) -> Exit | None:
    """Find out what became of one container: adopts its task, or gives the exit that must be recorded."""
    bundle = engine.containers.bundle(container)
    state = container.state
    was_running = state.running and not state.restarting
    if not was_running and not bundle.exists():
        return None

    task = None
    try:
        task = await Task.reconnect(bundle, lambda task, event: happened.take(container, task, event))
    except (SeacanError, OSError) as error:
        log.error("container %s: its shim does not answer: %s", container.id, error)
    if task is not None and not task.exit.done():
        if task.started:
            await engine.lifecycle.adopt(container, task)
            return None
        log.info("container %s: rolling back a start that was interrupted", container.id)
        await task.abandon()
        return None
    if task is not None:
        await task.gone
    exit = await lost(engine.launcher, bundle) if bundle.exists() else None
    if not was_running and (exit is None or exit.at <= state.finished_at):
        return None
    return exit or Exit(
        exit_code=LOST, at=now(), error="its end was not seen: the shim was lost, or the host restarted"
    )


async def _sweep_bundles(engine: Engine) -> None:
    """Undo what no running container has: a bundle, and the process and control group that go with it."""
    root = Path(engine.options.exec_root, "containers")
    stale = {bundle.name for bundle in root.iterdir()}
    for container in engine.containers:
        (stale.discard if container.task is not None else stale.add)(container.id)
    for id in stale:
        bundle = root / id
        container_ = engine.containers.find(id)
        if container_ is None and bundle.exists():
            task = await Task.reconnect(bundle, lambda task, event: None)
            if task is not None:
                await task.abandon()
            else:
                await lost(engine.launcher, bundle)
        parent = container_.host_config.cgroup_parent if container_ is not None else ""
        _end_cgroup(f"/{(parent or engine.options.cgroup_parent).strip('/')}/{id}")
        shutil.rmtree(bundle, ignore_errors=True)


def _end_cgroup(path: str) -> None:
    group = cgroups.open(path)
    try:
        if group.exists:
            group.kill()
            group.remove()
    except (OSError, SeacanError) as error:
        log.warning("cannot remove the control group %s: %s", path, error)


def _sweep_folders(engine: Engine, ids: set[str]) -> None:
    root = Path(engine.options.data_root, "containers")
    for folder in root.iterdir():
        if folder.name not in ids:
            shutil.rmtree(folder, ignore_errors=True)


async def _resume(engine: Engine, container: Container, exit: Exit | None) -> None:
    """Record an exit that was missed, and apply the restart policy as at a daemon's start."""
    state = container.state
    if state.removing:
        state.removing, state.dead = False, True
        engine.containers.save_state(container)
    if container.task is not None:
        engine.lifecycle.watch(container, container.task)
        health.begin(engine, container)
        return
    if exit is not None:
        engine.lifecycle.ended(container, None, exit)
        return
    if state.running:
        # It was waiting for its restart.
        state.running = state.restarting = False
        engine.containers.save_state(container)
    engine.lifecycle.restart_at_boot(container)
