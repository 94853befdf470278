"""IPv6 on bridge networks: addresses, ports, what goes out."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable

from seacan.network.creation import IPAM, IPAMConfig, NetworkCreateRequest
from seacan.network.networks import Networks

from .conftest import Run, Space


async def six(networks: Networks, **more: object) -> None:
    ipam = IPAM(config=[IPAMConfig(subnet="fd01::/64")])
    await networks.create(NetworkCreateRequest(name="six", enable_ipv6=True, ipam=ipam, **more))  # type: ignore[arg-type]


async def test_both_families_work_between_containers_and_host(host: Space, networks: Networks, run: Run) -> None:
    await six(networks)
    one, (first,) = await run("one", "six", ports={"80/tcp": [("", "8080")]})
    two, (second,) = await run("two", "six")
    assert first.ipv6 == "fd01::2/64"
    assert first.gateway6 == "fd01::1"
    server, old = one.listen(80, "::"), one.listen(81)
    assert two.reaches(server, "fd01::2", 80) == second.address6
    assert two.reaches(old, first.address4, 81) == second.address4
    assert host.reaches(server, "fd01::2", 80)
    assert host.reaches(server, "::1", 8080) == "fd01::1"
    assert two.reaches(server, "fd01::1", 8080)
    assert one.reaches(server, "fd01::1", 8080)


async def test_what_goes_out_has_the_hosts_address(
    host: Space, networks: Networks, run: Run, new_space: Callable[[], Space]
) -> None:
    outside = new_space()
    host.wire(outside, "192.0.2.1/24", "192.0.2.9/24")
    index, their = host.index("wan"), outside.index("wan")
    import ipaddress

    from seacan.linux import rtnetlink as rt

    host.links.request([rt.new_address(index, ipaddress.ip_interface("fd99::1/64"))])
    outside.links.request([rt.new_address(their, ipaddress.ip_interface("fd99::9/64"))])
    await six(networks)
    one, (endpoint,) = await run("one", "six", ports={"80/tcp": [("", "8080")]})
    assert one.reaches(outside.listen(80, "::"), "fd99::9", 80) == "fd99::1"
    server = one.listen(80, "::")
    assert outside.reaches(server, "fd99::1", 8080) == "fd99::9"
    outside.route("fd01::/64", "fd99::1")
    assert outside.reaches(server, endpoint.address6, 80) is None


async def test_ipv6_alone(host: Space, networks: Networks, run: Run) -> None:
    await six(networks, enable_ipv4=False)
    one, (endpoint,) = await run("one", "six", ports={"80/tcp": [("", "8080")]})
    assert endpoint.ipv4 == ""
    assert host.reaches(one.listen(80, "::"), "::1", 8080)


async def test_the_default_network_has_it_on_request(
    host: Space, start: Callable[..., Awaitable[Networks]], run: Run
) -> None:
    networks = await start(ipv6=True, fixed_cidr_v6="fd02::/64")
    _one, (endpoint,) = await run("one", on=networks)
    assert endpoint.ipv6 == "fd02::2/64"
    assert host.pings("fd02::2")


async def test_a_subnet_is_chosen_that_belongs_to_this_engine(networks: Networks) -> None:
    first = await networks.create(NetworkCreateRequest(name="aaa", enable_ipv6=True))
    second = await networks.create(NetworkCreateRequest(name="bbb", enable_ipv6=True))
    subnets = [spec.pools_of(6)[0].subnet for spec in (first, second)]
    assert all(subnet.startswith("fd") and subnet.endswith("/64") for subnet in subnets)
    assert subnets[0] != subnets[1]
    assert len({ipaddress.ip_network(subnet).supernet(new_prefix=48) for subnet in subnets}) == 1
