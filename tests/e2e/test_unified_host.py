"""A host with cgroup v2 alone and an older kernel (a virtual machine): limits, devices, freezer, OOM, isolation."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests import vm
from tests.hosts import DOCKER

pytestmark = [
    pytest.mark.skipif(vm.missing() is not None, reason=f"no virtual machine: {vm.missing()}"),
    pytest.mark.timeout(600),
]

# Each check prints one line, "name: value"; the machine is slow, so one boot serves them all.
_SCRIPT = r"""
begin
docker load -qi {image} || {{ cat /tmp/daemon.log; exit 1; }}
say hello 'docker run --rm busybox echo hi'
say version 'docker info --format "{{{{.CgroupVersion}}}} {{{{.CgroupDriver}}}}"'
say warned 'docker info --format "{{{{.Warnings}}}} {{{{.SecurityOptions}}}}"'
say memory 'docker run --rm --memory 64m --memory-swap 64m busybox \
    sh -c "cd /sys/fs/cgroup; cat memory.max memory.swap.max"'
say pids 'docker run --rm --pids-limit 17 busybox cat /sys/fs/cgroup/pids.max'
say cpu 'docker run --rm --cpus 0.5 --cpu-shares 512 busybox cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/cpu.weight'
say readonly 'docker run --rm busybox mkdir /sys/fs/cgroup/x; echo $?'
say device 'docker run --rm --cap-add MKNOD busybox sh -c "mknod /tmp/mem c 1 1 && cat /tmp/mem"; echo $?'
say null 'docker run --rm busybox sh -c "echo x > /dev/null; echo $?"'
say allowed 'docker run --rm --device-cgroup-rule "c 1:1 r" --cap-add MKNOD --cap-add SYS_RAWIO busybox \
    sh -c "mknod /tmp/mem c 1 1 && dd if=/tmp/mem bs=1 count=1 2>/dev/null | wc -c"'
docker run -d --name oom --memory 20m --memory-swap 20m busybox sh -c 'x=a; while :; do x=$x$x; done' >/dev/null
docker wait oom >/dev/null
say oom 'docker inspect -f "{{{{.State.OOMKilled}}}} {{{{.State.ExitCode}}}}" oom'
docker run -d --name paused busybox sleep 1000 >/dev/null
docker pause paused >/dev/null
say frozen 'cat /sys/fs/cgroup/*/$(docker inspect -f "{{{{.Id}}}}" paused)/cgroup.freeze'
docker unpause paused >/dev/null
say exec 'docker exec paused echo executed'
docker update --memory 100m --memory-swap 100m paused >/dev/null
say updated 'docker exec paused cat /sys/fs/cgroup/memory.max'
say network 'docker run --rm busybox sh -c "ip -o -4 addr show eth0 | wc -l"'
docker rm -f oom paused >/dev/null

# Drivers that this machine's kernel may lack: VLANs of a parent, ipvlan. A cable leads to a neighbour in both VLANs.
ip netns add neighbour
ip link add wire0 type veth peer name wire1 netns neighbour
ip link set wire0 up; ip -n neighbour link set wire1 up
for vlan in 10 20; do
    ip -n neighbour link add link wire1 name wire1.$vlan type vlan id $vlan
    ip -n neighbour addr add 10.$vlan.0.254/24 dev wire1.$vlan
    ip -n neighbour link set wire1.$vlan up
done
answers() {{ docker run --rm --network $1 busybox sh -c "sleep 1; ping -c1 -W5 $2 >/dev/null && echo yes || echo no"; }}
say macvlan_made 'docker network create -d macvlan --subnet 10.10.0.0/24 -o parent=wire0.10 tagged >/dev/null; echo $?'
say macvlan_reaches 'answers tagged 10.10.0.254'
say macvlan_apart 'answers tagged 10.20.0.254'
say macvlan_parent 'ip -d -o link show wire0.10 | grep -o "vlan protocol 802.1Q id 10"'
docker network rm tagged >/dev/null
say macvlan_gone 'ip link show wire0.10 >/dev/null 2>&1; echo $?'
say ipvlan_made 'docker network create -d ipvlan --subnet 10.20.0.0/24 -o parent=wire0.20 flat >/dev/null; echo $?'
say ipvlan_reaches 'answers flat 10.20.0.254'
docker run -d --name flat --network flat busybox sleep 1000 >/dev/null
say ipvlan_inside 'docker exec flat ip -o link show eth0 | grep -o "ether [0-9a-f:]*"; cat /sys/class/net/wire0/address'
say ipvlan_told 'docker inspect -f "{{{{json .NetworkSettings.Networks.flat.MacAddress}}}}" flat'
say ipvlan_neighbours "answers flat $(docker inspect -f '{{{{.NetworkSettings.Networks.flat.IPAddress}}}}' flat)"
say ipvlan_mac 'docker run --rm --network flat --mac-address 02:00:00:00:00:01 busybox true'
docker rm -f flat >/dev/null; docker network rm flat >/dev/null
say ipvlan_gone 'ip link show wire0.20 >/dev/null 2>&1; echo $?'
for mode in l3 l3s; do
    docker network create -d ipvlan --subnet 10.31.0.0/24 -o parent=wire0 -o ipvlan_mode=$mode one >/dev/null
    docker run -d --name first --network one busybox sleep 1000 >/dev/null
    address=$(docker inspect -f '{{{{.NetworkSettings.Networks.one.IPAddress}}}}' first)
    say ipvlan_$mode "answers one $address"
    say ipvlan_${{mode}}_route 'docker exec first ip route | head -1'
    docker rm -f first >/dev/null; docker network rm one >/dev/null
done
docker network create -d ipvlan --subnet 10.32.0.0/24 --internal inner >/dev/null
docker run -d --name first --network inner --ip 10.32.0.9 busybox sleep 1000 >/dev/null
say ipvlan_inner 'answers inner 10.32.0.9'
docker rm -f first >/dev/null; docker network rm inner >/dev/null
say links_left 'ip -o link | grep -cE "wire0[.]|dm-|ipvl"'
say left 'ls -d /sys/fs/cgroup/docker/*/ /sys/fs/cgroup/seacan/*/ 2>/dev/null | wc -l'
kill $!; wait $!
tail -3 /tmp/daemon.log
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory, busybox: Path) -> dict[str, str]:
    script = vm.daemon(DOCKER or "") + _SCRIPT.format(image=busybox)
    status, output = vm.run(script, tmp_path_factory.mktemp("vm"), timeout=500)
    assert status == 0, output[-5000:]
    found = vm.answers(output)
    print(output[-3000:])
    return found


def test_containers_run(said: dict[str, str]) -> None:
    assert said["hello"] == "hi"
    assert said["version"] == "2 cgroupfs"
    assert said["exec"] == "executed"
    assert said["network"] == "1"


@pytest.mark.skipif(shutil.which("apparmor_parser") is not None, reason="the machine has an apparmor_parser")
def test_a_host_that_cannot_load_a_profile_says_so(said: dict[str, str]) -> None:
    """Debian's kernel has AppArmor switched on; what loads profiles is a package that need not be there."""
    assert "AppArmor is enabled, but containers go without: apparmor_parser is not installed" in said["warned"]
    assert "name=apparmor" not in said["warned"]


def test_limits_are_written(said: dict[str, str]) -> None:
    assert said["memory"] == "67108864 0"
    assert said["pids"] == "17"
    assert said["cpu"] == "50000 100000 20"
    assert said["updated"] == "104857600"


def test_devices_are_filtered_by_a_program(said: dict[str, str]) -> None:
    assert "Operation not permitted" in said["device"]
    assert said["device"].endswith("1")
    assert said["allowed"] == "1"


def test_cgroup_is_read_only_inside(said: dict[str, str]) -> None:
    assert said["readonly"].endswith("Read-only file system 1")


def test_oom_kill_is_seen(said: dict[str, str]) -> None:
    assert said["oom"] == "true 137"


def test_freezer_works(said: dict[str, str]) -> None:
    assert said["frozen"] == "1"


def test_vlans_of_a_parent_are_made_used_and_removed(said: dict[str, str]) -> None:
    assert said["macvlan_made"] == "0"
    assert said["macvlan_reaches"] == "yes"
    assert said["macvlan_apart"] == "no"
    assert said["macvlan_parent"] == "vlan protocol 802.1Q id 10"
    assert said["macvlan_gone"] == said["ipvlan_gone"] == "1"


def test_containers_of_ipvlan_networks_share_their_parents_mac(said: dict[str, str]) -> None:
    assert said["ipvlan_made"] == "0"
    assert said["ipvlan_reaches"] == said["ipvlan_neighbours"] == "yes"
    ether, inside, parent = said["ipvlan_inside"].split()
    assert (ether, inside) == ("ether", parent)
    assert said["ipvlan_told"] == '""'
    assert "ipvlan interfaces do not support custom mac address assignment" in said["ipvlan_mac"]


@pytest.mark.parametrize("mode", ["l3", "l3s"])
def test_ipvlan_can_route(said: dict[str, str], mode: str) -> None:
    assert said[f"ipvlan_{mode}"] == "yes"
    assert said[f"ipvlan_{mode}_route"].startswith("default dev eth0")


def test_ipvlan_without_a_parent_is_for_its_containers_alone(said: dict[str, str]) -> None:
    assert said["ipvlan_inner"] == "yes"


def test_no_link_of_a_network_is_left(said: dict[str, str]) -> None:
    assert said["links_left"] == "0"


def test_no_cgroup_is_left(said: dict[str, str]) -> None:
    assert said["left"] == "0"
