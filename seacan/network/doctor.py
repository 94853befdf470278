"""What stands in the way of containers' packets on this host: other programs' firewalls, and settings.

nftables lets every table judge: what one drops stays dropped, whatever ours accepts. So we do not bypass ufw, firewalld
or a hand-written ruleset, but must be able to say when one of them would keep containers off the network.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from seacan.linux import nftables as nft
from seacan.linux.netlink import NetlinkError, NetlinkSocket
from seacan.linux.nftables import ChainInfo
from seacan.network import fastpath
from seacan.network.firewall import TABLE

_FORWARD = nft.HOOKS["forward"]
_SYSCTL = Path("/proc/sys/net")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that keeps containers from working as they should, and how to mend it."""

    problem: str
    remedy: str


def foreign_chains(sock: NetlinkSocket) -> list[ChainInfo]:
    """Base chains of other programs on the hooks that routed packets pass, and legacy iptables' (without a hook)."""
    families = (nft.NFPROTO_INET, nft.NFPROTO_IPV4, nft.NFPROTO_IPV6)
    found = [
        chain
        for chain in nft.chains(sock)
        if chain.family in families and chain.hook in (0, _FORWARD, nft.HOOKS["postrouting"]) and chain.table != TABLE
    ]
    for family, path in (
        (nft.NFPROTO_IPV4, "/proc/net/ip_tables_names"),
        (nft.NFPROTO_IPV6, "/proc/net/ip6_tables_names"),
    ):
        found += [ChainInfo(family, name, "", "legacy", -1, 0, False) for name in _lines(path)]
    return found


def firewall_findings(chains: Iterable[ChainInfo]) -> list[Finding]:
    """Chains among ``chains`` that drop forwarded packets by default."""
    findings = []
    for chain in chains:
        if chain.table == TABLE or chain.hook != _FORWARD or not chain.drops or chain.kind != "filter":
            continue
        family = {nft.NFPROTO_INET: "inet", nft.NFPROTO_IPV4: "ip", nft.NFPROTO_IPV6: "ip6"}.get(chain.family)
        if family is None:
            continue
        rule = f"nft add rule {family} {chain.table} {chain.name}"
        remedy = f'accept them there ({rule} iifname "seacan0" accept; {rule} oifname "seacan0" accept)'
        if chain.table == "filter" and chain.name == "FORWARD":
            remedy = (
                "accept them there (iptables -I FORWARD -i seacan0 -j ACCEPT; iptables -I FORWARD -o seacan0 -j "
                "ACCEPT), with ufw by `ufw route allow`"
            )
        findings.append(
            Finding(
                f"the chain {chain.name} of the nftables table {family} {chain.table} drops forwarded packets by "
                "default, and so containers' packets to and from other hosts",
                remedy,
            )
        )
    return findings


def examine() -> list[Finding]:
    """Everything wrong with this network namespace; needs CAP_NET_ADMIN.

    Legacy iptables' policies are read with a socket option of their own; the tables are told apart by name only.
    """
    findings = []
    try:
        with nft.open_socket() as sock:
            chains = nft.chains(sock)
    except (NetlinkError, OSError) as error:
        if error.errno in (errno.EPERM, errno.EACCES):
            return [Finding("the firewall cannot be examined without CAP_NET_ADMIN", "run as root")]
        return [
            Finding(
                f"the kernel has no usable nftables ({error})",
                "use a kernel with CONFIG_NF_TABLES, NF_TABLES_INET, NFT_NAT, NFT_MASQ, NFT_FIB_INET",
            )
        ]
    findings += firewall_findings(chains)
    findings += _legacy_findings()
    if _read(_SYSCTL / "ipv4/ip_forward") == "0":
        findings.append(
            Finding("IPv4 forwarding is off: containers reach no other host", "sysctl -w net.ipv4.ip_forward=1")
        )
    if _read(_SYSCTL / "bridge/bridge-nf-call-iptables") == "1":
        findings.append(
            Finding(
                "bridged packets pass through the IP firewall (br_netfilter): traffic between containers is slower",
                "sysctl -w net.bridge.bridge-nf-call-iptables=0, unless another program (Kubernetes, dockerd) needs it",
            )
        )
    return findings


def slow_path() -> Finding | None:
    """Why packets between containers of a network go through bridge and rules, which is slower; None if they do not."""
    what = "traffic between containers goes through bridge and rules, which is slower"
    lacks = fastpath.missing()
    if lacks is not None:
        return Finding(f"{what}: {lacks}", "use Linux 6.6 or later with CONFIG_BPF_SYSCALL and CONFIG_NET_XGRESS")
    try:
        with nft.open_socket() as sock:
            reason = fastpath.obstacle(sock)
    except (NetlinkError, OSError) as error:
        reason = f"the firewall cannot be examined: {error}"
    return None if reason is None else Finding(f"{what}: {reason}", "none is needed if that is as you want it")


def warnings() -> list[str]:
    """Foreign firewalls that keep containers off the network, one line each, as ``docker info`` prints them."""
    try:
        with nft.open_socket() as sock:
            findings = firewall_findings(nft.chains(sock)) + _legacy_findings()
    except (NetlinkError, OSError) as error:
        return [f"WARNING: the host's firewall cannot be examined: {error}"]
    return [f"WARNING: {finding.problem}" for finding in findings]


_IPT_SO_GET_INFO = 64
_IPT_SO_GET_ENTRIES = 65
_HOOK_FORWARD = 2


def _legacy_findings() -> list[Finding]:
    """Legacy iptables' FORWARD policy, where its filter table exists (asking for it would create it)."""
    findings = []
    for family, path, tool, level in (
        (socket.AF_INET, "/proc/net/ip_tables_names", "iptables", socket.IPPROTO_IP),
        (socket.AF_INET6, "/proc/net/ip6_tables_names", "ip6tables", socket.IPPROTO_IPV6),
    ):
        if "filter" not in _lines(path):
            continue
        try:
            with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
                drops = _legacy_forward_drops(sock, level, family == socket.AF_INET)
        except OSError:
            continue
        if drops:
            findings.append(
                Finding(
                    f"{tool}' chain FORWARD drops by default, and so containers' packets to and from other hosts",
                    f"{tool} -I FORWARD -i seacan0 -j ACCEPT; {tool} -I FORWARD -o seacan0 -j ACCEPT",
                )
            )
    return findings


def _legacy_forward_drops(sock: socket.socket, level: int, ipv4: bool) -> bool:
    """Read struct ipt_getinfo and ipt_get_entries; the FORWARD policy is the verdict of the chain's last rule."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = sock.fileno()

    def get(option: int, buffer: ctypes.Array[ctypes.c_char]) -> None:
        size = ctypes.c_uint32(len(buffer))
        if libc.getsockopt(fd, level, option, buffer, ctypes.byref(size)) != 0:
            raise OSError(ctypes.get_errno(), "getsockopt for iptables")

    info = ctypes.create_string_buffer(b"filter", 84)
    get(_IPT_SO_GET_INFO, info)
    underflow = struct.unpack_from("=I", info, 36 + 20 + 4 * _HOOK_FORWARD)[0]
    (size,) = struct.unpack_from("=I", info, 80)
    entries = ctypes.create_string_buffer(b"filter", 40 + size)
    struct.pack_into("=I", entries, 32, size)
    get(_IPT_SO_GET_ENTRIES, entries)
    # struct ipt_entry: ipt_ip (84) nfcache (4) target_offset (2) …; struct ip6t_entry: ip6t_ip6 (136) nfcache (4) …
    rule = 40 + underflow
    (target,) = struct.unpack_from("=H", entries, rule + (88 if ipv4 else 140))
    (verdict,) = struct.unpack_from("=i", entries, rule + target + 32)
    return bool(verdict == -1)  # -NF_DROP - 1


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().split()
    except OSError:
        return []
