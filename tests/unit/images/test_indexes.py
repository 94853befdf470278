"""Names that mean several images: which one is meant, what is hidden, and what goes with the last name."""

from __future__ import annotations

from pathlib import Path

import pytest

from seacan.engine.database import Database
from seacan.errors import Conflict, NotFound
from seacan.images import reference as references
from seacan.images import store
from seacan.images.listing import prune, summaries
from seacan.images.manifest import Platform
from seacan.images.store import Images, ImageUser
from seacan.storage.digest import Digest
from tests.unit.images.archives import built_for, digest, named_layout
from tests.unit.images.conftest import Load

ARM = Platform("linux", "arm64")


async def load_both(load_bytes: Load, name: str = "docker.io/library/multi:1", mark: str = "") -> Digest:
    index, files = built_for("amd64", "arm64", mark=mark)
    await load_bytes(named_layout(name, index, files))
    return Digest(digest(index))


async def test_without_a_platform_the_host_s_is_meant(load_bytes: Load, images: Images) -> None:
    await load_both(load_bytes)
    assert images.get("multi:1").config.architecture == "amd64"
    arm = images.get("multi:1", platform=ARM)
    assert arm.config.architecture == "arm64" and arm.tags == []
    assert images.get(str(arm.manifest)).id == arm.id
    assert images.get(str(arm.manifest)[7:19]).id == arm.id
    assert [summary.repo_tags for summary in summaries(images, all=True)] == [["multi:1"]]
    with pytest.raises(NotFound, match="does not provide the specified platform"):
        images.get("multi:1", platform="linux/s390x")


async def test_everything_goes_with_the_last_name(load_bytes: Load, images: Images) -> None:
    await load_both(load_bytes)
    images.tag("multi:1", references.parse("other:1"))
    images.remove("multi:1")
    assert images.get("other:1", platform=ARM).config.architecture == "arm64"
    removals = images.remove("other:1")
    assert sum(removal.deleted.startswith("sha256:") for removal in removals) == 4  # two images, two layers
    assert images.ids() == [] and list(images.blobs) == [] and images.layers.all() == []


async def test_a_container_of_another_platform_keeps_the_name(load_bytes: Load, images: Images) -> None:
    await load_both(load_bytes)
    arm = images.get("multi:1", platform=ARM).id
    images.users = lambda id: [ImageUser("c" * 64, False)] if id == arm else []
    with pytest.raises(Conflict, match="container cccccccccccc is using its referenced image"):
        images.remove("multi:1")
    assert prune(images, {"dangling": ["false"]})[0] == []
    with pytest.raises(Conflict, match="is being used by stopped container cccccccccccc"):
        images.remove_platforms("multi:1", [ARM])
    images.remove("multi:1", force=True)
    assert images.ids() == []


async def test_the_main_platform_can_be_removed_and_then_the_other_is_meant(load_bytes: Load, images: Images) -> None:
    source = await load_both(load_bytes)
    images.remove_platforms("multi:1", [Platform("linux", "amd64")])
    assert images.get("multi:1").config.architecture == "arm64"
    assert [entry.available for entry in images.indexes.entries(source)] == [False, True, False, True]
    images.remove_platforms("multi:1", [ARM])
    assert images.ids() == []


async def test_a_newer_index_leaves_nothing_of_the_older_behind_a_prune(load_bytes: Load, images: Images) -> None:
    await load_both(load_bytes)
    await load_both(load_bytes, mark="newer")
    assert len(images.ids()) == 4
    prune(images)
    assert [images.get(id).config.defaults.labels or {} for id in images.family("multi:1")] == [
        {"for": "amd64", "mark": "newer"},
        {"for": "arm64", "mark": "newer"},
    ]
    assert len(images.ids()) == 2


def test_a_database_of_before_there_were_indexes_is_brought_up_to_date(tmp_path: Path) -> None:
    database = Database(tmp_path / "old.db")
    database.migrate("layers", ("CREATE TABLE layers (chain_id TEXT PRIMARY KEY) WITHOUT ROWID",))
    database.migrate("images", store._SCHEMA[:1])
    database.execute("INSERT INTO images VALUES ('sha256:aa', NULL, 0, 0, NULL, NULL, NULL)")
    database.execute("INSERT INTO image_tags VALUES ('docker.io/library/old', '1', 'sha256:aa')")
    database.migrate("images", store._SCHEMA)
    row = database.execute("SELECT name, tag, image, source FROM image_tags").fetchone()
    assert tuple(row) == ("docker.io/library/old", "1", "sha256:aa", None)
    database.close()
