"""Images: everything under /images."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from seacan.api.http import (
    JSONStream,
    api_version,
    cancellable,
    finished,
    json_response,
    json_stream,
    query_bool,
    query_filters,
    query_int,
)
from seacan.engine.version import SERVER_VERSION
from seacan.errors import InvalidParameter, SeacanError, System
from seacan.images import listing
from seacan.images import reference as references
from seacan.images.commit import import_archive
from seacan.images.config import ImageDefaults
from seacan.images.load import load
from seacan.images.manifest import Platform, parse_platform
from seacan.images.save import save, select
from seacan.images.store import Image
from seacan.registry.credentials import Credentials, decode_header

if TYPE_CHECKING:
    from seacan.engine.engine import Engine

_SEARCH_LIMIT = 100
_SEARCH_FILTERS = frozenset(("is-automated", "is-official", "stars"))


def routes(engine: Engine) -> list[web.RouteDef]:
    images = engine.images

    async def list_(request: web.Request) -> web.StreamResponse:
        version = api_version(request)
        filters = query_filters(request)
        if version < (1, 41) and "filter" in request.query:
            filters = {**filters, "reference": [request.query["filter"]]}
        found = listing.summaries(
            images,
            filters,
            all=query_bool(request, "all"),
            shared_size=query_bool(request, "shared-size") and version >= (1, 42),
            count_containers=version >= (1, 51),
            with_manifests=query_bool(request, "manifests") and version >= (1, 47),
        )
        return json_response([_summary(summary, version) for summary in found])

    async def inspect(request: web.Request) -> web.StreamResponse:
        version = api_version(request)
        with_manifests = query_bool(request, "manifests") and version >= (1, 48)
        if with_manifests and request.query.get("platform"):
            raise InvalidParameter("conflicting options: manifests and platform options cannot both be set")
        image = images.get(_name(request), platform=_platform(request))
        document = listing.inspect(images, image, with_manifests=with_manifests)
        return json_response(_inspection(document, image, version))

    async def history(request: web.Request) -> web.StreamResponse:
        image = images.get(_name(request), platform=_platform(request))
        return json_response([msgspec.to_builtins(item) for item in images.history(image)])

    async def tag(request: web.Request) -> web.StreamResponse:
        reference = repository_and_tag(request.query.get("repo", ""), request.query.get("tag", ""))
        name = _name(request)
        if reference is None:
            images.resolve(name)
            return web.Response(status=200)
        images.tag(name, reference)
        return web.Response(status=201)

    async def delete(request: web.Request) -> web.StreamResponse:
        name = _name(request)
        if not name.strip():
            raise InvalidParameter("image name cannot be blank")
        force, prune = query_bool(request, "force"), not query_bool(request, "noprune")
        if platforms := _platforms(request, "platforms"):
            removals = images.remove_platforms(name, platforms, force=force, prune=prune)
        else:
            removals = images.remove(name, force=force, prune=prune)
        return json_response([msgspec.to_builtins(removal) for removal in removals])

    async def prune(request: web.Request) -> web.StreamResponse:
        removals, reclaimed = listing.prune(images, query_filters(request))
        engine.events.emit("image", "prune", "", {"reclaimed": str(reclaimed)})
        deleted = [msgspec.to_builtins(removal) for removal in removals] or None
        return json_response({"ImagesDeleted": deleted, "SpaceReclaimed": reclaimed})

    @cancellable
    async def load_(request: web.Request) -> web.StreamResponse:
        platforms = _platforms(request, "platform")
        async with _late_stream(request) as stream:
            await load(
                images,
                request.content.iter_any(),
                stream.write,
                platforms=platforms,
                quiet=query_bool(request, "quiet", True),
            )
        return finished(request)

    async def get(request: web.Request) -> web.StreamResponse:
        names = [request.match_info["name"]] if "name" in request.match_info else request.query.getall("names", [])
        names = [part for name in names for part in name.split(",")]
        selected = select(images, names, _platforms(request, "platform"))
        return await stream_archive(request, save(images, selected))

    @cancellable
    async def create(request: web.Request) -> web.StreamResponse:
        if request.query.get("fromImage"):
            return await pull(request)
        return await import_(request)

    async def pull(request: web.Request) -> web.StreamResponse:
        reference = references.parse(request.query["fromImage"].strip())
        tag = request.query.get("tag", "")
        if tag:
            reference = reference.digested(tag) if ":" in tag else reference.tagged(tag)
        platform = parse_platform(request.query["platform"]) if request.query.get("platform") else None
        credentials = decode_header(request.headers.get("X-Registry-Auth", ""))
        async with _late_stream(request, early_status=True) as stream:
            await engine.distribution.pull(
                reference, stream.write, credentials=credentials, platform=platform, all_tags=reference.name_only
            )
        return finished(request)

    @cancellable
    async def push(request: web.Request) -> web.StreamResponse:
        reference = references.parse(_name(request))
        if reference.digest:
            raise InvalidParameter("cannot push a digest reference")
        tag = request.query.get("tag", "")
        all_tags = not tag
        if tag:
            reference = reference.tagged(tag)
        elif reference.tag:
            # A tag in the name is of no effect.
            reference = msgspec.structs.replace(reference, tag="")
        platform = _platform(request)
        if platform is not None:
            engine.distribution.pusher.select(reference, all_tags=all_tags, platform=platform)
        header = request.headers.get("X-Registry-Auth", "")
        if not header and request.can_read_body and (body := await request.read()).strip():
            credentials = msgspec.json.decode(body, type=Credentials)
        else:
            credentials = decode_header(header)
        async with _late_stream(request) as stream:
            await engine.distribution.push(
                reference, stream.write, credentials=credentials, all_tags=all_tags, platform=platform
            )
        return finished(request)

    async def import_(request: web.Request) -> web.StreamResponse:
        source = request.query.get("fromSrc", "")
        reference = repository_and_tag(request.query.get("repo", ""), request.query.get("tag", ""))
        platform = parse_platform(request.query["platform"]) if request.query.get("platform") else None
        if platform is not None and platform.os != "linux":
            raise InvalidParameter("operating system is not supported")

        async def imported(archive: AsyncIterator[bytes]) -> Image:
            return await import_archive(
                images,
                archive,
                reference=reference,
                message=request.query.get("message", ""),
                changes=request.query.getall("changes", []),
                platform=platform,
                docker_version=SERVER_VERSION,
            )

        if source == "-":
            image = await imported(request.content.iter_any())
            async with json_stream(request) as stream:
                await stream.write({"status": image.id})
            return finished(request)
        url = source if "://" in source else f"http://{source}"
        if not url.startswith(("http://", "https://")):
            raise InvalidParameter(f'cannot import from "{source}": only http and https URLs can be downloaded')
        from seacan.build import remote

        async with json_stream(request) as stream:
            await stream.write({"status": f"Downloading from {url}"})
            try:
                async with remote.open_http(url) as document:
                    image = await imported(_importing(document.pieces, document.size, stream))
                await stream.write({"status": image.id})
            except SeacanError as error:
                await stream.error(error.message)
        return finished(request)

    async def search(request: web.Request) -> web.StreamResponse:
        limit = query_int(request, "limit")
        if limit and not 1 <= limit <= _SEARCH_LIMIT:
            raise InvalidParameter(f"limit {limit} is outside the range of [1, {_SEARCH_LIMIT}]")
        filters = query_filters(request)
        listing.check_filters(filters, _SEARCH_FILTERS)
        results = await engine.distribution.search(
            request.query.get("term", ""),
            limit=limit,
            credentials=decode_header(request.headers.get("X-Registry-Auth", "")),
            filters=filters,
        )
        return json_response([msgspec.to_builtins(result) for result in results])

    async def distribution(request: web.Request) -> web.StreamResponse:
        reference = references.parse(_name(request))
        credentials = decode_header(request.headers.get("X-Registry-Auth", ""))
        return json_response(msgspec.to_builtins(await engine.distribution.inspect(reference, credentials=credentials)))

    name = "{name:.+}"
    return [
        web.get("/images/json", list_),
        web.get("/images/search", search),
        web.get("/images/get", get),
        web.get(f"/images/{name}/get", get),
        web.get(f"/images/{name}/history", history),
        web.get(f"/images/{name}/json", inspect),
        web.post("/images/load", load_),
        web.post("/images/create", create),
        web.post("/images/prune", prune),
        web.post(f"/images/{name}/tag", tag),
        web.post(f"/images/{name}/push", push),
        web.get(f"/distribution/{name}/json", distribution),
        web.delete(f"/images/{name}", delete),
    ]


def _name(request: web.Request) -> str:
    return request.match_info["name"]


async def _importing(archive: AsyncIterator[bytes], total: int, stream: JSONStream) -> AsyncIterator[bytes]:
    """Pass an archive on, and tell how far it is, ten times a second at most."""
    current, told = 0, 0.0
    async for piece in archive:
        yield piece
        current += len(piece)
        if time.monotonic() - told > 0.1 or current == total:
            told = time.monotonic()
            detail = {"current": current, **({"total": total} if total else {})}
            await stream.write({"status": "Importing", "progressDetail": detail})


def _platform(request: web.Request) -> Platform | None:
    text = request.query.get("platform", "")
    return _decode_platform(text) if text else None


def _platforms(request: web.Request, name: str) -> list[Platform]:
    """A parameter that may be given several times."""
    return [_decode_platform(text) for text in request.query.getall(name, [])]


def _decode_platform(text: str) -> Platform:
    """The API's JSON form."""
    try:
        platform = msgspec.json.decode(text, type=Platform)
    except msgspec.DecodeError as error:
        raise InvalidParameter(f"failed to parse platform: {error}") from error
    if not platform.os or not platform.architecture:
        raise InvalidParameter("both OS and Architecture must be provided")
    return platform


def repository_and_tag(repository: str, tag: str) -> references.Reference | None:
    """The ``repo`` and ``tag`` parameters as one reference; None for none."""
    if not repository:
        return None
    reference = references.parse(repository)
    if reference.digest:
        raise InvalidParameter("cannot import digest reference")
    return reference.tagged(tag) if tag else reference.with_default_tag()


def _summary(summary: listing.Summary, version: tuple[int, int]) -> dict[str, Any]:
    result: dict[str, Any] = msgspec.to_builtins(summary)
    if version < (1, 44):
        result["VirtualSize"] = summary.size
    if version < (1, 43):
        if not summary.repo_tags and not summary.repo_digests:
            result["RepoTags"], result["RepoDigests"] = ["<none>:<none>"], ["<none>@<none>"]
        else:
            result["RepoTags"] = summary.repo_tags or None
            result["RepoDigests"] = summary.repo_digests or None
    return result


def _inspection(result: dict[str, Any], image: Image, version: tuple[int, int]) -> dict[str, Any]:
    """An inspection as clients of an older API know it."""
    if version < (1, 48):
        result.pop("Descriptor", None)
    if version < (1, 50):
        result["Config"] = dict(sorted((result["Config"] | _container_fields(image.config.defaults)).items()))
    if version < (1, 45):
        container = image.config.container_config or ImageDefaults()
        config = listing.inspect_defaults(container) | _container_fields(container)
        result["ContainerConfig"] = dict(sorted(config.items()))
    if version < (1, 44):
        result["VirtualSize"] = image.size
        result.setdefault("Created", "0001-01-01T00:00:00Z")
    return result


def _container_fields(defaults: ImageDefaults) -> dict[str, Any]:
    return {
        "AttachStderr": False,
        "AttachStdin": False,
        "AttachStdout": False,
        "Domainname": defaults.domainname,
        "Hostname": defaults.hostname,
        "Image": defaults.image,
        "OpenStdin": False,
        "StdinOnce": False,
        "Tty": False,
    }


class _LateStream:
    """A JSON stream whose status line goes out with the first message: a failure before that can still be a status."""

    def __init__(self, request: web.Request, early_status: bool) -> None:
        self._request = request
        self._early_status = early_status
        self._response: web.StreamResponse | None = None

    async def write(self, value: dict[str, Any]) -> None:
        await JSONStream(await self._prepare()).write(value)

    async def _prepare(self) -> web.StreamResponse:
        if self._response is None:
            self._response = web.StreamResponse(headers={"Content-Type": "application/json"})
            self._request["seacan.response"] = self._response
            await self._response.prepare(self._request)
        return self._response

    async def __aenter__(self) -> _LateStream:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        handled = isinstance(error, SeacanError)
        if self._early_status and self._response is None and error is not None:
            return False
        if isinstance(error, SeacanError):
            await JSONStream(await self._prepare()).error(error.message)
        if error is None or handled:
            await (await self._prepare()).write_eof()
        return handled


def _late_stream(request: web.Request, *, early_status: bool = False) -> _LateStream:
    """With ``early_status``, a failure before the first message is the answer's status, and not a message."""
    return _LateStream(request, early_status)


async def stream_archive(request: web.Request, archive: AsyncIterator[bytes]) -> web.StreamResponse:
    """A tar as the answer. What fails before the first byte is a status; later the connection is cut."""
    iterator = aiter(archive)
    first = await anext(iterator, b"")
    response = web.StreamResponse(headers={"Content-Type": "application/x-tar"})
    await response.prepare(request)
    await response.write(first)
    try:
        async for piece in iterator:
            await response.write(piece)
    except System:
        if request.transport is not None:
            request.transport.abort()
        raise
    await response.write_eof()
    return response
