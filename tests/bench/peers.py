"""The peers to measure against, where this machine has them: programs of a Debian tree, or of the machine itself.

The tree is looked for in ``$SEACAN_PEERS`` (default ``/opt/peers``). A peer runs in a mount namespace of its own with
the tree as its root, on a test host (a network namespace) of its own, so that nothing it does reaches anything else.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.bench.measure import in_memory
from tests.hosts import Host, scratch

TREE = Path(os.environ.get("SEACAN_PEERS", "/opt/peers"))

# The tree becomes "/", with this machine's /proc, /sys and /dev, and folders of ours as /run and /share. With
# HIDE_UNIFIED the v2 hierarchy of a hybrid machine is taken away: crun and podman refuse to run beside it.
_ENTER = """
set -e
mount --bind "$TREE" "$TREE"; cd "$TREE"
mount -t proc proc proc; mount --rbind /sys sys; mount --rbind /dev dev
mount --bind "$FOLDER/run" run; mount --bind "$FOLDER/share" share
if [ -n "$HIDE_UNIFIED" ] && [ -d sys/fs/cgroup/unified ]; then umount sys/fs/cgroup/unified; fi
pivot_root . oldroot; cd /; umount -l /oldroot
exec "$@"
"""


def missing(program: str) -> str | None:
    """Why the peer cannot be measured here, or None."""
    if not (TREE / "usr").is_dir():
        return f"no tree of peers in {TREE}"
    if not any((TREE / folder / program).exists() for folder in ("usr/bin", "usr/sbin")):
        return f"{program} is not in {TREE}"
    return None


class Peer:
    """A place to run a peer's programs: folders of its own, a host of its own."""

    def __init__(self, folder: Path, *, hide_unified: bool = False) -> None:
        self.folder = folder
        self.host = Host("peer")
        self.hide_unified = hide_unified
        for name in ("run", "share", "data"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def command(self, *argv: str) -> list[str]:
        return self.host.command(
            "env",
            f"TREE={TREE}",
            f"FOLDER={self.folder}",
            f"HIDE_UNIFIED={'1' if self.hide_unified else ''}",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "unshare", "-m", "--propagation", "private", "bash", "-c", _ENTER, "peer", *argv,
        )  # fmt: skip

    def run(self, *argv: str, timeout: float = 120, input: str | None = None) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(self.command(*argv), capture_output=True, text=True, timeout=timeout, input=input)
        if done.returncode:
            raise AssertionError(f"{' '.join(argv)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def close(self) -> None:
        self.host.close()


class Dockerd(Peer):
    """The real dockerd (with containerd and runc), answering on ``socket``."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        super().__init__(folder)
        self.socket = folder / "run" / "docker.sock"
        # The data root must not be an overlay; the scratch folder is on a real disk.
        self._log = (folder / "dockerd.log").open("wb")
        self.process = subprocess.Popen(
            self.command(
                "dockerd", "-H", "unix:///run/docker.sock", "--data-root=/share/docker", "--exec-root=/run/docker",
                "--pidfile=/run/docker.pid", "--cgroup-parent=/seacan-peer", *arguments,
            ),
            stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
            preexec_fn=lambda: ctypes.CDLL(None).prctl(1, signal.SIGTERM),
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while not answers(self.socket):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"dockerd does not answer:\n{(folder / 'dockerd.log').read_text()[-3000:]}")
            time.sleep(0.05)

    def environment(self, **more: str) -> Mapping[str, str]:
        config = self.folder / "docker-config"
        config.mkdir(exist_ok=True)
        return {
            **{k: v for k, v in os.environ.items() if not k.startswith(("DOCKER_", "BUILDKIT_"))},
            "DOCKER_HOST": f"unix://{self.socket}",
            "DOCKER_CONFIG": str(config),
            "DOCKER_CLI_HINTS": "false",
            "DOCKER_BUILDKIT": "0",
            **more,
        }

    def docker(self, *argv: str, input: bytes | None = None) -> str:
        done = subprocess.run(["docker", *argv], capture_output=True, env=self.environment(), input=input, timeout=600)
        if done.returncode:
            raise AssertionError(f"dockerd: docker {' '.join(argv)}: {done.stderr.decode()}")
        return done.stdout.decode().strip()

    def close(self) -> None:
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(30)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._log.close()
        super().close()


def answers(path: Path) -> bool:
    """Whether a Docker API answers ``/_ping`` on the unix socket ``path``."""
    try:
        with contextlib.closing(http.client.HTTPConnection("localhost", timeout=5)) as connection:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(str(path))
            connection.request("GET", "/_ping")
            return connection.getresponse().status == 200
    except OSError:
        return False


@contextlib.contextmanager
def dockerd(*arguments: str) -> Iterator[Dockerd]:
    """A dockerd for the time of the block; raises RuntimeError with the reason where there is none."""
    if reason := missing("dockerd"):
        raise RuntimeError(reason)
    with scratch("peer") as folder, in_memory(folder / "run"):
        peer = Dockerd(folder, *arguments)
        try:
            yield peer
        finally:
            for name in peer.docker("ps", "-aq").split():
                with contextlib.suppress(AssertionError):
                    peer.docker("rm", "-f", name)
            peer.close()


def have_docker_cli() -> bool:
    return shutil.which("docker") is not None
