"""A process's standard streams inside the shim: pumped between its pipes or pseudo-terminal, its log and its clients.

What is written is passed on as it comes, to the log first. Every client has a bounded backlog; one that does not keep
up holds the process up, as under dockerd, and one that is gone is dropped. What clients type goes to the process,
which holds them up in turn. Nothing here waits: the shim's loop calls in.
"""

from __future__ import annotations

import _socket as socket
import contextlib
import errno
import fcntl
import os
import struct
import termios
from collections.abc import Callable
from typing import Protocol

from seacan.runtime.loop import GONE, READ, WRITE, Loop

STDOUT, STDERR = 1, 2

_CHUNK = 64 << 10
_BACKLOG_LIMIT = 1_000_000
"""Bytes a client may be behind before the process has to wait; dockerd's BytesPipe blocks at the same number."""

_DRAIN_LIMIT = 16 << 20
"""More than any pipe holds: what a stream may still give once its process has ended."""

DEFAULT_DETACH_KEYS = b"\x10\x11"


class Log(Protocol):
    """Where output is recorded (:mod:`seacan.runtime.logs.writer`)."""

    @property
    def busy(self) -> bool:
        """True while it cannot take more; then nothing is read from the process."""
        ...

    def write(self, stream: int, data: bytes) -> None: ...

    def finish(self, stream: int) -> None:
        """The stream has ended: write what is left of its last line."""
        ...


class DetachKeys:
    """Looks for the key sequence that detaches in what a client types, across reads.

    Held-back bytes that turn out not to be the sequence are delivered. As in dockerd, the byte that breaks a sequence
    does not begin another.
    """

    __slots__ = ("_keys", "_matched")

    def __init__(self, keys: bytes) -> None:
        self._keys = keys or DEFAULT_DETACH_KEYS
        self._matched = 0

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """Bytes to deliver, and whether the sequence is complete."""
        keys = self._keys
        if not self._matched and keys[0] not in data:
            return data, False
        out = bytearray()
        for byte in data:
            if byte == keys[self._matched]:
                self._matched += 1
                if self._matched == len(keys):
                    self._matched = 0
                    return bytes(out), True
            else:
                out += keys[: self._matched]
                out.append(byte)
                self._matched = 0
        return bytes(out), False

    def rest(self) -> bytes:
        """What is held back when the input ends."""
        held, self._matched = self._keys[: self._matched], 0
        return held


class Client:
    """One attached connection; owns its socket."""

    __slots__ = (
        "_backlog",
        "_detach",
        "_ending",
        "_events",
        "_multiplexed",
        "_pending",
        "_reads",
        "_socket",
        "_streams",
        "_wants",
        "behind",
    )

    def __init__(
        self,
        streams: Streams,
        connection: socket.socket,
        *,
        reads: bool,
        wants: frozenset[int],
        multiplexed: bool,
        detach: DetachKeys | None,
        pending: bytes,
    ) -> None:
        self._streams = streams
        self._socket = connection
        self._reads = reads
        self._wants = wants
        self._multiplexed = multiplexed
        self._detach = detach
        self._pending = pending
        self._backlog: list[bytes] = []
        self.behind = 0
        """Bytes that wait for the client."""
        self._ending = False
        self._events = READ if reads else 0
        connection.setblocking(False)
        streams.loop.watch(connection.fileno(), self._events, self._ready)

    def begin(self) -> None:
        """Deliver what had been read from the client before."""
        if self._pending:
            data, self._pending = self._pending, b""
            self._typed(data)

    # --- to the client ----------------------------------------------------------------------------------------

    def send(self, stream: int, data: bytes) -> None:
        if stream not in self._wants:
            return
        parts = [struct.pack(">BxxxL", stream, len(data)), data] if self._multiplexed else [data]
        if self._backlog:
            self._backlog += parts
            self.behind += sum(map(len, parts))
            return
        total = sum(map(len, parts))
        try:
            sent = self._socket.sendmsg(parts, (), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._streams.gone(self)
            return
        if sent < total:
            self._backlog.append(b"".join(parts)[sent:])
            self.behind = total - sent
            self._update()

    def _flush(self) -> None:
        while self._backlog:
            if len(self._backlog) > 1:
                # Few large writes; a sendmsg takes 1024 parts.
                parts = self._backlog[:512]
            else:
                parts = self._backlog
            try:
                sent = self._socket.sendmsg(parts, (), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                self._streams.gone(self)
                return
            self.behind -= sent
            done = 0
            for part in parts:
                if sent < len(part):
                    break
                sent -= len(part)
                done += 1
            del self._backlog[:done]
            if sent:
                self._backlog[0] = self._backlog[0][sent:]
        if self._ending:
            self.close()
        else:
            self._update()
        self._streams.caught_up()

    # --- from the client --------------------------------------------------------------------------------------

    def hold(self) -> None:
        """The process is behind with its input, or has caught up."""
        self._update()

    def stop_reading(self) -> None:
        self._reads = False
        self._update()

    def _update(self) -> None:
        if self._socket.fileno() < 0:
            return
        events = (WRITE if self._backlog else 0) | (
            READ if self._reads and not self._ending and self._streams.takes_input else 0
        )
        if events != self._events:
            self._events = events
            self._streams.loop.change(self._socket.fileno(), events)

    def _ready(self, events: int) -> None:
        if events & READ and self._events & READ:
            try:
                data = self._socket.recv(_CHUNK, socket.MSG_DONTWAIT)
            except BlockingIOError:
                data = None
            except OSError:
                data = b""
            if data is not None:
                self._typed(data)
        elif events & GONE:
            self._streams.gone(self)
            return
        if events & WRITE and self._backlog:
            self._flush()

    def _typed(self, data: bytes) -> None:
        if not data:
            self._reads = False
            if self._detach is not None and (held := self._detach.rest()):
                self._streams.input(held)
            self._update()
            self._streams.input_ended(self)
            return
        if self._detach is None:
            self._streams.input(data)
            return
        data, detached = self._detach.feed(data)
        if data:
            self._streams.input(data)
        if detached:
            self._reads = False
            self._streams.detached(self)

    # --- the end ----------------------------------------------------------------------------------------------

    def end(self) -> None:
        """Close once everything has been passed on."""
        if self._backlog:
            self._ending = True
            self._update()
        else:
            self.close()

    @property
    def closed(self) -> bool:
        return self._socket.fileno() < 0

    def close(self) -> None:
        if self.closed:
            return
        self._streams.loop.forget(self._socket.fileno())
        with contextlib.suppress(OSError):
            # The daemon may hold a copy of the connection, so closing ours is not enough. Unread input would turn
            # the end into a reset, which may overtake output still on its way.
            self._socket.shutdown(socket.SHUT_WR)
            for _ in range(64):
                if not self._socket.recv(_CHUNK, socket.MSG_DONTWAIT):
                    break
        self._socket.close()
        self._backlog.clear()
        self.behind = 0
        self._streams.closed(self)


class Streams:
    """The standard streams of one process.

    ``stdin`` is where its input is written (-1: it has none); ``outputs`` gives what to read by stream number. On a
    terminal both are the pseudo-terminal's master, and everything is STDOUT. All descriptors become this object's.
    ``closes_stdin``: the end of a client's input is the end of the process's (StdinOnce, exec); otherwise it only ends
    that client's attachment.
    """

    def __init__(
        self,
        loop: Loop,
        *,
        stdin: int,
        outputs: dict[int, int],
        terminal: bool,
        closes_stdin: bool,
        log: Log | None = None,
        on_detach: Callable[[], None] = lambda: None,
        on_ended: Callable[[], None] = lambda: None,
    ) -> None:
        self.loop = loop
        self._stdin = stdin
        self._outputs = outputs
        self._terminal = outputs[STDOUT] if terminal else -1
        self._closes_stdin = closes_stdin and not terminal
        self._log = log
        self._on_detach = on_detach
        self._on_ended = on_ended
        self._input: list[bytes] = []
        self._stdin_ending = False
        self._paused = False
        self._draining = False
        self.clients: list[Client] = []
        self._watched: dict[int, int] = {}
        for fd in set(outputs.values()):
            os.set_blocking(fd, False)
            self._watch(fd)
        if stdin >= 0 and not terminal:
            os.set_blocking(stdin, False)
            loop.watch(stdin, 0, self._writable)

    # --- clients ----------------------------------------------------------------------------------------------

    def attach(
        self,
        fd: int,
        *,
        stdin: bool,
        stdout: bool,
        stderr: bool,
        multiplexed: bool,
        detach_keys: bytes,
        pending: bytes,
    ) -> None:
        """Connect a stream socket, which becomes this object's. Raises OSError, and closes it, when it is none."""
        try:
            connection = socket.socket(fileno=fd)
        except OSError:
            os.close(fd)
            raise
        wants = frozenset(number for number, wanted in ((STDOUT, stdout), (STDERR, stderr)) if wanted)
        has_stdin = stdin and self._stdin >= 0
        client = Client(
            self,
            connection,
            reads=has_stdin and not self._stdin_ending,
            wants=wants,
            multiplexed=multiplexed,
            detach=DetachKeys(detach_keys) if self._terminal >= 0 else None,
            pending=pending if has_stdin else b"",
        )
        self.clients.append(client)
        client.begin()

    def gone(self, client: Client) -> None:
        """The client's connection broke; to the process that is the end of its input."""
        reads = client._reads
        client.stop_reading()
        client.close()
        if reads and self._closes_stdin:
            self._end_stdin()

    def detached(self, client: Client) -> None:
        client.end()
        self._on_detach()

    def closed(self, client: Client) -> None:
        if client in self.clients:
            self.clients.remove(client)
        self.caught_up()

    def caught_up(self) -> None:
        """A client's backlog, or the log's, has shrunk: read on if that was what held us up."""
        if self._paused and not self._congested():
            self._pause(False)

    # --- output -----------------------------------------------------------------------------------------------

    def _congested(self) -> bool:
        return (self._log is not None and self._log.busy) or any(
            client.behind >= _BACKLOG_LIMIT for client in self.clients
        )

    def _pause(self, paused: bool) -> None:
        self._paused = paused
        for fd in self._outputs.values():
            self._watch(fd)

    def _watch(self, fd: int) -> None:
        """Watch an output for what is wanted of it. Not at all for nothing: a hang-up would be reported for ever."""
        wanted = (0 if self._paused else READ) | (WRITE if fd == self._terminal and self._input else 0)
        current = self._watched.get(fd, 0)
        if wanted == current:
            return
        self._watched[fd] = wanted
        if not current:
            stream = next(number for number, output in self._outputs.items() if output == fd)
            self.loop.watch(fd, wanted, lambda events: self._ready(stream, events))
        elif not wanted:
            self.loop.forget(fd)
        else:
            self.loop.change(fd, wanted)

    def _ready(self, stream: int, events: int) -> None:
        if events & WRITE:
            self._write_input()
        if events & (READ | GONE) and not self._paused and stream in self._outputs:
            self._read(stream)
            if not self._draining and self._congested():
                self._pause(True)

    def _read(self, stream: int) -> int:
        """Pass on one chunk, and give its size; 0 when there is none now or no more."""
        fd = self._outputs[stream]
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno != errno.EIO:  # a terminal nobody has open any more
                raise
            data = b""
        if not data:
            self._end_output(stream)
            return 0
        if self._log is not None:
            self._log.write(stream, data)
        for client in tuple(self.clients):
            client.send(stream, data)
        return len(data)

    def _end_output(self, stream: int) -> None:
        fd = self._outputs.pop(stream)
        self._watched.pop(fd, None)
        self.loop.forget(fd)
        if self._log is not None:
            self._log.finish(stream)
        if fd == self._terminal:
            self._terminal = self._stdin = -1
            self._input.clear()
        os.close(fd)
        if not self._outputs:
            self._on_ended()

    @property
    def output_ended(self) -> bool:
        return not self._outputs

    def drain(self) -> None:
        """Its process has ended: pass on what the streams hold, whoever is behind, and go on until they end."""
        self._draining = True
        self._close_stdin()
        self._input.clear()
        self._pause(False)
        for stream in tuple(self._outputs):
            taken = 0
            while stream in self._outputs and taken < _DRAIN_LIMIT and (size := self._read(stream)):
                taken += size

    def cut(self) -> None:
        """Stop reading, whoever still holds the other end."""
        for stream in tuple(self._outputs):
            self._end_output(stream)

    def end_clients(self) -> None:
        for client in tuple(self.clients):
            client.end()

    # --- input ------------------------------------------------------------------------------------------------

    @property
    def takes_input(self) -> bool:
        """False while the process is behind with what was typed already, or when it has closed its input."""
        return not self._input and self._stdin >= 0 and not self._stdin_ending

    def input(self, data: bytes) -> None:
        if self._stdin < 0 or self._stdin_ending:
            return
        self._input.append(data)
        if len(self._input) == 1:
            self._write_input()

    def input_ended(self, client: Client) -> None:
        """As dockerd: the input of the process ends too (StdinOnce), or else the client's attachment does."""
        if self._closes_stdin:
            self._end_stdin()
        else:
            client.end()

    def _end_stdin(self) -> None:
        self._stdin_ending = True
        if not self._input:
            self._close_stdin()

    def _close_stdin(self) -> None:
        if self._stdin >= 0 and self._terminal < 0:
            self.loop.forget(self._stdin)
            os.close(self._stdin)
            self._stdin = -1
            self._input.clear()
            self._update_clients()

    def _writable(self, events: int) -> None:
        if events & WRITE:
            self._write_input()
        elif events & GONE:
            self._close_stdin()

    def _write_input(self) -> None:
        while self._input:
            try:
                written = os.write(self._stdin, self._input[0])
            except BlockingIOError:
                break
            except OSError:  # EPIPE: it does not read any more; EIO: the terminal is gone
                self._input.clear()
                self._close_stdin()
                break
            if written < len(self._input[0]):
                self._input[0] = self._input[0][written:]
            else:
                self._input.pop(0)
        if self._terminal >= 0:
            self._watch(self._terminal)
        elif self._stdin >= 0:
            self.loop.change(self._stdin, WRITE if self._input else 0)
        if not self._input and self._stdin_ending:
            self._close_stdin()
        self._update_clients()

    def _update_clients(self) -> None:
        for client in tuple(self.clients):
            client.hold()

    # --- terminal ---------------------------------------------------------------------------------------------

    def resize(self, height: int, width: int) -> None:
        """Set the terminal's size in characters; nothing to do where there is none."""
        if self._terminal >= 0:
            fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def close(self) -> None:
        """Close everything at once, passed on or not."""
        self._close_stdin()
        self.cut()
        for client in tuple(self.clients):
            client.close()
