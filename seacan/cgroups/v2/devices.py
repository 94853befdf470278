"""Devices on v2: no controller but an eBPF program (BPF_PROG_TYPE_CGROUP_DEVICE) attached to the cgroup."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from seacan.cgroups.device_rules import Rule, rules

if TYPE_CHECKING:
    from seacan.linux.bpf import Assembler
    from seacan.runtime.spec import LinuxResources

_ACCESS = {"m": 1, "r": 2, "w": 4}  # BPF_DEVCG_ACC_*
_KIND = {"b": 1, "c": 2}  # BPF_DEVCG_DEV_*


def apply(directory: str, resources: LinuxResources) -> None:
    """Replace the device programs of this cgroup by one for these rules; without rules, change nothing."""
    wanted = rules(resources)
    if not wanted:
        return
    from seacan.linux import bpf

    program = bpf.load_cgroup_device(assemble(wanted))
    try:
        cgroup = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            bpf.replace_cgroup_device(cgroup, program)
        finally:
            os.close(cgroup)
    finally:
        os.close(program)


def assemble(wanted: list[Rule]) -> bytes:
    """The program: each access bit asked for is decided by the last rule that names it; no rule at all allows, as on
    v1.

    struct bpf_cgroup_dev_ctx { __u32 access_type /* (access << 16) | type */; __u32 major; __u32 minor; }
    """
    from seacan.linux.bpf import R0, R1, R2, R3, R4, R5, Assembler

    program = Assembler()
    program.load_word(R2, R1, 0)
    program.move_register(R3, R2)
    program.and_constant(R2, 0xFFFF)
    program.shift_right(R3, 16)
    program.load_word(R4, R1, 4)
    program.load_word(R5, R1, 8)
    for rule in reversed(wanted):
        following = program.label()
        if rule.type != "a":
            program.jump_unless_equal(R2, _KIND[rule.type], following)
        if rule.major is not None:
            program.jump_unless_equal(R4, rule.major, following)
        if rule.minor is not None:
            program.jump_unless_equal(R5, rule.minor, following)
        access = sum(_ACCESS[letter] for letter in rule.access)
        if access == 7:
            _decide(program, rule.allow)
            if rule.type == "a":  # nothing can follow, and the verifier refuses unreachable instructions
                return program.finish()
        elif rule.allow:
            program.and_constant(R3, 7 & ~access)
            program.jump_unless_equal(R3, 0, following)
            _decide(program, True)
        else:
            program.move_register(R0, R3)
            program.and_constant(R0, access)
            program.jump_if_equal(R0, 0, following)
            _decide(program, False)
        program.place(following)
    _decide(program, True)
    return program.finish()


def _decide(program: Assembler, allow: bool) -> None:
    from seacan.linux.bpf import R0

    program.move_constant(R0, int(allow))
    program.exit()
