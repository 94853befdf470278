"""The DNS server that containers in user-defined networks find at 127.0.0.11.

It answers for its networks' containers – names, aliases, links, short ids, addresses in reverse – and forwards the
rest to the host's or the container's own servers, with a cache. Its sockets lie inside each container's namespace, on a
port of the kernel's choosing; stateless nftables rules there lead port 53 to them, so that a container may serve DNS
itself. The container's shim keeps the sockets: while the daemon restarts, questions wait in them.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import random
import secrets
import socket
import struct
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from seacan.linux import nftables as nft
from seacan.linux.netlink import NetlinkError
from seacan.network import dnswire
from seacan.network.dnswire import Malformed, Query, Reply
from seacan.network.links import inside

log = logging.getLogger(__name__)
_Address = tuple[str, int]

ADDRESS = "127.0.0.11"
TTL = 600
"""Seconds a container's address may be kept, as dockerd answers."""
_TIMEOUT = 3.0
_ATTEMPTS = 2
_MAX_FORWARDS = 1024
_MAX_CONNECTIONS = 64
_CONNECTION_IDLE = 10.0
_CACHE_SIZE = 8192
_CACHE_TTL = 3600
_BURST = 64
_TABLE = "seacan-dns"


@dataclass(frozen=True, slots=True)
class Member:
    """A container as a network's DNS knows it; ``names`` are lower-cased on learning."""

    endpoint: str
    container: str
    names: tuple[str, ...]
    ipv4: str
    ipv6: str


@dataclass(slots=True)
class _Zone:
    """The names of one network."""

    name: str
    members: dict[str, Member] = field(default_factory=dict)
    by_name: dict[str, list[Member]] = field(default_factory=dict)
    by_address: dict[str, Member] = field(default_factory=dict)

    def add(self, member: Member) -> None:
        self.remove(member.endpoint)
        self.members[member.endpoint] = member
        for name in member.names:
            self.by_name.setdefault(name.lower(), []).append(member)
        for address in (member.ipv4, member.ipv6):
            if address:
                self.by_address[address] = member

    def remove(self, endpoint: str) -> None:
        member = self.members.pop(endpoint, None)
        if member is None:
            return
        for name in member.names:
            some = self.by_name.get(name.lower(), [])
            some[:] = [one for one in some if one.endpoint != endpoint]
            if not some:
                self.by_name.pop(name.lower(), None)
        for address in (member.ipv4, member.ipv6):
            if self.by_address.get(address) is member:
                del self.by_address[address]

    def find(self, name: str) -> list[Member]:
        """The members called ``name``, with or without the network's own name behind."""
        found = self.by_name.get(name)
        if found is None and name.endswith("." + self.name):
            found = self.by_name.get(name[: -len(self.name) - 1])
        return found or []


@dataclass(slots=True)
class _Client:
    """A container that is answered."""

    container: str
    sockets: list[socket.socket]
    networks: list[str]
    links: dict[str, str]
    forward: bool
    servers: tuple[str, ...] | None
    connections: set[asyncio.Task[None]] = field(default_factory=set)


class Resolver:
    """The names of every network, and the sockets on which containers ask for them. For one event loop.

    ``servers`` gives the addresses to forward to.
    """

    def __init__(self, servers: Callable[[], Sequence[str]]) -> None:
        self._servers = servers
        self._zones: dict[str, _Zone] = {}
        self._clients: dict[str, _Client] = {}
        self._cache: OrderedDict[tuple[bytes, bool, tuple[str, ...]], tuple[float, Reply]] = OrderedDict()
        self._forwards: set[asyncio.Task[None]] = set()
        self._host_servers: tuple[float, tuple[str, ...]] = (0.0, ())

    # --- what is known ---------------------------------------------------------------------------------------------

    def learn(self, network: str, network_name: str, member: Member) -> None:
        """A container is in a network, or has other names there now."""
        zone = self._zones.get(network)
        if zone is None:
            zone = self._zones[network] = _Zone(network_name.lower())
        zone.add(member)

    def forget(self, network: str, endpoint: str) -> None:
        zone = self._zones.get(network)
        if zone is not None:
            zone.remove(endpoint)
            if not zone.members:
                del self._zones[network]

    # --- who asks --------------------------------------------------------------------------------------------------

    @staticmethod
    def open_sockets(netns: int) -> list[socket.socket]:
        """A UDP and a TCP socket for 127.0.0.11 inside ``netns``, with port 53 led to them.

        To be called from a thread that may change namespaces.
        """
        with contextlib.ExitStack() as undo, inside(netns):
            udp = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC))
            tcp = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC))
            udp.bind((ADDRESS, 0))
            tcp.bind((ADDRESS, 0))
            try:
                _redirect(udp.getsockname()[1], tcp.getsockname()[1])
            except (NetlinkError, OSError) as error:
                log.info("no nftables in the container (%s): its DNS takes port 53 itself", error)
                udp.close()
                tcp.close()
                udp = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC))
                tcp = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC))
                udp.bind((ADDRESS, 53))
                tcp.bind((ADDRESS, 53))
            tcp.listen(64)
            undo.pop_all()
        return [udp, tcp]

    def serves(self, container: str) -> bool:
        return container in self._clients

    def serve(
        self,
        container: str,
        sockets: Sequence[socket.socket],
        *,
        networks: Iterable[str],
        links: Mapping[str, str],
        forward: bool,
        servers: Sequence[str] | None,
    ) -> None:
        """Answer a container on ``sockets``, or, if it is answered already, from now on with these particulars.

        Args:
            networks: ids of the networks whose names it may ask for, in the order of preference.
            links: alias → name of another container, for it alone.
            forward: whether what is not known here may be asked of others.
            servers: whom to ask instead of the host's servers.
        """
        own = {alias.lower(): target.lower() for alias, target in links.items()}
        client = self._clients.get(container)
        if client is not None:
            client.networks, client.links, client.forward = list(networks), own, forward
            return
        client = _Client(container, list(sockets), list(networks), own, forward, tuple(servers) if servers else None)
        self._clients[container] = client
        loop = asyncio.get_running_loop()
        for sock in sockets:
            sock.setblocking(False)
            if sock.type == socket.SOCK_DGRAM:
                loop.add_reader(sock.fileno(), self._datagrams, client, sock)
            else:
                loop.add_reader(sock.fileno(), self._accept, client, sock)

    def leave(self, container: str) -> None:
        """The container has ended."""
        client = self._clients.pop(container, None)
        if client is None:
            return
        loop = asyncio.get_running_loop()
        for sock in client.sockets:
            loop.remove_reader(sock.fileno())
            sock.close()
        for task in client.connections:
            task.cancel()

    async def close(self) -> None:
        tasks = [*self._forwards, *(task for client in self._clients.values() for task in client.connections)]
        for container in list(self._clients):
            self.leave(container)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- questions -------------------------------------------------------------------------------------------------

    def _datagrams(self, client: _Client, sock: socket.socket) -> None:
        for _ in range(_BURST):
            try:
                data, address = sock.recvfrom(4096)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                log.debug("DNS of container %s: %s", client.container[:12], error)
                return
            try:
                query = dnswire.parse_query(data)
            except Malformed:
                self._send(sock, dnswire.refusal(data, dnswire.FORMERR), address)
                continue
            local = self.local(query, client.networks, client.links, limit=query.udp_size)
            if local is not None:
                self._send(sock, local, address)
            elif not client.forward:
                self._send(sock, dnswire.answer(query, code=dnswire.SERVFAIL), address)
            else:
                servers = self._servers_for(client)
                kept = self._kept(query, servers)
                if kept is not None and len(kept) <= query.udp_size:
                    self._send(sock, kept, address)
                elif len(self._forwards) >= _MAX_FORWARDS:
                    self._send(sock, dnswire.answer(query, code=dnswire.REFUSED), address)
                else:
                    self._spawn(self._forward_datagram(query, data, servers, sock, address))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._forwards.add(task)
        task.add_done_callback(self._forwards.discard)

    @staticmethod
    def _send(sock: socket.socket, data: bytes | None, address: _Address) -> None:
        if data is None:
            return
        try:
            sock.sendto(data, address)
        except OSError as error:
            log.debug("DNS answer lost: %s", error)

    async def _forward_datagram(
        self, query: Query, data: bytes, servers: tuple[str, ...], sock: socket.socket, address: _Address
    ) -> None:
        reply = await self._forward(query, data, servers, stream=False)
        if reply is None:
            result = dnswire.answer(query, code=dnswire.SERVFAIL)
        elif len(reply.data) > query.udp_size:
            result = dnswire.answer(query, [(0, bytes(65535))], limit=query.udp_size)
        else:
            result = reply.aged(query.id, 0)
        if sock.fileno() >= 0:
            self._send(sock, result, address)

    def _accept(self, client: _Client, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        sock.setblocking(False)
        if len(client.connections) >= _MAX_CONNECTIONS:
            sock.close()
            return
        task = asyncio.create_task(self._connection(client, sock))
        client.connections.add(task)
        task.add_done_callback(client.connections.discard)

    async def _connection(self, client: _Client, sock: socket.socket) -> None:
        try:
            reader, writer = await asyncio.open_connection(sock=sock)
        except OSError:
            sock.close()
            return
        try:
            while True:
                async with asyncio.timeout(_CONNECTION_IDLE):
                    (size,) = struct.unpack(">H", await reader.readexactly(2))
                    data = await reader.readexactly(size)
                result = await self._answer_stream(client, data)
                if result is None:
                    return
                writer.write(struct.pack(">H", len(result)) + result)
                await writer.drain()
        except (asyncio.IncompleteReadError, TimeoutError, OSError):
            return
        finally:
            writer.close()

    async def _answer_stream(self, client: _Client, data: bytes) -> bytes | None:
        try:
            query = dnswire.parse_query(data)
        except Malformed:
            return dnswire.refusal(data, dnswire.FORMERR)
        local = self.local(query, client.networks, client.links)
        if local is not None:
            return local
        if not client.forward:
            return dnswire.answer(query, code=dnswire.SERVFAIL)
        servers = self._servers_for(client)
        kept = self._kept(query, servers)
        if kept is not None:
            return kept
        reply = await self._forward(query, data, servers, stream=True)
        return dnswire.answer(query, code=dnswire.SERVFAIL) if reply is None else reply.aged(query.id, 0)

    def local(
        self, query: Query, networks: Sequence[str], links: Mapping[str, str], *, limit: int = 65535
    ) -> bytes | None:
        """The answer to what we know ourselves; None for what others have to be asked."""
        if query.klass != dnswire.IN:
            return None
        name = query.name
        if query.kind == dnswire.PTR:
            return self._reverse(query, networks)
        name = links.get(name, name)
        found: list[Member] = []
        for network in networks:
            zone = self._zones.get(network)
            if zone is not None and (found := zone.find(name)):
                break
        if not found:
            return None
        if query.kind == dnswire.A:
            records = [(dnswire.A, socket.inet_pton(socket.AF_INET, one.ipv4)) for one in found if one.ipv4]
        elif query.kind == dnswire.AAAA:
            records = [(dnswire.AAAA, socket.inet_pton(socket.AF_INET6, one.ipv6)) for one in found if one.ipv6]
        else:
            records = []
        if len(records) > 1:
            random.shuffle(records)
        return dnswire.answer(query, records, ttl=TTL, limit=limit)

    def _reverse(self, query: Query, networks: Sequence[str]) -> bytes | None:
        address = dnswire.reverse_address(query.name)
        if address is None:
            return None
        for network in networks:
            zone = self._zones.get(network)
            member = zone.by_address.get(address) if zone else None
            if zone is None or member is None:
                continue
            try:
                name = dnswire.encode_name(f"{member.names[0]}.{zone.name}")
            except Malformed:
                return None
            return dnswire.answer(query, [(dnswire.PTR, name)], ttl=TTL)
        return None

    # --- others ----------------------------------------------------------------------------------------------------

    def _servers_for(self, client: _Client) -> tuple[str, ...]:
        if client.servers is not None:
            return client.servers
        now = time.monotonic()
        at, servers = self._host_servers
        if now - at > 5 or not at:
            # The host's resolv.conf changes with its network: read again, though not for every question.
            servers = tuple(self._servers())
            self._host_servers = (now, servers)
        return servers

    def _kept(self, query: Query, servers: tuple[str, ...]) -> bytes | None:
        key = (query.question.lower(), query.dnssec, servers)
        found = self._cache.get(key)
        if found is None:
            return None
        at, reply = found
        age = int(time.monotonic() - at)
        if age >= min(reply.ttl, _CACHE_TTL):
            del self._cache[key]
            return None
        self._cache.move_to_end(key)
        return reply.aged(query.id, age)

    def _keep(self, query: Query, servers: tuple[str, ...], reply: Reply) -> None:
        if reply.truncated or not reply.ttl or reply.code not in (dnswire.NOERROR, dnswire.NXDOMAIN):
            return
        self._cache[query.question.lower(), query.dnssec, servers] = (time.monotonic(), reply)
        if len(self._cache) > _CACHE_SIZE:
            self._cache.popitem(last=False)

    async def _forward(self, query: Query, data: bytes, servers: tuple[str, ...], *, stream: bool) -> Reply | None:
        """Ask ``servers`` one after the other, and all of them again; None if none has an answer."""
        last: Reply | None = None
        for _ in range(_ATTEMPTS):
            for server in servers[:3]:
                try:
                    async with asyncio.timeout(_TIMEOUT):
                        ask = _ask_stream if stream else _ask_datagram
                        reply = await ask(query, data, server)
                except (OSError, TimeoutError, Malformed, asyncio.IncompleteReadError) as error:
                    log.debug("DNS server %s: %s: %s", server, type(error).__name__, error)
                    continue
                if reply.code in (dnswire.SERVFAIL, dnswire.REFUSED, dnswire.NOTIMP):
                    last = reply
                    continue
                self._keep(query, servers, reply)
                return reply
            if last is not None:
                break
        return last


def _with_id(data: bytes, id: int) -> bytes:
    return struct.pack(">H", id) + data[2:]


async def _ask_datagram(query: Query, data: bytes, server: str) -> Reply:
    """One question to one server by UDP, from a port and with an id that nobody can guess."""
    loop = asyncio.get_running_loop()
    id = secrets.randbits(16)
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sock:
        sock.connect(_destination(server))
        await loop.sock_sendall(sock, _with_id(data, id))
        while True:
            answer = await loop.sock_recv(sock, 65535)
            try:
                return dnswire.parse_reply(answer, query, id)
            except Malformed:
                continue  # not what we asked for: somebody guesses


async def _ask_stream(query: Query, data: bytes, server: str) -> Reply:
    id = secrets.randbits(16)
    host, port = _destination(server)[:2]
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(struct.pack(">H", len(data)) + _with_id(data, id))
        await writer.drain()
        (size,) = struct.unpack(">H", await reader.readexactly(2))
        return dnswire.parse_reply(await reader.readexactly(size), query, id)
    finally:
        writer.close()


def _destination(server: str) -> tuple[str, int]:
    """Where a server listens: an address, or (for tests and odd set-ups) "address#port"."""
    host, _, port = server.partition("#")
    return host, int(port) if port else 53


def _redirect(udp: int, tcp: int) -> None:
    """In the current namespace: lead 127.0.0.11:53 to our ports, and our answers' source back, without conntrack."""
    batch = nft.Batch(nft.NFPROTO_IPV4, _TABLE)
    batch.add_table()
    batch.add_chain("output", "filter", "output", -300)
    batch.flush_chain("output")
    address = ipaddress.ip_address(ADDRESS).packed
    there = nft.payload(1, 16, 4), nft.compare(address)
    back = nft.payload(1, 12, 4), nft.compare(address)
    for protocol, own, checksum in ((b"\x11", udp, 6), (b"\x06", tcp, 16)):
        is_ours = nft.meta(nft.META_L4PROTO), nft.compare(protocol)
        batch.add_rule(
            "output", *there, *is_ours, nft.payload(2, 2, 2), nft.compare(nft.port(53)),
            nft.immediate(nft.port(own)), nft.payload_set(2, 2, 2, 0, checksum),
        )  # fmt: skip
        batch.add_rule(
            "output", *back, *is_ours, nft.payload(2, 0, 2), nft.compare(nft.port(own)),
            nft.immediate(nft.port(53)), nft.payload_set(2, 0, 2, 0, checksum),
        )  # fmt: skip
    with nft.open_socket() as sock:
        try:
            nft.commit(sock, [batch])
        except NetlinkError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOENT, errno.EPERM, errno.EINVAL):
                log.warning("DNS redirection in a container: %s", error)
            raise
