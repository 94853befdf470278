"""Mounts an overlay as a descriptor: attached to no path, in no namespace, gone when the descriptor is closed."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Sequence

from seacan.linux import syscalls as k
from seacan.linux.paths import part_of

_VALUE_LIMIT = 255
"""Bytes of one fsconfig string."""
_PAGE = 4096
_FD = "/proc/self/fd"


def mount_overlay(
    lower: Sequence[str],
    upper: str | None = None,
    work: str | None = None,
    options: Sequence[str] = (),
    *,
    userns: int = -1,
    subpath: str = "",
) -> int:
    """A descriptor of the mount. ``lower`` lists folders, the topmost first; ``options`` are ``key`` or ``key=value``.

    With ``userns``, the descriptor of a user namespace, owners are seen and set through its mappings, while on disk
    they are what they are inside of it (Linux 5.19): what is root's in the layers is its root's in the mount.
    The caller's own user must have a number there, too, for what overlay makes in the work folder. Only a process with
    a single thread may ask for it.

    With ``subpath``, the mount is of what the overlay has there: a folder or a file, never outside of it.

    Before Linux 6.8 with more layers than one fsconfig string names (about 60), the mount is made for a moment on top
    of a folder, so the caller must then be in a mount namespace of its own.

    Raises:
        OSError: with the mount's options or the layer's path as its file name.
    """
    if subpath and k.kernel() < (6, 15):
        return _elsewhere(lower, upper, work, options, userns, subpath)
    if subpath:
        tree = mount_overlay(lower, upper, work, options, userns=userns)
        try:
            return part_of(tree, subpath)
        finally:
            os.close(tree)
    if upper is None and len(lower) == 1:
        # overlay wants two layers at least; one alone is a read-only view of its folder
        fd = mapped(lower[0], userns) if userns >= 0 else k.open_tree(k.AT_FDCWD, lower[0], k.OPEN_TREE_CLONE)
        k.mount_setattr(fd, set=k.MOUNT_ATTR_RDONLY)
        return fd
    if userns < 0:
        return _mount_folders(lower, upper, work, options)
    if k.kernel() >= (6, 15):
        return _mount_mapped(lower, upper, work, options, userns)
    # An overlay takes only layers that are attached somewhere in the caller's mount namespace.
    return _elsewhere(lower, upper, work, options, userns)


def mapped(path: str, userns: int) -> int:
    """A detached mount of a folder or file with its owners mapped by ``userns`` (mount_setattr(2), Linux 5.12)."""
    fd = k.open_tree(k.AT_FDCWD, path, k.OPEN_TREE_CLONE)
    try:
        k.mount_setattr(fd, set=k.MOUNT_ATTR_IDMAP, userns=userns)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _mount_folders(lower: Sequence[str], upper: str | None, work: str | None, options: Sequence[str]) -> int:
    if _appends_layers():
        return _mount(lower, upper, work, options)
    return _mount_by_number(lower, upper, work, options)


def _mount_mapped(
    lower: Sequence[str],
    upper: str | None,
    work: str | None,
    options: Sequence[str],
    userns: int,
    *,
    attach: bool = False,
) -> int:
    """The overlay itself cannot be mapped (it has no FS_ALLOW_IDMAP); its layers can."""
    with contextlib.ExitStack() as opened:

        def name(folder: str) -> str:
            fd = mapped(folder, userns)
            opened.callback(os.close, fd)
            if attach:
                k.move_mount(fd, k.AT_FDCWD, "/")  # on top of what no lookup crosses
            return f"{_FD}/{fd}"

        layers = [name(layer) for layer in lower]
        if upper is not None and work is not None:
            both = os.path.commonpath((upper, work))  # overlay wants the two of them on one mount
            place = name(both)
            upper, work = (f"{place}/{os.path.relpath(folder, both)}" for folder in (upper, work))
        return _mount_folders(layers, upper, work, options)


def _elsewhere(
    lower: Sequence[str],
    upper: str | None,
    work: str | None,
    options: Sequence[str],
    userns: int,
    subpath: str = "",
) -> int:
    """The mount made by a child in a mount namespace of its own, which hands it over and ends."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            pid, pidfd = k.clone3(k.CLONE_NEWNS)
            if pid == 0:
                try:
                    k.mount("", "/", "", k.MS_REC | k.MS_PRIVATE)
                    if userns >= 0:
                        fd = _mount_mapped(lower, upper, work, options, userns, attach=True)
                    else:
                        fd = _mount_folders(lower, upper, work, options)
                    if subpath:
                        k.move_mount(fd, k.AT_FDCWD, "/")
                        fd = part_of(fd, subpath)
                    socket.send_fds(theirs, [b"0"], [fd])
                except OSError as error:
                    theirs.send(f"{error.errno or errno.EIO} {error.filename or 'overlay'}".encode())
                finally:
                    os._exit(0)
        try:
            message, fds, _, _ = socket.recv_fds(ours, _PAGE, 1)
        finally:
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
            os.close(pidfd)
    if fds:
        os.set_inheritable(fds[0], False)
        return fds[0]
    number, _, where = message.decode().partition(" ")
    code = int(number or errno.EIO)
    raise OSError(code, os.strerror(code), where)


def _appends_layers() -> bool:
    """``lowerdir+`` came with Linux 6.7 and is usable since 6.8; an older kernel refuses it only at the very end."""
    return k.kernel() >= (6, 8)


def _mount(lower: Sequence[str], upper: str | None, work: str | None, options: Sequence[str]) -> int:
    context = k.fsopen("overlay")
    try:
        k.fsconfig_string(context, "source", "overlay")
        with contextlib.ExitStack() as opened:
            for layer in lower:
                k.fsconfig_string(context, "lowerdir+", _short(layer, opened))
            if upper is not None and work is not None:
                k.fsconfig_string(context, "upperdir", _short(upper, opened))
                k.fsconfig_string(context, "workdir", _short(work, opened))
            _set_options(context, options)
            k.fsconfig_create(context)
        return k.fsmount(context)
    finally:
        os.close(context)


def _set_options(context: int, options: Sequence[str]) -> None:
    for option in options:
        key, equals, value = option.partition("=")
        if equals:
            k.fsconfig_string(context, key, value)
        else:
            k.fsconfig_flag(context, key)


def _short(path: str, opened: contextlib.ExitStack) -> str:
    """``path``, or another name of it that fits into an fsconfig string."""
    if len(os.fsencode(path)) <= _VALUE_LIMIT:
        return path
    return f"{_FD}/{_open(path, opened)}"


def _open(path: str, opened: contextlib.ExitStack) -> int:
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    opened.callback(os.close, fd)
    return fd


def _mount_by_number(lower: Sequence[str], upper: str | None, work: str | None, options: Sequence[str]) -> int:
    """All layers in one string, named by the numbers of descriptors: the shortest names there are."""
    with contextlib.ExitStack() as opened:
        layers = ":".join(str(_open(path, opened)) for path in lower)
        folders = [f"{_FD}/{_open(path, opened)}" for path in (upper, work) if path is not None]
        before = _open(".", opened)
        os.chdir(_FD)
        opened.callback(os.fchdir, before)
        if len(layers) <= _VALUE_LIMIT:
            context = opened.enter_context(contextlib.closing(_Context()))
            k.fsconfig_string(context.fd, "source", "overlay")
            k.fsconfig_string(context.fd, "lowerdir", layers)
            for key, folder in zip(("upperdir", "workdir"), folders, strict=False):
                k.fsconfig_string(context.fd, key, folder)
            _set_options(context.fd, options)
            k.fsconfig_create(context.fd)
            return k.fsmount(context.fd)
        names = [f"{key}={folder}" for key, folder in zip(("upperdir", "workdir"), folders, strict=False)]
        data = ",".join([f"lowerdir={layers}", *names, *map(_quoted, options)])
        if len(data) >= _PAGE:
            raise OSError(errno.E2BIG, f"{len(lower)} layers are too many for this kernel", "overlay")
        place = lower[0]
        k.mount("overlay", place, "overlay", 0, data)
        try:
            return k.open_tree(k.AT_FDCWD, place, k.OPEN_TREE_CLONE)
        finally:
            k.umount2(place, k.MNT_DETACH)


def _quoted(option: str) -> str:
    """An SELinux context has commas; the kernel takes it in quotes then."""
    key, equals, value = option.partition("=")
    return f'{key}="{value}"' if equals and "," in value else option


class _Context:
    def __init__(self) -> None:
        self.fd = k.fsopen("overlay")

    def close(self) -> None:
        os.close(self.fd)
