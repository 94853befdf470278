"""`seacan-runtime` as containerd, podman and dockerd call it."""

from __future__ import annotations

import json
import os
import pty
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from seacan.linux.syscalls import pidfd_open
from seacan.runtime import cli, spec
from tests.bundles import Bundles, read_all


class Runtime:
    """The command, with a state folder of its own."""

    def __init__(self, bundles: Bundles) -> None:
        self.bundles = bundles
        self.folder = bundles.folder / "bundle"
        self.root = str(bundles.folder / "state")
        self.folder.mkdir()
        os.symlink(bundles.lower, self.folder / "rootfs")

    def configure(self, configuration: spec.Spec) -> None:
        configuration.root = spec.Root("rootfs", readonly=True)
        (self.folder / "config.json").write_bytes(spec.encode(configuration))

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "seacan.runtime.cli", "--root", self.root, *arguments]

    def __call__(self, *arguments: str, check: bool = True, input: str = "") -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            self.command(*arguments), cwd=self.folder, capture_output=True, text=True, input=input, timeout=60
        )
        assert not check or result.returncode == 0, result.stderr
        return result

    def create(self, name: str, args: list[str]) -> int:
        """A created container, whose descriptors are not ours to wait on."""
        self.configure(self.bundles.spec(args))
        subprocess.run(
            self.command("create", "--pid-file", "pid", name),
            cwd=self.folder,
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            timeout=60,
        )
        return int((self.folder / "pid").read_text())


@pytest.fixture
def runtime(bundles: Bundles) -> Iterator[Runtime]:
    made = Runtime(bundles)
    yield made
    for name in made("list", "-q").stdout.split():
        made("delete", "--force", name)


def test_run_gives_output_and_exit_code_and_leaves_nothing(runtime: Runtime) -> None:
    runtime.configure(runtime.bundles.spec(["sh", "-c", "echo out; cat; exit 5"]))
    result = runtime("run", "x", check=False, input="in")
    assert (result.returncode, result.stdout, result.stderr) == (5, "out\nin", "")
    assert os.listdir(runtime.root) == []


def test_the_life_of_a_container_command_by_command(runtime: Runtime) -> None:
    pid = runtime.create("x", ["sleep", "1000"])
    state = json.loads(runtime("state", "x").stdout)
    created = state.pop("created")
    assert state == {
        "ociVersion": spec.VERSION,
        "id": "x",
        "pid": pid,
        "status": "created",
        "bundle": str(runtime.folder),
        "rootfs": str(runtime.bundles.lower),
        "owner": "",
    }
    runtime("start", "x")
    assert json.loads(runtime("list", "--format", "json").stdout)[0]["status"] == "running"
    assert runtime("list").stdout.splitlines()[1].split() == [
        "x",
        str(pid),
        "running",
        str(runtime.folder),
        created,
        "root",
    ]
    assert "start an already running container" in runtime("start", "x", check=False).stderr
    runtime("pause", "x")
    assert json.loads(runtime("state", "x").stdout)["status"] == "paused"
    assert "cannot exec in a paused container" in runtime("exec", "x", "true", check=False).stderr
    runtime("resume", "x")
    assert json.loads(runtime("ps", "--format", "json", "x").stdout) == [pid]
    assert runtime("ps", "x").stdout.splitlines()[-1].endswith("sleep 1000")
    refused = runtime("delete", "x", check=False)
    assert (refused.returncode, "that is not stopped: running" in refused.stderr) == (1, True)
    pidfd = pidfd_open(pid)
    runtime("kill", "x", "KILL")
    subprocess.run(["true"], check=True)
    os.close(pidfd)
    for _ in range(100):
        if json.loads(runtime("state", "x").stdout)["status"] == "stopped":
            break
    assert "container not running" in runtime("kill", "x", check=False).stderr
    runtime("delete", "x")
    missing = runtime("state", "x", check=False)
    assert (missing.returncode, missing.stderr.split("level=")[1]) == (1, 'error msg="container does not exist"\n')
    runtime("delete", "--force", "x")


def test_exec_takes_the_containers_process_as_its_template(runtime: Runtime) -> None:
    runtime.create("x", ["sleep", "1000"])
    runtime("start", "x")
    result = runtime("exec", "--env", "A=b", "--cwd", "/tmp", "--user", "1000:7", "-g", "8", "x", "sh", "-c",
                     "id; pwd; echo $A; exit 3", check=False)  # fmt: skip
    assert (result.returncode, result.stdout) == (3, "uid=1000(user) gid=7 groups=8\n/tmp\nb\n")
    result = runtime("exec", "x", "nosuch", check=False)
    assert result.returncode == 255
    assert 'exec failed: unable to start container process: exec: \\"nosuch\\": executable' in result.stderr


def test_exec_takes_a_process_from_a_file_and_detaches(runtime: Runtime) -> None:
    runtime.create("x", ["sleep", "1000"])
    runtime("start", "x")
    (runtime.folder / "process.json").write_bytes(spec.encode(spec.Process(args=["sleep", "2000"], env=["PATH=/bin"])))
    subprocess.run(
        runtime.command("exec", "--process", "process.json", "--detach", "--pid-file", "pid", "x"),
        cwd=runtime.folder,
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    pid = int((runtime.folder / "pid").read_text())
    assert Path(f"/proc/{pid}/cmdline").read_bytes() == b"sleep\x002000\x00"
    assert pid in json.loads(runtime("ps", "--format", "json", "x").stdout)


def test_a_console_socket_gets_the_terminal(runtime: Runtime) -> None:
    runtime.configure(runtime.bundles.spec(["tty"], terminal=True))
    got: list[int] = []

    def receive(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        got.extend(socket.recv_fds(connection, 100, 1)[1])

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(runtime.folder / "console.sock"))
        listener.listen(1)
        thread = threading.Thread(target=receive, args=(listener,))
        thread.start()
        runtime("create", "--console-socket", "console.sock", "x")
        thread.join(30)
    runtime("start", "x")
    assert read_all(got[0]).strip() == "/dev/pts/0"
    os.close(got[0])


def test_a_terminal_without_a_console_socket_is_refused(runtime: Runtime) -> None:
    runtime.configure(runtime.bundles.spec(["tty"], terminal=True))
    result = runtime("create", "x", check=False)
    assert "cannot allocate tty if runc will detach without setting console socket" in result.stderr


def test_a_terminal_is_carried_through_in_the_foreground(runtime: Runtime) -> None:
    runtime.configure(runtime.bundles.spec(["sh", "-c", "tty; read x; echo got $x; exit 4"], terminal=True))
    pid, master = pty.fork()
    if pid == 0:
        os.chdir(runtime.folder)
        os.execv(sys.executable, runtime.command("run", "x"))
    os.write(master, b"hello\n")
    output = read_all(master)
    os.close(master)
    assert "/dev/pts/0" in output and "got hello" in output
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 4


def test_signals_are_passed_on_in_the_foreground(runtime: Runtime) -> None:
    runtime.configure(runtime.bundles.spec(["sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done"]))
    process = subprocess.Popen(runtime.command("run", "x"), cwd=runtime.folder, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.wait(30) == 9
    process.stdout.close()


def test_update_and_events(runtime: Runtime) -> None:
    runtime.create("x", ["sleep", "1000"])
    runtime("start", "x")
    runtime("update", "--pids-limit", "44", "x")
    assert json.loads(runtime("events", "--stats", "x").stdout)["data"]["pids"]["limit"] == 44
    runtime("update", "--resources", "-", "x", input='{"pids":{"limit":55}}')
    stats = json.loads(runtime("events", "--stats", "x").stdout)
    assert (stats["type"], stats["id"], stats["data"]["pids"]) == ("stats", "x", {"current": 1, "limit": 55})


def test_spec_and_features_are_what_callers_parse(runtime: Runtime) -> None:
    runtime("spec")
    made = spec.decode_spec((runtime.folder / "config.json").read_bytes())
    assert made.process is not None and made.process.args == ["sh"]
    assert "File config.json exists" in runtime("spec", check=False).stderr
    features = json.loads(runtime("features").stdout)
    assert features["ociVersionMax"] == spec.VERSION
    assert {"rro", "tmpcopyup", "rbind"} <= set(features["mountOptions"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--systemd-cgroup", "create", "x"], "manages cgroups itself"),
        (["checkpoint", "x"], "checkpoint is not supported"),
        (["restore", "x"], "restore is not supported"),
        (["nosuch"], "No help topic for 'nosuch'"),
        (["create", "--nosuch", "x"], "flag provided but not defined: -nosuch"),
        (["create"], "requires exactly 1 argument(s)"),
        (["create", "x"], "config.json not found"),
        (["start", "x"], "container does not exist"),
        (["state", "../x"], "invalid container ID format"),
    ],
)
def test_what_cannot_be_done_is_refused_clearly(runtime: Runtime, arguments: list[str], message: str) -> None:
    result = runtime(*arguments, check=False)
    assert (result.returncode, message in result.stderr) == (1, True)


def test_the_log_is_json_when_asked_for(runtime: Runtime) -> None:
    result = runtime("--log", "log", "--log-format", "json", "state", "x", check=False)
    assert result.returncode == 1
    line = json.loads((runtime.folder / "log").read_text())
    assert (line["level"], line["msg"]) == ("error", "container does not exist")


def test_options_are_parsed_as_go_does() -> None:
    parsed = cli.parse(
        ["-b", "dir", "--flag", "--name=value", "id", "--rest"], {"bundle": True, "flag": False, "name": True}
    )
    assert (parsed.text("bundle"), parsed.flag("flag"), parsed.text("name")) == ("dir", True, "value")
    assert parsed.arguments == ["id", "--rest"]
    assert cli.parse(["-f"], {"force": False}).flag("force")
    with pytest.raises(cli.Usage, match="flag needs an argument: -bundle"):
        cli.parse(["--bundle"], {"bundle": True})


def test_a_container_without_a_pid_namespace_dies_as_a_whole(runtime: Runtime) -> None:
    configuration = runtime.bundles.spec(["sh", "-c", "sleep 1000 & exec sleep 1000"])
    assert configuration.linux is not None
    configuration.linux.namespaces = [n for n in configuration.linux.namespaces if n.type != "pid"]
    runtime.configure(configuration)
    subprocess.run(
        runtime.command("run", "--detach", "x"),
        cwd=runtime.folder,
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    while len(pids := json.loads(runtime("ps", "--format", "json", "x").stdout)) < 2:
        pass
    pidfds = [pidfd_open(pid) for pid in pids]
    runtime("kill", "x", "9")
    for pidfd in pidfds:
        _ended(pidfd)


def _ended(pidfd: int) -> None:
    import select

    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    assert poll.poll(30_000)
    os.close(pidfd)
