"""What the registry holds: repositories, the blobs and manifests linked into them, tags and their history.

The bytes lie in a :class:`~seacan.storage.blobs.Blobs`; this module keeps, in SQLite, which repository may read which
of them. Every decision that a concurrent push or a garbage collection could invalidate is taken inside one ``BEGIN
IMMEDIATE`` transaction, which also locks out other processes on the same folder: a blob is published together with its
link, and collected only while no link exists.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from seacan.errors import SeacanError
from seacan.registry.server.content import RegistryBlobs, digest_of, digest_of_file, is_digest
from seacan.storage.blobs import Blobs
from seacan.storage.digest import Digest

NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*", re.ASCII)
TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}", re.ASCII)
MANIFEST_LIMIT = 4 << 20
"""Bytes of a manifest; the specification asks for at least 4 MiB to be accepted."""

INDEX_TYPES = frozenset(
    ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
)
MANIFEST_TYPES = INDEX_TYPES | {
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
}
FOREIGN_LAYER_TYPES = frozenset(
    (
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    )
)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS repositories (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS links (
    repository INTEGER NOT NULL REFERENCES repositories ON DELETE CASCADE,
    digest TEXT NOT NULL, size INTEGER NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (repository, digest)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS links_by_digest ON links (digest);
CREATE TABLE IF NOT EXISTS manifests (
    repository INTEGER NOT NULL REFERENCES repositories ON DELETE CASCADE,
    digest TEXT NOT NULL, size INTEGER NOT NULL, media_type TEXT NOT NULL, at REAL NOT NULL,
    subject TEXT, artifact_type TEXT, annotations TEXT,
    PRIMARY KEY (repository, digest)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS manifests_by_digest ON manifests (digest);
CREATE INDEX IF NOT EXISTS manifests_by_subject ON manifests (repository, subject);
CREATE TABLE IF NOT EXISTS edges (
    repository INTEGER NOT NULL REFERENCES repositories ON DELETE CASCADE,
    manifest TEXT NOT NULL, child TEXT NOT NULL,
    PRIMARY KEY (repository, manifest, child)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS edges_by_child ON edges (repository, child);
CREATE TABLE IF NOT EXISTS tags (
    repository INTEGER NOT NULL REFERENCES repositories ON DELETE CASCADE,
    tag TEXT NOT NULL, digest TEXT NOT NULL,
    PRIMARY KEY (repository, tag)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS history (
    id INTEGER PRIMARY KEY, repository INTEGER NOT NULL REFERENCES repositories ON DELETE CASCADE,
    tag TEXT NOT NULL, digest TEXT, at REAL NOT NULL, actor TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS history_by_tag ON history (repository, tag, id);
"""


class RegistryError(SeacanError):
    """A refusal in the distribution specification's own terms: ``code`` (such as BLOB_UNKNOWN), message, status."""

    def __init__(self, status: int, code: str, message: str, detail: object = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.detail = detail


def name_unknown(name: str) -> RegistryError:
    return RegistryError(404, "NAME_UNKNOWN", "repository name not known to registry", {"name": name})


def blob_unknown(digest: str) -> RegistryError:
    return RegistryError(404, "BLOB_UNKNOWN", "blob unknown to registry", digest)


def manifest_unknown(reference: str) -> RegistryError:
    return RegistryError(404, "MANIFEST_UNKNOWN", "manifest unknown", {"reference": reference})


class Manifest(msgspec.Struct, frozen=True):
    """A stored manifest: what HTTP needs to answer with it."""

    digest: Digest
    size: int
    media_type: str


class Referrer(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A descriptor in the answer of the referrers API."""

    media_type: str
    digest: str
    size: int
    artifact_type: str | None = None
    annotations: dict[str, str] | None = None


class TagChange(msgspec.Struct, frozen=True):
    """One line of a tag's history; ``digest`` is None where the tag was deleted, ``at`` is seconds since 1970."""

    tag: str
    digest: str | None
    at: float
    actor: str


class Collected(msgspec.Struct, frozen=True):
    """What a garbage collection removed."""

    manifests: int
    blobs: int
    bytes: int


class _Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    media_type: str = ""
    digest: str = ""
    size: int = 0


class _Document(msgspec.Struct, frozen=True, rename="camel"):
    """The parts of a manifest or index that refer to something."""

    schema_version: int = 0
    media_type: str | None = None
    artifact_type: str | None = None
    config: _Descriptor | None = None
    layers: list[_Descriptor] | None = None
    blobs: list[_Descriptor] | None = None
    manifests: list[_Descriptor] | None = None
    subject: _Descriptor | None = None
    annotations: dict[str, str] | None = None


class Upload:
    """A blob on its way in, resumable after the server's restart: the file is all its state."""

    def __init__(self, ident: str, path: Path) -> None:
        self.ident = ident
        self.path = path
        self.busy = False
        self._hash = hashlib.sha256()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.size = 0
        while chunk := os.pread(self._file, 1 << 20, self.size):
            self._hash.update(chunk)
            self.size += len(chunk)

    def write(self, content: bytes) -> None:
        self._hash.update(content)
        view = memoryview(content)
        while view:
            written = os.pwrite(self._file, view, self.size)
            self.size += written
            view = view[written:]

    @property
    def digest(self) -> Digest:
        return Digest("sha256:" + self._hash.hexdigest())

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class Store:
    """A registry's folder ``root``.

    ``shared`` is the blob store of an engine on the same file system: a blob that both hold is kept once (a hard link).
    ``quota`` bounds the bytes of distinct blobs in all repositories. ``keep_history`` is how many past states of a tag
    protect their manifests from collection.
    """

    def __init__(
        self, root: Path, *, shared: Blobs | None = None, quota: int | None = None, keep_history: int = 10
    ) -> None:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.root = root
        self.blobs = RegistryBlobs(root / "blobs")
        self.shared = shared
        self.quota = quota
        self.keep_history = keep_history
        self._uploads_folder = root / "uploads"
        self._uploads_folder.mkdir(exist_ok=True, mode=0o700)
        self._uploads: dict[str, Upload] = {}
        self._db = sqlite3.connect(root / "registry.db", isolation_level=None, timeout=30)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute("PRAGMA foreign_keys = ON")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        for upload in self._uploads.values():
            upload.close()
        self._uploads.clear()
        self._db.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    # --- repositories -------------------------------------------------------------------------------------------

    def _repository(self, name: str) -> int:
        """The repository's row; raises NAME_UNKNOWN."""
        row = self._db.execute("SELECT id FROM repositories WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise name_unknown(name)
        return int(row[0])

    def _make_repository(self, name: str) -> int:
        self._db.execute("INSERT OR IGNORE INTO repositories (name) VALUES (?)", (name,))
        return self._repository(name)

    def repositories(self, limit: int, after: str = "") -> list[str]:
        """Names of repositories that hold a manifest, in order, at most ``limit``, greater than ``after``."""
        rows = self._db.execute(
            "SELECT name FROM repositories r WHERE name > ?"
            " AND EXISTS (SELECT 1 FROM manifests WHERE repository = r.id) ORDER BY name LIMIT ?",
            (after, limit),
        )
        return [name for (name,) in rows]

    # --- blobs --------------------------------------------------------------------------------------------------

    def blob(self, name: str, digest: Digest) -> int:
        """Size of a blob that is linked into the repository; raises BLOB_UNKNOWN."""
        row = self._db.execute(
            "SELECT l.size FROM links l JOIN repositories r ON r.id = l.repository WHERE r.name = ? AND l.digest = ?",
            (name, digest),
        ).fetchone()
        if row is None or not self.blobs.contains(digest):
            raise blob_unknown(digest)
        return int(row[0])

    def mount(self, name: str, digest: Digest, source: str) -> bool:
        """Link a blob of repository ``source`` into ``name``; False where it is not to be had."""
        with self._transaction() as db:
            try:
                size = self.blob(source, digest)
            except RegistryError:
                return False
            self._link(db, self._make_repository(name), digest, size)
            return True

    def delete_blob(self, name: str, digest: Digest) -> None:
        self.blob(name, digest)
        with self._transaction() as db:
            db.execute("DELETE FROM links WHERE repository = ? AND digest = ?", (self._repository(name), digest))
            self._discard(db, digest)

    def begin_upload(self, name: str) -> Upload:
        self._check_quota(0)
        ident = secrets.token_hex(16)
        folder = self._uploads_folder / name.replace("/", "%2F")
        folder.mkdir(exist_ok=True, mode=0o700)
        upload = Upload(ident, folder / ident)
        self._uploads[ident] = upload
        return upload

    def upload(self, name: str, ident: str) -> Upload:
        """An upload begun earlier in this repository, perhaps by an earlier process; raises BLOB_UPLOAD_UNKNOWN."""
        path = self._uploads_folder / name.replace("/", "%2F") / ident
        if not re.fullmatch(r"[0-9a-f]{32}", ident) or not path.is_file():
            raise RegistryError(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry", {"upload": ident})
        upload = self._uploads.get(ident)
        if upload is None:
            upload = self._uploads[ident] = Upload(ident, path)
        return upload

    def cancel_upload(self, upload: Upload) -> None:
        self._uploads.pop(upload.ident, None)
        upload.close()
        upload.path.unlink(missing_ok=True)

    def finish_upload(self, name: str, upload: Upload, digest: Digest) -> None:
        """Publish the upload as blob ``digest`` of the repository; raises DIGEST_INVALID, and keeps nothing then."""
        actual = upload.digest if digest.startswith("sha256:") else digest_of_file(upload.path, "sha512")
        if actual != digest:
            self.cancel_upload(upload)
            raise RegistryError(
                400, "DIGEST_INVALID", "provided digest did not match uploaded content", {"digest": digest}
            )
        try:
            self._check_quota(0 if self.blobs.contains(digest) else upload.size)
        except RegistryError:
            self.cancel_upload(upload)
            raise
        upload.close()
        with self._transaction() as db:
            self._publish(upload.path, digest)
            self._link(db, self._make_repository(name), digest, upload.size)
        self._uploads.pop(upload.ident, None)
        upload.path.unlink(missing_ok=True)

    def _publish(self, path: Path, digest: Digest) -> None:
        target = self.blobs.path(digest)
        if self.shared is not None and digest.startswith("sha256:") and not target.exists():
            with contextlib.suppress(OSError):  # not there, or another file system: our own copy then
                os.link(self.shared.path(digest), target)
                if target.stat().st_size == path.stat().st_size:
                    return
                target.unlink()
        os.replace(path, target)

    @staticmethod
    def _link(db: sqlite3.Connection, repository: int, digest: str, size: int) -> None:
        db.execute("INSERT OR REPLACE INTO links VALUES (?, ?, ?, ?)", (repository, digest, size, time.time()))

    def used(self) -> int:
        """Bytes of all distinct blobs and manifests."""
        (total,) = self._db.execute(
            "SELECT coalesce(sum(size), 0) FROM (SELECT digest, max(size) AS size FROM"
            " (SELECT digest, size FROM links UNION ALL SELECT digest, size FROM manifests) GROUP BY digest)"
        ).fetchone()
        return int(total)

    def _check_quota(self, more: int) -> None:
        if self.quota is not None and self.used() + more > self.quota:
            raise RegistryError(
                403, "DENIED", f"quota of {self.quota} bytes exceeded", {"used": self.used(), "requested": more}
            )

    # --- manifests ----------------------------------------------------------------------------------------------

    def manifest(self, name: str, reference: str) -> Manifest:
        """By tag or digest; raises NAME_UNKNOWN or MANIFEST_UNKNOWN."""
        repository = self._repository(name)
        digest = reference
        if ":" not in reference:
            row = self._db.execute(
                "SELECT digest FROM tags WHERE repository = ? AND tag = ?", (repository, reference)
            ).fetchone()
            if row is None:
                raise manifest_unknown(reference)
            digest = row[0]
        row = self._db.execute(
            "SELECT size, media_type FROM manifests WHERE repository = ? AND digest = ?", (repository, digest)
        ).fetchone()
        if row is None:
            raise manifest_unknown(reference)
        return Manifest(Digest(digest), row[0], row[1])

    def put_manifest(
        self,
        name: str,
        reference: str,
        content: bytes,
        media_type: str,
        *,
        tags: Sequence[str] = (),
        actor: str = "",
        check: bool = True,
    ) -> tuple[Digest, Digest | None]:
        """Store a manifest under a tag or its digest, and under ``tags``; returns its digest and its subject's.

        Everything it refers to must be in the repository already (``check``; a mirror knows better), except a subject
        and foreign layers. Raises MANIFEST_INVALID, MANIFEST_BLOB_UNKNOWN, DIGEST_INVALID, TAG_INVALID.
        """
        document, media_type = _parse(content, media_type)
        digest = digest_of(content, reference.partition(":")[0] if ":" in reference else "sha256")
        if ":" in reference and reference != digest:
            raise RegistryError(400, "DIGEST_INVALID", "provided digest did not match uploaded content", reference)
        tags = list(dict.fromkeys([reference, *tags] if ":" not in reference else tags))
        for tag in tags:
            if not TAG.fullmatch(tag):
                raise RegistryError(400, "TAG_INVALID", "manifest tag did not match URI", {"tag": tag})
        self._check_quota(len(content))
        # BuildKit's older form of a build cache is an index of plain blobs.
        listed = document.manifests or []
        children = [d.digest for d in listed if d.media_type in MANIFEST_TYPES or not d.media_type]
        others = [d for d in listed if d.media_type and d.media_type not in MANIFEST_TYPES]
        parts = [document.config, *(document.layers or ()), *(document.blobs or ()), *others]
        blobs = [d.digest for d in parts if d is not None and d.media_type not in FOREIGN_LAYER_TYPES]
        for child in (*children, *blobs, *((document.subject.digest,) if document.subject else ())):
            if not is_digest(child):
                raise RegistryError(400, "MANIFEST_INVALID", "manifest invalid", f"invalid digest {child!r}")
        subject = Digest(document.subject.digest) if document.subject else None
        artifact_type = document.artifact_type or (document.config.media_type if document.config else None)
        with self._transaction() as db:
            repository = self._make_repository(name)
            if check:
                self._check_references(repository, children, blobs)
            self.blobs.store(content, digest)
            db.execute(
                "INSERT OR REPLACE INTO manifests VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    repository, digest, len(content), media_type, time.time(), subject, artifact_type,
                    msgspec.json.encode(document.annotations).decode() if document.annotations else None,
                ),
            )  # fmt: skip
            db.executemany(
                "INSERT OR IGNORE INTO edges VALUES (?, ?, ?)",
                [(repository, digest, child) for child in {*children, *blobs}],
            )
            for tag in tags:
                self._tag(db, repository, tag, digest, actor)
        return digest, subject

    def _check_references(self, repository: int, children: list[str], blobs: list[str]) -> None:
        for child in children:
            if not self._db.execute(
                "SELECT 1 FROM manifests WHERE repository = ? AND digest = ?", (repository, child)
            ).fetchone():
                raise RegistryError(404, "MANIFEST_BLOB_UNKNOWN", "manifest unknown to registry", {"digest": child})
        for blob in blobs:
            linked = self._db.execute(
                "SELECT 1 FROM links WHERE repository = ? AND digest = ?", (repository, blob)
            ).fetchone()
            if not linked or not self.blobs.contains(Digest(blob)):
                raise RegistryError(404, "MANIFEST_BLOB_UNKNOWN", "blob unknown to registry", {"digest": blob})

    def delete_manifest(self, name: str, reference: str, *, actor: str = "") -> None:
        """By tag: the tag alone. By digest: the manifest, and every tag that names it."""
        manifest = self.manifest(name, reference)
        with self._transaction() as db:
            repository = self._repository(name)
            if ":" not in reference:
                db.execute("DELETE FROM tags WHERE repository = ? AND tag = ?", (repository, reference))
                self._record(db, repository, reference, None, actor)
                return
            tags = db.execute(
                "DELETE FROM tags WHERE repository = ? AND digest = ? RETURNING tag", (repository, manifest.digest)
            ).fetchall()
            for (tag,) in tags:
                self._record(db, repository, tag, None, actor)
            self._delete_manifest(db, repository, manifest.digest)

    def _delete_manifest(self, db: sqlite3.Connection, repository: int, digest: str) -> int:
        db.execute("DELETE FROM manifests WHERE repository = ? AND digest = ?", (repository, digest))
        db.execute("DELETE FROM edges WHERE repository = ? AND manifest = ?", (repository, digest))
        return self._discard(db, Digest(digest))

    def _discard(self, db: sqlite3.Connection, digest: Digest) -> int:
        """Remove a blob that no repository holds any more; the transaction keeps pushes out. Returns bytes freed."""
        held = db.execute(
            "SELECT 1 FROM links WHERE digest = ? UNION ALL SELECT 1 FROM manifests WHERE digest = ?", (digest, digest)
        ).fetchone()
        if held or not self.blobs.contains(digest):
            return 0
        size = self.blobs.size(digest)
        self.blobs.remove(digest)
        return size

    def referrers(self, name: str, digest: Digest, artifact_type: str | None = None) -> list[Referrer]:
        """Manifests of the repository whose subject is ``digest``; none for what the repository does not know."""
        rows = self._db.execute(
            "SELECT m.media_type, m.digest, m.size, m.artifact_type, m.annotations FROM manifests m"
            " JOIN repositories r ON r.id = m.repository WHERE r.name = ? AND m.subject = ? ORDER BY m.at, m.digest",
            (name, digest),
        )
        found = [
            Referrer(media_type, child, size, kind, msgspec.json.decode(notes) if notes else None)
            for media_type, child, size, kind, notes in rows
        ]
        return [referrer for referrer in found if artifact_type is None or referrer.artifact_type == artifact_type]

    # --- tags ---------------------------------------------------------------------------------------------------

    def tags(self, name: str, limit: int | None = None, after: str = "") -> list[str]:
        """Tags in lexical order, greater than ``after``; raises NAME_UNKNOWN."""
        rows = self._db.execute(
            "SELECT tag FROM tags WHERE repository = ? AND tag > ? ORDER BY tag LIMIT ?",
            (self._repository(name), after, -1 if limit is None else limit),
        )
        return [tag for (tag,) in rows]

    def _tag(self, db: sqlite3.Connection, repository: int, tag: str, digest: str, actor: str) -> None:
        row = db.execute("SELECT digest FROM tags WHERE repository = ? AND tag = ?", (repository, tag)).fetchone()
        if row is not None and row[0] == digest:
            return
        db.execute("INSERT OR REPLACE INTO tags VALUES (?, ?, ?)", (repository, tag, digest))
        self._record(db, repository, tag, digest, actor)

    @staticmethod
    def _record(db: sqlite3.Connection, repository: int, tag: str, digest: str | None, actor: str) -> None:
        db.execute(
            "INSERT INTO history (repository, tag, digest, at, actor) VALUES (?, ?, ?, ?, ?)",
            (repository, tag, digest, time.time(), actor),
        )

    def history(self, name: str, tag: str | None = None) -> list[TagChange]:
        """What a repository's tag (or all its tags) named over time, the newest first; raises NAME_UNKNOWN."""
        rows = self._db.execute(
            "SELECT tag, digest, at, actor FROM history"
            " WHERE repository = ? AND (? IS NULL OR tag = ?) ORDER BY id DESC",
            (self._repository(name), tag, tag),
        )
        return [TagChange(*row) for row in rows]

    def rollback(self, name: str, tag: str, steps: int, *, actor: str = "") -> Digest:
        """Point the tag at what it named ``steps`` changes ago; the rollback is itself a change. Returns the digest."""
        changes = self.history(name, tag)
        if steps < 1 or steps >= len(changes):
            raise RegistryError(
                404, "MANIFEST_UNKNOWN", f"tag {name}:{tag} has {max(len(changes) - 1, 0)} earlier states, not {steps}"
            )
        digest = changes[steps].digest
        if digest is None:
            raise RegistryError(409, "MANIFEST_UNKNOWN", f"tag {name}:{tag} did not exist {steps} changes ago")
        self.manifest(name, digest)
        with self._transaction() as db:
            self._tag(db, self._repository(name), tag, digest, actor)
        return Digest(digest)

    # --- garbage ------------------------------------------------------------------------------------------------

    def collect(self, *, untagged: bool = False, grace: float = 3600.0, dry_run: bool = False) -> Collected:
        """Remove blobs that no manifest of their repository refers to, and abandoned uploads.

        Nothing younger than ``grace`` seconds is touched: it protects a push that has its blobs up and its manifest
        not. With ``untagged`` also manifests that no tag, index, subject or kept history reaches. Each repository is
        one transaction, so pushes go on in between.
        """
        before = time.time() - grace
        manifests = blobs = freed = 0
        for (repository,) in self._db.execute("SELECT id FROM repositories").fetchall():
            with self._transaction() as db:
                if untagged:
                    for digest in self._unreachable(db, repository, before):
                        manifests += 1
                        if not dry_run:
                            freed += self._delete_manifest(db, repository, digest)
                orphans = db.execute(
                    "SELECT digest, size FROM links l WHERE repository = ? AND at < ? AND NOT EXISTS"
                    " (SELECT 1 FROM edges WHERE repository = l.repository AND child = l.digest)",
                    (repository, before),
                ).fetchall()
                for digest, size in orphans:
                    blobs += 1
                    if dry_run:
                        freed += size
                        continue
                    db.execute("DELETE FROM links WHERE repository = ? AND digest = ?", (repository, digest))
                    freed += self._discard(db, Digest(digest))
        if not dry_run:
            self._collect_files(before)
        return Collected(manifests, blobs, freed)

    def _unreachable(self, db: sqlite3.Connection, repository: int, before: float) -> list[str]:
        reached = {digest for (digest,) in db.execute("SELECT digest FROM tags WHERE repository = ?", (repository,))}
        for (tag,) in db.execute("SELECT DISTINCT tag FROM history WHERE repository = ?", (repository,)).fetchall():
            rows = db.execute(
                "SELECT digest FROM history WHERE repository = ? AND tag = ? AND digest IS NOT NULL"
                " ORDER BY id DESC LIMIT ?",
                (repository, tag, self.keep_history),
            )
            reached |= {digest for (digest,) in rows}
        edges: dict[str, list[str]] = {}
        for parent, child in db.execute("SELECT manifest, child FROM edges WHERE repository = ?", (repository,)):
            edges.setdefault(parent, []).append(child)
        present = {}
        for digest, at, subject in db.execute(
            "SELECT digest, at, subject FROM manifests WHERE repository = ?", (repository,)
        ):
            present[digest] = at
            if subject is not None:
                edges.setdefault(subject, []).append(digest)
        frontier = [*reached, *(digest for digest, at in present.items() if at >= before)]
        reached.update(frontier)
        while frontier:
            for child in edges.get(frontier.pop(), ()):
                if child not in reached:
                    reached.add(child)
                    frontier.append(child)
        return [digest for digest in present if digest not in reached]

    def _collect_files(self, before: float) -> None:
        """Files that no row names: left by a crash between rename and commit, or an upload nobody finished."""
        for digest in list(self.blobs):
            with self._transaction() as db, contextlib.suppress(FileNotFoundError):
                if self.blobs.path(digest).stat().st_mtime < before:
                    self._discard(db, digest)
        for path in self._uploads_folder.glob("*/*"):
            with contextlib.suppress(FileNotFoundError):
                upload = self._uploads.get(path.name)
                if path.stat().st_mtime < before and not (upload and upload.busy):
                    if upload:
                        self.cancel_upload(upload)
                    path.unlink(missing_ok=True)


def _parse(content: bytes, media_type: str) -> tuple[_Document, str]:
    """A manifest's references, and its media type; raises MANIFEST_INVALID."""

    def invalid(why: str) -> RegistryError:
        return RegistryError(400, "MANIFEST_INVALID", "manifest invalid", why)

    if len(content) > MANIFEST_LIMIT:
        raise RegistryError(413, "SIZE_INVALID", f"manifest is larger than {MANIFEST_LIMIT} bytes")
    try:
        raw: Any = msgspec.json.decode(content)
        if isinstance(raw, dict) and ("fsLayers" in raw or raw.get("schemaVersion") == 1):
            raise invalid("schema 1 manifests are not supported")
        document = msgspec.convert(raw, _Document)
    except (msgspec.DecodeError, RecursionError) as error:
        raise invalid(str(error)) from error
    media_type = media_type.partition(";")[0].strip() or (document.media_type or "")
    if document.media_type is not None and document.media_type != media_type:
        raise invalid(f"mediaType is {document.media_type}, Content-Type is {media_type}")
    if not media_type:
        raise invalid("no media type")
    if document.schema_version != 2:
        raise invalid(f"schemaVersion is {document.schema_version}, not 2")
    if media_type in INDEX_TYPES and (document.layers or document.config):
        raise invalid("an index has no config and no layers")  # CVE-2021-41190: one document, two meanings
    if media_type in MANIFEST_TYPES - INDEX_TYPES:
        if document.manifests:
            raise invalid("an image manifest has no manifests")
        if document.config is None or document.layers is None:
            raise invalid("an image manifest has a config and layers")
    return document, media_type
