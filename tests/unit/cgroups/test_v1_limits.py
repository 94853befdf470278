"""What is written on v1, seen in folders that have the files of a cgroup."""

from collections.abc import Callable
from pathlib import Path

import pytest

from seacan.cgroups.statistics import Statistics
from seacan.cgroups.v1 import blkio, cpu, cpuset, memory
from seacan.errors import System
from seacan.runtime import spec

Folder = Callable[..., str]


def text(directory: str, name: str) -> str:
    return Path(directory, name).read_text()


def test_a_growing_limit_raises_memory_and_swap_first(folder: Folder) -> None:
    directory = folder(**{memory.LIMIT: "50", memory.SWAP_LIMIT: "60"})
    memory.apply(directory, spec.LinuxResources(memory=spec.LinuxMemory(limit=100, swap=200)))
    assert text(directory, memory.LIMIT) == "100"
    assert text(directory, memory.SWAP_LIMIT) == "200"


@pytest.mark.parametrize("swappiness", [-5, 101])
def test_swappiness_out_of_range_is_refused_in_runcs_words(folder: Folder, swappiness: int) -> None:
    with pytest.raises(System, match="valid range is 0-100"):
        memory.apply(folder(), spec.LinuxResources(memory=spec.LinuxMemory(swappiness=swappiness)))


def test_a_limit_below_the_usage_is_refused_when_asked_to_check(folder: Folder) -> None:
    directory = folder(**{"memory.usage_in_bytes": "500", memory.LIMIT: "1000"})
    with pytest.raises(System, match="current usage 500"):
        memory.apply(directory, spec.LinuxResources(memory=spec.LinuxMemory(limit=100, check_before_update=True)))


def test_shares_that_the_kernel_clamps_are_reported(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = folder(**{"cpu.shares": ""})
    monkeypatch.setattr("seacan.cgroups.files.number", lambda *_: 262144)
    with pytest.raises(System, match="maximum allowed cpu-shares is 262144"):
        cpu.apply(directory, spec.LinuxResources(cpu=spec.LinuxCPU(shares=999999)))


def test_processors_are_inherited_from_the_nearest_ancestor_that_has_some(tmp_path: Path) -> None:
    leaf = tmp_path / "a" / "b"
    leaf.mkdir(parents=True)
    for directory, value in ((tmp_path, "0-3"), (tmp_path / "a", ""), (leaf, "")):
        (directory / "cpuset.cpus").write_text(value)
        (directory / "cpuset.mems").write_text(value and "0")
    cpuset.inherit(str(leaf), str(tmp_path))
    for directory in (tmp_path / "a", leaf):
        assert (directory / "cpuset.cpus").read_text() == "0-3"
        assert (directory / "cpuset.mems").read_text() == "0"


def test_block_figures_come_from_the_layer_that_keeps_them(folder: Folder) -> None:
    directory = folder(
        **{
            "blkio.bfq.io_serviced_recursive": "Total 0\n",
            "blkio.throttle.io_serviced_recursive": "8:0 Read 3\n8:0 Write 4\n8:0 Total 7\nTotal 7\n",
            "blkio.throttle.io_service_bytes_recursive": "8:0 Read 4096\n8:0 Total 4096\nTotal 4096\n",
        }
    )
    found = Statistics()
    blkio.stats(directory, found)
    assert [(entry.op, entry.value) for entry in found.block_io.serviced] == [("Read", 3), ("Write", 4), ("Total", 7)]
    assert found.block_io.service_bytes[0].value == 4096
    assert found.block_io.time == []
