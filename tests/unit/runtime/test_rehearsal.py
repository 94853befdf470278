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
    rehearsal.may_leave = lambda: sys.argv[1] == "caged"
    def refuse(*_):
        raise PermissionError(1, "no way back")
    rehearsal.k.setns = refuse
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


@pytest.mark.parametrize(
    ("lack", "words"),
    [
        ("capabilities", "no capabilities to enter a mount namespace and to come back"),
        ("caged", "[Errno 1] no way back"),  # by a filter, say: it is tried before there is anywhere to come back from
    ],
)
def test_whoever_could_not_come_back_rehearses_only_shims(lack: str, words: str) -> None:
    done = play(lack)
    assert done.stdout == "played\n"
    assert done.stderr == f"cannot rehearse how containers are made: {words}\n"
