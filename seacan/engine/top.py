"""`docker top`: the host's ps, asked about a container's processes; where the host has no ps, /proc says as much."""

from __future__ import annotations

import asyncio
import os
import pwd
import re
import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from seacan.errors import InvalidParameter, System

if TYPE_CHECKING:
    from seacan.engine.engine import Engine

DEFAULT_ARGUMENTS = "-ef"
_LIMIT = 16 << 20
_NO_PS = 127
_RENAMED_PID = re.compile(r"\s+(\S*)=\s*(PID\S*)")
_TITLES = ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]


async def top(engine: Engine, reference: str, ps_args: str = "") -> dict[str, Any]:
    """Docker's answer to GET /containers/{id}/top: titles and rows of ``ps <ps_args>`` for the container's processes.

    Raises Conflict when the container does not run, System in ps's own words when ps fails.
    """
    ps_args = ps_args or DEFAULT_ARGUMENTS
    for name, value in _RENAMED_PID.findall(ps_args):
        if name != "pid":
            raise System(f'specifying "{name}={value}" is not allowed')
    container = engine.containers.get(reference)
    container.require_running()
    pids = await asyncio.to_thread(engine.cgroup(container).processes)
    arguments = ps_args.split(" ")
    if any("\0" in argument for argument in arguments):
        raise InvalidParameter("ps arguments: contains a null byte")
    # The processes are chosen by ps where it can (-q), and by us where its version or the arguments cannot.
    status, output, complaint = await _ps(engine, [*arguments, "-q" + ",".join(map(str, pids))])
    if status:
        status, output, complaint = await _ps(engine, arguments)
    if status == _NO_PS:
        if ps_args != DEFAULT_ARGUMENTS:
            raise System('ps: exec: "ps": executable file not found in $PATH')
        result = from_proc(pids)
    elif status:
        raise System(f"ps: {complaint.partition(chr(10))[0] or f'exit status {status}'}")
    else:
        result = table(output, pids)
    engine.containers.emit(container, "top")
    return result


def table(output: str, pids: Collection[int]) -> dict[str, Any]:
    """What ps printed, as Docker's Titles and Processes, for the processes in ``pids``.

    A line without a pid ("-", a thread of ``ps -m``) belongs to the process above it. Raises System.
    """
    lines = output.split("\n")
    titles = lines[0].split()
    if "PID" not in titles:
        raise System("Couldn't find PID field in ps output")
    column = titles.index("PID")
    wanted = set(pids)
    rows: list[list[str]] = []
    within = False
    for line in lines[1:]:
        fields = line.split()
        if len(fields) <= column:
            continue
        if fields[column] != "-":
            try:
                within = int(fields[column]) in wanted
            except ValueError as error:
                raise System(f"Unexpected pid '{fields[column]}': {error}") from error
        if within:
            last = len(titles) - 1
            rows.append([*fields[:last], " ".join(fields[last:])])
    return {"Processes": rows, "Titles": titles}


def from_proc(pids: Sequence[int]) -> dict[str, Any]:
    """``ps -ef`` for these processes, read from /proc (proc_pid_stat(5)); those that end meanwhile are left out."""
    rows = []
    for pid in pids:
        try:
            rows.append(_row(pid))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return {"Processes": rows, "Titles": _TITLES}


def _row(pid: int) -> list[str]:
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        head, _, tail = file.read().rpartition(")")
    fields = tail.split()
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        command = file.read().replace(b"\0", b" ").decode(errors="replace").strip()
    uid = os.stat(f"/proc/{pid}").st_uid
    ticks = os.sysconf("SC_CLK_TCK")
    seconds = (int(fields[11]) + int(fields[12])) // ticks
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / ticks
    began = time.localtime(time.time() - age)
    same_day = time.localtime()[:3] == began[:3]
    return [
        _user(uid),
        str(pid),
        fields[1],
        str(min(99, int(seconds * 100 / age)) if age > 0 else 0),
        time.strftime("%H:%M" if same_day else "%b%d", began),
        _terminal(int(fields[4])),
        f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}",
        command or f"[{head.partition('(')[2]}]",
    ]


def _user(uid: int) -> str:
    """By the host's names, as ps has it; a long one as a number."""
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
    return name if len(name) <= 8 else f"{name[:7]}+"


def _terminal(number: int) -> str:
    major, minor = os.major(number), os.minor(number)
    if 136 <= major <= 143:
        return f"pts/{minor + (major - 136) * 256}"
    if major == 4:
        return f"tty{minor}" if minor < 64 else f"ttyS{minor - 64}"
    return "?"


async def _ps(engine: Engine, arguments: Sequence[str]) -> tuple[int, str, str]:
    """Run ps in a process of its own: its exit status, what it printed, and what it complained of."""
    out_read, out_write = os.pipe()
    err_read, err_write = os.pipe()
    try:
        try:
            process = await engine.launcher.launch(
                "seacan.engine.top:run", "\0".join(arguments), [out_write, err_write]
            )
        finally:
            os.close(out_write)
            os.close(err_write)
        output, complaint = await asyncio.gather(
            asyncio.to_thread(_drain, out_read), asyncio.to_thread(_drain, err_read)
        )
    finally:
        os.close(out_read)
        os.close(err_read)
    status = await process.wait()
    return status, output.decode(errors="replace"), complaint.decode(errors="replace")


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
    os.dup2(fds[1], 2)
    for descriptor in fds:
        os.close(descriptor)
    try:
        os.execvp("ps", ["ps", *argument.split("\0")])  # noqa: S606
    except FileNotFoundError:
        return _NO_PS
