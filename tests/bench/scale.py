"""How a start grows with the containers that are there already, on a routed network, and what of it is the kernel's.

5,000 containers take four minutes and 14 GB: ``SEACAN_BENCH_ROUTED=5000``; the default is 1,000.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import socket
import statistics
import struct
import time
from collections.abc import Callable, Sequence

from seacan import cgroups
from seacan.linux import syscalls
from seacan.network.links import inside
from tests.bench.engines import engine
from tests.bench.measure import API, Row, Table
from tests.hosts import Daemon, Host
from tests.unit.network.conftest import checksum

ROUTED = int(os.environ.get("SEACAN_BENCH_ROUTED", "1000"))
SIZES = (100, 1000, 2500, 5000)
RUNS = 40
_LIMIT = 1.3


def measure() -> list[Table]:
    with engine() as (_, ours, _):
        return [Table("Scale", routed(ours))]


def routed(ours: Daemon) -> list[Row]:
    """Starts with more and more containers present, each of them for the rest, and then a packet to every one."""
    api = API(ours.socket)
    api(
        "POST",
        "/networks/create",
        {"Name": "wide", "Driver": "routed", "IPAM": {"Config": [{"Subnet": "10.64.0.0/12"}]}},
    )
    rows: list[Row] = []
    base: tuple[float, float] | None = None
    present = 0
    for size in sorted({min(size, ROUTED) for size in SIZES}):
        _start(ours, size - RUNS - present)
        start = _quiet(lambda: _one(api))
        bare = _quiet(lambda: _bare(ours.cgroup_parent))
        present = size
        if base is None:
            base = start, bare
            first = size
            continue
        name = f"with {first} present"
        rows.append(
            Row(
                f"`routed` network, start of a container with {size:,} present", start, "ms", base[0], name,
                f"≤ {_LIMIT} × to 5,000", start <= _LIMIT * base[0],
            )
        )  # fmt: skip
        rows.append(
            Row("what the kernel alone takes then for cgroups, namespaces and sysfs", bare, "ms", base[1], name)
        )
    members = api("GET", "/networks/wide")["Containers"].values()
    reached = _sweep(ours.host, [member["IPv4Address"].partition("/")[0] for member in members])
    rows.append(
        Row(
            "`routed` network, containers on one host", reached, "answer a ping", None, "", "5,000",
            reached == present, f"of {present:,}",
        )
    )  # fmt: skip
    _remove(ours)
    api("DELETE", "/networks/wide")
    return rows


def _quiet(one: Callable[[], float]) -> float:
    """The first decile: others disturb some of the runs, and more of them the longer it all takes."""
    return statistics.quantiles([one() for _ in range(RUNS)], n=10)[0]


def _one(api: API) -> float:
    """Milliseconds of POST start, of a container that stays."""
    body = {"Image": "busybox", "Cmd": ["sleep", "100000"], "HostConfig": {"NetworkMode": "wide"}}
    ident = api("POST", "/containers/create", body)["Id"]
    begin = time.perf_counter()
    api("POST", f"/containers/{ident}/start")
    return (time.perf_counter() - begin) * 1000


def _start(ours: Daemon, count: int) -> None:
    def some(count: int) -> None:
        api = API(ours.socket)
        for _ in range(count):
            _one(api)
        api.close()

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(some, [count // 4 + (number < count % 4) for number in range(4)]))


def _remove(ours: Daemon) -> None:
    def some(idents: Sequence[str]) -> None:
        api = API(ours.socket)
        for ident in idents:
            api("DELETE", f"/containers/{ident}?force=1")
        api.close()

    idents = [one["Id"] for one in API(ours.socket)("GET", "/containers/json")]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(some, [idents[number::4] for number in range(4)]))


def _bare(parent: str) -> float:
    """Milliseconds that a sandbox takes without any of us: a cgroup beside the containers', namespaces, and sysfs."""
    directories = cgroups.open(f"{parent}/bare").directories
    begin = time.perf_counter()
    for directory in directories:
        os.mkdir(directory)
    pid = os.fork()
    if not pid:
        with contextlib.suppress(BaseException):
            syscalls.unshare(
                syscalls.CLONE_NEWNS | syscalls.CLONE_NEWNET | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS
            )
            context = syscalls.fsopen("sysfs")
            syscalls.fsconfig_create(context)
            syscalls.fsmount(context)
            os._exit(0)
        os._exit(1)
    _, status = os.waitpid(pid, 0)
    took = (time.perf_counter() - begin) * 1000
    for directory in directories:
        os.rmdir(directory)
    assert status == 0, "no sandbox could be made"
    return took


def _sweep(host: Host, addresses: Sequence[str]) -> int:
    """How many of ``addresses`` answer an echo request from the host."""
    netns = os.open(host.netns, os.O_RDONLY | os.O_CLOEXEC)
    with inside(netns):
        os.close(netns)
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    with sock:
        sock.settimeout(1)
        return _pinged(sock, addresses)


def _pinged(sock: socket.socket, addresses: Sequence[str]) -> int:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    head = struct.pack(">BBHHH", 8, 0, 0, 77, 1)
    request = struct.pack(">BBHHH", 8, 0, checksum(head), 77, 1)
    answered: set[str] = set()
    waiting = set(addresses)
    for start in range(0, len(addresses), 100):
        for address in addresses[start : start + 100]:
            sock.sendto(request, (address, 0))
        deadline = time.monotonic() + 1
        chunk = set(addresses[start : start + 100])
        while chunk - answered and time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                data, (peer, _) = sock.recvfrom(200)
                if data[20] == 0:
                    answered.add(peer)
    return len(answered & waiting)
