"""Words of a Dockerfile: quotes, escapes, ``$variables`` and the modifiers of ``${…}``.

Semantics are those of the Dockerfile reference ("Environment replacement"), which follow POSIX shell with two
differences: brackets are not patterns, and an unset variable is the empty string. Nothing here runs a shell.

Patterns (``*`` and ``?``) are matched by a simulation that is linear in pattern and text, never by a backtracking
regular expression: the Dockerfile is hostile input and this runs inside the daemon.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from seacan.errors import InvalidParameter

_SPACES = frozenset(
    "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
)
_SPECIAL_PARAMETERS = frozenset("@*#?-$!0")
WHITESPACE = "".join(sorted(_SPACES))
"""What counts as white space in a Dockerfile (Unicode's White_Space)."""


def is_space(character: str) -> bool:
    return character in _SPACES


class WordError(InvalidParameter):
    """A word cannot be expanded: a quote or brace is open, a substitution is malformed, or ``${v:?}`` refuses."""


@dataclass(frozen=True)
class Expansion:
    """A word after expansion, its split into words, and which variables it named (found, and not found)."""

    result: str
    words: list[str]
    matched: frozenset[str]
    unmatched: frozenset[str]


@dataclass(frozen=True)
class Lexer:
    """How to read a word.

    ``escape`` is the escape character; ``raw_quotes`` and ``raw_escapes`` keep quotes and escapes in the result;
    ``skip_quotes`` gives quotes no meaning; ``skip_unset`` leaves references to unset variables as they stand.
    """

    escape: str = "\\"
    raw_quotes: bool = False
    raw_escapes: bool = False
    skip_quotes: bool = False
    skip_unset: bool = False

    def expand(self, word: str, variables: Mapping[str, str]) -> Expansion:
        """Expand ``word``.

        :raises WordError: in the words of BuildKit's lexer.
        """
        reading = _Reading(self, word, variables)
        try:
            result, words = reading.until(None, self.raw_escapes)
        except WordError as error:
            raise WordError(f"failed to process {go_quote(word)}: {error}") from None
        except RecursionError:
            raise WordError(f"failed to process {go_quote(word[:64])}: substitutions nest too deep") from None
        return Expansion(result, words, frozenset(reading.matched), frozenset(reading.unmatched))


@dataclass
class _Split:
    """Collects words: expanded text splits at spaces, quoted text does not."""

    words: list[str] = field(default_factory=list)
    current: list[str] = field(default_factory=list)
    inside: bool = False

    def character(self, character: str) -> None:
        if not is_space(character):
            self.raw(character)
        elif self.inside and self.current:
            self.words.append("".join(self.current))
            self.current.clear()
            self.inside = False

    def raw(self, text: str) -> None:
        if text:
            self.current.append(text)
        self.inside = True

    def finish(self) -> list[str]:
        if self.current:
            self.words.append("".join(self.current))
        return self.words


class _Reading:
    """One pass over one word."""

    def __init__(self, lexer: Lexer, text: str, variables: Mapping[str, str]) -> None:
        self.lexer = lexer
        self.text = text
        self.at = 0
        self.variables = variables
        self.raw_escapes = lexer.raw_escapes
        self.matched: set[str] = set()
        self.unmatched: set[str] = set()

    def peek(self) -> str:
        return self.text[self.at] if self.at < len(self.text) else ""

    def next(self) -> str:
        character = self.peek()
        self.at += 1
        return character

    def get(self, name: str) -> str | None:
        value = self.variables.get(name)
        (self.unmatched if value is None else self.matched).add(name)
        return value

    def until(self, stop: str | None, raw_escapes: bool) -> tuple[str, list[str]]:
        result: list[str] = []
        split = _Split()
        before, self.raw_escapes = self.raw_escapes, raw_escapes
        quotes = not self.lexer.skip_quotes
        while character := self.peek():
            if character == stop:
                self.at += 1
                self.raw_escapes = before
                return "".join(result), split.finish()
            if character == "$":
                value = self.dollar()
                result.append(value)
                for each in value:
                    split.character(each)
            elif character == "<":
                value = self.heredoc_mark()
                result.append(value)
                split.raw(value)
            elif quotes and character == "'":
                value = self.single_quoted()
                result.append(value)
                split.raw(value)
            elif quotes and character == '"':
                value = self.double_quoted()
                result.append(value)
                split.raw(value)
            elif character == self.lexer.escape:
                self.at += 1
                if self.raw_escapes:
                    result.append(character)
                    split.raw(character)
                escaped = self.next()
                if not escaped:
                    break
                result.append(escaped)
                split.raw(escaped)
            else:
                self.at += 1
                result.append(character)
                split.character(character)
        if stop is not None:
            raise WordError(f"unexpected end of statement while looking for matching {stop}")
        self.raw_escapes = before
        return "".join(result), split.finish()

    def heredoc_mark(self) -> str:
        self.at += 1
        if self.peek() != "<":
            return "<"
        self.at += 1
        start = self.at
        while self.peek() and self.peek() in "\t\r ":
            self.at += 1
        return "<<" + self.text[start : self.at]

    def single_quoted(self) -> str:
        end = self.text.find("'", self.at + 1)
        if end < 0:
            self.at = len(self.text)
            raise WordError("unexpected end of statement while looking for matching single-quote")
        inside = self.text[self.at + 1 : end]
        self.at = end + 1
        return f"'{inside}'" if self.lexer.raw_quotes else inside

    def double_quoted(self) -> str:
        result: list[str] = []
        self.at += 1
        if self.lexer.raw_quotes:
            result.append('"')
        while character := self.peek():
            if character == '"':
                self.at += 1
                if self.lexer.raw_quotes:
                    result.append('"')
                return "".join(result)
            if character == "$":
                result.append(self.dollar())
                continue
            self.at += 1
            if character == self.lexer.escape:
                if self.raw_escapes:
                    result.append(character)
                following = self.peek()
                if not following:
                    continue
                if following in ('"', "$", self.lexer.escape):
                    character = self.next()
            result.append(character)
        raise WordError("unexpected end of statement while looking for matching double-quote")

    def name(self) -> str:
        start = self.at
        first = self.peek()
        if not first:
            return ""
        if first.isdigit():
            while self.peek().isdigit():
                self.at += 1
            return self.text[start : self.at]
        if first in _SPECIAL_PARAMETERS:
            self.at += 1
            return first
        while (character := self.peek()) and (character.isalpha() or character.isdigit() or character == "_"):
            self.at += 1
        return self.text[start : self.at]

    def dollar(self) -> str:
        self.at += 1
        if self.peek() != "{":
            name = self.name()
            if not name:
                return "$"
            value = self.get(name)
            if value is None:
                return f"${name}" if self.lexer.skip_unset else ""
            return value
        self.at += 1
        following = self.peek()
        if not following:
            raise WordError("syntax error: missing '}'")
        if following in "{}:":
            raise WordError("syntax error: bad substitution")
        name = self.name()
        operator = self.next()
        if not operator:
            raise WordError("syntax error: missing '}'")
        if operator == "}":
            value = self.get(name)
            if value is None:
                return f"${{{name}}}" if self.lexer.skip_unset else ""
            return value
        if operator == "/":
            return self.replace(name)
        null_is_unset = operator == ":"
        shown = operator
        if null_is_unset:
            operator = self.next()
            shown += operator
        if not operator or operator not in "+-?#%" or (null_is_unset and operator in "#%"):
            raise WordError(f"unsupported modifier ({shown}) in substitution")
        word = self.operand("}", "syntax error: missing '}'", raw_escapes=operator in "#%")
        value = self.get(name)
        if value is None and self.lexer.skip_unset:
            return f"${{{name}{shown}{word}}}"
        missing = value is None or (null_is_unset and value == "")
        if operator == "-":
            return word if missing else value or ""
        if operator == "+":
            return "" if missing else word
        if operator == "?":
            if missing:
                reason = "is not allowed to be unset" if value is None else "is not allowed to be empty"
                raise WordError(f"{name}: {word or reason}")
            return value or ""
        longest = word.startswith(operator)
        pattern = Pattern.parse(word[1:] if longest else word)
        text = value or ""
        if operator == "#":
            end = pattern.prefix(text, longest=longest)
            return text if end is None else text[end:]
        end = pattern.reversed().prefix(text[::-1], longest=longest)
        return text if end is None else text[: len(text) - end]

    def operand(self, stop: str, missing: str, *, raw_escapes: bool) -> str:
        try:
            return self.until(stop, raw_escapes)[0]
        except WordError:
            if not self.peek():
                raise WordError(missing) from None
            raise

    def replace(self, name: str) -> str:
        everywhere = self.peek() == "/"
        if everywhere:
            self.at += 1
        source = self.operand("/", "syntax error: missing '/' in ${}", raw_escapes=True)
        replacement = self.operand("}", "syntax error: missing '}'", raw_escapes=True)
        value = self.get(name)
        if value is None:
            if self.lexer.skip_unset:
                return f"${{{name}/{source}/{replacement}}}"
            value = ""
        return Pattern.parse(source).replace(value, replacement, everywhere=everywhere)


@dataclass(frozen=True)
class Pattern:
    """A shell pattern without brackets: a sequence of one-character atoms, ``any`` (``?``) and ``many`` (``*``)."""

    atoms: tuple[str, ...]

    MANY = "*any*"
    ANY = "*one*"

    @classmethod
    def parse(cls, source: str) -> Pattern:
        atoms: list[str] = []
        at = 0
        while at < len(source):
            character = source[at]
            at += 1
            if character == "*":
                if not atoms or atoms[-1] != cls.MANY:
                    atoms.append(cls.MANY)
            elif character == "?":
                atoms.append(cls.ANY)
            elif character == "\\":
                following = source[at : at + 1]
                if following in ("}", "/"):
                    continue  # the escape belonged to ${…}, not to the pattern
                if not following or following not in "*?\\":
                    raise WordError(f"invalid pattern ({source}) in substitution: invalid escape '\\{following}'")
                atoms.append(following)
                at += 1
            else:
                atoms.append(character)
        return cls(tuple(atoms))

    def reversed(self) -> Pattern:
        return Pattern(self.atoms[::-1])

    def prefix(self, text: str, *, start: int = 0, longest: bool) -> int | None:
        """Where the shortest (or longest) match that begins at ``start`` ends; None where there is none."""
        atoms, count = self.atoms, len(self.atoms)
        states = self._close({0})
        found = start if count in states else None
        if found is not None and not longest:
            return found
        for at in range(start, len(text)):
            character = text[at]
            following: set[int] = set()
            for state in states:
                if state == count:
                    continue
                atom = atoms[state]
                if atom == self.MANY:
                    if character != "\n":
                        following.add(state)
                elif atom == character or (atom == self.ANY and character != "\n"):
                    following.add(state + 1)
            if not following:
                break
            states = self._close(following)
            if count in states:
                found = at + 1
                if not longest:
                    return found
        return found

    def _close(self, states: set[int]) -> set[int]:
        closed = set(states)
        for state in states:
            if state < len(self.atoms) and self.atoms[state] == self.MANY:
                closed.add(state + 1)
        return closed

    def replace(self, text: str, replacement: str, *, everywhere: bool) -> str:
        result: list[str] = []
        at = 0
        while at <= len(text):
            end = self.prefix(text, start=at, longest=True)
            if end is None:
                if self.atoms and self.atoms[0] == self.MANY and "\n" not in text:
                    break  # what does not match from here does not match from further on either
                result.append(text[at : at + 1])
                at += 1
                continue
            result.append(replacement)
            if not everywhere:
                at = end
                break
            if end == at:
                result.append(text[at : at + 1])
                at += 1
            else:
                at = end
                if at == len(text):
                    break
        return "".join(result) + text[at:]


_GO_ESCAPES = {"\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v"}


def go_quote(text: str) -> str:
    """Quote ``text`` as Go's ``%q`` does; image history and error texts are written so."""
    parts = ['"']
    for character in text:
        if character in '"\\':
            parts.append("\\" + character)
        elif character in _GO_ESCAPES:
            parts.append(_GO_ESCAPES[character])
        elif character.isprintable():
            parts.append(character)
        elif ord(character) < 0x80:
            parts.append(f"\\x{ord(character):02x}")
        elif ord(character) < 0x10000:
            parts.append(f"\\u{ord(character):04x}")
        else:
            parts.append(f"\\U{ord(character):08x}")
    parts.append('"')
    return "".join(parts)
