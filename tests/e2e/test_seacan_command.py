"""The ``seacan`` command against a daemon: what it prints, how it exits, what a terminal sees."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hosts import REPOSITORY, Daemon
from tests.trees import nest

Seacan = Callable[..., subprocess.CompletedProcess[str]]
PROGRAM = [sys.executable, "-m", "seacan.cli.main"]


def environment(daemon: Daemon) -> dict[str, str]:
    return daemon.environment(PYTHONPATH=str(REPOSITORY), PYTHONDONTWRITEBYTECODE="")


@pytest.fixture
def seacan(daemon: Daemon) -> Seacan:
    def run(*arguments: str, input: str | bytes | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        data = input.encode() if isinstance(input, str) else input
        raw = subprocess.run(
            [*PROGRAM, *arguments],
            capture_output=True,
            env=environment(daemon),
            timeout=60,
            input=data,
            stdin=subprocess.DEVNULL if data is None else None,
        )
        done = subprocess.CompletedProcess(
            raw.args, raw.returncode, raw.stdout.decode(errors="replace"), raw.stderr.decode(errors="replace")
        )
        if check and done.returncode:
            raise AssertionError(f"seacan {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    return run


class Terminal:
    """A ``seacan`` on a pseudo-terminal."""

    def __init__(self, daemon: Daemon, *arguments: str) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(sys.executable, [*PROGRAM, *arguments], environment(daemon))
        self.seen = b""

    def expect(self, text: str, timeout: float = 30) -> None:
        deadline = time.monotonic() + timeout
        while text.encode() not in self.seen:
            ready, _, _ = select.select([self.fd], [], [], max(0, deadline - time.monotonic()))
            try:
                data = os.read(self.fd, 65536) if ready else b""
            except OSError:
                data = b""
            assert data, f"{text!r} was not seen in {self.seen!r}"
            self.seen += data
        self.seen = self.seen.partition(text.encode())[2]

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def wait(self) -> int:
        while True:
            try:
                if not os.read(self.fd, 65536):
                    break
            except OSError:
                break
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        return os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.fd)


@pytest.fixture
def terminal(daemon: Daemon) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(*arguments: str) -> Terminal:
        opened.append(Terminal(daemon, *arguments))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


# --- run -----------------------------------------------------------------------------------------------------------


def test_run_passes_output_and_exit_status_on(seacan: Seacan) -> None:
    done = seacan("run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2; exit 3", check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 3)
    assert seacan("ps", "-aq").stdout == ""


@pytest.mark.parametrize(("command", "status"), [("/no/such/program", 127), ("/etc", 126), ("exit 137", 137)])
def test_run_has_dockers_exit_statuses(seacan: Seacan, command: str, status: int) -> None:
    arguments = ["sh", "-c", command] if " " in command else [command]
    assert seacan("run", "--rm", "busybox", *arguments, check=False).returncode == status


def test_run_fails_with_125_when_the_engine_refuses(seacan: Seacan) -> None:
    done = seacan("run", "--network=nonexistent", "busybox", check=False)
    assert done.returncode == 125
    assert "seacan: Error response from daemon:" in done.stderr


def test_run_feeds_standard_input(seacan: Seacan) -> None:
    data = os.urandom(200_000)
    done = subprocess.CompletedProcess([], 0)
    result = seacan("run", "-i", "--rm", "busybox", "sha256sum", input=data)
    import hashlib

    assert result.stdout.split()[0] == hashlib.sha256(data).hexdigest()
    assert done.returncode == 0


def test_a_detached_run_prints_the_id_and_writes_it_down(seacan: Seacan, tmp_path: Path) -> None:
    cidfile = tmp_path / "cid"
    done = seacan("run", "-d", "--cidfile", str(cidfile), "--name", "sleeper", "busybox", "sleep", "100")
    assert re.fullmatch("[0-9a-f]{64}\n", done.stdout)
    assert cidfile.read_text() == done.stdout.strip()
    assert seacan("ps", "-q", "--no-trunc").stdout == done.stdout
    assert seacan("run", "--cidfile", str(cidfile), "busybox", check=False).returncode == 125


def test_signals_reach_the_process(daemon: Daemon, seacan: Seacan) -> None:
    script = "trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 0.1; done"
    process = subprocess.Popen(
        [*PROGRAM, "run", "--rm", "busybox", "sh", "-c", script],
        stdout=subprocess.PIPE,
        env=environment(daemon),
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.stdout.read() == "caught\n"
    assert process.wait(30) == 5


# --- terminals -----------------------------------------------------------------------------------------------------


def test_a_terminal_is_raw_sized_and_detachable(terminal: Callable[..., Terminal], seacan: Seacan) -> None:
    import fcntl
    import struct
    import termios

    shell = terminal("run", "-it", "--name", "shell", "busybox", "sh")
    shell.expect("#")
    shell.type("stty size; tty\n")
    shell.expect("/dev/pts/0")
    fcntl.ioctl(shell.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 77, 0, 0))
    os.kill(shell.pid, signal.SIGWINCH)
    for _ in range(50):
        shell.type("stty size\n")
        time.sleep(0.1)
        ready, _, _ = select.select([shell.fd], [], [], 1)
        if ready and b"33 77" in os.read(shell.fd, 65536):
            break
    else:
        pytest.fail("the container's terminal did not follow the window's size")
    shell.type("\x10\x11")
    assert shell.wait() == 0
    assert seacan("inspect", "-f", "{{.State.Running}}", "shell").stdout == "true\n"
    again = terminal("attach", "shell")
    again.type("echo a$((1+1))b\n")
    again.expect("a2b")
    again.type("exit 4\n")
    assert again.wait() == 4


def test_exec_has_a_terminal_too(terminal: Callable[..., Terminal], seacan: Seacan) -> None:
    seacan("run", "-d", "--name", "web", "busybox", "sleep", "100")
    shell = terminal("exec", "-it", "web", "sh", "-c", "tty; read x; echo got-$x; exit 6")
    shell.expect("/dev/pts/")
    shell.type("it\n")
    shell.expect("got-it")
    assert shell.wait() == 6


# --- the verbs -----------------------------------------------------------------------------------------------------


def test_exec_passes_environment_input_and_status(seacan: Seacan) -> None:
    seacan("run", "-d", "--name", "web", "busybox", "sleep", "100")
    done = seacan(
        "exec",
        "-i",
        "-e",
        "A=b",
        "-w",
        "/tmp",
        "web",
        "sh",
        "-c",
        "cat; echo $A; pwd; exit 9",
        input="in\n",
        check=False,
    )
    assert (done.stdout, done.returncode) == ("in\nb\n/tmp\n", 9)
    assert seacan("exec", "web", "nope", check=False).returncode == 127


def test_tables_formats_and_filters(seacan: Seacan, daemon: Daemon) -> None:
    seacan("run", "-d", "--name", "one", "-l", "x=1", "busybox", "sleep", "100")
    seacan("create", "--name", "two", "busybox")
    lines = seacan("ps", "-a").stdout.splitlines()
    assert lines[0].split() == ["CONTAINER", "ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"]
    assert len(lines) == 3
    assert seacan("ps", "-a", "--format", "{{.Names}}:{{.State}}").stdout == "two:created\none:running\n"
    assert seacan("ps", "--filter", "label=x=1", "--format", '{{.Label "x"}}').stdout == "1\n"
    # The same words as the real client's, to the letter.
    for arguments in (
        ["ps", "-a", "--no-trunc"],
        ["ps", "-a", "--format", "json"],
        ["images"],
        ["images", "--digests", "--no-trunc"],
        ["network", "ls"],
        ["volume", "ls"],
        ["history", "--no-trunc", "busybox"],
        ["inspect", "one"],
        ["inspect", "-f", "{{json .Config}} {{.HostConfig.NetworkMode}}", "one"],
        ["image", "inspect", "busybox"],
        ["top", "one"],
        ["port", "one"],
        ["diff", "one"],
    ):
        # A second may pass between the two ("2 seconds ago"), not three times in a row.
        for _ in range(3):
            ours, theirs = seacan(*arguments).stdout, daemon.docker(*arguments).stdout
            if ours == theirs:
                break
        assert ours == theirs, arguments


def test_logs_keep_the_streams_apart(seacan: Seacan) -> None:
    seacan("run", "--name", "web", "busybox", "sh", "-c", "echo a; echo b >&2; echo c")
    done = seacan("logs", "web")
    assert (done.stdout, done.stderr) == ("a\nc\n", "b\n")
    assert re.match(r"\d{4}-\d\d-\d\dT.*Z a\n", seacan("logs", "-t", "web").stdout)


def test_the_end_of_the_logs(seacan: Seacan) -> None:
    seacan("run", "--name", "web", "busybox", "sh", "-c", "echo a; echo b; echo c")
    assert seacan("logs", "--tail", "2", "web").stdout == "b\nc\n"


def test_following_logs_ends_with_the_container(seacan: Seacan) -> None:
    seacan("run", "-d", "--name", "web", "busybox", "sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.1; done")
    assert seacan("logs", "-f", "web").stdout == "1\n2\n3\n"


def test_a_container_is_stopped_started_paused_renamed_and_removed(seacan: Seacan) -> None:
    seacan("run", "-d", "--name", "web", "--init", "busybox", "sleep", "100")
    assert seacan("pause", "web").stdout == "web\n"
    assert seacan("ps", "--format", "{{.State}}").stdout == "paused\n"
    seacan("unpause", "web")
    seacan("rename", "web", "site")
    assert seacan("stop", "-t", "5", "site").stdout == "site\n"
    assert seacan("wait", "site").stdout == "143\n"
    seacan("start", "site")
    seacan("restart", "-t", "1", "site")
    assert seacan("kill", "-s", "KILL", "site").stdout == "site\n"
    assert seacan("rm", "site", "nonexistent", check=False).returncode == 1
    assert seacan("ps", "-aq").stdout == ""


def test_several_failures_are_all_reported(seacan: Seacan) -> None:
    done = seacan("stop", "none1", "none2", check=False)
    assert done.returncode == 1
    assert done.stderr.count("No such container") == 2


def test_files_are_copied_both_ways(seacan: Seacan, tmp_path: Path) -> None:
    seacan("create", "--name", "box", "busybox")
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "file").write_text("hello")
    (folder / "link").symlink_to("sub/file")
    seacan("cp", str(folder), "box:/opt")
    seacan("cp", f"{folder}/.", "box:/srv")
    seacan("cp", str(folder / "sub" / "file"), "box:/etc/renamed")
    seacan("cp", "box:/opt", str(tmp_path / "back"))
    assert (tmp_path / "back" / "sub" / "file").read_text() == "hello"
    assert os.readlink(tmp_path / "back" / "link") == "sub/file"
    seacan("cp", "box:/srv/sub/file", str(tmp_path))
    assert (tmp_path / "file").read_text() == "hello"
    seacan("cp", "box:/etc/renamed", str(tmp_path / "file2"))
    assert (tmp_path / "file2").read_text() == "hello"
    assert seacan("cp", "box:/none", str(tmp_path), check=False).returncode == 1
    archive = subprocess.run(["tar", "-c", "-C", str(folder), "sub"], capture_output=True, check=True).stdout
    seacan("cp", "-", "box:/home", input=archive)
    seacan("cp", "box:/home/sub/file", str(tmp_path / "file3"))
    assert (tmp_path / "file3").read_text() == "hello"


def test_images_are_saved_tagged_removed_and_loaded(seacan: Seacan, tmp_path: Path) -> None:
    archive = tmp_path / "image.tar"
    seacan("tag", "busybox", "mine/box:v1")
    seacan("save", "-o", str(archive), "mine/box:v1")
    assert "Untagged: mine/box:v1" in seacan("rmi", "mine/box:v1").stdout
    assert "Loaded image: mine/box:v1" in seacan("load", "-i", str(archive)).stdout
    seacan("rmi", "mine/box:v1")


def test_an_image_is_committed_and_imported(seacan: Seacan, tmp_path: Path) -> None:
    seacan("run", "--name", "box", "busybox", "sh", "-c", "echo x > /marker")
    assert seacan("commit", "-m", "made", "-c", "ENV A=b", "box", "made:1").stdout.startswith("sha256:")
    assert seacan("run", "--rm", "made:1", "sh", "-c", "cat /marker; echo $A").stdout == "x\nb\n"
    tarball = tmp_path / "root.tar"
    seacan("export", "-o", str(tarball), "box")
    assert seacan("import", str(tarball), "flat:1").stdout.startswith("sha256:")
    seacan("rm", "box")
    seacan("rmi", "made:1", "flat:1")


def test_networks_and_volumes(seacan: Seacan) -> None:
    assert re.fullmatch("[0-9a-f]{64}\n", seacan("network", "create", "--subnet", "10.77.0.0/24", "net1").stdout)
    assert seacan("volume", "create", "vol1").stdout == "vol1\n"
    done = seacan("run", "--rm", "--network", "net1", "--ip", "10.77.0.9", "-v", "vol1:/v", "busybox", "ip", "-4", "a")
    assert "10.77.0.9/24" in done.stdout
    assert seacan("network", "inspect", "-f", "{{(index .IPAM.Config 0).Subnet}}", "net1").stdout == "10.77.0.0/24\n"
    assert seacan("volume", "ls", "-q").stdout == "vol1\n"
    assert seacan("network", "rm", "net1").stdout == "net1\n"
    assert seacan("volume", "rm", "vol1").stdout == "vol1\n"
    assert seacan("volume", "inspect", "vol1", check=False).returncode == 1


def test_events_are_shown(seacan: Seacan) -> None:
    before = f"{time.time():.9f}"
    seacan("run", "--rm", "--name", "web", "busybox", "true")
    after = f"{time.time():.9f}"
    actions = seacan("events", "--since", before, "--until", after, "--format", "{{.Type}} {{.Action}}").stdout.split(
        "\n"
    )
    for expected in ("container create", "container start", "container die", "container destroy"):
        assert expected in actions
    line = seacan("events", "--since", before, "--until", after, "-f", "event=start").stdout
    assert re.match(r"\S+ container start [0-9a-f]{64} \(image=busybox, name=web\)", line)


def test_statistics_are_shown(seacan: Seacan) -> None:
    seacan("run", "-d", "--name", "web", "busybox", "sleep", "100")
    shown = json.loads(seacan("stats", "--no-stream", "--format", "json", "web").stdout)
    assert shown["Name"] == "web"
    assert shown["PIDs"] == "1"
    assert re.fullmatch(r"[\d.]+%", shown["CPUPerc"])


def test_version_and_info_speak_of_both_ends(seacan: Seacan) -> None:
    assert seacan("version", "--format", "{{.Server.ApiVersion}}").stdout == "1.51\n"
    assert "Server:" in seacan("version").stdout
    assert "Storage Driver:" in seacan("info").stdout
    assert seacan("info", "-f", "{{.OSType}}").stdout == "linux\n"


def test_disk_usage_and_prune(seacan: Seacan) -> None:
    seacan("create", "busybox")
    assert seacan("system", "df").stdout.splitlines()[0].split() == ["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"]
    assert "Containers space usage:" in seacan("system", "df", "-v").stdout
    assert "Deleted Containers:" in seacan("container", "prune", "-f").stdout
    assert "Total reclaimed space:" in seacan("system", "prune", "-f").stdout
    assert seacan("ps", "-aq").stdout == ""


def test_completion_knows_the_containers(seacan: Seacan, daemon: Daemon) -> None:
    seacan("run", "-d", "--name", "webserver", "busybox", "sleep", "100")
    done = subprocess.run(
        PROGRAM,
        capture_output=True,
        text=True,
        env=environment(daemon)
        | {"_SEACAN_COMPLETE": "bash_complete", "COMP_WORDS": "seacan stop webs", "COMP_CWORD": "2"},
    )
    assert done.stdout == "plain,webserver\n"


def test_an_image_is_built(seacan: Seacan, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM busybox\nARG X\nCOPY . /ctx\nRUN echo x=$X > /x\n")
    (tmp_path / ".dockerignore").write_text("ignored\n")
    (tmp_path / "ignored").touch()
    (tmp_path / "sent").touch()
    iidfile = tmp_path.parent / "iid"
    done = seacan("build", "-t", "cli-built:1", "--build-arg", "X=1", "--iidfile", str(iidfile), str(tmp_path))
    assert "#1 [internal] load build definition from Dockerfile\n" in done.stderr
    assert re.search(r"^#\d+ \[3/3\] RUN echo x=1 > /x\n#\d+ DONE \d+\.\ds$", done.stderr, re.M)
    assert re.search(r"^#\d+ naming to docker.io/library/cli-built:1 done$", done.stderr, re.M)
    assert "CACHED" in seacan("build", str(tmp_path)).stderr
    assert seacan("images", "-q", "--no-trunc", "cli-built").stdout.strip() == iidfile.read_text()
    shown = seacan("run", "--rm", "cli-built:1", "sh", "-c", "cat /x; ls /ctx").stdout
    assert shown == "x=1\nDockerfile\nsent\n"
    done = seacan("build", "-q", "--build-arg", "X=1", str(tmp_path))
    assert (done.stdout.strip(), done.stderr) == (iidfile.read_text(), "")
    failed = seacan("build", "-f", "-", str(tmp_path), input="FROM busybox\nRUN false\n", check=False)
    assert failed.returncode == 1
    assert "Dockerfile:2\n" in failed.stderr and ">>> RUN false" in failed.stderr
    assert failed.stderr.endswith(
        'ERROR: failed to build: failed to solve: process "/bin/sh -c false" did not complete successfully: '
        "exit code: 1\n"
    )
    assert "Successfully tagged squashed:1" in seacan("build", "--squash", "-t", "squashed:1", str(tmp_path)).stdout
    seacan("rmi", "-f", "cli-built:1", "squashed:1")


def test_a_build_gets_what_it_is_offered_and_gives_what_is_asked(seacan: Seacan, tmp_path: Path) -> None:
    context, other = tmp_path / "context", tmp_path / "other"
    context.mkdir()
    other.mkdir()
    (other / "shared").write_text("shared\n")
    (tmp_path / "token").write_text("hunter2")
    (context / "Dockerfile").write_text(
        "FROM busybox AS made\nARG TARGETARCH\nCOPY --from=more /shared /s\n"
        "RUN --mount=type=secret,id=token test $(cat /run/secrets/token) = hunter2 && echo $(cat /s) > /out\n"
        "RUN --mount=type=ssh,required=true test -S $SSH_AUTH_SOCK\n"
        "FROM scratch\nCOPY --from=made /out /\nCMD echo hi\n"
    )
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(tmp_path / "agent"))
        agent.listen()
        metadata = tmp_path / "metadata"
        done = seacan(
            "build", "--secret", f"id=token,src={tmp_path / 'token'}", "--ssh", f"default={tmp_path / 'agent'}",
            "--build-context", f"more={other}", "-o", str(tmp_path / "files"), "--metadata-file", str(metadata),
            "-o", f"type=oci,dest={tmp_path / 'image.tar'}", "--provenance=mode=max", "-t", "given:1", str(context),
        )  # fmt: skip
    assert (tmp_path / "files/out").read_text() == "shared\n"
    assert "1 warning found" in done.stderr and "JSONArgsRecommended" in done.stderr
    with tarfile.open(tmp_path / "image.tar") as archive:
        index = json.load(archive.extractfile("index.json"))  # type: ignore[arg-type]
    told = json.loads(metadata.read_text())
    assert index["manifests"][0]["digest"] == told["containerimage.digest"]
    assert index["manifests"][0]["mediaType"] == "application/vnd.oci.image.index.v1+json"
    checked = seacan("build", "--check", "--build-context", f"more={other}", str(context), check=False)
    assert checked.returncode == 1 and "WARNING: JSONArgsRecommended" in checked.stdout
    assert "made" in seacan("build", "--call=targets", str(context)).stdout
    archive_of_context = subprocess.run(["tar", "c", "-C", str(other), "."], capture_output=True, check=True).stdout
    piped = seacan("build", "-", input=archive_of_context, check=False)
    assert piped.returncode and "open Dockerfile: no such file or directory" in piped.stderr


def test_a_deep_context_is_built_and_an_interrupted_build_ends(seacan: Seacan, daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM busybox\nCOPY . /c/\nRUN find /c | wc -l > /n\nRUN sleep 300\n")
    nest(tmp_path, 1100)
    client = subprocess.Popen(
        [sys.executable, "-m", "seacan.cli.main", "build", "--progress=plain", str(tmp_path)],
        env={**daemon.environment(), "PYTHONPATH": str(REPOSITORY)}, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background has it ignored
    )  # fmt: skip
    assert client.stderr is not None
    for line in client.stderr:
        if "RUN sleep 300" in line:
            break
    client.send_signal(signal.SIGINT)
    client.stderr.close()
    assert client.wait(20)
    deadline = time.monotonic() + 20
    while list((daemon.exec_root / "build").iterdir()):
        assert time.monotonic() < deadline, "the step goes on"
        time.sleep(0.1)
    subprocess.run(["rm", "-r", str(tmp_path / "d")], check=True)  # pytest cannot
    (tmp_path / "Dockerfile").write_text("FROM busybox\nCOPY . /c/\n")
    seacan("build", str(tmp_path))  # the deep tree is taken out of the context that is kept
    seacan("builder", "prune", "-af")
    while list((daemon.data_root / "trash").iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_ports_of_a_running_container_come_and_go(seacan: Seacan, daemon: Daemon) -> None:
    seacan("run", "-d", "--name", "web", "busybox", "httpd", "-f", "-p", "80")
    assert seacan("port", "add", "web", "127.0.0.1:18080:80").stdout == "80/tcp -> 127.0.0.1:18080\n"
    assert seacan("port", "web").stdout == "80/tcp -> 127.0.0.1:18080\n"
    code = (
        "import http.client\n"
        "connection = http.client.HTTPConnection('127.0.0.1', 18080)\n"
        "connection.request('GET', '/')\n"
        "print(connection.getresponse().status)\n"
    )
    assert daemon.host.run(sys.executable, "-c", code).stdout == "404\n"
    seacan("port", "rm", "web", "80")
    assert seacan("port", "web").stdout == ""
    assert daemon.host.run(sys.executable, "-c", code, check=False).returncode == 1
    assert seacan("port", "rm", "web", "80", check=False).returncode == 1


def test_the_build_cache_is_pruned(seacan: Seacan) -> None:
    seacan("build", "-t", "pruned", "-", input="FROM busybox\nRUN echo pruned > /file\n")
    seacan("rmi", "pruned")
    assert "Are you sure" in seacan("builder", "prune", "-a", input="n\n").stdout
    done = seacan("builder", "prune", "-af").stdout
    assert "Deleted build cache objects:\n" in done
    assert re.search(r"^Total reclaimed space: \d", done, re.M)
    assert seacan("builder", "prune", "-af").stdout == "Total reclaimed space: 0B\n"


def test_a_search_shows_what_a_registry_finds(seacan: Seacan, daemon: Daemon, tmp_path: Path) -> None:
    long = "the first of " + "many " * 20
    (tmp_path / "v1").mkdir()
    results = [
        {"name": "web", "description": long, "star_count": 7, "is_official": True, "is_automated": False},
        {"name": "ann/web", "description": "hers", "star_count": 0, "is_official": False, "is_automated": False},
    ]
    (tmp_path / "v1" / "search").write_text(json.dumps({"results": results, "num_results": 2}))
    server = subprocess.Popen(
        daemon.host.command(sys.executable, "-m", "http.server", "5077", "--bind", "127.0.0.1", "-d", str(tmp_path)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(100):
            if not daemon.host.run(
                "busybox", "wget", "-qO", "/dev/null", "http://127.0.0.1:5077/", check=False
            ).returncode:
                break
            time.sleep(0.05)
        lines = seacan("search", "127.0.0.1:5077/web").stdout.splitlines()
        assert lines[0].split() == ["NAME", "DESCRIPTION", "STARS", "OFFICIAL"]
        assert lines[1].split()[0] == "web" and lines[1].endswith("[OK]") and "…" in lines[1]
        whole = seacan("search", "--no-trunc", "--format", "{{.Name}}: {{.Description}}", "127.0.0.1:5077/web").stdout
        assert whole == f"web: {long}\nann/web: hers\n"
    finally:
        server.terminate()
        server.wait()
