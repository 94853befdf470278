"""Folders nested deeper than a path may be long: they are archived, or refused in words; they never stay behind."""

from __future__ import annotations

import io
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.hosts import DOCKER, Daemon

LEVELS = 2040
DEEPEN = f"cd /root; i=0; while [ $i -lt {LEVELS} ]; do mkdir d; cd d; i=$((i+1)); done; echo hi > leaf"
DESCEND = "cd /root; i=0; while cd d 2>/dev/null; do i=$((i+1)); done; echo $i; cat leaf"


def test_a_deep_tree_is_copied_committed_exported_saved_and_removed(
    new_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    daemon = new_daemon()
    daemon.docker("run", "--name", "deep", "busybox", "sh", "-c", DEEPEN)
    for command in (["cp", "deep:/root", "-"], ["export", "deep"]):
        done = subprocess.run([str(DOCKER), *command], env=daemon.environment(), capture_output=True, check=True)
        archive = done.stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as members:
            assert max(name.count("/d") for name in members.getnames()) == LEVELS
    changes = daemon.out("diff", "deep").splitlines()
    assert f"A /root{'/d' * LEVELS}/leaf" in changes and len(changes) == LEVELS + 2
    daemon.docker("commit", "deep", "deep:1")
    daemon.docker("rm", "deep")
    saved = tmp_path / "deep.tar"
    daemon.docker("save", "-o", str(saved), "deep:1")
    daemon.docker("rmi", "deep:1")
    daemon.docker("load", "-i", str(saved))
    assert daemon.out("run", "--rm", "deep:1", "sh", "-c", DESCEND).split() == [str(LEVELS), "hi"]
    daemon.docker("rmi", "deep:1")
    deadline = time.monotonic() + 20
    while list((daemon.data_root / "trash").iterdir()):
        assert time.monotonic() < deadline, "what was removed is still there"
        time.sleep(0.1)
