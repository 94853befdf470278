"""Command-line flags with the grammar and the words of Go's pflag, which docker and dockerd use.

What differs from getopt and click: a boolean takes a value only as ``--rm=false`` (or ``-d=false``), a cluster of short
flags may end in one that takes a value (``-itfFILE``), and errors read as users of docker know them. Nothing here
imports click: the daemon starts without it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from seacan.errors import InvalidParameter
from seacan.truth import truth


class FlagError(InvalidParameter):
    """The command line cannot be understood; docker exits with 125."""


class Flag(NamedTuple):
    """What the parser has to know of a flag: its long and short name, and whether it is a boolean."""

    name: str
    short: str = ""
    boolean: bool = False
    bare: str | None = None
    """The value that a flag with an optional value has without one (``--size`` is like ``--size=<bare>``)."""

    @property
    def display(self) -> str:
        return f"-{self.short}, --{self.name}" if self.short else f"--{self.name}"


def parse_bool(text: str) -> bool:
    """A boolean as Go's strconv.ParseBool reads it."""
    value = truth(text)
    if value is None:
        raise InvalidParameter(f'strconv.ParseBool: parsing "{text}": invalid syntax')
    return value


def parse(
    arguments: Sequence[str], flags: Sequence[Flag], *, interspersed: bool = True
) -> tuple[list[tuple[Flag, str]], list[str]]:
    """Split a command line into (flag, value) pairs in the order given, and positional arguments.

    A boolean's value is "true" or what was written after "=". Without ``interspersed``, flags end at the first
    positional argument, as in ``docker run IMAGE COMMAND --not-a-flag``. Raises :class:`FlagError` in pflag's words.
    """
    long = {flag.name: flag for flag in flags}
    short = {flag.short: flag for flag in flags if flag.short}
    found: list[tuple[Flag, str]] = []
    positional: list[str] = []
    queue = list(arguments)
    position = 0

    def following(flag: Flag, written: str) -> str:
        nonlocal position
        if position >= len(queue):
            raise FlagError(f"flag needs an argument: {written}")
        position += 1
        return queue[position - 1]

    while position < len(queue):
        token = queue[position]
        position += 1
        if token == "--":
            positional += queue[position:]
            break
        if not token.startswith("-") or token == "-":
            positional.append(token)
            if not interspersed:
                positional += queue[position:]
                break
            continue
        if token.startswith("--"):
            name, equals, value = token[2:].partition("=")
            if not name or name.startswith("-"):
                raise FlagError(f"bad flag syntax: {token}")
            flag = long.get(name)
            if flag is None:
                raise FlagError(f"unknown flag: --{name}")
            if not equals:
                bare = "true" if flag.boolean else flag.bare
                value = following(flag, f"--{name}") if bare is None else bare
            found.append((flag, value))
            continue
        cluster = token[1:]
        while cluster:
            letter, cluster = cluster[0], cluster[1:]
            flag = short.get(letter)
            if flag is None:
                raise FlagError(f"unknown shorthand flag: '{letter}' in {token}")
            bare = "true" if flag.boolean else flag.bare
            if cluster.startswith("="):
                value, cluster = cluster[1:], ""
            elif bare is not None:
                value = bare
            elif cluster:
                value, cluster = cluster, ""
            else:
                value = following(flag, f"'{letter}' in {token}")
            found.append((flag, value))
    return found, positional


def invalid(flag: Flag, value: str, cause: object) -> FlagError:
    """pflag's sentence for a value that a flag refuses."""
    return FlagError(f'invalid argument "{value}" for "{flag.display}" flag: {cause}')


# --- values --------------------------------------------------------------------------------------------------------

_BINARY_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*([kmgtp]?)(i?b?)$", re.IGNORECASE)
_UNIT = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}


def parse_bytes(text: str) -> int:
    """A size in bytes with a binary unit (``64m``, ``1.5GiB``), as go-units' RAMInBytes reads it."""
    match = _BINARY_SIZE.match(text)
    if match is None:
        raise InvalidParameter(f"invalid size: '{text}'")
    return int(float(match[1]) * _UNIT[match[2].lower()])


def parse_integer(text: str) -> int:
    """An integer as Go's strconv.ParseInt reads it with base 0."""
    try:
        return int(text, 0)
    except ValueError:
        raise InvalidParameter(f'strconv.ParseInt: parsing "{text}": invalid syntax') from None


_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_NANOSECONDS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "μs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}


def parse_duration(text: str) -> int:
    """A duration in nanoseconds (``1h30m``, ``300ms``), as Go's time.ParseDuration reads it."""
    sign, rest = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    if rest == "0":
        return 0
    total, end = 0, 0
    for match in _DURATION.finditer(rest):
        if match.start() != end:
            break
        total += int(float(match[1]) * _NANOSECONDS[match[2]])
        end = match.end()
    if not rest or end != len(rest):
        if re.fullmatch(r"\d+(\.\d*)?", rest):
            raise InvalidParameter(f'time: missing unit in duration "{text}"')
        raise InvalidParameter(f'time: invalid duration "{text}"')
    return sign * total


_ULIMITS = frozenset(
    {"core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio"}
    | {"rttime", "sigpending", "stack"}
)


def parse_ulimit(text: str) -> tuple[str, int, int]:
    """``name=soft[:hard]`` → (name, soft, hard); -1 is unlimited. Source: go-units' ParseUlimit."""
    name, equals, limits = text.partition("=")
    if not equals:
        raise InvalidParameter(f"invalid ulimit argument: {text}")
    if name not in _ULIMITS:
        raise InvalidParameter(f"invalid ulimit type: {name}")
    parts = limits.split(":")
    if len(parts) > 2:
        raise InvalidParameter(f"too many limit value arguments - {limits}, can only have up to two, `soft[:hard]`")
    soft = _limit(parts[0])
    hard = soft
    if len(parts) == 2 and parts[1]:
        hard = _limit(parts[1])
        if hard != -1 and (soft == -1 or soft > hard):
            raise InvalidParameter(f"ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}")
    return name, soft, hard


def _limit(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InvalidParameter(f'strconv.ParseInt: parsing "{text}": invalid syntax') from None


def parse_label(text: str) -> str:
    """A label in its ``key[=value]`` form, checked as docker does."""
    key = text.partition("=")[0].lstrip()
    if not key:
        raise InvalidParameter(f"invalid label '{text}': empty name")
    if any(character.isspace() for character in key):
        raise InvalidParameter(f"label '{text}' contains whitespaces")
    return text


def pairs(items: Sequence[str]) -> dict[str, str]:
    """``key=value`` items as a mapping; without "=", the value is empty."""
    return {key: value for key, _, value in (item.partition("=") for item in items)}


def go_format(value: object) -> str:
    """A value as Go's ``%v`` prints it."""
    match value:
        case None:
            return "<nil>"
        case bool():
            return "true" if value else "false"
        case float() if value == int(value):
            return str(int(value))
        case list() | tuple():
            return f"[{' '.join(go_format(item) for item in value)}]"
        case Mapping():
            return f"map[{' '.join(f'{key}:{go_format(value[key])}' for key in sorted(value))}]"
        case _:
            return str(value)
