"""Indexes ("manifest lists") that images came in: which platforms of one name are here, and what is attached to them.

An index is kept as the blob it came as, so that it can be pushed and saved again unchanged. The images of an index that
are here are its *members*; a tag set from an index means all of them. Attestations travel with the image they are
about: their blobs are its *attachments*.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec

from seacan.errors import InvalidParameter
from seacan.images import manifest as manifests
from seacan.images.manifest import Descriptor, Index, Manifest
from seacan.storage.blobs import BlobMissing, Blobs
from seacan.storage.database import Database
from seacan.storage.digest import Digest

SCHEMA = """
    ALTER TABLE image_tags ADD COLUMN source TEXT;
    CREATE INDEX image_tags_by_source ON image_tags (source);
    CREATE TABLE image_indexes (
        digest TEXT NOT NULL,
        image TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
        manifest TEXT NOT NULL,
        PRIMARY KEY (digest, image)
    ) WITHOUT ROWID;
    CREATE INDEX image_indexes_by_image ON image_indexes (image);
    CREATE INDEX image_indexes_by_manifest ON image_indexes (manifest);
    CREATE TABLE image_attachments (
        image TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
        blob TEXT NOT NULL,
        PRIMARY KEY (image, blob)
    ) WITHOUT ROWID;
    CREATE INDEX image_attachments_by_blob ON image_attachments (blob);
"""
"""``image_tags.source``: the digest of the index or manifest that the tag was set from; NULL where there is none."""

_DEPTH = 4
_REFERENCE_TYPE = "vnd.docker.reference.type"
_REFERENCE_DIGEST = "vnd.docker.reference.digest"
ATTESTATION_LIMIT = 16
"""Attestation manifests of one image that are kept; more would be a way to fill the disk."""

Kind = Literal["image", "attestation", "index", "unknown"]


class Entry(msgspec.Struct, frozen=True):
    """One manifest of an index, and what of it is here.

    ``image`` is the member it describes, ``content`` the blobs it ties together (none where the manifest itself is
    missing), ``available`` whether all of it is here, ``attests`` the manifest that an attestation is about.
    """

    descriptor: Descriptor
    kind: Kind
    image: Digest | None
    content: list[Descriptor]
    available: bool
    attests: Digest | None


class Indexes:
    """What is known of indexes. Images are registered first (:class:`seacan.images.store.Images` has the tables)."""

    def __init__(self, database: Database, blobs: Blobs) -> None:
        self._database = database
        self._blobs = blobs

    def record(self, digest: Digest, image: Digest, manifest: Digest, attachments: Iterable[Digest]) -> None:
        """Say that the image came in the index ``digest`` as ``manifest``; ``attachments`` are blobs to keep with it.

        The index is one of these, and those between it and the manifest are.
        """
        self._database.execute("INSERT OR REPLACE INTO image_indexes VALUES (?, ?, ?)", (digest, image, manifest))
        for blob in {digest, *attachments}:
            self._database.execute("INSERT OR IGNORE INTO image_attachments VALUES (?, ?)", (image, blob))

    def members(self, digest: Digest) -> list[Digest]:
        """The images of an index that are here."""
        rows = self._database.execute("SELECT image FROM image_indexes WHERE digest = ? ORDER BY image", (digest,))
        return [row[0] for row in rows]

    def attachments(self, image: Digest) -> set[Digest]:
        """The blobs that are kept because the image is."""
        return {
            row[0] for row in self._database.execute("SELECT blob FROM image_attachments WHERE image = ?", (image,))
        }

    def names_held(self, image: Digest) -> list[tuple[str, str, str]]:
        """Names (repository, tag, digest) that mean an index this image is a member of."""
        return self._database.execute(
            """
            SELECT name, tag, '' FROM image_tags
            WHERE source IN (SELECT digest FROM image_indexes WHERE image = ?1)
            UNION ALL
            SELECT name, '', digest FROM image_digests
            WHERE digest IN (SELECT digest FROM image_indexes WHERE image = ?1)
            """,
            (image,),
        ).fetchall()

    def is_named(self, digest: Digest) -> bool:
        """Whether a tag or a repository's digest means this index."""
        return bool(
            self._database.execute(
                "SELECT EXISTS (SELECT 1 FROM image_tags WHERE source = ?1) "
                "OR EXISTS (SELECT 1 FROM image_digests WHERE digest = ?1)",
                (digest,),
            ).fetchone()[0]
        )

    def entries(self, digest: Digest) -> list[Entry]:
        """Everything an index refers to, once and in its order; an index inside it follows what it refers to itself.

        Raises :class:`BlobMissing` when the index is not kept, others when it or a manifest of it is damaged.
        """
        members = dict(
            self._database.execute("SELECT manifest, image FROM image_indexes WHERE digest = ?", (digest,)).fetchall()
        )
        return list(self._entries(digest, members, _DEPTH, set()))

    def _entries(self, digest: Digest, members: dict[str, str], depth: int, seen: set[Digest]) -> Iterator[Entry]:
        document = self._document(digest)
        if not isinstance(document, Index):
            raise InvalidParameter(f"{digest} is no index")
        for descriptor in document.manifests:
            if descriptor.digest in seen:
                continue  # or else a few indexes that name each other a thousand times would never come to an end
            seen.add(descriptor.digest)
            try:
                inner = self._document(descriptor.digest)
            except BlobMissing:
                yield Entry(descriptor, kind_of(descriptor), None, [], False, attested(descriptor))
                continue
            if isinstance(inner, Index):
                if depth:
                    yield from self._entries(descriptor.digest, members, depth - 1, seen)
                yield Entry(descriptor, "index", None, inner.manifests, bool(depth), None)
                continue
            content = [inner.config, *inner.layers]
            kind = kind_of(descriptor)
            image = members.get(descriptor.digest) if kind == "image" else None
            complete = all(self._blobs.contains(blob.digest) for blob in content)
            yield Entry(
                descriptor,
                kind,
                Digest(image) if image else None,
                content,
                complete and (kind != "image" or image is not None),
                attested(descriptor),
            )

    def _document(self, digest: Digest) -> Manifest | Index:
        return manifests.decode(self._blobs.read(digest), f"manifest {digest}")


def kind_of(descriptor: Descriptor) -> Kind:
    """What a descriptor in an index says that it points at."""
    if descriptor.media_type in manifests.INDEX_TYPES:
        return "index"
    if descriptor.media_type not in manifests.MANIFEST_TYPES | {""}:
        return "unknown"
    if (reference := (descriptor.annotations or {}).get(_REFERENCE_TYPE)) is not None:
        return "attestation" if reference == "attestation-manifest" else "unknown"
    return "image"


def attested(descriptor: Descriptor) -> Digest | None:
    """The manifest that an attestation is about."""
    annotations = descriptor.annotations or {}
    about = annotations.get(_REFERENCE_DIGEST)
    return Digest(about) if about and annotations.get(_REFERENCE_TYPE) == "attestation-manifest" else None


def attestations(index: Index, manifest: Digest) -> list[Descriptor]:
    """The attestations of one of an index's manifests."""
    return [item for item in index.manifests if attested(item) == manifest][:ATTESTATION_LIMIT]
