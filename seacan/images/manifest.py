"""Manifests and indexes, OCI's and Docker's: the documents that tie a configuration to its layers.

Media types are told apart but never trusted: what a blob is follows from its bytes.
Schema: https://github.com/opencontainers/image-spec and Docker's "Image Manifest V 2, Schema 2".
"""

from __future__ import annotations

import platform as host
from typing import Any, Final

import msgspec
from msgspec import field

from seacan.errors import InvalidParameter
from seacan.images.config import LAYER_LIMIT, ImageConfig
from seacan.storage.digest import Digest, is_digest

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_LAYER_ZSTD = "application/vnd.docker.image.rootfs.diff.tar.zstd"

_LAYER_TYPES = {
    "none": (OCI_LAYER, DOCKER_LAYER),
    "gzip": (OCI_LAYER + "+gzip", DOCKER_LAYER_GZIP),
    "zstd": (OCI_LAYER + "+zstd", DOCKER_LAYER_ZSTD),
}

INDEX_TYPES = frozenset((OCI_INDEX, DOCKER_LIST))
MANIFEST_TYPES = frozenset((OCI_MANIFEST, DOCKER_MANIFEST))

_INDEX_LIMIT = 1024

_ARCHITECTURES = {
    "x86_64": ("amd64", ""), "aarch64": ("arm64", "v8"), "armv7l": ("arm", "v7"), "armv6l": ("arm", "v6"),
    "i686": ("386", ""), "i386": ("386", ""), "s390x": ("s390x", ""), "ppc64le": ("ppc64le", ""),
    "riscv64": ("riscv64", ""), "mips64": ("mips64le", ""), "loongarch64": ("loong64", ""),
}  # fmt: skip


class Platform(msgspec.Struct, omit_defaults=True, frozen=True):
    os: str = ""
    architecture: str = ""
    variant: str = ""
    os_version: str = field(default="", name="os.version")
    os_features: list[str] | None = field(default=None, name="os.features")

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    def normalised(self) -> Platform:
        """With the usual other names of architectures and the variants that mean nothing taken away."""
        architecture, variant = self.architecture.lower(), self.variant.lower()
        architecture, variant = {
            "x86_64": ("amd64", ""), "x86-64": ("amd64", ""), "aarch64": ("arm64", variant), "armhf": ("arm", "v7"),
            "armel": ("arm", "v6"), "i386": ("386", ""), "i686": ("386", ""),
        }.get(architecture, (architecture, variant))  # fmt: skip
        if architecture == "arm64" and variant in ("8", "v8"):
            variant = ""
        elif architecture == "arm":
            variant = {"": "v7", "5": "v5", "6": "v6", "7": "v7", "8": "v8"}.get(variant, variant)
        elif architecture == "amd64" and variant == "v1":
            variant = ""
        return Platform(self.os.lower() or "linux", architecture, variant, self.os_version)

    def satisfies(self, wanted: Platform) -> bool:
        """Whether an image of this platform is what ``wanted`` asks for."""
        mine, other = self.normalised(), wanted.normalised()
        if mine.os != other.os or mine.architecture != other.architecture:
            return False
        return mine.variant == other.variant or not wanted.variant or (not mine.variant and not other.variant)


def layer_type(compression: str, *, oci: bool) -> str:
    """The media type of a layer's archive that is compressed so (``none``, ``gzip`` or ``zstd``)."""
    return _LAYER_TYPES[compression][0 if oci else 1]


def stored_layer_type(compression: str) -> str:
    """The media type under which an archive that nobody has given one is kept: Docker's, where Docker has one."""
    return layer_type(compression, oci=compression == "zstd") if compression in _LAYER_TYPES else DOCKER_LAYER


def layer_compression(media_type: str) -> str:
    """How a layer's archive of this media type is compressed; "" for one that is unknown."""
    return next((compression for compression, types in _LAYER_TYPES.items() if media_type in types), "")


def platform_of(config: ImageConfig) -> Platform:
    """What a configuration says that its image is for."""
    return Platform(config.os, config.architecture, config.variant, config.os_version)


def host_platform() -> Platform:
    """What this machine runs."""
    architecture, variant = _ARCHITECTURES.get(host.machine(), (host.machine(), ""))
    return Platform("linux", architecture, variant if architecture == "arm" else "")


_SYSTEMS: Final = frozenset(
    ("aix", "android", "darwin", "dragonfly", "freebsd", "hurd", "illumos", "ios", "js", "linux", "nacl", "netbsd",
     "openbsd", "plan9", "solaris", "windows", "zos")
)  # fmt: skip
_KNOWN_ARCHITECTURES: Final = frozenset(
    ("386", "amd64", "amd64p32", "arm", "armbe", "arm64", "arm64be", "loong64", "mips", "mipsle", "mips64", "mips64le",
     "mips64p32", "mips64p32le", "ppc", "ppc64", "ppc64le", "riscv", "riscv64", "s390", "s390x", "sparc", "sparc64",
     "wasm")
)  # fmt: skip
"""What Go and containerd know."""


def parse_platform(text: str) -> Platform:
    """``linux/arm64/v8``, ``linux``, ``arm64``; raises :class:`InvalidParameter` in containerd's words."""
    parts = text.split("/")
    if len(parts) > 3:
        raise InvalidParameter(f'"{text}": cannot parse platform specifier: invalid argument')
    if not text or not all(
        part and part.replace("_", "").replace("-", "").replace(".", "").isalnum() for part in parts
    ):
        raise InvalidParameter(
            f'"{parts[0]}" is an invalid OS component of "{text}": OSAndVersion specifier component must match '
            '"^([A-Za-z0-9_-]+)(?:\\(([A-Za-z0-9_.-]*)\\))?$": invalid argument'
        )
    here = host_platform()
    if len(parts) == 1:
        known = {"macos": "darwin"}.get(parts[0].lower(), parts[0].lower())
        if known in _SYSTEMS:
            return Platform(known, here.architecture, here.variant)
        platform = Platform(here.os, parts[0]).normalised()
        if platform.architecture not in _KNOWN_ARCHITECTURES:
            raise InvalidParameter(f'"{text}": unknown operating system or architecture: invalid argument')
        return platform
    return Platform(parts[0], parts[1], parts[2] if len(parts) == 3 else "").normalised()


class Descriptor(msgspec.Struct, rename="camel", omit_defaults=True, frozen=True, kw_only=True):
    """What points at a blob. ``size`` is bytes."""

    media_type: str = ""
    digest: Digest
    size: int
    urls: list[str] | None = None
    annotations: dict[str, str] | None = None
    data: str | None = None
    platform: Platform | None = None
    artifact_type: str | None = None


class Manifest(msgspec.Struct, rename="camel", omit_defaults=True, frozen=True, kw_only=True):
    schema_version: int
    media_type: str = ""
    artifact_type: str | None = None
    config: Descriptor
    layers: list[Descriptor] = []
    subject: Descriptor | None = None
    annotations: dict[str, str] | None = None


class Index(msgspec.Struct, rename="camel", omit_defaults=True, frozen=True, kw_only=True):
    schema_version: int
    media_type: str = ""
    artifact_type: str | None = None
    manifests: list[Descriptor] = []
    subject: Descriptor | None = None
    annotations: dict[str, str] | None = None


def decode(content: bytes, what: str) -> Manifest | Index:
    """Read a manifest or an index, whichever it is. Raises :class:`InvalidParameter`, naming ``what``."""
    try:
        document = msgspec.json.decode(content)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidParameter(f"{what} is malformed: {error}") from error
    if not isinstance(document, dict):
        raise InvalidParameter(f"{what} is not a JSON object")
    document = _without_nulls(document)
    if document.get("schemaVersion") == 1 or "fsLayers" in document:
        raise InvalidParameter(
            f"{what}: Docker Image Format v1 and Docker Image manifest version 2, schema 1 support has been removed"
        )
    # A document that could be read both ways means different images to different readers (CVE-2021-41190).
    if "manifests" in document and ("layers" in document or "config" in document):
        raise InvalidParameter(f"{what} is both a manifest and an index")
    try:
        if "manifests" in document or document.get("mediaType") in INDEX_TYPES:
            index = msgspec.convert({"schemaVersion": 2} | document, Index)
            _check(index.manifests, what, _INDEX_LIMIT)
            if index.media_type and index.media_type not in INDEX_TYPES:
                raise InvalidParameter(f"{what}: an index cannot have media type {index.media_type[:100]!r}")
            return index
        manifest = msgspec.convert(document, Manifest)
    except (msgspec.ValidationError, RecursionError) as error:
        raise InvalidParameter(f"{what} is malformed: {error}") from error
    _check([manifest.config, *manifest.layers], what, LAYER_LIMIT + 1)
    if manifest.media_type and manifest.media_type not in MANIFEST_TYPES:
        raise InvalidParameter(f"{what}: unsupported media type {manifest.media_type[:100]!r}")
    return manifest


def choose(index: Index, wanted: Platform) -> list[Descriptor]:
    """The index's images that fit ``wanted``, the best first; attestations and other attachments never do."""
    fitting: list[tuple[int, Descriptor]] = []
    for descriptor in index.manifests:
        if descriptor.media_type not in MANIFEST_TYPES | INDEX_TYPES | {""}:
            continue
        if (descriptor.annotations or {}).get("vnd.docker.reference.type"):
            continue
        offered = descriptor.platform
        if offered is None or not offered.architecture:
            fitting.append((2, descriptor))
        elif offered.satisfies(wanted):
            exact = offered.normalised().variant == wanted.normalised().variant
            fitting.append((0 if exact else 1, descriptor))
    return [descriptor for _, descriptor in sorted(fitting, key=lambda item: item[0])]


def _check(descriptors: list[Descriptor], what: str, limit: int) -> None:
    if len(descriptors) > limit:
        raise InvalidParameter(f"{what} refers to {len(descriptors)} blobs; the limit is {limit}")
    for descriptor in descriptors:
        if not is_digest(descriptor.digest):
            raise InvalidParameter(f"{what}: invalid digest {descriptor.digest[:100]!r}")
        if descriptor.size < 0:
            raise InvalidParameter(f"{what}: {descriptor.digest} has a negative size")


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value
