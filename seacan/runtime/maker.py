"""What a shim has done by processes that come and go: making its container, execs, and taking it all away again.

These steps touch most of the runtime's code and data. Done here, in forks of the shim, the memory they dirty goes with
them, and the shim itself stays at a fraction; a hook that hangs does not hold up the container's streams; and init and
execs become children of the shim, their subreaper, when their maker ends.
"""

from __future__ import annotations

import _socket as socket
import contextlib
import os
import time
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from seacan import cgroups
from seacan.cgroups import Cgroup
from seacan.errors import NotFound, RuntimeFailed, SeacanError
from seacan.linux.syscalls import CLONE_NEWPID, PR_SET_PDEATHSIG, clone3, prctl
from seacan.runtime import channel as words_of
from seacan.runtime import packets, spec
from seacan.runtime.bundle import Exit, ShimConfig
from seacan.runtime.channel import Channel
from seacan.runtime.container import BEGINNING, IN_INIT, Container, Stdio
from seacan.runtime.failure import raised

if TYPE_CHECKING:
    import signal
else:
    import _signal as signal  # without enumerations: what a shim does not use, it does not write to


class Sandboxed(msgspec.Struct, frozen=True, tag="sandboxed", tag_field="op"):
    """Init exists in its namespaces. Descriptors: its pidfd, and network namespace and rtnetlink socket if new."""

    pid: int


class Watching(msgspec.Struct, frozen=True, tag="watching", tag_field="op"):
    """What :class:`Made` tells of memory, where init is its own maker. Descriptors: as there, if any."""


class Terminal(msgspec.Struct, frozen=True, tag="terminal", tag_field="op"):
    """The master of the new process's terminal rides along, where it is its own maker."""


class Made(msgspec.Struct, frozen=True, tag="made", tag_field="op"):
    """Init, or an exec that runs already, is ready. Descriptors: in this order, those that are said to be there.

    ``oom``: a descriptor that becomes readable when memory runs out, and the file that counts ``oom_kill``.
    """

    pid: int
    console: bool = False
    oom: bool = False
    own_pids: bool = True
    """Whether the container has a PID namespace of its own, so that nothing in it outlives init."""


class Begin(msgspec.Struct, frozen=True, tag="begin", tag_field="op"):
    """From the shim: let init execute its program."""


class Begun(msgspec.Struct, frozen=True, tag="begun", tag_field="op"):
    """It does."""


class Refused(msgspec.Struct, frozen=True, tag="refused", tag_field="op"):
    """It could not be done; nothing is left of the attempt but, after :class:`Begin`, what :func:`remove` removes."""

    message: str
    exit_code: int


FromMaker = Sandboxed | Watching | Terminal | Made | Begun | Refused


Fork = Callable[[Callable[[socket.socket], None], "Birth | None"], tuple[int, int, socket.socket]]


class Birth(NamedTuple):
    """Where a process begins: in the cgroup of the v2 folder ``unified`` (the shim's own if empty), and as the first
    of a PID namespace if it is to be ``init``."""

    unified: str
    init: bool


def fork(work: Callable[[socket.socket], None], birth: Birth | None = None) -> tuple[int, int, socket.socket]:
    """Run ``work`` with one end of a channel in a new process, which ends with this one; gives pid, pidfd, other end.

    There is a pidfd (else -1) where there is a ``birth``.
    """
    if birth is None:
        ours, theirs = packets.pair()
        pid, pidfd = os.fork(), -1
    else:
        directory = os.open(birth.unified, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) if birth.unified else -1
        try:
            ours, theirs = packets.pair()
            pid, pidfd = clone3(CLONE_NEWPID if birth.init else 0, cgroup=directory)
        finally:
            if directory >= 0:
                os.close(directory)
    if pid:
        theirs.close()
        return pid, pidfd, ours
    status = 1
    try:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        ours.close()
        theirs.setblocking(True)
        _report(work, theirs)
        status = 0
    finally:
        os._exit(status)
    raise AssertionError("unreachable")


class _ToShim(Channel):
    """What a process that becomes init, or an exec, would tell its maker, told to the shim."""

    def __init__(self, shim: socket.socket, init: bool) -> None:
        self._shim = shim
        self._prefix = IN_INIT if init else BEGINNING
        self._waits = init

    def fileno(self) -> int:
        return self._shim.fileno()

    def send(self, kind: bytes, payload: bytes = b"", fds: tuple[int, ...] = ()) -> None:
        message: FromMaker
        if kind == words_of.NETWORK:
            message = Sandboxed(0)
        elif kind == words_of.CONSOLE:
            message = Terminal()
        elif kind == words_of.CREATED:
            message = Made(0)
            self._prefix = BEGINNING
        elif kind == words_of.CHILD:
            message, fds = Made(int(payload)), ()
        else:
            assert kind == words_of.FAILED, kind
            failure = raised(payload, self._prefix)
            message = Refused(failure.message, failure.exit_code)
        packets.send(self._shim, message, fds)

    def expect(self, kind: bytes) -> None:
        """Only START is waited for; an exec need not, as the shim has nothing to do before."""
        if self._waits:
            if not self._shim.recv(4096):
                os._exit(1)
            prctl(PR_SET_PDEATHSIG, 0)  # it would survive execve


def _report(work: Callable[[socket.socket], None], shim: socket.socket) -> None:
    try:
        work(shim)
    except RuntimeFailed as error:
        packets.send(shim, Refused(error.message, error.exit_code))
    except (SeacanError, OSError) as error:
        packets.send(shim, Refused(str(error), 128))
    except Exception as error:
        os.write(2, traceback.format_exc().encode()[:65536])
        packets.send(shim, Refused(f"internal error: {error!r}", 128))


def prepare_birth(bundle: str, unified: str) -> None:
    """Make the v2 folder that init is born in; :meth:`Cgroup.create` does the rest. Raises System."""
    try:
        try:
            os.mkdir(unified, 0o755)
        except FileNotFoundError:  # the first below this parent
            os.makedirs(unified, 0o755)
    except OSError:  # something lies there
        with open(f"{bundle}/config.json", "rb", buffering=0) as file:
            linux = spec.decode_spec(file.read()).linux
        assert linux is not None
        cgroups.open(linux.cgroups_path).create_unified()


def become_init(shim: socket.socket, bundle: str, config: ShimConfig, stdio: Stdio) -> None:
    """Be the container's init."""
    with open(f"{bundle}/config.json", "rb", buffering=0) as file:
        oci = spec.decode_spec(file.read())
    Container.become_init(
        config.id,
        bundle,
        oci,
        _ToShim(shim, True),
        root=os.path.dirname(bundle),
        stdio=stdio,
        rootfs=config.rootfs,
        seccomp=_seccomp(config),
        seccomp_flags=config.seccomp_flags,
        on_cgroup=lambda cgroup: packets.send(shim, Watching(), _oom(cgroup)),
        new_keyring=not config.keyring,
    )


def make(shim: socket.socket, bundle: str, config: ShimConfig, stdio: Stdio) -> None:
    """Create the container, and start it when told to."""
    with open(f"{bundle}/config.json", "rb", buffering=0) as file:
        oci = spec.decode_spec(file.read())
    if config.external is not None:
        _make_external(shim, bundle, config, oci, stdio)
        return
    container = Container.create(
        config.id,
        bundle,
        oci,
        root=os.path.dirname(bundle),
        stdio=stdio,
        rootfs=config.rootfs,
        seccomp=_seccomp(config),
        seccomp_flags=config.seccomp_flags,
        on_sandbox=lambda container: packets.send(
            shim, Sandboxed(container.pid), _sandbox(container.pidfd, container.netns, container.rtnl)
        ),
    )
    _made(shim, oci, container.pid, container.console, container.cgroup)
    if shim.recv(4096):
        container.start()
        packets.send(shim, Begun())


def _make_external(shim: socket.socket, bundle: str, config: ShimConfig, oci: spec.Spec, stdio: Stdio) -> None:
    from seacan.runtime import external

    assert config.external is not None
    runtime = external.Runtime(bundle, config, config.external)
    init = runtime.create(oci, stdio)
    packets.send(shim, Sandboxed(init.pid), _sandbox(init.pidfd, init.netns, init.rtnl))
    _made(shim, oci, init.pid, init.console, external.cgroup_of(oci))
    if shim.recv(4096):
        runtime.start(oci)
        packets.send(shim, Begun())


def _sandbox(pidfd: int, netns: int | None, rtnl: int | None) -> list[int]:
    return [pidfd] if netns is None or rtnl is None else [pidfd, netns, rtnl]


def _made(shim: socket.socket, oci: spec.Spec, pid: int, console: int | None, cgroup: Cgroup | None) -> None:
    oom = _oom(cgroup)
    namespaces = oci.linux.namespaces if oci.linux is not None else ()
    own_pids = any(namespace.type == "pid" and not namespace.path for namespace in namespaces)
    fds = [] if console is None else [console]
    packets.send(shim, Made(pid, console=bool(fds), oom=bool(oom), own_pids=own_pids), [*fds, *oom])


def _seccomp(config: ShimConfig) -> bytes | None:
    if config.seccomp is None:
        return None
    with open(config.seccomp, "rb", buffering=0) as file:
        return file.read()


def _oom(cgroup: Cgroup | None) -> list[int]:
    if cgroup is None or (watch := cgroup.watch_oom()) is None:
        return []
    directory = cgroup.directory("memory")
    assert directory is not None
    counter = "memory.events" if directory == cgroup.unified else "memory.oom_control"
    return [watch.fileno(), os.open(f"{directory}/{counter}", os.O_RDONLY | os.O_CLOEXEC)]


def run_exec(shim: socket.socket, bundle: str, config: ShimConfig, process: spec.Process, stdio: Stdio) -> None:
    """Run a further process in the container."""
    if config.external is not None:
        from seacan.runtime import external

        pid, master = external.Runtime(bundle, config, config.external).exec(process, stdio)
        packets.send(shim, Made(pid, console=master is not None), [] if master is None else [master])
        return
    container = Container.load(config.id, root=os.path.dirname(bundle))
    running = container.exec(process, stdio, seccomp=_seccomp(config), seccomp_flags=config.seccomp_flags)
    console = [] if running.console is None else [running.console]
    packets.send(shim, Made(running.pid, console=bool(console)), console)


def become_exec(shim: socket.socket, bundle: str, config: ShimConfig, process: spec.Process, stdio: Stdio) -> None:
    """Be the process that leads to a further process in the container; see docs/decisions/0006."""
    container = Container.load(config.id, root=os.path.dirname(bundle))
    container.become_exec(
        process,
        _ToShim(shim, False),
        stdio,
        seccomp=_seccomp(config),
        seccomp_flags=config.seccomp_flags,
        spawn=config.spawn,
        new_keyring=not config.keyring,
    )


def kill_everyone(shim: socket.socket, bundle: str, config: ShimConfig, number: int) -> None:
    """Signal every process of the container."""
    if config.external is not None:
        with open(f"{bundle}/config.json", "rb", buffering=0) as file:
            oci = spec.decode_spec(file.read())
        if oci.linux is not None and oci.linux.cgroups_path:
            for pid in cgroups.open(oci.linux.cgroups_path).processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
    else:
        Container.load(config.id, root=os.path.dirname(bundle)).kill(number, everyone=True)
    packets.send(shim, Begun())


def remove(bundle: str, config: ShimConfig) -> None:
    """Take the container off the system, whatever state it is in: processes, cgroup, state; poststop hooks run."""
    if config.external is not None:
        from seacan.runtime import external

        try:
            external.Runtime(bundle, config, config.external).remove()
        finally:
            _remove_cgroup(bundle)
        return
    root = os.path.dirname(bundle)
    try:
        container = Container.load(config.id, root=root)
    except NotFound:
        _remove_cgroup(bundle)
        return
    container.delete(force=True)


def _remove_cgroup(bundle: str) -> None:
    """For a creation that was cut off before it had a state."""
    try:
        with open(f"{bundle}/config.json", "rb", buffering=0) as file:
            oci = spec.decode_spec(file.read())
    except FileNotFoundError:
        return
    if oci.linux is None or not oci.linux.cgroups_path:
        return
    cgroup = cgroups.open(oci.linux.cgroups_path)
    if cgroup.exists:
        cgroup.kill()
        cgroup.remove()


def clean_up(bundle: str, fds: Sequence[int]) -> int:
    """The launcher's target for a container whose shim is gone (:func:`seacan.runtime.task.lost`)."""
    try:
        with open(f"{bundle}/shim.json", "rb", buffering=0) as file:
            config = msgspec.json.decode(file.read(), type=ShimConfig)
    except (FileNotFoundError, msgspec.DecodeError):  # the engine died before, or while it wrote it: no shim came to be
        return 0
    existed = os.path.exists(f"{bundle}/state.json") or os.path.exists(f"{bundle}/init.pid")
    try:
        remove(bundle, config)
    finally:
        if existed and not os.path.exists(f"{bundle}/exit.json"):
            record(bundle, Exit(exit_code=128 + signal.SIGKILL, at=time.time_ns(), signal=signal.SIGKILL))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{bundle}/shim.sock")
    return 0


def reserve(bundle: str) -> None:
    """Have room for :func:`record` before the disk is full: a container still ends then. Raises OSError."""
    fd = os.open(f"{bundle}/exit.json.tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, bytes(_RECORD_SIZE))
    finally:
        os.close(fd)


_RECORD_SIZE = 2048
"""Bytes; larger than any record."""


def record(bundle: str, exit: Exit) -> None:
    """Write ``exit.json``: whole, or not at all."""
    path = f"{bundle}/exit.json"
    content = msgspec.json.encode(exit)
    fd = os.open(f"{path}.tmp", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.truncate(fd, os.write(fd, content))
    finally:
        os.close(fd)
    os.rename(f"{path}.tmp", path)
