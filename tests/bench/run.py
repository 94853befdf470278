"""Starting containers: ours, dockerd's, and crun alone."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import subprocess
import time
from pathlib import Path

from tests.bench.engines import engines
from tests.bench.measure import API, Row, Table, alternate, private_kib, resident_kib
from tests.bench.peers import Dockerd, Peer, answers, missing
from tests.hosts import DOCKER, Daemon

RUNS = 20


def measure() -> list[Table]:
    with engines() as (folder, ours, peer), contextlib.ExitStack() as stack:
        table = Table("Run")
        table.rows += _cli(ours, peer)
        table.rows += _api(ours, peer, _crun(stack, folder / "crun"))
        table.rows += _parallel(ours, peer)
        table.rows += _exec(ours, peer)
        table.rows += _memory(ours, peer)
        table.rows += _logs(ours, peer)
        table.rows += _daemon_start(ours)
        return [table]


def _client(environment: object, *argv: str) -> None:
    subprocess.run([str(DOCKER), *argv], check=True, capture_output=True, env=environment)  # type: ignore[call-overload]


def _against(ours: float, peer: float | None, what: str, limit: float, unit: str = "ms", note: str = "") -> Row:
    met = ours <= limit * peer if peer else None
    return Row(what, ours, unit, peer, "dockerd", f"≤ {limit} × dockerd", met, note)


def _cli(ours: Daemon, peer: Dockerd | None) -> list[Row]:
    command = ("run", "--rm", "busybox", "true")
    calls = [lambda: _client(ours.environment(), *command)]
    if peer:
        calls.append(lambda: _client(peer.environment(), *command))
    times = alternate(RUNS, *calls)
    return [_against(times[0], times[1] if peer else None, "`docker run --rm busybox true`, default bridge", 0.25)]


def _crun(stack: contextlib.ExitStack, folder: Path) -> tuple[str, Peer] | None:
    """``crun run`` of a comparable bundle inside the peers' tree: returns the program timed there."""
    if reason := missing("crun"):
        print(f"crun is not measured: {reason}")
        return None
    peer = Peer(folder, hide_unified=True)
    stack.callback(peer.close)
    return ("crun", peer)


# Runs inside the peers' tree: a bundle with the tree's own busybox, then crun run, timed by the shell's clock.
_CRUN = r"""
set -e
mkdir -p /share/b/rootfs/bin && cd /share/b && cp /usr/bin/busybox rootfs/bin/true
crun spec >/dev/null 2>&1 || true
python=$(command -v python3 || true)
jq '.process.terminal=false | .process.args=["/bin/true"] | .root.path="rootfs"' config.json > c && mv c config.json
for i in $(seq 25); do s=$(date +%s%N); crun run bench$i </dev/null; e=$(date +%s%N); echo $(( (e-s)/1000 )); done
"""


def _api(ours: Daemon, peer: Dockerd | None, crun: tuple[str, Peer] | None) -> list[Row]:
    mine = API(ours.socket)
    calls = [lambda: mine.run(NetworkMode="none")]
    if peer:
        theirs = API(peer.socket)
        calls.append(lambda: theirs.run(NetworkMode="none"))
    times = alternate(RUNS, *calls)
    what = "API create + start + wait + remove, `--network none`"
    rows = [Row(what, times[0], "ms", times[1] if peer else None, "dockerd", "≤ 20 ms", times[0] <= 20)]
    if crun:
        lines = crun[1].run("bash", "-c", _CRUN).stdout.split()
        alone = sorted(int(line) / 1000 for line in lines[5:])[len(lines[5:]) // 2]
        rows.append(
            Row(
                "the same, against `crun run` alone", times[0], "ms", alone, "crun", "≤ 3 × crun", times[0] <= 3 * alone
            )
        )
    with_bridge = alternate(RUNS, lambda: mine.run())
    rows.append(Row("API create + start + wait + remove, default bridge", with_bridge[0], "ms"))
    return rows


def _throughput(socket: Path, total: int) -> float:
    def one(api: API, count: int) -> None:
        for _ in range(count):
            api.run(NetworkMode="none")

    apis = [API(socket) for _ in range(16)]
    start = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda api: one(api, total // 16), apis))
    return total / (time.perf_counter() - start)


def _parallel(ours: Daemon, peer: Dockerd | None) -> list[Row]:
    mine = sorted(_throughput(ours.socket, 160) for _ in range(3))[1]
    theirs = sorted(_throughput(peer.socket, 48) for _ in range(3))[1] if peer else None
    met = mine >= 6 * theirs if theirs else None
    return [Row("the same, 16 at once", mine, "containers/s", theirs, "dockerd", "≥ 6 × dockerd", met)]


def _exec(ours: Daemon, peer: Dockerd | None) -> list[Row]:
    calls = []
    for daemon in (ours, peer):
        if daemon is None:
            continue
        daemon.docker("run", "-d", "--name", "idle", "--network", "none", "busybox", "sleep", "1000")
        calls.append(lambda daemon=daemon: _client(daemon.environment(), "exec", "idle", "true"))
    times = alternate(RUNS, *calls)
    for daemon in (ours, peer):
        if daemon is not None:
            daemon.docker("rm", "-f", "idle")
    return [_against(times[0], times[1] if peer else None, "`docker exec c true`", 0.35)]


def _memory(ours: Daemon, peer: Dockerd | None) -> list[Row]:
    idents = [ours.out("run", "-d", "--network", "none", "busybox", "sleep", "1000") for _ in range(10)]
    pids = [ours.inspect(ident)["State"]["Pid"] for ident in idents]
    shims = [_parent(pid) for pid in pids]
    private = sorted(private_kib(pid) for pid in shims)[len(shims) // 2] / 1024
    ours.docker("rm", "-f", *idents)
    resident = sum(resident_kib(pid) for pid in [ours.pid, *ours.launcher_pids()]) / 1024
    their_shim = theirs = None
    if peer:
        ident = peer.docker("run", "-d", "--network", "none", "busybox", "sleep", "1000")
        shim = _parent(json.loads(peer.docker("inspect", ident))[0]["State"]["Pid"])
        their_shim = resident_kib(shim) / 1024
        peer.docker("rm", "-f", ident)
        theirs = sum(resident_kib(pid) for pid in _family(peer.process.pid)) / 1024
    return [
        Row("private memory of an idle container's shim", private, "MiB", their_shim, "dockerd, resident", "≤ 1.2 MiB",
            private <= 1.2),
        Row("daemon and launcher idle, resident", resident, "MB", theirs, "dockerd + containerd", "≤ 80 MB",
            resident <= 80),
    ]  # fmt: skip


def _parent(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("PPid:"):
            return int(line.split()[1])
    raise AssertionError(f"process {pid} has no parent")


def _family(pid: int) -> list[int]:
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += _family(int(child))
    return found


def _logs(ours: Daemon, peer: Dockerd | None) -> list[Row]:
    script = "i=0; while [ $i -lt 10000 ]; do echo 'a line of forty characters, like any other'; i=$((i+1)); done"
    fill = f"({script}) > /tmp/l; for i in $(seq 100); do cat /tmp/l; done"
    writing: list[float] = []
    reading: list[float] = []
    for daemon in (ours, peer):
        if daemon is None:
            continue
        environment = daemon.environment()
        daemon.docker("create", "--name", "storm", "--network", "none", "busybox", "sh", "-c", fill)
        start = time.perf_counter()
        daemon.docker("start", "storm")
        daemon.docker("wait", "storm")
        writing.append(time.perf_counter() - start)
        series = []
        for _ in range(3):
            start = time.perf_counter()
            with subprocess.Popen([str(DOCKER), "logs", "storm"], stdout=subprocess.PIPE, env=environment) as reader:
                assert reader.stdout is not None
                lines = sum(chunk.count(b"\n") for chunk in iter(lambda: reader.stdout.read(1 << 20), b""))
            assert lines == 1_000_000, f"{lines} lines came back"
            series.append(time.perf_counter() - start)
        reading.append(sorted(series)[1])
        daemon.docker("rm", "storm")
    theirs = (writing[1], reading[1]) if peer else (None, None)
    return [
        Row("a container writing 1,000,000 lines", writing[0], "s", theirs[0], "dockerd", "≤ 1 × dockerd",
            writing[0] <= theirs[0] if theirs[0] else None),
        Row("`docker logs` of 1,000,000 lines", reading[0], "s", theirs[1], "dockerd", "≤ 1 × dockerd",
            reading[0] <= theirs[1] if theirs[1] else None),
    ]  # fmt: skip


def _boot(daemon: Daemon) -> float:
    start = time.perf_counter()
    daemon.start(wait=False)
    while not answers(daemon.socket):
        time.sleep(0.002)
    return time.perf_counter() - start


def _daemon_start(ours: Daemon) -> list[Row]:
    empty, full = [], []
    for _ in range(5):
        ours.stop()
        empty.append(_boot(ours))
    api = API(ours.socket)
    for _ in range(500):
        api("POST", "/containers/create", {"Image": "busybox", "Cmd": ["true"]})
    for _ in range(5):
        ours.stop()
        full.append(_boot(ours))
    api = API(ours.socket)
    assert len(api("GET", "/containers/json?all=1")) >= 500
    first, known = sorted(empty)[2], sorted(full)[2]
    return [
        Row("daemon start to first answered request", first, "s", target="≤ 0.5 s", met=first <= 0.5),
        Row("the same with 500 containers known", known, "s", target="≤ 1.5 s", met=known <= 1.5),
    ]
