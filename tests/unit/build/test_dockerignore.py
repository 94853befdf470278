"""Patterns of .dockerignore, against the documented examples and against a plain reading of the rules."""

from __future__ import annotations

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seacan.build.ignore import BadPattern, Matcher, clean, excluded, glob, has_wildcards, read_ignore_file


@pytest.mark.parametrize(
    ("patterns", "path", "out"),
    [
        (["*/temp*"], "somedir/temporary.txt", True),
        (["*/temp*"], "temporary.txt", False),
        (["*/*/temp*"], "a/b/temporary.txt", True),
        (["temp?"], "tempa", True),
        (["temp?"], "temp/a", False),
        (["**/*.go"], "a.go", True),
        (["**/*.go"], "deep/down/a.go", True),
        (["*.md", "!README.md"], "README.md", False),
        (["*.md", "!README*.md", "README-secret.md"], "README-secret.md", True),
        (["docs"], "docs/a/b", True),
        (["docs", "!docs/a"], "docs/a/b", False),
        (["/docs"], "docs", False),
        (["docs/"], "docs/x", True),
        (["**"], "anything/at/all", True),
        (["a/**"], "a/b", True),
        (["a/**"], "a", False),
        (["**/b"], "b", True),
        (["**/b"], "a/bb", False),
        (["a**/c"], "axx/yy/c", True),
        (["[a-c]x"], "bx", True),
        (["[^a-c]x"], "bx", False),
        (["\\*"], "*", True),
        (["\\*"], "a", False),
        (["a.b"], "axb", False),
        (["./x/../y"], "y", True),
        (["."], "a", False),
    ],
)
def test_excludes_as_documented(patterns: list[str], path: str, out: bool) -> None:
    assert excluded(path, patterns) is out


def test_reads_the_file_as_docker_does() -> None:
    content = b"\xef\xbb\xbf# comment\n\n /abs/path \n! keep/./me\n # no comment\n../up\n"
    assert read_ignore_file(content) == ["abs/path", "!keep/me", "# no comment", "../up"]


@pytest.mark.parametrize("pattern", ["[", "[]a", "a[", "[a-", "a\\", "[-x]"])
def test_malformed_patterns_are_refused(pattern: str) -> None:
    with pytest.raises(BadPattern):
        Matcher([pattern])


def test_a_lonely_exclamation_mark_is_refused() -> None:
    with pytest.raises(BadPattern, match="illegal exclusion pattern"):
        Matcher(["!"])


def test_a_line_too_long_is_refused() -> None:
    with pytest.raises(BadPattern, match="token too long"):
        read_ignore_file(b"a" * 70000)


NAMES = st.text(alphabet="ab", min_size=1, max_size=2)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)
PIECES = st.sampled_from(["a", "b", "ab", "*", "?", "a*", "*b", "**"])
PATTERNS = st.tuples(st.booleans(), st.lists(PIECES, min_size=1, max_size=3).map("/".join)).map(
    lambda pair: ("!" if pair[0] else "") + pair[1]
)


def _matches(pattern: list[str], path: list[str]) -> bool:
    """The rules read plainly, component by component; ``**`` stands for any number of components."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        if len(pattern) == 1:
            return bool(path)
        return any(_matches(pattern[1:], path[at:]) for at in range(len(path) + 1))
    return bool(path) and fnmatch.fnmatchcase(path[0], pattern[0]) and _matches(pattern[1:], path[1:])


def _plainly(path: str, patterns: list[str]) -> bool:
    out = False
    for text in patterns:
        inverted = text.startswith("!")
        pieces = text.lstrip("!").split("/")
        parts = path.split("/")
        if any(_matches(pieces, parts[: count + 1]) for count in range(len(parts))):
            out = not inverted
    return out


@given(PATHS, st.lists(PATTERNS, max_size=4))
def test_agrees_with_a_plain_reading_of_the_rules(path: str, patterns: list[str]) -> None:
    assert Matcher(patterns).matches(path) is _plainly(path, patterns)


# With "!" the two may differ, in moby/patternmatcher as here: a pattern is tried only where it can change the verdict.
@given(PATHS, st.lists(PATTERNS.filter(lambda pattern: not pattern.startswith("!")), max_size=4))
def test_walking_down_says_the_same_as_asking_for_the_path(path: str, patterns: list[str]) -> None:
    matcher = Matcher(patterns)
    parts = path.split("/")
    said: tuple[bool, ...] = ()
    out = False
    for count in range(len(parts)):
        out, said = matcher.matches_below("/".join(parts[: count + 1]), said)
    assert out is matcher.matches(path)


@given(PATHS, PATHS, st.lists(PATTERNS, max_size=4))
def test_an_ignored_folder_is_skipped_only_if_nothing_comes_back(folder: str, inside: str, patterns: list[str]) -> None:
    matcher = Matcher(patterns)
    if matcher.matches(folder) and not matcher.may_return_below(folder):
        assert matcher.matches(f"{folder}/{inside}")


@given(st.text(alphabet="a/.", max_size=12))
def test_cleaning_is_idempotent(path: str) -> None:
    assert clean(clean(path)) == clean(path)
    assert clean(path)


@pytest.mark.parametrize(
    ("pattern", "name", "match"),
    [("*.txt", "a.txt", True), ("*.txt", ".txt", True), ("a?", "a/", False), ("[^a]", "b", True), ("\\[", "[", True)],
)
def test_wildcards_of_copy_are_go_s(pattern: str, name: str, match: bool) -> None:
    assert (glob(pattern).match(name) is not None) is match


def test_escaped_wildcards_are_none() -> None:
    assert has_wildcards("a*") and has_wildcards("[") and not has_wildcards("a\\*b")
