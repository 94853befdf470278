"""Makes image archives for the tests: docker-archives and OCI layouts, from layers given as entries."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tests.unit.storage.archives import Entry, archive


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
