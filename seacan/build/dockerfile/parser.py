"""Lines of a Dockerfile into instructions as they are written: name, flags, arguments, here-documents, place.

Knows continuation, comments, directives (``syntax``, ``escape``, ``check``), JSON arrays and here-documents; what an
instruction means is :mod:`seacan.build.dockerfile.instructions`'. The text is hostile: every loop is linear in it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

from seacan.build.dockerfile.words import WHITESPACE, Lexer, WordError, go_quote, is_space
from seacan.errors import InvalidParameter

LONGEST_LINE = 64 * 1024 - 1
"""Bytes of a line beyond which dockerd refuses the file."""

_BLANKS = re.compile(r"[\t\v\f\r ]+")
_HEREDOC = re.compile(r"(\d*)<<(-?)[\t\n\v\f\r ]*([^<]*)\Z")
_DIRECTIVE = re.compile(r"([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(.+?)\s*\Z")
_LEADING_TABS = re.compile(r"^\t+", re.MULTILINE)
_DIRECTIVES = ("syntax", "escape", "check")


@dataclass(frozen=True)
class Range:
    """Lines ``start`` to ``end`` of the Dockerfile, counted from 1; ``column`` is counted from 1, 0 where unknown."""

    start: int
    end: int
    column: int = 0


class DockerfileError(InvalidParameter):
    """The Dockerfile is wrong at ``location``. ``location`` may be absent for an error of the file as a whole."""

    def __init__(self, message: str, location: Range | None = None) -> None:
        super().__init__(message)
        self.location = location


@dataclass(frozen=True)
class Heredoc:
    """A here-document: ``<<-'NAME'`` has ``chomp`` (leading tabs go) and no ``expand``."""

    name: str
    expand: bool
    chomp: bool
    content: str = ""

    @property
    def text(self) -> str:
        return _LEADING_TABS.sub("", self.content) if self.chomp else self.content


@dataclass(frozen=True)
class Line:
    """One instruction as written.

    ``arguments`` are flat: for ``ENV`` and ``LABEL`` triples of name, value and separator; for ``ONBUILD`` the
    trigger's name followed by its arguments. ``json`` says that they came from a JSON array.
    """

    name: str
    flags: tuple[str, ...]
    arguments: tuple[str, ...]
    json: bool
    source: str
    location: Range
    heredocs: tuple[Heredoc, ...] = ()
    comments: tuple[str, ...] = ()


@dataclass(frozen=True)
class ParseWarning:
    """Something the parser let pass; ``line`` is counted from 1."""

    rule: str
    line: int


@dataclass(frozen=True)
class Document:
    """A parsed Dockerfile."""

    lines: list[Line]
    escape: str
    directives: dict[str, str]
    warnings: list[ParseWarning] = field(default_factory=list)


def directive(source: str, name: str) -> str | None:
    """The value of a parser directive at the head of a Dockerfile, e.g. ``syntax``; None without it.

    ``syntax`` is also found behind ``//`` and in a JSON object, as the front ends of other languages need.
    """
    text = source.removeprefix("\ufeff")
    if text.startswith("#!"):
        text = text.partition("\n")[2]
    for comment in ("#", "//") if name == "syntax" else ("#",):
        reader = DirectiveReader(comment)
        for line in text.split("\n"):
            try:
                found = reader.read(line.rstrip("\r"))
            except DockerfileError:
                break
            if found is not None and found[0] == name:
                return found[1]
            if reader.done:
                break
    if name == "syntax" and text.lstrip().startswith("{"):
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            return None
        value = document.get("syntax") if isinstance(document, dict) else None
        return value if isinstance(value, str) else None
    return None


class DirectiveReader:
    """Reads the directives at a file's head: they end at the first line that is none."""

    def __init__(self, comment: str = "#") -> None:
        self.comment = comment
        self.done = False
        self.seen: set[str] = set()

    def read(self, line: str) -> tuple[str, str] | None:
        if self.done:
            return None
        if line.startswith(self.comment) and (match := _DIRECTIVE.match(line[len(self.comment) :].lstrip(WHITESPACE))):
            key = match[1].lower()
            if key in _DIRECTIVES:
                if key in self.seen:
                    raise DockerfileError(f"only one {key} parser directive can be used")
                self.seen.add(key)
                return key, match[2]
        self.done = True
        return None


@dataclass
class _Syntax:
    escape: str = "\\"

    def set_escape(self, token: str) -> None:
        if token not in ("`", "\\"):
            raise DockerfileError(f"invalid escape token '{token}' does not match ` or \\")
        self.escape = token


def _split(source: bytes) -> list[bytes]:
    lines = [line + b"\n" for line in source.split(b"\n")]
    lines[-1] = lines[-1][:-1]
    return lines if lines[-1] else lines[:-1]


def parse(source: bytes) -> Document:
    """Parse a Dockerfile.

    :raises DockerfileError: in BuildKit's words, with the place.
    """
    syntax = _Syntax()
    reader = DirectiveReader()
    directives: dict[str, str] = {}
    lines: list[Line] = []
    warnings: list[ParseWarning] = []
    comments: list[str] = []
    physical = iter(_split(source.removeprefix(b"\xef\xbb\xbf")))
    number = 0

    def advance() -> str | None:
        nonlocal number
        raw = next(physical, None)
        if raw is None:
            return None
        number += 1
        if len(raw) > LONGEST_LINE:
            raise DockerfileError(
                f"dockerfile line greater than max allowed size of {LONGEST_LINE}", Range(number, number)
            )
        return raw.decode("utf-8", "replace")

    def tidy(raw: str, *, strip: bool) -> tuple[str, bool]:
        text = raw.rstrip("\r\n")
        if strip:
            text = text.lstrip(WHITESPACE)
        try:
            found = reader.read(text)
            if found is not None:
                directives[found[0]] = found[1]
                if found[0] == "escape":
                    syntax.set_escape(found[1])
        except DockerfileError as error:
            raise DockerfileError(str(error), Range(number, number)) from None
        return ("" if _is_comment(text) else text), found is not None

    while (raw := advance()) is not None:
        if _is_comment(raw):
            comment = raw.lstrip(WHITESPACE)[1:].strip(WHITESPACE)
            if comment:
                comments.append(comment)
            else:
                comments = []
        text, is_directive = tidy(raw, strip=True)
        if is_directive and comments:
            comments.pop()
        first = number
        text, ended = _without_continuation(text, syntax)
        if ended and not text:
            continue
        parts = [text]
        empty_continuation = False
        while not ended and (raw := advance()) is not None:
            text, _ = tidy(raw, strip=False)
            if _is_comment(raw):
                continue
            if not text.strip(WHITESPACE):
                empty_continuation = True
                continue
            text, ended = _without_continuation(text, syntax)
            parts.append(text)
        logical = "".join(parts)
        if empty_continuation:
            warnings.append(ParseWarning("NoEmptyContinuation", number))
        try:
            name, flags, arguments, is_json = _dissect(logical, syntax)
            heredocs: list[Heredoc] = []
            if "<<" in logical and _takes_heredocs(name, arguments, is_json):
                for opened in _heredocs_in(logical):
                    content: list[str] = []
                    while (raw := advance()) is not None:
                        end = raw.rstrip("\r\n")
                        if (end.lstrip("\t") if opened.chomp else end) == opened.name:
                            break
                        content.append(raw)
                    else:
                        raise DockerfileError("unterminated heredoc")
                    heredocs.append(Heredoc(opened.name, opened.expand, opened.chomp, "".join(content)))
        except (DockerfileError, WordError) as error:
            if isinstance(error, DockerfileError) and error.location is not None:
                raise
            raise DockerfileError(str(error), Range(first, number)) from None
        lines.append(
            Line(
                name,
                tuple(flags),
                tuple(arguments),
                is_json,
                logical,
                Range(first, number, 1),
                tuple(heredocs),
                tuple(comments),
            )
        )
        comments = []
    if not lines:
        raise DockerfileError("file with no instructions", Range(number, number))
    return Document(lines, syntax.escape, directives, warnings)


def heredoc(word: str) -> Heredoc | None:
    """Read ``word`` as the opening of a here-document (``<<EOF``, ``3<<-"EOF"``); None where it is none."""
    match = _HEREDOC.match(word)
    if match is None or not match[3]:
        return None
    plain = Lexer(skip_unset=True).expand(match[3], {}).words
    if len(plain) != 1:
        return None
    raw = Lexer(skip_unset=True, raw_quotes=True).expand(match[3], {}).words
    if len(raw) != 1:
        raise DockerfileError(f"internal lexing of heredoc produced inconsistent results: {match[3]}")
    quoted = sum(map(raw[0].count, "'\"")) != sum(map(plain[0].count, "'\""))
    return Heredoc(plain[0], not quoted, match[2] == "-")


def _heredocs_in(line: str) -> list[Heredoc]:
    try:
        words = Lexer(raw_quotes=True, raw_escapes=True, skip_unset=True).expand(line, {}).words
    except WordError:
        return []
    return [opened for word in words if (opened := heredoc(word)) is not None]


def _is_comment(line: str) -> bool:
    return line.lstrip(WHITESPACE).startswith("#")


def _without_continuation(line: str, syntax: _Syntax) -> tuple[str, bool]:
    stripped = line.rstrip(" \t")
    if not stripped.endswith(syntax.escape):
        return line, True
    if stripped[:-1].endswith(syntax.escape):  # an escaped escape ends nothing
        return line, True
    return stripped[:-1], False


def _takes_heredocs(name: str, arguments: list[str], is_json: bool) -> bool:
    word = name.lower()
    if word == "onbuild" and arguments:
        word = arguments[0].lower()
    return word in ("add", "copy", "run") and not is_json


def _dissect(line: str, syntax: _Syntax) -> tuple[str, list[str], list[str], bool]:
    """Name, flags, arguments, and whether these came from a JSON array."""
    parts = _BLANKS.split(line.strip(WHITESPACE), maxsplit=1)
    name = parts[0]
    flags, rest = _flags(parts[1], syntax) if len(parts) == 2 else ([], "")
    arguments, is_json = _arguments(name, rest.strip(WHITESPACE), syntax)
    return name, flags, arguments, is_json


def _arguments(name: str, rest: str, syntax: _Syntax) -> tuple[list[str], bool]:
    match name.lower():
        case "run" | "cmd" | "entrypoint" | "shell":
            return _json_or_string(rest)
        case "add" | "copy" | "volume":
            array = _json_array(rest)
            return (array, True) if array is not None else (_BLANKS.split(rest) if rest else [], False)
        case "expose" | "from":
            return (_BLANKS.split(rest) if rest else []), False
        case "maintainer" | "stopsignal" | "user" | "workdir":
            return ([rest] if rest else []), False
        case "arg":
            return _words(rest, syntax), False
        case "env" | "label":
            return _pairs(rest, name.upper(), syntax), False
        case "healthcheck":
            if not rest:
                return [], False
            kind, _, command = _cut_space(rest)
            arguments, is_json = _json_or_string(command)
            return [kind, *arguments], is_json
        case "onbuild":
            if not rest:
                return [], False
            trigger, _, arguments, is_json = _dissect(rest, syntax)
            return [trigger, *arguments], is_json
        case _:
            return [], False


def _cut_space(text: str) -> tuple[str, str, str]:
    for at, character in enumerate(text):
        if is_space(character):
            return text[:at], character, text[at:].lstrip(WHITESPACE)
    return text, "", ""


def _json_array(text: str) -> list[str] | None:
    text = text.lstrip(WHITESPACE)
    if not text.startswith("["):
        return None
    try:
        array = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None
    if not isinstance(array, list):
        return None
    if not all(isinstance(each, str) for each in array):
        raise DockerfileError("when using JSON array syntax, arrays must be comprised of strings only")
    return ["".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in each) for each in array]


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _json_or_string(text: str) -> tuple[list[str], bool]:
    if not text:
        return [], False
    array = _json_array(text)
    return (array, True) if array is not None else ([text], False)


def _pairs(rest: str, name: str, syntax: _Syntax) -> list[str]:
    words = _words(rest, syntax)
    if not words:
        return []
    if "=" not in words[0]:
        parts = _BLANKS.split(rest, maxsplit=1)
        if len(parts) < 2:
            raise DockerfileError(f"{name} must have two arguments")
        return [parts[0], parts[1], ""]
    pairs: list[str] = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise DockerfileError(f"Syntax error - can't find = in {go_quote(word)}. Must be of the form: name=value")
        pairs += [key, value, "="]
    return pairs


def _words(text: str, syntax: _Syntax) -> list[str]:
    """Split at spaces outside quotes; quotes and escapes stay, for the expansion to take away."""
    words: list[str] = []
    word: list[str] = []
    quote = ""
    begun = blank_ok = False
    at, end = 0, len(text)
    while at < end:
        character = text[at]
        at += 1
        if not begun:
            if is_space(character):
                continue
            begun = True
        if not quote:
            if is_space(character):
                if blank_ok or word:
                    words.append("".join(word))
                word, begun, blank_ok = [], False, False
                continue
            if character in "'\"":
                quote, blank_ok = character, True
            if character == syntax.escape:
                if at == end:
                    continue
                word.append(character)
                character = text[at]
                at += 1
            word.append(character)
            continue
        if character == quote:
            quote = ""
        elif character == syntax.escape and quote != "'":
            if at == end:
                quote = ""
                continue
            word.append(character)
            character = text[at]
            at += 1
        word.append(character)
    if begun and (blank_ok or word):
        words.append("".join(word))
    return words


def _flags(line: str, syntax: _Syntax) -> tuple[list[str], str]:
    """The leading ``--flags`` of an instruction, and what follows them."""
    flags: list[str] = []
    word: list[str] = []
    quote = ""
    begun = blank_ok = False
    at, end = 0, len(line)
    while at < end:
        character = line[at]
        if not begun:
            if is_space(character):
                at += 1
                continue
            if not line.startswith("--", at):
                return flags, line[at:]
            begun = True
        at += 1
        if not quote:
            if is_space(character):
                text = "".join(word)
                if text == "--":
                    return flags, line[at - 1 :]
                if blank_ok or text:
                    flags.append(text)
                word, begun, blank_ok = [], False, False
                continue
            if character in "'\"":
                quote, blank_ok = character, True
                continue
        elif character == quote:
            quote = ""
            continue
        if character == syntax.escape:
            if at == end:
                quote = ""
                continue
            character = line[at]
            at += 1
        word.append(character)
    text = "".join(word)
    if begun and text != "--" and (blank_ok or text):
        flags.append(text)
    return flags, ""
