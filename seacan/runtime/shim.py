"""One container's shim: the parent of its init, holder of its streams, and the only process of ours it depends on.

Forked from the launcher with everything imported; one thread, one epoll loop. It has the container made
(:mod:`seacan.runtime.maker`), reports ``Created``, serves the daemon's requests (:mod:`seacan.runtime.protocol`) on
the channel it was born with and on ``shim.sock`` in the bundle, records the exit, and ends. It outlives daemon and
launcher.

What it does not do: decide anything. Restarts, networks, health and names are the daemon's.
"""

from __future__ import annotations

import _socket as socket
import contextlib
import errno
import gc
import os
import time
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

import msgspec

from seacan.errors import Conflict, InvalidParameter, NotFound, RuntimeFailed, SeacanError
from seacan.linux.syscalls import PR_SET_CHILD_SUBREAPER, prctl
from seacan.runtime import maker, packets, spec
from seacan.runtime.bundle import Exit, ShimConfig
from seacan.runtime.container import Stdio
from seacan.runtime.logs.writer import LogWriter
from seacan.runtime.loop import GONE, READ, WRITE, Loop
from seacan.runtime.process import new_keyring
from seacan.runtime.protocol import (
    Abandon,
    Attach,
    ClientDetached,
    Created,
    Describe,
    Description,
    Done,
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
from seacan.runtime.streams import STDERR, STDOUT, Streams

if TYPE_CHECKING:
    import signal
else:
    import _signal as signal  # without enumerations: what a shim does not use, it does not write to

SOCKET = "shim.sock"

_ORPHAN_GRACE = 30.0
"""Seconds a container that was not started yet waits for a daemon to come back."""

_DRAIN_GRACE = 2.0
"""Seconds that somebody else may keep the streams of a process open after its end; dockerd waits as long."""

_NOTED_GRACE = 5.0
"""Seconds that a connected daemon may take to note an exit."""

_RETRY = 0.1
"""Seconds until something is tried again that the system had no room for."""

_MAX_OWED = 4096
"""Messages a daemon may be behind before its connection is given up; it can connect again and ask."""

_decode_config = msgspec.json.Decoder(ShimConfig).decode
_decode_request = msgspec.json.Decoder(ToShim).decode
_decode_made = msgspec.json.Decoder(maker.FromMaker).decode


class _Daemon:
    """A daemon's connection."""

    __slots__ = ("channel", "owed")

    def __init__(self, connection: socket.socket) -> None:
        self.channel = connection
        self.owed: list[tuple[FromShim, list[int]]] = []


class _Process:
    """Init, or an exec. ``exit`` is set once it has been reaped."""

    __slots__ = ("exit", "pid", "reported", "streams")

    def __init__(self, pid: int, streams: Streams) -> None:
        self.pid = pid
        self.streams = streams
        self.exit: Exit | None = None
        self.reported = False


def main(_argument: str, fds: Sequence[int]) -> int:
    """The launcher's target. ``fds`` is the channel to the daemon that asked, and says which container it is for."""
    gc.disable()
    return Shim(socket.socket(fileno=fds[0])).run()


def _ignore(number: int, frame: object) -> None:
    """SIGCHLD only has to wake the loop."""


class _Execution:
    """An exec that is being made."""

    __slots__ = ("channel", "console", "daemon", "direct", "fds", "pid", "pipes", "request")

    def __init__(
        self,
        channel: socket.socket,
        daemon: _Daemon,
        request: Exec,
        fds: list[int],
        pipes: _Pipes,
        direct: bool,
    ) -> None:
        self.channel = channel
        self.daemon = daemon
        self.request = request
        self.fds = fds
        self.pipes = pipes
        self.direct = direct
        """Whether it is the exec itself that speaks, to the point where it executes its program."""
        self.pid = 0
        self.console: int | None = None


class Shim:
    """``fork`` is :func:`seacan.runtime.maker.fork`, but in a rehearsal."""

    def __init__(self, daemon: socket.socket, fork: maker.Fork = maker.fork) -> None:
        self._bundle = ""
        """Empty until there is a container to make."""
        self._fork = fork
        self._loop = Loop(self._callback_failed)
        self._daemons: list[_Daemon] = []
        self._config: ShimConfig
        self._maker: socket.socket | None = None
        """The channel to the process that makes the container, until that has started it."""
        self._maker_pid = 0
        self._direct = False
        """Whether that process is init itself: what it says then is about itself, and its end of the channel closes
        when it executes the program."""
        self._pidfd = -1
        self._mounts = -1
        """The mount namespace of an init that nobody else holds, so that unmounting does not hold up its exit."""
        self._console: int | None = None
        self._pipes: _Pipes
        self._starter: tuple[_Daemon, int] | None = None
        """Who asked for the start, until it is answered."""
        self._created: Created | None = None
        self._sandbox_fds: list[int] = []
        self._own_pids = True
        self._log: LogWriter | None = None
        self._oom = -1
        self._oom_counter = -1
        self._oom_kills = 0
        self._init: _Process | None = None
        self._making: list[_Execution] = []
        self._execs: dict[str, _Process] = {}
        self._strangers: dict[int, Exit] = {}
        """Children that have ended while something was being made that may turn out to be one of them."""
        self._untold: dict[str, Exit] = {}
        """Ends of execs that no daemon has noted."""
        self._lingering: list[Streams] = []
        """Streams of execs that are over but for clients that have not taken everything yet."""
        self._kept: dict[str, list[int]] = {}
        self._started = False
        self._finished = False
        self._undone = False
        self._listener: socket.socket | None = None
        self._wake = -1
        self._serve(daemon)

    # --- life -------------------------------------------------------------------------------------------------

    def run(self) -> int:
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        self._wake, waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _ignore)
        signal.siginterrupt(signal.SIGCHLD, False)
        self._loop.watch(self._wake, READ, lambda events: self._children())
        while not self._finished or self._flushing():
            self.turn()
        return 0

    def _prepare(self, bundle: str) -> None:
        """Have the container made."""
        self._bundle = bundle
        try:
            self._create()
        except (SeacanError, OSError, msgspec.DecodeError) as error:
            self._never_was(f"failed to create shim task: {error}", 128)

    def turn(self) -> None:
        """Wait for something to happen, and handle it."""
        self._loop.turn()

    def strike(self) -> None:
        """Let go of everything after a rehearsal: there never was a container."""
        self._undone = True
        if self._init is not None:
            self._init.streams.close()
        self._close_log()
        self._finish()
        self._loop.close()

    def _create(self) -> None:
        with open(f"{self._bundle}/shim.json", "rb", buffering=0) as file:
            config = self._config = _decode_config(file.read())
        # Whether there will be a terminal instead stands in the OCI configuration, which is the maker's to read.
        pipes = self._pipes = _Pipes(config.open_stdin, True, True)
        make, birth = maker.make, None
        if config.direct:
            self._direct = True
            make, birth = maker.become_init, maker.Birth(config.unified, init=True)
            if config.unified:
                maker.prepare_birth(self._bundle, config.unified)
            if config.keyring:
                new_keyring()
        self._maker_pid, self._pidfd, self._maker = self._fork(
            lambda shim: make(shim, self._bundle, config, pipes.theirs), birth
        )
        self._loop.watch(self._maker.fileno(), READ, lambda events: self._hear_maker())
        maker.reserve(self._bundle)
        self._listener = packets.listen(self._bundle, SOCKET)
        self._loop.watch(self._listener.fileno(), READ, lambda events: self._accept())
        if config.log.driver != "none":
            self._log = LogWriter(config.log)

    def _hear_maker(self) -> None:
        """Take what the process that makes the container has to say, up to its end."""
        try:
            self._take_from_maker()
        except Exception as error:
            self._callback_failed(-1)
            if not self._started:
                self._tell(Failed(seq=0, message=f"failed to create shim task: {error}", exit_code=128))
                self._finish()

    def _take_from_maker(self) -> None:
        while self._maker is not None:
            try:
                packet = packets.receive(self._maker)
            except BlockingIOError:
                return
            if packet is None:
                if self._direct and self._starter is not None:
                    self._begun()
                refused = maker.Refused("the process that made the container died", 128)
                self._maker_ends(None if self._started else refused)
                return
            data, fds = packet
            message = _decode_made(data)
            if isinstance(message, maker.Sandboxed):
                pid = message.pid
                if self._direct:
                    pid = self._maker_pid
                    fds.insert(0, self._pidfd)
                    with contextlib.suppress(FileNotFoundError):
                        self._mounts = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
                self._sandbox_fds = fds
                self._created = Created(pid=pid, network=len(fds) == 3)
                self._tell(self._created, fds)
            elif isinstance(message, maker.Watching):
                self._watch_memory(fds)
            elif isinstance(message, maker.Terminal):
                self._console = fds[0]
            elif isinstance(message, maker.Made):
                self._made(message, fds)
            elif isinstance(message, maker.Begun):
                self._begun()
            else:
                self._maker_ends(message)

    def _begun(self) -> None:
        self._started = True
        if self._starter is not None:
            self._answer(self._starter[0], Done(seq=self._starter[1]))
            self._starter = None
            self._progress()

    def _maker_ends(self, refused: maker.Refused | None) -> None:
        assert self._maker is not None
        self._loop.forget(self._maker.fileno())
        self._maker.close()
        self._maker = None
        if refused is None:
            return
        if self._starter is not None:
            daemon, seq = self._starter
            self._answer(daemon, Failed(seq=seq, message=refused.message, exit_code=refused.exit_code))
            self._finish()
        else:
            self._never_was(refused.message, refused.exit_code)

    def _made(self, message: maker.Made, fds: list[int]) -> None:
        self._own_pids = message.own_pids
        console = fds.pop(0) if message.console else self._console
        self._watch_memory(fds)
        streams = Streams(
            self._loop,
            **self._pipes.ours(console, self._config.open_stdin),
            terminal=console is not None,
            closes_stdin=self._config.stdin_once,
            log=self._log,
            on_detach=lambda: self._tell(ClientDetached()),
            on_ended=self._progress,
        )
        self._pipes.close()
        self._init = _Process(message.pid or self._maker_pid, streams)
        self._known(self._init)
        for daemon in self._daemons:
            self._watch_for(daemon)

    def _watch_memory(self, fds: list[int]) -> None:
        """Of these descriptors, if there are any: see :class:`maker.Made`."""
        if fds:
            self._oom, self._oom_counter = fds
            os.set_blocking(self._oom, False)
            self._loop.watch(self._oom, READ, lambda events: self._check_oom())

    def _never_was(self, message: str, exit_code: int) -> None:
        """Creation failed; a maker has undone it by itself."""
        self._tell(Failed(seq=0, message=message, exit_code=exit_code))
        self._undone = not self._direct
        self._finish()

    def _flushing(self) -> bool:
        """Clients that are behind still get the rest."""
        return any(streams.clients for streams in self._lingering) or (
            self._init is not None and bool(self._init.streams.clients)
        )

    def _callback_failed(self, fd: int) -> None:
        """A defect of ours costs the stream or connection it happened on, not the container."""
        with contextlib.suppress(OSError):
            os.write(2, f"shim {self._bundle}: {traceback.format_exc()}".encode())

    def _undo(self) -> None:
        """Take the container off the system. Once."""
        if self._undone:
            return
        self._undone = True
        if self._maker is not None:
            # Then init, which it was the parent of, becomes our child.
            os.kill(self._maker_pid, signal.SIGKILL)
            os.waitpid(self._maker_pid, 0)
            self._maker_ends(None)
        try:
            maker.remove(self._bundle, self._config)
        except (SeacanError, OSError) as error:
            with contextlib.suppress(OSError):
                os.write(2, f"cannot remove what container {self._config.id} has left: {error}\n".encode())
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass

    def _unlink_socket(self) -> None:
        if self._listener is not None:
            self._loop.forget(self._listener.fileno())
            self._listener.close()
            self._listener = None
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self._bundle}/{SOCKET}")

    def _finish(self) -> None:
        """Nothing is left to do but to pass on what clients have not taken yet."""
        self._finished = True
        self._loop.cancel(self._finish_exit)
        self._unlink_socket()
        for exec_id in tuple(self._execs):
            self._noted(exec_id, False)
        if self._init is not None:
            self._init.streams.end_clients()
        for fd in (self._oom, self._oom_counter, self._mounts, *self._sandbox_fds):
            if fd >= 0:
                self._loop.forget(fd)
                os.close(fd)
        self._sandbox_fds.clear()
        self._undo()
        for daemon in tuple(self._daemons):
            self._drop(daemon)
        for fds in self._kept.values():
            packets.close_all(fds)
        self._kept.clear()

    # --- daemons ----------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        assert self._listener is not None
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            fd, _ = self._listener._accept()  # type: ignore[attr-defined]
            self._serve(socket.socket(fileno=fd))

    def _serve(self, connection: socket.socket) -> None:
        daemon = _Daemon(packets.prepare(connection))
        self._daemons.append(daemon)
        self._loop.cancel(self._orphaned)
        self._loop.watch(connection.fileno(), 0, lambda events: self._daemon_ready(daemon, events))
        self._watch_for(daemon)

    def _watch_for(self, daemon: _Daemon) -> None:
        # Requests wait until there is something to ask of.
        events = (READ if self._init is not None or not self._bundle else 0) | (WRITE if daemon.owed else 0)
        self._loop.change(daemon.channel.fileno(), events)

    def _daemon_ready(self, daemon: _Daemon, events: int) -> None:
        try:
            self._hear_daemon(daemon, events)
        except Exception:
            # It asks again with another connection; on this one it would wait for ever.
            self._callback_failed(-1)
            self._drop(daemon)

    def _hear_daemon(self, daemon: _Daemon, events: int) -> None:
        if events & WRITE:
            self._flush(daemon)
        if not events & (READ | GONE) or daemon not in self._daemons:
            return
        try:
            packet = packets.receive(daemon.channel)
        except BlockingIOError:
            return
        if packet is None:
            self._drop(daemon)
            return
        data, fds = packet
        try:
            request = _decode_request(data)
        except msgspec.DecodeError:
            packets.close_all(fds)
            raise
        if isinstance(request, Noted | Make):
            packets.close_all(fds)
            if isinstance(request, Noted):
                self._noted(request.exec_id)
            else:
                self._prepare(request.bundle)
                self._watch_for(daemon)
            return
        answer: FromShim | None
        answered: Sequence[int] = ()
        try:
            answer, answered = self._serve_request(daemon, request, fds)
        except RuntimeFailed as error:
            answer = Failed(seq=request.seq, message=error.message, exit_code=error.exit_code)
        except (SeacanError, OSError) as error:
            answer = Failed(seq=request.seq, message=str(error))
        except Exception as error:
            self._callback_failed(-1)
            answer = Failed(seq=request.seq, message=f"internal error: {error!r}")
        finally:
            packets.close_all(fds)
        if answer is not None:
            self._answer(daemon, answer, answered)
        if isinstance(request, Abandon):
            self._finish()

    def _answer(self, daemon: _Daemon, message: FromShim, fds: Sequence[int] = ()) -> None:
        if daemon in self._daemons:
            self._send(daemon, message, fds)

    def _drop(self, daemon: _Daemon) -> None:
        if daemon not in self._daemons:
            return
        self._daemons.remove(daemon)
        self._loop.forget(daemon.channel.fileno())
        daemon.channel.close()
        for _, fds in daemon.owed:
            packets.close_all(fds)
        if self._daemons or self._finished:
            return
        if not self._bundle:  # there never was anything to do
            self._finished = True
            return
        if not self._started:
            self._loop.later(_ORPHAN_GRACE, self._orphaned)
        self._nobody_to_note()

    def _orphaned(self) -> None:
        """The daemon died before it could start the container, and none has come for it."""
        if not self._started:
            self._abandon()
            self._finish()

    def _tell(self, message: FromShim, fds: Sequence[int] = ()) -> None:
        for daemon in tuple(self._daemons):
            self._send(daemon, message, fds)

    def _send(self, daemon: _Daemon, message: FromShim, fds: Sequence[int]) -> None:
        if not daemon.owed:
            try:
                packets.send(daemon.channel, message, fds)
                return
            except BlockingIOError:
                pass
            except OSError:
                self._drop(daemon)
                return
        copies: list[int] = []
        daemon.owed.append((message, copies))
        try:
            copies.extend(os.dup(fd) for fd in fds)
        except OSError:
            self._drop(daemon)
            return
        if len(daemon.owed) > _MAX_OWED:
            self._drop(daemon)
        else:
            self._watch_for(daemon)

    def _flush(self, daemon: _Daemon) -> None:
        try:
            while daemon.owed:
                message, fds = daemon.owed[0]
                packets.send(daemon.channel, message, fds)
                daemon.owed.pop(0)
                packets.close_all(fds)
        except BlockingIOError:
            return
        except OSError:
            self._drop(daemon)
            return
        self._watch_for(daemon)

    # --- requests ---------------------------------------------------------------------------------------------

    def _serve_request(self, daemon: _Daemon, request: ToShim, fds: list[int]) -> tuple[FromShim | None, Sequence[int]]:
        """Carry a request out, or begin to (None). It empties ``fds`` of what it keeps; the caller closes the rest."""
        assert not isinstance(request, Noted | Make)
        if isinstance(request, Start):
            # Its maker may linger for a moment after the container has begun.
            if self._started or self._maker is None or self._starter is not None:
                raise Conflict("cannot start an already running container")
            packets.send(self._maker, maker.Begin())
            self._starter = (daemon, request.seq)
            return None, ()
        if isinstance(request, Attach):
            self._attach(self._process(request.exec_id), request, fds)
        elif isinstance(request, Exec):
            self._exec(daemon, request, fds)
            return None, ()
        elif isinstance(request, Signal):
            self._signal(request)
        elif isinstance(request, Resize):
            self._process(request.exec_id).streams.resize(request.height, request.width)
        elif isinstance(request, Keep):
            packets.close_all(self._kept.pop(request.name, ()))
            if fds:
                self._kept[request.name] = fds[:]
                fds.clear()
        elif isinstance(request, Fetch):
            return Done(seq=request.seq), self._kept.get(request.name, ())
        elif isinstance(request, Describe):
            return self._describe(request.seq), self._sandbox_fds
        elif isinstance(request, Abandon):
            self._abandon()
        return Done(seq=request.seq), ()

    def _process(self, exec_id: str) -> _Process:
        process = self._execs.get(exec_id) if exec_id else self._init
        if process is None:
            raise NotFound(f"No such exec instance: {exec_id}")
        return process

    @staticmethod
    def _attach(process: _Process, request: Attach | Exec, fds: list[int]) -> None:
        if len(fds) != 1:
            raise InvalidParameter(f"attach takes one connection, not {len(fds)}")
        process.streams.attach(
            fds.pop(),
            stdin=request.stdin,
            stdout=request.stdout,
            stderr=request.stderr,
            multiplexed=request.multiplexed,
            detach_keys=request.detach_keys,
            pending=request.pending,
        )
        if process.reported:
            process.streams.end_clients()

    def _exec(self, daemon: _Daemon, request: Exec, fds: list[int]) -> None:
        exec_id = request.exec_id
        if not exec_id or not exec_id.replace("-", "").replace("_", "").isalnum() or exec_id in self._execs:
            raise InvalidParameter(f"exec {exec_id!r} cannot be started")
        if self._init is None or self._init.exit is not None:
            raise RuntimeFailed("cannot exec in a stopped container")
        path = f"{self._bundle}/exec-{exec_id}.json"
        with open(path, "rb", buffering=0) as file:
            process = spec.decode_process(file.read())
        os.unlink(path)
        pipes = _Pipes(request.stdin, request.stdout, request.stderr)
        try:
            execution = self._fork_exec(process, daemon, request, fds[:], pipes)
        except OSError:
            pipes.close()
            raise
        fds.clear()
        self._making.append(execution)
        self._loop.watch(execution.channel.fileno(), READ, lambda events: self._hear_execution(execution))

    def _fork_exec(
        self, process: spec.Process, daemon: _Daemon, request: Exec, fds: list[int], pipes: _Pipes
    ) -> _Execution:
        if self._direct:
            try:
                _, pidfd, channel = self._fork(
                    lambda shim: maker.become_exec(shim, self._bundle, self._config, process, pipes.theirs),
                    maker.Birth(self._config.unified, init=False),
                )
                os.close(pidfd)
                return _Execution(channel, daemon, request, fds, pipes, True)
            except OSError as error:
                # A v2 cgroup with controllers enabled for its children takes no process.
                if error.errno not in (errno.EBUSY, errno.EOPNOTSUPP):
                    raise
        _, _, channel = self._fork(
            lambda shim: maker.run_exec(shim, self._bundle, self._config, process, pipes.theirs), None
        )
        return _Execution(channel, daemon, request, fds, pipes, False)

    def _hear_execution(self, execution: _Execution) -> None:
        """Take what the process that makes an exec has to say, up to the point where the program runs, or cannot."""
        refused: maker.Refused | None = None
        while True:
            try:
                packet = packets.receive(execution.channel)
            except BlockingIOError:
                return
            message = None if packet is None else _decode_made(packet[0])
            if isinstance(message, maker.Terminal):
                assert packet is not None
                execution.console = packet[1][0]
                continue
            if isinstance(message, maker.Made):
                assert packet is not None
                execution.pid = message.pid
                if message.console:
                    execution.console = packet[1][0]
                if execution.direct:  # it is born; when it executes its program, the channel closes
                    continue
            elif message is not None or not execution.pid:
                refused = maker.Refused("the process that made the exec died", 128)
                if isinstance(message, maker.Refused):
                    refused = message
            break
        self._making.remove(execution)
        self._loop.forget(execution.channel.fileno())
        execution.channel.close()
        request = execution.request
        console = execution.console
        if refused is not None:
            execution.pipes.close()
            packets.close_all(execution.fds if console is None else [console, *execution.fds])
            self._answer(
                execution.daemon, Failed(seq=request.seq, message=refused.message, exit_code=refused.exit_code)
            )
            self._progress()
            return
        exec_id = request.exec_id
        try:
            streams = Streams(
                self._loop,
                **execution.pipes.ours(console, request.stdin),
                terminal=console is not None,
                closes_stdin=True,
                on_detach=lambda: self._tell(ClientDetached(exec_id=exec_id)),
                on_ended=self._progress,
            )
        except Exception as error:
            self._callback_failed(-1)
            packets.close_all(execution.fds)
            if execution.pid not in self._strangers:
                os.kill(execution.pid, signal.SIGKILL)
            failed = Failed(seq=request.seq, message=f"cannot read the streams of the exec: {error}", exit_code=128)
            self._answer(execution.daemon, failed)
            self._progress()
            return
        finally:
            execution.pipes.close()
        record = self._execs[exec_id] = _Process(execution.pid, streams)
        if execution.fds:
            try:
                self._attach(record, request, execution.fds)
            except (SeacanError, OSError) as error:
                os.write(2, f"exec {exec_id}: cannot attach: {error}\n".encode())
                packets.close_all(execution.fds)
        self._answer(execution.daemon, ExecStarted(seq=request.seq, pid=execution.pid))
        self._known(record)

    def _signal(self, request: Signal) -> None:
        """To a process that has ended it is nothing."""
        if request.everyone:
            self._kill_everyone(request.signal)
            return
        process = self._process(request.exec_id)
        if process.exit is not None:
            return
        if request.exec_id:
            os.kill(process.pid, request.signal)  # not reaped, so the number is still its own
        else:
            signal.pidfd_send_signal(self._sandbox_fds[0], request.signal)

    def _kill_everyone(self, number: int) -> None:
        self._fork(lambda shim: maker.kill_everyone(shim, self._bundle, self._config, number), None)[2].close()

    def _describe(self, seq: int) -> FromShim:
        assert self._created is not None and self._init is not None
        return Description(
            seq=seq,
            pid=self._created.pid,
            started=self._started,
            network=self._created.network,
            execs={exec_id: process.pid for exec_id, process in self._execs.items() if process.exit is None},
            ended_execs=dict(self._untold),
            exit=self._init.exit if self._init.reported else None,
        )

    def _abandon(self) -> None:
        if self._init is not None:
            self._init.streams.close()
        for process in self._execs.values():
            process.streams.close()
        self._close_log()
        self._undo()

    # --- children ---------------------------------------------------------------------------------------------

    def _children(self) -> None:
        os.read(self._wake, 4096)
        # What a maker has said before it ended comes first: it may be about the very process that is reaped now.
        self._hear_maker()
        for execution in tuple(self._making):
            self._hear_execution(execution)
        while True:
            try:
                child = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)
            except ChildProcessError:
                return
            if child is None:
                return
            try:
                self._reaped(child.si_pid, child.si_status, child.si_code != os.CLD_EXITED)
            except Exception:  # the others have ended all the same, and more will
                self._callback_failed(-1)

    def _reaped(self, pid: int, status: int, killed: bool) -> None:
        if self._log is not None and pid == self._log.file.compressor:
            self._log.compressed()
            if self._init is not None:
                self._init.streams.caught_up()
            return
        exit = Exit(exit_code=128 + status if killed else status, at=time.time_ns(), signal=status if killed else 0)
        for process in (self._init, *self._execs.values()):
            if process is not None and process.pid == pid and process.exit is None:
                self._has_ended(process, exit)
                return
        if self._making or self._init is None:
            self._strangers[pid] = exit

    def _has_ended(self, process: _Process, exit: Exit) -> None:
        process.exit = exit  # before anything that can fail: it is told only once
        if process is self._init:
            self._check_oom()
            process.exit = msgspec.structs.replace(exit, oom_killed=self._oom_kills > 0)
            if not self._own_pids:
                # Nothing else would end them: there is no PID namespace to go with its init.
                self._end_everyone()
        try:
            process.streams.drain()
        finally:
            if not process.streams.output_ended:
                self._loop.later(_DRAIN_GRACE, process.streams.cut)  # which ends in _progress
        self._progress()

    def _end_everyone(self) -> None:
        try:
            self._kill_everyone(signal.SIGKILL)
        except OSError:  # no process or descriptor left to do it with, for the moment
            self._loop.later(_RETRY, self._end_everyone)

    def _known(self, process: _Process) -> None:
        """An external runtime's process is our child at once, and may have ended before we heard of it."""
        exit = self._strangers.pop(process.pid, None)
        if not self._making:
            self._strangers.clear()
        if exit is not None:
            self._has_ended(process, exit)

    def _check_oom(self) -> None:
        if self._oom < 0:
            return
        with contextlib.suppress(BlockingIOError):
            os.read(self._oom, 4096)
        try:
            counters = os.pread(self._oom_counter, 4096, 0).split()
        except OSError:  # the cgroup is gone
            return
        kills = int(counters[counters.index(b"oom_kill") + 1]) if b"oom_kill" in counters else 0
        if kills > self._oom_kills:
            self._oom_kills = kills
            self._tell(OutOfMemory())

    # --- ends -------------------------------------------------------------------------------------------------

    def _progress(self) -> None:
        """Report every process that has ended and been drained; init last."""
        for exec_id, process in self._execs.items():
            if process.exit is not None and process.streams.output_ended and not process.reported:
                process.reported = True
                self._untold[exec_id] = process.exit
                self._tell(ExecExited(exec_id=exec_id, exit=process.exit))
                self._loop.later(_NOTED_GRACE, lambda exec_id=exec_id: self._noted(exec_id, False))  # type: ignore[misc]
        init = self._init
        if (
            init is not None
            and init.exit is not None
            and init.streams.output_ended
            and not init.reported
            and self._starter is None
            and not self._making
            and all(process.reported for process in self._execs.values())
        ):
            init.reported = True
            self._close_log()
            try:
                maker.record(self._bundle, init.exit)
            except OSError as error:  # then the daemon, if there is one, is all that knows
                with contextlib.suppress(OSError):
                    os.write(2, f"cannot record the exit of container {self._config.id}: {error}\n".encode())
            self._tell(Exited(exit=init.exit))
            self._loop.later(_NOTED_GRACE, self._finish_exit)
        if not self._daemons:
            self._nobody_to_note()

    def _close_log(self) -> None:
        if self._log is not None:
            self._log.close(lambda pid: os.waitpid(pid, 0) and None)
            self._log = None

    def _noted(self, exec_id: str, by_daemon: bool = True) -> None:
        if not exec_id:
            self._finish_exit()
            return
        if by_daemon:
            self._untold.pop(exec_id, None)
        process = self._execs.get(exec_id)
        if process is not None and process.reported:
            process.streams.end_clients()
            del self._execs[exec_id]
            self._lingering = [streams for streams in (*self._lingering, process.streams) if streams.clients]

    def _nobody_to_note(self) -> None:
        for exec_id in tuple(self._execs):
            self._noted(exec_id, False)
        self._finish_exit()

    def _finish_exit(self) -> None:
        if self._init is not None and self._init.reported and not self._finished:
            self._finish()


class _Ends(TypedDict):
    stdin: int
    outputs: dict[int, int]


class _Pipes:
    """The standard streams of a process about to be made; on a terminal they stay unused."""

    def __init__(self, stdin: bool, stdout: bool, stderr: bool) -> None:
        self._ours: dict[int, int] = {}
        self._theirs: dict[int, int] = {}
        try:
            for number, wanted in ((0, stdin), (STDOUT, stdout), (STDERR, stderr)):
                if wanted:
                    reader, writer = os.pipe2(os.O_CLOEXEC)
                    self._ours[number], self._theirs[number] = (writer, reader) if number == 0 else (reader, writer)
        except OSError:
            self.close()
            raise

    @property
    def theirs(self) -> Stdio:
        get = self._theirs.get
        return Stdio(stdin=get(0, -1), stdout=get(STDOUT, -1), stderr=get(STDERR, -1))

    def ours(self, console: int | None, open_stdin: bool) -> _Ends:
        """What to give to :class:`Streams`, which then owns it."""
        if console is not None:
            return {"stdin": console if open_stdin else -1, "outputs": {STDOUT: console}}
        ends, self._ours = self._ours, {}
        stdin = ends.pop(0, -1)
        return {"stdin": stdin, "outputs": ends}

    def close(self) -> None:
        """Close what nobody owns by now."""
        for fd in (*self._ours.values(), *self._theirs.values()):
            os.close(fd)
        self._ours.clear()
        self._theirs.clear()
