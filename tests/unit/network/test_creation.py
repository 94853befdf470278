"""Making networks: what is chosen, what is refused, in dockerd's words."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable

import pytest

from seacan.engine.options import AddressPool
from seacan.errors import Conflict, Forbidden, InvalidParameter, NotFound, SeacanError, System
from seacan.linux import rtnetlink as rt
from seacan.network.creation import IPAM, ConfigReference, IPAMConfig, NetworkCreateRequest
from seacan.network.networks import Networks

from .conftest import Run, Space, identifier


def request(*subnets: IPAMConfig, name: str = "net", **more: object) -> NetworkCreateRequest:
    return NetworkCreateRequest(name=name, ipam=IPAM(config=list(subnets)) if subnets else None, **more)  # type: ignore[arg-type]


async def test_a_network_gets_the_next_free_subnet_and_its_first_address(host: Space, networks: Networks) -> None:
    first = await networks.create(request(name="aaa"))
    assert first.pools[0].subnet == "172.18.0.0/16"
    assert first.pools[0].gateway == "172.18.0.1"
    second = await networks.create(request(name="bbb"))
    assert second.pools[0].subnet == "172.19.0.0/16"
    await networks.remove("aaa")
    assert (await networks.create(request(name="ccc"))).pools[0].subnet == "172.18.0.0/16"


async def test_a_subnet_the_host_has_a_route_to_is_not_chosen(host: Space, networks: Networks) -> None:
    host.links.request([rt.new_bridge("lan", mac="02:00:00:00:00:01")])
    index = host.index("lan")
    host.links.request(
        [
            rt.set_link(index, up=True),
            rt.new_address(index, ipaddress.ip_interface("172.18.3.1/24")),
            rt.new_route(ipaddress.ip_network("172.19.128.0/17"), index, ipaddress.ip_address("172.18.3.9")),
        ]
    )
    assert (await networks.create(request())).pools[0].subnet == "172.20.0.0/16"


async def test_the_daemons_address_pools_are_used(start: Callable[..., Awaitable[Networks]]) -> None:
    networks = await start(default_address_pools=[AddressPool(base="10.200.0.0/22", size=24)])
    subnets = [networks.get("bridge").pools[0].subnet]
    subnets += [(await networks.create(request(name=f"n{number}"))).pools[0].subnet for number in range(3)]
    assert subnets == ["10.200.0.0/24", "10.200.1.0/24", "10.200.2.0/24", "10.200.3.0/24"]
    with pytest.raises(InvalidParameter, match="all predefined address pools have been fully subnetted"):
        await networks.create(request(name="n4"))


async def test_every_option_of_a_subnet_is_honoured(networks: Networks, run: Run) -> None:
    config = IPAMConfig(
        subnet="10.1.0.0/24",
        ip_range="10.1.0.128/30",
        gateway="10.1.0.254",
        auxiliary_addresses={"printer": "10.1.0.128"},
    )
    await networks.create(request(config, IPAMConfig(subnet="10.2.0.0/24")))
    given = [(await run(f"c{number}", "net"))[1][0] for number in range(4)]
    assert [one.ipv4 for one in given] == ["10.1.0.129/24", "10.1.0.130/24", "10.1.0.131/24", "10.2.0.2/24"]
    assert [one.gateway4 for one in given] == ["10.1.0.254"] * 3 + ["10.2.0.1"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (IPAMConfig(subnet="10.1.0.0"), "invalid subnet 10.1.0.0: invalid CIDR block notation"),
        (IPAMConfig(subnet="10.1.0.1/24"), "invalid subnet 10.1.0.1/24: it should be 10.1.0.0/24"),
        (
            IPAMConfig(subnet="10.1.0.0/24", ip_range="10.2.0.0/25"),
            "invalid ip-range 10.2.0.0/25: parent subnet 10.1.0.0/24 doesn't contain ip-range",
        ),
        (
            IPAMConfig(subnet="10.1.0.0/24", ip_range="10.1.0.0/16"),
            "invalid ip-range 10.1.0.0/16: CIDR block is bigger than its parent subnet 10.1.0.0/24",
        ),
        (
            IPAMConfig(subnet="10.1.0.0/24", gateway="10.2.0.1"),
            "invalid gateway 10.2.0.1: parent subnet 10.1.0.0/24 doesn't contain this address",
        ),
        (IPAMConfig(subnet="10.1.0.0/24", gateway="x"), "invalid gateway x: invalid address"),
        (
            IPAMConfig(subnet="10.1.0.0/24", gateway="fd00::1"),
            "invalid gateway fd00::1: parent subnet is an IPv4 block",
        ),
        (
            IPAMConfig(subnet="10.1.0.0/24", auxiliary_addresses={"a": "1.2.3.4"}),
            "invalid auxiliary address a: parent subnet 10.1.0.0/24 doesn't contain this address",
        ),
    ],
)
async def test_contradictions_are_refused(networks: Networks, config: IPAMConfig, words: str) -> None:
    with pytest.raises(InvalidParameter) as error:
        await networks.create(request(config))
    assert str(error.value) == f"invalid network config:\n{words}"


@pytest.mark.parametrize(
    ("wanted", "kind", "words"),
    [
        (request(name="bridge"), Forbidden, "operation is not permitted on predefined bridge network"),
        (request(name="host"), Forbidden, "operation is not permitted on predefined host network"),
        (request(name=""), InvalidParameter, "invalid name: name is empty"),
        (request(driver="overlay"), Forbidden, "This node is not a swarm manager"),
        (request(driver="weave"), NotFound, 'plugin "weave" not found'),
        (request(driver="host"), Forbidden, 'only one instance of "host" network is allowed'),
        (request(driver="none"), NotFound, 'plugin "none" not found'),
        (NetworkCreateRequest(name="net", ipam=IPAM(driver="odd")), NotFound, 'plugin "odd" not found'),
        (NetworkCreateRequest(name="net", ipam=IPAM(driver="null")), InvalidParameter, "ipv4 pool is empty"),
        (
            request(IPAMConfig(subnet="10.1.0.0/24", gateway="10.1.0.0")),
            System,
            "failed to allocate gateway (10.1.0.0): Address already in use",
        ),
        (
            request(IPAMConfig(subnet="10.1.0.0/24", gateway="10.1.0.255")),
            System,
            "failed to allocate gateway (10.1.0.255): Address already in use",
        ),
        (
            request(IPAMConfig(subnet="10.1.0.0/24", auxiliary_addresses={"a": "10.1.0.1"})),
            System,
            "failed to allocate secondary ip address (a:10.1.0.1): Address already in use",
        ),
        (
            request(options={"com.docker.network.bridge.host_binding_ipv4": "here"}),
            InvalidParameter,
            "failed to parse com.docker.network.bridge.host_binding_ipv4 value: here (nil ip)",
        ),
        (
            request(options={"com.docker.network.host_ipv4": "fd00::1"}),
            InvalidParameter,
            "failed to parse com.docker.network.host_ipv4 value: fd00::1",
        ),
        (request(config_from=ConfigReference(network="bridge")), NotFound, '"bridge" does not exist'),
        (request(scope="swarm"), Forbidden, "cannot create a swarm scoped network when swarm is not active"),
        (request(enable_ipv4=False), InvalidParameter, "IPv4 or IPv6 must be enabled"),
        (request(options={"com.docker.network.driver.mtu": "x"}), InvalidParameter, "driver.mtu value: x (strconv"),
        (
            request(options={"com.docker.network.bridge.enable_icc": "maybe"}),
            InvalidParameter,
            'parsing "maybe": invalid syntax',
        ),
        (
            request(options={"com.docker.network.bridge.gateway_mode_ipv4": "odd"}),
            InvalidParameter,
            "unknown gateway mode odd",
        ),
        (
            request(options={"com.docker.network.bridge.gateway_mode_ipv4": "isolated"}),
            InvalidParameter,
            "internal network",
        ),
        (
            request(options={"com.docker.network.bridge.name": "sixteen-chars-00"}),
            InvalidParameter,
            "invalid bridge name",
        ),
        (
            request(options={"com.docker.network.bridge.name": "seacan0"}),
            Forbidden,
            "networks have same bridge name",
        ),
        (request(config_from=ConfigReference(network="nope")), NotFound, 'configuration network "nope"'),
        (
            request(config_only=True, config_from=ConfigReference(network="nope")),
            Forbidden,
            "a configuration network cannot depend on another configuration network",
        ),
    ],
)
async def test_what_cannot_be_made_is_refused_and_leaves_nothing(
    host: Space, networks: Networks, wanted: NetworkCreateRequest, kind: type[SeacanError], words: str
) -> None:
    before = len(rt.links(host.links)), len(networks.all())
    with pytest.raises(kind) as error:
        await networks.create(wanted)
    assert words in str(error.value)
    assert (len(rt.links(host.links)), len(networks.all())) == before


async def test_overlaps_and_names_that_exist_are_refused(networks: Networks) -> None:
    await networks.create(request(IPAMConfig(subnet="10.1.0.0/16")))
    with pytest.raises(Conflict, match="network with name net already exists"):
        await networks.create(request())
    with pytest.raises(Forbidden, match="Pool overlaps with other one on this address space"):
        await networks.create(request(IPAMConfig(subnet="10.1.5.0/24"), name="other"))
    await networks.create(request(name="other"))


@pytest.mark.parametrize("scope", ["global", "whatever"])
async def test_any_scope_but_a_swarms_is_only_a_word(networks: Networks, scope: str) -> None:
    assert (await networks.create(request(scope=scope))).scope == scope


async def test_the_gateway_is_the_first_address_of_the_range(networks: Networks) -> None:
    for subnet, ip_range, expected in (
        ("10.1.0.0/24", "", "10.1.0.1"),
        ("10.2.0.0/24", "10.2.0.0/28", "10.2.0.1"),
        ("10.3.0.0/24", "10.3.0.64/28", "10.3.0.64"),
    ):
        spec = await networks.create(request(IPAMConfig(subnet=subnet, ip_range=ip_range), name=subnet[:4]))
        assert spec.pools[0].gateway == expected


async def test_a_configuration_network_is_a_template(host: Space, networks: Networks, run: Run) -> None:
    before = len(rt.links(host.links))
    await networks.create(
        request(
            IPAMConfig(subnet="10.1.0.0/24"),
            name="template",
            config_only=True,
            options={"com.docker.network.driver.mtu": "1400"},
        )
    )
    assert len(rt.links(host.links)) == before
    made = await networks.create(request(config_from=ConfigReference(network="template")))
    assert made.pools[0].subnet == "10.1.0.0/24"
    assert made.mtu == 1400
    with pytest.raises(Forbidden, match="cannot create endpoint on configuration-only network"):
        await run("one", "template")
    with pytest.raises(Forbidden, match='configuration network "template" is in use'):
        await networks.remove("template")
    await networks.remove("net")
    await networks.remove("template")


async def test_a_network_in_use_is_not_removed(host: Space, networks: Networks, run: Run) -> None:
    spec = await networks.create(request())
    _, (endpoint,) = await run("one", "net")
    with pytest.raises(Forbidden) as error:
        await networks.remove("net")
    assert str(error.value) == (
        f'error while removing network: network net has active endpoints (name:"one" id:"{endpoint.id[:12]}")'
    )
    with pytest.raises(Forbidden, match="bridge is a pre-defined network and cannot be removed"):
        await networks.remove("bridge")
    await networks.release(identifier("one"))
    await networks.remove(spec.id[:5])
    assert rt.link(host.links, spec.bridge) is None
    with pytest.raises(NotFound, match="network net not found"):
        networks.get("net")
