"""Containers made by another OCI runtime (``--runtime=runc``), driven through runc's command line.

For :mod:`seacan.runtime.maker`, in its short-lived processes: the root filesystem is mounted in a mount namespace of
theirs, which the runtime's init has a copy of, so that nothing is ever mounted on the host. Everything that happens to
a running container (streams, signals, exits) is the shim's business as always.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import shutil
import signal
import socket
import stat
from collections.abc import Sequence
from typing import NamedTuple

from seacan import cgroups
from seacan.cgroups import Cgroup
from seacan.errors import RuntimeFailed
from seacan.linux import syscalls as k
from seacan.linux.userns import namespace_with
from seacan.runtime import mounts, spec
from seacan.runtime.bundle import ExternalRuntime, ShimConfig
from seacan.runtime.container import Stdio, own_pipes, ranges
from seacan.runtime.failure import words
from seacan.runtime.rootfs import mount_root, open_bind

PID_FILE = "init.pid"
"""In the bundle; as long as it is there, the runtime knows the container."""

_ROOT = "rootfs"
_VERSION = "1.0.2"
"""Of the configuration that another runtime gets: crun before 1.9 refuses any that does not begin with 1.0."""
_OURS = frozenset({"subpath", "lowerdir+"})
"""Options of mounts that only our runtime knows."""
_LOG = "runtime.log"
_CONSOLE = "console.sock"


class Init(NamedTuple):
    pid: int
    pidfd: int
    netns: int | None
    rtnl: int | None
    console: int | None


class Runtime:
    """One container and the program that makes it."""

    def __init__(self, bundle: str, config: ShimConfig, external: ExternalRuntime) -> None:
        self._bundle = bundle
        self._config = config
        self._external = external
        self._root = external.root or f"{bundle}/runtime"

    # --- the program ------------------------------------------------------------------------------------------

    def _run(self, verb: str, arguments: Sequence[str], stdio: Stdio | None = None) -> str:
        """Run the program; gives why it failed, or "" when it did not."""
        log = f"{self._bundle}/{_LOG}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(log)
        path = self._external.path
        program = path if "/" in path else shutil.which(path)
        if program is None:
            raise RuntimeFailed(f'exec: "{path}": executable file not found in $PATH')
        argv = [path, *self._external.arguments, "--root", self._root, "--log", log, "--log-format", "json", verb]
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            ends = [null if fd < 0 else fd for fd in stdio or Stdio()]
            # Lifted out of the way first, so that no dup2 lands on a descriptor that is still needed.
            ends = [os.dup(fd) if fd < 3 else fd for fd in ends]
            pid = os.posix_spawn(
                program,
                [*argv, *arguments],
                {"PATH": os.environ.get("PATH", os.defpath)},
                file_actions=[(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(ends)],
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
            )
        except OSError as error:
            raise RuntimeFailed(f"fork/exec {path}: {error.strerror}") from error
        finally:
            os.close(null)
        _, status = os.waitpid(pid, 0)
        if status == 0:
            return ""
        return self._reason(log) or f"{path} {verb} failed: exit status {os.waitstatus_to_exitcode(status)}"

    @staticmethod
    def _reason(log: str) -> str:
        """The last error in the log. runc writes an object a line, crun takes several lines for one."""
        try:
            with open(log, encoding="utf-8", errors="replace") as file:
                text = file.read()
        except FileNotFoundError:
            return ""
        reason, at = "", 0
        decoder = json.JSONDecoder()
        with contextlib.suppress(json.JSONDecodeError):
            while (at := text.find("{", at)) >= 0:
                entry, at = decoder.raw_decode(text, at)
                if entry.get("msg") and entry.get("level", "error") in ("error", "fatal"):
                    reason = str(entry["msg"])
        return reason

    def _failure(self, reason: str, process: spec.Process | None) -> RuntimeFailed:
        """With the exit code that dockerd reads out of such words."""
        command = process.args[0] if process is not None and process.args else "\0"
        if command in reason or f"`{command}`" in reason:
            if "executable file not found" in reason or "no such file or directory" in reason.lower():
                return RuntimeFailed(reason, 127)
            if "permission denied" in reason.lower() or "is a directory" in reason.lower():
                return RuntimeFailed(reason, 126)
        return RuntimeFailed(reason, 128)

    # --- life -------------------------------------------------------------------------------------------------

    def create(self, oci: spec.Spec, stdio: Stdio) -> Init:
        """Have init made; it waits for :meth:`start`. Raises RuntimeFailed."""
        os.makedirs(self._root, 0o700, exist_ok=True)
        self._mount(oci)
        own_pipes(oci.linux, oci.process, stdio)
        pid_file = f"{self._bundle}/{PID_FILE}"
        arguments = ["--bundle", self._bundle, "--pid-file", pid_file]
        console = None
        with _Console(self._bundle, oci.process is not None and oci.process.terminal) as receiver:
            failure = self._run(
                "create",
                [*arguments, *receiver.arguments, self._config.id],
                None if oci.process is not None and oci.process.terminal else stdio,
            )
            if failure:
                with contextlib.suppress(RuntimeFailed):
                    self._run("delete", ["--force", self._config.id])
                raise self._failure(failure, oci.process)
            console = receiver.take()
        with open(pid_file) as file:
            pid = int(file.read())
        pidfd = k.pidfd_open(pid)
        netns = rtnl = None
        namespaces = oci.linux.namespaces if oci.linux is not None else []
        if any(namespace.type == "network" and not namespace.path for namespace in namespaces):
            netns = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            rtnl = _rtnetlink(netns)
        return Init(pid, pidfd, netns, rtnl, console)

    def _mount(self, oci: spec.Spec) -> None:
        """Mount the root where the runtime looks for it, for this process and its children alone."""
        target = f"{self._bundle}/{_ROOT}"
        os.makedirs(target, 0o700, exist_ok=True)
        os.chmod(self._bundle, 0o711)  # noqa: S103 - a runtime's init may have to pass through under a user namespace
        os.chmod(target, 0o755)  # noqa: S103
        k.unshare(k.CLONE_NEWNS)
        k.mount("", "/", "", k.MS_REC | k.MS_SLAVE)
        root = mount_root(self._config.rootfs)
        try:
            k.move_mount(root, k.AT_FDCWD, target)
        finally:
            os.close(root)
        oci.oci_version = _VERSION
        self._prepare_mounts(oci)
        readonly = oci.root is not None and oci.root.readonly
        oci.root = spec.Root(_ROOT, readonly=readonly)
        with open(f"{self._bundle}/config.json.tmp", "wb") as file:
            file.write(spec.encode(oci))
        os.rename(f"{self._bundle}/config.json.tmp", f"{self._bundle}/config.json")

    def _prepare_mounts(self, oci: spec.Spec) -> None:
        """Make the mounts that not every runtime can (owners mapped, part of a volume, an image's layers), so that they
        are plain bind mounts for it. Raises RuntimeFailed.
        """
        linux = oci.linux or spec.Linux()
        for number, mount in enumerate(oci.mounts):
            plan = mounts.plan(mount, self._bundle, linux.mount_label)
            if not plan.idmap and not any(key in _OURS for key, _ in plan.data):
                continue
            try:
                tree = self._prepared(plan, linux)
            except OSError as error:
                raise RuntimeFailed(f"{plan.where()}: {words(error)}") from error
            target = f"{self._bundle}/mount-{number}"
            try:
                if stat.S_ISDIR(os.stat(tree).st_mode):
                    os.makedirs(target, exist_ok=True)
                else:
                    os.close(os.open(target, os.O_CREAT | os.O_CLOEXEC, 0o600))
                k.move_mount(tree, k.AT_FDCWD, target)
            finally:
                os.close(tree)
            known = [option for option in mount.options if option in mounts.KNOWN_OPTIONS and "idmap" not in option]
            kind = [] if {"bind", "rbind"} & set(known) else ["rbind"]
            oci.mounts[number] = spec.Mount(mount.destination, "bind", target, [*kind, *known])

    @staticmethod
    def _prepared(plan: mounts.MountPlan, linux: spec.Linux) -> int:
        with contextlib.ExitStack() as stack:
            userns = -1
            if plan.idmap:
                uids, gids = plan.uid_mappings or linux.uid_mappings, plan.gid_mappings or linux.gid_mappings
                userns = namespace_with(ranges(uids), ranges(gids))
                stack.callback(os.close, userns)
            if plan.kind != "bind":
                return mounts.mount_layers(plan, userns)
            tree = open_bind(plan)
            if plan.idmap:
                k.mount_setattr(tree, set=k.MOUNT_ATTR_IDMAP, userns=userns, recursive=plan.idmap == "tree")
            return tree

    def start(self, oci: spec.Spec) -> None:
        """Let init execute its program. Raises RuntimeFailed."""
        if failure := self._run("start", [self._config.id]):
            raise self._failure(failure, oci.process)

    def exec(self, process: spec.Process, stdio: Stdio) -> tuple[int, int | None]:
        """Run a further process: its pid and, on a terminal, the master. Raises RuntimeFailed."""
        with open(f"{self._bundle}/config.json", "rb") as file:
            own_pipes(spec.decode_spec(file.read()).linux, process, stdio)
        name = os.urandom(8).hex()
        process_file, pid_file = f"{self._bundle}/.exec-{name}.json", f"{self._bundle}/.exec-{name}.pid"
        with contextlib.ExitStack() as stack:
            for path in (process_file, pid_file):
                stack.callback(_unlink, path)
            with open(process_file, "wb") as file:
                file.write(spec.encode(process))
            receiver = stack.enter_context(_Console(self._bundle, process.terminal, name))
            failure = self._run(
                "exec",
                [
                    "--process", process_file, "--detach", "--pid-file", pid_file, *receiver.arguments, self._config.id,
                ],
                None if process.terminal else stdio,
            )  # fmt: skip
            if failure:
                raise self._failure(failure, process)
            console = receiver.take()
            with open(pid_file) as file:
                return int(file.read()), console

    def remove(self) -> None:
        """Delete the container, whatever state it is in. Raises RuntimeFailed."""
        if not os.path.exists(f"{self._bundle}/{PID_FILE}"):
            return
        failure = self._run("delete", ["--force", self._config.id])
        if failure and "does not exist" not in failure:
            raise RuntimeFailed(failure)
        _unlink(f"{self._bundle}/{PID_FILE}")
        with contextlib.suppress(OSError):
            os.rmdir(f"{self._bundle}/{_ROOT}")
        if not self._external.root:
            shutil.rmtree(self._root, ignore_errors=True)
        _unlink(f"{self._bundle}/{_LOG}")


def cgroup_of(oci: spec.Spec) -> Cgroup | None:
    """The cgroup that the runtime has put the container in."""
    if oci.linux is None or not oci.linux.cgroups_path:
        return None
    return cgroups.open(oci.linux.cgroups_path)


class _Console:
    """The socket on which a runtime hands over a terminal's master."""

    def __init__(self, bundle: str, wanted: bool, name: str = "") -> None:
        self.arguments: list[str] = []
        self._listener: socket.socket | None = None
        if not wanted:
            return
        # A runtime connects by path, and sun_path holds 108 bytes only: longer than some bundles allow.
        folder = os.open(bundle, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._path = f"{bundle}/{name}{_CONSOLE}"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.bind(f"/proc/self/fd/{folder}/{name}{_CONSOLE}")
            self._listener.listen(1)
        except BaseException:
            self._listener.close()
            raise
        finally:
            os.close(folder)
        self.arguments = ["--console-socket", self._path]

    def take(self) -> int | None:
        """The master that has been handed over."""
        if self._listener is None:
            return None
        self._listener.settimeout(10)
        connection, _ = self._listener.accept()
        with connection:
            _, control, _, _ = connection.recvmsg(4096, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
        for level, kind, data in control:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                return array.array("i", data[:4])[0]
        raise RuntimeFailed("the runtime has handed over no terminal")

    def __enter__(self) -> _Console:
        return self

    def __exit__(self, *failure: object) -> None:
        if self._listener is not None:
            self._listener.close()
            _unlink(self._path)


def _rtnetlink(netns: int) -> int:
    """A NETLINK_ROUTE socket inside ``netns``. This process has one thread, so it can go there and back."""
    own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        k.setns(netns, k.CLONE_NEWNET)
        try:
            return socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
            ).detach()
        finally:
            k.setns(own, k.CLONE_NEWNET)
    finally:
        os.close(own)


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
