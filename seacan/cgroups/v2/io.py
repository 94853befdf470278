"""The v2 io controller: weights (BFQ or the cost model) and limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from seacan.cgroups import files
from seacan.cgroups.statistics import BlockEntry, BlockIO, Statistics

if TYPE_CHECKING:
    from seacan.runtime.spec import LinuxResources


def weight(blkio: int) -> int:
    """v1's blkio weight [10, 1000] on io.weight's scale [1, 10000]."""
    return 1 + (blkio - 10) * 9999 // 990


def apply(directory: str, resources: LinuxResources) -> None:
    block = resources.block_io
    if block is None:
        return
    if block.weight or block.weight_device:
        bfq = files.read_if_present(directory, "io.bfq.weight")
        if block.weight:
            if bfq is not None:
                files.write(directory, "io.bfq.weight", str(block.weight))
            else:
                files.write(directory, "io.weight", str(weight(block.weight)))
        if bfq is None or bfq.strip().isdigit():  # no BFQ, or one without weights by device (before Linux 5.4)
            name, convert = "io.weight", True
        else:
            name, convert = "io.bfq.weight", False
        files.write_each(
            directory,
            name,
            [
                f"{item.major}:{item.minor} {weight(item.weight) if convert else item.weight}"
                for item in block.weight_device
                if item.weight
            ],
        )
    for key, throttles in (
        ("rbps", block.throttle_read_bps_device),
        ("wbps", block.throttle_write_bps_device),
        ("riops", block.throttle_read_iops_device),
        ("wiops", block.throttle_write_iops_device),
    ):
        files.write_each(
            directory, "io.max", [f"{item.major}:{item.minor} {key}={item.rate or 'max'}" for item in throttles]
        )


def stats(directory: str, into: Statistics) -> None:
    """io.stat under v1's headings: bytes and operations, by device, "read" and "write"."""
    block = BlockIO()
    block.service_bytes, block.serviced = [], []
    for line in (files.read_if_present(directory, "io.stat") or "").splitlines():
        device, *words = line.split()
        major, colon, minor = device.partition(":")
        if not colon:
            continue
        for word in words:
            key, _, value = word.partition("=")
            if not value.isdigit():
                continue
            target = block.service_bytes if key in ("rbytes", "wbytes") else block.serviced
            if key in ("rbytes", "rios", "wbytes", "wios"):
                target.append(BlockEntry(int(major), int(minor), "read" if key[0] == "r" else "write", int(value)))
    into.block_io = block
