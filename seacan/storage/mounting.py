"""Opens a root file system for a worker, as a mount that is attached nowhere and vanishes with its descriptor.

Not how containers get their root: that is the runtime's, inside the container's mount namespace.
"""

from __future__ import annotations

import os

from seacan.errors import System
from seacan.linux.overlay import mount_overlay
from seacan.linux.syscalls import CLONE_NEWNS, CLONE_NEWUSER, OPEN_TREE_CLONE, open_tree, setns
from seacan.runtime.bundle import DirectoryRoot, Rootfs


def open_rootfs(rootfs: Rootfs) -> int:
    """A descriptor of the root folder. Raises :class:`System`."""
    if isinstance(rootfs, DirectoryRoot):
        return os.open(rootfs.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return mount_overlay(rootfs.lower, rootfs.upper, rootfs.work, rootfs.options)
    except OSError as error:
        raise System(f"mounting overlay of {len(rootfs.lower)} layers: {error.strerror}") from error


def open_running(pid: int) -> int:
    """A descriptor of the root of a running container, whose init is ``pid``, without what is mounted in it.

    A second overlay of layers that are in use would give what the kernel calls undefined behaviour. The process, which
    must have one thread, is in the container's mount and user namespace afterwards, so that owners are those that the
    container sees. Raises OSError, before anything has changed, when the container has ended.
    """
    namespaces = [os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in ("mnt", "user")]
    mounts, users = namespaces
    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    if os.path.samestat(os.fstat(mounts), os.stat("/proc/self/ns/mnt")):
        raise ProcessLookupError(f"process {pid} is no container's")
    remapped = not os.path.samestat(os.fstat(users), os.stat("/proc/self/ns/user"))
    setns(mounts, CLONE_NEWNS)
    os.fchdir(root)
    tree = open_tree(-100, ".", OPEN_TREE_CLONE)
    if remapped:
        setns(users, CLONE_NEWUSER)
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    for fd in (*namespaces, root):
        os.close(fd)
    return tree
