"""Containers made by another OCI runtime: ours as a program, and runc or crun where the machine has them."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from seacan.errors import RuntimeFailed
from seacan.runtime.bundle import ExternalRuntime
from seacan.runtime.task import lost
from tests.bundles import Bundles
from tests.shims import Shims

OURS = Path(sys.executable).parent / "seacan-runtime"


@pytest.fixture
async def shims(bundles: Bundles) -> AsyncIterator[Shims]:
    shims = Shims(bundles)
    yield shims
    await shims.close()


@pytest.fixture(params=["seacan-runtime", "runc", "crun"])
def runtime(request: pytest.FixtureRequest, tmp_path: Path) -> ExternalRuntime:
    path = str(OURS) if request.param == "seacan-runtime" else shutil.which(request.param)
    if path is None:
        pytest.skip(f"no {request.param} on the PATH")
    return ExternalRuntime(path=path, root=str(tmp_path / "state"))


def containers_of(runtime: ExternalRuntime) -> list[str]:
    return [path.name for path in Path(runtime.root).iterdir() if not path.name.startswith(".")]


async def test_output_and_exit_code(shims: Shims, runtime: ExternalRuntime) -> None:
    exit, output = await shims.run(["sh", "-c", "echo $$ $(hostname); exit 3"], external=runtime)
    assert exit.exit_code == 3
    assert output == b"1 box\n"


async def test_nothing_is_left_when_it_is_gone(shims: Shims, bundles: Bundles, runtime: ExternalRuntime) -> None:
    running = await shims.start(["true"], external=runtime)
    await running.exit()
    await running.task.gone
    assert containers_of(runtime) == []
    assert str(running.bundle) not in Path("/proc/self/mountinfo").read_text()
    assert list(Path("/sys/fs/cgroup").glob(f"*/{bundles.parent.strip('/')}/*/")) == []


async def test_the_sandbox_is_handed_over(shims: Shims, runtime: ExternalRuntime) -> None:
    running = await shims.create(["true"], external=runtime)
    sandbox = await running.task.created()
    assert sandbox.netns is not None
    assert sandbox.rtnl is not None
    await running.task.start()
    assert (await running.exit()).exit_code == 0


async def test_a_terminal(shims: Shims, runtime: ExternalRuntime) -> None:
    exit, output = await shims.run(["sh", "-c", "test -t 0 && echo yes"], external=runtime, terminal=True)
    assert (exit.exit_code, output) == (0, b"yes\r\n")


async def test_execs(shims: Shims, runtime: ExternalRuntime) -> None:
    running = await shims.start(["sleep", "1000"], external=runtime)
    client = await running.exec("e1", ["sh", "-c", "cat; exit 4"], stdin=True)
    await client.write(b"through")
    client.end_input()
    assert await client.read_all() == b"through"
    assert (await running.exec_exit("e1")).exit_code == 4
    client.close()
    client = await running.exec("e2", ["tty"], terminal=True)
    assert (await client.read_all()).startswith(b"/dev/")
    client.close()
    with pytest.raises(RuntimeFailed) as failed:
        await running.exec("e3", ["/no/such/program"])
    assert failed.value.exit_code == 127


async def test_signals(shims: Shims, runtime: ExternalRuntime) -> None:
    running = await shims.start(["sleep", "1000"], external=runtime)
    await running.task.signal(signal.SIGKILL)
    exit = await running.exit()
    assert (exit.exit_code, exit.signal) == (137, signal.SIGKILL)


async def test_a_command_that_does_not_exist(shims: Shims, runtime: ExternalRuntime) -> None:
    with pytest.raises(RuntimeFailed) as failed:
        running = await shims.create(["/no/such/program"], external=runtime)
        await running.task.start()
    assert failed.value.exit_code == 127
    assert containers_of(runtime) == []


async def test_a_lost_one_is_cleaned_up(shims: Shims, runtime: ExternalRuntime) -> None:
    running = await shims.start(["sleep", "1000"], external=runtime)
    pid = (await running.task.created()).pid
    os.kill(await running.shim_pid(), signal.SIGKILL)
    await running.task.gone
    exit = await lost(shims.launcher, running.bundle)
    assert exit is not None
    assert exit.exit_code == 137
    async with asyncio.timeout(5):
        while Path(f"/proc/{pid}").exists():  # until whoever has adopted it reaps it
            await asyncio.sleep(0.01)
    assert containers_of(runtime) == []


async def test_a_runtime_that_is_not_there_is_named(shims: Shims) -> None:
    with pytest.raises(RuntimeFailed, match="/no/such/runtime"):
        await shims.create(["true"], external=ExternalRuntime(path="/no/such/runtime"))
