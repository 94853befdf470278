"""One container as the engine knows it: what was asked for, what became of it, and who waits for it.

The two Structs are what the database keeps; :class:`Container` adds what lives only as long as this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from seacan.engine.config import ContainerConfig, EndpointSettings, HostConfig
from seacan.engine.mounts import MountPoint
from seacan.errors import Conflict

if TYPE_CHECKING:
    from seacan.engine.execs import Exec
    from seacan.engine.streams import Client
    from seacan.runtime.task import Sandbox, Task

DEFAULT_STOP_TIMEOUT = 10
"""Seconds between the stop signal and SIGKILL."""


class HealthResult(msgspec.Struct, kw_only=True, frozen=True):
    """One probe. Times are nanoseconds since 1970."""

    start: int
    end: int
    exit_code: int
    output: str


class Health(msgspec.Struct, kw_only=True):
    status: str = "starting"
    failing_streak: int = 0
    log: list[HealthResult] = []


class State(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What changes while a container lives. Times are nanoseconds since 1970, 0 for never."""

    running: bool = False
    paused: bool = False
    restarting: bool = False
    starting: bool = False
    """Between the request and the start: what a restarted daemon finds so is rolled back."""
    removing: bool = False
    dead: bool = False
    oom_killed: bool = False
    pid: int = 0
    exit_code: int = 0
    error: str = ""
    started_at: int = 0
    finished_at: int = 0
    restart_count: int = 0
    manually_stopped: bool = False
    health: Health | None = None

    @property
    def status(self) -> str:
        """Docker's word for it."""
        if self.running:
            if self.paused:
                return "paused"
            return "restarting" if self.restarting else "running"
        if self.removing:
            return "removing"
        if self.dead:
            return "dead"
        return "created" if self.started_at == 0 else "exited"


class Record(msgspec.Struct, kw_only=True):
    """What was fixed at creation, but for what rename, update and network connect change."""

    id: str
    name: str
    created: int
    """Nanoseconds since 1970."""
    image: str
    """The image's ID (``sha256:…``); empty for a container without one."""
    path: str
    args: list[str]
    config: ContainerConfig
    host_config: HostConfig
    mounts: list[MountPoint] = []
    networks: dict[str, EndpointSettings] = {}
    """Network name → what was asked of it, and while running what it gave."""
    links: dict[str, str] = {}
    """Alias → id of the container linked to."""
    architecture: str = ""
    log_path: str = ""
    os: str = "linux"
    categories: str = ""
    """Its own pair of SELinux's, where the host has that."""


class ExitStatus(msgspec.Struct, frozen=True):
    code: int
    error: str = ""


class Container:
    """A container and those who wait for it. ``lock`` is held while its state is being changed."""

    def __init__(self, record: Record, state: State) -> None:
        self.record = record
        self.state = state
        self.lock = asyncio.Lock()
        self.task: Task | None = None
        """While it runs."""
        self.sandbox: Sandbox | None = None
        """Its namespaces, while it runs."""
        self.begun: Task | None = None
        """The task whose start has been recorded."""
        self.execs: dict[str, Exec] = {}
        self.clients: list[Client] = []
        """Clients that attached before the start."""
        self.background: set[asyncio.Task[Any]] = set()
        """What goes on for this container beside requests: following its exit, health probes, a pending restart."""
        self.restart_delay = 0.0
        """The last back-off, in seconds."""
        self.pending_restart: asyncio.Task[None] | None = None
        self.health_probe: asyncio.Task[None] | None = None
        self.restarting_by_hand = False
        """Between the stop and the start of `docker restart`: no auto-removal."""
        self.releasing: asyncio.Task[None] | None = None
        self.clearing: asyncio.Task[None] | None = None
        """After an exit: freeing networks and volumes; removing the bundle once the shim is gone."""
        self._stopped: set[asyncio.Future[ExitStatus]] = set()
        self._removed: set[asyncio.Future[ExitStatus]] = set()

    def __repr__(self) -> str:
        return f"<Container {self.id[:12]} {self.name} {self.state.status}>"

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def name(self) -> str:
        """Without the slash that Docker shows."""
        return self.record.name

    @property
    def config(self) -> ContainerConfig:
        return self.record.config

    @property
    def host_config(self) -> HostConfig:
        return self.record.host_config

    @property
    def stop_timeout(self) -> int:
        """Seconds; negative is forever."""
        given = self.config.stop_timeout
        return DEFAULT_STOP_TIMEOUT if given is None else given

    @property
    def is_live(self) -> bool:
        """Whether there is a process (one that waits for its restart is running in Docker's eyes, and has none)."""
        return self.state.running and not self.state.restarting and self.task is not None

    def require_running(self) -> Task:
        """The task of a running container.

        Raises:
            Conflict: it is not running, or waits for its restart.
        """
        if self.state.restarting:
            raise Conflict(f"Container {self.id} is restarting, wait until the container is running")
        if not self.state.running or self.task is None:
            raise Conflict(f"container {self.id} is not running")
        return self.task

    async def released(self) -> None:
        """Wait until what the container held when it last ran is free."""
        if self.releasing is not None and self.releasing is not asyncio.current_task():
            await asyncio.shield(self.releasing)

    async def settled(self) -> None:
        """Wait until nothing is left of the last run."""
        await self.released()
        if self.clearing is not None:
            await asyncio.shield(self.clearing)

    def attributes(self, **more: str) -> dict[str, str]:
        """The attributes of this container's events: its labels, image and name, and ``more``."""
        return {**(self.config.labels or {}), "image": self.config.image, "name": self.name, **more}

    # --- waiting ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def waiting(self, *, removed: bool = False) -> Iterator[asyncio.Future[ExitStatus]]:
        """A future of the next exit (or of the removal), forgotten when the block is left."""
        future: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        waiters = self._removed if removed else self._stopped
        waiters.add(future)
        try:
            yield future
        finally:
            waiters.discard(future)

    def tell_stopped(self) -> None:
        """Wake who waits for the exit."""
        status = ExitStatus(self.state.exit_code, self.state.error)
        for future in self._stopped:
            if not future.done():
                future.set_result(status)
        self._stopped.clear()

    def tell_removed(self, error: str = "") -> None:
        """Wake everybody: there is nothing left to wait for (or, with ``error``, the removal failed)."""
        status = ExitStatus(self.state.exit_code, error)
        for future in self._removed:
            if not future.done():
                future.set_result(status)
        self._removed.clear()
        if not error:
            self.tell_stopped()

    def spawn(self, coroutine: Any, name: str) -> asyncio.Task[Any]:
        """Run something for this container in the background; it is cancelled with the engine."""
        task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(coroutine, name=f"{name} {self.id[:12]}")
        self.background.add(task)
        task.add_done_callback(self.background.discard)
        return task


def now() -> int:
    return time.time_ns()
