"""Containers for the runtime's own tests: a busybox tree, an overlay for each, and everything undone afterwards."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from seacan.cgroups import open as open_cgroup
from seacan.runtime import spec
from seacan.runtime.bundle import DirectoryRoot, OverlayRoot, Rootfs
from seacan.runtime.container import Container, Ended, Stdio, reap

BUSYBOX = shutil.which("busybox")

CAPABILITIES = [
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
    "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL",
    "CAP_AUDIT_WRITE",
]  # fmt: skip
"""What Docker grants."""

MASKED = ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"]
READONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
KINDS = ("mount", "network", "uts", "pid", "ipc", "cgroup")


def needs_root_and_busybox() -> None:
    if os.geteuid() != 0:
        pytest.skip("containers need root")
    if BUSYBOX is None:
        pytest.skip("no busybox on the PATH (package busybox-static)")


def make_tree(path: Path) -> None:
    """A root with busybox under all its names."""
    assert BUSYBOX is not None
    for name in ("bin", "dev", "etc", "proc", "sys", "tmp", "root"):
        (path / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, path / "bin/busybox")
    names = "awk cat chmod dd echo env false grep head hostname id ip kill ln ls mkdir mknod mount ps pwd readlink"
    for name in (names + " rm seq sh sleep stat stty test touch true tr tty uname umount wc").split():
        (path / "bin" / name).symlink_to("busybox")
    (path / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n")


class Bundles:
    """Makes containers under a folder and a cgroup of its own."""

    def __init__(self, folder: Path, lower: Path) -> None:
        self.folder = folder
        self.lower = lower
        self.root = folder / "run"
        self.parent = f"/seacan-test-{os.getpid()}"
        self._count = 0
        self._made: list[Container] = []
        self.root.mkdir()

    def spec(self, args: Sequence[str], **process: Any) -> spec.Spec:
        """A configuration like Docker's default one."""
        self._count += 1
        mount = spec.Mount
        no = ["nosuid", "noexec", "nodev"]
        return spec.Spec(
            spec.VERSION,
            process=spec.Process(
                args=list(args),
                env=["PATH=/bin"],
                capabilities=spec.Capabilities(bounding=CAPABILITIES, effective=CAPABILITIES, permitted=CAPABILITIES),
                **process,
            ),
            hostname="box",
            root=spec.Root("rootfs"),
            mounts=[
                mount("/proc", "proc", "proc", no),
                mount("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
                mount(
                    "/dev/pts",
                    "devpts",
                    "devpts",
                    ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
                ),
                mount("/sys", "sysfs", "sysfs", [*no, "ro"]),
                mount("/sys/fs/cgroup", "cgroup", "cgroup", [*no, "ro"]),
                mount("/dev/mqueue", "mqueue", "mqueue", no),
                mount("/dev/shm", "tmpfs", "shm", [*no, "mode=1777", "size=65536k"]),
            ],
            linux=spec.Linux(
                cgroups_path=f"{self.parent}/c{self._count}",
                namespaces=[spec.LinuxNamespace(kind) for kind in KINDS],
                masked_paths=list(MASKED),
                readonly_paths=list(READONLY),
            ),
        )

    def overlay(self, owner: int = 0, lower: Path | None = None) -> OverlayRoot:
        """A fresh writable layer."""
        self._count += 1
        upper, work = self.folder / f"upper{self._count}", self.folder / f"work{self._count}"
        upper.mkdir()
        work.mkdir()
        os.chown(upper, owner, owner)
        return OverlayRoot((str(lower or self.lower),), str(upper), str(work))

    def create(
        self, configuration: spec.Spec, *, stdio: Stdio | None = None, rootfs: Rootfs | None = None, **options: Any
    ) -> Container:
        name = f"c{self._count}-{len(self._made)}"
        container = Container.create(
            name,
            str(self.root / name),
            configuration,
            root=str(self.root),
            stdio=stdio or Stdio(),
            rootfs=rootfs or self.overlay(),
            **options,
        )
        self._made.append(container)
        return container

    def start(self, args: Sequence[str] = ("sleep", "1000"), **options: Any) -> Container:
        """A running container."""
        container = self.create(self.spec(args), **options)
        container.start()
        return container

    def run(self, configuration: spec.Spec | Sequence[str], *, stdin: int = -1, **options: Any) -> tuple[int, str]:
        """Run a container to its end: its exit code, and what it wrote to stdout and stderr."""
        if not isinstance(configuration, spec.Spec):
            configuration = self.spec(configuration)
        read, write = os.pipe2(os.O_CLOEXEC)
        try:
            container = self.create(configuration, stdio=Stdio(stdin, write, write), **options)
        finally:
            os.close(write)
        try:
            container.start()
            output = read_all(read if container.console is None else container.console)
        finally:
            os.close(read)
        ended = wait(container.pidfd)
        container.delete()
        return ended.exit_code, output

    def exec(self, container: Container, args: Sequence[str], **process: Any) -> tuple[int, str]:
        """Run a further process to its end."""
        options = {name: process.pop(name) for name in ("seccomp", "seccomp_flags", "preserve_fds") if name in process}
        process.setdefault("env", ["PATH=/bin"])
        read, write = os.pipe2(os.O_CLOEXEC)
        try:
            started = container.exec(spec.Process(args=list(args), **process), Stdio(-1, write, write), **options)
        except BaseException:
            os.close(read)
            raise
        finally:
            os.close(write)
        output = read_all(read if started.console is None else started.console)
        for fd in (read, started.console):
            if fd is not None:
                os.close(fd)
        ended = wait(started.pidfd)
        os.close(started.pidfd)
        return ended.exit_code, output

    def close(self) -> None:
        for container in self._made:
            if os.path.exists(f"{container.folder}/state.json"):
                with contextlib.suppress(Exception):
                    container.kill(signal.SIGKILL, everyone=True)
                container.delete(force=True)
            else:
                container.release()
        cgroup = open_cgroup(self.parent)
        if cgroup.exists:
            cgroup.remove()


def read_all(fd: int, seconds: float = 30) -> str:
    """Everything until the other side is closed (EIO, for a terminal)."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    data = b""
    until = time.monotonic() + seconds
    while True:
        if not poll.poll(max(0, until - time.monotonic()) * 1000):
            pytest.fail(f"no end of output after {seconds} s; so far: {data!r}")
        try:
            chunk = os.read(fd, 65536)
        except OSError:
            chunk = b""
        if not chunk:
            return data.decode("utf-8", "replace")
        data += chunk


def wait(pidfd: int, seconds: float = 30) -> Ended:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if not poll.poll(seconds * 1000):
        pytest.fail(f"the process did not end in {seconds} s")
    ended = reap(pidfd)
    assert ended is not None
    return ended


__all__ = ["BUSYBOX", "Bundles", "DirectoryRoot", "OverlayRoot", "make_tree", "needs_root_and_busybox", "read_all"]
