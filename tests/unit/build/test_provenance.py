"""Provenance: what its predicate tells, and what it must not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from seacan.build.graph import (
    CopyFiles,
    Exec,
    FileMount,
    Files,
    GitSource,
    HttpSource,
    ImageSource,
    LocalSource,
    Scratch,
    Source,
    Vertex,
)
from seacan.build.provenance import Facts, Wanted, package_url, predicate, redacted
from seacan.errors import InvalidParameter
from seacan.images.manifest import Platform

COMMIT = "1" * 40
DIGEST = "sha256:" + "ab" * 32


def facts(target: Vertex, wanted: str = "", parameters: Mapping[str, str] | None = None, **more: Any) -> Facts:
    return Facts(
        Wanted.read(wanted), target, "dockerfile.v0", parameters or {}, "Dockerfile", b"FROM x\n", "1.19.0", "id",
        1_000_000_000, 2_000_000_000, **more,
    )  # fmt: skip


def told(facts: Facts) -> dict[str, Any]:
    return dict(json.loads(predicate(facts)))


def run(*inputs: Vertex, mounts: tuple[FileMount, ...] = (), network: str = "default") -> Vertex:
    return Vertex(Exec(("true",), (), "/", "", mounts, network=network), inputs, source=Source(3, 4))


@pytest.mark.parametrize(
    ("reference", "url"),
    [
        ("busybox", "pkg:docker/busybox@latest?platform=linux%2Famd64"),
        ("user/app:1.2", "pkg:docker/user/app@1.2?platform=linux%2Famd64"),
        (f"reg:5000/a/b@{DIGEST}", f"pkg:docker/reg:5000/a/b?digest={DIGEST}&platform=linux%2Famd64"),
    ],
)
def test_an_image_s_package_url(reference: str, url: str) -> None:
    assert package_url(reference, Platform("linux", "amd64")) == url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:hunter2@host/x.git#main", "https://xxxxx:xxxxx@host/x.git#main"),
        ("https://token@host/x.git", "https://xxxxx@host/x.git"),
        ("git@host:x.git", "git@host:x.git"),
        ("https://host/x@y", "https://host/x@y"),
    ],
)
def test_urls_lose_their_passwords(url: str, shown: str) -> None:
    assert redacted(url) == shown


@pytest.mark.parametrize("text", ["mode=most", "version=v9"])
def test_what_is_no_provenance_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameter):
        Wanted.read(text)


def test_materials_are_all_that_came_from_elsewhere() -> None:
    git = Vertex(GitSource("https://me:secret@host/x.git", "main"))
    http = Vertex(HttpSource("https://host/file", "file"))
    image = Vertex(ImageSource("docker.io/library/busybox:1", "", DIGEST), platform=Platform("linux", "arm64"))
    local = Vertex(LocalSource("context"))
    copies = Files((CopyFiles(1, "/", "/"), CopyFiles(2, "/", "/"), CopyFiles(3, "/", "/")))
    target = Vertex(copies, (image, git, http, local))
    found = told(facts(target, sources={git: COMMIT, http: DIGEST}))["buildDefinition"]["resolvedDependencies"]
    assert found == [
        {"uri": "pkg:docker/busybox@1?platform=linux%2Farm64", "digest": {"sha256": "ab" * 32}},
        {"uri": "https://xxxxx:xxxxx@host/x.git#main", "digest": {"sha1": COMMIT}},
        {"uri": "https://host/file", "digest": {"sha256": "ab" * 32}},
    ]


def test_a_build_is_hermetic_only_without_network_and_client_s_files() -> None:
    def metadata(target: Vertex) -> dict[str, Any]:
        return dict(told(facts(target))["runDetails"]["metadata"])

    base = Vertex(Scratch())
    assert metadata(run(base, network="none"))["buildkit_hermetic"]
    assert not metadata(run(base))["buildkit_hermetic"]
    local = Vertex(Files((CopyFiles(1, "/", "/"),)), (base, Vertex(LocalSource("context"))))
    assert not metadata(local)["buildkit_hermetic"]
    assert metadata(local)["buildkit_completeness"] == {"request": True, "resolvedDependencies": False}


def test_arguments_and_secrets_are_told_with_max_alone() -> None:
    secret = FileMount("secret", "/run/secrets/s", id="s", required=True)
    target = run(Vertex(Scratch()), mounts=(secret,))
    parameters = {
        "build-arg:A": "hunter2", "label:l": "hunter2", "target": "t", "filename": "Dockerfile", "platform": "p",
        "attest:provenance": "", "vcs:source": "https://a:b@host/x", "context": "https://a:b@host/y.git",
    }  # fmt: skip
    for mode in ("min", "max"):
        document = told(facts(target, f"mode={mode}", parameters))
        request = document["buildDefinition"]["externalParameters"]["request"]
        assert ("hunter2" in json.dumps(document)) == (mode == "max")
        assert ("secrets" in request) == (mode == "max")
        assert request["args"]["target"] == "t"
        assert not {"platform", "attest:provenance", "vcs:source", "context", "filename"} & set(request["args"])
        source = document["buildDefinition"]["externalParameters"]["configSource"]
        assert source == {"uri": "https://xxxxx:xxxxx@host/y.git", "path": "Dockerfile"}
        metadata = document["runDetails"]["metadata"]
        assert metadata["buildkit_completeness"]["request"] == (mode == "max")
        assert metadata["buildkit_metadata"]["vcs"] == {"source": "https://xxxxx:xxxxx@host/x"}


def test_the_graph_s_steps_refer_to_each_other() -> None:
    base = Vertex(ImageSource("docker.io/library/busybox:1", "", DIGEST), platform=Platform("linux", "amd64"))
    target = run(run(base))
    document = told(facts(target))
    config = document["buildDefinition"]["internalParameters"]["buildConfig"]
    assert [step.get("inputs") for step in config["llbDefinition"]] == [None, ["step0:0"], ["step1:0"], ["step2:0"]]
    digests = {step: digest for digest, step in config["digestMapping"].items()}
    assert config["llbDefinition"][1]["op"]["inputs"] == [{"digest": digests["step0"], "index": 0}]
    where = document["runDetails"]["metadata"]["buildkit_metadata"]["source"]["locations"]["step1"]
    assert where == {"locations": [{"ranges": [{"start": {"line": 3}, "end": {"line": 4}}]}]}
