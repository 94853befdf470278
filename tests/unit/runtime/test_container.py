"""A container's life, from create to delete."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from seacan.cgroups import open as open_cgroup
from seacan.errors import Conflict, InvalidParameter, NotFound, RuntimeFailed
from seacan.runtime import spec
from seacan.runtime.container import Container, Stdio, reap
from tests.bundles import Bundles, DirectoryRoot, read_all, wait


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_init_runs_the_program_and_its_exit_code_is_reported(bundles: Bundles) -> None:
    assert bundles.run(["sh", "-c", "echo hello; exit 7"]) == (7, "hello\n")


def test_a_killed_program_is_reported_with_its_signal(bundles: Bundles) -> None:
    container = bundles.start()
    container.kill(signal.SIGKILL)
    assert wait(container.pidfd) == (137, signal.SIGKILL)


def test_the_program_runs_only_after_start(bundles: Bundles) -> None:
    read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    container = bundles.create(bundles.spec(["echo", "now"]), stdio=Stdio(-1, write, write))
    os.close(write)
    with pytest.raises(BlockingIOError):
        os.read(read, 10)
    assert container.status() == "created"
    container.start()
    assert read_all(read) == "now\n"
    os.close(read)


def test_states_follow_the_life_cycle(bundles: Bundles) -> None:
    container = bundles.create(bundles.spec(["sleep", "1000"]))
    assert container.state().status == "created"
    container.start()
    assert container.state().status == "running"
    container.pause()
    assert container.state().status == "paused"
    container.resume()
    assert container.state().status == "running"
    container.kill(signal.SIGKILL)
    wait(container.pidfd)
    assert (container.state().status, container.state().pid) == ("stopped", 0)


def test_sigkill_reaches_a_paused_container(bundles: Bundles) -> None:
    container = bundles.start()
    container.pause()
    container.kill(signal.SIGKILL)
    assert wait(container.pidfd).signal == signal.SIGKILL


def test_delete_leaves_no_cgroup_no_state_and_no_descriptor(bundles: Bundles) -> None:
    bundles.run(["true"])
    before = descriptors()
    configuration = bundles.spec(["true"])
    container = bundles.create(configuration)
    container.start()
    wait(container.pidfd)
    container.delete()
    assert configuration.linux is not None
    assert not open_cgroup(configuration.linux.cgroups_path).exists
    assert not os.path.exists(container.folder)
    assert descriptors() == before


def test_a_running_container_is_not_deleted_without_force(bundles: Bundles) -> None:
    container = bundles.start()
    with pytest.raises(Conflict, match=f"cannot delete container {container.id} that is not stopped: running"):
        container.delete()
    container.delete(force=True)
    assert not os.path.exists(f"/proc/{container.pid}")


def test_an_id_is_taken_once(bundles: Bundles) -> None:
    container = bundles.start()
    with pytest.raises(Conflict, match="container with given ID already exists"):
        Container.create(container.id, str(bundles.root), bundles.spec(["true"]), root=str(bundles.root), stdio=Stdio())


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "é"])
def test_an_id_must_be_a_plain_name(bundles: Bundles, name: str) -> None:
    with pytest.raises(InvalidParameter, match="invalid container ID format"):
        Container.create(name, "/tmp", bundles.spec(["true"]), root=str(bundles.root), stdio=Stdio())


@pytest.mark.parametrize(
    ("command", "message", "exit_code"),
    [
        ("nosuch", 'exec: "nosuch": executable file not found in $PATH', 127),
        ("", 'exec: "": executable file not found in $PATH', 127),
        ("/nosuch", 'exec: "/nosuch": stat /nosuch: no such file or directory', 127),
        ("/bin", 'exec: "/bin": is a directory', 126),
        ("/etc/passwd", 'exec: "/etc/passwd": permission denied', 126),
    ],
)
def test_a_command_that_cannot_be_executed_fails_creation_in_runcs_words(
    bundles: Bundles, command: str, message: str, exit_code: int
) -> None:
    before = descriptors()
    configuration = bundles.spec([command])
    with pytest.raises(RuntimeFailed) as failure:
        bundles.create(configuration)
    assert str(failure.value) == f"unable to start container process: error during container init: {message}"
    assert failure.value.exit_code == exit_code
    assert configuration.linux is not None
    assert not open_cgroup(configuration.linux.cgroups_path).exists
    assert list(bundles.root.iterdir()) == []
    assert descriptors() == before


def test_a_file_that_is_no_program_is_told_on_stderr_as_runc_does(bundles: Bundles) -> None:
    root = bundles.overlay()
    program = Path(root.upper or "") / "rubbish"
    program.write_bytes(b"\x01\x02")
    program.chmod(0o755)
    assert bundles.run(["/rubbish"], rootfs=root) == (255, "exec /rubbish: exec format error\n")


def test_start_fails_the_second_time(bundles: Bundles) -> None:
    container = bundles.start()
    with pytest.raises(RuntimeFailed, match="cannot start an already running container"):
        container.start()


def test_init_dies_with_a_creator_that_never_started_it(bundles: Bundles) -> None:
    read, write = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        container = bundles.create(bundles.spec(["sleep", "1000"]))
        os.write(write, str(container.pid).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.close(write)
    init = int(os.read(read, 20))
    os.close(read)
    os.waitpid(pid, 0)
    for _ in range(1000):
        try:
            with open(f"/proc/{init}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] in "ZX":
                    break
        except (FileNotFoundError, ProcessLookupError):
            break
        signal.sigtimedwait([], 0.01)
    else:
        pytest.fail("init lives on")
    name = next(bundles.root.iterdir()).name
    Container.load(name, root=str(bundles.root)).delete(force=True)


def test_another_process_can_load_start_and_delete_a_detached_container(bundles: Bundles) -> None:
    container = bundles.create(bundles.spec(["sh", "-c", "exit 3"]), detached=True)
    other = Container.load(container.id, root=str(bundles.root))
    assert other.status() == "created"
    other.start()
    assert wait(container.pidfd).exit_code == 3
    assert other.status() == "stopped"
    other.delete()
    with pytest.raises(NotFound, match="container does not exist"):
        Container.load(container.id, root=str(bundles.root))


def test_a_reused_pid_is_not_taken_for_the_container(bundles: Bundles) -> None:
    container = bundles.start()
    container.start_time -= 1
    assert container.status() == "stopped"
    container.start_time += 1


def test_signals_can_be_sent_to_everyone(bundles: Bundles) -> None:
    configuration = bundles.spec(["sh", "-c", "sleep 1000 & exec sleep 1000"])
    assert configuration.linux is not None
    configuration.linux.namespaces = [n for n in configuration.linux.namespaces if n.type != "pid"]
    container = bundles.create(configuration)
    container.start()
    while len(container.processes()) < 2:
        signal.sigtimedwait([], 0.01)
    container.kill(signal.SIGKILL, everyone=True)
    wait(container.pidfd)
    deadline = time.monotonic() + 10
    while container.processes():  # the other one dies in its own time
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_reap_says_none_while_the_process_runs(bundles: Bundles) -> None:
    container = bundles.start()
    assert reap(container.pidfd) is None


def test_a_network_namespace_comes_with_lo_up_and_an_rtnetlink_socket(bundles: Bundles) -> None:
    seen: list[tuple[int, int | None, int | None]] = []
    container = bundles.create(
        bundles.spec(["sleep", "1000"]), on_sandbox=lambda made: seen.append((made.pid, made.netns, made.rtnl))
    )
    assert seen == [(container.pid, container.netns, container.rtnl)]
    assert container.netns is not None and container.rtnl is not None
    assert os.readlink(f"/proc/self/fd/{container.netns}") == os.readlink(f"/proc/{container.pid}/ns/net")
    container.start()
    assert "127.0.0.1/8" in bundles.exec(container, ["ip", "address"])[1]


def test_a_plain_folder_can_be_the_root(bundles: Bundles) -> None:
    configuration = bundles.spec(["sh", "-c", "ls / | wc -l; touch /x"])
    assert configuration.root is not None
    configuration.root.readonly = True
    code, output = bundles.run(configuration, rootfs=DirectoryRoot(str(bundles.lower)))
    assert code == 1
    assert output == "7\ntouch: /x: Read-only file system\n"


def test_update_changes_a_limit_of_the_living_container(bundles: Bundles) -> None:
    container = bundles.start()
    assert container.cgroup is not None
    container.update(spec.LinuxResources(pids=spec.LinuxPids(limit=33)))
    assert container.cgroup.stats().pids.limit == 33
