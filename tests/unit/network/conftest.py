"""Hosts and containers made of network namespaces alone, and Networks running on such a host.

A :class:`Space` is a namespace held by its descriptor; its sockets are opened inside and used from here, so that real
packets flow without a process being started.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import os
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import pytest

from seacan.engine.config import EndpointSettings, PortBinding
from seacan.engine.database import Database
from seacan.engine.options import EngineOptions
from seacan.linux import rtnetlink as rt
from seacan.linux.netlink import NETLINK_ROUTE, NetlinkSocket
from seacan.network import networks as networks_module
from seacan.network.links import inside
from seacan.network.model import ContainerIdentity, Endpoint, PortRequest
from seacan.network.networks import Networks

CLONE_NEWNET = 0x40000000
ETH_P_ALL = 3
_libc = ctypes.CDLL(None, use_errno=True)


class Space:
    """A network namespace with loopback up."""

    pid = 1

    def __init__(self) -> None:
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            if _libc.unshare(CLONE_NEWNET) != 0:
                pytest.skip(f"no network namespace can be made: {os.strerror(ctypes.get_errno())}")
            self.netns: int = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
            self.links = NetlinkSocket(NETLINK_ROUTE)
            self.links.request([rt.set_link(1, up=True)])
        finally:
            _libc.setns(home, CLONE_NEWNET)
            os.close(home)
        self._open: list[socket.socket] = []

    @property
    def rtnl(self) -> int:
        return self.links.fileno()

    def close(self) -> None:
        for sock in self._open:
            sock.close()
        self.links.close()
        os.close(self.netns)

    def index(self, name: str) -> int:
        found = rt.link(self.links, name)
        assert found is not None, f"no link {name}"
        return found.index

    def mac(self, name: str = "eth0") -> str:
        found = rt.link(self.links, name)
        assert found is not None, f"no link {name}"
        return found.mac

    def addresses(self, name: str = "eth0") -> list[str]:
        return [str(address) for _, address in rt.addresses(self.links, self.index(name))]

    def default_route(self) -> str | None:
        for route in rt.routes(self.links):
            if not route.destination.prefixlen and route.destination.version == 4 and route.gateway:
                return str(route.gateway)
        return None

    def wire(self, other: Space, mine: str, theirs: str, name: str = "wan") -> None:
        """A cable between two hosts; ``mine`` and ``theirs`` are addresses with prefix length."""
        self.links.request([rt.new_veth(name, name, other.netns)])
        for space, address in ((self, mine), (other, theirs)):
            index = space.index(name)
            space.links.request([rt.set_link(index, up=True)])
            space.links.request([rt.new_address(index, ipaddress.ip_interface(address))])
        for space in (self, other):
            space.links.request([rt.settle(name)])

    def route(self, destination: str, gateway: str) -> None:
        net, via = ipaddress.ip_network(destination), ipaddress.ip_address(gateway)
        link = next(
            owner for owner, address in rt.addresses(self.links) if via in address.network and address.ip != via
        )
        self.links.request([rt.new_route(net, link, via)])

    def read(self, path: str) -> str:
        with inside(self.netns):
            return Path(path).read_text().strip()

    def write(self, path: str, value: str) -> None:
        with inside(self.netns):
            Path(path).write_text(value)

    # --- sockets ---------------------------------------------------------------------------------------------------

    def socket(self, family: int, kind: int, protocol: int = 0, timeout: float = 1.0) -> socket.socket:
        with inside(self.netns):
            sock = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
        sock.settimeout(timeout)
        self._open.append(sock)
        return sock

    def listen(self, port: int, address: str = "0.0.0.0") -> socket.socket:
        """A TCP socket that listens."""
        sock = self.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen(16)
        return sock

    def bound(self, port: int, address: str = "0.0.0.0") -> socket.socket:
        """A UDP socket bound to a port."""
        sock = self.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((address, port))
        return sock

    def reaches(self, listener: socket.socket, address: str, port: int, timeout: float = 0.5) -> str | None:
        """Connect by TCP and accept on ``listener``: the client's address as the server sees it; None if it fails."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with self.socket(family, socket.SOCK_STREAM, timeout=timeout) as sock:
            try:
                sock.connect((address, port))
            except OSError:
                return None
            listener.settimeout(timeout)
            try:
                served, peer = listener.accept()
            except TimeoutError:
                return None
            with served:
                served.settimeout(timeout)
                sock.sendall(b"question")
                assert served.recv(100) == b"question"
                served.sendall(b"answer")
                assert sock.recv(100) == b"answer"
            return str(peer[0])

    def asks(self, server: socket.socket, address: str, port: int, timeout: float = 0.5) -> str | None:
        """Send a datagram, answer it from ``server``: the client's address as the server sees it; None if it fails."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with self.socket(family, socket.SOCK_DGRAM, timeout=timeout) as sock:
            try:
                sock.connect((address, port))
                sock.send(b"question")
                server.settimeout(timeout)
                data, peer = server.recvfrom(100)
                assert data == b"question"
                server.sendto(b"answer", peer)
                assert sock.recv(100) == b"answer"
            except OSError:
                return None
            return str(peer[0])

    def pings(self, address: str, timeout: float = 0.5) -> bool:
        """One ICMP echo, answered or not."""
        v6 = ":" in address
        sock = self.socket(
            socket.AF_INET6 if v6 else socket.AF_INET,
            socket.SOCK_RAW,
            socket.IPPROTO_ICMPV6 if v6 else socket.IPPROTO_ICMP,
            timeout,
        )
        ident = os.getpid() & 0xFFFF
        head = struct.pack(">BBHHH", 128 if v6 else 8, 0, 0, ident, 1)
        head = struct.pack(">BBHHH", 128 if v6 else 8, 0, 0 if v6 else checksum(head), ident, 1)
        try:
            sock.sendto(head, (address, 0))
            deadline = time.monotonic() + timeout
            while time.monotonic() < deadline:
                data = sock.recv(2000)
                body = data if v6 else data[(data[0] & 15) * 4 :]
                if body[0] == (129 if v6 else 0) and struct.unpack_from(">H", body, 4)[0] == ident:
                    return True
        except OSError:
            pass
        finally:
            sock.close()
        return False

    def raw(self, name: str = "eth0", timeout: float = 0.3) -> socket.socket:
        """A packet socket on a link, for frames made by hand."""
        sock = self.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL), timeout)
        sock.bind((name, ETH_P_ALL))
        return sock


def checksum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ip_packet(source: str, target: str, protocol: int, body: bytes) -> bytes:
    """An IPv4 packet."""
    head = struct.pack(
        ">BBHHHBBH4s4s",
        0x45,
        0,
        20 + len(body),
        1,
        0,
        64,
        protocol,
        0,
        socket.inet_aton(source),
        socket.inet_aton(target),
    )
    return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + body


def udp(source_port: int, port: int, data: bytes) -> bytes:
    return struct.pack(">HHHH", source_port, port, 8 + len(data), 0) + data


def frame(source: str, target: str, kind: int, body: bytes) -> bytes:
    """An Ethernet frame between two MACs."""
    return rt.mac_bytes(target) + rt.mac_bytes(source) + struct.pack(">H", kind) + body


def arp(operation: int, mac: str, address: str, target_mac: str, target: str) -> bytes:
    return struct.pack(
        ">HHBBH6s4s6s4s",
        1,
        0x0800,
        6,
        4,
        operation,
        rt.mac_bytes(mac),
        socket.inet_aton(address),
        rt.mac_bytes(target_mac),
        socket.inet_aton(target),
    )


def hears(sock: socket.socket, data: bytes, timeout: float = 0.3) -> bool:
    """Whether a datagram with ``data`` arrives."""
    sock.settimeout(timeout)
    with contextlib.suppress(TimeoutError):
        while True:
            if data in sock.recv(65535):
                return True
    return False


@pytest.fixture
def host() -> Iterator[Space]:
    """A host of its own, which the test (and every thread it starts from here on) is on."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    space = Space()
    try:
        with inside(space.netns):
            yield space
    finally:
        space.close()


@pytest.fixture
def new_space() -> Iterator[Callable[[], Space]]:
    """Further hosts, or containers that no engine knows."""
    with contextlib.ExitStack() as stack:

        def make() -> Space:
            space = Space()
            stack.callback(space.close)
            return space

        yield make


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "state.db")
    yield database
    database.close()


@pytest.fixture
async def start(host: Space, database: Database) -> AsyncIterator[Callable[..., Awaitable[Networks]]]:
    """Start Networks on the host with options of the test's own; several times: each start is the next daemon's."""
    async with contextlib.AsyncExitStack() as stack:

        async def begin(**options: object) -> Networks:
            networks = Networks(database, EngineOptions(**options))
            stack.push_async_callback(networks.close)
            await networks.start()
            return networks

        yield begin


@pytest.fixture
async def networks(start: Callable[..., Awaitable[Networks]]) -> Networks:
    """Networks as a fresh daemon has them."""
    return await start()


Run = Callable[..., Awaitable[tuple[Space, list[Endpoint]]]]


@pytest.fixture
def run(networks: Networks, new_space: Callable[[], Space], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Start a container: ``await run("name", "network", …, ports={"80/tcp": [("0.0.0.0", "8080")]})``."""

    monkeypatch.setattr(networks_module, "_IDLE", 0)

    async def begin(
        name: str,
        *wanted: str,
        ports: dict[str, Sequence[tuple[str, str]]] | None = None,
        settings: dict[str, EndpointSettings] | None = None,
        exposed: Sequence[str] = (),
        links: dict[str, str] | None = None,
        on: Networks | None = None,
    ) -> tuple[Space, list[Endpoint]]:
        engine = on or networks
        space = new_space()
        identity = ContainerIdentity(id=identifier(name), name=name, hostname=identifier(name)[:12])
        bindings = {
            port: [PortBinding(host_ip=ip, host_port=number) for ip, number in some]
            for port, some in (ports or {}).items()
        }
        asked = settings or {network: EndpointSettings() for network in wanted or ("bridge",)}
        endpoints = await engine.allocate(
            identity, asked, PortRequest(bindings=bindings, exposed=tuple(exposed)), links=links
        )
        await engine.join(endpoints, space)
        await engine.settled()
        return space, endpoints

    return begin


def identifier(name: str) -> str:
    """A container's full id, made of its name."""
    return name.encode().hex().ljust(64, "0")[:64]
