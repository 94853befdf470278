"""Attached clients: what they see, what they may type, and what becomes of them."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
from collections.abc import AsyncIterator

import pytest

from seacan.runtime.streams import DetachKeys
from seacan.runtime.task import Task
from tests.bundles import Bundles
from tests.shims import Shims


@pytest.fixture(params=[False, True], ids=["direct", "by makers"])
async def shims(request: pytest.FixtureRequest, bundles: Bundles) -> AsyncIterator[Shims]:
    shims = Shims(bundles, by_makers=request.param)
    yield shims
    await shims.close()


def frames(data: bytes) -> list[tuple[int, bytes]]:
    found = []
    while data:
        stream, size = struct.unpack(">BxxxL", data[:8])
        found.append((stream, data[8 : 8 + size]))
        data = data[8 + size :]
    return found


# --- output -----------------------------------------------------------------------------------------------------


async def test_output_is_multiplexed_with_dockers_header(shims: Shims) -> None:
    running = await shims.create(["sh", "-c", "echo out; echo err >&2"])
    client = await running.attach(multiplexed=True)
    await running.task.start()
    assert sorted(frames(await client.read_all())) == [(1, b"out\n"), (2, b"err\n")]
    client.close()


@pytest.mark.parametrize(("streams", "seen"), [({"stdout": False}, b"err\n"), ({"stderr": False}, b"out\n")])
async def test_a_client_may_want_one_stream_only(shims: Shims, streams: dict[str, bool], seen: bytes) -> None:
    running = await shims.create(["sh", "-c", "echo out; echo err >&2"])
    client = await running.attach(**streams)
    await running.task.start()
    assert await client.read_all() == seen
    client.close()


async def test_every_client_gets_everything(shims: Shims) -> None:
    running = await shims.create(["seq", "1", "50000"])
    clients = [await running.attach() for _ in range(3)]
    await running.task.start()
    outputs = await asyncio.gather(*(client.read_all() for client in clients))
    expected = b"".join(b"%d\n" % number for number in range(1, 50001))
    assert outputs == [expected] * 3
    for client in clients:
        client.close()


async def test_a_client_that_attaches_late_sees_what_comes_then(shims: Shims) -> None:
    running = await shims.start(["sh", "-c", "echo first; read line; echo $line"], open_stdin=True)
    await asyncio.sleep(0.2)
    client = await running.attach(stdin=True)
    await client.write(b"second\n")
    assert await client.read_all() == b"second\n"
    client.close()


async def test_a_slow_client_holds_the_container_up_and_loses_nothing(shims: Shims) -> None:
    running = await shims.create(["sh", "-c", "dd if=/dev/zero bs=1M count=8 2>/dev/null; echo end >&2"])
    slow = await running.attach(stderr=False)
    other = await running.attach(stdout=False)
    await running.task.start()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await asyncio.get_running_loop().sock_recv(other.near, 10)
    assert len(await slow.read_all()) == 8 << 20
    assert await other.read_all() == b"end\n"
    slow.close()
    other.close()


async def test_a_client_that_goes_away_holds_nobody_up(shims: Shims) -> None:
    running = await shims.create(["sh", "-c", "dd if=/dev/zero bs=1M count=8 2>/dev/null; exit 3"])
    client = await running.attach()
    await running.task.start()
    await client.read(1000)
    client.close()
    assert (await running.exit()).exit_code == 3


async def test_what_was_written_last_still_arrives_after_the_exit(shims: Shims) -> None:
    running = await shims.create(["dd", "if=/dev/zero", "bs=64k", "count=1"])
    client = await running.attach(stderr=False)
    await running.task.start()
    await running.exit()
    assert len(await client.read_all()) == 65536
    client.close()


async def test_a_stream_that_a_process_elsewhere_keeps_open_does_not_hold_up_the_exit(
    shims: Shims, bundles: Bundles
) -> None:
    # Its PID namespace is the host's, and the process has left its cgroup's kill behind by being no part of it.
    running = await shims.create(["sleep", "1000"])
    client = await running.attach()
    await running.task.start()
    sandbox = await running.task.created()
    held = os.open(f"/proc/{sandbox.pid}/fd/1", os.O_WRONLY)
    await running.task.signal(signal.SIGKILL)
    assert (await running.exit()).exit_code == 137
    assert await client.read_all() == b""
    os.close(held)
    client.close()


# --- input ------------------------------------------------------------------------------------------------------


async def test_without_open_stdin_input_is_empty(shims: Shims) -> None:
    running = await shims.create(["cat"])
    client = await running.attach(stdin=True)
    await client.write(b"ignored")
    await running.task.start()
    assert await client.read_all() == b""
    assert (await running.exit()).exit_code == 0
    client.close()


async def test_the_end_of_input_reaches_the_container_with_stdin_once(shims: Shims) -> None:
    running = await shims.create(["wc", "-c"], open_stdin=True, stdin_once=True)
    client = await running.attach(stdin=True)
    await running.task.start()
    await client.write(b"x" * 300_000)
    client.end_input()
    assert await client.read_all() == b"300000\n"
    client.close()


async def test_without_stdin_once_the_end_of_input_only_ends_that_attachment(shims: Shims) -> None:
    running = await shims.start(["cat"], open_stdin=True)
    first = await running.attach(stdin=True)
    await first.write(b"one\n")
    assert await first.read() == b"one\n"
    first.end_input()
    assert await first.read_all() == b""
    second = await running.attach(stdin=True)
    await second.write(b"two\n")
    assert await second.read() == b"two\n"
    assert not running.task.exit.done()
    first.close()
    second.close()


async def test_a_client_that_vanishes_ends_the_input_with_stdin_once(shims: Shims) -> None:
    running = await shims.start(["cat"], open_stdin=True, stdin_once=True)
    client = await running.attach(stdin=True)
    await client.write(b"x")
    client.close()
    assert (await running.exit()).exit_code == 0


async def test_what_had_been_read_from_the_client_before_is_input_too(shims: Shims) -> None:
    running = await shims.create(["cat"], open_stdin=True, stdin_once=True)
    client = await running.attach(stdin=True, pending=b"before \xff\x00")
    await running.task.start()
    await client.write(b" after")
    client.end_input()
    assert await client.read_all() == b"before \xff\x00 after"
    client.close()


async def test_input_that_nobody_reads_waits_in_the_client(shims: Shims) -> None:
    running = await shims.start(["sleep", "1000"], open_stdin=True)
    client = await running.attach(stdin=True)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await asyncio.get_running_loop().sock_sendall(client.near, bytes(8 << 20))
    client.close()


async def test_a_program_that_closes_its_input_is_not_disturbed(shims: Shims) -> None:
    running = await shims.start(["sh", "-c", "exec 0<&-; sleep 0.3; echo done"], open_stdin=True, stdin_once=True)
    client = await running.attach(stdin=True)
    await asyncio.sleep(0.1)
    await client.write(b"too late\n")
    assert await client.read_all() == b"done\n"
    client.close()


# --- terminals --------------------------------------------------------------------------------------------------


async def test_a_terminal_echoes_and_is_one_stream(shims: Shims) -> None:
    running = await shims.create(
        ["sh", "-c", "test -t 0 -a -t 1 -a -t 2 && read x && echo got $x >&2"], terminal=True, open_stdin=True
    )
    client = await running.attach(stdin=True)
    await running.task.start()
    await client.write(b"hello\n")
    assert await client.read_all() == b"hello\r\ngot hello\r\n"
    assert (await running.exit()).exit_code == 0
    client.close()


async def test_the_size_of_a_terminal_can_be_changed(shims: Shims) -> None:
    script = "trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.01; done"
    running = await shims.create(["sh", "-c", script], terminal=True)
    client = await running.attach()
    await running.task.start()
    await client.read_until(b"ready")
    await running.task.resize(33, 77)
    assert b"33 77" in await client.read_all()
    client.close()


async def test_the_end_of_input_ends_only_the_attachment_to_a_terminal(shims: Shims) -> None:
    running = await shims.start(["cat"], terminal=True, open_stdin=True, stdin_once=True)
    client = await running.attach(stdin=True)
    client.end_input()
    assert await client.read_all() == b""
    await asyncio.sleep(0.1)
    assert not running.task.exit.done()
    client.close()


async def test_the_detach_keys_end_the_attachment_and_are_reported(shims: Shims) -> None:
    running = await shims.start(["cat"], terminal=True, open_stdin=True)
    client = await running.attach(stdin=True)
    await client.write(b"a\x10b")
    assert await client.read_until(b"b") == b"a^Pb"
    await client.write(b"\x10")
    await client.write(b"\x11")
    assert await client.read_all() == b""
    await asyncio.sleep(0.05)
    assert running.detached == [""]
    assert not running.task.exit.done()
    client.close()


async def test_an_attached_terminal_survives_its_daemon(shims: Shims) -> None:
    running = await shims.start(["cat"], terminal=True, open_stdin=True)
    client = await running.attach(stdin=True)
    running.task.close()
    await client.write(b"still here\n")
    assert b"still here" in await client.read_until(b"here\r\nstill here")
    again = await Task.reconnect(running.bundle, running.on_event)
    assert again is not None
    running.task = again
    client.close()


@pytest.mark.parametrize(
    ("keys", "typed", "delivered", "detached"),
    [
        (b"\x10\x11", [b"abc"], b"abc", False),
        (b"\x10\x11", [b"a\x10\x11b"], b"a", True),
        (b"\x10\x11", [b"a\x10", b"\x11"], b"a", True),
        (b"\x10\x11", [b"\x10", b"x"], b"\x10x", False),
        (b"\x10\x11", [b"\x10\x10\x11"], b"\x10\x10\x11", False),
        (b"q", [b"abq"], b"ab", True),
        (b"abc", [b"ab", b"ab", b"c"], b"ababc", False),
        (b"abc", [b"xab", b"c"], b"x", True),
        (b"", [b"\x10\x11"], b"", True),
    ],
)
def test_detach_keys(keys: bytes, typed: list[bytes], delivered: bytes, detached: bool) -> None:
    detector = DetachKeys(keys)
    out, over = b"", False
    for data in typed:
        passed, over = detector.feed(data)
        out += passed
    assert (out, over) == (delivered, detached)
