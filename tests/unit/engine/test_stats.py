"""dockerd's JSON of a container's figures, from both cgroup versions; and processes without a ps."""

from __future__ import annotations

import os

import pytest

from seacan.cgroups.statistics import CPU, BlockEntry, BlockIO, Memory, Pids, Statistics
from seacan.engine import stats, top
from seacan.errors import System


def test_version_one_has_processors_peak_and_totals() -> None:
    figures = Statistics(
        cpu=CPU(usage=5, user=3, system=2, percpu=[2, 3]),
        memory=Memory(usage=10, max_usage=20, limit=1 << 62, failcnt=1, stat={"cache": 4, "total_cache": 5, "new": 6}),
        pids=Pids(3, 9),
        block_io=BlockIO(serviced=[BlockEntry(8, 0, "Read", 7)]),
    )
    memory = stats._memory(figures)
    assert (memory["max_usage"], memory["failcnt"]) == (20, 1)
    assert (memory["stats"]["cache"], memory["stats"]["total_cache"]) == (4, 5)
    assert "new" not in memory["stats"]
    assert memory["limit"] == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert stats._cpu(figures)["cpu_usage"]["percpu_usage"] == [2, 3]
    assert stats._pids(figures) == {"current": 3, "limit": 9}
    block = stats._block(figures)
    assert block["io_serviced_recursive"] == [{"major": 8, "minor": 0, "op": "Read", "value": 7}]
    assert block["io_queue_recursive"] == []


def test_version_two_has_its_own_names() -> None:
    figures = Statistics(
        version=2,
        memory=Memory(usage=10, limit=100, stat={"anon": 4, "cache": 9}),
        block_io=BlockIO(service_bytes=[BlockEntry(8, 0, "read", 7)]),
    )
    memory = stats._memory(figures)
    assert "max_usage" not in memory
    assert memory["stats"]["anon"] == 4
    assert "cache" not in memory["stats"]
    assert memory["limit"] == 100
    assert "percpu_usage" not in stats._cpu(figures)["cpu_usage"]
    block = stats._block(figures)
    assert block["io_service_bytes_recursive"][0]["op"] == "read"
    assert block["io_serviced_recursive"] is None


def test_the_hosts_processor_time_grows() -> None:
    first, count = stats.system_cpu()
    assert first > 0
    assert count == len(os.sched_getaffinity(0)) or count >= 1


def test_the_interfaces_of_a_process_that_has_ended_are_none() -> None:
    assert stats.interfaces(2**22 + 1) == {}


PS = """\
UID          PID    PPID  C STIME TTY          TIME CMD
root           1       0  0 Jan01 ?        00:00:01 init with arguments
root          20       1  0 Jan01 ?        00:00:00 sleep 5
"""


def test_of_what_ps_prints_the_containers_processes_are_kept() -> None:
    found = top.table(PS, [20])
    assert found["Titles"][-1] == "CMD"
    assert found["Processes"] == [["root", "20", "1", "0", "Jan01", "?", "00:00:00", "sleep 5"]]


def test_threads_belong_to_the_process_above_them() -> None:
    output = "PID TID CMD\n7 - one\n- 8 -\n9 - two\n- 10 -\n"
    assert top.table(output, [7])["Processes"] == [["7", "-", "one"], ["-", "8", "-"]]


@pytest.mark.parametrize(
    ("output", "words"), [("CMD\nsleep\n", "Couldn't find PID field in ps output"), ("PID\nx\n", "Unexpected pid 'x'")]
)
def test_what_cannot_be_understood_is_an_error(output: str, words: str) -> None:
    with pytest.raises(System, match=words):
        top.table(output, [1])


def test_without_ps_the_kernel_is_asked() -> None:
    (row,) = top.from_proc([os.getpid(), 2**22 + 1])["Processes"]
    assert row[1] == str(os.getpid())
    assert row[2] == str(os.getppid())
    assert "py" in row[7]
