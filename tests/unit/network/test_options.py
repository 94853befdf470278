"""The daemon's flags for networks do what dockerd's do."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest

from seacan.errors import InvalidParameter
from seacan.linux import nftables as nft
from seacan.network.networks import Networks

from .conftest import Run, Space

Start = Callable[..., Awaitable[Networks]]


async def test_without_firewall_rules_ports_are_passed_on_by_the_daemon(host: Space, start: Start, run: Run) -> None:
    networks = await start(iptables=False, ip6tables=False)
    with nft.open_socket() as sock:
        nft.commit(sock, [])
        assert [chain for chain in nft.chains(sock) if chain.table == "seacan"] == []
    space, _ = await run("one", ports={"80/tcp": [("", "8080")]}, on=networks)
    server = space.listen(80)
    for address in ("127.0.0.1", "::1"):
        client = host.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, (address, 8080))
        served, _ = await asyncio.to_thread(server.accept)
        served.send(b"hello")
        assert await asyncio.get_running_loop().sock_recv(client, 10) == b"hello"
        served.close()


async def test_only_half_of_the_rules_is_refused(host: Space, start: Start) -> None:
    with pytest.raises(InvalidParameter, match="ip6tables=false"):
        await start(ip6tables=False)


async def test_without_the_proxy_nothing_is_published_at_ipv6_addresses_of_an_ipv4_container(
    host: Space, start: Start, run: Run
) -> None:
    networks = await start(userland_proxy=False)
    space, (endpoint,) = await run("one", ports={"80/tcp": [("", "8080")]}, on=networks)
    assert [port.host_ip for port in endpoint.ports] == ["0.0.0.0"]
    assert host.reaches(space.listen(80), "127.0.0.1", 8080)


async def test_direct_routing_is_allowed_on_request(
    host: Space, start: Start, run: Run, new_space: Callable[[], Space]
) -> None:
    networks = await start(allow_direct_routing=True)
    outside = new_space()
    host.wire(outside, "192.0.2.1/24", "192.0.2.9/24")
    outside.route("172.17.0.0/16", "192.0.2.1")
    space, (endpoint,) = await run("one", on=networks)
    assert outside.reaches(space.listen(80), endpoint.address4, 80) == "192.0.2.9"


async def test_ports_without_an_address_open_where_the_daemon_says(host: Space, start: Start, run: Run) -> None:
    networks = await start(ip="127.0.0.1")
    space, _ = await run("one", ports={"80/tcp": [("", "8080")]}, on=networks)
    server = space.listen(80)
    assert host.reaches(server, "127.0.0.1", 8080)
    assert host.reaches(server, "172.17.0.1", 8080) is None
