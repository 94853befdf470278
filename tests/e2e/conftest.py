"""Fixtures for tests through real clients: one daemon a session on a host without a route out, cleared after each test.

A test that needs a daemon of its own (to kill it, to start it with other flags) uses ``new_daemon``.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from tests.hosts import DOCKER, REPOSITORY, Daemon, Host, scratch

BUILDX = next(
    (
        path
        for path in (
            Path("/usr/libexec/docker/cli-plugins/docker-buildx"),
            Path("/usr/lib/docker/cli-plugins/docker-buildx"),
            Path(os.environ.get("SEACAN_PEERS", "/opt/peers"), "usr/libexec/docker/cli-plugins/docker-buildx"),
        )
        if path.exists()
    ),
    None,
)

if os.geteuid() != 0:
    collect_ignore_glob = ["test_*"]


@pytest.fixture(scope="session", autouse=True)
def _docker_client() -> None:
    if DOCKER is None:
        pytest.fail("no docker client on the PATH; `make test` extracts one into .scratch/bin", pytrace=False)


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    with scratch("e2e") as path:
        yield path


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    host = Host()
    yield host
    host.close()


@pytest.fixture(scope="session")
def busybox(folder: Path) -> Path:
    """A loadable archive with the image ``busybox:latest``."""
    from seacan.images.bootstrap import busybox_archive

    archive = folder / "busybox.tar"
    busybox_archive(archive)
    return archive


@pytest.fixture(scope="session")
def _session_daemon(folder: Path, host: Host, busybox: Path) -> Iterator[Daemon]:
    daemon = Daemon(folder / "daemon", host).start()
    daemon.docker("load", "-i", str(busybox))
    yield daemon
    daemon.close()


@pytest.fixture
def daemon(_session_daemon: Daemon) -> Iterator[Daemon]:
    """The session's daemon with the image ``busybox``; what the test leaves behind is removed."""
    if _session_daemon.process is None or _session_daemon.process.poll() is not None:
        log = _session_daemon.log_tail()
        _session_daemon.process = None
        _session_daemon.start()
        pytest.fail(f"an earlier test ended the session's daemon:\n{log}", pytrace=False)
    yield _session_daemon
    _session_daemon.clear()


@pytest.fixture
def new_daemon(folder: Path, host: Host, busybox: Path) -> Iterator[Callable[..., Daemon]]:
    """Make daemons of the test's own: ``new_daemon("--flag", …, host=…, image=True)``, started, with busybox loaded."""
    with contextlib.ExitStack() as stack:
        made = 0

        def make(*arguments: str, on: Host | None = None, image: bool = True, start: bool = True) -> Daemon:
            nonlocal made
            made += 1
            name = f"own-{os.urandom(3).hex()}-{made}"
            daemon = Daemon(folder / name, on or host, arguments)
            stack.callback(daemon.close)
            if start:
                daemon.start()
                if image:
                    daemon.docker("load", "-i", str(busybox))
            return daemon

        yield make


@pytest.fixture
def new_host() -> Iterator[Callable[..., Host]]:
    """Further hosts; two daemons on one host would fight over bridge and nftables names."""
    with contextlib.ExitStack() as stack:

        def make(name: str = "host") -> Host:
            host = Host(name)
            stack.callback(host.close)
            return host

        yield make


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def registry(host: Host, tmp_path: Path) -> Iterator[str]:
    """A registry of our own on the daemons' host; gives ``host:port``."""
    port = free_port()
    serve = [
        sys.executable,
        "-m",
        "seacan.cli.main",
        "registry",
        "serve",
        "--root",
        str(tmp_path / "registry"),
        "--listen",
        f"127.0.0.1:{port}",
    ]
    process = subprocess.Popen(
        host.command(*serve),
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert "listening" in line, line + process.stdout.read()
    yield f"127.0.0.1:{port}"
    process.terminate()
    process.wait(10)
    process.stdout.close()


@pytest.fixture
def buildx_environment(tmp_path: Path) -> dict[str, str]:
    """Variables with which ``docker build`` goes through buildx; the test is skipped where there is none."""
    if BUILDX is None:
        pytest.skip("no buildx plugin on this machine")
    plugins = tmp_path / "docker-config/cli-plugins"
    plugins.mkdir(parents=True)
    (plugins / "docker-buildx").symlink_to(BUILDX)
    return {"DOCKER_CONFIG": str(plugins.parent), "DOCKER_BUILDKIT": "1", "BUILDKIT_PROGRESS": "plain"}


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """The folder that ``build`` builds."""
    folder = tmp_path / "context"
    folder.mkdir()
    return folder


class Build(Protocol):
    def __call__(
        self, *arguments: str, on: Daemon | None = None, dockerfile: str = "", folder: str = "", fails: bool = False
    ) -> str:
        """Run ``docker build`` on the session's daemon or another; gives what it says.

        ``dockerfile`` is written first, ``folder`` built instead of the context.
        """


@pytest.fixture
def build(daemon: Daemon, context: Path, buildx_environment: dict[str, str]) -> Build:
    """``docker build`` as buildx does it."""

    def build(
        *arguments: str, on: Daemon | None = None, dockerfile: str = "", folder: str = "", fails: bool = False
    ) -> str:
        engine = on or daemon
        if dockerfile:
            (context / "Dockerfile").write_text(dockerfile)
        done = subprocess.run(
            [str(DOCKER), "build", *arguments, folder or str(context)],
            env={**engine.environment(), **buildx_environment},
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert bool(done.returncode) == fails, f"{done.stderr}\n{engine.log_tail()}"
        return done.stderr

    return build
