"""Blocking work in a thread, for asyncio code that owns what the thread uses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


async def in_thread(
    function: Callable[Parameters, Result], *arguments: Parameters.args, **options: Parameters.kwargs
) -> Result:
    """Like :func:`asyncio.to_thread`, but it does not return, cancelled or not, before ``function`` has.

    So a descriptor can be closed after it without a thread still writing to the number.
    """
    return await _finish(asyncio.ensure_future(asyncio.to_thread(function, *arguments, **options)), lambda: None)


async def in_thread_until(stop: Callable[[], None], function: Callable[[], Result]) -> Result:
    """Like :func:`in_thread`, for work that waits for something: on cancellation ``stop`` makes it end."""
    return await _finish(asyncio.ensure_future(asyncio.to_thread(function)), stop)


async def _finish(work: asyncio.Future[Result], stop: Callable[[], None]) -> Result:
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.wait((work,))
        except asyncio.CancelledError as error:
            cancelled = error
            stop()
    if cancelled is not None:
        work.exception()
        raise cancelled
    return work.result()
