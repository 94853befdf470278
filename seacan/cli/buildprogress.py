"""A build's progress on a terminal or in a log, as docker's buildx draws it.

``plain`` writes line after line, one step at a time; ``tty`` redraws what goes on; ``quiet`` writes nothing.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TextIO

from seacan.build.buildkit import messages as pb

_PATIENCE = 1.0
"""Seconds in which a step that says nothing keeps the word."""
_LOG_LINES = 6
_KEPT_LINES = 40
_REFRESH = 0.1
"""Seconds between two pictures."""


@dataclass
class Step:
    """One vertex as it is known so far; times are seconds."""

    index: int
    name: str
    started: float = 0.0
    completed: float = 0.0
    cached: bool = False
    error: str = ""
    statuses: dict[str, pb.VertexStatus] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    """Its last lines."""
    pending: list[str] = field(default_factory=list)
    """Lines of plain progress that have not been written."""
    partial: str = ""
    waits: bool = False
    """Its header, or a part of its end, has not been written."""

    @property
    def duration(self) -> float:
        return max(0.0, (self.completed or time.time()) - self.started)

    @property
    def failed(self) -> bool:
        return bool(self.error) and not self.canceled

    @property
    def canceled(self) -> bool:
        return self.error.endswith("context canceled")


class Progress:
    """What a build has told. Subclasses show it; by itself it is ``quiet``."""

    def __init__(self) -> None:
        self.steps: dict[str, Step] = {}
        self.warnings: list[pb.VertexWarning] = []
        self.begun = time.time()

    def take(self, response: pb.StatusResponse) -> None:
        """Take a message in: what it says of a step that it also ends comes first."""
        for vertex in response.vertexes:
            if vertex.digest not in self.steps:
                self.steps[vertex.digest] = Step(len(self.steps) + 1, vertex.name)
            step = self.steps[vertex.digest]
            if vertex.started is not None and not step.started:
                step.started = _seconds(vertex.started)
                self.on_start(step)
        for status in response.statuses:
            if (about := self.steps.get(status.vertex)) is not None:
                about.statuses[status.id] = status
                self.on_status(about, status)
        for log in response.logs:
            if (about := self.steps.get(log.vertex)) is not None:
                self._log(about, log)
        for vertex in response.vertexes:
            if vertex.completed is not None and not self.steps[vertex.digest].completed:
                self._end(self.steps[vertex.digest], vertex)
        self.warnings += response.warnings

    def _end(self, step: Step, vertex: pb.Vertex) -> None:
        if step.partial:
            self._line(step, step.partial)
            step.partial = ""
        step.completed = _seconds(vertex.completed)
        step.cached, step.error = vertex.cached, vertex.error
        self.on_end(step)

    def _log(self, step: Step, log: pb.VertexLog) -> None:
        text = step.partial + log.message.decode("utf-8", "replace").replace("\r\n", "\n")
        *lines, step.partial = text.split("\n")
        for line in lines:
            self._line(step, line.rpartition("\r")[2])

    def _line(self, step: Step, line: str) -> None:
        step.log.append(f"{step.duration:.3f} {line}")
        del step.log[:-_KEPT_LINES]
        self.on_line(step, f"{step.duration:.3f} {line}")

    def on_start(self, step: Step) -> None: ...

    def on_end(self, step: Step) -> None: ...

    def on_line(self, step: Step, line: str) -> None: ...

    def on_status(self, step: Step, status: pb.VertexStatus) -> None: ...

    def tick(self) -> None:
        """Called now and then, whether something has happened or not."""

    def close(self) -> None:
        """The build is over."""


class Plain(Progress):
    """Line after line. A step has the word until it ends; one that is silent gives it away when another has news."""

    def __init__(self, out: TextIO) -> None:
        super().__init__()
        self._out = out
        self._current: Step | None = None
        self._last = 0.0
        self._shown: dict[tuple[int, str], float] = {}

    def on_start(self, step: Step) -> None:
        step.waits = True
        self._turn()

    def on_line(self, step: Step, line: str) -> None:
        step.pending.append(line)
        self._turn()

    def on_status(self, step: Step, status: pb.VertexStatus) -> None:
        at = (step.index, status.id)
        now = time.monotonic()
        if status.completed is None and now - self._shown.setdefault(at, now) < _PATIENCE:
            return  # it may be over in a moment
        self._shown[at] = now
        step.pending.append(describe(status))
        self._turn()

    def on_end(self, step: Step) -> None:
        step.waits = True
        self._turn()

    def tick(self) -> None:
        self._turn()

    def close(self) -> None:
        self._turn()
        for step in self.steps.values():
            if step.pending or step.waits:
                self._give(step)
        self._out.flush()

    def _turn(self) -> None:
        """Write what can be written, and give the word on where its owner has nothing more to say."""
        while True:
            current = self._current
            if current is not None:
                if current.pending or current.waits:
                    self._write(current)
                if current.completed:
                    self._current = None
                    continue
                others = [step for step in self.steps.values() if step is not current and step.pending]
                if others and time.monotonic() - self._last > _PATIENCE:
                    self._out.write(f"#{current.index} ...\n\n")
                    self._give(others[0])
                    continue
                return
            ready = [step for step in self.steps.values() if step.waits and step.started]
            if not ready:
                self._out.flush()
                return
            self._give(next((step for step in ready if step.completed), ready[0]))

    def _give(self, step: Step) -> None:
        self._current = step
        self._last = time.monotonic()
        self._out.write(f"#{step.index} {step.name}\n")
        self._write(step)

    def _write(self, step: Step) -> None:
        if step.pending:
            self._last = time.monotonic()
        for line in step.pending:
            self._out.write(f"#{step.index} {line}\n")
        step.pending.clear()
        step.waits = False
        if step.completed:
            self._out.write(f"#{step.index} {ending(step)}\n\n")
        self._out.flush()


class Terminal(Progress):
    """A picture of the build that is drawn anew over itself."""

    def __init__(self, out: TextIO) -> None:
        super().__init__()
        self._out = out
        self._height = 0
        self._drawn = 0.0

    def tick(self) -> None:
        if time.monotonic() - self._drawn >= _REFRESH:
            self._draw()

    def close(self) -> None:
        self._draw(final=True)

    def _draw(self, *, final: bool = False) -> None:
        columns, rows = shutil.get_terminal_size()
        lines = self.picture(columns, rows, final=final)
        up = f"\x1b[{self._height}A\r" if self._height else ""
        self._out.write(up + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J")
        self._out.flush()
        self._height = len(lines)
        self._drawn = time.monotonic()

    def picture(self, columns: int, rows: int, *, final: bool = False) -> list[str]:
        """The lines to show on a terminal of that size."""
        steps = [step for step in self.steps.values() if step.started]
        done = sum(bool(step.completed) for step in steps)
        finished = " FINISHED" if final else ""
        lines = [f"[+] Building {time.time() - self.begun:.1f}s ({done}/{len(steps)}){finished}"]
        for step in steps:
            lines += self._lines(step, columns, final)
        room = rows - 1
        return [lines[0], *lines[max(1, len(lines) - room + 1) :]] if not final and len(lines) > room else lines

    def _lines(self, step: Step, columns: int, final: bool) -> list[str]:
        word = "CACHED " if step.cached else "ERROR " if step.failed else "CANCELED " if step.canceled else ""
        shown = [_spread(f" => {word}{printable(step.name)}", f"{step.duration:.1f}s", columns)]
        open_statuses = [each for each in step.statuses.values() if final or not step.completed or each.total]
        shown += [_spread(f" => => {printable(describe(each, False))}", "", columns) for each in open_statuses]
        if not step.completed:
            shown += [
                _spread(f" => => # {printable(line.partition(' ')[2])}", "", columns) for line in step.log[-_LOG_LINES:]
            ]
        return shown


def printable(text: str) -> str:
    """Text of a build, without what a terminal would take for a command."""
    return "".join(each if each.isprintable() else "?" if each != "\t" else " " for each in text)


def _spread(left: str, right: str, columns: int) -> str:
    room = max(10, columns - len(right) - 1)
    return f"{left[:room]:<{room}}{right}"


def ending(step: Step) -> str:
    """How a step ended, as plain progress says it."""
    if step.failed:
        return f"ERROR: {step.error}"
    if step.canceled:
        return "CANCELED"
    return "CACHED" if step.cached else f"DONE {step.duration:.1f}s"


def describe(status: pb.VertexStatus, timed: bool = True) -> str:
    """A status in one line: ``transferring context: 1.2MB / 3MB 0.4s done``."""
    text = status.name or status.id
    if status.total:
        text += f" {amount(status.current)} / {amount(status.total)}"
    elif status.current:
        text += f" {amount(status.current)}"
    if timed and status.started is not None:
        end = status.completed or status.timestamp or status.started
        seconds = _seconds(end) - _seconds(status.started)
        if seconds >= 0.01:
            text += f" {seconds:.1f}s"
    return text + (" done" if timed and status.completed is not None else "")


def amount(size: int) -> str:
    """Bytes for people: ``119B``, ``1.20MB``."""
    if size < 1000:
        return f"{size}B"
    value = float(size)
    for unit in ("kB", "MB", "GB", "TB"):
        value /= 1000
        if value < 1000 or unit == "TB":
            break
    return f"{value:.2f}{unit}"


def failure(progress: Progress) -> str:
    """The end of what the step that failed has said, for below everything else."""
    for step in progress.steps.values():
        if step.failed and step.log:
            lines = "".join(f"{line}\n" for line in step.log[-10:])
            return f"------\n > {step.name}:\n{lines}------\n"
    return ""


def told(warnings: Sequence[pb.VertexWarning]) -> str:
    """The warnings of a build, for below everything else."""
    unique = list(dict.fromkeys(warning.short.decode("utf-8", "replace") for warning in warnings))
    if not unique:
        return ""
    count = f"{len(unique)} warning{'s' if len(unique) != 1 else ''} found"
    return f"\n {count} (see them with --check):\n" + "".join(f" - {text}\n" for text in unique)


def choose(mode: str, out: TextIO) -> Progress:
    """The progress for ``--progress``; ``auto`` is a picture where there is a terminal."""
    mode = mode or os.environ.get("BUILDKIT_PROGRESS", "") or "auto"
    if mode == "quiet":
        return Progress()
    if mode == "tty" or (mode == "auto" and out.isatty()):
        return Terminal(out)
    return Plain(out)


def _seconds(moment: pb.Timestamp) -> float:
    return moment.seconds + moment.nanos / 1e9
