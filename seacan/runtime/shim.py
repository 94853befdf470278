"""One container's shim: the parent of its init, holder of its streams, and the only process of ours it depends on.

Forked from the launcher with everything imported; one thread, one epoll loop. It makes the container, reports
``Created``, serves the daemon's requests (:mod:`seacan.runtime.protocol`) on the channel it was born with and on
``shim.sock`` in the bundle, records the exit, and ends. It outlives daemon and launcher.

What it does not do: decide anything. Restarts, networks, health and names are the daemon's.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import time
import traceback
from collections.abc import Sequence
from typing import TypedDict

import msgspec

from seacan.cgroups.cgroup import OOMWatch
from seacan.errors import InvalidParameter, NotFound, RuntimeFailed, SeacanError
from seacan.linux.syscalls import PR_SET_CHILD_SUBREAPER, prctl
from seacan.runtime import packets, spec
from seacan.runtime.bundle import Exit, ShimConfig
from seacan.runtime.container import Container, Stdio
from seacan.runtime.logs.writer import LogWriter
from seacan.runtime.loop import GONE, READ, WRITE, Loop
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
    Noted,
    OutOfMemory,
    Resize,
    Signal,
    Start,
    ToShim,
)
from seacan.runtime.streams import STDERR, STDOUT, Streams

SOCKET = "shim.sock"

_ORPHAN_GRACE = 30.0
"""Seconds a container that was not started yet waits for a daemon to come back."""

_DRAIN_GRACE = 2.0
"""Seconds that somebody else may keep the streams of a process open after its end; dockerd waits as long."""

_NOTED_GRACE = 5.0
"""Seconds that a connected daemon may take to note an exit."""

_MAX_OWED = 4096
"""Messages a daemon may be behind before its connection is given up; it can connect again and ask."""

_decode_config = msgspec.json.Decoder(ShimConfig).decode
_decode_request = msgspec.json.Decoder(ToShim).decode


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


def main(bundle: str, fds: Sequence[int]) -> int:
    """The launcher's target. ``fds`` is the channel to the daemon that asked."""
    gc.disable()
    return Shim(bundle, socket.socket(fileno=fds[0])).run()


class Shim:
    def __init__(self, bundle: str, daemon: socket.socket) -> None:
        self._bundle = bundle
        self._loop = Loop(self._callback_failed)
        self._daemons: list[_Daemon] = []
        self._config: ShimConfig
        self._container: Container | None = None
        self._seccomp: bytes | None = None
        self._own_pids = True
        self._terminal = False
        self._log: LogWriter | None = None
        self._oom: OOMWatch | None = None
        self._oom_killed = False
        self._init: _Process | None = None
        self._execs: dict[str, _Process] = {}
        self._untold: dict[str, Exit] = {}
        """Ends of execs that no daemon has noted."""
        self._lingering: list[Streams] = []
        """Streams of execs that are over but for clients that have not taken everything yet."""
        self._kept: dict[str, list[int]] = {}
        self._started = False
        self._finished = False
        self._undone = False
        self._listener: socket.socket | None = None
        self._serve(daemon)

    # --- life -------------------------------------------------------------------------------------------------

    def run(self) -> int:
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        wake, waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.siginterrupt(signal.SIGCHLD, False)
        self._loop.watch(wake, READ, lambda events: self._children(wake))
        try:
            self._create()
        except SeacanError as error:
            return self._never_was(error.message, error.exit_code if isinstance(error, RuntimeFailed) else 128)
        except OSError as error:
            return self._never_was(f"failed to create shim task: {error}", 128)
        while not self._finished or self._flushing():
            self._loop.turn()
        return 0

    def _create(self) -> None:
        with open(f"{self._bundle}/shim.json", "rb") as file:
            config = self._config = _decode_config(file.read())
        with open(f"{self._bundle}/config.json", "rb") as file:
            oci = spec.decode_spec(file.read())
        if config.seccomp is not None:
            with open(config.seccomp, "rb") as file:
                self._seccomp = file.read()
        self._listener = packets.listen(self._bundle, SOCKET)
        self._loop.watch(self._listener.fileno(), READ, lambda events: self._accept())
        process = oci.process
        self._terminal = process is not None and process.terminal
        namespaces = oci.linux.namespaces if oci.linux is not None else []
        self._own_pids = any(namespace.type == "pid" and not namespace.path for namespace in namespaces)
        if config.log.driver != "none":
            self._log = LogWriter(config.log)
        with _Pipes(self._terminal, config.open_stdin, True, True) as pipes:
            self._container = Container.create(
                config.id,
                self._bundle,
                oci,
                root=os.path.dirname(self._bundle),
                stdio=pipes.theirs,
                rootfs=config.rootfs,
                seccomp=self._seccomp,
                on_sandbox=self._sandbox,
            )
            console, self._container.console = self._container.console, None
            streams = Streams(
                self._loop,
                **pipes.ours(console, config.open_stdin),
                terminal=self._terminal,
                closes_stdin=config.stdin_once,
                log=self._log,
                on_detach=lambda: self._tell(ClientDetached()),
                on_ended=self._progress,
            )
        self._init = _Process(self._container.pid, streams)
        if self._container.cgroup is not None:
            self._oom = self._container.cgroup.watch_oom()
            if self._oom is not None:
                self._loop.watch(self._oom.fileno(), READ, lambda events: self._check_oom())

    def _sandbox(self, container: Container) -> None:
        message, fds = self._created(container)
        self._tell(message, fds)

    @staticmethod
    def _created(container: Container) -> tuple[Created, list[int]]:
        fds = [container.pidfd]
        if container.netns is not None and container.rtnl is not None:
            fds += [container.netns, container.rtnl]
        return Created(pid=container.pid, network=len(fds) == 3), fds

    def _never_was(self, message: str, exit_code: int) -> int:
        """Creation failed, and the runtime has undone it."""
        self._tell(Failed(seq=0, message=message, exit_code=exit_code))
        self._unlink_socket()
        return 1

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
        if self._undone or self._container is None:
            return
        self._undone = True
        if self._oom is not None:
            self._loop.forget(self._oom.fileno())
            self._oom.close()
        try:
            self._container.delete(force=True)
        except (SeacanError, OSError) as error:
            with contextlib.suppress(OSError):
                os.write(2, f"cannot remove what container {self._config.id} has left: {error}\n".encode())

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
            self._serve(self._listener.accept()[0])

    def _serve(self, connection: socket.socket) -> None:
        daemon = _Daemon(packets.prepare(connection))
        self._daemons.append(daemon)
        self._loop.cancel(self._orphaned)
        self._loop.watch(connection.fileno(), READ, lambda events: self._daemon_ready(daemon, events))

    def _daemon_ready(self, daemon: _Daemon, events: int) -> None:
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
        request = _decode_request(data)
        if isinstance(request, Noted):
            self._noted(request.exec_id)
            return
        try:
            message, answered = self._serve_request(request, fds)
        except RuntimeFailed as error:
            message, answered = Failed(seq=request.seq, message=error.message, exit_code=error.exit_code), []
        except (SeacanError, OSError) as error:
            message, answered = Failed(seq=request.seq, message=str(error)), []
        except Exception:
            self._callback_failed(-1)
            message, answered = Failed(seq=request.seq, message=f"internal error: {traceback.format_exc()}"), []
        finally:
            packets.close_all(fds)
        if daemon in self._daemons:
            self._send(daemon, message, answered)
        if isinstance(request, Abandon) or (isinstance(request, Start) and isinstance(message, Failed)):
            self._finish()

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
                self._loop.change(daemon.channel.fileno(), READ | WRITE)
            except OSError:
                self._drop(daemon)
                return
        daemon.owed.append((message, [os.dup(fd) for fd in fds]))
        if len(daemon.owed) > _MAX_OWED:
            self._drop(daemon)

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
        self._loop.change(daemon.channel.fileno(), READ)

    # --- requests ---------------------------------------------------------------------------------------------

    def _serve_request(self, request: ToShim, fds: list[int]) -> tuple[FromShim, Sequence[int]]:
        """Carry a request out. It empties ``fds`` of those it keeps; the caller closes the others."""
        container = self._container
        assert container is not None and self._init is not None and not isinstance(request, Noted)
        if isinstance(request, Start):
            container.start()
            self._started = True
        elif isinstance(request, Attach):
            self._attach(self._process(request.exec_id), request, fds)
        elif isinstance(request, Exec):
            return ExecStarted(seq=request.seq, pid=self._exec(container, request, fds)), ()
        elif isinstance(request, Signal):
            self._signal(container, request)
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
            return self._describe(container, request.seq)
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

    def _exec(self, container: Container, request: Exec, fds: list[int]) -> int:
        exec_id = request.exec_id
        if not exec_id or not exec_id.replace("-", "").replace("_", "").isalnum() or exec_id in self._execs:
            raise InvalidParameter(f"exec {exec_id!r} cannot be started")
        path = f"{self._bundle}/exec-{exec_id}.json"
        with open(path, "rb") as file:
            process = spec.decode_process(file.read())
        os.unlink(path)
        with _Pipes(process.terminal, request.stdin, request.stdout, request.stderr) as pipes:
            running = container.exec(process, pipes.theirs, seccomp=self._seccomp)
            os.close(running.pidfd)
            streams = Streams(
                self._loop,
                **pipes.ours(running.console, request.stdin),
                terminal=process.terminal,
                closes_stdin=True,
                on_detach=lambda: self._tell(ClientDetached(exec_id=exec_id)),
                on_ended=self._progress,
            )
        record = self._execs[exec_id] = _Process(running.pid, streams)
        if fds:
            self._attach(record, request, fds)
        return running.pid

    def _signal(self, container: Container, request: Signal) -> None:
        if request.exec_id:
            process = self._process(request.exec_id)
            if process.exit is None:  # not reaped, so the number is still its own
                os.kill(process.pid, request.signal)
        elif self._init is not None and self._init.exit is None:  # a process that has ended takes no signal
            container.kill(request.signal, everyone=request.everyone)

    def _describe(self, container: Container, seq: int) -> tuple[FromShim, Sequence[int]]:
        created, fds = self._created(container)
        assert self._init is not None
        return (
            Description(
                seq=seq,
                pid=created.pid,
                started=self._started,
                network=created.network,
                execs={exec_id: process.pid for exec_id, process in self._execs.items() if process.exit is None},
                ended_execs=dict(self._untold),
                exit=self._init.exit if self._init.reported else None,
            ),
            fds,
        )

    def _abandon(self) -> None:
        assert self._init is not None and self._container is not None
        if self._init.exit is None:
            self._container.kill(signal.SIGKILL, everyone=True)
        self._init.streams.close()
        for process in self._execs.values():
            process.streams.close()
        self._close_log()
        self._undo()

    # --- children ---------------------------------------------------------------------------------------------

    def _children(self, wake: int) -> None:
        os.read(wake, 4096)
        while True:
            try:
                child = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)
            except ChildProcessError:
                return
            if child is None:
                return
            self._reaped(child.si_pid, child.si_status, child.si_code != os.CLD_EXITED)

    def _reaped(self, pid: int, status: int, killed: bool) -> None:
        if self._log is not None and pid == self._log.file.compressor:
            self._log.compressed()
            if self._init is not None:
                self._init.streams.caught_up()
            return
        init = self._init
        exit = Exit(exit_code=128 + status if killed else status, at=time.time_ns(), signal=status if killed else 0)
        if init is not None and pid == init.pid:
            self._check_oom()
            init.exit = msgspec.structs.replace(exit, oom_killed=self._oom_killed)
            if not self._own_pids and self._container is not None:
                # Nothing else would end them: there is no PID namespace to go with its init.
                with contextlib.suppress(SeacanError, ProcessLookupError):
                    self._container.kill(signal.SIGKILL, everyone=True)
            self._process_ended(init)
            return
        for process in self._execs.values():
            if process.pid == pid and process.exit is None:
                process.exit = exit
                self._process_ended(process)
                return

    def _process_ended(self, process: _Process) -> None:
        process.streams.drain()
        if not process.streams.output_ended:
            self._loop.later(_DRAIN_GRACE, process.streams.cut)  # which ends in _progress
        self._progress()

    def _check_oom(self) -> None:
        if self._oom is not None and self._oom.killed():
            self._oom_killed = True
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
            and all(process.reported for process in self._execs.values())
        ):
            init.reported = True
            self._close_log()
            self._record(init.exit)
            self._tell(Exited(exit=init.exit))
            self._loop.later(_NOTED_GRACE, self._finish_exit)
        if not self._daemons:
            self._nobody_to_note()

    def _record(self, exit: Exit) -> None:
        path = f"{self._bundle}/exit.json"
        with open(f"{path}.tmp", "wb") as file:
            file.write(msgspec.json.encode(exit))
        os.rename(f"{path}.tmp", path)

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
    """The standard streams of a process about to be made: nothing at all on a terminal."""

    def __init__(self, terminal: bool, stdin: bool, stdout: bool, stderr: bool) -> None:
        self._ours: dict[int, int] = {}
        self._theirs: dict[int, int] = {}
        try:
            for number, wanted in ((0, stdin), (STDOUT, stdout), (STDERR, stderr)):
                if wanted and not terminal:
                    reader, writer = os.pipe2(os.O_CLOEXEC)
                    self._ours[number], self._theirs[number] = (writer, reader) if number == 0 else (reader, writer)
        except OSError:
            self.__exit__()
            raise

    @property
    def theirs(self) -> Stdio:
        get = self._theirs.get
        return Stdio(stdin=get(0, -1), stdout=get(STDOUT, -1), stderr=get(STDERR, -1))

    def ours(self, console: int | None, open_stdin: bool) -> _Ends:
        """What to give to :class:`Streams`, which then owns it."""
        ends, self._ours = self._ours, {}
        if console is not None:
            return {"stdin": console if open_stdin else -1, "outputs": {STDOUT: console}}
        stdin = ends.pop(0, -1)
        return {"stdin": stdin, "outputs": ends}

    def __enter__(self) -> _Pipes:
        return self

    def __exit__(self, *failure: object) -> None:
        for fd in (*self._ours.values(), *self._theirs.values()):
            os.close(fd)
