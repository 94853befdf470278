"""The order in which a build's steps begin."""

from __future__ import annotations

from typing import Any, cast

import pytest

from seacan.build.graph import Scratch, Vertex
from seacan.build.solver import Build, Result


async def test_steps_begin_in_the_order_of_the_dockerfile(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []

    async def solve(build: Build, vertex: Vertex) -> Result:
        begun.append(vertex.name)
        for each in vertex.inputs:
            await build.solve(each)
        return Result(vertex.name)

    monkeypatch.setattr(Build, "_solve", solve)
    stages = [Vertex(Scratch(), name=f"stage {number}") for number in range(3)]
    last = Vertex(Scratch(), name="base")
    for stage in stages:
        last = Vertex(Scratch(), (last, stage), name=f"copy from {stage.name}")
    nothing = cast(Any, None)
    build = Build(nothing, nothing, nothing)
    assert (await build.solve(last)).key == "copy from stage 2"
    assert begun == ["base", *(name for stage in stages for name in (stage.name, f"copy from {stage.name}"))]
    assert [vertex.name for vertex, _ in build.results()] == begun
