"""What a benchmark is made of: timing of alternating runs, and rows of a table with a ratio against a peer.

Runs of ours and of the peer alternate, so that a machine that slows down slows both. Every figure is a median; the
spread (the 10th and 90th percentiles) is kept for the reader to judge noise by.
"""

from __future__ import annotations

import contextlib
import gc
import http.client
import json
import platform
import shutil
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Row:
    """One line of a table: ``ours`` and ``peer`` in ``unit``, the target in words, and whether it was met."""

    what: str
    ours: float | None
    unit: str
    peer: float | None = None
    peer_name: str = ""
    target: str = ""
    met: bool | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        return self.ours / self.peer if self.ours is not None and self.peer else None


@dataclass
class Table:
    title: str
    rows: list[Row] = field(default_factory=list)

    def markdown(self) -> str:
        lines = [
            f"### {self.title}",
            "",
            "| what | Seacan | peer | ratio | to reach | |",
            "|---|---:|---:|---:|---|---|",
        ]
        for row in self.rows:
            peer = f"{_figure(row.peer)} {row.unit} ({row.peer_name})" if row.peer is not None else "–"
            ratio = f"{row.ratio:.2f} ×" if row.ratio is not None else "–"
            verdict = {True: "reached", False: "**not reached**", None: ""}[row.met]
            note = f" {row.note}" if row.note else ""
            lines.append(
                f"| {row.what} | {_figure(row.ours)} {row.unit} | {peer} | {ratio} | {row.target} | {verdict}{note} |"
            )
        return "\n".join(lines) + "\n"


def _figure(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def alternate(runs: int, *what: Callable[[], Any], warmup: int = 2) -> list[float]:
    """Median milliseconds of each callable, the callables taking turns ``runs`` times."""
    times: list[list[float]] = [[] for _ in what]
    gc.collect()
    for turn in range(warmup + runs):
        for index, call in enumerate(what):
            start = time.perf_counter()
            call()
            if turn >= warmup:
                times[index].append((time.perf_counter() - start) * 1000)
    return [statistics.median(series) for series in times]


def machine() -> str:
    """One line that says where the figures come from."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    import os

    return f"{os.cpu_count()} cores ({model}), Linux {platform.release()}, Python {platform.python_version()}"


@contextlib.contextmanager
def in_memory(folder: Path) -> Iterator[Path]:
    """Make ``folder`` one that is in memory, as /run is on any host: where daemons keep what a reboot ends."""
    target = Path(tempfile.mkdtemp(prefix="seacan-bench-", dir="/dev/shm"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.symlink_to(target)
    try:
        yield folder
    finally:
        folder.unlink(missing_ok=True)
        shutil.rmtree(target, ignore_errors=True)


class API:
    """A bare client of the Docker API: one kept connection, no library in the way of the measurement."""

    def __init__(self, path: Path | str) -> None:
        self.path = str(path)
        self._connection: http.client.HTTPConnection | None = None

    def _connect(self) -> http.client.HTTPConnection:
        if self._connection is None:
            connection = http.client.HTTPConnection("localhost", timeout=120)
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(self.path)
            self._connection = connection
        return self._connection

    def __call__(self, method: str, path: str, body: object = None, ok: Sequence[int] = (200, 201, 204)) -> Any:
        connection = self._connect()
        data = b"" if body is None else json.dumps(body).encode()
        connection.request(method, f"/v1.47{path}", data, {"Content-Type": "application/json"} if data else {})
        response = connection.getresponse()
        answer = response.read()
        if response.status not in ok:
            raise AssertionError(f"{method} {path}: {response.status} {answer[:500]!r}")
        return json.loads(answer) if answer and response.headers.get("Content-Type", "").startswith("app") else answer

    def run(self, command: Sequence[str] = ("true",), *, image: str = "busybox", **host_config: object) -> int:
        """create + start + wait + remove; the exit code."""
        body = {"Image": image, "Cmd": list(command), "HostConfig": host_config}
        ident = self("POST", "/containers/create", body)["Id"]
        self("POST", f"/containers/{ident}/start")
        code = self("POST", f"/containers/{ident}/wait")["StatusCode"]
        self("DELETE", f"/containers/{ident}")
        return int(code)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def private_kib(pid: int) -> int:
    """Private memory of a process in KiB (clean and dirty)."""
    total = 0
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(("Private_Clean:", "Private_Dirty:")):
            total += int(line.split()[1])
    return total


def resident_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0
