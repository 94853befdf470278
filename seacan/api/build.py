"""Builds through the classic API: ``POST /build`` with an archive, a URL or a git repository as context; its prune.

Output is dockerd's classic wording, step by step in the order of the Dockerfile, although steps run in parallel: what a
later step has said is held back until it is its turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from aiohttp import web

from seacan.api import buildkit
from seacan.api.http import JSONStream, api_version, cancellable, json_response, query_bool, query_filters, query_int
from seacan.build import context, remote
from seacan.build.cacheconfig import Entry
from seacan.build.dockerfile.convert import Converted, Options
from seacan.build.dockerfile.instructions import parse_duration
from seacan.build.dockerfile.parser import DockerfileError
from seacan.build.graph import GitSource, ImageSource, Limits, LocalSource, Scratch, Vertex
from seacan.build.ignore import clean
from seacan.build.imports import Cache
from seacan.build.solver import Build, SourceFolder
from seacan.build.sources import parse_git
from seacan.engine import buildcache
from seacan.engine.buildcache import Ask
from seacan.engine.builds import Builds, Request, parse_name
from seacan.errors import InvalidParameter, SeacanError
from seacan.images.manifest import parse_platform
from seacan.images.progress import short_id
from seacan.registry.credentials import NONE, Credentials, decode_config_header
from seacan.storage import digest as digests
from seacan.storage.digest import ChainID

if TYPE_CHECKING:
    from seacan.engine.engine import Engine

T = TypeVar("T")

_DOCKERFILE_LIMIT = 16 << 20


class _Ulimit(msgspec.Struct, rename="pascal"):
    name: str = ""
    soft: int = 0
    hard: int = 0


def routes(engine: Engine) -> list[web.RouteDef]:
    running: dict[str, asyncio.Task[Any]] = {}

    @cancellable
    async def build(request: web.Request) -> web.StreamResponse:
        asked = _Asked.read(request)
        task = asyncio.current_task()
        if asked.build_id and task is not None:
            running[asked.build_id] = task
        try:
            return await _ClassicBuild(engine.builds, request, asked).run()
        finally:
            running.pop(asked.build_id, None)

    async def cancel(request: web.Request) -> web.StreamResponse:
        id = request.query.get("id", "")
        if not id:
            raise InvalidParameter("build ID not provided")
        task = running.get(id)
        if task is not None:
            task.cancel()
        return web.Response(status=204)

    async def prune(request: web.Request) -> web.StreamResponse:
        filters = query_filters(request)
        known = {"until", "id", "type", "label", "label!", "parent", "description", "inuse", "shared", "private"}
        for name in filters:
            if name not in known | {"unused-for"}:
                raise InvalidParameter(f"failed to prune build cache: invalid filter '{name}'")
        unused_for = 0
        ages = [*filters.get("until", ()), *filters.get("unused-for", ())]
        if len(ages) > 1:
            raise InvalidParameter(f'Invalid filter: got more than one "until" filter: {ages}')
        if ages:
            unused_for = _age(ages[0])
        keep = query_int(request, "reserved-space") or query_int(request, "keep-storage")
        gone, freed = engine.builds.cache.prune(
            all=query_bool(request, "all"),
            unused_for=unused_for,
            keep=keep,
            most=query_int(request, "max-used-space"),
            ids=filters.get("id", ()),
            kinds=filters.get("type", ()),
        )
        engine.events.emit("builder", "prune", "", {"reclaimed": str(freed)})
        return json_response({"CachesDeleted": gone or None, "SpaceReclaimed": freed})

    return [
        web.post("/build", build),
        web.post("/build/prune", prune),
        web.post("/build/cancel", cancel),
        *buildkit.routes(engine),
    ]


def _age(text: str) -> int:
    """Nanoseconds from a moment (seconds since 1970, or RFC 3339) or a duration, until now."""
    try:
        return parse_duration(text)
    except DockerfileError:
        pass
    try:
        return max(0, time.time_ns() - int(float(text) * 1e9))
    except ValueError:
        raise InvalidParameter(f'invalid filter: failed to parse "{text}" as time or duration') from None


class _Asked(msgspec.Struct, kw_only=True):
    """The query of ``POST /build``."""

    dockerfile: str
    names: list[str]
    remote: str
    quiet: bool
    remove: bool
    pull: bool
    squash: bool
    build_id: str
    cache_from: list[str]
    inline: bool
    options: Options

    @classmethod
    def read(cls, request: web.Request) -> _Asked:
        query = request.query
        names = [name for name in query.getall("t", []) if name]
        for name in names:
            parse_name(name)
        arguments = _json(query.get("buildargs", ""), dict[str, str | None], "buildargs") or {}
        labels = _json(query.get("labels", ""), dict[str, str], "labels") or {}
        ulimits = _json(query.get("ulimits", ""), list[_Ulimit], "ulimits") or []
        if query.get("securityopt", "") not in ("", "null", "[]"):
            raise InvalidParameter("The daemon on this platform does not support setting security options on build")
        if query.get("isolation", "") not in ("", "default"):
            raise InvalidParameter(f"Unsupported isolation: {go(query['isolation'])}")
        platform = query.get("platform", "")
        network = query.get("networkmode", "")
        hosts = [tuple(each.partition(":")[::2]) for each in query.getall("extrahosts", [])]
        options = Options(
            build_args={key: value for key, value in arguments.items() if value is not None},
            target=query.get("target", ""),
            labels=labels,
            platform=parse_platform(platform) if platform else None,
            no_cache=frozenset(("",)) if query_bool(request, "nocache") else frozenset(),
            network="default" if network in ("", "default", "bridge") else network,
            hosts=tuple((host, address) for host, address in hosts if address),
            shm_size=query_int(request, "shmsize"),
            ulimits=tuple((each.name, each.soft, each.hard) for each in ulimits),
            limits=Limits(
                memory=query_int(request, "memory"),
                memory_swap=query_int(request, "memswap"),
                cpu_shares=query_int(request, "cpushares"),
                cpu_period=query_int(request, "cpuperiod"),
                cpu_quota=query_int(request, "cpuquota"),
                cpuset_cpus=query.get("cpusetcpus", ""),
                cpuset_mems=query.get("cpusetmems", ""),
            ),
            cgroup_parent=query.get("cgroupparent", ""),
            classic=True,
        )
        return cls(
            dockerfile=query.get("dockerfile", ""),
            names=names,
            remote=query.get("remote", ""),
            quiet=query_bool(request, "q"),
            remove=query_bool(request, "rm", default=api_version(request) >= (1, 12)) or query_bool(request, "forcerm"),
            pull=query_bool(request, "pull"),
            squash=query_bool(request, "squash"),
            build_id=query.get("buildid", ""),
            cache_from=_json(query.get("cachefrom", ""), list[str], "cachefrom") or [],
            inline=(arguments.get("BUILDKIT_INLINE_CACHE") or "") in ("1", "t", "T", "true", "TRUE", "True"),
            options=options,
        )


def go(text: str) -> str:
    return f'"{text}"'


def _json(text: str, model: type[T], what: str) -> T | None:
    if not text or text == "null":
        return None
    try:
        return msgspec.json.decode(text, type=model)
    except msgspec.DecodeError as error:
        raise InvalidParameter(f"error reading {what}: {error}") from None


class _Folder:
    """A context that has arrived: the only source a classic build has."""

    def __init__(self, path: str, index: str) -> None:
        self.path, self.index = path, index

    async def local(self, source: LocalSource, report: Callable[[int, bool], None]) -> SourceFolder:
        return SourceFolder(self.path, "", self.index)

    async def secret(self, id: str) -> bytes | None:
        return None

    async def ssh(self, id: str, path: str) -> None:
        return None


class _Output:
    """The answer, begun with its first line: a failure before that is a plain HTTP error."""

    def __init__(self, request: web.Request, quiet: bool) -> None:
        self._request = request
        self._quiet = quiet
        self.response: web.StreamResponse | None = None
        self._stream: JSONStream | None = None

    async def write(self, value: Any) -> None:
        if self._stream is None:
            self.response = web.StreamResponse(headers={"Content-Type": "application/json"})
            await self.response.prepare(self._request)
            self._stream = JSONStream(self.response)
        await self._stream.write(value)

    async def say(self, text: str) -> None:
        if not self._quiet:
            await self.write({"stream": text})

    async def fail(self, message: str, code: int) -> None:
        assert self._stream is not None
        await self._stream.error(message, code)


class _Steps:
    """Progress that follows the Dockerfile: one vertex speaks at a time, the others' words are kept."""

    def __init__(self) -> None:
        self.said: dict[int, list[tuple[int, bytes]]] = {}
        self.cached: set[int] = set()
        self.turn: Vertex | None = None
        self.ready = asyncio.Event()

    def started(self, vertex: Vertex) -> None: ...

    def completed(self, vertex: Vertex, *, cached: bool = False, error: str = "") -> None:
        if cached:
            self.cached.add(id(vertex))

    def log(self, vertex: Vertex, stream: int, data: bytes) -> None:
        self.said.setdefault(id(vertex), []).append((stream, data))
        if vertex is self.turn:
            self.ready.set()

    def status(self, vertex: Vertex, id: str, current: int, total: int, *, done: bool = False) -> None: ...

    def take(self, vertex: Vertex) -> list[str]:
        """What the vertex has said; its standard error in red, as dockerd's builder has it."""
        texts = []
        for stream, said in itertools.groupby(self.said.pop(id(vertex), ()), key=lambda one: one[0]):
            text = b"".join(data for _, data in said).decode("utf-8", "replace")
            texts.append(f"\x1b[91m{text}\x1b[0m" if stream == 2 else text)
        return texts


class _ClassicBuild:
    def __init__(self, builds: Builds, request: web.Request, asked: _Asked) -> None:
        self.builds = builds
        self.request = request
        self.asked = asked
        self.output = _Output(request, asked.quiet)
        self.steps = _Steps()

    async def run(self) -> web.StreamResponse:
        try:
            async with self._context() as (folder, dockerfile, filename):
                await self._build(folder, dockerfile, filename)
        except SeacanError as error:
            if self.output.response is None:
                raise
            await self.output.fail(error.message, getattr(error, "exit_code", 0))
        assert self.output.response is not None
        await self.output.response.write_eof()
        return self.output.response

    # --- the context --------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _context(self) -> AsyncIterator[tuple[_Folder, bytes, str]]:
        cache = self.builds.cache
        name = secrets.token_hex(10)
        path = cache.root / "contexts" / name
        path.mkdir(mode=0o755)
        index = cache.index(name)
        try:
            folder = _Folder(str(path), index)
            wanted = self.asked.dockerfile
            if self.asked.remote and self.asked.remote != "client-session":
                folder, wanted = await self._remote(folder, wanted)
            else:
                await context.receive(self.builds.workers, self.request.content.iter_chunked(1 << 18), str(path), index)
            filename = clean("/" + (wanted or "Dockerfile")).lstrip("/")
            dockerfile = context.read_file(folder.path, filename, _DOCKERFILE_LIMIT)
            if dockerfile is None and not wanted:
                filename = "dockerfile"
                dockerfile = context.read_file(folder.path, filename, _DOCKERFILE_LIMIT)
                filename = filename if dockerfile is not None else "Dockerfile"
            if dockerfile is None:
                raise InvalidParameter(f"Cannot locate specified Dockerfile: {filename}")
            if not dockerfile:
                raise InvalidParameter(f"the Dockerfile ({filename}) cannot be empty")
            patterns = context.ignore_patterns(folder.path, filename)
            if folder.path == str(path):
                context.remove_ignored(folder.path, patterns, (filename, ".dockerignore"))
            yield folder, dockerfile, filename
        finally:
            self.builds.engine.trash.discard(path)
            for name in (index, f"{index}.links"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name)

    async def _remote(self, folder: _Folder, wanted: str) -> tuple[_Folder, str]:
        url = self.asked.remote
        git = parse_git(url, bare_github=True)
        if git is not None:
            fetched = await remote.fetch_git(
                self.builds.cache,
                GitSource(git.remote, git.reference, git.folder, bool(git.keep_git_dir), git.checksum),
            )
            return _Folder(fetched.path, folder.index), wanted
        if not url.startswith(("http://", "https://")):
            raise InvalidParameter(f'contextURL is not recognised: "{url}"')
        async with remote.open_http(url) as document:
            await self.output.say(f"Downloading build context from remote url: {url}\n")
            if document.type == "text/plain":
                content = await document.read(_DOCKERFILE_LIMIT)
                path = self.builds.cache.root / "contexts" / os.path.basename(folder.path) / "Dockerfile"
                path.write_bytes(content)
                return folder, "Dockerfile"
            await context.receive(self.builds.workers, document.pieces, folder.path, folder.index, single="Dockerfile")
        return folder, wanted or "Dockerfile"

    # --- building -----------------------------------------------------------------------------------------------

    async def _build(self, folder: _Folder, dockerfile: bytes, filename: str) -> None:
        asked = self.asked
        known = decode_config_header(self.request.headers.get("X-Registry-Config", ""))

        async def credentials(host: str) -> Credentials:
            return known.get("https://index.docker.io/v1/" if host == "docker.io" else host, NONE)

        request = Request(
            dockerfile,
            asked.options,
            asked.names,
            asked.squash,
            asked.pull,
            filename,
            credentials=credentials,
            entitlements=["network.host"] if asked.options.network == "host" else [],
            caches=await self._caches(credentials),
            only=self._only(),
        )
        converted = await self.builds.convert(request)
        for finding in converted.findings:
            if finding.rule.name == "NoEmptyContinuation":
                await self.output.say(f"[Warning] Empty continuation line found in: line {finding.location.start}\n")
        watching: asyncio.Task[None] | None = None

        def follow(build: Build) -> None:
            nonlocal watching
            watching = asyncio.create_task(self._tell(build, converted))

        try:
            outcome, lease = await self.builds.build(
                request, folder, self.steps, converted=converted, follow=follow, finish=lambda: self._told(watching)
            )
        finally:
            if watching is not None:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
        try:
            image = await self.builds.store(outcome, lease, asked.names, squash=asked.squash, inline=asked.inline)
        finally:
            lease.release()
            await self.builds.release(outcome)
        if not asked.quiet:
            await self.output.say(f" ---> {short_id(image.id)}\n")
            await self.output.write({"aux": {"ID": image.id}})
            if converted.unused_args:
                await self.output.say(
                    f"[Warning] One or more build-args [{' '.join(converted.unused_args)}] were not consumed\n"
                )
            await self.output.say(f"Successfully built {short_id(image.id)}\n")
            for name in asked.names:
                await self.output.say(f"Successfully tagged {parse_name(name).familiar}\n")
        else:
            await self.output.write({"stream": f"{image.id}\n"})

    async def _caches(self, ask: Ask) -> list[Cache]:
        """The inline caches of the images that ``cachefrom`` names, here or at their registries.

        An image that is here without one has nothing to add: what was built here is in the cache anyway.
        """
        found: list[Cache] = []
        for name in self.asked.cache_from:
            try:
                self.builds.engine.images.get(name)
            except SeacanError:
                pass
            else:
                if (cache := buildcache.inline_here(self.builds.engine, name)) is not None:
                    found.append(cache)
                continue
            try:
                found.append(await self.builds.open_cache(Entry("registry", {"ref": name}), ask, None))
            except SeacanError as error:
                await self.output.say(f"[Warning] {name} is not used as a cache: {error.message}\n")
        return found

    def _only(self) -> frozenset[ChainID] | None:
        """What may come from this engine's cache: with ``cachefrom`` only what the images it names consist of."""
        images = self.builds.engine.images
        if not self.asked.cache_from:
            return None
        found: set[ChainID] = set()
        for name in self.asked.cache_from:
            with contextlib.suppress(SeacanError):
                found.update(digests.chain_ids(images.get(name).config.rootfs.diff_ids))
        return frozenset(found)

    async def _told(self, watching: asyncio.Task[None] | None) -> None:
        if watching is not None:
            await watching

    async def _tell(self, build: Build, converted: Converted) -> None:
        """Go through the steps in order; each is told when it is over, its output as it comes."""
        total = len(converted.steps)
        image = ""
        following = False
        for number, step in enumerate(converted.steps, 1):
            if number > 1:
                await self.output.say(f" ---> {image[:12]}\n")
            await self.output.say(f"Step {number}/{total} : {step.source}")
            await self.output.say("\n")
            vertex = step.vertex
            if step.ran and not isinstance(vertex.operation, ImageSource | Scratch):
                following = await self._tell_step(build, vertex, contained=step.contained) and following
            result = await build.solve(vertex)
            text = f"{'' if step.first else image}\0{result.key}\0{step.source}"
            image = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
            if step.first:
                following = not self.asked.options.no_cache
            elif not step.ran:
                following = await self._tell_setting(image, following and build.may_reuse(result.layers))

    async def _tell_setting(self, image: str, following: bool) -> bool:
        """A step that changes no files. Gives whether the cache has it, as the engine remembers by what it led to.

        ``following``: what it stands on came from the cache as well; after a step that did not, dockerd looks no more.
        """
        cache = self.builds.cache
        key = f"classic:{image}"
        if following and cache.checksum(key) is not None:
            await self.output.say(" ---> Using cache\n")
            return True
        cache.put_checksum(key, image)
        container = secrets.token_hex(6)
        await self.output.say(f" ---> Running in {container}\n")
        if self.asked.remove:
            await self.output.say(f" ---> Removed intermediate container {container}\n")
        return False

    async def _tell_step(self, build: Build, vertex: Vertex, *, contained: bool) -> bool:
        """A step that changes files; ``contained``: dockerd has a container for it. Gives whether the cache had it."""
        steps = self.steps
        steps.turn = vertex
        steps.ready.clear()
        done = asyncio.ensure_future(build.solve(vertex))
        container = secrets.token_hex(6)
        announced = False
        try:
            while not done.done():
                ready = asyncio.ensure_future(steps.ready.wait())
                await asyncio.wait((done, ready), return_when=asyncio.FIRST_COMPLETED)
                ready.cancel()
                steps.ready.clear()
                for text in steps.take(vertex):
                    if contained and not announced:
                        announced = True
                        await self.output.say(f" ---> Running in {container}\n")
                    await self.output.say(text)
            cached = id(vertex) in steps.cached
            if contained and not announced and not cached:
                announced = True
                await self.output.say(f" ---> Running in {container}\n")
            for text in steps.take(vertex):
                await self.output.say(text)
            if done.exception() is None:
                if cached:
                    await self.output.say(" ---> Using cache\n")
                elif announced and self.asked.remove:
                    await self.output.say(f" ---> Removed intermediate container {container}\n")
            elif announced and self.asked.remove and self.request.query.get("forcerm"):
                await self.output.say(f"Removing intermediate container {container}\n")
        finally:
            if not done.done():
                done.cancel()
        await done
        return cached
