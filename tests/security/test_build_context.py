"""Build contexts whose links lead to the host: what the engine does to a context, it does inside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from seacan.build import context


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of the host with a file; the context has one of the same path."""
    folder = tmp_path / "host"
    folder.mkdir()
    (folder / "victim").write_text("FROM host")
    return folder


@pytest.fixture
def folder(tmp_path: Path, outside: Path) -> Path:
    path = tmp_path / "context"
    inside = path / str(outside).lstrip("/")
    inside.mkdir(parents=True)
    (inside / "victim").write_text("FROM context")
    (path / "link").symlink_to(outside)
    (path / "up").symlink_to("../host")
    return path


@pytest.mark.parametrize("name", ["link/victim", "up/victim"])
def test_the_dockerfile_is_read_inside(folder: Path, name: str) -> None:
    found = context.read_file(str(folder), name, 1 << 20)
    assert found == (b"FROM context" if name.startswith("link") else None)


@pytest.mark.parametrize("name", ["link/victim", "up/victim"])
def test_an_ignored_dockerfile_is_removed_inside(folder: Path, outside: Path, name: str) -> None:
    context.remove_ignored(str(folder), ["*", "**/victim", "link/*"], (name, ".dockerignore"))
    assert (outside / "victim").read_text() == "FROM host"
    if name.startswith("link"):
        assert not (folder / str(outside).lstrip("/") / "victim").exists()


def test_a_link_is_not_removed_for_what_it_names(folder: Path, outside: Path) -> None:
    (folder / "Dockerfile").symlink_to(outside / "victim")
    context.remove_ignored(str(folder), ["Dockerfile"], ("Dockerfile",))
    assert (outside / "victim").exists()
    assert (folder / "Dockerfile").is_symlink()


def test_ignored_files_are_removed_and_others_stay(folder: Path) -> None:
    for name in ("Dockerfile", ".dockerignore"):
        (folder / name).write_text("x")
    context.remove_ignored(str(folder), ["Dockerfile"], ("Dockerfile", ".dockerignore", "missing/Dockerfile"))
    assert not (folder / "Dockerfile").exists()
    assert (folder / ".dockerignore").exists()
