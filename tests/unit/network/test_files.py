"""/etc/hosts and /etc/resolv.conf as dockerd writes them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seacan.errors import InvalidParameter
from seacan.network import files
from seacan.network.files import ResolvConf
from seacan.network.model import Endpoint


def endpoint(ipv4: str = "", ipv6: str = "") -> Endpoint:
    return Endpoint(
        id="e", container="c", container_name="web", network="n", network_name="net", driver="bridge",
        ipv4=ipv4, ipv6=ipv6,
    )  # fmt: skip


def test_hosts_has_loopback_extra_links_and_own_addresses_in_that_order() -> None:
    text = files.hosts(
        "web",
        "example.org",
        [endpoint("172.17.0.2/16", "fd00::2/64")],
        ["one:10.0.0.1", "six:[fd00::9]", "up:host-gateway", "eq=10.0.0.2"],
        ["172.17.0.1"],
        {"172.17.0.3": ["db", "database"]},
    )
    assert text == (
        "127.0.0.1\tlocalhost\n"
        "::1\tlocalhost ip6-localhost ip6-loopback\n"
        "fe00::\tip6-localnet\n"
        "ff00::\tip6-mcastprefix\n"
        "ff02::1\tip6-allnodes\n"
        "ff02::2\tip6-allrouters\n"
        "10.0.0.1\tone\n"
        "fd00::9\tsix\n"
        "172.17.0.1\tup\n"
        "10.0.0.2\teq\n"
        "172.17.0.3\tdb database\n"
        "172.17.0.2\tweb.example.org web\n"
        "fd00::2\tweb.example.org web\n"
    )


@pytest.mark.parametrize("entry", ["", "name", ":10.0.0.1", "name:nonsense", "name:10.0.0.1.2"])
def test_malformed_extra_hosts_are_refused(entry: str) -> None:
    with pytest.raises(InvalidParameter):
        files.hosts("web", "", [], [entry])


def test_host_gateway_without_a_gateway_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="host-gateway"):
        files.hosts("web", "", [], ["up:host-gateway"])


HOST = """
# the host's
nameserver 127.0.0.53
nameserver 192.0.2.53 ; the office
nameserver fd00::53
nameserver nonsense
search corp.example example.org
options ndots:2 timeout:1
sortlist 130.155.160.0/255.255.240.0
"""


def test_a_resolv_conf_is_read() -> None:
    assert files.parse_resolv_conf(HOST) == ResolvConf(
        ("127.0.0.53", "192.0.2.53", "fd00::53"),
        ("corp.example", "example.org"),
        ("ndots:2", "timeout:1"),
        ("sortlist 130.155.160.0/255.255.240.0",),
    )


@given(st.text(max_size=300))
def test_any_text_can_be_read_and_written_again(text: str) -> None:
    once = files.parse_resolv_conf(text)
    again = files.parse_resolv_conf(once.text())
    assert (again.nameservers, again.search) == (once.nameservers, once.search)


def test_servers_a_container_cannot_reach_are_left_out() -> None:
    host = files.parse_resolv_conf(HOST)
    assert files.direct(host, overridden=False, ipv6=False).nameservers == ("192.0.2.53",)
    assert files.direct(host, overridden=False, ipv6=True).nameservers == ("192.0.2.53", "fd00::53")
    assert files.direct(host, overridden=True, ipv6=False).nameservers == host.nameservers
    only_loopback = ResolvConf(("127.0.0.1",))
    assert files.direct(only_loopback, overridden=False, ipv6=False).nameservers == ("8.8.8.8", "8.8.4.4")


def test_our_resolver_stands_alone_and_asks_the_hosts_servers() -> None:
    host = files.parse_resolv_conf(HOST)
    inside = files.internal(host)
    assert inside.nameservers == ("127.0.0.11",)
    assert inside.search == host.search
    assert inside.options == host.options
    assert files.internal(ResolvConf()).options == ("ndots:0",)
    assert files.upstream(host) == host.nameservers


def test_what_the_user_asks_for_replaces_what_the_host_has() -> None:
    host = files.parse_resolv_conf(HOST)
    assert files.override(host, ["10.0.0.53"], ["a.example"], ["rotate"]) == ResolvConf(
        ("10.0.0.53",), ("a.example",), ("rotate",), host.others
    )
    assert files.override(host, search=["."]).search == ()
    assert files.override(host) == host
