"""What ``run``'s flags ask of the API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

from seacan.cli import create
from seacan.cli.command import Session, UsageError
from seacan.cli.flags import FlagError
from seacan.cli.run import create as create_command
from seacan.cli.run import start_status
from seacan.errors import InvalidParameter


def body(*arguments: str) -> dict[str, Any]:
    """The request that ``seacan create ARGUMENTS`` makes."""
    with click.Context(create_command, info_name="create", obj=Session()) as context:
        create_command.parse_args(context, list(arguments))
        options = dict(context.params)
        return create.request(context.args, options, context.meta["seacan.given"])


def host(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = body(*arguments, "busybox")["HostConfig"]
    return found


def test_flags_end_at_the_image() -> None:
    found = body("-t", "--rm", "busybox", "ls", "--rm=false", "-x")
    assert (found["Image"], found["Cmd"], found["Tty"]) == ("busybox", ["ls", "--rm=false", "-x"], True)
    assert found["HostConfig"]["AutoRemove"]


def test_streams_follow_from_interactive_and_attach() -> None:
    plain = body("busybox")
    assert (plain["AttachStdin"], plain["AttachStdout"], plain["OpenStdin"]) == (False, True, False)
    interactive = body("-i", "busybox")
    assert interactive["AttachStdin"] and interactive["StdinOnce"]
    only = body("-i", "-a", "STDERR", "busybox")
    assert (only["AttachStdin"], only["AttachStdout"], only["AttachStderr"]) == (False, False, True)
    with pytest.raises(InvalidParameter):
        body("-a", "nope", "busybox")


def test_the_environment_comes_from_flags_files_and_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "env"
    path.write_text("# comment\nA=1\n\nHOST\nNONE\nB=x y\n")
    monkeypatch.setenv("HOST", "here")
    monkeypatch.delenv("NONE", raising=False)
    found = body("--env-file", str(path), "-e", "C=2", "-e", "HOST", "-e", "NONE", "-e", "D=", "busybox")
    assert found["Env"] == ["A=1", "HOST=here", "B=x y", "C=2", "HOST=here", "D="]
    path.write_text("a b=1")
    with pytest.raises(InvalidParameter, match="contains whitespaces"):
        body("--env-file", str(path), "busybox")
    with pytest.raises(InvalidParameter, match="no such file"):
        body("--env-file", str(tmp_path / "none"), "busybox")


@pytest.mark.parametrize(
    ("spec", "bindings"),
    [
        ("80", {"80/tcp": [("", "")]}),
        ("8080:80", {"80/tcp": [("", "8080")]}),
        ("127.0.0.1:8080:80/udp", {"80/udp": [("127.0.0.1", "8080")]}),
        ("127.0.0.1::80", {"80/tcp": [("127.0.0.1", "")]}),
        ("[::1]:8080:80", {"80/tcp": [("::1", "8080")]}),
        ("8000-8001:80-81", {"80/tcp": [("", "8000")], "81/tcp": [("", "8001")]}),
        ("8000-8009:80", {"80/tcp": [("", "8000-8009")]}),
        ("80-81/sctp", {"80/sctp": [("", "")], "81/sctp": [("", "")]}),
    ],
)
def test_ports_are_published(spec: str, bindings: dict[str, list[tuple[str, str]]]) -> None:
    found = body("-p", spec, "busybox")
    assert {
        port: [(binding["HostIp"], binding["HostPort"]) for binding in items]
        for port, items in found["HostConfig"]["PortBindings"].items()
    } == bindings
    assert set(found["ExposedPorts"]) == set(bindings)


@pytest.mark.parametrize(
    "spec", ["", "x", "80:x", "1:2:3:4", "8000-8002:80-81", "80/icmp", "81-80", "70000", "80-90000"]
)
def test_bad_ports_are_refused(spec: str) -> None:
    with pytest.raises(InvalidParameter):
        body("-p", spec, "busybox")


def test_volumes_are_binds_or_anonymous(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    found = body("-v", "/anon", "-v", "name:/data", "-v", "./here:/there:ro", "busybox")
    assert found["Volumes"] == {"/anon": {}}
    assert found["HostConfig"]["Binds"] == ["name:/data", f"{tmp_path}/here:/there:ro"]
    for spec in (":/x", "a:", "a:b:c:d"):
        with pytest.raises(InvalidParameter):
            body("-v", spec, "busybox")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("type=bind,src=/a,dst=/b,ro", {"Type": "bind", "Source": "/a", "Target": "/b", "ReadOnly": True}),
        (
            "type=bind,source=/a,target=/b,readonly=false",
            {"Type": "bind", "Source": "/a", "Target": "/b", "ReadOnly": False},
        ),
        ("dst=/b", {"Type": "volume", "Target": "/b"}),
        (
            "type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=1777",
            {"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"SizeBytes": 1 << 20, "Mode": 0o1777}},
        ),
        (
            'type=volume,src=v,dst=/v,volume-nocopy,volume-opt=type=nfs,"volume-opt=o=addr=1,rw",volume-label=a=b',
            {
                "Type": "volume",
                "Source": "v",
                "Target": "/v",
                "VolumeOptions": {
                    "NoCopy": True,
                    "DriverConfig": {"Options": {"type": "nfs", "o": "addr=1,rw"}},
                    "Labels": {"a": "b"},
                },
            },
        ),
        (
            "type=bind,src=/a,dst=/b,bind-propagation=rslave,bind-recursive=writable",
            {
                "Type": "bind",
                "Source": "/a",
                "Target": "/b",
                "BindOptions": {"Propagation": "rslave", "ReadOnlyNonRecursive": True},
            },
        ),
        (
            "type=image,src=i,dst=/i,image-subpath=x",
            {"Type": "image", "Source": "i", "Target": "/i", "ImageOptions": {"Subpath": "x"}},
        ),
    ],
)
def test_mounts_are_read(spec: str, expected: dict[str, Any]) -> None:
    assert create.mount(spec) == expected


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("type=bind,src=/a", "target is required"),
        ("dst=/a,nope=1", "unexpected key 'nope'"),
        ("dst=/a,src", "must be a key=value pair"),
        ("type=tmpfs,dst=/a,bind-propagation=private", "cannot mix 'bind-*' options with mount type 'tmpfs'"),
        ("dst=/a,ro=maybe", "invalid value for ro: maybe"),
        ("type=tmpfs,dst=/a,tmpfs-mode=9", "invalid value for tmpfs-mode"),
        ("type=bind,src=/,dst=/a,bind-recursive=x", "invalid value for bind-recursive"),
    ],
)
def test_bad_mounts_are_refused(spec: str, message: str) -> None:
    with pytest.raises(InvalidParameter, match=message.replace("*", r"\*")):
        create.mount(spec)


def test_resources_have_the_apis_units() -> None:
    found = host("-m", "1g", "--memory-swap=-1", "--cpus=1.5", "--pids-limit=9", "--ulimit=nofile=1:2", "--shm-size=1m")
    assert (found["Memory"], found["MemorySwap"], found["NanoCpus"]) == (1 << 30, -1, 1_500_000_000)
    assert (found["PidsLimit"], found["ShmSize"]) == (9, 1 << 20)
    assert found["Ulimits"] == [{"Name": "nofile", "Soft": 1, "Hard": 2}]
    found = host(
        "--device-read-bps=/dev/sda:1mb", "--device-write-iops=/dev/sda:10", "--blkio-weight-device=/dev/sda:100"
    )
    assert found["BlkioDeviceReadBps"] == [{"Path": "/dev/sda", "Rate": 1 << 20}]
    assert found["BlkioDeviceWriteIOps"] == [{"Path": "/dev/sda", "Rate": 10}]
    assert found["BlkioWeightDevice"] == [{"Path": "/dev/sda", "Weight": 100}]


def test_devices_may_be_renamed_and_restricted() -> None:
    def device(spec: str) -> tuple[str, ...]:
        return tuple(create.device(spec).values())

    assert device("/dev/a") == ("/dev/a", "/dev/a", "rwm")
    assert device("/dev/a:/dev/b") == ("/dev/a", "/dev/b", "rwm")
    assert device("/dev/a:r") == ("/dev/a", "/dev/a", "r")
    assert device("/dev/a:/dev/b:rw") == ("/dev/a", "/dev/b", "rw")
    with pytest.raises(InvalidParameter):
        create.device("a:b:c:d")


def test_security_profiles_are_read_in(tmp_path: Path) -> None:
    profile = tmp_path / "p.json"
    profile.write_text('{\n "defaultAction": "SCMP_ACT_ALLOW" }')
    found = host(
        f"--security-opt=seccomp={profile}", "--security-opt=no-new-privileges", "--security-opt=systempaths=unconfined"
    )
    assert found["SecurityOpt"] == ['seccomp={"defaultAction":"SCMP_ACT_ALLOW"}', "no-new-privileges"]
    assert (found["MaskedPaths"], found["ReadonlyPaths"]) == ([], [])
    assert host("--security-opt=seccomp=unconfined")["SecurityOpt"] == ["seccomp=unconfined"]
    with pytest.raises(InvalidParameter, match="opening seccomp profile"):
        host("--security-opt=seccomp=/no/such/file")


def test_networks_carry_their_endpoints() -> None:
    assert host()["NetworkMode"] == "default"
    found = body("--network=a", "--network-alias=x", "--ip=10.0.0.2", "busybox")
    assert found["HostConfig"]["NetworkMode"] == "a"
    assert found["NetworkingConfig"]["EndpointsConfig"] == {
        "a": {"Aliases": ["x"], "IPAMConfig": {"IPv4Address": "10.0.0.2"}}
    }
    found = body("--network=name=a,alias=x,ip=10.0.0.2,gw-priority=5", "--network=b", "busybox")
    assert list(found["NetworkingConfig"]["EndpointsConfig"]) == ["a", "b"]
    assert found["NetworkingConfig"]["EndpointsConfig"]["a"]["GwPriority"] == 5
    assert host("--net=container:abc")["NetworkMode"] == "container:abc"
    with pytest.raises(InvalidParameter, match="specified multiple times"):
        host("--network=a", "--network=a")


def test_healthchecks_are_shell_commands() -> None:
    found = body("--health-cmd=true", "--health-interval=5s", "--health-retries=2", "busybox")["Healthcheck"]
    assert (found["Test"], found["Interval"], found["Retries"]) == (["CMD-SHELL", "true"], 5 * 10**9, 2)
    assert body("--no-healthcheck", "busybox")["Healthcheck"] == {"Test": ["NONE"]}
    assert body("busybox")["Healthcheck"] is None
    with pytest.raises(InvalidParameter, match="conflicts"):
        body("--no-healthcheck", "--health-cmd=x", "busybox")


def test_what_was_not_asked_for_is_left_to_the_daemon() -> None:
    found = host()
    assert "Init" not in found and "MaskedPaths" not in found
    assert found["Binds"] is None and found["MemorySwappiness"] == -1
    assert host("--init")["Init"] is True
    assert host("--init=false")["Init"] is False


def test_an_empty_entrypoint_resets_the_images() -> None:
    assert body("--entrypoint=", "busybox")["Entrypoint"] == [""]
    assert body("--entrypoint=sh", "busybox", "-c", "x")["Entrypoint"] == ["sh"]
    assert body("busybox")["Entrypoint"] is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--restart=always", "--rm"], "cannot specify both --restart and --rm"),
        (["--restart=on-failure:x"], "maximum retry count must be an integer"),
        (["--memory-swappiness=101"], "Valid memory swappiness range is 0-100"),
        (["--add-host=x"], "bad format for add-host"),
        (["--gpus=nope=1"], "unexpected key 'nope'"),
    ],
)
def test_contradictions_are_refused(flags: list[str], message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        host(*flags)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "x", "busybox"], 'invalid argument "x" for "-m, --memory" flag: invalid size: \'x\''),
        (["--cpus=x", "busybox"], 'invalid argument "x" for "--cpus" flag'),
        (["--pids-limit=x", "busybox"], 'invalid argument "x" for "--pids-limit" flag: strconv.ParseInt'),
    ],
)
def test_bad_values_are_told_with_their_flag(arguments: list[str], message: str) -> None:
    with pytest.raises(FlagError) as failure:
        body(*arguments)
    assert message in failure.value.message


def test_an_image_is_needed() -> None:
    with pytest.raises(UsageError, match="requires at least 1 argument"):
        body("-it")


def test_a_start_that_fails_has_dockers_status() -> None:
    assert start_status('exec: "nope": executable file not found in $PATH') == 127
    assert start_status("exec: /etc/passwd: permission denied") == 126
    assert start_status("is a directory") == 126
    assert start_status("port is already allocated") == 125


def test_full_names_of_cdi_devices_are_device_requests() -> None:
    paths, names = create.devices(["/dev/a=b:/dev/c", "vendor.com/net=x", "/dev/null"])
    assert (paths, names) == (["/dev/a=b:/dev/c", "/dev/null"], ["vendor.com/net=x"])
    gpu, cdi = create.device_requests(["all"], names)
    assert (gpu["Count"], cdi["Driver"], cdi["DeviceIDs"]) == (-1, "cdi", ["vendor.com/net=x"])


def test_gpus_are_device_requests() -> None:
    assert create.gpus("all")["Count"] == -1
    assert create.gpus('"device=0,1"')["DeviceIDs"] == ["0", "1"]
    assert json.dumps(create.gpus("2,capabilities=compute")["Capabilities"]) == '[["compute", "gpu"]]'
