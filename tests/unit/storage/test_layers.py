"""Where layers lie on the disk."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import pytest

from seacan.engine.database import Database
from seacan.storage.layers import Layers
from seacan.storage.trash import Trash
from seacan.storage.worker import Launcher
from tests.unit.storage.archives import Entry, archive
from tests.unit.storage.conftest import Unpack


def kind_of(path: Path) -> str:
    done = subprocess.run(["stat", "-f", "-c", "%T", str(path)], capture_output=True, text=True, check=True)
    return done.stdout.strip()


async def test_ext4_spreads_layers_over_its_block_groups(layers: Layers, unpack: Unpack) -> None:
    if kind_of(layers.root) != "ext2/ext3":
        pytest.skip(f"{layers.root} is not on ext4")
    shown = subprocess.run(["lsattr", "-d", str(layers.root / "staging")], capture_output=True, text=True, check=True)
    assert "T" in shown.stdout.split()[0]
    chain_id = layers.commit(await unpack(archive([Entry("a", b"1")])), None)
    assert (layers.get(chain_id).path / "a").read_bytes() == b"1"


def test_other_file_systems_are_left_as_they_are(database: Database, launcher: Launcher, trash: Trash) -> None:
    shared = Path("/dev/shm")
    if kind_of(shared) != "tmpfs":
        pytest.skip("/dev/shm is no tmpfs")
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        assert Layers(Path(folder), database, launcher, trash).stage_folder().is_dir()


def test_what_is_not_there_leaves_nothing_in_the_trash(tmp_path: Path, trash: Trash) -> None:
    trash.discard(tmp_path / "nothing")
    assert list(trash.folder.iterdir()) == []
