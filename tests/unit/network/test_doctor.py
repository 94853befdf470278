"""What would keep containers off the network is found and named."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Awaitable, Callable

import pytest

from seacan.linux import nftables as nft
from seacan.network import doctor
from seacan.network.networks import Networks

from .conftest import Space


async def test_a_host_without_foreign_rules_has_no_findings(host: Space, networks: Networks) -> None:
    assert [finding.problem for finding in doctor.examine()] == []


async def test_a_chain_that_drops_by_default_is_found(host: Space, networks: Networks) -> None:
    if shutil.which("nft") is None:
        pytest.skip("no nft to make a foreign ruleset with")
    subprocess.run(["nft", "add table inet fw"], check=True)
    subprocess.run(
        ["nft", "add chain inet fw gate { type filter hook forward priority 0 ; policy drop ; }"], check=True
    )
    (finding,) = doctor.examine()
    assert "chain gate of the nftables table inet fw drops forwarded packets" in finding.problem
    assert "nft add rule inet fw gate" in finding.remedy
    (warning,) = doctor.warnings()
    assert warning.startswith("WARNING: the chain gate")


@pytest.mark.parametrize("tool", ["iptables-nft", "iptables-legacy", "ip6tables-legacy"])
async def test_iptables_policy_is_found(host: Space, networks: Networks, tool: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"no {tool} to make a foreign ruleset with")
    done = subprocess.run([tool, "-P", "FORWARD", "DROP"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{tool}: {done.stderr.strip()}")
    findings = doctor.examine()
    assert len(findings) == 1
    assert "FORWARD" in findings[0].problem
    subprocess.run([tool, "-P", "FORWARD", "ACCEPT"], check=True)
    assert doctor.examine() == []


async def test_bridged_packets_are_spared_the_firewall_unless_it_is_somebody_elses(
    host: Space, start: Callable[..., Awaitable[Networks]]
) -> None:
    switch = "/proc/sys/net/bridge/bridge-nf-call-iptables"
    try:
        before = host.read(switch)
    except FileNotFoundError:
        pytest.skip("this kernel has no br_netfilter loaded")
    host.write(switch, "1")
    with nft.open_socket() as sock:
        batch = nft.Batch(nft.NFPROTO_INET, "foreign")
        batch.add_table()
        batch.add_chain("forward", "filter", "forward", 0)
        nft.commit(sock, [batch])
    networks = await start()
    assert host.read(switch) == "1"
    assert any("br_netfilter" in finding.problem for finding in doctor.examine())
    await networks.close()
    with nft.open_socket() as sock:
        batch = nft.Batch(nft.NFPROTO_INET, "foreign")
        batch.delete_table()
        nft.commit(sock, [batch])
    await start()
    assert host.read(switch) == "0"
    assert before in ("0", "1")


async def test_forwarding_that_is_off_is_found(host: Space, networks: Networks) -> None:
    host.write("/proc/sys/net/ipv4/ip_forward", "0")
    (finding,) = doctor.examine()
    assert finding.remedy == "sysctl -w net.ipv4.ip_forward=1"
