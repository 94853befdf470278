"""`docker run --log-driver`: each driver keeps what it is meant to keep, and `docker logs` gives it back."""

from __future__ import annotations

import pytest

from tests.hosts import Daemon


@pytest.mark.parametrize("driver", ["json-file", "local"])
def test_what_was_written_comes_back_on_its_stream(daemon: Daemon, driver: str) -> None:
    daemon.docker(
        "run", "--name", "c1", "--network", "none", "--log-driver", driver, "busybox", "sh", "-c", "echo a; echo b >&2"
    )
    done = daemon.docker("logs", "c1")
    assert (done.stdout, done.stderr) == ("a\n", "b\n")
    assert daemon.out("logs", "--tail", "0", "c1") == ""


def test_without_a_log_reading_is_refused(daemon: Daemon) -> None:
    daemon.docker("run", "--name", "c1", "--network", "none", "--log-driver", "none", "busybox", "echo", "hi")
    done = daemon.docker("logs", "c1", check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == "Error response from daemon: configured logging driver does not support reading"


def test_labels_and_variables_become_details(daemon: Daemon) -> None:
    options = ("--log-opt", "labels=role", "--log-opt", "env=STAGE", "--log-opt", "tag={{.Name}}")
    daemon.docker(
        "run", "--name", "c1", "--network", "none", *options, "--label", "role=db", "-e", "STAGE=test",
        "busybox", "echo", "hi",
    )  # fmt: skip
    attributes, _, line = daemon.out("logs", "--details", "c1").partition(" ")
    assert set(attributes.split(",")) == {"role=db", "STAGE=test", "tag=c1"}
    assert line == "hi"
