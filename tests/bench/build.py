"""Building images: ours and dockerd's BuildKit, through docker's own client with buildx where it is installed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from uuid import uuid4

from tests.bench.engines import engines
from tests.bench.measure import Row, Table
from tests.bench.peers import TREE
from tests.hosts import DOCKER

RUNS = 3
FILES, FILE_SIZE = 20_000, 25_000
PLUGIN = "usr/libexec/docker/cli-plugins/docker-buildx"

Client = Callable[..., float]


def measure() -> list[Table]:
    with engines() as (folder, ours, peer):
        sides = [_client(folder, ours.environment())]
        if peer:
            sides.append(_client(folder, peer.environment()))
        table = Table("Build")
        for measurement in (_runs, _client_alone, _hit, _stages, _context, _export):
            table.rows += measurement(folder, sides)
        return [table]


def _client(folder: Path, environment: Mapping[str, str]) -> Client:
    """``build(context, dockerfile, …)`` by a client with the machine's buildx, or without one; gives the seconds."""
    config = folder / "config"
    plugin = next((path for root in (Path("/"), TREE) if (path := root / PLUGIN).exists()), None)
    if plugin:
        (config / "cli-plugins").mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            (config / "cli-plugins/docker-buildx").symlink_to(plugin)
    variables = {**environment, "DOCKER_BUILDKIT": "1" if plugin else "0"}
    if plugin:
        variables["DOCKER_CONFIG"] = str(config)

    def build(context: Path, dockerfile: str, *arguments: str) -> float:
        start = time.perf_counter()
        command = [str(DOCKER), "build", "-q", "-f", "-", *arguments, str(context)]
        subprocess.run(command, input=dockerfile.encode(), env=variables, check=True, capture_output=True)
        return time.perf_counter() - start

    return build


def _row(what: str, times: list[list[float]], limit: float, note: str = "") -> Row:
    ours, peer = median(times[0]), median(times[1]) if len(times) > 1 else None
    return Row(what, ours, "s", peer, "dockerd", f"≤ {limit} × dockerd", ours <= limit * peer if peer else None, note)


def _turns(sides: list[Client], one: Callable[[Client, int], float], runs: int = RUNS) -> list[list[float]]:
    times: list[list[float]] = [[] for _ in sides]
    for turn in range(runs):
        for index, side in enumerate(sides):
            os.sync()  # what was written before, by the other side too, is not for this one to wait for
            times[index].append(one(side, turn))
    return times


def _empty(folder: Path) -> Path:
    context = folder / "empty"
    context.mkdir(exist_ok=True)
    return context


def _runs(folder: Path, sides: list[Client]) -> list[Row]:
    dockerfile = "FROM busybox\n" + "RUN true\n" * 20
    context = _empty(folder)
    times = _turns(sides, lambda side, _: side(context, dockerfile, "--no-cache"))
    return [_row("20 × `RUN true`, no cache", times, 0.35)]


def _client_alone(folder: Path, sides: list[Client]) -> list[Row]:
    """A build without a step: what the client needs for itself, which every other row contains."""
    context = _empty(folder)
    times = _turns(sides, lambda side, _: side(context, "FROM scratch\nLABEL a=b\n"))
    peer = median(times[1]) if len(times) > 1 else None
    return [Row("a build without a step: the client's own time", median(times[0]), "s", peer, "dockerd")]


def _hit(folder: Path, sides: list[Client]) -> list[Row]:
    dockerfile = "FROM busybox\n" + "".join(f"RUN echo {number} > /{number}\n" for number in range(30))
    context = _empty(folder)
    for side in sides:
        side(context, dockerfile)
    return [_row("30 steps, all in the cache", _turns(sides, lambda side, _: side(context, dockerfile)), 0.5)]


def _stages(folder: Path, sides: list[Client]) -> list[Row]:
    stages = "".join(f"FROM busybox AS s{number}\nRUN sleep 1; echo > /s{number}\n" for number in range(6))
    dockerfile = stages + "FROM scratch\n" + "".join(f"COPY --from=s{number} /s{number} /\n" for number in range(6))
    context = _empty(folder)
    times = _turns(sides, lambda side, _: side(context, dockerfile, "--no-cache"))
    return [_row("6 independent stages that take 1 s each", times, 0.7)]


def _context(folder: Path, sides: list[Client]) -> list[Row]:
    context = folder / "context"
    for number in range(FILES):
        path = context / f"d{number % 100}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(FILE_SIZE))
    dockerfile = "FROM busybox\nCOPY . /src\n"
    first = _turns(sides, lambda side, _: side(context, dockerfile), runs=1)

    def changed(side: Client, turn: int) -> float:
        (context / "d7/f7").write_text(uuid4().hex)
        return side(context, dockerfile)

    what = f"context of {FILES:,} files, {FILES * FILE_SIZE // 10**6} MB"
    return [_row(f"{what}: first build", first, 0.8), _row(f"{what}: one file changed", _turns(sides, changed), 0.5)]


def _export(folder: Path, sides: list[Client]) -> list[Row]:
    """A step that takes next to no time itself writes 300 MB that do not compress: what is left is making the layer."""
    context = folder / "seed"
    context.mkdir()
    (context / "seed").write_bytes(os.urandom(30_000_000))
    base = "FROM busybox\nCOPY seed /seed\n"
    step = "RUN for i in 0 1 2 3 4 5 6 7 8 9; do cat /seed; done > /big && echo %s\n"
    for side in sides:
        side(context, base)
    times = _turns(sides, lambda side, turn: side(context, base + step % uuid4().hex))
    return [_row("a layer of 300 MB made into an image", times, 0.7)]
