"""``docker push``: what arrives, what is not sent twice, and digests that survive."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator

import pytest

from seacan.errors import NotFound
from seacan.images import reference as references
from seacan.images.load import load
from seacan.images.store import Image, Images
from seacan.registry.distribution import Distribution
from tests.unit.images.archives import docker_archive, layer
from tests.unit.registry.conftest import Messages
from tests.unit.registry.fake import FakeRegistry, digest
from tests.unit.registry.test_pull import pull
from tests.unit.storage.archives import Entry

ONE = layer(Entry("one", b"1"))
TWO = layer(Entry("two", os.urandom(2 << 20)))


async def loaded(images: Images, *layers: bytes, tag: str) -> Image:
    async def body() -> AsyncIterator[bytes]:
        yield docker_archive(layers, [tag])

    return (await load(images, body(), Messages().report))[0]


async def push(distribution: Distribution, registry: FakeRegistry, name: str, messages: Messages | None = None) -> str:
    reference = references.parse(f"{registry.host}/{name}")
    report = (Messages() if messages is None else messages).report
    (pushed,) = await distribution.push(reference, report)
    return pushed


async def test_an_image_arrives_whole_with_docker_s_messages(
    distribution: Distribution, registry: FakeRegistry, images: Images, messages: Messages
) -> None:
    image = await loaded(images, ONE, TWO, tag=f"{registry.host}/a/b:1")
    pushed = await push(distribution, registry, "a/b:1", messages)
    content, media_type = registry.manifests["a/b:1"]
    manifest = json.loads(content)
    assert digest(content) == pushed and media_type == manifest["mediaType"]
    assert manifest["config"]["digest"] == image.id and image.id in registry.blobs
    assert all(item["digest"] in registry.blobs for item in manifest["layers"])
    assert messages[0] == {"status": f"The push refers to repository [{registry.host}/a/b]"}
    assert messages.statuses(digest(TWO)[7:19]) == ["Preparing", "Pushing", "Pushed"]
    assert messages[-2:] == [
        {"status": f"1: digest: {pushed} size: {len(content)}"},
        {"progressDetail": {}, "aux": {"Tag": "1", "Digest": pushed, "Size": len(content)}},
    ]
    assert images.get(f"{registry.host}/a/b:1").digests == [f"{registry.host}/a/b@{pushed}"]


async def test_what_was_pulled_is_pushed_byte_for_byte(
    distribution: Distribution, registry: FakeRegistry, images: Images
) -> None:
    manifest, layers = registry.add("from", "1", [ONE, TWO])
    await pull(distribution, registry, "from:1")
    images.tag(f"{registry.host}/from:1", references.parse(f"{registry.host}/to:2"))
    for name in layers:
        del registry.blobs[name]
    assert await push(distribution, registry, "to:2") == manifest
    assert registry.manifests["to:2"][0] == registry.manifests["from:1"][0]
    assert all(name in registry.blobs for name in layers)


async def test_what_the_registry_has_is_not_sent(
    distribution: Distribution, registry: FakeRegistry, images: Images, messages: Messages
) -> None:
    await loaded(images, ONE, TWO, tag=f"{registry.host}/a:1")
    first = await push(distribution, registry, "a:1")
    before = len(registry.requests)
    assert await push(distribution, registry, "a:1", messages) == first
    assert messages.statuses(digest(ONE)[7:19]) == ["Preparing", "Layer already exists"]
    assert not any(method == "POST" for method, _, _ in registry.requests[before:])


async def test_layers_are_mounted_from_other_repositories(
    distribution: Distribution, registry: FakeRegistry, images: Images, messages: Messages
) -> None:
    await loaded(images, ONE, tag=f"{registry.host}/a:1")
    await push(distribution, registry, "a:1")
    images.tag(f"{registry.host}/a:1", references.parse(f"{registry.host}/b:1"))
    stored = images.layer_blobs(images.resolve(f"{registry.host}/a:1"))[0]
    assert stored is not None
    answered = registry._blob

    async def unknown_in_b(request: object, name: str, wanted: str) -> object:
        if name == "b":
            from tests.unit.registry.fake import error

            return error("BLOB_UNKNOWN", "blob unknown to registry", 404)
        return await answered(request, name, wanted)  # type: ignore[arg-type]

    registry._blob = unknown_in_b  # type: ignore[assignment, method-assign]
    await push(distribution, registry, "b:1", messages)
    assert "Mounted from a" in messages.statuses(digest(ONE)[7:19])


async def test_a_server_that_takes_blobs_in_pieces_only(
    distribution: Distribution, registry: FakeRegistry, images: Images
) -> None:
    registry.monolithic = False
    await loaded(images, TWO, tag=f"{registry.host}/a:1")
    await push(distribution, registry, "a:1")
    assert registry.asked("PATCH", "/a/blobs/uploads/") == 2
    assert any(len(content) > 1 << 20 for content in registry.blobs.values())


async def test_compressed_layers_take_the_place_of_plain_ones(
    distribution: Distribution, registry: FakeRegistry, images: Images
) -> None:
    image = await loaded(images, ONE, tag=f"{registry.host}/a:1")
    (plain,) = images.layer_blobs(image.id)
    await push(distribution, registry, "a:1")
    (kept,) = images.layer_blobs(image.id)
    assert plain is not None and kept is not None
    assert kept.digest != plain.digest and kept.digest in registry.blobs
    assert not images.blobs.contains(plain.digest) and images.blobs.contains(kept.digest)
    images.recover()
    assert images.blobs.contains(kept.digest)


async def test_what_is_not_here_cannot_be_pushed(
    distribution: Distribution, registry: FakeRegistry, images: Images
) -> None:
    with pytest.raises(NotFound, match=f"An image does not exist locally with the tag: {registry.host}/a"):
        await push(distribution, registry, "a:1")
    await loaded(images, ONE, tag=f"{registry.host}/a:1")
    with pytest.raises(NotFound, match=f"tag does not exist: {registry.host}/a:2"):
        await push(distribution, registry, "a:2")
