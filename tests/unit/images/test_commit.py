"""Images made here: commit, import, export, and the instructions of ``--change``."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from seacan.errors import InvalidParameter
from seacan.images import manifest as manifests
from seacan.images import reference as references
from seacan.images.changes import apply_changes
from seacan.images.commit import commit, commit_layer, convert_layer, import_archive
from seacan.images.config import Healthcheck, ImageDefaults
from seacan.images.export import export
from seacan.images.store import Images, LayerBlob
from seacan.storage import digest as digests
from seacan.storage.compression import Compression, Encoding, expand
from seacan.storage.mounting import open_rootfs
from tests.unit.images.archives import docker_archive, layer
from tests.unit.images.conftest import Load
from tests.unit.storage.archives import COMPRESSIONS, Entry, archive, folder, hard_link, symlink

BASE = layer(folder("./"), folder("d", 0o750, uid=7), Entry("d/x", b"x"), Entry("gone", b"g"), Entry("same", b"s"))


async def changed(images: Images, load_bytes: Load) -> None:
    (image,) = await load_bytes(docker_archive([BASE], ["base:1"]))
    descriptor = open_rootfs(images.snapshots.prepare("c1", image.chain_id))
    root = Path(f"/proc/self/fd/{descriptor}")
    (root / "d/x").write_bytes(b"changed")
    (root / "gone").unlink()
    (root / "new").write_bytes(b"n")
    os.link(root / "new", root / "d/link")
    os.setxattr(root / "new", "user.k", b"v")
    os.chown(root / "new", 3_000_000_000, 5)
    os.mkfifo(root / "pipe")
    os.close(descriptor)


async def test_a_commit_is_the_parent_and_the_changes(images: Images, load_bytes: Load) -> None:
    await changed(images, load_bytes)
    parent = images.get("base:1")
    image = await commit(
        images,
        "c1",
        ImageDefaults(cmd=["sh"], env=["A=1"]),
        parent=parent,
        author="me",
        comment="why",
        changes=["ENV B=2", "LABEL k=v"],
        reference=references.parse("new:1"),
    )
    assert image.tags == ["new:1"] and image.parent == parent.id
    assert image.config.defaults.env == ["A=1", "B=2"] and image.config.defaults.labels == {"k": "v"}
    assert (image.config.author, image.config.history[-1].comment) == ("me", "why")
    assert image.config.rootfs.diff_ids[:1] == parent.config.rootfs.diff_ids
    descriptor = open_rootfs(images.snapshots.view(image.chain_id))
    root = Path(f"/proc/self/fd/{descriptor}")
    assert sorted(os.listdir(root)) == ["d", "new", "pipe", "same"]
    assert (root / "d/x").read_bytes() == b"changed" and (root / "d").stat().st_uid == 7
    assert (root / "new").stat().st_ino == (root / "d/link").stat().st_ino
    assert (root / "new").stat().st_uid == 3_000_000_000 and os.getxattr(root / "new", "user.k") == b"v"
    assert stat.S_ISFIFO((root / "pipe").stat().st_mode)
    os.close(descriptor)


async def test_the_kept_archive_is_the_layer(images: Images, load_bytes: Load) -> None:
    await changed(images, load_bytes)
    with images.lease() as lease:
        made = await commit_layer(images, "c1", images.get("base:1").chain_id, lease)
        import gzip

        content = gzip.decompress(images.blobs.path(made.blob.digest).read_bytes())
    assert "sha256:" + hashlib.sha256(content).hexdigest() == made.diff_id
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        names = {info.name for info in tar}
    assert {"d", "d/x", "d/link", "new", ".wh.gone"} <= names and "same" not in names


async def test_a_build_s_snapshot_becomes_a_layer_by_moving(images: Images, load_bytes: Load) -> None:
    await changed(images, load_bytes)
    with images.lease() as lease:
        kept = await commit_layer(images, "c1", images.get("base:1").chain_id, lease)
        images.layers.remove(kept.chain_id)
        made = await commit_layer(images, "c1", images.get("base:1").chain_id, lease, take=True)
        assert made.chain_id == kept.chain_id
        path = images.layers.get(made.chain_id).path
        assert (path / "new").read_bytes() == b"n" and not images.snapshots.exists("c1")


@pytest.mark.parametrize("before", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("after", [Compression.NONE, Compression.GZIP, Compression.ZSTD])
async def test_an_archive_compressed_otherwise_unpacks_to_the_same_bytes(
    images: Images, load_bytes: Load, before: str, after: Compression
) -> None:
    (image,) = await load_bytes(docker_archive([BASE], ["base:1"], compress=COMPRESSIONS[before]))
    (blob,) = images.layer_blobs(image.id)
    assert blob is not None
    with images.lease() as lease:
        made = await convert_layer(images, blob, lease, Encoding(after))
        content = images.blobs.path(made.digest).read_bytes()
    assert manifests.layer_compression(made.media_type) == after.value
    assert (digests.of(content), len(content)) == (made.digest, made.size)
    chunks = iter([content])
    kind, expanded = expand(lambda: next(chunks, b""))
    assert (kind, b"".join(expanded)) == (after, BASE)


async def test_a_broken_archive_is_not_compressed_otherwise(images: Images) -> None:
    digest = images.blobs.put(b"\x1f\x8b\x08 and no more")
    with images.lease() as lease, pytest.raises(InvalidParameter, match="gzip stream"):
        await convert_layer(images, LayerBlob(digest, 15, manifests.DOCKER_LAYER_GZIP), lease)


@pytest.mark.parametrize("compression", COMPRESSIONS)
async def test_an_import_is_one_layer_of_the_archive_s_bytes(images: Images, compression: str) -> None:
    plain = archive(
        [folder("bin"), Entry("bin/sh", b"#!", mode=0o755), symlink("sh", "bin/sh"), hard_link("ash", "bin/sh")]
    )

    async def body() -> AsyncIterator[bytes]:
        yield COMPRESSIONS[compression](plain)

    image = await import_archive(
        images, body(), reference=references.parse("imp:1"), message="hello", changes=['CMD ["sh"]', "USER 5"]
    )
    assert image.config.rootfs.diff_ids == ["sha256:" + hashlib.sha256(plain).hexdigest()]
    assert image.config.defaults.cmd == ["sh"] and image.config.defaults.user == "5"
    assert image.config.comment == "hello" and image.tags == ["imp:1"]


async def test_a_bad_import_leaves_nothing(images: Images, tmp_path: Path) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"this is no archive"

    with pytest.raises(InvalidParameter, match="imported archive"):
        await import_archive(images, body())
    assert images.ids() == [] and os.listdir(tmp_path / "blobs/ingest") == [] == os.listdir(tmp_path / "blobs/sha256")


async def test_an_export_is_what_the_container_sees(images: Images, load_bytes: Load) -> None:
    await changed(images, load_bytes)
    rootfs = images.snapshots.rootfs("c1", read_only=True)
    content = b"".join([piece async for piece in export(images.launcher, rootfs)])
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        members = {info.name: info for info in tar}
        assert tar.extractfile("d/x").read() == b"changed"  # type: ignore[union-attr]
    assert "gone" not in members and members["new"].uid == 3_000_000_000
    assert members["d"].uid == 7 and members["d"].mode == 0o750
    assert {members["new"].islnk(), members["d/link"].islnk()} == {True, False}
    assert members["pipe"].isfifo() and ".dockerenv" in members
    again = b"".join([piece async for piece in export(images.launcher, rootfs)])
    assert again == content


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["CMD echo hi"], ImageDefaults(cmd=["/bin/sh", "-c", "echo hi"], entrypoint=["e"], env=["A=1"])),
        (['ENTRYPOINT ["a"]'], ImageDefaults(cmd=None, entrypoint=["a"], env=["A=1"])),
        (['CMD ["x"]', 'ENTRYPOINT ["a"]'], ImageDefaults(cmd=["x"], entrypoint=["a"], env=["A=1"])),
        (["ENV A=2 B='c d'"], ImageDefaults(cmd=["c"], entrypoint=["e"], env=["A=2", "B=c d"])),
        (["env A old form"], ImageDefaults(cmd=["c"], entrypoint=["e"], env=["A=old form"])),
        (
            ["EXPOSE 80 53/udp 1-2"],
            ImageDefaults(
                cmd=["c"],
                entrypoint=["e"],
                env=["A=1"],
                exposed_ports={"80/tcp": {}, "53/udp": {}, "1/tcp": {}, "2/tcp": {}},
            ),
        ),
        (
            ['VOLUME ["/a", "/b"]\nVOLUME /c'],
            ImageDefaults(cmd=["c"], entrypoint=["e"], env=["A=1"], volumes={"/a": {}, "/b": {}, "/c": {}}),
        ),
        (["WORKDIR /a", "WORKDIR b/../c"], ImageDefaults(cmd=["c"], entrypoint=["e"], env=["A=1"], working_dir="/a/c")),
        (
            ["HEALTHCHECK --interval=1m30s --retries=2 CMD true"],
            ImageDefaults(
                cmd=["c"],
                entrypoint=["e"],
                env=["A=1"],
                healthcheck=Healthcheck(test=["CMD-SHELL", "true"], interval=90_000_000_000, retries=2),
            ),
        ),
        (
            ["STOPSIGNAL 9", "ONBUILD RUN x"],
            ImageDefaults(cmd=["c"], entrypoint=["e"], env=["A=1"], stop_signal="9", on_build=["RUN x"]),
        ),
    ],
)
def test_changes(changes: list[str], expected: ImageDefaults) -> None:
    assert apply_changes(ImageDefaults(cmd=["c"], entrypoint=["e"], env=["A=1"]), changes) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("RUN x", "RUN is not a valid change command"),
        ("ENV", "ENV requires at least one argument"),
        ("ENV A", "ENV must have two arguments"),
        ("EXPOSE x", "invalid containerPort: x"),
        ("EXPOSE 99999", "invalid containerPort: 99999"),
        ("ONBUILD FROM x", "FROM isn't allowed as an ONBUILD trigger"),
        ("HEALTHCHECK CMD", "Missing command after HEALTHCHECK CMD"),
    ],
)
def test_changes_that_are_refused(change: str, message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        apply_changes(ImageDefaults(), [change])
