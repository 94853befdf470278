"""A container on a bridge network: what it is given, and whom it reaches."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable

import pytest

from seacan.engine.config import EndpointIPAMConfig, EndpointSettings, PortBinding
from seacan.errors import Forbidden, InvalidParameter, NotFound, System
from seacan.linux import rtnetlink as rt
from seacan.network.creation import IPAM, IPAMConfig, NetworkCreateRequest
from seacan.network.endpoints import port_map
from seacan.network.networks import Networks

from .conftest import Run, Space, identifier


async def test_a_container_gets_address_route_and_loopback(networks: Networks, run: Run) -> None:
    space, (endpoint,) = await run("one")
    assert space.addresses("eth0") == [endpoint.ipv4] == ["172.17.0.2/16"]
    assert space.default_route() == "172.17.0.1"
    assert space.mac() == endpoint.mac
    assert space.pings("127.0.0.1")
    assert space.pings("172.17.0.1")


async def test_containers_of_a_network_and_their_host_reach_each_other(host: Space, run: Run) -> None:
    one, (first,) = await run("one")
    two, (second,) = await run("two")
    server = one.listen(80)
    assert two.reaches(server, first.address4, 80) == second.address4
    assert host.reaches(server, first.address4, 80) == "172.17.0.1"
    assert two.pings(first.address4)


async def test_the_outside_is_reached_with_the_hosts_address(
    host: Space, run: Run, new_space: Callable[[], Space]
) -> None:
    outside = new_space()
    host.wire(outside, "192.0.2.1/24", "192.0.2.9/24")
    one, _ = await run("one")
    assert one.reaches(outside.listen(80), "192.0.2.9", 80) == "192.0.2.1"


async def test_without_masquerading_the_container_keeps_its_address(
    host: Space, networks: Networks, run: Run, new_space: Callable[[], Space]
) -> None:
    outside = new_space()
    host.wire(outside, "192.0.2.1/24", "192.0.2.9/24")
    outside.route("10.9.0.0/24", "192.0.2.1")
    await networks.create(
        NetworkCreateRequest(
            name="plain",
            options={"com.docker.network.bridge.enable_ip_masquerade": "false"},
            ipam=IPAM(config=[IPAMConfig(subnet="10.9.0.0/24")]),
        )
    )
    one, (endpoint,) = await run("one", "plain")
    assert one.reaches(outside.listen(80), "192.0.2.9", 80) == endpoint.address4


async def test_a_host_address_can_be_chosen_for_what_goes_out(
    host: Space, networks: Networks, run: Run, new_space: Callable[[], Space]
) -> None:
    outside = new_space()
    host.wire(outside, "192.0.2.1/24", "192.0.2.9/24")
    await networks.create(NetworkCreateRequest(name="net", options={"com.docker.network.host_ipv4": "192.0.2.77"}))
    outside.route("192.0.2.77/32", "192.0.2.1")
    one, _ = await run("one", "net")
    assert one.reaches(outside.listen(80), "192.0.2.9", 80) == "192.0.2.77"


async def test_a_host_that_did_not_forward_still_forwards_nothing_else(
    host: Space, networks: Networks, new_space: Callable[[], Space]
) -> None:
    left, right = new_space(), new_space()
    host.wire(left, "192.0.2.1/24", "192.0.2.9/24", "left")
    host.wire(right, "198.51.100.1/24", "198.51.100.9/24", "right")
    left.route("198.51.100.0/24", "192.0.2.1")
    right.route("192.0.2.0/24", "198.51.100.1")
    assert host.read("/proc/sys/net/ipv4/ip_forward") == "1"
    assert left.reaches(right.listen(80), "198.51.100.9", 80) is None


async def test_a_router_goes_on_routing(
    host: Space, start: Callable[..., Awaitable[Networks]], new_space: Callable[[], Space]
) -> None:
    host.write("/proc/sys/net/ipv4/ip_forward", "1")
    await start()
    left, right = new_space(), new_space()
    host.wire(left, "192.0.2.1/24", "192.0.2.9/24", "left")
    host.wire(right, "198.51.100.1/24", "198.51.100.9/24", "right")
    left.route("198.51.100.0/24", "192.0.2.1")
    right.route("192.0.2.0/24", "198.51.100.1")
    assert left.reaches(right.listen(80), "198.51.100.9", 80) == "192.0.2.9"


async def test_several_networks_make_several_interfaces_with_one_default_route(networks: Networks, run: Run) -> None:
    for name, subnet in (("aaa", "10.1.0.0/24"), ("bbb", "10.2.0.0/24")):
        await networks.create(NetworkCreateRequest(name=name, ipam=IPAM(config=[IPAMConfig(subnet=subnet)])))
    space, _ = await run("one", "bbb", "aaa")
    assert space.addresses("eth0") == ["10.2.0.2/24"]
    assert space.addresses("eth1") == ["10.1.0.2/24"]
    assert space.default_route() == "10.1.0.1"  # the first by name, as dockerd chooses
    asked = {"aaa": EndpointSettings(), "bbb": EndpointSettings(gw_priority=1)}
    other, _ = await run("two", settings=asked)
    assert other.default_route() == "10.2.0.1"


async def test_address_mac_and_interface_name_can_be_asked_for(networks: Networks, run: Run) -> None:
    await networks.create(NetworkCreateRequest(name="net", ipam=IPAM(config=[IPAMConfig(subnet="10.1.0.0/24")])))
    asked = EndpointSettings(
        ipam_config=EndpointIPAMConfig(ipv4_address="10.1.0.77", link_local_ips=["169.254.34.68"]),
        mac_address="02:42:00:00:00:77",
        driver_opts={
            "com.docker.network.endpoint.ifname": "uplink",
            "com.docker.network.endpoint.sysctls": (
                "net.ipv4.conf.ifname.log_martians=1,net.ipv4.conf.IFNAME.forwarding=0"
            ),
        },
    )
    space, (_endpoint,) = await run("one", settings={"net": asked})
    assert set(space.addresses("uplink")) == {"10.1.0.77/24", "169.254.34.68/16"}
    assert space.mac("uplink") == "02:42:00:00:00:77"
    assert space.read("/proc/sys/net/ipv4/conf/uplink/log_martians") == "1"
    assert space.read("/proc/sys/net/ipv4/conf/uplink/forwarding") == "0"
    described = networks.settings(identifier("one"), {"net": asked}).networks["net"]
    assert (described.ip_address, described.mac_address) == ("10.1.0.77", "02:42:00:00:00:77")
    with pytest.raises(Forbidden, match="failed to set up container networking: Address already in use"):
        await run("two", settings={"net": asked})


@pytest.mark.parametrize(
    ("network", "asked", "words"),
    [
        (
            "bridge",
            EndpointSettings(ipam_config=EndpointIPAMConfig(ipv4_address="172.17.0.9")),
            "user specified IP address is supported on user defined networks only",
        ),
        (
            "bridge",
            EndpointSettings(aliases=["web"]),
            "network-scoped alias is supported only for containers in user defined networks",
        ),
        (
            "net",
            EndpointSettings(ipam_config=EndpointIPAMConfig(ipv4_address="10.2.0.9")),
            "no configured subnet or ip-range contain the IP address 10.2.0.9",
        ),
        ("net", EndpointSettings(mac_address="nonsense"), "invalid MAC address nonsense"),
        ("net", EndpointSettings(mac_address="01:00:00:00:00:01"), "invalid MAC address"),
        (
            "net",
            EndpointSettings(driver_opts={"com.docker.network.endpoint.sysctls": "net.ipv4.ip_forward=1"}),
            "unrecognised network interface sysctl",
        ),
    ],
)
async def test_what_cannot_be_is_refused_and_leaves_nothing(
    networks: Networks, run: Run, network: str, asked: EndpointSettings, words: str
) -> None:
    await networks.create(NetworkCreateRequest(name="net", ipam=IPAM(config=[IPAMConfig(subnet="10.1.0.0/24")])))
    with pytest.raises(InvalidParameter, match=words):
        await run("one", settings={network: asked})
    assert networks.endpoints_of(identifier("one")) == []
    _, (endpoint,) = await run("two", "net")
    assert endpoint.address4 == "10.1.0.2"


async def test_an_unknown_network_is_named(run: Run) -> None:
    with pytest.raises(NotFound, match="failed to set up container networking: network nowhere not found"):
        await run("one", "nowhere")


async def test_a_full_network_says_so(networks: Networks, run: Run) -> None:
    spec = await networks.create(
        NetworkCreateRequest(name="tiny", ipam=IPAM(config=[IPAMConfig(subnet="10.1.0.0/30")]))
    )
    await run("one", "tiny")
    with pytest.raises(System) as error:
        await run("two", "tiny")
    assert str(error.value).endswith(f"no available IPv4 addresses on this network's address pools: tiny ({spec.id})")
    await networks.release(identifier("one"))
    _, (endpoint,) = await run("three", "tiny")
    assert endpoint.address4 == "10.1.0.2"


async def test_a_running_container_can_be_connected_and_disconnected(host: Space, networks: Networks, run: Run) -> None:
    for name, subnet in (("aaa", "10.1.0.0/24"), ("bbb", "10.2.0.0/24")):
        await networks.create(NetworkCreateRequest(name=name, ipam=IPAM(config=[IPAMConfig(subnet=subnet)])))
    space, (first,) = await run("one", "bbb", ports={"80/tcp": [("", "8080")]})
    server = space.listen(80)
    identity = first.container, first.container_name
    from seacan.network.model import ContainerIdentity

    added = await networks.connect(
        ContainerIdentity(id=identity[0], name=identity[1]), "aaa", EndpointSettings(), space
    )
    assert added.container_interface == "eth1"
    assert space.addresses("eth1") == ["10.1.0.2/24"]
    assert space.default_route() == "10.1.0.1"
    assert host.reaches(server, "127.0.0.1", 8080) == "10.1.0.1"
    await networks.disconnect(identity[0], "aaa", space)
    assert space.default_route() == "10.2.0.1"
    assert host.reaches(server, "127.0.0.1", 8080) == "10.2.0.1"
    with pytest.raises(AssertionError, match="no link eth1"):
        space.index("eth1")
    with pytest.raises(System, match="is not connected to network aaa"):
        await networks.disconnect(identity[0], "aaa", space)


async def test_host_and_none_networks_are_recorded_and_make_nothing(networks: Networks, run: Run) -> None:
    for name in ("host", "none"):
        space, (endpoint,) = await run(f"c-{name}", name)
        assert endpoint.ipv4 == ""
        with pytest.raises(AssertionError):
            space.index("eth0")
        assert networks.settings(identifier(f"c-{name}"), {name: EndpointSettings()}).networks[name].endpoint_id


async def test_mtu_reaches_both_ends(networks: Networks, run: Run) -> None:
    await networks.create(NetworkCreateRequest(name="small", options={"com.docker.network.driver.mtu": "1400"}))
    space, _ = await run("one", "small")
    assert space.read("/proc/sys/net/ipv6/conf/eth0/mtu") == "1400"


async def test_a_full_bridge_says_what_to_use_instead(
    host: Space, networks: Networks, run: Run, new_space: Callable[[], Space]
) -> None:
    bridge, others = host.index("seacan0"), new_space()
    for start in range(0, 1023, 93):
        ports = range(start, start + 93)
        host.links.request([rt.new_veth(f"port{n}", f"far{n}", others.netns, master=bridge) for n in ports])
    with pytest.raises(System, match=r"seacan0 has no free port: .* 1,023\. A network of the driver routed"):
        await run("one")


@pytest.mark.parametrize("told", [True, False])
async def test_neighbours_learn_at_once_who_has_an_address_now(
    host: Space, networks: Networks, run: Run, told: bool
) -> None:
    ipam = IPAM(config=[IPAMConfig(subnet="10.1.0.0/24"), IPAMConfig(subnet="fd01::/64")])
    options = {} if told else {"com.docker.network.advertise_addr_nmsgs": "0"}
    await networks.create(NetworkCreateRequest(name="both", enable_ipv6=True, ipam=ipam, options=options))
    mine = EndpointIPAMConfig(ipv4_address="10.1.0.9", ipv6_address="fd01::9")
    one, _ = await run("one", "both")
    _gone, (old,) = await run("old", settings={"both": EndpointSettings(ipam_config=mine)})
    assert one.pings("10.1.0.9") and one.pings("fd01::9")
    await networks.release(identifier("old"))
    await asyncio.to_thread(host.links.request, [rt.delete_link(host.index(old.interface))])
    _there, (new,) = await run("new", settings={"both": EndpointSettings(ipam_config=mine)})
    assert new.mac != old.mac
    assert [one.pings("10.1.0.9"), one.pings("fd01::9")] == [told, told]


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("nmsgs", "4", "com.docker.network.advertise_addr_nmsgs must be in the range 0 to 3"),
        ("nmsgs", "x", 'value for option com.docker.network.advertise_addr_nmsgs "x" must be an integer'),
        ("ms", "99", "com.docker.network.advertise_addr_ms must be in the range 100 to 2000"),
    ],
)
async def test_advertisements_are_asked_for_in_bounds(networks: Networks, option: str, value: str, words: str) -> None:
    options = {f"com.docker.network.advertise_addr_{option}": value}
    with pytest.raises(InvalidParameter) as refused:
        await networks.create(NetworkCreateRequest(name="net", options=options))
    assert str(refused.value) == words


async def test_a_range_of_the_default_network_makes_its_subnet_unless_it_fits_what_there_is(
    host: Space, start: Callable[..., Awaitable[Networks]]
) -> None:
    for options, subnet, gateway, part in (
        ({"bip": "10.11.12.13/16"}, "10.11.0.0/16", "10.11.12.13", ""),
        ({"fixed_cidr": "10.11.22.0/24"}, "10.11.0.0/16", "10.11.12.13", "10.11.22.0/24"),
        ({}, "10.11.0.0/16", "10.11.12.13", ""),
        ({"fixed_cidr": "10.8.0.0/13"}, "10.8.0.0/13", "10.11.12.13", ""),
        ({"fixed_cidr": "192.168.50.0/24"}, "192.168.50.0/24", "192.168.50.1", ""),
    ):
        networks = await start(**options)
        (pool,) = networks.get("bridge").pools
        assert (pool.subnet, pool.gateway, pool.ip_range) == (subnet, gateway, part)
        assert host.addresses("seacan0") == [f"{gateway}/{subnet.partition('/')[2]}"]
        await networks.close()


async def test_a_range_outside_a_bridge_of_the_administrators_has_no_effect(
    host: Space, start: Callable[..., Awaitable[Networks]]
) -> None:
    host.links.request([rt.new_bridge("mine", mac="02:00:00:00:00:01")])
    index = host.index("mine")
    for text in ("10.3.0.1/24", "10.4.0.1/16"):
        host.links.request([rt.new_address(index, ipaddress.ip_interface(text))])
    for part, subnet, kept in (("10.4.7.0/24", "10.4.0.0/16", "10.4.7.0/24"), ("10.9.0.0/24", "10.3.0.0/24", "")):
        networks = await start(bridge="mine", fixed_cidr=part)
        (pool,) = networks.get("bridge").pools
        assert (pool.subnet, pool.ip_range) == (subnet, kept)
        await networks.close()


async def test_internal_networks_keep_no_address_for_a_gateway_that_nobody_is(networks: Networks, run: Run) -> None:
    ipam = IPAM(config=[IPAMConfig(subnet="10.1.0.0/31")])
    options = {"com.docker.network.bridge.inhibit_ipv4": "true"}
    await networks.create(NetworkCreateRequest(name="two", internal=True, ipam=ipam, options=options))
    one, (first,) = await run("one", "two")
    _two, (second,) = await run("two", "two")
    assert {first.ipv4, second.ipv4} == {"10.1.0.0/31", "10.1.0.1/31"}
    assert one.pings(second.address4)


async def test_open_ports_of_a_routed_family_are_told_with_their_address(networks: Networks, run: Run) -> None:
    ipam = IPAM(config=[IPAMConfig(subnet="10.1.0.0/24"), IPAMConfig(subnet="fd01::/64")])
    options = {"com.docker.network.bridge.gateway_mode_ipv4": "routed"}
    await networks.create(NetworkCreateRequest(name="net", enable_ipv6=True, ipam=ipam, options=options))
    _space, endpoints = await run("one", "net", ports={"80/tcp": [("", "8080")]})
    assert port_map(endpoints) == {
        "80/tcp": [PortBinding(host_ip="0.0.0.0"), PortBinding(host_ip="::", host_port="8080")]
    }
