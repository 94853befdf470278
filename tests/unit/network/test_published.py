"""Published ports: reachable from everywhere they should be, and from nowhere else."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import pytest

from seacan.engine.config import PortBinding
from seacan.errors import InvalidParameter, NotFound, System
from seacan.linux import nftables as nft
from seacan.network.creation import NetworkCreateRequest
from seacan.network.firewall import TABLE
from seacan.network.model import PublishedPort
from seacan.network.networks import Networks

from .conftest import Run, Space, checksum, identifier, ip_packet, udp


@pytest.fixture
def outside(host: Space, new_space: Callable[[], Space]) -> Space:
    """Another host on the same wire, which would route to containers past the host's ports if it could."""
    space = new_space()
    host.wire(space, "192.0.2.1/24", "192.0.2.9/24")
    space.route("172.16.0.0/12", "192.0.2.1")
    return space


async def test_a_port_is_reachable_from_everywhere(host: Space, outside: Space, networks: Networks, run: Run) -> None:
    await networks.create(NetworkCreateRequest(name="other"))
    server_space, _ = await run("server", ports={"80/tcp": [("", "8080")]})
    neighbour, _ = await run("neighbour")
    stranger, _ = await run("stranger", "other")
    server = server_space.listen(80)
    assert outside.reaches(server, "192.0.2.1", 8080) == "192.0.2.9", "the source address is preserved"
    assert host.reaches(server, "192.0.2.1", 8080)
    assert host.reaches(server, "172.17.0.1", 8080)
    assert host.reaches(server, "127.0.0.1", 8080) == "172.17.0.1"
    assert neighbour.reaches(server, "192.0.2.1", 8080)
    assert neighbour.reaches(server, "172.17.0.1", 8080)
    assert stranger.reaches(server, "192.0.2.1", 8080)
    assert server_space.reaches(server, "192.0.2.1", 8080), "a container reaches itself through its own port"


async def test_a_datagram_port_is_reachable_from_everywhere(
    host: Space, outside: Space, networks: Networks, run: Run
) -> None:
    server_space, _ = await run("server", ports={"53/udp": [("", "5353")]})
    neighbour, _ = await run("neighbour")
    server = server_space.bound(53)
    assert outside.asks(server, "192.0.2.1", 5353) == "192.0.2.9"
    assert host.asks(server, "127.0.0.1", 5353)
    assert host.asks(server, "192.0.2.1", 5353)
    assert neighbour.asks(server, "192.0.2.1", 5353)
    assert server_space.asks(server, "192.0.2.1", 5353)


async def test_loopback_of_ipv6_and_of_a_container_without_it(host: Space, run: Run) -> None:
    server_space, _ = await run("server", ports={"80/tcp": [("", "8080")], "53/udp": [("", "5353")]})
    server = server_space.listen(80)
    datagrams = server_space.bound(53)

    def client(kind: int) -> bytes:
        with host.socket(socket.AF_INET6, kind, timeout=2) as sock:
            sock.connect(("::1", 8080 if kind == socket.SOCK_STREAM else 5353))
            sock.sendall(b"question")
            return sock.recv(100)

    asking = asyncio.create_task(asyncio.to_thread(client, socket.SOCK_STREAM))
    served, peer = await asyncio.to_thread(server.accept)
    served.settimeout(2)
    assert await asyncio.to_thread(served.recv, 100) == b"question"
    served.sendall(b"answer")
    assert await asking == b"answer"
    assert peer[0] == "172.17.0.1"
    asking = asyncio.create_task(asyncio.to_thread(client, socket.SOCK_DGRAM))
    data, address = await asyncio.to_thread(datagrams.recvfrom, 100)
    datagrams.sendto(data, address)
    assert await asking == b"question"


async def test_an_address_limits_a_port_to_it(host: Space, outside: Space, run: Run) -> None:
    server_space, _ = await run("server", ports={"80/tcp": [("127.0.0.1", "8080")], "81/tcp": [("192.0.2.1", "8081")]})
    local, wide = server_space.listen(80), server_space.listen(81)
    assert host.reaches(local, "127.0.0.1", 8080)
    assert outside.reaches(local, "192.0.2.1", 8080) is None
    assert host.reaches(local, "192.0.2.1", 8080) is None
    assert outside.reaches(wide, "192.0.2.1", 8081)
    assert host.reaches(wide, "127.0.0.1", 8081) is None


async def test_no_host_on_the_wire_routes_past_the_published_ports(host: Space, outside: Space, run: Run) -> None:
    server_space, (endpoint,) = await run("server", ports={"80/tcp": [("127.0.0.1", "8080")]})
    published, hidden = server_space.listen(80), server_space.listen(81)
    assert outside.reaches(published, endpoint.address4, 80) is None
    assert outside.reaches(hidden, endpoint.address4, 81) is None
    assert not outside.pings(endpoint.address4)


async def test_loopback_cannot_be_reached_by_forging_its_address(host: Space, outside: Space, run: Run) -> None:
    """What listens on, or is published at, 127.0.0.1 of the host is safe from containers and from the wire."""
    service = host.bound(9999, "127.0.0.1")
    container, _ = await run("one")
    bridge_mac = host.mac("seacan0")
    link = container.raw()
    packet = ip_packet("172.17.0.2", "127.0.0.1", 17, udp(1000, 9999, b"forged"))
    from .conftest import frame, hears

    link.send(frame(container.mac(), bridge_mac, 0x0800, packet))
    wire = outside.raw("wan")
    packet = ip_packet("192.0.2.9", "127.0.0.1", 17, udp(1000, 9999, b"forged"))
    wire.send(frame(outside.mac("wan"), host.mac("wan"), 0x0800, packet))
    assert not hears(service, b"forged")


async def test_ranges_ephemeral_ports_and_publish_all(host: Space, networks: Networks, run: Run) -> None:
    space, endpoints = await run("one", ports={"80/tcp": [("0.0.0.0", "8000-8009")], "81/tcp": [("0.0.0.0", "")]})
    ports = {port.port: port.host_port for port in endpoints[0].ports}
    assert ports[80] == 8000
    assert host.reaches(space.listen(80), "127.0.0.1", 8000)
    assert host.reaches(space.listen(81), "127.0.0.1", ports[81])


async def test_sctp_is_translated(host: Space, outside: Space, run: Run) -> None:
    """Sent by hand: this kernel may have no SCTP sockets."""
    space, _ = await run("one", ports={"80/sctp": [("0.0.0.0", "8080")]})
    listener = space.raw()
    chunk = b"\x01\x00\x00\x14" + (1).to_bytes(4, "big") + (65535).to_bytes(4, "big") + b"\0\1\0\1" + bytes(4)
    header = (1000).to_bytes(2, "big") + (8080).to_bytes(2, "big") + bytes(4)
    packet = header + crc32c(header + bytes(4) + chunk).to_bytes(4, "little") + chunk
    sender = outside.socket(socket.AF_INET, socket.SOCK_RAW, 132)
    sender.sendto(packet, ("192.0.2.1", 0))
    listener.settimeout(1)
    while True:
        data = listener.recv(2000)
        if data[12:14] == b"\x08\x00" and data[23] == 132:
            break
    assert data[36:38] == (80).to_bytes(2, "big")


async def test_a_conflict_is_known_before_the_start_and_leaves_nothing(
    host: Space, networks: Networks, run: Run
) -> None:
    await run("one", ports={"80/tcp": [("0.0.0.0", "8080")]})
    with pytest.raises(System) as error:
        await run("two", ports={"80/tcp": [("0.0.0.0", "8080")], "81/tcp": [("0.0.0.0", "8081")]})
    assert str(error.value).startswith(
        "failed to set up container networking: driver failed programming external connectivity on endpoint two ("
    )
    assert str(error.value).endswith("): Bind for 0.0.0.0:8080 failed: port is already allocated")
    host.listen(8081)
    _, (endpoint,) = await run("three")
    assert endpoint.address4 == "172.17.0.3"


async def test_a_released_container_leaves_no_element_and_no_socket(host: Space, networks: Networks, run: Run) -> None:
    def elements() -> dict[tuple[int, str], int]:
        with nft.open_socket() as sock:
            return {
                (family, name): len(nft.elements(sock, family, TABLE, name))
                for family, names in (
                    (nft.NFPROTO_INET, ("port4", "addr4", "port6", "source4", "linked4")),
                    (nft.NFPROTO_BRIDGE, ("mac", "own", "bind4", "bind6", "address4", "address6")),
                )
                for name in names
            }

    before = elements()
    await run("one", ports={"80/tcp": [("", "8080"), ("127.0.0.1", "8081")], "53/udp": [("", "")]})
    during = elements()
    assert during[nft.NFPROTO_INET, "port4"] == before[nft.NFPROTO_INET, "port4"] + 2
    await networks.release(identifier("one"))
    assert elements() == before
    host.listen(8080)
    await networks.release(identifier("one"))


async def test_ports_of_a_running_container_come_and_go(host: Space, networks: Networks, run: Run) -> None:
    space, _ = await run("one", ports={"80/tcp": [("", "8080")]})
    server = space.listen(81)
    added = await networks.add_ports(identifier("one"), {"81/tcp": [PortBinding(host_ip="0.0.0.0", host_port="8081")]})
    assert added == [PublishedPort(protocol="tcp", port=81, host_ip="0.0.0.0", host_port=8081)]
    assert host.reaches(server, "127.0.0.1", 8081)
    assert networks.settings(identifier("one"), {}).ports["81/tcp"] == [
        PortBinding(host_ip="0.0.0.0", host_port="8081")
    ]
    with pytest.raises(System, match="port is already allocated"):
        await networks.add_ports(identifier("one"), {"82/tcp": [PortBinding(host_port="8080")]})
    await networks.remove_ports(identifier("one"), added)
    assert host.reaches(server, "127.0.0.1", 8081) is None
    assert "81/tcp" not in networks.settings(identifier("one"), {}).ports
    host.listen(8081)
    with pytest.raises(NotFound):
        await networks.remove_ports(identifier("one"), added)
    await run("none", "none")
    with pytest.raises(InvalidParameter, match="no network that can publish"):
        await networks.add_ports(identifier("none"), {"80/tcp": [PortBinding()]})


async def test_a_datagram_client_that_goes_on_sending_reaches_the_next_container(
    host: Space, outside: Space, networks: Networks, run: Run
) -> None:
    first, _ = await run("one", ports={"53/udp": [("0.0.0.0", "5353")]})
    server = first.bound(53)
    client = outside.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.connect(("192.0.2.1", 5353))
    client.send(b"one")
    assert server.recv(10) == b"one"
    await networks.release(identifier("one"))
    second, _ = await run("two", ports={"53/udp": [("0.0.0.0", "5353")]})
    await asyncio.sleep(0.1)
    server = second.bound(53)
    client.send(b"two")
    assert server.recv(10) == b"two"


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_checksums_are_right() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert checksum(b"\x45\x00\x00\x3c\x1c\x46\x40\x00\x40\x06\0\0\xac\x10\x0a\x63\xac\x10\x0a\x0c") == 0xB1E6
