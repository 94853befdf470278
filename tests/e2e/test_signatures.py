"""Whose signatures pulled images must have: a policy file of the daemon, through the real docker client."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from seacan.registry.trust import PAYLOAD_TYPE, SIGNATURE_ANNOTATION
from tests.hosts import DOCKER, Daemon, Host

SEND = """
import sys, urllib.request
method, url, media_type = sys.argv[1:]
content = sys.stdin.buffer.read()
headers = {"Content-Type": media_type}
urllib.request.urlopen(urllib.request.Request(url, content, headers, method=method)).read()
"""


class Signer:
    """Signs as cosign does: the signature is a manifest under a tag made of the image's digest."""

    def __init__(self, host: Host, registry: str, folder: Path) -> None:
        self._host = host
        self._registry = registry
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.public = folder / "cosign.pub"
        self.public.write_bytes(
            self.key.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )

    def sign(self, repository: str, digest: str, key: ec.EllipticCurvePrivateKey) -> None:
        payload = json.dumps(
            {
                "critical": {
                    "identity": {"docker-reference": f"{self._registry}/{repository}"},
                    "image": {"docker-manifest-digest": digest},
                    "type": "cosign container image signature",
                },
                "optional": None,
            }
        )
        layer = {
            **self._blob(repository, payload, PAYLOAD_TYPE),
            "annotations": {
                SIGNATURE_ANNOTATION: base64.b64encode(key.sign(payload.encode(), ec.ECDSA(hashes.SHA256()))).decode()
            },
        }
        media_type = "application/vnd.oci.image.manifest.v1+json"
        manifest = {
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": self._blob(repository, "{}", "application/vnd.oci.image.config.v1+json"),
            "layers": [layer],
        }
        tag = digest.replace(":", "-") + ".sig"
        self._send("PUT", f"{repository}/manifests/{tag}", media_type, json.dumps(manifest))

    def _blob(self, repository: str, content: str, media_type: str) -> dict[str, object]:
        digest = "sha256:" + hashlib.sha256(content.encode()).hexdigest()
        self._send("POST", f"{repository}/blobs/uploads/?digest={digest}", "application/octet-stream", content)
        return {"mediaType": media_type, "digest": digest, "size": len(content)}

    def _send(self, method: str, path: str, media_type: str, content: str) -> None:
        url = f"http://{self._registry}/v2/{path}"
        self._host.run(sys.executable, "-c", SEND, method, url, media_type, input=content)


@pytest.fixture
def signer(host: Host, registry: str, tmp_path: Path) -> Signer:
    return Signer(host, registry, tmp_path)


def test_only_what_the_policy_s_key_has_signed_is_pulled(
    new_daemon: Callable[..., Daemon], registry: str, signer: Signer, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.json"
    wanted = {"type": "sigstoreSigned", "keyPath": str(signer.public)}
    policy.write_text(
        json.dumps(
            {
                "default": [{"type": "reject"}],
                "transports": {
                    "docker": {f"{registry}/team": [wanted], f"{registry}/open": [{"type": "insecureAcceptAnything"}]}
                },
            }
        )
    )
    daemon = new_daemon(f"--signature-policy={policy}")
    digests = {}
    for repository in ("team/app", "open/app", "other/app"):
        daemon.docker("tag", "busybox", f"{registry}/{repository}:1")
        digests[repository] = daemon.out("push", f"{registry}/{repository}:1").rpartition("digest: ")[2].split()[0]
        daemon.docker("rmi", f"{registry}/{repository}:1")
    name = f"{registry}/team/app:1"
    digest = digests["team/app"]

    def refusal(*command: str) -> str:
        done = daemon.docker(*command, check=False)
        assert done.returncode
        assert name not in daemon.out("images", "--format", "{{.Repository}}:{{.Tag}}")
        return done.stderr

    unsigned = f"{name}@{digest}: no signature by a key that the policy {policy} asks for"
    assert unsigned in refusal("pull", name)
    assert unsigned in refusal("run", "--rm", name, "true")
    (tmp_path / "context").mkdir()
    (tmp_path / "context/Dockerfile").write_text(f"FROM {name}\n")
    assert unsigned in refusal("build", str(tmp_path / "context"))
    signer.sign("team/app", digest, ec.generate_private_key(ec.SECP256R1()))
    assert unsigned in refusal("pull", name)
    signer.sign("team/app", "sha256:" + "0" * 64, signer.key)
    assert unsigned in refusal("pull", name)
    assert f"{registry}/other/app:1: pulling it is rejected by the policy {policy}" in refusal(
        "pull", f"{registry}/other/app:1"
    )
    daemon.docker("pull", f"{registry}/open/app:1")

    signer.sign("team/app", digest, signer.key)
    assert f"Digest: {digest}" in daemon.out("pull", name)
    assert daemon.out("run", "--rm", "--network", "none", name, "echo", "hi") == "hi"


def test_a_registry_s_cache_is_used_only_if_the_policy_s_key_has_signed_it(
    daemon: Daemon,
    new_daemon: Callable[..., Daemon],
    registry: str,
    signer: Signer,
    tmp_path: Path,
    buildx_environment: dict[str, str],
) -> None:
    policy = tmp_path / "policy.json"
    wanted = {"type": "sigstoreSigned", "keyPath": str(signer.public)}
    policy.write_text(json.dumps({"default": [wanted]}))
    context = tmp_path / "context"
    context.mkdir()
    (context / "Dockerfile").write_text("FROM busybox\nRUN cat /proc/sys/kernel/random/uuid > /made\n")
    cache = f"type=registry,ref={registry}/team/cache:1"

    def build(on: Daemon, tag: str, *arguments: str) -> str:
        command = (str(DOCKER), "build", "-t", tag, *arguments, str(context))
        environment = {**on.environment(), **buildx_environment}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        return done.stderr

    def made(on: Daemon, tag: str) -> str:
        return on.out("run", "--rm", "--network", "none", tag, "cat", "/made")

    build(daemon, "first", "--no-cache", "--cache-to", cache)
    other = new_daemon(f"--signature-policy={policy}")
    refused = build(other, "second", "--cache-from", cache)
    digest = refused.partition(f"{registry}/team/cache:1@")[2][:71]
    assert f"{registry}/team/cache:1@{digest}: no signature by a key that the policy {policy} asks for" in refused
    assert made(other, "second") != made(daemon, "first")
    signer.sign("team/cache", digest, signer.key)
    other.docker("builder", "prune", "-af")
    build(other, "third", "--cache-from", cache)
    assert made(other, "third") == made(daemon, "first")
