"""The launcher's process: it holds the runtime in memory and forks; nothing else.

``python -m seacan.runtime.forkserver <fd>``, started by :class:`seacan.runtime.launcher.Launcher` with its end of the
channel on ``fd``. It has one thread and few imports, so that a fork is safe, quick (0.5 ms) and shares nearly all
memory; whatever is imported here is never imported again in a shim. It ends when the channel does.

A forked process gets its standard error relayed to the launcher's, line by line, for as long as there is a launcher.
"""

from __future__ import annotations

import _socket as socket
import contextlib
import gc
import importlib
import os
import select
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from seacan.linux import sealed
from seacan.runtime import packets
from seacan.runtime.protocol import Ended, Failed, FromLauncher, Launch, Launched

if TYPE_CHECKING:
    import signal
else:
    import _signal as signal  # without enumerations

REHEARSAL = "seacan.runtime.rehearsal:rehearse"
"""What is imported and called before the first fork."""

_decode = msgspec.json.Decoder(Launch).decode


def run(target: str, argument: str, fds: Sequence[int]) -> int:
    """Call ``package.module:function`` with ``argument`` and ``fds``; gives its exit status."""
    module, _, function = target.partition(":")
    loaded = sys.modules.get(module) or importlib.import_module(module)
    status: int | None = getattr(loaded, function)(argument, fds)
    return status or 0


def _child(message: Launch, fds: list[int], complaints: int) -> int:
    os.setsid()
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.dup2(complaints, 2)
    # All that this process has besides: the channel, the pipes and whatever a future import opened.
    keep = sorted({0, 1, 2, *fds})
    for low, high in zip(keep, [*keep[1:], None], strict=True):
        os.closerange(low + 1, high if high is not None else _MAX_FD)
    try:
        return run(message.target, message.argument, fds)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except BaseException:
        with contextlib.suppress(OSError):
            os.write(2, f"{message.target} failed:\n{traceback.format_exc()}".encode()[:65536])
        return 1


_MAX_FD = 1 << 20


def _status(code: int) -> int:
    """The shell's convention: 128 and the signal."""
    return os.WEXITSTATUS(code) if os.WIFEXITED(code) else 128 + os.WTERMSIG(code)


def _reap() -> list[Ended]:
    ended: list[Ended] = []
    while True:
        try:
            pid, code = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if not pid:
            return ended
        ended.append(Ended(pid=pid, status=_status(code)))


def serve(daemon: socket.socket) -> None:
    wake, waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the daemon ends us, by closing the channel
    relay, complaints = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    relay.setblocking(False)
    complaints.setblocking(False)
    poll = select.poll()
    for fd in (daemon.fileno(), wake, relay.fileno()):
        poll.register(fd, select.POLLIN)
    owed: list[tuple[FromLauncher, list[int]]] = []
    gc.collect()
    gc.freeze()
    gc.disable()

    while True:
        poll.modify(daemon, select.POLLIN | (select.POLLOUT if owed else 0))
        ready = dict(poll.poll())
        if relay.fileno() in ready:
            with contextlib.suppress(BlockingIOError):
                while True:
                    text = relay.recv(65536)
                    with contextlib.suppress(OSError):
                        os.write(2, text if text.endswith(b"\n") else text + b"\n")
        if wake in ready:
            os.read(wake, 4096)
            owed.extend((message, []) for message in _reap())
        if ready.get(daemon.fileno(), 0) & ~select.POLLOUT:
            try:
                packet = packets.receive(daemon)
            except BlockingIOError:
                continue
            if packet is None:
                return
            data, fds = packet
            message = _decode(data)
            try:
                pid = os.fork()
            except OSError as error:
                owed.append((Failed(seq=message.seq, message=f"cannot fork for {message.target}: {error}"), []))
                packets.close_all(fds)
                continue
            if not pid:
                status = 1
                try:
                    status = _child(message, fds, complaints.fileno())
                finally:
                    os._exit(status)
            packets.close_all(fds)
            owed.append((Launched(seq=message.seq, pid=pid), [os.pidfd_open(pid)]))
        try:
            while owed:
                packets.send(daemon, *owed[0])
                packets.close_all(owed.pop(0)[1])
        except BlockingIOError:
            pass
        except OSError:
            return


def main(fd: int) -> None:
    module, _, function = REHEARSAL.partition(":")
    rehearse = getattr(importlib.import_module(module), function)
    try:
        rehearse()
    except OSError as error:  # shims then take more memory, nothing else
        os.write(2, f"cannot rehearse: {error}\n".encode())
    serve(packets.adopt(fd))


if __name__ == "__main__":
    sealed.reexec()  # every container's init begins as a fork of this
    main(int(sys.argv[1]))
