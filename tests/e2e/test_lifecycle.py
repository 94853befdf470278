"""start, stop, restart, kill, pause, wait, rename, rm; restart policies and health checks."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hosts import DOCKER, Daemon

NONE = ("--network", "none")
FOREVER = ("busybox", "sleep", "600")
POLITE = ("busybox", "sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.05; done")


def eventually(condition: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def status(daemon: Daemon, name: str = "c1") -> str:
    return daemon.out("inspect", "-f", "{{.State.Status}}", name)


def start(daemon: Daemon, *argv: str) -> None:
    daemon.docker("run", "-d", "--name", "c1", *NONE, *argv)


def test_a_container_that_is_only_created_has_no_process_for_long(daemon: Daemon) -> None:
    (launcher,) = daemon.launcher_pids()
    children = Path(f"/proc/{launcher}/task/{launcher}/children")
    before = set(children.read_text().split())
    for number in range(12):
        daemon.docker("create", "--name", f"c{number}", *NONE, *FOREVER)
    eventually(lambda: len(set(children.read_text().split()) - before) <= 8)  # those that are let go take a moment
    eventually(lambda: not set(children.read_text().split()) - before)
    daemon.docker("start", "c11")
    daemon.docker("create", "--name", "c12", *NONE, *FOREVER)
    daemon.docker("rm", "-f", *(f"c{number}" for number in range(13)))
    eventually(lambda: not set(children.read_text().split()) - before)


def test_stop_sends_term_and_then_kills(daemon: Daemon) -> None:
    start(daemon, *POLITE)
    daemon.docker("stop", "c1")
    assert daemon.inspect("c1")["State"]["ExitCode"] == 0
    daemon.docker("rm", "c1")
    start(daemon, *FOREVER)
    daemon.docker("stop", "-t", "0", "c1")
    assert daemon.inspect("c1")["State"]["ExitCode"] == 137


def test_stop_uses_the_containers_own_signal(daemon: Daemon) -> None:
    start(daemon, "--stop-signal", "USR1", "busybox", "sh", "-c", "trap 'exit 7' USR1; while :; do sleep 0.05; done")
    daemon.docker("stop", "c1")
    assert daemon.inspect("c1")["State"]["ExitCode"] == 7


def test_stopping_what_is_stopped_is_no_error(daemon: Daemon) -> None:
    daemon.docker("create", "--name", "c1", *FOREVER)
    assert daemon.docker("stop", "c1").returncode == 0


def test_start_again_keeps_the_files_and_has_a_new_pid(daemon: Daemon) -> None:
    start(daemon, "busybox", "sh", "-c", "echo x >> /count; cat /count | wc -l; sleep 600")
    pid = daemon.inspect("c1")["State"]["Pid"]
    eventually(lambda: daemon.out("logs", "c1") == "1")
    daemon.docker("restart", "-t", "0", "c1")
    assert daemon.inspect("c1")["State"]["Pid"] != pid
    eventually(lambda: daemon.out("logs", "c1").split() == ["1", "2"])


def test_start_attached_gives_output_and_exit_code(daemon: Daemon) -> None:
    daemon.docker("create", "--name", "c1", *NONE, "busybox", "sh", "-c", "echo hi; exit 4")
    done = daemon.docker("start", "-a", "c1", check=False)
    assert (done.stdout, done.returncode) == ("hi\n", 4)


def test_kill_of_a_stopped_container_is_a_conflict(daemon: Daemon) -> None:
    id = daemon.out("create", "--name", "c1", *FOREVER)
    done = daemon.docker("kill", "c1", check=False)
    assert f"cannot kill container: c1: container {id} is not running" in done.stderr


def test_a_paused_container_stands_still(daemon: Daemon) -> None:
    start(daemon, "busybox", "sh", "-c", "while :; do echo x; sleep 0.02; done")
    eventually(lambda: daemon.out("logs", "c1"))
    daemon.docker("pause", "c1")
    assert status(daemon) == "paused"
    assert "(Paused)" in daemon.out("ps", "--format", "{{.Status}}")
    lines = len(daemon.out("logs", "c1"))
    time.sleep(0.3)
    assert len(daemon.out("logs", "c1")) == lines
    done = daemon.docker("exec", "c1", "true", check=False)
    assert "is paused, unpause the container before exec" in done.stderr
    daemon.docker("unpause", "c1")
    eventually(lambda: len(daemon.out("logs", "c1")) > lines)


def test_a_paused_container_can_be_killed_and_removed(daemon: Daemon) -> None:
    start(daemon, *FOREVER)
    daemon.docker("pause", "c1")
    daemon.docker("rm", "-f", "c1")
    assert daemon.out("ps", "-aq") == ""


def test_a_running_container_is_not_removed_without_force(daemon: Daemon) -> None:
    start(daemon, *FOREVER)
    done = daemon.docker("rm", "c1", check=False)
    assert 'cannot remove container "c1": container is running' in done.stderr
    daemon.docker("rm", "-f", "c1")


def test_rename_frees_the_old_name(daemon: Daemon) -> None:
    start(daemon, *FOREVER)
    daemon.docker("rename", "c1", "c2")
    assert daemon.inspect("c2")["Name"] == "/c2"
    daemon.docker("create", "--name", "c1", "busybox")


@pytest.mark.parametrize("condition", ["not-running", "next-exit", "removed"])
def test_wait_ends_at_its_condition(daemon: Daemon, condition: str) -> None:
    from tests.e2e.test_crash import call

    start(daemon, "busybox", "sh", "-c", "sleep 0.5; exit 5")
    if condition == "removed":
        assert DOCKER is not None
        waiting = subprocess.Popen(
            ["sh", "-c", f"sleep 1; {DOCKER} rm -f c1"], env=daemon.environment(), stdout=subprocess.DEVNULL
        )
        assert call(daemon, "POST", "/containers/c1/wait?condition=removed")["StatusCode"] == 5
        waiting.wait()
    else:
        assert call(daemon, "POST", f"/containers/c1/wait?condition={condition}")["StatusCode"] == 5


def test_ids_can_be_shortened_while_they_are_unique(daemon: Daemon) -> None:
    id = daemon.out("create", "busybox")
    assert daemon.inspect(id[:6])["Id"] == id


def test_prune_removes_only_what_is_stopped(daemon: Daemon) -> None:
    start(daemon, *FOREVER)
    id = daemon.out("create", "--label", "x=y", "busybox")
    kept = daemon.out("create", "busybox")
    assert id in daemon.out("container", "prune", "-f", "--filter", "label=x")
    assert set(daemon.out("ps", "-aq", "--no-trunc").split()) == {daemon.inspect("c1")["Id"], kept}


# --- restart policies ---------------------------------------------------------------------------------------------


def test_on_failure_restarts_as_often_as_allowed(daemon: Daemon) -> None:
    start(daemon, "--restart", "on-failure:2", "busybox", "sh", "-c", "echo run; exit 1")
    eventually(lambda: daemon.inspect("c1")["State"]["Status"] == "exited")
    assert daemon.inspect("c1")["RestartCount"] == 2
    assert daemon.out("logs", "c1").split() == ["run"] * 3


def test_on_failure_leaves_a_success_alone(daemon: Daemon) -> None:
    start(daemon, "--restart", "on-failure", "busybox", "true")
    eventually(lambda: status(daemon) == "exited")
    time.sleep(0.3)
    assert daemon.inspect("c1")["RestartCount"] == 0


def test_always_restarts_until_it_is_stopped(daemon: Daemon) -> None:
    start(daemon, "--restart", "always", "busybox", "sleep", "0.1")
    eventually(lambda: daemon.inspect("c1")["RestartCount"] >= 2)
    daemon.docker("stop", "c1")
    count = daemon.inspect("c1")["RestartCount"]
    time.sleep(1)
    assert status(daemon) == "exited"
    assert daemon.inspect("c1")["RestartCount"] == count


def test_the_restart_policy_can_be_changed(daemon: Daemon) -> None:
    start(daemon, "busybox", "sh", "-c", "sleep 0.5; exit 1")
    daemon.docker("update", "--restart", "on-failure:1", "c1")
    eventually(lambda: daemon.inspect("c1")["RestartCount"] == 1)


def test_rm_and_a_restart_policy_exclude_each_other(daemon: Daemon) -> None:
    done = daemon.docker("run", "--rm", "--restart", "always", "busybox", check=False)
    assert done.returncode == 125


# --- health checks ------------------------------------------------------------------------------------------------


def health(daemon: Daemon) -> dict:  # type: ignore[type-arg]
    return daemon.inspect("c1")["State"]["Health"]


def test_a_container_becomes_healthy_and_unhealthy(daemon: Daemon) -> None:
    check = ("--health-cmd", "cat /ok", "--health-interval", "100ms", "--health-retries", "2")
    start(daemon, *check, *FOREVER)
    assert health(daemon)["Status"] == "starting"
    daemon.docker("exec", "c1", "touch", "/ok")
    eventually(lambda: health(daemon)["Status"] == "healthy")
    daemon.docker("exec", "c1", "rm", "/ok")
    eventually(lambda: health(daemon)["Status"] == "unhealthy")
    last = health(daemon)["Log"][-1]
    assert last["ExitCode"] == 1
    assert "No such file" in last["Output"]
    assert len(health(daemon)["Log"]) <= 5
    assert daemon.out("ps", "-q", "--filter", "health=unhealthy")


def test_a_check_that_takes_too_long_is_killed(daemon: Daemon) -> None:
    check = ("--health-cmd", "sleep 60", "--health-interval", "100ms", "--health-timeout", "200ms")
    start(daemon, *check, *FOREVER)
    eventually(lambda: bool(health(daemon)["Log"]))
    assert "Health check exceeded timeout (200ms)" in health(daemon)["Log"][0]["Output"]
    eventually(lambda: daemon.out("top", "c1").count("sleep 60") <= 1)


def test_failures_in_the_start_period_do_not_count(daemon: Daemon) -> None:
    start(
        daemon, "--health-cmd", "false", "--health-interval", "100ms", "--health-retries", "1",
        "--health-start-period", "60s", "--health-start-interval", "100ms", *FOREVER,
    )  # fmt: skip
    eventually(lambda: len(health(daemon)["Log"]) >= 3)
    assert (health(daemon)["Status"], health(daemon)["FailingStreak"]) == ("starting", 0)
