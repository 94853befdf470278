"""Seacan: a container engine that speaks the Docker API, usable as a program and as a library.

    import seacan

    with seacan.run("busybox", ["echo", "hi"]) as container:
        print(container.logs())

Importing this costs nothing: the engine is loaded with the first of the names below that is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seacan.library import AsyncContainer, AsyncEngine, Container, Engine, ExecResult, Image, run

__version__ = "0.1.0"
__all__ = ["AsyncContainer", "AsyncEngine", "Container", "Engine", "ExecResult", "Image", "__version__", "run"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from seacan import library

        return getattr(library, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
