"""Docker's JSON read as leniently as Go reads it, and printed as dockerd prints it."""

from __future__ import annotations

import pytest

from seacan.engine.config import ContainerConfig, ContainerCreateRequest, HostConfig, copy, decode, encode
from seacan.errors import InvalidParameter


def test_null_leaves_the_zero_value() -> None:
    request = decode(
        b'{"Hostname": null, "Tty": null, "HostConfig": {"Memory": null, "Binds": null}}', ContainerCreateRequest
    )
    assert (request.hostname, request.tty) == ("", False)
    assert request.host_config is not None
    assert (request.host_config.memory, request.host_config.binds) == (0, None)


def test_names_match_whatever_their_case() -> None:
    request = decode(b'{"image": "a", "hostconfig": {"NETWORKMODE": "none"}}', ContainerCreateRequest)
    assert request.image == "a"
    assert request.host_config is not None
    assert request.host_config.network_mode == "none"


def test_unknown_names_are_passed_over() -> None:
    assert decode(b'{"Foo": {"Bar": [1]}}', ContainerConfig) == ContainerConfig()


@pytest.mark.parametrize("field", ["Cmd", "Entrypoint", "Shell"])
def test_a_command_may_be_one_string(field: str) -> None:
    config = decode(f'{{"{field}": "echo"}}'.encode(), ContainerConfig)
    assert getattr(config, field.lower()) == ["echo"]


def test_nulls_inside_maps_and_lists() -> None:
    body = b'{"Env": ["A=1", null], "ExposedPorts": {"80/tcp": null}, "HostConfig": {"PortBindings": {"80/tcp": null}}}'
    request = decode(body, ContainerCreateRequest)
    assert request.env == ["A=1", ""]
    assert request.exposed_ports == {"80/tcp": {}}
    assert request.host_config is not None
    assert request.host_config.port_bindings == {"80/tcp": None}


def test_a_null_endpoint_is_one_without_settings() -> None:
    request = decode(b'{"NetworkingConfig": {"EndpointsConfig": {"net": null}}}', ContainerCreateRequest)
    assert request.networking_config is not None
    assert request.networking_config.endpoints_config == {"net": None}


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"Cmd": 5}', b'{"Env": "x"}', b'{"HostConfig": {"Memory": "1g"}}', b"\xff"]
)
def test_what_is_not_the_type_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidParameter, match="invalid JSON"):
        decode(body, ContainerCreateRequest)


def test_deep_nesting_is_refused_not_followed() -> None:
    with pytest.raises(InvalidParameter):
        decode(b'{"Labels":' + b"[" * 100_000, ContainerConfig)


def test_empty_fields_are_printed_as_dockerd_prints_them() -> None:
    plain = encode(ContainerConfig())
    assert plain["Env"] is None
    assert plain["Labels"] is None
    assert not plain.keys() & {"ExposedPorts", "Healthcheck", "StopTimeout", "StopSignal", "Shell", "MacAddress"}
    plain = encode(HostConfig())
    assert plain["Binds"] is None
    assert plain["ConsoleSize"] == [0, 0]
    assert not plain.keys() & {"Init", "Mounts", "Tmpfs", "Sysctls", "Runtime", "Annotations"}


def test_pointers_are_printed_when_they_are_set_to_zero() -> None:
    assert encode(ContainerConfig(stop_timeout=0))["StopTimeout"] == 0
    assert encode(HostConfig(init=False))["Init"] is False


def test_a_copy_shares_nothing() -> None:
    one = HostConfig(binds=["/a:/b"])
    other = copy(one)
    assert other.binds is not None
    other.binds.append("/c:/d")
    assert one.binds == ["/a:/b"]
