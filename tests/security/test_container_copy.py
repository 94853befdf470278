"""`docker cp` with containers that lay traps: what the worker reads and writes is the container's, nothing else."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import msgspec
import pytest

from seacan.engine import archive
from seacan.engine.archive import Place, Request
from seacan.runtime import spec
from seacan.runtime.container import Container, Stdio
from tests.bundles import Bundles


def ask(request: Request, fds: Sequence[int] = ()) -> bytes:
    """Run the worker; gives what it reports (``-`` first, if it failed)."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(reader)
            os._exit(archive.main(msgspec.json.encode(request).decode(), [*fds, writer]))
        finally:
            os._exit(99)
    os.close(writer)
    for fd in fds:
        os.close(fd)
    with open(reader, "rb") as file:
        report = file.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) in (0, 1)
    return report


def read(request: Request) -> tuple[bytes, dict[str, bytes]]:
    """The worker's report, and the regular files of the archive by name."""
    target = os.memfd_create("archive")
    report = ask(msgspec.structs.replace(request, action="read"), [os.dup(target)])
    os.lseek(target, 0, os.SEEK_SET)
    with open(target, "rb") as file:
        content = file.read()
    files = {}
    if content:
        with tarfile.open(fileobj=BytesIO(content)) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar if member.isreg()}  # type: ignore[union-attr]
    return report, files


def write(request: Request, name: str, content: bytes) -> bytes:
    source = os.memfd_create("archive")
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        information = tarfile.TarInfo(name)
        information.size = len(content)
        tar.addfile(information, BytesIO(content))
    os.write(source, buffer.getvalue())
    os.lseek(source, 0, os.SEEK_SET)
    return ask(msgspec.structs.replace(request, action="write"), [source])


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder of the host's; this process is the one whose root the container's links name."""
    (tmp_path / "secret").write_text("of the host")
    return tmp_path


def sees_processes(bundles: Bundles, how: str) -> tuple[Container, str]:
    """A container without more privileges than any, and where it has the host's procfs."""
    configuration = bundles.spec(["sleep", "1000"])
    proc = "/proc"
    assert configuration.linux is not None
    if how == "pid namespace":
        spaces = [space for space in configuration.linux.namespaces if space.type != "pid"]
        configuration.linux.namespaces = spaces
    else:
        proc = "/host/proc files"
        configuration.mounts = [*configuration.mounts, spec.Mount(proc, "bind", "/proc", ["rbind", "ro"])]
    container = bundles.create(configuration)
    container.start()
    return container, proc


@pytest.mark.parametrize("how", ["pid namespace", "bind mount"])
def test_a_link_through_procfs_does_not_lead_to_the_host(bundles: Bundles, victim: Path, how: str) -> None:
    """CVE-2018-15664 and its kind: what the container may not enter itself, the worker must not enter for it."""
    container, proc = sees_processes(bundles, how)
    outside = f"{proc}/{os.getpid()}/root{victim}"
    code, _ = bundles.exec(container, ["sh", "-c", f"ln -s '{outside}' /out; ls -L /out"])
    assert code != 0
    for path in ("/out/secret", "/out/", "/out/.", f"{outside}/secret"):
        assert b"of the host" not in b"".join(read(Request("read", path, pid=container.pid))[1].values())
    assert write(Request("write", "/out", pid=container.pid), "new", b"x")[:1] == b"-"
    assert write(Request("write", "/", pid=container.pid), "out/new", b"x")[:1] == b"-"
    assert os.listdir(victim) == ["secret"]


def test_nor_in_a_stopped_container_that_has_procfs_mounted(bundles: Bundles, victim: Path) -> None:
    root = bundles.overlay()
    outside = f"/host/proc/{os.getpid()}/root{victim}"
    os.symlink(outside, f"{root.upper}/out")
    scratch = bundles.folder / "scratch"
    scratch.mkdir()
    stopped = Request("read", "/out/secret", rootfs=root, places=(Place("/proc", "/host/proc"),), scratch=str(scratch))
    assert read(stopped)[1] == {}
    assert write(msgspec.structs.replace(stopped, path="/out"), "new", b"x")[:1] == b"-"
    assert os.listdir(victim) == ["secret"]


def test_the_files_of_procfs_can_still_be_copied(bundles: Bundles) -> None:
    container = bundles.start()
    report, _ = read(Request("read", "/proc/1/comm", pid=container.pid))
    assert report[:1] == b"+"
    assert read(Request("read", "/dev/stdin", pid=container.pid))[0][:1] == b"+"  # the link itself


def test_other_links_are_followed_inside(bundles: Bundles) -> None:
    container = bundles.start()
    assert (
        bundles.exec(container, ["sh", "-c", "echo mine > /root/secret; ln -s /root /home; ln -s /../../root /up"])[0]
        == 0
    )
    for path in ("/home/secret", "/up/secret"):
        assert read(Request("read", path, pid=container.pid))[1] == {"secret": b"mine\n"}
    assert write(Request("write", "/home", pid=container.pid), "new", b"x")[:1] == b"+"
    assert bundles.exec(container, ["cat", "/root/new"]) == (0, "x")


def test_a_folder_that_is_swapped_for_a_link_meanwhile_leads_nowhere_else(bundles: Bundles, victim: Path) -> None:
    """CVE-2018-15664: between looking and opening."""
    container, proc = sees_processes(bundles, "pid namespace")
    outside = f"{proc}/{os.getpid()}/root{victim}"
    swap = "while :; do rm -rf /a; mkdir /a; echo inside > /a/secret; rm -rf /a; ln -s $0 /a; done"
    swapping = container.exec(spec.Process(args=["sh", "-c", swap, outside], env=["PATH=/bin"]), Stdio())
    os.close(swapping.pidfd)
    for _ in range(60):
        for content in read(Request("read", "/a", pid=container.pid))[1].values():
            assert content in (b"inside\n", b"", b"x")  # rm may meet what is being written, and leave the folder
        for content in read(Request("read", "/a/secret", pid=container.pid))[1].values():
            assert content in (b"inside\n", b"")
        write(Request("write", "/a", pid=container.pid), "new", b"x")
        write(Request("write", "/", pid=container.pid), "a/new", b"x")
    assert os.listdir(victim) == ["secret"]


def test_the_worker_is_no_more_than_files_need(bundles: Bundles) -> None:
    """Whatever it is led to do, it cannot mount, trace, or load modules."""
    container = bundles.start()
    pid = os.fork()
    if not pid:
        archive._enter(Request("stat", "/", pid=container.pid))
        try:
            os.chroot("/tmp")
        except PermissionError:
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
