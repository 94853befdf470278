"""Hosts to test on: network namespaces with no route out, and the daemons that run in them.

A host is kept alive by one sleeping process, so that it is gone with it, whatever happens to the tests: nothing is
pinned under /run/netns.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
DOCKER = shutil.which("docker")
PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Host:
    """A network namespace with loopback up and nothing else."""

    def __init__(self, name: str = "host") -> None:
        self.name = name
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec sleep infinity"],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            preexec_fn=_die_with_parent,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"up\n", "no network namespace could be made"

    @property
    def pid(self) -> int:
        """A process inside; ``/proc/<pid>/ns/net`` is the namespace."""
        return self._holder.pid

    @property
    def netns(self) -> str:
        return f"/proc/{self.pid}/ns/net"

    def command(self, *argv: str) -> list[str]:
        """``argv`` as a command line that runs it on this host."""
        return ["nsenter", f"--net={self.netns}", *argv]

    def run(
        self, *argv: str, check: bool = True, timeout: float = 60, input: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(self.command(*argv), capture_output=True, text=True, timeout=timeout, input=input)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(argv)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def wire(self, other: Host, mine: str, theirs: str, *, name: str = "eth0", their_name: str = "eth0") -> None:
        """Connect two hosts with a veth pair; ``mine`` and ``theirs`` are addresses with prefix length."""
        token = uuid.uuid4().hex[:6]
        self.run("ip", "link", "add", name, "type", "veth", "peer", "name", f"t{token}", "netns", str(other.pid))
        other.run("ip", "link", "set", f"t{token}", "name", their_name)
        for host, link, address in ((self, name, mine), (other, their_name, theirs)):
            host.run("ip", "addr", "add", address, "dev", link)
            host.run("ip", "link", "set", link, "up")

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()
        assert self._holder.stdout is not None
        self._holder.stdout.close()


class Daemon:
    """A seacand with folders, socket and cgroup parent of its own, on a host."""

    def __init__(self, folder: Path, host: Host, arguments: Sequence[str] = ()) -> None:
        self.folder = folder
        self.host = host
        self.arguments = list(arguments)
        self.data_root = folder / "data"
        self.exec_root = folder / "exec"
        self.socket = folder / "seacan.sock"
        self.log = folder / "daemon.log"
        self.cgroup_parent = f"/seacan-test-{uuid.uuid4().hex[:8]}"
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self, *more: str, wait: bool = True) -> Daemon:
        assert self.process is None, "the daemon runs already"
        command = self.host.command(
            sys.executable,
            "-m",
            "seacan.cli.daemon",
            f"--host={self.url}",
            f"--data-root={self.data_root}",
            f"--exec-root={self.exec_root}",
            f"--pidfile={self.folder / 'seacand.pid'}",
            f"--cgroup-parent={self.cgroup_parent}",
            f"--config-file={self.folder / 'daemon.json'}",
            *self.arguments,
            *more,
        )
        config = self.folder / "daemon.json"
        if not config.exists():
            config.write_text("{}")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=REPOSITORY,
                preexec_fn=_die_with_parent,
                env={
                    **{k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"},
                    "PYTHONPATH": str(REPOSITORY),
                },
            )
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self, timeout: float = 20) -> None:
        deadline = time.monotonic() + timeout
        while True:
            assert self.process is not None
            if self.process.poll() is not None:
                raise AssertionError(f"seacand ended with {self.process.returncode}:\n{self.log_tail()}")
            try:
                if self.request("GET", "/_ping", timeout=5)[0] == 200:
                    return
            except OSError:
                pass
            if time.monotonic() > deadline:
                raise AssertionError(f"seacand does not answer after {timeout} s:\n{self.log_tail()}")
            time.sleep(0.01)

    def log_tail(self, lines: int = 60) -> str:
        if not self.log.exists():
            return "(no log)"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self, timeout: float = 30) -> None:
        """SIGTERM: an orderly end. Containers are stopped by it unless live-restore is on, as dockerd does."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                self.process = None
                raise AssertionError(f"seacand did not end within {timeout} s of SIGTERM:\n{self.log_tail()}") from None
        self.process = None

    def kill(self) -> None:
        """SIGKILL: the crash."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def launcher_pids(self) -> list[int]:
        return [pid for pid in _children(self.pid) if b"seacan.runtime.forkserver" in _cmdline(pid)]

    # --- clients ------------------------------------------------------------------------------------------------

    def environment(self, **more: str) -> dict[str, str]:
        config = self.folder / "docker-config"
        config.mkdir(exist_ok=True)
        return {
            **{k: v for k, v in os.environ.items() if not k.startswith(("DOCKER_", "BUILDKIT_", "COMPOSE_"))},
            "DOCKER_HOST": self.url,
            "DOCKER_CONFIG": str(config),
            "DOCKER_CLI_HINTS": "false",
            "DOCKER_BUILDKIT": "0",
            **more,
        }

    def docker(
        self,
        *argv: str,
        check: bool = True,
        timeout: float = 60,
        input: str | bytes | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run the real docker CLI against this daemon; with ``check``, a failure shows the daemon's log too."""
        assert DOCKER is not None
        data = input.encode() if isinstance(input, str) else input
        raw = subprocess.run(
            [DOCKER, *argv],
            capture_output=True,
            timeout=timeout,
            input=data,
            stdin=subprocess.DEVNULL if data is None else None,
            env=self.environment(**(env or {})),
        )
        done = subprocess.CompletedProcess(
            raw.args, raw.returncode, raw.stdout.decode(errors="replace"), raw.stderr.decode(errors="replace")
        )
        if check and done.returncode:
            raise AssertionError(
                f"docker {' '.join(argv)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
                f"\n--- daemon log\n{self.log_tail(30)}"
            )
        return done

    def out(self, *argv: str, **options: object) -> str:
        """The standard output of a docker command that must succeed, stripped."""
        return self.docker(*argv, **options).stdout.strip()  # type: ignore[arg-type]

    def request(self, method: str, path: str, *, timeout: float = 60) -> tuple[int, bytes]:
        """Ask the API itself; status and body."""
        import http.client
        import socket

        with contextlib.closing(http.client.HTTPConnection("localhost", timeout=timeout)) as connection:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(timeout)
            connection.sock.connect(str(self.socket))
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def inspect(self, name: str, kind: str = "container") -> dict:  # type: ignore[type-arg]
        return json.loads(self.out("inspect", "--type", kind, name))[0]

    def clear(self) -> None:
        """Remove every container, and every volume and network that a test made."""
        if ids := self.out("ps", "-aq", "--no-trunc").split():
            self.docker("rm", "-fv", *ids)
        for kind in ("volume", "network"):
            self.docker(kind, "prune", "-f", *(["-a"] if kind == "volume" else []))

    def close(self) -> None:
        """Remove all containers, end the daemon, and delete its folders and cgroups."""
        try:
            if self.data_root.exists():
                with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
                    if self.process is None or self.process.poll() is not None:
                        # A test killed it and failed: its containers live on, and only a daemon takes them away.
                        self.process = None
                        self.start()
                    self.clear()
            self.stop()
        finally:
            _remove(self.folder)
            for parent in cgroup_folders(self.cgroup_parent):
                for path in sorted(parent.rglob("*"), key=lambda p: -len(p.parts)):
                    if path.is_dir():
                        with contextlib.suppress(OSError):
                            path.rmdir()
                with contextlib.suppress(OSError):
                    parent.rmdir()


def _children(pid: int) -> list[int]:
    children = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        children += [int(child) for child in (task / "children").read_text().split()]
    return children


def _cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
    except OSError:
        return b""


def cgroup_folders(parent: str) -> list[Path]:
    """Where ``parent`` exists in any cgroup hierarchy of this machine."""
    found = []
    with open("/proc/self/mountinfo") as table:
        for line in table:
            fields, _, tail = line.partition(" - ")
            if tail.split()[0] in ("cgroup", "cgroup2"):
                path = Path(fields.split()[4] + parent)
                if path.is_dir():
                    found.append(path)
    return found


def _remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except RecursionError:  # a test of deep trees has failed
        subprocess.run(["rm", "-rf", str(folder)], check=False)


@contextlib.contextmanager
def scratch(name: str) -> Iterator[Path]:
    """A folder on a disk that overlay can use as upper (never tmpfs-on-overlay), removed at the end."""
    base = Path(os.environ.get("SEACAN_TEST_SCRATCH", "/var/tmp"))
    folder = base / f"seacan-{name}-{uuid.uuid4().hex[:8]}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        _remove(folder)
