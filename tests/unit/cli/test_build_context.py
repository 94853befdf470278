"""Which files of a context are sent: ignore files, the paths that are asked for, links, depth."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from seacan.cli.context import walk
from tests.trees import nest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a/b/c.txt", "a/other", "docs/one.md", "docs/two.md", "top.txt", ".hidden"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path


def test_all_is_sent_parents_first_and_in_order(folder: Path) -> None:
    assert list(walk(str(folder))) == [
        ".hidden", "a", "a/b", "a/b/c.txt", "a/other", "docs", "docs/one.md", "docs/two.md", "top.txt",
    ]  # fmt: skip


def test_what_is_ignored_is_not_sent_but_for_what_is_brought_back(folder: Path) -> None:
    assert list(walk(str(folder), ["a", "docs", "!docs/two.md", ".*"])) == ["docs/two.md", "top.txt"]


@pytest.mark.parametrize(
    ("follow", "sent"),
    [
        (["top.txt"], ["top.txt"]),
        (["a/b"], ["a", "a/b", "a/b/c.txt"]),
        (["docs/*.md", "nosuch"], ["docs", "docs/one.md", "docs/two.md"]),
        (["../../top.txt"], ["top.txt"]),
        (["link"], ["a", "a/b", "a/b/c.txt", "link"]),
        (["link/c.txt"], ["a", "a/b", "a/b/c.txt", "link"]),
        (["round"], ["round"]),
    ],
)
def test_only_what_is_asked_for_is_sent_and_where_links_lead(folder: Path, follow: list[str], sent: list[str]) -> None:
    (folder / "link").symlink_to("a/b")
    (folder / "round").symlink_to("round")
    assert list(walk(str(folder), (), follow)) == sent


def test_a_link_does_not_lead_out_of_the_context(folder: Path) -> None:
    (folder / "out").symlink_to("../../../etc/passwd")
    assert list(walk(str(folder), (), ["out"])) == ["out"]


def test_a_tree_is_walked_however_deep_it_is(tmp_path: Path) -> None:
    nest(tmp_path, 1500)
    assert len(list(walk(str(tmp_path)))) == 1500
    subprocess.run(["rm", "-r", str(tmp_path / "d")], check=True)  # pytest cannot
