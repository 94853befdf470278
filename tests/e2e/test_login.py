"""``docker login`` at a registry of ours that asks for a password."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import bcrypt
import pytest

from tests.hosts import REPOSITORY, Daemon, Host

ADDRESS = "127.0.0.1:5055"


@pytest.fixture
def registry(host: Host, tmp_path: Path) -> Iterator[str]:
    """A registry on the daemon's host, for ``ann`` with the password ``secret``."""
    users = tmp_path / "htpasswd"
    users.write_text(f"ann:{bcrypt.hashpw(b'secret', bcrypt.gensalt(4)).decode()}\n")
    serve = ["registry", "serve", "--root", str(tmp_path / "store"), "--listen", ADDRESS, "--htpasswd", str(users)]
    process = subprocess.Popen(
        host.command(sys.executable, "-m", "seacan.cli.main", *serve), stdout=subprocess.PIPE, cwd=REPOSITORY
    )
    assert process.stdout is not None
    assert b"listening" in process.stdout.readline()
    yield ADDRESS
    process.terminate()
    process.wait()
    process.stdout.close()


def test_who_has_logged_in_may_push_and_pull(daemon: Daemon, registry: str) -> None:
    daemon.docker("tag", "busybox", f"{registry}/app")
    assert daemon.docker("push", f"{registry}/app", check=False).returncode == 1
    done = daemon.docker("login", "-u", "ann", "--password-stdin", registry, input="secret")
    assert "Login Succeeded" in done.stdout
    daemon.docker("push", f"{registry}/app")
    daemon.docker("rmi", f"{registry}/app")
    daemon.docker("pull", f"{registry}/app")
    daemon.docker("logout", registry)
    assert daemon.docker("push", f"{registry}/app", check=False).returncode == 1
    daemon.docker("rmi", f"{registry}/app")


@pytest.mark.parametrize(("user", "password"), [("ann", "wrong"), ("bob", "secret")])
def test_a_wrong_password_is_refused(daemon: Daemon, registry: str, user: str, password: str) -> None:
    done = daemon.docker("login", "-u", user, "--password-stdin", registry, input=password, check=False)
    assert done.returncode == 1
    assert f"http://{registry}/v2/" in done.stderr
    assert "unauthorized" in done.stderr.lower()
    assert password not in done.stderr
