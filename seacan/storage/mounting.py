"""Opens a root file system for a worker, as a mount that is attached nowhere and vanishes with its descriptor.

Not how containers get their root: that is the runtime's, inside the container's mount namespace.
"""

from __future__ import annotations

import errno
import os

from seacan.errors import System
from seacan.linux import syscalls as k
from seacan.linux.overlay import mount_overlay
from seacan.runtime.bundle import DirectoryRoot, OverlayRoot, Rootfs
from seacan.storage import worker


def open_rootfs(rootfs: Rootfs) -> int:
    """A descriptor of the root folder. Raises :class:`System`."""
    if isinstance(rootfs, DirectoryRoot):
        return os.open(rootfs.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return mount_overlay(rootfs.lower, rootfs.upper, rootfs.work, rootfs.options)
    except OSError as error:
        raise System(f"mounting overlay of {len(rootfs.lower)} layers: {error.strerror}") from error


def open_running(pid: int, rootfs: Rootfs) -> int | None:
    """A descriptor of the root of a running container, whose init is ``pid``, without what is mounted in it.

    A second overlay of layers that are in use would give what the kernel calls undefined behaviour. The process, which
    must have one thread, is in the container's mount and user namespace afterwards, so that owners are those that the
    container sees, and imports no more. None, and nothing has changed, when the container has ended or its init has its
    root elsewhere (a chroot in the container, or a runtime that is no OCI one inside). Raises OSError.
    """
    try:
        namespaces = [os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in ("mnt", "user")]
        root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        kind = _root_kind(pid)
    except (FileNotFoundError, ProcessLookupError):
        return None
    mounts, users = namespaces
    if os.path.samestat(os.fstat(mounts), os.stat("/proc/self/ns/mnt")):
        return None  # the container has ended, and its init's number is another process's
    if not kind or (isinstance(rootfs, OverlayRoot) and kind != "overlay"):
        return None
    remapped = not os.path.samestat(os.fstat(users), os.stat("/proc/self/ns/user"))
    worker.forbid_imports()
    k.setns(mounts, k.CLONE_NEWNS)
    os.fchdir(root)
    tree = k.open_tree(k.AT_FDCWD, ".", k.OPEN_TREE_CLONE)
    # The container may put a device where a file has just been seen, and its cgroup does not bind this process.
    try:
        k.mount_setattr(tree, set=k.MOUNT_ATTR_NODEV)
    except OSError as error:
        if error.errno != errno.ENOSYS:  # before Linux 5.12
            raise
    if remapped:
        k.setns(users, k.CLONE_NEWUSER)
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    for fd in (*namespaces, root):
        os.close(fd)
    return tree


def _root_kind(pid: int) -> str:
    """The type of the file system whose mount is a process's root; empty where that is a folder within a mount."""
    kind = ""
    with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape") as mountinfo:
        for line in mountinfo:
            before, _, after = line.partition(" - ")
            if before.split(" ")[4] == "/":
                kind = after.partition(" ")[0]
    return kind
