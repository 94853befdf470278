"""The layers of docs/architecture.md: arrows between packages point down only."""

from __future__ import annotations

import ast
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import seacan

ROOT = Path(seacan.__file__).parent
_MIDDLE = {"images", "network", "storage", "volumes", "build", "registry"}
_LOW = {"runtime", "cgroups", "linux"}
MAY_IMPORT = {
    "linux": set(),
    "cgroups": {"linux", "runtime"},  # the resources' own types are the OCI specification's
    "runtime": {"linux", "cgroups"},
    **dict.fromkeys(_MIDDLE, _LOW | _MIDDLE),
    "engine": _LOW | _MIDDLE,
    "api": _LOW | _MIDDLE | {"engine"},
    "cli": _LOW | _MIDDLE | {"engine", "api", "library"},
}


PLAIN_DATA = {
    "seacan.errors",
    "seacan.truth",
    "seacan.engine.config",
    "seacan.engine.gojson",
    "seacan.engine.options",
}
"""Words that every layer may use: they import nothing but each other."""


def parsed(path: Path) -> ast.Module:
    """``ast.parse``; CPython counts its depth for all threads together, and gives up when two parse (gh-106905)."""
    for _ in range(5):
        try:
            return ast.parse(path.read_text())
        except SystemError:
            time.sleep(0.05)
    return ast.parse(path.read_text())


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name of each module of ours that is imported to be used (not for a type alone)."""
    tree = parsed(path)
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "seacan":
                yield from ((node.lineno, f"seacan.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, node.module


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_imports_point_down(package: str) -> None:
    wrong = []
    for path in sorted((ROOT / package).rglob("*.py")):
        for line, name in imported(path):
            parts = name.split(".")
            if parts[0] != "seacan" or len(parts) < 2 or parts[1] in (package, "__version__") or name in PLAIN_DATA:
                continue
            if parts[1] not in MAY_IMPORT[package]:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_plain_data_imports_nothing_of_ours() -> None:
    for name in PLAIN_DATA:
        path = ROOT.joinpath(*name.split(".")[1:]).with_suffix(".py")
        assert {module for _, module in imported(path) if module.startswith("seacan")} <= PLAIN_DATA
