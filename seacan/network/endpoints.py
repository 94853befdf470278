"""Endpoints as plain data: what a container's wishes make of them, and what is told of them. Pure functions."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping, Sequence
from hashlib import sha256

import msgspec

from seacan.engine.config import EndpointSettings, PortBinding, PortMap
from seacan.errors import Conflict, InvalidParameter
from seacan.network.links import random_mac
from seacan.network.model import (
    CONTAINER_IFACE_PREFIX,
    ENDPOINT_IFNAME,
    ENDPOINT_SYSCTLS,
    ContainerIdentity,
    Endpoint,
    IPAddress,
    NetworkSettings,
    NetworkSpec,
    PortRequest,
    PublishedPort,
)
from seacan.network.ports import parse_port


def gateway(spec: NetworkSpec, version: int, own: str) -> str:
    """The gateway of the subnet that ``own`` is in; none in an internal network."""
    if spec.internal or not own:
        return ""
    address = ipaddress.ip_interface(own).ip
    for pool in spec.pools_of(version):
        if address in ipaddress.ip_network(pool.subnet):
            return pool.gateway
    return ""


def interface_name(taken: Collection[str], spec: NetworkSpec, options: Mapping[str, str], container: str) -> str:
    """What the interface is called inside the container, which already has those ``taken``.

    Raises:
        Conflict: the name asked for is taken.
    """
    named = options.get(ENDPOINT_IFNAME)
    if named:
        if named in taken:
            raise Conflict(f"interface name {named} is in use in container {container}")
        return named
    prefix = spec.options.get(CONTAINER_IFACE_PREFIX) or "eth"
    return next(f"{prefix}{number}" for number in range(len(taken) + 1) if f"{prefix}{number}" not in taken)


def choose_gateways(endpoints: Sequence[Endpoint], networks: Mapping[str, NetworkSpec]) -> list[Endpoint]:
    """Decide which of a container's endpoints provide its default routes: dockerd's order."""

    def rank(endpoint: Endpoint) -> tuple[int, bool, int, str]:
        gateways = bool(endpoint.gateway4) + bool(endpoint.gateway6)
        return (-endpoint.gw_priority, networks[endpoint.network].internal, -gateways, endpoint.network_name)

    order = sorted(endpoints, key=rank)
    chosen = {}
    for version in (4, 6):
        for endpoint in order:
            spec = networks[endpoint.network]
            own = endpoint.ipv4 if version == 4 else endpoint.ipv6
            via = endpoint.gateway4 if version == 4 else endpoint.gateway6
            routes_itself = spec.driver in ("macvlan", "ipvlan") and not spec.internal
            if own and (via or routes_itself):
                chosen[version] = endpoint.id
                break
    return [
        msgspec.structs.replace(
            endpoint,
            default_gateway4=chosen.get(4) == endpoint.id,
            default_gateway6=chosen.get(6) == endpoint.id,
        )
        for endpoint in endpoints
    ]


def assign_ports(endpoints: Sequence[Endpoint], published: Sequence[PublishedPort]) -> list[Endpoint]:
    """Spread published ports over the endpoints that provide the container's default routes."""
    result = []
    for endpoint in endpoints:
        versions = {
            version
            for version, provides in ((4, endpoint.default_gateway4), (6, endpoint.default_gateway6))
            if provides
        }
        # A port of the host's IPv6 addresses belongs to the IPv4 endpoint where the container has no IPv6.
        if 4 in versions and not any(one.default_gateway6 for one in endpoints):
            versions.add(6)
        mine = tuple(port for port in published if port.version in versions)
        result.append(msgspec.structs.replace(endpoint, ports=mine))
    return result


def network_settings(
    endpoints: Sequence[Endpoint], configured: Mapping[str, EndpointSettings], *, bridge: str, pid: int
) -> NetworkSettings:
    """Docker's NetworkSettings.

    Args:
        endpoints: what the container has while it runs.
        configured: what was asked of each network, by its name.
        bridge: the daemon's ``--bridge``.
        pid: that of init, 0 if it does not run.
    """
    live = {endpoint.network_name: endpoint for endpoint in endpoints}
    networks = {name: endpoint_settings(asked, live.pop(name, None)) for name, asked in configured.items()}
    networks |= {name: endpoint_settings(EndpointSettings(), endpoint) for name, endpoint in live.items()}
    result = NetworkSettings(bridge=bridge, networks=networks)
    if not endpoints:
        return result
    result.sandbox_id = sha256(endpoints[0].id.encode()).hexdigest()
    if any(endpoint.driver == "host" for endpoint in endpoints):
        result.sandbox_key = "/proc/1/ns/net"
    elif pid:
        result.sandbox_key = f"/proc/{pid}/ns/net"
    result.ports = port_map(endpoints)
    if any(endpoint.network_name == "bridge" for endpoint in endpoints):
        own = networks["bridge"]
        result.endpoint_id = own.endpoint_id
        result.gateway, result.ip_address, result.ip_prefix_len = own.gateway, own.ip_address, own.ip_prefix_len
        result.ipv6_gateway = own.ipv6_gateway
        result.global_ipv6_address = own.global_ipv6_address
        result.global_ipv6_prefix_len = own.global_ipv6_prefix_len
        result.mac_address = own.mac_address
    return result


def port_map(endpoints: Sequence[Endpoint]) -> PortMap:
    """Docker's Ports of an inspected container: published ports, and null for those that are only exposed."""
    result: PortMap = {}
    for endpoint in endpoints:
        if endpoint.driver not in ("host", "null"):
            for one in endpoint.exposed:
                result.setdefault(one, None)
    ports = [port for endpoint in endpoints for port in endpoint.ports]
    for port in sorted(ports, key=lambda port: port.version):
        key = f"{port.port}/{port.protocol}"
        bindings = result.get(key) or []
        bindings.append(PortBinding(host_ip=port.host_ip, host_port=str(port.host_port) if port.host_port else ""))
        result[key] = bindings
    return result


def endpoint_settings(asked: EndpointSettings, endpoint: Endpoint | None) -> EndpointSettings:
    """Docker's EndpointSettings: what was ``asked``, and what the ``endpoint`` got, if there is one."""
    if endpoint is None:
        return msgspec.structs.replace(
            asked, network_id=asked.network_id, endpoint_id="", gateway="", ip_address="", ip_prefix_len=0,
            ipv6_gateway="", global_ipv6_address="", global_ipv6_prefix_len=0,
        )  # fmt: skip
    return msgspec.structs.replace(
        asked,
        mac_address=endpoint.mac,
        network_id=endpoint.network,
        endpoint_id=endpoint.id,
        gateway=endpoint.gateway4,
        ip_address=endpoint.address4,
        ip_prefix_len=int(endpoint.ipv4.partition("/")[2] or 0),
        ipv6_gateway=endpoint.gateway6,
        global_ipv6_address=endpoint.address6,
        global_ipv6_prefix_len=int(endpoint.ipv6.partition("/")[2] or 0),
        dns_names=list(endpoint.names) or None,
    )


def provider(endpoints: Sequence[Endpoint], version: int) -> Endpoint | None:
    """The endpoint that provides the default route of an IP version."""
    for endpoint in endpoints:
        if endpoint.default_gateway4 if version == 4 else endpoint.default_gateway6:
            return endpoint
    return None


def names(container: ContainerIdentity, aliases: Sequence[str]) -> tuple[str, ...]:
    """What a container is called in a user-defined network, in dockerd's order."""
    wanted = [container.name, *aliases, container.id[:12], container.hostname]
    return tuple(dict.fromkeys(name for name in wanted if name))


def exposed(request: PortRequest) -> tuple[str, ...]:
    """The ports that a container exposes or publishes, "80/tcp", in order."""
    ports = {parse_port(text) for text in (*request.exposed, *request.bindings)}
    return tuple(f"{port}/{protocol}" for port, protocol in sorted(ports))


def mac(text: str) -> str:
    """The MAC asked for in its usual form, or one made up.

    Raises:
        InvalidParameter: it is no unicast MAC.
    """
    if not text:
        return random_mac()
    raw = text.replace("-", ":").lower()
    parts = raw.split(":")
    if len(parts) != 6 or not all(len(part) == 2 and all(c in "0123456789abcdef" for c in part) for part in parts):
        raise InvalidParameter(f"invalid MAC address {text}")
    if int(parts[0], 16) & 1 or raw == "00:00:00:00:00:00":
        raise InvalidParameter(f"invalid MAC address {text}: it must be a unicast address")
    return raw


def split_link(link: str) -> tuple[str, str]:
    """ "container:alias" as (container, alias)."""
    name, _, alias = link.partition(":")
    return name, alias or name


def check_settings(spec: NetworkSpec, asked: EndpointSettings) -> None:
    """Find out what can be wrong with a container's wishes in a network.

    Raises:
        InvalidParameter: every fault, as dockerd lists them.
    """
    wanted = asked.ipam_config
    faults = []
    addresses = {4: wanted.ipv4_address, 6: wanted.ipv6_address} if wanted else {}
    if spec.predefined and any(addresses.values()):
        faults.append("user specified IP address is supported on user defined networks only")
    if spec.predefined and asked.aliases:
        faults.append("network-scoped alias is supported only for containers in user defined networks")
    parsed = {version: _address(text, version) for version, text in addresses.items() if text}
    faults += [f"invalid IPv{version} address: {addresses[version]}" for version in parsed if parsed[version] is None]
    for text in (wanted.link_local_ips if wanted else None) or []:
        local = _address(text, 4) or _address(text, 6)
        if local is None or not local.is_link_local:
            faults.append(f"invalid link-local IP address: {text}")
    for version, address in parsed.items():
        pools = [] if spec.predefined else spec.pools_of(version)
        if not pools:
            faults.append(
                "user specified IP address is supported only when connecting to networks with user configured subnets"
            )
        elif address is None or not any(address in ipaddress.ip_network(pool.subnet) for pool in pools):
            faults.append(f"no configured subnet or ip-range contain the IP address {addresses[version]}")
    if len(faults) == 1:
        raise InvalidParameter(f"invalid endpoint settings:\n{faults[0]}")
    if faults:
        raise InvalidParameter("invalid endpoint settings:\n" + "\n".join(f"* {fault}" for fault in faults))
    check_options(asked.driver_opts or {})
    mac(asked.mac_address)
    if asked.mac_address and spec.driver == "ipvlan":
        raise InvalidParameter("ipvlan interfaces do not support custom mac address assignment")


def _address(text: str, version: int) -> IPAddress | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return address if address.version == version else None


def check_options(options: Mapping[str, str]) -> None:
    """Check an endpoint's driver options."""
    name = options.get(ENDPOINT_IFNAME)
    if name is not None and (
        not name or len(name.encode()) > 15 or "/" in name or ":" in name or name in (".", "..", "lo")
        or any(char.isspace() for char in name)
    ):  # fmt: skip
        raise InvalidParameter(f"invalid interface name: {name!r}")
    for sysctl in filter(None, options.get(ENDPOINT_SYSCTLS, "").split(",")):
        parts = sysctl.split(".", 4)
        if len(parts) != 5 or parts[1] not in ("ipv4", "ipv6", "mpls") or parts[3].upper() != "IFNAME":
            raise InvalidParameter(
                f"invalid endpoint settings:\nunrecognised network interface sysctl '{sysctl}'; represent "
                "'net.X.Y.ethN.Z=V' as 'net.X.Y.IFNAME.Z=V', 'X' must be 'ipv4', 'ipv6' or 'mpls'"
            )
