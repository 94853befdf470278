"""The pids controller has the same files on v2 as on v1."""

from __future__ import annotations

from seacan.cgroups.v1.pids import apply, stats

__all__ = ["apply", "stats"]
