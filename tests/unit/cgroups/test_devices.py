"""Device rules, as v1 writes them and as the v2 program decides them."""

import struct

import pytest

from seacan.cgroups.device_rules import RUNTIME_RULES, Rule, rules
from seacan.cgroups.v2.devices import assemble
from seacan.errors import InvalidParameter
from seacan.runtime.spec import LinuxDeviceCgroup, LinuxResources

DENY_ALL = LinuxDeviceCgroup(allow=False, access="rwm")
READ, WRITE, MKNOD = 2, 4, 1


def run(program: bytes, kind: str, major: int, minor: int, access: int) -> bool:
    """Interpret the few instructions that device programs use."""
    context = struct.pack("=III", access << 16 | {"b": 1, "c": 2}[kind], major, minor)
    registers = [0] * 11
    position = 0
    while True:
        code, both, offset, immediate = struct.unpack_from("=BBhi", program, position * 8)
        to, source = both & 15, both >> 4
        position += 1
        if code == 0x61:
            registers[to] = struct.unpack_from("=I", context, offset)[0]
        elif code == 0x54:
            registers[to] &= immediate & 0xFFFFFFFF
        elif code == 0x74:
            registers[to] >>= immediate
        elif code == 0xB7:
            registers[to] = immediate
        elif code == 0xBC:
            registers[to] = registers[source]
        elif code == 0x56:
            position += offset if registers[to] != immediate & 0xFFFFFFFF else 0
        elif code == 0x16:
            position += offset if registers[to] == immediate & 0xFFFFFFFF else 0
        else:
            assert code == 0x95
            return bool(registers[0])


def decide(wanted: list[Rule], kind: str, major: int, minor: int, access: int) -> bool:
    return run(assemble(wanted), kind, major, minor, access)


def test_what_no_rule_allows_is_denied() -> None:
    wanted = [Rule(False, "a", None, None, "rwm"), Rule(True, "c", 1, 3, "rwm")]
    assert decide(wanted, "c", 1, 3, READ | WRITE)
    assert not decide(wanted, "c", 1, 4, READ)
    assert not decide(wanted, "b", 1, 3, READ)


def test_every_access_asked_for_must_be_allowed() -> None:
    wanted = [Rule(False, "a", None, None, "rwm"), Rule(True, "c", 5, None, "r")]
    assert decide(wanted, "c", 5, 9, READ)
    assert not decide(wanted, "c", 5, 9, READ | WRITE)


def test_two_rules_together_can_allow_what_neither_does() -> None:
    wanted = [
        Rule(False, "a", None, None, "rwm"),
        Rule(True, "c", None, None, "m"),
        Rule(True, "c", 1, 3, "rw"),
    ]
    assert decide(wanted, "c", 1, 3, READ | WRITE | MKNOD)
    assert decide(wanted, "c", 7, 7, MKNOD)
    assert not decide(wanted, "c", 7, 7, MKNOD | READ)


def test_a_later_rule_overrides_an_earlier_one() -> None:
    wanted = [
        Rule(False, "a", None, None, "rwm"),
        Rule(True, "b", 8, None, "rwm"),
        Rule(False, "b", 8, 1, "w"),
    ]
    assert decide(wanted, "b", 8, 2, READ | WRITE)
    assert decide(wanted, "b", 8, 1, READ)
    assert not decide(wanted, "b", 8, 1, READ | WRITE)


def test_without_a_rule_for_everything_the_rest_stays_open() -> None:
    assert decide([Rule(False, "c", 1, 1, "rwm")], "c", 1, 2, READ)
    assert not decide([Rule(False, "c", 1, 1, "rwm")], "c", 1, 1, READ)


def test_rules_made_void_are_left_out() -> None:
    twice = [DENY_ALL, LinuxDeviceCgroup(allow=True, type="c", major=1, minor=5, access="rwm")] * 2
    never_allowed = LinuxDeviceCgroup(allow=False, type="c", major=10, minor=229, access="rwm")
    found = rules(LinuxResources(devices=[*twice, never_allowed]))
    assert found[0] == Rule(False, "a", None, None, "rwm")
    assert [rule.allow for rule in found].count(False) == 1
    assert set(RUNTIME_RULES) <= set(found)


def test_allowing_everything_needs_no_more_rules() -> None:
    allow_all = LinuxDeviceCgroup(allow=True, access="rwm")
    assert rules(LinuxResources(devices=[DENY_ALL, allow_all, *([allow_all] * 3)])) == [
        Rule(True, "a", None, None, "rwm")
    ]


def test_no_rules_change_nothing() -> None:
    assert rules(LinuxResources()) == []


def test_all_types_with_a_number_does_not_become_all_devices() -> None:
    found = rules(LinuxResources(devices=[DENY_ALL, LinuxDeviceCgroup(allow=True, type="a", major=9, access="r")]))
    assert Rule(True, "b", 9, None, "r") in found
    assert Rule(True, "c", 9, None, "r") in found
    assert Rule(True, "a", None, None, "rwm") not in found


@pytest.mark.parametrize(
    "device",
    [
        LinuxDeviceCgroup(allow=True, type="x"),
        LinuxDeviceCgroup(allow=True, type="c", access="rwx"),
        LinuxDeviceCgroup(allow=True, type="c", major=-2),
        LinuxDeviceCgroup(allow=True, type="c", minor=1 << 40),
    ],
)
def test_a_rule_that_cannot_be_is_refused(device: LinuxDeviceCgroup) -> None:
    with pytest.raises(InvalidParameter):
        rules(LinuxResources(devices=[device]))
