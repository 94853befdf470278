"""One container's cgroup: a directory in every v1 hierarchy and in the unified one, handled as one thing.

Each controller is used where the host has it (v1, or v2), so legacy, hybrid and unified hosts need no code of their
own. Freezing and killing go through the unified hierarchy wherever there is one.

Cost (measured, Linux 6.18, eight v1 hierarchies): making all directories 0.5 ms, each write to cgroup.procs 20-90 µs,
but the *first* write in a while 11 ms: the kernel waits for an RCU grace period (cgroup_threadgroup_rwsem). The runtime
avoids it: a single thread moves itself by writing 0 to ``tasks``, and on v2 is born there by CLONE_INTO_CGROUP
(:meth:`Cgroup.directory_fd`); see docs/decisions/0005. :meth:`Cgroup.join` is for those who cannot.
"""

from __future__ import annotations

import ctypes
import errno
import os
import posixpath
import signal
import time
from typing import TYPE_CHECKING

from seacan.cgroups import files, v1, v2
from seacan.cgroups.files import reason
from seacan.cgroups.hierarchies import Hierarchies, discover, own_cgroups
from seacan.cgroups.statistics import Statistics
from seacan.cgroups.v1 import cpuset as v1_cpuset
from seacan.cgroups.v1 import freezer as v1_freezer
from seacan.cgroups.v1 import memory as v1_memory
from seacan.cgroups.v2 import devices as v2_devices
from seacan.cgroups.v2 import freezer as v2_freezer
from seacan.cgroups.v2 import memory as v2_memory
from seacan.cgroups.v2 import unified as v2_unified
from seacan.errors import InvalidParameter, System, Unsupported

if TYPE_CHECKING:
    from seacan.runtime.spec import LinuxResources

_DELEGATED = ("cpuset", "cpu", "io", "memory", "hugetlb", "pids", "rdma", "misc")
"""v2 controllers that are passed down to containers."""

_REMOVE_PATIENCE = 5.0


def open(path: str, hierarchies: Hierarchies | None = None) -> Cgroup:
    """The cgroup of an OCI ``cgroupsPath``, whether it exists or not.

    An absolute path counts from the top of each hierarchy; a relative one from this process's own cgroup (on v2 from
    its parent, as a v2 cgroup holds processes or children, not both), as runc has it.
    """
    host = discover() if hierarchies is None else hierarchies
    absolute = path.startswith("/")
    inner = posixpath.normpath("/" + path.lstrip("/"))  # swallows every leading ".."
    if inner == "/":
        raise InvalidParameter(f"invalid cgroups path {path!r}: a container needs a cgroup of its own")
    own = {} if absolute else own_cgroups()
    places: list[tuple[frozenset[str], str, str]] = []
    for hierarchy in host.v1:
        base = ""
        if not absolute:
            base = _below(
                own.get(f"name={hierarchy.name}" if hierarchy.name else min(hierarchy.controllers), "/"), hierarchy.root
            )
        places.append((hierarchy.controllers, hierarchy.directory + base + inner, hierarchy.directory))
    directory = None
    if host.unified is not None:
        base = "" if absolute else posixpath.dirname(_below(own.get("", "/"), host.unified_root)).rstrip("/")
        directory = host.unified + base + inner
    return Cgroup(inner, host, tuple(places), directory)


def of(pid: int, hierarchies: Hierarchies | None = None) -> Cgroup:
    """The cgroup that a live process is in (a container made by another runtime, say). Raises ProcessLookupError."""
    host = discover() if hierarchies is None else hierarchies
    try:
        own = own_cgroups(pid)
    except FileNotFoundError:
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH), f"/proc/{pid}/cgroup") from None
    places = []
    for hierarchy in host.v1:
        path = _below(
            own.get(f"name={hierarchy.name}" if hierarchy.name else min(hierarchy.controllers), "/"), hierarchy.root
        )
        places.append((hierarchy.controllers, hierarchy.directory + path, hierarchy.directory))
    directory = host.unified + _below(own.get("", "/"), host.unified_root) if host.unified is not None else None
    return Cgroup(own.get("", "/"), host, tuple(places), directory)


def _below(path: str, root: str) -> str:
    """``path`` as seen from a mount that shows ``root`` as its top; "" for the top itself."""
    if root != "/" and (path == root or path.startswith(root + "/")):
        path = path[len(root) :]
    return "" if path == "/" else path


class Cgroup:
    """See the module. ``path`` is the same in every hierarchy; nothing exists until :meth:`create`."""

    def __init__(
        self,
        path: str,
        hierarchies: Hierarchies,
        places: tuple[tuple[frozenset[str], str, str], ...],
        unified: str | None,
    ) -> None:
        self.path = path
        self.hierarchies = hierarchies
        self.unified = unified
        """Directory on the unified hierarchy, or None where the host has none."""
        self._places = places
        self._v1 = {controller: directory for controllers, directory, _ in places for controller in controllers}
        self._v2 = frozenset(hierarchies.controllers) if unified is not None else frozenset()

    def __repr__(self) -> str:
        return f"Cgroup({self.path!r})"

    @property
    def directories(self) -> list[str]:
        """Every directory that makes up this cgroup, the unified one last."""
        found = [directory for _, directory, _ in self._places]
        if self.unified is not None:
            found.append(self.unified)
        return found

    def directory(self, controller: str) -> str | None:
        """Where ``controller`` (in v1's name or v2's) works for this cgroup, or None where the host lacks it."""
        found = self._v1.get(controller)
        if found is None and controller in self._v2:
            found = self.unified
        return found

    @property
    def exists(self) -> bool:
        return any(os.path.isdir(directory) for directory in self.directories)

    # --- life -------------------------------------------------------------------------------------------------

    def create_unified(self) -> None:
        """Make the directory on the unified hierarchy alone, for the process that will :meth:`create` the rest to be
        born there."""
        if self.unified is not None:
            assert self.hierarchies.unified is not None
            _make(self.unified, self.hierarchies.unified, False)

    def create(self, *, inside: bool = False) -> None:
        """Make the cgroup, its missing parents too, empty and without limits.

        What an earlier crash left of it is replaced, unless processes live there: then System says so. A failure
        removes again what was made. ``inside``: :meth:`create_unified` was called, and the caller lives there.
        """
        made: list[str] = []
        try:
            for controllers, directory, top in self._places:
                _make(directory, top, "cpuset" in controllers)
                made.append(directory)
                if "cpuset" in controllers:
                    v1_cpuset.inherit(directory, top)
            if self.unified is not None:
                if not inside:
                    self.create_unified()
                    made.append(self.unified)
                if not any(hierarchy.controllers for hierarchy in self.hierarchies.v1):
                    self._delegate(frozenset(_DELEGATED) & self._v2)
        except BaseException:
            for directory in reversed(made):
                _remove_tree(directory)
            raise

    def _delegate(self, wanted: frozenset[str]) -> None:
        """Let this cgroup use v2 controllers, by enabling them in each of its ancestors.

        One that cannot be enabled (an ancestor holds processes) is reported when it is used.
        """
        assert self.unified is not None and self.hierarchies.unified is not None
        if wanted <= set((files.read_if_present(self.unified, "cgroup.controllers") or "").split()):
            return
        directory = self.hierarchies.unified
        for part in self.unified[len(directory) + 1 :].split("/"):
            have = set((files.read_if_present(directory, "cgroup.subtree_control") or "").split())
            available = set((files.read_if_present(directory, "cgroup.controllers") or "").split())
            for controller in sorted((wanted & available) - have):
                try:
                    files.write(directory, "cgroup.subtree_control", f"+{controller}")
                except files.Refused as refused:
                    if refused.errno not in (errno.EBUSY, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOENT):
                        raise
            directory = f"{directory}/{part}"

    def join(self, pid: int, beside: int | None = None) -> None:
        """Move a process (all its threads) into the cgroup.

        On v2 a cgroup whose children have controllers takes no process (a container that runs an engine or systemd
        of its own): then it goes where ``beside``, the container's init, is. See the module's head about the cost.
        """
        text = str(pid)
        for _, directory, _ in self._places:
            files.write(directory, "cgroup.procs", text)
        if self.unified is None:
            return
        try:
            files.write(self.unified, "cgroup.procs", text)
        except files.Refused as refused:
            if refused.errno not in (errno.EBUSY, errno.EOPNOTSUPP) or beside is None:
                raise
            other = of(beside, self.hierarchies).unified
            assert other is not None
            if not (other + "/").startswith(self.unified + "/"):
                raise
            files.write(other, "cgroup.procs", text)

    def remove(self) -> None:
        """Remove the cgroup and every cgroup below it. Not existing is fine.

        A process that has ended can hold its cgroup for a moment longer (EBUSY), hence some patience; System if
        live processes remain.
        """
        if self.path == "/":
            raise InvalidParameter("cannot remove the root cgroup")
        deadline = 0.0
        delay = 0.0002
        while remaining := [directory for directory in self.directories if not _remove_tree(directory)]:
            now = time.monotonic()
            deadline = deadline or now + _REMOVE_PATIENCE
            if now >= deadline:
                raise System(
                    f"unable to remove cgroup {remaining[0]}: device or resource busy "
                    f"({len(self.processes())} process(es) left)"
                )
            time.sleep(delay)
            delay = min(delay * 2, 0.05)

    # --- limits -----------------------------------------------------------------------------------------------

    def apply(self, resources: LinuxResources) -> None:
        """Set the limits that ``resources`` names, and no others. Before the first :meth:`join`, or on a live
        container.

        Raises :class:`seacan.cgroups.Refused` or System in runc's words, Unsupported when the host lacks a controller.
        """
        self._require(resources)
        for controller, apply in v1.APPLY.items():
            directory = self._v1.get(controller)
            if directory is not None:
                apply(directory, resources)
        if self.unified is None:
            return
        for controller, apply in v2.APPLY.items():
            if controller in self._v2:
                apply(self.unified, resources)
        if resources.devices and "devices" not in self._v1:
            v2_devices.apply(self.unified, resources)
        if resources.unified:
            v2_unified.apply(self.unified, resources)

    def _require(self, resources: LinuxResources) -> None:
        """Refuse a limit whose controller the host lacks: never a silent no-op."""
        cpu, memory, block = resources.cpu, resources.memory, resources.block_io
        wanted: list[tuple[str, str, bool]] = [
            ("memory", "memory", memory is not None and bool(memory.limit or memory.swap or memory.reservation)),
            ("cpu", "cpu", cpu is not None and bool(cpu.shares or cpu.quota or cpu.period or cpu.idle)),
            ("cpuset", "cpuset", cpu is not None and bool(cpu.cpus or cpu.mems)),
            ("pids", "pids", resources.pids is not None and resources.pids.limit > 0),
            ("blkio", "io", block is not None and _any(block)),
            ("hugetlb", "hugetlb", bool(resources.hugepage_limits)),
            ("rdma", "rdma", bool(resources.rdma)),
            ("net_cls", "", resources.network is not None and bool(resources.network.class_id)),
            ("net_prio", "", resources.network is not None and bool(resources.network.priorities)),
        ]
        for old, new, asked in wanted:
            if not asked or old in self._v1:
                continue
            if new not in self._v2:
                raise Unsupported(f"cannot set {old} limit: {old} cgroup controller is not available on this host")
            # On a hybrid host nothing is delegated until it is asked for: the hierarchy is not ours alone.
            self._delegate(frozenset((new,)))
        if resources.unified and (self.unified is None or not self._v2):
            raise InvalidParameter("invalid configuration: cannot use unified on cgroup v1")

    # --- freezing, killing ------------------------------------------------------------------------------------

    def _freezer(self) -> str:
        """The directory to freeze in; the unified hierarchy's wherever its freezer exists and has our processes."""
        if self.unified is not None and os.path.exists(f"{self.unified}/cgroup.freeze"):
            return self.unified
        directory = self._v1.get("freezer")
        if directory is None:
            raise Unsupported(f"cannot freeze cgroup {self.path}: this host has no freezer")
        return directory

    def freeze(self) -> None:
        """Stop every process; returns when they have stopped. Raises System (and thaws) if they will not."""
        directory = self._freezer()
        if directory == self.unified:
            v2_freezer.freeze(directory)
        else:
            v1_freezer.freeze(directory)

    def thaw(self) -> None:
        directory = self._freezer()
        if directory == self.unified:
            v2_freezer.thaw(directory)
        else:
            v1_freezer.thaw(directory)

    @property
    def frozen(self) -> bool:
        try:
            directory = self._freezer()
        except Unsupported:
            return False
        state = v2_freezer.state(directory) if directory == self.unified else v1_freezer.state(directory)
        return state == "FROZEN"

    def kill(self) -> None:
        """SIGKILL every process, here and below, even one that forks as fast as it can. Does not wait for them to
        end."""
        if self.path == "/":
            raise InvalidParameter("cannot kill the root cgroup")
        if self.unified is not None and os.path.exists(f"{self.unified}/cgroup.kill"):  # since Linux 5.14
            files.write(self.unified, "cgroup.kill", "1")
            return
        froze = False
        try:
            self.freeze()
            froze = True
        except (System, Unsupported, files.Refused):
            pass  # a loop over the processes does it, too, given a few rounds
        try:
            for _ in range(100):
                pids = self.processes()
                for pid in pids:
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        pass
                if froze or not pids:
                    return
                time.sleep(0.002)
        finally:
            if froze:
                self.thaw()

    def processes(self) -> list[int]:
        """Every process here and in the cgroups below, by pid (in our own pid namespace), ascending."""
        directory = self._listing()
        found: set[int] = set()
        if directory is None:
            return []
        for top, _, _ in os.walk(directory):
            found.update(files.pids(top))
        found.discard(0)  # a process of a pid namespace that is not ours
        return sorted(found)

    def _listing(self) -> str | None:
        for controller in ("devices", "freezer", "pids", "memory"):
            if controller in self._v1:
                return self._v1[controller]
        return self.unified or next(iter(self._v1.values()), None)

    # --- figures ----------------------------------------------------------------------------------------------

    def stats(self) -> Statistics:
        """What has been used so far; zeros for what the host does not count, or once the cgroup has gone."""
        found = Statistics(version=self.hierarchies.version)
        for controller, stats in v1.STATS.items():
            directory = self._v1.get(controller)
            if directory is not None and os.path.isdir(directory):
                stats(directory, found)
        if self.unified is not None and os.path.isdir(self.unified):
            for controller, stats in v2.STATS.items():
                # cpu.stat is there with or without the controller
                if controller in self._v2 or (
                    controller == "cpu" and "cpu" not in self._v1 and "cpuacct" not in self._v1
                ):
                    stats(self.unified, found)
        return found

    def oom_kills(self) -> int:
        """How many processes the kernel has killed here for want of memory."""
        if (directory := self._v1.get("memory")) is not None:
            return v1_memory.oom_kills(directory)
        return v2_memory.oom_kills(self.unified) if self.unified is not None else 0

    def watch_oom(self) -> OOMWatch | None:
        """A descriptor that becomes readable when the kernel runs out of memory here; None where nothing counts it."""
        if (directory := self._v1.get("memory")) is not None:
            return OOMWatch(self, _watch_v1(directory))
        if self.unified is not None and "memory" in self._v2:
            return OOMWatch(self, _watch_v2(self.unified))
        return None

    def directory_fd(self) -> int | None:
        """A descriptor of the unified directory for CLONE_INTO_CGROUP (the caller closes it); None without v2."""
        if self.unified is None:
            return None
        return os.open(self.unified, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


class OOMWatch:
    """For an event loop: watch :meth:`fileno` for reading, then ask :meth:`killed`."""

    def __init__(self, cgroup: Cgroup, fd: int) -> None:
        self._cgroup = cgroup
        self._fd = fd
        self._seen = cgroup.oom_kills()

    def fileno(self) -> int:
        return self._fd

    def killed(self) -> int:
        """Take the notification, and return how many processes were killed since the last call.

        0 is usual: the kernel also notifies when it merely ran out, and when the cgroup goes.
        """
        try:
            os.read(self._fd, 4096)
        except BlockingIOError:
            pass
        now = self._cgroup.oom_kills()
        new = max(0, now - self._seen)
        self._seen = max(now, self._seen)
        return new

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _watch_v1(directory: str) -> int:
    event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        control = os.open(f"{directory}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        try:
            files.write(directory, "cgroup.event_control", f"{event} {control}")
        finally:
            os.close(control)
    except BaseException:
        os.close(event)
        raise
    return event


_IN_MODIFY = 0x2


def _watch_v2(directory: str) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    fd = int(libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"inotify_init1: {os.strerror(code)}")
    path = f"{directory}/memory.events"
    if libc.inotify_add_watch(fd, os.fsencode(path), _IN_MODIFY) < 0:
        code = ctypes.get_errno()
        os.close(fd)
        raise OSError(code, f"inotify_add_watch: {os.strerror(code)}", path)
    return fd


def _any(block: object) -> bool:
    return any(getattr(block, field) for field in block.__struct_fields__)  # type: ignore[attr-defined]


def _make(directory: str, top: str, is_cpuset: bool) -> None:
    try:
        os.mkdir(directory, 0o755)
        return
    except FileNotFoundError:
        _make_parents(posixpath.dirname(directory), top, is_cpuset)
    except FileExistsError:
        left = sum(len(files.pids(top_directory)) for top_directory, _, _ in os.walk(directory))
        if left:
            raise System(f"container's cgroup is not empty: {left} process(es) found in {directory}") from None
        _remove_tree(directory)
    except OSError as error:
        raise System(f"mkdir {directory}: {reason(error.errno or errno.EIO)}") from error
    try:
        os.mkdir(directory, 0o755)
    except FileExistsError:
        pass
    except OSError as error:
        raise System(f"mkdir {directory}: {reason(error.errno or errno.EIO)}") from error


def _make_parents(directory: str, top: str, is_cpuset: bool) -> None:
    if len(directory) <= len(top) or os.path.isdir(directory):
        return
    _make_parents(posixpath.dirname(directory), top, is_cpuset)
    try:
        os.mkdir(directory, 0o755)
    except FileExistsError:
        pass
    except OSError as error:
        raise System(f"mkdir {directory}: {reason(error.errno or errno.EIO)}") from error
    if is_cpuset:
        v1_cpuset.inherit(directory, top)
        v1_cpuset.pass_on(directory)


def _remove_tree(directory: str) -> bool:
    """rmdir, children first when there are any; False when something is still busy."""
    try:
        os.rmdir(directory)
        return True
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
            raise System(f"unable to remove cgroup {directory}: {reason(error.errno or errno.EIO)}") from error
    try:
        children = [entry.path for entry in os.scandir(directory) if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return True
    if not children:
        return False
    busy = [child for child in children if not _remove_tree(child)]
    if busy:
        return False
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        pass
    except OSError:
        return False
    return True
