"""The rdma controller, the same on v1 and v2."""

from __future__ import annotations

from typing import TYPE_CHECKING

from seacan.cgroups import files
from seacan.cgroups.statistics import Rdma, Statistics

if TYPE_CHECKING:
    from seacan.runtime.spec import LinuxResources


def apply(directory: str, resources: LinuxResources) -> None:
    for adapter, limit in resources.rdma.items():
        words = [adapter]
        if limit.hca_handles is not None:
            words.append(f"hca_handle={limit.hca_handles}")
        if limit.hca_objects is not None:
            words.append(f"hca_object={limit.hca_objects}")
        if len(words) > 1:
            files.write(directory, "rdma.max", " ".join(words))


def stats(directory: str, into: Statistics) -> None:
    for line in (files.read_if_present(directory, "rdma.current") or "").splitlines():
        adapter, *words = line.split()
        values = {key: int(value) for key, _, value in (word.partition("=") for word in words) if value.isdigit()}
        into.rdma[adapter] = Rdma(values.get("hca_handle", 0), values.get("hca_object", 0))
