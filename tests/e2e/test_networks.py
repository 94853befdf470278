"""Networks through the docker CLI: what a user types, what answers, and what survives a crash of the daemon."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable

import pytest

from tests.e2e.test_crash import call
from tests.hosts import Daemon, Host

SERVE = "while true; do echo hello | nc -l -p 80; done"


def fetch(host: Host, address: str, port: int, tries: int = 30) -> str:
    """What a TCP server says first; tried until it listens."""
    program = (
        f"import socket; s = socket.create_connection(({address!r}, {port}), 2); print(s.recv(100).decode(), end='')"
    )
    for _ in range(tries):
        done = host.run("python3", "-c", program, check=False)
        if done.stdout:
            return done.stdout.strip()
        time.sleep(0.1)
    return ""


def test_containers_find_each_other_by_name(daemon: Daemon) -> None:
    daemon.docker("network", "create", "net")
    daemon.docker("run", "-d", "--name", "web", "--network", "net", "--network-alias", "www", "busybox", "sleep", "60")
    address = daemon.inspect("web")["NetworkSettings"]["Networks"]["net"]["IPAddress"]
    for name in ("web", "www", "web.net"):
        assert address in daemon.out("run", "--rm", "--network", "net", "busybox", "ping", "-c1", "-W2", name)
    failed = daemon.docker("run", "--rm", "--network", "net", "busybox", "ping", "-c1", "-W2", "nobody", check=False)
    assert failed.returncode == 1


def test_the_default_network_knows_links_instead(daemon: Daemon) -> None:
    daemon.docker("run", "-d", "--name", "web", "busybox", "sleep", "60")
    assert "0% packet loss" in daemon.out("run", "--rm", "--link", "web:db", "busybox", "ping", "-c1", "-W2", "db")


def test_published_ports_answer_and_conflicts_are_refused(daemon: Daemon) -> None:
    daemon.docker("run", "-d", "--name", "web", "-p", "8080:80", "busybox", "sh", "-c", SERVE)
    for address in ("127.0.0.1", "172.17.0.1", "::1"):
        assert fetch(daemon.host, address, 8080) == "hello", address
    assert daemon.out("port", "web") == "80/tcp -> 0.0.0.0:8080\n80/tcp -> [::]:8080"
    refused = daemon.docker("run", "-d", "--name", "two", "-p", "8080:80", "busybox", "true", check=False)
    assert refused.returncode == 125
    assert "Bind for 0.0.0.0:8080 failed: port is already allocated" in refused.stderr
    assert daemon.inspect("two")["State"]["Status"] == "created"
    daemon.docker("rm", "-f", "web")
    daemon.docker("start", "two")


def test_connect_and_disconnect_while_it_runs(daemon: Daemon) -> None:
    for name in ("one", "two"):
        daemon.docker("network", "create", name)
    daemon.docker("run", "-d", "--name", "web", "--network", "one", "busybox", "sleep", "60")
    daemon.docker("network", "connect", "--alias", "site", "two", "web")
    assert "0% packet loss" in daemon.out("run", "--rm", "--network", "two", "busybox", "ping", "-c1", "-W2", "site")
    assert set(daemon.inspect("web")["NetworkSettings"]["Networks"]) == {"one", "two"}
    used = daemon.docker("network", "rm", "two", check=False)
    assert "has active endpoints" in used.stderr
    daemon.docker("network", "disconnect", "two", "web")
    assert "eth1" not in daemon.out("exec", "web", "ip", "link")
    daemon.docker("network", "rm", "two")


def test_a_stopped_container_is_connected_from_its_next_start_on(daemon: Daemon) -> None:
    daemon.docker("network", "create", "--subnet", "10.77.0.0/24", "net")
    daemon.docker("create", "--name", "later", "busybox", "ip", "addr")
    daemon.docker("network", "connect", "--ip", "10.77.0.99", "net", "later")
    assert "10.77.0.99/24" in daemon.out("start", "-a", "later")
    daemon.docker("network", "disconnect", "bridge", "later")
    assert "172.17." not in daemon.out("start", "-a", "later")


def test_shared_host_and_no_network(daemon: Daemon) -> None:
    daemon.docker("run", "-d", "--name", "web", "busybox", "sleep", "60")
    own = daemon.out("exec", "web", "ip", "-o", "addr")
    assert daemon.out("run", "--rm", "--network", "container:web", "busybox", "ip", "-o", "addr") == own
    assert "seacan0" in daemon.out("run", "--rm", "--network", "host", "busybox", "ip", "link")
    none = daemon.out("run", "--rm", "--network", "none", "busybox", "ip", "-o", "link")
    assert [line.split()[1] for line in none.splitlines()] == ["lo:"]


def test_network_inspect_lists_containers_and_configuration(daemon: Daemon) -> None:
    daemon.docker(
        "network", "create", "--subnet", "10.77.0.0/24", "--gateway", "10.77.0.254", "--label", "a=b", "--internal",
        "net",
    )  # fmt: skip
    daemon.docker("run", "-d", "--name", "web", "--network", "net", "busybox", "sleep", "60")
    network = daemon.inspect("net", "network")
    assert network["IPAM"]["Config"] == [{"Subnet": "10.77.0.0/24", "Gateway": "10.77.0.254"}]
    assert network["Internal"] is True
    assert network["Labels"] == {"a": "b"}
    (container,) = network["Containers"].values()
    assert (container["Name"], container["IPv4Address"]) == ("web", "10.77.0.1/24")
    assert daemon.out("network", "ls", "-q", "--no-trunc", "--filter", "label=a=b") == network["Id"]
    assert daemon.out("network", "ls", "-q", "--filter", "dangling=true") == ""


def test_events_tell_of_networks(daemon: Daemon) -> None:
    begin = str(int(time.time()) - 1)
    daemon.docker("network", "create", "eventful")
    daemon.docker("run", "--rm", "--network", "eventful", "busybox", "true")
    daemon.docker("network", "rm", "eventful")
    time.sleep(1.1)
    wanted = ("--since", begin, "--until", str(int(time.time())), "--filter", "network=eventful")
    lines = daemon.out("events", *wanted, "--format", "{{.Action}}")
    assert lines.split() == ["create", "connect", "disconnect", "destroy"]


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_names_and_ports_survive_a_restart_of_the_daemon(
    new_daemon: Callable[..., Daemon], new_host: Callable[..., Host], how: str
) -> None:
    daemon = new_daemon("--live-restore", on=new_host())
    daemon.docker("network", "create", "net")
    daemon.docker("run", "-d", "--name", "web", "--network", "net", "-p", "8080:80", "busybox", "sh", "-c", SERVE)
    daemon.docker("run", "-d", "--name", "client", "--network", "net", "busybox", "sleep", "600")
    pid = daemon.inspect("client")["State"]["Pid"]
    assert fetch(daemon.host, "127.0.0.1", 8080) == "hello"
    getattr(daemon, how)()
    assert fetch(daemon.host, "127.0.0.1", 8080) == "hello", "no daemon, and the port answers"
    lookup = subprocess.Popen(
        ["nsenter", "-t", str(pid), "--net", "--mount", "nslookup", "-type=a", "web"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    daemon.start()
    out, _ = lookup.communicate(timeout=20)
    address = daemon.inspect("web")["NetworkSettings"]["Networks"]["net"]["IPAddress"]
    assert address in out, "a question asked meanwhile is answered"
    assert "0% packet loss" in daemon.out("exec", "client", "ping", "-c1", "-W2", "web")
    assert fetch(daemon.host, "127.0.0.1", 8080) == "hello"
    taken = daemon.docker("run", "--rm", "-p", "8080:80", "busybox", "true", check=False)
    assert "port is already allocated" in taken.stderr
    daemon.docker("rm", "-f", "web", "client")
    daemon.docker("network", "rm", "net")


def counts(host: Host) -> dict[str, int]:
    """Links, set elements and listening sockets on a host."""
    rules = json.loads(host.run("nft", "-j", "list", "ruleset").stdout)["nftables"]
    return {
        "links": len(host.run("ip", "-o", "link").stdout.splitlines()),
        "elements": sum(len(one.get("elem", [])) for item in rules for one in item.values() if isinstance(one, dict)),
        "sockets": len(host.run("cat", "/proc/net/tcp", "/proc/net/udp").stdout.splitlines()),
    }


def test_nothing_is_left_of_containers_that_end_while_the_daemon_is_dead(
    new_daemon: Callable[..., Daemon], new_host: Callable[..., Host]
) -> None:
    daemon = new_daemon("--live-restore", on=new_host())
    before = counts(daemon.host)
    for number in range(4):
        daemon.docker("run", "-d", "--name", f"c{number}", "-p", "80", "-p", "53/udp", "busybox", "sleep", "600")
    pids = [daemon.inspect(f"c{number}")["State"]["Pid"] for number in range(4)]
    daemon.kill()
    for pid in pids[:2]:
        subprocess.run(["kill", "-9", str(pid)], check=True)
    daemon.start()
    daemon.docker("rm", "-f", *(f"c{number}" for number in range(4)))
    deadline = time.monotonic() + 10
    while counts(daemon.host) != before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert counts(daemon.host) == before
    daemon.docker("run", "--rm", "busybox", "true")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_thousand_containers_of_a_routed_network_answer(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.bench import scale

    monkeypatch.setattr(scale, "ROUTED", 1000)
    row = scale.routed(daemon)[-1]
    assert (row.ours, row.note) == (1000, "of 1,000")
    assert daemon.out("ps", "-aq") == ""


def test_an_mtu_too_small_for_ipv6_is_for_ipv4_alone(daemon: Daemon) -> None:
    mtu = ("--opt", "com.docker.network.driver.mtu=1234")
    daemon.docker("network", "create", *mtu, "small")
    assert " mtu 1234 " in daemon.out("run", "--rm", "--network", "small", "busybox", "ip", "link", "show", "eth0")
    refused = daemon.docker("network", "create", "--ipv6", *mtu, "smaller", check=False)
    assert (refused.returncode, "IPv6 needs 1280 at least" in refused.stderr) == (1, True)


def test_a_container_without_ipv6_has_no_address_of_it(daemon: Daemon) -> None:
    daemon.docker("network", "create", "--ipv6", "--subnet", "fd00:7::/64", "both")
    off = ("--sysctl", "net.ipv6.conf.all.disable_ipv6=1")
    daemon.docker("run", "-d", "--name", "four", "--network", "both", *off, "busybox", "sleep", "100")
    assert daemon.inspect("four")["NetworkSettings"]["Networks"]["both"]["GlobalIPv6Address"] == ""
    asked = daemon.docker("run", "--rm", "--network", "both", "busybox", "ping", "-6", "-c1", "four", check=False)
    assert "bad address" in asked.stderr


def test_an_ipv6_address_anywhere_in_a_large_subnet(daemon: Daemon) -> None:
    daemon.docker("network", "create", "--ipv6", "--subnet", "fd00:8::/56", "wide")
    run = ("run", "--rm", "--network", "wide", "--ip6", "fd00:8::aa:a8bb:ccff:fe00:1", "busybox")
    assert "fd00:8:0:aa:a8bb:ccff:fe00:1/56" in daemon.out(*run, "ip", "-6", "addr", "show", "eth0")


def test_without_a_default_bridge_containers_have_loopback_alone(
    new_daemon: Callable[..., Daemon], new_host: Callable[..., Host]
) -> None:
    daemon = new_daemon("--bridge=none", on=new_host())
    for network in ((), ("--network", "bridge")):
        assert daemon.out("run", "--rm", *network, "busybox", "ls", "/sys/class/net") == "lo"


def test_wishes_that_a_network_cannot_fulfil_come_before_what_is_there_already(daemon: Daemon) -> None:
    daemon.docker("network", "create", "--subnet", "10.1.0.0/24", "net")
    daemon.docker("run", "-d", "--name", "web", "--network", "net", "busybox", "sleep", "60")
    daemon.docker("run", "-d", "--name", "sharing", "--network", "host", "busybox", "sleep", "60")
    settings = "invalid endpoint settings:\n"
    outside = "no configured subnet or ip-range contain the IP address"
    nowhere = "user specified IP address is supported only when connecting to networks with user configured subnets"
    shares = (
        "container sharing network namespace with another container or host cannot be connected to any other network"
    )
    for arguments, words in (
        (("--ip", "10.9.9.9", "net", "web"), f"{settings}{outside} 10.9.9.9"),
        (("--ip", "odd", "net", "web"), f"{settings}* invalid IPv4 address: odd\n* {outside} odd"),
        (("--ip6", "fd00::1", "net", "web"), settings + nowhere),
        (("net", "web"), "endpoint with name web already exists in network net"),
        (("net", "sharing"), shares),
        (("host", "sharing"), "endpoint with name sharing already exists in network host"),
    ):
        done = daemon.docker("network", "connect", *arguments, check=False)
        assert (done.returncode, done.stderr.strip()) == (1, f"Error response from daemon: {words}")


def test_a_stopped_container_may_be_connected_again_with_other_wishes(daemon: Daemon) -> None:
    daemon.docker("network", "create", "--subnet", "10.1.0.0/24", "net")
    daemon.docker("create", "--name", "web", "--network", "net", "busybox", "sleep", "60")
    daemon.docker("network", "connect", "--ip", "10.1.0.77", "net", "web")
    daemon.docker("start", "web")
    assert daemon.inspect("web")["NetworkSettings"]["Networks"]["net"]["IPAddress"] == "10.1.0.77"


def test_a_mac_address_beside_another_containers_namespace_is_no_network(daemon: Daemon) -> None:
    daemon.docker("run", "-d", "--name", "web", "busybox", "sleep", "60")
    mac = daemon.out("exec", "web", "cat", "/sys/class/net/eth0/address")
    shared = ("run", "--rm", "--network", "container:web", "--mac-address", "02:00:00:00:00:01", "busybox")
    assert daemon.out(*shared, "cat", "/sys/class/net/eth0/address") == mac


def test_networks_that_a_client_lists_are_a_containers_only_ones(daemon: Daemon) -> None:
    daemon.docker("network", "create", "net")
    endpoints = {"EndpointsConfig": {"net": {"MacAddress": "02:42:ac:11:00:42"}}}
    body = {"Image": "busybox", "Cmd": ["sleep", "60"], "NetworkingConfig": endpoints}
    listed = call(daemon, "POST", "/containers/create", body)["Id"]
    daemon.docker("start", listed)
    assert list(daemon.inspect(listed)["NetworkSettings"]["Networks"]) == ["net"]
    named = call(daemon, "POST", "/containers/create", {**body, "HostConfig": {"NetworkMode": "net"}})["Id"]
    assert daemon.inspect(named)["Config"]["MacAddress"] == "02:42:ac:11:00:42"


def test_without_ipv6_a_container_has_no_hosts_of_it(daemon: Daemon) -> None:
    off = ("--sysctl", "net.ipv6.conf.all.disable_ipv6=1")
    assert ":" not in daemon.out("run", "--rm", *off, "busybox", "cat", "/etc/hosts")


def test_sysctls_of_an_interface_belong_to_its_endpoint(daemon: Daemon) -> None:
    asked = ("run", "--rm", "--sysctl", "net.ipv4.conf.eth0.log_martians=1")
    shown = ("busybox", "cat", "/proc/sys/net/ipv4/conf/eth0/log_martians")
    old = daemon.docker(*asked, *shown, env=daemon.environment(DOCKER_API_VERSION="1.46"))
    assert old.stdout == "1\n"
    option = "com.docker.network.endpoint.sysctls"
    moved = f'"{option}":"net.ipv4.conf.IFNAME.log_martians=1"'
    assert f'Migrated sysctl "net.ipv4.conf.eth0.log_martians" to DriverOpts{{{moved}}}.' in old.stderr
    new = daemon.docker(*asked, *shown, check=False)
    assert new.returncode == 125
    assert f"must be supplied using driver option '{option}'" in new.stderr
