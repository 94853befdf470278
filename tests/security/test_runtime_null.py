"""The null device that a process gets for want of anything else is the container's, and nothing but a null device."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from seacan.errors import RuntimeFailed
from seacan.runtime import spec
from seacan.runtime.container import Stdio
from tests.bundles import Bundles, wait

TOUCH = ["touch", "-d", "2001-01-01 00:00:00", "/proc/self/fd/0"]


def test_a_container_cannot_change_the_hosts_null_device(bundles: Bundles) -> None:
    before = os.stat("/dev/null").st_mtime
    assert bundles.run(TOUCH)[0] == 0
    assert bundles.exec(bundles.start(), TOUCH)[0] == 0
    assert os.stat("/dev/null").st_mtime == before


def test_nor_one_that_its_caller_hands_on(bundles: Bundles) -> None:
    null = os.open("/dev/null", os.O_RDWR)
    before = os.stat("/dev/null").st_mtime
    try:
        container = bundles.create(bundles.spec(TOUCH), stdio=Stdio(null, null, null))
        container.start()
        assert wait(container.pidfd).exit_code == 0
    finally:
        os.close(null)
    assert os.stat("/dev/null").st_mtime == before


def shared_pids(bundles: Bundles) -> spec.Spec:
    """A container that sees the host's processes, and so through /proc/<pid>/root what it may not enter itself."""
    configuration = bundles.spec(["sleep", "1000"])
    assert configuration.linux is not None
    namespaces = [space for space in configuration.linux.namespaces if space.type != "pid"]
    configuration.linux.namespaces = namespaces
    return configuration


def test_an_exec_does_not_open_what_a_link_instead_of_it_names(bundles: Bundles, tmp_path: Path) -> None:
    """The exec opens it with the host's privileges, and what it opens is the container's from then on."""
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    container = bundles.create(shared_pids(bundles))
    container.start()
    target = f"/proc/{os.getpid()}/root{secret}"
    code, output = bundles.exec(container, ["sh", "-c", f"ln -sf {target} /dev/null; cat {target}"])
    assert code == 1 and "denied" in output
    with pytest.raises(RuntimeFailed, match="/dev/null"):
        bundles.exec(container, ["cat", "/proc/self/fd/0"])
    assert secret.read_text() == "of the host"


@pytest.mark.parametrize("command", ["rm /dev/null; mknod /dev/null p", "ln -f /dev/zero /dev/null"])
def test_an_exec_refuses_anything_else_in_its_place(bundles: Bundles, command: str) -> None:
    container = bundles.start()
    assert bundles.exec(container, ["sh", "-c", command])[0] == 0
    with pytest.raises(RuntimeFailed, match="/dev/null"):
        bundles.exec(container, ["true"])
