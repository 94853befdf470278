"""Digests: how content is named. ``sha256:<64 hex digits>`` everywhere, as in the OCI image specification.

Also chain IDs, which name a stack of layers (https://github.com/opencontainers/image-spec/blob/main/config.md#layer-chainid).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import NewType

from seacan.errors import InvalidParameter

Digest = NewType("Digest", str)
"""``sha256:`` and 64 lower-case hexadecimal digits."""

DiffID = NewType("DiffID", str)
"""The digest of a layer's uncompressed archive."""

ChainID = NewType("ChainID", str)
"""The digest that names a layer together with all layers below it."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)


def parse(text: str) -> Digest:
    """``text`` as a digest; raises :class:`InvalidParameter` in the reference implementation's words."""
    if _DIGEST.fullmatch(text):
        return Digest(text)
    algorithm, colon, _ = text.partition(":")
    if colon and re.fullmatch(r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*", algorithm):
        if algorithm != "sha256":
            raise InvalidParameter("unsupported digest algorithm")
        raise InvalidParameter("invalid checksum digest length")
    raise InvalidParameter("invalid checksum digest format")


def is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


def of(content: bytes | bytearray | memoryview) -> Digest:
    return Digest("sha256:" + hashlib.sha256(content).hexdigest())


def hexadecimal(digest: str) -> str:
    """The digits alone."""
    return digest.partition(":")[2]


def chain_id(parent: ChainID | None, diff: DiffID) -> ChainID:
    """The name of ``diff`` on top of ``parent``."""
    if parent is None:
        return ChainID(diff)
    return ChainID("sha256:" + hashlib.sha256(f"{parent} {diff}".encode()).hexdigest())


def chain_ids(diffs: Iterable[DiffID]) -> list[ChainID]:
    """The chain ID of every prefix of ``diffs``, the lowest first."""
    chain: list[ChainID] = []
    for diff in diffs:
        chain.append(chain_id(chain[-1] if chain else None, diff))
    return chain
