"""Looking into layers that are not mounted, and what an overlay of them would show."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from seacan.runtime.bundle import OverlayRoot
from seacan.storage.view import View

Look = Callable[[], View]


@pytest.fixture
def layers(tmp_path: Path) -> tuple[Path, Path]:
    upper, lower = tmp_path / "upper", tmp_path / "lower"
    upper.mkdir()
    lower.mkdir()
    return upper, lower


@pytest.fixture
def look(layers: tuple[Path, Path]) -> Look:
    return lambda: View(OverlayRoot(lower=(str(layers[0]), str(layers[1]))))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def whiteout(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.mknod(path, stat.S_IFCHR, 0)
    except PermissionError as error:
        pytest.skip(f"cannot make device nodes: {error}")


def test_the_topmost_layer_wins(layers: tuple[Path, Path], look: Look) -> None:
    write(layers[1] / "etc/a", "below")
    write(layers[0] / "etc/a", "above")
    with look() as view:
        assert view.read("etc/a", 100) == "above"


def test_what_only_a_lower_layer_has_shows_through(layers: tuple[Path, Path], look: Look) -> None:
    write(layers[1] / "etc/a", "below")
    write(layers[0] / "etc/b", "above")
    with look() as view:
        assert view.read("/etc/a", 100) == "below"
        entry = view.find("etc")
        assert entry is not None
        assert view.names(entry) == {"a", "b"}


def test_a_whiteout_hides(layers: tuple[Path, Path], look: Look) -> None:
    write(layers[1] / "etc/a", "below")
    write(layers[1] / "opt/b", "below")
    whiteout(layers[0] / "etc/a")
    whiteout(layers[0] / "opt")
    with look() as view:
        assert view.read("etc/a", 100) is None
        assert view.find("opt/b") is None
        entry = view.find("etc")
        assert entry is not None
        assert view.names(entry) == set()


def test_an_opaque_folder_hides_what_is_below_it(layers: tuple[Path, Path], look: Look) -> None:
    write(layers[1] / "etc/a", "below")
    write(layers[0] / "etc/b", "above")
    try:
        os.setxattr(layers[0] / "etc", "trusted.overlay.opaque", b"y")
    except OSError as error:
        pytest.skip(f"cannot set trusted attributes: {error}")
    with look() as view:
        assert view.find("etc/a") is None
        assert view.read("etc/b", 100) == "above"


def test_a_file_above_a_folder_hides_the_folder(layers: tuple[Path, Path], look: Look) -> None:
    write(layers[1] / "etc/a", "below")
    write(layers[0] / "etc", "file")
    with look() as view:
        assert view.find("etc/a") is None
        assert view.read("etc", 100) == "file"


@pytest.mark.parametrize("target", ["/opt/real", "../opt/real", "../../../../opt/real", "/usr/../opt/real"])
def test_a_link_is_followed_within_the_layers(layers: tuple[Path, Path], look: Look, target: str) -> None:
    write(layers[1] / "opt/real", "found")
    (layers[0] / "etc").mkdir()
    (layers[1] / "usr").mkdir()
    (layers[0] / "etc/link").symlink_to(target)
    with look() as view:
        assert view.read("etc/link", 100) == "found"


def test_a_linked_folder_is_walked_in_every_layer(layers: tuple[Path, Path], look: Look) -> None:
    write(layers[1] / "usr/bin/tool", "x")
    write(layers[0] / "usr/bin/other", "y")
    (layers[1] / "bin").symlink_to("usr/bin")
    with look() as view:
        assert view.read("bin/tool", 10) == "x"
        assert view.read("bin/other", 10) == "y"


def test_a_folder_has_the_stat_of_its_topmost_layer(layers: tuple[Path, Path], look: Look) -> None:
    for layer, mode in zip(layers, (0o700, 0o755), strict=True):
        (layer / "data").mkdir()
        (layer / "data").chmod(mode)
    with look() as view:
        entry = view.find("data/")
        assert entry is not None
        assert stat.S_IMODE(entry.stat.st_mode) == 0o700
        assert len(entry.layers) == 2


def test_parents_of_the_root_are_the_root(layers: tuple[Path, Path], look: Look) -> None:
    write(layers[1] / "a", "x")
    with look() as view:
        assert view.read("../../a", 10) == "x"
