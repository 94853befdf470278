"""A Dockerfile into a build graph and the configuration of the image that it describes.

The translation evaluates variables, resolves stages and base images, drops stages nobody needs, refuses cycles, and
records what each instruction does to the image's configuration and history. It executes nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import msgspec

from seacan.build.dockerfile import instructions as ins
from seacan.build.dockerfile.lint import Checks, Finding
from seacan.build.dockerfile.parser import DockerfileError, Document, Range, directive, parse
from seacan.build.dockerfile.suggest import nearest, with_suggestion
from seacan.build.dockerfile.words import Expansion, Lexer, WordError, go_quote
from seacan.build.graph import (
    CopyFiles,
    Exec,
    FileMount,
    Files,
    GitSource,
    HttpSource,
    ImageSource,
    InlineSource,
    Limits,
    LocalSource,
    MakeDirectory,
    Merge,
    Operation,
    Scratch,
    Source,
    Vertex,
)
from seacan.build.ignore import Matcher, clean, has_wildcards
from seacan.build.sources import http_filename, is_http, parse_git
from seacan.errors import InvalidParameter, NotFound, SeacanError
from seacan.images import reference as references
from seacan.images.config import Healthcheck, History, ImageConfig, ImageDefaults, RootFS, format_time
from seacan.images.manifest import Platform, host_platform, parse_platform

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
COMMENT = "buildkit.dockerfile.v0"
"""What BuildKit's front end writes as comment of each line of history."""

_NOT_IN_ENVIRONMENT = frozenset(("BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"))
_PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy")
_SECRET_WORDS = re.compile(
    r"(?:_|^)(?:apikey|auth|credentials?|key|password|pword|passwd|secret|token)(?:_|$)", re.IGNORECASE
)
_HARMLESS_WORDS = re.compile(r"(?:_|^)(?:public|file|version)(?:_|$)", re.IGNORECASE)
_COMMON_IMAGES = ("alpine", "busybox", "centos", "debian", "golang", "ubuntu", "fedora")
_SYMBOLIC_MODE = re.compile(r"(?:[ugoa]*(?:[-+=](?:[rwxXst]*|[ugo]))+)(?:,[ugoa]*(?:[-+=](?:[rwxXst]*|[ugo]))+)*")

SIGNALS = frozenset(
    (
        *("HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM"),
        *("TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF"),
        *("WINCH", "IO", "PWR", "SYS", "CLD", "IOT", "POLL", "UNUSED", "RTMIN", "RTMAX"),
    )
)
"""What STOPSIGNAL may name, without "SIG"."""


@dataclass(frozen=True)
class ResolvedImage:
    """A base image: its configuration, its layers' chain ID ("" for none) and its reference pinned by digest."""

    config: ImageConfig
    chain_id: str
    pinned: str = ""
    digest: str = ""


@dataclass(frozen=True)
class NamedContext:
    """What ``--build-context name=…`` stands for: a source, with a configuration where it is an image."""

    vertex: Vertex
    config: ImageConfig | None = None


class Resolver(Protocol):
    """What the translation asks the world outside."""

    async def image(self, reference: str, platform: Platform) -> ResolvedImage:
        """:raises NotFound: there is no such image, nor can it be had."""

    async def named_context(self, name: str, platform: Platform) -> NamedContext | None: ...


@dataclass(frozen=True)
class Options:
    """What the client asks besides the Dockerfile itself.

    ``no_cache`` names the stages that are to run anew ("" alone: all). ``platform`` None means the builder's own.
    ``classic`` writes history as dockerd's classic builder does. Sizes are bytes.
    """

    build_args: Mapping[str, str] = field(default_factory=dict)
    target: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    platform: Platform | None = None
    build_platform: Platform | None = None
    multi_platform: bool = False
    no_cache: frozenset[str] = frozenset()
    network: str = "default"
    hosts: tuple[tuple[str, str], ...] = ()
    hostname: str = ""
    shm_size: int = 0
    ulimits: tuple[tuple[str, int, int], ...] = ()
    limits: Limits = field(default_factory=Limits)
    cgroup_parent: str = ""
    cache_namespace: str = ""
    checks: Checks | None = None
    ignore: tuple[str, ...] = ()
    classic: bool = False
    all_stages: bool = False
    """Translate every stage (for ``--check`` without a target)."""


@dataclass(frozen=True)
class Step:
    """One instruction, for progress that follows the Dockerfile: ``vertex`` is the state after it."""

    source: str
    vertex: Vertex
    ran: bool
    """It has a result of its own (RUN, COPY, ADD, WORKDIR, FROM)."""
    stage: str = ""
    first: bool = False
    """It begins a stage."""
    contained: bool = True
    """A classic builder runs a container for it, if only to commit it."""


@dataclass(frozen=True)
class Converted:
    """The outcome. ``config`` has no layers yet (``rootfs`` is the base's); ``history`` is complete."""

    vertex: Vertex
    config: ImageConfig
    base: ImageConfig | None
    findings: list[Finding]
    steps: list[Step]
    epoch: int | None
    stage: str = ""
    unused_args: tuple[str, ...] = ()
    context_exclude: tuple[str, ...] = ()


@dataclass(frozen=True)
class Target:
    """A stage that can be built, for ``docker build --call targets``."""

    name: str
    default: bool
    description: str
    base: str
    platform: str
    location: Range


def targets(source: bytes) -> list[Target]:
    """The stages of a Dockerfile. :raises DockerfileError:"""
    stages, _ = ins.parse_stages(parse(source), Checks())
    return [
        Target(stage.name, number == len(stages) - 1, stage.description, stage.base, stage.platform, stage.location)
        for number, stage in enumerate(stages)
    ]


async def convert(source: bytes, options: Options, resolver: Resolver) -> Converted:
    """Translate a Dockerfile.

    :raises DockerfileError: the Dockerfile is wrong; in BuildKit's words, with the place.
    :raises NotFound: a base image does not exist.
    """
    if not source:
        raise DockerfileError("the Dockerfile cannot be empty")
    if not source.strip():
        raise DockerfileError("file with no instructions")
    checks = options.checks or Checks.parse(directive(source.decode("utf-8", "replace"), "check") or "")
    document = parse(source)
    for warning in document.warnings:
        checks.report(warning.rule, Range(warning.line, warning.line))
    stages, arguments = ins.parse_stages(document, checks)
    if not stages:
        raise DockerfileError("dockerfile contains no stages to build")
    return await _Translation(document, stages, arguments, options, checks, resolver).run()


@dataclass(eq=False)
class _State:
    """A stage on its way."""

    stage: ins.Stage
    name: str
    base: _State | None = None
    vertex: Vertex = field(default_factory=lambda: Vertex(Scratch()))
    config: ImageConfig = field(default_factory=ImageConfig)
    base_config: ImageConfig | None = None
    platform: Platform | None = None
    environment: dict[str, str] = field(default_factory=dict)
    directory: str = "/"
    user: str = ""
    arguments: list[tuple[str, str | None]] = field(default_factory=list)
    needs: dict[int, tuple[_State, Range]] = field(default_factory=dict)
    commands: list[tuple[ins.Instruction, list[_State | None], bool]] = field(default_factory=list)
    resolved: bool = False
    dispatched: bool = False
    onbuild_done: bool = False
    unregistered: bool = False
    context: NamedContext | None = None
    ignore_cache: bool = False
    total: int = 0
    index: int = 0
    workdir_set: bool = False
    seen: dict[str, Range] = field(default_factory=dict)

    @property
    def defaults(self) -> ImageDefaults:
        return self.config.defaults

    def update(self, **fields: object) -> None:
        self.config = msgspec.structs.replace(self.config, config=msgspec.structs.replace(self.defaults, **fields))


class _Translation:
    def __init__(
        self,
        document: Document,
        stages: list[ins.Stage],
        arguments: list[ins.Arg],
        options: Options,
        checks: Checks,
        resolver: Resolver,
    ) -> None:
        self.lexer = Lexer(document.escape)
        self.stages = stages
        self.arguments = arguments
        self.options = options
        self.checks = checks
        self.resolver = resolver
        self.states: list[_State] = []
        self.by_name: dict[str, _State] = {}
        self.build_platform = (options.build_platform or host_platform()).normalised()
        self.target_platform = (options.platform or self.build_platform).normalised()
        self.build_args = dict(options.build_args)
        self.globals: dict[str, str] = {}
        self.declared: set[str] = set()
        self.epoch: int | None = None
        self.steps: list[Step] = []
        self.lookups: dict[tuple[str, str], asyncio.Future[ResolvedImage]] = {}
        self.base_vertices: dict[tuple[str, str], Vertex] = {}
        self.ignore = Matcher(options.ignore)
        self.context = Vertex(
            LocalSource("context", options.ignore), name="[internal] load build context", internal=True
        )
        self.context_paths: set[str] = set()

    # --- the whole ----------------------------------------------------------------------------------------------

    async def run(self) -> Converted:
        self._check_names()
        self._check_casing()
        target_name = self.options.target or self.stages[-1].name
        defaults = self._predefined(target_name)
        self._check_default_bases(defaults)
        self.globals = self._evaluate_globals(defaults, self.build_args)
        epoch = self.build_args.get("SOURCE_DATE_EPOCH") or self.globals.get("SOURCE_DATE_EPOCH")
        if epoch:
            if not re.fullmatch(r"-?\d{1,18}", epoch):
                raise InvalidParameter(f"invalid SOURCE_DATE_EPOCH: {epoch}")
            self.epoch = int(epoch)
        await self._make_states()
        target = self._target()
        self._connect()
        reachable = await self._resolve(target)
        for state in list(self.states):
            if (id(state) in reachable or self.options.all_stages) and not state.dispatched:
                self._dispatch_stage(state)
        if self.options.labels:
            target.update(labels={**(target.defaults.labels or {}), **self.options.labels})
        failure = self.checks.failure()
        if failure is not None:
            raise failure
        config = target.config
        if self.options.platform is not None:
            config = msgspec.structs.replace(
                config,
                os=self.target_platform.os,
                architecture=self.target_platform.architecture,
                variant=self.target_platform.variant,
            )
        elif not config.os:
            config = msgspec.structs.replace(config, os="linux")
        self._narrow_context()
        used = {key for state in self.states for key, _ in state.arguments} | self.declared
        unused = tuple(
            sorted(
                key
                for key in self.build_args
                if key not in used
                and key.lower() not in _PROXIES
                and not key.startswith("BUILDKIT_")
                and key not in ("SOURCE_DATE_EPOCH",)
                and key not in self.globals
            )
        )
        return Converted(
            target.vertex,
            config,
            target.base_config,
            self.checks.findings,
            self.steps,
            self.epoch,
            target.name,
            unused,
            self.options.ignore,
        )

    def _narrow_context(self) -> None:
        paths = () if "/" in self.context_paths else tuple(sorted(self.context_paths))
        operation = self.context.operation
        assert isinstance(operation, LocalSource)
        self.context.operation = replace(operation, paths=paths or ("/",))

    # --- arguments ----------------------------------------------------------------------------------------------

    def _predefined(self, target: str) -> dict[str, str]:
        build, wanted = self.build_platform, self.target_platform
        values = {
            "BUILDPLATFORM": str(build),
            "BUILDOS": build.os,
            "BUILDOSVERSION": build.os_version,
            "BUILDARCH": build.architecture,
            "BUILDVARIANT": build.variant,
            "TARGETPLATFORM": str(wanted),
            "TARGETOS": wanted.os,
            "TARGETOSVERSION": wanted.os_version,
            "TARGETARCH": wanted.architecture,
            "TARGETVARIANT": wanted.variant,
            "TARGETSTAGE": target or "default",
        }
        return {key: self.build_args.get(key, value) for key, value in values.items()}

    def _evaluate_globals(self, defaults: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
        values = dict(defaults)
        for instruction in self.arguments:
            for argument in instruction.arguments:
                self.declared.add(argument.key)
                value = given.get(argument.key)
                if value is None and argument.default is not None:
                    value = self._at(instruction.location, argument.default, values).result
                if value is not None:
                    values[argument.key] = value
        return values

    def _at(self, location: Range, word: str, values: Mapping[str, str]) -> Expansion:
        try:
            return self.lexer.expand(word, values)
        except WordError as error:
            raise DockerfileError(str(error), location) from None

    # --- checks of the file as a whole --------------------------------------------------------------------------

    def _check_names(self) -> None:
        names: set[str] = set()
        for stage in self.stages:
            if not stage.name:
                continue
            if stage.name in ("context", "scratch"):
                self.checks.report("ReservedStageName", stage.location, stage.name)
            if stage.name in names:
                self.checks.report("DuplicateStageName", stage.location, stage.name)
            names.add(stage.name)

    def _check_casing(self) -> None:
        words = [
            (word, location)
            for stage in self.stages
            for word, location in (
                (stage.keyword, stage.location),
                *((each.name, each.location) for each in stage.instructions),
            )
        ]
        lower = sum(word == word.lower() for word, _ in words)
        upper = sum(word == word.upper() and word != word.lower() for word, _ in words)
        casing = "lowercase" if lower > upper else "uppercase"
        for word, location in words:
            if word != (word.lower() if casing == "lowercase" else word.upper()):
                self.checks.report("ConsistentInstructionCasing", location, word, casing)

    def _check_default_bases(self, defaults: Mapping[str, str]) -> None:
        try:
            values = self._evaluate_globals(defaults, {})
            for stage in self.stages:
                base = self.lexer.expand(stage.base, values).result
                try:
                    references.parse(base)
                except InvalidParameter:
                    self.checks.report("InvalidDefaultArgInFrom", stage.location, stage.base)
        except (DockerfileError, WordError):
            return

    # --- stages -------------------------------------------------------------------------------------------------

    async def _make_states(self) -> None:
        for number, stage in enumerate(self.stages):
            checks = self.checks.merged(stage.comments)
            known = self.declared | self.globals.keys()
            expansion = self._at(stage.location, stage.base, self.globals)
            self._check_from_arguments(checks, expansion, known, stage)
            if not expansion.result:
                raise DockerfileError(f"base name ({stage.base}) should not be blank", stage.location)
            stage.base = expansion.result
            state = _State(stage, stage.name or f"stage-{number}")
            if stage.platform:
                state.platform = self._stage_platform(stage, checks, known)
            if stage.name:
                context = await self._named_context(stage.name, state.platform)
                if context is not None:
                    state.context = context
                    self._add(state)
                    state.base = None
                    continue
            self._add(state)
            state.total = sum(isinstance(each, (ins.Copy, ins.Run, ins.Workdir)) for each in stage.instructions) + (
                stage.base != "scratch" and state.base is None
            )
            state.ignore_cache = "" in self.options.no_cache or (
                bool(stage.name) and stage.name in self.options.no_cache
            )

    def _check_from_arguments(self, checks: Checks, expansion: Expansion, known: set[str], stage: ins.Stage) -> None:
        for name in sorted(expansion.unmatched - known):
            checks.report("UndefinedArgInFrom", stage.location, name, nearest(name, known))

    def _stage_platform(self, stage: ins.Stage, checks: Checks, known: set[str]) -> Platform:
        try:
            expansion = self.lexer.expand(stage.platform, self.globals)
        except WordError as error:
            raise DockerfileError(f"failed to process arguments for platform : {error}", stage.location) from None
        self._check_from_arguments(checks, expansion, known, stage)
        text = expansion.result
        alone = expansion.matched == {"TARGETPLATFORM"} and not expansion.unmatched
        if alone and text == self.globals["TARGETPLATFORM"]:
            checks.report("RedundantTargetPlatform", stage.location, stage.platform)
        if not text:
            message = f"empty platform value from expression {stage.platform}"
            for name in sorted(expansion.unmatched):
                message = with_suggestion(message, name, self.globals)
            raise DockerfileError(message, stage.location)
        try:
            platform = parse_platform(text)
        except InvalidParameter as error:
            raise DockerfileError(f"failed to parse platform {stage.platform}: {error}", stage.location) from None
        constant = not expansion.matched and not expansion.unmatched
        if constant and platform.os not in stage.name and platform.architecture not in stage.name:
            checks.report("FromPlatformFlagConstDisallowed", stage.location, text)
        return platform

    async def _named_context(self, name: str, platform: Platform | None) -> NamedContext | None:
        if name.lower() in ("scratch", "context"):
            return None
        return await self.resolver.named_context(name, platform or self.target_platform)

    def _add(self, state: _State) -> None:
        self.states.append(state)
        state.base = self.by_name.get(state.stage.base.lower()) if not state.unregistered else None
        if state.unregistered and state.stage.base in self.by_name:
            state.base = self.by_name[state.stage.base]
        if state.stage.name:
            self.by_name[state.stage.name.lower()] = state

    def _target(self) -> _State:
        wanted = self.options.target
        if not wanted:
            return self.states[-1]
        if wanted.lower() in self.by_name:
            return self.by_name[wanted.lower()]
        if wanted.isdigit() and int(wanted) < len(self.states):
            return self.states[int(wanted)]
        if self.options.classic:
            raise InvalidParameter(f"target stage {go_quote(wanted)} could not be found")
        raise InvalidParameter(
            with_suggestion(
                f"target stage {go_quote(wanted)} could not be found", wanted, [each.name for each in self.states]
            )
        )

    def _connect(self) -> None:
        """Find what each instruction takes from other stages; refuse cycles."""
        for state in list(self.states):
            state.commands = [(each, self._sources(state, each), False) for each in state.stage.instructions]
        self._refuse_cycles()
        if len(self.states) == 1:
            self.states[0].name = ""

    def _sources(self, state: _State, instruction: ins.Instruction) -> list[_State | None]:
        found: list[_State | None] = []
        if isinstance(instruction, ins.Copy) and instruction.origin:
            if self._at(instruction.location, instruction.origin, {}).result != instruction.origin:
                raise DockerfileError(
                    "variable expansion is not supported for --from, define a new stage with FROM using ARG from "
                    "global scope as a workaround",
                    instruction.location,
                )
            if re.fullmatch(r"[-+]?\d+", instruction.origin):
                index = int(instruction.origin)
                if not 0 <= index < len(self.states):
                    raise DockerfileError(f"invalid stage index {index}", instruction.location)
                found.append(self.states[index])
            else:
                found.append(self._stage_or_image(instruction.origin, instruction.location))
        elif isinstance(instruction, ins.Run):
            found = [
                self._stage_or_image(origin, instruction.location) if origin else None for origin in instruction.origins
            ]
        for source in found:
            if source is not None:
                state.needs[id(source)] = (source, instruction.location)
        return found

    def _stage_or_image(self, name: str, location: Range) -> _State:
        state = self.by_name.get(name.lower())
        if state is not None:
            return state
        for existing in self.states:
            if existing.unregistered and existing.stage.base == name:
                return existing
        stage = ins.Stage(name, "", "", f"FROM {name}", "FROM", location, ())
        state = _State(stage, "", unregistered=True)
        self.states.append(state)
        return state

    def _refuse_cycles(self) -> None:
        done: set[int] = set()
        for start in self.states:
            if id(start) in done:
                continue
            path = [(start, _all_needs(start))]
            on_path = {id(start)}
            while path:
                state, needs = path[-1]
                if not needs:
                    path.pop()
                    on_path.discard(id(state))
                    done.add(id(state))
                    continue
                following, location = needs.pop()
                if id(following) in on_path:
                    raise DockerfileError(
                        f"circular dependency detected on stage: {start.name or start.stage.base}", location
                    )
                if id(following) not in done:
                    on_path.add(id(following))
                    path.append((following, _all_needs(following)))

    # --- base images --------------------------------------------------------------------------------------------

    async def _resolve(self, target: _State) -> set[int]:
        while True:
            reachable = _reachable(target)
            wanted = [
                state
                for state in self.states
                if (id(state) in reachable or self.options.all_stages) and state.base is None and not state.resolved
            ]
            await asyncio.gather(*(self._resolve_base(state) for state in wanted))
            again = False
            for state in list(self.states):
                if id(state) not in reachable or state.onbuild_done:
                    continue
                if state.base is None and not state.resolved:
                    continue
                triggers = self._triggers(state)
                state.onbuild_done = True
                if triggers:
                    again = self._add_triggers(state, triggers) or again
            if not again:
                return _reachable(target)
            self._refuse_cycles()

    def _triggers(self, state: _State) -> list[str]:
        if state.context is not None or state.unregistered:
            return []
        if state.base is None:
            return list(state.config.defaults.on_build or ())
        return [each.expression for each in state.base.stage.instructions if isinstance(each, ins.Onbuild)]

    def _add_triggers(self, state: _State, triggers: Sequence[str]) -> bool:
        """Put the base's ONBUILD instructions first. True if they need other stages."""
        commands: list[tuple[ins.Instruction, list[_State | None], bool]] = []
        for trigger in triggers:
            try:
                lines = parse(trigger.encode("utf-8", "surrogateescape")).lines
                if len(lines) != 1:
                    raise DockerfileError("onbuild trigger should be a single expression")
                instruction = ins.parse_command(replace(lines[0], location=state.stage.location), Checks())
            except (DockerfileError, WordError) as error:
                raise DockerfileError(str(error), state.stage.location) from None
            commands.append((instruction, self._sources(state, instruction), True))
        state.commands = commands + state.commands
        state.total += sum(isinstance(each, (ins.Copy, ins.Run, ins.Workdir)) for each, _, _ in commands)
        if state.base is None:
            state.update(on_build=None)
        return any(sources for _, sources, _ in commands)

    async def _resolve_base(self, state: _State) -> None:
        state.resolved = True
        stage = state.stage
        platform = state.platform or self.target_platform
        try:
            if state.context is not None:
                self._use_context(state, state.context, platform)
                state.dispatched = True
                return
            if stage.base == "scratch":
                state.config = _empty(self.target_platform)
                state.platform = platform
                state.vertex = Vertex(Scratch(), platform=platform)
                state.dispatched = state.unregistered
                return
            try:
                reference = references.parse(stage.base).with_default_tag()
            except InvalidParameter as error:
                raise DockerfileError(
                    f"failed to parse stage name {go_quote(stage.base)}: {error}", stage.location
                ) from None
            context = await self._named_context(stage.base, platform)
            if context is not None:
                self._use_context(state, context, platform)
                state.dispatched = state.unregistered
                return
            try:
                image = await self._image(stage.base, platform)
            except NotFound as error:
                names = [each.name for each in self.states if each.name] + list(_COMMON_IMAGES)
                message = str(error) if self.options.classic else f"{stage.base}: {error}"
                raise NotFound(
                    message if self.options.classic else with_suggestion(message, stage.base, names)
                ) from None
            config = image.config
            state.base_config = config
            actual = Platform(config.os or "linux", config.architecture, config.variant).normalised()
            if (actual.os, actual.architecture) != (platform.os, platform.architecture):
                self.checks.report("InvalidBaseImagePlatform", stage.location, stage.base, str(actual), str(platform))
            state.config = msgspec.structs.replace(
                config,
                created=None,
                container="",
                container_config=None,
                docker_version="",
                id="",
                parent="",
                comment="",
            )
            state.platform = platform
            name = self._prefix(state, f"FROM {image.pinned or reference}")
            vertex = self.base_vertices.get((image.chain_id, str(platform)))
            if vertex is None:
                vertex = Vertex(
                    ImageSource(image.pinned or stage.base, image.chain_id, image.digest),
                    name=name,
                    source=_source(stage.location),
                    platform=platform,
                    command=stage.source,
                )
                self.base_vertices[image.chain_id, str(platform)] = vertex
            state.vertex = vertex
            state.dispatched = state.unregistered
        except SeacanError as error:
            if getattr(error, "location", None) is None:
                error.location = stage.location  # type: ignore[attr-defined]
            raise

    async def _image(self, reference: str, platform: Platform) -> ResolvedImage:
        """Look a base image up; each once."""
        key = (reference, str(platform))
        task = self.lookups.get(key)
        if task is None:
            task = asyncio.ensure_future(self.resolver.image(reference, platform))
            self.lookups[key] = task
        return await asyncio.shield(task)

    def _use_context(self, state: _State, context: NamedContext, platform: Platform) -> None:
        state.vertex = context.vertex
        config = context.config or _empty(platform)
        state.base_config = config
        state.config = msgspec.structs.replace(config, created=None)
        state.platform = platform

    # --- instructions -------------------------------------------------------------------------------------------

    def _dispatch_stage(self, state: _State) -> None:
        if state.base is not None:
            base = state.base
            if not base.dispatched:
                raise DockerfileError(f"stage {go_quote(base.name)} is used before it is defined", state.stage.location)
            state.vertex = base.vertex
            state.config = base.config
            state.base_config = base.base_config
            state.platform = state.platform or base.platform
            state.workdir_set = base.workdir_set
            state.arguments = list(base.arguments)
            state.environment = dict(base.environment)
            state.update(on_build=None)
        state.platform = state.platform or self.target_platform
        state.dispatched = True
        environment = list(state.defaults.env or ())
        if not any(each.partition("=")[0] == "PATH" for each in environment):
            environment.append(f"PATH={DEFAULT_PATH}")
            state.update(env=environment)
        for each in environment:
            key, _, value = each.partition("=")
            state.environment[key] = value
        if state.defaults.working_dir:
            directory = _absolute("/", state.defaults.working_dir)
            state.update(working_dir=directory)
            state.directory = directory
        state.user = state.defaults.user
        if not state.unregistered:
            self.steps.append(Step(state.stage.source, state.vertex, False, state.name, first=True))
        for instruction, sources, onbuild in state.commands:
            before = state.vertex
            try:
                self._dispatch(state, instruction, sources, onbuild)
            except WordError as error:
                raise DockerfileError(str(error), instruction.location) from None
            except DockerfileError as error:
                if error.location is None:
                    error.location = instruction.location
                raise
            self.steps.append(
                Step(
                    ("ONBUILD " if onbuild else "") + instruction.source,
                    state.vertex,
                    state.vertex is not before,
                    state.name,
                    contained=not isinstance(instruction, ins.Copy),
                )
            )

    def _dispatch(
        self, state: _State, instruction: ins.Instruction, sources: list[_State | None], onbuild: bool
    ) -> None:
        checks = self.checks.merged(instruction.comments)

        def expand(word: str) -> str:
            expansion = self.lexer.expand(word, state.environment)
            self._check_variables(state, instruction, checks, expansion)
            return expansion.result

        match instruction:
            case ins.Maintainer():
                state.config = msgspec.structs.replace(state.config, author=instruction.maintainer)
                self._history(state, f"MAINTAINER {instruction.maintainer}")
            case ins.Env():
                self._env(state, instruction, checks, expand)
            case ins.Label():
                pairs = self._pairs(instruction, instruction.pairs, checks, expand)
                state.update(labels={**(state.defaults.labels or {}), **dict(pairs)})
                self._history(state, "LABEL " + " ".join(f"{key}={value}" for key, value in pairs))
            case ins.Run():
                self._run(state, instruction, sources, expand, onbuild)
            case ins.Workdir():
                self._workdir(state, instruction, checks, expand, onbuild)
            case ins.Copy():
                self._copy(state, instruction, sources, checks, expand, onbuild)
            case ins.Onbuild():
                state.update(on_build=[*(state.defaults.on_build or ()), instruction.expression])
                if self.options.classic:
                    self._history(state, f"ONBUILD {instruction.expression}")
            case ins.Cmd():
                self._check_once(state, instruction, checks)
                arguments = self._shell_form(state, instruction, instruction.command, checks)
                state.update(cmd=arguments or None, args_escaped=not self.options.classic)
                self._history(state, f"CMD {_quoted(arguments)}")
            case ins.Entrypoint():
                self._check_once(state, instruction, checks)
                arguments = self._shell_form(state, instruction, instruction.command, checks)
                state.update(entrypoint=arguments or None)
                if "cmd" not in state.seen:
                    state.update(cmd=None)
                self._history(state, f"ENTRYPOINT {_quoted(arguments)}")
            case ins.Healthcheck():
                self._check_once(state, instruction, checks)
                self._healthcheck(state, instruction)
            case ins.Expose():
                self._expose(state, instruction, checks)
            case ins.User():
                user = expand(instruction.user)
                state.user = user
                state.update(user=user)
                self._history(state, f"USER {user}")
            case ins.Volume():
                volumes = [expand(each) for each in instruction.volumes]
                if not all(volumes):
                    raise DockerfileError("VOLUME specified can not be an empty string")
                state.update(volumes={**(state.defaults.volumes or {}), **{each: {} for each in volumes}})
                self._history(state, f"VOLUME [{' '.join(volumes)}]")
            case ins.StopSignal():
                signal = expand(instruction.signal)
                _check_signal(signal)
                state.update(stop_signal=signal)
                self._history(state, f"STOPSIGNAL {signal}")
            case ins.Shell():
                state.update(shell=list(instruction.shell))
                self._history(state, f"SHELL [{' '.join(instruction.shell)}]")
            case ins.Arg():
                self._arg(state, instruction, checks)
            case _:
                raise DockerfileError(f"unknown instruction: {instruction.name}", instruction.location)

    def _check_variables(
        self, state: _State, instruction: ins.Instruction, checks: Checks, expansion: Expansion
    ) -> None:
        missing = expansion.unmatched - {key for key, _ in state.arguments} - _NOT_IN_ENVIRONMENT
        for name in sorted(missing):
            checks.report("UndefinedVar", instruction.location, name, nearest(name, state.environment))

    def _check_once(self, state: _State, instruction: ins.Instruction, checks: Checks) -> None:
        key = instruction.name.lower()
        before = state.seen.get(key)
        if before is not None:
            checks.report("MultipleInstructionsDisallowed", before, instruction.name)
        state.seen[key] = instruction.location

    def _history(self, state: _State, text: str, *, layer: bool = False, command: bool = False) -> None:
        """Add a line of history; ``command`` marks what BuildKit marks: RUN, COPY and ADD."""
        if self.options.classic:
            if not command:
                shell = " ".join(state.defaults.shell or ("/bin/sh", "-c"))
                name = text.partition(" ")[0]
                text = f"{shell} #(nop) {'' if name in ('COPY', 'ADD', 'WORKDIR') else ' '}{text}"
                layer = layer and name in ("COPY", "ADD", "WORKDIR")
            entry = History(created_by=text, empty_layer=not layer, created=self._created())
        else:
            entry = History(
                created_by=text + (" # buildkit" if command else ""),
                comment=COMMENT,
                empty_layer=not layer,
                created=self._created(),
            )
        state.config = msgspec.structs.replace(state.config, history=[*state.config.history, entry])

    def _created(self) -> str | None:
        return None if self.epoch is None else format_time(self.epoch * 10**9)

    def _pairs(
        self, instruction: ins.Instruction, pairs: Sequence[ins.Pair], checks: Checks, expand: ins.Expander
    ) -> list[tuple[str, str]]:
        result: list[tuple[str, str]] = []
        for pair in pairs:
            if pair.legacy:
                checks.report("LegacyKeyValueFormat", instruction.location, instruction.name)
            result.append((expand(pair.key), expand(pair.value)))
        return result

    def _env(self, state: _State, instruction: ins.Env, checks: Checks, expand: ins.Expander) -> None:
        pairs = self._pairs(instruction, instruction.pairs, checks, expand)
        environment = list(state.defaults.env or ())
        for key, value in pairs:
            self._check_secret("ENV", key, instruction, checks)
            state.environment[key] = value
            for at, each in enumerate(environment):
                if each.partition("=")[0] == key:
                    environment[at] = f"{key}={value}"
                    break
            else:
                environment.append(f"{key}={value}")
        state.update(env=environment)
        self._history(state, "ENV " + " ".join(f"{key}={value}" for key, value in pairs))

    def _check_secret(self, name: str, key: str, instruction: ins.Instruction, checks: Checks) -> None:
        if _SECRET_WORDS.search(key) and not _HARMLESS_WORDS.search(key):
            checks.report("SecretsUsedInArgOrEnv", instruction.location, name, key)

    def _arg(self, state: _State, instruction: ins.Arg, checks: Checks) -> None:
        shown: list[str] = []
        for argument in instruction.arguments:
            self._check_secret("ARG", argument.key, instruction, checks)
            key = argument.key
            value: str | None
            if key in self.build_args:
                value = self.build_args[key]
            elif argument.default is not None:
                expansion = self.lexer.expand(argument.default, state.environment)
                self._check_variables(state, instruction, checks, expansion)
                value = expansion.result
            else:
                value = self.globals.get(key)
            if value is not None and key not in _NOT_IN_ENVIRONMENT:
                state.environment[key] = value
            state.arguments.append((key, value))
            shown.append(key if value is None else f"{key}={value}")
        self._history(state, "ARG " + " ".join(shown))

    def _shell(self, state: _State) -> list[str]:
        return list(state.defaults.shell or ("/bin/sh", "-c"))

    def _shell_form(
        self, state: _State, instruction: ins.Instruction, command: ins.Command, checks: Checks
    ) -> list[str]:
        if not command.shell:
            return list(command.arguments)
        if not state.defaults.shell:
            checks.report("JSONArgsRecommended", instruction.location, instruction.name)
        return [*self._shell(state), " ".join(command.arguments)]

    def _healthcheck(self, state: _State, instruction: ins.Healthcheck) -> None:
        health = Healthcheck(
            test=list(instruction.test),
            interval=instruction.interval,
            timeout=instruction.timeout,
            start_period=instruction.start_period,
            start_interval=instruction.start_interval,
            retries=instruction.retries,
        )
        state.update(healthcheck=health)
        times = (health.interval, health.timeout, health.start_period, health.start_interval)
        shown = [_go_duration(each) for each in times]
        if self.options.classic:
            text = f"&{{[{' '.join(instruction.test)}] {' '.join(shown)} {instruction.retries}}}"
        else:
            quoted = " ".join(go_quote(each) for each in shown)
            text = f"&{{{_quoted(instruction.test)} {quoted} {_go_quoted_rune(instruction.retries)}}}"
        self._history(state, f"HEALTHCHECK {text}")

    def _expose(self, state: _State, instruction: ins.Expose, checks: Checks) -> None:
        ports: list[str] = []
        for word in instruction.ports:
            for port in self.lexer.expand(word, state.environment).words:
                ports += _ports(port, instruction.location, checks)
        state.update(exposed_ports={**(state.defaults.exposed_ports or {}), **{each: {} for each in ports}})
        self._history(
            state, f"EXPOSE {' '.join(instruction.ports)}" if self.options.classic else f"EXPOSE [{' '.join(ports)}]"
        )

    def _workdir(
        self, state: _State, instruction: ins.Workdir, checks: Checks, expand: ins.Expander, onbuild: bool
    ) -> None:
        path = expand(instruction.path)
        if not state.workdir_set and not path.startswith("/"):
            checks.report("WorkdirRelativePath", instruction.location, path)
        state.workdir_set = True
        directory = _absolute(state.defaults.working_dir or "/", path)
        state.update(working_dir=directory)
        state.directory = directory
        if directory != "/":
            state.vertex = self._vertex(
                state,
                Files((MakeDirectory(directory, 0o755, "" if self.options.classic else state.user),)),
                (state.vertex,),
                instruction,
                self._prefix(state, self._shown(state, instruction.source), onbuild),
            )
        self._history(state, f"WORKDIR {directory}", layer=directory != "/")

    def _shown(self, state: _State, source: str, mask: Mapping[str, str] | None = None) -> str:
        """An instruction as progress shows it: its name in capitals, its variables replaced."""
        values = {**state.environment, **(mask or {})}
        try:
            text = Lexer(self.lexer.escape, raw_quotes=True, skip_unset=True).expand(source, values).result
        except WordError:
            text = source
        name, space, rest = text.partition(" ")
        return name.upper() + space + rest

    def _prefix(self, state: _State, text: str, onbuild: bool = False) -> str:
        if not state.total:
            return text
        parts: list[str] = []
        if self.options.multi_platform and state.platform is not None:
            shown = str(state.platform)
            target = state.environment.get("TARGETARCH") or self.target_platform.architecture
            if target != state.platform.architecture:
                shown += f"->{target}"
            parts.append(shown)
        if state.name:
            parts.append(state.name)
        state.index += 1
        width = len(str(state.total))
        parts.append(f"{state.index:>{width}}/{state.total}")
        return f"[{' '.join(parts)}] {'ONBUILD ' if onbuild else ''}{text}"

    def _vertex(
        self,
        state: _State,
        operation: Operation,
        inputs: tuple[Vertex, ...],
        instruction: ins.Instruction,
        name: str,
    ) -> Vertex:
        return Vertex(
            operation,
            inputs,
            name,
            _source(instruction.location),
            state.ignore_cache,
            state.platform,
            self.epoch,
            command=instruction.source,
        )

    # --- RUN ----------------------------------------------------------------------------------------------------

    def _run(
        self,
        state: _State,
        instruction: ins.Run,
        sources: list[_State | None],
        expand: ins.Expander,
        onbuild: bool,
    ) -> None:
        if instruction.devices:
            required = [each.name for each in instruction.devices if each.required]
            raise DockerfileError(
                f"RUN --device is not supported: this builder has no CDI devices (wanted {instruction.devices[0].name}"
                f"{', required' if required else ''})",
                instruction.location,
            )
        command = instruction.command
        arguments = list(command.arguments)
        inputs: list[Vertex] = [state.vertex]
        mounts: list[FileMount] = []
        shown = instruction.source
        if command.files:
            if len(arguments) != 1 or not command.shell:
                raise DockerfileError(f"parsing produced an invalid run command: {arguments}", instruction.location)
            first = command.files[0]
            from seacan.build.dockerfile.parser import heredoc

            if heredoc(arguments[0]) is not None:
                if first.text.startswith("#!"):
                    inputs.append(
                        Vertex(
                            InlineSource(((first.name, _bytes(first.text), 0o755),)),
                            name="preparing inline document",
                            internal=True,
                        )
                    )
                    mounts.append(FileMount("bind", "/dev/pipes/", len(inputs) - 1, "/", read_only=True))
                    arguments = [f"/dev/pipes/{first.name}"]
                else:
                    arguments = [first.text]
                shown += f" ({_summary(first.data)})"
            else:
                arguments = [arguments[0] + "".join(f"\n{each.data}{each.name}" for each in command.files)]
        if command.shell:
            arguments = [*self._shell(state), " ".join(arguments)]
        mask: dict[str, str] = {}
        for number, text in enumerate(instruction.mounts):
            mount = ins.parse_mount(text, expand)
            if mount.type == "secret" and mount.env is not None:
                mask[mount.env] = "****"
            mounts.append(self._mount(state, mount, sources[number], inputs))
        environment = tuple(f"{key}={value}" for key, value in state.environment.items())
        network = instruction.network if instruction.network != "default" else self.options.network
        operation = Exec(
            tuple(arguments),
            environment,
            state.directory,
            state.user,
            tuple(mounts),
            network,
            instruction.security == "insecure",
            self.options.hosts,
            self.options.hostname,
            self.options.shm_size,
            self.options.ulimits,
            self._proxies(),
            self.options.limits,
            self.options.cgroup_parent,
        )
        state.vertex = self._vertex(
            state,
            operation,
            tuple(inputs),
            instruction,
            self._prefix(state, self._shown(state, shown, mask), onbuild),
        )
        values: dict[str, str] = {}
        for key, value in state.arguments:
            values[key] = state.environment.get(key, value or "")
        if self.options.classic:
            # What the environment of the image says already, and the proxies, are no news.
            image = {each.partition("=")[0] for each in state.defaults.env or ()}
            values = {key: values[key] for key in sorted(values) if key not in image and key.lower() not in _PROXIES}
        prefix = [f"|{len(values)}", *(f"{key}={value}" for key, value in values.items())] if values else []
        if self.options.classic:
            self._history(state, " ".join([*prefix, *arguments]), layer=True, command=True)
            return
        self._history(state, "RUN " + " ".join([*prefix, *arguments]), layer=True, command=True)

    def _proxies(self) -> tuple[str, ...]:
        values: dict[str, str] = {}
        for key in sorted(self.build_args):
            if key.lower() in _PROXIES:
                values[key.upper()] = values[key.lower()] = self.build_args[key]
        return tuple(f"{key}={value}" for key, value in values.items())

    def _mount(self, state: _State, mount: ins.Mount, source: _State | None, inputs: list[Vertex]) -> FileMount:
        target = mount.target
        if mount.type == "secret":
            identity = mount.source or mount.id or (target.rstrip("/").rpartition("/")[2])
            if not identity:
                raise DockerfileError("one of source, target required")
            as_file = mount.env is None or bool(target)
            if not target:
                target = f"/run/secrets/{identity.rpartition('/')[2]}"
            return FileMount(
                "secret",
                _absolute(state.directory, target),
                id=identity,
                required=mount.required,
                uid=mount.uid or 0,
                gid=mount.gid or 0,
                mode=0o400 if mount.mode is None else mount.mode,
                env=mount.env or "",
                file=as_file,
            )
        if mount.type == "ssh":
            if mount.source:
                raise DockerfileError("ssh does not support source")
            return FileMount(
                "ssh",
                _absolute(state.directory, target) if target else "",
                id=mount.id or "default",
                required=mount.required,
                uid=mount.uid or 0,
                gid=mount.gid or 0,
                mode=0o600 if mount.mode is None else mount.mode,
            )
        target = _absolute(state.directory, target)
        if target == "/":
            raise DockerfileError(f"invalid mount target {go_quote(target)}")
        if mount.type == "tmpfs":
            return FileMount("tmpfs", target, size=mount.size, read_only=mount.read_only)
        index = -1
        if source is not None:
            if not source.dispatched:
                raise DockerfileError(
                    f"cannot mount from stage {go_quote(mount.origin)} to {go_quote(mount.target)}, "
                    "stage needs to be defined before current command"
                )
            inputs.append(source.vertex)
            index = len(inputs) - 1
        elif mount.type == "bind":
            inputs.append(self.context)
            index = len(inputs) - 1
            self.context_paths.add(_absolute("/", mount.source))
        selector = _absolute("/", mount.source)
        if mount.type == "cache":
            return FileMount(
                "cache",
                target,
                index,
                selector,
                mount.read_only,
                id=f"{self.options.cache_namespace}/{mount.id or clean(mount.target)}",
                sharing=mount.sharing or "shared",
                uid=mount.uid or 0,
                gid=mount.gid or 0,
                mode=0o755 if mount.mode is None else mount.mode,
            )
        return FileMount("bind", target, index, selector, mount.read_only)

    # --- COPY and ADD -------------------------------------------------------------------------------------------

    def _copy(
        self,
        state: _State,
        instruction: ins.Copy,
        sources: list[_State | None],
        checks: Checks,
        expand: ins.Expander,
        onbuild: bool,
    ) -> None:
        name = "ADD" if instruction.add else "COPY"
        chown, chmod = expand(instruction.chown), expand(instruction.chmod)
        checksum = expand(instruction.checksum)
        paths = [expand(each) for each in instruction.sources]
        destination = _destination(state.directory, expand(instruction.destination))
        mode = _chmod(chmod)
        if checksum:
            if len(paths) != 1:
                raise DockerfileError("checksum can't be specified for multiple sources")
            if not is_http(paths[0]) and parse_git(paths[0]) is None:
                raise DockerfileError("checksum requires HTTP(S) or Git sources")
        link = instruction.link and not chmod
        base = Vertex(Scratch(), platform=state.platform) if link else state.vertex
        inputs: list[Vertex] = [base]
        actions: list[CopyFiles] = []
        origin: Vertex | None = None
        if sources and sources[0] is not None:
            source = sources[0]
            if not source.dispatched:
                raise DockerfileError(
                    f"cannot copy from stage {go_quote(instruction.origin)}, it needs to be defined before current "
                    f"stage {go_quote(state.name)}"
                )
            origin = source.vertex
        title = self._prefix(state, self._shown(state, instruction.source), onbuild)

        def add_input(vertex: Vertex) -> int:
            for at, existing in enumerate(inputs[1:], 1):
                if existing is vertex:
                    return at
            inputs.append(vertex)
            return len(inputs) - 1

        common = {"destination": destination, "owner": chown, "mode": mode, "exclude": instruction.exclude}
        for path in paths:
            git = parse_git(path)
            if git is not None:
                if not instruction.add:
                    raise DockerfileError("source can't be a git ref for COPY")
                keep = git.keep_git_dir
                if instruction.keep_git_dir is not None:
                    if keep is not None and keep != instruction.keep_git_dir:
                        raise DockerfileError("inconsistent keep-git-dir configuration")
                    keep = instruction.keep_git_dir
                if checksum and git.checksum and checksum != git.checksum:
                    raise DockerfileError(f"checksum mismatch {go_quote(checksum)} != {go_quote(git.checksum)}")
                vertex = Vertex(
                    GitSource(
                        git.remote,
                        git.reference,
                        git.folder,
                        bool(keep),
                        git.checksum or checksum,
                        git.submodules is not False,
                    ),
                    name=title,
                    source=_source(instruction.location),
                )
                actions.append(
                    CopyFiles(add_input(vertex), "/", follow=False, contents=True, wildcards=False, **common)  # type: ignore[arg-type]
                )
            elif is_http(path):
                if not instruction.add:
                    raise DockerfileError("source can't be a URL for COPY")
                filename = http_filename(path)
                vertex = Vertex(HttpSource(path, filename, checksum), name=title, source=_source(instruction.location))
                actions.append(
                    CopyFiles(
                        add_input(vertex),
                        f"/{filename}",
                        follow=False,
                        contents=False,
                        wildcards=False,
                        unpack=bool(instruction.unpack),
                        **common,  # type: ignore[arg-type]
                    )
                )
            else:
                actions.append(self._local_copy(state, instruction, path, origin, add_input, common, checks))
        for content in instruction.contents:
            data = content.data
            if content.expand:
                expansion = Lexer("\\", skip_quotes=True).expand(data, state.environment)
                self._check_variables(state, instruction, checks, expansion)
                data = expansion.result
            filename = content.path.lstrip("/")
            vertex = Vertex(
                InlineSource(((filename, _bytes(data), 0o644),)), name="preparing inline document", internal=True
            )
            actions.append(
                CopyFiles(
                    add_input(vertex),
                    f"/{filename}",
                    follow=False,
                    contents=False,
                    wildcards=False,
                    **common,  # type: ignore[arg-type]
                )
            )
        vertex = self._vertex(state, Files(tuple(actions), detached=link), tuple(inputs), instruction, title)
        if link:
            merged = self._vertex(
                state, Merge(), (state.vertex, vertex), instruction, title.replace(f"] {name}", f"] LINK {name}", 1)
            )
            merged.internal = True
            vertex = merged
        state.vertex = vertex
        flags = [
            "--parents" if instruction.parents else "",
            f"--chown={chown}" if chown else "",
            f"--chmod={chmod}" if chmod else "",
        ]
        words = [
            name,
            *filter(None, flags),
            *paths,
            *(f"<<{each.path}" for each in instruction.contents),
            expand(instruction.destination),
        ]
        if self.options.classic:
            named = hashlib.sha256("\0".join(paths).encode("utf-8", "replace")).hexdigest()
            shown = " ".join([name, *(flag for flag in flags if flag), f"multi:{named}", "in"])
            self._history(state, f"{shown} {expand(instruction.destination)} ", layer=True)
            return
        self._history(state, " ".join(words), layer=True, command=True)

    def _local_copy(
        self,
        state: _State,
        instruction: ins.Copy,
        path: str,
        origin: Vertex | None,
        add_input: AddInput,
        common: Mapping[str, object],
        checks: Checks,
    ) -> CopyFiles:
        source = path
        if origin is None:
            self._check_ignored(instruction, path, checks)
        include: tuple[str, ...] = ()
        required: tuple[str, ...] = ()
        if instruction.parents:
            parent, pivot, pattern = source.partition("/./")
            if not pivot:
                parent, pattern = "/", source
            pattern = _absolute("/", pattern).lstrip("/")
            include = (pattern,)
            if not has_wildcards(parent) and not has_wildcards(pattern):
                required = (_absolute("/", f"{parent}/{pattern}"),)
            source = parent
        source = _absolute("/", source)
        if origin is None:
            vertex = self.context
            self.context_paths.add("/" if has_wildcards(source) and source.count("/") == 1 else source)
        else:
            vertex = origin
        return CopyFiles(
            add_input(vertex),
            source,
            follow=True,
            contents=True,
            unpack=instruction.add if instruction.unpack is None else instruction.unpack,
            wildcards=True,
            include=include,
            required=required,
            **common,  # type: ignore[arg-type]
        )

    def _check_ignored(self, instruction: ins.Copy, path: str, checks: Checks) -> None:
        if not self.ignore.patterns or self.ignore.exclusions:
            return
        source = clean(path)
        if source in (".", "/") and not any(each.text in ("*", "**", "**/*") for each in self.ignore.patterns):
            return
        if self.ignore.matches(source):
            checks.report("CopyIgnoredFile", instruction.location, "Add" if instruction.add else "Copy", source)


class AddInput(Protocol):
    def __call__(self, vertex: Vertex) -> int: ...


# --- small things -----------------------------------------------------------------------------------------------


def _reachable(target: _State) -> set[int]:
    seen: set[int] = set()
    stack = [target]
    while stack:
        state = stack.pop()
        if id(state) in seen:
            continue
        seen.add(id(state))
        if state.base is not None:
            stack.append(state.base)
        stack.extend(need for need, _ in state.needs.values())
    return seen


def _all_needs(state: _State) -> list[tuple[_State, Range]]:
    needs = list(state.needs.values())
    if state.base is not None:
        needs.append((state.base, state.stage.location))
    return needs


def _source(location: Range) -> Source:
    return Source(location.start, location.end)


def _empty(platform: Platform) -> ImageConfig:
    return ImageConfig(
        architecture=platform.architecture,
        os=platform.os,
        variant=platform.variant,
        config=ImageDefaults(env=[f"PATH={DEFAULT_PATH}"], working_dir="/"),
        rootfs=RootFS(),
    )


def _absolute(parent: str, path: str) -> str:
    return clean(path if path.startswith("/") else f"/{parent}/{path}")


def _destination(directory: str, path: str) -> str:
    """As :func:`_absolute`, keeping what says that it is a folder: a slash or dot at the end."""
    if path in (".", ""):
        path = "./"
    result = _absolute(directory, path)
    if path.endswith(("/", "/.")):
        return result if result.endswith("/") else result + "/"
    return result


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _quoted(arguments: Sequence[str]) -> str:
    return "[" + " ".join(go_quote(each) for each in arguments) + "]"


def _summary(document: str) -> str:
    lines = document.strip().replace("\r\n", "\n").split("\n")
    return lines[0] + ("..." if len(lines) > 1 else "")


def _go_duration(nanoseconds: int) -> str:
    """As Go prints a time.Duration."""
    if nanoseconds == 0:
        return "0s"
    sign, rest = ("-", -nanoseconds) if nanoseconds < 0 else ("", nanoseconds)
    for unit, size in (("ns", 1), ("µs", 10**3), ("ms", 10**6)):
        if rest < size * 1000:
            whole, part = divmod(rest, size)
            fraction = f".{str(part).rjust(len(str(size)) - 1, '0').rstrip('0')}" if part else ""
            return f"{sign}{whole}{fraction}{unit}"
    seconds, part = divmod(rest, 10**9)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    fraction = f".{part:09d}".rstrip("0") if part else ""
    text = f"{seconds}{fraction}s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    return sign + (f"{hours}h{text}" if hours else text)


def _go_quoted_rune(number: int) -> str:
    """A number as Go's %q prints it, which dockerd does to the retries of a health check."""
    character = chr(number) if number < 0x110000 and not 0xD800 <= number < 0xE000 else "\ufffd"
    inner = go_quote(character)[1:-1]
    return "'" + {"'": "\\'", '\\"': '"'}.get(inner, inner) + "'"


def _check_signal(text: str) -> None:
    name = text.upper().removeprefix("SIG")
    if text.isdigit() and 0 < int(text) <= 64:
        return
    if name in SIGNALS or re.fullmatch(r"RTM(?:IN\+(?:[1-9]|1[0-5])|AX-(?:[1-9]|1[0-4]))", name):
        return
    raise DockerfileError(f"invalid signal: {text}")


def _chmod(text: str) -> str:
    if not text:
        return ""
    if text.isdigit():
        if not set(text) <= set("01234567") or int(text, 8) > 0o7777:
            raise DockerfileError(
                f"invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777"
            )
        return text
    if _SYMBOLIC_MODE.fullmatch(text) is None:
        raise DockerfileError(f"invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777")
    return text


def _ports(text: str, location: Range, checks: Checks) -> list[str]:
    """The ports that one word of EXPOSE names, as "80/tcp".

    :raises DockerfileError: in BuildKit's words.
    """
    parts = text.rsplit(":", 2)
    address, host, container = ("", "", *parts)[-3:] if len(parts) < 3 else parts
    port, _, protocol = container.partition("/")
    if not port:
        raise DockerfileError(f"invalid port: {go_quote(text)}: no port specified")
    if protocol.lower() not in ("", "tcp", "udp", "sctp"):
        raise DockerfileError(f"invalid port: {go_quote(text)}: invalid proto: {protocol}")
    if protocol != protocol.lower():
        checks.report("ExposeProtoCasing", location, text)
    if address or host:
        checks.report("ExposeInvalidFormat", location, text)
    if address:
        import ipaddress

        try:
            ipaddress.ip_address(address.removeprefix("[").removesuffix("]"))
        except ValueError:
            raise DockerfileError(f"invalid IP address: {address}") from None
    first, last = _port_range(port, "containerPort")
    if host:
        host_first, host_last = _port_range(host, "hostPort")
        if last - first != host_last - host_first and last != first:
            raise DockerfileError(f"invalid ranges specified for container and host Ports: {port} and {host}")
    return [f"{number}/{protocol.lower() or 'tcp'}" for number in range(first, last + 1)]


def _port_range(text: str, what: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    numbers = [
        int(each) if re.fullmatch(r"\d{1,5}", each) else -1 for each in ((first, last) if dash else (first, first))
    ]
    if not all(0 <= number <= 65535 for number in numbers) or numbers[1] < numbers[0]:
        raise DockerfileError(f"invalid {what}: {text}")
    return numbers[0], numbers[1]
