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
from collections.abc import Callable

import msgspec

from seacan.cgroups.hierarchies import discover
from seacan.errors import Unsupported
from seacan.linux.syscalls import fsconfig_create, fsmount, fsopen
from seacan.runtime import maker, packets, spec
from seacan.runtime.bundle import DirectoryRoot, LogConfig, ShimConfig
from seacan.runtime.protocol import Make, Start
from seacan.runtime.shim import Shim

_TIMES = 24
"""A function is specialized after eight calls; what cannot be settles down later."""

_POOL = 1 << 14
_POOL_HEADER = 48
_BYTES_HEADER = sys.getsizeof(b"")
_GC_HEADER = 16
_SMALL = 512
"""obmalloc serves what is no larger, from pools of one size class (multiples of 16); the rest comes from malloc."""

_fillers: list[object] = []


def rehearse() -> None:
    """Play, gather, fill. Raises OSError where the kernel or a lack of privilege forbids it."""
    with contextlib.suppress(Unsupported):
        discover()  # where the cgroups are: kept
    folder = _nowhere()
    try:
        bundle = f"/proc/self/fd/{folder}/container"
        _gather(_code_run_by(lambda: _play(bundle)))
        for _ in range(_TIMES):
            _play(bundle)
        # Building the decoder of such a large type takes 4 ms, once in a process.
        spec.decode_spec(b'{"ociVersion":"1.2.0","process":{"args":["true"]},"linux":{}}')
        spec.decode_process(b'{"args":["true"]}')
    finally:
        os.close(folder)
    gc.collect()
    _fill_holes()


def _nowhere() -> int:
    """A folder that no path leads to, and that is gone with its descriptor."""
    context = fsopen("tmpfs")
    try:
        fsconfig_create(context)
        return fsmount(context)
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
        for name in os.listdir(bundle):
            os.unlink(f"{bundle}/{name}")
        os.rmdir(bundle)


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
    for size in (16384, 8192, 4096, 3072, 2048, 1536, 1024, 896, 768, 640, 576, 528):
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
