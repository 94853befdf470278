"""What the docker client says when something is wrong: dockerd's words and the client's exit codes."""

from __future__ import annotations

import subprocess

import pytest

from tests.hosts import Daemon


def refused(daemon: Daemon, *argv: str) -> tuple[int, str]:
    """Exit code and first line of a command that must fail, without the client's own prefixes."""
    done: subprocess.CompletedProcess[str] = daemon.docker(*argv, check=False)
    assert done.returncode != 0, f"docker {' '.join(argv)} succeeded:\n{done.stdout}"
    line = next(line for line in done.stderr.splitlines() if "rror" in line)
    return done.returncode, line.removeprefix("docker: ").removeprefix("Error response from daemon: ")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--log-driver", "bogus"), 'error looking up logging plugin bogus: plugin "bogus" not found'),
        (("--log-opt", "bogus=1"), "unknown log opt 'bogus' for json-file log driver"),
        (("--log-driver", "local", "--log-opt", "x=1"), "unknown log opt 'x' for log driver local"),
        (("--runtime", "bogus"), "unknown or invalid runtime name: bogus"),
        (("--pid", "container:nosuch"), "No such container: nosuch"),
        (("--ipc", "container:nosuch"), "No such container: nosuch"),
        (
            ("--network", "bridge", "--ip", "172.17.0.99"),
            "invalid config for network bridge: invalid endpoint settings:",
        ),
    ],
)
def test_a_container_that_cannot_be_is_not_created(daemon: Daemon, option: tuple[str, ...], message: str) -> None:
    assert refused(daemon, "run", "--rm", *option, "busybox", "true") == (125, message)
    assert daemon.out("ps", "-aq") == ""


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("max-size=bogus", "invalid size: 'bogus'"),
        ("max-file=0", "max-file cannot be less than 1"),
        ("max-file=x", 'strconv.Atoi: parsing "x": invalid syntax'),
    ],
)
def test_a_log_that_cannot_be_opened_fails_the_start(daemon: Daemon, option: str, message: str) -> None:
    code, told = refused(daemon, "run", "--rm", "--network", "none", "--log-opt", option, "busybox", "true")
    assert code == 125
    assert told == f"failed to create task for container: failed to initialize logging driver: {message}"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("update", "--cpu-quota", "1", "nosuch"), "CPU cfs quota can not be less than 1ms (i.e. 1000)"),
        (("kill", "-s", "BOGUS", "nosuch"), "cannot kill container: nosuch: invalid signal: BOGUS"),
        (("rm", "--link", "nosuch"), "No such container: nosuch"),
        (("ps", "--filter", "is-task=bogus"), "invalid filter 'is-task=[bogus]'"),
        (
            ("ps", "--filter", "publish=bogus"),
            'error while looking up for publish bogus: strconv.ParseUint: parsing "bogus": invalid syntax',
        ),
        (("network", "disconnect", "-f", "bridge", "nosuch"), "endpoint nosuch not found"),
        (("builder", "prune", "-f", "--filter", "bogus=1"), "failed to prune build cache: invalid filter 'bogus'"),
        (
            ("login", "-u", "a", "-p", "b", "localhost:1"),
            'Get "http://localhost:1/v2/": dial tcp localhost:1: connect: connection refused',
        ),
    ],
)
def test_what_is_wrong_is_said_in_dockerds_words(daemon: Daemon, argv: tuple[str, ...], message: str) -> None:
    assert refused(daemon, *argv) == (1, message)


def test_a_bad_new_name_says_that_it_was_to_be_one(daemon: Daemon) -> None:
    daemon.docker("create", "--name", "c1", "busybox")
    _, message = refused(daemon, "rename", "c1", "bad name")
    assert message.startswith("Error when allocating new name: Invalid container name (bad name)")


def test_a_push_names_the_repository_before_it_fails(daemon: Daemon) -> None:
    done = daemon.docker("push", "localhost:1/nosuch", check=False)
    assert "The push refers to repository [localhost:1/nosuch]" in done.stdout
    assert "An image does not exist locally with the tag: localhost:1/nosuch" in done.stderr


@pytest.mark.parametrize("how", ["network", "ipc", "pid"])
def test_a_namespace_of_a_stopped_container_cannot_be_joined(daemon: Daemon, how: str) -> None:
    daemon.docker("create", "--name", "c1", "--ipc", "shareable", "busybox")
    code, message = refused(daemon, "run", "--rm", f"--{how}", "container:c1", "busybox", "true")
    id = daemon.inspect("c1")["Id"]
    if how == "network":
        assert message == "cannot join network namespace of a non running container: container c1 is created"
    else:
        assert message == f"failed to join {how.upper()} namespace: container {id} is not running"
    assert code == 125
