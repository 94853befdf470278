"""What is remembered of a container in its state folder, and how to tell whether its process still is that process."""

from __future__ import annotations

import datetime
import os

import msgspec

from seacan.errors import NotFound, System
from seacan.runtime.spec import LinuxPersonality

FILE = "state.json"
SOCKET = "init.sock"
"""Where a container that was created by a command that has ended waits for `start`; gone once it has started."""


class Saved(msgspec.Struct, rename="camel", frozen=True):
    """``state.json``: the OCI state, and what another process needs to take over."""

    oci_version: str
    id: str
    pid: int
    start_time: int
    """Of the init process, in clock ticks since boot: tells a reused pid."""
    bundle: str
    rootfs: str
    created: str
    cgroup: str
    namespaces: int
    """CLONE_NEW* of the namespaces that differ from the runtime's."""
    spec: msgspec.Raw
    """A :class:`~seacan.runtime.spec.Spec`, encoded: an exec does without, and saves half a millisecond."""
    annotations: dict[str, str] = {}
    personality: LinuxPersonality | msgspec.UnsetType | None = msgspec.UNSET
    """The configuration's; not set by versions that did not write it."""
    no_pivot: bool = False
    status: str = ""
    owner: str = ""


def now() -> str:
    """The time as RFC 3339 with nine digits, as Go prints it."""
    at = datetime.datetime.now(datetime.UTC)
    return at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond * 1000:09d}Z"


def save(folder: str, saved: Saved) -> None:
    """Write ``state.json`` so that a reader sees the old or the new, never half."""
    temporary = f"{folder}/.{FILE}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.write(fd, msgspec.json.encode(saved))
    finally:
        os.close(fd)
    os.rename(temporary, f"{folder}/{FILE}")


def read(folder: str, id: str) -> Saved:
    """Raises NotFound when there is no such container."""
    try:
        with open(f"{folder}/{FILE}", "rb", buffering=0) as file:
            return msgspec.json.decode(file.read(), type=Saved)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound("container does not exist") from None
    except (msgspec.DecodeError, OSError) as error:
        raise System(f"unable to load the state of container {id}: {error}") from error


def process_status(pid: int) -> tuple[str, int]:
    """(state letter, start time) of /proc/pid/stat; ("", 0) when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return "", 0
    return fields[0].decode(), int(fields[19])


def alive(pid: int, start_time: int) -> bool:
    """Whether that very process exists and is not a zombie."""
    letter, started = process_status(pid)
    return letter not in ("", "Z", "X") and started == start_time
