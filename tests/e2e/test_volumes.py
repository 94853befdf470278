"""Volumes through the docker client."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.hosts import Daemon, Host


def run(daemon: Daemon, *argv: str) -> str:
    return daemon.out("run", "--rm", "--network", "none", *argv)


def test_data_outlives_its_container(daemon: Daemon) -> None:
    run(daemon, "-v", "data:/d", "busybox", "sh", "-c", "echo kept > /d/file")
    assert run(daemon, "-v", "data:/d:ro", "busybox", "cat", "/d/file") == "kept"
    refused = daemon.docker("run", "--rm", "-v", "data:/d:ro", "busybox", "touch", "/d/x", check=False)
    assert "Read-only file system" in refused.stderr


def test_a_new_volume_has_what_the_image_has_there(daemon: Daemon) -> None:
    assert "busybox" in run(daemon, "-v", "tools:/bin", "busybox", "ls", "/bin")
    assert run(daemon, "-v", "empty:/bin2:nocopy", "busybox", "ls", "/bin2") == ""


def test_a_volume_is_shown_as_dockerd_shows_it(daemon: Daemon) -> None:
    assert daemon.out("volume", "create", "--label", "a=b", "data") == "data"
    (shown,) = json.loads(daemon.out("volume", "inspect", "data"))
    assert set(shown) == {"CreatedAt", "Driver", "Labels", "Mountpoint", "Name", "Options", "Scope"}
    assert (shown["Driver"], shown["Labels"], shown["Scope"]) == ("local", {"a": "b"}, "local")
    assert daemon.out("volume", "ls", "-q", "--filter", "label=a=b") == "data"


def test_a_volume_in_use_stays(daemon: Daemon) -> None:
    daemon.docker("create", "--name", "user", "-v", "data:/d", "-v", "/anonymous", "busybox", "true")
    assert "volume is in use" in daemon.docker("volume", "rm", "data", check=False).stderr
    daemon.docker("rm", "-v", "user")
    assert daemon.out("volume", "ls", "-q") == "data"
    assert daemon.out("volume", "rm", "data") == "data"


def test_anonymous_volumes_go_with_an_auto_removed_container(daemon: Daemon) -> None:
    run(daemon, "-v", "/anonymous", "-v", "named:/n", "busybox", "true")
    assert daemon.out("volume", "ls", "-q") == "named"


def test_volumes_of_another_container(daemon: Daemon) -> None:
    daemon.docker("create", "--name", "donor", "-v", "data:/d", "busybox", "true")
    run(daemon, "--volumes-from", "donor", "busybox", "touch", "/d/file")
    refused = daemon.docker("run", "--rm", "--volumes-from", "donor:ro", "busybox", "rm", "/d/file", check=False)
    assert "Read-only file system" in refused.stderr


def test_a_volume_with_options_is_mounted_while_used(daemon: Daemon) -> None:
    options = [word for o in ("type=tmpfs", "device=tmpfs", "o=size=1m,uid=77") for word in ("--opt", o)]
    daemon.docker("volume", "create", *options, "memory")
    mounted = run(daemon, "-v", "memory:/m", "busybox", "grep", " /m ", "/proc/mounts")
    assert mounted.startswith("tmpfs /m tmpfs")
    assert "uid=77" in mounted


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("volume", "create", "--driver", "nosuch", "v1"), 'plugin "nosuch" not found'),
        (("volume", "create", "--opt", "foo=bar", "v1"), 'invalid option: "foo"'),
        (("volume", "inspect", "nosuch"), "get nosuch: no such volume"),
        (("run", "-v", "a/b:/x", "busybox"), "includes invalid characters for a local volume name"),
        (("run", "--mount", "type=bind,src=/nosuch,dst=/x", "busybox"), "bind source path does not exist: /nosuch"),
    ],
)
def test_what_cannot_be_is_refused_in_dockerds_words(daemon: Daemon, argv: tuple[str, ...], words: str) -> None:
    done = daemon.docker(*argv, check=False)
    assert done.returncode
    assert words in done.stderr


class TestASubpath:
    @pytest.fixture(autouse=True)
    def _volume(self, daemon: Daemon) -> None:
        self.daemon = daemon
        run(daemon, "-v", "data:/d", "busybox", "sh", "-c", "mkdir -p /d/a/b; echo x > /d/a/b/f; ln -s / /d/evil")

    def mount(self, subpath: str) -> tuple[str, ...]:
        mount = f"type=volume,src=data,dst=/s,volume-subpath={subpath}"
        return ("run", "--rm", "--network", "none", "--mount", mount, "busybox", "ls", "/s")

    def test_it_is_mounted_alone(self) -> None:
        assert self.daemon.out(*self.mount("a/b")) == "f"

    def test_an_empty_one_is_filled_from_the_image(self) -> None:
        made = "mkdir -m 700 /d/empty /d/full; touch /d/full/kept"
        run(self.daemon, "-v", "data:/d", "busybox", "sh", "-c", made)
        mount = "type=volume,src=data,dst=/etc,volume-subpath="
        shown = [
            run(self.daemon, "--mount", f"{mount}{name}", "busybox", "sh", "-c", "stat -c %a /etc; ls /etc").split()
            for name in ("empty", "empty,volume-nocopy", "full")
        ]
        assert shown[0][0] == "755"
        assert {"passwd", "group"} <= set(shown[0])
        assert shown[1] == shown[0], "what is there stays"
        assert "passwd" not in shown[2]
        assert (shown[2][0], "kept" in shown[2]) == ("700", True)

    @pytest.mark.parametrize("subpath", ["evil", "evil/etc", "a/../../..", "/etc"])
    def test_it_never_leads_out(self, subpath: str) -> None:
        done = self.daemon.docker(*self.mount(subpath), check=False)
        assert done.returncode >= 125
        assert done.stdout == ""


def test_missing_bind_sources_are_made_for_v_and_not_for_mount(daemon: Daemon) -> None:
    source = daemon.folder / "made-by-v"
    run(daemon, "-v", f"{source}:/x", "busybox", "true")
    assert source.is_dir()


def test_a_part_of_an_image_of_several_layers(daemon: Daemon) -> None:
    steps = "RUN mkdir -p /a/b && echo one >/a/b/f\nRUN echo two >/a/g && ln -s /etc /a/out && ln -s b /a/in"
    daemon.docker("build", "-t", "parts", "-", input=f"FROM busybox\n{steps}\n".encode())

    def mount(subpath: str, *command: str) -> Any:
        option = f"type=image,src=parts,dst=/i,image-subpath={subpath}"
        return daemon.docker("run", "--rm", "--mount", option, "busybox", *command, check=False)

    assert mount("a", "cat", "/i/b/f", "/i/g").stdout == "one\ntwo\n"
    assert mount("a/g", "cat", "/i").stdout == "two\n"
    assert mount("a/in", "cat", "/i/f").stdout == "one\n"
    assert "Read-only file system" in mount("a", "touch", "/i/x").stderr
    for subpath, words in (
        ("a/out", "escapes the base directory"),
        ("a/none", "cannot access path a/none: no such file"),
    ):
        assert words in mount(subpath, "ls", "/i").stderr
    daemon.docker("image", "rm", "parts")


def test_an_image_that_is_mounted_is_in_use(daemon: Daemon) -> None:
    daemon.docker("build", "-t", "mounted", "-", input=b"FROM busybox\nRUN echo one >/f\n")
    daemon.docker("create", "--name", "c1", "--mount", "type=image,src=mounted,dst=/i", "busybox", "cat", "/i/f")
    assert "is using its referenced image" in daemon.docker("image", "rm", "mounted", check=False).stderr
    assert daemon.out("image", "rm", "-f", "mounted") == "Untagged: mounted:latest"
    assert daemon.out("start", "-a", "c1") == "one"
    daemon.docker("rm", "c1")
    daemon.docker("image", "prune", "-f")


class SharedHost(Host):
    """A host whose mounts are shared, as systemd has it."""

    def command(self, *argv: str) -> list[str]:
        return super().command("unshare", "--mount", "--propagation=shared", *argv)


def test_what_a_host_with_shared_mounts_and_its_containers_see_of_each_other(
    new_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    host = SharedHost("shared")
    try:
        daemon = new_daemon("--bridge=none", on=host)
        daemon.docker("volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", "memory")
        daemon.docker("run", "-d", "--name", "sees", "--network", "none", "-v", "/:/host", "busybox", "sleep", "100")
        daemon.docker("run", "-d", "--name", "uses", "--network", "none", "-v", "memory:/m", "busybox", "sleep", "100")
        assert daemon.inspect("sees")["Mounts"][0]["Propagation"] == "rslave"
        count = ("exec", "sees", "grep", "-c", "volumes/memory", "/proc/mounts")
        assert daemon.out(*count) == "1"
        daemon.docker("rm", "-f", "uses")
        assert daemon.docker(*count, check=False).stdout == "0\n"
        bind = ("--cap-add=SYS_ADMIN", "-v", f"{tmp_path}:/shared:rshared", "-v", f"{tmp_path}:/slave:rslave")
        places = "/shared/in /slave/in /mnt"
        script = (
            f"mkdir -p {places}; for place in {places}; do mount -t tmpfs from:$place $place || exit; done; sleep 100"
        )
        daemon.docker("run", "-d", "--name", "mounts", "--network", "none", *bind, "busybox", "sh", "-c", script)
        daemon.docker("exec", "mounts", "sh", "-c", "until grep -q from:/mnt /proc/mounts; do sleep 0.05; done")
        seen = daemon.out("exec", "sees", "sh", "-c", "grep -o ^from:[^\\ ]* /proc/mounts")
        assert seen == "from:/shared/in"
        daemon.close()
    finally:
        host.close()
