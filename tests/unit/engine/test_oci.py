"""A container's OCI configuration: what dockerd 28 writes for the same request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from seacan.engine import oci
from seacan.engine.config import (
    BindOptions,
    ContainerConfig,
    DeviceMapping,
    DeviceRequest,
    HostConfig,
    TmpfsOptions,
    Ulimit,
    VolumeOptions,
)
from seacan.engine.config import Mount as DockerMount
from seacan.engine.container import Record
from seacan.engine.host import Host
from seacan.engine.mounts import MountPoint
from seacan.engine.options import EngineOptions
from seacan.engine.profiles import CAPABILITIES, capabilities
from seacan.errors import System
from seacan.linux.capabilities import NAMES
from seacan.runtime.bundle import DirectoryRoot, OverlayRoot
from seacan.runtime.spec import Mount, Spec

FACTS = Host(kernel=(6, 1), seccomp=True)


@pytest.fixture(autouse=True)
def _all_capabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities, "available", lambda: NAMES)


class Builder:
    def __init__(self, root: Path) -> None:
        self.facts = FACTS
        self.options = EngineOptions(exec_root="", cgroup_parent="/parent", init_path="/usr/bin/tini-static")
        self.sources: dict[str, Any] = {"rootfs": DirectoryRoot(str(root))}

    def __call__(self, *points: MountPoint, config: dict[str, Any] | None = None, **asked: Any) -> Spec:
        asked.setdefault("cgroupns_mode", "private")
        asked.setdefault("shm_size", 64 << 20)
        record = Record(
            id="c0ffee",
            name="x",
            created=0,
            image="",
            path="/bin/sh",
            args=["-c", "true"],
            config=ContainerConfig(**{"hostname": "h", **(config or {})}),
            host_config=HostConfig(**asked),
            mounts=list(points),
        )
        return oci.build(record, self.options, oci.Sources(**self.sources), self.facts).spec


@pytest.fixture
def build(tmp_path: Path) -> Builder:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0::/root:\nwww:x:33:34::/:\n")
    (tmp_path / "etc/group").write_text("extra:x:44:www\n")
    return Builder(tmp_path)


def mount(spec: Spec, destination: str) -> Mount | None:
    return next((entry for entry in spec.mounts if entry.destination == destination), None)


def namespaces(spec: Spec) -> dict[str, str]:
    assert spec.linux is not None
    return {entry.type: entry.path for entry in spec.linux.namespaces}


def test_a_plain_container(build: Builder) -> None:
    spec = build()
    assert spec.process is not None
    assert spec.linux is not None
    assert spec.process.args == ["/bin/sh", "-c", "true"]
    assert spec.process.env == [
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOSTNAME=h",
    ]
    assert spec.process.capabilities is not None
    assert spec.process.capabilities.bounding == list(CAPABILITIES)
    assert spec.process.capabilities.ambient == spec.process.capabilities.inheritable == []
    assert set(namespaces(spec)) == {"mount", "network", "uts", "pid", "ipc", "cgroup"}
    assert spec.linux.cgroups_path == "/parent/c0ffee"
    assert "/proc/kcore" in spec.linux.masked_paths
    assert "/proc/sys" in spec.linux.readonly_paths
    assert spec.linux.seccomp is not None
    assert spec.linux.seccomp.default_action == "SCMP_ACT_ERRNO"


def test_the_process_runs_as_the_images_user(build: Builder) -> None:
    process = build(config={"user": "www"}, group_add=["55"]).process
    assert process is not None
    assert (process.user.uid, process.user.gid, process.user.additional_gids) == (33, 34, [34, 44, 55])


def test_an_unknown_user_is_the_servers_error_at_the_start(build: Builder) -> None:
    with pytest.raises(System, match="unable to find user nobody"):
        build(config={"user": "nobody"})


def test_variables_override_and_remove() -> None:
    config = ContainerConfig(hostname="h", env=["PATH=/mine", "A=1", "HOSTNAME"])
    assert oci.environment(config, tty=True, more=["A=2", "TERM=vt100"]) == ["PATH=/mine", "TERM=vt100", "A=2"]


def test_a_host_namespace_is_not_made(build: Builder) -> None:
    spec = build(network_mode="host", pid_mode="host", uts_mode="host", ipc_mode="host", cgroupns_mode="host")
    assert set(namespaces(spec)) == {"mount"}
    assert spec.hostname == ""
    assert spec.linux is not None
    assert spec.linux.sysctl == {}


def test_a_joined_namespace_is_that_of_the_other_containers_init(build: Builder) -> None:
    build.sources["joined"] = {"network": 71, "pid": 72, "ipc": 73}
    spec = build(network_mode="container:a", pid_mode="container:b", ipc_mode="container:c")
    found = namespaces(spec)
    assert (found["network"], found["pid"], found["ipc"]) == (
        "/proc/71/ns/net",
        "/proc/72/ns/pid",
        "/proc/73/ns/ipc",
    )
    shared = mount(spec, "/dev/shm")
    assert shared is not None
    assert shared.source == "/proc/73/root/dev/shm"


def test_privileged_gets_everything(build: Builder) -> None:
    spec = build(privileged=True)
    assert spec.process is not None
    assert spec.process.capabilities is not None
    assert spec.linux is not None
    assert spec.linux.resources is not None
    assert spec.process.capabilities.effective == list(NAMES)
    assert spec.linux.seccomp is None
    assert spec.linux.masked_paths == spec.linux.readonly_paths == []
    last = spec.linux.resources.devices[-1]
    assert (last.allow, last.type, last.access) == (True, "", "rwm")
    system = mount(spec, "/sys")
    assert system is not None
    assert "ro" not in system.options


def test_masks_can_be_lifted_and_replaced(build: Builder) -> None:
    spec = build(masked_paths=[], readonly_paths=["/x"])
    assert spec.linux is not None
    assert (spec.linux.masked_paths, spec.linux.readonly_paths) == ([], ["/x"])


@pytest.mark.parametrize("parent", ["/p", "p", "/../p", "../../p", "//p"])
def test_a_cgroup_parent_stays_in_the_hierarchy(build: Builder, parent: str) -> None:
    spec = build(cgroup_parent=parent)
    assert spec.linux is not None
    assert spec.linux.cgroups_path == "/p/c0ffee"


def test_limits_are_passed_on(build: Builder) -> None:
    spec = build(memory=64, memory_swap=128, nano_cpus=1_500_000_000, cpuset_cpus="0", pids_limit=-1)
    assert spec.linux is not None
    limits = spec.linux.resources
    assert limits is not None
    assert limits.memory is not None
    assert limits.cpu is not None
    assert limits.pids is not None
    assert (limits.memory.limit, limits.memory.swap) == (64, 128)
    assert (limits.cpu.quota, limits.cpu.period, limits.cpu.cpus) == (150_000, 100_000, "0")
    assert limits.pids.limit == -1


def test_ulimits_are_merged_with_the_engines(build: Builder) -> None:
    build.options.default_ulimits = {
        "nofile": Ulimit(name="nofile", hard=2, soft=1),
        "core": Ulimit(name="core", hard=0, soft=0),
    }
    process = build(ulimits=[Ulimit(name="nofile", hard=-1, soft=9)]).process
    assert process is not None
    found = {limit.type: (limit.soft, limit.hard) for limit in process.rlimits}
    assert found == {"RLIMIT_NOFILE": (9, (1 << 64) - 1), "RLIMIT_CORE": (0, 0)}


def test_an_init_comes_first_but_not_in_anothers_pid_namespace(build: Builder) -> None:
    process = build(init=True).process
    assert process is not None
    assert process.args == ["/sbin/docker-init", "--", "/bin/sh", "-c", "true"]
    outside = build(init=True, pid_mode="host")
    assert outside.process is not None
    assert outside.process.args[0] == "/bin/sh"
    assert mount(outside, "/sbin/docker-init") is None


class TestDevices:
    def test_a_device_is_made_and_allowed(self, build: Builder) -> None:
        asked = DeviceMapping(path_on_host="/dev/null", path_in_container="/dev/mine", cgroup_permissions="r")
        linux = build(devices=[asked]).linux
        assert linux is not None
        assert linux.resources is not None
        assert (linux.devices[0].path, linux.devices[0].major, linux.devices[0].minor) == ("/dev/mine", 1, 3)
        rule = linux.resources.devices[-1]
        assert (rule.allow, rule.type, rule.major, rule.minor, rule.access) == (True, "c", 1, 3, "r")

    @pytest.mark.parametrize(
        ("path", "cause"), [("/nosuch", "no such file or directory"), ("/etc/passwd", "not a device node")]
    )
    def test_what_is_no_device_is_refused(self, build: Builder, path: str, cause: str) -> None:
        with pytest.raises(System, match=f'adding custom device "{path}": {cause}'):
            build(devices=[DeviceMapping(path_on_host=path, path_in_container=path, cgroup_permissions="rwm")])

    def test_rules_are_understood(self) -> None:
        rule = oci.device_rule("c 10:* rm")
        assert (rule.type, rule.major, rule.minor, rule.access) == ("c", 10, -1, "rm")

    @pytest.mark.parametrize("text", ["c 1:2 x", "c 1 rwm", "d 1:2 r", "c 1:2 rwm ", "", "c 1:2 rwm\n"])
    def test_what_is_no_rule_is_refused(self, text: str) -> None:
        with pytest.raises(System, match="invalid device cgroup rule format"):
            oci.device_rule(text)

    def test_a_gpu_without_a_driver_is_refused_and_not_ignored(self, build: Builder) -> None:
        with pytest.raises(System, match=r'could not select device driver "" with capabilities: \[\[gpu\]\]'):
            build(device_requests=[DeviceRequest(count=-1, capabilities=[["gpu"]])])


class TestMounts:
    def test_nothing_is_hidden_by_a_mount_above_it(self, build: Builder) -> None:
        spec = build(
            MountPoint(type="bind", source="/b", destination="/a/b/c"),
            MountPoint(type="bind", source="/a", destination="/a"),
            tmpfs={"/a/b": ""},
        )
        order = [entry.destination for entry in spec.mounts]
        assert order.index("/a") < order.index("/a/b") < order.index("/a/b/c")

    def test_a_users_mount_replaces_the_default_one(self, build: Builder) -> None:
        spec = build(MountPoint(type="bind", source="/dev", destination="/dev"))
        assert mount(spec, "/dev/pts") is mount(spec, "/dev/shm") is None
        assert [entry.type for entry in spec.mounts if entry.destination == "/dev"] == ["bind"]

    def test_read_only_goes_all_the_way_down_where_the_kernel_can(self, build: Builder) -> None:
        spec = DockerMount(type="bind", source="/s", target="/d", read_only=True)
        point = MountPoint(type="bind", source="/s", destination="/d", rw=False, propagation="rprivate", spec=spec)
        found = mount(build(point), "/d")
        assert found is not None
        assert found.options == ["rbind", "rro", "rprivate"]

    def test_and_not_where_it_was_not_to(self, build: Builder) -> None:
        options = BindOptions(read_only_non_recursive=True, non_recursive=True)
        spec = DockerMount(type="bind", source="/s", target="/d", read_only=True, bind_options=options)
        found = mount(build(MountPoint(type="bind", source="/s", destination="/d", rw=False, spec=spec)), "/d")
        assert found is not None
        assert found.options == ["bind", "ro"]

    def test_contradicting_options_are_refused(self, build: Builder) -> None:
        options = BindOptions(read_only_force_recursive=True)
        spec = DockerMount(type="bind", source="/s", target="/d", bind_options=options)
        with pytest.raises(System, match="mount options conflict"):
            build(MountPoint(type="bind", source="/s", destination="/d", spec=spec))

    def test_a_shared_mount_needs_a_shared_source(self, build: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
        point = MountPoint(type="bind", source="/s", destination="/d", propagation="rshared")
        monkeypatch.setattr(oci, "_source_mount", lambda _: ("/", ["shared:5"]))
        linux = build(point).linux
        assert linux is not None
        assert linux.rootfs_propagation == "shared"
        monkeypatch.setattr(oci, "_source_mount", lambda _: ("/", []))
        with pytest.raises(System, match="path /s is mounted on / but it is not a shared mount"):
            build(point)

    @pytest.mark.parametrize(
        ("given", "merged"),
        [
            ([], []),
            (["noexec", "exec"], ["exec"]),
            (["exec", "noexec", "nosuid"], ["noexec", "nosuid"]),
            (["size=1m", "ro", "size=2m"], ["ro", "size=2m"]),
            (["rprivate", "shared"], ["shared"]),
            (["defaults"], []),
        ],
    )
    def test_of_contradicting_tmpfs_options_the_last_stays(self, given: list[str], merged: list[str]) -> None:
        assert oci.merge_tmpfs_options(given) == merged

    @pytest.mark.parametrize("option", ["foo", "size", "foo=bar", "context=x"])
    def test_an_unknown_tmpfs_option_is_refused(self, option: str) -> None:
        with pytest.raises(System, match=f'invalid tmpfs option "{option}"'):
            oci.merge_tmpfs_options([option])

    def test_a_tmpfs_mount_has_its_options(self, build: Builder) -> None:
        options = TmpfsOptions(size_bytes=1 << 20, mode=0o1770)
        spec = DockerMount(type="tmpfs", target="/t", tmpfs_options=options)
        found = mount(build(MountPoint(type="tmpfs", destination="/t", spec=spec)), "/t")
        assert found is not None
        assert "mode=1770" in found.options
        assert f"size={1 << 20}" in found.options

    def test_shared_memory_has_its_size_and_can_be_left_out(self, build: Builder) -> None:
        found = mount(build(shm_size=4096), "/dev/shm")
        assert found is not None
        assert "size=4096" in found.options
        assert mount(build(ipc_mode="none"), "/dev/shm") is None

    def test_the_names_are_read_only_in_a_read_only_container(self, build: Builder) -> None:
        build.sources["hosts"] = "/somewhere/hosts"
        found = mount(build(readonly_rootfs=True), "/etc/hosts")
        assert found is not None
        assert found.options == ["rbind", "rro", "rprivate"]

    def test_a_users_hosts_file_replaces_ours(self, build: Builder) -> None:
        build.sources["hosts"] = "/somewhere/hosts"
        spec = build(MountPoint(type="bind", source="/mine", destination="/etc/hosts"))
        assert [entry.source for entry in spec.mounts if entry.destination == "/etc/hosts"] == ["/mine"]

    def test_an_image_is_mounted_read_only(self, build: Builder) -> None:
        build.sources["images"] = {"/one": DirectoryRoot("/l"), "/two": OverlayRoot(lower=("/a", "/b:c"))}
        spec = build(
            MountPoint(type="image", source="i", destination="/one"),
            MountPoint(type="image", source="i", destination="/two"),
        )
        one, two = mount(spec, "/one"), mount(spec, "/two")
        assert one is not None
        assert two is not None
        assert {"ro", "rro"} & set(one.options)
        assert two.options == ["ro", "lowerdir+=/a", "lowerdir+=/b:c"]

    @pytest.mark.parametrize(
        ("subpath", "words"),
        [
            ("evil", "path concatenation escapes the base directory"),
            ("missing", "cannot access path .*/missing: .* no such file or directory"),
        ],
    )
    def test_a_subpath_stays_in_its_volume(self, build: Builder, tmp_path: Path, subpath: str, words: str) -> None:
        (tmp_path / "volume").mkdir()
        (tmp_path / "volume/evil").symlink_to("/etc")
        spec = DockerMount(type="volume", source="v", target="/d", volume_options=VolumeOptions(subpath=subpath))
        point = MountPoint(type="volume", source=str(tmp_path / "volume"), destination="/d", spec=spec)
        with pytest.raises(System, match=words):
            build(point)


class TestSeccomp:
    def test_it_can_be_switched_off(self, build: Builder) -> None:
        linux = build(security_opt=["seccomp=unconfined"]).linux
        assert linux is not None
        assert linux.seccomp is None

    def test_a_privileged_container_can_have_one(self, build: Builder) -> None:
        linux = build(privileged=True, security_opt=['seccomp={"defaultAction":"SCMP_ACT_LOG"}']).linux
        assert linux is not None
        assert linux.seccomp is not None
        assert linux.seccomp.default_action == "SCMP_ACT_LOG"

    def test_a_broken_profile_is_refused(self, build: Builder) -> None:
        with pytest.raises(System, match="Decoding seccomp profile failed"):
            build(security_opt=["seccomp={"])

    def test_a_kernel_without_it_takes_no_custom_profile(self, build: Builder) -> None:
        build.facts = Host(kernel=(6, 1))
        with pytest.raises(System, match="seccomp is not enabled in your kernel"):
            build(security_opt=['seccomp={"defaultAction":"SCMP_ACT_LOG"}'])
