"""Which capabilities a container gets: ``--cap-add``, ``--cap-drop``, ``--privileged``, in Docker's grammar."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from seacan.engine.profiles import CAPABILITIES
from seacan.errors import InvalidParameter
from seacan.linux.capabilities import NAMES, current, names


@functools.cache
def available() -> tuple[str, ...]:
    """What can be given at all: this process's bounding set (an engine in a container has less than the kernel)."""
    return tuple(names(current("CapBnd")))


def normalise(given_names: Sequence[str]) -> list[str]:
    """Upper-case with the CAP_ prefix; "ALL" stays. Raises InvalidParameter for what does not exist here."""
    found = []
    for given in given_names:
        name = given.upper()
        if name != "ALL":
            name = name if name.startswith("CAP_") else f"CAP_{name}"
            if name not in NAMES:
                raise InvalidParameter(f'unknown capability: "{name}"')
            if name not in available():
                raise InvalidParameter(
                    f'capability not supported by your kernel or not available in the current environment: "{name}"'
                )
        found.append(name)
    return found


def resolve(add: Sequence[str], drop: Sequence[str], *, privileged: bool = False) -> list[str]:
    """The set a container gets. "ALL" in ``add`` means all but ``drop``; "ALL" in ``drop`` means only ``add``.

    A default capability that the engine itself lacks is left out: it could not be passed on.
    """
    if privileged:
        return list(available())
    if not add and not drop:
        return [name for name in CAPABILITIES if name in available()]
    added, dropped = normalise(add), normalise(drop)
    if "ALL" in added:
        return [name for name in available() if name not in dropped]
    if "ALL" in dropped:
        return added
    kept = [name for name in CAPABILITIES if name not in dropped and name in available()]
    return list(dict.fromkeys(kept + added))
