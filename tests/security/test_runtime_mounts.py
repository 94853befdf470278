"""Mounts in a hostile tree: nothing lands on the host, and nothing hides or fakes procfs."""

from __future__ import annotations

import ctypes
import os
import signal
import stat
from pathlib import Path

import pytest

from seacan.errors import RuntimeFailed
from seacan.runtime import spec
from tests.bundles import Bundles, DirectoryRoot


def upper_of(bundles: Bundles) -> tuple[Path, spec.Spec, dict[str, object]]:
    root = bundles.overlay()
    assert root.upper is not None
    return Path(root.upper), bundles.spec(["true"]), {"rootfs": root}


@pytest.mark.parametrize("link", ["absolute", "relative"])
def test_a_mount_target_that_links_out_stays_inside(bundles: Bundles, link: str) -> None:
    upper, configuration, options = upper_of(bundles)
    outside = bundles.folder / "outside"
    outside.mkdir()
    (upper / "data").symlink_to(outside if link == "absolute" else "../../../../../../.." + str(outside))
    configuration.mounts.append(spec.Mount("/data/below", "tmpfs", "tmpfs"))
    assert configuration.process is not None
    configuration.process.args = ["sh", "-c", f"grep -c ' {outside}/below ' /proc/self/mountinfo"]
    assert bundles.run(configuration, **options) == (0, "1\n")
    assert list(outside.iterdir()) == []


def test_a_device_whose_folder_links_out_stays_inside(bundles: Bundles) -> None:
    upper, configuration, options = upper_of(bundles)
    outside = bundles.folder / "outside"
    outside.mkdir()
    (upper / "nodes").symlink_to(outside)
    assert configuration.linux is not None
    configuration.linux.devices = [spec.Device("/nodes/zero", "c", 1, 5)]
    assert bundles.run(configuration, **options)[0] == 0
    assert list(outside.iterdir()) == []
    assert stat.S_ISCHR((upper / str(outside)[1:] / "zero").stat().st_mode)


def test_masks_and_working_directory_that_link_out_stay_inside(bundles: Bundles) -> None:
    upper, configuration, options = upper_of(bundles)
    outside = bundles.folder / "outside"
    outside.mkdir()
    (outside / "file").write_text("content")
    (upper / "link").symlink_to(outside)
    assert configuration.linux is not None and configuration.process is not None
    configuration.linux.masked_paths.append("/link/file")
    configuration.process.cwd = "/link/new"
    assert bundles.run(configuration, **options)[0] == 0
    assert sorted(os.listdir(outside)) == ["file"]


def test_a_target_exchanged_for_a_link_while_mounting_stays_inside(bundles: Bundles) -> None:
    """CVE-2021-30465: another container keeps swapping a folder and a link in a shared tree."""
    root = bundles.folder / "shared"
    os.symlink(bundles.lower, bundles.folder / "lower-link")
    os.system(f"cp -a {bundles.lower} {root}")
    outside = bundles.folder / "outside"
    outside.mkdir()
    (root / "target").mkdir()
    (root / "other").symlink_to(outside)
    libc = ctypes.CDLL(None)
    swapper = os.fork()
    if swapper == 0:
        while os.getppid() != 1:
            libc.renameat2(-100, os.fsencode(root / "target"), -100, os.fsencode(root / "other"), 2)
    try:
        for _ in range(15):
            configuration = bundles.spec(["true"])
            configuration.mounts += [
                spec.Mount("/target/below", "tmpfs", "tmpfs"),
                spec.Mount("/target", "bind", "/etc", ["bind", "ro"]),
            ]
            try:
                bundles.run(configuration, rootfs=DirectoryRoot(str(root)))
            except RuntimeFailed:
                pass  # to notice and refuse is as good
            assert list(outside.iterdir()) == []
    finally:
        os.kill(swapper, signal.SIGKILL)
        os.waitpid(swapper, 0)


@pytest.mark.parametrize(
    "destination",
    ["/proc/sys", "/proc/self/attr", "/proc/1", "/proc/../proc/sys/kernel", "/alias/sys"],
)
def test_mounts_over_procfs_are_refused(bundles: Bundles, destination: str) -> None:
    """CVE-2019-16884, CVE-2025-52881: what the runtime writes to procfs later must arrive there."""
    upper, configuration, options = upper_of(bundles)
    (upper / "alias").symlink_to("/proc")
    configuration.mounts.append(spec.Mount(destination, "tmpfs", "tmpfs"))
    with pytest.raises(RuntimeFailed, match="cannot be mounted because it is inside /proc"):
        bundles.run(configuration, **options)


def test_another_file_system_at_proc_is_refused(bundles: Bundles) -> None:
    upper, configuration, options = upper_of(bundles)
    (upper / "alias").symlink_to("/proc")
    for destination in ("/proc", "/alias"):
        configuration.mounts = [spec.Mount(destination, "bind", "/tmp", ["bind"])]
        if destination == "/alias":
            configuration.mounts.insert(0, spec.Mount("/proc", "proc", "proc"))
        with pytest.raises(RuntimeFailed, match="cannot be mounted because it is not of type proc"):
            bundles.run(configuration, **options)


def test_files_that_lxcfs_replaces_may_be_mounted_over(bundles: Bundles) -> None:
    (bundles.folder / "uptime").write_text("1.00 1.00\n")
    configuration = bundles.spec(["cat", "/proc/uptime"])
    configuration.mounts.append(spec.Mount("/proc/uptime", "bind", str(bundles.folder / "uptime"), ["bind"]))
    assert bundles.run(configuration) == (0, "1.00 1.00\n")


@pytest.mark.parametrize("name", ["proc", "sys"])
def test_a_proc_that_is_a_link_is_refused(bundles: Bundles, name: str) -> None:
    """CVE-2023-28642: the masked paths would miss it."""
    root = bundles.folder / "tree"
    os.system(f"cp -a {bundles.lower} {root}")
    (root / name).rmdir()
    (root / "elsewhere").mkdir()
    (root / name).symlink_to("elsewhere")
    with pytest.raises(RuntimeFailed, match="must be mounted on ordinary directory"):
        bundles.run(["true"], rootfs=DirectoryRoot(str(root)))


def without_dev(bundles: Bundles, **process: object) -> tuple[spec.Spec, Path]:
    configuration = bundles.spec(["true"], **process)
    configuration.mounts = [mount for mount in configuration.mounts if not mount.destination.startswith("/dev")]
    root = bundles.folder / "tree"
    os.system(f"cp -a {bundles.lower} {root}")
    return configuration, root


@pytest.mark.parametrize("kind", ["link", "file", "other device"])
def test_a_dev_null_of_the_image_that_is_none_is_not_used(bundles: Bundles, kind: str) -> None:
    """CVE-2025-31133: it would be bound over the masked paths."""
    configuration, root = without_dev(bundles)
    if kind == "link":
        (root / "dev/null").symlink_to("/proc/sys/kernel/core_pattern")
    elif kind == "file":
        (root / "dev/null").write_text("x")
    else:
        os.mknod(root / "dev/null", stat.S_IFCHR | 0o666, os.makedev(1, 1))
    with pytest.raises(RuntimeFailed, match="error creating device nodes"):
        bundles.run(configuration, rootfs=DirectoryRoot(str(root)))


def test_masks_use_a_null_device_whose_mode_the_container_cannot_change_for_the_host(bundles: Bundles) -> None:
    before = os.stat("/dev/null").st_mode
    configuration = bundles.spec(["sh", "-c", "chmod 0 /proc/timer_list; chmod 0 /dev/null; true"])
    assert bundles.run(configuration)[0] == 0
    assert os.stat("/dev/null").st_mode == before


def test_a_console_that_is_a_link_is_refused(bundles: Bundles) -> None:
    """CVE-2025-52565."""
    configuration, root = without_dev(bundles, terminal=True)
    (root / "dev/console").symlink_to("/etc/passwd")
    configuration.mounts.append(spec.Mount("/dev/pts", "devpts", "devpts", ["newinstance", "ptmxmode=0666"]))
    with pytest.raises(RuntimeFailed, match="/dev/console"):
        bundles.run(configuration, rootfs=DirectoryRoot(str(root)))


@pytest.mark.parametrize("kind", ["link", "file", "fifo", "device"])
def test_a_ptmx_that_is_none_is_refused(bundles: Bundles, kind: str) -> None:
    configuration, root = without_dev(bundles, terminal=True)
    (root / "dev/pts").mkdir()
    ptmx = root / "dev/pts/ptmx"
    if kind == "link":
        ptmx.symlink_to("/etc/passwd")
    elif kind == "file":
        ptmx.touch()
    elif kind == "fifo":
        os.mkfifo(ptmx)
    else:
        os.mknod(ptmx, stat.S_IFCHR | 0o666, os.makedev(5, 2))
    with pytest.raises(RuntimeFailed, match="open /dev/ptmx"):
        bundles.run(configuration, rootfs=DirectoryRoot(str(root)))


def test_an_exec_is_not_fooled_by_a_container_that_replaced_ptmx(bundles: Bundles) -> None:
    container = bundles.start()
    bundles.exec(container, ["sh", "-c", "rm /dev/ptmx; ln -s /etc/passwd /dev/ptmx; echo > /tmp/x"])
    code, output = bundles.exec(container, ["tty"], terminal=True)
    assert (code, output.strip()) == (0, "/dev/pts/0")


def test_sysctls_do_not_go_to_a_proc_of_the_image(bundles: Bundles) -> None:
    """CVE-2025-52881: a regular file at that path would swallow the value, a link lead it astray."""
    configuration = bundles.spec(["sh", "-c", "cat /proc/sys/net/ipv4/ip_default_ttl; mkdir /p; mount -t proc p /p"])
    configuration.mounts = [mount for mount in configuration.mounts if mount.destination != "/proc"]
    assert configuration.linux is not None and configuration.process is not None
    configuration.linux.sysctl = {"net.ipv4.ip_default_ttl": "77"}
    configuration.linux.masked_paths = configuration.linux.readonly_paths = []
    root = bundles.overlay()
    fake = Path(root.upper or "") / "proc/sys/net/ipv4"
    fake.mkdir(parents=True)
    (fake / "ip_default_ttl").write_text("untouched")
    container = bundles.create(configuration, rootfs=root)
    assert (fake / "ip_default_ttl").read_text() == "untouched"
    pid = os.fork()
    if pid == 0:
        ok = False
        try:
            from seacan.linux.syscalls import CLONE_NEWNET, setns

            assert container.netns is not None
            setns(container.netns, CLONE_NEWNET)
            ok = Path("/proc/sys/net/ipv4/ip_default_ttl").read_text() == "77\n"
        finally:
            os._exit(0 if ok else 1)
    assert os.waitpid(pid, 0)[1] == 0
