"""What Docker tells about images: summaries with filters, inspection, disk usage, and pruning by filter."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType, field

from seacan.errors import Conflict, InvalidParameter, NotFound, SeacanError, System
from seacan.images import config as image_config
from seacan.images.config import ImageDefaults, format_time
from seacan.images.indexes import Entry
from seacan.images.manifest import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, Descriptor, Index, Platform, decode
from seacan.images.reference import Reference
from seacan.images.store import Image, Images, Removal, matches
from seacan.storage.digest import Digest
from seacan.storage.layers import Layer

Filters = Mapping[str, Sequence[str]]

LIST_FILTERS = frozenset(("dangling", "label", "label!", "before", "since", "reference", "until"))
PRUNE_FILTERS = frozenset(("dangling", "label", "label!", "until"))


class Summary(msgspec.Struct, rename="pascal"):
    """One line of ``docker images``. Sizes are bytes, -1 where not asked for; ``created`` is seconds since 1970."""

    containers: int
    created: int
    id: str
    labels: dict[str, str] | None
    parent_id: str
    repo_digests: list[str]
    repo_tags: list[str]
    shared_size: int
    size: int
    descriptor: Descriptor | UnsetType = UNSET
    manifests: list[ManifestSummary] | UnsetType = UNSET


class ContentSize(msgspec.Struct, rename="pascal", frozen=True):
    """``content`` is bytes of the blobs that are here, ``total`` with what is unpacked of them."""

    content: int
    total: int


class UnpackedSize(msgspec.Struct, rename="pascal", frozen=True):
    unpacked: int


class ImageData(msgspec.Struct, rename="pascal", frozen=True):
    """What is known of a platform's image; ``containers`` are IDs, None for none."""

    platform: Platform
    size: UnpackedSize
    containers: list[str] | None


class AttestationData(msgspec.Struct, rename={"about": "For"}, frozen=True):
    about: Digest


class ManifestSummary(msgspec.Struct, rename="pascal", frozen=True, kw_only=True):
    """Docker's ``ImageManifestSummary``: one manifest of what an image's name means."""

    id: Digest = field(name="ID")
    descriptor: Descriptor
    available: bool
    size: ContentSize
    kind: str
    image_data: ImageData | UnsetType = UNSET
    attestation_data: AttestationData | UnsetType = UNSET


def summaries(
    images: Images,
    filters: Filters | None = None,
    *,
    all: bool = False,
    shared_size: bool = False,
    count_containers: bool = False,
    with_manifests: bool = False,
) -> list[Summary]:
    """The images, newest first; those of other platforms that a name means as well count as part of its image.

    Raises :class:`InvalidParameter` for filters dockerd does not know.
    """
    filters = filters or {}
    check_filters(filters, LIST_FILTERS)
    dangling = boolean_filter(filters, "dangling")
    before = _moment(images, filters, "before")
    since = _moment(images, filters, "since")
    until = until_filter(filters, System, several=True)
    patterns = filters.get("reference", ())
    for pattern in patterns:
        _check_pattern(pattern)
    found: list[tuple[int, Summary]] = []
    sharing = _Sharing(images) if shared_size else None
    for id in images.ids():
        try:
            image = images.get(id)
        except (NotFound, SeacanError):
            continue
        if before is not None and not (image.created and image.created < before):
            continue
        if since is not None and not (image.created and image.created > since):
            continue
        if until is not None and not image.created < until:
            continue
        if not label_filter(image, filters):
            continue
        names = images.references(id)
        if not names and images.is_held(id):
            continue
        relatives = images.relatives(id)
        if patterns:
            names = [name for name in names if any(matches(pattern, name) for pattern in patterns)]
        if not names:
            if not all and images.children(id):
                continue
            if dangling is False or patterns:
                continue
        elif dangling and any(name.tag for name in names):
            continue
        found.append(
            (
                image.created,
                Summary(
                    sum(1 for member in relatives for _ in images.users(member)) if count_containers else -1,
                    image.created // 1_000_000_000,
                    id,
                    image.config.defaults.labels,
                    image.parent,
                    [name.familiar for name in names if name.digest],
                    [name.familiar for name in names if name.tag],
                    sharing.shared(relatives) if sharing else -1,
                    sum(layer.size for layer in _layers(images, relatives)) if len(relatives) > 1 else image.size,
                    (descriptor(images, image) if with_manifests else None) or UNSET,
                    manifest_summaries(images, image) if with_manifests else UNSET,
                ),
            )
        )
    found.sort(key=lambda item: item[0], reverse=True)
    return [summary for _, summary in found]


class _Sharing:
    """How much of an image's layers other images have too."""

    def __init__(self, images: Images) -> None:
        self._images = images
        rows = images.database.execute("SELECT chain_id, COUNT(*) FROM image_layers GROUP BY chain_id").fetchall()
        self._uses: dict[str, int] = dict(rows)

    def shared(self, ids: Sequence[Digest]) -> int:
        return sum(layer.size for layer in _layers(self._images, ids) if self._uses.get(layer.chain_id, 0) > 1)


def _layers(images: Images, ids: Sequence[Digest]) -> list[Layer]:
    """The layers of some images, each once."""
    stacks = [images.layers.stack(images.get(id).chain_id) for id in ids]
    return list({layer.chain_id: layer for stack in stacks for layer in stack}.values())


def descriptor(images: Images, image: Image) -> Descriptor | None:
    """What points at the index or manifest that the image's name means; None for an image that never had one."""
    for digest in [*images.sources(image.id), *([image.manifest] if image.manifest else ())]:
        try:
            content = images.blobs.read(digest)
            document = decode(content, f"manifest {digest}")
        except SeacanError:
            continue
        usual = OCI_INDEX if isinstance(document, Index) else OCI_MANIFEST
        return Descriptor(media_type=document.media_type or usual, digest=digest, size=len(content))
    return None


def manifest_summaries(images: Images, image: Image) -> list[ManifestSummary]:
    """Every manifest of the indexes that the image's names mean, or its own; each once."""
    found: dict[str, ManifestSummary] = {}
    for source in images.sources(image.id):
        if not images.indexes.members(source):
            continue
        try:
            entries = images.indexes.entries(source)
        except SeacanError:
            continue  # a damaged index is told of where it is used
        for entry in entries:
            if entry.kind != "index":
                found.setdefault(entry.descriptor.digest, _manifest_summary(images, entry))
    if found:
        return list(found.values())
    pointer = descriptor(images, image)
    if pointer is None:  # never in an archive nor in a registry: there is nothing but the configuration
        pointer = Descriptor(media_type=OCI_CONFIG, digest=image.id, size=images.blobs.size(image.id))
    pointer = msgspec.structs.replace(pointer, platform=image.platform)
    config = Descriptor(digest=image.id, size=images.blobs.size(image.id))
    blobs = [Descriptor(digest=blob.digest, size=blob.size) for blob in images.layer_blobs(image.id) if blob]
    return [_manifest_summary(images, Entry(pointer, "image", image.id, [config, *blobs], True, None))]


def _manifest_summary(images: Images, entry: Entry) -> ManifestSummary:
    blobs = {blob.digest: blob.size for blob in (entry.descriptor, *entry.content)}
    content = sum(size for digest, size in blobs.items() if images.blobs.contains(Digest(digest)))
    image = images.get(entry.image) if entry.image else None
    unpacked = image.size if image else 0
    users = [user.container_id for user in images.users(image.id)] if image else []
    platform = entry.descriptor.platform or (image.platform if image else Platform())
    return ManifestSummary(
        id=entry.descriptor.digest,
        descriptor=entry.descriptor,
        available=entry.available,
        size=ContentSize(content, content + unpacked),
        kind=entry.kind,
        image_data=ImageData(platform, UnpackedSize(unpacked), users or None) if entry.kind == "image" else UNSET,
        attestation_data=AttestationData(entry.attests) if entry.attests else UNSET,
    )


def layers_size(images: Images) -> int:
    """Bytes of all layers, each counted once (``LayersSize`` of ``docker system df``)."""
    row = images.database.execute("SELECT COALESCE(SUM(size), 0) FROM layers").fetchone()
    return int(row[0])


def inspect(images: Images, image: Image, *, with_manifests: bool = False) -> dict[str, Any]:
    """Docker's ``ImageInspect`` as of API 1.51; older ones are the API's to make of it."""
    config = image.config
    tags, names_of_digests = image.tags, image.digests
    if not tags and not names_of_digests:
        tags, names_of_digests = images.names_held(image.id)
    result: dict[str, Any] = {
        "Id": image.id,
        "RepoTags": tags,
        "RepoDigests": names_of_digests,
        "Parent": image.parent,
        "Comment": config.comment or (config.history[-1].comment if config.history else ""),
    }
    if config.created:
        result["Created"] = format_time(image.created) if image.created else config.created
    result |= {"DockerVersion": config.docker_version, "Author": config.author, "Architecture": config.architecture}
    if config.variant:
        result["Variant"] = config.variant
    result["Os"] = config.os
    if config.os_version:
        result["OsVersion"] = config.os_version
    result["Size"] = image.size
    result["GraphDriver"] = images.graph_driver(image)
    result["RootFS"] = {"Type": "layers", **({"Layers": config.rootfs.diff_ids} if config.rootfs.diff_ids else {})}
    result["Metadata"] = {
        "LastTagTime": format_time(image.last_tagged) if image.last_tagged else "0001-01-01T00:00:00Z"
    }
    if (pointer := descriptor(images, image)) is not None:
        result["Descriptor"] = msgspec.to_builtins(pointer)
    if with_manifests:
        result["Manifests"] = [msgspec.to_builtins(item) for item in manifest_summaries(images, image)]
    result["Config"] = inspect_defaults(config.defaults)
    return result


def inspect_defaults(defaults: ImageDefaults) -> dict[str, Any]:
    """``Config`` of an image inspection."""
    result: dict[str, Any] = {
        "Cmd": defaults.cmd,
        "Entrypoint": defaults.entrypoint,
        "Env": defaults.env,
        "Labels": defaults.labels,
        "OnBuild": defaults.on_build,
        "User": defaults.user,
        "Volumes": defaults.volumes,
        "WorkingDir": defaults.working_dir,
    }
    optional = {
        "ArgsEscaped": defaults.args_escaped,
        "ExposedPorts": defaults.exposed_ports,
        "Healthcheck": defaults.healthcheck,
        "Shell": defaults.shell,
        "StopSignal": defaults.stop_signal,
        "StopTimeout": defaults.stop_timeout,
    }
    result |= {name: value for name, value in optional.items() if value}
    return dict(sorted(result.items()))


def prune(images: Images, filters: Filters | None = None) -> tuple[list[Removal], int]:
    """Remove the images nobody uses: the untagged ones, or with ``dangling=false`` all and broken-off downloads.

    Gives what was removed and the bytes reclaimed.
    """
    filters = filters or {}
    check_filters(filters, PRUNE_FILTERS)
    dangling = boolean_filter(filters, "dangling") is not False
    until = until_filter(filters, InvalidParameter)
    removals: list[Removal] = []
    before = {layer.chain_id: layer.size for layer in images.layers.all()}
    for id in images.ids():
        try:
            image = images.get(id)
        except SeacanError:
            continue
        if until is not None and image.created > until:
            continue
        if not label_filter(image, filters):
            continue
        names = images.references(id)
        if images.is_held(id) or any(True for member in images.relatives(id) for _ in images.users(member)):
            # Who uses it needs one name of it.
            for name in sorted(names, key=str)[:-1] if not dangling else ():
                with contextlib.suppress(Conflict):
                    removals.extend(images.remove(str(name), force=False, prune=True))
            continue
        if dangling and (any(name.tag for name in names) or images.children(id)):
            continue
        try:
            removals.extend(_prune_one(images, id, names, dangling))
        except Conflict:
            continue
    remaining = {layer.chain_id for layer in images.layers.all()}
    freed = images.expire_downloads(everything=not dangling)
    return removals, freed + sum(size for chain_id, size in before.items() if chain_id not in remaining)


def _prune_one(images: Images, id: Digest, names: Sequence[Reference], dangling: bool) -> list[Removal]:
    if dangling or not names:
        return images.remove(id, force=False, prune=True)
    removals: list[Removal] = []
    for name in names:
        try:
            removals.extend(images.remove(name.familiar, force=False, prune=True))
        except NotFound:
            continue  # the digest went with its tag
    return removals


# --- filters ------------------------------------------------------------------------------------------------------


def check_filters(filters: Filters, known: frozenset[str]) -> None:
    for name in filters:
        if name not in known:
            raise InvalidParameter(f"invalid filter '{name}'")


def boolean_filter(filters: Filters, name: str) -> bool | None:
    """True, false, or None where it is not given."""
    values = filters.get(name)
    if not values:
        return None
    truths = {"1": True, "true": True, "0": False, "false": False}
    if len(values) == 1 and values[0] in truths:
        return truths[values[0]]
    raise InvalidParameter(f"invalid filter '{name}=[{' '.join(values)}]'")


def label_filter(image: Image, filters: Filters) -> bool:
    """``label`` and ``label!``: every wanted label is there, and no unwanted one."""
    labels = image.config.defaults.labels or {}
    return all(_has_label(labels, wanted) for wanted in filters.get("label", ())) and not any(
        _has_label(labels, unwanted) for unwanted in filters.get("label!", ())
    )


def _has_label(labels: Mapping[str, str], wanted: str) -> bool:
    name, equals, value = wanted.partition("=")
    return name in labels and (not equals or labels[name] == value)


def _moment(images: Images, filters: Filters, name: str) -> int | None:
    values = filters.get(name)
    if not values:
        return None
    moments = [images.get(value).created for value in values]
    return max(moments) if name == "since" else min(moments)


_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ns|us|µs|ms|s|m|h)")
_UNITS = {"ns": 1, "us": 1e3, "µs": 1e3, "ms": 1e6, "s": 1e9, "m": 60e9, "h": 3600e9}


def until_filter(filters: Filters, failure: type[SeacanError], *, several: bool = False) -> int | None:
    """The ``until`` filter in nanoseconds since 1970, the earliest if there may be ``several``.

    Raises ``failure`` for what cannot be read, InvalidParameter for more than there may be.
    """
    values = filters.get("until", ())
    if len(values) > 1 and not several:
        raise InvalidParameter("more than one until filter specified")
    return min((_until(text, failure) for text in values), default=None)


def _until(text: str, failure: type[SeacanError]) -> int:
    parts = _DURATION.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        return time.time_ns() - int(sum(float(number) * _UNITS[unit] for number, unit in parts))
    if re.fullmatch(r"[0-9]+(\.[0-9]{1,9})?", text):
        seconds, _, fraction = text.partition(".")
        return int(seconds) * 1_000_000_000 + int(fraction.ljust(9, "0") or 0)
    try:
        return image_config.parse_time(text)
    except InvalidParameter:
        pass
    for form in ("%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H", "%Y-%m-%d"):
        try:
            return int(datetime.strptime(text.removesuffix("Z"), form).replace(tzinfo=UTC).timestamp()) * 1_000_000_000
        except ValueError:
            continue
    raise failure(f'failed to parse value as time or duration: "{text}"')


def _check_pattern(pattern: str) -> None:
    depth = 0
    escaped = False
    for character in pattern:
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == "[" and not depth:
            depth = 1
        elif character == "]" and depth:
            depth = 0
    if depth or escaped:
        raise System("syntax error in pattern")
