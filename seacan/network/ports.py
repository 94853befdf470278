"""Published ports: what was asked for, resolved to ports of the host that are truly ours.

A port is reserved by a socket that is bound (and, for TCP, listening) for as long as the container runs, so that no
other program can take it and a conflict is known before anything starts. No packet ever reaches these sockets:
nftables sends them on before, and a BPF filter drops the rest. Who answers on the port is the affair of
:mod:`seacan.network.firewall`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import ipaddress
import socket
import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from seacan.engine.config import PortBinding
from seacan.errors import InvalidParameter, System
from seacan.network.model import PublishedPort

PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP, "sctp": 132}
_SO_ATTACH_FILTER = 26
_SO_DETACH_FILTER = 27
_DROP_ALL = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0))  # BPF_RET | BPF_K, 0
_DROP_PROGRAM = struct.pack("@HP", 1, ctypes.addressof(_DROP_ALL))
_PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


@dataclass(frozen=True, slots=True)
class Wanted:
    """One binding as asked for: host addresses that must share a port, and the ports to choose from (0–0: any)."""

    protocol: str
    port: int
    addresses: tuple[str, ...]
    first: int
    last: int


def parse_port(text: str) -> tuple[int, str]:
    """``"80/tcp"`` or ``"80"`` as (80, "tcp").

    Raises:
        InvalidParameter: neither a port nor a protocol Docker knows.
    """
    number, _, protocol = text.partition("/")
    protocol = protocol.lower() or "tcp"
    if protocol not in PROTOCOLS:
        raise InvalidParameter(f"invalid proto: {protocol}")
    if not (number.isascii() and number.isdecimal() and 0 < int(number) < 65536):
        raise InvalidParameter(f"invalid port specification: {text}")
    return int(number), protocol


def parse_host_ports(text: str) -> tuple[int, int]:
    """``""`` (any), ``"8080"`` or ``"8000-8010"`` as first and last port; (0, 0) is any."""
    if not text:
        return 0, 0
    first, dash, last = text.partition("-")
    last = last if dash else first
    if not all(part.isascii() and part.isdecimal() and int(part) < 65536 for part in (first, last)):
        raise InvalidParameter(f"invalid host port: {text}")
    if int(last) < int(first):
        raise InvalidParameter(f"invalid range specified for the host port: {text}")
    return int(first), int(last)


def resolve(
    bindings: Mapping[str, Sequence[PortBinding] | None],
    exposed: Iterable[str],
    publish_all: bool,
    *,
    default_ipv4: str = "0.0.0.0",
    ipv4: bool = True,
    ipv6: bool = True,
) -> list[Wanted]:
    """What a container publishes, one entry for each binding, in the order of port and protocol.

    ``ipv4`` and ``ipv6`` say which families the host can publish on. A binding without an address is for
    ``default_ipv4`` and, when that is the unspecified address, for ``::`` too.

    Raises:
        InvalidParameter: a malformed port, range or address.
    """
    asked: dict[tuple[int, str], list[PortBinding]] = {}
    for text, some in bindings.items():
        asked.setdefault(parse_port(text), []).extend(some or ())
    for text in exposed:
        key = parse_port(text)
        if publish_all and not asked.get(key):
            asked[key] = [PortBinding()]
    result = []
    for (port, protocol), some in sorted(asked.items()):
        for binding in some:
            first, last = parse_host_ports(binding.host_port)
            addresses = _addresses(binding.host_ip, default_ipv4, ipv4, ipv6)
            if addresses:
                result.append(Wanted(protocol, port, addresses, first, last))
    return result


def _addresses(host_ip: str, default_ipv4: str, ipv4: bool, ipv6: bool) -> tuple[str, ...]:
    if host_ip:
        try:
            address = ipaddress.ip_address(host_ip.strip("[]"))
        except ValueError as error:
            raise InvalidParameter(f"invalid IP address: {host_ip}") from error
        return (str(address),) if (ipv4 if address.version == 4 else ipv6) else ()
    both = [default_ipv4] if ipv4 or ":" in default_ipv4 else []
    if ipv6 and default_ipv4 in ("0.0.0.0", ""):
        both.append("::")
    return tuple(both)


Place = tuple[str, str, int]
"""Protocol, host address, host port."""


def place(port: PublishedPort) -> Place:
    return port.protocol, port.host_ip, port.host_port


@dataclass(slots=True)
class Reservation:
    """Ports held for one container. ``sockets`` reserves them towards the rest of the host."""

    ports: list[PublishedPort] = field(default_factory=list)
    sockets: dict[Place, socket.socket] = field(default_factory=dict)


class Ports:
    """The host's ports as far as they are ours. One for each engine; for use from the event loop's thread."""

    def __init__(self) -> None:
        self._taken: dict[tuple[str, int], set[str]] = {}
        self._last: dict[str, int] = {}
        self._range = _local_range()

    def reserve(self, wanted: Sequence[Wanted], targets: Mapping[int, str]) -> Reservation:
        """Choose and hold a port for every entry of ``wanted``, or for none.

        ``targets`` are the container's addresses by IP version, for the words of an error.

        Raises:
            System: a port is taken, in dockerd's words.
        """
        reservation = Reservation()
        with contextlib.ExitStack() as undo:
            undo.callback(self.release, reservation)
            # Fixed ports first, so that no ephemeral choice takes one of them.
            for one in sorted(wanted, key=lambda one: one.first == 0):
                self._reserve(one, reservation, targets)
            undo.pop_all()
        order = {(one.port, one.protocol): index for index, one in enumerate(wanted)}
        reservation.ports.sort(key=lambda port: (order[port.port, port.protocol], port.version))
        return reservation

    def hold(self, port: PublishedPort, reservation: Reservation, sock: socket.socket | None = None) -> None:
        """Take up a port that a running container already has, with the socket that kept it if there still is one.

        Raises:
            OSError: the port was taken by another program meanwhile.
        """
        if sock is None:
            sock = _bind(port.protocol, port.host_ip, port.host_port)
        self._taken.setdefault((port.protocol, port.host_port), set()).add(port.host_ip)
        reservation.ports.append(port)
        if sock is not None:
            reservation.sockets[place(port)] = sock

    def release_some(self, reservation: Reservation, gone: Collection[PublishedPort]) -> None:
        """Give up only the ports ``gone`` of ``reservation``."""
        places = {place(port) for port in gone}
        mine = {where: sock for where, sock in reservation.sockets.items() if where in places}
        self.release(Reservation([port for port in reservation.ports if port in gone], mine))
        reservation.ports = [port for port in reservation.ports if port not in gone]
        reservation.sockets = {where: sock for where, sock in reservation.sockets.items() if where not in places}

    def release(self, reservation: Reservation) -> None:
        """Give up everything in ``reservation``."""
        for port in reservation.ports:
            key = (port.protocol, port.host_port)
            addresses = self._taken.get(key)
            if addresses is not None:
                addresses.discard(port.host_ip)
                if not addresses:
                    del self._taken[key]
        for sock in reservation.sockets.values():
            sock.close()
        reservation.ports.clear()
        reservation.sockets.clear()

    def _reserve(self, one: Wanted, into: Reservation, targets: Mapping[int, str]) -> None:
        error: System | None = None
        for candidate in self._candidates(one):
            try:
                sockets = self._try(one, candidate, targets)
            except System as refused:
                error = error or refused
                continue
            into.sockets |= sockets
            for address in one.addresses:
                self._taken.setdefault((one.protocol, candidate), set()).add(address)
                into.ports.append(
                    PublishedPort(protocol=one.protocol, port=one.port, host_ip=address, host_port=candidate)
                )
            return
        if one.first and error is not None:
            raise error
        raise System("all ports are allocated")

    def _candidates(self, one: Wanted) -> Iterable[int]:
        if one.first:
            yield from range(one.first, one.last + 1)
            return
        low, high = self._range
        start = self._last.get(one.protocol, low - 1) + 1
        for step in range(high - low + 1):
            port = low + (start - low + step) % (high - low + 1)
            self._last[one.protocol] = port
            yield port

    def _try(self, one: Wanted, port: int, targets: Mapping[int, str]) -> dict[Place, socket.socket]:
        taken = self._taken.get((one.protocol, port), set())
        sockets: dict[Place, socket.socket] = {}
        try:
            for address in one.addresses:
                if any(_overlap(address, other) for other in taken):
                    raise System(f"Bind for {_bracket(address)}:{port} failed: port is already allocated")
                try:
                    sock = _bind(one.protocol, address, port)
                except OSError as error:
                    if error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL) and address == "::":
                        continue
                    target = targets.get(6 if ":" in address else 4) or targets.get(4) or ""
                    span = str(port) if one.first == one.last else f"{one.first}-{one.last}"
                    raise System(
                        f"failed to bind host port for {_bracket(address)}:{span}:{_bracket(target)}:{one.port}"
                        f"/{one.protocol}: {(error.strerror or str(error)).lower()}"
                    ) from error
                if sock is not None:
                    sockets[one.protocol, address, port] = sock
        except BaseException:
            for sock in sockets.values():
                sock.close()
            raise
        return sockets


def place_of(sock: socket.socket) -> Place:
    """Where a socket that reserves a port is bound.

    Raises:
        OSError: it is no such socket.
    """
    address, port = sock.getsockname()[:2]
    return ("udp" if sock.type == socket.SOCK_DGRAM else "tcp"), address, port


def open_up(sock: socket.socket) -> None:
    """Let packets reach a socket that reserves a port, because somebody answers there (:mod:`seacan.network.relay`)."""
    with contextlib.suppress(FileNotFoundError):  # it had no filter any more
        sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


def shut(sock: socket.socket) -> None:
    """Let nothing reach a socket that reserves a port."""
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, _DROP_PROGRAM)


def _bracket(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _overlap(one: str, other: str) -> bool:
    if (":" in one) != (":" in other):
        return False
    return one == other or one in ("0.0.0.0", "::") or other in ("0.0.0.0", "::")


def _bind(protocol: str, address: str, port: int) -> socket.socket | None:
    """A socket that holds the port; None for SCTP on a kernel without it (then only we know the port is taken)."""
    af = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
    try:
        sock = socket.socket(af, kind | socket.SOCK_CLOEXEC, PROTOCOLS[protocol])
    except OSError as error:
        if protocol == "sctp" and error.errno in (errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT, errno.EPERM):
            return None
        raise
    try:
        if af == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        shut(sock)
        if kind == socket.SOCK_STREAM:
            # Connections in TIME_WAIT must not block the port; listening makes it exclusive all the same.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        if kind == socket.SOCK_STREAM:
            sock.listen(1)
    except BaseException:
        sock.close()
        raise
    return sock


def _local_range() -> tuple[int, int]:
    try:
        low, high = _PORT_RANGE.read_text().split()
        return int(low), int(high)
    except (OSError, ValueError):
        return 49153, 65535
