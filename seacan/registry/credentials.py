"""Credentials as Docker's clients send them, and the tokens that registries give for them.

Nothing here is ever logged, put into an error or sent to a host it was not meant for: :class:`Credentials` hides its
contents from ``repr``, and tokens are kept by the challenge that asked for them.
"""

from __future__ import annotations

import base64
import binascii
import re
import time
from collections.abc import Mapping

import msgspec

from seacan.errors import InvalidParameter

_PARAMETER = re.compile(r'\s*,?\s*([a-zA-Z0-9_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')


class Credentials(msgspec.Struct, frozen=True, rename="lower"):
    """The ``AuthConfig`` of the Docker API. ``identity_token`` is exchanged for tokens, ``registry_token`` is one."""

    username: str = ""
    password: str = ""
    auth: str = ""
    server_address: str = msgspec.field(default="", name="serveraddress")
    identity_token: str = msgspec.field(default="", name="identitytoken")
    registry_token: str = msgspec.field(default="", name="registrytoken")

    def __repr__(self) -> str:
        return f"Credentials(for {self.server_address or 'any registry'!r})"

    __str__ = __repr__

    @property
    def empty(self) -> bool:
        return not (self.username or self.password or self.identity_token or self.registry_token or self.auth)

    @property
    def basic(self) -> str | None:
        """The value of a basic ``Authorization`` header."""
        if self.username or self.password:
            pair = f"{self.username}:{self.password}".encode()
        elif self.auth:
            try:
                pair = base64.b64decode(self.auth)
            except (binascii.Error, ValueError):
                return None
        else:
            return None
        return "Basic " + base64.b64encode(pair).decode()


NONE = Credentials()


def decode_header(value: str) -> Credentials:
    """``X-Registry-Auth``: base64url of JSON. Raises :class:`InvalidParameter` without repeating the value."""
    if not value:
        return NONE
    try:
        content = _decode_base64(value)
        return msgspec.convert(_without_nulls(msgspec.json.decode(content or b"{}") or {}), Credentials)
    except (binascii.Error, ValueError, msgspec.DecodeError):
        raise InvalidParameter("invalid X-Registry-Auth header") from None


def decode_config_header(value: str) -> dict[str, Credentials]:
    """``X-Registry-Config``: base64url of a JSON object from registry to credentials."""
    if not value:
        return {}
    try:
        content = _decode_base64(value)
        return msgspec.convert(_without_nulls(msgspec.json.decode(content or b"{}") or {}), dict[str, Credentials])
    except (binascii.Error, ValueError, msgspec.DecodeError):
        raise InvalidParameter("invalid X-Registry-Config header") from None


def _decode_base64(value: str) -> bytes:
    """With or without padding, in the alphabet for URLs."""
    value = value.rstrip("=")
    return base64.b64decode(value + "=" * (-len(value) % 4), altchars=b"-_", validate=True)


def _without_nulls(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return value


class Challenge(msgspec.Struct, frozen=True):
    """One scheme of a ``WWW-Authenticate`` header."""

    scheme: str
    parameters: dict[str, str]


def parse_challenges(headers: list[str]) -> list[Challenge]:
    """The challenges of a 401, as RFC 9110 writes them; what cannot be read is passed over."""
    challenges: list[Challenge] = []
    for header in headers:
        rest = header.strip()
        while rest:
            scheme = re.match(r"([A-Za-z][A-Za-z0-9_-]*)(?:\s+|$)", rest)
            if scheme is None:
                break
            rest = rest[scheme.end() :]
            parameters: dict[str, str] = {}
            while parameter := _PARAMETER.match(rest):
                quoted, bare = parameter[2], parameter[3]
                parameters[parameter[1].lower()] = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else bare
                rest = rest[parameter.end() :]
            challenges.append(Challenge(scheme[1].lower(), parameters))
            rest = rest.lstrip(" ,")
    return challenges


class Token(msgspec.Struct, frozen=True):
    """A bearer token; ``expires`` is on the monotonic clock."""

    value: str
    expires: float

    def __repr__(self) -> str:
        return "Token(…)"

    @property
    def usable(self) -> bool:
        return time.monotonic() < self.expires


def token_from(document: Mapping[str, object]) -> Token | None:
    """A token service's answer."""
    value = document.get("token") or document.get("access_token")
    if not isinstance(value, str) or not value:
        return None
    lifetime = document.get("expires_in")
    seconds = float(lifetime) if isinstance(lifetime, (int, float)) and lifetime > 0 else 60.0
    # Renewed a little early, so that a token does not expire on the way.
    return Token(value, time.monotonic() + max(seconds * 0.9 - 5, 5))
