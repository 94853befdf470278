"""Docker's progress messages: what the CLI draws its bars from. One JSON object a message.

Load, import, pull and push write these through a callback; how they travel is the API's business.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

Report = Callable[[dict[str, Any]], Awaitable[None]]
"""Receives one message."""

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB")


def stream(text: str) -> dict[str, Any]:
    """Plain output: the CLI prints it."""
    return {"stream": text}


def status(text: str, id: str | None = None) -> dict[str, Any]:
    """A line of its own, or with ``id`` the new text of that line."""
    return {"status": text} if id is None else {"status": text, "id": id}


def step(id: str, action: str) -> dict[str, Any]:
    """The new text of a line that has had or will have a bar."""
    return {"status": action, "progressDetail": {}, "id": id}


def bar(id: str, action: str, current: int, total: int) -> dict[str, Any]:
    """A line with a bar; bytes. ``total`` 0 means unknown."""
    detail: dict[str, Any] = {}
    if current:
        detail["current"] = current
    if total:
        detail["total"] = total
    message: dict[str, Any] = {"status": action, "progressDetail": detail}
    text = _bar_text(current, total)
    if text:
        message["progress"] = text
    message["id"] = id
    return message


def _bar_text(current: int, total: int) -> str:
    if current <= 0 and total <= 0:
        return ""
    if total <= 0:
        return f"{human_size(current):>8}"
    filled = min(50, int(current / total * 100) // 2)
    box = f"[{'=' * filled}>{' ' * (50 - filled)}] "
    if current > total:
        return f"{box}{human_size(current):>8}"
    return f"{box}{human_size(current):>8}/{human_size(total)}"


def human_size(size: float) -> str:
    """Four significant digits and a decimal unit: ``2.14MB``."""
    unit = 0
    while size >= 1000 and unit < len(_UNITS) - 1:
        size /= 1000
        unit += 1
    return f"{size:.4g}{_UNITS[unit]}"


def short_id(digest: str) -> str:
    """The twelve digits Docker shows."""
    return digest.removeprefix("sha256:")[:12]
