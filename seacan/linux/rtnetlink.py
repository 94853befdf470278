"""Links, addresses, routes and neighbours as rtnetlink messages (rtnetlink(7), linux/if_link.h).

Functions return :class:`~seacan.linux.netlink.Message` values to be sent in a batch; ``links``, ``addresses`` and
``routes`` read. Nothing here decides anything.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from dataclasses import dataclass

from seacan.linux.netlink import (
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Message,
    NetlinkError,
    NetlinkSocket,
    Reply,
    attr,
    attributes,
    nested,
    text,
    u8,
    u16,
    u32,
)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface

RTM_NEWLINK = 16
RTM_DELLINK = 17
RTM_GETLINK = 18
RTM_SETLINK = 19
RTM_NEWADDR = 20
RTM_DELADDR = 21
RTM_GETADDR = 22
RTM_NEWROUTE = 24
RTM_DELROUTE = 25
RTM_GETROUTE = 26
RTM_NEWNEIGH = 28

IFF_UP = 0x1
IFF_LOOPBACK = 0x8

IFLA_ADDRESS = 1
IFLA_IFNAME = 3
IFLA_MTU = 4
IFLA_LINK = 5
IFLA_MASTER = 10
IFLA_LINKINFO = 18
IFLA_IFALIAS = 20
IFLA_AF_SPEC = 26
IFLA_GROUP = 27
IFLA_NET_NS_FD = 28
IFLA_EXT_MASK = 29
RTEXT_FILTER_SKIP_STATS = 1 << 3
IFLA_NUM_TX_QUEUES = 31
IFLA_NUM_RX_QUEUES = 32

IFLA_INFO_KIND = 1
IFLA_INFO_DATA = 2
IFLA_INFO_SLAVE_KIND = 4
IFLA_INFO_SLAVE_DATA = 5
VETH_INFO_PEER = 1
IFLA_MACVLAN_MODE = 1
IFLA_IPVLAN_MODE = 1
IFLA_IPVLAN_FLAGS = 2
IFLA_VLAN_ID = 1
IFLA_BR_FORWARD_DELAY = 1
IFLA_BR_STP_STATE = 5
IFLA_BR_MCAST_SNOOPING = 23
IFLA_BRPORT_MODE = 4
IFLA_BRPORT_ISOLATED = 33

IFLA_INET_CONF = 1
IPV4_DEVCONF_ARP_NOTIFY = 22
IPV4_DEVCONF_ROUTE_LOCALNET = 26
IPV4_DEVCONF_RP_FILTER = 8
IPV4_DEVCONF_ACCEPT_LOCAL = 23
IPV4_DEVCONF_FORWARDING = 1
IFLA_INET6_ADDR_GEN_MODE = 8
IN6_ADDR_GEN_MODE_EUI64 = 0
IN6_ADDR_GEN_MODE_NONE = 1

IFA_ADDRESS = 1
IFA_LOCAL = 2
IFA_BROADCAST = 4
IFA_FLAGS = 8
IFA_F_NODAD = 0x02
IFA_F_NOPREFIXROUTE = 0x200

RTA_DST = 1
RTA_OIF = 4
RTA_GATEWAY = 5
RTA_PRIORITY = 6
RTA_PREFSRC = 7
RTA_TABLE = 15
RT_TABLE_MAIN = 254
RT_TABLE_LOCAL = 255
RTPROT_STATIC = 4
RTN_UNICAST = 1
RTN_LOCAL = 2
RTN_UNREACHABLE = 7
RT_SCOPE_UNIVERSE = 0
RT_SCOPE_LINK = 253
RT_SCOPE_NOWHERE = 255
RTNH_F_ONLINK = 4

NDA_DST = 1
NDA_LLADDR = 2
NUD_PERMANENT = 0x80

_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBI")
_RTMSG = struct.Struct("=BBBBBBBBI")
_NDMSG = struct.Struct("=BxHiHBB")

IPVLAN_MODES = {"l2": 0, "l3": 1, "l3s": 2}
IPVLAN_FLAGS = {"bridge": 0, "private": 1, "vepa": 2}
MACVLAN_MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}


def family(address: Address | Network | Interface) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", "").replace("-", ""))


def _kind(name: str, *data: bytes) -> bytes:
    parts = [text(IFLA_INFO_KIND, name)]
    if data:
        parts.append(nested(IFLA_INFO_DATA, *data))
    return nested(IFLA_LINKINFO, *parts)


def new_veth(
    name: str,
    peer: str,
    netns: int,
    *,
    master: int = 0,
    mac: str = "",
    peer_mac: str = "",
    mtu: int = 0,
    group: int = 0,
) -> Message:
    """A veth pair with its far end made in the namespace ``netns`` (a descriptor) from the start.

    The near end is enslaved to ``master`` and in ``group``; both ends are left down, to be configured first. Moving an
    existing end would cost RCU grace periods; making it in place does not. One queue an end: the sysfs objects of more
    cost milliseconds on machines with many CPUs, and a veth takes no queue lock anyway.
    """
    queues = u32(IFLA_NUM_TX_QUEUES, 1) + u32(IFLA_NUM_RX_QUEUES, 1)
    far = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + text(IFLA_IFNAME, peer) + u32(IFLA_NET_NS_FD, netns) + queues
    if peer_mac:
        far += attr(IFLA_ADDRESS, mac_bytes(peer_mac))
    near = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + text(IFLA_IFNAME, name) + queues
    if mtu:
        far += u32(IFLA_MTU, mtu)
        near += u32(IFLA_MTU, mtu)
    if mac:
        near += attr(IFLA_ADDRESS, mac_bytes(mac))
    if group:
        near += u32(IFLA_GROUP, group)
    if master:
        near += u32(IFLA_MASTER, master)
    near += _kind("veth", attr(VETH_INFO_PEER, far))
    return Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, near, f"create veth {name} with peer {peer}")


def new_bridge(name: str, *, mac: str, mtu: int = 0, group: int = 0) -> Message:
    """A bridge, down, without spanning tree and with a MAC of its own (else it changes as ports come and go)."""
    body = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + text(IFLA_IFNAME, name)
    body += attr(IFLA_ADDRESS, mac_bytes(mac))
    if mtu:
        body += u32(IFLA_MTU, mtu)
    if group:
        body += u32(IFLA_GROUP, group)
    body += _kind("bridge", u32(IFLA_BR_FORWARD_DELAY, 0), u32(IFLA_BR_STP_STATE, 0))
    return Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"create bridge {name}")


def new_dummy(name: str) -> Message:
    """An interface, up, that swallows what it is given."""
    body = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, IFF_UP, IFF_UP) + text(IFLA_IFNAME, name) + _kind("dummy")
    return Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"create dummy {name}")


def new_macvlan(name: str, parent: int, mode: str, netns: int, *, mac: str = "", mtu: int = 0) -> Message:
    """A macvlan on top of ``parent``, made inside the namespace ``netns``, left down."""
    body = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + text(IFLA_IFNAME, name) + u32(IFLA_LINK, parent)
    body += u32(IFLA_NET_NS_FD, netns)
    if mac:
        body += attr(IFLA_ADDRESS, mac_bytes(mac))
    if mtu:
        body += u32(IFLA_MTU, mtu)
    body += _kind("macvlan", u32(IFLA_MACVLAN_MODE, MACVLAN_MODES[mode]))
    return Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"create macvlan {name}")


def new_vlan(name: str, parent: int, vlan: int) -> Message:
    body = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, IFF_UP, IFF_UP) + text(IFLA_IFNAME, name) + u32(IFLA_LINK, parent)
    body += _kind("vlan", u16(IFLA_VLAN_ID, vlan))
    return Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"create VLAN interface {name}")


def new_ipvlan(
    name: str, parent: int, mode: str, netns: int | None = None, *, flag: str = "bridge", mtu: int = 0
) -> Message:
    """An ipvlan on top of ``parent``, made inside the namespace ``netns`` (None: the caller's), left down."""
    body = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + text(IFLA_IFNAME, name) + u32(IFLA_LINK, parent)
    if netns is not None:
        body += u32(IFLA_NET_NS_FD, netns)
    if mtu:
        body += u32(IFLA_MTU, mtu)
    data = u16(IFLA_IPVLAN_MODE, IPVLAN_MODES[mode]) + u16(IFLA_IPVLAN_FLAGS, IPVLAN_FLAGS[flag])
    body += _kind("ipvlan", data)
    return Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"create ipvlan {name}")


def set_link(
    index: int,
    *,
    up: bool | None = None,
    master: int | None = None,
    mtu: int = 0,
    mac: str = "",
    name: str = "",
    group: int | None = None,
    isolated: bool | None = None,
    hairpin: bool | None = None,
    netns: int | None = None,
) -> Message:
    """Change a link. ``netns`` is a descriptor of the network namespace it is to move to (under ``name``, if given)."""
    flags = IFF_UP if up else 0
    body = _IFINFO.pack(socket.AF_UNSPEC, 0, index, flags, 0 if up is None else IFF_UP)
    if mtu:
        body += u32(IFLA_MTU, mtu)
    if mac:
        body += attr(IFLA_ADDRESS, mac_bytes(mac))
    if name:
        body += text(IFLA_IFNAME, name)
    if netns is not None:
        body += u32(IFLA_NET_NS_FD, netns)
    if master is not None:
        body += u32(IFLA_MASTER, master)
    if group is not None:
        body += u32(IFLA_GROUP, group)
    port = b""
    if isolated is not None:
        port += u8(IFLA_BRPORT_ISOLATED, int(isolated))
    if hairpin is not None:
        port += u8(IFLA_BRPORT_MODE, int(hairpin))
    if port:
        body += nested(IFLA_LINKINFO, text(IFLA_INFO_SLAVE_KIND, "bridge"), attr(IFLA_INFO_SLAVE_DATA | 0x8000, port))
        return Message(RTM_NEWLINK, 0, body, f"set up bridge port {index}")
    return Message(RTM_SETLINK, 0, body, f"set up link {name or index}")


def configure(index: int, *, ipv4: dict[int, int] | None = None, address_generation: int | None = None) -> Message:
    """Set ``net.ipv4.conf.<link>.*`` values (by IPV4_DEVCONF number) and the way IPv6 link-local addresses are made,
    without a file in /proc/sys."""
    spec = b""
    if ipv4:
        spec += nested(socket.AF_INET, nested(IFLA_INET_CONF, *(u32(key, value) for key, value in ipv4.items())))
    if address_generation is not None:
        spec += nested(socket.AF_INET6, u8(IFLA_INET6_ADDR_GEN_MODE, address_generation))
    body = _IFINFO.pack(socket.AF_UNSPEC, 0, index, 0, 0) + nested(IFLA_AF_SPEC, spec)
    return Message(RTM_SETLINK, 0, body, f"configure link {index}")


def delete_link(index: int) -> Message:
    return Message(RTM_DELLINK, 0, _IFINFO.pack(socket.AF_UNSPEC, 0, index, 0, 0), f"delete link {index}")


def new_address(index: int, interface: Interface, *, prefix_route: bool = True, replace: bool = False) -> Message:
    """Give the link an address, with its broadcast address for IPv4, without duplicate address detection for IPv6."""
    flags = 0 if interface.version == 4 else IFA_F_NODAD
    if not prefix_route:
        flags |= IFA_F_NOPREFIXROUTE
    scope = RT_SCOPE_LINK if interface.ip.is_link_local else RT_SCOPE_UNIVERSE
    body = _IFADDR.pack(family(interface), interface.network.prefixlen, flags & 0xFF, scope, index)
    packed = interface.ip.packed
    body += attr(IFA_LOCAL, packed) + attr(IFA_ADDRESS, packed)
    if interface.version == 4 and interface.network.prefixlen < 31:
        body += attr(IFA_BROADCAST, interface.network.broadcast_address.packed)
    body += u32(IFA_FLAGS, flags)
    return Message(
        RTM_NEWADDR, NLM_F_CREATE | (NLM_F_REPLACE if replace else NLM_F_EXCL), body, f"add address {interface}"
    )


def delete_address(index: int, interface: Interface) -> Message:
    packed = interface.ip.packed
    body = _IFADDR.pack(family(interface), interface.network.prefixlen, 0, 0, index)
    body += attr(IFA_LOCAL, packed) + attr(IFA_ADDRESS, packed)
    return Message(RTM_DELADDR, 0, body, f"remove address {interface}")


def _route(
    kind: int,
    flags: int,
    verb: str,
    destination: Network,
    link: int,
    gateway: Address | None,
    *,
    onlink: bool,
    source: Address | None,
    metric: int,
    route_type: int,
) -> Message:
    scope = RT_SCOPE_LINK if gateway is None and destination.version == 4 and route_type == RTN_UNICAST else 0
    if kind == RTM_DELROUTE:
        scope = RT_SCOPE_NOWHERE  # of any scope
    body = _RTMSG.pack(
        family(destination),
        destination.prefixlen,
        0,
        0,
        RT_TABLE_MAIN,
        RTPROT_STATIC,
        scope,
        route_type,
        RTNH_F_ONLINK if onlink else 0,
    )
    if destination.prefixlen:
        body += attr(RTA_DST, destination.network_address.packed)
    if link:
        body += u32(RTA_OIF, link)
    if gateway is not None:
        body += attr(RTA_GATEWAY, gateway.packed)
    if source is not None:
        body += attr(RTA_PREFSRC, source.packed)
    if metric:
        body += u32(RTA_PRIORITY, metric)
    return Message(kind, flags, body, f"{verb} route {destination}")


def new_route(
    destination: Network,
    link: int = 0,
    gateway: Address | None = None,
    *,
    onlink: bool = False,
    source: Address | None = None,
    metric: int = 0,
    route_type: int = RTN_UNICAST,
    replace: bool = False,
) -> Message:
    return _route(
        RTM_NEWROUTE,
        NLM_F_CREATE | (NLM_F_REPLACE if replace else NLM_F_EXCL),
        "add",
        destination,
        link,
        gateway,
        onlink=onlink,
        source=source,
        metric=metric,
        route_type=route_type,
    )


def new_local_route(destination: Network, link: int, *, metric: int) -> Message:
    """Let the host take what arrives by ``link`` for ``destination`` as its own, although that is no address of it."""
    body = _RTMSG.pack(family(destination), destination.prefixlen, 0, 0, RT_TABLE_LOCAL, RTPROT_STATIC, 0, RTN_LOCAL, 0)
    body += attr(RTA_DST, destination.network_address.packed) + u32(RTA_OIF, link) + u32(RTA_PRIORITY, metric)
    return Message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_APPEND, body, f"add local route {destination}")


def delete_route(
    destination: Network,
    link: int = 0,
    gateway: Address | None = None,
    *,
    metric: int = 0,
    route_type: int = RTN_UNICAST,
) -> Message:
    return _route(
        RTM_DELROUTE,
        0,
        "remove",
        destination,
        link,
        gateway,
        onlink=False,
        source=None,
        metric=metric,
        route_type=route_type,
    )


def new_neighbour(index: int, address: Address, mac: str) -> Message:
    """A permanent neighbour: no ARP or neighbour discovery for it ever."""
    body = _NDMSG.pack(family(address), 0, index, NUD_PERMANENT, 0, 0)
    body += attr(NDA_DST, address.packed) + attr(NDA_LLADDR, mac_bytes(mac))
    return Message(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body, f"add neighbour {address}")


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface. ``link`` is the index of its peer or parent (0: none)."""

    index: int
    name: str
    flags: int
    mac: str
    mtu: int
    master: int
    link: int
    group: int
    kind: str
    slave_kind: str


def _link(reply: Reply) -> Link:
    _, _, index, flags, _ = _IFINFO.unpack_from(reply.body)
    found = attributes(reply.body, 16)
    info = attributes(found.get(IFLA_LINKINFO, b""))

    def number(kind: int) -> int:
        return int(struct.unpack("=I", found[kind])[0]) if len(found.get(kind, b"")) == 4 else 0

    return Link(
        index=index,
        name=_string(found.get(IFLA_IFNAME, b"")),
        flags=flags,
        mac=found.get(IFLA_ADDRESS, b"").hex(":"),
        mtu=number(IFLA_MTU),
        master=number(IFLA_MASTER),
        link=number(IFLA_LINK),
        group=number(IFLA_GROUP),
        kind=_string(info.get(IFLA_INFO_KIND, b"")),
        slave_kind=_string(info.get(IFLA_INFO_SLAVE_KIND, b"")),
    )


def _string(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode(errors="replace")


def link(sock: NetlinkSocket, name: str = "", index: int = 0) -> Link | None:
    """The link of that name or index in the socket's namespace; None if there is none."""
    body = _IFINFO.pack(socket.AF_UNSPEC, 0, index, 0, 0) + u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
    if name:
        body += text(IFLA_IFNAME, name)
    try:
        return _link(sock.get(Message(RTM_GETLINK, 0, body, f"look up link {name or index}")))
    except NetlinkError as error:
        if error.errno in (errno.ENODEV, errno.ENOENT):
            return None
        raise


def settle(name: str) -> Message:
    """Make the kernel act now on the link's carrier having come.

    It hears of it from a work queue otherwise (linkwatch), and a veth whose peer has come up, or a bridge that got its
    first port, drops what it should send until then, which can take a second. Being asked for a link's state makes it
    see to that first (linkwatch_sync_dev in rtnl_getlink).
    """
    body = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + text(IFLA_IFNAME, name)
    return Message(RTM_GETLINK, 0, body + u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS), f"look up link {name}")


def links(sock: NetlinkSocket) -> list[Link]:
    body = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    return [_link(reply) for reply in sock.dump(Message(RTM_GETLINK, 0, body, "list links"))]


def addresses(sock: NetlinkSocket, index: int = 0) -> list[tuple[int, Interface]]:
    """(link index, address) of every address, or of one link's."""
    body = _IFADDR.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    result: list[tuple[int, Interface]] = []
    for reply in sock.dump(Message(RTM_GETADDR, 0, body, "list addresses")):
        _, prefix, _, _, owner = _IFADDR.unpack_from(reply.body)
        found = attributes(reply.body, 8)
        packed = found.get(IFA_LOCAL) or found.get(IFA_ADDRESS)
        if packed and (not index or owner == index):
            result.append((owner, ipaddress.ip_interface((packed, prefix))))
    return result


@dataclass(frozen=True, slots=True)
class Route:
    destination: Network
    link: int
    gateway: Address | None
    table: int
    kind: int
    metric: int


def routes(sock: NetlinkSocket) -> list[Route]:
    """Every route of both families, from all tables."""
    result = []
    for af in (socket.AF_INET, socket.AF_INET6):
        body = _RTMSG.pack(af, 0, 0, 0, 0, 0, 0, 0, 0)
        for reply in sock.dump(Message(RTM_GETROUTE, 0, body, "list routes")):
            got, prefix, _, _, table, _, _, kind, _ = _RTMSG.unpack_from(reply.body)
            if got != af:
                continue
            found = attributes(reply.body, 12)
            zero = bytes(4 if af == socket.AF_INET else 16)
            destination = ipaddress.ip_network((found.get(RTA_DST, zero), prefix), strict=False)
            gateway = ipaddress.ip_address(found[RTA_GATEWAY]) if RTA_GATEWAY in found else None
            oif = struct.unpack("=I", found[RTA_OIF])[0] if RTA_OIF in found else 0
            if RTA_TABLE in found:
                table = struct.unpack("=I", found[RTA_TABLE])[0]
            metric = struct.unpack("=I", found[RTA_PRIORITY])[0] if RTA_PRIORITY in found else 0
            result.append(Route(destination, oif, gateway, table, kind, metric))
    return result


def is_local(sock: NetlinkSocket, address: Address) -> bool:
    """Whether the host takes packets for ``address`` as its own.

    For an IPv6 address that was just added this takes a moment: a work queue makes its route, after it has joined the
    multicast group in which neighbours ask for it.
    """
    body = _RTMSG.pack(family(address), address.max_prefixlen, 0, 0, 0, 0, 0, 0, 0) + attr(RTA_DST, address.packed)
    try:
        reply = sock.get(Message(RTM_GETROUTE, 0, body, f"look up route to {address}"))
    except NetlinkError as error:
        if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
            return False
        raise
    return bool(_RTMSG.unpack_from(reply.body)[7] == RTN_LOCAL)
