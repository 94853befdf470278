"""The v1 blkio controller: weights (CFQ or BFQ) and throttling."""

from __future__ import annotations

from typing import TYPE_CHECKING

from seacan.cgroups import files
from seacan.cgroups.statistics import BlockEntry, BlockIO, Statistics

if TYPE_CHECKING:
    from seacan.runtime.spec import LinuxResources


def apply(directory: str, resources: LinuxResources) -> None:
    block = resources.block_io
    if block is None:
        return
    weight = "blkio.weight"
    if (block.weight or block.weight_device) and files.read_if_present(directory, weight) is None:
        weight = "blkio.bfq.weight"
    if block.weight:
        files.write(directory, weight, str(block.weight))
    if block.leaf_weight:
        files.write(directory, "blkio.leaf_weight", str(block.leaf_weight))
    for device in block.weight_device:
        if device.weight:
            files.write(directory, f"{weight}_device", f"{device.major}:{device.minor} {device.weight}")
        if device.leaf_weight:
            files.write(directory, "blkio.leaf_weight_device", f"{device.major}:{device.minor} {device.leaf_weight}")
    for name, throttles in (
        ("read_bps", block.throttle_read_bps_device),
        ("write_bps", block.throttle_write_bps_device),
        ("read_iops", block.throttle_read_iops_device),
        ("write_iops", block.throttle_write_iops_device),
    ):
        files.write_each(
            directory, f"blkio.throttle.{name}_device", [f"{item.major}:{item.minor} {item.rate}" for item in throttles]
        )


_ALL = {
    "service_bytes": "io_service_bytes",
    "serviced": "io_serviced",
    "queued": "io_queued",
    "service_time": "io_service_time",
    "wait_time": "io_wait_time",
    "merged": "io_merged",
    "time": "time",
    "sectors": "sectors",
}


def stats(directory: str, into: Statistics) -> None:
    """The first family of files that this kernel's I/O scheduler fills: BFQ, CFQ, then the throttling layer."""
    for pattern in ("blkio.bfq.{}_recursive", "blkio.{}_recursive", "blkio.throttle.{}_recursive", "blkio.throttle.{}"):
        serviced = _entries(directory, pattern.format("io_serviced"))
        if not serviced:
            continue
        throttle = "throttle" in pattern
        into.block_io = BlockIO(
            **{
                field: _entries(directory, pattern.format(name))
                for field, name in _ALL.items()
                if not throttle or field in ("service_bytes", "serviced")
            }
        )
        return


def _entries(directory: str, name: str) -> list[BlockEntry]:
    entries = []
    for line in (files.read_if_present(directory, name) or "").splitlines():
        device, *rest = line.split()
        major, colon, minor = device.partition(":")
        if not colon or not rest:  # the closing "Total n"
            continue
        entries.append(BlockEntry(int(major), int(minor), rest[0] if len(rest) > 1 else "", int(rest[-1])))
    return entries
