"""The images the engine has: configurations, names, layers, and the rules by which they come and go.

An image is its configuration: the ID is the digest of those bytes, as dockerd computes it. Tags and digests are names
that point at IDs. Rows live in the engine's state database, bytes in the blob store, files in the layer store; what is
in the database exists, and everything else in the other two is swept away at the next start.
"""

from __future__ import annotations

import contextlib
import fnmatch
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from seacan.errors import Conflict, InvalidParameter, NotFound, SeacanError, System
from seacan.images import config as image_config
from seacan.images import indexes
from seacan.images import reference as references
from seacan.images.config import ImageConfig
from seacan.images.indexes import Indexes
from seacan.images.manifest import Platform, host_platform, parse_platform, platform_of
from seacan.images.progress import short_id
from seacan.images.reference import Reference
from seacan.storage import digest as digests
from seacan.storage.blobs import Blobs
from seacan.storage.database import Database
from seacan.storage.digest import ChainID, Digest
from seacan.storage.drivers import open_snapshots
from seacan.storage.layers import Layers
from seacan.storage.snapshots import Snapshots
from seacan.storage.trash import Trash
from seacan.storage.unpack import Limits
from seacan.storage.worker import Launcher

log = logging.getLogger(__name__)

_SCHEMA = (
    """
    CREATE TABLE images (
        id TEXT PRIMARY KEY,
        chain_id TEXT REFERENCES layers (chain_id),
        size INTEGER NOT NULL,
        created INTEGER NOT NULL,
        parent TEXT,
        last_tagged INTEGER,
        manifest TEXT
    ) WITHOUT ROWID;
    CREATE INDEX images_by_parent ON images (parent);
    CREATE TABLE image_layers (
        image TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
        position INTEGER NOT NULL,
        chain_id TEXT NOT NULL,
        blob TEXT,
        blob_size INTEGER,
        media_type TEXT,
        PRIMARY KEY (image, position)
    ) WITHOUT ROWID;
    CREATE INDEX image_layers_by_chain ON image_layers (chain_id);
    CREATE INDEX image_layers_by_blob ON image_layers (blob);
    CREATE TABLE image_tags (
        name TEXT NOT NULL,
        tag TEXT NOT NULL,
        image TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
        PRIMARY KEY (name, tag)
    ) WITHOUT ROWID;
    CREATE INDEX image_tags_by_image ON image_tags (image);
    CREATE TABLE image_digests (
        name TEXT NOT NULL,
        digest TEXT NOT NULL,
        image TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
        PRIMARY KEY (name, digest)
    ) WITHOUT ROWID;
    CREATE INDEX image_digests_by_image ON image_digests (image);
    """,
    indexes.SCHEMA,
)


class LayerBlob(msgspec.Struct, frozen=True):
    """A layer's archive as it travels: compressed or not."""

    digest: Digest
    size: int
    media_type: str


class Image(msgspec.Struct, frozen=True):
    """One image. ``size`` is bytes of all layers' files; times are nanoseconds since 1970 (0: unknown).

    ``tags`` and ``digests`` are familiar references (``busybox:latest``, ``busybox@sha256:…``).
    """

    id: Digest
    config: ImageConfig
    chain_id: ChainID | None
    tags: list[str]
    digests: list[str]
    size: int
    created: int
    parent: str
    last_tagged: int | None
    manifest: Digest | None

    @property
    def platform(self) -> Platform:
        return platform_of(self.config)


class ImageUser(msgspec.Struct, frozen=True):
    """A container made from an image (or that mounts it)."""

    container_id: str
    running: bool


class Removal(msgspec.Struct, frozen=True, rename="pascal", omit_defaults=True):
    """One line of what a removal did."""

    untagged: str = ""
    deleted: str = ""


class HistoryItem(msgspec.Struct, frozen=True, rename="pascal"):
    """One step of an image's history; ``created`` is seconds since 1970."""

    id: str
    created: int
    created_by: str
    tags: list[str] | None
    size: int
    comment: str


Emit = Callable[[str, str, str, Mapping[str, str]], object]
"""``emit(type, action, id, attributes)``: :meth:`seacan.engine.events.Events.emit`."""

Users = Callable[[str], Iterable[ImageUser]]
"""The containers that use the image with this ID."""


class Images:
    """The image store. Calls are made from the event loop's thread; what takes long is a coroutine elsewhere.

    ``emit`` and ``users`` are the engine's; set them before the first request.
    """

    def __init__(
        self,
        database: Database,
        blobs: Blobs,
        layers: Layers,
        snapshots: Snapshots,
        launcher: Launcher,
        *,
        emit: Emit = lambda _type, _action, _id, _attributes: None,
        users: Users = lambda _id: (),
    ) -> None:
        self.database = database
        self.blobs = blobs
        self.layers = layers
        self.snapshots = snapshots
        self.launcher = launcher
        self.emit = emit
        self.users = users
        self._leases: Counter[str] = Counter()
        self._configs: dict[str, ImageConfig] = {}
        database.migrate("images", _SCHEMA)
        self.indexes = Indexes(database, blobs)

    # --- finding ----------------------------------------------------------------------------------------------------

    def get(self, name: str, *, platform: Platform | str | None = None) -> Image:
        """The image called ``name``: a reference, an ID, or the beginning of one that fits no other image.

        ``platform`` (``linux/arm64``) chooses among the images of the index that the name means. Raises
        :class:`NotFound`, also where none is for that platform, and :class:`InvalidParameter`, in dockerd's words.
        """
        if not platform:
            return self._load(self.resolve(name))
        wanted = parse_platform(platform) if isinstance(platform, str) else platform
        family = [self._load(id) for id in self.family(name)]
        fitting = [image for image in family if image.platform.satisfies(wanted)]
        if not fitting:
            if len(family) > 1:
                raise NotFound(
                    f"image with reference {name} was found but does not provide the specified platform ({wanted})"
                )
            raise NotFound(
                f"image with reference {name} was found but its platform ({family[0].platform}) does not match the "
                f"specified platform ({wanted})"
            )
        variant = wanted.normalised().variant
        return min(fitting, key=lambda image: image.platform.normalised().variant != variant)

    def resolve(self, name: str) -> Digest:
        """Like :meth:`get`, the ID alone."""
        return self._find(name)[0]

    def family(self, name: str) -> list[Digest]:
        """The images that ``name`` means: the one that it means without a platform, then the others of its index."""
        id, source = self._find(name)
        return [id, *(member for member in self.indexes.members(source) if member != id)] if source else [id]

    def _find(self, name: str) -> tuple[Digest, Digest | None]:
        """An ID, and what the name was set from, if it is a name."""
        if references.is_identifier(name):
            name = f"sha256:{name}"
        if digests.is_digest(name):
            if self.known(name):
                return Digest(name), None
            if (found := self._by_manifest(name.removeprefix("sha256:"))) is not None:
                return found, None
            raise NotFound(f"No such image: {name}")
        reference = references.parse(name)
        if (found := self.lookup(reference)) is not None:
            return found, self.source(reference)
        if (found := self._by_prefix(name)) is not None:
            return found, None
        raise NotFound(f"No such image: {reference.with_default_tag().familiar}")

    def source(self, reference: Reference) -> Digest | None:
        """The digest of the index or manifest that a name was set from."""
        if reference.digest:
            return Digest(reference.digest)
        row = self.database.execute(
            "SELECT source FROM image_tags WHERE name = ? AND tag = ?",
            (reference.name, reference.with_default_tag().tag),
        ).fetchone()
        return Digest(row[0]) if row and row[0] else None

    def sources(self, id: Digest) -> list[Digest]:
        """What the image's names were set from."""
        rows = self.database.execute(
            "SELECT source FROM image_tags WHERE image = ?1 AND source IS NOT NULL "
            "UNION SELECT digest FROM image_digests WHERE image = ?1",
            (id,),
        )
        return [Digest(row[0]) for row in rows]

    def was_published(self, manifest: Digest) -> bool:
        """Whether a manifest is known under this digest elsewhere: to a registry, or in an index."""
        return bool(
            self.database.execute(
                "SELECT EXISTS (SELECT 1 FROM image_digests WHERE digest = ?1) "
                "OR EXISTS (SELECT 1 FROM image_indexes WHERE manifest = ?1)",
                (manifest,),
            ).fetchone()[0]
        )

    def relatives(self, id: Digest) -> list[Digest]:
        """The image and the unnamed ones that its names mean as well."""
        others = {member for source in self.sources(id) for member in self.indexes.members(source)} - {id}
        return [id, *sorted(other for other in others if not self.references(other))]

    def names_held(self, id: Digest) -> tuple[list[str], list[str]]:
        """The tags and digests, familiar, that mean an index which the image is of."""
        names = sorted((_reference(*row) for row in self.indexes.names_held(id)), key=str)
        return [name.familiar for name in names if name.tag], [name.familiar for name in names if name.digest]

    def is_held(self, id: Digest) -> bool:
        """Whether an image without names is there because a name means the index that it is of."""
        return bool(self.indexes.names_held(id)) and not self.references(id)

    def lookup(self, reference: Reference) -> Digest | None:
        """The ID a normalised reference points at; the digest counts where it has both tag and digest."""
        if reference.digest:
            row = self.database.execute(
                "SELECT image FROM image_digests WHERE name = ? AND digest = ?", (reference.name, reference.digest)
            ).fetchone()
        else:
            row = self.database.execute(
                "SELECT image FROM image_tags WHERE name = ? AND tag = ?",
                (reference.name, reference.with_default_tag().tag),
            ).fetchone()
        return Digest(row[0]) if row else None

    def _by_prefix(self, name: str) -> Digest | None:
        prefix = name.removeprefix("sha256:")
        if not re.fullmatch(r"[0-9a-f]{1,64}", prefix, re.ASCII):
            return None
        rows = self.database.execute(
            "SELECT id FROM images WHERE id >= ? AND id < ? LIMIT 2", (f"sha256:{prefix}", f"sha256:{prefix}g")
        ).fetchall()
        if not rows:
            return self._by_manifest(prefix)
        return Digest(rows[0][0]) if len(rows) == 1 else None

    def _by_manifest(self, prefix: str) -> Digest | None:
        """The image whose manifest's digest begins so: what ``docker images --tree`` shows for a platform."""
        if not re.fullmatch(r"[0-9a-f]{1,64}", prefix, re.ASCII):
            return None
        rows = self.database.execute(
            "SELECT id FROM images WHERE manifest >= ?1 AND manifest < ?2 "
            "UNION SELECT image FROM image_indexes WHERE manifest >= ?1 AND manifest < ?2 LIMIT 2",
            (f"sha256:{prefix}", f"sha256:{prefix}g"),
        ).fetchall()
        return Digest(rows[0][0]) if len(rows) == 1 else None

    def known(self, id: str) -> bool:
        """Whether there is an image with this ID."""
        return self.database.execute("SELECT 1 FROM images WHERE id = ?", (id,)).fetchone() is not None

    def _load(self, id: Digest) -> Image:
        row = self.database.execute(
            "SELECT chain_id, size, created, parent, last_tagged, manifest FROM images WHERE id = ?", (id,)
        ).fetchone()
        if row is None:
            raise NotFound(f"No such image: {id}")
        names = self.references(id)
        return Image(
            id,
            self.config(id),
            row[0],
            [name.familiar for name in names if name.tag],
            [name.familiar for name in names if name.digest],
            row[1],
            row[2],
            row[3] or "",
            row[4],
            row[5],
        )

    def config(self, id: Digest) -> ImageConfig:
        """The image's configuration, read once. Raises when the blob is missing or corrupt."""
        known = self._configs.get(id)
        if known is None:
            try:
                known = image_config.decode(self.blobs.read(id), f"configuration of image {id}")
            except SeacanError as error:
                raise System(f"image {id} is damaged: {error.message}") from error
            if len(self._configs) > 4096:
                self._configs.clear()
            self._configs[id] = known
        return known

    def references(self, id: Digest) -> list[Reference]:
        """Every name that points at the image, sorted as Docker does: tags and digests by their text."""
        rows = self.database.execute(
            "SELECT name, tag, '' FROM image_tags WHERE image = ?1 "
            "UNION ALL SELECT name, '', digest FROM image_digests WHERE image = ?1",
            (id,),
        ).fetchall()
        names = [_reference(*row) for row in rows]
        return sorted(names, key=str)

    def tags_of(self, repository: Reference) -> list[tuple[Digest, Reference]]:
        """Every tag of a repository and the ID it points at."""
        rows = self.database.execute(
            "SELECT image, tag FROM image_tags WHERE name = ? ORDER BY tag", (repository.name,)
        ).fetchall()
        return [(Digest(row[0]), repository.tagged(row[1])) for row in rows]

    def ids(self) -> list[Digest]:
        return [row[0] for row in self.database.execute("SELECT id FROM images")]

    def children(self, id: str) -> list[Digest]:
        """Images built on top of this one."""
        return [row[0] for row in self.database.execute("SELECT id FROM images WHERE parent = ?", (id,))]

    def descendants(self, id: str) -> set[Digest]:
        """Images built on top of this one, and on those."""
        rows = self.database.execute(
            "WITH RECURSIVE below (id) AS (SELECT id FROM images WHERE parent = ? "
            "UNION SELECT images.id FROM images JOIN below ON images.parent = below.id) SELECT id FROM below",
            (id,),
        )
        return {row[0] for row in rows}

    def layer_blobs(self, id: Digest) -> list[LayerBlob | None]:
        """The archives of the image's layers, lowest first; None where only the unpacked layer exists."""
        rows = self.database.execute(
            "SELECT blob, blob_size, media_type FROM image_layers WHERE image = ? ORDER BY position", (id,)
        ).fetchall()
        return [LayerBlob(*row) if row[0] else None for row in rows]

    def layer_blob(self, chain_id: ChainID) -> LayerBlob | None:
        """Some archive of the layer, if any image has kept one."""
        row = self.database.execute(
            "SELECT blob, blob_size, media_type FROM image_layers WHERE chain_id = ? AND blob IS NOT NULL LIMIT 1",
            (chain_id,),
        ).fetchone()
        return LayerBlob(*row) if row else None

    # --- making and naming ------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def lease(self) -> Iterator[Lease]:
        """Keep blobs and layers that no image refers to yet from being removed until the block ends."""
        lease = Lease(self._leases)
        try:
            yield lease
        finally:
            lease.release()

    def register(
        self,
        config: bytes,
        layers: Sequence[LayerBlob | None],
        *,
        manifest: Digest | None = None,
        parent: str = "",
    ) -> Image:
        """Make an image of a configuration whose layers are unpacked; the ID is the digest of ``config``.

        ``layers`` are the archives, lowest first (None where there is none), ``manifest`` a stored manifest that ties
        just these together. An image that exists already learns what is new.
        """
        document = image_config.decode(config)
        chain = digests.chain_ids(document.rootfs.diff_ids)
        if len(layers) != len(chain):
            raise InvalidParameter(
                f"invalid manifest, layers length mismatch: expected {len(layers)}, got {len(chain)}"
            )
        for chain_id in chain:
            if not self.layers.contains(chain_id):
                raise System(f"layer {chain_id} does not exist")
        size = sum(layer.size for layer in self.layers.stack(chain[-1])) if chain else 0
        id = self.blobs.put(config)
        with self.database.transaction():
            self.database.execute(
                """
                INSERT INTO images (id, chain_id, size, created, parent, manifest) VALUES (?, ?, ?, ?, ?, ?)
                ON CONFLICT (id) DO UPDATE SET
                    size = excluded.size,
                    parent = COALESCE(excluded.parent, parent), manifest = COALESCE(excluded.manifest, manifest)
                """,
                (id, chain[-1] if chain else None, size, document.created_ns, parent or None, manifest),
            )
            for position, (chain_id, blob) in enumerate(zip(chain, layers, strict=True)):
                self.database.execute(
                    """
                    INSERT INTO image_layers VALUES (?, ?, ?, ?, ?, ?)
                    ON CONFLICT (image, position) DO UPDATE SET
                        blob = excluded.blob, blob_size = excluded.blob_size, media_type = excluded.media_type
                    WHERE excluded.blob IS NOT NULL AND (blob IS NULL OR ?)
                    """,
                    (
                        id,
                        position,
                        chain_id,
                        blob.digest if blob else None,
                        blob.size if blob else None,
                        blob.media_type if blob else None,
                        manifest is not None,
                    ),
                )
        return self._load(id)

    def set_parent(self, id: Digest, parent: Digest) -> None:
        """Say that ``id`` was made from ``parent`` on this machine."""
        self.database.execute("UPDATE images SET parent = ? WHERE id = ?", (parent, id))

    def tag(self, name: str, reference: Reference) -> None:
        """Let ``reference`` point at the image called ``name``, whatever it pointed at before."""
        id, source = self._find(name)
        self.add_tag(id, reference, source=source)
        self.log_event("tag", id, reference.with_default_tag().familiar)

    def add_tag(self, id: Digest, reference: Reference, *, source: Digest | None = None) -> Digest | None:
        """Set a tag without an event; gives the ID it pointed at before, if another.

        ``source`` is the index or manifest that the image came in, where the tag is to mean that.
        """
        if reference.digest:
            raise InvalidParameter("refusing to create a tag with a digest reference")
        if reference.familiar_name == "sha256":
            raise InvalidParameter("refusing to create an ambiguous tag using digest algorithm as name")
        reference = reference.with_default_tag()
        with self.database.transaction():
            previous = self.lookup(reference)
            self.database.execute(
                "INSERT OR REPLACE INTO image_tags (name, tag, image, source) VALUES (?, ?, ?, ?)",
                (reference.name, reference.tag, id, source),
            )
            self.database.execute("UPDATE images SET last_tagged = ? WHERE id = ?", (time.time_ns(), id))
        return previous if previous != id else None

    def keeps_platform(self, id: Digest, reference: Reference, source: Digest) -> bool:
        """Whether a name that means the index ``source`` should go on meaning another image of it than ``id``.

        So it is when that one is this host's and ``id`` is not: who pulls a second platform still runs the first.
        """
        current = self.lookup(reference)
        if current is None or current == id or self.source(reference) != source:
            return False
        here = host_platform()
        try:
            fits = platform_of(self.config(current)).satisfies(here)
        except SeacanError:
            return False  # damaged: nothing is lost with it
        return fits and not platform_of(self.config(id)).satisfies(here)

    def add_digest(self, id: Digest, reference: Reference) -> None:
        """Record that the repository ``reference`` names knows the image under the digest ``reference`` carries."""
        self.database.execute(
            "INSERT OR REPLACE INTO image_digests VALUES (?, ?, ?)", (reference.name, reference.digest, id)
        )

    # --- removing ---------------------------------------------------------------------------------------------------

    def remove(self, name: str, *, force: bool = False, prune: bool = True) -> list[Removal]:
        """Untag, and delete when no name is left, by dockerd's rules; ``prune`` removes untagged parents too.

        Raises :class:`Conflict` when containers, children or other names stand in the way.
        """
        id = self.resolve(name)
        if self._by_manifest(name.removeprefix("sha256:")) == id and not self.references(id):
            name = id
        sources = self.sources(id)
        removals: list[Removal] = []
        self._remove(id, name, removals, force=force, prune=prune)
        for source in sources:
            self._release(source, removals, force=force)
        return removals

    def remove_platforms(
        self, name: str, platforms: Sequence[Platform], *, force: bool = False, prune: bool = True
    ) -> list[Removal]:
        """Remove the images for these platforms alone; the name goes with the last one.

        Raises as :meth:`remove` does.
        """
        unwanted = dict.fromkeys(self.get(name, platform=platform).id for platform in platforms)
        source = self._find(name)[1]
        removals: list[Removal] = []
        for member in unwanted:
            left = [other for other in self.family(name) if other != member]
            if not left or source is None:
                return [*removals, *self.remove(name, force=force, prune=prune)]
            named = self.database.execute("SELECT COUNT(*) FROM image_tags WHERE source = ?", (source,)).fetchone()[0]
            if named > 1 and not force:
                raise Conflict(
                    "Content will be removed from all images referencing this variant. Use --force to force delete."
                )
            self._check_conflict(member, active=False, stopped=not force)
            with self.database.transaction():
                for table, column in (("image_tags", "source"), ("image_digests", "digest")):
                    self.database.execute(
                        f"UPDATE {table} SET image = ? WHERE {column} = ? AND image = ?",  # noqa: S608
                        (left[0], source, member),
                    )
            if self.references(member):  # names of its own
                self.database.execute("DELETE FROM image_indexes WHERE digest = ? AND image = ?", (source, member))
            else:
                self._delete(member, removals, force=force, prune=prune, quiet=False)
        return removals

    def _release(self, source: Digest, removals: list[Removal], *, force: bool) -> None:
        """Remove the images that were here only because of an index that no name means any longer."""
        if self.indexes.is_named(source):
            return
        for member in self.indexes.members(source):
            if not self.references(member) and not self.is_held(member):
                with contextlib.suppress(Conflict):
                    self._delete(member, removals, force=force, prune=True, quiet=True)

    def _remove(self, id: Digest, name: str, removals: list[Removal], *, force: bool, prune: bool) -> None:
        names = self.references(id)
        quiet = False
        if not _is_id_prefix(id, name):
            if not force and _is_single(names):
                user = next((user for member in self.relatives(id) for user in self.users(member)), None)
                if user is not None:
                    raise Conflict(
                        f'conflict: unable to remove repository reference "{name}" (must force) - container '
                        f"{short_id(user.container_id)} is using its referenced image {short_id(id)}"
                    )
            wanted = references.parse(name).with_default_tag()
            if wanted.digest:
                wanted = msgspec.structs.replace(wanted, tag="")
            self._untag(wanted, removals)
            self.log_event("untag", id, id)
            names = self.references(id)
            if not wanted.digest and not any(other.tag and other.name == wanted.name for other in names):
                for other in [other for other in names if other.digest and other.name == wanted.name]:
                    self._untag(other, removals)
                    names.remove(other)
            if names:
                return
            quiet = True
        elif _is_single(names):
            self._check_conflict(id, active=False, stopped=not force)
            for other in names:
                self._untag(other, removals)
                self.log_event("untag", id, id)
        self._delete(id, removals, force=force, prune=prune, quiet=quiet)

    def _delete(self, id: Digest, removals: list[Removal], *, force: bool, prune: bool, quiet: bool) -> None:
        try:
            self._check_conflict(id, active=not force, stopped=not force)
        except _ImageInUse as conflict:
            if quiet and (self.references(id) or conflict.used):
                return
            raise
        row = self.database.execute("SELECT parent FROM images WHERE id = ?", (id,)).fetchone()
        for name in self.references(id):
            self._untag(name, removals)
            self.log_event("untag", id, id)
        self.emit("image", "delete", id, {"name": id})
        removals.append(Removal(deleted=id))
        removals.extend(Removal(deleted=chain_id) for chain_id in self._drop(id))
        parent = row[0] if row else None
        if prune and parent and self.known(parent):
            self._delete(Digest(parent), removals, force=False, prune=True, quiet=True)

    def _drop(self, id: Digest) -> list[ChainID]:
        """Delete an image's rows and what only it needed; the layers removed, topmost first."""
        rows = self.database.execute(
            "SELECT chain_id, blob FROM image_layers WHERE image = ? ORDER BY position DESC", (id,)
        ).fetchall()
        image = self.database.execute("SELECT manifest FROM images WHERE id = ?", (id,)).fetchone()
        documents = {row[0] for row in self.database.execute("SELECT digest FROM image_digests WHERE image = ?", (id,))}
        if image and image[0]:
            documents.add(image[0])
        rows_of_index = self.database.execute("SELECT manifest FROM image_indexes WHERE image = ?", (id,))
        documents |= {row[0] for row in rows_of_index} | self.indexes.attachments(id)
        self.database.execute("DELETE FROM images WHERE id = ?", (id,))
        self._configs.pop(id, None)
        removed = self._remove_layers(ChainID(row[0]) for row in rows)
        for blob in {row[1] for row in rows if row[1]} | documents | {id}:
            if not self._leases[blob] and not self._blob_wanted(blob):
                self.blobs.remove(Digest(blob))
        return removed

    def collect(self, names: Iterable[str], *, resumable: Collection[str] = ()) -> None:
        """Remove those of the named blobs and layers that nothing needs: what an operation brought and did not use.

        Blobs in ``resumable`` are kept for a while as downloads that need no more than to be finished.
        """
        names = list(dict.fromkeys(names))
        for name in names:
            if not digests.is_digest(name):
                continue
            if self._blob_wanted(name):
                self.blobs.settle(Digest(name))
            elif not self._leases[name]:
                if name in resumable:
                    self.blobs.withdraw(Digest(name))
                else:
                    self.blobs.remove(Digest(name))
        self._remove_layers(ChainID(name) for name in reversed(names))

    def expire_downloads(self, *, everything: bool = False) -> int:
        """Delete downloads that broke off days ago (or any), but those that go on just now; gives the bytes freed."""
        return self.blobs.expire(everything=everything, keep=self._leases)

    def collect_layers(self, chain_id: ChainID | None) -> list[ChainID]:
        """Remove the layers from ``chain_id`` down that nothing needs: after a snapshot on them is gone."""
        if chain_id is None or not self.layers.contains(chain_id):
            return []
        return self._remove_layers(layer.chain_id for layer in self.layers.stack(chain_id))

    def _remove_layers(self, chain: Iterable[ChainID]) -> list[ChainID]:
        removed: list[ChainID] = []
        for chain_id in chain:
            if self._leases[chain_id]:
                continue
            wanted = self.database.execute(
                "SELECT EXISTS (SELECT 1 FROM image_layers WHERE chain_id = ?1) "
                "OR EXISTS (SELECT 1 FROM snapshots WHERE parent = ?1) "
                "OR EXISTS (SELECT 1 FROM layers WHERE parent = ?1) "
                "OR EXISTS (SELECT 1 FROM layer_holds WHERE chain_id = ?1) "
                "OR NOT EXISTS (SELECT 1 FROM layers WHERE chain_id = ?1)",
                (chain_id,),
            ).fetchone()[0]
            if not wanted:
                self.layers.remove(chain_id)
                removed.append(chain_id)
        return removed

    def _blob_wanted(self, blob: str) -> bool:
        return bool(
            self.database.execute(
                "SELECT EXISTS (SELECT 1 FROM images WHERE id = ?1 OR manifest = ?1) "
                "OR EXISTS (SELECT 1 FROM image_layers WHERE blob = ?1) "
                "OR EXISTS (SELECT 1 FROM image_digests WHERE digest = ?1) "
                "OR EXISTS (SELECT 1 FROM image_indexes WHERE manifest = ?1) "
                "OR EXISTS (SELECT 1 FROM image_attachments WHERE blob = ?1)",
                (blob,),
            ).fetchone()[0]
        )

    def _untag(self, reference: Reference, removals: list[Removal]) -> None:
        if reference.digest:
            self.database.execute(
                "DELETE FROM image_digests WHERE name = ? AND digest = ?", (reference.name, reference.digest)
            )
        else:
            self.database.execute("DELETE FROM image_tags WHERE name = ? AND tag = ?", (reference.name, reference.tag))
        removals.append(Removal(untagged=reference.familiar))

    def _check_conflict(self, id: Digest, *, active: bool, stopped: bool) -> None:
        if self.children(id):
            raise _ImageInUse(id, "image has dependent child images", hard=True)
        users = list(self.users(id))
        for user in users:
            if user.running:
                raise _ImageInUse(
                    id,
                    f"image is being used by running container {short_id(user.container_id)}",
                    hard=True,
                    used=True,
                )
        if active and self.references(id):
            raise _ImageInUse(id, "image is referenced in multiple repositories")
        if stopped and users:
            raise _ImageInUse(
                id, f"image is being used by stopped container {short_id(users[0].container_id)}", used=True
            )

    # --- telling ----------------------------------------------------------------------------------------------------

    def log_event(self, action: str, id: Digest, name: str) -> None:
        """Emit an image event with the image's labels among its attributes, as dockerd does."""
        attributes: dict[str, str] = {}
        try:
            attributes.update(self.config(id).defaults.labels or {})
        except SeacanError as error:
            log.warning("event %s: %s", action, error.message)
        attributes["name"] = name
        self.emit("image", action, id, attributes)

    def history(self, image: Image) -> list[HistoryItem]:
        """How the image came about, newest step first."""
        layers = list(reversed(self.layers.stack(image.chain_id)))
        items: list[HistoryItem] = []
        used = 0
        for step in image.config.history:
            size = 0
            if not step.empty_layer:
                if used >= len(layers):
                    raise System("too many non-empty layers in History section")
                size = layers[used].size
                used += 1
            created = image_config.parse_time(step.created) // 1_000_000_000 if step.created else 0
            items.insert(0, HistoryItem("<missing>", created, step.created_by, None, size, step.comment))
        current: Image | None = image
        for position, item in enumerate(items):
            if current is None:
                break
            items[position] = msgspec.structs.replace(item, id=current.id, tags=current.tags or None)
            current = self._load(Digest(current.parent)) if current.parent and self.known(current.parent) else None
        return items

    def graph_driver(self, image: Image) -> dict[str, Any]:
        """Docker's ``GraphDriver`` object."""
        return {"Name": self.snapshots.driver, "Data": self.snapshots.graph_driver(None, image.chain_id) or None}

    def recover(self) -> None:
        """After a start: forget what is half made, sweep what nobody refers to, and tell of what is damaged."""
        self.blobs.recover()
        for layer in self.layers.recover():
            log.error("layer %s is missing from %s: images that need it cannot run", layer.chain_id, layer.path)
        self.snapshots.recover()
        for blob in self.blobs:
            if self._blob_wanted(blob):
                self.blobs.settle(blob)
            else:
                self.blobs.path(blob).unlink(missing_ok=True)  # and not ``remove``: a pull's layer can be resumed
        pending = {layer.chain_id for layer in self.layers.all()}
        while removed := self._remove_layers(sorted(pending)):
            pending -= set(removed)


class Lease:
    """What :meth:`Images.lease` gives: add the digests and chain IDs that must not go away."""

    def __init__(self, leases: Counter[str]) -> None:
        self._leases = leases
        self._held: list[str] = []

    def add(self, *names: str) -> None:
        self._held.extend(names)
        self._leases.update(names)

    def names(self) -> list[str]:
        return list(self._held)

    def release(self) -> None:
        for name in self._held:
            self._leases[name] -= 1
            if self._leases[name] <= 0:
                del self._leases[name]
        self._held.clear()


class _ImageInUse(Conflict):
    def __init__(self, id: str, reason: str, *, hard: bool = False, used: bool = False) -> None:
        force = "cannot be forced" if hard else "must be forced"
        super().__init__(f"conflict: unable to delete {short_id(id)} ({force}) - {reason}")
        self.used = used


def _reference(name: str, tag: str, digest: str) -> Reference:
    domain, _, path = name.partition("/")
    return Reference(domain, path, tag, digest)


def _is_id_prefix(id: str, name: str) -> bool:
    return id.startswith(name) or digests.hexadecimal(id).startswith(name)


def _is_single(names: Sequence[Reference]) -> bool:
    """Whether all names are of one repository and at most one of them is a tag; false for none."""
    if len(names) <= 1:
        return len(names) == 1
    canonical = {name.name for name in names if name.digest}
    tagged = [name for name in names if not name.digest]
    if len(tagged) > 1:
        return False
    single = tagged[0] if tagged else names[0]
    return canonical == {single.name}


def matches(pattern: str, reference: Reference) -> bool:
    """Docker's ``reference`` filter: a glob on the familiar name, with or without the tag (``*`` stops at a slash)."""
    return _glob(pattern, reference.familiar) or _glob(pattern, reference.familiar_name)


def _glob(pattern: str, text: str) -> bool:
    parts, pieces = pattern.split("/"), text.split("/")
    return len(parts) == len(pieces) and all(
        fnmatch.fnmatchcase(piece, part) for part, piece in zip(parts, pieces, strict=True)
    )


def open_images(
    data_root: Path,
    database: Database,
    launcher: Launcher,
    *,
    driver: str = "",
    limits: Limits = Limits(),
    user_namespace: bool = False,
    trash: Trash | None = None,
) -> Images:
    """The image store of the engine whose state is under ``data_root``; its parts are the attributes of the result.

    ``driver`` is ``overlay2``, ``vfs``, or empty to choose by what this host can mount. Raises :class:`Unsupported` for
    another one. Call :meth:`Images.recover` once no older process of the engine is left.
    """
    trash = trash or Trash(data_root / "trash", launcher)
    layers = Layers(data_root / "layers", database, launcher, trash, limits=limits, user_namespace=user_namespace)
    snapshots = open_snapshots(driver, data_root / "snapshots", database, layers, trash, user_namespace=user_namespace)
    return Images(database, Blobs(data_root / "blobs"), layers, snapshots, launcher)
