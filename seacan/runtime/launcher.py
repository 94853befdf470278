"""The daemon's way to have a process forked: a client of :mod:`seacan.runtime.forkserver`.

The daemon has threads and so never forks itself; it asks the launcher, which has none.
"""

from __future__ import annotations

import _socket as socket
import asyncio
import contextlib
import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from seacan.errors import System
from seacan.runtime import packets
from seacan.runtime.protocol import Ended, Failed, FromLauncher, Launch, Launched

_inherited: tuple[int, int] | None = None
"""RLIMIT_NOFILE before :func:`raise_descriptor_limit`: what containers are to get."""

_RESPAWN_DELAY = 0.1
"""Seconds; a launch that comes sooner starts the launcher itself."""

_decode = msgspec.json.Decoder(FromLauncher).decode


def raise_descriptor_limit() -> None:
    """Let this process open as many files as it may: each container needs three. Containers keep the old limit.

    With CAP_SYS_RESOURCE that is as many as the kernel lets anybody, whatever the daemon was started with.
    """
    global _inherited
    inherited = resource.getrlimit(resource.RLIMIT_NOFILE)
    for most in (int(Path("/proc/sys/fs/nr_open").read_text()), inherited[1]):
        if most <= inherited[0]:
            return
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, max(most, inherited[1])))
        except ValueError:  # beyond the hard limit
            continue
        _inherited = inherited
        return


class LauncherDied(System):
    """The launcher was killed between question and answer; whether it had forked is not known."""


class Process:
    """A process the launcher has forked. It holds ``pidfd`` until :meth:`wait` has returned or :meth:`close`."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self._status: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def wait(self) -> int:
        """Its exit status, 128+n for signal n; -1 where the launcher died first and nobody can know.

        Also then it returns no earlier than the process has ended.
        """
        status = await asyncio.shield(self._status)
        if status < 0 and self.pidfd >= 0:
            await _readable(self.pidfd)
        self.close()
        return status

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal; to a process that has ended, none."""
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)

    def close(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1

    def __del__(self) -> None:
        self.close()

    def _ended(self, status: int) -> None:
        if not self._status.done():
            self._status.set_result(status)


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(fd, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(fd)


class Launcher:
    """The launcher process, started again whenever it dies. For one event loop.

    ::

        launcher = Launcher()
        await launcher.start()
        process = await launcher.launch("package.module:function", "argument", [fd, …])
        status = await process.wait()
        await launcher.close()

    ``function(argument, fds)`` runs in a process of its own: session leader, nothing open but ``fds`` and the standard
    descriptors (input and output on /dev/null, errors relayed to the daemon's). What it returns is the exit status.
    """

    def __init__(self, program: str = "seacan.runtime.forkserver") -> None:
        self._program_name = program
        self._program: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._sequence = 0
        self._asked: dict[int, asyncio.Future[Process]] = {}
        self._processes: dict[int, Process] = {}
        self._closed = False
        self._respawn: asyncio.TimerHandle | None = None

    @property
    def pid(self) -> int | None:
        """Of the launcher's own process."""
        return self._program.pid if self._program is not None else None

    async def start(self) -> None:
        """Start the launcher. Raises System."""
        if self._channel is None:
            self._spawn()

    def _spawn(self) -> None:
        ours, theirs = packets.pair()
        try:
            program = subprocess.Popen(
                [sys.executable, "-m", self._program_name, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env=_environment(),
            )
        except OSError as error:
            ours.close()
            raise System(f"cannot start the launcher: {error}") from error
        finally:
            theirs.close()
        if _inherited is not None:
            resource.prlimit(program.pid, resource.RLIMIT_NOFILE, _inherited)
        self._program, self._channel = program, ours
        asyncio.get_running_loop().add_reader(ours, self._receive)

    async def launch(self, target: str, argument: str, fds: Sequence[int] = ()) -> Process:
        """Fork, and call ``target`` there. ``fds`` stay the caller's. Raises System, and LauncherDied."""
        if self._closed:
            raise System(f"cannot start {target}: the launcher is closed")
        if self._channel is None:
            self._spawn()
        assert self._channel is not None
        self._sequence += 1
        sequence = self._sequence
        answer: asyncio.Future[Process] = asyncio.get_running_loop().create_future()
        self._asked[sequence] = answer
        request = Launch(seq=sequence, target=target, argument=argument)
        try:
            while True:
                try:
                    packets.send(self._channel, request, fds)
                    break
                except BlockingIOError:
                    await asyncio.sleep(0.002)
                except OSError as error:
                    if error.errno in (errno.EPIPE, errno.ECONNRESET):  # it has died since
                        self._asked.pop(sequence)
                        self._lost()
                        self._spawn()
                        self._asked[sequence] = answer
                        continue
                    raise System(f"cannot ask the launcher for {target}: {error}") from error
            return await answer
        finally:
            self._asked.pop(sequence, None)

    async def close(self) -> None:
        """End the launcher. What it has forked goes on."""
        self._closed = True
        if self._respawn is not None:
            self._respawn.cancel()
        program = self._program
        self._lost()
        if program is not None:
            try:
                await asyncio.to_thread(program.wait, 5)
            except subprocess.TimeoutExpired:
                program.kill()
                await asyncio.to_thread(program.wait)

    def _receive(self) -> None:
        while self._channel is not None:
            try:
                packet = packets.receive(self._channel)
            except BlockingIOError:
                return
            if packet is None:
                self._lost()
                if not self._closed and self._respawn is None:
                    self._respawn = asyncio.get_running_loop().call_later(_RESPAWN_DELAY, self._spawn_again)
                return
            data, fds = packet
            message = _decode(data)
            if isinstance(message, Launched):
                process = Process(message.pid, fds[0])
                self._processes[message.pid] = process
                answer = self._asked.pop(message.seq, None)
                if answer is not None and not answer.done():
                    answer.set_result(process)
            elif isinstance(message, Failed):
                refused = self._asked.pop(message.seq, None)
                if refused is not None and not refused.done():
                    refused.set_exception(System(message.message))
            elif isinstance(message, Ended) and (ended := self._processes.pop(message.pid, None)) is not None:
                ended._ended(message.status)

    def _spawn_again(self) -> None:
        self._respawn = None
        if self._channel is None and not self._closed:
            try:
                self._spawn()
            except System:
                self._respawn = asyncio.get_running_loop().call_later(1.0, self._spawn_again)

    def _lost(self) -> None:
        if self._channel is not None:
            asyncio.get_running_loop().remove_reader(self._channel)
            self._channel.close()
            self._channel = None
        if self._program is not None and not self._closed:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._program.wait(0.1)  # its channel is closed, so this takes no time
            self._program = None
        asked, self._asked = self._asked, {}
        for answer in asked.values():
            if not answer.done():
                answer.set_exception(LauncherDied("the launcher died before it could answer"))
        processes, self._processes = self._processes, {}
        for process in processes.values():
            process._ended(-1)


def _environment() -> dict[str, str]:
    """Few and small memory pools: what a shim touches in them is its own from then on."""
    environment = dict(os.environ)
    environment.update(
        MALLOC_ARENA_MAX="1", MALLOC_TRIM_THRESHOLD_="65536", PYTHONPATH=os.pathsep.join(filter(None, sys.path))
    )
    return environment
