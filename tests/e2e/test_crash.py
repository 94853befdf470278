"""kill -9 of the daemon, of the launcher, or of both, at any moment under load: nothing is lost and nothing is left.

What is counted when the load has ended, and again when all containers are removed: processes, shims, mounts, control
groups, veths, endpoints with their addresses, run folders, snapshots and folders of containers.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hosts import Daemon, cgroup_folders


class Client(http.client.HTTPConnection):
    """The raw API on the daemon's socket; one request a connection, so that a crash spoils no other."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(str(self._path))


def call(daemon: Daemon, method: str, path: str, body: Any = None) -> Any:
    with contextlib.closing(Client(daemon.socket)) as client:
        client.request(
            method,
            f"/v1.51{path}",
            None if body is None else json.dumps(body),
            {} if body is None else {"Content-Type": "application/json"},
        )
        response = client.getresponse()
        data = response.read()
        if response.status >= 400:
            raise AssertionError(f"{method} {path}: {response.status} {data.decode(errors='replace')}")
        return json.loads(data) if data else None


class Load:
    """Clients that create, start, stop and remove containers until told to end. Crashes are no news to them."""

    def __init__(self, daemon: Daemon, threads: int = 4) -> None:
        self._daemon = daemon
        self._ending = threading.Event()
        self.completed = 0
        self.surprises: list[str] = []
        self._threads = [threading.Thread(target=self._work, args=(seed,), daemon=True) for seed in range(threads)]
        for thread in self._threads:
            thread.start()

    def _work(self, seed: int) -> None:
        chance = random.Random(seed)
        while not self._ending.is_set():
            try:
                self._round(chance)
                self.completed += 1
            except (OSError, http.client.HTTPException):
                time.sleep(0.02)
            except AssertionError as error:
                # A request that a crash cut in half was carried out or not: both are right.
                if not any(
                    word in str(error) for word in ("No such container", "is not running", "died", "in progress")
                ):
                    self.surprises.append(str(error))

    def _round(self, chance: random.Random) -> None:
        daemon = self._daemon
        kind = chance.choice(["none", "bridge", "bridge"])
        host = {"NetworkMode": kind, "AutoRemove": chance.random() < 0.4}
        if kind == "bridge" and chance.random() < 0.5:
            host["PortBindings"] = {"80/tcp": [{"HostPort": ""}]}
        if chance.random() < 0.3:
            host["Binds"] = ["/data"]
        command = chance.choice([["true"], ["sh", "-c", "exit 3"], ["sleep", "0.2"], ["sleep", "60"]])
        body = {"Image": "busybox", "Cmd": command, "HostConfig": host, "StopTimeout": 0, "Labels": {"load": "1"}}
        id = call(daemon, "POST", "/containers/create", body)["Id"]
        call(daemon, "POST", f"/containers/{id}/start")
        if command == ["sleep", "60"]:
            with contextlib.suppress(AssertionError):
                exec_id = call(daemon, "POST", f"/containers/{id}/exec", {"Cmd": ["true"]})["Id"]
                call(daemon, "POST", f"/exec/{exec_id}/start", {"Detach": True})
            call(daemon, "POST", f"/containers/{id}/kill")
        elif not host["AutoRemove"]:
            call(daemon, "POST", f"/containers/{id}/wait")
        if not host["AutoRemove"]:
            call(daemon, "DELETE", f"/containers/{id}?force=1&v=1")

    def end(self) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a client got no answer"


# --- what is left -------------------------------------------------------------------------------------------------


def processes_in(parent: str) -> set[int]:
    found: set[int] = set()
    for folder in cgroup_folders(parent):
        for file in folder.rglob("cgroup.procs"):
            with contextlib.suppress(OSError):
                found |= {int(pid) for pid in file.read_text().split()}
    return found


def cgroups_in(parent: str) -> set[str]:
    return {path.name for folder in cgroup_folders(parent) for path in folder.iterdir() if path.is_dir()}


def mounts_below(folder: Path) -> list[str]:
    points = (line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return [point for point in points if point.startswith(f"{folder}/")]


def veths(daemon: Daemon) -> list[str]:
    links = json.loads(daemon.host.run("ip", "-j", "link", "show", "type", "veth").stdout or "[]")
    return [link["ifname"] for link in links]


def shims(daemon: Daemon) -> set[str]:
    """Container ids of the shims that live."""
    root = str(daemon.exec_root / "containers")
    found = set()
    for table in Path("/proc").glob("[0-9]*/fd"):
        with contextlib.suppress(OSError):
            for fd in table.iterdir():
                target = os.readlink(fd)
                if target.startswith(root + "/"):
                    found.add(target[len(root) + 1 :].split("/")[0])
    return found


def rows(daemon: Daemon, table: str, column: str) -> set[str]:
    with contextlib.closing(sqlite3.connect(f"file:{daemon.data_root}/seacan.db?mode=ro", uri=True)) as database:
        return {value for (value,) in database.execute(f"SELECT {column} FROM {table}")}


def eventually(condition: Callable[[], Any], what: str, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while True:
        left = condition()
        if not left:
            return
        assert time.monotonic() < deadline, f"{what}: {left}"
        time.sleep(0.05)


def check_leftovers(daemon: Daemon) -> None:
    """Everything there is belongs to a container that the daemon says is running, or (on disk) that it knows."""
    known = call(daemon, "GET", "/containers/json?all=1")
    ids = {container["Id"] for container in known}
    running = {container["Id"] for container in known if container["State"] == "running"}
    networked = {
        container["Id"]
        for container in known
        if container["State"] == "running" and container["HostConfig"]["NetworkMode"] == "bridge"
    }
    eventually(lambda: cgroups_in(daemon.cgroup_parent) - running, "control groups left")
    eventually(lambda: {p.name for p in (daemon.exec_root / "containers").iterdir()} - running, "run folders left")
    eventually(lambda: shims(daemon) - running, "shims left")
    eventually(lambda: len(veths(daemon)) - len(networked), "veths left (or missing)")
    eventually(lambda: rows(daemon, "network_endpoint", "container") - running, "endpoints left")
    eventually(lambda: {p.name for p in (daemon.data_root / "containers").iterdir()} ^ ids, "folders of containers")
    assert rows(daemon, "snapshots", "key") == ids
    assert not mounts_below(daemon.folder)


def kill_at_random(daemon: Daemon, chance: random.Random) -> str:
    victim = chance.choice(["daemon", "launcher", "both"])
    launchers = daemon.launcher_pids()
    if victim in ("launcher", "both"):
        for pid in launchers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    if victim in ("daemon", "both"):
        daemon.kill()
        time.sleep(chance.random() * 0.2)
        daemon.start()
    return victim


@pytest.fixture
def crashing(new_daemon: Callable[..., Daemon]) -> Iterator[Daemon]:
    yield new_daemon()


def survive(daemon: Daemon, crashes: int, seed: int) -> None:
    chance = random.Random(seed)
    daemon.docker(
        "run",
        "-d",
        "--name",
        "steady",
        "-t",
        "busybox",
        "sh",
        "-c",
        "i=0; while :; do echo $i; i=$((i+1)); sleep 0.1; done",
    )
    daemon.docker("run", "-d", "--name", "again", "--restart", "always", "--network", "none", "busybox", "sleep", "0.5")
    pid = daemon.inspect("steady")["State"]["Pid"]
    address = daemon.inspect("steady")["NetworkSettings"]["IPAddress"]
    load = Load(daemon)
    try:
        for _ in range(crashes):
            time.sleep(chance.random() * 0.6)
            kill_at_random(daemon, chance)
    finally:
        load.end()
    state = daemon.inspect("steady")
    assert state["State"]["Running"]
    assert state["State"]["Pid"] == pid, "the container was started anew"
    assert state["NetworkSettings"]["IPAddress"] == address
    assert daemon.inspect("again")["State"]["Running"]
    assert not load.surprises, load.surprises[:5]
    assert load.completed, "no client ever got through"
    check_leftovers(daemon)
    log = [int(line) for line in daemon.out("logs", "steady").split()]
    assert log == list(range(len(log))), "lines of the log are missing"
    daemon.clear()
    check_leftovers(daemon)
    assert not processes_in(daemon.cgroup_parent)
    assert not veths(daemon)


def test_crashes_under_load_lose_and_leave_nothing(crashing: Daemon) -> None:
    survive(crashing, crashes=8, seed=1)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(4))
def test_many_crashes_under_load_lose_and_leave_nothing(crashing: Daemon, seed: int) -> None:
    survive(crashing, crashes=40, seed=100 + seed)


def test_an_exit_while_the_daemon_was_away_is_reported_with_its_own_time(crashing: Daemon) -> None:
    crashing.docker("run", "-d", "--name", "short", "--network", "none", "busybox", "sh", "-c", "sleep 0.5; exit 42")
    crashing.kill()
    time.sleep(1.5)
    ended_before = time.time() - 0.7
    crashing.start()
    state = crashing.inspect("short")["State"]
    assert (state["Status"], state["ExitCode"]) == ("exited", 42)
    finished = time.mktime(time.strptime(state["FinishedAt"][:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone
    assert finished <= ended_before
    check_leftovers(crashing)


def test_a_container_that_ended_meanwhile_is_restarted_by_its_policy(crashing: Daemon) -> None:
    crashing.docker(
        "run", "-d", "--name", "again", "--restart", "always", "--network", "none", "busybox", "sleep", "0.5"
    )
    crashing.kill()
    time.sleep(1)
    crashing.start()
    eventually(lambda: not crashing.inspect("again")["State"]["Running"], "not restarted")


def test_a_container_with_rm_that_ended_meanwhile_is_removed(crashing: Daemon) -> None:
    crashing.docker(
        "run", "-d", "--rm", "--name", "gone", "--network", "none", "-v", "/data", "busybox", "sleep", "0.5"
    )
    crashing.kill()
    time.sleep(1)
    crashing.start()
    eventually(lambda: crashing.out("ps", "-aq"), "not removed")
    assert crashing.out("volume", "ls", "-q") == ""
    check_leftovers(crashing)


def test_a_stopped_container_stays_stopped_after_a_crash(crashing: Daemon) -> None:
    crashing.docker(
        "run", "-d", "--name", "c1", "--restart", "unless-stopped", "--network", "none", "busybox", "sleep", "60"
    )
    crashing.docker("stop", "-t", "0", "c1")
    crashing.kill()
    crashing.start()
    assert crashing.inspect("c1")["State"]["Status"] == "exited"


def test_a_paused_container_is_still_paused_after_a_crash(crashing: Daemon) -> None:
    crashing.docker("run", "-d", "--name", "c1", "--network", "none", "busybox", "sleep", "60")
    crashing.docker("pause", "c1")
    crashing.kill()
    crashing.start()
    assert crashing.inspect("c1")["State"]["Status"] == "paused"
    crashing.docker("unpause", "c1")
    assert crashing.docker("exec", "c1", "echo", "on").stdout == "on\n"


def test_without_live_restore_a_clean_end_stops_containers_and_policies_start_them_again(
    new_daemon: Callable[..., Daemon],
) -> None:
    daemon = new_daemon("--live-restore=false")
    daemon.docker("run", "-d", "--name", "plain", "--stop-timeout", "0", "--network", "none", "busybox", "sleep", "60")
    kept = ("--name", "kept", "--restart", "always", "--network", "none")
    daemon.docker("run", "-d", "--stop-timeout", "0", *kept, "busybox", "sleep", "60")
    daemon.stop()
    assert not processes_in(daemon.cgroup_parent)
    daemon.start()
    eventually(lambda: daemon.inspect("kept")["State"]["Status"] != "running", "not restarted")
    assert daemon.inspect("plain")["State"]["Status"] == "exited"


def test_a_clean_end_stops_nothing(new_daemon: Callable[..., Daemon]) -> None:
    daemon = new_daemon()
    daemon.docker("run", "-d", "--name", "c1", "busybox", "sleep", "60")
    pid = daemon.inspect("c1")["State"]["Pid"]
    daemon.stop()
    daemon.start()
    assert daemon.inspect("c1")["State"]["Pid"] == pid
    assert daemon.out("exec", "c1", "echo", "on") == "on"
