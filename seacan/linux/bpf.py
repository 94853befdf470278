"""bpf(2), as far as cgroup v2's device programs need it: an assembler for their few instructions, load and attach.

Instruction encoding: Documentation/bpf/standardization/instruction-set.rst of the kernel.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

R0, R1, R2, R3, R4, R5 = range(6)

_LDX_MEM_W = 0x61
_ALU_AND_K = 0x54  # 32-bit
_ALU_RSH_K = 0x74
_ALU64_MOV_K = 0xB7
_ALU_MOV_X = 0xBC
_JMP32_JNE_K = 0x56
_JMP32_JEQ_K = 0x16
_EXIT = 0x95

_PROG_LOAD, _PROG_ATTACH, _PROG_DETACH, _PROG_GET_FD_BY_ID, _PROG_QUERY = 5, 8, 9, 13, 16
_PROG_TYPE_CGROUP_DEVICE = 15
_CGROUP_DEVICE = 6  # enum bpf_attach_type
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
        self._code.append((_LDX_MEM_W, destination, source, offset, 0))

    def move_register(self, destination: int, source: int) -> None:
        self._code.append((_ALU_MOV_X, destination, source, 0, 0))

    def move_constant(self, destination: int, value: int) -> None:
        self._code.append((_ALU64_MOV_K, destination, 0, 0, value))

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

    def _jump(self, opcode: int, register: int, value: int, label: int) -> None:
        self._jumps.append((len(self._code), label))
        self._code.append((opcode, register, 0, 0, value))

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
    code = ctypes.create_string_buffer(program, len(program))
    license_ = ctypes.create_string_buffer(b"Apache")
    log = ctypes.create_string_buffer(0)
    attributes = struct.pack(
        "=IIQQIIQII",
        _PROG_TYPE_CGROUP_DEVICE,
        len(program) // 8,
        ctypes.addressof(code),
        ctypes.addressof(license_),
        0,
        0,
        0,
        0,
        0,
    )
    try:
        return _bpf(_PROG_LOAD, attributes)
    except OSError as failure:
        if failure.errno == errno.EPERM:
            raise
        log = ctypes.create_string_buffer(65536)
        attributes = struct.pack(
            "=IIQQIIQII",
            _PROG_TYPE_CGROUP_DEVICE,
            len(program) // 8,
            ctypes.addressof(code),
            ctypes.addressof(license_),
            1,
            len(log),
            ctypes.addressof(log),
            0,
            0,
        )
        try:
            return _bpf(_PROG_LOAD, attributes)
        except OSError as again:
            said = log.value.decode(errors="replace").strip()
            raise OSError(again.errno, f"bpf(BPF_PROG_LOAD): {os.strerror(again.errno or 0)}: {said}") from failure


def cgroup_device_programs(cgroup: int) -> list[int]:
    """The ids of the device programs attached to the cgroup itself."""
    ids = (ctypes.c_uint32 * 64)()
    attributes = bytearray(struct.pack("=IIIIQI", cgroup, _CGROUP_DEVICE, 0, 0, ctypes.addressof(ids), len(ids)))
    answer = ctypes.create_string_buffer(bytes(attributes) + bytes(64), len(attributes) + 64)
    _bpf_buffer(_PROG_QUERY, answer)
    (count,) = struct.unpack_from("=I", answer.raw, 24)
    return list(ids[:count])


def replace_cgroup_device(cgroup: int, program: int) -> None:
    """Attach a device program to a cgroup in the place of those it has, with no moment without one.

    The container's processes may attach more below (BPF_F_ALLOW_MULTI): all of them must then allow.
    """
    old = []
    try:
        for identity in cgroup_device_programs(cgroup):
            try:
                old.append(_bpf(_PROG_GET_FD_BY_ID, struct.pack("=IIII", identity, 0, 0, 0)))
            except FileNotFoundError:  # detached meanwhile
                continue
        if len(old) == 1:
            _attach(cgroup, program, _F_ALLOW_MULTI | _F_REPLACE, old[0])
            return
        _attach(cgroup, program, _F_ALLOW_MULTI, 0)
        for descriptor in old:
            _bpf(_PROG_DETACH, struct.pack("=IIIII", cgroup, descriptor, _CGROUP_DEVICE, 0, 0))
    finally:
        for descriptor in old:
            os.close(descriptor)


def _attach(cgroup: int, program: int, flags: int, replaced: int) -> None:
    _bpf(_PROG_ATTACH, struct.pack("=IIIII", cgroup, program, _CGROUP_DEVICE, flags, replaced))


_NAMES = {
    _PROG_LOAD: "BPF_PROG_LOAD",
    _PROG_ATTACH: "BPF_PROG_ATTACH",
    _PROG_DETACH: "BPF_PROG_DETACH",
    _PROG_GET_FD_BY_ID: "BPF_PROG_GET_FD_BY_ID",
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
