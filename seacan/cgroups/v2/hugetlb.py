"""The v2 hugetlb controller."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from seacan.cgroups import files
from seacan.cgroups.statistics import Hugetlb, Statistics

if TYPE_CHECKING:
    from seacan.runtime.spec import LinuxResources


def apply(directory: str, resources: LinuxResources) -> None:
    for page in resources.hugepage_limits:
        files.write(directory, f"hugetlb.{page.page_size}.max", str(page.limit))
        reserved = f"hugetlb.{page.page_size}.rsvd.max"
        if files.read_if_present(directory, reserved) is not None:  # since Linux 5.7
            files.write(directory, reserved, str(page.limit))


def stats(directory: str, into: Statistics) -> None:
    for name in os.listdir(directory):
        if name.startswith("hugetlb.") and name.endswith(".current") and ".rsvd." not in name:
            size = name[len("hugetlb.") : -len(".current")]
            into.hugetlb[size] = Hugetlb(
                usage=files.number(directory, name),
                failcnt=files.pairs(directory, f"hugetlb.{size}.events").get("max", 0),
            )
