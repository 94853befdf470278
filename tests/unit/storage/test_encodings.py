"""How archives are compressed when they are written: what a client may ask for, and that it is what it gets."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping

import pytest
import zstandard

from seacan.errors import InvalidParameter, SeacanError, Unsupported
from seacan.storage.compression import GZIP, Compression, Encoding, detect, expand

CONTENT = b"the same line, again and again\n" * 20_000


@pytest.mark.parametrize(
    ("attributes", "encoding"),
    [
        ({}, GZIP),
        ({"compression": ""}, GZIP),
        ({"compression": "gzip", "compression-level": "9"}, Encoding(Compression.GZIP, 9)),
        ({"compression": "zstd", "force-compression": ""}, Encoding(Compression.ZSTD, None, True)),
        ({"compression": "zstd", "compression-level": "22"}, Encoding(Compression.ZSTD, 22)),
        ({"compression": "uncompressed", "force-compression": "true"}, Encoding(Compression.NONE, None, True)),
        ({"compression": "uncompressed", "compression-level": "5"}, Encoding(Compression.NONE)),
    ],
)
def test_what_a_client_asks_for(attributes: Mapping[str, str], encoding: Encoding) -> None:
    assert Encoding.read(attributes) == encoding


@pytest.mark.parametrize(
    ("attributes", "error", "words"),
    [
        ({"compression": "estargz"}, Unsupported, "estargz is not supported: choose gzip, zstd or uncompressed"),
        ({"compression": "lz4"}, InvalidParameter, "unsupported compression type lz4"),
        ({"force-compression": "perhaps"}, InvalidParameter, "non-bool value perhaps"),
        ({"compression-level": "high"}, InvalidParameter, "non-integer value high"),
        ({"compression-level": "10"}, InvalidParameter, "gzip: invalid compression level: 10"),
        ({"compression": "zstd", "compression-level": "23"}, InvalidParameter, "a number from 0 to 22"),
        ({"compression-level": "9" * 5000}, InvalidParameter, "invalid compression level"),
    ],
)
def test_what_cannot_be_is_refused(attributes: Mapping[str, str], error: type[SeacanError], words: str) -> None:
    with pytest.raises(error, match=words):
        Encoding.read(attributes)


@pytest.mark.parametrize("kind", [Compression.GZIP, Compression.ZSTD])
@pytest.mark.parametrize("level", [None, 0, 1, 9])
def test_what_is_written_is_read_again(kind: Compression, level: int | None) -> None:
    compressor = Encoding(kind, level).compressor()
    assert compressor is not None
    written = compressor.compress(CONTENT) + compressor.flush()
    assert detect(written) is kind
    chunks = iter([written])
    assert b"".join(expand(lambda: next(chunks, b""))[1]) == CONTENT
    if kind is Compression.GZIP:
        assert gzip.decompress(written) == zlib.decompress(written, 31) == CONTENT


def test_a_higher_level_is_smaller_and_asks_no_more_memory_of_readers_than_they_must_have() -> None:
    sizes = []
    for level in (1, 9, 22):
        compressor = Encoding(Compression.ZSTD, level).compressor()
        assert compressor is not None
        written = compressor.compress(CONTENT) + compressor.compress(bytes(9 << 20)) + compressor.flush()
        assert zstandard.get_frame_parameters(written).window_size <= 8 << 20
        sizes.append(len(written))
    assert sizes == sorted(sizes, reverse=True)


def test_without_compression_there_is_nothing_to_do() -> None:
    assert Encoding(Compression.NONE).compressor() is None


def test_encodings_that_make_other_bytes_have_other_names() -> None:
    names = [Encoding(kind, level).name for kind in (Compression.GZIP, Compression.ZSTD) for level in (None, 1, 2)]
    assert len(set(names)) == len(names)
    assert Encoding(Compression.ZSTD, 3, force=True).name == Encoding(Compression.ZSTD, 3).name
