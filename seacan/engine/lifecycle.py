"""A container's life: start, exit, restart, stop, kill, pause. :mod:`seacan.engine.containers` made it.

A start runs as in docs/architecture.md: the shim makes namespaces and mounts while this process reserves addresses;
they meet when the shim hands over the network namespace. Whatever fails, everything made for the start is undone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from seacan.engine import health, oci, relabel, remap
from seacan.engine.attach import hand_over
from seacan.engine.config import HostConfig
from seacan.engine.container import Container, ExitStatus, now
from seacan.engine.creation import check_host_config
from seacan.engine.links import link_variables
from seacan.engine.logs import log_config
from seacan.engine.signals import parse_signal
from seacan.errors import Conflict, InvalidParameter, NotFound, NotModified, RuntimeFailed, SeacanError, System
from seacan.network.model import ContainerIdentity, Endpoint, PortRequest
from seacan.runtime import protocol, spec
from seacan.runtime.bundle import Exit, ExternalRuntime, ShimConfig
from seacan.runtime.failure import words
from seacan.runtime.task import Task, Waiting, lost

if TYPE_CHECKING:
    from seacan.engine.engine import Engine
    from seacan.network.networks import NameFiles

log = logging.getLogger(__name__)

PREFIX = "failed to create task for container: failed to create shim task: OCI runtime create failed: "
KILL_TIMEOUT = 10.0
"""Seconds a SIGKILL may take."""
RESTART_DELAY = 0.1
RESTART_DELAY_LIMIT = 60.0
RESTART_STEADY = 10.0
"""A container that ran this long starts again without back-off. All in seconds, as dockerd."""
WAITING_TIME = 2.0
"""Seconds after its creation that a container has a shim in waiting."""
MAX_WAITING = 8
"""How many containers may have one: each takes a megabyte."""
NAME_FILES = ("hostname", "hosts", "resolv.conf")
_SIGKILL = 9


class Lifecycle:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._closing = False
        self._waiting: dict[str, Waiting] = {}
        """Shims of containers that are likely to be started soon."""

    # --- start -----------------------------------------------------------------------------------------------------

    def expect_start(self, container: Container) -> None:
        """A container has just been made. Most are started at once, and then their shim exists already."""
        if len(self._waiting) < MAX_WAITING and not self._closing:
            self._waiting[container.id] = Waiting(self._engine.launcher)
            asyncio.get_running_loop().call_later(WAITING_TIME, self._dismiss, container.id)

    def _dismiss(self, id: str) -> None:
        waiting = self._waiting.pop(id, None)
        if waiting is not None:
            waiting.close()

    async def start(self, reference: str) -> None:
        """Start a created or stopped container.

        Raises:
            NotModified: it runs. Conflict: it is paused or being removed. RuntimeFailed: its command cannot be run.
        """
        container = self._engine.containers.get(reference)
        if container.state.paused:
            raise Conflict("cannot start a paused container, try unpause instead")
        if container.state.running and not container.state.restarting:
            raise NotModified("container is already running")
        check_host_config(container.host_config)
        remap.verify(container.host_config, self._engine.options)
        async with container.lock:
            if container.state.running and not container.state.restarting:
                return
            self._cancel_restart(container)
            container.state.restart_count = 0
            container.restart_delay = 0.0
            await self._start(container)

    async def _start(self, container: Container) -> None:
        """Start with the lock held; on failure, record why."""
        state = container.state
        if state.removing or state.dead or container.id not in self._engine.containers:
            raise Conflict("container is marked for removal and cannot be started")
        was_restarting = state.restarting
        state.error = ""
        state.exit_code = 0
        state.oom_killed = False
        try:
            try:
                await self._launch(container)
            except OSError as error:  # the disk is full, for one
                where = f"{error.filename}: " if error.filename else ""
                raise System(f"failed to create task for container: {where}{words(error)}") from error
        except SeacanError as error:
            state.error = error.message
            state.exit_code = error.exit_code if isinstance(error, RuntimeFailed) else 128
            state.running = state.restarting = state.paused = False
            state.pid = 0
            self._engine.containers.save_state(container)
            for client in container.clients:
                client.close()
            container.clients.clear()
            if was_restarting:
                container.tell_stopped()
            if container.host_config.auto_remove:
                container.spawn(self._auto_remove(container), "remove")
            raise

    async def _launch(self, container: Container) -> None:
        engine = self._engine
        bundle = engine.containers.bundle(container)
        await container.settled()
        async with contextlib.AsyncExitStack() as undo:
            waiting = self._waiting.pop(container.id, None) or Waiting(engine.launcher)
            undo.callback(waiting.close)
            points = container.record.mounts
            undo.push_async_callback(engine.volumes.unmount, container.id, points)
            await engine.volumes.mount(container.id, points)
            await self._relabel(container)
            undo.callback(shutil.rmtree, bundle, ignore_errors=True)
            await self._write_bundle(container, bundle)
            task = await Task.spawn(
                engine.launcher, bundle, lambda task, event: self.event(container, task, event), waiting
            )
            undo.push_async_callback(self._abandon, container, task)
            undo.push_async_callback(engine.networks.release, container.id)
            try:
                await self._join(container, task)
                container.task = task
                clients, container.clients = container.clients, []
                for client in clients:
                    await hand_over(task, client)
                await task.start()
            except RuntimeFailed as error:
                raise RuntimeFailed(_runtime_words(str(error)), error.exit_code) from error
            undo.pop_all()
        self._started(container, task)

    async def _relabel(self, container: Container) -> None:
        """Give the container's SELinux labels to what it is about to get."""
        label = oci.security_of(container.record, self._engine.options).mount_label
        if label:
            wanted = relabel.trees(container.record.mounts, label)
            await relabel.relabel(self._engine.launcher, wanted)

    async def _join(self, container: Container, task: Task) -> None:
        """Reserve addresses while the shim makes the sandbox, then put the one into the other."""
        networks = self._engine.networks
        config, host_config = container.config, container.host_config
        identity = self.identity(container)
        ports = PortRequest(
            bindings=host_config.port_bindings or {},
            exposed=tuple(config.exposed_ports or ()),
            publish_all=host_config.publish_all_ports,
        )
        endpoints = await networks.allocate(
            identity, container.record.networks, ports, links=container.record.links, dns=host_config.dns
        )
        if not host_config.network_mode.startswith("container:"):
            links = networks.link_addresses(container.record.links) if container.record.links else None
            self._write_names(container, networks.files(identity, endpoints, host_config, links))
        container.sandbox = await task.created()
        await networks.join(endpoints, container.sandbox, task)
        for endpoint in endpoints:
            self._network_event("connect", container, endpoint)

    @staticmethod
    def identity(container: Container) -> ContainerIdentity:
        """The container as its networks know it."""
        config = container.config
        sysctls = container.host_config.sysctls or {}
        return ContainerIdentity(
            id=container.id,
            name=container.name,
            hostname=config.hostname,
            domainname=config.domainname,
            ipv6=sysctls.get("net.ipv6.conf.all.disable_ipv6") != "1",
        )

    def _network_event(self, action: str, container: Container, endpoint: Endpoint) -> None:
        self._engine.events.emit(
            "network",
            action,
            endpoint.network,
            {"container": container.id, "name": endpoint.network_name, "type": endpoint.driver},
        )

    def _started(self, container: Container, task: Task) -> None:
        """The program runs. Called by whoever learns it first: the start, or the exit that follows on its heels."""
        if container.begun is task:
            return
        container.begun = task
        state = container.state
        state.running, state.restarting, state.paused = True, False, False
        state.pid = container.sandbox.pid if container.sandbox else 0
        state.started_at = now()
        state.manually_stopped = False
        state.health = health.initial(container.config)
        self._engine.containers.save_state(container)
        self._engine.containers.emit(container, "start")
        health.begin(self._engine, container)
        self.watch(container, task)

    async def _write_bundle(self, container: Container, bundle: Path) -> None:
        engine = self._engine
        record, options = container.record, engine.options
        folder = engine.containers.folder(container)
        if record.host_config.network_mode.startswith("container:"):
            donor = self._joined(record.host_config.network_mode, "network")
            folder = engine.containers.folder(donor)
            if (record.config.hostname, record.config.domainname) != (donor.config.hostname, donor.config.domainname):
                record.config.hostname, record.config.domainname = donor.config.hostname, donor.config.domainname
                engine.containers.save(container)
        else:
            for name in NAME_FILES:
                os.close(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
        sources = oci.Sources(
            rootfs=engine.rootfs(record),
            hostname=str(folder / "hostname"),
            hosts=str(folder / "hosts"),
            resolv_conf=str(folder / "resolv.conf"),
            joined=self._joined_namespaces(container),
            images={
                point.destination: engine.snapshots.view(engine.images.get(point.image or point.source).chain_id)
                for point in record.mounts
                if point.type == "image"
            },
            foreign=[p.destination for p in record.mounts if p.type == "volume" and engine.volumes.foreign(p.name)],
        )
        try:
            log = log_config(record, engine.containers.folder(container))
        except InvalidParameter as error:
            raise System(
                f"failed to create task for container: failed to initialize logging driver: {error}"
            ) from error
        if record.host_config.log_config.type == "local":
            Path(log.path).parent.mkdir(mode=0o700, exist_ok=True)
        built = oci.build(record, options, sources)
        await relabel.relabel(
            engine.launcher, relabel.own(str(folder), NAME_FILES, record.host_config, sources.rootfs, built.security)
        )
        if record.links and built.spec.process is not None and record.host_config.network_mode == "bridge":
            given = {variable.partition("=")[0] for variable in built.spec.process.env}
            built.spec.process.env += [v for v in self._link_environment(container) if v.partition("=")[0] not in given]
        external = self._external(record.host_config.runtime)
        direct = external is None and spec.direct(built.spec)
        shim = ShimConfig(
            id=container.id,
            rootfs=sources.rootfs,
            log=log,
            open_stdin=record.config.open_stdin,
            stdin_once=record.config.stdin_once,
            seccomp=built.seccomp,
            external=external,
            direct=direct,
            spawn=direct and oci.spawns(built),
            keyring=direct and oci.shares_keyring(built),
            unified=(engine.cgroup(container).unified or "") if direct else "",
        )
        bundle.mkdir(mode=0o700)
        (bundle / "config.json").write_bytes(spec.encode(built.spec))
        (bundle / "shim.json").write_bytes(msgspec.json.encode(shim))

    def _link_environment(self, container: Container) -> list[str]:
        """The variables by which a container on the default network knows those it is linked to.

        Raises:
            Conflict: one of them does not run.
        """
        variables = []
        for alias, id in container.record.links.items():
            target = self._engine.containers.find(id)
            if target is None or not target.state.running:
                name = target.name if target is not None else id
                raise Conflict(f"Cannot link to a non running container: /{name} AS /{container.name}/{alias}")
            endpoints = self._engine.networks.endpoints_of(id)
            address = next((one.address4 for one in endpoints if one.network_name == "bridge"), "")
            variables += link_variables(container.name, alias, address, target.config)
        return variables

    def _external(self, runtime: str) -> ExternalRuntime | None:
        name = runtime or self._engine.options.default_runtime
        option = self._engine.options.runtimes.get(name)
        if option is None:
            return None
        root = str(Path(self._engine.options.exec_root, "runtime", name))
        return ExternalRuntime(path=option.path, arguments=tuple(option.arguments), root=root)

    def _joined_namespaces(self, container: Container) -> dict[str, int]:
        host_config = container.host_config
        return {
            kind: self._joined(mode, kind).state.pid
            for kind, mode in (
                ("network", host_config.network_mode),
                ("ipc", host_config.ipc_mode),
                ("pid", host_config.pid_mode),
            )
            if mode.startswith("container:")
        }

    def _joined(self, mode: str, kind: str) -> Container:
        """The running container whose namespace a ``container:<name>`` mode joins.

        Raises:
            NotFound, Conflict, InvalidParameter: in dockerd's words.
        """
        name = mode.removeprefix("container:")
        try:
            other = self._engine.containers.get(name)
        except NotFound as error:
            raise NotFound(f"joining {kind} namespace of container: {error}") from error
        if other.state.restarting:
            raise Conflict(f"Container {name} is restarting, wait until the container is running")
        if not other.state.running:
            if kind == "network":
                raise Conflict(
                    "cannot join network namespace of a non running container: "
                    f"container {other.name} is {other.state.status}"
                )
            raise System(f"failed to join {kind.upper()} namespace: container {other.id} is not running")
        if kind == "ipc" and other.host_config.ipc_mode not in ("shareable", "host"):
            raise InvalidParameter(
                f"failed to join IPC namespace: container {other.id}: non-shareable IPC "
                "(hint: use IpcMode:shareable for the donor container)"
            )
        return other

    def _write_names(self, container: Container, texts: NameFiles) -> None:
        """Fill the files that the shim has mounted, or is about to: in place, since the mount is of the inode."""
        folder = self._engine.containers.folder(container)
        for name, text in zip(NAME_FILES, (texts.hostname, texts.hosts, texts.resolv_conf), strict=True):
            fd = os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                written = os.write(fd, text.encode())
                # Not O_TRUNC: ext4 writes out to the disk what is closed after it was cut to nothing (0.4 ms).
                if os.fstat(fd).st_size > written:
                    os.ftruncate(fd, written)
            finally:
                os.close(fd)

    @staticmethod
    async def _abandon(container: Container, task: Task) -> None:
        container.task = None
        try:
            await task.abandon()
        except (SeacanError, OSError) as error:
            log.warning("container %s: its shim could not be told to undo it: %s", container.id, error)

    async def adopt(self, container: Container, task: Task) -> None:
        """Go on with a container that was running before this engine. :meth:`watch` it when all is recovered."""
        state = container.state
        container.sandbox = await task.created()
        container.task = container.begun = task
        pid = container.sandbox.pid
        paused = self._engine.cgroup(container).frozen
        if not state.running or state.restarting or state.pid != pid or state.paused != paused:
            state.started_at = state.started_at or now()
            state.running, state.restarting, state.paused, state.pid = True, False, paused, pid
            self._engine.containers.save_state(container)

    def watch(self, container: Container, task: Task) -> None:
        """Notice from now on if the shim dies without a word. What was open for the start or the recovery is closed."""
        if container.sandbox is not None:
            container.sandbox.close()
        container.spawn(self._watch(container, task), "watch")

    # --- what the shim tells ---------------------------------------------------------------------------------------

    def event(self, container: Container, task: Task, event: object) -> None:
        """Something happened in a container. When this returns, whoever asks must see it."""
        if isinstance(event, protocol.Exited):
            if container.task is task:
                self._started(container, task)
                self.ended(container, task, event.exit)
        elif isinstance(event, protocol.ExecExited):
            self._engine.execs.ended(container, event.exec_id, event.exit)
        elif isinstance(event, protocol.OutOfMemory):
            container.state.oom_killed = True
            self._engine.containers.emit(container, "oom")
        elif isinstance(event, protocol.ClientDetached):
            if event.exec_id:
                self._engine.containers.emit(container, "exec_detach", execID=event.exec_id)
            else:
                self._engine.containers.emit(container, "detach")

    async def _watch(self, container: Container, task: Task) -> None:
        """What a shim that died without a word has left is cleaned up, and counts as killed."""
        try:
            await asyncio.shield(task.exit)
        except SeacanError as error:
            log.error("container %s: %s", container.id, error)
            exit = await lost(self._engine.launcher, task.bundle)
            if container.task is task:
                self.ended(container, task, exit or Exit(exit_code=137, at=now(), signal=_SIGKILL, error=str(error)))

    def ended(self, container: Container, task: Task | None, exit: Exit) -> None:
        """Record an exit, and see to everything that follows from it."""
        engine = self._engine
        state = container.state
        health.end(container)
        container.task = container.sandbox = None
        engine.execs.container_ended(container)
        ran = max(0, exit.at - state.started_at) / 1e9
        restart = self._should_restart(container, exit.exit_code, ran)
        state.exit_code = exit.exit_code
        state.oom_killed = exit.oom_killed or state.oom_killed
        state.error = exit.error
        state.finished_at = exit.at
        state.paused = False
        state.pid = 0
        state.running = state.restarting = restart
        if restart:
            state.restart_count += 1
        engine.containers.save_state(container)
        container.releasing = container.spawn(self._after(container, exit.exit_code, ran, restart), "release")
        container.clearing = container.spawn(self._clear(container, task), "clear")

    async def _after(self, container: Container, code: int, ran: float, restart: bool) -> None:
        """Free what the container held, tell who waits, and apply the restart policy."""
        await self._release(container)
        self._engine.containers.emit(container, "die", exitCode=str(code), execDuration=str(int(ran)))
        container.tell_stopped()
        if restart:
            container.pending_restart = container.spawn(self._restart_later(container), "restart")
        elif container.host_config.auto_remove and not container.restarting_by_hand:
            container.spawn(self._auto_remove(container), "remove")

    async def _clear(self, container: Container, task: Task | None) -> None:
        """Remove the bundle once the shim has no more use for it."""
        if task is not None:
            await asyncio.shield(task.gone)
        # Not in a thread: it lies in memory (/run), and a thread's contest for the interpreter costs ten times as much.
        _remove_bundle(self._engine.containers.bundle(container))

    async def _release(self, container: Container) -> None:
        networks = self._engine.networks
        endpoints = networks.endpoints_of(container.id)
        try:
            await networks.release(container.id)
        except (SeacanError, OSError) as error:
            log.error("container %s has ended, but its networks cannot be released: %s", container.id, error)
        for endpoint in endpoints:
            self._network_event("disconnect", container, endpoint)
        try:
            await self._engine.volumes.unmount(container.id, container.record.mounts)
        except (SeacanError, OSError) as error:
            log.error("container %s has ended, but its volumes cannot be released: %s", container.id, error)

    async def _auto_remove(self, container: Container) -> None:
        try:
            await self._engine.containers.remove(container.id, force=True, volumes=True)
        except SeacanError as error:
            if container.id in self._engine.containers and not container.state.removing:  # by somebody else
                log.error("cannot remove container %s: %s", container.id, error)

    # --- restart policies ------------------------------------------------------------------------------------------

    def _should_restart(self, container: Container, exit_code: int, ran: float) -> bool:
        """dockerd's rule, and its back-off: 100 ms, doubled up to a minute, anew after ten good seconds."""
        policy = container.host_config.restart_policy
        state = container.state
        if self._closing or policy.name in ("", "no"):
            return False
        if ran >= RESTART_STEADY:
            container.restart_delay = 0.0
        container.restart_delay = min(container.restart_delay * 2 or RESTART_DELAY, RESTART_DELAY_LIMIT)
        if state.manually_stopped:
            return False
        if policy.name == "on-failure":
            limit = policy.maximum_retry_count
            return exit_code != 0 and (limit == 0 or state.restart_count < limit)
        return True

    async def _restart_later(self, container: Container) -> None:
        await asyncio.sleep(container.restart_delay)
        async with container.lock:
            container.pending_restart = None
            if not container.state.restarting:
                return
            try:
                await self._start(container)
            except SeacanError as error:
                log.warning("cannot restart container %s: %s", container.id, error)

    def restart_at_boot(self, container: Container) -> None:
        """What a starting engine does with a container that does not run: dockerd's rule."""
        state = container.state
        policy = container.host_config.restart_policy
        again = (
            state.started_at != 0
            and not state.dead
            and (
                policy.name == "always"
                or (policy.name == "unless-stopped" and not state.manually_stopped)
                or (
                    policy.name == "on-failure"
                    and state.exit_code != 0
                    and (policy.maximum_retry_count == 0 or state.restart_count < policy.maximum_retry_count)
                )
            )
        )
        if again:
            container.spawn(self._start_at_boot(container), "start")
        elif container.host_config.auto_remove and not state.running:
            container.spawn(self._auto_remove(container), "remove")

    async def _start_at_boot(self, container: Container) -> None:
        async with container.lock:
            if container.state.running:
                return
            try:
                await self._start(container)
            except SeacanError as error:
                log.warning("cannot start container %s: %s", container.id, error)

    def _cancel_restart(self, container: Container) -> None:
        if container.pending_restart is not None and container.pending_restart is not asyncio.current_task():
            container.pending_restart.cancel()
            container.pending_restart = None

    # --- stop, kill, pause -----------------------------------------------------------------------------------------

    async def stop(self, reference: str, *, patience: int | None = None, signal: str = "") -> None:
        """Ask a container to end, and make it end after ``patience`` seconds (negative: wait for ever).

        Raises:
            NotModified: it does not run.
        """
        container = self._engine.containers.get(reference)
        number = parse_signal(signal) if signal else self._stop_signal(container)
        if not container.state.running:
            raise NotModified("container is already stopped")
        await self._stop(container, container.stop_timeout if patience is None else patience, number)

    async def _stop(self, container: Container, patience: int, signal: int) -> None:
        if await self._stop_waiting_restart(container):
            self._engine.containers.emit(container, "stop")
            return
        with container.waiting() as stopped:
            seconds: float | None = patience if patience >= 0 else None
            try:
                await self._signal(container, signal)
            except SeacanError as error:
                log.warning("container %s: %s", container.id, error)
                seconds = 2.0
            if not container.state.running or await _within(stopped, seconds):
                self._engine.containers.emit(container, "stop")
                return
        await self.kill_and_wait(container)
        self._engine.containers.emit(container, "stop")

    async def _stop_waiting_restart(self, container: Container) -> bool:
        """Whether the container had ended and only waited for its restart, which then will not happen."""
        state = container.state
        if not state.restarting:
            return False
        async with container.lock:
            if state.status != "restarting":
                return False
            self._cancel_restart(container)
            container.state.manually_stopped = not self._closing
            container.state.running = container.state.restarting = False
            self._engine.containers.save_state(container)
            container.tell_stopped()
            if container.host_config.auto_remove and not container.restarting_by_hand:
                container.spawn(self._auto_remove(container), "remove")
        return True

    async def kill(self, reference: str, signal: str = "") -> None:
        """Send a signal (SIGKILL by default, and then wait for the end).

        Raises:
            Conflict: it does not run.
        """
        number = parse_signal(signal) if signal else _SIGKILL
        container = self._engine.containers.get(reference)
        if not container.state.running:
            raise Conflict(f"container {container.id} is not running")
        if number == _SIGKILL:
            await self.kill_and_wait(container)
        else:
            await self._signal(container, number)

    async def kill_and_wait(self, container: Container) -> None:
        if await self._stop_waiting_restart(container):
            return
        with container.waiting() as stopped:
            if not container.state.running:
                return
            await self._signal(container, _SIGKILL)
            if container.state.running and not await _within(stopped, KILL_TIMEOUT):
                raise System(
                    f"cannot kill container {container.id}: tried to kill container, but did not receive an exit event"
                )

    async def _signal(self, container: Container, number: int) -> None:
        if container.state.restarting:
            return
        task = container.require_running()
        ends = number == _SIGKILL or number == self._stop_signal(container)
        if ends and not self._closing and not container.restarting_by_hand:
            container.state.manually_stopped = True
            self._engine.containers.save_state(container)
        if number == _SIGKILL:
            health.end(container)
        await task.signal(number)
        if ends and container.state.paused:
            await self._thaw(container)
        self._engine.containers.emit(container, "kill", signal=str(number))

    async def restart(self, reference: str, *, patience: int | None = None, signal: str = "") -> None:
        container = self._engine.containers.get(reference)
        number = parse_signal(signal) if signal else self._stop_signal(container)
        container.restarting_by_hand = True
        try:
            if container.state.running:
                await self._stop(container, container.stop_timeout if patience is None else patience, number)
            async with container.lock:
                if not container.state.running:
                    container.state.restart_count = 0
                    await self._start(container)
        except SeacanError as error:
            raise type(error)(f"Cannot restart container {reference}: {error}") from error
        finally:
            container.restarting_by_hand = False
        self._engine.containers.emit(container, "restart")

    async def pause(self, reference: str) -> None:
        container = self._engine.containers.get(reference)
        async with container.lock:
            container.require_running()
            if container.state.paused:
                raise Conflict(f"Container {container.id} is already paused")
            try:
                await asyncio.to_thread(self._engine.cgroup(container).freeze)
            except OSError as error:
                raise System(f"cannot pause container {container.id}: {error}") from error
            if container.task is None:
                raise Conflict(f"container {container.id} is not running")
            container.state.paused = True
            try:
                self._engine.containers.save_state(container)
            except System:
                await self._thaw(container)
                raise
            health.end(container)
        self._engine.containers.emit(container, "pause")

    async def unpause(self, reference: str) -> None:
        container = self._engine.containers.get(reference)
        async with container.lock:
            if not container.state.paused:
                raise System(f"Container {container.id} is not paused")
            await self._thaw(container)
            health.begin(self._engine, container)
            self._engine.containers.save_state(container)
        self._engine.containers.emit(container, "unpause")

    async def _thaw(self, container: Container) -> None:
        try:
            await asyncio.to_thread(self._engine.cgroup(container).thaw)
        except OSError as error:
            raise System(f"Cannot unpause container {container.id}: {error}") from error
        container.state.paused = False

    async def resize(self, reference: str, height: int, width: int) -> None:
        container = self._engine.containers.get(reference)
        task = container.require_running()
        await task.resize(height, width)
        self._engine.containers.emit(container, "resize", height=str(height), width=str(width))

    async def apply_limits(self, container: Container, host_config: HostConfig) -> None:
        """Give a running container the limits of ``host_config``. Lock held."""
        resources = oci.resources(host_config, self._engine.options)
        try:
            await asyncio.to_thread(self._engine.cgroup(container).apply, resources)
        except (OSError, SeacanError) as error:
            raise System(f"Cannot update container {container.id}: {error}") from error

    # --- waiting ---------------------------------------------------------------------------------------------------

    async def wait(
        self, reference: str, condition: str = "not-running", *, ready: asyncio.Event | None = None
    ) -> ExitStatus:
        """Wait until the container is not running, has exited (``next-exit``), or is gone (``removed``).

        ``ready`` is set once the wait is registered: whatever happens from then on is seen.
        """
        container = self._engine.containers.get(reference)
        if condition not in ("", "not-running", "next-exit", "removed"):
            raise InvalidParameter(f'invalid condition: "{condition}"')
        with container.waiting(removed=condition == "removed") as future:
            if ready is not None:
                ready.set()
            if condition in ("", "not-running") and not container.state.running:
                return ExitStatus(container.state.exit_code)
            return await future

    def _stop_signal(self, container: Container) -> int:
        return parse_signal(container.config.stop_signal or "TERM")

    def forget(self, container: Container) -> None:
        """The container is being removed: stop everything that goes on for it."""
        health.end(container)
        self._cancel_restart(container)
        self._dismiss(container.id)

    async def close(self) -> None:
        """The engine ends. Containers go on with ``live_restore``; else they are stopped, as by dockerd, and those with
        a restart policy come back at the next start."""
        self._closing = True
        for id in tuple(self._waiting):
            self._dismiss(id)
        if self._engine.options.live_restore:
            return
        limit = self._engine.options.shutdown_timeout
        live = [container for container in self._engine.containers if container.state.running]
        async with asyncio.TaskGroup() as group:
            for container in live:
                group.create_task(self._stop_at_close(container, limit))

    async def _stop_at_close(self, container: Container, limit: int) -> None:
        patience = container.stop_timeout
        if limit >= 0:
            patience = min(patience, limit) if patience >= 0 else limit
        try:
            if container.state.paused:
                await self.unpause(container.id)
            await self._stop(container, patience, self._stop_signal(container))
            await container.settled()
        except SeacanError as error:
            log.error("cannot stop container %s: %s", container.id, error)


async def _within(future: asyncio.Future[ExitStatus], seconds: float | None) -> bool:
    try:
        await asyncio.wait_for(asyncio.shield(future), seconds)
    except TimeoutError:
        return False
    return True


def _runtime_words(message: str) -> str:
    """The runtime's message behind containerd's prefixes, and with what the docker client looks for.

    The client tells 126 by "permission denied", which Go's runtime no longer says of a folder; dockerd adds it too.
    """
    if message.lower().endswith("is a directory"):
        message += ": permission denied"
    return PREFIX + message


def _remove_bundle(bundle: Path) -> None:
    try:
        for name in os.listdir(bundle):
            os.unlink(f"{bundle}/{name}")
        os.rmdir(bundle)
    except FileNotFoundError:
        pass
    except OSError:  # it holds folders
        shutil.rmtree(bundle, ignore_errors=True)
