"""Several folder trees walked in step by descriptor, however deep they are.

Trees are made by hostile hands: no name is resolved through a link, no path is put together, and there is one
descriptor for each tree, that goes down by name and up by ".." (where it must find the folder it came from), so that
neither the stack nor the number of descriptors sets a limit.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from types import TracebackType
from typing import Self

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Descent:
    """A walk through the trees whose roots are ``folders`` (descriptors, also with O_PATH, that stay the caller's).

    ``here`` has a descriptor of the folder that each tree is at. A level need not concern every tree: those that have
    not taken the step wait where they are.
    """

    def __init__(self, folders: Sequence[int]) -> None:
        self.here: list[int] = []
        self._levels: list[list[tuple[int, tuple[int, int]]]] = []
        try:
            for folder in folders:
                self.here.append(os.open(".", FOLDER, dir_fd=folder))
        except OSError:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        while self.here:
            os.close(self.here.pop())

    def down(self) -> None:
        """Begin a level; :meth:`step` takes trees along."""
        self._levels.append([])

    def step(self, tree: int, name: str) -> None:
        """Let one tree go into its folder ``name``. Raises OSError, and then it is where it was."""
        inner = os.open(name, FOLDER, dir_fd=self.here[tree])
        self._levels[-1].append((tree, _identity(self.here[tree])))
        os.close(self.here[tree])
        self.here[tree] = inner

    def up(self) -> None:
        """Take back every step of the last level. Raises OSError (ESTALE) where a tree has been changed meanwhile."""
        for tree, identity in self._levels.pop():
            above = os.open("..", FOLDER, dir_fd=self.here[tree])
            os.close(self.here[tree])
            self.here[tree] = above
            if _identity(above) != identity:
                raise OSError(errno.ESTALE, "the tree is being changed while it is walked")


def _identity(folder: int) -> tuple[int, int]:
    found = os.fstat(folder)
    return found.st_dev, found.st_ino
