"""What happened, for those who watch (`docker events`): dockerd's messages, kept for a while and passed on live."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import msgspec

KEPT = 256
"""How many past events ``since`` can reach, as in dockerd."""


class Event(msgspec.Struct, frozen=True):
    """One happening. ``time`` is nanoseconds since 1970."""

    type: str
    action: str
    id: str
    attributes: Mapping[str, str]
    time: int
    scope: str = "local"

    def message(self) -> dict[str, Any]:
        """Docker's EventMessage."""
        message: dict[str, Any] = {}
        if self.type == "container":
            message = {"status": self.action, "id": self.id, "from": self.attributes.get("image", "")}
        elif self.type == "image":
            message = {"status": self.action, "id": self.id}
        return {
            **message,
            "Type": self.type,
            "Action": self.action,
            "Actor": {"ID": self.id, "Attributes": dict(sorted(self.attributes.items()))},
            "scope": self.scope,
            "time": self.time // 1_000_000_000,
            "timeNano": self.time,
        }


class Watch:
    """A live subscription; iterate it. Ends with :meth:`Events.unwatch`."""

    def __init__(self, wanted: Callable[[Event], bool]) -> None:
        self.wanted = wanted
        self.queue: asyncio.Queue[Event] = asyncio.Queue()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        return await self.queue.get()


class Events:
    """The engine's event log."""

    def __init__(self) -> None:
        self._past: deque[Event] = deque(maxlen=KEPT)
        self._watches: set[Watch] = set()

    def emit(self, type: str, action: str, id: str, attributes: Mapping[str, str], *, scope: str = "local") -> None:
        """Tell everybody that ``action`` happened to the ``type`` (container, network, volume, …) called ``id``."""
        event = Event(type, action, id, attributes, time.time_ns(), scope)
        self._past.append(event)
        for watch in self._watches:
            if watch.wanted(event):
                watch.queue.put_nowait(event)

    def past(self, since: int | None, until: int | None, filters: Mapping[str, Sequence[str]]) -> list[Event]:
        """Kept events with ``since`` ≤ time ≤ ``until`` (nanoseconds) that pass ``filters``; none without bounds."""
        wanted = selection(filters)
        if since is None and until is None:
            return []
        return [
            event
            for event in self._past
            if (since is None or event.time >= since) and (until is None or event.time <= until) and wanted(event)
        ]

    def watch(self, filters: Mapping[str, Sequence[str]]) -> Watch:
        watch = Watch(selection(filters))
        self._watches.add(watch)
        return watch

    def unwatch(self, watch: Watch) -> None:
        self._watches.discard(watch)

    @property
    def watchers(self) -> int:
        return len(self._watches)


_NAMES = {
    "config", "container", "daemon", "event", "image", "label", "network", "node", "plugin", "scope", "secret",
    "service", "type", "volume",
}  # fmt: skip


def selection(filters: Mapping[str, Sequence[str]]) -> Callable[[Event], bool]:
    """A predicate for dockerd's event filters.

    A filter dockerd does not know selects everything, as there.
    """
    tests: list[Callable[[Event], bool]] = []
    for name, values in filters.items():
        if not values or name not in _NAMES:
            continue
        wanted = tuple(values)
        if name == "event":
            # "exec_create" stands for every "exec_create: command", and "health_status" likewise.
            tests.append(lambda e, w=wanted: e.action in w or e.action.partition(":")[0] in w)  # type: ignore[misc]
        elif name == "type":
            tests.append(lambda e, w=wanted: e.type in w)  # type: ignore[misc]
        elif name == "scope":
            tests.append(lambda e, w=wanted: e.scope in w)  # type: ignore[misc]
        elif name == "label":
            tests.append(lambda e, w=wanted: all(_labelled(e.attributes, label) for label in w))  # type: ignore[misc]
        elif name == "image":
            tests.append(lambda e, w=wanted: _about_image(e, w))  # type: ignore[misc]
        else:
            tests.append(lambda e, n=name, w=wanted: _about(e, n, w))  # type: ignore[misc]
    return lambda event: all(test(event) for test in tests)


def _labelled(labels: Mapping[str, str], wanted: str) -> bool:
    name, equals, value = wanted.partition("=")
    return name in labels and (not equals or labels[name] == value)


def _about(event: Event, type: str, wanted: Sequence[str]) -> bool:
    if event.type != type:
        return False
    name = event.attributes.get("name", "")
    return any(event.id == w or name == w or event.id.startswith(w) for w in wanted)


def _about_image(event: Event, wanted: Sequence[str]) -> bool:
    if event.type not in ("container", "image"):
        return False
    names = (
        {event.attributes.get("image", ""), event.attributes.get("name", "")}
        if event.type == "container"
        else {
            event.id,
            event.attributes.get("name", ""),
        }
    )
    return any(w in names or any(_without_tag(n) == w for n in names) for w in wanted)


def _without_tag(reference: str) -> str:
    head, colon, tag = reference.rpartition(":")
    return head if colon and "/" not in tag else reference
