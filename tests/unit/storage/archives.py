"""Makes layer archives for the tests, hostile ones too."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Entry:
    name: str
    content: bytes = b""
    type: bytes = tarfile.REGTYPE
    link: str = ""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: float = 1_000_000_000
    device: tuple[int, int] = (0, 0)
    pax: dict[str, str] = field(default_factory=dict)


def folder(name: str, mode: int = 0o755, **more: object) -> Entry:
    return Entry(name, type=tarfile.DIRTYPE, mode=mode, **more)  # type: ignore[arg-type]


def symlink(name: str, target: str, **more: object) -> Entry:
    return Entry(name, type=tarfile.SYMTYPE, link=target, mode=0o777, **more)  # type: ignore[arg-type]


def hard_link(name: str, target: str, **more: object) -> Entry:
    return Entry(name, type=tarfile.LNKTYPE, link=target, **more)  # type: ignore[arg-type]


def archive(entries: Iterable[Entry], format: int = tarfile.PAX_FORMAT) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=format) as tar:
        for entry in entries:
            info = tarfile.TarInfo(entry.name)
            info.type, info.linkname, info.mode = entry.type, entry.link, entry.mode
            info.uid, info.gid, info.mtime = entry.uid, entry.gid, entry.mtime
            info.devmajor, info.devminor = entry.device
            info.pax_headers = dict(entry.pax)
            info.size = len(entry.content)
            tar.addfile(info, io.BytesIO(entry.content))
    return output.getvalue()


def bzip2(content: bytes) -> bytes:
    import bz2

    return bz2.compress(content)


def xz(content: bytes) -> bytes:
    import lzma

    return lzma.compress(content)


def zstd(content: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor().compress(content)


def gzip_members(content: bytes) -> bytes:
    half = len(content) // 2
    return gzip.compress(content[:half]) + gzip.compress(content[half:])


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "none": lambda content: content,
    "gzip": gzip.compress,
    "gzip in two members": gzip_members,
    "zstd": zstd,
    "xz": xz,
    "bzip2": bzip2,
}
