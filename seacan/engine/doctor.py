"""What this host can and cannot do for containers, and how to mend it: ``seacan doctor``.

Everything is tried, not guessed from a version: namespaces, mounts and interfaces are made by a child process in
namespaces of its own, and are gone with it. Nothing on the host changes. No part of the engine has to run.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import errno
import os
import platform
import resource
import shutil
import traceback
from collections.abc import Callable, Iterator
from typing import Final, Literal

import msgspec

from seacan.engine import devices
from seacan.engine.options import EngineOptions
from seacan.errors import Unsupported
from seacan.linux import capabilities, syscalls

State = Literal["ok", "limited", "missing"]


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that was looked at.

    ``limited``: containers run, something is refused or slower; ``missing``: they do not run as they should. ``remedy``
    says what to do about it.
    """

    area: str
    name: str
    state: State
    detail: str = ""
    remedy: str = ""


Check = Callable[[EngineOptions], Iterator[Finding]]


def examine(options: EngineOptions | None = None) -> list[Finding]:
    """Look at everything. A check that itself fails is a finding, never an exception."""
    options = options or EngineOptions()
    findings: list[Finding] = []
    for area, check in CHECKS:
        try:
            findings += check(options)
        except Exception as error:  # the report has to be complete whatever one probe meets
            where = traceback.extract_tb(error.__traceback__)[-1]
            findings.append(Finding(area, "examination", "limited", f"could not be finished: {error} ({where.name})"))
    return findings


# --- trying things -------------------------------------------------------------------------------------------------


def attempt(action: Callable[[], None]) -> OSError | None:
    """Run ``action`` in a child process and give the error it ended with, if any.

    The caller must have no other threads: the child goes on from here.
    """
    child = os.fork()
    if child == 0:
        try:
            action()
            os._exit(0)
        except OSError as error:
            os._exit(error.errno if error.errno and 0 < error.errno < 256 else 255)
        except BaseException:
            os._exit(255)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return None
    return OSError(code, os.strerror(code)) if 0 < code < 255 else OSError(errno.EIO, f"the probe ended with {code}")


def _why(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


# --- kernel --------------------------------------------------------------------------------------------------------

_NEEDED: Final = (
    "CAP_SYS_ADMIN",
    "CAP_NET_ADMIN",
    "CAP_SYS_CHROOT",
    "CAP_MKNOD",
    "CAP_SETUID",
    "CAP_SETGID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SYS_PTRACE",
)


def _privileges(options: EngineOptions) -> Iterator[Finding]:
    if os.geteuid() != 0:
        yield Finding("privileges", "root", "missing", f"running as uid {os.geteuid()}", "run as root")
        return
    effective = capabilities.current("CapEff")
    lacking = [name for name in _NEEDED if not effective & capabilities.mask([name])]
    if lacking:
        yield Finding("privileges", "capabilities", "missing", f"lacks {', '.join(lacking)}", "run with them granted")
    else:
        yield Finding("privileges", "root", "ok", "every capability that containers get")
    if not effective & capabilities.mask(["CAP_SYS_RESOURCE"]):
        yield Finding(
            "privileges",
            "CAP_SYS_RESOURCE",
            "limited",
            "absent: ulimits above the daemon's own, lower oom_score_adj and reserved disk space are out of reach",
            "grant CAP_SYS_RESOURCE to the daemon",
        )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    state: State = "ok" if hard >= 65536 or hard == resource.RLIM_INFINITY else "limited"
    yield Finding(
        "privileges",
        "open files",
        state,
        f"soft {soft}, hard {hard}",
        "" if state == "ok" else "raise LimitNOFILE of the service",
    )


_NAMESPACES: Final = (
    ("mount", syscalls.CLONE_NEWNS, "missing", ""),
    ("uts", syscalls.CLONE_NEWUTS, "missing", "--uts private, --hostname"),
    ("ipc", syscalls.CLONE_NEWIPC, "missing", "--ipc private"),
    ("pid", syscalls.CLONE_NEWPID, "missing", "--pid private"),
    ("network", syscalls.CLONE_NEWNET, "missing", "every network but host"),
    ("cgroup", syscalls.CLONE_NEWCGROUP, "limited", "--cgroupns private"),
    ("user", syscalls.CLONE_NEWUSER, "limited", "user namespaces"),
    ("time", syscalls.CLONE_NEWTIME, "limited", "time offsets of the OCI runtime"),
)


def _kernel(options: EngineOptions) -> Iterator[Finding]:
    yield Finding("kernel", "release", "ok", f"{platform.release()} {platform.machine()}")
    present, absent = [], []
    for name, flag, state, use in _NAMESPACES:
        error = attempt(lambda flag=flag: syscalls.unshare(flag))  # type: ignore[misc]
        if error is None:
            present.append(name)
        else:
            absent.append((name, state, use, error))
    yield Finding("kernel", "namespaces", "ok", ", ".join(present))
    for name, state, use, error in absent:
        detail = f"cannot be made: {_why(error)}" + (f" (needed for {use})" if use else "")
        remedy = "a kernel with CONFIG_" + {"mount": "NAMESPACES"}.get(name, f"{name.upper()}_NS")
        if name == "user" and _read("/proc/sys/user/max_user_namespaces") == "0":
            remedy = "sysctl -w user.max_user_namespaces=15000"
        yield Finding("kernel", f"{name} namespace", state, detail, remedy)  # type: ignore[arg-type]
    yield from _syscalls()
    limit = int(_read("/proc/sys/kernel/pid_max") or 0)
    if limit and limit < 65536:
        yield Finding("kernel", "pid_max", "limited", str(limit), "sysctl -w kernel.pid_max=4194304")
    watches = int(_read("/proc/sys/fs/inotify/max_user_instances") or 0)
    if watches and watches < 512:
        yield Finding(
            "kernel",
            "inotify instances",
            "limited",
            f"{watches} for each user; programs in containers share root's",
            "sysctl -w fs.inotify.max_user_instances=8192",
        )


def _syscalls() -> Iterator[Finding]:
    def fresh_proc() -> None:
        os.close(syscalls.fsopen("tmpfs"))

    def resolve() -> None:
        root = os.open("/", os.O_PATH)
        os.close(syscalls.openat2(root, "proc", os.O_PATH, resolve=syscalls.RESOLVE_IN_ROOT))

    probes: tuple[tuple[str, Callable[[], None], State, str, str], ...] = (
        ("openat2", resolve, "limited", "paths in hostile roots are walked step by step", "5.6"),
        ("new mount API", fresh_proc, "missing", "fsopen(2) is how containers' roots are mounted", "5.2"),
        ("pidfd", lambda: os.close(syscalls.pidfd_open(os.getpid())), "missing", "processes are held by pidfd", "5.3"),
        ("close_range", lambda: syscalls.close_range(1 << 20), "limited", "descriptors are closed one by one", "5.9"),
        ("recursive attributes", _mount_setattr, "limited", "recursive read-only mounts are refused", "5.12"),
        ("idmapped mounts", _idmapped_mount, "limited", "idmap mount options and --userns-remap are refused", "5.12"),
    )
    fine = []
    for name, probe, state, without, since in probes:
        error = attempt(probe)
        if error is None:
            fine.append(name)
        else:
            yield Finding("kernel", name, state, f"{_why(error)}: {without}", f"Linux {since} or later")
    yield Finding("kernel", "system calls", "ok", ", ".join(fine))


def _mount_setattr() -> None:
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
    tree = syscalls.open_tree(syscalls.AT_FDCWD, "/proc", syscalls.OPEN_TREE_CLONE | syscalls.AT_RECURSIVE)
    syscalls.mount_setattr(tree, set=syscalls.MOUNT_ATTR_RDONLY, recursive=True)


def _idmapped_mount() -> None:
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        syscalls.unshare(syscalls.CLONE_NEWUSER)
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        os._exit(0)
    try:
        os.read(ready[0], 1)
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/{child}/{name}", "w") as table:
                table.write("0 100000 65536")
        users = os.open(f"/proc/{child}/ns/user", os.O_RDONLY)
        tree = syscalls.open_tree(syscalls.AT_FDCWD, "/var/tmp", syscalls.OPEN_TREE_CLONE)
        syscalls.mount_setattr(tree, set=syscalls.MOUNT_ATTR_IDMAP, userns=users)
    finally:
        os.write(go[1], b"x")
        os.waitpid(child, 0)


# --- control groups ------------------------------------------------------------------------------------------------

_WANTED: Final = (
    ("memory", "--memory", "cgroup_enable=memory swapaccount=1 on the kernel's command line"),
    ("cpu", "--cpus, --cpu-shares", ""),
    ("cpuset", "--cpuset-cpus", ""),
    ("pids", "--pids-limit", ""),
    ("io", "--device-read-bps and the like", ""),
    ("hugetlb", "limits of huge pages", ""),
)


def _cgroups(options: EngineOptions) -> Iterator[Finding]:
    from seacan import cgroups

    try:
        found = cgroups.discover()
    except Unsupported as error:
        yield Finding("cgroups", "hierarchies", "missing", error.message, "mount -t cgroup2 none /sys/fs/cgroup")
        return
    yield Finding("cgroups", "hierarchies", "ok", f"version {found.version}, {found.mode}")
    there: list[tuple[str, str, str]] = []
    lacking: list[tuple[str, str, str]] = []
    for name, use, remedy in _WANTED:
        present = found.has(name) or (name == "io" and found.has("blkio"))
        (there if present else lacking).append((name, use, remedy))
    yield Finding("cgroups", "controllers", "ok", ", ".join(name for name, _, _ in there))
    for name, use, remedy in lacking:
        yield Finding(
            "cgroups",
            f"{name} controller",
            "limited",
            f"not there: {use} is refused",
            remedy or f"a kernel with the {name} controller, not given away to another hierarchy",
        )
    from seacan.engine.host import host

    for warning in host().warnings:
        text = warning.removeprefix("WARNING: ")
        if not any(text.lower().startswith(f"no {name} limit") for name, _, _ in lacking):
            yield Finding("cgroups", text[:1].lower() + text[1:], "limited", "docker info warns about it, too")
    yield _writable(options.cgroup_parent)


def _writable(parent: str) -> Finding:
    from seacan import cgroups

    group = cgroups.open(f"/{parent.strip('/')}/doctor-{os.getpid()}")
    absent = [folder for folder in map(os.path.dirname, group.directories) if not os.path.isdir(folder)]
    try:
        group.create()
        group.remove()
    except (OSError, Unsupported) as error:
        return Finding(
            "cgroups",
            "writable",
            "missing",
            f"no group can be made in {parent}: {error}",
            "mount cgroups read-write, or give --cgroup-parent a group delegated to the daemon",
        )
    finally:
        for folder in absent:
            with contextlib.suppress(OSError):
                os.rmdir(folder)
    return Finding("cgroups", "writable", "ok", f"{parent} can hold containers")


# --- security ------------------------------------------------------------------------------------------------------


def _security(options: EngineOptions) -> Iterator[Finding]:
    from seacan.engine.profiles import apparmor, selinux
    from seacan.linux import seccomp

    if not seccomp.available():
        why = "libseccomp is not installed" if not ctypes.util.find_library("seccomp") else "libseccomp is too old"
        yield Finding(
            "security",
            "seccomp",
            "missing",
            f"{why}: containers cannot be started with the default filter",
            "apt-get install libseccomp2",
        )
    elif not os.path.exists("/proc/sys/kernel/seccomp/actions_avail"):
        yield Finding("security", "seccomp", "missing", "the kernel has none", "a kernel with CONFIG_SECCOMP_FILTER")
    else:
        actions = _read("/proc/sys/kernel/seccomp/actions_avail")
        yield Finding("security", "seccomp", "ok", f"actions: {actions}")
    if apparmor.supported() and not apparmor.obtainable():
        why = "enabled, but containers go without: apparmor_parser is missing"
        yield Finding("security", "AppArmor", "limited", why, "apt-get install apparmor")
    for name, usable in (("AppArmor", apparmor.obtainable()), ("SELinux", selinux.supported())):
        if usable:
            yield Finding("security", name, "ok", "enabled")
    if not apparmor.supported() and not selinux.supported():
        yield Finding(
            "security",
            "mandatory access control",
            "limited",
            "neither AppArmor nor SELinux is enabled: profiles and labels have no effect",
            "boot with lsm=apparmor (Debian, Ubuntu) or selinux (Fedora, RHEL)",
        )
    try:
        import grp

        grp.getgrnam("docker")
        yield Finding("security", "docker group", "ok", "may use the daemon's socket")
    except KeyError:
        yield Finding(
            "security",
            "docker group",
            "limited",
            "does not exist: only root can use the daemon's socket",
            "groupadd --system docker",
        )


# --- storage -------------------------------------------------------------------------------------------------------


def _storage(options: EngineOptions) -> Iterator[Finding]:
    from pathlib import Path

    from seacan.storage.drivers import overlay_obstacle

    folder = _existing(options.data_root)
    obstacle = overlay_obstacle(Path(folder))
    if obstacle:
        yield Finding(
            "storage",
            "overlay",
            "limited",
            f"cannot be mounted in {folder}: {obstacle.lower()}; vfs copies every image for every container",
            "put --data-root on ext4 or xfs (with ftype=1), not on another overlay",
        )
    else:
        yield Finding("storage", "overlay", "ok", f"in {folder} ({_filesystem(folder)})")
    space = os.statvfs(folder)
    free = space.f_bavail * space.f_frsize
    inodes = space.f_favail if space.f_files else 1 << 20
    low = free < 2 << 30 or inodes < 100_000
    yield Finding(
        "storage",
        "free space",
        "limited" if low else "ok",
        f"{free / 1e9:.1f} GB, {inodes} inodes in {folder}",
        "make room, or put --data-root elsewhere" if low else "",
    )


def _existing(path: str) -> str:
    while not os.path.isdir(path):
        path = os.path.dirname(path) or "/"
    return path


def _filesystem(folder: str) -> str:
    """The type of the file system that holds ``folder``, by the longest mount point above it."""
    best, kind = "", "unknown"
    real = os.path.realpath(folder)
    with open("/proc/self/mountinfo") as table:
        for line in table:
            left, _, right = line.partition(" - ")
            point = left.split()[4]
            if (real == point or real.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
                best, kind = point, right.split()[0]
    return kind


# --- network -------------------------------------------------------------------------------------------------------


def _network(options: EngineOptions) -> Iterator[Finding]:
    from seacan.network import doctor

    probes: tuple[tuple[str, State, str, str], ...] = (
        ("bridge", "missing", "bridge networks", "CONFIG_BRIDGE"),
        ("veth", "missing", "every network but host and none", "CONFIG_VETH"),
        ("nftables", "missing", "published ports, masquerading and isolation", "CONFIG_NF_TABLES_INET"),
        ("macvlan", "limited", "macvlan networks", "CONFIG_MACVLAN"),
        ("ipvlan", "limited", "ipvlan networks", "CONFIG_IPVLAN"),
        ("vlan", "limited", "sub-interfaces of macvlan networks", "CONFIG_VLAN_8021Q"),
    )
    fine = []
    for name, state, use, option in probes:
        error = attempt(lambda name=name: _make_link(name))  # type: ignore[misc]
        if error is None:
            fine.append(name)
        else:
            yield Finding("network", name, state, f"{_why(error)}: {use} are refused", f"a kernel with {option}")
    yield Finding("network", "drivers", "ok", ", ".join(fine))
    for finding in doctor.examine():
        yield Finding("network", "firewall", "limited", finding.problem, finding.remedy)
    slow = doctor.slow_path()
    if slow is None:
        yield Finding("network", "fast path", "ok", "packets between containers pass by the bridge")
    else:
        yield Finding("network", "fast path", "limited", slow.problem, slow.remedy)


def _make_link(kind: str) -> None:
    """Make a table, or an interface of ``kind`` on top of a bridge, in a namespace of this process's own."""
    from seacan.linux import nftables, rtnetlink
    from seacan.linux.netlink import NETLINK_ROUTE, NetlinkSocket

    syscalls.unshare(syscalls.CLONE_NEWNET)
    if kind == "nftables":
        batch = nftables.Batch(nftables.NFPROTO_INET, "doctor")
        batch.add_table()
        with nftables.open_socket() as sock:
            nftables.commit(sock, [batch])
        return
    namespace = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    with NetlinkSocket(NETLINK_ROUTE) as sock:
        if kind == "veth":
            sock.request([rtnetlink.new_veth("veth0", "veth1", namespace)])
            return
        sock.request([rtnetlink.new_bridge("bridge0", mac="02:42:00:00:00:01")])
        bridge = rtnetlink.link(sock, "bridge0")
        assert bridge is not None
        match kind:
            case "macvlan":
                sock.request([rtnetlink.new_macvlan("macvlan0", bridge.index, "bridge", namespace)])
            case "ipvlan":
                sock.request([rtnetlink.new_ipvlan("ipvlan0", bridge.index, "l2")])
            case "vlan":
                sock.request([rtnetlink.new_vlan("vlan0", bridge.index, 10)])


# --- programs ------------------------------------------------------------------------------------------------------

_PROGRAMS: Final = (
    (("docker-init", "tini-static", "tini"), "docker run --init", "apt-get install tini"),
    (("mmdebstrap",), "seacan image bootstrap debian", "apt-get install mmdebstrap"),
    (("git",), "builds from git", "apt-get install git"),
    (("criu",), "checkpoint and migration", "apt-get install criu"),
)


def _programs(options: EngineOptions) -> Iterator[Finding]:
    for names, use, remedy in _PROGRAMS:
        path = next((path for name in names if (path := shutil.which(name))), None)
        if path:
            yield Finding("programs", names[-1], "ok", path)
        else:
            yield Finding("programs", names[-1], "limited", f"not installed: no {use}", remedy)


def _devices(options: EngineOptions) -> Iterator[Finding]:
    names, warnings = devices.discovered(options)
    if names:
        yield Finding("devices", "CDI", "ok", ", ".join(names))
    for warning in warnings:
        yield Finding("devices", "CDI", "limited", warning, "correct or remove the file")


def _read(path: str) -> str:
    with contextlib.suppress(OSError), open(path) as file:
        return file.read().strip()
    return ""


CHECKS: Final[tuple[tuple[str, Check], ...]] = (
    ("privileges", _privileges),
    ("kernel", _kernel),
    ("cgroups", _cgroups),
    ("security", _security),
    ("storage", _storage),
    ("network", _network),
    ("programs", _programs),
    ("devices", _devices),
)
