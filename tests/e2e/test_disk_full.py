"""A disk that is full: clear errors, nothing lost, everything works again when there is room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts import Daemon, Host

FULL = "no space left on device"


class Disk:
    """A small file system of its own, with a daemon's data root and exec root on it."""

    def __init__(self, mountpoint: Path) -> None:
        self.mountpoint = mountpoint
        mountpoint.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m,mode=755", "small", str(mountpoint)], check=True)

    def fill(self) -> None:
        with open(self.mountpoint / "filler", "wb", buffering=0) as filler, pytest.raises(OSError, match="No space"):
            while True:
                filler.write(bytes(4096))

    def free(self) -> None:
        os.unlink(self.mountpoint / "filler")

    def close(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.mountpoint)], check=True)


@pytest.fixture
def disk(folder: Path) -> Iterator[Disk]:
    disk = Disk(folder / f"disk-{os.urandom(3).hex()}")
    yield disk
    disk.close()


@pytest.fixture
def small(disk: Disk, host: Host, busybox: Path) -> Iterator[Daemon]:
    daemon = Daemon(disk.mountpoint / "daemon", host).start()
    daemon.docker("load", "-i", str(busybox))
    yield daemon
    daemon.close()


def refused(daemon: Daemon, *command: str, input: str | None = None) -> str:
    done = daemon.docker(*command, check=False, timeout=20, input=input)
    assert done.returncode, f"{command} should have failed: {done.stdout}"
    return (done.stdout + done.stderr).lower()


def test_what_needs_room_says_that_there_is_none(disk: Disk, small: Daemon, busybox: Path) -> None:
    small.docker("run", "-d", "--name", "keeps", "busybox", "sleep", "1000")
    disk.fill()
    assert FULL in refused(small, "run", "--rm", "busybox", "true")
    assert FULL in refused(small, "load", "-i", str(busybox))
    assert FULL in refused(small, "exec", "keeps", "true")
    assert FULL in refused(small, "commit", "keeps", "image")
    assert FULL in refused(small, "cp", str(busybox), "keeps:/root/")
    assert "larger than the space left on the disk" in refused(
        small, "build", "-", input="FROM busybox\nRUN echo > /x\n"
    )
    assert small.out("ps", "--format", "{{.Names}} {{.State}}") == "keeps running"
    disk.free()
    assert small.out("exec", "keeps", "echo", "works") == "works"
    small.docker("load", "-i", str(busybox))
    small.docker("commit", "keeps", "image")
    small.docker("cp", str(busybox), "keeps:/root/")
    assert small.out("run", "--rm", "image", "echo", "works") == "works"


def test_containers_end_and_are_removed_on_a_full_disk(disk: Disk, small: Daemon) -> None:
    small.docker("run", "-d", "--name", "ends", "busybox", "sh", "-c", "sleep 2; exit 5")
    small.docker("run", "-d", "--name", "stays", "busybox", "sleep", "1000")
    disk.fill()
    assert small.out("wait", "ends") == "5"
    assert small.inspect("ends")["State"]["ExitCode"] == 5
    small.docker("stop", "-t", "0", "stays")
    small.docker("volume", "create", "later")
    small.docker("rm", "ends")
    small.docker("rm", "-f", "stays")
    assert small.out("ps", "-aq") == ""
    disk.free()
    assert small.out("volume", "ls", "-q") == "later"


def test_a_daemon_that_finds_its_disk_full_says_so_and_loses_nothing(disk: Disk, small: Daemon) -> None:
    small.docker("run", "-d", "--name", "lives", "busybox", "sh", "-c", "while sleep 0.1; do echo line; done")
    small.docker("run", "-d", "--name", "ends", "busybox", "sh", "-c", "sleep 2; exit 5")
    disk.fill()
    small.kill()
    small.start(wait=False)
    assert small.process is not None
    assert small.process.wait(20) == 1
    small.process = None
    assert FULL in small.log_tail().lower()
    disk.free()
    small.start()
    assert small.out("wait", "ends") == "5"
    small.docker("exec", "lives", "true")
    assert small.out("logs", "--tail", "1", "lives") == "line"
