"""Work on untrusted files, done in a process of its own: how the daemon asks for it and hears of the result.

A task is a function ``target(argument, descriptors)`` in a module that imports little; the launcher forks it. The last
descriptor is a pipe on which it writes one JSON result, success or failure; ending without one is a failure too.
The asyncio half is imported late: the other half runs in a new process each time, where an import is most of the cost.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import msgspec

from seacan.errors import InvalidParameter, SeacanError, System, Unsupported
from seacan.linux.syscalls import M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, mallopt
from seacan.runtime.failure import words

Request = TypeVar("Request", bound=msgspec.Struct)
Result = TypeVar("Result", bound=msgspec.Struct)

_RESULT_LIMIT = 64 << 20

_BUFFERS = 16 << 20
"""Bytes up to which a block of memory comes from what the process has."""
_DEPTH = 30_000
"""Nested calls, and open files, that a worker may have."""


class Process(Protocol):
    """A process that the launcher forked."""

    @property
    def pid(self) -> int: ...

    async def wait(self) -> int: ...


class Launcher(Protocol):
    """What storage needs of :class:`seacan.runtime.launcher.Launcher`."""

    async def launch(self, target: str, argument: str, fds: Sequence[int] = ()) -> Process: ...


class Failure(msgspec.Struct, frozen=True):
    """``kind`` is the error's class: ``invalid`` (the content's fault), ``unsupported``, or ``system``."""

    kind: str
    message: str


async def run(
    launcher: Launcher,
    target: str,
    request: msgspec.Struct,
    fds: Sequence[int],
    result: type[Result],
    *,
    launched: Callable[[], None] = lambda: None,
) -> Result:
    """Run ``target`` in a new process and give its result; raises what the task failed with.

    ``launched`` is called once the process has its own copies of ``fds`` (or could not be started). When the caller is
    cancelled, the process is killed and waited for before this returns.
    """
    import asyncio

    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, reader)
        try:
            process = await launcher.launch(target, msgspec.json.encode(request).decode(), [*fds, writer])
        finally:
            os.close(writer)
            launched()
        try:
            answer = await _read(reader)
            status = await process.wait()
        except asyncio.CancelledError:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, 9)
            await process.wait()
            raise
    if not answer:
        raise System(f"worker {target} ended with status {status} and no result")
    if answer[:1] == b"-":
        failure = msgspec.json.decode(answer[1:], type=Failure)
        if failure.kind == "invalid":
            raise InvalidParameter(failure.message)
        if failure.kind == "unsupported":
            raise Unsupported(failure.message)
        raise System(failure.message)
    return msgspec.json.decode(answer[1:], type=result)


async def _read(descriptor: int) -> bytes:
    import asyncio

    loop = asyncio.get_running_loop()
    parts: list[bytes] = []
    total = 0
    while True:
        try:
            part = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            ready = asyncio.Event()
            loop.add_reader(descriptor, ready.set)
            try:
                await ready.wait()
            finally:
                loop.remove_reader(descriptor)
            continue
        if not part:
            return b"".join(parts)
        total += len(part)
        if total > _RESULT_LIMIT:
            raise System("worker's result is too long")
        parts.append(part)


def _keep_memory() -> None:
    """Use buffers again rather than give them back.

    The launcher gives every page back, for its shims' sake. A worker that reads 300 MB by the megabyte had 148,000
    page faults of it, and lost half of its time.
    """
    mallopt(M_MMAP_THRESHOLD, _BUFFERS)
    mallopt(M_TRIM_THRESHOLD, 4 * _BUFFERS)


def forbid_imports() -> None:
    """For a worker whose root is going to be a container's, an image's or a context's: files there would be taken for
    Python's own modules (CVE-2019-14271)."""
    sys.meta_path.clear()
    sys.path_hooks.clear()
    sys.path.clear()
    sys.path_importer_cache.clear()


def _allow_depth() -> None:
    """Let walks go as deep as trees do: a call and a descriptor a folder. Calls of Python by Python take no stack."""
    sys.setrecursionlimit(_DEPTH)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(_DEPTH, most) if most >= 0 else _DEPTH, most))


def answer(
    function: Callable[[Request, Sequence[int]], msgspec.Struct],
    request: type[Request],
    argument: str,
    fds: Sequence[int],
) -> int:
    """The other end: call ``function`` with the decoded request and report what comes of it on the last descriptor."""
    *inputs, report = fds
    os.set_blocking(report, True)
    _allow_depth()
    _keep_memory()
    try:
        message = b"+" + msgspec.json.encode(function(msgspec.json.decode(argument, type=request), inputs))
        status = 0
    except SeacanError as error:
        kind = {400: "invalid", 501: "unsupported"}.get(error.status, "system")
        message = b"-" + msgspec.json.encode(Failure(kind, error.message))
        status = 1
    except OSError as error:
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        message = b"-" + msgspec.json.encode(Failure("system", where + words(error)))
        status = 1
    except RecursionError:
        message = b"-" + msgspec.json.encode(Failure("invalid", "folders are nested too deeply"))
        status = 1
    except Exception:
        message = b"-" + msgspec.json.encode(Failure("system", f"internal error: {traceback.format_exc()}"))
        status = 1
    view = memoryview(message)
    with contextlib.suppress(BrokenPipeError):  # whoever asked has gone
        while view:
            view = view[os.write(report, view) :]
    os.close(report)
    return status
