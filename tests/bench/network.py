"""The network: what it adds to a start, what it costs a packet, a connection, a look-up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from seacan.engine.config import EndpointSettings, PortBinding
from seacan.engine.database import Database
from seacan.engine.options import EngineOptions
from seacan.network.links import inside
from seacan.network.model import ContainerIdentity, PortRequest
from seacan.network.networks import Networks
from tests.bench.engines import engines
from tests.bench.measure import API, Row, Table
from tests.bench.peers import Dockerd
from tests.hosts import Daemon
from tests.unit.network.conftest import Space

RUNS = 20
PRESENT = int(os.environ.get("SEACAN_BENCH_CONTAINERS", "1000"))
_SETTLE = 0.15
"""Seconds after a removal, of which the kernel does the larger part later: with 1,000 containers present, the next
start would take 5 ms more meanwhile."""
_ATTACHED = 0.03
"""Seconds until a link has the fast path (docs/decisions/0015): the daemon sees to one after the other as soon as no
container is started for a while, and a start meanwhile waits for the kernel's grace period, 27 ms."""
SECONDS = 0.4
TURNS = 12
"""Traffic is measured for short times that take turns, and the best of each counts: whatever else the machine does can
only make it slower, and would decide the ratio otherwise."""

# One program for every measurement of packets: the kernel's work must be what is measured, so many go in one call.
# Sender and receiver of datagrams are one thread: on a core for each, how often one wakes the other decides, a tenth up
# or down from run to run, where the ratio of what one core carries is the same within a hundredth.
_TRAFFIC = r"""
import ctypes, os, socket, struct, sys, time
libc = ctypes.CDLL(None)
what, address, port, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
class iovec(ctypes.Structure): _fields_ = [("base", ctypes.c_void_p), ("len", ctypes.c_size_t)]
class msghdr(ctypes.Structure):
    _fields_ = [("name", ctypes.c_void_p), ("namelen", ctypes.c_uint32), ("iov", ctypes.c_void_p),
                ("iovlen", ctypes.c_size_t), ("control", ctypes.c_void_p), ("controllen", ctypes.c_size_t),
                ("flags", ctypes.c_int)]
class mmsghdr(ctypes.Structure): _fields_ = [("hdr", msghdr), ("len", ctypes.c_uint)]
def batch(n, size):
    data = ctypes.create_string_buffer(size * n)
    iovs, msgs = (iovec * n)(), (mmsghdr * n)()
    for i in range(n):
        iovs[i] = iovec(ctypes.addressof(data) + i * size, size)
        msgs[i].hdr.iov = ctypes.addressof(iovs[i]); msgs[i].hdr.iovlen = 1
    return data, iovs, msgs
if what == "datagrams":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    out, into = int(address), port; keep, got = batch(64, 64), batch(64, 64); count = 0; start = time.perf_counter()
    while (now := time.perf_counter()) - start < seconds:
        libc.sendmmsg(out, keep[2], 64, 0)
        count += max(0, libc.recvmmsg(into, got[2], 64, 0x40, None))   # MSG_DONTWAIT
    print(count / (now - start), flush=True)
elif what == "swallow":
    s = socket.create_server((address, port)); s.settimeout(5); print("ready", flush=True); c, _ = s.accept()
    buffer = bytearray(1 << 20); total = 0; start = time.perf_counter()
    while n := c.recv_into(buffer): total += n
    print(total * 8 / (time.perf_counter() - start) / 1e9, flush=True)
elif what == "pour":
    s = socket.create_connection((address, port)); data = bytes(1 << 20); end = time.perf_counter() + seconds
    while time.perf_counter() < end: s.sendall(data)
elif what == "greet":
    s = socket.create_server((address, port), backlog=1024); print("ready", flush=True)
    while True: s.accept()[0].close()
elif what == "knock":
    count = 0; start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        s.connect((address, port)); s.close(); count += 1
    print(count / seconds, flush=True)
elif what == "lookups":
    name = sys.argv[5]
    q = struct.pack(">HHHHHH", 1, 256, 1, 0, 0, 0) + bytes([len(name)]) + name.encode() + b"\0\0\1\0\1"
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect((address, port)); s.settimeout(2)
    times = []
    for _ in range(2000):
        t = time.perf_counter(); s.send(q); s.recv(512); times.append(time.perf_counter() - t)
    times.sort()
    count = 0; start = time.perf_counter()
    for _ in range(48): s.send(q)
    while time.perf_counter() - start < seconds:
        s.recv(512); s.send(q); count += 1
    print(count / seconds, times[1000] * 1000, flush=True)
"""


def measure() -> list[Table]:
    table = Table("Network")
    with engines() as (folder, ours, peer):
        table.rows += _starts(ours, peer)
        table.rows += _lookups(ours, peer)
        table.rows += _packets(folder)
    return [table]


# --- starts --------------------------------------------------------------------------------------------------------

_PORTS = {"80/tcp": [{"HostPort": ""}], "81/tcp": [{"HostPort": ""}]}


def _start(api: API, host_config: dict[str, object]) -> float:
    """Milliseconds of POST start."""
    ident = api("POST", "/containers/create", {"Image": "busybox", "Cmd": ["true"], "HostConfig": host_config})["Id"]
    begin = time.perf_counter()
    api("POST", f"/containers/{ident}/start")
    took = (time.perf_counter() - begin) * 1000
    api("POST", f"/containers/{ident}/wait")
    api("DELETE", f"/containers/{ident}?force=1")
    time.sleep(_SETTLE)
    return took


def _turns(apis: Sequence[API], configs: Sequence[dict[str, object]]) -> list[list[float]]:
    """Medians for each API and configuration, everything taking turns."""
    times: list[list[list[float]]] = [[[] for _ in configs] for _ in apis]
    for turn in range(RUNS + 2):
        for which, api in enumerate(apis):
            for what, config in enumerate(configs):
                took = _start(api, config)
                if turn > 1:
                    times[which][what].append(took)
    return [[statistics.median(series) for series in one] for one in times]


def _starts(ours: Daemon, peer: Dockerd | None) -> list[Row]:
    apis = [API(ours.socket)] + ([API(peer.socket)] if peer else [])
    none: dict[str, object] = {"NetworkMode": "none"}
    bridge: dict[str, object] = {"NetworkMode": "bridge", "PortBindings": _PORTS}
    medians = _turns(apis, [none, bridge])
    more = [two - one for one, two in medians]
    rows = [
        Row(
            "start on a bridge with 2 published ports, over `--network none`",
            more[0],
            "ms more",
            more[1] if peer else None,
            "dockerd",
            "≤ 8 ms more",
            more[0] <= 8,
            f"({medians[0][1]:.1f} against {medians[0][0]:.1f} ms)",
        )
    ]
    api = apis[0]
    for _ in range(PRESENT):
        body = {"Image": "busybox", "Cmd": ["sleep", "100000"], "HostConfig": bridge}
        ident = api("POST", "/containers/create", body)["Id"]
        api("POST", f"/containers/{ident}/start")
    time.sleep(PRESENT * _ATTACHED)
    ((with_many_none, with_many),) = _turns([api], [none, bridge])
    ratio = with_many / medians[0][1]
    rows.append(
        Row(
            f"the same start with {PRESENT:,} containers and {2 * PRESENT:,} published ports present",
            with_many,
            "ms",
            medians[0][1],
            "with none present",
            "≤ 1.3 × of with none",
            ratio <= 1.3,
            f"(`--network none` then: {with_many_none:.1f} ms)",
        )
    )
    ours.docker("rm", "-f", *ours.out("ps", "-aq").split(), timeout=600)
    return rows


# --- names ---------------------------------------------------------------------------------------------------------


def _lookups(ours: Daemon, peer: Dockerd | None) -> list[Row]:
    results = []
    for daemon in filter(None, (ours, peer)):
        daemon.docker("network", "create", "names")
        daemon.docker("run", "-d", "--name", "server", "--network", "names", "busybox", "sleep", "1000")
        daemon.docker("run", "-d", "--name", "client", "--network", "names", "busybox", "sleep", "1000")
        inspected = daemon.docker("inspect", "client")
        state = json.loads(inspected if isinstance(inspected, str) else inspected.stdout)[0]["State"]
        runs = []
        for _ in range(TURNS):
            command = ["nsenter", "-t", str(state["Pid"]), "--net", sys.executable, "-c", _TRAFFIC]
            done = subprocess.run(
                [*command, "lookups", "127.0.0.11", "53", str(SECONDS), "server"],
                capture_output=True,
                text=True,
                check=True,
            )
            runs.append(tuple(map(float, done.stdout.split())))
        results.append([max(run[0] for run in runs), min(run[1] for run in runs)])
        daemon.docker("rm", "-f", "server", "client")
        daemon.docker("network", "rm", "names")
    theirs = results[1] if peer else [None, None]
    return [
        Row(
            "look-ups of a container's name", results[0][0], "/s", theirs[0], "dockerd", "≥ 10,000/s",
            results[0][0] >= 10_000,
        ),
        Row(
            "one look-up, median", results[0][1], "ms", theirs[1], "dockerd", "≤ 0.5 ms", results[0][1] <= 0.5,
        ),
    ]  # fmt: skip


# --- packets -------------------------------------------------------------------------------------------------------


class _Process:
    """A traffic program inside a namespace, with descriptors of ours."""

    def __init__(self, space: Space, *arguments: str, descriptors: Sequence[int] = ()) -> None:
        with inside(space.netns):
            self._process = subprocess.Popen(
                [sys.executable, "-c", _TRAFFIC, *arguments], stdout=subprocess.PIPE, text=True, pass_fds=descriptors
            )

    def line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def _datagrams(server: Space, client: Space, listen: int, address: str, port: int) -> float:
    """How many datagrams of 64 bytes one core carries from ``client`` to ``server`` in a second."""
    with (
        server.socket(socket.AF_INET, socket.SOCK_DGRAM) as into,
        client.socket(socket.AF_INET, socket.SOCK_DGRAM) as out,
    ):
        into.bind(("0.0.0.0", listen))
        out.connect((address, port))
        fds = out.fileno(), into.fileno()
        process = _Process(client, "datagrams", *map(str, fds), str(SECONDS), descriptors=fds)
        try:
            return float(process.line())
        finally:
            process.close()


def _stream(server: Space, client: Space, listen: int, address: str, port: int) -> float:
    """Gbit/s of a TCP connection."""
    sink = _Process(server, "swallow", "0.0.0.0", str(listen), str(SECONDS))
    assert sink.line() == "ready"
    source = _Process(client, "pour", address, str(port), str(SECONDS))
    try:
        return float(sink.line())
    finally:
        source.close()
        sink.close()


def _identity(number: int) -> ContainerIdentity:
    return ContainerIdentity(id=f"{number:064x}", name=f"c{number}")


@contextlib.contextmanager
def _spaces() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def _new(stack: contextlib.ExitStack) -> Space:
    space = Space()
    stack.callback(space.close)
    return space


def _packets(folder: Path) -> list[Row]:
    return asyncio.run(_packets_async(folder))


async def _packets_async(folder: Path) -> list[Row]:
    with _spaces() as stack:
        host, one, two, far, near = (_new(stack) for _ in range(5))
        far.wire(near, "192.0.2.1/24", "192.0.2.2/24", "bare")
        stack.enter_context(inside(host.netns))
        database = Database(folder / "packets.db")
        stack.callback(database.close)
        networks = Networks(database, EngineOptions())
        await networks.start()
        try:
            for number, space in ((1, one), (2, two)):
                ports = {"9/udp": [PortBinding(host_port="9000")], "9/tcp": [PortBinding(host_port="9000")]}
                request = PortRequest(bindings=ports if number == 1 else {})
                endpoints = await networks.allocate(_identity(number), {"bridge": EndpointSettings()}, request)
                await networks.join(endpoints, space)
            await networks.settled()
            target = networks.endpoints_of(_identity(1).id)[0].address4
            rows = []
            for what, unit, carried in (("packets", "packets/s", _datagrams), ("TCP", "Gbit/s", _stream)):
                series: list[list[float]] = [[], [], []]
                for _ in range(TURNS):
                    series[0].append(carried(near, far, 9, "192.0.2.2", 9))
                    series[1].append(carried(one, two, 9, target, 9))
                    series[2].append(carried(one, host, 9, "172.17.0.1", 9000))
                bare, bridged, published = map(max, series)
                rows.append(
                    Row(
                        f"{what}, container to container on the bridge", bridged, unit, bare, "bare veth",
                        "≥ 0.95 × bare", bridged >= 0.95 * bare,
                    )
                )  # fmt: skip
                rows.append(
                    Row(
                        f"{what}, host to a published port", published, unit, bare, "bare veth",
                        "≥ 0.9 × bare", published >= 0.9 * bare,
                    )
                )  # fmt: skip
            rows.append(await _connections(networks, host, one))
            return rows
        finally:
            await networks.close()


async def _connections(networks: Networks, host: Space, server: Space) -> Row:
    """New connections to a published port with and without 2,000 others."""
    greeter = _Process(server, "greet", "0.0.0.0", "9", "0")
    assert greeter.line() == "ready"

    def knock() -> float:
        knocker = _Process(host, "knock", "172.17.0.1", "9000", str(SECONDS))
        try:
            return float(knocker.line())
        finally:
            knocker.close()

    try:
        alone = max(knock() for _ in range(TURNS))
        for number in range(10, 1010):
            ports = {"80/tcp": [PortBinding()], "81/tcp": [PortBinding()]}
            await networks.allocate(_identity(number), {"bridge": EndpointSettings()}, PortRequest(bindings=ports))
        among = max(knock() for _ in range(TURNS))
        for number in range(10, 1010):
            await networks.release(_identity(number).id)
    finally:
        greeter.close()
    return Row(
        "new connections to a published port, with 2,000 others", among, "/s", alone, "with none", "≥ 0.95 ×",
        among >= 0.95 * alone,
    )  # fmt: skip
