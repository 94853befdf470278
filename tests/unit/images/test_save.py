"""``docker save``: what it writes can be loaded, by us and by others, as the same images."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from seacan.errors import NotFound, System
from seacan.images.save import save, select
from seacan.images.store import Images
from tests.unit.images.archives import docker_archive, layer, layout_files, pack
from tests.unit.images.conftest import Load
from tests.unit.storage.archives import COMPRESSIONS, Entry

ONE = layer(Entry("one", b"1"))
TWO = layer(Entry("two", b"22"))
Save = Callable[..., Awaitable[bytes]]


def files(content: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar if info.isfile()}  # type: ignore[union-attr]


@pytest.mark.parametrize("compression", COMPRESSIONS)
async def test_saved_images_load_again_as_they_were(
    load_bytes: Load, save_bytes: Save, images: Images, compression: str
) -> None:
    (image,) = await load_bytes(docker_archive([ONE, TWO], ["a:1", "b.c/d:2"], compress=COMPRESSIONS[compression]))
    content = await save_bytes("a:1", "b.c/d:2")
    images.remove(image.id, force=True)
    assert images.ids() == []
    (again,) = await load_bytes(content)
    assert (again.id, again.tags, again.size) == (image.id, image.tags, image.size)
    assert await save_bytes("a:1", "b.c/d:2") == content


async def test_the_archive_is_both_docker_s_and_oci_s(load_bytes: Load, save_bytes: Save) -> None:
    (image,) = await load_bytes(docker_archive([ONE], ["a:1"]))
    saved = files(await save_bytes("a:1"))
    (item,) = json.loads(saved["manifest.json"])
    assert item["RepoTags"] == ["a:1"] and item["Config"] == f"blobs/sha256/{image.id[7:]}"
    assert all(name in saved for name in [item["Config"], *item["Layers"]])
    (descriptor,) = json.loads(saved["index.json"])["manifests"]
    assert descriptor["annotations"]["io.containerd.image.name"] == "docker.io/library/a:1"
    manifest = json.loads(saved["blobs/sha256/" + descriptor["digest"][7:]])
    assert manifest["config"]["digest"] == image.id
    assert json.loads(saved["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    assert json.loads(saved["repositories"]) == {"a": {"1": item["Layers"][-1].rpartition("/")[2]}}


async def test_a_manifest_keeps_its_digest(load_bytes: Load, save_bytes: Save) -> None:
    (image,) = await load_bytes(pack(layout_files([ONE, TWO], compress=gzip.compress)))
    saved = files(await save_bytes("test:latest"))
    assert f"blobs/sha256/{str(image.manifest)[7:]}" in saved
    assert json.loads(saved["index.json"])["manifests"][0]["digest"] == image.manifest


async def test_several_images_share_their_layers(load_bytes: Load, save_bytes: Save) -> None:
    await load_bytes(docker_archive([ONE], ["a:1"]))
    (two,) = await load_bytes(docker_archive([ONE, TWO], ["a:2"]))
    saved = files(await save_bytes("a", two.id))
    assert len(json.loads(saved["manifest.json"])) == 2
    assert sum(name.startswith("blobs/") for name in saved) == 2 + 2 + 2


async def test_an_id_alone_saves_no_name(load_bytes: Load, save_bytes: Save) -> None:
    (image,) = await load_bytes(docker_archive([ONE], ["a:1"]))
    saved = files(await save_bytes(image.id[7:19]))
    assert json.loads(saved["manifest.json"])[0]["RepoTags"] is None and "repositories" not in saved


async def test_what_is_not_here_cannot_be_saved(load_bytes: Load, save_bytes: Save) -> None:
    with pytest.raises(NotFound, match=r"^No such image: nope$"):
        await save_bytes("nope")


async def test_a_damaged_layer_is_told(load_bytes: Load, save_bytes: Save, images: Images) -> None:
    (image,) = await load_bytes(docker_archive([ONE], ["a:1"]))
    (blob,) = images.layer_blobs(image.id)
    assert blob is not None
    path = images.blobs.path(blob.digest)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(System, match=r"layer 0 of image sha256:.* is damaged: blob sha256:.* is truncated"):
        await save_bytes("a:1")
    path.unlink()
    with pytest.raises(System, match=r"blob sha256:.* is missing"):
        await save_bytes("a:1")


async def test_a_layer_whose_bytes_changed_is_told_before_the_first_byte(
    load_bytes: Load, save_bytes: Save, images: Images
) -> None:
    (image,) = await load_bytes(docker_archive([ONE], ["a:1"]))
    await load_bytes(docker_archive([TWO], ["b:1"]))
    (blob,) = images.layer_blobs(image.id)
    assert blob is not None
    path = images.blobs.path(blob.digest)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(System, match=f"^blob {blob.digest} is damaged: {path} has digest sha256:"):
        await anext(aiter(save(images, select(images, ["a:1"]))))
    await save_bytes("b:1")
    path.write_bytes(content)
    await save_bytes("a:1")


async def test_skopeo_reads_it(load_bytes: Load, save_bytes: Save, tmp_path: Path) -> None:
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo is not installed")
    (image,) = await load_bytes(docker_archive([ONE, TWO], ["a:1"]))
    (tmp_path / "a.tar").write_bytes(await save_bytes("a:1"))
    for transport in (f"docker-archive:{tmp_path}/a.tar", f"oci-archive:{tmp_path}/a.tar"):
        done = subprocess.run(["skopeo", "inspect", "--config", transport], capture_output=True, text=True, check=True)
        assert json.loads(done.stdout)["rootfs"]["diff_ids"] == image.config.rootfs.diff_ids
