"""Which engine this is, and which API it speaks."""

from __future__ import annotations

from typing import Final

import seacan

VERSION: Final = seacan.__version__
MOBY_VERSION: Final = "28.5.2"
"""The dockerd release whose behaviour is our specification; tools compare ``ServerVersion`` with dockerd's numbers."""
SERVER_VERSION: Final = f"{MOBY_VERSION}+seacan.{VERSION}"
API_VERSION: Final = (1, 51)
MIN_API_VERSION: Final = (1, 24)


def dotted(version: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in version)
