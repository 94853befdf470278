"""bpf(2), as far as our programs need it: an assembler for a few instructions, programs, hash maps, cgroup attachment.

Instruction encoding: Documentation/bpf/standardization/instruction-set.rst of the kernel.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator

R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10 = range(11)
"""R0 returns, R1 to R5 are arguments and lost in calls, R6 to R9 survive them, R10 is the end of the stack."""

MAP_TYPE_HASH, MAP_TYPE_ARRAY = 1, 2
BYTE, HALF, WORD = 0x10, 0x08, 0x00
"""Sizes of memory accesses: 8, 16, 32 bits."""

MAP_LOOKUP_ELEM, SKB_CHANGE_TYPE, REDIRECT_PEER = 1, 32, 155
"""Helper functions, by their numbers in enum bpf_func_id."""

_LDX_MEM = 0x61
_STX_MEM = 0x63
_LD_IMM64 = 0x18
_PSEUDO_MAP_FD = 1
_ALU64_ADD_K = 0x07
_ALU64_MOV_X = 0xBF
_JMP_JGT_X = 0x2D
_JMP_JEQ_K = 0x15
_JMP32_JEQ_X = 0x1E
_JMP32_JNE_X = 0x5E
_JA = 0x05
_CALL = 0x85
_ALU_AND_K = 0x54  # 32-bit
_ALU_RSH_K = 0x74
_ALU_XOR_X = 0xAC
_ALU64_MOV_K = 0xB7
_ALU_MOV_X = 0xBC
_JMP32_JNE_K = 0x56
_JMP32_JEQ_K = 0x16
_EXIT = 0x95

_MAP_CREATE, _MAP_LOOKUP, _MAP_UPDATE, _MAP_DELETE = 0, 1, 2, 3
_PROG_LOAD, _PROG_ATTACH, _PROG_DETACH, _PROG_GET_FD_BY_ID, _OBJ_GET_INFO_BY_FD, _PROG_QUERY = 5, 8, 9, 13, 15, 16
_PROG_TYPE_SCHED_CLS, _PROG_TYPE_CGROUP_DEVICE = 3, 15
_F_NO_PREALLOC = 1
_CGROUP_DEVICE, _TCX_INGRESS = 6, 46  # enum bpf_attach_type
_F_ALLOW_MULTI, _F_REPLACE = 2, 4

_NUMBERS = {
    "x86_64": 321,
    "aarch64": 280,
    "riscv64": 280,
    "loongarch64": 280,
    "armv7l": 386,
    "armv8l": 386,
    "i686": 357,
    "i386": 357,
    "ppc64le": 361,
    "s390x": 351,
}


class Assembler:
    """Builds a program whose conditional jumps all go forward."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int, int]] = []  # opcode, dst, src, offset, immediate
        self._jumps: list[tuple[int, int]] = []  # instruction, label
        self._labels: list[int] = []

    def load_word(self, destination: int, source: int, offset: int) -> None:
        self.load(WORD, destination, source, offset)

    def load(self, size: int, destination: int, source: int, offset: int) -> None:
        self._code.append((_LDX_MEM | size, destination, source, offset, 0))

    def store(self, size: int, destination: int, offset: int, source: int) -> None:
        self._code.append((_STX_MEM | size, destination, source, offset, 0))

    def load_map(self, destination: int, map: int) -> None:
        """The address of the map with that descriptor."""
        self._code.append((_LD_IMM64, destination, _PSEUDO_MAP_FD, 0, map))
        self._code.append((0, 0, 0, 0, 0))

    def copy(self, destination: int, source: int) -> None:
        """All 64 bits, so that a pointer stays one."""
        self._code.append((_ALU64_MOV_X, destination, source, 0, 0))

    def add_constant(self, destination: int, value: int) -> None:
        self._code.append((_ALU64_ADD_K, destination, 0, 0, value))

    def call(self, helper: int) -> None:
        self._code.append((_CALL, 0, 0, 0, helper))

    def move_register(self, destination: int, source: int) -> None:
        self._code.append((_ALU_MOV_X, destination, source, 0, 0))

    def move_constant(self, destination: int, value: int) -> None:
        self._code.append((_ALU64_MOV_K, destination, 0, 0, value))

    def xor_register(self, destination: int, source: int) -> None:
        self._code.append((_ALU_XOR_X, destination, source, 0, 0))

    def and_constant(self, destination: int, value: int) -> None:
        self._code.append((_ALU_AND_K, destination, 0, 0, value))

    def shift_right(self, destination: int, bits: int) -> None:
        self._code.append((_ALU_RSH_K, destination, 0, 0, bits))

    def label(self) -> int:
        self._labels.append(-1)
        return len(self._labels) - 1

    def place(self, label: int) -> None:
        self._labels[label] = len(self._code)

    def jump_unless_equal(self, register: int, value: int, label: int) -> None:
        self._jump(_JMP32_JNE_K, register, value, label)

    def jump_if_equal(self, register: int, value: int, label: int) -> None:
        self._jump(_JMP32_JEQ_K, register, value, label)

    def jump_if_null(self, register: int, label: int) -> None:
        self._jump(_JMP_JEQ_K, register, 0, label)

    def jump_if_same(self, register: int, other: int, label: int) -> None:
        """Compares 32 bits."""
        self._jump(_JMP32_JEQ_X, register, 0, label, other)

    def jump_unless_same(self, register: int, other: int, label: int) -> None:
        """Compares 32 bits."""
        self._jump(_JMP32_JNE_X, register, 0, label, other)

    def jump_if_greater(self, register: int, other: int, label: int) -> None:
        """Compares 64 bits without sign, as pointers are compared."""
        self._jump(_JMP_JGT_X, register, 0, label, other)

    def jump(self, label: int) -> None:
        self._jump(_JA, 0, 0, label)

    def _jump(self, opcode: int, register: int, value: int, label: int, other: int = 0) -> None:
        self._jumps.append((len(self._code), label))
        self._code.append((opcode, register, other, 0, value))

    def exit(self) -> None:
        self._code.append((_EXIT, 0, 0, 0, 0))

    def finish(self) -> bytes:
        """The program's bytes (struct bpf_insn, native byte order)."""
        offsets = {at: self._labels[label] - at - 1 for at, label in self._jumps}
        little = struct.pack("=H", 1) == b"\x01\x00"
        code = bytearray()
        for at, (opcode, destination, source, offset, immediate) in enumerate(self._code):
            registers = destination | source << 4 if little else destination << 4 | source
            code += struct.pack("=BBhI", opcode, registers, offsets.get(at, offset), immediate & 0xFFFFFFFF)
        return bytes(code)


def load_cgroup_device(program: bytes) -> int:
    """BPF_PROG_LOAD of a BPF_PROG_TYPE_CGROUP_DEVICE program; its descriptor (close-on-exec)."""
    return _load(_PROG_TYPE_CGROUP_DEVICE, program)


def load_classifier(program: bytes, name: str) -> int:
    """BPF_PROG_LOAD of a BPF_PROG_TYPE_SCHED_CLS program called ``name``; its descriptor (close-on-exec)."""
    return _load(_PROG_TYPE_SCHED_CLS, program, name)


def _load(kind: int, program: bytes, name: str = "") -> int:
    code = ctypes.create_string_buffer(program, len(program))
    license_ = ctypes.create_string_buffer(b"Apache")

    def load(log: ctypes.Array[ctypes.c_char] | None) -> int:
        where = (1, len(log), ctypes.addressof(log)) if log is not None else (0, 0, 0)
        code_at, license_at = ctypes.addressof(code), ctypes.addressof(license_)
        head = struct.pack("=IIQQIIQII", kind, len(program) // 8, code_at, license_at, *where, 0, 0)
        return _bpf(_PROG_LOAD, head + (struct.pack("=16s", name.encode()) if name else b""))

    try:
        return load(None)
    except OSError as failure:
        if failure.errno == errno.EPERM:
            raise
        log = ctypes.create_string_buffer(65536)
        try:
            return load(log)
        except OSError as again:
            said = log.value.decode(errors="replace").strip()
            raise OSError(again.errno, f"bpf(BPF_PROG_LOAD): {os.strerror(again.errno or 0)}: {said}") from failure


class Map:
    """A map whose keys and values are bytes of fixed sizes. The kernel keeps it while a program uses it."""

    def __init__(self, kind: int, key_size: int, value_size: int, entries: int) -> None:
        flags = _F_NO_PREALLOC if kind == MAP_TYPE_HASH else 0
        self.fd = _bpf(_MAP_CREATE, struct.pack("=IIIII", kind, key_size, value_size, entries, flags))
        self._value_size = value_size

    def __setitem__(self, key: bytes, value: bytes) -> None:
        self._element(_MAP_UPDATE, key, ctypes.create_string_buffer(value, len(value)))

    def get(self, key: bytes) -> bytes | None:
        value = ctypes.create_string_buffer(self._value_size)
        try:
            self._element(_MAP_LOOKUP, key, value)
        except FileNotFoundError:
            return None
        return value.raw

    def discard(self, key: bytes) -> None:
        """Remove a key of a hash, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._element(_MAP_DELETE, key, None)

    def close(self) -> None:
        os.close(self.fd)

    def _element(self, command: int, key: bytes, value: ctypes.Array[ctypes.c_char] | None) -> None:
        held = ctypes.create_string_buffer(key, len(key))
        where = 0 if value is None else ctypes.addressof(value)
        _bpf(command, struct.pack("=IIQQQ", self.fd, 0, ctypes.addressof(held), where, 0))


def attach_ingress(link: int, program: int) -> None:
    """Attach a classifier where packets come in by a link (its index), where it stays until the link goes.

    Holds the kernel's lock of all links for a grace period, about 10 ms. Linux 6.6 or later.
    """
    _attach(link, program, 0, 0, _TCX_INGRESS)


def replace_ingress(link: int, program: int, name: str) -> bool:
    """Put a classifier in the place of the one called ``name``, if the link has such; says whether it had.

    There is no moment without either, and it takes microseconds.
    """
    with _programs(link, _TCX_INGRESS) as attached:
        for descriptor in attached:
            if _program_name(descriptor) == name:
                _attach(link, program, _F_REPLACE, descriptor, _TCX_INGRESS)
                return True
    return False


def _program_name(program: int) -> str:
    """The name from struct bpf_prog_info."""
    info = ctypes.create_string_buffer(80)
    _bpf(_OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", program, len(info), ctypes.addressof(info)))
    return info.raw[64:80].rstrip(b"\0").decode(errors="replace")


@contextlib.contextmanager
def _programs(target: int, kind: int) -> Iterator[list[int]]:
    """Descriptors of the programs attached to ``target`` (a cgroup's descriptor or a link's index) itself."""
    ids = (ctypes.c_uint32 * 64)()
    attributes = struct.pack("=IIIIQI", target, kind, 0, 0, ctypes.addressof(ids), len(ids))
    answer = ctypes.create_string_buffer(attributes + bytes(64), len(attributes) + 64)
    _bpf_buffer(_PROG_QUERY, answer)
    (count,) = struct.unpack_from("=I", answer.raw, 24)
    found: list[int] = []
    try:
        for identity in ids[:count]:
            with contextlib.suppress(FileNotFoundError):  # detached meanwhile
                found.append(_bpf(_PROG_GET_FD_BY_ID, struct.pack("=IIII", identity, 0, 0, 0)))
        yield found
    finally:
        for descriptor in found:
            os.close(descriptor)


def replace_cgroup_device(cgroup: int, program: int) -> None:
    """Attach a device program to a cgroup in the place of those it has, with no moment without one.

    The container's processes may attach more below (BPF_F_ALLOW_MULTI): all of them must then allow.
    """
    with _programs(cgroup, _CGROUP_DEVICE) as old:
        if len(old) == 1:
            _attach(cgroup, program, _F_ALLOW_MULTI | _F_REPLACE, old[0], _CGROUP_DEVICE)
            return
        _attach(cgroup, program, _F_ALLOW_MULTI, 0, _CGROUP_DEVICE)
        for descriptor in old:
            _bpf(_PROG_DETACH, struct.pack("=IIIII", cgroup, descriptor, _CGROUP_DEVICE, 0, 0))


def _attach(target: int, program: int, flags: int, replaced: int, kind: int) -> None:
    _bpf(_PROG_ATTACH, struct.pack("=IIIII", target, program, kind, flags, replaced))


_NAMES = {
    _MAP_CREATE: "BPF_MAP_CREATE",
    _MAP_LOOKUP: "BPF_MAP_LOOKUP_ELEM",
    _MAP_UPDATE: "BPF_MAP_UPDATE_ELEM",
    _MAP_DELETE: "BPF_MAP_DELETE_ELEM",
    _PROG_LOAD: "BPF_PROG_LOAD",
    _PROG_ATTACH: "BPF_PROG_ATTACH",
    _PROG_DETACH: "BPF_PROG_DETACH",
    _PROG_GET_FD_BY_ID: "BPF_PROG_GET_FD_BY_ID",
    _OBJ_GET_INFO_BY_FD: "BPF_OBJ_GET_INFO_BY_FD",
    _PROG_QUERY: "BPF_PROG_QUERY",
}


def _bpf(command: int, attributes: bytes) -> int:
    return _bpf_buffer(command, ctypes.create_string_buffer(attributes, len(attributes)))


def _bpf_buffer(command: int, attributes: ctypes.Array[ctypes.c_char]) -> int:
    machine = platform.machine()
    number = _NUMBERS.get(machine)
    if number is None:
        raise OSError(errno.ENOSYS, f"bpf({_NAMES[command]}): no system call number known for {machine}")
    libc = ctypes.CDLL(None, use_errno=True)
    result = int(libc.syscall(ctypes.c_long(number), ctypes.c_int(command), attributes, ctypes.c_uint(len(attributes))))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"bpf({_NAMES[command]}): {os.strerror(code)}")
    return result
