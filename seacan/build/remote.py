"""Sources from elsewhere: files behind HTTP, git repositories, and files written in the graph itself.

Each becomes a folder of the build cache, found again by its content: a URL by its ETag, a repository by its commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp

from seacan.build.graph import GitSource, HttpSource, InlineSource
from seacan.build.sources import is_commit
from seacan.errors import InvalidParameter, System, Unsupported

if TYPE_CHECKING:
    from seacan.build.cache import BuildCache
    from seacan.build.solver import SourceFolder

_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
_GIT_ENVIRONMENT = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_ALLOW_PROTOCOL": "http:https:git:ssh",
    "GIT_SSH_COMMAND": "ssh -o BatchMode=yes",
    "GIT_ASKPASS": "true",
    "HOME": "/nonexistent",
}


def _folder(path: str, key: str) -> SourceFolder:
    from seacan.build.solver import SourceFolder

    return SourceFolder(path, key)


def write_inline(cache: BuildCache, source: InlineSource) -> SourceFolder:
    """A folder with the files that the Dockerfile itself holds."""
    total = hashlib.sha256()
    for name, content, mode in source.files:
        total.update(b"%s\0%o\0%d\0" % (name.encode("utf-8", "surrogateescape"), mode, len(content)) + content)
    key = f"inline:{total.hexdigest()}"
    found = cache.find(key)
    if found is not None:
        return _folder(found.path, key)
    id, path, _ = cache.new_folder(None)
    try:
        size = 0
        for name, content, mode in source.files:
            if "/" in name or name in ("", ".", ".."):
                raise InvalidParameter(f"invalid name of a here-document: {name!r}")
            descriptor = os.open(
                f"{path}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode
            )
            with open(descriptor, "wb") as file:
                file.write(content)
                os.fchmod(descriptor, mode)
            size += len(content)
        cache.settle(id)
        cache.put(key, id, kind="source.local", description="inline document", size=size)
    except BaseException:
        cache.discard(id)
        raise
    return _folder(path, key)


async def fetch_http(cache: BuildCache, source: HttpSource) -> SourceFolder:
    """Fetch a file.

    :raises InvalidParameter: the server does not give it, or it is not what ``checksum`` says.
    """
    if source.checksum:
        key = f"http:{source.checksum}:{source.filename}"
        found = cache.find(key)
        if found is not None:
            return _folder(found.path, key)
    id, path, _ = cache.new_folder(None)
    try:
        try:
            digest, modified, size = await _download(source.url, f"{path}/{source.filename}")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise InvalidParameter(f"failed to load {source.url}: {error or type(error).__name__}") from error
        if source.checksum and source.checksum != f"sha256:{digest}":
            algorithm = source.checksum.partition(":")[0]
            if algorithm != "sha256":
                raise InvalidParameter(f"unsupported digest algorithm {algorithm!r} of {source.url}")
            raise InvalidParameter(f"digest mismatch sha256:{digest}: {source.checksum}")
        os.chmod(f"{path}/{source.filename}", 0o600)
        os.utime(f"{path}/{source.filename}", ns=(modified, modified))
        key = f"http:sha256:{digest}:{source.filename}"
        cache.settle(id)
        known = cache.find(key)
        if known is not None:
            cache.discard(id)
            return _folder(known.path, key)
        cache.put(key, id, kind="source.http", description=f"http url {source.url}", size=size)
    except BaseException:
        cache.discard(id)
        raise
    return _folder(path, key)


async def _download(url: str, target: str) -> tuple[str, int, int]:
    """SHA-256, modification time (nanoseconds) and size of what ``url`` gave."""
    total = hashlib.sha256()
    size = 0
    headers = {"Accept-Encoding": "identity", "User-Agent": "seacan"}
    async with (
        aiohttp.ClientSession(timeout=_TIMEOUT, trust_env=True, auto_decompress=False) as session,
        session.get(url, headers=headers) as response,
    ):
        if response.status >= 400:
            raise InvalidParameter(f"failed to load {url}: invalid response status {response.status}")
        with open(target, "xb") as file:
            async for piece in response.content.iter_chunked(1 << 18):
                total.update(piece)
                size += len(piece)
                file.write(piece)
        modified = 0
        with contextlib.suppress(ValueError, TypeError, KeyError):
            modified = int(parsedate_to_datetime(response.headers["Last-Modified"]).timestamp()) * 10**9
    return total.hexdigest(), modified, size


class Document:
    """What an HTTP server answers with. ``size`` is in bytes, 0 where it does not say; ``pieces`` can be read once."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.type = response.headers.get("Content-Type", "").partition(";")[0]
        self.size = response.content_length or 0
        self.pieces: AsyncIterator[bytes] = response.content.iter_chunked(1 << 18)

    async def read(self, limit: int) -> bytes:
        """All of it. :raises InvalidParameter: it is larger than ``limit`` bytes."""
        content = bytearray()
        async for piece in self.pieces:
            content += piece
            if len(content) > limit:
                raise InvalidParameter(f"remote document is larger than {limit} bytes")
        return bytes(content)


@contextlib.asynccontextmanager
async def open_http(url: str) -> AsyncIterator[Document]:
    """A document that is read as it comes. :raises InvalidParameter: also while it is read."""
    headers = {"Accept-Encoding": "identity", "User-Agent": "seacan"}
    try:
        async with (
            aiohttp.ClientSession(timeout=_TIMEOUT, trust_env=True, auto_decompress=False) as session,
            session.get(url, headers=headers) as response,
        ):
            if response.status >= 400:
                raise InvalidParameter(
                    f"failed to GET {url} with status {response.status} {response.reason}: error reading remote context"
                )
            yield Document(response)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise InvalidParameter(f"unable to download remote context {url}: {error or type(error).__name__}") from error


async def fetch_git(cache: BuildCache, source: GitSource) -> SourceFolder:
    """Check a repository out.

    :raises Unsupported: there is no git on this host.
    :raises InvalidParameter: the repository or the reference cannot be had.
    """
    git = shutil.which("git")
    if git is None:
        raise Unsupported("git is not installed on this host: git sources of a build need it")
    commit = await resolve_git(git, source.remote, source.reference)
    if source.checksum and not commit.startswith(source.checksum):
        raise InvalidParameter(
            f"expected checksum to match {source.checksum}, got {commit} for {source.remote}#{source.reference}"
        )
    key = f"git:{commit}:{source.folder}:{source.keep_git_dir}:{source.submodules}"
    found = cache.find(key)
    if found is not None:
        return _folder(found.path, key)
    id, path, work = cache.new_folder(None)
    try:
        await _check_out(git, source, commit, path, work)
        cache.settle(id)
        cache.put(
            key, id, kind="source.git.checkout", description=f"git snapshot for {source.remote}#{source.reference}"
        )
    except BaseException:
        cache.discard(id)
        raise
    return _folder(path, key)


async def resolve_git(git: str, remote: str, reference: str) -> str:
    """The commit that a branch, tag or abbreviation means. :raises InvalidParameter:"""
    if is_commit(reference):
        return reference
    if reference.startswith("-") or remote.startswith("-"):
        raise InvalidParameter(f"invalid git reference {remote}#{reference}")
    text = await _git(git, ["ls-remote", "--", remote], None)
    rows = [line.split("\t") for line in text.splitlines() if "\t" in line]
    known = {name: commit for commit, name in rows}
    names: tuple[str, ...] = ("HEAD",)
    if reference and reference != "HEAD":
        places = (reference, f"refs/tags/{reference}", f"refs/heads/{reference}")
        names = tuple(name for place in places for name in (f"{place}^{{}}", place))
    for name in names:
        if name in known:
            return known[name]
    if re.fullmatch(r"[0-9a-f]{7,63}", reference):
        matching = {commit for commit in known.values() if commit.startswith(reference)}
        if len(matching) == 1:
            return matching.pop()
    raise InvalidParameter(f"repository does not contain ref {reference}, output: {text[:200]!r}")


async def _check_out(git: str, source: GitSource, commit: str, path: str, work: str) -> None:
    repository = f"{work}/repository"
    await _git(git, ["init", "--quiet", "--", repository], None)
    wanted = source.reference if source.reference and not is_commit(source.reference) else commit
    try:
        await _git(git, ["fetch", "--quiet", "--depth=1", "--no-tags", "--", source.remote, wanted], repository)
        fetched = (await _git(git, ["rev-parse", "FETCH_HEAD^{commit}"], repository)).strip()
        if fetched != commit:
            raise InvalidParameter(f"{source.remote} changed while it was fetched")
    except InvalidParameter:
        await _git(git, ["fetch", "--quiet", "--", source.remote, "+refs/*:refs/remotes/origin/*"], repository)
    await _git(git, ["-c", "advice.detachedHead=false", "checkout", "--quiet", "--force", commit], repository)
    if source.submodules and os.path.isfile(f"{repository}/.gitmodules"):
        await _git(git, ["submodule", "update", "--quiet", "--init", "--recursive", "--depth=1"], repository)
    if not source.keep_git_dir:
        shutil.rmtree(f"{repository}/.git")
    tree = Path(repository)
    if source.folder:
        tree = tree / source.folder
        real = os.path.realpath(tree)
        if not real.startswith(os.path.realpath(repository) + os.sep) or not os.path.isdir(real):
            raise InvalidParameter(f"subdirectory {source.folder!r} is not in {source.remote}")
        tree = Path(real)
    for entry in os.listdir(tree):
        os.rename(tree / entry, f"{path}/{entry}")


async def _git(git: str, arguments: Sequence[str], folder: str | None) -> str:
    """Run git without hooks, prompts or anybody's configuration. :raises InvalidParameter: with git's own words."""
    environment = {key: value for key, value in os.environ.items() if key.lower().endswith("_proxy") or key == "PATH"}
    command = [git, "-c", "core.hooksPath=/dev/null", "-c", "protocol.file.allow=never", *arguments]
    with tempfile.TemporaryFile() as errors:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=folder,
            env=environment | _GIT_ENVIRONMENT,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
        try:
            output, _ = await process.communicate()
        except asyncio.CancelledError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            await process.wait()
            raise
        if process.returncode:
            errors.seek(0)
            reason = errors.read(4096).decode("utf-8", "replace").strip()
            raise InvalidParameter(f"git {arguments[0]} failed: {reason or f'exit status {process.returncode}'}")
    if not isinstance(output, bytes):
        raise System("git gave no output")
    return output.decode("utf-8", "replace")
