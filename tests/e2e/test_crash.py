"""kill -9 of the daemon, of the launcher, or of both, at any moment under load: nothing is lost and nothing is left.

The load is what a busy host sees: containers with and without networks, ports and volumes, execs, networks made and
joined, volumes, commits, builds, loads and saves. What is counted when it has ended: processes, shims, mounts, control
groups, veths, endpoints, run folders, snapshots, folders of containers and volumes, layers. And once all is removed,
the host must look as it did before: links, every element in nftables, listening sockets, and all that lies on the disk.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import random
import signal
import socket
import sqlite3
import tarfile
import threading
import time
from collections import Counter
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
    """One request; ``body`` is sent as JSON, bytes as a tar. The JSON of the answer, else its bytes."""
    with contextlib.closing(Client(daemon.socket)) as client:
        kind = "application/x-tar" if isinstance(body, bytes) else "application/json"
        data = body if body is None or isinstance(body, bytes) else json.dumps(body)
        client.request(method, f"/v1.51{path}", data, {} if body is None else {"Content-Type": kind})
        response = client.getresponse()
        answer = response.read()
        if response.status >= 400:
            raise AssertionError(f"{method} {path}: {response.status} {answer.decode(errors='replace')}")
        if response.getheader("Content-Type", "").startswith("application/json"):
            lines = answer.splitlines()
            return json.loads(answer) if len(lines) == 1 else [json.loads(line) for line in lines if line.strip()]
        return answer


def context(**files: str) -> bytes:
    """A tar of a few small files."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tree:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tree.addfile(info, io.BytesIO(text.encode()))
    return archive.getvalue()


CUT_SHORT = (
    "No such container", "No such exec", "No such image", "no such volume", "is not running", "died", "in progress",
    "not found", "is paused", "has active endpoints", "is in use", "volume in use", "already exists",
)  # fmt: skip
"""A request that a crash cut in half was carried out or not, and so was the one before it: both are right."""


class Load:
    """Clients that do what a busy host sees until told to end. Crashes are no news to them."""

    def __init__(self, daemon: Daemon, threads: int = 4) -> None:
        self._daemon = daemon
        self._ending = threading.Event()
        self.completed: Counter[str] = Counter()
        self.surprises: list[str] = []
        self.rounds: list[Callable[[random.Random], None]] = [
            self._container, self._network, self._volume, self._commit, self._build, self._archives, self._changes,
        ]  # fmt: skip
        self._archive = call(daemon, "GET", "/images/busybox/get")
        self._threads = [threading.Thread(target=self._work, args=(seed,), daemon=True) for seed in range(threads)]
        for thread in self._threads:
            thread.start()

    def _work(self, seed: int) -> None:
        chance = random.Random(seed)
        while not self._ending.is_set():
            work = chance.choice(self.rounds + [self._container] * 6)
            try:
                work(chance)
                self.completed[work.__name__] += 1
            except (OSError, http.client.HTTPException):
                time.sleep(0.02)
            except AssertionError as error:
                if not any(word in str(error) for word in CUT_SHORT):
                    self.surprises.append(str(error))

    def _create(self, command: list[str], **host: Any) -> str:
        body = {"Image": "busybox", "Cmd": command, "HostConfig": host, "StopTimeout": 0, "Labels": {"load": "1"}}
        return str(call(self._daemon, "POST", "/containers/create", body)["Id"])

    def _remove(self, id: str) -> None:
        call(self._daemon, "DELETE", f"/containers/{id}?force=1&v=1")

    def _container(self, chance: random.Random) -> None:
        daemon = self._daemon
        kind = chance.choice(["none", "bridge", "bridge"])
        host: dict[str, Any] = {"NetworkMode": kind, "AutoRemove": chance.random() < 0.4}
        if kind == "bridge" and chance.random() < 0.5:
            host["PortBindings"] = {"80/tcp": [{"HostPort": ""}]}
        if chance.random() < 0.3:
            host["Binds"] = ["/data"]
        command = chance.choice([["true"], ["sh", "-c", "exit 3"], ["sleep", "0.2"], ["sleep", "60"]])
        id = self._create(command, **host)
        call(daemon, "POST", f"/containers/{id}/start")
        if command == ["sleep", "60"]:
            with contextlib.suppress(AssertionError):
                exec_id = call(daemon, "POST", f"/containers/{id}/exec", {"Cmd": ["true"]})["Id"]
                call(daemon, "POST", f"/exec/{exec_id}/start", {"Detach": True})
            call(daemon, "POST", f"/containers/{id}/kill")
        elif not host["AutoRemove"]:
            call(daemon, "POST", f"/containers/{id}/wait")
        if not host["AutoRemove"]:
            self._remove(id)

    def _network(self, chance: random.Random) -> None:
        daemon, name = self._daemon, f"load-{chance.getrandbits(48):x}"
        driver = chance.choice(["bridge", "routed"])
        call(daemon, "POST", "/networks/create", {"Name": name, "Driver": driver})
        id = self._create(["sleep", "60"], NetworkMode=chance.choice([name, "bridge"]))
        call(daemon, "POST", f"/containers/{id}/start")
        with contextlib.suppress(AssertionError):  # it may be in there already
            call(daemon, "POST", f"/networks/{name}/connect", {"Container": id})
        call(daemon, "POST", f"/networks/{name}/disconnect", {"Container": id, "Force": True})
        self._remove(id)
        call(daemon, "DELETE", f"/networks/{name}")

    def _volume(self, chance: random.Random) -> None:
        daemon, name = self._daemon, f"load-{chance.getrandbits(48):x}"
        call(daemon, "POST", "/volumes/create", {"Name": name})
        id = self._create(["touch", "/data/mark"], NetworkMode="none", Binds=[f"{name}:/data", "/etc/ssl"])
        call(daemon, "POST", f"/containers/{id}/start")
        call(daemon, "POST", f"/containers/{id}/wait")
        self._remove(id)
        call(daemon, "DELETE", f"/volumes/{name}")

    def _commit(self, chance: random.Random) -> None:
        daemon, name = self._daemon, f"load-{chance.getrandbits(48):x}"
        id = self._create(["sh", "-c", f"echo {name} >/mark; sleep 60"], NetworkMode="none")
        call(daemon, "POST", f"/containers/{id}/start")
        call(daemon, "POST", f"/commit?container={id}&repo={name}")
        self._remove(id)
        call(daemon, "DELETE", f"/images/{name}")

    def _build(self, chance: random.Random) -> None:
        daemon, name = self._daemon, f"load-{chance.getrandbits(48):x}"
        steps = f"FROM busybox\nCOPY mark /mark\nRUN echo {name} >/step\nRUN cat /mark /step >/both\n"
        told = call(daemon, "POST", f"/build?t={name}", context(Dockerfile=steps, mark=name))
        assert not [line for line in told if "error" in line], told
        call(daemon, "DELETE", f"/images/{name}")

    def _archives(self, chance: random.Random) -> None:
        daemon, name = self._daemon, f"load-{chance.getrandbits(48):x}"
        call(daemon, "POST", "/images/load?quiet=1", self._archive)
        call(daemon, "POST", f"/images/busybox/tag?repo={name}&tag=latest")
        call(daemon, "GET", f"/images/{name}/get")
        call(daemon, "DELETE", f"/images/{name}")

    def _changes(self, chance: random.Random) -> None:
        """What is done to a container while it runs."""
        daemon = self._daemon
        id = self._create(["sleep", "60"], NetworkMode="bridge")
        call(daemon, "POST", f"/containers/{id}/start")
        call(daemon, "PUT", f"/containers/{id}/archive?path=/tmp", context(mark="x"))
        call(daemon, "POST", f"/containers/{id}/pause")
        call(daemon, "POST", f"/containers/{id}/update", {"Memory": 64 << 20, "MemorySwap": -1})
        call(daemon, "POST", f"/containers/{id}/unpause")
        exec_id = call(daemon, "POST", f"/containers/{id}/exec", {"Cmd": ["cat", "/tmp/mark"], "AttachStdout": True})
        told = call(daemon, "POST", f"/exec/{exec_id['Id']}/start", {})
        assert told[8:] in (b"x", b""), (
            told
        )  # a crash between the two halves of a start ends the exec with nothing said
        call(daemon, "POST", f"/containers/{id}/restart?t=0")
        call(daemon, "POST", f"/containers/{id}/rename?name=load-{chance.getrandbits(48):x}")
        call(daemon, "POST", f"/containers/{id}/stop?t=0")
        self._remove(id)

    def missing(self) -> set[str]:
        """Kinds of work that nobody has done to its end yet."""
        return {work.__name__ for work in self.rounds} - self.completed.keys()

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


def rows(daemon: Daemon, table: str, columns: str) -> set[Any]:
    """The values of a column, or tuples of several."""
    with contextlib.closing(sqlite3.connect(f"file:{daemon.data_root}/seacan.db?mode=ro", uri=True)) as database:
        found = set(database.execute(f"SELECT {columns} FROM {table}"))
    return found if "," in columns else {value for (value,) in found}


def eventually(condition: Callable[[], Any], what: str, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while True:
        left = condition()
        if not left:
            return
        assert time.monotonic() < deadline, f"{what}: {left}"
        time.sleep(0.05)


def names(folder: Path) -> set[str]:
    """What lies in a folder; one that nobody has needed yet is empty."""
    try:
        return set(os.listdir(folder))
    except FileNotFoundError:
        return set()


def check_leftovers(daemon: Daemon) -> None:
    """Everything there is belongs to a container that the daemon says is running, or (on disk) that it knows."""
    eventually(lambda: leftovers(daemon), "left (or missing)", 30)


def leftovers(daemon: Daemon) -> dict[str, Any]:
    """What is there for nobody, or missing; by what it is. A container may end while we look: look again then."""
    known = call(daemon, "GET", "/containers/json?all=1")
    ids = {container["Id"] for container in known}
    running = {container["Id"] for container in known if container["State"] in ("running", "paused")}
    joined = {
        (container["Id"], network["NetworkID"])
        for container in known
        if container["Id"] in running
        for network in container["NetworkSettings"]["Networks"].values()
    }
    plain = {network["Id"] for network in call(daemon, "GET", "/networks") if network["Driver"] in ("null", "host")}
    wired = {(container, network) for container, network in joined if network not in plain}
    data, run = daemon.data_root, daemon.exec_root
    volumes, referenced = rows(daemon, "volumes", "name"), rows(daemon, "volume_references", "volume")
    found = {
        "control groups": cgroups_in(daemon.cgroup_parent) - running,
        "run folders": names(run / "containers") - running,
        "run folders of builds": names(run / "build"),
        "shims": shims(daemon) - running,
        "endpoints": rows(daemon, "network_endpoint", "container, network") - joined,
        "endpoints missing": joined - rows(daemon, "network_endpoint", "container, network"),
        "veths": len(veths(daemon)) - len(wired),
        "mounts": mounts_below(daemon.folder),
        "folders of containers": names(data / "containers") ^ ids,
        "snapshots": rows(daemon, "snapshots", "key") ^ ids,
        # What the database does not know lies there for nothing, and what it knows must be there.
        "folders of snapshots": names(data / "snapshots") ^ ids,
        "layers": {name.removesuffix("-init") for name in names(data / "layers") - {"staging"}}
        ^ rows(daemon, "layers", "key"),
        "half-made layers": names(data / "layers" / "staging"),
        "half-written blobs": names(data / "blobs" / "ingest"),
        "layers of builds": names(data / "build" / "layers") ^ rows(daemon, "build_layers", "id"),
        "work of builds": names(data / "build" / "work"),
        "volumes": names(data / "volumes") - {".removed"} ^ volumes,
        "references to volumes": rows(daemon, "volume_references", "container") - ids,
        "volumes of nobody": {name for name in volumes if len(name) == 64} - referenced,
        "trash": names(data / "trash"),
    }
    return {what: left for what, left in found.items() if left}


def footprint(daemon: Daemon) -> dict[str, Any]:
    """All that an engine without containers leaves on its host: links, elements, sockets, what lies on the disk."""
    ruleset = json.loads(daemon.host.run("nft", "-j", "list", "ruleset").stdout)["nftables"]
    elements: dict[str, int] = {}
    for entry in ruleset:
        for kind in ("set", "map"):
            if kind in entry:
                elements[f"{entry[kind]['family']} {entry[kind]['name']}"] = len(entry[kind].get("elem", []))
    data = daemon.data_root
    return {
        "links": sorted(link["ifname"] for link in json.loads(daemon.host.run("ip", "-j", "link").stdout)),
        "routes": sorted(
            line.replace("linkdown", "").strip()
            for line in daemon.host.run("ip", "route", "show", "table", "all").stdout.splitlines()
            if not line.startswith("multicast")  # the kernel's own, once a bridge has had a port
        ),
        "elements": elements,
        "sockets": sorted(line.split()[4] for line in daemon.host.run("ss", "-Hltun").stdout.splitlines()),
        "namespaces": len(namespaces_of(daemon)),
        **{folder: names(data / folder) for folder in ("blobs/sha256", "volumes", "build/layers")},
        "layers": {name.removesuffix("-init") for name in names(data / "layers")},
    }


def namespaces_of(daemon: Daemon) -> set[str]:
    """The network namespaces that the daemon holds open."""
    found = set()
    for fd in Path(f"/proc/{daemon.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            target = os.readlink(fd)
            if target.startswith("net:"):
                found.add(target)
    return found


def kill_at_random(daemon: Daemon, chance: random.Random) -> str:
    victim = chance.choice(["daemon", "launcher", "both", "recovery"])
    launchers = daemon.launcher_pids()
    if victim in ("launcher", "both"):
        for pid in launchers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    if victim in ("daemon", "both", "recovery"):
        daemon.kill()
        time.sleep(chance.random() * 0.2)
        if victim == "recovery":  # again, while it clears up after the first crash
            daemon.start(wait=False)
            time.sleep(0.15 + chance.random() * 0.4)
            daemon.kill()
        daemon.start()
    return victim


@pytest.fixture
def crashing(new_daemon: Callable[..., Daemon]) -> Iterator[Daemon]:
    yield new_daemon()


def survive(daemon: Daemon, crashes: int, seed: int) -> None:
    chance = random.Random(seed)
    before = footprint(daemon)
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
        eventually(lambda: load.missing(), "some kind of work never gets through", 60)
    finally:
        load.end()
    state = daemon.inspect("steady")
    assert state["State"]["Running"]
    assert state["State"]["Pid"] == pid, "the container was started anew"
    assert state["NetworkSettings"]["IPAddress"] == address
    assert daemon.inspect("again")["State"]["Running"]
    assert not load.surprises, load.surprises[:5]
    check_leftovers(daemon)
    log = [int(line) for line in daemon.out("logs", "steady").split()]
    assert log == list(range(len(log))), "lines of the log are missing"
    daemon.clear()
    daemon.docker("builder", "prune", "-af")
    for name in daemon.out("images", "--format", "{{.Repository}}", "--filter", "reference=load-*").split():
        daemon.docker("image", "rm", name)
    daemon.docker("image", "prune", "-f")
    check_leftovers(daemon)
    assert not processes_in(daemon.cgroup_parent)
    after = footprint(daemon)
    for what, value in before.items():
        assert after[what] == value, (what, after[what], value)


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
