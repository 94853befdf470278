"""macvlan networks: containers on the host's wire; and what this kernel cannot do, said clearly."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

import pytest

from seacan.errors import InvalidParameter, NotFound, Unsupported
from seacan.linux import rtnetlink as rt
from seacan.network.creation import IPAM, IPAMConfig, NetworkCreateRequest
from seacan.network.networks import Networks

from .conftest import Run, Space


def request(name: str, subnet: str, **options: str) -> NetworkCreateRequest:
    return NetworkCreateRequest(
        name=name, driver="macvlan", options=options, ipam=IPAM(config=[IPAMConfig(subnet=subnet)])
    )


@pytest.fixture
def outside(host: Space, new_space: Callable[[], Space]) -> Space:
    space = new_space()
    host.wire(space, "192.0.2.1/24", "192.0.2.99/24")
    return space


@pytest.mark.parametrize(("mode", "together"), [("bridge", True), ("private", False), ("vepa", False)])
async def test_containers_are_hosts_on_the_wire(
    outside: Space, networks: Networks, run: Run, mode: str, together: bool
) -> None:
    await networks.create(request("mac", "192.0.2.0/24", parent="wan", macvlan_mode=mode))
    one, (first,) = await run("one", "mac")
    two, (second,) = await run("two", "mac")
    assert one.mac() == first.mac
    assert outside.reaches(one.listen(80), first.address4, 80) == "192.0.2.99"
    assert two.reaches(outside.listen(80), "192.0.2.99", 80) == second.address4
    assert (two.reaches(one.listen(81), first.address4, 81) is not None) is together


async def test_passthru_gives_the_interface_to_one_container(outside: Space, networks: Networks, run: Run) -> None:
    await networks.create(request("mac", "192.0.2.0/24", parent="wan", macvlan_mode="passthru"))
    one, (endpoint,) = await run("one", "mac")
    assert outside.reaches(one.listen(80), endpoint.address4, 80) == "192.0.2.99"


async def test_a_vlan_of_the_parent_is_made_and_removed(
    host: Space, outside: Space, networks: Networks, run: Run
) -> None:
    try:
        await networks.create(request("mac", "198.51.100.0/24", parent="wan.10"))
    except Unsupported as error:
        assert "CONFIG_VLAN_8021Q" in str(error)
        pytest.skip(str(error))
    outside.links.request([rt.new_vlan("wan.10", outside.index("wan"), 10)])
    outside.links.request([rt.new_address(outside.index("wan.10"), ipaddress.ip_interface("198.51.100.99/24"))])
    one, (endpoint,) = await run("one", "mac")
    assert outside.reaches(one.listen(80), endpoint.address4, 80) == "198.51.100.99"
    from .conftest import identifier

    await networks.release(identifier("one"))
    await networks.remove("mac")
    assert rt.link(host.links, "wan.10") is None
    assert rt.link(host.links, "wan") is not None


async def test_without_a_parent_the_containers_are_among_themselves(networks: Networks, run: Run) -> None:
    await networks.create(request("mac", "10.1.0.0/24"))
    one, (first,) = await run("one", "mac")
    two, _ = await run("two", "mac")
    assert two.reaches(one.listen(80), first.address4, 80)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"parent": "nothere0"}, NotFound, "invalid subinterface vlan name nothere0, example formatting is eth0.10"),
        ({"parent": "wan.x"}, NotFound, "unable to parse a valid vlan id from: x"),
        ({"parent": "nothere0.5"}, NotFound, "-o parent interface was not found on the host: nothere0"),
        ({"parent": "lo"}, InvalidParameter, "loopback interface is not a valid macvlan parent link"),
        ({"parent": "wan", "macvlan_mode": "odd"}, InvalidParameter, "requested macvlan mode 'odd' is not valid"),
        ({"parent": "wan.9999"}, InvalidParameter, "vlan id must be between 1-4094, received: 9999"),
    ],
)
async def test_what_cannot_be_is_refused(
    outside: Space, networks: Networks, options: dict[str, str], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        await networks.create(request("mac", "10.1.0.0/24", **options))
    assert networks.find("mac") is None


async def test_ipvlan_is_refused_where_the_kernel_lacks_it(networks: Networks, host: Space) -> None:
    try:
        host.links.request([rt.new_ipvlan("probe", 1, "l2")])
    except OSError as error:
        if "not supported" not in str(error):
            pytest.skip("this kernel has ipvlan")
    with pytest.raises(Unsupported, match="this kernel has no ipvlan driver"):
        await networks.create(NetworkCreateRequest(name="ipv", driver="ipvlan", options={"parent": "lo0"}))
