"""Tables, ``--format``, and the words in which docker writes sizes and times."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from seacan.cli.template import FUNCTIONS, Template, TemplateError, go_json
from seacan.engine.times import human_duration

Row = Mapping[str, Any]
"""One object's columns by their template names; a callable is a method with arguments."""

_PADDING = 3


def tabulate(lines: Iterable[Sequence[str]], *, least: int = 10) -> str:
    """Columns aligned as Go's tabwriter does with docker's settings: ``least`` wide, 3 apart, the last as it is."""
    table = [list(line) for line in lines]
    widths: list[int] = []
    for line in table:
        for index, cell in enumerate(line[:-1]):
            if index == len(widths):
                widths.append(least)
            widths[index] = max(widths[index], len(cell) + _PADDING)
    return "".join(
        "".join(cell.ljust(widths[index]) for index, cell in enumerate(line[:-1])) + (line[-1] if line else "") + "\n"
        for line in table
    )


def write_rows(
    rows: Iterable[Row],
    form: str,
    default: str,
    headers: Mapping[str, str],
    *,
    quiet: str = "",
    is_quiet: bool = False,
) -> None:
    """Print rows in ``form`` ("" or "table": the default table; "table TEMPLATE", "json", or a template).

    ``quiet`` is the template that ``-q`` means.
    """
    if is_quiet and form in ("", "table"):
        form = quiet
    elif form in ("", "table"):
        form = default
    if form in ("json", "{{json .}}"):
        for row in rows:
            print(row_json(row))
        return
    table = form.startswith("table")
    text = unescape(form.removeprefix("table").lstrip()) if table else unescape(form)
    # In a header row functions have nothing to work on: json shows the column's name as it is.
    template = _row_template(text)
    lines = [template.execute(row) for row in rows]
    if table:
        plain = Template(text, functions=dict.fromkeys(("json", "lower", "upper", "title", "truncate", "pad"), _first))
        lines.insert(0, plain.execute(_headers(headers)))
        sys.stdout.write(tabulate(line.split("\t") for line in lines))
    else:
        sys.stdout.write("".join(f"{line}\n" for line in lines))


def _first(value: Any = "", *_: Any) -> Any:
    return value


def _headers(headers: Mapping[str, str]) -> Mapping[str, Any]:
    return {
        **headers,
        "Label": lambda name: re.sub(r"[._-]", " ", str(name).rpartition(".")[2]),
    }


def row_json(row: Row) -> str:
    """A row as ``--format json`` prints it: columns by name, methods with arguments left out."""
    return go_json({name: row[name] for name in sorted(row) if not callable(row[name])})


def _row_json(value: Any) -> str:
    return row_json(value) if isinstance(value, Mapping) else go_json(value)


def _row_template(text: str) -> Template:
    # A row is a struct in docker: a column that does not exist is an error.
    return Template(text, functions={**FUNCTIONS, "json": _row_json}, strict=True)


def unescape(form: str) -> str:
    """``\\t`` and ``\\n`` as typed in a shell."""
    return form.replace(r"\t", "\t").replace(r"\n", "\n")


def write_inspect(objects: Sequence[Any], form: str) -> None:
    """What ``inspect`` prints: a JSON array, ``json`` one object a line, or a template for each."""
    if not form:
        print(json.dumps(objects, indent=4, ensure_ascii=False))
        return
    if form == "json":
        print(json.dumps(objects, separators=(",", ":"), ensure_ascii=False))
        return
    template = Template(unescape(form), strict=True)
    for item in objects:
        try:
            print(template.execute(item))
        except TemplateError as error:
            text = error.message
            raise TemplateError(f"template parsing error: {text}" if "parsing" not in text else text) from None


# --- words ---------------------------------------------------------------------------------------------------------


def ago(unix: float, now: float | None = None) -> str:
    return f"{human_duration((time.time() if now is None else now) - unix)} ago"


def human_size(size: float) -> str:
    """go-units' HumanSizeWithPrecision(size, 3): ``4.49MB``."""
    return _scaled(size, 1000, ("B", "kB", "MB", "GB", "TB", "PB", "EB"), 3)


def binary_size(size: float) -> str:
    """go-units' BytesSize: ``1.95GiB``."""
    return _scaled(size, 1024, ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"), 4)


def _scaled(size: float, base: int, units: Sequence[str], precision: int) -> str:
    index = 0
    while size >= base and index < len(units) - 1:
        size /= base
        index += 1
    text = f"{size:.{precision}g}"
    if "e" in text:
        text = str(int(float(text)))
    return f"{text}{units[index]}"


def local_time(text: str | float) -> str:
    """A time as docker's tables write it: ``2026-01-31 10:20:30 +0000 UTC``."""
    return time.strftime("%Y-%m-%d %H:%M:%S %z %Z", time.localtime(unix_time(text)))


def unix_time(text: str | float) -> float:
    """Seconds since 1970 of an RFC 3339 time."""
    if isinstance(text, int | float):
        return float(text)
    from datetime import datetime

    match = re.fullmatch(r"(.*?)(\.\d+)?(Z|[+-]\d\d:\d\d)", text)
    if match is None:
        return 0.0
    return datetime.fromisoformat(match[1] + match[3].replace("Z", "+00:00")).timestamp() + float(match[2] or 0)


ELLIPSIS: Final = "…"


def ellipsis(text: str, length: int) -> str:
    """``text`` cut to ``length`` characters, the last of them an ellipsis where something was cut."""
    if len(text) <= length:
        return text
    return text[: length - 1] + ELLIPSIS if length > 1 else text[:length]


def short_id(identifier: str) -> str:
    """The twelve characters by which docker shows an ID."""
    return identifier.removeprefix("sha256:")[:12]


Column = Callable[[Mapping[str, Any]], Any]
