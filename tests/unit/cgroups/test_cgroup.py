"""A cgroup of this machine, whichever version it has: made, filled, limited, frozen, killed, removed."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from seacan import cgroups
from seacan.errors import InvalidParameter, System, Unsupported
from seacan.linux import syscalls
from seacan.runtime import spec

Sleeper = Callable[[], int]


def test_a_process_joins_every_hierarchy(cgroup: cgroups.Cgroup, sleeper: Sleeper) -> None:
    pid = sleeper()
    cgroup.join(pid)
    assert cgroup.processes() == [pid]
    paths = {line.split(":", 2)[2] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()}
    assert paths == {cgroup.path}


def test_the_cgroup_of_a_process_is_found(cgroup: cgroups.Cgroup, sleeper: Sleeper) -> None:
    pid = sleeper()
    cgroup.join(pid)
    assert cgroups.of(pid).directories == cgroup.directories
    with pytest.raises(ProcessLookupError):
        cgroups.of(2**22 + 1)


def test_a_cgroup_with_processes_is_not_taken_over(cgroup: cgroups.Cgroup, sleeper: Sleeper) -> None:
    cgroup.join(sleeper())
    with pytest.raises(System, match=r"not empty: 1 process"):
        cgroups.open(cgroup.path).create()
    assert len(cgroup.processes()) == 1


def test_what_a_crash_left_is_replaced(cgroup: cgroups.Cgroup) -> None:
    directory = cgroup.directory("pids")
    if directory is None:
        pytest.skip("this machine has no pids controller")
    cgroup.apply(spec.LinuxResources(pids=spec.LinuxPids(limit=3)))
    cgroups.open(cgroup.path).create()
    assert Path(directory, "pids.max").read_text().strip() == "max"


def test_freezing_stops_and_thawing_resumes(cgroup: cgroups.Cgroup, sleeper: Sleeper) -> None:
    pid = sleeper()
    cgroup.join(pid)
    cgroup.freeze()
    assert cgroup.frozen
    cgroup.thaw()
    assert not cgroup.frozen


def test_killing_ends_all_even_frozen_ones_and_those_in_nested_cgroups(
    cgroup: cgroups.Cgroup, sleeper: Sleeper
) -> None:
    nested = cgroups.open(f"{cgroup.path}/inner/deep")
    nested.create()
    pids = [sleeper(), sleeper()]
    nested.join(pids[0])
    cgroup.freeze()
    cgroup.kill()
    cgroup.thaw()
    assert os.waitpid(pids[0], 0)[1] == signal.SIGKILL
    cgroup.remove()
    assert not nested.exists
    assert not cgroup.exists


def test_removing_what_is_not_there_is_fine(hierarchies: cgroups.Hierarchies) -> None:
    missing = cgroups.open("/seacan-test-missing/x")
    missing.remove()
    assert not missing.exists
    assert missing.processes() == []


def test_removing_gives_up_on_live_processes(
    cgroup: cgroups.Cgroup, sleeper: Sleeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seacan.cgroups.cgroup._REMOVE_PATIENCE", 0.02)
    cgroup.join(sleeper())
    with pytest.raises(System, match=r"device or resource busy \(1 process"):
        cgroup.remove()


def test_limits_reach_the_kernel(cgroup: cgroups.Cgroup) -> None:
    for controller in ("memory", "pids"):
        if cgroup.directory(controller) is None:
            pytest.skip(f"this machine has no {controller} controller")
    cgroup.apply(spec.LinuxResources(memory=spec.LinuxMemory(limit=64 << 20), pids=spec.LinuxPids(limit=9)))
    figures = cgroup.stats()
    assert figures.memory.limit == 64 << 20
    assert figures.pids.limit == 9


def test_a_limit_this_host_cannot_keep_is_refused(cgroup: cgroups.Cgroup) -> None:
    if cgroup.directory("net_cls") is not None:
        pytest.skip("this machine has the net_cls controller")
    with pytest.raises(Unsupported, match="net_cls cgroup controller is not available"):
        cgroup.apply(spec.LinuxResources(network=spec.LinuxNetwork(class_id=5)))


def test_the_process_limit_holds(cgroup: cgroups.Cgroup) -> None:
    if cgroup.directory("pids") is None:
        pytest.skip("this machine has no pids controller")
    cgroup.apply(spec.LinuxResources(pids=spec.LinuxPids(limit=2)))
    script = (
        "import os,sys\nsys.stdin.readline()\npids=[]\ntry:\n for _ in range(9):\n  p=os.fork()\n"
        "  if not p:\n   sys.stdin.readline(); os._exit(0)\n  pids.append(p)\n"
        "except OSError: pass\nprint(len(pids), flush=True)\n"
        "[os.kill(p, 9) for p in pids]"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=-1, stdout=-1, text=True) as process:
        cgroup.join(process.pid)
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stdout.readline() == "1\n"
        process.kill()


def test_running_out_of_memory_is_told(cgroup: cgroups.Cgroup) -> None:
    watch = cgroup.watch_oom()
    if watch is None:
        pytest.skip("this machine has no memory controller")
    limits = spec.LinuxMemory(limit=16 << 20, swap=16 << 20)
    cgroup.apply(spec.LinuxResources(memory=limits))
    script = "import sys; sys.stdin.readline(); x = b'x' * (256 << 20)"
    with subprocess.Popen([sys.executable, "-c", script], stdin=-1, stderr=-1, text=True) as process:
        cgroup.join(process.pid)
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.close()
        assert process.wait(30) == -signal.SIGKILL
    assert select.select([watch.fileno()], [], [], 10)[0]
    assert watch.killed() == 1
    assert watch.killed() == 0
    assert cgroup.oom_kills() == 1
    watch.close()


def test_a_process_is_born_in_the_cgroup_by_its_descriptor(cgroup: cgroups.Cgroup) -> None:
    descriptor = cgroup.directory_fd()
    if descriptor is None:
        pytest.skip("this machine has no unified hierarchy")
    try:
        pid, pidfd = syscalls.clone3(0, cgroup=descriptor)
    except OSError as error:
        pytest.skip(f"this kernel has no CLONE_INTO_CGROUP: {error}")
    finally:
        os.close(descriptor)
    if pid == 0:
        signal.pause()
    os.close(pidfd)
    try:
        assert pid in [int(line) for line in Path(str(cgroup.unified), "cgroup.procs").read_text().split()]
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_device_program_decides_on_v2(cgroup: cgroups.Cgroup) -> None:
    """On a hybrid host nothing else is there to do it, so the kernel's answer is the program's own."""
    if cgroup.unified is None:
        pytest.skip("this machine has no unified hierarchy")
    from seacan.cgroups.v2 import devices

    resources = spec.LinuxResources(
        devices=[
            spec.LinuxDeviceCgroup(allow=False, access="rwm"),
            spec.LinuxDeviceCgroup(allow=True, type="c", major=1, minor=3, access="rw"),
        ]
    )
    try:
        for _ in range(2):  # the second replaces the first
            devices.apply(cgroup.unified, resources)
    except OSError as error:
        pytest.skip(f"this kernel takes no device programs: {error}")
    script = (
        "import sys\nsys.stdin.readline()\n"
        "for path in ('/dev/null', '/dev/kmsg'):\n"
        " try:\n  open(path).close(); print('opened')\n except PermissionError: print('refused')\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=-1, stdout=-1, text=True) as process:
        Path(cgroup.unified, "cgroup.procs").write_text(str(process.pid))
        assert process.communicate("go\n", timeout=30)[0].split() == ["opened", "refused"]


@pytest.mark.parametrize("operation", ["kill", "remove"])
def test_the_root_cgroup_is_out_of_reach(hierarchies: cgroups.Hierarchies, operation: str) -> None:
    root = cgroups.Cgroup("/", hierarchies, (), hierarchies.unified)
    with pytest.raises(InvalidParameter):
        getattr(root, operation)()
