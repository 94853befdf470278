"""Fixtures: a busybox tree made once, and containers on top of it that are gone after each test."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from seacan.storage.tree import remove
from tests.bundles import Bundles, make_tree, needs_root_and_busybox


@pytest.fixture(scope="session")
def tree() -> Iterator[Path]:
    needs_root_and_busybox()
    folder = Path(tempfile.mkdtemp(prefix="seacan-tree-"))
    folder.chmod(0o755)
    make_tree(folder / "lower")
    yield folder / "lower"
    shutil.rmtree(folder)


@pytest.fixture
def bundles(tree: Path) -> Iterator[Bundles]:
    folder = Path(tempfile.mkdtemp(prefix="seacan-bundle-"))
    folder.chmod(0o755)
    made = Bundles(folder, tree)
    yield made
    made.close()
    remove(str(folder))
