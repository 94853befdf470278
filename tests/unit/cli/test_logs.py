"""The daemon's log lines are dockerd's."""

from __future__ import annotations

import json
import logging
import re
import sys

import pytest

from seacan.cli.logs import JSONFormatter, TextFormatter, configure


def record(message: str, level: int = logging.INFO, *, error: bool = False, **fields: object) -> logging.LogRecord:
    exception = None
    if error:
        try:
            raise ValueError("went wrong")
        except ValueError:
            exception = sys.exc_info()
    made = logging.LogRecord("x", level, "f", 1, message, (), exception)
    made.fields = fields
    return made


def test_text_is_logfmt_with_quoted_messages() -> None:
    line = TextFormatter().format(record('a "b"\nc', logging.WARNING, host="tcp://x:1 y", plain="v-1"))
    assert re.fullmatch(
        r'time="\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}(Z|[+-]\d\d:\d\d)" level=warning msg="a \\"b\\"\\nc" '
        r'host="tcp://x:1 y" plain=v-1',
        line,
    )


def test_json_is_one_object_a_line() -> None:
    found = json.loads(JSONFormatter().format(record("a\nb", logging.CRITICAL, error=True)))
    assert (found["level"], found["msg"], found["error"]) == ("fatal", "a\nb", "went wrong")


def test_the_level_follows_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        configure("error", "text", debug=False)
        assert root.level == logging.ERROR
        configure("error", "json", debug=True)
        assert root.level == logging.DEBUG
        assert isinstance(root.handlers[0].formatter, JSONFormatter)
    finally:
        root.handlers[:], root.level = handlers, level
