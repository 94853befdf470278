"""Quotes, escapes and the expansion of variables."""

from __future__ import annotations

import fnmatch
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seacan.build.dockerfile.words import Lexer, Pattern, WordError, go_quote

VARIABLES = {"PWD": "/home", "SHELL": "bash", "EMPTY": "", "FILE": "archive.tar.gz", "PATHS": "/a/b/c"}


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("hello", "hello"),
        ("he'll'o", "hello"),
        (r"he\'llo", "he'llo"),
        (r"abc\tdef", "abctdef"),
        (r'"abc\tdef"', r"abc\tdef"),
        (r"'abc\tdef'", r"abc\tdef"),
        ("$.", "$."),
        ("he$1x", "hex"),
        ("$PWD.", "/home."),
        (r"he\$PWD", "he$PWD"),
        ('"$PWD"', "/home"),
        ("'$PWD'", "$PWD"),
        ("${PWD}x", "/homex"),
        ("${nosuch}", ""),
        ("${nosuch:-default}", "default"),
        ("${EMPTY-default}", ""),
        ("${EMPTY:-default}", "default"),
        ("${nosuch:-${PWD:-deep}}", "/home"),
        ("${PWD:+set}", "set"),
        ("${EMPTY:+set}", ""),
        ("${EMPTY+set}", "set"),
        ("${FILE%.*}", "archive.tar"),
        ("${FILE%%.*}", "archive"),
        ("${FILE#*.}", "tar.gz"),
        ("${FILE##*.}", "gz"),
        ("${FILE#zip}", "archive.tar.gz"),
        ("${FILE/tar/zip}", "archive.zip.gz"),
        ("${PATHS//\\//-}", "-a-b-c"),
        ("${PATHS/\\/?/X}", "X/b/c"),
        ("${PWD?no}", "/home"),
    ],
)
def test_expands_as_the_reference_says(word: str, expected: str) -> None:
    assert Lexer().expand(word, VARIABLES).result == expected


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("he'llo", "looking for matching single-quote"),
        ('"hello', "looking for matching double-quote"),
        ("${}", "bad substitution"),
        ("${PWD", "missing '}'"),
        ("${PWD:=x}", "unsupported modifier (:=)"),
        ("${PWD:#x}", "unsupported modifier (:#)"),
        ("${nosuch?}", "nosuch: is not allowed to be unset"),
        ("${EMPTY:?}", "EMPTY: is not allowed to be empty"),
        ("${nosuch:?say why}", "nosuch: say why"),
        ("${PWD/x}", "missing '/' in ${}"),
        (r"${PWD#\x}", r"invalid escape '\x'"),
    ],
)
def test_refuses_what_is_malformed(word: str, message: str) -> None:
    with pytest.raises(WordError, match=re.escape(message)):
        Lexer().expand(word, VARIABLES)


def test_splits_expanded_text_at_spaces_and_quoted_text_not() -> None:
    variables = {"two": "b  c"}
    assert Lexer().expand('a$two "$two" d', variables).words == ["ab", "c", "b  c", "d"]


def test_tells_which_variables_were_found() -> None:
    expansion = Lexer().expand("$PWD ${nosuch:-$SHELL}", VARIABLES)
    assert expansion.matched == {"PWD", "SHELL"}
    assert expansion.unmatched == {"nosuch"}


def test_leaves_unset_variables_alone_when_asked() -> None:
    lexer = Lexer(skip_unset=True, raw_quotes=True)
    assert lexer.expand('"$PWD" $x ${y:-z} ${w%v}', VARIABLES).result == '"/home" $x ${y:-z} ${w%v}'


def test_reads_with_the_backtick_as_escape() -> None:
    assert Lexer("`").expand(r"C:\dir`$PWD", VARIABLES).result == r"C:\dir$PWD"


def test_a_word_nested_too_deep_is_an_error_and_no_crash() -> None:
    with pytest.raises(WordError):
        Lexer().expand("${a:-" * 5000 + "}" * 5000, {})


@given(st.text(alphabet=string.ascii_letters + " ./-_=:", max_size=60))
def test_text_without_special_characters_stays(text: str) -> None:
    assert Lexer().expand(text, {}).result == text


@given(st.text(max_size=60).filter(lambda text: "'" not in text))
def test_single_quotes_protect_everything(text: str) -> None:
    assert Lexer().expand(f"'{text}'", {"a": "b"}).result == text


@given(st.text(max_size=80))
def test_any_text_expands_or_is_refused(text: str) -> None:
    try:
        Lexer().expand(text, VARIABLES)
    except WordError as error:
        assert str(error).startswith("failed to process")


GLOBS = st.text(alphabet="ab*?", max_size=8)
TEXTS = st.text(alphabet="ab", max_size=10)


@given(GLOBS, TEXTS)
def test_prefix_patterns_match_as_globs_do(glob: str, text: str) -> None:
    ends = [end for end in range(len(text) + 1) if fnmatch.fnmatchcase(text[:end], glob)]
    pattern = Pattern.parse(glob)
    assert pattern.prefix(text, longest=False) == (ends[0] if ends else None)
    assert pattern.prefix(text, longest=True) == (ends[-1] if ends else None)


@given(st.text(alphabet="ab?*", min_size=1, max_size=6).filter(lambda glob: set(glob) != {"*"}), TEXTS)
def test_replacing_agrees_with_a_greedy_regular_expression(glob: str, text: str) -> None:
    expression = "".join({"*": ".*", "?": "."}.get(character, character) for character in glob)
    assert Pattern.parse(glob).replace(text, "X", everywhere=False) == re.sub(expression, "X", text, count=1)


def test_a_pattern_made_to_be_slow_is_not() -> None:
    pattern = Pattern.parse("*a" * 12 + "b")
    assert pattern.prefix("a" * 3000, longest=True) is None


@pytest.mark.parametrize(
    ("text", "quoted"), [("a", '"a"'), ('say "x"\n', r'"say \"x\"\n"'), ("\x01é", r'"\x01é"'), ("\u200b", r'"\u200b"')]
)
def test_quotes_as_go_does(text: str, quoted: str) -> None:
    assert go_quote(text) == quoted
