"""The launcher: forks on request, reports ends, survives being killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from seacan.errors import System
from seacan.runtime.launcher import Launcher

HERE = "tests.targets"
ROOT = Path(__file__).parents[3]


@pytest.fixture
async def launcher(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Launcher]:
    monkeypatch.syspath_prepend(str(ROOT))
    launcher = Launcher()
    await launcher.start()
    yield launcher
    await launcher.close()


async def output_of(launcher: Launcher, function: str, argument: str = "") -> tuple[int, str]:
    read, write = os.pipe()
    process = await launcher.launch(f"{HERE}:{function}", argument, [write])
    os.close(write)
    status = await process.wait()
    data = os.read(read, 65536)
    os.close(read)
    return status, data.decode()


async def test_a_target_gets_its_argument_and_descriptors_and_its_return_is_the_status(launcher: Launcher) -> None:
    assert await output_of(launcher, "answer", "hello") == (7, "HELLO")


async def test_a_target_runs_in_a_session_of_its_own_with_nothing_else_open(launcher: Launcher) -> None:
    _, said = await output_of(launcher, "describe")
    open_fds, fd, leader, default = eval(said)
    assert open_fds == [0, 1, 2, fd]
    assert leader
    assert default


async def test_a_signal_that_ends_a_process_is_its_status_plus_128(launcher: Launcher) -> None:
    process = await launcher.launch(f"{HERE}:sleep", "")
    process.kill(signal.SIGKILL)
    assert await process.wait() == 137


async def test_an_exception_is_status_1_and_reaches_the_daemons_standard_error() -> None:
    program = """if True:
        import asyncio
        from seacan.runtime.launcher import Launcher

        async def main():
            launcher = Launcher()
            process = await launcher.launch("tests.targets:fail", "what went wrong")
            print(await process.wait())
            await asyncio.sleep(0.1)
            await launcher.close()

        asyncio.run(main())
    """
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert done.stdout == "1\n"
    assert "ValueError: what went wrong" in done.stderr


async def test_a_target_that_does_not_exist_is_status_1(launcher: Launcher) -> None:
    process = await launcher.launch("seacan.nothing:here", "")
    assert await process.wait() == 1


async def test_many_at_once(launcher: Launcher) -> None:
    results = await asyncio.gather(*(output_of(launcher, "answer", str(number)) for number in range(50)))
    assert results == [(7, str(number)) for number in range(50)]


async def test_it_is_started_again_when_it_was_killed(launcher: Launcher) -> None:
    first = launcher.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await asyncio.sleep(0.3)
    assert await output_of(launcher, "answer", "again") == (7, "AGAIN")
    assert launcher.pid != first


async def test_what_it_had_forked_survives_it_and_can_still_be_waited_for(launcher: Launcher) -> None:
    process = await launcher.launch(f"{HERE}:sleep", "")
    assert launcher.pid is not None
    os.kill(launcher.pid, signal.SIGKILL)
    await asyncio.sleep(0.2)
    os.kill(process.pid, 0)
    waiting = asyncio.create_task(process.wait())
    await asyncio.sleep(0.05)
    assert not waiting.done()
    os.kill(process.pid, signal.SIGKILL)
    assert await waiting == -1


async def test_it_ends_with_its_daemon(launcher: Launcher) -> None:
    pid = launcher.pid
    await launcher.close()
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(System):
        await launcher.launch(f"{HERE}:sleep", "")


async def test_it_holds_no_module_that_would_cost_every_shim_memory(launcher: Launcher) -> None:
    _, loaded = await output_of(launcher, "modules")
    assert not {"asyncio", "logging", "subprocess", "threading", "ssl", "aiohttp"} & set(loaded.split())
