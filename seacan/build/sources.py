"""Remote sources as they are written: git repositories and files behind HTTP."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from seacan.build.dockerfile.words import go_quote
from seacan.errors import InvalidParameter

_SCP = re.compile(r"[a-zA-Z0-9-_]+@[a-zA-Z0-9.-]+:(?!//)[^#?]+")
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class GitReference:
    """``remote#reference:folder``, or the same as a query. ``keep_git_dir`` and ``submodules`` are None if not said."""

    remote: str
    reference: str = ""
    folder: str = ""
    checksum: str = ""
    keep_git_dir: bool | None = None
    submodules: bool | None = None


def is_commit(text: str) -> bool:
    """Is it a whole commit hash?"""
    return _COMMIT.fullmatch(text) is not None


def parse_git(text: str, *, bare_github: bool = False) -> GitReference | None:
    """Read a git URL; None where ``text`` is none. ``bare_github`` takes ``github.com/…`` too, as contexts may.

    :raises InvalidParameter: the query of a git URL contradicts itself.
    """
    if text.startswith(("./", "../", "/")):
        return None
    if bare_github and text.startswith("github.com/"):
        text = "https://" + text
        lenient = True
    else:
        lenient = False
    body, _, fragment = text.partition("#")
    query = ""
    if "://" in body:
        parts = urlsplit(body)
        scheme = parts.scheme.lower()
        if scheme not in ("http", "https", "git", "ssh"):
            return None
        if scheme in ("http", "https") and not lenient and not parts.path.endswith(".git"):
            return None
        query = parts.query
        body = body.partition("?")[0]
    else:
        body, _, query = body.partition("?")
        if _SCP.fullmatch(body) is None:
            return None
    reference, _, folder = fragment.partition(":")
    return _with_query(GitReference(body, reference, folder.strip("/")), query)


def _with_query(git: GitReference, query: str) -> GitReference:
    reference, folder, checksum = git.reference, git.folder, git.checksum
    keep: bool | None = None
    submodules: bool | None = None
    for key, values in parse_qs(query, keep_blank_values=True).items():
        if len(values) > 1:
            raise InvalidParameter(f"query {go_quote(key)} has multiple values")
        value = values[0]
        if not value and key not in ("submodules", "keep-git-dir"):
            raise InvalidParameter(f"query {go_quote(key)} has no value")
        if key in ("ref", "tag", "branch"):
            prefix = {"ref": "", "tag": "refs/tags/", "branch": "refs/heads/"}[key]
            wanted = prefix + value.removeprefix(prefix)
            if reference and reference != wanted:
                raise InvalidParameter(f"ref conflicts: {go_quote(reference)} vs {go_quote(wanted)}")
            reference = wanted
        elif key == "subdir":
            if folder and folder != value:
                raise InvalidParameter(f"subdir conflicts: {go_quote(folder)} vs {go_quote(value)}")
            folder = value
        elif key in ("checksum", "commit"):
            checksum = value
        elif key in ("submodules", "keep-git-dir"):
            if value not in ("", "1", "t", "T", "true", "TRUE", "True", "0", "f", "F", "false", "FALSE", "False"):
                raise InvalidParameter(f"invalid {key} value: {go_quote(value)}")
            truth = value == "" or value[0] in "1tT"
            if key == "submodules":
                submodules = truth
            else:
                keep = truth
        else:
            raise InvalidParameter(f"unexpected query {go_quote(key)}")
    return GitReference(git.remote, reference, folder, checksum, keep, submodules)


def is_http(text: str) -> bool:
    """Is it a file behind HTTP, and no git repository?"""
    return text.startswith(("http://", "https://")) and parse_git(text) is None


def http_filename(url: str) -> str:
    """What a file fetched from ``url`` is called."""
    name = urlsplit(url).path.rstrip("/").rpartition("/")[2]
    return name if name not in ("", ".", "..") else "__unnamed__"
