"""Names of images, by the reference grammar."""

from __future__ import annotations

import pytest

from seacan.errors import InvalidParameter
from seacan.images import reference as references
from seacan.images.reference import Reference
from seacan.images.store import matches

SHA = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "normalised", "familiar"),
    [
        ("busybox", "docker.io/library/busybox", "busybox"),
        ("busybox:1", "docker.io/library/busybox:1", "busybox:1"),
        ("docker.io/busybox", "docker.io/library/busybox", "busybox"),
        ("index.docker.io/library/busybox", "docker.io/library/busybox", "busybox"),
        ("user/app:v1", "docker.io/user/app:v1", "user/app:v1"),
        ("library/a/b", "docker.io/library/a/b", "library/a/b"),
        ("localhost/app", "localhost/app", "localhost/app"),
        ("Localhost/app", "Localhost/app", "Localhost/app"),
        ("r.example:5000/a/b:c", "r.example:5000/a/b:c", "r.example:5000/a/b:c"),
        ("[::1]:5000/a", "[::1]:5000/a", "[::1]:5000/a"),
        (f"busybox@{SHA}", f"docker.io/library/busybox@{SHA}", f"busybox@{SHA}"),
        (f"a.b/c:d@{SHA}", f"a.b/c:d@{SHA}", f"a.b/c:d@{SHA}"),
        ("a__b/c-d.e--f", "docker.io/a__b/c-d.e--f", "a__b/c-d.e--f"),
    ],
)
def test_names_are_normalised_and_shown_short(text: str, normalised: str, familiar: str) -> None:
    reference = references.parse(text)
    assert str(reference) == normalised
    assert reference.familiar == familiar
    assert references.parse(str(reference)) == reference


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "invalid reference format"),
        ("a..b", "invalid reference format"),
        ("-a", "invalid reference format"),
        ("a/", "invalid reference format"),
        ("a:", "invalid reference format"),
        ("a b", "invalid reference format"),
        ("a:b:c", "invalid reference format"),
        ("a@sha256:12", "invalid reference format"),
        ("é", "invalid reference format"),
        ("a\n", "invalid reference format"),
        ("a:" + "x" * 129, "invalid reference format"),
        ("Upper", r"invalid reference format: repository name \(library/Upper\) must be lowercase"),
        ("a/Upper:1", r"repository name \(a/Upper\) must be lowercase"),
        ("0123456789abcdef" * 4, "cannot specify 64-byte hexadecimal strings"),
        ("a/" * 200 + "b", "repository name must not be more than 255 characters"),
        (f"a@sha512:{'0' * 64}", "invalid checksum digest length"),
        ("x" * 100_000, "invalid reference format"),
    ],
)
def test_what_is_no_name_is_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        references.parse(text)


def test_tags_and_digests() -> None:
    reference = references.parse("a")
    assert reference.with_default_tag().tag == "latest"
    assert reference.tagged("1").digested(SHA) == Reference("docker.io", "library/a", "", SHA)
    with pytest.raises(InvalidParameter, match="invalid tag format"):
        reference.tagged("-x")


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("busybox", "busybox:1", True),
        ("busybox:1", "busybox:1", True),
        ("busybox:2", "busybox:1", False),
        ("busy*", "busybox:1", True),
        ("*:1", "busybox:1", True),
        ("*", "a/b:1", False),
        ("*/*", "a/b:1", True),
        ("r.example/*/b", "r.example/a/b:1", True),
        ("busybo?", "busybox:1", True),
    ],
)
def test_the_reference_filter(pattern: str, name: str, fits: bool) -> None:
    assert matches(pattern, references.parse(name)) is fits
