"""A daemon that ends at any moment and starts again finds everything, and leaves nothing of what has gone."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
from collections.abc import Awaitable, Callable, Sequence

import pytest

from seacan.engine.config import EndpointSettings
from seacan.linux import nftables as nft
from seacan.linux import rtnetlink as rt
from seacan.network.creation import IPAM, IPAMConfig, NetworkCreateRequest
from seacan.network.firewall import FIRST_GROUP, TABLE
from seacan.network.networks import Networks

from .conftest import Run, Space, identifier

Start = Callable[..., Awaitable[Networks]]


class Store:
    """What a shim keeps, and the sandbox it tells of."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.kept: dict[str, list[int]] = {}

    async def keep(self, name: str, fds: Sequence[int]) -> None:
        self.kept[name] = [os.dup(fd) for fd in fds]

    async def fetch(self, name: str) -> list[int]:
        return [os.dup(fd) for fd in self.kept.get(name, [])]

    async def created(self) -> Space:
        return self.space


async def test_live_containers_keep_addresses_ports_and_rules(host: Space, start: Start, run: Run) -> None:
    first = await start()
    space, (endpoint,) = await run("one", ports={"80/tcp": [("", "8080")]}, on=first)
    server = space.listen(80)
    await first.close()
    assert host.reaches(server, "127.0.0.1", 8080), "no daemon, and the port is open"
    second = await start()
    await second.recover([identifier("one")])
    assert second.endpoints_of(identifier("one")) == [endpoint]
    assert host.reaches(server, "127.0.0.1", 8080)
    _, (other,) = await run("two", on=second)
    assert other.ipv4 != endpoint.ipv4
    try:
        host.listen(8080)
        raise AssertionError("the port was not held again")
    except OSError:
        pass


async def test_what_ended_meanwhile_is_released(host: Space, start: Start, run: Run) -> None:
    first = await start()
    await run("one", ports={"80/tcp": [("", "8080")]}, on=first)
    await first.close()
    second = await start()
    await second.recover([])
    assert second.endpoints_of(identifier("one")) == []
    host.listen(8080)
    with nft.open_socket() as sock:
        assert nft.elements(sock, nft.NFPROTO_INET, TABLE, "port4") == []
        assert nft.elements(sock, nft.NFPROTO_BRIDGE, TABLE, "bind4") == []


async def test_reserved_ports_and_names_are_kept_by_the_shim(
    start: Start, new_space: Callable[[], Space], host: Space
) -> None:
    from seacan.engine.config import PortBinding
    from seacan.network.model import ContainerIdentity, PortRequest

    first = await start()
    await first.create(NetworkCreateRequest(name="net"))
    space = new_space()
    store = Store(space)
    identity = ContainerIdentity(id=identifier("one"), name="one")
    asked = PortRequest(bindings={"80/tcp": [PortBinding(host_port="8080")]})
    endpoints = await first.allocate(identity, {"net": EndpointSettings()}, asked)
    await first.join(endpoints, space, store)
    await first.close()  # waits for nothing, but what was begun is done
    while not store.kept:
        second = await start()
        await second.recover({identifier("one"): store})
        await second.close()
    try:
        host.listen(8080)
        raise AssertionError("the shim does not hold the port")
    except OSError:
        pass
    question = space.socket(socket.AF_INET, socket.SOCK_DGRAM, timeout=5)
    question.connect(("127.0.0.11", 53))
    from seacan.network import dnswire

    question.send(dnswire.question("one", dnswire.A, 7))  # while no daemon runs
    third = await start()
    await third.recover({identifier("one"): store})
    answer = await asyncio.to_thread(question.recv, 512)
    assert socket.inet_aton(endpoints[0].address4) in answer


async def test_whoever_is_answered_first_is_told_of_those_recovered_later(
    start: Start, new_space: Callable[[], Space]
) -> None:
    from seacan.engine.config import PortBinding
    from seacan.network import dnswire
    from seacan.network.model import ContainerIdentity, PortRequest

    served: list[Neighbour] = []
    answers: list[bytes] = []

    class Neighbour(Store):
        """Asks for the other while no daemon runs, and expects the answer before anything of that one is fetched."""

        def asks(self, name: str) -> None:
            self.question = self.space.socket(socket.AF_INET, socket.SOCK_DGRAM, timeout=5)
            self.question.connect(("127.0.0.11", 53))
            self.question.send(dnswire.question(name, dnswire.A, 7))

        async def fetch(self, name: str) -> list[int]:
            if served and served != [self] and not answers:
                answers.append(await asyncio.to_thread(served[0].question.recv, 512))
            if name == "network-dns":
                served.append(self)
            return await super().fetch(name)

    first = await start(dns=[])
    await first.create(NetworkCreateRequest(name="net"))
    stores = {"red": Neighbour(new_space()), "blue": Neighbour(new_space())}
    addresses = {}
    for name, store in stores.items():
        identity = ContainerIdentity(id=identifier(name), name=name)
        asked = PortRequest(bindings={"80/tcp": [PortBinding()]})
        (endpoint,) = await first.allocate(identity, {"net": EndpointSettings()}, asked)
        await first.join([endpoint], store.space, store)
        addresses[name] = socket.inet_aton(endpoint.address4)
    await first.settled()
    await first.close()
    stores["red"].asks("blue")
    stores["blue"].asks("red")
    second = await start(dns=[])
    await second.recover({identifier(name): store for name, store in stores.items()})
    assert [any(address in answer for address in addresses.values()) for answer in answers] == [True]


async def test_networks_and_their_interfaces_come_back(host: Space, start: Start, run: Run) -> None:
    first = await start()
    spec = await first.create(NetworkCreateRequest(name="net", ipam=IPAM(config=[IPAMConfig(subnet="10.1.0.0/24")])))
    await first.close()
    host.links.request([rt.delete_link(host.index(spec.bridge)), rt.delete_link(host.index("seacan0"))])
    with nft.open_socket() as sock:
        batch = nft.Batch(nft.NFPROTO_INET, TABLE)
        batch.delete_table()
        nft.commit(sock, [batch])
    second = await start()
    assert second.get("net") == spec
    assert host.addresses(spec.bridge) == ["10.1.0.1/24"]
    space, (endpoint,) = await run("one", "net", on=second)
    assert host.reaches(space.listen(80), endpoint.address4, 80)


async def test_a_link_of_ours_that_belongs_to_nothing_is_removed_and_no_other(host: Space, start: Start) -> None:
    host.links.request([rt.new_bridge("br-foreign", mac="02:00:00:00:00:01")])
    host.links.request([rt.new_bridge("br-orphan", mac="02:00:00:00:00:02", group=FIRST_GROUP + 99)])
    networks = await start()
    await networks.recover([])
    await networks.settled()
    assert rt.link(host.links, "br-orphan") is None
    assert rt.link(host.links, "br-foreign") is not None
    assert rt.link(host.links, "seacan0") is not None


async def test_the_route_of_a_routed_network_that_is_no_more_is_removed_and_no_other(host: Space, start: Start) -> None:
    first = await start()
    ipam = IPAM(config=[IPAMConfig(subnet="10.1.0.0/24")])
    await first.create(NetworkCreateRequest(name="net", driver="routed", ipam=ipam))
    await first.close()
    orphan, foreign = ipaddress.ip_network("10.2.0.0/24"), ipaddress.ip_network("10.3.0.0/24")
    unreachable = rt.RTN_UNREACHABLE
    host.links.request([rt.new_route(orphan, route_type=unreachable, metric=0x7FFFFFFF)])
    host.links.request([rt.new_route(foreign, route_type=unreachable, metric=100)])
    second = await start()
    await second.recover([])
    left = {str(route.destination) for route in rt.routes(host.links) if route.kind == unreachable}
    assert left & {"10.1.0.0/24", "10.2.0.0/24", "10.3.0.0/24"} == {"10.1.0.0/24", "10.3.0.0/24"}


async def test_a_link_disappears_with_the_containers_namespace(
    host: Space, start: Start, run: Run, new_space: Callable[[], Space]
) -> None:
    networks = await start()
    before = len(rt.links(host.links))
    from .conftest import Space as Namespace

    space = Namespace()
    from seacan.network.model import ContainerIdentity, PortRequest

    identity = ContainerIdentity(id=identifier("one"), name="one")
    endpoints = await networks.allocate(identity, {"bridge": EndpointSettings()}, PortRequest())
    await networks.join(endpoints, space)
    assert len(rt.links(host.links)) == before + 1
    await networks.release(identifier("one"))
    space.close()
    import asyncio

    for _ in range(100):
        if len(rt.links(host.links)) == before:
            break
        await asyncio.sleep(0.05)
    assert len(rt.links(host.links)) == before


async def test_elements_that_somebody_removed_are_stated_anew(host: Space, start: Start, run: Run) -> None:
    networks = await start()
    space, _ = await run("one", ports={"80/tcp": [("", "8080")]}, on=networks)
    server = space.listen(80)
    with nft.open_socket() as sock:
        batch = nft.Batch(nft.NFPROTO_INET, TABLE)
        batch.flush_set("port4")
        nft.commit(sock, [batch])
    assert host.reaches(server, "127.0.0.1", 8080) is None
    await run("two", ports={"81/tcp": [("", "8081")]}, on=networks)
    await networks.release(identifier("two"))
    with nft.open_socket() as sock:
        batch = nft.Batch(nft.NFPROTO_BRIDGE, TABLE)
        batch.flush_set("bind4")
        nft.commit(sock, [batch])
    await run("three", on=networks)
    await networks.release(identifier("three"))
    assert networks.endpoints_of(identifier("three")) == []
    with nft.open_socket() as sock:
        batch = nft.Batch(nft.NFPROTO_BRIDGE, TABLE)
        batch.flush_set("bind4")
        nft.commit(sock, [batch])
    await networks.release(identifier("one"))
    assert networks.endpoints_of(identifier("one")) == []


async def test_the_default_network_follows_the_daemons_options(host: Space, start: Start) -> None:
    first = await start()
    id = first.get("bridge").id
    await first.close()
    second = await start(bip="10.77.0.1/24", mtu=1400)
    spec = second.get("bridge")
    assert spec.id == id
    assert host.addresses("seacan0") == ["10.77.0.1/24"]
    assert spec.options["com.docker.network.driver.mtu"] == "1400"
    await second.close()
    third = await start(bridge="none")
    assert third.find("bridge") is None
    assert rt.link(host.links, "seacan0") is None


async def test_an_existing_bridge_is_used_and_never_deleted(host: Space, start: Start, run: Run) -> None:
    import ipaddress

    host.links.request([rt.new_bridge("br0", mac="02:00:00:00:00:01")])
    host.links.request(
        [
            rt.set_link(host.index("br0"), up=True),
            rt.new_address(host.index("br0"), ipaddress.ip_interface("10.88.0.1/24")),
        ]
    )
    networks = await start(bridge="br0")
    _, (endpoint,) = await run("one", on=networks)
    assert endpoint.ipv4 == "10.88.0.2/24"
    await networks.release(identifier("one"))
    await networks.close()
    await start(bridge="none")
    assert host.addresses("br0")


async def test_links_and_own_dns_servers_outlive_the_daemon(host: Space, start: Start, run: Run) -> None:
    first = await start(icc=False)
    database, (endpoint,) = await run("db", exposed=["80/tcp"], on=first)
    app, _ = await run("app", links={"database": identifier("db")}, on=first)
    server = database.listen(80)
    assert app.reaches(server, endpoint.address4, 80)
    await first.close()
    second = await start(icc=False)
    await second.recover([identifier("db"), identifier("app")])
    assert app.reaches(server, endpoint.address4, 80)


async def test_a_container_reaches_its_own_port_where_bridged_packets_pass_a_foreign_firewall(
    host: Space, start: Start, run: Run
) -> None:
    switch = "/proc/sys/net/bridge/bridge-nf-call-iptables"
    try:
        host.write(switch, "1")
    except FileNotFoundError:
        pytest.skip("this kernel has no br_netfilter loaded")
    with nft.open_socket() as sock:
        batch = nft.Batch(nft.NFPROTO_INET, "foreign")
        batch.add_table()
        batch.add_chain("forward", "filter", "forward", 0)
        nft.commit(sock, [batch])
    networks = await start()
    host.write(switch, "1")
    networks._kernel_links.hairpin = True  # the fixture's first daemon came before the foreign rules
    space, _ = await run("one", ports={"80/tcp": [("", "8080")]}, on=networks)
    other, _ = await run("two", on=networks)
    server = space.listen(80)
    assert space.reaches(server, "172.17.0.1", 8080)
    assert other.reaches(server, "172.17.0.1", 8080)


async def test_a_namespace_without_a_socket_inside_is_entered(
    host: Space, start: Start, new_space: Callable[[], Space]
) -> None:
    """An external runtime hands over the namespace alone."""
    from seacan.network.model import ContainerIdentity, PortRequest

    class Bare:
        def __init__(self, space: Space) -> None:
            self.pid, self.netns, self.rtnl = 1, space.netns, None

    networks = await start()
    space = new_space()
    identity = ContainerIdentity(id=identifier("one"), name="one")
    endpoints = await networks.allocate(identity, {"bridge": EndpointSettings()}, PortRequest())
    await networks.join(endpoints, Bare(space))
    assert host.reaches(space.listen(80), endpoints[0].address4, 80)


async def test_a_wide_range_of_ports_is_kept_whole(host: Space, start: Start, new_space: Callable[[], Space]) -> None:
    from seacan.engine.config import PortBinding
    from seacan.network.model import ContainerIdentity, PortRequest

    first = await start()
    space = new_space()
    store = Store(space)
    identity = ContainerIdentity(id=identifier("one"), name="one")
    bindings = {f"{port}/tcp": [PortBinding(host_port=str(port))] for port in range(8000, 8150)}
    endpoints = await first.allocate(identity, {"bridge": EndpointSettings()}, PortRequest(bindings=bindings))
    await first.join(endpoints, space, store)
    await first.settled()
    await first.close()
    assert sum(map(len, store.kept.values())) == 300
    second = await start()
    await second.recover({identifier("one"): store})
    assert len(second._attachments[identifier("one")].reservation.sockets) == 300
