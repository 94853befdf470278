"""Images of several platforms under one name, with their attestations: pull, push, save, load, list and remove them."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hosts import REPOSITORY, Daemon, Host
from tests.unit.images.archives import INDEX, MANIFEST, built_for, digest, named_layout


@pytest.fixture(scope="module")
def built() -> tuple[bytes, dict[str, bytes]]:
    return built_for("amd64", "arm64")


@pytest.fixture
def name(daemon: Daemon, registry: str, built: tuple[bytes, dict[str, bytes]], tmp_path: Path) -> Iterator[str]:
    """The image of two platforms in a registry, and not here."""
    index, files = built
    name = f"{registry}/multi:1"
    (tmp_path / "layout.tar").write_bytes(named_layout(name, index, files))
    assert daemon.out("load", "-i", str(tmp_path / "layout.tar")) == f"Loaded image: {name}"
    assert f"digest: {digest(index)}" in daemon.out("push", name)
    daemon.docker("rmi", name)
    assert name not in daemon.out("images", "-a", "--format", "{{.Repository}}:{{.Tag}}")
    yield name
    left = daemon.out("images", "-q", "--no-trunc", "--filter", f"reference={registry}/*").split()
    daemon.docker("rmi", "-f", *left, "none", check=False)


def architecture(daemon: Daemon, *name: str) -> str:
    return daemon.out("image", "inspect", "-f", '{{.Architecture}} {{index .Config.Labels "for"}}', *name)


def manifests(daemon: Daemon, name: str) -> dict[str, dict[str, Any]]:
    """``Manifests`` by kind and platform."""
    images = json.loads(daemon.request("GET", "/v1.51/images/json?manifests=1")[1])
    (listed,) = [image for image in images if name in image["RepoTags"]]
    inspected = json.loads(daemon.request("GET", f"/v1.51/images/{name}/json?manifests=1")[1])
    assert inspected["Manifests"] == listed["Manifests"] and inspected["Descriptor"] == listed["Descriptor"]
    found = {}
    for item in listed["Manifests"]:
        platform = item["ImageData"]["Platform"] if item["Kind"] == "image" else {}
        found[f"{item['Kind']} {platform.get('architecture', item.get('AttestationData', {}).get('For'))}"] = item
    return found


def df(daemon: Daemon) -> list[dict[str, Any]]:
    images: list[dict[str, Any]] = json.loads(daemon.request("GET", "/v1.51/system/df")[1])["Images"]
    return images


def stored(host: Host, name: str, reference: str) -> dict[str, Any]:
    """A manifest as the registry has it."""
    domain, _, repository = name.rpartition(":")[0].partition("/")
    url = f"http://{domain}/v2/{repository}/manifests/{reference}"
    done = host.run("curl", "-sSf", "-H", f"Accept: {INDEX}", "-H", f"Accept: {MANIFEST}", url)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_a_second_platform_comes_beside_the_first(daemon: Daemon, name: str, built: tuple[bytes, Any]) -> None:
    amd, arm = (item["digest"] for item in json.loads(built[0])["manifests"][:2])
    daemon.docker("pull", name)
    assert architecture(daemon, name) == "amd64 amd64"
    for command in (("image", "inspect"), ("history",), ("save",), ("push",)):
        refused = daemon.docker(*command, "--platform", "linux/arm64", name, check=False)
        assert refused.returncode == 1
        assert (
            f"image with reference {name} was found but its platform (linux/amd64) does not match the specified "
            "platform (linux/arm64)"
        ) in refused.stderr
    found = manifests(daemon, name)
    assert {key: item["Available"] for key, item in found.items()} == {
        "image amd64": True,
        "image arm64": False,
        f"attestation {amd}": True,
        f"attestation {arm}": False,
    }
    assert found["image amd64"]["ID"] == amd and found["image amd64"]["Size"]["Total"] > 5000

    assert "Downloaded newer image" in daemon.out("pull", "--platform", "linux/arm64", name)
    assert "Image is up to date" in daemon.out("pull", "--platform", "linux/arm64", name)
    assert architecture(daemon, name) == "amd64 amd64"
    assert architecture(daemon, "--platform", "linux/arm64", name) == "arm64 arm64"
    assert architecture(daemon, arm) == "arm64 arm64"
    assert all(item["Available"] for item in manifests(daemon, name).values())
    lines = daemon.out("images", "-a", "--format", "{{.Repository}}:{{.Tag}}").splitlines()
    assert lines.count(name) == 1 and not any("multi" in line for line in lines if line != name)
    tree = re.sub(r"\x1b\[[0-9;]*m", "", daemon.out("images", "--tree"))
    assert re.search(rf"linux/amd64 +{amd[7:19]}", tree) and re.search(rf"linux/arm64 +{arm[7:19]}", tree)
    missing = daemon.docker("image", "inspect", "--platform", "linux/s390x", name, check=False)
    assert "was found but does not provide the specified platform (linux/s390x)" in missing.stderr
    steps = daemon.out("history", "-q", "--no-trunc", "--platform", "linux/arm64", name)
    assert steps.splitlines()[0] == daemon.out("inspect", "-f", "{{.Id}}", arm)
    daemon.docker("image", "prune", "-f")
    assert architecture(daemon, "--platform", "linux/arm64", name) == "arm64 arm64"

    id = daemon.out("create", "--platform", "linux/arm64", "--pull", "never", name)
    assert daemon.out("inspect", "-f", "{{.Image}}", id) == daemon.out("inspect", "-f", "{{.Id}}", arm)
    in_use = daemon.docker("rmi", "--platform", "linux/arm64", name, check=False)
    assert in_use.returncode == 1 and "is being used by stopped container" in in_use.stderr
    refused = daemon.docker("rmi", name, check=False)
    assert refused.returncode == 1 and f"container {id[:12]} is using its referenced image" in refused.stderr
    assert name not in daemon.out("image", "prune", "-af", "--filter", "label=for=amd64")
    (line,) = [image for image in df(daemon) if name in image["RepoTags"]]
    members = [json.loads(daemon.out("image", "inspect", digest))[0] for digest in (amd, arm)]
    assert (line["Containers"], line["SharedSize"]) == (1, 0)
    assert line["Size"] == sum(member["Size"] for member in members)
    daemon.docker("rm", id)
    assert "Deleted: sha256:" in daemon.out("rmi", "--platform", "linux/arm64", name)
    assert manifests(daemon, name)["image arm64"]["Available"] is False
    daemon.docker("rmi", name)
    assert daemon.docker("image", "inspect", amd, check=False).returncode == 1


def test_an_index_survives_pull_save_load_and_push(
    daemon: Daemon, host: Host, registry: str, name: str, built: tuple[bytes, dict[str, bytes]], tmp_path: Path
) -> None:
    index, files = built
    document = json.loads(index)
    daemon.docker("pull", "--platform", "linux/arm64", name)
    assert architecture(daemon, name) == "arm64 arm64"
    daemon.docker("pull", name)
    assert architecture(daemon, name) == "amd64 amd64"
    daemon.docker("save", "-o", str(tmp_path / "all.tar"), name)
    daemon.docker("save", "-o", str(tmp_path / "arm.tar"), "--platform", "linux/arm64", name)
    with tarfile.open(tmp_path / "all.tar") as archive:
        kept = {member.name for member in archive if member.name.startswith("blobs/sha256/") and member.isfile()}
        (top,) = json.load(archive.extractfile("index.json") or io.BytesIO())["manifests"]
        (listing,) = json.load(archive.extractfile("manifest.json") or io.BytesIO())
    assert kept == {path for path in files if path.startswith("blobs/")}
    assert top["digest"] == digest(index) and top["annotations"]["io.containerd.image.name"] == name
    assert listing["RepoTags"] == [name]
    with tarfile.open(tmp_path / "arm.tar") as archive:
        (top,) = json.load(archive.extractfile("index.json") or io.BytesIO())["manifests"]
    assert top["digest"] == document["manifests"][1]["digest"]

    daemon.docker("rmi", name)
    daemon.docker("load", "--platform", "linux/arm64", "-i", str(tmp_path / "all.tar"))
    assert [item["Available"] for item in manifests(daemon, name).values()] == [False, True, False, True]
    absent = daemon.docker("load", "--platform", "linux/s390x", "-i", str(tmp_path / "all.tar"), check=False)
    assert "requested platform (linux/s390x) not found" in absent.stderr
    daemon.docker("load", "-i", str(tmp_path / "all.tar"))
    assert all(item["Available"] for item in manifests(daemon, name).values())

    other = f"{registry}/other:1"
    daemon.docker("tag", name, other)
    assert f"digest: {digest(index)}" in daemon.out("push", other)
    assert stored(host, other, "1") == document
    for item in document["manifests"]:
        assert stored(host, other, item["digest"])["layers"]
    guarded = daemon.docker("rmi", "--platform", "linux/arm64", name, check=False)
    assert "Content will be removed from all images referencing this variant" in guarded.stderr
    third = f"{registry}/third:1"
    daemon.docker("tag", name, third)
    pushed = daemon.out("push", "--platform", "linux/arm64", third)
    assert f"digest: {document['manifests'][1]['digest']}" in pushed
    assert stored(host, third, "1")["config"]


def test_a_part_of_an_index_is_pushed_as_one_image_and_said_so(
    daemon: Daemon, host: Host, registry: str, name: str, built: tuple[bytes, Any]
) -> None:
    index, (amd, *_) = built[0], json.loads(built[0])["manifests"]
    daemon.docker("pull", name)
    assert f"digest: {digest(index)}" in daemon.out("push", name)  # what is missing here is there
    other = f"{registry}/part:1"
    daemon.docker("tag", name, other)
    told = daemon.out("push", other)
    assert f"digest: {amd['digest']}" in told
    assert "only the available single-platform image was pushed" in told
    assert stored(host, other, "1")["mediaType"] == MANIFEST


def test_the_seacan_command_chooses_platforms_too(
    daemon: Daemon, host: Host, name: str, built: tuple[bytes, Any], tmp_path: Path
) -> None:
    amd, arm = (item["digest"] for item in json.loads(built[0])["manifests"][:2])

    def seacan(*arguments: str) -> str:
        environment = daemon.environment(PYTHONPATH=str(REPOSITORY))
        command = host.command(sys.executable, "-m", "seacan.cli.main", *arguments)
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=True, timeout=60).stdout

    seacan("pull", "--platform", "linux/arm64", name)
    seacan("pull", name)
    assert seacan("image", "inspect", "--platform", "linux/arm64", "-f", "{{.Architecture}}", name).strip() == "arm64"
    assert seacan("history", "-q", "--no-trunc", "--platform", "linux/arm64", name).startswith("sha256:")
    tree = seacan("images", "--tree", name).splitlines()
    assert [line.split()[:3] for line in tree[2:]] == [
        ["├─", "linux/amd64", amd[7:19]],
        ["└─", "linux/arm64", arm[7:19]],
    ]
    seacan("save", "-o", str(tmp_path / "two.tar"), "--platform", "linux/arm64", "--platform", "linux/amd64", name)
    assert "Deleted: sha256:" in seacan("rmi", "--platform", "linux/arm64", name)
    assert "-" in seacan("images", "--tree", name).splitlines()[3].split()
    part = name.replace("/multi:", "/alone:")
    seacan("tag", name, part)
    told = f"Not all of index {digest(built[0])} is here: the image {amd} was pushed alone"
    assert told in seacan("push", part).splitlines()
    seacan("rmi", part)
    seacan("rmi", name)
    assert name in seacan("load", "-i", str(tmp_path / "two.tar"), "--platform", "linux/arm64")
    assert architecture(daemon, name) == "arm64 arm64"
