"""The build cache as it travels: what is written is read again, and what is hostile claims nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from seacan.build import cacheconfig
from seacan.build.cacheconfig import Archive, Entry, Record
from seacan.errors import InvalidParameter, SeacanError, Unsupported
from seacan.images.manifest import OCI_LAYER, Descriptor
from seacan.storage import digest as digests
from seacan.storage.digest import DiffID


def key(text: str) -> str:
    return digests.hexadecimal(digests.of(text.encode()))


def archive(text: str) -> Archive:
    content = text.encode()
    descriptor = Descriptor(media_type=f"{OCI_LAYER}+gzip", digest=digests.of(content), size=len(content))
    return Archive(descriptor, DiffID(digests.of(b"unpacked " + content)))


def test_what_is_written_is_read_again() -> None:
    first, second = archive("1"), archive("2")
    records = [
        Record(key("run"), archive=first, created=1_700_000_000_000_000_000),
        Record(key("copy"), (key("run"),), key("definition"), second, first, 1_700_000_001_500_000_000),
        Record(key("unknown result"), (key("copy"),)),
    ]
    config, layers = cacheconfig.encode(records)
    assert [layer.digest for layer in layers] == [first.descriptor.digest, second.descriptor.digest]
    claims = cacheconfig.decode(config, {layer.digest: layer for layer in layers}, "a cache")
    assert claims.steps[key("run")].archive == first
    assert claims.steps[key("run")].created == 1_700_000_000_000_000_000
    assert claims.steps[key("copy")].archive == second
    assert claims.steps[key("unknown result")].archive is None
    assert claims.definitions[key("definition")] == key("copy")


def test_the_form_is_buildkit_s() -> None:
    config, _ = cacheconfig.encode(
        [
            Record(key("run"), archive=archive("1"), created=1_700_000_000_000_000_000),
            Record(key("next"), (key("run"),), archive=archive("2"), below=archive("1")),
        ]
    )
    document = json.loads(config)
    assert [layer["parent"] for layer in document["layers"] if "parent" in layer] == [-1]  # 0 is left out, as Go does
    assert document["layers"][0]["annotations"]["mediaType"] == f"{OCI_LAYER}+gzip"
    assert document["records"][0]["digest"] == f"sha256:{key('run')}"
    assert document["records"][0]["layers"] == [{"layer": 0, "createdAt": "2023-11-14T22:13:20Z"}]
    assert document["records"][1]["inputs"] == [[{"link": 0}]]


def test_an_inline_cache_counts_the_image_s_layers() -> None:
    mine = archive("2")
    config = cacheconfig.encode_inline([Record(key("run"), archive=mine), Record(key("other"))], ["x", mine.diff_id])
    claims = cacheconfig.decode_inline(config, [None, mine], "an image")
    assert claims.steps[key("run")].archive == mine
    assert claims.steps[key("other")].archive is None


def test_no_more_layers_are_exported_than_are_accepted() -> None:
    records = [Record(key(str(number)), archive=archive(str(number))) for number in range(1200)]
    config, layers = cacheconfig.encode(records)
    assert len(layers) == cacheconfig.LAYER_LIMIT
    assert len(json.loads(config)["records"]) == 1200


@pytest.mark.parametrize(
    "document",
    [
        b"", b"[]", b'{"records": 1}', b'{"records": [{"digest": "sha256:../../etc"}]}', b"\xff", b"[" * 100_000,
        b'{"layers": [{"blob": 1}]}', b'{"records": [{"digest": "x"}]}',
    ],
)  # fmt: skip
def test_a_malformed_cache_is_refused(document: bytes) -> None:
    with pytest.raises(InvalidParameter, match="cache of mine"):
        cacheconfig.decode(document, {}, "cache of mine")


@pytest.mark.parametrize("result", [{"layer": 7}, {"layer": -1}, {"layer": 0}, {"layer": 1}])
def test_results_that_lead_nowhere_claim_nothing(result: dict[str, Any]) -> None:
    known = archive("known")
    document = {
        "layers": [
            {"blob": digests.of(b"not in the manifest"), "annotations": {"diffID": known.diff_id}},
            {"blob": known.descriptor.digest, "annotations": {"diffID": "nonsense"}},
        ],
        "records": [{"digest": f"sha256:{key('run')}", "layers": [result], "inputs": [[{"link": 99}], [{"link": -5}]]}],
    }
    blobs = {str(known.descriptor.digest): known.descriptor}
    claims = cacheconfig.decode(json.dumps(document).encode(), blobs, "a cache")
    assert claims.steps[key("run")].archive is None
    assert claims.definitions == {}


@pytest.mark.parametrize(
    ("entry", "error"),
    [
        (Entry("s3", {}), Unsupported),
        (Entry("registry", {"mode": "most"}), InvalidParameter),
        (Entry("registry", {"compression": "estargz"}), Unsupported),
        (Entry("registry", {"compression": "lz4"}), InvalidParameter),
        (Entry("local", {"compression-level": "100"}), InvalidParameter),
        (Entry("registry", {"image-manifest": "true", "oci-mediatypes": "false"}), InvalidParameter),
        (Entry("registry", {"registry.insecure": "true"}), Unsupported),
        (Entry("registry", {"image-manifest": "perhaps"}), InvalidParameter),
        (Entry("local", {"colour": "red"}), Unsupported),
    ],
)
def test_what_is_not_supported_is_refused(entry: Entry, error: type[SeacanError]) -> None:
    with pytest.raises(error):
        entry.check()
        entry.flag("image-manifest", True)
