"""What COPY and ADD do to files, as root, in folders of the test's own."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from seacan.build import files
from seacan.build.files import (
    ChecksumRequest,
    ClampRequest,
    CopyAction,
    FilesRequest,
    FolderAction,
    Missing,
    SourceRoot,
    SquashRequest,
    parse_mode,
)
from seacan.errors import InvalidParameter
from seacan.runtime.bundle import DirectoryRoot

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="changes owners and mounts overlays: needs root")


class Place:
    """A base layer, a context, and the layer that is being made."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("base", "context", "upper", "work"):
            (root / name).mkdir(mode=0o755)
        self.base, self.context, self.upper = root / "base", root / "context", root / "upper"
        (self.base / "etc").mkdir()
        (self.base / "etc/passwd").write_text("root:x:0:0::/:\nbob:x:7:8::/home/bob:/bin/sh\n")
        (self.base / "etc/group").write_text("root:x:0:\nstaff:x:50:bob\n")

    def source(self, *, links: bool = False) -> SourceRoot:
        return SourceRoot(
            DirectoryRoot(str(self.context)), str(self.root / "index"), str(self.root / "links") if links else ""
        )

    def run(self, *actions: CopyAction | FolderAction, links: bool = False, **more: object) -> None:
        request = FilesRequest(
            (str(self.base),), str(self.upper), str(self.root / "work"), (self.source(links=links),), actions,
            **more,  # type: ignore[arg-type]
        )  # fmt: skip
        _in_child(lambda: files._work(request, ()))

    def checksum(self, action: CopyAction) -> str:
        return files._checksum(ChecksumRequest(self.source(), action), ()).digest

    def tree(self) -> list[str]:
        return sorted(str(path.relative_to(self.upper)) for path in self.upper.rglob("*"))


def _in_child(work: Callable[[], object]) -> None:
    """Workers may change their own limits and leave descriptors open; give each a process, as in life."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        kind, text = b"", ""
        try:
            work()
        except (InvalidParameter, OSError) as error:
            kind, text = type(error).__name__.encode(), str(error)
        finally:
            os.write(writer, kind + b"\0" + text.encode())
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        name, _, message = pipe.read().decode().partition("\0")
    os.waitpid(pid, 0)
    if name == "Missing":
        raise Missing(message)
    if name:
        raise InvalidParameter(message)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_folder_s_contents_go_into_the_destination(place: Place) -> None:
    (place.context / "a/b").mkdir(parents=True)
    (place.context / "a/b/f").write_text("x")
    (place.context / "top").write_text("y")
    place.run(CopyAction(0, ".", "/app/"))
    assert place.tree() == ["app", "app/a", "app/a/b", "app/a/b/f", "app/top"]


def test_a_file_goes_into_an_existing_folder_or_gets_the_name(place: Place) -> None:
    (place.context / "f").write_text("x")
    (place.base / "there").mkdir()
    place.run(CopyAction(0, "f", "/there"), CopyAction(0, "f", "/new/name"), CopyAction(0, "f", "/folder/"))
    assert place.tree() == ["folder", "folder/f", "new", "new/name", "there", "there/f"]


def test_mode_owner_time_and_attributes_are_kept(place: Place) -> None:
    path = place.context / "f"
    path.write_text("x")
    path.chmod(0o4750)
    os.utime(path, ns=(10**18, 10**18))
    os.setxattr(path, "user.note", b"n")
    place.run(CopyAction(0, "f", "/f"))
    info = (place.upper / "f").stat()
    assert (stat.S_IMODE(info.st_mode), info.st_mtime_ns) == (0o4750, 10**18)
    assert os.getxattr(place.upper / "f", "user.note") == b"n"


@pytest.mark.parametrize(
    ("owner", "ids"),
    [("bob", (7, 8)), ("bob:staff", (7, 50)), ("12", (12, 12)), ("12:34", (12, 34)), (":staff", (0, 50))],
)
def test_owners_are_looked_up_in_the_base(place: Place, owner: str, ids: tuple[int, int]) -> None:
    (place.context / "f").write_text("x")
    place.run(CopyAction(0, "f", "/d/f", owner=owner))
    for path in (place.upper / "d/f", place.upper / "d"):
        assert (path.stat().st_uid, path.stat().st_gid) == ids


@pytest.mark.parametrize("owner", ["eve", "eve:staff", "bob:nosuch"])
def test_an_owner_the_base_does_not_know_is_root_or_for_classic_builds_an_error(place: Place, owner: str) -> None:
    (place.context / "f").write_text("x")
    with pytest.raises(InvalidParameter, match=r"no such (user: eve|group: nosuch)"):
        place.run(CopyAction(0, "f", "/f", owner=owner), classic=True)
    place.run(CopyAction(0, "f", "/f", owner=owner))
    known = {"eve": (0, 0), "eve:staff": (0, 50), "bob:nosuch": (7, 8)}
    assert ((place.upper / "f").stat().st_uid, (place.upper / "f").stat().st_gid) == known[owner]


def test_a_link_to_what_is_not_there_is_followed(place: Place, tmp_path: Path) -> None:
    (place.context / "f").write_text("x")
    (place.base / "dangling").symlink_to("/no/where")
    (place.base / "up").symlink_to("../../../../up2")
    (place.base / "up2").symlink_to("d/e")
    (place.base / "loop").symlink_to("loop")
    place.run(CopyAction(0, "f", "/dangling"), CopyAction(0, "f", "/up"))
    assert (place.upper / "no/where").read_text() == (place.upper / "d/e").read_text() == "x"
    assert not (place.upper / "dangling").exists()
    with pytest.raises(InvalidParameter, match="Too many levels"):
        place.run(CopyAction(0, "f", "/loop"))


@pytest.mark.parametrize(
    ("mode", "before", "after"),
    [
        ("644", 0o777, 0o644),
        ("u+x", 0o644, 0o744),
        ("go=r,u=rwx", 0o600, 0o744),
        ("a-w", 0o666, 0o444),
        ("+X", 0o644, 0o644),
        ("+X", 0o744, 0o755),
        ("g=u", 0o750, 0o770),
        ("u+s,+t", 0o755, 0o5755),
    ],
)
def test_modes_in_octal_and_in_symbols(mode: str, before: int, after: int) -> None:
    change = parse_mode(mode)
    assert change is not None
    assert change(stat.S_IFREG | before) == after


@pytest.mark.parametrize("mode", ["9", "789", "\N{FULLWIDTH DIGIT SEVEN}", "u", "u+y"])
def test_what_is_no_mode_is_refused(mode: str) -> None:
    with pytest.raises(InvalidParameter, match="invalid mode"):
        parse_mode(mode)


def test_existing_files_are_replaced_and_folders_merged(place: Place) -> None:
    (place.base / "app/keep").mkdir(parents=True)
    (place.base / "app/f").write_text("old")
    (place.context / "app/keep").mkdir(parents=True)
    (place.context / "app/f").write_text("new")
    (place.context / "app/keep/g").write_text("g")
    place.run(CopyAction(0, "app", "/app"))
    assert (place.upper / "app/f").read_text() == "new"
    assert (place.upper / "app/keep/g").read_text() == "g"


def test_a_folder_does_not_give_way_to_a_file(place: Place) -> None:
    (place.base / "d/f").mkdir(parents=True)
    (place.context / "f").write_text("x")
    with pytest.raises(InvalidParameter, match="cannot replace to directory /d/f with file"):
        place.run(CopyAction(0, "f", "/d/"))


def test_wildcards_select_and_patterns_exclude(place: Place) -> None:
    for name in ("a.txt", "b.txt", "c.log", "sub/d.txt"):
        (place.context / name).parent.mkdir(exist_ok=True)
        (place.context / name).write_text(name)
    place.run(CopyAction(0, "*.txt", "/w/"), CopyAction(0, ".", "/x/", exclude=("**/*.txt", "!b.txt")))
    assert place.tree() == ["w", "w/a.txt", "w/b.txt", "x", "x/b.txt", "x/c.log", "x/sub"]


def test_parents_are_made_only_for_what_is_wanted(place: Place) -> None:
    (place.context / "a/b").mkdir(parents=True)
    (place.context / "a/b/f").write_text("x")
    (place.context / "z").mkdir()
    place.run(CopyAction(0, "/", "/p/", include=("a/b/f",), required=("/a/b/f",)))
    assert place.tree() == ["p", "p/a", "p/a/b", "p/a/b/f"]
    with pytest.raises(Missing, match='"/a/nope": not found'):
        place.run(CopyAction(0, "/", "/q/", include=("a/nope",), required=("/a/nope",)))


def test_what_is_not_there_is_said_in_both_builders_words(place: Place) -> None:
    with pytest.raises(Missing, match='"/nope": not found'):
        place.run(CopyAction(0, "nope", "/"))
    with pytest.raises(Missing, match=r"file not found in build context or excluded by \.dockerignore: stat nope"):
        place.run(CopyAction(0, "nope", "/"), classic=True)


def test_archives_are_unpacked_by_add_whatever_their_compression(place: Place) -> None:
    (place.context / "in").mkdir()
    (place.context / "in/f").write_text("x")
    for flag, name in (("-z", "a.tgz"), ("-J", "a.txz"), ("", "a.tar")):
        subprocess.run(
            ["tar", "-C", place.context, "-c", *([flag] if flag else []), "-f", place.context / name, "in"], check=True
        )
        place.run(CopyAction(0, name, f"/{name}.d/", unpack=True))
        assert (place.upper / f"{name}.d/in/f").read_text() == "x"
    (place.context / "plain").write_text("no archive")
    place.run(CopyAction(0, "plain", "/plain", unpack=True))
    assert (place.upper / "plain").read_text() == "no archive"


def test_links_of_the_context_lead_nowhere_outside(place: Place, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    (place.context / "out").symlink_to(tmp_path / "secret")
    (place.context / "up").symlink_to("../secret")
    for name in ("out", "up"):
        with pytest.raises(Missing):
            place.run(CopyAction(0, name, "/x"))
    place.run(CopyAction(0, ".", "/all/"))
    assert os.readlink(place.upper / "all/out") == str(tmp_path / "secret")


def test_links_of_the_base_lead_nowhere_outside(place: Place, tmp_path: Path) -> None:
    (tmp_path / "host").mkdir()
    (place.base / "evil").symlink_to(tmp_path / "host")
    (place.base / "up").symlink_to("../../../../../../../../tmp")
    (place.context / "f").write_text("x")
    place.run(CopyAction(0, "f", "/evil/f"), CopyAction(0, "f", "/up/g"), FolderAction("/evil/sub"))
    assert list((tmp_path / "host").iterdir()) == []
    assert (place.upper / str(tmp_path).lstrip("/") / "host/f").read_text() == "x"
    assert (place.upper / "tmp/g").read_text() == "x"


@pytest.mark.parametrize("name", ["../evil", "a/../../evil"])
def test_archives_cannot_write_outside_the_destination(place: Place, tmp_path: Path, name: str) -> None:
    with tarfile.open(place.context / "a.tar", "w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = 1
        archive.addfile(entry, io.BytesIO(b"x"))
    with pytest.raises(InvalidParameter, match="leads out of the destination"):
        place.run(CopyAction(0, "a.tar", "/d/", unpack=True))
    assert not (tmp_path / "evil").exists()


def test_archives_cannot_write_through_their_own_links(place: Place, tmp_path: Path) -> None:
    (tmp_path / "host").mkdir()
    with tarfile.open(place.context / "a.tar", "w") as archive:
        link = tarfile.TarInfo("l")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "host")
        archive.addfile(link)
        entry = tarfile.TarInfo("l/f")
        entry.size = 1
        archive.addfile(entry, io.BytesIO(b"x"))
    with pytest.raises(InvalidParameter):
        place.run(CopyAction(0, "a.tar", "/d/", unpack=True))
    assert list((tmp_path / "host").iterdir()) == []


def test_the_digest_is_of_content_and_not_of_times(place: Place) -> None:
    action = CopyAction(0, ".", "/")
    (place.context / "d").mkdir()
    (place.context / "d/f").write_text("x")
    first = place.checksum(action)
    os.utime(place.context / "d/f", ns=(1, 1))
    os.utime(place.context / "d", ns=(1, 1))
    assert place.checksum(action) == first


@pytest.mark.parametrize("change", ["content", "mode", "name", "kind", "xattr", "owner"])
def test_the_digest_changes_with_what_is_copied(place: Place, change: str) -> None:
    action = CopyAction(0, ".", "/")
    path = place.context / "f"
    path.write_text("x")
    before = place.checksum(action)
    if change == "content":
        path.unlink()
        path.write_text("y")
    elif change == "mode":
        path.chmod(0o600)
    elif change == "name":
        path.rename(place.context / "g")
    elif change == "kind":
        path.unlink()
        path.symlink_to("x")
    elif change == "xattr":
        os.setxattr(path, "user.a", b"b")
    else:
        os.chown(path, 1, 1)
    assert place.checksum(action) != before


def test_the_digest_leaves_out_what_is_not_copied(place: Place) -> None:
    (place.context / "f").write_text("x")
    action = CopyAction(0, ".", "/", exclude=("*.log",))
    before = place.checksum(action)
    (place.context / "a.log").write_text("noise")
    assert place.checksum(action) == before


def test_context_files_are_linked_into_one_layer_of_a_stack_only(place: Place, tmp_path: Path) -> None:
    (place.context / "f").write_text("x")
    place.run(CopyAction(0, ".", "/a/"), links=True)
    assert (place.upper / "a/f").stat().st_ino == (place.context / "f").stat().st_ino
    below, place.upper = place.upper, tmp_path / "next"
    place.upper.mkdir()
    (tmp_path / "work2").mkdir()
    request = FilesRequest(
        (str(below), str(place.base)), str(place.upper), str(tmp_path / "work2"), (place.source(links=True),),
        (CopyAction(0, ".", "/b/"),),
    )  # fmt: skip
    _in_child(lambda: files._work(request, ()))
    assert (place.upper / "b/f").stat().st_ino != (place.context / "f").stat().st_ino
    assert (place.upper / "b/f").read_text() == "x"


def test_hard_links_of_the_source_stay_hard_links(place: Place) -> None:
    (place.context / "f").write_text("x")
    os.link(place.context / "f", place.context / "g")
    place.run(CopyAction(0, ".", "/d/"))
    assert (place.upper / "d/f").stat().st_ino == (place.upper / "d/g").stat().st_ino


def test_sparse_files_stay_sparse(place: Place) -> None:
    with (place.context / "f").open("wb") as file:
        file.seek(64 << 20)
        file.write(b"end")
    place.run(CopyAction(0, "f", "/f"))
    info = (place.upper / "f").stat()
    assert info.st_size == (64 << 20) + 3
    assert info.st_blocks * 512 < 1 << 20
    assert (place.upper / "f").read_bytes()[-3:] == b"end"


def test_no_time_lies_beyond_the_epoch(place: Place) -> None:
    (place.context / "f").write_text("x")
    os.utime(place.context / "f", ns=(10**17, 10**17))
    place.run(CopyAction(0, "f", "/d/f"), epoch=1000)
    files._clamp(ClampRequest(str(place.upper), 1000), ())
    assert all(path.lstat().st_mtime_ns <= 1000 * 10**9 for path in [place.upper, *place.upper.rglob("*")])


def test_squashing_keeps_what_the_layers_together_say(tmp_path: Path) -> None:
    one, two, target = tmp_path / "1", tmp_path / "2", tmp_path / "t"
    for folder in (one, two, target):
        folder.mkdir()
    (one / "d").mkdir()
    (one / "d/f").write_text("1")
    (one / "gone").write_text("1")
    (two / "d").mkdir()
    (two / "d/g").write_text("2")
    os.mknod(two / "gone", stat.S_IFCHR, os.makedev(0, 0))
    os.mknod(two / "lower", stat.S_IFCHR, os.makedev(0, 0))
    files._squash(SquashRequest((str(one), str(two)), str(target)), ())
    assert sorted(os.listdir(target)) == ["d", "gone", "lower"]
    assert sorted(os.listdir(target / "d")) == ["f", "g"]
    assert stat.S_ISCHR((target / "gone").lstat().st_mode)
