"""From a request to make a network to a :class:`~seacan.network.model.NetworkSpec`: checks and choices.

Nothing here touches the kernel or the state database.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence

import msgspec

from seacan.engine.config import Model
from seacan.errors import Forbidden, InvalidParameter, NotFound, System, Unsupported
from seacan.linux.rtnetlink import IPVLAN_FLAGS, IPVLAN_MODES, MACVLAN_MODES
from seacan.network import ipam
from seacan.network.model import (
    ADVERTISEMENT_INTERVAL,
    ADVERTISEMENTS,
    BRIDGE_NAME,
    GATEWAY_MODE_IPV4,
    GATEWAY_MODE_IPV6,
    HOST_BINDING_IPV4,
    INHIBIT_IPV4,
    IPV6_MIN_MTU,
    IPVLAN_FLAG,
    IPVLAN_MODE,
    MACVLAN_MODE,
    MTU,
    PARENT,
    PREDEFINED,
    IPAddress,
    IPAMPool,
    IPNetwork,
    NetworkSpec,
)
from seacan.truth import truth

DRIVERS = ("bridge", "host", "ipvlan", "macvlan", "null", "routed")
"""The network drivers there are, as ``docker info`` lists them."""

_GATEWAY_MODES = ("nat", "nat-unprotected", "routed", "isolated")
_BOOLEANS = (
    "com.docker.network.bridge.default_bridge",
    "com.docker.network.bridge.enable_icc",
    "com.docker.network.bridge.enable_ip_masquerade",
    "com.docker.network.bridge.inhibit_ipv4",
    "com.docker.network.enable_ipv4",
    "com.docker.network.enable_ipv6",
)
_ADDRESSES: tuple[tuple[str, type[IPAddress] | tuple[type[IPAddress], ...]], ...] = (
    (HOST_BINDING_IPV4, (ipaddress.IPv4Address, ipaddress.IPv6Address)),
    ("com.docker.network.host_ipv4", ipaddress.IPv4Address),
    ("com.docker.network.host_ipv6", ipaddress.IPv6Address),
)


class IPAMConfig(Model):
    subnet: str = ""
    ip_range: str = msgspec.field(default="", name="IPRange")
    gateway: str = ""
    auxiliary_addresses: dict[str, str] | None = None


class IPAM(Model):
    driver: str = ""
    options: dict[str, str] | None = None
    config: list[IPAMConfig] | None = None


class ConfigReference(Model):
    network: str = ""


class NetworkCreateRequest(Model):
    """Body of POST /networks/create."""

    name: str = ""
    check_duplicate: bool = False
    driver: str = ""
    scope: str = ""
    internal: bool = False
    attachable: bool = False
    ingress: bool = False
    config_only: bool = False
    config_from: ConfigReference | None = None
    ipam: IPAM | None = msgspec.field(default=None, name="IPAM")
    enable_ipv4: bool | None = msgspec.field(default=None, name="EnableIPv4")
    enable_ipv6: bool | None = msgspec.field(default=None, name="EnableIPv6")
    options: dict[str, str] | None = None
    labels: dict[str, str] | None = None


def specify(
    request: NetworkCreateRequest,
    *,
    id: str,
    number: int,
    created: int,
    template: NetworkSpec | None,
    defaults: Mapping[str, Mapping[str, str]],
    choose: Callable[[int], IPNetwork],
    mtu: int = 0,
) -> NetworkSpec:
    """The network that ``request`` asks for.

    Args:
        template: the config-only network that ``config_from`` names.
        defaults: driver → options that a network has unless it says otherwise.
        choose: gives a free subnet of an IP version.
        mtu: the daemon's ``--mtu``, for the default bridge network.
    Raises:
        InvalidParameter, Forbidden, NotFound, Unsupported: in dockerd's words.
    """
    if not request.name.strip():
        raise InvalidParameter("invalid name: name is empty")
    driver = request.driver or "bridge"
    if request.config_only:
        _check_config_only(request)
        driver = "null"
    elif driver == "overlay":
        raise Forbidden(
            'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to '
            "swarm and try again."
        )
    elif driver in ("host", "null"):
        raise Forbidden(f'only one instance of "{driver}" network is allowed')
    elif driver not in DRIVERS:
        raise NotFound(f'plugin "{driver}" not found')
    if request.scope == "swarm":
        raise Forbidden("cannot create a swarm scoped network when swarm is not active")
    if request.ingress:
        raise Forbidden("Ingress network can only be global scope network")

    options = dict(request.options or {})
    if request.config_from is None:
        for key, value in defaults.get(driver, {}).items():
            options.setdefault(key, value)
    ipv4 = _family(options, "com.docker.network.enable_ipv4", request.enable_ipv4, True)
    ipv6 = _family(options, "com.docker.network.enable_ipv6", request.enable_ipv6, False)
    validate_ipam(request.ipam, ipv6)
    wanted = request.ipam or IPAM()
    labels = dict(request.labels or {})
    if request.config_from is not None and request.config_from.network:
        if template is None or not template.config_only:
            raise NotFound(f'configuration network "{request.config_from.network}" does not exist')
        if wanted.config or options or labels or request.enable_ipv6:
            raise Forbidden(
                "user specified configurations are not supported if the network depends on a configuration network"
            )
        wanted = IPAM(
            driver=template.ipam_driver,
            options=template.ipam_options,
            config=[
                IPAMConfig(
                    subnet=pool.subnet,
                    ip_range=pool.ip_range,
                    gateway=pool.gateway,
                    auxiliary_addresses=pool.auxiliary,
                )
                for pool in template.pools
            ],
        )
        options, labels, ipv4, ipv6 = dict(template.options), dict(template.labels), template.ipv4, template.ipv6
    if wanted.driver not in ("", "default", "null"):
        raise NotFound(f'plugin "{wanted.driver}" not found')
    if wanted.driver == "null" and driver in ("bridge", "routed"):
        raise InvalidParameter(f"ipv{4 if ipv4 else 6} pool is empty")
    if not ipv4 and not ipv6 and not request.config_only and driver in ("bridge", "routed"):
        raise InvalidParameter("IPv4 or IPv6 must be enabled")
    if not request.config_only:
        _check_options(driver, options, internal=request.internal)
        if driver == "bridge" and mtu and MTU not in options and options.get(BRIDGE_NAME):
            options[MTU] = str(mtu)
    spec = NetworkSpec(
        id=id,
        name=request.name,
        number=number,
        driver=driver,
        created=created,
        scope=request.scope or "local",
        internal=request.internal,
        attachable=request.attachable,
        ipv4=ipv4,
        ipv6=ipv6,
        config_only=request.config_only,
        config_from=request.config_from.network if request.config_from else "",
        options=options,
        labels=labels,
        ipam_driver=wanted.driver or "default",
        ipam_options=wanted.options,
    )
    if ipv6 and not request.config_only and not spec.carries_ipv6:
        raise InvalidParameter(f"invalid MTU number: {spec.mtu}: IPv6 needs {IPV6_MIN_MTU} at least")
    pools = [_pool(config) for config in wanted.config or []]
    if not request.config_only:
        pools = _complete(spec, pools, choose)
    return msgspec.structs.replace(spec, pools=tuple(pools))


def _check_config_only(request: NetworkCreateRequest) -> None:
    if request.config_from is not None and request.config_from.network:
        raise Forbidden("a configuration network cannot depend on another configuration network")
    if request.driver not in ("", "null", "bridge") or request.internal or request.attachable:
        raise Forbidden(
            "configuration network can only contain network specific fields. Network operator fields like "
            "[ ingress | internal | attachable | scope ] are not supported."
        )


def _family(options: dict[str, str], option: str, wanted: bool | None, default: bool) -> bool:
    if wanted is not None:
        options.pop(option, None)
        return wanted
    value = options.get(option)
    if value is None:
        return default
    wanted = truth(value)
    if wanted is None:
        raise InvalidParameter(f'driver-opt "{option}" is not a valid bool')
    return wanted


def _check_options(driver: str, options: Mapping[str, str], *, internal: bool) -> None:
    for name in _BOOLEANS:
        value = options.get(name)
        if value and truth(value) is None:
            raise InvalidParameter(
                f'failed to parse {name} value: {value} (strconv.ParseBool: parsing "{value}": invalid syntax)'
            )
    mtu = options.get(MTU)
    if mtu and not (mtu.isascii() and mtu.removeprefix("-").isdecimal()):
        raise InvalidParameter(f'failed to parse {MTU} value: {mtu} (strconv.Atoi: parsing "{mtu}": invalid syntax)')
    if mtu and not (mtu.isascii() and mtu.isdecimal() and (int(mtu) == 0 or 68 <= int(mtu) <= 65535)):
        raise InvalidParameter(f"invalid MTU number: {mtu}")
    for name, kind, low, high in (
        (ADVERTISEMENTS, "an integer", 0, 3),
        (ADVERTISEMENT_INTERVAL, "integer milliseconds", 100, 2000),
    ):
        value = options.get(name)
        if value is not None and not re.fullmatch(r"[+-]?[0-9]+", value):
            raise InvalidParameter(f'value for option {name} "{value}" must be {kind}')
        if value is not None and not low <= int(value) <= high:
            raise InvalidParameter(f"{name} must be in the range {low} to {high}")
    for name in (GATEWAY_MODE_IPV4, GATEWAY_MODE_IPV6):
        mode = options.get(name)
        if mode is None:
            continue
        if mode not in _GATEWAY_MODES:
            raise InvalidParameter(f"failed to parse {name} value: {mode} (unknown gateway mode {mode})")
        if mode == "isolated" and not internal:
            raise InvalidParameter("gateway mode 'isolated' can only be used for an internal network")
    bridge = options.get(BRIDGE_NAME, "")
    if len(bridge.encode()) > 15 or "/" in bridge or any(char.isspace() for char in bridge):
        raise InvalidParameter(f"invalid bridge name: {bridge}")
    for name, kinds in _ADDRESSES:
        if (value := options.get(name)) is None:
            continue
        try:
            address = ipaddress.ip_address(value)
        except ValueError as error:
            raise InvalidParameter(f"failed to parse {name} value: {value} (nil ip)") from error
        if not isinstance(address, kinds):
            raise InvalidParameter(f"failed to parse {name} value: {value} (not an address of that IP version)")
    if driver == "macvlan":
        mode = options.get(MACVLAN_MODE) or "bridge"
        if mode not in MACVLAN_MODES:
            raise InvalidParameter(
                f"requested macvlan mode '{mode}' is not valid, 'bridge' mode is the macvlan driver default"
            )
    if driver == "ipvlan" and (options.get(IPVLAN_MODE) or "l2") not in IPVLAN_MODES:
        raise InvalidParameter(
            f"requested ipvlan mode '{options[IPVLAN_MODE]}' is not valid, 'l2' mode is the ipvlan driver default"
        )
    if driver == "ipvlan" and (options.get(IPVLAN_FLAG) or "bridge") not in IPVLAN_FLAGS:
        raise InvalidParameter(
            f"requested ipvlan flag '{options[IPVLAN_FLAG]}' is not valid, 'bridge' is the ipvlan driver default"
        )
    if driver in ("macvlan", "ipvlan") and options.get(PARENT) == "lo":
        raise InvalidParameter(f"loopback interface is not a valid {driver} parent link")
    if driver == "routed" and internal:
        raise Unsupported("a routed network cannot be internal: use a bridge network")


def _pool(config: IPAMConfig) -> IPAMPool:
    return IPAMPool(
        subnet=config.subnet,
        ip_range=config.ip_range,
        gateway=config.gateway,
        auxiliary=dict(config.auxiliary_addresses or {}),
    )


def _complete(spec: NetworkSpec, pools: Sequence[IPAMPool], choose: Callable[[int], IPNetwork]) -> list[IPAMPool]:
    """``pools`` with a subnet for each enabled family and a gateway in each subnet that can have one."""
    result = []
    for version, enabled in ((4, spec.ipv4), (6, spec.ipv6)):
        if not enabled or spec.ipam_driver == "null":
            continue
        given = [pool for pool in pools if ipaddress.ip_network(pool.subnet).version == version]
        if not given:
            given = [IPAMPool(subnet=str(choose(version)))]
        for pool in given:
            if not pool.gateway and _has_gateway(spec, version):
                pool = msgspec.structs.replace(pool, gateway=_first_address(pool))
            _refuse_taken(pool)
            result.append(pool)
    return result


def _has_gateway(spec: NetworkSpec, version: int) -> bool:
    if spec.driver == "ipvlan" and (spec.options.get(IPVLAN_MODE) or "l2") != "l2":
        return False
    if spec.internal and (spec.driver in ("macvlan", "ipvlan") or (version == 4 and spec.flag(INHIBIT_IPV4, False))):
        return False  # there is no default route, nor anybody with the address
    return spec.gateway_mode(version) != "isolated"


def _first_address(pool: IPAMPool) -> str:
    """What dockerd takes as gateway: the first address of the range (of the subnet, without one) that can be had."""
    within = ipaddress.ip_network(pool.ip_range or pool.subnet)
    first = within.network_address
    if first in _unusable(ipaddress.ip_network(pool.subnet)):
        first += 1
    if first not in within:
        raise InvalidParameter(f"no available addresses in subnet {pool.subnet} for its gateway")
    return str(first)


def _unusable(subnet: IPNetwork) -> set[IPAddress]:
    """The addresses that are nobody's: a network's own, and for IPv4 the broadcast address."""
    if subnet.num_addresses <= 2:
        return set()
    return {subnet.network_address, *([subnet.broadcast_address] if subnet.version == 4 else [])}


def _refuse_taken(pool: IPAMPool) -> None:
    taken = _unusable(ipaddress.ip_network(pool.subnet))
    if pool.gateway:
        gateway = ipaddress.ip_address(pool.gateway)
        if gateway in taken:
            raise System(f"failed to allocate gateway ({pool.gateway}): Address already in use")
        taken.add(gateway)
    for name, text in pool.auxiliary.items():
        address = ipaddress.ip_address(text)
        if address in taken:
            raise System(f"failed to allocate secondary ip address ({name}:{text}): Address already in use")
        taken.add(address)


def validate_ipam(wanted: IPAM | None, ipv6: bool) -> None:
    """Check subnets, ranges, gateways and auxiliary addresses against each other.

    Raises:
        InvalidParameter: every fault, as dockerd lists them.
    """
    faults: list[str] = []
    for config in (wanted.config if wanted else None) or []:
        try:
            interface = ipaddress.ip_interface(config.subnet)
            if "/" not in config.subnet:
                raise ValueError
        except ValueError:
            faults.append(f"invalid subnet {config.subnet}: invalid CIDR block notation")
            continue
        subnet = interface.network
        if subnet.version == 6 and not ipv6:
            continue
        if interface.ip != subnet.network_address:
            faults.append(f"invalid subnet {config.subnet}: it should be {subnet}")
        faults += _range_faults(config.ip_range, subnet)
        fault = _address_fault(config.gateway, subnet)
        if fault:
            faults.append(f"invalid gateway {config.gateway}: {fault}")
        for name, address in (config.auxiliary_addresses or {}).items():
            fault = _address_fault(address, subnet)
            if fault:
                faults.append(f"invalid auxiliary address {name}: {fault}")
    if len(faults) == 1:
        raise InvalidParameter(f"invalid network config:\n{faults[0]}")
    if faults:
        raise InvalidParameter("invalid network config:\n" + "\n".join(f"* {fault}" for fault in faults))


def _range_faults(text: str, subnet: IPNetwork) -> list[str]:
    if not text:
        return []
    try:
        interface = ipaddress.ip_interface(text)
        if "/" not in text:
            raise ValueError
    except ValueError:
        return [f"invalid ip-range {text}: invalid CIDR block notation"]
    block = interface.network
    if block.version != subnet.version:
        return [f"invalid ip-range {text}: parent subnet is an IPv{subnet.version} block"]
    faults = []
    if block.prefixlen < subnet.prefixlen:
        faults.append(f"invalid ip-range {text}: CIDR block is bigger than its parent subnet {subnet}")
    if interface.ip != block.network_address:
        faults.append(f"invalid ip-range {text}: it should be {block}")
    if not block.overlaps(subnet):
        faults.append(f"invalid ip-range {text}: parent subnet {subnet} doesn't contain ip-range")
    return faults


def _address_fault(text: str, subnet: IPNetwork) -> str:
    if not text:
        return ""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return "invalid address"
    if address.version != subnet.version:
        return f"parent subnet is an IPv{subnet.version} block"
    if address not in subnet:
        return f"parent subnet {subnet} doesn't contain this address"
    return ""


def local_prefix(engine_id: str) -> str:
    """The /48 of unique local IPv6 addresses that belongs to this engine (RFC 4193)."""
    digest = hashlib.sha256(engine_id.encode()).digest()
    return str(ipaddress.IPv6Network((b"\xfd" + digest[:5] + bytes(10), 48)))


def address_pools(configured: Sequence[tuple[str, int]], engine_id: str) -> list[tuple[str, int]]:
    """Where subnets come from that nobody asked for: the daemon's pools, or dockerd's, and our own IPv6 prefix."""
    pools = list(configured) or list(ipam.DEFAULT_POOLS)
    for base, size in pools:
        network = ipaddress.ip_network(base)
        if not network.prefixlen <= size <= network.max_prefixlen:
            raise InvalidParameter(f"invalid default address pool: subnet size /{size} does not fit {base}")
    if not any(ipaddress.ip_network(base).version == 6 for base, _ in pools):
        pools.append((local_prefix(engine_id), 64))
    return pools


def is_predefined(name: str) -> bool:
    return name in PREDEFINED
