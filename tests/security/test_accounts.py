"""Who a container runs as is looked up in files that the image's author wrote."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from seacan.engine import users
from seacan.errors import InvalidParameter
from seacan.runtime.bundle import DirectoryRoot, OverlayRoot


@pytest.fixture
def image(tmp_path: Path) -> Path:
    folder = tmp_path / "image"
    (folder / "etc").mkdir(parents=True)
    return folder


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A passwd file of the host, in reach of the image by path alone."""
    file = tmp_path / "outside"
    file.write_text("victim:x:777:777::/:\n")
    return file


@pytest.mark.parametrize("style", ["absolute", "relative", "folder"])
def test_a_link_does_not_reach_the_hosts_accounts(image: Path, outside: Path, style: str) -> None:
    if style == "absolute":
        (image / "etc/passwd").symlink_to(outside)
    elif style == "relative":
        (image / "etc/passwd").symlink_to("../" * 30 + str(outside).lstrip("/"))
    else:
        (image / "etc").rmdir()
        (image / "etc").symlink_to(outside.parent)
        outside.rename(outside.parent / "passwd")
    with pytest.raises(InvalidParameter, match="unable to find user victim"):
        users.resolve("victim", DirectoryRoot(str(image)))


def test_a_chain_of_links_has_an_end(image: Path) -> None:
    (image / "etc/passwd").symlink_to("group")
    (image / "etc/group").symlink_to("passwd")
    assert users.resolve("", OverlayRoot(lower=(str(image),))).uid == 0


def test_a_pipe_does_not_make_the_engine_wait(image: Path) -> None:
    os.mkfifo(image / "etc/passwd")
    assert users.resolve("", DirectoryRoot(str(image))).uid == 0


def test_a_device_is_not_opened(image: Path) -> None:
    try:
        os.mknod(image / "etc/passwd", 0o20666, os.makedev(1, 5))  # /dev/zero, which never ends
    except PermissionError as error:
        pytest.skip(f"cannot make device nodes: {error}")
    assert users.resolve("", DirectoryRoot(str(image))).uid == 0


def test_a_file_of_garbage_is_no_obstacle(image: Path) -> None:
    (image / "etc/passwd").write_bytes(os.urandom(4096) + b"\n::::\nx\n:" + b"a:" * 10000 + b"\nme:x:5:6::/:\n")
    assert users.resolve("me", DirectoryRoot(str(image))).uid == 5


def test_an_entry_cannot_make_a_uid_wrap_around_to_root(image: Path) -> None:
    (image / "etc/passwd").write_text("me:x:4294967296:4294967296::/:\n")
    with pytest.raises(InvalidParameter, match="must be in range"):
        users.resolve("me", DirectoryRoot(str(image)))
