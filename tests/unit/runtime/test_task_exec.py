"""Further processes in a running container, asked of its shim."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator

import pytest

from seacan.errors import RuntimeFailed
from seacan.runtime import spec
from seacan.runtime.protocol import ExecExited
from seacan.runtime.task import Task
from tests.bundles import Bundles
from tests.shims import Running, Shims


@pytest.fixture(params=[False, True], ids=["direct", "by makers"])
async def shims(request: pytest.FixtureRequest, bundles: Bundles) -> AsyncIterator[Shims]:
    shims = Shims(bundles, by_makers=request.param)
    yield shims
    await shims.close()


@pytest.fixture
async def running(shims: Shims) -> Running:
    return await shims.start(["sleep", "1000"])


async def test_output_and_exit_code(running: Running) -> None:
    client = await running.exec("e1", ["sh", "-c", "echo out; echo err >&2; exit 5"], multiplexed=True)
    output = await client.read_all()
    assert (b"\x01\x00\x00\x00\x00\x00\x00\x04out\n" in output) and (b"\x02\x00\x00\x00\x00\x00\x00\x04err\n" in output)
    assert (await running.exec_exit("e1")).exit_code == 5
    client.close()


async def test_the_exit_is_known_before_the_client_sees_the_end(running: Running) -> None:
    for number in range(10):
        client = await running.exec(f"e{number}", ["true"])
        await client.read_all()
        assert any(isinstance(event, ExecExited) and event.exec_id == f"e{number}" for event in running.events)
        client.close()


async def test_input_is_passed_on_and_ends_with_the_clients(running: Running) -> None:
    client = await running.exec("e1", ["wc", "-c"], stdin=True)
    await client.write(bytes(200_000))
    client.end_input()
    assert await client.read_all() == b"200000\n"
    client.close()


async def test_without_input_it_reads_nothing(running: Running) -> None:
    client = await running.exec("e1", ["cat"])
    assert await client.read_all() == b""
    client.close()


async def test_a_terminal(running: Running) -> None:
    client = await running.exec("e1", ["sh", "-c", "tty; stty size"], terminal=True)
    output = await client.read_all()
    assert output.startswith(b"/dev/pts/")
    client.close()


async def test_a_terminal_can_be_resized_and_detached_from(running: Running) -> None:
    script = "trap 'stty size' WINCH; echo ready; while :; do sleep 0.01; done"
    client = await running.exec("e1", ["sh", "-c", script], terminal=True, stdin=True, detach_keys=b"q")
    await client.read_until(b"ready")
    await running.task.resize(20, 90, exec_id="e1")
    await client.read_until(b"20 90")
    await client.write(b"q")
    await client.read_all()
    await asyncio.sleep(0.05)
    assert running.detached == ["e1"]
    assert "e1" in running.task.execs
    await running.task.signal(signal.SIGKILL, exec_id="e1")
    assert (await running.exec_exit("e1")).exit_code == 137
    client.close()


async def test_several_at_once(running: Running) -> None:
    async def one(number: int) -> bytes:
        client = await running.exec(f"e{number}", ["sh", "-c", f"sleep 0.1; echo {number}"])
        output = await client.read_all()
        client.close()
        return output

    assert await asyncio.gather(*(one(number) for number in range(10))) == [b"%d\n" % number for number in range(10)]


@pytest.mark.parametrize(("command", "code"), [("/no/such/program", 127), ("/etc/passwd", 126)])
async def test_a_command_that_cannot_run_leaves_the_container_alone(running: Running, command: str, code: int) -> None:
    with pytest.raises(RuntimeFailed) as failed:
        await running.exec("e1", [command])
    assert failed.value.exit_code == code
    assert not list(running.bundle.glob("exec-*"))
    client = await running.exec("e2", ["echo", "fine"])
    assert await client.read_all() == b"fine\n"
    client.close()


async def test_one_that_nobody_attaches_to_runs_all_the_same(running: Running) -> None:
    pid = await running.task.exec("e1", spec.Process(args=["sh", "-c", "echo lost; exit 2"], env=["PATH=/bin"]))
    assert pid > 0
    assert (await running.exec_exit("e1")).exit_code == 2


async def test_a_background_process_does_not_keep_the_client_for_ever(running: Running) -> None:
    client = await running.exec("e1", ["sh", "-c", "sleep 1000 & echo started"])
    assert await client.read_all() == b"started\n"
    assert (await running.exec_exit("e1")).exit_code == 0
    client.close()


async def test_it_ends_with_the_container_and_is_reported_first(running: Running) -> None:
    client = await running.exec("e1", ["sleep", "1000"])
    await running.task.signal(signal.SIGKILL)
    await running.exit()
    assert [type(event).__name__ for event in running.events] == ["ExecExited", "Exited"]
    assert await client.read_all() == b""
    client.close()


async def test_its_end_while_no_daemon_was_there_is_told_to_the_next(running: Running) -> None:
    client = await running.exec("e1", ["sh", "-c", "sleep 0.2; exit 7"])
    running.task.close()
    await client.read_all()
    again = await Task.reconnect(running.bundle, running.on_event)
    assert again is not None
    running.task = again
    assert (await running.exec_exit("e1")).exit_code == 7
    client.close()


async def test_it_cannot_be_had_in_a_container_that_has_ended(shims: Shims) -> None:
    running = await shims.start(["true"])
    await running.exit()
    with pytest.raises(Exception, match=r"not running|stopped"):
        await running.exec("e1", ["true"])
