"""``python -m tests.bench [NAME…]``: run the benchmarks (all, or those named) and write docs/benchmarks.md.

What is written by hand below the last section stays.
"""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

from tests.bench.measure import Table, machine
from tests.hosts import REPOSITORY

# Each module has measure() -> list[Table].
MODULES = ("run", "network", "scale", "images", "registry", "build")
PAGE = REPOSITORY / "docs" / "benchmarks.md"
_SECTION = re.compile(r"<!-- begin (\w+) -->\n(.*?)<!-- end \1 -->\n", re.S)


def main() -> None:
    wanted = sys.argv[1:] or [name for name in MODULES if (Path(__file__).parent / f"{name}.py").exists()]
    before = PAGE.read_text() if PAGE.exists() else ""
    sections = dict(_SECTION.findall(before))
    remarks = before[[found.end() for found in _SECTION.finditer(before)][-1] :] if sections else ""
    for name in wanted:
        tables: list[Table] = importlib.import_module(f"tests.bench.{name}").measure()
        text = f"Measured on {machine()}.\n\n" + "\n".join(table.markdown() for table in tables)
        print(text, flush=True)
        sections[name] = text
    page = ["# Benchmarks\n\n`make bench` writes this page: medians; ours and the peer's runs take turns.\n"]
    page += [
        f"<!-- begin {name} -->\n{sections[name]}<!-- end {name} -->\n"
        for name in [*MODULES, *sorted(set(sections) - set(MODULES))]
        if name in sections
    ]
    PAGE.write_text("\n".join(page) + remarks)


if __name__ == "__main__":
    main()
