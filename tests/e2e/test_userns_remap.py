"""``--userns-remap``: containers with users of their own, through the docker client; disks keep the containers' IDs."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts import Daemon, Host

RUNTIMES = ("runc",)
FIRST = 231072
"""The subordinate ID that is root in the containers of these tests."""


class RemappingHost(Host):
    """A host whose daemons see an /etc of their own, so that accounts are made in no file of this machine."""

    def __init__(self, etc: Path) -> None:
        super().__init__("remapping")
        self.etc = etc
        for name in ("upper", "work"):
            (etc / name).mkdir(parents=True)
        for name in ("passwd", "group", "subuid", "subgid"):
            file = Path("/etc", name)
            lines = file.read_text().splitlines(keepends=True) if file.exists() else []
            (etc / "upper" / name).write_text("".join(line for line in lines if not line.startswith("dockremap:")))

    def command(self, *argv: str) -> list[str]:
        options = f"lowerdir=/etc,upperdir={self.etc}/upper,workdir={self.etc}/work"
        script = f'mount -t overlay overlay -o "{options}" /etc && exec "$@"'
        return super().command("unshare", "--mount", "--propagation=slave", "sh", "-c", script, "sh", *argv)


@pytest.fixture(scope="module")
def remapping(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RemappingHost]:
    host = RemappingHost(tmp_path_factory.mktemp("accounts"))
    yield host
    host.close()


@pytest.fixture(scope="module")
def remapped(folder: Path, remapping: RemappingHost, busybox: Path) -> Iterator[Daemon]:
    """A daemon whose containers are users ``FIRST`` and up."""
    for name, owner in (("subuid", "nobody"), ("subgid", "65534")):
        (remapping.etc / "upper" / name).write_text(f"somebody:100000:65536\n{owner}:{FIRST}:65536\n")
    runtimes = [f"--add-runtime=other-{name}={path}" for name in RUNTIMES if (path := shutil.which(name))]
    daemon = Daemon(folder / "remapped", remapping, ["--userns-remap=nobody:nogroup", *runtimes]).start()
    daemon.docker("load", "-i", str(busybox))
    yield daemon
    daemon.close()


@pytest.fixture
def daemon(remapped: Daemon) -> Iterator[Daemon]:
    yield remapped
    remapped.clear()


def test_a_container_has_users_of_its_own(daemon: Daemon) -> None:
    daemon.docker("run", "-d", "--name", "c1", "busybox", "sleep", "60")
    assert daemon.out("exec", "c1", "cat", "/proc/self/uid_map", "/proc/self/gid_map").split() == [
        "0", str(FIRST), "65536", "0", str(FIRST), "65536",
    ]  # fmt: skip
    pid = daemon.inspect("c1")["State"]["Pid"]
    status = Path(f"/proc/{pid}/status").read_text()
    assert f"Uid:\t{FIRST}\t{FIRST}\t{FIRST}\t{FIRST}" in status
    assert f"Gid:\t{FIRST}\t{FIRST}\t{FIRST}\t{FIRST}" in status
    assert daemon.out("exec", "-u", "1000:1001", "c1", "id", "-u").strip() == "1000"
    assert daemon.out("exec", "c1", "readlink", "/proc/self/ns/user") == daemon.out(
        "exec", "c1", "readlink", "/proc/1/ns/user"
    )
    assert "name=userns" in json.loads(daemon.out("info", "--format", "{{json .SecurityOptions}}"))


def test_files_are_the_containers_own_inside(daemon: Daemon) -> None:
    """Image, the three name files, /dev, /proc, /sys, tmpfs, cgroups: everything that a root expects to be root's."""
    listing = daemon.out(
        "run", "--rm", "--tmpfs", "/scratch", "busybox", "stat", "-c", "%u:%g %n",
        "/", "/bin/busybox", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev", "/dev/pts", "/dev/shm",
        "/dev/mqueue", "/proc/1", "/proc/sys/net/ipv4/ip_forward", "/scratch",
    )  # fmt: skip
    assert {line.split()[0] for line in listing.splitlines()} == {"0:0"}, listing
    written = daemon.out(
        "run", "--rm", "busybox", "sh", "-ec",
        "echo 192.0.2.1 name >> /etc/hosts; echo x > /dev/null; touch /new; chown 7:9 /new; stat -c %u:%g /new",
    )  # fmt: skip
    assert written.strip() == "7:9"


def test_what_the_host_owns_is_out_of_reach(daemon: Daemon) -> None:
    """Root inside is nobody outside: no module, no clock, no raw disk, none of the host's sysctls."""
    script = """
    hostname other 2>/dev/null || echo hostname kept
    echo 1 > /proc/sys/kernel/panic 2>/dev/null || echo sysctl kept
    mknod /disk b 8 0 2>/dev/null || echo no node
    nice -n -5 true 2>/dev/null || echo no priority
    """
    flags = ["--security-opt", "seccomp=unconfined", "--cap-add", "ALL", "--security-opt", "systempaths=unconfined"]
    told = daemon.out("run", "--rm", *flags, "busybox", "sh", "-c", script)
    assert told.splitlines() == ["sysctl kept", "no node", "no priority"]


def test_a_device_has_another_name_inside(daemon: Daemon) -> None:
    script = "head -c1 /dev/mine | od -An -tx1; ls -l /dev/mine"
    told = daemon.out("run", "--rm", "--device", "/dev/zero:/dev/mine", "busybox", "sh", "-c", script)
    assert told.split()[0] == "00"
    assert "1,   5" in told


def test_a_bind_mount_gets_the_subordinate_owner(daemon: Daemon, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "roots").write_text("x")
    (shared / "roots").chmod(0o600)
    os.chown(shared, FIRST, FIRST)
    tmp_path.chmod(0o755)
    told = daemon.out(
        "run", "--rm", "-v", f"{shared}:/shared", "busybox", "sh", "-c",
        "touch /shared/mine; cat /shared/roots 2>&1; stat -c %u /shared/roots",
    )  # fmt: skip
    assert "Permission denied" in told
    assert told.splitlines()[-1] == "65534"
    assert (shared / "mine").stat().st_uid == FIRST
    (shared / "mine").unlink()


def test_a_running_container_is_exported_with_its_own_numbers(daemon: Daemon, tmp_path: Path) -> None:
    daemon.docker("run", "-d", "--name", "c1", "busybox", "sh", "-c", "echo x >/f; chown 33:34 /f; exec sleep 60")
    daemon.docker("exec", "c1", "sh", "-c", "until [ $(stat -c %u /f) = 33 ]; do sleep 0.05; done")
    daemon.docker("export", "-o", str(tmp_path / "c1.tar"), "c1")
    with tarfile.open(tmp_path / "c1.tar") as tar:
        owners = {one.name: (one.uid, one.gid) for one in tar}
    assert (owners["f"], owners["bin/busybox"], owners["etc/passwd"]) == ((33, 34), (0, 0), (0, 0))


def test_a_commit_has_the_containers_numbers(daemon: Daemon, tmp_path: Path) -> None:
    daemon.docker(
        "run", "--name", "c1", "busybox", "sh", "-c", "mkdir /d && touch /d/f && chown -R 33:34 /d && rm /bin/vi"
    )
    assert daemon.out("diff", "c1").splitlines() == ["C /bin", "D /bin/vi", "A /d", "A /d/f"]
    daemon.docker("commit", "c1", "changed")
    assert daemon.out("run", "--rm", "changed", "stat", "-c", "%u:%g", "/d/f", "/bin").split() == ["33:34", "0:0"]
    daemon.docker("export", "-o", str(tmp_path / "exported.tar"), "c1")
    with tarfile.open(tmp_path / "exported.tar") as archive:
        member = archive.getmember("d/f")
        assert (member.uid, member.gid) == (33, 34)
        assert archive.getmember("bin/busybox").uid == 0


def test_copies_have_the_containers_numbers(daemon: Daemon, tmp_path: Path) -> None:
    """docker cp into and out of a container that runs, and of one that does not."""
    file = tmp_path / "file"
    file.write_text("content")
    daemon.docker("run", "-d", "--name", "runs", "busybox", "sleep", "60")
    daemon.docker("create", "--name", "waits", "busybox", "stat", "-c", "%u:%g", "/etc/file")
    for name in ("runs", "waits"):
        daemon.docker("cp", str(file), f"{name}:/etc/file")
        archive = daemon.docker("cp", f"{name}:/etc/file", "-").stdout.encode()
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            assert (tar.getmember("file").uid, tar.getmember("file").gid) == (0, 0)
    assert daemon.out("exec", "runs", "stat", "-c", "%u:%g", "/etc/file").strip() == "0:0"
    assert daemon.out("start", "-a", "waits").strip() == "0:0"
    daemon.docker("exec", "runs", "chown", "5:6", "/etc/file")
    archive = daemon.docker("cp", "runs:/etc/file", "-").stdout.encode()
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        assert (tar.getmember("file").uid, tar.getmember("file").gid) == (5, 6)


def test_copies_into_bind_mounts_have_the_containers_numbers(daemon: Daemon, tmp_path: Path) -> None:
    """Whether the container runs or not; and what it could not write itself, a copy does not write for it."""
    tmp_path.chmod(0o755)
    shared, roots, file = tmp_path / "shared", tmp_path / "roots", tmp_path / "file"
    shared.mkdir()
    roots.mkdir()
    os.chown(shared, FIRST, FIRST)
    file.write_text("content")
    daemon.docker("create", "--name", "c1", "-v", f"{shared}:/t", "-v", f"{roots}:/r", "busybox", "sleep", "60")
    for state in ("waits", "runs"):
        if state == "runs":
            daemon.docker("start", "c1")
        daemon.docker("cp", str(file), f"c1:/t/{state}")
        assert (shared / state).stat().st_uid == FIRST
        archive = daemon.docker("cp", f"c1:/t/{state}", "-").stdout.encode()
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            assert tar.getmember(state).uid == 0
        assert daemon.docker("cp", str(file), "c1:/r/file", check=False).returncode
        assert list(roots.iterdir()) == []


def test_a_volume_is_shared_between_remapped_and_not(daemon: Daemon) -> None:
    daemon.docker("volume", "create", "v1")
    daemon.docker("run", "--rm", "-v", "v1:/v", "busybox", "sh", "-c", "touch /v/f && chown 12:13 /v/f")
    look = ["busybox", "stat", "-c", "%u:%g", "/v", "/v/f"]
    assert daemon.out("run", "--rm", "-v", "v1:/v", *look).split() == ["0:0", "12:13"]
    assert daemon.out("run", "--rm", "--userns=host", "-v", "v1:/v", *look).split() == ["0:0", "12:13"]
    # What an image has where a volume is made comes along with its owner.
    daemon.docker("run", "--name", "c1", "busybox", "sh", "-c", "mkdir -p /v/d && chown 3:4 /v /v/d")
    daemon.docker("commit", "c1", "filled")
    told = daemon.out("run", "--rm", "-v", "fresh:/v", "filled", "stat", "-c", "%u:%g", "/v", "/v/d")
    assert told.split() == ["3:4", "3:4"]


def test_a_volume_with_options_keeps_the_hosts_numbers(daemon: Daemon, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    place = tmp_path / "place"
    place.mkdir()
    os.chown(place, FIRST + 1000, FIRST + 1000)
    daemon.docker("volume", "create", "--opt", "type=none", "--opt", "o=bind", "--opt", f"device={place}", "outside")
    daemon.docker("run", "--rm", "-u", "1000", "-v", "outside:/v", "busybox", "touch", "/v/f")
    assert (place / "f").stat().st_uid == FIRST + 1000


def test_a_user_reopens_its_standard_output(daemon: Daemon) -> None:
    """nginx's image links its logs to /dev/stdout: the pipe must be the container's."""
    script = "echo out > /dev/stdout; echo err > /dev/stderr"
    assert daemon.out("run", "--rm", "-u", "33", "busybox", "sh", "-c", script).strip() == "out"
    assert daemon.out("run", "--rm", "-t", "-u", "33", "busybox", "sh", "-c", "echo out > /dev/tty").strip() == "out"
    daemon.docker("run", "-d", "--name", "c1", "busybox", "sleep", "60")
    assert daemon.out("exec", "-u", "33", "c1", "sh", "-c", script).strip() == "out"


def test_the_hosts_users_for_a_container_that_asks(daemon: Daemon) -> None:
    told = daemon.out("run", "--rm", "--userns=host", "busybox", "cat", "/proc/self/uid_map")
    assert told.split()[:2] == ["0", "0"]
    assert daemon.out("run", "--rm", "--userns=host", "--privileged", "busybox", "ls", "/dev/kmsg").strip()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--privileged"], "privileged mode is incompatible with user namespaces.  You must run the container in the"),
        (["--net=host"], "cannot share the host's network namespace when user namespaces are enabled"),
        (["--pid=host"], "cannot share the host PID namespace when user namespaces are enabled"),
    ],
)
def test_what_a_user_namespace_cannot_have_is_refused(daemon: Daemon, flags: list[str], words: str) -> None:
    refused = daemon.docker("run", "--rm", *flags, "busybox", "true", check=False)
    assert refused.returncode == 125
    assert words in refused.stderr


def test_a_user_that_has_no_number_outside_is_refused(daemon: Daemon) -> None:
    refused = daemon.docker("run", "--rm", "-u", "70000", "busybox", "true", check=False)
    assert refused.returncode == 125
    assert "unable to setup user: cannot set uid to unmapped user in user namespace" in refused.stderr
    daemon.docker("run", "-d", "--name", "c1", "busybox", "sleep", "60")
    refused = daemon.docker("exec", "-u", "0:70000", "c1", "true", check=False)
    assert "unable to setup user: cannot set gid to unmapped user in user namespace" in refused.stdout


def test_namespaces_are_joined_with_their_users(daemon: Daemon) -> None:
    daemon.docker("run", "-d", "--name", "first", "--ipc=shareable", "busybox", "sleep", "60")
    users = daemon.out("exec", "first", "readlink", "/proc/self/ns/user")
    joining = ["--net=container:first", "--ipc=container:first", "--pid=container:first"]
    told = daemon.out("run", "--rm", *joining, "busybox", "sh", "-c", "readlink /proc/self/ns/user; stat -c %u /bin")
    assert told.split() == [users, "0"]
    daemon.docker("run", "-d", "--name", "unmapped", "--userns=host", "busybox", "sleep", "60")
    refused = daemon.docker("run", "--rm", "--net=container:unmapped", "busybox", "true", check=False)
    assert (
        "a container in the host's user namespace when user namespaces are enabled: use --userns=host" in refused.stderr
    )


def test_a_mounted_image_is_the_containers(daemon: Daemon) -> None:
    daemon.docker("run", "--name", "c1", "busybox", "sh", "-c", "touch /f && chown 8:9 /f")
    daemon.docker("commit", "c1", "two-layers")
    for image in ("busybox", "two-layers"):
        told = daemon.out(
            "run", "--rm", "--mount", f"type=image,source={image},target=/i", "busybox", "stat", "-c", "%u", "/i/bin"
        )
        assert told.strip() == "0"


def test_file_capabilities_work_in_the_containers_namespace(daemon: Daemon, tmp_path: Path) -> None:
    """VFS_CAP_REVISION_2 with cap_net_raw, effective: what is the image's root's is this root's."""
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    daemon.docker("create", "--name", "c1", "busybox")
    daemon.docker("export", "-o", str(tmp_path / "base.tar"), "c1")
    with tarfile.open(tmp_path / "base.tar") as old, tarfile.open(tmp_path / "image.tar", "w") as new:
        program = old.extractfile("bin/busybox")
        assert program is not None
        busybox = program.read()
        for member in old:
            content = old.extractfile(member) if member.isreg() else None
            data = content.read() if content is not None else b""
            new.addfile(member, io.BytesIO(data))
        capable = tarfile.TarInfo("opt/grep")
        capable.size, capable.mode = len(busybox), 0o755
        capable.pax_headers = {"SCHILY.xattr.security.capability": capability.decode("latin-1")}
        new.addfile(capable, io.BytesIO(busybox))
    daemon.docker("import", str(tmp_path / "image.tar"), "capable")
    told = daemon.out("run", "--rm", "-u", "1000", "capable", "/opt/grep", "CapEff", "/proc/self/status")
    assert told.split()[1].lstrip("0") == "2000"


def test_steps_of_a_build_are_remapped(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(
        "FROM busybox AS base\n"
        "RUN touch /f && chown 21:22 /f && cat /proc/self/uid_map > /map\n"
        "FROM busybox\n"
        "RUN --mount=type=bind,from=base,target=/b --mount=type=cache,target=/c"
        " stat -c %u:%g /b/f /c > /seen && touch /c/x\n"
        "COPY --from=base --chown=5:6 /map /map\n"
    )
    daemon.docker("build", "-q", "-t", "built", str(tmp_path), timeout=120)
    told = daemon.out("run", "--rm", "built", "sh", "-c", "cat /seen /map; stat -c %u:%g /map /seen")
    assert told.split() == ["21:22", "0:0", "0", str(FIRST), "65536", "5:6", "0:0"]


def test_secrets_of_a_build_are_the_steps_own(
    daemon: Daemon, tmp_path: Path, buildx_environment: dict[str, str]
) -> None:
    (tmp_path / "secret").write_text("hidden")
    (tmp_path / "Dockerfile").write_text(
        "FROM busybox\n"
        "RUN --mount=type=secret,id=s stat -c %u:%g /run/secrets/s /etc/hosts > /seen && cat /run/secrets/s >> /seen\n"
        "RUN --mount=type=secret,id=s,uid=7,gid=8,mode=0400 stat -c %u:%g /run/secrets/s >> /seen\n"
    )
    flags = ["--load", "-q", "-t", "built", "--secret", f"id=s,src={tmp_path}/secret"]
    daemon.docker("buildx", "build", *flags, str(tmp_path), timeout=120, env=buildx_environment)
    assert daemon.out("run", "--rm", "built", "cat", "/seen").split() == ["0:0", "0:0", "hidden7:8"]


@pytest.fixture
def parts(daemon: Daemon) -> Iterator[str]:
    """An image of several layers with a folder and a file in it."""
    steps = "RUN mkdir -p /a && echo one >/a/f && chown 3:4 /a/f\nRUN echo two >/a/g && ln -s /etc /a/out"
    daemon.docker("build", "-t", "parts", "-", input=f"FROM busybox\n{steps}\n".encode())
    yield "parts"
    daemon.docker("image", "rm", "-f", "parts")


def part(image: str, subpath: str, *command: str) -> list[str]:
    return ["--mount", f"type=image,src={image},dst=/i,image-subpath={subpath}", "busybox", *command]


def test_a_part_of_an_image_of_several_layers(daemon: Daemon, parts: str) -> None:
    told = daemon.out(
        "run", "--rm", *part(parts, "a", "sh", "-c", "stat -c %u:%g /i/f /i; cat /i/g; touch /i/x 2>&1 || true")
    )
    assert told.splitlines() == ["3:4", "0:0", "two", "touch: /i/x: Read-only file system"]
    assert daemon.out("run", "--rm", *part(parts, "a/g", "cat", "/i")) == "two"
    assert (
        "escapes the base directory"
        in daemon.docker("run", "--rm", *part(parts, "a/out", "ls", "/i"), check=False).stderr
    )


@pytest.mark.parametrize("name", RUNTIMES)
def test_another_runtime_mounts_a_part_of_an_image(daemon: Daemon, parts: str, name: str) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"no {name} on the PATH")
    run = ("run", "--rm", "--runtime", f"other-{name}")
    assert daemon.out(*run, *part(parts, "a", "stat", "-c", "%u:%g", "/i/f", "/i")).split() == ["3:4", "0:0"]
    assert daemon.out(*run, "--userns=host", *part(parts, "a/g", "cat", "/i")) == "two"


@pytest.mark.parametrize("name", RUNTIMES)
def test_another_runtime_gets_the_same(daemon: Daemon, name: str) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"no {name} on the PATH")
    daemon.docker(
        "run", "--rm", "-v", "vol1:/v", "busybox", "sh", "-c", "mkdir /v/sub; touch /v/sub/f; chown 3:4 /v/sub/f"
    )
    mounts = ["--mount", "type=volume,source=vol1,target=/s,volume-subpath=sub", "-v", "vol1:/v"]
    script = "stat -c %u:%g /bin /etc/hosts /v /s/f; touch /n && stat -c %u /n; echo out > /dev/stdout"
    flags = ["--runtime", f"other-{name}", "-u", "0", *mounts]
    told = daemon.out("run", "--rm", *flags, "busybox", "sh", "-c", f"cat /proc/self/uid_map; {script}")
    assert told.split() == ["0", str(FIRST), "65536", "0:0", "0:0", "0:0", "3:4", "0", "out"]
    daemon.docker("run", "-d", "--name", "c1", *flags, "busybox", "sleep", "60")
    assert daemon.out("exec", "-u", "33", "c1", "sh", "-c", "id -u; echo out > /dev/stdout").split() == ["33", "out"]


def test_ports_names_and_health_work(daemon: Daemon) -> None:
    daemon.docker("network", "create", "net1")
    daemon.docker(
        "run", "-d", "--name", "web", "--net", "net1", "--health-cmd", "true", "--health-interval", "1s",
        "-p", "127.0.0.1::80", "busybox", "sh", "-c", "echo hello > /index.html && httpd -f -p 80 -h /",
    )  # fmt: skip
    assert daemon.out("run", "--rm", "--net", "net1", "busybox", "wget", "-qO-", "http://web/").strip() == "hello"
    assert "1 packets received" in daemon.out("run", "--rm", "--net", "net1", "busybox", "ping", "-c1", "web")
    groups = daemon.out("run", "--rm", "busybox", "cat", "/proc/sys/net/ipv4/ping_group_range")
    assert groups.split() == ["0", "65535"]
    address = daemon.out("port", "web", "80").strip()
    assert daemon.host.run("busybox", "wget", "-qO-", f"http://{address}/").stdout.strip() == "hello"


def test_limits(daemon: Daemon) -> None:
    told = daemon.out(
        "run", "--rm", "-m", "32m", "--oom-score-adj=500", "--ulimit", "nofile=2048:4096", "busybox", "sh", "-c",
        "cat /proc/self/oom_score_adj; ulimit -n; cd /sys/fs/cgroup;"
        "cat memory.max memory/memory.limit_in_bytes 2>&- | head -1",
    )  # fmt: skip
    assert told.split() == ["500", "2048", "33554432"]


def test_the_data_root_is_closed_to_the_subordinate_root(daemon: Daemon) -> None:
    """CVE-2021-21284: there it was that user's, who so changed files of the host's root in it."""
    found = daemon.data_root.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o007) == (0, 0, 0)


def test_a_restarted_daemon_goes_on_with_them(daemon: Daemon) -> None:
    daemon.docker("run", "-d", "--name", "c1", "busybox", "sh", "-c", "echo begun; sleep 60")
    pid = daemon.inspect("c1")["State"]["Pid"]
    daemon.kill()
    daemon.start()
    assert daemon.inspect("c1")["State"]["Pid"] == pid
    assert daemon.out("exec", "c1", "id", "-u").strip() == "0"
    assert daemon.out("logs", "c1").strip() == "begun"
    daemon.docker("stop", "-t", "0", "c1")
    daemon.docker("start", "c1")
    assert Path(f"/proc/{daemon.inspect('c1')['State']['Pid']}").stat().st_uid == FIRST


def test_the_data_root_is_the_same_with_and_without(daemon: Daemon) -> None:
    """Images, containers and volumes outlive a change of the setting, both ways."""
    daemon.docker(
        "run",
        "--name",
        "c1",
        "-v",
        "v1:/v",
        "busybox",
        "sh",
        "-c",
        "touch /f /v/f; chown 3 /f /v/f; stat -c %u /f /v/f",
    )
    daemon.stop()
    arguments, daemon.arguments = daemon.arguments, []
    try:
        daemon.start()
        assert "name=userns" not in daemon.out("info", "--format", "{{json .SecurityOptions}}")
        assert daemon.out("start", "-a", "c1").split() == ["3", "3"]
        assert daemon.out("run", "--rm", "busybox", "cat", "/proc/self/uid_map").split()[1] == "0"
        daemon.docker("create", "--privileged", "--name", "mighty", "busybox", "true")
    finally:
        daemon.stop()
        daemon.arguments = arguments
        daemon.start()
    assert daemon.out("start", "-a", "c1").split() == ["3", "3"]
    refused = daemon.docker("start", "mighty", check=False)
    assert "privileged mode is incompatible with user namespaces" in refused.stderr


def test_the_default_user_is_made(folder: Path, tmp_path: Path, busybox: Path) -> None:
    host = RemappingHost(tmp_path / "accounts")
    daemon = Daemon(folder / "default", host, ["--userns-remap=default"])
    try:
        daemon.start()
        assert "dockremap" in (host.etc / "upper" / "passwd").read_text()
        first = (host.etc / "upper" / "subuid").read_text().split(":")
        assert first[0] == "dockremap"
        daemon.docker("load", "-i", str(busybox))
        told = daemon.out("run", "--rm", "busybox", "cat", "/proc/self/uid_map")
        assert told.split() == ["0", first[1], "65536"]
    finally:
        daemon.close()
        host.close()


def test_a_user_without_ranges_is_an_error(folder: Path, remapping: RemappingHost) -> None:
    daemon = Daemon(folder / "refused", remapping, ["--userns-remap=daemon"])
    daemon.start(wait=False)
    assert daemon.process is not None
    assert daemon.process.wait(20) == 1
    assert 'Can\'t create ID mappings: no subuid ranges found for user \\"daemon\\"' in daemon.log_tail()
    daemon.process = None
    daemon.close()
