"""What may pass and where published ports lead: one nftables table of ours, made of maps and sets.

The rules are written once, when the daemon starts; after that a network, a container or a port only adds and removes
*elements*, in one transaction each, and a packet costs the same number of look-ups however many there are. Everything
here is a pure function of the stored networks and endpoints, except :class:`Firewall`, which keeps the kernel in step.

There are two tables called ``seacan``, because nftables keeps families apart: ``inet`` decides about routed packets,
and ``bridge`` about who may use which address on a bridge. Links are known by their *group*: every host-side link of a
network carries the network's number (:data:`FIRST_GROUP` and up).

The administrator's rules go into the chain ``inet seacan admin``: it is evaluated before ours for every forwarded
packet, and we never touch its contents. A verdict of ``accept`` there ends our evaluation but not that of
other tables, and what another table drops (ufw, firewalld) stays dropped. See docs/guide/network.md.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from seacan.linux import nftables as nft
from seacan.linux.netlink import NetlinkError, NetlinkSocket
from seacan.linux.nftables import Batch, Element
from seacan.linux.rtnetlink import mac_bytes
from seacan.network.model import TRUSTED_INTERFACES, Endpoint, IPAddress, NetworkSpec, PublishedPort

log = logging.getLogger(__name__)

TABLE = "seacan"
ADMIN = "admin"
FIRST_GROUP = 0x5EA00000
"""Interface groups from here on are ours: this plus the network's number."""

ROUTER = ipaddress.IPv6Address("fe80::1")
"""What every bridge with IPv6 answers to."""
_PROTO = {"tcp": 6, "udp": 17, "sctp": 132}
_ICMP = {4: b"\x01", 6: b"\x3a"}
_ANY = {"0.0.0.0", "::"}

INET, BRIDGE = nft.NFPROTO_INET, nft.NFPROTO_BRIDGE


@dataclass(frozen=True, slots=True)
class Entry:
    """An element and the set it belongs to."""

    family: int
    set: str
    element: Element


def interface_group(number: int) -> int:
    return FIRST_GROUP + number


def link_local(mac: str) -> IPAddress:
    """The IPv6 link-local address the kernel derives from a MAC (RFC 4291, appendix A)."""
    raw = bytearray(mac_bytes(mac))
    raw[0] ^= 2
    return ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + bytes(raw[:3]) + b"\xff\xfe" + bytes(raw[3:]))


# --- the rules -----------------------------------------------------------------------------------------------------

_SETS: tuple[tuple[str, tuple[nft.Type, ...], tuple[nft.Type, ...] | int | None, bool], ...] = (
    ("ours", (nft.GROUP,), None, False),
    ("routed", (nft.GROUP,), None, False),
    ("icc", (nft.GROUP, nft.GROUP), None, False),
    ("internal", (nft.GROUP,), None, False),
    ("trusted", (nft.IFNAME, nft.GROUP), None, False),
    ("linked4", (nft.IPV4, nft.IPV4, nft.L4PROTO, nft.PORT), None, False),
    *(
        entry
        for version, address in (("4", nft.IPV4), ("6", nft.IPV6))
        for entry in (
            (f"to{version}", (nft.GROUP,), nft.VERDICT, False),
            (f"port{version}", (nft.L4PROTO, nft.PORT), (address, nft.PORT), False),
            (f"addr{version}", (address, nft.L4PROTO, nft.PORT), (address, nft.PORT), False),
            (f"open{version}", (address, nft.L4PROTO, nft.PORT), None, False),
            (f"local{version}", (nft.GROUP, address), None, True),
            (f"masq{version}", (address,), None, True),
            (f"snat{version}", (nft.GROUP,), (address,), False),
            (f"gateway{version}", (nft.GROUP,), (address,), False),
            (f"source{version}", (nft.IFNAME, address), None, False),
        )
    ),
)
_BRIDGE_SETS: tuple[tuple[str, tuple[nft.Type, ...], tuple[nft.Type, ...] | int | None, bool], ...] = (
    ("ours", (nft.GROUP,), None, False),
    ("isolated", (nft.GROUP,), None, False),
    ("mac", (nft.ETHER,), None, False),
    ("own", (nft.IFNAME, nft.ETHER), None, False),
    ("address4", (nft.IPV4,), None, False),
    ("address6", (nft.IPV6,), None, False),
    ("bind4", (nft.IFNAME, nft.ETHER, nft.IPV4), None, False),
    ("bind6", (nft.IFNAME, nft.ETHER, nft.IPV6), None, False),
    ("linked4", (nft.IPV4, nft.IPV4, nft.L4PROTO, nft.PORT), None, False),
)
_DNAT = nft.ct(nft.CT_STATUS), nft.mask(nft.group(nft.IPS_DST_NAT)), nft.compare(bytes(4), nft.NEQ)
_ACCEPT, _DROP, _RETURN = nft.verdict(nft.NF_ACCEPT), nft.verdict(nft.NF_DROP), nft.verdict(nft.NFT_RETURN)
_IS4 = nft.meta(nft.META_NFPROTO), nft.compare(bytes([nft.NFPROTO_IPV4]))
_IS6 = nft.meta(nft.META_NFPROTO), nft.compare(bytes([nft.NFPROTO_IPV6]))
_LOOPBACK6 = ipaddress.IPv6Address("::1").packed


def _is(version: int) -> tuple[bytes, bytes]:
    return _IS4 if version == 4 else _IS6


def _saddr(version: int, word: int = 0) -> bytes:
    return nft.payload(1, 12, 4, word) if version == 4 else nft.payload(1, 8, 16, word)


def _daddr(version: int, word: int = 0) -> bytes:
    return nft.payload(1, 16, 4, word) if version == 4 else nft.payload(1, 24, 16, word)


def _dport(word: int) -> bytes:
    return nft.payload(2, 2, 2, word)


def _proto(word: int) -> bytes:
    return nft.meta(nft.META_L4PROTO, word)


def rules(*, forwarding_is_ours: Collection[int] = ()) -> list[Batch]:
    """Both tables with their sets, chains and rules, to be applied over whatever is there.

    Elements and the administrator's chain stay. ``forwarding_is_ours`` has the IP versions that the host
    did not forward before we made it: then it still forwards none that has nothing to do with containers.
    """
    b = Batch(INET, TABLE)
    b.add_table()
    for name, fields, data, interval in _SETS:
        b.add_set(name, fields, data, interval=interval)
    b.add_chain(ADMIN)
    chains = ("guard", "to-nat", "to-open", "to-routed", "to-none", "hairpin4", "hairpin6", "publish")
    for chain in chains:
        b.add_chain(chain)
    b.add_chain("raw", "filter", "prerouting", -300)
    b.add_chain("prerouting", "nat", "prerouting", -100)
    b.add_chain("output", "nat", "output", -100)
    b.add_chain("postrouting", "nat", "postrouting", 100)
    b.add_chain("forward", "filter", "forward", 0)
    for chain in (*chains, "raw", "prerouting", "output", "postrouting", "forward"):
        b.flush_chain(chain)

    # Nothing that comes from a container may claim the host's loopback addresses (route_localnet is on for its link),
    # and on a routed network nothing may come from an address that is not the container's own.
    b.add_rule("raw", nft.meta(nft.META_IIFGROUP), nft.compare(bytes(4)), _RETURN)
    b.add_rule("raw", nft.meta(nft.META_IIFGROUP), nft.lookup("ours"), nft.verdict(nft.NFT_GOTO, "guard"))
    for load in (_daddr, _saddr):
        loopback = nft.mask(b"\xff\0\0\0"), nft.compare(b"\x7f\0\0\0")
        b.add_rule("guard", *_IS4, load(4), *loopback, _DROP)
    b.add_rule("guard", nft.meta(nft.META_IIFGROUP), nft.lookup("routed", invert=True), _RETURN)
    for version in (4, 6):
        sender = nft.meta(nft.META_IIFNAME, 0), _saddr(version, 4), nft.lookup(f"source{version}")
        b.add_rule("guard", *_is(version), *sender, _RETURN)
    b.add_rule("guard", _DROP)

    for version in (4, 6):
        width = 1 if version == 4 else 4
        found = _daddr(version, 0), _proto(width), _dport(width + 1)
        to = nft.dnat(nft.NFPROTO_IPV4 if version == 4 else nft.NFPROTO_IPV6, 0, width)
        b.add_rule("publish", *_is(version), *found, nft.lookup(f"addr{version}", into=0), to)
        local = nft.fib_daddr_type(), nft.compare(nft.group(nft.RTN_LOCAL))
        anywhere = _proto(0), _dport(1), nft.lookup(f"port{version}", into=0)
        b.add_rule("publish", *_is(version), *local, *anywhere, to)
    jump = nft.verdict(nft.NFT_JUMP, "publish")
    for chain in ("prerouting", "output"):
        for protocol in (b"\x06", b"\x11", b"\x84"):
            b.add_rule(chain, _proto(0), nft.compare(protocol), jump)

    for version in (4, 6):
        family = nft.NFPROTO_IPV4 if version == 4 else nft.NFPROTO_IPV6
        inside = nft.meta(nft.META_OIFGROUP, 0), _saddr(version, 1), nft.lookup(f"local{version}")
        b.add_rule("postrouting", *_is(version), *inside, nft.verdict(nft.NFT_GOTO, f"hairpin{version}"))
        # A container that is reached from its own network through a published port answers past the host unless
        # the question seems to come from the gateway.
        gateway = nft.meta(nft.META_OIFGROUP, 0), nft.lookup(f"gateway{version}", into=0), nft.snat(family, 0)
        b.add_rule(f"hairpin{version}", *_DNAT, *gateway)
        b.add_rule(f"hairpin{version}", *_DNAT, nft.masquerade())
    ours = nft.meta(nft.META_OIFGROUP, 0), nft.lookup("ours")
    from4 = _saddr(4), nft.mask(b"\xff\0\0\0"), nft.compare(b"\x7f\0\0\0")
    from6 = _saddr(6), nft.compare(_LOOPBACK6)
    loopbacks: tuple[tuple[int, tuple[bytes, ...]], ...] = ((4, from4), (6, from6))
    for version, from_loopback in loopbacks:
        family = nft.NFPROTO_IPV4 if version == 4 else nft.NFPROTO_IPV6
        gateway = nft.meta(nft.META_OIFGROUP, 0), nft.lookup(f"gateway{version}", into=0), nft.snat(family, 0)
        b.add_rule("postrouting", *_is(version), *from_loopback, *ours, *gateway)
        b.add_rule("postrouting", *_is(version), *from_loopback, *ours, nft.masquerade())
    for version in (4, 6):
        family = nft.NFPROTO_IPV4 if version == 4 else nft.NFPROTO_IPV6
        fixed = nft.meta(nft.META_IIFGROUP, 0), nft.lookup(f"snat{version}", into=0), nft.snat(family, 0)
        source = _saddr(version), nft.lookup(f"masq{version}")
        b.add_rule("postrouting", *_is(version), *source, *fixed)
        b.add_rule("postrouting", *_is(version), *source, nft.masquerade())

    b.add_rule("forward", nft.verdict(nft.NFT_JUMP, ADMIN))
    known = nft.mask(nft.group(nft.CT_ESTABLISHED | nft.CT_RELATED)), nft.compare(bytes(4), nft.NEQ)
    b.add_rule("forward", nft.ct(nft.CT_STATE), *known, _ACCEPT)
    b.add_rule("forward", nft.meta(nft.META_IIFGROUP, 0), nft.meta(nft.META_OIFGROUP, 1), nft.lookup("icc"), _ACCEPT)
    b.add_rule("forward", nft.meta(nft.META_IIFGROUP), nft.lookup("internal"), _DROP)
    for version in (4, 6):
        b.add_rule("forward", *_is(version), nft.meta(nft.META_OIFGROUP), nft.verdict_map(f"to{version}"))
    if forwarding_is_ours:
        b.add_rule("forward", nft.meta(nft.META_IIFGROUP), nft.lookup("ours"), _ACCEPT)
    for version in sorted(forwarding_is_ours):
        b.add_rule("forward", *_is(version), _DROP)

    linked = _saddr(4, 0), _daddr(4, 1), _proto(2), _dport(3), nft.lookup("linked4")
    b.add_rule("to-nat", *_DNAT, _ACCEPT)
    b.add_rule("to-nat", *_IS4, *linked, _ACCEPT)
    trusted = nft.meta(nft.META_IIFNAME, 0), nft.meta(nft.META_OIFGROUP, 4), nft.lookup("trusted")
    b.add_rule("to-nat", *trusted, _ACCEPT)
    b.add_rule("to-nat", _DROP)
    b.add_rule("to-open", _ACCEPT)
    for version in (4, 6):
        width = 1 if version == 4 else 4
        b.add_rule("to-routed", *_is(version), _proto(0), nft.compare(_ICMP[version]), _ACCEPT)
        opened = _daddr(version, 0), _proto(width), _dport(width + 1), nft.lookup(f"open{version}")
        b.add_rule("to-routed", *_is(version), *opened, _ACCEPT)
    b.add_rule("to-routed", *_DNAT, _ACCEPT)
    b.add_rule("to-routed", *trusted, _ACCEPT)
    b.add_rule("to-routed", _DROP)
    b.add_rule("to-none", _DROP)
    return [b, _bridge_rules()]


def _bridge_rules() -> Batch:
    """Who may use which address: a container's own are its alone, whatever it sends.

    Addresses that belong to no container and to no gateway are left alone (a container may route for others, or share a
    virtual address with its peers, as under dockerd).
    """
    b = Batch(BRIDGE, TABLE)
    b.add_table()
    for name, fields, data, interval in _BRIDGE_SETS:
        b.add_set(name, fields, data, interval=interval)
    b.add_chain("guard")
    b.add_chain("isolation")
    b.add_chain("prerouting", "filter", "prerouting", -200)
    b.add_chain("forward", "filter", "forward", -200)
    for chain in ("guard", "isolation", "prerouting", "forward"):
        b.flush_chain(chain)
    protocol = nft.meta(nft.META_PROTOCOL)
    is_ip, is_ip6, is_arp = ((protocol, nft.compare(kind)) for kind in (b"\x08\x00", b"\x86\xdd", b"\x08\x06"))
    port, ether = nft.meta(nft.META_IIFNAME, 0), nft.payload(0, 6, 6, 4)
    arp_sender = nft.payload(1, 14, 4)

    b.add_rule("prerouting", nft.meta(nft.META_IIFGROUP), nft.compare(bytes(4)), _ACCEPT)
    # What nearly every packet is: a container's own address, from its own MAC, through its own port.
    b.add_rule("prerouting", *is_ip, port, ether, nft.payload(1, 12, 4, 6), nft.lookup("bind4"), _ACCEPT)
    b.add_rule("prerouting", nft.meta(nft.META_IIFGROUP), nft.lookup("ours"), nft.verdict(nft.NFT_GOTO, "guard"))
    # The kernel has taken one VLAN tag off; below a second one the rules see nothing, but the receiver takes both off.
    for tag in (b"\x81\x00", b"\x88\xa8"):
        b.add_rule("guard", protocol, nft.compare(tag), _DROP)
    b.add_rule("guard", *is_arp, port, ether, nft.payload(1, 14, 4, 6), nft.lookup("bind4"), _ACCEPT)
    # Router advertisements and redirects are the host's to send; so are neighbour advertisements for others' addresses.
    icmp6 = nft.meta(nft.META_L4PROTO), nft.compare(b"\x3a")
    for kind in (134, 137):
        b.add_rule("guard", *is_ip6, *icmp6, nft.payload(2, 0, 1), nft.compare(bytes([kind])), _DROP)
    advert = nft.payload(2, 0, 1), nft.compare(b"\x88"), nft.payload(2, 8, 16), nft.lookup("address6")
    not_mine = port, ether, nft.payload(2, 8, 16, 6), nft.lookup("bind6", invert=True)
    b.add_rule("guard", *is_ip6, *icmp6, *advert, *not_mine, _DROP)
    b.add_rule("guard", *is_ip6, port, ether, nft.payload(1, 8, 16, 6), nft.lookup("bind6"), _ACCEPT)
    mine = nft.meta(nft.META_IIFNAME, 0), nft.payload(0, 6, 6, 4)
    b.add_rule("guard", nft.payload(0, 6, 6), nft.lookup("mac"), *mine, nft.lookup("own", invert=True), _DROP)
    b.add_rule("guard", *is_arp, arp_sender, nft.lookup("address4"), _DROP)
    b.add_rule("guard", *is_ip, nft.payload(1, 12, 4), nft.lookup("address4"), _DROP)
    b.add_rule("guard", *is_ip6, nft.payload(1, 8, 16), nft.lookup("address6"), _DROP)

    b.add_rule("forward", nft.meta(nft.META_IIFGROUP), nft.lookup("isolated"), nft.verdict(nft.NFT_GOTO, "isolation"))
    source, destination = nft.payload(1, 12, 4, 0), nft.payload(1, 16, 4, 1)
    b.add_rule("isolation", *is_arp, _ACCEPT)
    there = source, destination, nft.payload(1, 9, 1, 2), nft.payload(2, 2, 2, 3)
    back = nft.payload(1, 16, 4, 0), nft.payload(1, 12, 4, 1), nft.payload(1, 9, 1, 2), nft.payload(2, 0, 2, 3)
    b.add_rule("isolation", *is_ip, *there, nft.lookup("linked4"), _ACCEPT)
    b.add_rule("isolation", *is_ip, *back, nft.lookup("linked4"), _ACCEPT)
    neighbour: tuple[bytes, ...] = (nft.meta(nft.META_L4PROTO), nft.compare(b"\x3a"))
    for operator, kind in ((nft.GTE, 133), (nft.LTE, 136)):
        neighbour = (*neighbour, nft.payload(2, 0, 1), nft.compare(bytes([kind]), operator))
    b.add_rule("isolation", *is_ip6, *neighbour, _ACCEPT)
    b.add_rule("isolation", *is_ip, _DROP)
    b.add_rule("isolation", *is_ip6, _DROP)
    return b


# --- the elements --------------------------------------------------------------------------------------------------


def network_entries(spec: NetworkSpec, *, direct: bool = False) -> list[Entry]:
    """The elements a network needs, apart from its containers.

    ``direct`` lets other hosts route to containers' addresses past published ports (``--allow-direct-routing``).
    """
    if spec.driver not in ("bridge", "routed") or spec.config_only:
        return []
    number = nft.group(interface_group(spec.number))
    entries = [Entry(INET, "ours", Element(number))]
    if spec.driver == "routed":
        entries.append(Entry(INET, "routed", Element(number)))
    else:
        entries.append(Entry(BRIDGE, "ours", Element(number)))
    if spec.icc:
        entries.append(Entry(INET, "icc", Element(nft.key(number, number))))
    elif spec.driver == "bridge":
        entries.append(Entry(BRIDGE, "isolated", Element(number)))
    if spec.internal:
        entries.append(Entry(INET, "internal", Element(number)))
    entries += [
        Entry(INET, "trusted", Element(nft.key(nft.ifname(name), number)))
        for name in filter(None, spec.options.get(TRUSTED_INTERFACES, "").split(":"))
    ]
    for version in (4, 6):
        entries += _family_entries(spec, version, number, direct)
    return entries


def _family_entries(spec: NetworkSpec, version: int, number: bytes, direct: bool) -> list[Entry]:
    pools = spec.pools_of(version)
    if not pools:
        return []
    mode = "isolated" if spec.internal else spec.gateway_mode(version)
    chain = {"nat": "to-open" if direct else "to-nat", "nat-unprotected": "to-open", "routed": "to-routed"}.get(
        mode, "to-none"
    )
    entries = [Entry(INET, f"to{version}", Element(number, code=nft.NFT_GOTO, chain=chain))]
    gateway = spec.gateway(version)
    if gateway is not None and mode != "isolated":
        entries.append(Entry(INET, f"gateway{version}", Element(number, value=gateway.packed)))
    for pool in pools:
        subnet = ipaddress.ip_network(pool.subnet)
        first, last = subnet.network_address.packed, subnet.broadcast_address.packed
        entries.append(
            Entry(
                INET,
                f"local{version}",
                Element(nft.key(number, first), end=nft.key(number, last), concatenation=True),
            )
        )
        if spec.masquerade and mode in ("nat", "nat-unprotected"):
            beyond = int(subnet.broadcast_address) + 1
            end = beyond.to_bytes(len(first), "big") if beyond < 1 << (8 * len(first)) else None
            entries.append(Entry(INET, f"masq{version}", Element(first, end=end)))
        if pool.gateway and spec.driver == "bridge":
            address = ipaddress.ip_address(pool.gateway).packed
            entries.append(Entry(BRIDGE, f"address{version}", Element(address)))
    if version == 6 and spec.driver == "bridge" and mode != "isolated":
        entries.append(Entry(BRIDGE, "address6", Element(ROUTER.packed)))
    host = spec.options.get(f"com.docker.network.host_ipv{version}")
    if host:
        entries.append(Entry(INET, f"snat{version}", Element(number, value=ipaddress.ip_address(host).packed)))
    return entries


def endpoint_addresses(endpoint: Endpoint) -> list[IPAddress]:
    """Every address that is an endpoint's own, with those its link-local ones that the kernel derives from the MAC."""
    addresses: list[IPAddress] = [ipaddress.ip_address(one) for one in (endpoint.address4, endpoint.address6) if one]
    addresses += [ipaddress.ip_interface(one).ip for one in endpoint.link_local]
    if endpoint.driver == "bridge" or any(address.version == 6 for address in addresses):
        addresses.append(link_local(endpoint.mac))
    return list(dict.fromkeys(addresses))


def endpoint_entries(spec: NetworkSpec, endpoint: Endpoint) -> list[Entry]:
    """The elements of one container in one network, its published ports included."""
    entries: list[Entry] = []
    port = nft.ifname(endpoint.interface)
    if spec.driver == "bridge":
        mac = mac_bytes(endpoint.mac)
        entries.append(Entry(BRIDGE, "mac", Element(mac)))
        entries.append(Entry(BRIDGE, "own", Element(nft.key(port, mac))))
        for address in endpoint_addresses(endpoint):
            bind = Element(nft.key(port, mac, address.packed))
            entries.append(Entry(BRIDGE, f"bind{address.version}", bind))
            entries.append(Entry(BRIDGE, f"address{address.version}", Element(address.packed)))
    elif spec.driver == "routed":
        entries += [
            Entry(INET, f"source{address.version}", Element(nft.key(port, address.packed)))
            for address in endpoint_addresses(endpoint)
        ]
    else:
        return []
    return entries + port_entries(spec, endpoint)


def port_entries(spec: NetworkSpec, endpoint: Endpoint) -> list[Entry]:
    """The elements of an endpoint's published ports."""
    return [entry for port in endpoint.ports for entry in _port_entries(spec, endpoint, port)]


def _port_entries(spec: NetworkSpec, endpoint: Endpoint, port: PublishedPort) -> list[Entry]:
    version = port.version
    own = endpoint.address4 if version == 4 else endpoint.address6
    if not own:
        return []
    address = ipaddress.ip_address(own).packed
    protocol = bytes([_PROTO[port.protocol]])
    entries = []
    if spec.gateway_mode(version) == "routed":
        entries.append(Entry(INET, f"open{version}", Element(nft.key(address, protocol, nft.port(port.port)))))
    if not port.host_port:
        return entries
    to = nft.key(address, nft.port(port.port))
    host_port = nft.port(port.host_port)
    if port.host_ip in _ANY:
        entries.append(Entry(INET, f"port{version}", Element(nft.key(protocol, host_port), value=to)))
    else:
        host = ipaddress.ip_address(port.host_ip).packed
        entries.append(Entry(INET, f"addr{version}", Element(nft.key(host, protocol, host_port), value=to)))
    return entries


def link_entries(source: str, target: str, exposed: Iterable[str]) -> list[Entry]:
    """Let ``source`` reach ``target``'s exposed ports although their network forbids containers to talk (--link)."""
    entries = []
    for one in exposed:
        number, _, protocol = one.partition("/")
        if protocol not in _PROTO:
            continue
        key = nft.key(
            ipaddress.ip_address(source).packed,
            ipaddress.ip_address(target).packed,
            bytes([_PROTO[protocol]]),
            nft.port(int(number)),
        )
        entries += [Entry(BRIDGE, "linked4", Element(key)), Entry(INET, "linked4", Element(key))]
    return entries


# --- the kernel ----------------------------------------------------------------------------------------------------


class Firewall:
    """Our tables in the network namespace that ``sock`` was opened in. Synchronous; from one thread."""

    def __init__(self, sock: NetlinkSocket, *, enabled: bool = True, direct: bool = False) -> None:
        """``enabled`` false: there are to be no rules (``--iptables=false``). ``direct`` as in network_entries."""
        self.socket = sock
        self.enabled = enabled
        self.direct = direct

    def restate(
        self,
        networks: Mapping[str, NetworkSpec],
        endpoints: Sequence[Endpoint],
        extra: Iterable[Entry] = (),
        *,
        forwarding_is_ours: Collection[int] = (),
    ) -> None:
        """Rules and every element anew, in one transaction: no packet meets a half-made table."""
        if not self.enabled:
            self.delete()
            return
        inet, bridge = rules(forwarding_is_ours=forwarding_is_ours)
        for name, *_ in _SETS:
            inet.flush_set(name)
        for name, *_ in _BRIDGE_SETS:
            bridge.flush_set(name)
        entries = [entry for spec in networks.values() for entry in network_entries(spec, direct=self.direct)]
        for endpoint in endpoints:
            spec = networks.get(endpoint.network)
            if spec is not None:
                entries += endpoint_entries(spec, endpoint)
        entries += extra
        _append(inet, bridge, entries, delete=False)
        nft.commit(self.socket, [inet, bridge])

    def change(self, add: Sequence[Entry] = (), remove: Sequence[Entry] = ()) -> None:
        """Add and remove elements in one transaction.

        Raises:
            NetlinkError: nothing changed. ENOENT: something to be removed was not there (see :meth:`restate`).
        """
        if not self.enabled:
            return
        inet, bridge = Batch(INET, TABLE), Batch(BRIDGE, TABLE)
        _append(inet, bridge, remove, delete=True)
        _append(inet, bridge, add, delete=False)
        nft.commit(self.socket, [inet, bridge])

    def forget(self, address: str) -> None:
        """Forget the UDP conversations that are being sent to a container that has gone."""
        try:
            nft.forget_connections(self.socket, ipaddress.ip_address(address).packed)
        except NetlinkError as error:
            log.warning("cannot forget connections to %s: %s", address, error)

    def delete(self) -> None:
        """Remove both tables, with the administrator's chain."""
        for family in (INET, BRIDGE):
            batch = Batch(family, TABLE)
            batch.delete_table()
            try:
                nft.commit(self.socket, [batch])
            except NetlinkError as error:
                if error.errno != errno.ENOENT:
                    raise


def _append(inet: Batch, bridge: Batch, entries: Iterable[Entry], *, delete: bool) -> None:
    grouped: dict[tuple[int, str], dict[bytes, Element]] = {}
    for entry in entries:
        grouped.setdefault((entry.family, entry.set), {})[entry.element.key] = entry.element
    for (family, name), elements in grouped.items():
        batch = inet if family == INET else bridge
        (batch.delete_elements if delete else batch.add_elements)(name, elements.values())
