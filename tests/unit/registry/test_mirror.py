"""The registry as a mirror: a second registry of ours is the origin."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from seacan.registry.client import Registries
from seacan.registry.credentials import NONE
from seacan.registry.endpoints import Settings
from seacan.registry.server.access import Anyone
from seacan.registry.server.application import application
from seacan.registry.server.mirror import Mirror
from seacan.registry.server.store import Store

OCI = "application/vnd.oci.image.manifest.v1+json"


def sha(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


class Origin:
    """A registry whose requests are counted, and which can be taken down."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder)
        app = application(self.store, Anyone())
        self.requests: list[str] = []
        app.middlewares.append(self._count)  # type: ignore[arg-type]
        self.server = TestServer(app)

    @web.middleware
    async def _count(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.requests.append(request.path)
        await asyncio.sleep(0.01)
        answer: web.StreamResponse = await handler(request)
        return answer

    def push(self, tag: str, layer: bytes) -> str:
        for content in (b"{}", layer):
            upload = self.store.begin_upload("app")
            upload.write(content)
            self.store.finish_upload("app", upload, sha(content))  # type: ignore[arg-type]
        parts = [
            {"mediaType": "application/octet-stream", "digest": sha(content), "size": len(content)}
            for content in (b"{}", layer)
        ]
        manifest = {"schemaVersion": 2, "mediaType": OCI, "config": parts[0], "layers": parts[1:]}
        return self.store.put_manifest("app", tag, json.dumps(manifest).encode(), OCI)[0]


@pytest.fixture
async def origin(tmp_path: Path) -> AsyncIterator[Origin]:
    origin = Origin(tmp_path / "origin")
    await origin.server.start_server()
    yield origin
    await origin.server.close()


@pytest.fixture
async def client(origin: Origin, tmp_path: Path) -> AsyncIterator[TestClient[Any, Any]]:
    store = Store(tmp_path / "mirror")
    mirror = Mirror(store, Registries(Settings), f"127.0.0.1:{origin.server.port}", NONE)
    client: TestClient[Any, Any] = TestClient(TestServer(application(store, Anyone(), upstream=mirror)))
    await client.start_server()
    yield client
    await client.close()
    await mirror.close()


async def test_what_is_missing_is_fetched_once_and_kept(origin: Origin, client: TestClient[Any, Any]) -> None:
    digest = origin.push("1", b"layer")
    for _ in range(2):
        answer = await client.get("/v2/app/manifests/1")
        assert (answer.status, answer.headers["Docker-Content-Digest"]) == (200, digest)
        assert await (await client.get(f"/v2/app/blobs/{sha(b'layer')}")).read() == b"layer"
    assert origin.requests.count(f"/v2/app/blobs/{sha(b'layer')}") == 1


async def test_many_clients_wait_for_one_download(origin: Origin, client: TestClient[Any, Any]) -> None:
    origin.push("1", b"layer")
    answers = await asyncio.gather(*(client.get(f"/v2/app/blobs/{sha(b'layer')}") for _ in range(8)))
    assert [await answer.read() for answer in answers] == [b"layer"] * 8
    assert origin.requests.count(f"/v2/app/blobs/{sha(b'layer')}") == 1


async def test_tag_moves_when_the_origins_does(origin: Origin, client: TestClient[Any, Any]) -> None:
    origin.push("latest", b"old")
    await client.get("/v2/app/manifests/latest")
    new = origin.push("latest", b"new")
    assert (await client.get("/v2/app/manifests/latest")).headers["Docker-Content-Digest"] == new


async def test_copy_answers_while_the_origin_is_down(origin: Origin, client: TestClient[Any, Any]) -> None:
    digest = origin.push("1", b"layer")
    await client.get("/v2/app/manifests/1")
    await client.get(f"/v2/app/blobs/{sha(b'layer')}")
    await origin.server.close()
    assert (await client.get("/v2/app/manifests/1")).headers["Docker-Content-Digest"] == digest
    assert (await client.get(f"/v2/app/blobs/{sha(b'layer')}")).status == 200
    gone = await client.get("/v2/app/manifests/2")
    assert gone.status == 502


async def test_what_the_origin_lacks_is_unknown(origin: Origin, client: TestClient[Any, Any]) -> None:
    assert (await client.get("/v2/app/manifests/none")).status == 404
    assert (await client.get(f"/v2/app/blobs/{sha(b'none')}")).status == 404


async def test_mirror_takes_no_pushes(client: TestClient[Any, Any]) -> None:
    assert (await client.post("/v2/app/blobs/uploads/")).status == 405
