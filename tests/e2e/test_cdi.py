"""CDI devices through the docker client: what a file describes is in the container, and what is wrong is said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts import Daemon, Host

YAML = """\
cdiVersion: "0.7.0"
kind: vendor.com/board
containerEdits:
  env: [BOARD=yes]
  hooks:
  - hookName: createContainer
    path: /bin/sh
    args: [sh, -c, "cat > {folder}/state.json"]
devices:
- name: one
  containerEdits:
    env: [WHICH=one]
    deviceNodes:
    - {{path: /dev/board1, hostPath: /dev/zero}}
    mounts:
    - {{hostPath: {folder}/firmware, containerPath: /lib/firmware, options: [rbind, ro]}}
    additionalGids: [4711]
- name: two
  containerEdits:
    deviceNodes:
    - {{path: /dev/board2, hostPath: /dev/nosuch}}
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    low, high = tmp_path_factory.mktemp("etc"), tmp_path_factory.mktemp("run")
    (low / "firmware").mkdir()
    (low / "firmware/blob").write_text("firmware\n")
    (low / "board.yaml").write_text(YAML.format(folder=low))
    (low / "bad.json").write_text('{"cdiVersion": "0.3.0", "kind": "vendor.com/bad", "devices": []}')
    gpus = [{"name": name, "containerEdits": {"env": [f"GPU_{name}=here"]}} for name in ("0", "all")]
    (low / "gpu.json").write_text(json.dumps({"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": gpus}))
    return low, high


@pytest.fixture(scope="module")
def cdi(folder: Path, busybox: Path, folders: tuple[Path, Path]) -> Iterator[Daemon]:
    host = Host("cdi")
    daemon = Daemon(folder / "cdi", host, ["--bridge=none", *(f"--cdi-spec-dir={one}" for one in folders)])
    try:
        daemon.start().docker("load", "-i", str(busybox))
        yield daemon
    finally:
        daemon.close()
        host.close()


def run(daemon: Daemon, *argv: str) -> str:
    done = daemon.docker("run", "--rm", "--network=none", *argv, check=False)
    return done.stdout + done.stderr


def test_a_device_comes_with_all_that_it_needs(cdi: Daemon, folders: tuple[Path, Path]) -> None:
    script = "echo $BOARD $WHICH; head -c1 /dev/board1 | od -An -tx1; cat /lib/firmware/blob; id -G"
    argv = ("--device=vendor.com/board=one", "-e", "WHICH=none", "busybox", "sh", "-c", script)
    assert run(cdi, *argv).splitlines()[:3] == ["yes one", " 00", "firmware"]
    assert "4711" in run(cdi, *argv).splitlines()[3].split()
    state = json.loads((folders[0] / "state.json").read_text())
    assert (state["status"], len(state["id"])) == ("creating", 64)
    shown = run(cdi, "--device=vendor.com/board=one", "busybox", "touch", "/lib/firmware/x")
    assert "Read-only file system" in shown


def test_what_was_asked_for_is_remembered_and_looked_up_at_every_start(cdi: Daemon, folders: tuple[Path, Path]) -> None:
    later = folders[1] / "later.json"
    device = "vendor.com/late=x"
    words = f"Error response from daemon: CDI device injection failed: unresolvable CDI devices {device}\n"
    cdi.docker("create", "--name", "late", "--network=none", f"--device={device}", "busybox", "env")
    assert cdi.inspect("late")["HostConfig"]["DeviceRequests"] == [
        {"Driver": "cdi", "Count": 0, "DeviceIDs": [device], "Capabilities": None, "Options": None}
    ]
    done = cdi.docker("start", "-a", "late", check=False)
    assert (done.returncode, done.stderr.startswith(words)) == (1, True), done.stderr
    edits = {"env": ["LATE=1"]}
    devices = [{"name": "x", "containerEdits": edits}]
    later.write_text(json.dumps({"cdiVersion": "0.3.0", "kind": "vendor.com/late", "devices": devices}))
    assert "LATE=1" in cdi.out("start", "-a", "late").splitlines()
    cdi.docker("rm", "late")
    later.unlink()


def test_gpus_come_by_cdi(cdi: Daemon) -> None:
    assert "GPU_all=here" in run(cdi, "--gpus=all", "busybox", "env").splitlines()
    assert "GPU_0=here" in run(cdi, "--gpus=device=0", "busybox", "env").splitlines()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (
            ("--device=vendor.com/board=two",),
            'CDI device injection failed: failed to inject devices: failed to stat CDI host device "/dev/nosuch": '
            "no such file or directory",
        ),
        (
            ("--device=vendor.com/board=3", "--device=other.com/thing=x"),
            "CDI device injection failed: unresolvable CDI devices vendor.com/board=3, other.com/thing=x",
        ),
        (
            ("--gpus=driver=cdi,count=1",),
            "unexpected count in CDI device request",
        ),
        (
            ("--gpus=driver=fpga,capabilities=compute",),
            'could not select device driver "fpga" with capabilities: [[compute gpu]]',
        ),
    ],
)
def test_what_cannot_be_had_is_said_in_dockerds_words(cdi: Daemon, argv: tuple[str, ...], words: str) -> None:
    assert f"Error response from daemon: {words}\n" in run(cdi, *argv, "busybox", "true")


def test_info_tells_folders_devices_and_bad_files(cdi: Daemon, folders: tuple[Path, Path]) -> None:
    info = json.loads(cdi.request("GET", "/v1.50/info")[1])
    assert info["CDISpecDirs"] == [str(one) for one in folders]
    assert info["DiscoveredDevices"] == [
        {"Source": "cdi", "ID": f"{kind}={name}"}
        for kind, name in (
            ("nvidia.com/gpu", "0"),
            ("nvidia.com/gpu", "all"),
            ("vendor.com/board", "one"),
            ("vendor.com/board", "two"),
        )
    ]
    bad = f"CDI: Error associated with spec file {folders[0]}/bad.json: failed to load CDI Spec invalid CDI Spec: "
    assert f"{bad}invalid spec, no devices" in info["Warnings"]
    assert "DiscoveredDevices" not in json.loads(cdi.request("GET", "/v1.49/info")[1])
