"""Networks: the one way in to everything that connects containers.

:class:`Networks` keeps what the state database, the kernel and the DNS resolver know in step. Decisions and the
database belong to the event loop's thread; whatever speaks netlink runs in a thread of its own, one change at a time,
so that a busy kernel never holds up the API. A change is recorded before it is made and made before it is told; what a
crash leaves half done is found by :meth:`Networks.recover`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TypeVar

import msgspec

from seacan.engine.config import EndpointSettings, HostConfig, PortBinding
from seacan.engine.options import EngineOptions
from seacan.errors import Conflict, Forbidden, InvalidParameter, NotFound, SeacanError, System
from seacan.linux import nftables, rtnetlink
from seacan.linux.netlink import NetlinkError
from seacan.network import creation, fastpath, files, host, ipam
from seacan.network import endpoints as endpoints_
from seacan.network.creation import NetworkCreateRequest
from seacan.network.firewall import Entry, Firewall, endpoint_entries, link_entries, network_entries, port_entries
from seacan.network.ipam import Database
from seacan.network.links import Join, Links, parent_name
from seacan.network.model import (
    BRIDGE_NAME,
    DEFAULT_BRIDGE,
    ENABLE_ICC,
    ENABLE_MASQUERADE,
    HOST_BINDING_IPV4,
    MTU,
    ContainerIdentity,
    DescriptorStore,
    Endpoint,
    IPAMPool,
    IPNetwork,
    NetworkSettings,
    NetworkSpec,
    PortRequest,
    PublishedPort,
    Sandbox,
)
from seacan.network.ports import Place, Ports, Reservation, open_up, parse_port, place, place_of, resolve, shut
from seacan.network.relay import Relay
from seacan.network.resolver import Member, Resolver

log = logging.getLogger(__name__)
T = TypeVar("T")

DEFAULT_BRIDGE_NAME = "seacan0"
_PORTS = "network-ports"
_DNS = "network-dns"
_AT_ONCE = 128
_IDLE = 0.25
"""Seconds without a start after which there is time for what holds the kernel up."""
_STATE = (
    "CREATE TABLE network_state (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;",
    "ALTER TABLE network_endpoint ADD COLUMN created INTEGER NOT NULL DEFAULT 0;",
)


@dataclass(slots=True)
class _Attachment:
    """What is held for one container while it runs."""

    identity: ContainerIdentity
    request: PortRequest = field(default_factory=PortRequest)
    endpoints: list[Endpoint] = field(default_factory=list)
    reservation: Reservation = field(default_factory=Reservation)
    relays: dict[Place, Relay] = field(default_factory=dict)
    store: DescriptorStore | None = None
    dns_servers: tuple[str, ...] | None = None
    links: dict[str, str] = field(default_factory=dict)
    """Alias → id of the container linked to (default network)."""


@dataclass(frozen=True, slots=True)
class NameFiles:
    """The texts of a container's /etc/hostname, /etc/hosts and /etc/resolv.conf."""

    hostname: str
    hosts: str
    resolv_conf: str


class Networks:
    """Every network of an engine, and every container's place in them.

    Use from one event loop. ``database`` is the engine's; ``engine_id`` seeds the engine's own IPv6 prefix.
    """

    def __init__(self, database: Database, options: EngineOptions, *, engine_id: str = "") -> None:
        if not options.ip6tables and options.iptables:
            raise InvalidParameter(
                "ip6tables=false is only possible together with iptables=false: our rules are for both"
            )
        self._db = database
        self._options = options
        self._db.migrate("network", (*ipam.SCHEMA, *_STATE))
        self._address_pools = creation.address_pools(
            [(pool.base, pool.size) for pool in options.default_address_pools], engine_id or self._own_id()
        )
        self._networks: dict[str, NetworkSpec] = {}
        self._names: dict[str, str] = {}
        self._members: dict[str, dict[str, Endpoint]] = {}
        self._attachments: dict[str, _Attachment] = {}
        self._ports = Ports()
        self._kernel = ThreadPoolExecutor(max_workers=1, thread_name_prefix="network")
        self._cleanup = ThreadPoolExecutor(max_workers=1, thread_name_prefix="network-cleanup")
        self._links: Links | None = None
        self._cleaner: Links | None = None
        self._firewall: Firewall | None = None
        self._resolver = Resolver(self._upstream_servers)
        self._creating = asyncio.Lock()
        self._claim: socket.socket | None = None
        self._background: set[asyncio.Task[None]] = set()
        self._attaching: asyncio.Task[None] | None = None
        self._monitor: socket.socket | None = None
        self._joined = 0.0
        """When a container was last put into a network, as time.monotonic tells it."""
        self._forwarding_is_ours: frozenset[int] = frozenset()
        """The IP versions that the host forwards only because we made it."""
        self._ipv6_host = host.has_ipv6()

    def _own_id(self) -> str:
        value = self._state("id")
        if value is None:
            value = secrets.token_hex(16)
            self._set_state("id", value)
        return value

    def _state(self, key: str) -> str | None:
        row = self._db.execute("SELECT value FROM network_state WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def _set_state(self, key: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO network_state (key, value) VALUES (?, ?)", (key, value))

    # --- life ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Read what is stored, make the predefined networks, and bring interfaces and rules up to date.

        A network whose interface cannot be made is logged and stays without it; its containers then cannot start.
        """
        self._claim = host.claim()
        if self._claim is None:
            log.warning(
                "another engine manages networks on this host: they will spoil each other's rules and addresses"
            )
        self._links = Links()
        self._cleaner = Links()
        self._firewall = Firewall(
            nftables.open_socket(), enabled=self._options.iptables, direct=self._options.allow_direct_routing
        )
        for (text,) in self._db.execute("SELECT spec FROM network").fetchall():
            self._know(msgspec.json.decode(text, type=NetworkSpec))
        for (text,) in self._db.execute("SELECT data FROM network_endpoint ORDER BY created").fetchall():
            endpoint = msgspec.json.decode(text, type=Endpoint)
            self._members.setdefault(endpoint.network, {})[endpoint.id] = endpoint
            attachment = self._attachments.get(endpoint.container)
            if attachment is None:
                identity = ContainerIdentity(
                    id=endpoint.container, name=endpoint.container_name, hostname=endpoint.hostname
                )
                attachment = self._attachments[endpoint.container] = _Attachment(identity)
                attachment.links, attachment.dns_servers = dict(endpoint.linked), endpoint.dns or None
            attachment.endpoints.append(endpoint)
        await self._restate()
        self._links.hairpin = await self._run(host.spare_bridges, self._firewall.socket)
        await self._predefine()
        self._enable_forwarding()
        for spec in list(self._networks.values()):
            try:
                await self._run(self._links.ensure, spec)
            except (SeacanError, OSError) as error:
                log.error("network %s: %s", spec.name, error)
        await self._restate()
        await self._restate_fast_path()
        self._monitor = nftables.open_monitor(self._firewall.socket)
        asyncio.get_running_loop().add_reader(self._monitor, self._rules_changed)

    def _rules_changed(self) -> None:
        """Somebody else's rules have changed: perhaps they are about bridged packets now."""
        if self._monitor is None:
            return
        with contextlib.suppress(BlockingIOError):
            while True:
                try:
                    self._monitor.recv(1 << 16)
                except OSError as error:
                    if error.errno != errno.ENOBUFS:  # more than the socket holds: it is the change that counts
                        raise
        self._spawn(self._review_fast_path())

    async def _review_fast_path(self) -> None:
        fast_path = self._kernel_links.fast_path
        if self._options.iptables and fast_path.possible:
            obstructed = await self._run(fastpath.obstacle, self._rules.socket) is not None
            if obstructed is fast_path.active:
                await self._restate_fast_path()

    async def close(self) -> None:
        """Stop answering; containers, rules and interfaces stay as they are."""
        if self._monitor is not None:
            asyncio.get_running_loop().remove_reader(self._monitor)
            self._monitor.close()
            self._monitor = None
        tasks = [*self._background, *([self._attaching] if self._attaching else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._resolver.close()
        for attachment in self._attachments.values():
            for relay in attachment.relays.values():
                relay.close()
            self._ports.release(attachment.reservation)
        self._kernel.shutdown(wait=True)
        self._cleanup.shutdown(wait=True)
        for links in (self._links, self._cleaner):
            if links is not None:
                links.close()
        if self._claim is not None:
            self._claim.close()

    async def recover(self, live: Collection[str] | Mapping[str, DescriptorStore | None]) -> None:
        """Compare what is recorded with what lives: ``live`` has the ids of the containers that still run, with
        their descriptor stores.

        Endpoints of others are released, ports of the living are held again, rules are stated anew, and links of ours
        that belong to nobody are deleted.
        """
        stores: Mapping[str, DescriptorStore | None] = live if isinstance(live, Mapping) else dict.fromkeys(live)
        for container in [one for one in self._attachments if one not in stores]:
            self._forget_endpoints(container)
        # All names first: whoever is answered already would be told that its neighbours do not exist.
        for attachment in self._attachments.values():
            for endpoint in attachment.endpoints:
                self._tell_names(endpoint)
        for container, attachment in tuple(self._attachments.items()):
            attachment.store = stores[container]
            await self._hold_ports(attachment)
            await self._resume_names(attachment)
        await self._restate()
        await self._restate_fast_path()
        # They are found before anybody can ask for a network: a link just made is in no list of ours yet.
        endpoints = [endpoint for one in self._attachments.values() for endpoint in one.endpoints]
        networks = list(self._networks.values())
        for subnet in await self._run(self._kernel_links.withdraw_orphans, networks):
            log.info("removed the route of %s, which belongs to no network", subnet)
        self._spawn(self._remove_orphans(await self._run(self._kernel_links.orphans, networks, endpoints)))

    async def _run(self, function: Callable[..., T], *arguments: object) -> T:
        """Call ``function`` in the thread that speaks netlink."""
        return await asyncio.get_running_loop().run_in_executor(self._kernel, function, *arguments)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._done)

    async def settled(self) -> None:
        """Wait until nothing goes on in the background: sockets handed to shims, interfaces tidied away."""
        while self._background or self._attaching:
            tasks = [*self._background, *([self._attaching] if self._attaching else [])]
            await asyncio.gather(*tasks, return_exceptions=True)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("network: %s", error)

    @property
    def _kernel_links(self) -> Links:
        if self._links is None:
            raise System("the engine's networks have not been started")
        return self._links

    @property
    def _rules(self) -> Firewall:
        if self._firewall is None:
            raise System("the engine's networks have not been started")
        return self._firewall

    async def _restate(self) -> None:
        endpoints = [endpoint for one in self._attachments.values() for endpoint in one.endpoints]
        extra = [entry for one in self._attachments.values() for entry in self._link_entries(one)]
        firewall = self._rules
        try:
            await self._run(
                lambda: firewall.restate(self._networks, endpoints, extra, forwarding_is_ours=self._forwarding_is_ours)
            )
        except NetlinkError as error:
            raise System(f"cannot write the nftables rules of the engine's networks: {error}") from error

    async def _restate_fast_path(self) -> None:
        endpoints = [endpoint for one in self._attachments.values() for endpoint in one.endpoints]
        await self._run(self._fit_fast_path, endpoints)
        self._attach_fast_path()

    def _fit_fast_path(self, endpoints: Sequence[Endpoint]) -> None:
        obstacle = "there are no rules" if not self._options.iptables else fastpath.obstacle(self._rules.socket)
        if obstacle is not None:
            log.info("packets between containers go by the bridge: %s", obstacle)
        self._kernel_links.fast_path.restate(self._networks, endpoints, wanted=obstacle is None)

    def _attach_fast_path(self) -> None:
        """See to links that wait for the fast path, once no container has been started for a while."""
        if self._attaching is None and self._kernel_links.fast_path.waiting:
            self._attaching = asyncio.create_task(self._attach_when_idle())
            self._attaching.add_done_callback(self._attached)

    def _attached(self, task: asyncio.Task[None]) -> None:
        self._attaching = None
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("network: %s", error)

    async def _attach_when_idle(self) -> None:
        fast_path = self._kernel_links.fast_path
        while fast_path.waiting:
            await asyncio.sleep(max(0, self._joined + _IDLE - time.monotonic()))
            await self._run(fast_path.attach)

    async def _change(
        self, add: Sequence[Entry] = (), remove: Sequence[Entry] = (), gone: Sequence[Endpoint] = ()
    ) -> None:
        """Change the firewall's elements; if they are not what we think they are, state all of them anew.

        Endpoints that are ``gone`` leave the fast path first.
        """
        if not add and not remove:
            return
        firewall, fast_path = self._rules, self._kernel_links.fast_path
        leaving = [(self._networks[one.network], one) for one in gone]

        def change() -> None:
            for spec, endpoint in leaving:
                fast_path.disconnect(spec, endpoint)
            firewall.change(add, remove)

        try:
            await self._run(change)
        except NetlinkError as error:
            log.warning("nftables elements are not as expected (%s): writing all of them anew", error)
            await self._restate()

    async def _remove_orphans(self, names: Sequence[str]) -> None:
        cleaner = self._cleaner
        if cleaner is None:
            return
        for name in names:
            log.info("removing the link %s, which belongs to nothing", name)
            await asyncio.get_running_loop().run_in_executor(self._cleanup, cleaner.remove, name)

    def _enable_forwarding(self) -> None:
        """Let the host forward packets. Where it did not before, our rules keep it from forwarding anything else."""
        needed = {4}
        if any(spec.pools_of(6) for spec in self._networks.values() if spec.driver in ("bridge", "routed")):
            needed.add(6)
        here = host.namespace()
        for version in sorted(needed) if self._options.ip_forward else ():
            if not host.forwards(version):
                self._set_state(f"forwarding{version}", here)
                host.forward(version)
        self._forwarding_is_ours = frozenset(
            version for version in (4, 6) if self._state(f"forwarding{version}") == here
        )

    # --- networks --------------------------------------------------------------------------------------------------

    def _know(self, spec: NetworkSpec) -> None:
        self._networks[spec.id] = spec
        self._names[spec.name] = spec.id
        self._members.setdefault(spec.id, {})

    def _unknow(self, spec: NetworkSpec) -> None:
        self._networks.pop(spec.id, None)
        self._names.pop(spec.name, None)
        self._members.pop(spec.id, None)

    def all(self) -> list[NetworkSpec]:
        """Every network, in the order of their making."""
        return sorted(self._networks.values(), key=lambda spec: (spec.created, spec.number))

    def get(self, reference: str) -> NetworkSpec:
        """The network with that id, name, or unique beginning of an id.

        Raises:
            NotFound: there is none. InvalidParameter: the beginning is not unique.
        """
        if not reference:
            raise InvalidParameter("invalid name: name is empty")
        spec = self._networks.get(reference) or self._networks.get(self._names.get(reference, ""))
        if spec is not None:
            return spec
        found = [spec for id, spec in self._networks.items() if id.startswith(reference)]
        if len(found) > 1:
            raise InvalidParameter(f"network {reference} is ambiguous ({len(found)} matches found based on ID prefix)")
        if not found:
            raise NotFound(f"network {reference} not found")
        return found[0]

    def find(self, reference: str) -> NetworkSpec | None:
        """The network with that very id or name; None if there is none."""
        return self._networks.get(reference) or self._networks.get(self._names.get(reference, ""))

    def check_settings(self, spec: NetworkSpec, asked: EndpointSettings) -> None:
        """Find out what can be wrong with a container's wishes in a network before it starts.

        Raises:
            InvalidParameter: in dockerd's words.
        """
        endpoints_.check_settings(spec, asked)

    def endpoints_in(self, network: str) -> list[Endpoint]:
        """The endpoints in the network with that id."""
        return list(self._members.get(network, {}).values())

    def endpoints_of(self, container: str) -> list[Endpoint]:
        """The endpoints of a running container."""
        attachment = self._attachments.get(container)
        return list(attachment.endpoints) if attachment else []

    async def create(self, request: NetworkCreateRequest) -> NetworkSpec:
        """Make a network.

        Raises:
            InvalidParameter, Forbidden, NotFound, Conflict, Unsupported, System: in dockerd's words.
        """
        if creation.is_predefined(request.name):
            raise Forbidden(f"operation is not permitted on predefined {request.name} network")
        creation.validate_ipam(request.ipam, bool(request.enable_ipv6))
        async with self._creating:
            if request.name in self._names:
                raise Conflict(f"network with name {request.name} already exists")
            busy = await self._run(self._kernel_links.busy_subnets)
            spec = creation.specify(
                request,
                id=secrets.token_hex(32),
                number=self._next_number(),
                created=time.time_ns(),
                template=self._template(request),
                defaults=self._options.default_network_opts,
                choose=lambda version: self._choose(version, busy),
                mtu=self._options.mtu,
            )
            return await self._make(spec)

    def _template(self, request: NetworkCreateRequest) -> NetworkSpec | None:
        if request.config_from is None or not request.config_from.network:
            return None
        return self._networks.get(self._names.get(request.config_from.network, ""))

    def _choose(self, version: int, busy: Sequence[IPNetwork]) -> IPNetwork:
        return ipam.choose_subnet(self._address_pools, version, [*self._subnets(), *busy])

    def _subnets(self) -> list[IPNetwork]:
        return [
            ipaddress.ip_network(pool.subnet)
            for spec in self._networks.values()
            if not spec.config_only
            for pool in spec.pools
        ]

    def _next_number(self) -> int:
        row = self._db.execute("SELECT coalesce(max(number), 0) + 1 FROM network").fetchone()
        return int(row[0])

    async def _make(self, spec: NetworkSpec) -> NetworkSpec:
        """Record a network and make its interface and rules; nothing is left of it if any of that fails."""
        if not spec.config_only:
            self._refuse_overlap(spec)
        name = parent_name(spec) if spec.driver in ("macvlan", "ipvlan") else spec.bridge
        if spec.driver in ("bridge", "routed", "macvlan", "ipvlan") and not spec.config_only:
            for other in self._networks.values():
                if other.driver in ("bridge", "routed") and not other.config_only and other.bridge == name:
                    raise Forbidden(
                        f"cannot create network {spec.id} ({name}): conflicts with network {other.id} ({name}): "
                        "networks have same bridge name"
                    )
            existed = await self._run(self._kernel_links.exists, name)
            if existed:
                spec = msgspec.structs.replace(spec, own_interface=False)
        links = self._kernel_links
        async with contextlib.AsyncExitStack() as undo:
            with self._db.transaction():
                self._db.execute(
                    "INSERT INTO network (id, name, number, spec) VALUES (?, ?, ?, ?)",
                    (spec.id, spec.name, spec.number, msgspec.json.encode(spec).decode()),
                )
                if not spec.config_only:
                    self._reserve(spec)
            self._know(spec)
            undo.callback(self._db.execute, "DELETE FROM network WHERE id = ?", (spec.id,))
            undo.callback(self._unknow, spec)
            if not spec.config_only:
                before = self._forwarding_is_ours
                self._enable_forwarding()
                if self._forwarding_is_ours != before:
                    await self._restate()
                undo.push_async_callback(self._withdraw, spec)
                await self._run(links.ensure, spec)
                await self._change(add=network_entries(spec, direct=self._options.allow_direct_routing))
            undo.pop_all()
        return spec

    def _refuse_overlap(self, spec: NetworkSpec) -> None:
        taken = [
            ipaddress.ip_network(pool.subnet)
            for other in self._networks.values()
            if not other.config_only and other.id != spec.id
            for pool in other.pools
        ]
        for pool in spec.pools:
            subnet = ipaddress.ip_network(pool.subnet)
            ipam.refuse_overlap(taken, subnet)
            taken.append(subnet)

    def _reserve(self, spec: NetworkSpec) -> None:
        for pool in spec.pools:
            reserved = [ipaddress.ip_address(pool.gateway)] if pool.gateway else []
            reserved += [ipaddress.ip_address(address) for address in pool.auxiliary.values()]
            ip_range = ipaddress.ip_network(pool.ip_range) if pool.ip_range else None
            ipam.create_pool(self._db, spec.id, ipaddress.ip_network(pool.subnet), ip_range, reserved)

    async def _withdraw(self, spec: NetworkSpec) -> None:
        """Remove a network's interface, where the user does not have to wait for the kernel's grace periods."""
        cleaner = self._cleaner
        if cleaner is None:
            return
        try:
            await asyncio.get_running_loop().run_in_executor(self._cleanup, cleaner.withdraw, spec)
        except OSError as error:
            log.error("network %s: its interface cannot be removed: %s", spec.name, error)

    async def remove(self, reference: str) -> NetworkSpec:
        """Delete a network that no container uses.

        Raises:
            NotFound, Forbidden: in dockerd's words.
        """
        spec = self.get(reference)
        if spec.predefined:
            raise Forbidden(f"{spec.name} is a pre-defined network and cannot be removed")
        async with self._creating:
            spec = self.get(spec.id)
            if spec.config_only and any(other.config_from == spec.name for other in self._networks.values()):
                raise Forbidden(f'error while removing network: configuration network "{spec.name}" is in use')
            members = self._members.get(spec.id)
            if members:
                names = ", ".join(f'name:"{one.container_name}" id:"{one.id[:12]}"' for one in members.values())
                raise Forbidden(f"error while removing network: network {spec.name} has active endpoints ({names})")
            await self._delete(spec)
        return spec

    async def _delete(self, spec: NetworkSpec) -> None:
        with self._db.transaction():
            self._db.execute("DELETE FROM network_pool WHERE network = ?", (spec.id,))
            self._db.execute("DELETE FROM network WHERE id = ?", (spec.id,))
        self._unknow(spec)
        if not spec.config_only:
            await self._change(remove=network_entries(spec, direct=self._options.allow_direct_routing))
            await self._withdraw(spec)

    async def _predefine(self) -> None:
        """Make ``bridge``, ``host`` and ``none``, or bring the stored ones in line with the daemon's options."""
        for name, driver in (("host", "host"), ("none", "null")):
            if name not in self._names:
                spec = NetworkSpec(
                    id=secrets.token_hex(32), name=name, driver=driver, number=self._next_number(),
                    created=time.time_ns(),
                )  # fmt: skip
                self._db.execute(
                    "INSERT INTO network (id, name, number, spec) VALUES (?, ?, ?, ?)",
                    (spec.id, spec.name, spec.number, msgspec.json.encode(spec).decode()),
                )
                self._know(spec)
        stored = self._networks.get(self._names.get("bridge", ""))
        if self._options.bridge == "none":
            if stored is not None and not self._members.get(stored.id):
                await self._delete(stored)
            return
        wanted = await self._default_bridge(stored)
        if stored is not None:
            if msgspec.structs.replace(wanted, own_interface=stored.own_interface) == stored:
                return
            if self._members.get(stored.id):
                log.warning("the default network has containers: changed options apply once they have ended")
                return
            await self._delete(stored)
            # The number and id stay, the pools are made anew.
        await self._make(wanted)

    async def _default_bridge(self, stored: NetworkSpec | None) -> NetworkSpec:
        options = self._options
        name = options.bridge or DEFAULT_BRIDGE_NAME
        busy = await self._run(self._kernel_links.busy_subnets)
        pools = []
        for version, bip, fixed, gateway in (
            (4, options.bip, options.fixed_cidr, options.default_gateway),
            (6, options.bip6, options.fixed_cidr_v6, options.default_gateway_v6),
        ):
            if version == 6 and not options.ipv6:
                continue
            old = stored.pools_of(version) if stored else []
            pools.append(await self._default_pool(version, name, bip, fixed, gateway, old, busy, stored))
        driver_options = {
            DEFAULT_BRIDGE: "true",
            ENABLE_ICC: "true" if options.icc else "false",
            ENABLE_MASQUERADE: "true" if options.ip_masq else "false",
            HOST_BINDING_IPV4: options.ip or "0.0.0.0",
            BRIDGE_NAME: name,
            MTU: str(options.mtu or 1500),
        }
        for key, value in options.default_network_opts.get("bridge", {}).items():
            driver_options.setdefault(key, value)
        return NetworkSpec(
            id=stored.id if stored else secrets.token_hex(32),
            name="bridge",
            number=stored.number if stored else self._next_number(),
            driver="bridge",
            created=stored.created if stored else time.time_ns(),
            ipv6=options.ipv6,
            options=driver_options,
            pools=tuple(pools),
        )

    async def _default_pool(
        self, version: int, bridge: str, bip: str, fixed: str, gateway: str, old: Sequence[IPAMPool],
        busy: Sequence[IPNetwork], stored: NetworkSpec | None,
    ) -> IPAMPool:  # fmt: skip
        """The default network's subnet: ``--bip``, what the named bridge has, what it was before, ``--fixed-cidr``, or
        a free one; dockerd's order."""
        part = ipaddress.ip_network(fixed) if fixed else None
        before = ipaddress.ip_network(old[0].subnet) if old else None
        if bip:
            interface = ipaddress.ip_interface(bip)
        elif self._options.bridge and (found := await self._run(self._addresses, bridge, version)):
            interface = next((one for one in found if part is not None and _within(part, one.network)), found[0])
            if part is not None and not _within(part, interface.network):
                if version == 6:
                    raise InvalidParameter(
                        f"fixed-cidr-v6={fixed} is outside any subnet implied by addresses on the user-managed default "
                        "bridge"
                    )
                log.warning("fixed-cidr %s is outside the subnets of %s and has no effect", fixed, bridge)
                fixed = ""
        elif old and part is None:
            return msgspec.structs.replace(old[0], ip_range="")
        elif before is not None and part is not None and _within(part, before):
            interface = ipaddress.ip_interface(f"{old[0].gateway}/{before.prefixlen}")
        elif old and part is not None and ipaddress.ip_address(old[0].gateway) in part:
            interface = ipaddress.ip_interface(f"{old[0].gateway}/{part.prefixlen}")
        elif part is not None:
            interface = ipaddress.ip_interface(f"{part.network_address + 1}/{part.prefixlen}")
        else:
            taken = [
                ipaddress.ip_network(pool.subnet)
                for spec in self._networks.values()
                if spec.name != "bridge" and not spec.config_only
                for pool in spec.pools
            ]
            subnet = ipam.choose_subnet(self._address_pools, version, [*taken, *busy])
            interface = ipaddress.ip_interface(f"{subnet.network_address + 1}/{subnet.prefixlen}")
        return IPAMPool(
            subnet=str(interface.network),
            ip_range=fixed if fixed and str(interface.network) != fixed else "",
            gateway=gateway or str(interface.ip),
        )

    def _addresses(self, bridge: str, version: int) -> list[ipaddress.IPv4Interface | ipaddress.IPv6Interface]:
        sock = self._kernel_links.socket
        found = rtnetlink.link(sock, bridge)
        if found is None:
            raise InvalidParameter(f"bridge {bridge}, which --bridge names, does not exist")
        return [
            address
            for _, address in rtnetlink.addresses(sock, found.index)
            if address.version == version and not address.ip.is_link_local
        ]

    # --- endpoints: before and at the start of a container -----------------------------------------------------------

    async def allocate(
        self,
        container: ContainerIdentity,
        settings: Mapping[str, EndpointSettings],
        ports: PortRequest,
        *,
        links: Mapping[str, str] | None = None,
        dns: Sequence[str] | None = None,
    ) -> list[Endpoint]:
        """Reserve addresses and ports for a container about to start, in the networks that ``settings`` names.

        ``links`` is alias → container id for links on the default network; ``dns`` the servers our resolver asks for
        this container instead of the host's.

        Raises:
            SeacanError: nothing was reserved; the message begins as dockerd's does.
        """
        try:
            return await self._allocate(container, settings, ports, dict(links or {}), dns)
        except SeacanError as error:
            raise type(error)(f"failed to set up container networking: {error}") from error

    async def _allocate(
        self, container: ContainerIdentity, settings: Mapping[str, EndpointSettings], ports: PortRequest,
        links: dict[str, str], dns: Sequence[str] | None,
    ) -> list[Endpoint]:  # fmt: skip
        if container.id in self._attachments:
            await self.release(container.id)
        attachment = _Attachment(container, ports, links=links, dns_servers=tuple(dns) if dns else None)
        specs = {name: self.get(name) for name in settings}
        with contextlib.ExitStack() as undo:
            with self._db.transaction():
                for index, (name, asked) in enumerate(settings.items()):
                    endpoint = self._new_endpoint(attachment, specs[name], asked, index)
                    attachment.endpoints.append(endpoint)
                attachment.endpoints = endpoints_.choose_gateways(attachment.endpoints, self._networks)
                undo.callback(self._ports.release, attachment.reservation)
                self._publish(attachment)
                for endpoint in attachment.endpoints:
                    self._store(endpoint)
            undo.pop_all()
        self._attachments[container.id] = attachment
        self._relay(attachment)
        for endpoint in attachment.endpoints:
            self._members[endpoint.network][endpoint.id] = endpoint
        entries = [
            entry
            for endpoint in attachment.endpoints
            for entry in endpoint_entries(self._networks[endpoint.network], endpoint)
        ]
        await self._change(add=entries + self._link_entries(attachment))
        return list(attachment.endpoints)

    def _new_endpoint(
        self, attachment: _Attachment, spec: NetworkSpec, asked: EndpointSettings, index: int
    ) -> Endpoint:
        if spec.config_only:
            raise Forbidden("cannot create endpoint on configuration-only network")
        container = attachment.identity
        wanted = asked.ipam_config
        user_defined = not spec.predefined
        endpoints_.check_settings(spec, asked)
        options = dict(asked.driver_opts or {})
        id = secrets.token_hex(32)
        endpoint = Endpoint(
            id=id,
            container=container.id,
            container_name=container.name,
            hostname=container.hostname,
            network=spec.id,
            network_name=spec.name,
            driver=spec.driver,
            aliases=tuple(asked.aliases or ()),
            links=tuple(asked.links or ()),
            names=endpoints_.names(container, asked.aliases or ()) if user_defined else (),
            options=options,
            gw_priority=asked.gw_priority,
            linked=attachment.links,
            dns=attachment.dns_servers or (),
            exposed=endpoints_.exposed(attachment.request),
            sequence=index,
        )
        if spec.driver in ("host", "null"):
            return endpoint
        addresses = {
            version: self._address(spec, version, text, id) if version == 4 or container.ipv6 else ("", False)
            for version, text in (
                (4, wanted.ipv4_address if wanted else ""),
                (6, wanted.ipv6_address if wanted else ""),
            )
        }
        link_local = [ipaddress.ip_address(text) for text in (wanted.link_local_ips if wanted else None) or []]
        return msgspec.structs.replace(
            endpoint,
            interface="" if spec.driver in ("macvlan", "ipvlan") else f"veth{secrets.token_hex(4)[:7]}",
            container_interface=endpoints_.interface_name(
                {one.container_interface for one in attachment.endpoints}, spec, options, container.name
            ),
            mac="" if spec.driver == "ipvlan" else endpoints_.mac(asked.mac_address),
            ipv4=addresses[4][0],
            ipv6=addresses[6][0],
            used_before=addresses[4][1] or addresses[6][1],
            gateway4=endpoints_.gateway(spec, 4, addresses[4][0]),
            gateway6=endpoints_.gateway(spec, 6, addresses[6][0]),
            link_local=tuple(f"{one}/{16 if one.version == 4 else 64}" for one in link_local),
        )

    def _address(self, spec: NetworkSpec, version: int, text: str, endpoint: str) -> tuple[str, bool]:
        """Reserve an address, ``text`` if given, and say whether it may have been somebody else's; empty if the network
        has none of that IP version."""
        if text:
            found, used = ipam.allocate_exactly(self._db, spec.id, ipaddress.ip_address(text), endpoint), True
        else:
            if not spec.pools_of(version):
                return "", False
            allocated = ipam.allocate(self._db, spec.id, version, endpoint)
            if allocated is None:
                raise ipam.exhausted(version, spec.name, spec.id)
            found, used = allocated
        if spec.driver == "routed":
            return f"{found.ip}/{found.network.max_prefixlen}", used
        return str(found), used

    def _publish(self, attachment: _Attachment) -> None:
        """Reserve the container's ports and hand them to the endpoints that provide its default routes."""
        request = attachment.request
        if not request.bindings and not request.publish_all:
            return
        providers = {
            version: endpoint
            for endpoint in attachment.endpoints
            for version, provides in ((4, endpoint.default_gateway4), (6, endpoint.default_gateway6))
            if provides and endpoint.driver in ("bridge", "routed")
        }
        if not providers:
            return
        specs = {version: self._networks[endpoint.network] for version, endpoint in providers.items()}
        default = (specs[4].options.get(HOST_BINDING_IPV4) if 4 in specs else "") or self._options.ip or "0.0.0.0"
        wanted = resolve(
            request.bindings,
            request.exposed,
            request.publish_all,
            default_ipv4=default,
            ipv4=4 in providers,
            ipv6=self._ipv6_host and (6 in providers or self._options.userland_proxy),
        )
        first = next(iter(providers.values()))
        targets = {
            version: endpoint.address4 if version == 4 else endpoint.address6 for version, endpoint in providers.items()
        }
        routed = {version for version, spec in specs.items() if spec.gateway_mode(version) == "routed"}
        if routed:
            wanted = [
                replace(one, addresses=addresses)
                for one in wanted
                if (addresses := tuple(a for a in one.addresses if (6 if ":" in a else 4) not in routed))
            ]
        try:
            reservation = self._ports.reserve(wanted, targets)
        except SeacanError as error:
            raise type(error)(
                f"driver failed programming external connectivity on endpoint {attachment.identity.name} "
                f"({first.id}): {error}"
            ) from error
        attachment.reservation.ports += reservation.ports
        attachment.reservation.sockets |= reservation.sockets
        published = list(reservation.ports)
        for version in sorted(routed):
            any_address = "0.0.0.0" if version == 4 else "::"
            for text in dict.fromkeys((*request.bindings, *(request.exposed if request.publish_all else ()))):
                port, protocol = parse_port(text)
                published.append(PublishedPort(protocol=protocol, port=port, host_ip=any_address, host_port=0))
        attachment.endpoints = endpoints_.assign_ports(attachment.endpoints, published)

    def _store(self, endpoint: Endpoint) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO network_endpoint (id, container, network, data, created) VALUES (?, ?, ?, ?, ?)",
            (
                endpoint.id,
                endpoint.container,
                endpoint.network,
                msgspec.json.encode(endpoint).decode(),
                endpoint.sequence,
            ),
        )

    async def join(self, endpoints: Sequence[Endpoint], sandbox: Sandbox, store: DescriptorStore | None = None) -> None:
        """Put the interfaces of ``endpoints`` into a container's namespace, with addresses, routes and DNS.

        ``store`` keeps reserved ports and DNS sockets across restarts of the daemon.

        Raises:
            System: the message begins as dockerd's does; :meth:`release` undoes what was done.
        """
        if sandbox.netns is None:
            return
        joins = [
            Join(self._networks[endpoint.network], endpoint)
            for endpoint in endpoints
            if endpoint.driver not in ("host", "null")
        ]
        attachment = self._attachments.get(endpoints[0].container) if endpoints else None
        if attachment is not None:
            attachment.store = store
        if not joins:
            return
        links, resolver = self._kernel_links, self._resolver
        named = any(not join.spec.predefined for join in joins)
        # Copies: a container that ends meanwhile takes the sandbox's own descriptors with it, and their numbers may
        # then be anything's.
        netns = os.dup(sandbox.netns)
        rtnl = None if sandbox.rtnl is None else os.dup(sandbox.rtnl)

        def connect() -> list[socket.socket]:
            try:
                links.join(joins, netns, rtnl)
                return resolver.open_sockets(netns) if named else []
            finally:
                for fd in (netns, rtnl):
                    if fd is not None:
                        os.close(fd)

        self._joined = time.monotonic()
        try:
            sockets = await self._run(connect)
        except SeacanError as error:
            raise type(error)(f"failed to set up container networking: {error}") from error
        except OSError as error:
            raise System(f"failed to set up container networking: {error}") from error
        if attachment is None:
            for one in sockets:
                one.close()
            return
        self._attach_fast_path()
        if sockets:
            self._answer_names(attachment, sockets)
        for endpoint in attachment.endpoints:
            self._tell_names(endpoint)
        if store is not None and (sockets or attachment.reservation.sockets):
            self._spawn(self._keep(attachment, sockets, store))

    @staticmethod
    async def _keep(attachment: _Attachment, sockets: Sequence[socket.socket], store: DescriptorStore) -> None:
        """Hand ports and DNS sockets to the shim, behind the start's back: a daemon that dies before has no more to
        do than to bind them again."""
        try:
            # Without DNS sockets it is the ports that have changed, perhaps to none: the shim then has to let go, too.
            if attachment.reservation.sockets or not sockets:
                fds = _open(attachment.reservation.sockets.values())
                # One packet carries 253 descriptors at most; the chunk after the last is emptied of what it was.
                for index in range(len(fds) // _AT_ONCE + 1):
                    await store.keep(f"{_PORTS}-{index}", fds[index * _AT_ONCE : (index + 1) * _AT_ONCE])
            if sockets:
                await store.keep(_DNS, _open(sockets))
        except (OSError, SeacanError) as error:
            log.debug("container %s: its shim keeps no sockets: %s", attachment.identity.name, error)

    async def release(self, container: str) -> None:
        """Take back everything a container held: addresses, ports, rules, names. Its links go with its namespace.

        Releasing what is not held is no error.
        """
        attachment = self._attachments.get(container)
        if attachment is None:
            return
        entries = self._entries(attachment)
        endpoints = attachment.endpoints
        self._forget_endpoints(container)
        await self._change(remove=entries, gone=endpoints)
        self._forget_flows(endpoints)

    def _entries(self, attachment: _Attachment) -> list[Entry]:
        return [
            entry
            for endpoint in attachment.endpoints
            for entry in endpoint_entries(self._networks[endpoint.network], endpoint)
        ] + self._link_entries(attachment)

    def _forget_endpoints(self, container: str) -> None:
        """Forget a container's endpoints in the database and here, and let go of its ports and names."""
        attachment = self._attachments[container]
        with self._db.transaction():
            for endpoint in attachment.endpoints:
                ipam.release(self._db, endpoint.id)
                self._db.execute("DELETE FROM network_endpoint WHERE id = ?", (endpoint.id,))
        del self._attachments[container]
        for endpoint in attachment.endpoints:
            self._members.get(endpoint.network, {}).pop(endpoint.id, None)
            self._resolver.forget(endpoint.network, endpoint.id)
        for relay in attachment.relays.values():
            relay.close()
        self._ports.release(attachment.reservation)
        self._resolver.leave(container)

    def _forget_flows(self, endpoints: Sequence[Endpoint]) -> None:
        """A UDP client that goes on sending must not be sent to a dead container for ever."""
        addresses = {
            address
            for endpoint in endpoints
            for port in endpoint.ports
            if port.protocol != "tcp"
            for address in (endpoint.address4, endpoint.address6)
            if address
        }
        if addresses:
            firewall = self._rules

            async def forget() -> None:
                for address in addresses:
                    await self._run(firewall.forget, address)

            self._spawn(forget())

    async def forget(self, container: str) -> None:
        """The container is being removed."""
        await self.release(container)

    async def rename(self, container: str, name: str) -> None:
        """A container has another name now: its networks' DNS follows."""
        attachment = self._attachments.get(container)
        if attachment is None:
            return
        old = attachment.identity
        attachment.identity = msgspec.structs.replace(old, name=name)
        renamed = []
        with self._db.transaction():
            for endpoint in attachment.endpoints:
                names = endpoints_.names(attachment.identity, endpoint.aliases) if endpoint.names else ()
                endpoint = msgspec.structs.replace(endpoint, container_name=name, names=names)
                self._store(endpoint)
                renamed.append(endpoint)
        attachment.endpoints = renamed
        for endpoint in renamed:
            self._members[endpoint.network][endpoint.id] = endpoint
            self._tell_names(endpoint)

    async def _hold_ports(self, attachment: _Attachment) -> None:
        """Hold again the ports of a container that outlived the daemon, with the sockets its shim kept."""
        ports = [port for endpoint in attachment.endpoints for port in endpoint.ports if port.host_port]
        if not ports:
            return
        kept: dict[Place, socket.socket] = {}
        fds: list[int] = []
        while len(fds) % _AT_ONCE == 0:
            more = await self._fetch(attachment, f"{_PORTS}-{len(fds) // _AT_ONCE}")
            fds += more
            if not more:
                break
        for fd in fds:
            sock = socket.socket(fileno=fd)
            try:
                kept[place_of(sock)] = sock
            except OSError:
                sock.close()
        for port in ports:
            try:
                self._ports.hold(port, attachment.reservation, kept.pop(place(port), None))
            except OSError as error:
                log.warning(
                    "container %s: port %s:%d/%s cannot be held again (%s); it stays published",
                    attachment.identity.name, port.host_ip, port.host_port, port.protocol, error,
                )  # fmt: skip
        for sock in kept.values():
            sock.close()
        self._relay(attachment)

    def _relay(self, attachment: _Attachment) -> None:
        """Answer on those IPv6 ports of the host whose container has only IPv4 addresses, and on no others; without
        firewall rules (``--iptables=false``), on all of them."""
        options = self._options
        wanted = {
            place(port): (endpoint.address4, port.port)
            for endpoint in attachment.endpoints
            for port in endpoint.ports
            if endpoint.address4 and port.host_port and port.protocol in ("tcp", "udp") and options.userland_proxy
            if not options.iptables or (port.version == 6 and not endpoint.address6)
        }
        for where, relay in list(attachment.relays.items()):
            if wanted.get(where) != relay.target:
                relay.close()
                del attachment.relays[where]
                sock = attachment.reservation.sockets.get(where)
                if sock is not None:
                    shut(sock)
        for where, target in wanted.items():
            sock = attachment.reservation.sockets.get(where)
            if sock is not None and where not in attachment.relays:
                attachment.relays[where] = Relay(sock, target)
                open_up(sock)

    async def _fetch(self, attachment: _Attachment, name: str) -> list[int]:
        if attachment.store is None:
            return []
        try:
            return await attachment.store.fetch(name)
        except (OSError, SeacanError) as error:
            log.warning("container %s: its shim gives back no %s: %s", attachment.identity.name, name, error)
            return []

    # --- names -----------------------------------------------------------------------------------------------------

    def _answer_names(self, attachment: _Attachment, sockets: Sequence[socket.socket]) -> None:
        self._resolver.serve(
            attachment.identity.id,
            sockets,
            networks=[endpoint.network for endpoint in attachment.endpoints if endpoint.names],
            links={
                alias: target
                for endpoint in attachment.endpoints
                for target, alias in map(endpoints_.split_link, endpoint.links)
            },
            forward=any(not self._networks[endpoint.network].internal for endpoint in attachment.endpoints),
            servers=attachment.dns_servers,
        )

    def _tell_names(self, endpoint: Endpoint) -> None:
        if endpoint.names:
            self._resolver.learn(
                endpoint.network,
                endpoint.network_name,
                Member(
                    endpoint=endpoint.id,
                    container=endpoint.container,
                    names=endpoint.names,
                    ipv4=endpoint.address4,
                    ipv6=endpoint.address6,
                ),
            )

    async def _resume_names(self, attachment: _Attachment) -> None:
        if not any(endpoint.names for endpoint in attachment.endpoints):
            return
        sockets = [socket.socket(fileno=fd) for fd in await self._fetch(attachment, _DNS)]
        if not sockets and attachment.store is not None:
            # The daemon died between the start and handing them over.
            try:
                sandbox = await attachment.store.created()
                if sandbox.netns is not None:
                    sockets = await self._run(self._resolver.open_sockets, sandbox.netns)
                    self._spawn(self._keep(attachment, sockets, attachment.store))
            except (OSError, SeacanError) as error:
                log.error("container %s: no names can be answered: %s", attachment.identity.name, error)
        if sockets:
            self._answer_names(attachment, sockets)

    def _upstream_servers(self) -> tuple[str, ...]:
        return tuple(self._options.dns) or files.upstream(host.resolv_conf())

    def host_gateways(self) -> list[str]:
        """What ``host-gateway`` in --add-host stands for."""
        if self._options.host_gateway_ips:
            return list(self._options.host_gateway_ips)
        spec = self._networks.get(self._names.get("bridge", ""))
        if spec is None:
            return []
        return [str(gateway) for version in (4, 6) if (gateway := spec.gateway(version)) is not None]

    def files(
        self,
        container: ContainerIdentity,
        endpoints: Sequence[Endpoint],
        host_config: HostConfig,
        links: Mapping[str, Sequence[str]] | None = None,
    ) -> NameFiles:
        """The texts of /etc/hostname, /etc/hosts and /etc/resolv.conf; ``links`` is address → names.

        Raises:
            InvalidParameter: a malformed ``--add-host``.
        """
        base = files.override(
            host.resolv_conf(),
            host_config.dns or self._options.dns,
            host_config.dns_search or self._options.dns_search,
            host_config.dns_options or self._options.dns_options,
        )
        overridden = bool(host_config.dns or self._options.dns)
        extra = host_config.extra_hosts or ()
        if any(endpoint.driver == "host" for endpoint in endpoints):
            lines = files.extra_hosts(extra, self.host_gateways())
            hosts = host.read("/etc/hosts") + "".join(f"{address}\t{name}\n" for address, name in lines)
            return NameFiles(files.hostname(container.hostname), hosts, base.text())
        if any(endpoint.names for endpoint in endpoints):
            asked = base.nameservers or files.upstream(base)
            resolv = files.internal(base).text(
                "Based on host file: '/etc/resolv.conf' (internal resolver)",
                f"ExtServers: [{' '.join(asked)}]",
            )
        else:
            ipv6 = any(endpoint.ipv6 for endpoint in endpoints)
            resolv = files.direct(base, overridden=overridden, ipv6=ipv6).text(
                "Based on host file: '/etc/resolv.conf' (legacy)"
            )
        hosts = files.hosts(
            container.hostname,
            container.domainname,
            [endpoint for endpoint in endpoints if endpoint.driver != "null"],
            extra,
            self.host_gateways() if any(entry.endswith(files.HOST_GATEWAY) for entry in extra) else (),
            links,
            ipv6=container.ipv6,
        )
        return NameFiles(files.hostname(container.hostname), hosts, resolv)

    # --- what is told of a container -------------------------------------------------------------------------------

    def settings(
        self, container: str, configured: Mapping[str, EndpointSettings], *, pid: int = 0, started: bool = False
    ) -> NetworkSettings:
        """Docker's NetworkSettings: ``configured`` is what was asked of each network, ``pid`` of init if it runs.

        Whoever has ``started`` once goes on to name the networks' IDs.
        """
        named = {}
        for name, asked in configured.items():
            spec = self.find(name)
            if spec is not None and started and not asked.network_id:
                asked = msgspec.structs.replace(asked, network_id=spec.id)
            named[spec.name if spec is not None else name] = asked
        return endpoints_.network_settings(self.endpoints_of(container), named, bridge=self._options.bridge, pid=pid)

    def published(self, container: str) -> list[PublishedPort]:
        """The ports a running container has on the host."""
        attachment = self._attachments.get(container)
        return [port for endpoint in attachment.endpoints for port in endpoint.ports] if attachment else []

    # --- changing a running container ---------------------------------------------------------------------------------

    async def connect(
        self, container: ContainerIdentity, network: str, asked: EndpointSettings, sandbox: Sandbox
    ) -> Endpoint:
        """Connect a running container to one more network.

        Raises:
            SeacanError: in dockerd's words; nothing changed.
        """
        spec = self.get(network)
        attachment = self._attachments.get(container.id)
        if attachment is None:
            attachment = self._attachments[container.id] = _Attachment(container)
        endpoints_.check_settings(spec, asked)
        sharing = any(one.driver == "host" for one in attachment.endpoints)
        if sharing and spec.driver != "host":
            raise InvalidParameter(
                "container sharing network namespace with another container or host cannot be connected to any other "
                "network"
            )
        if spec.driver == "host" and not sharing:
            raise InvalidParameter(
                "cannot connect container to host network - container must be created in host network mode"
            )
        if spec.driver == "null" or any(one.driver == "null" for one in attachment.endpoints):
            raise InvalidParameter(
                "container cannot be connected to multiple networks with one of the networks in private (none) mode"
            )
        if any(one.network == spec.id for one in attachment.endpoints):
            raise Forbidden(f"endpoint with name {container.name} already exists in network {spec.name}")
        if sandbox.netns is None:
            raise Conflict(f"container {container.name} has no network namespace of its own")
        before = list(attachment.endpoints)
        with self._db.transaction():
            sequence = max((one.sequence for one in before), default=-1) + 1
            endpoint = self._new_endpoint(attachment, spec, asked, sequence)
            attachment.endpoints.append(endpoint)
            attachment.endpoints = endpoints_.choose_gateways(attachment.endpoints, self._networks)
            for one in attachment.endpoints:
                self._store(one)
        endpoint = next(one for one in attachment.endpoints if one.id == endpoint.id)
        self._members[spec.id][endpoint.id] = endpoint
        try:
            await self._change(add=endpoint_entries(spec, endpoint))
            quiet = msgspec.structs.replace(endpoint, default_gateway4=False, default_gateway6=False)
            links, netns, rtnl = self._kernel_links, sandbox.netns, sandbox.rtnl
            await self._run(links.join, [Join(spec, quiet)], netns, rtnl)
            await self._move_gateways(attachment, before, sandbox)
        except (SeacanError, OSError) as error:
            await self._drop(attachment, endpoint, sandbox)
            if isinstance(error, OSError):
                raise System(f"failed to connect container {container.name} to {spec.name}: {error}") from error
            raise
        self._joined = time.monotonic()
        self._attach_fast_path()
        await self._serve_names(attachment, sandbox)
        self._tell_names(endpoint)
        return next(one for one in attachment.endpoints if one.id == endpoint.id)

    async def disconnect(self, container: str, network: str, sandbox: Sandbox | None) -> Endpoint:
        """Take a running container out of a network.

        Raises:
            System: it is not in it.
        """
        spec = self.get(network)
        attachment = self._attachments.get(container)
        endpoint = next((one for one in attachment.endpoints if one.network == spec.id), None) if attachment else None
        if attachment is None or endpoint is None:
            raise System(f"container {container} is not connected to network {spec.name}")
        if spec.driver == "host":
            raise Conflict("container cannot be disconnected from host network or connected to host network")
        await self._drop(attachment, endpoint, sandbox)
        await self._serve_names(attachment, sandbox)
        return endpoint

    async def _drop(self, attachment: _Attachment, endpoint: Endpoint, sandbox: Sandbox | None) -> None:
        spec = self._networks[endpoint.network]
        endpoint = next((one for one in attachment.endpoints if one.id == endpoint.id), endpoint)
        before = list(attachment.endpoints)
        with self._db.transaction():
            attachment.endpoints = [one for one in before if one.id != endpoint.id]
            attachment.endpoints = endpoints_.choose_gateways(attachment.endpoints, self._networks)
            ipam.release(self._db, endpoint.id)
            self._db.execute("DELETE FROM network_endpoint WHERE id = ?", (endpoint.id,))
            for one in attachment.endpoints:
                self._store(one)
        self._members.get(spec.id, {}).pop(endpoint.id, None)
        self._resolver.forget(spec.id, endpoint.id)
        bare = msgspec.structs.replace(endpoint, ports=())
        await self._move_gateways(attachment, before, sandbox)
        await self._change(remove=endpoint_entries(spec, bare), gone=[bare])
        if sandbox is not None and sandbox.netns is not None and spec.driver not in ("host", "null"):
            cleaner = self._cleaner
            if cleaner is not None:
                await asyncio.get_running_loop().run_in_executor(
                    self._cleanup, cleaner.leave, spec, endpoint, sandbox.netns, None
                )

    async def _move_gateways(
        self, attachment: _Attachment, before: Sequence[Endpoint], sandbox: Sandbox | None
    ) -> None:
        """After a change of the endpoints: let default routes and published ports follow the endpoint that provides."""
        links = self._kernel_links
        for version in (4, 6):
            old, new = endpoints_.provider(before, version), endpoints_.provider(attachment.endpoints, version)
            if (old.id if old else "") == (new.id if new else ""):
                continue
            if sandbox is not None and sandbox.netns is not None:
                await self._run(
                    links.reroute,
                    (self._networks[old.network], old) if old else None,
                    (self._networks[new.network], new) if new else None,
                    version,
                    sandbox.netns,
                    sandbox.rtnl,
                )
        ports = [port for endpoint in before for port in endpoint.ports]
        if not ports:
            return
        remove = [entry for one in before for entry in port_entries(self._networks[one.network], one)]
        attachment.endpoints = endpoints_.assign_ports(attachment.endpoints, ports)
        with self._db.transaction():
            for one in attachment.endpoints:
                self._store(one)
                self._members[one.network][one.id] = one
        self._relay(attachment)
        add = [entry for one in attachment.endpoints for entry in port_entries(self._networks[one.network], one)]
        await self._change(add=add, remove=remove)

    async def _serve_names(self, attachment: _Attachment, sandbox: Sandbox | None) -> None:
        """Begin to answer names for a container that has come into its first user-defined network, or bring what is
        answered up to date."""
        container = attachment.identity.id
        if self._resolver.serves(container):
            self._answer_names(attachment, ())
            return
        if sandbox is None or sandbox.netns is None or not any(one.names for one in attachment.endpoints):
            return
        sockets = await self._run(self._resolver.open_sockets, sandbox.netns)
        self._answer_names(attachment, sockets)
        if attachment.store is not None and sockets:
            self._spawn(self._keep(attachment, sockets, attachment.store))

    async def add_ports(self, container: str, bindings: Mapping[str, Sequence[PortBinding]]) -> list[PublishedPort]:
        """Publish more ports of a running container.

        Raises:
            NotFound: it is not running. InvalidParameter: it has no network that can publish. System: a port is taken.
        """
        attachment = self._attachments.get(container)
        if attachment is None:
            raise NotFound(f"container {container} is not running")
        extra = _Attachment(
            attachment.identity,
            PortRequest(bindings=bindings),
            [msgspec.structs.replace(one, ports=()) for one in attachment.endpoints],
        )
        self._publish(extra)
        added = [port for endpoint in extra.endpoints for port in endpoint.ports]
        if not added:
            raise InvalidParameter(f"container {attachment.identity.name} has no network that can publish ports")
        entries = [entry for one in extra.endpoints for entry in port_entries(self._networks[one.network], one)]
        attachment.reservation.ports += extra.reservation.ports
        attachment.reservation.sockets |= extra.reservation.sockets
        self._set_ports(
            attachment,
            {old.id: (*old.ports, *new.ports) for old, new in zip(attachment.endpoints, extra.endpoints, strict=True)},
        )
        self._relay(attachment)
        await self._change(add=entries)
        if attachment.store is not None:
            self._spawn(self._keep(attachment, (), attachment.store))
        return added

    async def remove_ports(self, container: str, ports: Sequence[PublishedPort]) -> None:
        """Withdraw published ports of a running container.

        Raises:
            NotFound: it is not running, or does not have such a port.
        """
        attachment = self._attachments.get(container)
        if attachment is None:
            raise NotFound(f"container {container} is not running")
        have = [port for endpoint in attachment.endpoints for port in endpoint.ports]
        for port in ports:
            if port not in have:
                place = f"{port.host_ip}:{port.host_port}/{port.protocol}"
                raise NotFound(f"container {attachment.identity.name} does not publish {place}")
        gone = set(ports)
        before = attachment.endpoints
        only = [msgspec.structs.replace(one, ports=tuple(p for p in one.ports if p in gone)) for one in before]
        entries = [entry for one in only for entry in port_entries(self._networks[one.network], one)]
        self._set_ports(attachment, {one.id: tuple(p for p in one.ports if p not in gone) for one in before})
        self._relay(attachment)
        await self._change(remove=entries)
        self._ports.release_some(attachment.reservation, gone)
        self._forget_flows(only)
        if attachment.store is not None:
            self._spawn(self._keep(attachment, (), attachment.store))

    def _set_ports(self, attachment: _Attachment, ports: Mapping[str, tuple[PublishedPort, ...]]) -> None:
        attachment.endpoints = [msgspec.structs.replace(one, ports=ports[one.id]) for one in attachment.endpoints]
        with self._db.transaction():
            for one in attachment.endpoints:
                self._store(one)
                self._members[one.network][one.id] = one

    # --- links on the default network ------------------------------------------------------------------------------

    def _link_entries(self, attachment: _Attachment) -> list[Entry]:
        """--link on a network that forbids its containers to talk: the linked one's exposed ports are open."""
        if not attachment.links:
            return []
        entries = []
        for mine in attachment.endpoints:
            spec = self._networks[mine.network]
            if spec.icc or not mine.address4:
                continue
            for target in attachment.links.values():
                other = self._attachments.get(target)
                for theirs in other.endpoints if other else ():
                    if theirs.network == mine.network and theirs.address4:
                        entries += link_entries(mine.address4, theirs.address4, theirs.exposed)
        return entries

    def link_addresses(self, links: Mapping[str, str]) -> dict[str, list[str]]:
        """Address → names, for /etc/hosts: ``links`` is alias → container id, on the default network."""
        result: dict[str, list[str]] = {}
        for alias, target in links.items():
            attachment = self._attachments.get(target)
            for endpoint in attachment.endpoints if attachment else ():
                if endpoint.network_name == "bridge" and attachment is not None:
                    names = list(dict.fromkeys((alias, target[:12], attachment.identity.name)))
                    for address in (endpoint.address4, endpoint.address6):
                        if address:
                            result[address] = names
        return result


def _within(part: IPNetwork, subnet: IPNetwork) -> bool:
    return part.network_address in subnet and part.prefixlen >= subnet.prefixlen


def _open(sockets: Iterable[socket.socket]) -> list[int]:
    return [fd for sock in sockets if (fd := sock.fileno()) >= 0]
