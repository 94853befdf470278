"""Git sources of a build: names that are options, repositories that are traps."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from seacan.build import remote
from seacan.build.graph import GitSource
from seacan.build.sources import http_filename
from seacan.errors import InvalidParameter

GIT = shutil.which("git")
needs_git = pytest.mark.skipif(GIT is None, reason="no git on the PATH")


def git(folder: Path, *words: str) -> str:
    assert GIT is not None
    names = {f"GIT_{who}_{what}": "x@y" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = {**os.environ, **names, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
    return subprocess.run(
        [GIT, "-C", str(folder), *words], check=True, capture_output=True, text=True, env=environment
    ).stdout.strip()


@needs_git
@pytest.mark.parametrize(
    ("repository", "reference"),
    [
        ("--upload-pack=touch {mark}", ""),
        ("-u touch {mark}", "main"),
        ("https://localhost:1/a.git", "--upload-pack=touch {mark}"),
        ("ext::sh -c touch% {mark}", ""),
        ("fd::17", ""),
        ("file://{folder}", ""),
        ("{folder}", ""),
    ],
)
async def test_a_name_is_no_option_and_no_command(tmp_path: Path, repository: str, reference: str) -> None:
    """CVE-2019-13139, and git's own transports that run commands or read the host's files (CVE-2022-39253)."""
    mark, folder = tmp_path / "mark", tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q")
    git(folder, "commit", "-q", "--allow-empty", "-m", "x")
    names = {"mark": str(mark), "folder": str(folder)}
    assert GIT is not None
    with pytest.raises(InvalidParameter):
        await remote.resolve_git(GIT, repository.format(**names), reference.format(**names))
    assert not mark.exists()


@needs_git
@pytest.mark.parametrize("subfolder", ["link", "../outside", "/etc", "folder/../../outside"])
async def test_a_subfolder_is_one_of_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subfolder: str
) -> None:
    repository, outside = tmp_path / "repository", tmp_path / "outside"
    for folder in (repository, outside, tmp_path / "path", tmp_path / "work"):
        folder.mkdir()
    (outside / "secret").write_text("of the host")
    git(repository, "init", "-q")
    (repository / "link").symlink_to(outside)
    (repository / "folder").mkdir()
    (repository / "folder/file").write_text("x")
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "x")
    commit = git(repository, "rev-parse", "HEAD")
    run = remote._git

    async def local(program: str, arguments: list[str], folder: str | None) -> str:
        """As the engine runs it, but that this repository may be on this disk."""
        monkeypatch.setitem(remote._GIT_ENVIRONMENT, "GIT_ALLOW_PROTOCOL", "file")
        return await run(program, ["-c", "protocol.file.allow=always", *arguments], folder)

    monkeypatch.setattr(remote, "_git", local)
    source = GitSource(f"file://{repository}", commit, subfolder)
    assert GIT is not None
    with pytest.raises(InvalidParameter):
        await remote._check_out(GIT, source, commit, str(tmp_path / "path"), str(tmp_path / "work"))
    assert os.listdir(tmp_path / "path") == []
    assert (outside / "secret").exists()


@pytest.mark.parametrize(
    "url",
    ["http://a/..", "http://a/.", "http://a/b/../..", "http://a", "http://a/?x=/../y", "http://a/%2e%2e%2fx"],
)
def test_a_fetched_file_has_a_name_and_not_a_path(url: str) -> None:
    name = http_filename(url)
    assert name not in ("", ".", "..")
    assert "/" not in name
