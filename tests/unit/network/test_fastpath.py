"""The fast path between containers of one network: who goes by it, and that it lets through no more than the bridge."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable

import pytest

from seacan.engine.config import EndpointSettings
from seacan.linux import bpf
from seacan.linux import nftables as nft
from seacan.network import doctor, fastpath
from seacan.network.creation import IPAM, IPAMConfig, NetworkCreateRequest
from seacan.network.model import ContainerIdentity, Endpoint
from seacan.network.networks import Networks

from .conftest import Run, Space, frame, hears, identifier, ip_packet, udp

Start = Callable[..., Awaitable[Networks]]


@pytest.fixture(autouse=True)
def _possible() -> None:
    reason = fastpath.missing()
    if reason is not None:
        pytest.skip(reason)


def sent_by_bridge(host: Space, endpoint: Endpoint) -> int:
    """Packets that the host's side of a container's link has sent into the container."""
    for line in host.read("/proc/thread-self/net/dev").splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == endpoint.interface:
            return int(numbers.split()[9])
    raise AssertionError(f"no link {endpoint.interface}")


async def goes_fast(host: Space, client: Space, server: Space, endpoint: Endpoint) -> bool:
    """Whether datagrams go past the bridge; they must arrive in either case."""
    listener = server.bound(7000, endpoint.address4)
    assert client.asks(listener, endpoint.address4, 7000), "ARP and whatever else a first packet needs"
    before = sent_by_bridge(host, endpoint)
    for _ in range(20):
        assert client.asks(listener, endpoint.address4, 7000)
    listener.close()
    return sent_by_bridge(host, endpoint) - before < 10


async def test_neighbours_talk_past_the_bridge_and_are_counted(host: Space, networks: Networks, run: Run) -> None:
    one, (first,) = await run("one")
    two, (second,) = await run("two")
    assert await goes_fast(host, two, one, first)
    assert await goes_fast(host, one, two, second)
    received = int(one.read("/proc/thread-self/net/dev").partition("eth0:")[2].split()[1])
    assert received >= 40, "what a container's statistics are made of"
    assert two.reaches(one.listen(80), first.address4, 80) == second.address4


async def test_ipv6_too(host: Space, networks: Networks, run: Run) -> None:
    await networks.create(NetworkCreateRequest(name="six", enable_ipv6=True))
    one, (first,) = await run("one", "six")
    two, _ = await run("two", "six")
    listener = one.bound(9, first.address6)
    assert two.asks(listener, first.address6, 9)
    before = sent_by_bridge(host, first)
    for _ in range(20):
        assert two.asks(listener, first.address6, 9)
    assert sent_by_bridge(host, first) - before < 10
    assert two.pings(first.address6), "which goes by the bridge"


async def test_nobody_sends_as_another(host: Space, run: Run) -> None:
    _, (target,) = await run("victim")
    attacker, (own,) = await run("attacker")
    witness, (third,) = await run("witness")
    service = witness.bound(9)
    link = attacker.raw()

    def send(mac: str, address: str, text: bytes) -> bool:
        link.send(frame(mac, third.mac, 0x0800, ip_packet(address, third.address4, 17, udp(1, 9, text))))
        return hears(service, text)

    before = sent_by_bridge(host, third)
    assert send(own.mac, own.address4, b"as myself")
    assert sent_by_bridge(host, third) == before
    assert not send(own.mac, target.address4, b"with another's address")
    assert not send(target.mac, own.address4, b"with another's MAC")
    assert not send(target.mac, target.address4, b"with both")
    assert not send(own.mac, "172.17.0.1", b"with the gateway's address")
    assert not send("02:00:00:00:00:99", target.address4, b"with a MAC of nobody's")


async def test_frames_that_hide_what_they_carry_are_left_to_the_rules(host: Space, run: Run) -> None:
    _, (target,) = await run("victim")
    attacker, (own,) = await run("attacker")
    witness, (third,) = await run("witness")
    service = witness.bound(9)
    link = attacker.raw()
    inner = ip_packet(target.address4, third.address4, 17, udp(1, 9, b"tagged"))
    for tags in (b"\x81\x00\x00\x00", b"\x81\x00\x00\x00\x81\x00\x00\x00", b"\x88\xa8\x00\x00"):
        head = frame(own.mac, third.mac, 0, b"")[:12]
        link.send(head + tags + b"\x08\x00" + inner)
    for cut in range(1, 34):
        link.send(frame(own.mac, third.mac, 0x0800, inner)[: 14 + cut].ljust(15, b"\0"))
    assert not hears(service, b"tagged")


async def test_a_network_whose_containers_may_not_talk_has_none(host: Space, networks: Networks, run: Run) -> None:
    options = {"com.docker.network.bridge.enable_icc": "false"}
    await networks.create(NetworkCreateRequest(name="shy", options=options))
    one, (first,) = await run("one", "shy")
    two, _ = await run("two", "shy")
    assert not two.asks(one.bound(9), first.address4, 9)


async def test_another_networks_container_is_nobody(host: Space, networks: Networks, run: Run) -> None:
    await networks.create(NetworkCreateRequest(name="other", ipam=IPAM(config=[IPAMConfig(subnet="10.9.0.0/24")])))
    one, (first,) = await run("one", "other")
    two, (second,) = await run("two")
    await run("neighbour")
    service = one.bound(9)
    packet = ip_packet(second.address4, first.address4, 17, udp(1, 9, b"across"))
    two.raw().send(frame(second.mac, first.mac, 0x0800, packet))
    assert not hears(service, b"across")


async def test_somebody_elses_rules_for_bridged_packets_hold_at_once(host: Space, networks: Networks, run: Run) -> None:
    one, (first,) = await run("one")
    two, _ = await run("two")
    assert await goes_fast(host, two, one, first)
    batch = nft.Batch(nft.NFPROTO_BRIDGE, "theirs")
    batch.add_table()
    batch.add_chain("forward", "filter", "forward", 0)
    is_udp = nft.payload(1, 9, 1), nft.compare(b"\x11")
    batch.add_rule("forward", nft.meta(nft.META_PROTOCOL), nft.compare(b"\x08\x00"), *is_udp, nft.verdict(nft.NF_DROP))
    with nft.open_socket() as sock:
        nft.commit(sock, [batch])
        await _until_told(networks)
        assert not two.asks(one.bound(9), first.address4, 9)
        slow = doctor.slow_path()
        assert slow is not None and "the nftables table bridge theirs has rules" in slow.problem
        gone = nft.Batch(nft.NFPROTO_BRIDGE, "theirs")
        gone.delete_table()
        nft.commit(sock, [gone])
    await _until_told(networks)
    assert await goes_fast(host, two, one, first)


async def _until_told(networks: Networks) -> None:
    """The kernel's message is there already: let the loop see it, and what it begins end."""
    for _ in range(3):
        await asyncio.sleep(0)
    await networks.settled()


async def test_it_needs_no_daemon_and_the_next_one_takes_it_over(host: Space, start: Start, run: Run) -> None:
    first = await start()
    one, (endpoint,) = await run("one", on=first)
    two, _ = await run("two", on=first)
    await first.close()
    assert await goes_fast(host, two, one, endpoint)
    next_ = await start()
    await next_.recover([identifier("one"), identifier("two")])
    assert await goes_fast(host, two, one, endpoint)
    three, (third,) = await run("three", on=next_)
    assert await goes_fast(host, three, one, endpoint)
    assert await goes_fast(host, one, three, third)


async def test_connecting_brings_it_and_disconnecting_takes_it(host: Space, networks: Networks, run: Run) -> None:
    await networks.create(NetworkCreateRequest(name="more"))
    one, _ = await run("one")
    two, _ = await run("two", "more")
    identity = ContainerIdentity(id=identifier("one"), name="one")
    endpoint = await networks.connect(identity, "more", EndpointSettings(), one)
    await networks.settled()
    assert await goes_fast(host, two, one, endpoint)
    await networks.disconnect(identifier("one"), "more", one)
    listener = one.bound(9)
    assert not two.asks(listener, endpoint.address4, 9)


async def test_a_mac_that_is_used_again_leads_to_its_new_owner(host: Space, networks: Networks, run: Run) -> None:
    fixed = {"bridge": EndpointSettings(mac_address="02:00:00:00:00:07")}
    await run("old", settings=fixed)
    client, _ = await run("client")
    await networks.release(identifier("old"))
    one, (endpoint,) = await run("new", settings=fixed)
    assert await goes_fast(host, client, one, endpoint)


async def test_macs_that_end_alike_are_told_apart(host: Space, networks: Networks, run: Run) -> None:
    alike = [f"02:00:00:0{number}:00:07" for number in range(3)]
    spaces = {}
    for mac in alike[:2]:
        spaces[mac], (endpoint,) = await run(mac, settings={"bridge": EndpointSettings(mac_address=mac)})
    client, _ = await run("client")
    for mac, space in spaces.items():
        (endpoint,) = networks.endpoints_of(identifier(mac))
        assert await goes_fast(host, client, space, endpoint)
    await networks.release(identifier(alike[0]))
    for mac in alike[1:]:
        if mac not in spaces:
            spaces[mac], _ = await run(mac, settings={"bridge": EndpointSettings(mac_address=mac)})
        (endpoint,) = networks.endpoints_of(identifier(mac))
        assert await goes_fast(host, client, spaces[mac], endpoint)


async def test_a_kernel_without_it_is_served_by_the_bridge_and_the_doctor_says_so(
    host: Space, start: Start, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EINVAL, "bpf(BPF_PROG_LOAD): unknown func bpf_redirect_peer")

    monkeypatch.setattr(bpf, "load_classifier", refuse)
    networks = await start()
    one, (endpoint,) = await run("one", on=networks)
    two, _ = await run("two", on=networks)
    assert not await goes_fast(host, two, one, endpoint)
    slow = doctor.slow_path()
    assert slow is not None and "unknown func bpf_redirect_peer" in slow.problem
