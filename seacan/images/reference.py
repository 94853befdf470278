"""Image references: the grammar of the ``distribution/reference`` specification, and Docker's short names.

``busybox`` means ``docker.io/library/busybox:latest``; Docker shows the *familiar* form, the shortest
that means the same.
Grammar: https://pkg.go.dev/github.com/distribution/reference
"""

from __future__ import annotations

import re
from typing import Self

import msgspec

from seacan.errors import InvalidParameter

DEFAULT_DOMAIN = "docker.io"
DEFAULT_TAG = "latest"
_LEGACY_DOMAIN = "index.docker.io"
_OFFICIAL = "library/"
_NAME_LIMIT = 255

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = rf"{_COMPONENT}(?:/{_COMPONENT})*"
_DOMAIN_COMPONENT = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = rf"(?:{_DOMAIN_COMPONENT}(?:\.{_DOMAIN_COMPONENT})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_TAG = r"[\w][\w.-]{0,127}"
_DIGEST = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"

_REFERENCE = re.compile(rf"((?:{_DOMAIN}/)?{_PATH})(?::({_TAG}))?(?:@({_DIGEST}))?", re.ASCII)
_ANCHORED_TAG = re.compile(_TAG, re.ASCII)
_ANCHORED_DIGEST = re.compile(_DIGEST, re.ASCII)
_IDENTIFIER = re.compile(r"[a-f0-9]{64}")
_DIGEST_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}
_TEXT_LIMIT = 8192


class Reference(msgspec.Struct, frozen=True, order=True):
    """A normalised reference: ``domain`` and ``path`` are never empty; ``tag`` and ``digest`` may be."""

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """``docker.io/library/busybox``"""
        return f"{self.domain}/{self.path}"

    @property
    def familiar_name(self) -> str:
        """``busybox``"""
        if self.domain == DEFAULT_DOMAIN:
            rest = self.path.removeprefix(_OFFICIAL)
            return rest if "/" not in rest else self.path
        return self.name

    @property
    def familiar(self) -> str:
        """As Docker prints it: ``busybox:latest``, ``busybox@sha256:…``."""
        return self.familiar_name + self._suffix

    def __str__(self) -> str:
        return self.name + self._suffix

    @property
    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    @property
    def name_only(self) -> bool:
        return not self.tag and not self.digest

    def tagged(self, tag: str) -> Self:
        """With another tag and no digest. Raises :class:`InvalidParameter` for a malformed one."""
        if not _ANCHORED_TAG.fullmatch(tag):
            raise InvalidParameter("invalid tag format")
        return msgspec.structs.replace(self, tag=tag, digest="")

    def digested(self, digest: str) -> Self:
        """With a digest and no tag."""
        _check_digest(digest)
        return msgspec.structs.replace(self, tag="", digest=digest)

    def with_default_tag(self) -> Self:
        """``latest``, if there is neither tag nor digest."""
        return msgspec.structs.replace(self, tag=DEFAULT_TAG) if self.name_only else self


def parse(text: str) -> Reference:
    """A reference as users write it, normalised. Raises :class:`InvalidParameter` in the reference library's words."""
    if _IDENTIFIER.fullmatch(text):
        raise InvalidParameter(
            f"invalid reference format: invalid repository name ({text}), cannot specify 64-byte hexadecimal strings"
        )
    if len(text) > _TEXT_LIMIT:
        raise InvalidParameter("invalid reference format")
    domain, rest = _split_domain(text)
    path = rest.partition("@")[0] if "@" in rest else rest
    path = path.partition(":")[0] if ":" in path else path
    if path.lower() != path:
        raise InvalidParameter(f"invalid reference format: repository name ({path}) must be lowercase")
    match = _REFERENCE.fullmatch(f"{domain}/{rest}")
    if match is None:
        raise InvalidParameter("invalid reference format")
    name, tag, digest = match.groups()
    if not name.startswith(f"{domain}/"):
        raise InvalidParameter("invalid reference format")
    remote = name[len(domain) + 1 :]
    if len(remote) > _NAME_LIMIT:
        raise InvalidParameter(f"repository name must not be more than {_NAME_LIMIT} characters")
    if digest is not None:
        _check_digest(digest)
    return Reference(domain, remote, tag or "", digest or "")


def is_identifier(text: str) -> bool:
    """Whether ``text`` is a whole image ID without its algorithm."""
    return _IDENTIFIER.fullmatch(text) is not None


def _split_domain(text: str) -> tuple[str, str]:
    """By the rule of the reference library: what comes before the first slash is a host if it looks like one."""
    head, slash, tail = text.partition("/")
    if slash and ("." in head or ":" in head or head == "localhost" or head.lower() != head):
        domain, rest = head, tail
    else:
        domain, rest = DEFAULT_DOMAIN, text
    if domain == _LEGACY_DOMAIN:
        domain = DEFAULT_DOMAIN
    if domain == DEFAULT_DOMAIN and "/" not in rest:
        rest = _OFFICIAL + rest
    return domain, rest


def _check_digest(digest: str) -> None:
    if not _ANCHORED_DIGEST.fullmatch(digest):
        raise InvalidParameter("invalid checksum digest format")
    algorithm, _, digits = digest.partition(":")
    length = _DIGEST_LENGTHS.get(algorithm)
    if length is None:
        raise InvalidParameter("unsupported digest algorithm")
    if len(digits) != length or digits.lower() != digits:
        raise InvalidParameter(
            "invalid checksum digest length" if len(digits) != length else "invalid reference format"
        )
