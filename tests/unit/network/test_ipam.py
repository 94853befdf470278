"""Addresses are given out once, reused late, and never forgotten by a crash."""

from __future__ import annotations

import ipaddress
import os
import signal
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seacan.engine.database import Database
from seacan.errors import Forbidden, InvalidParameter
from seacan.network import ipam

NET = "n" * 64


def pool(database: Database, subnet: str, ip_range: str = "", reserved: tuple[str, ...] = ()) -> None:
    database.migrate("network", ipam.SCHEMA)
    database.execute("INSERT INTO network (id, name, number, spec) VALUES (?, 'n', 1, '{}')", (NET,))
    ipam.create_pool(
        database,
        NET,
        ipaddress.ip_network(subnet),
        ipaddress.ip_network(ip_range) if ip_range else None,
        [ipaddress.ip_address(address) for address in reserved],
    )


def take(database: Database, owner: str, version: int = 4) -> str | None:
    found, _ = ipam.allocate(database, NET, version, owner) or (None, False)
    return None if found is None else str(found)


def test_addresses_come_in_order_without_network_gateway_and_broadcast(database: Database) -> None:
    pool(database, "10.0.0.0/29", reserved=("10.0.0.1", "10.0.0.4"))
    given_out = [take(database, f"c{number}") for number in range(5)]
    assert given_out == ["10.0.0.2/29", "10.0.0.3/29", "10.0.0.5/29", "10.0.0.6/29", None]


def test_a_released_address_is_reused_only_when_no_fresh_one_is_left_and_the_oldest_first(database: Database) -> None:
    pool(database, "10.0.0.0/29", reserved=("10.0.0.1",))
    for owner in "abc":
        take(database, owner)
    ipam.release(database, "b")
    ipam.release(database, "a")
    assert [take(database, owner) for owner in "defg"] == ["10.0.0.5/29", "10.0.0.6/29", "10.0.0.3/29", "10.0.0.2/29"]


def test_a_range_limits_what_is_chosen_but_not_what_may_be_asked_for(database: Database) -> None:
    pool(database, "10.0.0.0/24", "10.0.0.128/30")
    assert [take(database, owner) for owner in "abcde"] == [
        "10.0.0.128/24",
        "10.0.0.129/24",
        "10.0.0.130/24",
        "10.0.0.131/24",
        None,
    ]
    assert str(ipam.allocate_exactly(database, NET, ipaddress.ip_address("10.0.0.9"), "f")) == "10.0.0.9/24"


def test_an_address_asked_for_is_skipped_later_and_refused_to_others(database: Database) -> None:
    pool(database, "10.0.0.0/29")
    ipam.allocate_exactly(database, NET, ipaddress.ip_address("10.0.0.1"), "a")
    with pytest.raises(Forbidden, match="Address already in use"):
        ipam.allocate_exactly(database, NET, ipaddress.ip_address("10.0.0.1"), "b")
    assert take(database, "c") == "10.0.0.2/29"
    ipam.release(database, "a")
    assert str(ipam.allocate_exactly(database, NET, ipaddress.ip_address("10.0.0.1"), "b")) == "10.0.0.1/29"


def test_an_address_outside_every_subnet_is_refused(database: Database) -> None:
    pool(database, "10.0.0.0/29")
    with pytest.raises(InvalidParameter):
        ipam.allocate_exactly(database, NET, ipaddress.ip_address("10.0.1.1"), "a")


def test_an_ipv6_subnet_of_any_size_can_be_used(database: Database) -> None:
    pool(database, "fd00::/8", reserved=("fd00::1",))
    assert take(database, "a", 6) == "fd00::2/8"
    assert take(database, "b", 4) is None


def test_addresses_near_the_end_of_a_large_subnet(database: Database) -> None:
    pool(database, "fd00::/56", "fd00::aa:ffff:ffff:ffff:fffe/127", reserved=("fd00::1",))
    high = ipaddress.ip_address("fd00::bb:a8bb:ccff:fe00:1")
    with database.transaction():
        assert str(ipam.allocate_exactly(database, NET, high, "asked")) == f"{high}/56"
        assert take(database, "a", 6) == "fd00::aa:ffff:ffff:ffff:fffe/56"
        assert take(database, "b", 6) == "fd00::aa:ffff:ffff:ffff:ffff/56"
        assert take(database, "c", 6) is None
        with pytest.raises(Forbidden):
            ipam.allocate_exactly(database, NET, high, "other")
        ipam.release(database, "a")
        ipam.release(database, "asked")
        assert take(database, "c", 6) == "fd00::aa:ffff:ffff:ffff:fffe/56"
        ipam.allocate_exactly(database, NET, high, "other")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=120))
def test_no_two_owners_ever_hold_the_same_address(steps: list[tuple[bool, int]]) -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)

    class Memory:
        def execute(self, sql: str, parameters: tuple[object, ...] = ()) -> sqlite3.Cursor:
            return connection.execute(sql, parameters)

    connection.executescript("".join(ipam.SCHEMA))
    connection.execute("INSERT INTO network (id, name, number, spec) VALUES (?, 'n', 1, '{}')", (NET,))
    memory = Memory()
    ipam.create_pool(memory, NET, ipaddress.ip_network("10.0.0.0/29"), None, [])  # type: ignore[arg-type]
    held: dict[str, str] = {}
    for take_one, number in steps:
        owner = str(number)
        if take_one and owner not in held:
            found, _ = ipam.allocate(memory, NET, 4, owner) or (None, False)  # type: ignore[arg-type]
            if found is None:
                assert len(held) == 6
            else:
                assert str(found) not in held.values()
                held[owner] = str(found)
        elif not take_one:
            ipam.release(memory, owner)  # type: ignore[arg-type]
            held.pop(owner, None)


def test_addresses_told_to_anyone_survive_a_killed_daemon(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    database = Database(path)
    pool(database, "10.0.0.0/24")
    database.close()
    told: set[str] = set()
    for life in range(5):
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            mine = Database(path)
            number = 0
            while True:
                with mine.transaction():
                    address = take(mine, f"{life}-{number}")
                os.write(writer, f"{address}\n".encode())
                number += 1
        os.close(writer)
        data = b""
        while data.count(b"\n") < 20:
            data += os.read(reader, 64)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while more := os.read(reader, 65536):
            data += more
        os.close(reader)
        new = [address for address in data.decode().split() if address != "None"]  # a quick child runs the pool dry
        assert len(new) == len(set(new))
        assert not told & set(new)
        told |= set(new)


def test_subnets_are_cut_from_the_pools_around_what_is_taken() -> None:
    taken = [ipaddress.ip_network(text) for text in ("172.17.0.0/16", "172.18.5.0/24")]
    assert str(ipam.choose_subnet(ipam.DEFAULT_POOLS, 4, taken)) == "172.19.0.0/16"
    assert str(ipam.choose_subnet([("10.1.0.0/16", 24)], 4, [ipaddress.ip_network("10.1.0.0/23")])) == "10.1.2.0/24"
    with pytest.raises(InvalidParameter, match="all predefined address pools have been fully subnetted"):
        ipam.choose_subnet([("10.1.0.0/24", 24)], 4, [ipaddress.ip_network("10.0.0.0/8")])
