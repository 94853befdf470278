"""Volumes on a file server: Debian's kernel in a virtual machine is both, NFS server and client, over loopback."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import vm
from tests.hosts import DOCKER

pytestmark = [
    pytest.mark.skipif(vm.missing() is not None, reason=f"no virtual machine: {vm.missing()}"),
    pytest.mark.timeout(600),
]

# What rpc.mountd would answer is put into the kernel's caches beforehand (Documentation/filesystems/nfs/rpc-cache.rst).
_SERVER = r"""
modprobe nfsd; modprobe nfsv4
mount -t nfsd nfsd /proc/fs/nfsd
mkdir /rw-data/srv /rw-data/srv/data /rw-data/srv/empty; echo served >/rw-data/srv/data/file
never=2147483647
echo "nfsd 127.0.0.1 $never all" >/proc/net/rpc/auth.unix.ip/channel
echo "all /rw-data/srv $never 9234 65534 65534 0" >/proc/net/rpc/nfsd.export/channel
echo "all 1 \\x00000000 $never /rw-data/srv" >/proc/net/rpc/nfsd.fh/channel
echo "-2 -3 +4 +4.1 +4.2" >/proc/fs/nfsd/versions
echo 10 >/proc/fs/nfsd/nfsv4gracetime; echo 10 >/proc/fs/nfsd/nfsv4leasetime
echo 4 >/proc/fs/nfsd/threads
echo Y >/proc/fs/nfsd/v4_end_grace 2>/dev/null  # fails where there is nothing to wait for
echo 127.0.0.1 server >>/etc/hosts
"""
_SCRIPT = r"""
mounts() { awk '$3 ~ /^nfs4?$/ && $2 ~ /volumes/ {print $4}' /proc/mounts; }
volume() { name=$1 device=$2; shift 2; docker volume create -o type=nfs -o device=:$device -o "o=$*" $name; }
run() { docker run --rm --network none "$@"; }
begin --bridge=none
docker load -qi {image} || { cat /tmp/daemon.log; exit 1; }
say created 'volume one /data addr=server,rw,nfsvers=4.2; volume bare / addr=127.0.0.1,nfsvers=4.2; mounts'
say read 'run -v one:/v busybox cat /v/file'
say afterwards mounts
say written 'run -v one:/v busybox sh -c "echo new >/v/new"; cat /rw-data/srv/data/new'
docker run -d --name first --network none -v one:/v busybox sleep 1000 >/dev/null
docker run -d --name second --network none -v one:/w:ro busybox sleep 1000 >/dev/null
say shared 'docker exec first sh -c "echo x >/v/x"; docker exec second cat /w/x; docker exec second touch /w/y'
say server 'mounts | grep -o ",addr=[^,]*"'
say count 'mounts | wc -l'
kill -9 $!
begin --bridge=none
say survives 'docker exec first cat /v/file; mounts | wc -l'
docker rm -f first >/dev/null
say one_left 'mounts | wc -l'
docker rm -f second >/dev/null
say none_left 'mounts | wc -l; docker volume rm one bare'
volume empty /empty addr=127.0.0.1,nfsvers=4.2 >/dev/null
say copied 'run -v empty:/etc busybox true; ls /rw-data/srv/empty; mounts'
volume frozen /data addr=127.0.0.1,nfsvers=4.2,ro >/dev/null
say frozen 'run -v frozen:/v busybox touch /v/never'
say inline 'run \
    --mount "type=volume,dst=/v,volume-opt=type=nfs,volume-opt=device=:/data,\"volume-opt=o=addr=server,nfsvers=4.2\"" \
    busybox cat /v/file'
volume missing /nosuch addr=127.0.0.1,nfsvers=4.2 >/dev/null
say missing 'run -v missing:/v busybox true'
volume closed /data addr=127.0.0.1,nfsvers=4.2,port=1,retry=0 >/dev/null
say closed 'run -v closed:/v busybox true'
say unknown 'volume unknown /data addr=nosuch.invalid,nfsvers=4.2; run -v unknown:/v busybox true'
say end 'mounts; docker ps -aq'
tail -3 /tmp/daemon.log
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory, busybox: Path) -> dict[str, str]:
    script = vm.daemon(DOCKER or "") + _SERVER + _SCRIPT.replace("{image}", str(busybox))
    status, output = vm.run(script, tmp_path_factory.mktemp("vm"), timeout=500)
    assert status == 0, output[-5000:]
    print(output[-6000:])
    return vm.answers(output)


def test_a_volume_is_mounted_by_its_first_container_and_unmounted_after_its_last(said: dict[str, str]) -> None:
    assert said["created"] == "one bare"
    assert said["read"] == "served"
    assert said["afterwards"] == ""
    assert said["written"] == "new"
    assert (said["count"], said["one_left"]) == ("1", "1"), "two containers share a mount"
    assert said["none_left"] == "0 one bare"
    assert said["end"] == "", "nor does anything stay behind what failed"


def test_containers_see_each_others_files(said: dict[str, str]) -> None:
    assert said["shared"] == "x touch: /w/y: Read-only file system"


def test_a_server_may_be_given_by_name(said: dict[str, str]) -> None:
    assert said["server"] == ",addr=127.0.0.1"
    assert said["inline"] == "served"


def test_it_stays_mounted_when_the_daemon_is_killed(said: dict[str, str]) -> None:
    assert said["survives"] == "served 1"


def test_an_empty_one_is_filled_from_the_image(said: dict[str, str]) -> None:
    assert {"passwd", "group"} <= set(said["copied"].split())


def test_options_of_the_file_system_are_passed_on(said: dict[str, str]) -> None:
    assert said["frozen"] == "touch: /v/never: Read-only file system"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing", "mount :/nosuch:{path}, data: addr=127.0.0.1,nfsvers=4.2: no such file or directory"),
        ("closed", "mount :/data:{path}, data: addr=127.0.0.1,nfsvers=4.2,port=1,retry=0: connection refused"),
    ],
)
def test_what_cannot_be_mounted_is_said_in_dockerds_words(said: dict[str, str], name: str, words: str) -> None:
    path = f"/rw-data/data/volumes/{name}/_data"
    words = f"failed to mount local volume: {words.format(path=path)}"
    assert said[name].startswith(
        f"docker: Error response from daemon: error while mounting volume '{path}': {words}  Run"
    )


def test_a_server_that_nobody_knows_is_named(said: dict[str, str]) -> None:
    assert "error resolving passed in network volume address: lookup nosuch.invalid: " in said["unknown"]
