"""``seacan doctor``: prints what :mod:`seacan.engine.doctor` finds. Exit status 1 where containers would not run."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from seacan.cli.client import Client
from seacan.cli.command import Exit, command, flag, switch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from seacan.engine.doctor import Finding

_MARKS = {"ok": "ok", "limited": "limited", "missing": "MISSING"}
_COLOURS = {"ok": "32", "limited": "33", "missing": "31"}


@command("doctor", exactly=0)
@flag("data-root", "Folder in which the daemon keeps (or would keep) its state", default="/var/lib/seacan")
@flag("cgroup-parent", "Parent cgroup of containers", default="/seacan")
@flag("format", 'Output format ("json" or the default text)', default="", choices=("json",))
@switch("quiet", "Print only what is limited or missing", short="q")
def doctor(
    client: Client, arguments: list[str], *, data_root: str, cgroup_parent: str, format: str, quiet: bool
) -> None:
    """Say what this host can and cannot do, and how to mend it"""
    from seacan.engine.doctor import examine
    from seacan.engine.options import EngineOptions

    findings = examine(EngineOptions(data_root=data_root, cgroup_parent=cgroup_parent))
    if format == "json":
        import msgspec

        print(msgspec.json.encode(findings).decode())
    else:
        print(report(findings, quiet=quiet, colours=sys.stdout.isatty()))
    if any(finding.state == "missing" for finding in findings):
        raise Exit(1)


def report(findings: Sequence[Finding], *, quiet: bool = False, colours: bool = False) -> str:
    """The findings as text, one area after the other, and a summary."""
    lines: list[str] = []
    area = ""
    for finding in findings:
        if quiet and finding.state == "ok":
            continue
        if finding.area != area:
            area = finding.area
            lines += [*([""] if lines else []), area]
        mark = f"{_MARKS[finding.state]:<8}"
        if colours:
            mark = f"\x1b[{_COLOURS[finding.state]}m{mark}\x1b[0m"
        lines.append(f"  {mark} {finding.name}: {finding.detail}" if finding.detail else f"  {mark} {finding.name}")
        if finding.remedy and finding.state != "ok":
            lines.append(f"           to mend it: {finding.remedy}")
    limited = sum(finding.state == "limited" for finding in findings)
    missing = sum(finding.state == "missing" for finding in findings)
    if missing:
        verdict = f"Containers will not run as they should: {missing} missing, {limited} limited."
    elif limited:
        verdict = f"Containers run. {limited} things are limited."
    else:
        verdict = "Containers run, and nothing is missing."
    return "\n".join([*lines, "", verdict])
