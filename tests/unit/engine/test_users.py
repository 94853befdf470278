from pathlib import Path

import pytest

from seacan.engine import users
from seacan.errors import InvalidParameter, System
from seacan.runtime.bundle import DirectoryRoot, Rootfs

PASSWD = """\
# comment
root:x:0:0:root:/root:/bin/sh
www:x:33:33::/var/www:/bin/sh
  spaced:x:40:41::/home/spaced:
twice:x:50:50::/first:
twice:x:51:51::/second:
short:x:60
huge:x:4294967296:1::/:
"""
GROUP = "root:x:0:\nwww:x:33:\nextra:x:44:www,other\nmore:x:45:www\n1234:x:77:\n"


@pytest.fixture
def rootfs(tmp_path: Path) -> Rootfs:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(PASSWD)
    (tmp_path / "etc/group").write_text(GROUP)
    return DirectoryRoot(str(tmp_path))


@pytest.mark.parametrize(
    ("user", "uid", "gid", "groups"),
    [
        ("", 0, 0, ()),
        ("root", 0, 0, ()),
        ("www", 33, 33, (44, 45)),
        ("33", 33, 33, (44, 45)),
        ("www:extra", 33, 44, ()),
        ("www:9", 33, 9, ()),
        ("1000", 1000, 0, ()),
        ("1000:1000", 1000, 1000, ()),
        (":44", 0, 44, ()),
        ("spaced", 40, 41, ()),
        ("twice", 50, 50, ()),
        ("short", 60, 0, ()),
    ],
)
def test_a_user_is_resolved_as_dockerd_does(
    rootfs: Rootfs, user: str, uid: int, gid: int, groups: tuple[int, ...]
) -> None:
    found = users.resolve(user, rootfs)
    assert (found.uid, found.gid, found.groups) == (uid, gid, groups)


def test_its_own_group_is_the_first_of_the_additional_ones(rootfs: Rootfs) -> None:
    assert users.resolve("www", rootfs, ["99", "extra"]).user().additional_gids == [33, 44, 45, 99]


def test_a_number_is_never_a_name(rootfs: Rootfs) -> None:
    assert users.resolve("0:1234", rootfs).gid == 1234


@pytest.mark.parametrize(
    ("user", "groups", "words"),
    [
        ("nobody", [], "unable to find user nobody: no matching entries in passwd file"),
        ("root:nogroup", [], "unable to find group nogroup: no matching entries in group file"),
        ("root", ["nogroup"], "unable to find group nogroup: no matching entries in group file"),
        ("-1", [], "uids and gids must be in range 0-2147483647"),
        ("2147483648", [], "uids and gids must be in range 0-2147483647"),
        ("0:99999999999999999999", [], "uids and gids must be in range 0-2147483647"),
        ("huge", [], "uids and gids must be in range 0-2147483647"),
        ("½", [], "unable to find user ½"),
    ],
)
def test_what_the_image_does_not_know_is_refused(rootfs: Rootfs, user: str, groups: list[str], words: str) -> None:
    with pytest.raises(InvalidParameter, match=words):
        users.resolve(user, rootfs, groups)


def test_an_image_without_accounts_runs_as_numbers(tmp_path: Path) -> None:
    assert users.resolve("", DirectoryRoot(str(tmp_path))).uid == 0
    assert users.resolve("5:6", DirectoryRoot(str(tmp_path))).gid == 6


def test_an_absurdly_large_file_is_not_read(tmp_path: Path, rootfs: Rootfs) -> None:
    with (tmp_path / "etc/passwd").open("wb") as file:
        file.truncate(users.MAXIMUM_FILE + 1)
    with pytest.raises(System, match="too large"):
        users.resolve("root", rootfs)
