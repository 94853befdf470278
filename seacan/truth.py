"""Truth values as Go reads them: clients send them in options and queries as text."""

from __future__ import annotations

_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})


def truth(text: str) -> bool | None:
    """What Go's strconv.ParseBool makes of ``text``; None where that is an error."""
    if text in _TRUE:
        return True
    return False if text in _FALSE else None
