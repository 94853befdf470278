"""SELinux labels on what a container is given of the host: ``:z`` and ``:Z``, volumes, and its name files.

The walk is a worker's, as the trees may be hostile: by descriptor, never through a link, and each entry is labelled by
the descriptor it was found with. A host without SELinux, or a daemon not told to use it, has no labels to give.
"""

from __future__ import annotations

import errno
import os
import pwd
from collections.abc import Iterable, Sequence

import msgspec

from seacan.engine.config import HostConfig
from seacan.engine.mounts import MountPoint
from seacan.engine.profiles import selinux
from seacan.engine.verify import SecurityOptions
from seacan.errors import System
from seacan.linux.descent import Descent
from seacan.linux.syscalls import RESOLVE_NO_SYMLINKS, openat2
from seacan.runtime.bundle import OverlayRoot, Rootfs
from seacan.runtime.failure import words
from seacan.storage import worker

_SYSTEM = frozenset({
    "/", "/bin", "/boot", "/dev", "/etc", "/etc/passwd", "/etc/pki", "/etc/shadow", "/home", "/lib", "/lib64", "/media",
    "/opt", "/proc", "/root", "/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/var", "/var/lib", "/var/log",
})  # fmt: skip
_ANY = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class Tree(msgspec.Struct, frozen=True):
    """``path`` (no link in it) and everything below is to have ``label``."""

    path: str
    label: str


class Request(msgspec.Struct, frozen=True):
    trees: tuple[Tree, ...]


class Result(msgspec.Struct, frozen=True):
    """How many labels were not what they should be."""

    changed: int


def trees(points: Iterable[MountPoint], label: str) -> list[Tree]:
    """What of a container's mounts asks for a label, given the container's mount label.

    Raises System in dockerd's words where one is a folder that the system itself depends on.
    """
    found = []
    for point in points:
        kinds = {"z", "Z"} & set(point.mode.split(","))
        if not label or not kinds or point.type not in ("bind", "volume"):
            continue
        try:
            path = os.path.realpath(point.source, strict=True)
        except OSError as error:
            raise System(f'error evaluating symlinks from mount source "{point.source}": {words(error)}') from error
        if path in _SYSTEM or path in _homes():
            raise System(f"error setting label on mount source '{path}': SELinux relabeling of {path} is not allowed")
        found.append(Tree(path, selinux.shared(label) if "z" in kinds else label))
    return found


def own(
    folder: str, names: Iterable[str], host_config: HostConfig, rootfs: Rootfs, security: SecurityOptions
) -> list[Tree]:
    """What the engine itself makes for a container: its hosts, hostname and resolv.conf, and a root that is no overlay.

    The files of a shared network are for all that share it; an overlay is labelled by an option of its mount.
    """
    label = security.mount_label
    if not label:
        return []
    shared = host_config.network_mode.startswith("container:")
    found = [Tree(f"{folder}/{name}", selinux.shared(label) if shared else label) for name in names]
    return found if isinstance(rootfs, OverlayRoot) else [*found, Tree(rootfs.path, label)]


def everybodys(paths: Iterable[str], security: SecurityOptions) -> list[Tree]:
    """What steps of builds share: the folders of their caches, for one."""
    label = security.mount_label
    return [Tree(path, selinux.shared(label)) for path in paths] if label else []


def _homes() -> set[str]:
    found = {os.environ.get("HOME", "")}
    if user := os.environ.get("SUDO_USER"):
        try:
            found.add(pwd.getpwnam(user).pw_dir)
        except KeyError:
            pass
    return {path.rstrip("/") for path in found if path}


async def relabel(launcher: worker.Launcher, wanted: Sequence[Tree]) -> None:
    """Label them. Raises System."""
    if wanted:
        await worker.run(launcher, "seacan.engine.relabel:main", Request(tuple(wanted)), (), Result)


# --- in the worker ---------------------------------------------------------------------------------------------------


def main(argument: str, fds: Sequence[int]) -> int:
    """The worker's entry."""
    return worker.answer(_work, Request, argument, fds)


def _work(request: Request, _fds: Sequence[int]) -> Result:
    changed = 0
    for tree in request.trees:
        try:
            changed += label_tree(tree)
        except OSError as error:
            if error.errno != errno.ENOTSUP:  # a file system without labels (NFS, 9p): so be it, as for dockerd
                raise System(f"error setting label on mount source '{tree.path}': {words(error)}") from error
    return Result(changed)


def label_tree(tree: Tree) -> int:
    """Label a file, or a folder and all that is in it, also across mounts. Returns how many labels were set.

    Raises OSError. What is removed meanwhile is passed over.
    """
    label = tree.label.encode() + b"\0"
    top = openat2(-100, tree.path, os.O_PATH | os.O_CLOEXEC, resolve=RESOLVE_NO_SYMLINKS)
    try:
        changed = _label(top, label)
        try:
            descent = Descent([top])
        except NotADirectoryError:
            return changed
    finally:
        os.close(top)
    with descent:
        pending = [os.listdir(descent.here[0])]
        while pending:
            if not pending[-1]:
                pending.pop()
                if pending:
                    descent.up()
                continue
            name = pending[-1].pop()
            try:
                entry = os.open(name, _ANY, dir_fd=descent.here[0])
            except FileNotFoundError:
                continue
            try:
                changed += _label(entry, label)
            finally:
                os.close(entry)
            descent.down()
            try:
                descent.step(0, name)
                pending.append(os.listdir(descent.here[0]))
            except (NotADirectoryError, FileNotFoundError, PermissionError):
                descent.up()
            except OSError as error:
                if error.errno != errno.ELOOP:  # O_NOFOLLOW met a link
                    raise
                descent.up()
    return changed


def _label(entry: int, label: bytes) -> int:
    """By the descriptor's name in procfs, which leads to what was opened and, were that a link, no further."""
    path = f"/proc/self/fd/{entry}"
    try:
        if os.getxattr(path, selinux.ATTRIBUTE).rstrip(b"\0") == label.rstrip(b"\0"):
            return 0
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
    os.setxattr(path, selinux.ATTRIBUTE, label)
    return 1
