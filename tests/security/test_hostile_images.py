"""Image archives and documents made to do harm: refused, and nothing of them is left."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from seacan.errors import InvalidParameter, SeacanError
from seacan.images import manifest as manifests
from seacan.images.store import Images
from tests.unit.images.archives import blob, config, digest, docker_archive, layer, layout_files, pack
from tests.unit.images.conftest import (
    EMPTY,
    Load,
    database,
    events,
    folders,
    images,
    launcher,
    load_bytes,
    messages,
)
from tests.unit.storage.archives import Entry

__all__ = ["database", "events", "images", "launcher", "load_bytes", "messages"]

if os.geteuid() != 0:
    pytest.skip("unpacking needs root", allow_module_level=True)

ONE = layer(Entry("one", b"1"))


def with_links(*links: tuple[str, bytes, str]) -> bytes:
    """An archive whose manifest names files that are links."""
    document = config([ONE])
    listing = json.dumps([{"Config": "c.json", "RepoTags": ["evil:1"], "Layers": ["l.tar"]}]).encode()
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as tar:
        for name, content in (("manifest.json", listing), ("real.json", document), ("real.tar", ONE)):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for name, kind, target in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
    return output.getvalue()


def listing(**more: object) -> bytes:
    document = config([ONE])
    item = {"Config": blob(document), "RepoTags": ["evil:1"], "Layers": [blob(ONE)], **more}
    return pack({blob(ONE): ONE, blob(document): document, "manifest.json": json.dumps([item]).encode()})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pack({"../evil": b"x", "manifest.json": b"[]"}), "'../evil': path leads out of the archive"),
        (pack({"a/../../evil": b"x"}), "leads out of the archive"),
        (listing(Config="/etc/passwd"), "'/etc/passwd' leads out of the archive"),
        (listing(Config="../../../../etc/passwd"), "leads out of the archive"),
        (listing(Layers=["../../../etc/shadow"]), "leads out of the archive"),
        (listing(Layers=["/dev/zero"]), "leads out of the archive"),
        (with_links(("c.json", tarfile.SYMTYPE, "/etc/passwd")), "'c.json': link leads out of the archive"),
        (with_links(("c.json", tarfile.SYMTYPE, "../../etc/passwd")), "'c.json': link leads out"),
        (with_links(("c.json", tarfile.LNKTYPE, "/etc/passwd")), "'c.json': link leads out"),
        (
            with_links(("c.json", tarfile.SYMTYPE, "a"), ("a", tarfile.SYMTYPE, "c.json")),
            "too many links",
        ),
        (
            with_links(("c.json", tarfile.SYMTYPE, "real.json"), ("l.tar", tarfile.CHRTYPE, "")),
            "'l.tar': neither file, folder nor link",
        ),
        (pack([("manifest.json", b"[]"), ("manifest.json", b"[ ]")]), "'manifest.json': present twice"),
        (
            pack({**layout_files([ONE]), blob(b"claimed"): b"other"}),
            "content has digest sha256:.*, not sha256:",
        ),
        (pack({"manifest.json": b"[" * 100_000}), "manifest.json is malformed"),
        (pack({"manifest.json": b'[{"Config":"' + b"x" * (17 << 20) + b'"}]'}), "too many for a document"),
        (gzip.compress(pack({"a": bytes(1 << 20)}))[:500], "ends too early"),
    ],
    ids=range(16),
)
async def test_hostile_archives_are_refused_and_leave_nothing(
    load_bytes: Load, images: Images, tmp_path: Path, content: bytes, message: str
) -> None:
    with pytest.raises(InvalidParameter, match=message):
        await load_bytes(content)
    assert images.ids() == [] and folders(tmp_path) == EMPTY


async def test_one_bad_layer_undoes_the_good_ones(load_bytes: Load, images: Images, tmp_path: Path) -> None:
    good = layer(Entry("good", b"g"))
    bad = layer(Entry("../escaped", b"x"))
    with pytest.raises(InvalidParameter, match=r"'../escaped': path leads out of the layer"):
        await load_bytes(docker_archive([good, bad]))
    assert images.ids() == [] and folders(tmp_path) == EMPTY
    assert not (tmp_path / "layers" / "escaped").exists()


async def test_a_good_image_before_a_bad_one_stays(load_bytes: Load, images: Images) -> None:
    good, bad = config([ONE]), config([ONE], os="plan9")
    items = [{"Config": blob(document), "Layers": [blob(ONE)]} for document in (good, bad)]
    files = {blob(ONE): ONE, blob(good): good, blob(bad): bad, "manifest.json": json.dumps(items).encode()}
    with pytest.raises(InvalidParameter, match="plan9"):
        await load_bytes(pack(files))
    assert images.ids() == [digest(good)]


@pytest.mark.parametrize(
    "document",
    [
        b"null",
        b"[]",
        b'"text"',
        b"{}",
        b'{"schemaVersion": 2, "config": 5}',
        b'{"schemaVersion": 2, "config": {"digest": "sha256:../../etc", "size": 1}}',
        b'{"schemaVersion": 2, "config": {"digest": "md5:00", "size": 1}}',
        json.dumps({"schemaVersion": 2, "config": {"digest": digest(b""), "size": -1}}).encode(),
        json.dumps({"schemaVersion": 2, "config": {"digest": digest(b""), "size": 1}, "manifests": []}).encode(),
        json.dumps(
            {"schemaVersion": 2, "mediaType": "text/html", "config": {"digest": digest(b""), "size": 1}}
        ).encode(),
        json.dumps({"manifests": [{"digest": digest(b""), "size": 1}] * 2000}).encode(),
        b'{"a":' * 50_000,
    ],
    ids=range(12),
)
def test_documents_that_are_no_manifests_are_refused(document: bytes) -> None:
    with pytest.raises(InvalidParameter, match="the document"):
        manifests.decode(document, "the document")


async def test_a_damaged_image_does_not_take_the_others_with_it(
    load_bytes: Load, images: Images, tmp_path: Path
) -> None:
    (good,) = await load_bytes(docker_archive([ONE], ["good:1"]))
    (bad,) = await load_bytes(docker_archive([ONE], ["bad:1"], author="x"))
    (tmp_path / "blobs/sha256" / bad.id[7:]).write_bytes(b"{}")
    images.recover()
    images._configs.clear()
    from seacan.images.listing import summaries

    assert [summary.id for summary in summaries(images)] == [good.id]
    with pytest.raises(SeacanError, match=f"image {bad.id} is damaged: blob .* is damaged"):
        images.get("bad:1")
    assert images.remove("bad:1", force=True)
    assert images.get("good:1").id == good.id
