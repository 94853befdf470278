"""No descriptor of ours gets into a container, and none is a way out of it (CVE-2024-21626, CVE-2016-9962)."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from seacan.errors import RuntimeFailed
from seacan.runtime import spec
from tests.bundles import Bundles

LIST = ["sh", "-c", "for fd in /proc/self/fd/*; do echo ${fd##*/}; done"]


@pytest.fixture
def leaking() -> Iterator[int]:
    """An inheritable descriptor of the host's root, as a careless caller may have one."""
    fd = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    os.set_inheritable(fd, True)
    yield fd
    os.close(fd)


def test_init_has_only_its_stdio(bundles: Bundles, leaking: int) -> None:
    assert set(bundles.run(LIST)[1].split()) <= {"0", "1", "2", "3"}  # 3 is the shell's own, of the folder it lists
    assert "/" not in bundles.run(["sh", "-c", "readlink /proc/1/fd/*"])[1].split("\n")


def test_an_exec_has_only_its_stdio(bundles: Bundles, leaking: int) -> None:
    container = bundles.start()
    assert set(bundles.exec(container, LIST)[1].split()) <= {"0", "1", "2", "3"}


@pytest.mark.parametrize("number", range(3, 12))
def test_a_working_directory_through_a_descriptor_is_refused(bundles: Bundles, leaking: int, number: int) -> None:
    for path in (f"/proc/self/fd/{number}", f"/proc/self/fd/{number}/etc", f"/proc/thread-self/fd/{number}"):
        with pytest.raises(RuntimeFailed):
            bundles.run(bundles.spec(["cat", "etc/hostname"], cwd=path))


def test_a_working_directory_that_links_to_a_descriptor_is_refused(bundles: Bundles, leaking: int) -> None:
    container = bundles.start()
    for number in range(3, 12):
        bundles.exec(container, ["ln", "-sfn", f"/proc/self/fd/{number}", "/tmp/out"])
        with pytest.raises(RuntimeFailed):
            bundles.exec(container, ["pwd"], cwd="/tmp/out")


def test_the_working_directory_of_an_exec_is_inside(bundles: Bundles) -> None:
    container = bundles.start()
    with pytest.raises(RuntimeFailed):
        bundles.exec(container, ["pwd"], cwd="/proc/self/cwd")
    assert bundles.exec(container, ["pwd"], cwd="/../../tmp") == (0, "/tmp\n")


def test_the_environment_of_the_runtime_stays_outside(bundles: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    assert "SECRET" not in bundles.run(["env"])[1]
    assert spec.Process().env == []
