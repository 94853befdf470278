"""The command line's grammar is pflag's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seacan.cli.flags import (
    Flag,
    FlagError,
    go_format,
    parse,
    parse_bool,
    parse_bytes,
    parse_duration,
    parse_label,
    parse_ulimit,
)
from seacan.errors import InvalidParameter

FLAGS = [Flag("all", "a", boolean=True), Flag("tty", "t", boolean=True), Flag("env", "e"), Flag("size", bare="yes")]


def texts(arguments: list[str], *, interspersed: bool = True) -> tuple[list[tuple[str, str]], list[str]]:
    found, rest = parse(arguments, FLAGS, interspersed=interspersed)
    return [(flag.name, value) for flag, value in found], rest


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--all"], [("all", "true")]),
        (["--all=false"], [("all", "false")]),
        (["-a=false"], [("all", "false")]),
        (["-at"], [("all", "true"), ("tty", "true")]),
        (["-ateX=1"], [("all", "true"), ("tty", "true"), ("env", "X=1")]),
        (["-e", "X"], [("env", "X")]),
        (["-eX"], [("env", "X")]),
        (["-e=X"], [("env", "X")]),
        (["--env", "--all"], [("env", "--all")]),
        (["--env="], [("env", "")]),
        (["--size"], [("size", "yes")]),
        (["--size=no"], [("size", "no")]),
    ],
)
def test_flags_take_their_values_as_pflag_says(arguments: list[str], expected: list[tuple[str, str]]) -> None:
    assert texts(arguments) == (expected, [])


def test_a_boolean_does_not_take_the_next_argument() -> None:
    assert texts(["--all", "false"]) == ([("all", "true")], ["false"])


def test_flags_may_stand_between_arguments_unless_the_command_ends_them() -> None:
    assert texts(["x", "-a", "y"]) == ([("all", "true")], ["x", "y"])
    assert texts(["-a", "x", "-t", "y"], interspersed=False) == ([("all", "true")], ["x", "-t", "y"])


def test_two_dashes_end_the_flags() -> None:
    assert texts(["-a", "--", "-t"]) == ([("all", "true")], ["-t"])
    assert texts(["-"]) == ([], ["-"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nope"], "unknown flag: --nope"),
        (["-ax"], "unknown shorthand flag: 'x' in -ax"),
        (["--env"], "flag needs an argument: --env"),
        (["-ae"], "flag needs an argument: 'e' in -ae"),
        (["---a"], "bad flag syntax: ---a"),
        (["--=x"], "bad flag syntax: --=x"),
    ],
)
def test_mistakes_are_told_in_pflags_words(arguments: list[str], message: str) -> None:
    with pytest.raises(FlagError) as failure:
        texts(arguments)
    assert failure.value.message == message


@given(st.lists(st.text(max_size=6), max_size=6))
def test_every_command_line_is_parsed_or_refused(arguments: list[str]) -> None:
    try:
        found, rest = parse(arguments, FLAGS)
    except FlagError:
        return
    assert len(found) + len(rest) <= sum(max(len(argument), 1) for argument in arguments)


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("1024", 1024), ("64m", 64 << 20), ("64MiB", 64 << 20), ("1.5g", 3 << 29), ("32 kb", 32768), ("1B", 1)],
)
def test_sizes_have_binary_units(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "m", "-1", "1x", "1.m", "1 2"])
def test_bad_sizes_are_refused(text: str) -> None:
    with pytest.raises(InvalidParameter, match="invalid size"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [("0", 0), ("1s", 10**9), ("1m30s", 90 * 10**9), ("1.5h", 5400 * 10**9), ("-2ms", -2 * 10**6), ("3µs", 3000)],
)
def test_durations_are_gos(text: str, nanoseconds: int) -> None:
    assert parse_duration(text) == nanoseconds


@pytest.mark.parametrize(
    ("text", "message"),
    [("5", 'time: missing unit in duration "5"'), ("", 'time: invalid duration ""'), ("1x", 'invalid duration "1x"')],
)
def test_bad_durations_are_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        parse_duration(text)


def test_booleans_are_gos() -> None:
    assert [parse_bool(text) for text in ("1", "t", "TRUE", "0", "False")] == [True, True, True, False, False]
    with pytest.raises(InvalidParameter):
        parse_bool("yes")


def test_ulimits_have_a_soft_and_a_hard_limit() -> None:
    assert parse_ulimit("nofile=1024:2048") == ("nofile", 1024, 2048)
    assert parse_ulimit("core=-1") == ("core", -1, -1)
    for text, message in (
        ("nofile", "invalid ulimit argument"),
        ("files=1", "invalid ulimit type"),
        ("nofile=2:1", "soft limit must be less"),
        ("nofile=1:2:3", "too many limit value"),
    ):
        with pytest.raises(InvalidParameter, match=message):
            parse_ulimit(text)


def test_labels_need_a_name_without_white_space() -> None:
    assert parse_label("a=b c") == "a=b c"
    for text in ("=x", "a b=c"):
        with pytest.raises(InvalidParameter):
            parse_label(text)


def test_values_print_as_go_prints_them() -> None:
    assert go_format({"b": [1, True], "a": None, "c": 2.0}) == "map[a:<nil> b:[1 true] c:2]"
