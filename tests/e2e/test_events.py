"""`docker events`: what dockerd tells, in its order; and the listing of containers with its filters."""

from __future__ import annotations

import json
import subprocess
import time

import pytest

from tests.hosts import DOCKER, Daemon


def events(daemon: Daemon, since: float, *argv: str) -> list[dict]:  # type: ignore[type-arg]
    text = daemon.out(
        "events", "--since", f"{since:.6f}", "--until", f"{time.time():.6f}", "--format", "{{json .}}", *argv
    )
    return [json.loads(line) for line in text.splitlines()]


def test_a_run_is_told_in_dockerds_order(daemon: Daemon) -> None:
    daemon.docker("network", "create", "net1")
    since = time.time()
    daemon.docker(
        "run", "--rm", "--network", "net1", "-v", "/data", "--name", "c1", "--label", "a=b", "busybox", "true"
    )
    told = events(daemon, since)
    assert [(event["Type"], event["Action"]) for event in told] == [
        ("volume", "create"),
        ("container", "create"),
        ("container", "attach"),
        ("volume", "mount"),
        ("network", "connect"),
        ("container", "start"),
        ("network", "disconnect"),
        ("volume", "unmount"),
        ("container", "die"),
        ("volume", "destroy"),
        ("container", "destroy"),
    ]
    die = next(event for event in told if event["Action"] == "die")
    assert die["Actor"]["Attributes"] == {
        "a": "b",
        "execDuration": "0",
        "exitCode": "0",
        "image": "busybox",
        "name": "c1",
    }
    assert (die["status"], die["from"], die["id"]) == ("die", "busybox", die["Actor"]["ID"])


def test_what_is_done_to_a_container_is_told(daemon: Daemon) -> None:
    since = time.time()
    daemon.docker("run", "-d", "--name", "c1", "--network", "none", "busybox", "sleep", "600")
    daemon.docker("exec", "c1", "true")
    daemon.docker("pause", "c1")
    daemon.docker("unpause", "c1")
    daemon.docker("rename", "c1", "c2")
    daemon.docker("kill", "c2")
    daemon.docker("rm", "c2")
    told = events(daemon, since, "--filter", "type=container")
    assert [event["Action"] for event in told] == [
        "create", "start", "exec_create: true ", "exec_start: true ", "exec_die", "pause", "unpause", "rename", "kill",
        "die", "destroy",
    ]  # fmt: skip
    by_action = {event["Action"]: event["Actor"]["Attributes"] for event in told}
    assert by_action["rename"]["oldName"] == "/c1"
    assert by_action["kill"]["signal"] == "9"
    assert by_action["exec_die"]["exitCode"] == "0"


def test_live_events_pass_their_filter(daemon: Daemon) -> None:
    assert DOCKER is not None
    watching = subprocess.Popen(
        [
            DOCKER,
            "events",
            "--filter",
            "event=create",
            "--filter",
            "label=mine",
            "--format",
            "{{.Actor.Attributes.name}}",
        ],
        stdout=subprocess.PIPE,
        text=True,
        env=daemon.environment(),
    )
    try:
        time.sleep(0.5)
        daemon.docker("create", "--name", "other", "busybox")
        daemon.docker("create", "--name", "wanted", "--label", "mine", "busybox")
        assert watching.stdout is not None
        assert watching.stdout.readline() == "wanted\n"
    finally:
        watching.kill()
        watching.wait()


# --- ps -----------------------------------------------------------------------------------------------------------


def ps(daemon: Daemon, *filters: str) -> set[str]:
    arguments = [word for filter in filters for word in ("--filter", filter)]
    return set(daemon.out("ps", "-a", "--format", "{{.Names}}", *arguments).split())


@pytest.fixture
def three(daemon: Daemon) -> Daemon:
    daemon.docker("run", "-d", "--name", "runs", "--network", "none", "-v", "vol:/v", "busybox", "sleep", "600")
    daemon.docker("run", "--name", "ended", "--network", "none", "busybox", "sh", "-c", "exit 3", check=False)
    daemon.docker("create", "--name", "made", "--label", "a=b", "--expose", "81", "busybox")
    return daemon


@pytest.mark.parametrize(
    ("filter", "found"),
    [
        ("name=e", {"ended", "made"}),
        ("name=^/runs$", {"runs"}),
        ("status=running", {"runs"}),
        ("status=created", {"made"}),
        ("exited=3", {"ended"}),
        ("exited=0", set()),
        ("label=a", {"made"}),
        ("label=a=c", set()),
        ("volume=vol", {"runs"}),
        ("volume=/v", {"runs"}),
        ("network=none", {"runs", "ended"}),
        ("ancestor=busybox", {"runs", "ended", "made"}),
        ("ancestor=nothing", set()),
        ("health=none", {"runs", "ended", "made"}),
        ("before=ended", {"runs"}),
        ("since=ended", {"made"}),
        ("is-task=false", {"runs", "ended", "made"}),
    ],
)
def test_filters_of_ps(three: Daemon, filter: str, found: set[str]) -> None:
    assert ps(three, filter) == found


def test_ps_without_all_shows_what_runs_newest_first(three: Daemon) -> None:
    assert three.out("ps", "--format", "{{.Names}}") == "runs"
    assert three.out("ps", "-a", "--format", "{{.Names}}").split() == ["made", "ended", "runs"]
    assert three.out("ps", "-n", "2", "--format", "{{.Names}}").split() == ["made", "ended"]


def test_ps_says_what_a_container_is_doing(three: Daemon) -> None:
    rows = dict(line.split("|") for line in three.out("ps", "-a", "--format", "{{.Names}}|{{.Status}}").splitlines())
    assert rows["runs"].startswith("Up ")
    assert rows["ended"].startswith("Exited (3) ")
    assert rows["made"] == "Created"


def test_an_unknown_filter_or_value_is_refused(three: Daemon) -> None:
    assert "invalid filter" in three.docker("ps", "--filter", "foo=bar", check=False).stderr
    assert "invalid filter 'status=foo'" in three.docker("ps", "--filter", "status=foo", check=False).stderr


def test_ps_can_tell_sizes(three: Daemon) -> None:
    three.docker("exec", "runs", "sh", "-c", "head -c 100000 /dev/zero > /zeros")
    assert "100kB" in three.out("ps", "-s", "--filter", "name=runs", "--format", "{{.Size}}")


def test_copies_commits_and_prunes_are_told(daemon: Daemon) -> None:
    daemon.docker("create", "--name", "c1", "busybox")
    since = time.time()
    daemon.docker("cp", "c1:/etc/passwd", "-")
    daemon.docker("cp", "-", "c1:/tmp", input=b"\0" * 10240)
    daemon.docker("commit", "c1", "made")
    daemon.docker("network", "prune", "-f")
    told = [(event["Type"], event["Action"]) for event in events(daemon, since)]
    daemon.docker("rmi", "made")
    assert told == [
        ("container", "archive-path"),
        ("container", "extract-to-dir"),
        ("image", "create"),
        ("image", "tag"),
        ("container", "commit"),
        ("network", "prune"),
    ]


def test_a_filter_dockerd_does_not_know_hides_nothing(daemon: Daemon) -> None:
    since = time.time()
    daemon.docker("create", "--name", "c1", "busybox")
    assert [event["Action"] for event in events(daemon, since, "--filter", "bogus=1")] == ["create"]
