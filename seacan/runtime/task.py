"""One container's shim, seen from the daemon. For asyncio.

A :class:`Task` is made by starting a shim or by finding the one that a former daemon has left, and ends with the
container. Its requests are answered by the shim in order; what happens by itself comes through ``on_event``.
"""

from __future__ import annotations

import _socket as socket
import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import msgspec

from seacan.errors import Conflict, RuntimeFailed, System
from seacan.runtime import packets, spec
from seacan.runtime.bundle import Exit
from seacan.runtime.failure import words
from seacan.runtime.launcher import Launcher, LauncherDied
from seacan.runtime.protocol import (
    Abandon,
    Attach,
    ClientDetached,
    Created,
    Describe,
    Description,
    Exec,
    ExecExited,
    ExecStarted,
    Exited,
    Failed,
    Fetch,
    FromShim,
    Keep,
    Make,
    Noted,
    OutOfMemory,
    Resize,
    Signal,
    Start,
    ToShim,
)

SHIM = "seacan.runtime.shim:main"
CLEANUP = "seacan.runtime.maker:clean_up"
_ATTEMPTS = 10
"""How often a shim is asked for when the launcher dies under the request: it may be killed again and again."""

Event = Exited | ExecExited | ClientDetached | OutOfMemory

_decode = msgspec.json.Decoder(FromShim).decode


class Sandbox:
    """What others need of a created container. The descriptors are the Task's, until :meth:`close`.

    ``netns`` and ``rtnl`` (a NETLINK_ROUTE socket opened inside) are None unless the container has a network namespace
    of its own making.
    """

    __slots__ = ("netns", "pid", "pidfd", "rtnl")

    def __init__(self, pid: int, fds: Sequence[int]) -> None:
        self.pid = pid
        self.pidfd: int = fds[0]
        self.netns: int | None = fds[1] if len(fds) > 1 else None
        self.rtnl: int | None = fds[2] if len(fds) > 2 else None

    def close_network(self) -> None:
        """Close ``netns`` and ``rtnl``: the namespace can go with the container."""
        for fd in (self.netns, self.rtnl):
            if fd is not None:
                os.close(fd)
        self.netns = self.rtnl = None

    def close(self) -> None:
        self.close_network()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


class Waiting:
    """A shim that has no container yet. It is forked while the daemon does something else, such as writing the bundle
    that the shim is then told of.

    Whoever makes one either has it :meth:`make` a container or closes it.
    """

    def __init__(self, launcher: Launcher) -> None:
        self._channel: socket.socket | None
        self._channel, theirs = packets.pair()
        self._launched = asyncio.ensure_future(self._launch(launcher, theirs))
        self._launched.add_done_callback(lambda launched: launched.cancelled() or launched.exception())

    @staticmethod
    async def _launch(launcher: Launcher, theirs: socket.socket) -> None:
        try:
            process = await launcher.launch(SHIM, "", [theirs.fileno()])
        finally:
            theirs.close()
        process.close()  # its end is the channel's

    async def make(self, bundle: Path) -> socket.socket:
        """Have the container of ``bundle`` made; gives the channel to the shim, which runs.

        Raises LauncherDied where there is no shim, and System.
        """
        channel, self._channel = self._channel, None
        assert channel is not None, "a shim makes one container"
        try:
            try:
                packets.send(channel, Make(bundle=str(bundle)))
            except BrokenPipeError:
                await self._launched
                raise LauncherDied("the shim died before it had a container") from None
            try:
                await asyncio.shield(self._launched)
            except LauncherDied:
                # If it had forked, the shim has the other end, and says something; else nobody has.
                await _readable(channel)
                if _ended(channel):
                    raise
        except BaseException:
            channel.close()
            raise
        return channel

    def close(self) -> None:
        """Let it end, unless it has got a container."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None


class Task:
    """See the module. Made by :meth:`spawn` or :meth:`reconnect`.

    ``on_event(task, event)`` is called from the event loop, never concurrently, for everything that the container does
    by itself. When it has returned, attached clients are told of an exit by the end of their streams, so the state
    that they then ask for has to be up to date by then.
    """

    def __init__(self, bundle: Path, connection: socket.socket, on_event: Callable[[Task, Event], None]) -> None:
        self.bundle = bundle
        self.started = False
        self.exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        """How init ended, once ``exit.json`` is on disk. RuntimeFailed where the container never ran; System where
        the shim died without a word (:func:`lost` then cleans up)."""
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the shim has taken the container off the system: then its bundle may be used again."""
        self.execs: dict[str, int] = {}
        """pids of the running execs."""
        self._on_event = on_event
        self._channel = connection
        self._sequence = 0
        self._asked: dict[int, asyncio.Future[tuple[FromShim, list[int]]]] = {}
        self._created: asyncio.Future[Sandbox] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(connection, self._receive)

    @classmethod
    async def spawn(
        cls,
        launcher: Launcher,
        bundle: Path,
        on_event: Callable[[Task, Event], None],
        waiting: Waiting | None = None,
    ) -> Task:
        """Have a shim, ``waiting`` or a new one, make the container of ``bundle``. Returns when the shim runs.

        Raises System.
        """
        shim = waiting or Waiting(launcher)
        for _ in range(_ATTEMPTS - 1):
            try:
                return cls(bundle, await shim.make(bundle), on_event)
            except LauncherDied:
                shim = Waiting(launcher)
        return cls(bundle, await shim.make(bundle), on_event)

    @classmethod
    async def reconnect(cls, bundle: Path, on_event: Callable[[Task, Event], None]) -> Task | None:
        """The task of a shim that lives on from a former daemon, or None where there is none.

        Exits of execs that happened meanwhile are passed to ``on_event`` before this returns. Without a shim,
        ``exit.json`` tells how the container ended, if it did; otherwise see :func:`lost`.
        """
        try:
            connection = packets.connect(str(bundle), "shim.sock")
        except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
            return None
        task = cls(bundle, connection, on_event)
        try:
            description, fds = await task._ask(lambda seq: Describe(seq=seq))
        except (RuntimeFailed, System):
            return None  # it is just ending
        assert isinstance(description, Description)
        task.started = description.started
        task.execs = dict(description.execs)
        if not task._created.done():
            task._created.set_result(Sandbox(description.pid, fds))
        for exec_id, exit in description.ended_execs.items():
            task._happened(ExecExited(exec_id=exec_id, exit=exit))
        if description.exit is not None and not task.exit.done():
            task._happened(Exited(exit=description.exit))
        return task

    # --- requests ---------------------------------------------------------------------------------------------

    async def created(self) -> Sandbox:
        """Wait until init exists in its namespaces. Raises RuntimeFailed when the container could not be made."""
        return await asyncio.shield(self._created)

    @contextlib.asynccontextmanager
    async def sandbox(self) -> AsyncIterator[Sandbox]:
        """The sandbox anew, with descriptors that are open for as long as the context lasts.

        What :meth:`created` gives may be closed by its users once the container runs: of many containers, descriptors
        that are hardly ever needed are what a daemon runs out of first. Raises Conflict once the container is gone.
        """
        description, fds = await self._ask(lambda seq: Describe(seq=seq))
        assert isinstance(description, Description)
        sandbox = Sandbox(description.pid, fds)
        try:
            yield sandbox
        finally:
            sandbox.close()

    async def start(self) -> None:
        """Let init execute the user's program; returns when it does.

        Raises:
            RuntimeFailed: it could not (126, 127, 128); the shim has undone the creation and ends.
        """
        await self._ask(lambda seq: Start(seq=seq))
        self.started = True

    async def attach(
        self,
        fd: int,
        *,
        exec_id: str = "",
        stdin: bool = False,
        stdout: bool = True,
        stderr: bool = True,
        multiplexed: bool = False,
        detach_keys: bytes = b"\x10\x11",
        pending: bytes = b"",
    ) -> None:
        """Connect a client's stream socket; ``fd`` stays the caller's to close. See :class:`Attach`."""
        await self._ask(
            lambda seq: Attach(
                seq=seq,
                exec_id=exec_id,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                multiplexed=multiplexed,
                detach_keys=detach_keys,
                pending=pending,
            ),
            [fd],
        )

    async def exec(
        self,
        exec_id: str,
        process: spec.Process,
        fd: int | None = None,
        *,
        stdin: bool = False,
        stdout: bool = False,
        stderr: bool = False,
        multiplexed: bool = False,
        detach_keys: bytes = b"\x10\x11",
        pending: bytes = b"",
    ) -> int:
        """Run ``process`` in the container and give its pid. ``fd``, a client's connection, stays the caller's.

        Raises RuntimeFailed with 126, 127 or 128. The end comes as :class:`ExecExited`.
        """
        path = self.bundle / f"exec-{exec_id}.json"
        try:
            path.write_bytes(spec.encode(process))
        except OSError as error:
            raise System(f"cannot write {path}: {words(error)}") from error
        try:
            answer, _ = await self._ask(
                lambda seq: Exec(
                    seq=seq,
                    exec_id=exec_id,
                    stdin=stdin,
                    stdout=stdout,
                    stderr=stderr,
                    multiplexed=multiplexed,
                    detach_keys=detach_keys,
                    pending=pending,
                ),
                [] if fd is None else [fd],
            )
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            raise
        assert isinstance(answer, ExecStarted)
        self.execs[exec_id] = answer.pid
        return answer.pid

    async def signal(self, signal: int, *, exec_id: str = "", everyone: bool = False) -> None:
        """Signal init, an exec, or every process of the container; one that has ended is no error."""
        await self._ask(lambda seq: Signal(seq=seq, signal=int(signal), exec_id=exec_id, everyone=everyone))

    async def resize(self, height: int, width: int, *, exec_id: str = "") -> None:
        """Set the size of the terminal, in characters."""
        await self._ask(lambda seq: Resize(seq=seq, height=height, width=width, exec_id=exec_id))

    async def keep(self, name: str, fds: Sequence[int]) -> None:
        """Have the shim hold copies of ``fds`` as long as it lives; none forgets ``name``."""
        await self._ask(lambda seq: Keep(seq=seq, name=name), fds)

    async def fetch(self, name: str) -> list[int]:
        """Copies of what was kept under ``name``, the caller's to close; empty when there is nothing."""
        return (await self._ask(lambda seq: Fetch(seq=seq, name=name)))[1]

    async def abandon(self) -> None:
        """Undo the creation, whatever state it is in; no exit is recorded. Returns when nothing is left."""
        with contextlib.suppress(RuntimeFailed, System, Conflict):
            await self._ask(lambda seq: Abandon(seq=seq))
        await asyncio.shield(self.gone)

    def close(self) -> None:
        """Let go of the shim, which goes on by itself."""
        self._lost(System("the daemon has let go of this container"))

    # --- the channel ------------------------------------------------------------------------------------------

    async def _ask(self, build: Callable[[int], ToShim], fds: Sequence[int] = ()) -> tuple[FromShim, list[int]]:
        if self.gone.done():
            raise self._over()
        self._sequence += 1
        sequence = self._sequence
        request = build(sequence)
        answer: asyncio.Future[tuple[FromShim, list[int]]] = asyncio.get_running_loop().create_future()
        self._asked[sequence] = answer
        try:
            while True:
                try:
                    packets.send(self._channel, request, fds)
                    break
                except BlockingIOError:
                    await asyncio.sleep(0.005)
                    if self.gone.done():
                        raise self._over() from None
                except BrokenPipeError:
                    break  # what it still had to say is being read
                except OSError as error:
                    raise System(f"cannot ask the shim of {self.bundle.name}: {error}") from error
            message, received = await answer
        finally:
            self._asked.pop(sequence, None)
        if isinstance(message, Failed):
            raise RuntimeFailed(message.message, message.exit_code)
        return message, received

    def _over(self) -> Exception:
        if self.exit.done() and not self.exit.cancelled() and (error := self.exit.exception()) is not None:
            if isinstance(error, RuntimeFailed):
                return RuntimeFailed(error.message, error.exit_code)
            return System(str(error))
        return Conflict(f"container {self.bundle.name} is not running")

    def _receive(self) -> None:
        while not self.gone.done():
            try:
                packet = packets.receive(self._channel)
            except BlockingIOError:
                return
            if packet is None:
                self._lost(System(f"the shim of container {self.bundle.name} has died"))
                return
            data, fds = packet
            self._take(_decode(data), fds)

    def _take(self, message: FromShim, fds: list[int]) -> None:
        if isinstance(message, Exited | ExecExited | ClientDetached | OutOfMemory):
            self._happened(message)
        elif isinstance(message, Created):
            if self._created.done():
                packets.close_all(fds)
            else:
                self._created.set_result(Sandbox(message.pid, fds))
        elif isinstance(message, Failed) and message.seq == 0:
            self._never_was(RuntimeFailed(message.message, message.exit_code))
        else:
            answer = self._asked.pop(message.seq, None)
            if answer is None or answer.done():
                packets.close_all(fds)
            else:
                answer.set_result((message, fds))

    def _happened(self, event: Event) -> None:
        if isinstance(event, ExecExited):
            self.execs.pop(event.exec_id, None)
        try:
            self._on_event(self, event)
        finally:
            if isinstance(event, Exited) and not self.exit.done():
                self.exit.set_result(event.exit)
            if isinstance(event, Exited | ExecExited):
                with contextlib.suppress(OSError):
                    packets.send(self._channel, Noted(exec_id=event.exec_id if isinstance(event, ExecExited) else ""))

    def _never_was(self, error: Exception) -> None:
        for future in (self._created, self.exit):
            if not future.done():
                future.set_exception(error)
                future.exception()  # retrieved: nobody has to wait for it

    def _lost(self, error: System) -> None:
        if self.gone.done():
            return
        asyncio.get_running_loop().remove_reader(self._channel)
        self._channel.close()
        self._never_was(error)
        if not self._created.cancelled() and self._created.exception() is None:
            self._created.result().close()
        self.gone.set_result(None)
        asked, self._asked = self._asked, {}
        for answer in asked.values():
            if not answer.done():
                answer.set_exception(self._over())
                answer.exception()


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(connection, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(connection)


def _ended(connection: socket.socket) -> bool:
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except ConnectionError:
        return True


async def lost(launcher: Launcher, bundle: Path) -> Exit | None:
    """What is to be done about a container whose shim is gone without an ``exit.json``: kill it, remove what it has.

    Gives the exit that was recorded for it (137), or None where it never ran. Works on an intact bundle too, so it can
    be called whenever no shim lives there.
    """
    process = await launcher.launch(CLEANUP, str(bundle))
    await process.wait()
    return recorded_exit(bundle)


def recorded_exit(bundle: Path) -> Exit | None:
    """The bundle's ``exit.json``, or None."""
    try:
        return msgspec.json.decode((bundle / "exit.json").read_bytes(), type=Exit)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
