"""What a build has made as content that travels: manifests, attestations and an index, for registries and OCI layouts.

One platform without attestations is a manifest; anything more is an index, as BuildKit lays it out
(https://github.com/moby/buildkit/blob/master/docs/attestations/attestation-storage.md).
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, Self

import msgspec

from seacan.build import provenance
from seacan.build.graph import Vertex
from seacan.build.provenance import Facts
from seacan.engine.buildarchives import archive
from seacan.errors import InvalidParameter, NotFound, Unsupported
from seacan.images import manifest as manifests
from seacan.images import reference as references
from seacan.images.manifest import Descriptor, Index, Manifest, Platform, parse_platform
from seacan.images.save import archive_blobs, tar_member
from seacan.images.store import LayerBlob, Lease
from seacan.registry.copy import Stored
from seacan.storage import digest as digests
from seacan.storage.compression import GZIP, Encoding
from seacan.storage.digest import Digest
from seacan.truth import truth

if TYPE_CHECKING:
    from seacan.engine.builds import Outcome
    from seacan.engine.engine import Engine

IN_TOTO = "application/vnd.in-toto+json"
_REFERENCE_TYPE = "vnd.docker.reference.type"
_REFERENCE_DIGEST = "vnd.docker.reference.digest"
_ATTESTATION = "attestation-manifest"
_ATTESTATION_ARTIFACT = "application/vnd.docker.attestation.manifest.v1+json"
_UNKNOWN = Platform("unknown", "unknown")
_EMPTY = b"{}"
_EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
_ANNOTATION = re.compile(r"annotation(?:-([a-z-]+))?(?:\[([A-Za-z0-9_/-]+)\])?\.(\S+)")
_LEVELS = ("manifest", "manifest-descriptor", "index", "index-descriptor")

Level = Literal["manifest", "manifest-descriptor", "index", "index-descriptor"]


@dataclass(frozen=True)
class Annotation:
    """One ``--annotation``; ``platform`` None means all."""

    level: Level
    platform: Platform | None
    key: str
    value: str


@dataclass(frozen=True)
class Form:
    """In what form an output is wanted, by the attributes of its exporter."""

    names: tuple[str, ...] = ()
    oci_types: bool = True
    oci_artifact: bool = False
    annotations: tuple[Annotation, ...] = ()
    encoding: Encoding = GZIP

    @classmethod
    def read(cls, attributes: Mapping[str, str]) -> Self:
        """:raises InvalidParameter: an attribute is malformed. :raises Unsupported: or nothing we do."""
        encoding = Encoding.read(attributes)
        if boolean(attributes, "registry.insecure", False):
            raise Unsupported("registry.insecure is not supported: name the registry in insecure-registries instead")
        found = []
        for key, value in attributes.items():
            match = _ANNOTATION.fullmatch(key)
            if match is None:
                continue
            level = match[1] or "manifest"
            if level not in _LEVELS:
                raise InvalidParameter(f"unrecognized annotation type {level}")
            platform = parse_platform(match[2]) if match[2] else None
            found.append(Annotation(level, platform, match[3], value))  # type: ignore[arg-type]
        form = cls(
            tuple(name for name in attributes.get("name", "").split(",") if name),
            boolean(attributes, "oci-mediatypes", True),
            boolean(attributes, "oci-artifact", False),
            tuple(found),
            encoding,
        )
        if not form.oci_types and any(each.level != "manifest" for each in found):
            raise InvalidParameter('cannot export annotations with "oci-mediatypes=false"')
        return form

    def annotated(self, level: Level, platform: Platform | None = None) -> dict[str, str] | None:
        """The annotations of a document, or None for none."""
        return {
            each.key: each.value
            for each in self.annotations
            if each.level == level
            and (each.platform is None or (platform is not None and platform.satisfies(each.platform)))
        } or None

    @property
    def compressed(self) -> bool:
        """Is something said of how layers are compressed?"""
        return self.encoding != GZIP

    @property
    def of_index(self) -> bool:
        """Is something said of the index?"""
        return any(each.level.startswith("index") for each in self.annotations)


def boolean(attributes: Mapping[str, str], name: str, default: bool) -> bool:
    """An attribute that is a truth value; there without one it is true. :raises InvalidParameter:"""
    if name not in attributes:
        return default
    value = truth(attributes[name] or "true")
    if value is None:
        raise InvalidParameter(f"non-bool value specified for {name}")
    return value


@dataclass(frozen=True)
class Product:
    """One platform's part of an output. ``facts`` become its provenance."""

    outcome: Outcome
    platform: Platform
    facts: Facts | None = None

    @property
    def attested(self) -> bool:
        return self.facts is not None or bool(self.outcome.scans)


@dataclass(eq=False)
class Part:
    """One platform's image in a content."""

    config: Digest
    manifest: Descriptor
    layers: list[LayerBlob]
    attachments: list[Digest] = field(default_factory=list)
    """Everything that states something of it."""


@dataclass(eq=False)
class Content:
    """Documents and layers below one manifest or index, the lowest first; a place that they can be copied from.

    Its lease keeps the layers' archives until :meth:`close`.
    """

    engine: Engine
    lease: Lease
    root: Descriptor = field(default_factory=lambda: Descriptor(digest=Digest(""), size=0))
    parts: list[Part] = field(default_factory=list)
    blobs: dict[Digest, Descriptor] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    created: str = ""
    _documents: dict[Digest, bytes] = field(default_factory=dict)

    def add(self, document: bytes, media_type: str) -> Descriptor:
        digest = digests.of(document)
        descriptor = Descriptor(media_type=media_type, digest=digest, size=len(document))
        self.blobs[digest] = descriptor
        self._documents[digest] = document
        return descriptor

    async def manifest(self, reference: str) -> tuple[bytes, str]:
        digest = Digest(reference)
        if digest not in self._documents:
            raise NotFound(f"manifest {reference} is no part of the build's result")
        return self._documents[digest], self.blobs[digest].media_type

    async def blob(self, descriptor: Descriptor) -> AsyncIterator[bytes]:
        document = self._documents.get(descriptor.digest)
        if document is not None:
            yield document
            return
        async for piece in Stored(self.engine.images.blobs).blob(descriptor):
            yield piece

    def told(self) -> list[tuple[Digest, str]]:
        """Each document and what it is, for progress."""
        told: list[tuple[Digest, str]] = []
        for digest in self._documents:
            media_type = self.blobs[digest].media_type
            if media_type in manifests.INDEX_TYPES:
                told.append((digest, "manifest list"))
            elif media_type in (manifests.OCI_CONFIG, manifests.DOCKER_CONFIG) and any(
                part.config == digest for part in self.parts
            ):
                told.append((digest, "config"))
            elif media_type in manifests.MANIFEST_TYPES:
                own = any(part.manifest.digest == digest for part in self.parts)
                told.append((digest, "manifest" if own else "attestation manifest"))
        return told

    def keep(self) -> None:
        """Have the documents in the engine's blob store."""
        for digest, document in self._documents.items():
            self.lease.add(digest)
            self.engine.images.blobs.put(document)

    async def archive(self, *, docker: bool = False) -> AsyncIterator[bytes]:
        """An OCI layout as a tar; with ``docker`` also what ``docker load`` has always read."""
        async for piece in archive_blobs(self.engine.images, dict.fromkeys(self.blobs) | self._documents):
            yield piece
        for name, content in self.layout(docker=docker).items():
            yield tar_member(name.encode(), content)
        yield bytes(1024)

    def layout(self, *, docker: bool = False) -> dict[str, bytes]:
        """The files of a layout beside its blobs."""
        named = []
        for name in self.names or ("",):
            annotations = dict(self.root.annotations or {}) | {"org.opencontainers.image.created": self.created}
            if name:
                reference = references.parse(name).with_default_tag()
                annotations |= {
                    "io.containerd.image.name": str(reference),
                    "org.opencontainers.image.ref.name": reference.tag,
                }
            named.append(msgspec.structs.replace(self.root, annotations=annotations))
        index = Index(schema_version=2, media_type=manifests.OCI_INDEX, manifests=named)
        files = {"index.json": msgspec.json.encode(index), "oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}
        if docker:
            tags = [references.parse(name).with_default_tag().familiar for name in self.names]
            listing = [
                {
                    "Config": _blob_path(part.config),
                    "RepoTags": tags or None,
                    "Layers": [_blob_path(each.digest) for each in part.layers],
                }
                for part in self.parts
            ]
            files["manifest.json"] = msgspec.json.encode(listing)
        return files

    def close(self) -> None:
        held = self.lease.names()
        self.lease.release()
        self.engine.images.collect(held)


def _blob_path(digest: Digest) -> str:
    return f"blobs/sha256/{digests.hexadecimal(digest)}"


def check(products: Sequence[Product], form: Form, *, index: bool) -> None:
    """See that what is asked of an output goes together.

    :raises InvalidParameter: in BuildKit's words.
    """
    for each in form.annotations:
        if each.platform is not None and not any(one.platform.satisfies(each.platform) for one in products):
            raise InvalidParameter(f"invalid annotation: no platform {each.platform} found in source")
    if not index and form.of_index:
        raise InvalidParameter("index annotations not supported for single platform export")
    if index and not form.oci_types and any(one.attested for one in products):
        raise InvalidParameter('cannot export attestations with "oci-mediatypes=false"')


async def assemble(
    engine: Engine, products: Sequence[Product], form: Form, *, index: bool, inline: bool = False
) -> Content:
    """The content of an output that :func:`check` has let pass: an index, or the one manifest."""
    content = Content(engine, Lease(engine.images._leases), names=form.names)
    try:
        images: list[Descriptor] = []
        attestations: list[Descriptor] = []
        for product in products:
            image, layers = await _image(engine, content, product, form, inline=inline)
            described = form.annotated("manifest-descriptor", product.platform)
            image = msgspec.structs.replace(image, platform=product.platform, annotations=described)
            images.append(image)
            if product.attested and index:
                attestations.append(_attestations(content, product, form, image, layers))
        if index:
            document = Index(
                schema_version=2,
                media_type=manifests.OCI_INDEX if form.oci_types else manifests.DOCKER_LIST,
                manifests=images + attestations,
                annotations=form.annotated("index"),
            )
            root = content.add(msgspec.json.encode(document), document.media_type)
            content.root = msgspec.structs.replace(root, annotations=form.annotated("index-descriptor"))
        else:
            content.root = images[0]
        epoch = products[0].outcome.converted.epoch
        moment = datetime.now(UTC) if epoch is None else datetime.fromtimestamp(epoch, UTC)
        content.created = moment.strftime("%Y-%m-%dT%H:%M:%SZ")
    except BaseException:
        content.close()
        raise
    return content


async def _image(
    engine: Engine, content: Content, product: Product, form: Form, *, inline: bool
) -> tuple[Descriptor, list[Descriptor]]:
    outcome = product.outcome
    diff_ids = await engine.builds.diff_ids(outcome.layers)
    chain = digests.chain_ids(diff_ids)
    layers: list[Descriptor] = []
    blobs: list[LayerBlob] = []
    for layer, chain_id in zip(outcome.layers, chain, strict=True):
        blob = await archive(engine, layer, content.lease, form.encoding, engine.images.layer_blob(chain_id))
        blobs.append(blob)
        compression = manifests.layer_compression(blob.media_type)
        if not compression and not form.oci_types:
            raise Unsupported(f"a layer of type {blob.media_type} cannot be in a manifest of Docker's type")
        media_type = manifests.layer_type(compression, oci=form.oci_types) if compression else blob.media_type
        described = Descriptor(media_type=media_type, digest=blob.digest, size=blob.size)
        content.blobs[blob.digest] = described
        layers.append(described)
    document = await engine.builds.document(outcome, outcome.layers, diff_ids, inline=inline)
    config = content.add(document, manifests.OCI_CONFIG if form.oci_types else manifests.DOCKER_CONFIG)
    media_type = manifests.OCI_MANIFEST if form.oci_types else manifests.DOCKER_MANIFEST
    manifest = Manifest(
        schema_version=2,
        media_type=media_type,
        config=config,
        layers=layers,
        annotations=form.annotated("manifest", product.platform),
    )
    described = content.add(msgspec.json.encode(manifest), media_type)
    content.parts.append(Part(config.digest, described, blobs))
    return described, layers


def _attestations(
    content: Content, product: Product, form: Form, image: Descriptor, layers: Sequence[Descriptor]
) -> Descriptor:
    """The manifest with what is stated of an image."""
    predicates = [(scan.predicate_type, scan.predicate) for scan in product.outcome.scans]
    if product.facts is not None:
        facts = _with_layers(product.facts, product.outcome, layers)
        predicates.append((facts.wanted.predicate_type, provenance.predicate(facts)))
    statements = []
    for predicate_type, predicate in predicates:
        document = provenance.statement(predicate_type, predicate, form.names, product.platform, image.digest)
        described = content.add(document, IN_TOTO)
        statements.append(msgspec.structs.replace(described, annotations={"in-toto.io/predicate-type": predicate_type}))
    if form.oci_artifact:
        config = content.add(_EMPTY, _EMPTY_TYPE)
    else:
        rootfs = {"type": "layers", "diff_ids": [each.digest for each in statements]}
        document = msgspec.json.encode({"architecture": "unknown", "os": "unknown", "config": {}, "rootfs": rootfs})
        config = content.add(document, manifests.OCI_CONFIG)
    subject = Descriptor(media_type=image.media_type, digest=image.digest, size=image.size)
    manifest = Manifest(
        schema_version=2,
        media_type=manifests.OCI_MANIFEST,
        artifact_type=_ATTESTATION_ARTIFACT if form.oci_artifact else None,
        config=config,
        layers=statements,
        subject=subject if form.oci_artifact else None,
    )
    stored = content.add(msgspec.json.encode(manifest), manifests.OCI_MANIFEST)
    content.parts[-1].attachments = [stored.digest, config.digest, *(each.digest for each in statements)]
    return msgspec.structs.replace(
        stored,
        platform=_UNKNOWN,
        annotations={_REFERENCE_TYPE: _ATTESTATION, _REFERENCE_DIGEST: image.digest},
    )


def _with_layers(facts: Facts, outcome: Outcome, layers: Sequence[Descriptor]) -> Facts:
    """Say which steps the result's layers come from."""
    if facts.wanted.mode != "max":
        return facts
    known = {id(layer): described for layer, described in zip(outcome.layers, layers, strict=True)}
    found: dict[Vertex, Sequence[Descriptor]] = {}
    for vertex, result in outcome.made:
        chain = [known[id(layer)] for layer in result.layers if id(layer) in known]
        if chain and len(chain) == len(result.layers):
            found[vertex] = chain
    return replace(facts, layers=found)


def sources(outcome: Outcome) -> dict[Vertex, str]:
    """What git and HTTP sources of a build came to, as :attr:`Facts.sources` has it."""
    found: dict[Vertex, str] = {}
    for vertex, result in outcome.made:
        kind, _, rest = result.key.partition(":")
        if kind == "git":
            found[vertex] = rest.partition(":")[0]
        elif kind == "http":
            found[vertex] = ":".join(rest.split(":")[:2])
    return found
