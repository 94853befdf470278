"""Opens a root file system for a worker, as a mount that is attached nowhere and vanishes with its descriptor.

Not how containers get their root: that is the runtime's, inside the container's mount namespace.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os

from seacan.errors import System
from seacan.runtime.bundle import DirectoryRoot, OverlayRoot, Rootfs

# From linux/mount.h and the kernel's unified system call numbers (the same on every architecture since 5.2).
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_FSOPEN_CLOEXEC = 1
_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 0, 1, 6
_FSMOUNT_CLOEXEC = 1
_VALUE_LIMIT = 255
_PAGE = 4096

_libc = ctypes.CDLL(None, use_errno=True)


def _call(number: int, what: str, *arguments: int | bytes | None) -> int:
    result: int = _libc.syscall(number, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def open_rootfs(rootfs: Rootfs) -> int:
    """A descriptor of the root folder. Raises :class:`System`."""
    if isinstance(rootfs, DirectoryRoot):
        return os.open(rootfs.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return mount_overlay(rootfs)
    except OSError as error:
        raise System(f"mounting overlay of {len(rootfs.lower)} layers: {error.strerror}") from error


def mount_overlay(root: OverlayRoot) -> int:
    """Mount without attaching; gives the mount's descriptor. Raises :class:`OSError`."""
    with contextlib.ExitStack() as opened:
        context = _call(_FSOPEN, "fsopen overlay", b"overlay", _FSOPEN_CLOEXEC)
        opened.callback(os.close, context)

        def configure(key: str, value: str) -> None:
            encoded = os.fsencode(value)
            if len(encoded) > _VALUE_LIMIT:
                # The call takes no longer values; a descriptor's name is short.
                folder = os.open(value, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                opened.callback(os.close, folder)
                encoded = b"/proc/self/fd/%d" % folder
            _call(_FSCONFIG, f"fsconfig {key}={value}", context, _FSCONFIG_SET_STRING, key.encode(), encoded, 0)

        for option in root.options:
            key, equals, value = option.partition("=")
            if equals:
                configure(key, value)
            else:
                _call(_FSCONFIG, f"fsconfig {key}", context, _FSCONFIG_SET_FLAG, key.encode(), None, 0)
        try:
            for lower in root.lower:
                configure("lowerdir+", lower)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            configure("lowerdir", _joined(root.lower))  # before Linux 6.5
        if root.upper is not None and root.work is not None:
            configure("upperdir", root.upper)
            configure("workdir", root.work)
        _call(_FSCONFIG, "overlay", context, _FSCONFIG_CMD_CREATE, None, None, 0)
        return _call(_FSMOUNT, "fsmount overlay", context, _FSMOUNT_CLOEXEC, 0)


def _joined(lower: tuple[str, ...]) -> str:
    text = ":".join(path.replace("\\", "\\\\").replace(":", "\\:") for path in lower)
    if len(os.fsencode(text)) >= _PAGE:
        raise OSError(errno.E2BIG, "this kernel (before 6.5) cannot mount that many layers")
    return text
