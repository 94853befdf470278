"""How an engine is to work: what dockerd takes from its flags and from daemon.json, as plain data.

``seacan daemon`` fills :class:`EngineOptions` from flags and daemon.json; a program that imports the engine makes one
itself. Nothing here reads a file. Fields named in :data:`LIVE` can change while the engine runs
(:meth:`seacan.engine.engine.Engine.reconfigure`).
"""

from __future__ import annotations

import msgspec

from seacan.engine.config import Ulimit


class RuntimeOption(msgspec.Struct, kw_only=True, frozen=True):
    """An external OCI runtime (``--add-runtime name=path``)."""

    path: str
    arguments: tuple[str, ...] = ()


class AddressPool(msgspec.Struct, kw_only=True, frozen=True):
    """A range from which networks without a subnet of their own are cut (``--default-address-pool``)."""

    base: str
    size: int


class CachePolicy(msgspec.Struct, frozen=True):
    """One rule by which the cache of builds is pruned; sizes are bytes.

    While the cache is larger than :meth:`keep` says, records go that have not been used for ``unused_for`` nanoseconds
    and are of one of ``kinds`` (none: of any), the longest unused first; with ``all`` those that images use too.
    """

    all: bool = False
    unused_for: int = 0
    kinds: tuple[str, ...] = ()
    reserved: int = 0
    most: int = 0
    free: int = 0

    def keep(self, used: int, available: int) -> int:
        """How many bytes a cache of ``used`` may keep with so many free on its disk; BuildKit's arithmetic."""
        if not (self.reserved or self.most or self.free):
            return 0
        goal = self.most
        excess = self.free - available
        if excess > 0:
            goal = min(goal, used - excess) if goal else used - excess
        elif self.free and not goal:
            goal = used
        return max(goal, self.reserved)


_TEMPORARY = ("source.local", "exec.cachemount", "source.git.checkout")
"""What is made again most easily."""
_HOUR = 3600 * 10**9


class CacheLimits(msgspec.Struct, frozen=True):
    """How much disk the cache of builds may take when nobody prunes it: ``builder.gc`` of daemon.json.

    In bytes; None stands for a share of the disk, as in dockerd. ``reserved`` is what the cache may always have,
    ``most`` what it may have at most (0: no limit), ``free`` what is to stay free. ``policy`` says it rule by rule
    instead.
    """

    enabled: bool = True
    reserved: int | None = None
    most: int | None = None
    free: int | None = None
    policy: tuple[CachePolicy, ...] = ()

    def rules(self, disk: int) -> tuple[CachePolicy, ...]:
        """What is to be kept to on a disk of that size, one after the other: dockerd's, where none are given.

        Contexts, checkouts and cache mounts that have not been used for two days may have but a part of what is
        reserved, what has not been used for 60 days goes first.
        """
        if not self.enabled:
            return ()
        if self.policy:
            return self.policy
        rest = CachePolicy(
            reserved=disk // 10 if self.reserved is None else self.reserved,
            most=disk * 3 // 4 if self.most is None else self.most,
            free=disk // 5 if self.free is None else self.free,
        )
        temporary = max(1, rest.reserved * 138 // 1000)
        return (
            CachePolicy(unused_for=48 * _HOUR, kinds=_TEMPORARY, most=temporary),
            msgspec.structs.replace(rest, unused_for=60 * 24 * _HOUR),
            rest,
        )


class EngineOptions(msgspec.Struct, kw_only=True):
    # places
    data_root: str = "/var/lib/seacan"
    exec_root: str = "/run/seacan"
    cgroup_parent: str = "/seacan"
    # what a container gets that does not say otherwise
    default_ulimits: dict[str, Ulimit] = {}
    default_shm_size: int = 64 << 20
    """Bytes."""
    default_ipc_mode: str = "private"
    default_cgroupns_mode: str = ""
    """"private" or "host"; empty: private on cgroup v2, host on v1, as dockerd."""
    no_new_privileges: bool = False
    seccomp_profile: str = ""
    """Path of a profile; "builtin" or empty for ours; "unconfined"."""
    selinux_enabled: bool = False
    userns_remap: str = ""
    """Whose subordinate IDs containers get (``--userns-remap``); empty: the host's."""
    init: bool = False
    init_path: str = ""
    log_driver: str = "json-file"
    log_opts: dict[str, str] = {}
    cdi_spec_dirs: list[str] = msgspec.field(default_factory=lambda: ["/etc/cdi", "/var/run/cdi"])
    """Folders with descriptions of CDI devices, the later ones before the earlier; [] or [""]: no CDI."""
    default_runtime: str = "seacan"
    runtimes: dict[str, RuntimeOption] = {}
    # networks
    bridge: str = ""
    """Name of an existing bridge for the default network, "none" for no default network; empty: we make seacan0."""
    bip: str = ""
    bip6: str = ""
    fixed_cidr: str = ""
    fixed_cidr_v6: str = ""
    default_gateway: str = ""
    default_gateway_v6: str = ""
    default_address_pools: list[AddressPool] = []
    default_network_opts: dict[str, dict[str, str]] = {}
    """Driver name → default options of networks of that driver."""
    mtu: int = 0
    """0: the kernel's."""
    ip: str = "0.0.0.0"
    """Address on which ports are published that name none."""
    icc: bool = True
    ipv6: bool = False
    ip_forward: bool = True
    ip_masq: bool = True
    iptables: bool = True
    ip6tables: bool = True
    userland_proxy: bool = True
    allow_direct_routing: bool = False
    dns: list[str] = []
    dns_options: list[str] = []
    dns_search: list[str] = []
    host_gateway_ips: list[str] = []
    # storage and images
    storage_driver: str = ""
    """"overlay2", "vfs", or empty to choose by what the host can mount."""
    storage_opts: list[str] = []
    max_concurrent_downloads: int = 3
    max_concurrent_uploads: int = 5
    max_download_attempts: int = 5
    registry_mirrors: list[str] = []
    insecure_registries: list[str] = []
    certs_dir: str = "/etc/docker/certs.d"
    """A folder a registry (``host:port``): authorities (``*.crt``), client certificates (``*.cert``, ``*.key``)."""
    build_cache: CacheLimits = CacheLimits()
    signature_policy: str = ""
    """A policy file (containers-policy.json(5)) that pulled images must satisfy; empty: everything is accepted."""
    # the daemon
    labels: list[str] = []
    debug: bool = False
    experimental: bool = False
    live_restore: bool = True
    """Containers outlive the daemon; when false, a clean stop of the daemon stops them (dockerd's default)."""
    shutdown_timeout: int = 15
    """Seconds a container gets to end when the daemon stops them."""
    features: dict[str, bool] = {}
    hosts: list[str] = []
    tls: bool = False


LIVE = frozenset(
    {
        "debug",
        "labels",
        "live_restore",
        "shutdown_timeout",
        "features",
        "default_runtime",
        "runtimes",
        "max_concurrent_downloads",
        "max_concurrent_uploads",
        "max_download_attempts",
        "registry_mirrors",
        "insecure_registries",
    }
)
"""The options that dockerd reloads on SIGHUP."""
