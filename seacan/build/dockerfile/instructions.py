"""Instructions of a Dockerfile as typed, plain data, and the stages they form.

Nothing is expanded here: values hold their ``$variables`` until the translation knows the environment.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from seacan.build.dockerfile.lint import Checks
from seacan.build.dockerfile.parser import DockerfileError, Document, Line, Range, heredoc
from seacan.build.dockerfile.suggest import with_suggestion
from seacan.build.dockerfile.words import WHITESPACE, WordError, go_quote

NAMES = (
    "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "MAINTAINER", "ONBUILD",
    "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
)  # fmt: skip

Expander = Callable[[str], str]

_STAGE_NAME = re.compile(r"[a-z][a-z0-9\-_.]*\Z")
_ONBUILD = re.compile(r"\s*ONBUILD\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Instruction:
    """What every instruction has: its name as written, its source without the comments, and its place."""

    name: str
    source: str
    location: Range
    comments: tuple[str, ...] = field(default=(), kw_only=True)


@dataclass(frozen=True)
class Pair:
    """A name and a value; ``legacy`` where they were separated by a space."""

    key: str
    value: str
    legacy: bool = False


@dataclass(frozen=True)
class Env(Instruction):
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class Label(Instruction):
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class Maintainer(Instruction):
    maintainer: str


@dataclass(frozen=True)
class Content:
    """A here-document that COPY or ADD writes to a file called ``path``."""

    path: str
    data: str
    expand: bool


@dataclass(frozen=True)
class Copy(Instruction):
    """COPY and ADD. ``origin`` is ``--from``; None in the optional booleans means that the flag was not given."""

    sources: tuple[str, ...]
    contents: tuple[Content, ...]
    destination: str
    chown: str = ""
    chmod: str = ""
    link: bool = False
    exclude: tuple[str, ...] = ()
    origin: str = ""
    parents: bool = False
    add: bool = False
    keep_git_dir: bool | None = None
    checksum: str = ""
    unpack: bool | None = None


@dataclass(frozen=True)
class Onbuild(Instruction):
    expression: str


@dataclass(frozen=True)
class Workdir(Instruction):
    path: str


@dataclass(frozen=True)
class InlineFile:
    """A here-document of RUN."""

    name: str
    data: str
    chomp: bool

    @property
    def text(self) -> str:
        return re.sub(r"(?m)^\t+", "", self.data) if self.chomp else self.data


@dataclass(frozen=True)
class Command:
    """A command line; ``shell`` where it is to be given to the shell."""

    arguments: tuple[str, ...]
    shell: bool
    files: tuple[InlineFile, ...] = ()


@dataclass(frozen=True)
class Mount:
    """``RUN --mount``. ``env`` names the variable of a secret; None where the flag was not given."""

    type: str = "bind"
    origin: str = ""
    source: str = ""
    target: str = ""
    read_only: bool = False
    size: int = 0
    id: str = ""
    sharing: str = ""
    required: bool = False
    env: str | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None


@dataclass(frozen=True)
class Device:
    """``RUN --device``: a CDI device."""

    name: str
    required: bool = False


@dataclass(frozen=True)
class Run(Instruction):
    command: Command
    mounts: tuple[str, ...] = ()
    """As written; :func:`parse_mount` reads them once variables are known."""
    network: str = "default"
    security: str = "sandbox"
    devices: tuple[Device, ...] = ()

    @property
    def origins(self) -> list[str]:
        """What each mount's ``from`` names; empty where it names nothing."""
        return [parse_mount(text, None).origin for text in self.mounts]


@dataclass(frozen=True)
class Cmd(Instruction):
    command: Command


@dataclass(frozen=True)
class Entrypoint(Instruction):
    command: Command


@dataclass(frozen=True)
class Healthcheck(Instruction):
    """``test`` as in an image's configuration; the intervals are nanoseconds."""

    test: tuple[str, ...]
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


@dataclass(frozen=True)
class Expose(Instruction):
    ports: tuple[str, ...]


@dataclass(frozen=True)
class User(Instruction):
    user: str


@dataclass(frozen=True)
class Volume(Instruction):
    volumes: tuple[str, ...]


@dataclass(frozen=True)
class StopSignal(Instruction):
    signal: str


@dataclass(frozen=True)
class Argument:
    """One name of ``ARG``; ``default`` is None where there is none."""

    key: str
    default: str | None
    description: str = ""


@dataclass(frozen=True)
class Arg(Instruction):
    arguments: tuple[Argument, ...]


@dataclass(frozen=True)
class Shell(Instruction):
    shell: tuple[str, ...]


@dataclass
class Stage:
    """``FROM`` and what follows it."""

    base: str
    name: str
    platform: str
    source: str
    keyword: str
    location: Range
    comments: tuple[str, ...]
    description: str = ""
    instructions: list[Instruction] = field(default_factory=list)


def parse_stages(document: Document, checks: Checks) -> tuple[list[Stage], list[Arg]]:
    """The stages of a Dockerfile and the ``ARG``\\ s before the first ``FROM``.

    :raises DockerfileError: an instruction is unknown, malformed or out of place.
    """
    stages: list[Stage] = []
    arguments: list[Arg] = []
    for line in document.lines:
        try:
            parsed = parse_instruction(line, checks)
        except (DockerfileError, WordError) as error:
            raise DockerfileError(
                f"dockerfile parse error on line {line.location.start}: {error}", _column(line, str(error))
            ) from None
        if isinstance(parsed, Stage):
            stages.append(parsed)
        elif stages:
            stages[-1].instructions.append(parsed)
        elif isinstance(parsed, Arg):
            arguments.append(parsed)
        else:
            raise DockerfileError("no build stage in current context", line.location)
    return stages, arguments


def parse_command(line: Line, checks: Checks) -> Instruction:
    """An instruction that is not ``FROM`` (a trigger of ``ONBUILD``)."""
    parsed = parse_instruction(line, checks)
    if isinstance(parsed, Stage):
        raise DockerfileError("FROM is not a command type", line.location)
    return parsed


def _column(line: Line, message: str) -> Range:
    """The place of an error: the column of the first word of the message that stands in the line, if one does."""
    for quoted in re.findall(r"""["']([^"']+)["']|: (\S+)|flag: (\S+)""", message):
        for word in quoted:
            at = line.source.find(word) if word else -1
            if at >= 0:
                return replace(line.location, column=at + 1)
    return line.location


def parse_instruction(line: Line, checks: Checks) -> Instruction | Stage:
    """Give ``line`` its meaning.

    :raises DockerfileError: in BuildKit's words.
    """
    checks = checks.merged(line.comments)
    parser = _PARSERS.get(line.name.lower())
    if parser is None:
        raise DockerfileError(
            with_suggestion(f"unknown instruction: {line.name}", line.name, NAMES, case_sensitive=False)
        )
    return parser(line, checks)


# --- flags ------------------------------------------------------------------------------------------------------


@dataclass
class _Flags:
    values: dict[str, str] = field(default_factory=dict)
    lists: dict[str, list[str]] = field(default_factory=dict)

    def get(self, name: str, default: str = "") -> str:
        return self.values.get(name, default)

    def boolean(self, name: str) -> bool | None:
        return None if name not in self.values else self.values[name] == "true"


def _flags(
    line: Line, *, strings: Sequence[str] = (), booleans: Sequence[str] = (), lists: Sequence[str] = ()
) -> _Flags:
    flags = _Flags(lists={name: [] for name in lists})
    for text in line.flags:
        if not text.startswith("--"):
            raise DockerfileError(f"arg should start with -- : {text}")
        shown, equals, value = text.partition("=")
        name = shown[2:]
        if name not in strings and name not in booleans and name not in lists:
            raise DockerfileError(with_suggestion(f"unknown flag: {shown}", name, [*strings, *booleans, *lists]))
        if name in flags.values:
            raise DockerfileError(f"duplicate flag specified: {shown}")
        if name in booleans:
            if equals and not value:
                raise DockerfileError(f"missing a value on flag: {shown}")
            if value.lower() not in ("", "true", "false"):
                raise DockerfileError(f"expecting boolean value for flag {shown}, not: {value}")
            flags.values[name] = "false" if value.lower() == "false" else "true"
        elif not equals:
            raise DockerfileError(f"missing a value on flag: {shown}")
        elif name in lists:
            flags.lists[name].append(value)
        else:
            flags.values[name] = value
    return flags


def _one(line: Line, name: str) -> str:
    if len(line.arguments) != 1:
        raise DockerfileError(f"{name} requires exactly one argument")
    _flags(line)
    return line.arguments[0]


def _some(line: Line, name: str) -> tuple[str, ...]:
    if not line.arguments:
        raise DockerfileError(f"{name} requires at least one argument")
    return line.arguments


def _common(line: Line) -> tuple[str, str, Range]:
    return line.name, line.source.strip(WHITESPACE), line.location


# --- one function an instruction --------------------------------------------------------------------------------


def _pairs(line: Line, name: str) -> tuple[Pair, ...]:
    _flags(line)
    arguments = _some(line, name)
    pairs: list[Pair] = []
    for at in range(0, len(arguments), 3):
        key, value, separator = arguments[at : at + 3]
        if not key:
            raise DockerfileError(f"{name} names can not be blank")
        pairs.append(Pair(key, value, legacy=not separator))
    return tuple(pairs)


def _env(line: Line, checks: Checks) -> Env:
    return Env(*_common(line), _pairs(line, "ENV"), comments=line.comments)


def _label(line: Line, checks: Checks) -> Label:
    return Label(*_common(line), _pairs(line, "LABEL"), comments=line.comments)


def _maintainer(line: Line, checks: Checks) -> Maintainer:
    checks.report("MaintainerDeprecated", line.location)
    return Maintainer(*_common(line), _one(line, "MAINTAINER"), comments=line.comments)


def _copy_or_add(line: Line, name: str, flags: Callable[[], _Flags]) -> Copy:
    if len(line.arguments) < 2:
        raise DockerfileError(
            f"{name} requires at least two arguments, but only one was provided. Destination could not be determined"
        )
    given = flags()
    *sources, destination = line.arguments
    if heredoc(destination) is not None:
        raise DockerfileError(f"{name} cannot accept a heredoc as a destination")
    texts = {document.name: document for document in line.heredocs}
    paths: list[str] = []
    contents: list[Content] = []
    for source in sources:
        opened = heredoc(source)
        if opened is None:
            paths.append(source)
            continue
        document = texts.get(opened.name)
        contents.append(Content(opened.name, document.text if document else "", opened.expand))
    return Copy(
        *_common(line),
        tuple(paths),
        tuple(contents),
        destination,
        chown=given.get("chown"),
        chmod=given.get("chmod"),
        link=bool(given.boolean("link")),
        exclude=tuple(given.lists["exclude"]),
        origin=given.get("from"),
        parents=bool(given.boolean("parents")),
        add=name == "ADD",
        keep_git_dir=given.boolean("keep-git-dir"),
        checksum=given.get("checksum"),
        unpack=given.boolean("unpack"),
        comments=line.comments,
    )


def _add(line: Line, checks: Checks) -> Copy:
    return _copy_or_add(
        line,
        "ADD",
        lambda: _flags(
            line,
            strings=("chown", "chmod", "checksum"),
            booleans=("link", "keep-git-dir", "unpack"),
            lists=("exclude",),
        ),
    )


def _copy(line: Line, checks: Checks) -> Copy:
    return _copy_or_add(
        line,
        "COPY",
        lambda: _flags(line, strings=("chown", "from", "chmod"), booleans=("link", "parents"), lists=("exclude",)),
    )


def _from(line: Line, checks: Checks) -> Stage:
    arguments = line.arguments
    name = ""
    if len(arguments) == 3:
        if arguments[2] != arguments[2].lower():
            checks.report("StageNameCasing", line.location, arguments[2])
        wanted = str.lower if line.name == line.name.lower() else str.upper if line.name == line.name.upper() else None
        if wanted is not None and arguments[1] != wanted(arguments[1]):
            checks.report("FromAsCasing", line.location, line.name, arguments[1])
    if len(arguments) == 3 and arguments[1].lower() == "as":
        name = arguments[2].lower()
        if _STAGE_NAME.match(name) is None:
            raise DockerfileError(
                f"invalid name for build stage: {go_quote(arguments[2])}, "
                "name can't start with a number or contain symbols"
            )
    elif len(arguments) != 1:
        raise DockerfileError("FROM requires either one or three arguments")
    flags = _flags(line, strings=("platform",))
    if name:
        _check_description("FROM", [name], line, checks)
    return Stage(
        arguments[0],
        name,
        flags.get("platform"),
        line.source.strip(WHITESPACE),
        line.name,
        line.location,
        line.comments,
        _description(line.comments, name),
    )


def _onbuild(line: Line, checks: Checks) -> Onbuild:
    arguments = _some(line, "ONBUILD")
    _flags(line)
    trigger = arguments[0].strip(WHITESPACE).upper()
    if trigger == "ONBUILD":
        raise DockerfileError("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
    if trigger in ("MAINTAINER", "FROM"):
        raise DockerfileError(f"{trigger} isn't allowed as an ONBUILD trigger")
    expression = _ONBUILD.sub("", line.source, count=1)
    for document in line.heredocs:
        expression += f"\n{document.content}{document.name}"
    return Onbuild(*_common(line), expression, comments=line.comments)


def _workdir(line: Line, checks: Checks) -> Workdir:
    return Workdir(*_common(line), _one(line, "WORKDIR"), comments=line.comments)


def _command(line: Line, arguments: Iterable[str]) -> Command:
    files = tuple(InlineFile(each.name, each.content, each.chomp) for each in line.heredocs)
    given = tuple(arguments)
    if not line.json and given:
        given = (" ".join(given),)
    return Command(given, not line.json, files)


def _run(line: Line, checks: Checks) -> Run:
    flags = _flags(line, strings=("network", "security"), lists=("mount", "device"))
    network = flags.get("network", "default")
    if network not in ("default", "none", "host"):
        raise DockerfileError(f"invalid network mode {go_quote(network)}")
    security = flags.get("security", "sandbox")
    if security not in ("sandbox", "insecure"):
        raise DockerfileError(f"security {go_quote(security)} is not valid")
    for text in flags.lists["mount"]:
        parse_mount(text, None)
    return Run(
        *_common(line),
        _command(line, line.arguments),
        mounts=tuple(flags.lists["mount"]),
        network=network,
        security=security,
        devices=tuple(parse_device(text) for text in flags.lists["device"]),
        comments=line.comments,
    )


def _cmd(line: Line, checks: Checks) -> Cmd:
    _flags(line)
    return Cmd(*_common(line), _command(line, line.arguments), comments=line.comments)


def _entrypoint(line: Line, checks: Checks) -> Entrypoint:
    _flags(line)
    return Entrypoint(*_common(line), _command(line, line.arguments), comments=line.comments)


def _healthcheck(line: Line, checks: Checks) -> Healthcheck:
    kind, *arguments = _some(line, "HEALTHCHECK")
    kind = kind.upper()
    if kind == "NONE":
        if arguments:
            raise DockerfileError("HEALTHCHECK NONE takes no arguments")
        return Healthcheck(*_common(line), ("NONE",), comments=line.comments)
    durations = ("interval", "timeout", "start-period", "start-interval")
    flags = _flags(line, strings=(*durations, "retries"))
    if kind != "CMD":
        raise DockerfileError(f"Unknown type {go_quote(kind)} in HEALTHCHECK (try CMD)")
    if not arguments:
        raise DockerfileError("Missing command after HEALTHCHECK CMD")
    test = ("CMD", *arguments) if line.json else ("CMD-SHELL", " ".join(arguments))
    interval, timeout, start_period, start_interval = (_interval(name, flags.get(name)) for name in durations)
    retries = 0
    if flags.get("retries"):
        try:
            retries = int(flags.get("retries"))
        except ValueError:
            raise DockerfileError(
                f"strconv.ParseInt: parsing {go_quote(flags.get('retries'))}: invalid syntax"
            ) from None
        if retries < 0:
            raise DockerfileError(f"--retries cannot be negative ({retries})")
    return Healthcheck(
        *_common(line), test, interval, timeout, start_period, start_interval, retries, comments=line.comments
    )


def _interval(name: str, text: str) -> int:
    if not text:
        return 0
    value = parse_duration(text)
    if 0 != value < 1_000_000:
        raise DockerfileError(f"Interval {go_quote(name)} cannot be less than 1ms")
    return value


def _expose(line: Line, checks: Checks) -> Expose:
    ports = _some(line, "EXPOSE")
    _flags(line)
    return Expose(*_common(line), tuple(sorted(ports)), comments=line.comments)


def _user(line: Line, checks: Checks) -> User:
    return User(*_common(line), _one(line, "USER"), comments=line.comments)


def _volume(line: Line, checks: Checks) -> Volume:
    volumes = tuple(each.strip(WHITESPACE) for each in _some(line, "VOLUME"))
    _flags(line)
    if not all(volumes):
        raise DockerfileError("VOLUME specified can not be an empty string")
    return Volume(*_common(line), volumes, comments=line.comments)


def _stop_signal(line: Line, checks: Checks) -> StopSignal:
    if len(line.arguments) != 1:
        raise DockerfileError("STOPSIGNAL requires exactly one argument")
    return StopSignal(*_common(line), line.arguments[0], comments=line.comments)


def _arg(line: Line, checks: Checks) -> Arg:
    arguments: list[Argument] = []
    for word in _some(line, "ARG"):
        key, equals, default = word.partition("=")
        if equals and not key:
            raise DockerfileError("ARG names can not be blank")
        arguments.append(Argument(key, default if equals else None, _description(line.comments, key)))
    _check_description("ARG", [each.key for each in arguments], line, checks)
    return Arg(*_common(line), tuple(arguments), comments=line.comments)


def _shell(line: Line, checks: Checks) -> Shell:
    _flags(line)
    arguments = _some(line, "SHELL")
    if not line.json:
        raise DockerfileError(f"SHELL requires the arguments to be in JSON form: {line.source}")
    return Shell(*_common(line), arguments, comments=line.comments)


_PARSERS: dict[str, Callable[[Line, Checks], Instruction | Stage]] = {
    "add": _add,
    "arg": _arg,
    "cmd": _cmd,
    "copy": _copy,
    "entrypoint": _entrypoint,
    "env": _env,
    "expose": _expose,
    "from": _from,
    "healthcheck": _healthcheck,
    "label": _label,
    "maintainer": _maintainer,
    "onbuild": _onbuild,
    "run": _run,
    "shell": _shell,
    "stopsignal": _stop_signal,
    "user": _user,
    "volume": _volume,
    "workdir": _workdir,
}


def _description(comments: tuple[str, ...], name: str) -> str:
    if name:
        for comment in comments:
            if comment.startswith(name + " "):
                return comment[len(name) + 1 :]
    return ""


def _check_description(instruction: str, names: list[str], line: Line, checks: Checks) -> None:
    if not line.comments or not names or line.comments[-1].split(" ")[0] in names:
        return
    checks.report(
        "InvalidDefinitionDescription", line.location, instruction, names[0] if len(names) == 1 else "<arg_key>"
    )


# --- values -----------------------------------------------------------------------------------------------------

_UNITS = {"ns": 1, "us": 1_000, "µs": 1_000, "μs": 1_000, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")


def parse_duration(text: str) -> int:
    """A duration in Go's notation ("1m30s") in nanoseconds.

    :raises DockerfileError: in Go's words.
    """
    sign, rest = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    if rest == "0":
        return 0
    total, at = 0.0, 0
    while at < len(rest):
        match = _DURATION.match(rest, at)
        if match is None:
            if re.match(r"(\d+\.?\d*|\.\d+)\Z", rest[at:]):
                raise DockerfileError(f"time: missing unit in duration {go_quote(text)}")
            raise DockerfileError(f"time: invalid duration {go_quote(text)}")
        total += float(match[1]) * _UNITS[match[2]]
        at = match.end()
    if not rest or total >= 2**63:
        raise DockerfileError(f"time: invalid duration {go_quote(text)}")
    return sign * round(total)


_SIZES = re.compile(r"(\d+(?:\.\d+)?) ?([kmgtpe]?)i?b?\Z", re.IGNORECASE)


def parse_size(text: str) -> int:
    """A size in bytes ("64m", "1.5GiB"): binary multiples, as go-units' RAMInBytes reads them."""
    match = _SIZES.match(text)
    if match is None:
        raise DockerfileError(f"invalid size: '{text}'")
    return int(float(match[1]) * 1024 ** " kmgtpe".index(match[2].lower() or " "))


def csv_fields(text: str) -> list[str]:
    """The fields of one line of comma-separated values.

    :raises DockerfileError: the quotes are wrong.
    """
    try:
        rows = list(csv.reader([text], strict=True))
    except csv.Error as error:
        raise DockerfileError(f"failed to parse csv mounts: {error}") from None
    return rows[0] if rows else []


def _boolean(key: str, value: str) -> bool:
    if value in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if value in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise DockerfileError(f"invalid value for {key}: {value}")


_MOUNT_TYPES = ("bind", "cache", "secret", "ssh", "tmpfs")
_SHARING = ("locked", "private", "shared")
_MOUNT_KEYS = (
    "type", "from", "source", "target", "readonly", "id", "sharing", "required", "size", "mode", "uid", "gid", "src",
    "dst", "destination", "ro", "rw", "readwrite", "env",
)  # fmt: skip


def parse_mount(text: str, expand: Expander | None) -> Mount:
    """Read the value of ``--mount``. Without ``expand`` only what needs no variables is read: ``from``.

    :raises DockerfileError: in BuildKit's words.
    """
    values: dict[str, str | int | bool | None] = {}
    kind = "bind"
    read_only: bool | None = None
    for part in csv_fields(text):
        key, equals, value = part.partition("=")
        key = key.lower()
        if expand is None:
            if equals and key == "from":
                dollar = value.find("$")
                if dollar >= 0 and dollar != len(value) - 1:
                    raise DockerfileError(f"'{key}' doesn't support variable expansion, define alias stage instead")
                values["origin"] = value
            continue
        if not equals:
            if key in ("readonly", "ro"):
                read_only = True
            elif key in ("readwrite", "rw"):
                read_only = False
            elif key == "required":
                if kind not in ("secret", "ssh"):
                    raise DockerfileError(f"unexpected key '{key}' for mount type '{kind}'")
                values["required"] = True
            else:
                raise DockerfileError(f"invalid field '{part}' must be a key=value pair")
            continue
        value = expand(value)
        match key:
            case "type":
                kind = value.lower()
                if kind not in _MOUNT_TYPES:
                    raise DockerfileError(
                        with_suggestion(f"unsupported mount type {go_quote(value)}", value, _MOUNT_TYPES)
                    )
            case "from":
                values["origin"] = value
            case "source" | "src":
                values["source"] = value
            case "target" | "dst" | "destination":
                values["target"] = value
            case "readonly" | "ro":
                read_only = _boolean(key, value)
            case "readwrite" | "rw":
                read_only = not _boolean(key, value)
            case "required":
                if kind not in ("secret", "ssh"):
                    raise DockerfileError(f"unexpected key '{key}' for mount type '{kind}'")
                values["required"] = _boolean(key, value)
            case "size":
                if kind != "tmpfs":
                    raise DockerfileError(f"unexpected key '{key}' for mount type '{kind}'")
                try:
                    values["size"] = parse_size(value)
                except DockerfileError:
                    raise DockerfileError(f"invalid value for {key}: {value}") from None
            case "id":
                values["id"] = value
            case "sharing":
                if value.lower() not in _SHARING:
                    raise DockerfileError(
                        with_suggestion(f"unsupported sharing value {go_quote(value)}", value, _SHARING)
                    )
                values["sharing"] = value.lower()
            case "mode" | "uid" | "gid":
                values[key] = _number(key, value)
            case "env":
                values["env"] = value
            case _:
                raise DockerfileError(with_suggestion(f"unexpected key '{key}' in '{part}'", key, _MOUNT_KEYS))
    if expand is None:
        return Mount(origin=str(values.get("origin", "")))
    if kind not in ("secret", "ssh", "cache"):
        for key in ("mode", "uid", "gid"):
            if key in values:
                raise DockerfileError(f"{key} not allowed for {go_quote(kind)} type mounts")
    if read_only is None:
        read_only = kind not in ("cache", "tmpfs")
    mount = Mount(type=kind, read_only=read_only, **values)  # type: ignore[arg-type]
    if kind == "secret":
        if mount.origin:
            raise DockerfileError("secret mount should not have a from")
        if mount.sharing:
            raise DockerfileError("secret mount should not define sharing")
        if not (mount.source or mount.target or mount.id):
            raise DockerfileError("invalid secret mount. one of source, target required")
        if mount.source and mount.id:
            raise DockerfileError("both source and id can't be set")
    if mount.sharing and kind != "cache":
        raise DockerfileError(f"invalid cache sharing set for {kind} mount")
    return mount


def _number(key: str, value: str) -> int:
    digits = "01234567" if key == "mode" else "0123456789"
    number = int(value, len(digits)) if value and all(each in digits for each in value) else -1
    if not 0 <= number < 2**32:
        raise DockerfileError(f"invalid value {value} for {key}")
    return number


def parse_device(text: str) -> Device:
    """Read the value of ``--device``."""
    name, required = "", False
    for part in csv_fields(text):
        key, equals, value = part.partition("=")
        key = key.lower()
        if equals and key == "name":
            if name:
                raise DockerfileError(f"device name already set to {name}")
            name = value
        elif key == "required":
            required = _boolean(key, value) if equals else True
        elif not name:
            name = part
        elif not equals:
            raise DockerfileError(f"invalid field '{part}' must be a key=value pair")
        else:
            raise DockerfileError(with_suggestion(f"unexpected key '{key}' in '{part}'", key, ("name", "required")))
    return Device(name, required)
