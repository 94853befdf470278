"""Reading and writing the OCI runtime specification."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from seacan.errors import InvalidParameter
from seacan.runtime import spec


def test_names_that_are_not_plain_camel_case_are_the_specifications() -> None:
    resources = spec.decode_resources(
        b'{"memory":{"kernelTCP":1,"disableOOMKiller":true},"network":{"classID":7},'
        b'"blockIO":{"throttleReadIOPSDevice":[{"major":8,"minor":0,"rate":5}]}}'
    )
    assert resources.memory == spec.LinuxMemory(kernel_tcp=1, disable_oom_killer=True)
    assert resources.network == spec.LinuxNetwork(class_id=7)
    assert resources.block_io == spec.LinuxBlockIO(throttle_read_iops_device=[spec.LinuxThrottleDevice(8, 0, 5)])


def test_null_means_not_given_as_in_go() -> None:
    found = spec.decode_spec(b'{"ociVersion":"1.0.2","process":{"args":null,"cwd":"/"},"mounts":null,"linux":null}')
    assert found == spec.Spec("1.0.2", process=spec.Process())


def test_what_the_specification_requires_is_written_even_if_it_is_the_default() -> None:
    assert msgspec.json.decode(spec.encode(spec.Process(args=["true"]))) == {
        "cwd": "/",
        "args": ["true"],
        "user": {"uid": 0, "gid": 0},
    }


def test_a_written_configuration_reads_back_the_same() -> None:
    written = spec.Spec(
        "1.2.1",
        process=spec.Process(args=["a"], io_priority=spec.IOPriority("IOPRIO_CLASS_BE", 4), rlimits=[]),
        mounts=[spec.Mount("/a", uid_mappings=[spec.IDMapping(0, 1, 2)])],
        linux=spec.Linux(resources=spec.LinuxResources(rdma={"mlx": spec.LinuxRdma(1, 2)}, unified={"a": "b"})),
    )
    assert spec.decode_spec(spec.encode(written)) == written


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "config.json is not valid JSON"),
        (b"[]", "config.json does not follow the OCI runtime specification"),
        (b'{"ociVersion":"1","process":{"user":{"uid":"x"}}}', r"Expected `int`, got `str` - at `\$.process.user.uid`"),
    ],
)
def test_a_bad_configuration_is_refused_with_its_place(data: bytes, message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        spec.decode_spec(data)


def _ordinary() -> spec.Spec:
    namespaces = [spec.LinuxNamespace(type=kind) for kind in ("pid", "mount", "ipc", "uts", "network")]
    return spec.Spec("1.2.0", linux=spec.Linux(namespaces=namespaces, cgroups_path="/seacan/one"))


def test_an_ordinary_container_makes_itself() -> None:
    assert spec.direct(_ordinary())


def _joined(one: spec.Spec) -> None:
    assert one.linux is not None
    one.linux.namespaces[0].path = "/proc/1/ns/pid"


def _mapped_user(one: spec.Spec) -> None:
    assert one.linux is not None
    one.linux.namespaces.append(spec.LinuxNamespace(type="user"))


def _hooked(one: spec.Spec) -> None:
    one.hooks = spec.Hooks(poststop=[spec.Hook(path="/bin/true")])


def _mapped_mount(one: spec.Spec) -> None:
    one.mounts.append(spec.Mount(destination="/m", source="/", options=["rbind", "idmap"]))


def _filtered(one: spec.Spec) -> None:
    assert one.linux is not None
    one.linux.seccomp = spec.LinuxSeccomp(default_action="SCMP_ACT_ALLOW")


@pytest.mark.parametrize("change", [_joined, _mapped_user, _hooked, _mapped_mount, _filtered])
def test_a_container_that_needs_somebody_outside_does_not(change: Callable[[spec.Spec], None]) -> None:
    one = _ordinary()
    change(one)
    assert not spec.direct(one)
