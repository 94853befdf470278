"""Layers made to do harm: refused with the entry's name or kept inside their folder; nothing outside is touched."""

from __future__ import annotations

import gzip
import os
import stat
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from seacan.errors import InvalidParameter, SeacanError
from seacan.storage.layers import Layers
from tests.unit.storage.archives import Entry, archive, folder, hard_link, symlink, zstd
from tests.unit.storage.conftest import Unpack, database, launcher, layers, trash, unpack

__all__ = ["database", "launcher", "layers", "trash", "unpack"]

if os.geteuid() != 0:
    pytest.skip("unpacking needs root", allow_module_level=True)


@pytest.fixture(autouse=True)
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder beside the layers that must stay as it is; so must the host's."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_bytes(b"untouched")
    passwd = Path("/etc/passwd").stat()
    yield victim
    assert os.listdir(victim) == ["file"] and (victim / "file").read_bytes() == b"untouched"
    assert (victim / "file").stat().st_nlink == 1
    now = Path("/etc/passwd").stat()
    assert (now.st_mtime_ns, now.st_mode, now.st_nlink) == (passwd.st_mtime_ns, passwd.st_mode, passwd.st_nlink)
    assert not Path("/seacan-escaped").exists()


@pytest.mark.parametrize(
    "name",
    [
        "../escaped",
        "a/../../escaped",
        "../../../../../../../../seacan-escaped",
        "..",
        "/..",
        "/../seacan-escaped",
        "./.././x",
    ],
)
async def test_names_that_lead_out_are_refused_by_name(unpack: Unpack, layers: Layers, name: str) -> None:
    with pytest.raises(InvalidParameter) as refusal:
        await unpack(archive([folder("a"), Entry(name, b"x")]))
    assert repr(name) in refusal.value.message and "leads out of the layer" in refusal.value.message
    assert os.listdir(layers.root / "staging") == []


async def test_absolute_names_are_below_the_layer_s_root(unpack: Unpack, outside: Path) -> None:
    staged = await unpack(archive([Entry("/seacan-escaped", b"x"), Entry(f"{outside}/file", b"x")]))
    assert (staged.path / "seacan-escaped").read_bytes() == b"x"


@pytest.mark.parametrize("target", ["/", "/etc", "../../../../../..", "{outside}"])
async def test_writing_through_a_link_stays_inside(unpack: Unpack, outside: Path, target: str) -> None:
    target = target.format(outside=outside)
    try:
        staged = await unpack(
            archive([folder("etc"), symlink("way", target), Entry("way/file", b"x"), Entry("way/passwd", b"root::0:0")])
        )
    except InvalidParameter as refusal:
        assert "'way/file'" in refusal.message  # the target does not exist inside
    else:
        assert staged.path.is_dir()


async def test_links_swapped_for_folders_and_back_stay_inside(unpack: Unpack, outside: Path) -> None:
    swaps = [
        folder("d"),
        Entry("d/file", b"1"),
        symlink("d", str(outside)),
        Entry("d", b"now a file"),
        symlink("d", str(outside)),
        folder("d", 0o777),
        Entry("d/file", b"2"),
        symlink("e", str(outside)),
        folder("e", 0o777, uid=1234),
        Entry("e/file", b"3"),
    ]
    staged = await unpack(archive(swaps))
    assert (staged.path / "d/file").read_bytes() == b"2" and (staged.path / "e/file").read_bytes() == b"3"
    assert not (staged.path / "d").is_symlink()


async def test_attributes_of_folders_do_not_follow_a_late_link(unpack: Unpack, outside: Path) -> None:
    before = outside.stat()
    await unpack(archive([folder("d", 0o777, uid=4321), symlink("d", str(outside))]))
    now = outside.stat()
    assert (now.st_mode, now.st_uid, now.st_mtime_ns) == (before.st_mode, before.st_uid, before.st_mtime_ns)


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../../../../etc/passwd", "{outside}/file", "..", ""])
async def test_hard_links_to_what_is_outside_are_refused_by_name(unpack: Unpack, outside: Path, target: str) -> None:
    with pytest.raises(InvalidParameter, match="'stolen'"):
        await unpack(archive([hard_link("stolen", target.format(outside=outside))]))


async def test_a_hard_link_through_a_link_stays_inside(unpack: Unpack, outside: Path) -> None:
    with pytest.raises(InvalidParameter, match="'stolen'"):
        await unpack(archive([symlink("way", str(outside)), hard_link("stolen", "way/file")]))


async def test_a_hard_link_to_a_link_is_a_link(unpack: Unpack, outside: Path) -> None:
    staged = await unpack(archive([symlink("l", str(outside / "file")), hard_link("h", "l"), Entry("h", b"replaced")]))
    assert (staged.path / "h").read_bytes() == b"replaced" and (staged.path / "l").is_symlink()


@pytest.mark.parametrize("name", [".wh...", ".wh..", ".wh.", "d/.wh...", "../.wh.x"])
async def test_whiteouts_of_what_is_no_file_are_refused(unpack: Unpack, name: str) -> None:
    with pytest.raises(InvalidParameter, match="wh"):
        await unpack(archive([folder("d"), Entry(name)]))


async def test_overlay_s_own_attributes_cannot_be_brought_along(unpack: Unpack) -> None:
    marks = {
        f"SCHILY.xattr.{space}.overlay.{name}": "/etc"
        for space in ("trusted", "user")
        for name in ("redirect", "metacopy")
    }
    staged = await unpack(archive([Entry("f", pax=marks), folder("d", pax=marks)]))
    assert not [name for name in os.listxattr(staged.path / "f") + os.listxattr(staged.path / "d") if "overlay" in name]


@pytest.mark.parametrize("compress", [gzip.compress, zstd], ids=["gzip", "zstd"])
async def test_a_decompression_bomb_ends_at_the_limit(unpack: Unpack, layers: Layers, compress: object) -> None:
    bomb = compress(archive([Entry("zeros", bytes(80 << 20))]))  # type: ignore[operator]
    assert len(bomb) < 1 << 20
    with pytest.raises(InvalidParameter, match="layer expands beyond the limit"):
        await unpack(bomb)
    assert os.listdir(layers.root / "staging") == []


async def test_too_many_entries_end_at_the_limit(unpack: Unpack) -> None:
    one = tarfile.TarInfo("same").tobuf(tarfile.USTAR_FORMAT)
    with pytest.raises(InvalidParameter, match="layer has more than 50000 entries"):
        await unpack(gzip.compress(one * 60_000 + bytes(1024)))


async def test_a_sparse_file_s_size_is_not_its_cost(unpack: Unpack) -> None:
    header = bytearray(tarfile.TarInfo("huge").tobuf(tarfile.GNU_FORMAT))
    header[156:157] = b"S"
    header[386:410] = b"00000000000\x0000000000000\x00"
    header[483:495] = (1 << 95 | 1 << 43).to_bytes(12, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    try:
        staged = await unpack(bytes(header) + bytes(1024))
    except SeacanError as refusal:
        assert "'huge'" in refusal.message  # the file system has no files of that size
    else:
        assert (staged.path / "huge").stat().st_blocks == 0


def _damaged(**fields: bytes) -> bytes:
    places = {"mode": (100, 108), "uid": (108, 116), "size": (124, 136), "checksum": (148, 156)}
    header = bytearray(tarfile.TarInfo("entry").tobuf(tarfile.USTAR_FORMAT))
    for name, value in fields.items():
        start, end = places[name]
        header[start:end] = value.ljust(end - start, b"\0")
    if "checksum" not in fields:
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(1024)


@pytest.mark.parametrize(
    "content",
    [
        _damaged(checksum=b"0000000\0"),
        _damaged(size=b"77777777777\0"),
        _damaged(size=b"-1"),
        _damaged(size=b"\xff" * 12),
        _damaged(size=b"\x80" + b"\xff" * 11),
        _damaged(uid=b"9999999\0"),
        _damaged(mode=b"zzz"),
        b"\0" * 512 + b"x" * 512,
        b"garbage that is no archive at all" * 100,
        archive([Entry("a", pax={"size": "99999999999999999999999"})]),
        archive([Entry("a", pax={"uid": "-5"})]),
        archive([Entry("a", pax={"path": "x\0y"})]),
        archive([Entry("a", pax={"GNU.sparse.map": "5,1,0,1"})]),
        archive([Entry("a", pax={"GNU.sparse.major": "1", "GNU.sparse.minor": "0"})]),
        archive([Entry("a", uid=0xFFFFFFFF)]),
        archive([Entry("a", type=b"Z")]),
    ],
    ids=range(16),
)
async def test_absurd_headers_are_refused(unpack: Unpack, layers: Layers, content: bytes) -> None:
    with pytest.raises(SeacanError, match="layer under test: "):
        await unpack(content)
    assert os.listdir(layers.root / "staging") == []


async def test_a_long_extended_header_is_refused(unpack: Unpack) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = b"x", 2 << 20
    with pytest.raises(InvalidParameter, match="extended header of 2097152 bytes is too long"):
        await unpack(info.tobuf(tarfile.USTAR_FORMAT) + bytes(3 << 20))


async def test_a_layer_cannot_bring_modules_for_its_unpacker(unpack: Unpack, tmp_path: Path) -> None:
    """What dockerd's helper did with libnss in CVE-2019-14271: code of the archive run outside any container."""
    import sys

    planted = b"open('/proc/self/root/pwned', 'w').close()\nraise SystemExit(0)\n"
    entries = [
        Entry(f"{place.lstrip('/')}/{module}.py", planted)
        for place in sys.path
        if place.startswith("/")
        for module in ("traceback", "linecache", "tokenize", "encodings/idna", "_strptime", "lzma")
    ]
    with pytest.raises(SeacanError):
        await unpack(archive([*entries, Entry("../boom")]))
    staged = await unpack(archive(entries))
    assert not (staged.path / "pwned").exists()


async def test_device_nodes_are_only_files_on_disk(unpack: Unpack) -> None:
    """They are made, as dockerd makes them; what a container may open is the device cgroup's decision."""
    staged = await unpack(
        archive([Entry("sda", type=tarfile.BLKTYPE, device=(8, 0), mode=0o666), Entry("sda", b"file")])
    )
    assert stat.S_ISREG((staged.path / "sda").lstat().st_mode)


async def test_a_capability_needs_a_well_formed_attribute(unpack: Unpack) -> None:
    with pytest.raises(SeacanError, match="'f'"):
        await unpack(archive([Entry("f", pax={"SCHILY.xattr.security.capability": "nonsense"})]))
    good = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0).decode("latin-1")
    assert await unpack(archive([Entry("f", pax={"SCHILY.xattr.security.capability": good})]))
