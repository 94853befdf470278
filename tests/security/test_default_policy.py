"""What every container is kept from unless somebody asks otherwise, and what the engine says it cannot do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from seacan.engine import profiles
from seacan.errors import InvalidParameter
from seacan.runtime import spec
from tests.bundles import Bundles


@pytest.mark.parametrize(
    "path",
    [
        "/proc/acpi",  # CVE-2018-10892: hardware switched by the container
        "/proc/asound",
        "/proc/interrupts",
        "/proc/kcore",
        "/proc/keys",
        "/proc/sched_debug",
        "/proc/scsi",  # CVE-2017-16539: disks removed by it
        "/proc/timer_list",
        "/sys/devices/virtual/powercap",  # CVE-2020-8694: secrets read from power draw
        "/sys/firmware",
    ],
)
def test_what_tells_of_the_hardware_is_masked(path: str) -> None:
    assert path in profiles.masked_paths()


@pytest.mark.parametrize(
    "key",
    [
        "kernel.core_pattern",
        "kernel/core_pattern",
        "net/../kernel/core_pattern",
        "net..kernel.core_pattern",
        "net.ipv4.../../kernel/core_pattern",
        "fs.mqueue.../../fs/suid_dumpable",
        "net.ipv4.ip_forward/../../../kernel/core_pattern",
    ],
)
def test_a_sysctl_by_any_other_name_is_the_hosts(bundles: Bundles, key: str) -> None:
    """CVE-2022-0811: the core pattern is run by the kernel, as root, on the host."""
    pattern = Path("/proc/sys/kernel/core_pattern")
    before = pattern.read_text()
    configuration = bundles.spec(["true"])
    assert configuration.linux is not None
    configuration.linux.sysctl = {key: before.strip()}
    with pytest.raises(InvalidParameter):
        bundles.create(configuration)
    assert pattern.read_text() == before


def test_a_value_is_a_value(bundles: Bundles) -> None:
    """CVE-2022-0811: nothing splits it into further settings."""
    pattern = Path("/proc/sys/kernel/core_pattern")
    before = pattern.read_text()
    configuration: spec.Spec = bundles.spec(["true"])
    assert configuration.linux is not None
    configuration.linux.sysctl = {"kernel.shm_rmid_forced": "1+kernel.core_pattern=|/bin/x"}
    with pytest.raises(Exception, match="invalid argument"):
        bundles.create(configuration)
    assert pattern.read_text() == before


@pytest.mark.parametrize("flag", ["--authorization-plugin=x", "--rootless"])
def test_a_protection_that_is_not_there_is_refused_and_not_ignored(flag: str) -> None:
    """CVE-2024-41110 was an authorization that did not happen."""
    command = [sys.executable, "-m", "seacan.cli.daemon", "--validate", "--config-file=", flag]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "not supported" in done.stderr
