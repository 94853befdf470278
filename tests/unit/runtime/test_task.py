"""A container's life under its shim, as the daemon sees it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from seacan.errors import RuntimeFailed, System
from seacan.runtime.bundle import Exit
from seacan.runtime.protocol import Exited, OutOfMemory
from seacan.runtime.task import Task, Waiting, lost, recorded_exit
from tests.bundles import Bundles
from tests.shims import Shims


@pytest.fixture(params=[False, True], ids=["direct", "by makers"])
async def shims(request: pytest.FixtureRequest, bundles: Bundles) -> AsyncIterator[Shims]:
    shims = Shims(bundles, by_makers=request.param)
    yield shims
    await shims.close()


def leftovers(bundles: Bundles) -> list[Path]:
    return [path for path in Path("/sys/fs/cgroup").glob(f"*/{bundles.parent.strip('/')}/*") if path.is_dir()]


async def test_the_exit_code_comes_with_the_event_and_on_disk(shims: Shims) -> None:
    running = await shims.start(["sh", "-c", "exit 3"])
    exit = await running.exit()
    assert exit.exit_code == 3
    assert exit.signal == 0
    assert recorded_exit(running.bundle) == exit
    assert running.events == [Exited(exit=exit)]


async def test_the_exit_is_on_disk_before_anyone_is_told(shims: Shims) -> None:
    running = await shims.create(["true"])
    seen: list[Exit | None] = []
    running.on_event = lambda task, event: seen.append(recorded_exit(running.bundle))  # type: ignore[method-assign]
    running.task._on_event = running.on_event
    await running.task.start()
    assert seen == [await running.exit()] or seen == []
    await running.task.gone
    assert seen == [recorded_exit(running.bundle)]


async def test_a_signal_that_ends_it_is_recorded(shims: Shims) -> None:
    running = await shims.start(["sleep", "1000"])
    await running.task.signal(signal.SIGKILL)
    exit = await running.exit()
    assert (exit.exit_code, exit.signal) == (137, signal.SIGKILL)


async def test_signals_reach_init_and_it_may_handle_them(shims: Shims) -> None:
    running = await shims.create(["sh", "-c", "trap 'exit 9' USR1; echo ready; while :; do sleep 0.01; done"])
    client = await running.attach()
    await running.task.start()
    await client.read_until(b"ready")
    await running.task.signal(signal.SIGUSR1)
    assert (await running.exit()).exit_code == 9
    client.close()


async def test_nothing_is_left_when_it_is_gone(shims: Shims, bundles: Bundles) -> None:
    running = await shims.start(["true"])
    await running.exit()
    await running.task.gone
    assert leftovers(bundles) == []
    assert sorted(os.listdir(running.bundle)) == ["config.json", "exit.json", "log", "shim.json"]


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("/no/such/program", 127, "no such file or directory"),
        ("/etc/passwd", 126, "permission denied"),
    ],
)
async def test_a_command_that_cannot_run_fails_the_start_as_under_runc(
    shims: Shims, bundles: Bundles, command: str, code: int, words: str
) -> None:
    with pytest.raises(RuntimeFailed) as failed:
        running = await shims.create([command])
        await running.task.start()
    assert failed.value.exit_code == code
    assert words in failed.value.message
    await running.task.gone
    assert leftovers(bundles) == []
    assert recorded_exit(running.bundle) is None


async def test_a_configuration_that_cannot_be_fails_the_creation(shims: Shims, bundles: Bundles) -> None:
    oci = bundles.spec(["true"])
    assert oci.linux is not None
    oci.linux.sysctl = {"kernel.no_such_thing": "1"}
    with pytest.raises(RuntimeFailed):
        await shims.create(oci)
    task = shims._made[-1].task
    with pytest.raises(RuntimeFailed):
        await task.exit
    await task.gone
    assert leftovers(bundles) == []


async def test_the_network_namespace_is_handed_over_with_a_socket_inside(shims: Shims) -> None:
    running = await shims.create(["true"])
    sandbox = await running.task.created()
    assert sandbox.netns is not None
    assert sandbox.rtnl is not None
    assert os.readlink(f"/proc/self/fd/{sandbox.netns}") == os.readlink(f"/proc/{sandbox.pid}/ns/net")
    with socket.socket(fileno=os.dup(sandbox.rtnl)) as rtnl:
        assert rtnl.family == socket.AF_NETLINK


async def test_a_container_on_the_hosts_network_hands_over_none(shims: Shims, bundles: Bundles) -> None:
    oci = bundles.spec(["true"])
    assert oci.linux is not None
    oci.linux.namespaces = [namespace for namespace in oci.linux.namespaces if namespace.type != "network"]
    oci.mounts = [mount for mount in oci.mounts if mount.type != "sysfs" and mount.type != "cgroup"]
    sandbox = await (await shims.create(oci)).task.created()
    assert (sandbox.netns, sandbox.rtnl) == (None, None)


async def test_abandoning_leaves_nothing_and_records_nothing(shims: Shims, bundles: Bundles) -> None:
    for started in (False, True):
        running = await (shims.start if started else shims.create)(["sleep", "1000"])
        pid = (await running.task.created()).pid
        await running.task.abandon()
        assert not Path(f"/proc/{pid}").exists()
        assert recorded_exit(running.bundle) is None
        assert leftovers(bundles) == []


async def test_starting_twice_is_refused(shims: Shims) -> None:
    running = await shims.start(["sleep", "1000"])
    with pytest.raises(RuntimeFailed, match="already running"):
        await running.task.start()
    assert not running.task.exit.done()


async def test_background_processes_of_a_shared_pid_namespace_end_with_init(shims: Shims, bundles: Bundles) -> None:
    oci = bundles.spec(["sh", "-c", "sleep 1000 & echo $!; exit 4"])
    assert oci.linux is not None
    oci.linux.namespaces = [namespace for namespace in oci.linux.namespaces if namespace.type != "pid"]
    exit, output = await shims.run(oci)
    assert exit.exit_code == 4
    pid = int(output)
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists():
            return
        await asyncio.sleep(0.02)
    pytest.fail("it lives on")


async def test_running_out_of_memory_is_reported_and_recorded(shims: Shims, bundles: Bundles) -> None:
    from seacan.runtime.spec import LinuxMemory, LinuxResources

    oci = bundles.spec(["dd", "if=/dev/zero", "of=/dev/null", "bs=100M"])
    assert oci.linux is not None
    oci.linux.resources = LinuxResources(memory=LinuxMemory(limit=16 << 20, swap=16 << 20))
    running = await shims.start(oci)
    exit = await running.exit()
    assert exit.oom_killed
    assert exit.exit_code == 137
    assert OutOfMemory() in running.events


async def test_descriptors_are_kept_for_the_next_daemon(shims: Shims) -> None:
    running = await shims.start(["sleep", "1000"])
    read, write = os.pipe()
    await running.task.keep("ports", [read, write])
    os.close(read)
    os.close(write)
    running.task.close()
    again = await Task.reconnect(running.bundle, running.on_event)
    assert again is not None
    running.task = again
    read, write = await again.fetch("ports")
    os.write(write, b"through")
    assert os.read(read, 100) == b"through"
    os.close(read)
    os.close(write)
    await again.keep("ports", [])
    assert await again.fetch("ports") == []


# --- daemons and shims that die ---------------------------------------------------------------------------------


async def test_a_daemon_that_comes_back_finds_the_container_running(shims: Shims) -> None:
    running = await shims.start(["sleep", "1000"])
    pid = (await running.task.created()).pid
    running.task.close()
    again = await Task.reconnect(running.bundle, running.on_event)
    assert again is not None
    running.task = again
    assert again.started
    sandbox = await again.created()
    assert sandbox.pid == pid
    assert sandbox.netns is not None
    await again.signal(signal.SIGKILL)
    assert (await running.exit()).exit_code == 137


async def test_an_exit_while_no_daemon_was_there_is_on_disk(shims: Shims) -> None:
    running = await shims.start(["sh", "-c", "sleep 0.3; exit 5"])
    running.task.close()
    for _ in range(200):
        if (exit := recorded_exit(running.bundle)) is not None:
            break
        await asyncio.sleep(0.02)
    assert exit is not None
    assert exit.exit_code == 5
    while (running.bundle / "shim.sock").exists():
        await asyncio.sleep(0.02)
    assert await Task.reconnect(running.bundle, running.on_event) is None


async def test_a_start_that_the_daemon_did_not_live_to_send_can_be_made_up_for(shims: Shims) -> None:
    running = await shims.create(["true"])
    running.task.close()
    again = await Task.reconnect(running.bundle, running.on_event)
    assert again is not None
    running.task = again
    assert not again.started
    await again.start()
    assert (await running.exit()).exit_code == 0


async def test_the_container_goes_with_its_shim_and_the_daemon_learns_of_it(shims: Shims, bundles: Bundles) -> None:
    running = await shims.start(["sleep", "1000"])
    pid = (await running.task.created()).pid
    os.kill(await running.shim_pid(), signal.SIGKILL)
    with pytest.raises(System):
        await running.exit()
    exit = await lost(shims.launcher, running.bundle)
    assert exit is not None
    assert exit.exit_code == 137
    async with asyncio.timeout(5):
        while Path(f"/proc/{pid}").exists():  # until whoever has adopted it reaps it
            await asyncio.sleep(0.01)
    assert leftovers(bundles) == []


async def test_the_launcher_may_die_while_containers_run(shims: Shims) -> None:
    running = await shims.start(["sleep", "1000"])
    assert shims.launcher.pid is not None
    os.kill(shims.launcher.pid, signal.SIGKILL)
    await asyncio.sleep(0.2)
    assert (await shims.run(["sh", "-c", "exit 6"]))[0].exit_code == 6
    await running.task.signal(signal.SIGKILL)
    assert (await running.exit()).exit_code == 137


async def test_a_launcher_killed_at_the_moment_of_a_launch_costs_nothing(shims: Shims) -> None:
    await shims.launcher.start()
    for _ in range(10):
        assert shims.launcher.pid is not None
        os.kill(shims.launcher.pid, signal.SIGKILL)
        exit, _ = await shims.run(["true"])
        assert exit.exit_code == 0


async def forked(shims: Shims, count: int) -> list[int]:
    """The launcher's processes, as soon as there are ``count`` of them."""
    pid = shims.launcher.pid
    async with asyncio.timeout(10):
        while len(pids := Path(f"/proc/{pid}/task/{pid}/children").read_text().split()) != count:
            await asyncio.sleep(0.01)
    return [int(pid) for pid in pids]


async def test_a_shim_in_waiting_has_the_container_made_that_it_is_told_of(shims: Shims) -> None:
    await shims.run(["true"])  # the launcher has processes of its own before its first
    await forked(shims, 0)
    waiting = Waiting(shims.launcher)
    (shim,) = await forked(shims, 1)
    running = await shims.create(["sleep", "1000"], waiting=waiting)
    waiting.close()  # has no effect any more
    await running.task.start()
    assert await running.shim_pid() == shim
    await running.task.signal(signal.SIGKILL)
    assert (await running.exit()).exit_code == 137


async def test_a_shim_in_waiting_that_gets_nothing_ends(shims: Shims) -> None:
    await shims.run(["true"])  # the launcher has processes of its own before its first
    await forked(shims, 0)
    waiting = Waiting(shims.launcher)
    await forked(shims, 1)
    waiting.close()
    await forked(shims, 0)
    Waiting(shims.launcher).close()  # before it is even born
    assert (await shims.run(["true"]))[0].exit_code == 0
    await forked(shims, 0)


async def test_a_shim_in_waiting_that_was_killed_is_replaced(shims: Shims) -> None:
    await shims.run(["true"])  # the launcher has processes of its own before its first
    await forked(shims, 0)
    waiting = Waiting(shims.launcher)
    (shim,) = await forked(shims, 1)
    os.kill(shim, signal.SIGKILL)
    await forked(shims, 0)
    running = await shims.create(["true"], waiting=waiting)
    await running.task.start()
    assert (await running.exit()).exit_code == 0


@pytest.mark.long
@pytest.mark.timeout(60)
async def test_a_container_that_no_daemon_comes_to_start_is_taken_away(shims: Shims, bundles: Bundles) -> None:
    running = await shims.create(["sleep", "1000"])
    running.task.close()
    async with asyncio.timeout(45):
        while leftovers(bundles):
            await asyncio.sleep(0.2)
    assert recorded_exit(running.bundle) is None
    assert not (running.bundle / "shim.sock").exists()


async def test_signals_that_the_shim_ignores_are_not_ignored_in_the_container(shims: Shims) -> None:
    _, output = await shims.run(["grep", "-E", "SigIgn|SigBlk", "/proc/self/status"])
    assert output == b"SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n"


async def test_a_container_has_no_descriptor_but_its_streams(shims: Shims) -> None:
    running = await shims.create(["sh", "-c", "ls /proc/self/fd; sleep 1000"])
    client = await running.attach()
    await running.task.start()
    assert (await client.read()).split() == [b"0", b"1", b"2", b"3"]  # the last is the folder that ls reads
    sandbox = await running.task.created()
    assert sorted(os.listdir(f"/proc/{sandbox.pid}/fd")) == ["0", "1", "2"]
    client.close()


async def test_exit_json_is_plain(shims: Shims) -> None:
    running = await shims.start(["true"])
    await running.exit()
    assert msgspec.json.decode((running.bundle / "exit.json").read_bytes())["exit_code"] == 0
