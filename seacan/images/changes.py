"""``--change``: the Dockerfile instructions that ``docker commit`` and ``docker import`` apply to a configuration.

Only instructions that change the configuration alone; the build has its own, complete parser.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Sequence

import msgspec

from seacan.build.dockerfile.words import Lexer
from seacan.errors import InvalidParameter
from seacan.images.config import Healthcheck, ImageDefaults

_ALLOWED = frozenset(
    "CMD ENTRYPOINT ENV EXPOSE HEALTHCHECK LABEL ONBUILD STOPSIGNAL USER VOLUME WORKDIR".split()  # noqa: SIM905
)
_EXPANDED = frozenset("ENV EXPOSE LABEL STOPSIGNAL USER VOLUME WORKDIR".split())  # noqa: SIM905
_LEXER = Lexer(raw_quotes=True, raw_escapes=True)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_NANOSECONDS = {
    "ns": 1, "us": 1_000, "µs": 1_000, "ms": 1_000_000, "s": 1_000_000_000, "m": 60_000_000_000, "h": 3_600_000_000_000,
}  # fmt: skip


def apply_changes(config: ImageDefaults, changes: Sequence[str]) -> ImageDefaults:
    """``config`` with the instructions applied in order. Raises :class:`InvalidParameter` in dockerd's words."""
    command_set = False
    for change in changes:
        for line in _lines(change):
            instruction, _, rest = line.partition(" ")
            instruction = instruction.upper()
            config = _apply(config, instruction, _expanded(config, instruction, rest.strip()))
            command_set |= instruction == "CMD"
            if instruction == "ENTRYPOINT" and not command_set:
                # As in a Dockerfile: an inherited command does not belong to a new entry point.
                config = msgspec.structs.replace(config, cmd=None)
    return config


def _expanded(config: ImageDefaults, instruction: str, rest: str) -> str:
    """``$NAME`` becomes what the environment has so far, where a Dockerfile would have it so."""
    if instruction not in _EXPANDED or "$" not in rest:
        return rest
    environment = dict(item.partition("=")[::2] for item in config.env or ())
    return _LEXER.expand(rest, environment).result


def _lines(text: str) -> list[str]:
    joined = re.sub(r"\\[ \t]*\r?\n", "", text)
    return [line.strip() for line in joined.splitlines() if line.strip() and not line.strip().startswith("#")]


def _apply(config: ImageDefaults, instruction: str, rest: str) -> ImageDefaults:
    if instruction not in _ALLOWED:
        raise InvalidParameter(f"{instruction} is not a valid change command")
    if not rest and instruction not in ("CMD", "ENTRYPOINT"):
        raise InvalidParameter(f"{instruction} requires at least one argument")
    replace = msgspec.structs.replace
    match instruction:
        case "CMD":
            return replace(config, cmd=_command(rest, config))
        case "ENTRYPOINT":
            return replace(config, entrypoint=_command(rest, config))
        case "ENV":
            environment = list(config.env or ())
            for key, value in _pairs("ENV", rest):
                environment = [item for item in environment if item.partition("=")[0] != key] + [f"{key}={value}"]
            return replace(config, env=environment)
        case "LABEL":
            return replace(config, labels={**(config.labels or {}), **dict(_pairs("LABEL", rest))})
        case "EXPOSE":
            ports = dict(config.exposed_ports or {})
            for word in rest.split():
                ports.update({port: {} for port in _ports(word)})
            return replace(config, exposed_ports=ports)
        case "HEALTHCHECK":
            return replace(config, healthcheck=_healthcheck(rest, config))
        case "ONBUILD":
            trigger = rest.split(None, 1)[0].upper()
            if trigger == "ONBUILD":
                raise InvalidParameter("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
            if trigger in ("MAINTAINER", "FROM"):
                raise InvalidParameter(f"{trigger} isn't allowed as an ONBUILD trigger")
            return replace(config, on_build=[*(config.on_build or ()), rest])
        case "STOPSIGNAL":
            return replace(config, stop_signal=rest)
        case "USER":
            return replace(config, user=rest)
        case "VOLUME":
            volumes = dict(config.volumes or {})
            for volume in _list(rest) or rest.split():
                if not volume.strip():
                    raise InvalidParameter("VOLUME specified can not be an empty string")
                volumes[volume.strip()] = {}
            return replace(config, volumes=volumes)
        case _:
            base = config.working_dir or "/"
            folder = rest if rest.startswith("/") else f"{base.rstrip('/')}/{rest}"
            return replace(config, working_dir=_normal(folder))


def _normal(path: str) -> str:
    return posixpath.normpath(path).replace("//", "/")


def _list(text: str) -> list[str] | None:
    """A JSON array of strings, or None if it is none."""
    if not text.startswith("["):
        return None
    try:
        return msgspec.json.decode(text, type=list[str])
    except msgspec.DecodeError:
        return None


def _command(text: str, config: ImageDefaults) -> list[str]:
    words = _list(text)
    if words is not None:
        return words
    return [*(config.shell or ["/bin/sh", "-c"]), text] if text else []


def _pairs(instruction: str, text: str) -> list[tuple[str, str]]:
    first = text.split(None, 1)[0]
    if "=" not in first:
        key, _, value = text.partition(" ")
        if not value:
            raise InvalidParameter(f"{instruction} must have two arguments")
        return [(key, value.strip())]
    try:
        words = shlex.split(text, posix=True)
    except ValueError as error:
        raise InvalidParameter(f"{instruction}: {error}") from error
    pairs = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise InvalidParameter(f"Syntax error - can't find = in {word!r}. Must be of the form: name=value")
        if not key:
            raise InvalidParameter(f"{instruction} names can not be blank")
        pairs.append((key, value))
    return pairs


def _ports(word: str) -> list[str]:
    numbers, _, protocol = word.partition("/")
    protocol = (protocol or "tcp").lower()
    match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", numbers)
    if match is None or protocol not in ("tcp", "udp", "sctp"):
        raise InvalidParameter(f"invalid containerPort: {word}")
    low, high = int(match[1]), int(match[2] or match[1])
    if not low <= high <= 65535:
        raise InvalidParameter(f"invalid containerPort: {word}")
    return [f"{port}/{protocol}" for port in range(low, high + 1)]


def _healthcheck(text: str, config: ImageDefaults) -> Healthcheck:
    if text.upper() == "NONE":
        return Healthcheck(test=["NONE"])
    options: dict[str, int] = {}
    while match := re.match(r"--(interval|timeout|start-period|start-interval|retries)=(\S+)\s*", text):
        name, value = match[1].replace("-", "_"), match[2]
        options[name] = _count(value) if name == "retries" else _duration(value)
        text = text[match.end() :]
    kind, _, rest = text.partition(" ")
    if kind.upper() != "CMD":
        raise InvalidParameter(f'Unknown type "{kind}" in HEALTHCHECK (try CMD)')
    words = _list(rest.strip())
    if not rest.strip():
        raise InvalidParameter("Missing command after HEALTHCHECK CMD")
    test = ["CMD", *words] if words is not None else ["CMD-SHELL", rest.strip()]
    return Healthcheck(test=test, **options)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise InvalidParameter("--retries must be at least 1 (not " + text + ")")
    return int(text)


def _duration(text: str) -> int:
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise InvalidParameter(f'time: invalid duration "{text}"')
    return round(sum(float(number) * _NANOSECONDS[unit] for number, unit in parts))
