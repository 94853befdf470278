"""All volumes of an engine: named and anonymous, who refers to them, and what is mounted of them.

References, labels and options are in the database; the folders are the local driver's. Every change is written before
(or, for a removal, after) the folder changes, so that a killed engine leaves either a whole volume or none.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import stat
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from seacan.errors import Conflict, InvalidParameter, NotFound, SeacanError, System
from seacan.linux.userns import outside
from seacan.runtime.bundle import Rootfs
from seacan.storage import tree, worker
from seacan.storage.database import Database
from seacan.storage.trash import Trash
from seacan.storage.view import View
from seacan.storage.worker import Launcher
from seacan.truth import truth
from seacan.volumes import local, populate

if TYPE_CHECKING:
    from seacan.engine.mounts import MountPoint

log = logging.getLogger(__name__)

ANONYMOUS_LABEL = "com.docker.volume.anonymous"
Emit = Callable[[str, str, str, Mapping[str, str]], object]
"""(type, action, id, attributes): tells of an event."""

_SCHEMA = (
    """
    CREATE TABLE volumes (
        name TEXT PRIMARY KEY, driver TEXT NOT NULL, labels TEXT, options TEXT, created INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE volume_references (
        volume TEXT NOT NULL, container TEXT NOT NULL, PRIMARY KEY (volume, container)
    ) WITHOUT ROWID;
    CREATE INDEX volume_references_by_container ON volume_references (container);
    CREATE TABLE volume_mounts (
        volume TEXT NOT NULL, container TEXT NOT NULL, PRIMARY KEY (volume, container)
    ) WITHOUT ROWID;
    """,
)


class Volume(msgspec.Struct, frozen=True):
    """``created`` is nanoseconds since 1970; ``labels`` and ``options`` are None when none were given."""

    name: str
    mountpoint: str
    created: int
    driver: str = local.NAME
    labels: dict[str, str] | None = None
    options: dict[str, str] | None = None

    @property
    def anonymous(self) -> bool:
        return ANONYMOUS_LABEL in (self.labels or {})

    def inspect(self, usage: Usage | None = None) -> dict[str, Any]:
        """Docker's Volume."""
        created = datetime.fromtimestamp(self.created // 1_000_000_000, tz=UTC)
        answer: dict[str, Any] = {
            "CreatedAt": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "Driver": self.driver,
            "Labels": self.labels,
            "Mountpoint": self.mountpoint,
            "Name": self.name,
            "Options": self.options,
            "Scope": "local",
        }
        if usage is not None:
            answer["UsageData"] = {"RefCount": usage.references, "Size": usage.size}
        return answer


class Usage(msgspec.Struct, frozen=True):
    """Bytes in files (a file with several names counts once), and how many containers refer to the volume."""

    size: int
    references: int


class Pruned(msgspec.Struct, frozen=True):
    names: list[str]
    reclaimed: int


class Volumes:
    """``root`` is ``<data-root>/volumes``. Method calls come from one event loop."""

    def __init__(self, root: Path, database: Database, launcher: Launcher, *, emit: Emit) -> None:
        self.root = root
        self._database = database
        self._launcher = launcher
        self._emit = emit
        self._locks: dict[str, asyncio.Lock] = {}
        self._mounting: set[asyncio.Task[None]] = set()
        self._pruning = False
        root.mkdir(mode=0o701, parents=True, exist_ok=True)
        self._trash = Trash(root / ".removed", launcher)
        database.migrate("volumes", _SCHEMA)

    async def recover(self, containers: Collection[str]) -> None:
        """After a start: undo half-made containers and finish half-removed ones, adopt folders that the database does
        not know, and unmount what nobody uses."""
        known = set(containers)
        with self._database.transaction():
            mounted = self._database.execute("SELECT DISTINCT container FROM volume_mounts").fetchall()
            for (container,) in mounted:
                if container not in known:
                    self._database.execute("DELETE FROM volume_mounts WHERE container = ?", (container,))
            referring = self._database.execute("SELECT DISTINCT container FROM volume_references").fetchall()
            for (container,) in referring:
                if container not in known:
                    self.release_all(container)
            names = {name for (name,) in self._database.execute("SELECT name FROM volumes")}
            for entry in os.scandir(self.root):
                if entry.name in names or entry.name.startswith(".") or not entry.is_dir(follow_symlinks=False):
                    continue
                folder = Path(entry.path)
                if (folder / local.DATA).is_dir():
                    log.info("volume %s: adopting a folder that the database does not know", entry.name)
                    created = entry.stat(follow_symlinks=False).st_ctime_ns
                    self._insert(entry.name, None, local.saved_options(folder), created)
        for path in local.mounts_below(str(self.root)):
            name = os.path.relpath(path, self.root).split("/")[0]
            if not self._active(name):
                try:
                    await _apart(local.unmount, path)
                except SeacanError as error:
                    log.warning("volume %s: %s", name, error)
        self._trash.sweep_soon()

    async def close(self) -> None:
        """Stop work in the background."""
        await self._trash.close()

    # --- finding ---------------------------------------------------------------------------------------------------

    def get(self, name: str) -> Volume:
        """Raises NotFound in dockerd's words."""
        found = self.find(name)
        if found is None:
            raise NotFound(f"get {name}: no such volume")
        return found

    def find(self, name: str) -> Volume | None:
        row = self._database.execute(
            "SELECT name, driver, labels, options, created FROM volumes WHERE name = ?", (name,)
        ).fetchone()
        return self._volume(row) if row is not None else None

    def list(self, filters: Mapping[str, Sequence[str]] | None = None) -> Sequence[Volume]:
        """Those that match Docker's ``filters`` (dangling, driver, label, name), by name. Raises InvalidParameter."""
        filters = filters or {}
        for name in filters:
            if name not in ("dangling", "driver", "label", "name"):
                raise InvalidParameter(f"invalid filter '{name}'")
        dangling = _boolean_filter("dangling", filters)
        referenced: set[str] = set()
        if dangling is not None:
            rows = self._database.execute("SELECT DISTINCT volume FROM volume_references")
            referenced = {name for (name,) in rows}
        rows = self._database.execute("SELECT name, driver, labels, options, created FROM volumes ORDER BY name")
        return [
            volume
            for volume in map(self._volume, rows.fetchall())
            if (dangling is None or dangling != (volume.name in referenced))
            and _matches_any(volume.driver, filters.get("driver", ()))
            and _matches_part(volume.name, filters.get("name", ()))
            and all(_has_label(volume, label) for label in filters.get("label", ()))
        ]

    def references(self, name: str) -> Sequence[str]:
        """The containers that refer to a volume, by id."""
        rows = self._database.execute(
            "SELECT container FROM volume_references WHERE volume = ? ORDER BY container", (name,)
        )
        return [container for (container,) in rows]

    async def usage(self) -> Sequence[tuple[Volume, Usage]]:
        """Every volume that is a folder of ours, with its size, for ``docker system df``."""
        found = []
        for volume in self.list():
            if volume.options:
                continue
            size = await asyncio.to_thread(tree.size, volume.mountpoint)
            found.append((volume, Usage(size, len(self.references(volume.name)))))
        return found

    # --- making and removing ---------------------------------------------------------------------------------------

    async def create(
        self,
        name: str = "",
        *,
        driver: str = "",
        labels: Mapping[str, str] | None = None,
        options: Mapping[str, str] | None = None,
        container: str = "",
    ) -> Volume:
        """Make a volume, or give the one of that name; without a name an anonymous one. ``container`` refers to it.

        Raises InvalidParameter, NotFound (no such driver), Conflict, System, in dockerd's words.
        """
        if not name:
            name = secrets.token_hex(32)
            labels = {**(labels or {}), ANONYMOUS_LABEL: ""}
        try:
            if driver not in ("", local.NAME):
                raise NotFound(f'error looking up volume plugin {driver}: plugin "{driver}" not found')
            volume = self.find(name)
            if volume is None:
                local.check_name(name)
                local.check_options(options or {})
        except SeacanError as error:
            raise type(error)(f"create {name}: {error.message}") from error
        async with self._lock(name):
            volume = self.find(name)
            made = volume is None
            if volume is None:
                # An empty mapping is null in the answer, as Go's nil map is.
                kept_options = dict(options) if options else None
                kept_labels = dict(labels) if labels is not None else None
                with contextlib.ExitStack() as undo:
                    with self._database.transaction():
                        self._insert(name, kept_labels, kept_options, time.time_ns())
                        self._refer(name, container)
                    undo.callback(self._forget, name)
                    local.make(self.root / name, options or {})
                    undo.pop_all()
                volume = self.get(name)
            else:
                self._refer(name, container)
        if made:
            self._emit("volume", "create", name, {"driver": volume.driver})
        return volume

    async def remove(self, name: str, *, force: bool = False) -> None:
        """Remove a volume and what is in it. With ``force`` it may be missing already.

        Raises NotFound; Conflict while a container refers to it.
        """
        async with self._lock(name):
            volume = self.find(name)
            if volume is None:
                if force:
                    return
                raise NotFound(f"get {name}: no such volume")
            users = self.references(name)
            if users:
                raise Conflict(f"remove {name}: volume is in use - [{', '.join(users)}]")
            await self._remove(volume)
        self._locks.pop(name, None)

    async def _remove(self, volume: Volume) -> None:
        if local.needs_mount(volume.options):
            await _apart(local.unmount, volume.mountpoint)
        folder = self.root / volume.name
        # First the folder, then the row: a crash between leaves a row whose folder is made again, never lost data's
        # ghost.
        self._trash.discard(folder)
        self._forget(volume.name)
        self._emit("volume", "destroy", volume.name, {"driver": volume.driver})

    async def prune(self, filters: Mapping[str, Sequence[str]] | None = None) -> Pruned:
        """Remove the volumes no container refers to: the anonymous ones, or with ``all`` every one. Those with driver
        options stay, as nothing would be reclaimed here.

        Raises InvalidParameter for an unknown filter, Conflict while another prune runs.
        """
        filters = filters or {}
        if self._pruning:
            raise Conflict("a prune operation is already running")
        for name in filters:
            if name not in ("label", "label!", "all"):
                raise InvalidParameter(f"invalid filter '{name}'")
        everything = _all_filter(filters)
        self._pruning = True
        try:
            names, reclaimed = [], 0
            for volume in self.list({"dangling": ["true"]}):
                if (
                    volume.options
                    or not (everything or volume.anonymous)
                    or not all(_has_label(volume, label) for label in filters.get("label", ()))
                    or any(_has_label(volume, label) for label in filters.get("label!", ()))
                ):
                    continue
                size = await asyncio.to_thread(tree.size, volume.mountpoint)
                try:
                    await self.remove(volume.name)
                except (Conflict, NotFound):  # taken or removed meanwhile
                    continue
                names.append(volume.name)
                reclaimed += size
        finally:
            self._pruning = False
        self._emit("volume", "prune", "", {"reclaimed": str(reclaimed)})
        return Pruned(names, reclaimed)

    # --- containers ------------------------------------------------------------------------------------------------

    async def attach(self, point: MountPoint, container: str) -> None:
        """Give a volume mount point its volume, made if need be, and let the container refer to it."""
        asked = point.spec.volume_options
        options = asked.driver_config.options if asked is not None and asked.driver_config is not None else None
        volume = await self.create(
            point.name,
            driver=point.driver,
            labels=asked.labels if asked is not None else None,
            options=options,
            container=container,
        )
        point.name, point.driver, point.source = volume.name, volume.driver, volume.mountpoint
        point.mode = point.mode or "z"

    async def populate(self, points: Iterable[MountPoint], rootfs: Rootfs, container: str = "") -> None:
        """Fill volumes that are empty with what the image has at their destination: content, owner and mode.

        Where the container is to see ``rootfs`` through a mapping, it sees our own volumes through it as well; one with
        options is a file system of its own, and gets the host's numbers.

        Costs one look into the layers a volume; only content that must be copied is the business of a worker.
        """
        for point in points:
            if point.type != "volume":
                continue
            with View(rootfs) as view:
                entry = view.find(point.destination)
                if entry is None:
                    continue
                if not entry.is_directory:
                    if point.anonymous:
                        raise System(f"cannot mount volume over existing file, file exists /{entry.path}")
                    if point.copy:
                        raise System(f"source /{entry.path} is not directory")
                    continue
                full = point.copy and bool(view.names(entry))
            if not point.copy:
                continue
            volume = self.get(point.name)
            used = local.needs_mount(volume.options)
            seen = rootfs if used else msgspec.structs.replace(rootfs, mapping=None)
            if used:
                try:
                    await self._mount(volume, f"{container}:populate")
                except System as error:
                    raise System(f"failed to populate volume: {error.message}") from error
            try:
                await self._fill(volume, point, seen, entry.stat, full)
            finally:
                if used:
                    await self._unmount(volume, f"{container}:populate")

    async def _fill(
        self, volume: Volume, point: MountPoint, rootfs: Rootfs, information: os.stat_result, full: bool
    ) -> None:
        subpath = point.spec.volume_options.subpath if point.spec.volume_options is not None else ""
        flags = os.O_RDONLY | os.O_DIRECTORY
        try:
            target = (
                local.open_subpath(volume.mountpoint, subpath, flags)
                if subpath
                else os.open(volume.mountpoint, flags | os.O_NOFOLLOW | os.O_CLOEXEC)
            )
        except System as error:
            if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                return  # the start will say so, unless somebody makes it before
            raise System(f"failed to populate volume: {error.message}") from error
        try:
            if os.listdir(target):
                return
            if full:
                request = populate.Request(rootfs, point.destination)
                await worker.run(self._launcher, "seacan.volumes.populate:main", request, [target], populate.Result)
            else:
                uid: int | None = information.st_uid
                gid: int | None = information.st_gid
                if rootfs.mapping is not None:
                    uid, gid = (
                        outside(rootfs.mapping.uids, information.st_uid),
                        outside(rootfs.mapping.gids, information.st_gid),
                    )
                if uid is not None and gid is not None:
                    os.fchown(target, uid, gid)
                os.fchmod(target, stat.S_IMODE(information.st_mode))
        finally:
            os.close(target)

    def foreign(self, name: str) -> bool:
        """Whether a volume is a file system that somebody else made (``--opt``), owners and all."""
        volume = self.find(name)
        return volume is not None and local.needs_mount(volume.options)

    async def mount(self, container: str, points: Iterable[MountPoint]) -> None:
        """Before a start: see that every volume is there (and mounted, if it has options) and make missing bind
        sources that are to be made.

        Raises System in dockerd's words.
        """
        for point in points:
            if point.type == "bind" and point.create_source:
                _make_source(point.source)
            if point.type != "volume":
                continue
            volume = self.find(point.name)
            if volume is None:
                raise System(f"error while mounting volume '{point.source}': get {point.name}: no such volume")
            local.make(self.root / volume.name, volume.options or {})
            if local.needs_mount(volume.options):
                await self._mount(volume, container)
            self._emit(
                "volume",
                "mount",
                volume.name,
                {
                    "container": container,
                    "destination": point.destination,
                    "driver": volume.driver,
                    "propagation": point.propagation,
                    "read/write": "true" if point.rw else "false",
                },
            )

    async def unmount(self, container: str, points: Iterable[MountPoint]) -> None:
        """After a stop: the volumes with options that no other container uses are unmounted. Never raises for them:
        what stays mounted is tried again at the next stop or start."""
        for point in points:
            if point.type != "volume":
                continue
            volume = self.find(point.name)
            if volume is None:
                continue
            if local.needs_mount(volume.options):
                try:
                    await self._unmount(volume, container)
                except System as error:
                    log.warning("volume %s: %s", volume.name, error)
            self._emit("volume", "unmount", volume.name, {"container": container, "driver": volume.driver})

    async def detach(self, container: str, points: Iterable[MountPoint], *, remove_anonymous: bool = False) -> None:
        """A container is gone: with ``remove_anonymous`` remove the volumes it had to itself that were never given a
        name, and drop its references. These go last: what a crash leaves undone is then seen and done by
        :meth:`recover`."""
        for point in points if remove_anonymous else ():
            if point.type != "volume" or not point.anonymous:
                continue
            async with self._lock(point.name):
                volume = self.find(point.name)
                # Another container may still have it (--volumes-from).
                if volume is not None and set(self.references(point.name)) <= {container}:
                    await self._remove(volume)
            self._locks.pop(point.name, None)
        self.release(container)

    def release_all(self, container: str) -> None:
        """Undo of :meth:`attach`, for a container that could not be made: its anonymous volumes go, too.

        So they do for one whose removal together with them was cut short.
        """
        rows = self._database.execute("SELECT volume FROM volume_references WHERE container = ?", (container,))
        names = [name for (name,) in rows.fetchall()]
        self.release(container)
        for name in names:
            volume = self.find(name)
            if volume is not None and volume.anonymous and not self.references(name):
                self._trash.discard(self.root / name)
                self._forget(name)

    # --- the parts -------------------------------------------------------------------------------------------------

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    def _volume(self, row: Any) -> Volume:
        name, driver, labels, options, created = row
        return Volume(
            name,
            str(self.root / name / local.DATA),
            created,
            driver,
            msgspec.json.decode(labels) if labels is not None else None,
            msgspec.json.decode(options) if options is not None else None,
        )

    def _insert(
        self, name: str, labels: Mapping[str, str] | None, options: Mapping[str, str] | None, created: int
    ) -> None:
        self._database.execute(
            "INSERT INTO volumes VALUES (?, ?, ?, ?, ?)",
            (
                name,
                local.NAME,
                msgspec.json.encode(labels).decode() if labels is not None else None,
                msgspec.json.encode(options).decode() if options is not None else None,
                created,
            ),
        )

    def _forget(self, name: str) -> None:
        with self._database.transaction():
            self._database.execute("DELETE FROM volume_references WHERE volume = ?", (name,))
            self._database.execute("DELETE FROM volume_mounts WHERE volume = ?", (name,))
            self._database.execute("DELETE FROM volumes WHERE name = ?", (name,))

    def _refer(self, name: str, container: str) -> None:
        if container:
            self._database.execute("INSERT OR IGNORE INTO volume_references VALUES (?, ?)", (name, container))

    def release(self, container: str) -> None:
        """Drop the references of a container that is being removed; its volumes stay.

        What refers to volumes without being a container is one that was cut off, while it was made or removed: so a
        removal that keeps the volumes must drop the references in the transaction that ends the container.
        """
        self._database.execute("DELETE FROM volume_references WHERE container = ?", (container,))

    def _active(self, name: str) -> bool:
        return (
            self._database.execute("SELECT 1 FROM volume_mounts WHERE volume = ? LIMIT 1", (name,)).fetchone()
            is not None
        )

    async def _mount(self, volume: Volume, container: str) -> None:
        """Whoever is cancelled need not wait for a server that does not answer. What is mounted after that is unmounted
        again, and until then the volume is locked: a mount that nobody knows of would have the server's files deleted
        with the volume."""
        abandoned = False

        async def mount() -> None:
            async with self._lock(volume.name):
                self._database.execute("INSERT OR IGNORE INTO volume_mounts VALUES (?, ?)", (volume.name, container))
                try:
                    if not local.mounted(volume.mountpoint):
                        await _apart(local.mount, volume.mountpoint, volume.options or {})
                except BaseException as error:
                    self._inactive(volume.name, container)
                    if isinstance(error, System):
                        raise System(f"error while mounting volume '{volume.mountpoint}': {error.message}") from error
                    raise
                if abandoned:
                    await self._let_go(volume, container)

        mounting = asyncio.create_task(mount(), name=f"mount volume {volume.name}")
        self._mounting.add(mounting)
        mounting.add_done_callback(self._mounting.discard)
        try:
            await asyncio.shield(mounting)
        except asyncio.CancelledError:
            abandoned = True
            mounting.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise

    async def _unmount(self, volume: Volume, container: str) -> None:
        async with self._lock(volume.name):
            await self._let_go(volume, container)

    async def _let_go(self, volume: Volume, container: str) -> None:
        self._inactive(volume.name, container)
        if not self._active(volume.name):
            await _apart(local.unmount, volume.mountpoint)

    def _inactive(self, name: str, container: str) -> None:
        self._database.execute("DELETE FROM volume_mounts WHERE volume = ? AND container = ?", (name, container))


async def _apart(function: Callable[..., None], *arguments: object) -> None:
    """Call in a thread that nobody else needs and nobody waits for at the end: a file server may never answer."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: BaseException | None) -> None:
        if done.done():  # whoever waited has been cancelled
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def run() -> None:
        error: BaseException | None = None
        try:
            function(*arguments)
        except BaseException as caught:
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, error)

    threading.Thread(target=run, name="volume", daemon=True).start()
    await done


def _make_source(path: str) -> None:
    """A missing bind source becomes a directory; what exists is left as it is, whatever it is."""
    if os.path.lexists(path):
        return
    try:
        os.makedirs(path, 0o755, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        return
    except OSError as error:
        reason = (error.strerror or "").lower()
        raise System(
            f"error while creating mount source path '{path}': mkdir {error.filename or path}: {reason}"
        ) from error


def _has_label(volume: Volume, wanted: str) -> bool:
    """``key`` or ``key=value``."""
    key, equals, value = wanted.partition("=")
    labels = volume.labels or {}
    return key in labels and (not equals or labels[key] == value)


def _matches_any(text: str, wanted: Sequence[str]) -> bool:
    return not wanted or text in wanted


def _matches_part(text: str, wanted: Sequence[str]) -> bool:
    return not wanted or any(part in text for part in wanted)


def _boolean_filter(name: str, filters: Mapping[str, Sequence[str]]) -> bool | None:
    values = [value.lower() for value in filters.get(name, ())]
    if not values:
        return None
    if len(values) == 1 and values[0] in ("1", "true"):
        return True
    if len(values) == 1 and values[0] in ("0", "false"):
        return False
    raise InvalidParameter(f"invalid filter '{name}=[{' '.join(filters[name])}]'")


def _all_filter(filters: Mapping[str, Sequence[str]]) -> bool:
    values = filters.get("all", ())
    if not values:
        return False
    if len(values) > 1:
        raise InvalidParameter("invalid filter 'all': only one value is expected")
    wanted = truth(values[0])
    if wanted is None:
        raise InvalidParameter(f"invalid filter 'all': strconv.ParseBool: parsing \"{values[0]}\": invalid syntax")
    return wanted
