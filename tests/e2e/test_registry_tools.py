"""Other tools' clients against our registry, and on the archives of ``docker save``."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import pytest

from tests.hosts import Daemon, Host


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


@pytest.fixture
def pushed(daemon: Daemon, registry: str) -> tuple[str, str]:
    """An image in the registry: its name and the digest of its manifest."""
    name = f"{registry}/tools/app:1"
    daemon.docker("tag", "busybox", name)
    digest = daemon.out("push", name).rpartition("digest: ")[2].split()[0]
    daemon.docker("rmi", name)
    return name, digest


def test_crane_reads_copies_and_deletes(
    daemon: Daemon, host: Host, pushed: tuple[str, str], registry: str, tmp_path: Path
) -> None:
    crane = tool("crane")
    name, digest = pushed

    def run(*argv: str, check: bool = True) -> str:
        done = host.run(crane, *argv, "--insecure", check=check)
        return done.stdout.strip() + done.stderr.strip()

    assert run("digest", name) == digest
    assert run("ls", f"{registry}/tools/app") == "1"
    run("copy", name, f"{registry}/tools/copy:2")
    assert run("digest", f"{registry}/tools/copy:2") == digest
    assert daemon.out("run", "--rm", "--network", "none", f"{registry}/tools/copy:2", "echo", "hi") == "hi"
    daemon.docker("rmi", f"{registry}/tools/copy:2")
    run("pull", name, str(tmp_path / "pulled.tar"))
    assert name in daemon.out("load", "-i", str(tmp_path / "pulled.tar"))
    daemon.docker("save", "-o", str(tmp_path / "saved.tar"), name)
    run("push", str(tmp_path / "saved.tar"), f"{registry}/tools/saved:1")
    daemon.docker("rmi", name)
    id = daemon.inspect("busybox", "image")["Id"]
    assert json.loads(run("manifest", f"{registry}/tools/saved:1"))["config"]["digest"] == id
    run("delete", f"{registry}/tools/copy@{digest}")
    assert "MANIFEST_UNKNOWN" in run("manifest", f"{registry}/tools/copy:2", check=False)


def test_oras_attaches_an_artifact_that_is_found_by_its_subject(
    host: Host, pushed: tuple[str, str], tmp_path: Path
) -> None:
    oras = tool("oras")
    name, digest = pushed
    (tmp_path / "note.txt").write_text("a note")

    def run(*argv: str) -> str:
        return host.run("env", "-C", str(tmp_path), oras, *argv, "--plain-http").stdout

    run("attach", "--artifact-type", "application/vnd.example.note", name, "note.txt:text/plain")
    found = json.loads(run("discover", "--format", "json", name))
    (artifact,) = found.get("referrers") or found["manifests"]
    assert artifact["artifactType"] == "application/vnd.example.note"
    run("pull", f"{name.rpartition(':')[0]}@{artifact['digest']}", "-o", "out")
    assert (tmp_path / "out/note.txt").read_text() == "a note"
    assert json.loads(run("manifest", "fetch", "--descriptor", name))["digest"] == digest


def test_skopeo_copies_both_ways(
    daemon: Daemon, host: Host, pushed: tuple[str, str], registry: str, tmp_path: Path
) -> None:
    skopeo = tool("skopeo")
    name, digest = pushed
    insecure = (
        "--insecure-policy",
        "--tmpdir",
        str(tmp_path),
        "copy",
        "--src-tls-verify=false",
        "--dest-tls-verify=false",
    )
    host.run(skopeo, *insecure, "--preserve-digests", f"docker://{name}", f"oci:{tmp_path}/layout:1")
    (described,) = json.loads((tmp_path / "layout/index.json").read_text())["manifests"]
    assert described["digest"] == digest
    with tarfile.open(tmp_path / "layout.tar", "w") as tar:
        tar.add(tmp_path / "layout", arcname=".")
    daemon.docker("load", "-i", str(tmp_path / "layout.tar"))
    daemon.docker("save", "-o", str(tmp_path / "saved.tar"), "busybox")
    id = daemon.inspect("busybox", "image")["Id"]
    for transport in ("docker-archive", "oci-archive"):
        target = f"docker://{registry}/tools/{transport}:1"
        host.run(skopeo, *insecure, f"{transport}:{tmp_path}/saved.tar", target)
        told = host.run(skopeo, "inspect", "--tls-verify=false", "--raw", target).stdout
        assert json.loads(told)["config"]["digest"] == id


class Containers:
    """podman or buildah on the daemons' host, with every folder of theirs in the test's own."""

    def __init__(self, name: str, host: Host, folder: Path) -> None:
        self._path = tool(name)
        self._host = host
        policy = {"default": [{"type": "insecureAcceptAnything"}]}
        files = {
            ".config/containers/policy.json": json.dumps(policy),
            "registries.conf": "",
            "storage.conf": f'[storage]\ndriver="vfs"\ngraphroot="{folder}/store"\nrunroot="{folder}/run"\n',
            "containers.conf": f'[engine]\nlock_type="file"\nevents_logger="none"\ntmp_dir="{folder}/libpod"\n',
        }
        (folder / ".config/containers").mkdir(parents=True)
        for file, content in files.items():
            (folder / file).write_text(content)
        self._environment = [
            f"CONTAINERS_REGISTRIES_CONF={folder}/registries.conf",
            f"CONTAINERS_STORAGE_CONF={folder}/storage.conf",
            f"CONTAINERS_CONF={folder}/containers.conf",
            f"TMPDIR={folder}",
            f"HOME={folder}",
        ]

    def run(self, *argv: str) -> str:
        return self._host.run("env", *self._environment, self._path, *argv).stdout.strip()

    def transfer(self, verb: str, *argv: str) -> str:
        """A verb that speaks to a registry."""
        return self.run(*verb.split(), "--tls-verify=false", *argv)


@pytest.mark.parametrize("name", ["podman", "buildah"])
def test_podman_and_buildah_pull_push_and_make_lists(
    daemon: Daemon, host: Host, pushed: tuple[str, str], registry: str, tmp_path: Path, name: str
) -> None:
    theirs = Containers(name, host, tmp_path)
    image, digest = pushed
    id = daemon.inspect("busybox", "image")["Id"]
    assert theirs.transfer("pull", image).splitlines()[-1] == id.removeprefix("sha256:")
    by_digest = f"{image.rpartition(':')[0]}@{digest}"
    assert theirs.transfer("pull", by_digest).splitlines()[-1] == id.removeprefix("sha256:")
    copy, index = f"{registry}/tools/{name}:1", f"{registry}/tools/{name}-list:1"
    theirs.run("tag", image, copy)
    theirs.transfer("push", copy)
    assert daemon.out("run", "--rm", "--network", "none", copy, "echo", "hi") == "hi"
    daemon.docker("rmi", copy)
    theirs.run("manifest", "create", index)
    theirs.transfer("manifest add", index, f"docker://{copy}")
    theirs.transfer("manifest push", "--all", index, f"docker://{index}")
    daemon.docker("pull", index)
    assert daemon.inspect(index, "image")["Id"] == id
    assert "index" in daemon.inspect(index, "image")["Descriptor"]["mediaType"]
    daemon.docker("rmi", index)


def test_buildah_builds_on_an_image_and_commits_to_the_registry(
    daemon: Daemon, host: Host, pushed: tuple[str, str], registry: str, tmp_path: Path
) -> None:
    buildah = Containers("buildah", host, tmp_path)
    (tmp_path / "note.txt").write_text("a note")
    working = buildah.transfer("from", pushed[0]).splitlines()[-1]
    buildah.run("copy", working, str(tmp_path / "note.txt"), "/note.txt")
    buildah.run("config", "--label", "made.by=buildah", "--cmd", "cat /note.txt", working)
    name = f"{registry}/tools/built:1"
    buildah.transfer("commit", "--rm", working, f"docker://{name}")
    assert daemon.out("run", "--rm", "--network", "none", name) == "a note"
    assert daemon.out("inspect", "-f", '{{index .Config.Labels "made.by"}}', name) == "buildah"
    daemon.docker("rmi", "-f", name)
