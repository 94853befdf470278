"""Trees of files that are hard to walk."""

from __future__ import annotations

import os
from pathlib import Path


def nest(folder: Path, depth: int) -> None:
    """Make ``depth`` folders called ``d`` in one another: deeper than any path can say."""
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for _ in range(depth):
            os.mkdir("d", dir_fd=at)
            inner = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=at)
            os.close(at)
            at = inner
    finally:
        os.close(at)
