"""The shim's event loop: epoll and a few timers, synchronous, and small enough to idle in every container's shim."""

from __future__ import annotations

import select
import time
from collections.abc import Callable

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
GONE = select.EPOLLHUP | select.EPOLLERR


class Loop:
    """``failed(fd)`` is called in the handler of an exception that a callback raised; ``fd`` is unwatched then."""

    def __init__(self, failed: Callable[[int], None]) -> None:
        self._failed = failed
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._forgotten: set[int] = set()
        self._timers: list[tuple[float, Callable[[], None]]] = []

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call ``callback(events)`` whenever ``fd`` is ready (level-triggered; GONE is always included)."""
        self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def change(self, fd: int, events: int) -> None:
        self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        """Stop watching; to be called before ``fd`` is closed. Unwatched descriptors are no error."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)
            self._forgotten.add(fd)

    def later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call ``callback`` once, in ``seconds``."""
        self._timers.append((time.monotonic() + seconds, callback))
        self._timers.sort(key=lambda timer: timer[0])

    def cancel(self, callback: Callable[[], None]) -> None:
        self._timers = [timer for timer in self._timers if timer[1] != callback]

    def turn(self) -> None:
        """Wait for something to happen, and handle it."""
        timeout = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else -1
        ready = self._epoll.poll(timeout)
        self._forgotten.clear()
        for fd, events in ready:
            # An earlier callback of this turn may have closed it, and the number may be in use again.
            if fd not in self._forgotten and (callback := self._callbacks.get(fd)) is not None:
                try:
                    callback(events)
                except Exception:
                    self.forget(fd)
                    self._failed(fd)
        while self._timers and self._timers[0][0] <= time.monotonic():
            try:
                self._timers.pop(0)[1]()
            except Exception:
                self._failed(-1)

    def close(self) -> None:
        self._epoll.close()
