"""Overlays seen through a user namespace's mappings: owners on disk are what they are inside."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hosts import REPOSITORY

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

_SCRIPT = """
import os, sys
from seacan.linux import overlay, syscalls as k
from seacan.linux.userns import Range, namespace_with
from seacan.runtime.bundle import Mapping, OverlayRoot
from seacan.runtime.rootfs import mount_root

top, how, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
if how == "attached":  # as a kernel before 6.15, which takes no layer that is attached nowhere
    overlay.k.kernel = lambda: (6, 14)
if how == "numbered":  # as a kernel before 6.8, which takes all layers in one string
    overlay.k.kernel = lambda: (6, 7)
mapping = Mapping((Range(0, 300000, 65536),), (Range(0, 400000, 65536),))
lower = tuple(f"{top}/lower{number}" for number in range(count))
before = open("/proc/self/mountinfo").read()
root = mount_root(OverlayRoot(lower, f"{top}/diff", f"{top}/work", ("index=off",), mapping))
assert open("/proc/self/mountinfo").read() == before, "a mount is left"
found = os.stat("file", dir_fd=root)
assert (found.st_uid, found.st_gid) == (300005, 400007), found
users = namespace_with(mapping.uids, mapping.gids)
pid = os.fork()
if pid == 0:
    os.fchdir(root)
    k.setns(users, k.CLONE_NEWUSER)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    assert (os.stat("file").st_uid, os.stat("file").st_gid) == (5, 7)
    with open("new", "w"):
        os.chown("new", 8, 9)
    os.unlink("gone")
    os.chown("file", 6, 7)
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
"""


_PART = """
import os, sys
from seacan.linux import overlay
from seacan.linux.userns import Range, namespace_with

top, release, userns = sys.argv[1], tuple(map(int, sys.argv[2].split("."))), -1
overlay.k.kernel = lambda: release
if sys.argv[3] == "mapped":
    userns = namespace_with((Range(0, 300000, 65536),), (Range(0, 400000, 65536),))
lower = [f"{top}/lower0", f"{top}/lower1"]
before = open("/proc/self/mountinfo").read()
folder = overlay.mount_overlay(lower, userns=userns, subpath="folder")
file = overlay.mount_overlay(lower, userns=userns, subpath="folder/file")
names = ["file", "other", "out"]
assert sorted(os.listdir(os.open(".", os.O_RDONLY, dir_fd=folder))) == names
assert os.stat(file).st_uid == (300005 if userns >= 0 else 5)
for path in ("folder/out", "../lower0", "/etc"):
    try:
        overlay.mount_overlay(lower, userns=userns, subpath=path)
    except OSError as error:
        assert error.errno == 18, error  # EXDEV
    else:
        raise AssertionError(path)
assert open("/proc/self/mountinfo").read() == before, "a mount is left"
"""


@pytest.mark.parametrize("users", ["mapped", "plain"])
@pytest.mark.parametrize("release", ["6.15", "6.14", "6.7"])
def test_a_part_of_one_is_mounted_alone(tmp_path: Path, release: str, users: str) -> None:
    for name in ("lower0", "lower1"):
        (tmp_path / name / "folder").mkdir(parents=True)
    (tmp_path / "lower0/folder/file").write_text("x")
    (tmp_path / "lower1/folder/other").write_text("x")
    (tmp_path / "lower1/folder/out").symlink_to("/etc")
    os.chown(tmp_path / "lower0/folder/file", 5, 7)
    subprocess.run([sys.executable, "-c", _PART, str(tmp_path), release, users], check=True, cwd=REPOSITORY, timeout=60)


@pytest.mark.parametrize(("how", "layers"), [("detached", 2), ("attached", 2), ("numbered", 2), ("detached", 150)])
def test_owners_are_mapped_and_stored_as_inside(tmp_path: Path, how: str, layers: int) -> None:
    for name in ("diff", "work", *(f"lower{number}" for number in range(layers))):
        (tmp_path / name).mkdir()
    (tmp_path / "lower0/file").write_text("x")
    (tmp_path / "lower1/gone").write_text("x")
    os.chown(tmp_path / "lower0/file", 5, 7)
    command = [sys.executable, "-c", _SCRIPT, str(tmp_path), how, str(layers)]
    subprocess.run(command, check=True, cwd=REPOSITORY, timeout=60)
    owners = {
        name: ((tmp_path / "diff" / name).stat().st_uid, (tmp_path / "diff" / name).stat().st_gid)
        for name in ("file", "new")
    }
    assert owners == {"file": (6, 7), "new": (8, 9)}
    assert (tmp_path / "diff/gone").is_char_device()
    assert (tmp_path / "lower0/file").stat().st_uid == 5
