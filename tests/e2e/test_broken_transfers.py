"""A daemon that is killed in the middle of a pull or a push, and what the next one makes of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import free_port
from tests.hosts import REPOSITORY, Daemon, Host

HELD_AT = 5 << 20
"""Bytes that a connection carries before it stands still."""


class Relay:
    """The registry behind ``tests.relay``."""

    def __init__(self, address: str, folder: Path) -> None:
        self.address = address
        self._folder = folder

    def hold(self) -> None:
        (self._folder / "hold").write_text(str(HELD_AT))

    def release(self) -> None:
        (self._folder / "hold").unlink()

    def held(self) -> bool:
        """Whether a connection stands still."""
        return (self._folder / "held").exists()

    def forget(self) -> None:
        (self._folder / "requests").unlink(missing_ok=True)

    def asked(self, method: str, part: str) -> list[tuple[str, str]]:
        """Path and range of the requests with ``part`` in their path."""
        found = []
        for line in (self._folder / "requests").read_text().splitlines():
            told, path, bytes_range = line.split(" ")
            if told == method and part in path:
                found.append((path, bytes_range))
        return found


@pytest.fixture
def relay(host: Host, registry: str, tmp_path: Path) -> Iterator[Relay]:
    folder = tmp_path / "relay"
    folder.mkdir()
    address = f"127.0.0.1:{free_port()}"
    process = subprocess.Popen(
        host.command(sys.executable, "-m", "tests.relay", address, registry, str(folder)),
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert process.stdout is not None
    assert "listening" in process.stdout.readline()
    yield Relay(address, folder)
    process.terminate()
    process.wait(20)
    process.stdout.close()


@pytest.fixture
def sender(new_daemon: Callable[..., Daemon], relay: Relay) -> Daemon:
    """A daemon with an image of two layers, the second of 12 MB that do not compress."""
    daemon = new_daemon()
    daemon.docker(
        "run", "--network", "none", "--name", "made", "busybox", "sh", "-c", "head -c 12000000 /dev/urandom >/big"
    )
    daemon.docker("commit", "made", f"{relay.address}/big:1")
    daemon.docker("rm", "made")
    return daemon


def begin(daemon: Daemon, *argv: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["docker", *argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=daemon.environment(),
    )


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def kill_during(daemon: Daemon, client: subprocess.Popen[bytes]) -> None:
    daemon.kill()
    assert client.wait(30) == 1
    daemon.start()


def mounts_below(folder: Path) -> list[str]:
    points = (line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return [point for point in points if point.startswith(f"{folder}/")]


def test_a_pull_goes_on_where_the_killed_daemon_stopped(
    sender: Daemon, new_daemon: Callable[..., Daemon], relay: Relay
) -> None:
    name = f"{relay.address}/big:1"
    sender.docker("push", "-q", name)
    configuration = sender.inspect(name, "image")["Id"]
    sender.stop()
    puller = new_daemon(image=False)
    ingest = puller.data_root / "blobs/ingest"
    relay.hold()
    relay.forget()
    pulling = begin(puller, "pull", name)

    def half_there() -> bool:
        """One layer has arrived whole, of the other more than half of what the relay lets through."""
        whole = any(path.stat().st_nlink == 2 for path in (ingest.parent / "sha256").iterdir())
        return whole and relay.held() and any(path.stat().st_size > HELD_AT // 2 for path in ingest.glob("*.partial"))

    until(half_there, "the pull does not get far")
    fetched = {path.rpartition("/")[2] for path, _ in relay.asked("GET", "/blobs/sha256:")}
    kill_during(puller, pulling)

    assert puller.out("images", "-aq") == ""
    assert puller.out("system", "df", "--format", "{{.TotalCount}} {{.Size}}").splitlines()[0] == "0 0B"
    assert "No such image" in puller.docker("run", "--pull", "never", name, check=False).stderr
    assert os.listdir(puller.data_root / "layers/staging") == []
    assert all(name.endswith(".partial") for name in os.listdir(ingest))
    assert not mounts_below(puller.folder)
    partial = max(ingest.iterdir(), key=lambda path: path.stat().st_size)
    here = partial.stat().st_size
    assert here > HELD_AT // 2

    relay.release()
    relay.forget()
    puller.docker("pull", name)
    asked = dict(relay.asked("GET", "/blobs/sha256:"))
    big = f"/v2/big/blobs/sha256:{partial.name.removesuffix('.partial')}"
    assert asked.pop(big) == f"bytes={here}-"
    again = {path.rpartition("/")[2] for path in asked} & fetched
    assert again <= {configuration}, "a layer that had arrived was fetched again"
    assert os.listdir(ingest) == []
    assert puller.out("run", "--rm", "--network", "none", name, "wc", "-c", "/big") == "12000000 /big"


def test_a_push_that_the_daemon_s_death_cut_off_is_made_again(sender: Daemon, relay: Relay) -> None:
    name = f"{relay.address}/big:1"
    id = sender.inspect(name, "image")["Id"]
    relay.hold()
    pushing = begin(sender, "push", name)
    until(relay.held, "the push does not get far")
    kill_during(sender, pushing)
    assert sender.inspect(name, "image")["Id"] == id
    assert os.listdir(sender.data_root / "blobs/ingest") == []
    relay.release()
    refused = sender.docker("pull", name, check=False)
    assert refused.returncode == 1
    assert "not found" in refused.stderr

    relay.forget()
    digest = sender.out("push", name).rpartition("digest: ")[2].split()[0]
    assert relay.asked("PUT", "/v2/big/manifests/1") == [("/v2/big/manifests/1", "-")]
    sender.docker("rmi", name)
    assert f"Digest: {digest}" in sender.out("pull", name)
    assert sender.inspect(name, "image")["Id"] == id
    assert sender.out("run", "--rm", "--network", "none", name, "wc", "-c", "/big") == "12000000 /big"
