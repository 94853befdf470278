"""Which address belongs to whom: kept in the state database, so that no crash hands one out twice.

A *pool* is one subnet of one network. Addresses are stored as offsets from the subnet's first. A pool gives out
addresses it never gave out before, in order, and after that the one released longest ago: whoever still has a dead
container's address in a cache is the least likely to reach a stranger.
Cost does not depend on how many addresses are taken.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from seacan.errors import Forbidden, InvalidParameter, System
from seacan.network.model import IPAddress, IPInterface, IPNetwork

SCHEMA = (
    """
    CREATE TABLE network (
        id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, number INTEGER NOT NULL UNIQUE, spec TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE network_pool (
        id INTEGER PRIMARY KEY, network TEXT NOT NULL REFERENCES network (id) ON DELETE CASCADE,
        subnet TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL, next INTEGER NOT NULL
    );
    CREATE INDEX network_pool_of ON network_pool (network);
    CREATE TABLE network_address (
        pool INTEGER NOT NULL REFERENCES network_pool (id) ON DELETE CASCADE, offset INTEGER NOT NULL,
        owner TEXT, released INTEGER, PRIMARY KEY (pool, offset)
    ) WITHOUT ROWID;
    CREATE INDEX network_address_of ON network_address (owner) WHERE owner IS NOT NULL;
    CREATE INDEX network_address_free ON network_address (pool, released) WHERE owner IS NULL;
    CREATE TABLE network_endpoint (
        id TEXT PRIMARY KEY, container TEXT NOT NULL, network TEXT NOT NULL REFERENCES network (id), data TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX network_endpoint_of ON network_endpoint (container);
    CREATE INDEX network_endpoint_in ON network_endpoint (network);
    """,
)

_LARGEST = (1 << 62) - 1
"""Largest offset that SQLite holds as a number: a subnet of IPv6 has more addresses than that."""

DEFAULT_POOLS: tuple[tuple[str, int], ...] = (
    ("172.17.0.0/16", 16),
    ("172.18.0.0/16", 16),
    ("172.19.0.0/16", 16),
    ("172.20.0.0/14", 16),
    ("172.24.0.0/14", 16),
    ("172.28.0.0/14", 16),
    ("192.168.0.0/16", 20),
)
"""dockerd's default address pools: base and prefix length of the subnets cut from it."""


class Database(Protocol):
    """The state database (:class:`seacan.engine.database.Database`)."""

    def migrate(self, part: str, steps: Sequence[str]) -> None: ...

    def transaction(self) -> contextlib.AbstractContextManager[Any]: ...

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Any: ...


def _kept(offset: int) -> int | str:
    return offset if offset <= _LARGEST else f"x{offset:032x}"


def _offset(kept: int | str) -> int:
    return kept if isinstance(kept, int) else int(kept[1:], 16)


def create_pool(
    db: Database, network: str, subnet: IPNetwork, ip_range: IPNetwork | None, reserved: Iterable[IPAddress]
) -> int:
    """A new pool; ``reserved`` addresses (gateway, auxiliary) are never given out. Returns its id."""
    base = int(subnet.network_address)
    size = subnet.num_addresses
    part = ip_range or subnet
    first = int(part.network_address) - base
    last = first + part.num_addresses - 1
    cursor = db.execute(
        "INSERT INTO network_pool (network, subnet, first, last, next) VALUES (?, ?, ?, ?, ?)",
        (network, str(subnet), _kept(first), _kept(last), _kept(first)),
    )
    pool = int(cursor.lastrowid)
    taken = {int(address) - base: "gateway" for address in reserved}
    if (subnet.version == 4 and subnet.prefixlen < 31) or (subnet.version == 6 and subnet.prefixlen < 127):
        taken.setdefault(0, "network")
    if subnet.version == 4 and subnet.prefixlen < 31:
        taken.setdefault(size - 1, "broadcast")
    for offset, owner in taken.items():
        if 0 <= offset < size:
            values = (pool, _kept(offset), owner)
            db.execute("INSERT INTO network_address (pool, offset, owner) VALUES (?, ?, ?)", values)
    return pool


def pools(db: Database, network: str) -> list[tuple[int, IPNetwork]]:
    """(id, subnet) of a network's pools, in the order they were made."""
    rows = db.execute("SELECT id, subnet FROM network_pool WHERE network = ? ORDER BY id", (network,))
    return [(int(row[0]), ipaddress.ip_network(row[1])) for row in rows]


def allocate(db: Database, network: str, version: int, owner: str) -> tuple[IPInterface, bool] | None:
    """The next free address of ``network`` for ``owner``, and whether somebody had it before.

    None if no pool of that IP version has one.
    """
    rows = db.execute(
        "SELECT id, subnet, last, next FROM network_pool WHERE network = ? ORDER BY id", (network,)
    ).fetchall()
    for pool, text, last, offset in rows:
        subnet = ipaddress.ip_network(text)
        if subnet.version != version:
            continue
        found = _next(db, pool, owner, _offset(offset), _offset(last))
        if found is not None:
            number, used = found
            return ipaddress.ip_interface(f"{subnet.network_address + number}/{subnet.prefixlen}"), used
    return None


def _next(db: Database, pool: int, owner: str, offset: int, last: int) -> tuple[int, bool] | None:
    start = offset
    while offset <= last:
        # Only addresses asked for by name, or reserved, can be in the way here: there are few of them.
        inserted = db.execute(
            "INSERT OR IGNORE INTO network_address (pool, offset, owner) VALUES (?, ?, ?)", (pool, _kept(offset), owner)
        )
        offset += 1
        if inserted.rowcount == 1:
            db.execute("UPDATE network_pool SET next = ? WHERE id = ?", (_kept(offset), pool))
            return offset - 1, False
    if offset != start:
        db.execute("UPDATE network_pool SET next = ? WHERE id = ?", (_kept(offset), pool))
    row = db.execute(
        "SELECT offset FROM network_address WHERE pool = ? AND owner IS NULL ORDER BY released LIMIT 1", (pool,)
    ).fetchone()
    if row is None:
        return None
    db.execute(
        "UPDATE network_address SET owner = ?, released = NULL WHERE pool = ? AND offset = ?", (owner, pool, row[0])
    )
    return _offset(row[0]), True


def allocate_exactly(db: Database, network: str, address: IPAddress, owner: str) -> IPInterface:
    """Give ``owner`` this very address.

    Raises:
        InvalidParameter: it is in none of the network's subnets.
        Forbidden: it is taken.
    """
    for pool, subnet in pools(db, network):
        if address not in subnet:
            continue
        offset = _kept(int(address) - int(subnet.network_address))
        row = db.execute("SELECT owner FROM network_address WHERE pool = ? AND offset = ?", (pool, offset)).fetchone()
        if row is not None and row[0] is not None:
            raise Forbidden("Address already in use")
        db.execute(
            "INSERT OR REPLACE INTO network_address (pool, offset, owner) VALUES (?, ?, ?)", (pool, offset, owner)
        )
        return ipaddress.ip_interface(f"{address}/{subnet.prefixlen}")
    raise InvalidParameter(f"invalid address {address}: It does not belong to any of this network's subnets")


def release(db: Database, owner: str) -> None:
    """Take back every address of ``owner``; they go to the end of the queue."""
    rows = db.execute(
        "SELECT a.pool, a.offset, p.first, p.next FROM network_address a JOIN network_pool p ON p.id = a.pool "
        "WHERE a.owner = ?",
        (owner,),
    ).fetchall()
    for pool, offset, first, upcoming in rows:
        if _offset(first) <= _offset(offset) < _offset(upcoming):
            db.execute(
                "UPDATE network_address SET owner = NULL, released = ? WHERE pool = ? AND offset = ?",
                (time.time_ns(), pool, offset),
            )
        else:
            # Asked for by name, ahead of the cursor or outside the range: the pool will come to it by itself, or never.
            db.execute("DELETE FROM network_address WHERE pool = ? AND offset = ?", (pool, offset))


def owners(db: Database, network: str) -> int:
    """How many of a network's addresses are in use (gateway and reserved ones included)."""
    row = db.execute(
        "SELECT count(*) FROM network_address WHERE owner IS NOT NULL AND pool IN "
        "(SELECT id FROM network_pool WHERE network = ?)",
        (network,),
    ).fetchone()
    return int(row[0])


def choose_subnet(
    bases: Iterable[tuple[str, int]], version: int, taken: Sequence[IPNetwork], *, limit: int = 1 << 16
) -> IPNetwork:
    """The first subnet of the address pools ``bases`` that overlaps none of ``taken``.

    Raises:
        InvalidParameter: there is none left; dockerd's words.
    """
    busy = [(int(net.network_address), int(net.broadcast_address)) for net in taken if net.version == version]
    for base, size in bases:
        for candidate in _cut(ipaddress.ip_network(base), size, version, limit):
            low, high = int(candidate.network_address), int(candidate.broadcast_address)
            if not any(first <= high and low <= final for first, final in busy):
                return candidate
    raise InvalidParameter("all predefined address pools have been fully subnetted")


def _cut(base: IPNetwork, size: int, version: int, limit: int) -> Iterator[IPNetwork]:
    if base.version != version:
        return
    subnets: Iterator[IPNetwork] = base.subnets(new_prefix=max(size, base.prefixlen))
    yield from itertools.islice(subnets, limit)


def refuse_overlap(taken: Sequence[IPNetwork], subnet: IPNetwork) -> None:
    """Refuse ``subnet`` if it overlaps a network's subnet in ``taken``.

    Raises:
        Forbidden: it does, in dockerd's words.
    """
    for other in taken:
        if other.version == subnet.version and other.overlaps(subnet):
            raise Forbidden("invalid pool request: Pool overlaps with other one on this address space")


def exhausted(version: int, name: str, network: str) -> System:
    """dockerd's words for a network without a free address."""
    return System(f"no available IPv{version} addresses on this network's address pools: {name} ({network})")
