"""What every resource module of the API needs to read a request and to write an answer the way dockerd does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import msgspec
from aiohttp import web

from seacan.engine import config
from seacan.errors import InvalidParameter

T = TypeVar("T")
RequestHandler = Callable[[web.Request], Awaitable[web.StreamResponse]]
VERSION_KEY: Final = "seacan.api_version"
CANCELLABLE: Final = "seacan_cancellable"
_encoder = msgspec.json.Encoder()


def api_version(request: web.Request) -> tuple[int, int]:
    """The API version the client speaks: that of the path, or the newest when the path names none."""
    version: tuple[int, int] = request[VERSION_KEY]
    return version


def cancellable(handler: RequestHandler) -> RequestHandler:
    """Mark a handler of something other than GET as one to be cancelled when its client goes away.

    Without the mark such a handler runs to its end, as in dockerd, whether or not anyone still listens.
    """
    setattr(handler, CANCELLABLE, True)
    return handler


def json_response(value: Any, status: int = 200) -> web.Response:
    """``value`` (plain data or Structs) as a JSON answer."""
    return web.Response(body=_encoder.encode(value) + b"\n", status=status, content_type="application/json")


def no_content() -> web.Response:
    return web.Response(status=204)


async def read_json(request: web.Request, model: type[T]) -> T:
    """The request's JSON body as a Struct; null and the case of names are treated as Go does.

    A request without a body is one with nothing in it, unless it announced one.

    Raises:
        InvalidParameter: wrong content type, not JSON, or a value of the wrong type.
    """
    check_json(request)
    return config.decode(await request.read() if request.can_read_body else b"{}", model)


async def read_optional_json(request: web.Request, model: type[T]) -> T | None:
    """Like :func:`read_json`, but None when the client sent no body."""
    if not request.can_read_body:
        return None
    body = await request.read()
    if not body:
        return None
    check_json(request)
    return config.decode(body, model)


def check_json(request: web.Request) -> None:
    content_type = request.headers.get("Content-Type", "")
    if not content_type and not request.content_length:
        return
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise InvalidParameter(f"unsupported Content-Type header ({content_type}): must be 'application/json'")


def query_bool(request: web.Request, name: str, default: bool = False) -> bool:
    """A boolean of the query string by dockerd's rule: anything but "", 0, no, false and none is true."""
    value = request.query.get(name)
    if value is None:
        return default
    return value.strip().lower() not in ("", "0", "no", "false", "none")


def query_int(request: web.Request, name: str, default: int = 0) -> int:
    value = request.query.get(name, "")
    if not value:
        return default
    try:
        return int(value)
    except ValueError as error:
        raise InvalidParameter(f'strconv.Atoi: parsing "{value}": invalid syntax') from error


def query_filters(request: web.Request) -> dict[str, list[str]]:
    """The ``filters`` parameter: {"label": {"a": true}}, or as before 1.22 {"label": ["a"]}."""
    text = request.query.get("filters", "")
    if not text:
        return {}
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise InvalidParameter("invalid filter") from error
    if not isinstance(value, dict):
        raise InvalidParameter("invalid filter")
    filters: dict[str, list[str]] = {}
    for name, wanted in value.items():
        if isinstance(wanted, dict):
            filters[name] = [str(key) for key, on in wanted.items() if on]
        elif isinstance(wanted, list) and all(isinstance(item, str) for item in wanted):
            filters[name] = wanted
        else:
            raise InvalidParameter("invalid filter")
    return filters


class JSONStream:
    """An answer made of JSON objects, one a line, flushed one by one (progress of pull, load, build; events; stats)."""

    def __init__(self, response: web.StreamResponse) -> None:
        self._response = response

    async def write(self, value: Any) -> None:
        await self._response.write(_encoder.encode(value) + b"\r\n")

    async def error(self, message: str, code: int = 0) -> None:
        """Report a failure once the status line has gone: Docker's ``errorDetail``."""
        detail = {"message": message, **({"code": code} if code else {})}
        await self.write({"errorDetail": detail, "error": message})


@asynccontextmanager
async def json_stream(request: web.Request, content_type: str = "application/json") -> AsyncIterator[JSONStream]:
    """Answer 200 and stream JSON objects; the answer is finished on leaving the block.

    The caller returns ``stream.response`` – or simply the response, see :func:`finished`.
    """
    response = web.StreamResponse(headers={"Content-Type": content_type})
    await response.prepare(request)
    request["seacan.response"] = response
    yield JSONStream(response)
    await response.write_eof()


def finished(request: web.Request) -> web.StreamResponse:
    """What a handler returns after :func:`json_stream`."""
    response: web.StreamResponse = request["seacan.response"]
    return response
