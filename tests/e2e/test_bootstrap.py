"""A Debian made from its packages by ``seacan image bootstrap``: is it a Debian one can work in, and ship?"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts import REPOSITORY, Daemon, scratch

pytestmark = [
    pytest.mark.skipif(shutil.which("mmdebstrap") is None, reason="no mmdebstrap on the PATH"),
    pytest.mark.skipif(
        not Path("/usr/share/keyrings/debian-archive-keyring.gpg").exists(), reason="no keys of Debian's archive"
    ),
]


@pytest.fixture(scope="module")
def archive() -> Iterator[Path]:
    with scratch("bootstrap") as folder:
        file = folder / "debian.tar"
        done = subprocess.run(
            [sys.executable, "-m", "seacan.cli.main", "image", "bootstrap", "--output", str(file), "debian"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert "extracting archives" in done.stderr, "twenty seconds, and not a word"
        yield file


@pytest.fixture
def debian(archive: Path, daemon: Daemon) -> Iterator[Daemon]:
    assert daemon.out("load", "-i", str(archive)) == "Loaded image: debian:latest"
    yield daemon
    daemon.clear()
    daemon.docker("image", "rm", "-f", "debian:latest")


def test_its_package_manager_finds_it_whole(debian: Daemon) -> None:
    shell = ("run", "--rm", "debian", "bash", "-c")
    assert debian.out(*shell, "dpkg --audit; dpkg-query -W -f '${db:Status-Status}\\n' | sort -u") == "installed"
    assert "apt" in debian.out(*shell, "apt-get --version && apt-get check").split()
    # Files of a package that are left out on purpose are named; a file with other bytes would show a 5.
    assert not [line for line in debian.out(*shell, "dpkg --verify || true").splitlines() if "5" in line.split()[0]]


def test_it_carries_nothing_of_the_machine_that_made_it(debian: Daemon) -> None:
    files = "/etc/machine-id /var/lib/apt/lists /var/cache/apt"
    listing = debian.out("run", "--rm", "debian", "bash", "-c", f"find {files} -type f -size +0")
    assert listing == ""
    assert debian.out("run", "--rm", "--hostname", "other", "debian", "hostname") == "other"


def test_rights_bits_and_users_came_along(debian: Daemon) -> None:
    assert debian.out("run", "--rm", "debian", "stat", "-c", "%a %u", "/bin/su", "/tmp").split() == [
        "4755", "0", "1777", "0",
    ]  # fmt: skip
    assert debian.out("run", "--rm", "-u", "www-data", "debian", "id", "-un") == "www-data"
    script = "su -s /bin/sh nobody -c 'id -un'; touch /x 2>/dev/null || echo read-only"
    assert debian.out("run", "--rm", "--read-only", "debian", "sh", "-c", script).split() == ["nobody", "read-only"]


def test_it_is_a_base_to_build_on_and_to_save(debian: Daemon, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(
        'FROM debian\nRUN groupadd -r app && useradd -r -g app -d /srv app\nUSER app\nCMD ["id", "-un"]\n'
    )
    debian.docker("build", "-t", "app", str(tmp_path))
    try:
        assert debian.out("run", "--rm", "app") == "app"
        debian.docker("save", "-o", str(tmp_path / "app.tar"), "app")
        config = json.loads(debian.out("image", "inspect", "app"))[0]
        assert len(config["RootFS"]["Layers"]) == 2
    finally:
        debian.docker("image", "rm", "-f", "app")
    assert debian.out("load", "-i", str(tmp_path / "app.tar")) == "Loaded image: app:latest"
    assert json.loads(debian.out("image", "inspect", "app"))[0]["Id"] == config["Id"]
    debian.docker("image", "rm", "-f", "app")
