"""The engine: one object that owns everything a program or the API can ask for. It knows no HTTP.

    engine = Engine(EngineOptions(data_root=…, exec_root=…))
    await engine.start()        # adopts what is running, rolls back what is half made
    …
    await engine.close()        # containers go on

Its parts are the nouns of Docker: ``images``, ``containers``, ``execs``, ``networks``, ``volumes``, ``events``.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib
import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from seacan import cgroups
from seacan.engine import oci, recovery, remap, system
from seacan.engine.container import Container, Record
from seacan.engine.containers import Containers
from seacan.engine.database import Database
from seacan.engine.events import Events
from seacan.engine.execs import Execs
from seacan.engine.host import host
from seacan.engine.lifecycle import Lifecycle
from seacan.engine.options import LIVE, EngineOptions
from seacan.errors import InvalidParameter, System
from seacan.images.store import ImageUser, open_images
from seacan.network.networks import Networks
from seacan.registry.distribution import Distribution
from seacan.registry.trust import Policy
from seacan.runtime.bundle import Mapping, Rootfs
from seacan.runtime.launcher import Launcher
from seacan.storage.trash import Trash
from seacan.volumes.volumes import Volumes

if TYPE_CHECKING:
    from seacan.engine.builds import Builds
    from seacan.images.store import Images
    from seacan.storage.snapshots import Snapshots

log = logging.getLogger(__name__)

INIT_BINARIES = ("docker-init", "tini-static", "tini")
"""Programs fit for `--init`, best first; all three are tini, the first two need nothing of the container's."""


class Engine:
    """A container engine. One for each pair of ``data_root`` and ``exec_root``."""

    images: Images
    snapshots: Snapshots
    networks: Networks
    trash: Trash
    volumes: Volumes
    builds: Builds

    def __init__(self, options: EngineOptions) -> None:
        self.options = options
        self.events = Events()
        self.mapping: Mapping | None = None
        """Whose IDs containers get that do not say ``--userns=host``; None: the host's."""
        self.launcher = Launcher()
        self.id = ""
        self._lock = -1
        self._preparing_builds = asyncio.Lock()
        self._closing = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """Open the database, start the launcher, adopt what is running and roll back what is half made.

        Raises:
            System: another engine uses these folders, or the state cannot be read.
        """
        options = self.options
        # A root may be reached by a link (/var/run); below it, no link is followed.
        options.data_root, options.exec_root = os.path.realpath(options.data_root), os.path.realpath(options.exec_root)
        data_root, exec_root = Path(options.data_root), Path(options.exec_root)
        self.mapping = remap.resolve(options.userns_remap) if options.userns_remap else None
        if self.mapping is None:
            options.userns_remap = ""
        async with contextlib.AsyncExitStack() as undo:
            self._prepare_folders(data_root, exec_root)
            undo.callback(self._unlock)
            self.id = system.load_id(data_root / "engine-id")
            _refuse_emptied(data_root / "seacan.db")
            self.database = Database(data_root / "seacan.db")
            undo.callback(self.database.close)
            await self.launcher.start()
            undo.push_async_callback(self.launcher.close)
            self.trash = Trash(data_root / "trash", self.launcher)
            undo.push_async_callback(self.trash.close)
            self.images = open_images(
                data_root, self.database, self.launcher, driver=options.storage_driver, trash=self.trash
            )
            self.images.emit = self.events.emit
            self.images.users = self._image_users
            self.snapshots = self.images.snapshots
            if self.mapping is not None:
                await remap.check(self.launcher, self.snapshots.driver, data_root, self.mapping)
            policy = Policy(Path(options.signature_policy)) if options.signature_policy else None
            self.distribution = Distribution(self.images, options, policy=policy)
            undo.push_async_callback(self.distribution.close)
            self.volumes = Volumes(data_root / "volumes", self.database, self.launcher, emit=self.events.emit)
            undo.push_async_callback(self.volumes.close)
            self.networks = Networks(self.database, options, engine_id=self.id)
            await self.networks.start()
            undo.push_async_callback(self.networks.close)
            self.execs = Execs(self)
            self.containers = Containers(self)
            self.lifecycle = Lifecycle(self)
            self.containers.load()
            await recovery.recover(self)
            undo.push_async_callback(self._stop_background)
            undo.push_async_callback(self._close_builds)
            self._closing = undo.pop_all()

    async def prepare_builds(self) -> None:
        """Make :attr:`builds` usable, and roll back what a killed engine was building.

        Loading the builder takes as long as a third of the start. So it waits until the daemon answers, or for the
        first build.
        """
        async with self._preparing_builds:
            if hasattr(self, "builds"):
                return
            module = await asyncio.to_thread(importlib.import_module, "seacan.engine.builds")
            builds = module.Builds(self)
            await builds.start()
            self.builds = builds

    async def _close_builds(self) -> None:
        async with self._preparing_builds:
            if hasattr(self, "builds"):
                await self.builds.close()

    async def close(self) -> None:
        """Stop answering for the containers; they go on (unless ``live_restore`` is off, then they are stopped)."""
        await self.lifecycle.close()
        await self._closing.aclose()

    async def reconfigure(self, options: EngineOptions) -> None:
        """Take over the options that can change while the engine runs (:data:`~seacan.engine.options.LIVE`)."""
        if options.default_runtime not in ("seacan", "io.containerd.runc.v2", *options.runtimes):
            raise InvalidParameter(f"specified default runtime '{options.default_runtime}' does not exist")
        for name in LIVE:
            setattr(self.options, name, getattr(options, name))
        self.events.emit("daemon", "reload", self.id, {"name": os.uname().nodename, **_reload_attributes(self.options)})

    # --- what the parts ask of each other ----------------------------------------------------------------------------

    @property
    def cgroup_v2(self) -> bool:
        return host().cgroup_version == 2

    @property
    def init_binary(self) -> str:
        """Path of the program `--init` runs, empty if this host has none."""
        if self.options.init_path:
            return self.options.init_path
        return next((path for name in INIT_BINARIES if (path := shutil.which(name))), "")

    def rootfs(self, record: Record, *, read_only: bool = False) -> Rootfs:
        """A container's root as it is to see it itself. Raises NotFound."""
        return oci.seen(self.snapshots.rootfs(record.id, read_only=read_only), record, self.options, self.mapping)

    def cgroup_path(self, container: Container) -> str:
        parent = container.host_config.cgroup_parent or self.options.cgroup_parent
        return f"/{parent.strip('/')}/{container.id}"

    def cgroup(self, container: Container) -> cgroups.Cgroup:
        """The control group of a container."""
        return cgroups.open(self.cgroup_path(container))

    def _image_users(self, image: str) -> Iterable[ImageUser]:
        # What a container mounts it needs at its next start, too: by force it loses no more than its name.
        return [
            ImageUser(container.id, container.state.running or container.record.image != image)
            for container in self.containers.of_image(image)
        ]

    # --- folders -----------------------------------------------------------------------------------------------------

    def _prepare_folders(self, data_root: Path, exec_root: Path) -> None:
        try:
            data_root.mkdir(mode=0o710, parents=True, exist_ok=True)
            for folder in (exec_root, exec_root / "containers"):
                folder.mkdir(mode=0o711, parents=True, exist_ok=True)
            (data_root / "containers").mkdir(mode=0o710, exist_ok=True)
            self._lock = os.open(data_root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise System(f"cannot use {error.filename}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._unlock()
            raise System(f"another engine uses {data_root}") from error

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    async def _stop_background(self) -> None:
        tasks = {task for container in self.containers for task in container.background}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for container in self.containers:
            if container.task is not None:
                container.task.close()


def _reload_attributes(options: EngineOptions) -> dict[str, str]:
    """What dockerd's reload event tells: every setting that can be reloaded, as it is now."""

    def boolean(value: bool) -> str:
        return "true" if value else "false"

    def strings(values: list[str]) -> str:
        return msgspec.json.encode(values).decode()

    features = " ".join(f"{name}:{boolean(value)}" for name, value in sorted(options.features.items()))
    return {
        "debug": boolean(options.debug),
        "default-ipc-mode": options.default_ipc_mode,
        "default-cgroupns-mode": options.default_cgroupns_mode,
        "default-runtime": options.default_runtime,
        "default-shm-size": str(options.default_shm_size),
        "features": f"map[{features}]",
        "insecure-registries": strings(options.insecure_registries),
        "labels": strings(options.labels),
        "live-restore": boolean(options.live_restore),
        "max-concurrent-downloads": str(options.max_concurrent_downloads),
        "max-concurrent-uploads": str(options.max_concurrent_uploads),
        "max-download-attempts": str(options.max_download_attempts),
        "registry-mirrors": strings(options.registry_mirrors),
        "runtimes": " ".join(f"{name}:{runtime.path}" for name, runtime in options.runtimes.items()),
        "shutdown-timeout": str(options.shutdown_timeout),
    }


def _refuse_emptied(path: Path) -> None:
    """An empty file is a fine database, to SQLite; all that it does not know would be swept away."""
    log_file = path.with_name(f"{path.name}-wal")
    if not path.exists() or path.stat().st_size or (log_file.exists() and log_file.stat().st_size):
        return
    blobs = path.parent / "blobs" / "sha256"
    if blobs.exists() and any(blobs.iterdir()):
        raise System(
            f"cannot use the state database {path}: it is empty, but there are images. Restore a backup, or move it "
            "away to begin anew (containers, images and volumes that only it knows are then lost to the engine)"
        )
