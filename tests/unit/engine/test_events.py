"""Who is told of what: filters, the past, and dockerd's message."""

from __future__ import annotations

import pytest

from seacan.engine.events import KEPT, Event, Events, selection

START = Event(
    "container", "start", "c" * 64, {"image": "busybox:latest", "name": "web", "tier": "front"}, 1_500_000_000
)


@pytest.mark.parametrize(
    ("filters", "passes"),
    [
        ({}, True),
        ({"type": ["container"]}, True),
        ({"type": ["network", "container"]}, True),
        ({"type": ["network"]}, False),
        ({"event": ["start"]}, True),
        ({"event": ["stop"]}, False),
        ({"container": ["web"]}, True),
        ({"container": ["c" * 12]}, True),
        ({"container": ["other"]}, False),
        ({"image": ["busybox"]}, True),
        ({"image": ["busybox:latest"]}, True),
        ({"image": ["alpine"]}, False),
        ({"label": ["tier"]}, True),
        ({"label": ["tier=front"]}, True),
        ({"label": ["tier=front", "absent"]}, False),
        ({"network": ["web"]}, False),
        ({"scope": ["local"]}, True),
        ({"scope": ["swarm"]}, False),
    ],
)
def test_filters(filters: dict[str, list[str]], passes: bool) -> None:
    assert selection(filters)(START) is passes


def test_exec_and_health_events_are_found_by_their_first_word() -> None:
    event = Event("container", "exec_create: ls -l", "c", {}, 0)
    assert selection({"event": ["exec_create"]})(event)
    assert selection({"event": ["exec_create: ls -l"]})(event)


def test_an_unknown_filter_is_passed_over_as_by_dockerd() -> None:
    assert selection({"foo": ["x"]})(START)


def test_the_message_is_dockerds() -> None:
    assert START.message() == {
        "status": "start",
        "id": "c" * 64,
        "from": "busybox:latest",
        "Type": "container",
        "Action": "start",
        "Actor": {"ID": "c" * 64, "Attributes": {"image": "busybox:latest", "name": "web", "tier": "front"}},
        "scope": "local",
        "time": 1,
        "timeNano": 1_500_000_000,
    }
    assert "status" not in Event("network", "create", "n", {}, 0).message()


def test_the_past_is_bounded_and_cut_by_time() -> None:
    events = Events()
    for n in range(KEPT + 10):
        events.emit("volume", "create", str(n), {})
    past = events.past(1, None, {})
    assert len(past) == KEPT
    assert past[-1].id == str(KEPT + 9)
    assert events.past(None, past[3].time, {})[-1].time <= past[3].time
    assert events.past(None, None, {}) == []


async def test_a_watch_gets_what_it_asked_for_until_it_ends() -> None:
    events = Events()
    watch = events.watch({"type": ["volume"]})
    events.emit("network", "create", "n", {})
    events.emit("volume", "create", "v", {})
    assert (await anext(watch)).id == "v"
    events.unwatch(watch)
    events.emit("volume", "create", "w", {})
    assert watch.queue.empty()
