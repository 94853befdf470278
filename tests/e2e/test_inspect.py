"""`docker inspect` and `docker ps`: what is shown of a container is what dockerd shows."""

from __future__ import annotations

import json

from tests.hosts import Daemon


def test_what_was_not_asked_for_is_null_as_under_dockerd(daemon: Daemon) -> None:
    daemon.docker("create", "--name", "c1", "busybox")
    shown = daemon.inspect("c1")
    assert shown["Config"]["Volumes"] is None
    assert shown["HostConfig"]["SecurityOpt"] is None
    assert shown["HostConfig"]["Binds"] is None
    assert shown["ExecIDs"] is None


def test_a_privileged_container_has_no_label(daemon: Daemon) -> None:
    daemon.docker("create", "--name", "c1", "--privileged", "busybox")
    assert daemon.inspect("c1")["HostConfig"]["SecurityOpt"] == ["label=disable"]


def test_the_networks_id_stays_after_a_stop(daemon: Daemon) -> None:
    daemon.docker("create", "--name", "c1", "busybox")
    assert daemon.inspect("c1")["NetworkSettings"]["Networks"]["bridge"]["NetworkID"] == ""
    daemon.docker("start", "c1")
    daemon.docker("wait", "c1")
    ended = daemon.inspect("c1")["NetworkSettings"]["Networks"]["bridge"]
    assert ended["NetworkID"] == daemon.inspect("bridge", "network")["Id"]
    assert (ended["IPAddress"], ended["EndpointID"]) == ("", "")


def test_joined_containers_are_shown_by_their_ids(daemon: Daemon) -> None:
    daemon.docker("run", "-d", "--name", "c1", "--ipc", "shareable", "--hostname", "first", "busybox", "sleep", "60")
    joined = ("--network", "container:c1", "--ipc", "container:c1", "--pid", "container:c1")
    daemon.docker("run", "-d", "--name", "c2", *joined, "busybox", "sleep", "60")
    id = daemon.inspect("c1")["Id"]
    shown = daemon.inspect("c2")
    modes = {shown["HostConfig"][mode] for mode in ("NetworkMode", "IpcMode", "PidMode")}
    assert modes == {f"container:{id}"}
    assert shown["Config"]["Hostname"] == "first"
    assert daemon.out("exec", "c2", "sh", "-c", "hostname; echo $HOSTNAME").split() == ["first", "first"]


def test_a_rename_does_not_part_joined_containers(daemon: Daemon) -> None:
    daemon.docker("run", "-d", "--name", "c1", "busybox", "sleep", "60")
    daemon.docker("run", "-d", "--name", "c2", "--network", "container:c1", "busybox", "sleep", "60")
    daemon.docker("rename", "c1", "c3")
    daemon.docker("restart", "-t", "0", "c2")
    assert daemon.inspect("c2")["State"]["Running"]


def test_a_container_nobody_looks_after_is_unhealthy(daemon: Daemon) -> None:
    check = ("--health-cmd", "true", "--health-interval", "100ms")
    daemon.docker("run", "-d", "--name", "c1", "--network", "none", *check, "busybox", "sleep", "60")
    daemon.docker("stop", "-t", "0", "c1")
    assert daemon.inspect("c1")["State"]["Health"]["Status"] == "unhealthy"


def test_the_default_runtime_of_other_engines_is_ours(daemon: Daemon) -> None:
    for name in ("runc", "io.containerd.runc.v2"):
        assert daemon.out("run", "--rm", "--network", "none", "--runtime", name, "busybox", "echo", "ran") == "ran"
    assert {"runc", "io.containerd.runc.v2"} <= set(json.loads(daemon.out("info", "-f", "{{json .Runtimes}}")))


def test_ps_finds_containers_by_their_image(daemon: Daemon) -> None:
    daemon.docker("create", "--name", "c1", "busybox")
    daemon.docker("commit", "-c", 'CMD ["true"]', "c1", "child")
    daemon.docker("create", "--name", "c2", "child")
    names = daemon.out("ps", "-a", "--filter", "ancestor=busybox", "--format", "{{.Names}}").split()
    assert names == ["c2", "c1"]
    assert daemon.out("ps", "-a", "--filter", "ancestor=child", "--format", "{{.Names}}") == "c2"
    daemon.docker("rm", "c2")
    daemon.docker("rmi", "child")


def test_a_qualified_hostname_is_known_by_its_first_part_too(daemon: Daemon) -> None:
    hosts = daemon.out("run", "--rm", "-h", "foo.bar.com", "busybox", "cat", "/etc/hosts")
    assert hosts.splitlines()[-1].split()[1:] == ["foo.bar.com", "foo"]


def test_disk_usage_leaves_out_what_was_not_asked_for(daemon: Daemon) -> None:
    daemon.docker("create", "--name", "c1", "busybox")
    rows = daemon.out("system", "df", "--format", "{{.Type}} {{.TotalCount}}").splitlines()
    images = len(set(daemon.out("images", "-aq", "--no-trunc").split()))  # some of other tests, perhaps
    assert rows[:2] == [f"Images {images}", "Containers 1"]
    old = daemon.docker("system", "df", env={"DOCKER_API_VERSION": "1.41"})
    assert "Images" in old.stdout
