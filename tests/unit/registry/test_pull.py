"""``docker pull`` against registries that behave, and against some that do not."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
from pathlib import Path

import pytest

from seacan.engine.options import EngineOptions
from seacan.errors import InvalidParameter, NotFound, SeacanError
from seacan.images import reference as references
from seacan.images.listing import prune
from seacan.images.manifest import Platform
from seacan.images.store import Images
from seacan.registry.distribution import Distribution
from seacan.storage.digest import Digest
from tests.unit.images.archives import layer
from tests.unit.registry import fake
from tests.unit.registry.conftest import Messages
from tests.unit.registry.fake import INDEX, FakeRegistry, digest
from tests.unit.storage.archives import Entry, zstd

ONE = layer(Entry("one", b"1"))
TWO = layer(Entry("two", os.urandom(3 << 20)))


async def pull(
    distribution: Distribution, registry: FakeRegistry, name: str, messages: Messages | None = None, **more: object
) -> list[object]:
    reference = references.parse(f"{registry.host}/{name}")
    return await distribution.pull(reference, (Messages() if messages is None else messages).report, **more)  # type: ignore[arg-type, return-value]


async def test_an_image_arrives_with_docker_s_messages(
    distribution: Distribution, registry: FakeRegistry, images: Images, messages: Messages
) -> None:
    manifest, layers = registry.add("a/b", "1", [ONE, TWO])
    (image,) = await pull(distribution, registry, "a/b:1", messages)
    found = images.get(f"{registry.host}/a/b:1")
    assert found == image
    assert found.digests == [f"{registry.host}/a/b@{manifest}"] and found.manifest == manifest
    top = images.layers.stack(found.chain_id)[0].path
    assert (top / "two").stat().st_size == 3 << 20
    short = [name[7:19] for name in layers]
    assert messages[0] == {"status": "Pulling from a/b", "id": "1"}
    assert messages.statuses(short[1])[0] == "Pulling fs layer"
    assert messages.statuses(short[1])[-4:] == [
        "Verifying Checksum",
        "Download complete",
        "Extracting",
        "Pull complete",
    ]
    assert [message["status"] for message in messages[-2:]] == [
        f"Digest: {manifest}",
        f"Status: Downloaded newer image for {registry.host}/a/b:1",
    ]
    bars = [message for message in messages if message.get("status") == "Downloading" and message["id"] == short[1]]
    assert bars[-1]["progressDetail"]["current"] == bars[-1]["progressDetail"]["total"]


async def test_what_is_here_is_not_fetched_again(
    distribution: Distribution, registry: FakeRegistry, messages: Messages
) -> None:
    _, layers = registry.add("a", "1", [ONE, TWO])
    registry.add("a", "2", [ONE, layer(Entry("three"))])
    await pull(distribution, registry, "a:1")
    await pull(distribution, registry, "a:1", messages)
    assert messages.statuses()[-1] == f"Status: Image is up to date for {registry.host}/a:1"
    await pull(distribution, registry, "a:2", messages)
    assert messages.statuses(layers[0][7:19]) == ["Already exists"]
    assert registry.asked("GET", layers[0]) == 1


async def test_by_digest_and_with_all_tags(distribution: Distribution, registry: FakeRegistry, images: Images) -> None:
    manifest, _ = registry.add("a", "1", [ONE])
    for tag in ("2", "3", "4", "5"):
        registry.add("a", tag, [ONE], author=tag)
    await pull(distribution, registry, f"a@{manifest}")
    assert images.get(f"{registry.host}/a@{manifest}").tags == []
    pulled = await pull(distribution, registry, "a", all_tags=True)
    assert len(pulled) == 5
    assert len(images.tags_of(references.parse(f"{registry.host}/a"))) == 5


async def test_an_index_gives_the_platform_and_keeps_its_digest(
    distribution: Distribution, registry: FakeRegistry, images: Images
) -> None:
    amd, _ = registry.add("m", "amd", [ONE])
    arm, _ = registry.add("m", "arm", [TWO], architecture="arm64", variant="v8")
    index = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": [
                {
                    "mediaType": fake.MANIFEST,
                    "digest": digest(b"attestation"),
                    "size": 11,
                    "platform": {"os": "unknown", "architecture": "unknown"},
                    "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
                },
                *(
                    {
                        "mediaType": fake.MANIFEST,
                        "digest": name,
                        "size": len(registry.manifests[f"m:{name}"][0]),
                        "platform": {"os": "linux", "architecture": architecture},
                    }
                    for name, architecture in ((amd, "amd64"), (arm, "arm64"))
                ),
            ],
        }
    ).encode()
    name = registry.put("m", "1", index, INDEX)
    await pull(distribution, registry, "m:1", platform=Platform("linux", "arm64"))
    found = images.get(f"{registry.host}/m:1")
    assert found.config.architecture == "arm64" and found.manifest == arm
    assert found.digests == [f"{registry.host}/m@{name}"]
    with pytest.raises(NotFound, match="no matching manifest for linux/s390x in the manifest list entries"):
        await pull(distribution, registry, "m:1", platform=Platform("linux", "s390x"))


def attested(registry: FakeRegistry, statement: bytes, *, announced: int | None = None) -> tuple[str, str, str]:
    """``m:1`` is an index of one image and its attestation: the digests of index, image and attestation."""
    image, _ = registry.add("m", "image", [ONE])
    layer = {"mediaType": "application/vnd.in-toto+json", "digest": digest(statement), "size": len(statement)}
    registry.blobs[digest(statement)] = statement
    config = b"{}"
    registry.blobs[digest(config)] = config
    about = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": fake.MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(config), "size": 2},
            "layers": [layer if announced is None else layer | {"size": announced}],
        }
    ).encode()
    attestation = registry.put("m", digest(about), about, fake.MANIFEST)
    entries = [
        {"mediaType": fake.MANIFEST, "digest": image, "size": len(registry.manifests[f"m:{image}"][0])}
        | {"platform": {"os": "linux", "architecture": "amd64"}},
        {"mediaType": fake.MANIFEST, "digest": attestation, "size": len(about)}
        | {"platform": {"os": "unknown", "architecture": "unknown"}}
        | {
            "annotations": {
                "vnd.docker.reference.type": "attestation-manifest",
                "vnd.docker.reference.digest": image,
            }
        },
    ]
    content = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode()
    return registry.put("m", "1", content, INDEX), image, attestation


async def test_attestations_come_along_and_go_with_the_image(
    distribution: Distribution, registry: FakeRegistry, images: Images
) -> None:
    index, image, attestation = attested(registry, b"statement")
    await pull(distribution, registry, "m:1")
    entries = images.indexes.entries(Digest(index))
    assert [(entry.kind, entry.available, entry.attests) for entry in entries] == [
        ("image", True, None),
        ("attestation", True, image),
    ]
    images.recover()
    kept = {index, image, attestation, digest(b"statement")}
    assert kept <= set(images.blobs)
    images.remove(f"{registry.host}/m:1")
    assert not kept & set(images.blobs)


@pytest.mark.parametrize("damage", ["missing", "endless"])
async def test_an_image_arrives_without_an_attestation_that_cannot_be_had(
    distribution: Distribution, registry: FakeRegistry, images: Images, damage: str
) -> None:
    index, _, _ = attested(registry, b"statement", announced=1 << 40 if damage == "endless" else None)
    if damage == "missing":
        del registry.blobs[digest(b"statement")]
    await pull(distribution, registry, "m:1")
    assert images.get(f"{registry.host}/m:1")
    assert [entry.available for entry in images.indexes.entries(Digest(index))] == [True, False]


async def test_a_failed_pull_leaves_only_what_can_be_resumed(
    distribution: Distribution, registry: FakeRegistry, images: Images
) -> None:
    _, layers = registry.add("a", "1", [ONE, TWO])
    del registry.blobs[layers[1]]
    attested(registry, b"statement")
    with pytest.raises(SeacanError):
        await pull(distribution, registry, "a:1")
    assert not list(images.blobs)
    ingest = images.blobs.root / "ingest"
    left = {path.name for path in ingest.iterdir()}
    assert left and left <= {f"{name[7:]}.partial" for name in layers}
    for path in ingest.iterdir():
        os.utime(path, (1, 1))
    await pull(distribution, registry, "m:1")
    assert not list(ingest.iterdir()), "what nobody has gone on with for days is still there"


async def test_pruning_all_images_takes_broken_off_downloads_too(
    distribution: Distribution, registry: FakeRegistry, images: Images
) -> None:
    _, layers = registry.add("a", "1", [ONE, TWO])
    del registry.blobs[layers[1]]
    with pytest.raises(SeacanError):
        await pull(distribution, registry, "a:1")
    partials = list((images.blobs.root / "ingest").iterdir())
    size = sum(path.stat().st_size for path in partials)
    assert prune(images)[1] == 0 and partials
    with images.lease() as lease:
        lease.add(*layers)
        assert prune(images, {"dangling": ["false"]})[1] == 0
    assert prune(images, {"dangling": ["false"]})[1] == size > 0
    assert not list((images.blobs.root / "ingest").iterdir())


@pytest.mark.parametrize("compress", [lambda c: c, gzip.compress, zstd], ids=["none", "gzip", "zstd"])
async def test_layers_of_every_compression(
    distribution: Distribution, registry: FakeRegistry, images: Images, compress: object
) -> None:
    registry.add("c", "1", [ONE, TWO], compress=compress)
    await pull(distribution, registry, "c:1")
    assert len(images.layers.stack(images.get(f"{registry.host}/c:1").chain_id)) == 2


async def test_a_layer_wanted_twice_is_fetched_once(
    distribution: Distribution, registry: FakeRegistry, images: Images
) -> None:
    _, layers = registry.add("a", "1", [TWO])
    registry.add("a", "2", [TWO], author="another")
    registry.add("a", "3", [ONE, TWO])
    await asyncio.gather(*(pull(distribution, registry, f"a:{tag}") for tag in (1, 2, 3)))
    assert registry.asked("GET", layers[0]) == 1
    assert len(images.ids()) == 3


async def test_no_more_downloads_at_once_than_allowed(
    distribution: Distribution, registry: FakeRegistry, options: EngineOptions
) -> None:
    options.max_concurrent_downloads = 2
    for number in range(3):
        registry.add(f"r{number}", "1", [layer(Entry(f"{number}-{each}", os.urandom(9))) for each in range(4)])
    await asyncio.gather(*(pull(distribution, registry, f"r{number}:1") for number in range(3)))
    assert registry.most <= 2


@pytest.mark.parametrize(
    "behaviours",
    [
        [fake.cut_in_the_middle, fake.cut_in_the_middle],
        [fake.cut_in_the_middle, fake.ignores_ranges],
        [fake.too_short],
        [fake.unavailable, fake.too_many_requests],
    ],
    ids=["cut connections", "no ranges", "short body", "503 and 429"],
)
async def test_a_broken_download_goes_on(
    distribution: Distribution,
    registry: FakeRegistry,
    images: Images,
    messages: Messages,
    behaviours: list[fake.Behaviour],
) -> None:
    _, layers = registry.add("a", "1", [TWO])
    registry.blob_behaviours[layers[0]] = list(behaviours)
    await pull(distribution, registry, "a:1", messages)
    assert images.get(f"{registry.host}/a:1")
    assert any(text.startswith("Retrying in ") for text in messages.statuses())
    ranges = [
        headers["Range"] for method, path, headers in registry.requests if layers[0] in path and "Range" in headers
    ]
    assert bool(ranges) == (behaviours[0] in (fake.cut_in_the_middle, fake.too_short))


async def test_a_download_goes_on_after_a_restart(
    distribution: Distribution, registry: FakeRegistry, images: Images, options: EngineOptions
) -> None:
    options.max_download_attempts = 1
    _, layers = registry.add("a", "1", [ONE, TWO])
    registry.blob_behaviours[layers[1]] = [fake.cut_in_the_middle]
    with pytest.raises(SeacanError):
        await pull(distribution, registry, "a:1")
    assert images.ids() == [] and images.layers.all() == []
    images.recover()
    before = len(registry.requests)
    await pull(distribution, registry, "a:1")
    later = registry.requests[before:]
    assert not any(layers[0] in path for _, path, _ in later)
    (headers,) = [headers for _, path, headers in later if layers[1] in path]
    assert int(headers["Range"].removeprefix("bytes=").rstrip("-")) > 1 << 20


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        (fake.other_bytes, "filesystem layer verification failed for digest sha256:"),
        (fake.endless, "more than the announced"),
    ],
)
async def test_wrong_content_is_refused_and_forgotten(
    distribution: Distribution,
    registry: FakeRegistry,
    images: Images,
    tmp_path: Path,
    behaviour: fake.Behaviour,
    message: str,
) -> None:
    _, layers = registry.add("a", "1", [TWO])
    registry.blob_behaviours[layers[0]] = [behaviour]
    with pytest.raises(InvalidParameter, match=message):
        await pull(distribution, registry, "a:1")
    assert images.ids() == [] and images.layers.all() == []
    assert os.listdir(tmp_path / "blobs/ingest") == []
    await pull(distribution, registry, "a:1")


async def test_a_manifest_that_is_not_its_digest_is_refused(distribution: Distribution, registry: FakeRegistry) -> None:
    manifest, _ = registry.add("a", "1", [ONE])
    registry.manifests[f"a:{manifest}"] = (b'{"schemaVersion": 2}', fake.MANIFEST)
    with pytest.raises(InvalidParameter, match=f"manifest verification failed for digest {manifest}"):
        await pull(distribution, registry, f"a@{manifest}")


async def test_layers_that_are_not_what_the_configuration_says(
    distribution: Distribution, registry: FakeRegistry, images: Images
) -> None:
    registry.add("a", "1", [ONE], rootfs={"type": "layers", "diff_ids": [digest(b"other")]})
    with pytest.raises(InvalidParameter, match=r"unpacks to sha256:.*where the configuration says"):
        await pull(distribution, registry, "a:1")
    registry.add("a", "2", [ONE], rootfs={"type": "layers", "diff_ids": []})
    with pytest.raises(InvalidParameter, match="has 1 layers and its configuration 0"):
        await pull(distribution, registry, "a:2")
    assert images.ids() == []


async def test_refusals_in_dockerd_s_words(distribution: Distribution, registry: FakeRegistry) -> None:
    with pytest.raises(NotFound, match=r"manifest for .*/a:9 not found: manifest unknown: manifest unknown"):
        await pull(distribution, registry, "a:9")
    registry.authorize = lambda _: fake.error("DENIED", "requested access to the resource is denied", 403)
    with pytest.raises(
        NotFound, match=r"pull access denied for .*/a, repository does not exist or may require 'docker login'"
    ):
        await pull(distribution, registry, "a:9")
    await registry.close()
    with pytest.raises(
        SeacanError, match=r'Get "https?://127.0.0.1:\d+/v2/": dial tcp .*: connect: connection refused'
    ):
        await pull(distribution, registry, "a:9")


async def test_old_schemas_and_artifacts_are_refused(distribution: Distribution, registry: FakeRegistry) -> None:
    registry.put("a", "1", b'{"schemaVersion": 1, "fsLayers": []}', "application/json")
    with pytest.raises(InvalidParameter, match="schema 1 support has been removed"):
        await pull(distribution, registry, "a:1")
    config = b"{}"
    registry.blobs[digest(config)] = config
    artifact = {
        "schemaVersion": 2,
        "config": {"mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": digest(config), "size": 2},
        "layers": [],
    }
    registry.put("a", "2", json.dumps(artifact).encode(), fake.MANIFEST)
    with pytest.raises(InvalidParameter, match="is an artifact and no image"):
        await pull(distribution, registry, "a:2")


async def test_a_pull_that_is_given_up_leaves_nothing_half_made(
    distribution: Distribution, registry: FakeRegistry, images: Images, tmp_path: Path
) -> None:
    _, layers = registry.add("a", "1", [ONE, TWO])
    started = asyncio.Event()

    async def hang(request: object, content: bytes) -> fake.web.StreamResponse:
        started.set()
        await asyncio.sleep(60)
        raise AssertionError

    registry.blob_behaviours[layers[1]] = [hang]
    task = asyncio.create_task(pull(distribution, registry, "a:1"))
    await started.wait()
    await asyncio.sleep(0.2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert images.ids() == [] and images.layers.all() == []
    assert os.listdir(tmp_path / "layers/staging") == [] and os.listdir(tmp_path / "blobs/sha256") == []
    await pull(distribution, registry, "a:1")
    assert len(images.ids()) == 1
