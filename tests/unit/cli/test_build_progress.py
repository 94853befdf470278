"""How a build's progress is written."""

from __future__ import annotations

import io

import pytest

from seacan.build.buildkit import messages as pb
from seacan.cli.buildprogress import Plain, Terminal, amount, choose, describe, failure, printable, told


def at(seconds: float) -> pb.Timestamp:
    return pb.Timestamp.at(round(seconds * 1e9))


def started(digest: str, name: str, when: float) -> pb.Vertex:
    return pb.Vertex(digest, [], name, started=at(when))


def ended(digest: str, when: float, *, cached: bool = False, error: str = "") -> pb.Vertex:
    return pb.Vertex(digest, [], "", cached, at(1), at(when), error)


def said(digest: str, text: str) -> pb.StatusResponse:
    return pb.StatusResponse(logs=[pb.VertexLog(digest, at(1), 1, text.encode())])


def test_steps_are_written_one_after_the_other() -> None:
    out = io.StringIO()
    progress = Plain(out)
    progress.take(pb.StatusResponse([started("a", "[1/2] FROM x", 1), started("b", "[2/2] RUN y", 1)]))
    progress.take(said("b", "hal"))
    progress.take(pb.StatusResponse([ended("a", 1, cached=True)]))
    progress.take(said("b", "lo\nlast"))
    done = pb.VertexStatus("layers", "b", "exporting layers", 0, 0, at(3), at(1), at(3))
    progress.take(pb.StatusResponse([ended("b", 3.5)], [done]))
    progress.close()
    lines = out.getvalue().split("\n")
    assert lines[:5] == ["#1 [1/2] FROM x", "#1 CACHED", "", "#2 [2/2] RUN y", lines[4]]
    assert lines[4].startswith("#2 ") and lines[4].endswith(" hallo")
    assert lines[5] == "#2 exporting layers 2.0s done"
    assert lines[6].endswith(" last")
    assert lines[7:] == ["#2 DONE 2.5s", "", ""]


def test_a_failure_is_told_again_below() -> None:
    out = io.StringIO()
    progress = Plain(out)
    progress.take(pb.StatusResponse([started("a", "RUN false", 1), started("b", "RUN other", 1)]))
    progress.take(said("a", "why\n"))
    progress.take(pb.StatusResponse([ended("a", 2, error="exit code: 1"), ended("b", 2, error="context canceled")]))
    progress.close()
    assert "#1 ERROR: exit code: 1\n" in out.getvalue()
    assert "#2 CANCELED\n" in out.getvalue()
    text = failure(progress)
    assert text.startswith("------\n > RUN false:\n") and text.endswith(" why\n------\n")


def test_a_picture_fits_its_terminal_and_takes_no_commands() -> None:
    progress = Terminal(io.StringIO())
    steps = [started(str(number), f"step {number} \x1b[2J" + "x" * 200, 1) for number in range(30)]
    progress.take(pb.StatusResponse(steps))
    progress.take(said("29", "one\n\x1b]0;title\x07two\n"))
    picture = progress.picture(60, 12)
    assert len(picture) <= 12
    assert all(len(line) <= 60 for line in picture)
    assert picture[0].startswith("[+] Building ")
    assert picture[-1].startswith(" => => # ?]0;title?two")
    assert "\x1b" not in "".join(picture)


def test_warnings_are_told_once() -> None:
    warning = pb.VertexWarning("a", 1, b"Rule: text (line 3)")
    assert told([warning, warning]) == "\n 1 warning found (see them with --check):\n - Rule: text (line 3)\n"
    assert told([]) == ""


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0B"), (999, "999B"), (1234, "1.23kB"), (5_000_000, "5.00MB"), (10**16, "10000.00TB")]
)
def test_amounts(size: int, text: str) -> None:
    assert amount(size) == text


def test_transfers_say_how_far_they_are() -> None:
    assert describe(pb.VertexStatus("x", "", "blob", 500, 1000)) == "blob 500B / 1.00kB"
    assert printable("a\tb\x00") == "a b?"


def test_the_mode_follows_terminal_and_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    assert isinstance(choose("", out), Plain)
    assert isinstance(choose("tty", out), Terminal)
    monkeypatch.setenv("BUILDKIT_PROGRESS", "tty")
    assert isinstance(choose("", out), Terminal)
    assert type(choose("quiet", out)).__name__ == "Progress"
