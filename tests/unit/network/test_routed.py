"""The routed driver: no bridge, one route a container."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from seacan.linux import rtnetlink as rt
from seacan.network.creation import IPAM, IPAMConfig, NetworkCreateRequest
from seacan.network.networks import Networks

from .conftest import Run, Space, frame, hears, identifier, ip_packet, udp


@pytest.fixture
async def routed(networks: Networks) -> Networks:
    await networks.create(
        NetworkCreateRequest(name="routed", driver="routed", ipam=IPAM(config=[IPAMConfig(subnet="10.50.0.0/16")]))
    )
    return networks


async def test_a_container_has_one_address_and_one_route(host: Space, routed: Networks, run: Run) -> None:
    space, (endpoint,) = await run("one", "routed")
    assert space.addresses("eth0") == ["10.50.0.2/32"]
    assert space.default_route() == "10.50.0.1"
    assert "10.50.0.2/32" in [str(route.destination) for route in rt.routes(host.links)]
    assert endpoint.gateway4 == "10.50.0.1"


async def test_everyone_reaches_everyone(
    host: Space, routed: Networks, run: Run, new_space: Callable[[], Space]
) -> None:
    outside = new_space()
    host.wire(outside, "192.0.2.1/24", "192.0.2.9/24")
    one, (first,) = await run("one", "routed", ports={"80/tcp": [("", "8080")]})
    two, (second,) = await run("two", "routed")
    server = one.listen(80)
    assert two.reaches(server, first.address4, 80) == second.address4
    assert two.pings("10.50.0.1")
    assert host.reaches(server, first.address4, 80)
    assert outside.reaches(server, "192.0.2.1", 8080) == "192.0.2.9"
    assert host.reaches(server, "127.0.0.1", 8080)
    assert two.reaches(server, "192.0.2.1", 8080)
    assert one.reaches(server, "192.0.2.1", 8080)
    assert one.reaches(outside.listen(80), "192.0.2.9", 80) == "192.0.2.1"


async def test_it_is_isolated_like_any_other_network(
    host: Space, routed: Networks, run: Run, new_space: Callable[[], Space]
) -> None:
    outside = new_space()
    host.wire(outside, "192.0.2.1/24", "192.0.2.9/24")
    outside.route("10.50.0.0/16", "192.0.2.1")
    one, (first,) = await run("one", "routed")
    two, (second,) = await run("two")
    server = one.listen(80)
    assert two.reaches(server, first.address4, 80) is None
    assert one.reaches(two.listen(80), second.address4, 80) is None
    assert outside.reaches(server, first.address4, 80) is None


async def test_a_container_can_send_from_no_other_address(routed: Networks, run: Run) -> None:
    witness, (third,) = await run("witness", "routed")
    victim, (target,) = await run("victim", "routed")
    attacker, (own,) = await run("attacker", "routed")
    service, link = witness.bound(9), attacker.raw()
    for address, expected in (
        (own.address4, True),
        (target.address4, False),
        ("10.50.99.99", False),
        ("1.2.3.4", False),
    ):
        text = f"from {address}".encode()
        packet = ip_packet(address, third.address4, 17, udp(1, 9, text))
        link.send(frame(own.mac, "ee:ee:ee:ee:ee:ee", 0x0800, packet))
        assert hears(service, text) is expected
    assert victim.pings(third.address4)


async def test_an_address_without_a_container_goes_nowhere(host: Space, routed: Networks, run: Run) -> None:
    one, _ = await run("one", "routed")
    assert not one.pings("10.50.7.7")


async def test_its_rules_go_with_the_container_and_its_interface_with_the_network(
    host: Space, routed: Networks, run: Run
) -> None:
    _one, _ = await run("one", "routed")
    name = routed.get("routed").bridge
    await routed.release(identifier("one"))
    await routed.remove("routed")
    assert rt.link(host.links, name) is None
    assert not [route for route in rt.routes(host.links) if str(route.destination) == "10.50.0.0/16"]


async def test_ipv6(host: Space, networks: Networks, run: Run) -> None:
    await networks.create(
        NetworkCreateRequest(
            name="six",
            driver="routed",
            enable_ipv6=True,
            ipam=IPAM(config=[IPAMConfig(subnet="10.50.0.0/16"), IPAMConfig(subnet="fd50::/64")]),
        )
    )
    one, (first,) = await run("one", "six", ports={"80/tcp": [("", "8080")]})
    two, (second,) = await run("two", "six")
    server = one.listen(80, "::")
    assert two.reaches(server, first.address6, 80) == second.address6
    assert host.reaches(server, first.address6, 80)
    assert two.reaches(server, "fd50::1", 8080)
