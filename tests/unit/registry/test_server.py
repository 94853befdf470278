"""The registry server, by the letter of the OCI distribution specification."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import bcrypt
import pytest
from aiohttp import encode_basic_auth
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from seacan.registry.server.access import Anyone, Htpasswd
from seacan.registry.server.application import application
from seacan.registry.server.store import Store
from seacan.storage.blobs import Blobs

OCI = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
Client = TestClient[Any, Any]


def sha(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def descriptor(content: bytes, media_type: str = "application/octet-stream") -> dict[str, Any]:
    return {"mediaType": media_type, "digest": sha(content), "size": len(content)}


def image(config: bytes, *layers: bytes, **more: Any) -> bytes:
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI,
            "config": descriptor(config, "application/vnd.oci.image.config.v1+json"),
            "layers": [descriptor(layer) for layer in layers],
            **more,
        }
    ).encode()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "registry")


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Any]]:
    clients: list[Client] = []

    async def make(store: Store, access: Any = None, **options: Any) -> Client:
        client: Client = TestClient(TestServer(application(store, access or Anyone(), **options)))
        await client.start_server()
        clients.append(client)
        return client

    yield make
    for client in clients:
        await client.close()


@pytest.fixture
async def client(store: Store, serve: Callable[..., Any]) -> Client:
    result: Client = await serve(store)
    return result


async def push(client: Client, name: str, content: bytes) -> str:
    answer = await client.post(f"/v2/{name}/blobs/uploads/", params={"digest": sha(content)}, data=content)
    assert answer.status == 201, await answer.text()
    return sha(content)


async def push_image(client: Client, name: str, tag: str, *layers: bytes, config: bytes = b"{}", **more: Any) -> str:
    for content in (config, *layers):
        await push(client, name, content)
    manifest = image(config, *layers, **more)
    answer = await client.put(f"/v2/{name}/manifests/{tag}", data=manifest, headers={"Content-Type": OCI})
    assert answer.status == 201, await answer.text()
    assert answer.headers["Docker-Content-Digest"] == sha(manifest)
    return sha(manifest)


async def code(answer: Any) -> str:
    return str((await answer.json())["errors"][0]["code"])


async def test_base_endpoint_says_the_api_version(client: Client) -> None:
    answer = await client.get("/v2/")
    assert (answer.status, await answer.json()) == (200, {})
    assert answer.headers["Docker-Distribution-API-Version"] == "registry/2.0"


async def test_blob_pushed_in_one_request_comes_back(client: Client) -> None:
    digest = await push(client, "a/b", b"hello")
    answer = await client.get(f"/v2/a/b/blobs/{digest}")
    assert (answer.status, await answer.read()) == (200, b"hello")
    assert answer.headers["Docker-Content-Digest"] == digest
    head = await client.head(f"/v2/a/b/blobs/{digest}")
    assert (head.status, head.headers["Content-Length"]) == (200, "5")


async def test_blob_is_sent_in_ranges(client: Client) -> None:
    digest = await push(client, "a", b"0123456789")
    answer = await client.get(f"/v2/a/blobs/{digest}", headers={"Range": "bytes=3-5"})
    assert (answer.status, await answer.read()) == (206, b"345")
    assert answer.headers["Content-Range"] == "bytes 3-5/10"
    beyond = await client.get(f"/v2/a/blobs/{digest}", headers={"Range": "bytes=20-"})
    assert beyond.status == 416


async def test_chunks_must_follow_each_other(client: Client) -> None:
    begun = await client.post("/v2/a/blobs/uploads/")
    assert begun.status == 202
    location = begun.headers["Location"]
    first = await client.patch(location, data=b"0123", headers={"Content-Range": "0-3"})
    assert (first.status, first.headers["Range"]) == (202, "0-3")
    gap = await client.patch(location, data=b"89", headers={"Content-Range": "8-9"})
    assert gap.status == 416
    status = await client.get(location)
    assert (status.status, status.headers["Range"]) == (204, "0-3")
    await client.patch(location, data=b"4567", headers={"Content-Range": "4-7"})
    last = await client.put(
        location, params={"digest": sha(b"0123456789")}, data=b"89", headers={"Content-Range": "8-9"}
    )
    assert last.status == 201
    assert await (await client.get(last.headers["Location"])).read() == b"0123456789"


async def test_upload_goes_on_after_the_server_restarts(store: Store, serve: Callable[..., Any]) -> None:
    client = await serve(store)
    location = (await client.post("/v2/a/blobs/uploads/")).headers["Location"]
    await client.patch(location, data=b"first ")
    store.close()
    again = await serve(Store(store.root))
    assert (await again.get(location)).headers["Range"] == "0-5"
    done = await again.put(location, params={"digest": sha(b"first second")}, data=b"second")
    assert done.status == 201


async def test_wrong_digest_is_refused_and_nothing_kept(client: Client, store: Store) -> None:
    answer = await client.post("/v2/a/blobs/uploads/", params={"digest": sha(b"other")}, data=b"hello")
    assert (answer.status, await code(answer)) == (400, "DIGEST_INVALID")
    assert not list(store.blobs)
    assert not list((store.root / "uploads").glob("*/*"))


async def test_cancelled_upload_is_gone(client: Client) -> None:
    location = (await client.post("/v2/a/blobs/uploads/")).headers["Location"]
    assert (await client.delete(location)).status == 204
    answer = await client.get(location)
    assert (answer.status, await code(answer)) == (404, "BLOB_UPLOAD_UNKNOWN")


async def test_blob_is_mounted_from_another_repository(client: Client) -> None:
    digest = await push(client, "from", b"shared")
    mounted = await client.post("/v2/to/blobs/uploads/", params={"mount": digest, "from": "from"})
    assert mounted.status == 201
    assert await (await client.get(f"/v2/to/blobs/{digest}")).read() == b"shared"
    absent = await client.post("/v2/to/blobs/uploads/", params={"mount": sha(b"x"), "from": "from"})
    assert absent.status == 202


async def test_blob_of_another_repository_cannot_be_read(client: Client) -> None:
    digest = await push(client, "private", b"secret")
    await push(client, "mine", b"mine")
    answer = await client.get(f"/v2/mine/blobs/{digest}")
    assert (answer.status, await code(answer)) == (404, "BLOB_UNKNOWN")


async def test_manifest_comes_back_as_pushed_by_tag_and_digest(client: Client) -> None:
    digest = await push_image(client, "app", "v1", b"layer")
    for reference in ("v1", digest):
        answer = await client.get(f"/v2/app/manifests/{reference}")
        assert (answer.status, answer.headers["Content-Type"]) == (200, OCI)
        assert await answer.read() == image(b"{}", b"layer")
        head = await client.head(f"/v2/app/manifests/{reference}")
        assert (head.status, head.headers["Docker-Content-Digest"]) == (200, digest)
    assert int(head.headers["Content-Length"]) == len(image(b"{}", b"layer"))


async def test_manifest_whose_blob_is_missing_is_refused(client: Client) -> None:
    await push(client, "app", b"{}")
    answer = await client.put("/v2/app/manifests/v1", data=image(b"{}", b"absent"), headers={"Content-Type": OCI})
    assert (answer.status, await code(answer)) == (404, "MANIFEST_BLOB_UNKNOWN")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not json",
        b"[]",
        b'{"schemaVersion": 1}',
        b'{"schemaVersion": 2, "config": {"digest": "sha256:../../etc/passwd"}, "layers": []}',
        b'{"schemaVersion": 2, "config": {"digest": "' + sha(b"{}").encode() + b'"}, "layers": [], "manifests": [{}]}',
        b"[" * 100_000,
    ],
)
async def test_malformed_manifest_is_refused(client: Client, content: bytes) -> None:
    await push(client, "app", b"{}")
    answer = await client.put("/v2/app/manifests/v1", data=content, headers={"Content-Type": OCI})
    assert (answer.status, await code(answer)) == (400, "MANIFEST_INVALID")


async def test_manifest_type_must_be_what_the_document_says(client: Client) -> None:
    """CVE-2021-41190: one document that is an index to one client and an image to another."""
    await push(client, "app", b"{}")
    answer = await client.put("/v2/app/manifests/v1", data=image(b"{}"), headers={"Content-Type": INDEX})
    assert (answer.status, await code(answer)) == (400, "MANIFEST_INVALID")


@pytest.mark.parametrize("name", ["UPPER", "a//b", "-a", "a%2F..%2Fb", "a.", "a" * 256])
async def test_bad_names_are_refused(client: Client, name: str) -> None:
    answer = await client.get(URL(f"/v2/{name}/tags/list", encoded=True))
    assert (answer.status, await code(answer)) in ((400, "NAME_INVALID"), (404, "NOT_FOUND"))


async def test_tags_are_listed_in_pages(client: Client) -> None:
    for tag in ("c", "a", "b"):
        await push_image(client, "app", tag)
    assert (await (await client.get("/v2/app/tags/list")).json()) == {"name": "app", "tags": ["a", "b", "c"]}
    page = await client.get("/v2/app/tags/list", params={"n": "2"})
    assert (await page.json())["tags"] == ["a", "b"]
    assert page.headers["Link"] == '</v2/app/tags/list?n=2&last=b>; rel="next"'
    rest = await client.get("/v2/app/tags/list", params={"n": "2", "last": "b"})
    assert (await rest.json())["tags"] == ["c"]
    assert "Link" not in rest.headers
    unknown = await client.get("/v2/none/tags/list")
    assert (unknown.status, await code(unknown)) == (404, "NAME_UNKNOWN")


async def test_catalog_lists_repositories(client: Client) -> None:
    for name in ("b/c", "a"):
        await push_image(client, name, "t")
    assert (await (await client.get("/v2/_catalog")).json()) == {"repositories": ["a", "b/c"]}


async def test_referrers_are_found_by_subject(client: Client) -> None:
    subject = await push_image(client, "app", "v1", b"layer")
    manifest = image(b"{}", b"layer")
    signature = image(
        b"{}",
        artifactType="application/x.signature",
        subject=descriptor(manifest, OCI),
        annotations={"by": "us"},
    )
    put = await client.put(f"/v2/app/manifests/{sha(signature)}", data=signature, headers={"Content-Type": OCI})
    assert (put.status, put.headers["OCI-Subject"]) == (201, subject)
    answer = await client.get(f"/v2/app/referrers/{subject}")
    assert answer.headers["Content-Type"] == INDEX
    (entry,) = (await answer.json())["manifests"]
    assert entry == {
        "mediaType": OCI,
        "digest": sha(signature),
        "size": len(signature),
        "artifactType": "application/x.signature",
        "annotations": {"by": "us"},
    }
    other = await client.get(f"/v2/app/referrers/{subject}", params={"artifactType": "application/x.sbom"})
    assert (await other.json())["manifests"] == []
    assert other.headers["OCI-Filters-Applied"] == "artifactType"
    none = await client.get(f"/v2/unknown/referrers/{subject}")
    assert (none.status, (await none.json())["manifests"]) == (200, [])


async def test_a_manifest_is_put_under_several_tags_at_once(client: Client) -> None:
    digest = await push_image(client, "app", "v1", b"layer")
    kept = await client.get("/v2/app/manifests/v1")
    content, headers = await kept.read(), {"Content-Type": kept.headers["Content-Type"]}
    url = f"/v2/app/manifests/{digest}"
    done = await client.put(url, params=[("tag", "1"), ("tag", "1.2")], data=content, headers=headers)
    assert (done.status, done.headers["OCI-Tag"]) == (201, "1, 1.2")
    assert (await (await client.get("/v2/app/tags/list")).json())["tags"] == ["1", "1.2", "v1"]
    wrong = await client.put(url, params=[("tag", "ok"), ("tag", "not/ok")], data=content, headers=headers)
    assert (wrong.status, await code(wrong)) == (400, "TAG_INVALID")
    many = await client.put(url, params=[("tag", str(n)) for n in range(101)], data=content, headers=headers)
    assert many.status == 414
    assert (await (await client.get("/v2/app/tags/list")).json())["tags"] == ["1", "1.2", "v1"]


async def test_deleting_a_tag_keeps_the_manifest_and_the_reverse_does_not(client: Client, store: Store) -> None:
    digest = await push_image(client, "app", "v1", b"layer")
    await push_image(client, "app", "v2", b"layer")
    assert (await client.delete("/v2/app/manifests/v1")).status == 202
    assert (await client.get("/v2/app/manifests/v1")).status == 404
    assert (await client.get(f"/v2/app/manifests/{digest}")).status == 200
    assert (await client.delete(f"/v2/app/manifests/{digest}")).status == 202
    assert (await client.get("/v2/app/manifests/v2")).status == 404
    assert not store.blobs.contains(digest)  # type: ignore[arg-type]


async def test_blob_is_deleted_from_disk_with_its_last_link(client: Client, store: Store) -> None:
    digest = await push(client, "a", b"x")
    await push(client, "b", b"x")
    assert (await client.delete(f"/v2/a/blobs/{digest}")).status == 202
    assert (await client.get(f"/v2/b/blobs/{digest}")).status == 200
    assert (await client.delete(f"/v2/b/blobs/{digest}")).status == 202
    assert not list(store.blobs)


async def test_history_is_kept_and_rolled_back(client: Client) -> None:
    first = await push_image(client, "app", "latest", b"one")
    second = await push_image(client, "app", "latest", b"two")
    answer = await client.get("/v2/app/_seacan/history/latest")
    assert [change["digest"] for change in (await answer.json())["changes"]] == [second, first]
    back = await client.post("/v2/app/_seacan/history/latest", json={"steps": 1})
    assert (await back.json())["digest"] == first
    assert (await client.head("/v2/app/manifests/latest")).headers["Docker-Content-Digest"] == first
    assert (await client.post("/v2/app/_seacan/history/latest", json={"steps": 9})).status == 404


async def test_collection_frees_what_nothing_needs_and_nothing_else(client: Client, store: Store) -> None:
    await push_image(client, "app", "v1", b"kept")
    await push(client, "app", b"orphan")
    replaced = [await push_image(client, "app", "moving", bytes([number])) for number in range(3)]
    assert store.collect().blobs == 0, "what is younger than the grace stays"
    assert store.collect(grace=-1, dry_run=True).blobs == 1
    assert store.blobs.contains(sha(b"orphan"))  # type: ignore[arg-type]
    freed = store.collect(grace=-1)
    assert (freed.blobs, freed.manifests, freed.bytes) == (1, 0, len(b"orphan"))
    store.keep_history = 2
    freed = store.collect(grace=-1, untagged=True)
    assert (freed.manifests, freed.blobs) == (1, 1)
    assert (await client.get(f"/v2/app/manifests/{replaced[0]}")).status == 404
    for reference in ("v1", "moving", replaced[1]):
        assert (await client.get(f"/v2/app/manifests/{reference}")).status == 200
    assert (await client.get(f"/v2/app/blobs/{sha(b'kept')}")).status == 200


async def test_collection_between_blobs_and_manifest_breaks_no_push(client: Client, store: Store) -> None:
    await push(client, "app", b"{}")
    await push(client, "app", b"layer")
    store.collect(untagged=True)
    answer = await client.put("/v2/app/manifests/v1", data=image(b"{}", b"layer"), headers={"Content-Type": OCI})
    assert answer.status == 201


async def test_referrers_of_a_tagged_image_survive_collection(client: Client, store: Store) -> None:
    await push_image(client, "app", "v1", b"layer")
    signature = image(b"{}", subject=descriptor(image(b"{}", b"layer"), OCI))
    await client.put(f"/v2/app/manifests/{sha(signature)}", data=signature, headers={"Content-Type": OCI})
    assert store.collect(grace=-1, untagged=True).manifests == 0


async def test_quota_is_kept(tmp_path: Path, serve: Callable[..., Any]) -> None:
    store = Store(tmp_path / "r", quota=100)
    client = await serve(store)
    await push(client, "a", b"x" * 90)
    answer = await client.post("/v2/a/blobs/uploads/", params={"digest": sha(b"y" * 20)}, data=b"y" * 20)
    assert (answer.status, await code(answer)) == (403, "DENIED")
    assert store.used() == 90


async def test_read_only_registry_refuses_changes(store: Store, serve: Callable[..., Any]) -> None:
    client = await serve(store, read_only=True)
    answer = await client.post("/v2/a/blobs/uploads/")
    assert (answer.status, await code(answer)) == (405, "UNSUPPORTED")


async def test_blob_that_the_engine_has_is_kept_once(tmp_path: Path, serve: Callable[..., Any]) -> None:
    engine = Blobs(tmp_path / "engine")
    digest = engine.put(b"layer")
    store = Store(tmp_path / "registry", shared=engine)
    await push(await serve(store), "a", b"layer")
    assert store.blobs.path(digest).stat().st_ino == engine.path(digest).stat().st_ino
    store.delete_blob("a", digest)
    assert engine.read(digest) == b"layer"


async def test_htpasswd_asks_for_the_password(store: Store, tmp_path: Path, serve: Callable[..., Any]) -> None:
    users = tmp_path / "htpasswd"
    users.write_text("ann:" + bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode() + "\n")
    client = await serve(store, Htpasswd(users))
    refused = await client.get("/v2/")
    assert (refused.status, await code(refused)) == (401, "UNAUTHORIZED")
    assert refused.headers["WWW-Authenticate"].startswith("Basic realm=")
    for user, password, status in (("ann", "secret", 200), ("ann", "wrong", 401), ("bob", "secret", 401)):
        answer = await client.get("/v2/", headers={"Authorization": encode_basic_auth(user, password)})
        assert answer.status == status, (user, password)


async def test_body_of_a_refused_request_is_not_taken_for_the_next(store: Store, serve: Callable[..., Any]) -> None:
    client = await serve(store, read_only=True)
    hidden = b"GET /v2/ HTTP/1.1\r\n\r\n" * 5000
    answer = await client.post("/v2/a/blobs/uploads/", data=hidden)
    assert answer.status == 405
    assert (await client.get("/v2/")).status == 200


async def test_sha512_is_a_digest_too(client: Client, store: Store) -> None:
    digest = "sha512:" + hashlib.sha512(b"long").hexdigest()
    begun = await client.post("/v2/a/blobs/uploads/")
    done = await client.put(begun.headers["Location"], params={"digest": digest}, data=b"long")
    assert (done.status, done.headers["Docker-Content-Digest"]) == (201, digest)
    assert await (await client.get(f"/v2/a/blobs/{digest}")).read() == b"long"
    wrong = await client.post("/v2/a/blobs/uploads/", params={"digest": digest}, data=b"other")
    assert (wrong.status, await code(wrong)) == (400, "DIGEST_INVALID")
    assert [str(kept) for kept in store.blobs] == [digest]
    assert (await client.delete(f"/v2/a/blobs/{digest}")).status == 202
    assert (await client.get(f"/v2/a/blobs/{digest}")).status == 404
    assert not list(store.blobs)
