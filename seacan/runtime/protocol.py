"""The words that daemon, launcher and shim exchange; who talks to whom is a type here, not a convention.

Every channel is an ``AF_UNIX`` ``SOCK_SEQPACKET`` socket: one packet is one JSON message (tagged by ``op``), with file
descriptors riding along (``SCM_RIGHTS``). Packets stay far below the socket buffer: what can be large (an OCI
configuration, an exec's environment) lies in a file of the bundle.

daemon → launcher     :class:`Launch`, answered by :class:`Launched` or :class:`Failed`
launcher → daemon     :class:`Ended`, for every process it has forked
daemon → shim         the requests below, each with its own ``seq``; the answer carries the same ``seq``
shim → daemon         answers, and events (``seq`` 0): :class:`Created`, :class:`Exited`, :class:`ExecExited`,
                      :class:`ClientDetached`, :class:`OutOfMemory`
"""

from __future__ import annotations

import msgspec

from seacan.runtime.bundle import Exit


class Message(msgspec.Struct, frozen=True, tag_field="op", omit_defaults=True):
    """Base of every message."""


# --- daemon → launcher ------------------------------------------------------------------------------------------


class Launch(Message, frozen=True, tag="launch"):
    """Fork, import ``target`` ("package.module:function") and call it with ``argument`` and the packet's descriptors.

    The function is called as ``function(argument, fds)``. Its process is a session leader of its own with nothing open
    but the descriptors that came along and the standard ones (input and output on /dev/null, errors relayed to the
    launcher's), and ends with the function's return (an int exit status, or None for 0).
    """

    seq: int
    target: str
    argument: str


class Launched(Message, frozen=True, tag="launched"):
    """The answer: the new process's pid, with its pidfd riding along."""

    seq: int
    pid: int


class Ended(Message, frozen=True, tag="ended"):
    """A forked process has ended. ``status`` is the shell's convention (128+signal)."""

    pid: int
    status: int


# --- shim → daemon: events --------------------------------------------------------------------------------------


class Created(Message, frozen=True, tag="created"):
    """Init exists in its namespaces and waits for :class:`Start`.

    Descriptors: init's pidfd; then, where the container has a network namespace of its own (``network`` true), that
    namespace and a NETLINK_ROUTE socket opened inside it.
    """

    pid: int
    network: bool = False


class Exited(Message, frozen=True, tag="exited"):
    """Init has ended and everything it wrote has been passed on. ``exit.json`` is on disk already.

    Answered by :class:`Noted`; until then (or until no daemon is connected) attached clients see no end of their
    streams, so that one who asks for the state afterwards finds it.
    """

    exit: Exit


class ExecExited(Message, frozen=True, tag="exec-exited"):
    """As :class:`Exited`, for an exec. Also answered by :class:`Noted`."""

    exec_id: str
    exit: Exit


class ClientDetached(Message, frozen=True, tag="client-detached"):
    """An attached client has typed its detach keys; its connection is being closed."""

    exec_id: str = ""


class OutOfMemory(Message, frozen=True, tag="oom"):
    """The kernel killed a process of the container for want of memory."""


# --- daemon → shim: requests ------------------------------------------------------------------------------------


class Make(Message, frozen=True, tag="make"):
    """What a shim waits for first: have the container of ``bundle`` made. :class:`Created` or a :class:`Failed` with
    ``seq`` 0 says what became of it. A shim whose channel ends before has nothing to do, and ends too."""

    bundle: str


class Start(Message, frozen=True, tag="start"):
    """Let init execute the user's program. Answered by :class:`Done` after execve succeeded, or :class:`Failed`."""

    seq: int


class Attach(Message, frozen=True, tag="attach"):
    """Connect the descriptor that rides along to the streams of init (``exec_id`` empty) or of an exec.

    The descriptor is a stream socket: the client's own connection, or one end of a socket pair. The shim owns it from
    then on and closes it when the streams end. ``multiplexed`` frames output with Docker's 8-byte header. Bytes in
    ``pending`` (base64 in JSON) had already been read from the client and are stdin's first.
    """

    seq: int
    exec_id: str = ""
    stdin: bool = False
    stdout: bool = True
    stderr: bool = True
    multiplexed: bool = False
    detach_keys: bytes = b"\x10\x11"
    pending: bytes = b""


class Exec(Message, frozen=True, tag="exec"):
    """Run the OCI process in the bundle's ``exec-<exec_id>.json`` inside the container.

    Answered by :class:`ExecStarted` or :class:`Failed`. A descriptor that rides along is attached before the start,
    as by :class:`Attach` with the same fields. ``stdin`` without a descriptor means an open pipe nobody writes to.
    """

    seq: int
    exec_id: str
    stdin: bool = False
    stdout: bool = False
    stderr: bool = False
    multiplexed: bool = False
    detach_keys: bytes = b"\x10\x11"
    pending: bytes = b""


class ExecStarted(Message, frozen=True, tag="exec-started"):
    seq: int
    pid: int


class Noted(Message, frozen=True, tag="noted"):
    """The daemon knows of an exit: of init (``exec_id`` empty) or of an exec. Not answered."""

    exec_id: str = ""


class Signal(Message, frozen=True, tag="signal"):
    """Send ``signal`` to init, to an exec, or with ``everyone`` to every process of the container."""

    seq: int
    signal: int
    exec_id: str = ""
    everyone: bool = False


class Resize(Message, frozen=True, tag="resize"):
    seq: int
    height: int
    width: int
    exec_id: str = ""


class Keep(Message, frozen=True, tag="keep"):
    """Hold copies of the descriptors that ride along under ``name``, across restarts of the daemon (an fd store).

    The network keeps the container's DNS sockets and reserved ports here. Keeping none forgets the name.
    """

    seq: int
    name: str


class Fetch(Message, frozen=True, tag="fetch"):
    """Give back copies of what :class:`Keep` stored; answered by :class:`Done` with the descriptors."""

    seq: int
    name: str


class Describe(Message, frozen=True, tag="describe"):
    """The first request of a daemon that has found the shim again; answered by :class:`Description`."""

    seq: int


class Description(Message, frozen=True, tag="description"):
    """Everything :class:`Created` said (with the same descriptors), and what has happened since."""

    seq: int
    pid: int
    started: bool
    network: bool = False
    execs: dict[str, int] = {}
    ended_execs: dict[str, Exit] = {}
    exit: Exit | None = None


class Abandon(Message, frozen=True, tag="abandon"):
    """Undo the creation: kill init if it runs and end without recording an exit. Answered by :class:`Done`."""

    seq: int


class Done(Message, frozen=True, tag="done"):
    seq: int


class Failed(Message, frozen=True, tag="failed"):
    """A request could not be carried out (or, with ``seq`` 0, the creation failed and the shim is ending).

    ``message`` reads like runc's, ready for the user; ``exit_code`` as in :class:`seacan.errors.RuntimeFailed`.
    """

    seq: int
    message: str
    exit_code: int = 128


ToLauncher = Launch
FromLauncher = Launched | Ended | Failed
ToShim = Make | Start | Attach | Exec | Noted | Signal | Resize | Keep | Fetch | Describe | Abandon
FromShim = Created | Exited | ExecExited | ClientDetached | OutOfMemory | ExecStarted | Description | Done | Failed
