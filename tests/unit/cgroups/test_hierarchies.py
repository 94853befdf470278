from pathlib import Path

import pytest

from seacan import cgroups
from seacan.cgroups.hierarchies import Hierarchies, Hierarchy, parse
from seacan.errors import InvalidParameter

LEGACY = """\
25 24 0:22 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
27 25 0:24 / /sys/fs/cgroup/systemd rw,nosuid - cgroup cgroup rw,xattr,name=systemd
28 25 0:25 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct
29 25 0:26 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory
30 25 0:27 / /mnt/my\\040groups rw - cgroup cgroup rw,name=mine
31 25 0:28 /docker/abc /sys/fs/cgroup/pids rw,nosuid - cgroup cgroup rw,pids
"""


def test_controllers_are_found_where_they_are_mounted() -> None:
    found = parse(LEGACY)
    assert found.mode == "legacy"
    assert found.version == 1
    assert found.directory("cpu") == found.directory("cpuacct") == "/sys/fs/cgroup/cpu,cpuacct"
    assert found.directory("memory") == "/sys/fs/cgroup/memory"
    assert found.directory("hugetlb") is None
    assert found.has("pids")
    assert not found.has("io")


def test_of_the_named_hierarchies_only_systemds_is_joined() -> None:
    assert [hierarchy.name for hierarchy in parse(LEGACY).v1 if hierarchy.name] == ["systemd"]


def test_a_unified_host_has_version_two(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    found = parse(f"30 23 0:26 / {tmp_path} rw - cgroup2 cgroup2 rw,nsdelegate\n")
    assert (found.mode, found.version, found.unified) == ("unified", 2, str(tmp_path))
    assert found.has("io")
    assert not found.has("hugetlb")


def test_a_hybrid_host_keeps_version_one(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("hugetlb\n")
    found = parse(f"{LEGACY}30 23 0:40 / {tmp_path} rw - cgroup2 cgroup2 rw\n")
    assert (found.mode, found.version) == ("hybrid", 1)
    assert found.has("hugetlb")


@pytest.mark.parametrize("path", ["/", "", "..", "/../..", "//"])
def test_a_container_never_gets_the_root_cgroup(path: str) -> None:
    with pytest.raises(InvalidParameter):
        cgroups.open(path, Hierarchies(unified="/cg"))


def test_a_path_cannot_climb_out_of_the_hierarchy() -> None:
    host = Hierarchies(v1=(Hierarchy("/cg/memory", "/", frozenset({"memory"})),), unified="/cg/unified")
    assert cgroups.open("/a/../../../b", host).directories == ["/cg/memory/b", "/cg/unified/b"]
