"""A client's connection on its way to a container's streams, and the keys that let go of them."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

import msgspec

from seacan.errors import InvalidParameter


class Client(msgspec.Struct, kw_only=True):
    """A stream socket that is to be joined to a container's streams. Whoever holds this owns ``fd``."""

    fd: int
    stdin: bool = False
    stdout: bool = True
    stderr: bool = True
    multiplexed: bool = False
    detach_keys: bytes = b"\x10\x11"
    pending: bytes = b""
    """What had already been read from the client."""

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


Connect = Callable[[bool], Awaitable[Client]]
"""Given whether output is to be multiplexed: answers the client ("101 UPGRADED") and gives up its connection.

Called once nothing can fail any more that could be reported as an HTTP status.
"""

_KEYS = {"@": 0, "[": 27, "\\": 28, "]": 29, "^": 30, "_": 31}


def detach_keys(text: str) -> bytes:
    """The bytes of a key sequence as ``docker`` writes it ("ctrl-p,ctrl-q"); the default sequence for an empty text.

    Raises:
        InvalidParameter: unknown key.
    """
    if not text:
        return b"\x10\x11"
    codes = bytearray()
    for key in text.split(","):
        if len(key) == 1 and ord(key) < 128:
            codes.append(ord(key))
        elif key.startswith("ctrl-") and len(key) == 6:
            last = key[5]
            if "a" <= last <= "z":
                codes.append(ord(last) - ord("a") + 1)
            elif last in _KEYS:
                codes.append(_KEYS[last])
            else:
                raise InvalidParameter(f"Invalid detach keys ({text}) provided")
        else:
            raise InvalidParameter(f"Invalid detach keys ({text}) provided")
    return bytes(codes)
