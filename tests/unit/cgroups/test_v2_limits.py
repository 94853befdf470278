"""What is written on v2, seen in folders that have the files of a cgroup."""

from collections.abc import Callable
from pathlib import Path

import pytest

from seacan.cgroups import v2
from seacan.cgroups.files import Refused
from seacan.cgroups.statistics import Statistics
from seacan.cgroups.v2 import cpu, io, memory, pids, unified
from seacan.errors import InvalidParameter, System
from seacan.runtime import spec

Folder = Callable[..., str]


def text(directory: str, name: str) -> str:
    return Path(directory, name).read_text()


def test_memory_and_swap_become_two_limits(folder: Folder) -> None:
    directory = folder(**{"memory.max": "", "memory.swap.max": "", "memory.low": ""})
    limits = spec.LinuxMemory(limit=100, swap=250, reservation=50)
    memory.apply(directory, spec.LinuxResources(memory=limits))
    assert text(directory, "memory.max") == "100"
    assert text(directory, "memory.swap.max") == "150"
    assert text(directory, "memory.low") == "50"


def test_unlimited_memory_is_max_and_so_is_its_swap(folder: Folder) -> None:
    directory = folder(**{"memory.max": "", "memory.swap.max": ""})
    memory.apply(directory, spec.LinuxResources(memory=spec.LinuxMemory(limit=-1)))
    assert text(directory, "memory.max") == text(directory, "memory.swap.max") == "max"


@pytest.mark.parametrize(
    ("swap", "limit", "words"), [(50, 0, "without memory limit"), (50, 100, "should be >= memory limit")]
)
def test_swap_that_contradicts_memory_is_refused(swap: int, limit: int, words: str) -> None:
    with pytest.raises(System, match=words):
        memory.swap_maximum(swap, limit)


def test_a_kernel_without_swap_accounting_takes_no_swap_limit_of_zero(folder: Folder) -> None:
    directory = folder(**{"memory.max": ""})
    memory.apply(directory, spec.LinuxResources(memory=spec.LinuxMemory(limit=100, swap=100)))
    assert text(directory, "memory.max") == "100"


@pytest.mark.parametrize(("shares", "weight"), [(2, 1), (1024, 39), (262144, 10000), (1, 1)])
def test_shares_are_converted_to_a_weight(shares: int, weight: int) -> None:
    assert cpu.weight(shares) == weight


def test_quota_and_period_are_one_line(folder: Folder) -> None:
    directory = folder(**{"cpu.max": "", "cpu.weight": ""})
    cpu.apply(directory, spec.LinuxResources(cpu=spec.LinuxCPU(shares=1024, quota=50000, period=100000)))
    assert text(directory, "cpu.max") == "50000 100000"
    assert text(directory, "cpu.weight") == "39"


def test_no_quota_is_max(folder: Folder) -> None:
    directory = folder(**{"cpu.max": ""})
    cpu.apply(directory, spec.LinuxResources(cpu=spec.LinuxCPU(quota=-1)))
    assert text(directory, "cpu.max") == "max"


def test_an_idle_group_gets_no_weight(folder: Folder) -> None:
    directory = folder(**{"cpu.idle": ""})
    cpu.apply(directory, spec.LinuxResources(cpu=spec.LinuxCPU(idle=1, shares=512)))
    assert text(directory, "cpu.idle") == "1"


def test_real_time_bandwidth_is_refused_and_not_ignored(folder: Folder) -> None:
    with pytest.raises(System, match="real-time"):
        cpu.apply(folder(), spec.LinuxResources(cpu=spec.LinuxCPU(realtime_runtime=1000)))


@pytest.mark.parametrize(("weight", "converted"), [(10, 1), (500, 4950), (1000, 10000)])
def test_a_block_weight_is_converted(folder: Folder, weight: int, converted: int) -> None:
    directory = folder(**{"io.weight": ""})
    io.apply(directory, spec.LinuxResources(block_io=spec.LinuxBlockIO(weight=weight)))
    assert text(directory, "io.weight") == str(converted)


def test_bfq_takes_the_weight_as_it_is(folder: Folder) -> None:
    directory = folder(**{"io.bfq.weight": ""})
    io.apply(directory, spec.LinuxResources(block_io=spec.LinuxBlockIO(weight=300)))
    assert text(directory, "io.bfq.weight") == "300"


def test_a_throttle_names_its_device_and_kind(folder: Folder) -> None:
    directory = folder(**{"io.max": ""})
    throttle = spec.LinuxThrottleDevice(8, 16, 1048576)
    io.apply(directory, spec.LinuxResources(block_io=spec.LinuxBlockIO(throttle_write_bps_device=[throttle])))
    assert text(directory, "io.max") == "8:16 wbps=1048576"


@pytest.mark.parametrize(("limit", "written"), [(50, "50"), (-1, "max")])
def test_a_process_limit_is_a_number_or_max(folder: Folder, limit: int, written: str) -> None:
    directory = folder(**{"pids.max": ""})
    pids.apply(directory, spec.LinuxResources(pids=spec.LinuxPids(limit=limit)))
    assert text(directory, "pids.max") == written


def test_a_refused_value_reads_like_runc(folder: Folder) -> None:
    with pytest.raises(Refused, match=r'failed to write "5": open .*/pids.max: no such file or directory'):
        pids.apply(folder(), spec.LinuxResources(pids=spec.LinuxPids(limit=5)))


@pytest.mark.parametrize("name", ["../escape", "memory/../max", "cgroup.procs", "cgroup.kill", "max", "a.b\n"])
def test_a_unified_name_that_is_no_limit_is_refused(folder: Folder, name: str) -> None:
    with pytest.raises(InvalidParameter):
        unified.apply(folder(**{"cgroup.procs": ""}), spec.LinuxResources(unified={name: "1"}))


def test_a_unified_file_is_written_line_by_line(folder: Folder) -> None:
    directory = folder(**{"memory.high": ""})
    unified.apply(directory, spec.LinuxResources(unified={"memory.high": "1234"}))
    assert text(directory, "memory.high") == "1234"


def test_a_unified_limit_without_its_controller_says_so(folder: Folder) -> None:
    with pytest.raises(System, match='controller "memory" not available'):
        unified.apply(folder(**{"cgroup.controllers": "cpu"}), spec.LinuxResources(unified={"memory.high": "1"}))


def test_figures_come_in_the_shape_of_both_versions(folder: Folder) -> None:
    directory = folder(
        **{
            "cpu.stat": "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 7\nnr_throttled 1\nthrottled_usec 4\n",
            "memory.current": "4096\n",
            "memory.peak": "8192\n",
            "memory.max": "max\n",
            "memory.swap.current": "100\n",
            "memory.stat": "anon 1\nfile 2\n",
            "memory.events": "low 0\noom 3\noom_kill 2\n",
            "pids.current": "4\n",
            "pids.max": "max\n",
            "io.stat": "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n",
            "hugetlb.2MB.current": "7\n",
            "hugetlb.2MB.events": "max 1\n",
        }
    )
    found = Statistics()
    for stats in v2.STATS.values():
        stats(directory, found)
    assert found.version == 2
    assert (found.cpu.usage, found.cpu.throttling.throttled_time) == (5000, 4000)
    assert (found.memory.usage, found.memory.max_usage, found.memory.swap_usage) == (4096, 8192, 4196)
    assert (found.memory.limit, found.memory.failcnt, found.memory.oom_kills) == ((1 << 64) - 1, 3, 2)
    assert (found.pids.current, found.pids.limit) == (4, None)
    assert [(entry.op, entry.value) for entry in found.block_io.service_bytes] == [("read", 10), ("write", 20)]
    assert found.hugetlb["2MB"].usage == 7
