"""Makes a shim's memory shared: done once in the launcher, before its first fork.

Python writes to what it merely uses: reference counts, caches inside code and types, the allocator's lists. A page that
every shim writes to is private memory of every shim. Three things together bring that of an idle one from 1.8 MB to
1.2 MB (CPython 3.11, /proc/<pid>/smaps_rollup), and save a quarter of the processor time of a start:

* A shim's life is played through without a container, so that code is specialized and caches are filled (0.3 MB).
* The code that this ran, and its methods, are copied to one place, instead of lying between all that was imported
  (0.07 MB).
* The holes that the imports have left in the heap are filled, so that what a shim allocates lies together (0.2 MB).
"""

from __future__ import annotations

import _socket as socket
import contextlib
import gc
import os
import sys
import types
from collections.abc import Callable, Iterator

import msgspec

from seacan import cgroups
from seacan.cgroups.hierarchies import Hierarchies, Hierarchy, discover
from seacan.errors import SeacanError, Unsupported
from seacan.linux import capabilities
from seacan.linux import syscalls as k
from seacan.runtime import init, maker, packets, spec
from seacan.runtime.bundle import DirectoryRoot, LogConfig, OverlayRoot, ShimConfig
from seacan.runtime.container import Container
from seacan.runtime.failure import SetupFailed
from seacan.runtime.protocol import Make, Start
from seacan.runtime.shim import Shim

_TIMES = 24
"""A function is specialized after eight calls; what cannot be settles down later."""

_TIMES_MADE = 9
"""The same for what makes containers, of which a rehearsal takes 2 ms."""

_POOL = 1 << 14
_POOL_HEADER = 48
_BYTES_HEADER = sys.getsizeof(b"")
_GC_HEADER = 16
_SMALL = 512
"""obmalloc serves what is no larger, from pools of one size class (multiples of 16); the rest comes from malloc."""

_fillers: list[object] = []

_ID = "rehearsal"
_CAPABILITIES = ["CAP_CHOWN", "CAP_FOWNER", "CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SYS_CHROOT"]
_PROCESS = {
    "cwd": "/",
    "args": ["true"],
    "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME=rehearsal"],
    "user": {"uid": 0, "gid": 0, "additionalGids": [0, 10]},
    "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), _CAPABILITIES),
    "oomScoreAdj": 0,
}
_CONFIGURATION = {
    "ociVersion": "1.2.1",
    "process": _PROCESS,
    "root": {"path": "rootfs"},
    "hostname": "rehearsal",
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755"]},
        {
            "destination": "/dev/pts",
            "type": "devpts",
            "source": "devpts",
            "options": ["nosuid", "newinstance", "gid=5"],
        },
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
        {
            "destination": "/dev/shm",
            "type": "tmpfs",
            "source": "shm",
            "options": ["nosuid", "mode=1777", "size=65536k"],
        },
        {"destination": "/etc/hosts", "type": "bind", "source": "/proc/version", "options": ["rbind", "rprivate"]},
    ],
    "linux": {
        "namespaces": [{"type": kind} for kind in ("mount", "network", "uts", "pid", "ipc")],
        "cgroupsPath": "/rehearsal",
        "resources": {
            "devices": [
                {"allow": False, "access": "rwm"},
                {"allow": True, "type": "c", "major": 1, "minor": 5, "access": "rwm"},
            ]
        },
        "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/scsi"],
        "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/sys"],
    },
}


def rehearse() -> None:
    """Play, gather, fill. Raises OSError where the kernel or a lack of privilege forbids it."""
    with contextlib.suppress(Unsupported):
        discover()  # where the cgroups are: kept
    folder = _nowhere()
    try:
        root = f"/proc/self/fd/{folder}"
        shims = _code_run_by(lambda: _play(f"{root}/container"))
        _gather(shims)
        try:
            _gather(_code_run_by(lambda: _play_making(root)) - shims)
            for _ in range(_TIMES_MADE):
                _play_making(root)
        except (OSError, SeacanError, SetupFailed) as error:  # containers then take longer to make, nothing else
            os.write(2, f"cannot rehearse how containers are made: {error}\n".encode())
        for _ in range(_TIMES):
            _play(f"{root}/container")
    finally:
        os.close(folder)
    gc.collect()
    _fill_holes()


def _nowhere() -> int:
    """A folder that no path leads to, and that is gone with its descriptor."""
    context = k.fsopen("tmpfs")
    try:
        k.fsconfig_create(context)
        return k.fsmount(context)
    finally:
        os.close(context)


def _play(bundle: str) -> None:
    os.mkdir(bundle, 0o700)
    log = LogConfig(path=f"{bundle}/log")
    config = ShimConfig(id="rehearsal", rootfs=DirectoryRoot("/"), log=log, direct=True, keyring=True)
    with open(f"{bundle}/shim.json", "wb") as file:
        file.write(msgspec.json.encode(config))
    daemon, theirs = packets.pair()
    made, ours = packets.pair()
    stand_ins = [fd for _ in range(2) for fd in os.pipe2(os.O_CLOEXEC)]

    def fork(work: Callable[[socket.socket], None], birth: maker.Birth | None) -> tuple[int, int, socket.socket]:
        with contextlib.suppress(OSError):  # as far as it goes: nothing is born where there is no cgroup
            maker.fork(work, maker.Birth(bundle, init=False))
        return -1, os.dup(stand_ins[3]), ours

    shim = Shim(theirs, fork)
    try:
        packets.send(daemon, Make(bundle=bundle))
        shim.turn()
        packets.send(made, maker.Watching(), stand_ins[::2])
        shim.turn()
        packets.send(made, maker.Sandboxed(0), stand_ins[:2])
        shim.turn()
        packets.send(made, maker.Made(-1))
        shim.turn()
        packets.send(daemon, Start(seq=1))
        shim.turn()
        made.close()
        shim.turn()
        with contextlib.suppress(BlockingIOError):
            while (packet := packets.receive(daemon)) is not None:
                packets.close_all(packet[1])
    finally:
        shim.strike()
        daemon.close()
        packets.close_all(stand_ins)
        _remove(bundle)


def _play_making(folder: str) -> None:
    """What init does, but for the effects on its process, and an exec."""
    spec.decode_process(msgspec.json.encode(_PROCESS))
    configuration = spec.decode_spec(msgspec.json.encode(_CONFIGURATION))
    home, devices = f"{folder}/{_ID}", f"{folder}/devices"
    for path in (home, devices):
        os.mkdir(path, 0o700)
    try:
        hierarchies = Hierarchies((Hierarchy(devices, "/", frozenset({"devices"})),))
        cgroup = cgroups.open(f"/{_ID}", hierarchies)
        plan = Container.rehearse(_ID, configuration, cgroup, root=folder)
        for name in ("allow", "deny"):
            os.close(os.open(f"{devices}/{_ID}/devices.{name}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC))
        assert configuration.linux is not None and configuration.linux.resources is not None
        cgroup.apply(configuration.linux.resources)
        with _away():
            lower, upper, work = "/sys/lower", "/sys/upper", "/sys/work"
            for path in (lower, upper, work):
                os.mkdir(path)
            plan.rootfs = OverlayRoot(lower=(lower,), upper=upper, work=work)
            init.rehearse_root(plan)
    finally:
        for path in (f"{devices}/{_ID}", devices, home):
            with contextlib.suppress(FileNotFoundError):
                _remove(path)


def _remove(folder: str) -> None:
    for name in os.listdir(folder):
        os.unlink(f"{folder}/{name}")
    os.rmdir(folder)


def may_leave() -> bool:
    """Whether this process can enter a mount namespace and come back."""
    needed = capabilities.mask(("CAP_SYS_ADMIN", "CAP_SYS_CHROOT"))
    return capabilities.current() & needed == needed


@contextlib.contextmanager
def _away() -> Iterator[None]:
    """Be in a mount namespace of our own, with an empty /sys, and come back."""
    if not may_leave():
        raise Unsupported("no capabilities to enter a mount namespace and to come back")
    places = [os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for path in ("/", ".")]
    places.append(os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC))
    top, here, namespace = places

    def come_back() -> None:
        k.setns(namespace, k.CLONE_NEWNS)
        os.fchdir(top)
        os.chroot(".")
        os.fchdir(here)

    try:
        come_back()  # where that is forbidden, it has to be found out here
        k.unshare(k.CLONE_NEWNS)
        try:
            k.mount("", "/", "", k.MS_SLAVE | k.MS_REC)
            empty = _nowhere()
            k.move_mount(empty, k.AT_FDCWD, "/sys")
            os.close(empty)
            yield
        finally:
            come_back()
    finally:
        packets.close_all(places)


def _code_run_by(play: Callable[[], None]) -> set[types.CodeType]:
    run: set[types.CodeType] = set()

    def note(frame: types.FrameType, event: str, argument: object) -> None:
        if event == "call":
            run.add(frame.f_code)

    sys.setprofile(note)
    try:
        play()
    finally:
        sys.setprofile(None)
    return run


def _gather(codes: set[types.CodeType]) -> None:
    """Replace these code objects, and the methods that have them, by copies that lie together."""
    functions = [
        function
        for function in gc.get_objects()
        if isinstance(function, types.FunctionType) and function.__code__ in codes
    ]
    for function in functions:
        size = sys.getsizeof(function.__code__)
        _fillers.extend(bytes(size - _BYTES_HEADER) for _ in range(8 if size > _SMALL else 40))
    copies: dict[types.CodeType, types.CodeType] = {}

    def copy(code: types.CodeType) -> types.CodeType:
        if code not in copies:
            _fillers.append(code)
            constants = tuple(copy(item) if isinstance(item, types.CodeType) else item for item in code.co_consts)
            copies[code] = code.replace(co_consts=constants)
        return copies[code]

    for function in functions:
        function.__code__ = copy(function.__code__)
    gathered = set(map(id, functions))
    methods = [
        (owner, name, function)
        for owner in gc.get_objects()
        if isinstance(owner, type)
        for name, function in vars(owner).items()
        if id(function) in gathered
    ]
    size = sys.getsizeof(_copy_of) + _GC_HEADER
    _fillers.extend(bytes(size - _BYTES_HEADER) for _ in range(1000))
    for owner, name, function in methods:
        _fillers.append(function)
        setattr(owner, name, _copy_of(function))


def _copy_of(function: types.FunctionType) -> types.FunctionType:
    copy = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__qualname__ = function.__qualname__
    copy.__doc__ = function.__doc__
    return copy


def _fill_holes() -> None:
    for size in range(16, _SMALL + 1, 16):
        for _ in range(20000):
            filler: object = _filler(size)
            if id(filler) % _POOL == _POOL_HEADER:  # the first of a pool that nothing else is in
                break
            _fillers.append(filler)
    top = 0
    for size in (131072, 65536, 32768, 16384, 8192, 4096, 3072, 2048, 1536, 1024, 896, 768, 640, 576, 528):
        for _ in range(2000):
            filler = _filler(size)
            if id(filler) > top:  # beyond every hole
                top = id(filler)
                break
            _fillers.append(filler)


def _filler(size: int) -> object:
    """An object that takes ``size`` bytes."""
    if size == 16:
        return object()
    if size == 32:
        return float(len(_fillers)) + 0.5
    return bytes(size - _BYTES_HEADER)
