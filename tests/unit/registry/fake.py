"""A registry that does what a test tells it to, good or bad."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import json
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from aiohttp import web

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
Behaviour = Callable[[web.Request, bytes], Awaitable[web.StreamResponse]]


def digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def image(
    layers: Sequence[bytes], *, compress: Callable[[bytes], bytes] = lambda c: gzip.compress(c, mtime=0), **config: Any
) -> tuple[bytes, bytes, list[bytes]]:
    """Manifest, configuration and stored layers."""
    document = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
        **config,
    }
    content = json.dumps(document).encode()
    stored = [compress(layer) for layer in layers]
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": digest(content),
                "size": len(content),
            },
            "layers": [
                {
                    "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                    "digest": digest(layer),
                    "size": len(layer),
                }
                for layer in stored
            ],
        },
        indent=3,  # bytes that no encoder of ours would make
    ).encode()
    return manifest, content, stored


class FakeRegistry:
    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, tuple[bytes, str]] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.blob_behaviours: dict[str, list[Behaviour]] = {}
        """For each blob what happens to the next requests for it; then it is served as it is."""
        self.authorize: Callable[[web.Request], web.Response | None] = lambda _request: None
        self.token_requests: list[web.Request] = []
        self.certificates: set[str] = set()
        """The names in the certificates that clients have shown ("" for none), where it speaks TLS."""
        self.running = 0
        self.most = 0
        self.monolithic = True
        self.host = ""
        self.scheme = "http"
        self._uploads: dict[str, bytes] = {}
        self._runner: web.AppRunner | None = None

    async def start(self, tls: ssl.SSLContext | None = None) -> None:
        self.scheme = "https" if tls else "http"
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        assert site._server is not None
        self.host = f"127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[attr-defined]

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def add(self, name: str, tag: str, layers: Sequence[bytes], **more: Any) -> tuple[str, list[str]]:
        """Put an image there; the digests of its manifest and its layers."""
        manifest, config, stored = image(layers, **more)
        for content in (config, *stored):
            self.blobs[digest(content)] = content
        self.put(name, tag, manifest, MANIFEST)
        return digest(manifest), [digest(layer) for layer in stored]

    def put(self, name: str, tag: str, content: bytes, media_type: str) -> str:
        for reference in (tag, digest(content)):
            self.manifests[f"{name}:{reference}"] = (content, media_type)
        return digest(content)

    def asked(self, method: str, part: str) -> int:
        return sum(1 for asked, path, _ in self.requests if asked == method and part in path)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.path_qs, dict(request.headers)))
        shown = dict(entry for (entry,) in (request.get_extra_info("peercert") or {}).get("subject", ()))
        self.certificates.add(shown.get("commonName", ""))
        if request.path == "/token":
            self.token_requests.append(request)
            return self.token(request)
        refusal = self.authorize(request)
        if refusal is not None:
            return refusal
        if request.path in ("/v2/", "/v2"):
            return web.json_response({})
        _, _, rest = request.path.partition("/v2/")
        for word in ("/manifests/", "/blobs/uploads/", "/blobs/", "/tags/list"):
            name, found, tail = rest.partition(word)
            if found:
                handler = {
                    "/manifests/": self._manifest,
                    "/blobs/uploads/": self._upload,
                    "/blobs/": self._blob,
                    "/tags/list": self._tags,
                }[word]
                return await handler(request, name, tail)
        return web.Response(status=404)

    def token(self, request: web.Request) -> web.Response:
        return web.json_response({"token": "let-me-in", "expires_in": 300})

    async def _manifest(self, request: web.Request, name: str, reference: str) -> web.StreamResponse:
        if request.method == "PUT":
            content = await request.read()
            self.put(name, reference, content, request.headers["Content-Type"])
            return web.Response(status=201, headers={"Docker-Content-Digest": digest(content)})
        found = self.manifests.get(f"{name}:{reference}")
        if found is None:
            return error("MANIFEST_UNKNOWN", "manifest unknown", 404)
        content, media_type = found
        return web.Response(
            body=content, headers={"Content-Type": media_type, "Docker-Content-Digest": digest(content)}
        )

    async def _tags(self, request: web.Request, name: str, _: str) -> web.StreamResponse:
        tags = sorted(
            key.split(":", 1)[1] for key in self.manifests if key.startswith(f"{name}:") and "sha256" not in key
        )
        last = request.query.get("last", "")
        page = [tag for tag in tags if tag > last][:2]
        headers = (
            {"Link": f'</v2/{name}/tags/list?last={page[-1]}>; rel="next"'} if page and page[-1] != tags[-1] else {}
        )
        return web.json_response({"name": name, "tags": page}, headers=headers)

    async def _blob(self, request: web.Request, name: str, wanted: str) -> web.StreamResponse:
        content = self.blobs.get(wanted)
        if content is None:
            return error("BLOB_UNKNOWN", "blob unknown to registry", 404)
        if request.method == "HEAD":
            return web.Response(headers={"Content-Length": str(len(content))})
        behaviours = self.blob_behaviours.get(wanted)
        layer = content.startswith(b"\x1f\x8b")  # configurations are small and do not wait
        self.running += layer
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(0.01)
            if behaviours:
                return await behaviours.pop(0)(request, content)
            return serve(request, content)
        finally:
            self.running -= layer

    async def _upload(self, request: web.Request, name: str, ident: str) -> web.StreamResponse:
        if request.method == "POST":
            mount = request.query.get("mount")
            if mount in self.blobs and f"from={request.query.get('from', '')}" != "from=":
                return web.Response(status=201, headers={"Location": f"/v2/{name}/blobs/{mount}"})
            ident = str(len(self._uploads))
            self._uploads[ident] = b""
            return web.Response(status=202, headers={"Location": f"/v2/{name}/blobs/uploads/{ident}?state=x"})
        body = await request.read()
        if request.method == "PATCH":
            self._uploads[ident] += body
            return web.Response(status=202, headers={"Location": f"/v2/{name}/blobs/uploads/{ident}?state=y"})
        if body and not self.monolithic:
            return web.Response(status=405)
        content = self._uploads.pop(ident, b"") + body
        if digest(content) != request.query["digest"]:
            return error("DIGEST_INVALID", "provided digest did not match uploaded content", 400)
        self.blobs[digest(content)] = content
        return web.Response(status=201, headers={"Location": f"/v2/{name}/blobs/{digest(content)}"})


def serve(request: web.Request, content: bytes) -> web.Response:
    """A blob, or the range that is asked for."""
    wanted = request.headers.get("Range", "")
    if wanted.startswith("bytes="):
        start = int(wanted[6:].partition("-")[0])
        if start >= len(content):
            return web.Response(status=416)
        headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        return web.Response(status=206, body=content[start:], headers=headers)
    return web.Response(body=content)


def error(code: str, message: str, status: int) -> web.Response:
    return web.json_response({"errors": [{"code": code, "message": message}]}, status=status)


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


# --- misbehaviour -------------------------------------------------------------------------------------------------


async def cut_in_the_middle(request: web.Request, content: bytes) -> web.StreamResponse:
    """Announce everything, send half of what was asked for, hang up."""
    whole = serve(request, content)
    assert isinstance(whole.body, bytes)
    response = web.StreamResponse(status=whole.status, headers={"Content-Length": str(len(whole.body))})
    if "Content-Range" in whole.headers:
        response.headers["Content-Range"] = whole.headers["Content-Range"]
    await response.prepare(request)
    await response.write(whole.body[: len(whole.body) // 2])
    await asyncio.sleep(0.05)
    assert request.transport is not None
    request.transport.abort()
    return response


async def other_bytes(request: web.Request, content: bytes) -> web.StreamResponse:
    return web.Response(body=bytes(len(content)))


async def too_short(request: web.Request, content: bytes) -> web.StreamResponse:
    return web.Response(body=content[:-10])


async def endless(request: web.Request, content: bytes) -> web.StreamResponse:
    response = web.StreamResponse()
    response.enable_chunked_encoding()
    await response.prepare(request)
    await response.write(content)
    while True:
        await response.write(bytes(1 << 16))


async def ignores_ranges(request: web.Request, content: bytes) -> web.StreamResponse:
    return web.Response(body=content)


async def unavailable(request: web.Request, content: bytes) -> web.StreamResponse:
    return web.Response(status=503)


async def too_many_requests(request: web.Request, content: bytes) -> web.StreamResponse:
    response = error("TOOMANYREQUESTS", "slow down", 429)
    response.headers["Retry-After"] = "0.05"
    return response
