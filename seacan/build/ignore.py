"""Patterns of ``.dockerignore`` and of ``--exclude``: which paths of a context do not exist for a build.

The semantics are moby/patternmatcher's, to the letter: the last pattern that matches a path or one of its parents
decides, ``!`` brings back, ``**`` crosses slashes. Matching is done by compiled regular expressions; contexts are
walked in a worker process, so a pattern made to be slow harms its own build only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from seacan.errors import InvalidParameter

_ESCAPED = frozenset(".+()|{}$")
_LONGEST_LINE = 64 * 1024


class BadPattern(InvalidParameter):
    """A pattern is malformed."""


def clean(path: str) -> str:
    """The shortest equivalent of a slash-separated path (Go's ``path.Clean``)."""
    rooted = path.startswith("/")
    parts: list[str] = []
    for part in path.split("/"):
        if part in ("", "."):
            continue
        if part == "..":
            if parts and parts[-1] != "..":
                parts.pop()
            elif not rooted:
                parts.append(part)
            continue
        parts.append(part)
    cleaned = "/".join(parts)
    return f"/{cleaned}" if rooted else cleaned or "."


def read_ignore_file(content: bytes) -> list[str]:
    """The patterns of a ``.dockerignore``: comments and blank lines dropped, paths cleaned and made relative.

    :raises BadPattern: a line is longer than dockerd reads.
    """
    patterns: list[str] = []
    for raw in content.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        if len(raw) >= _LONGEST_LINE:
            raise BadPattern("error reading .dockerignore: bufio.Scanner: token too long")
        line = raw.decode("utf-8", "surrogateescape")
        if line.startswith("#"):
            continue
        line = line.strip()
        if not line:
            continue
        inverted = line.startswith("!")
        if inverted:
            line = line[1:].strip()
        if line:
            line = clean(line)
            if len(line) > 1 and line.startswith("/"):
                line = line[1:]
        patterns.append("!" + line if inverted else line)
    return patterns


@dataclass
class Pattern:
    """One pattern; ``exclusion`` is its ``!``."""

    text: str
    exclusion: bool
    _kind: str = ""
    _regexp: re.Pattern[str] | None = field(default=None, repr=False)

    def match(self, path: str) -> bool:
        """Does the pattern match ``path`` itself (its parents not considered)?"""
        if not self._kind:
            self._compile()
        match self._kind:
            case "exact":
                return path == self.text
            case "prefix":
                return path.startswith(self.text[:-2])
            case "suffix":
                suffix = self.text[2:]
                return path.endswith(suffix) or (suffix.startswith("/") and path == suffix[1:])
            case _:
                assert self._regexp is not None
                return self._regexp.match(path) is not None

    def _compile(self) -> None:
        text = self.text
        kind = "exact"
        source: list[str] = []
        at, steps = 0, 0
        in_class = False
        while at < len(text):
            character = text[at]
            at += 1
            if character == "*":
                if text.startswith("*", at):
                    at += 1
                    if text.startswith("/", at):
                        at += 1
                    if at == len(text):
                        if kind == "exact":
                            kind = "prefix"
                        else:
                            source.append(".*")
                            kind = "regexp"
                    else:
                        source.append("(?:.*/)?")
                        kind = "regexp"
                    if steps == 0:
                        kind = "suffix"
                else:
                    source.append("[^/]*")
                    kind = "regexp"
            elif character == "?":
                source.append("[^/]")
                kind = "regexp"
            elif character in _ESCAPED:
                source.append("\\" + character)
            elif character == "\\":
                if at < len(text):
                    source.append("\\" + text[at])
                    at += 1
                    kind = "regexp"
                else:
                    source.append("\\")
            elif character in "[]":
                source.append("\\[" if in_class and character == "[" else character)
                in_class = character == "["
                kind = "regexp"
            else:
                source.append(character)
            steps += 1
        if kind == "regexp":
            try:
                self._regexp = re.compile("".join(source) + r"\Z", re.ASCII)
            except (re.error, OverflowError, RecursionError):
                raise BadPattern("syntax error in pattern") from None
        self._kind = kind


ParentMatches = tuple[bool, ...]
"""What each pattern said of a directory; handed on to what lies in it."""


class Matcher:
    """A list of patterns, the last match deciding.

    :raises BadPattern: one of them is malformed.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self.patterns: list[Pattern] = []
        for text in patterns:
            text = text.strip()
            if not text:
                continue
            text = clean(text)
            exclusion = text.startswith("!")
            if exclusion:
                text = text[1:]
                if not text:
                    raise BadPattern('illegal exclusion pattern: "!"')
            check_syntax(text)
            self.patterns.append(Pattern(text, exclusion))
        self.exclusions = any(pattern.exclusion for pattern in self.patterns)

    def matches(self, path: str) -> bool:
        """Is ``path``, or a directory above it, matched and not brought back?"""
        matched = False
        parents = _parents(path)
        for pattern in self.patterns:
            if pattern.exclusion != matched:
                continue
            if pattern.match(path) or any(pattern.match(parent) for parent in parents):
                matched = not pattern.exclusion
        return matched

    def matches_below(self, path: str, parent: ParentMatches) -> tuple[bool, ParentMatches]:
        """As :meth:`matches`, given what the patterns said of the directory above (``()`` at the top)."""
        matched = False
        said: list[bool] = []
        for number, pattern in enumerate(self.patterns):
            match = bool(parent) and parent[number]
            if not match and pattern.exclusion == matched:
                match = pattern.match(path)
                if not match and not parent:
                    match = any(pattern.match(each) for each in _parents(path))
            said.append(match)
            if match:
                matched = not pattern.exclusion
        return matched, tuple(said)

    def may_return_below(self, directory: str) -> bool:
        """Could a ``!`` pattern bring back something inside an ignored ``directory``? Then it must be walked."""
        below = directory + "/"
        for pattern in self.patterns:
            if not pattern.exclusion:
                continue
            text = pattern.text + "/"
            if text.startswith(below) or any(each in pattern.text for each in "*?[\\"):
                return True
        return False


def excluded(path: str, patterns: Sequence[str]) -> bool:
    """Is ``path`` excluded by ``patterns``? The root itself never is."""
    path = clean(path)
    return path != "." and Matcher(patterns).matches(path)


def _parents(path: str) -> list[str]:
    parts = path.split("/")[:-1]
    if not parts or parts == [""]:
        return []
    return ["/".join(parts[: count + 1]) for count in range(len(parts))]


def check_syntax(pattern: str) -> None:
    """Refuse what Go's ``filepath.Match`` refuses.

    :raises BadPattern: a bracket is open or empty, or a backslash ends the pattern.
    """
    at, end = 0, len(pattern)

    def one() -> None:
        nonlocal at
        if at >= end or pattern[at] in "-]":
            raise BadPattern("syntax error in pattern")
        if pattern[at] == "\\":
            at += 1
            if at >= end:
                raise BadPattern("syntax error in pattern")
        at += 1
        if at >= end:
            raise BadPattern("syntax error in pattern")

    while at < end:
        character = pattern[at]
        at += 1
        if character == "\\":
            if at >= end:
                raise BadPattern("syntax error in pattern")
            at += 1
        elif character == "[":
            if pattern.startswith("^", at):
                at += 1
            ranges = 0
            while not (at < end and pattern[at] == "]" and ranges):
                one()
                if pattern[at] == "-":
                    at += 1
                    one()
                ranges += 1
            at += 1


def glob(pattern: str) -> re.Pattern[str]:
    """One path component of a ``COPY`` source with wildcards (Go's ``filepath.Match``), as a regular expression.

    :raises BadPattern: it is malformed.
    """
    check_syntax(pattern)
    source: list[str] = []
    at = 0
    while at < len(pattern):
        character = pattern[at]
        at += 1
        if character == "*":
            if not source or source[-1] != "[^/]*":
                source.append("[^/]*")
        elif character == "?":
            source.append("[^/]")
        elif character == "\\":
            source.append(re.escape(pattern[at]))
            at += 1
        elif character == "[":
            source.append("[")
            if pattern.startswith("^", at):
                source.append("^")
                at += 1
            first = True
            while first or pattern[at] != "]":
                first = False
                if pattern[at] == "\\":
                    at += 1
                    source.append(re.escape(pattern[at]))
                elif pattern[at] == "-":
                    source.append("-")
                else:
                    source.append(re.escape(pattern[at]))
                at += 1
            source.append("]")
            at += 1
        else:
            source.append(re.escape(character))
    try:
        return re.compile("".join(source) + r"\Z", re.DOTALL)
    except re.error:
        raise BadPattern("syntax error in pattern") from None


def has_wildcards(path: str) -> bool:
    """Does a ``COPY`` source hold an unescaped ``*``, ``?`` or ``[``?"""
    at = 0
    while at < len(path):
        if path[at] in "*?[":
            return True
        at += 2 if path[at] == "\\" else 1
    return False
