"""Filling a volume from an image that wants more than to be copied."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from seacan.engine.database import Database
from seacan.engine.mounts import MountPoint
from seacan.runtime.bundle import DirectoryRoot
from seacan.runtime.launcher import Launcher
from seacan.volumes.populate import Copy
from seacan.volumes.volumes import Volumes

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
async def volumes(tmp_path: Path) -> AsyncIterator[Volumes]:
    launcher = Launcher()
    await launcher.start()
    database = Database(tmp_path / "seacan.db")
    volumes = Volumes(tmp_path / "volumes", database, launcher, emit=lambda *_: None)
    yield volumes
    await volumes.close()
    await launcher.close()
    database.close()


async def populate(volumes: Volumes, image: Path, destination: str = "/data") -> list[str]:
    point = MountPoint(type="volume", destination=destination, copy=True)
    await volumes.attach(point, "c1")
    await volumes.populate([point], DirectoryRoot(str(image)), "c1")
    return sorted(os.listdir(point.source))


@pytest.mark.parametrize("where", ["data", "data/inner"])
@pytest.mark.parametrize("style", ["absolute", "relative"])
async def test_a_destination_that_is_a_link_does_not_lead_to_the_host(
    volumes: Volumes, tmp_path: Path, where: str, style: str
) -> None:
    secret = tmp_path / "host-secret"
    secret.mkdir()
    (secret / "inner").mkdir()
    (secret / "key").write_text("secret")
    (secret / "inner/key").write_text("secret")
    image = tmp_path / "image"
    image.mkdir()
    target = str(secret) if style == "absolute" else "../" * 40 + str(secret).lstrip("/")
    (image / "data").symlink_to(target)
    assert await populate(volumes, image, f"/{where}") == []


async def test_a_link_within_the_image_is_followed_within_the_image(volumes: Volumes, tmp_path: Path) -> None:
    image = tmp_path / "image"
    (image / "real").mkdir(parents=True)
    (image / "real/file").write_text("x")
    (image / "data").symlink_to("/real")
    assert await populate(volumes, image) == ["file"]


async def test_links_in_the_content_are_copied_and_not_followed(volumes: Volumes, tmp_path: Path) -> None:
    image = tmp_path / "image"
    (image / "data").mkdir(parents=True)
    (image / "data/passwd").symlink_to("/etc/passwd")
    (image / "data/etc").symlink_to("/etc")
    point = MountPoint(type="volume", destination="/data", copy=True)
    await volumes.attach(point, "c1")
    await volumes.populate([point], DirectoryRoot(str(image)), "c1")
    assert os.readlink(Path(point.source, "passwd")) == "/etc/passwd"
    assert os.readlink(Path(point.source, "etc")) == "/etc"


def test_a_container_that_swaps_folders_for_links_meanwhile_gains_nothing(tmp_path: Path) -> None:
    """The volume may be in use: its user tries to have the copy's hard links and folders made elsewhere."""
    source, target, outside = tmp_path / "source", tmp_path / "target", tmp_path / "outside"
    for folder in (source, target, outside):
        folder.mkdir()
    for number in range(60):
        (source / f"d{number:03}").mkdir()
        (source / f"d{number:03}/file").write_text("x")
        os.link(source / f"d{number:03}/file", source / f"link{number:03}")
    (outside / "file").write_text("host")
    stop = threading.Event()

    def attack() -> None:
        while not stop.is_set():
            for name in os.listdir(target):
                path = target / name
                try:
                    if path.is_dir() and not path.is_symlink():
                        os.rename(path, target / f".{name}")
                        path.symlink_to(outside)
                except OSError:
                    continue

    attacker = threading.Thread(target=attack)
    attacker.start()
    descriptors = [os.open(folder, os.O_RDONLY | os.O_DIRECTORY) for folder in (source, target)]
    try:
        Copy(*descriptors).run()
    except OSError:
        pass  # the copy may fail; it may not reach outside
    finally:
        stop.set()
        attacker.join()
        for descriptor in descriptors:
            os.close(descriptor)
    assert sorted(os.listdir(outside)) == ["file"]
    assert (outside / "file").read_text() == "host"
    assert (outside / "file").stat().st_nlink == 1


async def test_a_removed_volume_takes_nothing_else_along(volumes: Volumes, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("host")
    made = await volumes.create("data")
    Path(made.mountpoint, "link").symlink_to(outside)
    await volumes.remove("data")
    await volumes.close()
    assert (outside / "file").read_text() == "host"
