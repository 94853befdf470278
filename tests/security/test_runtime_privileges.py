"""What a container can do, and see of the process that is becoming part of it."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from seacan.runtime import spec
from tests.bundles import Bundles


def sharing_pids(bundles: Bundles, pid: int) -> spec.Spec:
    configuration = bundles.spec(["sleep", "1000"])
    assert configuration.linux is not None
    configuration.linux.namespaces = [n for n in configuration.linux.namespaces if n.type != "pid"]
    configuration.linux.namespaces.append(spec.LinuxNamespace("pid", f"/proc/{pid}/ns/pid"))
    return configuration


def test_a_half_made_init_is_closed_to_those_who_share_its_pid_namespace(bundles: Bundles) -> None:
    """CVE-2019-5736, CVE-2016-9962: its exe is our interpreter, its descriptors are the host's."""
    first = bundles.start()
    second = bundles.create(sharing_pids(bundles, first.pid))
    with open(f"/proc/{second.pid}/status") as file:
        inside = next(line.split()[-1] for line in file if line.startswith("NSpid"))
    for name in ("exe", "cwd", "root", "fd/0"):
        code, output = bundles.exec(first, ["readlink", f"/proc/{inside}/{name}"])
        assert (code, output) == (1, ""), name
    for name in ("mem", "environ", "maps", "auxv"):
        code, output = bundles.exec(first, ["cat", f"/proc/{inside}/{name}"])
        assert code == 1 and "ermission denied" in output, name
    command = ["sh", "-c", f"for fd in /proc/{inside}/fd/*; do readlink $fd; done"]
    assert bundles.exec(first, command)[1] == ""


def test_the_commands_interpreter_is_read_only_to_what_it_becomes(bundles: Bundles) -> None:
    """Even CAP_SYS_PTRACE, which may follow /proc/pid/exe, cannot write there."""
    configuration = bundles.spec(["sleep", "1000"])
    configuration.root = spec.Root(str(bundles.lower), readonly=True)
    bundle = bundles.folder / "bundle"
    bundle.mkdir()
    (bundle / "config.json").write_bytes(spec.encode(configuration))
    root = str(bundles.folder / "cli")
    command = [sys.executable, "-m", "seacan.runtime.cli", "--root", root]
    pidfile = bundles.folder / "pid"
    create = [*command, "create", "--bundle", str(bundle), "--pid-file", str(pidfile), "x"]
    subprocess.run(create, check=True, stdin=subprocess.DEVNULL)
    try:
        pid = int(pidfile.read_text())
        assert os.statvfs(f"/proc/{pid}/exe").f_flag & os.ST_RDONLY
    finally:
        subprocess.run([*command, "delete", "--force", "x"], check=True)


def test_no_capability_is_inheritable(bundles: Bundles) -> None:
    """CVE-2022-29162: programs with inheritable file capabilities must not gain them."""
    output = bundles.run(["grep", "-E", "^Cap(Inh|Amb)", "/proc/self/status"])[1]
    assert [int(line.split()[1], 16) for line in output.splitlines()] == [0, 0]


def test_a_process_without_capabilities_has_none(bundles: Bundles) -> None:
    configuration = bundles.spec(["grep", "^Cap", "/proc/self/status"])
    assert configuration.process is not None
    configuration.process.capabilities = None
    output = bundles.run(configuration)[1]
    assert [int(line.split()[1], 16) for line in output.splitlines()] == [0, 0, 0, 0, 0]


def test_a_release_agent_cannot_be_set(bundles: Bundles) -> None:
    """CVE-2022-0492: it is run by the kernel, on the host."""
    container = bundles.start()
    script = """
    for agent in /sys/fs/cgroup/release_agent /sys/fs/cgroup/*/release_agent; do
        test -e $agent && echo /tmp/x > $agent && echo written
    done
    mkdir /tmp/c && mount -t cgroup -o pids c /tmp/c && echo mounted
    mount -t cgroup2 c /tmp/c && echo mounted
    for folder in /sys/fs/cgroup /sys/fs/cgroup/*; do mkdir $folder/sub && echo made; done
    true
    """
    code, output = bundles.exec(container, ["sh", "-c", script], capabilities=_granted(container.configuration))
    assert code == 0
    assert not {"written", "mounted", "made"} & set(output.split())


def _granted(configuration: spec.Spec) -> spec.Capabilities | None:
    return configuration.process.capabilities if configuration.process else None


def test_devices_that_were_not_granted_cannot_be_opened(bundles: Bundles) -> None:
    container = bundles.start()
    script = "mknod /tmp/mem c 1 1; mknod /tmp/tty c 4 0; cat /tmp/mem; cat /tmp/tty; cat /dev/null && echo fine"
    output = bundles.exec(container, ["sh", "-c", script], capabilities=_granted(container.configuration))[1]
    assert output.count("Operation not permitted") == 2
    assert output.endswith("fine\n")


def test_the_kernels_controls_are_closed(bundles: Bundles) -> None:
    container = bundles.start()
    script = "echo 1 > /proc/sys/kernel/panic; mount -t tmpfs x /tmp; hostname y; mount -o remount,rw /proc/sys"
    before = Path("/proc/sys/kernel/panic").read_text()
    code, output = bundles.exec(container, ["sh", "-c", script], capabilities=_granted(container.configuration))
    assert code != 0
    assert [line.rpartition(": ")[2] for line in output.splitlines()] == [
        "Read-only file system",
        "permission denied (are you root?)",
        "Operation not permitted",
        "permission denied (are you root?)",
    ]
    assert Path("/proc/sys/kernel/panic").read_text() == before


@pytest.mark.parametrize("length", [1 << 21])
def test_a_passwd_file_without_end_is_no_obstacle(bundles: Bundles, length: int) -> None:
    root = bundles.overlay()
    (Path(root.upper or "") / "etc").mkdir()
    (Path(root.upper or "") / "etc/passwd").write_bytes(b"x" * length)
    assert bundles.run(["sh", "-c", "echo $HOME"], rootfs=root) == (0, "/\n")


def test_a_passwd_that_is_a_fifo_does_not_hang(bundles: Bundles) -> None:
    root = bundles.overlay()
    (Path(root.upper or "") / "etc").mkdir()
    os.mkfifo(Path(root.upper or "") / "etc/passwd")
    assert bundles.run(["sh", "-c", "echo $HOME"], rootfs=root) == (0, "/\n")


_PUSH = r"""
import fcntl, os, termios
try:
    os.open("/dev/tty", os.O_RDWR)
    print("a controlling terminal", flush=True)
except OSError as error:
    print("none", flush=True)
for byte in b"id\n":
    try:
        fcntl.ioctl(0, termios.TIOCSTI, bytes([byte]))
        print("pushed", flush=True)
    except OSError as error:
        print("refused", flush=True)
"""


@pytest.mark.skipif(not os.path.exists("/usr/bin/python3"), reason="no /usr/bin/python3")
def test_a_container_types_nothing_into_the_callers_terminal(bundles: Bundles) -> None:
    """CVE-2016-10124: TIOCSTI needs the terminal to be the process's own, and a container leads a session without."""
    master, slave = os.openpty()
    try:
        configuration = bundles.spec(["/usr/bin/python3", "-ISc", _PUSH])
        for folder in ("/usr", "/lib", "/lib64"):
            if os.path.isdir(folder):
                configuration.mounts.append(spec.Mount(folder, "bind", folder, ["rbind", "ro"]))
        code, output = bundles.run(configuration, stdin=slave)
        assert (code, output.split()) == (0, ["none", "refused", "refused", "refused"])
        assert select.select([slave], [], [], 0)[0] == []
    finally:
        os.close(master)
        os.close(slave)
