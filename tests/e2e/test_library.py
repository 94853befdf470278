"""``import seacan``: containers without a daemon."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hosts import REPOSITORY, Host, cgroup_folders

Program = Callable[[str], subprocess.CompletedProcess[str]]


@pytest.fixture
def program(folder: Path, new_host: Callable[..., Host], busybox: Path) -> Program:
    """Run a Python program on a host without another engine, with engine folders of its own and ``busybox`` loaded."""
    import uuid

    host = new_host()
    place = folder / f"library-{uuid.uuid4().hex[:8]}"
    parent = f"/seacan-library-{uuid.uuid4().hex[:8]}"
    prelude = (
        "import asyncio, seacan\n"
        "from seacan.engine.options import EngineOptions\n"
        f"OPTIONS = EngineOptions(cgroup_parent={parent!r})\n"
        f"BUSYBOX = {str(busybox)!r}\n"
    )

    def run(text: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            host.command(sys.executable, "-c", prelude + text),
            capture_output=True,
            text=True,
            timeout=100,
            cwd=REPOSITORY,
            env={
                **os.environ,
                "PYTHONPATH": str(REPOSITORY),
                "SEACAN_DATA_ROOT": str(place / "d"),
                "SEACAN_EXEC_ROOT": str(place / "e"),
            },
        )

    yield run  # type: ignore[misc]
    for path in cgroup_folders(parent):
        path.rmdir()


def test_the_readmes_example(program: Program) -> None:
    done = program(
        "with seacan.Engine(options=OPTIONS) as engine:\n"
        "    engine.load(BUSYBOX)\n"
        "    with engine.run('busybox', ['echo', 'hi']) as container:\n"
        "        print(container.logs(), end='')\n"
        "    print(engine.containers(all=True))\n"
    )
    assert (done.stdout, done.stderr) == ("hi\n[]\n", "")


def test_the_default_engine_needs_no_setting_up(program: Program) -> None:
    program("with seacan.Engine() as engine: engine.load(BUSYBOX)")
    done = program(
        "with seacan.run('busybox', ['echo', 'hi'], network='none') as c:\n    print(c.logs(), c.exit_code, c.status)\n"
    )
    assert (done.stdout, done.stderr) == ("hi\n 0 exited\n", "")


def test_a_program_works_with_a_running_container(program: Program) -> None:
    done = program(
        "with seacan.Engine(options=OPTIONS) as engine:\n"
        "    engine.load(BUSYBOX)\n"
        "    with engine.run('busybox', ['sleep', '100'], name='box', memory=64 << 20, environment={'A': 'b'}) as c:\n"
        "        print(c.name, c.status, c.exit_code, [found.name for found in engine.containers()])\n"
        "        result = c.exec(['sh', '-c', 'cat; echo $A; echo err >&2; exit 3'], stdin=b'in\\n')\n"
        "        print(result.exit_code, result.stdout, result.stderr)\n"
        "        print(len(c.exec(['cat'], stdin=b'x' * 300000).stdout), c.exec(['nope']).exit_code)\n"
        "        print(c.inspect()['HostConfig']['Memory'] >> 20)\n"
        "        c.pause(); print(c.status); c.unpause()\n"
        "        c.stop(1); print(c.status, c.exit_code)\n"
        "        c.start(); print(c.status)\n"
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "box running None ['box']",
        "3 b'in\\nb\\n' b'err\\n'",
        "300000 127",
        "64",
        "paused",
        "exited 137",
        "running",
    ]


def test_output_is_followed_and_input_given(program: Program) -> None:
    done = program(
        "with seacan.Engine(options=OPTIONS) as engine:\n"
        "    engine.load(BUSYBOX)\n"
        "    with engine.run('busybox', ['sh', '-c', 'echo 1; sleep 0.2; echo 2']) as c:\n"
        "        print(b''.join(c.follow()))\n"
        "    with engine.run('busybox', ['sh', '-c', 'tr a-z A-Z; exit 5'], stdin=b'text') as c:\n"
        "        print(c.wait(), c.logs())\n"
    )
    assert done.stdout.splitlines() == ["b'1\\n2\\n'", "5 TEXT"]


def test_failures_are_the_engines_errors_and_leave_nothing(program: Program) -> None:
    done = program(
        "import seacan.errors as errors\n"
        "with seacan.Engine(options=OPTIONS) as engine:\n"
        "    engine.load(BUSYBOX)\n"
        "    for image, command in (('nope', ['x']), ('busybox', ['nope']), ('busybox', 'one string')):\n"
        "        try:\n"
        "            engine.run(image, command)\n"
        "        except errors.SeacanError as error:\n"
        "            print(type(error).__name__, error.status)\n"
        "    print(engine.containers(all=True))\n"
        "    try:\n"
        "        seacan.Engine(options=OPTIONS).start()\n"
        "    except errors.System as error:\n"
        "        print('another engine uses' in error.message)\n"
    )
    assert done.stdout.splitlines() == ["NotFound 404", "RuntimeFailed 400", "InvalidParameter 400", "[]", "True"]


def test_containers_outlive_the_program_unless_removed(program: Program) -> None:
    program(
        "with seacan.Engine(options=OPTIONS) as engine:\n"
        "    engine.load(BUSYBOX)\n"
        "    engine.run('busybox', ['sleep', '1000'], name='left')\n"
    )
    done = program(
        "with seacan.Engine(options=OPTIONS) as engine:\n"
        "    with engine.container('left') as left:\n"
        "        print(left.status, left.exec(['echo', 'still there']).text)\n"
        "    print(engine.containers(all=True))\n"
    )
    assert done.stdout.splitlines() == ["running still there", "", "[]"]


def test_the_same_with_await(program: Program, tmp_path: Path) -> None:
    done = program(
        "async def main():\n"
        "    async with seacan.AsyncEngine(options=OPTIONS) as engine:\n"
        "        [image] = await engine.load(BUSYBOX)\n"
        "        print(image.tags)\n"
        "        async def one(number):\n"
        "            async with await engine.run('busybox', ['echo', str(number)], network='none') as container:\n"
        "                return await container.logs()\n"
        "        print(await asyncio.gather(*(one(number) for number in range(4))))\n"
        f"        await engine.save(['busybox'], '{tmp_path}/image.tar')\n"
        "        engine.tag('busybox', 'mine:1')\n"
        "        print(engine.image('mine:1').id == image.id)\n"
        "        engine.remove_image('mine:1')\n"
        "        print(len(engine.images()), engine.containers(all=True))\n"
        "asyncio.run(main())\n"
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["('busybox:latest',)", "['0\\n', '1\\n', '2\\n', '3\\n']", "True", "1 []"]
    assert (tmp_path / "image.tar").stat().st_size > 1000


def test_a_container_that_ends_during_the_recovery_is_restarted_like_any_other(program: Program) -> None:
    program(
        "from seacan.engine.config import HostConfig, RestartPolicy\n"
        "always = HostConfig(restart_policy=RestartPolicy(name='always'))\n"
        "with seacan.Engine(options=OPTIONS) as engine:\n"
        "    engine.load(BUSYBOX)\n"
        "    for number in range(3):\n"
        "        engine.run('busybox', ['sleep', '1000'], name=f'left{number}', host_config=always)\n"
    )
    done = program(
        "import os\n"
        "from seacan.network.networks import Networks\n"
        "original = Networks._hold_ports\n"
        "async def hold_ports(self, attachment):\n"
        "    task = attachment.store\n"
        "    if not task.exit.done():\n"
        "        os.kill((await task.created()).pid, 9)\n"
        "        await task.exit\n"
        "        await asyncio.sleep(0.03)\n"
        "    await original(self, attachment)\n"
        "Networks._hold_ports = hold_ports\n"
        "async def main():\n"
        "    async with seacan.AsyncEngine(options=OPTIONS) as engine:\n"
        "        for number in range(3):\n"
        "            container = engine.container(f'left{number}')\n"
        "            for _ in range(100):\n"
        "                found = await container.inspect()\n"
        "                if found['RestartCount'] == 1 and container.status == 'running':\n"
        "                    break\n"
        "                await asyncio.sleep(0.1)\n"
        "            print(container.status, (await container.exec(['echo', 'here'])).text)\n"
        "            await container.remove(force=True)\n"
        "asyncio.run(main())\n"
    )
    assert done.stdout.splitlines() == ["running here", ""] * 3, done.stderr
    assert done.stderr == ""
