"""Namespaces: made, joined, mapped and shifted."""

from __future__ import annotations

import ipaddress
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from seacan.errors import InvalidParameter, RuntimeFailed, Unsupported
from seacan.linux import rtnetlink, syscalls
from seacan.linux.netlink import NETLINK_ROUTE, NetlinkSocket
from seacan.runtime import spec
from tests.bundles import Bundles

MAPPING = [spec.IDMapping(0, 100000, 65536)]


@pytest.fixture
def shifted(bundles: Bundles) -> Path:
    """The tree, owned by the mapped root."""
    path = bundles.folder / "shifted"
    shutil.copytree(bundles.lower, path, symlinks=True)
    for folder, folders, files in os.walk(path):
        for name in [".", *folders, *files]:
            os.chown(os.path.join(folder, name), 100000, 100000, follow_symlinks=False)
    return path


def with_userns(configuration: spec.Spec) -> spec.Spec:
    assert configuration.linux is not None
    configuration.linux.namespaces.append(spec.LinuxNamespace("user"))
    configuration.linux.uid_mappings = configuration.linux.gid_mappings = MAPPING
    return configuration


def with_joined(configuration: spec.Spec, process: int, **kinds: str) -> spec.Spec:
    assert configuration.linux is not None
    configuration.linux.namespaces = [n for n in configuration.linux.namespaces if n.type not in kinds]
    configuration.linux.namespaces += [
        spec.LinuxNamespace(kind, f"/proc/{process}/ns/{name}") for kind, name in kinds.items()
    ]
    return configuration


def test_every_namespace_is_new(bundles: Bundles) -> None:
    container = bundles.start()
    for kind in ("mnt", "net", "uts", "pid", "ipc", "cgroup"):
        assert os.readlink(f"/proc/{container.pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")


def test_root_of_a_user_namespace_is_somebody_else_outside(bundles: Bundles, shifted: Path) -> None:
    configuration = with_userns(
        bundles.spec(["sh", "-c", "id -u; echo > /new; stat -c %u /new; echo > /dev/null; ls /sys"])
    )
    root = bundles.overlay(owner=100000, lower=shifted)
    code, output = bundles.run(configuration, rootfs=root)
    assert (code, output.splitlines()[:2]) == (0, ["0", "0"])
    assert os.stat(f"{root.upper}/new").st_uid == 100000


def test_exec_joins_the_user_namespace(bundles: Bundles, shifted: Path) -> None:
    configuration = with_userns(bundles.spec(["sleep", "1000"]))
    container = bundles.create(configuration, rootfs=bundles.overlay(owner=100000, lower=shifted))
    container.start()
    assert bundles.exec(container, ["cat", "/proc/self/uid_map"])[1].split() == ["0", "100000", "65536"]
    assert os.stat(f"/proc/{container.pid}").st_uid == 100000


def test_a_terminal_works_in_a_user_namespace(bundles: Bundles, shifted: Path) -> None:
    configuration = with_userns(bundles.spec(["sh", "-c", "tty; test -c /dev/console && echo yes"], terminal=True))
    code, output = bundles.run(configuration, rootfs=bundles.overlay(owner=100000, lower=shifted))
    assert (code, output.split()) == (0, ["/dev/pts/0", "yes"])


def test_a_source_the_mapped_root_cannot_reach_can_be_mounted(bundles: Bundles, shifted: Path) -> None:
    closed = bundles.folder / "closed"
    closed.mkdir(mode=0o700)
    (closed / "file").write_text("content")
    configuration = with_userns(bundles.spec(["cat", "/m"]))
    configuration.mounts.append(spec.Mount("/m", "bind", str(closed / "file"), ["bind"]))
    assert bundles.run(configuration, rootfs=bundles.overlay(owner=100000, lower=shifted)) == (0, "content")


def test_namespaces_of_another_container_are_joined(bundles: Bundles) -> None:
    first = bundles.start()
    configuration = with_joined(
        bundles.spec(["sleep", "1000"]), first.pid, network="net", pid="pid", ipc="ipc", uts="uts"
    )
    configuration.hostname = ""
    second = bundles.create(configuration)
    second.start()
    for kind in ("net", "pid", "ipc", "uts"):
        assert os.readlink(f"/proc/{second.pid}/ns/{kind}") == os.readlink(f"/proc/{first.pid}/ns/{kind}")
    assert os.readlink(f"/proc/{second.pid}/ns/mnt") != os.readlink(f"/proc/{first.pid}/ns/mnt")
    assert second.netns is None
    assert bundles.exec(second, ["ps", "-o", "args"])[1].count("sleep 1000") == 2


def test_a_joined_user_namespace_owns_the_new_ones(bundles: Bundles, shifted: Path) -> None:
    first = bundles.create(
        with_userns(bundles.spec(["sleep", "1000"])), rootfs=bundles.overlay(owner=100000, lower=shifted)
    )
    first.start()
    configuration = with_joined(
        bundles.spec(["sh", "-c", "id -u; ps -o args | grep -c '^sleep'"]), first.pid, user="user", pid="pid"
    )
    code, output = bundles.run(configuration, rootfs=bundles.overlay(owner=100000, lower=shifted))
    assert (code, output) == (0, "0\n1\n")


def test_a_time_namespace_shifts_the_clocks(bundles: Bundles) -> None:
    configuration = bundles.spec(["cat", "/proc/uptime"])
    assert configuration.linux is not None
    configuration.linux.namespaces.append(spec.LinuxNamespace("time"))
    configuration.linux.time_offsets = {"boottime": spec.LinuxTimeOffset(secs=10_000_000)}
    code, output = bundles.run(configuration)
    assert code == 0
    assert float(output.split()[0]) > 10_000_000


def test_init_may_speak_before_its_maker_has_named_it(bundles: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    fork = syscalls.clone3

    def slow(flags: int, **more: Any) -> tuple[int, int]:
        made = fork(flags, **more)
        if made[0] and flags & syscalls.CLONE_PARENT:
            time.sleep(0.2)
        return made

    monkeypatch.setattr(syscalls, "clone3", slow)
    configuration = bundles.spec(["cat", "/proc/uptime"])
    assert configuration.linux is not None
    configuration.linux.namespaces.append(spec.LinuxNamespace("time"))
    configuration.linux.time_offsets = {"boottime": spec.LinuxTimeOffset(secs=10_000_000)}
    assert bundles.run(configuration)[0] == 0


def test_a_time_namespace_inside_a_user_namespace(bundles: Bundles, shifted: Path) -> None:
    configuration = with_userns(bundles.spec(["cat", "/proc/uptime"]))
    assert configuration.linux is not None
    configuration.linux.namespaces.append(spec.LinuxNamespace("time"))
    configuration.linux.time_offsets = {"boottime": spec.LinuxTimeOffset(secs=10_000_000)}
    code, output = bundles.run(configuration, rootfs=bundles.overlay(owner=100000, lower=shifted))
    assert code == 0, output
    assert float(output.split()[0]) > 10_000_000


def test_hostname_and_domainname(bundles: Bundles) -> None:
    configuration = bundles.spec(["sh", "-c", "hostname; cat /proc/sys/kernel/domainname"])
    configuration.domainname = "example.org"
    assert bundles.run(configuration) == (0, "box\nexample.org\n")


def test_sysctls_are_written_in_the_namespaces(bundles: Bundles) -> None:
    before = Path("/proc/sys/net/ipv4/ip_forward").read_text()
    configuration = bundles.spec(["cat", "/proc/sys/net/ipv4/ip_default_ttl", "/proc/sys/kernel/msgmax"])
    assert configuration.linux is not None
    configuration.linux.sysctl = {"net.ipv4.ip_default_ttl": "99", "kernel.msgmax": "4242"}
    assert bundles.run(configuration) == (0, "99\n4242\n")
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == before


@pytest.mark.parametrize(
    ("key", "dropped", "message"),
    [
        ("kernel.panic", "", "is not in a separate kernel namespace"),
        ("vm.overcommit_memory", "", "is not in a separate kernel namespace"),
        ("net.ipv4.ip_forward", "network", "not allowed in host network namespace"),
        ("kernel.msgmax", "ipc", "not allowed in the hosts ipc namespace"),
        ("kernel.hostname", "", 'conflicts with the OCI "hostname" field'),
        ("net.ipv4/../../kernel/panic", "", "is not a name"),
    ],
)
def test_a_sysctl_of_the_host_is_refused(bundles: Bundles, key: str, dropped: str, message: str) -> None:
    configuration = bundles.spec(["true"])
    assert configuration.linux is not None
    configuration.linux.namespaces = [n for n in configuration.linux.namespaces if n.type != dropped]
    configuration.linux.sysctl = {key: "1"}
    with pytest.raises(InvalidParameter, match=message):
        bundles.create(configuration)


def test_contradictions_are_refused(bundles: Bundles) -> None:
    configuration = bundles.spec(["true"])
    assert configuration.linux is not None
    configuration.linux.uid_mappings = MAPPING
    with pytest.raises(InvalidParameter, match="user namespace isn't enabled"):
        bundles.create(configuration)
    configuration = bundles.spec(["true"])
    assert configuration.linux is not None
    configuration.linux.namespaces = [n for n in configuration.linux.namespaces if n.type != "uts"]
    with pytest.raises(InvalidParameter, match="unable to set hostname without a private UTS namespace"):
        bundles.create(configuration)
    configuration = bundles.spec(["true"])
    assert configuration.linux is not None
    configuration.linux.namespaces = []
    with pytest.raises(Unsupported, match="mount namespace"):
        bundles.create(configuration)


def test_a_mount_namespace_that_is_joined_gets_the_root(bundles: Bundles) -> None:
    host = subprocess.Popen(["unshare", "-m", "--propagation", "private", "sleep", "1000"])
    try:
        path = f"/proc/{host.pid}/ns/mnt"
        while os.readlink(path) == os.readlink("/proc/self/ns/mnt"):
            time.sleep(0.01)
        configuration = bundles.spec(
            ["sh", "-c", "readlink /proc/self/ns/mnt; test -e /etc/debian_version || echo contained"]
        )
        assert configuration.linux is not None
        for namespace in configuration.linux.namespaces:
            if namespace.type == "mount":
                namespace.path = path
        code, output = bundles.run(configuration)
        assert (code, output.split()) == (0, [os.readlink(path), "contained"])
        for namespace in configuration.linux.namespaces:
            if namespace.type == "mount":
                namespace.path = "/proc/self/ns/mnt"
        with pytest.raises(InvalidParameter, match="own mount namespace"):
            bundles.create(configuration)
    finally:
        host.kill()
        host.wait()


class TestInterfaces:
    """``linux.netDevices``: the test is a host of its own, so that its interface is nobody's."""

    @pytest.fixture(autouse=True)
    def _own_network(self) -> Iterator[None]:
        own = os.open("/proc/self/ns/net", os.O_RDONLY)
        syscalls.unshare(syscalls.CLONE_NEWNET)
        try:
            with NetlinkSocket(NETLINK_ROUTE) as sock:
                with open("/proc/self/ns/net", "rb", buffering=0) as here:
                    sock.request([rtnetlink.new_veth("outside0", "other0", here.fileno())])
                found = rtnetlink.link(sock, "outside0")
                assert found is not None
                address = ipaddress.ip_interface("192.0.2.7/24")
                sock.request([rtnetlink.new_address(found.index, address), rtnetlink.set_link(found.index, up=True)])
            yield
        finally:
            syscalls.setns(own, syscalls.CLONE_NEWNET)
            os.close(own)

    @staticmethod
    def asked(configuration: spec.Spec, name: str = "outside0", inside: str = "lan0") -> spec.Spec:
        assert configuration.linux is not None
        configuration.linux.net_devices = {name: spec.LinuxNetDevice(inside)}
        return configuration

    @pytest.mark.parametrize("userns", [False, True])
    def test_an_interface_is_moved_with_its_address(self, bundles: Bundles, shifted: Path, userns: bool) -> None:
        configuration = self.asked(bundles.spec(["ip", "-o", "addr", "show", "lan0"]))
        root = None
        if userns:
            configuration, root = with_userns(configuration), bundles.overlay(owner=100000, lower=shifted)
        code, output = bundles.run(configuration, rootfs=root)
        assert (code, "inet 192.0.2.7/24" in output) == (0, True), output
        with NetlinkSocket(NETLINK_ROUTE) as sock:
            assert rtnetlink.link(sock, "outside0") is None

    def test_it_is_moved_into_a_namespace_that_is_joined(self, bundles: Bundles) -> None:
        first = bundles.start()
        configuration = with_joined(bundles.spec(["cat", "/sys/class/net/lan0/operstate"]), first.pid, network="net")
        assert bundles.run(self.asked(configuration))[0] == 0

    def test_one_that_is_not_there_is_named(self, bundles: Bundles) -> None:
        with pytest.raises(RuntimeFailed, match="move netdevice nosuch to lan0: link nosuch not found"):
            bundles.run(self.asked(bundles.spec(["true"]), "nosuch"))

    @pytest.mark.parametrize("name", ["a/b", "a b", "sixteen-letters-", ".."])
    def test_what_is_no_name_is_refused(self, bundles: Bundles, name: str) -> None:
        with pytest.raises(InvalidParameter, match=r"invalid network device name"):
            bundles.run(self.asked(bundles.spec(["true"]), "outside0", name))

    def test_the_hosts_own_namespace_gets_none(self, bundles: Bundles) -> None:
        configuration = bundles.spec(["true"])
        assert configuration.linux is not None
        configuration.linux.namespaces = [n for n in configuration.linux.namespaces if n.type != "network"]
        with pytest.raises(InvalidParameter, match="unable to move network devices without a NET namespace"):
            bundles.run(self.asked(configuration))
