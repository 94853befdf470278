"""The child that becomes the container's first process: everything between clone and execve.

The order matters and is explained where it does. The child talks to its parent over a :class:`Channel`; any failure
crosses it as a report in runc's words. Nothing of the container runs before the end, but what shares a pid namespace
with us could look at us: we are not dumpable, so /proc/<us>/exe, fd, mem and the rest stay closed to it
(CVE-2019-5736).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

import msgspec

from seacan.linux import syscalls as k
from seacan.linux.paths import make_in_root
from seacan.runtime import channel as words_of
from seacan.runtime import process, spec
from seacan.runtime.bundle import Rootfs
from seacan.runtime.channel import Channel
from seacan.runtime.failure import SetupFailed, report, step, words
from seacan.runtime.hooks import run_hooks
from seacan.runtime.mounts import PROPAGATION, MountPlan
from seacan.runtime.rootfs import MOUNTS_ON_DETACHED, RootBuilder, mount_root, open_bind

if TYPE_CHECKING:
    from seacan.cgroups import Cgroup

_TIOCSIFFLAGS = 0x8914
_IFF_UP_RUNNING = 0x1 | 0x40


class InitPlan:
    """What the parent worked out. Crosses by fork, so it may hold anything; descriptors in it are inherited."""

    __slots__ = (
        "bundle", "cgroup", "cgroup_files", "clone_flags", "devices", "domainname",
        "hooks", "hostname", "joins", "listener", "make_devices", "masked", "mounts", "network_created", "no_pivot",
        "process", "propagation", "readonly", "readonly_root", "root_fd", "rootfs", "seccomp",
        "setgroups", "state", "stdio", "sysctl", "time_offsets", "unshare_cgroup", "unshared", "userns_created",
        "userns_joined",
    )  # fmt: skip

    bundle: str
    cgroup: Cgroup | None
    cgroup_files: list[int]
    clone_flags: int
    devices: Sequence[spec.Device]
    domainname: str
    hooks: spec.Hooks
    hostname: str
    joins: list[tuple[int, int]]
    listener: socket.socket | None
    make_devices: bool
    masked: Sequence[str]
    mounts: list[MountPlan]
    network_created: bool
    no_pivot: bool
    process: process.ProcessPlan
    propagation: str
    readonly: Sequence[str]
    readonly_root: bool
    root_fd: int
    rootfs: Rootfs
    seccomp: k.SeccompProgram | None
    setgroups: bool
    state: spec.State
    stdio: tuple[int, int, int]
    sysctl: dict[str, str]
    time_offsets: dict[str, spec.LinuxTimeOffset]
    unshare_cgroup: bool
    unshared: int
    userns_created: bool
    userns_joined: int

    @property
    def userns(self) -> bool:
        return self.userns_created or self.userns_joined >= 0

    def descriptors(self) -> list[int]:
        """Every descriptor that the child needs."""
        found = [fd for fd in self.stdio if fd >= 0]
        found += self.cgroup_files
        found += [fd for fd, _ in self.joins]
        found += [mount.fd for mount in self.mounts if mount.fd >= 0]
        found += [fd for fd in (self.root_fd, self.userns_joined) if fd >= 0]
        if self.listener is not None:
            found.append(self.listener.fileno())
        return found


def close_all_but(keep: Sequence[int], preserve: int = 0) -> None:
    """Close every descriptor except the standard ones, the ``preserve`` ones that follow them, and ``keep``."""
    first = 3 + preserve
    for fd in sorted(set(keep)):
        if fd >= first:
            k.close_range(first, fd - 1)
            first = fd + 1
    k.close_range(first)


def run_intermediate(plan: InitPlan, channel: Channel) -> NoReturn:
    """A process between the runtime and init, for what a process cannot do to itself.

    The offsets of a time namespace are fixed once a process lives in it, and a pid namespace made inside a joined
    user namespace must belong to it. Init becomes our parent's child (CLONE_PARENT).
    """
    try:
        close_all_but([channel.fileno(), *plan.descriptors()], plan.process.preserve_fds)
        _join_cgroup(plan)
        if plan.userns_created:
            channel.expect(words_of.MAPPED)
            _become_root(plan)
        else:
            process.set_oom_score_adj(plan.process.oom_score_adj)
        if plan.userns_joined >= 0:
            with step("failed to join user namespace"):
                k.setns(plan.userns_joined, k.CLONE_NEWUSER)
            _become_root(plan)
        for fd, kind in plan.joins:
            if kind == k.CLONE_NEWPID:
                k.setns(fd, kind)
        if plan.time_offsets:
            _unshare_time(plan.time_offsets)
        with step("clone3"):
            pid, pidfd = k.clone3((plan.clone_flags & ~k.CLONE_NEWTIME & ~k.CLONE_NEWUSER) | k.CLONE_PARENT)
        if pid == 0:
            run_init(plan, channel, second=True)
        channel.send(words_of.CHILD, str(pid).encode(), (pidfd,))
    except BaseException as error:
        channel.send(words_of.FAILED, report(error))
        os._exit(1)
    os._exit(0)


def _unshare_time(offsets: dict[str, spec.LinuxTimeOffset]) -> None:
    with step("failed to create time namespace"):
        k.unshare(k.CLONE_NEWTIME)
    text = "".join(f"{clock} {offset.secs} {offset.nanosecs}\n" for clock, offset in offsets.items())
    with step("failed to update /proc/self/timens_offsets"):
        # The file is the owner's only while we are dumpable; we are not in a pid namespace of the container yet.
        k.prctl(k.PR_SET_DUMPABLE, 1)
        fd = os.open("/proc/self/timens_offsets", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
            k.prctl(k.PR_SET_DUMPABLE, 0)


def run_init(plan: InitPlan, channel: Channel, second: bool = False) -> NoReturn:
    """Never returns: execve, or an exit after the failure was reported."""
    try:
        executable = _prepare(plan, channel, second)
        channel = _wait_for_start(plan, channel)
        _run_own_hooks(plan, plan.hooks.start_container, "startContainer", "created")
        listener = executable.load()
        if listener >= 0:
            channel.send(words_of.LISTENER, b"", (listener,))
            os.close(listener)
    except BaseException as error:
        try:
            channel.send(words_of.FAILED, report(error))
        except OSError:
            pass  # nobody is left to be told
        os._exit(1)
    executable.execute()


def rehearse_root(plan: InitPlan) -> None:
    """Make the root as :func:`run_init` does, and go there. The caller has a mount namespace that it will leave."""
    channel, other = Channel.pair()
    try:
        builder = _build_root(plan, channel)
        _finish_root(plan, builder)
        builder.close()
    finally:
        channel.close()
        other.close()


def _wait_for_start(plan: InitPlan, channel: Channel) -> Channel:
    channel.send(words_of.CREATED)
    if plan.listener is None:
        channel.expect(words_of.START)
        return channel
    # Whoever created us will end; `start` finds us by a socket in the state folder.
    channel.close()
    while True:
        connection, _ = plan.listener.accept()
        caller = Channel(connection)
        if caller.receive()[0] == words_of.START:
            plan.listener.close()
            return caller
        caller.close()


def _prepare(plan: InitPlan, channel: Channel, second: bool) -> process.Executable:
    if not second:
        close_all_but([channel.fileno(), *plan.descriptors()], plan.process.preserve_fds)
        _join_cgroup(plan)
        if plan.userns_created:
            channel.expect(words_of.MAPPED)
            _become_root(plan)
            with step("unshare"):
                k.unshare(plan.unshared)
        else:
            process.set_oom_score_adj(plan.process.oom_score_adj)
    process.reset_signals()
    for fd, kind in plan.joins:
        if kind != k.CLONE_NEWPID:
            with step("failed to join namespace"):
                k.setns(fd, kind)
        os.close(fd)
    if plan.unshare_cgroup:
        # Only now, so that the namespace's root is the container's cgroup.
        with step("failed to unshare cgroup namespace"):
            k.unshare(k.CLONE_NEWCGROUP)
    process.set_scheduling(plan.process)
    if plan.process.keyring:
        process.label_keys(plan.process.selinux_label)
    process.join_keyring(plan.process.keyring)
    if plan.network_created:
        _set_up_network(channel)

    os.setsid()
    builder = _build_root(plan, channel)

    # The signals of the terminal, and its size, belong to whoever leads its session: us.
    terminal = -1
    if plan.process.terminal:
        master, terminal = process.open_terminal(builder.root, plan.process.size)
        channel.send(words_of.CONSOLE, b"", (master,))
        os.close(master)
        builder.mount_console(terminal)
    stdio = (terminal, terminal, terminal) if terminal >= 0 else plan.stdio
    process.set_stdio(*stdio, lambda: _open_null(builder))
    if terminal >= 0:
        process.take_terminal(0)

    if plan.hostname:
        with step("sethostname"):
            k.sethostname(plan.hostname)
    if plan.domainname:
        with step("setdomainname"):
            k.setdomainname(plan.domainname)
    _finish_root(plan, builder)
    builder.write_sysctls(plan.sysctl)
    if plan.process.apparmor_profile or plan.process.selinux_label:
        process.set_labels(builder.procfs(), str(os.getpid()), plan.process)
    builder.close()

    if not plan.userns:
        process.raise_limits(plan.process)  # else our parent does
    path = process.become(plan.process, setgroups=plan.setgroups, seccomp=plan.seccomp is not None)
    process.limit_descriptors(plan.process.preserve_fds)
    return process.Executable(path, plan.process, plan.seccomp)


def _open_null(builder: RootBuilder) -> int:
    """The container's /dev/null, or where it has none the host's, which is not out of sight yet."""
    with contextlib.suppress(SetupFailed):
        return process.open_null(builder.root)
    return os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)


def _join_cgroup(plan: InitPlan) -> None:
    """Enter the v1 hierarchies, ourselves and by ``tasks``.

    A single thread that moves itself needs no lock over its process's threads, so the kernel skips the RCU grace
    period (5 to 11 ms) that a write to cgroup.procs by somebody else begins with.
    """
    for fd in plan.cgroup_files:
        with step("unable to apply cgroup configuration"):
            os.write(fd, b"0")
        os.close(fd)


def _become_root(plan: InitPlan) -> None:
    """Root of the user namespace: creation left us with an identity it has no mapping for."""
    k.prctl(k.PR_SET_DUMPABLE, 0)
    with step("failed to become root in user namespace"):
        if plan.setgroups:
            os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    k.prctl(k.PR_SET_DUMPABLE, 0)


def _set_up_network(channel: Channel) -> None:
    """Bring ``lo`` up (127.0.0.1 and ::1 come by themselves), and hand out a way to configure the rest."""
    with step("failed to bring lo up"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _TIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP_RUNNING))
    with step("failed to open rtnetlink socket"):
        rtnl = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    with step("failed to open the network namespace"):
        namespace = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    channel.send(words_of.NETWORK, b"", (namespace, rtnl.fileno()))
    os.close(namespace)
    rtnl.close()


def _build_root(plan: InitPlan, channel: Channel) -> RootBuilder:
    propagation = PROPAGATION.get(plan.propagation, k.MS_SLAVE | k.MS_REC)
    with step("error making / of the new mount namespace " + (plan.propagation or "rslave")):
        k.mount("", "/", "", propagation)
        if propagation & k.MS_SHARED:
            # Sources first, while they still are peers of the host's mounts; then "/" itself must be private, or
            # the container's root would show up on the host and pivot_root would refuse.
            for mount in plan.mounts:
                if mount.kind == "bind" and mount.fd < 0:
                    mount.fd = prepared_bind(mount)
            k.mount("", "/", "", k.MS_PRIVATE)
    root = plan.root_fd if plan.root_fd >= 0 else mount_root(plan.rootfs)
    with step("error attaching rootfs"):
        if propagation & k.MS_SHARED:
            k.mount_setattr(root, propagation=k.MS_PRIVATE)
        detached = MOUNTS_ON_DETACHED and not propagation & k.MS_SHARED and _may_be_detached(plan)
        if not detached:
            # On top of "/", which no lookup of ours crosses until pivot_root: no mount point of its own is needed.
            k.move_mount(root, k.AT_FDCWD, "/")
    builder = RootBuilder(root, userns=plan.userns, cgroup=plan.cgroup, cgroupns=plan.unshare_cgroup, detached=detached)
    readonly_dev = None
    for mount in plan.mounts:
        if mount.destination == "/dev" and mount.kind == "filesystem" and mount.readonly:
            mount.set &= ~k.MOUNT_ATTR_RDONLY
            mount.superblock = [flag for flag in mount.superblock if flag != "ro"]
            readonly_dev = mount
        builder.mount(mount)
    if plan.make_devices:
        builder.make_devices(plan.devices)
    if readonly_dev is not None:
        with step("error remounting /dev read-only"):
            dev = make_in_root(root, "/dev")
            k.mount_setattr(dev, set=k.MOUNT_ATTR_RDONLY)
            os.close(dev)
    if plan.hooks.prestart or plan.hooks.create_runtime:
        channel.send(words_of.HOOKS)
        channel.expect(words_of.HOOKED)
    _run_own_hooks(plan, plan.hooks.create_container, "createContainer", "creating")
    return builder


def _may_be_detached(plan: InitPlan) -> bool:
    """Whether the root may be made without being attached: below that of a detached tree no mount can be changed, and
    only pivot_root moves those who are in a joined mount namespace already."""
    changes = any(one.kind == "remount" or (one.destination == "/dev" and one.readonly) for one in plan.mounts)
    joined = any(kind == k.CLONE_NEWNS for _, kind in plan.joins)
    return not (changes or joined or plan.no_pivot)


def _run_own_hooks(plan: InitPlan, hooks: Sequence[spec.Hook], name: str, status: str) -> None:
    """Hooks of the container's namespaces, which see our pid as we do."""
    if hooks:
        run_hooks(hooks, msgspec.structs.replace(plan.state, pid=os.getpid(), status=status), name)


def prepared_bind(mount: MountPlan) -> int:
    """A bind mount made ahead: a detached copy of its source, with its attributes."""
    builder = RootBuilder(-1, userns=False, cgroup=None, cgroupns=False)
    try:
        fd = open_bind(mount)
        builder.set_attributes(fd, mount)
    except OSError as error:
        raise SetupFailed(f"{mount.where()}: {words(error)}") from error
    return fd


def _finish_root(plan: InitPlan, builder: RootBuilder) -> None:
    cwd = plan.process.cwd
    if cwd != "/":
        with step(f"mkdir {cwd}"):
            fd = make_in_root(builder.root, cwd)
            directory = stat.S_ISDIR(os.fstat(fd).st_mode)
            os.close(fd)
            if not directory:
                raise NotADirectoryError(20, "not a directory")
    # sysctls before the masks: /proc/sys becomes read-only with them
    builder.write_sysctls(plan.sysctl)
    plan.sysctl = {}
    builder.readonly(plan.readonly)
    builder.mask(plan.masked)
    if plan.readonly_root:
        with step("error setting rootfs as readonly"):
            k.mount_setattr(builder.root, set=k.MOUNT_ATTR_RDONLY)
    if plan.no_pivot:
        builder.move_to_root()
    else:
        builder.pivot()
    if plan.propagation:
        # Only now: pivot_root refuses shared mounts.
        with step("error setting rootfs propagation"):
            k.mount("", "/", "", PROPAGATION[plan.propagation] & ~k.MS_REC)
