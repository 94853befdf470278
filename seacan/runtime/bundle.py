"""What the engine hands to a shim: a bundle folder holding plain data.

``<exec-root>/containers/<id>/`` (mode 0700) holds

=================  =====================================================================================
``config.json``    the OCI runtime configuration (:mod:`seacan.runtime.spec`)
``shim.json``      :class:`ShimConfig`: everything the OCI configuration has no word for
``state.json``     written by the shim once init exists: OCI state, plus start time (to tell reused pids)
``exit.json``      :class:`Exit`, written (to a temporary name, then renamed) before anyone is told
``shim.sock``      where a restarted daemon finds the shim again
``exec-<eid>.json``  the OCI process of an exec in flight
=================  =====================================================================================

Nothing here imports anything heavy: the launcher keeps this module loaded and every shim shares its pages.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from seacan.linux.userns import Range


class Mapping(msgspec.Struct, frozen=True, array_like=True):
    """Whose users a root file system is to belong to: lines of uid_map and gid_map, (inside, outside, size)."""

    uids: tuple[Range, ...]
    gids: tuple[Range, ...]


class OverlayRoot(msgspec.Struct, tag="overlay", tag_field="type", frozen=True):
    """An overlay to be mounted by the shim inside the container's own mount namespace, so that it can never leak.

    ``lower`` lists layer directories, topmost first. ``upper`` and ``work`` are None for a read-only view.
    """

    lower: tuple[str, ...]
    upper: str | None = None
    work: str | None = None
    options: tuple[str, ...] = ()
    mapping: Mapping | None = None
    """What its owners are seen through; on disk they are as inside."""


class DirectoryRoot(msgspec.Struct, tag="directory", tag_field="type", frozen=True):
    """A plain directory used as it is (the vfs driver, or an OCI bundle's own rootfs)."""

    path: str
    mapping: Mapping | None = None


Rootfs = OverlayRoot | DirectoryRoot


class LogConfig(msgspec.Struct, frozen=True):
    """Where a container's output goes. ``path`` is the log file; sizes are bytes, -1 means never rotate."""

    driver: Literal["json-file", "local", "none"] = "json-file"
    path: str = ""
    max_size: int = -1
    max_file: int = 1
    compress: bool = False
    attributes: dict[str, str] = {}
    """Extra ``attrs`` of a json-file line (from the labels, env and tag options)."""
    non_blocking: bool = False
    max_buffer_size: int = 1 << 20


class ExternalRuntime(msgspec.Struct, frozen=True):
    """Another OCI runtime (runc, crun, …) that makes the container in our stead (``--add-runtime``)."""

    path: str
    arguments: tuple[str, ...] = ()
    root: str = ""


class ShimConfig(msgspec.Struct, frozen=True):
    """The shim's own configuration; sits beside the OCI ``config.json`` in the bundle."""

    id: str
    rootfs: Rootfs
    log: LogConfig = LogConfig()
    open_stdin: bool = False
    stdin_once: bool = False
    seccomp: str | None = None
    """Path of the compiled BPF program; then ``linux.seccomp`` is left out of ``config.json``."""
    seccomp_flags: int = 0
    """SECCOMP_FILTER_FLAG_* to load it with."""
    external: ExternalRuntime | None = None
    direct: bool = False
    """Whether the configuration is :func:`seacan.runtime.spec.direct`: the shim forks init itself then, and execs."""
    spawn: bool = False
    """Whether a ``direct`` exec may be spawned (docs/decisions/0006): its filter lets it, and nobody in the container
    may trace others."""
    keyring: bool = False
    """Whether the shim has a session keyring for the container, which init and execs of a ``direct`` one inherit.
    Otherwise each looks for it by its name, which takes the kernel the longer the more containers there are; but so it
    can have a label of SELinux's."""
    unified: str = ""
    """Where those are born then: the folder of ``linux.cgroupsPath`` in the v2 hierarchy, if there is one."""


class Exit(msgspec.Struct, frozen=True):
    """How a process ended. ``exit_code`` is the shell's convention (128+signal); ``at`` is nanoseconds since 1970."""

    exit_code: int
    at: int
    signal: int = 0
    oom_killed: bool = False
    error: str = ""
