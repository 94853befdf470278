"""The doctor tries things, reports what fails, and leaves nothing behind."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from seacan.cli.doctor import report
from seacan.engine import doctor
from seacan.engine.doctor import Finding, attempt, examine
from seacan.engine.options import EngineOptions


def test_an_attempt_gives_the_error_of_the_child() -> None:
    assert attempt(lambda: None) is None

    def fails() -> None:
        raise OSError(errno.EPERM, "no")

    error = attempt(fails)
    assert error is not None and error.errno == errno.EPERM

    def breaks() -> None:
        raise ValueError

    assert attempt(breaks) is not None


def test_a_check_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(options: EngineOptions) -> Iterator[Finding]:
        yield Finding("x", "first", "ok")
        raise RuntimeError("oops")

    monkeypatch.setattr(doctor, "CHECKS", (("x", broken),))
    [*_, last] = examine()
    assert last.state == "limited" and "oops" in last.detail


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_devices_of_vendors_and_bad_files_are_named(tmp_path: Path) -> None:
    good = {"cdiVersion": "0.3.0", "kind": "a.com/b", "devices": [{"name": "c", "containerEdits": {"env": ["A=1"]}}]}
    (tmp_path / "good.json").write_text(json.dumps(good))
    (tmp_path / "bad.json").write_text("{}")
    found = [one for one in examine(EngineOptions(cdi_spec_dirs=[str(tmp_path)])) if one.area == "devices"]
    assert [(one.state, one.detail.partition(":")[0]) for one in found] == [("ok", "a.com/b=c"), ("limited", "CDI")]
    assert f"{tmp_path}/bad.json" in found[1].detail


def test_the_host_is_examined_and_left_as_it_was(tmp_path: Path) -> None:
    def cgroups() -> set[str]:
        found = set()
        for folder in Path("/sys/fs/cgroup").iterdir():
            if folder.is_dir():
                found |= {str(path) for path in folder.glob("seacan-doctor*")}
        return found

    links = sorted(os.listdir("/sys/class/net"))
    findings = examine(EngineOptions(data_root=str(tmp_path), cgroup_parent="/seacan-doctor-test"))
    areas = {finding.area for finding in findings}
    assert areas == {"privileges", "kernel", "cgroups", "security", "storage", "network", "programs"}
    assert not [finding for finding in findings if finding.name == "examination"]
    assert all(finding.remedy for finding in findings if finding.state == "missing")
    assert cgroups() == set()
    assert sorted(os.listdir("/sys/class/net")) == links
    assert list(tmp_path.iterdir()) == []


def test_the_report_names_the_remedy_and_sums_up() -> None:
    findings = [
        Finding("kernel", "namespaces", "ok", "all"),
        Finding("kernel", "overlay", "missing", "not there", "load it"),
        Finding("network", "ipvlan", "limited", "not there", "another kernel"),
    ]
    text = report(findings)
    assert "  ok       namespaces: all\n" in text
    assert "  MISSING  overlay: not there\n           to mend it: load it\n" in text
    assert text.endswith("Containers will not run as they should: 1 missing, 1 limited.")
    assert "namespaces" not in report(findings, quiet=True)
    assert report([findings[0]]).endswith("nothing is missing.")
