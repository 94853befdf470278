"""Caches of builds that travel: written by one engine, used by another that has nothing, through docker's buildx."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Build
from tests.hosts import REPOSITORY, Daemon

DOCKERFILE = """\
FROM busybox AS tools
RUN cat /proc/sys/kernel/random/uuid > /tool
RUN cat /proc/sys/kernel/random/uuid > /unused
FROM busybox
COPY --from=tools /tool /tool
COPY a.txt /
RUN --mount=type=bind,from=tools,source=/unused,target=/seen cat /proc/sys/kernel/random/uuid /seen > /now
RUN --mount=type=bind,source=a.txt,target=/a cat /a >> /now
"""


@pytest.fixture
def context(context: Path) -> Path:
    (context / "a.txt").write_text("a\n")
    (context / "Dockerfile").write_text(DOCKERFILE)
    return context


def id_of(daemon: Daemon, image: str) -> str:
    return str(daemon.inspect(image, "image")["Id"])


def steps_run(output: str) -> list[str]:
    """The steps that were neither cached nor part of the machinery."""
    names: dict[str, str] = {}
    cached: set[str] = set()
    for line in output.splitlines():
        number, _, rest = line.partition(" ")
        if rest.startswith("[") and "/" in rest.partition("]")[0]:
            names[number] = rest
        elif rest == "CACHED":
            cached.add(number)
    return [name for number, name in names.items() if number not in cached]


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("form", ["true", "false"])
def test_a_second_engine_takes_every_step_from_a_registry(
    daemon: Daemon, new_daemon: Callable[..., Daemon], registry: str, build: Build, mode: str, form: str
) -> None:
    where = f"type=registry,ref={registry}/cache:{mode}"
    build("-t", "first", "--no-cache", "--cache-to", f"{where},mode={mode},image-manifest={form}")
    other = new_daemon()
    output = build("-t", "second", "--cache-from", where, on=other)
    assert steps_run(output) == []
    assert id_of(other, "second") == id_of(daemon, "first")
    if mode == "min":  # what only led to the result is neither fetched nor made
        assert other.out("run", "--rm", "--network=none", "second", "cat", "/tool")
        assert len(list((other.data_root / "build/layers").iterdir())) < 8


def test_a_stage_that_was_not_exported_is_made_when_it_is_needed(
    daemon: Daemon, new_daemon: Callable[..., Daemon], registry: str, build: Build, context: Path
) -> None:
    where = f"type=registry,ref={registry}/cache"
    build("-t", "first", "--no-cache", "--cache-to", where)
    (context / "Dockerfile").write_text(DOCKERFILE + "COPY --from=tools /tool /again\n")
    other = new_daemon()
    output = build("-t", "second", "--cache-from", where, on=other)
    tool = daemon.out("run", "--rm", "--network=none", "first", "cat", "/tool")
    assert other.out("run", "--rm", "--network=none", "second", "cat", "/tool") == tool
    assert other.out("run", "--rm", "--network=none", "second", "cat", "/again") != tool
    assert any("/again" in step for step in steps_run(output))


def test_the_cache_goes_on_from_engine_to_engine(
    daemon: Daemon, new_daemon: Callable[..., Daemon], registry: str, build: Build
) -> None:
    first, second = (f"type=registry,ref={registry}/{name}" for name in ("first", "second"))
    build("--no-cache", "--cache-to", f"{first},mode=max")
    other = new_daemon()
    output = build("--cache-from", first, "--cache-to", f"{second},mode=max", on=other)
    assert steps_run(output) == []
    third = new_daemon()
    assert steps_run(build("--cache-from", second, on=third)) == []


def test_an_image_carries_its_cache(
    daemon: Daemon, new_daemon: Callable[..., Daemon], registry: str, build: Build
) -> None:
    name = f"{registry}/app:1"
    build("-t", name, "--no-cache", "--build-arg", "BUILDKIT_INLINE_CACHE=1")
    daemon.docker("push", name)
    other = new_daemon()
    assert steps_run(build("-t", "again", "--cache-from", name, on=other)) == []
    third = new_daemon()
    third.docker("pull", name)
    assert steps_run(build("-t", "again", "--cache-to", "type=inline", "--cache-from", name, on=third)) == []
    assert id_of(third, "again") == id_of(daemon, name)
    daemon.docker("rmi", name)


def test_classic_builds_use_the_cache_of_an_image(
    daemon: Daemon, new_daemon: Callable[..., Daemon], registry: str, context: Path
) -> None:
    name = f"{registry}/classic:1"
    daemon.docker("build", "-t", name, "--no-cache", "--build-arg", "BUILDKIT_INLINE_CACHE=1", str(context))
    daemon.docker("push", name)
    other = new_daemon()
    output = other.out("build", "--cache-from", name, "--cache-from", "nosuch:1", "-t", "again", str(context))
    assert "[Warning] nosuch:1 is not used as a cache:" in output
    assert "Running in" not in output
    tool = ("run", "--rm", "--network=none")
    assert other.out(*tool, "again", "cat", "/now") == daemon.out(*tool, name, "cat", "/now")
    daemon.docker("rmi", name)


@pytest.fixture
def folder_cache(daemon: Daemon, build: Build, tmp_path: Path) -> Path:
    """A cache in a folder of the client's, of the build above."""
    folder = tmp_path / "cache"
    build("-t", "first", "--no-cache", "--cache-to", f"type=local,dest={folder},mode=max")
    return folder


def test_a_second_engine_takes_every_step_from_a_folder(
    daemon: Daemon, new_daemon: Callable[..., Daemon], build: Build, folder_cache: Path
) -> None:
    other = new_daemon()
    assert steps_run(build("-t", "second", "--cache-from", f"type=local,src={folder_cache}", on=other)) == []
    assert id_of(other, "second") == id_of(daemon, "first")
    blobs = {path.name for path in (folder_cache / "blobs/sha256").iterdir()}
    assert all(
        hashlib.sha256((folder_cache / "blobs/sha256" / name).read_bytes()).hexdigest() == name for name in blobs
    )


class Forgery:
    """A cache in a folder, for changing what it says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index: dict[str, Any] = json.loads((folder / "index.json").read_text())
        self.manifest: dict[str, Any] = json.loads(self.read(self.index["manifests"][0]["digest"]))
        self.config: dict[str, Any] = json.loads(self.read(self.manifest["config"]["digest"]))

    def read(self, digest: str) -> bytes:
        return (self.folder / "blobs/sha256" / digest.partition(":")[2]).read_bytes()

    def put(self, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        (self.folder / "blobs/sha256" / digest).write_bytes(content)
        return f"sha256:{digest}"

    def replace(self, old: str, archive: bytes) -> None:
        """Another layer's archive in the place of ``old``, well-formed throughout."""
        blob = self.put(gzip.compress(archive))
        size = len(self.read(blob))
        for layer in self.config["layers"]:
            if layer["blob"] == old:
                layer["blob"] = blob
                layer["annotations"].update(diffID="sha256:" + hashlib.sha256(archive).hexdigest(), size=size)
        for layer in self.manifest["layers"]:
            if layer["digest"] == old:
                layer.update(digest=blob, size=size)

    def write(self) -> None:
        config = json.dumps(self.config).encode()
        self.manifest["config"].update(digest=self.put(config), size=len(config))
        manifest = json.dumps(self.manifest).encode()
        self.index["manifests"][0].update(digest=self.put(manifest), size=len(manifest))
        (self.folder / "index.json").write_text(json.dumps(self.index))

    def layer_with(self, name: str) -> str:
        for layer in self.config["layers"]:
            with tarfile.open(fileobj=io.BytesIO(self.read(layer["blob"]))) as tar:
                if name in tar.getnames():
                    return str(layer["blob"])
        raise AssertionError(f"no layer has {name}")


def test_what_a_forged_cache_brings_stays_with_those_who_named_it(
    new_daemon: Callable[..., Daemon], build: Build, folder_cache: Path
) -> None:
    forgery = Forgery(folder_cache)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        member = tarfile.TarInfo("tool")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"evil"))
    forgery.replace(forgery.layer_with("tool"), archive.getvalue())
    # What copies from the forged stage is known by its definition: take that away, so that it really copies.
    forgery.config["records"] = [
        {**record, "inputs": []} if index else record for index, record in enumerate(forgery.config["records"])
    ]
    forgery.write()
    victim = new_daemon()
    build("-t", "named", "--cache-from", f"type=local,src={folder_cache}", on=victim)
    build("-t", "unnamed", on=victim)
    show = ("run", "--rm", "--network=none")
    assert victim.out(*show, "named", "cat", "/tool") == "evil"
    assert len(victim.out(*show, "unnamed", "cat", "/tool")) == 36
    # Nor did what was built upon it get into the cache of those who did not name it.
    now = [victim.out(*show, name, "cat", "/now").split()[0] for name in ("named", "unnamed")]
    assert now[0] != now[1]


@pytest.mark.parametrize("damage", ["blob", "diff", "missing", "layer"])
def test_a_cache_that_does_not_keep_its_word_costs_only_time(
    new_daemon: Callable[..., Daemon], build: Build, folder_cache: Path, damage: str
) -> None:
    forgery = Forgery(folder_cache)
    blob = forgery.layer_with("now")
    path = folder_cache / "blobs/sha256" / blob.partition(":")[2]
    if damage == "blob":
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    elif damage == "missing":
        path.unlink()
    elif damage == "layer":
        forgery.replace(blob, b"no archive at all" * 100)
    else:
        for layer in forgery.config["layers"]:
            if layer["blob"] == blob:
                layer["annotations"]["diffID"] = "sha256:" + "0" * 64
    forgery.write()
    victim = new_daemon()
    output = build("-t", "made", "--cache-from", f"type=local,src={folder_cache}", on=victim)
    assert f"cached layer {blob} is not used:" in output or (damage == "layer" and "is not used:" in output)
    assert len(victim.out("run", "--rm", "--network=none", "made", "cat", "/now").split()) == 3
    assert list((victim.data_root / "layers/staging").iterdir()) == []


def test_a_cache_that_is_none_is_told_of_and_not_used(
    daemon: Daemon, build: Build, folder_cache: Path, registry: str
) -> None:
    forgery = Forgery(folder_cache)
    forgery.config["records"] = [{"digest": "../../../etc/passwd"}]
    forgery.write()
    output = build("--cache-from", f"type=local,src={folder_cache}", "--cache-from", f"{registry}/nosuch:1")
    assert "failed to configure local cache importer" in output
    assert "failed to configure registry cache importer" in output


def test_where_a_cache_cannot_be_written_the_build_fails_unless_told_otherwise(
    daemon: Daemon, build: Build, registry: str
) -> None:
    del registry
    where = "type=registry,ref=127.0.0.1:9/cache"
    assert "127.0.0.1:9" in build("--cache-to", where, fails=True)
    build("--cache-to", f"{where},ignore-error=true")
    assert "compression estargz is not supported" in build("--cache-to", f"{where},compression=estargz", fails=True)


MAGIC = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd", "uncompressed": b""}
SUFFIX = {"gzip": "+gzip", "zstd": "+zstd", "uncompressed": ""}


@pytest.mark.parametrize("compression", ["zstd", "uncompressed"])
def test_layers_of_a_cache_are_compressed_as_asked(
    daemon: Daemon, new_daemon: Callable[..., Daemon], build: Build, tmp_path: Path, registry: str, compression: str
) -> None:
    folder = tmp_path / "cache"
    how = f"mode=max,compression={compression}"
    build("-t", "first", "--no-cache", "--cache-to", f"type=local,dest={folder},{how}")
    cache = Forgery(folder)
    for layer in cache.manifest["layers"]:
        assert layer["mediaType"] == f"application/vnd.oci.image.layer.v1.tar{SUFFIX[compression]}"
        assert cache.read(layer["digest"]).startswith(MAGIC[compression])
    second, third = new_daemon(), new_daemon()
    from_folder = ("--cache-from", f"type=local,src={folder}")
    # Layers that came so travel on as they are, unless they are to have another form.
    where = f"type=registry,ref={registry}/cache"
    assert steps_run(build("-t", "second", *from_folder, "--cache-to", f"{where}:came,mode=max", on=second)) == []
    forced = f"{where}:gzip,mode=max,compression=gzip,compression-level=9,force-compression=true,oci-mediatypes=false"
    assert steps_run(build(*from_folder, "--cache-to", forced, on=second)) == []
    assert steps_run(build("-t", "third", "--cache-from", f"{where}:gzip", on=third)) == []
    assert id_of(third, "third") == id_of(second, "second") == id_of(daemon, "first")
    forms = [
        {entry["mediaType"] for entry in json.loads(blob).get(key, ())}
        for blob in (path.read_bytes() for path in (tmp_path / "registry").glob("**/*") if path.is_file())
        if blob.startswith(b"{")
        for key in ("layers", "manifests")
        if key in json.loads(blob) and "schemaVersion" in json.loads(blob)
    ]
    assert {"application/vnd.docker.image.rootfs.diff.tar.gzip", "application/vnd.buildkit.cacheconfig.v0"} in forms
    assert {f"application/vnd.oci.image.layer.v1.tar{SUFFIX[compression]}"} in forms


def test_seacan_build_keeps_its_cache_in_a_folder(
    daemon: Daemon, new_daemon: Callable[..., Daemon], build: Build, context: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"

    def seacan(engine: Daemon, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "seacan.cli.main", "build", *arguments, str(context)],
            env=engine.environment(PYTHONPATH=str(REPOSITORY)),
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, f"{done.stderr}\n{engine.log_tail()}"
        return done.stderr

    both = ("--cache-from", f"type=local,src={folder}", "--cache-to", f"type=local,dest={folder},mode=max,tag=mine")
    said = seacan(daemon, "-t", "first", "--no-cache", *both)
    assert f"WARNING: local cache import at {folder} skipped:" in said  # there is none yet
    other, third = new_daemon(), new_daemon()
    from_folder = f"type=local,src={folder},tag=mine"
    assert steps_run(seacan(other, "-t", "second", "--cache-from", from_folder)) == []
    assert id_of(other, "second") == id_of(daemon, "first")
    assert steps_run(build("-t", "third", "--cache-from", from_folder, on=third)) == []  # nor has buildx another form
    output = f"type=oci,tar=false,dest={tmp_path / 'layout'}"
    seacan(other, "-o", output, "-t", "app:7", "--cache-from", from_folder)
    (context / "Dockerfile").write_text("FROM app\nCOPY --from=app /tool /again\n")
    seacan(third, "--build-context", f"app=oci-layout://{tmp_path / 'layout'}:7", "-t", "upon")
    show = ("run", "--rm", "--network=none")
    assert third.out(*show, "upon", "cat", "/again") == daemon.out(*show, "first", "cat", "/tool")
