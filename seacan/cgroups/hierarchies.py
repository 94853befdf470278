"""Where this host keeps its cgroups: the v1 hierarchies, the unified one, or both, read from /proc/self/mountinfo.

Nothing is assumed: a controller is on v1 if a ``cgroup`` mount carries it, on v2 if the unified hierarchy offers it.
This module mounts nothing and knows nothing of limits.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from seacan.cgroups import files
from seacan.errors import Unsupported

V1_CONTROLLERS = frozenset(
    (
        *("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "hugetlb"),
        *("net_cls", "net_prio", "perf_event", "rdma", "misc", "debug"),
    )
)


@dataclass(frozen=True)
class Hierarchy:
    """One mounted v1 hierarchy. ``root`` is which of its cgroups the mount shows as its top ("/" but in a
    container)."""

    directory: str
    root: str
    controllers: frozenset[str]
    name: str = ""
    """The label of a named hierarchy (``name=systemd``), which has no controllers."""


@dataclass(frozen=True)
class Hierarchies:
    """All of a host's. ``unified`` is the directory of the v2 hierarchy or None, ``controllers`` what v2 controls
    there."""

    v1: tuple[Hierarchy, ...] = ()
    unified: str | None = None
    unified_root: str = "/"
    controllers: frozenset[str] = frozenset()

    @property
    def mode(self) -> str:
        """``legacy``, ``hybrid`` or ``unified``, in systemd's words."""
        if not self.v1:
            return "unified"
        return "hybrid" if self.unified else "legacy"

    @property
    def version(self) -> int:
        """What docker info calls the cgroup version: 2 only where v2 controls everything."""
        return 1 if any(hierarchy.controllers for hierarchy in self.v1) else 2

    def has(self, controller: str) -> bool:
        """Whether ``controller`` (in v1's or v2's name) can be used on this host."""
        return controller in self.controllers or any(controller in hierarchy.controllers for hierarchy in self.v1)

    def directory(self, controller: str) -> str | None:
        """Top directory of the v1 hierarchy that carries ``controller``."""
        for hierarchy in self.v1:
            if controller in hierarchy.controllers:
                return hierarchy.directory
        return None


def parse(mountinfo: str) -> Hierarchies:
    """Understand the text of /proc/<pid>/mountinfo (proc_pid_mountinfo(5)).

    Where a hierarchy is mounted more than once the first mount of its own top is taken. Of the named hierarchies only
    systemd's matters: systemd kills by it when a service stops.
    """
    v1: dict[tuple[frozenset[str], str], Hierarchy] = {}
    unified: tuple[str, str] | None = None
    for line in mountinfo.splitlines():
        if " - cgroup" not in line:
            continue
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        kind, _, super_options = right.split(" ", 2)
        root, directory = _unescape(fields[3]), _unescape(fields[4])
        if kind == "cgroup2":
            if unified is None or (unified[0] != "/" and root == "/"):
                unified = (root, directory)
            continue
        if kind != "cgroup":
            continue
        options = super_options.split(",")
        controllers = frozenset(options) & V1_CONTROLLERS
        name = next((option[5:] for option in options if option.startswith("name=")), "")
        if not controllers and name != "systemd":
            continue
        key = (controllers, name)
        if key not in v1 or (v1[key].root != "/" and root == "/"):
            v1[key] = Hierarchy(directory, root, controllers, name)
    offered = (files.read_if_present(unified[1], "cgroup.controllers") or "").split() if unified else []
    return Hierarchies(
        v1=tuple(v1.values()),
        unified=unified[1] if unified else None,
        unified_root=unified[0] if unified else "/",
        controllers=frozenset(offered),
    )


def _unescape(path: str) -> str:
    if "\\" not in path:
        return path
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(code, character)
    return path


@functools.cache
def discover() -> Hierarchies:
    """This process's own view, read once: the launcher reads it before it forks, so that a shim never has to."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mountinfo:
        found = parse(mountinfo.read())
    if not found.v1 and found.unified is None:
        raise Unsupported("no cgroup mount found in mountinfo")
    return found


def own_cgroups(pid: int | str = "self") -> dict[str, str]:
    """The cgroup of a process in each hierarchy: controller (or ``name=…``; "" for the unified one) → path."""
    found: dict[str, str] = {}
    with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            for controller in controllers.split(","):
                found[controller] = path
    return found
