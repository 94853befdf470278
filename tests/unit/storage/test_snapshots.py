"""The conformance suite of snapshot drivers: every driver passes all of it."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from seacan.engine.database import Database
from seacan.errors import Conflict, NotFound
from seacan.runtime.bundle import Rootfs
from seacan.storage.digest import ChainID, DiffID
from seacan.storage.drivers import open_snapshots, overlay_obstacle
from seacan.storage.layers import Layers, Staged
from seacan.storage.mounting import open_rootfs
from seacan.storage.snapshots import Change, ChangeKind, Snapshots
from seacan.storage.trash import Trash
from seacan.storage.tree import remove
from seacan.storage.walk import usage
from tests.unit.storage.archives import Entry, archive, folder, hard_link, symlink
from tests.unit.storage.conftest import Unpack

MOUNT_POINTS = {".dockerenv", "dev", "etc", "proc", "sys"}
"""What every container's root has, whatever its image."""

Stack = Callable[..., Awaitable[ChainID]]


@pytest.fixture(params=["overlay2", "vfs"])
def snapshots(
    request: pytest.FixtureRequest, tmp_path: Path, database: Database, layers: Layers, trash: Trash
) -> Snapshots:
    if request.param == "overlay2" and (why := overlay_obstacle(tmp_path)):
        pytest.skip(f"overlay cannot be mounted here: {why}")
    return open_snapshots(request.param, tmp_path / "snapshots", database, layers, trash)


@pytest.fixture
def deep_folder(tmp_path: Path) -> Iterator[None]:
    """The test's folder is emptied here: pytest cannot remove trees this deep."""
    yield
    for path in tmp_path.iterdir():
        if path.is_dir():
            remove(str(path))


@pytest.fixture
def stack(unpack: Unpack, layers: Layers) -> Stack:
    """Layers of these entries, the lowest first."""

    async def stack(*contents: list[Entry]) -> ChainID:
        parent: ChainID | None = None
        for entries in contents:
            parent = layers.commit(await unpack(archive(entries)), parent)
        assert parent is not None
        return parent

    return stack


@contextmanager
def mounted(rootfs: Rootfs) -> Iterator[Path]:
    descriptor = open_rootfs(rootfs)
    try:
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def own(root: Path) -> list[str]:
    return sorted(set(os.listdir(root)) - MOUNT_POINTS)


async def test_a_snapshot_shows_the_layers_merged(snapshots: Snapshots, stack: Stack) -> None:
    top = await stack(
        [
            folder("./", 0o750),
            Entry("a", b"1"),
            folder("d"),
            Entry("d/x", b"x"),
            Entry("d/y", b"y"),
            Entry("gone", b"g"),
        ],
        [Entry("a", b"22"), Entry("d/.wh.x"), Entry("d/z", b"z"), Entry(".wh.gone"), folder("./", 0o751, gid=3)],
        [folder("e"), Entry("e/one", b"1"), hard_link("e/two", "e/one")],
    )
    with mounted(snapshots.prepare("c1", top)) as root:
        assert (root / "a").read_bytes() == b"22"
        assert sorted(os.listdir(root / "d")) == ["y", "z"]
        assert own(root) == ["a", "d", "e"]
        assert stat.S_IMODE(os.stat(f"{root}/").st_mode) == 0o751 and os.stat(f"{root}/").st_gid == 3
        assert (root / "e/one").stat().st_nlink == 2


async def test_what_is_written_stays_and_the_image_does_not_change(snapshots: Snapshots, stack: Stack) -> None:
    top = await stack([folder("d"), Entry("d/f", b"image")])
    with mounted(snapshots.prepare("c1", top)) as root:
        (root / "d/f").write_bytes(b"mine")
        (root / "new").write_bytes(b"n")
    with mounted(snapshots.rootfs("c1")) as root:
        assert (root / "d/f").read_bytes() == b"mine" and (root / "new").exists()
    with mounted(snapshots.prepare("c2", top)) as root:
        assert (root / "d/f").read_bytes() == b"image" and not (root / "new").exists()


async def test_opaque_folders_hide_what_is_below(snapshots: Snapshots, stack: Stack) -> None:
    top = await stack([folder("d"), Entry("d/x")], [folder("d"), Entry("d/.wh..wh..opq"), Entry("d/y")])
    with mounted(snapshots.prepare("c1", top)) as root:
        assert os.listdir(root / "d") == ["y"]


async def test_attributes_of_folders_an_upper_layer_only_passes_through_are_kept(
    snapshots: Snapshots, stack: Stack
) -> None:
    top = await stack([folder("./", 0o755), folder("tmp", 0o1777, gid=9), Entry("tmp/a")], [Entry("tmp/b")])
    with mounted(snapshots.prepare("c1", top)) as root:
        info = (root / "tmp").stat()
        assert (stat.S_IMODE(info.st_mode), info.st_gid) == (0o1777, 9)
        assert sorted(os.listdir(root / "tmp")) == ["a", "b"]


async def test_links_devices_and_attributes_survive(snapshots: Snapshots, stack: Stack) -> None:
    top = await stack(
        [
            symlink("l", "/nowhere", uid=5),
            Entry("f", b"x", mode=0o4711, uid=6, pax={"SCHILY.xattr.user.k": "v", "mtime": "1500000000.25"}),
            Entry("pipe", type=b"6", mode=0o622),
        ]
    )
    with mounted(snapshots.prepare("c1", top)) as root:
        assert os.readlink(root / "l") == "/nowhere" and (root / "l").lstat().st_uid == 5
        info = (root / "f").stat()
        assert (stat.S_IMODE(info.st_mode), info.st_uid, info.st_mtime_ns) == (0o4711, 6, 1_500_000_000_250_000_000)
        assert os.getxattr(root / "f", "user.k") == b"v"
        assert stat.S_ISFIFO((root / "pipe").lstat().st_mode)


async def test_changes_are_told_as_docker_diff_does(snapshots: Snapshots, stack: Stack) -> None:
    top = await stack(
        [folder("d"), Entry("d/x", b"x"), Entry("d/y", b"y"), Entry("top", b"t"), folder("whole"), Entry("whole/a")]
    )
    with mounted(snapshots.prepare("c1", top)) as root:
        (root / "d/x").write_bytes(b"changed")
        (root / "d/y").unlink()
        (root / "n").mkdir()
        (root / "n/f").write_bytes(b"")
        shutil.rmtree(root / "whole")
        (root / "whole").mkdir()
        (root / "whole/b").write_bytes(b"")
    changes = set(snapshots.changes("c1"))
    assert changes >= {
        Change("/d/x", ChangeKind.MODIFIED),
        Change("/d/y", ChangeKind.DELETED),
        Change("/n", ChangeKind.ADDED),
        Change("/n/f", ChangeKind.ADDED),
        Change("/whole/a", ChangeKind.DELETED),
        Change("/whole/b", ChangeKind.ADDED),
    }
    assert not {change.path for change in changes} & {"/top"}


async def test_a_new_snapshot_has_no_changes(snapshots: Snapshots, stack: Stack) -> None:
    top = await stack([folder("d"), Entry("d/x", b"x"), hard_link("d/y", "d/x")], [Entry(".wh.q"), folder("e")])
    snapshots.prepare("c1", top)
    assert snapshots.changes("c1") == []


async def test_usage_counts_what_the_container_wrote(snapshots: Snapshots, stack: Stack) -> None:
    top = await stack([Entry("image", bytes(100_000))])
    with mounted(snapshots.prepare("c1", top)) as root:
        before = snapshots.usage("c1").size
        (root / "mine").write_bytes(bytes(5000))
        os.link(root / "mine", root / "again")
    assert snapshots.usage("c1").size == before + 5000


def test_a_snapshot_of_no_image_is_empty(snapshots: Snapshots) -> None:
    with mounted(snapshots.prepare("c1", None)) as root:
        assert own(root) == []


async def test_a_view_shows_the_image_alone(snapshots: Snapshots, stack: Stack) -> None:
    one = await stack([Entry("a", b"1"), Entry(".wh.b")])
    two = await stack([Entry("a", b"1"), Entry(".wh.b")], [Entry("c")])
    for chain_id, names in ((one, ["a"]), (two, ["a", "c"]), (None, [])):
        with mounted(snapshots.view(chain_id)) as root:
            assert sorted(os.listdir(root)) == names


async def test_a_key_is_used_once_and_again_after_its_removal(snapshots: Snapshots, stack: Stack) -> None:
    top = await stack([Entry("a")])
    with mounted(snapshots.prepare("c1", top)) as root:
        (root / "left").write_bytes(b"")
    with pytest.raises(Conflict, match="snapshot c1 already exists"):
        snapshots.prepare("c1", top)
    assert snapshots.keys() == ["c1"] and snapshots.parent("c1") == top
    snapshots.remove("c1")
    assert snapshots.keys() == [] and not snapshots.exists("c1")
    with mounted(snapshots.prepare("c1", top)) as root:
        assert own(root) == ["a"]


def test_what_does_not_exist(snapshots: Snapshots) -> None:
    snapshots.remove("nothing")
    with pytest.raises(NotFound, match="snapshot nothing does not exist"):
        snapshots.rootfs("nothing")
    with pytest.raises(NotFound, match="layer sha256:00 does not exist"):
        snapshots.prepare("c1", ChainID("sha256:00"))
    assert snapshots.keys() == []


async def test_recovery_throws_away_what_is_half_made_or_unwanted(
    snapshots: Snapshots, stack: Stack, tmp_path: Path
) -> None:
    top = await stack([Entry("a")])
    snapshots.prepare("keep", top)
    snapshots.prepare("drop", top)
    (tmp_path / "snapshots" / "orphan" / "diff").mkdir(parents=True)
    snapshots.recover(["keep"])
    assert snapshots.keys() == ["keep"]
    assert os.listdir(tmp_path / "snapshots") == ["keep"]


async def test_a_snapshot_on_more_than_128_layers(snapshots: Snapshots, layers: Layers) -> None:
    parent: ChainID | None = None
    for number in range(150):
        path = layers.stage_folder()
        (path / f"f{number}").write_bytes(b"")
        parent = layers.commit(Staged(path, DiffID(f"sha256:{number:064x}"), 0, []), parent)
    with mounted(snapshots.prepare("c1", parent)) as root:
        assert len(own(root)) == 150
        (root / "mine").write_bytes(b"")
    assert snapshots.changes("c1") == [Change("/mine", ChangeKind.ADDED)]


async def test_hostile_links_in_layers_lead_nowhere(snapshots: Snapshots, stack: Stack, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"s")
    top = await stack(
        [symlink("d", str(outside)), symlink("e", str(outside))], [folder("d"), Entry("d/secret", b"mine")]
    )
    with mounted(snapshots.prepare("c1", top)) as root:
        assert (root / "d/secret").read_bytes() == b"mine"
        (root / "e").unlink()
        (root / "e").mkdir()
        (root / "e/secret").write_bytes(b"mine")
    assert Change("/e/secret", ChangeKind.ADDED) in snapshots.changes("c1")
    assert (outside / "secret").read_bytes() == b"s"


async def test_nothing_stays_mounted(snapshots: Snapshots, stack: Stack) -> None:
    before = Path("/proc/self/mountinfo").read_text().count("\n")
    with mounted(snapshots.prepare("c1", await stack([Entry("a")], [Entry("b")]))):
        pass
    assert Path("/proc/self/mountinfo").read_text().count("\n") == before


async def test_the_difference_is_a_layer(snapshots: Snapshots, stack: Stack) -> None:
    top = await stack([folder("d", 0o750), Entry("d/x", b"x"), Entry("d/y", b"y"), Entry("same", b"s")])
    with mounted(snapshots.prepare("c1", top)) as root:
        (root / "d/x").write_bytes(b"changed")
        (root / "d/y").unlink()
        (root / "n/deep").mkdir(parents=True)
        (root / "n/deep/f").write_bytes(b"f")
        os.link(root / "n/deep/f", root / "n/g")
    with snapshots.difference("c1") as changes:
        assert sorted(os.listdir(changes)) == ["d", "n"]
        assert (changes / "d/x").read_bytes() == b"changed"
        assert stat.S_IMODE((changes / "d").stat().st_mode) == 0o750
        assert stat.S_ISCHR((changes / "d/y").lstat().st_mode) and (changes / "d/y").lstat().st_rdev == 0
        assert (changes / "n/deep/f").stat().st_ino == (changes / "n/g").stat().st_ino


async def test_mount_points_are_there_and_are_no_change_of_the_container_s(snapshots: Snapshots, stack: Stack) -> None:
    top = await stack(
        [folder("etc", 0o711, gid=4, mtime=1_234_567_890), Entry("etc/hosts", b"image"), symlink("sys", "etc")]
    )
    with mounted(snapshots.prepare("c1", top)) as root:
        assert (root / "etc/hosts").read_bytes() == b""
        assert (root / "sys").is_dir() and not (root / "sys").is_symlink()
        assert os.readlink(root / "etc/mtab") == "/proc/mounts"
        info = (root / "etc").stat()
        assert (stat.S_IMODE(info.st_mode), info.st_gid, info.st_mtime) == (0o711, 4, 1_234_567_890)
    assert snapshots.changes("c1") == []
    assert snapshots.usage("c1").size < 100
    with mounted(snapshots.view(top)) as root:
        assert (root / "etc/hosts").read_bytes() == b"image"


async def test_trees_deeper_than_any_stack_are_merged_compared_and_copied(
    snapshots: Snapshots, stack: Stack, deep_folder: None
) -> None:
    levels = 1100
    deep = "d/" * levels
    top = await stack(
        [folder("d"), Entry("d/file", b"1")], [Entry(f"{deep}leaf", b"x"), hard_link(f"{deep}again", f"{deep}leaf")]
    )
    with mounted(snapshots.prepare("c", top)) as root:
        there = os.open(root, os.O_RDONLY)
        for _ in range(levels):
            inner = os.open("d", os.O_RDONLY, dir_fd=there)
            os.close(there)
            there = inner
        assert sorted(os.listdir(there)) == ["again", "leaf"]
        os.unlink("leaf", dir_fd=there)
        os.mkdir("new", dir_fd=there)
        os.close(there)
    changes = snapshots.changes("c")
    assert Change(f"/{deep}leaf", ChangeKind.DELETED) in changes
    assert Change(f"/{deep}new", ChangeKind.ADDED) in changes
    assert all(change.kind is ChangeKind.MODIFIED for change in changes if change.path.strip("/") in ("d", "d/d"))
    with snapshots.difference("c") as difference:
        assert usage(difference).inodes >= levels
