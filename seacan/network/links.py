"""The interfaces behind networks and endpoints: what each driver asks of the kernel.

Everything here is synchronous, talks raw netlink and runs in one thread of its own
(:class:`seacan.network.networks.Networks` sees to that): the kernel takes one change of a link at a time anyway. A
container's link is made directly inside its namespace, in one message, and configured there by one more; it is never
deleted on the way of a start or a stop, because it ends with the namespace.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import ipaddress
import os
import re
import secrets
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from seacan.errors import Conflict, InvalidParameter, NotFound, System, Unsupported
from seacan.linux import rtnetlink as rt
from seacan.linux.netlink import NETLINK_ROUTE, Message, NetlinkError, NetlinkSocket
from seacan.network.fastpath import FastPath
from seacan.network.firewall import FIRST_GROUP, ROUTER, interface_group
from seacan.network.model import (
    ADVERTISEMENTS,
    ENDPOINT_SYSCTLS,
    INHIBIT_IPV4,
    IPVLAN_FLAG,
    IPVLAN_MODE,
    MACVLAN_MODE,
    PARENT,
    Endpoint,
    IPAddress,
    IPNetwork,
    NetworkSpec,
)

HOST_MAC = "ee:ee:ee:ee:ee:ee"
"""What the host's end of every routed link is called. The links are no segment: they may all have the same."""
_NOBODYS = 0x7FFFFFFF
"""Metric of the routes that refuse a routed network's addresses without a container; by it they are known as ours."""

_CLONE_NEWNET = 0x40000000
_ADDRESS_TIMEOUT = 5.0
_libc = ctypes.CDLL(None, use_errno=True)
_DEFAULT4, _DEFAULT6 = ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0")


@contextlib.contextmanager
def inside(netns: int) -> Iterator[None]:
    """Run the block in the network namespace ``netns`` (a descriptor); only this thread goes there."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _setns(netns)
        try:
            yield
        finally:
            _setns(home)
    finally:
        os.close(home)


def _setns(netns: int) -> None:
    if _libc.setns(netns, _CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"setns to network namespace: {os.strerror(code)}")


def random_mac() -> str:
    """A locally administered unicast MAC, as dockerd gives to containers."""
    raw = bytearray(secrets.token_bytes(6))
    raw[0] = raw[0] & 0xFC | 0x02
    return raw.hex(":")


@dataclass(frozen=True, slots=True)
class Join:
    """An endpoint to be put into a namespace, with the network it belongs to."""

    spec: NetworkSpec
    endpoint: Endpoint


class Links:
    """The host side of every network, seen from the network namespace it was made in."""

    def __init__(self) -> None:
        self.socket = NetlinkSocket(NETLINK_ROUTE)
        self.hairpin = False
        """Whether a bridge's port must be able to send back what came in by it: so if bridged packets pass through
        the IP layer's firewall (br_netfilter), where a container's packet to its own published port stays one."""
        self.fast_path = FastPath(self.socket)
        self._indexes: dict[str, int] = {}

    def close(self) -> None:
        self.fast_path.close()
        self.socket.close()

    # --- networks --------------------------------------------------------------------------------------------------

    def exists(self, name: str) -> bool:
        return rt.link(self.socket, name) is not None

    def busy_subnets(self) -> list[IPNetwork]:
        """Every subnet the host has a route to, apart from default routes and what is ours."""
        ours = {one.index for one in rt.links(self.socket) if one.group >= FIRST_GROUP}
        return [
            route.destination
            for route in rt.routes(self.socket)
            if route.destination.prefixlen and route.table == rt.RT_TABLE_MAIN and route.link not in ours
        ]

    def ensure(self, spec: NetworkSpec) -> None:
        """Make the network's interface as it has to be, or mend what is there.

        Raises:
            System, InvalidParameter, Unsupported: the kernel, or the interface named, cannot do that.
        """
        match spec.driver:
            case "bridge":
                self._ensure_bridge(spec)
            case "routed":
                self._ensure_routed(spec)
            case "macvlan":
                self._ensure_parent(spec)
            case "ipvlan":
                self._check_ipvlan()
                self._ensure_parent(spec)

    def _ensure_bridge(self, spec: NetworkSpec) -> None:
        name = spec.bridge
        found = rt.link(self.socket, name)
        group = interface_group(spec.number)
        new = found is None
        if found is None:
            self._request(rt.new_bridge(name, mac=random_mac(), mtu=spec.mtu, group=group))
            found = rt.link(self.socket, name)
            if found is None:
                raise System(f"bridge {name} has gone while it was being made")
        elif found.kind != "bridge":
            raise InvalidParameter(f"interface {name} exists and is no bridge")
        self._indexes[name] = found.index
        _set_ipv6(name, "accept_ra", 0)  # a container that says it is a router is none of the host's (CVE-2020-13401)
        six = bool(spec.pools_of(6)) and spec.gateway_mode(6) != "isolated"
        generation = rt.IN6_ADDR_GEN_MODE_EUI64 if six else rt.IN6_ADDR_GEN_MODE_NONE
        # Replies to a connection from 127.0.0.1 to a published port come back through the bridge.
        messages = [
            rt.configure(
                found.index,
                ipv4={rt.IPV4_DEVCONF_ROUTE_LOCALNET: 1},
                address_generation=generation if new and spec.carries_ipv6 else None,
            )
        ]
        if not found.flags & rt.IFF_UP or found.group != group:
            messages.append(rt.set_link(found.index, up=True, group=group))
        have = {str(address) for _, address in rt.addresses(self.socket, found.index)}
        for pool in spec.pools:
            subnet = ipaddress.ip_network(pool.subnet)
            if not pool.gateway or spec.gateway_mode(subnet.version) == "isolated":
                continue
            if subnet.version == 4 and spec.flag(INHIBIT_IPV4, False):
                continue
            address = ipaddress.ip_interface(f"{pool.gateway}/{subnet.prefixlen}")
            if str(address) not in have:
                messages.append(rt.new_address(found.index, address, replace=True))
        if six:
            # Containers may use fe80::1 as their router on any bridge.
            messages.append(rt.new_address(found.index, ipaddress.ip_interface(f"{ROUTER}/64"), replace=True))
        self._request(*messages)
        if six:
            for pool in spec.pools_of(6):
                if pool.gateway:
                    _await_local(self.socket, ipaddress.ip_address(pool.gateway))
            # Replies to a connection from ::1 to a published port come back through the bridge, where the kernel looks
            # for loopback's address on that very link.
            local = rt.new_local_route(ipaddress.ip_network("::1/128"), found.index, metric=2048)
            self.socket.request([local], ignore=(errno.EEXIST,))

    def _ensure_routed(self, spec: NetworkSpec) -> None:
        name = spec.bridge
        group = interface_group(spec.number)
        found = rt.link(self.socket, name)
        if found is None:
            # A bridge without ports: it carries no packet, but holds the gateway's address for the host.
            self._request(rt.new_bridge(name, mac=random_mac(), group=group))
            found = rt.link(self.socket, name)
            if found is None:
                raise System(f"interface {name} has gone while it was being made")
        messages = [
            rt.configure(found.index, address_generation=rt.IN6_ADDR_GEN_MODE_NONE),
            rt.set_link(found.index, up=True),
        ]
        for pool in spec.pools:
            subnet = ipaddress.ip_network(pool.subnet)
            if pool.gateway:
                address = ipaddress.ip_interface(f"{pool.gateway}/{subnet.max_prefixlen}")
                messages.append(rt.new_address(found.index, address, replace=True))
            # Addresses without a container are nobody's: they must not leave by the default route.
            messages.append(rt.new_route(subnet, route_type=rt.RTN_UNREACHABLE, metric=_NOBODYS, replace=True))
        self._request(*messages)

    def _ensure_parent(self, spec: NetworkSpec) -> None:
        """The parent of a macvlan or ipvlan network: a link of the host, a VLAN of one (made here), or one of ours."""
        name = parent_name(spec)
        if rt.link(self.socket, name) is not None:
            return
        if spec.own_interface and not spec.options.get(PARENT):
            self._make_parent(name)
            return
        base, dot, vlan = name.rpartition(".")
        if not dot:
            raise NotFound(f"invalid subinterface vlan name {name}, example formatting is eth0.10")
        if not vlan.isdecimal():
            raise NotFound(f"unable to parse a valid vlan id from: {vlan} (ex. eth0.10 for vlan 10)")
        parent = rt.link(self.socket, base)
        if parent is None:
            raise NotFound(f"-o parent interface was not found on the host: {base}")
        if not 0 < int(vlan) < 4095:
            raise InvalidParameter(f"vlan id must be between 1-4094, received: {vlan}")
        try:
            self.socket.request([rt.new_vlan(name, parent.index, int(vlan))])
        except NetlinkError as error:
            if error.errno == errno.EOPNOTSUPP:
                raise Unsupported(f"cannot make {name}: this kernel has no VLAN driver (CONFIG_VLAN_8021Q)") from error
            raise System(str(error.strerror)) from error

    def _make_parent(self, name: str) -> None:
        """An interface that leads nowhere: a dummy, or where the kernel lacks that, a cable to ourselves."""
        try:
            self.socket.request([rt.new_dummy(name)])
        except NetlinkError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise System(str(error.strerror)) from error
            far = f"dp-{name[3:]}"
            home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                self._request(rt.new_veth(name, far, home))
            finally:
                os.close(home)
            self._request(
                rt.set_link(self._index(name), up=True), rt.set_link(self._index(far), up=True), rt.settle(name)
            )

    def _check_ipvlan(self) -> None:
        """Find out whether the kernel has ipvlan by asking it for one on an interface that cannot exist."""
        try:
            self.socket.request([rt.new_ipvlan("ipvl-probe", 0x7FFFFFFE, "l2")])
        except NetlinkError as error:
            if error.errno == errno.EOPNOTSUPP:
                raise Unsupported(
                    "this kernel has no ipvlan driver (CONFIG_IPVLAN): use a macvlan, routed or bridge network"
                ) from error

    def withdraw(self, spec: NetworkSpec) -> None:
        """Remove what :meth:`ensure` made. An interface that was there before us stays, without our mark."""
        if spec.driver == "routed":
            self._withdraw_unreachable(ipaddress.ip_network(pool.subnet) for pool in spec.pools)
        name = parent_name(spec) if spec.driver in ("macvlan", "ipvlan") else spec.bridge
        found = rt.link(self.socket, name)
        self._indexes.pop(name, None)
        if found is None:
            return
        if spec.own_interface:
            self.socket.request([rt.delete_link(found.index)], ignore=(errno.ENODEV,))
        elif spec.driver == "bridge":
            self.socket.request([rt.set_link(found.index, group=0)], ignore=(errno.ENODEV,))

    # --- endpoints -------------------------------------------------------------------------------------------------

    def join(self, joins: Sequence[Join], netns: int, rtnl: int | None) -> None:
        """Make every endpoint's interface inside ``netns`` and configure it.

        ``rtnl`` is a NETLINK_ROUTE socket that was opened inside; None: one is opened.

        Raises:
            System: the kernel refused; what was made goes with the namespace, or with :meth:`leave`.
        """
        container = self._container_socket(netns, rtnl)
        try:
            first: list[Message] = [rt.set_link(1, up=True)]
            for one in joins:
                index = self._make(one.spec, one.endpoint, netns, container)
                container.request([*first, *self._configuration(one.spec, one.endpoint, index)])
                first = []
                if one.endpoint.ipv6:
                    _await_local(container, ipaddress.ip_interface(one.endpoint.ipv6).ip)
                if one.endpoint.interface:
                    bridge = [one.spec.bridge] if one.spec.driver == "bridge" else []
                    self.socket.request([rt.settle(name) for name in (one.endpoint.interface, *bridge)])
                    if bridge and one.endpoint.used_before and int(one.spec.options.get(ADVERTISEMENTS, "1")):
                        self._announce(one.endpoint, index, netns, container)
            for one in joins:
                self._sysctls(one.spec, one.endpoint, netns)
        except NetlinkError as error:
            raise System(f"cannot connect the container: {error}") from error
        finally:
            if rtnl is None:
                container.close()
            else:
                container.detach()

    @staticmethod
    def _container_socket(netns: int, rtnl: int | None) -> NetlinkSocket:
        if rtnl is not None:
            return NetlinkSocket(NETLINK_ROUTE, rtnl)
        with inside(netns):
            return NetlinkSocket(NETLINK_ROUTE)

    def _make(self, spec: NetworkSpec, endpoint: Endpoint, netns: int, container: NetlinkSocket) -> int:
        """Create the endpoint's link; returns its index inside the container."""
        match spec.driver:
            case "bridge":
                try:
                    self._veth(spec, endpoint, netns, master=self._index(spec.bridge), mtu=spec.mtu)
                except NetlinkError as error:
                    if error.errno == errno.EXFULL:
                        raise System(
                            f"bridge {spec.bridge} has no free port: a Linux bridge ends at 1,023. "
                            "A network of the driver routed has no such end"
                        ) from error
                    if error.errno != errno.ENODEV:
                        raise
                    # The bridge was deleted or made anew behind our back.
                    self.ensure(spec)
                    self._veth(spec, endpoint, netns, master=self._index(spec.bridge), mtu=spec.mtu)
            case "routed":
                self._veth(spec, endpoint, netns, mac=HOST_MAC, mtu=spec.mtu)
            case "macvlan" | "ipvlan":
                parent = self._index(parent_name(spec))
                name = endpoint.container_interface
                if spec.driver == "macvlan":
                    mode = spec.options.get(MACVLAN_MODE) or "bridge"
                    made = rt.new_macvlan(name, parent, mode, netns, mac=endpoint.mac, mtu=spec.mtu)
                else:
                    mode, flag = spec.options.get(IPVLAN_MODE) or "l2", spec.options.get(IPVLAN_FLAG) or "bridge"
                    made = rt.new_ipvlan(name, parent, mode, netns, flag=flag, mtu=spec.mtu)
                self.socket.request([made])
                found = rt.link(container, name)
                if found is None:
                    raise System(f"{spec.driver} {name} has gone while it was being made")
                return found.index
            case _:
                raise System(f"network {spec.name}: driver {spec.driver} makes no interfaces")
        near = rt.link(self.socket, endpoint.interface)
        if near is None:
            raise System(f"the container's network namespace ended while {endpoint.interface} was being made")
        if spec.driver == "bridge" or not endpoint.ipv6:
            # Every interface with IPv6 has its multicast and link-local routes in one list, which the kernel walks at
            # each change of any of them: without this a start takes the longer the more containers there are.
            _set_ipv6(endpoint.interface, "disable_ipv6", 1)
        else:
            _set_ipv6(endpoint.interface, "accept_ra", 0)
        messages = [rt.set_link(near.index, up=True)]
        if spec.driver == "bridge" and self.hairpin:
            messages.append(rt.set_link(near.index, hairpin=True))
        if spec.driver == "routed":
            messages.append(rt.configure(near.index, ipv4={rt.IPV4_DEVCONF_ROUTE_LOCALNET: 1}))
            for text in (endpoint.address4, endpoint.address6, *endpoint.link_local):
                if text:
                    address = ipaddress.ip_interface(text).ip
                    messages.append(rt.new_route(ipaddress.ip_network(address), near.index, replace=True))
                    messages.append(rt.new_neighbour(near.index, address, endpoint.mac))
        self.socket.request(messages)
        self.fast_path.connect(spec, endpoint, near.index)
        return near.link

    def _veth(
        self, spec: NetworkSpec, endpoint: Endpoint, netns: int, *, master: int = 0, mac: str = "", mtu: int = 0
    ) -> None:
        self.socket.request(
            [
                rt.new_veth(
                    endpoint.interface,
                    endpoint.container_interface,
                    netns,
                    master=master,
                    mac=mac,
                    peer_mac=endpoint.mac,
                    mtu=mtu,
                    group=interface_group(spec.number),
                )
            ]
        )

    def _index(self, name: str) -> int:
        index = self._indexes.get(name)
        if index is None:
            found = rt.link(self.socket, name)
            if found is None:
                raise NetlinkError(errno.ENODEV, f"interface {name}: {os.strerror(errno.ENODEV)}")
            index = self._indexes[name] = found.index
        return index

    @staticmethod
    def _announce(endpoint: Endpoint, index: int, netns: int, container: NetlinkSocket) -> None:
        """Tell the neighbours the MAC of an address that may have been somebody else's. Each of them hears it: with
        1,000 that takes 6 ms.

        The kernel does so when a link gets its MAC (arp_notify, ndisc_notify). What it sent when the link came up was
        dropped: the bridge's port did not forward yet.
        """
        if endpoint.ipv6:
            with inside(netns):
                _set_ipv6(endpoint.container_interface, "ndisc_notify", 1)
        container.request([rt.settle(endpoint.container_interface), rt.set_link(index, mac=endpoint.mac)])

    @staticmethod
    def _configuration(spec: NetworkSpec, endpoint: Endpoint, index: int) -> list[Message]:
        """What makes a link inside a container usable: addresses, up, routes."""
        generation = rt.IN6_ADDR_GEN_MODE_EUI64 if endpoint.ipv6 else rt.IN6_ADDR_GEN_MODE_NONE
        # arp_notify announces a reused address with its new MAC.
        messages = [
            rt.configure(
                index,
                ipv4={rt.IPV4_DEVCONF_ARP_NOTIFY: 1},
                address_generation=generation if spec.carries_ipv6 else None,
            )
        ]
        addresses = [text for text in (endpoint.ipv4, endpoint.ipv6, *endpoint.link_local) if text]
        messages += [rt.new_address(index, ipaddress.ip_interface(text)) for text in addresses]
        messages.append(rt.set_link(index, up=True))
        if endpoint.ipv6:
            messages.append(rt.settle(endpoint.container_interface))  # IPv6 awaits the link's operational state
        if spec.driver == "routed":
            for text in (endpoint.gateway4, endpoint.gateway6):
                if text:
                    messages.append(rt.new_neighbour(index, ipaddress.ip_address(text), HOST_MAC))
        messages += default_routes(spec, endpoint, index)
        return messages

    def _sysctls(self, spec: NetworkSpec, endpoint: Endpoint, netns: int) -> None:
        """Driver option com.docker.network.endpoint.sysctls: "net.ipv4.conf.IFNAME.log_martians=1,…"."""
        wanted = endpoint.options.get(ENDPOINT_SYSCTLS, "")
        # Routers out there must not give it the addresses it was not to have (CVE-2024-32473). On bridges they cannot.
        exposed = spec.driver in ("macvlan", "ipvlan") and not endpoint.ipv6
        if not wanted and not exposed:
            return
        with inside(netns):
            if exposed:
                _set_ipv6(endpoint.container_interface, "disable_ipv6", 1)
            if not wanted:
                return
            for assignment in wanted.split(","):
                key, _, value = assignment.strip().partition("=")
                # The docker command writes option values in small letters; an interface's name may have dots.
                before, placeholder, after = re.split(r"(?i)(/ifname/)|$", key.replace(".", "/"), maxsplit=1)
                path = Path("/proc/sys") / before
                if placeholder:
                    path = path / endpoint.container_interface / after
                if ".." in key or not key.startswith("net."):
                    raise InvalidParameter(f"unsupported sysctl for an endpoint: {key}")
                try:
                    path.write_text(value)
                except OSError as error:
                    raise InvalidParameter(f"cannot set sysctl {key} to {value}: {error.strerror}") from error

    def leave(self, spec: NetworkSpec, endpoint: Endpoint, netns: int | None, rtnl: int | None) -> None:
        """Take an endpoint's link out of a container that goes on running. Slow: deleting waits for the kernel."""
        if netns is not None:
            container = self._container_socket(netns, rtnl)
            try:
                found = rt.link(container, endpoint.container_interface)
                if found is not None:
                    container.request([rt.delete_link(found.index)], ignore=(errno.ENODEV,))
            finally:
                if rtnl is None:
                    container.close()
                else:
                    container.detach()
        elif endpoint.interface:
            self.remove(endpoint.interface)

    def remove(self, name: str) -> None:
        """Delete a host-side link, if it is still there."""
        found = rt.link(self.socket, name)
        if found is not None:
            self.socket.request([rt.delete_link(found.index)], ignore=(errno.ENODEV,))

    def reroute(
        self, old: tuple[NetworkSpec, Endpoint] | None, new: tuple[NetworkSpec, Endpoint] | None, version: int,
        netns: int, rtnl: int | None,
    ) -> None:  # fmt: skip
        """Let another endpoint provide a running container's default route."""
        container = self._container_socket(netns, rtnl)
        try:
            if old is not None:
                found = rt.link(container, old[1].container_interface)
                if found is not None:
                    everything = _DEFAULT4 if version == 4 else _DEFAULT6
                    container.request(
                        [rt.delete_route(everything, found.index)], ignore=(errno.ESRCH, errno.ENODEV, errno.ENOENT)
                    )
            if new is not None:
                found = rt.link(container, new[1].container_interface)
                if found is not None:
                    routes = [
                        route
                        for route in default_routes(*new, found.index)
                        if (route.body[0] == socket.AF_INET) == (version == 4)
                    ]
                    container.request(routes, ignore=(errno.EEXIST,))
        finally:
            if rtnl is None:
                container.close()
            else:
                container.detach()

    def _withdraw_unreachable(self, subnets: Iterable[IPNetwork]) -> None:
        routes = [rt.delete_route(subnet, route_type=rt.RTN_UNREACHABLE, metric=_NOBODYS) for subnet in subnets]
        if routes:
            self.socket.request(routes, ignore=(errno.ESRCH, errno.ENOENT))

    def withdraw_orphans(self, networks: Sequence[NetworkSpec]) -> list[IPNetwork]:
        """Remove the routes of routed networks that are no more, and say which."""
        known = {ipaddress.ip_network(pool.subnet) for spec in networks for pool in spec.pools}
        orphans = [
            route.destination
            for route in rt.routes(self.socket)
            if (route.kind, route.metric, route.table) == (rt.RTN_UNREACHABLE, _NOBODYS, rt.RT_TABLE_MAIN)
            and route.destination not in known
        ]
        self._withdraw_unreachable(orphans)
        return orphans

    def orphans(self, networks: Sequence[NetworkSpec], endpoints: Sequence[Endpoint]) -> list[str]:
        """Names of links that carry our mark and belong to nothing known."""
        known = {endpoint.interface for endpoint in endpoints}
        for spec in networks:
            known.add(parent_name(spec) if spec.driver in ("macvlan", "ipvlan") else spec.bridge)
        return [
            one.name
            for one in rt.links(self.socket)
            if FIRST_GROUP <= one.group < FIRST_GROUP + (1 << 20) and one.name not in known
        ]

    def _request(self, *messages: Message) -> None:
        try:
            self.socket.request(messages)
        except NetlinkError as error:
            if error.errno == errno.EEXIST:
                raise Conflict(str(error.strerror)) from error
            raise System(f"{error.strerror}") from error


def _await_local(sock: NetlinkSocket, address: IPAddress) -> None:
    """Wait until an IPv6 address that was just added works, which is a millisecond unless the kernel is very busy."""
    deadline = time.monotonic() + _ADDRESS_TIMEOUT
    while not rt.is_local(sock, address):
        if time.monotonic() > deadline:
            raise System(f"the address {address} does not become usable")
        time.sleep(0.0005)


def _set_ipv6(name: str, key: str, value: int) -> None:
    """A setting of an interface of the namespace this thread is in; a host without IPv6 has none."""
    try:
        fd = os.open(f"/proc/sys/net/ipv6/conf/{name}/{key}", os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        os.write(fd, str(value).encode())
    finally:
        os.close(fd)


def default_routes(spec: NetworkSpec, endpoint: Endpoint, index: int) -> list[Message]:
    """The default routes a container has through this endpoint, if it is the one that provides them."""
    onlink = spec.driver == "routed"
    result = []
    for everything, gateway, wanted in (
        (_DEFAULT4, endpoint.gateway4, endpoint.default_gateway4),
        (_DEFAULT6, endpoint.gateway6, endpoint.default_gateway6),
    ):
        if not wanted:
            continue
        via = ipaddress.ip_address(gateway) if gateway else None
        if via is None and spec.driver not in ("macvlan", "ipvlan"):
            continue
        result.append(rt.new_route(everything, index, via, onlink=onlink))
    return result


def parent_name(spec: NetworkSpec) -> str:
    """The interface that a macvlan or ipvlan network hangs on."""
    return spec.options.get(PARENT) or f"dm-{spec.id[:12]}"
