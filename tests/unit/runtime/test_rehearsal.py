"""The launcher's rehearsal: what it plays leaves no trace on the host, nor on the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from seacan.runtime import rehearsal

PLAY = """
import os, sys
from seacan.runtime import rehearsal

def seen():
    places = [os.readlink(f"/proc/self/{name}") for name in ("ns/mnt", "root", "cwd")]
    mounted = [line for line in open("/proc/self/mounts") if line.split()[1].startswith("/sys")]
    return places, sorted(os.listdir("/proc/self/fd")), mounted, os.listdir("/sys")

os.chdir("/usr")
before = seen()
if sys.argv[1:]:
    rehearsal.may_leave = lambda: False
rehearsal.rehearse()
assert seen() == before, (before, seen())
print("played")
"""


def play(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PLAY, *argv], check=False, capture_output=True, text=True)


@pytest.mark.skipif(not rehearsal.may_leave(), reason="no CAP_SYS_ADMIN and CAP_SYS_CHROOT to rehearse with")
def test_whoever_has_rehearsed_is_where_he_was() -> None:
    done = play()
    assert (done.stdout, done.stderr) == ("played\n", "")


def test_without_the_capabilities_only_shims_are_rehearsed() -> None:
    done = play("without")
    assert done.stdout == "played\n"
    assert done.stderr == (
        "cannot rehearse how containers are made: no capabilities to enter a mount namespace and to come back\n"
    )
