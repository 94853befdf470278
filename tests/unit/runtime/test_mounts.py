"""Mounts: what options mean, and what a container then sees."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from seacan.errors import InvalidParameter, RuntimeFailed
from seacan.linux import syscalls as k
from seacan.runtime import mounts, rootfs, spec
from seacan.runtime.bundle import OverlayRoot
from tests.bundles import Bundles


def mounted(output: str, destination: str) -> list[str]:
    """The fields of the line of /proc/self/mountinfo for a destination, after its root."""
    lines = [line.split() for line in output.splitlines()]
    return next(fields[3:] for fields in reversed(lines) if fields[4] == destination)


@pytest.mark.parametrize(
    ("options", "expected_set", "expected_clear"),
    [
        (["ro"], k.MOUNT_ATTR_RDONLY, 0),
        (["ro", "rw"], 0, k.MOUNT_ATTR_RDONLY),
        (["rw", "ro"], k.MOUNT_ATTR_RDONLY, 0),
        (["noatime"], k.MOUNT_ATTR_NOATIME, k.MOUNT_ATTR__ATIME),
        (["noatime", "relatime"], 0, k.MOUNT_ATTR__ATIME),
        (["nosuid", "suid", "nodev"], k.MOUNT_ATTR_NODEV, k.MOUNT_ATTR_NOSUID),
    ],
)
def test_the_last_of_contradicting_options_wins(options: list[str], expected_set: int, expected_clear: int) -> None:
    found = mounts.plan(spec.Mount("/a", "bind", "/b", options), "/bundle")
    assert (found.set, found.clear) == (expected_set, expected_clear)


def test_recursive_options_are_kept_apart() -> None:
    found = mounts.plan(spec.Mount("/a", "bind", "b", ["rbind", "rro", "nosuid"]), "/bundle")
    assert (found.kind, found.recursive, found.source) == ("bind", True, "/bundle/b")
    assert (found.set, found.tree_set) == (k.MOUNT_ATTR_NOSUID, k.MOUNT_ATTR_RDONLY)


def test_what_is_no_option_is_data() -> None:
    found = mounts.plan(spec.Mount("/a", "tmpfs", "tmpfs", ["size=1m", "inode64", "sync"]), "/bundle")
    assert found.data == [("size", "1m"), ("inode64", None)]
    assert found.superblock == ["sync"]


def test_a_destination_is_cleaned() -> None:
    assert mounts.plan(spec.Mount("a/../../b//c", "tmpfs"), "/bundle").destination == "/b/c"


def test_idmap_needs_a_bind_mount() -> None:
    with pytest.raises(InvalidParameter, match="only for bind mounts"):
        mounts.plan(spec.Mount("/a", "tmpfs", "tmpfs", ["idmap"]), "/bundle")


def test_a_bind_mount_has_the_attributes_asked_for(bundles: Bundles) -> None:
    source = bundles.folder / "source"
    source.mkdir()
    configuration = bundles.spec(["sh", "-c", "cat /proc/self/mountinfo; touch /m/x"])
    configuration.mounts.append(spec.Mount("/m", "bind", str(source), ["rbind", "ro", "nosuid", "noexec", "rprivate"]))
    code, output = bundles.run(configuration)
    assert code == 1
    assert mounted(output.rpartition("touch")[0], "/m")[2] == "ro,nosuid,noexec,relatime"
    assert output.endswith("touch: /m/x: Read-only file system\n")


def test_missing_mount_points_are_made_for_folders_and_files(bundles: Bundles) -> None:
    (bundles.folder / "file").write_text("content")
    configuration = bundles.spec(["sh", "-c", "cat /new/deep/file; test -d /other/dir && echo yes"])
    configuration.mounts += [
        spec.Mount("/new/deep/file", "bind", str(bundles.folder / "file"), ["bind"]),
        spec.Mount("/other/dir", "tmpfs", "tmpfs"),
    ]
    assert bundles.run(configuration) == (0, "contentyes\n")


def test_a_dangling_link_as_target_is_made_inside_the_root(bundles: Bundles) -> None:
    (bundles.folder / "file").write_text("content")
    root = bundles.overlay()
    assert root.upper is not None
    upper = Path(root.upper)
    (upper / "etc").mkdir()
    (upper / "etc/resolv.conf").symlink_to("../run/resolvconf/resolv.conf")
    configuration = bundles.spec(["cat", "/run/resolvconf/resolv.conf"])
    configuration.mounts.append(spec.Mount("/etc/resolv.conf", "bind", str(bundles.folder / "file"), ["bind"]))
    assert bundles.run(configuration, rootfs=root) == (0, "content")


def test_tmpfs_takes_the_mode_of_its_mount_point_unless_told(bundles: Bundles) -> None:
    root = bundles.overlay()
    assert root.upper is not None
    (Path(root.upper) / "secret").mkdir(mode=0o700)
    configuration = bundles.spec(["stat", "-c", "%a", "/secret", "/open"])
    configuration.mounts += [
        spec.Mount("/secret", "tmpfs", "tmpfs"),
        spec.Mount("/open", "tmpfs", "tmpfs", ["mode=1777"]),
    ]
    assert bundles.run(configuration, rootfs=root) == (0, "700\n1777\n")


def test_tmpcopyup_keeps_content_links_modes_and_owners(bundles: Bundles) -> None:
    root = bundles.overlay()
    assert root.upper is not None
    data = Path(root.upper) / "data"
    (data / "sub").mkdir(parents=True)
    (data / "sub/file").write_text("content")
    os.chown(data / "sub/file", 7, 8)
    (data / "sub/file").chmod(0o640)
    (data / "link").symlink_to("sub/file")
    configuration = bundles.spec(["sh", "-c", "cat /data/link; stat -c '%a %u %g' /data/sub/file; touch /data/x"])
    configuration.mounts.append(spec.Mount("/data", "tmpfs", "tmpfs", ["tmpcopyup", "ro"]))
    assert bundles.run(configuration, rootfs=root) == (1, "content640 7 8\ntouch: /data/x: Read-only file system\n")


def test_tmpcopyup_copies_a_tree_deeper_than_any_stack(bundles: Bundles) -> None:
    root = bundles.overlay()
    assert root.upper is not None
    here = os.open(root.upper, os.O_RDONLY)
    for name in ("data", *["d"] * 1100):
        os.mkdir(name, dir_fd=here)
        inner = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(os.open("leaf", os.O_WRONLY | os.O_CREAT, dir_fd=here))
    os.close(here)
    configuration = bundles.spec(
        ["sh", "-c", "cd /data; i=0; while cd d 2>/dev/null; do i=$((i+1)); done; echo $i; ls"]
    )
    configuration.mounts.append(spec.Mount("/data", "tmpfs", "tmpfs", ["tmpcopyup"]))
    assert bundles.run(configuration, rootfs=root) == (0, "1100\nleaf\n")


def test_an_idmapped_mount_shifts_owners_both_ways(bundles: Bundles) -> None:
    source = bundles.folder / "source"
    source.mkdir()
    (source / "file").touch()
    os.chown(source / "file", 1000, 1000)
    mapping = [spec.IDMapping(1000, 2000, 1), spec.IDMapping(5000, 0, 1)]
    configuration = bundles.spec(["sh", "-c", "stat -c '%u %g' /m/file; touch /m/new"])
    configuration.mounts.append(
        spec.Mount("/m", "bind", str(source), ["bind"], uid_mappings=mapping, gid_mappings=mapping)
    )
    os.chown(source, 5000, 5000)
    assert bundles.run(configuration) == (0, "2000 2000\n")
    assert (source / "new").stat().st_uid == 5000


def test_a_source_that_does_not_exist_is_an_error_with_both_names(bundles: Bundles) -> None:
    configuration = bundles.spec(["true"])
    configuration.mounts.append(spec.Mount("/m", "bind", "/nosuch", ["bind"]))
    with pytest.raises(RuntimeFailed, match=r'error mounting "/nosuch" to rootfs at "/m": .*no such file or directory'):
        bundles.run(configuration)


def test_a_folder_on_a_file_is_refused_with_exit_code_127(bundles: Bundles) -> None:
    configuration = bundles.spec(["true"])
    configuration.mounts.append(spec.Mount("/etc/passwd", "bind", str(bundles.folder), ["bind"]))
    with pytest.raises(RuntimeFailed, match="not a directory") as failure:
        bundles.run(configuration)
    assert failure.value.exit_code == 127


def test_masked_and_readonly_paths(bundles: Bundles) -> None:
    root = bundles.overlay()
    assert root.upper is not None
    (Path(root.upper) / "secrets").mkdir()
    (Path(root.upper) / "secrets/file").write_text("secret")
    (Path(root.upper) / "fixed").mkdir()
    configuration = bundles.spec(
        [
            "sh",
            "-c",
            "ls /secrets | wc -l; wc -c < /proc/timer_list; touch /secrets/x; touch /fixed/x; echo > /etc/passwd",
        ]
    )
    assert configuration.linux is not None
    configuration.linux.masked_paths += ["/secrets", "/nosuch"]
    configuration.linux.readonly_paths += ["/fixed", "/etc/passwd", "/nosuch"]
    code, output = bundles.run(configuration, rootfs=root)
    assert code == 1
    assert output.splitlines() == [
        "0",
        "0",
        "touch: /secrets/x: Read-only file system",
        "touch: /fixed/x: Read-only file system",
        "sh: can't create /etc/passwd: Read-only file system",
    ]


def test_devices_have_number_mode_and_owner(bundles: Bundles) -> None:
    configuration = bundles.spec(["stat", "-c", "%n %F %t:%T %a %u:%g", "/dev/null", "/dev/sub/zero", "/fifo"])
    assert configuration.linux is not None
    configuration.linux.devices = [
        spec.Device("/dev/sub/zero", "c", 1, 5, 0o600, 7, 8),
        spec.Device("/fifo", "p", file_mode=0o622),
    ]
    assert bundles.run(configuration) == (
        0,
        "/dev/null character special file 1:3 666 0:0\n"
        "/dev/sub/zero character special file 1:5 600 7:8\n/fifo fifo 0:0 622 0:0\n",
    )


def test_more_than_128_layers(bundles: Bundles) -> None:
    layers = []
    for number in range(200):
        layer = bundles.folder / "layers" / f"{number:03}-{'x' * 60}"
        layer.mkdir(parents=True)
        (layer / f"layer{number}").touch()
        layers.append(str(layer))
    base = bundles.overlay()
    root = OverlayRoot((*layers, *base.lower), base.upper, base.work)
    assert bundles.run(["sh", "-c", "ls / | grep -c layer"], rootfs=root) == (0, "200\n")


def test_nothing_of_the_host_is_below_the_root(bundles: Bundles) -> None:
    output = bundles.run(["cat", "/proc/self/mountinfo"])[1]
    points = {line.split()[4] for line in output.splitlines()}
    expected = {"/", "/proc", "/dev", "/dev/pts", "/sys", "/dev/mqueue", "/dev/shm"}
    assert expected <= points
    assert all(point.startswith(("/sys/fs/cgroup", "/proc/", "/sys/firmware")) for point in points - expected)


def in_child(work: Callable[[], str]) -> str:
    """What ``work`` gives in a process of its own, whose namespaces and root are nobody else's."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            text = work()
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(writer, text.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return text


def test_the_hosts_root_is_not_even_below_the_containers(bundles: Bundles) -> None:
    container = bundles.create(bundles.spec(["sleep", "1000"]))
    container.start()
    namespace = os.open(f"/proc/{container.pid}/ns/mnt", os.O_RDONLY)
    host = os.stat("/")

    def uncover() -> str:
        k.setns(namespace, k.CLONE_NEWNS)
        k.umount2("/", k.MNT_DETACH)
        k.setns(namespace, k.CLONE_NEWNS)
        below = os.stat("/")
        return "the host's root" if (below.st_dev, below.st_ino) == (host.st_dev, host.st_ino) else "not the host's"

    assert in_child(uncover) == "not the host's"
    os.close(namespace)
    container.delete(force=True)


def test_a_root_that_is_mounted_over_is_not_left_below() -> None:
    def pivot() -> str:
        k.unshare(k.CLONE_NEWNS)
        k.mount("", "/", "", k.MS_PRIVATE | k.MS_REC)
        k.mount("tmpfs", "/", "tmpfs", 0)
        root = rootfs.mount_filesystem(mounts.MountPlan("filesystem", "", "tmpfs", "tmpfs"))
        rootfs.RootBuilder(root, userns=False, cgroup=None, cgroupns=False, detached=True).pivot()
        return "pivoted"

    if not rootfs.MOUNTS_ON_DETACHED:
        pytest.skip("this kernel goes by pivot_root")
    assert in_child(pivot) == "SetupFailed: error during pivot_root: something is mounted over the host's root"


def test_where_the_old_root_cannot_be_unmounted_it_is_pivoted_away_from() -> None:
    def pivot() -> str:
        k.unshare(k.CLONE_NEWUSER | k.CLONE_NEWNS)  # what a more privileged namespace has mounted is locked
        for name, text in (("setgroups", "deny"), ("uid_map", "0 0 1"), ("gid_map", "0 0 1")):
            Path(f"/proc/self/{name}").write_text(text)
        root = rootfs.mount_filesystem(mounts.MountPlan("filesystem", "", "tmpfs", "tmpfs"))
        os.mkdir("mine", dir_fd=root)
        rootfs.RootBuilder(root, userns=True, cgroup=None, cgroupns=False, detached=True).pivot()
        return " ".join(os.listdir("/"))

    assert in_child(pivot) == "mine"


@pytest.fixture
def _own_mounts(tmp_path: Path) -> Iterator[None]:
    """What others of this machine mount meanwhile is not seen; mounts made here are shared, as most hosts have them."""
    folder = Path.cwd()
    own = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    k.unshare(k.CLONE_NEWNS)
    try:
        k.mount("", "/", "", k.MS_REC | k.MS_PRIVATE)
        k.mount("", "/", "", k.MS_REC | k.MS_SHARED)
        yield
    finally:
        k.setns(own, k.CLONE_NEWNS)
        os.chdir(folder)
        os.close(own)


@pytest.mark.usefixtures("_own_mounts")
def test_no_mount_appears_on_the_host(bundles: Bundles) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    configuration = bundles.spec(["sleep", "1000"])
    assert configuration.linux is not None
    for propagation in ("", "rshared", "rslave", "private"):
        configuration.linux.rootfs_propagation = propagation
        container = bundles.create(configuration)
        container.start()
        assert Path("/proc/self/mountinfo").read_text() == before
        container.delete(force=True)


def test_the_cgroup_mount_shows_only_the_containers_own(bundles: Bundles) -> None:
    container = bundles.start()
    command = "cd /sys/fs/cgroup; test -d pids && cd pids; cat cgroup.procs"
    code, output = bundles.exec(container, ["sh", "-c", command])
    assert code == 0
    assert output.split()[0] == "1"
    assert all(int(pid) < 100 for pid in output.split())


@pytest.mark.usefixtures("_own_mounts")
@pytest.mark.parametrize("mode", ["shared", "rshared", "rslave", "rprivate"])
def test_what_is_mounted_below_a_bind_reaches_the_host_if_that_is_shared(
    bundles: Bundles, tmp_path: Path, mode: str
) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    k.mount(str(tmp_path), str(tmp_path), "", k.MS_BIND)
    configuration = bundles.spec(["mount", "-t", "tmpfs", "none", "/there/inner"])
    assert configuration.linux is not None
    assert configuration.process is not None
    configuration.linux.rootfs_propagation = "rslave" if "slave" in mode else "shared" if "shared" in mode else ""
    configuration.process.capabilities = spec.Capabilities(*[["CAP_SYS_ADMIN"]] * 2, permitted=["CAP_SYS_ADMIN"])
    configuration.mounts.append(spec.Mount("/there", "bind", str(tmp_path), ["rbind", mode]))
    assert bundles.run(configuration)[0] == 0
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    assert (str(inner) in points) == ("shared" in mode)
