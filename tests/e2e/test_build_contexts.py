"""What a build takes from elsewhere: named contexts of every kind, files and archives behind HTTP."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Build, free_port
from tests.hosts import DOCKER, Daemon, Host


@pytest.fixture
def served(host: Host, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A folder, and the URL under which the daemon's host has it."""
    folder = tmp_path / "served"
    folder.mkdir()
    port = free_port()
    process = subprocess.Popen(
        host.command(sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(folder), str(port)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 20
    probe = f"import socket; socket.create_connection(('127.0.0.1', {port}))"
    while host.run(sys.executable, "-c", probe, check=False).returncode:
        assert time.monotonic() < deadline
    yield f"http://127.0.0.1:{port}", folder
    process.terminate()
    process.wait(10)


def show(daemon: Daemon, *command: str) -> str:
    return daemon.out("run", "--rm", "--network=none", "made", *command)


def test_an_image_as_named_context(build: Build, daemon: Daemon, registry: str) -> None:
    remote = f"{registry}/tools:1"
    build("-t", remote, dockerfile="FROM busybox\nRUN echo tool > /tool\nENV A=b\n")
    daemon.docker("push", remote)
    daemon.docker("rmi", remote)
    build(
        "--build-context", f"nosuch=docker-image://{remote}",
        "--build-context", f"tools=docker-image://{remote}", "-t", "made",
        dockerfile="FROM nosuch\nCOPY --from=tools /tool /copied\nRUN echo $A > /a\n",
    )  # fmt: skip
    assert show(daemon, "cat", "/copied", "/a").split() == ["tool", "b"]
    daemon.docker("rmi", remote)


def test_an_oci_layout_of_the_client_as_named_context(build: Build, daemon: Daemon, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    build(
        "-o",
        f"type=oci,tar=false,dest={layout}",
        "-t",
        "tools:1",
        dockerfile="FROM busybox\nRUN echo tool > /tool\nENV A=b\n",
    )
    daemon.docker("builder", "prune", "-af")
    before = daemon.out("images", "-aq")
    dockerfile = "FROM tools\nCOPY --from=tools /tool /copied\nRUN echo $A > /a\n"
    build("--build-context", f"tools=oci-layout://{layout}:1", "-t", "made", dockerfile=dockerfile)
    assert show(daemon, "cat", "/copied", "/a").split() == ["tool", "b"]
    build(
        "--build-context",
        f"tools=oci-layout://{layout}:1",
        "-o",
        f"type=oci,dest={tmp_path / 'o.tar'}",
        dockerfile=dockerfile,
    )
    daemon.docker("rmi", "made")
    assert daemon.out("images", "-aq") == before
    blob = max((layout / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    blob.write_bytes(b"x" + blob.read_bytes()[1:])
    daemon.docker("builder", "prune", "-af")
    message = build("--build-context", f"tools=oci-layout://{layout}:1", fails=True, dockerfile=dockerfile)
    assert f"blob verification failed for digest sha256:{blob.name}" in message


def test_folders_and_files_as_named_contexts(
    build: Build, daemon: Daemon, tmp_path: Path, served: tuple[str, Path]
) -> None:
    url, folder = served
    (folder / "file.txt").write_text("from the server")
    other = tmp_path / "other"
    other.mkdir()
    for name in ("kept", "ignored"):
        (other / name).write_text(name)
    (other / ".dockerignore").write_text("ignored\n")
    build(
        "--build-context", f"other={other}", "--build-context", f"file={url}/file.txt", "-t", "made",
        dockerfile="FROM busybox\nCOPY --from=other / /other/\nCOPY --from=file /context /file\n",
    )  # fmt: skip
    assert show(daemon, "ls", "/other") == "kept"
    assert show(daemon, "cat", "/file") == "from the server"
    message = build("--build-context", "other=docker-image://127.0.0.1:1/no:1", fails=True, dockerfile="FROM other\n")
    assert "127.0.0.1:1" in message


def test_files_and_contexts_behind_http(
    build: Build, daemon: Daemon, host: Host, served: tuple[str, Path], buildx_environment: dict[str, str]
) -> None:
    url, folder = served
    (folder / "file.txt").write_text("one")
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in (("Dockerfile", b"FROM busybox\nCOPY f /f\n"), ("f", b"in an archive")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    (folder / "context.tar.gz").write_bytes(archive.getvalue())
    added = f"FROM busybox\nADD {url}/file.txt /added/\nADD {url}/context.tar.gz /\n"
    build("-t", "made", dockerfile=added)
    assert show(daemon, "cat", "/added/file.txt") == "one"
    assert show(daemon, "ls", "/context.tar.gz") == "/context.tar.gz"
    (folder / "file.txt").write_text("two")
    build("-t", "made", dockerfile=added)
    assert show(daemon, "cat", "/added/file.txt") == "two"
    wrong = f"FROM busybox\nADD --checksum=sha256:{'0' * 64} {url}/file.txt /\n"
    assert "digest mismatch" in build(fails=True, dockerfile=wrong)
    assert "status 404" in build(fails=True, dockerfile=f"FROM busybox\nADD {url}/nosuch /\n")
    for environment in (buildx_environment, {"DOCKER_BUILDKIT": "0"}):
        subprocess.run(
            host.command(str(DOCKER), "build", "-t", "made", f"{url}/context.tar.gz"),  # a classic client fetches it
            env={**daemon.environment(), **environment}, check=True, capture_output=True, timeout=60,
        )  # fmt: skip
        assert show(daemon, "cat", "/f") == "in an archive"
        daemon.docker("rmi", "made")


def publish(work: Path, repository: Path) -> None:
    """Make a repository of a folder, as a server of files can give it out; skips where there is no git."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    who = dict.fromkeys(("GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"), "t@e.example")
    who |= dict.fromkeys(("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"), "t")
    for command in (("init", "-q", "-b", "main"), ("add", "."), ("commit", "-qm", "one")):
        subprocess.run(["git", *command], cwd=work, env={**os.environ, **who}, check=True)
    subprocess.run(["git", "clone", "-q", "--bare", str(work), str(repository)], check=True)
    subprocess.run(["git", "update-server-info"], cwd=repository, check=True)


def test_a_git_repository_as_named_context(
    build: Build, daemon: Daemon, served: tuple[str, Path], tmp_path: Path
) -> None:
    url, folder = served
    work = tmp_path / "work"
    work.mkdir()
    (work / "tracked").write_text("tracked")
    publish(work, folder / "r.git")
    build(
        "--build-context", f"r={url}/r.git#main", "-t", "made", dockerfile="FROM busybox\nCOPY --from=r /tracked /t\n"
    )
    assert show(daemon, "cat", "/t") == "tracked"


def test_a_dockerfile_behind_a_url(build: Build, daemon: Daemon, context: Path, served: tuple[str, Path]) -> None:
    url, folder = served
    (folder / "Dockerfile").write_text("FROM busybox\nCOPY here /t\n")
    (context / "here").write_text("with it")
    build("-f", f"{url}/Dockerfile", "-t", "made")
    assert show(daemon, "cat", "/t") == "with it"
    assert "status 404" in build("-f", f"{url}/nosuch", fails=True)


def test_targets_of_a_repository_are_baked(
    buildx_environment: dict[str, str], daemon: Daemon, tmp_path: Path, served: tuple[str, Path]
) -> None:
    url, folder = served
    work = tmp_path / "work"
    (work / "app").mkdir(parents=True)
    (work / "docker-bake.hcl").write_text(
        'target "default" {\n  context = "app"\n  contexts = { more = "more" }\n  tags = ["made"]\n}\n'
    )
    # buildx before 0.31 has the folder itself in a named context, not what is in it.
    find = "find /m -name told -exec cat {} + > /told"
    (work / "app/Dockerfile").write_text(f"FROM busybox\nRUN --mount=from=more,target=/m {find}\nCOPY own /own\n")
    (work / "app/own").write_text("own")
    (work / "more").mkdir()
    (work / "more/told").write_text("told")
    publish(work, folder / "r.git")
    (folder / "bake.hcl").write_text(
        'target "default" {\n  tags = ["made"]\n'
        '  dockerfile-inline = "FROM busybox\\nRUN printf own > /own; printf told > /told"\n}\n'
    )
    for place in (f"{url}/r.git", f"{url}/bake.hcl"):
        done = subprocess.run(
            [str(DOCKER), "buildx", "bake", place],
            env={**daemon.environment(), **buildx_environment},
            cwd=work,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, f"{done.stderr}\n{daemon.log_tail()}"
        assert show(daemon, "cat", "/own", "/told") == "owntold"
        daemon.docker("rmi", "made")
