"""Lists of images of several platforms in a registry of ours, pulled by docker.

``docker manifest``, ``docker buildx imagetools`` and ``seacan manifest`` make them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hosts import REPOSITORY, Daemon

REGISTRY = "127.0.0.1:5056"
Run = Callable[..., subprocess.CompletedProcess[str]]
SEACAN = (sys.executable, "-m", "seacan.cli.main")
BUILDX = [
    Path("/usr/libexec/docker/cli-plugins/docker-buildx"),
    Path("/usr/lib/docker/cli-plugins/docker-buildx"),
    Path(os.environ.get("SEACAN_PEERS", "/opt/peers"), "usr/libexec/docker/cli-plugins/docker-buildx"),
]
LIST_TYPES = {
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.index.v1+json",
}


@pytest.fixture
def run(daemon: Daemon, tmp_path: Path) -> Iterator[Run]:
    """Run a client on the registry's host; images ``app-amd64`` and ``app-arm64`` are there."""
    environment = daemon.environment(PYTHONPATH=str(REPOSITORY), DOCKER_CONFIG=str(tmp_path / "config"))

    def run(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            daemon.host.command(*command), capture_output=True, text=True, env=environment, timeout=60, cwd=REPOSITORY
        )
        assert not check or done.returncode == 0, (command, done.stdout, done.stderr)
        return done

    server = subprocess.Popen(
        daemon.host.command(*SEACAN, "registry", "serve", "--root", str(tmp_path / "store"), "--listen", REGISTRY),
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
    )
    assert server.stdout is not None and b"listening" in server.stdout.readline()
    daemon.docker("create", "--name", "rootfs", "busybox")
    daemon.docker("export", "-o", str(tmp_path / "rootfs.tar"), "rootfs")
    names = []
    for architecture in ("amd64", "arm64"):
        names.append(f"{REGISTRY}/app-{architecture}:1")
        platform, change = f"--platform=linux/{architecture}", f"--change=LABEL for={architecture}"
        daemon.docker("import", platform, change, str(tmp_path / "rootfs.tar"), names[-1])
        daemon.docker("push", names[-1])
    daemon.docker("rmi", *names)
    yield run
    server.terminate()
    server.wait()
    server.stdout.close()


def label(daemon: Daemon, name: str, platform: str) -> str:
    daemon.docker("pull", f"--platform={platform}", name)
    found = daemon.out("inspect", "--type=image", "-f", '{{.Architecture}} {{index .Config.Labels "for"}}', name)
    daemon.docker("rmi", name)
    return found


def pulled(daemon: Daemon, name: str) -> list[str]:
    return [label(daemon, name, f"linux/{architecture}") for architecture in ("amd64", "arm64")]


@pytest.mark.parametrize("client", [("docker",), SEACAN], ids=["docker", "seacan"])
def test_a_list_is_made_annotated_and_pushed(daemon: Daemon, run: Run, client: tuple[str, ...]) -> None:
    def manifest(*arguments: str) -> str:
        return run(*client, "manifest", *arguments).stdout.strip()

    name, amd, arm = (f"{REGISTRY}/{image}" for image in ("app:1", "app-amd64:1", "app-arm64:1"))
    assert manifest("create", "--insecure", name, amd) == f"Created manifest list {name}"
    refused = run(*client, "manifest", "create", "--insecure", name, arm, check=False)
    assert refused.returncode == 1
    assert "refusing to amend an existing manifest list with no --amend flag" in refused.stderr
    manifest("create", "--insecure", "--amend", name, arm)
    manifest("annotate", "--variant", "v8", "--os-features", "one,two", name, arm)
    missing = run(*client, "manifest", "annotate", "--arch", "arm", name, f"{REGISTRY}/other:1", check=False)
    assert missing.returncode == 1 and "manifest for image" in missing.stderr
    draft = json.loads(manifest("inspect", name))
    digest = manifest("push", "--insecure", name).splitlines()[-1]
    document = json.loads(manifest("inspect", "--insecure", f"{REGISTRY}/app@{digest}"))
    assert document == draft
    assert document["mediaType"] in LIST_TYPES
    assert [item["platform"] for item in document["manifests"]] == [
        {"architecture": "amd64", "os": "linux"},
        {"architecture": "arm64", "os": "linux", "variant": "v8", "os.features": ["one", "two"]},
    ]
    assert pulled(daemon, name) == ["amd64 amd64", "arm64 arm64"]
    manifest("rm", name)
    gone = run(*client, "manifest", "rm", name, check=False)
    assert gone.returncode == 1 and "No such manifest" in gone.stderr


def test_both_clients_describe_an_image_alike(run: Run) -> None:
    name = f"{REGISTRY}/app-amd64:1"
    for flags in ((), ("-v",)):
        asked = ("manifest", "inspect", "--insecure", *flags, name)
        theirs, ours = (json.loads(run(*client, *asked).stdout) for client in (("docker",), SEACAN))
        assert theirs == ours


def test_an_index_inside_a_list_is_refused(run: Run) -> None:
    name, amd = f"{REGISTRY}/app:1", f"{REGISTRY}/app-amd64:1"
    run(*SEACAN, "manifest", "create", name, amd)
    run(*SEACAN, "manifest", "push", "--purge", name)
    refused = run(*SEACAN, "manifest", "create", f"{REGISTRY}/more:1", name, check=False)
    assert refused.returncode == 1 and "is a manifest list" in refused.stderr
    assert "No such manifest" in run(*SEACAN, "manifest", "push", name, check=False).stderr


def test_imagetools_make_and_read_an_index(daemon: Daemon, run: Run) -> None:
    plugin = next((path for path in BUILDX if path.exists()), None)
    if plugin is None:
        pytest.skip("docker-buildx is not installed")
    buildx = (str(plugin), "imagetools")
    name = f"{REGISTRY}/app:2"
    run(*buildx, "create", "-t", name, f"{REGISTRY}/app-amd64:1")
    run(*buildx, "create", "--append", "-t", name, f"{REGISTRY}/app-arm64:1")
    told = run(*buildx, "inspect", name).stdout
    assert "linux/amd64" in told and "linux/arm64" in told
    raw = json.loads(run(*buildx, "inspect", "--raw", name).stdout)
    assert raw["mediaType"] in LIST_TYPES and len(raw["manifests"]) == 2
    assert pulled(daemon, name) == ["amd64 amd64", "arm64 arm64"]
