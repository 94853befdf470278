"""The local driver: a folder for each volume, or with ``-o type=… device=… o=…`` whatever mount(8) can mount on it.

The layout is dockerd's: ``<root>/<name>/_data``, and beside it ``opts.json`` if there are options. A volume with
options is mounted on the host while a container uses it, so that what several containers see is one mount; the
engine's recovery unmounts what a crash left mounted.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec

from seacan.errors import InvalidParameter, System
from seacan.linux import syscalls as k

NAME = "local"
DATA = "_data"
OPTIONS_FILE = "opts.json"
_ALLOWED = "[a-zA-Z0-9][a-zA-Z0-9_.-]"
_NAME = re.compile(_ALLOWED + r"+\Z")
_OPTIONS = ("type", "o", "device", "size")
_NEEDS = {"device": ("type",), "type": ("device",), "o": ("device", "type")}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgtpe])?i?b?", re.IGNORECASE)


class SavedOptions(msgspec.Struct, rename="pascal"):
    """``opts.json``, as dockerd writes it."""

    mount_type: str = ""
    mount_opts: str = ""
    mount_device: str = ""

    def options(self) -> dict[str, str]:
        """As the user gave them."""
        return {
            key: value
            for key, value in (("type", self.mount_type), ("o", self.mount_opts), ("device", self.mount_device))
            if value
        }


def check_name(name: str) -> None:
    """Refuse what is no name of a volume; it becomes that of a folder. Raises InvalidParameter."""
    if len(name) == 1:
        raise InvalidParameter("volume name is too short, names should be at least two alphanumeric characters")
    if not _NAME.match(name) or len(name) > 255:
        raise InvalidParameter(
            f'"{name}" includes invalid characters for a local volume name, only "{_ALLOWED}" are allowed. '
            "If you intended to pass a host directory, use absolute path"
        )


def check_options(options: Mapping[str, str]) -> None:
    """Refuse driver options that make no sense. Raises InvalidParameter."""
    for option in options:
        if option not in _OPTIONS:
            raise InvalidParameter(f'invalid option: "{option}"')
    if options.get("type") == "cifs" and options.get("device"):
        _check_url(options["device"])
        if urlsplit(options["device"]).port:
            raise InvalidParameter("port not allowed in CIFS device URL, include 'port' in 'o='")
    if "size" in options:
        if _SIZE.fullmatch(options["size"]) is None:
            raise InvalidParameter(f"invalid size: '{options['size']}'")
        raise InvalidParameter("quota size requested but no quota support")
    for option, needed in _NEEDS.items():
        if option in options:
            for other in needed:
                if other not in options:
                    raise InvalidParameter(f'missing required option: "{other}"')


def _check_url(device: str) -> None:
    """Raises InvalidParameter, in the words of Go's parser, for what is no URL."""
    escape = re.search(r"%(?![0-9a-fA-F]{2}).{0,2}", device)
    host = re.search(r"[\s\"<>\\^`{|}]", device.removeprefix("//").partition("/")[0])
    if host is not None:
        cause = f'invalid character "{host[0]}" in host name'
    elif escape is not None:
        cause = f'invalid URL escape "{escape[0]}"'
    else:
        try:
            urlsplit(device).port  # noqa: B018 - raises for what is no number
            return
        except ValueError as error:
            cause = str(error)
    raise InvalidParameter(f'error parsing mount device url: parse "{device}": {cause}')


def make(folder: Path, options: Mapping[str, str]) -> None:
    """Make the volume's folders; those that are there already are kept. Raises System."""
    data = folder / DATA
    try:
        folder.mkdir(mode=0o701, parents=True, exist_ok=True)
        data.mkdir(mode=0o755, exist_ok=True)
        os.chmod(folder, 0o701)
        if options and not (folder / OPTIONS_FILE).exists():
            saved = SavedOptions(options.get("type", ""), options.get("o", ""), options.get("device", ""))
            temporary = folder / f".{OPTIONS_FILE}"
            temporary.write_bytes(msgspec.json.encode(saved))
            os.chmod(temporary, 0o600)
            temporary.rename(folder / OPTIONS_FILE)
    except OSError as error:
        raise System(f"error while creating volume data path '{data}': {error.strerror}") from error


def saved_options(folder: Path) -> dict[str, str] | None:
    """The options an earlier engine left with a folder; None without."""
    try:
        return msgspec.json.decode((folder / OPTIONS_FILE).read_bytes(), type=SavedOptions).options() or None
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def needs_mount(options: Mapping[str, str] | None) -> bool:
    return bool(options and (options.get("type") or options.get("device")))


def open_subpath(base: str, subpath: str, flags: int) -> int:
    """Open what ``subpath`` of a volume's folder names; links are followed as long as they lead out of nothing.

    Raises System in dockerd's words, caused by the OSError.
    """
    try:
        top = os.open(base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return k.openat2(top, subpath, flags | os.O_CLOEXEC, resolve=k.RESOLVE_BENEATH | k.RESOLVE_NO_MAGICLINKS)
        finally:
            os.close(top)
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise System(f"path concatenation escapes the base directory, base: {base}, subpath: {subpath}") from error
        path = os.path.join(base, subpath)
        raise System(f"cannot access path {path}: lstat {path}: {(error.strerror or '').lower()}") from error


_FLAGS = {
    "ro": k.MS_RDONLY,
    "nosuid": 2,
    "nodev": 4,
    "noexec": 8,
    "sync": 16,
    "remount": 32,
    "mand": 64,
    "dirsync": 128,
    "noatime": 1024,
    "nodiratime": 2048,
    "bind": 4096,
    "rbind": 4096 | 16384,
    "unbindable": 1 << 17,
    "runbindable": 1 << 17 | 16384,
    "private": 1 << 18,
    "rprivate": 1 << 18 | 16384,
    "slave": 1 << 19,
    "rslave": 1 << 19 | 16384,
    "shared": 1 << 20,
    "rshared": 1 << 20 | 16384,
    "relatime": 1 << 21,
    "strictatime": 1 << 24,
}
_CLEAR = {
    "rw": 1,
    "suid": 2,
    "dev": 4,
    "exec": 8,
    "async": 16,
    "nomand": 64,
    "atime": 1024,
    "diratime": 2048,
    "norelatime": 1 << 21,
    "nostrictatime": 1 << 24,
    "defaults": 0,
}
_PROPAGATION = sum(1 << bit for bit in (17, 18, 19, 20))
_MS_REC = 16384
_MS_REMOUNT, _MS_BIND = 32, 4096


def mount(target: str, options: Mapping[str, str]) -> None:
    """mount(2) a volume's device on its folder; network addresses in ``o`` are resolved. May block. Raises System."""
    kind, device, words = options.get("type", ""), options.get("device", ""), options.get("o", "")
    if not device:
        raise System("failed to mount local volume: missing device in volume options")
    password = re.search(r"password=([^,]*)", words)
    device, words = _resolve(kind, device, words)
    flags, data = _flags(words)
    try:
        if kind == "none":
            kind = ""
        propagation = flags & _PROPAGATION
        plain = flags & ~(_PROPAGATION | (0 if flags & _MS_BIND else _MS_REC))
        k.mount(device, target, kind, plain, data)
        if plain & _MS_BIND and plain & ~(_MS_BIND | _MS_REC):
            # A bind mount takes its other flags only from a remount.
            k.mount(device, target, kind, plain | _MS_REMOUNT, data)
        if propagation:
            k.mount("none", target, "", propagation | (flags & _MS_REC))
    except OSError as error:
        given = (f", flags: {hex(flags)}" if flags else "") + (f", data: {data}" if data else "")
        cause = f"mount {device}:{target}{given}: {(error.strerror or '').lower()}"
        if password is not None and password[1]:
            cause = cause.replace(f"password={password[1]}", "password=********")
        raise System(f"failed to mount local volume: {cause}") from error


def unmount(target: str) -> None:
    """Undo :func:`mount`, however often it was; a folder that is not mounted is fine. Raises System."""
    while mounted(target):
        try:
            k.umount2(target, 0)
        except OSError as error:
            if mounted(target):
                raise System(f"unmount {target}: {(error.strerror or '').lower()}") from error


def mounted(target: str) -> bool:
    """Whether something is mounted on ``target`` in this mount namespace."""
    return target in mounts_below(os.path.dirname(target))


def mounts_below(folder: str) -> set[str]:
    """The mount points under a folder, from /proc/self/mountinfo."""
    found = set()
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mountinfo:
        for line in mountinfo:
            path = line.split(" ", 5)[4].replace("\\040", " ").replace("\\134", "\\")
            if path.startswith(folder.rstrip("/") + "/"):
                found.add(path)
    return found


def _flags(words: str) -> tuple[int, str]:
    flags, data = 0, []
    for word in words.split(","):
        if word in _FLAGS:
            flags |= _FLAGS[word]
        elif word in _CLEAR:
            flags &= ~_CLEAR[word]
        elif word:
            data.append(word)
    return flags, ",".join(data)


def _resolve(kind: str, device: str, words: str) -> tuple[str, str]:
    """The kernel's NFS and CIFS clients take addresses only. Raises System when a name is not found."""
    if kind not in ("nfs", "nfs4", "cifs"):
        return device, words
    match = re.search(r"(?:^|,)addr=([^,]+)", words)
    if match is not None and not _is_address(match[1]):
        return device, words.replace(f"addr={match[1]}", f"addr={_lookup(match[1])}", 1)
    if kind == "cifs" and match is None:
        name = urlsplit(device).netloc.rpartition("@")[2]
        if name and not _is_address(name.strip("[]")):
            return unquote(device.replace(name, _lookup(name), 1)), words
    return device, words


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _lookup(name: str) -> str:
    """An address of that name, of IPv4 if it has one."""
    try:
        found = socket.getaddrinfo(name, None, proto=socket.IPPROTO_TCP)
    except (OSError, UnicodeError) as error:
        cause = "no such host"
        if isinstance(error, OSError) and error.errno not in (socket.EAI_NONAME, socket.EAI_NODATA):
            cause = error.strerror or str(error)
        raise System(f"error resolving passed in network volume address: lookup {name}: {cause}") from error
    return str(min(found, key=lambda one: one[0] != socket.AF_INET)[4][0])
