"""The daemon as a process: its sockets, TLS, signals, pid file, reload, and how soon it answers."""

from __future__ import annotations

import json
import os
import signal
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hosts import REPOSITORY, Daemon, Host

New = Callable[..., Daemon]


def seacand(host: Host, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        host.command(sys.executable, "-m", "seacan.cli.daemon", *arguments),
        capture_output=True,
        text=True,
        timeout=60,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.02)


def test_the_socket_is_for_root_and_the_group(new_daemon: New) -> None:
    daemon = new_daemon(image=False)
    found = daemon.socket.stat()
    assert stat.S_IMODE(found.st_mode) == 0o660
    assert found.st_uid == 0
    daemon.stop()
    assert not daemon.socket.exists()
    assert not (daemon.folder / "seacand.pid").exists()


def test_a_second_daemon_is_refused(new_daemon: New, host: Host) -> None:
    daemon = new_daemon(image=False)
    pid_file = daemon.folder / "seacand.pid"
    common = ["--config-file=", f"--pidfile={pid_file}"]
    done = seacand(host, *common, f"--data-root={daemon.data_root}", f"--exec-root={daemon.exec_root}")
    assert done.returncode == 1
    assert f"ensure docker is not running or delete {pid_file}: process with PID {daemon.pid} is still" in done.stderr
    other = ["--pidfile=", f"--data-root={daemon.data_root}", f"--exec-root={daemon.exec_root}"]
    done = seacand(host, "--config-file=", *other, f"--host=unix://{daemon.folder}/other.sock")
    assert done.returncode == 1
    assert "another engine uses" in done.stderr


def test_signals_end_it_in_order_and_the_third_at_once(new_daemon: New) -> None:
    daemon = new_daemon(image=False)
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGINT)
    assert daemon.process.wait(20) == 0
    assert "Processing signal 'interrupt'" in daemon.log_tail()
    assert "Daemon shutdown complete" in daemon.log_tail()


def test_containers_outlive_the_daemon_or_end_with_it_as_asked(new_daemon: New) -> None:
    daemon = new_daemon()
    running = daemon.out("run", "-d", "busybox", "sleep", "1000")
    pid = daemon.inspect(running)["State"]["Pid"]
    daemon.stop()
    assert Path(f"/proc/{pid}").exists()
    daemon.start("--live-restore=false")
    assert daemon.inspect(running)["State"]["Running"]
    daemon.stop()
    assert not Path(f"/proc/{pid}").exists()
    daemon.start()
    assert daemon.inspect(running)["State"]["Status"] == "exited"


def test_a_reload_takes_over_the_file_and_is_an_event(new_daemon: New) -> None:
    daemon = new_daemon(image=False)
    assert daemon.process is not None
    before = f"{time.time():.9f}"
    (daemon.folder / "daemon.json").write_text(json.dumps({"labels": ["a=b"], "debug": True, "mtu": 1300}))
    daemon.process.send_signal(signal.SIGHUP)
    until(lambda: daemon.out("info", "-f", "{{.Labels}}") == "[a=b]", "the reload")
    info = json.loads(daemon.out("info", "-f", "{{json .}}"))
    assert info["Debug"] is True
    events = daemon.out("events", "--since", before, "--until", f"{time.time():.9f}", "--filter", "event=reload")
    assert " daemon reload " in events
    assert 'labels=["a=b"]' in events and "max-concurrent-downloads=3" in events and "features=map[]" in events
    (daemon.folder / "daemon.json").write_text(json.dumps({"nope": 1}))
    daemon.process.send_signal(signal.SIGHUP)
    until(lambda: "don't match any configuration option: nope" in daemon.log_tail(), "the refusal")
    assert daemon.out("info", "-f", "{{.Labels}}") == "[a=b]"


def test_its_log_is_json_when_asked(new_daemon: New) -> None:
    daemon = new_daemon("--log-format=json", "--debug", image=False)
    lines = [json.loads(line) for line in daemon.log.read_text().splitlines()]
    assert {"level", "msg", "time"} <= set(lines[0])
    assert "Daemon has completed initialization" in [line["msg"] for line in lines]


def test_the_configuration_is_validated_without_a_start(host: Host, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text('{"debug": true}')
    bad.write_text('{"debugging": true}')
    done = seacand(host, "--validate", f"--config-file={good}")
    assert (done.returncode, done.stderr) == (0, "configuration OK\n")
    done = seacand(host, "--validate", f"--config-file={bad}")
    assert done.returncode == 1
    assert "the following directives don't match any configuration option: debugging" in done.stderr
    assert seacand(host, "--nope").returncode == 125


# --- TCP -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA with a server's and a client's certificate, and a stranger's."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=folder)

    for ca in ("ca", "stranger-ca"):
        openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={ca}",
                "-addext", "keyUsage=critical,keyCertSign",
                "-keyout", f"{ca}-key.pem", "-out", f"{ca}.pem")  # fmt: skip
    (folder / "san").write_text("subjectAltName=IP:127.0.0.1")
    for name, ca in (("server", "ca"), ("client", "ca"), ("stranger", "stranger-ca")):
        openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}",
                "-keyout", f"{name}-key.pem", "-out", f"{name}.csr")  # fmt: skip
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", f"{ca}.pem", "-CAkey", f"{ca}-key.pem",
                "-CAcreateserial", "-days", "2", "-extfile", "san", "-out", f"{name}.pem")  # fmt: skip
    return folder


def test_tcp_without_tls_is_refused_unless_asked_for(new_daemon: New, host: Host, tmp_path: Path) -> None:
    common = ["--config-file=", f"--data-root={tmp_path}/d", f"--exec-root={tmp_path}/e", f"--pidfile={tmp_path}/p"]
    done = seacand(host, *common, "-H", "tcp://127.0.0.1:23750")
    assert done.returncode == 1
    assert "Binding to IP address without --tlsverify is insecure" in done.stderr
    daemon = new_daemon("-H", "tcp://127.0.0.1:23751", "--tls=false", image=False)
    assert "Be safe out there!" in daemon.log_tail()
    docker = host.run("docker", "-H", "tcp://127.0.0.1:23751", "version", "-f", "{{.Server.APIVersion}}")
    assert docker.stdout == "1.51\n"


def test_tlsverify_lets_in_only_clients_of_its_ca(new_daemon: New, host: Host, certificates: Path) -> None:
    new_daemon(
        "-H",
        "tcp://127.0.0.1:23760",
        "--tlsverify",
        f"--tlscacert={certificates}/ca.pem",
        f"--tlscert={certificates}/server.pem",
        f"--tlskey={certificates}/server-key.pem",
    )

    def docker(who: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        flags = [f"--tlscert={certificates}/{who}.pem", f"--tlskey={certificates}/{who}-key.pem"]
        command = ["docker", "-H", "tcp://127.0.0.1:23760", "--tlsverify", f"--tlscacert={certificates}/ca.pem"]
        return host.run(*command, *flags, *arguments, check=False)

    assert docker("client", "run", "--rm", "busybox", "echo", "hi").stdout == "hi\n"
    seacan = [sys.executable, "-m", "seacan.cli.main", "-H", "tcp://127.0.0.1:23760", "--tlsverify"]
    seacan += [f"--tlscacert={certificates}/ca.pem", f"--tlscert={certificates}/client.pem"]
    seacan += [f"--tlskey={certificates}/client-key.pem"]
    done = host.run(*seacan, "run", "-i", "--rm", "busybox", "cat", input="through TLS\n", check=False, timeout=60)
    assert (done.stdout, done.returncode) == ("through TLS\n", 0), done.stderr
    assert docker("stranger", "version").returncode != 0
    plain = host.run("docker", "-H", "tcp://127.0.0.1:23760", "version", check=False)
    assert plain.returncode != 0


def test_a_daemon_without_its_certificate_does_not_start(host: Host, tmp_path: Path) -> None:
    done = seacand(host, "--config-file=", "--tlsverify", f"--tlscert={tmp_path}/none.pem", "--validate")
    assert done.returncode == 1
    assert "invalid TLS configuration" in done.stderr


def test_old_protocols_are_refused(new_daemon: New, host: Host, certificates: Path) -> None:
    new_daemon(
        "-H",
        "tcp://127.0.0.1:23770",
        "--tls",
        "--tlsverify=false",
        f"--tlscert={certificates}/server.pem",
        f"--tlskey={certificates}/server-key.pem",
        image=False,
    )
    script = (
        "import socket, ssl, sys, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)\n"
        "context.check_hostname, context.verify_mode = False, ssl.CERT_NONE\n"
        "context.maximum_version = getattr(ssl.TLSVersion, sys.argv[1])\n"
        "context.minimum_version = ssl.TLSVersion.TLSv1\n"
        "sock = context.wrap_socket(socket.create_connection(('127.0.0.1', 23770)))\n"
        "print(sock.version())\n"
    )
    assert ssl.HAS_TLSv1_2
    assert host.run(sys.executable, "-c", script, "TLSv1_2").stdout == "TLSv1.2\n"
    assert host.run(sys.executable, "-c", script, "TLSv1_1", check=False).returncode != 0
