"""The v1 hugetlb controller."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from seacan.cgroups import files
from seacan.cgroups.statistics import Hugetlb, Statistics

if TYPE_CHECKING:
    from seacan.runtime.spec import LinuxResources


def apply(directory: str, resources: LinuxResources) -> None:
    for page in resources.hugepage_limits:
        files.write(directory, f"hugetlb.{page.page_size}.limit_in_bytes", str(page.limit))
        reserved = f"hugetlb.{page.page_size}.rsvd.limit_in_bytes"
        if files.read_if_present(directory, reserved) is not None:  # since Linux 5.7
            files.write(directory, reserved, str(page.limit))


def stats(directory: str, into: Statistics) -> None:
    for name in os.listdir(directory):
        if name.startswith("hugetlb.") and name.endswith(".usage_in_bytes") and ".rsvd." not in name:
            size = name[len("hugetlb.") : -len(".usage_in_bytes")]
            into.hugetlb[size] = Hugetlb(
                usage=files.number(directory, name),
                max_usage=files.number(directory, f"hugetlb.{size}.max_usage_in_bytes"),
                failcnt=files.number(directory, f"hugetlb.{size}.failcnt"),
            )
