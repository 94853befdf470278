"""Details of the API that Docker's own integration tests insist on."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_crash import Client, context
from tests.hosts import Daemon


def ask(
    daemon: Daemon, method: str, path: str, body: Any = None, *, version: str = "1.51", **headers: str
) -> tuple[int, Any]:
    """Status and decoded body; ``body`` is sent as JSON, or as the bytes it is."""
    with contextlib.closing(Client(daemon.socket)) as client:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body)
        given = {"Content-Type": "application/json"} if data is not None else {}
        client.request(method, f"/v{version}{path}", data, given | {k.replace("_", "-"): v for k, v in headers.items()})
        response = client.getresponse()
        answer = response.read()
        with contextlib.suppress(ValueError):
            return response.status, json.loads(answer)
        return response.status, answer.decode()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{invalid", "invalid JSON: invalid character 'i' looking for beginning of object key string"),
        (b"{} and more", "unexpected content after JSON"),
        (b'{"a" 1}', "invalid JSON: invalid character '1' after object key"),
        (b"[1,]", "invalid JSON: invalid character ']' looking for beginning of value"),
        (b"{", "invalid JSON: unexpected EOF"),
    ],
)
def test_broken_json_is_told_in_gos_words_before_anything_is_looked_up(daemon: Daemon, body: bytes, words: str) -> None:
    for path in ("/commit", "/containers/create", "/containers/nosuch/exec", "/networks/create", "/volumes/create"):
        assert ask(daemon, "POST", path, body) == (400, {"message": words})


def test_credentials_that_are_null_are_none(daemon: Daemon) -> None:
    tree = context(Dockerfile="FROM busybox\nLABEL a=b\n")
    sent = {"Content_Type": "application/x-tar", "X_Registry_Config": "bnVsbA=="}
    status, told = ask(daemon, "POST", "/build?q=1", tree, **sent)
    assert (status, "sha256:" in str(told)) == (200, True), told
    daemon.docker("image", "prune", "-f")


def test_a_link_names_a_container_by_two_parts(daemon: Daemon) -> None:
    id = daemon.out("run", "-d", "--name", "db", "busybox", "sleep", "100")
    daemon.docker("run", "-d", "--name", "app", "--link", "db:store", "busybox", "sleep", "100")
    daemon.docker("rename", "app", "front")
    assert ask(daemon, "GET", "/containers/front/store/json")[1]["Id"] == id
    assert ask(daemon, "GET", "/containers/front/nosuch/json")[0] == 404


def test_an_exec_can_be_looked_at_when_its_container_has_ended(daemon: Daemon) -> None:
    daemon.docker("run", "-d", "--name", "c1", "--network", "none", "busybox", "sleep", "100")
    id = ask(daemon, "POST", "/containers/c1/exec", {"Cmd": ["true"]})[1]["Id"]
    daemon.docker("kill", "c1")
    assert ask(daemon, "GET", f"/exec/{id}/json")[1]["Running"] is False
    status, answer = ask(daemon, "POST", f"/exec/{id}/resize?h=10&w=10")
    assert (status, "is not running" in answer["message"]) == (409, True)


def test_sizes_out_of_range(daemon: Daemon) -> None:
    for size in ("-100", "4294967296"):
        status, answer = ask(daemon, "POST", f"/containers/c1/resize?h={size}&w=1")
        assert (status, answer["message"]) == (400, f'invalid resize height "{size}": value out of range')


def test_a_limit_of_processes_is_taken_away_and_unknown_to_old_clients(daemon: Daemon) -> None:
    daemon.docker("run", "-d", "--name", "c1", "--network", "none", "--pids-limit", "32", "busybox", "sleep", "100")
    assert ask(daemon, "POST", "/containers/c1/update", {"PidsLimit": 16}, version="1.24")[0] == 200
    assert daemon.inspect("c1")["HostConfig"]["PidsLimit"] == 32
    assert ask(daemon, "POST", "/containers/c1/update", {"PidsLimit": -1})[0] == 200
    assert daemon.inspect("c1")["HostConfig"]["PidsLimit"] == 0
    assert daemon.out("exec", "c1", "cat", "/sys/fs/cgroup/pids/pids.max", "/dev/null") == "max"


def test_read_only_binds_of_old_clients_leave_out_what_is_mounted_below(daemon: Daemon) -> None:
    seen = []
    for version in ("1.43", "1.44"):
        config = {
            "Image": "busybox",
            "Cmd": ["grep", " /shm/shm ", "/proc/self/mountinfo"],
            "HostConfig": {"Binds": ["/dev:/shm:ro"], "NetworkMode": "none"},
        }
        id = ask(daemon, "POST", "/containers/create", config, version=version)[1]["Id"]
        seen.append(daemon.out("start", "-a", id).split()[5].split(",")[0])
    assert seen == ["rw", "ro"]


def test_a_tmpfs_takes_the_place_of_an_anonymous_volume(daemon: Daemon) -> None:
    config = {"Image": "busybox", "Volumes": {"/foo": {}}, "HostConfig": {"Tmpfs": {"/foo": ""}}}
    id = ask(daemon, "POST", "/containers/create", config)[1]["Id"]
    assert daemon.inspect(id)["Mounts"] == []


def test_prune_leaves_a_used_image_one_name(new_daemon: Callable[..., Daemon]) -> None:
    daemon = new_daemon()
    daemon.docker("tag", "busybox", "busybox:a")
    daemon.docker("create", "busybox:latest")
    assert daemon.docker("image", "prune", "-af").stdout.splitlines()[1] == "untagged: busybox:a"
    assert daemon.out("images", "--format", "{{.Repository}}:{{.Tag}}") == "busybox:latest"


def test_commit_expands_variables(daemon: Daemon) -> None:
    id = daemon.out("create", "--env", "A=1", "busybox")
    made = daemon.out("commit", "--change", "ENV A=$A$A B='$A'", "--change", "LABEL l=${A}", id)
    config = json.loads(daemon.out("image", "inspect", made))[0]["Config"]
    assert {"A=11", "B=$A"} <= set(config["Env"])
    assert config["Labels"] == {"l": "11"}
    daemon.docker("rm", id)
    daemon.docker("image", "rm", made)


def test_what_only_old_clients_read_of_the_info(daemon: Daemon) -> None:
    assert ask(daemon, "GET", "/info", version="1.49")[1]["BridgeNfIptables"] is False
    assert "BridgeNfIptables" not in ask(daemon, "GET", "/info", version="1.50")[1]


def test_platforms_that_are_not_known(daemon: Daemon) -> None:
    status, answer = ask(daemon, "POST", "/images/create?fromImage=busybox&platform=foobar")
    assert (status, "unknown operating system or architecture" in answer["message"]) == (400, True)
    status, answer = ask(daemon, "POST", "/images/create?fromSrc=-&platform=macos", b"")
    assert (status, answer["message"]) == (400, "operating system is not supported")


def test_roots_may_be_links_and_buildkit_may_be_turned_off(new_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    daemon = new_daemon(start=False, image=False)
    for name, link in (("data", daemon.data_root), ("exec", daemon.exec_root)):
        (daemon.folder / f"real-{name}").mkdir(mode=0o711)
        os.symlink(daemon.folder / f"real-{name}", link)
    (daemon.folder / "daemon.json").write_text('{"features": {"buildkit": false}}')
    daemon.start()
    assert ask(daemon, "GET", "/info")[1]["DockerRootDir"] == str(daemon.folder / "real-data")
    with contextlib.closing(Client(daemon.socket)) as client:
        client.request("GET", "/_ping")
        assert client.getresponse().getheader("Builder-Version") == "1"
    daemon.docker("import", "-", "empty", input=bytes(1024))
    daemon.docker("create", "--name", "c1", "empty", "x")
    (tmp_path / "file").write_text("words")
    daemon.docker("cp", str(tmp_path / "file"), "c1:/copy")
    assert "words" in daemon.docker("cp", "c1:/copy", "-").stdout
