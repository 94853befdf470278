"""Who a container runs as: ``--user`` and ``--group-add`` looked up in the image's own /etc/passwd and /etc/group.

The files are read straight from the layers, before anything is mounted (:mod:`seacan.storage.view`). They are
hostile: only a regular file of sane size is read.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from seacan.errors import InvalidParameter
from seacan.runtime.bundle import Rootfs
from seacan.runtime.spec import User
from seacan.storage.view import View

MAXIMUM = (1 << 31) - 1
MAXIMUM_FILE = 16 << 20
"""Bytes of passwd or group that are read; more is refused."""


@dataclass(frozen=True)
class Account:
    """``home`` is "/" for a user that the image does not know."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str = "/"

    def user(self) -> User:
        """The OCI user, its own group first among the additional ones (as dockerd has it)."""
        return User(uid=self.uid, gid=self.gid, additional_gids=list(dict.fromkeys((self.gid, *self.groups))))


def resolve(user: str, rootfs: Rootfs, group_add: Sequence[str] = ()) -> Account:
    """``user`` is Docker's ``name|uid[:group|gid]``, or empty for root.

    Raises InvalidParameter in dockerd's words when a name is not in the image.
    """
    name, _, group = user.partition(":")
    group = group.partition(":")[0]
    uid, gid = _numeric(name), _numeric(group)
    with View(rootfs) as view:
        passwd = view.read("etc/passwd", MAXIMUM_FILE) or ""
        groups = view.read("etc/group", MAXIMUM_FILE) or ""

    def matches(entry: list[str]) -> bool:
        if not name or uid is not None:
            return _number(entry[2]) == (uid or 0)
        return entry[0] == name

    found = _first(passwd, matches, 7)
    account_uid, account_gid, home, known = uid or 0, 0, "/", ""
    if found is not None:
        known, home = found[0], found[5] or "/"
        account_uid, account_gid = _checked(found[2]), _checked(found[3])
    elif name and uid is None:
        raise InvalidParameter(f"unable to find user {name}: no matching entries in passwd file")
    supplementary: list[int] = []
    if group:
        entry = _first(groups, lambda line: (_number(line[2]) == gid) if gid is not None else line[0] == group, 4)
        if entry is not None:
            account_gid = _checked(entry[2])
        elif gid is None:
            raise InvalidParameter(f"unable to find group {group}: no matching entries in group file")
        else:
            account_gid = gid
    elif known:
        supplementary = [_checked(line[2]) for line in _lines(groups, 4) if known in line[3].split(",")]
    for extra in group_add:
        number = _numeric(extra)
        if number is None:
            entry = _first(groups, functools.partial(_named, extra), 4)
            if entry is None:
                raise InvalidParameter(f"unable to find group {extra}: no matching entries in group file")
            number = _checked(entry[2])
        supplementary.append(number)
    return Account(account_uid, account_gid, tuple(dict.fromkeys(supplementary)), home)


def _named(name: str, line: list[str]) -> bool:
    return line[0] == name


def _numeric(text: str) -> int | None:
    """A number as Go's Atoi reads it, None for a name. Raises InvalidParameter when it is out of range."""
    sign = text[:1] in "+-"
    if not text or not text[sign:].isascii() or not text[sign:].isdigit():
        return None
    if not 0 <= int(text) <= MAXIMUM:
        raise InvalidParameter(f"uids and gids must be in range 0-{MAXIMUM}")
    return int(text)


def _number(text: str) -> int:
    """A field as the passwd parser of Go has it: 0 when it is no number."""
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() else 0


def _checked(text: str) -> int:
    number = _number(text)
    if number > MAXIMUM:
        raise InvalidParameter(f"uids and gids must be in range 0-{MAXIMUM}")
    return number


def _lines(text: str, fields: int) -> list[list[str]]:
    found = []
    for raw in text.split("\n"):
        line = raw.strip()
        if line and not line.startswith("#"):
            parts = line.split(":")
            found.append(parts + [""] * (fields - len(parts)))
    return found


def _first(text: str, matches: Callable[[list[str]], bool], fields: int) -> list[str] | None:
    return next((line for line in _lines(text, fields) if matches(line)), None)
