"""``seacan image copy``: between registries, layouts and archives, byte for byte."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from seacan.errors import InvalidParameter, NotFound, SeacanError
from seacan.registry.copy import copy
from seacan.registry.credentials import NONE
from tests.unit.images.archives import layer
from tests.unit.registry import fake
from tests.unit.registry.fake import INDEX, MANIFEST, FakeRegistry, digest
from tests.unit.storage.archives import Entry

ONE = layer(Entry("one", b"1"))
TWO = layer(Entry("two", os.urandom(1 << 20)))


async def copied(source: str, destination: str) -> str:
    return await copy(source, destination, credentials=lambda _domain: NONE)


def add_index(registry: FakeRegistry, name: str) -> str:
    """Two platforms and something that is no image."""
    parts = [registry.add(name, "amd", [ONE])[0], registry.add(name, "arm", [ONE, TWO], architecture="arm64")[0]]
    blob = b"signed"
    registry.blobs[digest(blob)] = blob
    artifact = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest(blob), "size": len(blob)},
        "layers": [],
    }
    parts.append(registry.put(name, "artifact", json.dumps(artifact).encode(), MANIFEST))
    items = [
        {"mediaType": MANIFEST, "digest": part, "size": len(registry.manifests[f"{name}:{part}"][0])} for part in parts
    ]
    return registry.put(
        name, "1", json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": items}).encode(), INDEX
    )


async def test_all_the_way_around_nothing_changes(registry: FakeRegistry, tmp_path: Path) -> None:
    name = add_index(registry, "a")
    other = FakeRegistry()
    await other.start()
    steps = [f"{registry.host}/a:1", f"oci:{tmp_path}/layout:x", f"archive:{tmp_path}/a.tar:y", f"{other.host}/b/c:2"]
    for source, destination in itertools.pairwise(steps):
        assert await copied(source, destination) == name
    assert other.manifests["b/c:2"] == registry.manifests["a:1"]
    assert set(other.blobs) == set(registry.blobs)
    assert not [entry for entry in os.listdir(tmp_path) if entry.startswith((".", "seacan-copy"))]
    await other.close()


async def test_what_is_there_is_not_sent(registry: FakeRegistry, tmp_path: Path) -> None:
    registry.add("a", "1", [ONE, TWO])
    await copied(f"{registry.host}/a:1", f"oci:{tmp_path}/l")
    before = len(registry.requests)
    await copied(f"{registry.host}/a:1", f"oci:{tmp_path}/l")
    assert not any("/blobs/" in path for _, path, _ in registry.requests[before:])


async def test_a_layout_keeps_its_other_images(registry: FakeRegistry, tmp_path: Path) -> None:
    registry.add("a", "1", [ONE])
    registry.add("a", "2", [TWO])
    for tag in ("1", "2", "1"):
        await copied(f"{registry.host}/a:{tag}", f"oci:{tmp_path}/l:{tag}")
    index = json.loads((tmp_path / "l/index.json").read_bytes())
    assert sorted(item["annotations"]["org.opencontainers.image.ref.name"] for item in index["manifests"]) == ["1", "2"]
    with pytest.raises(NotFound, match="has more than one image"):
        await copied(f"oci:{tmp_path}/l", f"oci:{tmp_path}/m")
    with pytest.raises(NotFound, match="has no image tagged 3"):
        await copied(f"oci:{tmp_path}/l:3", f"oci:{tmp_path}/m")


async def test_wrong_bytes_do_not_arrive(registry: FakeRegistry, tmp_path: Path) -> None:
    _, layers = registry.add("a", "1", [TWO])
    registry.blob_behaviours[layers[0]] = [fake.other_bytes, fake.too_short]
    for _ in range(2):
        with pytest.raises(SeacanError):
            await copied(f"{registry.host}/a:1", f"oci:{tmp_path}/l")
        assert layers[0][7:] not in os.listdir(tmp_path / "l/blobs/sha256") and not (tmp_path / "l/index.json").exists()
    assert await copied(f"{registry.host}/a:1", f"oci:{tmp_path}/l")


async def test_hostile_archives_write_nowhere_else(registry: FakeRegistry, tmp_path: Path) -> None:
    import io
    import tarfile

    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("../escaped", "/tmp/seacan-escaped", "blobs/sha256/../../../escaped", "index.json"):
            info = tarfile.TarInfo(name)
            info.size = 2
            tar.addfile(info, io.BytesIO(b"{}"))
    with pytest.raises(InvalidParameter):
        await copied(f"archive:{tmp_path}/a.tar", f"oci:{tmp_path}/l")
    assert not (tmp_path / "escaped").exists() and not Path("/tmp/seacan-escaped").exists()


async def test_skopeo_reads_what_was_copied(registry: FakeRegistry, tmp_path: Path) -> None:
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo is not installed")
    name, _ = registry.add("a", "1", [ONE])
    await copied(f"{registry.host}/a:1", f"oci:{tmp_path}/l:tag")
    await copied(f"{registry.host}/a:1", f"archive:{tmp_path}/a.tar:tag")
    for place in (f"oci:{tmp_path}/l:tag", f"oci-archive:{tmp_path}/a.tar:tag"):
        done = subprocess.run(["skopeo", "inspect", "--format", "{{.Digest}}", place], capture_output=True, text=True)
        assert done.stdout.strip() == name, done.stderr
