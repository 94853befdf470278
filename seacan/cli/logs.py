"""The daemon's own log, in dockerd's two formats: logfmt-like text, and JSON.

A record's further fields are given as ``extra={"fields": {…}}``; an exception becomes the field ``error``, and with
--debug its traceback the field ``stack``.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from typing import Final

LEVELS: Final = {
    "panic": logging.CRITICAL,
    "fatal": logging.CRITICAL,
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": logging.DEBUG,
}
_NAMES: Final = {
    logging.CRITICAL: "fatal",
    logging.ERROR: "error",
    logging.WARNING: "warning",
    logging.INFO: "info",
    logging.DEBUG: "debug",
}
_BARE = re.compile(r"[A-Za-z0-9\-._/@^+]+")


def _fields(record: logging.LogRecord) -> dict[str, str]:
    fields = {name: str(value) for name, value in getattr(record, "fields", {}).items()}
    if record.exc_info and record.exc_info[1] is not None:
        error = record.exc_info[1]
        fields.setdefault("error", str(error) or type(error).__name__)
        if logging.getLogger().isEnabledFor(logging.DEBUG):
            fields["stack"] = logging.Formatter().formatException(record.exc_info)
    return fields


def _timestamp(record: logging.LogRecord) -> str:
    seconds = int(record.created)
    nanoseconds = int((record.created - seconds) * 1e9)
    zone = time.strftime("%z", time.localtime(seconds))
    zone = "Z" if zone == "+0000" else f"{zone[:3]}:{zone[3:]}"
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.localtime(seconds))}.{nanoseconds:09d}{zone}"


class TextFormatter(logging.Formatter):
    """``time="…" level=info msg="…" key=value``, as dockerd prints without a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        name = _NAMES.get(record.levelno, "info")
        parts = [f'time="{_timestamp(record)}"', f"level={name}", f"msg={_quoted(record.getMessage(), always=True)}"]
        parts += [f"{key}={_quoted(value)}" for key, value in sorted(_fields(record).items())]
        return " ".join(parts)


class JSONFormatter(logging.Formatter):
    """One JSON object a line, with the keys that dockerd uses."""

    def format(self, record: logging.LogRecord) -> str:
        entry = _fields(record)
        entry |= {
            "level": _NAMES.get(record.levelno, "info"),
            "msg": record.getMessage(),
            "time": _timestamp(record),
        }
        return json.dumps(entry, ensure_ascii=False, separators=(",", ":"))


def _quoted(text: str, *, always: bool = False) -> str:
    return text if not always and _BARE.fullmatch(text) else json.dumps(text, ensure_ascii=False)


def configure(level: str, form: str, *, debug: bool) -> None:
    """Send the root logger to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    set_level(level, debug=debug)
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def set_level(level: str, *, debug: bool) -> None:
    logging.getLogger().setLevel(logging.DEBUG if debug else LEVELS[level.lower()])
