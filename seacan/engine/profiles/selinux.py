"""SELinux: the labels of a container's processes and files, where the host enforces a policy and the engine is told to.

Contexts come from the policy's own ``lxc_contexts`` (selinux_lxc_contexts_path(3)); a pair of categories sets each
container apart from every other.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

from seacan.errors import InvalidParameter

_OPTIONS = ("user", "role", "type", "level", "filetype")


def supported() -> bool:
    """Whether the kernel has SELinux enabled (permissive counts)."""
    return os.path.exists("/sys/fs/selinux/enforce")


def _policy() -> str:
    try:
        with open("/etc/selinux/config") as config:
            for line in config:
                key, _, value = line.strip().partition("=")
                if key == "SELINUXTYPE":
                    return value.strip()
    except FileNotFoundError:
        pass
    return "targeted"


def _contexts() -> tuple[str, str]:
    """The process and file contexts that the policy has for containers."""
    found = {}
    try:
        with open(f"/etc/selinux/{_policy()}/contexts/lxc_contexts") as file:
            for line in file:
                key, _, value = line.partition("=")
                found[key.strip()] = value.strip().strip('"')
    except FileNotFoundError:
        pass
    return (
        found.get("process", "system_u:system_r:container_t:s0"),
        found.get("file", "system_u:object_r:container_file_t:s0"),
    )


def labels(options: Sequence[str], identity: str, *, enabled: bool) -> tuple[str, str]:
    """The process label and the mount label for ``--security-opt label=…`` options; empty when there are to be none.

    Raises InvalidParameter for an option that is not of the form ``key:value`` with a known key, or ``disable``;
    without SELinux nothing is looked at, as by dockerd.
    """
    if not enabled or not supported():
        return "", ""
    chosen: dict[str, str] = {}
    for option in options:
        if option in ("disable", "nested"):
            continue
        key, colon, value = option.partition(":")
        if not colon:
            raise InvalidParameter(
                f"bad label option {option!r}, valid options 'disable', 'nested' or \n"
                "'user, role, level, type, filetype' followed by ':' and a value"
            )
        if key not in _OPTIONS:
            raise InvalidParameter(
                f"bad label option {option!r}, valid options 'disable, user, role, level, type, filetype'"
            )
        chosen[key] = value
    if "disable" in options:
        return "", ""
    process, file = (context.split(":", 3) for context in _contexts())
    level = chosen.get("level") or f"{process[3]}:{_categories(identity)}"
    process = [chosen.get("user", process[0]), chosen.get("role", process[1]), chosen.get("type", process[2]), level]
    file = [chosen.get("user", file[0]), file[1], chosen.get("filetype", file[2]), level]
    return ":".join(process), ":".join(file)


def _categories(identity: str) -> str:
    """Two different ones of 1024, in order, always the same for one container: an exec needs its label again."""
    seed = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big")
    first, second = seed % 1024, seed // 1024 % 1023
    second += second >= first
    return f"c{min(first, second)},c{max(first, second)}"
