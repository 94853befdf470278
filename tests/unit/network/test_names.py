"""127.0.0.11 answers a container's questions: its neighbours' names itself, the rest through others."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable

import pytest

from seacan.engine.config import EndpointSettings
from seacan.network import dnswire
from seacan.network.creation import NetworkCreateRequest
from seacan.network.model import ContainerIdentity
from seacan.network.networks import Networks

from .conftest import Run, Space, identifier

RESOLVER = ("127.0.0.11", 53)


def parse(data: bytes) -> tuple[int, list[tuple[int, bytes]]]:
    """Response code, and (type, data) of the answers."""
    _, flags, questions, answers, _, _ = struct.unpack_from(">HHHHHH", data)
    offset = 12
    for _ in range(questions):
        offset = dnswire._skip_name(data, offset) + 4
    records = []
    for _ in range(answers):
        offset = dnswire._skip_name(data, offset)
        kind, _, _, size = struct.unpack_from(">HHIH", data, offset)
        records.append((kind, data[offset + 10 : offset + 10 + size]))
        offset += 10 + size
    return flags & 15, records


async def ask(space: Space, name: str, kind: int = dnswire.A, *, tcp: bool = False, edns: bool = False) -> bytes:
    loop = asyncio.get_running_loop()
    sock = space.socket(socket.AF_INET, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)
    sock.setblocking(False)
    question = dnswire.question(name, kind, 4711, edns=edns)
    async with asyncio.timeout(5):
        with sock:
            await loop.sock_connect(sock, RESOLVER)
            if not tcp:
                await loop.sock_sendall(sock, question)
                return await loop.sock_recv(sock, 65535)
            await loop.sock_sendall(sock, struct.pack(">H", len(question)) + question)
            data = b""
            while len(data) < 2 or len(data) < 2 + struct.unpack_from(">H", data)[0]:
                data += await loop.sock_recv(sock, 65535)
            return data[2:]


async def addresses(space: Space, name: str, kind: int = dnswire.A, *, tcp: bool = False) -> set[str]:
    family = socket.AF_INET if kind == dnswire.A else socket.AF_INET6
    _, records = parse(await ask(space, name, kind, tcp=tcp))
    return {socket.inet_ntop(family, data) for got, data in records if got == kind}


@pytest.fixture
async def net(networks: Networks) -> Networks:
    await networks.create(NetworkCreateRequest(name="net", enable_ipv6=True))
    return networks


async def test_every_name_of_a_container_is_answered_in_both_families(net: Networks, run: Run) -> None:
    asked = {"net": EndpointSettings(aliases=["Alias", "other.alias"])}
    one, (first,) = await run("web", settings=asked)
    two, _ = await run("app", "net")
    for name in ("web", "WEB", "alias", "other.alias", identifier("web")[:12], "web.net", "alias.net"):
        assert await addresses(two, name) == {first.address4}, name
        assert await addresses(two, name, dnswire.AAAA) == {first.address6}, name
        assert await addresses(two, name, tcp=True) == {first.address4}, name
    assert await addresses(one, "web") == {first.address4}


async def test_an_alias_of_several_containers_has_all_their_addresses_in_changing_order(
    net: Networks, run: Run
) -> None:
    asked = {"net": EndpointSettings(aliases=["service"])}
    members = {(await run(f"c{n}", settings=asked))[1][0].address4 for n in range(3)}
    client, _ = await run("client", "net")
    assert await addresses(client, "service") == members
    firsts = {parse(await ask(client, "service"))[1][0][1] for _ in range(60)}
    assert len(firsts) == 3
    await net.release(identifier("c0"))
    assert len(await addresses(client, "service")) == 2


async def test_addresses_are_answered_in_reverse(net: Networks, run: Run) -> None:
    client, (endpoint,) = await run("web", "net")
    name = ".".join(reversed(endpoint.address4.split("."))) + ".in-addr.arpa"
    _, ((kind, data),) = parse(await ask(client, name, dnswire.PTR))
    assert (kind, data) == (dnswire.PTR, b"\3web\3net\0")
    nibbles = ".".join(reversed(socket.inet_pton(socket.AF_INET6, endpoint.address6).hex())) + ".ip6.arpa"
    assert parse(await ask(client, nibbles, dnswire.PTR))[1] == [(dnswire.PTR, b"\3web\3net\0")]


async def test_a_link_is_a_name_for_one_container_alone(net: Networks, run: Run) -> None:
    _, (db,) = await run("database", "net")
    app, _ = await run("app", settings={"net": EndpointSettings(links=["database:db"])})
    other, _ = await run("other", "net")
    assert await addresses(app, "db") == {db.address4}
    assert await addresses(other, "db") == set()


async def test_names_of_other_networks_are_unknown(net: Networks, run: Run) -> None:
    await net.create(NetworkCreateRequest(name="far"))
    await run("web", "far")
    client, _ = await run("client", "net")
    assert await addresses(client, "web") == set()


async def test_the_default_network_has_no_names(net: Networks, run: Run) -> None:
    client, _ = await run("client")
    with pytest.raises((OSError, TimeoutError)):
        await ask(client, "client")


async def test_a_rename_is_a_new_name(net: Networks, run: Run) -> None:
    _, (endpoint,) = await run("web", "net")
    client, _ = await run("client", "net")
    await net.rename(identifier("web"), "site")
    assert await addresses(client, "site") == {endpoint.address4}
    assert await addresses(client, "web") == set()


async def test_connecting_brings_names_and_disconnecting_takes_them(net: Networks, run: Run) -> None:
    _, (web,) = await run("web", "net")
    client, _ = await run("client")
    identity = ContainerIdentity(id=identifier("client"), name="client")
    await net.connect(identity, "net", EndpointSettings(), client)
    assert await addresses(client, "web") == {web.address4}
    await net.disconnect(identifier("client"), "net", client)
    assert await addresses(client, "web") == set()


async def test_a_container_may_serve_dns_itself(net: Networks, run: Run) -> None:
    space, (endpoint,) = await run("dns", "net")
    own = space.bound(53)
    space.listen(53)
    client, _ = await run("client", "net")
    assert client.asks(own, endpoint.address4, 53)
    assert await addresses(space, "client")


async def test_a_known_name_has_no_address_of_a_family_it_lacks(networks: Networks, run: Run) -> None:
    await networks.create(NetworkCreateRequest(name="four"))
    client, _ = await run("web", "four")
    assert parse(await ask(client, "web", dnswire.AAAA)) == (dnswire.NOERROR, [])
    assert parse(await ask(client, "web", 15)) == (dnswire.NOERROR, [])


class Upstream(asyncio.DatagramProtocol):
    """A DNS server that knows whatever it is told, and counts."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.silent = False
        self.truncate = False
        self.code = dnswire.NOERROR

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def reply(self, data: bytes) -> bytes:
        query = dnswire.parse_query(data)
        self.asked.append(query.name)
        records = [] if self.code else [(dnswire.A, b"\x0a\x00\x00\x63")]
        return dnswire.answer(query, records, code=self.code, ttl=60)

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        if self.silent:
            return
        reply = self.reply(data)
        if self.truncate:
            reply = reply[:2] + bytes([reply[2] | 2]) + reply[3:12]
            reply = reply[:6] + b"\0\0" + reply[8:] + dnswire.parse_query(data).question
        # Somebody else guesses first, and wrongly.
        self.transport.sendto(b"\0\0" + reply[2:], address)  # type: ignore[attr-defined]
        self.transport.sendto(reply, address)  # type: ignore[attr-defined]

    async def stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (size,) = struct.unpack(">H", await reader.readexactly(2))
        reply = self.reply(await reader.readexactly(size))
        writer.write(struct.pack(">H", len(reply)) + reply)
        writer.close()


@pytest.fixture
async def upstream(host: Space) -> AsyncIterator[Upstream]:
    loop = asyncio.get_running_loop()
    server = Upstream()
    transport, _ = await loop.create_datagram_endpoint(lambda: server, local_addr=("127.0.0.1", 5300))
    listener = await asyncio.start_server(server.stream, "127.0.0.1", 5300)
    yield server
    transport.close()
    listener.close()


async def forwarding(networks: Networks, run: Run, servers: list[str]) -> Space:
    await networks.create(NetworkCreateRequest(name="out"))
    networks._options.dns = servers
    client, _ = await run("client", "out")
    return client


async def test_the_rest_is_asked_of_others_and_kept(networks: Networks, run: Run, upstream: Upstream) -> None:
    client = await forwarding(networks, run, ["127.0.0.1#5300"])
    assert await addresses(client, "example.org") == {"10.0.0.99"}
    assert await addresses(client, "EXAMPLE.org") == {"10.0.0.99"}
    assert await addresses(client, "example.org", tcp=True) == {"10.0.0.99"}
    assert upstream.asked == ["example.org"]
    assert await addresses(client, "tcp.example.org", tcp=True) == {"10.0.0.99"}


async def test_a_failing_server_is_passed_over(networks: Networks, run: Run, upstream: Upstream) -> None:
    client = await forwarding(networks, run, ["127.0.0.1#5999", "127.0.0.1#5300"])
    assert await addresses(client, "example.org") == {"10.0.0.99"}


async def test_what_nobody_answers_fails(
    networks: Networks, run: Run, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seacan.network.resolver._TIMEOUT", 0.1)
    client = await forwarding(networks, run, ["127.0.0.1#5300"])
    upstream.silent = True
    assert parse(await ask(client, "example.org")) == (dnswire.SERVFAIL, [])
    upstream.silent = False
    upstream.code = dnswire.NXDOMAIN
    assert parse(await ask(client, "example.org")) == (dnswire.NXDOMAIN, [])


async def test_a_truncated_answer_is_passed_on_as_such_and_whole_by_tcp(
    networks: Networks, run: Run, upstream: Upstream
) -> None:
    client = await forwarding(networks, run, ["127.0.0.1#5300"])
    upstream.truncate = True
    answer = await ask(client, "big.example.org")
    assert struct.unpack_from(">H", answer, 2)[0] & 0x0200
    assert await addresses(client, "big.example.org", tcp=True) == {"10.0.0.99"}


async def test_an_internal_network_asks_nobody(networks: Networks, run: Run, upstream: Upstream) -> None:
    await networks.create(NetworkCreateRequest(name="inner", internal=True))
    networks._options.dns = ["127.0.0.1#5300"]
    client, _ = await run("client", "inner")
    assert parse(await ask(client, "example.org")) == (dnswire.SERVFAIL, [])
    assert upstream.asked == []


async def test_garbage_does_not_stop_the_answers(net: Networks, run: Run, new_space: Callable[[], Space]) -> None:
    client, (endpoint,) = await run("web", "net")
    sock = client.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect(RESOLVER)
    for size in range(0, 300, 7):
        sock.send(bytes(range(256))[: size % 256] * 2)
    stream = client.socket(socket.AF_INET, socket.SOCK_STREAM)
    stream.setblocking(False)
    await asyncio.get_running_loop().sock_connect(stream, RESOLVER)
    await asyncio.get_running_loop().sock_sendall(stream, b"\0\5abc")
    assert await addresses(client, "web") == {endpoint.address4}
    assert await addresses(client, "web", tcp=True) == {endpoint.address4}
