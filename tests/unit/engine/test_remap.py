"""``--userns-remap``: accounts to ranges, in dockerd's words."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from seacan.engine import remap
from seacan.engine.config import HostConfig
from seacan.engine.options import EngineOptions
from seacan.errors import InvalidParameter
from seacan.linux.userns import Range
from seacan.runtime.bundle import Mapping


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    (tmp_path / "passwd").write_text(
        "root:x:0:0::/root:/bin/sh\n# a comment\nann:x:1000:1000::/home/ann:/bin/sh\nbob:x:1001:1000::/:/bin/sh\n"
    )
    (tmp_path / "group").write_text("root:x:0:\nann:x:1000:\nstaff:x:50:ann\n")
    (tmp_path / "subuid").write_text("ann:100000:65536\nbob:300000:10\n\n1000:200000:1000\n")
    (tmp_path / "subgid").write_text("ann:400000:65536\n")
    return tmp_path


ANN = Mapping((Range(0, 100000, 65536), Range(65536, 200000, 1000)), (Range(0, 400000, 65536),))


@pytest.mark.parametrize("text", ["ann", "1000", "ann:staff", "1000:50", "ann:50"])
def test_every_range_of_the_user_counts_by_name_or_number(etc: Path, text: str) -> None:
    assert remap.resolve(text, etc) == ANN


def test_root_stays_root(etc: Path) -> None:
    assert remap.resolve("root", etc) is None
    assert remap.resolve("0:0", etc) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a:b:c", 'invalid user/group specification in --userns-remap: "a:b:c"'),
        ("carl", 'Error during uid lookup for "carl": no matching entries in passwd file'),
        ("bob", 'Error during gid lookup for "bob": no matching entries in group file'),
        ("1001", "Gid 1001 has no entry in /etc/group: no matching entries in group file"),
        ("77", "Uid 77 has no entry in /etc/passwd: no matching entries in passwd file"),
        ("ann:none", 'Error during groupname lookup for "none": no matching entries in group file'),
        ("ann:77", "Gid 77 has no entry in /etc/group: no matching entries in group file"),
        ("bob:staff", 'Can\'t create ID mappings: no subgid ranges found for user "bob"'),
    ],
)
def test_what_cannot_be_is_told(etc: Path, text: str, words: str) -> None:
    with pytest.raises(InvalidParameter) as error:
        remap.resolve(text, etc)
    assert str(error.value) == words


@pytest.mark.parametrize("line", ["ann:0:65536", "ann:100000:0", "ann:4294967295:2", "ann:x:1", "ann:1"])
def test_a_range_that_reaches_the_hosts_root_or_too_far_is_refused(etc: Path, line: str) -> None:
    (etc / "subuid").write_text(line + "\n")
    with pytest.raises(InvalidParameter, match="Can't create ID mappings: "):
        remap.resolve("ann", etc)


def test_a_missing_file_is_named(etc: Path) -> None:
    (etc / "subgid").unlink()
    with pytest.raises(InvalidParameter, match=f"open {etc}/subgid: no such file or directory"):
        remap.resolve("ann", etc)


def test_the_default_user_gets_ranges_that_are_nobody_elses(etc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def useradd(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(command[1:])
        if "--system" in command:
            with (etc / "passwd").open("a") as file:
                file.write("dockremap:x:999:999::/:/bin/false\n")
            with (etc / "group").open("a") as file:
                file.write("dockremap:x:999:\n")
        else:
            first, last = command[2].split("-")
            with (etc / command[1].removeprefix("--add-").removesuffix("s")).open("a") as file:
                file.write(f"dockremap:{first}:{int(last) - int(first) + 1}\n")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr("subprocess.run", useradd)
    monkeypatch.setattr("shutil.which", lambda name: name)
    mapping = remap.resolve("default", etc)
    assert mapping == Mapping((Range(0, 201000, 65536),), (Range(0, 100000, 65536),))
    assert [call[0] for call in calls] == ["--system", "--add-subuids", "--add-subgids"]
    assert remap.resolve("default", etc) == mapping, "it is there now"


def test_a_host_that_cannot_make_the_user_says_so(etc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(InvalidParameter, match='Error during "dockremap" user creation: useradd is not installed'):
        remap.resolve("default", etc)


def test_only_a_remapped_container_is_refused_things() -> None:
    options = EngineOptions(userns_remap="ann")
    with pytest.raises(InvalidParameter, match="privileged mode is incompatible with user namespaces"):
        remap.verify(HostConfig(privileged=True), options)
    remap.verify(HostConfig(privileged=True, userns_mode="host"), options)
    remap.verify(HostConfig(privileged=True), EngineOptions())
    assert remap.of(ANN, HostConfig(userns_mode="host")) is None
    assert remap.of(ANN, HostConfig()) == ANN
