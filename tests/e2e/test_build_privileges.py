"""Dockerfiles and base images as the attacker: what a build's steps may, and where their mounts lead."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.hosts import Daemon


def build(
    daemon: Daemon, folder: Path, dockerfile: str, *arguments: str, check: bool = False
) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    (folder / "Dockerfile").write_text(dockerfile)
    return daemon.docker("build", "--no-cache", *arguments, str(folder), check=check)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("RUN --security=insecure true", "security.insecure is not allowed"),
        ("RUN --network=host true", "network.host is not allowed"),
    ],
)
def test_a_step_gets_no_more_than_the_client_allows(daemon: Daemon, tmp_path: Path, line: str, wanted: str) -> None:
    """CVE-2024-23653."""
    done = build(daemon, tmp_path, f"FROM busybox\n{line}\n")
    assert done.returncode != 0
    assert wanted in done.stdout + done.stderr


def test_nor_does_what_a_base_image_has_its_children_do(daemon: Daemon, tmp_path: Path) -> None:
    build(daemon, tmp_path, "FROM busybox\nONBUILD RUN --security=insecure true\n", "-t", "trap", check=True)
    done = build(daemon, tmp_path, "FROM trap\n")
    assert done.returncode != 0
    assert "security.insecure is not allowed" in done.stdout + done.stderr


def test_a_build_whose_client_asked_for_the_hosts_network_gets_it(daemon: Daemon, tmp_path: Path) -> None:
    dockerfile = "FROM busybox\nRUN grep -c . /proc/net/dev\nRUN --network=host true\n"
    assert build(daemon, tmp_path, dockerfile, "--network", "host").returncode == 0


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "secret").write_text("of the host")
    return folder


@pytest.mark.parametrize(
    "options", ["type=bind", "type=bind,rw", "type=cache,id=trap", "type=cache,id=trap2,sharing=private"]
)
@pytest.mark.parametrize("style", ["absolute", "up"])
def test_the_source_of_a_mount_is_looked_up_inside(
    daemon: Daemon, tmp_path: Path, victim: Path, options: str, style: str
) -> None:
    """CVE-2024-23651: the links are the base's, and lead to the host where followed from there."""
    target = str(victim) if style == "absolute" else "../" * 12 + str(victim).lstrip("/")
    dockerfile = (
        f"FROM busybox AS base\nRUN ln -s {target} /link && mkdir -p /a && ln -s {target} /a/link\n"
        f"FROM busybox\nRUN --mount={options},from=base,source=%s,target=/mnt cat /mnt/secret; touch /mnt/new; true\n"
    )
    for source in ("/link", "/a/link", "/link/secret"):
        done = build(daemon, tmp_path / "context", dockerfile % source)
        assert "of the host" not in done.stdout + done.stderr
    assert [path.name for path in victim.iterdir()] == ["secret"]


def test_the_place_of_a_mount_is_inside_and_what_lies_outside_stays(
    daemon: Daemon, tmp_path: Path, victim: Path
) -> None:
    """CVE-2024-23652: what was made to be mounted on is removed after the step, wherever its name leads by then."""
    empty = victim / "empty"
    empty.touch()
    dockerfile = (
        f"FROM busybox\nRUN ln -s {victim} /link\n"
        "RUN --mount=type=tmpfs,target=/link/empty true; true\n"
        f"RUN --mount=type=tmpfs,target=/place/empty mv /place /old; ln -s {victim} /place; true\n"
    )
    build(daemon, tmp_path / "context", dockerfile)
    assert sorted(path.name for path in victim.iterdir()) == ["empty", "secret"]


def test_a_step_cannot_read_the_engines_files_through_its_descriptors(daemon: Daemon, tmp_path: Path) -> None:
    """CVE-2024-21626, by WORKDIR."""
    for number in range(3, 12):
        done = build(daemon, tmp_path, f"FROM busybox\nWORKDIR /proc/self/fd/{number}\nRUN cat ../../../etc/shadow\n")
        assert done.returncode != 0


@pytest.mark.parametrize("id", ["../../../../../../etc", "/etc", "..", "a/../../.."])
def test_the_name_of_a_cache_is_no_path(daemon: Daemon, tmp_path: Path, id: str) -> None:
    """CVE-2024-9675."""
    dockerfile = f"FROM busybox\nRUN --mount=type=cache,id={id},target=/mnt ls -A /mnt && touch /mnt/seacan-was-here\n"
    done = build(daemon, tmp_path, dockerfile)
    assert "passwd" not in done.stdout
    assert not Path("/etc/seacan-was-here").exists()


@pytest.mark.parametrize(
    "option", ["bind-propagation=rshared", "propagation=shared", "relabel=shared", "rw,suid=true", "dev=true"]
)
def test_a_mount_takes_no_options_of_mount(daemon: Daemon, tmp_path: Path, option: str) -> None:
    """CVE-2024-9407: options that went on to the mount itself."""
    done = build(daemon, tmp_path, f"FROM busybox\nRUN --mount=type=bind,target=/mnt,{option} true\n")
    assert done.returncode != 0
    assert "unexpected key" in done.stdout + done.stderr
