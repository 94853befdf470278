"""`docker cp`: into and out of containers that run and that do not; and that nothing leads out of them."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from tests.hosts import Daemon


@pytest.fixture(params=["running", "stopped"])
def container(request: pytest.FixtureRequest, daemon: Daemon) -> Daemon:
    daemon.docker("create", "--name", "c1", "--network", "none", "-v", "data:/data", "busybox", "sleep", "600")
    if request.param == "running":
        daemon.docker("start", "c1")
    return daemon


def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "folder").mkdir(parents=True)
    (root / "folder/file").write_text("content")
    (root / "folder/script").write_text("#!/bin/sh\n")
    (root / "folder/script").chmod(0o755)
    (root / "link").symlink_to("folder/file")
    os.link(root / "folder/file", root / "hard")
    return root


@pytest.mark.parametrize("target", ["/root", "/data"])
def test_a_tree_goes_in_and_comes_out_the_same(container: Daemon, tmp_path: Path, target: str) -> None:
    container.docker("cp", str(tree(tmp_path)), f"c1:{target}")
    container.docker("cp", f"c1:{target}/tree", str(tmp_path / "back"))
    back = tmp_path / "back"
    assert (back / "folder/file").read_text() == "content"
    assert (back / "folder/script").stat().st_mode & 0o777 == 0o755
    assert (back / "link").readlink() == Path("folder/file")
    assert (back / "hard").read_text() == "content"


def test_the_content_of_a_folder_is_merged_into_another(container: Daemon, tmp_path: Path) -> None:
    container.docker("cp", f"{tree(tmp_path)}/.", "c1:/etc")
    for dot in ("/etc/.", "/etc/./"):
        container.docker("cp", f"c1:{dot}", str(tmp_path / "etc"))
    assert (tmp_path / "etc/folder/file").exists()
    assert (tmp_path / "etc/passwd").exists()


def test_as_an_archive_on_the_standard_streams(container: Daemon) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        member = tarfile.TarInfo("made")
        member.size, member.uid, member.gid, member.mode = 4, 12, 34, 0o640
        tar.addfile(member, io.BytesIO(b"here"))
    container.docker("cp", "-", "c1:/root", input=archive.getvalue())
    out = container.docker("cp", "c1:/root/made", "-").stdout
    with tarfile.open(fileobj=io.BytesIO(out.encode())) as tar:
        made = tar.getmember("made")
        assert (made.uid, made.gid, made.mode) == (12, 34, 0o640)


def test_what_is_not_there_is_named(container: Daemon) -> None:
    done = container.docker("cp", "c1:/nope", "-", check=False)
    assert "Could not find the file /nope in container c1" in done.stderr


@pytest.mark.parametrize("path", ["/etc/passwd/", "/etc/passwd/.", "/etc/passwd/x"])
def test_a_file_is_no_folder(container: Daemon, path: str) -> None:
    done = container.docker("cp", f"c1:{path}", "-", check=False)
    assert done.stderr == f"Error response from daemon: lstat {path}: not a directory\n"


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/etc/passwd", 400, "extraction point is not a directory"),
        ("/etc/passwd/", 500, "lstat /etc/passwd/: not a directory"),
        ("/etc/passwd/x", 500, "not a directory"),
        ("/nope", 404, "Could not find the file /nope in container c1"),
        ("", 400, "bad parameter: pathcannot be empty"),
    ],
)
def test_only_a_folder_takes_files(container: Daemon, path: str, status: int, words: str) -> None:
    done = container.request("PUT", f"/containers/c1/archive?path={path}")
    assert (done[0], json.loads(done[1])["message"]) == (status, words)


def test_a_folder_is_not_replaced_by_a_file(container: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "etc"
    file.write_text("x")
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(file, "etc")
    done = container.docker("cp", "-", "c1:/", input=archive.getvalue(), check=False)
    assert 'cannot overwrite directory "etc" with non-directory "/"' in done.stderr


@pytest.mark.parametrize("name", ["../escaped", "a/../../escaped", "/../escaped"])
def test_an_archive_cannot_write_outside_its_folder(container: Daemon, name: str) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(tarfile.TarInfo(name))
    assert container.docker("cp", "-", "c1:/root", input=archive.getvalue(), check=False).returncode
    assert container.docker("cp", "c1:/escaped", "-", check=False).returncode


def test_a_link_in_the_container_leads_only_inside_it(container: Daemon, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        member = tarfile.TarInfo("out")
        member.type, member.linkname = tarfile.SYMTYPE, str(tmp_path)
        tar.addfile(member)
    container.docker("cp", "-", "c1:/root", input=archive.getvalue())
    assert container.docker("cp", "c1:/root/out/secret", "-", check=False).returncode
    container.docker("cp", str(secret), "c1:/root/out", check=False)
    assert list(tmp_path.iterdir()) == [secret]


def test_a_read_only_root_and_volume_are_respected(daemon: Daemon, tmp_path: Path) -> None:
    daemon.docker("create", "--name", "c1", "--read-only", "-v", "rw:/rw", "-v", "ro:/ro:ro", "busybox")
    file = tmp_path / "file"
    file.write_text("x")
    assert "container rootfs is marked read-only" in daemon.docker("cp", str(file), "c1:/root", check=False).stderr
    assert "mounted volume is marked read-only" in daemon.docker("cp", str(file), "c1:/ro", check=False).stderr
    daemon.docker("cp", str(file), "c1:/rw")
