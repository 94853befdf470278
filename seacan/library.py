"""Containers from a Python program, without a daemon: the engine in this process.

    import seacan

    with seacan.run("busybox", ["echo", "hi"]) as container:
        print(container.logs())

:class:`AsyncEngine` and :class:`AsyncContainer` are for asyncio programs; :class:`Engine` and :class:`Container` are
the same without ``await``: their engine works on an event loop in a thread of its own. What these few methods do not
cover is reached through :attr:`AsyncEngine.core`, the engine proper (:class:`seacan.engine.engine.Engine`).

An engine needs root, and holds its folders alone: beside a running ``seacand`` give it folders of its own
(``data_root``, ``exec_root``, or the environment's ``SEACAN_DATA_ROOT`` and ``SEACAN_EXEC_ROOT``). Containers outlive
the program unless they are removed, as leaving a ``with`` block does.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeVar

import msgspec

from seacan.engine.config import ContainerConfig, ExecConfig, HostConfig, PortBinding
from seacan.engine.engine import Engine as CoreEngine
from seacan.engine.frames import Demultiplexer
from seacan.engine.options import EngineOptions
from seacan.engine.streams import Client
from seacan.errors import InvalidParameter, NotFound

if TYPE_CHECKING:
    from seacan.engine.container import Container as CoreContainer

T = TypeVar("T")

Status = Literal["created", "running", "paused", "restarting", "removing", "exited", "dead"]
Host = int | tuple[str, int] | None
"""Where a port is published: a port of every address, an (address, port), or None for a free port."""


@dataclass(frozen=True, slots=True)
class ExecResult:
    """How a command in a container ended, and everything it wrote."""

    exit_code: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Standard output, decoded."""
        return self.stdout.decode(errors="replace")


@dataclass(frozen=True, slots=True)
class Image:
    """An image of the engine. ``size`` is in bytes."""

    id: str
    tags: tuple[str, ...]
    size: int
    architecture: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """The arguments of ``run``, as configuration."""

    image: str
    command: Sequence[str] | None = None
    name: str = ""
    environment: Mapping[str, str] | None = None
    user: str = ""
    workdir: str = ""
    entrypoint: Sequence[str] | None = None
    hostname: str = ""
    labels: Mapping[str, str] | None = None
    volumes: Sequence[str] = ()
    ports: Mapping[str, Host] | None = None
    network: str = ""
    memory: int = 0
    cpus: float = 0.0
    privileged: bool = False
    read_only: bool = False
    init: bool = False
    tty: bool = False
    stdin: bytes | None = None
    config: ContainerConfig | None = None
    host_config: HostConfig | None = None

    def configs(self) -> tuple[ContainerConfig, HostConfig]:
        base, host = self.config or ContainerConfig(), self.host_config or HostConfig()
        changes: dict[str, Any] = {"image": self.image}
        if self.command is not None:
            if isinstance(self.command, str):
                raise InvalidParameter(f"command must be a sequence of strings, not one string: {self.command!r}")
            changes["cmd"] = list(self.command)
        if self.environment:
            given = [f"{name}={value}" for name, value in self.environment.items()]
            changes["env"] = [*(base.env or []), *given]
        if self.entrypoint is not None:
            changes["entrypoint"] = list(self.entrypoint)
        if self.labels:
            changes["labels"] = {**(base.labels or {}), **self.labels}
        texts = {"user": self.user, "working_dir": self.workdir, "hostname": self.hostname}
        changes |= {name: text for name, text in texts.items() if text}
        if self.tty:
            changes["tty"] = True
        if self.stdin is not None:
            changes |= {"open_stdin": True, "stdin_once": True, "attach_stdin": True}
        if self.ports:
            changes["exposed_ports"] = {**(base.exposed_ports or {}), **{_port(port): {} for port in self.ports}}
        return msgspec.structs.replace(base, **changes), self._host_config(host)

    def _host_config(self, base: HostConfig) -> HostConfig:
        changes: dict[str, Any] = {}
        if self.volumes:
            changes["binds"] = [*(base.binds or []), *self.volumes]
        if self.ports:
            changes["port_bindings"] = {_port(port): [_binding(host)] for port, host in self.ports.items()}
        if self.network:
            changes["network_mode"] = self.network
        if self.memory:
            changes["memory"] = self.memory
        if self.cpus:
            changes["nano_cpus"] = round(self.cpus * 1e9)
        for name, value in (("privileged", self.privileged), ("readonly_rootfs", self.read_only), ("init", self.init)):
            if value:
                changes[name] = True
        return msgspec.structs.replace(base, **changes)


def _port(text: str) -> str:
    return text if "/" in text else f"{text}/tcp"


def _binding(host: Host) -> PortBinding:
    if isinstance(host, tuple):
        return PortBinding(host_ip=host[0], host_port=str(host[1]))
    return PortBinding(host_port="" if host is None else str(host))


class AsyncContainer:
    """A container of an :class:`AsyncEngine`. ``async with`` removes it at the end, whatever it does then."""

    def __init__(self, core: CoreEngine, id: str) -> None:
        self._core = core
        self.id: Final = id

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id[:12]}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.remove(force=True, volumes=True)
        except NotFound:
            pass  # someone was quicker

    @property
    def _record(self) -> CoreContainer:
        return self._core.containers.get(self.id)

    @property
    def name(self) -> str:
        return self._record.name

    @property
    def status(self) -> Status:
        return self._record.state.status  # type: ignore[return-value]

    @property
    def exit_code(self) -> int | None:
        """How its last run ended; None if it runs, or never has."""
        state = self._record.state
        return None if state.running or not state.finished_at else state.exit_code

    async def inspect(self) -> dict[str, Any]:
        """Everything, as ``docker inspect`` prints it."""
        from seacan.engine.inspection import inspect

        return await inspect(self._core, self._record)

    async def start(self) -> None:
        await self._core.lifecycle.start(self.id)

    async def wait(self) -> int:
        """Wait until it does not run; gives its exit code."""
        return (await self._core.lifecycle.wait(self.id)).code

    async def stop(self, patience: int | None = None) -> None:
        """Ask it to end; after ``patience`` seconds (its own stop timeout, 10 by default) make it."""
        await self._core.lifecycle.stop(self.id, patience=patience)

    async def kill(self, signal: str = "KILL") -> None:
        await self._core.lifecycle.kill(self.id, signal)

    async def pause(self) -> None:
        await self._core.lifecycle.pause(self.id)

    async def unpause(self) -> None:
        await self._core.lifecycle.unpause(self.id)

    async def remove(self, *, force: bool = False, volumes: bool = False) -> None:
        """Remove it; ``force`` if it runs, ``volumes`` its anonymous volumes too."""
        await self._core.containers.remove(self.id, force=force, volumes=volumes)

    async def logs(self, *, wait: bool = True, stdout: bool = True, stderr: bool = True) -> str:
        """What it has written, once it has ended; with ``wait=False``, what it has written so far."""
        if wait:
            await self.wait()
        chunks = [chunk async for chunk in self._read(follow=False, stdout=stdout, stderr=stderr)]
        return b"".join(chunks).decode(errors="replace")

    def follow(self, *, stdout: bool = True, stderr: bool = True) -> AsyncIterator[bytes]:
        """What it writes, from the beginning and as it comes, until it ends."""
        return self._read(follow=True, stdout=stdout, stderr=stderr)

    def _read(self, *, follow: bool, stdout: bool, stderr: bool) -> AsyncIterator[bytes]:
        from seacan.engine.logs import read
        from seacan.runtime.logs import ReadOptions

        options = ReadOptions(stdout=stdout, stderr=stderr, follow=follow, multiplexed=False)
        return (chunk async for chunk in read(self._core, self._record, options) if chunk)

    async def exec(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        user: str = "",
        workdir: str = "",
        privileged: bool = False,
        stdin: bytes | None = None,
    ) -> ExecResult:
        """Run a command in it, and wait for its end.

        Raises:
            Conflict: the container does not run. A command that cannot be executed gives exit code 126 or 127.
        """
        if isinstance(command, str):
            raise InvalidParameter(f"command must be a sequence of strings, not one string: {command!r}")
        asked = ExecConfig(
            cmd=list(command),
            env=[f"{name}={value}" for name, value in (environment or {}).items()],
            user=user,
            working_dir=workdir,
            privileged=privileged,
            attach_stdin=stdin is not None,
            attach_stdout=True,
            attach_stderr=True,
        )
        registered = self._core.execs.create(self.id, asked)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)

            async def connect(multiplexed: bool) -> Client:
                return Client(fd=theirs.detach(), stdin=stdin is not None, multiplexed=multiplexed)

            await self._core.execs.start(registered.id, connect)
            feeding = asyncio.ensure_future(_feed(ours, stdin or b""))
            try:
                output = await _collect(ours)
            finally:
                feeding.cancel()
        return ExecResult(await registered.ended, output[1], output[2])


async def _feed(to: socket.socket, data: bytes) -> None:
    loop = asyncio.get_running_loop()
    try:
        await loop.sock_sendall(to, data)
        to.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the command ended without reading everything


async def _collect(source: socket.socket) -> dict[int, bytes]:
    loop = asyncio.get_running_loop()
    frames = Demultiplexer()
    parts: dict[int, list[bytes]] = {1: [], 2: []}
    while data := await loop.sock_recv(source, 1 << 16):
        for stream, payload in frames.feed(data):
            parts[2 if stream == 2 else 1].append(payload)
    return {stream: b"".join(pieces) for stream, pieces in parts.items()}


class AsyncEngine:
    """An engine in this process, for asyncio.

        async with seacan.AsyncEngine() as engine:
            async with await engine.run("busybox", ["echo", "hi"]) as container:
                print(await container.logs())

    ``options`` are those of the daemon; ``data_root`` and ``exec_root`` are given most often, and so are arguments.
    """

    def __init__(
        self,
        *,
        data_root: str | os.PathLike[str] | None = None,
        exec_root: str | os.PathLike[str] | None = None,
        options: EngineOptions | None = None,
    ) -> None:
        options = options or EngineOptions()
        for name, given in (("data_root", data_root), ("exec_root", exec_root)):
            place = given if given is not None else os.environ.get(f"SEACAN_{name.upper()}")
            if place is not None:
                options = msgspec.structs.replace(options, **{name: os.fspath(place)})
        self.core: Final = CoreEngine(options)

    async def start(self) -> None:
        """Adopt what is running. ``async with`` does it.

        Raises:
            System: another engine uses these folders, or this process may not.
        """
        await self.core.start()

    async def close(self) -> None:
        """Let go; containers go on."""
        await self.core.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # --- containers -------------------------------------------------------------------------------------------------

    async def create(self, image: str, command: Sequence[str] | None = None, **options: Any) -> AsyncContainer:
        """Make a container without starting it; the arguments are those of :meth:`run`, without ``stdin``."""
        run = _Run(image=image, command=command, **options)
        config, host_config = run.configs()
        made = await self.core.containers.create(config, host_config, name=run.name)
        return AsyncContainer(self.core, made.id)

    async def run(
        self,
        image: str,
        command: Sequence[str] | None = None,
        *,
        name: str = "",
        environment: Mapping[str, str] | None = None,
        user: str = "",
        workdir: str = "",
        entrypoint: Sequence[str] | None = None,
        hostname: str = "",
        labels: Mapping[str, str] | None = None,
        volumes: Sequence[str] = (),
        ports: Mapping[str, Host] | None = None,
        network: str = "",
        memory: int = 0,
        cpus: float = 0.0,
        privileged: bool = False,
        read_only: bool = False,
        init: bool = False,
        tty: bool = False,
        stdin: bytes | None = None,
        config: ContainerConfig | None = None,
        host_config: HostConfig | None = None,
    ) -> AsyncContainer:
        """Start a command in a new container.

        Args:
            volumes: as for ``docker run -v``: ``source:target[:ro]``.
            ports: container port ("80", "53/udp") to where it is published.
            network: "bridge" (the default), "none", "host", a network's name or "container:ID".
            memory: the limit in bytes.
            cpus: the limit in processors.
            stdin: what the command reads; without, it reads nothing.
            config, host_config: everything else; the arguments above come on top.

        Raises:
            NotFound: no such image. RuntimeFailed: the command cannot be executed; no container is left.
        """
        container = await self.create(
            image,
            command,
            name=name,
            environment=environment,
            user=user,
            workdir=workdir,
            entrypoint=entrypoint,
            hostname=hostname,
            labels=labels,
            volumes=volumes,
            ports=ports,
            network=network,
            memory=memory,
            cpus=cpus,
            privileged=privileged,
            read_only=read_only,
            init=init,
            tty=tty,
            stdin=stdin,
            config=config,
            host_config=host_config,
        )
        try:
            if stdin is not None:
                await self._give(container, stdin)
            await container.start()
        except BaseException:
            await container.remove(force=True, volumes=True)
            raise
        return container

    async def _give(self, container: AsyncContainer, data: bytes) -> None:
        """Attach a writer of ``data`` to the container that is about to start."""
        from seacan.engine.attach import attach

        ours, theirs = socket.socketpair()

        async def connect(multiplexed: bool) -> Client:
            return Client(fd=theirs.detach(), stdin=True, stdout=False, stderr=False, multiplexed=multiplexed)

        try:
            await attach(self.core, container.id, connect, replay=False, stream=True)
        except BaseException:
            ours.close()
            theirs.close()
            raise

        async def feed() -> None:
            with ours:
                ours.setblocking(False)
                await _feed(ours, data)

        record = self.core.containers.get(container.id)
        task = asyncio.ensure_future(feed())
        record.background.add(task)
        task.add_done_callback(record.background.discard)

    def container(self, reference: str) -> AsyncContainer:
        """The container with this name, ID or unique beginning of an ID. Raises NotFound."""
        return AsyncContainer(self.core, self.core.containers.get(reference).id)

    def containers(self, *, all: bool = False) -> list[AsyncContainer]:
        """The running containers, or all."""
        return [AsyncContainer(self.core, found.id) for found in self.core.containers if all or found.state.running]

    # --- images -----------------------------------------------------------------------------------------------------

    def images(self) -> list[Image]:
        return [self.image(id) for id in self.core.images.ids()]

    def image(self, reference: str) -> Image:
        """Raises NotFound."""
        found = self.core.images.get(reference)
        labels = found.config.defaults.labels or {}
        return Image(found.id, tuple(found.tags), found.size, found.config.architecture, labels)

    async def load(self, archive: str | os.PathLike[str]) -> list[Image]:
        """Load the images of an archive (``docker save``'s, or an OCI layout, compressed or not)."""
        from seacan.images.load import load_file

        return [self.image(found.id) for found in await load_file(self.core.images, Path(archive))]

    async def save(self, references: Iterable[str], archive: str | os.PathLike[str]) -> None:
        """Write images to an archive that ``docker load`` understands."""
        from seacan.images.save import save, select

        target = Path(archive)
        part = target.with_name(f"{target.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as file:
                async for piece in save(self.core.images, select(self.core.images, list(references))):
                    await asyncio.to_thread(file.write, piece)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    async def bootstrap(self, name: str) -> Image:
        """Make and load a base image (busybox, debian[:suite]) from the distribution's packages."""
        import tempfile

        from seacan.images.bootstrap import bootstrap

        with tempfile.TemporaryDirectory(prefix="seacan-bootstrap-", dir="/var/tmp") as folder:
            archive = Path(folder) / "image.tar"
            await asyncio.to_thread(bootstrap, name, archive)
            return (await self.load(archive))[0]

    def tag(self, reference: str, name: str) -> None:
        from seacan.images import reference as references

        self.core.images.tag(reference, references.parse(name).with_default_tag())

    def remove_image(self, reference: str, *, force: bool = False) -> None:
        self.core.images.remove(reference, force=force)


# --- without await -------------------------------------------------------------------------------------------------


class _Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="seacan", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise

    def call(self, function: Callable[[], T]) -> T:
        """A function that is no coroutine: the engine is touched by its loop's thread alone."""

        async def work() -> T:
            return function()

        return self.run(work())

    def close(self) -> None:
        async def end() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await self._loop.shutdown_asyncgens()
            await self._loop.shutdown_default_executor()

        self.run(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Container:
    """A container of an :class:`Engine`. ``with`` removes it at the end, whatever it does then."""

    def __init__(self, loop: _Loop, container: AsyncContainer) -> None:
        self._loop = loop
        self._container = container
        self.id: Final = container.id

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id[:12]}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.run(self._container.__aexit__(kind, error, trace))

    @property
    def name(self) -> str:
        return self._loop.call(lambda: self._container.name)

    @property
    def status(self) -> Status:
        return self._loop.call(lambda: self._container.status)

    @property
    def exit_code(self) -> int | None:
        """How its last run ended; None if it runs, or never has."""
        return self._loop.call(lambda: self._container.exit_code)

    def inspect(self) -> dict[str, Any]:
        """Everything, as ``docker inspect`` prints it."""
        return self._loop.run(self._container.inspect())

    def start(self) -> None:
        self._loop.run(self._container.start())

    def wait(self) -> int:
        """Wait until it does not run; gives its exit code."""
        return self._loop.run(self._container.wait())

    def stop(self, patience: int | None = None) -> None:
        """Ask it to end; after ``patience`` seconds (its own stop timeout, 10 by default) make it."""
        self._loop.run(self._container.stop(patience))

    def kill(self, signal: str = "KILL") -> None:
        self._loop.run(self._container.kill(signal))

    def pause(self) -> None:
        self._loop.run(self._container.pause())

    def unpause(self) -> None:
        self._loop.run(self._container.unpause())

    def remove(self, *, force: bool = False, volumes: bool = False) -> None:
        """Remove it; ``force`` if it runs, ``volumes`` its anonymous volumes too."""
        self._loop.run(self._container.remove(force=force, volumes=volumes))

    def logs(self, *, wait: bool = True, stdout: bool = True, stderr: bool = True) -> str:
        """What it has written, once it has ended; with ``wait=False``, what it has written so far."""
        return self._loop.run(self._container.logs(wait=wait, stdout=stdout, stderr=stderr))

    def follow(self, *, stdout: bool = True, stderr: bool = True) -> Iterator[bytes]:
        """What it writes, from the beginning and as it comes, until it ends."""

        async def begin() -> AsyncIterator[bytes]:
            return self._container.follow(stdout=stdout, stderr=stderr)

        async def following() -> bytes | None:
            return await anext(chunks, None)

        async def finish() -> None:
            close: Callable[[], Awaitable[None]] | None = getattr(chunks, "aclose", None)
            if close is not None:
                await close()

        chunks = self._loop.run(begin())
        try:
            while (chunk := self._loop.run(following())) is not None:
                yield chunk
        finally:
            self._loop.run(finish())

    def exec(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        user: str = "",
        workdir: str = "",
        privileged: bool = False,
        stdin: bytes | None = None,
    ) -> ExecResult:
        """Run a command in it, and wait for its end. Raises Conflict if the container does not run."""
        return self._loop.run(
            self._container.exec(
                command, environment=environment, user=user, workdir=workdir, privileged=privileged, stdin=stdin
            )
        )


class Engine:
    """An engine in this process.

        with seacan.Engine(data_root="/var/lib/mine", exec_root="/run/mine") as engine:
            engine.bootstrap("busybox")
            with engine.run("busybox", ["echo", "hi"]) as container:
                print(container.logs())

    It works on an event loop in a thread of its own, and may be used by several threads.
    """

    def __init__(
        self,
        *,
        data_root: str | os.PathLike[str] | None = None,
        exec_root: str | os.PathLike[str] | None = None,
        options: EngineOptions | None = None,
    ) -> None:
        self._loop = _Loop()
        self._engine = AsyncEngine(data_root=data_root, exec_root=exec_root, options=options)
        self._open = False

    def start(self) -> None:
        """Adopt what is running. ``with`` does it.

        Raises:
            System: another engine uses these folders, or this process may not.
        """
        try:
            self._loop.run(self._engine.start())
        except BaseException:
            self._loop.close()
            raise
        self._open = True

    def close(self) -> None:
        """Let go; containers go on."""
        if self._open:
            self._open = False
            try:
                self._loop.run(self._engine.close())
            finally:
                self._loop.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def create(self, image: str, command: Sequence[str] | None = None, **options: Any) -> Container:
        """Make a container without starting it; the arguments are those of :meth:`run`, without ``stdin``."""
        return Container(self._loop, self._loop.run(self._engine.create(image, command, **options)))

    def run(
        self,
        image: str,
        command: Sequence[str] | None = None,
        *,
        name: str = "",
        environment: Mapping[str, str] | None = None,
        user: str = "",
        workdir: str = "",
        entrypoint: Sequence[str] | None = None,
        hostname: str = "",
        labels: Mapping[str, str] | None = None,
        volumes: Sequence[str] = (),
        ports: Mapping[str, Host] | None = None,
        network: str = "",
        memory: int = 0,
        cpus: float = 0.0,
        privileged: bool = False,
        read_only: bool = False,
        init: bool = False,
        tty: bool = False,
        stdin: bytes | None = None,
        config: ContainerConfig | None = None,
        host_config: HostConfig | None = None,
    ) -> Container:
        """Start a command in a new container; the arguments are those of :meth:`AsyncEngine.run`."""
        started = self._engine.run(
            image,
            command,
            name=name,
            environment=environment,
            user=user,
            workdir=workdir,
            entrypoint=entrypoint,
            hostname=hostname,
            labels=labels,
            volumes=volumes,
            ports=ports,
            network=network,
            memory=memory,
            cpus=cpus,
            privileged=privileged,
            read_only=read_only,
            init=init,
            tty=tty,
            stdin=stdin,
            config=config,
            host_config=host_config,
        )
        return Container(self._loop, self._loop.run(started))

    def container(self, reference: str) -> Container:
        """The container with this name, ID or unique beginning of an ID. Raises NotFound."""
        return Container(self._loop, self._loop.call(lambda: self._engine.container(reference)))

    def containers(self, *, all: bool = False) -> list[Container]:
        """The running containers, or all."""
        found = self._loop.call(lambda: self._engine.containers(all=all))
        return [Container(self._loop, container) for container in found]

    def images(self) -> list[Image]:
        return self._loop.call(self._engine.images)

    def image(self, reference: str) -> Image:
        """Raises NotFound."""
        return self._loop.call(lambda: self._engine.image(reference))

    def load(self, archive: str | os.PathLike[str]) -> list[Image]:
        """Load the images of an archive (``docker save``'s, or an OCI layout, compressed or not)."""
        return self._loop.run(self._engine.load(archive))

    def save(self, references: Iterable[str], archive: str | os.PathLike[str]) -> None:
        """Write images to an archive that ``docker load`` understands."""
        self._loop.run(self._engine.save(references, archive))

    def bootstrap(self, name: str) -> Image:
        """Make and load a base image (busybox, debian[:suite]) from the distribution's packages."""
        return self._loop.run(self._engine.bootstrap(name))

    def tag(self, reference: str, name: str) -> None:
        self._loop.call(lambda: self._engine.tag(reference, name))

    def remove_image(self, reference: str, *, force: bool = False) -> None:
        self._loop.call(lambda: self._engine.remove_image(reference, force=force))


_default: Engine | None = None
_default_lock = threading.Lock()


def default_engine() -> Engine:
    """The engine of :func:`run`, with the default folders, started when it is first needed and closed at exit."""
    global _default
    with _default_lock:
        if _default is None:
            engine = Engine()
            engine.start()
            # Not atexit's: by then executors take no more work, and the engine's farewell needs one.
            threading._register_atexit(engine.close)  # type: ignore[attr-defined]
            _default = engine
        return _default


def run(image: str, command: Sequence[str] | None = None, **options: Any) -> Container:
    """Start a command in a new container of the default engine; see :meth:`AsyncEngine.run` for the options."""
    return default_engine().run(image, command, **options)
