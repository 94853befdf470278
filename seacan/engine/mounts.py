"""What a container has mounted: dockerd's `-v`, `--mount`, `--volumes-from` and image volumes, read into mount points.

Parsing and checking only. The volumes themselves are made by :class:`seacan.volumes.volumes.Volumes`, the mounts by the
runtime.
"""

from __future__ import annotations

import posixpath
from pathlib import Path

import msgspec

from seacan.engine.config import BindOptions, HostConfig, Mount, TmpfsOptions, VolumeDriverConfig, VolumeOptions
from seacan.errors import InvalidParameter

PROPAGATIONS = frozenset({"private", "rprivate", "slave", "rslave", "shared", "rshared"})
_RW = frozenset({"rw", "ro"})
_LABELS = frozenset({"z", "Z"})
_CONSISTENCIES = frozenset({"consistent", "cached", "delegated", "default"})
_COPIES = frozenset({"nocopy"})


class MountPoint(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One mount of a container, resolved: ``source`` is a path on the host (for an image, its reference; for a tmpfs,
    empty)."""

    type: str
    destination: str
    source: str = ""
    name: str = ""
    """The volume's name."""
    driver: str = ""
    mode: str = ""
    rw: bool = True
    propagation: str = ""
    copy: bool = False
    """Whether a new volume is filled with what the image has at ``destination``."""
    create_source: bool = False
    """Whether a bind's missing source is made (as a directory), as `-v` does."""
    anonymous: bool = False
    """A volume without a name of the user's: removed by `docker rm -v`."""
    image: str = ""
    """Which image ``source`` was when the container was made."""
    spec: Mount = msgspec.field(default_factory=Mount)
    """What was asked for, with the options of its type."""


def parse_bind(raw: str, volume_driver: str = "") -> MountPoint:
    """Read one ``source:destination[:mode]`` of HostConfig.Binds.

    Raises:
        InvalidParameter: in dockerd's words.
    """
    parts = raw.split(":", 3)
    invalid = f"invalid volume specification: '{raw}'"
    if not parts[0] or len(parts) > 3:
        raise InvalidParameter(invalid)
    source, target, mode = "", parts[0], ""
    if len(parts) == 2:
        if valid_mode(parts[1]):
            raise InvalidParameter(invalid)
        source, target = parts
    elif len(parts) == 3:
        source, target, mode = parts
    if not valid_mode(mode):
        raise InvalidParameter(f"invalid mode: {mode}")
    words = mode.split(",")
    spec = Mount(type="bind" if source.startswith("/") else "volume", source=source, target=target)
    spec.read_only = "ro" in words
    if spec.type == "volume" and (volume_driver or "nocopy" in words):
        spec.volume_options = VolumeOptions(
            no_copy="nocopy" in words, driver_config=VolumeDriverConfig(name=volume_driver) if volume_driver else None
        )
    propagation = next((word for word in words if word in PROPAGATIONS), "")
    if propagation:
        spec.bind_options = BindOptions(propagation=propagation)
    try:
        mount = _mount_point(spec)
    except InvalidParameter as error:
        raise InvalidParameter(f"{invalid}: {error}") from error
    mount.mode = mode
    mount.create_source = mount.type == "bind"
    return mount


def parse_mount(spec: Mount) -> MountPoint:
    """Read one of HostConfig.Mounts.

    Raises:
        InvalidParameter: in dockerd's words.
    """
    mount = _mount_point(spec)
    if spec.type == "bind":
        mount.create_source = bool(spec.bind_options and spec.bind_options.create_mountpoint)
        if not mount.create_source and not Path(mount.source).exists():
            raise _refused(spec, f"bind source path does not exist: {mount.source}")
    return mount


def parse_volumes_from(raw: str) -> tuple[str, bool]:
    """Read one of HostConfig.VolumesFrom: the container's name and whether its volumes stay writable.

    Raises:
        InvalidParameter: in dockerd's words.
    """
    if not raw:
        raise InvalidParameter("volumes-from specification cannot be an empty string")
    name, _, mode = raw.partition(":")
    words = mode.split(",")
    if not valid_mode(mode) or any(word in PROPAGATIONS or word in _COPIES for word in words):
        raise InvalidParameter(f"invalid mode: {mode}")
    return name, "ro" not in words


def valid_mode(mode: str) -> bool:
    """Whether ``mode`` is a comma-separated list with at most one word of each kind."""
    if not mode:
        return True
    words = mode.split(",")
    kinds = (_RW, _LABELS, PROPAGATIONS, _COPIES, _CONSISTENCIES)
    return all(any(word in kind for kind in kinds) for word in words) and all(
        sum(word in kind for word in words) <= 1 for kind in kinds
    )


def tmpfs_data(options: TmpfsOptions | None) -> list[str]:
    """The mount options that stand for ``options``.

    Raises:
        InvalidParameter: an option dockerd refuses.
    """
    if options is None:
        return []
    data = []
    if options.mode:
        data.append(f"mode={options.mode:o}")
    if options.size_bytes:
        data.append(f"size={options.size_bytes}")
    for option in options.options or []:
        if not 1 <= len(option) <= 2:
            raise InvalidParameter("invalid option array length")
        if option[0] not in ("exec", "noexec"):
            raise InvalidParameter(f"invalid option: {option[0]}")
        data.append("=".join(option))
    return data


def check_mounts(host_config: HostConfig) -> None:
    """Refuse mounts that contradict themselves or each other, before anything is made for them."""
    taken = {posixpath.normpath(path) for path in host_config.tmpfs or {}}
    for raw in host_config.binds or []:
        _take(parse_bind(raw, host_config.volume_driver).destination, taken)
    taken -= {posixpath.normpath(path) for path in host_config.tmpfs or {}}
    for spec in host_config.mounts or []:
        parse_mount(spec)
        _take(posixpath.normpath(spec.target), taken)


def _take(destination: str, taken: set[str]) -> None:
    if destination in taken:
        raise InvalidParameter(f"Duplicate mount point: {destination}")
    taken.add(destination)


def _mount_point(spec: Mount) -> MountPoint:
    for type, options, name in (
        ("bind", spec.bind_options, "BindOptions"),
        ("volume", spec.volume_options, "VolumeOptions"),
        ("image", spec.image_options, "ImageOptions"),
        ("tmpfs", spec.tmpfs_options, "TmpfsOptions"),
        ("cluster", spec.cluster_options, "ClusterOptions"),
    ):
        if spec.type != type and options is not None:
            raise _refused(spec, f"field {name} must not be specified")
    if not spec.target:
        raise _refused(spec, "field Target must not be empty")
    if posixpath.normpath(spec.target) in ("/", "//"):
        raise _refused(spec, "invalid specification: destination can't be '/'")
    if not spec.target.startswith("/"):
        raise _refused(spec, f"invalid mount path: '{spec.target}' mount path must be absolute")
    mount = MountPoint(type=spec.type, destination=posixpath.normpath(spec.target), rw=not spec.read_only, spec=spec)
    if spec.type == "bind":
        _bind(spec, mount)
    elif spec.type == "volume":
        _volume(spec, mount)
    elif spec.type == "tmpfs":
        if spec.source:
            raise _refused(spec, "field Source must not be specified")
        try:
            tmpfs_data(spec.tmpfs_options)
        except InvalidParameter as error:
            raise _refused(spec, str(error)) from error
    elif spec.type == "image":
        if not spec.source:
            raise _refused(spec, "field Source must not be empty")
        if spec.image_options and spec.image_options.subpath:
            _check_subpath(spec, spec.image_options.subpath)
        mount.source, mount.rw, mount.propagation = spec.source, False, "rprivate"
    else:
        raise _refused(spec, "mount type unknown")
    return mount


def _bind(spec: Mount, mount: MountPoint) -> None:
    if not spec.source:
        raise _refused(spec, "field Source must not be empty")
    propagation = spec.bind_options.propagation if spec.bind_options else ""
    if propagation and propagation not in PROPAGATIONS:
        raise _refused(spec, f"invalid propagation mode: {propagation}")
    if not spec.source.startswith("/"):
        raise _refused(spec, f"invalid mount path: '{spec.source}' mount path must be absolute")
    mount.source = posixpath.normpath(spec.source)
    mount.propagation = propagation or "rprivate"


def follow_root(mount: MountPoint, root: str) -> None:
    """See that a bind of the daemon's own folders, or of one above them, follows what is unmounted there: a volume with
    options would stay mounted for as long as the container is there.

    Raises:
        InvalidParameter: it is asked not to, in dockerd's words.
    """
    if mount.type != "bind" or not (_below(mount.source, root) or _below(root, mount.source)):
        return
    asked = mount.spec.bind_options.propagation if mount.spec.bind_options else ""
    if not asked:
        mount.propagation = "rslave"
    elif asked not in ("rslave", "rshared"):
        raise InvalidParameter(
            'invalid mount config: must use either propagation mode "rslave" or "rshared" when mount source is within '
            f'the daemon root, daemon root: "{root}", bind mount source: "{mount.source}", propagation: "{asked}"'
        )


def _below(path: str, folder: str) -> bool:
    return f"{path}/".startswith(f"{folder.rstrip('/')}/")


def _volume(spec: Mount, mount: MountPoint) -> None:
    options = spec.volume_options or VolumeOptions()
    mount.name = spec.source
    mount.anonymous = not spec.source
    mount.copy = not options.no_copy
    if options.driver_config:
        mount.driver = options.driver_config.name
    if options.subpath:
        if not spec.source:
            raise _refused(spec, "must not set Subpath when using anonymous volumes")
        _check_subpath(spec, options.subpath)


def _check_subpath(spec: Mount, subpath: str) -> None:
    clean = posixpath.normpath(subpath)
    if clean == ".." or clean.startswith(("/", "../")):
        raise _refused(spec, "subpath must be a relative path within the volume")


def _refused(spec: Mount, cause: str) -> InvalidParameter:
    return InvalidParameter(f'invalid mount config for type "{spec.type}": {cause}')
