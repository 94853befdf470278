"""``seacan manifest``: one name for images of several platforms (``docker manifest``). No daemon is asked.

A list that is being made is a draft of this client's, ``seacan/manifests/`` in docker's configuration folder, until it
is pushed.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from seacan.cli.client import Client
from seacan.cli.command import Group, command, flag, switch
from seacan.cli.image import config_folder, registry_wallet
from seacan.errors import Conflict, NotFound, System
from seacan.images import reference as references
from seacan.images.manifest import Platform
from seacan.images.reference import Reference
from seacan.registry import lists
from seacan.registry.client import Registries
from seacan.registry.endpoints import Settings
from seacan.registry.lists import Entry

Result = TypeVar("Result")


class Draft(msgspec.Struct):
    """A list before it is pushed."""

    name: str
    entries: list[Entry]


def _path(name: Reference) -> Path:
    return Path(config_folder(), "seacan", "manifests", str(name).replace("/", "_").replace(":", "-") + ".json")


def _name(text: str) -> Reference:
    return references.parse(text).with_default_tag()


def _find(name: Reference) -> Draft | None:
    path = _path(name)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Draft)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise System(f"manifest list {path}: {error}") from error


def _read(text: str) -> tuple[Reference, Draft]:
    name = _name(text)
    draft = _find(name)
    if draft is None:
        raise NotFound(f"No such manifest: {name.familiar}")
    return name, draft


def _write(name: Reference, draft: Draft) -> None:
    path = _path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_bytes(msgspec.json.encode(draft))
    temporary.replace(path)


def _ask(insecure: bool, names: list[Reference], question: Callable[[Registries], Awaitable[Result]]) -> Result:
    settings = Settings(insecure=sorted({name.domain for name in names}) if insecure else [])

    async def run() -> Result:
        registries = Registries(lambda: settings)
        try:
            return await question(registries)
        finally:
            await registries.close()

    return asyncio.run(run())


@command("create", "MANIFEST_LIST MANIFEST [MANIFEST...]", least=2, complete="image")
@switch("amend", "Amend an existing manifest list", short="a")
@switch("insecure", "Allow communication with an insecure registry")
def create(client: Client, arguments: list[str], *, amend: bool, insecure: bool) -> None:
    """Create a local manifest list for annotating and pushing to a registry"""
    name = _name(arguments[0])
    draft = _find(name)
    if draft is not None and not amend:
        raise Conflict("refusing to amend an existing manifest list with no --amend flag")
    wallet = registry_wallet()
    found = {item.reference: item for item in (draft.entries if draft else [])}

    async def describe(registries: Registries) -> None:
        for text in arguments[1:]:
            item = await lists.entry(text, registries, wallet)
            found[item.reference] = item

    _ask(insecure, [_name(text) for text in arguments], describe)
    _write(name, Draft(str(name), list(found.values())))
    print(f"Created manifest list {name}")


@command("annotate", "MANIFEST_LIST MANIFEST", exactly=2)
@flag("arch", "Set architecture", default="")
@flag("os", "Set operating system", default="")
@flag("os-features", "Set operating system feature", many=True)
@flag("os-version", "Set operating system version", default="")
@flag("variant", "Set architecture variant", default="")
def annotate(
    client: Client, arguments: list[str], *, arch: str, os: str, os_features: list[str], os_version: str, variant: str
) -> None:
    """Add additional information to a local image manifest"""
    name, draft = _read(arguments[0])
    wanted = str(_name(arguments[1]))
    for number, item in enumerate(draft.entries):
        if item.reference != wanted:
            continue
        before = item.descriptor.platform or Platform()
        features = [feature for text in os_features for feature in text.split(",")]
        platform = Platform(
            os or before.os,
            arch or before.architecture,
            variant or before.variant,
            os_version or before.os_version,
            features or before.os_features,
        )
        draft.entries[number] = Entry(wanted, msgspec.structs.replace(item.descriptor, platform=platform))
        _write(name, draft)
        return
    raise NotFound(f"manifest for image {_name(arguments[1]).familiar} does not exist in {name.familiar}")


@command("push", "MANIFEST_LIST", exactly=1)
@switch("insecure", "Allow push to an insecure registry")
@switch("purge", "Remove the local manifest list after push", short="p")
def push(client: Client, arguments: list[str], *, insecure: bool, purge: bool) -> None:
    """Push a manifest list to a repository"""
    name, draft = _read(arguments[0])
    names = [name, *(references.parse(item.reference) for item in draft.entries)]
    wallet = registry_wallet()
    print(_ask(insecure, names, lambda registries: lists.publish(name, draft.entries, registries, wallet)))
    if purge:
        _path(name).unlink()


@command("inspect", "[MANIFEST_LIST] MANIFEST", least=1, most=2)
@switch("insecure", "Allow communication with an insecure registry")
@switch("verbose", "Output additional info including layers and platform", short="v")
def inspect(client: Client, arguments: list[str], *, insecure: bool, verbose: bool) -> None:
    """Display an image manifest, or manifest list"""
    if len(arguments) == 2:
        _, draft = _read(arguments[0])
        wanted = str(_name(arguments[1]))
        entries = [item for item in draft.entries if item.reference == wanted]
        if not entries:
            raise NotFound(f"No such manifest: {arguments[1]}")
        found = references.parse(entries[0].reference).digested(entries[0].descriptor.digest)
        platform = entries[0].descriptor.platform
    else:
        found, platform = _name(arguments[0]), None
        if (draft_here := _find(found)) is not None:
            _print(msgspec.json.decode(lists.assemble(draft_here.entries).content))
            return
    wallet = registry_wallet()

    async def show(registries: Registries) -> Any:
        document, place = await lists.fetch(found, registries, wallet)
        decoded = msgspec.json.decode(document.content)
        if not verbose:
            return decoded
        if kind := lists.kind(document):
            told = platform or await lists.platform_of(document, place)
            return _verbose(str(found), document, kind, decoded, told)
        shown = []
        for child in decoded["manifests"]:
            inner, _ = await lists.fetch(found.digested(child["digest"]), registries, wallet)
            about = msgspec.convert(child.get("platform") or {}, Platform)
            name = f"{found}@{child['digest']}"
            shown.append(_verbose(name, inner, lists.kind(inner), msgspec.json.decode(inner.content), about))
        return shown

    _print(_ask(insecure, [found], show))


def _verbose(name: str, document: lists.Document, kind: str, decoded: Any, platform: Platform) -> dict[str, Any]:
    descriptor = msgspec.structs.replace(document.descriptor, platform=platform)
    return {
        "Ref": name,
        "Descriptor": msgspec.to_builtins(descriptor),
        "Raw": msgspec.to_builtins(document.content),
        **({kind: decoded} if kind else {}),
    }


def _print(document: Any) -> None:
    print(msgspec.json.format(msgspec.json.encode(document), indent=3).decode())


@command("rm", "MANIFEST_LIST [MANIFEST_LIST...]", least=1)
def rm(client: Client, arguments: list[str]) -> None:
    """Delete one or more manifest lists from local storage"""

    missing = []
    for text in arguments:
        try:
            _path(_name(text)).unlink()
        except FileNotFoundError:
            missing.append(f"No such manifest: {text}")
    if missing:
        raise NotFound("\n".join(missing))


_HERE = "seacan.cli.manifest"
VERBS: Final[Mapping[str, tuple[str, str]]] = {
    "annotate": (f"{_HERE}:annotate", "Add additional information to a local image manifest"),
    "create": (f"{_HERE}:create", "Create a local manifest list for annotating and pushing to a registry"),
    "inspect": (f"{_HERE}:inspect", "Display an image manifest, or manifest list"),
    "push": (f"{_HERE}:push", "Push a manifest list to a repository"),
    "rm": (f"{_HERE}:rm", "Delete one or more manifest lists from local storage"),
}
group = Group("manifest", "Manage image manifests and manifest lists", VERBS)
