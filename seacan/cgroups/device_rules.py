"""OCI device rules made explicit, for the v1 files and the v2 program alike."""

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


def rules(resources: LinuxResources) -> Iterator[Rule]:
    """The device rules of an OCI configuration, in order; a later one overrides an earlier.

    Raises InvalidParameter for an unknown type, access letter or number, and for type ``a`` with numbers, which the v1
    kernel would read as "all devices".
    """
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
            for each in ("b", "c"):
                yield Rule(device.allow, _TYPES[each], major, minor, ordered)
            continue
        yield Rule(device.allow, kind, major, minor, ordered)
