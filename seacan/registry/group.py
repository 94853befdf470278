"""Tasks that live and die together."""

from __future__ import annotations

import asyncio
from types import TracebackType


class Group(asyncio.TaskGroup):
    """A task group that raises the first error itself rather than a group of errors."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await super().__aexit__(kind, error, trace)
        except BaseExceptionGroup as group:
            first: BaseException = group
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            raise first from None
