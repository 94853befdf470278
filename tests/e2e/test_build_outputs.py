"""What a build gives out: attestations, platforms, annotations; to registries, archives, folders and the store."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Build
from tests.e2e.test_build_cache import steps_run
from tests.hosts import DOCKER, REPOSITORY, Daemon, Host

Document = dict[str, Any]

DOCKERFILE = "FROM busybox\nARG WHO=nobody\nRUN --mount=type=secret,id=token echo $WHO > /who\nCOPY a.txt /\n"
HERE = "linux/amd64" if __import__("platform").machine() == "x86_64" else "linux/arm64"
ELSEWHERE = "linux/arm64" if HERE == "linux/amd64" else "linux/amd64"


@pytest.fixture
def context(context: Path) -> Path:
    (context / "a.txt").write_text("a\n")
    (context / "Dockerfile").write_text(DOCKERFILE)
    return context


class Layout:
    """An OCI layout, checked as it is read: every blob is what its name says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.named = json.loads((folder / "index.json").read_text())["manifests"]

    def blob(self, digest: str) -> bytes:
        content = (self.folder / "blobs" / digest.replace(":", "/")).read_bytes()
        assert "sha256:" + hashlib.sha256(content).hexdigest() == digest
        return content

    def document(self, descriptor: Document) -> Document:
        content = self.blob(descriptor["digest"])
        assert len(content) == descriptor["size"]
        return dict(json.loads(content))

    @property
    def root(self) -> Document:
        return self.document(self.named[0])

    def images(self) -> dict[str, Document]:
        """The manifests of the index by platform, attestations left out."""
        found = {}
        for each in self.root["manifests"]:
            if each["platform"]["os"] != "unknown":
                platform = "/".join(each["platform"][key] for key in ("os", "architecture"))
                found[platform] = each
        return found

    def statements(self, image: Document) -> dict[str, Document]:
        """What is stated of an image, by the type of predicate."""
        found = {}
        for each in self.root["manifests"]:
            about = each.get("annotations", {})
            if about.get("vnd.docker.reference.digest") != image["digest"]:
                continue
            assert about["vnd.docker.reference.type"] == "attestation-manifest"
            assert each["platform"] == {"os": "unknown", "architecture": "unknown"}
            manifest = self.document(each)
            config = self.document(manifest["config"])
            assert config["rootfs"]["diff_ids"] == [layer["digest"] for layer in manifest["layers"]]
            for layer in manifest["layers"]:
                statement = self.document(layer)
                assert layer["mediaType"] == "application/vnd.in-toto+json"
                assert layer["annotations"]["in-toto.io/predicate-type"] == statement["predicateType"]
                assert statement["_type"] == "https://in-toto.io/Statement/v1"
                for subject in statement["subject"]:
                    assert subject["digest"] == {"sha256": image["digest"].removeprefix("sha256:")}
                found[statement["predicateType"]] = statement
        return found


def unpack(archive: Path, folder: Path) -> Layout:
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return Layout(folder)


def fetch(host: Host, reference: str, folder: Path) -> Layout:
    """What a registry has, all of it, as a layout."""
    command = [sys.executable, "-m", "seacan.cli.main", "image", "copy", reference, f"oci:{folder}"]
    done = subprocess.run(
        host.command(*command), env={"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return Layout(folder)


SLSA = "https://slsa.dev/provenance/v1"


def test_provenance_says_what_the_image_was_made_of(build: Build, tmp_path: Path) -> None:
    archive = tmp_path / "image.tar"
    build(
        "--provenance=mode=max", "--build-arg", "WHO=somebody", "--label", "a=b", "-t", "reg.example/app:1",
        "-o", f"type=oci,dest={archive}",
    )  # fmt: skip
    layout = unpack(archive, tmp_path / "layout")
    image = layout.images()[HERE]
    stated = layout.statements(image)[SLSA]
    assert stated["subject"][0]["name"] == f"pkg:docker/reg.example/app@1?platform={HERE.replace('/', '%2F')}"
    definition = stated["predicate"]["buildDefinition"]
    base = next(each for each in definition["resolvedDependencies"] if "busybox@latest" in each["uri"])
    assert len(base["digest"]["sha256"]) == 64
    request = definition["externalParameters"]["request"]
    assert request["args"] == {"build-arg:WHO": "somebody", "label:a": "b"}
    assert request["secrets"] == [{"id": "token", "optional": True}]
    assert request["locals"] == [{"name": "context"}]
    assert definition["externalParameters"]["configSource"] == {"path": "Dockerfile"}
    steps = definition["internalParameters"]["buildConfig"]["llbDefinition"]
    runs = [step["op"]["Op"]["exec"]["meta"]["args"] for step in steps[:-1] if "exec" in step["op"]["Op"]]
    assert runs == [["/bin/sh", "-c", "echo $WHO > /who"]]
    metadata = stated["predicate"]["runDetails"]["metadata"]
    assert metadata["startedOn"] <= metadata["finishedOn"]
    assert metadata["buildkit_completeness"] == {"request": True, "resolvedDependencies": False}
    kit = metadata["buildkit_metadata"]
    assert base64.b64decode(kit["source"]["infos"][0]["data"]).decode() == DOCKERFILE
    manifest = layout.document(image)
    top = next(step["id"] for step in reversed(steps[:-1]))
    assert kit["layers"][f"{top}:0"] == [manifest["layers"]]


def test_little_provenance_tells_no_arguments(build: Build, tmp_path: Path) -> None:
    archive = tmp_path / "image.tar"
    build("--provenance=mode=min,version=v0.2", "--build-arg", "WHO=hunter2", "-o", f"type=oci,dest={archive}")
    layout = unpack(archive, tmp_path / "layout")
    stated = layout.statements(layout.images()[HERE])["https://slsa.dev/provenance/v0.2"]
    assert "hunter2" not in json.dumps(stated)
    assert stated["predicate"]["metadata"]["completeness"]["parameters"] is False
    assert stated["predicate"]["invocation"]["configSource"] == {"entryPoint": "Dockerfile"}
    assert "buildConfig" not in stated["predicate"]


def test_without_provenance_an_archive_has_one_manifest(build: Build, tmp_path: Path) -> None:
    archive = tmp_path / "image.tar"
    for arguments in ((), ("--provenance=false",)):  # the client's own default is for registries
        build(*arguments, "-o", f"type=oci,dest={archive}", "-t", "app")
        layout = unpack(archive, tmp_path / f"layout{len(arguments)}")
        assert layout.root["config"]["mediaType"] == "application/vnd.oci.image.config.v1+json"
        assert layout.named[0]["annotations"]["io.containerd.image.name"] == "docker.io/library/app:latest"
        assert layout.named[0]["annotations"]["org.opencontainers.image.ref.name"] == "latest"


def test_a_push_takes_attestations_along(
    build: Build, daemon: Daemon, host: Host, registry: str, tmp_path: Path
) -> None:
    build("-t", f"{registry}/app:1", "--push", "--annotation", "manifest:who=me", "--annotation", "index:all=us")
    layout = fetch(host, f"{registry}/app:1", tmp_path / "first")
    image = layout.images()[HERE]
    assert SLSA in layout.statements(image)
    assert layout.root["annotations"] == {"all": "us"}
    assert layout.document(image)["annotations"] == {"who": "me"}
    # The store has one image by that name; what it stands for is pushed as a whole, under other names too.
    daemon.docker("tag", f"{registry}/app:1", f"{registry}/other:2")
    daemon.docker("push", f"{registry}/other:2")
    again = fetch(host, f"{registry}/other:2", tmp_path / "second")
    assert again.named[0]["digest"] == layout.named[0]["digest"]
    assert daemon.out("run", "--rm", "--network=none", f"{registry}/other:2", "cat", "/who") == "nobody"
    daemon.docker("rmi", f"{registry}/app:1", f"{registry}/other:2")


def test_attestations_in_the_store_are_pushed_later_and_go_with_the_image(
    build: Build, daemon: Daemon, host: Host, registry: str, tmp_path: Path
) -> None:
    name = f"{registry}/kept:1"
    build("-t", name, "--provenance=mode=min")
    blobs = set((daemon.data_root / "blobs/sha256").iterdir())
    daemon.docker("push", name)
    layout = fetch(host, name, tmp_path / "kept")
    image = layout.images()[HERE]
    assert SLSA in layout.statements(image)
    digest = layout.named[0]["digest"]
    assert daemon.data_root / "blobs/sha256" / digest.removeprefix("sha256:") in blobs
    assert daemon.inspect(name, "image")["RepoDigests"] == [f"{registry}/kept@{digest}"]
    daemon.stop()
    daemon.start()
    daemon.docker("push", name)
    daemon.docker("rmi", name)
    left = {path.name for path in (daemon.data_root / "blobs/sha256").iterdir()}
    assert not left & {digest.removeprefix("sha256:"), image["digest"].removeprefix("sha256:")}


def test_an_image_for_several_platforms(
    build: Build, daemon: Daemon, host: Host, registry: str, tmp_path: Path
) -> None:
    base = f"{registry}/base:1"
    both = ("--platform", f"{HERE},{ELSEWHERE}")
    build(
        *both, "-t", base, "--push", "--provenance=false",
        dockerfile="FROM busybox AS tools\nFROM scratch\nARG TARGETARCH\nCOPY a.txt /$TARGETARCH\n",
    )  # fmt: skip
    layout = fetch(host, base, tmp_path / "base")
    assert sorted(layout.images()) == sorted((HERE, ELSEWHERE))
    assert len(layout.root["manifests"]) == 2
    # On such a base: copies need nobody who runs the other platform's programs, and one's own may prepare them.
    output = build(
        *both, "-t", f"{registry}/app:1", "--push", "--annotation", f"manifest[{ELSEWHERE}]:only=there",
        dockerfile=(
            f"FROM --platform=$BUILDPLATFORM busybox AS made\nARG TARGETPLATFORM BUILDPLATFORM\n"
            "RUN echo $TARGETPLATFORM on $BUILDPLATFORM > /made\n"
            f"FROM {base}\nLABEL a=b\nCOPY --from=made /made /made\n"
        ),
    )  # fmt: skip
    assert f"[{HERE}->{ELSEWHERE.partition('/')[2]} made 2/2] RUN" in output
    layout = fetch(host, f"{registry}/app:1", tmp_path / "app")
    for platform in (HERE, ELSEWHERE):
        image = layout.images()[platform]
        manifest = layout.document(image)
        config = layout.document(manifest["config"])
        assert config["architecture"] == platform.partition("/")[2]
        assert config["config"]["Labels"] == {"a": "b"}
        assert ("annotations" in manifest) == (platform == ELSEWHERE)
        archive = tmp_path / f"layer{platform.replace('/', '-')}"
        archive.write_bytes(layout.blob(manifest["layers"][-1]["digest"]))
        with tarfile.open(archive) as tar:
            file = tar.extractfile("made") or tar.extractfile("./made")
            assert file is not None
            assert file.read().decode() == f"{platform} on {HERE}\n"
        found = layout.statements(image)[SLSA]["predicate"]["buildDefinition"]["resolvedDependencies"]
        uris = [each["uri"] for each in found]
        assert any(uri.startswith(f"pkg:docker/{registry}/base@1?platform=") for uri in uris)
    # Here the name means what this machine runs; the base's other platform has not taken its name.
    assert daemon.inspect(f"{registry}/app:1", "image")["Architecture"] == HERE.partition("/")[2]
    for name in ("app:1", "base:1"):
        daemon.docker("rmi", f"{registry}/{name}")
    left = daemon.out("images", "-q", "--filter", f"reference={registry}/*")
    if left:
        daemon.docker("rmi", *left.split())


def test_the_cache_of_several_platforms_travels(
    build: Build,
    daemon: Daemon,
    new_daemon: Callable[..., Daemon],
    registry: str,
    context: Path,
    buildx_environment: dict[str, str],
) -> None:
    cache = f"type=registry,ref={registry}/cache:1"
    arguments = ("--platform", f"{HERE},{ELSEWHERE}", "-t", "both:1")
    build(
        *arguments, "--cache-to", f"{cache},mode=max",
        dockerfile=(
            "FROM --platform=$BUILDPLATFORM busybox AS made\nARG TARGETARCH\n"
            "RUN cat /proc/sys/kernel/random/uuid > /made; echo $TARGETARCH >> /made\n"
            "FROM scratch\nCOPY --from=made /made /made\n"
        ),
    )  # fmt: skip
    other = new_daemon()
    done = subprocess.run(
        [str(DOCKER), "build", *arguments, "--cache-from", cache, str(context)],
        env={**other.environment(), **buildx_environment}, capture_output=True, text=True, timeout=100, check=True,
    )  # fmt: skip
    assert steps_run(done.stderr) == []
    for platform in (HERE, ELSEWHERE):
        ids = [
            each.out("image", "inspect", "--platform", platform, "-f", "{{.Id}}", "both:1") for each in (daemon, other)
        ]
        assert ids[0] == ids[1]
    daemon.docker("rmi", "both:1")


def test_a_step_for_a_platform_this_machine_cannot_run_is_refused(build: Build) -> None:
    if any(Path("/proc/sys/fs/binfmt_misc").glob("qemu-s390x")):
        pytest.skip("this machine runs s390x through binfmt_misc")
    output = build(
        "--platform", "linux/s390x", dockerfile='FROM scratch\nCOPY a.txt /\nRUN ["/a.txt"]\n', fails=True
    )  # fmt: skip
    assert "linux/s390x" in output
    assert "binfmt_misc" in output
    assert "qemu-user-static" in output
    assert "Dockerfile:3" in output


SCANNER = """\
FROM busybox
COPY --chmod=755 <<'END' /scan
#!/bin/sh
test -e $BUILDKIT_SCAN_SOURCE/a.txt || exit 7
! touch $BUILDKIT_SCAN_SOURCE/x 2>/dev/null || exit 8
cat > $BUILDKIT_SCAN_DESTINATION/sbom.spdx.json <<X
{"_type":"https://in-toto.io/Statement/v0.1","predicateType":"https://spdx.dev/Document","subject":[],
 "predicate":{"name":"made by the test","strict":"$BUILDKIT_SCAN_STRICT"}}
X
END
ENTRYPOINT ["/scan"]
"""


def test_a_scanner_s_bill_of_materials_is_attached(build: Build, daemon: Daemon, tmp_path: Path) -> None:
    build("-t", "scanner", dockerfile=SCANNER)
    archive = tmp_path / "image.tar"
    build(
        "--attest", "type=sbom,generator=scanner,STRICT=yes", "--provenance=false", "-o", f"type=oci,dest={archive}",
        dockerfile=DOCKERFILE,
    )  # fmt: skip
    layout = unpack(archive, tmp_path / "layout")
    stated = layout.statements(layout.images()[HERE])
    assert {kind: each["predicate"] for kind, each in stated.items()} == {
        "https://spdx.dev/Document": {"name": "made by the test", "strict": "yes"}
    }
    output = build("--sbom=true", fails=True)
    assert "docker/buildkit-syft-scanner:stable-1" in output
    assert "load or pull it" in output


def test_an_oci_layout_in_a_folder(build: Build, tmp_path: Path) -> None:
    folder = tmp_path / "layout"
    build("-t", "app:3", "--provenance=true", "-o", f"type=oci,tar=false,dest={folder}")
    layout = Layout(folder)
    assert SLSA in layout.statements(layout.images()[HERE])


def layers_of(layout: Layout) -> list[tuple[str, bytes]]:
    """The types of the one image's layers and their first bytes."""
    return [(layer["mediaType"], layout.blob(layer["digest"])[:4]) for layer in layout.root["layers"]]


GZIP, ZSTD = b"\x1f\x8b\x08\x00", b"\x28\xb5\x2f\xfd"
OCI = "application/vnd.oci.image.layer.v1.tar"
DOCKER_TYPE = "application/vnd.docker.image.rootfs.diff.tar"


def test_layers_are_compressed_as_asked(
    build: Build, daemon: Daemon, new_daemon: Callable[..., Daemon], host: Host, registry: str, tmp_path: Path
) -> None:
    def made(*attributes: str) -> Layout:
        folder = tmp_path / f"layout-{len(list(tmp_path.iterdir()))}"
        build(
            "--provenance=false",
            "-t",
            "app:1",
            "-o",
            ",".join(["type=oci", "tar=false", f"dest={folder}", *attributes]),
        )
        return Layout(folder)

    base, step, copy = layers_of(made("compression=zstd", "force-compression=true"))
    assert base == step == copy == (f"{OCI}+zstd", ZSTD)
    plain = layers_of(made("compression=uncompressed", "force-compression=true"))
    assert {kind for kind, _ in plain} == {OCI}
    docker = layers_of(made("oci-mediatypes=false", "compression=zstd", "force-compression=true"))
    assert {kind for kind, _ in docker} == {f"{DOCKER_TYPE}.zstd"}
    best = made("compression=gzip", "compression-level=9", "force-compression=true")
    assert layers_of(best)[0] == (f"{OCI}+gzip", GZIP)
    first = best.root["layers"][0]["size"]
    assert first < made().root["layers"][0]["size"]

    name = f"{registry}/app:zstd"
    build("-o", f"type=registry,name={name},compression=zstd,force-compression=true", "--provenance=false")
    pushed = layers_of(fetch(host, name, tmp_path / "pushed"))
    assert set(pushed) == {(f"{OCI}+zstd", ZSTD)}
    other = new_daemon(image=False)
    other.docker("pull", name)
    assert other.out("run", "--rm", "--network=none", name, "cat", "/a.txt", "/who").split() == ["a", "nobody"]

    # What stays here in that form is pushed in it later.
    again = f"{registry}/app:later"
    build("-o", f"type=image,name={again},compression=zstd,force-compression=true", "--provenance=false")
    daemon.docker("push", again)
    assert layers_of(fetch(host, again, tmp_path / "later")) == pushed
    archive = tmp_path / "image.tar"
    build("--provenance=false", "-t", "loaded:1", "-o", f"type=docker,dest={archive},compression=zstd")
    daemon.docker("rmi", name, again)
    daemon.docker("load", "-i", str(archive))
    assert daemon.out("run", "--rm", "--network=none", "loaded:1", "cat", "/a.txt") == "a"


def test_what_an_output_cannot_be_is_said(build: Build, tmp_path: Path) -> None:
    assert "failed to push 127.0.0.1:1/nobody:1: " in build("-t", "127.0.0.1:1/nobody:1", "--push", fails=True)
    archive = tmp_path / "image.tar"
    refused = {
        f"type=oci,dest={archive},compression=estargz": "compression estargz is not supported",
        f"type=oci,dest={archive},compression=lz4": "unsupported compression type lz4",
        f"type=oci,dest={archive},oci-mediatypes=false": 'cannot export attestations with "oci-mediatypes=false"',
    }
    for output, words in refused.items():
        assert words in build("--provenance=true", "-o", output, fails=True)
    annotated = ("--annotation", "manifest[linux/s390x]:a=b")
    assert "no platform linux/s390x found in source" in build("-o", f"type=oci,dest={archive}", *annotated, fails=True)
