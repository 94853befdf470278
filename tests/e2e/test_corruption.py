"""What a broken disk does to the engine's folders: it is said in words, and everything else goes on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hosts import Daemon


@pytest.fixture
def broken(new_daemon: Callable[..., Daemon]) -> Iterator[Daemon]:
    """A daemon of its own, with a container that must not notice anything."""
    daemon = new_daemon("--live-restore")
    daemon.docker("run", "-d", "--name", "steady", "busybox", "sleep", "1000")
    daemon.docker("run", "--name", "layered", "busybox", "sh", "-c", "head -c 3000000 /dev/urandom > /more")
    daemon.docker("commit", "layered", "layered")
    daemon.docker("rm", "layered")
    yield daemon


def blobs(daemon: Daemon) -> list[Path]:
    return sorted((daemon.data_root / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)


def still_works(daemon: Daemon) -> None:
    assert daemon.inspect("steady")["State"]["Running"]
    assert daemon.out("run", "--rm", "busybox", "echo", "works") == "works"
    assert "layered" in daemon.out("images")


def refused(daemon: Daemon, *argv: str) -> str:
    done = daemon.docker(*argv, check=False)
    assert done.returncode
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_missing_blob_is_named(broken: Daemon, tmp_path: Path) -> None:
    blob = blobs(broken)[-1]
    shutil.move(blob, tmp_path / "hidden")
    try:
        said = refused(broken, "save", "-o", str(tmp_path / "image.tar"), "layered")
        assert f"blob sha256:{blob.name} is missing" in said
        still_works(broken)
        broken.docker("save", "-o", str(tmp_path / "other.tar"), "busybox")
    finally:
        shutil.move(tmp_path / "hidden", blob)


def test_a_truncated_layer_is_named(broken: Daemon, tmp_path: Path) -> None:
    blob = blobs(broken)[-1]
    shutil.copy(blob, tmp_path / "whole")
    try:
        os.truncate(blob, blob.stat().st_size // 2)
        said = refused(broken, "save", "-o", str(tmp_path / "image.tar"), "layered")
        assert "is damaged" in said
        assert blob.name in said
        still_works(broken)
    finally:
        shutil.copy(tmp_path / "whole", blob)
    broken.docker("save", "-o", str(tmp_path / "image.tar"), "layered")


def test_a_layer_whose_bytes_changed_is_named(broken: Daemon, tmp_path: Path) -> None:
    blob = blobs(broken)[-1]
    whole = blob.read_bytes()
    try:
        with blob.open("r+b") as file:
            file.seek(len(whole) // 2)
            file.write(bytes([whole[len(whole) // 2] ^ 0xFF]))
        said = refused(broken, "save", "-o", str(tmp_path / "image.tar"), "layered")
        assert f"blob sha256:{blob.name} is damaged" in said
        assert list(tmp_path.iterdir()) == []
        still_works(broken)
        broken.docker("save", "-o", str(tmp_path / "other.tar"), "busybox")
    finally:
        blob.write_bytes(whole)
    broken.docker("save", "-o", str(tmp_path / "image.tar"), "layered")


def test_a_damaged_configuration_is_the_daemon_s_error_and_mended_by_a_load(broken: Daemon, tmp_path: Path) -> None:
    id = broken.inspect("layered", "image")["Id"]
    broken.docker("save", "-o", str(tmp_path / "image.tar"), "layered")
    blob = broken.data_root / "blobs" / "sha256" / id[7:]
    broken.stop()
    blob.write_bytes(blob.read_bytes().replace(b"layers", b"lawyer"))
    broken.start()
    for method, path in (("GET", "layered/json"), ("GET", "layered/get"), ("GET", "layered/history")):
        status, body = broken.request(method, f"/v1.51/images/{path}")
        assert (status, f"blob {id} is damaged: {blob}" in body.decode()) == (500, True), body
    assert f"blob {id} is damaged" in refused(broken, "run", "--rm", "layered", "true")
    assert "busybox" in broken.out("images")
    broken.docker("load", "-i", str(tmp_path / "image.tar"))
    still_works(broken)
    assert broken.out("run", "--rm", "layered", "ls", "/more") == "/more"


def test_a_damaged_manifest_is_the_daemon_s_error_and_mended_by_a_pull(broken: Daemon, registry: str) -> None:
    name = f"{registry}/layered:1"
    broken.docker("tag", "layered", name)
    digest = broken.out("push", name).rpartition("digest: ")[2].split()[0]
    blob = broken.data_root / "blobs" / "sha256" / digest[7:]
    blob.write_bytes(blob.read_bytes() + b"\n")
    status, body = broken.request("GET", f"/v1.51/images/{name}/get")
    assert (status, f"blob {digest} is damaged: {blob}" in body.decode()) == (500, True), body
    assert f"blob {digest} is damaged" in refused(broken, "push", name)
    still_works(broken)
    broken.docker("pull", name)
    assert digest in broken.out("push", name)


def test_an_unpacked_layer_that_is_gone_fails_its_image_alone(broken: Daemon, tmp_path: Path) -> None:
    layers = {
        path: path.stat().st_mtime for path in (broken.data_root / "layers").iterdir() if (path / "more").exists()
    }
    (layer,) = layers
    shutil.move(layer, tmp_path / "layer")
    try:
        said = refused(broken, "run", "--rm", "layered", "true")
        assert layer.name in said
        assert "No such file or directory" in said
        still_works(broken)
    finally:
        shutil.move(tmp_path / "layer", layer)
    assert broken.out("run", "--rm", "layered", "ls", "/more") == "/more"


def test_images_are_known_without_their_configurations(broken: Daemon, tmp_path: Path) -> None:
    configurations = [path for path in blobs(broken) if b'"rootfs"' in path.read_bytes()[:4096]]
    assert configurations
    for path in configurations:
        shutil.move(path, tmp_path / path.name)
    try:
        broken.kill()
        broken.start()
        assert broken.inspect("steady")["State"]["Running"]
        assert broken.out("ps", "-q")
        broken.docker("images")
    finally:
        for path in configurations:
            shutil.move(tmp_path / path.name, path)
        broken.kill()
        broken.start()
    still_works(broken)


@pytest.mark.parametrize("damage", ["garbage", "truncated", "a hole", "emptied"])
def test_a_damaged_database_is_told_and_left_alone(broken: Daemon, damage: str) -> None:
    broken.stop()
    path = broken.data_root / "seacan.db"
    files = [path, path.with_name("seacan.db-wal"), path.with_name("seacan.db-shm")]
    whole = {file: file.read_bytes() for file in files if file.exists()}
    content = whole[path]
    spoilt = {
        "garbage": os.urandom(len(content)),
        "truncated": content[: len(content) // 2 // 4096 * 4096],
        "a hole": content[:4096] + os.urandom(len(content) - 4096),
        "emptied": b"",
    }[damage]
    try:
        for file in files[1:]:
            file.unlink(missing_ok=True)
        path.write_bytes(spoilt)
        with pytest.raises(AssertionError, match=r"cannot use the state database .*seacan\.db"):
            broken.start()
        assert path.read_bytes() == spoilt, "it was changed"
    finally:
        broken.process = None
        for file, before in whole.items():
            file.write_bytes(before)
        broken.start()
    still_works(broken)
