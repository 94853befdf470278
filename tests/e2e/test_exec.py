"""`docker exec`: streams, terminals, users, exit codes, and what an inspect says."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.e2e.test_crash import call
from tests.e2e.test_run import expect, terminal
from tests.hosts import Daemon


@pytest.fixture
def running(daemon: Daemon) -> Iterator[Daemon]:
    daemon.docker("run", "-d", "--name", "c1", "-e", "FROM=container", "--network", "none", "busybox", "sleep", "600")
    yield daemon


def test_output_errors_and_exit_code(running: Daemon) -> None:
    done = running.docker("exec", "c1", "sh", "-c", "echo out; echo err >&2; exit 3", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")


def test_stdin(running: Daemon) -> None:
    text = "line\n" * 20000
    assert running.docker("exec", "-i", "c1", "cat", input=text).stdout == text


def test_environment_user_and_folder(running: Daemon) -> None:
    done = running.docker(
        "exec", "-e", "A=1", "-u", "1000:1000", "-w", "/tmp", "c1", "sh", "-c", "echo $FROM $A; id -u; pwd"
    )
    assert done.stdout.split() == ["container", "1", "1000", "/tmp"]


def test_a_command_that_is_not_there_is_127(running: Daemon) -> None:
    done = running.docker("exec", "c1", "nonexistent", check=False)
    assert done.returncode == 127
    assert 'exec: "nonexistent": executable file not found in $PATH' in done.stdout


def test_a_command_that_cannot_be_executed_is_126(running: Daemon) -> None:
    done = running.docker("exec", "c1", "/etc", check=False)
    assert done.returncode == 126


def test_a_terminal(running: Daemon) -> None:
    with terminal(running, "exec", "-it", "c1", "sh", rows=30, columns=90) as (master, client):
        expect(master, "# ")
        os.write(master, b"sleep 0.3; stty size\n")
        expect(master, "30 90")
        os.write(master, b"exit 4\n")
        assert client.wait(10) == 4


def test_detached_goes_on_by_itself(running: Daemon) -> None:
    running.docker("exec", "-d", "c1", "sh", "-c", "sleep 0.2; touch /done; sleep 600")
    assert running.docker("exec", "c1", "sh", "-c", "while [ ! -e /done ]; do sleep 0.05; done").returncode == 0


def test_privileged_has_all_capabilities(running: Daemon) -> None:
    plain = running.out("exec", "c1", "grep", "CapEff", "/proc/self/status")
    privileged = running.out("exec", "--privileged", "c1", "grep", "CapEff", "/proc/self/status")
    assert int(privileged.split()[1], 16) > int(plain.split()[1], 16)


def test_in_a_stopped_container_is_a_conflict(running: Daemon) -> None:
    id = running.inspect("c1")["Id"]
    running.docker("kill", "c1")
    done = running.docker("exec", "c1", "true", check=False)
    assert f"container {id} is not running" in done.stderr


def test_inspect_tells_what_ran_and_how_it_ended(running: Daemon) -> None:
    config = {"Cmd": ["sh", "-c", "exit 5"], "AttachStdout": True, "User": "1"}
    id = call(running, "POST", "/containers/c1/exec", config)["Id"]
    assert running.inspect("c1")["ExecIDs"] == [id]
    call(running, "POST", f"/exec/{id}/start", {"Detach": True})
    while (found := call(running, "GET", f"/exec/{id}/json"))["Running"]:
        pass
    assert found["ExitCode"] == 5
    assert found["ProcessConfig"] == {
        "tty": False, "entrypoint": "sh", "arguments": ["-c", "exit 5"], "privileged": False, "user": "1",
    }  # fmt: skip
    with pytest.raises(AssertionError, match=r"409 .*has already run"):
        call(running, "POST", f"/exec/{id}/start", {"Detach": True})
    running.docker("kill", "c1")
    assert call(running, "GET", f"/exec/{id}/json")["ExitCode"] == 5


def test_many_at_once(running: Daemon) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda n: running.out("exec", "c1", "sh", "-c", f"echo {n}"), range(24)))
    assert done == [str(n) for n in range(24)]


_SESSION_KEYRING = """
import ctypes, os
number = {"x86_64": 250, "aarch64": 219}[os.uname().machine]  # keyctl(KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING)
print(ctypes.CDLL(None).syscall(number, 0, -3, 0), flush=True)
"""


def test_a_container_and_its_execs_have_one_session_keyring_that_nobody_else_has(daemon: Daemon) -> None:
    python = ("chroot", "/host", sys.executable, "-Sc")
    for name in ("one", "two"):
        script = _SESSION_KEYRING + "import time; time.sleep(600)"
        options = ("--network", "none", "-v", "/:/host:ro", "--security-opt", "seccomp=unconfined")
        daemon.docker("run", "-d", "--name", name, *options, "busybox", *python, script)
    inits = []
    for name in ("one", "two"):
        while not (text := daemon.out("logs", name)):
            pass
        inits.append(int(text))
        assert [int(daemon.out("exec", name, *python, _SESSION_KEYRING)) for _ in range(2)] == inits[-1:] * 2
    own = subprocess.run([sys.executable, "-Sc", _SESSION_KEYRING], capture_output=True, check=True, text=True).stdout
    assert len({*inits, int(own)}) == 3
    assert all(serial > 0 for serial in inits)
