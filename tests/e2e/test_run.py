"""`docker run`: exit codes, streams, terminals, signals and what becomes of the container."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.hosts import DOCKER, Daemon

NONE = ("--network", "none")


def run(daemon: Daemon, *argv: str, **options: object) -> subprocess.CompletedProcess[str]:
    return daemon.docker("run", *NONE, *argv, check=False, **options)  # type: ignore[arg-type]


def test_output_and_errors_arrive_on_their_own_streams(daemon: Daemon) -> None:
    done = run(daemon, "--rm", "busybox", "sh", "-c", "echo out; echo err >&2")
    assert (done.returncode, done.stdout, done.stderr) == (0, "out\n", "err\n")


@pytest.mark.parametrize("code", [0, 1, 3, 42, 255])
def test_the_exit_code_is_the_containers(daemon: Daemon, code: int) -> None:
    assert run(daemon, "--rm", "busybox", "sh", "-c", f"exit {code}").returncode == code


def test_a_command_that_is_not_there_is_127(daemon: Daemon) -> None:
    done = run(daemon, "--name", "c1", "busybox", "nonexistent")
    assert done.returncode == 127
    assert 'exec: "nonexistent": executable file not found in $PATH' in done.stderr
    state = daemon.inspect("c1")["State"]
    assert (state["Status"], state["ExitCode"]) == ("created", 127)


def test_a_command_that_cannot_be_executed_is_126(daemon: Daemon) -> None:
    done = run(daemon, "--rm", "busybox", "/etc")
    assert done.returncode == 126
    assert "permission denied" in done.stderr


def test_what_the_engine_refuses_is_125(daemon: Daemon) -> None:
    assert run(daemon, "--rm", "--memory", "1k", "busybox", "true").returncode == 125


def test_an_unknown_image_is_named_in_dockerds_words(daemon: Daemon) -> None:
    done = daemon.docker("create", "--pull", "never", "nosuchimage", check=False)
    assert "No such image: nosuchimage:latest" in done.stderr


def test_a_killed_process_is_128_and_the_signal(daemon: Daemon) -> None:
    daemon.docker("run", "-d", "--name", "c1", *NONE, "busybox", "sleep", "60")
    daemon.docker("kill", "c1")
    assert daemon.out("wait", "c1") == "137"


def test_stdin_reaches_the_container_and_its_end_too(daemon: Daemon) -> None:
    text = "line\n" * 20000
    done = run(daemon, "--rm", "-i", "busybox", "cat", input=text)
    assert done.stdout == text


def test_output_goes_on_after_stdin_has_ended(daemon: Daemon) -> None:
    done = run(daemon, "--rm", "-i", "busybox", "sh", "-c", "cat; sleep 0.3; echo end", input="in\n")
    assert done.stdout == "in\nend\n"


def test_a_megabyte_of_output_arrives_whole(daemon: Daemon) -> None:
    done = run(daemon, "--rm", "busybox", "sh", "-c", "yes 0123456789abcde | head -n 65536")
    assert len(done.stdout) == 1 << 20


def test_rm_removes_the_container_and_its_anonymous_volumes(daemon: Daemon) -> None:
    run(daemon, "--rm", "-v", "/data", "-v", "kept:/kept", "busybox", "true")
    assert daemon.out("ps", "-aq") == ""
    assert daemon.out("volume", "ls", "-q") == "kept"


def test_without_rm_the_container_stays_with_its_exit_code(daemon: Daemon) -> None:
    run(daemon, "--name", "c1", "busybox", "sh", "-c", "exit 9")
    state = daemon.inspect("c1")["State"]
    assert (state["Status"], state["ExitCode"], state["Pid"]) == ("exited", 9, 0)


def test_detached_prints_the_id_and_writes_the_cidfile(daemon: Daemon) -> None:
    file = daemon.folder / "cid"
    id = daemon.out("run", "-d", *NONE, "--cidfile", str(file), "busybox", "sleep", "60")
    assert file.read_text() == id
    assert daemon.inspect(id)["State"]["Running"]
    file.unlink()


def test_names_conflict_in_dockerds_words(daemon: Daemon) -> None:
    id = daemon.out("create", "--name", "c1", "busybox")
    done = daemon.docker("create", "--name", "c1", "busybox", check=False)
    assert f'Conflict. The container name "/c1" is already in use by container "{id}"' in done.stderr


def test_a_random_name_is_two_words(daemon: Daemon) -> None:
    daemon.docker("create", "busybox")
    assert re.fullmatch(r"[a-z]+_[a-z]+", daemon.out("ps", "-a", "--format", "{{.Names}}"))


def test_the_image_says_what_runs_unless_told_otherwise(daemon: Daemon) -> None:
    done = run(daemon, "--rm", "-i", "--entrypoint", "/bin/echo", "busybox", "a", "b c")
    assert done.stdout == "a b c\n"
    assert run(daemon, "--rm", "-i", "busybox", input="echo from sh\n").stdout == "from sh\n"


def test_environment_hostname_user_and_folder(daemon: Daemon) -> None:
    done = run(
        daemon, "--rm", "-e", "A=1", "-e", "PATH=/bin", "--hostname", "box", "-u", "1:2", "-w", "/new/folder",
        "busybox", "sh", "-c", "echo $A $PATH $HOSTNAME; hostname; id -u; id -g; pwd",
    )  # fmt: skip
    assert done.stdout.split("\n")[:5] == ["1 /bin box", "box", "1", "2", "/new/folder"]


def test_labels_and_stop_settings_are_kept(daemon: Daemon) -> None:
    daemon.docker("create", "--name", "c1", "--label", "a=b", "--stop-signal", "USR1", "--stop-timeout", "3", "busybox")
    config = daemon.inspect("c1")["Config"]
    assert config["Labels"] == {"a": "b"}
    assert (config["StopSignal"], config["StopTimeout"]) == ("USR1", 3)


def test_signals_to_the_client_reach_the_container(daemon: Daemon) -> None:
    assert DOCKER is not None
    script = "trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 0.1; done"
    client = subprocess.Popen(
        [DOCKER, "run", "--rm", *NONE, "busybox", "sh", "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        env=daemon.environment(),
    )
    assert client.stdout is not None
    assert client.stdout.readline() == "ready\n"
    client.send_signal(signal.SIGTERM)
    assert client.communicate(timeout=20)[0] == "caught\n"
    assert client.returncode == 5


@contextmanager
def terminal(
    daemon: Daemon, *argv: str, rows: int = 24, columns: int = 80
) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """The docker client on a terminal of ours."""
    import fcntl
    import struct
    import termios

    assert DOCKER is not None
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    client = subprocess.Popen(
        [DOCKER, *argv], stdin=slave, stdout=slave, stderr=slave, env=daemon.environment(), start_new_session=True
    )
    os.close(slave)
    try:
        yield master, client
    finally:
        client.kill()
        client.wait()
        os.close(master)


def expect(master: int, wanted: str, seconds: float = 10) -> str:
    seen = b""
    deadline = time.monotonic() + seconds
    while wanted.encode() not in seen:
        ready, _, _ = select.select([master], [], [], max(0, deadline - time.monotonic()))
        assert ready, f"{wanted!r} did not come; there was {seen!r}"
        try:
            chunk = os.read(master, 4096)
        except OSError:
            chunk = b""
        assert chunk, f"the terminal was closed; there was {seen!r}"
        seen += chunk
    return seen.decode(errors="replace")


def test_a_terminal_has_the_clients_size_and_follows_it(daemon: Daemon) -> None:
    import fcntl
    import struct
    import termios

    with terminal(daemon, "run", "--rm", "-it", *NONE, "busybox", "sh", rows=33, columns=99) as (master, client):
        expect(master, "# ")
        os.write(master, b"sleep 0.3; stty size\n")
        expect(master, "33 99")
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        client.send_signal(signal.SIGWINCH)
        os.write(master, b"sleep 0.3; stty size\n")
        expect(master, "40 120")
        os.write(master, b"exit 6\n")
        assert client.wait(10) == 6


def test_detach_keys_leave_the_container_running_and_attach_returns(daemon: Daemon) -> None:
    with terminal(daemon, "run", "-it", "--name", "c1", *NONE, "busybox", "sh") as (master, client):
        expect(master, "# ")
        os.write(master, b"\x10\x11")
        assert client.wait(10) == 0
    assert daemon.inspect("c1")["State"]["Running"]
    with terminal(daemon, "attach", "--detach-keys", "ctrl-x,x", "c1") as (master, client):
        os.write(master, b"echo $((6*7))\n")
        expect(master, "42")
        os.write(master, b"\x18x")
        expect(master, "read escape sequence")
        client.wait(10)
    assert daemon.inspect("c1")["State"]["Running"]


def test_an_attached_terminal_survives_a_restart_of_the_daemon(daemon: Daemon) -> None:
    with terminal(daemon, "run", "-it", "--name", "c1", *NONE, "busybox", "sh") as (master, _):
        expect(master, "# ")
        # The prompt is there before the client has its answer to the start, without which it would give up.
        time.sleep(1)
        daemon.kill()
        os.write(master, b"echo $((6*7))\n")
        expect(master, "42")
        daemon.start()
        os.write(master, b"echo $((7*7))\n")
        expect(master, "49")


def test_init_reaps_and_passes_signals_on(daemon: Daemon) -> None:
    done = run(daemon, "--rm", "--init", "busybox", "sh", "-c", "cat /proc/1/comm")
    if "docker-init" in done.stderr and done.returncode:
        pytest.skip("this machine has no tini-static")
    assert done.stdout.strip() in ("docker-init", "tini", "tini-static")
