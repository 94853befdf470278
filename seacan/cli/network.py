"""``seacan network``: Docker's verbs for networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from seacan.cli.client import Client
from seacan.cli.command import Group, command, each, filters, flag, given, switch
from seacan.cli.container import confirm, inspect_all
from seacan.cli.flags import pairs, parse_integer, parse_label
from seacan.cli.output import local_time, write_rows
from seacan.errors import InvalidParameter

_HEADERS: Final = {
    "ID": "NETWORK ID",
    "Name": "NAME",
    "Driver": "DRIVER",
    "Scope": "SCOPE",
    "IPv4": "IPV4",
    "IPv6": "IPV6",
    "Internal": "INTERNAL",
    "Labels": "LABELS",
    "CreatedAt": "CREATED AT",
}


def network_row(item: Mapping[str, Any], *, truncate: bool) -> dict[str, Any]:
    labels = item.get("Labels") or {}
    return {
        "ID": item["Id"][:12] if truncate else item["Id"],
        "Name": item["Name"],
        "Driver": item["Driver"],
        "Scope": item["Scope"],
        "IPv4": str(item.get("EnableIPv4", True)).lower(),
        "IPv6": str(item.get("EnableIPv6", False)).lower(),
        "Internal": str(item.get("Internal", False)).lower(),
        "Labels": ",".join(sorted(f"{key}={value}" for key, value in labels.items())),
        "Label": lambda name: labels.get(name, ""),
        "CreatedAt": local_time(item["Created"]),
    }


@command("ls", exactly=0)
@flag("filter", 'Provide filter values (e.g. "driver=bridge")', short="f", many=True)
@flag("format", "Format output using a custom template", default="")
@switch("no-trunc", "Do not truncate the output")
@switch("quiet", "Only display network IDs", short="q")
def ls(client: Client, arguments: list[str], *, filter: list[str], format: str, no_trunc: bool, quiet: bool) -> None:
    """List networks"""
    items = sorted(client.get("/networks", filters=filters(filter)), key=lambda item: item["Name"])
    rows = [network_row(item, truncate=not no_trunc) for item in items]
    table = r"table {{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}"
    write_rows(rows, format, table, _HEADERS, quiet="{{.ID}}", is_quiet=quiet)


@command("create", "NETWORK", exactly=1)
@switch("attachable", "Enable manual container attachment")
@flag("aux-address", "Auxiliary IPv4 or IPv6 addresses used by Network driver", many=True)
@flag("config-from", "The network from which to copy the configuration", default="")
@switch("config-only", "Create a configuration only network")
@flag("driver", "Driver to manage the Network", short="d", default="bridge")
@flag("gateway", "IPv4 or IPv6 Gateway for the master subnet", many=True)
@switch("ingress", "Create swarm routing-mesh network")
@switch("internal", "Restrict external access to the network")
@flag("ip-range", "Allocate container ip from a sub-range", many=True)
@flag("ipam-driver", "IP Address Management Driver", default="default")
@flag("ipam-opt", "Set IPAM driver specific options", many=True)
@switch("ipv4", "Enable or disable IPv4 address assignment", default=True)
@switch("ipv6", "Enable or disable IPv6 address assignment")
@flag("label", "Set metadata on a network", many=True)
@flag("opt", "Set driver specific options", short="o", many=True)
@flag("scope", "Control the network's scope", default="")
@flag("subnet", "Subnet in CIDR format that represents a network segment", many=True)
def create(client: Client, arguments: list[str], **options: Any) -> None:
    """Create a network"""
    body: dict[str, Any] = {
        "Name": arguments[0],
        "Driver": options["driver"],
        "Scope": options["scope"],
        "Internal": options["internal"],
        "Attachable": options["attachable"],
        "Ingress": options["ingress"],
        "ConfigOnly": options["config_only"],
        "Options": pairs(options["opt"]),
        "Labels": pairs([parse_label(item) for item in options["label"]]),
        "IPAM": {
            "Driver": options["ipam_driver"],
            "Options": pairs(options["ipam_opt"]),
            "Config": pools(options["subnet"], options["ip_range"], options["gateway"], options["aux_address"]),
        },
    }
    for name in ("ipv4", "ipv6"):
        if name in given():
            body[f"EnableIP{name[2:]}"] = options[name]
    if options["config_from"]:
        body["ConfigFrom"] = {"Network": options["config_from"]}
    print(client.post("/networks/create", body)["Id"])


def pools(subnets: list[str], ranges: list[str], gateways: list[str], auxiliaries: list[str]) -> list[dict[str, Any]]:
    """IPAM configurations, each range, gateway and auxiliary address with the subnet that holds it."""
    from ipaddress import ip_address, ip_network

    if len(subnets) < len(ranges) or len(subnets) < len(gateways):
        raise InvalidParameter("every ip-range or gateway must have a corresponding subnet")
    found: dict[str, dict[str, Any]] = {}
    for subnet in subnets:
        try:
            network = ip_network(subnet, strict=False)
        except ValueError:
            raise InvalidParameter(f"invalid CIDR address: {subnet}") from None
        for other in found:
            if ip_network(other, strict=False).version == network.version and ip_network(other, False).overlaps(
                network
            ):
                raise InvalidParameter("multiple overlapping subnet configuration is not supported")
        found[subnet] = {"Subnet": subnet}

    def holder(address: str, what: str) -> dict[str, Any]:
        try:
            wanted = ip_address(address.partition("/")[0])
        except ValueError:
            raise InvalidParameter(f"invalid address: {address}") from None
        for subnet, pool in found.items():
            if wanted in ip_network(subnet, strict=False):
                return pool
        raise InvalidParameter(f"no matching subnet for {what} {address}")

    for kind, key, values in (("range", "IPRange", ranges), ("gateway", "Gateway", gateways)):
        for value in values:
            pool = holder(value, kind)
            if key in pool:
                raise InvalidParameter(f"cannot configure multiple {kind}s ({value}, {pool[key]}) on the same subnet")
            pool[key] = value
    for item in auxiliaries:
        name, _, address = item.partition("=")
        holder(address, "aux-address").setdefault("AuxiliaryAddresses", {})[name] = address
    return list(found.values())


@command("connect", "NETWORK CONTAINER", exactly=2, complete="network")
@flag("alias", "Add network-scoped alias for the container", many=True)
@flag("driver-opt", "driver options for the network", many=True)
@flag("gw-priority", "Highest gw-priority provides the default gateway", kind=parse_integer, default=0)
@flag("ip", 'IPv4 address (e.g., "172.30.100.104")', default="")
@flag("ip6", 'IPv6 address (e.g., "2001:db8::33")', default="")
@flag("link", "Add link to another container", many=True)
@flag("link-local-ip", "Add a link-local address for the container", many=True)
def connect(client: Client, arguments: list[str], **options: Any) -> None:
    """Connect a container to a network"""
    endpoint: dict[str, Any] = {
        "IPAMConfig": {
            "IPv4Address": options["ip"],
            "IPv6Address": options["ip6"],
            "LinkLocalIPs": options["link_local_ip"] or None,
        },
        "Links": options["link"] or None,
        "Aliases": options["alias"] or None,
        "DriverOpts": pairs(options["driver_opt"]) or None,
        "GwPriority": options["gw_priority"],
    }
    client.post(f"/networks/{arguments[0]}/connect", {"Container": arguments[1], "EndpointConfig": endpoint})


@command("disconnect", "NETWORK CONTAINER", exactly=2, complete="network")
@switch("force", "Force the container to disconnect from a network", short="f")
def disconnect(client: Client, arguments: list[str], *, force: bool) -> None:
    """Disconnect a container from a network"""
    client.post(f"/networks/{arguments[0]}/disconnect", {"Container": arguments[1], "Force": force})


@command("inspect", "NETWORK [NETWORK...]", least=1, complete="network")
@flag("format", "Format output using a custom template", short="f", default="")
@switch("verbose", "Verbose output for diagnostics", short="v")
def inspect(client: Client, arguments: list[str], *, format: str, verbose: bool) -> None:
    """Display detailed information on one or more networks"""
    inspect_all(arguments, lambda name: client.get(f"/networks/{name}", verbose=verbose), format)


@command("rm", "NETWORK [NETWORK...]", least=1, complete="network")
@switch("force", "Do not error if the network does not exist", short="f")
def rm(client: Client, arguments: list[str], *, force: bool) -> None:
    """Remove one or more networks"""
    from seacan.cli.client import APIError

    def one(network: str) -> str:
        try:
            client.delete(f"/networks/{network}")
        except APIError as error:
            if not (force and error.status == 404):
                raise
            return ""
        return network

    each(arguments, one)


@command("prune", exactly=0)
@flag("filter", 'Provide filter values (e.g. "until=<timestamp>")', many=True)
@switch("force", "Do not prompt for confirmation", short="f")
def prune(client: Client, arguments: list[str], *, filter: list[str], force: bool) -> None:
    """Remove all unused networks"""
    confirm("WARNING! This will remove all custom networks not used by at least one container.", force)
    deleted = client.post("/networks/prune", filters=filters(filter)).get("NetworksDeleted") or []
    if deleted:
        print("Deleted Networks:", *deleted, sep="\n", end="\n\n")


_HERE = "seacan.cli.network"
VERBS: Final[Mapping[str, tuple[str, str]]] = {
    "connect": (f"{_HERE}:connect", "Connect a container to a network"),
    "create": (f"{_HERE}:create", "Create a network"),
    "disconnect": (f"{_HERE}:disconnect", "Disconnect a container from a network"),
    "inspect": (f"{_HERE}:inspect", "Display detailed information on one or more networks"),
    "ls": (f"{_HERE}:ls", "List networks"),
    "prune": (f"{_HERE}:prune", "Remove all unused networks"),
    "rm": (f"{_HERE}:rm", "Remove one or more networks"),
}
group = Group("network", "Manage networks", VERBS)
