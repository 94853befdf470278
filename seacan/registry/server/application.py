"""The OCI distribution specification over HTTP (https://github.com/opencontainers/distribution-spec, version 1.1).

Reads requests, asks the :class:`Store`, writes answers in the specification's words. Blobs are sent by the kernel
(sendfile), ranges included.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Awaitable, Callable, Iterator
from typing import Protocol
from urllib.parse import urlencode

import msgspec
from aiohttp import web

from seacan.registry.server.access import Access, Grant
from seacan.registry.server.content import is_digest
from seacan.registry.server.store import MANIFEST_LIMIT, NAME, Manifest, RegistryError, Store, Upload, blob_unknown
from seacan.storage.digest import Digest

log = logging.getLogger(__name__)

_ROUTE = re.compile(
    r"/v2/(?P<name>.+?)/(?:(?P<kind>manifests|referrers)/(?P<reference>[^/]+)|blobs/(?P<digest>[^/]+)"
    r"|(?P<upload>blobs/uploads)/?(?P<ident>[^/]*)|(?P<tags>tags/list)|(?P<seacan>_seacan/history)/?(?P<tag>[^/]*))"
)
_CHUNK = 1 << 20
_PAGE = 1000
_TAG_LIMIT = 100


class Upstream(Protocol):
    """Where a mirror gets what it does not hold yet (:mod:`seacan.registry.server.mirror`)."""

    async def manifest(self, name: str, reference: str) -> Manifest: ...

    async def blob(self, name: str, digest: Digest) -> int: ...


class _Registry:
    def __init__(
        self, store: Store, access: Access, *, read_only: bool, delete: bool, upstream: Upstream | None
    ) -> None:
        self.store = store
        self.access = access
        self.read_only = read_only
        self.delete = delete
        self.upstream = upstream

    # --- dispatch -----------------------------------------------------------------------------------------------

    async def answer(self, request: web.Request) -> web.StreamResponse:
        path = request.rel_url.raw_path
        reading = request.method in ("GET", "HEAD")
        if path in ("/v2", "/v2/"):
            self.access.check(request, [])
            return web.json_response({})
        if path == "/v2/_catalog":
            self.access.check(request, [Grant("registry", "catalog", "*")])
            return self._catalog(request)
        match = _ROUTE.fullmatch(path)
        if match is None:
            raise RegistryError(404, "NOT_FOUND", "page not found")
        name = match["name"]
        if len(name) > 255 or not NAME.fullmatch(name):
            raise RegistryError(400, "NAME_INVALID", "invalid repository name", {"name": name})
        action = "pull" if reading else "delete" if request.method == "DELETE" else "push"
        if match["upload"] and request.method == "DELETE":
            action = "push"
        grants = [Grant("repository", name, action)]
        source = request.query.get("from", "") if match["upload"] else ""
        if source:
            if not NAME.fullmatch(source):
                raise RegistryError(400, "NAME_INVALID", "invalid repository name", {"name": source})
            # Mounting is reading: whoever may not pull from the source must not learn that the blob is there.
            if not self.access.permits(request, [*grants, Grant("repository", source, "pull")]):
                source = ""
        actor = self.access.check(request, grants)
        if not reading and (self.read_only or self.upstream is not None):
            raise RegistryError(405, "UNSUPPORTED", "the registry is read-only")
        if action == "delete" and not self.delete:
            raise RegistryError(405, "UNSUPPORTED", "The operation is unsupported.")
        if match["kind"] == "manifests":
            return await self._manifest(request, name, match["reference"], actor)
        if match["kind"] == "referrers":
            return self._referrers(request, name, match["reference"])
        if match["digest"] and match["digest"] != "uploads":
            return await self._blob(request, name, match["digest"])
        if match["tags"]:
            return self._tags(request, name)
        if match["seacan"]:
            return await self._history(request, name, match["tag"], actor)
        return await self._upload(request, name, match["ident"] or "", source)

    # --- manifests ----------------------------------------------------------------------------------------------

    async def _manifest(self, request: web.Request, name: str, reference: str, actor: str) -> web.StreamResponse:
        if ":" in reference:
            reference = _digest(reference)
        match request.method:
            case "GET" | "HEAD":
                if self.upstream is not None:
                    manifest = await self.upstream.manifest(name, reference)
                else:
                    manifest = self.store.manifest(name, reference)
                headers = {
                    "Docker-Content-Digest": manifest.digest,
                    "ETag": f'"{manifest.digest}"',
                    "Content-Type": manifest.media_type,
                }
                if manifest.digest in request.headers.get("If-None-Match", ""):
                    return web.Response(status=304, headers=headers)
                body = await asyncio.to_thread(self.store.blobs.path(manifest.digest).read_bytes)
                return web.Response(body=body, headers=headers)
            case "PUT":
                content = await _document(request)
                media_type = request.headers.get("Content-Type", "")
                tags = request.query.getall("tag", []) if ":" in reference else []
                if len(tags) > _TAG_LIMIT:
                    raise RegistryError(414, "TAG_INVALID", f"more than {_TAG_LIMIT} tags at once")
                digest, subject = self.store.put_manifest(name, reference, content, media_type, tags=tags, actor=actor)
                headers = {"Location": f"/v2/{name}/manifests/{digest}", "Docker-Content-Digest": digest}
                if tags:
                    headers["OCI-Tag"] = ", ".join(tags)
                if subject is not None:
                    headers["OCI-Subject"] = subject
                return web.Response(status=201, headers=headers)
            case "DELETE":
                self.store.delete_manifest(name, reference, actor=actor)
                return web.Response(status=202)
        raise _method_not_allowed(request)

    def _referrers(self, request: web.Request, name: str, reference: str) -> web.Response:
        if request.method not in ("GET", "HEAD"):
            raise _method_not_allowed(request)
        wanted = request.query.get("artifactType")
        referrers = self.store.referrers(name, _digest(reference), wanted)
        index = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": referrers,
        }
        headers = {"OCI-Filters-Applied": "artifactType"} if wanted else {}
        return web.Response(
            body=msgspec.json.encode(index), content_type="application/vnd.oci.image.index.v1+json", headers=headers
        )

    # --- blobs --------------------------------------------------------------------------------------------------

    async def _blob(self, request: web.Request, name: str, reference: str) -> web.StreamResponse:
        digest = _digest(reference)
        if request.method == "DELETE":
            self.store.delete_blob(name, digest)
            return web.Response(status=202)
        if request.method not in ("GET", "HEAD"):
            raise _method_not_allowed(request)
        if self.upstream is not None:
            size = await self.upstream.blob(name, digest)
        else:
            size = self.store.blob(name, digest)
        headers = {
            "Docker-Content-Digest": digest,
            "Content-Type": "application/octet-stream",
            "Cache-Control": "max-age=31536000",
        }
        if digest in request.headers.get("If-None-Match", ""):
            return web.Response(status=304, headers={**headers, "ETag": f'"{digest}"'})
        if request.method == "HEAD":
            return web.Response(
                headers={**headers, "ETag": f'"{digest}"', "Content-Length": str(size), "Accept-Ranges": "bytes"}
            )
        path = self.store.blobs.path(digest)
        if not path.is_file():
            raise blob_unknown(digest)
        return web.FileResponse(path, headers=headers, chunk_size=_CHUNK)

    # --- uploads ------------------------------------------------------------------------------------------------

    async def _upload(self, request: web.Request, name: str, ident: str, source: str) -> web.StreamResponse:
        if not ident:
            if request.method != "POST":
                raise _method_not_allowed(request)
            return await self._begin(request, name, source)
        upload = self.store.upload(name, ident)
        match request.method:
            case "GET" | "HEAD":
                return self._progress(name, upload, 204)
            case "PATCH":
                with _owned(upload):
                    self._check_offset(request, upload)
                    await _receive(request, upload)
                return self._progress(name, upload, 202)
            case "PUT":
                digest = _digest(request.query.get("digest", ""))
                with _owned(upload):
                    self._check_offset(request, upload)
                    await _receive(request, upload)
                    self.store.finish_upload(name, upload, digest)
                return _created(name, digest)
            case "DELETE":
                with _owned(upload):
                    self.store.cancel_upload(upload)
                return web.Response(status=204)
        raise _method_not_allowed(request)

    async def _begin(self, request: web.Request, name: str, source: str) -> web.StreamResponse:
        if wanted := request.query.get("mount"):
            digest = _digest(wanted)
            if source and self.store.mount(name, digest, source):
                return _created(name, digest)
        if whole := request.query.get("digest"):
            digest = _digest(whole)
            upload = self.store.begin_upload(name)
            with _owned(upload):
                await _receive(request, upload)
                self.store.finish_upload(name, upload, digest)
            return _created(name, digest)
        return self._progress(name, self.store.begin_upload(name), 202)

    @staticmethod
    def _check_offset(request: web.Request, upload: Upload) -> None:
        """A chunk that names its range must begin where the last one ended."""
        header = request.headers.get("Content-Range")
        if header is None:
            return
        match = re.fullmatch(r"(?:bytes[ =])?(\d{1,18})-(\d{1,18})(?:/(?:\d+|\*))?", header)
        length = request.content_length
        if match is None or (length is not None and int(match[2]) - int(match[1]) + 1 != length):
            raise RegistryError(416, "BLOB_UPLOAD_INVALID", "blob upload invalid", f"Content-Range {header}")
        if int(match[1]) != upload.size:
            raise RegistryError(
                416, "BLOB_UPLOAD_INVALID", "blob upload invalid", f"chunk at {match[1]}, expected {upload.size}"
            )

    @staticmethod
    def _progress(name: str, upload: Upload, status: int) -> web.Response:
        return web.Response(
            status=status,
            headers={
                "Location": f"/v2/{name}/blobs/uploads/{upload.ident}",
                "Docker-Upload-UUID": upload.ident,
                "Range": f"0-{max(upload.size - 1, 0)}",
            },
        )

    # --- lists --------------------------------------------------------------------------------------------------

    def _tags(self, request: web.Request, name: str) -> web.Response:
        if request.method not in ("GET", "HEAD"):
            raise _method_not_allowed(request)
        limit = _limit(request)
        if limit == 0:
            self.store.tags(name, 0)
            return web.json_response({"name": name, "tags": []})
        tags = self.store.tags(name, None if limit is None else limit + 1, request.query.get("last", ""))
        return _page({"name": name, "tags": tags[:limit]}, tags, limit, f"/v2/{name}/tags/list")

    def _catalog(self, request: web.Request) -> web.Response:
        limit = _limit(request)
        bound = _PAGE if limit is None else min(limit, _PAGE)
        names = self.store.repositories(bound + 1, request.query.get("last", ""))
        return _page({"repositories": names[:bound]}, names, bound, "/v2/_catalog")

    # --- history: beyond the specification ----------------------------------------------------------------------

    async def _history(self, request: web.Request, name: str, tag: str, actor: str) -> web.Response:
        """GET: what tags named over time. POST {"steps": N} on a tag: point it back at what it named then."""
        if request.method == "GET":
            changes = self.store.history(name, tag or None)
            return web.Response(body=msgspec.json.encode({"changes": changes}), content_type="application/json")
        if request.method == "POST" and tag:
            try:
                steps = msgspec.json.decode(await _document(request), type=dict[str, int]).get("steps", 1)
            except msgspec.DecodeError as error:
                raise RegistryError(400, "UNSUPPORTED", f"rollback of {name}:{tag}: {error}") from error
            digest = self.store.rollback(name, tag, steps, actor=actor)
            return web.json_response({"digest": digest}, headers={"Docker-Content-Digest": digest})
        raise _method_not_allowed(request)


def application(
    store: Store,
    access: Access,
    *,
    read_only: bool = False,
    delete: bool = True,
    upstream: Upstream | None = None,
) -> web.Application:
    """The registry as an aiohttp application; every path below ``/v2/`` is its own."""
    registry = _Registry(store, access, read_only=read_only, delete=delete, upstream=upstream)
    app = web.Application(middlewares=[_errors], client_max_size=0, handler_args={"auto_decompress": False})
    app.router.add_route("*", "/{path:.*}", registry.answer)
    app.on_response_prepare.append(_headers)
    return app


async def _headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["Docker-Distribution-API-Version"] = "registry/2.0"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Server"] = "Seacan"
    # aiohttp's own tag of a file is its time; a blob's is what it is.
    if digest := response.headers.get("Docker-Content-Digest"):
        response.headers["ETag"] = f'"{digest}"'


@web.middleware
async def _errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except RegistryError as error:
        entry = {"code": error.code, "message": error.message, "detail": error.detail}
        body = msgspec.json.encode({"errors": [entry]})
        headers = dict(getattr(error, "headers", {}))
        response = web.Response(status=error.status, body=body, content_type="application/json", headers=headers)
        if request.can_read_body and not request.content.is_eof():
            response.force_close()  # the rest of a body nobody wants must not be taken for the next request
        return response


def _method_not_allowed(request: web.Request) -> RegistryError:
    return RegistryError(405, "UNSUPPORTED", f"{request.method} is not supported here")


def _digest(text: str) -> Digest:
    if not is_digest(text):
        raise RegistryError(400, "DIGEST_INVALID", "provided digest did not match uploaded content", text)
    return Digest(text)


def _created(name: str, digest: Digest) -> web.Response:
    return web.Response(status=201, headers={"Location": f"/v2/{name}/blobs/{digest}", "Docker-Content-Digest": digest})


def _limit(request: web.Request) -> int | None:
    text = request.query.get("n")
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise RegistryError(400, "PAGINATION_NUMBER_INVALID", "invalid number of results requested", {"n": text})
    return int(text)


def _page(body: object, found: list[str], limit: int | None, path: str) -> web.Response:
    headers = {}
    if limit is not None and limit > 0 and len(found) > limit:
        headers["Link"] = f'<{path}?{urlencode({"n": limit, "last": found[limit - 1]})}>; rel="next"'
    return web.json_response(body, headers=headers)


async def _document(request: web.Request) -> bytes:
    """A body that must be small (a manifest)."""
    content = bytearray()
    async for chunk in request.content.iter_any():
        content += chunk
        if len(content) > MANIFEST_LIMIT:
            raise RegistryError(413, "SIZE_INVALID", f"manifest is larger than {MANIFEST_LIMIT} bytes")
    return bytes(content)


@contextlib.contextmanager
def _owned(upload: Upload) -> Iterator[None]:
    """One request at a time may write to an upload."""
    if upload.busy:
        raise RegistryError(409, "BLOB_UPLOAD_INVALID", "blob upload invalid", "another request is writing to it")
    upload.busy = True
    try:
        yield
    finally:
        upload.busy = False


async def _receive(request: web.Request, upload: Upload) -> None:
    """Append the request's body; large pieces are hashed and written in a thread, so that others are served."""
    pending = bytearray()
    async for chunk in request.content.iter_any():
        pending += chunk
        if len(pending) >= _CHUNK:
            await asyncio.to_thread(upload.write, bytes(pending))
            pending.clear()
    upload.write(bytes(pending))
