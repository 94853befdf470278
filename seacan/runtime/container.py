"""The OCI runtime proper: one container, from create to delete. Synchronous; for a single-threaded process.

Used by the shim, which was forked with this module loaded, and by ``seacan-runtime``. Importing has no side effects.
It knows no Docker, no log and no attach: a caller hands in descriptors and puts ``pidfd`` into its own epoll.

::

    stdio = Stdio(stdin=3, stdout=4, stderr=5)        # -1 means /dev/null; ignored when process.terminal is set
    container = Container.create(
        "c0ffee", "/run/seacan/containers/c0ffee", spec,
        root="/run/seacan/containers",               # state.json goes to <root>/<id>/state.json
        stdio=stdio,
        rootfs=OverlayRoot(...) | DirectoryRoot(...) | None,   # None: spec.root.path, as in an OCI bundle
        seccomp=b"..." | None,                       # compiled BPF (struct sock_filter[]); None: no filter
        seccomp_flags=0,                             # SECCOMP_FILTER_FLAG_*
        on_sandbox=lambda container: None,           # called as soon as pid, pidfd, netns and rtnl are there, while
    )                                                # init is still mounting
    container.pid, container.pidfd                   # pid as seen here
    container.netns, container.rtnl                  # int, or None unless a network namespace was created
    container.console                                # the pseudo-terminal's master (the caller owns it), or None
    container.start()                                # returns once execve is certain
    process = container.exec(process, stdio, seccomp=b"...")    # ExecProcess(pid, pidfd, console)
    container.kill(signal.SIGTERM); container.kill(9, everyone=True)
    container.pause(); container.resume(); container.update(resources)
    reap(container.pidfd)                            # -> Ended(exit_code, signal) or None while it runs
    container.release()                              # closes descriptors (grace periods of the namespaces happen here:
                                                     # call it after whoever waits for the exit has been told)
    container.delete(force=False)                    # cgroup, state.json, poststop hooks

``create``, ``start`` and ``exec`` raise :class:`seacan.errors.RuntimeFailed` with runc's own words (``unable to start
container process: …``; the caller puts containerd's and dockerd's prefixes before them) and exit code 127, 126 or 128;
whatever had been made is undone first. After a process of the container was created, descriptors given in ``stdio``
may be closed by the caller: it keeps no copy of its own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import re
import select
import signal
import socket
import stat
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, NoReturn

import msgspec

from seacan import cgroups
from seacan.cgroups import Cgroup
from seacan.errors import Conflict, InvalidParameter, NotFound, RuntimeFailed, Unsupported
from seacan.linux import syscalls as k
from seacan.linux.userns import Range, namespace_with, outside, write_map
from seacan.runtime import channel as words_of
from seacan.runtime import interfaces, mounts, process, spec, state
from seacan.runtime.bundle import DirectoryRoot, Rootfs
from seacan.runtime.channel import Channel
from seacan.runtime.exec import run_exec
from seacan.runtime.failure import SetupFailed, raised, step, words
from seacan.runtime.hooks import run_hooks
from seacan.runtime.init import InitPlan, prepared_bind, run_init, run_intermediate
from seacan.runtime.rootfs import mount_root

NAMESPACES: Final = {
    "user": k.CLONE_NEWUSER,
    "pid": k.CLONE_NEWPID,
    "network": k.CLONE_NEWNET,
    "mount": k.CLONE_NEWNS,
    "ipc": k.CLONE_NEWIPC,
    "uts": k.CLONE_NEWUTS,
    "cgroup": k.CLONE_NEWCGROUP,
    "time": k.CLONE_NEWTIME,
}
_PROC_NAMES: Final = {"network": "net", "mount": "mnt"}

# What every container may use (runc appends the same): terminals, the harmless devices, and mknod of anything.
DEVICE_RULES: Final = tuple(
    spec.LinuxDeviceCgroup(allow=True, type=kind, major=major, minor=minor, access=access)
    for kind, major, minor, access in (
        ("c", None, None, "m"),
        ("b", None, None, "m"),
        ("c", 1, 3, "rwm"),
        ("c", 1, 5, "rwm"),
        ("c", 1, 7, "rwm"),
        ("c", 1, 8, "rwm"),
        ("c", 1, 9, "rwm"),
        ("c", 5, 0, "rwm"),
        ("c", 5, 2, "rwm"),
        ("c", 136, None, "rwm"),
    )
)

BEGINNING: Final = "unable to start container process: "
IN_INIT: Final = BEGINNING + "error during container init: "


class Stdio(NamedTuple):
    """Descriptors for the process's 0, 1 and 2, borrowed for the call; -1 is /dev/null."""

    stdin: int = -1
    stdout: int = -1
    stderr: int = -1


class Ended(NamedTuple):
    """How a process ended: the shell's exit code (128 + signal), and the signal or 0."""

    exit_code: int
    signal: int


class ExecProcess(NamedTuple):
    """A further process of a container. The caller owns ``pidfd`` and ``console`` (a pty's master, or None), and
    reaps."""

    pid: int
    pidfd: int
    console: int | None


def reap(pidfd: int, *, block: bool = False) -> Ended | None:
    """Reap a child by its pidfd (readable for epoll once it has ended); None while it runs.

    Raises ChildProcessError if it is no child of ours, or was reaped already.
    """
    result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | (0 if block else os.WNOHANG))
    if result is None or result.si_pid == 0:
        return None
    if result.si_code == os.CLD_EXITED:
        return Ended(result.si_status, 0)
    return Ended(128 + result.si_status, result.si_status)


def check_id(id: str) -> None:
    """Raises InvalidParameter unless ``id`` is fit to be a folder's name."""
    if not id or id in (".", "..") or not all(c.isascii() and (c.isalnum() or c in "_+-.") for c in id):
        raise InvalidParameter("invalid container ID format")


class Container:
    """See the module."""

    def __init__(self, id: str, folder: str, bundle: str, configuration: spec.Spec | msgspec.Raw) -> None:
        self.id = id
        self.folder = folder
        self.bundle = bundle
        self._spec = configuration
        self._personality: spec.LinuxPersonality | msgspec.UnsetType | None = msgspec.UNSET
        self.pid = 0
        self.pidfd = -1
        self.netns: int | None = None
        self.rtnl: int | None = None
        self.console: int | None = None
        self.cgroup: Cgroup | None = None
        self.created = ""
        self.rootfs = ""
        self.start_time = 0
        self.no_pivot = False
        self._namespaces = 0
        self._mntns = -1
        self._channel: Channel | None = None

    @property
    def configuration(self) -> spec.Spec:
        """The configuration. Raises InvalidParameter if what was saved of it is damaged."""
        if isinstance(self._spec, msgspec.Raw):
            self._spec = spec.decode_spec(bytes(self._spec))
        return self._spec

    # --- create -----------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        id: str,
        bundle: str,
        configuration: spec.Spec,
        *,
        root: str,
        stdio: Stdio,
        rootfs: Rootfs | None = None,
        seccomp: bytes | None = None,
        seccomp_flags: int = 0,
        on_sandbox: Callable[[Container], None] | None = None,
        preserve_fds: int = 0,
        detached: bool = False,
        no_pivot: bool = False,
        new_keyring: bool = True,
    ) -> Container:
        """Make a container whose init waits for :meth:`start`. See the module for the arguments.

        ``detached``: the caller will end; init waits at a socket in the state folder instead, and dies with nobody.

        Raises RuntimeFailed, InvalidParameter for a configuration that cannot be, Unsupported for one that this host
        cannot carry out, and Conflict when the ID is taken. Nothing is left behind then.
        """
        check_id(id)
        folder = f"{root}/{id}"
        if os.path.exists(f"{folder}/{state.FILE}"):
            raise Conflict("container with given ID already exists")
        self = cls(id, folder, bundle, configuration)
        self.no_pivot = no_pivot
        with contextlib.ExitStack() as undo:
            made = not os.path.isdir(folder)
            if made:
                os.makedirs(folder, 0o700)
                undo.callback(_remove_folder, folder)
            try:
                plan = self._plan(rootfs, seccomp, seccomp_flags, preserve_fds, new_keyring)
                plan.stdio = stdio
                plan.cgroup = self._make_cgroup()
                undo.callback(plan.cgroup.remove)
                self._create(plan, undo, on_sandbox, detached)
            except SetupFailed as error:
                raise RuntimeFailed(BEGINNING + str(error), error.exit_code) from error
            except OSError as error:
                where = f"{error.filename}: " if error.filename else ""
                raise RuntimeFailed(f"{BEGINNING}{where}{words(error)}") from error
            self.created = state.now()
            self.save()
            undo.pop_all()
        return self

    @classmethod
    def become_init(
        cls,
        id: str,
        bundle: str,
        configuration: spec.Spec,
        channel: Channel,
        *,
        root: str,
        stdio: Stdio,
        rootfs: Rootfs | None,
        seccomp: bytes | None,
        seccomp_flags: int,
        on_cgroup: Callable[[Cgroup], None],
        new_keyring: bool = True,
    ) -> NoReturn:
        """Be the init of a new container: :meth:`create` and init in one process, for a configuration that is
        :func:`seacan.runtime.spec.direct`.

        The caller was born in the container's PID namespace and v2 cgroup (:meth:`Cgroup.create_unified`), and sees
        the rest of the host. ``channel`` hears what :class:`Container` would; ``on_cgroup`` is called once the limits
        are set. Raises as :meth:`create` does, but whatever has been made is left for the parent to remove.
        """
        check_id(id)
        folder = f"{root}/{id}"
        if os.path.exists(f"{folder}/{state.FILE}"):
            raise Conflict("container with given ID already exists")
        self = cls(id, folder, bundle, configuration)
        try:
            plan = self._plan(rootfs, seccomp, seccomp_flags, 0, new_keyring)
            plan.stdio = stdio
            plan.cgroup = self._make_cgroup(inside=True)
            on_cgroup(plan.cgroup)
            self._open_joined(plan)
            plan.cgroup_files = self._open_tasks()
            # As the host's procfs has it: getpid() says 1.
            self.pid = int(os.readlink("/proc/self"))
            self.start_time = state.process_status(self.pid)[1]
            self.created = state.now()
            self.save()
            # What shares our pid namespace later must not look into us.
            k.prctl(k.PR_SET_DUMPABLE, 0)
            with step("unshare"):
                k.unshare(plan.clone_flags & ~k.CLONE_NEWPID)
            if not plan.network_created:
                channel.send(words_of.NETWORK)
        except SetupFailed as error:
            raise RuntimeFailed(BEGINNING + str(error), error.exit_code) from error
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise RuntimeFailed(f"{BEGINNING}{where}{words(error)}") from error
        run_init(plan, channel)

    @classmethod
    def rehearse(cls, id: str, configuration: spec.Spec, cgroup: Cgroup, *, root: str) -> InitPlan:
        """What :meth:`become_init` and :meth:`become_exec` do up to their first effect on the process: for whoever
        forks many of them. The folder ``<root>/<id>`` exists. Gives the plan, of a container without a root."""
        self = cls(id, f"{root}/{id}", root, configuration)
        plan = self._plan(DirectoryRoot("/"), None, 0, 0, True)
        plan.cgroup = self.cgroup = cgroup
        cgroup.create()
        self.pid = int(os.readlink("/proc/self"))
        self.start_time = state.process_status(self.pid)[1]
        self.created = state.now()
        self.save()
        again = cls.load(id, root=root)
        if configuration.process is not None:
            again._plan_exec(configuration.process, 0, 0, True)
        again.release()
        return plan

    def _plan(
        self, rootfs: Rootfs | None, seccomp: bytes | None, seccomp_flags: int, preserve_fds: int, new_keyring: bool
    ) -> InitPlan:
        configuration = self.configuration
        linux = configuration.linux or spec.Linux()
        if configuration.process is None:
            raise InvalidParameter("process property must not be empty")
        if rootfs is None:
            if configuration.root is None:
                raise InvalidParameter("root must be specified")
            path = configuration.root.path
            if not path.startswith("/"):
                path = posixpath.join(self.bundle, path)
            if not os.path.isdir(path):
                raise InvalidParameter(f"invalid rootfs: stat {path}: no such file or directory")
            rootfs = DirectoryRoot(os.path.realpath(path))
        self.rootfs = rootfs.path if isinstance(rootfs, DirectoryRoot) else (rootfs.upper or rootfs.lower[0])

        plan = InitPlan()
        plan.bundle = self.bundle
        plan.cgroup = None
        plan.cgroup_files = []
        plan.clone_flags = 0
        plan.unshared = 0
        plan.joins = []
        plan.userns_joined = -1
        plan.unshare_cgroup = False
        kinds: set[str] = set()
        for namespace in linux.namespaces:
            flag = NAMESPACES.get(namespace.type)
            if flag is None:
                raise InvalidParameter(f"unknown namespace {namespace.type!r}")
            if namespace.type in kinds:
                raise InvalidParameter(f"malformed spec file: duplicated ns {namespace.type!r}")
            kinds.add(namespace.type)
            self._namespaces |= flag
            if not namespace.path:
                if flag == k.CLONE_NEWCGROUP:
                    plan.unshare_cgroup = True
                else:
                    plan.clone_flags |= flag
        created = {namespace.type for namespace in linux.namespaces if not namespace.path}
        plan.userns_created = "user" in created
        plan.network_created = "network" in created
        _validate(configuration, linux, kinds, created)

        label = linux.mount_label
        plan.mounts = [mounts.plan(mount, self.bundle, label) for mount in configuration.mounts]
        plan.rootfs = rootfs
        plan.root_fd = -1
        plan.devices = linux.devices
        plan.make_devices = not any(mount.kind == "bind" and mount.destination == "/dev" for mount in plan.mounts)
        plan.hostname = configuration.hostname
        plan.domainname = configuration.domainname
        plan.hooks = configuration.hooks or spec.Hooks()
        plan.listener = None
        plan.masked = linux.masked_paths
        plan.readonly = linux.readonly_paths
        plan.readonly_root = configuration.root is not None and configuration.root.readonly
        plan.no_pivot = self.no_pivot
        if linux.rootfs_propagation and linux.rootfs_propagation not in mounts.PROPAGATION:
            raise InvalidParameter(f"rootfsPropagation={linux.rootfs_propagation} is not supported")
        plan.propagation = linux.rootfs_propagation
        plan.sysctl = dict(linux.sysctl)
        plan.time_offsets = linux.time_offsets
        plan.setgroups = True
        plan.seccomp = k.SeccompProgram(seccomp) if seccomp is not None else None
        plan.state = self._state("creating")
        _check_user(linux, configuration.process, IN_INIT.removeprefix(BEGINNING))
        plan.process = process.plan(
            configuration.process,
            id=self.id,
            personality=linux.personality,
            preserve_fds=preserve_fds,
            seccomp_flags=seccomp_flags,
            new_keyring=new_keyring,
        )
        return plan

    def _make_cgroup(self, *, inside: bool = False) -> Cgroup:
        linux = self.configuration.linux or spec.Linux()
        resources = linux.resources or spec.LinuxResources()
        cgroup = self.cgroup = cgroups.open(linux.cgroups_path or self.id)
        cgroup.create(inside=inside)
        rules = resources.devices or [spec.LinuxDeviceCgroup(allow=False, access="rwm")]
        try:
            cgroup.apply(msgspec.structs.replace(resources, devices=[*rules, *DEVICE_RULES]))
        except BaseException:
            if not inside:
                cgroup.remove()
            raise
        return cgroup

    def _open_joined(self, plan: InitPlan) -> None:
        """Open the namespaces that are joined, into the plan."""
        for namespace in (self.configuration.linux or spec.Linux()).namespaces:
            if namespace.path:
                fd = os.open(namespace.path, os.O_RDONLY | os.O_CLOEXEC)
                if namespace.type == "user":
                    plan.userns_joined = fd
                    continue
                plan.joins.append((fd, NAMESPACES[namespace.type]))
                if namespace.type == "mount" and os.path.samestat(os.fstat(fd), os.stat("/proc/self/ns/mnt")):
                    # The container's root would take the place of everybody's.
                    raise InvalidParameter("the runtime's own mount namespace cannot be a container's")

    def _open_tasks(self) -> list[int]:
        """Where a process writes 0 to move itself into the cgroup's v1 directories."""
        assert self.cgroup is not None
        return [
            os.open(f"{directory}/tasks", os.O_WRONLY | os.O_CLOEXEC)
            for directory in self.cgroup.directories
            if directory != self.cgroup.unified
        ]

    def _create(
        self,
        plan: InitPlan,
        undo: contextlib.ExitStack,
        on_sandbox: Callable[[Container], None] | None,
        detached: bool,
    ) -> None:
        linux = self.configuration.linux or spec.Linux()
        assert self.cgroup is not None
        borrowed = undo.enter_context(contextlib.ExitStack())  # what only the child needs
        borrowed.callback(_close_joined, plan)
        self._open_joined(plan)
        self._prepare_mounts(plan, linux, borrowed)
        plan.cgroup_files = self._open_tasks()
        borrowed.callback(_close_all, plan.cgroup_files)
        unified = self.cgroup.directory_fd()
        if unified is not None:
            borrowed.callback(os.close, unified)
        if detached:
            plan.listener = borrowed.enter_context(_listen(self.folder))
            undo.callback(_unlink, f"{self.folder}/{state.SOCKET}")
        if os.geteuid() == 0:
            # Inherited by the child, which must not be looked into by what shares its pid namespace.
            k.prctl(k.PR_SET_DUMPABLE, 0)

        ours, theirs = Channel.pair()
        undo.callback(ours.close)
        intermediate = plan.userns_joined >= 0 or bool(plan.time_offsets) or _joins(plan, k.CLONE_NEWPID)
        flags = plan.clone_flags
        if intermediate:
            flags &= k.CLONE_NEWUSER
        elif plan.userns_created:
            flags &= k.CLONE_NEWUSER | k.CLONE_NEWPID  # the rest as its root, who is to own what is in them
            plan.unshared = plan.clone_flags & ~flags
        pid, pidfd = k.clone3(flags, cgroup=-1 if unified is None else unified)
        if pid == 0:
            if intermediate:
                run_intermediate(plan, theirs)
            run_init(plan, theirs)
        theirs.close()
        if plan.userns_created:
            try:
                process.set_oom_score_adj(plan.process.oom_score_adj, pid)
                own_pipes(linux, self.configuration.process, plan.stdio)
                _write_mappings(pid, linux)
            except BaseException:
                _kill(pidfd)
                raise
            ours.send(words_of.MAPPED)
        elif plan.userns_joined >= 0:
            own_pipes(linux, self.configuration.process, plan.stdio)
        borrowed.close()
        if intermediate:
            pid, pidfd = self._adopt(ours, pidfd)
        self.pid, self.pidfd = pid, pidfd
        undo.callback(self._forget)
        undo.callback(_kill, pidfd)
        self.start_time = state.process_status(pid)[1]
        self._channel = ours
        self._converse(ours, plan, on_sandbox)
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended already: start will say so
            self._mntns = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        if plan.userns:
            process.raise_limits(plan.process, pid)
        if detached:
            ours.close()
            self._channel = None

    def _prepare_mounts(self, plan: InitPlan, linux: spec.Linux, borrowed: contextlib.ExitStack) -> None:
        """Make the mounts that need the host's privileges: all sources under a user namespace, whose root may not
        reach them, and ID-mapped ones always."""
        userns = plan.userns_created or plan.userns_joined >= 0
        if userns:
            plan.root_fd = mount_root(plan.rootfs)
            borrowed.callback(os.close, plan.root_fd)
        spaces: dict[tuple[tuple[Range, ...], ...], int] = {}
        for mount in plan.mounts:
            mapping = self._mapping(mount, plan, linux, spaces, borrowed) if mount.idmap else -1
            if mount.kind == "bind" and (userns or mount.idmap):
                mount.fd = prepared_bind(mount)
                borrowed.callback(os.close, mount.fd)
                if not mount.propagation:
                    k.mount_setattr(mount.fd, propagation=k.MS_SLAVE, recursive=True)
                if mount.idmap:
                    with step(f"{mount.where()}: failed to set MOUNT_ATTR_IDMAP"):
                        tree = mount.idmap == "tree"
                        k.mount_setattr(mount.fd, set=k.MOUNT_ATTR_IDMAP, userns=mapping, recursive=tree)
            elif mount.idmap:
                with step(mount.where()):
                    mount.fd = mounts.mount_layers(mount, mapping)
                borrowed.callback(os.close, mount.fd)

    @staticmethod
    def _mapping(
        mount: mounts.MountPlan,
        plan: InitPlan,
        linux: spec.Linux,
        spaces: dict[tuple[tuple[Range, ...], ...], int],
        borrowed: contextlib.ExitStack,
    ) -> int:
        """The user namespace whose mappings an ID-mapped mount has: one of ``spaces``, or made for it."""
        if not mount.uid_mappings and plan.userns_joined >= 0:
            return plan.userns_joined
        wanted = ranges(mount.uid_mappings or linux.uid_mappings), ranges(mount.gid_mappings or linux.gid_mappings)
        if not all(wanted):
            raise InvalidParameter(f"invalid mount {mount.destination}: idmap without mappings")
        if wanted not in spaces:
            with step(f"{mount.where()}: failed to set MOUNT_ATTR_IDMAP"):
                spaces[wanted] = namespace_with(*wanted)
            borrowed.callback(os.close, spaces[wanted])
        return spaces[wanted]

    def _adopt(self, channel: Channel, intermediate: int) -> tuple[int, int]:
        """Learn init's pid from the process that made it, and reap that."""
        early = []
        while True:
            word = kind, payload, fds = channel.receive()
            if kind in (words_of.CHILD, words_of.FAILED, b""):
                break
            early.append(word)  # init's own, which was quicker than its maker
        channel.put_back(early)
        if kind != words_of.CHILD:
            _kill(intermediate)
            if kind == words_of.FAILED:
                raise raised(payload, IN_INIT)
            raise RuntimeFailed(BEGINNING + "can't get final child's PID from pipe: EOF")
        reap(intermediate, block=True)
        os.close(intermediate)
        return int(payload), fds[0]

    def _converse(self, channel: Channel, plan: InitPlan, on_sandbox: Callable[[Container], None] | None) -> None:
        """Hear init out until it is ready."""
        linux = self.configuration.linux or spec.Linux()
        if linux.net_devices and not plan.network_created:
            path = next(namespace.path for namespace in linux.namespaces if namespace.type == "network")
            with open(path, "rb", buffering=0) as joined:
                interfaces.move(linux.net_devices, joined.fileno())
        if on_sandbox is not None and not plan.network_created:
            on_sandbox(self)
        while True:
            kind, payload, fds = channel.receive()
            if kind == words_of.NETWORK:
                self.netns, self.rtnl = fds
                if linux.net_devices:
                    interfaces.move(linux.net_devices, self.netns)
                if on_sandbox is not None:
                    on_sandbox(self)
            elif kind == words_of.CONSOLE:
                self.console = fds[0]
            elif kind == words_of.HOOKS:
                hooked = self._state("creating")
                run_hooks(plan.hooks.prestart, hooked, "prestart")
                run_hooks(plan.hooks.create_runtime, hooked, "createRuntime")
                channel.send(words_of.HOOKED)
            elif kind == words_of.CREATED:
                return
            elif kind == words_of.FAILED:
                raise raised(payload, IN_INIT)
            else:
                raise RuntimeFailed(IN_INIT + "read init-p: connection reset by peer")

    def save(self) -> None:
        state.save(
            self.folder,
            state.Saved(
                oci_version=spec.VERSION,
                id=self.id,
                pid=self.pid,
                start_time=self.start_time,
                bundle=self.bundle,
                rootfs=self.rootfs,
                created=self.created,
                cgroup=self.cgroup.path if self.cgroup is not None else "",
                namespaces=self._namespaces,
                spec=msgspec.Raw(spec.encode(self.configuration)),
                annotations=self.configuration.annotations,
                personality=self._domain(),
                no_pivot=self.no_pivot,
            ),
        )

    @classmethod
    def load(cls, id: str, *, root: str) -> Container:
        """A container that another process made. Raises NotFound."""
        check_id(id)
        folder = f"{root}/{id}"
        saved = state.read(folder, id)
        self = cls(id, folder, saved.bundle, saved.spec)
        self.pid, self.start_time = saved.pid, saved.start_time
        self.created, self.rootfs, self.no_pivot = saved.created, saved.rootfs, saved.no_pivot
        self._namespaces, self._personality = saved.namespaces, saved.personality
        self.cgroup = cgroups.open(saved.cgroup) if saved.cgroup else None
        if state.alive(saved.pid, saved.start_time):
            with contextlib.suppress(ProcessLookupError):
                self.pidfd = k.pidfd_open(saved.pid)
        return self

    # --- start ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Let init execute its program; returns when it has. Raises RuntimeFailed."""
        channel = self._channel
        socket_path = f"{self.folder}/{state.SOCKET}"
        try:
            if channel is None:
                channel = _connect(self.folder)
            channel.send(words_of.START)
        except (FileNotFoundError, ConnectionRefusedError, BrokenPipeError) as error:
            status = self.status()
            if status == "stopped":
                raise RuntimeFailed("cannot start a container that has stopped") from error
            raise RuntimeFailed("cannot start an already running container") from error
        self._channel = None
        try:
            kind, payload, fds = channel.receive()
            if kind == words_of.LISTENER:
                self._deliver_listener(fds[0])
                kind, payload, fds = channel.receive()
            if kind == words_of.FAILED:
                raise raised(payload, BEGINNING)
        finally:
            channel.close()
        _unlink(socket_path)
        hooks = self.configuration.hooks
        if hooks is not None and hooks.poststart:
            try:
                run_hooks(hooks.poststart, self._state("running"), "poststart")
            except SetupFailed as error:
                self.kill(signal.SIGKILL, everyone=True)
                raise RuntimeFailed(str(error)) from error

    def _deliver_listener(self, listener: int) -> None:
        """Hand the seccomp listener to its agent, with the state that tells it whose it is."""
        linux = self.configuration.linux
        seccomp = linux.seccomp if linux is not None else None
        try:
            if seccomp is None or not seccomp.listener_path:
                raise RuntimeFailed(BEGINNING + "seccomp listenerPath is not set")
            told = spec.ContainerProcessState(
                spec.VERSION, ["seccompFd"], self.pid, self._state("creating"), seccomp.listener_metadata
            )
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent:
                try:
                    agent.connect(seccomp.listener_path)
                    socket.send_fds(agent, [spec.encode(told)], [listener])
                except OSError as error:
                    raise RuntimeFailed(
                        f"{BEGINNING}failed to connect with seccomp agent specified in the seccomp profile: "
                        f"dial unix {seccomp.listener_path}: {words(error)}"
                    ) from error
        finally:
            os.close(listener)

    # --- exec -------------------------------------------------------------------------------------------------

    def exec(
        self,
        process_: spec.Process,
        stdio: Stdio,
        *,
        seccomp: bytes | None = None,
        seccomp_flags: int = 0,
        preserve_fds: int = 0,
        new_keyring: bool = True,
    ) -> ExecProcess:
        """Run a further process in the container. Raises RuntimeFailed; returns once execve is certain."""
        if self.status() not in ("running", "created", "paused"):
            raise RuntimeFailed("cannot exec in a stopped container")
        try:
            return self._exec(process_, stdio, seccomp, seccomp_flags, preserve_fds, new_keyring)
        except SetupFailed as error:
            raise RuntimeFailed(BEGINNING + str(error), error.exit_code) from error
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise RuntimeFailed(f"{BEGINNING}{where}{words(error)}") from error

    def become_exec(
        self,
        process_: spec.Process,
        channel: Channel,
        stdio: Stdio,
        *,
        seccomp: bytes | None = None,
        seccomp_flags: int = 0,
        spawn: bool = False,
        new_keyring: bool = True,
    ) -> NoReturn:
        """Be the process in between of :meth:`exec`, for a caller that was born in the container's v2 cgroup.

        ``channel`` hears what :class:`Container` would; what is executed becomes a child of the caller's parent. For a
        configuration that is :func:`seacan.runtime.spec.direct`. ``spawn``: see :func:`seacan.runtime.exec.run_exec`.
        Raises RuntimeFailed.
        """
        if self.pidfd < 0:
            raise RuntimeFailed("cannot exec in a stopped container")
        try:
            plan = self._plan_exec(process_, seccomp_flags, 0, new_keyring)
            tasks = self._open_tasks()
            k.prctl(k.PR_SET_DUMPABLE, 0)
            affinity = process_.exec_cpu_affinity
            program = k.SeccompProgram(seccomp) if seccomp is not None else None
        except SetupFailed as error:
            raise RuntimeFailed(BEGINNING + str(error), error.exit_code) from error
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise RuntimeFailed(f"{BEGINNING}{where}{words(error)}") from error
        run_exec(
            plan,
            channel,
            pidfd=self.pidfd,
            namespaces=self._namespaces,
            tasks=tasks,
            stdio=stdio,
            seccomp=program,
            chroot=-1,
            affinity=(affinity.initial, affinity.final) if affinity is not None else ("", ""),
            setgroups=True,
            spawn=spawn,
        )

    def _domain(self) -> spec.LinuxPersonality | None:
        if self._personality is msgspec.UNSET:
            self._personality = self.configuration.linux.personality if self.configuration.linux is not None else None
        return self._personality

    def _plan_exec(
        self, process_: spec.Process, seccomp_flags: int, preserve_fds: int, new_keyring: bool
    ) -> process.ProcessPlan:
        if self._namespaces & k.CLONE_NEWUSER:
            _check_user(self.configuration.linux or spec.Linux(), process_)
        return process.plan(
            process_,
            id=self.id,
            personality=self._domain(),
            preserve_fds=preserve_fds,
            seccomp_flags=seccomp_flags,
            new_keyring=new_keyring,
        )

    def _exec(
        self,
        process_: spec.Process,
        stdio: Stdio,
        seccomp: bytes | None,
        seccomp_flags: int,
        preserve_fds: int,
        new_keyring: bool,
    ) -> ExecProcess:
        plan = self._plan_exec(process_, seccomp_flags, preserve_fds, new_keyring)
        program = k.SeccompProgram(seccomp) if seccomp is not None else None
        userns = bool(self._namespaces & k.CLONE_NEWUSER)
        if userns:
            own_pipes(self.configuration.linux, process_, stdio)
        with contextlib.ExitStack() as borrowed:
            tasks: list[int] = []
            unified: int | None = None
            if self.cgroup is not None:
                tasks = self._open_tasks()
                borrowed.callback(_close_all, tasks)
                unified = self.cgroup.directory_fd()
                if unified is not None:
                    borrowed.callback(os.close, unified)
            chroot = -1
            if self.no_pivot:
                chroot = os.open(f"/proc/{self.pid}/root", os.O_PATH | os.O_CLOEXEC)
                borrowed.callback(os.close, chroot)
            if os.geteuid() == 0:
                k.prctl(k.PR_SET_DUMPABLE, 0)
            ours, theirs = Channel.pair()
            borrowed.callback(ours.close)
            affinity = process_.exec_cpu_affinity
            try:
                pid, intermediate = k.clone3(0, cgroup=-1 if unified is None else unified)
            except OSError as error:
                # A v2 cgroup with controllers enabled for its children takes no process: go where init is.
                if unified is None or error.errno not in (errno.EBUSY, errno.EOPNOTSUPP):
                    raise
                pid, intermediate = k.clone3(0)
                if pid != 0:
                    assert self.cgroup is not None
                    self.cgroup.join(pid, beside=self.pid)
            if pid == 0:
                run_exec(
                    plan,
                    theirs,
                    pidfd=self.pidfd,
                    namespaces=self._namespaces,
                    tasks=tasks,
                    stdio=stdio,
                    seccomp=program,
                    chroot=chroot,
                    affinity=(affinity.initial, affinity.final) if affinity is not None else ("", ""),
                    setgroups=True,
                )
            theirs.close()
            return self._hear_exec(ours, intermediate, plan, userns)

    def _hear_exec(self, channel: Channel, intermediate: int, plan: process.ProcessPlan, userns: bool) -> ExecProcess:
        pid, pidfd, console = 0, -1, None
        try:
            while True:
                kind, payload, fds = channel.receive()
                if kind == words_of.CONSOLE:
                    console = fds[0]
                elif kind == words_of.CHILD:
                    pid, pidfd = int(payload), fds[0]
                    if userns:
                        process.raise_limits(plan, pid)
                    channel.send(words_of.START)
                elif kind == words_of.LISTENER:
                    self._deliver_listener(fds[0])
                elif kind == words_of.FAILED:
                    raise raised(payload, BEGINNING)
                else:
                    break
            if pidfd < 0:
                raise RuntimeFailed(BEGINNING + "error executing setns process: exit status 1")
        except BaseException:
            if pidfd >= 0:
                _kill(pidfd)
            if console is not None:
                os.close(console)
            raise
        finally:
            _kill(intermediate)
        return ExecProcess(pid, pidfd, console)

    # --- the rest of its life ---------------------------------------------------------------------------------

    def status(self) -> str:
        """creating, created, running, paused or stopped."""
        if self.pid == 0:
            return "creating"
        if not state.alive(self.pid, self.start_time):
            return "stopped"
        if self.cgroup is not None and self.cgroup.frozen:
            return "paused"
        if self._channel is not None or os.path.exists(f"{self.folder}/{state.SOCKET}"):
            return "created"
        return "running"

    def _state(self, status: str) -> spec.State:
        return spec.State(
            spec.VERSION,
            self.id,
            status,
            self.pid if status != "stopped" else 0,
            self.bundle,
            self.configuration.annotations,
        )

    def state(self) -> spec.State:
        """The OCI state as it is now."""
        return self._state(self.status())

    def kill(self, signal_: int, *, everyone: bool = False) -> None:
        """Signal init, or every process of the container. Raises NotFound when it no longer runs."""
        if everyone:
            if self.cgroup is None:
                raise Unsupported("cannot signal every process of a container without a cgroup")
            if signal_ == signal.SIGKILL:
                self.cgroup.kill()
                return
            for pid in self.cgroup.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal_)
            return
        if self.pidfd < 0:
            raise NotFound("container not running")
        try:
            k.pidfd_send_signal(self.pidfd, signal_)
        except ProcessLookupError:
            raise NotFound("container not running") from None
        if signal_ == signal.SIGKILL and self.cgroup is not None and self.cgroup.frozen:
            self.cgroup.thaw()  # on v1 a frozen process does not even die

    def pause(self) -> None:
        """Freeze every process. Raises Conflict unless it runs."""
        status = self.status()
        if status not in ("running", "created") or self.cgroup is None:
            raise Conflict(f"container not running: {status}")
        self.cgroup.freeze()

    def resume(self) -> None:
        if self.status() != "paused" or self.cgroup is None:
            raise Conflict("container not paused")
        self.cgroup.thaw()

    def update(self, resources: spec.LinuxResources) -> None:
        """Change limits of the living container."""
        if self.cgroup is None:
            raise Unsupported("cannot update a container without a cgroup")
        self.cgroup.apply(resources)

    def has_namespace(self, kind: int) -> bool:
        """Whether its namespace of that kind (CLONE_NEW*) is not the runtime's."""
        return bool(self._namespaces & kind)

    def processes(self) -> list[int]:
        """The pids, as seen here, of everything in the container."""
        return self.cgroup.processes() if self.cgroup is not None else []

    def release(self) -> None:
        """Close every descriptor of the container. What the kernel then tears down can take grace periods."""
        for fd in (self.pidfd, self._mntns, self.netns, self.rtnl, self.console):
            if fd is not None and fd >= 0:
                os.close(fd)
        self.pidfd = self._mntns = -1
        self.netns = self.rtnl = self.console = None
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def delete(self, *, force: bool = False) -> None:
        """Remove what is left of a stopped container (with ``force`` of any): cgroup, state; run poststop hooks.

        Raises Conflict when it still runs.
        """
        status = self.status()
        if status == "created":
            force = True  # runc, too, kills an init that was never started
        if status != "stopped" and not force:
            raise Conflict(f"cannot delete container {self.id} that is not stopped: {status}")
        if self.cgroup is not None:
            if status != "stopped" or not self._namespaces & k.CLONE_NEWPID:
                self.cgroup.kill()
            if status != "stopped" and self.pidfd >= 0:
                _await_end(self.pidfd)
            self.cgroup.remove()
        hooks = self.configuration.hooks
        failed: SetupFailed | None = None
        if hooks is not None and hooks.poststop:
            try:
                run_hooks(hooks.poststop, self._state("stopped"), "poststop")
            except SetupFailed as error:
                failed = error
        for name in (state.SOCKET, state.FILE):
            _unlink(f"{self.folder}/{name}")
        _remove_folder(self.folder)
        self.release()
        if failed is not None:
            raise RuntimeFailed(str(failed), failed.exit_code) from failed

    def _forget(self) -> None:
        if self._channel is not None:
            self._channel = None  # closed by the undo of its own
        self.pidfd = -1  # closed with the kill
        self.release()


def _validate(configuration: spec.Spec, linux: spec.Linux, kinds: set[str], created: set[str]) -> None:
    """What cannot be, in the words of runc's validator."""
    if "mount" not in kinds:
        raise Unsupported("a container needs a mount namespace of its own")
    if configuration.hostname and "uts" not in kinds:
        raise InvalidParameter("unable to set hostname without a private UTS namespace")
    if configuration.domainname and "uts" not in kinds:
        raise InvalidParameter("unable to set domainname without a private UTS namespace")
    if (linux.masked_paths or linux.readonly_paths) and "mount" not in kinds:
        raise InvalidParameter("unable to restrict sys entries without a private MNT namespace")
    if "user" in created and not (linux.uid_mappings and linux.gid_mappings):
        raise InvalidParameter("user namespaces enabled, but no uid or gid mappings found")
    if "user" not in kinds and (linux.uid_mappings or linux.gid_mappings):
        raise InvalidParameter("user namespace mappings specified, but user namespace isn't enabled in the config")
    if linux.time_offsets and "time" not in kinds:
        raise InvalidParameter("time namespace offsets specified, but time namespace isn't enabled in the config")
    if linux.intel_rdt is not None and not os.path.isdir("/sys/fs/resctrl/info"):
        raise Unsupported("intelRdt is specified in config, but Intel RDT is not enabled")
    if linux.intel_rdt is not None:
        raise Unsupported("intelRdt is not supported")
    if linux.net_devices and "network" not in kinds:
        raise InvalidParameter("unable to move network devices without a NET namespace")
    for name, device in linux.net_devices.items():
        for word in (name, device.name or name):
            if not word or len(word) > 15 or word in (".", "..") or re.search(r"[/:\s]", word):
                raise InvalidParameter(f'invalid network device name "{word}"')
    for key in linux.sysctl:
        _validate_sysctl(key, kinds, configuration)


def _check_user(linux: spec.Linux, process_: spec.Process, where: str = "") -> None:
    """Refuse a user or group that the user namespace has no number for, in runc's words."""
    for name, mappings, number in (
        ("uid", linux.uid_mappings, process_.user.uid),
        ("gid", linux.gid_mappings, process_.user.gid),
    ):
        if mappings and outside(ranges(mappings), number) is None:
            raise SetupFailed(f"{where}unable to setup user: cannot set {name} to unmapped user in user namespace")


_IPC_SYSCTLS: Final = frozenset(
    "kernel." + name for name in ("msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced")
)


def _validate_sysctl(key: str, kinds: set[str], configuration: spec.Spec) -> None:
    """Only what belongs to a namespace may be set: the rest is the host's."""
    name = key.replace("/", ".") if "/" in key else key
    if name in _IPC_SYSCTLS or name.startswith("fs.mqueue."):
        if "ipc" not in kinds:
            raise InvalidParameter(f'sysctl "{key}" is not allowed in the hosts ipc namespace')
    elif name.startswith("net."):
        if "network" not in kinds:
            raise InvalidParameter(f'sysctl "{key}" not allowed in host network namespace')
    elif name == "kernel.domainname":
        if "uts" not in kinds:
            raise InvalidParameter(f'sysctl "{key}" is not allowed in the hosts UTS namespace')
    elif name == "kernel.hostname":
        raise InvalidParameter(f'sysctl "{key}" is not allowed as it conflicts with the OCI "hostname" field')
    else:
        raise InvalidParameter(f'sysctl "{key}" is not in a separate kernel namespace')
    if ".." in name:
        raise InvalidParameter(f'sysctl "{key}" is not a name')


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def _close_joined(plan: InitPlan) -> None:
    _close_all([fd for fd in (plan.userns_joined, *(fd for fd, _ in plan.joins)) if fd >= 0])


def _joins(plan: InitPlan, kind: int) -> bool:
    return any(joined == kind for _, joined in plan.joins)


def _write_mappings(pid: int, linux: spec.Linux) -> None:
    for name, mappings in (("uid_map", linux.uid_mappings), ("gid_map", linux.gid_mappings)):
        try:
            write_map(pid, name, ranges(mappings))
        except OSError as error:
            raise SetupFailed(f"failed to update /proc/{pid}/{name}: {words(error)}") from error


def own_pipes(linux: spec.Linux | None, process_: spec.Process | None, stdio: Sequence[int]) -> None:
    """Give pipes among the standard descriptors to the container's user, who may want to open /dev/stdout anew.

    Under a user namespace nobody can from inside: whose they are has no number there. What is not a pipe may be
    somebody else's, such as the caller's terminal.
    """
    if linux is None or process_ is None or not linux.uid_mappings:
        return
    uid = outside(ranges(linux.uid_mappings), process_.user.uid)
    if uid is not None:
        process.own_stdio(uid, [fd for fd in stdio if fd >= 0 and stat.S_ISFIFO(os.fstat(fd).st_mode)])


def ranges(mappings: Sequence[spec.IDMapping]) -> tuple[Range, ...]:
    """The mappings of a configuration as :mod:`seacan.linux.userns` has them."""
    return tuple(Range(mapping.container_id, mapping.host_id, mapping.size) for mapping in mappings)


def _listen(folder: str) -> socket.socket:
    """The socket that init waits at. Named through a descriptor, as the path may be longer than sun_path."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    directory = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        listener.bind(f"/proc/self/fd/{directory}/{state.SOCKET}")
        listener.listen(4)
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(directory)
    return listener


def _connect(folder: str) -> Channel:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    directory = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        connection.connect(f"/proc/self/fd/{directory}/{state.SOCKET}")
    except BaseException:
        connection.close()
        raise
    finally:
        os.close(directory)
    return Channel(connection)


def _kill(pidfd: int) -> None:
    """Kill a child, reap it, close its pidfd; whatever it is doing, or has done."""
    with contextlib.suppress(ProcessLookupError):
        k.pidfd_send_signal(pidfd, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        reap(pidfd, block=True)
    os.close(pidfd)


def _await_end(pidfd: int) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.poll(10_000)
    with contextlib.suppress(ChildProcessError):
        reap(pidfd)


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _remove_folder(folder: str) -> None:
    """If it is empty: a bundle that doubles as the state folder belongs to somebody else."""
    try:
        os.rmdir(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.ENOENT, errno.EEXIST):
            raise
