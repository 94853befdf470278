"""Makes image archives for the tests: docker-archives and OCI layouts, from layers given as entries."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tests.unit.storage.archives import Entry, archive

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def blob(content: bytes) -> str:
    return f"blobs/sha256/{hashlib.sha256(content).hexdigest()}"


def config(layers: Sequence[bytes], **more: Any) -> bytes:
    """An image configuration for uncompressed layers."""
    document = {
        "architecture": "amd64",
        "os": "linux",
        "created": "2026-01-02T03:04:05.678Z",
        "config": {"Cmd": ["sh"], "Labels": None},
        "history": [{"created": "2026-01-02T03:04:05Z", "created_by": f"step {n}"} for n in range(len(layers))],
        "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
    }
    return json.dumps(document | more).encode()


def pack(files: Mapping[str, bytes] | Sequence[tuple[str, bytes]]) -> bytes:
    """An outer archive."""
    output = io.BytesIO()
    items = files.items() if isinstance(files, Mapping) else files
    with tarfile.open(fileobj=output, mode="w") as tar:
        for name, content in items:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return output.getvalue()


def layer(*entries: Entry) -> bytes:
    return archive(entries)


def docker_archive(
    layers: Sequence[bytes],
    tags: Sequence[str] | None = ("test:latest",),
    *,
    compress: Callable[[bytes], bytes] = lambda content: content,
    **more: Any,
) -> bytes:
    """What ``docker save`` writes since version 25, without the layout's own files."""
    document = config(layers, **more)
    stored = [compress(layer) for layer in layers]
    manifest = [{"Config": blob(document), "RepoTags": tags, "Layers": [blob(layer) for layer in stored]}]
    return pack(
        {
            **{blob(layer): layer for layer in stored},
            blob(document): document,
            "manifest.json": json.dumps(manifest).encode(),
        }
    )


def layout_files(
    layers: Sequence[bytes],
    *,
    compress: Callable[[bytes], bytes] = lambda content: content,
    name: str = "docker.io/library/test:latest",
    platform: dict[str, str] | None = None,
    **more: Any,
) -> dict[str, bytes]:
    """The files of an OCI layout with one image."""
    document = config(layers, **more)
    stored = [compress(layer) for layer in layers]
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": digest(document),
                "size": len(document),
            },
            "layers": [
                {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest(layer), "size": len(layer)}
                for layer in stored
            ],
        }
    ).encode()
    descriptor: dict[str, Any] = {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": digest(manifest),
        "size": len(manifest),
        "annotations": {"io.containerd.image.name": name},
    }
    if platform:
        descriptor["platform"] = platform
    index = {"schemaVersion": 2, "manifests": [descriptor]}
    return {
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
        **{blob(layer): layer for layer in stored},
        blob(document): document,
        blob(manifest): manifest,
        "index.json": json.dumps(index).encode(),
    }


def described(content: bytes, media_type: str, **more: Any) -> dict[str, Any]:
    """A descriptor."""
    return {"mediaType": media_type, "digest": digest(content), "size": len(content), **more}


def built_for(*architectures: str, mark: str = "") -> tuple[bytes, dict[str, bytes]]:
    """What buildx makes for several platforms, with provenance: the index, and its files; ``mark`` makes it another."""
    files: dict[str, bytes] = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}
    images, attestations = [], []
    for architecture in architectures:
        archive = layer(Entry(f"for-{architecture}", architecture.encode() * 1000))
        labels = {"Cmd": ["/sh"], "Labels": {"for": architecture, "mark": mark}}
        image = _add_manifest(
            files,
            config([archive], architecture=architecture, config=labels),
            archive,
            "application/vnd.oci.image.layer.v1.tar",
        )
        images.append(described(image, MANIFEST, platform={"architecture": architecture, "os": "linux"}))
        statement = json.dumps({"_type": "https://in-toto.io/Statement/v0.1", "for": architecture + mark}).encode()
        about = _add_manifest(files, config([statement]), statement, "application/vnd.in-toto+json")
        attestations.append(
            described(
                about,
                MANIFEST,
                platform={"architecture": "unknown", "os": "unknown"},
                annotations={
                    "vnd.docker.reference.digest": digest(image),
                    "vnd.docker.reference.type": "attestation-manifest",
                },
            )
        )
    index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": images + attestations}).encode()
    files[blob(index)] = index
    return index, files


def _add_manifest(files: dict[str, bytes], document: bytes, archive: bytes, layer_type: str) -> bytes:
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": described(document, "application/vnd.oci.image.config.v1+json"),
        "layers": [described(archive, layer_type)],
    }
    content = json.dumps(manifest).encode()
    files |= {blob(document): document, blob(archive): archive, blob(content): content}
    return content


def named_layout(name: str, index: bytes, files: Mapping[str, bytes]) -> bytes:
    """An archive of an index under a name."""
    top = described(index, INDEX, annotations={"io.containerd.image.name": name})
    return pack({**files, "index.json": json.dumps({"schemaVersion": 2, "manifests": [top]}).encode()})
