"""How far the cache of builds is pruned by itself."""

from __future__ import annotations

import pytest

from seacan.engine.options import CacheLimits

GB = 10**9


@pytest.mark.parametrize(
    ("limits", "used", "available", "keep"),
    [
        (CacheLimits(), 5 * GB, 50 * GB, None),  # nothing is short
        (CacheLimits(), 80 * GB, 20 * GB, 75 * GB),  # three quarters of the disk
        (CacheLimits(), 40 * GB, 5 * GB, 25 * GB),  # a fifth is to stay free
        (CacheLimits(), 12 * GB, 0, 10 * GB),  # but a tenth it always has
        (CacheLimits(), 8 * GB, 0, None),
        (CacheLimits(reserved=2 * GB, most=4 * GB, free=0), 8 * GB, 50 * GB, 4 * GB),
        (CacheLimits(reserved=2 * GB, most=0, free=10 * GB), 8 * GB, 7 * GB, 5 * GB),
        (CacheLimits(reserved=2 * GB, most=0, free=10 * GB), 8 * GB, 0, 2 * GB),
        (CacheLimits(enabled=False), 80 * GB, 0, None),
    ],
)
def test_what_is_kept(limits: CacheLimits, used: int, available: int, keep: int | None) -> None:
    assert limits.keep(used, 100 * GB, available) == keep
