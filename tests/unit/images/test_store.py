"""How images are found, named, listed and removed: dockerd's rules and words."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from seacan.errors import Conflict, InvalidParameter, NotFound
from seacan.images import reference as references
from seacan.images.listing import inspect, layers_size, prune, summaries
from seacan.images.store import Images, ImageUser, Removal
from seacan.storage import digest as digests
from tests.unit.images.archives import docker_archive, layer
from tests.unit.images.conftest import EMPTY, Load, folders
from tests.unit.storage.archives import Entry

ONE = layer(Entry("one", b"1"))
TWO = layer(Entry("two", b"22"))
SHA = "sha256:" + "ab" * 32


def ref(text: str) -> references.Reference:
    return references.parse(text)


async def test_an_image_is_found_by_name_id_and_unique_prefix(load_bytes: Load, images: Images) -> None:
    (image,) = await load_bytes(docker_archive([ONE], ["a:1", "a:latest"]))
    for name in (
        "a",
        "a:1",
        "docker.io/library/a",
        image.id,
        image.id[7:],
        image.id[7:19],
        image.id[:15],
        image.id[7:8],
    ):
        assert images.get(name).id == image.id
    for name, words in (("zz", "zz:latest"), ("a:2", "a:2"), (SHA, SHA), ("ab" * 32, SHA), (f"a@{SHA}", f"a@{SHA}")):
        with pytest.raises(NotFound, match=f"^No such image: {words}$"):
            images.get(name)
    with pytest.raises(InvalidParameter, match="must be lowercase"):
        images.get("A")


async def test_a_platform_that_does_not_fit(load_bytes: Load, images: Images) -> None:
    await load_bytes(docker_archive([ONE], ["a:1"]))
    assert images.get("a:1", platform="linux/amd64")
    with pytest.raises(
        NotFound,
        match=r"^image with reference a:1 was found but its platform \(linux/amd64\) does not match "
        r"the specified platform \(linux/arm64\)$",
    ):
        images.get("a:1", platform="linux/arm64")


async def test_a_prefix_of_several_images_finds_none(load_bytes: Load, images: Images) -> None:
    for number in range(17):
        await load_bytes(docker_archive([], [f"i{number}:1"], author=str(number)))
    ids = sorted(images.ids())
    shared = next(a[7:8] for a, b in itertools.pairwise(ids) if a[7] == b[7])
    with pytest.raises(NotFound):
        images.get(f"sha256:{shared}")


async def test_tagging(load_bytes: Load, images: Images, events: list[tuple[str, str, Mapping[str, str]]]) -> None:
    (image,) = await load_bytes(docker_archive([ONE], ["a:1"]))
    images.tag("a:1", ref("r.example/b"))
    assert images.get(image.id).tags == ["a:1", "r.example/b:latest"]
    assert images.get(image.id).last_tagged is not None
    assert events[-1] == ("tag", image.id, {"name": "r.example/b:latest"})
    with pytest.raises(InvalidParameter, match="refusing to create a tag with a digest reference"):
        images.tag("a:1", ref(f"b@{SHA}"))
    with pytest.raises(InvalidParameter, match="refusing to create an ambiguous tag using digest algorithm as name"):
        images.tag("a:1", ref("sha256:x"))


async def test_removing_a_name_and_then_the_image(load_bytes: Load, images: Images, tmp_path: Path) -> None:
    (image,) = await load_bytes(docker_archive([ONE, TWO], ["a:1", "b:1"]))
    chain = [layer.chain_id for layer in images.layers.stack(image.chain_id)]
    assert images.remove("a:1") == [Removal(untagged="a:1")]
    with pytest.raises(NotFound, match="No such image: a:1"):
        images.remove("a:1")
    assert images.remove("b:1") == [
        Removal(untagged="b:1"),
        Removal(deleted=image.id),
        *(Removal(deleted=chain_id) for chain_id in chain),
    ]
    assert folders(tmp_path) == EMPTY


async def test_removing_by_id(load_bytes: Load, images: Images, tmp_path: Path) -> None:
    (image,) = await load_bytes(docker_archive([ONE], ["a:1", "b:1"]))
    short = image.id[7:19]
    with pytest.raises(
        Conflict,
        match=rf"^conflict: unable to delete {short} \(must be forced\) - "
        r"image is referenced in multiple repositories$",
    ):
        images.remove(short)
    removed = images.remove(short, force=True)
    assert [item.untagged for item in removed if item.untagged] == ["a:1", "b:1"]
    assert folders(tmp_path) == EMPTY


async def test_digests_go_with_the_last_tag_of_their_repository(load_bytes: Load, images: Images) -> None:
    (image,) = await load_bytes(docker_archive([ONE], ["a:1", "a:2"]))
    images.add_digest(image.id, ref(f"a@{SHA}"))
    assert images.remove("a:1") == [Removal(untagged="a:1")]
    removed = images.remove("a:2")
    assert removed[:2] == [Removal(untagged="a:2"), Removal(untagged=f"a@{SHA}")]
    assert images.ids() == []


async def test_images_in_use_are_kept_in_dockerd_s_words(load_bytes: Load, images: Images) -> None:
    (image,) = await load_bytes(docker_archive([ONE], ["a:1"]))
    container, short = "c" * 64, image.id[7:19]
    users = [ImageUser(container, False)]
    images.users = lambda id: users if id == image.id else []
    with pytest.raises(
        Conflict,
        match=rf'^conflict: unable to remove repository reference "a:1" \(must force\) - container {"c" * 12} is using '
        rf"its referenced image {short}$",
    ):
        images.remove("a:1")
    with pytest.raises(
        Conflict,
        match=rf"^conflict: unable to delete {short} \(must be forced\) - "
        r"image is being used by stopped container c{12}$",
    ):
        images.remove(short)
    users[:] = [ImageUser(container, True)]
    with pytest.raises(
        Conflict,
        match=rf"^conflict: unable to delete {short} \(cannot be forced\) - "
        r"image is being used by running container c{12}$",
    ):
        images.remove(short, force=True)
    # With a name and force the name goes; the image stays without one.
    assert images.remove("a:1", force=True) == [Removal(untagged="a:1")]
    assert images.get(image.id).tags == []
    users[:] = [ImageUser(container, False)]
    assert Removal(deleted=image.id) in images.remove(short, force=True)


async def test_layers_under_a_container_outlive_their_image(load_bytes: Load, images: Images) -> None:
    (image,) = await load_bytes(docker_archive([ONE], ["a:1"]))
    images.snapshots.prepare("c1", image.chain_id)
    removed = images.remove("a:1", force=True)
    assert [item.deleted for item in removed if item.deleted] == [image.id]
    assert image.chain_id is not None and images.layers.contains(image.chain_id)
    images.snapshots.remove("c1")
    assert images.collect_layers(image.chain_id) == [image.chain_id]


async def test_parents_go_with_their_last_child(load_bytes: Load, images: Images) -> None:
    (base,) = await load_bytes(docker_archive([ONE], None))
    (child,) = await load_bytes(docker_archive([ONE, TWO], ["a:1"]))
    images.set_parent(child.id, base.id)
    with pytest.raises(Conflict, match="image has dependent child images"):
        images.remove(base.id)
    assert {item.deleted for item in images.remove("a:1")} >= {child.id, base.id}
    (base,) = await load_bytes(docker_archive([ONE], None))
    (child,) = await load_bytes(docker_archive([ONE, TWO], ["a:1"]))
    images.set_parent(child.id, base.id)
    assert images.descendants(base.id) == {child.id}
    images.remove("a:1", prune=False)
    assert images.ids() == [base.id]


async def test_shared_layers_stay(load_bytes: Load, images: Images) -> None:
    (one,) = await load_bytes(docker_archive([ONE], ["a:1"]))
    await load_bytes(docker_archive([ONE, TWO], ["b:1"]))
    assert [item.deleted for item in images.remove("a:1") if item.deleted] == [one.id]
    top = images.layers.stack(images.get("b:1").chain_id)
    assert (top[1].path / "one").read_bytes() == b"1"


async def test_the_list_and_its_filters(load_bytes: Load, images: Images) -> None:
    await load_bytes(docker_archive([ONE], ["old:1"], created="2020-01-01T00:00:00Z", config={"Labels": {"k": "v"}}))
    await load_bytes(docker_archive([ONE, TWO], ["new:1", "new:2"], created="2021-01-01T00:00:00Z"))
    (nameless,) = await load_bytes(docker_archive([TWO], None, created="2022-01-01T00:00:00Z"))

    def names(**filters: str) -> list[str]:
        asked = {name.replace("_", "!"): [value] for name, value in filters.items()}
        return [(summary.repo_tags or ["-"])[0] for summary in summaries(images, asked)]

    assert names() == ["-", "new:1", "old:1"]
    assert names(dangling="true") == ["-"]
    assert names(dangling="false") == ["new:1", "old:1"]
    assert names(label="k") == names(label="k=v") == ["old:1"]
    assert names(label="k=w") == []
    assert names(label_="k") == ["-", "new:1"]
    assert names(before="new:1") == ["old:1"]
    assert names(since="old:1") == ["-", "new:1"]
    assert names(reference="new:2") == ["new:2"]
    assert names(reference="o*") == ["old:1"]
    assert names(until="2020-06-01") == ["old:1"]
    for filters, words in (
        ({"x": ["y"]}, "invalid filter 'x'"),
        ({"dangling": ["x"]}, r"invalid filter 'dangling=\[x\]'"),
    ):
        with pytest.raises(InvalidParameter, match=words):
            summaries(images, filters)
    sizes = {
        summary.repo_tags[0]: summary.shared_size
        for summary in summaries(images, shared_size=True)
        if summary.repo_tags
    }
    assert sizes == {"old:1": 1, "new:1": 1}
    assert layers_size(images) == 1 + 2 + 2
    assert nameless.tags == []


async def test_pruning(load_bytes: Load, images: Images) -> None:
    await load_bytes(docker_archive([ONE], ["keep:1"]))
    (used,) = await load_bytes(docker_archive([ONE, TWO], ["used:1"]))
    (loose,) = await load_bytes(docker_archive([TWO], None))
    images.users = lambda id: [ImageUser("c", False)] if id == used.id else []
    removed, reclaimed = prune(images)
    assert loose.id in [item.deleted for item in removed] and reclaimed == 2
    assert len(images.ids()) == 2
    removed, _ = prune(images, {"dangling": ["false"]})
    assert images.ids() == [used.id]
    assert Removal(untagged="keep:1") in removed


async def test_history_and_inspection(load_bytes: Load, images: Images) -> None:
    history = [
        {"created": "2020-01-01T00:00:00Z", "created_by": "ADD"},
        {"created": "2020-01-02T00:00:00Z", "created_by": "ENV", "empty_layer": True},
        {"created": "2020-01-03T00:00:00Z", "created_by": "RUN", "comment": "c"},
    ]
    (image,) = await load_bytes(docker_archive([ONE, TWO], ["a:1"], history=history, author="me"))
    items = images.history(images.get("a:1"))
    assert [(item.created_by, item.size, item.id) for item in items] == [
        ("RUN", 2, image.id),
        ("ENV", 0, "<missing>"),
        ("ADD", 1, "<missing>"),
    ]
    assert items[0].tags == ["a:1"] and items[1].tags is None and items[0].created == 1578009600
    told = inspect(images, image)
    assert (told["Id"], told["Author"], told["Comment"], told["Size"]) == (image.id, "me", "c", 3)
    assert told["Created"] == "2026-01-02T03:04:05.678Z"
    assert told["RootFS"] == {"Type": "layers", "Layers": image.config.rootfs.diff_ids}
    assert told["Config"]["Cmd"] == ["sh"] and told["Config"]["Entrypoint"] is None
    assert set(told["GraphDriver"]) == {"Name", "Data"}


def test_a_layer_that_had_arrived_is_a_download_again_after_a_crash(images: Images) -> None:
    digest = digests.of(b"layer")
    images.blobs.partial(digest).write_bytes(b"layer")
    images.blobs.publish(digest)
    assert images.blobs.contains(digest)
    images.recover()
    assert not images.blobs.contains(digest)
    assert images.blobs.partial(digest).read_bytes() == b"layer"


async def test_what_nobody_refers_to_is_swept_at_the_next_start(
    load_bytes: Load, images: Images, tmp_path: Path
) -> None:
    (image,) = await load_bytes(docker_archive([ONE], ["a:1"]))
    before = folders(tmp_path)
    images.blobs.put(b"orphan")
    (tmp_path / "blobs/ingest/half").write_bytes(b"")
    (tmp_path / "layers/unknown").mkdir()
    (tmp_path / "layers/staging/half").mkdir()
    images.recover()
    assert folders(tmp_path) == before
    assert images.get("a:1").id == image.id
    for _ in range(100):
        if not os.listdir(tmp_path / "trash"):
            break
        await asyncio.sleep(0.1)
    assert os.listdir(tmp_path / "trash") == []
