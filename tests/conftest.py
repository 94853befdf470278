"""For all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from seacan.storage import tree


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """pytest's, emptied after the test: its own removal recurses, and fails a later run over a tree of some depth."""
    yield tmp_path
    tree.remove(str(tmp_path))
