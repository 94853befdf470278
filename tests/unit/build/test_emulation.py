"""Which platforms' programs run here, by what the kernel says of its interpreters."""

from __future__ import annotations

from pathlib import Path

import pytest

from seacan.build.emulation import interpreter

ARM64 = """\
enabled
interpreter /usr/bin/qemu-aarch64-static
flags: {flags}
offset 0
magic 7f454c460201010000000000000000000200b700
mask ffffffffffffff00fffffffffffffffffeffffff
"""


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    (tmp_path / "status").write_text("enabled\n")
    (tmp_path / "register").write_text("")
    (tmp_path / "anything").write_text(ARM64.format(flags="OCF"))
    (tmp_path / "python").write_text("enabled\ninterpreter /usr/bin/python\nflags:\nextension .py\n")
    return tmp_path


def test_an_interpreter_is_known_by_what_it_matches_and_not_by_its_name(registry: Path) -> None:
    assert interpreter("arm64", registry) == "/usr/bin/qemu-aarch64-static"
    assert interpreter("riscv64", registry) == ""
    assert interpreter("arm", registry) == ""
    assert interpreter("pdp11", registry) == ""


@pytest.mark.parametrize("text", [ARM64.format(flags=""), ARM64.replace("enabled", "disabled", 1).format(flags="F")])
def test_one_that_a_container_would_not_find_does_not_count(registry: Path, text: str) -> None:
    (registry / "anything").write_text(text)
    assert interpreter("arm64", registry) == ""


def test_a_registry_that_is_off_or_missing_has_none(registry: Path) -> None:
    (registry / "status").write_text("disabled\n")
    assert interpreter("arm64", registry) == ""
    assert interpreter("arm64", registry / "nowhere") == ""
