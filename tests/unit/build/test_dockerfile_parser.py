"""Lines, continuation, comments, directives, here-documents and errors of a Dockerfile."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seacan.build.dockerfile.instructions import Copy, Env, Healthcheck, Run, parse_mount, parse_stages
from seacan.build.dockerfile.lint import Checks
from seacan.build.dockerfile.parser import LONGEST_LINE, DockerfileError, directive, heredoc, parse
from seacan.build.dockerfile.suggest import nearest


def lines(text: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(line.name, line.arguments) for line in parse(text.encode()).lines]


def test_continues_lines_and_leaves_comments_out() -> None:
    text = "FROM x\nRUN a \\\n  # comment\n\n  b && \\\n c\n"
    assert lines(text) == [("FROM", ("x",)), ("RUN", ("a   b &&  c",))]


def test_an_escaped_backslash_continues_nothing() -> None:
    assert lines("FROM x\nRUN a \\\\\nRUN b") == [("FROM", ("x",)), ("RUN", ("a \\\\",)), ("RUN", ("b",))]


def test_the_escape_directive_changes_the_continuation() -> None:
    document = parse(b"# escape=`\nFROM x\nRUN dir C:\\\nRUN a `\n b\n")
    assert document.escape == "`"
    assert [line.arguments for line in document.lines] == [("x",), ("dir C:\\",), ("a  b",)]


def test_an_empty_continuation_line_is_a_warning() -> None:
    document = parse(b"FROM x\nRUN a \\\n\n b\n")
    assert [(warning.rule, warning.line) for warning in document.warnings] == [("NoEmptyContinuation", 4)]


def test_json_arrays_are_told_from_shell_words() -> None:
    document = parse(b'FROM x\nCMD ["a", "b c"]\nCMD [a, b]\nCOPY ["a b", "/c"]\n')
    assert [(line.json, line.arguments) for line in document.lines[1:]] == [
        (True, ("a", "b c")),
        (False, ("[a, b]",)),
        (True, ("a b", "/c")),
    ]


def test_a_json_array_of_something_else_is_refused() -> None:
    with pytest.raises(DockerfileError, match="arrays must be comprised of strings only"):
        parse(b'FROM x\nCMD ["a", 1]\n')


def test_heredocs_are_collected_with_their_options() -> None:
    document = parse(b"FROM x\nRUN <<-'A' cat; <<B\n\tone\n\tA\ntwo\nB\nRUN next\n")
    first, second = document.lines[1].heredocs
    assert (first.name, first.expand, first.chomp, first.text) == ("A", False, True, "one\n")
    assert (second.name, second.expand, second.text) == ("B", True, "two\n")
    assert document.lines[2].arguments == ("next",)


@pytest.mark.parametrize(
    ("word", "name"), [("<<EOF", "EOF"), ('3<<-"E O"', "E O"), ("<<", None), ("a<<b", None), ("<<<x", None)]
)
def test_tells_heredocs_from_other_words(word: str, name: str | None) -> None:
    found = heredoc(word)
    assert (found.name if found else None) == name


def test_flags_end_at_the_first_word_that_is_none() -> None:
    line = parse(b"FROM x\nCOPY --chown=a:b --link --exclude='x y' -- --src /dst\n").lines[1]
    assert line.flags == ("--chown=a:b", "--link", "--exclude=x y")
    assert line.arguments == ("--src", "/dst")


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 0, "file with no instructions"),
        ("# only a comment", 1, "file with no instructions"),
        ("FROM x\nRUN <<EOF\nabc\n", 2, "unterminated heredoc"),
        ("FROM x\nENV a\n", 2, "ENV must have two arguments"),
        ("FROM x\nENV a=b c\n", 2, 'can\'t find = in "c"'),
        ("# escape=x\nFROM x", 1, "invalid escape token 'x' does not match ` or \\"),
        ("# escape=`\n# escape=\\\nFROM x", 2, "only one escape parser directive can be used"),
    ],
)
def test_errors_say_where(text: str, line: int, message: str) -> None:
    with pytest.raises(DockerfileError) as caught:
        parse(text.encode())
    assert message in str(caught.value)
    assert caught.value.location is not None
    assert caught.value.location.start == line


def test_a_giant_line_is_refused() -> None:
    with pytest.raises(DockerfileError, match="line greater than max allowed size of 65535"):
        parse(b"FROM x\nRUN " + b"a" * (LONGEST_LINE + 1))


def test_finds_the_syntax_directive_in_all_its_forms() -> None:
    assert directive("#!/usr/bin/x\n# syntax = docker/dockerfile:1 \nFROM a", "syntax") == "docker/dockerfile:1"
    assert directive("// syntax=a/b\n{}", "syntax") == "a/b"
    assert directive('{"syntax": "c/d"}', "syntax") == "c/d"
    assert directive("FROM x\n# syntax=late", "syntax") is None


def stages(text: str, checks: Checks | None = None):  # type: ignore[no-untyped-def]
    return parse_stages(parse(text.encode()), checks or Checks())[0]


@pytest.mark.parametrize(
    ("text", "message", "column"),
    [
        ("FROM x\nRUNN a", "line 2: unknown instruction: RUNN (did you mean RUN?)", 1),
        ("FROM x\nCOPY --chwn=1 a b", "unknown flag: --chwn (did you mean chown?)", 6),
        ("FROM x\nCOPY --link=maybe a b", "expecting boolean value for flag --link, not: maybe", 0),
        ("FROM x\nCOPY a", "COPY requires at least two arguments, but only one was provided", 0),
        ("FROM x\nFROM a b", "FROM requires either one or three arguments", 0),
        ("FROM x AS 1a", 'invalid name for build stage: "1a"', 0),
        ("FROM x\nONBUILD FROM y", "FROM isn't allowed as an ONBUILD trigger", 0),
        ("FROM x\nONBUILD ONBUILD RUN y", "Chaining ONBUILD", 0),
        ("FROM x\nHEALTHCHECK --interval=1us CMD a", 'Interval "interval" cannot be less than 1ms', 0),
        ("FROM x\nHEALTHCHECK NOPE a", 'Unknown type "NOPE" in HEALTHCHECK (try CMD)', 0),
        ("FROM x\nRUN --network=lan a", 'invalid network mode "lan"', 0),
        ("FROM x\nRUN --mount=from=$x a", "'from' doesn't support variable expansion", 0),
        ("FROM x\nSHELL /bin/sh -c", "SHELL requires the arguments to be in JSON form", 0),
        ("FROM x\nARG =a", "ARG names can not be blank", 0),
        ('FROM x\nVOLUME ["a", ""]', "VOLUME specified can not be an empty string", 0),
        ("RUN a\nFROM x", "no build stage in current context", 0),
    ],
)
def test_instructions_are_refused_in_buildkits_words(text: str, message: str, column: int) -> None:
    with pytest.raises(DockerfileError) as caught:
        stages(text)
    assert message in str(caught.value)
    assert caught.value.location is not None
    if column:
        assert caught.value.location.column == column


def test_instructions_become_data() -> None:
    stage = stages(
        "FROM --platform=linux/arm64 x:1 AS Build\n"
        'ENV a=b "c d"=e\n'
        "COPY --from=other --chown=1:2 --parents a b /c/\n"
        "RUN --mount=type=cache,target=/x --network=none make\n"
        "HEALTHCHECK --interval=1m30s --retries=3 CMD curl x\n"
    )[0]
    env, copy, run, health = stage.instructions
    assert (stage.base, stage.name, stage.platform) == ("x:1", "build", "linux/arm64")
    assert isinstance(env, Env)
    assert [(pair.key, pair.value) for pair in env.pairs] == [("a", "b"), ('"c d"', "e")]
    assert isinstance(copy, Copy)
    assert (copy.origin, copy.chown, copy.parents, copy.sources, copy.destination) == (
        "other", "1:2", True, ("a", "b"), "/c/",
    )  # fmt: skip
    assert isinstance(run, Run)
    assert (run.mounts, run.network) == (("type=cache,target=/x",), "none")
    assert isinstance(health, Healthcheck)
    assert (health.test, health.interval, health.retries) == (("CMD-SHELL", "curl x"), 90 * 10**9, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("type=bnd,target=/x", 'unsupported mount type "bnd" (did you mean bind?)'),
        ("type=cache,target=/x,shring=locked", "unexpected key 'shring' in 'shring=locked' (did you mean sharing?)"),
        ("type=bind,target=/x,uid=1", 'uid not allowed for "bind" type mounts'),
        ("type=secret", "invalid secret mount. one of source, target required"),
        ("type=secret,id=a,from=b", "secret mount should not have a from"),
        ("type=tmpfs,target=/x,size=many", "invalid value for size: many"),
        ("type=cache,target=/x,mode=9", "invalid value 9 for mode"),
        ("type=bind,target=/x,required", "unexpected key 'required' for mount type 'bind'"),
    ],
)
def test_mounts_are_refused_in_buildkits_words(text: str, message: str) -> None:
    with pytest.raises(DockerfileError) as caught:
        parse_mount(text, lambda word: word)
    assert message in str(caught.value)


def test_mounts_are_read_only_where_nothing_else_is_said() -> None:
    def read(text: str) -> bool:
        return parse_mount(text, lambda word: word).read_only

    assert read("type=bind,target=/x")
    assert not read("type=bind,target=/x,rw")
    assert not read("type=cache,target=/x")
    assert read("type=cache,target=/x,readonly")


def test_checks_can_be_skipped_for_the_file_and_for_a_line() -> None:
    checks = Checks()
    stages("FROM x as Y\n", checks)
    assert {finding.rule.name for finding in checks.findings} == {"FromAsCasing", "StageNameCasing"}
    skipping = Checks.parse("skip=FromAsCasing")
    stages("ARG A=1\n# check=skip=StageNameCasing\nFROM x as Y\n", skipping)
    assert skipping.findings == []


@pytest.mark.parametrize("text", ["skip", "nonsense=1", "error=maybe"])
def test_malformed_check_options_are_refused(text: str) -> None:
    with pytest.raises(DockerfileError):
        Checks.parse(text)


def test_suggests_only_what_is_near() -> None:
    assert nearest("COPI", ["COPY", "CMD"]) == "COPY"
    assert nearest("zzzzz", ["COPY", "CMD"]) == ""
    assert nearest("copi", ["COPY"], case_sensitive=False) == "copy"


CORPUS = sorted(Path(__file__).with_name("corpus").glob("*.Dockerfile"))


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_real_dockerfiles_parse(path: Path) -> None:
    parsed, _ = parse_stages(parse(path.read_bytes()), Checks())
    assert parsed
    source = path.read_text()
    assert len(parsed) == sum(line.upper().startswith("FROM ") for line in source.splitlines())


@given(st.text(max_size=300))
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        parse_stages(parse(text.encode("utf-8", "surrogatepass")), Checks())
    except DockerfileError as error:
        assert str(error)
