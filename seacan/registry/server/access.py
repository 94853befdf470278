"""Who may do what with the registry: everyone, the users of an htpasswd file, or the bearers of a token.

The token is the one of Docker's registry specification (https://distribution.github.io/distribution/spec/auth/jwt/): a
JWT signed by a key the registry trusts, with an ``access`` claim. Nothing here ever logs or repeats a credential.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from aiohttp import web

from seacan.errors import InvalidParameter
from seacan.registry.server.store import RegistryError


class Grant(NamedTuple):
    """Permission for one ``action`` (pull, push, delete, *) on an object."""

    kind: str
    name: str
    action: str


class Denied(RegistryError):
    """401 with the challenge that tells a client how to come back."""

    def __init__(self, challenge: str, *, status: int = 401) -> None:
        code, message = ("UNAUTHORIZED", "authentication required") if status == 401 else ("DENIED", "access denied")
        super().__init__(status, code, message)
        self.headers = {"WWW-Authenticate": challenge}


class Access(Protocol):
    def check(self, request: web.Request, grants: Sequence[Grant]) -> str:
        """The user's name; raises :class:`Denied`."""

    def permits(self, request: web.Request, grants: Sequence[Grant]) -> bool:
        """Whether :meth:`check` would pass."""


class _Checked:
    def check(self, request: web.Request, grants: Sequence[Grant]) -> str:
        raise NotImplementedError

    def permits(self, request: web.Request, grants: Sequence[Grant]) -> bool:
        try:
            self.check(request, grants)
        except RegistryError:
            return False
        return True


class Anyone(_Checked):
    """No questions asked."""

    def check(self, request: web.Request, grants: Sequence[Grant]) -> str:
        return ""


class Htpasswd(_Checked):
    """HTTP basic authentication against an htpasswd file with bcrypt entries, re-read when it changes."""

    REMEMBER = 300.0
    """Seconds for which a verified password is not verified again: bcrypt is slow on purpose, a push is 50 requests."""

    def __init__(self, path: Path, realm: str = "Seacan registry") -> None:
        self.path = path
        self.realm = realm
        self._stamp: tuple[int, int] | None = None
        self._entries: dict[str, bytes] = {}
        self._key = os.urandom(32)
        self._verified: dict[bytes, float] = {}
        self._load()

    def _load(self) -> None:
        try:
            stat = self.path.stat()
            stamp = (stat.st_mtime_ns, stat.st_ino)
            if stamp == self._stamp:
                return
            entries = {}
            for number, line in enumerate(self.path.read_text().splitlines(), 1):
                if not line.strip() or line.startswith("#"):
                    continue
                user, colon, hashed = line.strip().partition(":")
                if not colon or not hashed.startswith(("$2a$", "$2b$", "$2y$")):
                    raise InvalidParameter(f"{self.path}:{number}: not a bcrypt entry (make it with htpasswd -B)")
                entries[user] = hashed.encode()
        except OSError as error:
            raise InvalidParameter(f"htpasswd file {self.path}: {error.strerror}") from error
        self._stamp, self._entries = stamp, entries
        self._verified.clear()

    def check(self, request: web.Request, grants: Sequence[Grant]) -> str:
        self._load()
        challenge = f'Basic realm="{self.realm}"'
        scheme, _, encoded = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "basic":
            raise Denied(challenge)
        try:
            user, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            raise Denied(challenge) from None
        if not self._matches(user, password):
            raise Denied(challenge)
        return user

    def _matches(self, user: str, password: str) -> bool:
        import bcrypt

        proof = hmac.new(self._key, f"{user}\0{password}".encode(), hashlib.sha256).digest()
        now = time.monotonic()
        if self._verified.get(proof, 0.0) > now:
            return True
        # An unknown user costs as much as a known one, so that time does not tell who exists.
        hashed = self._entries.get(user, b"$2b$05$" + b"." * 53)
        try:
            matches = bcrypt.checkpw(password.encode()[:72], hashed.replace(b"$2y$", b"$2b$", 1))
        except ValueError:
            return False
        if user not in self._entries or not matches:
            return False
        self._verified = {key: until for key, until in self._verified.items() if until > now}
        self._verified[proof] = now + self.REMEMBER
        return True


class Token(_Checked):
    """Bearer tokens of a token service, verified with the public keys or certificates in a PEM file."""

    ALGORITHMS = ("RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "EdDSA")

    def __init__(self, *, realm: str, service: str, issuer: str, keys: Path) -> None:
        self.realm = realm
        self.service = service
        self.issuer = issuer
        self._keys = _public_keys(keys)

    def check(self, request: web.Request, grants: Sequence[Grant]) -> str:
        challenge = f'Bearer realm="{self.realm}",service="{self.service}"'
        if grants:
            challenge += f',scope="{_scopes(grants)}"'
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            raise Denied(challenge)
        claims = self._verify(token)
        if claims is None:
            raise Denied(challenge + ',error="invalid_token"')
        granted = {
            (entry.get("type"), entry.get("name"), action)
            for entry in claims.get("access") or ()
            if isinstance(entry, Mapping)
            for action in entry.get("actions") or ()
        }
        for grant in grants:
            if tuple(grant) not in granted and (grant.kind, grant.name, "*") not in granted:
                raise Denied(challenge + ',error="insufficient_scope"')
        return str(claims.get("sub") or "")

    def _verify(self, token: str) -> dict[str, Any] | None:
        import jwt

        for key in self._keys:
            try:
                return dict(
                    jwt.decode(
                        token,
                        key,
                        algorithms=list(self.ALGORITHMS),
                        audience=self.service,
                        issuer=self.issuer,
                        options={"require": ["exp", "iss", "aud"], "verify_iat": False},
                        leeway=60,
                    )
                )
            except (jwt.InvalidTokenError, TypeError, ValueError):
                continue
        return None


def _scopes(grants: Sequence[Grant]) -> str:
    actions: dict[tuple[str, str], list[str]] = {}
    for kind, name, action in grants:
        actions.setdefault((kind, name), []).append(action)
    # docker asks for what the challenge names, and a push also reads (HEAD of the blobs that are there).
    return " ".join(
        f"{kind}:{name}:{'pull,push' if names == ['push'] else ','.join(names)}"
        for (kind, name), names in actions.items()
    )


def _public_keys(path: Path) -> list[Any]:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidParameter(f"token keys {path}: {error.strerror}") from error
    keys: list[Any] = []
    try:
        if b"BEGIN CERTIFICATE" in content:
            keys += [certificate.public_key() for certificate in x509.load_pem_x509_certificates(content)]
        else:
            keys.append(serialization.load_pem_public_key(content))
    except ValueError as error:
        raise InvalidParameter(f"token keys {path}: neither PEM certificates nor a PEM public key") from error
    return keys
