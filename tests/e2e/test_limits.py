"""Limits, isolation and what is shown of them, through the docker client."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from seacan.engine.host import host
from seacan.linux.capabilities import current
from tests.hosts import Daemon

V1 = host().cgroup_version == 1
LIMITS = {
    "memory": "/sys/fs/cgroup/memory/memory.limit_in_bytes" if V1 else "/sys/fs/cgroup/memory.max",
    "pids": "/sys/fs/cgroup/pids/pids.max" if V1 else "/sys/fs/cgroup/pids.max",
    "cpu": "/sys/fs/cgroup/cpu/cpu.cfs_quota_us" if V1 else "/sys/fs/cgroup/cpu.max",
}
Run = Callable[..., str]


@pytest.fixture
def run(daemon: Daemon) -> Run:
    return lambda *argv: daemon.out("run", "--rm", "--network", "none", *argv)


@pytest.mark.parametrize(
    ("option", "controller", "written"),
    [
        (("-m", "64m"), "memory", str(64 << 20)),
        (("--pids-limit", "50"), "pids", "50"),
        (("--pids-limit", "-1"), "pids", "max"),
        (("--cpus", "0.5"), "cpu", "50000"),
    ],
)
def test_a_limit_is_seen_in_the_container(run: Run, option: tuple[str, ...], controller: str, written: str) -> None:
    if not host().memory_limit:
        pytest.skip("this machine has no memory controller")
    assert run(*option, "busybox", "cat", LIMITS[controller]).split()[0] == written


def test_a_process_that_takes_too_much_memory_is_killed(daemon: Daemon) -> None:
    if not host().memory_limit:
        pytest.skip("this machine has no memory controller")
    argv = ("run", "--name", "big", "--network", "none", "-m", "16m", "--memory-swap", "16m", "busybox")
    done = daemon.docker(*argv, "sh", "-c", "x=x; while :; do x=$x$x; done", check=False)
    assert done.returncode == 137
    assert daemon.inspect("big")["State"]["OOMKilled"] is True


def test_default_capabilities_and_filter(run: Run) -> None:
    status = dict(
        line.split(":\t")
        for line in run("busybox", "cat", "/proc/self/status").splitlines()
        if line.startswith(("CapEff", "CapBnd", "Seccomp:", "NoNewPrivs"))
    )
    assert int(status["CapBnd"], 16) == 0xA80425FB & current("CapBnd")
    assert status["CapEff"] == status["CapBnd"]
    assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "0")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("-m", "1m"), "Minimum memory limit allowed is 6MB"),
        (("--cpuset-cpus", "4095"), "Requested CPUs are not available - requested 4095, available: "),
        (("--security-opt", "foo=bar"), 'invalid --security-opt 2: "foo=bar"'),
        (("--cap-add", "FLY"), 'invalid CapAdd: unknown capability: "CAP_FLY"'),
        (("-u", "nobody-here"), "unable to find user nobody-here: no matching entries in passwd file"),
        (("--device", "/dev/nosuch"), 'adding custom device "/dev/nosuch": no such file or directory'),
        (("--gpus", "all"), 'could not select device driver "" with capabilities: [[gpu]]'),
    ],
)
def test_what_cannot_be_is_refused_in_dockerds_words(daemon: Daemon, argv: tuple[str, ...], words: str) -> None:
    done = daemon.docker("run", "--rm", "--network", "none", *argv, "busybox", "true", check=False)
    assert done.returncode >= 125
    assert words in done.stderr


@pytest.mark.parametrize(
    "script",
    [
        "mount -t tmpfs x /mnt",
        "mknod /tmp/disk b 8 0 && cat /tmp/disk",
        "echo 1 > /proc/sys/kernel/panic",
        'test -n "$(head -c 1 /proc/kcore)"',
        "unshare -m true",
        "ls /sys/firmware/*",
    ],
)
def test_root_in_a_container_is_not_root(daemon: Daemon, script: str) -> None:
    argv = ("run", "--rm", "--network", "none", "busybox", "sh", "-c", f"{script} 2>/dev/null")
    assert daemon.docker(*argv, check=False).returncode != 0


class TestALiveContainer:
    @pytest.fixture(autouse=True)
    def _container(self, daemon: Daemon) -> None:
        self.daemon = daemon
        argv = ("run", "-d", "--name", "live", "--network", "none", "-m", "64m", "busybox")
        daemon.docker(*argv, "sleep", "300")

    def test_its_limits_can_change(self) -> None:
        if not host().memory_limit:
            pytest.skip("this machine has no memory controller")
        self.daemon.docker("update", "-m", "32m", "--memory-swap", "64m", "--pids-limit", "77", "live")
        shown = self.daemon.out("exec", "live", "cat", LIMITS["memory"], LIMITS["pids"]).split()
        assert shown == [str(32 << 20), "77"]
        assert self.daemon.inspect("live")["HostConfig"]["Memory"] == 32 << 20

    def test_a_change_that_contradicts_is_refused_and_nothing_changes(self) -> None:
        done = self.daemon.docker("update", "-m", "256m", "live", check=False)
        assert "Memory limit should be smaller than already set memoryswap limit" in done.stderr
        assert self.daemon.inspect("live")["HostConfig"]["Memory"] == 64 << 20

    def test_its_figures_are_shown(self) -> None:
        line = self.daemon.out("stats", "--no-stream", "--format", "{{json .}}", "live")
        shown = json.loads(line)
        assert (shown["Name"], shown["PIDs"]) == ("live", "1")
        assert shown["MemUsage"].endswith("/ 64MiB")

    def test_a_stopped_ones_figures_are_zero(self) -> None:
        self.daemon.docker("kill", "live")
        shown = json.loads(self.daemon.out("stats", "--no-stream", "-a", "--format", "{{json .}}", "live"))
        assert shown["PIDs"] in ("--", "0")

    def test_its_processes_are_listed(self) -> None:
        titles, row = self.daemon.out("top", "live").splitlines()
        assert titles.split()[:3] == ["UID", "PID", "PPID"]
        assert row.endswith("sleep 300")
        assert "Couldn't find PID field" in self.daemon.docker("top", "live", "-o", "comm", check=False).stderr


def test_a_joined_ipc_namespace_shares_its_memory(daemon: Daemon, run: Run) -> None:
    daemon.docker("run", "-d", "--name", "donor", "--network", "none", "--ipc", "shareable", "busybox", "sleep", "300")
    daemon.docker("exec", "donor", "sh", "-c", "echo shared > /dev/shm/file")
    assert run("--ipc", "container:donor", "busybox", "cat", "/dev/shm/file") == "shared"
    daemon.docker("run", "-d", "--name", "miser", "--network", "none", "busybox", "sleep", "300")
    refused = daemon.docker("run", "--rm", "--ipc", "container:miser", "busybox", "true", check=False)
    assert "non-shareable IPC" in refused.stderr
