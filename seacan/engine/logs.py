"""A container's log: where its shim writes it, and what of it `docker logs` shows."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from seacan.engine.container import Container, Record
from seacan.engine.listing import parse_time
from seacan.errors import Conflict, InvalidParameter, Unsupported
from seacan.runtime.bundle import LogConfig
from seacan.runtime.logs import ReadOptions
from seacan.runtime.logs import read as read_log

if TYPE_CHECKING:
    from seacan.engine.engine import Engine

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([bkmgtp]?)(?:i?b)?", re.IGNORECASE)
_DEFAULT_LOCAL_SIZE = 20 << 20
_DEFAULT_LOCAL_FILES = 5


def read(engine: Engine, container: Container, options: ReadOptions) -> AsyncIterator[bytes]:
    """A container's log in Docker's framing; with ``follow``, until the container has ended.

    Raises:
        Conflict: the container is being removed. Unsupported: its driver keeps nothing.
    """
    if container.state.removing or container.state.dead:
        raise Conflict("can not get logs from container which is dead or marked for removal")
    config = log_config(container.record, engine.containers.folder(container))
    if config.driver == "none":
        raise Unsupported("configured logging driver does not support reading")
    if not options.follow or not container.state.running:
        return read_log(config, msgspec.structs.replace(options, follow=False))
    return _follow(container, config, options)


async def _follow(container: Container, config: LogConfig, options: ReadOptions) -> AsyncIterator[bytes]:
    ended: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    async def watch() -> None:
        while container.state.running:
            with container.waiting() as stopped:
                await stopped
        if not ended.done():
            ended.set_result(None)

    watcher = asyncio.ensure_future(watch())
    try:
        async for chunk in read_log(config, options, ended):
            yield chunk
    finally:
        watcher.cancel()


def tail(text: str) -> int:
    """The ``tail`` of a request: how many lines from the end; -1 for all."""
    return int(text) if text.isdecimal() else -1


def moment(name: str, text: str) -> int:
    """The ``since`` or ``until`` of a request, nanoseconds since 1970.

    Raises:
        InvalidParameter: unreadable.
    """
    if not text or text == "0":
        return 0
    try:
        return parse_time(text)
    except InvalidParameter as error:
        raise InvalidParameter(f'invalid value for "{name}": {error}') from error


def log_config(record: Record, folder: Path) -> LogConfig:
    """What the shim is told about the log.

    Raises:
        InvalidParameter: an option's value is unreadable.
    """
    asked = record.host_config.log_config
    options = asked.config or {}
    if asked.type == "none":
        return LogConfig(driver="none")
    local = asked.type == "local"
    path = folder / "local-logs" / "container.log" if local else Path(record.log_path)
    size = parse_size(options["max-size"]) if "max-size" in options else (_DEFAULT_LOCAL_SIZE if local else -1)
    try:
        files = int(options.get("max-file", _DEFAULT_LOCAL_FILES if local else 1))
    except ValueError as error:
        raise InvalidParameter(f'strconv.Atoi: parsing "{options["max-file"]}": invalid syntax') from error
    if files < 1:
        raise InvalidParameter("max-file cannot be less than 1")
    compress = _truth("compress", options.get("compress", "true" if local else "false"))
    if not local and compress and (files == 1 or size == -1):
        raise InvalidParameter("compress cannot be true when max-file is less than 2 or max-size is not set")
    return LogConfig(
        driver="local" if local else "json-file",
        path=str(path),
        max_size=size,
        max_file=files,
        compress=compress,
        attributes=attributes(record, options),
        non_blocking=options.get("mode") == "non-blocking",
        max_buffer_size=parse_size(options["max-buffer-size"]) if "max-buffer-size" in options else 1 << 20,
    )


def attributes(record: Record, options: Mapping[str, str]) -> dict[str, str]:
    """The extra attributes of each line: those labels and variables that the options name, and the tag."""
    result: dict[str, str] = {}
    labels = record.config.labels or {}
    variables = dict(v.partition("=")[::2] for v in record.config.env or [])
    for option, values in (("labels", labels), ("env", variables)):
        for name in options.get(option, "").split(","):
            if name in values:
                result[name] = values[name]
        pattern = options.get(f"{option}-regex")
        if pattern:
            try:
                compiled = re.compile(pattern)
            except re.error as error:
                raise InvalidParameter(f"log option {option}-regex: {error}") from error
            result |= {name: value for name, value in values.items() if compiled.search(name)}
    if "tag" in options:
        result["tag"] = _tag(record, options["tag"])
    return result


def _tag(record: Record, template: str) -> str:
    """The few fields of dockerd's log tag templates."""
    values = {
        ".ID": record.id[:12],
        ".FullID": record.id,
        ".Name": record.name,
        ".ImageID": record.image.removeprefix("sha256:")[:12],
        ".ImageFullID": record.image,
        ".ImageName": record.config.image,
        ".DaemonName": "docker",
    }

    def value(match: re.Match[str]) -> str:
        try:
            return values[match[1]]
        except KeyError as error:
            raise InvalidParameter(f"log tag: cannot evaluate {match[0]}") from error

    return re.sub(r"\{\{\s*(\S+?)\s*\}\}", value, template)


def parse_size(text: str) -> int:
    """Bytes of "10m", "1g", "512k"; -1 for unlimited.

    Raises:
        InvalidParameter: unreadable.
    """
    if text == "-1":
        return -1
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise InvalidParameter(f"invalid size: '{text}'")
    return int(float(match[1]) * 1024 ** " kmgtp".index(match[2].lower().replace("b", "") or " "))


def _truth(name: str, text: str) -> bool:
    if text.lower() in ("1", "t", "true"):
        return True
    if text.lower() in ("0", "f", "false"):
        return False
    raise InvalidParameter(f'log option {name}: strconv.ParseBool: parsing "{text}": invalid syntax')
