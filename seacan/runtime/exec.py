"""A further process in a running container: joined, stripped, and only then born into it.

A process between the runtime and the new one does all that takes privilege: it enters cgroup and namespaces and takes
on user, capabilities and working directory while it still is in the runtime's pid namespace, where no process of the
container can see it. What it then forks into the container's pid namespace (CLONE_PARENT: the runtime's child) already
is what the container may know (CVE-2016-9962, CVE-2019-5736); it is not dumpable until execve. One exception: a filter
without no-new-privileges needs CAP_SYS_ADMIN, which it keeps for the few instructions until the filter is loaded.

Where the caller allows it, the new process is spawned instead (vfork): it shares this one's memory until execve, so
nobody in the container may be able to trace it, and it is a child of this one until that ends.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NoReturn

from seacan.errors import InvalidParameter
from seacan.linux import syscalls as k
from seacan.runtime import channel as words_of
from seacan.runtime import process
from seacan.runtime.channel import Channel
from seacan.runtime.failure import SetupFailed, report, step, words
from seacan.runtime.init import close_all_but


def parse_cpus(text: str) -> set[int]:
    """A CPU list (``0-3,7``). Raises InvalidParameter."""
    found: set[int] = set()
    try:
        for part in text.split(","):
            first, dash, last = part.strip().partition("-")
            found.update(range(int(first), int(last if dash else first) + 1))
    except ValueError:
        raise InvalidParameter(f"invalid CPU affinity: {text!r}") from None
    return found


def run_exec(
    plan: process.ProcessPlan,
    channel: Channel,
    *,
    pidfd: int,
    namespaces: int,
    tasks: Sequence[int],
    stdio: tuple[int, int, int],
    seccomp: k.SeccompProgram | None,
    chroot: int,
    affinity: tuple[str, str],
    setgroups: bool,
    spawn: bool = False,
) -> NoReturn:
    """The intermediate process, and after its fork the new one. Never returns.

    With ``spawn`` the caller's parent is a subreaper, the filter lets a process spawn, and no process in the container
    has CAP_SYS_PTRACE.
    """
    try:
        keep = [channel.fileno(), pidfd, *tasks, *(fd for fd in (*stdio, chroot) if fd >= 0)]
        close_all_but(keep, plan.preserve_fds)
        executable = _prepare(plan, channel, pidfd, namespaces, tasks, stdio, chroot, affinity, setgroups, seccomp)
        if spawn and executable.can_spawn:
            executable.load()
            channel.send(words_of.CHILD, str(executable.spawn()).encode())
            # Who waits for the end of the channel or of the streams need not wait for our memory to be taken apart.
            k.close_range(0)
            os._exit(0)
        with step("clone3"):
            pid, new = k.clone3(k.CLONE_PARENT)
        if pid != 0:
            channel.send(words_of.CHILD, str(pid).encode(), (new,))
            os._exit(0)
        channel.expect(words_of.START)
        os.setsid()
        if plan.terminal:
            process.take_terminal(0)
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


def _prepare(
    plan: process.ProcessPlan,
    channel: Channel,
    pidfd: int,
    namespaces: int,
    tasks: Sequence[int],
    stdio: tuple[int, int, int],
    chroot: int,
    affinity: tuple[str, str],
    setgroups: bool,
    seccomp: k.SeccompProgram | None,
) -> process.Executable:
    if affinity[0]:
        with step("error setting initial CPU affinity"):
            os.sched_setaffinity(0, parse_cpus(affinity[0]))
    process.set_oom_score_adj(plan.oom_score_adj)
    for fd in tasks:
        with step("unable to apply cgroup configuration"):
            os.write(fd, b"0")
        os.close(fd)
    if affinity[1]:
        with step("error setting final CPU affinity"):
            os.sched_setaffinity(0, parse_cpus(affinity[1]))
    process.reset_signals()
    process.set_scheduling(plan)
    _set_labels(plan)  # through the host's procfs
    if plan.keyring:
        process.label_keys(plan.selinux_label)
    _join(pidfd, namespaces)
    os.close(pidfd)
    if namespaces & k.CLONE_NEWUSER:
        with step("failed to become root in user namespace"):
            if setgroups:
                os.setgroups([])
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
        k.prctl(k.PR_SET_DUMPABLE, 0)
    if chroot >= 0:
        os.fchdir(chroot)
        os.chroot(".")
        os.close(chroot)
    process.join_keyring(plan.keyring)
    _set_stdio(plan, channel, stdio)
    if not namespaces & k.CLONE_NEWUSER:
        process.raise_limits(plan)
    path = process.become(plan, setgroups=setgroups, seccomp=seccomp is not None)
    process.limit_descriptors(plan.preserve_fds)
    return process.Executable(path, plan, seccomp)


def _set_stdio(plan: process.ProcessPlan, channel: Channel, stdio: tuple[int, int, int]) -> None:
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    if plan.terminal:
        master, slave = process.open_terminal(root, plan.size)
        channel.send(words_of.CONSOLE, b"", (master,))
        os.close(master)
        stdio = slave, slave, slave
    process.set_stdio(*stdio, lambda: process.open_null(root))
    os.close(root)


def _join(pidfd: int, namespaces: int) -> None:
    """All at once; user namespace first is the kernel's business."""
    if not namespaces:
        return
    try:
        k.setns(pidfd, namespaces)
    except OSError as error:
        raise SetupFailed(f"error executing setns process: {words(error)}") from error


def _set_labels(plan: process.ProcessPlan) -> None:
    if plan.apparmor_profile or plan.selinux_label:
        proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            process.set_labels(proc, str(os.getpid()), plan)
        finally:
            os.close(proc)
