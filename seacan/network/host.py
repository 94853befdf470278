"""The host under the networks: its resolver configuration, its sysctls, and what of them is ours to change."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

from seacan.linux.netlink import NetlinkSocket
from seacan.network import doctor, files

_SYSCTL = Path("/proc/sys/net")


def claim() -> socket.socket | None:
    """Say that this network namespace is ours to manage, for as long as the socket is open; None if it is another's.

    Names of abstract sockets belong to the namespace, and go with the process. Containers of the host's network reach
    it (CVE-2020-15257), so it is of a kind that takes nothing from anybody unless it listens, which it does not.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.bind("\0seacan-network")
    except OSError as error:
        sock.close()
        if error.errno != errno.EADDRINUSE:
            raise
        return None
    return sock


def forwards(version: int) -> bool:
    """Whether the host forwards packets of an IP version; true for a version it does not have."""
    path = _SYSCTL / ("ipv4/ip_forward" if version == 4 else "ipv6/conf/all/forwarding")
    return not path.exists() or path.read_text().strip() != "0"


def forward(version: int) -> None:
    """Make the host forward packets."""
    if version == 4:
        (_SYSCTL / "ipv4/ip_forward").write_text("1")
        return
    # Forwarding turns a host's own acceptance of router advertisements off, unless it is 2.
    for accept in (_SYSCTL / "ipv6/conf").glob("*/accept_ra"):
        if accept.parent.name not in ("all", "default") and accept.read_text().strip() == "1":
            accept.write_text("2")
    (_SYSCTL / "ipv6/conf/all/forwarding").write_text("1")


def spare_bridges(sock: NetlinkSocket) -> bool:
    """Keep bridged packets out of the IP layer's firewall (br_netfilter) where that firewall is nobody's but ours.

    Ours does not need them there, and they cost less without. Where another program has rules, the setting is its to
    make. Returns whether bridged packets do pass there. ``sock`` is a netfilter socket.
    """
    switches = [_SYSCTL / f"bridge/bridge-nf-call-{kind}" for kind in ("iptables", "ip6tables", "arptables")]
    if not switches[0].exists():
        return False
    if switches[0].read_text().strip() == "1" and not doctor.foreign_chains(sock):
        for switch in switches:
            switch.write_text("0")
    return switches[0].read_text().strip() == "1"


def resolv_conf() -> files.ResolvConf:
    """The host's resolver configuration; systemd-resolved's real one where /etc/resolv.conf names only its stub."""
    conf = files.parse_resolv_conf(read("/etc/resolv.conf"))
    if conf.nameservers == ("127.0.0.53",):
        behind = files.parse_resolv_conf(read("/run/systemd/resolve/resolv.conf"))
        if behind.nameservers:
            return behind
    return conf


def read(path: str) -> str:
    """A file's text; empty if there is none."""
    try:
        return Path(path).read_text(errors="replace")
    except FileNotFoundError:
        return ""


def has_ipv6() -> bool:
    """Whether the host has IPv6 at all."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind(("::1", 0))
    except OSError as error:
        if error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            return False
        raise
    return True


def namespace() -> str:
    """Names this boot's network namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{Path('/proc/self/ns/net').stat().st_ino}"
