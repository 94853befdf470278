"""``--userns-remap``: from a user's name to the ranges of IDs that containers are given, with dockerd's words.

The accounts of this host (passwd, group, subuid, subgid) are read as files, as dockerd reads them. Only the special
name ``default`` changes anything: its user ``dockremap`` is made when it is missing.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from seacan.engine.config import HostConfig
from seacan.engine.options import EngineOptions
from seacan.errors import InvalidParameter, System
from seacan.linux.userns import Range, outside
from seacan.runtime import spec
from seacan.runtime.bundle import DirectoryRoot, Mapping, OverlayRoot, Rootfs
from seacan.runtime.failure import SetupFailed
from seacan.runtime.rootfs import mount_root
from seacan.storage import worker

log = logging.getLogger(__name__)

DEFAULT = "default"
DEFAULT_USER = "dockremap"
_FIRST = 100_000
_COUNT = 65_536
_MAXIMUM = (1 << 32) - 1
_NO_USER = "no matching entries in passwd file"
_NO_GROUP = "no matching entries in group file"


class _Account(NamedTuple):
    name: str
    number: int


def resolve(specification: str, etc: Path = Path("/etc")) -> Mapping | None:
    """The mappings for ``default``, ``user``, ``uid``, ``user:group`` or ``uid:gid``; None for root, who stays root.

    ``etc`` holds the four files. As with dockerd the group is only seen to exist: both ranges are the user's.

    Raises InvalidParameter.
    """
    user = _user(specification, etc)
    if user.name == "root":
        log.warning("User namespaces: root cannot be remapped with itself; user namespaces are OFF")
        return None
    log.info("User namespaces: ID ranges will be mapped to subuid/subgid ranges of: %s", user.name)
    try:
        return Mapping(_ranges(etc / "subuid", user), _ranges(etc / "subgid", user))
    except InvalidParameter as error:
        raise InvalidParameter(f"Can't create ID mappings: {error}") from error


class Probe(msgspec.Struct, frozen=True):
    """What :func:`check` asks its worker: whether a root below ``folder`` can be seen through ``mapping``."""

    folder: str
    driver: str
    mapping: Mapping


class Obstacle(msgspec.Struct, frozen=True):
    """Why not; empty if it can."""

    reason: str


async def check(launcher: worker.Launcher, driver: str, data_root: Path, mapping: Mapping) -> None:
    """See that containers can be given these users on this host. Raises System."""
    probe = Probe(str(data_root), driver, mapping)
    obstacle = await worker.run(launcher, "seacan.engine.remap:main", probe, (), Obstacle)
    if obstacle.reason:
        raise System(
            f"--userns-remap: {obstacle.reason}. It needs user namespaces (sysctl user.max_user_namespaces), "
            "Linux 5.19, and a file system below the data root that can be mounted with mapped owners"
        )


def main(argument: str, fds: Sequence[int]) -> int:
    """The worker's entry."""
    return worker.answer(_probe, Probe, argument, fds)


def _probe(probe: Probe, _fds: Sequence[int]) -> Obstacle:
    with tempfile.TemporaryDirectory(dir=probe.folder, prefix=".probe-") as scratch:
        lower, upper, work = (f"{scratch}/{name}" for name in ("lower", "upper", "work"))
        for path in (lower, upper, work):
            os.mkdir(path)
        rootfs: Rootfs = DirectoryRoot(lower, probe.mapping)
        if probe.driver == "overlay2":
            rootfs = OverlayRoot((lower,), upper, work, mapping=probe.mapping)
        try:
            root = mount_root(rootfs)
        except SetupFailed as error:
            return Obstacle(str(error))
        try:
            owner = os.stat(root).st_uid
        finally:
            os.close(root)
    wanted = outside(probe.mapping.uids, os.getuid())
    return Obstacle("" if owner == wanted else f"owners are not mapped ({owner} instead of {wanted})")


def of(mapping: Mapping | None, host_config: HostConfig) -> Mapping | None:
    """What a container gets of the engine's mapping: nothing with ``--userns=host``."""
    return None if host_config.userns_mode == "host" else mapping


def verify(host_config: HostConfig, options: EngineOptions) -> None:
    """Refuse what a container in a user namespace cannot have. Raises InvalidParameter."""
    if not options.userns_remap or host_config.userns_mode == "host":
        return
    if host_config.privileged:
        raise InvalidParameter(
            "privileged mode is incompatible with user namespaces.  "
            "You must run the container in the host namespace when running privileged mode"
        )
    if host_config.network_mode == "host":
        raise InvalidParameter("cannot share the host's network namespace when user namespaces are enabled")
    if host_config.pid_mode == "host":
        raise InvalidParameter("cannot share the host PID namespace when user namespaces are enabled")


def id_mappings(ranges: Sequence[Range]) -> list[spec.IDMapping]:
    """The same for the OCI configuration."""
    return [spec.IDMapping(container_id=one.inside, host_id=one.outside, size=one.size) for one in ranges]


# --- accounts --------------------------------------------------------------------------------------------------------


def _user(specification: str, etc: Path) -> _Account:
    parts = specification.split(":")
    if len(parts) > 2:
        raise InvalidParameter(f'invalid user/group specification in --userns-remap: "{specification}"')
    passwd, group = _accounts(etc / "passwd"), _accounts(etc / "group")
    alone = len(parts) == 1
    number = _number(parts[0])
    if number is not None:
        user = _by_number(passwd, number)
        if user is None:
            raise InvalidParameter(f"Uid {number} has no entry in /etc/passwd: {_NO_USER}")
        if alone and _by_number(group, number) is None:
            raise InvalidParameter(f"Gid {number} has no entry in /etc/group: {_NO_GROUP}")
    else:
        name = DEFAULT_USER if parts[0] == DEFAULT else parts[0]
        user = _by_name(passwd, name)
        if user is None:
            if parts[0] != DEFAULT:
                raise InvalidParameter(f'Error during uid lookup for "{name}": {_NO_USER}')
            return _made(etc)
        if alone and _by_name(group, name) is None:
            raise InvalidParameter(f'Error during gid lookup for "{name}": {_NO_GROUP}')
    if not alone:
        number = _number(parts[1])
        if number is not None and _by_number(group, number) is None:
            raise InvalidParameter(f"Gid {number} has no entry in /etc/group: {_NO_GROUP}")
        if number is None and _by_name(group, parts[1]) is None:
            raise InvalidParameter(f'Error during groupname lookup for "{parts[1]}": {_NO_GROUP}')
    return user


def _number(text: str) -> int | None:
    """A number as dockerd takes it (32 bits with a sign, none below 0), None for a name."""
    if text.isascii() and text.isdigit() and int(text) < 1 << 31:
        return int(text)
    return None


def _accounts(path: Path) -> list[_Account]:
    """passwd and group have name and number in the same places."""
    found = []
    for line in _lines(path):
        fields = line.split(":")
        if len(fields) > 2 and fields[2].isascii() and fields[2].isdigit():
            found.append(_Account(fields[0], int(fields[2])))
    return found


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise InvalidParameter(f"open {path}: {(error.strerror or '').lower()}") from error
    return [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def _by_name(accounts: Sequence[_Account], name: str) -> _Account | None:
    return next((account for account in accounts if account.name == name), None)


def _by_number(accounts: Sequence[_Account], number: int) -> _Account | None:
    return next((account for account in accounts if account.number == number), None)


def _ranges(path: Path, user: _Account) -> tuple[Range, ...]:
    """Every range of the user, one after the other from 0 on inside. Raises InvalidParameter."""
    found: list[Range] = []
    inside = 0
    for owner, first, count in _subordinate(path):
        if owner not in (user.name, str(user.number)):
            continue
        found.append(Range(inside, first, count))
        inside += count
    if not found:
        raise InvalidParameter(f'no {path.name} ranges found for user "{user.name}"')
    return tuple(found)


def _subordinate(path: Path) -> list[tuple[str, int, int]]:
    """subuid(5), subgid(5): owner, first, count. A line that is not such is an error: it may be the wanted one."""
    found = []
    for line in _lines(path):
        fields = line.split(":")
        if len(fields) != 3 or not all(field.isascii() and field.isdigit() for field in fields[1:]):
            raise InvalidParameter(f"cannot parse subuid/gid file line: {line!r} of {path}")
        first, count = int(fields[1]), int(fields[2])
        if not 0 < first <= _MAXIMUM or not 0 < count <= _MAXIMUM - first + 1:
            raise InvalidParameter(f"{path}: the range {line!r} is not one of subordinate IDs")
        found.append((fields[0], first, count))
    return found


# --- dockremap -------------------------------------------------------------------------------------------------------


def _made(etc: Path) -> _Account:
    """Make the user for ``default``, with ranges that are nobody else's. Raises InvalidParameter."""
    try:
        _run("useradd", "--system", "--shell", "/bin/false", "--user-group", DEFAULT_USER)
        user = _by_name(_accounts(etc / "passwd"), DEFAULT_USER)
        if user is None:
            raise InvalidParameter("useradd made no entry in /etc/passwd")
        for name, option in (("subuid", "--add-subuids"), ("subgid", "--add-subgids")):
            taken = _subordinate(etc / name) if (etc / name).exists() else []
            if any(owner == DEFAULT_USER for owner, _, _ in taken):
                continue  # useradd does it by itself where login.defs says so
            first = _free(taken)
            _run("usermod", option, f"{first}-{first + _COUNT - 1}", DEFAULT_USER)
    except InvalidParameter as error:
        raise InvalidParameter(f'Error during "{DEFAULT_USER}" user creation: {error}') from error
    return user


def _free(taken: Sequence[tuple[str, int, int]]) -> int:
    first = _FIRST
    for _, begin, count in sorted(taken, key=lambda one: one[1]):
        if begin < first + _COUNT and first < begin + count:
            first = begin + count
    return first


def _run(name: str, *arguments: str) -> None:
    program = shutil.which(name) or shutil.which(f"/usr/sbin/{name}")
    if program is None:
        raise InvalidParameter(f"{name} is not installed: add the user and its lines in /etc/subuid and /etc/subgid")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise InvalidParameter(f"{name} failed: {(done.stderr or done.stdout).strip()}")
