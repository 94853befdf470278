"""`docker top`: the host's ps, asked about a container's processes."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
from typing import TYPE_CHECKING, Any

from seacan.errors import InvalidParameter, System

if TYPE_CHECKING:
    from seacan.engine.engine import Engine

_LIMIT = 16 << 20
_RENAMED_PID = re.compile(r"\s+(\S*)=\s*(PID\S*)")


async def top(engine: Engine, reference: str, ps_args: str) -> dict[str, Any]:
    """Docker's answer to GET /containers/{id}/top: titles and rows of `ps <ps_args>`.

    Raises:
        Conflict: the container does not run. System: ps failed; its words.
    """
    container = engine.containers.get(reference)
    for name, value in _RENAMED_PID.findall(ps_args):
        if name != "pid":
            raise InvalidParameter(f'specifying "{name}={value}" is not allowed')
    container.require_running()
    pids = set(await asyncio.to_thread(engine.cgroup(container).processes))
    # The processes are chosen by ps where it can (-q), and by us where its version or the arguments cannot.
    output = await _ps(engine, [*_split(ps_args), "-q", ",".join(map(str, sorted(pids)))])
    if output is None:
        output = await _ps(engine, _split(ps_args))
    if output is None:
        raise System("ps: it failed; are its arguments right?")
    result = table(output, pids)
    engine.containers.emit(container, "top")
    return result


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise InvalidParameter(f"ps arguments: {error}") from error


def table(output: str, pids: set[int]) -> dict[str, Any]:
    """What ps printed, as Docker's Titles and Processes, for the processes in ``pids``."""
    lines = output.splitlines()
    titles = lines[0].split() if lines else []
    if "PID" not in titles:
        raise System("Couldn't find PID field in ps output")
    column = titles.index("PID")
    rows = []
    for line in lines[1:]:
        fields = line.split()
        if len(fields) <= column:
            continue
        try:
            pid = int(fields[column])
        except ValueError as error:
            raise System(f"Unexpected pid '{fields[column]}': {error}") from error
        if pid in pids:
            last = len(titles) - 1
            rows.append([*fields[:last], " ".join(fields[last:])])
    return {"Processes": rows, "Titles": titles}


async def _ps(engine: Engine, arguments: list[str]) -> str | None:
    read, write = os.pipe()
    try:
        process = await engine.launcher.launch("seacan.engine.top:run", "\0".join(arguments), [write])
    finally:
        os.close(write)
    try:
        output = await asyncio.to_thread(_drain, read)
    finally:
        os.close(read)
    return output.decode(errors="replace") if await process.wait() == 0 else None


def _drain(fd: int) -> bytes:
    data = bytearray()
    while chunk := os.read(fd, 1 << 16):
        data += chunk
        if len(data) > _LIMIT:
            break
    return bytes(data)


def run(argument: str, fds: list[int]) -> int:
    """In a process of its own: become ps."""
    os.dup2(fds[0], 1)
    os.execvp("ps", ["ps", *argument.split("\0")])  # noqa: S606
