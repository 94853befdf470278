"""Ports are parsed as Docker does, and what is reserved is truly ours."""

from __future__ import annotations

import errno
import socket

import pytest

from seacan.engine.config import PortBinding
from seacan.errors import InvalidParameter, System
from seacan.network.ports import Ports, Wanted, parse_host_ports, parse_port, resolve

from .conftest import Space


@pytest.mark.parametrize(
    ("text", "expected"),
    [("80/tcp", (80, "tcp")), ("53/udp", (53, "udp")), ("80", (80, "tcp")), ("9/SCTP", (9, "sctp"))],
)
def test_a_port_has_a_number_and_a_protocol(text: str, expected: tuple[int, str]) -> None:
    assert parse_port(text) == expected


@pytest.mark.parametrize("text", ["", "0/tcp", "65536/tcp", "80/icmp", "x/tcp", "-1/tcp", "8 0/tcp", "٣/tcp"])
def test_other_ports_are_refused(text: str) -> None:
    with pytest.raises(InvalidParameter):
        parse_port(text)


@pytest.mark.parametrize("text", ["x", "1-", "2-1", "70000", "1-70000", "-"])
def test_malformed_host_ports_are_refused(text: str) -> None:
    with pytest.raises(InvalidParameter):
        parse_host_ports(text)


def test_a_binding_without_address_is_for_both_families() -> None:
    (one,) = resolve({"80/tcp": [PortBinding(host_port="8080")]}, (), False)
    assert one == Wanted("tcp", 80, ("0.0.0.0", "::"), 8080, 8080)
    (one,) = resolve({"80/tcp": [PortBinding(host_port="8080")]}, (), False, ipv6=False)
    assert one.addresses == ("0.0.0.0",)
    (one,) = resolve({"80/tcp": [PortBinding()]}, (), False, default_ipv4="127.0.0.1")
    assert one.addresses == ("127.0.0.1",)


def test_publish_all_takes_every_exposed_port_that_is_not_bound_by_hand() -> None:
    wanted = resolve({"80/tcp": [PortBinding(host_port="8080")]}, ("80/tcp", "53/udp"), True)
    assert [(one.port, one.protocol, one.first) for one in wanted] == [(53, "udp", 0), (80, "tcp", 8080)]


def test_a_reserved_port_belongs_to_nobody_else(host: Space) -> None:
    ports = Ports()
    held = ports.reserve([Wanted("tcp", 80, ("0.0.0.0", "::"), 8080, 8080)], {})
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        sock = host.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError) as error:
            sock.bind((address, 8080))
        assert error.value.errno == errno.EADDRINUSE
    ports.release(held)
    host.listen(8080)


def test_a_port_another_program_has_is_refused_with_its_name(host: Space) -> None:
    host.listen(8080)
    with pytest.raises(System) as error:
        Ports().reserve([Wanted("tcp", 80, ("0.0.0.0",), 8080, 8080)], {4: "172.17.0.2"})
    assert str(error.value) == "failed to bind host port for 0.0.0.0:8080:172.17.0.2:80/tcp: address already in use"


def test_a_port_another_container_has_is_refused_as_allocated(host: Space) -> None:
    ports = Ports()
    ports.reserve([Wanted("udp", 80, ("127.0.0.1",), 8080, 8080)], {})
    with pytest.raises(System, match=r"Bind for 0\.0\.0\.0:8080 failed: port is already allocated"):
        ports.reserve([Wanted("udp", 80, ("0.0.0.0",), 8080, 8080)], {})
    ports.reserve([Wanted("udp", 80, ("127.0.0.2",), 8080, 8080), Wanted("tcp", 80, ("0.0.0.0",), 8080, 8080)], {})


def test_nothing_is_kept_of_a_reservation_that_fails(host: Space) -> None:
    ports = Ports()
    host.listen(8081)
    with pytest.raises(System):
        ports.reserve([Wanted("tcp", 80, ("0.0.0.0",), 8080, 8080), Wanted("tcp", 81, ("0.0.0.0",), 8081, 8081)], {})
    host.listen(8080)


def test_the_first_free_port_of_a_range_is_taken(host: Space) -> None:
    ports = Ports()
    host.listen(8000)
    held = ports.reserve([Wanted("tcp", number, ("0.0.0.0",), 8000, 8002) for number in (1, 2)], {})
    assert [port.host_port for port in held.ports] == [8001, 8002]
    with pytest.raises(System):
        ports.reserve([Wanted("tcp", 3, ("0.0.0.0",), 8000, 8002)], {})


def test_ephemeral_ports_are_the_same_in_both_families_and_spare_fixed_ones(host: Space) -> None:
    host.write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40003")
    ports = Ports()
    held = ports.reserve(
        [
            Wanted("tcp", 1, ("0.0.0.0", "::"), 0, 0),
            Wanted("tcp", 2, ("0.0.0.0", "::"), 40000, 40000),
            Wanted("tcp", 3, ("0.0.0.0", "::"), 0, 0),
        ],
        {},
    )
    assert [(port.port, port.host_ip, port.host_port) for port in held.ports] == [
        (1, "0.0.0.0", 40001),
        (1, "::", 40001),
        (2, "0.0.0.0", 40000),
        (2, "::", 40000),
        (3, "0.0.0.0", 40002),
        (3, "::", 40002),
    ]


def test_sctp_ports_are_reserved_among_ours_even_without_the_protocol(host: Space) -> None:
    ports = Ports()
    ports.reserve([Wanted("sctp", 80, ("0.0.0.0",), 8080, 8080)], {})
    with pytest.raises(System, match="port is already allocated"):
        ports.reserve([Wanted("sctp", 80, ("0.0.0.0",), 8080, 8080)], {})
