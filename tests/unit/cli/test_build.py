"""The context that ``seacan build`` sends."""

from __future__ import annotations

import io
import socket
import tarfile
from pathlib import Path

import pytest

from seacan.cli.build import _is_archive, annotation, output, pack, unpack
from seacan.cli.buildsession import secret
from seacan.errors import InvalidParameter


def packed(folder: Path, dockerfile: str = "") -> tuple[str, dict[str, tarfile.TarInfo]]:
    spool = io.BytesIO()
    name = pack(str(folder), dockerfile, spool)
    spool.seek(0)
    with tarfile.open(fileobj=spool) as tar:
        return name, {member.name: member for member in tar}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    context = tmp_path / "context"
    (context / "sub").mkdir(parents=True)
    (context / "Dockerfile").write_text("FROM scratch")
    (context / "a.log").write_text("a")
    (context / "sub" / "b.log").write_text("b")
    (context / "sub" / "keep.log").write_text("c")
    (context / "link").symlink_to("sub/b.log")
    return context


def test_everything_is_sent_as_roots(folder: Path) -> None:
    name, members = packed(folder)
    assert name == "Dockerfile"
    assert set(members) == {"Dockerfile", "a.log", "link", "sub", "sub/b.log", "sub/keep.log"}
    assert members["link"].issym() and members["link"].linkname == "sub/b.log"
    assert {(member.uid, member.gid, member.uname) for member in members.values()} == {(0, 0, "")}


def test_what_dockerignore_names_is_left_out_but_for_the_dockerfile(folder: Path) -> None:
    (folder / ".dockerignore").write_text("**/*.log\n!sub/keep.log\nDockerfile\nlink\n")
    assert set(packed(folder)[1]) == {".dockerignore", "Dockerfile", "sub", "sub/keep.log"}


def test_a_dockerfile_may_have_an_ignore_file_of_its_own(folder: Path) -> None:
    (folder / "other").write_text("FROM scratch")
    (folder / "other.dockerignore").write_text("*\n")
    name, members = packed(folder, str(folder / "other"))
    assert name == "other"
    assert set(members) == {"other"}


def test_a_dockerfile_outside_goes_along(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "Outside"
    outside.write_text("FROM busybox")
    name, members = packed(folder, str(outside))
    assert name.startswith(".dockerfile.")
    assert members[name].size == len("FROM busybox")


def test_sockets_are_left_out(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(folder / "sock"))
        assert "sock" not in packed(folder)[1]


def test_a_missing_dockerfile_is_an_error(folder: Path) -> None:
    (folder / "Dockerfile").unlink()
    with pytest.raises(InvalidParameter, match="unable to prepare context"):
        packed(folder)
    with pytest.raises(InvalidParameter, match="unable to prepare context"):
        packed(folder, "/no/such/file")


def test_archives_on_standard_input_are_told_from_dockerfiles() -> None:
    assert _is_archive(b"\x1f\x8b\x08")
    assert _is_archive(b"\0" * 257 + b"ustar\0")
    assert not _is_archive(b"FROM busybox\n")


def test_secrets_come_from_files_and_variables(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"from a file")
    environment = {"NAME": "from a variable", "same": "by its ID"}
    assert secret(f"id=a,src={tmp_path / 'file'}", environment) == ("a", b"from a file")
    assert secret("id=b,env=NAME", environment) == ("b", b"from a variable")
    assert secret("type=env,id=same", environment) == ("same", b"by its ID")
    for text in ("src=x", "id=c,env=MISSING", "id=d,src=/nonexistent/file", "id=e,what=x"):
        with pytest.raises(InvalidParameter):
            secret(text, environment)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("folder", {"type": "local", "dest": "folder"}),
        ("-", {"type": "tar", "dest": "-"}),
        ("type=oci,dest=a.tar", {"type": "oci", "dest": "a.tar"}),
    ],
)
def test_outputs(text: str, meant: dict[str, str]) -> None:
    assert output(text) == meant


@pytest.mark.parametrize(
    ("text", "attribute"),
    [
        ("a=b", ("annotation.a", "b")),
        ("index:a=b", ("annotation-index.a", "b")),
        ("manifest[linux/arm64]:a=b", ("annotation-manifest[linux/arm64].a", "b")),
        ("org:a=b:c", ("annotation.org:a", "b:c")),
    ],
)
def test_annotations(text: str, attribute: tuple[str, str]) -> None:
    assert annotation(text) == attribute


def test_a_result_does_not_leave_its_folder(tmp_path: Path) -> None:
    spool = io.BytesIO()
    with tarfile.open(fileobj=spool, mode="w") as tar:
        link = tarfile.TarInfo("up")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
        tar.addfile(link)
        member = tarfile.TarInfo("up/stolen")
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))
    with pytest.raises(tarfile.FilterError):
        unpack(spool, str(tmp_path / "out"))
    assert not (tmp_path / "stolen").exists()
