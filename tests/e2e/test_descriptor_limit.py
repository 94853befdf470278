"""The daemon opens as many files as it may; a container gets the limit the daemon was started with."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

from seacan.linux import capabilities
from tests.hosts import Daemon


def limits(pid: int) -> tuple[int, int]:
    line = next(x for x in Path(f"/proc/{pid}/limits").read_text().splitlines() if x.startswith("Max open files"))
    soft, hard = line.split()[3:5]
    return int(soft), int(hard)


def test_daemon_raises_its_own_limit_alone(new_daemon: Callable[..., Daemon], new_host: Callable[..., object]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1000, hard))
    try:
        daemon = new_daemon(on=new_host())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    privileged = capabilities.current("CapEff") & capabilities.mask(["CAP_SYS_RESOURCE"])
    most = int(Path("/proc/sys/fs/nr_open").read_text()) if privileged else hard
    assert limits(daemon.pid) == (most, most)
    assert daemon.out("run", "--rm", "--network", "none", "busybox", "sh", "-c", "ulimit -Sn; ulimit -Hn").split() == [
        "1000",
        str(hard),
    ]
