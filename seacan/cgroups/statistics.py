"""What a cgroup has used: one shape for v1 and v2, from which docker stats and ``runc events`` are made.

Units: nanoseconds and bytes.
"""

from __future__ import annotations

import msgspec


class Throttling(msgspec.Struct):
    """CFS bandwidth control: enforcement periods, those in which it was throttled, and for how long (ns)."""

    periods: int = 0
    throttled_periods: int = 0
    throttled_time: int = 0


class CPU(msgspec.Struct):
    """``percpu`` is empty on v2, which does not keep it."""

    usage: int = 0
    user: int = 0
    system: int = 0
    percpu: list[int] = []
    throttling: Throttling = msgspec.field(default_factory=Throttling)


class Memory(msgspec.Struct):
    """``limit`` is the kernel's own figure, v1's "unlimited" (2⁶³ less a page) included; v2's "max" is 2⁶⁴-1.

    ``swap_usage`` and ``swap_limit`` follow v1's meaning (memory plus swap) on both versions. ``stat`` is memory.stat
    as it is, so its keys differ between the versions (as they do in docker stats). ``oom_kills`` counts killed
    processes.
    """

    usage: int = 0
    max_usage: int = 0
    limit: int = 0
    failcnt: int = 0
    swap_usage: int = 0
    swap_max_usage: int = 0
    swap_limit: int = 0
    swap_failcnt: int = 0
    kernel_usage: int = 0
    kernel_tcp_usage: int = 0
    oom_kills: int = 0
    stat: dict[str, int] = {}


class Pids(msgspec.Struct):
    """``limit`` is None when there is none."""

    current: int = 0
    limit: int | None = None


class BlockEntry(msgspec.Struct):
    """One figure of one device; ``op`` is v1's word (Read, Write, Sync, Async, Discard, Total) or v2's lower-case
    one."""

    major: int
    minor: int
    op: str
    value: int


class BlockIO(msgspec.Struct):
    service_bytes: list[BlockEntry] = []
    serviced: list[BlockEntry] = []
    queued: list[BlockEntry] = []
    service_time: list[BlockEntry] = []
    wait_time: list[BlockEntry] = []
    merged: list[BlockEntry] = []
    time: list[BlockEntry] = []
    sectors: list[BlockEntry] = []


class Hugetlb(msgspec.Struct):
    usage: int = 0
    max_usage: int = 0
    failcnt: int = 0


class Rdma(msgspec.Struct):
    """Handles and objects of one host channel adapter in use."""

    hca_handles: int = 0
    hca_objects: int = 0


class Statistics(msgspec.Struct):
    """``version`` is 2 when the memory controller is on the unified hierarchy, else 1: it decides docker's JSON."""

    version: int = 1
    cpu: CPU = msgspec.field(default_factory=CPU)
    memory: Memory = msgspec.field(default_factory=Memory)
    pids: Pids = msgspec.field(default_factory=Pids)
    block_io: BlockIO = msgspec.field(default_factory=BlockIO)
    hugetlb: dict[str, Hugetlb] = {}
    rdma: dict[str, Rdma] = {}
