"""What must not pass does not: between networks, out of internal ones, and under another's name."""

from __future__ import annotations

import socket
import struct
from collections.abc import Awaitable, Callable

import pytest

from seacan.linux import nftables as nft
from seacan.linux import rtnetlink as rt
from seacan.network.creation import IPAM, IPAMConfig, NetworkCreateRequest
from seacan.network.firewall import ADMIN, TABLE, link_local
from seacan.network.networks import Networks

from .conftest import Run, Space, arp, frame, hears, identifier, ip_packet, udp

BROADCAST = "ff:ff:ff:ff:ff:ff"


async def net(networks: Networks, name: str, subnet: str = "", **options: object) -> None:
    ipam = IPAM(config=[IPAMConfig(subnet=subnet)]) if subnet else None
    await networks.create(NetworkCreateRequest(name=name, ipam=ipam, **options))  # type: ignore[arg-type]


async def test_separate_networks_do_not_reach_each_other(networks: Networks, run: Run) -> None:
    await net(networks, "aaa")
    await net(networks, "bbb")
    one, (first,) = await run("one", "aaa")
    two, (second,) = await run("two", "bbb")
    assert two.reaches(one.listen(80), first.address4, 80) is None
    assert not two.pings(first.address4)
    assert one.reaches(two.listen(80), second.address4, 80) is None


async def test_an_internal_network_reaches_nothing_and_is_reached_by_nobody(
    host: Space, networks: Networks, run: Run, new_space: Callable[[], Space]
) -> None:
    outside = new_space()
    host.wire(outside, "192.0.2.1/24", "192.0.2.9/24")
    await net(networks, "inner", "10.1.0.0/24", internal=True)
    one, (endpoint,) = await run("one", "inner", ports={"80/tcp": [("", "8080")]})
    two, _ = await run("two", "inner")
    other, _ = await run("three")
    server = one.listen(80)
    assert endpoint.gateway4 == ""
    assert one.default_route() is None
    assert two.reaches(server, endpoint.address4, 80)
    assert host.reaches(server, endpoint.address4, 80), "the host itself may, as under dockerd"
    assert endpoint.ports == ()
    one.links.request([rt.new_route(_net("0.0.0.0/0"), one.index("eth0"), _ip("10.1.0.1"))])
    assert one.reaches(outside.listen(80), "192.0.2.9", 80) is None
    assert other.reaches(server, endpoint.address4, 80) is None


async def test_an_isolated_gateway_keeps_even_the_host_away(host: Space, networks: Networks, run: Run) -> None:
    await net(
        networks,
        "alone",
        "10.1.0.0/24",
        internal=True,
        options={"com.docker.network.bridge.gateway_mode_ipv4": "isolated"},
    )
    _one, (endpoint,) = await run("one", "alone")
    two, _ = await run("two", "alone")
    assert two.pings(endpoint.address4)
    assert not host.pings(endpoint.address4)
    assert host.addresses(networks.get("alone").bridge) == []


async def test_without_icc_neighbours_are_strangers_but_for_published_ports(
    host: Space, networks: Networks, run: Run
) -> None:
    await net(networks, "shy", "10.1.0.0/24", options={"com.docker.network.bridge.enable_icc": "false"})
    one, (endpoint,) = await run("one", "shy", ports={"80/tcp": [("", "8080")]})
    two, _ = await run("two", "shy")
    server = one.listen(80)
    assert two.reaches(server, endpoint.address4, 80) is None
    assert not two.pings(endpoint.address4)
    assert two.reaches(server, "10.1.0.1", 8080)
    assert host.reaches(server, endpoint.address4, 80)


async def test_a_link_opens_exposed_ports_where_icc_is_off(start: Callable[..., Awaitable[Networks]], run: Run) -> None:
    networks = await start(icc=False)
    one, (endpoint,) = await run("db", exposed=["80/tcp"], on=networks)
    two, _ = await run("app", links={"database": identifier("db")}, on=networks)
    exposed, hidden = one.listen(80), one.listen(81)
    assert two.reaches(exposed, endpoint.address4, 80)
    assert two.reaches(hidden, endpoint.address4, 81) is None
    await networks.release(identifier("app"))
    three, _ = await run("eve", on=networks)
    assert three.reaches(exposed, endpoint.address4, 80) is None


async def test_a_container_cannot_send_as_another(host: Space, run: Run) -> None:
    victim, (target,) = await run("victim")
    attacker, (own,) = await run("attacker")
    witness, (third,) = await run("witness")
    service = witness.bound(9)
    link = attacker.raw()

    def send(mac: str, address: str, text: bytes) -> bool:
        packet = ip_packet(address, third.address4, 17, udp(1, 9, text))
        link.send(frame(mac, third.mac, 0x0800, packet))
        return hears(service, text)

    assert send(own.mac, own.address4, b"as myself")
    assert not send(own.mac, target.address4, b"with another's address")
    assert not send(target.mac, target.address4, b"as another altogether")
    assert not send(target.mac, own.address4, b"with another's MAC")
    assert not send(own.mac, "172.17.0.1", b"as the gateway")
    assert not send(host.mac("seacan0"), "172.17.0.1", b"as the bridge")
    assert send(own.mac, "172.17.99.99", b"with an address that is nobody's: a shared one, as under dockerd")
    assert victim.pings(third.address4)


async def test_a_container_cannot_answer_arp_for_another(host: Space, run: Run) -> None:
    _victim, (target,) = await run("victim")
    attacker, (own,) = await run("attacker")
    witness, (third,) = await run("witness")
    ear = witness.raw()
    link = attacker.raw()
    for claimed in (target.address4, "172.17.0.1"):
        forged = arp(2, own.mac, claimed, third.mac, third.address4)
        link.send(frame(own.mac, third.mac, 0x0806, forged))
        link.send(frame(own.mac, BROADCAST, 0x0806, arp(1, own.mac, claimed, "00:00:00:00:00:00", claimed)))
        assert not hears(ear, forged[:18])
    honest = arp(2, own.mac, own.address4, third.mac, third.address4)
    link.send(frame(own.mac, third.mac, 0x0806, honest))
    assert hears(ear, honest)


async def test_a_container_cannot_advertise_as_router_or_neighbour(host: Space, networks: Networks, run: Run) -> None:
    await net(networks, "six", enable_ipv6=True)
    victim, (target,) = await run("victim", "six")
    attacker, (own,) = await run("attacker", "six")
    witness, (third,) = await run("witness", "six")
    ear, link = witness.raw(), attacker.raw()
    mine = str(link_local(own.mac))

    def send(body: bytes, source: str = mine, *, extension: bytes = b"") -> bool:
        target = third.address6
        packet = icmp6(source, target, body, extension)
        link.send(frame(own.mac, third.mac, 0x86DD, packet))
        return hears(ear, body[4:])

    advert = bytes([134, 0, 0, 0, 64, 0]) + struct.pack(">HII", 1800, 0, 0)
    assert not send(advert)
    assert not send(advert, extension=bytes([58, 0, 5, 2, 0, 0, 1, 0]))

    def neighbour(address: str) -> bytes:
        return bytes([136, 0, 0, 0, 0x20, 0, 0, 0]) + socket.inet_pton(socket.AF_INET6, address)

    assert not send(neighbour(target.address6))
    assert not send(neighbour("fe80::1"))
    assert not send(neighbour(str(link_local(target.mac))))
    assert send(neighbour(own.address6))
    assert not send(neighbour(own.address6), target.address6)
    assert victim.pings(third.address6)


def icmp6(source: str, target: str, body: bytes, extension: bytes = b"") -> bytes:
    from .conftest import checksum

    addresses = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, target)
    total = checksum(addresses + struct.pack(">II", len(body), 58) + body)
    body = body[:2] + struct.pack(">H", total) + body[4:]
    first = 0 if extension else 58
    return struct.pack(">IHBB", 0x60000000, len(extension) + len(body), first, 255) + addresses + extension + body


async def test_the_administrators_rules_come_first_and_stay(
    host: Space, start: Callable[..., Awaitable[Networks]], run: Run, new_space: Callable[[], Space]
) -> None:
    networks = await start()
    outside = new_space()
    host.wire(outside, "192.0.2.1/24", "192.0.2.9/24")
    space, _ = await run("one", ports={"80/tcp": [("", "8080")]}, on=networks)
    server = space.listen(80)
    assert outside.reaches(server, "192.0.2.1", 8080)
    with nft.open_socket() as sock:
        batch = nft.Batch(nft.NFPROTO_INET, TABLE)
        drop = nft.payload(1, 12, 4), nft.compare(_ip("192.0.2.9").packed), nft.verdict(nft.NF_DROP)
        batch.add_rule(ADMIN, *drop)
        nft.commit(sock, [batch])
    assert outside.reaches(server, "192.0.2.1", 8080) is None
    await networks.close()
    networks = await start()
    await networks.recover([identifier("one")])
    assert outside.reaches(server, "192.0.2.1", 8080) is None
    assert host.reaches(server, "127.0.0.1", 8080)


async def test_what_another_firewall_drops_stays_dropped(host: Space, run: Run, new_space: Callable[[], Space]) -> None:
    outside = new_space()
    host.wire(outside, "192.0.2.1/24", "192.0.2.9/24")
    space, _ = await run("one", ports={"80/tcp": [("", "8080")]})
    server = space.listen(80)
    assert outside.reaches(server, "192.0.2.1", 8080)
    with nft.open_socket() as sock:
        batch = nft.Batch(nft.NFPROTO_INET, "ufw")
        batch.add_table()
        batch.add_chain("forward", "filter", "forward", 10)
        batch.add_rule("forward", nft.verdict(nft.NF_DROP))
        nft.commit(sock, [batch])
    assert outside.reaches(server, "192.0.2.1", 8080) is None


async def test_another_firewalls_reload_opens_nothing(
    host: Space, networks: Networks, run: Run, new_space: Callable[[], Space]
) -> None:
    """CVE-2025-54388: firewalld's reload threw away the rules that kept 127.0.0.1 and other networks apart."""
    outside = new_space()
    host.wire(outside, "192.0.2.1/24", "192.0.2.9/24")
    outside.route("172.16.0.0/12", "192.0.2.1")
    await net(networks, "other", "10.1.0.0/24")
    space, (endpoint,) = await run("one", ports={"80/tcp": [("127.0.0.1", "8080")], "81/tcp": [("", "8081")]})
    stranger, _ = await run("two", "other")
    local, wide = space.listen(80), space.listen(81)
    for _ in range(2):
        with nft.open_socket() as sock:
            batch = nft.Batch(nft.NFPROTO_INET, "firewalld")
            batch.add_table()
            batch.add_chain("forward", "filter", "forward", 10)
            nft.commit(sock, [batch])
            gone = nft.Batch(nft.NFPROTO_INET, "firewalld")
            gone.delete_table()
            nft.commit(sock, [gone])
        assert outside.reaches(local, "192.0.2.1", 8080) is None
        assert outside.reaches(local, endpoint.address4, 80) is None
        assert stranger.reaches(local, endpoint.address4, 80) is None
        assert outside.reaches(wide, "192.0.2.1", 8081)


@pytest.mark.parametrize("mode", ["nat-unprotected", "routed"])
async def test_gateway_modes_open_containers_to_the_wire(
    host: Space, networks: Networks, run: Run, new_space: Callable[[], Space], mode: str
) -> None:
    outside = new_space()
    host.wire(outside, "192.0.2.1/24", "192.0.2.9/24")
    outside.route("10.1.0.0/24", "192.0.2.1")
    await net(networks, "open", "10.1.0.0/24", options={"com.docker.network.bridge.gateway_mode_ipv4": mode})
    space, (endpoint,) = await run("one", "open", ports={"80/tcp": [("0.0.0.0", "8080")]})
    published, hidden = space.listen(80), space.listen(81)
    assert outside.reaches(published, endpoint.address4, 80) == "192.0.2.9"
    assert (outside.reaches(hidden, endpoint.address4, 81) is not None) == (mode == "nat-unprotected")
    assert outside.pings(endpoint.address4)
    away = outside.listen(80)
    assert space.reaches(away, "192.0.2.9", 80) == (endpoint.address4 if mode == "routed" else "192.0.2.1")


async def test_a_trusted_interface_reaches_what_is_not_published(
    host: Space, networks: Networks, run: Run, new_space: Callable[[], Space]
) -> None:
    trusted, other = new_space(), new_space()
    host.wire(trusted, "192.0.2.1/24", "192.0.2.9/24", "lan0")
    host.wire(other, "198.51.100.1/24", "198.51.100.9/24", "lan1")
    for space, gateway in ((trusted, "192.0.2.1"), (other, "198.51.100.1")):
        space.route("10.1.0.0/24", gateway)
    option = "com.docker.network.bridge.trusted_host_interfaces"
    await net(networks, "net", "10.1.0.0/24", options={option: "lan0"})
    container, (endpoint,) = await run("one", "net")
    server = container.listen(80)
    assert trusted.reaches(server, endpoint.address4, 80)
    assert other.reaches(server, endpoint.address4, 80) is None


def _ip(text: str):  # type: ignore[no-untyped-def]
    import ipaddress

    return ipaddress.ip_address(text)


def _net(text: str):  # type: ignore[no-untyped-def]
    import ipaddress

    return ipaddress.ip_network(text)
