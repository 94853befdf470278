"""The short way between two containers of one bridge network: a BPF program in the place of bridge and firewall.

The program sees each packet as it comes out of a container. If the packet's MAC and IP address are the container's own
and its destination is the MAC of another container of the same network, it puts it straight into that container's
interface; everything else goes on to the bridge and the rules, as if there were no program. So it lets through only
what the tables ``inet`` and ``bridge`` (:mod:`seacan.network.firewall`) would: a network without ICC is not in it, nor
are broadcasts, ARP, VLAN tags, ICMPv6 and IPv6 extension headers.

There is one program, attached to every container's link on the host's side (tcx); containers are elements of its maps.
The kernel keeps all of it for as long as a link does, without any process of ours: nothing is pinned, and a next daemon
puts a new program with new maps in the place of the old one. See docs/decisions/0015.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import os
import socket
import struct
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from seacan.linux import bpf
from seacan.linux import nftables as nft
from seacan.linux import rtnetlink as rt
from seacan.linux.bpf import BYTE, HALF, R0, R1, R2, R6, R7, R8, R9, R10, WORD, Assembler, Map
from seacan.linux.netlink import NetlinkSocket
from seacan.linux.syscalls import kernel
from seacan.network.firewall import TABLE, endpoint_addresses
from seacan.network.model import Endpoint, NetworkSpec

log = logging.getLogger(__name__)

NAME = "seacan_fastpath"
"""What the program is called, by which the next daemon knows it."""

_SLOTS = 1 << 15
"""Links whose indexes are equal modulo this share a slot; the newest has it and the others go by the bridge."""
_ETH_P_IP, _ETH_P_IPV6 = socket.htons(0x0800), socket.htons(0x86DD)
_TC_ACT_UNSPEC = -1

# struct __sk_buff
_PROTOCOL, _VLAN_PRESENT, _IFINDEX, _DATA, _DATA_END = 16, 20, 40, 76, 80
# Offsets in a frame
_MAC, _IP = 6, 14
_SOURCE4, _SOURCE6, _NEXT_HEADER = _IP + 12, _IP + 8, _IP + 6

# The maps. The slot of a link: its index, its network's number, and the container's MAC and IPv4 address.
_SLOT = struct.Struct("=II4sI4s")
_SLOT_INDEX, _SLOT_NETWORK, _SLOT_MAC, _SLOT_ADDRESS = 0, 4, 8, 16
_KEY6 = struct.Struct("=I16s")
"""A link's index and an IPv6 address of its container."""
_DESTINATION = struct.Struct("=I4sI")
"""A network's number and a container's MAC."""
_INDEX = struct.Struct("=I")
_SHORTLISTED = _DESTINATION.size + _INDEX.size
"""An entry of the short list: a destination, and the index it has. The list is an array of ``_SLOTS``, by the last two
bytes of the MAC; of the containers that would share a place, the first has it. No look-up is cheaper, and nearly every
packet needs no other. An entry is written only where there was none, so that none is ever a mixture of two."""


def assemble(slots: int, addresses6: int, destinations: int, shortlist: int) -> bytes:
    """The program; the arguments are its maps' descriptors."""
    p = Assembler()
    onward, six, known = p.label(), p.label(), p.label()
    p.copy(R6, R1)
    p.load_word(R7, R6, _DATA)
    p.load_word(R8, R6, _DATA_END)
    p.load_word(R1, R6, _VLAN_PRESENT)
    p.jump_unless_equal(R1, 0, onward)
    _within(p, _IP + 20, onward)

    p.load_word(R1, R6, _IFINDEX)
    p.store(WORD, R10, -20, R1)
    p.and_constant(R1, _SLOTS - 1)
    p.store(WORD, R10, -24, R1)
    _lookup(p, slots, -24, onward)
    p.copy(R9, R0)
    for size, at, offset in ((WORD, _SLOT_MAC, _MAC), (HALF, _SLOT_MAC + 4, _MAC + 4)):
        p.load_word(R1, R9, at)
        p.load(size, R2, R7, offset)
        p.jump_unless_same(R1, R2, onward)
    p.load_word(R1, R9, _SLOT_INDEX)
    p.load_word(R2, R10, -20)
    p.jump_unless_same(R1, R2, onward)

    p.load_word(R1, R6, _PROTOCOL)
    p.jump_if_equal(R1, _ETH_P_IPV6, six)
    p.jump_unless_equal(R1, _ETH_P_IP, onward)
    p.load_word(R1, R9, _SLOT_ADDRESS)
    p.load_word(R2, R7, _SOURCE4)
    p.jump_unless_same(R1, R2, onward)
    p.jump(known)

    p.place(six)
    _within(p, _IP + 40, onward)
    # Neighbour discovery and whatever hides behind extension headers is for the rules to judge.
    plain = p.label()
    p.load(BYTE, R1, R7, _NEXT_HEADER)
    p.jump_if_equal(R1, socket.IPPROTO_TCP, plain)
    p.jump_unless_equal(R1, socket.IPPROTO_UDP, onward)
    p.place(plain)
    for word in range(0, 16, 4):
        p.load_word(R1, R7, _SOURCE6 + word)
        p.store(WORD, R10, -16 + word, R1)
    _lookup(p, addresses6, -20, onward)

    p.place(known)
    p.load_word(R1, R9, _SLOT_NETWORK)
    p.store(WORD, R10, -12, R1)
    p.load_word(R1, R7, 0)
    p.store(WORD, R10, -8, R1)
    p.load(HALF, R1, R7, 4)
    p.store(WORD, R10, -4, R1)
    p.load_word(R2, R9, _SLOT_NETWORK)
    p.xor_register(R1, R2)
    p.and_constant(R1, _SLOTS - 1)
    p.store(WORD, R10, -16, R1)
    unlisted, found = p.label(), p.label()
    _lookup(p, shortlist, -16, onward)
    for word in range(0, _DESTINATION.size, 4):
        p.load_word(R1, R0, word)
        p.load_word(R2, R10, word - _DESTINATION.size)
        p.jump_unless_same(R1, R2, unlisted)
    p.load_word(R2, R0, _DESTINATION.size)
    p.jump(found)
    p.place(unlisted)
    _lookup(p, destinations, -12, onward)
    p.load_word(R2, R0, 0)
    p.place(found)
    p.load_word(R1, R9, _SLOT_INDEX)
    p.jump_if_same(R1, R2, onward)  # to itself: a bridge does not send back
    p.copy(R9, R2)
    p.copy(R1, R6)
    p.move_constant(R2, 0)  # PACKET_HOST: the frame is for the MAC of the link it will appear on
    p.call(bpf.SKB_CHANGE_TYPE)
    p.copy(R1, R9)
    p.move_constant(R2, 0)
    p.call(bpf.REDIRECT_PEER)
    p.exit()

    p.place(onward)
    p.move_constant(R0, _TC_ACT_UNSPEC)
    p.exit()
    return p.finish()


def _within(p: Assembler, size: int, otherwise: int) -> None:
    """Go on only if the packet's first ``size`` bytes can be read."""
    p.copy(R1, R7)
    p.add_constant(R1, size)
    p.jump_if_greater(R1, R8, otherwise)


def _lookup(p: Assembler, map: int, key: int, otherwise: int) -> None:
    p.load_map(R1, map)
    p.copy(R2, R10)
    p.add_constant(R2, key)
    p.call(bpf.MAP_LOOKUP_ELEM)
    p.jump_if_null(R0, otherwise)


def _mac(mac: str) -> tuple[bytes, int]:
    """As the program holds it: the first four bytes, and the last two in a word of their own."""
    raw = rt.mac_bytes(mac)
    return raw[:4], int.from_bytes(raw[4:], sys.byteorder)


class _Program:
    """The loaded program with its maps."""

    def __init__(self, slots: int = _SLOTS) -> None:
        with contextlib.ExitStack() as undo:
            self.slots = Map(bpf.MAP_TYPE_ARRAY, 4, _SLOT.size, slots)
            undo.callback(self.slots.close)
            self.addresses6 = Map(bpf.MAP_TYPE_HASH, _KEY6.size, 4, 2 * slots)
            undo.callback(self.addresses6.close)
            self.destinations = Map(bpf.MAP_TYPE_HASH, _DESTINATION.size, _INDEX.size, slots)
            undo.callback(self.destinations.close)
            self.shortlist = Map(bpf.MAP_TYPE_ARRAY, 4, _SHORTLISTED, slots)
            undo.callback(self.shortlist.close)
            code = assemble(self.slots.fd, self.addresses6.fd, self.destinations.fd, self.shortlist.fd)
            self.fd = bpf.load_classifier(code, NAME)
            undo.pop_all()

    def close(self) -> None:
        os.close(self.fd)
        for map in (self.slots, self.addresses6, self.destinations, self.shortlist):
            map.close()

    def add(self, spec: NetworkSpec, endpoint: Endpoint, index: int) -> None:
        mac = _mac(endpoint.mac)
        four = ipaddress.ip_address(endpoint.address4).packed if endpoint.address4 else bytes(4)
        for address in endpoint_addresses(endpoint):
            if address.version == 6:
                self.addresses6[_KEY6.pack(index, address.packed)] = bytes(4)
        destination = _DESTINATION.pack(spec.number, *mac)
        self.destinations[destination] = _INDEX.pack(index)
        self.slots[_INDEX.pack(index % _SLOTS)] = _SLOT.pack(index, spec.number, *mac, four)
        place = self._place(spec, mac)
        listed = (self.shortlist.get(place) or b"")[: len(destination)]
        if listed in (bytes(len(destination)), destination):
            self.shortlist[place] = destination + _INDEX.pack(index)

    @staticmethod
    def _place(spec: NetworkSpec, mac: tuple[bytes, int]) -> bytes:
        """Where on the short list a container belongs."""
        return _INDEX.pack((mac[1] ^ spec.number) % _SLOTS)

    def remove(self, spec: NetworkSpec, endpoint: Endpoint, index: int) -> None:
        slot = self.slots.get(_INDEX.pack(index % _SLOTS))
        if slot is not None and _SLOT.unpack(slot)[0] == index:
            self.slots[_INDEX.pack(index % _SLOTS)] = bytes(_SLOT.size)
        mac = _mac(endpoint.mac)
        destination = _DESTINATION.pack(spec.number, *mac)
        self.destinations.discard(destination)
        place = self._place(spec, mac)
        if self.shortlist.get(place) == destination + _INDEX.pack(index):
            self.shortlist[place] = bytes(_SHORTLISTED)
        for address in endpoint_addresses(endpoint):
            if address.version == 6:
                self.addresses6.discard(_KEY6.pack(index, address.packed))


class FastPath:
    """The program in one network namespace, whose rtnetlink socket ``sock`` is. From one thread, in that namespace.

    Attaching it to a link takes the kernel's lock of all links for a grace period, so :meth:`connect` only puts the
    link among those that :meth:`attach` sees to when there is time; until then its packets go by the bridge. Where
    the kernel has no such thing, that is said once and they always do.
    """

    def __init__(self, sock: NetlinkSocket) -> None:
        self._socket = sock
        self._program: _Program | None = None
        self._indexes: dict[str, int] = {}
        self._waiting: dict[str, int] = {}
        self.possible = True
        """Whether the kernel has all of it, as far as is known."""

    @property
    def active(self) -> bool:
        return self._program is not None

    @property
    def waiting(self) -> int:
        """How many links are still to be attached."""
        return len(self._waiting)

    def close(self) -> None:
        """Let go of the program; links that have it keep it."""
        self._indexes.clear()
        self._waiting.clear()
        if self._program is not None:
            self._program.close()
            self._program = None

    def restate(self, networks: Mapping[str, NetworkSpec], endpoints: Sequence[Endpoint], *, wanted: bool) -> None:
        """A new program, in the place of the one that any link has: it knows exactly these endpoints, or if it is not
        ``wanted``, none."""
        self.close()
        if not self.possible:
            return
        try:
            program = self._program = _Program()
            there = {one.name: one.index for one in rt.links(self._socket)} if endpoints else {}
            found = [
                (networks[endpoint.network], endpoint, there[endpoint.interface])
                for endpoint in endpoints
                if endpoint.network in networks and endpoint.interface in there
            ]
            if wanted:
                for spec, endpoint, index in found:
                    self._add(spec, endpoint, index)
            for _, endpoint, index in found:
                if bpf.replace_ingress(index, program.fd, NAME):
                    self._waiting.pop(endpoint.id, None)
            if not wanted:
                self.close()
        except OSError as error:
            self._give_up(error)

    def connect(self, spec: NetworkSpec, endpoint: Endpoint, index: int) -> None:
        """Let an endpoint, whose host-side link is ``index``, take part."""
        try:
            self._add(spec, endpoint, index)
        except OSError as error:
            self.disconnect(spec, endpoint)
            log.info("container %s goes by the bridge: %s", endpoint.container_name, error)

    def disconnect(self, spec: NetworkSpec, endpoint: Endpoint) -> None:
        self._waiting.pop(endpoint.id, None)
        index = self._indexes.pop(endpoint.id, None)
        if index is not None and self._program is not None:
            self._program.remove(spec, endpoint, index)

    def attach(self) -> None:
        """See to one waiting link."""
        if not self._waiting or self._program is None:
            return
        identity = next(iter(self._waiting))
        index = self._waiting.pop(identity)
        try:
            bpf.attach_ingress(index, self._program.fd)
        except OSError as error:
            if error.errno != errno.ENODEV:  # the container has ended
                self._give_up(error)

    def _add(self, spec: NetworkSpec, endpoint: Endpoint, index: int) -> None:
        if self._program is None or spec.driver != "bridge" or not spec.icc:
            return
        self._indexes[endpoint.id] = index
        self._program.add(spec, endpoint, index)
        self._waiting[endpoint.id] = index

    def _give_up(self, error: OSError) -> None:
        log.warning("packets between containers go by the bridge, which is slower: %s", error)
        self.possible = False
        self.close()


def missing() -> str | None:
    """What this kernel lacks for the program, or None; needs CAP_NET_ADMIN and CAP_BPF."""
    try:
        _Program(slots=1).close()
    except OSError as error:
        return str(error.strerror).partition("\n")[0]
    return None if kernel() >= (6, 6) else "programs cannot be attached to links by tcx before Linux 6.6"


def obstacle(sock: NetlinkSocket) -> str | None:
    """Why bridged packets must pass through the bridge although the kernel could spare them that, or None.

    Somebody else's rules about bridged packets hold for containers too. ``sock`` is a netfilter socket.
    """
    for chain in nft.chains(sock):
        if chain.family == nft.NFPROTO_BRIDGE and chain.table != TABLE and chain.hook >= 0:
            return f"the nftables table bridge {chain.table} has rules for bridged packets"
    for line in _lines("/proc/modules"):
        name = line.split(" ", 1)[0]
        if name in ("ebtable_filter", "ebtable_nat", "ebtable_broute"):
            return f"ebtables may have rules for bridged packets ({name} is loaded)"
    if any(_lines(f"/proc/sys/net/bridge/bridge-nf-call-{kind}") == ["1"] for kind in ("iptables", "ip6tables")):
        return "bridged packets are to pass through the IP firewall (net.bridge.bridge-nf-call-iptables)"
    return None


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
