"""What other users of the host, and containers, can see and reach of the engine: files, sockets, processes, streams."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.hosts import DOCKER, Daemon

LIST = 'for fd in /proc/self/fd/*; do echo "${fd##*/} $(readlink $fd)"; done'


def open_to_others(root: Path) -> list[str]:
    """What somebody who is neither root nor of root's group can read or write below ``root``."""
    found = []
    pending = [root]
    while pending:
        path = pending.pop()
        information = path.lstat()
        folder = stat.S_ISDIR(information.st_mode)
        if folder and information.st_mode & stat.S_IXOTH:
            pending += path.iterdir()
        if not stat.S_ISLNK(information.st_mode) and information.st_mode & (stat.S_IROTH | stat.S_IWOTH):
            found.append(str(path.relative_to(root)))
    return sorted(found)


def test_other_users_of_the_host_see_no_content(daemon: Daemon) -> None:
    """CVE-2021-41091, CVE-2021-41089: programs with the set-user-ID bit, and secrets, in reach of everybody."""
    daemon.docker("run", "-d", "--name", "secret", "-e", "PASSWORD=x", "-v", "data:/data", "busybox", "sleep", "1000")
    assert stat.S_IMODE(daemon.data_root.stat().st_mode) & 0o007 == 0
    assert open_to_others(daemon.exec_root) == []
    for name in ("seacan.db", "seacan.db-wal", "seacan.db-shm"):
        assert stat.S_IMODE((daemon.data_root / name).stat().st_mode) == 0o600
    # A host that was given a wider data root still protects what is in it.
    daemon.data_root.chmod(0o755)
    try:
        # Volumes are as dockerd has them: who knows a name gets at what the container made for everybody.
        known = {".", "build", "blobs", "engine-id", "volumes/data/_data"}
        assert set(open_to_others(daemon.data_root)) - known == set()
    finally:
        daemon.data_root.chmod(0o710)


def test_a_database_of_wider_mode_is_closed(new_daemon: Callable[..., Daemon]) -> None:
    daemon = new_daemon(image=False)
    daemon.stop()
    (daemon.data_root / "seacan.db").chmod(0o644)
    daemon.start()
    assert stat.S_IMODE((daemon.data_root / "seacan.db").stat().st_mode) == 0o600


def test_nothing_listens_on_an_abstract_socket(daemon: Daemon) -> None:
    """CVE-2020-15257: containers of the host's network namespace reach abstract sockets, whatever their mounts."""
    daemon.docker("run", "-d", "--network", "host", "busybox", "sleep", "1000")
    table = daemon.out("run", "--rm", "--network", "host", "busybox", "cat", "/proc/net/unix").splitlines()[1:]
    sockets = [fields for line in table if len(fields := line.split()) > 7]
    assert str(daemon.socket) in [fields[7] for fields in sockets]
    for _, _, _, flags, kind, _, _, name, *_ in sockets:
        if name.startswith("@"):
            assert (flags, kind) == ("00000000", "0001"), f"{name} takes connections or datagrams"


def test_containers_and_execs_have_their_streams_and_nothing_else(daemon: Daemon) -> None:
    """With published ports, DNS sockets and clients attached, all of which the shim holds for the daemon."""
    daemon.docker("network", "create", "own")
    daemon.docker("run", "-dit", "--name", "box", "--network", "own", "-p", "127.0.0.1::80", "busybox", "sh")
    assert DOCKER is not None
    attached = subprocess.Popen(
        [DOCKER, "attach", "--no-stdin", "box"], stdout=subprocess.PIPE, env=daemon.environment()
    )
    try:
        for number in range(3):
            daemon.docker("exec", "-d", "box", "sleep", str(1000 + number))
        for words in (
            ("exec", "box"),
            ("exec", "-i", "box"),
            ("run", "--rm", "busybox"),
            ("run", "--rm", "-i", "busybox"),
        ):
            lines = daemon.out(*words, "sh", "-c", LIST, input="").splitlines()
            assert {line.split()[0] for line in lines} <= {"0", "1", "2", "3"}, lines
            for line in lines:
                target = line.partition(" ")[2]
                assert target == "/dev/null" or target.startswith("pipe:") or (line.startswith("3") and not target), (
                    lines
                )
        pid = daemon.inspect("box")["State"]["Pid"]
        assert {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")} <= {
            "/dev/pts/0",
            "/dev/tty",
        }
    finally:
        attached.kill()
        attached.communicate()


def test_the_environment_of_the_daemon_stays_outside(daemon: Daemon) -> None:
    names = {line.partition("=")[0] for line in daemon.out("run", "--rm", "busybox", "env").splitlines()}
    assert names == {"PATH", "HOSTNAME", "HOME"}
    daemon.docker("run", "-d", "--name", "box", "busybox", "sleep", "1000")
    names = {line.partition("=")[0] for line in daemon.out("exec", "box", "env").splitlines()}
    assert names == {"PATH", "HOSTNAME", "HOME"}


def test_a_container_among_the_hosts_processes_learns_nothing_of_the_engines(daemon: Daemon) -> None:
    daemon.docker("run", "-d", "--name", "box", "busybox", "sleep", "1000")
    init = daemon.inspect("box")["State"]["Pid"]
    shim = int(Path(f"/proc/{init}/stat").read_text().rpartition(")")[2].split()[1])
    script = (
        "for pid in $0; do for name in environ maps; do cat /proc/$pid/$name 2>/dev/null | head -c 1; done;"
        " ls /proc/$pid/root/ /proc/$pid/cwd/ 2>/dev/null; readlink /proc/$pid/exe /proc/$pid/fd/*; done; echo end"
    )
    pids = " ".join(str(pid) for pid in (daemon.pid, shim, *daemon.launcher_pids()))
    assert daemon.out("run", "--rm", "--pid", "host", "busybox", "sh", "-c", script, pids) == "end"


def test_health_checks_and_copies_do_not_go_where_a_containers_links_lead(daemon: Daemon, tmp_path: Path) -> None:
    """The container sees the host's processes, and has nobody's help but the engine's own."""
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    outside = f"/proc/{daemon.host.pid}/root{tmp_path}"
    setup = f"ln -s {outside} /out; ln -sf {outside}/secret /dev/null; touch /ready; exec sleep 1000"
    daemon.docker("run", "-d", "--name", "box", "--pid", "host", "busybox", "sh", "-c", setup)
    while daemon.docker("exec", "-i", "box", "ls", "/ready", check=False, input="").returncode:
        pass
    assert "of the host" not in daemon.docker("exec", "box", "cat", "/dev/stdin", check=False).stdout
    assert "of the host" not in daemon.docker("cp", "box:/out/secret", "-", check=False).stdout
    own = tmp_path / "own"
    own.mkdir()
    (own / "planted").write_text("x")
    assert daemon.docker("cp", str(own / "planted"), "box:/out/", check=False).returncode != 0
    assert sorted(os.listdir(tmp_path)) == ["own", "secret"]
    assert secret.read_text() == "of the host"
    assert json.loads(daemon.out("inspect", "box"))[0]["State"]["Running"]


def test_top_runs_nothing_of_the_container(daemon: Daemon) -> None:
    """CVE-2022-1227: there a ``ps`` of the image ran with more than the container's rights."""
    setup = "printf '#!/bin/sh\\ntouch /caught\\n' >/bin/ps && chmod +x /bin/ps && touch /ready && exec sleep 1000"
    daemon.docker("run", "-d", "--name", "box", "busybox", "sh", "-c", setup)
    while daemon.docker("exec", "box", "ls", "/ready", check=False).returncode:
        pass
    assert "sleep 1000" in daemon.out("top", "box")
    assert "sleep 1000" in daemon.out("top", "box", "-eo", "pid,args")
    assert daemon.out("exec", "box", "ls", "/bin/ps") == "/bin/ps"
    assert daemon.docker("exec", "box", "ls", "/caught", check=False).returncode == 1


def test_one_containers_environment_is_not_anothers(daemon: Daemon) -> None:
    """CVE-2020-14370, CVE-2021-21334: where containers of one image, or started at one time, shared a process."""
    commands = [
        [DOCKER or "", "run", "--rm", "-e", f"SECRET{number}={number}", "busybox", "env"] for number in range(6)
    ]
    running = [subprocess.Popen(c, stdout=subprocess.PIPE, env=daemon.environment(), text=True) for c in commands]
    for number, process in enumerate(running):
        output, _ = process.communicate(timeout=60)
        assert [line for line in output.splitlines() if line.startswith("SECRET")] == [f"SECRET{number}={number}"]
    daemon.docker("run", "-d", "--name", "box", "-e", "OWN=1", "busybox", "sleep", "1000")
    assert "EXTRA=2" in daemon.out("exec", "-e", "EXTRA=2", "box", "env")
    names = {line.partition("=")[0] for line in daemon.out("exec", "box", "env").splitlines()}
    assert names == {"PATH", "HOSTNAME", "HOME", "OWN"}


def test_clients_that_vanish_leave_nothing_behind(daemon: Daemon) -> None:
    """CVE-2022-23471, CVE-2025-64329: there each attach or terminal whose client went away kept its memory for good."""
    daemon.docker("run", "-dit", "--name", "box", "busybox", "sh")
    shim = int(Path(f"/proc/{daemon.inspect('box')['State']['Pid']}/stat").read_text().rpartition(")")[2].split()[1])

    def held() -> list[int]:
        return [len(os.listdir(f"/proc/{pid}/fd")) for pid in (daemon.pid, shim)]

    def vanish() -> None:
        for path, body in (
            ("/containers/box/attach?stream=1&stdin=1&stdout=1", b""),
            (f"/exec/{created()}/start", b'{"Tty": true}'),
        ):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(10)
                client.connect(str(daemon.socket))
                head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
                head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
                client.sendall(head.encode() + body)
                assert client.recv(12).endswith(b"101")

    def created() -> str:
        with contextlib.closing(http.client.HTTPConnection("localhost", timeout=10)) as connection:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(str(daemon.socket))
            body = json.dumps({"Cmd": ["true"], "Tty": True, "AttachStdin": True, "AttachStdout": True})
            connection.request("POST", "/containers/box/exec", body, {"Content-Type": "application/json"})
            return str(json.loads(connection.getresponse().read())["Id"])

    vanish()
    time.sleep(0.5)
    before = held()
    for _ in range(20):
        vanish()
    deadline = time.monotonic() + 10
    while held() > before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert held() <= before


def test_the_output_of_a_health_check_has_a_limit(daemon: Daemon) -> None:
    daemon.docker(
        "run", "-d", "--name", "box", "--health-cmd", "yes | head -c 10000000", "--health-interval", "1s",
        "busybox", "sleep", "1000",
    )  # fmt: skip
    while not (entries := daemon.inspect("box")["State"]["Health"]["Log"]):
        time.sleep(0.1)
    assert len(entries[0]["Output"]) == 4096 + len("...")
