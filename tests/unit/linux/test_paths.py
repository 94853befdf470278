"""Paths inside a hostile tree never lead out of it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from seacan.linux.paths import is_on, make_in_root, open_in_root


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    inside = tmp_path / "root"
    inside.mkdir()
    (tmp_path / "outside").mkdir()
    fd = os.open(inside, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def place(fd: int, tmp_path: Path) -> str:
    try:
        return os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), tmp_path)
    finally:
        os.close(fd)


@pytest.mark.parametrize("target", ["/outside", "../outside", "../../../../outside", "/../outside"])
def test_links_are_resolved_from_the_root(root: int, tmp_path: Path, target: str) -> None:
    (tmp_path / "root/link").symlink_to(target)
    assert place(make_in_root(root, "/link/new"), tmp_path) == "root/outside/new"
    assert list((tmp_path / "outside").iterdir()) == []
    assert place(open_in_root(root, "link"), tmp_path) == "root/outside"


def test_dots_stop_at_the_root(root: int, tmp_path: Path) -> None:
    assert place(make_in_root(root, "a/../../../b/./c"), tmp_path) == "root/b/c"


def test_a_file_is_made_where_a_dangling_link_points(root: int, tmp_path: Path) -> None:
    (tmp_path / "root/link").symlink_to("dir/file")
    assert place(make_in_root(root, "link", directory=False), tmp_path) == "root/dir/file"
    assert (tmp_path / "root/dir/file").is_file()


def test_what_exists_is_returned_as_it_is(root: int, tmp_path: Path) -> None:
    (tmp_path / "root/file").touch()
    assert place(make_in_root(root, "file", directory=True), tmp_path) == "root/file"


def test_links_in_a_circle_end(root: int, tmp_path: Path) -> None:
    (tmp_path / "root/a").symlink_to("b")
    (tmp_path / "root/b").symlink_to("a")
    with pytest.raises(OSError) as failure:
        make_in_root(root, "a/c")
    assert failure.value.errno == errno.ELOOP


def test_a_file_in_the_middle_is_refused(root: int, tmp_path: Path) -> None:
    (tmp_path / "root/file").touch()
    with pytest.raises(NotADirectoryError):
        make_in_root(root, "file/below")


def test_magic_links_are_not_followed() -> None:
    slash = os.open("/", os.O_PATH | os.O_DIRECTORY)
    try:
        with pytest.raises(OSError) as failure:
            open_in_root(slash, f"/proc/self/fd/{slash}/etc")
        assert failure.value.errno in (errno.ELOOP, errno.EXDEV)
    finally:
        os.close(slash)


def test_file_systems_are_told_apart(root: int) -> None:
    proc = os.open("/proc/self", os.O_PATH)
    try:
        assert is_on(proc, "proc")
        assert not is_on(root, "proc")
    finally:
        os.close(proc)
