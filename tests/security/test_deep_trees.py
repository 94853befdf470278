"""Folders nested deeper than paths, stacks and descriptors go: any container can leave some behind."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from seacan.storage import tree, walk
from seacan.storage.snapshots import Usage

DEPTH = 3000


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    top = tmp_path / "deep"
    top.mkdir()
    here = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(DEPTH):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=here))
    os.truncate(f"/proc/self/fd/{here}/file", 1234)
    os.close(here)
    yield top
    subprocess.run(["rm", "-rf", str(top)], check=True)  # pytest's own cleaning recurses


def test_they_are_measured_and_deleted(deep: Path) -> None:
    assert tree.size(str(deep)) == 1234
    tree.remove(str(deep))
    assert not deep.exists()


def test_a_link_is_deleted_and_what_it_names_is_not(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_text("x")
    (tmp_path / "tree/inner").mkdir(parents=True)
    (tmp_path / "tree/inner/link").symlink_to(tmp_path / "outside")
    tree.remove(str(tmp_path / "tree"))
    assert (tmp_path / "outside/file").exists()
    assert not (tmp_path / "tree").exists()


def test_what_is_not_there_weighs_nothing(tmp_path: Path) -> None:
    assert tree.size(str(tmp_path / "nosuch")) == 0
    tree.remove(str(tmp_path / "nosuch"))


def test_a_container_that_has_them_does_not_keep_others_from_being_listed(deep: Path) -> None:
    """One RecursionError would be the answer to every `docker ps --size` and `docker system df`."""
    assert walk.usage(deep) == Usage(1234, DEPTH + 2)
    tree.remove(str(deep))


def test_nor_one_that_moves_them_about(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"tree/{number}/a/b/c").mkdir(parents=True)
    (tmp_path / "aside").mkdir()
    ended = threading.Event()

    def move() -> None:
        while not ended.is_set():
            for number in range(20):
                os.rename(tmp_path / f"tree/{number}/a/b", tmp_path / f"aside/{number}")
                os.rename(tmp_path / f"aside/{number}", tmp_path / f"tree/{number}/a/b")

    mover = threading.Thread(target=move)
    mover.start()
    try:
        for _ in range(200):
            assert walk.usage(tmp_path / "tree").size == 0
    finally:
        ended.set()
        mover.join()
