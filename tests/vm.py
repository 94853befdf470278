"""A virtual machine of another kernel: for hosts that this machine is not (cgroup v2 alone, an older kernel, SELinux).

An emulated qemu boots the kernel of a Debian package, sees this machine's files read-only through 9p with a tmpfs
on top, mounts cgroup2 alone, and runs one shell script. `tools/vm-kernel` fetches the kernel; without it, or qemu, the
tests that need a machine say so and skip.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

from tests.hosts import REPOSITORY

QEMU = "qemu-system-x86_64"
POLICIES = "policies"
"""Below :data:`TREE`: the programs that compile what AppArmor and SELinux enforce."""
TREE = Path(os.environ.get("SEACAN_VM_TREE", REPOSITORY / ".scratch" / "vm"))
_BOOT_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
_MODULES = (
    "veth", "bridge", "br_netfilter", "nf_tables", "nft_ct", "nft_masq", "nft_nat", "nft_chain_nat",
    "nft_fib_ipv4", "nft_fib_ipv6", "nft_fib_inet", "nft_reject_inet", "nf_conntrack",
    "8021q", "dummy", "macvlan", "ipvlan",
)  # fmt: skip

_INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /lower /rw /new
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs dev /dev
for module in {boot_modules}; do /bin/busybox insmod /modules/$module || echo "vm: $module failed"; done
/bin/busybox mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=262144,cache=loose root /lower
/bin/busybox mount -t tmpfs -o size=1500m tmpfs /rw
/bin/busybox mkdir /rw/upper /rw/work
/bin/busybox mount -t overlay -o lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work overlay /new
for point in proc sys dev; do /bin/busybox mount --move /$point /new/$point; done
/bin/busybox mkdir -p /new/dev/pts /new/dev/shm /new/run /new/lib/modules
/bin/busybox mount -t devpts devpts /new/dev/pts
/bin/busybox mount -t tmpfs tmpfs /new/dev/shm
/bin/busybox mount -t tmpfs tmpfs /new/run
/bin/busybox mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=262144,cache=loose modules /new/lib/modules
/bin/busybox mount -t cgroup2 -o nsdelegate cgroup2 /new/sys/fs/cgroup
/bin/busybox mount -t securityfs securityfs /new/sys/kernel/security
[ ! -d /new/sys/fs/selinux ] || /bin/busybox mount -t selinuxfs selinuxfs /new/sys/fs/selinux
/bin/busybox cp /script /new/run/script
exec /bin/busybox switch_root /new /bin/sh -c '
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
for m in {modules}; do modprobe -q $m; done
ip link set lo up
sh /run/script </dev/null >/dev/ttyS0 2>&1
echo "vm: exit $?" >/dev/ttyS0
sync; echo o >/proc/sysrq-trigger; sleep 60'
"""


_DAEMON = r"""
mkdir /rw-data; truncate -s 600m /rw-disk; mkfs.ext4 -q -O ^has_journal /rw-disk; modprobe -q loop
mount -o loop /rw-disk /rw-data
cd {repository}
export DOCKER_HOST=unix:///run/seacan.sock DOCKER_CONFIG=/tmp DOCKER_CLI_HINTS=false PATH=$PATH:{docker}
say() {{ echo "$1: $(eval "$2" 2>&1 | tr '\n' ' ')"; }}
begin() {{
    .venv/bin/python -m seacan.cli.daemon --host=$DOCKER_HOST --data-root=/rw-data/data --exec-root=/run/seacan \
        --pidfile=/run/seacan.pid --config-file=/dev/null "$@" >/tmp/daemon.log 2>&1 &
    for i in $(seq 300); do [ -S /run/seacan.sock ] && docker version >/dev/null 2>&1 && break; sleep 0.2; done
}}
"""


def daemon(docker: str) -> str:
    """The beginning of a script: ``begin FLAG…`` starts a daemon (``$!``) and waits until it answers; ``say NAME
    COMMAND`` prints a line for :func:`answers`."""
    return _DAEMON.format(repository=REPOSITORY, docker=Path(docker).parent)


def answers(output: str) -> dict[str, str]:
    """What ``say`` printed."""
    return dict(re.findall(r"^(\w+): (.*?) *$", output, re.M))


def missing() -> str | None:
    """Why no machine can be started here, or None."""
    if shutil.which(QEMU) is None:
        return f"{QEMU} is not installed"
    if not list(TREE.glob("boot/vmlinuz-*")):
        return f"no kernel in {TREE} (tools/vm-kernel fetches one)"
    for program in ("modprobe", "mkfs.ext4"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    return None


def run(script: str, folder: Path, *, timeout: float = 300, arguments: str = "") -> tuple[int, str]:
    """Boot, run ``script`` as root with this machine's files around it, power off. Returns its exit status and output.

    ``arguments`` are added to the kernel's command line.
    """
    folder.mkdir(parents=True, exist_ok=True)
    initramfs = folder / f"initramfs-{uuid.uuid4().hex[:6]}"
    version = next(TREE.glob("lib/modules/*")).name
    boot = list(_dependencies(version, _BOOT_MODULES))
    init = _INIT.format(boot_modules=" ".join(path.name for path in boot), modules=" ".join(_MODULES))
    files = {
        "bin/busybox": (Path(shutil.which("busybox") or "/bin/busybox").read_bytes(), 0o755),
        "init": (init.encode(), 0o755),
        "script": (script.encode(), 0o755),
        **{f"modules/{path.name}": (path.read_bytes(), 0o644) for path in boot},
    }
    initramfs.write_bytes(_cpio(files))
    done = subprocess.run(
        [
            QEMU, "-M", "q35", "-cpu", "max", "-smp", "2", "-m", "3072", "-nographic", "-no-reboot", "-nic", "none",
            "-kernel", str(next(TREE.glob("boot/vmlinuz-*"))), "-initrd", str(initramfs),
            "-append", f"console=ttyS0 quiet panic=-1 {arguments}",
            "-virtfs", "local,path=/,mount_tag=root,security_model=passthrough,readonly=on,multidevs=remap",
            "-virtfs", f"local,path={TREE}/lib/modules,mount_tag=modules,security_model=passthrough,readonly=on",
        ],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout,
    )  # fmt: skip
    initramfs.unlink()
    output = done.stdout.decode(errors="replace").replace("\r\n", "\n")
    head, marker, tail = output.rpartition("vm: exit ")
    if not marker:
        raise AssertionError(f"the virtual machine ended early:\n{output[-4000:]}")
    return int(tail.split()[0]), head


def _dependencies(version: str, modules: tuple[str, ...]) -> Iterator[Path]:
    if not (TREE / "lib/modules" / version / "modules.dep").exists():
        subprocess.run(["depmod", "-b", str(TREE), version], check=True)
    seen = set()
    for module in modules:
        listing = subprocess.run(
            ["modprobe", "-d", str(TREE), "-S", version, "--show-depends", module],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        for line in listing.stdout.splitlines():
            if line.startswith("insmod") and (path := Path(line.split()[1])) not in seen:
                seen.add(path)
                yield path


def _cpio(files: dict[str, tuple[bytes, int]]) -> bytes:
    """An initramfs: the "newc" archive of Documentation/driver-api/early-userspace/buffer-format.rst."""
    archive = bytearray()
    folders = {parent for name in files for parent in map(str, Path(name).parents) if parent != "."}
    entries: list[tuple[str, int, bytes]] = [(folder, stat.S_IFDIR | 0o755, b"") for folder in sorted(folders)]
    entries += [(name, stat.S_IFREG | mode, content) for name, (content, mode) in files.items()]
    for number, (name, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        archive += b"070701" + b"".join(b"%08X" % value for value in fields) + name.encode() + b"\0"
        archive += bytes(-len(archive) % 4)
        archive += content
        archive += bytes(-len(archive) % 4)
    return bytes(archive)
