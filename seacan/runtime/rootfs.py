"""Makes a container's file system in its own mount namespace: root, mounts, devices, masks, pivot.

Runs in the init process, before anything of the container does. Every target is a descriptor found inside the root
(:mod:`seacan.linux.paths`) and mounts are attached to descriptors, so no symbolic link and no race in the image or a
shared volume can lead out of it (CVE-2021-30465), and what is checked is what is used.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import re
import stat
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from seacan.linux import syscalls as k
from seacan.linux.descent import Descent
from seacan.linux.overlay import mapped, mount_overlay
from seacan.linux.paths import is_on, make_in_root, open_in_root, part_of
from seacan.linux.userns import Range, namespace_with
from seacan.runtime import spec
from seacan.runtime.bundle import DirectoryRoot, OverlayRoot, Rootfs
from seacan.runtime.failure import SetupFailed, not_permitted, step, words
from seacan.runtime.mounts import PROC_ALLOWED, MountPlan, taken_subpath

if TYPE_CHECKING:
    from seacan.cgroups import Cgroup

DEFAULT_DEVICES: Final = (
    spec.Device("/dev/null", "c", 1, 3, 0o666),
    spec.Device("/dev/zero", "c", 1, 5, 0o666),
    spec.Device("/dev/full", "c", 1, 7, 0o666),
    spec.Device("/dev/random", "c", 1, 8, 0o666),
    spec.Device("/dev/urandom", "c", 1, 9, 0o666),
    spec.Device("/dev/tty", "c", 5, 0, 0o666),
)
_LINKS: Final = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
)
_KINDS: Final = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}
_EMPTY: Final = MountPlan(
    "filesystem",
    "",
    "tmpfs",
    "tmpfs",
    set=k.MOUNT_ATTR_RDONLY,
    superblock=["ro"],
    data=[("size", "4k"), ("nr_inodes", "1")],
)
_OVERLAY_FAILED: Final = "error mounting overlay to rootfs"
_PATH: Final = os.O_PATH | os.O_CLOEXEC
MOUNTS_ON_DETACHED: Final = k.kernel() >= (6, 15)
"""Whether the kernel mounts on a tree that is attached nowhere, and copies parts of one."""
_NULL: Final = os.makedev(1, 3)


def mount_root(rootfs: Rootfs) -> int:
    """A detached mount of the container's root: no path, in no namespace, gone when its descriptor is closed."""
    where = f"error preparing rootfs {rootfs.path}" if isinstance(rootfs, DirectoryRoot) else _OVERLAY_FAILED
    with step(where), contextlib.ExitStack() as stack:
        userns = -1
        if rootfs.mapping is not None:
            userns = namespace_with(_with_root(rootfs.mapping.uids), _with_root(rootfs.mapping.gids))
            stack.callback(os.close, userns)
        if isinstance(rootfs, OverlayRoot):
            return mount_overlay(rootfs.lower, rootfs.upper, rootfs.work, rootfs.options, userns=userns)
        if userns >= 0:
            return mapped(rootfs.path, userns)
        return k.open_tree(k.AT_FDCWD, rootfs.path, k.OPEN_TREE_CLONE | k.AT_RECURSIVE)


def _with_root(ranges: Sequence[Range]) -> tuple[Range, ...]:
    """These mappings and one for the host's root, as whom overlay makes its work folder and its whiteouts.

    On disk it is a number that no container can have. A file of that number is nobody's inside, set-user-ID or not.
    """
    free = (1 << 32) - 2
    for one in sorted(ranges, reverse=True):
        if one.inside <= free < one.inside + one.size:
            free = one.inside - 1
    return (*ranges, Range(free, 0, 1))


class RootBuilder:
    """The container's root while it is being made.

    ``root`` is the descriptor of its mount. That is attached already, on top of "/", or ``detached`` until
    :meth:`pivot`: only where :data:`MOUNTS_ON_DETACHED`.
    """

    def __init__(
        self, root: int, *, userns: bool, cgroup: Cgroup | None, cgroupns: bool, detached: bool = False
    ) -> None:
        self.root = root
        self._detached = detached
        self.proc = -1
        """The root of the procfs that we mounted ourselves: what is written to procfs goes through it, because
        /proc of the container may be made to lie (CVE-2019-16884, CVE-2025-52881)."""
        self._userns = userns
        self._cgroup = cgroup
        self._cgroupns = cgroupns
        self._null = -1

    # --- mounts ---------------------------------------------------------------------------------------------------

    def mount(self, plan: MountPlan) -> None:
        try:
            self._mount(plan)
        except OSError as error:
            raise SetupFailed(f"{plan.where()}: {_attempt(plan)}: {words(error)}") from error
        except SetupFailed as error:
            raise SetupFailed(f"{plan.where()}: {error}", error.exit_code) from error

    def _mount(self, plan: MountPlan) -> None:
        if plan.kind == "remount":
            with _closing(open_in_root(self.root, plan.destination)) as target:
                self.set_attributes(target, plan)
            return
        if plan.kind == "cgroup":
            self._mount_cgroup(plan)
            return
        if plan.kind == "bind":
            with _closing(plan.fd if plan.fd >= 0 else open_bind(plan)) as tree:
                directory = stat.S_ISDIR(os.stat(tree).st_mode)
                with _closing(make_in_root(self.root, plan.destination, directory=directory)) as target:
                    self._check_procfs(target, plan, tree)
                    if plan.fd < 0:
                        self.set_attributes(tree, plan)
                    if directory != stat.S_ISDIR(os.stat(target).st_mode):
                        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), plan.destination)
                    k.move_mount(tree, target)
            return
        if plan.fd >= 0:
            self._attach(plan.fd, plan)
            return
        if subpath := taken_subpath(plan):
            self._mount_part(plan, subpath)
            return
        inherits_mode = plan.type == "tmpfs" and self._exists(plan.destination)
        with _closing(self._filesystem_target(plan)) as target:
            self._check_procfs(target, plan, -1)
            if inherits_mode and not any(key == "mode" for key, _ in plan.data):
                plan.data.append(("mode", f"{stat.S_IMODE(os.stat(target).st_mode):o}"))
            tree = mount_filesystem(plan)
            try:
                if plan.label:
                    os.setxattr(f"/proc/self/fd/{tree}", "security.selinux", plan.label.encode() + b"\0")
                if plan.copy_up:
                    copy_up(target, tree)
                    if plan.readonly:
                        k.mount_setattr(tree, set=k.MOUNT_ATTR_RDONLY)
                self._set_propagation(tree, plan)
                k.move_mount(tree, target)
            except BaseException:
                os.close(tree)
                raise
            if plan.type == "proc" and plan.destination == "/proc" and self.proc < 0:
                self.proc = tree
            else:
                os.close(tree)

    def _mount_part(self, plan: MountPlan, subpath: str) -> None:
        """Mount what a filesystem has at ``subpath``.

        Before Linux 6.15 it lies over the root for a moment: the kernel copied only what is attached.
        """
        with _closing(mount_filesystem(plan)) as tree:
            if self._detached:
                part = part_of(tree, subpath)
            else:
                k.move_mount(tree, self.root)
                try:
                    part = part_of(tree, subpath)
                finally:
                    k.umount2(f"/proc/self/fd/{tree}", k.MNT_DETACH)
        self._attach(part, plan)

    def _attach(self, tree: int, plan: MountPlan) -> None:
        """Attach a mount, of a folder or a file, where the plan wants it; the descriptor is closed."""
        with (
            _closing(tree),
            _closing(
                make_in_root(self.root, plan.destination, directory=stat.S_ISDIR(os.stat(tree).st_mode))
            ) as target,
        ):
            self._check_procfs(target, plan, -1)
            self._set_propagation(tree, plan)
            k.move_mount(tree, target)

    def _exists(self, path: str) -> bool:
        """A tmpfs takes the mode of what it covers; where the image has nothing, everybody may write (as in runc)."""
        found = self._find(path)
        if found is None:
            return False
        os.close(found)
        return True

    def _filesystem_target(self, plan: MountPlan) -> int:
        if plan.type not in ("proc", "sysfs"):
            return make_in_root(self.root, plan.destination)
        # A /proc that is a link elsewhere would leave the masked paths unmasked (CVE-2023-28642).
        resolve = k.RESOLVE_IN_ROOT | k.RESOLVE_NO_SYMLINKS
        words_ = f'filesystem "{plan.destination}" must be mounted on ordinary directory'
        try:
            return k.openat2(self.root, plan.destination, _PATH | os.O_DIRECTORY, resolve=resolve)
        except FileNotFoundError:
            os.close(make_in_root(self.root, plan.destination))
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise SetupFailed(words_) from error
            raise
        try:
            return k.openat2(self.root, plan.destination, _PATH | os.O_DIRECTORY, resolve=resolve)
        except OSError as error:
            raise SetupFailed(words_) from error

    def _check_procfs(self, target: int, plan: MountPlan, tree: int) -> None:
        """Refuse a mount over procfs, by where the target really is."""
        if not plan.destination.startswith("/proc") and not is_on(target, "proc"):
            return
        path = os.readlink(f"/proc/self/fd/{target}")
        if path == "/proc":
            if plan.type == "proc" or (tree >= 0 and is_on(tree, "proc") and os.stat(tree).st_ino == 1):
                return
            raise SetupFailed(f'"{path}" cannot be mounted because it is not of type proc')
        if (path.startswith("/proc/") or is_on(target, "proc")) and path not in PROC_ALLOWED:
            raise SetupFailed(f'"{path}" cannot be mounted because it is inside /proc')

    def set_attributes(self, fd: int, plan: MountPlan) -> None:
        if plan.set or plan.clear:
            k.mount_setattr(fd, set=plan.set, clear=plan.clear)
        if plan.tree_set or plan.tree_clear:
            k.mount_setattr(fd, set=plan.tree_set, clear=plan.tree_clear, recursive=True)
        self._set_propagation(fd, plan)

    def _set_propagation(self, fd: int, plan: MountPlan) -> None:
        for propagation in plan.propagation:
            k.mount_setattr(fd, propagation=propagation & ~k.MS_REC, recursive=bool(propagation & k.MS_REC))

    # --- cgroup ---------------------------------------------------------------------------------------------------

    def _mount_cgroup(self, plan: MountPlan) -> None:
        hosts = self._cgroup.hierarchies if self._cgroup is not None else None
        if hosts is None:
            from seacan.cgroups import discover

            hosts = discover()
        with _closing(make_in_root(self.root, plan.destination)) as target:
            self._check_procfs(target, plan, -1)
            if hosts.version == 2:
                with _closing(self._cgroup2(plan, hosts.unified or "/sys/fs/cgroup")) as tree:
                    self._set_propagation(tree, plan)
                    k.move_mount(tree, target)
                return
            top = MountPlan("filesystem", plan.destination, "tmpfs", "tmpfs", data=[("mode", "755")])
            top.set = plan.set & ~k.MOUNT_ATTR_RDONLY
            with _closing(mount_filesystem(top)) as tree:
                if not self._detached:  # before Linux 6.15 nothing is mounted on what is not attached
                    k.move_mount(tree, target)
                for hierarchy in hosts.v1:
                    name = posixpath.basename(hierarchy.directory)
                    os.mkdir(name, 0o755, dir_fd=tree)
                    with _closing(self._cgroup1(hierarchy.controllers, hierarchy.name, hierarchy.directory)) as leaf:
                        k.mount_setattr(leaf, set=plan.set, clear=plan.clear & ~plan.set)
                        k.move_mount(leaf, tree, name)
                    if len(hierarchy.controllers) > 1:
                        for controller in sorted(hierarchy.controllers):
                            if controller != name:
                                with contextlib.suppress(FileExistsError):
                                    os.symlink(name, controller, dir_fd=tree)
                if plan.readonly:
                    k.mount_setattr(tree, set=k.MOUNT_ATTR_RDONLY)
                if self._detached:  # and what is mounted on that cannot be changed any more
                    k.move_mount(tree, target)

    def _cgroup1(self, controllers: frozenset[str], name: str, directory: str) -> int:
        if not self._cgroupns:
            path = directory
            if self._cgroup is not None:
                path = next((d for d in self._cgroup.directories if d.startswith(directory + "/")), directory)
            return k.open_tree(k.AT_FDCWD, path, k.OPEN_TREE_CLONE)
        fs = k.fsopen("cgroup")
        try:
            k.fsconfig_string(fs, "source", "cgroup")
            if name:
                k.fsconfig_string(fs, "name", name)
                k.fsconfig_flag(fs, "none")
            for controller in controllers:
                k.fsconfig_flag(fs, controller)
            k.fsconfig_create(fs)
            return k.fsmount(fs)
        finally:
            os.close(fs)

    def _cgroup2(self, plan: MountPlan, directory: str) -> int:
        try:
            return mount_filesystem(MountPlan("filesystem", plan.destination, "cgroup2", "cgroup", set=plan.set))
        except OSError as error:
            if not not_permitted(error) and error.errno != errno.EBUSY:
                raise
        if self._cgroupns and self._cgroup is not None and self._cgroup.unified is not None:
            directory = self._cgroup.unified
        tree = k.open_tree(k.AT_FDCWD, directory, k.OPEN_TREE_CLONE | k.AT_RECURSIVE)
        k.mount_setattr(tree, set=plan.set, clear=plan.clear)
        return tree

    # --- devices --------------------------------------------------------------------------------------------------

    def make_devices(self, devices: Sequence[spec.Device]) -> None:
        """Nodes and links of /dev, for a /dev that is ours (not a bind mount of somebody else's)."""
        with step("error creating device nodes", path=True):
            dev = make_in_root(self.root, "/dev")
            try:
                old = os.umask(0)
                for device in DEFAULT_DEVICES:
                    if not any(other.path == device.path for other in devices):
                        self._make_device(dev, posixpath.basename(device.path), device)
                for device in devices:
                    parent, name = posixpath.split(posixpath.normpath(device.path))
                    if parent == "/dev":
                        self._make_device(dev, name, device)
                        continue
                    with _closing(make_in_root(self.root, parent)) as directory:
                        self._make_device(directory, name, device)
                os.umask(old)
                for link, target in _LINKS:
                    _link(target, link, dev)
                if os.path.exists("/proc/kcore"):
                    _link("/proc/kcore", "core", dev)
                if _exists_at("pts/ptmx", dev):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink("ptmx", dir_fd=dev)
                    _link("pts/ptmx", "ptmx", dev)
            finally:
                os.close(dev)

    def _make_device(self, directory: int, name: str, device: spec.Device) -> None:
        kind = _KINDS.get(device.type)
        if kind is None:
            raise OSError(errno.EINVAL, f"{device.type} is not a type of device", device.path)
        number = os.makedev(device.major, device.minor)
        if not self._userns:
            mode = 0o666 if device.file_mode is None else stat.S_IMODE(device.file_mode)
            try:
                os.mknod(name, kind | mode, number, dir_fd=directory)
            except FileExistsError:
                found = os.stat(name, dir_fd=directory, follow_symlinks=False)
                if stat.S_IFMT(found.st_mode) != kind or (kind != stat.S_IFIFO and found.st_rdev != number):
                    raise
            except PermissionError:
                self._bind_device(directory, name, device)  # we are in a container ourselves
                return
            if device.uid or device.gid:
                os.chown(name, device.uid or 0, device.gid or 0, dir_fd=directory, follow_symlinks=False)
            if number == _NULL and name == "null" and self._null < 0:
                self._remember_null(directory)
            return
        self._bind_device(directory, name, device)

    def _bind_device(self, directory: int, name: str, device: spec.Device) -> None:
        with contextlib.suppress(FileExistsError):
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666, dir_fd=directory))
        with _closing(k.open_tree(k.AT_FDCWD, _host_path(device), k.OPEN_TREE_CLONE)) as tree:
            if not _is(os.stat(tree), device):
                raise OSError(errno.ENODEV, "the host's device is another one", device.path)
            with _closing(os.open(name, _PATH | os.O_NOFOLLOW, dir_fd=directory)) as target:
                k.move_mount(tree, target)

    def _remember_null(self, directory: int) -> None:
        fd = os.open("null", _PATH | os.O_NOFOLLOW, dir_fd=directory)
        found = os.fstat(fd)
        if stat.S_ISCHR(found.st_mode) and found.st_rdev == _NULL:
            self._null = fd
        else:
            os.close(fd)

    def mount_console(self, terminal: int) -> None:
        """Bind the terminal on /dev/console: the descriptor itself, no path (CVE-2025-52565)."""
        with (
            step("error setting up console on /dev/console", path=True),
            _closing(make_in_root(self.root, "/dev")) as dev,
        ):
            with contextlib.suppress(FileExistsError):
                flags = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                os.close(os.open("console", flags, 0o620, dir_fd=dev))
            with _closing(os.open("console", _PATH | os.O_NOFOLLOW, dir_fd=dev)) as target:
                if stat.S_ISLNK(os.fstat(target).st_mode):
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), "/dev/console")
                with _closing(k.open_tree(terminal, "", k.OPEN_TREE_CLONE | k.AT_EMPTY_PATH)) as tree:
                    k.move_mount(tree, target)

    # --- masks ----------------------------------------------------------------------------------------------------

    def mask(self, paths: Sequence[str]) -> None:
        """Put an empty read-only folder, or /dev/null, on top of each path that exists."""
        # The first target gets the mount itself, the others copies of it: before Linux 6.15 only what is attached
        # can be copied.
        masks: dict[bool, int] = {}
        try:
            for path in paths:
                target = self._find(path)
                if target is None:
                    continue
                with _closing(target), step(f'can\'t mask path "{path}"'):
                    folder = stat.S_ISDIR(os.fstat(target).st_mode)
                    if folder not in masks:
                        masks[folder] = mount_filesystem(_EMPTY) if folder else self._null_mount()
                        k.move_mount(masks[folder], target)
                        continue
                    with _closing(k.open_tree(masks[folder], "", k.OPEN_TREE_CLONE | k.AT_EMPTY_PATH)) as tree:
                        k.move_mount(tree, target)
        finally:
            for fd in masks.values():
                os.close(fd)

    def _null_mount(self) -> int:
        """A mount of a /dev/null that is one (CVE-2025-31133): the container's if we made it, else the host's,
        read-only so that its mode and owner are out of reach."""
        if self._null >= 0:
            return k.open_tree(self._null, "", k.OPEN_TREE_CLONE | k.AT_EMPTY_PATH)
        tree = k.open_tree(k.AT_FDCWD, "/dev/null", k.OPEN_TREE_CLONE)
        if os.stat(tree).st_rdev != _NULL:
            os.close(tree)
            raise OSError(errno.ENODEV, "not the null device", "/dev/null")
        k.mount_setattr(tree, set=k.MOUNT_ATTR_RDONLY | k.MOUNT_ATTR_NOSUID | k.MOUNT_ATTR_NOEXEC)
        return tree

    def readonly(self, paths: Sequence[str]) -> None:
        for path in paths:
            target = self._find(path)
            if target is None:
                continue
            with _closing(target), step(f'can\'t make "{path}" read-only'):
                flags = k.OPEN_TREE_CLONE | k.AT_EMPTY_PATH | k.AT_RECURSIVE
                with _closing(k.open_tree(target, "", flags)) as tree:
                    k.mount_setattr(tree, set=k.MOUNT_ATTR_RDONLY)
                    k.move_mount(tree, target)

    def _find(self, path: str) -> int | None:
        try:
            return open_in_root(self.root, path)
        except (FileNotFoundError, NotADirectoryError):
            return None

    # --- procfs ---------------------------------------------------------------------------------------------------

    def procfs(self) -> int:
        """The root of a procfs of this pid namespace that nothing is mounted over."""
        if self.proc < 0:
            with step("mount proc"):
                self.proc = mount_filesystem(MountPlan("filesystem", "", "proc", "proc"))
        return self.proc

    def write_sysctls(self, sysctls: dict[str, str]) -> None:
        for key, value in sysctls.items():
            path = "sys/" + key.replace(".", "/") if "/" not in key else "sys/" + key
            with step(f"error writing sysctl {key}: open /proc/{path}"):
                write_procfs(self.procfs(), path, value)

    # --- the end --------------------------------------------------------------------------------------------------

    def pivot(self) -> None:
        """Make it the root of the mount namespace. The old root is below it for a moment, then gone."""
        with step("error during pivot_root"):
            if self._detached and self._replace():
                return
            with _closing(os.open("/", _PATH | os.O_DIRECTORY)) as old:
                os.fchdir(self.root)
                k.pivot_root(".", ".")
                # Not ".": for mount(2) that is the new root, whose shared mounts are to stay shared.
                os.fchdir(old)
            k.mount("", ".", "", k.MS_SLAVE | k.MS_REC)  # the umount must not reach the host
            k.umount2(".", k.MNT_DETACH)
            os.chdir("/")

    def _replace(self) -> bool:
        """Unmount the old root and attach ours in its place: what pivot_root comes to, without its walk over every
        process of the host (2.3 ms with 2,400 containers). False, and ours attached on top, where the old one
        cannot be unmounted: in a user namespace, or with nothing below it."""
        k.mount("", "/", "", k.MS_SLAVE | k.MS_REC)  # the umount must not reach the host
        namespace = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            try:
                k.umount2("/", k.MNT_DETACH)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                k.move_mount(self.root, k.AT_FDCWD, "/")
                return False
            if _attached("/"):
                raise OSError(errno.EBUSY, "something is mounted over the host's root", "/")
            k.setns(namespace, k.CLONE_NEWNS)  # to what the old root was mounted on: no path of ours leads there
        finally:
            os.close(namespace)
        k.move_mount(self.root, k.AT_FDCWD, "/")
        os.fchdir(self.root)
        os.chroot(".")
        return True

    def move_to_root(self) -> None:
        """For a root that cannot be pivoted away from (an initramfs): as runc's --no-pivot."""
        with step("error moving the rootfs to /"):
            os.fchdir(self.root)
            os.chroot(".")
            os.chdir("/")

    def close(self) -> None:
        for fd in (self.root, self.proc, self._null):
            if fd >= 0:
                os.close(fd)
        self.root = self.proc = self._null = -1


def write_procfs(proc: int, path: str, value: str) -> None:
    """Write a file of a procfs whose root is ``proc``, refusing links and anything mounted over it."""
    resolve = k.RESOLVE_BENEATH | k.RESOLVE_NO_XDEV | k.RESOLVE_NO_SYMLINKS
    fd = k.openat2(proc, path, os.O_WRONLY, resolve=resolve)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def _host_path(device: spec.Device) -> str:
    """Where the host has a device: under the same name, or under the one that the kernel gave it."""
    with contextlib.suppress(OSError):
        if _is(os.stat(device.path), device):
            return device.path
    kind = "block" if device.type == "b" else "char"
    with contextlib.suppress(OSError), open(f"/sys/dev/{kind}/{device.major}:{device.minor}/uevent") as uevent:
        for line in uevent:
            if line.startswith("DEVNAME="):
                return f"/dev/{line[8:].strip()}"
    return device.path


def _is(found: os.stat_result, device: spec.Device) -> bool:
    kind = stat.S_IFMT(found.st_mode)
    return kind == _KINDS[device.type] and found.st_rdev == os.makedev(device.major, device.minor)


def open_bind(plan: MountPlan) -> int:
    """A detached copy of a bind mount's source.

    An option ``subpath=`` names what of the source to take, never outside it: a volume's content is hostile. A source
    below ``/proc/<pid>/root`` lies in that process's mount namespace.
    """
    flags = k.OPEN_TREE_CLONE | (k.AT_RECURSIVE if plan.recursive else 0)
    if subpath := taken_subpath(plan):
        with _closing(os.open(plan.source, _PATH | os.O_DIRECTORY)) as top:
            return part_of(top, subpath, flags)
    foreign = _FOREIGN.match(plan.source)
    if foreign is not None and foreign[1] != "self":
        return _open_foreign(foreign[1], plan.source[foreign.end() :], flags)
    return k.open_tree(k.AT_FDCWD, plan.source, flags)


_FOREIGN: Final = re.compile(r"/proc/([0-9]+)/root/")


def _open_foreign(pid: str, path: str, flags: int) -> int:
    """The kernel copies mounts of its caller's namespace only (EINVAL), so go there for the moment of copying.

    ``path`` is resolved inside that process's root, which may have made a link of it that leads to the host.
    """
    with (
        _closing(os.open(f"/proc/{pid}/root", _PATH | os.O_DIRECTORY)) as their_root,
        _closing(open_in_root(their_root, path)) as found,
        _closing(os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)) as own,
        _closing(os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)) as theirs,
        _closing(os.open("/", _PATH | os.O_DIRECTORY)) as root,
        _closing(os.open(".", _PATH | os.O_DIRECTORY)) as before,
    ):
        k.setns(theirs, k.CLONE_NEWNS)
        try:
            return k.open_tree(found, "", flags | k.AT_EMPTY_PATH)
        finally:
            k.setns(own, k.CLONE_NEWNS)
            os.fchdir(root)  # setns(2) made our root the topmost one: by now perhaps the container's
            os.chroot(".")
            os.fchdir(before)


def mount_filesystem(plan: MountPlan) -> int:
    """A detached mount of a new (or the shared) superblock of ``plan.type``."""
    fs = k.fsopen(plan.type)
    try:
        if plan.source:
            k.fsconfig_string(fs, "source", plan.source)
        for flag in plan.superblock:
            if flag != "ro" or not plan.copy_up:
                k.fsconfig_flag(fs, flag)
        for key, value in plan.data:
            if value is None:
                k.fsconfig_flag(fs, key)
            else:
                k.fsconfig_string(fs, key, value)
        k.fsconfig_create(fs)
        tree = k.fsmount(fs, plan.set & ~(k.MOUNT_ATTR_RDONLY if plan.copy_up else 0))
        if plan.tree_set:
            k.mount_setattr(tree, set=plan.tree_set, clear=plan.tree_clear, recursive=True)
        return tree
    finally:
        os.close(fs)


def copy_up(source: int, destination: int) -> None:
    """Copy the tree at ``source`` (an O_PATH folder) into the root of ``destination`` (option ``tmpcopyup``)."""
    with Descent((source, destination)) as descent:
        _copy_attributes(descent.here[0], destination)
        folders = [_copy_files(*descent.here)]
        while True:
            if folders[-1]:
                name = folders[-1].pop()
                os.mkdir(name, 0o700, dir_fd=descent.here[1])
                descent.down()
                descent.step(0, name)
                descent.step(1, name)
                folders.append(_copy_files(*descent.here))
                continue
            folders.pop()
            if not folders:
                return
            _copy_attributes(*descent.here)
            descent.up()


def _copy_files(source: int, destination: int) -> list[str]:
    """Copy what is no folder; gives the folders' names."""
    folders: list[str] = []
    for name in os.listdir(source):
        found = os.stat(name, dir_fd=source, follow_symlinks=False)
        kind = stat.S_IFMT(found.st_mode)
        if kind == stat.S_IFDIR:
            folders.append(name)
        elif kind == stat.S_IFLNK:
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=destination)
            os.chown(name, found.st_uid, found.st_gid, dir_fd=destination, follow_symlinks=False)
        elif kind == stat.S_IFREG:
            with _closing(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)) as file:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                with _closing(os.open(name, flags, 0o600, dir_fd=destination)) as made:
                    while os.sendfile(made, file, None, 1 << 20):
                        pass
                    _copy_attributes(file, made)
        else:
            os.mknod(name, found.st_mode, found.st_rdev, dir_fd=destination)
            os.chown(name, found.st_uid, found.st_gid, dir_fd=destination, follow_symlinks=False)
    return folders


def _copy_attributes(source: int, destination: int) -> None:
    found = os.fstat(source)
    path = f"/proc/self/fd/{destination}"  # chown and chmod of an O_PATH descriptor (a mount's) go by this name
    os.chown(path, found.st_uid, found.st_gid)
    os.chmod(path, stat.S_IMODE(found.st_mode))
    for name in os.listxattr(source):
        with contextlib.suppress(OSError):  # tmpfs has no user.* before 6.6; runc's copy drops them all
            os.setxattr(path, name, os.getxattr(source, name))
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def _attempt(plan: MountPlan) -> str:
    return f"mount src={plan.source}, dst={plan.destination}"


class _closing:
    """``with`` for a descriptor."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *exception: object) -> None:
        os.close(self._fd)


def _attached(path: str) -> bool:
    """Whether the mount that ``path`` is on is part of our mount namespace."""
    try:
        os.close(k.open_tree(k.AT_FDCWD, path, k.OPEN_TREE_CLONE))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True


def _link(target: str, name: str, directory: int) -> None:
    with contextlib.suppress(FileExistsError):
        os.symlink(target, name, dir_fd=directory)


def _exists_at(name: str, directory: int) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError:
        return False
    return True
