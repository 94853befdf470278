"""What goes wrong while a process is made ready, in runc's words, on its way from the child to the caller."""

from __future__ import annotations

import errno
import os
from types import TracebackType

import msgspec

from seacan.errors import RuntimeFailed, SeacanError


def words(error: OSError) -> str:
    """The errno's text as Go prints it: in lower case."""
    text = error.strerror or (os.strerror(error.errno) if error.errno else str(error))
    return text[:1].lower() + text[1:]


def exit_code_of(message: str) -> int:
    """The exit code dockerd gives a container whose creation failed with that message."""
    lower = message.lower()
    if "executable file not found" in lower or "no such file or directory" in lower or "not a directory" in lower:
        return 127
    if "permission denied" in lower or "is a directory" in lower:
        return 126
    return 128


class SetupFailed(Exception):
    """A step of the setup failed; the message is the tail of runc's sentence."""

    def __init__(self, message: str, exit_code: int = 0) -> None:
        super().__init__(message)
        self.exit_code = exit_code or exit_code_of(message)


class step:
    """Turn an OSError of the block into SetupFailed: ``<what>: <path>: <words>``."""

    __slots__ = ("_path", "_what")

    def __init__(self, what: str, path: bool = False) -> None:
        self._what = what
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, OSError):
            detail = words(error)
            if self._path and isinstance(error.filename, str) and error.filename:
                detail = f"{error.filename}: {detail}"
            raise SetupFailed(f"{self._what}: {detail}") from error


class Report(msgspec.Struct, frozen=True):
    """A failure as it crosses from child to parent."""

    message: str
    exit_code: int


def report(error: BaseException) -> bytes:
    """Any failure of the child, packed for the parent."""
    if isinstance(error, SetupFailed):
        found = Report(str(error), error.exit_code)
    elif isinstance(error, SeacanError):
        found = Report(str(error), 128)
    elif isinstance(error, OSError):
        path = f"{error.filename}: " if error.filename else ""
        found = Report(f"{path}{words(error)}", 128)
    else:
        found = Report(f"{type(error).__name__}: {error}", 128)
    return msgspec.json.encode(found)


def raised(data: bytes, prefix: str) -> RuntimeFailed:
    """The caller's exception for a report; ``prefix`` is runc's beginning of the sentence."""
    found = msgspec.json.decode(data, type=Report)
    return RuntimeFailed(prefix + found.message, found.exit_code)


def not_permitted(error: OSError) -> bool:
    return error.errno in (errno.EPERM, errno.EACCES)
