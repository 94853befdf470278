"""AppArmor, which this machine's kernel has not: Debian's in a virtual machine. There also: ``--userns-remap`` on Linux
6.1, whose overlayfs takes no layers that are mounted nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import vm
from tests.hosts import DOCKER

_PARSER = vm.TREE / vm.POLICIES / "sbin/apparmor_parser"

pytestmark = [
    pytest.mark.skipif(vm.missing() is not None, reason=f"no virtual machine: {vm.missing()}"),
    pytest.mark.skipif(not _PARSER.exists(), reason=f"no apparmor_parser in {vm.TREE} (tools/vm-kernel fetches one)"),
    pytest.mark.timeout(600),
]

_ALL = "--userns=host --cap-add ALL --security-opt seccomp=unconfined --security-opt systempaths=unconfined"
_SCRIPT = r"""
export PATH=$PATH:{parser}
echo 1:100000:65536 | tee /etc/subuid >/etc/subgid
begin --userns-remap=1:1
docker load -qi {image} || {{ cat /tmp/daemon.log; exit 1; }}
say enforced 'docker info --format "{{{{.SecurityOptions}}}}"'
docker run -d --name one busybox sleep 1000 >/dev/null
say label 'docker exec one cat /proc/1/attr/current /proc/self/attr/current'
say inspected 'docker inspect --format "{{{{.AppArmorProfile}}}}" one'
docker run --rm {all} --tmpfs /t busybox sh -c '
    try() {{ echo "$1: $(eval "$2" 2>&1 | tr "\n" " ")"; }}
    try mount "mkdir /m; mount -t tmpfs tmpfs /m"
    try sysctl "cat /proc/sys/kernel/panic >/proc/sys/kernel/panic"
    try sysrq "echo h >/proc/sysrq-trigger"
    try kcore "head -c 1 /proc/kcore"
    try shm "cat /proc/sys/kernel/shmmax >/proc/sys/kernel/shmmax && echo written"
    try umount "umount /t && echo unmounted"'
say free 'docker run --rm {all} --security-opt apparmor=unconfined busybox \
    sh -c "mkdir /m; mount -t tmpfs tmpfs /m && cat /proc/self/attr/current"'
say unknown 'docker run --rm --security-opt apparmor=nosuch busybox true; echo $?'
echo 'profile mine flags=(attach_disconnected,mediate_deleted) {{ file, deny /etc/hosts r, }}' | apparmor_parser -Kr
say own 'docker run --rm --security-opt apparmor=mine busybox cat /proc/self/attr/current /etc/hosts; echo $?'
echo 'profile docker-default {{ }}' | apparmor_parser -R
printf 'FROM busybox\nRUN cat /proc/self/attr/current && touch /etc/hosts /new\n' >/tmp/Dockerfile
docker build --no-cache - </tmp/Dockerfile >/tmp/built 2>&1
say built 'grep -c "docker-default (enforce)" /tmp/built'
say remapped 'docker run --rm -v vol:/v busybox sh -c "
    chown 3:4 /bin/busybox /v; rm /bin/ls; stat -c %u:%g /bin /bin/busybox /v /etc/hosts
    cat /proc/self/uid_map /proc/self/attr/current"'
say mounts 'grep -c seacan /proc/self/mountinfo'
cat /tmp/built; tail -3 /tmp/daemon.log
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory, busybox: Path) -> dict[str, str]:
    script = vm.daemon(DOCKER or "") + _SCRIPT.format(image=busybox, parser=_PARSER.parent, all=_ALL)
    status, output = vm.run(script, tmp_path_factory.mktemp("vm"), timeout=500, arguments="lsm=apparmor apparmor=1")
    assert status == 0, output[-5000:]
    print(output[-6000:])
    return vm.answers(output)


def test_containers_execs_and_builds_are_confined(said: dict[str, str]) -> None:
    assert "name=apparmor" in said["enforced"]
    assert said["label"] == "docker-default (enforce) docker-default (enforce)"
    assert said["inspected"] == "docker-default"
    assert said["built"] == "1", "also after somebody has unloaded the profile"


@pytest.mark.parametrize("check", ["mount", "sysctl", "sysrq", "kcore"])
def test_what_the_profile_denies_no_capability_gives(said: dict[str, str], check: str) -> None:
    assert "ermission denied" in said[check], said[check]


def test_what_it_allows_is_allowed(said: dict[str, str]) -> None:
    assert said["umount"] == "unmounted"
    assert said["shm"] == "written"


def test_profiles_are_chosen(said: dict[str, str]) -> None:
    assert said["free"] == "unconfined"
    assert said["own"] == "mine (enforce) cat: can't open '/etc/hosts': Permission denied 1"


def test_a_profile_that_is_not_loaded_is_refused(said: dict[str, str]) -> None:
    assert (
        "unable to apply apparmor profile: apparmor failed to apply profile: "
        "write /proc/self/attr/apparmor/exec: no such file or directory"
    ) in said["unknown"]
    assert said["unknown"].endswith("125") or said["unknown"].endswith("127")


def test_users_are_remapped_on_an_older_kernel(said: dict[str, str]) -> None:
    assert said["remapped"].split() == [
        "0:0", "3:4", "3:4", "0:0", "0", "100000", "65536", "docker-default", "(enforce)",
    ]  # fmt: skip
    assert said["mounts"] == "0"
