"""``seacan builder``: the cache of builds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from seacan.cli.client import Client
from seacan.cli.command import Group, command, filters, flag, switch
from seacan.cli.container import confirm, report_prune


@command("prune", exactly=0)
@switch("all", "Remove all unused build cache, not just dangling ones", short="a")
@flag("filter", 'Provide filter values (e.g. "until=24h")', many=True)
@switch("force", "Do not prompt for confirmation", short="f")
@flag("keep-storage", "Amount of disk space to keep for cache", kind="bytes", default=0)
def prune(
    client: Client, arguments: list[str], *, all: bool, filter: list[str], force: bool, keep_storage: int
) -> None:
    """Remove build cache"""
    confirm(f"WARNING! This will remove all {'' if all else 'dangling '}build cache.", force)
    query = {"all": all, "filters": filters(filter), "keep-storage": keep_storage}
    report_prune(client.post("/build/prune", **query), "CachesDeleted", "Deleted build cache objects:")


VERBS: Final[Mapping[str, tuple[str, str]]] = {
    "build": ("seacan.cli.build:build", "Build an image from a Dockerfile"),
    "prune": ("seacan.cli.builder:prune", "Remove build cache"),
}
group = Group("builder", "Manage builds", VERBS)
