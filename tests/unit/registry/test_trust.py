"""Signature policies: cosign's signatures against containers-policy.json."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from seacan.errors import Forbidden, InvalidParameter, NotFound
from seacan.images import reference as references
from seacan.registry.trust import PAYLOAD_TYPE, SIGNATURE_ANNOTATION, Policy
from seacan.storage.digest import Digest

DIGEST = Digest("sha256:" + "ab" * 32)
REFERENCE = references.parse("registry.test/team/app:1")


class Repository:
    def __init__(self, *signed: tuple[bytes, bytes]) -> None:
        self.blobs = {"sha256:" + hashlib.sha256(payload).hexdigest(): payload for payload, _ in signed}
        self.layers = [
            {
                "mediaType": PAYLOAD_TYPE,
                "digest": "sha256:" + hashlib.sha256(payload).hexdigest(),
                "annotations": {SIGNATURE_ANNOTATION: base64.b64encode(signature).decode()},
            }
            for payload, signature in signed
        ]

    async def manifest(self, reference: str) -> bytes:
        if not self.layers or reference != DIGEST.replace(":", "-") + ".sig":
            raise NotFound(reference)
        return json.dumps({"layers": self.layers}).encode()

    async def blob(self, digest: Digest, limit: int) -> bytes:
        return self.blobs[digest]


@pytest.fixture
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def payload(digest: str = DIGEST, reference: str = "registry.test/team/app") -> bytes:
    return json.dumps(
        {
            "critical": {
                "identity": {"docker-reference": reference},
                "image": {"docker-manifest-digest": digest},
                "type": "cosign container image signature",
            },
            "optional": None,
        }
    ).encode()


def sign(key: ec.EllipticCurvePrivateKey, content: bytes) -> tuple[bytes, bytes]:
    return content, key.sign(content, ec.ECDSA(hashes.SHA256()))


@pytest.fixture
def policy(tmp_path: Path, key: ec.EllipticCurvePrivateKey) -> Policy:
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pem").write_bytes(public)
    return write(
        tmp_path,
        {
            "default": [{"type": "insecureAcceptAnything"}],
            "transports": {
                "docker": {
                    "registry.test/team": [{"type": "sigstoreSigned", "keyPath": str(tmp_path / "key.pem")}],
                    "registry.test/team/open": [{"type": "insecureAcceptAnything"}],
                    "*.evil.test": [{"type": "reject"}],
                }
            },
        },
    )


def write(folder: Path, content: Any) -> Policy:
    (folder / "policy.json").write_text(json.dumps(content))
    return Policy(folder / "policy.json")


async def test_signed_image_is_accepted(policy: Policy, key: ec.EllipticCurvePrivateKey) -> None:
    await policy.check(REFERENCE, DIGEST, Repository(sign(key, payload())))


async def test_one_good_signature_among_bad_ones_is_enough(policy: Policy, key: ec.EllipticCurvePrivateKey) -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    await policy.check(REFERENCE, DIGEST, Repository(sign(other, payload()), sign(key, payload())))


@pytest.mark.parametrize("case", ["none", "other key", "other image", "other repository", "other tag", "tampered"])
async def test_anything_else_is_refused(policy: Policy, key: ec.EllipticCurvePrivateKey, case: str) -> None:
    signed = {
        "none": [],
        "other key": [sign(ec.generate_private_key(ec.SECP256R1()), payload())],
        "other image": [sign(key, payload(digest="sha256:" + "cd" * 32))],
        "other repository": [sign(key, payload(reference="registry.test/team/other"))],
        "other tag": [sign(key, payload(reference="registry.test/team/app:2"))],
        "tampered": [(payload() + b" ", sign(key, payload())[1])],
    }[case]
    with pytest.raises(Forbidden, match="no signature by a key"):
        await policy.check(REFERENCE, DIGEST, Repository(*signed))


async def test_the_most_specific_scope_decides(policy: Policy) -> None:
    await policy.check(references.parse("registry.test/team/open:1"), DIGEST, Repository())
    await policy.check(references.parse("elsewhere.test/app:1"), DIGEST, Repository())
    with pytest.raises(Forbidden, match="rejected by the policy"):
        await policy.check(references.parse("cdn.evil.test/app:1"), DIGEST, Repository())


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"default": []},
        {"default": [{"type": "signedBy", "keyType": "GPGKeys"}]},
        {"default": [{"type": "sigstoreSigned"}]},
        {"default": [{"type": "sigstoreSigned", "keyPath": "/nonexistent"}]},
        {"default": [{"type": "reject", "surprise": 1}]},
    ],
)
def test_policy_that_is_not_understood_is_an_error(tmp_path: Path, content: Any) -> None:
    with pytest.raises(InvalidParameter, match=r"signature policy .*policy\.json"):
        write(tmp_path, content)
