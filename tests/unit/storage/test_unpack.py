"""What a layer's archive says is what is on disk afterwards."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

from seacan.errors import InvalidParameter
from tests.unit.storage.archives import COMPRESSIONS, Entry, archive, folder, hard_link, symlink
from tests.unit.storage.conftest import Unpack


async def test_files_folders_and_links_come_out_as_they_went_in(unpack: Unpack) -> None:
    staged = await unpack(
        archive(
            [
                folder("./", 0o711),
                folder("bin", 0o755),
                Entry("bin/sh", b"#!", mode=0o755),
                hard_link("bin/ash", "bin/sh", mode=0o755),
                symlink("sh", "bin/sh"),
                symlink("outside", "/etc/passwd"),
                Entry("empty"),
            ]
        )
    )
    root = staged.path
    assert stat.S_IMODE(root.stat().st_mode) == 0o711
    assert (root / "bin/sh").read_bytes() == b"#!"
    assert (root / "bin/ash").stat().st_ino == (root / "bin/sh").stat().st_ino
    assert os.readlink(root / "sh") == "bin/sh"
    assert os.readlink(root / "outside") == "/etc/passwd"
    assert (root / "empty").stat().st_size == 0
    assert staged.size == 2 + len("bin/sh") + len("/etc/passwd")
    assert staged.implied == []


@pytest.mark.parametrize("compression", COMPRESSIONS)
async def test_compression_is_recognised_and_the_diff_id_is_of_the_plain_archive(
    unpack: Unpack, compression: str
) -> None:
    plain = archive([Entry(f"file{number}", os.urandom(3000)) for number in range(100)])
    staged = await unpack(COMPRESSIONS[compression](plain))
    assert staged.diff_id == f"sha256:{hashlib.sha256(plain).hexdigest()}"
    assert staged.archive_size == len(plain)
    assert staged.compression == compression.split()[0]
    assert len(list(staged.path.iterdir())) == 100


async def test_what_follows_the_last_member_counts_for_the_diff_id(unpack: Unpack) -> None:
    plain = archive([Entry("a")]) + bytes(3 << 20)
    assert (await unpack(plain)).diff_id == f"sha256:{hashlib.sha256(plain).hexdigest()}"


async def test_modes_owners_and_times_are_exact(unpack: Unpack) -> None:
    staged = await unpack(
        archive(
            [
                folder("d", 0o2775, uid=3_000_000_000, gid=4_000_000_000, mtime=1_234_567_890.123456789),
                Entry("d/suid", b"x", mode=0o4755, uid=7, gid=8, pax={"mtime": "1700000000.123456789"}),
                Entry("d/sticky", mode=0o1640),
                symlink("d/link", "suid", uid=9, gid=10, pax={"mtime": "1600000000.5"}),
                Entry("old", mtime=-5),
            ]
        )
    )
    d = (staged.path / "d").stat()
    assert (stat.S_IMODE(d.st_mode), d.st_uid, d.st_gid) == (0o2775, 3_000_000_000, 4_000_000_000)
    assert d.st_mtime_ns // 1000 == 1_234_567_890_123_456
    suid = (staged.path / "d/suid").stat()
    assert (stat.S_IMODE(suid.st_mode), suid.st_uid, suid.st_gid) == (0o4755, 7, 8)
    assert suid.st_mtime_ns == 1_700_000_000_123_456_789
    sticky = (staged.path / "d/sticky").stat()
    assert (stat.S_IMODE(sticky.st_mode), sticky.st_gid) == (0o1640, 0)
    link = (staged.path / "d/link").lstat()
    assert (link.st_uid, link.st_gid, link.st_mtime_ns) == (9, 10, 1_600_000_000_500_000_000)
    assert (staged.path / "old").stat().st_mtime_ns == 0


async def test_owners_in_base_256_are_read(unpack: Unpack) -> None:
    staged = await unpack(archive([Entry("f", uid=3_000_000_001, gid=3_000_000_002)], tarfile.GNU_FORMAT))
    info = (staged.path / "f").stat()
    assert (info.st_uid, info.st_gid) == (3_000_000_001, 3_000_000_002)


async def test_extended_attributes_and_capabilities_are_kept(unpack: Unpack) -> None:
    capability = b"\x01\x00\x00\x02\x00\x20\x00\x00" + bytes(12)
    staged = await unpack(
        archive(
            [
                Entry(
                    "ping",
                    b"ELF",
                    mode=0o755,
                    uid=5,
                    pax={
                        "SCHILY.xattr.security.capability": capability.decode("utf-8", "surrogateescape"),
                        "SCHILY.xattr.user.note": "hello",
                    },
                ),
                folder("d", pax={"SCHILY.xattr.user.note": "folder"}),
            ]
        )
    )
    assert os.getxattr(staged.path / "ping", "security.capability") == capability
    assert os.getxattr(staged.path / "ping", "user.note") == b"hello"
    assert os.getxattr(staged.path / "d", "user.note") == b"folder"


async def test_device_nodes_and_pipes_are_made(unpack: Unpack) -> None:
    staged = await unpack(
        archive(
            [
                Entry("null", type=tarfile.CHRTYPE, device=(1, 3), mode=0o666),
                Entry("loop", type=tarfile.BLKTYPE, device=(7, 300), mode=0o660, gid=6),
                Entry("pipe", type=tarfile.FIFOTYPE, mode=0o600),
            ]
        )
    )
    null = (staged.path / "null").lstat()
    assert stat.S_ISCHR(null.st_mode) and null.st_rdev == os.makedev(1, 3) and stat.S_IMODE(null.st_mode) == 0o666
    loop = (staged.path / "loop").lstat()
    assert stat.S_ISBLK(loop.st_mode) and loop.st_rdev == os.makedev(7, 300) and loop.st_gid == 6
    assert stat.S_ISFIFO((staged.path / "pipe").lstat().st_mode)


async def test_whiteouts_become_overlay_s_marks(unpack: Unpack) -> None:
    staged = await unpack(
        archive([folder("d"), Entry("d/.wh.gone"), Entry("d/.wh..wh..opq"), Entry("e/.wh.x"), Entry("d/.wh..wh.aufs")])
    )
    gone = (staged.path / "d/gone").lstat()
    assert stat.S_ISCHR(gone.st_mode) and gone.st_rdev == 0
    assert os.getxattr(staged.path / "d", "trusted.overlay.opaque") == b"y"
    assert stat.S_ISCHR((staged.path / "e/x").lstat().st_mode)
    assert not any(name.startswith(".wh") for name in os.listdir(staged.path / "d"))


@pytest.mark.parametrize("first", ["whiteout", "folder"])
async def test_a_whiteout_hides_lower_layers_and_not_this_one(unpack: Unpack, first: str) -> None:
    entries = [Entry(".wh.d"), folder("d"), Entry("d/new", b"1")]
    if first == "folder":
        entries = entries[1:] + entries[:1]
    staged = await unpack(archive(entries))
    assert (staged.path / "d/new").read_bytes() == b"1"
    assert os.getxattr(staged.path / "d", "trusted.overlay.opaque") == b"y"


async def test_a_file_below_a_whiteout_makes_its_folder_anew(unpack: Unpack) -> None:
    staged = await unpack(archive([Entry(".wh.d"), Entry("d/new", b"1")]))
    assert (staged.path / "d/new").read_bytes() == b"1"
    assert os.getxattr(staged.path / "d", "trusted.overlay.opaque") == b"y"


async def test_later_entries_replace_earlier_ones_and_folders_merge(unpack: Unpack) -> None:
    staged = await unpack(
        archive(
            [
                Entry("a", b"one"),
                Entry("a", b"three"),
                folder("b", 0o700),
                Entry("b/keep", b"k"),
                folder("b", 0o755),
                folder("c"),
                Entry("c/lost", b"lost"),
                Entry("c", b"file"),
                symlink("l", "a"),
                Entry("l", b"not a"),
            ]
        )
    )
    assert (staged.path / "a").read_bytes() == b"three"
    assert (staged.path / "b/keep").exists()
    assert stat.S_IMODE((staged.path / "b").stat().st_mode) == 0o755
    assert (staged.path / "c").read_bytes() == b"file"
    assert (staged.path / "l").read_bytes() == b"not a"
    assert staged.size == 5 + 1 + 4 + 5


async def test_folders_without_an_entry_are_told(unpack: Unpack) -> None:
    staged = await unpack(archive([Entry("a/b/c", b"x"), folder("a")]))
    assert staged.implied == ["", "a/b"]


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
async def test_very_long_names_and_link_targets(unpack: Unpack, format: int) -> None:
    name = "/".join("x" * 200 for _ in range(15)) + "/" + "y" * 250
    target = "t" * 3000
    staged = await unpack(archive([Entry(name, b"deep"), symlink("link", target)], format))
    assert (staged.path / name).read_bytes() == b"deep"
    assert os.readlink(staged.path / "link") == target


async def test_names_longer_than_the_kernel_takes_at_once(unpack: Unpack) -> None:
    name = "/".join("x" * 200 for _ in range(30)) + "/end"
    staged = await unpack(archive([Entry(name, b"deep", uid=5), folder(name + "-folder", 0o700)]))
    content = subprocess.run(["find", ".", "-name", "end*", "-printf", "%m %U\n"], cwd=staged.path, capture_output=True)
    assert sorted(content.stdout.split(b"\n")) == [b"", b"644 5", b"700 0"]
    subprocess.run(["rm", "-rf", staged.path], check=True)


async def test_names_that_are_not_utf_8(unpack: Unpack) -> None:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as tar:
        tar.addfile(tarfile.TarInfo(os.fsdecode(b"caf\xe9")))
    staged = await unpack(output.getvalue())
    assert os.listdir(os.fsencode(staged.path)) == [b"caf\xe9"]


@pytest.mark.parametrize("form", ["gnu", "0.0", "0.1", "1.0"])
async def test_sparse_files_in_every_format(unpack: Unpack, tmp_path: Path, form: str) -> None:
    source = tmp_path / "sparse"
    with source.open("wb") as file:
        file.truncate(9 << 20)
        for offset in range(0, 8 << 20, 1 << 20):
            file.seek(offset + 4096)
            file.write(b"data" * 1024)
    options = ["--format=gnu"] if form == "gnu" else ["--format=posix", f"--sparse-version={form}"]
    subprocess.run(["tar", "-S", *options, "-cf", tmp_path / "a.tar", "-C", tmp_path, "sparse"], check=True)
    assert (tmp_path / "a.tar").stat().st_size < 1 << 20
    staged = await unpack((tmp_path / "a.tar").read_bytes())
    unpacked = staged.path / "sparse"
    assert unpacked.read_bytes() == source.read_bytes()
    assert unpacked.stat().st_blocks * 512 < 1 << 20


async def test_gnu_tar_finds_no_difference_to_its_own_archive(unpack: Unpack, tmp_path: Path) -> None:
    subprocess.run(["tar", "-cf", tmp_path / "a.tar", "-C", Path(os.__file__).parent, "email", "encodings"], check=True)
    staged = await unpack((tmp_path / "a.tar").read_bytes())
    done = subprocess.run(["tar", "-df", tmp_path / "a.tar", "-C", staged.path], capture_output=True, text=True)
    assert done.stdout == "" and done.returncode == 0


@pytest.mark.parametrize("kept", [0.3, 0.9999])
@pytest.mark.parametrize("compression", COMPRESSIONS)
async def test_a_truncated_archive_is_refused(unpack: Unpack, compression: str, kept: float) -> None:
    content = COMPRESSIONS[compression](archive([Entry(f"f{number}", os.urandom(20_000)) for number in range(10)]))
    cut = content[: int(len(content) * kept)]
    if compression == "none" and kept > 0.9:
        pytest.skip("only the padding after the end is lost")
    with pytest.raises(InvalidParameter, match=r"layer under test: .*(EOF|cut short|broken|ends)"):
        await unpack(cut)


async def test_an_empty_archive_is_an_empty_layer(unpack: Unpack) -> None:
    staged = await unpack(bytes(1024))
    assert list(staged.path.iterdir()) == []
    assert staged.implied == [""]
