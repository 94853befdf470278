"""CDI files: what they may say, and what their devices change in a container's configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from seacan.engine import cdi
from seacan.errors import InvalidParameter, System
from seacan.runtime.spec import Device, Linux, Mount, Process, Spec, User

MINIMAL: dict[str, Any] = {
    "cdiVersion": "0.3.0",
    "kind": "vendor.com/net",
    "devices": [{"name": "dev", "containerEdits": {"env": ["A=1"]}}],
}


def parse(**changes: Any) -> cdi.File:
    return cdi.parse(json.dumps({**MINIMAL, **changes}).encode(), yaml=False)


def with_edits(**edits: Any) -> dict[str, Any]:
    return {"devices": [{"name": "dev", "containerEdits": edits}]}


class TestFiles:
    def test_yaml_and_json_say_the_same(self) -> None:
        text = b"""\
cdiVersion: 0.5.0
kind: vendor.com/net
devices:
- name: 0
  containerEdits:
    deviceNodes:
    - {path: /dev/x, hostPath: /dev/null, fileMode: 0640}
containerEdits:
"""
        node = {"path": "/dev/x", "hostPath": "/dev/null", "fileMode": 0o640}
        devices = [{"name": "0", "containerEdits": {"deviceNodes": [node]}}]
        assert cdi.parse(text, yaml=True) == parse(cdiVersion="0.5.0", devices=devices)

    @pytest.mark.parametrize("key", ["additionalGids", "additionalGIDs"])
    def test_both_spellings_of_the_specification_are_understood(self, key: str) -> None:
        file = parse(cdiVersion="0.7.0", containerEdits={key: [5]})
        assert file.container_edits.additional_gids == [5]

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("a: [", "error converting YAML to JSON"),
            ("kind: a/b\nkind: a/c\n", 'key "kind" already set in map'),
            ("[1]", "Expected `object`, got `array`"),
            ("kind: [1]", "Expected `str`, got `array`"),
            ("kind: a/b\nwhatever: 1\n", "unknown field `whatever`"),
            ("", "no Spec data"),
            ("? [a]\n: 1\n", "error converting YAML to JSON"),
            ("!!python/object:os.system {}", "could not determine a constructor"),
        ],
    )
    def test_what_is_no_cdi_file_is_refused(self, text: str, words: str) -> None:
        with pytest.raises(InvalidParameter) as caught:
            cdi.parse(text.encode(), yaml=True)
        assert words in caught.value.message

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"cdiVersion": "0.3"}, 'invalid version "0.3"'),
            ({"cdiVersion": "2.0.0"}, 'invalid version "2.0.0"'),
            ({"kind": "net"}, "invalid vendor. empty name"),
            ({"kind": "1.com/net"}, 'invalid vendor. "1.com", should start with letter'),
            ({"kind": "a.com/n t"}, "invalid class. invalid character ' ' in name \"n t\""),
            ({"kind": "a.com/net-"}, 'invalid class. "net-", should end with a letter or digit'),
            ({"devices": []}, "invalid spec, no devices"),
            ({"devices": MINIMAL["devices"] * 2}, 'invalid spec, multiple device "dev"'),
            (with_edits(), 'failed add device "dev": invalid device, empty device edits'),
            ({"devices": [{"name": "a=b", "containerEdits": {"env": ["A=1"]}}]}, "invalid character '=' in device"),
            (with_edits(env=["=x"]), 'invalid environment variable "=x"'),
            (with_edits(deviceNodes=[{"path": ""}]), "invalid (empty) device path"),
            (with_edits(deviceNodes=[{"path": "/x", "type": "d"}]), 'device "/x": invalid type "d"'),
            (with_edits(deviceNodes=[{"path": "/x", "permissions": "x"}]), 'device "/x": invalid permissions "x"'),
            (with_edits(hooks=[{"hookName": "later", "path": "/x"}]), 'invalid hook name "later"'),
            (with_edits(hooks=[{"hookName": "poststop", "path": ""}]), 'invalid hook "poststop" with empty path'),
            (with_edits(mounts=[{"hostPath": "", "containerPath": "/x"}]), "invalid mount, empty host path"),
            (with_edits(mounts=[{"hostPath": "/x", "containerPath": ""}]), "invalid mount, empty container path"),
            ({"cdiVersion": "0.7.0"} | with_edits(intelRdt={"closID": "a/b"}), "invalid ClosID"),
            (
                {"cdiVersion": "1.1.0"} | with_edits(netDevices=[{"hostInterfaceName": "e", "name": ""}]),
                "invalid linux net device, empty Name",
            ),
        ],
    )
    def test_what_contradicts_the_specification_is_refused(self, changes: dict[str, Any], words: str) -> None:
        with pytest.raises(InvalidParameter, match=r"^invalid CDI Spec: ") as caught:
            parse(**changes)
        assert words in caught.value.message

    @pytest.mark.parametrize(
        ("since", "changes"),
        [
            ("0.4.0", with_edits(mounts=[{"hostPath": "/x", "containerPath": "/x", "type": "bind"}])),
            ("0.5.0", with_edits(deviceNodes=[{"path": "/x", "hostPath": "/y"}])),
            ("0.5.0", {"devices": [{"name": "0", "containerEdits": {"env": ["A=1"]}}]}),
            ("0.6.0", {"annotations": {"a": "b"}}),
            ("0.6.0", {"kind": "vendor.com/a.b"}),
            ("0.7.0", with_edits(additionalGids=[5])),
            ("0.7.0", with_edits(intelRdt={"closID": "x"})),
            ("1.1.0", with_edits(netDevices=[{"hostInterfaceName": "eth1", "name": "lan"}])),
            ("1.1.0", with_edits(intelRdt={"schemata": ["L2:0=f"]})),
        ],
    )
    def test_what_is_newer_than_the_file_says_is_refused(self, since: str, changes: dict[str, Any]) -> None:
        parse(**{**changes, "cdiVersion": since})
        parse(**{**changes, "cdiVersion": f"v{since}"})
        with pytest.raises(InvalidParameter, match=f"the spec version must be at least v{since}"):
            parse(**{**changes, "cdiVersion": "0.3.0"})

    @pytest.mark.parametrize("name", ["vendor.com/class=name", "a/b=0", "nvidia.com/gpu=GPU-0:1.2"])
    def test_full_names(self, name: str) -> None:
        assert cdi.qualified(name)

    @pytest.mark.parametrize("name", ["/dev/x=y", "vendor.com=name", "vendor.com/class", "1/b=0", "a/b=x/", "a/b=\n"])
    def test_what_is_no_full_name(self, name: str) -> None:
        assert not cdi.qualified(name)


class TestFolders:
    @pytest.fixture(autouse=True)
    def _folders(self, tmp_path: Path) -> None:
        self.low, self.high = tmp_path / "etc", tmp_path / "run"
        self.low.mkdir()
        self.high.mkdir()

    def write(self, path: Path, value: str, **changes: Any) -> None:
        path.write_text(json.dumps({**MINIMAL, **with_edits(env=[f"A={value}"]), **changes}))

    def scan(self) -> cdi.Registry:
        return cdi.scan([str(self.low), str(self.high), "/nonexistent"])

    def test_a_later_folder_goes_before_an_earlier_one(self) -> None:
        self.write(self.low / "a.json", "low")
        self.write(self.high / "a.json", "high")
        found = self.scan()
        assert found.devices["vendor.com/net=dev"].device.container_edits.env == ["A=high"]
        assert not found.errors

    def test_two_files_that_contradict_each_other_are_reported(self) -> None:
        one, two = self.low / "a.json", self.low / "b.yaml"
        self.write(one, "1")
        self.write(two, "2")
        self.write(self.low / "c.json", "3", kind="vendor.com/other")
        found = self.scan()
        assert list(found.devices) == ["vendor.com/other=dev"]
        assert found.errors[str(one)] == found.errors[str(two)]
        assert found.errors[str(one)] == [f'conflicting device "vendor.com/net=dev" (specs "{two}", "{one}")']

    def test_a_bad_file_spoils_no_other(self) -> None:
        self.write(self.low / "good.json", "1")
        (self.low / "bad.json").write_text("{")
        (self.low / "README").write_text("{")
        (self.low / "folder.json").mkdir()
        found = self.scan()
        assert list(found.devices) == ["vendor.com/net=dev"]
        bad = str(self.low / "bad.json")
        assert list(found.errors) == [bad]
        assert found.errors[bad][0].startswith(f'failed to load CDI Spec failed to parse CDI Spec "{bad}": ')

    def test_a_changed_file_is_read_again(self) -> None:
        path = self.low / "a.json"
        self.write(path, "1")
        assert self.scan().devices["vendor.com/net=dev"].device.container_edits.env == ["A=1"]
        self.write(path, "22")
        assert self.scan().devices["vendor.com/net=dev"].device.container_edits.env == ["A=22"]
        path.unlink()
        assert not self.scan().devices


class TestEdits:
    def inject(self, tmp_path: Path, spec: Spec, *names: str, **file: Any) -> Spec:
        (tmp_path / "a.json").write_text(json.dumps({**MINIMAL, "cdiVersion": "1.1.0", **file}))
        registry = cdi.scan([str(tmp_path)])
        assert not registry.errors
        cdi.inject(spec, registry, [f"vendor.com/net={name}" for name in names or ("dev",)])
        return spec

    def test_what_concerns_all_devices_of_a_file_is_done_once_and_first(self, tmp_path: Path) -> None:
        hook = {"hookName": "createContainer", "path": "/bin/all", "args": ["all"], "timeout": 3}
        spec = self.inject(
            tmp_path,
            Spec("1.2.1", process=Process(env=["PATH=/bin", "A=0"])),
            "one",
            "two",
            containerEdits={"hooks": [hook], "env": ["A=all", "B=all"]},
            devices=[{"name": name, "containerEdits": {"env": [f"B={name}"]}} for name in ("one", "two")],
        )
        assert spec.hooks is not None
        assert [(h.path, h.args, h.timeout) for h in spec.hooks.create_container] == [("/bin/all", ["all"], 3)]
        assert spec.process is not None
        assert spec.process.env == ["PATH=/bin", "A=all", "B=two"]

    def test_a_device_takes_the_place_of_another_and_is_allowed(self, tmp_path: Path) -> None:
        node = {"path": "/dev/x", "hostPath": "/dev/null", "permissions": "rw"}
        before = Spec(
            "1.2.1",
            process=Process(user=User(uid=7, gid=8)),
            linux=Linux(devices=[Device("/dev/x", "c", 9, 9), Device("/dev/y", "c", 9, 9)]),
        )
        linux = self.inject(tmp_path, before, **with_edits(deviceNodes=[node])).linux
        assert linux is not None
        assert linux.resources is not None
        assert linux.devices == [Device("/dev/y", "c", 9, 9), Device("/dev/x", "c", 1, 3, uid=7, gid=8)]
        rule = linux.resources.devices[-1]
        assert (rule.allow, rule.type, rule.major, rule.minor, rule.access) == (True, "c", 1, 3, "rw")

    def test_a_device_that_is_described_in_full_is_not_looked_up(self, tmp_path: Path) -> None:
        node = {"path": "/dev/nosuch", "type": "b", "major": 7, "minor": 0, "fileMode": 0o600, "uid": 0, "gid": 3}
        linux = self.inject(tmp_path, Spec("1.2.1"), **with_edits(deviceNodes=[node])).linux
        assert linux is not None
        assert linux.devices == [Device("/dev/nosuch", "b", 7, 0, 0o600, uid=0, gid=3)]

    @pytest.mark.parametrize(
        ("node", "words"),
        [
            ({"path": "/dev/nosuch"}, 'failed to stat CDI host device "/dev/nosuch": no such file'),
            ({"path": "/dev/x", "hostPath": "/etc"}, 'failed to stat CDI host device "/etc": not a device node'),
            ({"path": "/dev/null", "type": "b"}, 'CDI device ("/dev/null", "/dev/null"), host type mismatch (b, c)'),
        ],
    )
    def test_a_device_that_the_host_does_not_have_is_refused(
        self, tmp_path: Path, node: dict[str, Any], words: str
    ) -> None:
        with pytest.raises(System) as caught:
            self.inject(tmp_path, Spec("1.2.1"), **with_edits(deviceNodes=[node]))
        assert caught.value.message.startswith("failed to inject devices: ")
        assert words in caught.value.message

    def test_a_mount_is_put_where_nothing_hides_it(self, tmp_path: Path) -> None:
        given = [{"hostPath": f"/h{path}", "containerPath": path, "options": ["ro"]} for path in ("/a/b", "/a", "/p")]
        spec = Spec("1.2.1", mounts=[Mount("/p", "proc", "proc"), Mount("/d/pts", "devpts")])
        spec = self.inject(tmp_path, spec, **with_edits(mounts=given))
        assert [mount.destination for mount in spec.mounts] == ["/a", "/p", "/d/pts", "/a/b"]
        assert spec.mounts[1] == Mount("/p", "", "/h/p", ["ro"])

    def test_groups_cache_and_interfaces(self, tmp_path: Path) -> None:
        spec = self.inject(
            tmp_path,
            Spec("1.2.1", process=Process(user=User(additional_gids=[4]))),
            **with_edits(
                additionalGids=[0, 4, 5],
                intelRdt={"closID": "gold", "l3CacheSchema": "L3:0=f", "enableMonitoring": True},
                netDevices=[{"hostInterfaceName": "eth1", "name": "lan0"}],
            ),
        )
        assert spec.process is not None
        assert spec.process.user.additional_gids == [4, 5]
        assert spec.linux is not None
        assert spec.linux.intel_rdt is not None
        assert (spec.linux.intel_rdt.clos_id, spec.linux.intel_rdt.enable_monitoring) == ("gold", True)
        assert spec.linux.net_devices["eth1"].name == "lan0"

    def test_unknown_devices_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidParameter, match=r"^unresolvable CDI devices vendor\.com/net=a, vendor\.com/net=b$"):
            self.inject(tmp_path, Spec("1.2.1"), "a", "dev", "b")
