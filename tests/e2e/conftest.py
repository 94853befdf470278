"""Fixtures for tests through real clients: one daemon a session on a host without a route out, cleared after each test.

A test that needs a daemon of its own (to kill it, to start it with other flags) uses ``new_daemon``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hosts import DOCKER, Daemon, Host, scratch

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
