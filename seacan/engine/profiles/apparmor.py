"""AppArmor: whether the host has it, and the default profile, loaded when a container needs it and it is missing.

The profile keeps Docker's name, ``docker-default``: tools and policies look for it. An administrator's own profile of
that name is left as it is.
"""

from __future__ import annotations

import os
import shutil
import subprocess

from seacan.errors import System

DEFAULT = "docker-default"
UNCONFINED = "unconfined"
_PROFILES = "/sys/kernel/security/apparmor/profiles"

_TEXT = """\
profile {name} flags=(attach_disconnected,mediate_deleted) {{
  network,
  unix,
  capability,
  file,
  umount,
  # Signals from the host, and between containers of this profile.
  signal (receive) peer=unconfined,
  signal (receive) peer=runc,
  signal (receive) peer=crun,
  signal (send,receive) peer={name},
  ptrace (trace,read,tracedby,readby) peer={name},

  # Of /proc a container writes only what belongs to its own processes and namespaces.
  deny /proc/* w,
  deny /proc/{{[^1-9],[^1-9][^0-9],[^1-9s][^0-9y][^0-9s],[^1-9][^0-9][^0-9][^0-9/]*}}/** w,
  deny /proc/sys/[^k]** w,
  deny /proc/sys/kernel/{{?,??,[^s]**,s[^h]**,sh[^m]**}} w,
  deny /proc/sysrq-trigger rwklx,
  deny /proc/kcore rwklx,

  deny mount,

  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/fs/cg[^r]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
}}
"""


def supported() -> bool:
    """Whether the kernel enforces AppArmor and its profiles can be read."""
    return os.access(_PROFILES, os.R_OK)


def parser() -> str | None:
    """The program that loads profiles."""
    return shutil.which("apparmor_parser") or shutil.which("/sbin/apparmor_parser")


def obtainable() -> bool:
    """Whether containers can get the default profile: without a parser, as dockerd, they go without, unless somebody
    has loaded it; ``docker info`` warns of it."""
    return supported() and (parser() is not None or loaded(DEFAULT))


def loaded(name: str) -> bool:
    with open(_PROFILES) as profiles:
        return any(line.partition(" (")[0] == name for line in profiles)


def ensure_default() -> None:
    """Load the default profile if it is not loaded (an administrator's reload may have thrown it out).

    Raises System if it is missing and cannot be loaded: a container would run without the confinement it is told it
    has.
    """
    if loaded(DEFAULT):
        return
    program = parser()
    if program is None:
        raise System(
            f"AppArmor enabled on system but the {DEFAULT} profile could not be loaded: apparmor_parser is missing"
        )
    run = subprocess.run(
        [program, "-Kr"], input=_TEXT.format(name=DEFAULT), text=True, capture_output=True, timeout=30, check=False
    )
    if run.returncode:
        raise System(
            f"AppArmor enabled on system but the {DEFAULT} profile could not be loaded: "
            f"running '{program} -Kr' failed with output: {run.stdout}{run.stderr}"
        )
