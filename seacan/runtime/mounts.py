"""Mounts as a plan: what each mount of the specification means, worked out before anything is touched.

:func:`plan` is pure; :mod:`seacan.runtime.rootfs` carries the result out. The options are those of the runtime
specification ("Linux mount options"); whatever is not an option of the VFS is data for the file system.
"""

from __future__ import annotations

import posixpath
from typing import Final, Literal

import msgspec

from seacan.errors import InvalidParameter
from seacan.linux import syscalls as k
from seacan.linux.overlay import mount_overlay
from seacan.runtime import spec

_ATIME: Final = k.MOUNT_ATTR__ATIME

_ATTRIBUTES: Final[dict[str, tuple[int, int]]] = {  # option: (set, clear)
    "ro": (k.MOUNT_ATTR_RDONLY, 0),
    "rw": (0, k.MOUNT_ATTR_RDONLY),
    "nosuid": (k.MOUNT_ATTR_NOSUID, 0),
    "suid": (0, k.MOUNT_ATTR_NOSUID),
    "nodev": (k.MOUNT_ATTR_NODEV, 0),
    "dev": (0, k.MOUNT_ATTR_NODEV),
    "noexec": (k.MOUNT_ATTR_NOEXEC, 0),
    "exec": (0, k.MOUNT_ATTR_NOEXEC),
    "noatime": (k.MOUNT_ATTR_NOATIME, _ATIME),
    "atime": (k.MOUNT_ATTR_RELATIME, _ATIME),
    "relatime": (k.MOUNT_ATTR_RELATIME, _ATIME),
    "norelatime": (k.MOUNT_ATTR_STRICTATIME, _ATIME),
    "strictatime": (k.MOUNT_ATTR_STRICTATIME, _ATIME),
    "nostrictatime": (k.MOUNT_ATTR_RELATIME, _ATIME),
    "nodiratime": (k.MOUNT_ATTR_NODIRATIME, 0),
    "diratime": (0, k.MOUNT_ATTR_NODIRATIME),
    "nosymfollow": (k.MOUNT_ATTR_NOSYMFOLLOW, 0),
    "symfollow": (0, k.MOUNT_ATTR_NOSYMFOLLOW),
}

PROPAGATION: Final = {
    "private": k.MS_PRIVATE,
    "rprivate": k.MS_PRIVATE | k.MS_REC,
    "shared": k.MS_SHARED,
    "rshared": k.MS_SHARED | k.MS_REC,
    "slave": k.MS_SLAVE,
    "rslave": k.MS_SLAVE | k.MS_REC,
    "unbindable": k.MS_UNBINDABLE,
    "runbindable": k.MS_UNBINDABLE | k.MS_REC,
}

_SUPERBLOCK: Final = {"sync", "async", "dirsync", "mand", "nomand", "lazytime", "nolazytime", "iversion"}
_WITHOUT_EFFECT: Final = {"defaults", "silent", "loud", "noiversion", "remount"}

KNOWN_OPTIONS: Final = sorted(
    {*_ATTRIBUTES, *("r" + name for name in _ATTRIBUTES), *PROPAGATION, *_SUPERBLOCK, *_WITHOUT_EFFECT}
    | {"bind", "rbind", "idmap", "ridmap", "tmpcopyup"}
)
"""For ``features``."""

# What may be mounted over below /proc, because lxcfs and its like do so: everything else there could fool a later
# write of ours to procfs, or unmask what is masked (CVE-2019-16884).
PROC_ALLOWED: Final = frozenset(
    "/proc/" + name
    for name in (
        "cpuinfo",
        "diskstats",
        "meminfo",
        "stat",
        "swaps",
        "uptime",
        "loadavg",
        "slabinfo",
        "sys/kernel/ns_last_pid",
        "sys/crypto/fips_enabled",
    )
)


class MountPlan(msgspec.Struct, gc=False):
    """One mount. ``set`` and ``clear`` are MOUNT_ATTR_*; ``tree_set`` and ``tree_clear`` apply to all below, too."""

    kind: Literal["bind", "filesystem", "cgroup", "remount"]
    destination: str
    type: str
    source: str
    recursive: bool = False
    set: int = 0
    clear: int = 0
    tree_set: int = 0
    tree_clear: int = 0
    superblock: list[str] = []
    data: list[tuple[str, str | None]] = []
    propagation: list[int] = []
    copy_up: bool = False
    label: str = ""
    """An SELinux label for the root of what takes none as an option: its superblock is older than the mount."""
    idmap: Literal["", "mount", "tree"] = ""
    uid_mappings: list[spec.IDMapping] = []
    gid_mappings: list[spec.IDMapping] = []
    fd: int = -1
    """A detached mount made ahead (for user namespaces and ID mapping, which need the host's privileges)."""

    @property
    def readonly(self) -> bool:
        return bool(self.set & k.MOUNT_ATTR_RDONLY)

    def where(self) -> str:
        """The words of an error about this mount, as runc has them."""
        return f'error mounting "{self.source}" to rootfs at "{self.destination}"'


def plan(mount: spec.Mount, bundle: str, mount_label: str = "") -> MountPlan:
    """Work out one mount. Raises InvalidParameter."""
    destination = mount.destination
    if not destination:
        raise InvalidParameter("invalid mount: a mount without a destination")
    if not destination.startswith("/"):
        destination = "/" + destination  # as runc, which warns that the specification forbids it
    result = MountPlan("filesystem", posixpath.normpath("/" + destination.lstrip("/")), mount.type, mount.source)
    result.uid_mappings, result.gid_mappings = mount.uid_mappings, mount.gid_mappings
    for option in mount.options:
        _apply(result, option)
    if result.kind == "remount":
        pass
    elif result.kind == "bind" or mount.type in ("bind", "none"):
        result.kind = "bind"
        if not result.source.startswith("/"):
            result.source = posixpath.join(bundle, result.source)
    elif mount.type in ("cgroup", "cgroup2"):
        result.kind = "cgroup"
    elif not mount.type:
        raise InvalidParameter(f"invalid mount {mount.destination}: no type, and not a bind mount")
    if (result.uid_mappings or result.gid_mappings) and not result.idmap:
        result.idmap = "mount"
    if result.idmap and result.kind != "bind" and mount.type != "overlay":
        raise InvalidParameter(f"invalid mount {mount.destination}: id-mapped mounts are only for bind mounts")
    if mount_label and result.kind == "filesystem" and mount.type not in ("proc", "sysfs"):
        if mount.type == "mqueue":
            result.label = mount_label
        else:
            result.data.append(("context", mount_label))
    return result


def mount_layers(mount: MountPlan, userns: int = -1) -> int:
    """A descriptor of a read-only overlay, or of the part of it that is wanted. Raises OSError.

    ``userns``: see :func:`seacan.linux.overlay.mount_overlay`.
    """
    subpath = taken_subpath(mount)
    lower = [value for key, value in mount.data if key == "lowerdir+" and value is not None]
    others = [key if value is None else f"{key}={value}" for key, value in mount.data if key != "lowerdir+"]
    return mount_overlay(lower, options=others, userns=userns, subpath=subpath)


def taken_subpath(plan: MountPlan) -> str:
    """The value of a mount's option ``subpath=``, which the kernel does not know; empty if there is none."""
    value = next((value for key, value in plan.data if key == "subpath"), None) or ""
    plan.data = [item for item in plan.data if item[0] != "subpath"]
    return value


def _apply(result: MountPlan, option: str) -> None:
    if option in _ATTRIBUTES:
        attr_set, attr_clear = _ATTRIBUTES[option]
        result.set = result.set & ~attr_clear | attr_set
        result.clear = (result.clear | attr_clear) & ~(attr_set & ~_ATIME)
        if option in ("ro", "rw"):
            result.superblock = [flag for flag in result.superblock if flag != "ro"]
            if option == "ro":
                result.superblock.append("ro")
    elif option in PROPAGATION:
        result.propagation.append(PROPAGATION[option])
    elif option in ("bind", "rbind"):
        result.kind = "bind"
        result.recursive = option == "rbind"
    elif option in _SUPERBLOCK:
        result.superblock.append(option)
    elif option == "remount":
        result.kind = "remount"
    elif option in _WITHOUT_EFFECT:
        pass
    elif option.startswith("r") and option[1:] in _ATTRIBUTES:
        attr_set, attr_clear = _ATTRIBUTES[option[1:]]
        result.tree_set = result.tree_set & ~attr_clear | attr_set
        result.tree_clear = (result.tree_clear | attr_clear) & ~(attr_set & ~_ATIME)
    elif option == "tmpcopyup":
        result.copy_up = True
    elif option in ("idmap", "ridmap"):
        result.idmap = "tree" if option == "ridmap" else "mount"
    else:
        key, equals, value = option.partition("=")
        result.data.append((key, value if equals else None))
