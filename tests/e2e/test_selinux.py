"""SELinux, which this machine's kernel has not: Debian's in a virtual machine, enforcing a small policy
(``tests/selinux.py``)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import selinux, vm
from tests.hosts import DOCKER

pytestmark = [
    pytest.mark.skipif(vm.missing() is not None, reason=f"no virtual machine: {vm.missing()}"),
    pytest.mark.skipif(not selinux.COMPILER.exists(), reason=f"no secilc in {vm.TREE} (tools/vm-kernel fetches one)"),
    pytest.mark.timeout(600),
]

_SCRIPT = r"""
cat {policy} >/tmp/policy && dd if=/tmp/policy of=/sys/fs/selinux/load bs=1M 2>/dev/null || exit 1
echo
say enforcing 'cat /sys/fs/selinux/enforce'
labels() {{ for f in "$@"; do
    .venv/bin/python -c 'import os, sys; print(os.getxattr(sys.argv[1], "security.selinux", follow_symlinks=False)
        .rstrip(b"\0").decode())' $f; done; }}
mkdir /rw-data/data  # mprotect of a mapped file is checked against the layer's own label, not the overlay's
.venv/bin/python -c 'import os; os.setxattr("/rw-data/data", "security.selinux",
    b"system_u:object_r:container_ro_file_t:s0")'
begin --selinux-enabled
docker load -qi {image} || {{ cat /tmp/daemon.log; exit 1; }}
say enabled 'docker info --format "{{{{.SecurityOptions}}}}"'
mkdir -p /rw-data/tree/sub; echo word >/rw-data/tree/sub/file; ln -s /etc/shadow /rw-data/tree/link
docker run -d --name one -v /rw-data/tree:/t:Z -v vol:/v --tmpfs /tmpfs busybox sleep 1000 >/dev/null
say inspected 'docker inspect --format "{{{{.ProcessLabel}}}} {{{{.MountLabel}}}}" one'
say label 'docker exec one cat /proc/1/attr/current | tr -d "\0"'
say exec 'docker exec one cat /proc/self/attr/current | tr -d "\0"'
say mine 'labels /rw-data/tree /rw-data/tree/sub/file /rw-data/tree/link'
say target 'labels /etc/shadow | grep -c container'
say volume 'labels /rw-data/data/volumes/vol/_data'
say names 'labels /rw-data/data/containers/*/hosts'
say works 'docker exec one sh -c "cat /t/sub/file; touch /n /v/f /tmpfs/f /dev/shm/f /t/f"'
say queue 'docker exec one ls /dev/mqueue; echo $?'
say neighbour 'docker run --rm -v /rw-data/tree:/t busybox cat /t/sub/file'
say shared 'docker run --rm -v /rw-data/tree:/t:z busybox cat /t/sub/file'
say everybodys 'labels /rw-data/tree/sub/file'
mkdir /rw-data/hosts; echo word >/rw-data/hosts/file
say hosts 'docker run --rm -v /rw-data/hosts:/t busybox cat /t/file'
say disabled 'docker run --rm --security-opt label=disable -v /rw-data/hosts:/t busybox \
    cat /t/file /proc/self/attr/current'
say privileged 'docker run --rm --privileged busybox cat /proc/self/attr/current'
say system 'docker run --rm -v /etc:/t:Z busybox true'
say chosen 'docker run --rm --security-opt label=level:s0:c5,c6 --security-opt label=type:other_t \
    --security-opt label=filetype:other_file_t busybox cat /proc/self/attr/current'
say bad 'docker run --rm --security-opt label=nested busybox true'
say unknown 'docker run --rm --security-opt label=type:nosuch_t busybox true; echo $?'
printf 'FROM busybox\nRUN cat /proc/self/attr/current && cat /etc/hosts && touch /new\n' >/tmp/Dockerfile
docker build --no-cache -t built - </tmp/Dockerfile >/tmp/built 2>&1
say built 'grep -c -e system_r:container_t:s0: -e localhost /tmp/built; docker run --rm built ls /new'
say joined 'docker run --rm --pid container:one busybox cat /proc/self/attr/current'
tail -3 /tmp/daemon.log
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory, busybox: Path) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("vm")
    script = vm.daemon(DOCKER or "") + _SCRIPT.format(image=busybox, policy=selinux.compile_policy(folder))
    status, output = vm.run(script, folder, timeout=500, arguments="lsm=selinux selinux=1 enforcing=1")
    assert status == 0, output[-5000:]
    print(output[-6000:])
    return vm.answers(output.replace("\0", ""))


def test_a_container_and_its_execs_have_a_label_of_its_own(said: dict[str, str]) -> None:
    assert said["enforcing"] == "1"
    assert "name=selinux" in said["enabled"]
    process, mount = said["inspected"].split()
    level = process.removeprefix("system_u:system_r:container_t:s0:")
    assert len(level.split(",")) == 2
    assert mount == f"system_u:object_r:container_file_t:s0:{level}"
    assert said["label"] == said["exec"] == process


def test_it_can_use_what_is_labelled_for_it(said: dict[str, str]) -> None:
    assert said["works"] == "word"
    assert said["queue"] == "0"
    mount = said["inspected"].split()[1]
    assert said["mine"].split() == [mount] * 3
    assert said["names"] == mount
    assert said["volume"] == "system_u:object_r:container_file_t:s0"


def test_relabelling_follows_no_link(said: dict[str, str]) -> None:
    assert said["target"] == "0"


def test_files_of_the_host_and_of_other_containers_are_closed(said: dict[str, str]) -> None:
    assert "Permission denied" in said["hosts"]
    assert "Permission denied" in said["neighbour"]


def test_shared_content_is_everybodys(said: dict[str, str]) -> None:
    assert said["shared"] == "word"
    assert said["everybodys"] == "system_u:object_r:container_file_t:s0"


def test_a_container_without_a_label(said: dict[str, str]) -> None:
    assert said["disabled"].startswith("word system_u:system_r:kernel_t:")
    assert said["privileged"].startswith("system_u:system_r:kernel_t:")


def test_system_folders_are_not_relabelled(said: dict[str, str]) -> None:
    assert "error setting label on mount source '/etc': SELinux relabeling of /etc is not allowed" in said["system"]


def test_steps_of_builds_are_labelled(said: dict[str, str]) -> None:
    assert said["built"].split()[-1] == "/new"
    assert int(said["built"].split()[0]) >= 2


def test_labels_are_chosen(said: dict[str, str]) -> None:
    assert said["chosen"] == "system_u:system_r:other_t:s0:c5,c6"
    assert said["joined"] == said["label"]
    assert 'bad label option "nested"' in said["bad"]
    assert "invalid argument" in said["unknown"]
