"""Reading and writing the files of a cgroup: the only place where this package touches the kernel's files.

A refused write is :class:`Refused`, worded as runc words it (Go's lower-case error strings), with the errno kept so
that a controller can tell "busy" from "invalid".
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator

from seacan.errors import System


class Refused(System):
    """The kernel refused a value (or has no such file); ``errno`` says why."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.errno = code


def reason(code: int) -> str:
    """strerror(3) as Go prints it."""
    text = os.strerror(code)
    return text[:1].lower() + text[1:]


def write(directory: str, name: str, value: str) -> None:
    """Write ``value`` to a file that exists already (a cgroup file is never created by writing)."""
    path = f"{directory}/{name}"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError as error:
        code = error.errno or errno.EIO
        raise Refused(f"failed to write {quote(value)}: open {path}: {reason(code)}", code) from error
    try:
        os.write(fd, value.encode())
    except OSError as error:
        code = error.errno or errno.EIO
        raise Refused(f"failed to write {quote(value)}: write {path}: {reason(code)}", code) from error
    finally:
        os.close(fd)


def write_each(directory: str, name: str, values: Iterable[str]) -> None:
    """Write several values one after the other to one file, each in a write(2) of its own, opening it once."""
    path = f"{directory}/{name}"
    fd = -1
    try:
        for value in values:
            try:
                if fd < 0:
                    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
                os.write(fd, value.encode())
            except OSError as error:
                code = error.errno or errno.EIO
                raise Refused(f"failed to write {quote(value)}: write {path}: {reason(code)}", code) from error
    finally:
        if fd >= 0:
            os.close(fd)


def quote(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def read(directory: str, name: str) -> str:
    """The whole file; :class:`Refused` when it cannot be read."""
    text = read_if_present(directory, name)
    if text is None:
        raise Refused(f"open {directory}/{name}: {reason(errno.ENOENT)}", errno.ENOENT)
    return text


def read_if_present(directory: str, name: str) -> str | None:
    """The whole file, or None where this kernel (or this cgroup, by now removed) has none."""
    path = f"{directory}/{name}"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        code = error.errno or errno.EIO
        raise Refused(f"open {path}: {reason(code)}", code) from error
    try:
        text = b""
        while block := os.read(fd, 65536):
            text += block
    except OSError as error:
        if error.errno in (errno.ENODEV, errno.EOPNOTSUPP):  # removed meanwhile; not supported in this cgroup
            return None
        code = error.errno or errno.EIO
        raise Refused(f"read {path}: {reason(code)}", code) from error
    finally:
        os.close(fd)
    return text.decode()


def number(directory: str, name: str, default: int = 0) -> int:
    """A file that holds one number; "max" and what is absent are ``default``."""
    text = read_if_present(directory, name)
    if text is None:
        return default
    text = text.strip()
    return int(text) if text.lstrip("-").isdigit() else default


def pairs(directory: str, name: str) -> dict[str, int]:
    """A flat keyed file: one ``key value`` a line."""
    return dict(parse_pairs(read_if_present(directory, name) or ""))


def parse_pairs(text: str) -> Iterator[tuple[str, int]]:
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if value.isdigit():
            yield key, int(value)


def pids(directory: str, name: str = "cgroup.procs") -> list[int]:
    """The processes of a cgroup itself; none when it has gone, or is threaded (EOPNOTSUPP)."""
    return [int(pid) for pid in (read_if_present(directory, name) or "").split()]
