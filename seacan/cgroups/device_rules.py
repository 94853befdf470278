"""OCI device rules made explicit and minimal, for the v1 files and the v2 program alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from seacan.errors import InvalidParameter

if TYPE_CHECKING:
    from seacan.runtime.spec import LinuxResources


@dataclass(frozen=True, slots=True)
class Rule:
    """``type`` is ``a``, ``b`` or ``c``; None is any number; ``access`` is some of ``rwm``, in that order."""

    allow: bool
    type: Literal["a", "b", "c"]
    major: int | None
    minor: int | None
    access: str


_TYPES: dict[str, Literal["a", "b", "c"]] = {"": "a", "a": "a", "b": "b", "c": "c", "u": "c"}


RUNTIME_RULES = (
    Rule(True, "c", None, None, "m"),
    Rule(True, "b", None, None, "m"),
    *(Rule(True, "c", 1, minor, "rwm") for minor in (3, 5, 7, 8, 9)),  # null, zero, full, random, urandom
    Rule(True, "c", 5, 0, "rwm"),  # tty
    Rule(True, "c", 5, 2, "rwm"),  # ptmx
    Rule(True, "c", 136, None, "rwm"),  # the pseudo-terminals of /dev/pts
    Rule(True, "c", 10, 200, "rwm"),  # net/tun
)
"""What every container may use, whatever its configuration says: the devices a runtime makes itself (as runc)."""


def rules(resources: LinuxResources) -> list[Rule]:
    """The device rules of an OCI configuration, in order, followed by :data:`RUNTIME_RULES`; a later rule overrides.

    Rules that later ones make void are left out. Empty when the configuration has none: nothing is to change.
    Raises InvalidParameter for an unknown type, access letter or number.
    """
    wanted: list[Rule] = []
    for rule in _parse(resources):
        if rule.type == "a" and rule.access == "rwm":
            wanted = [rule]
        elif (wanted[:1] == [_NOTHING] and not rule.allow and not _named(wanted, rule)) or (
            wanted == [_EVERYTHING] and rule.allow
        ):
            continue
        elif rule not in wanted[-1:]:
            wanted.append(rule)
    if wanted and wanted != [_EVERYTHING]:
        seen = set(wanted)
        wanted.extend(rule for rule in RUNTIME_RULES if rule not in seen)
    return wanted


_NOTHING = Rule(False, "a", None, None, "rwm")
_EVERYTHING = Rule(True, "a", None, None, "rwm")


def _named(earlier: list[Rule], rule: Rule) -> bool:
    """Whether an earlier rule may have allowed what ``rule`` names."""
    return any(
        other.allow
        and other.type == rule.type
        and (other.major is None or rule.major is None or other.major == rule.major)
        and (other.minor is None or rule.minor is None or other.minor == rule.minor)
        for other in earlier
    )


def _parse(resources: LinuxResources) -> Iterator[Rule]:
    for device in resources.devices:
        kind = _TYPES.get(device.type)
        if kind is None:
            raise InvalidParameter(f"invalid device cgroup rule type: {device.type!r}")
        access = device.access or "rwm"
        if set(access) - set("rwm"):
            raise InvalidParameter(f"invalid device cgroup rule access: {device.access!r}")
        major = None if device.major in (None, -1) else device.major
        minor = None if device.minor in (None, -1) else device.minor
        for number in (major, minor):
            if number is not None and not 0 <= number < 1 << 32:
                raise InvalidParameter(f"invalid device number in cgroup rule: {number}")
        ordered = "".join(letter for letter in "rwm" if letter in access)
        if kind == "a" and (major is not None or minor is not None or ordered != "rwm"):
            # The v1 kernel ignores numbers and access after "a", which would open everything.
            yield Rule(device.allow, "b", major, minor, ordered)
            yield Rule(device.allow, "c", major, minor, ordered)
            continue
        yield Rule(device.allow, kind, major, minor, ordered)
