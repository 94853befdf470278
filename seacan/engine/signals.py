"""Signals by name or number, as Docker's clients write them."""

from __future__ import annotations

import signal

from seacan.errors import InvalidParameter

RTMIN, RTMAX = 34, 64
_BY_NAME = {s.name.removeprefix("SIG"): int(s) for s in signal.Signals if not s.name.startswith("SIGRT")}
_BY_NAME |= {"RTMIN": RTMIN, "RTMAX": RTMAX, "IOT": 6, "CLD": 17, "POLL": 29, "UNUSED": 31, "STKFLT": 16}
_BY_NAME |= {f"RTMIN+{n}": RTMIN + n for n in range(1, 16)} | {f"RTMAX-{n}": RTMAX - n for n in range(1, 15)}


def parse_signal(text: str) -> int:
    """The number of ``TERM``, ``SIGTERM``, ``sigterm`` or ``15``.

    Raises:
        InvalidParameter: no such signal.
    """
    if text.isdecimal():
        number = int(text)
        if number == 0:
            raise InvalidParameter(f"invalid signal: {text}")
        if number > RTMAX:
            raise InvalidParameter(f"the linux daemon does not support signal {number}")
        return number
    number = _BY_NAME.get(text.upper().removeprefix("SIG"), 0)
    if not number:
        raise InvalidParameter(f"invalid signal: {text}")
    return number
