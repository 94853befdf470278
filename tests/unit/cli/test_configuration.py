"""dockerd's flags and daemon.json, and what they make of the engine's options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from seacan.cli import configuration
from seacan.cli.configuration import Configuration, load, parse_host, reload
from seacan.cli.flags import FlagError
from seacan.engine.config import Ulimit
from seacan.engine.devices import cdi_folders
from seacan.engine.options import AddressPool, CacheLimits, CachePolicy, RuntimeOption
from seacan.errors import InvalidParameter, SeacanError, Unsupported


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "daemon.json"
    path.write_text("{}")
    return path


def loaded(file: Path, *flags: str, content: Any = None, **environment: str) -> Configuration:
    if content is not None:
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    return load([f"--config-file={file}", *flags], environment)


def refusal(file: Path, *flags: str, content: Any = None, **environment: str) -> str:
    with pytest.raises(SeacanError) as failure:
        loaded(file, *flags, content=content, **environment)
    return failure.value.message


def test_without_anything_there_are_defaults(file: Path) -> None:
    found = loaded(file)
    assert found.hosts == (configuration.DEFAULT_HOST,)
    assert found.group == "docker"
    assert found.tls is None
    assert found.engine.data_root == "/var/lib/seacan"


def test_flags_become_options(file: Path) -> None:
    found = loaded(
        file,
        "-D",
        "--data-root=/d",
        "--default-ulimit",
        "nofile=10:20",
        "--default-ulimit=core=-1",
        "--log-opt=max-size=1m",
        "--log-opt=max-file=3",
        "--bip=10.9.0.1/24",
        "--dns=1.1.1.1,8.8.8.8",
        "--dns=9.9.9.9",
        "--add-runtime=crun=/usr/bin/crun",
        "--default-runtime=crun",
        "--default-address-pool=base=10.10.0.0/16,size=24",
        "--default-network-opt=bridge=com.docker.network.driver.mtu=1400",
        "--icc=false",
        "--label=a=b",
        "--feature=x=false",
        "--feature=y",
        "--default-shm-size=1m",
        "--registry-mirror=https://m.example",
        "--init",
    )
    options = found.engine
    assert options.debug and options.init and not options.icc
    assert options.default_ulimits == {
        "nofile": Ulimit(name="nofile", soft=10, hard=20),
        "core": Ulimit(name="core", soft=-1, hard=-1),
    }
    assert options.log_opts == {"max-size": "1m", "max-file": "3"}
    assert options.dns == ["1.1.1.1", "8.8.8.8", "9.9.9.9"]
    assert options.runtimes == {"crun": RuntimeOption(path="/usr/bin/crun")}
    assert options.default_address_pools == [AddressPool(base="10.10.0.0/16", size=24)]
    assert options.default_network_opts == {"bridge": {"com.docker.network.driver.mtu": "1400"}}
    assert options.features == {"x": False, "y": True}
    assert options.default_shm_size == 1 << 20
    assert options.registry_mirrors == ["https://m.example/"]


def test_the_file_has_the_same_settings_under_dockerds_keys(file: Path) -> None:
    content = {
        "data-root": "/d",
        "debug": True,
        "hosts": ["unix:///a.sock", "tcp://127.0.0.1:2376"],
        "tlsverify": True,
        "labels": ["a=b"],
        "dns-opts": ["ndots:1"],
        "default-ulimits": {"nofile": {"Name": "nofile", "Soft": 1, "Hard": 2}},
        "default-address-pools": [{"base": "10.10.0.0/16", "size": 24}],
        "runtimes": {"crun": {"path": "/usr/bin/crun", "runtimeArgs": ["--debug"]}},
        "log-driver": "local",
        "log-opts": {"max-size": "1m"},
        "icc": False,
        "default-shm-size": "2m",
        "features": {"x": True},
        "insecure-registries": ["r:5000"],
        "exec-opts": ["native.cgroupdriver=cgroupfs"],
        "proxies": {"http-proxy": "http://p:1", "no-proxy": "localhost"},
    }
    found = loaded(file, content=content)
    assert found.hosts == ("tcp://127.0.0.1:2376", "unix:///a.sock")
    assert found.tls and found.tlsverify
    assert (found.http_proxy, found.no_proxy) == ("http://p:1", "localhost")
    options = found.engine
    assert options.default_ulimits["nofile"].hard == 2
    assert options.runtimes["crun"].arguments == ("--debug",)
    assert options.log_driver == "local" and not options.icc
    assert options.default_shm_size == 2 << 20


def test_unknown_keys_are_an_error_in_dockerds_words(file: Path) -> None:
    message = refusal(file, content={"nope": 1, "debug": True, "neither": 2})
    assert message == (
        f"unable to configure the Docker daemon with file {file}: "
        "the following directives don't match any configuration option: nope, neither"
    )


def test_a_setting_in_both_places_is_an_error(file: Path) -> None:
    message = refusal(file, "-D", "--label=x=y", "--dns=1.1.1.1", content={"debug": False, "labels": ["a=b"], "mtu": 9})
    assert message.endswith(
        "the following directives are specified both as a flag and in the configuration file: "
        "debug: (from flag: true, from file: false), labels: (from flag: [x=y], from file: [a=b])"
    )


def test_proxies_in_a_conflict_show_no_password(file: Path) -> None:
    message = refusal(file, "--http-proxy=http://u:secret@a", content={"proxies": {"http-proxy": "http://v:hush@b"}})
    assert "secret" not in message and "hush" not in message
    assert "http://xxxxx:xxxxx@a" in message


def test_dockerds_stock_runtime_is_ours_unless_there_is_one_of_that_name(file: Path) -> None:
    assert loaded(file, content={"default-runtime": "runc"}).engine.default_runtime == "seacan"
    found = loaded(file, "--add-runtime=runc=/usr/sbin/runc", content={"default-runtime": "runc"})
    assert found.engine.default_runtime == "runc"


def test_runtimes_of_flag_and_file_are_joined(file: Path) -> None:
    found = loaded(file, "--add-runtime=a=/a", content={"runtimes": {"b": {"path": "/b"}}})
    assert set(found.engine.runtimes) == {"a", "b"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"debug": "yes"}, "json: cannot unmarshal string into Go struct field Config.debug of type bool"),
        ({"mtu": True}, "json: cannot unmarshal bool into Go struct field Config.mtu of type int"),
        ({"hosts": "unix:///x"}, "json: cannot unmarshal string into Go struct field Config.hosts"),
        ("[]", "json: cannot unmarshal array"),
        ('{"debug": ', "invalid JSON at line 1"),
        (b"\xff\xfe\x00".decode("latin-1"), "invalid JSON"),
        ({"log-level": "loud"}, "invalid logging level: loud"),
        ({"runtimes": {"x": {}}}, "runtime x: either a runtimeType or a path must be configured"),
        ({"runtimes": {"seacan": {"path": "/x"}}}, "runtime name 'seacan' is reserved"),
        ({"default-runtime": "nope"}, "specified default runtime 'nope' does not exist"),
        ({"host-gateway-ip": "1.1.1.1", "host-gateway-ips": ["2.2.2.2"]}, "must not both be specified"),
        ({"api-cors-header": "*"}, "have been removed"),
        ({"labels": ["a=1", "a=2"]}, "conflict labels for a=2 and a=1"),
        ({"exec-opts": ["native.cgroupdriver=systemd"]}, "native.cgroupdriver=systemd is not supported"),
        ({"default-ipc-mode": "host"}, 'IPC mode "host" is not supported as default value'),
        ({"bip": "10.0.0.1"}, "invalid CIDR address"),
        ({"bip": "10.0.0.1/8", "bridge": "br0"}, "mutually exclusive options"),
    ],
)
def test_bad_files_are_refused(file: Path, content: Any, message: str) -> None:
    assert message in refusal(file, content=content)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--nope"], "unknown flag: --nope"),
        (["x"], '"seacan daemon" accepts no arguments: x'),
        (["--icc=maybe"], 'invalid argument "maybe" for "--icc" flag: strconv.ParseBool'),
        (["-l", "loud"], "invalid logging level: loud"),
        (["--default-ulimit=x=1"], 'invalid argument "x=1" for "--default-ulimit" flag: invalid ulimit type: x'),
        (["--dns=nope"], "invalid IP address: nope"),
        (["--registry-mirror=ftp://x"], "invalid mirror"),
        (["-H", "ftp://x"], "invalid bind address (ftp://x): unsupported proto 'ftp'"),
        (["--rootless"], "--rootless=true: rootless mode is not supported"),
        (["--max-concurrent-downloads=-1"], "invalid max concurrent downloads: -1"),
        (["--default-address-pool=base=10.0.0.0/24,size=8"], "size 8 does not fit"),
    ],
)
def test_bad_flags_are_refused(file: Path, flags: list[str], message: str) -> None:
    assert message in refusal(file, *flags)


def test_a_flag_that_cannot_be_parsed_is_told_apart(file: Path) -> None:
    with pytest.raises(FlagError):
        loaded(file, "--nope")
    with pytest.raises(Unsupported):
        loaded(file, "--rootless")


def test_settings_of_parts_that_do_not_exist_are_accepted_with_a_warning(file: Path) -> None:
    found = loaded(file, "--containerd=/run/containerd/containerd.sock", content={"userland-proxy-path": "/x"})
    assert [warning.partition(" ")[0] for warning in found.warnings] == ["containerd", "userland-proxy-path"]
    assert loaded(file, "--rootless=false", content={"metrics-addr": ""}).warnings == ()


def test_a_missing_file_matters_only_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configuration, "DEFAULT_CONFIG_FILE", str(tmp_path / "none.json"))
    assert load([], {}).in_file == frozenset()
    with pytest.raises(InvalidParameter, match="no such file or directory"):
        load([f"--config-file={tmp_path / 'none.json'}"], {})


def test_a_file_may_be_empty_or_have_a_byte_order_mark(file: Path) -> None:
    file.write_bytes(b"  \n")
    assert loaded(file).in_file == frozenset()
    file.write_bytes(b'\xef\xbb\xbf{"debug": true}')
    assert loaded(file).engine.debug
    file.write_text('{"debug": true}', encoding="utf-16")
    assert loaded(file).engine.debug


@pytest.mark.parametrize(
    ("text", "tls", "expected"),
    [
        ("unix://", False, configuration.DEFAULT_HOST),
        ("unix:///x.sock", False, "unix:///x.sock"),
        ("tcp://", False, "tcp://localhost:2375"),
        ("tcp://", True, "tcp://localhost:2376"),
        ("tcp://:4000", False, "tcp://localhost:4000"),
        ("0.0.0.0:1", False, "tcp://0.0.0.0:1"),
        ("tcp://[::1]:1", False, "tcp://[::1]:1"),
        ("tcp://h", False, "tcp://h:2375"),
        ("fd://", False, "fd://"),
        ("", True, "tcp://localhost:2376"),
    ],
)
def test_hosts_get_their_defaults(text: str, tls: bool, expected: str) -> None:
    assert parse_host(text, tls=tls) == expected


@pytest.mark.parametrize("text", ["tcp://h:0", "tcp://h:70000", "tcp://h/x", "unix://a://b", "tcp://a:b:c"])
def test_bad_hosts_are_refused(text: str) -> None:
    with pytest.raises(InvalidParameter):
        parse_host(text, tls=False)


def test_tlsverify_means_tls_even_when_false(file: Path) -> None:
    assert (loaded(file, "--tlsverify=false").tls, loaded(file, "--tlsverify=false").tlsverify) == (True, False)
    assert (loaded(file, "--tls").tls, loaded(file, "--tls").tlsverify) == (True, True)
    assert loaded(file, "--tls=false").tls is False
    verified = loaded(file, DOCKER_TLS_VERIFY="1", DOCKER_CERT_PATH="/certs")
    assert verified.tlsverify and verified.tlscacert == "/certs/ca.pem"


def test_a_reload_takes_over_what_the_file_says_and_nothing_else(file: Path) -> None:
    flags = [f"--config-file={file}", "--label=from=flag"]
    running = loaded(file, "--label=from=flag").engine
    file.write_text(
        json.dumps({"debug": True, "data-root": "/elsewhere", "max-concurrent-downloads": 9, "features": {"x": True}})
    )
    fresh = reload(running, flags, {})
    assert fresh.debug and fresh.max_concurrent_downloads == 9 and fresh.features == {"x": True}
    assert fresh.data_root == running.data_root
    assert fresh.labels == ["from=flag"]


def test_a_reload_resets_numbers_that_the_file_no_longer_gives(file: Path) -> None:
    running = loaded(file, content={"max-concurrent-uploads": 9, "shutdown-timeout": 99}).engine
    file.write_text("{}")
    fresh = reload(running, [f"--config-file={file}"], {})
    assert fresh.max_concurrent_uploads == 5
    assert fresh.shutdown_timeout == 99


def test_a_reload_with_a_bad_file_is_refused(file: Path) -> None:
    running = loaded(file).engine
    file.write_text('{"default-runtime": "nope"}')
    with pytest.raises(InvalidParameter):
        reload(running, [f"--config-file={file}"], {})


def test_the_cache_of_builds_has_limits(file: Path) -> None:
    gc = {"enabled": True, "defaultKeepStorage": "20GB", "defaultMaxUsedSpace": "30gb", "defaultMinFreeSpace": "1g"}
    found = loaded(file, content={"builder": {"gc": gc}})
    assert found.engine.build_cache == CacheLimits(reserved=20 << 30, most=30 << 30, free=1 << 30)
    assert not loaded(file, content={"builder": {"gc": {"enabled": False}}}).engine.build_cache.enabled
    assert loaded(file, content={}).engine.build_cache == CacheLimits()


def test_what_is_wrong_with_the_limits_of_the_cache_is_said(file: Path) -> None:
    assert "builder.gc.nope" in refusal(file, content={"builder": {"gc": {"nope": 1}}})
    assert "builder.nope" in refusal(file, content={"builder": {"nope": {}}})
    assert "invalid size: 'much'" in refusal(file, content={"builder": {"gc": {"defaultReservedSpace": "much"}}})
    assert "must be of the form" in refusal(file, content={"builder": {"gc": 3}})
    for rule, words in (
        (3, "each must be of the form"),
        ({"nope": 1}, "builder.gc.policy.nope"),
        ({"filter": ["label=x"]}, "neither unused-for=DURATION nor type=KIND"),
        ({"filter": ["unused-for=often"]}, "often"),
        ({"maxUsedSpace": "much"}, "invalid size: 'much'"),
    ):
        assert words in refusal(file, content={"builder": {"gc": {"policy": [rule]}}})


def test_the_cache_of_builds_has_a_policy(file: Path) -> None:
    rules = [
        {"filter": ["unused-for=48h", "type==source.local"], "keepStorage": "1GB"},
        {"all": True, "maxUsedSpace": "2GB", "minFreeSpace": "3GB"},
    ]
    assert loaded(file, content={"builder": {"gc": {"policy": rules}}}).engine.build_cache.policy == (
        CachePolicy(unused_for=48 * 3600 * 10**9, kinds=("source.local",), reserved=1 << 30),
        CachePolicy(all=True, most=2 << 30, free=3 << 30),
    )


@pytest.mark.parametrize(
    ("content", "flags", "folders"),
    [
        ({}, (), ["/etc/cdi", "/var/run/cdi"]),
        ({"features": {"cdi": True}}, ("--cdi-spec-dir=/foo/bar", "--cdi-spec-dir=/baz"), ["/foo/bar", "/baz"]),
        ({"cdi-spec-dirs": ["/foo"]}, (), ["/foo"]),
        ({"cdi-spec-dirs": []}, (), []),
        ({}, ("--cdi-spec-dir=",), []),
        ({"features": {"cdi": False}}, ("--cdi-spec-dir=/foo",), []),
    ],
)
def test_folders_of_cdi_files(file: Path, content: dict[str, Any], flags: tuple[str, ...], folders: list[str]) -> None:
    assert cdi_folders(loaded(file, *flags, content=content).engine) == folders
