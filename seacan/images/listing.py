"""What Docker tells about images: summaries with filters, inspection, disk usage, and pruning by filter."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from seacan.errors import Conflict, InvalidParameter, NotFound, SeacanError, System
from seacan.images import config as image_config
from seacan.images.config import ImageDefaults, format_time
from seacan.images.reference import Reference
from seacan.images.store import Image, Images, Removal, matches
from seacan.storage.digest import Digest

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


def summaries(
    images: Images,
    filters: Filters | None = None,
    *,
    all: bool = False,
    shared_size: bool = False,
    count_containers: bool = False,
) -> list[Summary]:
    """The images, newest first. Raises :class:`InvalidParameter` for filters dockerd does not know."""
    filters = filters or {}
    check_filters(filters, LIST_FILTERS)
    dangling = boolean_filter(filters, "dangling")
    before = _moment(images, filters, "before")
    since = _moment(images, filters, "since")
    until = until_filter(filters, System)
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
                    sum(1 for _ in images.users(id)) if count_containers else -1,
                    image.created // 1_000_000_000,
                    id,
                    image.config.defaults.labels,
                    image.parent,
                    [name.familiar for name in names if name.digest],
                    [name.familiar for name in names if name.tag],
                    sharing.shared(image) if sharing else -1,
                    image.size,
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

    def shared(self, image: Image) -> int:
        return sum(
            layer.size for layer in self._images.layers.stack(image.chain_id) if self._uses.get(layer.chain_id, 0) > 1
        )


def layers_size(images: Images) -> int:
    """Bytes of all layers, each counted once (``LayersSize`` of ``docker system df``)."""
    row = images.database.execute("SELECT COALESCE(SUM(size), 0) FROM layers").fetchone()
    return int(row[0])


def inspect(images: Images, image: Image) -> dict[str, Any]:
    """Docker's ``ImageInspect`` as of API 1.51; older ones are the API's to make of it."""
    config = image.config
    result: dict[str, Any] = {
        "Id": image.id,
        "RepoTags": image.tags,
        "RepoDigests": image.digests,
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
    """Remove the images nobody uses: the untagged ones, or with ``dangling=false`` all.

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
        if any(True for _ in images.users(id)):
            continue
        names = images.references(id)
        if dangling and (any(name.tag for name in names) or images.children(id)):
            continue
        try:
            removals.extend(_prune_one(images, id, names, dangling))
        except Conflict:
            continue
    remaining = {layer.chain_id for layer in images.layers.all()}
    return removals, sum(size for chain_id, size in before.items() if chain_id not in remaining)


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


def until_filter(filters: Filters, failure: type[SeacanError]) -> int | None:
    """The ``until`` filter in nanoseconds since 1970; raises ``failure`` for what cannot be read."""
    values = filters.get("until")
    if not values:
        return None
    if len(values) > 1:
        raise InvalidParameter("more than one until filter specified")
    text = values[0]
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
