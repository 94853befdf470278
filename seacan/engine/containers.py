"""The containers of an engine: found, created, renamed, updated, removed. :mod:`seacan.engine.lifecycle` runs them."""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import logging
import os
import platform as host_platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from seacan.engine import creation, mounts, oci
from seacan.engine.config import (
    BindOptions,
    ContainerConfig,
    EndpointSettings,
    HostConfig,
    NetworkingConfig,
    UpdateConfig,
    copy,
)
from seacan.engine.container import Container, Record, State, now
from seacan.engine.host import host
from seacan.engine.mounts import MountPoint
from seacan.engine.names import check_name, new_id, random_name
from seacan.engine.profiles import selinux
from seacan.engine.verify import verify_resources
from seacan.errors import Conflict, InvalidParameter, NotFound, NotModified, SeacanError

if TYPE_CHECKING:
    from seacan.engine.engine import Engine
    from seacan.images.store import Image

log = logging.getLogger(__name__)

_SCHEMA = (
    """
    CREATE TABLE containers (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        record BLOB NOT NULL,
        state BLOB NOT NULL
    ) WITHOUT ROWID;
    """,
)
_encoder = msgspec.json.Encoder()
_record_decoder = msgspec.json.Decoder(Record)
_state_decoder = msgspec.json.Decoder(State)


class Created(msgspec.Struct, frozen=True):
    id: str
    warnings: list[str]


class Containers:
    """Every container the engine knows, in memory and in the database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._by_id: dict[str, Container] = {}
        self._by_name: dict[str, str] = {}
        self._by_image: dict[str, set[str]] = {}
        self._ids: list[str] = []
        """Sorted, for unique prefixes."""
        self._pruning = False
        engine.database.migrate("containers", _SCHEMA)

    def load(self) -> None:
        """Read every container from the database.

        A row that cannot be read is reported and left alone: the rest keeps working.
        """
        rows = self._engine.database.execute("SELECT id, record, state FROM containers").fetchall()
        for id, record, state in rows:
            try:
                self._add(Container(_record_decoder.decode(record), _state_decoder.decode(state)))
            except (msgspec.DecodeError, msgspec.ValidationError) as error:
                log.error("container %s cannot be read from the state database: %s", id, error)

    # --- finding ---------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Container]:
        return iter(list(self._by_id.values()))

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, id: object) -> bool:
        return id in self._by_id

    def get(self, reference: str) -> Container:
        """The container with this ID, name or unique ID prefix.

        Raises:
            NotFound, InvalidParameter: in dockerd's words.
        """
        if not reference:
            raise InvalidParameter(f'invalid name or ID supplied: "{reference}"')
        found = self._by_id.get(reference)
        if found is not None:
            return found
        id = self._by_name.get(reference.removeprefix("/"))
        if id is not None:
            return self._by_id[id]
        link = self._link(reference)
        if link is not None and (linked := self._by_id.get(link[0].record.links[link[1]])) is not None:
            return linked
        at = bisect.bisect_left(self._ids, reference)
        if at < len(self._ids) and self._ids[at].startswith(reference):
            if at + 1 < len(self._ids) and self._ids[at + 1].startswith(reference):
                raise InvalidParameter(f"multiple IDs found with provided prefix: {reference}")
            return self._by_id[self._ids[at]]
        raise NotFound(f"No such container: {reference}")

    def _link(self, reference: str) -> tuple[Container, str] | None:
        """The container and the alias of the link that ``container/alias`` names; None: there is no such link."""
        parent, _, alias = reference.removeprefix("/").rpartition("/")
        found = self._by_id.get(self._by_name.get(parent, ""))
        return (found, alias) if found is not None and alias in found.record.links else None

    def of_image(self, image: str) -> list[Container]:
        """The containers made from the image with this ID, or that mount it."""
        return [self._by_id[id] for id in self._by_image.get(image, ())]

    def find(self, reference: str) -> Container | None:
        try:
            return self.get(reference)
        except (NotFound, InvalidParameter):
            return None

    # --- keeping ---------------------------------------------------------------------------------------------------

    def folder(self, container: Container) -> Path:
        """What survives a reboot: log, hosts, hostname, resolv.conf."""
        return Path(self._engine.options.data_root, "containers", container.id)

    def bundle(self, container: Container) -> Path:
        return Path(self._engine.options.exec_root, "containers", container.id)

    def save(self, container: Container) -> None:
        """Keep record and state."""
        self._engine.database.execute(
            "INSERT INTO containers (id, name, record, state) VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET "
            "name = excluded.name, record = excluded.record, state = excluded.state",
            (container.id, container.name, _encoder.encode(container.record), _encoder.encode(container.state)),
        )

    def save_state(self, container: Container) -> None:
        """Keep the state alone: what changes with every start and exit."""
        self._engine.database.execute(
            "UPDATE containers SET state = ? WHERE id = ?", (_encoder.encode(container.state), container.id)
        )

    def emit(self, container: Container, action: str, **more: str) -> None:
        self._engine.events.emit("container", action, container.id, container.attributes(**more))

    def _add(self, container: Container) -> None:
        self._by_id[container.id] = container
        self._by_name[container.name] = container.id
        for image in _images_of(container):
            self._by_image.setdefault(image, set()).add(container.id)
        bisect.insort(self._ids, container.id)

    def _forget(self, container: Container) -> None:
        self._by_id.pop(container.id, None)
        for image in _images_of(container):
            self._by_image.get(image, set()).discard(container.id)
        if self._by_name.get(container.name) == container.id:
            del self._by_name[container.name]
        at = bisect.bisect_left(self._ids, container.id)
        if at < len(self._ids) and self._ids[at] == container.id:
            del self._ids[at]

    def _claim(self, name: str, id: str) -> str:
        """Take ``name`` (a random one if empty) for ``id``, until the container is added or the name is released."""
        if name:
            name = check_name(name)
            holder = self._by_name.get(name)
            if holder is not None:
                raise Conflict(
                    f'Conflict. The container name "/{name}" is already in use by container "{holder}". You have to '
                    "remove (or rename) that container to be able to reuse that name."
                )
        else:
            name = next((n for n in map(random_name, range(6)) if n not in self._by_name), id[:12])
        self._by_name[name] = id
        return name

    def _release(self, name: str, id: str) -> None:
        if self._by_name.get(name) == id:
            del self._by_name[name]

    # --- creating --------------------------------------------------------------------------------------------------

    async def create(
        self,
        config: ContainerConfig,
        host_config: HostConfig | None = None,
        networking: NetworkingConfig | None = None,
        *,
        name: str = "",
        platform: str = "",
        read_only_trees: bool = True,
    ) -> Created:
        """Make a container: its writable layer, its volumes, its record. Nothing runs yet.

        Read-only binds that say nothing of what is mounted below them take it along if ``read_only_trees``.

        Raises:
            InvalidParameter, NotFound, Conflict, Unsupported, System: in dockerd's words; whatever was made is undone.
        """
        engine = self._engine
        config = copy(config)
        host_config = copy(host_config) if host_config is not None else HostConfig()
        creation.check_config(config)
        creation.check_host_config(host_config)
        warnings = list(oci.verify(config, host_config, engine.options))
        image = engine.images.get(config.image, platform=platform) if config.image else None
        creation.adapt(host_config, engine.options, cgroup_v2=engine.cgroup_v2)
        if image is not None:
            creation.merge(config, image.config.defaults)
        path, arguments = creation.command(config)
        self._identify_joined(host_config)
        self._label(host_config)
        warnings += self._platform_warning(image, platform)
        id = new_id()
        if not config.hostname and not host_config.network_mode.startswith("container:"):
            config.hostname = os.uname().nodename if host_config.network_mode == "host" else id[:12]
        endpoints = self._endpoints(host_config, networking)
        links = self._links(host_config)
        with contextlib.ExitStack() as undo:
            name = self._claim(name, id)
            undo.callback(self._release, name, id)
            record = Record(
                id=id,
                name=name,
                created=now(),
                image=image.id if image else "",
                path=path,
                args=arguments,
                config=config,
                host_config=host_config,
                networks=endpoints,
                links=links,
                architecture=image.config.architecture if image else "",
                categories=self._categories(id),
            )
            container = Container(record, State())
            engine.snapshots.prepare(id, image.chain_id if image else None)
            undo.callback(engine.snapshots.remove, id)
            folder = self.folder(container)
            folder.mkdir(mode=0o710, parents=True)
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
            record.log_path = _log_path(folder, id, host_config)
            undo.callback(engine.volumes.release_all, id)
            record.mounts = await self._mounts(container, read_only_trees)
            if any(point.copy for point in record.mounts):
                await engine.volumes.populate(record.mounts, engine.rootfs(record, read_only=True), id)
            self._set_masks(host_config)
            self.save(container)
            self._add(container)
            undo.pop_all()
        self.emit(container, "create")
        engine.lifecycle.expect_start(container)
        return Created(id, warnings)

    def _platform_warning(self, image: Image | None, platform: str) -> list[str]:
        if image is None or platform:
            return []
        architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(host_platform.machine(), host_platform.machine())
        if image.config.architecture in ("", architecture):
            return []
        return [
            f"The requested image's platform (linux/{image.config.architecture}) does not match the detected host "
            f"platform (linux/{architecture}) and no specific platform was requested"
        ]

    def _identify_joined(self, host_config: HostConfig) -> None:
        """Turn ``container:<name>`` modes into ``container:<id>``: the name may go to another container.

        Raises:
            InvalidParameter: there is no such container. One whose network is joined may come later, until the start.
        """
        for kind in ("network_mode", "ipc_mode", "pid_mode"):
            scheme, colon, name = getattr(host_config, kind).partition(":")
            if scheme != "container" or not colon:
                continue
            other = self.find(name)
            if other is not None:
                setattr(host_config, kind, f"container:{other.id}")
            elif kind != "network_mode":
                raise InvalidParameter(f"No such container: {name}")

    def _label(self, host_config: HostConfig) -> None:
        """Add the SELinux options that follow from shared namespaces, unless the caller chose some.

        Raises:
            InvalidParameter: the IPC and PID namespaces belong to containers with different labels.
        """
        given = host_config.security_opt or []
        if any(option.startswith(("label=", "label:")) or option == "label" for option in given):
            return
        if oci.unlabelled(host_config):
            host_config.security_opt = [*given, "label=disable"]
            return
        labels = set()
        for mode in (host_config.ipc_mode, host_config.pid_mode):
            other = self.find(mode.removeprefix("container:")) if mode.startswith("container:") else None
            if other is not None:
                labels.add(oci.security_of(other.record, self._engine.options).process_label)
        if len(labels) > 1:
            raise InvalidParameter("--ipc and --pid containers SELinux labels aren't the same")
        if options := [option for label in labels for option in selinux.joined(label)]:
            host_config.security_opt = [*given, *options]

    def _categories(self, id: str) -> str:
        if not (self._engine.options.selinux_enabled and host().selinux):
            return ""
        return selinux.categories(id, {container.record.categories for container in self})

    @staticmethod
    def _set_masks(host_config: HostConfig) -> None:
        if host_config.privileged:
            return
        if host_config.masked_paths is None:
            host_config.masked_paths = list(oci.MASKED_PATHS)
        if host_config.readonly_paths is None:
            host_config.readonly_paths = list(oci.READONLY_PATHS)

    def _endpoints(self, host_config: HostConfig, networking: NetworkingConfig | None) -> dict[str, EndpointSettings]:
        mode = host_config.network_mode
        wanted = dict((networking.endpoints_config if networking else None) or {})
        if mode.startswith("container:"):
            if any(not name.startswith("container:") for name in wanted):
                raise InvalidParameter("conflicting options: cannot attach both a container's and another network")
            return {}
        if "default" in wanted:
            wanted[mode] = wanted.pop("default")
        for name in ("host", "none"):
            if (name in wanted and mode != name) or (mode == name and any(other != name for other in wanted)):
                raise InvalidParameter(
                    "conflicting options: cannot attach both user-defined and non-user-defined network-modes"
                )
        if not wanted:
            wanted = {mode: None}
        endpoints = {name: settings or EndpointSettings() for name, settings in wanted.items()}
        for name, settings in endpoints.items():
            spec = self._engine.networks.find(name)  # one that is missing is found out at the start
            if spec is not None:
                try:
                    self._engine.networks.check_settings(spec, settings)
                except InvalidParameter as error:
                    raise InvalidParameter(f"invalid config for network {name}: {error}") from error
        return endpoints

    def _links(self, host_config: HostConfig) -> dict[str, str]:
        links = {}
        for link in host_config.links or []:
            name, _, alias = link.partition(":")
            if not name:
                raise InvalidParameter(f"invalid empty string format: {link}")
            target = self.find(name)
            if target is None:
                raise InvalidParameter(f"could not get container for {name}: No such container: {name}")
            if target.host_config.network_mode == "host":
                raise Conflict(
                    "conflicting options: host type networking can't be used with links. "
                    "This would result in undefined behavior"
                )
            links[alias.rpartition("/")[2] or target.name] = target.id
        return links

    async def _mounts(self, container: Container, read_only_trees: bool) -> list[MountPoint]:
        """Resolve everything that is to be mounted, making volumes as needed."""
        host_config = container.host_config
        volumes = self._engine.volumes
        points: dict[str, MountPoint] = {}
        root = os.path.realpath(self._engine.options.data_root)
        for raw in host_config.volumes_from or []:
            name, writable = mounts.parse_volumes_from(raw)
            donor = self.find(name)
            if donor is None:
                raise InvalidParameter(f"No such container: {name}")
            for point in donor.record.mounts:
                inherited = copy(point)
                inherited.rw = point.rw and writable
                inherited.copy = False
                points[point.destination] = inherited
        for raw in host_config.binds or []:
            point = mounts.parse_bind(raw, host_config.volume_driver)
            mounts.follow_root(point, root)
            if point.type == "bind" and not point.rw and not read_only_trees:
                point.spec.bind_options = point.spec.bind_options or BindOptions()
                point.spec.bind_options.read_only_non_recursive = True
            points[point.destination] = point
        for spec in host_config.mounts or []:
            point = mounts.parse_mount(spec)
            mounts.follow_root(point, root)
            if point.type == "image":
                point.image = self._engine.images.get(point.source).id
            points[point.destination] = point
        temporary = {os.path.normpath(destination) for destination in host_config.tmpfs or {}}
        for destination in container.config.volumes or {}:
            if os.path.normpath(destination) in temporary:
                continue
            point = mounts.MountPoint(
                type="volume", destination=os.path.normpath(destination), copy=True, anonymous=True
            )
            point.driver = host_config.volume_driver
            points.setdefault(point.destination, point)
        for point in points.values():
            if point.type == "volume":
                mode = point.mode
                await volumes.attach(point, container.id)
                if not point.spec.target:
                    point.mode = mode  # as dockerd: what only the image asks for has no mode
        return list(points.values())

    # --- changing --------------------------------------------------------------------------------------------------

    async def rename(self, reference: str, name: str) -> None:
        if not reference or not name:
            raise InvalidParameter("Neither old nor new names may be empty")
        container = self.get(reference)
        async with container.lock:
            old = container.name
            if name.removeprefix("/") == old:
                raise InvalidParameter("Renaming a container with the same name as its current name")
            try:
                new = self._claim(name, container.id)
            except (Conflict, InvalidParameter) as error:
                raise type(error)(f"Error when allocating new name: {error}") from error
            container.record.name = new
            try:
                self.save(container)
            except SeacanError:
                container.record.name = old
                self._release(new, container.id)
                raise
            self._release(old, container.id)
            await self._engine.networks.rename(container.id, new)
        self.emit(container, "rename", oldName=f"/{old}")

    async def update(self, reference: str, wanted: UpdateConfig) -> list[str]:
        """Change limits and restart policy, of a running container too.

        Returns warnings.
        """
        if wanted.restart_policy.name:
            creation.check_host_config(HostConfig(restart_policy=wanted.restart_policy))
        verify_resources(copy(wanted), host(), update=True)
        container = self.get(reference)
        async with container.lock:
            if container.state.removing or container.state.dead:
                raise Conflict(
                    f'Cannot update container {container.id}: container is marked for removal and cannot be "update"'
                )
            before = container.record.host_config
            after = copy(before)
            try:
                warnings = oci.merge_update(after, wanted)
            except Conflict as error:
                raise Conflict(f"Cannot update container {container.id}: {error}") from error
            if wanted.restart_policy.name:
                if before.auto_remove and wanted.restart_policy.name != "no":
                    raise Conflict(
                        f"Cannot update container {container.id}: Restart policy cannot be updated because AutoRemove "
                        "is enabled for the container"
                    )
                after.restart_policy = wanted.restart_policy
                creation.check_host_config(after)
            if container.is_live:
                await self._engine.lifecycle.apply_limits(container, after)
            container.record.host_config = after
            self.save(container)
        self.emit(container, "update")
        return warnings

    # --- removing --------------------------------------------------------------------------------------------------

    async def remove(self, reference: str, *, force: bool = False, volumes: bool = False, link: bool = False) -> None:
        """Remove a container; with ``force`` a running one is killed, with ``volumes`` its anonymous volumes go too."""
        if link:
            self._remove_link(reference)
            return
        container = self.get(reference)
        if container.state.removing:
            raise Conflict(f"removal of container {reference} is already in progress")
        if container.state.running:
            if not force:
                if container.state.paused:
                    state = "container is paused and must be unpaused first"
                else:
                    state = f"container is {container.state.status}: stop the container before removing or force remove"
                raise Conflict(f'cannot remove container "{reference}": {state}')
            with contextlib.suppress(NotModified):
                await self._engine.lifecycle.kill_and_wait(container)
        async with container.lock:
            if container.id not in self._by_id:
                return
            if container.state.removing:
                raise Conflict(f"removal of container {reference} is already in progress")
            container.state.removing = True
            await container.released()
            try:
                await self._destroy(container, volumes=volumes)
            except SeacanError as error:
                container.state.removing = False
                container.state.dead = True
                container.state.error = str(error)
                self.save_state(container)
                container.tell_removed(error.message)
                raise type(error)(f"cannot remove container {reference}: {error}") from error

    async def _destroy(self, container: Container, *, volumes: bool) -> None:
        engine = self._engine
        self._engine.lifecycle.forget(container)
        await engine.networks.forget(container.id)
        with engine.database.transaction():
            engine.database.execute("DELETE FROM containers WHERE id = ?", (container.id,))
            if not volumes:
                engine.volumes.release(container.id)
        self._forget(container)
        await engine.volumes.detach(container.id, container.record.mounts, remove_anonymous=volumes)
        # Its files go once nothing says that it exists: a crash before would leave a container without a root.
        try:
            engine.snapshots.remove(container.id)
            engine.trash.discard(self.folder(container))
        except (OSError, SeacanError) as error:  # what is left is swept at the next start
            log.warning("container %s is removed, but not all its files: %s", container.id, error)
        for client in container.clients:
            client.close()
        container.clients.clear()
        self.emit(container, "destroy")
        container.tell_removed()

    def _remove_link(self, reference: str) -> None:
        link = self._link(reference)
        if link is None:
            name, _, alias = reference.removeprefix("/").rpartition("/")
            self.get(name or alias)
            if not name:
                raise Conflict("Conflict, cannot remove the default link name of the container")
            raise NotFound(f"Cannot get parent /{name} for link name /{alias}")
        parent, alias = link
        del parent.record.links[alias]
        self.save(parent)

    async def prune(self, filters: Mapping[str, Sequence[str]]) -> tuple[list[str], int]:
        """Remove every stopped container that passes ``filters``; the ids, and the bytes that became free."""
        from seacan.engine.listing import prune_filter

        wanted = prune_filter(filters)
        if self._pruning:
            raise Conflict("a prune operation is already running")
        self._pruning = True
        removed: list[str] = []
        freed = 0
        try:
            for container in self:
                if container.state.running or container.state.removing or not wanted(container):
                    continue
                try:
                    size = await asyncio.to_thread(self._engine.snapshots.usage, container.id)
                    await self.remove(container.id)
                except SeacanError as error:
                    log.warning("prune: %s", error)
                    continue
                removed.append(container.id)
                freed += size.size
        finally:
            self._pruning = False
        self._engine.events.emit("container", "prune", "", {"reclaimed": str(freed)})
        return removed, freed


def _images_of(container: Container) -> set[str]:
    return {container.record.image, *(point.image for point in container.record.mounts if point.image)}


def _log_path(folder: Path, id: str, host_config: HostConfig) -> str:
    if host_config.log_config.type == "json-file":
        return str(folder / f"{id}-json.log")
    return ""
