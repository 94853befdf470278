"""The daemon's sockets: who may connect, and what is refused."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from seacan.cli.configuration import Configuration
from seacan.cli.daemon import pid_file
from seacan.cli.listeners import listen
from seacan.engine.options import EngineOptions
from seacan.errors import InvalidParameter, System


def config(*hosts: str, group: str = "", tls: bool | None = None) -> Configuration:
    return Configuration(EngineOptions(), hosts=hosts, group=group, tls=tls)


def test_a_unix_socket_is_for_root_and_its_group(tmp_path: Path) -> None:
    path = tmp_path / "run" / "seacan.sock"
    group = "root" if os.geteuid() == 0 else ""
    [listener] = listen(config(f"unix://{path}", group=group))
    found = path.stat()
    assert stat.S_ISSOCK(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o660
    listener.close()
    assert not path.exists()


def test_a_missing_docker_group_is_a_warning_and_another_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import grp

    with pytest.raises(InvalidParameter, match="group no-such-group not found"):
        listen(config(f"unix://{tmp_path}/a", group="no-such-group"))
    if any(entry.gr_name == "docker" for entry in grp.getgrall()):
        pytest.skip("this machine has a group docker")
    [listener] = listen(config(f"unix://{tmp_path}/a", group="docker"))
    listener.close()
    assert "could not change group" in caplog.text


def test_a_stale_socket_is_replaced_and_a_live_one_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    [first] = listen(config(f"unix://{path}"))
    with pytest.raises(System, match="another daemon is listening on it"):
        listen(config(f"unix://{path}"))
    first.close()


def test_closing_leaves_a_successors_socket(tmp_path: Path) -> None:
    path = tmp_path / "s"
    [first] = listen(config(f"unix://{path}"))
    path.rename(tmp_path / "moved")
    path.touch()
    first.close()
    assert path.exists()


def test_tcp_without_tls_needs_an_explicit_word(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InvalidParameter, match="Binding to IP address without --tlsverify is insecure"):
        listen(config("tcp://127.0.0.1:0"))
    [listener] = listen(config("tcp://127.0.0.1:0", tls=False))
    listener.close()
    assert "Be safe out there!" in caplog.text


def test_all_sockets_are_opened_or_none(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with pytest.raises(InvalidParameter):
        listen(config(f"unix://{path}", "tcp://127.0.0.1:0"))
    assert not path.exists()


def test_sockets_passed_by_systemd_are_taken_over(tmp_path: Path) -> None:
    script = (
        "import os, socket, sys\n"
        "from seacan.cli.listeners import listen\n"
        "from seacan.cli.configuration import Configuration\n"
        "from seacan.engine.options import EngineOptions\n"
        "os.environ['LISTEN_PID'] = str(os.getpid())\n"
        "found = listen(Configuration(EngineOptions(), hosts=(sys.argv[1],)))\n"
        "print([listener.socket.getsockname() for listener in found], 'LISTEN_FDS' in os.environ)\n"
    )
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as two:
        for name, sock in (("one", one), ("two", two)):
            sock.bind(str(tmp_path / name))
            sock.listen()

        def place() -> None:
            # sd_listen_fds(3): the sockets are descriptors 3 and 4 of the started program.
            copies = [fcntl.fcntl(sock, fcntl.F_DUPFD, 10) for sock in (one, two)]
            for number, copy in enumerate(copies, 3):
                os.dup2(copy, number)

        def passed(host: str) -> str:
            done = subprocess.run(
                [sys.executable, "-c", script, host],
                env={**os.environ, "LISTEN_FDS": "2"},
                pass_fds=(3, 4),
                preexec_fn=place,
                capture_output=True,
                text=True,
            )
            return done.stdout.strip() or done.stderr.strip().splitlines()[-1]

        assert passed("fd://") == f"['{tmp_path}/one', '{tmp_path}/two'] False"
        assert passed("fd://4") == f"['{tmp_path}/two'] False"
        assert "too few socket activated files" in passed("fd://9")
        assert "should be a number" in passed("fd://x")


def test_fd_without_systemd_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="no sockets found via socket activation"):
        listen(config("fd://"), environment={})


def test_the_pid_file_of_a_living_process_is_respected(tmp_path: Path) -> None:
    path = tmp_path / "run" / "seacan.pid"
    with pid_file(str(path)):
        assert path.read_text() == str(os.getpid())
    assert not path.exists()
    path.write_text(str(os.getppid()))
    with pytest.raises(System, match=f"process with PID {os.getppid()} is still running"), pid_file(str(path)):
        pass


@pytest.mark.parametrize("content", ["", "nonsense", "0", "4194304"])
def test_a_stale_pid_file_is_taken_over(tmp_path: Path, content: str) -> None:
    path = tmp_path / "seacan.pid"
    path.write_text(content)
    with pid_file(str(path)):
        assert path.read_text() == str(os.getpid())
