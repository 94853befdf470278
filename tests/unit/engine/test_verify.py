"""Checks of a HostConfig against a host; the words are dockerd 28's."""

from __future__ import annotations

import re
from typing import Any

import pytest

from seacan.engine.config import ContainerConfig, HostConfig, UpdateConfig
from seacan.engine.host import Host, parse_list
from seacan.engine.options import EngineOptions
from seacan.engine.profiles import capabilities
from seacan.engine.verify import merge_update, security_options, verify
from seacan.errors import Conflict, InvalidParameter, Unsupported
from seacan.linux.capabilities import NAMES

EVERYTHING = Host(
    processors=2,
    memory_limit=True,
    swap_limit=True,
    memory_reservation=True,
    memory_swappiness=True,
    oom_kill_disable=True,
    cpu_shares=True,
    cpu_cfs=True,
    cpu_realtime=True,
    blkio_weight=True,
    blkio_weight_device=True,
    blkio_read_bps=True,
    blkio_write_bps=True,
    blkio_read_iops=True,
    blkio_write_iops=True,
    cpuset=True,
    cpus="0-1",
    mems="0",
    pids_limit=True,
    cgroup_namespaces=True,
)
NOTHING = Host(processors=2)
MEGABYTE = 1 << 20


@pytest.fixture(autouse=True)
def _all_capabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities, "available", lambda: NAMES)


def check(host: Host = EVERYTHING, config: ContainerConfig | None = None, **asked: Any) -> list[str]:
    return verify(config or ContainerConfig(), HostConfig(**asked), EngineOptions(), host)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"memory": MEGABYTE}, "Minimum memory limit allowed is 6MB"),
        (
            {"memory": 64 * MEGABYTE, "memory_swap": 32 * MEGABYTE},
            "Minimum memoryswap limit should be larger than memory limit, see usage",
        ),
        (
            {"memory_swap": 32 * MEGABYTE},
            "You should always set the Memory limit when using Memoryswap limit, see usage",
        ),
        ({"memory_swappiness": 101}, "Invalid value: 101, valid memory swappiness range is 0-100"),
        ({"memory_reservation": MEGABYTE}, "Minimum memory reservation allowed is 6MB"),
        (
            {"memory": 10 * MEGABYTE, "memory_reservation": 20 * MEGABYTE},
            "Minimum memory limit can not be less than memory reservation limit, see usage",
        ),
        ({"nano_cpus": 3_000_000_000}, "range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available"),
        (
            {"nano_cpus": 1, "cpu_period": 1000},
            "Conflicting options: Nano CPUs and CPU Period cannot both be set",
        ),
        ({"nano_cpus": 1, "cpu_quota": 1000}, "Conflicting options: Nano CPUs and CPU Quota cannot both be set"),
        (
            {"cpu_period": 10},
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)",
        ),
        ({"cpu_quota": 10}, "CPU cfs quota can not be less than 1ms (i.e. 1000)"),
        ({"cpu_shares": -1}, "invalid CPU shares (-1): value must be a positive integer"),
        ({"cpuset_cpus": "5"}, "Requested CPUs are not available - requested 5, available: 0-1"),
        ({"cpuset_cpus": "1-"}, "Invalid value 1- for cpuset cpus: invalid format: 1-"),
        ({"cpuset_mems": "1"}, "Requested memory nodes are not available - requested 1, available: 0"),
        ({"blkio_weight": 5}, "Range of blkio weight is from 10 to 1000"),
        ({"oom_score_adj": 2000}, "Invalid value 2000, range for oom score adj is [-1000, 1000]"),
        ({"shm_size": -1}, "SHM size can not be less than 0"),
        ({"ipc_mode": "foo"}, "invalid IPC mode: foo"),
        ({"pid_mode": "container:"}, "invalid PID mode: container:"),
        ({"uts_mode": "foo"}, "invalid UTS mode: foo"),
        ({"cgroupns_mode": "foo"}, "invalid cgroup namespace mode: foo"),
        ({"runtime": "foo"}, "unknown or invalid runtime name: foo"),
        ({"cap_add": ["FLY"]}, 'invalid CapAdd: unknown capability: "CAP_FLY"'),
        ({"security_opt": ["foo"]}, 'invalid --security-opt 1: "foo"'),
        ({"security_opt": ["foo=bar"]}, 'invalid --security-opt 2: "foo=bar"'),
        ({"security_opt": ["no-new-privileges=x"]}, 'invalid --security-opt 2: "no-new-privileges=x"'),
        ({"tmpfs": {"/": ""}}, "invalid specification: destination can't be '/'"),
        ({"tmpfs": {"/a/..": ""}}, "invalid specification: destination can't be '/'"),
        ({"tmpfs": {"t": ""}}, "invalid mount path: 't' mount path must be absolute"),
        (
            {"cpu_realtime_period": 1, "cpu_realtime_runtime": 2},
            "cpu real-time runtime cannot be higher than cpu real-time period",
        ),
        ({"network_mode": "container:"}, "invalid network mode: invalid container format container:<name|id>"),
        (
            {"network_mode": "container:x", "dns": ["1.1.1.1"]},
            "conflicting options: dns and the network mode",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_dockerds_words(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidParameter, match=re.escape(words)):
        check(**asked)


@pytest.mark.parametrize(
    ("asked", "warning", "dropped"),
    [
        ({"memory": 64 * MEGABYTE}, "memory limit capabilities", "memory"),
        ({"memory_reservation": 64 * MEGABYTE}, "memory soft limit", "memory_reservation"),
        ({"memory_swappiness": 5}, "memory swappiness", "memory_swappiness"),
        ({"oom_kill_disable": True}, "OomKillDisable discarded", "oom_kill_disable"),
        ({"pids_limit": 5}, "PIDs limit discarded", "pids_limit"),
        ({"cpu_shares": 5}, "Shares discarded", "cpu_shares"),
        ({"cpu_quota": 5000}, "CPU period/quota discarded", "cpu_quota"),
        ({"cpuset_cpus": "0"}, "Cpuset discarded", "cpuset_cpus"),
        ({"blkio_weight": 500}, "Weight discarded", "blkio_weight"),
    ],
)
def test_what_the_host_lacks_is_a_warning_and_is_dropped(asked: dict[str, Any], warning: str, dropped: str) -> None:
    host_config = HostConfig(**asked)
    warnings = verify(ContainerConfig(), host_config, EngineOptions(), NOTHING)
    assert any(warning in text for text in warnings)
    assert not getattr(host_config, dropped)


def test_memory_without_swap_accounting_is_limited_alone() -> None:
    host_config = HostConfig(memory=64 * MEGABYTE, memory_swap=128 * MEGABYTE)
    warnings = verify(ContainerConfig(), host_config, EngineOptions(), Host(memory_limit=True))
    assert "Memory limited without swap" in warnings[0]
    assert host_config.memory_swap == -1


def test_a_plain_container_has_no_warnings() -> None:
    assert check() == []


def test_cpus_without_bandwidth_control_are_an_error_not_a_warning() -> None:
    with pytest.raises(InvalidParameter, match="NanoCPUs can not be set"):
        check(NOTHING, nano_cpus=1_000_000_000)


def test_disabling_the_oom_killer_without_a_limit_warns() -> None:
    assert "no memory limit is set" in check(oom_kill_disable=True)[0]


def test_a_storage_quota_is_refused_and_not_ignored() -> None:
    with pytest.raises(Unsupported, match="storage-opt"):
        check(storage_opt={"size": "1g"})


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (ContainerConfig(hostname="h"), "hostname and the network mode"),
        (ContainerConfig(exposed_ports={"80/tcp": {}}), "port exposing and the container type network mode"),
    ],
)
def test_a_joined_network_excludes_what_belongs_to_its_owner(config: ContainerConfig, words: str) -> None:
    with pytest.raises(InvalidParameter, match=words):
        check(config=config, network_mode="container:x")


@pytest.mark.parametrize(("text", "numbers"), [("", set()), ("3", {3}), ("0-2,7", {0, 1, 2, 7}), ("1-1", {1})])
def test_the_kernels_lists_are_understood(text: str, numbers: set[int]) -> None:
    assert parse_list(text) == numbers


@pytest.mark.parametrize("text", ["1-", "-1", "a", "2-1", "1,,2", "0x1", "99999", "0-99999999999999"])
def test_what_is_no_list_is_refused_at_no_cost(text: str) -> None:
    with pytest.raises(InvalidParameter):
        parse_list(text)


class TestUpdate:
    def test_zero_leaves_a_limit_as_it_is(self) -> None:
        current = HostConfig(memory=64 * MEGABYTE, memory_swap=128 * MEGABYTE, cpu_shares=5)
        merge_update(current, UpdateConfig(cpu_shares=7), EVERYTHING)
        assert (current.memory, current.cpu_shares) == (64 * MEGABYTE, 7)

    def test_memory_above_the_swap_limit_needs_both(self) -> None:
        current = HostConfig(memory=64 * MEGABYTE, memory_swap=128 * MEGABYTE)
        with pytest.raises(Conflict, match="update the memoryswap at the same time"):
            merge_update(current, UpdateConfig(memory=256 * MEGABYTE), EVERYTHING)
        assert current.memory == 64 * MEGABYTE

    @pytest.mark.parametrize(
        ("current", "wanted"),
        [
            (HostConfig(cpu_period=1000), UpdateConfig(nano_cpus=1)),
            (HostConfig(cpu_quota=1000), UpdateConfig(nano_cpus=1)),
            (HostConfig(nano_cpus=1), UpdateConfig(cpu_period=1000)),
            (HostConfig(nano_cpus=1), UpdateConfig(cpu_quota=1000)),
        ],
    )
    def test_cpus_and_quota_do_not_mix(self, current: HostConfig, wanted: UpdateConfig) -> None:
        with pytest.raises(Conflict, match="cannot be updated as"):
            merge_update(current, wanted, EVERYTHING)

    def test_a_process_limit_can_be_lifted(self) -> None:
        current = HostConfig(pids_limit=5)
        merge_update(current, UpdateConfig(pids_limit=0), EVERYTHING)
        assert current.pids_limit == 0


class TestSecurityOptions:
    def test_both_separators_are_understood(self) -> None:
        for option in ("apparmor=mine", "apparmor:mine"):
            assert security_options(HostConfig(security_opt=[option]), EngineOptions()).apparmor == "mine"

    def test_a_profile_may_contain_the_separator(self) -> None:
        profile = '{"a": "b=c"}'
        found = security_options(HostConfig(security_opt=[f"seccomp={profile}"]), EngineOptions())
        assert found.seccomp == profile

    def test_the_engines_default_can_be_overridden(self) -> None:
        options = EngineOptions(no_new_privileges=True)
        assert security_options(HostConfig(), options).no_new_privileges
        off = HostConfig(security_opt=["no-new-privileges=false"])
        assert not security_options(off, options).no_new_privileges
