"""How far the cache of builds is pruned by itself."""

from __future__ import annotations

import pytest

from seacan.engine.options import CacheLimits, CachePolicy

GB = 10**9


@pytest.mark.parametrize(
    ("limits", "used", "available", "keep"),
    [
        (CacheLimits(), 5 * GB, 50 * GB, 75 * GB),  # nothing is short
        (CacheLimits(), 80 * GB, 20 * GB, 75 * GB),  # three quarters of the disk
        (CacheLimits(), 40 * GB, 5 * GB, 25 * GB),  # a fifth is to stay free
        (CacheLimits(), 12 * GB, 0, 10 * GB),  # but a tenth it always has
        (CacheLimits(reserved=2 * GB, most=4 * GB, free=0), 8 * GB, 50 * GB, 4 * GB),
        (CacheLimits(reserved=2 * GB, most=0, free=10 * GB), 8 * GB, 7 * GB, 5 * GB),
        (CacheLimits(reserved=2 * GB, most=0, free=10 * GB), 8 * GB, 50 * GB, 8 * GB),
        (CacheLimits(reserved=2 * GB, most=0, free=10 * GB), 8 * GB, 0, 2 * GB),
        (CacheLimits(policy=(CachePolicy(reserved=GB),)), 8 * GB, 0, GB),
        (CacheLimits(policy=(CachePolicy(),)), 8 * GB, 0, 0),
    ],
)
def test_what_is_kept(limits: CacheLimits, used: int, available: int, keep: int) -> None:
    assert limits.rules(100 * GB)[-1].keep(used, available) == keep


def test_old_and_easily_made_records_go_first() -> None:
    temporary, old, rest = CacheLimits().rules(100 * GB)
    assert (temporary.unused_for, temporary.kinds[0], temporary.most) == (172800 * 10**9, "source.local", 1_380_000_000)
    assert (old.unused_for, rest.unused_for) == (60 * 86400 * 10**9, 0)
    assert CacheLimits(enabled=False).rules(100 * GB) == ()
