"""Which images may be pulled: a policy file, and the signatures it asks for.

The file is the one of containers-policy.json(5), which podman and skopeo read too, with the requirement types
``insecureAcceptAnything``, ``reject`` and ``sigstoreSigned`` with a ``keyPath`` or ``keyData``. The signatures are
cosign's: attached to the tag ``sha256-<hex>.sig``, each a layer whose annotation signs its blob, a JSON document that
names the manifest (https://github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md). Without a policy file
everything is accepted.

A requirement this module does not know is an error, never ignored.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec

from seacan.errors import Forbidden, InvalidParameter, NotFound
from seacan.images import reference as references
from seacan.images.reference import Reference
from seacan.storage.digest import Digest, is_digest

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey

PAYLOAD_TYPE = "application/vnd.dev.cosign.simplesigning.v1+json"
SIGNATURE_ANNOTATION = "dev.cosignproject.cosign/signature"
_SIGNATURE_TYPE = "cosign container image signature"
_LIMIT = 64
"""Signatures of one image that are looked at; more would be a way to keep the daemon busy."""


class Source(Protocol):
    """Where the repository's signatures are read: a registry client bound to one repository."""

    async def manifest(self, reference: str) -> bytes:
        """The manifest's bytes; raises :class:`NotFound`."""

    async def blob(self, digest: Digest, limit: int) -> bytes:
        """A small blob, verified against its digest."""


class _Requirement(msgspec.Struct, rename="camel", frozen=True, forbid_unknown_fields=True):
    type: Literal["insecureAcceptAnything", "reject", "sigstoreSigned"]
    key_path: str = ""
    key_data: str = ""
    signed_identity: _Identity | None = None


class _Identity(msgspec.Struct, rename="camel", frozen=True, forbid_unknown_fields=True):
    type: Literal["matchExact", "matchRepoDigestOrExact", "matchRepository"]


class _Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    default: list[_Requirement]
    transports: dict[str, dict[str, list[_Requirement]]] = {}


class _Layer(msgspec.Struct, rename="camel", frozen=True):
    media_type: str
    digest: str
    annotations: dict[str, str] = {}


class _Signatures(msgspec.Struct, frozen=True):
    layers: list[_Layer] = []


class _ManifestName(msgspec.Struct, frozen=True, rename={"digest": "docker-manifest-digest"}):
    digest: str


class _IdentityName(msgspec.Struct, frozen=True, rename={"reference": "docker-reference"}):
    reference: str = ""


class _Critical(msgspec.Struct, frozen=True):
    type: str
    image: _ManifestName
    identity: _IdentityName


class _Payload(msgspec.Struct, frozen=True):
    critical: _Critical


class Policy:
    """A policy file, read once; :meth:`check` is asked before an image is made visible."""

    def __init__(self, path: Path) -> None:
        try:
            self._policy = msgspec.json.decode(path.read_bytes(), type=_Policy)
        except OSError as error:
            raise InvalidParameter(f"signature policy {path}: {error.strerror}") from error
        except msgspec.DecodeError as error:
            raise InvalidParameter(f"signature policy {path}: {error}") from error
        self._path = path
        self._keys: dict[_Requirement, list[PublicKey]] = {}
        scopes = self._policy.transports.values()
        for requirements in (self._policy.default, *(entry for scope in scopes for entry in scope.values())):
            if not requirements:
                raise InvalidParameter(f"signature policy {path}: a list of requirements is empty")
            for requirement in requirements:
                if requirement.type == "sigstoreSigned":
                    self._keys[requirement] = _load_keys(requirement, path)

    def requirements(self, reference: Reference) -> list[_Requirement]:
        """Those of the most specific scope: the image, its repository, each namespace, the domain, ``*.domain``."""
        scopes = self._policy.transports.get("docker", {})
        candidates = [f"{reference.name}:{reference.tag}"] if reference.tag else []
        parts = reference.name.split("/")
        candidates += ["/".join(parts[:count]) for count in range(len(parts), 0, -1)]
        labels = reference.domain.split(".")
        candidates += ["*." + ".".join(labels[start:]) for start in range(1, len(labels))]
        for candidate in [*candidates, ""]:
            if candidate in scopes:
                return scopes[candidate]
        return self._policy.default

    async def check(self, reference: Reference, digest: Digest, source: Source) -> None:
        """Raise :class:`Forbidden` unless the manifest ``digest`` meets every requirement for ``reference``."""
        requirements = self.requirements(reference)
        for requirement in requirements:
            if requirement.type == "reject":
                raise Forbidden(f"{reference.familiar}: pulling it is rejected by the policy {self._path}")
        signed = [requirement for requirement in requirements if requirement.type == "sigstoreSigned"]
        if not signed:
            return
        signatures = await _signatures(digest, source)
        for requirement in signed:
            if not any(self._accepts(requirement, reference, digest, *pair) for pair in signatures):
                raise Forbidden(
                    f"{reference.familiar}@{digest}: no signature by a key that the policy {self._path} asks for"
                )

    def _accepts(
        self, requirement: _Requirement, reference: Reference, digest: Digest, payload: bytes, signature: bytes
    ) -> bool:
        if not any(_verify(key, signature, payload) for key in self._keys[requirement]):
            return False
        try:
            critical = msgspec.json.decode(payload, type=_Payload).critical
        except msgspec.DecodeError:
            return False
        if critical.type != _SIGNATURE_TYPE or critical.image.digest != digest:
            return False
        identity = requirement.signed_identity
        return _same_identity(identity.type if identity else "matchRepoDigestOrExact", reference, critical.identity)


def _same_identity(rule: str, reference: Reference, signed: _IdentityName) -> bool:
    try:
        named = references.parse(signed.reference)
    except InvalidParameter:
        return False
    if named.name != reference.name:
        return False
    if rule == "matchRepository":
        return True
    if rule == "matchRepoDigestOrExact" and (reference.digest or not named.tag):
        return True  # cosign signs the repository alone; a tag, where it signed one, must be the one asked for
    return bool(named.tag) and named.tag == reference.tag


async def _signatures(digest: Digest, source: Source) -> list[tuple[bytes, bytes]]:
    """Payload and signature of each of the image's signatures."""
    try:
        manifest = await source.manifest(digest.replace(":", "-") + ".sig")
    except NotFound:
        return []
    try:
        layers = msgspec.json.decode(manifest, type=_Signatures).layers
    except msgspec.DecodeError as error:
        raise InvalidParameter(f"signatures of {digest}: {error}") from error
    found = []
    for layer in layers[:_LIMIT]:
        if layer.media_type != PAYLOAD_TYPE or not is_digest(layer.digest):
            continue
        try:
            signature = base64.b64decode(layer.annotations.get(SIGNATURE_ANNOTATION, ""), validate=True)
        except binascii.Error:
            continue
        found.append((await source.blob(Digest(layer.digest), 1 << 20), signature))
    return found


def _load_keys(requirement: _Requirement, policy: Path) -> list[PublicKey]:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if bool(requirement.key_path) == bool(requirement.key_data):
        raise InvalidParameter(f"signature policy {policy}: sigstoreSigned takes one of keyPath and keyData")
    try:
        content = (
            Path(requirement.key_path).read_bytes()
            if requirement.key_path
            else base64.b64decode(requirement.key_data, validate=True)
        )
        key: Any = serialization.load_pem_public_key(content)
    except (OSError, ValueError) as error:
        raise InvalidParameter(
            f"signature policy {policy}: key {requirement.key_path or 'in keyData'}: {error}"
        ) from error
    if not isinstance(key, (ec.EllipticCurvePublicKey, ed25519.Ed25519PublicKey, rsa.RSAPublicKey)):
        raise InvalidParameter(f"signature policy {policy}: {type(key).__name__} is no kind of key cosign signs with")
    return [key]


def _verify(key: PublicKey, signature: bytes, payload: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding

    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, payload, ec.ECDSA(hashes.SHA256()))
        elif isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, payload)
        else:
            key.verify(signature, payload, padding.PKCS1v15(), hashes.SHA256())
    except InvalidSignature:
        return False
    return True
