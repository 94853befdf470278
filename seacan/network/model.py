"""What networks, endpoints and published ports are: plain data, as stored in the state database.

A *network* is what ``docker network create`` made. An *endpoint* is one container's place in one network. A
*published port* is one port of the host that leads to one port of an endpoint. Names of options are Docker's.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from seacan.engine.config import EndpointSettings, PortBinding, PortMap

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
IPInterface = ipaddress.IPv4Interface | ipaddress.IPv6Interface

BRIDGE_NAME = "com.docker.network.bridge.name"
DEFAULT_BRIDGE = "com.docker.network.bridge.default_bridge"
ENABLE_ICC = "com.docker.network.bridge.enable_icc"
ENABLE_MASQUERADE = "com.docker.network.bridge.enable_ip_masquerade"
HOST_BINDING_IPV4 = "com.docker.network.bridge.host_binding_ipv4"
INHIBIT_IPV4 = "com.docker.network.bridge.inhibit_ipv4"
GATEWAY_MODE_IPV4 = "com.docker.network.bridge.gateway_mode_ipv4"
GATEWAY_MODE_IPV6 = "com.docker.network.bridge.gateway_mode_ipv6"
TRUSTED_INTERFACES = "com.docker.network.bridge.trusted_host_interfaces"
HOST_IPV4 = "com.docker.network.host_ipv4"
HOST_IPV6 = "com.docker.network.host_ipv6"
MTU = "com.docker.network.driver.mtu"
ADVERTISEMENTS = "com.docker.network.advertise_addr_nmsgs"
ADVERTISEMENT_INTERVAL = "com.docker.network.advertise_addr_ms"
IPV6_MIN_MTU = 1280
CONTAINER_IFACE_PREFIX = "com.docker.network.container_iface_prefix"
ENDPOINT_SYSCTLS = "com.docker.network.endpoint.sysctls"
ENDPOINT_IFNAME = "com.docker.network.endpoint.ifname"
PARENT = "parent"
MACVLAN_MODE = "macvlan_mode"
IPVLAN_MODE = "ipvlan_mode"
IPVLAN_FLAG = "ipvlan_flag"

PREDEFINED = frozenset({"bridge", "host", "none", "default"})
"""Network names that no user may create or remove."""


class IPAMPool(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One subnet of a network, in text form. ``gateway`` is empty where the network has none."""

    subnet: str
    ip_range: str = ""
    gateway: str = ""
    auxiliary: dict[str, str] = {}


class NetworkSpec(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """A network. ``number`` is the interface group that all of its host-side links carry, and that firewall rules
    know it by; ``created`` is nanoseconds since 1970."""

    id: str
    name: str
    number: int
    driver: str = "bridge"
    created: int = 0
    scope: str = "local"
    internal: bool = False
    attachable: bool = False
    ingress: bool = False
    ipv4: bool = True
    ipv6: bool = False
    config_only: bool = False
    config_from: str = ""
    options: dict[str, str] = {}
    labels: dict[str, str] = {}
    ipam_driver: str = "default"
    ipam_options: dict[str, str] | None = None
    pools: tuple[IPAMPool, ...] = ()
    own_interface: bool = True
    """False: the bridge (or parent) existed before us and is not ours to delete."""

    @property
    def predefined(self) -> bool:
        return self.name in PREDEFINED

    @property
    def bridge(self) -> str:
        """Name of the host-side interface that stands for the network (bridge and routed)."""
        return self.options.get(BRIDGE_NAME) or f"br-{self.id[:12]}"

    def flag(self, option: str, default: bool) -> bool:
        value = self.options.get(option)
        return default if value is None or value == "" else value.lower() in ("1", "t", "true")

    @property
    def icc(self) -> bool:
        return self.flag(ENABLE_ICC, True)

    @property
    def masquerade(self) -> bool:
        return self.flag(ENABLE_MASQUERADE, True)

    def gateway_mode(self, version: int) -> str:
        """``nat``, ``nat-unprotected``, ``routed`` or ``isolated``."""
        return self.options.get(GATEWAY_MODE_IPV4 if version == 4 else GATEWAY_MODE_IPV6) or "nat"

    def pools_of(self, version: int) -> list[IPAMPool]:
        return [pool for pool in self.pools if ipaddress.ip_network(pool.subnet).version == version]

    def gateway(self, version: int) -> IPAddress | None:
        for pool in self.pools_of(version):
            if pool.gateway:
                return ipaddress.ip_address(pool.gateway)
        return None

    @property
    def mtu(self) -> int:
        """0: the kernel's own."""
        return int(self.options.get(MTU) or 0)

    @property
    def carries_ipv6(self) -> bool:
        """Whether the kernel has IPv6 on links of this size at all."""
        return not 0 < self.mtu < IPV6_MIN_MTU


class PublishedPort(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One open port of the host: ``host_ip``:``host_port`` leads to ``port`` of the endpoint.

    ``host_ip`` is ``0.0.0.0`` or ``::`` for every address of the host. ``host_port`` is 0 in a network whose
    gateway mode is routed: there the port is open at the container's own address.
    """

    protocol: str
    port: int
    host_ip: str
    host_port: int

    @property
    def version(self) -> int:
        return 6 if ":" in self.host_ip else 4


class Endpoint(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """A container's place in a network. Addresses are text with prefix length ("172.17.0.2/16"), empty if none."""

    id: str
    container: str
    container_name: str
    network: str
    network_name: str
    driver: str
    hostname: str = ""
    interface: str = ""
    """Name of the host-side end of the link."""
    container_interface: str = ""
    """Name inside the container; chosen when the endpoint joins ("eth0", …) unless asked for."""
    mac: str = ""
    ipv4: str = ""
    ipv6: str = ""
    gateway4: str = ""
    gateway6: str = ""
    link_local: tuple[str, ...] = ()
    used_before: bool = False
    """Whether a neighbour may know another MAC for one of the addresses."""
    aliases: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    """What the container is called in this network, as DNS answers."""
    linked: dict[str, str] = {}
    """Alias → container id: what the container links to on the default network."""
    dns: tuple[str, ...] = ()
    """The servers that are asked for the container instead of the host's."""
    options: dict[str, str] = {}
    gw_priority: int = 0
    default_gateway4: bool = False
    default_gateway6: bool = False
    ports: tuple[PublishedPort, ...] = ()
    exposed: tuple[str, ...] = ()
    """Ports the container exposes, "80/tcp"."""
    sequence: int = 0
    """Order in which a container's endpoints were made."""

    @property
    def address4(self) -> str:
        return self.ipv4.partition("/")[0]

    @property
    def address6(self) -> str:
        return self.ipv6.partition("/")[0]


class ContainerIdentity(msgspec.Struct, kw_only=True, frozen=True):
    """Who asks for endpoints: full id, name without slash, and its host name."""

    id: str
    name: str
    hostname: str = ""
    domainname: str = ""
    ipv6: bool = True
    """Whether it has IPv6 turned on."""


class PortRequest(msgspec.Struct, kw_only=True, frozen=True):
    """What a container publishes: Docker's PortBindings, the exposed ports ("80/tcp"), and ``-P``."""

    bindings: Mapping[str, Sequence[PortBinding] | None] = {}
    exposed: tuple[str, ...] = ()
    publish_all: bool = False


class Sandbox(Protocol):
    """A container's network namespace, as a shim hands it over."""

    @property
    def pid(self) -> int: ...

    @property
    def netns(self) -> int | None:
        """A descriptor of the namespace; None: the container has none of its own."""

    @property
    def rtnl(self) -> int | None:
        """A NETLINK_ROUTE socket that was opened inside it."""


class DescriptorStore(Protocol):
    """Keeps descriptors across restarts of the daemon: a container's shim (:class:`seacan.runtime.task.Task`)."""

    async def keep(self, name: str, fds: Sequence[int]) -> None: ...

    async def fetch(self, name: str) -> list[int]: ...

    async def created(self) -> Sandbox: ...


class NetworkSettings(msgspec.Struct, kw_only=True, rename="pascal"):
    """Docker's NetworkSettings of an inspected container."""

    bridge: str = ""
    sandbox_id: str = msgspec.field(default="", name="SandboxID")
    sandbox_key: str = ""
    ports: PortMap = {}
    hairpin_mode: bool = False
    link_local_ipv6_address: str = msgspec.field(default="", name="LinkLocalIPv6Address")
    link_local_ipv6_prefix_len: int = msgspec.field(default=0, name="LinkLocalIPv6PrefixLen")
    secondary_ip_addresses: list[str] | None = msgspec.field(default=None, name="SecondaryIPAddresses")
    secondary_ipv6_addresses: list[str] | None = msgspec.field(default=None, name="SecondaryIPv6Addresses")
    endpoint_id: str = msgspec.field(default="", name="EndpointID")
    gateway: str = ""
    global_ipv6_address: str = msgspec.field(default="", name="GlobalIPv6Address")
    global_ipv6_prefix_len: int = msgspec.field(default=0, name="GlobalIPv6PrefixLen")
    ip_address: str = msgspec.field(default="", name="IPAddress")
    ip_prefix_len: int = msgspec.field(default=0, name="IPPrefixLen")
    ipv6_gateway: str = msgspec.field(default="", name="IPv6Gateway")
    mac_address: str = ""
    networks: dict[str, EndpointSettings] = {}
