"""``docker load``: every form of archive gives the image that its documents say, and a bad one gives nothing."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from seacan.errors import InvalidParameter
from seacan.images.bootstrap import busybox_archive
from seacan.images.manifest import Platform
from seacan.images.store import Images
from seacan.storage.digest import Digest
from tests.unit.images.archives import (
    INDEX,
    MANIFEST,
    blob,
    config,
    digest,
    docker_archive,
    layer,
    layout_files,
    pack,
)
from tests.unit.images.conftest import EMPTY, Load, folders
from tests.unit.storage.archives import COMPRESSIONS, Entry, folder

ONE = layer(folder("./"), Entry("one", b"1"))
TWO = layer(Entry("two", b"22"))


async def test_busybox_from_the_distribution(images: Images, load_bytes: Load, tmp_path: Path) -> None:
    try:
        busybox_archive(tmp_path / "busybox.tar")
    except Exception as error:
        pytest.skip(f"no busybox to be had: {error}")
    (image,) = await load_bytes((tmp_path / "busybox.tar").read_bytes())
    assert image.tags == ["busybox:latest"]
    assert image.config.defaults.cmd == ["sh"]
    assert image.chain_id is not None
    assert (images.layers.get(image.chain_id).path / "bin/sh").exists()


@pytest.mark.parametrize("outer", COMPRESSIONS)
async def test_an_archive_may_be_compressed_as_a_whole(load_bytes: Load, outer: str) -> None:
    (image,) = await load_bytes(COMPRESSIONS[outer](docker_archive([ONE, TWO])))
    assert image.id == digest(config([ONE, TWO]))
    assert image.size == 3


@pytest.mark.parametrize("inner", COMPRESSIONS)
async def test_layers_may_be_compressed(load_bytes: Load, images: Images, inner: str) -> None:
    (image,) = await load_bytes(docker_archive([ONE, TWO], compress=COMPRESSIONS[inner]))
    assert image.id == digest(config([ONE, TWO]))
    top, below = images.layers.stack(image.chain_id)
    assert (top.path / "two").read_bytes() == b"22" and (below.path / "one").exists()


async def test_messages_and_events_are_docker_s(
    load_bytes: Load, messages: list[dict[str, Any]], events: list[tuple[str, str, Mapping[str, str]]]
) -> None:
    (image,) = await load_bytes(docker_archive([ONE], ["a:1", "b.example:5000/c:2"]))
    assert [message["stream"] for message in messages if "stream" in message] == [
        "Loaded image: a:1\n",
        "Loaded image: b.example:5000/c:2\n",
    ]
    bars = [message for message in messages if "progressDetail" in message]
    assert {message["status"] for message in bars} == {"Loading layer"}
    assert {message["id"] for message in bars} == {digest(ONE)[7:19]}
    assert events == [("load", image.id, {"name": image.id})]


async def test_an_image_without_a_name_is_told_by_its_id(load_bytes: Load, messages: list[dict[str, Any]]) -> None:
    (image,) = await load_bytes(docker_archive([ONE], None), quiet=True)
    assert messages == [{"stream": f"Loaded image ID: {image.id}\n"}]


async def test_loading_again_changes_nothing(load_bytes: Load, images: Images, tmp_path: Path) -> None:
    await load_bytes(docker_archive([ONE, TWO]))
    before = folders(tmp_path)
    await load_bytes(docker_archive([ONE, TWO]))
    assert folders(tmp_path) == before
    assert len(images.ids()) == 1


async def test_a_tag_moves_to_the_new_image(load_bytes: Load, images: Images, messages: list[dict[str, Any]]) -> None:
    (old,) = await load_bytes(docker_archive([ONE]))
    (new,) = await load_bytes(docker_archive([TWO]))
    assert images.get("test").id == new.id and images.get(old.id).tags == []
    assert (
        messages[-2]["stream"]
        == f"The image test:latest already exists, renaming the old one with ID {old.id} to empty string\n"
    )


async def test_the_archives_of_old_dockers(load_bytes: Load) -> None:
    document = config([ONE, TWO])
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as tar:
        for name, content in (
            ("aaa/VERSION", b"1.0"),
            ("aaa/layer.tar", ONE),
            ("bbb/json", b"{}"),
            ("ccc.json", document),
            (
                "manifest.json",
                json.dumps(
                    [{"Config": "ccc.json", "RepoTags": ["old:1"], "Layers": ["aaa/layer.tar", "bbb/layer.tar"]}]
                ).encode(),
            ),
            ("real.tar", TWO),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("bbb/layer.tar")
        link.type, link.linkname = tarfile.SYMTYPE, "../real.tar"
        tar.addfile(link)
    (image,) = await load_bytes(output.getvalue())
    assert image.tags == ["old:1"] and len(image.config.rootfs.diff_ids) == 2


async def test_an_oci_layout(load_bytes: Load, images: Images) -> None:
    files = layout_files([ONE, TWO], compress=gzip.compress)
    (image,) = await load_bytes(pack(files))
    assert image.tags == ["test:latest"]
    assert image.manifest is not None and images.blobs.contains(image.manifest)
    kept = images.layer_blobs(image.id)
    assert [f"blobs/sha256/{layer.digest[7:]}" in files for layer in kept if layer] == [True, True]


async def test_a_layout_of_several_platforms_gives_the_one_asked_for(load_bytes: Load) -> None:
    amd = layout_files([ONE], platform={"os": "linux", "architecture": "amd64"})
    arm = layout_files([TWO], platform={"os": "linux", "architecture": "arm64"}, architecture="arm64")
    inner = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [json.loads(files["index.json"])["manifests"][0] for files in (amd, arm)],
        }
    ).encode()
    index = {
        "schemaVersion": 2,
        "manifests": [
            {
                "mediaType": "application/vnd.oci.image.index.v1+json",
                "digest": digest(inner),
                "size": len(inner),
                "annotations": {"io.containerd.image.name": "docker.io/library/multi:1"},
            }
        ],
    }
    content = pack({**amd, **arm, blob(inner): inner, "index.json": json.dumps(index).encode()})
    (image,) = await load_bytes(content, platforms=[Platform("linux", "arm64")])
    assert image.config.architecture == "arm64" and image.tags == ["multi:1"]
    with pytest.raises(InvalidParameter, match="requested platform \\(linux/s390x\\) not found"):
        await load_bytes(content, platforms=[Platform("linux", "s390x")])


async def test_indexes_that_name_each_other_again_and_again_are_read_once(load_bytes: Load, images: Images) -> None:
    files = layout_files([ONE], platform={"os": "linux", "architecture": "amd64"})
    inner = json.loads(files["index.json"])["manifests"][0]
    for _ in range(3):
        content = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [inner] * 1000}).encode()
        files[blob(content)] = content
        inner = {"mediaType": INDEX, "digest": digest(content), "size": len(content)}
    top = {**inner, "annotations": {"io.containerd.image.name": "docker.io/library/loops:1"}}
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [top]}).encode()
    (image,) = await load_bytes(pack(files))
    assert image.tags == ["loops:1"]
    assert [entry.kind for entry in images.indexes.entries(Digest(inner["digest"]))] == ["image", "index", "index"]


async def test_an_index_of_too_many_manifests_is_refused(load_bytes: Load) -> None:
    files = layout_files([ONE])
    entries = []
    for number in range(1025):
        manifest = json.loads(next(content for content in files.values() if b'"config": {"mediaType"' in content))
        manifest["annotations"] = {"number": str(number)}
        content = json.dumps(manifest).encode()
        files[blob(content)] = content
        entries.append({"mediaType": MANIFEST, "digest": digest(content), "size": len(content)})
    halves = []
    for part in (entries[:600], entries[600:]):
        content = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": part}).encode()
        files[blob(content)] = content
        halves.append({"mediaType": INDEX, "digest": digest(content), "size": len(content)})
    content = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": halves}).encode()
    files[blob(content)] = content
    top = {"mediaType": INDEX, "digest": digest(content), "size": len(content)}
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [top]}).encode()
    with pytest.raises(InvalidParameter, match="refers to more than 1024 manifests"):
        await load_bytes(pack(files))


async def test_parents_in_the_archive_are_believed_only_if_the_layers_fit(load_bytes: Load, images: Images) -> None:
    base, child, liar = config([ONE]), config([ONE, TWO]), config([TWO])
    manifest = [
        {"Config": blob(base), "Layers": [blob(ONE)]},
        {"Config": blob(child), "Layers": [blob(ONE), blob(TWO)], "Parent": digest(base)},
        {"Config": blob(liar), "Layers": [blob(TWO)], "Parent": digest(base)},
    ]
    documents = {blob(item): item for item in (ONE, TWO, base, child, liar)}
    await load_bytes(pack({**documents, "manifest.json": json.dumps(manifest).encode()}))
    assert images.get(digest(child)).parent == digest(base)
    assert images.get(digest(liar)).parent == ""


async def test_layers_beyond_dockerd_s_limit_of_125(load_bytes: Load, images: Images) -> None:
    layers = [layer(Entry(f"f{number}", b"x")) for number in range(140)]
    (image,) = await load_bytes(docker_archive(layers))
    assert len(images.layers.stack(image.chain_id)) == 140


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "open manifest.json"),
        (b"hello", "cut short"),
        (pack({"foo": b"bar"}), "open manifest.json"),
        (pack({"manifest.json": b"{"}), "manifest.json is malformed"),
        (pack({"manifest.json": b'[{"Config": 5}]'}), "manifest.json is malformed"),
        (pack({"manifest.json": b'[{"Config": "nope"}]'}), "open nope: no such file"),
        (docker_archive([ONE])[:3000], "cut short|ends too early"),
        (docker_archive([ONE], ["Bad:1"]), "must be lowercase"),
        (docker_archive([ONE], ["bad"]), "invalid tag \"?'?bad"),
        (docker_archive([ONE], os="windows"), "windows"),
        (docker_archive([ONE], rootfs={"type": "layers", "diff_ids": []}), "layers length mismatch: expected 1, got 0"),
        (
            docker_archive([ONE], rootfs={"type": "layers", "diff_ids": [digest(b"other")]}),
            "invalid diffID for layer 0: expected",
        ),
        (docker_archive([ONE], rootfs={"type": "layers", "diff_ids": ["md5:00"]}), "invalid diff ID"),
        (pack({**layout_files([ONE]), "index.json": b'{"schemaVersion": 2, "manifests": []}'}), "no image"),
    ],
)
async def test_a_bad_archive_is_refused_and_leaves_nothing(
    load_bytes: Load, images: Images, tmp_path: Path, content: bytes, message: str
) -> None:
    with pytest.raises(InvalidParameter, match=message):
        await load_bytes(content)
    left = folders(tmp_path)
    assert left["ingest"] == [] and left["staging"] == []
    if images.ids() == []:
        assert left == EMPTY


async def test_a_layer_that_is_gone_from_the_disk_is_made_again(load_bytes: Load, images: Images) -> None:
    (image,) = await load_bytes(docker_archive([ONE]))
    path = images.layers.stack(image.chain_id)[0].path
    os.rename(path, path.parent / "elsewhere")
    images.recover()
    await load_bytes(docker_archive([ONE]))
    assert (path / "one").read_bytes() == b"1"
