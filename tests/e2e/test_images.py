"""Images through the real docker client: they come, are named, change, travel, and go."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hosts import Daemon


@pytest.fixture
def engine(daemon: Daemon, busybox: Path) -> Iterator[Daemon]:
    """The session's daemon; images other than busybox are removed afterwards."""
    yield daemon
    daemon.clear()
    others = daemon.out("images", "--format", "{{.Repository}}:{{.Tag}}@{{.ID}}").splitlines()
    for name in others:
        if not name.startswith("busybox:latest@"):
            reference, _, id = name.partition("@")
            daemon.docker("rmi", "-f", id if "<none>" in reference else reference, check=False)
    if not daemon.out("images", "-q", "busybox:latest"):
        daemon.docker("load", "-i", str(busybox))


def test_save_and_load_give_the_same_image(engine: Daemon, tmp_path: Path) -> None:
    id = engine.inspect("busybox", "image")["Id"]
    engine.docker("tag", "busybox", "other.example:5000/copy:1")
    engine.docker("save", "-o", str(tmp_path / "saved.tar"), "busybox", "other.example:5000/copy:1")
    assert engine.out("rmi", "busybox", "other.example:5000/copy:1").splitlines()[:2] == [
        "Untagged: busybox:latest",
        "Untagged: other.example:5000/copy:1",
    ]
    loaded = engine.out("load", "-i", str(tmp_path / "saved.tar")).splitlines()
    assert set(loaded) == {"Loaded image: busybox:latest", "Loaded image: other.example:5000/copy:1"}
    assert engine.inspect("busybox", "image")["Id"] == id
    assert engine.out("run", "--rm", "--network", "none", "busybox", "echo", "hi") == "hi"


def test_load_says_what_is_wrong_with_an_archive(engine: Daemon) -> None:
    done = engine.docker("load", input=b"this is no archive at all" * 100, check=False)
    assert done.returncode == 1 and "invalid tar header" in done.stderr


def test_commit_diff_and_export(engine: Daemon, tmp_path: Path) -> None:
    script = "echo x >/new; rm /bin/vi; mkdir /d; ln /new /d/link; echo someone:x:1000:1000::/:/bin/sh >>/etc/passwd"
    engine.docker("run", "--name", "c1", "--network", "none", "busybox", "sh", "-c", script)
    changes = engine.out("diff", "c1").splitlines()
    assert {"A /new", "A /d", "A /d/link", "C /bin", "D /bin/vi", "C /etc", "C /etc/passwd"} <= set(changes)
    assert not [line for line in changes if "hosts" in line or "resolv" in line or "dockerenv" in line]
    engine.docker("commit", "-m", "why", "-a", "me", "-c", 'CMD ["cat", "/new"]', "-c", "LABEL k=v", "c1", "made:1")
    assert engine.out("run", "--rm", "--network", "none", "made:1") == "x"
    told = engine.inspect("made:1", "image")
    assert (told["Comment"], told["Author"], told["Config"]["Labels"]) == ("why", "me", {"k": "v"})
    assert told["Parent"] == engine.inspect("busybox", "image")["Id"]
    assert engine.out("history", "-q", "made:1").splitlines()[0] == told["Id"][7:19]
    engine.docker("export", "-o", str(tmp_path / "c.tar"), "c1")
    with tarfile.open(tmp_path / "c.tar") as tar:
        names = set(tar.getnames())
    assert {"new", "d/link", "bin/sh", "etc/passwd", ".dockerenv"} <= names and "bin/vi" not in names
    engine.docker("import", "-c", 'CMD ["cat", "/d/link"]', str(tmp_path / "c.tar"), "flat:1")
    assert engine.out("run", "--rm", "--network", "none", "flat:1") == "x"


def test_a_running_container_is_exported_as_it_sees_itself(engine: Daemon, tmp_path: Path) -> None:
    script = "chown 12:34 /bin/vi; mkdir /mnt; echo hidden >/mnt/file; mount -t tmpfs none /mnt; touch /mnt/above; "
    create = ("create", "--name", "c1", "--network=none", "--cap-add=SYS_ADMIN", "-v", "data:/data", "busybox")
    engine.docker(*create, "sh", "-c", f"echo x >/data/x; {script} exec sleep 100")
    engine.docker("start", "c1")
    engine.docker("exec", "c1", "sh", "-c", "until [ -e /mnt/above ]; do sleep 0.05; done")
    exported = []
    for _ in range(2):
        engine.docker("export", "-o", str(tmp_path / "c1.tar"), "c1")
        with tarfile.open(tmp_path / "c1.tar") as tar:
            exported.append({one.name: (one.uid, one.gid, one.mode, one.size, one.type) for one in tar})
        engine.docker("kill" if not exported[1:] else "rm", "c1")
    running, stopped = exported
    assert running == stopped
    assert running["bin/vi"][:2] == (12, 34)
    assert {"mnt/file", "data", "proc", "dev"} <= set(running)
    assert not {"mnt/above", "data/x", "proc/1"} & set(running)


def test_a_container_whose_init_is_in_a_chroot_is_exported_and_copied_from_whole(
    engine: Daemon, tmp_path: Path
) -> None:
    jail = "mkdir -p /jail/bin; cp /bin/busybox /jail/bin; touch /jail/ready; exec chroot /jail /bin/busybox sleep 100"
    engine.docker("run", "-d", "--name", "c1", "--network=none", "busybox", "sh", "-c", jail)
    engine.docker("exec", "c1", "sh", "-c", "until tr '\\\\0' ' ' </proc/1/cmdline | grep -q ^/bin/busybox; do :; done")
    engine.docker("export", "-o", str(tmp_path / "c1.tar"), "c1")
    with tarfile.open(tmp_path / "c1.tar") as tar:
        assert {"jail/bin/busybox", "etc/passwd"} <= set(tar.getnames())
    engine.docker("cp", "c1:/etc/passwd", str(tmp_path))
    engine.docker("cp", str(tmp_path / "passwd"), "c1:/jail/copied")
    assert engine.out("exec", "c1", "cat", "/jail/copied") == (tmp_path / "passwd").read_text().strip()


def test_images_in_use_are_not_removed(engine: Daemon) -> None:
    engine.docker("run", "-d", "--name", "c1", "--network", "none", "busybox", "sleep", "60")
    id = engine.inspect("c1")["Id"][:12]
    refused = engine.docker("rmi", "busybox", check=False)
    image = engine.inspect("busybox", "image")["Id"][7:19]
    assert (
        f'conflict: unable to remove repository reference "busybox" (must force) - container {id} is using its '
        f"referenced image {image}" in refused.stderr
    )
    refused = engine.docker("rmi", "-f", image, check=False)
    assert (
        f"conflict: unable to delete {image} (cannot be forced) - image is being used by running container {id}"
        in refused.stderr
    )


def test_a_removed_image_s_container_goes_on(engine: Daemon) -> None:
    engine.docker("run", "--name", "c1", "--network", "none", "busybox", "true")
    engine.docker("rmi", "-f", "busybox")
    engine.docker("start", "c1")
    assert engine.out("wait", "c1") == "0"


def test_words_for_what_does_not_exist(engine: Daemon) -> None:
    for command, words in (
        (("inspect", "--type", "image", "nope"), "No such image: nope"),
        (("rmi", "nope"), "No such image: nope:latest"),
        (("tag", "nope", "x"), "No such image: nope:latest"),
        (("history", "nope"), "No such image: nope:latest"),
        (("tag", "busybox", "Upper"), "must be lowercase"),
        (("pull", "127.0.0.1:1/x"), "connect: connection refused"),
    ):
        done = engine.docker(*command, check=False)
        assert done.returncode == 1 and words in done.stderr, (command, done.stderr)


def test_an_image_travels_through_a_registry(engine: Daemon, registry: str) -> None:
    id = engine.inspect("busybox", "image")["Id"]
    engine.docker("tag", "busybox", f"{registry}/team/tool:1")
    pushed = engine.out("push", f"{registry}/team/tool:1")
    assert f"The push refers to repository [{registry}/team/tool]" in pushed and "1: digest: sha256:" in pushed
    digest = pushed.rpartition("digest: ")[2].split()[0]
    engine.docker("rmi", f"{registry}/team/tool:1", "busybox")
    pulled = engine.out("pull", f"{registry}/team/tool:1")
    assert f"Digest: {digest}" in pulled and f"Status: Downloaded newer image for {registry}/team/tool:1" in pulled
    told = engine.inspect(f"{registry}/team/tool:1", "image")
    assert told["Id"] == id and told["RepoDigests"] == [f"{registry}/team/tool@{digest}"]
    assert "Image is up to date" in engine.out("pull", f"{registry}/team/tool:1")
    assert engine.out("run", "--rm", "--network", "none", f"{registry}/team/tool@{digest}", "echo", "hi") == "hi"
    engine.docker("tag", f"{registry}/team/tool:1", f"{registry}/team/again:2")
    assert digest in engine.out("push", f"{registry}/team/again:2")


def test_run_pulls_what_is_missing(engine: Daemon, registry: str) -> None:
    engine.docker("tag", "busybox", f"{registry}/auto:1")
    engine.docker("push", "-q", f"{registry}/auto:1")
    engine.docker("rmi", f"{registry}/auto:1")
    assert engine.out("run", "--rm", "--network", "none", f"{registry}/auto:1", "echo", "hi") == "hi"
    assert (
        engine.out("run", "--rm", "--pull", "always", "--network", "none", f"{registry}/auto:1", "echo", "hi") == "hi"
    )


def test_the_daemon_can_be_killed_while_it_loads(
    new_daemon: Callable[..., Daemon], busybox: Path, tmp_path: Path
) -> None:
    daemon = new_daemon(image=False)
    with busybox.open("rb") as archive:
        head = archive.read(1 << 20)
        sending = subprocess.Popen(
            ["docker", "load"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=daemon.environment(),
        )
        assert sending.stdin is not None
        sending.stdin.write(head)
        sending.stdin.flush()
        deadline = time.monotonic() + 20
        while not os.listdir(daemon.data_root / "layers/staging") and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(daemon.pid, signal.SIGKILL)
        sending.communicate()
    daemon.kill()
    daemon.start()
    assert daemon.out("images", "-q") == ""
    assert os.listdir(daemon.data_root / "layers/staging") == []
    assert os.listdir(daemon.data_root / "blobs/ingest") == [] == os.listdir(daemon.data_root / "blobs/sha256")
    daemon.docker("load", "-i", str(busybox))
    assert json.loads(daemon.out("image", "inspect", "busybox"))[0]["RepoTags"] == ["busybox:latest"]
