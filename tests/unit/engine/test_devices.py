"""Whose devices a request gets: CDI's, or those of a vendor of GPUs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from seacan.engine import devices
from seacan.engine.config import DeviceRequest
from seacan.engine.options import EngineOptions
from seacan.errors import System
from seacan.runtime.spec import Process, Spec

GPUS = [["gpu"]]


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineOptions:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return EngineOptions(cdi_spec_dirs=[str(tmp_path / "cdi")])


def install(tmp_path: Path, name: str) -> str:
    path = tmp_path / "bin" / name
    path.write_text("#!/bin/true\n")
    path.chmod(0o755)
    return str(path)


def describe(tmp_path: Path, kind: str, *names: str) -> None:
    (tmp_path / "cdi").mkdir(exist_ok=True)
    found = [{"name": name, "containerEdits": {"env": [f"GOT_{name}={kind}"]}} for name in names]
    path = tmp_path / "cdi" / f"{kind.replace('/', '-')}.json"
    path.write_text(json.dumps({"cdiVersion": "0.6.0", "kind": kind, "devices": found}))


def inject(given: EngineOptions, /, **request: object) -> Spec:
    spec = Spec("1.2.1", process=Process())
    devices.inject(spec, [DeviceRequest(**request)], given)  # type: ignore[arg-type]
    return spec


def env(spec: Spec) -> list[str]:
    assert spec.process is not None
    return spec.process.env


def test_cdi_devices_by_their_full_names(options: EngineOptions, tmp_path: Path) -> None:
    describe(tmp_path, "vendor.com/net", "a", "b")
    assert env(inject(options, driver="cdi", device_ids=["vendor.com/net=b"])) == ["GOT_b=vendor.com/net"]
    assert devices.discovered(options) == (["vendor.com/net=a", "vendor.com/net=b"], [])


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"device_ids": ["a/b=c"]}, "CDI device injection failed: unresolvable CDI devices a/b=c"),
        ({"count": 1}, "unexpected count in CDI device request"),
        ({"options": {"a": "b"}}, "unexpected options in CDI device request"),
    ],
)
def test_what_cdi_cannot_do_is_said_in_dockerds_words(
    options: EngineOptions, request_: dict[str, object], words: str
) -> None:
    with pytest.raises(System) as caught:
        inject(options, driver="cdi", **request_)
    assert caught.value.message == words


def test_cdi_without_folders(options: EngineOptions) -> None:
    options.cdi_spec_dirs = [""]
    assert devices.cdi_folders(options) == []
    words = "no CDI specification directories specified"
    with pytest.raises(System, match=f"^CDI device injection failed: {words}$"):
        inject(options, driver="cdi", device_ids=["a/b=c"])
    assert devices.discovered(options) == ([], [f"CDI cache initialization failed: {words}"])


def test_cdi_that_is_switched_off_is_no_driver(options: EngineOptions) -> None:
    options.features = {"cdi": False}
    assert devices.cdi_folders(options) == []
    with pytest.raises(System, match=r'^could not select device driver "cdi" with capabilities: \[\]$'):
        inject(options, driver="cdi", device_ids=["a/b=c"])
    assert devices.discovered(options) == ([], [])


def test_a_bad_file_is_a_warning(options: EngineOptions, tmp_path: Path) -> None:
    (tmp_path / "cdi").mkdir()
    bad = tmp_path / "cdi/bad.json"
    bad.write_text('{"cdiVersion": "9.9.9"}')
    assert devices.discovered(options) == (
        [],
        [
            f"CDI: Error associated with spec file {bad}: "
            'failed to load CDI Spec invalid CDI Spec: invalid version "9.9.9"'
        ],
    )


class TestGPUs:
    @pytest.mark.parametrize("vendor", ["nvidia", "amd"])
    def test_they_come_by_cdi_where_it_describes_them(
        self, options: EngineOptions, tmp_path: Path, vendor: str
    ) -> None:
        kind = f"{vendor}.com/gpu"
        describe(tmp_path, kind, "0", "1", "all")
        assert env(inject(options, count=-1, capabilities=GPUS)) == [f"GOT_all={kind}"]
        assert env(inject(options, count=2, capabilities=GPUS)) == [f"GOT_0={kind}", f"GOT_1={kind}"]
        assert env(inject(options, driver=vendor, device_ids=[f"{kind}=1"], capabilities=GPUS)) == [f"GOT_1={kind}"]
        assert env(inject(options, capabilities=GPUS)) == []
        words = f"CDI device injection failed: unresolvable CDI devices {kind}=7"
        with pytest.raises(System, match=f"^{words}$"):
            inject(options, device_ids=["7"], capabilities=GPUS)

    def test_nvidias_hook_is_told(self, options: EngineOptions, tmp_path: Path) -> None:
        path = install(tmp_path, devices.NVIDIA_HOOK)
        spec = inject(options, count=2, capabilities=[["fly"], ["gpu", "utility", "compute"]])
        assert env(spec) == ["NVIDIA_VISIBLE_DEVICES=0,1", "NVIDIA_DRIVER_CAPABILITIES=utility,compute"]
        assert spec.hooks is not None
        assert [(hook.path, hook.args) for hook in spec.hooks.prestart] == [(path, [devices.NVIDIA_HOOK, "prestart"])]
        assert f"PATH={tmp_path}/bin" in spec.hooks.prestart[0].env
        assert env(inject(options, count=-1, capabilities=GPUS)) == ["NVIDIA_VISIBLE_DEVICES=all"]
        assert env(inject(options, device_ids=["GPU-7"], capabilities=GPUS)) == ["NVIDIA_VISIBLE_DEVICES=GPU-7"]
        assert env(inject(options, capabilities=GPUS)) == ["NVIDIA_VISIBLE_DEVICES=void"]

    def test_amds_runtime_is_told(self, options: EngineOptions, tmp_path: Path) -> None:
        install(tmp_path, devices.AMD_RUNTIME)
        spec = inject(options, driver="amd", count=-1, capabilities=GPUS)
        assert (env(spec), spec.hooks) == (["AMD_VISIBLE_DEVICES=all"], None)

    def test_count_and_names_contradict_each_other(self, options: EngineOptions, tmp_path: Path) -> None:
        install(tmp_path, devices.NVIDIA_HOOK)
        with pytest.raises(System, match=r"^cannot set both Count and DeviceIDs on device request$"):
            inject(options, count=1, device_ids=["0"], capabilities=GPUS)

    @pytest.mark.parametrize(("driver", "groups"), [("amd", GPUS), ("", [["gpu", "fly"]]), ("", None), ("x", GPUS)])
    def test_what_no_driver_can_do_is_refused(
        self, options: EngineOptions, tmp_path: Path, driver: str, groups: list[list[str]] | None
    ) -> None:
        install(tmp_path, devices.NVIDIA_HOOK)
        with pytest.raises(System, match=f'^could not select device driver "{driver}" with capabilities: '):
            inject(options, driver=driver, count=1, capabilities=groups)
