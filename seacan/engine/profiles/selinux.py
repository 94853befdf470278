"""SELinux: the labels of a container's processes and files, where the host enforces a policy and the engine is told to.

Contexts come from the policy's own ``lxc_contexts`` (selinux_lxc_contexts_path(3)); a pair of categories sets each
container apart from every other.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Sequence

from seacan.errors import InvalidParameter

ATTRIBUTE = "security.selinux"
_FIELDS = {"user": 0, "role": 1, "type": 2, "level": 3, "filetype": 2}
_PRIVILEGED = "c1022,c1023"
"""The categories of files of containers whose processes are not labelled; no container has this pair."""
_ATTEMPTS = 64


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


def labels(options: Sequence[str], categories: str, *, enabled: bool) -> tuple[str, str]:
    """The process label and the mount label for ``--security-opt label=…`` options; empty when there are to be none.

    ``categories`` are the container's own. With ``disable`` processes are not labelled, files still are. Raises
    InvalidParameter for an option that is not ``disable`` or ``key:value`` with a known key; without SELinux nothing is
    looked at, as by dockerd.
    """
    if not enabled or not supported():
        return "", ""
    process, file = (context.split(":", 3) for context in _contexts())
    process[3] = f"{process[3]}:{categories}"
    file[3] = f"{file[3]}:{categories}"
    for option in options:
        if option == "disable":
            return "", ":".join([*file[:3], f"{file[3].partition(':')[0]}:{_PRIVILEGED}"])
        key, colon, value = option.partition(":")
        if not colon:
            raise InvalidParameter(
                f"bad label option \"{option}\", valid options 'disable' or \n"
                "'user, role, level, type, filetype' followed by ':' and a value"
            )
        if key not in _FIELDS:
            raise InvalidParameter(
                f"bad label option \"{key}\", valid options 'disable, user, role, level, type, filetype'"
            )
        if key == "filetype":
            file[2] = value
            continue
        process[_FIELDS[key]] = value
        if key in ("level", "user"):
            file[_FIELDS[key]] = value
    return ":".join(process), ":".join(file)


def categories(identity: str, taken: Collection[str] = ()) -> str:
    """Two different ones of 1024, in order: the same for the same container, and none of ``taken``, if any are left."""
    pair = ""
    for attempt in range(_ATTEMPTS):
        digest = hashlib.sha256(f"{identity}{attempt or ''}".encode()).digest()
        seed = int.from_bytes(digest[:8], "big")
        first, second = seed % 1024, seed // 1024 % 1023
        second += second >= first
        pair = f"c{min(first, second)},c{max(first, second)}"
        if pair != _PRIVILEGED and pair not in taken:
            break
    return pair


def joined(label: str) -> list[str]:
    """The options that give a container the process label of another, whose namespaces it joins."""
    if not label:
        return []
    names = ("user", "role", "type", "level")
    return [f"label={name}:{value}" for name, value in zip(names, label.split(":", 3), strict=False)]


def shared(label: str) -> str:
    """A file label that every container may use: without categories."""
    return ":".join([*label.split(":", 3)[:3], "s0"])
