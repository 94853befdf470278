"""What a container is asked to be: checks, the image's defaults, the engine's; names, signals, mounts, listings."""

from __future__ import annotations

import re
import time

import pytest

from seacan.engine import creation
from seacan.engine.config import BindOptions, ContainerConfig, HostConfig, LogConfig, Mount, RestartPolicy, TmpfsOptions
from seacan.engine.links import link_variables
from seacan.engine.listing import command_line, parse_time
from seacan.engine.mounts import follow_root, parse_bind, parse_mount, parse_volumes_from
from seacan.engine.names import check_name, new_id, random_name
from seacan.engine.options import EngineOptions
from seacan.engine.signals import parse_signal
from seacan.engine.streams import detach_keys
from seacan.engine.times import ZERO, rfc3339
from seacan.errors import InvalidParameter
from seacan.images.config import Healthcheck, ImageDefaults


def test_the_image_fills_what_is_left_open() -> None:
    config = ContainerConfig(env=["A=mine"], labels={"l": "mine"})
    image = ImageDefaults(
        env=["A=image", "B=image"], cmd=["run"], user="app", working_dir="/srv", labels={"l": "image", "m": "image"},
        exposed_ports={"80/tcp": {}}, stop_signal="INT", healthcheck=Healthcheck(test=["CMD", "check"], interval=5),
    )  # fmt: skip
    creation.merge(config, image)
    assert config.env == ["A=mine", "B=image"]
    assert (config.cmd, config.user, config.working_dir, config.stop_signal) == (["run"], "app", "/srv", "INT")
    assert config.labels == {"l": "mine", "m": "image"}
    assert config.exposed_ports == {"80/tcp": {}}
    assert config.healthcheck is not None
    assert config.healthcheck.test == ["CMD", "check"]


def test_an_entrypoint_of_ones_own_forgets_the_images_command() -> None:
    image = ImageDefaults(entrypoint=["/entry"], cmd=["default"])
    config = ContainerConfig(entrypoint=["/mine"])
    creation.merge(config, image)
    assert creation.command(config) == ("/mine", [])
    config = ContainerConfig(cmd=["other"])
    creation.merge(config, image)
    assert creation.command(config) == ("/entry", ["other"])
    config = ContainerConfig(entrypoint=[""], cmd=["bare"])
    creation.merge(config, image)
    assert creation.command(config) == ("bare", [])


def test_nothing_to_run_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="no command specified"):
        creation.command(ContainerConfig())


@pytest.mark.parametrize(
    ("host_config", "words"),
    [
        (HostConfig(restart_policy=RestartPolicy(name="foo")), "unknown policy 'foo'"),
        (
            HostConfig(restart_policy=RestartPolicy(name="always", maximum_retry_count=3)),
            "can only be used with 'on-failure'",
        ),
        (HostConfig(restart_policy=RestartPolicy(name="on-failure", maximum_retry_count=-1)), "cannot be negative"),
        (HostConfig(restart_policy=RestartPolicy(name="always"), auto_remove=True), "can't create 'AutoRemove'"),
        (HostConfig(log_config=LogConfig(type="foo")), "error looking up logging plugin foo"),
        (
            HostConfig(log_config=LogConfig(type="json-file", config={"foo": "1"})),
            "unknown log opt 'foo' for json-file",
        ),
        (HostConfig(extra_hosts=["foo"]), 'bad format for add-host: "foo"'),
        (HostConfig(port_bindings={"0/tcp": None}), "invalid port specification"),
        (HostConfig(isolation="hyperv"), "invalid isolation"),
    ],
)
def test_what_contradicts_itself_is_refused_in_dockerds_words(host_config: HostConfig, words: str) -> None:
    with pytest.raises(InvalidParameter, match=re.escape(words)):
        creation.check_host_config(host_config)


def test_defaults_are_filled_in() -> None:
    host_config = HostConfig(memory=1 << 30, pids_limit=-1)
    creation.adapt(host_config, EngineOptions(log_opts={"max-size": "1m"}), cgroup_v2=False)
    assert host_config.memory_swap == 2 << 30
    assert host_config.pids_limit is None
    assert (host_config.network_mode, host_config.ipc_mode, host_config.cgroupns_mode) == ("bridge", "private", "host")
    assert host_config.log_config == LogConfig(type="json-file", config={"max-size": "1m"})
    assert host_config.shm_size == 64 << 20


@pytest.mark.parametrize("name", ["", "-a", "a b", "a/b", "a", "ä1", "a\n1"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(InvalidParameter, match="Invalid container name"):
        check_name(name)


def test_names_lose_their_slash() -> None:
    assert check_name("/web.1-a_b") == "web.1-a_b"


def test_random_names_and_ids() -> None:
    assert re.fullmatch("[a-z]+_[a-z]+", random_name())
    assert re.fullmatch("[a-z]+_[a-z]+[0-9]", random_name(1))
    assert re.fullmatch("[0-9a-f]{64}", new_id())


@pytest.mark.parametrize(
    ("text", "number"), [("TERM", 15), ("SIGKILL", 9), ("sigint", 2), ("10", 10), ("RTMIN+3", 37), ("64", 64)]
)
def test_signals(text: str, number: int) -> None:
    assert parse_signal(text) == number


@pytest.mark.parametrize("text", ["0", "65", "FOO", "-9", ""])
def test_signals_that_are_none(text: str) -> None:
    with pytest.raises(InvalidParameter):
        parse_signal(text)


def test_detach_keys() -> None:
    assert detach_keys("") == b"\x10\x11"
    assert detach_keys("ctrl-a,x,ctrl-\\") == b"\x01x\x1c"
    with pytest.raises(InvalidParameter):
        detach_keys("ctrl-,")


def test_binds() -> None:
    mount = parse_bind("/a/../b:/c/:ro,rshared")
    assert (mount.type, mount.source, mount.destination, mount.rw) == ("bind", "/b", "/c", False)
    assert (mount.propagation, mount.mode, mount.create_source) == ("rshared", "ro,rshared", True)
    mount = parse_bind("data:/c:nocopy", "local")
    assert (mount.type, mount.name, mount.driver, mount.copy) == ("volume", "data", "local", False)
    assert parse_bind("/c").anonymous


@pytest.mark.parametrize("raw", ["", ":", "/a:/b:foo", "/a:b", "/a:/", "/a:/b:rw,ro", "/b:ro", "a:b:c:d"])
def test_binds_that_are_none(raw: str) -> None:
    with pytest.raises(InvalidParameter):
        parse_bind(raw)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (Mount(type="bind", source="/tmp"), "field Target must not be empty"),
        (Mount(type="bind", target="/t"), "field Source must not be empty"),
        (Mount(type="bind", source="/nonexistent/x", target="/t"), "bind source path does not exist"),
        (Mount(type="tmpfs", source="/x", target="/t"), "field Source must not be specified"),
        (Mount(type="tmpfs", target="/t", tmpfs_options=TmpfsOptions(options=[["suid"]])), "invalid option: suid"),
        (Mount(type="volume", target="/t", bind_options=BindOptions()), "field BindOptions must not be specified"),
        (Mount(type="npipe", source="x", target="/t"), "mount type unknown"),
        (Mount(type="volume", target="t"), "mount path must be absolute"),
    ],
)
def test_mounts_that_are_none(spec: Mount, words: str) -> None:
    with pytest.raises(InvalidParameter, match=words):
        parse_mount(spec)


def test_volumes_from() -> None:
    assert parse_volumes_from("web") == ("web", True)
    assert parse_volumes_from("web:ro") == ("web", False)
    with pytest.raises(InvalidParameter):
        parse_volumes_from("web:rshared")


def test_links_tell_of_ports_and_environment() -> None:
    target = ContainerConfig(exposed_ports={"80/tcp": {}, "53/udp": {}}, env=["PATH=/bin", "MODE=fast"])
    assert link_variables("web", "my-db", "172.17.0.2", target) == [
        "MY_DB_NAME=/web/my-db",
        "MY_DB_PORT=tcp://172.17.0.2:80",
        "MY_DB_PORT_80_TCP=tcp://172.17.0.2:80",
        "MY_DB_PORT_80_TCP_ADDR=172.17.0.2",
        "MY_DB_PORT_80_TCP_PORT=80",
        "MY_DB_PORT_80_TCP_PROTO=tcp",
        "MY_DB_PORT_53_UDP=udp://172.17.0.2:53",
        "MY_DB_PORT_53_UDP_ADDR=172.17.0.2",
        "MY_DB_PORT_53_UDP_PORT=53",
        "MY_DB_PORT_53_UDP_PROTO=udp",
        "MY_DB_ENV_MODE=fast",
    ]


def test_moments() -> None:
    assert parse_time("1700000000.5") == 1_700_000_000_500_000_000
    assert parse_time("2023-11-14T22:13:20Z") == 1_700_000_000_000_000_000
    assert abs(parse_time("1h30m") - (time.time_ns() - 5400 * 10**9)) < 10**9
    with pytest.raises(InvalidParameter):
        parse_time("yesterday")
    assert rfc3339(0) == ZERO
    assert rfc3339(1_700_000_000_120_000_000) == "2023-11-14T22:13:20.12Z"
    assert rfc3339(1_700_000_000_000_000_000) == "2023-11-14T22:13:20Z"


def test_a_command_line_quotes_arguments_with_spaces() -> None:
    assert command_line("sh", ["-c", "echo hi"]) == "sh -c 'echo hi'"


class TestTheDaemonsOwnFolders:
    """Binds that show ``<data-root>``: what is unmounted there must not stay in the container."""

    ROOT = "/var/lib/seacan"

    @pytest.mark.parametrize("source", ["/", "/var", "/var/lib/seacan", "/var/lib/seacan/volumes/x"])
    def test_they_follow_the_host(self, source: str) -> None:
        mount = parse_bind(f"{source}:/c")
        follow_root(mount, self.ROOT)
        assert mount.propagation == "rslave"
        shared = parse_bind(f"{source}:/c:rshared")
        follow_root(shared, self.ROOT)
        assert shared.propagation == "rshared"

    @pytest.mark.parametrize("mode", ["private", "rprivate", "shared", "slave"])
    def test_it_cannot_be_declined(self, mode: str) -> None:
        with pytest.raises(InvalidParameter) as failed:
            follow_root(parse_bind(f"/var/lib:/c:{mode}"), self.ROOT)
        assert failed.value.message == (
            'invalid mount config: must use either propagation mode "rslave" or "rshared" when mount source is within '
            f'the daemon root, daemon root: "{self.ROOT}", bind mount source: "/var/lib", propagation: "{mode}"'
        )

    @pytest.mark.parametrize("source", ["/va", "/var/lib/seacan2", "/srv"])
    def test_other_binds_are_private(self, source: str) -> None:
        mount = parse_bind(f"{source}:/c")
        follow_root(mount, self.ROOT)
        assert mount.propagation == "rprivate"
