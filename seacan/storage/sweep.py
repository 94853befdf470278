"""The worker that empties the trash: small, as it runs after every few removals, and an import costs more than they."""

from __future__ import annotations

import os
from collections.abc import Sequence

import msgspec

from seacan.errors import SeacanError
from seacan.storage import tree, worker

_TOLD = 20
"""Failures that are reported, of however many."""


class SweepRequest(msgspec.Struct, frozen=True):
    """``names`` in ``folder`` are to be deleted."""

    folder: str
    names: list[str]


class SweepResult(msgspec.Struct, frozen=True):
    failures: list[str]


def main(argument: str, fds: Sequence[int]) -> int:
    """The worker: deletes."""
    return worker.answer(_sweep, SweepRequest, argument, fds)


def _sweep(request: SweepRequest, _: Sequence[int]) -> SweepResult:
    failures: list[str] = []
    for name in request.names:
        try:
            tree.remove(os.path.join(request.folder, name))
        except (OSError, SeacanError) as error:
            failures.append(str(error))
    return SweepResult(failures[:_TOLD])
