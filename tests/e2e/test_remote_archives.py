"""Archives that the daemon fetches itself: ``docker import URL``, and builds of a ``remote`` (which docker fetches)."""

from __future__ import annotations

import http.client
import io
import os
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest

from tests.hosts import Daemon, Host

PORT = 8123
URL = f"http://127.0.0.1:{PORT}"


def archive(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.mode = 0o755
            tar.addfile(member, io.BytesIO(content))


def build(daemon: Daemon, url: str) -> None:
    connection = http.client.HTTPConnection("localhost", timeout=60)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(daemon.socket))
    connection.request("POST", f"/v1.51/build?{urlencode({'remote': url, 't': 'remote'})}")
    answer = connection.getresponse().read()
    connection.close()
    assert b"Successfully tagged remote:latest" in answer, answer


@pytest.fixture
def served(host: Host, tmp_path: Path) -> Iterator[Path]:
    """A folder that a web server on the daemon's host gives out at ``URL``."""
    server = subprocess.Popen(
        host.command(sys.executable, "-m", "http.server", str(PORT), "--bind", "127.0.0.1", "-d", str(tmp_path)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for _ in range(200):
        if host.run("busybox", "wget", "-qO", "/dev/null", f"{URL}/", check=False).returncode == 0:
            break
        time.sleep(0.05)
    yield tmp_path
    server.terminate()
    server.wait()


def test_an_archive_is_imported_from_a_url(daemon: Daemon, served: Path) -> None:
    archive(served / "root.tar.gz", {"bin/busybox": Path("/bin/busybox").read_bytes(), "note": os.urandom(3_000_000)})
    done = daemon.docker(
        "import", "--change", 'CMD ["/bin/busybox", "echo", "fetched"]', f"{URL}/root.tar.gz", "remote"
    )
    assert done.stdout.splitlines()[0] == f"Downloading from {URL}/root.tar.gz"
    assert done.stdout.splitlines()[-1] == daemon.out("images", "-q", "--no-trunc", "remote")
    assert daemon.out("run", "--rm", "remote") == "fetched"


def test_what_cannot_be_imported_leaves_no_image(daemon: Daemon, served: Path) -> None:
    (served / "no.tar").write_bytes(b"this is no archive" * 1000)
    for url, words in (
        (f"{URL}/missing", f"failed to GET {URL}/missing with status 404"),
        (f"{URL}/no.tar", "archive"),
        ("http://127.0.0.1:9/x", "unable to download remote context http://127.0.0.1:9/x"),
    ):
        done = daemon.docker("import", url, "nothing", check=False)
        assert done.returncode == 1, url
        assert words in done.stderr, url
    assert daemon.out("images", "-q", "nothing") == ""


def test_a_context_is_fetched_from_a_url(daemon: Daemon, served: Path) -> None:
    archive(served / "context.tar.gz", {"Dockerfile": b"FROM busybox\nCOPY note /note\n", "note": b"from afar"})
    build(daemon, f"{URL}/context.tar.gz")
    assert daemon.out("run", "--rm", "remote", "cat", "/note") == "from afar"


def test_a_dockerfile_is_fetched_from_a_url(daemon: Daemon, served: Path) -> None:
    (served / "Dockerfile.txt").write_text("FROM busybox\nRUN echo alone > /note\n")
    build(daemon, f"{URL}/Dockerfile.txt")
    assert daemon.out("run", "--rm", "remote", "cat", "/note") == "alone"
