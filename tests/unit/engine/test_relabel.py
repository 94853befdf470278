"""SELinux labels for what a container is given of the host. The kernel's part is tests/e2e/test_selinux.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from seacan.engine import relabel
from seacan.engine.config import HostConfig
from seacan.engine.mounts import MountPoint
from seacan.engine.options import EngineOptions
from seacan.engine.profiles import selinux
from seacan.engine.verify import security_options
from seacan.errors import InvalidParameter, System

LABEL = "system_u:object_r:container_file_t:s0:c1,c2"


def point(source: Path | str, mode: str, kind: str = "bind") -> MountPoint:
    return MountPoint(type=kind, source=str(source), destination="/t", mode=mode)


def test_what_asks_for_it_gets_a_label(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    points = [point(tmp_path / "link", "ro,Z"), point(tmp_path / "a", "z", "volume"), point(tmp_path, "rw")]
    shared = "system_u:object_r:container_file_t:s0"
    assert relabel.trees(points, LABEL) == [
        relabel.Tree(f"{tmp_path}/a", LABEL),
        relabel.Tree(f"{tmp_path}/a", shared),
    ]
    assert relabel.trees(points, "") == [], "no SELinux, or a daemon not told to use it"


@pytest.mark.parametrize("folder", ["/", "/etc", "/usr", "/var/lib", "/../tmp"])
def test_folders_of_the_system_are_refused(folder: str) -> None:
    real = os.path.realpath(folder)
    with pytest.raises(System) as error:
        relabel.trees([point(folder, "z")], LABEL)
    assert str(error.value) == (
        f"error setting label on mount source '{real}': SELinux relabeling of {real} is not allowed"
    )


def test_the_walk_labels_every_entry_and_follows_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an attribute that this kernel lets us set on everything but special files."""
    monkeypatch.setattr(selinux, "ATTRIBUTE", "trusted.label")
    tree, outside = tmp_path / "tree", tmp_path / "outside"
    deep = tree
    for _ in range(300):  # deeper than a path can name
        deep = deep / "folder0123456789"
    fd = os.open(tmp_path, os.O_PATH)
    os.mkdir("tree", dir_fd=fd)
    here = os.open("tree", os.O_RDONLY, dir_fd=fd)
    for _ in range(300):
        os.mkdir("folder0123456789", dir_fd=here)
        inner = os.open("folder0123456789", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(os.open("last", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    outside.mkdir()
    (outside / "file").touch()
    (tree / "link").symlink_to(outside)
    (tree / "file").touch()
    assert relabel.label_tree(relabel.Tree(str(tree), LABEL)) == 304
    assert relabel.label_tree(relabel.Tree(str(tree), LABEL)) == 0, "what has it is left alone"
    last = os.open("last", os.O_RDONLY, dir_fd=here)
    assert os.getxattr(last, "trusted.label") == LABEL.encode() + b"\0"
    assert os.getxattr(tree / "link", "trusted.label", follow_symlinks=False) == LABEL.encode() + b"\0"
    for path in (outside, outside / "file"):
        assert os.listxattr(path) == []
    for descriptor in (fd, here, last):
        os.close(descriptor)


@pytest.fixture
def enforcing(monkeypatch: pytest.MonkeyPatch) -> EngineOptions:
    monkeypatch.setattr(selinux, "supported", lambda: True)
    return EngineOptions(selinux_enabled=True)


def labels(options: EngineOptions, *given: str, **host: object) -> tuple[str, str]:
    host_config = HostConfig(security_opt=[f"label={word}" for word in given], **host)  # type: ignore[arg-type]
    found = security_options(host_config, options, "c3,c4")
    return found.process_label, found.mount_label


def test_label_options(enforcing: EngineOptions) -> None:
    process, file = "system_u:system_r:container_t:s0:c3,c4", "system_u:object_r:container_file_t:s0:c3,c4"
    assert labels(enforcing) == (process, file)
    assert labels(enforcing, "type:spc_t") == ("system_u:system_r:spc_t:s0:c3,c4", file)
    assert labels(enforcing, "filetype:usr_t") == (process, "system_u:object_r:usr_t:s0:c3,c4")
    assert labels(enforcing, "level:s0:c9,c10", "user:u", "role:r") == (
        "u:r:container_t:s0:c9,c10",
        "u:object_r:container_file_t:s0:c9,c10",
    )
    privileged = ("", "system_u:object_r:container_file_t:s0:c1022,c1023")
    assert labels(enforcing, "disable") == privileged
    assert labels(enforcing, privileged=True) == labels(enforcing, pid_mode="host") == privileged
    assert labels(enforcing, "type:spc_t", privileged=True)[0] == "system_u:system_r:spc_t:s0:c3,c4"
    assert labels(EngineOptions(), "nonsense") == ("", ""), "not looked at, as by dockerd"


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("nested", "bad label option \"nested\", valid options 'disable' or \n'user, role, level, type, filetype' fol"),
        ("colour:red", "bad label option \"colour\", valid options 'disable, user, role, level, type, filetype'"),
    ],
)
def test_bad_label_options(enforcing: EngineOptions, option: str, words: str) -> None:
    with pytest.raises(InvalidParameter) as error:
        labels(enforcing, option)
    assert str(error.value).startswith(words)


def test_categories_are_no_other_containers() -> None:
    mine = selinux.categories("a")
    assert selinux.categories("a") == mine
    assert selinux.categories("a", {mine}) != mine
    first, second = (int(word[1:]) for word in mine.split(","))
    assert 0 <= first < second < 1024
    assert selinux.joined("u:r:t:s0:c1,c2") == ["label=user:u", "label=role:r", "label=type:t", "label=level:s0:c1,c2"]
    assert selinux.joined("") == []
