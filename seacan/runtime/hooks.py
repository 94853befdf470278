"""Hooks: programs of the host, run at points of a container's life with its state on their stdin."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Sequence

from seacan.linux.syscalls import pidfd_open
from seacan.runtime import spec
from seacan.runtime.failure import SetupFailed, words

_KEPT_OUTPUT = 4096


def run_hooks(hooks: Sequence[spec.Hook], state: spec.State, name: str) -> None:
    """Run them in order. Raises SetupFailed, in runc's words, at the first that fails or takes longer than allowed."""
    if not hooks:
        return
    data = spec.encode(state)
    for index, hook in enumerate(hooks):
        try:
            _run(hook, data)
        except OSError as error:
            raise SetupFailed(f"error running {name} hook #{index}: fork/exec {hook.path}: {words(error)}") from error
        except SetupFailed as error:
            raise SetupFailed(f"error running {name} hook #{index}: {error}") from error


def _run(hook: spec.Hook, data: bytes) -> None:
    stdin_read, stdin_write = os.pipe2(os.O_CLOEXEC)
    output_read, output_write = os.pipe2(os.O_CLOEXEC)
    environment = dict(pair.partition("=")[::2] for pair in hook.env)
    try:
        pid = os.posix_spawn(
            hook.path,
            hook.args or [hook.path],
            environment,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, stdin_read, 0),
                (os.POSIX_SPAWN_DUP2, output_write, 1),
                (os.POSIX_SPAWN_DUP2, output_write, 2),
            ],
            setsigmask=(),
            setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),
        )
    except OSError:
        for fd in (stdin_write, output_read):
            os.close(fd)
        raise
    finally:
        os.close(stdin_read)
        os.close(output_write)
    try:
        _converse(hook, data, pid, stdin_write, output_read)
    finally:
        os.close(output_read)


def _converse(hook: spec.Hook, data: bytes, pid: int, stdin: int, output: int) -> None:
    """Feed the state, keep the last of what it says, wait for its end."""
    deadline = None if hook.timeout is None else time.monotonic() + hook.timeout
    pidfd = pidfd_open(pid)
    said = b""
    os.set_blocking(stdin, False)
    os.set_blocking(output, False)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(output, select.POLLIN)
    poll.register(stdin, select.POLLOUT)
    ended = False
    try:
        while not ended:
            left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
            ready = poll.poll(left)
            if not ready:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise SetupFailed(f"hook ran past specified timeout of {float(hook.timeout or 0):g}s")
            for fd, _ in ready:
                if fd == stdin:
                    try:
                        data = data[os.write(stdin, data) :]
                    except BlockingIOError:
                        continue
                    except BrokenPipeError:
                        data = b""
                    if not data:
                        poll.unregister(stdin)
                        os.close(stdin)
                        stdin = -1
                elif fd == output:
                    chunk = os.read(output, 65536)
                    said = (said + chunk)[-_KEPT_OUTPUT:]
                    if not chunk:
                        poll.unregister(output)
                elif fd == pidfd:
                    ended = True
        _, status = os.waitpid(pid, 0)
        try:
            said = (said + os.read(output, 65536))[-_KEPT_OUTPUT:]
        except BlockingIOError:
            pass  # something in the background still holds the pipe
    finally:
        os.close(pidfd)
        if stdin >= 0:
            os.close(stdin)
    if status != 0:
        code = os.waitstatus_to_exitcode(status)
        how = f"exit status {code}" if code >= 0 else f"signal: {signal.Signals(-code).name}"
        text = said.decode("utf-8", "replace").strip()
        raise SetupFailed(f"{how}, stdout: , stderr: {text}", 128)
