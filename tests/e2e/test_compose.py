"""Docker Compose v2: an application of two services, up and down."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts import Daemon

FOLDERS = ("/usr/libexec/docker/cli-plugins", "/usr/lib/docker/cli-plugins", "/usr/local/lib/docker/cli-plugins")
PEERS = Path(os.environ.get("SEACAN_PEERS", "/opt/peers"))


def _program() -> str | None:
    places = [Path(folder) for folder in FOLDERS] + [PEERS / folder.lstrip("/") for folder in FOLDERS]
    found = [str(place / "docker-compose") for place in places if (place / "docker-compose").is_file()]
    return found[0] if found else shutil.which("docker-compose")


PROGRAM = _program()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no docker-compose on the PATH or among docker's plugins")

APPLICATION = """
services:
  db:
    image: busybox
    command: sh -c "mkdir -p /data && echo stored > /data/page && touch /ready && httpd -f -h /data"
    volumes: [data:/data]
    networks: [back]
    stop_grace_period: 0s
    healthcheck:
      test: ["CMD", "test", "-e", "/ready"]
      interval: 200ms
      retries: 50
  web:
    image: busybox
    command: sh -c "wget -q -O - http://store/page; cat /greeting /run/secrets/password; httpd -f -h /"
    depends_on:
      db: {condition: service_healthy}
    links: ["db:store"]
    ports: ["18088:80"]
    environment: {STAGE: test}
    configs: [{source: greeting, target: /greeting}]
    secrets: [password]
    networks:
      back: {aliases: [www]}
      front: {}
    deploy: {resources: {limits: {cpus: "0.5", memory: 64M}}}
    restart: unless-stopped
    stop_grace_period: 0s
volumes:
  data: {}
networks:
  back: {}
  front:
    ipam: {config: [{subnet: 10.77.0.0/24}]}
configs:
  greeting: {content: "hello\\n"}
secrets:
  password: {file: ./password}
"""


class Project:
    def __init__(self, daemon: Daemon, folder: Path) -> None:
        self.daemon = daemon
        self.folder = folder

    def run(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        assert PROGRAM is not None
        done = subprocess.run(
            [PROGRAM, "--project-name", "app", *argv], cwd=self.folder, capture_output=True, text=True, timeout=120,
            env=self.daemon.environment(), stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(f"compose {' '.join(argv)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def services(self) -> dict[str, str]:
        lines = self.run("ps", "-a", "--format", "json").stdout.splitlines()
        return {entry["Service"]: entry["State"] for entry in map(json.loads, lines)}


@pytest.fixture
def project(daemon: Daemon, tmp_path: Path) -> Iterator[Project]:
    (tmp_path / "compose.yaml").write_text(APPLICATION)
    (tmp_path / "password").write_text("secret\n")
    project = Project(daemon, tmp_path)
    yield project
    project.run("down", "-v", "-t", "0", check=False)


def test_an_application_comes_up_works_and_goes(project: Project) -> None:
    project.run("up", "-d")
    assert project.services() == {"db": "running", "web": "running"}
    logs = project.run("logs", "--no-color", "--no-log-prefix", "web").stdout
    assert logs == "stored\nhello\nsecret\n"
    page = project.daemon.host.run("curl", "-s", "http://127.0.0.1:18088/greeting").stdout
    assert page == "hello\n"
    assert project.run("exec", "-T", "web", "sh", "-c", "echo $STAGE").stdout == "test\n"
    assert project.run("port", "web", "80").stdout.strip() == "0.0.0.0:18088"
    inside = project.daemon.inspect("app-web-1")
    assert inside["HostConfig"]["Memory"] == 64 << 20
    assert set(inside["NetworkSettings"]["Networks"]) == {"app_back", "app_front"}

    again = project.run("up", "-d").stderr
    assert "Recreated" not in again
    project.run("down", "-v")
    assert project.daemon.out("ps", "-aq") == ""
    assert project.daemon.out("volume", "ls", "-q") == ""
    assert "app_" not in project.daemon.out("network", "ls", "--format", "{{.Name}}")


def test_one_service_is_scaled_restarted_and_stopped(project: Project) -> None:
    project.run("up", "-d", "--scale", "db=2", "db")
    assert len(project.run("ps", "-q").stdout.split()) == 2
    project.run("restart", "-t", "0", "db")
    project.run("up", "-d", "--scale", "db=1", "db")
    assert len(project.run("ps", "-q").stdout.split()) == 1
    project.run("stop", "db")
    assert project.services() == {"db": "exited"}


def test_a_one_off_container_sees_the_others(project: Project) -> None:
    project.run("up", "-d", "--wait", "db")
    done = project.run(
        "run", "--rm", "-T", "--no-deps", "--entrypoint", "wget", "web", "-q", "-O", "-", "http://db/page"
    )
    assert done.stdout == "stored\n"


def test_up_ends_with_its_services_exit_code(project: Project) -> None:
    (project.folder / "compose.yaml").write_text(
        'services: {job: {image: busybox, command: sh -c "echo done; exit 3", network_mode: none}}'
    )
    done = project.run("up", "--exit-code-from", "job", check=False)
    assert done.returncode == 3
    assert "done" in done.stdout


def test_services_share_namespaces(project: Project) -> None:
    (project.folder / "compose.yaml").write_text(
        """
services:
  main: {image: busybox, command: httpd -f -h /etc, hostname: main, stop_grace_period: 0s}
  side:
    image: busybox
    network_mode: service:main
    pid: service:main
    command: sh -c "hostname; wget -q -O - http://127.0.0.1/hostname; cat /proc/1/comm"
"""
    )
    project.run("up", "-d")
    project.daemon.docker("wait", "app-side-1")
    assert project.run("logs", "--no-color", "--no-log-prefix", "side").stdout.split() == ["main", "main", "httpd"]
