"""``seacan volume``: Docker's verbs for volumes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from seacan.cli.client import Client
from seacan.cli.command import Group, command, each, filters, flag, switch
from seacan.cli.container import confirm, inspect_all, report_prune
from seacan.cli.flags import pairs, parse_label
from seacan.cli.output import human_size, write_rows
from seacan.errors import InvalidParameter

_HEADERS: Final = {
    "Name": "VOLUME NAME",
    "Driver": "DRIVER",
    "Scope": "SCOPE",
    "Mountpoint": "MOUNTPOINT",
    "Labels": "LABELS",
    "Links": "LINKS",
    "Size": "SIZE",
    "Availability": "AVAILABILITY",
    "Group": "GROUP",
    "Status": "STATUS",
}


def volume_row(item: Mapping[str, Any]) -> dict[str, Any]:
    labels = item.get("Labels") or {}
    usage = item.get("UsageData") or {}
    return {
        "Name": item["Name"],
        "Driver": item["Driver"],
        "Scope": item.get("Scope", ""),
        "Mountpoint": item.get("Mountpoint", ""),
        "Labels": ",".join(sorted(f"{key}={value}" for key, value in labels.items())),
        "Label": lambda name: labels.get(name, ""),
        "Links": str(usage["RefCount"]) if usage else "N/A",
        "Size": human_size(usage["Size"]) if usage else "N/A",
        "Availability": "N/A",
        "Group": "N/A",
        "Status": "N/A",
    }


@command("ls", exactly=0)
@flag("filter", 'Provide filter values (e.g. "dangling=true")', short="f", many=True)
@flag("format", "Format output using a custom template", default="")
@switch("quiet", "Only display volume names", short="q")
def ls(client: Client, arguments: list[str], *, filter: list[str], format: str, quiet: bool) -> None:
    """List volumes"""
    items = client.get("/volumes", filters=filters(filter)).get("Volumes") or []
    rows = [volume_row(item) for item in sorted(items, key=lambda item: item["Name"])]
    write_rows(rows, format, r"table {{.Driver}}\t{{.Name}}", _HEADERS, quiet="{{.Name}}", is_quiet=quiet)


@command("create", "[VOLUME]", most=1)
@flag("driver", "Specify volume driver name", short="d", default="local")
@flag("label", "Set metadata for a volume", many=True)
@flag("opt", "Set driver specific options", short="o", many=True)
def create(client: Client, arguments: list[str], *, driver: str, label: list[str], opt: list[str]) -> None:
    """Create a volume"""
    body = {
        "Name": arguments[0] if arguments else "",
        "Driver": driver,
        "DriverOpts": pairs(opt),
        "Labels": pairs([parse_label(item) for item in label]),
    }
    print(client.post("/volumes/create", body)["Name"])


@command("inspect", "VOLUME [VOLUME...]", least=1, complete="volume")
@flag("format", "Format output using a custom template", short="f", default="")
def inspect(client: Client, arguments: list[str], *, format: str) -> None:
    """Display detailed information on one or more volumes"""
    inspect_all(arguments, lambda name: client.get(f"/volumes/{name}"), format)


@command("rm", "VOLUME [VOLUME...]", least=1, complete="volume")
@switch("force", "Force the removal of one or more volumes", short="f")
def rm(client: Client, arguments: list[str], *, force: bool) -> None:
    """Remove one or more volumes"""

    def one(volume: str) -> str:
        client.delete(f"/volumes/{volume}", force=force)
        return volume

    each(arguments, one)


@command("prune", exactly=0)
@switch("all", "Remove all unused volumes, not just anonymous ones", short="a")
@flag("filter", 'Provide filter values (e.g. "label=<label>")', many=True)
@switch("force", "Do not prompt for confirmation", short="f")
def prune(client: Client, arguments: list[str], *, all: bool, filter: list[str], force: bool) -> None:
    """Remove unused local volumes"""
    asked = filters(filter) or {}
    if all:
        if "all" in asked:
            raise InvalidParameter("conflicting options: cannot specify both --all and --filter all=1")
        asked["all"] = ["true"]
    kind = "all local volumes" if all else "anonymous local volumes"
    confirm(f"WARNING! This will remove {kind} not used by at least one container.", force)
    report_prune(client.post("/volumes/prune", filters=asked or None), "VolumesDeleted", "Deleted Volumes:")


_HERE = "seacan.cli.volume"
VERBS: Final[Mapping[str, tuple[str, str]]] = {
    "create": (f"{_HERE}:create", "Create a volume"),
    "inspect": (f"{_HERE}:inspect", "Display detailed information on one or more volumes"),
    "ls": (f"{_HERE}:ls", "List volumes"),
    "prune": (f"{_HERE}:prune", "Remove unused local volumes"),
    "rm": (f"{_HERE}:rm", "Remove one or more volumes"),
}
group = Group("volume", "Manage volumes", VERBS)
