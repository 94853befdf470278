"""The build cache as it travels: BuildKit's ``application/vnd.buildkit.cacheconfig.v0``, as plain data.

A record is a key, what it was derived from (``inputs``), and the layers that are its results. Ours have BuildKit's form
with keys of our own: a step's record holds its key; a step that copies from other stages has a second record, its
definition's, which the first one names as its input. So a build that knows the definition learns the step's key without
having the other stage's files. Reference: moby/buildkit, cache/remotecache/v1/spec.go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from seacan.errors import InvalidParameter, Unsupported
from seacan.images.config import format_time, parse_time
from seacan.images.manifest import Descriptor
from seacan.storage.compression import Encoding
from seacan.storage.digest import DiffID, Digest, is_digest
from seacan.truth import truth

MEDIA_TYPE = "application/vnd.buildkit.cacheconfig.v0"
INLINE = "moby.buildkit.cache.v0"
"""The key of an image's configuration under which the records of an inline cache are."""

LAYER_LIMIT = 1000
"""Layers of one cache: a manifest that refers to more than 1,025 blobs is refused as hostile."""
_RECORD_LIMIT = 100_000

_KNOWN = frozenset(
    (
        *("ref", "mode", "dest", "src", "tag", "digest", "image-manifest", "oci-mediatypes", "compression"),
        *("force-compression", "ignore-error", "compression-level", "registry.insecure"),
    )
)


@dataclass(frozen=True)
class Entry:
    """One ``--cache-from`` or ``--cache-to``, as the client wrote it."""

    type: str
    attrs: Mapping[str, str]

    def flag(self, name: str, default: bool) -> bool:
        """:raises InvalidParameter:"""
        text = self.attrs.get(name, "")
        value = truth(text) if text else default
        if value is None:
            raise InvalidParameter(f"failed to parse {name}: {text}")
        return value

    @property
    def encoding(self) -> Encoding:
        """How layers are compressed. :raises InvalidParameter: :raises Unsupported:"""
        return Encoding.read(self.attrs)

    @property
    def oci(self) -> bool:
        """Are its documents of OCI's media types, or of Docker's? :raises InvalidParameter:"""
        return self.flag("oci-mediatypes", True)

    def check(self) -> None:
        """Refuse what is not supported.

        :raises Unsupported: in words. :raises InvalidParameter: a value is malformed.
        """
        if self.type not in ("registry", "local", "inline"):
            raise Unsupported(f"unknown cache exporter: {self.type!r}".replace("'", '"'))
        for name in self.attrs:
            if name not in _KNOWN:
                raise Unsupported(f"cache type {self.type}: the attribute {name} is not supported")
        if self.attrs.get("mode", "min") not in ("", "min", "max"):
            raise InvalidParameter(f"unknown cache export mode: {self.attrs['mode']}")
        _ = self.encoding
        if self.flag("image-manifest", self.oci) and not self.oci:
            raise InvalidParameter(
                "invalid configuration for remote cache, OCI mediatypes are required for image-manifest cache format"
            )
        if self.flag("registry.insecure", False):
            raise Unsupported(
                "registry.insecure is not supported: name the registry in the daemon's insecure-registries"
            )


class _Annotations(msgspec.Struct, rename="camel", omit_defaults=True):
    media_type: str = ""
    diff_id: str = msgspec.field(default="", name="diffID")
    size: int = 0
    created_at: str = ""


class _Layer(msgspec.Struct, omit_defaults=True):
    blob: str = ""
    parent: int = 0
    annotations: _Annotations | None = None


class _Result(msgspec.Struct, rename="camel"):
    layer: int
    created_at: str = ""


class _Input(msgspec.Struct, omit_defaults=True):
    selector: str = ""
    link: int = msgspec.field(default=-1)


class _Record(msgspec.Struct, omit_defaults=True):
    layers: list[_Result] = []
    digest: str = ""
    inputs: list[list[_Input]] = []


class _Config(msgspec.Struct, omit_defaults=True):
    layers: list[_Layer] = []
    records: list[_Record] = []


@dataclass(frozen=True)
class Archive:
    """A layer as it travels: its blob, and what it unpacks to."""

    descriptor: Descriptor
    diff_id: DiffID


@dataclass(frozen=True)
class Record:
    """One step. ``inputs`` are keys. ``created`` is nanoseconds since 1970.

    ``definition`` is the key of a step's definition, where that says more than ``key`` does; ``below`` is the layer
    that the step's own lies on, if that travels too.
    """

    key: str
    inputs: tuple[str, ...] = ()
    definition: str = ""
    archive: Archive | None = None
    below: Archive | None = None
    created: int = 0


@dataclass(frozen=True)
class Claim:
    """What a cache says of a key: the layer that it stands for, if the cache has one."""

    key: str
    archive: Archive | None = None
    created: int = 0


@dataclass(frozen=True)
class Claims:
    """Everything that one cache says. Nothing here is verified but its form."""

    steps: Mapping[str, Claim] = field(default_factory=dict)
    definitions: Mapping[str, str] = field(default_factory=dict)
    """Keys of steps by the keys of their definitions."""


def encode(records: Sequence[Record]) -> tuple[bytes, list[Descriptor]]:
    """The configuration blob and the blobs that it refers to, each once."""
    layers: list[_Layer] = []
    places: dict[tuple[Digest, Digest | None], int] = {}
    descriptors: dict[Digest, Descriptor] = {}
    first: dict[Digest, int] = {}

    def place(archive: Archive, below: Archive | None, created: int) -> int:
        digest = archive.descriptor.digest
        key = (digest, below.descriptor.digest if below else None)
        if key in places:
            return places[key]
        parent = first.get(below.descriptor.digest, -1) if below else -1
        places[key] = len(layers)
        first.setdefault(digest, len(layers))
        descriptors.setdefault(digest, archive.descriptor)
        described = archive.descriptor
        annotations = _Annotations(
            described.media_type, archive.diff_id, described.size, format_time(created) if created else ""
        )
        layers.append(_Layer(digest, parent, annotations))
        return places[key]

    found = _records(
        records,
        lambda record: (
            place(record.archive, record.below, record.created)
            if record.archive and (len(descriptors) < LAYER_LIMIT or record.archive.descriptor.digest in descriptors)
            else None
        ),
    )
    return msgspec.json.encode(_Config(layers, found)), list(descriptors.values())


def encode_inline(records: Sequence[Record], diff_ids: Sequence[str]) -> bytes:
    """The records for an image whose layers are ``diff_ids``: results are numbers of its layers."""
    numbers = {diff_id: number for number, diff_id in enumerate(diff_ids)}
    found = _records(records, lambda record: numbers.get(record.archive.diff_id) if record.archive else None)
    return msgspec.json.encode(found)


def _records(records: Sequence[Record], place: Callable[[Record], int | None]) -> list[_Record]:
    found: list[_Record] = []
    index: dict[str, int] = {}

    def add(key: str, inputs: Iterable[str]) -> _Record:
        record = _Record(digest=f"sha256:{key}")
        record.inputs = [[_Input(link=index[each])] for each in inputs if each in index]
        index[key] = len(found)
        found.append(record)
        return record

    for each in records:
        if each.key in index:
            continue
        if each.definition:
            add(each.definition, each.inputs)
            record = add(each.key, [each.definition])
        else:
            record = add(each.key, each.inputs)
        number = place(each)
        if number is not None:
            record.layers = [_Result(number, format_time(each.created) if each.created else "")]
    return found


def decode(content: bytes, blobs: Mapping[str, Descriptor], what: str) -> Claims:
    """Read a configuration blob; ``blobs`` are those of the manifest, by digest.

    :raises InvalidParameter: it is malformed; the message names ``what``.
    """
    try:
        document = msgspec.json.decode(content, type=_Config)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidParameter(f"{what} is malformed: {error}") from error
    archives: list[Archive | None] = []
    for layer in document.layers:
        known = blobs.get(layer.blob)
        diff_id = layer.annotations.diff_id if layer.annotations else ""
        archives.append(Archive(known, DiffID(diff_id)) if known and is_digest(diff_id) else None)
    return _claims(document.records, archives, what)


def decode_inline(content: bytes, archives: Sequence[Archive | None], what: str) -> Claims:
    """Read the records of an inline cache; ``archives`` are the image's layers.

    :raises InvalidParameter: it is malformed; the message names ``what``.
    """
    try:
        records = msgspec.json.decode(content, type=list[_Record])
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidParameter(f"{what} is malformed: {error}") from error
    return _claims(records, archives, what)


def _claims(records: Sequence[_Record], archives: Sequence[Archive | None], what: str) -> Claims:
    if len(records) > _RECORD_LIMIT:
        raise InvalidParameter(f"{what} has {len(records)} records; the limit is {_RECORD_LIMIT}")
    steps: dict[str, Claim] = {}
    definitions: dict[str, str] = {}
    for record in records:
        if not is_digest(record.digest):
            raise InvalidParameter(f"{what}: invalid digest {record.digest[:100]!r}")
        key = record.digest.partition(":")[2]
        claim = Claim(key)
        for result in record.layers:
            archive = archives[result.layer] if 0 <= result.layer < len(archives) else None
            if archive is not None:
                claim = Claim(key, archive, _time(result.created_at))
                break
        if key not in steps or steps[key].archive is None:
            steps[key] = claim
        for alternatives in record.inputs:
            for each in alternatives:
                if len(record.inputs) == 1 and 0 <= each.link < len(records):
                    definitions.setdefault(records[each.link].digest.partition(":")[2], key)
    return Claims(steps, definitions)


def _time(text: str) -> int:
    try:
        return max(0, parse_time(text)) if text else 0
    except InvalidParameter:
        return 0
