"""CVE-2020-13401: a container that takes itself for a router must not become the host's."""

from __future__ import annotations

import ipaddress
import socket
import struct
import time
from collections.abc import Callable

import pytest

from seacan.linux import rtnetlink as rt
from seacan.network.creation import IPAM, IPAMConfig, NetworkCreateRequest
from seacan.network.networks import Networks

from .conftest import Run, Space, checksum

ALL_NODES = "ff02::1"
ROUTER = "fe80::bad"


TAGS = (b"", b"\x81\x00\x00\x00", b"\x88\xa8\x00\x00", b"\x88\xa8\x00\x00\x81\x00\x00\x00")
"""Priority tags, which belong to no VLAN: what the kernel takes off before it looks further."""
HOPS = (b"", b"\x3a\x00\x01\x04\x00\x00\x00\x00")
"""An extension header (padding) before the message."""


def advertisement(mac: str, tag: bytes = b"", extension: bytes = b"") -> bytes:
    """A frame that offers a default route and the prefix fd66::/64 to all on the link."""
    source, target = (ipaddress.ip_address(text).packed for text in (ROUTER, ALL_NODES))
    prefix = struct.pack(">BBBBIII", 3, 4, 64, 0xC0, 7200, 7200, 0) + ipaddress.ip_address("fd66::").packed
    body = struct.pack(">BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + prefix
    pseudo = source + target + struct.pack(">IHBB", len(body), 0, 0, 58)
    body = body[:2] + struct.pack(">H", checksum(pseudo + body)) + body[4:]
    packet = struct.pack(">IHBB", 6 << 28, len(extension + body), 0 if extension else 58, 255)
    packet += source + target + extension + body
    return bytes.fromhex("333300000001") + bytes.fromhex(mac.replace(":", "")) + tag + b"\x86\xdd" + packet


def advertise(container: Space, link: str = "eth0") -> None:
    frames = container.raw(link)
    for tag in TAGS:
        for extension in HOPS:
            frames.send(advertisement(container.mac(link), tag, extension))
            time.sleep(0.05)


def learnt(host: Space) -> list[str]:
    """What a host has from advertisements: addresses and default routes of IPv6."""
    found = [str(address) for _, address in rt.addresses(host.links) if address in ipaddress.ip_network("fd66::/64")]
    routes = [str(route.gateway) for route in rt.routes(host.links) if str(route.gateway) == ROUTER]
    return found + routes


@pytest.mark.parametrize("six", [False, True], ids=["IPv4 alone", "IPv6"])
@pytest.mark.parametrize("driver", ["bridge", "routed"])
async def test_the_host_takes_no_router_advertisement(
    host: Space, networks: Networks, run: Run, driver: str, six: bool
) -> None:
    pools = [IPAMConfig(subnet="10.9.0.0/24"), *([IPAMConfig(subnet="fd01::/64")] if six else [])]
    request = NetworkCreateRequest(name="net", driver=driver, enable_ipv6=six, ipam=IPAM(config=pools))
    await networks.create(request)
    container, (endpoint,) = await run("one", "net")
    if six:
        container.pings(endpoint.gateway6)  # the link is in use
    advertise(container)
    assert learnt(host) == []


def test_the_advertisement_would_be_taken_by_a_host_that_listens(host: Space, new_space) -> None:  # type: ignore[no-untyped-def]
    """What the tests above send is worth refusing."""
    other = new_space()
    host.wire(other, "192.0.2.1/24", "192.0.2.9/24")
    with other.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as frames:
        frames.bind(("wan", 3))
        deadline = time.monotonic() + 5
        while not learnt(host) and time.monotonic() < deadline:
            frames.send(advertisement(other.mac("wan")))
            time.sleep(0.1)
    assert learnt(host) != []


async def test_nor_once_it_forwards_for_another_network(host: Space, networks: Networks, run: Run) -> None:
    """Forwarding is switched on when the first network with IPv6 is made, which bridges there were before must
    survive."""
    container, _ = await run("one")
    six = NetworkCreateRequest(name="six", enable_ipv6=True, ipam=IPAM(config=[IPAMConfig(subnet="fd01::/64")]))
    await networks.create(six)
    await run("two", "six")
    advertise(container)
    assert learnt(host) == []


async def test_a_container_on_the_wire_without_ipv6_takes_none_either(
    host: Space, networks: Networks, run: Run, new_space: Callable[[], Space]
) -> None:
    """CVE-2024-32473: IPv6 addresses that nobody gave it, and that no rule knows."""
    router = new_space()
    host.wire(router, "192.0.2.1/24", "192.0.2.99/24")
    ipam = IPAM(config=[IPAMConfig(subnet="192.0.2.0/24")])
    await networks.create(NetworkCreateRequest(name="mac", driver="macvlan", options={"parent": "wan"}, ipam=ipam))
    container, _ = await run("one", "mac")
    advertise(router, "wan")
    assert learnt(container) == []
    assert [address for address in container.addresses() if ":" in address] == []
