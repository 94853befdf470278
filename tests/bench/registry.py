"""Our registry against Debian's docker-registry: one image pulled by 32 clients at once."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.measure import Row, Table
from tests.bench.peers import Peer, missing
from tests.hosts import REPOSITORY, Host, scratch

CLIENTS = 32
LAYERS = (48 << 20, 24 << 20, 4 << 20, 1 << 20, 64 << 10)

_PEER_CONFIG = """
version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: /share/registry}}
http: {addr: "127.0.0.1:5000"}
"""


def measure() -> list[Table]:
    rates: dict[str, float] = {}
    with scratch("bench") as folder:
        for name, start in (("ours", _ours), ("docker-registry", _peer)):
            try:
                with start(folder / name) as host:
                    rates[name] = _load(host, folder)
            except RuntimeError as reason:
                print(f"{name} is not measured: {reason}")
    ours, peer = rates["ours"], rates.get("docker-registry")
    row = Row(
        f"{CLIENTS} clients pulling one image at once", ours, "MB/s", peer, "docker-registry", "≥ 1.0 ×",
        ours >= peer if peer else None,
    )  # fmt: skip
    return [Table("Registry", [row])]


@contextlib.contextmanager
def _ours(folder: Path) -> Iterator[Host]:
    host = Host()
    process = subprocess.Popen(
        host.command(
            sys.executable, "-c", "from seacan.cli.registry import group; group()",
            "serve", "--root", str(folder), "--listen", "127.0.0.1:5000",
        ),
        stdout=subprocess.PIPE, cwd=REPOSITORY,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert b"listening" in process.stdout.readline()
        yield host
    finally:
        process.terminate()
        process.wait()
        host.close()


@contextlib.contextmanager
def _peer(folder: Path) -> Iterator[Host]:
    if reason := missing("docker-registry"):
        raise RuntimeError(reason)
    peer = Peer(folder)
    (folder / "share" / "config.yml").write_text(_PEER_CONFIG)
    process = subprocess.Popen(
        peer.command("docker-registry", "serve", "/share/config.yml"),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        time.sleep(1.5)
        yield peer.host
    finally:
        process.terminate()
        process.wait()
        peer.close()


def _load(host: Host, folder: Path) -> float:
    """MB/s that the clients get together; they run as a process of their own on the registry's host."""
    done = subprocess.run(
        host.command(sys.executable, "-m", "tests.bench.registry"),
        cwd=REPOSITORY, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    if done.returncode:
        raise AssertionError(done.stderr)
    return float(done.stdout)


def _push(connection: http.client.HTTPConnection, content: bytes) -> str:
    digest = "sha256:" + hashlib.sha256(content).hexdigest()
    connection.request("POST", "/v2/bench/blobs/uploads/")
    answer = connection.getresponse()
    answer.read()
    location = answer.headers["Location"]
    location = location[location.index("/v2/") :]
    separator = "&" if "?" in location else "?"
    headers = {"Content-Type": "application/octet-stream"}
    connection.request("PUT", f"{location}{separator}digest={digest}", content, headers)
    answer = connection.getresponse()
    assert answer.status == 201, answer.read()
    answer.read()
    return digest


def _client() -> None:
    """Push the image, then pull it with 32 connections; the bytes are dropped in the kernel, so the client is cheap."""
    connection = http.client.HTTPConnection("127.0.0.1", 5000)
    layers = [os.urandom(size) for size in LAYERS]
    config = b"{}"
    digests = [_push(connection, content) for content in (config, *layers)]
    kinds = ["application/vnd.oci.image.config.v1+json", *["application/vnd.oci.image.layer.v1.tar"] * len(layers)]
    entries = [
        {"mediaType": kind, "digest": digest, "size": len(content)}
        for kind, digest, content in zip(kinds, digests, (config, *layers), strict=True)
    ]
    media_type = "application/vnd.oci.image.manifest.v1+json"
    manifest = {"schemaVersion": 2, "mediaType": media_type, "config": entries[0], "layers": entries[1:]}
    connection.request("PUT", "/v2/bench/manifests/1", json.dumps(manifest), {"Content-Type": media_type})
    answer = connection.getresponse()
    assert answer.status == 201, answer.read()
    answer.read()
    rates = []
    for _ in range(3):
        start = time.perf_counter()
        children = []
        for _ in range(CLIENTS):
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    for digest, size in zip(digests, (len(config), *LAYERS), strict=True):
                        _drain(f"/v2/bench/blobs/{digest}", size)
                    status = 0
                finally:
                    os._exit(status)
            children.append(pid)
        statuses = [os.waitpid(pid, 0)[1] for pid in children]
        assert not any(statuses), statuses
        rates.append(CLIENTS * sum(LAYERS) / (time.perf_counter() - start) / 1e6)
    print(sorted(rates)[1])


def _drain(path: str, size: int) -> None:
    with socket.create_connection(("127.0.0.1", 5000)) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost:5000\r\n\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            head += sock.recv(65536)
        assert head.startswith(b"HTTP/1.1 200"), head[:200]
        left = size - len(head.partition(b"\r\n\r\n")[2])
        buffer = bytearray(1 << 20)
        while left > 0:
            got = sock.recv_into(buffer, 0, socket.MSG_TRUNC)
            assert got > 0, "the connection ended early"
            left -= got


if __name__ == "__main__":
    _client()
